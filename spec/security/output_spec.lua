-- What programs print is the attacker's: bytes that look like something else, that never end, that come
-- late. They must be told as they are, kept within their limits, and hold nobody up.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local KIB, MIB = 1024, 1024 * 1024

describe("output", function()
  local box

  helper.deadline(40)
  helper.no_leaks(function()
    box:close()
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  local function exec(command, opts)
    return moonsand.assert(box:exec(command, opts))
  end

  --- printf in a shell, of any bytes.
  local function say(bytes)
    return "printf '" .. bytes:gsub(".", function(c)
      return ("\\%03o"):format(c:byte())
    end) .. "'"
  end

  it("of any bytes is what was printed: NULs, escapes, half characters, other programs' words", function()
    local all = {}
    for i = 0, 255 do
      all[i + 1] = string.char(i)
    end
    for _, bytes in ipairs {
      table.concat(all), "\27]0;title\7\27[2J\27[6n\27P+q\27\\", "\255\254\0\0", "\226\130", "\r\n\r", "\0\0\0",
      "timed out\nexit 0\n", "\4\0\0\0" .. ("\0"):rep(60),
    } do
      local r = exec(say(bytes) .. "; " .. say(bytes) .. " >&2; exit 9")
      assert.equal(bytes, r.stdout)
      assert.equal(bytes, r.stderr)
      assert.equal(9, r.exit_code)
      assert.equal("exited", r.status)
    end
  end)

  it("cut in the middle of a character comes together again", function()
    local pieces = {}
    local r = exec([[for b in 342 202 254 360 237 222 251; do printf "\\$b"; sleep 0.01; done]], {
      on_stdout = function(chunk)
        pieces[#pieces + 1] = chunk
      end,
    })
    assert.equal("\226\130\172\240\159\146\169", r.stdout)
    assert.equal(r.stdout, table.concat(pieces))
  end)

  it("does not steer the terminal of who reads messages, names of processes or lists", function()
    local evil = "\27]0;owned\7\27[2J\194\155\194\157\r\8\127"
    local terminal = require "moonsand.cli.terminal"
    local text = terminal.harmless(evil .. "\n")
    assert.is_nil(text:sub(1, -2):find "[%c\127]")
    assert.is_nil(text:find "\194[\128-\159]")
    -- where it is told again by the library, it is told in one line
    local r = exec({ "sh", "-c", say(evil) .. " >&2; exit 1" })
    assert.is_nil(tostring(r):find "%c")
    local p = moonsand.assert(box:start({ "sh", "-c", "exec -a '\27[2J' sleep 1000 || sleep 1000" }))
    assert.is_nil(tostring(p):find "\27")
    p:close()
  end)

  it("without end, on both streams, with and without lines, costs what its limit says", function()
    local text, status = support.child [[
      local moonsand = require "moonsand"
      local box = assert(moonsand.create())
      for _, command in ipairs { "yes", "cat /dev/zero", "yes >&2", "cat /dev/zero >&2 & yes",
        "while :; do printf '\\033[2J\\000'; done" } do
        local r = assert(box:exec(command, { timeout = 0.4, max_output = "64K" }))
        assert(r.timed_out and #r.stdout <= 65536 and #r.stderr <= 65536, tostring(r))
        r = assert(box:exec(command, { timeout = 20, max_output = "64K", on_limit = "kill" }))
        assert(r.status == "output_limit", tostring(r))
        local lines, longest = 0, 0
        r = assert(box:exec(command, { timeout = 0.2, max_output = 0, on_line = function(line)
          lines, longest = lines + 1, math.max(longest, #line)
        end }))
        assert(longest <= 2 * 1024 * 1024)
      end
      for line in io.lines "/proc/self/status" do
        local peak = line:match "^VmHWM:%s*(%d+)"
        if peak then io.write(peak) end
      end]]
    assert.equal(0, status, text)
    assert.is_true(support.instrumented() or tonumber(text) < 80 * KIB, text)
  end)

  it("that nobody reads stops its program, not the host and not the neighbours", function()
    local loud = {}
    for i = 1, 10 do
      loud[i] = moonsand.assert(box:start("yes", { max_output = 0 }))
    end
    local before = support.rss "self"
    for _ = 1, 20 do
      assert.equal("fine\n", exec("echo fine", { timeout = 20 }).stdout)
    end
    assert.is_true(support.instrumented() or support.rss "self" < before + 64 * MIB)
    for _, p in ipairs(loud) do
      p:close()
    end
  end)

  it("of a grandchild after the end is no part of it, nor of another program's", function()
    local first = exec([[mkfifo /tmp/go
      (read x </tmp/go; echo late; echo late >&2; echo late >/tmp/done) & echo first; exit 3]],
      { leave = true })
    assert.equal("first\n", first.stdout)
    assert.equal(3, first.exit_code)
    assert.is_true(first.pipes_held)
    for i = 1, 30 do
      if i == 5 then
        exec("echo >/tmp/go", { timeout = 20 })
      end
      local r = exec "echo second"
      assert.equal("second\n", r.stdout)
      assert.equal("", r.stderr)
    end
    support.eventually(10, "the grandchild does not end", function()
      return #support.descendants((support.agent(box))) == 0
    end)
    assert.equal("first\n", first.stdout)
  end)

  it("that is closed, or handed on, ends no call early and none late", function()
    local begun = core.now()
    local r = exec("exec >&- 2>&- <&-; sleep 0.2; exit 4", { timeout = 20 })
    assert.equal(4, r.exit_code)
    assert.is_true(r.duration >= 0.2)
    -- its own end of the pipe, opened again for reading, and passed to others through a socket
    r = exec("cat <&1 >/dev/null & exec 5<>/proc/self/fd/1; echo in; sleep 0.05; exit 5", { timeout = 20 })
    assert.equal(5, r.exit_code)
    assert.is_true(core.now() - begun < 15)
    assert.equal("fine\n", exec("echo fine").stdout)
  end)

  it("does not wait for flags that a program sets on its pipes", function()
    if not exec("command -v python3").ok then
      return -- fcntl has no shell command; process_spec has the same of the host's end
    end
    local r = exec({ "python3", "-c", [[
import fcntl, os, sys
for fd in 0, 1, 2:
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
    try: fcntl.fcntl(fd, 1031, 4096)
    except OSError: pass
n = 0
while n < 3000000:
    try: n += os.write(1, b"x" * 65536)
    except BlockingIOError: pass
os.write(2, b"end")]] }, { timeout = 30 })
    assert.is_true(r.ok, tostring(r))
    assert.is_true(#r.stdout >= 3000000)
    assert.equal("end", r.stderr)
  end)
end)
