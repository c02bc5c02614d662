--- Sandboxes on this machine, without a service, a daemon or root: a thin layer over the C core,
--- which starts them through the zygote and speaks with their agents.

local background = require "moonsand.providers.local.background"
local core = require "moonsand.core"
local detached = require "moonsand.providers.local.detached"
local doctor = require "moonsand.doctor"
local environment = require "moonsand.environment"
local errors = require "moonsand.errors"
local forwards = require "moonsand.network.forward"
local inside = require "moonsand.network.inside"
local limiting = require "moonsand.providers.local.limits"
local loop = require "moonsand.loop"
local mounts = require "moonsand.providers.local.mounts"
local options = require "moonsand.options"
local processes = require "moonsand.providers.local.processes"
local proxies = require "moonsand.network.proxy"
local rules = require "moonsand.network.rules"
local snapshots = require "moonsand.providers.local.snapshots"

local M = { name = "local" }

--- Where the helper program is: beside the C module.
M.agent = (core.module_path() or ""):gsub("[^/]*$", "") .. "agent"

--- Where bubblewrap is, which may make namespaces where this helper may not.
M.bwrap = "/usr/bin/bwrap"

--- Who makes the namespaces when `create` does not say: nil for the helper itself, and bwrap where only
--- that may. Set in specs.
---@type "native"|"bwrap"|nil
M.isolation = nil

--- How long the end of a program that was killed is waited for before the kill counts as unconfirmed.
local KILL_CONFIRMED = 5

M.options = {
  limits = "table",
  hostname = "string",
  seccomp = "table",
  allow_unenforced = "table",
  network = "boolean|string|table",
  isolation = "string",
  workspace = "string",
  mounts = "table",
  root = "string",
  root_mode = "string",
  image = "string",
  template = "string",
  snapshot = "string",
  lifetime = "number",
  idle_timeout = "number",
}

local UNSUPPORTED = { "image", "template" }

--- Who may make the namespaces.
local LAUNCHERS = { native = true, bwrap = true }

local SECCOMP = { allow = "table" }
local ALLOW_MAX = 16 -- as the agent takes
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

--- What `can` may be asked besides.
M.capabilities = { "mounts", "root", "workspace" }

--- A failure when nothing can be asked of a sandbox any more.
local function unusable(sandbox, state)
  if state == "closed" then
    return errors.fail("closed", "the sandbox was closed")
  elseif state == "broken" then
    return errors.fail("protocol", "the sandbox's agent broke the protocol; it was ended")
  end
  local hit = sandbox and limiting.hit(sandbox.groups, sandbox.before)
  if hit and hit.memory then -- nobody tells whom the kernel killed
    return errors.fail("gone", "the sandbox ended after it had reached limits.memory", {
      limit = "memory",
      cause = "the kernel killed in it for memory, most likely its first process",
      fix = "more limits.memory, or less limits.disk, or limits of memory for its programs",
    })
  end
  return errors.fail("gone", "the sandbox ended")
end

-- ---------------------------------------------------------------- programs

---@class moonsand.local.Program a program as a provider gives it
---@field handle userdata
---@field stdin userdata?
---@field stdout userdata?
---@field stderr userdata?
local Program = {}
Program.__index = Program

--- The same, where it runs in the background.
local Background = {}
for name, method in pairs(background.methods) do
  Background[name] = method
end
Background.__index = setmetatable(Background, Program)

--- A failure for a program whose end will never be told. Whether it had begun is known only when
--- that was told.
local function lost(self)
  local _, message, code, detail = unusable(self.sandbox, self.sandbox.raw:state())
  detail.started = self.handle:pid() > 0 or nil
  return nil, message, code, detail
end

local function refused(self, errno, what)
  local code = errors.code(errno)
  if what == "id" then
    return errors.fail("not_found", "there is no such program in the background, or not any more")
  elseif what == "since" then
    return errors.fail("invalid", "since: it has not written so much")
  end
  if what == "program" and code == "not_a_directory" then
    code = "not_found"
  end
  local which = what == "program" and self.name or what == "cwd" and self.cwd
  return errors.fail(code, ("cannot start: %s%s: %s"):format(what,
    which and " " .. options.quote(which) or "", core.strerror(errno)),
    { started = false, what = what, path = which or nil })
