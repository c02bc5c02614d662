--- Names and addresses as requests and rules write them, read strictly: what one reader takes for a
--- name and the next for an address ("0x7f.1", "127.1") is neither. Addresses are bytes, 4 or 16.

local core = require "moonsand.core"

local M = {}

M.text = core.address_text

--- Addresses that stand for something else than a machine on the Internet. What is not in
--- 2000::/3 is special as a whole: mapped, translated (NAT64), local, link-local, multicast.
local SPECIAL = {
  { "0.0.0.0/8", "this network" }, { "10.0.0.0/8", "a private network" },
  { "100.64.0.0/10", "a carrier's network" }, { "127.0.0.0/8", "the host's loopback" },
  { "169.254.0.0/16", "link-local, where clouds keep metadata" },
  { "172.16.0.0/12", "a private network" }, { "192.0.0.0/24", "reserved" },
  { "192.0.2.0/24", "reserved" }, { "192.88.99.0/24", "a relay" },
  { "192.168.0.0/16", "a private network" }, { "198.18.0.0/15", "reserved" },
  { "198.51.100.0/24", "reserved" }, { "203.0.113.0/24", "reserved" },
  { "168.63.129.16/32", "a cloud's metadata" },
  { "224.0.0.0/4", "multicast" }, { "240.0.0.0/4", "reserved" },
  { "::1/128", "the host's loopback" }, { "fe80::/10", "link-local" },
  { "fc00::/7", "a private network" }, { "ff00::/8", "multicast" },
  { "2001::/23", "reserved" }, { "2001:db8::/32", "reserved" },
  { "2002::/16", "another address within (6to4)" }, { "3fff::/20", "reserved" },
}
local GLOBAL = "2000::/3"

--- Does a network hold this address?
---@param network { address: string, bits: integer }
---@param address string
function M.within(network, address)
  local base, bits = network.address, network.bits
  if #base ~= #address then
    return false
  end
  local whole = math.floor(bits / 8)
  if base:sub(1, whole) ~= address:sub(1, whole) then
    return false
  end
  local rest = bits % 8
  if rest == 0 then
    return true
  end
  local unit = 2 ^ (8 - rest)
  return math.floor(base:byte(whole + 1) / unit) == math.floor(address:byte(whole + 1) / unit)
end

--- "10.0.0.0/8", or one address.
---@return { address: string, bits: integer }? network nil as well when bits are set beyond the mask
function M.network(text)
  local base, bits = text:match "^([^/]+)/(%d%d?%d?)$"
  local address = core.address(base or text)
  if not address then
    return nil
  end
  local network = { address = address, bits = tonumber(bits or #address * 8) }
  if network.bits > #address * 8 then
    return nil
  end
  local whole, rest = math.floor(network.bits / 8), network.bits % 8
  local beyond = address:sub(whole + 1)
  if rest > 0 then
    if address:byte(whole + 1) % 2 ^ (8 - rest) ~= 0 then
      return nil
    end
    beyond = beyond:sub(2)
  end
  return not beyond:find "[^%z]" and network or nil
end

local special, global = {}, M.network(GLOBAL)
for i, row in ipairs(SPECIAL) do
  special[i] = { network = assert(M.network(row[1]), row[1]), what = row[2] }
end

local MAPPED = ("\0"):rep(10) .. "\255\255"

--- The IPv4 address that an IPv6 socket would dial for ::ffff:192.0.2.1, since that is what counts.
function M.plain(address)
  if #address == 16 and address:sub(1, 12) == MAPPED then
    return address:sub(13)
  end
  return address
end

--- Why an address is not one of a machine on the Internet; nil when it is.
---@return string?
function M.special(address)
  for _, row in ipairs(special) do
    if M.within(row.network, address) then
      return row.what
    end
  end
  if #address == 16 and not M.within(global, address) then
    return "reserved"
  end
  local list, errno = core.own_addresses()
  if not list then
    return ("perhaps this machine's own (%s)"):format(core.strerror(errno))
  end
  for _, own in ipairs(list) do
    if own == address then
      return "this machine's own"
    end
  end
end

--- A name in one spelling: lower case, without the dot at the end; nil when it is none. A last
--- label that begins with a digit is some reader's number.
---@return string?
function M.name(text)
  local name = text:lower():gsub("%.$", "")
  if #name == 0 or #name > 253 or name:find "[^%l%d._-]" or name:find "^%." or name:find "%.%."
    or name:find "%.$" or name:match "[^.]*$":find "^%d" then
    return nil
  end
  for label in name:gmatch "[^.]+" do
    if #label > 63 or label:find "^%-" or label:find "%-$" then
      return nil
    end
  end
  return name
end

--- The host of a request: a name, or an address; brackets only around IPv6.
---@return { name: string?, address: string?, text: string }? host
function M.host(text)
  local v6 = text:match "^%[([%x:.]+)%]$"
  local address = v6 and core.address(v6) or not v6 and core.address(text)
  if address and (v6 ~= nil) == (#address == 16) then
    address = M.plain(address)
    return { address = address, text = M.text(address) }
  end
  local name = not v6 and M.name(text)
  return name and { name = name, text = name } or nil
end

--- A port in plain decimal.
---@return integer?
function M.port(text)
  local port = text:match "^[1-9]%d?%d?%d?%d?$" and tonumber(text)
  return port and port <= 65535 and port or nil
end

--- "host:port" of a request; without a port only where there is a default.
---@param text string
---@param default? integer
---@return table? host, integer? port
function M.authority(text, default)
  local host, rest = text:match "^(%[[^%]]*%])(.*)$"
  if not host then
    host, rest = text:match "^([^:]+)(.*)$"
  end
  host = host and M.host(host)
  local port = rest == "" and default or rest and M.port(rest:match "^:(%d+)$" or "")
  if host and port then
    return host, port
  end
end

return M
