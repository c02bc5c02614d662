--- Files of the sandbox, from the host, against the host's own on a file system of the same kind.

local MiB = 2 ^ 20
local BIG = 64

local function write(path, data)
  local file = assert(io.open(path, "wb"))
  assert(file:write(data))
  assert(file:close())
end

local function read(path, what)
  local file = assert(io.open(path, "rb"))
  local data = file:read(what)
  file:close()
  return data
end

local function small(bench, moonsand, box, host)
  local data = ("x"):rep(4096)
  moonsand.assert(box.files:write("small", data))
  write(host, data)
  local r = bench.race("open, read 4 KiB, close", 2000, {
    { name = "moonsand", run = function()
      local file = moonsand.assert(box.files:open("small", "r"))
      assert(#file:read(4096) == 4096)
      file:close()
    end },
    { name = "io.open", run = function()
      assert(#read(host, 4096) == 4096)
    end },
  })
  bench.value { name = "open, read 4 KiB, close", value = r.moonsand.p50, target = 100e-6 }
  bench.ratio { name = "open, read 4 KiB, close", ours = r.moonsand.p50,
    rival = "io.open on the host", theirs = r["io.open"].p50 }
end

local function big(bench, moonsand, box, host)
  local data = ("0123456789abcdef"):rep(BIG * MiB / 16)
  moonsand.assert(box.files:write("big", data))
  write(host, data)
  for _, each in ipairs {
    { "read", function()
      assert(#moonsand.assert(box.files:read "big") == #data)
    end, function()
      assert(#read(host, "*a") == #data)
    end },
    { "write", function()
      moonsand.assert(box.files:write("big", data))
    end, function()
      write(host, data)
    end },
  } do
    local what, ours, theirs = each[1], each[2], each[3]
    local r = bench.race(what .. " 64 MiB", 40, {
      { name = "moonsand", run = ours, after = collectgarbage },
      { name = "io.open", run = theirs, after = collectgarbage },
    })
    bench.ratio { name = what .. " 64 MiB", unit = "B/s", ours = BIG * MiB / r.moonsand.p50,
      rival = "io.open on the host", theirs = BIG * MiB / r["io.open"].p50, target = 0.9,
      at_least = true }
  end
end

return function(bench, moonsand)
  bench.area = "files"
  local box = bench.sandbox()
  if not pcall(function() return box.files end) then
    bench.skip("files", "box.files is not there yet")
    return
  end
  -- the sandbox's files are in a tmpfs: so are the host's, where there is one
  local host = "/dev/shm/moonsand-bench-" .. moonsand.assert(box).id
  local probe = io.open(host, "wb")
  if probe then
    probe:close()
  else
    host = os.tmpname()
  end
  local ok, message = pcall(function()
    small(bench, moonsand, box, host)
    big(bench, moonsand, box, host)
  end)
  os.remove(host)
  box:close()
  assert(ok, message)
end
