--- JSON as the wire wants it: lua-cjson for what is read and for text, numbers and structure with
--- the care that services want: sorted keys, `[]` told from `{}`, no text that is not UTF-8, bounds.

local errors = require "moonsand.errors"
local net = require "moonsand.net"
local options = require "moonsand.options"

local M = {}

local MAX_DEPTH = 100
local MAX_SIZE = 64 * 1024 * 1024

local Array = { __name = "moonsand.json.Array" }

--- Encoded as null.
M.null = setmetatable({}, {
  __name = "moonsand.json.null",
  __tostring = function()
    return "null"
  end,
})

--- Marks a table as a list: it is `[]` when it is empty.
---@generic T
---@param t? T[]
---@return T[] t
function M.array(t)
  return setmetatable(t or {}, Array)
end

local decoders = {} -- by depth
local cjson

local function library()
  if not cjson then
    cjson = require("cjson").new()
    cjson.encode_number_precision(14)
  end
  return cjson
end

local function decoder(depth)
  local json = decoders[depth]
  if not json then
    json = library().new()
    json.decode_invalid_numbers(false)
    json.decode_max_depth(depth)
    decoders[depth] = json
  end
  return json
end

-- ---------------------------------------------------------------- decoding

--- Without cjson's null: absent as a field, false in a list, so that a list keeps its places. Whole
--- numbers are integers where Lua has them. As deep as cjson let it be.
local function plain(value, null)
  if type(value) == "number" then
    return value % 1 == 0 and value > -2 ^ 53 and value < 2 ^ 53 and options.integer(value) or value
  elseif type(value) == "table" then
    local length = #value
    for key, item in pairs(value) do
      if item == null then
        item = nil
        if length > 0 then
          item = false
        end
        value[key] = item
      else
        value[key] = plain(item, null)
      end
    end
  end
  return value
end

--- What a text says. Null fields are absent, null in a list is false; "null" alone is nil without
--- a message.
---@param text string
---@param opts? { depth?: integer, max?: integer }
---@return any value, string? message, string? code, table? detail
function M.decode(text, opts)
  local depth = opts and opts.depth or MAX_DEPTH
  local max = opts and opts.max or MAX_SIZE
  if #text > max then
    return errors.fail("too_large", ("JSON of %d bytes, more than %d"):format(#text, max))
  end
  local bad = net.utf8(text)
  if bad then
    return errors.fail("protocol", ("not JSON: byte %d is not UTF-8"):format(bad))
  end
  local json = decoder(depth)
  local ok, value = pcall(json.decode, text)
  if not ok then
    -- cjson quotes what it found: that may be a secret.
    local where = tostring(value):match "at character %d+" or "too deep"
    return errors.fail("protocol", "not JSON, " .. where)
  elseif value == json.null then
    return nil
  end
  return plain(value, json.null)
end

-- ---------------------------------------------------------------- encoding

local encode_value

local function refuse(why, ...)
  return nil, "JSON cannot carry " .. why:format(...)
end

local function encode_string(text)
  local bad = net.utf8(text)
  if bad then
    return refuse("text that is not UTF-8 (byte %d of %d)", bad, #text)
  end
  return library().encode(text)
end

local function encode_number(number)
  if number ~= number or number == math.huge or number == -math.huge then
    return refuse("%s", tostring(number))
  elseif number % 1 == 0 and number > -2 ^ 53 and number < 2 ^ 53 then
    return ("%d"):format(number)
  end
  return (("%.17g"):format(number):gsub(",", "."))
end

local function encode_list(list, count, depth, seen)
  local pieces = {}
  for i = 1, count do
    local piece, why = encode_value(list[i], depth, seen)
    if not piece then
      return nil, why
    end
    pieces[i] = piece
  end
  return "[" .. table.concat(pieces, ",") .. "]"
end

local function encode_object(object, depth, seen)
  local keys = {}
  for key in pairs(object) do
    if type(key) ~= "string" then
      return refuse("a table with the key %s", tostring(key))
    end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  for i, key in ipairs(keys) do
    local name, why = encode_string(key)
    local piece
    if name then
      piece, why = encode_value(object[key], depth, seen)
    end
    if not piece then
      return nil, why
    end
    keys[i] = name .. ":" .. piece
  end
  return "{" .. table.concat(keys, ",") .. "}"
end

--- How many items a list has; nil when it is none: holes and other keys make it an object, which
--- refuses them.
local function list_length(t)
  local count = 0
  for _ in pairs(t) do
    count = count + 1
  end
  if count ~= #t or (count == 0 and getmetatable(t) ~= Array) then
    return nil
  end
  for i = 1, count do
    if t[i] == nil then
      return nil
    end
  end
  return count
end

local function encode_table(t, depth, seen)
  if seen[t] then
    return refuse("a table inside itself")
  elseif depth > MAX_DEPTH then
    return refuse("tables deeper than %d", MAX_DEPTH)
  end
  seen[t] = true
  local count = list_length(t)
  local text, why
  if count then
    text, why = encode_list(t, count, depth + 1, seen)
  else
    text, why = encode_object(t, depth + 1, seen)
  end
  seen[t] = nil
  return text, why
end

function encode_value(value, depth, seen)
  local kind = type(value)
  if value == M.null then
    return "null"
  elseif kind == "table" then
    return encode_table(value, depth, seen)
  elseif kind == "string" then
    return encode_string(value)
  elseif kind == "number" then
    return encode_number(value)
  elseif kind == "boolean" then
    return tostring(value)
  end
  return refuse("a %s", kind)
end

--- The text of a value. Keys are sorted, so that equal values have equal texts.
---@param value any
---@return string? text, string? message, string? code, table? detail
function M.encode(value)
  local text, why = encode_value(value, 1, {})
  if not text then
    return errors.fail("invalid", why)
  end
  return text
end

return M
