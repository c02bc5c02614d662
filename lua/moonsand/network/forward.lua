--- A port on the host that leads to a port inside.

local acceptor = require "moonsand.network.acceptor"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

local MAX = 256 -- connections at once, none of a budget: who comes is not from inside
local DIAL = 30 -- seconds
local LOOPBACK = "127.0.0.1"

---@class moonsand.Forward
---@field port integer on the host
---@field host string the address
---@field private acceptor moonsand.Acceptor
local Forward = {}
Forward.__index = Forward
Forward.__name = "moonsand.Forward"

Forward.__tostring = function(self)
  return ("moonsand.Forward (%s:%d to port %d%s)"):format(self.host, self.port, self.target,
    self.acceptor.closed and ", closed" or "")
end

--- Ends it, and the connections through it; at once. Idempotent.
function Forward:close()
  self.acceptor:close()
end

Forward.__close = Forward.close

--- Where to listen: a port, or "address:port".
local function read_listen(listen)
  local host, port = LOOPBACK, listen or 0
  if type(listen) == "string" then
    host, port = listen:match "^%[?([%x.:]+)%]?:(%d+)$"
    port = tonumber(port)
  end
  local address = host and core.address(host)
  if not address or not port or port % 1 ~= 0 or port < 0 or port > 65535 then
    return errors.fail("invalid",
      ("listen: %s is no port and no address:port"):format(options.quote(listen)))
  end
  return address, host, options.integer(port)
end

--- Listens on the host; each connection is dialled inside.
---@param target integer
---@param listen? integer|string
---@param dial fun(limits: moonsand.Limits): userdata?
---@param holds? any what lives as long as the forward
---@return moonsand.Forward? forward, string? message, string? code, table? detail
function M.new(target, listen, dial, holds)
  local address, host, port, detail = read_listen(listen)
  if not address then
    return nil, host, port, detail
  end
  local reactor, message, code
  reactor, message, code, detail = loop.reactor()
  if not reactor then
    return nil, message, code, detail
  end
  local listener, errno = core.listen(reactor, address, port)
  if not listener then
    return errors.errno(errno, ("listening on %s:%d"):format(host, port))
  end
  local function serve(connection)
    local inside = dial(connection:limits(DIAL))
    if inside then
      connection:own(inside)
      connection:relay(inside)
    end
  end
  return setmetatable({
    port = options.integer(listener:port()),
    host = host,
    target = target,
    holds = holds,
    acceptor = acceptor.new(listener, MAX, serve),
  }, Forward)
end

return M
