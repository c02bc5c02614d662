--- A program whose provider is told of it by events, not by pipes: what `start` gives is made of a
--- function that runs in a coroutine of its own, waits for the events, hands on the output and
--- answers how it ended.

local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local pipes = require "moonsand.providers.pipe"
local signals = require "moonsand.signals"
local tasks = require "moonsand.task"

local M = {}

local KILL = signals.numbers.KILL

--- How long the end of what was killed may take to be told, where the service says it.
local CONFIRMED = 5

---@class moonsand.Job the provider's side
---@field spec table
---@field limits moonsand.Limits its token is cancelled when the program has to die
---@field reason? "timeout"|"cancel"|"close"|"output"|"signal" why it is being killed
local Job = {}
Job.__index = Job

---@class moonsand.EventProgram the caller's side
---@field stdin? moonsand.Pipe
---@field stdout? moonsand.Pipe
---@field stderr? moonsand.Pipe
local Program = {}
Program.__index = Program

-- ---------------------------------------------------------------- what the provider calls

--- It runs now.
---@param pid? integer
function Job:began(pid)
  local program = self.program
  program.process_id = pid or program.process_id
  if not program.running then
    program.running = true
    program.news:wake()
  end
end

--- Hands on what it wrote; waits while the reader is behind. False: stop, it is being killed.
---@param name "stdout"|"stderr"
---@param data string
---@return boolean goes_on
function Job:output(name, data)
  local program = self.program
  self:began()
  local pipe = program[self.spec.merge and "stdout" or name]
  if pipe and data ~= "" then
    pipe:put(data, self.limits)
  end
  return not self.limits.token:cancelled()
end

--- The next piece of its input; nil at the end.
---@return string? data, string? message, string? code, table? detail
function Job:input()
  local stdin = self.program.stdin
  if stdin then
    return stdin:get(self.limits)
  end
end

