--- What a sandbox's network offers to whoever holds the sandbox: connections to what listens inside,
--- ports of the host that lead there, and the account of what it asked the outside for.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local streams = require "moonsand.stream"

local M = {}

local WAIT = { timeout = "number", cancel = "table" }
local FORWARD = { listen = "number|string" }
local FIRST_PAUSE, PAUSE = 0.005, 0.1 -- seconds between two tries of wait_port

local function check(box, call, port, opts, known)
  opts = options.check(call, opts, known, 3)
  box:check_open(call, 3)
  if type(port) ~= "number" or port % 1 ~= 0 or port < 1 or port > 65535 then
    errors.raise(3, "%s: a port is a number from 1 to 65535, got %s", call, tostring(port))
  end
  return opts, options.integer(port)
end

local function fail(box, message, code, detail)
  detail.provider, detail.message = box.provider, message
  return nil, message, code, detail
end

local function lacks(box, call)
  return fail(box, select(2, errors.fail("unsupported",
    ("%s is not supported by the provider '%s'"):format(call, box.provider))))
end

--- Connects to a port that a program inside listens on.
---@param port integer
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Stream? stream to read and to write
---@return string? message, string? code, table? detail
function M.dial(box, port, opts)
  opts, port = check(box, "box:dial", port, opts, WAIT)
  local driver = box.core.driver
  if not driver.dial then
    return lacks(box, "box:dial")
  end
  local raw, message, code, detail = driver:dial(port, loop.limits(opts))
  if not raw then
    detail.port = port
    return fail(box, message, code, detail)
  end
  return streams.new(raw, "port " .. port, nil, { box = box })
end

--- Pauses between two tries; a failure once the limits of the call are hit.
local function pause(limits, seconds)
  local wake = core.now() + seconds
  local overall = limits.deadline
  local message, code, detail = loop.wait({
    deadline = overall and math.min(overall, wake) or wake,
    token = limits.token,
  })
  if code == "timeout" and not (overall and core.now() >= overall) then
    return true
  end
  return nil, message, code, detail
end

--- Waits until something listens on a port inside.
---@param port integer
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function M.wait_port(box, port, opts)
  opts, port = check(box, "box:wait_port", port, opts, WAIT)
  local driver = box.core.driver
  if not driver.dial then
    return lacks(box, "box:wait_port")
  end
  local limits, seconds = loop.limits(opts), FIRST_PAUSE
  while true do
    local raw, message, code, detail = driver:dial(port, limits)
    if raw then
      raw:close()
      return true
    elseif code ~= "connection" then
      detail.port = port
      return fail(box, message, code, detail)
    end
    local ok
    ok, message, code, detail = pause(limits, seconds)
    if not ok then
      detail.port = port
      return fail(box, ("nothing listens on port %d: %s"):format(port, message), code, detail)
    end
    seconds = math.min(seconds * 2, PAUSE)
  end
end

--- Listens on the host's loopback; each connection is passed on to a port inside. Works while the
--- loop is driven; ends with `close()`, with the sandbox, or when nobody holds it.
---@param port integer
---@param opts? { listen?: integer|string } a port of the host (any, by default), or "address:port"
---@return moonsand.Forward? forward port, host, close()
---@return string? message, string? code, table? detail
function M.forward(box, port, opts)
  opts, port = check(box, "box:forward", port, opts, FORWARD)
  local driver = box.core.driver
  if not driver.forward then
    return lacks(box, "box:forward")
  end
  local forward, message, code, detail = driver:forward(port, opts.listen, box)
  if not forward then
    return fail(box, message, code, detail)
  end
  return forward
end

--- Every attempt to reach the outside through the sandbox's proxy, oldest first; the last 1000.
---@return { at: number, protocol: string, host: string?, port: integer?, address: string?,
---  decision: "allowed"|"denied"|"failed", reason: string?, sent: integer?, received: integer?,
---  duration: number? }[] attempts `dropped` is how many older ones are not there any more
function M.network_log(box)
  box:check_open("box:network_log", 2)
  local driver = box.core.driver
  return driver.network_log and driver:network_log() or { dropped = 0 }
end

return M
