--- Sandboxes that outlive who made them: how one is let go of, and found again.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local registry = require "moonsand.providers.local.registry"

local M = {}

--- How long a detached sandbox waits for somebody, when nothing is said.
local IDLE = 3600

--- How long agent and zygote may take to agree. Nobody else can detach meanwhile.
local AGREED = 10

local SET_LIFETIME, SET_IDLE = 1, 2 -- flags of MS_CALL_LIFE

--- Seconds that come to an end: nil for `math.huge`, as for false.
---@return number?
function M.finite(seconds)
  return seconds and seconds < math.huge and seconds or nil
end

--- As the agent takes them; 0: for ever.
local function milliseconds(seconds)
  return M.finite(seconds) and math.min(math.ceil(seconds * 1000), 2 ^ 52) or 0
end

--- Checks what `create`, `detach` or `set_lifetime` is told of how long it is to live.
---@return true|nil ok, string? message, string? code, table? detail
function M.check(opts)
  for _, name in ipairs { "lifetime", "idle_timeout" } do
    local value = opts[name]
    if value and not (value > 0 and (value <= 2 ^ 53 or value == math.huge)) then
      return errors.fail("invalid", ("%s: %s is not a positive number of seconds"):format(name,
        tostring(value)))
    end
  end
  return true
end

--- The moment at which so many seconds are over; nil: that never comes.
local function expiry(lifetime)
  return M.finite(lifetime) and os.time() + lifetime or nil
end

--- A call of the agent's that answers nothing.
local function ask(box, op, args, limits, what)
  args.path = "/"
  local errno, body, code, detail = box:call(core.file_calls[op], args, limits)
  if errno == 0 then
    return true
  elseif errno then
    return errors.errno(errno, what)
  end
  return errors.fail(code, ("%s: %s"):format(what, body), detail)
end

--- Tells the agent how long to live from now on. nil leaves one of them as it is.
local function set_times(box, lifetime, idle, limits, what)
  local flags = (lifetime and SET_LIFETIME or 0) + (idle and SET_IDLE or 0)
  local ok, message, code, detail = ask(box, "life",
    { flags = flags, a = milliseconds(lifetime), b = milliseconds(idle) }, limits, what)
  if not ok then
    return nil, message, code, detail
  end
  if lifetime then
    box.expires_at = expiry(lifetime)
  end
  box.idle_timeout = idle or box.idle_timeout
  if not box.detached then
    return true
  end
  return registry.update(box.id, limits, function(about)
    about.expires_at, about.idle_timeout = box.expires_at, M.finite(box.idle_timeout)
  end)
end

--- It ends so many seconds from now; `math.huge`: not by that.
---@return true|nil ok, string? message, string? code, table? detail
function M.set_lifetime(box, seconds, limits)
  local ok, message, code, detail = M.check { lifetime = seconds }
  if not ok then
    return nil, message, code, detail
  end
  return set_times(box, seconds, nil, limits, "set_lifetime")
end

-- ---------------------------------------------------------------- letting go

--- The zygote is not to take it along.
local function release(box, limits)
  local zygote, pid = box.zygote, box.raw:child()
  zygote:release(pid)
  while not zygote:released(pid) do
    local message, code, detail = loop.wait(limits, zygote)
    if message then
      return errors.fail(code, "detach: " .. message, detail)
    end
  end
  return true
end

--- Agent and zygote let go of us. One of which it is not certain that it will live is ended.
local function let_go(box, socket, opts, limits)
  local soon = loop.now() + AGREED
  limits = { deadline = math.min(limits.deadline or soon, soon), token = limits.token, shield = true }
  local ok, message, code, detail = ask(box, "detach", {
    a = milliseconds(opts.lifetime), b = milliseconds(opts.idle_timeout), file = socket,
  }, limits, "detach")
  if ok then
    ok, message, code, detail = release(box, limits)
  end
  if not ok then
    box.raw:kill()
    return nil, message, code, detail
  end
  box.raw:share()
  return true
