--- One shell in which `cd`, `export`, functions and options live on: `box:session`. Written wholly
--- against `start`: what the shell is told, and how its answers are read, is in session/frame.lua.
--- Where a service has sessions of its own, its driver's `session` is used.

local callbacks = require "moonsand.process.callbacks"
local errors = require "moonsand.errors"
local frame = require "moonsand.session.frame"
local loop = require "moonsand.loop"
local native = require "moonsand.session.native"
local options = require "moonsand.options"
local pipes = require "moonsand.providers.pipe"
local processes = require "moonsand.process"
local programs = require "moonsand.program"
local results = require "moonsand.result"
local shell = require "moonsand.portable.shell"
local signals = require "moonsand.signals"
local tasks = require "moonsand.task"
local texts = require "moonsand.text"

local M = {}

--- How long an interrupted command may take to end before its shell is ended with it; how long one
--- waits, at first, before it is interrupted again; when the question for its end is asked again,
--- first and at most.
local STOPPED, PASS = 3, 0.02
local AGAIN, AGAIN_MOST = 0.02, 10

--- Ticks of `/proc` in a second: the same on every Linux that programs see.
local TICKS = 100

--- How often a command is given to a shell that has dropped it unread: after an interrupt, dash
--- drops what it had read ahead. It has not begun then.
local ATTEMPTS = 5

--- How long a shell may take to say hello, if the caller does not say.
local HELLO = 30

--- What is taken without a wait: then limits are looked at, and others have a turn. What a shell may
--- say before it has said who it is.
local BURST, MAX_HELLO = 1024 * 1024, 64 * 1024

local OPEN = {
  cwd = "string", env = "table", env_file = "string", clear_env = "boolean",
  shell = "string|table", user = "string|number", umask = "string", limits = "table",
  max_output = "number|string", check = "boolean", timeout = "number", cancel = "table",
}
local EXEC = {
  stdin = "string|boolean", timeout = "number", grace = "number", cancel = "table",
  check = "boolean", max_output = "number|string", on_stdout = "callable", on_stderr = "callable",
  on_line = "callable", on_exit = "callable",
}
local WAIT = { timeout = "number", cancel = "table" }

---@class moonsand.Session
---@field alive boolean it takes commands
---@field private box moonsand.Sandbox
---@field private process moonsand.Process the shell
---@field private queue moonsand.Semaphore one command at a time
---@field private pid integer the shell's, inside
---@field private bash boolean
---@field private jobs string[] in the background, as the shell knew when it was last asked
local Session = {}
Session.__name = "moonsand.Session"

Session.__index = function(self, key)
  if key == "alive" then
    return not self.closed and self.process:is_running()
  end
  return Session[key]
end

Session.__tostring = function(self)
  return ("moonsand.Session (%s, %s)"):format(self.box.id, self.alive and "alive" or "closed")
end

local function fail(self, code, message, detail)
  detail = detail or {}
  detail.provider = self.box.provider
  return errors.fail(code, message, detail)
end

-- ---------------------------------------------------------------- one command

---@class moonsand.Run one command under way
---@field session moonsand.Session
---@field token string
---@field readers table<string, moonsand.FrameReader>
---@field out table<string, moonsand.Pipe> what it wrote
---@field handlers? table<string, function[]>
---@field taken integer bytes since the last wait
---@field began number

local NAMES = { "stdout", "stderr" }

--- Takes what is there from both pipes, but no more than BURST of each: more may come for ever. Once
--- the time is over, no more than one piece. True: there was something.
---@param run moonsand.Run
---@param over? number
local function drain(run, over)
  local program, moved = run.session.process.program, 0
  for _, name in ipairs(NAMES) do
    local reader, emit, most = run.readers[name], run.emit[name], moved + BURST
    while moved < most do
      local data = program[name]:take("chunk", 0)
      if not data then
        break
      end
      moved = moved + #data
      reader:feed(data, emit)
      if run.handlers then
        callbacks.pump(run.handlers, run.out)
      end
      if over and loop.now() >= over then
        break
      end
    end
  end
  run.taken = run.taken + moved
  return moved > 0
end

--- Ends the shell, and with it the session. What was kept back is output.
local function end_shell(run)
  drain(run)
  for _, name in ipairs(NAMES) do
    run.readers[name]:finish(run.emit[name])
  end
  run.session.closed = run.session.closed or "ended"
  run.session.process:close()
end

