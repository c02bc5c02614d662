--- Taking a sandbox from a pool, warm.

local stats = require "stats"

local WARM = 4

return function(bench, moonsand, rivals)
  bench.area = "a sandbox from a pool"
  local floor = rivals.floor
  local pool = moonsand.assert(moonsand.pool { size = WARM, max = 2 * WARM })

  local function acquire()
    while pool:stats().warm < WARM do
      moonsand.loop.step(-1)
    end
    local start = floor.now()
    local box = moonsand.assert(pool:acquire())
    local took = floor.now() - start
    moonsand.assert(box:destroy())
    return took
  end

  local function create()
    local start = floor.now()
    local box = moonsand.assert(moonsand.create())
    local took = floor.now() - start
    moonsand.assert(box:destroy())
    return took
  end

  local race = bench.race("pool", 300, {
    { name = "pool:acquire, warm", run = acquire },
    { name = "moonsand create", run = create },
  })
  pool:close()
  bench.value { name = "pool:acquire, warm", value = race["pool:acquire, warm"].p50, target = 100e-6 }
  bench.ratio { name = "pool:acquire, warm", ours = race["pool:acquire, warm"].p50,
    rival = "moonsand create", theirs = race["moonsand create"].p50 }

  -- more at once than are warm: what the queue costs
  local busy = moonsand.assert(moonsand.pool { size = WARM, max = 2 * WARM })
  local all = {}
  for i = 1, bench.rounds(20) do
    local start = floor.now()
    moonsand.run(function()
      local list = {}
      for k = 1, 8 * WARM do
        list[k] = k
      end
      moonsand.assert(moonsand.all(list, function()
        return busy:with(function(box)
          return moonsand.assert(box:exec { "/usr/bin/true" }).ok
        end)
      end))
    end)
    all[i] = (floor.now() - start) / (8 * WARM)
  end
  busy:close()
  local each = bench.sampled("pool", "pool:with, exec true, 32 at once, each", stats.summarize(all))
  bench.value { name = "pool:with of 32 at once, each", value = each.p50 }
end
