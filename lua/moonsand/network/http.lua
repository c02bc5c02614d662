--- The head of one request to a proxy, read and checked. Strict where readers differ: bare
--- newlines, folded lines, two lengths, a length and chunks, names with spaces are refused, for what
--- we understand must be what the server behind us understands (request smuggling). A connection is
--- for one request: whatever else is said on it was not looked at, and goes nowhere.

local address = require "moonsand.network.address"

local M = {}

local MAX_LINE, MAX_HEAD, MAX_FIELDS = 16 * 1024, 64 * 1024, 100
local MAX_LENGTH_DIGITS = 15

--- Said between two machines only, or about the proxy.
local HOP = {
  connection = true, ["proxy-connection"] = true, ["keep-alive"] = true, te = true, trailer = true,
  upgrade = true, ["proxy-authorization"] = true, ["proxy-authenticate"] = true,
  ["http2-settings"] = true,
}
--- What "Connection: …" must not take away.
local KEPT = { host = true, ["content-length"] = true, ["transfer-encoding"] = true }

---@class moonsand.Request
---@field method string
---@field host { name: string?, address: string?, text: string }
---@field port integer
---@field connect boolean a tunnel is asked for
---@field head? string what the server is sent, for anything but a tunnel
---@field body? number|"chunked" what follows it

local function bad(why)
  return nil, 400, why
end

local TOKEN = "[%w!#$%%&'*+.^_`|~-]+"

--- "http://host:port/path" apart.
local function read_url(url)
  local scheme, authority, path = url:match "^(%a[%w+.-]*)://([^/?#]*)([^#]*)"
  if not scheme then
    return bad "this is a proxy: the request needs a whole URL"
  elseif scheme:lower() ~= "http" then
    return bad(("%s is asked for with CONNECT"):format(scheme:lower()))
  elseif authority:find "@" then
    return bad "a URL with a user"
  end
  local host, port = address.authority(authority, 80)
  if not host then
    return bad "a URL without a proper host"
  elseif path:sub(1, 1) ~= "/" then
    path = "/" .. path
  end
  return host, port, path, authority
end

local function read_request_line(line)
  local method, target, minor = line:match("^(" .. TOKEN .. ") ([\33-\126]+) HTTP/1%.([01])$")
  if not method or #method > 32 then
    return bad "no HTTP/1 request"
  end
  local request = { method = method, connect = method == "CONNECT", minor = minor }
  if request.connect then
    request.host, request.port = address.authority(target)
    if not request.host then
      return bad "CONNECT needs host:port"
    end
    return request
  end
  local host, port, path, authority = read_url(target)
  if not host then
    return nil, port, path
  end
  request.host, request.port, request.path, request.authority = host, port, path, authority
  return request
end

--- Fields in order, and their values by name in lower case, apart: a field may have any name. The
--- blanks at the end are left to a second pattern, for both at once cost the square of their number.
local function read_fields(lines)
  local fields, values = {}, {}
  for i = 2, #lines do
    local name, value = lines[i]:match("^(" .. TOKEN .. "):[ \t]*(.*)$")
    value = value and (value:match "^.*[^ \t]" or "")
    if not name or value:find "[%c]" and value:find "[^\t%C]" then
      return bad "a broken header field"
    end
    name = name:lower()
    if KEPT[name] and values[name] then
      return bad("two fields " .. name)
    end
    fields[#fields + 1] = { name = name, value = value, line = lines[i] }
    values[name] = values[name] and values[name] .. "," .. value or value
  end
  return { list = fields, values = values }
end

--- Which fields stay behind.
local function hop_fields(fields)
  local hop = setmetatable({}, { __index = HOP })
  for option in (fields.values.connection or ""):lower():gmatch "[^,%s]+" do
    if KEPT[option] then
      return bad("Connection: " .. option)
    end
    hop[option] = true
  end
  return hop
end

local function read_body(request, fields)
  local length, coding = fields.values["content-length"], fields.values["transfer-encoding"]
  if coding and length then
    return bad "a length and a transfer coding"
  elseif coding and (coding:lower() ~= "chunked" or request.minor == "0") then
    return nil, 501, "a transfer coding other than chunked"
  elseif length and not (length:find "^%d+$" and #length <= MAX_LENGTH_DIGITS) then
    return bad "a broken length"
  end
  return coding and "chunked" or tonumber(length or 0)
end

local function server_head(request, fields, hop)
  local lines = { ("%s %s HTTP/1.1"):format(request.method, request.path) }
  lines[2] = "Host: " .. request.authority -- the one that was checked, whatever the client says
  for _, field in ipairs(fields.list) do
    if not hop[field.name] and field.name ~= "host" then
      lines[#lines + 1] = ("%s: %s"):format(field.line:match "^[^:]+", field.value)
    end
  end
  lines[#lines + 1] = "Connection: close\r\n\r\n"
  return table.concat(lines, "\r\n")
end

--- The lines of a head, without their ends.
---@param read fun(most: integer): string?, integer?, string? a line with its end; or nil, a status
---  to answer, why
---@param first string? what of the first line was read already
local function read_lines(read, first)
  local lines, total = {}, 0
  while true do
    local line, status, why = read(MAX_LINE)
    if not line then
      return nil, status, why
    end
    line, first = (first or "") .. line, nil
    total = total + #line
    if total > MAX_HEAD or #lines > MAX_FIELDS then
      return nil, 431, "the head is too large"
    elseif line:sub(-2) ~= "\r\n" or line:find("[%z\r\n]", 1) ~= #line - 1 then
      return bad "a line that does not end as lines do"
    elseif line == "\r\n" then
      if not lines[1] then
        return bad "an empty request"
      end
      return lines
    end
    lines[#lines + 1] = line:sub(1, -3)
  end
end

--- Reads one request's head.
---@param read fun(most: integer): string?, integer?, string?
---@param first? string
---@return moonsand.Request? request, integer? status, string? why
function M.read(read, first)
  local lines, status, why = read_lines(read, first)
  if not lines then
    return nil, status, why
  end
  local request, fields, hop
  request, status, why = read_request_line(lines[1])
  if not request then
    return nil, status, why
  end
  fields, status, why = read_fields(lines)
  if not fields then
    return nil, status, why, request
  end
  hop, status, why = hop_fields(fields)
  if not hop then
    return nil, status, why, request
  end
  if request.connect then
    return request
  end
  request.body, status, why = read_body(request, fields)
  if not request.body then
    return nil, status, why, request
  end
  request.head = server_head(request, fields, hop)
  return request
end

local REASONS = {
  [400] = "Bad Request", [403] = "Forbidden", [408] = "Request Timeout",
  [431] = "Request Header Fields Too Large", [501] = "Not Implemented", [502] = "Bad Gateway",
  [504] = "Gateway Timeout",
}

M.CONNECTED = "HTTP/1.1 200 Connection established\r\n\r\n"

--- An answer of the proxy's own.
---@param status integer
---@param why string
function M.answer(status, why)
  local text = "moonsand: " .. why .. "\n"
  return ("HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    .. "Connection: close\r\n\r\n%s"):format(status, REASONS[status], #text, text)
end

return M
