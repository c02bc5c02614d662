--- SIGKILL for the host: how long until nothing of what it made runs any more.

local stats = require "stats"

local SANDBOXES = 10

--- All processes that descend from one, by what /proc says now.
local function descendants(pid)
  local children = {}
  local pipe = io.popen "cat /proc/[0-9]*/stat 2>/dev/null"
  for line in pipe:lines() do
    local child, parent = line:match "^(%d+) .*%) %a (%d+) "
    if child then
      children[parent] = children[parent] or {}
      table.insert(children[parent], child)
    end
  end
  pipe:close()
  local found = {}
  local function visit(parent)
    for _, child in ipairs(children[parent] or {}) do
      found[#found + 1] = tonumber(child)
      visit(child)
    end
  end
  visit(("%d"):format(pid))
  return found
end

return function(bench, _, rivals)
  bench.area = "the host is killed"
  local floor, rounds = rivals.floor, bench.rounds(200)
  local samples, most, slow = {}, 0, 0
  local setup = ("package.path=%q package.cpath=%q"):format(bench.package_path, bench.package_cpath)
  for _ = 1, rounds do
    local pid, out = floor.start("/proc/self/exe", "-e", setup,
      bench.here .. "/victim.lua", tostring(SANDBOXES))
    assert(floor.read_line(out) == "ready", "the victim did not come up")
    local processes = descendants(pid)
    most = math.max(most, #processes)
    local seconds = floor.kill(5, pid, (table.unpack or unpack)(processes))
    floor.close(out)
    if seconds then
      samples[#samples + 1] = seconds
    else
      slow = slow + 1
    end
  end
  local stat = bench.sampled("SIGKILL of the host", "until nothing is left",
    stats.summarize(samples))
  bench.value { name = ("%d sandboxes, %d processes, until none"):format(SANDBOXES, most),
    value = stat.p50, target = 10e-3 }
  bench.value { name = "rounds in which something was left", value = slow, unit = "", target = 0 }
end
