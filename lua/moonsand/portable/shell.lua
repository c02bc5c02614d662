--- Runs a small POSIX script inside a sandbox, for what its provider cannot do. Names go in as
--- arguments, data as stdin: nothing is ever put into the text of a script.

local environment = require "moonsand.environment"
local errors = require "moonsand.errors"
local feed = require "moonsand.files.feed"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local signals = require "moonsand.signals"
local texts = require "moonsand.text"

local M = {}

--- What a script may say at most; how long it may take to clean up, and to die.
local MAX = 64 * 1024 * 1024
local GRACE, KILLED = 0.5, 5

--- After so many bytes without a wait limits are looked at, and others have a turn.
local BURST = 1024 * 1024

-- ---------------------------------------------------------------- why a command failed

--- What the C library calls an error, in the C locale: glibc's and musl's words, in small letters.
local CODES = {
  ["no such file or directory"] = "not_found",
  ["not found"] = "not_found",
  ["no such file"] = "not_found", -- dash's and busybox's own words
  ["nonexistent directory"] = "not_found",
  ["directory nonexistent"] = "not_found",
  ["permission denied"] = "permission_denied",
  ["operation not permitted"] = "permission_denied",
  ["file exists"] = "exists",
  ["not a directory"] = "not_a_directory",
  ["is a directory"] = "is_a_directory",
  ["directory not empty"] = "not_empty",
  ["read-only file system"] = "read_only",
  ["too many levels of symbolic links"] = "loop",
  ["symbolic link loop"] = "loop",
  ["device or resource busy"] = "busy",
  ["resource busy"] = "busy",
  ["text file busy"] = "busy",
  ["no space left on device"] = "no_space",
  ["disk quota exceeded"] = "no_space",
  ["file too large"] = "too_large",
  ["argument list too long"] = "too_large",
  ["file name too long"] = "invalid",
  ["filename too long"] = "invalid",
  ["invalid argument"] = "invalid",
}

--- The code that a command's message stands for; nil when it says nothing that we know.
---@param message string
---@return string?
function M.code_of(message)
  local last = texts.reason(message)
  return last and CODES[last:lower()]
end

--- For scripts that read or write: leaves with what `$1` is when it is no file.
M.ONLY_FILES = [[
only_files() {
  [ -d "$1" ] && exit 92
  [ -p "$1" ] && exit 81
  [ -S "$1" ] && exit 82
  if [ -c "$1" ] || [ -b "$1" ]; then exit 83; fi
}
]]

--- What the scripts themselves say with their exit code.
local MEANING = {
  [81] = { "invalid", "it is a named pipe, not a file" },
  [82] = { "invalid", "it is a socket, not a file" },
  [83] = { "invalid", "it is a device, not a file" },
  [91] = { "not_found", "No such file or directory" },
  [92] = { "is_a_directory", "Is a directory" },
  [93] = { "invalid", "it cannot be done with this path" },
  [94] = { "not_a_directory", "Not a directory" },
  [95] = { "exists", "File exists" },
  [96] = { "not_empty", "Directory not empty" },
  [98] = { "loop", "Too many levels of symbolic links" },
  [97] = { "lost", "not all of it arrived" },
}

-- ---------------------------------------------------------------- running

---@class moonsand.Script a script that runs
---@field private program table
---@field private limits moonsand.Limits
---@field private what string
---@field private path? string
---@field private taken integer bytes since the last wait
local Script = {}
Script.__index = Script

local function fail(self, code, message, detail)
  detail = detail or {}
  detail.path = detail.path or self.path
  return errors.fail(code, ("%s: %s"):format(self.what, message), detail)
end

--- What programs of ours find: the sandbox's own environment, in the C locale.
local function environment_of(driver)
  return environment.list(environment.merge(driver.environment, { LC_ALL = "C" }))
end

