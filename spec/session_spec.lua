--- `box:session`: one shell for many commands. Each case that could confuse the framing has a test:
--- what a command says, closes, redirects, traps, leaves unfinished, or does to its shell.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local now = require("moonsand.core").now

local function code_of(value, message, code, detail)
  assert.is_nil(value)
  assert.is_string(message)
  assert.equal(code, detail.code)
  return code
end

for _, shell in ipairs { "sh", "bash" } do
  describe("moonsand.session in " .. shell, function()
    local box, session

    helper.deadline(60)
    helper.no_leaks(function()
      session:close()
      box:close()
    end)

    before_each(function()
      box = assert(moonsand.create())
      session = assert(box:session { shell = shell })
    end)

    local function run(command, opts)
      return assert(session:exec(command, opts))
    end

    --- The shell is as it was.
    local function alive()
      assert.is_true(session.alive)
      local r = run "echo out; echo err >&2; (exit 4)"
      assert.equal("out\n", r.stdout)
      assert.equal("err\n", r.stderr)
      assert.equal(4, r.exit_code)
    end

    it("keeps directory, variables, functions, options, aliases, masks", function()
      run [[cd /tmp; x='a  b'; export y=1; f() { echo "f:$1"; }; set -f; umask 027
        alias two='echo 2']]
      assert.equal("/tmp a  b 1 *\nf:x\n0027\n2\n",
        run("echo \"$PWD $x $y\" *; f x; umask; two").stdout)
      assert.equal("/tmp", session:cwd())
      assert.equal("1", session:getenv "y")
      assert.is_nil(session:getenv "x")
      assert.equal("/workspace", session:getenv().HOME)
    end)

    it("keeps streams apart and every byte", function()
      local r = run [[printf 'a\000b\r\n\n'; printf 'e\377' >&2]]
      assert.equal("a\0b\r\n\n", r.stdout)
      assert.equal("e\255", r.stderr)
      r = run("head -c 3000000 /dev/zero; printf x; printf y >&2")
      assert.equal(("\0"):rep(3000000) .. "x", r.stdout)
      assert.equal("y", r.stderr)
      assert.equal("", run("").stdout)
      assert.equal(0, run("# nothing").exit_code)
      assert.equal("it's\n", run("echo \"it's\"").stdout)
      assert.equal("a b\n*|\n", run({ "printf", "%s\n", "a b", "*|" }).stdout)
      alive()
    end)

    it("answers every status", function()
      for _, status in ipairs { 0, 1, 2, 126, 127, 128, 255 } do
        assert.equal(status, run(("(exit %d)"):format(status)).exit_code)
      end
      assert.equal(127, run("nope-nothing").exit_code)
      assert.equal(137, run("sh -c 'kill -9 $$'").exit_code)
    end)

    it("survives what cannot be parsed", function()
      for _, command in ipairs { "echo 'open", 'echo "open', "foo(", "if true", "done", "echo $(",
        "cat <<END\ntext", "{", "case x in", "echo `" , "echo \\" } do
        local r = run(command, { timeout = 20 })
        assert.is_false(r.timed_out, command)
        alive()
      end
    end)

    it("survives what ends other shells", function()
      for _, command in ipairs { "set -u; echo $nope; set +u", "echo ${nope?gone}",
        "readonly r=1; r=2", "export 1x", ". /nope/nothing", "shift 9", "cd /nope",
        "exec 5</nope", "exec 2>&-; echo x >&2", "exec >&-; echo x" } do
        local r = run(command, { timeout = 20 })
        assert.is_false(r.timed_out, command)
        run("set +u", { timeout = 20 })
        alive()
      end
    end)

    it("gives each command its own streams again", function()
      assert.equal("", run("exec >/tmp/out 2>/tmp/err; echo in; echo e >&2").stdout)
      assert.equal("in\ne\n", run("cat /tmp/out /tmp/err").stdout)
      run "exec 7>/tmp/seven 8>/tmp/eight 9</dev/null"
      alive()
      run "exec 7>&- 8>&- 9<&- 0<&-"
      alive()
    end)

    it("shows no command the pipes of the session", function()
      local own = shell == "bash" and " 9" or "" -- its own text
      assert.equal("0 1 2" .. own .. "\n", run("echo $(cd /proc/self/fd; "
        .. "for f in 0 1 2 7 8 9; do test -e $f && echo $f; done)").stdout)
    end)

    it("is not fooled by what looks like its marks", function()
      local r = run [[set; env; echo "$_"; echo '(' ')' '0 .'
        printf '%032d(' 0; printf '%032d)0 .' 0 >&2]]
      assert.truthy(r.stdout:find(("0"):rep(32) .. "(", 1, true))
      assert.equal(("0"):rep(32) .. ")0 .", r.stderr)
      -- what was sent before is known to nobody: neither variables nor words have a token
      assert.is_nil(r.stdout:find(("%x"):rep(31) .. "[1-9a-f]"))
      alive()
    end)

    it("gives input: none, or a string", function()
      assert.equal("", run("cat").stdout)
      assert.equal(1, run("read x").exit_code)
      local data = ("\0\n'$x\255"):rep(50000)
      assert.equal(data, run("cat", { stdin = data }).stdout)
      assert.equal("", run("ls -A /tmp").stdout)
      assert.has_error(function()
        session:exec("cat", { stdin = true })
      end)
    end)

    it("does not wait for what is in the background, and ends it with itself", function()
      local before = now()
      local r = run "sleep 61 & echo $!"
      assert.is_true(now() - before < 30)
      assert.equal("", r.stderr)
      local pid = r.stdout:match "%d+"
      assert.is_true(run("kill -0 " .. pid).ok)
      assert.equal("", run("sleep 0.05 & wait $!").stderr)
      session:close()
      support.eventually(20, "it is gone", function()
        return not assert(box:exec("test -d /proc/" .. pid)).ok
      end)
    end)

    it("traces only the command", function()
      local r = run "set -x; echo a; set +x"
      assert.equal("a\n", r.stdout)
      assert.is_truthy(r.stderr:find("+ echo a\n", 1, true))
      assert.is_nil(r.stderr:find("printf", 1, true))
      r = run "set -v; echo b; set +v"
      assert.equal("b\n", r.stdout)
      alive()
    end)

    it("goes on beside what floods in the background", function()
      run("yes & echo on", { max_output = 1000 })
      for status = 1, 5 do
        local r = run(("echo x; (exit %d)"):format(status), { max_output = "1M" })
        assert.equal(status, r.exit_code)
      end
      local r = run("while :; do :; done", { max_output = "1M", timeout = 0.2 })
      assert.is_true(r.timed_out)
      assert.equal(0, run("kill $! && ! wait $!", { max_output = "1M" }).exit_code)
      alive()
    end)

    it("leaves others their turn between slow callbacks", function()
      local token, pieces, row, longest = moonsand.token(), 0, 0, 0
      moonsand.run(function()
        local others = moonsand.task(function()
          while true do
            moonsand.sleep(0)
            row = 0
          end
        end)
        local value, message, code, detail = session:exec("yes", {
          cancel = token,
          max_output = 0,
          on_stdout = function()
            local over = now() + 0.006
            repeat until now() > over
            pieces, row = pieces + 1, row + 1
            longest = math.max(longest, row)
            if pieces == 40 then
              token:cancel()
            end
          end,
        })
        assert.equal("cancelled", code_of(value, message, code, detail))
        others:cancel()
      end)
      assert.is_true(longest <= 3, longest .. " pieces in a row")
      alive()
    end)

    it("ends a command at its timeout and keeps the shell", function()
      run "kept=yes; sleep 62 & job=$!"
      for _, command in ipairs { "sleep 60", "while :; do :; done", "while :; do sleep 0.05; done",
        "(trap '' TERM INT; sleep 60; sleep 60)", "sleep 60 | cat; sleep 60",
        "(sleep 60 &); wait; sleep 60" } do
        local r
        repeat
          r = run("echo on; : >/tmp/on; " .. command, { timeout = 1 })
        until box.files:remove "/tmp/on" -- else it had not begun in time
        assert.is_true(r.timed_out, command)
        assert.equal("timed_out", r.status)
        assert.is_nil(r.exit_code)
        assert.equal("on\n", r.stdout)
        assert.is_true(session.alive, command)
        assert.equal("yes\n", run("echo $kept; kill -0 $job").stdout)
        alive()
      end
      assert.equal("1\n", run("ps ax -o args= | grep -c '^sleep'").stdout)
    end)

    -- What was begun after all had been looked for was left.
    it("ends what answers its interrupt with more programs", function()
      for _, command in ipairs { "(trap 'sleep 61' INT; sleep 60)",
        "(trap '' INT; sleep 60; sleep 61)",
        "sh -c 'trap \"sleep 61 & sleep 61\" INT; sleep 60'; echo on" } do
        assert.is_true(run(command, { timeout = 1 }).timed_out, command)
        assert.equal("", run("ps ax -o args= | grep '^sleep'").stdout, command)
        alive()
      end
    end)

    it("ends a program of which only a second thread is left", function()
      local r = run("python3 -c " .. support.quote [[
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("on", flush=True)
ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)]], { timeout = 4 })
      assert.is_true(r.timed_out)
      assert.equal("on\n", r.stdout)
      assert.is_true(session.alive)
      assert.equal("0\n", run("cat /proc/[0-9]*/comm | grep -c python").stdout)
      alive()
    end)

    it("sends TERM first when there is a grace", function()
      local r = run("sh -c 'trap \"echo bye; exit 3\" TERM; echo on; while :; do :; done'",
        { timeout = 3, grace = 20 })
      assert.is_true(r.timed_out)
      assert.equal("on\nbye\n", r.stdout)
      alive()
    end)

    it("ends with a command that cannot be ended without it", function()
      local r = run("trap '' INT; echo on; while :; do :; done", { timeout = 3 })
      assert.is_true(r.timed_out)
      assert.equal("on\n", r.stdout)
      assert.is_false(session.alive)
      assert.equal("closed", code_of(session:exec "echo"))
    end)

    it("ends a cancelled command, with what it said", function()
      local token, value, message, code, detail = moonsand.token(), nil, nil, nil, nil
      moonsand.run(function()
        value, message, code, detail = session:exec("echo on; sleep 60", {
          cancel = token,
          on_line = function()
            token:cancel "enough"
          end,
        })
      end)
      assert.equal("cancelled", code_of(value, message, code, detail))
      assert.equal("on\n", detail.result.stdout)
      alive()
    end)

    it("ends a command whose task was cancelled", function()
      moonsand.run(function()
        local task = moonsand.task(function()
          return session:exec "sleep 60"
        end)
        moonsand.sleep(0.1)
        task:cancel()
        local ok, value = pcall(task.wait, task)
        assert.is_true(not ok or value == nil)
      end)
      alive()
    end)

    it("ends with exit, exec, return code and all", function()
      local r = run "echo out; trap 'echo bye' EXIT; exit 5"
      assert.equal(5, r.exit_code)
      -- where dash's traps run at the end, its streams are the session's own again
      assert.equal(shell == "bash" and "out\nbye\n" or "out\n", r.stdout)
      assert.equal("", r.stderr)
      assert.is_false(session.alive)
      local value, message, code, detail = session:exec "echo"
      assert.equal("closed", code_of(value, message, code, detail))
      assert.is_false(detail.started)
      session = assert(box:session { shell = shell })
      r = run "exec sh -c 'echo other; exit 6'"
      assert.equal(6, r.exit_code)
      assert.equal("other\n", r.stdout)
      session = assert(box:session { shell = shell })
      r = run "set -e; echo on; false; echo no"
      assert.equal(1, r.exit_code)
      assert.equal("on\n", r.stdout)
      assert.is_false(session.alive)
      session = assert(box:session { shell = shell })
      assert.equal(44, run("f() { return 300; }; f").exit_code) -- dash says 300
    end)

    it("says which signal killed its shell", function()
      local r = run "echo out; kill -9 $$; sleep 60"
      assert.equal("signaled", r.status)
      assert.equal("KILL", r.signal)
      assert.equal("out\n", r.stdout)
      assert.is_false(session.alive)
    end)

    it("takes calls one after the other", function()
      moonsand.run(function()
        run "n=0"
        assert(moonsand.all({ 1, 2, 3, 4, 5 }, function(i)
          return session:exec(("n=$((n + 1)); sleep 0.02; echo %d $n"):format(i))
        end))
        assert.equal("5\n", run("echo $n").stdout)
      end)
    end)

    it("answers who waits when it is closed", function()
      moonsand.run(function()
        local value, message, code, detail
        local task = moonsand.task(function()
          value, message, code, detail = session:exec "sleep 60"
        end)
        local second = moonsand.task(function()
          local a, b, c, d = session:exec "echo"
          assert.equal("closed", code_of(a, b, c, d))
        end)
        moonsand.sleep(0.1)
        session:close()
        task:wait(20)
        second:wait(20)
        local said = value and value.status or code_of(value, message, code, detail)
        assert.is_true(said == "closed" or said == "signaled", said)
      end)
      assert.has_error(function()
        session:exec "echo"
      end)
      session:close()
    end)

    it("tells callbacks, checks, and keeps what may be kept", function()
      local lines = {}
      run("echo a; echo b >&2; echo c", {
        on_line = function(line, stream)
          lines[#lines + 1] = stream .. line
        end,
      })
      table.sort(lines)
      assert.same({ "stderrb", "stdouta", "stdoutc" }, lines)
      local value, message, code, detail = session:exec("echo why >&2; exit_code=3; (exit 3)",
        { check = true })
      assert.equal("exit", code_of(value, message, code, detail))
      assert.truthy(message:find("why", 1, true))
      local r = run("head -c 100000 /dev/zero", { max_output = 1000 })
      assert.equal(1000, #r.stdout)
      assert.equal(100000, r.stdout_bytes)
      assert.has_error(function()
        session:exec("sleep 0.1; echo x", {
          on_stdout = function()
            error "mine"
          end,
        })
      end)
      alive()
    end)

    it("begins as it is told", function()
      session:close()
      local view = assert(box:view { env = { V = "view" }, timeout = 20 })
      session = assert(view:session { shell = { shell, "-c" }, cwd = "/tmp", env = { A = "1" },
        umask = "077" })
      assert.equal("/tmp view 1\n0077\n", run("echo $PWD $V $A; umask").stdout)
    end)
  end)
end

--- A shell may be made to lie: its builtins may be functions.
describe("moonsand.session, whose shell was replaced,", function()
  local box

  helper.deadline(60)
  helper.no_leaks(function()
    box:close()
  end)
  before_each(function()
    box = assert(moonsand.create())
  end)

  it("ends with a shell whose answer does not end", function()
    local session = assert(box:session { shell = "bash" })
    local ticks, over = 0, false
    moonsand.task(function()
      while not over do
        ticks = ticks + 1
        moonsand.sleep(0.001)
      end
    end)
    local r, _, code = session:exec([[command() {
      builtin "$@"
      case "$2" in *")"*) builtin printf %s ' 0 '; cat /dev/zero ;; esac
    }]], { timeout = 30, max_output = 1000 })
    over = true
    assert.is_nil(r)
    assert.equal("protocol", code)
    assert.is_true(ticks > 0)
    assert.is_false(session.alive)
    session:close()
  end)

  it("takes no status that is none", function()
    for _, status in ipairs { ("9"):rep(400), "-1", "0x10", "1e3", "" } do
      local session = assert(box:session())
      local r, _, code = session:exec(([[
        command() {
          case $2 in
            "%%s)%%s\n") printf "$2" "$3" "%s" ;;
            *) "$@" ;;
          esac
        }
      ]]):format(status), { timeout = 20 })
      assert.is_nil(r)
      assert.equal("protocol", code)
      assert.is_false(session.alive)
      session:close()
    end
  end)

  it("stops at the timeout a command that never stops writing", function()
    local session = assert(box:session { shell = "bash" })
    local began = now()
    local r = assert(session:exec("cat /dev/zero", { timeout = 0.3, max_output = 1000 }))
    assert.is_true(r.timed_out)
    assert.is_true(now() - began < 20)
    local seen, ticks = 0, 0
    moonsand.task(function()
      while seen >= 0 do
        ticks = ticks + 1
        moonsand.sleep(0.01)
      end
    end)
    r = assert(session:exec("cat /dev/zero", { timeout = 3, max_output = 1000,
      on_stdout = function(data)
        seen = seen + #data
      end }))
    assert.is_true(r.timed_out)
    assert.is_true(seen > 1000 and ticks > 1)
    seen = -1
    assert.equal("still\n", assert(session:exec "echo still").stdout)
    session:close()
  end)

  it("is not opened by a shell that says anything but hello", function()
    assert(box.files:write("/tmp/sh", "#!/bin/sh\nexec cat /dev/zero\n", { mode = "755" }))
    local began = now()
    local session, message, code = box:session { shell = "/tmp/sh" }
    assert.is_nil(session)
    assert.equal("protocol", code, message)
    assert.is_true(now() - began < 20)
  end)
