--- What a person sees: colors where there is a terminal, its width, messages, a bar of progress.
--- Only what was asked for goes to stdout; everything here goes to stderr, but for the help.

local core = require "moonsand.core"
local options = require "moonsand.options"

local M = {}

local CODES = { bold = "1", red = "31", green = "32", dim = "2" }
local WIDTH, NARROWEST = 80, 20
local SOON = 0.2 -- seconds: what takes no longer needs no bar
local BEAT = 0.05

local terminals = {} -- fd -> boolean

--- Whether a descriptor is a terminal.
---@param fd integer
---@return boolean
function M.is_terminal(fd)
  if terminals[fd] == nil then
    local answer = os.execute("test -t " .. fd)
    terminals[fd] = answer == true or answer == 0
  end
  return terminals[fd]
end

--- How many columns there are.
---@return integer
function M.width()
  local pipe = io.popen("stty size 2>/dev/null </dev/tty", "r")
  local columns = pipe and tonumber(pipe:read "*a":match "^%d+ (%d+)")
  if pipe then
    pipe:close()
  end
  columns = columns and columns > 0 and columns or tonumber(os.getenv "COLUMNS") or WIDTH
  return math.max(options.integer(math.floor(columns)), NARROWEST)
end

local function wants_color(fd)
  local no = os.getenv "NO_COLOR"
  return (no == nil or no == "") and os.getenv "TERM" ~= "dumb" and M.is_terminal(fd)
end

--- A text in a color, where colors are wanted on that descriptor.
---@param fd integer
---@param style "bold"|"red"|"green"|"dim"
function M.paint(fd, style, text)
  if not wants_color(fd) then
    return text
  end
  return ("\27[%sm%s\27[0m"):format(CODES[style], text)
end

local function written_out(bytes)
  return bytes == "\n" and bytes or (bytes:gsub(".", function(c)
    return ("\\x%02x"):format(c:byte())
  end))
end

--- A text for people: nothing in it can steer the terminal, not in the UTF-8 of the upper half either.
local function harmless(text)
  return (text:gsub("[%c\127]", written_out):gsub("\194[\128-\159]", written_out))
end
M.harmless = harmless

--- A line to stderr: `moonsand: …`.
function M.say(text)
  io.stderr:write("moonsand: ", harmless(text), "\n")
end

--- The same for what went wrong, with its cause and its cure where they are known.
---@param message string
---@param detail? table
function M.complain(message, detail)
  io.stderr:write(M.paint(2, "red", "moonsand:"), " ", harmless(message), "\n")
  if detail and detail.cause and detail.fix then
    if not message:find(detail.cause, 1, true) then
      io.stderr:write("  cause: ", harmless(tostring(detail.cause)), "\n")
    end
    io.stderr:write("  fix:   ", harmless(tostring(detail.fix)), "\n")
  end
end

--- How many columns a text takes: none for the tail of a character.
local function columns(text)
  return #text:gsub("[\128-\191]", "")
end

--- Rows of cells, to stdout, the first one a heading. On a terminal a row is cut where the line ends.
---@param rows string[][]
function M.print_table(rows)
  local widths, width = {}, M.is_terminal(1) and M.width() or math.huge
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do
      row[i] = harmless(cell):gsub("\n", " ")
      widths[i] = math.max(widths[i] or 0, columns(row[i]))
    end
  end
  for number, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      cells[i] = i < #row and cell .. (" "):rep(widths[i] - columns(cell)) or cell
    end
    local text = table.concat(cells, "  ")
    if columns(text) > width then
      text = text:sub(1, width - 3) .. "..."
    end
    io.stdout:write(number == 1 and M.paint(1, "bold", text) or text, "\n")
  end
end

-- ---------------------------------------------------------------- progress

local UNITS = { "B", "KiB", "MiB", "GiB", "TiB" }

--- Bytes as a person reads them: `12.3 MiB`.
function M.size(bytes)
  local unit = 1
  while bytes >= 1024 and unit < #UNITS do
    bytes, unit = bytes / 1024, unit + 1
  end
  return unit == 1 and ("%d B"):format(bytes) or ("%.1f %s"):format(bytes, UNITS[unit])
end

--- One line of progress, not wider than asked for.
function M.bar(label, done, total, width)
  local share = total > 0 and math.min(done / total, 1) or 1
  local tail = (" %3d%% %s"):format(math.floor(share * 100), M.size(done))
  local room = math.min(width - #tail - 3 - 8, 40)
  if #label > room then
    label = label:sub(1, math.max(room - 3, 0)) .. "..."
  end
  local cells = math.min(width - #label - #tail - 3, 40)
  if cells < 4 then
    return (label .. tail):sub(1, width)
  end
  local full = math.floor(share * cells)
  return ("%s [%s%s]%s"):format(label, ("#"):rep(full), (" "):rep(cells - full), tail)
end

--- What `upload` and `download` take as `progress`, and what clears the line again. Nothing is shown
--- where stderr is no terminal, and for what is over soon.
---@param label string
---@return fun(done: integer, total: integer)? progress
---@return fun() finish
function M.progress(label)
  if not M.is_terminal(2) then
    return nil, function() end
  end
  local width, began, shown = nil, core.now(), nil
  local function show(done, total)
    local now = core.now()
    if now - began < SOON or shown and now - shown < BEAT and done < total then
      return
    end
    shown, width = now, width or M.width() - 1
    io.stderr:write("\r", M.bar(harmless(label), done, total, width), "\27[K")
  end
  return show, function()
    if shown then
      io.stderr:write "\r\27[K"
    end
  end
end

return M
