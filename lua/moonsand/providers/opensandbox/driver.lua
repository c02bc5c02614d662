--- One sandbox of the service: what `create` and `connect` answer.

local contexts = require "moonsand.providers.opensandbox.contexts"
local commands = require "moonsand.providers.opensandbox.command"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local events = require "moonsand.providers.opensandbox.events"
local files = require "moonsand.providers.opensandbox.files"
local loop = require "moonsand.loop"
local portable = require "moonsand.portable"
local programs = require "moonsand.providers.program"
local providers = require "moonsand.providers"
local script = require "moonsand.providers.opensandbox.script"
local services = require "moonsand.providers.opensandbox.service"
local tasks = require "moonsand.task"
local terminals = require "moonsand.providers.opensandbox.terminal"
local times = require "moonsand.providers.opensandbox.time"

local M = {}

local KILL = require("moonsand.signals").numbers.KILL
local EXECD = 44772
M.EXECD = EXECD
local KEPT = 100 -- finished programs that `processes` remembers

--- Between two pings, for one, and for all of them when nobody says how long.
local LOOK, ONE_PING, READY = 0.2, 5, 30

---@class moonsand.opensandbox.Life what is to be ended, also once the driver is collected
---@field service moonsand.opensandbox.Service
---@field id string
---@field pid integer of the process that made it: what a forked child collects is not its own
---@field over boolean it is being ended, or is not ours
---@field wish? table that it is ended with the Lua state, until it was ended before

---@class moonsand.opensandbox.Driver
---@field id string
---@field name? string
---@field cwd string
---@field files table
---@field metadata? table
---@field service moonsand.opensandbox.Service
---@field execd moonsand.http.Client
---@field address string of execd
---@field owned boolean
---@field paused boolean
---@field private ended "gone"|"closed"|nil
---@field private life moonsand.opensandbox.Life
---@field private guard any
---@field private asides moonsand.Token cancelled when nothing has to be cleaned up any more
---@field private running table<moonsand.EventProgram, true>
---@field private attached table<moonsand.EventProgram, true> which outlive a handle of `connect`
---@field private started table[] commands and terminals, oldest first
local Driver = {}
Driver.__index = Driver

local function weak_keys()
  return setmetatable({}, { __mode = "k" })
end

Driver.cwd = "/"
Driver.files = files

local can = {
  argv = "native", stdin = "native", signals = "native", pty = "native", resize = "native",
  background = "native",
  files = "native", ports = "native", users = "native", network_allow = "native",
  ["limits.memory"] = "native", ["limits.cpus"] = "native",
  -- of single programs, by ulimit
  ["limits.open_files"] = "portable", ["limits.file_size"] = "portable",
  ["limits.cpu_time"] = "portable", ["limits.processes"] = "portable",
}

function Driver:can(name) -- luacheck: no self
  return can[name] or false
end

-- ---------------------------------------------------------------- its end

--- Failures behind which may be that there is no sandbox any more.
local SUSPECT = {
  connection = true, lost = true, not_ready = true, not_found = true, provider = true,
}

--- A failure of execd's, or that the sandbox is gone, when that is why: message, code, detail.
---@return string message, string code, table detail
function Driver:blame(message, code, detail)
  detail = detail or {}
  if self.ended == "closed" then
    return select(2, errors.fail("closed", "the sandbox was closed", { started = detail.started,
      cause = detail }))
  elseif not SUSPECT[code] or code == "not_found" and (detail.provider_code or detail.what) then
    return message, code, detail
  end
  local sandbox, _, why = self.service:get(self.id, loop.limits({ timeout = 5 }, true))
  if why == "not_found" or why == "gone"
    or type(sandbox) == "table" and services.is_over(sandbox) then
    self.ended = self.ended or "gone"
    return select(2, errors.fail("gone", "the sandbox ended", { started = detail.started,
      id = detail.id, cause = detail }))
  end
  return message, code, detail
end

---@return "ready"|"paused"|"gone"|"closed"
function Driver:state()
  return self.ended or self.paused and "paused" or "ready"
end

--- Ends what we started here, and lets go of what was attached to.
local function end_programs(self)
  for program in pairs(self.running) do
    program:signal(KILL, true, "close")
  end
  for program in pairs(self.attached) do
    program:detach()
  end
  self.running, self.attached = weak_keys(), weak_keys()
