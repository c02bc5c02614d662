-- Tasks: what they give, how they end, what they leave behind.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local task = require "moonsand.task"

local LONG = 30 -- seconds: a sleep that must not be slept; deadlines turn hangs into failures

local function interpreter()
  local i = 0
  while arg and arg[i - 1] do
    i = i - 1
  end
  return arg and arg[i] or (rawget(_G, "jit") and "luajit" or "lua5.4")
end

--- What a script prints, both streams.
local function script(text)
  local name = os.tmpname()
  local file = assert(io.open(name, "w"))
  file:write(text)
  file:close()
  local pipe = assert(io.popen(("%s %s 2>&1"):format(interpreter(), name)))
  local output = pipe:read "*a"
  pipe:close()
  os.remove(name)
  return output
end

local function pack(...)
  return { n = select("#", ...), ... }
end

--- What `fn` raises, with the line it blames; that line must be the call's.
local function raised(fn)
  local ok, err = pcall(fn)
  assert.is_false(ok)
  return err
end

local function blames(call, text)
  local line = debug.getinfo(call, "S").linedefined
  local err = raised(call)
  assert.equal(("spec/task_spec.lua:%d: moonsand: %s"):format(line, text), err)
end

local BAD = {
  function() return nil, "it is busy", "busy", { code = "busy", message = "it is busy" } end,
}

