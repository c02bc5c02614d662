--- Programs over `POST /command`: its event stream tells the start, the end and how it ended; what
--- the program writes goes to files and is fetched from there, byte for byte (see script.lua).

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local events = require "moonsand.providers.opensandbox.events"
local http = require "moonsand.wire.http"
local loop = require "moonsand.loop"
local outputs = require "moonsand.providers.opensandbox.output"
local pipes = require "moonsand.providers.pipe"
local programs = require "moonsand.providers.program"
local script = require "moonsand.providers.opensandbox.script"
local services = require "moonsand.providers.opensandbox.service"
local signals = require "moonsand.signals"
local uploads = require "moonsand.providers.opensandbox.upload"

local M = {}

local KILL = signals.numbers.KILL
local ROOT = "/tmp/.moonsand-"

--- How often a command that has no stream is looked at: at first, and when it stays quiet.
local LOOK, LOOK_LONGEST = 0.05, 0.5

--- What Go calls the signals.
local GO = {
  hangup = 1, interrupt = 2, quit = 3, ["illegal instruction"] = 4, ["trace/breakpoint trap"] = 5,
  aborted = 6, ["bus error"] = 7, ["floating point exception"] = 8, killed = 9,
  ["user defined signal 1"] = 10, ["segmentation fault"] = 11, ["user defined signal 2"] = 12,
  ["broken pipe"] = 13, ["alarm clock"] = 14, terminated = 15, ["stack fault"] = 16,
  ["child exited"] = 17, continued = 18, ["stopped (signal)"] = 19, stopped = 20,
  ["CPU time limit exceeded"] = 24, ["file size limit exceeded"] = 25,
  ["virtual timer expired"] = 26, ["profiling timer expired"] = 27, ["bad system call"] = 31,
}

--- The signal of "signal: killed (core dumped)".
local function signal_of(text)
  local name = type(text) == "string" and text:match "signal: (.+)$"
  name = name and name:gsub(" %(core dumped%)$", "")
  return name and (GO[name] or tonumber(name:match "^signal (%d+)$"))
end

--- How a command ended, from its code and the words beside it.
---@return table? exit, string? message, string? code, table? detail
local function exit_of(number, text, id)
  local exit_code = events.exit_code(number)
  if exit_code then
    return { exit_code = exit_code }
  end
  local signal = number == -1 and signal_of(text)
  if signal then
    return { signal_number = math.floor(signal) }
  elseif number then
    return events.unknown_end(text, id)
  end
  local why = type(text) == "string" and text or "it does not say why"
  return errors.fail(services.code_of("RUNTIME_ERROR", why) or "provider",
    "cannot start: " .. why, { id = id, started = false })
end

--- The end that a stream told.
local function ending(run)
  if not run.failure then
    return { exit_code = 0 }
  end
  local traceback = run.failure.traceback
  local text = type(traceback) == "table" and traceback[1] or run.failure.evalue
  return exit_of(tonumber(run.failure.evalue), text, run.id)
end

local function token()
  return (core.random(8):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end))
end

---@class moonsand.opensandbox.Command what is known of one, besides its job
---@field driver moonsand.opensandbox.Driver
---@field directory string
---@field id? string
---@field pid? integer
---@field news moonsand.Signal
---@field over boolean
---@field refused? string[] what, why
---@field sources moonsand.opensandbox.Source[] how far each stream was handed on
local Command = {}
Command.__index = Command

-- ---------------------------------------------------------------- signals

local function await(self, what)
  local limits = loop.limits({ timeout = 4 }, true)
  while not self[what] and not self.over do
    if loop.wait(limits, self.news) then
      return
    end
  end
end

--- DELETE is TERM, and KILL after 3 s; true when it is dead.
local function interrupt(self)
  await(self, "id")
  if not self.id or self.over then
    return false
  end
  local ok, _, code = self.driver.execd:call { method = "DELETE", path = "/command",
    query = { id = self.id }, timeout = 10 }
  return ok ~= nil or code == "gone"
