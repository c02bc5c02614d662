--- multipart/form-data (RFC 7578): several parts as the body of one request. Parts that are strings
--- are sent as they are; files and functions are read piece by piece.

local core = require "moonsand.core"
local errors = require "moonsand.errors"

local M = {}

---@class moonsand.http.Part
---@field name string
---@field filename? string
---@field type? string content-type
---@field body string|file*|fun(): string?, string?
---@field size? integer of what a function gives

--- A name in a header: quotes and line ends as browsers write them.
local function quoted(name)
  return '"' .. name:gsub('[\r\n"]', { ["\r"] = "%0D", ["\n"] = "%0A", ['"'] = "%22" }) .. '"'
end

local function head(part, boundary)
  local lines = {
    "--" .. boundary,
    "Content-Disposition: form-data; name=" .. quoted(part.name)
      .. (part.filename and "; filename=" .. quoted(part.filename) or ""),
  }
  if part.type then
    lines[#lines + 1] = "Content-Type: " .. part.type
  end
  return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

local function check(part, i)
  if type(part) ~= "table" or type(part.name) ~= "string" then
    errors.raise(4, "multipart: part %d must be a table with a name", i)
  elseif part.type and part.type:find "[%c]" then
    errors.raise(4, "multipart: part %d: a content type on several lines", i)
  end
end

--- One after the other: what several sources give.
local function chain(sources)
  local at = 1
  return function()
    while sources[at] do
      local piece, message = sources[at].next()
      if piece or message then
        return piece, message
      end
      at = at + 1
    end
  end
end

--- The whole as one source, in the sense of `moonsand.wire.body`, and its content type.
---@param parts moonsand.http.Part[]
---@param source_of fun(body: any, size: integer?): table
---@return table source, string content_type
function M.source(parts, source_of)
  local boundary = "moonsand-" .. core.random(16):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end)
  local sources, total = {}, 0
  local function add(source)
    sources[#sources + 1] = source
    total = total and source.size and total + source.size
  end
  for i, part in ipairs(parts) do
    check(part, i)
    add(source_of(head(part, boundary)))
    add(source_of(part.body, part.size))
    add(source_of "\r\n")
  end
  add(source_of("--" .. boundary .. "--\r\n"))
  local texts = {}
  for _, source in ipairs(sources) do
    texts[#texts + 1] = source.text
  end
  local kind = "multipart/form-data; boundary=" .. boundary
  if #texts == #sources then
    return source_of(table.concat(texts)), kind
  end
  local function rewind()
    for _, source in ipairs(sources) do
      if not source.rewind or not source.rewind() then
        return false
      end
    end
    return true
  end
  local pieces = chain(sources)
  return {
    size = total,
    next = function()
      return pieces()
    end,
    rewind = function()
      pieces = chain(sources)
      return rewind()
    end,
  }, kind
end

return M