end

--- Waits until it runs or it is known why not.
---@return true|nil ok, string? message, string? code, table? detail
function Program:started(limits)
  local handle = self.handle
  handle:expect()
  while true do
    local state, errno, what = handle:state()
    if state == "refused" then
      self.sandbox:forget(self)
      return refused(self, errno, what)
    elseif state == "lost" and handle:pid() == 0 then
      return lost(self)
    elseif state ~= "starting" then
      return true
    end
    local message, code, detail = loop.wait(limits, handle)
    if message then
      return errors.fail(code, message, detail)
    end
  end
end

--- How it ended, nil when that is not known yet, or a failure.
---@return table|nil exit, string? message, string? code, table? detail
function Program:ended()
  local state, errno, what = self.handle:state()
  if state == "exited" then
    self.sandbox:forget(self)
    local exit = self.handle:exit()
    exit.hit = limiting.hit(self.sandbox.groups, self.before)
    return exit
  elseif state == "refused" then
    self.sandbox:forget(self)
    return refused(self, errno, what)
  elseif state == "lost" then
    self.sandbox:forget(self)
    return lost(self)
  end
end

--- The same, as soon as it is known: what it wrote may still be on its way.
Background.over = Program.ended

function Background:ended()
  local exit, message, code, detail = self:over()
  for _, name in ipairs { "stdout", "stderr" } do
    if exit and self[name] and not self[name]:ended() then
      return nil
    end
  end
  return exit, message, code, detail
end

--- Sends a signal to the first process or to all. KILL for all may carry the reason.
---@param number integer
---@param tree boolean
---@param reason? "timeout"|"cancel"|"output"|"close"
---@return boolean sent
function Program:signal(number, tree, reason)
  return self.handle:signal(number, tree, reason)
end

--- Says how large its terminal is from now on.
---@return boolean done
function Program:resize(cols, rows)
  return (self.stdout:resize(cols, rows) or self.stdin:resize(cols, rows)) == true
end

function Program:pid()
  local pid = self.handle:pid()
  return pid > 0 and pid or nil
end

--- What to wait for besides the streams.
function Program:waitable()
  return self.handle
end

-- ---------------------------------------------------------------- sandboxes

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

--- What stands in the sandbox where terminals are made may be anything by now.
local NO_TERMINAL = { [core.errno.ENODEV] = true, [core.errno.ENOENT] = true,
  [core.errno.ELOOP] = true, [core.errno.ENOTDIR] = true, [core.errno.ENXIO] = true,
  [core.errno.EISDIR] = true, [core.errno.EACCES] = true }

local function not_spawned(errno, spec)
  if spec.pty and NO_TERMINAL[errno] then
    return errors.fail("unavailable", "cannot start: no terminal can be made in this sandbox", {
      started = false,
      cause = "/dev/pts/ptmx: " .. core.strerror(errno),
      fix = "leave the sandbox's /dev as it is",
    })
  end
  return errors.errno(errno, "cannot start", { started = false })
end

local function spawn(self, argv, spec)
  local before = self.groups and self.groups:hits()
  local handle, stdin, stdout, stderr = self.raw:spawn(argv, spec)
  if not handle then
    if stdout then
      return unusable(self, stdout)
    end
    return not_spawned(stdin, spec)
  end
  local program = setmetatable({
    sandbox = self,
    handle = handle,
    stdin = stdin,
    stdout = stdout,
    stderr = stderr,
    name = argv[1],
    cwd = spec.cwd,
    before = before, -- what the limits had been hit by then
  }, spec.background and Background or Program)
  self.running[program] = not spec.background or nil
  self.before = before
  return program
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

local take_over_network

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
    take_over_network(self, { deadline = loop.now() + TAKEN_OVER })
  if not ok then
    return nil, message, code, detail
  end
  return spawn(self, spec.argv, spec)
end

--- One that runs in the background, by its number there; answers at once.
---@return moonsand.local.Program? program, string? message, string? code, table? detail
function Sandbox:look(number, opts)
  local handle, stdout, stderr = self.raw:attach(number, opts)
  if not handle then
    if stderr then
      return unusable(self, stderr)
    end
    return errors.errno(stdout, "cannot attach")
  end
  return setmetatable({ sandbox = self, handle = handle, stdout = stdout, stderr = stderr },
    Background)
