--- The log of a background program: how fast it is filled, and given again; and how long it takes to
--- find a sandbox that was detached.

local MiB = 2 ^ 20
local HELD = 64 -- MiB

local unpack = table.unpack or unpack

local words = { "/usr/bin/dd", "if=/dev/zero", "bs=1M", "status=none", "count=" .. HELD }

local function read_all(process)
  local total = 0
  repeat
    total = total + #assert(process.stdout:chunk())
  until total >= HELD * MiB
  assert(total == HELD * MiB)
end

local function measure_log(bench, moonsand, floor, box)
  local opts = { background = true, log = { size = HELD * MiB }, stdin = false, stderr = "discard" }
  local kept = moonsand.assert(box:start(table.concat(words, " ") .. "; exec sleep 1000", opts))
  read_all(kept)
  local r = bench.race(HELD .. " MiB of a log", 20, {
    { name = "attach: replay in chunks", run = function()
      local again = moonsand.assert(box:attach(kept.id))
      read_all(again)
      again:detach()
    end },
    { name = "in the background, live", run = function()
      read_all(moonsand.assert(box:start(words, opts)))
    end },
    { name = "in front, live", run = function()
      read_all(moonsand.assert(box:start(words, { stdin = false, stderr = "discard" })))
    end },
    { name = "C, no sandbox", run = function()
      assert(floor.drain(unpack(words)) == HELD * MiB)
    end },
  })
  local function rate(name)
    return HELD * MiB / r[name].p50
  end
  bench.ratio { name = "attach replay", unit = "B/s", ours = rate "attach: replay in chunks",
    rival = "C, no sandbox", theirs = rate "C, no sandbox", at_least = true }
  bench.ratio { name = "background, live", unit = "B/s", ours = rate "in the background, live",
    rival = "in front", theirs = rate "in front, live", at_least = true }
end

local function measure_detach(bench, moonsand)
  local name = ("bench-%d"):format(os.time())
  local made = moonsand.assert(moonsand.create { name = name })
  moonsand.assert(made:detach())
  local r = bench.race("a sandbox", 200, {
    { name = "connect, by name", run = function()
      moonsand.assert(moonsand.connect(name)):close()
    end },
    { name = "create", run = function()
      moonsand.assert(moonsand.create()):close()
    end },
  })
  moonsand.assert(moonsand.destroy(name))
  bench.ratio { name = "connect", ours = r["connect, by name"].p50, rival = "create",
    theirs = r.create.p50 }
end

return function(bench, moonsand, rivals)
  bench.area = "background"
  local box = bench.sandbox()
  measure_log(bench, moonsand, rivals.floor, box)
  box:close()
  measure_detach(bench, moonsand)
end
