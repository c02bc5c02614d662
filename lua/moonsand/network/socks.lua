--- SOCKS 5 (RFC 1928): CONNECT, without authentication, to addresses and names.

local address = require "moonsand.network.address"

local M = {}

M.VERSION = "\5"

local NO_AUTHENTICATION, NONE_ACCEPTABLE = 0, "\5\255"
local COMMAND_CONNECT = 1
local IPV4, NAME, IPV6 = 1, 3, 4

--- Answers by what happened.
local REPLIES = {
  connected = 0, failed = 1, denied = 2, unreachable = 4, refused = 5, timeout = 6,
  command = 7, kind = 8,
}

--- An answer; the address in it is for nobody.
---@param what string
function M.answer(what)
  return "\5" .. string.char(REPLIES[what]) .. "\0\1\0\0\0\0\0\0"
end

--- The host that a request names. A name is what address.name takes for one, or an address in
--- letters: a NUL or a space in it is no host.
local function read_host(read, kind)
  if kind == IPV4 or kind == IPV6 then
    local bytes = read(kind == IPV4 and 4 or 16)
    if not bytes then
      return nil
    end
    bytes = address.plain(bytes)
    return { address = bytes, text = address.text(bytes) }
  elseif kind ~= NAME then
    return nil, "kind"
  end
  local length = read(1)
  local text = length and read(length:byte())
  if not text then
    return nil
  end
  return address.host(text) or address.host("[" .. text .. "]") or nil, "failed"
end

--- Reads the request; the version of its first greeting was read already.
---@param read fun(count: integer): string? so many bytes
---@param write fun(data: string): boolean?
---@return { host: table, port: integer }? request
---@return string? reply to be sent
function M.read(read, write)
  local count = read(1)
  local methods = count and read(count:byte())
  if not methods then
    return nil
  elseif not methods:find(string.char(NO_AUTHENTICATION), 1, true) then
    return nil, NONE_ACCEPTABLE
  end
  local head = write "\5\0" and read(4)
  if not head or head:byte(1) ~= 5 or head:byte(3) ~= 0 then
    return nil
  end
  local host, why = read_host(read, head:byte(4))
  if not host then
    return nil, why and M.answer(why)
  end
  local port = read(2)
  if not port then
    return nil
  elseif head:byte(2) ~= COMMAND_CONNECT then
    return nil, M.answer "command"
  end
  local high, low = port:byte(1, 2)
  return { host = host, port = high * 256 + low }
end

return M
