--- What the file calls ask of a sandbox: one round trip (`call`), or a *worker*, a program of the
--- agent's own that walks trees and writes records to its output (`work`). Everything in `files`
--- stands on these two, and they on these of a driver, the provider's sandbox:
---
---     driver:call(op, args, limits)
---         One of core.file_calls (src/wire.h says what each means), answered at once inside. args:
---         flags, mode, a, b (integers, 0 if nil), path, path2 (absolute), file (only if
---         `returns_files`). Answers errno (0: success), body, file (a moonsand.file or nil); or
---         nil, message, code, detail when the wait failed, or the sandbox is closed, gone, broken.
---     driver:work(argv, opts)
---         Starts a worker (src/agent/worker.h), without waiting. opts.stdin: a pipe is wanted. A
---         program, as `driver:start` gives it: stdout, stdin, ended(), waitable(),
---         signal(number, tree, reason); or nil, message, code, detail.
---     driver.returns_files
---         True: args.file goes to the agent. Then files that are being written have no name until
---         they are whole, and nothing is left of those that never are.
---     driver:open(path)
---         Optional: a moonsand.file to read from, without a round trip; or nil, and the agent is
---         asked.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local feed = require "moonsand.files.feed"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local signals = require "moonsand.signals"

local M = {}

--- How long a worker that has said all may take to go.
local FAREWELL = 2

--- A worker may say things faster than they are heard: after so many bytes without a wait, limits
--- are looked at, and others have a turn.
local BURST = 1024 * 1024

--- A path in a directory.
---@param directory string
---@param path string
---@return string
function M.join(directory, path)
  return directory .. (directory:sub(-1) == "/" and "" or "/") .. path
end

--- One call: true, body, file; or nil, message, code, detail.
---@param driver table
---@param op string one of core.file_calls
---@param args table
---@param limits moonsand.Limits
---@param verb? string what is done, for messages: "read"
---@return true|nil ok, string body_or_message, any file_or_code, table? detail
function M.call(driver, op, args, limits, verb)
  local errno, body, file, detail = driver:call(core.file_calls[op], args, limits)
  if errno == 0 then
    return true, body, file
  end
  local what = ("%s %s"):format(verb or op, options.quote(args.path))
  if errno then
    return errors.errno(errno, what, { path = args.path })
  end
  detail.path = args.path
  return errors.fail(file, ("%s: %s"):format(what, body), detail)
end

--- An answer that an honest agent cannot have given.
function M.nonsense(what)
  return errors.fail("protocol", what .. ": the sandbox's answer makes no sense")
end

local kinds = { fifo = "a named pipe", socket = "a socket", device = "a device" }

--- What was opened: "file", file; "virtual"; or a failure that says what it is instead.
---@return string? kind, any file_or_message, string? code, table? detail
function M.opened(body, file, verb, path)
  local kind = core.opened(body)
  if kind == "virtual" or kind == "file" and file then
    return kind, file
  end
  if file then
    file:close()
  end
  local what = ("%s %s"):format(verb, options.quote(path))
  if not kinds[kind] then
    return M.nonsense(what)
  end
  local message = ("%s: it is %s, not a file"):format(what, kinds[kind])
  return errors.fail("invalid", message, { path = path })
end

-- ---------------------------------------------------------------- workers

---@class moonsand.Worker
---@field private program table
---@field private records userdata what came and was not asked for yet
---@field private limits moonsand.Limits
---@field private what string for messages
---@field private path string
---@field private first? string what had come before the first read
---@field private taken integer bytes since the last wait
---@field private over boolean it has said all
local Worker = {}
Worker.__index = Worker

local function failed(self, code, message, detail)
  detail = detail or {}
  detail.path = detail.path or self.path
  return errors.fail(code, ("%s: %s"):format(self.what, message), detail)
end

--- How it ended; or nil, message, code, detail.
local function await_end(self, limits)
  local program = self.program
  while true do
    local exit, message, code, detail = program:ended()
    if exit or message then
      return exit, message, code, detail
    end
    message, code, detail = loop.wait(limits, program:waitable())
    if message then
      return nil, message, code, detail
    end
  end
end

--- Its output has ended too early: why?
function Worker:cut_off()
  local exit, message, code, detail = await_end(self, self.limits)
  if not exit then
    return failed(self, code, message, detail)
  elseif exit.signal_number then
    return failed(self, "lost", "ended by signal " .. signals.name(exit.signal_number))
  end
  return failed(self, "lost", ("ended with %s"):format(exit.exit_code))
end

