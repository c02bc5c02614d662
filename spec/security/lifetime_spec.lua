-- What is left of sandboxes, and what others get of them: when the host forks while it makes them, is killed
-- while many are made at once, or is several Lua states in several threads.

local helper = require "helper"
local support = require "support.init"

local native = support.native()

describe("lifetime:", function()
  helper.deadline(60)
  helper.no_leaks()

  it("a program that the host starts meanwhile keeps none of our descriptors", function()
    -- in a process of its own: the thread that forks is not to meet busted's files
    local text, status = support.child [[
      local support = require "support.init"
      local native = support.native()
      local moonsand = require "moonsand"
      local function life()
        local box = assert(moonsand.create())
        local r = assert(box:exec("cat; echo err >&2", { stdin = ("x"):rep(100000) }))
        assert(#r.stdout == 100000)
        assert(box.files:write("a/f", "x"))
        assert(box.files:read "a/f" == "x")
        assert(box.files:download("a", support.directory() .. "/a"))
        assert(box.files:upload(support.directory() .. "/a", "b"))
        local p = assert(box:start({ "cat" }, { stdin = "pipe", pty = true }))
        p:close()
        box:close()
      end
      life() -- Lua reads modules when they are wanted, with descriptors of its own kind
      local forks, kept = 0, 0
      for _ = 1, 5 do -- as often as the other thread needs: on a busy machine it may stand still
        assert(native.forker())
        for _ = 1, 40 do life() end
        local some, bad = native.forked()
        forks, kept = forks + some, kept + bad
        if forks >= 40 then break end
      end
      print(forks >= 40, kept)
    ]]
    assert.equal("true\t0\n", text)
    assert.equal(0, status)
  end)

  it("100 sandboxes that are made at once leave nothing when their host is killed in the middle", function()
    local command = support.command [[
      local moonsand = require "moonsand"
      io.stdout:setvbuf "no"
      print "begin"
      moonsand.run(function()
        local list = {}
        for i = 1, 100 do list[i] = i end
        moonsand.all(list, function(i)
          local box = assert(moonsand.create())
          print "made"
          box:start "setsid sleep 1000 & sleep 1000"
          assert(box.files:write("f", ("x"):rep(100000)))
          assert(box:exec "echo x")
        end)
      end)
      while true do moonsand.sleep(1) end]]
    local mounts = support.read "/proc/self/mountinfo"
    for step, delay in pairs { [0] = 0, [1] = 5000, [20] = 500, [60] = 2000, [99] = 100 } do
      local output, status = support.run(("%s %d %d 20000 -- %s </dev/null"):format(
        support.program "keeper", step, delay, command))
      assert.equal(0, status, ("step %d: %s"):format(step, output))
    end
    assert.equal(mounts, support.read "/proc/self/mountinfo")
  end)

  it("three hosts that share a user make, kill and leave sandboxes without touching each other's", function()
    local life = support.command [[
      local moonsand = require "moonsand"
      for round = 1, 8 do
        local boxes = {}
        for i = 1, 5 do boxes[i] = assert(moonsand.create()) end
        for i, box in ipairs(boxes) do
          assert(box:exec("echo " .. i .. " >/tmp/mine; kill -9 -1; true"))
          assert(box:exec("cat /tmp/mine").stdout == i .. "\n")
        end
        boxes[1]:close()
        boxes[2]:start "sleep 1000"
      end
      print "fine"]]
    local output = support.run(("for i in 1 2 3; do %s & done; wait"):format(life))
    assert.equal("fine\nfine\nfine\n", output)
    assert.is_true(#support.descendants(native.getpid()) < 10)
  end)
end)
