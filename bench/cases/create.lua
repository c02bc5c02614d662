--- Making a sandbox and ending it.

local stats = require "stats"

return function(bench, moonsand, rivals)
  bench.area = "creating a sandbox"
  local floor = rivals.floor
  moonsand.assert(moonsand.create()):destroy() -- the zygote is there from now on
  local ends = {}

  local function create()
    local start = floor.now()
    local box = moonsand.assert(moonsand.create())
    local ready = floor.now()
    moonsand.assert(box:destroy())
    ends[#ends + 1] = floor.now() - ready
    return ready - start
  end

  local function one_shot()
    local box = moonsand.assert(moonsand.create())
    moonsand.assert(box:exec { "/usr/bin/true" })
    moonsand.assert(box:destroy())
  end

  --- After a pause in which the library could make ready what the next one will need.
  local function rested()
    floor.sleep(0.02)
    return create()
  end

  local function run_true()
    floor.run "/usr/bin/true"
  end

  local first = bench.race("create", 300, {
    { name = "moonsand create", run = create },
    { name = "vfork+exec of true", run = run_true },
  })
  local gone = bench.sampled("create", "moonsand destroy", stats.summarize(ends))
  bench.ratio { name = "create, hardened, to ready", ours = first["moonsand create"].p50,
    rival = "C: vfork+exec of true", theirs = first["vfork+exec of true"].p50, target = 1.15 }
  bench.ratio { name = "destroy, to the proof", ours = gone.p50, rival = "create",
    theirs = first["moonsand create"].p50, target = 0.35 }

  local rest = bench.race("create after a pause", 200, {
    { name = "moonsand create, after 20 ms", run = rested },
    { name = "vfork+exec of true", run = run_true },
  })
  bench.ratio { name = "create, after a pause of 20 ms", rival = "C: vfork+exec of true",
    ours = rest["moonsand create, after 20 ms"].p50, theirs = rest["vfork+exec of true"].p50 }

  -- apart: what bwrap leaves to the kernel to clear away disturbs who comes next
  local r = bench.race("create or use bwrap", 200, {
    { name = "moonsand create", run = create },
    { name = "vfork+exec of true", run = run_true },
    rivals.bwrap and { name = "bwrap, to ready", run = rivals.bwrap_ready },
    { name = "moonsand create+exec+destroy", run = one_shot },
    rivals.bwrap and { name = "bwrap true", run = function() rivals.bwrap "/usr/bin/true" end },
    rivals.docker_run and { name = "docker run", n = bench.rounds(20), run = function()
      rivals.docker_run "true"
    end },
  })
  bench.chart("a new sandbox (1 = vfork+exec of true)", "vfork+exec of true", first, rest,
    r)
  if rivals.bwrap then
    bench.ratio { name = "create, hardened, to ready", ours = r["moonsand create"].p50,
      rival = "bwrap, to ready", theirs = r["bwrap, to ready"].p50, target = 0.33 }
    bench.ratio { name = "create, run true, destroy", ours = r["moonsand create+exec+destroy"].p50,
      rival = "bwrap true", theirs = r["bwrap true"].p50 }
  end
  if rivals.docker_run then
    bench.ratio { name = "create, run true, destroy", ours = r["moonsand create+exec+destroy"].p50,
      rival = "docker run", theirs = r["docker run"].p50 }
  end
end