--- Starts a script; `$1` … are the arguments.
---@param driver table
---@param script string
---@param args string[]
---@param opts { what: string, path: string?, stdin: boolean?, max: integer? }
---@param limits moonsand.Limits
---@return moonsand.Script? script, string? message, string? code, table? detail
function M.start(driver, script, args, opts, limits)
  local argv = { "/bin/sh", "-c", script, "sh" }
  for _, word in ipairs(args) do
    argv[#argv + 1] = word
  end
  local program, message, code, detail = driver:start {
    argv = argv,
    env = environment_of(driver),
    cwd = "/",
    umask = 18,
    ours = true,
    stdin = opts.stdin or false,
    stdout = true,
    stderr = true,
    max_output = opts.max or MAX,
  }
  local self = setmetatable({
    program = program,
    limits = limits,
    what = opts.what,
    path = opts.path,
    taken = 0,
  }, Script)
  if not program then
    return fail(self, code, message, detail)
  end
  return self
end

--- Waits until it is over, at most so long.
local function await_death(program, seconds)
  local limits = loop.limits({ timeout = seconds }, true)
  while true do
    local exit, gone = program:ended()
    if exit or gone then
      return true
    elseif loop.wait(limits, program:waitable()) then
      return false
    end
  end
end

--- Ends it, and waits until that is certain, or long enough. A TERM first: scripts clean up then.
function Script:kill()
  local program = self.program
  if not program:signal(signals.numbers.TERM, true) or not await_death(program, GRACE) then
    program:signal(signals.numbers.KILL, true, "close")
    await_death(program, KILLED)
  end
  for _, name in ipairs { "stdin", "stdout", "stderr" } do
    if program[name] then
      program[name]:close()
    end
  end
end

--- The next bytes of its output; nil at the end; or nil, message, code, detail, and it is over.
---@return string? data, string? message, string? code, table? detail
function Script:chunk()
  if self.taken >= BURST then
    self.taken = 0
    local message, code, detail = loop.turn(self.limits)
    if message then
      self:kill()
      return fail(self, code, message, detail)
    end
  end
  while true do
    local data, why = self.program.stdout:take("chunk", 0)
    if data then
      self.taken = self.taken + #data
      return data
    elseif why == "eof" then
      return nil
    elseif why ~= "again" then
      self:kill()
      return fail(self, "lost", "its output ended")
    end
    self.taken = 0
    local message, code, detail = loop.wait(self.limits, self.program.stdout)
    if message then
      self:kill()
      return fail(self, code, message, detail)
    end
  end
end

--- Gives it input; false when it wants no more.
---@return boolean? taken, string? message, string? code, table? detail
function Script:write(data)
  local taken, message, code, detail = feed(self.program.stdin, data, self.limits)
  if taken == nil then
    self:kill()
    return fail(self, code, message, detail)
  end
  return taken
end

--- No more input.
function Script:shutdown()
  self.program.stdin:shutdown()
end

--- What a script that failed meant.
local function refused(self, exit, stderr)
  local meaning = MEANING[exit.exit_code]
  if meaning then
    return fail(self, meaning[1], meaning[2])
  end
  local line = texts.last_line(stderr)
  local code = M.code_of(line or "")
  if code then
    return fail(self, code, texts.reason(line))
  elseif exit.signal_number then
    return fail(self, "lost", "ended by signal " .. signals.name(exit.signal_number))
  end
  return fail(self, "provider", line or ("ended with %d"):format(exit.exit_code))
end

--- Waits for its end: what it wrote and nobody read, and its stderr; a failure when it was not 0.
---@return string? stdout, string? stderr_or_message, string? code, table? detail
function Script:finish()
  local program = self.program
  local exit, message, code, detail
  while true do
    exit, message, code, detail = program:ended()
    if exit or message then
      break
    end
    message, code, detail = loop.wait(self.limits, program:waitable())
    if message then
      self:kill()
      return fail(self, code, message, detail)
    end
  end
  if not exit then
    return fail(self, code, message, detail)
  end
  program.stdout:collect()
  local stdout, _, dropped = program.stdout:excerpt()
  local stderr = program.stderr:excerpt()
  program.stdout:release()
  program.stderr:release()
  if dropped > 0 then
    return fail(self, "too_large", "its answer is too long")
  elseif exit.exit_code ~= 0 then
    return refused(self, exit, stderr)
  end
  return stdout, stderr
end

--- Reads the rest, which does not matter, and waits for its end, whatever it was.
---@return true|nil ended, string? stderr
function Script:drain()
  repeat
    local data, message = self:chunk()
    if message then
      return nil
    end
  until not data
  local program = self.program
  if not await_death(program, KILLED) then
    self:kill()
    return nil
  end
  program.stderr:collect()
  return true, (program.stderr:excerpt())
end

--- Runs a script to its end.
---@param opts { what: string, path: string?, input: string?, max: integer? }
---@return string? stdout, string? stderr_or_message, string? code, table? detail
function M.run(driver, script, args, opts, limits)
  local self, message, code, detail = M.start(driver, script, args, {
    what = opts.what,
    path = opts.path,
    stdin = opts.input ~= nil and opts.input ~= "",
    max = opts.max,
  }, limits)
  if not self then
    return nil, message, code, detail
  end
  if self.program.stdin then
    self.program.stdin:feed(opts.input)
  end
  return self:finish()
end

--- What is done to a path, for messages: "read '/x'".
---@param verb string
---@param path string
function M.doing(verb, path)
  return { what = ("%s %s"):format(verb, options.quote(path)), path = path }
end

return M
