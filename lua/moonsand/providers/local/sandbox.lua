--- The driver of a local sandbox: what a provider's sandbox has to answer, over the core's handle.

local background = require "moonsand.providers.local.background"
local core = require "moonsand.core"
local detached = require "moonsand.providers.local.detached"
local environment = require "moonsand.environment"
local errors = require "moonsand.errors"
local forwards = require "moonsand.network.forward"
local inside = require "moonsand.network.inside"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local processes = require "moonsand.providers.local.processes"
local programs = require "moonsand.providers.local.program"
local snapshots = require "moonsand.providers.local.snapshots"
local way_out = require "moonsand.providers.local.way_out"

local M = {}

--- Names take room in a snapshot that files do not; a tree that grows as it is read comes to an end.
local NAMES = 1024 ^ 3

local native = {
  argv = true, stdin = true, signals = true, kill_tree = true, pty = true, resize = true,
  atomic_write = true, files = true, mounts = true, root = true, workspace = true,
  ports = true, network_allow = true, watch = true, grep = true, background = true, attach = true,
  ["limits.disk"] = true, ["limits.inodes"] = true, ["limits.processes"] = true,
  ["limits.open_files"] = true, ["limits.file_size"] = true, ["limits.cpu_time"] = true,
}

--- What of that bwrap does not offer.
local BEYOND_BWRAP = { root = true, ["limits.inodes"] = true }

---@class moonsand.local.Sandbox
---@field raw userdata
local Sandbox = {}
Sandbox.__index = Sandbox

--- What programs find, the directory they start in, and the one user that there is.
Sandbox.environment = environment.base
Sandbox.cwd = environment.base.HOME
Sandbox.users = { [environment.base.USER] = true, ["1000"] = true }

--- Files go to the agent as well as from it.
Sandbox.returns_files = true

--- A file to read, without a round trip to the agent; nil when it has to be asked.
function Sandbox:open(path)
  return self.raw:open(path)
end

function Sandbox:can(name)
  if self.isolation == "bwrap" and BEYOND_BWRAP[name] then
    return false
  end
  local limit = name:match "^limits%.(.*)"
  local held = self.held[limit]
  return (native[name] or held and held.by ~= "none") and "native" or false
end

--- The file calls stand on the agent.
Sandbox.files = require "moonsand.files.native"

--- So do those about processes.
Sandbox.ps = processes.ps
Sandbox.kill = processes.kill
Sandbox.sample = processes.sample
Sandbox.metrics = processes.metrics

--- Starts one, and keeps it until its end is known.
local function spawn(self, argv, spec)
  local program, message, code, detail = programs.spawn(self, argv, spec)
  if program and not spec.background then
    self.running[program] = true
  end
  return program, message, code, detail
end

--- Programs whose end nobody waited for are let go of when they are over.
local function sweep(self)
  self.starts = self.starts + 1
  if self.starts % 64 ~= 0 then
    return
  end
  for program in pairs(self.running) do
    local state = program.handle:state()
    if state ~= "starting" and state ~= "running" then
      self.running[program] = nil
    end
  end
end

function Sandbox:forget(program)
  self.running[program] = nil
end

--- How long that may hold up the start of a program.
local TAKEN_OVER = 5

--- Asks for a program to be started; answers at once.
---@param spec table argv, env (list), cwd, umask, timeout, grace, max_output, limits, leave, merge,
---  quiet; stdin, stdout, stderr: true for a pipe
---@return moonsand.local.Program? program, string? message, string? code, table? detail
function Sandbox:start(spec)
  sweep(self)
  for name, value in pairs(self.limits) do
    if spec[name] == nil then
      spec[name] = value
    end
  end
  if spec.background then
    local ok, message, code, detail = background.plan(spec)
    if not ok then
      return nil, message, code, detail
    end
  end
  local ok, message, code, detail =
    way_out.take_over(self, { deadline = loop.now() + TAKEN_OVER })
  if not ok then
    return nil, message, code, detail
  end
  return spawn(self, spec.argv, spec)
end

--- One that runs in the background, by its number there; answers at once.
Sandbox.look = programs.look

---@param id string
---@return moonsand.local.Program? program, string? message, string? code, table? detail
function Sandbox:attach(id, opts, limits)
  local number = background.number(id)
  if not number then
    return errors.fail("not_found", ("there is no program %s in the background"):format(
      options.quote(id)), { id = id })
  elseif opts.pty or opts.takeover then
    return errors.fail("unsupported", "box:attach: no terminal can be attached to here", { id = id })
  end
  return background.attach(self, number, opts, limits)
end

Sandbox.processes = background.list

--- One of the agent's own programs, which walk trees: see src/agent/worker.c.
---@param argv string[]
---@param opts? { stdin?: boolean, timeout?: number }
function Sandbox:work(argv, opts)
  opts = opts or {}
  sweep(self)
  local program, message, code, detail = spawn(self, argv, {
    worker = true,
    stdin = opts.stdin,
    stdout = true,
    stderr = false,
    timeout = opts.timeout,
    max_output = 0,
  })
  if program then
    self:forget(program) -- who asks for it keeps it: without its reader it ends
  end
  return program, message, code, detail
