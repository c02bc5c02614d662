--- moonsand runs code that you do not trust: in an isolated sandbox on this machine, or in one far
--- away, with one API, without stopping the program.
---
---     local moonsand = require "moonsand"
---     local box = assert(moonsand.create())
---     print(assert(box:exec("echo hello")).stdout)
---     box:close()

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local providers = require "moonsand.providers"
local sandboxes = require "moonsand.sandbox"
local tasks = require "moonsand.task"

local M = {}

M._VERSION = core.version
M.assert = errors.assert
M.register = providers.register
M.providers = providers.names

for _, name in ipairs { "run", "task", "all", "semaphore", "token", "sleep", "retry", "wrap" } do
  M[name] = tasks[name]
end

--- For programs with a loop of their own: `fd()`, `step(timeout)`, `use(host)`; and for loops that
--- watch objects, `pollfd()`, `events()`, `timeout()`.
M.loop = {
  fd = loop.fd, step = loop.step, use = loop.use,
  pollfd = loop.pollfd, events = loop.events, timeout = loop.timeout,
}

--- The options of `create` that every provider takes.
local CREATE = {
  provider = "string",
  name = "string",
  env = "table",
  env_file = "string",
  clear_env = "boolean",
  cwd = "string",
  shell = "string|table",
  user = "string|number",
  umask = "string",
  max_output = "number|string",
  check = "boolean",
  metadata = "table",
  timeout = "number",
  cancel = "table",
}

local function create_options(provider)
  local known = {}
  for _, source in ipairs { CREATE, provider.options } do
    for name, types in pairs(source) do
      known[name] = types
    end
  end
  return known
end

local function random_id()
  return "ms-" .. core.random(8):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end)
end

local function valid_name(name)
  return #name > 0 and #name <= 64 and not name:find "[^%w._-]"
end

--- What programs get unless they say otherwise.
local function read_defaults(opts)
  local environment = require "moonsand.environment"
  local ok, message, code, detail = environment.check("moonsand.create: env", opts.env, 4)
  if not ok then
    return nil, message, code, detail
  end
  local from_file
  if opts.env_file then
    from_file, message, code, detail = environment.load(opts.env_file)
    if not from_file then
      return nil, message, code, detail
    end
  end
  local env = from_file or {}
  for name, value in pairs(opts.env or {}) do
    env[name] = value
  end
  return {
    env = env,
    clear_env = opts.clear_env,
    cwd = opts.cwd,
    shell = opts.shell,
    user = opts.user,
    umask = opts.umask,
    max_output = opts.max_output,
    check = opts.check,
  }
end

local function create(call, opts, level)
  if opts ~= nil and type(opts) ~= "table" then
    errors.raise(level + 1, "%s: options must be a table, got %s", call, type(opts))
  end
  local name = opts and opts.provider or "local"
  if type(name) ~= "string" then
    errors.raise(level + 1, "%s: option 'provider' must be a string, got %s", call, type(name))
  end
  local provider, message, code, detail = providers.find(name)
  if not provider then
    return nil, message, code, detail
  end
  opts = options.check(call, opts, create_options(provider), level + 1)
  if opts.name and not valid_name(opts.name) then
    return errors.fail("invalid", ("name: %s (letters, digits, '.', '_', '-', at most 64)"):format(
      options.quote(opts.name)), { started = false, provider = provider.name })
  end
  local defaults, driver
  defaults, message, code, detail = read_defaults(opts)
  if not defaults then
    detail.started, detail.provider = false, provider.name
    return nil, message, code, detail
  elseif defaults.cwd and defaults.cwd:sub(1, 1) ~= "/" then
    defaults.cwd = "/workspace/" .. defaults.cwd
  end
  if opts.cancel and opts.cancel:cancelled() then
    message, code, detail = loop.cancelled(opts.cancel.reason)
  else
    driver, message, code, detail = provider.create(opts, loop.limits(opts))
  end
  if not driver then
    detail.started, detail.provider = false, provider.name
    return nil, message, code, detail
  end
  local id = random_id()
  return sandboxes.new(provider, driver, {
    id = id,
    name = opts.name or id,
    owned = true,
    metadata = opts.metadata,
  }, defaults)
end

--- Creates a sandbox, ready to use.
---@param opts? table provider, name, env, env_file, cwd, shell, metadata, limits, timeout, cancel, …
---@return moonsand.Sandbox? box, string? message, string? code, table? detail
function M.create(opts)
  -- No tail call: it would take the frame that levels of errors count.
  return errors.outcome(create("moonsand.create", opts, 2))
end

local function close(box)
  box:close()
end

local function close_and_pass(box, guard, ok, ...)
  loop.unguard(guard)
  box:close()
  if not ok then
    error((...), 0)
  end
  return ...
end

--- Creates a sandbox, calls `fn(box, …)`, closes it in every case, returns what `fn` returned.
---@param opts? table as for `create`
---@param fn fun(box: moonsand.Sandbox, ...): any
---@return any ... or nil, message, code, detail when there was no sandbox
function M.with(opts, fn, ...)
  if type(fn) ~= "function" then
    errors.raise(2, "moonsand.with: a function is needed, got %s", type(fn))
  end
  local box, message, code, detail = create("moonsand.with", opts, 2)
  if not box then
    return nil, message, code, detail
  end
  return close_and_pass(box, loop.guard(close, box), pcall(fn, box, ...))
end

--- What works on this machine and what does not, each with cause and cure.
---@return { ok: boolean, [integer]: moonsand.Finding }
function M.doctor()
  return require("moonsand.doctor").examine(M.create)
end

--- Called with (error, traceback) of a task that raised and that nobody waits for. Replace it to
--- hear of them; as it is, it writes to stderr.
M.on_error = tasks.print_error

tasks.on_error = function(err, traceback)
  (M.on_error or tasks.print_error)(err, traceback)
end

return M
