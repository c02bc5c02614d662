--- Measures the performance budget, as ratios within one run.
---
---     make bench
---     lua5.4 bench/run.lua [--quick] [case …]       (or luajit; a case is a file of bench/cases)
---
--- Prints a table and leaves results.txt, results.json and results.svg in build/bench. A missed
--- target is no failure: the exit status is 0 unless a case broke. Absolute figures are this
--- machine's, at this hour: quote the ratios.

local here = arg[0]:match "^(.*)/[^/]*$" or "."
local root = here .. "/.."
local build = root .. "/" .. (os.getenv "B" or "build")
local variant = rawget(_G, "jit") and "jit" or "5.4"
package.path = ("%s/?.lua;%s/lua/?.lua;%s/lua/?/init.lua;%s"):format(here, root, root, package.path)
package.cpath = ("%s/%s/?.so;%s"):format(build, variant, package.cpath)

local moonsand = require "moonsand"
local plot = require "plot"
local report = require "report"
local rivals = require "rivals"
local stats = require "stats"

-- What looks at our own memory comes first, while nothing has been through it; what swells it last.
local CASES = {
  "endurance", "create", "pool", "exec", "session", "parallel", "stream", "terminal", "attach", "file",
  "code", "idle", "tree", "death", "step", "proxy", "hosts", "net", "heap",
}

-- ---------------------------------------------------------------- what a case is given

---@class bench.Row one line of the budget
---@field area string
---@field name string
---@field kind "ratio"|"value"
---@field value number the ratio, or the value in `unit`
---@field unit string
---@field ours? number
---@field theirs? number
---@field rival? string
---@field target? number
---@field at_least? boolean the target is a lower bound
---@field met? boolean

local results = {
  moonsand = moonsand._VERSION,
  lua = rawget(_G, "jit") and jit.version or _VERSION,
  started_at = os.date "!%Y-%m-%dT%H:%M:%SZ",
  rows = {},
  samples = {},
  charts = {},
  skipped = {},
}

---@class bench
local bench = { quick = false, here = here, build = build .. "/bench", area = "" }

--- The paths with which a child of ours finds the module too.
bench.package_path, bench.package_cpath = package.path, package.cpath

--- How often: all of it, or a tenth with --quick.
function bench.rounds(n)
  return bench.quick and math.max(10, math.floor(n / 10)) or n
end

--- Keeps samples for the raw table.
---@param unit? string "s" if nil
---@return bench.Stat
function bench.sampled(group, name, stat, unit)
  table.insert(results.samples, { group = group, name = name, stat = stat, unit = unit or "s" })
  return stat
end

