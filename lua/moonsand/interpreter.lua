--- State that lives on between pieces of code: `box:interpreter`, over a driver's `interpreter`.
--- Here are its turns and its end; interpreter/run.lua is one piece of code.

local errors = require "moonsand.errors"
local languages = require "moonsand.languages"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local programs = require "moonsand.program"
local results = require "moonsand.result"
local runs = require "moonsand.interpreter.run"
local tasks = require "moonsand.task"

local unpack = table.unpack or unpack

local M = {}

--- How often code is interrupted that has to end, and how long, before its interpreter is started
--- anew; how long that may take.
local AGAIN, STOPPED, RESTARTED = 0.5, 4, 30

local OPEN = {
  cwd = "string", max_output = "number|string", check = "boolean", timeout = "number",
  cancel = "table",
}
local RUN = {
  timeout = "number", cancel = "table", check = "boolean", max_output = "number|string",
  on_stdout = "callable", on_stderr = "callable", on_line = "callable", on_display = "callable",
}
local WAIT = { timeout = "number", cancel = "table" }

---@class moonsand.Interpreter
---@field language string
---@field alive boolean it takes code
---@field private box moonsand.Sandbox
---@field private inner table the driver's
---@field private queue moonsand.Semaphore one run at a time
---@field private current? moonsand.InterpreterRun
---@field private closed false|"here"|"ended"
local Interpreter = {}
Interpreter.__name = "moonsand.Interpreter"

Interpreter.__index = function(self, key)
  if key == "alive" then
    return not self.closed and self.inner:alive()
  end
  return Interpreter[key]
end

Interpreter.__tostring = function(self)
  return ("moonsand.Interpreter (%s, %s, %s)"):format(self.language, self.box.id,
    self.alive and "alive" or "closed")
end

--- A failure of this sandbox's.
local function fail(self, message, code, detail)
  detail.provider = self.box.provider
  return nil, message, code, detail
end

local function fail_new(self, code, message, detail)
  return fail(self, select(2, errors.fail(code, message, detail)))
end

local function check_open(self, call)
  if self.closed == "here" then
    errors.raise(3, "%s: the interpreter was closed", call)
  end
end

local function has_ended(self)
  return fail_new(self, "closed", "the interpreter has ended", { started = false })
end

-- ---------------------------------------------------------------- turns

--- The coroutine whose turn it was is no more.
local function give_up(self)
  self:close()
  self.current = nil
  self.queue:release()
end

--- Calls fn when nothing else runs here.
local function in_turn(self, opts, fn, ...)
  local ok, message, code, detail = self.queue:acquire(opts)
  if not ok then
    detail.started = false
    return fail(self, message, code, detail)
  elseif not self.alive then
    self.queue:release()
    return has_ended(self)
  end
  local guard = loop.guard(give_up, self)
  local answer = { pcall(fn, self, ...) }
  loop.unguard(guard)
  self.current = nil
  self.queue:release()
  if not answer[1] then
    error(answer[2], 0)
  end
  return unpack(answer, 2, 5)
end

-- ---------------------------------------------------------------- running code

--- Another interpreter in the place of this one, whatever runs in it.
local function start_anew(self, limits)
  local ok, message, code, detail = self.inner:restart(limits)
  if ok then
    return true
  end
  self.closed = self.closed or "ended"
  return fail(self, message, code, detail)
end

--- Ends code that nobody waits for: it is interrupted until it is over, and where that does not
--- help its interpreter is started anew.
local function stop(self, run)
  run:deafen()
  local last = loop.now() + STOPPED
  while not run.over and not run.abandoned and loop.now() < last do
    self.inner:interrupt { deadline = last, shield = true }
    local again = { deadline = math.min(loop.now() + AGAIN, last), shield = true }
    while not run.over and not run.abandoned and not loop.wait(again, run.news) do end
  end
  if not run.over and not run.abandoned then
    run.state_lost = true
    run.token:cancel "stopped"
    start_anew(self, loop.limits({ timeout = RESTARTED }, true))
  end
end

--- Does what `restart` waits for.
local function answer_restart(self, restart)
  restart.answer = { start_anew(self, loop.limits({ timeout = RESTARTED }, true)) }
  restart.done:wake()
end

--- What a run left, and why the wait for it ended, as the caller is told.
local function outcome(self, run, message, code, detail)
  if run.abandoned then
    return fail_new(self, "closed", run.abandoned, { started = true, result = run:result "cancel" })
  elseif code == "timeout" then
    return run:result "timeout"
  elseif message then
    return fail_new(self, code, message,
      { started = true, result = run:result "cancel", cause = detail.cause })
  elseif run.failure then
    return fail(self, run.failure.message, run.failure.code, run.failure)
  end
  return run:result()
end

--- Runs code, in its turn.
local function perform(self, code, opts, max)
  local timeout, token = opts.timeout or self.timeout, opts.cancel
  if timeout == 0 then
    return fail_new(self, "timeout", "there was no time to start", { started = false })
  elseif token and token:cancelled() then
    local message, why, detail = loop.cancelled(token.reason)
    detail.started = false
    return fail(self, message, why, detail)
  end
  loop.demand()
  local run = runs.start(self.inner, code, opts, max)
  self.current = run
  local fine, message, why, detail =
    pcall(run.await, run, loop.limits { timeout = timeout, cancel = token })
  if not fine or message then
    stop(self, run)
  end
  if run.restart then
    answer_restart(self, run.restart)
  end
  if not fine then
    error(message, 0)
  end
  return outcome(self, run, message, why, detail)
end

