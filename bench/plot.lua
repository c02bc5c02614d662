--- The picture: each figure against its target, and what a command costs with us and with others.
--- Plain SVG, written by hand; it needs no font and no script of its own.

local report = require "report"

local M = {}

local WIDTH, LEFT, RIGHT, ROW = 1000, 370, 225, 22
local SPAN = WIDTH - LEFT - RIGHT -- of the axis

local COLOR = {
  text = "#222", faint = "#777", grid = "#ddd", band = "#f4f4f4",
  met = "#1b7f4b", missed = "#c62828", ours = "#1f5fbf", others = "#8a8a8a",
}

-- ---------------------------------------------------------------- drawing

---@class bench.Canvas
local Canvas = {}
Canvas.__index = Canvas

local function canvas()
  return setmetatable({ parts = {}, y = 0 }, Canvas)
end

function Canvas:add(shape, ...)
  self.parts[#self.parts + 1] = shape:format(...)
end

local ESCAPES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" }

---@param style? { size?: integer, color?: string, anchor?: string, bold?: boolean }
function Canvas:text(x, y, text, style)
  style = style or {}
  self:add('<text x="%.1f" y="%.1f" font-size="%d" fill="%s" text-anchor="%s"%s>%s</text>',
    x, y, style.size or 13, style.color or COLOR.text, style.anchor or "start",
    style.bold and ' font-weight="bold"' or "", (text:gsub("[&<>]", ESCAPES)))
end

function Canvas:line(x1, y1, x2, y2, color, width, dash)
  self:add('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%s"%s/>',
    x1, y1, x2, y2, color, width or 1, dash and ' stroke-dasharray="4 3"' or "")
end

function Canvas:box(x, y, width, height, color)
  self:add('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>', x, y, width, height,
    color)
end

function Canvas:dot(x, y, color)
  self:add('<circle cx="%.1f" cy="%.1f" r="5" fill="%s"/>', x, y, color)
end

--- For what is missed: told apart by its shape, too.
function Canvas:diamond(x, y, color)
  self:add('<path d="M%.1f %.1f l6.5 6.5 l-6.5 6.5 l-6.5 -6.5 z" fill="%s"/>', x, y - 6.5, color)
end

function Canvas:finish()
  local head = ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
    .. 'viewBox="0 0 %d %d" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">')
    :format(WIDTH, self.y, WIDTH, self.y)
  return head .. '\n<rect width="100%" height="100%" fill="white"/>\n'
    .. table.concat(self.parts, "\n") .. "\n</svg>\n"
end

-- ---------------------------------------------------------------- axes

--- A logarithmic axis: value -> x, and whether it lies beyond an end.
local function axis(low, high)
  local from, span = math.log(low), math.log(high) - math.log(low)
  return function(value)
    local at = value > 0 and (math.log(value) - from) / span or -1
    return LEFT + SPAN * math.min(1, math.max(0, at)), at < 0 or at > 1
  end
end

--- Vertical lines over the whole height, their numbers above.
local function grid(c, x, ticks, top, bottom)
  for _, tick in ipairs(ticks) do
    c:line(x(tick), top, x(tick), bottom, COLOR.grid)
    c:text(x(tick), top - 5, ("%g"):format(tick), { size = 11, color = COLOR.faint,
      anchor = "middle" })
  end
end

-- ---------------------------------------------------------------- the budget

--- How much of its target a row uses up: 1 is just met, whichever way it is bounded.
local function share(row)
  if row.at_least then
    return row.target / row.value
  elseif row.target == 0 then
    return row.value == 0 and 0 or math.huge
  end
  return row.value / row.target
end

local function budget_row(c, x, row)
  local label = row.name .. (row.rival and " / " .. row.rival:gsub("^C: ", "") or "")
  local at, beyond = x(share(row))
  local middle = c.y + ROW / 2
  c:text(LEFT - 14, middle + 4, label, { anchor = "end" })
  if beyond then -- further than the axis reaches
    local to_left = at < x(1)
    c:text(at + (to_left and -7 or 8), middle + 4, to_left and "‹" or "›", { size = 15,
      anchor = to_left and "end" or "start", color = row.met and COLOR.met or COLOR.missed })
  end
  c:line(x(1), middle, at, middle, row.met and COLOR.met or COLOR.missed, 1.5)
  if row.met then
    c:dot(at, middle, COLOR.met)
  else
    c:diamond(at, middle, COLOR.missed)
  end
  c:text(LEFT + SPAN + 105, middle + 4, report.result(row), { anchor = "end", bold = not row.met,
    color = row.met and COLOR.text or COLOR.missed })
  c:text(LEFT + SPAN + 118, middle + 4, report.target(row), { color = COLOR.faint })
  c.y = c.y + ROW