end)

describe("moonsand.session", function()
  it("says what shell is not there", function()
    local box = assert(moonsand.create())
    assert.equal("not_found", code_of(box:session { shell = "/nope/shell" }))
    local value, message, code, detail = box:session { shell = "true", timeout = 20 }
    assert.equal("unavailable", code_of(value, message, code, detail))
    assert.has_error(function()
      box:session { shel = "sh" }
    end)
    box:close()
  end)
end)

describe("what a session's pipe says", function()
  local frame = require "moonsand.session.frame"

  it("is handed on at once, but for what may be the beginning of the end", function()
    local said = "x abab( aba abab) ab" -- before, and what is no token
    for size = 1, 12 do
      local reader, got, wire = frame.reader "abab-", {}, "prompt abab-(" .. said .. "abab-)7\n12\ny\n13\ny\n4yabab-."
      for i = 1, #wire, size do
        reader:feed(wire:sub(i, i + size - 1), function(data)
          got[#got + 1] = data
        end)
      end
      assert.equal(said, table.concat(got))
      local status, jobs = reader:status()
      assert.equal(7, status)
      assert.same({ "12", "13" }, jobs)
    end
    for _, answer in ipairs { "x", "7x\n", "\n", ("7"):rep(30), ("7"):rep(400) .. "\n",
      "7\n" .. ("1\n"):rep(20000), "7\n" .. ("\0"):rep(9000000) } do
      local reader = frame.reader "abab-"
      reader:feed("abab-(abab-)" .. answer, print)
      reader:feed("\nabab-.", print)
      local status, never = reader:status()
      assert.is_nil(status)
      assert.is_true(never)
    end
    local reader, got = frame.reader "abab-", nil
    reader:feed("abab-(on\nabab", function(data)
      got = data
    end)
    assert.equal("on\n", got)
    reader:finish(function(data)
      got = data
    end)
    assert.equal("abab", got)
  end)

  it("is who the shell is only with numbers that a machine has", function()
    assert.same({ 12, 34.56, true }, { frame.who("$ abab(12 34.56 bash)", "abab") })
    assert.same({ 12, 34, false }, { frame.who("abab(12 34 )", "abab") })
    local many = ("9"):rep(400)
    for _, said in ipairs { "", "abab(12 34.56 ", "abab(12 3.4.5 )", "abab(12  )",
      ("abab(%s 34.56 )"):format(many), ("abab(12 %s.56 )"):format(many),
      ("abab(12 34.%s )"):format(many) } do
      assert.is_nil((frame.who(said, "abab")))
    end
  end)
end)