describe("moonsand.task", function()
  local heard

  before_each(function()
    heard = {}
    task.on_error = function(err, traceback)
      heard[#heard + 1] = { err, traceback }
    end
  end)

  after_each(function()
    task.on_error = nil
  end)

  describe(".run", function()
    it("returns what the function returned, nils and all", function()
      assert.same({ n = 4, 1, nil, "x", nil }, pack(task.run(function(...)
        assert.same({ n = 2, 7, nil }, pack(...))
        task.sleep(0)
        return 1, nil, "x", nil
      end, 7, nil)))
      assert.same({ n = 0 }, pack(task.run(function() end)))
    end)

    it("raises what the function raised, as it is", function()
      local object = {}
      assert.equal(object, raised(function()
        task.run(function()
          task.sleep(0)
          error(object)
        end)
      end))
      assert.same({}, heard)
    end)

    it("may be nested", function()
      assert.equal("deep", task.run(function()
        return (task.run(function()
          return (task.run(function()
            task.sleep(0)
            return "deep"
          end))
        end))
      end))
    end)

    it("cancels and awaits what was started inside, by whomever", function()
      local log = {}
      local function worker(name, start)
        if start then
          task.task(worker, start)
        end
        log[#log + 1] = name .. " waits"
        local _, _, code = task.sleep(LONG)
        log[#log + 1] = name .. " " .. tostring(code)
        task.sleep(0) -- raises: the second time
        log[#log + 1] = "never"
      end
      assert.equal("result", task.run(function()
        task.task(worker, "a", "b")
        task.sleep(0)
        task.sleep(0)
        return "result"
      end))
      assert.same({ "a waits", "b waits", "a cancelled", "b cancelled" }, log)
      assert.same({}, heard)
    end)

    it("awaits clean-up that takes its time, and what that starts", function()
      local log = {}
      task.run(function()
        task.task(function()
          task.sleep(LONG)
          loop.wait(loop.limits({ timeout = 0.005 }, true))
          log[#log + 1] = "cleaned up"
          task.task(function() log[#log + 1] = "never begins" end)
        end)
        task.sleep(0)
      end)
      assert.same({ "cleaned up" }, log)
    end)

    it("cancels them when the function raises, too", function()
      local state
      local err = raised(function()
        task.run(function()
          local t = task.task(task.sleep, LONG)
          t:on_done(function() state = t:status() end)
          task.sleep(0)
          error("boom", 0)
        end)
      end)
      assert.equal("boom", err)
      loop.step(0)
      assert.equal("cancelled", state)
    end)

    it("leaves alone what was started outside", function()
      local go_on = loop.signal()
      local outside = task.task(function()
        loop.wait(loop.limits { timeout = LONG }, go_on)
        return "outside"
      end)
      task.run(task.sleep, 0)
      assert.equal("running", outside:status())
      go_on:wake()
      assert.equal("outside", outside:wait(10))
    end)

    it("ends its own function when the task around it is cancelled", function()
      local log = {}
      task.run(function()
        local around = task.task(function()
          local values = pack(task.run(function()
            local _, _, code = task.sleep(LONG)
            log[#log + 1] = code
            loop.wait(loop.limits({ timeout = 0.002 }, true))
            log[#log + 1] = "cleaned up"
          end))
          log[#log + 1] = values[2]
        end)
        task.sleep(0)
        task.sleep(0)
        around:cancel "enough"
        around:wait(10)
      end)
      assert.same({ "cancelled", "cleaned up", "cancelled: enough" }, log)
    end)

    it("refuses what is no function", function()
      blames(function() task.run(5) end,
        "moonsand.run: argument 1 must be a function, got number")
      blames(function() task.run() end, "moonsand.run: argument 1 must be a function, got nil")
    end)

    it("calls what can be called", function()
      assert.equal(3, task.run(setmetatable({}, { __call = function(_, n) return n + 1 end }), 2))
    end)
  end)

  describe(".task", function()
    it("does not run within the call", function()
      local ran = false
      local t = task.task(function() ran = true end)
      assert.is_false(ran)
      assert.equal("running", t:status())
      assert.equal("moonsand.Task (running)", tostring(t))
      assert.same({ n = 0 }, pack(t:wait(10)))
      assert.is_true(ran)
      assert.equal("done", t:status())
    end)

    it("runs side by side with others", function()
      local log = {}
      local function count(name)
        for i = 1, 3 do
          log[#log + 1] = name .. i
          task.sleep(0)
        end
      end
      local a, b = task.task(count, "a"), task.task(count, "b")
      a:wait(10)
      b:wait(10)
      assert.equal("a1 b1 a2 b2 a3 b3", table.concat(log, " "))
    end)

    it("refuses what is no function", function()
      blames(function() task.task "x" end,
        "moonsand.task: argument 1 must be a function, got string")
    end)
  end)

  describe(":wait", function()
    it("gives the same each time, to anybody", function()
      local t = task.task(function() return 1, nil, 3 end)
      local function look()
        return pack(t:wait(10))
      end
      local others = { task.task(look), task.task(look) }
      assert.same({ n = 3, 1, nil, 3 }, look())
      assert.same({ n = 3, 1, nil, 3 }, look())
      assert.same({ n = 3, 1, nil, 3 }, (others[1]:wait(10)))
      assert.same({ n = 3, 1, nil, 3 }, (others[2]:wait(10)))
    end)

    it("raises what the task raised, each time", function()
      local t = task.task(function() error({ mine = true }) end)
      assert.is_true(raised(function() t:wait(10) end).mine)
      assert.is_true(raised(function() t:wait(10) end).mine)
      assert.equal("failed", t:status())
      assert.same({}, heard)
    end)

    it("ends at its own limit, and the task goes on", function()
      local go_on = loop.signal()
      local t = task.task(function()
        loop.wait(loop.limits { timeout = LONG }, go_on)
        return "done"
      end)
      local _, message, code, detail = t:wait(0.001)
      assert.equal("timed out", message)
      assert.equal("timeout", code)
      assert.equal("timeout", detail.code)
      local token = task.token(0.001)
      _, message, code = t:wait { cancel = token }
      assert.equal("cancelled: timed out", message)
      assert.equal("cancelled", code)
      assert.equal("running", t:status())
      go_on:wake()
      assert.equal("done", t:wait(10))
      assert.equal("done", t:wait(0))
    end)

    it("refuses to wait for the task that runs, and wrong options", function()
      local t
      t = task.task(function() t:wait() end)
      assert.truthy(raised(function() t:wait(10) end):find("cannot wait for itself", 1, true))
      blames(function() t:wait { timeuot = 1 } end,
        "task:wait: unknown option 'timeuot' (did you mean 'timeout'?)")
    end)
  end)

  describe(":cancel", function()
    it("is told by values, once, then by errors", function()
      local first, second, rounds = nil, nil, 0
      local t = task.task(function()
        first = pack(task.sleep(LONG))
        local ok
        ok, second = pcall(task.sleep, LONG)
        assert(not ok)
        while true do
          rounds = rounds + 1
          task.sleep(1)
        end
      end)
      loop.step(0)
      assert.is_true(t:cancel "enough")
      assert.is_false(t:cancel "again")
      assert.equal("running", t:status())
      local values = pack(t:wait(10))
      assert.equal("cancelled", t:status())
      assert.equal(1, rounds)
      for _, told in ipairs { first, values } do
        assert.is_nil(told[1])
        assert.equal("cancelled: enough", told[2])
        assert.equal("cancelled", told[3])
        assert.same({ code = "cancelled", message = "cancelled: enough", cause = "enough" },
          told[4])
      end
      assert.is_true(errors.is_object(second))
      assert.equal("cancelled", second.code)
      assert.equal("cancelled: enough", tostring(second))
      assert.is_false(t:cancel())
    end)

    it("ends a loop that ignores what its waits answer", function()
      local t = task.task(function()
        while true do
          task.sleep(0)
        end
      end)
      loop.step(0)
      t:cancel()
      assert.equal("cancelled", select(3, t:wait(10)))
      assert.same({}, heard)
    end)

    it("before the beginning: the function is never called", function()
      local ran = false
      local t = task.task(function() ran = true end)
      t:cancel()
      assert.equal("cancelled", select(3, t:wait(10)))
      assert.is_false(ran)
    end)

    it("of oneself counts from the next wait on", function()
      local t, code, _
      t = task.task(function()
        t:cancel()
        _, _, code = task.sleep(LONG)
        return "came to its end"
      end)
      assert.equal("came to its end", t:wait(10))
      assert.equal("cancelled", code)
      assert.equal("done", t:status())
    end)

    it("counts as cancelled however the task passes it on", function()
      local ways = {
        returned = function() return task.sleep(LONG) end,
        asserted = function() error((select(2, task.sleep(LONG))), 0) end, -- as Lua's assert does
        raised = function() error((select(2, task.sleep(LONG)))) end,
        object = function() errors.assert(task.sleep(LONG)) end,
        ignored = function() task.sleep(LONG) task.sleep(LONG) end,
      }
      for name, way in pairs(ways) do
        local t = task.task(way)
        loop.step(0)
        t:cancel "why"
        local values = pack(t:wait(10))
        assert.equal("cancelled", t:status(), name)
        assert.same({ nil, "cancelled: why", "cancelled" }, { values[1], values[2], values[3] })
      end
    end)

    it("does not hide another error of the clean-up", function()
      local t = task.task(function()
        task.sleep(LONG)
        error("broken clean-up", 0)
      end)
      loop.step(0)
      t:cancel()
      assert.equal("broken clean-up", raised(function() t:wait(10) end))
      assert.equal("failed", t:status())
    end)

    it("reaches a wait in a wrapped generator, and in a user's own", function()
      for _, wrap in ipairs { task.wrap, coroutine.wrap } do
        local code
        local t = task.task(function()
          wrap(function()
            _, _, code = task.sleep(LONG)
            coroutine.yield()
          end)()
        end)
        -- the user's own generator blocks: so the canceller is a task
        task.task(function() t:cancel() end)
        t:wait(10)
        assert.equal("cancelled", code)
      end
    end)

    it("leaves shielded waits alone", function()
      local t = task.task(function()
        task.sleep(LONG)
        local message = loop.wait(loop.limits({ timeout = 0.002 }, true))
        return message
      end)
      loop.step(0)
      t:cancel()
      assert.equal("timed out", t:wait(10))
    end)
  end)

  describe(":on_done", function()
    it("hears values, errors, and cancellations, never within the call", function()
      local got = {}
      local function listen(name, t)
        assert.equal(t, t:on_done(function(...) got[name] = pack(...) end))
      end
      local done = task.task(function() return 1, nil end)
      local failed = task.task(function() error("no", 0) end)
      local cancelled = task.task(task.sleep, LONG)
      listen("done", done)
      listen("failed", failed)
      listen("cancelled", cancelled)
      cancelled:cancel()
      assert.same({}, got)
      for _ = 1, 3 do
        loop.step(0)
      end
      assert.same({ n = 3, true, 1, nil }, got.done)
      assert.same({ n = 2, false, "no" }, got.failed)
      assert.equal(2, got.cancelled.n)
      assert.equal("cancelled", got.cancelled[2].code)
      listen("late", done)
      assert.is_nil(got.late)
      loop.step(0)
      assert.same({ n = 3, true, 1, nil }, got.late)
      assert.same({}, heard)
    end)

    it("may wait, and what it raises is told", function()
      local t = task.task(function() end)
      local waited
      t:on_done(function() waited = task.sleep(0) end)
      t:on_done(function() error("in a callback", 0) end)
      t:wait(10)
      loop.step(0)
      loop.step(0)
      assert.is_true(waited)
      assert.equal("in a callback", heard[1][1])
      assert.equal(1, #heard)
    end)

    it("refuses what is no function", function()
      local t = task.task(function() end)
      blames(function() t:on_done {} end,
        "task:on_done: argument 1 must be a function, got table")
    end)
  end)

  describe("on_error", function()
    it("hears what a task raised that nobody waited for, when its run ends", function()
      task.run(function()
        task.task(function() error "lost" end)
        task.sleep(0)
      end)
      assert.equal(1, #heard)
      assert.truthy(heard[1][1]:find("^spec/task_spec.lua:%d+: lost$"))
      assert.truthy(heard[1][2]:find("stack traceback", 1, true))
    end)

    it("hears it when the task is collected, in the next turn", function()
      local t = task.task(function() error("forgotten", 0) end)
      loop.step(0)
      assert.equal("failed", t:status())
      assert.same({}, heard)
      t = nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      assert.same({}, heard) -- not in the middle of the collector
      loop.step(0)
      loop.step(0)
      assert.equal(1, #heard)
      assert.equal("forgotten", heard[1][1])
    end)

    it("does not hear what was waited for, in time or late", function()
      task.run(function()
        local early = task.task(function() error "early" end)
        local late = task.task(function() error "late" end)
        pcall(early.wait, early)
        task.sleep(0)
        pcall(late.wait, late)
      end)
      collectgarbage()
      collectgarbage()
      loop.step(0)
      loop.step(0)
      assert.same({}, heard)
    end)

    it("prints by default, at the end of the program at the latest", function()
      local out = script [[
        local task = require "moonsand.task"
        task.task(function() error("printed", 0) end)
        kept = task.task(function() error("kept to the end", 0) end)
        task.sleep(0)
        print "end of the program"
      ]]
      assert.equal(1, select(2, out:gsub("moonsand: a task failed: printed", "")), out)
      assert.equal(1, select(2, out:gsub("moonsand: a task failed: kept to the end", "")), out)
      assert.truthy(out:find("stack traceback", 1, true))
    end)

    -- LuaJIT hung at the end: in a finalizer, no exit of a `pairs` loop that it compiled leads on
    it("hears what nobody heard when the state is closed, except on LuaJIT: stderr does", function()
      local out = script [[
        local task = require "moonsand.task"
        local function count(t)
          local n = 0
          for _, value in pairs(t) do n = n + (type(value) == "number" and value or #value) end
          return n
        end
        for _ = 1, 200 do count { 1, 2, 3, a = 4, b = 5 } end
        task.on_error = function(err)
          io.stderr:write("heard ", err, count { a = "x", b = "y", 1 }, "\n")
        end
        kept = task.task(function() error("kept", 0) end)
        task.sleep(0)
      ]]
      local expected = rawget(_G, "jit") and "moonsand: a task failed: kept" or "heard kept3"
      assert.truthy(out:find(expected, 1, true), out)
    end)

    it("may raise without harm", function()
      local out = script [[
        local task = require "moonsand.task"
        task.on_error = function() error("handler broke", 0) end
        task.run(function()
          task.task(function() error "x" end)
          task.sleep(0)
        end)
        print "alive"
      ]]
      assert.truthy(out:find("handler broke", 1, true), out)
      assert.truthy(out:find("alive", 1, true), out)
    end)
  end)

  describe(".all", function()
    it("gives each one's first value, in the list's order", function()
      local results = assert(task.all({ 3, 1, 2 }, function(n, index)
        task.sleep(n / 1000)
        return n * 10 + index, "more"
      end))
      assert.same({ n = 3, 31, 12, 23 }, results)
    end)

    it("takes functions and running tasks, and an empty list", function()
      local t = task.task(function() return "task" end)
      assert.same({ n = 3, "function", "task", 3 }, task.all {
        function() return "function" end, t, function(index) return index end,
      })
      assert.same({ n = 2, "task", "task" }, task.all { t, t })
      assert.same({ n = 0 }, task.all({}, print))
    end)

    it("counts holes in the results", function()
      local results = task.all({ 1, 2, 3 }, function(n)
        if n ~= 2 then
          return n
        end
      end)
      assert.same({ n = 3, 1, nil, 3 }, results)
    end)

    it("starts no more than the limit at once", function()
      local now, most, order = 0, 0, {}
      local results = task.all({ 5, 1, 1, 3, 1 }, function(n, index)
        now = now + 1
        most = math.max(most, now)
        order[#order + 1] = index
        task.sleep(n / 1000)
        now = now - 1
        return index
      end, { limit = 2 })
      assert.same({ n = 5, 1, 2, 3, 4, 5 }, results)
      assert.equal(2, most)
      assert.same({ 1, 2, 3, 4, 5 }, order)
    end)

    it("answers the first failure, once the rest is cancelled and over", function()
      local log = {}
      local values = pack(task.all({ 1, 2, 3, 4 }, function(n)
        if n == 2 then
          task.sleep(0)
          return BAD[1]()
        end
        local _, _, code = task.sleep(LONG)
        loop.wait(loop.limits({ timeout = 0.001 * n }, true))
        log[#log + 1] = n .. " " .. code
      end, { limit = 3 }))
      assert.same({ "1 cancelled", "3 cancelled" }, log)
      assert.same({ nil, "it is busy", "busy" }, { values[1], values[2], values[3] })
      assert.same({ code = "busy", message = "it is busy", index = 2 }, values[4])
      assert.same({}, heard)
    end)

    it("answers a raise as well", function()
      local _, message, code, detail = task.all { function() error "boom" end }
      assert.truthy(message:find("^spec/task_spec.lua:%d+: boom$"))
      assert.equal("failed", code)
      assert.equal(1, detail.index)
      assert.equal(message, detail.error)
      assert.truthy(detail.traceback:find("stack traceback", 1, true))
      _, message, code, detail = task.all {
        function() errors.assert(nil, "gone away", "gone", { id = 7 }) end,
      }
      assert.equal("gone away", message)
      assert.equal("gone", code)
      assert.equal(7, detail.id)
    end)

    it("does not change the failure's own detail", function()
      local detail = { code = "busy", message = "m" }
      local _, _, _, got = task.all { function() return nil, "m", "busy", detail end }
      assert.equal(1, got.index)
      assert.is_nil(detail.index)
    end)

    it("lets all come to their end with settle", function()
      local results = task.all({
        function() return "fine" end,
        BAD[1],
        function() error("boom", 0) end,
        function() end,
        function() return nil, "plain" end,
      }, { settle = true, limit = 2 })
      assert.equal(5, results.n)
      assert.same({ ok = true, value = "fine" }, results[1])
      assert.is_false(results[2].ok)
      assert.same({ "it is busy", "busy", 2 },
        { results[2].message, results[2].code, results[2].detail.index })
      assert.same({ "boom", "failed", 3 },
        { results[3].message, results[3].code, results[3].detail.index })
      assert.same({ ok = true }, results[4])
      assert.same({ "plain", "failed" }, { results[5].message, results[5].code })
      assert.same({}, heard)
    end)

    it("ends all of them at its own limits", function()
      for _, make in ipairs {
        function() return { timeout = 0.002 } end,
        function() return { cancel = task.token() } end,
        function() return { timeout = 0.002, settle = true } end,
      } do
        local opts, ended = make(), 0
        local value, _, code, detail = task.all({ 1, 2 }, function(n)
          if n == 2 and opts.cancel then
            opts.cancel:cancel()
          end
          task.sleep(LONG)
          ended = ended + 1
        end, opts)
        assert.is_nil(value)
        assert.equal(opts.timeout and "timeout" or "cancelled", code)
        assert.is_nil(detail.index)
        assert.equal(2, ended)
      end
    end)

    it("takes its tasks along when it is cancelled", function()
      local codes = {}
      local t = task.task(function()
        return task.all({ 1, 2 }, function(n)
          codes[n] = select(3, task.sleep(LONG))
        end)
      end)
      task.sleep(0)
      t:cancel()
      assert.equal("cancelled", select(3, t:wait(10)))
      assert.same({ "cancelled", "cancelled" }, codes)
    end)

    it("starts nothing in a task that has been told already", function()
      local ran = false
      local t = task.task(function()
        task.sleep(LONG)
        task.all { function() ran = true end }
      end)
      loop.step(0)
      t:cancel()
      t:wait(10)
      loop.step(0)
      assert.is_false(ran)
    end)

    it("does a thousand", function()
      local list = {}
      for i = 1, 1000 do
        list[i] = i
      end
      local results = task.all(list, function(i)
        task.sleep((i * 7919 % 1000) * 1e-6)
        return i
      end)
      list.n = 1000
      assert.same(list, results)
    end)

    it("refuses wrong arguments, by name and number", function()
      blames(function() task.all(5) end, "moonsand.all: argument 1 must be a list, got number")
      blames(function() task.all({ print, 7 }) end,
        "moonsand.all: item 2 must be a function or a task, got number")
      blames(function() task.all({ 1 }, "x") end,
        "moonsand.all: argument 2 must be a function, got string")
      blames(function() task.all({}, print, { limit = 0 }) end,
        "moonsand.all: option 'limit' must be a whole number from 1, not 0")
      blames(function() task.all({}, print, { limits = 2 }) end,
        "moonsand.all: unknown option 'limits' (did you mean 'limit'?)")
    end)
  end)

  describe(".semaphore", function()
    it("lets in so many, first come, first served", function()
      local sem = task.semaphore(2)
      local order, inside, most = {}, 0, 0
      local list = {}
      for i = 1, 8 do
        list[i] = task.task(function()
          assert(sem:acquire(10))
          inside = inside + 1
          most = math.max(most, inside)
          order[#order + 1] = i
          task.sleep(0.001)
          inside = inside - 1
          sem:release()
        end)
      end
      for i = 1, 8 do
        list[i]:wait(10)
      end
      assert.same({ 1, 2, 3, 4, 5, 6, 7, 8 }, order)
      assert.equal(2, most)
      assert.equal("moonsand.Semaphore (2 of 2 free)", tostring(sem))
    end)

    it("loses no place to waits that end otherwise", function()
      local sem = task.semaphore(1)
      assert.is_true(sem:acquire())
      assert.equal("timeout", select(3, sem:acquire(0)))
      assert.equal("timeout", select(3, sem:acquire(0.001)))
      local waiting = {}
      for i = 1, 5 do
        waiting[i] = task.task(function() return sem:acquire() end)
      end
      loop.step(0)
      for _, i in ipairs { 1, 3, 5 } do
        waiting[i]:cancel()
      end
      loop.step(0)
      sem:release()
      assert.is_true(waiting[2]:wait(10))
      sem:release()
      assert.is_true(waiting[4]:wait(10))
      sem:release()
      assert.equal("moonsand.Semaphore (1 of 1 free)", tostring(sem))
    end)

    it("hands on a place that came together with the cancellation", function()
      local sem = task.semaphore(1)
      sem:acquire()
      local first = task.task(function() return sem:acquire() end)
      local second = task.task(function() return sem:acquire() end)
      loop.step(0)
      sem:release() -- granted to the first, which does not run before it is cancelled
      first:cancel()
      assert.equal("cancelled", select(3, first:wait(10)))
      assert.is_true(second:wait(10))
      sem:release()
      assert.equal("moonsand.Semaphore (1 of 1 free)", tostring(sem))
    end)

    it("hands on past a wait that was refused", function()
      local sem = task.semaphore(1)
      sem:acquire()
      task.run(function()
        assert.is_false((pcall(table.sort, { 2, 1 }, function() sem:acquire() end)))
      end)
      sem:release()
      assert.is_true(sem:acquire(0))
    end)

    it(":with releases in every case", function()
      local sem = task.semaphore(1)
      assert.same({ n = 3, 1, nil, 3 }, pack(sem:with(function(...) return ... end, 1, nil, 3)))
      assert.equal("boom", raised(function() sem:with(function() error("boom", 0) end) end))
      local t = task.task(function()
        sem:with(function()
          task.sleep(LONG)
          task.sleep(LONG)
        end)
      end)
      loop.step(0)
      assert.equal("moonsand.Semaphore (0 of 1 free)", tostring(sem))
      t:cancel()
      t:wait(10)
      assert.equal("moonsand.Semaphore (1 of 1 free)", tostring(sem))
    end)

    it("refuses too many releases, and wrong numbers", function()
      local sem = task.semaphore(1)
      blames(function() sem:release() end,
        "semaphore:release: released more often than acquired")
      for _, n in ipairs { 0, -1, 1.5, "2" } do
        assert.truthy(raised(function() task.semaphore(n) end):find("whole number from 1", 1, true))
      end
      blames(function() sem:with(1) end,
        "semaphore:with: argument 1 must be a function, got number")
    end)
  end)

  describe(".token", function()
    it("cancels once, with a reason, and calls back here and now", function()
      local token = task.token()
      local log = {}
      token:on_cancel(function(reason) log[#log + 1] = "1 " .. reason end)
      local off = token:on_cancel(function() log[#log + 1] = "off" end)
      token:on_cancel(function() error("in on_cancel", 0) end)
      token:on_cancel(function(reason) log[#log + 1] = "4 " .. reason end)
      off()
      off()
      assert.is_false((token:cancelled()))
      assert.is_true(token:cancel "why")
      assert.same({ "1 why", "4 why" }, log)
      assert.is_false(token:cancel "again")
      assert.same({ true, "why" }, { token:cancelled() })
      token:on_cancel(function(reason) log[#log + 1] = "late " .. reason end)
      assert.equal("late why", log[3])
      assert.equal("in on_cancel", heard[1][1])
      assert.equal(1, #heard)
      assert.equal("moonsand.Token (cancelled)", tostring(token))
    end)

    it("ends any number of waits", function()
      local token = task.token()
      local list = {}
      for i = 1, 100 do
        list[i] = task.task(function() return select(3, task.sleep(LONG, { cancel = token })) end)
      end
      loop.step(0)
      token:cancel()
      for i = 1, 100 do
        assert.equal("cancelled", list[i]:wait(10))
      end
      assert.equal("cancelled", select(3, task.sleep(0, { cancel = token })))
      assert.is_false(token.signal:awaited())
    end)

    it("cancels itself, whoever looks", function()
      local token = task.token { timeout = 0.002 }
      local reason
      token:on_cancel(function(r) reason = r end)
      local _, message, code = task.sleep(LONG, { cancel = token })
      assert.equal("cancelled: timed out", message)
      assert.equal("cancelled", code)
      loop.step(0)
      assert.equal("timed out", reason)
      local quiet = task.token(0)
      assert.is_true((quiet:cancelled()))
    end)

    it("cancels itself when nobody waits, for its callbacks", function()
      local reason
      task.token(0.002):on_cancel(function(r) reason = r end)
      assert.is_true(task.sleep(0.004))
      loop.step(0)
      assert.equal("timed out", reason)
    end)

    it("keeps no timer for nobody", function()
      local active = loop.reactor():active()
      local token = task.token(LONG)
      assert.equal(active, loop.reactor():active())
      local off = token:on_cancel(print)
      assert.equal(active + 1, loop.reactor():active())
      off()
      assert.equal(active, loop.reactor():active())
      task.sleep(0, { cancel = token })
      assert.equal(active, loop.reactor():active())
    end)

    it("refuses wrong options", function()
      blames(function() task.token { timout = 1 } end,
        "moonsand.token: unknown option 'timout' (did you mean 'timeout'?)")
      assert.has_error(function() task.sleep(1, { cancel = {} }) end)
      assert.has_error(function() task.sleep(1, { cancel = "x" }) end)
    end)
  end)

  describe(".sleep", function()
    it("sleeps at least as long, in a task and in the main chunk", function()
      local start = core.now()
      assert.is_true(task.sleep(0.01))
      assert.is_true(task.run(task.sleep, 0.01))
      assert.is_true(core.now() - start >= 0.02)
    end)

    it("ends at an earlier limit", function()
      assert.equal("timeout", select(3, task.sleep(LONG, 0.001)))
      assert.is_true(task.sleep(0.001, LONG))
    end)

    it("wakes in the order of time", function()
      local order, start, begun
      local rounds = 0
      repeat -- again when this stood still before all slept: then their times are others
        rounds = rounds + 1
        order, start = {}, core.now()
        task.all({ 5, 3, 4, 1, 2, 0 }, function(n)
          if n == 0 then
            begun = core.now()
            return
          end
          task.sleep(n / 100)
          order[#order + 1] = n
        end)
      until begun - start < 1 / 100 or rounds == 100
      assert.same({ 1, 2, 3, 4, 5 }, order)
    end)

    it("refuses what is no time", function()
      blames(function() task.sleep(-1) end,
        "moonsand.sleep: argument 1 must be a number of seconds, got -1")
      assert.has_error(function() task.sleep(0 / 0) end)
      assert.has_error(function() task.sleep "1" end)
      assert.has_error(function() task.sleep() end)
    end)
  end)

  describe(".retry", function()
    --- Fails so many times with `code`, then answers.
    local function flaky(times, code, extra)
      return function(attempt)
        if attempt <= times then
          return errors.fail(code, "attempt " .. attempt, extra and { retry_after = extra })
        end
        return "worked", attempt
      end
    end

    it("calls again until it works", function()
      assert.same({ "worked", 3 }, { task.retry(flaky(2, "busy"), { delay = 0 }) })
      assert.same({ n = 0 }, pack(task.retry(function() end)))
      assert.same({ n = 1, false }, pack(task.retry(function() return false end)))
    end)

    it("gives the last failure when it never does", function()
      local _, message, code, detail = task.retry(flaky(99, "busy"), { times = 4, delay = 0 })
      assert.equal("attempt 4", message)
      assert.equal("busy", code)
      assert.equal(4, detail.attempts)
    end)

    it("tries only what is worth it", function()
      for _, code in ipairs { "auth", "cancelled", "closed", "invalid", "quota", "unsupported" } do
        assert.equal("attempt 1", select(2, task.retry(flaky(1, code))))
      end
      local on = { "auth" }
      assert.equal("worked", (task.retry(flaky(1, "auth"), { on = on, delay = 0 })))
      assert.equal("attempt 1", select(2, task.retry(flaky(1, "busy"), { on = on })))
    end)

    it("sleeps between, longer each time, and as long as it is asked to", function()
      local start = core.now()
      task.retry(flaky(2, "busy"), { delay = 0.004, factor = 2 })
      assert.is_true(core.now() - start >= 0.012)
      start = core.now()
      task.retry(flaky(1, "rate_limited", 0.01), { delay = 0 })
      assert.is_true(core.now() - start >= 0.01)
    end)

    it("ends at its own limits, and says what it was at", function()
      local _, message, code, detail = task.retry(flaky(99, "busy"),
        { delay = LONG, timeout = 0.002 })
      assert.equal("timed out", message)
      assert.equal("timeout", code)
      assert.equal(1, detail.attempts)
      assert.equal("attempt 1", detail.cause.message)
      _, _, code = task.retry(flaky(99, "busy"), { delay = LONG, cancel = task.token(0.001) })
      assert.equal("cancelled", code)
    end)

    it("catches no errors", function()
      local calls = 0
      assert.equal("bug", raised(function()
        task.retry(function()
          calls = calls + 1
          error("bug", 0)
        end)
      end))
      assert.equal(1, calls)
    end)

    it("refuses wrong options", function()
      blames(function() task.retry(5) end,
        "moonsand.retry: argument 1 must be a function, got number")
      blames(function() task.retry(print, { tims = 2 }) end,
        "moonsand.retry: unknown option 'tims' (did you mean 'times'?)")
      blames(function() task.retry(print, { times = 0 }) end,
        "moonsand.retry: option 'times' must be 1 or more, not 0")
      blames(function() task.retry(print, { on = { 5 } }) end,
        "moonsand.retry: item 1 of 'on' must be a code, got number")
    end)
  end)

  describe(".wrap", function()
    local function numbers(wrap, n)
      return wrap(function()
        for i = 1, n do
          task.sleep(0.001)
          coroutine.yield(i, i * i)
        end
      end)
    end

    it("lets waits pass, and values come out", function()
      local others, got = 0, {}
      task.run(function()
        task.task(function()
          while true do
            task.sleep(0)
            others = others + 1
          end
        end)
        for i, square in numbers(task.wrap, 3) do
          got[#got + 1] = i .. "=" .. square
        end
      end)
      assert.same({ "1=1", "2=4", "3=9" }, got)
      assert.is_true(others > 0)
    end)

    it("passes arguments in, through waits and through each other", function()
      local got = task.run(function()
        local inner = task.wrap(function(a)
          while true do
            task.sleep(0)
            a = coroutine.yield(a + 1)
          end
        end)
        local outer = task.wrap(function(a)
          while true do
            a = coroutine.yield(inner(a) * 10)
          end
        end)
        return { outer(1), outer(2), outer(3) }
      end)
      assert.same({ 20, 30, 40 }, got)
    end)

    it("works where nothing suspends", function()
      local got = {}
      for i in numbers(task.wrap, 2) do
        got[#got + 1] = i
      end
      assert.same({ 1, 2 }, got)
    end)

    it("raises what the generator raised, and when it is over", function()
      local object = {}
      local generator = task.wrap(function()
        task.sleep(0)
        error(object)
      end)
      assert.equal(object, raised(generator))
      assert.truthy(raised(generator):find("dead coroutine", 1, true))
    end)

    it("refuses a wait when the generator is called where nothing can suspend", function()
      local err = task.run(function()
        local generator = numbers(task.wrap, 3)
        local ok, err = pcall(table.sort, { 2, 1 }, function() generator() end)
        return not ok and err
      end)
      assert.truthy(err:find("cannot be suspended", 1, true))
    end)

    it("cannot be called by another while it is suspended in a wait", function()
      local got, err = task.run(function()
        local generator = task.wrap(function()
          task.sleep(0.002)
          coroutine.yield "undisturbed"
        end)
        local t = task.task(generator)
        task.sleep(0)
        local _, err = pcall(generator)
        return t:wait(10), err
      end)
      assert.equal("undisturbed", got)
      assert.truthy(err:find("suspended in a wait", 1, true))
    end)
  end)

  it("does not keep what is over", function()
    local function use()
      task.run(function()
        for _ = 1, 200 do
          local sem = task.semaphore(1)
          local token = task.token(LONG)
          task.all({ 1, 2, 3, 4, 5 }, function()
            sem:with(function() task.sleep(0, { cancel = token }) end)
            return true
          end, { limit = 3 })
          task.task(error, "x"):on_done(function() end)
          task.sleep(0)
        end
      end)
      loop.step(0)
      collectgarbage()
      collectgarbage()
      return collectgarbage "count"
    end
    use()
    local before = use()
    local after = use()
    assert.is_true(after - before < 64)
  end)
end)