end

--- What others need to know of it.
local function about(box, fields, opts)
  return {
    id = fields.id,
    name = fields.name,
    metadata = fields.metadata,
    created_at = fields.created_at,
    pid = box.raw:pid(),
    isolation = box.isolation,
    expires_at = opts.lifetime and expiry(opts.lifetime) or box.expires_at,
    idle_timeout = M.finite(opts.idle_timeout),
    limits = box.limits,
    held = box.held,
    mounts = box.mounts,
    base = box.base,
    unsaved = box.unsaved,
    network = box.network,
    rules = box.rules,
  }
end

--- Lets it live without us. The handle is of no use afterwards.
---@param box moonsand.local.Sandbox
---@param opts { lifetime?: number, idle_timeout?: number|false }
---@param fields { id: string, name: string, metadata: table?, created_at: number }
---@return true|nil ok, string? message, string? code, table? detail
function M.detach(box, opts, fields, limits)
  local ok, message, code, detail = M.check(opts)
  if not ok then
    return nil, message, code, detail
  elseif type(box.rules) == "table" and box.rules.resolve then
    return errors.fail("unsupported",
      "detach: network.resolve is a function of this process; nobody else could look names up")
  end
  local idle = opts.idle_timeout
  if idle == nil then
    idle = box.idle_timeout or not opts.lifetime and not box.expires_at and IDLE
  end
  if box.detached and (opts.lifetime or opts.idle_timeout) or opts.lifetime == math.huge then
    ok, message, code, detail = set_times(box, opts.lifetime, opts.idle_timeout, limits, "detach")
  end
  if ok and not box.detached then
    local times = { lifetime = opts.lifetime, idle_timeout = idle }
    ok, message, code, detail = registry.publish(about(box, fields, times), limits, function(socket)
      return let_go(box, socket, times, limits)
    end)
  end
  if not ok then
    return nil, message, code, detail
  end
  box:close()
  return true
end

-- ---------------------------------------------------------------- finding

--- Those that live: the rows of `moonsand.list`.
---@return table[]? rows, string? message, string? code, table? detail
function M.list()
  local list, message, code, detail = registry.list()
  if not list then
    return nil, message, code, detail
  end
  local rows = {}
  for i, each in ipairs(list) do
    rows[i] = {
      id = each.id,
      name = each.name,
      state = "running",
      pid = each.pid,
      created_at = each.created_at,
      expires_at = each.expires_at,
      idle_timeout = each.idle_timeout,
      metadata = each.metadata,
    }
  end
  return rows
end

--- Connects: the core's handle, and what is known of it.
---@return userdata? raw, table|string about_or_message, string? code, table? detail
function M.join(id, limits)
  local raw, known, code, detail = registry.join(id, true, limits)
  if not raw then
    return nil, known, code, detail
  end
  while raw:state() == "starting" do
    local message
    message, code, detail = loop.wait(limits, raw)
    if message then
      raw:close()
      return errors.fail(code, ("cannot connect to %s: %s"):format(options.quote(id), message), detail)
    end
  end
  if raw:state() ~= "ready" then
    return errors.fail("connection", ("cannot connect to %s: it has let nobody in"):format(
      options.quote(id)), { cause = "it is ending, or has as many connections as it takes" })
  end
  return raw, known
end

--- Ends one without a handle. Already gone is true.
---@return true|nil ok, string? message, string? code, table? detail
function M.destroy(id, limits)
  local raw, known, code, detail = registry.join(id, false, limits)
  if not raw then
    if code == "not_found" then
      return true
    end
    return nil, known, code, detail
  end
  raw:kill()
  while not raw:dead() do
    local message
    message, code, detail = loop.wait(limits, raw)
    if message then
      return errors.fail(code, message, detail)
    end
  end
  registry.forget(known.id)
  return true
end

M.forget = registry.forget
M.read = registry.read

return M
