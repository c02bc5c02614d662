-- In programs that run a luv loop. Each test is a program of its own.

local inside = require "hosts.inside"
local support = require "support.init"

local LUV = 'local uv = require "luv"; '

--- Counts the beats of a luv timer of 10 ms from here to `count()`.
local BEATS = [[
local timer, beats, last, gap = uv.new_timer(), 0, now(), 0
timer:start(10, 10, function()
  beats, gap, last = beats + 1, math.max(gap, now() - last), now()
end)
local function count()
  timer:close()
  if not uv.loop_mode() then uv.run() end -- luv 1.44 crashes at the end over a handle half closed
  return beats, gap
end
]]

local function luv(code, seconds)
  local output, status = support.run(("env LUA_PATH=%s LUA_CPATH=%s timeout %d %s %s </dev/null"):format(
    support.quote(package.path), support.quote(package.cpath), seconds or 20, support.interpreter,
    inside.script(LUV .. code)))
  return output, status
end

local function gives(expected, code)
  local output, status = luv(code)
  assert.equal(expected .. "\n", output)
  assert.equal(0, status)
end

describe("the host luv", function()
  inside.suite("in a coroutine, under uv.run", function()
    return (luv("spawn(suite) uv.run()", 100))
  end)

  inside.suite("on the main chunk", function()
    return (luv("suite()", 100))
  end)

  inside.suite("in a callback, which blocks", function()
    return (luv([[
      local timer = uv.new_timer()
      timer:start(1, 0, function() timer:close() suite() end)
      uv.run()]], 100))
  end)

  describe("does not stop the program", function()
    local FAIR = "say(beats > 10 and beats < 1200 and gap < 2.5 or beats .. ' beats, gap ' .. gap)"

    it("while a coroutine waits", function()
      gives("true", BEATS .. [[
        spawn(function()
          moonsand.with({}, function(box) assert(box:exec("sleep 3")) end)
          local beats, gap = count() ]] .. FAIR .. [[
        end)
        uv.run()]])
    end)

    it("while the main chunk waits", function()
      gives("true", BEATS .. [[
        moonsand.with({}, function(box) assert(box:exec("sleep 3")) end)
        local beats, gap = count() ]] .. FAIR)
    end)

    it("in moonsand.run, while tasks wait", function()
      gives("true", BEATS .. [[
        moonsand.run(function()
          moonsand.with({}, function(box)
            moonsand.all({ 1, 2, 3 }, function() return box:exec("sleep 3") end)
          end)
        end)
        local beats, gap = count() ]] .. FAIR)
    end)

    it("but in a callback of its own, where coroutines go on", function()
      gives("true true", BEATS .. [[
        local box, coroutines = moonsand.create(), 0
        for i = 1, 5 do
          spawn(function() box:exec("sleep 0.1") coroutines = coroutines + 1 end)
        end
        local once = uv.new_timer()
        once:start(20, 0, function()
          once:close()
          local before = beats
          repeat box:exec("sleep 0.5") until coroutines == 5
          say(beats == before, coroutines == 5)
          count()
        end)
        uv.run()]])
    end)
  end)

  describe("lets uv.run return", function()
    it("when nobody waits, with a sandbox open and a program running", function()
      gives("true true", [[
        local start = now()
        spawn(function()
          box = moonsand.create()
          p = box:start("sleep 100")
          box:exec("true")
        end)
        uv.run()
        say(now() - start < 50, p:is_running())]])
    end)

    it("once those who wait for each other are all that is left", function()
      gives("returned\tnil", [[
        local sem, got = moonsand.semaphore(1)
        spawn(function() sem:acquire() sem:acquire() got = true end)
        uv.run()
        say("returned\t" .. tostring(got))]])
    end)

    it("and leaves no handle that is active or counts", function()
      gives("0 true", [[
        spawn(function()
          moonsand.with({}, function(box)
            for i = 1, 100 do box:exec("true", { timeout = 5 }) end
          end)
        end)
        uv.run()
        local counts, all = 0, 0
        uv.walk(function(h)
          all = all + 1
          if h:is_active() and h:has_ref() then counts = counts + 1 end
        end)
        say(counts, all <= 2)]])
    end)
  end)

  it("goes on after the program has closed every handle", function()
    gives("1\n2", [[
      local function once(n)
        spawn(function()
          moonsand.with({}, function(box) say((box:exec("printf " .. n).stdout)) end)
        end)
        uv.run()
      end
      once(1)
      uv.walk(function(h) h:close() end)
      uv.run()
      once(2)]])
  end)

  it("calls what a token's end calls, though nobody waits", function()
    gives("told true", [[
      local token, start = moonsand.token(0.1), now()
      spawn(function() moonsand.sleep(0) end)
      local timer = uv.new_timer()
      timer:start(20000, 0, function() timer:close() end)
      token:on_cancel(function()
        say("told", now() - start < 20)
        timer:close()
      end)
      uv.run()]])
  end)

  it("sleeps while a program waits for its reader", function()
    gives("true true", [[
      local timer = uv.new_timer()
      spawn(function()
        box = moonsand.create()
        p = box:start("yes")
        p.stdout:read()
        local cpu = os.clock()
        timer:start(500, 0, function()
          timer:close()
          say(os.clock() - cpu < 0.1, p:is_running())
          p:close()
        end)
      end)
      uv.run()]])
  end)

  it("tells of a deadlock on the main chunk", function()
    local output = luv [[
      local sem = moonsand.semaphore(1)
      sem:acquire()
      say(pcall(sem.acquire, sem))]]
    assert.truthy(output:find("^false [^\n]*deadlock"), output)
  end)

  describe("when a coroutine raises", function()
    it("shows it as luv shows what callbacks raise", function()
      local output, status = luv [[
        spawn(function()
          moonsand.sleep(0.01)
          error("mine")
        end)
        uv.run()]]
      assert.truthy(output:find("Uncaught Error: [^\n]*mine\n"), output)
      assert.truthy(output:find("stack traceback", 1, true), output)
      assert.equal(255, status)
    end)

    it("spares those who wait in the same turn", function()
      local output = luv [[
        local signal = moonsand.token()
        local timer = uv.new_timer()
        timer:start(1, 0, function()
          for i = 1, 3 do
            spawn(function()
              moonsand.sleep(10, { cancel = signal })
              if i == 2 then error("mine") end
              say("awake", i)
            end)
          end
          spawn(function() moonsand.sleep(0.05) signal:cancel() end)
          moonsand.sleep(0.2)
          say "the callback went on"
        end)
        uv.run()]]
      local _, awake = output:gsub("awake [13]\n", "")
      assert.equal(2, awake)
      assert.truthy(output:find("the callback went on\n.*Uncaught Error: [^\n]*mine"), output)
    end)
  end)

  it("raises in a coroutine that somebody else resumed, and in no other", function()
    gives("true\ntrue", [[
      local function wait()
        say((select(2, pcall(moonsand.sleep, 0.2)) or ""):find("resumed by somebody else", 1, true) ~= nil)
      end
      local a = coroutine.create(wait)
      coroutine.resume(a)
      coroutine.resume(a)
      spawn(function() say((moonsand.sleep(0.01))) end)
      uv.run()]])
  end)

  if rawget(coroutine, "close") then
    it("forgets a coroutine that was closed in its wait", function()
      gives("over true", [[
        local start = now()
        local a = coroutine.create(function() moonsand.sleep(0.1) say "not this" end)
        coroutine.resume(a)
        coroutine.close(a)
        uv.run()
        say("over", now() - start < 50)]])
    end)
  end

  it("refuses in a forked child, and leaves its parent's loop alone", function()
    gives("child: false true\nchild: plain\nparent: true\nparent", [[
      local support = require "support.init"
      moonsand.with({}, function(box) box:exec("true") end)
      local pid = support.native().fork()
      if pid == 0 then
        local ok, why = pcall(moonsand.sleep, 0)
        say("child:", ok, why:find("was forked", 1, true) ~= nil)
        moonsand.loop.use "plain"
        moonsand.with({}, function(box) say("child:", (box:exec("printf plain").stdout)) end)
        support.native().exit(0)
      end
      support.native().wait(pid)
      say("parent:", (moonsand.sleep(0.05)))
      moonsand.with({}, function(box) say((box:exec("printf parent").stdout)) end)]])
  end)

  it("gives way to another host that is chosen", function()
    gives("plain", [[
      moonsand.loop.use "plain"
      moonsand.with({}, function(box) say((box:exec("printf plain").stdout)) end)]])
  end)
end)
