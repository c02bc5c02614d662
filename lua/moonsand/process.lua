--- A program that was started, and the calls that start one. What a provider gives is a *program*
--- (see providers/local.lua): raw streams, `started`, `ended`, `signal`. Here it becomes what users
--- hold: streams with an owner, callbacks, input of many forms, one Result.

local callbacks = require "moonsand.process.callbacks"
local errors = require "moonsand.errors"
local inputs = require "moonsand.process.input"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local planning = require "moonsand.program"
local results = require "moonsand.result"
local signals = require "moonsand.signals"
local streams = require "moonsand.stream"

local unpack = table.unpack or unpack

local M = {}

--- How long the death of what was killed may take before it counts as unconfirmed. Of a timeout, half
--- of it is the provider's; then we kill.
local KILL_CONFIRMED = 5

--- What is over within so many seconds is a short program.
local SOON = 0.002

local WAIT = { timeout = "number", cancel = "table" }
local STOP = { timeout = "number", cancel = "table", grace = "number" }
local SINCE = { stdout = "number", stderr = "number" }
M.attach_options = {
  since = "table", takeover = "boolean", pty = "boolean", max_output = "number|string",
  check = "boolean", on_stdout = "callable", on_stderr = "callable", on_line = "callable",
  on_exit = "callable", timeout = "number", cancel = "table",
}

---@class moonsand.Process
---@field id string opaque
---@field pid? integer
---@field stdin? moonsand.Stream
---@field stdout? moonsand.Stream
---@field stderr? moonsand.Stream
local Process = {}
Process.__index = Process
Process.__name = "moonsand.Process"

Process.__tostring = function(self)
  local state = "running"
  if self.outcome then
    state = self.outcome.result and tostring(self.outcome.result) or self.outcome.message
  elseif self.closed then
    state = "closed"
  end
  return ("moonsand.Process (%s, %s)"):format(self.id, state)
end

local function kill(self, reason)
  self.doomed = true
  self.program:signal(signals.numbers.KILL, true, reason)
end

--- A failure of this sandbox's.
local function fail(box, message, code, detail)
  detail.provider = box.provider
  return nil, message, code, detail
end

local function fail_new(self, code, message, detail)
  detail = detail or {}
  detail.id, detail.provider = self.id, self.box.provider
  return errors.fail(code, message, detail)
end

-- ---------------------------------------------------------------- the end

--- What a Result or a failure looks like when it is kept, so that every wait answers the same.
local function keep(self, result, message, code, detail)
  if detail then
    detail.id = detail.id or self.id -- the provider's, where it can be attached to again
    detail.provider = self.box.provider
  end
  self.outcome = {
    result = result,
    message = message,
    code = code,
    detail = detail,
    thrown = false, -- waits raise `error`
    error = nil,
  }
  if self.uncancel then
    self.uncancel()
  end
  if self.feeder then
    streams.release(self.input, self.feeder)
  end
end

--- What a handle answers that ended the program so itself. Others that look at it get the Result.
local endings = {
  cancel = { "cancelled", "cancelled" },
  close = { "closed", "the process was closed" },
}

--- Whether more was to be collected than may be, where that ends the program.
local function is_over_limit(self)
  if self.plan.on_limit ~= "kill" then
    return false
  end
  for _, name in ipairs { "stdout", "stderr" } do
    local raw, stream = self.program[name], self[name]
    if raw and self.plan.sinks[name] == "collect" and not (stream and stream.owner)
      and raw:received() > self.plan.max_output then
      return true
    end
  end
  return false
end

--- What it is called in the sandbox, once that is known: as `box:processes` tells it.
local function take_id(self)
  self.id = self.program.id and self.program:id() or self.id
end

