-- files:grep, as the agent does it: a worker with Lua's patterns and a budget.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

describe("moonsand.files:grep", function()
  local box

  helper.deadline(60)
  helper.no_leaks(function()
    box:close()
    box = nil
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  local function grep(pattern, opts)
    return moonsand.assert(box.files:grep(pattern, opts))
  end

  local function sh(command)
    local r = moonsand.assert(box:exec(command))
    assert.equal("", r.stderr)
    return r.stdout
  end

  it("finds lines below the working directory, sorted, and not what is no text", function()
    sh [[mkdir -p b/c a; printf 'one\ntwo\n\nthree two' >b/c/f; printf 'two\n' >a/x; printf 'two\0' >a/bin
      ln -s /workspace/a b/link; mkfifo a/fifo; : >empty; truncate -s 1G hole]]
    assert.same({
      { path = "/workspace/a/x", line = 1, column = 1, text = "two" },
      { path = "/workspace/b/c/f", line = 2, column = 1, text = "two" },
      { path = "/workspace/b/c/f", line = 4, column = 7, text = "three two" },
    }, grep "two")
    assert.same({ { path = "/workspace/b/c/f", line = 3, column = 1, text = "" } }, grep "^$")
    assert.same({ { path = "/workspace/a/x", line = 1, column = 1, text = "two" } },
      grep("two", { path = "a/x" }))
    assert.equal(1, #grep("o", { path = "b/link" }))
    assert.same({}, grep("four"))
  end)

  it("takes a text as it is with plain, and any bytes", function()
    moonsand.assert(box.files:write("f", "a.b\naxb\n%d+\n\255\254 x\r\n"))
    assert.equal(1, #grep("a.b", { plain = true }))
    assert.equal(2, #grep "a.b")
    assert.equal(3, grep("%d+", { plain = true })[1].line)
    assert.equal("\255\254 x\r", grep("\254")[1].text)
  end)

  it("matches as string.find does, wherever that does not raise", function()
    local subjects = {
      "", "a", "hello world", "THE (quick) fox", "x = 12, y=-3.5e7", "  tabs\tand\rmore  ", "[]]^-%a$",
      "aaaaaaaaab", "((nested) (pairs)) (", "\1\127\128\255", "key=value key=value", "%", "a-b-c", "f(f(x))",
    }
    local patterns = {
      "", "a", ".", "^a", "b$", "^$", "a*", "a+b", "a-b", "a?b", "%a+", "%d+", "[%d.]+e%d", "%s+$", "^%s*",
      "[]]", "[^]]", "[%]%[]", "[a-c]", "[a-]", "[^%w%s]", "(%w+)=(%w+)", "(%w+)=%w+ %1", "()l()", "%b()",
      "%f[%w]%w+", "%f[%W]", "[%u][%u]", "%x%X", "%c", "%g", "%p+", "%%", "$", "a$b", "^^", "%-", "(a)(a)(a)%2%1",
      "((h)e)", "[\128-\255]", "%S+%s%S+", "(.)%1", "(.-)%s", "x*$", "%u%l", "[^a]*", "fox?", "()", "[%a-z]",
      "[", "[]", "[^", "%", "(", ")", "%b", "%bx", "%f", "%1", "(()", "a(", "[%", "[a%", "(a)%2", "a%",
    }
    local rows = {}
    for i, subject in ipairs(subjects) do
      rows[i] = { ("s%02d"):format(i), subject }
      moonsand.assert(box.files:write(rows[i][1], subject .. "\n"))
    end
    for _, pattern in ipairs(patterns) do
      local expected, fine = {}, pcall(string.find, "", pattern)
      for _, row in ipairs(rows) do
        local ok, column = pcall(string.find, row[2], pattern)
        fine = fine and ok
        if ok and column then
          expected[#expected + 1] = row[1] .. " " .. column
        end
      end
      local list, message, code = box.files:grep(pattern)
      if fine then
        local got = {}
        for i, match in ipairs(list or {}) do
          got[i] = match.path:match "[^/]*$" .. " " .. match.column
        end
        assert.same(expected, got, ("%q: %s"):format(pattern, tostring(message)))
      else
        assert.is_nil(list, pattern)
        assert.equal("invalid", code, ("%q: %s"):format(pattern, message))
      end
    end
  end)

  it("counts lines and columns in long lines and files as one would", function()
    sh [[python3 -c '
f = open("long", "w"); f.write("a" * 1500000 + "needle\n" + "b" * 999999 + "needle\n")
for i in range(200000): f.write("line %d\n" % i)
f.write("c" * 1048576 + "\nlast needle")']]
    local found = grep "needle"
    assert.equal(2, #found) -- behind the first MiB of a line nothing is looked at
    assert.same({ 2, 1000000, 4096 }, { found[1].line, found[1].column, #found[1].text })
    assert.same({ 200004, 6, "last needle" }, { found[2].line, found[2].column, found[2].text })
    assert.same({ { path = "/workspace/long", line = 199999 + 3, column = 1, text = "line 199999" } },
      grep "^line 199999$")
  end)

  it("is over soon for patterns that would take for ever", function()
    moonsand.assert(box.files:write("bad", ("a"):rep(20000) .. "\n"))
    for _, pattern in ipairs { ".-.-.-.-.-.-b", "a*a*a*a*a*a*b", "(.-)(.-)(.-)(.-)x", "%b()%b()" .. ("a?"):rep(300) } do
      local list, message, code = box.files:grep(pattern)
      if list then
        assert.same({}, list)
      else
        assert.equal("too_large", code, message)
        assert.truthy(message:find "too long" and message:find "/workspace/bad", message)
      end
    end
  end)

  it("has limits: of lines, of time; and can be cancelled", function()
    sh "seq 100000 >numbers"
    local none, message, code, detail = box.files:grep("1", { limit = 10 })
    assert.is_nil(none)
    assert.equal("too_large", code, message)
    assert.equal(10, #detail.matches)
    sh "mkfifo fifo; head -c 200000000 /dev/zero | tr '\\0' a >big"
    assert.equal("timeout", select(3, box.files:grep("b", { timeout = 0.001 })))
    none, message, code = box.files:grep("b", { cancel = moonsand.token { timeout = 0.001 } })
    assert.is_nil(none)
    assert.equal("cancelled", code, message)
  end)

  it("tells what it could not read, and what is not there", function()
    sh "echo x >shut; chmod 0 shut; echo x >open"
    local list = grep "x"
    assert.equal(1, #list)
    assert.same({ path = "/workspace/shut", code = "permission_denied" },
      { path = list.skipped[1].path, code = list.skipped[1].code })
    for path, expected in pairs { nope = "not_found", shut = "permission_denied" } do
      assert.equal(expected, select(3, box.files:grep("x", { path = path })))
    end
    assert.equal("invalid", select(3, box.files:grep("a\0b")))
  end)

  it("looks into the kernel's own files with plain commands", function()
    assert.truthy(#grep("Name:", { path = "/proc/self/status" }) > 0)
    assert.same({}, grep("no such words", { path = "/etc" }))
  end)

  it("ends while files are made and removed at speed", function()
    local busy = moonsand.assert(box:start { "python3", "-c", [[
import os, itertools
print("go", flush=True)
for i in itertools.count():
    try:
        os.makedirs("d/e"); open("d/e/f", "w").write("needle\n"); os.rename("d", "g")
        os.symlink("/etc", "d"); os.unlink("d"); os.mkfifo("d"); os.unlink("d")
        os.unlink("g/e/f"); os.rmdir("g/e"); os.rmdir("g")
    except OSError: pass]] })
    assert.equal("go", busy.stdout:read())
    for _ = 1, 50 do
      for _, match in ipairs(grep("needle", { timeout = 20 })) do
        assert.equal("needle", match.text)
        assert.truthy(match.path:find "^/workspace/")
      end
    end
    busy:close()
  end)

  it("is fast", function()
    sh "seq 1000000 >numbers"
    local began = os.clock()
    assert.equal(1, #grep "^777777$")
    assert.truthy(os.clock() - began < 5)
    assert.truthy(support.exists "/")
  end)
end)
