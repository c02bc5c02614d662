--- Addresses: put together from parts, and told without what is nobody's business.

local errors = require "moonsand.errors"

local M = {}

--- A path segment or a value, percent-encoded but for what RFC 3986 calls unreserved.
---@param text string
---@return string
function M.escape(text)
  return (text:gsub("[^%w%-._~]", function(c)
    return ("%%%02X"):format(c:byte())
  end))
end

local function text_of(name, value)
  if type(value) == "number" then
    return value % 1 == 0 and ("%d"):format(value) or tostring(value)
  elseif type(value) == "boolean" or type(value) == "string" then
    return tostring(value)
  end
  errors.raise(4, "query: the value of '%s' must be a string, number or boolean, got %s", name,
    type(value))
end

local function add(pairs_, name, value)
  if type(value) == "table" then
    for _, item in ipairs(value) do
      add(pairs_, name, item)
    end
    return
  end
  pairs_[#pairs_ + 1] = M.escape(name) .. "=" .. M.escape(text_of(name, value))
end

--- The query of an address: `name = value` sorted by name, or a list of { name, value } in order.
---@param query? table
---@return string "" or "?a=1&b=2"
function M.query(query)
  if not query then
    return ""
  end
  local pieces, names = {}, {}
  for name, value in pairs(query) do
    if type(name) == "string" then
      names[#names + 1] = name
    elseif type(value) ~= "table" or type(value[1]) ~= "string" or value[2] == nil then
      errors.raise(3, "query: a list must have items { name, value }")
    end
  end
  table.sort(names)
  for _, item in ipairs(query) do
    add(pieces, item[1], item[2])
  end
  for _, name in ipairs(names) do
    add(pieces, name, query[name])
  end
  return pieces[1] and "?" .. table.concat(pieces, "&") or ""
end

--- The address without user, password, query and fragment, for messages.
---@param url string
---@return string
function M.safe(url)
  if not (url:find("?", 1, true) or url:find("#", 1, true) or url:find("@", 1, true)) then
    return url -- a pattern takes ten times as long to find that
  end
  local scheme, rest = url:match "^(%a[%w+.-]*://)(.*)$"
  rest = (rest or url):gsub("[?#].*$", "")
  local authority, path = rest:match "^([^/]*)(.*)$"
  return (scheme or "") .. authority:gsub("^.*@", "") .. path
end

local function refuse(code, why, ...)
  return errors.fail(code, why:format(...))
end

--- Whether an address can be asked for: `schemes` are the words before "://".
---@param url string
---@param schemes table<string, any>
---@return true? ok, string? message, string? code, table? detail
function M.check(url, schemes)
  if url:find "[%c ]" then
    return refuse("invalid", "the address has a space or a control character in it")
  end
  local scheme, host = url:match "^(%a[%w+.-]*)://([^/?#]*)"
  if scheme and not schemes[scheme:lower()] then
    return refuse("unsupported", "addresses with '%s:' are not supported", scheme)
  elseif not scheme or host == "" or host:sub(-1) == "@" then
    return refuse("invalid", "'%s' is not an address (http://host/path)", M.safe(url))
  end
  return true
end

return M
