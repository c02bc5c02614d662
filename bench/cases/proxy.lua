--- The way out of a sandbox: curl inside, through the proxy, against curl outside, direct.

local MiB = 2 ^ 20
local BULK = 256 -- MiB

return function(bench, moonsand)
  bench.area = "the network's proxy"
  local open = package.loadlib(bench.build .. "/net_floor", "luaopen_net_floor")
  if not open or not io.popen "command -v curl":read() then
    bench.skip("the proxy", "there is no curl, or libcurl is missing")
    return
  end
  local port, pid = open().serve()
  local base = "http://127.0.0.1:" .. port
  local box = moonsand.assert(moonsand.create { network = { allow = { "127.0.0.1:" .. port } } })
  local outside = moonsand.assert(moonsand.create { network = "host" })

  --- Requests of one curl, over one connection: a tunnel, as for https.
  local function get(from, path, count)
    local words = { "curl", "-sS", "--proxytunnel", "--noproxy", "" }
    for _ = 1, count or 1 do
      words[#words + 1] = "-o"
      words[#words + 1] = "/dev/null"
      words[#words + 1] = base .. path
    end
    return function()
      local r = moonsand.assert(from:exec(words))
      assert(r.ok, r.stderr)
    end
  end

  local small = bench.race("ten small answers", 50, {
    { name = "through the proxy", run = get(box, "/small", 10) },
    { name = "direct, in the host's network", run = get(outside, "/small", 10) },
  })
  local big = bench.race(BULK .. " MiB", 10, {
    { name = "through the proxy", run = get(box, ("/big/%d"):format(BULK * MiB)) },
    { name = "direct, in the host's network", run = get(outside, ("/big/%d"):format(BULK * MiB)) },
  })
  bench.ratio { name = "ten small answers", ours = small["through the proxy"].p50, rival = "direct",
    theirs = small["direct, in the host's network"].p50 }
  bench.ratio { name = BULK .. " MiB", unit = "B/s", ours = BULK * MiB / big["through the proxy"].p50,
    rival = "direct", theirs = BULK * MiB / big["direct, in the host's network"].p50, at_least = true }
  box:close()
  outside:close()
  os.execute("kill " .. pid)
end