--- From the way it ended to what `wait` answers.
local function settle(self, exit)
  take_id(self)
  if not exit.reason and is_over_limit(self) then
    exit.reason = "output" -- it ended by itself before that could be done
  end
  local result = results.new(exit, { stdout = self.program.stdout, stderr = self.program.stderr },
    self.plan.spec)
  local ours = self.doomed or self.box.core.closed
  local raised, ending = self.raised, ours and endings[exit.reason]
  if raised then
    local more = { started = true, result = result, cause = raised.error }
    for name, value in pairs(raised.detail or {}) do
      more[name] = value
    end
    local _, text, code, detail = errors.fail(raised.code or "closed", raised.message, more)
    keep(self, nil, text, code, detail)
    self.outcome.thrown, self.outcome.error = raised.thrown, raised.error
  elseif ending then
    local message = self.cancel_message or ending[2]
    local _, text, code, detail = errors.fail(ending[1], message,
      { started = true, result = result, cause = self.cancel_cause })
    keep(self, nil, text, code, detail)
  else
    keep(self, result)
  end
end

--- What a call answers once it is over. With the Result, what was collected is the caller's; when
--- only on_exit was told, a reader may still come.
local function answer(self, check)
  local o = self.outcome
  for _, name in ipairs { "stdout", "stderr" } do
    if self.program[name] then
      self.program[name]:release()
    end
  end
  if o.thrown then
    error(o.error, 0)
  elseif not o.result then
    return nil, o.message, o.code, o.detail
  elseif check and not o.result.ok then
    local _, message, code, detail = results.check(o.result)
    detail.id = self.id
    return fail(self.box, message, code, detail)
  end
  return o.result
end

--- May this coroutine take over what is left in a stream? Not while another one, alive, reads it.
local function is_ours(stream)
  local owner = stream.owner
  return owner == nil or owner == (coroutine.running() or "main")
    or type(owner) == "thread" and coroutine.status(owner) == "dead"
end

local function collect(self)
  for _, name in ipairs { "stdout", "stderr" } do
    local stream = self[name]
    if stream and not stream.reader and is_ours(stream) then
      stream.raw:collect()
    end
  end
end

--- Kills a program whose output has grown past its limit, when that was asked for.
local function police(self)
  if not self.policed and is_over_limit(self) then
    self.policed = true
    kill(self, "output")
  end
end

-- ---------------------------------------------------------------- waiting

