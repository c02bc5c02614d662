-- What the kernel counts for a user, and code in a sandbox may take all of: files on their way through
-- sockets, pages of pipes, inotify, message queues, what epoll sets watch. The user is the host's own, or
-- with a root host that of all sandboxes: meanwhile a neighbour and the host must work.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()

describe("what is counted for a user", function()
  local box, neighbour, probe, limit

  helper.deadline(60)
  helper.no_leaks(function()
    native.nofile(limit)
    box:close()
    neighbour:close()
  end)

  before_each(function()
    limit = native.nofile()
    native.nofile(math.min(limit, 1024)) -- what a login gives
    box = moonsand.assert(moonsand.create())
    neighbour = moonsand.assert(moonsand.create())
    probe = support.put(box, support.probe "shared")
  end)

  --- All that the library does with descriptors, watches and pipes.
  local function assert_works()
    local begun = core.now()
    assert.is_true(moonsand.with({}, function(third)
      local r = moonsand.assert(third:exec("cat", { stdin = ("x"):rep(200000), timeout = 20 }))
      return #r.stdout == 200000
    end))
    for _, one in ipairs { box, neighbour } do
      assert.equal("fine\n", moonsand.assert(one:exec("echo fine", 20)).stdout)
      moonsand.assert(one.files:write("f", "x", { timeout = 20 }))
      assert.equal("x", moonsand.assert(one.files:read("f", { timeout = 20 })))
    end
    assert.is_true(core.now() - begun < 20)
  end

  it("descriptors on their way stop neither the host nor a neighbour", function()
    local p = support.take_flights(box, probe)
    assert_works()
    assert.is_true(native.nofile() <= 1024) -- and is what it was
    assert.is_true(p:is_running())
  end)

  it("pages of pipes make pipes small, not useless", function()
    local p, count = support.take(box, probe, "pipes")
    assert.is_true(count > 0)
    assert_works()
    assert.is_true(p:is_running())
  end)

  it("a sandbox takes a part of what a user has of inotify and message queues", function()
    local watcher, inotify = support.take(box, probe, "inotify")
    assert.is_true(inotify == 64 or support.isolation == "bwrap") -- there the user's own limit counts
    local queuer, queues = support.take(box, probe, "queues")
    assert.is_true(queues <= 1)
    assert_works()
    assert.is_true(watcher:is_running() and queuer:is_running())
  end)

  it("watches that the kernel has no room for are done without", function()
    -- The attack itself takes the kernel a GiB: here the kernel says no at once, to everything.
    local text, status = support.child [[
      local native = require "support.init".native()
      local moonsand = require "moonsand"
      local box = assert(moonsand.create())
      local running = assert(box:start { "cat" }, { stdin = "pipe" })
      assert(native.no_watches())
      local other = assert(moonsand.create())
      for i = 1, 3 do
        local r = assert(other:exec("cat; echo err >&2", { stdin = ("x"):rep(300000), timeout = 20 }))
        assert(#r.stdout == 300000 and r.stderr == "err\n")
      end
      local results = assert(moonsand.run(function()
        local list = {}
        for i = 1, 100 do list[i] = i end
        return moonsand.all(list, function(i)
          return assert(box:exec({ "echo", tostring(i) }, 20)).stdout
        end)
      end))
      for i = 1, 100 do assert(results[i] == i .. "\n") end
      local late, _, code = box:exec("sleep 100", { timeout = 0.2 })
      assert(late.timed_out, code)
      running:close()
      assert(other:destroy(10))
      box:close()
      print "fine"
    ]]
    assert.equal("fine\n", text)
    assert.equal(0, status)
  end)
end)
