--- A program that was started, and the calls that start one. What a provider gives is a *program*
--- (see providers/local.lua): raw streams, `started`, `ended`, `signal`. Here it becomes what users
--- hold: streams with an owner, callbacks, input of many forms, one Result.

local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local planning = require "moonsand.program"
local results = require "moonsand.result"
local signals = require "moonsand.signals"
local streams = require "moonsand.stream"

local M = {}

--- How long the death of what was killed may take before it counts as unconfirmed.
local KILL_CONFIRMED = 5

local WAIT = { timeout = "number", cancel = "table" }
local STOP = { timeout = "number", cancel = "table", grace = "number" }

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
  end
  return ("moonsand.Process (%s, %s)"):format(self.id, state)
end

local function kill(self, reason)
  self.program:signal(signals.numbers.KILL, true, reason)
end

-- ---------------------------------------------------------------- the end

--- What a Result or a failure looks like when it is kept, so that every wait answers the same.
local function keep(self, result, message, code, detail)
  self.outcome = { result = result, message = message, code = code, detail = detail }
  if self.uncancel then
    self.uncancel()
  end
end

local endings = {
  cancel = { "cancelled", "cancelled" },
  close = { "closed", "the process was closed" },
}

--- From the way it ended to what `wait` answers.
local function settle(self, exit)
  local result = results.new(exit, { stdout = self.program.stdout, stderr = self.program.stderr },
    self.plan.limits)
  if self.raised then
    return keep(self, nil, self.raised.message, self.raised.code, self.raised.detail)
  end
  local ending = endings[exit.reason]
  if ending then
    local message = self.cancel_message or ending[2]
    local _, text, code, detail = errors.fail(ending[1], message,
      { started = true, id = self.id, result = result, cause = self.cancel_cause })
    return keep(self, nil, text, code, detail)
  end
  keep(self, result)
end

local function answer(self, check)
  local o = self.outcome
  if o.error then
    error(o.error, 0)
  elseif not o.result then
    return nil, o.message, o.code, o.detail
  end
  return check and results.check(o.result) or o.result
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
    if stream and not self.handlers and not stream.reader and is_ours(stream) then
      stream.raw:collect()
    end
  end
end

--- Kills a program whose output has grown past its limit, when that was asked for.
local function police(self)
  local plan, program = self.plan, self.program
  if plan.on_limit ~= "kill" or self.over_limit then
    return
  end
  for _, name in ipairs { "stdout", "stderr" } do
    if program[name] and program[name]:received() > plan.max_output then
      self.over_limit = true
      kill(self, "output")
      return
    end
  end
end

-- ---------------------------------------------------------------- callbacks

