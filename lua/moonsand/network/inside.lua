--- A local sandbox's own loopback, from outside: connections to what listens there, listeners that
--- the host serves. The agent opens the sockets inside and passes them out.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"

local M = {}

local IPV4, IPV6 = 0, 1 -- flags of the calls

--- Waits until a connection stands.
---@param raw userdata a stream
---@param name string for messages
---@return true|nil ok, string? message, string? code, table? detail
function M.connected(raw, name, limits)
  while true do
    local ok, why = raw:connected()
    if ok then
      return true
    elseif why ~= "again" then
      return errors.errno(why, name)
    end
    local message, code, detail = loop.wait(limits, raw)
    if message then
      return errors.fail(code, ("%s: %s"):format(name, message), detail)
    end
  end
end

--- A socket that the agent opens.
local function ask(driver, op, args, name, limits)
  local errno, body, socket, detail = driver:call(core.file_calls[op], args, limits)
  if not errno then
    return nil, body, socket, detail
  elseif errno ~= 0 then
    return errors.errno(errno, name)
  elseif not socket then
    return errors.fail("protocol", name .. ": the sandbox's agent passed out something else")
  end
  return socket
end

local function dial(driver, port, flags, name, limits)
  local raw, message, code, detail =
    ask(driver, "connect", { flags = flags, a = port, socket = "connection" }, name, limits)
  if not raw then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = M.connected(raw, name, limits)
  if not ok then
    raw:close()
    return nil, message, code, detail
  end
  return raw
end

--- Connects to a port inside, by IPv4 or, where only that listens, IPv6.
---@return userdata? raw, string? message, string? code, table? detail
function M.dial(driver, port, limits)
  local name = "port " .. port
  local raw, message, code, detail = dial(driver, port, IPV4, name, limits)
  if not raw and code == "connection" then
    local second = dial(driver, port, IPV6, name, limits)
    if second then
      return second
    end
  end
  return raw, message, code, detail
end

--- A listener on a port inside.
---@return userdata? listener, string? message, string? code, table? detail
function M.listen(driver, port, limits)
  return ask(driver, "listen", { flags = IPV4, a = port, socket = "listener" },
    "listening on port " .. port, limits)
end

return M
