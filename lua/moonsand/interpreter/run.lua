--- One piece of code in an interpreter, from its start to its CodeResult. The driver's run goes on
--- in a coroutine of its own, so that a caller who is cancelled, or whose callback raises, can still
--- see it end. What comes from there is bounded, and counts only where it has its form.

local callbacks = require "moonsand.process.callbacks"
local code_results = require "moonsand.code.result"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local pipes = require "moonsand.providers.pipe"
local results = require "moonsand.result"
local tasks = require "moonsand.task"

local M = {}

--- How many displays may wait for `on_display`; then the interpreter waits.
local AHEAD = 16

--- What a value takes beside its text, about.
local OVERHEAD = 64

---@class moonsand.InterpreterRun
---@field out { stdout: moonsand.Pipe, stderr: moonsand.Pipe }
---@field handlers table<string, function[]>
---@field displays table[]
---@field over boolean the driver's run has returned
---@field told? table what it told of a run that ended
---@field failure? table else: the detail of why not
---@field abandoned? string why nobody waits for its end any more
---@field state_lost boolean its interpreter was started anew
---@field restart? { done: moonsand.Signal, answer: table? } somebody waits for that
---@field token moonsand.Token ends the driver's run
---@field news moonsand.Signal
local Run = {}
Run.__index = Run

-- ---------------------------------------------------------------- what the driver tells

--- How much room a value takes that came from inside.
local function size_of(value)
  local size = OVERHEAD
  if type(value) == "string" then
    size = size + #value
  elseif type(value) == "table" then
    for key, item in pairs(value) do
      size = size + size_of(key) + size_of(item)
    end
  end
  return size
end

--- Keeps a display while all of them take no more than may be kept; waits while the callback is
--- behind.
local function show(self, display)
  if type(display) ~= "table" or self.over then
    return
  end
  self.display_bytes = self.display_bytes + size_of(display)
  if self.display_bytes <= self.max then
    self.displays[#self.displays + 1] = display
  else
    self.dropped = self.dropped + 1
  end
  if self.on_display then
    self.shown[#self.shown + 1] = display
    self.news:wake()
  end
  while self.on_display and #self.shown >= AHEAD do
    if loop.wait(self.within, self.taken) then
      return
    end
  end
end

--- Takes what it wrote; waits while the callback is behind.
local function taking(self, name, note)
  local pipe = self.out[name]
  return function(data)
    if type(data) == "string" and data ~= "" and not self.over then
      note(data)
      self.news:wake() -- before `put` may wait
      pipe:put(data, self.within)
    end
  end
end

local function text_of(value)
  return type(value) == "string" and value or nil
end

--- The parts of what was told of the end that have their form.
local function read_told(told)
  local count, problem = told.execution_count, told.error
  return {
    text = text_of(told.text),
    execution_count = type(count) == "number" and options.integer(count) or nil,
    error = type(problem) == "table" and {
      name = text_of(problem.name) or "Error",
      message = text_of(problem.message) or "",
      traceback = text_of(problem.traceback) or "",
    } or nil,
    state_kept = told.state_kept ~= false,
  }
end

--- The driver's run has returned, or raised.
local function finish(self, fine, told, message, code, detail)
  if fine and type(told) == "table" then
    self.told = read_told(told)
  elseif fine and type(message) == "string" and type(code) == "string" then
    self.failure = select(4, errors.fail(code, message, detail))
  else
    self.failure = select(4, errors.fail("provider",
      "the interpreter did not say how the code ended",
      { started = true, cause = not fine and told or nil }))
  end
  self.over = true
  self.news:wake()
end

-- ---------------------------------------------------------------- waiting for it

--- Gives the callbacks a piece of what there is. They may wait, and raise.
local function pump(self)
  local moved = callbacks.pump(self.handlers, self.out)
  local display = self.on_display and table.remove(self.shown, 1)
  if display then
    self.taken:wake()
    self.on_display(display)
  end
  return moved or display ~= nil
end

--- Waits for its end. Answers nothing, or why the wait ended. While a callback waits more may come,
--- for ever, so the limits are looked at between two pieces.
---@param limits moonsand.Limits
---@return string? message, string? code, table? detail
function Run:await(limits)
  while not self.abandoned do
    local moved = pump(self)
    if self.over and not moved then
      callbacks.finish(self.handlers, self.out)
      return
    end
    local late = limits.deadline and loop.now() >= limits.deadline
      or limits.token and limits.token:cancelled()
    if not moved or late and not self.over then
      local message, code, detail = loop.wait(limits, self.news)
      if message then
        return message, code, detail
      end
    end
  end
end

--- No callback hears of it any more; what comes is kept.
function Run:deafen()
  self.handlers, self.on_display, self.shown = {}, nil, {}
  self.out.stdout:collect()
  self.out.stderr:collect()
  self.taken:wake()
end

--- Nobody waits for its end any more: whoever did gets `closed`.
---@param why string
function Run:abandon(why)
  self.abandoned = self.abandoned or why
  self.token:cancel(why)
  self.news:wake()
end

-- ---------------------------------------------------------------- what it left

--- The CodeResult of what it told, wrote and showed so far.
---@param reason? "timeout"|"cancel" why it did not come to its end
---@return moonsand.CodeResult
function Run:result(reason)
  local told = self.told or {}
  self:deafen()
  local r = results.new({ reason = reason, duration = loop.now() - self.began, pipes_held = false },
    self.out, {})
  if not r.timed_out then -- nothing exited: the interpreter lives on
    r.status, r.ok = "exited", told.error == nil and reason == nil
  end
  if self.dropped > 0 then
    r.truncated = r.truncated or {}
    r.truncated.displays = { at = #self.displays, dropped = self.dropped }
  end
  r.state_kept = told.state_kept == true and not self.state_lost
  return code_results.of_interpreter(r, told, self.displays, self.turns)
end

--- Starts code.
---@param inner table the driver's interpreter
---@param code string
---@param opts table on_stdout, on_stderr, on_line, on_display
---@param max integer bytes of a stream, and of all displays, that are kept
---@return moonsand.InterpreterRun
function M.start(inner, code, opts, max)
  local turns, note_stdout, note_stderr = code_results.note_order {}
  local token = tasks.token()
  local self = setmetatable({
    out = { stdout = pipes.new(max), stderr = pipes.new(max) },
    handlers = nil,
    turns = turns, -- of the streams
    max = max,
    displays = {},
    display_bytes = 0,
    dropped = 0, -- displays that were not kept
    on_display = opts.on_display,
    shown = {}, -- displays that it has not seen
    taken = loop.signal(), -- it has seen one
    news = loop.signal(),
    token = token,
    within = { token = token, shield = true }, -- the limits of the driver's run
    began = loop.now(),
    over = false,
    told = nil,
    failure = nil,
    abandoned = nil,
    state_lost = false,
    restart = nil,
  }, Run)
  self.handlers = callbacks.make({
    program = self.out,
    plan = { sinks = { stdout = "collect", stderr = "collect" } },
  }, opts) or {}
  local hear = {
    on_stdout = taking(self, "stdout", note_stdout),
    on_stderr = taking(self, "stderr", note_stderr),
    on_display = function(display)
      show(self, display)
    end,
  }
  loop.spawn(function()
    finish(self, pcall(inner.run, inner, code, hear, self.within))
  end)
  return self
end

return M