--- How it ended: exit; nil when that is not known yet; or a failure.
local function ended(run)
  local stdout, stderr = run.readers.stdout, run.readers.stderr
  if stdout:done() then
    local status, jobs = stdout:status() -- or whether it can never be told
    if not status and jobs then
      end_shell(run)
      return fail(run.session, "protocol", "the shell's answer makes no sense", { started = true })
    elseif status and stderr:done() then
      if stdout.lost then
        return fail(run.session, "lost", "the shell did not take the command",
          { started = false, retry = true })
      end
      run.session.jobs = jobs
      return { exit_code = status }
    end
  end
  local exit, message, code, detail = run.session.process.program:ended()
  if exit or message then
    drain(run)
    for _, name in ipairs(NAMES) do
      run.readers[name]:finish(run.emit[name])
    end
    run.session.closed = run.session.closed or "ended"
  end
  return exit, message, code, detail
end

--- Asks the shell to say when it is through.
local function ask_again(run)
  run.session.process.program.stdin:write(frame.ending(run.token))
  run.pause = math.min(run.pause * 2, AGAIN_MOST)
  run.again_at = loop.now() + run.pause
end

--- Waits for the end of a command. Answers the exit, or nil and why the wait ended.
local function await_end(run, limits)
  local program = run.session.process.program
  while true do
    local exit, message, code, detail = ended(run)
    if exit or message then
      return exit, message, code, detail
    end
    local over = loop.now() + loop.SLICE
    if not drain(run, over) then
      local deadline = math.min(limits.deadline or math.huge, run.again_at)
      run.taken = 0
      message, code, detail = loop.wait({ deadline = deadline, token = limits.token,
        shield = limits.shield }, program.stdout, program.stderr, program:waitable())
    elseif run.taken >= BURST or loop.now() >= over then
      run.taken = 0
      message, code, detail = loop.turn(limits)
    end
    if message and code ~= "timeout" then
      return nil, message, code, detail, true
    end
    local now = loop.now()
    if limits.deadline and now >= limits.deadline then
      drain(run) -- it may have come in time
      exit, message, code, detail = ended(run)
      if exit or message then
        return exit, message, code, detail
      end
      return nil, "timed out", "timeout", {}, true
    elseif now >= run.again_at then
      ask_again(run)
    end
  end
end

