--- A command in a sandbox that is there already, its output collected, from Lua and back to Lua.

local unpack = table.unpack or unpack

---@class bench.Program
---@field name string
---@field inside string[] its words in the sandbox
---@field outside string[] on the host
---@field bwrap? string[] in bwrap's sandbox, when not as in ours
---@field target number most of the floor

---@return bench.Program[]
local function programs(rivals)
  local sh = { "/bin/sh", "-c", "echo hi" }
  return {
    { name = "true", inside = { "/usr/bin/true" }, outside = { "/usr/bin/true" }, target = 1.10 },
    { name = "a static program", inside = { "/tmp/nothing" }, outside = { rivals.nothing },
      bwrap = { "/nothing" }, target = 1.60 },
    { name = "sh -c 'echo hi'", inside = sh, outside = sh, target = 1.10 },
  }
end

return function(bench, moonsand, rivals)
  bench.area = "running a command (warm exec)"
  local floor, box = rivals.floor, bench.sandbox()

  local function measure(program)
    local name = program.name
    local function by(call)
      return function()
        call(unpack(program.outside))
      end
    end
    local function exec()
      moonsand.assert(box:exec(program.inside))
    end

    local r = bench.race(name, 400, {
      { name = "moonsand", run = exec },
      { name = "C floor (vfork)", run = by(floor.run) },
      { name = "C posix_spawn", run = by(floor.spawn) },
      rivals.luv and { name = "luv", run = by(rivals.luv) },
    })
    local ours, c = r.moonsand, r["C floor (vfork)"]
    bench.ratio { name = name, ours = ours.p50, rival = "C floor", theirs = c.p50,
      target = program.target }
    bench.ratio { name = name .. ", p99", ours = ours.p99, rival = "C floor, p99", theirs = c.p99,
      target = name == "true" and 1.30 or nil }
    if rivals.luv then
      bench.ratio { name = name, ours = ours.p50, rival = "luv, no sandbox", theirs = r.luv.p50,
        target = 1.0 }
    end

    -- apart: what these leave to the kernel to clear away disturbs who comes next
    local slow = bench.race(name .. ", with the slow ones", 200, {
      { name = "moonsand", run = exec },
      { name = "C floor (vfork)", run = by(floor.run) },
      { name = "io.popen", run = by(rivals.popen) },
      rivals.bwrap and { name = "bwrap per command", run = function()
        rivals.bwrap(unpack(program.bwrap or program.inside))
      end },
      rivals.docker_exec and name == "true" and { name = "docker exec", n = bench.rounds(20),
        run = function()
          rivals.docker_exec "true"
        end },
    })
    for _, other in ipairs { "io.popen", "bwrap per command", "docker exec" } do
      if slow[other] then
        bench.ratio { name = name, ours = slow.moonsand.p50, rival = other,
          theirs = slow[other].p50 }
      end
    end
    bench.chart(("running %s (1 = the C floor)"):format(name), "C floor (vfork)", r, slow)
  end

  for _, program in ipairs(programs(rivals)) do
    measure(program)
  end
  box:close()
end