end

local function draw_budget(c, rows)
  local x, area = axis(1 / 8, 8), nil
  c.y = c.y + 40
  c:text(24, c.y, "Each figure against its target", { size = 16, bold = true })
  c.y = c.y + 26
  c:text(x(1) - 40, c.y - 20, "← better", { size = 11, color = COLOR.met, anchor = "end" })
  c:text(x(1), c.y - 20, "target", { size = 11, color = COLOR.text, anchor = "middle" })
  c:text(x(1) + 40, c.y - 20, "missed →", { size = 11, color = COLOR.missed })
  c:text(LEFT + SPAN + 105, c.y, "measured", { size = 11, color = COLOR.faint, anchor = "end" })
  c:text(LEFT + SPAN + 118, c.y, "target", { size = 11, color = COLOR.faint })
  c.y = c.y + 6
  local top, place = c.y, #c.parts
  for _, row in ipairs(rows) do
    if row.area ~= area then
      area = row.area
      c:box(0, c.y + 4, WIDTH, ROW - 4, COLOR.band)
      c:text(24, c.y + 17, area, { size = 12, color = COLOR.faint, bold = true })
      c.y = c.y + ROW
    end
    budget_row(c, x, row)
  end
  -- the lines go under what was drawn, above the bands' white
  local behind = canvas()
  grid(behind, x, { 0.125, 0.25, 0.5, 1, 2, 4, 8 }, top, c.y)
  behind:line(x(1), top, x(1), c.y, COLOR.text, 1.5)
  for i, part in ipairs(behind.parts) do
    table.insert(c.parts, place + i, part)
  end
end

-- ---------------------------------------------------------------- the others

local function chart_row(c, x, name, stat, base)
  local middle, color = c.y + ROW / 2, name:find "moonsand" and COLOR.ours or COLOR.others
  local at, ratio = x(stat.p50 / base), stat.p50 / base
  c:text(LEFT - 14, middle + 4, name, { anchor = "end", color = color == COLOR.ours and color
    or COLOR.text, bold = color == COLOR.ours })
  c:line(at, middle, x(stat.p95 / base), middle, color, 2)
  c:dot(at, middle, color)
  c:text(LEFT + SPAN + 105, middle + 4, (ratio < 10 and "%.2f ×" or "%.1f ×"):format(ratio),
    { anchor = "end" })
  c:text(LEFT + SPAN + 118, middle + 4, report.quantity(stat.p50, "s"), { color = COLOR.faint })
  c.y = c.y + ROW
end

local function draw_charts(c, charts)
  local x = axis(0.5, 256)
  c.y = c.y + 46
  c:text(24, c.y, "Next to what else there is: median time (line: to the 95th percentile)",
    { size = 16, bold = true })
  c.y = c.y + 26
  local top, place = c.y, #c.parts
  for _, chart in ipairs(charts) do
    c:box(0, c.y + 4, WIDTH, ROW - 4, COLOR.band)
    c:text(24, c.y + 17, chart.title, { size = 12, color = COLOR.faint, bold = true })
    c.y = c.y + ROW
    for _, entry in ipairs(chart.entries) do
      chart_row(c, x, entry.name, entry.stat, entry.base)
    end
  end
  local behind = canvas()
  grid(behind, x, { 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256 }, top, c.y)
  for i, part in ipairs(behind.parts) do
    table.insert(c.parts, place + i, part)
  end
end

--- Breaks a text into lines of at most `width` characters.
local function wrap(text, width)
  local lines, line = {}, ""
  for word in text:gmatch "%S+" do
    if #line + #word >= width then
      lines[#lines + 1], line = line, ""
    end
    line = line == "" and word or line .. " " .. word
  end
  lines[#lines + 1] = line
  return lines
end

---@param results table as run.lua makes it
---@param head string what was measured where
---@return string svg
function M.draw(results, head)
  local c, targeted, met = canvas(), {}, 0
  for _, row in ipairs(results.rows) do
    if row.target then
      targeted[#targeted + 1] = row
      met = met + (row.met and 1 or 0)
    end
  end
  c.y = 38
  c:text(24, c.y, ("moonsand: %d of %d targets met"):format(met, #targeted), { size = 21,
    bold = true })
  for _, line in ipairs(wrap(head, 130)) do
    c.y = c.y + 18
    c:text(24, c.y, line, { size = 12, color = COLOR.faint })
  end
  if #targeted > 0 then
    draw_budget(c, targeted)
  end
  if #results.charts > 0 then
    draw_charts(c, results.charts)
  end
  c.y = c.y + 24
  return c:finish()
end

return M