--- Waits for `first`, for news of the streams that matter while the end is waited for, and for the
--- end of tasks that still read one, which leave us the rest.
local function wait_with(self, limits, first)
  local news, program, handlers = { first }, self.program, self.handlers
  for _, name in ipairs { "stdout", "stderr" } do
    local stream = self[name]
    if self.plan.on_limit == "kill" or self.plan.spec.background or handlers and handlers[name] then
      news[#news + 1] = program[name]
    end
    if stream and stream.task and not is_ours(stream) then
      news[#news + 1] = stream.task.finished
    end
  end
  return loop.wait(limits, unpack(news))
end

--- Callbacks hear of a program that has its pid. Answers nothing, or the failure of the wait.
local function await_start(self, limits)
  local ok, message, code, detail = self.program:started(limits)
  local exit, gone = self.program:ended()
  if ok then
    self.pid = self.program:pid()
  elseif not exit and not gone then
    return message, code, detail
  end
end

--- Gives the callbacks what there is. More may come for ever: others have their turn, and the limits
--- are looked at. Answers nothing, or why the wait must end.
local function pump(self, limits)
  local over = loop.now() + loop.SLICE
  while callbacks.pump(self.handlers, self.program) do
    police(self)
    if loop.now() >= over then
      local message, code, detail = loop.turn(limits)
      if message then
        return message, code, detail
      end
      over = loop.now() + loop.SLICE
    end
  end
end

--- Waits for the end and keeps the outcome. Answers nothing, or the failure of the wait itself.
---@param pumping boolean serve the callbacks meanwhile
---@param collecting? boolean collect what nobody reads any more
local function await_end(self, limits, pumping, collecting)
  local program = self.program
  while not self.outcome do
    if collecting then
      collect(self)
    elseif pumping and not self.pid then
      local message, code, detail = await_start(self, limits)
      if message then
        return message, code, detail
      end
    end
    local stop, why, more
    if pumping then
      stop, why, more = pump(self, limits)
    end
    local exit, message, code, detail = program:ended()
    if exit then
      if pumping then
        callbacks.finish(self.handlers, program)
      end
      collect(self)
      settle(self, exit)
      return
    elseif message then
      keep(self, nil, message, code, detail)
      return
    end
    police(self)
    if not stop then
      stop, why, more = wait_with(self, limits, program:waitable())
    end
    if stop then
      return stop, why, more
    end
  end
end

--- The limits of a wait that ends when the program's own timeout must have done its work.
local function bounded(self, limits)
  local last = self.last_moment
  if not last or limits.deadline and limits.deadline <= last then
    return limits, false
  end
  return { deadline = last, token = limits.token, shield = limits.shield }, true
end

--- Ends it now and waits for the proof, also in a cancelled task.
local function put_down(self, reason)
  kill(self, reason)
  for _, name in ipairs { "stdout", "stderr" } do
    local raw = self.program[name]
    if raw and self.plan.spec.background then
      raw:collect() -- its end comes behind all that it wrote
    end
  end
  local patience = reason == "timeout" and KILL_CONFIRMED / 2 or KILL_CONFIRMED
  local message = await_end(self, loop.limits({ timeout = patience }, true), false)
  if message then
    kill(self, reason)
    local _, text, code, detail = errors.fail("timeout",
      "the program was killed, but its end was not confirmed",
      { started = self.program:pid() and true or nil }) -- nil: nobody can tell
    keep(self, nil, text, code, detail)
  end
end

-- ---------------------------------------------------------------- feeding

--- Something of the caller's failed: the program ends, and that is what `wait` answers.
local function abort(self, raised)
  if not self.raised and not self.outcome then
    self.raised = raised
    kill(self, "close")
  end
end

--- What a function of the caller's raised, for `abort`.
local function thrown(err)
  return { thrown = true, error = err, message = tostring(err) }
end

local function feed(self, input)
  if type(input) == "string" then
    self.program.stdin:feed(input)
    return
  end
  loop.spawn(function()
    if streams.is(input) then
      self.input, self.feeder = input, coroutine.running()
    end
    local ok, message, code, detail = pcall(inputs.pour, self.program, input)
    if not ok then
      abort(self, thrown(message))
    elseif message then
      abort(self, {
        message = tostring(message),
        code = type(code) == "string" and code or "provider",
        detail = type(detail) == "table" and detail or nil,
      })
    end
  end)
end

-- ---------------------------------------------------------------- starting

local function wants_pipe(opts, interactive)
  local input = opts.stdin
  if input == nil then
    return interactive
  end
  return input ~= false and input ~= ""
end

--- A failure before anything was started.
local function not_started(box, message, code, detail)
  detail.started = false
  return fail(box, message, code, detail)
end

--- A program as its caller is to hold it.
local function new(box, program, plan, command)
  box.core.started = box.core.started + 1
  return setmetatable({
    id = ("%s/%d"):format(box.id, box.core.started),
    box = box, -- kept alive by what was made from it
    program = program,
    plan = plan,
    command = command,
    check = plan.check,
    handlers = nil, -- callbacks, by stream
    outcome = nil, -- what every wait answers, once it is over
    raised = nil, -- what a callback or the input failed with
    doomed = false, -- we ended it
    closed = false,
    last_moment = plan.timeout and loop.now() + plan.timeout + plan.grace + KILL_CONFIRMED / 2,
  }, Process)
end

local function launch(box, call, command, opts, interactive, level)
  inputs.check(call, opts.stdin, interactive, level + 1)
  local plan, message, code, detail = planning.plan(call, box, command, opts, level + 1)
  if not plan then
    return not_started(box, message, code, detail)
  elseif plan.timeout == 0 then
    message = "there was no time to start"
    return not_started(box, message, "timeout", { code = "timeout", message = message })
  elseif opts.cancel and opts.cancel:cancelled() then
    return not_started(box, loop.cancelled(opts.cancel.reason))
  end
  loop.demand()
  local input = opts.stdin
  plan.spec.stdin = wants_pipe(opts, interactive)
  if plan.spec.pty and not plan.spec.stdin then
    input, plan.spec.stdin = "", true -- its end has to be typed
  end
  plan.spec.quiet = not interactive and not plan.callbacks and plan.on_limit == "truncate"
  local program
  program, message, code, detail = box.core.driver:start(plan.spec)
  if not program then
    return not_started(box, message, code, detail)
  end
  local self = new(box, program, plan, command)
  if plan.spec.stdin and input ~= nil and input ~= true and not (interactive and input == "pipe") then
    feed(self, input)
  elseif program.stdin then
    self.stdin = streams.new(program.stdin, "stdin", nil, self)
  end
  self.handlers = callbacks.make(self, opts)
  return self
end

local function tell_exit(self, on_exit)
  if not on_exit then
    return true
  end
  local o = self.outcome
  return pcall(on_exit, o.result, o.message, o.code, o.detail)
end

--- Most programs are over so soon that their output need wake nobody before the end does. Serves it
--- from when that has shown to be wrong. Answers nothing, or the failure of the wait.
local function await_soon(self, limits)
  local soon = loop.now() + SOON
  if not limits.deadline or limits.deadline > soon then
    soon = { deadline = soon, token = limits.token, shield = limits.shield }
    local message, code, detail = loop.wait(soon, self.program:waitable())
    if message and code ~= "timeout" then
      return message, code, detail
    end
  end
  for _, name in ipairs { "stdout", "stderr" } do
    local raw = self.program[name]
    if raw and not raw:ended() then
      raw:watch()
    end
  end
end

local function await_result(self, limits)
  if self.plan.spec.quiet then
    local message, code, detail = await_soon(self, limits)
    if message then
      return message, code, detail
    end
  end
  return await_end(self, limits, self.handlers ~= nil, false)
end

--- Nobody will ask for its end any more: the coroutine that ran it is no more.
local function give_up(self)
  kill(self, "close")
end

--- Runs a command to its end: `box:exec` without the option check.
---@return moonsand.Result? result, string? message, string? code, table? detail
function M.exec(box, call, command, opts, level)
  local self, message, code, detail = launch(box, call, command, opts, false, (level or 2) + 1)
  if not self then
    return nil, message, code, detail
  end
  local limits = bounded(self, loop.limits { cancel = opts.cancel })
  local guard = loop.guard(give_up, self)
  local ok, failure, why, more = pcall(await_result, self, limits)
  if not ok then -- a callback raised, or the task was cancelled again
    abort(self, thrown(failure))
    put_down(self, "close")
  elseif failure then
    self.cancel_message, self.cancel_cause = failure, more and more.cause
    put_down(self, why == "cancelled" and "cancel" or "timeout")
  end
  loop.unguard(guard)
  local told, raised = tell_exit(self, opts.on_exit)
  if not ok then
    error(failure, 0)
  elseif not told and not self.outcome.thrown then
    error(raised, 0)
  end
  return answer(self, self.check)
end

--- Callbacks of a program that was started run in a coroutine of their own.
local function serve_callbacks(self, opts)
  if not self.handlers and not opts.on_exit and self.plan.on_limit ~= "kill" then
    return
  end
  self.served = loop.signal()
  loop.spawn(function()
    local limits = bounded(self, loop.limits(nil, true))
    local ok, failure = pcall(await_end, self, limits, self.handlers ~= nil)
    if not ok then
      abort(self, thrown(failure))
      put_down(self, "close")
    elseif failure then
      put_down(self, "timeout")
    end
    local told, raised = tell_exit(self, opts.on_exit)
    if not told and not self.outcome.thrown then
      self.outcome.thrown, self.outcome.error = true, raised
    end
    self.done = true
    self.served:wake()
  end)
end

--- A program that runs becomes what its caller holds: an id, streams, callbacks.
local function hand_over(self, opts)
  local program = self.program
  self.pid = program:pid()
  take_id(self)
  for _, name in ipairs { "stdout", "stderr" } do
    if program[name] and not (self.handlers and self.handlers[name]) then
      self[name] = streams.new(program[name], name, self.plan.max_output, self)
    end
  end
  serve_callbacks(self, opts)
  return self
end

--- Starts a command: `box:start` without the option check.
---@return moonsand.Process? process, string? message, string? code, table? detail
function M.start(box, call, command, opts, level)
  local self, message, code, detail = launch(box, call, command, opts, true, (level or 2) + 1)
  if not self then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = self.program:started(loop.limits(opts))
  if not ok then
    if code == "cancelled" or code == "timeout" then
      kill(self, "cancel")
    end
    return fail(box, message, code, detail)
  end
  if opts.cancel then
    self.uncancel = opts.cancel:on_cancel(function(reason)
      if not self.outcome then
        self.cancel_message, self.cancel_cause = (loop.cancelled(reason)), reason
        kill(self, "cancel")
      end
    end)
  end
  return hand_over(self, opts)
end

--- From where on the output of what is attached to is wanted.
local function read_since(since, level)
  since = options.check("box:attach: since", since, SINCE, level + 1)
  local offsets = {}
  for name in pairs(SINCE) do
    local at = since[name] or 0
    if at % 1 ~= 0 or at < 0 then
      errors.raise(level + 1, "box:attach: since.%s must be a number of bytes, got %s", name,
        tostring(at))
    end
    offsets[name] = options.integer(at)
  end
  return offsets
end

--- The plan of a program that was started by somebody else.
local function plan_of_attached(box, opts, program, max_output)
  local check = opts.check
  if check == nil then
    check = box.defaults.check
  end
  return {
    spec = { pty = opts.pty, background = true },
    grace = 0,
    max_output = max_output,
    on_limit = "truncate",
    check = check,
    sinks = { stdout = "collect", stderr = program.stderr and "collect" or nil },
  }
end

--- A program that was started before, by anybody: `box:attach` without the option check.
---@param box moonsand.Sandbox
---@param id string
---@param opts table
---@return moonsand.Process? process, string? message, string? code, table? detail
function M.attach(box, id, opts, level)
  local since = read_since(opts.since, level + 1)
  local max, message, code, detail = options.size("max_output",
    opts.max_output or box.defaults.max_output or planning.MAX_OUTPUT)
  if not max then
    return fail(box, message, code, detail)
  end
  local limits = loop.limits(opts)
  local program, ok
  program, message, code, detail = box.core.driver:attach(id,
    { since = since, pty = opts.pty, takeover = opts.takeover, max_output = max }, limits)
  if not program then
    return fail(box, message, code, detail)
  end
  ok, message, code, detail = program:started(limits)
  if not ok then
    program:detach()
    return fail(box, message, code, detail)
  end
  local self = new(box, program, plan_of_attached(box, opts, program, max), program.command)
  if program.stdin then
    self.stdin = streams.new(program.stdin, "stdin", nil, self)
  end
  self.handlers = callbacks.make(self, opts)
  return hand_over(self, opts)
end

-- ---------------------------------------------------------------- methods

local function check_open(self, call)
  if self.closed then
    errors.raise(3, "%s: the process was closed", call)
  end
end

--- What `wait` answers within these limits.
---@param limits moonsand.Limits
---@return moonsand.Result? result, string? message, string? code, table? detail
local function await_answer(self, limits)
  local own, message, code, detail
  limits, own = bounded(self, limits)
  if self.served then -- the callbacks' coroutine does the waiting
    while not self.done and not message do
      collect(self)
      message, code, detail = wait_with(self, limits, self.served)
    end
  else
    message, code, detail = await_end(self, limits, false, true)
  end
  if message and own and code == "timeout" then
    put_down(self, "timeout")
  elseif message then
    return fail_new(self, code, message, detail)
  end
  return answer(self, self.check)
end

--- Waits for the end: the Result, the same each time. A timeout bounds the wait only.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Result? result, string? message, string? code, table? detail
function Process:wait(opts)
  opts = options.check("process:wait", opts, WAIT)
  check_open(self, "process:wait")
  return await_answer(self, loop.limits(opts))
end

--- Waits for the first line, of either stream, that a pattern or a function matches. The output
--- stays readable.
---@param what string|fun(line: string, stream: string): any
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return string? line, string? message_or_stream, string? code, table? detail
function Process:wait_for(what, opts)
  opts = options.check("process:wait_for", opts, WAIT)
  check_open(self, "process:wait_for")
  if type(what) ~= "string" and type(what) ~= "function" then
    errors.raise(2, "process:wait_for: a pattern or a function is needed, got %s", type(what))
  end
  local matches = what
  if type(what) == "string" then
    if not pcall(string.find, "", what) then
      errors.raise(2, "process:wait_for: %s is no pattern", options.quote(what))
    end
    matches = function(line)
      return line:find(what)
    end
  end
  local limits, from = loop.limits(opts), { stdout = 0, stderr = 0 }
  while true do
    local open = false
    for _, name in ipairs { "stdout", "stderr" } do
      local raw = self.program[name]
      local line, next_from = nil, "eof"
      if raw then
        line, next_from = raw:peek(from[name])
      end
      while line do
        if matches(line, name) then
          return line, name
        end
        from[name] = next_from
        line, next_from = raw:peek(from[name])
      end
      if next_from == "too_large" then
        return fail_new(self, "too_large", name .. ": no such line in what may be kept")
      end
      open = open or next_from == "again"
    end
    local exit, gone = self.program:ended()
    if not open or exit or gone then
      return fail_new(self, "closed", "the program ended without such a line")
    end
    local message, code, detail = loop.wait(limits, self.program:waitable(),
      self.program.stdout or self.program.stderr, self.program.stderr)
    if message then
      return fail_new(self, code, message, detail)
    elseif self.closed then
      return fail_new(self, "closed", "the process was closed")
    end
  end
end

local TURNS = { stdout = { "stderr", "stdout" }, stderr = { "stdout", "stderr" } }

local function next_event(state, opts)
  local self, limits = state.process, loop.limits(opts or state.opts)
  while true do
    local waiting = {}
    for _, name in ipairs(TURNS[state.last]) do
      local stream = self[name]
      local data, why
      if stream then
        data, why = stream:try(3)
      end
      if data then
        state.last = name
        return name, data
      elseif why == "again" then
        waiting[#waiting + 1] = stream
      end
    end
    if self.closed then
      return fail_new(self, "closed", "the process was closed")
    elseif #waiting == 0 or self.program:ended() then
      return nil
    end
    local message, code, detail = streams.wait(limits, self.program:waitable(), waiting)
    if message then
      return fail_new(self, code, message, detail)
    end
  end
end

--- Both streams as they arrive: `for stream, data in p:events() do`.
---@return moonsand.Iterator
function Process:events(opts)
  opts = options.check("process:events", opts, WAIT)
  check_open(self, "process:events")
  return streams.iterator(next_event, { process = self, last = "stderr", opts = opts })
end

--- One signal to the tree; TERM if nil.
---@param signal? string|integer
---@return true|nil ok, string? message, string? code, table? detail
function Process:kill(signal)
  check_open(self, "process:kill")
  local number, message, code, detail = signals.number(signal or "TERM")
  if not number then
    return fail(self.box, message, code, detail)
  end
  if not self:is_running() or not self.program:signal(number, true) then
    return fail_new(self, "gone", "the program is over")
  end
  return true
end

--- TERM, then KILL after `grace` seconds (5). Waits for the end: the Result. A timeout bounds the wait
--- as a whole; one that is over before the grace is keeps the KILL from being sent.
---@param opts? { grace?: number, timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Result? result, string? message, string? code, table? detail
function Process:stop(opts)
  opts = options.check("process:stop", opts, STOP)
  check_open(self, "process:stop")
  if self:is_running() then
    self.program:signal(signals.numbers.TERM, true)
  end
  local limits, patience = loop.limits(opts), loop.now() + (opts.grace or KILL_CONFIRMED)
  local last = limits.deadline
  local result, message, code, detail =
    await_answer(self, { deadline = math.min(patience, last or patience), token = limits.token })
  if result or code ~= "timeout" or not self:is_running() or last and last <= patience then
    return result, message, code, detail
  end
  self.program:signal(signals.numbers.KILL, true)
  return await_answer(self, { deadline = last or loop.now() + KILL_CONFIRMED, token = limits.token })
end

--- How it ended, read or not.
local function how_ended(self)
  local program = self.program
  if program.over then
    return program:over()
  end
  return program:ended()
end

--- Whether it (or something that it left and that is not dead yet) still runs.
---@return boolean
function Process:is_running()
  if self.outcome or self.closed then
    return false
  end
  local exit, message = how_ended(self)
  return not exit and not message
end

--- What is known of it.
---@return { id: string, pid: integer?, command: string|string[], running: boolean, exit_code: integer?, gaps: table? }
function Process:info()
  local exit = how_ended(self)
  return {
    id = self.id,
    pid = self.pid,
    command = self.command,
    running = self:is_running(),
    exit_code = exit and exit.exit_code,
    gaps = self.program.gaps and self.program:gaps(),
  }
end

--- Changes the size of its terminal.
---@param cols integer
---@param rows integer
---@return true|nil ok, string? message, string? code, table? detail
function Process:resize(cols, rows)
  check_open(self, "process:resize")
  return errors.outcome(require("moonsand.terminal").resize(self, cols, rows))
end

--- Ties its terminal to the caller's own until it ends. The caller's is as before in any case.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Result? result, string? message, string? code, table? detail
function Process:interact(opts)
  check_open(self, "process:interact")
  return errors.outcome(require("moonsand.terminal").interact(self, opts))
end

--- What the program's provider does not offer.
local function lacks(self, call)
  return fail_new(self, "unsupported",
    ("%s is not supported here by the provider '%s'"):format(call, self.box.provider))
end

--- Where you are in its output, in bytes as the provider counts them: past all that came, but for
--- what waits to be read. `box:attach` takes it as `since`.
---@return { stdout: integer, stderr: integer }? offsets
---@return string? message, string? code, table? detail
function Process:offsets()
  if not self.program.offsets then
    return lacks(self, "process:offsets")
  end
  return self.program:offsets()
end

--- What the log of a background program holds now, read or not, also when the program is over.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return { stdout: string, stderr: string }? log, string? message, string? code, table? detail
function Process:log(opts)
  opts = options.check("process:log", opts, WAIT)
  if not self.program.log or not self.plan.spec.background then
    return lacks(self, "process:log")
  end
  local log, message, code, detail = self.program:log(self.plan.max_output, loop.limits(opts))
  if not log then
    detail.id = self.id
    return fail(self.box, message, code, detail)
  end
  return log
end

local function close_streams(self)
  self.closed = true
  for _, name in ipairs { "stdin", "stdout", "stderr" } do
    if self[name] then
      self[name]:close()
    end
  end
end

--- Lets go of a background program, or of one that was attached to: it runs on, and this handle is
--- closed. Waits in progress get `closed`.
---@return true|nil ok, string? message, string? code, table? detail
function Process:detach()
  check_open(self, "process:detach")
  if not self.program.detach or not self.plan.spec.background then
    return lacks(self, "process:detach")
  end
  if self:is_running() then
    keep(self, fail_new(self, "closed", "the process was detached", { started = true }))
  end
  self.program:detach()
  close_streams(self)
  return true
end

--- KILL now, without waiting. Idempotent; waits in progress get `closed`.
function Process:close()
  if self.closed then
    return
  end
  if self:is_running() then
    kill(self, "close")
  end
  close_streams(self)
end

Process.__close = Process.close

return M