end

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
      return unusable(self, state)
    end
    return errors.errno(errno, "cannot ask the sandbox")
  end
  while true do
    local number, body, file = raw:take(id, args.socket)
    if number then
      if number == core.errno.ECONNRESET then
        local now = raw:state()
        if now ~= "ready" then
          return unusable(self, now)
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
    return unusable(self, self.raw:state())
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
    idle_timeout = now.idle_timeout,
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

-- ---------------------------------------------------------------- creating

local zygotes = setmetatable({}, { __mode = "k" }) -- by reactor

--- The zygote of this process; another one when it died.
local function zygote()
  local reactor, message, code, detail = loop.reactor()
  if not reactor then
    return nil, message, code, detail
  end
  local there = zygotes[reactor]
  if there and there:alive() then
    return there
  end
  local errno
  there, errno = core.zygote(reactor, M.agent)
  if not there then
    return doctor.unavailable("helper", errno, M.agent)
  end
  zygotes[reactor] = there
  return there
end

--- Why the agent could not become a sandbox.
local function not_made(stage, errno, plan)
  local mount, message, code, detail = mounts.failure(plan, stage, errno)
  if mount then
    return errors.fail(code, message, detail)
  elseif stage == "files" then
    return errors.errno(errno, "cannot create a sandbox")
  end
  return doctor.unavailable(stage, errno, M.agent)
end

--- Waits until the new sandbox is ready.
local function await_ready(raw, plan, limits)
  while true do
    local state, errno, stage = raw:state()
    if state == "ready" then
      return true
    elseif state == "broken" then
      return unusable(nil, state)
    elseif state ~= "starting" then
      return not_made(stage, errno, plan)
    end
    local message, code, detail = loop.wait(limits, raw)
    if message then
      raw:close()
      return errors.fail(code, "the sandbox was not ready: " .. message, detail)
    end
  end
end

--- One try. A failure whose stage is "zygote" is worth another, with another zygote.
local function try(spec, plan, limits)
  local from, message, code, detail = zygote()
  if not from then
    return nil, message, code, detail
  end
  if spec.bwrap then
    spec.sight, message, code, detail = mounts.suit_bwrap(plan)
  else
    spec.sight, message, code, detail = mounts.prepare(plan, from, limits)
  end
  if spec.sight == nil then
    if detail.stage == "zygote" then
      from:close()
    end
    return nil, message, code, detail
  end
  spec.mounts = mounts.rows(plan)
  local raw, errno = from:create(spec)
  if not raw and from:alive() then
    return errors.errno(errno, "cannot create a sandbox")
  elseif not raw then
    return doctor.unavailable("zygote", errno, M.agent)
  end
  local ok
  ok, message, code, detail = await_ready(raw, plan, limits)
  if not ok then
    return nil, message, code, detail
  end
  return raw, from
end

--- Makes one, ready to use: also the zygote whose child it is. One that died is noticed at the latest
--- now, and replaced once.
local function make(spec, plan, limits)
  local raw, from, code, detail = try(spec, plan, limits)
  if not raw and detail.stage == "zygote" then
    raw, from, code, detail = try(spec, plan, limits)
  end
  return raw, from, code, detail
end

--- Makes one with its limits, and what holds them; nothing of that is left if it fails.
---@return userdata? raw, any from_or_message, string? code, table? detail, moonsand.local.Limits? planned
local function make_bounded(opts, isolation, spec, plan, limits)
  local planned, message, code, detail = limiting.plan(opts, M.agent, isolation)
  if not planned then
    return nil, message, code, detail
  end
  local raw, from
  local groups = planned.groups
  spec.bwrap = isolation == "bwrap" and M.bwrap or nil
  spec.disk, spec.inodes = planned.values.disk, planned.values.inodes
  spec.groups, spec.bounds_memory = groups and groups.handles, groups and groups.held.memory ~= nil
  raw, from, code, detail = make(spec, plan, limits)
  if not raw and groups then
    groups:remove()
  end
  return raw, from, code, detail, planned
end

--- The same by bwrap, where the helper may make no namespaces itself: `first` is that failure.
local function make_below_bwrap(first, opts, ...)
  local raw, from, code, detail, planned = make_bounded(opts, "bwrap", ...)
  if raw or code ~= "unavailable" and code ~= "unsupported" then
    return raw, from, code, detail, planned
  end
  return doctor.neither(first, from, detail)
