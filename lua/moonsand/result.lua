--- What a program that is over leaves: a Result.

local errors = require "moonsand.errors"
local signals = require "moonsand.signals"
local texts = require "moonsand.text"

local M = {}

---@class moonsand.Usage as the kernel counted it: seconds, bytes
---@field cpu_time number
---@field user_time number
---@field system_time number
---@field memory_peak integer
---@field read_bytes integer
---@field write_bytes integer

---@class moonsand.Result
---@field ok boolean exited with 0
---@field status "exited"|"signaled"|"timed_out"|"output_limit"|"resource_limit"
---@field exit_code? integer only when it exited
---@field signal? string "KILL"
---@field signal_number? integer
---@field timed_out boolean
---@field limit? string which limit was hit: what ended it, or what the sandbox met while it ran
---@field stdout string
---@field stderr string
---@field truncated false|table<string, { at: integer, dropped: integer }>
---@field stdout_bytes integer all that came, kept or not; 0 when it was discarded inside
---@field stderr_bytes integer also 0 when it went into stdout
---@field pipes_held boolean something else still holds its output open
---@field duration number seconds
---@field pid integer
---@field usage moonsand.Usage
local Result = {}
Result.__index = Result
Result.__name = "moonsand.Result"

local function headline(r)
  if r.status == "timed_out" then
    return ("timed out after %.3f s"):format(r.duration)
  elseif r.status == "output_limit" then
    return "ended for too much output"
  elseif r.status == "resource_limit" then
    return ("ended by its limit of %s"):format(r.limit)
  elseif r.status == "signaled" then
    return ("ended by signal %s"):format(r.signal)
  elseif r.exit_code then
    return ("exited with %d"):format(r.exit_code)
  elseif r.error then -- of an interpreter, which lives on
    return ("raised %s: %s"):format(r.error.name, r.error.message)
  end
  return "ran"
end

Result.__tostring = function(r)
  return ("%s%s, %d bytes of stdout, %d of stderr"):format(headline(r),
    r.timed_out and "" or (" after %.3f s"):format(r.duration), #r.stdout, #r.stderr)
end

--- Which limit ended a program by a signal, when one was set that does. `exit.hit`: those limits of
--- the sandbox that were hit while it ran.
local function limit_hit(exit, limits)
  local signal = exit.signal_number
  if signal == signals.numbers.XCPU and limits.cpu_time then
    return "cpu_time"
  elseif signal == signals.numbers.XFSZ and limits.file_size then
    return "file_size"
  elseif signal == signals.numbers.KILL and limits.cpu_time and not exit.reason
    and exit.usage and exit.usage.cpu_time >= limits.cpu_time then
    return "cpu_time"
  elseif signal == signals.numbers.KILL and exit.hit and exit.hit.memory and not exit.reason then
    return "memory"
  end
end

--- Which limit of the sandbox was hit while a program ran that ended by itself: it may be why.
local function limit_met(exit)
  local hit = exit.hit
  return hit and (hit.memory and "memory" or hit.processes and "processes") or nil
end

local statuses = { timeout = "timed_out", output = "output_limit" }

--- Makes a Result of how a program ended and what is left of its streams.
---@param exit table as a provider tells it: pid, exit_code or signal_number, reason, usage, …
---@param streams table<string, table> by name; a stream of a provider, collected
---@param limits table those that were set for it
---@return moonsand.Result
function M.new(exit, streams, limits)
  local limit = limit_hit(exit, limits)
  local r = setmetatable({
    status = statuses[exit.reason] or limit and "resource_limit"
      or exit.exit_code and "exited" or "signaled",
    exit_code = exit.exit_code,
    signal_number = exit.signal_number,
    signal = exit.signal_number and signals.name(exit.signal_number),
    timed_out = exit.reason == "timeout",
    limit = limit or exit.reason == "output" and "output" or limit_met(exit),
    pipes_held = exit.pipes_held,
    duration = exit.duration,
    pid = exit.pid,
    usage = exit.usage,
    truncated = false,
  }, Result)
  r.ok = r.status == "exited" and r.exit_code == 0
  for _, name in ipairs { "stdout", "stderr" } do
    local stream = streams[name]
    r[name], r[name .. "_bytes"] = "", 0
    if stream then
      local text, at, dropped = stream:excerpt()
      r[name] = text
      r[name .. "_bytes"] = (stream:received())
      if dropped > 0 then
        r.truncated = r.truncated or {}
        r.truncated[name] = { at = at, dropped = dropped }
      end
    end
  end
  return r
end

local codes = {
  exited = "exit",
  signaled = "signal",
  timed_out = "timeout",
  output_limit = "output_limit",
  resource_limit = "resource_limit",
}

--- With `check`: the Result if it is ok, else a failure that says why.
---@param r moonsand.Result
---@return moonsand.Result? result, string? message, string? code, table? detail
function M.check(r)
  if r.ok then
    return r
  end
  local last = texts.last_line(r.stderr)
  return errors.fail(codes[r.status], headline(r) .. (last and ": " .. last or ""),
    { started = true, result = r })
end

return M