--- Interrupts the shell and what it runs, again and again, until the command is over or so many
--- seconds have passed. TERM is sent once, and then has all of them.
local function press(run, signal, seconds)
  local self, once = run.session, signal == "TERM"
  drain(run)
  local over = ended(run)
  if over then
    return over
  end
  local pause, last = once and seconds or PASS, once and math.huge or loop.now() + seconds
  local function at_most(wanted) -- of what is left
    local left = math.max(last - loop.now(), PASS)
    return loop.limits({ timeout = math.min(wanted, left) }, true)
  end
  repeat
    local began = math.floor((self.uptime + run.began - self.told_at) * TICKS)
    local args = { ("%d"):format(self.pid), signal, ("%d"):format(began) }
    for _, pid in ipairs(self.jobs) do
      args[#args + 1] = pid
    end
    shell.run(self.box.core.driver, frame.STOP, args, { what = "interrupt" }, at_most(STOPPED))
    ask_again(run) -- now: the wait may be over before it has looked at anything else
    local exit, message = await_end(run, at_most(pause))
    if exit or message and self.closed then
      return exit
    end
    pause = pause * 2
  until once or loop.now() >= last
end

--- Ends a command, with the shell if it must be. Its output so far is kept.
local function stop(run, grace)
  run.handlers = nil
  local exit = grace and grace > 0 and press(run, "TERM", grace)
  exit = exit or press(run, "KILL", STOPPED)
  if not exit then
    end_shell(run)
    return { signal_number = signals.numbers.KILL }
  end
  return exit
end

local function new_run(self, opts, max_output)
  local token = frame.token()
  local run = {
    session = self,
    token = token,
    readers = { stdout = frame.reader(token), stderr = frame.reader(token) },
    out = { stdout = pipes.new(max_output), stderr = pipes.new(max_output) },
    emit = {},
    taken = 0,
    began = loop.now(),
    pause = AGAIN,
    again_at = loop.now() + AGAIN,
  }
  for _, name in ipairs(NAMES) do
    local pipe = run.out[name]
    run.emit[name] = function(data)
      pipe:push(data)
    end
  end
  run.handlers = callbacks.make({
    program = run.out,
    plan = { sinks = { stdout = "collect", stderr = "collect" } },
  }, opts)
  return run
end

--- The Result of how it ended, and what it wrote.
local function result_of(run, exit, reason)
  if reason then
    exit = { reason = reason, exit_code = reason ~= "timeout" and exit.exit_code or nil,
      signal_number = reason ~= "timeout" and exit.signal_number or nil }
  end
  for _, name in ipairs(NAMES) do
    run.out[name]:collect()
  end
  exit.duration = loop.now() - run.began
  exit.pid, exit.pipes_held = run.session.pid, false
  return results.new(exit, run.out, {})
end

--- A file inside with what the command reads.
local function put_input(self, text, limits)
  local path = "/tmp/.moonsand-" .. frame.token()
  local core = self.box.core
  local write = core.driver.files and core.driver.files.write
    or require("moonsand.portable").files.write
  local ok, message, code, detail =
    write(core.driver, path, text, { mode = "600", parents = false }, limits)
  if not ok then
    return nil, message, code, detail
  end
  return path
end

local function remove_input(self, path)
  if path then
    self.box.files:remove(path, { timeout = STOPPED })
  end
end

--- Sends a command and waits for it: the Result, or a failure.
local function perform(self, command, opts, limits, max_output)
  local run = new_run(self, opts, max_output)
  local stdin, path = opts.stdin, nil
  local message, code, detail
  if type(stdin) == "string" and stdin ~= "" then
    path, message, code, detail = put_input(self, stdin, limits)
    if not path then
      return nil, message, code, detail
    end
  end
  local lines = frame.command(run.token, command, path, self.bash) .. frame.ending(run.token)
  local written, failure, why, more = self.process.stdin:write(lines)
  if not written and why ~= "closed" then
    return nil, failure, why, more
  end
  local guard = loop.guard(self.give_up, self)
  local fine, exit, cut
  fine, exit, message, code, detail, cut = pcall(await_end, run, limits)
  loop.unguard(guard)
  local reason
  if not fine then
    stop(run)
    remove_input(self, path)
    error(exit, 0)
  elseif cut then
    reason = code == "timeout" and "timeout" or "cancel"
    exit = stop(run, opts.grace)
  elseif not exit then
    remove_input(self, path)
    return nil, message, code, detail
  end
  if run.handlers then
    callbacks.finish(run.handlers, run.out)
  end
  remove_input(self, path)
  local result = result_of(run, exit, reason)
  if reason == "cancel" then
    return fail(self, code, message, { started = true, result = result, cause = detail.cause })
  end
  return result
end

local function check_command(call, command, level)
  if type(command) == "table" then
    local argv, message, code, detail = programs.argv(call, command, nil, level + 1)
    if not argv then
      return nil, message, code, detail
    end
    return require("moonsand.providers.command").text { argv = argv }:gsub("^exec ", "")
  elseif type(command) ~= "string" then
    errors.raise(level + 1, "%s: a command is a string or a list of words, got %s", call,
      type(command))
  elseif command:find "%z" then
    return errors.fail("invalid", "the command holds a NUL", { started = false })
  end
  return command
end

local function read_max(self, opts)
  return options.size("max_output",
    opts.max_output or self.max_output or programs.MAX_OUTPUT)
end

local function closed(self)
  return fail(self, "closed", "the session has ended", { started = false })
end

--- In its turn, a command.
local function run_queued(self, command, opts)
  local max, message, code, detail = read_max(self, opts)
  if not max then
    return nil, message, code, detail
  elseif not self.alive then
    return closed(self)
  end
  local ok
  ok, message, code, detail = self.queue:acquire { cancel = opts.cancel }
  if not ok then
    detail.started = false
    return nil, message, code, detail
  elseif not self.alive then
    self.queue:release()
    return closed(self)
  end
  local limits = loop.limits { timeout = opts.timeout or self.timeout, cancel = opts.cancel }
  local fine, result
  for _ = 1, ATTEMPTS do
    fine, result, message, code, detail = pcall(perform, self, command, opts, limits, max)
    if not fine or result or not detail.retry then
      break
    end
  end
  self.queue:release()
  if not fine then
    error(result, 0)
  end
  return result, message, code, detail
end

--- Runs a command in the shell and waits for its end: a Result, the streams apart. Calls queue. A
--- list of words is quoted. `timeout` bounds the command, which is killed with what it started; the
--- shell stays.
---@param command string|string[]
---@param opts? table stdin (a string), timeout, grace, cancel, check, max_output, on_stdout, …
---@return moonsand.Result? result, string? message, string? code, table? detail
function Session:exec(command, opts)
  opts = options.check("session:exec", opts, EXEC)
  if opts.stdin == true then
    errors.raise(2, "session:exec: stdin must be a string or false")
  end
  local text, message, code, detail = check_command("session:exec", command, 2)
  if not text then
    return nil, message, code, detail
  elseif self.closed == "here" then
    errors.raise(2, "session:exec: the session was closed")
  end
  local result
  result, message, code, detail = run_queued(self, text, opts)
  if opts.on_exit then
    opts.on_exit(result, message, code, detail)
  end
  local check = opts.check == nil and self.check or opts.check
  if result and check and opts.check ~= false then
    result, message, code, detail = results.check(result)
  end
  return result, message, code, detail
end

--- What a command of our own says.
local function answer(self, command, opts)
  local result, message, code, detail = run_queued(self, command, opts)
  if not result then
    return nil, message, code, detail
  elseif not result.ok then
    return fail(self, "provider", "the shell did not answer: " .. tostring(result),
      { result = result })
  end
  return result.stdout
end

--- The shell's working directory.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return string? path, string? message, string? code, table? detail
function Session:cwd(opts)
  opts = options.check("session:cwd", opts, WAIT)
  local text, message, code, detail = answer(self, "\\command pwd -P", opts)
  if not text then
    return nil, message, code, detail
  end
  return (text:gsub("\n$", ""))
end

--- What the shell exports: one variable, or all.
---@param name? string
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return string|table<string, string>|nil value, string? message, string? code, table? detail
function Session:getenv(name, opts)
  if name ~= nil and type(name) ~= "string" then
    errors.raise(2, "session:getenv: names of variables are strings, got %s", type(name))
  end
  opts = options.check("session:getenv", opts, WAIT)
  local text, message, code, detail = answer(self, "\\command cat /proc/self/environ", opts)
  if not text then
    return nil, message, code, detail
  end
  local variables = texts.variables(text)
  variables._ = nil -- bash's, of that very command
  if name then
    return variables[name]
  end
  return variables
end

--- Ends the shell and all that was started in it, at once. Idempotent; a call in progress gets
--- `closed`.
function Session:close()
  if self.closed ~= "here" then
    self.closed = "here"
    self.process:close()
  end
end

Session.__close = Session.close
Session.give_up = Session.close

-- ---------------------------------------------------------------- opening

--- The words that start the shell as an interactive one, which reads what is written to it.
local function shell_words(given)
  if type(given) == "string" or given == nil then
    given = { given or "/bin/sh" }
  end
  local words = {}
  for i, word in ipairs(given) do
    words[i] = word
  end
  if #words > 1 and words[#words]:find "^%-%a*c$" then -- as in { "bash", "-lc" }
    words[#words] = words[#words]:gsub("c$", "")
    words[#words] = words[#words] ~= "-" and words[#words] or nil
  end
  if words[1]:match "[^/]*$" == "bash" then
    table.insert(words, 2, "--norc")
  end
  words[#words + 1] = "-i"
  return words
end

--- Waits until the shell says who it is.
local function await_hello(self, limits)
  local token, said, program = frame.token(), "", self.process.program
  local ok, message, code, detail = self.process.stdin:write(frame.hello(token))
  while ok do
    said = said .. (program.stdout:take("chunk", 0) or "")
    self.pid, self.uptime, self.bash = frame.who(said, token)
    if self.pid then
      self.told_at = loop.now()
      return true
    elseif program:ended() then
      code = "closed"
      break
    elseif #said > MAX_HELLO then
      return fail(self, "protocol", "the shell says anything but who it is")
    end
    message, code, detail = loop.wait(limits, program.stdout, program:waitable())
    ok = not message
  end
  if code == "closed" then
    return fail(self, "unavailable", "the shell ended before it took a command",
      { started = false })
  end
  return fail(self, code, "the shell did not answer: " .. message, detail)
end

--- Opens a session: a shell that lives until it is closed, or a command ends it.
---@param opts? table cwd, env, env_file, clear_env, shell, user, umask, limits, max_output, …
---@return moonsand.Session? session, string? message, string? code, table? detail
function M.session(box, opts)
  opts = options.check("box:session", opts, OPEN)
  box:check_open("box:session", 2)
  if box.core.driver.session then
    return errors.outcome(native.open(box, opts))
  end
  local limits = loop.limits { timeout = opts.timeout or HELLO, cancel = opts.cancel }
  local start, own = {}, box:view {}
  local defaults = own.defaults
  local timeout, check = defaults.timeout, defaults.check
  defaults.timeout, defaults.check = nil, nil -- they are for commands, not for the shell
  for _, name in ipairs { "cwd", "env", "env_file", "clear_env", "user", "umask", "limits" } do
    start[name] = opts[name]
  end
  local words = shell_words(opts.shell or defaults.shell)
  local process, message, code, detail = processes.start(own, "box:session", words, start, 2)
  if not process then
    return nil, message, code, detail
  end
  local self = setmetatable({
    box = box,
    process = process,
    queue = tasks.semaphore(1),
    max_output = opts.max_output or defaults.max_output,
    check = opts.check == nil and check or opts.check,
    timeout = timeout,
    pid = nil,
    uptime = nil, -- of its machine, in seconds, before `told_at` here
    told_at = nil,
    bash = false,
    jobs = {},
    closed = false,
  }, Session)
  local ok
  ok, message, code, detail = await_hello(self, limits)
  if not ok then
    self:close()
    return nil, message, code, detail
  end
  return self
end

return M
