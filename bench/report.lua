--- What was measured, as text and as JSON.

local M = {}

-- ---------------------------------------------------------------- numbers

local UNITS = {
  s = { { 1, "s" }, { 1e-3, "ms" }, { 1e-6, "µs" }, { 0, "ns", 1e-9 } },
  B = { { 2 ^ 30, "GiB" }, { 2 ^ 20, "MiB" }, { 2 ^ 10, "KiB" }, { 0, "B", 1 } },
  ["B/s"] = { { 2 ^ 30, "GiB/s" }, { 2 ^ 20, "MiB/s" }, { 0, "KiB/s", 2 ^ 10 } },
}

--- A value with three figures and the unit that fits: 0.00123, "s" -> "1.23 ms".
---@param value number
---@param unit string "s", "B", "B/s", or any other word
function M.quantity(value, unit)
  local scale, name = 1, unit
  for _, row in ipairs(UNITS[unit] or {}) do
    if math.abs(value) >= row[1] then
      scale, name = row[3] or row[1], row[2]
      break
    end
  end
  local figures = value / scale
  local shape = figures % 1 == 0 and "%.0f" or math.abs(figures) >= 100 and "%.0f"
    or math.abs(figures) >= 10 and "%.1f" or "%.2f"
  return (shape .. "%s"):format(figures, name == "" and "" or " " .. name)
end

--- "≤ 1.10" or "≥ 0.85", "—" without a target.
function M.target(row)
  if not row.target then
    return "—"
  end
  local value = row.kind == "ratio" and ("%.2f"):format(row.target)
    or M.quantity(row.target, row.unit)
  return (row.at_least and "≥ " or "≤ ") .. value
end

--- What the target is compared with.
function M.result(row)
  return row.kind == "ratio" and ("%.2f ×"):format(row.value) or M.quantity(row.value, row.unit)
end

function M.verdict(row)
  if not row.target then
    return "info"
  end
  return row.met and "met" or "MISSED"
end

-- ---------------------------------------------------------------- tables

local function width(text)
  return select(2, text:gsub("[^\128-\191]", ""))
end

--- Rows of strings as aligned columns; those in `right` end flush.
local function columns(rows, right)
  local widths, lines = {}, {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do
      widths[i] = math.max(widths[i] or 0, width(cell))
    end
  end
  for _, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      local pad = (" "):rep(widths[i] - width(cell))
      cells[i] = right[i] and pad .. cell or cell .. pad
    end
    lines[#lines + 1] = (table.concat(cells, "  "):gsub("%s+$", ""))
  end
  return lines
end

--- The budget: one line a figure.
---@return string
function M.budget(results)
  local lines, area = {}, nil
  local rows = { { "what", "moonsand", "against", "", "result", "target", "" } }
  for _, row in ipairs(results.rows) do
    rows[#rows + 1] = {
      row.name,
      row.ours and M.quantity(row.ours, row.unit) or "",
      row.rival or "",
      row.theirs and M.quantity(row.theirs, row.unit) or "",
      M.result(row),
      M.target(row),
      M.verdict(row),
    }
  end
  for i, line in ipairs(columns(rows, { false, true, false, true, true, true })) do
    local row = results.rows[i - 1]
    if row and row.area ~= area then
      area = row.area
      lines[#lines + 1] = "\n" .. area
    end
    lines[#lines + 1] = "  " .. line
  end
  for _, skipped in ipairs(results.skipped) do
    lines[#lines + 1] = ("\n  not measured: %s (%s)"):format(skipped.name, skipped.why)
  end
  return table.concat(lines, "\n")
end

--- All samples, untrimmed.
---@return string
function M.raw(results)
  local rows = { { "samples", "n", "min", "p50", "p95", "p99", "max" } }
  for _, sample in ipairs(results.samples) do
    local stat, row = sample.stat, { sample.group .. ": " .. sample.name }
    row[2] = tostring(stat.n)
    for _, key in ipairs { "min", "p50", "p95", "p99", "max" } do
      row[#row + 1] = M.quantity(stat[key], sample.unit)
    end
    rows[#rows + 1] = row
  end
  return table.concat(columns(rows, { false, true, true, true, true, true, true }), "\n")
end

-- ---------------------------------------------------------------- JSON

local function encode_string(text)
  return '"' .. text:gsub('[%c"\\]', function(c)
    return ("\\u%04x"):format(c:byte())
  end) .. '"'
end

local encode

local function encode_table(value, indent)
  local inner, parts = indent .. "  ", {}
  if #value > 0 or next(value) == nil then
    for i, each in ipairs(value) do
      parts[i] = inner .. encode(each, inner)
    end
    return #parts == 0 and "[]" or "[\n" .. table.concat(parts, ",\n") .. "\n" .. indent .. "]"
  end
  local keys = {}
  for key in pairs(value) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  for i, key in ipairs(keys) do
    parts[i] = inner .. encode_string(key) .. ": " .. encode(value[key], inner)
  end
  return "{\n" .. table.concat(parts, ",\n") .. "\n" .. indent .. "}"
end

function encode(value, indent)
  if type(value) == "table" then
    return encode_table(value, indent)
  elseif type(value) == "string" then
    return encode_string(value)
  elseif type(value) == "number" and value % 1 ~= 0 then
    return ("%.9g"):format(value)
  elseif type(value) == "number" then
    return ("%d"):format(value)
  end
  return tostring(value)
end

---@return string
function M.json(results)
  return encode(results, "") .. "\n"
end

return M
