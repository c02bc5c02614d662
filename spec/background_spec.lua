-- Programs that belong to their sandbox: the log that its agent keeps of them, and those who look at
-- it, from any offset, while it grows, and when it is over.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local fails = support.fails

describe("a program in the background", function()
  helper.deadline(60)

  local box

  helper.no_leaks(function()
    box:close()
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  local function start(command, opts)
    opts = opts or {}
    opts.background = true
    return moonsand.assert(box:start(command, opts))
  end

  local function attach(id, opts)
    return moonsand.assert(box:attach(id, opts))
  end

  it("is native", function()
    assert.equal("native", box:can "background")
    assert.equal("native", box:can "attach")
  end)

  it("gives its starter what any program gives", function()
    local p = start("read line; echo got $line; echo oops >&2; exit 3")
    assert.is_true(p:is_running())
    p.stdin:write "one\n"
    local r = moonsand.assert(p:wait())
    assert.equal("got one\n", r.stdout)
    assert.equal("oops\n", r.stderr)
    assert.equal(3, r.exit_code)
    assert.is_false(r.truncated)
    assert.is_false(p:is_running())
    assert.equal(3, p:info().exit_code)
    assert.equal(7, r.usage and 7)
  end)

  it("takes one stream for both, and none", function()
    local p = start("echo one; echo two >&2", { stderr = "stdout" })
    assert.equal("one\ntwo\n", p:wait().stdout)
    assert.equal("one\ntwo\n", attach(p.id):wait().stdout)
    local q = start("echo one; echo two >&2", { stdout = "discard" })
    assert.same({ "", "two\n" }, { q:wait().stdout, q:wait().stderr })
  end)

  it("runs to its end in exec, too", function()
    local lines = {}
    local r = moonsand.assert(box:exec("seq 20000", {
      background = true,
      on_line = function(line) lines[#lines + 1] = line end,
    }))
    assert.equal(20000, #lines)
    assert.equal("20000", lines[20000])
    assert.equal(108894, #r.stdout)
  end)

  it("is ended by its timeout, by a token and by kill, as others are", function()
    local r = moonsand.assert(start("echo up; setsid sleep 100", { timeout = 2.5 }):wait())
    assert.is_true(r.timed_out)
    assert.equal("up\n", r.stdout)
    local token = moonsand.token()
    local p = start("sleep 100", { cancel = token })
    token:cancel "enough"
    fails("cancelled", p:wait())
    local q = start "setsid sleep 100 & sleep 100"
    q:kill "KILL"
    assert.equal("KILL", q:wait().signal)
    assert.same({}, support.descendants((support.agent(box))))
  end)

  it("ends when a callback raises, and that comes out of wait", function()
    local p = start("echo one; sleep 100", { on_stdout = function() error("mine", 0) end })
    local ok, err = pcall(p.wait, p)
    assert.is_false(ok)
    assert.equal("mine", err)
  end)

  it("says why it could not be started", function()
    local p, message, code, detail = box:start({ "no-such-program" }, { background = true })
    fails("not_found", p, message, code, detail)
    assert.equal("program", detail.what)
    assert.is_false(detail.started)
    fails("unsupported", box:start("sh", { background = true, pty = true }))
    fails("invalid", box:start("sh", { background = true, log = { size = 0 } }))
    fails("invalid", box:start("sh", { background = true, log = { size = "2G" } }))
    fails("invalid", box:start("sh", { background = true, log = { keep = "middle" } }))
    assert.has_error(function() box:start("sh", { log = { size = 1 } }) end)
    assert.has_error(function() box:start("sh", { background = true, log = { bytes = 1 } }) end)
  end)

  it("runs on when its handle is gone", function()
    local id = start("while :; do echo tick; sleep 0.01; done").id
    helper.settle()
    helper.settle()
    local p = attach(id)
    for _ = 1, 50 do
      assert.equal("tick", p.stdout:read("l", 10))
    end
    assert.is_true(p:is_running())
    p:close()
  end)

  it("does nothing to other programs when it is detached", function()
    local p = start "echo one; read line; echo $line"
    assert.equal("one", p.stdout:read("l", 10))
    assert.is_true(p:detach())
    assert.has_error(function() p:wait() end)
    local q = moonsand.assert(box:start "sleep 100")
    fails("unsupported", q:detach())
    fails("unsupported", q:log())
  end)

  describe("that is attached to", function()
    local text
    before_each(function()
      local lines = {}
      for i = 1, 3000 do
        lines[i] = ("line %d %s\n"):format(i, ("x"):rep(i % 17))
      end
      text = table.concat(lines)
    end)

    --- A program that writes `text` to stdout, and its length in all to stderr.
    local function writer(more)
      moonsand.assert(box.files:write("text", text))
      return start("cat text; echo end >&2; " .. (more or ""))
    end

    it("is replayed from every offset, byte for byte", function()
      local p = writer()
      p:wait()
      for _, at in ipairs { 0, 1, 2, 4095, 4096, 4097, 30000, #text - 1, #text } do
        local r = moonsand.assert(attach(p.id, { since = { stdout = at, stderr = at % 5 } }):wait())
        assert.equal(text:sub(at + 1), r.stdout)
        assert.equal(("end\n"):sub(at % 5 + 1), r.stderr)
        assert.is_false(r.truncated)
        assert.equal(0, r.exit_code)
      end
      fails("invalid", box:attach(p.id, { since = { stdout = #text + 1 } }))
      fails("not_found", box:attach "bg-1000")
      fails("not_found", box:attach "no id")
      assert.has_error(function() box:attach(p.id, { since = { stdout = -1 } }) end)
      assert.has_error(function() box:attach(p.id, { since = { stdin = 1 } }) end)
    end)

    it("goes on live where its log ends, and again from where a reader was", function()
      local p = start("n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo line $n; sleep 0.002; done",
        { log = { size = "64K" } })
      local whole, since = {}, nil
      local id = p.id
      p:detach()
      repeat -- seventeen lines, or a piece, at a time
        local q = attach(id, { since = since })
        local got = #whole % 2 == 0 and q.stdout:read(100, 10) or q.stdout:chunk(10)
        whole[#whole + 1] = got
        since = moonsand.assert(q:offsets())
        assert.equal(#table.concat(whole), since.stdout)
        q:detach()
      until not got
      local expected = {}
      for i = 1, 400 do
        expected[i] = "line " .. i .. "\n"
      end
      assert.equal(table.concat(expected), table.concat(whole))
    end)

    it("gives several the same", function()
      local p = writer "sleep 0.05; cat text"
      local readers = {}
      for i = 1, 5 do
        readers[i] = function()
          return attach(p.id).stdout:read "a"
        end
      end
      local all = moonsand.assert(moonsand.run(function()
        return moonsand.all(readers, function(fn) return fn() end)
      end))
      for i = 1, 5 do
        assert.equal(text .. text, all[i])
      end
    end)

    it("can be told by any of them to end", function()
      local p = start "echo up; sleep 100"
      local q = attach(p.id)
      assert.equal("up", q.stdout:read("l", 10))
      q:kill "TERM"
      assert.equal("TERM", p:wait().signal)
      assert.equal("TERM", q:wait().signal)
      fails("gone", q:kill())
    end)

    it("while it ends, ends for each", function()
      for i = 1, 60 do
        local p = start "echo one; echo two >&2"
        if i % 3 == 0 then
          support.native().pause(0.001 * (i % 5))
        end
        local r = moonsand.assert(attach(p.id):wait(20))
        assert.same({ "one\n", "two\n", 0 }, { r.stdout, r.stderr, r.exit_code })
      end
    end)

    it("calls back", function()
      local p, heard, ended = writer(), {}, nil
      local q = attach(p.id, {
        on_stdout = function(data) heard[#heard + 1] = data end,
        on_exit = function(r) ended = r end,
      })
      q:wait()
      assert.equal(text, table.concat(heard))
      assert.equal(0, ended.exit_code)
    end)

    it("is not held up by one who does not read", function()
      local slow = start("head -c 8M /dev/zero; echo >&2 done", { log = { size = "256K" } })
      assert.equal("\0", slow.stdout:read(1))
      local quick = attach(slow.id)
      assert.equal("done\n", quick.stderr:read("a", { timeout = 20 }))
      local rest = #slow.stdout:read("a", { max = "16M" })
      support.eventually(20, "it did not end", function()
        require("moonsand.loop").step(0)
        return not slow:is_running()
      end)
      local dropped = 0
      for _, gap in ipairs(slow:info().gaps) do
        assert.equal("stdout", gap.stream)
        dropped = dropped + gap.dropped
      end
      assert.is_true(dropped > 0)
      assert.equal(8 * 1024 * 1024, 1 + rest + dropped)
      assert.equal(8 * 1024 * 1024, slow:offsets().stdout)
      assert.equal(dropped, slow:wait().truncated.stdout.dropped)
    end)

    it("tells with each byte where it was", function()
      -- Numbered lines through a log that is far too small: what is missing is what offsets say.
      local p = start("seq -f %07.0f 1 200000", { log = { size = 4096 } })
      local seen = 0
      while true do
        local before = moonsand.assert(p:offsets()).stdout
        local line = p.stdout:read(8, 20)
        if not line or #line < 8 then
          break
        end
        local after = p:offsets().stdout
        local number = tonumber(line:sub(1, 7))
        if after - before == 8 and number and line:sub(8) == "\n" then -- no gap within
          assert.equal(after, number * 8)
          seen = seen + 1
        else -- to the next whole line
          local skip = (8 - after % 8) % 8
          if skip > 0 then
            p.stdout:read(skip, 20)
          end
        end
        if seen % 500 == 0 then
          support.native().pause(0.002)
        end
      end
      assert.is_true(seen > 100)
      assert.equal(1600000, p:offsets().stdout)
    end)

    it("leaves nothing with the agent when it is let go of", function()
      local output = support.child_with_files([[
        local moonsand = require "moonsand"
        moonsand.with({ limits = { open_files = 64 } }, function(box)
          local p = moonsand.assert(box:start("echo up; sleep 100", { background = true }))
          for i = 1, 300 do -- more than the agent may have open
            local q = moonsand.assert(box:attach(p.id))
            if i % 3 == 0 then
              q:detach()
            elseif i % 3 == 1 then
              assert(q.stdout:read() == "up")
            end
            if i % 20 == 0 then
              q = nil
              collectgarbage()
              collectgarbage()
            end
          end
          assert(p:is_running())
        end)
        print "done"]], 150)
      assert.equal("done\n", output)
    end)
  end)

  describe("has a log", function()
    it("of what came, read or not", function()
      local p = start "echo one; echo two >&2; sleep 100"
      assert.equal("one", p.stdout:read("l", 10))
      assert.equal("two", p.stderr:read("l", 10))
      assert.same({ stdout = "one\n", stderr = "two\n", truncated = false }, p:log())
      p:kill "KILL"
      p:wait()
      assert.same({ stdout = "one\n", stderr = "two\n", truncated = false }, p:log())
    end)

    it("that keeps the last bytes of each stream", function()
      local p = start("seq 1 1000; echo x >&2", { log = { size = 100 } })
      p:wait()
      local log = moonsand.assert(p:log())
      local all = {}
      for i = 1, 1000 do
        all[i] = i .. "\n"
      end
      all = table.concat(all)
      assert.equal(all:sub(-100), log.stdout)
      assert.same({ stdout = { at = 0, dropped = #all - 100 } }, log.truncated)
      assert.equal("x\n", log.stderr)
    end)

    it("or the first", function()
      local p = start("seq 1 1000", { log = { size = 100, keep = "head" } })
      local all = p:wait().stdout
      assert.equal(3893, #all)
      local log = moonsand.assert(p:log())
      assert.equal(all:sub(1, 100), log.stdout)
      assert.same({ stdout = { at = 100, dropped = 3793 } }, log.truncated)
    end)

    it("of one byte, or of odd sizes", function()
      for _, size in ipairs { 1, 2, 3, 7, 4097 } do
        for _, keep in ipairs { "head", "tail" } do
          local p = start("seq 1 3000", { log = { size = size, keep = keep } })
          p:wait()
          local log = moonsand.assert(p:log())
          assert.equal(size, #log.stdout, keep .. size)
          assert.equal(13893, #log.stdout + log.truncated.stdout.dropped)
        end
      end
    end)

    it("that a flood does not make larger", function()
      if support.instrumented() then
        return
      end
      local agent = support.agent(box)
      local before = support.rss(agent)
      local p = start("exec head -c 200M /dev/zero", { log = { size = "1M" } })
      p:detach()
      support.eventually(40, "the flood did not end", function()
        return not moonsand.assert(box:processes())[1].running
      end)
      assert.is_true(support.rss(agent) - before < 4 * 1024 * 1024)
    end)
  end)

  it("that one handle ends is over for the others as for anybody, with a Result", function()
    for _, ended in ipairs { "close", "cancel" } do
      local token = moonsand.token()
      local p = start("sleep 1000", { cancel = token })
      local q = attach(p.id)
      if ended == "close" then
        p:close()
      else
        token:cancel()
        fails("cancelled", p:wait(20))
      end
      local r = moonsand.assert(q:wait(20))
      assert.equal("signaled", r.status)
      assert.equal("KILL", r.signal)
      q = attach(p.id)
      q:close() -- it is over already
      assert.equal("KILL", moonsand.assert(attach(p.id):wait(20)).signal)
    end
  end)

  it("tells what it runs whoever asks", function()
    for _, command in ipairs { "sleep 1000; true", { "sleep", "1000" } } do
      local p = start(command)
      local q = attach(p.id)
      assert.same(command, q:info().command)
      assert.equal(p.id, q.id)
      q:close()
    end
  end)

  describe("box:processes", function()
    it("calls programs what their handles call them", function()
      local ids = {}
      for i = 1, 4 do
        local p = moonsand.assert(box:start("sleep 1000", { background = i > 2 }))
        ids[i] = { p.id, p.pid }
      end
      for i, row in ipairs(moonsand.assert(box:processes())) do
        assert.same(ids[i], { row.id, row.pid })
        local p, _, code = box:attach(row.id)
        assert.equal(row.background, p ~= nil)
        assert.equal(p and row.id or "not_found", p and p.id or code)
      end
    end)

    it("lists what was started, with what is known of it", function()
      box:exec { "true" }
      local p = start "exit 7"
      p:wait()
      local q = moonsand.assert(box:start { "sleep", "100" })
      box.files:list "/usr" -- a worker is none
      local rows = moonsand.assert(box:processes())
      assert.equal(3, #rows)
      assert.same({ "true" }, rows[1].command)
      assert.same({ p.id, p.pid, "exit 7", false, 7, true }, { rows[2].id, rows[2].pid,
        rows[2].command, rows[2].running, rows[2].exit_code, rows[2].background })
      assert.same({ { "sleep", "100" }, true, q.pid, false }, { rows[3].command, rows[3].running,
        rows[3].pid, rows[3].background })
      assert.is_nil(rows[3].exit_code)
      for _, row in ipairs(rows) do
        assert.is_true(math.abs(row.started_at - os.time()) < 60)
      end
    end)

    it("remembers the last hundred, and cuts what is long", function()
      for i = 1, 110 do
        box:exec { "true", tostring(i) }
      end
      start({ "sh", "-c", "sleep 100", ("y"):rep(100000) })
      local rows = moonsand.assert(box:processes())
      assert.equal(101, #rows)
      assert.same({ "true", "11" }, rows[1].command)
      assert.is_true(#rows[101].command[4] < 2048)
    end)

    it("forgets logs that are large in all", function()
      local first
      for _ = 1, 6 do
        local p = start("head -c 20M /dev/zero", { log = { size = "20M" }, stdout = "collect" })
        first = first or p.id
        p:wait()
      end
      fails("not_found", box:attach(first))
      assert.is_true(#moonsand.assert(box:processes()) <= 4)
    end)
  end)
end)
