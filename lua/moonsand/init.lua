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

local unpack = table.unpack or unpack

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

--- The options that every provider takes: of all calls, of those that give a sandbox, of create.
local CALL = { provider = "string", timeout = "number", cancel = "table" }
local HANDLE = {
  env = "table",
  env_file = "string",
  clear_env = "boolean",
  cwd = "string",
  shell = "string|table",
  user = "string|number",
  umask = "string",
  max_output = "number|string",
  check = "boolean",
}
local CREATE = { name = "string", metadata = "table" }

--- The provider that a call's options name, and the options, checked.
---@return table? provider, any opts_or_message, string? code, table? detail
local function prepare(call, opts, level, ...)
  if opts ~= nil and type(opts) ~= "table" and type(opts) ~= "number" then
    errors.raise(level + 1, "%s: options must be a table, got %s", call, type(opts))
  end
  local name = type(opts) == "table" and opts.provider or "local"
  if type(name) ~= "string" then
    errors.raise(level + 1, "%s: option 'provider' must be a string, got %s", call, type(name))
  end
  local provider, message, code, detail = providers.find(name)
  if not provider then
    return nil, message, code, detail
  end
  local known = {}
  for _, source in ipairs { CALL, provider.options, ... } do
    for option, types in pairs(source) do
      known[option] = types
    end
  end
  return provider, options.check(call, opts, known, level + 1)
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
local function read_defaults(call, opts, level)
  local environment = require "moonsand.environment"
  local ok, message, code, detail = environment.check(call .. ": env", opts.env, level + 1)
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

--- Nothing was made.
local function none(provider, message, code, detail)
  detail.started, detail.provider = false, provider.name
  return nil, message, code, detail
end

--- The handle of what `ask` gives, the provider's sandbox.
local function open(call, level, provider, opts, fields, ask, ...)
  local defaults, message, code, detail = read_defaults(call, opts, level + 1)
  if not defaults then
    return none(provider, message, code, detail)
  elseif opts.cancel and opts.cancel:cancelled() then
    return none(provider, loop.cancelled(opts.cancel.reason))
  end
  local driver
  driver, message, code, detail = ask(...)
  if not driver then
    return none(provider, message, code, detail)
  end
  local id = driver.id or random_id()
  return sandboxes.new(provider, driver, {
    id = id,
    name = driver.name or fields.name or id,
    owned = fields.owned,
    metadata = driver.metadata or fields.metadata,
  }, defaults)
end

local function create(call, opts, level)
  local provider, message, code, detail = prepare(call, opts, level + 1, HANDLE, CREATE)
  if not provider then
    return nil, message, code, detail
  end
  opts = message
  if opts.name and not valid_name(opts.name) then
    return none(provider, select(2, errors.fail("invalid",
      ("name: %s (letters, digits, '.', '_', '-', at most 64)"):format(options.quote(opts.name)))))
  end
  local fields = { name = opts.name, owned = true, metadata = opts.metadata }
  -- No tail call: it would take the frame that levels of errors count.
  return errors.outcome(open(call, level + 1, provider, opts, fields, provider.create, opts,
    loop.limits(opts)))
end

--- Creates a sandbox, ready to use.
---@param opts? table provider, name, env, env_file, cwd, shell, metadata, limits, timeout, cancel, …
---@return moonsand.Sandbox? box, string? message, string? code, table? detail
function M.create(opts)
  -- No tail call: it would take the frame that levels of errors count.
  return errors.outcome(create("moonsand.create", opts, 2))
end

local function check_id(call, what, id)
  if type(id) ~= "string" or id == "" then
    errors.raise(3, "%s: %s is a string, got %s", call, what, options.quote(id))
  end
end

--- A sandbox that exists already, by its id or its name. The handle ends only what it started.
---@param id string
---@param opts? table provider, env, cwd, …, timeout, cancel
---@return moonsand.Sandbox? box, string? message, string? code, table? detail
function M.connect(id, opts)
  check_id("moonsand.connect", "the id", id)
  local provider, checked, code, detail = prepare("moonsand.connect", opts, 2, HANDLE)
  if not provider then
    return nil, checked, code, detail
  end
  return errors.outcome(open("moonsand.connect", 2, provider, checked, { owned = false },
    providers.ask, provider, "connect", id, checked, loop.limits(checked)))
end

--- What a provider's call answers; a failure names it.
local function put(provider, name, ...)
  local value, message, code, detail = providers.ask(provider, name, ...)
  if value == nil then
    detail.provider = provider.name
    return nil, message, code, detail
  end
  return value, provider
end

--- The same of the provider that the options name.
local function ask(call, opts, name, ...)
  local provider, checked, code, detail = prepare(call, opts, 3)
  if not provider then
    return nil, checked, code, detail
  end
  local arguments, count = { ... }, select("#", ...)
  arguments[count + 1], arguments[count + 2] = checked, loop.limits(checked)
  return put(provider, name, unpack(arguments, 1, count + 2))
end

--- The provider's sandboxes: { id, name, provider, state, created_at, metadata, … } each.
---@param opts? table provider, timeout, cancel, and what the provider takes
---@return table[]? list, string? message, string? code, table? detail
function M.list(opts)
  local list, provider, code, detail = ask("moonsand.list", opts, "list")
  if not list then
    return nil, provider, code, detail
  end
  for _, row in ipairs(list) do
    row.provider = provider.name
  end
  return list
end

--- Ends a sandbox without a handle: also one that this process made and has not let go of. Already
--- gone is true.
---@param id string
---@param opts? table provider, timeout, cancel
---@return true|nil ok, string? message, string? code, table? detail
function M.destroy(id, opts)
  check_id("moonsand.destroy", "the id", id)
  local provider, checked, code, detail = prepare("moonsand.destroy", opts, 2)
  if not provider then
    return nil, checked, code, detail
  end
  local limits = loop.limits(checked)
  local held, message = 0, nil
  if provider.embedded then
    held, message, code, detail = sandboxes.destroy_held(provider, id, limits)
  end
  if not held then
    return nil, message, code, detail
  elseif held > 0 and not provider.destroy then
    return true
  end
  return errors.outcome(put(provider, "destroy", id, checked, limits))
end

--- What `box:snapshot` made: { id, name, created_at, … } each.
---@param opts? table provider, timeout, cancel
---@return table[]? list, string? message, string? code, table? detail
function M.snapshots(opts)
  return errors.outcome(ask("moonsand.snapshots", opts, "snapshots"))
end

---@param name string
---@param opts? table provider, timeout, cancel
---@return true|nil ok, string? message, string? code, table? detail
function M.delete_snapshot(name, opts)
  check_id("moonsand.delete_snapshot", "the name", name)
  return errors.outcome(ask("moonsand.delete_snapshot", opts, "delete_snapshot", name))
end

--- Waits until the sandboxes that were closed are gone: those of services end in their own time.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function M.flush(opts)
  opts = options.check("moonsand.flush", opts, { timeout = "number", cancel = "table" })
  return errors.outcome(providers.flush(loop.limits(opts)))
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
  return sandboxes.with(box, fn, ...)
end

--- Sandboxes that are there before they are needed: see pool.lua.
---@param opts? moonsand.PoolOptions
---@return moonsand.Pool? pool, string? message, string? code, table? detail
function M.pool(opts)
  local pools = require "moonsand.pool"
  opts = options.check("moonsand.pool", opts, pools.options)
  local provider, message, code, detail =
    prepare("moonsand.pool: create", opts.create, 2, HANDLE, CREATE)
  if not provider then
    return nil, message, code, detail
  end
  return errors.outcome(pools.new(opts, M.create))
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
