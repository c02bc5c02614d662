-- Terminals of programs: what they are inside, what reaches them and comes from them, and how one is
-- tied to the caller's own.

local core = require "moonsand.core"
local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()
local unpack = table.unpack or unpack

local fails = support.fails

--- Asserts that fn raises, with this text, at one of its own lines.
local function blames(fn, text)
  local ok, err = pcall(fn)
  assert.is_false(ok, "it did not raise: " .. text)
  local line, message = tostring(err):match "terminal_spec%.lua:(%d+): moonsand: (.*)$"
  assert.is_truthy(line, "not at the caller's line: " .. tostring(err))
  local info = debug.getinfo(fn, "S")
  assert.is_true(tonumber(line) >= info.linedefined and tonumber(line) <= info.lastlinedefined,
    "not at the caller's line: " .. err)
  assert.is_truthy(message:find(text, 1, true), ("%q lacks %q"):format(message, text))
end

describe("moonsand.terminal", function()
  helper.deadline(30)
  local box

  helper.no_leaks(function()
    box:close()
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  local function start(command, opts)
    opts = opts or {}
    opts.pty = opts.pty or true
    return moonsand.assert(box:start(command, opts))
  end

  local function exec(command, opts)
    opts = opts or {}
    opts.pty = opts.pty or true
    return moonsand.assert(box:exec(command, opts)).stdout
  end

  --- Reads until a text was shown, and answers all that was.
  local function read_until(p, text)
    local shown = {}
    repeat
      local data, message = p.stdout:chunk(10)
      if not data then
        error(("%q was not shown (%s), but %q"):format(text, tostring(message), table.concat(shown)), 2)
      end
      shown[#shown + 1] = data
    until table.concat(shown):find(text, 1, true)
    return table.concat(shown)
  end

  --- All terminals are gone but that of who looks.
  local function assert_one_left()
    support.eventually(20, "there are others", function()
      local names = exec "ls -1 /dev/pts"
      return names:find "^%d+\r\nptmx\r\n$", names
    end)
  end

  local function running()
    local names = {}
    for _, process in ipairs(support.descendants((support.agent(box)))) do
      names[#names + 1] = process.name
    end
    return names
  end

  local function all_ended()
    support.eventually(20, "something runs on", function()
      return #running() == 0, table.concat(running(), " ")
    end)
  end

  -- ------------------------------------------------------------------ inside

  describe("of a program", function()
    it("is one for all three streams, of the sandbox's own, and controls it", function()
      local text = exec [[
        for fd in 0 1 2; do [ -t $fd ] && echo "$fd is one"; done
        tty; ls -1 /dev/pts
        read -r stat </proc/self/stat; set -- ${stat##*) }; echo "$4 $5"
        : <>/dev/tty && echo "its name opens"
        : <>"$(tty)" && echo "so does its own"
        stat -c '%U %a' "$(tty)"
      ]]
      local session
      text = text:gsub("\r\n(%d+) 34816\r\n", function(sid)
        session = sid
        return "\r\nSESSION\r\n"
      end)
      assert.equal("0 is one\r\n1 is one\r\n2 is one\r\n/dev/pts/0\r\n0\r\nptmx\r\nSESSION\r\n"
        .. "its name opens\r\nso does its own\r\nsandbox 620\r\n", text)
      assert.truthy(tonumber(session) > 1)
    end)

    it("brings everything on stdout", function()
      local p = start "echo out; echo err >&2"
      assert.is_nil(p.stderr)
      assert.equal("out\r\nerr\r\n", p.stdout:read "a")
      local r = moonsand.assert(box:exec("echo out; echo err >&2", { pty = true, stderr = "stdout" }))
      assert.equal("out\r\nerr\r\n", r.stdout)
      assert.equal("", r.stderr)
      assert.is_false(r.pipes_held)
      p:wait()
    end)

    it("is 80 columns wide and 24 rows high, or what was asked for", function()
      assert.equal("24 80\r\n", exec "stty size")
      assert.equal("50 132\r\n", exec("stty size", { pty = { cols = 132, rows = 50 } }))
      assert.equal("24 100\r\n", exec("stty size", { pty = { cols = 100 } }))
      assert.equal("1 80\r\n", exec("stty size", { pty = { rows = 1 } }))
      assert.equal("65535 65535\r\n", exec("stty size", { pty = { cols = 65535, rows = 65535 } }))
    end)

    it("has a kind that programs know, which the caller may say", function()
      assert.equal("xterm-256color\r\n", exec "echo $TERM")
      assert.equal("vt100\r\n", exec("echo $TERM", { env = { TERM = "vt100" } }))
      local view = moonsand.assert(box:view { env = { TERM = "screen" } })
      assert.equal("screen\r\n", moonsand.assert(view:exec("echo $TERM", { pty = true })).stdout)
      assert.equal("none\r\n", exec("/bin/echo ${TERM:-none}", { clear_env = true }))
      assert.equal("dumb\n", moonsand.assert(box:exec "echo $TERM").stdout) -- without one
    end)

    it("erases characters, not bytes", function()
      local p = start "read -r line; printf %s \"$line\" | od -An -tx1"
      moonsand.assert(p.stdin:write "a\195\164\127b\n")
      assert.truthy(p.stdout:read("a"):find " 61 62\r\n$")
      p:wait()
    end)

    it("each has its own, at the same time", function()
      local a, b = start "tty; read x", start "tty; read x"
      local first, second = a.stdout:read(), b.stdout:read()
      assert.truthy(first:find "^/dev/pts/%d+\r$")
      assert.are_not.equal(first, second)
      moonsand.assert(a.stdin:write "\n")
      moonsand.assert(b.stdin:write "\n")
      assert.is_true(a:wait(5).ok)
      assert.is_true(b:wait(5).ok)
    end)

    it("works for exec, collected, with callbacks, and discarded", function()
      local lines = {}
      local r = moonsand.assert(box:exec("printf 'a\\nb\\n'", { pty = true, on_line = function(line)
        lines[#lines + 1] = line
      end }))
      assert.same({ "a\r", "b\r" }, lines)
      assert.equal("a\r\nb\r\n", r.stdout)
      r = moonsand.assert(box:exec("seq 100000", { pty = true, stdout = "discard" }))
      assert.equal("", r.stdout)
      assert.is_true(r.ok)
    end)

    it("can be told its size by words that are none of it", function()
      local function wrong(pty, text)
        blames(function() box:start("true", { pty = pty }) end, text)
      end
      wrong({ cols = 0 }, "cols must be a whole number from 1 to 65535, got 0")
      wrong({ cols = 1.5 }, "cols must be a whole number")
      wrong({ rows = 65536 }, "rows must be a whole number")
      wrong({ rows = -1 }, "rows must be a whole number")
      wrong({ cols = 0 / 0 }, "cols must be a whole number")
      wrong({ rows = "24" }, "option 'rows' must be a number")
      wrong({ columns = 80 }, "unknown option 'columns'")
      blames(function() box:start("true", { pty = 80 }) end, "option 'pty' must be a boolean or table")
      blames(function() box:start("true", { pty = true, stderr = "discard" }) end, "there is no stderr")
      blames(function() box:exec("true", { pty = true, on_stderr = print }) end, "there is no stderr")
    end)

    it("is not there for pty = false", function()
      assert.equal("not a tty\n", moonsand.assert(box:exec("tty", { pty = false, stdin = "" })).stdout)
    end)

    it("can be asked for", function()
      assert.equal("native", box:can "pty")
      assert.equal("native", box:can "resize")
    end)

    it("is refused, and nothing left, for what cannot start", function()
      local _, detail = fails("not_found", box:start({ "/no/such" }, { pty = true }))
      assert.is_false(detail.started)
      fails("not_found", box:exec({ "/no/such" }, { pty = true }))
      fails("not_found", box:start("true", { pty = true, cwd = "/no/such" }))
      assert_one_left()
    end)
  end)

  -- ------------------------------------------------------------------ the end

  describe("ends", function()
    it("with its program, and no byte of the last words is lost", function()
      for _ = 1, 20 do
        local r = moonsand.assert(box:exec("stty -opost; head -c 300000 /dev/zero | tr '\\0' x",
          { pty = true, timeout = 20 }))
        assert.equal(300000, r.stdout_bytes)
        assert.equal(("x"):rep(300000), r.stdout)
      end
    end)

    it("for the reader without a failure", function()
      local p = start "echo one; echo two"
      assert.equal("one\r", p.stdout:read())
      assert.equal("two\r", p.stdout:read())
      assert.same({ nil, n = 1 }, { n = select("#", p.stdout:read()), p.stdout:read() })
      assert.equal("", p.stdout:read "a")
      assert.is_true(p:wait().ok)
    end)

    it("for all that runs in it, when the process is closed", function()
      local p = start "setsid sleep 100 & nohup sleep 101 >/dev/null 2>&1 & trap '' HUP; echo up; sleep 102"
      read_until(p, "up")
      p:close()
      all_ended()
    end)

    it("with a HUP for what is left behind on purpose", function()
      local p = start("(trap 'echo hup >>/tmp/log; exit' HUP; echo up; while :; do :; done) & "
        .. "read x", { leave = true })
      read_until(p, "up")
      moonsand.assert(p.stdin:write "\n")
      assert.is_true(moonsand.assert(p:wait(5)).ok)
      -- The shell was the session's leader: the kernel tells its foreground group.
      support.eventually(20, "no HUP", function()
        return (box.files:read "/tmp/log") == "hup\n"
      end)
      all_ended()
    end)

    it("although somebody outside its session still holds it", function()
      local p = start("setsid sh -c 'echo up; exec sleep 100' & read x", { leave = true })
      read_until(p, "up")
      moonsand.assert(p.stdin:write "\n")
      local r = moonsand.assert(p:wait(5))
      assert.is_true(r.ok)
      assert.is_true(r.pipes_held)
    end)

    it("by a timeout", function()
      local r = moonsand.assert(box:exec("echo begun; sleep 100", { pty = true, timeout = 3 }))
      assert.is_true(r.timed_out)
      assert.equal("begun\r\n", r.stdout)
      all_ended()
    end)

    it("by a cancelled token", function()
      local token = moonsand.token()
      local p = start("sleep 100", { cancel = token })
      token:cancel()
      fails("cancelled", p:wait(5))
      all_ended()
    end)

    it("with the sandbox", function()
      local p = start "sleep 100"
      box:close()
      fails("closed", p:wait(5))
      assert.equal("", p.stdout:read("a", 5))
    end)
  end)

  -- ------------------------------------------------------------------ typing

  describe("is typed into", function()
    it("and shows that", function()
      local p = start "read -r line; echo \"<$line>\""
      moonsand.assert(p.stdin:write "hello\n")
      assert.equal("hello\r\n<hello>\r\n", p.stdout:read "a")
      assert.is_true(p:wait().ok)
    end)

    it("and hears the end of the file", function()
      local p = start "stty -echo; echo ready; cat; echo over"
      read_until(p, "ready\r\n")
      moonsand.assert(p.stdin:write "a line\n")
      p.stdin:close()
      assert.equal("a line\r\nover\r\n", p.stdout:read "a")
      assert.is_true(p:wait(5).ok)
    end)

    it("and hears it in the middle of a line", function()
      local p = start "stty -echo; echo ready; cat; echo; echo over"
      read_until(p, "ready\r\n")
      moonsand.assert(p.stdin:write "half a li")
      moonsand.assert(p.stdin:write "ne")
      p.stdin:close()
      assert.equal("half a line\r\nover\r\n", p.stdout:read "a")
      assert.is_true(p:wait(5).ok)
    end)

    it("and hears it by whatever character stands for it", function()
      local p = start "stty -echo eof ^X; echo ready; cat; echo over"
      read_until(p, "ready\r\n")
      moonsand.assert(p.stdin:write "\22\4\n") -- ^V and ^D: a plain one now
      p.stdin:close()
      assert.equal("\4\r\nover\r\n", p.stdout:read "a")
      assert.is_true(p:wait(5).ok)
    end)

    it("and gets a ^D where it reads characters, not lines", function()
      local p = start "stty raw -echo; printf ready; head -c 3 | od -An -tx1"
      read_until(p, "ready")
      moonsand.assert(p.stdin:write "ab")
      p.stdin:close()
      assert.truthy(p.stdout:read("a"):find " 61 62 04\n$")
      assert.is_true(p:wait(5).ok)
    end)

    it("by shutdown as well, and by nobody after that", function()
      local p = start "stty -echo; echo ready; cat; echo over"
      read_until(p, "ready\r\n")
      p.stdin:shutdown()
      fails("closed", p.stdin:write "more")
      p.stdin:close()
      p.stdin:close()
      blames(function() p.stdin:write "more" end, "the stream is closed")
      assert.equal("over\r\n", p.stdout:read "a")
      p:wait()
    end)

    it("from a string, a function, a file, another program", function()
      assert.equal("in", exec("stty -echo; cat", { stdin = "in" }):sub(-2))
      assert.equal("in\r\n", exec("stty -echo; cat", { stdin = "in\n" }):sub(-4))
      local pieces = { "a\n", "b\n" }
      assert.equal("a\r\nb\r\n", exec("stty -echo; cat", { stdin = function()
        return table.remove(pieces, 1)
      end }):sub(-6))
      local other = moonsand.assert(box:start "printf 'x\\ny\\n'")
      assert.equal("x\r\ny\r\n", exec("stty -echo; cat", { stdin = other.stdout }):sub(-6))
      other:wait()
    end)

    it("not at all, where the input is empty", function()
      assert.equal("over\r\n", exec "cat; echo over")
      assert.equal("over\r\n", exec("cat; echo over", { stdin = false }))
      local p = start("cat; echo over", { stdin = "" })
      assert.is_nil(p.stdin)
      assert.equal("over\r\n", p:wait(5).stdout)
    end)

    it("when nobody is there any more", function()
      local p = start "echo up; exec sleep 100 </dev/null >/dev/null 2>&1"
      assert.equal("up\r\n", p.stdout:read("a", 5))
      assert.is_true(p:is_running())
      assert.equal(p.stdin, p.stdin:write "x") -- it may be opened again
      p:kill "KILL"
      p:wait(5)
      fails("closed", p.stdin:write "x")
    end)

    it("by many lines, none of which is lost", function()
      local p = start "stty -echo -onlcr; echo ready; exec cat"
      read_until(p, "ready\n")
      local lines = {}
      for i = 1, 5000 do
        lines[i] = ("%05d %s\n"):format(i, ("x"):rep(i % 60))
      end
      local text = table.concat(lines)
      local read = moonsand.task(function()
        return p.stdout:read("a", 20)
      end)
      moonsand.run(function()
        moonsand.assert(p.stdin:write(text, 20))
        p.stdin:close()
        assert.equal(text, read:wait())
      end)
      assert.is_true(p:wait(5).ok)
    end)
  end)

  -- Programs close their streams one by one before they end. Closing our end as soon as the last one
  -- was, we hung up on them: some cats in a hundred died of it.
  it("hangs up on nobody who is about to end", function()
    for _ = 1, 5 do
      local p = start "echo up; exec <&- >&- 2>&-; sleep 0.05; exit 3"
      assert.equal("up\r\n", p.stdout:read "a")
      p.stdin:close()
      assert.equal(3, moonsand.assert(p:wait(5)).exit_code)
    end
  end)

  -- ------------------------------------------------------------------ size

  describe(":resize", function()
    it("changes the size and tells the program", function()
      local p = start "trap 'stty size' WINCH; echo up; while :; do :; done"
      read_until(p, "up")
      assert.is_true(p:resize(132, 43))
      read_until(p, "43 132")
      assert.is_true(p:resize(1, 65535))
      read_until(p, "65535 1")
      p:close()
    end)

    it("says no where there is no terminal, or nobody in it", function()
      local p = moonsand.assert(box:start "sleep 100")
      fails("unsupported", p:resize(80, 24))
      p:close()
      p = start "true"
      p:wait()
      fails("gone", p:resize(80, 24))
      p:close()
      blames(function() p:resize(80, 24) end, "the process was closed")
    end)

    it("raises for what is no size", function()
      local p = start "sleep 100"
      blames(function() p:resize() end, "process:resize: cols must be a whole number")
      blames(function() p:resize(80) end, "rows must be a whole number")
      blames(function() p:resize(0, 24) end, "cols must be a whole number")
      blames(function() p:resize("80", 24) end, "cols must be a whole number")
      p:close()
    end)
  end)

  -- ------------------------------------------------------------------ a shell

  describe("box:terminal", function()
    it("is a shell with job control", function()
      local p = moonsand.assert(box:terminal { cmd = { "bash", "--norc", "--noediting" },
        env = { PS1 = "<$?> " } })
      local function type(text, shown)
        moonsand.assert(p.stdin:write(text))
        return read_until(p, shown)
      end
      read_until(p, "<0> ")
      type("sleep 100\n", "sleep 100\r\n")
      support.eventually(20, "no sleep", function()
        return table.concat(running(), " "):find "sleep"
      end)
      type("\26", "<148> ") -- ^Z
      assert.truthy(type("jobs\n", "<0> "):find "Stopped%s+sleep 100")
      type("fg\n", "sleep 100\r\n")
      support.eventually(20, "it does not go on", function() -- it has the terminal before it does
        return moonsand.assert(box:ps "sleep 100")[1].state ~= "stopped"
      end)
      type("\3", "<130> ") -- ^C
      type("bg\n", "<1> ")
      type("sleep 100 &\n", "<0> ")
      assert.truthy(type("jobs\n", "<0> "):find "Running%s+sleep 100")
      type("kill %1; wait\n", "Terminated")
      p.stdin:close()
      assert.equal(0, moonsand.assert(p:wait(5)).exit_code)
    end)

    it("takes the shell that is said, without what makes it run a script", function()
      local function name(opts, from)
        opts.env = { PS1 = "> " }
        local p = moonsand.assert((from or box):terminal(opts))
        moonsand.assert(p.stdin:write "echo =$0=; exit\n")
        local text = p.stdout:read("a", 10)
        p:wait()
        return text:match "=([%w/]+)="
      end
      assert.equal("bash", name {})
      assert.equal("/bin/dash", name { shell = "/bin/dash" })
      assert.equal("bash", name { shell = { "bash", "--norc", "-c" } })
      assert.equal("/bin/dash", name({}, moonsand.assert(box:view { shell = "/bin/dash" })))
      assert.equal("sh", name { cmd = { "sh" } })
    end)

    it("takes the options of start", function()
      local p = moonsand.assert(box:terminal { cmd = "pwd; stty size", cwd = "/tmp", pty = { cols = 7 } })
      assert.equal("/tmp\r\n24 7\r\n", p:wait(5).stdout)
      blames(function() box:terminal { pty = false } end, "pty is true or { cols, rows }")
      blames(function() box:terminal { command = "x" } end, "unknown option 'command'")
      blames(function() box:terminal { cmd = 5 } end, "option 'cmd' must be a string or table")
      box:close()
      blames(function() box:terminal() end, "the sandbox was closed")
    end)
  end)

  -- ------------------------------------------------------------------ abuse

  describe("cannot be used against the host:", function()
    it("a flood that nobody reads is cut, and no memory grows", function()
      local before = support.rss(native.getpid())
      local p = start("exec yes", { max_output = 100000 })
      support.eventually(10, "no flood", function()
        loop.step(0.01)
        return p.program.stdout:received() > 10e6
      end)
      p:kill "KILL"
      local r = moonsand.assert(p:wait(5))
      assert.equal(100000, #r.stdout)
      assert.truthy(r.truncated.stdout.dropped > 9e6)
      if not support.instrumented() then
        assert.is_true(support.rss(native.getpid()) - before < 16 * 1024 * 1024)
      end
    end)

    it("a flood past its limit ends the program, where that was said", function()
      local r = moonsand.assert(box:exec("exec yes", { pty = true, max_output = 10000,
        on_limit = "kill", timeout = 10 }))
      assert.equal("output_limit", r.status)
    end)

    it("a flood behind a slow reader waits", function()
      local p = start "exec yes"
      assert.equal("y\r", p.stdout:read())
      local before, last, same = p.program.stdout:received(), -1, 0 -- till then it was an excerpt
      support.eventually(10, "it never waits", function()
        loop.step(0.01)
        local now = p.program.stdout:received()
        same = now == last and same + 1 or 0
        last = now
        return same > 10
      end)
      assert.is_true(last - before < 512 * 1024, last - before)
      p:close()
    end)

    it("a program that reads nothing cannot make us hang or grow", function()
      local p = start "stty raw -echo; echo up; exec sleep 100"
      read_until(p, "up")
      local _, detail = fails("timeout", p.stdin:write(("x"):rep(10000000), 0.3))
      assert.is_true(detail.written < 1000000, detail.written)
      p.stdin:close() -- no room for its end either
      p:close()
      local q = start("exec sleep 0.2", { stdin = ("y\n"):rep(1000000) })
      assert.is_true(moonsand.assert(q:wait(10)).ok)
    end)

    it("whatever a program does to its terminal, we do not block", function()
      local source = [[
        import fcntl, os, sys, termios, time
        fd = 0
        mode = termios.tcgetattr(fd)
        mode[3] = 0
        mode[6] = [b"\0"] * len(mode[6])
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        termios.tcsetattr(fd, termios.TCSANOW, mode)
        fcntl.ioctl(fd, termios.TIOCEXCL)
        os.write(1, b"up")
        termios.tcflow(fd, termios.TCOOFF)
        termios.tcflow(fd, termios.TCIOFF)
        time.sleep(100)
      ]]
      local p = start { "python3", "-c", (source:gsub("\n        ", "\n"):gsub("^%s+", "")) }
      read_until(p, "up")
      local began = core.now()
      p.stdin:write(("x"):rep(1000000), 0.2)
      p.stdout:chunk(0.1)
      assert.is_true(p:resize(20, 20))
      p.stdin:close()
      assert.is_true(core.now() - began < 20)
      p:close()
      all_ended()
    end)

    helper.native_it("what it holds in the place of the device is not taken for one", function()
      local ways = {
        { "a file", "touch /dev/pts/ptmx" },
        { "a FIFO", "mkfifo /dev/pts/ptmx" },
        { "a link", "ln -s /dev/null /dev/pts/ptmx" },
        { "a link to the real one", "ln -s /dev0/pts/ptmx /dev/pts/ptmx" },
        { "a directory", "mkdir /dev/pts/ptmx" },
        { "nothing", "true" },
      }
      for _, way in ipairs(ways) do
        moonsand.with({}, function(other)
          local moved = moonsand.assert(other:exec(
            "mv /dev /dev0 && mkdir -p /dev/pts && " .. way[2], { stdin = false }))
          assert.is_true(moved.ok, way[1] .. ": " .. moved.stderr)
          local p, message, code, detail = other:start("true", { pty = true, timeout = 5 })
          assert.is_nil(p, way[1])
          assert.equal("unavailable", code, message)
          assert.is_false(detail.started)
          assert.equal("0\n", moonsand.assert(other:exec "echo $?").stdout) -- without one it works
        end)
      end
    end)

    helper.native_it("there are only so many", function()
      local all = {}
      local message, code, detail
      for _ = 1, 200 do
        local p
        p, message, code, detail = box:start({ "sleep", "100" }, { pty = true })
        if not p then
          break
        end
        all[#all + 1] = p
      end
      assert.equal(128, #all)
      fails("no_space", nil, message, code, detail)
      all[1]:close()
      support.eventually(20, "it is not given back", function()
        loop.step(0)
        local p = box:start("true", { pty = true })
        return p and p:wait(5).ok
      end)
      for _, p in ipairs(all) do
        p:close()
      end
    end)

    it("a thousand of them, one after the other, leave nothing", function()
      for i = 1, 1000 do
        local r = moonsand.assert(box:exec({ "true" }, { pty = true }))
        assert.is_true(r.ok, i)
      end
      assert_one_left()
    end)
  end)

  -- ------------------------------------------------------------------ the caller's own

  describe(":interact", function()
    --- Runs Lua code at a terminal: what was shown; whether it is as it was; what lies in its input.
    local function at_terminal(code, ...)
      local words = {}
      for _, step in ipairs { ... } do
        words[#words + 1] = support.quote(step)
      end
      local text, status = support.run(("%s 20 %s -- %s"):format(support.program "typist",
        table.concat(words, " "), support.command("local moonsand = require 'moonsand'\n" .. code)))
      assert.equal(0, status, text)
      local shown, ended, restored, left =
        text:match "^(.*)\n%[status=(%d+) restored=(%a+) left=(%x*)%]\n$"
      assert.is_truthy(shown, text)
      return { shown = shown, status = tonumber(ended), restored = restored, left = left }
    end

    --- Nothing of it is to be seen any more.
    local function assert_restored(r, typed)
      assert.equal("yes", r.restored, r.shown)
      assert.equal(typed or "", r.left)
    end

    local SHELL = [[
      local box = assert(moonsand.create())
      local p = assert(box:terminal { cmd = "sh", env = { PS1 = "<> " } })
      local r, message, code = p:interact()
      print(r and r.exit_code, code, message)
      box:close()
    ]]

    it("shows and types, follows the size, and gives the Result", function()
      local r = at_terminal(SHELL, "wait:<> ", "type:stty size\n", "wait:25 90",
        "size:100x31", "type:until stty size | grep '^31 1'; do sleep 0.1; done\n", "wait:31 100",
        "type:exit 4\n")
      assert.truthy(r.shown:find "4\tnil\tnil", r.shown)
      assert_restored(r)
    end)

    it("gives keys to the program and not to us", function()
      local r = at_terminal(SHELL, "wait:<> ",
        "type:sh -c 'echo be\"g\"un; exec sleep 100'\n", "wait:begun\r\n", "type:\3", "wait:<> ",
        "type:\28\26\19\17", "type:echo a$((1+1))b\n", "wait:a2b", "wait:<> ", "type:\4")
      assert.truthy(r.shown:find "\tnil\tnil", r.shown)
      assert_restored(r)
    end)

    it("runs full-screen programs", function()
      local r = at_terminal([[
        local box = assert(moonsand.create())
        assert(box.files:write("/tmp/f", "one\ntwo\n"))
        local p = assert(box:start({ "vi", "/tmp/f" }, { pty = true }))
        print("=" .. assert(p:interact()).exit_code .. "=")
        io.write(box.files:read "/tmp/f")
      ]], "wait:two", "type:Gothree\27", "wait:three", "type::wq\r")
      assert.truthy(r.shown:find "=0=\r\none\r\ntwo\r\nthree\r\n", r.shown)
      assert_restored(r)
    end)

    -- How it may end -> what is done at the terminal, and what is shown at last.
    local ends = {
      { "the program is killed", [[
        local p = assert(box:terminal { cmd = "echo up; kill -9 $$" })
        print(p:interact().signal)]], { "wait:KILL" } },
      { "its time is over", [[
        local p = assert(box:terminal { cmd = "echo up; sleep 100", timeout = 2 })
        print(p:interact().status)]], { "wait:timed_out" } },
      { "the wait's time is over, and the program goes on", [[
        local p = assert(box:terminal { cmd = "echo up; sleep 100" })
        print(select(3, p:interact(0.2)), p:is_running())]], { "wait:timeout\ttrue" } },
      { "it is cancelled", [[
        local token = moonsand.token()
        local p = assert(box:terminal { cmd = "echo up; sleep 100" })
        moonsand.run(function()
          moonsand.task(function() moonsand.sleep(0.2); token:cancel() end)
          print(select(3, p:interact { cancel = token }))
        end)]], { "wait:cancelled" } },
      { "its task is cancelled", [[
        local p = assert(box:terminal { cmd = "echo up; sleep 100" })
        moonsand.run(function()
          local task = moonsand.task(function() return p:interact() end)
          moonsand.sleep(0.2)
          task:cancel()
          print(select(3, task:wait()))
        end)]], { "wait:cancelled" } },
      { "the sandbox ends", [[
        local p = assert(box:terminal { cmd = "echo up; sleep 100" })
        moonsand.run(function()
          moonsand.task(function() moonsand.sleep(0.2); box:close() end)
          print(select(3, p:interact()))
        end)]], { "wait:closed" } },
      { "another task raises", [[
        local p = assert(box:terminal { cmd = "echo up; sleep 100" })
        print(pcall(moonsand.run, function()
          moonsand.task(function() moonsand.sleep(0.2); box:close(); error "oh" end)
          p:interact()
          error "never mind"
        end))]], { "wait:false" } },
      { "the loop is left by an error", [[
        local p = assert(box:terminal { cmd = "echo up; sleep 100" })
        local take = p.stdout.try
        p.stdout.try = function(...)
          local data, why = take(...)
          if data then error "broken" end
          return data, why
        end
        print(pcall(p.interact, p))]], { "wait:broken" } },
      { "the program closed its terminal", [[
        local p = assert(box:terminal { cmd = "echo up; exec sleep 0.3 <&- >&- 2>&-" })
        print(p:interact().exit_code == 0)]], { "wait:true" } },
    }
    for _, row in ipairs(ends) do
      it("restores the terminal when " .. row[1], function()
        local r = at_terminal("local box = assert(moonsand.create())\n" .. row[2] .. "\nbox:close()",
          unpack(row[3]))
        assert.equal(0, r.status, r.shown)
        assert_restored(r)
      end)
    end

    it("ends when the window is closed", function()
      local log = support.directory() .. "/hangup"
      at_terminal(([[
        require("support.init").native().ignore(1, true) -- HUP
        local box = assert(moonsand.create())
        local p = assert(box:terminal { cmd = "echo up; exec sleep 100" })
        local r, message, code = p:interact()
        local file = io.open(%q, "w")
        file:write(tostring(r), " ", code, " ", tostring(p:is_running()))
        file:close()
      ]]):format(log), "wait:up", "hangup:")
      assert.equal("nil closed true", support.read(log))
    end)

    it("lets no answer that a program asked for be taken for something typed", function()
      local r = at_terminal([[
        local box = assert(moonsand.create())
        local p = assert(box:terminal { cmd = "printf 'up\\033[6n'" })
        local loop = require "moonsand.loop"
        local wait, over = loop.wait, false
        function loop.wait(limits, ...) -- the wait for answers lasts until there is one
          if limits.shield and limits.deadline and not over then
            over, limits.deadline = true, limits.deadline + 20
            io.write "over"
            io.flush()
          end
          return wait(limits, ...)
        end
        p:interact()
      ]], "wait:\27[6n", "wait:over", "type:\27[1;1R")
      assert_restored(r)
    end)

    it("lets a program type nothing into it", function()
      local r = at_terminal([[
        local support = require "support.init"
        local box = assert(moonsand.create())
        local path = support.put(box, support.probe "tty")
        local p = assert(box:start({ path }, { pty = true }))
        print("ok", assert(p:interact()).ok)
      ]], "wait:TIOCSETD")
      for name, word in pairs { TIOCSTI = "EPERM", ["TIOCSTI with high bits"] = "EPERM",
        TIOCLINUX = "EPERM", TIOCCONS = "EPERM", TIOCSETD = "EPERM", ["open /dev/tty"] = "OK" } do
        assert.truthy(r.shown:find(name .. ": " .. word, 1, true), name .. "\n" .. r.shown)
      end
      assert.truthy(r.shown:find "ok\ttrue", r.shown)
      assert_restored(r)
    end)

    it("passes a flood on, and the keys meanwhile", function()
      local r = at_terminal([[
        local box = assert(moonsand.create())
        local p = assert(box:terminal { cmd = "exec yes" })
        print(p:interact().signal)
      ]], "wait:y\r\ny\r\n", "type:\3")
      assert.truthy(r.shown:find "INT\r\n$", r.shown:sub(-100))
      assert_restored(r)
    end)

    it("is unavailable without a terminal, and in the background", function()
      local text = support.child([[
        local moonsand = require "moonsand"
        local box = assert(moonsand.create())
        local p = assert(box:terminal { cmd = "sleep 100" })
        local r, message, code, detail = p:interact()
        print(r, code, detail.cause, detail.provider)
        box:close()
      ]], "setsid -w")
      assert.equal("nil\tunavailable\tNo such device or address\tlocal\n", text)
      local r = at_terminal([[
        local support = require "support.init"
        local command = support.command [=[
          local moonsand = require "moonsand"
          local box = assert(moonsand.create())
          local p = assert(box:terminal { cmd = "sleep 100" })
          local r, message, code, detail = p:interact()
          print(code, detail.cause)
          box:close()
        ]=]
        os.execute("bash -c " .. support.quote("set -m; " .. command .. " & wait"))
      ]], "wait:unavailable\tthis process is in the background")
      assert_restored(r)
    end)

    it("needs a program with a terminal whose streams are still there", function()
      local p = moonsand.assert(box:start "sleep 100")
      fails("unsupported", p:interact())
      p:close()
      blames(function() p:interact() end, "the process was closed")
      p = start("sleep 100", { on_stdout = function() end })
      blames(function() p:interact() end, "stdout is closed, or is somebody else's")
      p:close()
      p = start "sleep 100"
      p.stdin:close()
      blames(function() p:interact() end, "stdin is closed, or is somebody else's")
      blames(function() p:interact { wait = 1 } end, "unknown option 'wait'")
      p:close()
    end)
  end)
end)
