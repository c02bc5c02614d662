-- A test matrix: every tool with every setting, each cell in a sandbox of its own, three at a time.
-- A cell that fails is a cell like any other.
--
--     lua5.4 examples/recipes/matrix.lua

local moonsand = require "moonsand"

-- Three ways to sort, and what may go wrong with them.
local tools = {
  shell = 'sort -n "$1"',
  awk = [[awk '{ a[NR] = $1 } END { while (n++ < NR) print a[n] }' "$1"]], -- does not sort
  python = [[python3 -c 'import sys; print(*sorted(map(int, open(sys.argv[1]))), sep="\n")' "$1"]],
}
local inputs = { empty = "", sorted = "1\n2\n10\n", reversed = "10\n2\n1\n" }

local cells = {}
for tool, command in pairs(tools) do
  for input, data in pairs(inputs) do
    cells[#cells + 1] = { name = tool .. ", " .. input, command = command, data = data }
  end
end
table.sort(cells, function(a, b) return a.name < b.name end)

local function test(cell)
  return moonsand.with({ limits = { disk = "1M" } }, function(box)
    moonsand.assert(box.files:write("input", cell.data))
    local words = { "sh", "-c", cell.command .. " >output && sort -n -c output", "sh", "input" }
    return box:exec(words, { check = true, timeout = 20 })
  end)
end

local results = moonsand.assert(moonsand.all(cells, test, { limit = 3, settle = true }))
for i, cell in ipairs(cells) do
  local r = results[i]
  print(("%-18s %s"):format(cell.name, r.ok and "passed" or "FAILED: " .. r.message))
end