--- The next bytes; nil at the end; or nil, message, code, detail.
---@return string? data, string? message, string? code, table? detail
function Worker:chunk()
  local first = self.first
  if first then
    self.first = nil
    return first
  end
  local stdout = self.program.stdout
  if self.taken >= BURST then
    self.taken = 0
    local message, code, detail = loop.turn(self.limits)
    if message then
      return failed(self, code, message, detail)
    end
  end
  while true do
    local data, why = stdout:take("chunk", 0)
    if data then
      self.taken = self.taken + #data
      return data
    elseif why == "eof" then
      return nil
    elseif why ~= "again" then
      return failed(self, errors.code(why), core.strerror(why))
    end
    self.taken = 0
    local message, code, detail = loop.wait(self.limits, stdout)
    if message then
      return failed(self, code, message, detail)
    end
  end
end

--- What a worker's errno means, which it has perhaps told with a path.
---@param errno integer
---@param path? string absolute, or relative to the worker's own; "" for that
function Worker:refused(errno, path)
  local full = self.path
  if path and path ~= "" then
    full = path:sub(1, 1) == "/" and path or M.join(full, path)
  end
  local at = full ~= self.path and ("%s: %s"):format(self.what, options.quote(full)) or self.what
  return errors.errno(errno, at, { path = full })
end

--- The next record: its kind and what it says, as `core.records` gives them. After "end" there is
--- nothing more. A worker's own failure, and an end without an "end", are nil, message, code,
--- detail.
---@return string? kind, any a, any b, table? detail
function Worker:record()
  while true do
    local kind, a, b = self.records:next()
    if kind == "failed" then
      self.over = true
      return self:refused(a, b)
    elseif kind then
      self.over = kind == "end"
      return kind, a, b
    elseif kind == false then
      return failed(self, "protocol", "the sandbox's answer makes no sense")
    end
    local data, message, code, detail = self:chunk()
    if data then
      self.records:feed(data)
    elseif message then
      return nil, message, code, detail
    else
      return self:cut_off()
    end
  end
end

--- Gives it input. A worker that does not want more is no failure: its records say why.
---@return boolean? taken, string? message, string? code, table? detail
function Worker:write(data)
  local taken, message, code, detail = feed(self.program.stdin, data, self.limits)
  if taken == nil then
    return failed(self, code, message, detail)
  end
  return taken
end

--- No more input.
function Worker:shutdown()
  self.program.stdin:shutdown()
end

--- How it ended, for a worker that writes no records.
---@return table? exit, string? message, string? code, table? detail
function Worker:exit()
  local exit, message, code, detail = await_end(self, self.limits)
  if not exit then
    return failed(self, code, message, detail)
  elseif not exit.exit_code then
    return self:cut_off()
  end
  self.over = true
  return exit
end

--- Nothing of it is left afterwards, or soon.
function Worker:close()
  local program = self.program
  if self.over then
    await_end(self, loop.limits({ timeout = FAREWELL }, true))
  end
  if not program:ended() then
    program:signal(signals.numbers.KILL, true, "close")
  end
  program.stdout:close()
  if program.stdin then
    program.stdin:close()
  end
end

local function close_and_pass(self, ok, ...)
  if not ok then
    self.over = false -- no waiting after a raise
  end
  self:close()
  if not ok then
    error((...), 0)
  end
  return ...
end

--- Starts a worker. Whoever has it closes it.
---@param driver table
---@param argv string[]
---@param spec { path: string, verb: string, stdin: boolean? }
---@param limits moonsand.Limits of what is read next: the field of that name may be changed
---@return moonsand.Worker? worker, string? message, string? code, table? detail
function M.begin(driver, argv, spec, limits)
  local what = ("%s %s"):format(spec.verb, options.quote(spec.path))
  local program, message, code, detail = driver:work(argv, { stdin = spec.stdin })
  if not program then
    detail.path = spec.path
    return errors.fail(code, ("%s: %s"):format(what, message), detail)
  end
  local self = setmetatable({
    program = program,
    records = core.records(),
    limits = limits,
    what = what,
    path = spec.path,
    first = nil,
    taken = 0,
    over = false,
  }, Worker)
  self.first = program.stdout:take("chunk", 0) -- from now on what comes is kept for us
  return self
end

--- Runs a worker and `fn(worker, …)` with it, which reads what it says. The worker is over in every
--- case then. Answers what `fn` answers, or the failure to start.
---@param driver table
---@param argv string[]
---@param spec { path: string, verb: string, stdin: boolean? }
---@param limits moonsand.Limits
---@param fn fun(worker: moonsand.Worker, ...): any
function M.work(driver, argv, spec, limits, fn, ...)
  local self, message, code, detail = M.begin(driver, argv, spec, limits)
  if not self then
    return nil, message, code, detail
  end
  return close_and_pass(self, pcall(fn, self, ...))
end

return M
