--- Terminals: what `pty` means, `box:terminal`, `p:resize`, and `p:interact`, which ties a program's
--- terminal to the caller's own.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local planning = require "moonsand.program"
local processes = require "moonsand.process"
local streams = require "moonsand.stream"

local M = {}

local WAIT = { timeout = "number", cancel = "table" }

--- How often the caller's terminal is asked how large it is: a signal handler would be the host's.
local LOOK = 0.1

--- How long answers of the caller's terminal to what a program asked it are awaited after the
--- program's end, so that they are not taken for something typed.
local LATE = 0.05

-- ---------------------------------------------------------------- starting

local options_of_terminal = { cmd = "string|table" }
for name, types in pairs(planning.start_options) do
  options_of_terminal[name] = types
end

--- Bash where there is one, for people edit what they type.
local ANY_SHELL = { "/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh" }

--- The command of a shell that is typed into: a list of words without the -c of scripts.
local function shell_command(shell)
  if shell == nil then
    return ANY_SHELL
  elseif type(shell) == "string" then
    return { shell }
  end
  local words = {}
  for _, word in ipairs(shell) do
    if word == "-c" then
      break
    end
    words[#words + 1] = word
  end
  return words
end

--- Starts a shell, or `cmd`, in a terminal: `box:start` with `pty`.
---@param opts? table those of box:start, and cmd
---@return moonsand.Process? process, string? message, string? code, table? detail
function M.terminal(box, opts)
  opts = options.check("box:terminal", opts, options_of_terminal)
  box:check_open("box:terminal", 2)
  if opts.pty == false then
    errors.raise(2, "box:terminal: pty is true or { cols, rows }")
  end
  local wanted = { pty = true }
  for name, value in pairs(opts) do
    wanted[name] = value
  end
  wanted.cmd = nil
  local command = opts.cmd or shell_command(opts.shell or box.defaults.shell)
  return errors.outcome(processes.start(box, "box:terminal", command, wanted, 2))
end

-- ---------------------------------------------------------------- a terminal of a program

local function fail(process, code, message, detail)
  detail = detail or {}
  detail.id, detail.provider = process.id, process.box.provider
  return errors.fail(code, message, detail)
end

local function no_terminal(process, call)
  return fail(process, "unsupported", call .. ": the program has no terminal (start it with pty)")
end

--- Changes the size; the program gets a SIGWINCH.
---@param process moonsand.Process
---@param cols integer
---@param rows integer
---@return true|nil ok, string? message, string? code, table? detail
function M.resize(process, cols, rows)
  planning.check_size("process:resize", { cols = cols, rows = rows }, 3)
  local program = process.program
  if not process.plan.spec.pty then
    return no_terminal(process, "process:resize")
  elseif not process:is_running() then
    return fail(process, "gone", "the program is over")
  elseif not program.resize then
    return fail(process, "unsupported", "the size of a terminal cannot be changed by this provider")
  elseif not program:resize(cols, rows) then
    return fail(process, "closed", "the terminal was closed")
  end
  return true
end

-- ---------------------------------------------------------------- the caller's own

--- Bytes on their way from one end to the other: at most one piece, so that neither side runs ahead.
local function move(way)
  if not way.data then
    local data, why = way.take(way.source)
    if not data then
      way.over = why ~= "again"
      return false
    end
    way.data, way.from = data, 1
  end
  local count, why = way.target:write(way.data, way.from)
  if count then
    way.from = way.from + count
  end
  if way.from > #way.data or not count and why ~= "again" then
    way.data = nil -- written, or nobody is there to read it
  end
  return count ~= nil
end

local function take_typed(screen)
  return screen:take("chunk", 0)
end

local function take_shown(stdout)
  return stdout:try(5)
end

--- Passes the size on when it has changed.
local function follow_size(self)
  local cols, rows = self.terminal:size()
  if cols and (cols ~= self.cols or rows ~= self.rows) then
    self.cols, self.rows = cols, rows
    if self.program.resize then
      self.program:resize(cols, rows)
    end
  end
end

--- Waits for news of either side, but no longer than the size may go unseen. Answers nothing, or
--- the failure of the wait.
local function await_news(self, limits)
  local look = loop.now() + LOOK
  local message, code, detail = loop.wait({
    deadline = math.min(look, limits.deadline or look),
    token = limits.token,
    shield = limits.shield,
  }, self.program:waitable(), self.screen, self.program.stdin, self.program.stdout)
  if message and (code ~= "timeout" or limits.deadline and loop.now() >= limits.deadline) then
    return message, code, detail
  end
end

--- Lets what is typed in and what is shown out until the program is over and all is shown. Answers
--- nothing, or a failure.
local function converse(self, limits)
  while true do
    follow_size(self)
    local exit, gone = self.program:ended()
    local typed, shown = move(self.typed), move(self.shown)
    if self.typed.over then
      return "the terminal was hung up", "closed", {}
    elseif (exit or gone) and not self.shown.data then
      return
    elseif not typed and not shown then
      local message, code, detail = await_news(self, limits)
      if message then
        return message, code, detail
      end
    end
  end
end

local function discard_answers(self)
  local last = loop.now() + LATE
  repeat
    take_typed(self.screen)
  until loop.wait({ deadline = last, shield = true }, self.screen)
end

local function let_go(self)
  self.terminal:close()
  self.screen:close()
end

--- The caller's terminal, in raw mode.
local function seize(process)
  local reactor, message, code, detail = loop.reactor()
  if not reactor then
    return nil, message, code, detail
  end
  local terminal, screen = core.terminal(reactor)
  if not terminal then
    return errors.fail("unavailable", "process:interact: this process has no terminal", {
      cause = core.strerror(screen),
      fix = "run it in a terminal, or read and write p.stdout and p.stdin",
    })
  end
  local ok, errno = terminal:raw()
  if not ok then
    screen:close()
    terminal:close()
    return errors.fail("unavailable", "process:interact: the terminal cannot be used", {
      cause = errno == core.errno.EAGAIN and "this process is in the background"
        or core.strerror(errno),
      fix = "bring it to the foreground",
    })
  end
  screen:watch()
  local program = process.program
  return {
    terminal = terminal,
    screen = screen,
    program = program,
    typed = { source = screen, take = take_typed, target = program.stdin },
    shown = { source = process.stdout, take = take_shown, target = screen },
  }
end

--- Ties the program's terminal to the caller's own, which is in raw mode meanwhile and as it was
--- afterwards in any case. Waits for the program's end: its Result.
---@param process moonsand.Process
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Result? result, string? message, string? code, table? detail
function M.interact(process, opts)
  opts = options.check("process:interact", opts, WAIT, 3)
  if not process.plan.spec.pty then
    return no_terminal(process, "process:interact")
  end
  for _, name in ipairs { "stdin", "stdout" } do
    if not process[name] or process[name].closed then
      errors.raise(3, "process:interact: %s is closed, or is somebody else's", name)
    end
  end
  local self, message, code, detail = seize(process)
  if not self then
    return fail(process, code, message, detail)
  end
  local guard = loop.guard(let_go, self)
  local ok
  ok, message, code, detail = pcall(converse, self, loop.limits(opts))
  if ok and not message then
    ok, message = pcall(discard_answers, self)
  end
  loop.unguard(guard)
  let_go(self)
  streams.release(process.stdout, coroutine.running() or "main")
  if not ok then
    error(message, 0)
  elseif message then
    return fail(process, code, message, detail)
  end
  return process:wait(opts)
end

return M