end

local function valid_hostname(name)
  return #name <= 64 and name:find "^[%w][%w.-]*$" ~= nil
end

--- The system calls that are to be allowed again. Which may be, the agent knows.
---@return string[]? names, string? message, string? code, table? detail
local function read_allow(seccomp)
  local allow = options.check("moonsand.create: seccomp", seccomp, SECCOMP, 6).allow or {}
  for i, name in ipairs(allow) do
    if type(name) ~= "string" then
      errors.raise(7, "moonsand.create: seccomp.allow: name %d must be a string, got %s", i, type(name))
    end
  end
  if #allow > ALLOW_MAX then
    return errors.fail("invalid", ("seccomp.allow: more than %d names"):format(ALLOW_MAX))
  end
  return allow
end

--- What the option asks for: false, "host", or rules.
---@return moonsand.Rules|false|"host"|nil network, string? message, string? code, table? detail
local function read_network(network)
  if network == "host" then
    return network
  elseif type(network) == "string" then
    return errors.fail("invalid", ("network: %s (false, true, \"host\", or a table of rules)")
      :format(options.quote(network)))
  end
  if not network then
    return false
  end
  return errors.outcome(rules.read(network, 5))
end

--- How names are looked up in the host's network.
local function copy_resolver(box, limits)
  for _, path in ipairs { "/etc/hosts", "/etc/resolv.conf" } do
    local file = io.open(path, "rb")
    local text = file and file:read "*a"
    if file then
      file:close()
    end
    if text then
      local flags = core.file_flags
      local errno, message, to, detail = box:call(core.file_calls.open,
        { path = path, flags = flags.WRONLY + flags.CREAT + flags.TRUNC, mode = 420 }, limits)
      if not errno then
        return nil, message, to, detail
      elseif to then
        to:write(text)
        to:close()
      end
    end
  end
  return box
end

--- Gives a sandbox the way out that was asked for.
local function connect(box, network, limits)
  if not network then
    return box
  elseif network == "host" then
    return copy_resolver(box, limits)
  end
  local message, code, detail
  box.proxy, message, code, detail = proxies.new(box, network, limits)
  if not box.proxy then
    box:close()
    return nil, message, code, detail
  end
  box.environment = environment.merge(box.environment, proxies.environment())
  return box
end

