-- How waits suspend, block, end; what they refuse.

local core = require "moonsand.core"
local loop = require "moonsand.loop"
local task = require "moonsand.task"

-- A hang becomes a failure: every wait of this file ends by itself after so many seconds.
local function limits(timeout)
  return loop.limits { timeout = timeout or 10 }
end

local function interpreter()
  local i = 0
  while arg and arg[i - 1] do
    i = i - 1
  end
  return arg and arg[i] or (rawget(_G, "jit") and "luajit" or "lua5.4")
end

--- Runs a script in another Lua; its output and exit status.
local function script(text, shell)
  local name = os.tmpname()
  local file = assert(io.open(name, "w"))
  file:write(text)
  file:close()
  local command = shell:gsub("LUA", function() return interpreter() .. " " .. name end)
  local pipe = assert(io.popen(command .. "; echo status=$?"))
  local output = pipe:read "*a"
  pipe:close()
  os.remove(name)
  return output
end

describe("moonsand.loop", function()
  describe(".wait", function()
    it("ends at the deadline with a failure's values", function()
      local start = core.now()
      local message, code, detail = loop.wait(limits(0.01), loop.signal())
      assert.equal("timed out", message)
      assert.equal("timeout", code)
      assert.same({ code = "timeout", message = "timed out" }, detail)
      assert.is_true(core.now() - start >= 0.01)
    end)

    it("answers nothing when something may have happened", function()
      local signal = loop.signal()
      loop.spawn(function()
        signal:wake()
      end)
      assert.is_nil((loop.wait(limits(), signal)))
    end)

    it("wakes all who wait for the same signal, in their order", function()
      local signal, done, order = loop.signal(), loop.signal(), {}
      for i = 1, 5 do
        loop.spawn(function()
          loop.wait(limits(), signal)
          order[#order + 1] = i
          done:wake()
        end)
      end
      loop.spawn(function()
        signal:wake()
      end)
      while #order < 5 do
        assert.is_nil((loop.wait(limits(), done)))
      end
      assert.same({ 1, 2, 3, 4, 5 }, order)
    end)

    it("waits for whichever comes first", function()
      local a, b, c = loop.signal(), loop.signal(), loop.signal()
      loop.spawn(function()
        b:wake()
      end)
      assert.is_nil((loop.wait(limits(), a, b, c)))
      for _, signal in ipairs { a, b, c } do
        assert.is_false(signal:awaited())
      end
    end)

    it("is woken by ids of the reactor: whoever waits for one", function()
      -- a timer's id is as good as any; this is what a C object looks like
      local at = core.now() + 0.01
      local id = loop.reactor():timer(at)
      local armed = 0
      local object = setmetatable({}, {
        __index = {
          id = function() return id end,
          arm = function() armed = armed + 1 end,
        },
      })
      local woken, done = 0, loop.signal()
      for _ = 1, 3 do
        loop.spawn(function()
          assert.is_nil((loop.wait(limits(), object)))
          woken = woken + 1
          done:wake()
        end)
      end
      assert.is_nil((loop.wait(limits(), object)))
      assert.is_true(core.now() >= at)
      while woken < 3 do
        assert.is_nil((loop.wait(limits(), done)))
      end
      assert.equal(4, armed)
    end)

    it("gives one turn after the deadline: a timeout of 0 sees what is there", function()
      local id = loop.reactor():timer(0)
      local object = setmetatable({}, {
        __index = { id = function() return id end, arm = function() end },
      })
      local zero = limits(0)
      assert.is_nil((loop.wait(zero, object)))
      assert.equal("timed out", (loop.wait(zero, object)))
      assert.equal("timed out", (loop.wait(zero, object)))
      assert.equal("timed out", (loop.wait(limits(0), object)))
    end)

    it("lets tasks run while the main chunk blocks", function()
      local turns, enough = 0, loop.signal()
      local ticker = task.task(function()
        while true do
          task.sleep(0)
          turns = turns + 1
          if turns == 10 then
            enough:wake()
          end
        end
      end)
      assert.is_nil((loop.wait(limits(), enough)))
      assert.is_true(turns >= 10)
      ticker:cancel()
      ticker:wait(10)
    end)

    it("says that nothing could end it, rather than to hang", function()
      local ok, err = pcall(loop.wait, nil, loop.signal())
      assert.is_false(ok)
      assert.truthy(err:find("spec/loop_spec.lua:", 1, true) or err:find("busted", 1, true))
      assert.truthy(err:find("nothing left that could end this wait", 1, true))
    end)

    it("leaves nothing behind", function()
      local signal = loop.signal()
      local active = loop.reactor():active()
      for _ = 1, 100 do
        loop.wait(loop.limits { timeout = 0 }, signal)
      end
      assert.is_false(signal:awaited())
      assert.equal(active, loop.reactor():active())
    end)
  end)

  describe("in a task", function()
    it("refuses a wait in a callback of a C function, before anything is registered", function()
      local signal, object_armed = loop.signal(), false
      local object = setmetatable({}, {
        __index = { id = function() return 1 end, arm = function() object_armed = true end },
      })
      local errs = task.run(function()
        local list = {}
        for name, call in pairs {
          sort = function(wait) table.sort({ 2, 1, 3 }, wait) end,
          gsub = function(wait) return ("x"):gsub("x", wait) end,
        } do
          local ok, err = pcall(call, function() loop.wait(limits(), signal, object) end)
          assert.is_false(ok)
          list[name] = err
        end
        return list
      end)
      for _, name in ipairs { "sort", "gsub" } do
        assert.truthy(errs[name]:find("cannot be suspended", 1, true))
        assert.truthy(errs[name]:find("loop_spec.lua:", 1, true))
      end
      assert.is_false(signal:awaited())
      assert.is_false(object_armed)
    end)

    it("waits through pcall, iterators and metamethods", function()
      local got = task.run(function()
        local log = {}
        assert(pcall(function()
          task.sleep(0)
          log[#log + 1] = "pcall"
        end))
        for i in function(_, i) task.sleep(0) return i < 2 and i + 1 or nil end, nil, 0 do
          log[#log + 1] = i
        end
        local object = setmetatable({}, { __index = function(_, k) task.sleep(0) return k end })
        log[#log + 1] = object.index
        return log
      end)
      assert.same({ "pcall", 1, 2, "index" }, got)
    end)

    it("blocks in the user's own generators, and the values come out right", function()
      local others = 0
      local got = task.run(function()
        task.task(function()
          while true do
            task.sleep(0)
            others = others + 1
          end
        end)
        local generator = coroutine.wrap(function()
          for i = 1, 3 do
            task.sleep(0.002)
            coroutine.yield(i)
          end
        end)
        return { generator(), generator(), generator() }
      end)
      assert.same({ 1, 2, 3 }, got)
      assert.is_true(others > 0)
    end)

    it("nests what blocks: tasks inside generators inside tasks", function()
      local depth = 0
      local function dive(n)
        return coroutine.wrap(function()
          if n == 0 then
            task.sleep(0.001)
            return coroutine.yield "bottom"
          end
          depth = depth + 1
          coroutine.yield((task.task(dive, n - 1):wait(10)))
        end)()
      end
      assert.equal("bottom", task.run(dive, 10))
      assert.equal(10, depth)
    end)

    it("raises in a wait that somebody else resumed, and only there", function()
      local co, status, err
      local after = {}
      task.run(function()
        local victim = task.task(function()
          co = coroutine.running()
          status, err = pcall(task.sleep, 5)
          after[1] = task.sleep(0)
          return "lived on"
        end)
        task.sleep(0)
        assert.is_true(coroutine.resume(co, "rude"))
        assert.equal("lived on", victim:wait(10))
      end)
      assert.is_false(status)
      assert.truthy(err:find("resumed by somebody else", 1, true))
      assert.same({ true }, after)
    end)

    it("raises as well when it was woken already", function()
      local status, err
      task.run(function()
        local signal, co = loop.signal(), nil
        local victim = task.task(function()
          co = coroutine.running()
          status, err = pcall(loop.wait, limits(), signal)
          return task.sleep(0)
        end)
        task.sleep(0)
        signal:wake()
        assert.is_true(coroutine.resume(co))
        assert.is_true(victim:wait(10))
      end)
      assert.is_false(status)
      assert.truthy(err:find("resumed by somebody else", 1, true))
    end)

    it("takes a bare coroutine.yield for a turn of the others", function()
      local log = {}
      task.run(function()
        local other = task.task(function()
          for i = 1, 3 do
            log[#log + 1] = "b" .. i
            coroutine.yield()
          end
        end)
        for i = 1, 3 do
          log[#log + 1] = "a" .. i
          assert.equal(0, select("#", coroutine.yield("anything")))
        end
        other:wait(10)
      end)
      assert.equal("a1 b1 a2 b2 a3 b3", table.concat(log, " "))
    end)
  end)

  describe(".step", function()
    it("runs what can go on, and waits for nothing by default", function()
      local log, go_on = {}, loop.signal()
      local t = task.task(function()
        log[1] = "started"
        loop.wait(limits(), go_on)
        task.sleep(0.005)
        log[2] = "slept"
      end)
      assert.is_true(loop.step(0))
      assert.same({ "started" }, log)
      go_on:wake()
      local deadline = core.now() + 10
      while not log[2] do
        assert.is_true(core.now() < deadline)
        loop.step()
      end
      assert.equal("done", t:status())
    end)

    it("waits as long as it is told", function()
      local start = core.now()
      assert.is_false(loop.step(0.01))
      assert.is_true(core.now() - start >= 0.01)
      local t = task.task(task.sleep, 0.01)
      while t:status() == "running" do
        loop.step(-1)
      end
      assert.is_true(t:wait())
    end)

    it("may be called from a task", function()
      local inner
      task.run(function()
        task.task(function() inner = true end)
        loop.step(0)
        assert.is_true(inner)
      end)
    end)

    it("raises what is no number", function()
      local _, err = pcall(function() loop.step "x" end)
      assert.equal("spec/loop_spec.lua:" .. (debug.getinfo(1, "l").currentline - 1)
        .. ": moonsand: loop.step: the timeout must be a number of seconds, got x", err)
      assert.has_error(function() loop.step(0 / 0) end)
    end)
  end)

  describe(".at", function()
    it("does not call what was cancelled, also by what was due with it", function()
      local calls, cancel = 0, {}
      local at = core.now()
      for i = 1, 2 do
        cancel[i] = loop.at(at, function()
          calls = calls + 1
          cancel[3 - i]()
        end)
      end
      local deadline = core.now() + 10
      while calls == 0 do
        assert.is_true(core.now() < deadline)
        loop.step(0)
      end
      loop.step(0)
      assert.equal(1, calls)
      cancel[1]()
      cancel[2]()
    end)
  end)

  describe(".use", function()
    after_each(function()
      loop.use(nil)
    end)

    it("takes a host by name or as a table", function()
      local plain = require "moonsand.hosts.plain"
      loop.use "plain"
      assert.equal(plain, loop.host())
      local parked = 0
      local host = setmetatable({
        park = function(waiter)
          parked = parked + 1
          return plain.park(waiter)
        end,
        can_wait = plain.can_wait,
        wake = plain.wake,
        spawn = plain.spawn,
      }, { __index = plain })
      loop.use(host)
      assert.is_true(task.run(task.sleep, 0))
      assert.equal(2, parked)
    end)

    it("raises what is none", function()
      assert.has_error(function() loop.use "nope" end)
      assert.has_error(function() loop.use(5) end)
      local ok, err = pcall(loop.use, { park = print })
      assert.is_false(ok)
      assert.truthy(err:find("the host has no function 'can_wait'", 1, true))
      assert.equal("plain", loop.host().name)
    end)

    it("keeps a host's refusal from doing anything", function()
      local plain = require "moonsand.hosts.plain"
      loop.use {
        can_wait = function() return nil, "not in this phase" end,
        park = error,
        wake = plain.wake,
        spawn = plain.spawn,
      }
      local signal, ran = loop.signal(), false
      local ok, err = pcall(loop.wait, nil, signal)
      assert.is_false(ok)
      assert.truthy(err:find("cannot wait here: not in this phase", 1, true))
      assert.is_false(signal:awaited())
      assert.is_false((pcall(task.run, function() ran = true end)))
      assert.is_false((pcall(task.all, { function() ran = true end })))
      loop.use(nil)
      loop.step(0)
      assert.is_false(ran)
    end)
  end)

  it("gives its descriptor", function()
    assert.equal(loop.reactor():fd(), loop.fd())
    assert.is_true(loop.fd() > 2)
  end)

  it("is interrupted by Ctrl-C while it waits", function()
    local out = script([[
      local loop = require "moonsand.loop"
      local task = require "moonsand.task"
      for _ = 1, 2000 do task.sleep(0) end -- LuaJIT: as hot as it gets
      io.stdout:write("waiting\n")
      io.stdout:flush()
      loop.wait(loop.limits { timeout = 30 }, loop.signal())
      io.stdout:write("went on\n")
    ]], [[
      out=$(mktemp); LUA >"$out" 2>&1 & pid=$!; i=0
      until grep -q waiting "$out" && grep -q '^State:.S' /proc/$pid/status; do
        i=$((i + 1)); [ $i -lt 1000 ] || break; sleep 0.01
      done
      kill -INT $pid; wait $pid; status=$?; cat "$out"; rm -f "$out"; (exit $status) ]])
    assert.truthy(out:find("interrupted!", 1, true), out)
    assert.falsy(out:find("went on", 1, true), out)
    assert.truthy(out:find("status=1", 1, true), out)
  end)

  it("does not keep memory for waits that are over", function()
    local function use()
      task.run(function()
        local signal = loop.signal()
        for _ = 1, 300 do
          local list = {}
          for i = 1, 10 do
            list[i] = task.task(function() loop.wait(limits(), signal) end)
          end
          task.sleep(0)
          signal:wake()
          for i = 1, 10 do
            list[i]:wait(10)
          end
        end
      end)
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
