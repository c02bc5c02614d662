--- Times as the service writes them (RFC 3339), and as we do: Unix seconds.

local M = {}

--- Days since 1970 of a date in the Gregorian calendar.
local function days(year, month, day)
  if month <= 2 then
    year, month = year - 1, month + 12
  end
  return 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
    + math.floor((153 * (month - 3) + 2) / 5) + day - 719469
end

--- Unix seconds of "2026-11-21T07:48:15.207Z"; nil when it is none.
---@param text any
---@return number?
function M.parse(text)
  if type(text) ~= "string" then
    return nil
  end
  local year, month, day, hour, minute, second, fraction, zone =
    text:match "^(%d%d%d%d)-(%d%d)-(%d%d)[Tt ](%d%d):(%d%d):(%d%d)(%.?%d*)(.*)$"
  if not year then
    return nil
  end
  local sign, hours, minutes = zone:match "^([+-])(%d%d):?(%d%d)$"
  local east = sign and (hours * 60 + minutes) * 60 * (sign == "-" and -1 or 1) or 0
  return ((days(tonumber(year), tonumber(month), tonumber(day)) * 24 + hour) * 60 + minute) * 60
    + second + (tonumber("0" .. fraction) or 0) - east
end

--- The same, the other way round; whole seconds, rounded up.
---@param seconds number
---@return string
function M.format(seconds)
  return (os.date("!%Y-%m-%dT%H:%M:%SZ", math.ceil(seconds)))
end

return M