--- Splits what comes into lines for `on_line`; the last one may lack its end.
local function line_splitter(emit)
  local rest = {}
  return function(data)
    if data == nil then
      local last = table.concat(rest)
      rest = {}
      if last ~= "" then
        emit(last)
      end
      return
    end
    local from = 1
    while true do
      local at = data:find("\n", from, true)
      if not at then
        break
      end
      rest[#rest + 1] = data:sub(from, at - 1)
      emit(table.concat(rest))
      rest, from = {}, at + 1
    end
    if from <= #data then
      rest[#rest + 1] = data:sub(from)
    end
  end
end

local function host_writer(name)
  return function(data)
    local file = io[name]
    file:write(data)
    file:flush()
  end
end

--- What each stream's data goes through: name -> list of functions of (data or nil at the end).
local function make_handlers(self, opts)
  local handlers
  for _, name in ipairs { "stdout", "stderr" } do
    local raw, list = self.program[name], {}
    local sink, callback = self.plan.sinks[name], opts["on_" .. name]
    if sink == "inherit" then
      sink = host_writer(name)
    end
    local collected = type(sink) == "string"
    local function add(fn)
      list[#list + 1] = function(data)
        if data then
          fn(data, self)
        end
      end
    end
    if not collected and sink then
      add(sink)
    end
    if callback then
      add(callback)
    end
    if opts.on_line and raw then
      list[#list + 1] = line_splitter(function(line)
        opts.on_line(line, name)
      end)
    end
    if raw and #list > 0 then
      handlers = handlers or {}
      handlers[name] = list
      if collected then
        raw:tee()
      end
    end
  end
  return handlers
end

--- Gives the callbacks what there is. They may wait, and raise.
local function pump(self)
  local moved
  repeat
    moved = false
    for _, name in ipairs { "stdout", "stderr" } do
      local list = self.handlers[name]
      local data = list and self.program[name]:take("chunk", 0)
      if data then
        moved = true
        for _, handle in ipairs(list) do
          handle(data)
        end
      end
    end
  until not moved
end

local function pump_end(self)
  pump(self)
  for _, name in ipairs { "stdout", "stderr" } do
    for _, handle in ipairs(self.handlers[name] or {}) do
      handle(nil)
    end
  end
end

--- The streams whose news matter while the end is waited for.
local function watched(self)
  local program = self.program
  if self.plan.on_limit == "kill" then
    return program.stdout, program.stderr
  elseif self.handlers then
    return self.handlers.stdout and program.stdout, self.handlers.stderr and program.stderr
  end
end

--- Waits for the end and keeps the outcome. Answers nothing, or the failure of the wait itself.
---@param pumping boolean serve the callbacks meanwhile
local function await_end(self, limits, pumping)
  local program = self.program
  while not self.outcome do
    if pumping then
      pump(self)
    end
    local exit, message, code, detail = program:ended()
    if exit then
      if pumping then
        pump_end(self)
      end
      collect(self)
      settle(self, exit)
      return
    elseif message then
      detail.id = self.id
      keep(self, nil, message, code, detail)
      return
    end
    police(self)
    local out, err = watched(self)
    if out then
      message, code, detail = loop.wait(limits, program:waitable(), out, err or nil)
    else
      message, code, detail = loop.wait(limits, program:waitable(), err or nil)
    end
    if message then
      return message, code, detail
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
  local message = await_end(self, loop.limits({ timeout = KILL_CONFIRMED }, true), false)
  if message then
    kill(self, reason)
    local _, text, code, detail = errors.fail("timeout",
      "the program was killed, but its end was not confirmed", { started = true, id = self.id })
    keep(self, nil, text, code, detail)
  end
end

-- ---------------------------------------------------------------- input

--- A function that gives the next piece of whatever `stdin` may be.
local function source_of(input)
  if type(input) == "function" then
    return input
  elseif io.type(input) then
    return function()
      return input:read(65536)
    end
  elseif type(input) == "table" and type(input.chunk) == "function" then
    return function()
      return input:chunk()
    end
  end
  return function() -- a callable object
    return input()
  end
end

--- Writes what the source gives until it ends. Answers nothing, or the source's own failure.
local function pour(self, source, raw)
  while true do
    local data, message, code, detail = source()
    if data == nil then
      raw:shutdown()
      return message, code, detail
    end
    data = tostring(data)
    local from = 1
    while from <= #data do
      local count, why = raw:write(data, from)
      if count then
        from = from + count
      elseif why ~= "again" then
        return -- it does not want more: no error
      elseif loop.wait(nil, raw) then
        return
      end
    end
  end
end

--- Something of the caller's failed: the program ends, and that is what `wait` answers.
local function abort(self, raised)
  if not self.raised and not self.outcome then
    self.raised = raised
    kill(self, "close")
  end
end

local function feed(self, input)
  local raw = self.program.stdin
  if type(input) == "string" then
    raw:feed(input)
    return
  end
  local source = source_of(input)
  loop.spawn(function()
    local ok, message, code, detail = pcall(pour, self, source, raw)
    if not ok then
      abort(self, { error = message })
    elseif message then
      abort(self, { message = tostring(message), code = code or "provider",
        detail = detail or { code = code or "provider", message = tostring(message) } })
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

local function launch(box, call, command, opts, interactive, level)
  local plan, message, code, detail = planning.plan(call, box, command, opts, level + 1)
  if not plan then
    return nil, message, code, detail
  elseif plan.timeout == 0 then
    return errors.fail("timeout", "there was no time to start", { started = false })
  elseif opts.cancel and opts.cancel:cancelled() then
    message, code, detail = loop.cancelled(opts.cancel.reason)
    detail.started = false
    return errors.fail(code, message, detail)
  end
  plan.spec.stdin = wants_pipe(opts, interactive)
  local program
  program, message, code, detail = box.core.driver:start(plan.spec)
  if not program then
    return nil, message, code, detail
  end
  box.core.started = box.core.started + 1
  local self = setmetatable({
    id = ("%s/%d"):format(box.id, box.core.started),
    box = box, -- kept alive by what was made from it
    program = program,
    plan = plan,
    command = command,
    check = plan.check,
    handlers = nil, -- callbacks, by stream
    outcome = nil, -- what every wait answers, once it is over
    raised = nil, -- what a callback or the input failed with
    closed = false,
    last_moment = plan.timeout and loop.now() + plan.timeout + plan.grace + KILL_CONFIRMED,
  }, Process)
  local input = opts.stdin
  if plan.spec.stdin and input ~= nil and input ~= true and not (interactive and input == "pipe") then
    feed(self, input)
  elseif program.stdin then
    self.stdin = streams.new(program.stdin, "stdin")
  end
  self.handlers = make_handlers(self, opts)
  return self
end

--- Runs a command to its end: `box:exec` without the option check.
---@return moonsand.Result? result, string? message, string? code, table? detail
function M.exec(box, call, command, opts, level)
  local self, message, code, detail = launch(box, call, command, opts, false, (level or 2) + 1)
  if not self then
    return nil, message, code, detail
  end
  local limits = bounded(self, loop.limits { cancel = opts.cancel })
  local ok, failure, why, more = pcall(await_end, self, limits, self.handlers ~= nil)
  if not ok then -- a callback raised, or a wait was impossible here
    put_down(self, "close")
    error(failure, 0)
  elseif failure then
    self.cancel_message, self.cancel_cause = failure, more and more.cause
    put_down(self, why == "cancelled" and "cancel" or "timeout")
  end
  if self.raised and self.raised.error ~= nil then
    error(self.raised.error, 0)
  end
  if opts.on_exit then
    local o = self.outcome
    opts.on_exit(o.result, o.message, o.code, o.detail)
  end
  return answer(self, self.check)
end

--- Callbacks of a program that was started run in a coroutine of their own.
local function serve_callbacks(self, opts)
  if not self.handlers and not opts.on_exit then
    return
  end
  self.served = loop.signal()
  loop.spawn(function()
    local ok, failure = pcall(await_end, self, bounded(self, loop.limits(nil, true)),
      self.handlers ~= nil)
    if not ok then
      abort(self, { error = failure })
      put_down(self, "close")
    end
    local o = self.outcome
    if ok and o and opts.on_exit then
      ok, failure = pcall(opts.on_exit, o.result, o.message, o.code, o.detail)
    end
    if not ok and o then
      o.error = failure
    elseif not ok then
      keep(self)
      self.outcome.error = failure
    end
    self.done = true
    self.served:wake()
  end)
end

--- Starts a command: `box:start` without the option check.
---@return moonsand.Process? process, string? message, string? code, table? detail
function M.start(box, call, command, opts, level)
  local self, message, code, detail = launch(box, call, command, opts, true, (level or 2) + 1)
  if not self then
    return nil, message, code, detail
  end
  local limits = loop.limits(opts)
  local ok
  ok, message, code, detail = self.program:started(limits)
  if not ok then
    if code == "cancelled" or code == "timeout" then
      kill(self, "cancel")
      detail.started = false
    end
    return nil, message, code, detail
  end
  self.pid = self.program:pid()
  for _, name in ipairs { "stdout", "stderr" } do
    if self.program[name] and not (self.handlers and self.handlers[name]) then
      self[name] = streams.new(self.program[name], name, self.plan.max_output)
    end
  end
  if opts.cancel then
    self.uncancel = opts.cancel:on_cancel(function(reason)
      if not self.outcome then
        self.cancel_message, self.cancel_cause = (loop.cancelled(reason)), reason
        kill(self, "cancel")
      end
    end)
  end
  serve_callbacks(self, opts)
  return self
end

-- ---------------------------------------------------------------- methods

local function check_open(self, call)
  if self.closed then
    errors.raise(3, "%s: the process was closed", call)
  end
end

--- Waits for the end: the Result, the same each time. A timeout bounds the wait only.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Result? result, string? message, string? code, table? detail
function Process:wait(opts)
  opts = options.check("process:wait", opts, WAIT)
  check_open(self, "process:wait")
  local limits, own = bounded(self, loop.limits(opts))
  local message, code, detail
  if self.served then -- the callbacks' coroutine does the waiting
    while not self.done and not message do
      message, code, detail = loop.wait(limits, self.served)
    end
  elseif not self.outcome then
    collect(self)
    message, code, detail = await_end(self, limits, false)
  end
  if message and own and code == "timeout" then
    put_down(self, "timeout")
  elseif message then
    detail.id = self.id
    return errors.fail(code, message, detail)
  end
  if self.raised and self.raised.error ~= nil then
    error(self.raised.error, 0)
  end
  return answer(self, self.check)
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
        return errors.fail("too_large", name .. ": no such line in what may be kept", { id = self.id })
      end
      open = open or next_from == "again"
    end
    local exit, gone = self.program:ended()
    if not open or exit or gone then
      return errors.fail("closed", "the program ended without such a line", { id = self.id })
    end
    local message, code, detail = loop.wait(limits, self.program:waitable(),
      self.program.stdout or self.program.stderr, self.program.stderr)
    if message then
      return errors.fail(code, message, detail)
    end
  end
end

--- Both streams as they arrive: `for stream, data in p:events() do`.
---@return moonsand.Iterator
function Process:events(opts)
  opts = options.check("process:events", opts, WAIT)
  check_open(self, "process:events")
  local turn = { "stdout", "stderr" }
  return streams.iterator(function(each)
    local limits = loop.limits(each or opts)
    while true do
      local waiting = {}
      for _, name in ipairs(turn) do
        local stream = self[name]
        if stream and not stream.closed then
          stream.owner = coroutine.running() or "main"
          local data, why = stream.raw:take("chunk", 0)
          if data then
            turn = name == "stdout" and { "stderr", "stdout" } or { "stdout", "stderr" }
            return name, data
          elseif why == "again" then
            waiting[#waiting + 1] = stream.raw
          elseif why ~= "eof" then
            return errors.errno(why, name)
          end
        end
      end
      if #waiting == 0 or self.program:ended() then
        return nil
      end
      local message, code, detail =
        loop.wait(limits, self.program:waitable(), waiting[1], waiting[2])
      if message then
        return errors.fail(code, message, detail)
      end
    end
  end)
end

--- One signal to the tree; TERM if nil.
---@param signal? string|integer
---@return true|nil ok, string? message, string? code, table? detail
function Process:kill(signal)
  check_open(self, "process:kill")
  local number, message, code, detail = signals.number(signal or "TERM")
  if not number then
    return nil, message, code, detail
  end
  if not self:is_running() or not self.program:signal(number, true) then
    return errors.fail("gone", "the program is over", { id = self.id })
  end
  return true
end

--- TERM, then KILL after `grace` seconds (5). Waits for the end: the Result.
---@param opts? { grace?: number, timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Result? result, string? message, string? code, table? detail
function Process:stop(opts)
  opts = options.check("process:stop", opts, STOP)
  check_open(self, "process:stop")
  if self:is_running() then
    self.program:signal(signals.numbers.TERM, true)
  end
  local result, message, code, detail =
    self:wait { timeout = opts.grace or KILL_CONFIRMED, cancel = opts.cancel }
  if result or code ~= "timeout" or not self:is_running() then
    return result, message, code, detail
  end
  self.program:signal(signals.numbers.KILL, true)
  return self:wait { timeout = opts.timeout or KILL_CONFIRMED, cancel = opts.cancel }
end

--- Whether it (or something that it left and that is not dead yet) still runs.
---@return boolean
function Process:is_running()
  if self.outcome or self.closed then
    return false
  end
  local exit, message = self.program:ended()
  return not exit and not message
end

--- What is known of it.
---@return { id: string, pid: integer?, command: string|string[], running: boolean, exit_code: integer? }
function Process:info()
  local result = self.outcome and self.outcome.result
  return {
    id = self.id,
    pid = self.pid,
    command = self.command,
    running = self:is_running(),
    exit_code = result and result.exit_code,
  }
end

--- KILL now, without waiting. Idempotent; waits in progress get `closed`.
function Process:close()
  if self.closed then
    return
  end
  if self:is_running() then
    kill(self, "close")
  end
  self.closed = true
  for _, name in ipairs { "stdin", "stdout", "stderr" } do
    if self[name] then
      self[name]:close()
    end
  end
end

Process.__close = Process.close

return M
