-- Programs that were started: their streams while they run, waiting, signals, the end.

local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local support = require "support.init"

local unpack = table.unpack or unpack

local fails = support.fails

--- Asserts that fn raises, with this text, at one of its own lines.
local function blames(fn, text)
  local ok, err = pcall(fn)
  assert.is_false(ok, "it did not raise: " .. text)
  local line, message = tostring(err):match "process_spec%.lua:(%d+): moonsand: (.*)$"
  assert.is_truthy(line, "not at the caller's line: " .. tostring(err))
  local info = debug.getinfo(fn, "S")
  assert.is_true(tonumber(line) >= info.linedefined and tonumber(line) <= info.lastlinedefined,
    "not at the caller's line: " .. err)
  assert.is_truthy(message:find(text, 1, true), ("%q lacks %q"):format(message, text))
end

local function numbers(first, last)
  local lines = {}
  for i = first, last do
    lines[#lines + 1] = i .. "\n"
  end
  return table.concat(lines)
end

describe("moonsand.process", function()
  helper.deadline(60)
  helper.no_leaks()

  local box

  local function start(...)
    return moonsand.assert(box:start(...))
  end

  local function exec(...)
    return moonsand.assert(box:exec(...))
  end

  local function running()
    local names = {}
    for _, process in ipairs(support.descendants((support.agent(box)))) do
      names[#names + 1] = process.name
    end
    return names
  end

  --- Waits until a file inside holds this many bytes, and does not grow any more: what a program
  --- that writes down its progress managed to do. Gives the size.
  local function settled_size(path)
    local last, same = -1, 0
    while same < 5 do
      local size = tonumber(exec({ "stat", "-c", "%s", path }).stdout) or 0
      same = size == last and same + 1 or 0
      last = size
      moonsand.sleep(0.01)
    end
    return last
  end

  describe("(in a sandbox)", function()
    before_each(function()
      box = moonsand.assert(moonsand.create())
    end)
    after_each(function()
      box:close()
    end)

    describe(":start", function()
      it("answers when the program runs, with its pid and open streams", function()
        local p = start "echo $$; exec cat"
        assert.equal("string", type(p.id))
        assert.equal(tostring(p.pid), p.stdout:read())
        assert.is_true(p:is_running())
        local info = p:info()
        assert.equal(p.id, info.id)
        assert.equal(p.pid, info.pid)
        assert.equal("echo $$; exec cat", info.command)
        assert.is_true(info.running)
        assert.is_nil(info.exit_code)
        assert.is_truthy(tostring(p):find "^moonsand%.Process %(.*running%)$")
        assert(p.stdin:write "x")
        p.stdin:close()
        assert.equal("x", p.stdout:read "a")
        local r = moonsand.assert(p:wait())
        assert.is_true(r.ok)
        assert.equal(p.pid, r.pid)
        assert.is_false(p:is_running())
        assert.equal(0, p:info().exit_code)
        assert.is_false(p:info().running)
        assert.is_truthy(tostring(p):find "exited with 0")
      end)

      it("gives each its own id", function()
        local a, b = start "true", start "true"
        assert.is_true(a.id ~= b.id)
        a:wait()
        b:wait()
      end)

      it("gives the streams that there are", function()
        local p = start("true", { stdin = "", stdout = "discard", stderr = "stdout" })
        assert.is_nil(p.stdin)
        assert.is_nil(p.stdout)
        assert.is_nil(p.stderr)
        assert.is_true(moonsand.assert(p:wait()).ok)
        p = start("cat", { stdin = "given" })
        assert.is_nil(p.stdin)
        assert.equal("given", moonsand.assert(p:wait()).stdout)
        p = start("cat", { stdin = "pipe" })
        p.stdin:close()
        assert.equal("", moonsand.assert(p:wait()).stdout)
        p = start("cat", { stdin = false })
        assert.is_nil(p.stdin)
        assert.equal("", moonsand.assert(p:wait()).stdout)
      end)

      it("has a timeout that bounds the program, also when nobody waits", function()
        local p = start("echo on; setsid sleep 300 & sleep 300", { timeout = 2.5 })
        support.eventually(20, "it goes on", function()
          moonsand.loop.step(0)
          return not p:is_running()
        end)
        local r = moonsand.assert(p:wait())
        assert.equal("timed_out", r.status)
        assert.equal("on\n", r.stdout)
        assert.same({}, running())
      end)

      it("has a token that kills the program", function()
        local token = moonsand.token()
        local p = start("echo on; sleep 300 & sleep 300", { cancel = token })
        assert.equal("on", p.stdout:read())
        token:cancel "enough"
        local message, detail = fails("cancelled", p:wait())
        assert.equal("cancelled: enough", message)
        assert.equal("enough", detail.cause)
        assert.equal(p.id, detail.id)
        assert.equal("KILL", detail.result.signal)
        fails("cancelled", p:wait())
        assert.same({}, running())
        fails("cancelled", box:start("true", { cancel = token }))
      end)
    end)

    describe("streams", function()
      it("never stop a program that nobody reads", function()
        local p = start "seq 100000; seq 100000 >&2; echo x >done"
        local r = moonsand.assert(p:wait())
        assert.is_true(numbers(1, 100000) == r.stdout)
        assert.is_true(numbers(1, 100000) == r.stderr)
        assert.equal("x\n", exec("cat done").stdout)
      end)

      it("never stop each other: who reads one has the other collected", function()
        local p = start "head -c 3000000 /dev/zero >&2; echo last"
        assert.equal("last", p.stdout:read())
        assert.equal(3000000, #moonsand.assert(p:wait()).stderr)
      end)

      it("are all there for who reads at once, whatever the host did meanwhile", function()
        local count = 0
        moonsand.run(function()
          local reader = moonsand.task(function()
            for _ in start("seq 100000", { max_output = 100 }).stdout:lines() do
              count = count + 1
            end
          end)
          moonsand.task(function() -- it runs, and has filled its pipe, before we hear of it
            support.native().pause(0.2)
          end)
          reader:wait()
        end)
        assert.equal(100000, count)
      end)

      it("are read ahead by about 256 KiB, then the program waits", function()
        -- each round writes 1000 bytes and then notes that it did
        local p = start [[
          line=$(head -c 999 /dev/zero | tr '\0' x)
          echo ready; read go
          i=0; while [ $i -lt 4000 ]; do echo $line; printf . >&3; i=$((i+1)); done 3>progress]]
        assert.equal("ready", p.stdout:read())
        assert(p.stdin:write "\n")
        assert.equal(("x"):rep(999), p.stdout:read())
        support.eventually(20, "it waits too early", function()
          return settled_size "progress" * 1000 >= 256 * 1024
        end)
        local written = settled_size "progress" * 1000
        -- what we hold, and what the kernel's pipe holds
        assert.is_true(written >= 256 * 1024, written)
        assert.is_true(written <= 256 * 1024 + 1024 * 1024 + 64 * 1024, written)
        assert.is_true(p:is_running())
        local count = 1
        for line in p.stdout:lines() do
          assert.equal(999, #line)
          count = count + 1
        end
        assert.equal(4000, count)
        assert.is_true(moonsand.assert(p:wait()).ok)
      end)

      it("are at their end when wait has collected them", function()
        local p = start "echo out; echo err >&2"
        local r = moonsand.assert(p:wait())
        assert.equal("out\n", r.stdout)
        assert.equal("", p.stdout:read "a")
        assert.is_nil((p.stderr:read()))
        assert.equal(r, moonsand.assert(p:wait()))
        assert.equal("err\n", r.stderr)
      end)

      -- What was still in the pipe when the end was told was thrown away under the reader's hands.
      it("stay with who reads them, after the end too", function()
        local result
        local p = start("head -c 300000 /dev/zero", {
          on_exit = function(r)
            result = r
          end,
        })
        assert.equal("\0", p.stdout:read(1))
        support.eventually(10, "it did not end", function()
          moonsand.loop.step(0)
          return result
        end)
        assert.equal("", result.stdout)
        assert.equal(299999, #p.stdout:read "a")
        assert.equal("", p.stdout:read "a")
        result = nil
        p = start("echo late", {
          on_exit = function(r)
            result = r
          end,
        })
        support.eventually(10, "it did not end", function()
          moonsand.loop.step(0)
          return result
        end)
        assert.equal("late\n", result.stdout)
        assert.equal("late", p.stdout:read())
      end)

      it("have one reader at a time", function()
        local p = start "cat"
        moonsand.run(function()
          local reader = moonsand.task(function()
            return p.stdout:read()
          end)
          moonsand.sleep(0.001)
          blames(function()
            local data = p.stdout:read()
            return data
          end, "another coroutine is reading")
          blames(function()
            local data = p.stdout:chunk()
            return data
          end, "another coroutine is reading")
          local lines, chunks, events = p.stdout:lines(), p.stdout:chunks(), p:events()
          for _, iterator in ipairs { lines, chunks, events } do
            blames(function()
              local data = iterator:next()
              return data
            end, "another coroutine is reading")
            blames(function()
              for _ in iterator do -- luacheck: ignore 512
                break
              end
            end, "another coroutine is reading")
          end
          blames(function()
            local r = box:exec("cat", { stdin = p.stdout })
            return r
          end, "another coroutine is reading")
          assert(p.stdin:write "line\n")
          assert.equal("line", reader:wait())
          assert(p.stdin:write "next\n")
          assert.equal("next", p.stdout:read())
        end)
        p:close()
      end)

      it("keep what was read ahead when a read times out", function()
        local p = start "printf half; read x; printf ' a line\\n'"
        local message = fails("timeout", p.stdout:read("l", 0.05))
        assert.is_truthy(message:find "stdout")
        fails("timeout", p.stdout:read("l", { timeout = 0 }))
        fails("timeout", p.stdout:read("a", 0))
        fails("timeout", p.stdout:read(100, 0))
        fails("cancelled", p.stdout:read("l", { cancel = moonsand.token { timeout = 0.01 } }))
        assert(p.stdin:write "\n")
        assert.equal("half a line", p.stdout:read())
        assert.is_true(moonsand.assert(p:wait()).ok)
      end)
    end)

    describe(":events", function()
      it("gives both streams, every byte", function()
        local p = start "seq 30000 & seq 30001 60000 >&2; wait"
        local got = { stdout = {}, stderr = {} }
        for stream, data in p:events() do
          table.insert(got[stream], data)
        end
        assert.is_true(numbers(1, 30000) == table.concat(got.stdout))
        assert.is_true(numbers(30001, 60000) == table.concat(got.stderr))
        local r = moonsand.assert(p:wait())
        assert.is_true(r.ok)
        assert.equal("", r.stdout)
      end)

      it("follows what happens, and can be left and resumed", function()
        local p = start "echo a; read x; echo b >&2; read x; echo c"
        for stream, data in p:events() do -- luacheck: ignore 512
          assert.same({ "stdout", "a\n" }, { stream, data })
          break
        end
        assert(p.stdin:write "\n")
        local it = p:events()
        assert.same({ "stderr", "b\n" }, { it:next(20) })
        fails("timeout", it:next(0.02))
        fails("timeout", p:events { timeout = 0.02 }:next())
        assert(p.stdin:write "\n")
        assert.same({ "stdout", "c\n" }, { it:next(20) })
        assert.is_nil((it:next(20)))
        assert.is_nil((it:next(20)))
      end)

      it("ends with the program when a child holds the pipes", function()
        local p = start("sleep 300 & echo on", { leave = true })
        local seen = {}
        for stream, data in p:events() do
          seen[#seen + 1] = stream .. data
        end
        assert.same({ "stdouton\n" }, seen)
        assert.is_true(moonsand.assert(p:wait()).pipes_held)
      end)

      it("raises in a for what is not the end", function()
        local p = start "echo on; sleep 300"
        local ok, err = pcall(function()
          for _, data in p:events { timeout = 0.05 } do
            assert.equal("on\n", data)
          end
        end)
        assert.is_false(ok)
        assert.equal("timeout", err.code)
        assert.equal("local", err.provider)
        p:close()
      end)
    end)

    describe(":wait", function()
      it("keeps what was read before a timeout", function()
        local p = start "echo early; read x; echo late"
        assert.equal("early", p.stdout:read())
        local _, detail = fails("timeout", p:wait(0.05))
        assert.equal(p.id, detail.id)
        fails("timeout", p:wait(0))
        fails("cancelled", p:wait { cancel = moonsand.token { timeout = 0.01 } })
        assert.is_true(p:is_running())
        assert(p.stdin:write "\n")
        assert.equal("late\n", moonsand.assert(p:wait()).stdout)
      end)

      it("collects the rest of what was read in part", function()
        local p = start "seq 100000; echo end >&2"
        for i = 1, 10 do
          assert.equal(tostring(i), p.stdout:read())
        end
        local r = moonsand.assert(p:wait())
        assert.is_true(numbers(11, 100000) == r.stdout)
        assert.equal("end\n", r.stderr)
        assert.equal(#numbers(1, 100000), r.stdout_bytes)
      end)

      it("gives the same Result each time", function()
        local p = start "echo x"
        local r = moonsand.assert(p:wait())
        assert.equal(r, p:wait())
        assert.equal(r, p:wait(0))
      end)

      it("gives it to all who wait", function()
        local p = start "read x; exit 3"
        local results = moonsand.run(function()
          local tasks = {}
          for i = 1, 5 do
            tasks[i] = moonsand.task(function()
              return p:wait()
            end)
          end
          moonsand.sleep(0.001)
          assert(p.stdin:write "\n")
          return moonsand.assert(moonsand.all(tasks))
        end)
        for i = 1, 5 do
          assert.equal(3, results[i].exit_code)
          assert.equal(results[1], results[i])
        end
      end)

      -- A reader that ended left a full pipe behind, which nobody emptied: the wait never ended.
      it("takes over from a reader that ends meanwhile", function()
        for _, opts in ipairs { {}, { on_exit = function() end } } do
          local p = start("echo ready; read go; seq 1000000", opts) -- more than pipe and stream hold
          moonsand.run(function()
            local reader = moonsand.task(function()
              assert.equal("ready", p.stdout:read())
              assert(p.stdin:write "\n")
              assert.equal("1", p.stdout:read())
              moonsand.sleep(0.03)
              return p.stdout:read()
            end)
            moonsand.sleep(0.001)
            local r = moonsand.assert(p:wait())
            assert.equal("2", reader:wait())
            assert.is_true(numbers(3, 1000000) == r.stdout)
          end)
        end
      end)

      it("leaves a stream to the task that reads it", function()
        local p = start "seq 100000"
        moonsand.run(function()
          local reader = moonsand.task(function()
            local lines = {}
            for line in p.stdout:lines() do
              lines[#lines + 1] = line
            end
            return lines
          end)
          moonsand.sleep(0)
          local r = moonsand.assert(p:wait())
          assert.equal("", r.stdout)
          assert.equal(100000, #reader:wait())
        end)
      end)

      it("checks when that was asked for", function()
        local p = start("echo why >&2; exit 4", { check = true })
        for _ = 1, 2 do
          local message, detail = fails("exit", p:wait())
          assert.equal("exited with 4: why", message)
          assert.equal(4, detail.result.exit_code)
        end
      end)

      it("is closed with its sandbox", function()
        local p = start "sleep 300"
        moonsand.run(function()
          local waiter = moonsand.task(function()
            return p:wait()
          end)
          local reader = moonsand.task(function()
            return p.stdout:read()
          end)
          moonsand.sleep(0.001)
          box:close()
          local _, detail = fails("closed", waiter:wait())
          assert.is_true(detail.started)
          assert.is_nil((reader:wait()))
        end)
        fails("closed", p:wait())
      end)
    end)

    describe(":wait_for", function()
      it("raises at a pattern that is none, in the caller's line", function()
        local p = start "cat"
        local line = debug.getinfo(1, "l").currentline + 1
        local ok, message = pcall(function() p:wait_for("[") end)
        assert.is_false(ok)
        assert.equal(("process_spec.lua:%d: moonsand: process:wait_for: '[' is no pattern"):format(line),
          message:match "process_spec.*")
        p:close()
      end)

      it("gives the first line that matches, of either stream, and leaves the output", function()
        local p = start "echo starting; echo 'ready on 8080' >&2; echo more; exec cat"
        assert.equal("ready on 8080", p:wait_for "^ready on %d+$")
        local line, stream = p:wait_for(function(text, name)
          return name == "stdout" and text == "more"
        end, { timeout = 20 })
        assert.same({ "more", "stdout" }, { line, stream })
        assert.equal("starting", p.stdout:read())
        assert.equal("more", p:wait_for "more")
        p.stdin:close()
        local r = moonsand.assert(p:wait())
        assert.equal("more\n", r.stdout)
        assert.equal("ready on 8080\n", r.stderr)
      end)

      it("waits for it", function()
        local p = start "read x; echo no; read x; printf 'yes, without an end'"
        fails("timeout", p:wait_for("yes", 0.02))
        fails("cancelled", p:wait_for("yes", { cancel = moonsand.token { timeout = 0.01 } }))
        assert(p.stdin:write "\n\n")
        assert.equal("yes, without an end", p:wait_for "yes")
        assert.equal("no\nyes, without an end", moonsand.assert(p:wait()).stdout)
      end)

      it("says when it cannot come any more", function()
        local p = start "echo no; echo never >&2"
        local _, detail = fails("closed", p:wait_for "yes")
        assert.equal(p.id, detail.id)
        assert.equal("never", p:wait_for "never")
        assert.equal("no", p:wait_for "no")
        p = start("yes", { max_output = 10000 })
        fails("too_large", p:wait_for "no")
        p:close()
      end)

      it("takes a pattern or a function", function()
        local p = start "true"
        blames(function()
          local line = p:wait_for(5)
          return line
        end, "a pattern or a function")
        p:wait()
      end)
    end)

    describe(":kill", function()
      it("sends one signal to the whole tree, TERM if nothing is said", function()
        local p = start [[trap 'wait $child; echo got; exit 5' TERM
          sh -c 'trap "echo child; exit" TERM; echo up; while :; do :; done' &
          child=$!; wait $child; wait $child; exit 6]]
        assert.equal("up", p.stdout:read())
        assert.is_true(p:kill())
        local r = moonsand.assert(p:wait())
        assert.equal(5, r.exit_code)
        local lines = {}
        for line in r.stdout:gmatch "%a+" do
          lines[line] = true
        end
        assert.is_true(lines.got)
        assert.is_true(lines.child)
      end)

      it("knows signals by name and number", function()
        for signal, name in pairs { [9] = "KILL", USR1 = "USR1", SIGINT = "INT", term = "TERM" } do
          local p = start { "sleep", "300" }
          assert.is_true(p:kill(signal))
          local r = moonsand.assert(p:wait())
          assert.equal("signaled", r.status)
          assert.equal(name, r.signal)
        end
        local p = start { "sleep", "300" }
        for _, signal in ipairs { "NONE", 0, 65, 1.5, "" } do
          fails("invalid", p:kill(signal))
        end
        assert.is_true(p:is_running())
        p:kill "KILL"
        p:wait()
      end)

      it("says when the program is over", function()
        local p = start "true"
        p:wait()
        fails("gone", p:kill())
      end)
    end)

    describe("whose end nobody confirms", function()
      --- The agent of a sandbox of its own is stopped: it starts nothing and ends nothing.
      local function in_a_stopped_one(fn)
        local own = moonsand.assert(moonsand.create())
        local agent = support.agent(own)
        local p = moonsand.assert(own:start("sleep 300", { timeout = 3 })) -- time to stop the agent
        support.stop(agent)
        local before = loop.now()
        local detail = select(2, fails("timeout", fn(own, p)))
        local took = loop.now() - before
        assert.is_true(took > 4 and took < 20, took)
        support.native().kill(agent, 18)
        moonsand.assert(own:destroy())
        return detail
      end

      it("is told so five seconds after its timeout", function()
        assert.is_true(in_a_stopped_one(function(_, p)
          return p:wait()
        end).started)
      end)

      it("is not said to have started when nobody knows", function()
        assert.is_nil(in_a_stopped_one(function(own)
          return own:exec("true", { timeout = 2 })
        end).started)
      end)
    end)

    describe(":stop", function()
      it("lets the program end by itself", function()
        local p = start "trap 'echo bye; exit 3' TERM; echo up; while :; do :; done"
        assert.equal("up", p.stdout:read())
        local r = moonsand.assert(p:stop())
        assert.equal(3, r.exit_code)
        assert.equal("bye\n", r.stdout)
        assert.equal(r, moonsand.assert(p:stop()))
      end)

      it("kills what ignores TERM", function()
        for _, grace in ipairs { 0, 0.05 } do
          local p = start "trap '' TERM; echo up; while :; do sleep 0.01; done"
          assert.equal("up", p.stdout:read())
          local r = moonsand.assert(p:stop { grace = grace })
          assert.equal("KILL", r.signal)
          assert.equal("signaled", r.status)
          assert.same({}, running())
        end
      end)

      it("waits no longer than its timeout, however long the grace is", function()
        for _, opts in ipairs { 0.1, { timeout = 0.1 }, { timeout = 0.1, grace = 60 } } do
          local p = start "trap '' TERM; echo up; while :; do sleep 0.01; done"
          assert.equal("up", p.stdout:read())
          local before = loop.now()
          fails("timeout", p:stop(opts))
          assert.is_true(loop.now() - before < 20)
          assert.is_true(p:is_running())
          p:close()
        end
      end)
    end)

    describe(":close", function()
      it("kills the tree at once, and again is nothing", function()
        local p = start "setsid sleep 300 & sleep 300"
        p:close()
        p:close()
        assert.is_false(p:is_running())
        support.eventually(20, "something lives on", function()
          return #running() == 0
        end)
        assert.is_truthy(tostring(p):find "closed")
      end)

      it("tells those who wait that it was closed", function()
        local p = start "sleep 300"
        moonsand.run(function()
          local waits = {
            moonsand.task(p.wait, p),
            moonsand.task(p.wait, p, 20),
            moonsand.task(function()
              return p.stdout:read()
            end),
            moonsand.task(function()
              return p.stderr:chunk()
            end),
            moonsand.task(function()
              return p.stdin:write(("x"):rep(3000000))
            end),
            moonsand.task(p.wait_for, p, "x"),
          }
          moonsand.sleep(0.01)
          p:close()
          for _, wait in ipairs(waits) do
            fails("closed", wait:wait())
          end
        end)
      end)

      it("makes every new call raise", function()
        local p = start "sleep 300"
        p:close()
        for name, call in pairs {
          ["process:wait"] = function()
            local r = p:wait()
            return r
          end,
          ["process:wait_for"] = function()
            local r = p:wait_for "x"
            return r
          end,
          ["process:events"] = function()
            local r = p:events()
            return r
          end,
          ["process:kill"] = function()
            local r = p:kill()
            return r
          end,
          ["process:stop"] = function()
            local r = p:stop()
            return r
          end,
        } do
          blames(call, name .. ": the process was closed")
        end
        for name, call in pairs {
          ["stream:read"] = function()
            local r = p.stdout:read()
            return r
          end,
          ["stream:chunk"] = function()
            local r = p.stderr:chunk()
            return r
          end,
          ["stream:lines"] = function()
            local r = p.stdout:lines()
            return r
          end,
          ["stream:chunks"] = function()
            local r = p.stdout:chunks()
            return r
          end,
          ["stream:write"] = function()
            local r = p.stdin:write "x"
            return r
          end,
        } do
          blames(call, name .. ": the stream is closed")
        end
      end)

      it("comes with the end of a block on Lua 5.4", function()
        if _VERSION ~= "Lua 5.4" then
          assert.equal(getmetatable(start "true").__close, getmetatable(start "true").__index.close)
          return
        end
        local p = load [[
          local start = ...
          local p <close> = start "sleep 300"
          return p
        ]](start)
        assert.is_false(p:is_running())
      end)
    end)

    describe("stdin", function()
      it("is open until it is closed", function()
        local p = start "cat; echo end"
        assert.equal(p.stdin, p.stdin:write("a"):write(5):write "")
        assert.equal("a5", p.stdout:read(2))
        p.stdin:shutdown()
        assert.equal("end", p.stdout:read())
        p.stdin:close()
        p.stdin:close()
        assert.is_true(moonsand.assert(p:wait()).ok)
      end)

      it("waits while the pipe is full, and tells how much was written", function()
        local p = start "mkfifo go; echo up; read x <go; wc -c"
        local big = ("x"):rep(1000000)
        assert.equal("up", p.stdout:read())
        local _, detail = fails("timeout", p.stdin:write(big, { timeout = 0.02 }))
        assert.is_true(detail.written > 0 and detail.written < 1000000)
        local _, nothing = fails("timeout", p.stdin:write("y", 0))
        assert.equal(0, nothing.written)
        fails("cancelled", p.stdin:write("y", { cancel = moonsand.token { timeout = 0.01 } }))
        moonsand.run(function()
          local writer = moonsand.task(function()
            return p.stdin:write(big)
          end)
          moonsand.sleep(0.001)
          assert.equal("running", writer:status())
          exec "echo >go"
          assert.equal(p.stdin, writer:wait())
        end)
        p.stdin:close()
        assert.equal(detail.written + #big .. "\n", p.stdout:read "L")
        assert.is_true(moonsand.assert(p:wait()).ok)
      end)

      it("carries more than a pipe holds while the output is read", function()
        local p = start "cat"
        local big = {}
        for i = 1, 200000 do
          big[i] = i .. "\n"
        end
        big = table.concat(big)
        moonsand.run(function()
          local writer = moonsand.task(function()
            assert(p.stdin:write(big))
            p.stdin:close()
          end)
          assert.is_true(big == p.stdout:read "a")
          writer:wait()
        end)
        assert.is_true(moonsand.assert(p:wait()).ok)
      end)

      it("is closed when nobody reads it any more", function()
        local p = start "exec <&-; echo shut; read x <go"
        assert.equal("shut", p.stdout:read())
        local _, detail = fails("closed", p.stdin:write "x")
        assert.equal(0, detail.written)
        p = start "true"
        p:wait()
        fails("closed", p.stdin:write(("x"):rep(1000000)))
        p.stdin:close()
      end)

      it("cannot be read", function()
        local p = start "cat"
        fails("unsupported", p.stdin:read())
        fails("unsupported", p.stdin:chunk())
        fails("unsupported", p.stdin:seek())
        p:close()
      end)

      it("can be fed from another program, as in a pipeline", function()
        local a = start "seq 100000"
        local b = start("grep 7", { stdin = a.stdout })
        local c = start("wc -l", { stdin = b.stdout })
        assert.equal("40951\n", moonsand.assert(c:wait()).stdout)
        assert.is_true(moonsand.assert(b:wait()).ok)
        assert.is_true(moonsand.assert(a:wait()).ok)
      end)
    end)

    describe("callbacks", function()
      it("run in a task of their own, and wait knows of them", function()
        local log = {}
        local p = start("echo a; echo b >&2", {
          on_stdout = function(data, process)
            moonsand.sleep(0.01)
            log[#log + 1] = process.pid .. data
          end,
          on_line = function(line, stream)
            log[#log + 1] = stream .. ":" .. line
          end,
          on_exit = function(result)
            log[#log + 1] = "exit " .. tostring(result.ok)
          end,
        })
        assert.same({}, log)
        assert.is_nil(p.stdout)
        local r = moonsand.assert(p:wait())
        assert.equal("a\n", r.stdout)
        assert.equal("b\n", r.stderr)
        assert.equal(r, moonsand.assert(p:wait()))
        assert.equal("exit true", table.remove(log))
        table.sort(log)
        assert.same({ p.pid .. "a\n", "stderr:b", "stdout:a" }, log)
      end)

      it("run without a wait", function()
        local lines, result = {}, nil
        start("seq 3; exit 2", {
          on_line = function(line)
            lines[#lines + 1] = line
          end,
          on_exit = function(r)
            result = r
          end,
        })
        support.eventually(20, "on_exit was not called", function()
          moonsand.loop.step(0)
          return result
        end)
        assert.same({ "1", "2", "3" }, lines)
        assert.equal(2, result.exit_code)
        assert.equal("1\n2\n3\n", result.stdout)
      end)

      it("that raise kill the program and come out of every wait", function()
        local failure, ends = {}, 0
        local p = start("echo x; sleep 300 & sleep 300", {
          on_stdout = function()
            error(failure)
          end,
          on_exit = function(r, _, code, detail)
            assert.is_nil(r)
            assert.equal("closed", code)
            assert.equal(failure, detail.cause)
            ends = ends + 1
          end,
        })
        for _ = 1, 2 do
          local ok, err = pcall(p.wait, p)
          assert.is_false(ok)
          assert.equal(failure, err)
        end
        assert.equal(1, ends)
        assert.same({}, running())
        p = start("true", {
          on_exit = function()
            error(failure)
          end,
        })
        local ok, err = pcall(p.wait, p)
        assert.is_false(ok)
        assert.equal(failure, err)
      end)

      -- With on_exit, what had been read in part was never collected: the program stood still.
      it("leave the other stream to its readers", function()
        local heard = {}
        local p = start("echo err >&2; seq 200000", {
          on_stderr = function(data)
            heard[#heard + 1] = data
          end,
          on_exit = function() end,
        })
        assert.equal("1", p.stdout:read())
        assert.is_true(numbers(2, 200000) == moonsand.assert(p:wait()).stdout)
        assert.same({ "err\n" }, heard)
      end)

      it("hear of a cancelled program", function()
        local token, got = moonsand.token(), nil
        local p = start("sleep 300", {
          cancel = token,
          on_exit = function(...)
            got = { ... }
          end,
        })
        token:cancel()
        fails("cancelled", p:wait())
        fails("cancelled", unpack(got, 1, 4))
      end)
    end)

    describe("max_output", function()
      it("ends a program that nobody waits for", function()
        local p = start("yes", { max_output = 1000, on_limit = "kill" })
        support.eventually(20, "it goes on", function()
          moonsand.loop.step(0)
          return not p:is_running()
        end)
        local r = moonsand.assert(p:wait())
        assert.equal("output_limit", r.status)
        assert.equal("y\ny\n", r.stdout:sub(1, 4))
      end)

      it("is for what is collected, not for what somebody reads", function()
        local p = start("read go; seq 5000", { max_output = 1000, on_limit = "kill" })
        local count = 0
        moonsand.assert(p.stdin:write "\n")
        for _ in p.stdout:lines() do
          count = count + 1
        end
        assert.equal(5000, count)
        assert.is_true(moonsand.assert(p:wait()).ok)
      end)
    end)

    describe("dropped", function()
      it("goes on, and ends its work", function()
        start "sleep 0.05; seq 100000; echo made >result"
        helper.settle()
        support.eventually(10, "nothing was made", function()
          moonsand.loop.step(0)
          return exec("cat result 2>&-").stdout == "made\n"
        end)
      end)

      it("keeps its sandbox, as do its streams", function()
        local own = moonsand.assert(moonsand.create())
        local p = moonsand.assert(own:start "read x; seq 5; sleep 0.02; seq 6 10")
        local stdin, stdout = p.stdin, p.stdout
        own, p = nil, nil -- luacheck: ignore
        helper.settle()
        assert(stdin:write "\n")
        stdin = nil -- luacheck: ignore
        helper.settle()
        assert.equal(numbers(1, 10), stdout:read "a")
      end)
    end)

    describe("of many", function()
      it("keeps each apart", function()
        local all = {}
        for i = 1, 30 do
          all[i] = start("cat; exit " .. i)
        end
        for i, p in ipairs(all) do
          assert(p.stdin:write(("%d\n"):format(i)))
          p.stdin:close()
        end
        for i = #all, 1, -1 do
          local r = moonsand.assert(all[i]:wait())
          assert.equal(i, r.exit_code)
          assert.equal(i .. "\n", r.stdout)
        end
      end)
    end)

    it("has options with names that are known", function()
      blames(function()
        local p = box:start("true", { stdn = "x" })
        return p
      end, "box:start: unknown option 'stdn' (did you mean 'stdin'?)")
      local p = start "true"
      blames(function()
        local r = p:wait { tiemout = 1 }
        return r
      end, "process:wait: unknown option 'tiemout' (did you mean 'timeout'?)")
      blames(function()
        local r = p:stop { grase = 1 }
        return r
      end, "did you mean 'grace'?")
      p:wait()
    end)
  end)
end)
