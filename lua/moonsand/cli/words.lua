--- From the words of a command line to a command, its options and what is left: read by the table in
--- source.lua. What is wrong is a failure, with what was perhaps meant.

local errors = require "moonsand.errors"
local options = require "moonsand.options"
local source = require "moonsand.cli.source"

local M = {}

local function fail(command, format, ...)
  return errors.fail("invalid", format:format(...),
    { usage = command and command.name .. " " or "" })
end

local function perhaps(word, known, dashes)
  local near = options.nearest(word, known)
  return near and (" (did you mean '%s%s'?)"):format(dashes, near) or ""
end

-- ---------------------------------------------------------------- values

local SECONDS = { [""] = 1, ms = 0.001, s = 1, m = 60, h = 3600 }

local function read_number(text)
  return text:find "^%d*%.?%d*$" and tonumber(text) or nil
end

--- By kind: the value, or nil and what it is not.
local readers = {
  text = function(text)
    return text
  end,
  words = function(text)
    local words = {}
    for word in text:gmatch "[^%s,]+" do
      words[#words + 1] = word
    end
    return words
  end,
  seconds = function(text)
    local number, unit = text:match "^([%d.]+)(%a*)$"
    number = number and SECONDS[unit] and read_number(number)
    return number and number * SECONDS[unit], "a number of seconds (10, 1.5, 500ms, 5m, 2h)"
  end,
  size = function(text)
    return options.size("", text), "a size in bytes (4096, 64K, 512M, 2G)"
  end,
  number = function(text)
    local number = read_number(text)
    return number and number > 0 and number or nil, "a number above 0"
  end,
  count = function(text)
    local number = text:find "^%d+$" and tonumber(text)
    return number and number > 0 and options.integer(number) or nil, "a whole number above 0"
  end,
}

--- Puts the value of an option where it belongs.
local function set(command, values, option, text)
  local name = option.long:gsub("-", "_")
  local value = true
  if option.value then
    local wanted
    value, wanted = readers[option.kind](text)
    if value == nil then
      return fail(command, "--%s: %s is not %s", option.long, options.quote(text), wanted)
    end
  end
  if not option.many then
    values[name] = value
    return true
  end
  values[name] = values[name] or {}
  for _, each in ipairs(type(value) == "table" and value or { value }) do
    table.insert(values[name], each)
  end
  return true
end

-- ---------------------------------------------------------------- options

--- A command's options: by long name, by letter.
local function options_of(command)
  local long, short = {}, {}
  for _, group in ipairs(source.groups_of(command)) do
    for _, option in ipairs(group) do
      long[option.long] = option
      if option.short then
        short[option.short] = option
      end
    end
  end
  return long, short
end

--- `--name`, `--name=value`, `--name value`: the place of the last word that it took.
local function read_long(command, values, words, at, long)
  local name, value = words[at]:match "^%-%-([^=]*)=?(.*)$"
  local has_value = words[at]:find("=", 1, true) ~= nil
  local option = long[name]
  if not option then
    return fail(command, "unknown option '--%s'%s", name, perhaps(name, long, "--"))
  elseif not option.value and has_value then
    return fail(command, "--%s takes no value", name)
  elseif option.value and not has_value then
    at = at + 1
    value = words[at]
    if not value then
      return fail(command, "--%s needs a value: %s", name, option.value)
    end
  end
  local ok, message, code, detail = set(command, values, option, value)
  return ok and at, message, code, detail
end

--- `-n`, `-nq`, `-t5`, `-t 5`.
local function read_short(command, values, words, at, short)
  local letters = words[at]:sub(2)
  while letters ~= "" do
    local letter = letters:sub(1, 1)
    local option = short[letter]
    letters = letters:sub(2)
    if not option then
      return fail(command, "unknown option '-%s'", letter)
    end
    local value
    if option.value then
      value, letters = letters, ""
      if value == "" then
        at = at + 1
        value = words[at]
      end
      if not value then
        return fail(command, "-%s needs a value: %s", letter, option.value)
      end
    end
    local ok, message, code, detail = set(command, values, option, value)
    if not ok then
      return nil, message, code, detail
    end
  end
  return at
end

local function append(list, words, from)
  for i = from, #words do
    list[#list + 1] = words[i]
  end
end

--- The options and the words that are none.
---@return table? values, string[]|string rest_or_message, string? code, table? detail
local function read_options(command, words, from)
  local long, short = options_of(command)
  local values, rest, at = {}, {}, from
  while words[at] do
    local word, message, code, detail = words[at], nil, nil, nil
    if word == "--" then
      append(rest, words, at + 1)
      break
    elseif word:find "^%-%-" then
      at, message, code, detail = read_long(command, values, words, at, long)
    elseif word:find "^%-." then
      at, message, code, detail = read_short(command, values, words, at, short)
    elseif command.passes then
      append(rest, words, at)
      break
    else
      rest[#rest + 1] = word
    end
    if not at then
      return nil, message, code, detail
    end
    at = at + 1
  end
  return values, rest
end

-- ---------------------------------------------------------------- a command line

local ALIASES = { ["--help"] = "help", ["-h"] = "help", ["--version"] = "version", ["-V"] = "version" }

local function find_command(name)
  local command = source.command(ALIASES[name] or name)
  if command then
    return command
  elseif name:find "^%-" then
    return fail(nil, "unknown option %s: options come behind a command", options.quote(name))
  end
  local known = {}
  for _, each in ipairs(source.commands) do
    known[each.name] = true
  end
  return fail(nil, "there is no command %s%s", options.quote(name), perhaps(name, known, ""))
end

---@class moonsand.cli.Line
---@field command moonsand.cli.Command
---@field options table<string, any> by long name, "_" for "-"
---@field words string[]

--- Reads a command line.
---@param words string[]
---@return moonsand.cli.Line? line, string? message, string? code, table? detail
function M.read(words)
  if not words[1] then
    return fail(nil, "a command is needed")
  end
  local command, message, code, detail = find_command(words[1])
  if not command then
    return nil, message, code, detail
  end
  local values, rest
  values, rest, code, detail = read_options(command, words, 2)
  if not values then
    return nil, rest, code, detail
  elseif not values.help then
    if #rest < command.least then
      return fail(command, "%s", command.lacks)
    elseif #rest > command.most then
      return fail(command, "%s is one word too many", options.quote(rest[command.most + 1]))
    end
  end
  return { command = command, options = values, words = rest }
end

return M
