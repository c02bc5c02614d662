--- What commands take from the C heap in a program with a big heap of its own, where the collector
--- comes late. It swells this process, which makes every fork of it dearer: so it is the last case.

local COUNT = 1000

return function(bench, moonsand)
  bench.area = "a program with a big heap"
  local box, much = bench.sandbox(), {}
  for i = 1, 300000 do
    much[i] = { i }
  end
  collectgarbage()
  local before = bench.proc("self", "status", "VmSize")
  for _ = 1, COUNT do
    moonsand.assert(box:exec { "/tmp/nothing" })
  end
  bench.value { name = ("%d commands, address space"):format(COUNT), unit = "B",
    value = bench.proc("self", "status", "VmSize") - before, target = 16 * 2 ^ 20 }
  assert(#much > 0)
  box:close()
end