end

---@param life moonsand.opensandbox.Life
local function delete(life, limits)
  life.over = true
  local ok, message, code, detail = life.service:delete(life.id, limits)
  if ok and life.wish then
    life.wish:revoke()
  end
  return ok, message, code, detail
end

---@param life moonsand.opensandbox.Life
local function delete_later(life)
  life.over = true
  providers.ending(function(limits)
    delete(life, limits)
  end)
end

--- Ends it, if it is ours; at once, without waiting. Idempotent.
function Driver:close()
  if self.ended == "closed" then
    return
  elseif not self.owned then
    end_programs(self)
    self.ended = "closed"
    return
  end
  self.ended = "closed"
  self.asides:cancel()
  end_programs(self)
  delete_later(self.life)
end

--- Ends it and waits for the proof.
---@return true|nil ok, string? message, string? code, table? detail
function Driver:destroy(limits)
  self.ended = "closed"
  self.asides:cancel()
  end_programs(self)
  local ok, message, code, detail = delete(self.life, limits)
  if not ok then
    return nil, message, code, detail
  end
  return self.service:await_gone(self.id, limits)
end

-- ---------------------------------------------------------------- programs

--- Runs a small command of ours beside the programs: its exit code, or nil.
---@param text string
---@return integer? code
function Driver:aside(text)
  local run = events.run(self.execd, "/command", { command = text, timeout = 10000 },
    { cancel = self.asides, on_event = function() end })
  if not run then
    return nil
  end
  return run.failure and tonumber(run.failure.evalue) or 0
end

--- For cleaning up, in its own time, which `moonsand.flush` waits for; there is nothing to clean
--- when the sandbox goes.
---@param fn fun()
function Driver:unless_gone(fn)
  providers.ending(function()
    if self.ended ~= "gone" and not (self.ended and self.owned) then
      fn()
    end
  end)
end

--- A small command of ours that nobody waits for.
---@param text string
function Driver:later(text)
  self:unless_gone(function()
    self:aside(text)
  end)
end

