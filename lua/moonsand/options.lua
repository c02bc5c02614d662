--- Checking what callers pass: wrong types and unknown names raise at the caller's line, with a
--- suggestion; wrong values answer a failure.

local errors = require "moonsand.errors"

local M = {}

--- How many slips lie between two words: a character too many, too few, another one, or two
--- swapped (Levenshtein and Damerau, three rows).
local function distance(a, b)
  local previous, before = {}, nil
  for j = 0, #b do
    previous[j] = j
  end
  for i = 1, #a do
    local row = { [0] = i }
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      row[j] = math.min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        row[j] = math.min(row[j], before[j - 2] + 1)
      end
    end
    previous, before = row, previous
  end
  return previous[#b]
end

--- The known name nearest to `name`, or nil when none is near.
---@param name string
---@param known table<string, any>
---@return string?
function M.nearest(name, known)
  local best, best_distance
  for candidate in pairs(known) do
    local d = distance(name, candidate)
    if not best or d < best_distance or (d == best_distance and candidate < best) then
      best, best_distance = candidate, d
    end
  end
  if best and best_distance <= math.max(1, math.floor(#name / 3)) then
    return best
  end
end

local function is_callable(value)
  if type(value) == "function" then
    return true
  end
  local meta = debug.getmetatable(value)
  return type(meta) == "table" and type(rawget(meta, "__call")) == "function"
end

local function matches(value, expected)
  local kind = type(value)
  if kind == expected then
    return true
  end
  for word in expected:gmatch "[%w_]+" do
    if word == kind or (word == "callable" and is_callable(value))
      or (word == "file" and io.type(value)) or (word == "any")
      or (word == "stream" and kind == "table" and type(value.chunk) == "function") then
      return true
    end
  end
  return false
end

--- Checks an options table. `known` maps each name to the types it may have, such as
--- `"string|number"`. A number in place of the table is `{ timeout = n }`.
---@param call string the public function, for messages: `box:exec`
---@param opts table|number|nil
---@param known table<string, string>
---@param level? integer whose line is to blame; 2 (default): the caller of the caller of `check`
---@return table opts never the caller's own table when it had to be changed
function M.check(call, opts, known, level)
  level = (level or 2) + 1
  if opts == nil then
    return {}
  end
  if type(opts) == "number" then
    opts = { timeout = opts }
  elseif type(opts) ~= "table" then
    errors.raise(level, "%s: options must be a table, got %s", call, type(opts))
  end
  for name, value in pairs(opts) do
    local expected = known[name]
    if not expected then
      local near = type(name) == "string" and M.nearest(name, known)
      errors.raise(level, "%s: unknown option %s%s", call, M.quote(name),
        near and (" (did you mean '" .. near .. "'?)") or "")
    end
    if not matches(value, expected) then
      errors.raise(level, "%s: option '%s' must be a %s, got %s", call, name,
        (expected:gsub("|", " or ")), type(value))
    end
  end
  if type(opts.timeout) == "number" and not (opts.timeout >= 0) then
    errors.raise(level, "%s: option 'timeout' must be a number of seconds, not %s", call, opts.timeout)
  end
  if opts.cancel ~= nil and not (type(opts.cancel) == "table" and opts.cancel.on_cancel) then
    errors.raise(level, "%s: option 'cancel' must be a token, as from moonsand.token()", call)
  end
  return opts
end

--- A value as it is shown in messages: short, one line, printable.
function M.quote(value)
  if type(value) ~= "string" then
    return tostring(value)
  end
  if #value > 80 then
    value = value:sub(1, 77) .. "..."
  end
  return "'" .. value:gsub("[%c\127-\255]", function(c)
    return ("\\x%02x"):format(c:byte())
  end) .. "'"
end

local MAX_SIZE_TEXT = 64
local units = { [""] = 1, K = 1024, M = 1024 ^ 2, G = 1024 ^ 3, T = 1024 ^ 4 }

--- Bytes: a number, or `"512M"` (K, M, G, T are powers of 1024).
---@param value number|string
---@return integer? bytes, string? message, string? code, table? detail
function M.size(name, value)
  local number, unit = value, ""
  if type(value) == "string" then
    value = #value <= MAX_SIZE_TEXT and value or value:sub(1, MAX_SIZE_TEXT) .. "..." -- is none
    number, unit = value:upper():match "^%s*(%d+%.?%d*)%s*([KMGT]?)I?B?%s*$"
    number = tonumber(number)
  end
  if not number or number ~= number or number < 0 or number * units[unit] >= 2 ^ 53 then
    return errors.fail("invalid", ("%s: %s is not a size in bytes"):format(name, M.quote(value)))
  end
  return M.integer(math.floor(number * units[unit]))
end

--- A whole number as an integer where Lua has them.
M.integer = math.tointeger or function(value)
  return value
end

--- Limits that are sizes, those that need be no whole number, and what the kernel reckons with at most.
local SIZES = { disk = true, file_size = true, memory = true }
local PARTS = { cpus = true }
local MOST = { cpus = 2 ^ 20, cpu_time = 2 ^ 34 }

--- The value of a limit: bytes, a count, seconds (whole ones: the next), or cores.
---@param name string
---@param value number|string
---@return number? value, string? message, string? code, table? detail
function M.limit(name, value)
  local label = "limits." .. name
  if SIZES[name] then
    return M.size(label, value)
  end
  local most, asked = MOST[name] or 2 ^ 53, value
  if name == "cpu_time" then
    value = math.ceil(value)
  end
  if not (value > 0) then
    return errors.fail("invalid", ("%s: %s is not a positive number"):format(label, tostring(asked)))
  elseif value > most then
    return errors.fail("invalid", ("%s: %s is more than can be held (at most %.0f)"):format(label,
      tostring(asked), most))
  elseif value % 1 ~= 0 and not PARTS[name] then
    return errors.fail("invalid", ("%s: %s is not a whole number"):format(label, tostring(asked)))
  end
  return M.integer(value) or value
end

--- Checks that a table is a list: keys from 1 on, without gaps, of values of one type.
---@param call string the public function and the option, for messages
---@param list table?
---@param kind string
---@param level integer whose line is to blame, as in `check`
---@return table list
function M.list(call, list, kind, level)
  list = list or {}
  for key in pairs(list) do
    if type(key) ~= "number" or key % 1 ~= 0 or key < 1 or key > #list then
      errors.raise(level + 1, "%s must be a list, and has the key %s", call, M.quote(key))
    end
  end
  for i = 1, #list do
    if type(list[i]) ~= kind then
      errors.raise(level + 1, "%s[%d] must be a %s, got %s", call, i, kind, type(list[i]))
    end
  end
  return list
end

return M
