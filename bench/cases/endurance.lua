--- Many commands in one sandbox: nothing may grow.

local function count_fds(pid)
  local pipe = io.popen(("ls /proc/%s/fd 2>/dev/null | wc -l"):format(pid))
  local count = tonumber(pipe:read "*a")
  pipe:close()
  return count
end

local function look(bench, moonsand, box)
  collectgarbage()
  collectgarbage()
  moonsand.loop.step(0)
  local host, agent = require("moonsand.core").getpid(), box:info().pid
  return {
    ["host fds"] = count_fds(host),
    ["host memory"] = bench.proc("self", "status", "VmRSS"),
    ["agent fds"] = count_fds(agent),
    ["agent memory"] = bench.proc(agent, "smaps_rollup", "Rss"),
  }
end

--- A page or two may come late; more is a leak.
local MEMORY = 128 * 1024

return function(bench, moonsand, rivals)
  local count = bench.quick and 1000 or 10000
  bench.area = ("%d commands in one sandbox"):format(count)
  local box = bench.sandbox()
  local function run(n)
    for _ = 1, n do
      moonsand.assert(box:exec { "/tmp/nothing" })
    end
  end
  run(1000) -- what is made once is there
  local before = look(bench, moonsand, box)
  local start = rivals.floor.now()
  run(count)
  local seconds = rivals.floor.now() - start
  local after = look(bench, moonsand, box)
  for _, name in ipairs { "host fds", "agent fds", "host memory", "agent memory" } do
    local bytes = name:find "memory" ~= nil
    if before[name] and after[name] then
      bench.value { name = name .. ", growth", value = after[name] - before[name],
        unit = bytes and "B" or "", target = bytes and MEMORY or 0 }
    else
      bench.skip(name, "only root may look into agents")
    end
  end
  bench.value { name = "static programs, in turn", value = count / seconds, unit = "/s" }
  box:close()
end
