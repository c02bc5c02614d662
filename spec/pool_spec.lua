-- Pools: what is warm, what is bounded, who waits, what fails, what is left behind.

local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local support = require "support.init"

local LONG = 30 -- seconds: a wait that must end otherwise

-- A provider whose creates can be made to fail, or to take until they are let go.
local makes, refuse, gate
local local_provider = require "moonsand.providers.local"
local capabilities, options = local_provider.capabilities, local_provider.options
moonsand.register("moody", {
  capabilities = capabilities,
  options = options,
  create = function(opts, limits)
    makes = makes + 1
    while gate do
      local message, code, detail = loop.wait(limits, gate)
      if message then
        return nil, message, code, detail
      end
    end
    if refuse then
      return nil, refuse, "unavailable", { code = "unavailable", message = refuse }
    end
    return local_provider.create(opts, limits)
  end,
})
local MOODY = { provider = "moody" }

local function open_gate()
  local before = gate
  gate = nil
  before:wake()
end

--- Drives the loop until fn gives something true.
local function until_true(what, fn)
  support.eventually(20, what, function()
    loop.step(0.001)
    return fn()
  end)
end

describe("moonsand.pool", function()
  helper.deadline(60)
  local pool

  helper.no_leaks(function()
    if pool then
      pool:close()
      pool = nil
    end
    gate, refuse = nil, nil
  end)

  before_each(function()
    makes, refuse, gate = 0, nil, nil
  end)

  local function warm(count)
    until_true("warm sandboxes", function()
      return pool:stats().warm == count
    end)
  end

  describe("(options)", function()
    local function raises(text, fn)
      local line = debug.getinfo(fn, "S").linedefined
      local ok, err = pcall(fn)
      assert.is_false(ok)
      assert.equal(("spec/pool_spec.lua:%d: moonsand: %s"):format(line, text), err)
    end

    it("raises for what can be no option, at the caller's line", function()
      raises("moonsand.pool: unknown option 'sise' (did you mean 'size'?)",
        function() local _ = moonsand.pool { sise = 1 } end)
      raises("moonsand.pool: option 'size' must be a number, got string",
        function() local _ = moonsand.pool { size = "1" } end)
      raises("moonsand.pool: option 'size' must be a whole number from 0, not 1.5",
        function() local _ = moonsand.pool { size = 1.5 } end)
      raises("moonsand.pool: option 'max' must be a whole number from 3, not 2",
        function() local _ = moonsand.pool { size = 3, max = 2 } end)
      raises("moonsand.pool: option 'max' must be a whole number from 1, not 0",
        function() local _ = moonsand.pool { size = 0, max = 0 } end)
      raises("moonsand.pool: option 'max_age' must be a number of seconds above 0, not 0",
        function() local _ = moonsand.pool { max_age = 0 } end)
      raises("moonsand.pool: create: unknown option 'hotsname' (did you mean 'hostname'?)",
        function() local _ = moonsand.pool { create = { hotsname = "x" } } end)
      raises("moonsand.pool: create.name would be the name of many sandboxes",
        function() local _ = moonsand.pool { create = { name = "x" } } end)
    end)

    it("answers a failure for a provider that there is not", function()
      local none, message, code = moonsand.pool { create = { provider = "moodi" } }
      assert.is_nil(none)
      assert.equal("there is no provider 'moodi' (did you mean 'moody'?)", message)
      assert.equal("invalid", code)
    end)
  end)

  describe(":acquire", function()
    it("is answered by what was made in the background", function()
      pool = moonsand.pool { size = 2, max = 3, create = { provider = "moody", env = { X = "7" } } }
      assert.same(0, makes) -- it returned at once
      warm(2)
      local a, b = assert(pool:acquire()), assert(pool:acquire())
      assert.equal("7\n", assert(a:exec("echo $X")).stdout)
      assert.is_not.equal(a.id, b.id)
      local stats = pool:stats()
      assert.equal(2, stats.used)
      assert.equal(2, stats.acquired)
      until_true("the third one", function()
        return pool:stats().warm == 1
      end)
      a:close()
      b:close()
      warm(2)
      assert.equal(0, pool:stats().used)
    end)

    it("makes one itself when none is warm yet, though nobody has driven the loop", function()
      pool = moonsand.pool { size = 1, max = 1, create = MOODY }
      local box = assert(pool:acquire())
      assert.equal(1, makes)
      assert.is_true(assert(box:exec("true")).ok)
      box:close()
    end)

    it("never waits for one that is warm", function()
      pool = moonsand.pool { size = 1, create = MOODY }
      warm(1)
      assert(pool:acquire(0)):close()
    end)

    it("never gives out the same one twice", function()
      pool = moonsand.pool { size = 2, max = 4 }
      local seen = {}
      for _ = 1, 20 do
        pool:with(function(box)
          assert.is_nil(seen[box.id])
          seen[box.id] = true
          assert.is_false(box.files:exists "/workspace/mark")
          assert(box.files:write("mark", "x"))
        end)
      end
    end)

    it("waits at max, first come, first served", function()
      pool = moonsand.pool { size = 1, max = 1, create = MOODY }
      local held = assert(pool:acquire())
      local order = {}
      moonsand.run(function()
        local tasks = {}
        for i = 1, 3 do
          tasks[i] = moonsand.task(function()
            local box = moonsand.assert(pool:acquire(LONG))
            order[#order + 1] = i
            moonsand.sleep(0)
            box:close()
          end)
        end
        while pool:stats().waiting < 3 do
          moonsand.sleep(0)
        end
        assert.equal(1, makes)
        held:close()
        for i = 1, 3 do
          tasks[i]:wait()
        end
      end)
      assert.same({ 1, 2, 3 }, order)
      assert.equal(0, pool:stats().waiting)
    end)

    it("has room again when one was destroyed, and when one was dropped", function()
      pool = moonsand.pool { size = 0, max = 1 }
      assert(assert(pool:acquire()):destroy())
      assert(pool:acquire(LONG)) -- and forgotten
      until_true("the dropped one", function()
        collectgarbage()
        return pool:stats().used == 0
      end)
      assert(pool:acquire(LONG)):close()
    end)

    it("ends at its timeout, and at a cancel, and leaves no place taken", function()
      pool = moonsand.pool { size = 0, max = 1 }
      local held = assert(pool:acquire())
      local box, message, code, detail = pool:acquire(0.01)
      assert.is_nil(box)
      assert.equal("timed out", message)
      assert.equal("timeout", code)
      assert.equal("timeout", detail.code)
      local token = moonsand.token(0.01)
      assert.equal("cancelled", select(3, pool:acquire { cancel = token }))
      assert.equal("cancelled", select(3, pool:acquire { cancel = token }))
      assert.equal(0, pool:stats().waiting)
      held:close()
      assert(pool:acquire(LONG)):close()
    end)

    it("ends with its task", function()
      pool = moonsand.pool { size = 0, max = 1 }
      local held = assert(pool:acquire())
      moonsand.run(function()
        local waiting = moonsand.task(function()
          return pool:acquire()
        end)
        moonsand.sleep(0)
        assert.equal(1, pool:stats().waiting)
        waiting:cancel()
        assert.equal("cancelled", select(3, waiting:wait()))
      end)
      assert.equal(0, pool:stats().waiting)
      held:close()
      assert(pool:acquire(LONG)):close()
    end)

    it("is bounded by its own limit when it makes one itself, which is no failure of the pool's",
      function()
        gate = loop.signal()
        pool = moonsand.pool { size = 0, max = 1, create = MOODY }
        local _, _, code = pool:acquire(0.01)
        assert.equal("timeout", code)
        assert.equal("cancelled", select(3, pool:acquire { cancel = moonsand.token(0.01) }))
        assert.equal(0, pool:stats().failed)
        open_gate()
        assert(pool:acquire(LONG)):close()
      end)

    it("passes over one that died meanwhile, also when nobody has looked at the loop", function()
      pool = moonsand.pool { size = 2, max = 2 }
      warm(2)
      local first = pool.core.warm[1].box
      local pid = support.agent(first)
      local process = support.process(pid)
      support.run("kill -KILL " .. pid)
      support.eventually(20, "its end", function()
        return not support.alive(process)
      end)
      local box = assert(pool:acquire(0))
      assert.is_not.equal(first.id, box.id)
      assert.is_true(assert(box:exec("true")).ok)
      box:close()
      warm(2)
    end)

    it("keeps to max when many come at once", function()
      pool = moonsand.pool { size = 2, max = 3 }
      local most, used = 0, 0
      moonsand.run(function()
        assert(moonsand.all({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 }, function()
          return pool:with(function(box)
            used = used + 1
            most = math.max(most, used)
            while most < 3 do -- a machine under load may end the first before the third is there
              moonsand.sleep(0.001)
            end
            assert(box:exec("true"))
            local stats = pool:stats()
            assert.is_true(stats.used + stats.warm + stats.making <= 3)
            used = used - 1
            return true
          end)
        end))
      end)
      assert.equal(3, most)
      assert.equal(12, pool:stats().acquired)
    end)
  end)

  describe("(failures)", function()
    it("reach who acquires, with when to come again; then it recovers", function()
      refuse = "no luck"
      local _, message, code, detail, start, tried, shown
      repeat -- again when this stood still until the pool's rest of 0.1 s may be over
        if pool then
          pool:close()
        end
        pool = moonsand.pool { size = 1, max = 2, create = MOODY }
        start = loop.now()
        _, message, code, detail = pool:acquire()
        assert.equal("no luck", message)
        assert.equal("unavailable", code)
        assert.equal("moody", detail.provider)
        tried = makes
        _, message, code, detail = pool:acquire() -- at once, and nothing is tried
        tried, shown = makes - tried, pool:stats().failure
      until loop.now() - start < 0.1
      assert.equal("no luck", message)
      assert.equal("unavailable", code)
      assert.is_true(detail.retry_after > 0 and detail.retry_after <= 0.1)
      assert.equal(0, tried)
      assert.equal("no luck", shown)
      refuse = nil
      warm(1) -- by itself
      assert.is_nil(pool:stats().failure)
      assert(pool:acquire(0)):close()
    end)

    it("reach all who wait", function()
      pool = moonsand.pool { size = 0, max = 1, create = MOODY }
      local held = assert(pool:acquire())
      moonsand.run(function()
        local answers = {}
        for i = 1, 3 do
          answers[i] = moonsand.task(function()
            return pool:acquire(LONG)
          end)
        end
        moonsand.sleep(0)
        refuse = "no luck"
        held:close()
        for i = 1, 3 do
          local _, message, code, detail = answers[i]:wait()
          assert.same({ "no luck", "unavailable", "no luck" }, { message, code, detail.message })
        end
      end)
      assert.equal(2, makes)
    end)

    it("make it rest, longer each time", function()
      refuse = "no luck"
      pool = moonsand.pool { size = 4, max = 4, create = MOODY }
      local start = loop.now()
      until_true("some tries", function()
        return pool:stats().failed >= 12 -- three rounds of four
      end)
      local took = loop.now() - start
      assert.is_true(took >= 0.1 + 0.2 and took < 10, took)
      assert.equal(pool:stats().failed, makes)
    end)

    it("leave no timer behind the pool, also where a success has cut a rest short", function()
      local at, timers = loop.at, {}
      finally(function() loop.at = at end)
      loop.at = function(when, fn)
        local timer = {}
        timers[#timers + 1] = timer
        local stop = at(when, function()
          timer.over = true
          fn()
        end)
        return function()
          timer.over = true
          stop()
        end
      end
      gate, refuse = loop.signal(), "no luck"
      pool = moonsand.pool { size = 0, max = 3, create = MOODY }
      moonsand.run(function()
        local first = moonsand.task(function()
          local _, message = pool:acquire()
          refuse = nil -- for the second, which is behind
          return message
        end)
        local second = moonsand.task(pool.acquire, pool)
        moonsand.sleep(0)
        open_gate()
        assert.equal("no luck", first:wait())
        local box = assert(second:wait())
        refuse = "none again"
        assert.equal("none again", select(2, pool:acquire()))
        box:close()
      end)
      until_true("the end of the first rest", function()
        return timers[1].over
      end)
      pool:close()
      for i, timer in ipairs(timers) do
        assert.is_true(timer.over, i)
      end
      assert.is_true(#timers >= 2)
    end)

    it("of a kind that only shows in the making are answered, too", function()
      pool = moonsand.pool { size = 1, max = 1, create = { limits = { disk = "little" } } }
      until_true("the failure", function()
        return pool:stats().failed > 0
      end)
      local _, message, code = pool:acquire()
      assert.equal("limits.disk: 'little' is not a size in bytes", message)
      assert.equal("invalid", code)
    end)

    it("go with moonsand.retry", function()
      refuse = "no luck"
      pool = moonsand.pool { size = 0, max = 1, create = MOODY }
      assert.is_nil((pool:acquire()))
      local box = assert(moonsand.retry(function()
        refuse = nil
        return pool:acquire()
      end, { times = 5, delay = 0 }))
      box:close()
    end)
  end)

  describe("(max_age)", function()
    it("replaces those that are old, and never gives one out", function()
      pool = moonsand.pool { size = 1, max = 2, max_age = 0.05, create = MOODY }
      warm(1)
      local first = pool.core.warm[1].box
      until_true("another", function()
        local warmed = pool.core.warm[1] -- `first` may be the second one already
        return makes >= 2 and warmed and warmed.box ~= first
      end)
      assert.is_true(first.core.closed)
      assert.equal(1, pool:stats().warm)
      local old = pool.core.warm[1].box
      support.native().pause(0.06) -- nobody drives the loop
      local box = assert(pool:acquire(LONG))
      assert.is_not.equal(old.id, box.id)
      box:close()
    end)
  end)

  describe(":with", function()
    it("closes in every case, and returns or raises what the function did", function()
      pool = moonsand.pool { size = 1, max = 1 }
      local kept
      assert.same({ 1, nil, "x" }, { pool:with(function(box, ...)
        kept = box
        return ...
      end, 1, nil, "x") })
      assert.is_true(kept.core.closed)
      local problem = {}
      local ok, err = pcall(pool.with, pool, function(box)
        kept = box
        error(problem)
      end)
      assert.is_false(ok)
      assert.equal(problem, err)
      assert.is_true(kept.core.closed)
      assert.has_error(function() pool:with(7) end)
    end)

    it("answers the failure when there is no sandbox", function()
      refuse = "no luck"
      pool = moonsand.pool { size = 0, create = MOODY }
      local called = false
      local _, message, code = pool:with(function()
        called = true
      end)
      assert.same({ "no luck", "unavailable", false }, { message, code, called })
    end)
  end)

  describe(":close", function()
    it("ends what is warm, not what was handed out, and is idempotent", function()
      pool = moonsand.pool { size = 2, max = 3 }
      warm(2)
      local box = assert(pool:acquire())
      local other = pool.core.warm[1].box
      pool:close()
      pool:close()
      assert.is_true(other.core.closed)
      assert.is_true(assert(box:exec("true")).ok)
      box:close()
      assert.equal(0, pool:stats().warm)
      assert.equal(0, pool:stats().used)
      assert.equal("moonsand.Pool (closed, 0 warm, 0 handed out)", tostring(pool))
    end)

    it("is heard by who waits, and by what is being made", function()
      gate = loop.signal()
      pool = moonsand.pool { size = 1, max = 2, create = MOODY }
      moonsand.run(function()
        local tasks = {}
        for i = 1, 4 do
          tasks[i] = moonsand.task(function()
            return pool:acquire(LONG)
          end)
        end
        moonsand.sleep(0)
        assert.equal(3, pool:stats().waiting) -- one is made for the pool, one for a task
        pool:close()
        open_gate()
        for i = 1, 4 do
          local _, message, code = tasks[i]:wait()
          assert.same({ "the pool was closed", "closed" }, { message, code })
        end
      end)
    end)

    it("makes a new call raise, at the caller's line", function()
      pool = moonsand.pool { size = 0 }
      pool:close()
      local function call() local _ = pool:acquire() end
      local _, err = pcall(call)
      assert.equal(("spec/pool_spec.lua:%d: moonsand: pool:acquire: the pool was closed"):format(
        debug.getinfo(call, "S").linedefined), err)
    end)
  end)

  it("is closed when nobody holds it, also while sandboxes of it are used", function()
    pool = moonsand.pool { size = 2, max = 4, max_age = LONG }
    warm(2)
    local box = assert(pool:acquire())
    warm(2)
    local core = pool.core
    pool = nil
    until_true("the end of the pool", function()
      collectgarbage()
      return core.closed
    end)
    assert.is_true(assert(box:exec("true")).ok)
    box:close()
  end)

  it("outlives the run that made it", function()
    moonsand.run(function()
      pool = moonsand.pool { size = 2, max = 2 }
    end)
    warm(2)
    assert(pool:acquire(0)):close()
  end)

  it("leaves nothing when the program ends with it", function()
    local output, status = support.child([[
      local moonsand = require "moonsand"
      pool = moonsand.pool { size = 3, max_age = 100 }
      box = assert(pool:acquire())
      moonsand.sleep(0.01)
      print(pool:stats().used)
    ]])
    assert.same({ "1\n", 0 }, { output, status })
  end)
end)
