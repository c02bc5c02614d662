--- Requests, against the same by curl's multi interface in C, at the same server.

local MiB = 2 ^ 20
local SEQUENCE = 1000 -- short requests in a row
local WIDTH = 64 -- at once
local BULK = 1024 -- MiB
local TICKS = 500

local function percentile(list, share)
  table.sort(list)
  return list[math.max(1, math.ceil(#list * share))]
end

local function resident()
  for line in io.lines "/proc/self/status" do
    local kilobytes = line:match "^VmRSS:%s*(%d+)"
    if kilobytes then
      return tonumber(kilobytes) * 1024
    end
  end
end

return function(bench, moonsand, rivals)
  local open = package.loadlib(bench.build .. "/net_floor", "luaopen_net_floor")
  local there, http = pcall(require, "moonsand.wire.http")
  if not open or not there then
    bench.skip("moonsand.net", "it was not built: libcurl or wslay is missing")
    return
  end
  local floor = open()
  local port, pid = floor.serve()
  local client = floor.client()
  local base = "http://127.0.0.1:" .. port

  local function call(opts)
    return moonsand.assert(http.call(opts))
  end

  local r = bench.race(SEQUENCE .. " short requests, one after the other", 30, {
    { name = "moonsand.net", run = function()
      for _ = 1, SEQUENCE do
        assert(call { url = base .. "/small" } == "small")
      end
    end },
    { name = "curl multi in C", run = function()
      assert(floor.get(client, base .. "/small", SEQUENCE, 1) == 5)
    end },
  })
  bench.ratio { name = SEQUENCE .. " short requests", ours = r["moonsand.net"].p50,
    rival = "curl multi in C", theirs = r["curl multi in C"].p50, target = 1.15 }

  local list = {}
  for i = 1, WIDTH do
    list[i] = i
  end
  r = bench.race(WIDTH .. " requests at once", 100, {
    { name = "moonsand.net", run = function()
      moonsand.assert(moonsand.run(function()
        return moonsand.all(list, function()
          return call { url = base .. "/small" }
        end)
      end))
    end },
    { name = "curl multi in C", run = function()
      assert(floor.get(client, base .. "/small", 1, WIDTH) == 5 * WIDTH)
    end },
  })
  bench.ratio { name = WIDTH .. " requests at once", ours = r["moonsand.net"].p50,
    rival = "curl multi in C", theirs = r["curl multi in C"].p50 }

  local bytes, highest = BULK * MiB, 0
  local zeros = ("\0"):rep(128 * 1024)
  local before = resident()
  r = bench.race(BULK .. " MiB down, and up", 10, {
    { name = "down: moonsand.net", run = function()
      local total = 0
      local response = moonsand.assert(http.open { url = base .. ("/big/%d"):format(bytes) })
      for chunk in response.body:chunks() do
        total = total + #chunk
      end
      assert(total == bytes)
      highest = math.max(highest, resident())
    end },
    { name = "down: curl multi in C", run = function()
      assert(floor.get(client, base .. ("/big/%d"):format(bytes), 1, 1) == bytes)
    end },
    { name = "up: moonsand.net", run = function()
      local left = bytes
      call { url = base .. "/up", size = bytes, body = function()
        left = left - #zeros
        return left >= 0 and zeros or nil
      end }
      highest = math.max(highest, resident())
    end },
    { name = "up: curl multi in C", run = function()
      floor.put(client, base .. "/up", bytes)
    end },
  })
  for _, way in ipairs { "down", "up" } do
    bench.ratio { name = BULK .. " MiB " .. way, unit = "B/s",
      ours = bytes / r[way .. ": moonsand.net"].p50, rival = "curl multi in C",
      theirs = bytes / r[way .. ": curl multi in C"].p50, target = 0.8, at_least = true }
  end
  bench.value { name = "memory for it, at most", value = highest - before, unit = "B",
    target = 16 * MiB }

  local ours = {}
  local response = moonsand.assert(http.open { url = base .. "/tick/" .. TICKS })
  for line in response.body:lines() do
    ours[#ours + 1] = rivals.floor.now() - tonumber(line)
  end
  local theirs = floor.ticks(client, base .. "/tick/" .. TICKS, TICKS)
  bench.value { name = "a streamed byte in Lua, p99, over curl's", unit = "s", target = 1e-3,
    value = percentile(ours, 0.99) - percentile(theirs, 0.99) }

  http.close_idle()
  os.execute("kill " .. pid)
end