--- Contestants take turns, `n` times each.
---@param group string for the raw table
---@param contestants bench.Contestant[] false for one that is not there
---@return table<string, bench.Stat>
function bench.race(group, n, contestants)
  local present = {}
  for _, each in ipairs(contestants) do
    if each then
      present[#present + 1] = each
    end
  end
  local all = stats.race(rivals.floor.now, bench.rounds(n), present)
  for _, each in ipairs(present) do
    bench.sampled(group, each.name, all[each.name])
  end
  return all
end

local function add(row)
  row.area = bench.area
  row.unit = row.unit or "s"
  if row.target and row.at_least then
    row.met = row.value >= row.target
  elseif row.target then
    row.met = row.value <= row.target
  end
  table.insert(results.rows, row)
end

--- A ratio of ours to theirs: name, ours, rival (a name), theirs, target, at_least, unit.
---@param row table
function bench.ratio(row)
  row.kind, row.value = "ratio", row.ours / row.theirs
  add(row)
end

--- A value with an absolute target: name, value, unit, target, at_least.
---@param row table
function bench.value(row)
  row.kind = "value"
  add(row)
end

--- Says why something is not in the table.
function bench.skip(name, why)
  table.insert(results.skipped, { name = name, why = why })
end

--- Has races drawn under one title, each contestant as a multiple of `base` in its own race. Who
--- ran in several is shown as in the first.
---@param base string name of a contestant
---@param ... table<string, bench.Stat>
function bench.chart(title, base, ...)
  local entries, seen = {}, {}
  for _, race in ipairs { ... } do
    for name, stat in pairs(race) do
      if not seen[name] then
        entries[#entries + 1] = { name = name, stat = stat, base = race[base].p50 }
      end
    end
    for name in pairs(race) do
      seen[name] = true
    end
  end
  table.sort(entries, function(a, b)
    return a.stat.p50 / a.base < b.stat.p50 / b.base
  end)
  table.insert(results.charts, { title = title, entries = entries })
end

--- A sandbox for a case, and the cheap static program in it, as /tmp/nothing.
---@return moonsand.Sandbox box
function bench.sandbox(opts)
  local box = moonsand.assert(moonsand.create(opts))
  local file = assert(io.open(rivals.nothing, "rb"))
  moonsand.assert(box:exec("cat >/tmp/nothing && chmod 755 /tmp/nothing",
    { stdin = file:read "*a", check = true }))
  file:close()
  return box
end

--- One field of /proc/PID/NAME, a number: bytes when it is in kB. nil when we may not look.
---@return number?
function bench.proc(pid, name, field)
  local file = io.open(("/proc/%s/%s"):format(pid, name))
  local text = file and file:read "*a" or ""
  if file then
    file:close()
  end
  local number, unit = ("\n" .. text):match("\n" .. field .. ":%s*(%d+) ?(%a*)")
  return number and tonumber(number) * (unit == "kB" and 1024 or 1)
end

-- ---------------------------------------------------------------- the run

local function options()
  local chosen = {}
  for _, word in ipairs(arg) do
    if word == "--quick" then
      bench.quick = true
    elseif word:sub(1, 1) == "-" then
      io.stderr:write("usage: bench/run.lua [--quick] [", table.concat(CASES, "|"), " …]\n")
      os.exit(2)
    else
      chosen[#chosen + 1] = word
    end
  end
  return #chosen > 0 and chosen or CASES
end

local function machine()
  local file = io.open "/proc/version"
  local kernel = file and file:read "*a":match "version (%S+)" or "?"
  if file then
    file:close()
  end
  file = io.open "/proc/loadavg"
  local load = file and file:read "*a":match "%S+" or "?"
  if file then
    file:close()
  end
  return ("kernel %s, %d cores, load %s at the start"):format(kernel, rivals.floor.cores(), load)
end

local function write(name, text)
  local file = assert(io.open(bench.build .. "/" .. name, "w"))
  file:write(text)
  file:close()
end

local function main()
  local cases, broken = options(), false
  rivals.load(bench.build)
  rivals.probe_bwrap()
  rivals.probe_docker()
  rivals.floor.more_files()
  results.machine = machine()
  for name, why in pairs(rivals.missing) do
    bench.skip(name, why)
  end
  for _, name in ipairs(cases) do
    io.stderr:write("bench: ", name, " …\n")
    local ok, message = xpcall(function()
      require("cases." .. name)(bench, moonsand, rivals)
    end, function(raised)
      return debug.traceback(tostring(raised))
    end)
    if not ok then
      broken = true
      bench.skip(name, "broke")
      io.stderr:write("bench: ", name, " broke: ", message, "\n")
    end
    collectgarbage()
  end
  if rivals.stop_docker then
    rivals.stop_docker()
  end
  local head = ("moonsand %s on %s; %s%s"):format(results.moonsand, results.lua, results.machine,
    bench.quick and "; a quick run: few samples" or "")
  results.quick = bench.quick
  local budget = report.budget(results)
  print("\n" .. head .. "\n" .. budget)
  write("results.txt", head .. "\n" .. budget .. "\n\n" .. report.raw(results) .. "\n")
  write("results.json", report.json(results))
  write("results.svg", plot.draw(results, head))
  print(("\n%s/results.txt has every p50, p95 and p99; results.svg is the picture")
    :format(bench.build:gsub("^.*/%.%./", "")))
  return not broken
end

os.exit(main(), true)
