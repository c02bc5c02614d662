--- The end of a program with a thousand descendants.

local PROCESSES = 1000

local FORK = ("n=0; while [ $n -lt %d ]; do sleep 1000 & n=$((n+1)); done; echo up; wait"):format(PROCESSES)

return function(bench, moonsand, rivals)
  bench.area = "a tree of processes"
  local now = rivals.floor.now
  local box = moonsand.assert(moonsand.create { limits = { processes = PROCESSES + 100 } })
  local r = bench.race("kill", 20, {
    { name = "p:kill and p:wait", run = function()
      local p = moonsand.assert(box:start(FORK))
      assert(p.stdout:read() == "up")
      local start = now()
      moonsand.assert(p:kill "KILL")
      moonsand.assert(p:wait())
      return now() - start
    end },
  })
  bench.value { name = ("kill of %d processes"):format(PROCESSES),
    value = r["p:kill and p:wait"].p50, target = 0.1 }
  box:close()
end