--- All of its input, for services that do not take it piece by piece.
---@param max integer
---@return string? data, string? message, string? code, table? detail
function Job:input_all(max)
  local pieces, total = {}, 0
  while true do
    local data, message, code, detail = self:input()
    if message then
      return nil, message, code, detail
    elseif not data then
      return table.concat(pieces)
    end
    pieces[#pieces + 1] = data
    total = total + #data
    if total > max then
      return errors.fail("too_large", ("stdin: more than %d bytes"):format(max))
    end
  end
end

--- It does not read its input: who writes gets `closed`.
function Job:refuse_input()
  if self.program.stdin then
    self.program.stdin:refuse()
  end
end

-- ---------------------------------------------------------------- what callers see

--- Waits until it runs or it is known why not.
---@return true|nil ok, string? message, string? code, table? detail
function Program:started(limits)
  while not self.running do
    if self.failure then
      local f = self.failure
      return nil, f.message, f.code, f
    end
    local message, code, detail = loop.wait(limits, self.news)
    if message then
      return errors.fail(code, message, detail)
    end
  end
  return true
end

--- How it ended, nil when that is not known yet, or a failure.
---@return table? exit, string? message, string? code, table? detail
function Program:ended()
  local f = self.failure
  if f then
    return nil, f.message, f.code, f
  end
  return self.exit
end

function Program:pid()
  return self.process_id
end

function Program:waitable()
  return self.news
end

--- Tells the service, in a coroutine of its own.
local function tell(self, number, tree)
  self.telling = self.telling + 1
  loop.spawn(function()
    local fine, ok = pcall(self.on_signal, self.job, number, tree)
    self.telling = self.telling - 1
    self.confirmed = self.confirmed or number == KILL and fine and ok == true
    self.news:wake()
  end)
end

local function kill(self, reason)
  local job = self.job
  if job.reason then
    return
  end
  job.reason = reason or "signal"
  if self.on_signal then
    tell(self, KILL, true)
  end
  if self.confirms then
    self.uncut = loop.at(loop.now() + CONFIRMED, function()
      job.limits.token:cancel(job.reason)
    end)
  else
    job.limits.token:cancel(job.reason)
  end
end

--- Sends a signal to the first process or to all; does not wait.
---@param number integer
---@param tree boolean
---@param reason? "timeout"|"cancel"|"output"|"close"
---@return boolean sent
function Program:signal(number, tree, reason)
  if self.exit or self.failure then
    return false
  elseif number == KILL and (tree or reason) then
    kill(self, reason)
    return true
  elseif self.on_signal then
    tell(self, number, tree)
    return true
  end
  return false
end

-- ---------------------------------------------------------------- running it

--- What is left of the signals that were sent before the end counts.
local function await_signals(self)
  local limits = loop.limits({ timeout = CONFIRMED }, true)
  while self.telling > 0 do
    if loop.wait(limits, self.news) then
      return
    end
  end
end

--- From what the function answered to the end that callers are told.
local function settle(self, fine, exit, message, code, detail)
  local job = self.job
  if job.reason and (not fine or not exit) then
    await_signals(self)
    if self.confirmed then
      exit = { signal_number = KILL }
    else
      exit, message, code, detail = errors.fail("lost", "the kill was not confirmed",
        { started = self.running, cause = message })
    end
  elseif not fine then
    exit, message, code, detail = errors.fail("provider", tostring(exit), { cause = exit })
  end
  if exit then
    exit.reason = exit.reason or job.reason ~= "signal" and job.reason
      or self.late and "timeout" or nil
    exit.duration = exit.duration or loop.now() - self.began_at
    exit.pid = exit.pid or self.process_id
    exit.pipes_held = exit.pipes_held or false
    self.running = true
  end
  for _, name in ipairs { "stdout", "stderr" } do
    if self[name] then
      self[name]:finish()
    end
  end
  job:refuse_input()
  self.exit = exit
  if not exit then
    detail = detail or {}
    detail.message, detail.code = message, code
    self.failure = detail
  end
  for _, cancel in ipairs { self.untime or false, self.uncut or false } do
    if cancel then
      cancel()
    end
  end
  self.news:wake()
end

--- The program's timeout, for services that have none: TERM, `grace`, KILL.
local function watch_time(self)
  local spec = self.job.spec
  local at = loop.now() + spec.timeout
  local function last()
    kill(self, "timeout")
  end
  self.untime = loop.at(at, function()
    self.late = true
    if spec.grace and spec.grace > 0 and self.on_signal then
      self.untime = loop.at(at + spec.grace, last)
      tell(self, signals.numbers.TERM, true)
    else
      last()
    end
  end)
end

---@class moonsand.EventProgramOptions
---@field signal? fun(job: moonsand.Job, number: integer, tree: boolean): any may wait; true: done
---@field confirms? boolean after a kill the events go on to an end; they are cut off 5 s later
---@field timeout? "native" the service runs spec.timeout, and the function says reason = "timeout"

--- Makes a program; at once.
---@param spec table as `start` was given it
---@param run fun(job: moonsand.Job): table?, string?, string?, table? the exit, or a failure
---@param opts? moonsand.EventProgramOptions
---@return moonsand.EventProgram
function M.new(spec, run, opts)
  opts = opts or {}
  local self = setmetatable({
    stdin = spec.stdin and pipes.new() or nil,
    stdout = spec.stdout and pipes.new(spec.max_output) or nil,
    stderr = spec.stderr and not spec.merge and pipes.new(spec.max_output) or nil,
    news = loop.signal(),
    began_at = loop.now(),
    running = false, -- or it was
    process_id = nil,
    exit = nil,
    failure = nil, -- the detail of one
    on_signal = opts.signal,
    confirms = opts.confirms,
    confirmed = false, -- the service said that it is dead
    telling = 0, -- signals under way
    late = false, -- its timeout has passed
  }, Program)
  self.job = setmetatable({
    spec = spec,
    limits = { token = tasks.token(), shield = true },
    program = self,
    reason = nil,
  }, Job)
  if spec.timeout and opts.timeout ~= "native" then
    watch_time(self)
  end
  loop.spawn(function()
    settle(self, pcall(run, self.job))
  end)
  return self
end

--- A program of a service that only runs to the end: `exec(spec, limits)` answers the exit, stdout
--- and stderr, or a failure. `spec.input` is all of stdin.
---@param spec table
---@param exec fun(spec: table, limits: moonsand.Limits): table?, string?, string?, table?
---@return moonsand.EventProgram
function M.of_exec(spec, exec)
  return M.new(spec, function(job)
    local input, message, code, detail = job:input_all(spec.max_input or 64 * 1024 * 1024)
    if not input then
      return nil, message, code, detail
    end
    local exit, stdout, stderr
    exit, stdout, stderr, detail =
      exec(setmetatable({ input = spec.stdin and input or nil }, { __index = spec }), job.limits)
    if exit then
      job:output("stdout", stdout or "")
      job:output("stderr", stderr or "")
      return exit
    end
    return nil, stdout, stderr, detail
  end)
end

return M
