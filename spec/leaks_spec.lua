-- Nothing grows: files, processes, memory, in the host and in the agent.

local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()
local KIB, MIB = 1024, 1024 * 1024

local function assert_grew_less(pid, from, bytes)
  local grown = support.rss(pid) - from
  assert.is_true(grown <= bytes or support.instrumented(), grown .. " bytes more")
end

describe("leaks:", function()
  helper.deadline(60)
  helper.no_leaks()

  --- How many files an agent has open that has nothing to do; nil where only root may look.
  local function files_at_rest(agent)
    support.await_rest(agent)
    return (support.fds(agent))
  end

  local function zombies()
    local count = 0
    for _, process in ipairs(support.descendants(native.getpid())) do
      count = count + (process.state == "Z" and 1 or 0)
    end
    return count
  end

  it("500 creates and destroys leave the host as it was", function()
    local function some(count)
      for _ = 1, count do
        local box = moonsand.assert(moonsand.create())
        moonsand.assert(box:destroy(10))
      end
    end
    some(100) -- what is kept for later is kept now
    local before, rss = helper.baseline(), support.rss(native.getpid())
    local zygote = support.children(native.getpid())[1].pid
    local zygote_rss, zygote_fds = support.rss(zygote), support.fds(zygote)
    some(500)
    helper.assert_no_more(before)
    support.eventually(20, "zombies are left", function()
      return zombies() == 0, zombies()
    end)
    assert_grew_less(native.getpid(), rss, 2 * MIB)
    assert_grew_less(zygote, zygote_rss, 64 * KIB)
    assert.is_true(support.fds(zygote) <= zygote_fds + 2) -- a spare in the making
  end)

  it("2,000 execs leave the host and the agent as they were", function()
    local box = moonsand.assert(moonsand.create())
    local agent = support.agent(box)
    local function some(count)
      for i = 1, count do
        local result = moonsand.assert(box:exec({ "/bin/true", tostring(i) }, { stdin = "some input" }))
        assert(result.ok)
      end
    end
    some(200)
    local before, rss, agent_rss = helper.baseline(), support.rss(native.getpid()), support.rss(agent)
    local agent_fds = files_at_rest(agent)
    some(2000)
    helper.assert_no_more(before)
    assert_grew_less(native.getpid(), rss, 2 * MIB)
    assert_grew_less(agent, agent_rss, 64 * KIB)
    assert.equal(agent_fds, files_at_rest(agent))
    assert.equal(0, #support.descendants(agent))
    box:close()
  end)

  it("programs that fail to start, time out, are cancelled, closed, dropped leave nothing", function()
    local box = moonsand.assert(moonsand.create())
    local agent = support.agent(box)
    local function some(count)
      for _ = 1, count do
        assert.is_nil((box:exec { "/nowhere" }))
        assert.is_nil((box:exec({ "true" }, { cwd = "/nowhere" })))
        moonsand.assert(box:exec("sleep 1000", { timeout = 0.01 }))
        local token = moonsand.token()
        local p = moonsand.assert(box:start("sleep 1000", { cancel = token }))
        token:cancel()
        p:wait(10)
        moonsand.assert(box:start "cat"):close()
        box:start("echo dropped") -- nobody looks at it
        box:exec("yes", { max_output = 1000, on_limit = "kill", timeout = 5 })
      end
      support.eventually(20, "programs are left", function()
        loop.step(0)
        return #support.descendants(agent) == 0
      end)
      box:exec "true"
      helper.settle()
    end
    some(70) -- handles are let go of every 64 starts
    local before, rss, agent_rss = helper.baseline(), support.rss(native.getpid()), support.rss(agent)
    some(70)
    local now = helper.holdings()
    assert.is_true(now.fds <= before.fds + 64, now.fds .. " files, not " .. before.fds)
    assert_grew_less(native.getpid(), rss, 2 * MIB)
    assert_grew_less(agent, agent_rss, 64 * KIB)
    box:close()
  end)

  it("a sandbox that nobody holds any more is ended", function()
    local before = helper.baseline()
    local agents = {}
    local function make()
      for i = 1, 20 do
        local box = moonsand.assert(moonsand.create())
        moonsand.assert(box:start("setsid sleep 1000 & sleep 1000"))
        agents[i] = support.process((support.agent(box)))
      end
    end
    make()
    helper.assert_no_more(before)
    support.eventually(20, "a sandbox lives on", function()
      for _, agent in ipairs(agents) do
        if support.alive(agent) then
          return nil, agent.pid
        end
      end
      return true
    end)
  end)

  it("what was made from a sandbox keeps it alive", function()
    local function program()
      return moonsand.assert(moonsand.assert(moonsand.create()):start "read line; echo $line")
    end
    local p = program()
    local output = p.stdout
    helper.settle()
    moonsand.assert(p.stdin:write "alive\n")
    helper.settle()
    assert.equal("alive", moonsand.assert(output:read("l", 5)))
    assert.is_true(moonsand.assert(p:wait(5)).ok)
  end)

  it("a raise within `with` ends the sandbox", function()
    local before = helper.baseline()
    for _ = 1, 20 do
      assert.is_false((pcall(moonsand.with, {}, function(box)
        box:start "sleep 1000"
        error "over"
      end)))
    end
    helper.assert_no_more(before)
  end)

  it("closing a Lua state leaves nothing, in whatever order it is finalized", function()
    local before = helper.baseline()
    for _ = 1, 20 do
      local text, why = native.state [[
        local moonsand = require "moonsand"
        local box = assert(moonsand.create())
        everything = { box, assert(box:start "cat"), assert(box:start "setsid sleep 1000 & yes") }
        everything[3].stdout:read(1)
        box:exec "true"
        return "made"
      ]]
      assert.equal("made", text, why)
    end
    helper.assert_no_more(before)
    support.eventually(20, "zombies are left", function()
      return zombies() == 0
    end)
  end)

  it("output that nobody reads does not pile up beyond its limit", function()
    local box = moonsand.assert(moonsand.create())
    local before = support.rss(native.getpid())
    local p = moonsand.assert(box:start("yes", { max_output = "1M" }))
    local deadline = loop.now() + 0.5
    while loop.now() < deadline do
      loop.step(0.01)
    end
    assert_grew_less(native.getpid(), before, 8 * MIB)
    p:close()
    box:close()
  end)
end)