--- Runs source text; what it defines is there for the next. Calls queue. Past its `timeout`, or
--- cancelled, it is interrupted; `state_kept` says whether the interpreter survived that.
---@param code string
---@param opts? table timeout, cancel, check, max_output, on_stdout, on_stderr, on_line, on_display
---@return moonsand.CodeResult? result, string? message, string? code, table? detail
function Interpreter:run(code, opts)
  opts = options.check("interpreter:run", opts, RUN)
  check_open(self, "interpreter:run")
  if type(code) ~= "string" then
    errors.raise(2, "interpreter:run: the code must be a string, got %s", type(code))
  end
  local max, message, why, detail =
    options.size("max_output", opts.max_output or self.max_output or programs.MAX_OUTPUT)
  if not max then
    return fail(self, message, why, detail)
  end
  local result
  result, message, why, detail =
    in_turn(self, { cancel = opts.cancel }, perform, code, opts, max)
  local check = opts.check
  if check == nil then
    check = self.check
  end
  if result and check and not result.ok then
    return fail(self, select(2, results.check(result)))
  end
  return result, message, why, detail
end

-- ---------------------------------------------------------------- the other calls

--- Interrupts what runs in it, as Ctrl-C would; its state stays. True when nothing does.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Interpreter:interrupt(opts)
  opts = options.check("interpreter:interrupt", opts, WAIT)
  check_open(self, "interpreter:interrupt")
  if not self.alive then
    return has_ended(self)
  elseif not self.current then
    return true
  end
  local ok, message, code, detail = self.inner:interrupt(loop.limits(opts))
  if not ok then
    return fail(self, message, code, detail)
  end
  return true
end

--- Waits until whoever runs code has started the interpreter anew.
local function await_restart(self, run, limits)
  run.restart = run.restart or { done = loop.signal(), answer = nil }
  run:abandon "the interpreter was restarted"
  while not run.restart.answer do
    local message, code, detail = loop.wait(limits, run.restart.done)
    if message then
      return fail(self, message, code, detail)
    elseif self.closed == "here" then
      return fail_new(self, "closed", "the interpreter was closed")
    end
  end
  return unpack(run.restart.answer, 1, 4)
end

--- Starts it anew, at once: what it knew is gone, and code that runs in it is `closed`.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Interpreter:restart(opts)
  opts = options.check("interpreter:restart", opts, WAIT)
  check_open(self, "interpreter:restart")
  if not self.alive then
    return has_ended(self)
  end
  local limits = loop.limits(opts)
  if self.current then
    return errors.outcome(await_restart(self, self.current, limits))
  end
  return errors.outcome(in_turn(self, opts, start_anew, limits))
end

--- What may stand at a place in the code, where the interpreter can say: each of `matches` may take
--- the place of `code:sub(from, to)`.
---@param code string
---@param cursor? integer bytes before it; all if nil
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return { matches: string[], from: integer, to: integer }? completions
---@return string? message, string? code, table? detail
function Interpreter:complete(code, cursor, opts)
  opts = options.check("interpreter:complete", opts, WAIT)
  check_open(self, "interpreter:complete")
  if type(code) ~= "string" then
    errors.raise(2, "interpreter:complete: the code must be a string, got %s", type(code))
  end
  cursor = cursor or #code
  if type(cursor) ~= "number" or cursor % 1 ~= 0 or cursor < 0 or cursor > #code then
    errors.raise(2, "interpreter:complete: the cursor must be a number from 0 to %d, got %s", #code,
      tostring(cursor))
  elseif not self.inner.complete then
    return fail_new(self, "unsupported",
      ("interpreter:complete is not supported by the provider '%s'"):format(self.box.provider))
  elseif not self.alive then
    return has_ended(self)
  end
  local found, message, why, detail = self.inner:complete(code, cursor, loop.limits(opts))
  if not found then
    return fail(self, message, why, detail)
  end
  return found
end

--- Ends it, at once. Idempotent; a call in progress gets `closed`.
function Interpreter:close()
  if self.closed == "here" then
    return
  end
  self.closed = "here"
  local run = self.current
  if run then
    run:abandon "the interpreter was closed"
    if run.restart then
      run.restart.done:wake()
    end
  end
  self.inner:close()
end

Interpreter.__close = Interpreter.close

-- ---------------------------------------------------------------- opening

--- Opens an interpreter of a language, where the provider has them.
---@param language? string "python" if nil
---@param opts? { cwd?: string, max_output?: number|string, check?: boolean, timeout?: number }
---@return moonsand.Interpreter? interpreter, string? message, string? code, table? detail
function M.interpreter(box, language, opts)
  opts = options.check("box:interpreter", opts, OPEN)
  box:check_open("box:interpreter", 2)
  if language ~= nil and type(language) ~= "string" then
    errors.raise(2, "box:interpreter: a language is a string, got %s", type(language))
  end
  local driver, defaults = box.core.driver, box.defaults
  if not driver.interpreter then
    return errors.fail("unsupported",
      ("box:interpreter is not supported by the provider '%s'"):format(box.provider),
      { provider = box.provider, started = false })
  end
  local known = languages.by_name[language or "python"]
  language = known and known.name or language
  local check = opts.check
  if check == nil then
    check = defaults.check
  end
  local self = setmetatable({
    box = box,
    inner = nil,
    language = language,
    queue = tasks.semaphore(1),
    max_output = opts.max_output or defaults.max_output,
    timeout = defaults.timeout, -- of code
    check = check,
    current = nil, -- the run whose turn it is
    closed = false, -- "here" by `close`; "ended" by itself
  }, Interpreter)
  local cwd, message, code, detail = paths.resolve(box, opts.cwd or ".")
  if cwd then
    self.inner, message, code, detail =
      driver:interpreter(language, { cwd = cwd }, loop.limits(opts))
  end
  if not self.inner then
    return fail(self, message, code, detail)
  end
  box.core.interpreters[self] = true
  return self
end

return M
