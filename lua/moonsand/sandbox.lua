--- A sandbox, and views of it: the same sandbox with defaults of their own. What they share is the
--- *core*: the provider's sandbox, and whether it was closed.

local environment = require "moonsand.environment"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local processes = require "moonsand.process"
local programs = require "moonsand.program"
local providers = require "moonsand.providers"

local unpack = table.unpack or unpack

local M = {}

---@class moonsand.Sandbox
---@field id string
---@field name string
---@field provider string
---@field owned boolean made by us: it ends with this handle
---@field files moonsand.Files
---@field private core table shared by all views
---@field private defaults table of programs: cwd, env, clear_env, shell, user, timeout, max_output, umask, check
local Sandbox = {}
Sandbox.__name = "moonsand.Sandbox"

--- Parts that are loaded when they are used first: field -> module.
local parts = { files = "moonsand.files" }

--- Methods that live in files of their own: method -> module that exports it.
local elsewhere = {
  run = "moonsand.code",
  run_code = "moonsand.code",
  languages = "moonsand.code",
  ps = "moonsand.system",
  kill = "moonsand.system",
  killall = "moonsand.system",
  monitor = "moonsand.system",
  metrics = "moonsand.system",
  watch_metrics = "moonsand.system",
  session = "moonsand.session",
  terminal = "moonsand.terminal",
  interpreter = "moonsand.interpreter",
  dial = "moonsand.network",
  wait_port = "moonsand.network",
  forward = "moonsand.network",
  network_log = "moonsand.network",
}

--- Sugar like `box:python(code)` comes from the languages table.
local function language_helper(name)
  return require("moonsand.code").helpers[name]
end

Sandbox.__index = function(self, key)
  local method = Sandbox[key]
  if method ~= nil then
    return method
  elseif parts[key] then
    local part = require(parts[key]).new(self)
    rawset(self, key, part)
    return part
  elseif elsewhere[key] then
    method = require(elsewhere[key])[key]
  else
    method = type(key) == "string" and language_helper(key) or nil
  end
  if method then
    Sandbox[key] = method
  end
  return method
end

Sandbox.__tostring = function(self)
  return ("moonsand.Sandbox (%s, %s, %s)"):format(self.id, self.provider,
    self.core.closed and "closed" or self.core.driver:state())
end

local function check_open(self, call)
  if self.core.closed then
    errors.raise(3, "%s: the sandbox was closed", call)
  end
end

--- Raises at the caller's line when the sandbox was closed. For the parts of a sandbox.
---@param call string
---@param level integer
function Sandbox:check_open(call, level)
  if self.core.closed then
    errors.raise(level + 1, "%s: the sandbox was closed", call)
  end
end

--- A failure of a call that needs no provider to fail.
local function fail(self, message, code, detail)
  detail.provider = self.provider
  return nil, message, code, detail
end

local WAIT = { timeout = "number", cancel = "table" }
local DETACH = {
  lifetime = "number", idle_timeout = "number|boolean", timeout = "number", cancel = "table",
}
local VIEW = {
  cwd = "string",
  env = "table",
  clear_env = "boolean",
  shell = "string|table",
  user = "string|number",
  timeout = "number",
  max_output = "number|string",
  umask = "string",
  check = "boolean",
}
M.view_options = VIEW

local function handle(core, fields, defaults)
  return setmetatable({
    core = core,
    id = fields.id,
    name = fields.name,
    provider = fields.provider,
    owned = fields.owned,
    defaults = defaults,
  }, Sandbox)
end

-- ---------------------------------------------------------------- programs

--- Runs a command to its end.
---@param command string|string[] a string goes to the shell, a list never meets one
---@param opts? table|number
---@return moonsand.Result? result, string? message, string? code, table? detail
function Sandbox:exec(command, opts)
  opts = options.check("box:exec", opts, programs.exec_options)
  check_open(self, "box:exec")
  -- No tail call: it would take the frame that levels of errors count.
  return errors.outcome(processes.exec(self, "box:exec", command, opts, 2))
end

--- Starts a command.
---@param command string|string[]
---@param opts? table|number
---@return moonsand.Process? process, string? message, string? code, table? detail
function Sandbox:start(command, opts)
  opts = options.check("box:start", opts, programs.start_options)
  check_open(self, "box:start")
  return errors.outcome(processes.start(self, "box:start", command, opts, 2))
end

-- ---------------------------------------------------------------- views and defaults

local function copy(from)
  local to = {}
  for key, value in pairs(from) do
    to[key] = value
  end
  return to
