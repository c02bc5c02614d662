-- Code inside that knows how an agent and its host talk: it forges what is said, sends every signal to
-- the agent, starves it. The proofs are the host's: what programs ended with, and the agent's own state.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()

describe("the agent", function()
  local box

  helper.deadline(40)
  helper.no_leaks(function()
    box:close()
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  local function assert_works()
    assert.equal("fine\n", moonsand.assert(box:exec("echo fine", 20)).stdout)
    moonsand.assert(box.files:write("file", "x", { timeout = 20 }))
    assert.equal("x", moonsand.assert(box.files:read("file", { timeout = 20 })))
    assert.equal("ready", box.core.driver:state())
  end

  it("is not spoken for: its messages, written wherever that goes, are output and nothing else", function()
    local waiting = moonsand.assert(box:start { "sleep", "1000" })
    local r = support.try(box, "protocol", { "frames" })
    assert.equal(7, r.exit_code)
    assert.equal(r.stderr, r.stdout) -- nothing was opened, and no socket was there
    assert.is_true(#r.stdout > 10000)
    assert.equal("\2\0\0\0\0\0\0\0", r.stdout:sub(1, 8))
    assert.is_true(waiting:is_running())
    waiting:close()
    -- also from a terminal, and from a program that lives on when its first process has ended
    local path = support.put(box, support.probe "protocol", "again")
    r = moonsand.assert(box:exec({ path, "frames" }, { pty = true, timeout = 20 }))
    assert.equal(7, r.exit_code)
    r = moonsand.assert(box:exec(path .. " frames & exit 3", { leave = true, timeout = 20 }))
    assert.equal(3, r.exit_code)
    assert_works()
  end)

  it("gets no signal from inside, by whatever way", function()
    local agent = support.agent(box)
    local before = support.process(agent)
    for _ = 1, 3 do
      local r = support.try(box, "protocol", { "signals" })
      assert.equal("all sent\n", r.stdout)
    end
    support.await_rest(agent)
    for _, field in ipairs { "SigPnd", "ShdPnd" } do
      assert.equal("0000000000000000", support.status(agent, field))
    end
    local now = support.process(agent)
    before.state, now.state = nil, nil
    assert.same(before, now)
    assert_works()
  end)

  it("serves while programs send it what it listens to", function()
    local path = support.put(box, support.probe "files")
    local storms = {}
    for i = 1, 4 do
      storms[i] = moonsand.assert(box:start { path, "storm", "17" })
    end
    local begun = core.now()
    for _ = 1, 10 do
      assert_works()
    end
    assert.is_true(core.now() - begun < 20)
    for _, storm in ipairs(storms) do
      storm:close()
    end
  end)

  it("ends no program early, and none twice, when programs of others are ended under it", function()
    local sleepers = {}
    for i = 1, 20 do
      sleepers[i] = moonsand.assert(box:start { "sleep", "1000" })
    end
    moonsand.assert(box:exec("kill -9 -1", 20))
    for _, p in ipairs(sleepers) do
      local r = moonsand.assert(p:wait(10))
      assert.equal("KILL", r.signal)
      assert.is_nil(r.exit_code)
    end
    assert_works()
  end)

  it("does not grow, in memory or files, by children that nobody waits for", function()
    local agent = support.agent(box)
    moonsand.assert(box:exec("for i in $(seq 200); do (setsid true &) ; done", 20))
    support.await_rest(agent)
    local rss, files = support.rss(agent), support.fds(agent)
    moonsand.assert(box:exec("for i in $(seq 2000); do (setsid true &) ; done", 30))
    support.await_rest(agent)
    assert.is_true(support.rss(agent) <= rss + 256 * 1024)
    if native.getuid() == 0 then
      assert.equal(files, (support.fds(agent)))
    end
    assert_works()
  end)

  it("answers, if only no, in a sandbox that is full of processes, files and bytes", function()
    box:close()
    local inodes = support.isolation == "native" and 200 or nil -- bwrap's have no such limit
    box = moonsand.assert(moonsand.create { limits = { processes = 30, disk = "4M", inodes = inodes } })
    local bomb = support.put(box, support.probe "bomb")
    box:exec "head -c 8M /dev/zero >/tmp/fill; for i in $(seq 300); do : >/tmp/$i; done 2>&-"
    local p = moonsand.assert(box:start { bomb, "fill" })
    moonsand.assert(p:wait_for("^ready", 20))
    for _ = 1, 20 do
      local begun = core.now()
      local r, _, code = box:exec({ "true" }, { timeout = 5 })
      assert.is_true(r ~= nil or code == "busy" or code == "unavailable", code)
      local ok, _, why = box.files:write("/tmp/more", ("x"):rep(100000), { timeout = 5 })
      assert.is_true(ok or why == "no_space" or why == "busy", why)
      assert.is_true(core.now() - begun < 10)
    end
    p:close()
    support.eventually(10, "nothing can be removed", function()
      local r = box:exec("rm -f /tmp/*", { timeout = 5 })
      return r and r.ok
    end)
    assert_works()
  end)
end)