end

--- Other signals are a command of their own.
local function send(self, number, tree)
  await(self, "pid")
  if not self.pid or self.over then
    return false
  end
  return self.driver:aside(("kill -%d -- %s%d"):format(number, tree and "-" or "", self.pid)) == 0
end

local function signal(self, number, tree)
  if number == KILL and tree then
    if self.pid then -- not only those that listen to TERM, and at once
      send(self, KILL, true)
    end
    return interrupt(self) or self.over
  end
  return send(self, number, tree)
end

-- ---------------------------------------------------------------- running

--- What the script says for us.
local function hear(self, job, line)
  local pid, what, why = script.read(line)
  if pid then
    self.pid = pid
    job:began(pid)
  elseif what then
    self.refused = { what, why }
  end
  self.news:wake()
end

--- The request for a spec; a script that is too long travels as a file.
local function request_of(self, spec, background)
  local variables = script.variables(spec)
  local text = script.portable(script.of_command(spec, {
    directory = self.directory,
    stdin = self.stdin,
    log = background,
  }, variables ~= nil or not (spec.env and spec.env[1])))
  if #text > script.MAX then
    local ok, message, code, detail =
      uploads.write(self.driver.execd, self.directory .. "/s", text, "600", self.limits)
    if not ok then
      detail.started = false
      return nil, message, code, detail
    end
    text = (". %s/s"):format(self.directory)
  end
  local native = spec.timeout and not (spec.grace and spec.grace > 0) and not background
  return {
    command = text,
    envs = variables,
    background = background or nil,
    timeout = native and math.max(1, math.ceil(spec.timeout * 1000)) or nil,
    uid = spec.user,
  }
end

--- Fetches what is left to fetch; a failure of that is a failure of the program.
local function finish_output(self, output, exit, limits)
  local count, message, code, detail = output:take(limits)
  if not count then
    if code == "cancelled" then
      return nil, message, code, detail
    end
    message = "the program ended, but its output could not be fetched: " .. message
    return errors.fail("lost", message, { id = self.id, started = true, exit = exit, cause = detail })
  end
  return exit
end

