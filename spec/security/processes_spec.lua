-- Programs that will not end, that hide, that multiply. What is left of them is counted from
-- outside: everything in a sandbox descends from its agent.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()

describe("processes", function()
  local box, bomb, agent

  helper.deadline(40)
  helper.no_leaks(function()
    box:close()
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create { limits = { processes = 60 } })
    bomb = support.put(box, support.probe "bomb")
    agent = support.agent(box)
  end)

  --- Nothing but the agent is left in the sandbox.
  local function assert_empty()
    support.eventually(20, "programs are left", function()
      local left = support.descendants(agent)
      return #left == 0, #left .. ", " .. tostring(left[1] and left[1].name)
    end)
  end

  local function assert_works()
    assert.equal("fine\n", moonsand.assert(box:exec("echo fine", 10)).stdout)
  end

  local function start(mode, opts)
    local p = moonsand.assert(box:start({ bomb, mode }, opts))
    local line = moonsand.assert(p:wait_for("^ready", 10))
    return p, tonumber(line:match "%d+")
  end

  describe("are all gone after a timeout:", function()
    for _, mode in ipairs { "fork", "runner", "vfork", "fill", "zombies", "threads", "deaf", "stop", "breed" } do
      it(mode, function()
        local result = moonsand.assert(box:exec({ bomb, mode }, { timeout = 0.3 }))
        assert.is_true(result.timed_out)
        -- at once: it is told only when nothing is left
        local left = support.descendants(agent)
        assert.equal(0, #left, left[1] and left[1].name)
        assert_works()
      end)
    end
  end)

  describe("are all gone after close():", function()
    for _, mode in ipairs { "fork", "runner", "zombies", "threads" } do
      it(mode, function()
        start(mode):close()
        assert_empty()
        assert_works()
      end)
    end

    it("daemons", function()
      local p = moonsand.assert(box:start(bomb .. " daemon; exec sleep 1000"))
      moonsand.assert(p:wait_for("^ready", 10))
      p:close()
      assert_empty()
    end)
  end)

  it("that left group, session and parent are killed when the program ends", function()
    local result = moonsand.assert(box:exec({ bomb, "daemon" }, 10))
    assert.equal(0, result.exit_code)
    assert.equal(0, #support.descendants(agent))
  end)

  it("that left live on with leave, and end with the sandbox", function()
    local result = moonsand.assert(box:exec({ bomb, "daemon" }, { leave = true, timeout = 10 }))
    assert.equal(0, result.exit_code)
    local left = support.descendants(agent)
    assert.equal(1, #left)
    assert.is_true(support.alive(left[1]))
    moonsand.assert(box:destroy(5))
    assert.is_false(support.alive(left[1]))
  end)

  it("cannot shake off the tag that they are known by", function()
    local answers = support.answers(support.try(box, "limits", { "leave a daemon" }))
    support.refused(answers, {
      ["setrlimit"] = "EPERM", ["setrlimit with high bits"] = "EPERM",
      ["prlimit64 of 0"] = "EPERM", ["prlimit64 of itself"] = "EPERM",
      ["prlimit64 of its parent"] = "EPERM", ["prlimit64 with high bits"] = "EPERM",
      ["prlimit64 get"] = "OK", ["guesses"] = "EPERM",
      ["cores by setrlimit"] = "OK", -- a lie: it stays what it is
      ["cores stay 1"] = "OK", ["the tag is another"] = "ERANGE",
    })
    assert.equal(0, #support.descendants(agent)) -- the daemon that went on trying is gone too
    local text = moonsand.assert(box:exec { "bash", "-c", "ulimit -x 5 2>&1; ulimit -x" }).stdout
    assert.truthy(text:find "not permitted")
  end)

  it("have a tag that no two programs share", function()
    local function tag()
      return moonsand.assert(box:exec "grep 'Max file locks' /proc/self/limits").stdout
    end
    assert.are_not.equal(tag(), tag())
  end)

  it("that ignore TERM are killed after the grace", function()
    local result = support.in_time({ 0.1, 2, 10 }, function(timeout)
      return moonsand.assert(box:exec({ bomb, "deaf" }, { timeout = timeout, grace = 0.1 }))
    end, function(each)
      assert.is_true(each.timed_out)
      return each.stdout ~= ""
    end)
    assert.is_true(result.timed_out)
    assert.equal("KILL", result.signal)
    local p = start "deaf"
    result = moonsand.assert(p:stop { grace = 0.05 })
    assert.equal("KILL", result.signal)
    assert_empty()
  end)

  it("that stop their siblings do not stop the engine", function()
    local victim = moonsand.assert(box:start { "sleep", "1000" })
    local p = start "stop"
    support.eventually(20, "the sibling is not stopped", function()
      for _, process in ipairs(support.descendants(agent)) do
        if process.name == "sleep" and process.state == "T" then
          return true
        end
      end
    end)
    p:close()
    assert_works()
    victim:close()
    assert_empty()
  end)

  it("that let a tree go on while it is killed do not save it", function()
    local crowded = moonsand.assert(moonsand.create())
    local p = moonsand.assert(crowded:start { support.put(crowded, support.probe "bomb"), "regrow" })
    local root = tonumber(moonsand.assert(p:wait_for("^ready", 10)):match "%d+")
    assert.is_true(crowded:kill(root, { tree = true, signal = "KILL", grace = 5, timeout = 20 }))
    assert.equal("fine\n", moonsand.assert(crowded:exec("echo fine", 20)).stdout)
    crowded:close()
  end)

  it("that trace others do not keep them from ending", function()
    local open = moonsand.assert(moonsand.create { seccomp = { allow = { "debug" } } })
    local p = moonsand.assert(open:start { support.put(open, support.probe "bomb"), "trace" })
    moonsand.assert(p:wait_for("^ready", 10))
    support.eventually(20, "it traced nothing", function()
      local r = moonsand.assert(open:exec("sleep 0.2", { timeout = 1 }))
      assert.is_true(r.duration < 8, r.duration)
      return not p:is_running()
    end)
    assert.equal("KILL", moonsand.assert(p:wait(10)).signal)
    assert.equal("fine\n", moonsand.assert(open:exec("echo fine", 10)).stdout)
    open:close()
  end)

  it("that kill all they may leave the agent and the host alone", function()
    local zygote = support.process(agent)
    local sleeper = moonsand.assert(box:start { "sleep", "1000" })
    moonsand.assert(box:exec({ bomb, "kill" }, 10))
    assert.equal("KILL", moonsand.assert(sleeper:wait(10)).signal)
    assert.is_true(support.alive(zygote))
    assert_works()
  end)

  it("are as many as the limit says, in all of the sandbox, and others are not touched", function()
    local other = moonsand.assert(moonsand.create())
    local p, count = start "fill"
    assert.is_true(count <= 60 and count >= 50, tostring(count))
    local second, more = start "fill"
    assert.is_true(more <= 2, tostring(more))
    second:close()
    assert.equal("", moonsand.assert(other:exec(": & : & : & wait")).stderr)
    assert.equal(0, select(2, support.run "true")) -- nor the host
    p:close()
    other:close()
    assert_empty()
    assert_works()
  end)

  it("that are threads count too", function()
    local p, count = start "threads"
    assert.is_true(count <= 60, tostring(count))
    p:close()
    assert_works()
  end)

  it("that are zombies are all reaped", function()
    local p, count = start "zombies"
    assert.is_true(count <= 60, tostring(count))
    p:close()
    assert_empty()
    local script = "i=0; while [ $i -lt 200 ]; do (sh -c : &) ; i=$((i+1)); done"
    moonsand.assert(box:exec(script, 20))
    assert_empty()
  end)

  it("cannot queue signals, timers, watches and open files without end", function()
    local function count(mode)
      return tonumber(moonsand.assert(box:exec({ bomb, mode }, 20)).stdout:match "%d+")
    end
    assert.is_true(count "sigqueue" <= 4096)
    assert.is_true(count "timers" <= 4096)
    if support.isolation == "native" then -- bwrap cannot set it: see doc/isolation.md
      assert.is_true(count "inotify" <= 64)
      assert.is_true(count "watches" <= 16384)
    end
    assert.is_true(count "files" <= 1024)
    assert.is_true(count "mlock" <= 64)
    -- and the host's user still has its own
    local instances = moonsand.assert(box:exec "cat /proc/sys/user/max_inotify_instances").stdout
    assert.equal(support.isolation == "native", instances == "64\n")
  end)

  it("that need more memory than they may have get none, and that is their end", function()
    local result = moonsand.assert(box:exec({ bomb, "memory" },
      { limits = { memory = "64M" }, timeout = 20 }))
    assert.is_true(tonumber(result.stdout:match "%d+") <= 64)
    result = moonsand.assert(box:exec({ bomb, "crash" }, 20))
    assert.equal("SEGV", result.signal)
    assert_works()
  end)

  it("cannot make the agent use more memory or files", function()
    local rss = support.rss(agent)
    for _, mode in ipairs { "fork", "zombies", "runner" } do
      moonsand.assert(box:exec({ bomb, mode }, { timeout = 0.2 }))
    end
    assert.is_true(support.rss(agent) <= rss + 256 * 1024)
    if native.getuid() == 0 then
      support.eventually(20, "too many files", function()
        local count = support.fds(agent)
        return count <= 10, count
      end)
    end
  end)

  it("end with the sandbox, however many there are", function()
    local p = start "fill"
    local all = support.descendants(agent)
    assert.is_true(#all >= 50)
    local before = core.now()
    moonsand.assert(box:destroy(10))
    assert.is_true(core.now() - before < 5)
    for _, process in ipairs(all) do
      assert.is_false(support.alive(process))
    end
    local result, _, code = p:wait(5)
    assert.is_nil(result)
    assert.equal("closed", code)
  end)

  it("do not get a cheaper life or real-time", function()
    local text = moonsand.assert(box:exec [[
      nice -n -5 true 2>&1; chrt -f 1 true 2>&1; chrt -r 1 true 2>&1
      echo -900 >/proc/self/oom_score_adj; cat /proc/self/oom_score_adj]])
    assert.is_true(tonumber(text.stdout:match "(-?%d+)\n$") >= 0)
    local denied = select(2, (text.stdout):gsub("[^\n]*ermitted", ""))
      + select(2, (text.stdout):gsub("[^\n]*denied", ""))
    assert.equal(3, denied, text.stdout)
  end)
end)