--- Notes a program for `processes`, unless it is one of ours that looks after the others.
local function remember(self, entry, spec)
  local started = self.started
  if spec.ours then
    return
  end
  entry.command, entry.started_at = table.concat(spec.argv, " "), os.time()
  started[#started + 1] = entry
  if #started > KEPT then
    for i, old in ipairs(started) do
      if old.exit then
        table.remove(started, i)
        break
      end
    end
  end
end

--- A `user` is a number for execd.
local function check_user(spec)
  local uid = spec.user
  if uid ~= nil and (type(uid) ~= "number" or uid % 1 ~= 0 or uid < 0) then
    return errors.fail("unsupported", "user: OpenSandbox takes a number", { started = false })
  end
  return true
end

--- Whether what is written to a program while it runs has to reach it. A caller that has all of it
--- gives it right after `start`: a turn of the loop later that is known.
local function is_live(spec, job)
  if spec.pty or not spec.stdin or spec.background then
    return spec.pty ~= nil
  end
  services.pause(0, job.limits)
  return not job.program.stdin:ended()
end

--- What runs a program: its run, how it is signalled, and what is known of it; or a failure.
local function choose(self, spec, job)
  if not is_live(spec, job) then
    return commands.make(self, spec)
  elseif spec.user then
    return errors.fail("unsupported",
      "user: OpenSandbox takes one only for programs without a terminal and live input",
      { started = false })
  end
  return terminals.make(self, spec)
end

--- What callers may ask of a program beyond how it runs: `known.entry` is its command or terminal.
local function expose(program, known)
  function program.id()
    return known.entry and known.entry.id
  end
  function program.resize(_, columns, rows)
    local entry = known.entry
    return entry ~= nil and entry.resize ~= nil and entry:resize(columns, rows)
  end
  function program.offsets()
    local offsets = { stdout = 0, stderr = 0 }
    for name, at in pairs(known.entry and known.entry:offsets() or {}) do
      offsets[name] = at - (program[name] and program[name]:unread() or 0)
    end
    return offsets
  end
  function program.log(_, max, limits)
    if not known.entry.log then
      return errors.fail("unsupported", "process:log: OpenSandbox keeps none of a terminal session")
    end
    return known.entry:log(max, limits)
  end
  function program.detach()
    if known.entry then
      known.entry.let_go = true
    end
    program.job.limits.token:cancel "detached"
  end
  return program
end

--- Hands a signal on when it is known to whom; false when that does not come.
local function hand_on(self, chosen, job, number, tree)
  if self.ended == "closed" and self.owned and number == KILL then
    return true -- all of the sandbox ends
  end
  local limits = loop.limits({ timeout = 4 }, true)
  while not chosen.signal do
    if loop.wait(limits, chosen.news) then
      return false
    end
  end
  return chosen.signal(job, number, tree)
end

--- Starts a program; at once.
---@param spec table
---@return moonsand.EventProgram? program, string? message, string? code, table? detail
function Driver:start(spec)
  local ok, message, code, detail = check_user(spec)
  if ok then
    ok, message, code, detail = script.check(spec)
  end
  if not ok then
    return nil, message, code, detail
  end
  local chosen = { news = loop.signal() }
  local program = programs.new(spec, function(job)
    local run, tell, entry
    run, tell, entry, detail = choose(self, spec, job)
    if not run then
      return nil, tell, entry, detail
    end
    chosen.signal, chosen.entry = tell, entry
    chosen.news:wake()
    remember(self, entry, spec)
    self.running[job.program] = true
    local exit
    exit, message, code, detail = run(job)
    self.running[job.program] = nil
    entry.exit = exit or not entry.let_go and {} or nil -- {}: nothing is known of it
    return exit, message, code, detail
  end, {
    signal = function(job, number, tree)
      return hand_on(self, chosen, job, number, tree)
    end,
    confirms = true,
    timeout = not (spec.grace and spec.grace > 0) and not spec.background and not spec.stdin
      and not spec.pty and "native" or nil,
  })
  return expose(program, chosen)
end

--- What was started here: running, and the last that ended. Who was let go of is asked for.
---@return table[] rows
function Driver:processes(limits)
  local rows = {}
  for i, entry in ipairs(self.started) do
    if entry.let_go and not entry.exit and entry.look then
      entry.exit = entry:look(limits)
    end
    rows[i] = {
      id = entry.id,
      pid = entry.pid,
      command = entry.command,
      running = entry.exit == nil,
      exit_code = entry.exit and entry.exit.exit_code,
      started_at = entry.started_at,
    }
  end
  return rows
end

--- A command or a terminal session again, by its id.
---@param id string
---@param opts table since = { stdout, stderr }, max_output, pty, takeover
---@return moonsand.EventProgram? program, string? message, string? code, table? detail
function Driver:attach(id, opts, limits)
  local program, entry, code, detail
  if opts.pty or id:find("-", 1, true) then -- commands have none in their ids
    program, entry = terminals.attach(self, id, opts)
  else
    program, entry, code, detail = commands.attach(self, id, opts, limits)
  end
  if not program then
    return nil, entry, code, detail
  end
  self.attached[program] = true
  program.command = entry.command
  return expose(program, { entry = entry })
end

-- ---------------------------------------------------------------- about it

--- What execd has measured, as we tell it; nil when that is no measurement.
local function sample(row)
  for _, name in ipairs { "cpu_count", "cpu_used_pct", "mem_total_mib", "mem_used_mib" } do
    if type(row) ~= "table" or type(row[name]) ~= "number" then
      return nil
    end
  end
  local total = row.mem_total_mib * 1048576
  local used = row.mem_used_mib * 1048576
  return {
    cpu_percent = row.cpu_used_pct,
    cpu_count = row.cpu_count,
    memory_used = math.floor(used),
    memory_total = math.floor(total),
    memory_percent = total > 0 and 100 * used / total or 0,
    at = type(row.timestamp) == "number" and row.timestamp / 1000 or os.time(),
  }
end

--- What is measured by plain commands, and the service's own CPU and memory, which take a second.
function Driver:metrics(limits)
  local all, message, code, detail = portable.metrics(self, limits)
  if not all then
    return nil, message, code, detail
  end
  local row
  row, message, code, detail = self.execd:call(services.within(limits, { path = "/metrics" }))
  if row == nil then
    return nil, self:blame(message, code, detail)
  end
  local measured = sample(row)
  if not measured then
    return errors.fail("protocol", "these are no metrics", { provider = "opensandbox" })
  end
  for name, value in pairs(measured) do
    all[name] = value
  end
  return all
end

--- The service's own stream of them, one in about two seconds: an iterator, of a closed connection
--- when it is closed.
---@return moonsand.Iterator? iterator, string? message, string? code, table? detail
function Driver:watch_metrics(limits)
  local response, message, code, detail =
    self.execd:open(services.within(limits, { path = "/metrics/watch" }))
  if not response then
    return nil, self:blame(message, code, detail)
  end
  local rows = require("moonsand.wire.events").objects(response)
  return require("moonsand.stream").iterator(function(_, opts)
    local row, why, why_code, why_detail = rows:next(opts)
    if row == nil then
      return nil, why, why_code, why_detail
    end
    local measured = sample(row)
    if not measured then
      local said = type(row) == "table" and row.error
      return errors.fail("provider", "measuring failed: " .. tostring(said), { provider = "opensandbox" })
    end
    return measured
  end, nil, function()
    rows:close()
  end)
end

---@return table
function Driver:info()
  local known = self.known
  return {
    created_at = times.parse(known.createdAt),
    expires_at = times.parse(known.expiresAt),
    metadata = known.metadata,
    address = self.address,
    limits = self.limits,
  }
end

local function refresh(self, limits)
  local known, message, code, detail = self.service:get(self.id, limits)
  if type(known) ~= "table" then
    if code == "not_found" then
      self.ended = self.ended or "gone"
      return errors.fail("gone", "the sandbox ended", detail)
    end
    return nil, message or "no sandbox came", code or "protocol", detail or {}
  end
  self.known = known
  return known
end

--- Waits until it is in a state, or in one that leads nowhere.
local function await_state(self, wanted, limits)
  while true do
    local known, message, code, detail = refresh(self, limits)
    if not known then
      return nil, message, code, detail
    end
    local status = type(known.status) == "table" and known.status or {}
    if status.state == wanted then
      return true
    elseif services.is_over(known) then
      return errors.fail("gone", "the sandbox ended", { cause = status.message })
    end
    message, code, detail = services.pause(LOOK, limits)
    if message then
      return errors.fail(code, ("the sandbox is %s, not %s: %s"):format(tostring(status.state),
        wanted, message), detail)
    end
  end
end

local function act(self, name, limits)
  local ok, message, code, detail =
    self.service:call(limits, { method = "POST", path = services.path(self.id, "/" .. name) })
  if not ok and code == "not_found" then
    return nil, self:blame(message, code, {})
  end
  return ok, message, code, detail
end

--- Stops everything inside. On Kubernetes the programs do not come back, only the files.
function Driver:pause(limits)
  local ok, message, code, detail = act(self, "pause", limits)
  if ok then
    self.paused = true
    ok, message, code, detail = await_state(self, "Paused", limits)
  end
  if not ok then
    return nil, message, code, detail
  end
  return true
end

function Driver:resume(limits)
  local ok, message, code, detail = act(self, "resume", limits)
  if ok then
    ok, message, code, detail = await_state(self, "Running", limits)
  end
  if ok then
    self.paused = false
    ok, message, code, detail = M.reach(self, limits) -- the address may be another one
  end
  if not ok then
    return nil, message, code, detail
  end
  return true
end

--- It ends so many seconds from now; the service wants a time.
function Driver:set_lifetime(seconds, limits)
  local answer, message, code, detail = self.service:call(limits, { method = "POST",
    path = services.path(self.id, "/renew-expiration"),
    json = { expiresAt = times.format(core.wall() + seconds) } })
  if not answer then
    if code == "not_found" then
      return nil, self:blame(message, code, {})
    end
    return nil, message, code, detail
  end
  self.known.expiresAt = type(answer) == "table" and answer.expiresAt or self.known.expiresAt
  return true
end

--- Keeps the files under a name.
---@return table? snapshot { id, name, state, created_at }
---@return string? message, string? code, table? detail
function Driver:snapshot(name, limits)
  local made, message, code, detail = self.service:call(limits, { method = "POST",
    path = services.path(self.id, "/snapshots"), json = { name = name } })
  if not made then
    return nil, message, code, detail
  end
  while type(made) == "table" and made.status and made.status.state == "Creating" do
    message, code, detail = services.pause(LOOK, limits)
    if message then
      return errors.fail(code, "the snapshot is not ready yet: " .. message, detail)
    end
    made, message, code, detail = self.service:call(limits, { path = "/snapshots/" .. made.id })
    if not made then
      return nil, message, code, detail
    end
  end
  local row = type(made) == "table" and M.snapshot_row(made) or { state = "unknown" }
  if row.state ~= "Ready" then
    return errors.fail("provider", ("the snapshot failed: %s"):format(row.message or row.state), row)
  end
  return row
end

--- Where a port can be reached; a port that wants headers has no address that stands alone.
function Driver:url(port, limits)
  local client, address, code, detail = self.service:endpoint(self.id, port, limits)
  if not client then
    return nil, address, code, detail
  end
  return address
end

function Driver:interpreter(language, opts, limits)
  return contexts.create(self, language, opts, limits)
end

--- Whatever else the server has for a sandbox: the calls of bash sessions and isolated sessions.
function Driver:bash_session(opts, limits)
  return require("moonsand.providers.opensandbox.session").create(self, opts, limits)
end

function Driver:isolated_session(opts, limits)
  return require("moonsand.providers.opensandbox.isolated").create(self, opts, limits)
end

-- ---------------------------------------------------------------- making

--- A snapshot as `moonsand.snapshots` shows it.
function M.snapshot_row(snapshot)
  local status = type(snapshot.status) == "table" and snapshot.status or {}
  return {
    id = snapshot.id,
    name = snapshot.name or snapshot.id,
    sandbox = snapshot.sandboxId,
    state = status.state,
    message = status.message,
    created_at = times.parse(snapshot.createdAt),
  }
end

--- Asks where execd is, and waits until it answers there.
---@param self moonsand.opensandbox.Driver
---@param limits moonsand.Limits
---@return true|nil ok, string? message, string? code, table? detail
function M.reach(self, limits)
  local last = limits.deadline or loop.now() + READY
  limits = { deadline = last, token = limits.token }
  local client, address, code, detail = self.service:endpoint(self.id, EXECD, limits)
  if not client then
    return nil, address, code, detail
  end
  self.execd, self.address = client, address
  while true do
    local response, message
    response, message, code, detail = client:open { path = "/ping", accept = { 200 }, retries = 0,
      timeout = math.min(ONE_PING, math.max(last - loop.now(), 0)), cancel = limits.token }
    if response then
      response:close()
      return true
    elseif code == "auth" or code == "cancelled" or code == "invalid" then
      return nil, message, code, detail
    end
    local why, why_code, why_detail = services.pause(LOOK, limits)
    if why then
      why_detail.cause = detail
      why_detail.fix = "see that this machine reaches that address, or set use_server_proxy = true"
      return errors.fail(why_code == "timeout" and "not_ready" or why_code,
        ("the sandbox runs, but its execd does not answer at %s (%s); %s"):format(address, message,
        why_detail.fix), why_detail)
    end
  end
end

--- A sandbox that the server knows.
---@param service moonsand.opensandbox.Service
---@param known table as the server shows it
---@param owned boolean
---@param limits table<string, table>? as `info` shows them
---@return moonsand.opensandbox.Driver
function M.new(service, known, owned, limits)
  local life = { service = service, id = known.id, pid = core.getpid(), over = not owned }
  life.wish = owned and service:wish_deleted(known.id) or nil
  return setmetatable({
    id = known.id,
    life = life,
    asides = tasks.token(),
    guard = tasks.finalizer(function() -- nobody can reach it any more
      if not life.over and life.pid == core.getpid() then
        delete_later(life)
      end
    end),
    name = type(known.metadata) == "table" and known.metadata["moonsand-name"] or nil,
    metadata = known.metadata,
    service = service,
    known = known,
    owned = owned,
    limits = limits,
    execd = nil,
    address = nil,
    paused = false,
    ended = nil,
    running = weak_keys(),
    attached = weak_keys(),
    started = {},
  }, Driver)
end

return M
