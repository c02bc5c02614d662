--- Many sandboxes at once: how fast they come, what each costs while it does nothing.

local stats = require "stats"

local function available(bench)
  return bench.proc("", "meminfo", "MemAvailable")
end

--- The kernel gives back some memory late: the value once two looks agree.
local function settled(bench, floor)
  local last
  for _ = 1, 20 do
    collectgarbage()
    local value = available(bench)
    if last and math.abs(value - last) < 2 ^ 20 then
      return value
    end
    last = value
    floor.sleep(0.2)
  end
  return last
end

return function(bench, moonsand, rivals)
  local count, floor, boxes = bench.quick and 100 or 500, rivals.floor, {}
  bench.area = ("%d sandboxes at once"):format(count)
  moonsand.assert(moonsand.create()):destroy()
  local before = settled(bench, floor)
  local start = floor.now()
  for i = 1, count do
    boxes[i] = moonsand.assert(moonsand.create())
  end
  local seconds = floor.now() - start
  local after = settled(bench, floor)

  local own = {}
  for i = 1, count, math.max(1, math.floor(count / 20)) do
    own[#own + 1] = bench.proc(boxes[i]:info().pid, "smaps_rollup", "Pss")
  end
  local first = {}
  for i = 1, count do
    local before_exec = floor.now()
    moonsand.assert(boxes[i]:exec { "/usr/bin/true" })
    first[i] = floor.now() - before_exec
  end
  bench.sampled(count .. " at once", "first exec of true in each", stats.summarize(first))

  start = floor.now()
  for i = 1, count do
    boxes[i]:close()
  end
  for i = 1, count do
    moonsand.assert(boxes[i]:destroy())
  end
  local ending = floor.now() - start

  bench.value { name = "created, one after the other", value = count / seconds, unit = "/s",
    target = 700, at_least = true }
  bench.value { name = "destroyed, all at once", value = count / ending, unit = "/s" }
  if #own > 0 then
    bench.value { name = "an idle agent's own memory (PSS)", unit = "B", target = 40 * 1024,
      value = bench.sampled(count .. " at once", "PSS of an agent", stats.summarize(own), "B").p50 }
  else
    bench.skip("PSS", "only root may look into agents")
  end
  bench.value { name = "an idle sandbox, all the machine lost", unit = "B",
    value = math.max(0, (before - after) / count), target = 400 * 1024 }
end
