--- The help, as wide as the terminal: made from the table in source.lua.

local source = require "moonsand.cli.source"

local M = {}

local WIDEST = 100 -- longer lines are hard to read
local INDENT = 2
local COLUMN = 26 -- where texts begin, when there is room for two columns
local TWO_COLUMNS = 64

--- How many columns a text takes: none for the tail of a character.
local function columns(text)
  return #text:gsub("[\128-\191]", "")
end

--- Words on lines of a width, each behind an indent.
local function wrap(text, width, indent)
  local lines, line = {}, nil
  local space = (" "):rep(indent)
  for word in text:gmatch "%S+" do
    if line and columns(line) + 1 + columns(word) > width then
      lines[#lines + 1], line = line, nil
    end
    line = line and line .. " " .. word or space .. word
  end
  lines[#lines + 1] = line
  return lines
end

--- `word` in texts is for pages that have a typeface for it.
local function plain(text)
  return (text:gsub("`", ""))
end

---@class moonsand.cli.Page
---@field lines string[]
---@field width integer
---@field paint fun(style: string, text: string): string
local Page = {}
Page.__index = Page

local function page(width, paint)
  return setmetatable({ lines = {}, width = math.min(width, WIDEST), paint = paint }, Page)
end

function Page:add(lines)
  for _, line in ipairs(lines) do
    self.lines[#self.lines + 1] = line
  end
end

function Page:title(text)
  self:add { "", self.paint("bold", text .. ":") }
end

function Page:text(text)
  for paragraph in (plain(text) .. "\n\n"):gmatch "(.-)\n\n" do
    self:add { "" }
    self:add(wrap(paragraph, self.width, 0))
  end
end

--- A name and what it means: beside each other, or below where that is too narrow.
function Page:row(name, text, column)
  column = column or COLUMN
  local narrow = self.width < TWO_COLUMNS
  local lines = wrap(plain(text), self.width, narrow and 3 * INDENT or column)
  local left = (" "):rep(INDENT) .. name
  if narrow or #left > column - 2 then
    self:add { left }
  else
    lines[1] = left .. lines[1]:sub(#left + 1)
  end
  self:add(lines)
end

--- Words that may not be cut behind each other, such as a usage.
function Page:usage(name, usage)
  local head = "usage: " .. name
  local lines = wrap(usage, self.width - #head - 1, 0)
  self:add { head .. (lines[1] and " " .. lines[1] or "") }
  for i = 2, #lines do
    self:add { (" "):rep(#head + 1) .. lines[i] }
  end
end

function Page:finish()
  return table.concat(self.lines, "\n") .. "\n"
end

--- The help of the tool.
---@param width integer
---@param paint fun(style: string, text: string): string
---@return string
function M.tool(width, paint)
  local p = page(width, paint)
  p:usage(source.name, "COMMAND [OPTION…] [WORD…]")
  p:text(source.text)
  p:title "Commands"
  for _, command in ipairs(source.commands) do
    p:row(command.name, command.summary, 14)
  end
  p:title "Exit status"
  for _, row in ipairs(source.exit_status) do
    p:row(row[1], row[2], 14)
  end
  p:title "Examples"
  for _, row in ipairs(source.examples) do
    p:add { (" "):rep(INDENT) .. row[1] }
    p:add(wrap(row[2], p.width, 3 * INDENT))
  end
  return p:finish()
end

--- The help of a command.
---@param command moonsand.cli.Command
---@param width integer
---@param paint fun(style: string, text: string): string
---@return string
function M.command(command, width, paint)
  local p = page(width, paint)
  p:usage(source.name .. " " .. command.name, command.usage)
  p:text(command.text)
  local last
  for _, group in ipairs(source.groups_of(command)) do
    local title = group.title or "Options"
    if title ~= last then
      p:title(title)
    end
    last = title
    for _, option in ipairs(group) do
      p:row(source.signature(option), option.text)
    end
  end
  return p:finish()
end

return M
