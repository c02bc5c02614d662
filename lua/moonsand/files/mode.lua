--- Permissions of files as users write them: "755", "0755", "u+x", "go-w,a=r".

local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

local bits = { r = 4, w = 2, x = 1 }

--- LuaJIT has no operators for bits: digits of octal numbers, three bits each, as a table.
local function split(mode)
  local u, g = (mode - mode % 64) / 64, (mode - mode % 8) / 8
  return {
    special = options.integer((u - u % 8) / 8),
    u = options.integer(u % 8),
    g = options.integer(g % 8),
    o = mode % 8,
  }
end

local function has(digit, bit)
  return digit % (bit * 2) >= bit
end

local function set(parts, who, bit, on)
  if has(parts[who], bit) ~= on then
    parts[who] = parts[who] + (on and bit or -bit)
  end
end

local function executable(parts)
  return has(parts.u, 1) or has(parts.g, 1) or has(parts.o, 1)
end

--- One of "rwxXst" for one of "ugo".
local function change(parts, who, letter, on, runs)
  if bits[letter] then
    set(parts, who, bits[letter], on)
  elseif letter == "X" then
    if runs then
      set(parts, who, 1, on)
    end
  elseif letter == "s" then
    if who ~= "o" then
      set(parts, "special", who == "u" and 4 or 2, on)
    end
  else
    set(parts, "special", 1, on)
  end
end

local function clause(parts, text, directory)
  local whom, operator, letters = text:match "^([ugoa]*)([-+=])([rwxXst]*)$"
  if not whom then
    return false
  end
  local runs = directory or executable(parts)
  if whom == "" or whom:find "a" then
    whom = "ugo"
  end
  for who in whom:gmatch "." do
    if operator == "=" then
      parts[who] = 0
    end
    for letter in letters:gmatch "." do
      change(parts, who, letter, operator ~= "-", runs)
    end
  end
  return true
end

--- True when what a mode means depends on the one that is there.
---@param mode string
---@return boolean
function M.is_relative(mode)
  return not mode:find "^[0-7]+$"
end

--- The number that a mode stands for.
---@param mode string
---@param base? integer what "u+x" changes; 0 if nil
---@param directory? boolean for "X"
---@return integer? mode, string? message, string? code, table? detail
function M.parse(mode, base, directory)
  if mode:find "^[0-7]+$" and #mode <= 5 then
    local number = tonumber(mode, 8)
    if number <= 4095 then
      return number
    end
  elseif mode ~= "" and not mode:find "^," and not mode:find ",$" and not mode:find ",," then
    local parts, fine = split(base or 0), true
    for text in mode:gmatch "[^,]+" do
      fine = fine and clause(parts, text, directory)
    end
    if fine then
      return parts.special * 512 + parts.u * 64 + parts.g * 8 + parts.o
    end
  end
  return errors.fail("invalid", ('mode: %s is none ("755", "u+x")'):format(options.quote(mode)))
end

--- "0755".
---@param mode integer
---@return string
function M.format(mode)
  return ("%04o"):format(mode)
end

return M
