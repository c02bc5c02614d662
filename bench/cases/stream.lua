--- Output in bulk: in chunks, collected, and not read at all.

local MiB = 2 ^ 20
local BULK = 256 -- MiB a round
local HELD = 64 -- MiB collected into one string

local unpack = table.unpack or unpack

local function writer(megabytes)
  return { "/usr/bin/dd", "if=/dev/zero", "bs=1M", "status=none", "count=" .. megabytes }
end

--- The fd of the only pipe that has appeared since `before`.
local function new_pipe(floor, before)
  for fd in pairs(floor.pipes()) do
    if not before[fd] then
      return fd
    end
  end
  error "the program's pipe was not found"
end

local function measure_rates(bench, moonsand, floor, rivals, box)
  local words = writer(BULK)
  local function start()
    return moonsand.assert(box:start(words, { stdin = false, stderr = "stdout" }))
  end

  local function in_chunks()
    local process, total = start(), 0
    for chunk in process.stdout:chunks() do
      total = total + #chunk
    end
    assert(total == BULK * MiB and process:wait().ok)
  end

  --- A C program's loop on the very pipe that moonsand has made.
  local function same_pipe()
    local before = floor.pipes()
    local process = start()
    local drained = floor.drain_fd(new_pipe(floor, before))
    local result = process:wait()
    -- the first bytes may have come while the start was waited for
    assert(result.ok and drained + result.stdout_bytes == BULK * MiB)
    assert(drained > 0.9 * BULK * MiB)
  end

  local r = bench.race(BULK .. " MiB of output", 30, {
    { name = "chunks in Lua, sandboxed", run = in_chunks },
    { name = "C, the same pipe, sandboxed", run = same_pipe },
    { name = "C, no sandbox", run = function()
      assert(floor.drain(unpack(words)) == BULK * MiB)
    end },
  })
  local function rate(name)
    return BULK * MiB / r[name].p50
  end
  local sandboxed = rate "C, the same pipe, sandboxed"
  bench.ratio { name = "stdout in chunks to Lua", unit = "B/s",
    ours = rate "chunks in Lua, sandboxed", rival = "C on the same pipe", theirs = sandboxed,
    target = 0.85, at_least = true }
  bench.ratio { name = "sandboxed, read by C", unit = "B/s", ours = sandboxed,
    rival = "C, no sandbox", theirs = rate "C, no sandbox", target = 0.95, at_least = true }

  words = writer(HELD)
  local text = function(call)
    return function()
      assert(#call(unpack(words)) == HELD * MiB)
    end
  end
  r = bench.race(HELD .. " MiB as one string", 20, {
    { name = "moonsand exec", run = function()
      assert(#moonsand.assert(box:exec(words, { max_output = HELD * MiB })).stdout == HELD * MiB)
    end },
    { name = "C, growing buffer", run = text(floor.collect) },
    { name = "io.popen", run = text(rivals.popen) },
    rivals.luv and { name = "luv", run = text(rivals.luv) },
  })
  local ours = HELD * MiB / r["moonsand exec"].p50
  for _, name in ipairs { "C, growing buffer", "io.popen", "luv" } do
    if r[name] then
      bench.ratio { name = "stdout as one string", unit = "B/s", ours = ours, rival = name,
        theirs = HELD * MiB / r[name].p50, at_least = true }
    end
  end
end

--- How much the host grows while a program that never stops writing is not read.
local function measure_memory(bench, moonsand, floor, box)
  local process = moonsand.assert(box:start({ "/usr/bin/dd", "if=/dev/zero", "bs=1M" },
    { stderr = "discard", stdin = false }))
  process.stdout:chunk()
  collectgarbage()
  collectgarbage()
  local before = bench.proc("self", "status", "VmRSS")
  local stop = floor.now() + 0.3
  repeat
    moonsand.loop.step(0.01)
  until floor.now() > stop
  bench.value { name = "host grows while output is not read", unit = "B",
    value = math.max(0, bench.proc("self", "status", "VmRSS") - before), target = MiB }

  local peak, total = before, 0
  for chunk in process.stdout:chunks() do
    total = total + #chunk
    if total % (16 * MiB) < #chunk then
      peak = math.max(peak, bench.proc("self", "status", "VmRSS"))
    end
    if total > (bench.quick and 256 or 2048) * MiB then
      break
    end
  end
  bench.value { name = "host grows while 2 GiB are read in chunks", unit = "B",
    value = math.max(0, peak - before) }
  process:close()
end

return function(bench, moonsand, rivals)
  bench.area = "output in bulk"
  local box = bench.sandbox()
  measure_memory(bench, moonsand, rivals.floor, box)
  measure_rates(bench, moonsand, rivals.floor, rivals, box)
  box:close()
end
