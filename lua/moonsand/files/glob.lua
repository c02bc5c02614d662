--- Glob patterns, as far as they are treated on the host: braces. The rest is matched inside
--- (src/agent/glob.c).

local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

--- How many patterns one may stand for.
local MOST = 256

--- The first group of braces with a comma in it: where it begins and ends, and its parts.
local function find_group(text, start)
  local depth, from, parts, last = 0, nil, nil, nil
  local at = start
  while at <= #text do
    local c = text:sub(at, at)
    if c == "\\" then
      at = at + 1
    elseif c == "{" then
      depth = depth + 1
      if depth == 1 then
        from, parts, last = at, {}, at + 1
      end
    elseif c == "," and depth == 1 then
      parts[#parts + 1] = text:sub(last, at - 1)
      last = at + 1
    elseif c == "}" and depth > 0 then
      depth = depth - 1
      if depth == 0 and #parts > 0 then
        parts[#parts + 1] = text:sub(last, at - 1)
        return from, at, parts
      end
    end
    at = at + 1
  end
  if depth > 0 then
    return find_group(text, from + 1) -- that one was never closed
  end
end

local function expand(text, list)
  local from, to, parts = find_group(text, 1)
  if not from then
    list[#list + 1] = text
    return #list <= MOST
  end
  for _, part in ipairs(parts) do
    if not expand(text:sub(1, from - 1) .. part .. text:sub(to + 1), list) then
      return false
    end
  end
  return true
end

--- The patterns without braces that a pattern stands for.
---@param pattern string
---@return string[]? patterns, string? message, string? code, table? detail
function M.expand(pattern)
  local list = {}
  if not expand(pattern, list) then
    return errors.fail("invalid", ("%s stands for more than %d patterns"):format(
      options.quote(pattern), MOST))
  end
  return list
end

--- Text that a pattern is to take as it is.
---@param text string
---@return string
function M.escape(text)
  return (text:gsub("[][*?{},\\]", "\\%0"))
end

return M