--- The driver of a sandbox that is ready.
---@param about { limits: table, held: table, mounts: table, network: string, rules: any }
local function new(raw, about)
  return setmetatable({
    raw = raw,
    isolation = about.isolation,
    limits = about.limits, -- of each program, unless it says otherwise
    held = about.held,
    groups = about.groups, -- its control groups, if it has some
    mounts = about.mounts,
    base = about.base,
    unsaved = about.unsaved, -- what no snapshot could hold; nil: nothing
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

--- What a snapshot is to be put into lies on what it was taken from.
local function check_base(found, base)
  if found.base == base then
    return true
  end
  return errors.fail("invalid", ("the snapshot %s was taken of a sandbox %s root"):format(
    options.quote(found.name), base == "host" and "with another" or "without another"),
    { fix = base == "host" and "create { root = …, snapshot = … }" or "leave root out" })
end

--- The snapshot that a sandbox is to be made from; false: none. Close its file.
---@return table|false|nil found, string? message, string? code, table? detail
local function find_snapshot(opts)
  if not opts.snapshot then
    return false
  end
  local found, message, code, detail = snapshots.find(opts.snapshot)
  if not found then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = check_base(found, opts.root and "root" or "host")
  if not ok then
    found.file:close()
    return nil, message, code, detail
  end
  return found
end

local function forget(found)
  if found then
    found.file:close()
  end
end

--- Fills a new sandbox, if there is something to fill it with.
---@return true|nil ok, string? message, string? code, table? detail
local function put_back(box, found, kept, limits)
  if not found then
    return true
  end
  local ok, message, code, detail = snapshots.restore(box, found, kept, limits)
  forget(found)
  return ok, message, code, detail
end

--- Makes a sandbox.
---@return moonsand.local.Sandbox? sandbox, string? message, string? code, table? detail
function M.create(opts, limits)
  local hostname = opts.hostname or "sandbox"
  if not valid_hostname(hostname) then
    return errors.fail("invalid", ("hostname: %s is none"):format(options.quote(hostname)))
  end
  for _, name in ipairs(UNSUPPORTED) do
    if opts[name] ~= nil then
      return errors.fail("unsupported", name .. " is not supported by this provider")
    end
  end
  local isolation = opts.isolation or M.isolation
  if isolation and not LAUNCHERS[isolation] then
    return errors.fail("invalid", ("isolation: %s is none of 'native', 'bwrap'"):format(
      options.quote(isolation)))
  end
  local network, message, code, detail = read_network(opts.network)
  if network == nil then
    return nil, message, code, detail
  end
  local allow
  allow, message, code, detail = read_allow(opts.seccomp)
  if not allow then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = detached.check(opts)
  if not ok then
    return nil, message, code, detail
  end
  local found
  found, message, code, detail = find_snapshot(opts)
  if found == nil then
    return nil, message, code, detail
  end
  local plan
  plan, message, code, detail = mounts.plan(opts, 5)
  if not plan then
    forget(found)
    return nil, message, code, detail
  end
  local spec = { hostname = hostname, allow = allow, host_network = network == "host" }
  local raw, from, planned
  raw, from, code, detail, planned = make_bounded(opts, isolation, spec, plan, limits)
  if not raw and not isolation and doctor.is_policy(detail) then
    raw, from, code, detail, planned = make_below_bwrap(detail, opts, spec, plan, limits)
  end
  mounts.release(plan)
  if not raw then
    forget(found)
    return nil, from, code, detail
  end
  local base, unsaved, kept = mounts.survey(plan)
  local box = new(raw, {
    isolation = spec.bwrap and "bwrap" or "native",
    limits = limiting.of_programs(planned),
    held = planned.held,
    groups = planned.groups,
    mounts = mounts.describe(plan),
    base = base,
    unsaved = unsaved,
    network = network == "host" and "host" or network and "rules" or "none",
    rules = network and network ~= "host" and opts.network or nil,
    idle_timeout = opts.idle_timeout,
  })
  box.zygote = from
  ok, message, code, detail = put_back(box, found, kept, limits)
  if ok and opts.lifetime then
    ok, message, code, detail = box:set_lifetime(opts.lifetime, limits)
  end
  if not ok then
    box:close()
    return nil, message, code, detail
  end
  return connect(box, network, limits)
end

M.snapshots = snapshots.list
M.delete_snapshot = snapshots.delete

-- ---------------------------------------------------------------- those that are there

--- Serves the way out of one that was detached, unless somebody else does. It is looked at again
--- when a program is started: who served it may have left.
function take_over_network(box, limits)
  if not box.detached or box.network ~= "rules" or box.proxy then
    return true
  end
  local network, message, code, detail = read_network(box.rules)
  if not network then
    return nil, message, code, detail
  end
  box.environment = environment.merge(Sandbox.environment, proxies.environment())
  box.proxy, message, code, detail = proxies.new(box, network, limits)
  if not box.proxy and code ~= "busy" then
    return nil, message, code, detail
  end
  return true
end

--- One that was detached, by its id or its name.
---@return moonsand.local.Sandbox? sandbox, string? message, string? code, table? detail
function M.connect(id, opts, limits)
  for name in pairs(M.options) do
    if opts[name] ~= nil then
      return errors.fail("invalid", ("%s: only a sandbox that is made can be told that"):format(name))
    end
  end
  local raw, about, code, detail = detached.join(id, limits)
  if not raw then
    return nil, about, code, detail
  end
  local box = new(raw, about)
  box.id, box.name, box.metadata, box.created_at = about.id, about.name, about.metadata, about.created_at
  box.detached = true
  local ok, message
  ok, message, code, detail = take_over_network(box, limits)
  if not ok then
    box:close()
    return nil, message, code, detail
  end
  return box
end

---@return table[]? rows, string? message, string? code, table? detail
function M.list()
  return detached.list()
end

---@return true|nil ok, string? message, string? code, table? detail
function M.destroy(id, _, limits)
  return detached.destroy(id, limits)
end

M.kill_confirmed = KILL_CONFIRMED

return M