end

--- One call that the agent answers at once. The number of the error, 0 for none; the body; a file.
---@param op integer
---@param args { flags?: integer, mode?: integer, a?: number, b?: number, path?: string, path2?: string }
---@return integer? errno, string body_or_message, any file_or_code, table? detail
function Sandbox:call(op, args, limits)
  local raw = self.raw
  local id, errno, state =
    raw:call(op, args.flags or 0, args.mode or 0, args.a or 0, args.b or 0, args.path, args.path2,
      args.file)
  if not id then
    if state then
      return programs.unusable(self, state)
    end
    return errors.errno(errno, "cannot ask the sandbox")
  end
  while true do
    local number, body, file = raw:take(id, args.socket)
    if number then
      if number == core.errno.ECONNRESET then
        local now = raw:state()
        if now ~= "ready" then
          return programs.unusable(self, now)
        end
      end
      return number, body, file
    end
    local message, code, detail = loop.wait(limits, raw)
    if message then
      raw:abandon(id)
      return errors.fail(code, message, detail)
    end
  end
end

--- A connection to a port inside.
---@return userdata? raw, string? message, string? code, table? detail
function Sandbox:dial(port, limits)
  return inside.dial(self, port, limits)
end

--- A port of the host that leads to one inside. `box` lives as long as it.
---@return moonsand.Forward? forward, string? message, string? code, table? detail
function Sandbox:forward(port, listen, box)
  if self.raw:state() ~= "ready" then
    return programs.unusable(self, self.raw:state())
  end
  local made, message, code, detail = forwards.new(port, listen, function(limits)
    return self:dial(port, limits)
  end, box)
  if not made then
    return nil, message, code, detail
  end
  self.forwards[#self.forwards + 1] = made
  return made
end

--- Where a port inside can be reached on this machine: through a forward, made when it is first
--- asked for.
---@return string? url, string? message, string? code, table? detail
function Sandbox:url(port)
  if not self.urls[port] then
    local made, message, code, detail = self:forward(port)
    if not made then
      return nil, message, code, detail
    end
    self.urls[port] = made
  end
  local made = self.urls[port]
  return ("http://%s:%d"):format(made.host, made.port)
end

--- What its programs asked the proxy for.
function Sandbox:network_log()
  return self.proxy and self.proxy:read_log() or { dropped = 0 }
end

--- Keeps its own files.
---@return table? snapshot, string? message, string? code, table? detail
function Sandbox:snapshot(name, limits)
  if self.unsaved then
    return errors.fail("unsupported", ("%s is a copy, and what was changed in it cannot be kept")
      :format(self.unsaved), { fix = "upload it instead, or mount it 'ro'" })
  end
  return snapshots.take(self, name, self.base, 2 * self.held.disk.value + NAMES, limits)
end

--- "ready", "gone", "broken" or "closed".
function Sandbox:state()
  return (self.raw:state())
end

function Sandbox:pid()
  return self.raw:pid()
end

function Sandbox:info()
  local now = self.detached and detached.read(self.id) or self
  return {
    pid = self.raw:pid(),
    isolation = self.isolation,
    network = self.network,
    limits = self.held,
    mounts = self.mounts,
    created_at = self.created_at,
    detached = self.detached,
    expires_at = now.expires_at,
    idle_timeout = detached.finite(now.idle_timeout),
  }
end

Sandbox.set_lifetime = detached.set_lifetime
Sandbox.detach = detached.detach

--- Ends it, unless it lives without us; at once, without waiting. Idempotent.
function Sandbox:close()
  self.raw:close()
  self.running = {}
  if self.proxy then
    self.proxy:close()
  end
  for _, each in pairs(self.forwards) do
    each:close()
  end
end

--- Ends it and waits for the proof.
function Sandbox:destroy(limits)
  self.raw:kill()
  self:close()
  while not self.raw:dead() do
    local message, code, detail = loop.wait(limits, self.raw)
    if message then
      return errors.fail(code, message, detail)
    end
  end
  if self.detached then
    detached.forget(self.id)
  end
  return true
end

--- The driver of a sandbox that is ready.
---@param about { limits: table, held: table, mounts: table, network: string, rules: any }
function M.new(raw, about)
  return setmetatable({
    raw = raw,
    isolation = about.isolation,
    limits = about.limits, -- of each program, unless it says otherwise
    held = about.held,
    groups = about.groups, -- its control groups, if it has some
    mounts = about.mounts,
    base = about.base,
    unsaved = about.unsaved, -- what no snapshot could hold; nil: nothing
    lacks = about.unsaved and { snapshot = true } or {},
    network = about.network,
    rules = about.rules, -- as `create` was given them
    expires_at = about.expires_at,
    idle_timeout = about.idle_timeout,
    detached = false, -- it lives without us
    zygote = nil, -- whose child it is, if it is of this process
    running = {}, -- keeps them alive: a dropped handle does nothing to its program
    starts = 0,
    forwards = setmetatable({}, { __mode = "v" }),
    urls = {}, -- the forwards behind `url`, by port
  }, Sandbox)
end

return M
