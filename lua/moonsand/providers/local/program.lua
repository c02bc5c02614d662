--- Programs of a local sandbox, as a provider gives them: over the core's handle and its streams.

local background = require "moonsand.providers.local.background"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local limiting = require "moonsand.providers.local.limits"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

--- A failure when nothing can be asked of a sandbox any more.
function M.unusable(sandbox, state)
  if state == "closed" then
    return errors.fail("closed", "the sandbox was closed")
  elseif state == "broken" then
    return errors.fail("protocol", "the sandbox's agent broke the protocol; it was ended")
  end
  local hit = sandbox and limiting.hit(sandbox.groups, sandbox.before)
  if hit and hit.memory then -- nobody tells whom the kernel killed
    return errors.fail("gone", "the sandbox ended after it had reached limits.memory", {
      limit = "memory",
      cause = "the kernel killed in it for memory, most likely its first process",
      fix = "more limits.memory, or less limits.disk, or limits of memory for its programs",
    })
  end
  return errors.fail("gone", "the sandbox ended")
end

---@class moonsand.local.Program a program as a provider gives it
---@field handle userdata
---@field stdin userdata?
---@field stdout userdata?
---@field stderr userdata?
local Program = {}
Program.__index = Program

--- The same, where it runs in the background.
local Background = {}
for name, method in pairs(background.methods) do
  Background[name] = method
end
Background.__index = setmetatable(Background, Program)

--- A failure for a program whose end will never be told. Whether it had begun is known only when
--- that was told.
local function lost(self)
  local _, message, code, detail = M.unusable(self.sandbox, self.sandbox.raw:state())
  detail.started = self.handle:pid() > 0 or nil
  return nil, message, code, detail
end

local function refused(self, errno, what)
  local code = errors.code(errno)
  if what == "limits" then
    return limiting.refused(self.spec, core.strerror(errno))
  end
  if what == "id" then
    return errors.fail("not_found", "there is no such program in the background, or not any more")
  elseif what == "since" then
    return errors.fail("invalid", "since: it has not written so much")
  end
  if what == "program" and code == "not_a_directory" then
    code = "not_found"
  end
  local which = what == "program" and self.name or what == "cwd" and self.spec.cwd
  return errors.fail(code, ("cannot start: %s%s: %s"):format(what,
    which and " " .. options.quote(which) or "", core.strerror(errno)),
    { started = false, what = what, path = which or nil })
end

--- Waits until it runs or it is known why not.
---@return true|nil ok, string? message, string? code, table? detail
function Program:started(limits)
  local handle = self.handle
  handle:expect()
  while true do
    local state, errno, what = handle:state()
    if state == "refused" then
      self.sandbox:forget(self)
      return refused(self, errno, what)
    elseif state == "lost" and handle:pid() == 0 then
      return lost(self)
    elseif state ~= "starting" then
      return true
    end
    local message, code, detail = loop.wait(limits, handle)
    if message then
      return errors.fail(code, message, detail)
    end
  end
end

--- How it ended, nil when that is not known yet, or a failure.
---@return table|nil exit, string? message, string? code, table? detail
function Program:ended()
  local state, errno, what = self.handle:state()
  if state == "exited" then
    self.sandbox:forget(self)
    local exit = self.handle:exit()
    exit.hit = limiting.hit(self.sandbox.groups, self.before)
    return exit
  elseif state == "refused" then
    self.sandbox:forget(self)
    return refused(self, errno, what)
  elseif state == "lost" then
    self.sandbox:forget(self)
    return lost(self)
  end
end

--- The same, as soon as it is known: what it wrote may still be on its way.
Background.over = Program.ended

function Background:ended()
  local exit, message, code, detail = self:over()
  for _, name in ipairs { "stdout", "stderr" } do
    if exit and self[name] and not self[name]:ended() then
      return nil
    end
  end
  return exit, message, code, detail
end

--- Sends a signal to the first process or to all. KILL for all may carry the reason.
---@param number integer
---@param tree boolean
---@param reason? "timeout"|"cancel"|"output"|"close"
---@return boolean sent
function Program:signal(number, tree, reason)
  return self.handle:signal(number, tree, reason)
end

--- Says how large its terminal is from now on.
---@return boolean done
function Program:resize(cols, rows)
  return (self.stdout:resize(cols, rows) or self.stdin:resize(cols, rows)) == true
end

function Program:pid()
  local pid = self.handle:pid()
  return pid > 0 and pid or nil
end

--- What it is called in the sandbox, whoever asks.
function Program:id()
  local pid = self.handle:pid()
  return pid > 0 and background.foreground_id(pid) or nil
end

--- What to wait for besides the streams.
function Program:waitable()
  return self.handle
end

-- ---------------------------------------------------------------- starting

--- What stands in the sandbox where terminals are made may be anything by now.
local NO_TERMINAL = { [core.errno.ENODEV] = true, [core.errno.ENOENT] = true,
  [core.errno.ELOOP] = true, [core.errno.ENOTDIR] = true, [core.errno.ENXIO] = true,
  [core.errno.EISDIR] = true, [core.errno.EACCES] = true }

local function not_spawned(errno, spec)
  if spec.pty and NO_TERMINAL[errno] then
    return errors.fail("unavailable", "cannot start: no terminal can be made in this sandbox", {
      started = false,
      cause = "/dev/pts/ptmx: " .. core.strerror(errno),
      fix = "leave the sandbox's /dev as it is",
    })
  end
  return errors.errno(errno, "cannot start", { started = false })
end

--- Asks the core for one.
---@param sandbox moonsand.local.Sandbox
---@param argv string[]
---@param spec table
---@return moonsand.local.Program? program, string? message, string? code, table? detail
function M.spawn(sandbox, argv, spec)
  local before = sandbox.groups and sandbox.groups:hits()
  local handle, stdin, stdout, stderr = sandbox.raw:spawn(argv, spec)
  if not handle then
    if stdout then
      return M.unusable(sandbox, stdout)
    end
    return not_spawned(stdin, spec)
  end
  sandbox.before = before
  return setmetatable({
    sandbox = sandbox,
    handle = handle,
    stdin = stdin,
    stdout = stdout,
    stderr = stderr,
    name = argv[1],
    spec = spec,
    before = before, -- what the limits had been hit by then
  }, spec.background and Background or Program)
end

--- One that runs in the background, by its number there.
---@return moonsand.local.Program? program, string? message, string? code, table? detail
function M.look(sandbox, number, opts)
  local handle, stdout, stderr = sandbox.raw:attach(number, opts)
  if not handle then
    if stderr then
      return M.unusable(sandbox, stderr)
    end
    return errors.errno(stdout, "cannot attach")
  end
  return setmetatable({ sandbox = sandbox, handle = handle, stdout = stdout, stderr = stderr },
    Background)
end

return M
