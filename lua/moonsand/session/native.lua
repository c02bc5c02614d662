--- Sessions that a service has itself: its driver's `session(opts, limits)` gives an object with
--- `exec(command, opts, limits)` → exit, stdout, stderr; `cwd(limits)`, `getenv(limits)`, `alive()`
--- and `close()`. What those do not hold is said in the provider's page.

local callbacks = require "moonsand.process.callbacks"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local pipes = require "moonsand.providers.pipe"
local programs = require "moonsand.program"
local results = require "moonsand.result"

local M = {}

local EXEC = {
  timeout = "number", grace = "number", cancel = "table", check = "boolean",
  max_output = "number|string", on_stdout = "callable", on_stderr = "callable",
  on_line = "callable", on_exit = "callable",
}
local WAIT = { timeout = "number", cancel = "table" }

local Native = {}
Native.__name = "moonsand.Session"

Native.__index = function(self, key)
  if key == "alive" then
    return not self.closed and self.inner:alive()
  end
  return Native[key]
end

Native.__tostring = function(self)
  return ("moonsand.Session (%s, %s)"):format(self.box.id, self.alive and "alive" or "closed")
end

local function check_open(self, call)
  if self.closed then
    errors.raise(3, "%s: the session was closed", call)
  end
end

--- The Result of what the service told.
local function result_of(self, opts, exit, stdout, stderr, max)
  local out = { stdout = pipes.new(max), stderr = pipes.new(max) }
  local handlers = callbacks.make({
    program = out,
    plan = { sinks = { stdout = "collect", stderr = "collect" } },
  }, opts)
  out.stdout:push(stdout or "")
  out.stderr:push(stderr or "")
  if handlers then
    callbacks.finish(handlers, out)
  end
  out.stdout:collect()
  out.stderr:collect()
  exit.pipes_held = exit.pipes_held or false
  local result = results.new(exit, out, {})
  local check = opts.check == nil and self.check or opts.check
  if check then
    return results.check(result)
  end
  return result
end

function Native:exec(command, opts)
  opts = options.check("session:exec", opts, EXEC)
  check_open(self, "session:exec")
  if type(command) ~= "string" then
    errors.raise(2, "session:exec: a command is a string, got %s", type(command))
  elseif not self.alive then
    return errors.fail("closed", "the session has ended", { started = false })
  end
  local max, message, code, detail =
    options.size("max_output", opts.max_output or programs.MAX_OUTPUT)
  if not max then
    return nil, message, code, detail
  end
  local began = loop.now()
  local exit, stdout, stderr
  exit, stdout, stderr, detail = self.inner:exec(command, opts, loop.limits(opts))
  local result
  if exit then
    exit.duration = exit.duration or loop.now() - began
    result, message, code, detail = result_of(self, opts, exit, stdout, stderr, max)
  else
    message, code = stdout, stderr
  end
  if opts.on_exit then
    opts.on_exit(result, message, code, detail)
  end
  return result, message, code, detail
end

function Native:cwd(opts)
  opts = options.check("session:cwd", opts, WAIT)
  check_open(self, "session:cwd")
  return errors.outcome(self.inner:cwd(loop.limits(opts)))
end

function Native:getenv(name, opts)
  opts = options.check("session:getenv", opts, WAIT)
  check_open(self, "session:getenv")
  local variables, message, code, detail = self.inner:getenv(loop.limits(opts))
  if not variables or name == nil then
    return variables, message, code, detail
  end
  return variables[name]
end

function Native:close()
  if not self.closed then
    self.closed = true
    self.inner:close()
  end
end

Native.__close = Native.close

--- The service's session.
function M.open(box, opts)
  local inner, message, code, detail = box.core.driver:session(opts, loop.limits(opts))
  if not inner then
    return nil, message, code, detail
  end
  return setmetatable({ box = box, inner = inner, check = opts.check, closed = false }, Native)
end

return M