--- Takes away its directory and, unless they may stay, the processes that it left; nobody waits.
local function tidy(self, spec)
  local lines = {}
  if self.pid and not spec.leave then
    lines[1] = ("kill -KILL -- -%d 2>/dev/null;"):format(self.pid)
  end
  lines[#lines + 1] = ("rm -rf -- %s"):format(self.directory)
  self.driver:later(table.concat(lines, " "))
end

--- Whether the end was the service's doing, at the program's timeout.
local function note_timeout(job, exit, began)
  local spec = job.spec
  if exit and exit.signal_number == KILL and spec.timeout and loop.now() - began >= spec.timeout
    and not job.reason then
    exit.reason = "timeout"
  end
end

--- Follows the output beside the event stream. Answers a function that waits for that to end.
local function follow(self, output, limits)
  local done, failure = false, nil
  local ended = loop.signal()
  loop.spawn(function()
    failure = { output:follow(function()
      return self.over
    end, self.news, limits) }
    done = true
    ended:wake()
  end)
  return function()
    while not done do
      local message, code, detail = loop.wait(limits, ended)
      if message then
        return message, code, detail
      end
    end
    return failure[1], failure[2], failure[3]
  end
end

--- Puts the input where the program reads it.
local function bring_input(self, job)
  self.stdin = job.spec.stdin and job.program.stdin:ended()
  if not self.stdin then
    job:refuse_input() -- what runs in the background reads nothing that is still to be written
    return true
  end
  local input, message, code, detail = job:input_all(math.huge)
  if not input then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail =
    uploads.write(self.driver.execd, self.directory .. "/0", input, "600", job.limits)
  if not ok then
    detail.started = false
  end
  return ok, message, code, detail
end

local function run_in_front(self, job)
  local spec, driver, limits = job.spec, self.driver, job.limits
  local request, message, code, detail = request_of(self, spec, false)
  if not request then
    return nil, message, code, detail
  end
  local output = outputs.new { client = driver.execd, job = job,
    sources = outputs.sources(spec, self.directory) }
  self.sources = output.sources
  local finish = not spec.quiet and follow(self, output, limits) or nil
  local began = loop.now()
  local run
  run, message, code, detail = events.run(driver.execd, "/command", request, {
    cancel = limits.token,
    patient = function()
      return driver.paused
    end,
    on_event = function(event, so_far)
      self.id = so_far.id
      if event.type == "stdout" and type(event.text) == "string" then
        hear(self, job, event.text)
      end
      self.news:wake()
    end,
  })
  self.over = true
  self.news:wake()
  if finish then
    finish() -- what it may have failed with is met again below
  end
  if not run then
    return nil, driver:blame(message, code, detail)
  elseif self.refused then
    return script.refused(spec, self.refused[1], self.refused[2])
  end
  local exit
  exit, message, code, detail = ending(run)
  if exit then
    job:began(self.pid)
    note_timeout(job, exit, began)
    exit, message, code, detail = finish_output(self, output, exit, limits)
  end
  tidy(self, spec)
  if not exit then
    return nil, driver:blame(message, code, detail)
  end
  return exit
end

--- What execd knows of a command.
local function status_of(self, limits)
  local status, message, code, detail = self.driver.execd:call(services.within(limits,
    { path = "/command/status/" .. http.escape(self.id) }))
  if status == nil and code == "not_found" then
    return errors.fail("not_found", ("there is no command %s"):format(self.id), detail)
  elseif type(status) ~= "table" then
    return nil, message or "no status came", code or "protocol", detail or {}
  end
  return status
end

--- Looks at a command that tells nothing by itself until it is over.
local function watch(self, job, output)
  local delay = LOOK
  while true do
    local status, message, code, detail = status_of(self, job.limits)
    local count
    if status then
      count, message, code, detail = output:take(job.limits)
    end
    if not status or not count and (code ~= "not_found" or not status.running) then
      detail.id = self.id
      return nil, message, code, detail
    end
    if not status.running then
      self.over = true
      self.news:wake()
      if self.refused then
        return script.refused(job.spec, self.refused[1], self.refused[2])
      end
      return exit_of(tonumber(status.exit_code), status.error, self.id)
    end
    if self.pid or not output.sources[1] or output.sources[1].path then
      job:began(self.pid)
    end
    delay = (count or 0) > 0 and LOOK or math.min(delay * 1.5, LOOK_LONGEST)
    message, code, detail = services.pause(delay, job.limits, self.news)
    if message then
      return nil, message, code, detail
    end
  end
end

local function run_behind(self, job)
  local driver = self.driver
  local request, message, code, detail = request_of(self, job.spec, true)
  if not request then
    return nil, message, code, detail
  end
  local run
  run, message, code, detail = events.run(driver.execd, "/command", request, {
    cancel = job.limits.token,
    on_event = function(_, so_far)
      self.id = so_far.id
    end,
  })
  if not run then
    return nil, driver:blame(message, code, detail)
  elseif run.failure or not self.id then
    return ending(run)
  end
  self.news:wake()
  self.sources = outputs.sources(job.spec, self.directory, true)
  local exit
  exit, message, code, detail = watch(self, job, outputs.new {
    client = driver.execd, job = job, id = self.id, sources = self.sources,
    on_head = function(line)
      hear(self, job, line)
    end,
  })
  if not exit then
    return nil, driver:blame(message, code, detail)
  end
  return exit
end

-- ---------------------------------------------------------------- what the driver calls

local function new(driver)
  return setmetatable({
    driver = driver,
    directory = ROOT .. token(),
    stdin = false,
    id = nil,
    pid = nil,
    news = loop.signal(),
    over = false,
    refused = nil,
    sources = {},
  }, Command)
end

--- How far its output was handed on: what `attach` takes as `since`.
---@return table<string, integer>
function Command:offsets()
  local offsets = { stdout = 0, stderr = 0 }
  for _, source in ipairs(self.sources) do
    offsets[source.name] = source.at
  end
  return offsets
end

--- How it ended; nil while it runs, or when execd does not say.
---@return table? exit
function Command:look(limits)
  local status = status_of(self, limits)
  return status and not status.running and exit_of(tonumber(status.exit_code), status.error, self.id)
    or nil
end

--- What its streams hold now, from their start.
---@param max integer bytes of each
---@return { stdout: string, stderr: string }? log, string? message, string? code, table? detail
function Command:log(max, limits)
  local sources, held = {}, {}
  for i, source in ipairs(self.sources) do
    sources[i] = { name = source.name, path = source.path, at = 0,
      head = not source.path and self.directory ~= nil }
    held[source.name] = pipes.new(max)
  end
  local count, message, code, detail = outputs.new({
    client = self.driver.execd, id = self.id, sources = sources,
    job = { output = function(_, name, data)
      return held[name]:push(data)
    end },
    on_head = function() end,
  }):take(limits)
  if not count then
    return nil, self.driver:blame(message, code, detail)
  end
  return {
    stdout = held.stdout and (held.stdout:excerpt()) or "",
    stderr = held.stderr and (held.stderr:excerpt()) or "",
  }
end

--- A program's run, in the coroutine of its job. Its input is all there already, or there is none.
---@param driver moonsand.opensandbox.Driver
---@return fun(job: moonsand.Job) run, table opts, moonsand.opensandbox.Command command
function M.make(driver, spec)
  local self = new(driver)
  return function(job)
    self.limits = job.limits
    local ok, message, code, detail = bring_input(self, job)
    if not ok then
      return nil, driver:blame(message, code, detail)
    end
    if spec.background then
      return run_behind(self, job)
    end
    return run_in_front(self, job)
  end, function(_, number, tree)
    return signal(self, number, tree)
  end, self
end

--- Whether a script's stdout goes to a file: ">>DIRECTORY/1".
local function writes_file(content)
  for target in content:gmatch ">>(%S+)" do
    if target:find("/1", 2, true) then
      return true
    end
  end
  return false
end

--- A command that was started before, by anybody: from the start, or from `since` on.
---@param driver moonsand.opensandbox.Driver
---@param id string
---@param opts { since: { stdout: integer, stderr: integer }, max_output: integer }
---@return moonsand.EventProgram? program
---@return moonsand.opensandbox.Command|string command or message
---@return string? code, table? detail
function M.attach(driver, id, opts, limits)
  local self = new(driver)
  self.id = id
  local status, message, code, detail = status_of(self, limits)
  if not status then
    return nil, driver:blame(message, code, detail)
  end
  local content = type(status.content) == "string" and status.content or ""
  self.directory = content:match(ROOT:gsub("%p", "%%%0") .. "%x+")
  local log = not writes_file(content) -- stdout is execd's log, or there is no script of ours
  local spec = { argv = { id }, stdout = true, stderr = self.directory ~= nil, stdin = false,
    max_output = opts.max_output }
  local sources = outputs.sources(spec, self.directory or "", log)
  for _, source in ipairs(sources) do
    source.at = opts.since[source.name]
    source.head = log and source.name == "stdout" and self.directory ~= nil and source.at == 0
      or nil
  end
  self.sources = sources
  return programs.new(spec, function(job)
    self.limits = job.limits
    job:began()
    local exit
    exit, message, code, detail = watch(self, job, outputs.new {
      client = driver.execd, job = job, id = id, sources = sources,
      on_head = function(line)
        hear(self, job, line)
      end,
    })
    if not exit then
      return nil, driver:blame(message, code, detail)
    end
    return exit
  end, { signal = function(_, number, tree)
    return signal(self, number, tree)
  end, confirms = true }), self
end

return M