end

--- The same sandbox with its own defaults. What is not given stays as it is here.
---@param opts table cwd, env, clear_env, shell, user, timeout, max_output, umask, check
---@return moonsand.Sandbox? view, string? message, string? code, table? detail
function Sandbox:view(opts)
  opts = options.check("box:view", opts, VIEW)
  check_open(self, "box:view")
  local ok, message, code, detail = environment.check("box:view: env", opts.env, 2)
  if not ok then
    return fail(self, message, code, detail)
  end
  local defaults = copy(self.defaults)
  for name, value in pairs(opts) do
    defaults[name] = value
  end
  defaults.env = copy(not opts.clear_env and self.defaults.env or {})
  defaults.env_list = nil -- as a provider wants it; made by program.lua, once
  for name, value in pairs(opts.env or {}) do
    defaults.env[name] = value
  end
  if opts.cwd then
    defaults.cwd, message, code, detail = paths.resolve(self, opts.cwd)
    if not defaults.cwd then
      return fail(self, message, code, detail)
    end
  end
  return handle(self.core, self, defaults)
end

--- As a shell's `cd` reads a path: `..` takes back the name before it.
local function without_dots(path)
  local names = {}
  for name in path:gmatch "[^/]+" do
    if name == ".." then
      names[#names] = nil
    elseif name ~= "." then
      names[#names + 1] = name
    end
  end
  return "/" .. table.concat(names, "/")
end

--- Changes the working directory of this handle.
---@param path string
---@param opts? table|number
---@return true|nil ok, string? message, string? code, table? detail
function Sandbox:cd(path, opts)
  opts = options.check("box:cd", opts, WAIT)
  check_open(self, "box:cd")
  if type(path) ~= "string" then
    errors.raise(2, "box:cd: a path is a string, got %s", type(path))
  end
  local target, message, code, detail = paths.resolve(self, path)
  if not target then
    return fail(self, message, code, detail)
  end
  target = without_dots(target)
  local entry
  entry, message, code, detail = self.files:stat(target, opts)
  if not entry then
    return fail(self, message, code, detail)
  elseif entry.type ~= "directory" then
    return errors.fail("not_a_directory", ("%s is no directory"):format(options.quote(target)),
      { path = target, provider = self.provider })
  end
  self.defaults.cwd = target
  return true
end

--- The working directory of programs that this handle starts.
---@return string
function Sandbox:cwd()
  return self.defaults.cwd
end

--- Sets a variable for the programs that this handle starts; nil or false takes it out.
---@param name string
---@param value string|number|false|nil
---@return true|nil ok, string? message, string? code, table? detail
function Sandbox:setenv(name, value)
  check_open(self, "box:setenv")
  if type(name) ~= "string" then
    errors.raise(2, "box:setenv: names of variables are strings, got %s", type(name))
  end
  if value == nil then
    value = false
  end
  local ok, message, code, detail = environment.check("box:setenv", { [name] = value }, 2)
  if not ok then
    return fail(self, message, code, detail)
  end
  self.defaults.env[name] = value
  self.defaults.env_list = nil
  return true
end

--- What programs find that are told nothing. A sandbox that has an environment of its own is asked,
--- once.
local function base_environment(self)
  local core = self.core
  if not core.environment then
    local message, code, detail
    core.environment, message, code, detail =
      require("moonsand.portable").environment(core.driver, loop.limits())
    if not core.environment then
      return nil, message, code, detail
    end
  end
  return core.environment
end

--- One variable of the next program, or all of them.
---@param name? string
---@return string|table<string, string>|nil value, string? message, string? code, table? detail
function Sandbox:getenv(name)
  check_open(self, "box:getenv")
  if name ~= nil and type(name) ~= "string" then
    errors.raise(2, "box:getenv: names of variables are strings, got %s", type(name))
  end
  local base, message, code, detail = base_environment(self)
  if not base then
    return fail(self, message, code, detail)
  end
  local variables = programs.environment("box:getenv", base, self.defaults, {}, 2)
  if name == nil then
    return variables
  end
  return variables[name]
end

-- ---------------------------------------------------------------- about it

--- The calls that stand for a capability: those a driver has are native, portable.lua has others.
local CALLS = {
  ps = "ps", kill = "kill", metrics = "metrics", monitor = "sample", session = "session",
  pause = "pause", snapshot = "snapshot", lifetime = "set_lifetime",
  interpreter = "interpreter", attach = "attach",
}
local PORTABLE = {
  files = true, atomic_write = true, watch = true, grep = true, ps = true, kill = true, metrics = true,
  monitor = true, session = true,
}

--- Whether something can be done: "native", by the provider; "portable", with plain commands inside
--- the sandbox; or false.
---@param capability string
---@return "native"|"portable"|false
function Sandbox:can(capability)
  local known = {}
  for _, list in ipairs { providers.capabilities, self.core.provider.capabilities } do
    for _, name in ipairs(list) do
      known[name] = true
    end
  end
  if not known[capability] then
    local near = type(capability) == "string" and options.nearest(capability, known)
    errors.raise(2, "box:can: there is no capability %s%s", options.quote(capability),
      near and (" (did you mean '" .. near .. "'?)") or "")
  end
  local driver = self.core.driver
  if driver.lacks and driver.lacks[capability] then
    return false
  end
  return CALLS[capability] and driver[CALLS[capability]] and "native"
    or driver:can(capability) or PORTABLE[capability] and "portable" or false
end

--- What is known of it: id, name, provider, state, created_at, metadata, limits and how each is held.
---@return table
function Sandbox:info()
  check_open(self, "box:info")
  local driver = self.core.driver
  local info = driver.info and driver:info() or {}
  info.id, info.name, info.provider = self.id, self.name, self.provider
  info.state = driver:state()
  info.created_at = info.created_at or self.core.created_at
  info.metadata = info.metadata or self.core.metadata
  for _, limit in pairs(info.limits or {}) do -- with whatever numbers the provider reckons
    limit.value = options.integer(limit.value) or limit.value
  end
  return info
end

-- ---------------------------------------------------------------- what not every provider can

--- One of a driver's optional calls.
local function ask(self, call, name, opts, ...)
  opts = options.check(call, opts, WAIT, 3)
  self:check_open(call, 3)
  local driver = self.core.driver
  if not driver[name] then
    return fail(self, select(2, errors.fail("unsupported",
      ("%s is not supported by the provider '%s'"):format(call, self.provider))))
  end
  local arguments, count = { ... }, select("#", ...)
  arguments[count + 1] = loop.limits(opts)
  local value, message, code, detail = driver[name](driver, unpack(arguments, 1, count + 1))
  if value == nil then
    return fail(self, message, code, detail)
  end
  return value
end

--- Stops everything inside until `resume`, where the provider can.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Sandbox:pause(opts)
  return errors.outcome(ask(self, "box:pause", "pause", opts))
end

---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Sandbox:resume(opts)
  return errors.outcome(ask(self, "box:resume", "resume", opts))
end

--- Keeps the files, not the programs, under a name to create others from, where the provider can.
---@param name? string
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return table|nil snapshot { id, name, … }
---@return string? message, string? code, table? detail
function Sandbox:snapshot(name, opts)
  if name ~= nil and type(name) ~= "string" then
    errors.raise(2, "box:snapshot: the name is a string, got %s", type(name))
  end
  return errors.outcome(ask(self, "box:snapshot", "snapshot", opts, name))
end

--- It ends so many seconds from now, where the provider can.
---@param seconds number
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Sandbox:set_lifetime(seconds, opts)
  if type(seconds) ~= "number" or not (seconds > 0) then
    errors.raise(2, "box:set_lifetime: seconds are a positive number, got %s", tostring(seconds))
  end
  return errors.outcome(ask(self, "box:set_lifetime", "set_lifetime", opts, seconds))
end

--- Where a port inside can be reached from outside, where the provider can.
---@param port integer
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return string? url, string? message, string? code, table? detail
function Sandbox:url(port, opts)
  if type(port) ~= "number" or port % 1 ~= 0 or port < 1 or port > 65535 then
    errors.raise(2, "box:url: a port is a number from 1 to 65535, got %s", tostring(port))
  end
  return errors.outcome(ask(self, "box:url", "url", opts, port))
end

--- What was started here, running and the last that ended, where the provider keeps that.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return table[]? rows { id, pid, command, running, exit_code, started_at }
---@return string? message, string? code, table? detail
function Sandbox:processes(opts)
  return errors.outcome(ask(self, "box:processes", "processes", opts))
end

--- A Process again, by its id: from the start of its output, or `since = p:offsets()`.
---@param id string
---@param opts? table since, pty, takeover, max_output, check, on_stdout, …, timeout, cancel
---@return moonsand.Process? process, string? message, string? code, table? detail
function Sandbox:attach(id, opts)
  opts = options.check("box:attach", opts, processes.attach_options)
  check_open(self, "box:attach")
  if type(id) ~= "string" then
    errors.raise(2, "box:attach: an id is a string, got %s", type(id))
  elseif not self.core.driver.attach then
    return errors.fail("unsupported",
      ("box:attach is not supported by the provider '%s'"):format(self.provider),
      { provider = self.provider })
  end
  return errors.outcome(processes.attach(self, id, opts, 2))
end

-- ---------------------------------------------------------------- the end

--- From now on it is closed: who runs code in an interpreter of it gets `closed`, and a pool that
--- it came from hears of it.
local function mark_closed(core)
  for interpreter in pairs(core.interpreters) do
    interpreter:close()
  end
  core.closed = true
  core.closing:wake()
  if core.lease then
    core.lease:end_now()
  end
end

--- Ends a sandbox that we created: at once, without waiting. Idempotent.
function Sandbox:close()
  local core = self.core
  if not core.closed then
    mark_closed(core)
    core.driver:close()
  end
end

Sandbox.__close = Sandbox.close

--- Lets it live without this process: others of the same user find it, with `moonsand.list` and
--- `moonsand.connect`. Ends what does not run in the background; this handle is closed.
---@param opts? { lifetime?: number, idle_timeout?: number|false, timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Sandbox:detach(opts)
  opts = options.check("box:detach", opts, DETACH)
  check_open(self, "box:detach")
  local core = self.core
  if not core.driver.detach then
    return fail(self, select(2, errors.fail("unsupported",
      ("box:detach is not supported by the provider '%s'"):format(self.provider))))
  end
  local ok, message, code, detail = core.driver:detach(
    { lifetime = opts.lifetime, idle_timeout = opts.idle_timeout },
    { id = self.id, name = self.name, metadata = core.metadata, created_at = core.created_at },
    loop.limits(opts))
  if not ok then
    return fail(self, message, code, detail)
  end
  mark_closed(core)
  return true
end

--- Ends it and waits for the proof that nothing of it runs. Already gone is true.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Sandbox:destroy(opts)
  opts = options.check("box:destroy", opts, WAIT)
  mark_closed(self.core)
  local ok, message, code, detail = self.core.driver:destroy(loop.limits(opts))
  if not ok then
    return fail(self, message, code, detail)
  end
  return true
end

-- ---------------------------------------------------------------- creating

--- Those that this process made: their cores -> what they are called.
local made = setmetatable({}, { __mode = "k" })

--- Ends those that this process made and still holds, by their id or name: how many that were.
---@param provider table
---@param id string
---@param limits moonsand.Limits
---@return integer? count, string? message, string? code, table? detail
function M.destroy_held(provider, id, limits)
  local found = {}
  for core, called in pairs(made) do
    if core.provider == provider and not core.closed and (called.id == id or called.name == id) then
      found[#found + 1] = core
    end
  end
  for _, core in ipairs(found) do
    mark_closed(core)
    local ok, message, code, detail = core.driver:destroy(limits)
    if not ok then
      detail.provider = provider.name
      return nil, message, code, detail
    end
  end
  return #found
end

local function close_and_pass(box, guard, ok, ...)
  loop.unguard(guard)
  box:close()
  if not ok then
    error((...), 0)
  end
  return ...
end

--- `fn(box, …)`, after which the sandbox is closed in every case, also when nobody resumes it.
---@param box moonsand.Sandbox
---@param fn fun(box: moonsand.Sandbox, ...): any
function M.with(box, fn, ...)
  return close_and_pass(box, loop.guard(box.close, box), pcall(fn, box, ...))
end

--- The handle of a provider's sandbox.
---@param provider table
---@param driver table the provider's sandbox
---@param fields { id: string, name: string, owned: boolean, metadata: table? }
---@param defaults table
---@return moonsand.Sandbox
function M.new(provider, driver, fields, defaults)
  local core = {
    provider = provider,
    driver = providers.complete(driver),
    environment = driver.environment,
    closed = false,
    closing = loop.signal(),
    started = 0, -- programs, ever
    interpreters = setmetatable({}, { __mode = "k" }), -- that are open
    created_at = os.time(),
    metadata = fields.metadata,
    lease = nil, -- of a pool, see pool.lua
  }
  made[core] = fields.owned and { id = fields.id, name = fields.name } or nil
  local home = driver.cwd or "/"
  defaults.cwd = paths.join(home, defaults.cwd or home)
  defaults.env = copy(defaults.env or {})
  return handle(core, {
    id = fields.id,
    name = fields.name,
    provider = provider.name,
    owned = fields.owned,
  }, defaults)
end

return M
