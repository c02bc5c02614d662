--- Programs that belong to a sandbox and not to who started them. Its agent reads what they write and
--- keeps it in a log; who looks at them, the starter too, is given bytes out of that.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

local SIZE, SIZE_MAX = 1024 * 1024, 1024 ^ 3
local KEPT = { head = true, tail = true }

--- What `spawn` is told of the log.
---@param spec table as `start` is given it
---@return true|nil ok, string? message, string? code, table? detail
function M.plan(spec)
  local log = spec.log or {}
  if spec.pty then
    return errors.fail("unsupported",
      "pty: a program in the background has no terminal here", { started = false })
  end
  local size, message, code, detail = options.size("log.size", log.size or SIZE)
  if not size then
    return nil, message, code, detail
  elseif size < 1 or size > SIZE_MAX then
    return errors.fail("invalid", ("log.size: from 1 to %d bytes"):format(SIZE_MAX))
  elseif log.keep ~= nil and not KEPT[log.keep] then
    return errors.fail("invalid", ("log.keep: %s (\"tail\" or \"head\")")
      :format(options.quote(log.keep)))
  end
  spec.log_size, spec.log_head, spec.quiet = size, log.keep == "head", false
  return true
end

-- ---------------------------------------------------------------- one program

--- What its handle can do besides.
M.methods = {}

--- Where it can be attached to.
function M.methods:id()
  local number = self.handle:number()
  return number > 0 and ("bg-%d"):format(number) or nil
end

--- How far its readers have come.
---@return { stdout: integer, stderr: integer }? offsets, string? message, string? code, table? detail
function M.methods:offsets()
  local stdout, stderr = self.handle:offsets()
  if not stdout then
    return errors.fail("too_large", "the output has more gaps than are kept count of")
  end
  return { stdout = options.integer(stdout), stderr = options.integer(stderr) }
end

--- Where bytes are missing that its log had lost when they were to be given: { stream, at, dropped }.
function M.methods:gaps()
  return self.handle:gaps()
end

--- Lets go of it: it runs on.
function M.methods:detach()
  self.handle:leave()
end

local function read_all(stream, limits)
  stream:collect()
  while not stream:ended() do
    local message, code, detail = loop.wait(limits, stream)
    if message then
      return nil, message, code, detail
    end
  end
  return true
end

--- What its log holds now.
---@param max integer bytes of each stream
---@return { stdout: string, stderr: string, truncated: false|table }? log
---@return string? message, string? code, table? detail
function M.methods:log(max, limits)
  local number = self.handle:number()
  local program, message, code, detail =
    M.attach(self.sandbox, number, { once = true, max_output = max }, limits)
  if not program then
    return nil, message, code, detail
  end
  local log = { truncated = false }
  for _, name in ipairs { "stdout", "stderr" } do
    local ok
    ok, message, code, detail = read_all(program[name], limits)
    if not ok then
      program:detach()
      return errors.fail(code, "process:log: " .. message, detail)
    end
    program.handle:offsets() -- hears of gaps
    local text, at, dropped = program[name]:excerpt()
    log[name] = text
    if dropped > 0 then
      log.truncated = log.truncated or {}
      log.truncated[name] = { at = at, dropped = dropped }
    end
  end
  return log
end

-- ---------------------------------------------------------------- all of them

--- A command as it was given: text for the shell, or a list.
local function command_of(words)
  if #words == 3 and words[1] == "/bin/sh" and words[2] == "-c" then
    return words[3]
  end
  return words
end

--- Asks for those that were started after that one, as many as one answer holds; and whether there are
--- more.
---@return table[]? programs, boolean|string more_or_message, string? code, table? detail
local function ask(driver, after, limits)
  local errno, body, code, detail =
    driver:call(core.file_calls.programs, { a = after, path = "/" }, limits)
  if not errno then
    return errors.fail(code, "processes: " .. body, detail)
  elseif errno ~= 0 then
    return errors.errno(errno, "processes")
  end
  local list, more = core.programs(body)
  if not list or more and (#list == 0 or list[#list].number <= after) then
    return calls.nonsense "processes"
  end
  return list, more
end

--- The command of one of them.
---@return string|string[]|nil command, string? message, string? code, table? detail
local function command_at(driver, number, limits)
  local list, message, code, detail = ask(driver, number - 1, limits)
  if not list then
    return nil, message, code, detail
  elseif not list[1] or list[1].number ~= number then
    return errors.fail("not_found", "the program is not there any more")
  end
  return command_of(list[1].words)
end

--- One that was started before.
---@param driver moonsand.local.Sandbox
---@param number integer
---@param opts { since?: { stdout: integer, stderr: integer }, once?: boolean, max_output: integer }
function M.attach(driver, number, opts, limits)
  local since = opts.since or { stdout = 0, stderr = 0 }
  local program, message, code, detail = driver:look(number, {
    stdout = since.stdout,
    stderr = since.stderr,
    once = opts.once,
    max_output = opts.max_output,
  })
  if not program then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = program:started(limits)
  if ok and not opts.once then
    program.command, message, code, detail = command_at(driver, number, limits)
    ok = program.command
  end
  if not ok then
    program:detach()
    return nil, message, code, detail
  end
  return program
end

--- What one is called that runs in front: nobody else can attach to it.
---@param pid integer
---@return string
function M.foreground_id(pid)
  return ("fg-%d"):format(pid)
end

--- The number in an id; nil if it is no id of ours.
---@param id string
---@return integer?
function M.number(id)
  local number = tonumber(id:match "^bg%-(%d+)$")
  return number and number < 2 ^ 53 and number or nil
end

local function row_of(program)
  return {
    id = program.background and ("bg-%d"):format(program.number) or M.foreground_id(program.pid),
    pid = program.pid,
    command = command_of(program.words),
    running = program.running,
    background = program.background,
    exit_code = program.exit_code,
    signal_number = program.signal_number,
    started_at = program.started_at,
  }
end

--- What was started here and is no worker of ours, oldest first: running, and the last that ended.
---@return table[]? rows, string? message, string? code, table? detail
function M.list(driver, limits)
  local rows, after, more = {}, 0, true
  while more do
    local list, code, detail
    list, more, code, detail = ask(driver, after, limits)
    if not list then
      return nil, more, code, detail
    end
    for _, program in ipairs(list) do
      rows[#rows + 1] = row_of(program)
      after = program.number
    end
  end
  return rows
end

return M
