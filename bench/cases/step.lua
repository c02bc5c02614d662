--- What a game pays each frame: one turn of the loop when there is nothing to do.

local stats = require "stats"

local TURNS = 2000

return function(bench, moonsand, rivals)
  bench.area = "an idle turn of the loop"
  local box, floor, step = bench.sandbox(), rivals.floor, moonsand.loop.step
  local ours, theirs = {}, {}
  for i = 1, bench.rounds(500) do
    local start = floor.now()
    for _ = 1, TURNS do
      step(0)
    end
    ours[i] = (floor.now() - start) / TURNS
    theirs[i] = floor.epoll(TURNS)
  end
  local mine = bench.sampled("step(0)", "moonsand.loop.step", stats.summarize(ours))
  local kernel = bench.sampled("step(0)", "C epoll_wait", stats.summarize(theirs))
  bench.value { name = "loop.step(0)", value = mine.p50, target = 0.3e-6 }
  bench.ratio { name = "loop.step(0)", ours = mine.p50, rival = "C: epoll_wait of nothing",
    theirs = kernel.p50 }
  box:close()
end
