-- The files of a sandbox: what each call does, what it answers when it cannot, and that no path,
-- link, race, FIFO or device inside reaches the host or hangs it.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local BYTES = "\0\1\r\n\255\254" .. ("x"):rep(100) .. "\n"

--- What a failed call answers: its code, after a look at its shape.
local function code_of(value, message, code, detail)
  assert(value == nil, "it did not fail")
  assert.equal("string", type(message), "a message")
  assert.equal("table", type(detail), "a detail")
  assert.equal(code, detail.code)
  assert.equal(message, detail.message)
  return code
end

local function names(entries, message)
  local list = {}
  for i, entry in ipairs(assert(entries, message)) do
    list[i] = entry.name
  end
  return table.concat(list, " ")
end

local function paths(entries, message)
  local list = {}
  for i, entry in ipairs(assert(entries, message)) do
    list[i] = entry.path
  end
  return table.concat(list, " ")
end

--- Around the tests, and around their own before_each and after_each.
local function guarded(name, fn)
  describe(name, function()
    helper.deadline(60)
    helper.no_leaks()
    describe("", fn)
  end)
end

describe("moonsand.files.skipped", function()
  local skips = require "moonsand.files.skipped"

  it("tells paths below a root, and why", function()
    local skipped = skips.new "/a/"
    skipped:add("", core.errno.EACCES)
    skipped:tell("b/c", "Because", "provider")
    local passed = { { path = "d", errno = core.errno.ENOENT }, { path = "e", errno = 5 } }
    skipped:take(passed)
    assert.same({}, passed)
    assert.same({ path = "/a/", message = "Permission denied", code = "permission_denied" },
      skipped.list[1])
    assert.same({ path = "/a/b/c", message = "Because", code = "provider" }, skipped.list[2])
    assert.same({ "/a/d", "/a/e" }, { skipped.list[3].path, skipped.list[4].path })
  end)

  it("keeps so many, and so many bytes of them", function()
    local skipped = skips.new "/"
    for i = 1, 100001 do
      skipped:add("x" .. i, core.errno.EACCES)
    end
    assert.equal(100000, #skipped.list)
    skipped = skips.new("/", 3)
    for i = 1, 4 do
      skipped:add("x" .. i, core.errno.EACCES)
    end
    assert.equal(3, #skipped.list)
    for _, long in ipairs { "path", "message" } do
      skipped = skips.new "/"
      for i = 1, 10000 do
        local text = ("%04d"):format(i):rep(1000)
        skipped:tell(long == "path" and text or "x", long == "message" and text or "why", "provider")
      end
      assert.is_true(#skipped.list > 2000 and #skipped.list * 4000 <= 8 * 1024 * 1024)
      local count = #skipped.list
      skipped:add("x", core.errno.EACCES) -- full is full
      assert.equal(count, #skipped.list)
    end
  end)
end)

guarded("moonsand.files", function()
  local box, files
  before_each(function()
    box = assert(moonsand.create())
    files = box.files
  end)
  after_each(function()
    box:close()
    box, files = nil, nil
  end)

  --- What a command prints.
  local function sh(command)
    local r = assert(box:exec(command, { timeout = 20 }))
    assert(r.ok, r.stderr)
    return r.stdout
  end

  --- The probe inside; one that runs cannot be written again.
  local function put_probe()
    local path = "/tmp/probe-files"
    return files:exists(path) and path or support.put(box, support.probe "files")
  end

  --- Starts a probe that goes on, and waits until it is under way.
  local function start_probe(...)
    local p = assert(box:start { put_probe(), ... })
    assert.equal("ready", p.stdout:read("l", 10))
    return p
  end

  --- Ends it, and waits until it is gone: what was killed may do one thing more.
  local function end_probe(p)
    p:close()
    support.eventually(20, "it goes on", function()
      return #support.descendants((support.agent(box))) == 0
    end)
  end

  local function probe(...)
    local r = assert(box:exec({ put_probe(), ... }, { timeout = 20 }))
    assert(r.ok, r.stderr)
  end

  -- ---------------------------------------------------------------- the calls

  describe(":write and :read", function()
    it("keep every byte", function()
      assert.is_true(files:write("a", BYTES))
      assert.equal(BYTES, files:read "a")
      assert.equal(BYTES, sh "cat a")
      assert.is_true(files:write("empty", ""))
      assert.equal("", files:read "empty")
    end)

    it("move megabytes", function()
      local big = BYTES:rep(100000)
      assert.is_true(files:write("big", big))
      assert.equal(tostring(#big), (sh "wc -c <big"):match "%d+")
      assert.is_true(files:read "big" == big)
    end)

    it("read a part", function()
      assert(files:write("a", "0123456789"))
      local rows = {
        { { offset = 3 }, "3456789" }, { { length = 4 }, "0123" },
        { { offset = 8, length = 9 }, "89" }, { { offset = 10 }, "" }, { { offset = 99 }, "" },
        { { offset = 2, length = 0 }, "" },
      }
      for _, row in ipairs(rows) do
        assert.equal(row[2], files:read("a", row[1]))
      end
      assert.equal("invalid", code_of(files:read("a", { offset = -1 })))
      assert.equal("invalid", code_of(files:read("a", { length = 1.5 })))
    end)

    it("refuse more than max, and say how much there is", function()
      assert(files:write("a", "0123456789"))
      local value, message, code, detail = files:read("a", { max = 9 })
      assert.equal("too_large", code_of(value, message, code, detail))
      assert.equal(10, detail.size)
      assert.equal("0123456789", files:read("a", { max = 10 }))
      assert.equal("012", files:read("a", { max = 9, length = 3 }))
      assert.equal("0123456789", files:read("a", { max = "1K" }))
    end)

    it("make new files 0644 and keep the mode of old ones", function()
      assert(files:write("new", "x"))
      assert.equal("644 1000\n", sh "stat -c '%a %u' new")
      sh "chmod 751 new"
      assert(files:write("new", "y"))
      assert.equal("751\n", sh "stat -c %a new")
    end)

    it("take a mode", function()
      local rows = {
        { "755", "755" }, { "0600", "600" }, { "u+x", "744" }, { "a=r,u+w", "644" },
        { "go-r", "600" },        { "ug=rw,o=", "660" }, { "+x", "755" },
      }
      for i, row in ipairs(rows) do
        local name = "f" .. i
        assert.is_true(files:write(name, "x", { mode = row[1] }))
        assert.equal(row[2] .. "\n", sh("stat -c %a " .. name))
        assert.is_true(files:write(name, "x", { mode = "400" }))
        assert.equal("400\n", sh("stat -c %a " .. name))
      end
      for _, mode in ipairs { "", "9", "888", "77777", "u+q", "u", ",u+x", "rwxr-xr-x" } do
        assert.equal("invalid", code_of(files:write("f", "x", { mode = mode })), mode)
      end
      assert.has_error(function()
        files:write("f", "x", { mode = 755 })
      end)
    end)

    it("put a new file in the place of the old one", function()
      assert(files:write("a", "old"))
      sh "ln a b"
      assert(files:write("a", "new"))
      assert.equal("old", files:read "b")
      assert.equal("a b", names(files:list "."))
    end)

    it("write into the file that is there when asked to", function()
      assert(files:write("a", "older"))
      sh "ln a b"
      assert.is_true(files:write("a", "new", { atomic = false }))
      assert.equal("new", files:read "b")
      assert.is_true(files:write("a", "+more", { append = true }))
      assert.equal("new+more", files:read "b")
      assert.is_true(files:write("c/d", "x", { append = true, mode = "600" }))
      assert.equal("600\n", sh "stat -c %a c/d")
      assert.equal("invalid", code_of(files:write("a", "", { append = true, atomic = true })))
    end)

    it("follow links", function()
      sh [[mkdir real; echo old >real/f; ln -s real/f link; ln -s link again
           ln -s gone/f dangling]]
      assert.is_true(files:write("again", "new"))
      assert.equal("new", files:read "real/f")
      assert.equal("new", files:read "again")
      assert.equal("symlink", assert(files:stat("again", { follow = false })).type)
      assert.is_true(files:write("dangling", "made"))
      assert.equal("made", files:read "gone/f")
      sh "ln -s loop2 loop1; ln -s loop1 loop2"
      assert.equal("loop", code_of(files:write("loop1", "x")))
      assert.equal("loop", code_of(files:read "loop1"))
    end)

    it("make the directories above, or not", function()
      assert.is_true(files:write("a/b/c", "x"))
      assert.equal("755\n", sh "stat -c %a a/b")
      assert.equal("not_found", code_of(files:write("d/e", "x", { parents = false })))
      assert.equal("not_a_directory", code_of(files:write("a/b/c/d", "x")))
      assert.is_false(files:exists "d")
    end)

    it("say what is wrong", function()
      sh "mkdir d; echo x >ro; chmod 444 ro; mkdir no; chmod 555 no"
      local rows = {
        { "not_found", files:read "gone" }, { "not_found", files:read "gone/x" },
        { "is_a_directory", files:read "d" }, { "is_a_directory", files:write("d", "x") },
        { "is_a_directory", files:write("d/", "x") }, { "is_a_directory", files:write("/", "x") },
        { "permission_denied", files:write("ro", "x") },
        { "permission_denied", files:write("no/x", "x") },
        { "permission_denied", files:read "/proc/1/environ" },
        { "read_only", files:write("/usr/bin/x", "x") },
        { "not_a_directory", files:read "ro/x" },
      }
      for i, row in ipairs(rows) do
        local expected = table.remove(row, 1)
        assert.equal(expected, code_of(row[1], row[2], row[3], row[4]), "row " .. i)
        assert.equal("string", type(row[4].path))
      end
      assert.equal("x\n", files:read "ro")
    end)

    it("leave the old file, and nothing else, when the disk is full", function()
      local small = assert(moonsand.create { limits = { disk = "4M" } })
      assert(small.files:write("a", "old"))
      assert.equal("no_space", code_of(small.files:write("a", ("x"):rep(8 * 1024 * 1024))))
      assert.equal("old", small.files:read "a")
      assert.equal("a", names(small.files:list "."))
      assert.is_true(small.files:write("a", ("x"):rep(1024 * 1024)))
      small:close()
    end)

    it("show readers the old bytes or the new ones", function()
      assert(files:write("f", ("a"):rep(10000)))
      local p = assert(box:start [[
        echo ready
        while [ ! -e stop ]; do
          n=$(tr -d '\n' <f | fold -w1 | sort -u | wc -l); s=$(wc -c <f)
          [ "$n" = 1 ] && [ "$s" = 10000 ] || { echo "torn $n $s"; exit 1; }
        done]])
      assert.equal("ready", p.stdout:read "l")
      for i = 1, 300 do
        assert(files:write("f", (i % 2 == 0 and "a" or "b"):rep(10000)))
      end
      assert(files:write("stop", ""))
      local r = assert(p:wait(20))
      assert.is_true(r.ok, r.stdout)
    end)

    it("read what only a pipe can carry", function()
      assert.truthy(assert(files:read "/proc/meminfo"):find "MemTotal")
      assert.equal("Mem", files:read("/proc/meminfo", { length = 3 }))
      assert.equal("too_large", code_of(files:read("/proc/meminfo", { max = 10 })))
      assert.equal(sh "tail -c +11 /proc/version", files:read("/proc/version", { offset = 10 }))
      assert.equal("not_found", code_of(files:read "/proc/nothing"))
      assert.equal("unsupported", code_of(files:write("/proc/sys/kernel/hostname", "x")))
      local p = assert(box:start "echo; exec sleep 60")
      assert.equal("", p.stdout:read())
      local own = ("/proc/%d/oom_score_adj"):format(p.pid)
      assert.equal("unsupported", code_of(files:write(own, "1000", { append = true })))
      assert.equal("unsupported", code_of(files:write(own, "1000")))
      assert.equal("unsupported", code_of(files:open(own, "w")))
      p:close()
    end)
  end)

  describe(":write_many", function()
    it("writes all, by position or name", function()
      assert.is_true(files:write_many { { "a", "1" }, { path = "d/b", data = "2", mode = "700" } })
      assert.equal("1", files:read "a")
      assert.equal("700\n", sh "stat -c %a d/b")
      assert.is_true(files:write_many {})
    end)

    it("ends at the first that cannot be written", function()
      local value, message, code, detail =
        files:write_many { { "a", "1" }, { "/", "2" }, { "c", "3" } }
      assert.equal("is_a_directory", code_of(value, message, code, detail))
      assert.equal(2, detail.index)
      assert.is_false(files:exists "c")
      assert.has_error(function()
        files:write_many { { "a" } }
      end)
    end)
  end)

  describe(":open", function()
    it("reads as io does", function()
      assert(files:write("f", "one\ntwo\n\nlast"))
      local s = assert(files:open "f")
      assert.equal("one", s:read())
      assert.equal("two\n", s:read "L")
      assert.equal("", s:read "*l")
      assert.equal("la", s:read(2))
      assert.equal("st", s:read "a")
      assert.equal("", s:read "a")
      assert.is_nil(s:read "l")
      assert.is_nil(s:read(1))
      s:close()
      s:close()
      assert.has_error(function()
        s:read()
      end)
      local lines = {}
      for line in assert(files:open "f"):lines() do
        lines[#lines + 1] = line
      end
      assert.equal("one,two,,last", table.concat(lines, ","))
    end)

    it("reads long lines and chunks, within limits", function()
      local line = ("x"):rep(300000)
      assert(files:write("f", line .. "\n" .. line))
      local s = assert(files:open "f")
      assert.equal("too_large", code_of(s:read("l", { max_line = 1000 })))
      assert.equal(line, s:read "l")
      local total = 0
      for chunk in s:chunks() do
        assert.is_true(#chunk > 0 and #chunk <= 256 * 1024)
        total = total + #chunk
      end
      assert.equal(300000, total)
      assert.equal(0, s:seek "set")
      assert.equal("too_large", code_of(s:read("a", { max = 1000 })))
      assert.equal(600001, #s:read "a")
      s:close()
    end)

    it("writes, seeks, and reads what it wrote", function()
      local s = assert(files:open("f", "w"))
      assert.equal(s, s:write "hello\nworld\n")
      assert.equal(12, s:seek())
      assert.equal("hello\nworld\n", files:read "f")
      assert.equal("permission_denied", code_of(s:read()))
      s:shutdown()
      assert.equal("closed", code_of(s:write "x"))
      s:close()
      s = assert(files:open("f", "r+b"))
      assert.equal("hello", s:read())
      assert(s:write "WORLD") -- where the reader is, not where it has read ahead to
      assert.equal("hello\nWORLD\n", files:read "f")
      assert.equal(-1 + 12, s:seek("end", -1))
      assert.equal(6, s:seek("set", 6))
      assert.equal("WO", s:read(2))
      assert.equal(8, s:seek "cur")
      assert.equal("invalid", code_of(s:seek("set", -1)))
      s:close()
      s = assert(files:open("f", "a"))
      assert(s:write "end")
      s:close()
      assert.equal("hello\nWORLD\nend", files:read "f")
      s = assert(files:open("f", "w"))
      s:close()
      assert.equal("", files:read "f")
    end)

    it("reads what only a pipe can carry", function()
      local s = assert(files:open "/proc/meminfo")
      assert.truthy(s:read():find "^MemTotal")
      assert.equal(0, s:seek "set")
      assert.equal("Mem", s:read(3))
      s:close()
    end)

    it("takes only numbers that are some", function()
      assert(files:write("f", "text"))
      for _, number in ipairs { 1e19, 2 ^ 60, -1, 0.5, 0 / 0, -math.huge } do
        for _, option in ipairs { "offset", "length" } do
          assert.equal("invalid", code_of(files:read("f", { [option] = number })))
        end
        for _, call in ipairs { "list", "grep", "search" } do
          assert.equal("invalid", code_of(files[call](files, ".", { limit = number })))
        end
      end
      assert.equal("text", files:read("f", { length = math.huge }))
      assert.equal("", files:read("f", { offset = 2 ^ 53 }))
      local s = assert(files:open "f")
      for _, number in ipairs { 1e19, -1e19, 2 ^ 60, 0.5, 0 / 0, math.huge } do
        local line = debug.getinfo(1, "l").currentline + 1
        local ok, message = pcall(function() s:seek("set", number) end)
        assert.is_false(ok)
        assert.is_truthy(message:find(("files_spec.lua:%d: moonsand: stream:seek"):format(line), 1,
          true), message)
        if number ~= -1e19 then
          ok, message = pcall(function() s:read(number) end)
          assert.is_truthy(ok and number == math.huge or message:find("stream:read", 1, true), message)
        end
      end
      s:close()
      s = assert(files:open "/proc/version") -- of which there is only the text
      assert.has_error(function() s:seek("set", 1e19) end)
      assert.equal(2 ^ 53, s:seek("set", 2 ^ 53))
      s:close()
    end)

    it("answers failures, and raises at a mode that is none", function()
      assert.equal("not_found", code_of(files:open "gone"))
      assert.equal("not_found", code_of(files:open("gone", "r+")))
      assert.equal("is_a_directory", code_of(files:open "/"))
      assert.equal("is_a_directory", code_of(files:open("/", "w")))
      for _, mode in ipairs { "", "x", "rw", "w+", "ra" } do
        assert.has_error(function()
          files:open("f", mode)
        end)
      end
    end)

    it("ends with the sandbox", function()
      assert(files:write("f", "x"))
      local s = assert(files:open "f")
      box:close()
      assert.equal("closed", code_of(s:read()))
    end)
  end)

  describe(":list", function()
    before_each(function()
      sh [[mkdir -p d/sub/deeper && echo 12345 >d/file && ln -s file d/link && ln -s sub d/dirlink
           echo x >d/sub/inner && echo y >d/sub/deeper/last && mkfifo d/fifo && touch d/.hidden]]
    end)

    it("tells what is there", function()
      local list = assert(files:list "d")
      assert.equal(".hidden dirlink fifo file link sub", names(list))
      local by = {}
      for _, entry in ipairs(list) do
        by[entry.name] = entry
      end
      assert.equal("file", by.file.type)
      assert.equal("/workspace/d/file", by.file.path)
      assert.equal(6, by.file.size)
      assert.equal(tonumber("644", 8), by.file.mode)
      assert.equal("0644", by.file.permissions)
      assert.equal("sandbox", by.file.owner)
      assert.equal("sandbox", by.file.group)
      assert.is_true(math.abs(by.file.modified_at - os.time()) < 60)
      assert.equal("symlink", by.link.type)
      assert.equal("file", by.link.target)
      assert.equal("symlink", by.dirlink.type)
      assert.equal("other", by.fifo.type)
      assert.equal("directory", by.sub.type)
      assert.is_nil(by.sub.target)
    end)

    it("goes as deep as it is told, and follows no link", function()
      assert.equal(".hidden dirlink fifo file link sub deeper inner",
        names(files:list("d", { depth = 2 })))
      assert.equal("last", assert(files:list("d", { depth = math.huge }))[8].name)
      assert.equal(9, #files:list("d", { depth = 3 }))
      assert.equal("deeper inner", names(files:list "d/dirlink"))
      assert.equal("", names(files:list "/run"))
      assert.equal("invalid", code_of(files:list("d", { depth = 0 })))
    end)

    it("refuses more than its limit", function()
      assert.equal(6, #files:list("d", { limit = 6 }))
      local value, message, code, detail = files:list("d", { limit = 5 })
      assert.equal("too_large", code_of(value, message, code, detail))
      assert.equal(5, #detail.entries)
      assert.equal("string", type(detail.entries[1].path))
    end)

    it("goes on past what it cannot read", function()
      sh "chmod 0 d/sub"
      local list = assert(files:list("d", { depth = 9 }))
      assert.equal(".hidden dirlink fifo file link sub", names(list))
      assert.equal("/workspace/d/sub", list.skipped[1].path)
      assert.equal("permission_denied", list.skipped[1].code)
      assert.equal("permission_denied", code_of(files:list "d/sub"))
    end)

    it("says what is wrong", function()
      assert.equal("not_found", code_of(files:list "gone"))
      assert.equal("not_a_directory", code_of(files:list "d/file"))
    end)
  end)

  describe(":stat and :exists", function()
    it("follow links, or not", function()
      sh "echo x >f; ln -s f l; ln -s gone dangling"
      assert.equal("file", assert(files:stat "l").type)
      local link = assert(files:stat("l", { follow = false }))
      assert.equal("symlink", link.type)
      assert.equal("f", link.target)
      assert.equal("l", link.name)
      assert.equal("not_found", code_of(files:stat "dangling"))
      assert.is_true(files:exists "l")
      assert.is_false(files:exists "dangling")
      assert.is_false(files:exists "f/x")
      assert.is_true(files:exists "/proc/self/status")
      assert.equal("/", assert(files:stat "/").name)
      assert.equal("directory", assert(files:stat ".").type)
    end)
  end)

  describe(":mkdir", function()
    it("makes one directory, or all of them", function()
      assert.is_true(files:mkdir "a")
      assert.equal("755\n", sh "stat -c %a a")
      assert.equal("exists", code_of(files:mkdir "a"))
      assert.equal("not_found", code_of(files:mkdir "b/c"))
      assert.is_true(files:mkdir("b/c/", { parents = true, mode = "700" }))
      assert.equal("755\n700\n", sh "stat -c %a b b/c")
      assert.is_true(files:mkdir("b/c", { parents = true }))
      assert.is_true(files:mkdir("/", { parents = true }))
      sh "echo x >f; ln -s b l"
      assert.equal("exists", code_of(files:mkdir("f", { parents = true })))
      assert.equal("not_a_directory", code_of(files:mkdir("f/x", { parents = true })))
      assert.is_true(files:mkdir("l/new/er", { parents = true }))
      assert.is_true(files:exists "b/new/er")
    end)
  end)

  describe(":remove", function()
    it("removes a file, a link, an empty directory", function()
      sh "echo x >f; ln -s f l; mkdir d"
      assert.is_true(files:remove "l")
      assert.equal("x\n", files:read "f")
      assert.is_true(files:remove "f")
      assert.is_true(files:remove "d/")
      assert.equal("not_found", code_of(files:remove "f"))
      assert.equal("not_found", code_of(files:remove("f", { recursive = true })))
      assert.equal("", names(files:list "."))
    end)

    it("removes a tree only when told to, and follows no link", function()
      sh [[mkdir -p keep d/a/b; echo k >keep/k; echo x >d/a/b/f; ln -s ../keep d/l; ln -s d dl
           mkfifo d/p]]
      assert.equal("not_empty", code_of(files:remove "d"))
      assert.is_true(files:remove("d", { recursive = true }))
      assert.is_true(files:remove("dl", { recursive = true }))
      assert.equal("keep", names(files:list "."))
      assert.equal("k\n", files:read "keep/k")
    end)

    it("says what could not be removed", function()
      sh "mkdir -p d/a/no; echo x >d/a/no/f; chmod 555 d/a/no"
      local value, message, code, detail = files:remove("d", { recursive = true })
      assert.equal("permission_denied", code_of(value, message, code, detail))
      assert.equal("/workspace/d/a/no/f", detail.path)
      for _, path in ipairs { "/", ".", "d/..", "/usr" } do
        assert.truthy(code_of(files:remove(path, { recursive = true })), path)
      end
      assert.is_true(files:exists "d/a/no/f")
    end)
  end)

  describe(":move", function()
    it("renames, and replaces what rename would", function()
      sh "echo a >a; echo b >b; mkdir d e full; echo x >d/x; echo y >full/y"
      assert.is_true(files:move("a", "b"))
      assert.equal("a\n", files:read "b")
      assert.is_true(files:move("d", "e"))
      assert.equal("x", names(files:list "e"))
      assert.is_true(files:move("e/", "f/"))
      assert.equal("not_empty", code_of(files:move("f", "full")))
      assert.equal("is_a_directory", code_of(files:move("b", "f")))
      assert.equal("not_a_directory", code_of(files:move("f", "b")))
      assert.equal("not_found", code_of(files:move("gone", "x")))
      assert.equal("not_found", code_of(files:move("b", "gone/x")))
      assert.equal("invalid", code_of(files:move("f", "f/in")))
      assert.equal("busy", code_of(files:move("b", "/")))
    end)

    it("copies from another file system", function()
      -- The host's /usr is read-only: the copy is made, the removal refused.
      assert.equal("read_only", code_of(files:move("/usr/bin/env", "env")))
      assert.is_true(files:exists "/usr/bin/env")
    end)
  end)

  describe(":copy", function()
    it("copies a file with its mode", function()
      sh "echo x >f; chmod 750 f; ln -s f l"
      assert.equal(1, assert(files:copy("f", "g")).entries)
      assert.equal("750\n", sh "stat -c %a g")
      assert(files:copy("l", "h"))
      assert.equal("file", assert(files:stat("h", { follow = false })).type)
      assert.equal("invalid", code_of(files:copy("f", "f")))
      assert.equal("invalid", code_of(files:copy("f", "l")))
      sh "mkdir d"
      assert.equal("is_a_directory", code_of(files:copy("f", "d")))
      assert.equal("not_found", code_of(files:copy("gone", "x")))
      assert.equal("not_found", code_of(files:copy("f", "gone/x")))
      assert(files:copy("/proc/version", "v"))
      assert.equal(sh "cat /proc/version", files:read "v")
    end)

    it("copies a tree, links as links, and says what it passed over", function()
      sh [[mkdir -p d/a/b d/empty; echo 1 >d/1; echo 2 >d/a/b/2; chmod 711 d/a; ln -s ../1 d/a/up
           ln -s /etc d/out; mkfifo d/pipe; echo s >d/secret; chmod 0 d/secret]]
      local summary = assert(files:copy("d", "e"))
      assert.equal("1 a b 2 up empty out", names(files:list("e", { depth = 9 })))
      assert.equal(7, summary.entries)
      assert.equal("711\n", sh "stat -c %a e/a")
      assert.equal("symlink", assert(files:stat("e/out", { follow = false })).type)
      local codes = {}
      for _, skip in ipairs(summary.skipped) do
        codes[skip.path] = skip.code
      end
      assert.same({
        ["/workspace/d/pipe"] = "unsupported",
        ["/workspace/d/secret"] = "permission_denied",
      }, codes)
    end)

    it("fills a directory that is there", function()
      sh [[mkdir -p d/s e/s; echo new >d/s/f; echo old >e/s/f; echo keep >e/s/k; ln -s s/k d/l
           echo x >e/l]]
      assert(files:copy("d", "e"))
      assert.equal("new\n", files:read "e/s/f")
      assert.equal("keep\n", files:read "e/s/k")
      assert.equal("s/k", assert(files:stat("e/l", { follow = false })).target)
    end)

    it("never copies a directory into itself", function()
      sh "mkdir -p d/in; ln -s d/in l"
      for _, to in ipairs { "d", "d/in", "d/new", "d/in/new", "l", "l/new" } do
        assert.equal("invalid", code_of(files:copy("d", to)), to)
      end
    end)

    it("keeps holes", function()
      probe("sparse", "s", "1099511627777")
      assert(files:copy("s", "t"))
      assert.equal(2 ^ 40 + 1, assert(files:stat "t").size)
      assert.equal("0\n", sh "stat -c %b t")
      sh "printf end >>s; printf begin | dd of=s conv=notrunc status=none"
      assert(files:copy("s", "u"))
      assert.equal("begin", files:read("u", { length = 5 }))
      assert.equal("end", files:read("u", { offset = 2 ^ 40 + 1 }))
    end)
  end)

  describe(":chmod and :chown", function()
    it("change what the user may", function()
      assert(files:write("f", "x"))
      local rows = {
        { "755", "755" }, { "0644", "644" }, { "u+x", "744" }, { "g=u", nil }, { "o-r", "740" },
        { "a+X", "751" }, { "4755", "4755" }, { "u-s,+t", "1755" },
      }
      for _, row in ipairs(rows) do
        if row[2] then
          assert.is_true(files:chmod("f", row[1]))
          assert.equal(row[2] .. "\n", sh "stat -c %a f")
        else
          assert.equal("invalid", code_of(files:chmod("f", row[1])))
        end
      end
      sh "ln -s f l"
      assert.is_true(files:chmod("l", "600"))
      assert.equal("600\n", sh "stat -c %a f")
      assert.equal("not_found", code_of(files:chmod("gone", "600")))
      assert.equal("permission_denied", code_of(files:chmod("/proc/version", "600")))
      assert.equal("read_only", code_of(files:chmod("/usr", "700")))
      assert.has_error(function()
        files:chmod("f", 755)
      end)

      assert.is_true(files:chown("f", "sandbox", 1000))
      assert.is_true(files:chown("f", nil, nil))
      for _, owner in ipairs { "root", 0, 65534, "somebody", 12345 } do
        assert.equal("unsupported", code_of(files:chown("f", owner)), tostring(owner))
      end
      assert.equal("not_found", code_of(files:chown("gone", "sandbox")))
    end)
  end)

  describe(":search", function()
    before_each(function()
      sh [[mkdir -p app/src/lib app/.git app/empty '/tmp/odd[1]{a}'
           touch app/a.py app/b.txt app/src/c.py app/src/lib/d.py app/.hidden.py app/.git/e.py
           ln -s src app/link; touch '/tmp/odd[1]{a}/x.py' 'app/[x].py' 'app/q?.py']]
    end)

    local function found(pattern, opts)
      return paths(files:search(pattern, opts)):gsub("/workspace/app/", "")
    end

    it("understands patterns", function()
      local rows = {
        { "app/*.py", "[x].py a.py q?.py" },
        { "/workspace/app/**/*.py", "[x].py a.py q?.py src/c.py src/lib/d.py" },
        { "app/**", "[x].py a.py b.txt empty link q?.py src src/c.py src/lib src/lib/d.py" },
        { "app/**/", "empty src src/lib" },
        { "app/*/*.py", "src/c.py" },
        { "app/?.{py,txt}", "a.py b.txt" },
        { "app/{a,{b,src/c}}.*", "a.py b.txt src/c.py" },
        { "app/[ab].*", "a.py b.txt" },
        { "app/[!a].*", "b.txt" },
        { "app/[a-b]*", "a.py b.txt" },
        { "app/\\[x\\].py", "[x].py" },
        { "app/q\\?.py", "q?.py" },
        { "app/.*", ".git .hidden.py" },
        { "app/**/.*", ".git .hidden.py" },
        { "app/.git/*", ".git/e.py" },
        { "app/a.py", "a.py" },
        { "app/**/**/d.py", "src/lib/d.py" },
        { "app/src/**/lib/d.py", "src/lib/d.py" },
        { "app/{b.txt,*.txt,b.*}", "b.txt" },
        { "app/nothing*", "" },
        { "gone/**", "" },
        { "app/a.py/*", "" },
        { "app/[z-a]*", "" },
      }
      for _, row in ipairs(rows) do
        assert.equal(row[2], found(row[1]), row[1])
      end
      -- A link is followed in front of the first wildcard.
      assert.equal("link/c.py", found "app/link/*.py")
    end)

    it("takes the working directory as it is", function()
      box:cd "/tmp/odd[1]{a}"
      assert.equal("/tmp/odd[1]{a}/x.py", paths(files:search "*.py"))
    end)

    it("has limits", function()
      assert.equal("too_large", code_of(files:search("/workspace/app/**", { limit = 3 })))
      assert.equal("invalid", code_of(files:search(("{a,b}"):rep(9))))
      assert.equal("invalid", code_of(files:search(("/*"):rep(70))))
      -- A name on which a matcher that tries every star again would never end.
      assert(files:write("s/" .. ("a"):rep(250), ""))
      assert.equal("", paths(files:search("s/" .. ("a*"):rep(40) .. "b", 10)))
      -- All of it, without the kernel's own files.
      assert.truthy(paths(files:search("/**/status", 30)):find "/proc/" == nil)
    end)
  end)

  describe(":replace", function()
    it("takes the text as it is, and counts", function()
      assert(files:write("f", "a.b.c%1\n.", { mode = "755" }))
      assert.equal(3, files:replace("f", ".", "%0"))
      assert.equal("a%0b%0c%1\n%0", files:read "f")
      assert.equal("755\n", sh "stat -c %a f")
      assert.equal(0, files:replace("f", "nothing", "x"))
      assert.equal(1, files:replace("f", "%1\n%0", ""))
      assert.equal("a%0b%0c", files:read "f")
      assert.equal("invalid", code_of(files:replace("f", "", "x")))
      assert.equal("not_found", code_of(files:replace("gone", "a", "b")))
      assert.equal("too_large", code_of(files:replace("f", "a", "b", { max = 3 })))
    end)
  end)

  -- ---------------------------------------------------------------- host and sandbox

  describe(":upload and :download", function()
    local host
    before_each(function()
      host = support.directory() .. "/files"
      assert.equal("", (support.run("rm -rf " .. host .. "; mkdir " .. host)))
    end)
    after_each(function()
      support.run("chmod -R u+rwX " .. host .. "; rm -rf " .. host)
    end)

    local function run(command)
      local output, status = support.run("cd " .. host .. " && " .. command)
      assert.equal(0, status, output)
      return output
    end

    it("carry a file", function()
      support.write(host .. "/f", BYTES)
      run "chmod 755 f"
      local calls = {}
      local summary = assert(files:upload(host .. "/f", "sub/f", {
        progress = function(done, total)
          calls[#calls + 1] = done .. "/" .. total
        end,
      }))
      assert.equal(#BYTES, summary.bytes)
      assert.equal(1, summary.entries)
      assert.equal(("%d/%d"):format(#BYTES, #BYTES), calls[#calls])
      assert.equal(BYTES, files:read "sub/f")
      assert.equal("755\n", sh "stat -c %a sub/f")
      assert(files:download("sub/f", host .. "/g"))
      assert.equal("755\n", run "cmp f g && stat -c %a g")
      assert(files:download("/proc/version", host .. "/v"))
      assert.equal(sh "cat /proc/version", run "cat v")
    end)

    it("carry megabytes in steps, while others run", function()
      run "head -c 9M /dev/urandom >big"
      local turns, last = 0, 0
      moonsand.run(function()
        local other = moonsand.task(function()
          while true do
            turns = turns + 1
            moonsand.sleep(0)
          end
        end)
        assert(files:upload(host .. "/big", "big", {
          progress = function(done)
            assert.is_true(done > last)
            last = done
          end,
        }))
        assert(files:download("big", host .. "/back"))
        other:cancel()
      end)
      assert.equal(9 * 1024 * 1024, last)
      assert.is_true(turns > 2, tostring(turns))
      run "cmp big back"
    end)

    it("carry a tree", function()
      run [[mkdir -p t/a/b t/empty; echo 1 >t/1; head -c 300000 /dev/urandom >t/a/b/2; chmod 700 t/a
            chmod 755 t/1; ln -s ../1 t/a/up; ln -s /etc/passwd t/out; mkfifo t/pipe
            printf x >"t/$(printf 'new\nline\377')"; touch t/-n]]
      local total
      local summary = assert(files:upload(host .. "/t", "t", {
        progress = function(done, of)
          total = of
          assert.is_true(done <= of)
        end,
      }))
      assert.equal(300003, total)
      assert.equal(300003, summary.bytes)
      assert.equal(host .. "/t/pipe", summary.skipped[1].path)
      assert.equal(1, #summary.skipped)
      assert.equal("/etc/passwd", assert(files:stat("t/out", { follow = false })).target)
      assert.equal("x", files:read "t/new\nline\255")

      summary = assert(files:download("t", host .. "/back", {
        progress = function(done, of)
          assert.is_true(done <= of)
        end,
      }))
      assert.equal("/workspace/t/out", summary.skipped[1].path)
      run "rm t/pipe t/out; diff -r t back; test ! -L back/out; test -L back/a/up"
      assert.equal("700\n", run "stat -c %a back/a")
      assert.equal("755\n", run "stat -c %a back/1")
    end)

    it("fill a directory that is there", function()
      run "mkdir -p t/s back/s; echo new >t/s/f; echo old >back/s/f; echo keep >back/s/k"
      assert(files:upload(host .. "/t", "t"))
      assert(files:download("t", host .. "/back"))
      assert.equal("new\nkeep\n", run "cat back/s/f back/s/k")
      assert.equal("", run "find back -name '.moonsand*'")
    end)

    it("say what is wrong, on which side", function()
      run "mkdir d; echo x >f; ln -s f l; mkdir no; chmod 500 no"
      assert(files:write("f", "new"))
      assert(files:mkdir "e")
      local rows = {
        { "not_found", files:upload(host .. "/gone", "x") },
        { "not_found", files:download("gone", host .. "/x") },
        { "not_found", files:download("f", host .. "/gone/x") },
        { "is_a_directory", files:upload(host .. "/f", "e") },
        { "is_a_directory", files:download("f", host .. "/d") },
        { "is_a_directory", files:download("f", host .. "/d/") },
        { "not_a_directory", files:download("e", host .. "/f") },
        { "not_a_directory", files:upload(host .. "/d", "f") },
        { "invalid", files:upload("a\0b", "x") }, { "invalid", files:download("f", "") },
      }
      for i, row in ipairs(rows) do
        local expected = table.remove(row, 1)
        assert.equal(expected, code_of(row[1], row[2], row[3], row[4]), "row " .. i)
      end
      -- A link on the host is replaced, not written through.
      assert(files:download("f", host .. "/l"))
      assert.equal("x\nnew", run "cat f l; test ! -L l")
    end)

    it("pass a raise of progress on, and leave nothing", function()
      run "mkdir t; head -c 1M /dev/zero >t/f"
      assert(files:upload(host .. "/t", "t"))
      local function stop()
        error "enough"
      end
      for _, call in ipairs {
        function() return files:upload(host .. "/t/f", "new", { progress = stop }) end,
        function() return files:download("t/f", host .. "/new", { progress = stop }) end,
        function() return files:upload(host .. "/t", "new", { progress = stop }) end,
        function() return files:download("t", host .. "/new", { progress = stop }) end,
      } do
        local ok, message = pcall(call)
        assert.is_false(ok)
        assert.truthy(tostring(message):find "enough")
        assert.equal("", run "find . -name '.moonsand*'")
        assert.equal("", sh "find . -name '.moonsand*'")
      end
      assert.is_false(support.exists(host .. "/new") and #run "find new -type f" > 0)
    end)

    it("refuse more than their limits, sparse files too", function()
      sh "mkdir t; for i in 1 2 3 4 5; do head -c 1000 /dev/zero >t/$i; done"
      probe("sparse", "huge", "1152921504606846976")
      assert.equal("too_large", code_of(files:download("t", host .. "/a", { max = 4999 })))
      assert.equal("too_large", code_of(files:download("t", host .. "/b", { limit = 4 })))
      assert.equal("too_large", code_of(files:download("t/1", host .. "/c", { max = 999 })))
      assert.equal("too_large", code_of(files:download("huge", host .. "/d")))
      assert.is_false(support.exists(host .. "/d"))
      assert(files:download("t", host .. "/e", { max = 5000, limit = 5 }))
      sh "mv huge t"
      assert.equal("too_large", code_of(files:download("t", host .. "/f", { max = "1M" })))
      assert.is_true(tonumber((run "du -sk f"):match "%d+") < 2000)
    end)

    it("take setuid and the like off, and give the owner access", function()
      sh [[mkdir t; echo x >t/f; chmod 6755 t/f; mkdir t/d; chmod 1777 t/d; echo y >t/w
           chmod 0400 t/w]]
      assert(files:download("t", host .. "/t"))
      assert.equal("755", (run "stat -c %a t/f"):match "%d+")
      assert.equal("600", (run "stat -c %a t/w"):match "%d+")
      assert.is_true(tonumber((run "stat -c %a t/d"):match "%d+") < 1000)
      assert(files:download("t/f", host .. "/f"))
      assert.equal("755", (run "stat -c %a f"):match "%d+")
    end)

    it("leave out links that lead out of the tree, and keep the others", function()
      sh [[mkdir -p t/d/e; cd t; ln -s d/e a; ln -s ../d d/b; ln -s ../../d d/e/c; ln -s . d/dot
           ln -s .. up; ln -s ../x up2; ln -s d/../../x out1; ln -s /etc out2; ln -s d/.. out3
           ln -s ../../../x d/e/out4; ln -s ../../.. d/e/out5]]
      local summary = assert(files:download("t", host .. "/t"))
      local list = {}
      for _, skip in ipairs(summary.skipped) do
        list[#list + 1] = skip.path:match "[^/]*$"
      end
      table.sort(list)
      assert.equal("out1 out2 out3 out4 out5 up up2", table.concat(list, " "))
      assert.equal("d/e\n../d\n../../d\n.\n", run "cd t; readlink a d/b d/e/c d/dot")
    end)

    it("never write through a link of the host's", function()
      run "mkdir out t; ln -s ../out t/d; ln -s ../out/f t/f"
      sh "mkdir -p t/d; echo x >t/d/x; echo y >t/f"
      assert.equal("loop", code_of(files:download("t", host .. "/t")))
      sh "rm -r t/d"
      assert(files:download("t", host .. "/t"))
      assert.equal("y\n", run "cat t/f; test ! -L t/f")
      assert.equal("", run "ls out")
    end)
  end)

  -- ---------------------------------------------------------------- abuse

  describe("paths", function()
    it("that are none are refused before anybody is asked", function()
      local long = "/" .. ("x"):rep(4095)
      for _, path in ipairs { "", "a\0b", "\0", long, ("a/"):rep(2050) } do
        for _, call in ipairs { "read", "stat", "exists", "list", "mkdir", "remove", "open" } do
          assert.equal("invalid", code_of(files[call](files, path)), call)
        end
        assert.equal("invalid", code_of(files:write(path, "x")))
        assert.equal("invalid", code_of(files:move("a", path)))
        assert.equal("invalid", code_of(files:copy(path, "a")))
      end
      assert.equal("invalid", code_of(files:write(("x"):rep(256), "")))
    end)

    it("of the wrong type, unknown options, closed sandboxes raise at the caller", function()
      local function line_of(fn)
        local ok, message = pcall(fn)
        assert.is_false(ok)
        assert.truthy(tostring(message):find("files_spec.lua", 1, true), tostring(message))
        return tostring(message)
      end
      line_of(function() files:read() end)
      line_of(function() files:read(1) end)
      line_of(function() files:write("a", nil) end)
      line_of(function() files:write("a", {}) end)
      line_of(function() files:move("a") end)
      line_of(function() files:copy(nil, "a") end)
      line_of(function() files:list("a", "b") end)
      line_of(function() files:search {} end)
      line_of(function() files:upload(1, "a") end)
      line_of(function() files:download("a", nil) end)
      line_of(function() files:chown("a", {}) end)
      line_of(function() files:replace("a", 1, "b") end)
      line_of(function() files:read("a", { timeout = "1" }) end)
      local unknown = line_of(function() files:read("a", { ofset = 1 }) end)
      assert.truthy(unknown:find "did you mean 'offset'")
      box:close()
      assert.truthy(line_of(function() files:read "a" end):find "closed")
      line_of(function() files:write("a", "b") end)
    end)

    it("resolve inside, whatever they say", function()
      local secret = support.directory() .. "/secret"
      support.write(secret, "of the host")
      sh [[ln -s / root; ln -s ../../../../../.. up; mkdir d; ln -s /proc/1/root esc
           ln -s /proc/self/root esc2]]
      for _, prefix in ipairs {
        "", "root", "up", "d/../../../..", "/..", "/../../..", "esc", "esc2", "/proc/1/root",
        "/proc/self/root", "/proc/thread-self/root", "/proc/1/cwd",
      } do
        local data, _, code = files:read(prefix .. secret)
        assert.is_nil(data, prefix)
        assert.is_true(code == "not_found" or code == "loop" or code == "permission_denied",
          prefix .. ": " .. code)
      end
    end)

    it("of the agent and of the worker itself lead nowhere", function()
      sh "ln -s /proc/self l; ln -s /proc/1/environ e; ln -s /proc/self/mem m; ln -s /proc/1/fd/3 f"
      for _, path in ipairs { "/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/status",
        "/proc/self/environ", "/proc/self/mem", "/proc/self/maps", "/proc/thread-self/stat",
        "/proc/self/task/1/maps", "l/maps", "e", "m" } do
        local code = code_of(files:read(path))
        assert.is_true(code == "permission_denied" or code == "not_found", path .. ": " .. code)
        assert.truthy(code_of(files:write(path, "x", { atomic = false })))
        assert.truthy(code_of(files:write(path, "x")))
      end
      for _, path in ipairs {
        "/proc/1/fd/3", "/proc/self/fd/0", "/proc/self/exe", "/dev/stdin", "f", "/dev/fd/0",
        "/proc/1/cwd/tmp", "/proc/self/ns/mnt",
      } do
        assert.truthy(code_of(files:read(path)), path)
        assert.truthy(code_of(files:write(path, "x")), path)
        assert.truthy(code_of(files:chmod(path, "777")), path)
        if path:find "^/proc" then
          assert.truthy(code_of(files:remove(path)), path)
        end
      end
    end)

    it("may have any other byte in them", function()
      for _, name in ipairs {
        " ", "a\nb", "\255\254", "-rf", "*", "a\\b", "'\"", "...", "~", "$(id)", "%s%n",
        ("\1"):rep(255),
      } do
        assert.is_true(files:write(name, name))
        assert.equal(name, files:read(name))
        assert.equal(name, assert(files:list ".")[1].name)
        assert.is_true(files:remove(name))
      end
    end)
  end)

  describe("what is no file", function()
    it("is named, and hangs nobody", function()
      probe("fifo", "fifo")
      probe("socket", "socket")
      sh "ln -s fifo link"
      local rows = {
        { "fifo", "a named pipe" }, { "link", "a named pipe" }, { "socket", "a socket" },
        { "/dev/null", "a device" }, { "/dev/zero", "a device" }, { "/dev/ptmx", "a device" },
      }
      for _, row in ipairs(rows) do
        for _, call in ipairs { "read", "open" } do
          local value, message, code, detail = files[call](files, row[1], nil)
          assert.equal("invalid", code_of(value, message, code, detail))
          assert.truthy(message:find(row[2], 1, true), message)
        end
        assert.equal("invalid", code_of(files:write(row[1], "x", { atomic = false })))
        local code = code_of(files:write(row[1], "x"))
        assert.is_true(code == "invalid" or code == "unsupported", code) -- /dev/pts is virtual
        assert.truthy(code_of(files:copy(row[1], "copy")))
        assert.truthy(code_of(files:download(row[1], support.directory() .. "/x")))
      end
      assert.equal("other", assert(files:stat "fifo").type)
      assert.is_true(files:remove "fifo")
    end)

    it("answers busy where a lease would make it wait", function()
      assert(files:write("f", "x"))
      local p = start_probe("lease", "f")
      assert.equal("busy", code_of(files:read "f"))
      assert.equal("busy", code_of(files:write("f", "y", { atomic = false })))
      assert(files:mkdir "d")
      sh "ln f d/f" -- in a tree, too
      assert.equal("busy", assert(files:copy("d", "e")).skipped[1].code)
      local summary = assert(files:download("d", support.directory() .. "/lease"))
      assert.equal("busy", summary.skipped[1].code)
      p:close()
      support.run("rm -rf " .. support.directory() .. "/lease")
    end)
  end)

  describe("races", function()
    it("between a file and a link give the file or a failure", function()
      sh "echo mine >f; ln -s /proc/1/environ l; mkdir d; echo mine >d/f; ln -s /proc/1/root ld"
      local one = start_probe("swap", "f", "l")
      local two = start_probe("swap", "d", "ld")
      local good, stop = 0, core.now() + 2
      while core.now() < stop or good == 0 and core.now() < stop + 18 do
        for _, path in ipairs { "f", "d/f" } do
          local data, _, code = files:read(path)
          assert.is_true(data == "mine\n" or code == "permission_denied" or code == "loop"
            or code == "not_found", tostring(data or code))
          good = good + (data and 1 or 0)
        end
      end
      assert.is_true(good > 0)
      one:close()
      two:close()
    end)

    it("of a write leave the old, the new, or the link's target", function()
      sh "echo x >f; mkdir d; ln -s ../other d/l; ln -s d/l l"
      local p = start_probe("swap", "f", "l")
      local stop = core.now() + 1
      while core.now() < stop do
        local ok, message = files:write("f", "new")
        assert.is_true(ok, message)
      end
      p:close()
      for _, entry in ipairs(assert(files:list(".", { depth = 9 }))) do
        assert.is_nil(entry.name:find "^%.moonsand")
      end
    end)

    it("with who moves directories never remove what is elsewhere", function()
      for round = 1, 20 do
        sh [[rm -rf t keep; mkdir -p t/a/b/c keep/k/e/p; for i in 1 2 3 4 5 6 7 8 9; do
             touch t/$i t/a/$i t/a/b/$i t/a/b/c/$i keep/$i keep/k/$i keep/k/e/p/$i; done]]
        local p = start_probe("shuttle", "t/a/b", "keep/k/e/b")
        local ok, _, code = files:remove("t", { recursive = true, timeout = 20 })
        assert.is_true(ok or code == "busy" or code == "not_empty" or code == "not_found", code)
        end_probe(p)
        local left = sh "find keep -name b -prune -o -type f -print | wc -l"
        assert.equal("27\n", left, "round " .. round)
      end
    end)

    it("with who moves directories end every walk", function()
      sh "mkdir -p t/a/b/c/d out; for i in 1 2 3 4 5; do touch t/a/b/c/d/$i t/a/$i; done"
      local p = start_probe("shuttle", "t/a/b/c", "out/c")
      for _ = 1, 50 do
        assert(files:list("t", { depth = 99, timeout = 20 }))
        assert(files:search("t/**/5", 20))
        assert(files:copy("t", "u", 20))
        assert(files:remove("u", { recursive = true, timeout = 20 }))
      end
      p:close()
    end)

    it("with who fills a directory end its removal", function()
      sh "mkdir t"
      local p = start_probe("refill", "t")
      local ok, _, code = files:remove("t", { recursive = true, timeout = 10 })
      assert.is_true(ok or code == "busy" or code == "not_empty" or code == "timeout", code)
      p:close()
    end)

    it("with who appends end at what was there", function()
      local p = start_probe("grow", "t-big")
      sh "mkdir t; ln t-big t/big"
      for _ = 1, 5 do
        assert(files:copy("t", "u", 20))
        assert(files:read("t-big", { max = "256M" }))
        assert(files:download("t", support.directory() .. "/grow", { timeout = 20 }))
      end
      p:close()
      support.run("rm -rf " .. support.directory() .. "/grow")
    end)
  end)

  describe("trees", function()
    it("of ten thousand levels can be removed", function()
      probe("deep", "t", "10000")
      assert.is_true(files:remove("t", { recursive = true, timeout = 30 }))
      assert.equal("", names(files:list "."))
    end)

    it("deeper than a path can be are walked as far as paths go", function()
      probe("deep", "t", "5000")
      local list = assert(files:list("t", { depth = math.huge, timeout = 30 }))
      assert.is_true(#list > 2000 and #list < 2100, tostring(#list))
      assert.equal("invalid", list.skipped[1].code)
      assert(files:copy("t", "u", 30))
      assert.equal("", paths(files:search("t/**/end", 30)))
      assert(files:remove("u", { recursive = true, timeout = 30 }))
      assert(files:remove("t", { recursive = true, timeout = 30 }))
    end)

    it("of more entries than the limit are too large, at once", function()
      probe("many", "t", "110000")
      assert.equal("too_large", code_of(files:list("t", 30)))
      assert.equal(110000, #assert(files:list("t", { limit = 200000, timeout = 30 })))
      local target = support.directory() .. "/many"
      assert.equal("too_large", code_of(files:download("t", target, { limit = 1000 })))
      support.run("rm -rf " .. target)
      assert.is_true(files:remove("t", { recursive = true, timeout = 30 }))
    end)

    it("of odd sizes keep every byte", function()
      local host = support.directory() .. "/odd"
      support.run(("mkdir %s; cd %s; for n in 0 1 131071 131072 131073 262144 999999; do "
        .. "head -c $n /dev/urandom >$n; done"):format(host, host))
      assert(files:upload(host, "odd"))
      assert(files:copy("odd", "even"))
      assert(files:download("even", host .. "-back"))
      local output, status =
        support.run(("diff -r %s %s-back; rm -rf %s %s-back"):format(host, host, host, host))
      assert.equal(0, status, output)
      assert.equal("", output)
    end)
  end)

  -- ---------------------------------------------------------------- the end

  describe("a wait", function()
    it("ends at its timeout, and nothing is left of the call", function()
      probe("many", "t", "50000")
      local calls = {
        function(opts) return files:list("t", opts) end,
        function(opts) return files:search("t/**/*", opts) end,
        function(opts) return files:copy("t", "u", opts) end,
        function(opts) return files:download("t", support.directory() .. "/late", opts) end,
      }
      --- The code of a call that ends too early. A host that stands still meanwhile may find all of
      --- the answer, which is no failure: the call is made again.
      local function code_after(call, limits)
        for _ = 1, 5 do
          local value, message, code, detail = call(limits())
          if value == nil then
            return code_of(value, message, code, detail)
          end
        end
      end
      for i, call in ipairs(calls) do
        local code = code_after(call, function() return { timeout = 0.005 } end)
        assert.equal("timeout", code, "call " .. i)
        code = code_after(call, function() return 0.005 end)
        assert.equal("timeout", code, "call " .. i)
        code = code_after(call, function()
          return { cancel = moonsand.token { timeout = 0.005 } }
        end)
        assert.is_true(code == "cancelled" or code == "timeout", code)
        local token = moonsand.token()
        token:cancel "no more"
        assert.equal("cancelled", code_of(call { cancel = token }), "call " .. i)
      end
      support.run("rm -rf " .. support.directory() .. "/late")
      -- What was started inside has ended, too.
      support.eventually(20, "workers are left", function()
        return sh "ls /proc | grep -c '^[0-9]'":match "%d+" + 0 <= 6
      end)
      assert.equal("here", assert(files:write("f", "here")) and files:read "f")
    end)

    it("that ended leaves no file open when the answer comes after all", function()
      assert(files:write("f", "x"))
      for _ = 1, 200 do
        local data, _, code = files:read("f", { timeout = 1e-9 })
        assert.is_true(data == "x" or code == "timeout", code)
      end
      assert.equal("x", files:read "f") -- all answers before this one have come
      helper.settle()
      assert.is_true(support.fds() < 100)
    end)

    it("ends when its task is cancelled", function()
      probe("many", "t", "50000")
      moonsand.run(function()
        local t = moonsand.task(function()
          return code_of(files:copy("t", "u"))
        end)
        moonsand.sleep(0.005)
        t:cancel()
        pcall(t.wait, t)
      end)
      support.eventually(20, "the worker is left", function()
        return sh "ls /proc | grep -c '^[0-9]'":match "%d+" + 0 <= 6
      end)
    end)

    it("answers closed when the sandbox is closed meanwhile", function()
      probe("many", "t", "50000")
      local codes = moonsand.run(function()
        local list_it = moonsand.task(function() return code_of(files:list("t", { depth = 9 })) end)
        moonsand.sleep(0)
        support.stop(support.agent(box)) -- no answer to the others comes before
        local waits = {
          list_it,
          moonsand.task(function() return code_of(files:copy("t", "u")) end),
          moonsand.task(function() return code_of(files:stat "t") end),
        }
        moonsand.sleep(0)
        box:close()
        local list = {}
        for i, t in ipairs(waits) do
          list[i] = t:wait()
        end
        return list
      end)
      assert.equal("closed", codes[1])
      assert.equal("closed", codes[2])
      assert.is_true(codes[3] == "closed", codes[3])
    end)

    it("answers lost when a program kills the worker, and never hangs", function()
      probe("many", "t", "50000")
      local p = start_probe("storm", "9")
      for _ = 1, 5 do
        local list, _, code = files:list("t", 20)
        assert.is_true(list ~= nil or code == "lost", code)
      end
      assert.equal("x", assert(files:write("f", "x")) and files:read "f")
      end_probe(p)
      assert.equal(50000, #assert(files:list "t"))
    end)

    it("can be left when a program stops the worker", function()
      probe("many", "t", "50000")
      local p = start_probe("storm", "19")
      local list, _, code = files:list("t", 1)
      assert.is_true(list ~= nil or code == "timeout" or code == "lost", code) -- it is killed then
      end_probe(p)
      assert.equal(50000, #assert(files:list("t", 20)))
    end)
  end)

  it("serves many at once", function()
    moonsand.run(function()
      local list = {}
      for i = 1, 200 do
        list[i] = i
      end
      moonsand.all(list, function(i)
        local name = "d/" .. i
        assert(files:write(name, ("%d"):format(i):rep(1000)))
        assert(#assert(files:list "d") > 0)
        assert.equal(("%d"):format(i):rep(1000), files:read(name))
        assert(files:copy(name, name .. "c"))
        assert(files:remove(name))
      end, { limit = 50 })
    end)
    assert.equal(200, #assert(files:list "d"))
  end)

  it("leaves nothing open after a thousand calls", function()
    assert(files:write("f", "x"))
    local before = helper.baseline()
    assert(files:stat "f") -- and the agent has closed what it had for the write
    local agent = support.agent(box)
    local agent_before = support.fds(agent) -- an ordinary user may not see them
    for i = 1, 1000 do
      assert(files:read "f")
      assert(files:write("f", tostring(i)))
      files:read "gone"
      files:stat "f"
      if i % 20 == 0 then
        assert(files:list ".")
      end
    end
    helper.assert_no_more(before)
    if agent_before then
      support.eventually(20, "the agent has other files open", function()
        local now = support.fds(agent)
        return now == agent_before, ("%d, not %d"):format(now, agent_before)
      end)
    end
  end)
end)
