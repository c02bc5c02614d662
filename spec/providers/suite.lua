--- What every provider has to do: one set of behaviours, run on each. `opts.create` gives the
--- options of `create`; `opts.lacks` names what this one cannot (a name of `can`), which is then
--- shown to answer `unsupported`; `opts.settle` lets go of what is kept for the next sandbox.
---
---     require "providers.suite" ("local", { create = { provider = "local" } })

local busted = require "busted"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local describe, it, before_each, assert =
  busted.describe, busted.it, busted.before_each, require "luassert"

local ODD = {
  "plain", "with space", "-n", "--", "it's", 'qu"ote', "new\nline", "tab\t", "$HOME", "`id`",
  "*", "?[x]",
  "\\", "end\n", "\255\254", "\195\188", "%s", "a;b&c|d", "~", "#x", "..dots", ".hidden",
}

--- All bytes, newlines at odd places, and no end of line.
local BYTES = {}
for i = 0, 255 do
  BYTES[i + 1] = string.char(i)
end
BYTES = table.concat(BYTES):rep(41) .. "\n\n\r\n\0last"

local function code_of(value, message, code, detail)
  assert.is_nil(value)
  assert.is_string(message)
  assert.is_table(detail)
  assert.equal(code, detail.code)
  return code
end

return function(name, opts)
  local lacks = {}
  for _, what in ipairs(opts.lacks or {}) do
    lacks[what] = true
  end

  describe("the provider " .. name .. ":", function()
    local box

    helper.deadline(60)
    helper.no_leaks(function()
      box:close()
      assert(moonsand.flush { timeout = 20 })
      box = nil
    end, opts.settle)

    before_each(function()
      box = assert(moonsand.create(opts.create))
      assert(box.files:mkdir(opts.directory or "/tmp/suite", { parents = true }))
      assert(box:cd(opts.directory or "/tmp/suite"))
    end)

    local function sh(script)
      local r = assert(box:exec(script))
      assert.is_true(r.ok, tostring(r) .. r.stderr)
      return r.stdout
    end

    it("every failure says whose it is, and nothing that is ours", function()
      local files, host = box.files, support.directory()
      assert(files:write("f", "text"))
      local calls = {
        stat = function() return files:stat "/none" end,
        exists = function() return files:exists "" end,
        list = function() return files:list "/none" end,
        depth = function() return files:list(".", { depth = 0 }) end,
        limit = function() return files:list(".", { limit = -1 }) end,
        search = function() return files:search "" end,
        read = function() return files:read "/none" end,
        directory = function() return files:read "/tmp" end,
        offset = function() return files:read("f", { offset = 1e19 }) end,
        max = function() return files:read("f", { max = 1 }) end,
        late = function() return files:read("f", { timeout = 0, max = "nothing" }) end,
        long = function() return files:read(("x"):rep(5000)) end,
        write = function() return files:write("f/x", "") end,
        many = function() return files:write_many { { "f/x", "" } } end,
        replace = function() return files:replace("/none", "a", "b") end,
        empty = function() return files:replace("f", "", "b") end,
        open = function() return files:open "/none" end,
        grep = function() return files:grep("x", { path = "/none" }) end,
        pattern = function() return files:grep "[" end,
        lines = function() return files:grep("t", { limit = 0 }) end,
        watch = function() return files:watch "/none" end,
        mkdir = function() return files:mkdir "/tmp" end,
        mode = function() return files:mkdir("x", { mode = "rw" }) end,
        remove = function() return files:remove "/none" end,
        move = function() return files:move("/none", "/tmp/x") end,
        copy = function() return files:copy("/none", "/tmp/x") end,
        nowhere = function() return files:copy("f", "") end,
        chmod = function() return files:chmod("/none", "755") end,
        chown = function() return files:chown("/none", 0) end,
        upload = function() return files:upload(host .. "/none", "x") end,
        download = function() return files:download("/none", host .. "/x") end,
        into = function() return files:download("f", host .. "/none/x") end,
        run = function() return box:run "/none.py" end,
        nothing = function() return box:run "" end,
        what = function() return box:run "f" end,
        language = function() return box:run_code("1", { language = "none" }) end,
        packages = function() return box:run_code("1", { packages = { "x" } }) end,
        helper = function() return box:python("1", { packages = { "x" } }) end,
        check = function() return box:exec("exit 3", { check = true }) end,
      }
      for call, fn in pairs(calls) do
        local value, message, code, detail = fn()
        assert.is_nil(value, call)
        assert.is_string(code, call)
        assert.same({ call, box.provider, message, code }, { call, detail.provider, detail.message,
          detail.code })
        assert.is_nil(detail.portable, call)
      end
      local events = assert(files:watch ".")
      local event, _, code, detail = events:next { timeout = 0.05 }
      assert.is_nil(event)
      assert.same({ "timeout", box.provider }, { code, detail.provider })
      events:close()
    end)

    describe("life", function()
      it("knows itself", function()
        local info = box:info()
        assert.equal(box.id, info.id)
        assert.equal(box.provider, info.provider)
        assert.is_string(info.state)
        assert.is_true(box.owned)
      end)

      it("ends, and is gone afterwards; twice is once", function()
        assert.is_true(box:destroy { timeout = 20 })
        assert.is_true(box:destroy { timeout = 20 })
        box:close()
        assert.has_error(function()
          box:exec "true"
        end)
      end)

      it("answers who waits on what is closed", function()
        local p = assert(box:start "sleep 60")
        local result, message, code, detail
        moonsand.run(function()
          local task = moonsand.task(function()
            result, message, code, detail = p:wait()
          end)
          box:close()
          task:wait { timeout = 20 }
        end)
        local said = code_of(result, message, code, detail)
        assert.is_true(said == "closed" or said == "gone", said)
      end)

      it("says what it can, and raises for what there is not", function()
        for _, capability in ipairs(require("moonsand.providers").capabilities) do
          local can = box:can(capability)
          assert.is_true(can == "native" or can == "portable" or can == false, capability)
        end
        assert.has_error(function()
          box:can "sdtin"
        end)
      end)
    end)

    describe("programs", function()
      it("answer status, both streams, all bytes", function()
        local r = assert(box:exec "echo out; echo err >&2; exit 3")
        assert.equal("exited", r.status)
        assert.equal(3, r.exit_code)
        assert.equal("out\n", r.stdout)
        assert.equal("err\n", r.stderr)
        assert.is_false(r.ok)
        assert.is_true(r.duration >= 0)
        r = assert(box:exec([[printf '\000\001\377\r\nx']]))
        assert.equal("\0\1\255\r\nx", r.stdout)
      end)

      it("take words that no shell sees", function()
        for _, word in ipairs(ODD) do
          local r = assert(box:exec { "printf", "%s|%s", word, "" })
          assert.equal(word .. "|", r.stdout)
        end
      end)

      it("have a directory, an environment and a mask", function()
        local r = assert(box:exec("pwd; echo $A; echo ${B-none}; umask", {
          cwd = "/tmp", env = { A = "x y\"'$z", B = false }, umask = "027",
        }))
        assert.equal("/tmp\nx y\"'$z\nnone\n0027\n", r.stdout)
        local view = assert(box:view { cwd = "/", env = { V = "1" } })
        assert.equal("/ 1\n", assert(view:exec "echo $(pwd) $V").stdout)
        assert.equal("1", view:getenv "V")
        assert.is_string(box:getenv "PATH")
      end)

      it("that are not there are not found", function()
        local value, message, code, detail = box:exec { "/nope/nothing" }
        if value then -- told by a shell
          assert.equal(127, value.exit_code)
        else
          assert.equal("not_found", code_of(value, message, code, detail))
          assert.is_false(detail.started)
        end
        assert.equal(127, assert(box:exec "nope-nothing").exit_code)
      end)

      it("are read while they run: the first output comes before the end", function()
        local p = assert(box:start "echo first; read x; echo last $x")
        assert.equal("first", p.stdout:read("l", 20))
        assert.is_true(p:is_running())
        assert(p.stdin:write "word\n")
        p.stdin:close()
        assert.equal("last word\n", p.stdout:read("a", 20))
        assert.equal(0, assert(p:wait(20)).exit_code)
      end)

      it("take input: none, a string, a function", function()
        assert.equal("", assert(box:exec "cat").stdout)
        assert.equal(BYTES, assert(box:exec("cat", { stdin = BYTES })).stdout)
        local left = 3
        local r = assert(box:exec("wc -c", { stdin = function()
          left = left - 1
          return left >= 0 and ("x"):rep(100000) or nil
        end }))
        assert.equal(300000, tonumber(r.stdout))
        assert.is_true(assert(box:exec("true", { stdin = ("x"):rep(1000000) })).ok)
      end)

      it("are ended by their timeout, which the Result says", function()
        local r = assert(box:exec("echo begun; sleep 60", { timeout = 3 }))
        assert.is_true(r.timed_out)
        assert.equal("timed_out", r.status)
        assert.is_nil(r.exit_code)
        assert.equal("begun\n", r.stdout)
        assert.is_true(r.duration < 20)
      end)

      it("get a TERM first when there is a grace", function()
        local r = assert(box:exec([[trap 'echo bye; exit 0' TERM; echo on
          while :; do sleep 0.05; done]], { timeout = 3, grace = 10 }))
        assert.is_true(r.timed_out)
        assert.equal("on\nbye\n", r.stdout)
      end)

      it("are ended by a cancelled token, which is a failure", function()
        local token = moonsand.token()
        local value, message, code, detail
        moonsand.run(function()
          value, message, code, detail = box:exec("echo begun; sleep 60", {
            cancel = token,
            on_line = function()
              token:cancel "enough"
            end,
          })
        end)
        assert.equal("cancelled", code_of(value, message, code, detail))
        assert.is_true(detail.started)
        assert.equal("begun\n", detail.result.stdout)
      end)

      it("are stopped and killed", function()
        local p = assert(box:start "trap 'exit 7' TERM; echo on; while :; do sleep 0.05; done")
        assert.equal("on", p.stdout:read("l", 20))
        assert.equal(7, assert(p:stop { grace = 10 }).exit_code)
        p = assert(box:start "sleep 60")
        p:close()
        assert.is_false(p:is_running())
      end)

      it("are held to what may be collected", function()
        local r = assert(box:exec("head -c 300000 /dev/zero | tr '\\0' x", { max_output = 1000 }))
        assert.equal(1000, #r.stdout)
        assert.equal(300000, r.stdout_bytes)
        assert.same({ at = 500, dropped = 299000 }, r.truncated.stdout)
        r = assert(box:exec("yes", { max_output = 1000, on_limit = "kill", timeout = 30 }))
        assert.equal("output_limit", r.status)
      end)

      it("wait for a reader that is slow", function()
        local p = assert(box:start "head -c 3000000 /dev/zero | tr '\\0' x; echo >&2 done")
        local total = 0
        for data in p.stdout:chunks { timeout = 20 } do
          total = total + #data
        end
        assert.equal(3000000, total)
        assert.is_true(assert(p:wait(20)).ok)
      end)

      it("tell callbacks, in order, and the end last", function()
        local heard = {}
        local r = assert(box:exec("echo a; echo b; echo c", {
          on_line = function(line, stream)
            heard[#heard + 1] = stream .. ":" .. line
          end,
          on_exit = function(result)
            heard[#heard + 1] = result.exit_code
          end,
        }))
        assert.same({ "stdout:a", "stdout:b", "stdout:c", 0 }, heard)
        assert.equal("a\nb\nc\n", r.stdout)
      end)

      it("run side by side", function()
        moonsand.run(function()
          local results = assert(moonsand.all({ 1, 2, 3, 4, 5, 6 }, function(i)
            return box:exec { "sh", "-c", "sleep 0.1; echo $0", tostring(i) }
          end))
          for i = 1, 6 do
            assert.equal(i .. "\n", results[i].stdout)
          end
        end)
      end)
    end)

    describe("files", function()
      it("keep every byte, at any length", function()
        for _, data in ipairs { "", "x", BYTES, ("\0\n"):rep(100000) } do
          assert.is_true(box.files:write("f", data))
          assert.equal(data, box.files:read "f")
          assert.equal(#data, assert(box.files:stat "f").size)
        end
        assert.equal("\n\0\n", box.files:read("f", { offset = 1, length = 3 }))
        assert(box.files:write("f", "end", { append = true }))
        assert.equal("\0\nend", box.files:read("f", { offset = 199998 }))
        assert(box.files:write("f", "new", { atomic = false }))
        assert.equal("new", box.files:read "f")
        assert.equal("too_large", code_of(box.files:read("f", { max = 2 })))
      end)

      it("may be called anything", function()
        for _, odd in ipairs(ODD) do
          local path = "dir " .. odd .. "/" .. odd
          assert.is_true(box.files:write(path, odd), odd)
          assert.equal(odd, box.files:read(path))
          local entry = assert(box.files:stat(path))
          assert.equal(odd, entry.name)
          assert.equal("file", entry.type)
          local list = assert(box.files:list("dir " .. odd))
          assert.equal(1, #list)
          assert.equal(odd, list[1].name)
          assert.is_true(box.files:move(path, path .. "2"))
          assert(box.files:copy(path .. "2", path))
          assert.is_true(box.files:chmod(path, "u=r"))
          assert.equal("0444", assert(box.files:stat(path)).permissions:gsub("^0400$", "0444"))
          assert.is_true(box.files:remove(path .. "2"))
          assert.is_false(box.files:exists(path .. "2"))
        end
        assert.equal(#ODD, #assert(box.files:list "."))
        assert.equal(#ODD * 2, #assert(box.files:list(".", { depth = 9 })))
        for _, odd in ipairs(ODD) do
          assert.is_true(box.files:remove("dir " .. odd, { recursive = true }))
        end
        assert.same({}, box.files:list ".")
      end)

      it("keep mode and link when they are written anew", function()
        assert(box.files:write("f", "one", { mode = "750" }))
        assert(box.files:write("f", "two"))
        assert.equal("0750", assert(box.files:stat "f").permissions)
        sh "ln -s f link; ln -s deep/new dangling"
        assert(box.files:write("link", "three"))
        assert.equal("three", box.files:read "f")
        assert.equal("symlink", assert(box.files:stat("link", { follow = false })).type)
        assert.equal("f", assert(box.files:stat("link", { follow = false })).target)
        assert(box.files:write("dangling", "made"))
        assert.equal("made", box.files:read "deep/new")
        assert.equal("", sh "find . -name '.moonsand*'")
      end)

      it("say what is wrong", function()
        sh "mkdir -p d/sub; echo x >f; mkfifo fifo; ln -s loop loop"
        local rows = {
          { "not_found", "read", "gone" }, { "not_found", "stat", "gone" },
          { "not_found", "remove", "gone" }, { "not_found", "list", "gone" },
          { "not_found", "chmod", "gone", "755" }, { "not_found", "move", "gone", "x" },
          { "not_found", "copy", "gone", "x" }, { "not_found", "open", "gone" },
          { "is_a_directory", "read", "d" }, { "is_a_directory", "write", "d", "x" },
          { "is_a_directory", "move", "f", "d" }, { "not_empty", "remove", "d" },
          { "not_a_directory", "list", "f" }, { "not_a_directory", "move", "d", "f" },
          { "exists", "mkdir", "d" }, { "invalid", "read", "fifo" },
          { "invalid", "copy", "d", "d/in" }, { "invalid", "move", "d", "d/in" },
          { "loop", "read", "loop" },
        }
        for _, row in ipairs(rows) do
          local said = code_of(box.files[row[2]](box.files, row[3], row[4]))
          assert.equal(row[1], said, table.concat(row, " "))
        end
        assert.equal("not_found", code_of(box.files:write("gone/x", "x", { parents = false })))
        assert.is_false(box.files:exists "gone")
        assert.is_true(box.files:mkdir("d", { parents = true }))
      end)

      it("are listed, searched, replaced in", function()
        sh [[mkdir -p a/b a/.git; echo 'one two' >a/x.py; echo two >a/b/y.py; echo no >a/b/z.txt
             echo h >a/.git/h.py; ln -s b a/l]]
        local names = {}
        for _, entry in ipairs(assert(box.files:list("a", { depth = 5 }))) do
          names[#names + 1] = entry.path:match "/suite/(.*)" .. ":" .. entry.type
        end
        assert.same({ "a/.git:directory", "a/.git/h.py:file", "a/b:directory", "a/b/y.py:file",
          "a/b/z.txt:file", "a/l:symlink", "a/x.py:file" }, names)
        names = {}
        for _, entry in ipairs(assert(box.files:search "a/**/*.{py,txt}")) do
          names[#names + 1] = entry.path:match "/suite/(.*)"
        end
        assert.same({ "a/b/y.py", "a/b/z.txt", "a/x.py" }, names)
        assert.equal("too_large", code_of(box.files:list("a", { limit = 2 })))
        assert.equal(1, box.files:replace("a/x.py", "two", "%1"))
        assert.equal("one %1\n", box.files:read "a/x.py")
        local found = assert(box.files:grep("tw.", { path = "a" }))
        assert.equal(1, #found)
        assert.same({ 1, 1, "two" }, { found[1].line, found[1].column, found[1].text })
        assert.same({}, box.files:grep("tw.", { path = "a", plain = true }))
      end)

      it("are opened as streams", function()
        local f = assert(box.files:open("s", "w"))
        assert(f:write "one\n"):write "two\n"
        f:close()
        f = assert(box.files:open("s", "a"))
        assert(f:write "three")
        f:close()
        f = assert(box.files:open "s")
        assert.equal("one", f:read "l")
        assert.equal(4, f:seek())
        assert.equal("two\nthree", f:read "a")
        assert.equal(4, f:seek("set", 4))
        assert.equal("tw", f:read(2))
        f:close()
        f = assert(box.files:open("s", "r+"))
        assert.equal("one", f:read "l")
        assert(f:write "TWO")
        f:close()
        assert.equal("one\nTWO\nthree", box.files:read "s")
      end)

      it("go up and come down, single and as trees", function()
        local host = support.directory() .. "/suite"
        support.run("rm -rf " .. host .. "; mkdir -p " .. host .. "/up/sub/empty")
        support.write(host .. "/up/bytes", BYTES)
        support.write(host .. "/up/sub/" .. ("long"):rep(40), "deep")
        support.write(host .. "/up/sub/new\nline", "odd")
        support.run("ln -s sub/x " .. host .. "/up/link; chmod 750 " .. host .. "/up/bytes")
        local told = 0
        local summary = assert(box.files:upload(host .. "/up/bytes", "one", {
          progress = function(done)
            told = done
          end,
        }))
        assert.equal(#BYTES, summary.bytes)
        assert.equal(#BYTES, told)
        assert.equal(BYTES, box.files:read "one")
        assert.equal("0750", assert(box.files:stat "one").permissions)
        assert.equal(6, assert(box.files:upload(host .. "/up", "tree")).entries)
        assert.equal(BYTES, box.files:read "tree/bytes")
        assert.equal("odd", box.files:read "tree/sub/new\nline")
        assert.equal(#BYTES, assert(box.files:download("tree/bytes", host .. "/down")).bytes)
        assert.equal(BYTES, support.read(host .. "/down"))
        summary = assert(box.files:download("tree", host .. "/back"))
        assert.equal(6, summary.entries)
        assert.same({}, summary.skipped)
        local same = ("diff -r --no-dereference %s/up %s/back"):format(host, host)
        assert.equal("", (support.run(same)))
        assert.equal("too_large", code_of(box.files:download("tree", host .. "/no", { max = 5 })))
        assert.equal("not_found", code_of(box.files:upload(host .. "/gone", "x")))
        assert.equal("not_found", code_of(box.files:download("gone", host .. "/x")))
      end)

      it("are watched", function()
        local it_ = assert(box.files:watch(".", { interval = 0.02 }))
        assert(box.files:write("seen", "1"))
        local event = assert(it_:next(20))
        assert.equal("created", event.event)
        assert.equal("seen", event.path:match "[^/]*$")
        assert(box.files:remove "seen")
        repeat
          event = assert(it_:next(20))
        until event.event == "removed"
        it_:close()
        assert.is_nil((it_:next(20)))
      end)
    end)

    describe("processes", function()
      it("are told of, with odd words", function()
        local p = assert(box:start { "sh", "-c", "echo up; read x", "it's a\nword) R 1", "" })
        assert.equal("up", p.stdout:read("l", 20))
        local row = support.eventually(20, "it does not wait for input", function()
          local rows = assert(box:ps "it's a\nword")
          assert.equal(1, #rows)
          return rows[1].state == "sleeping" and rows[1], rows[1].state
        end)
        assert.same({ "sh", "-c", "echo up; read x", "it's a\nword) R 1", "" }, row.argv)
        assert.equal("sh", row.name)
        assert.is_true(row.memory > 0 and row.ppid >= 0 and row.started_at > 1e9)
        assert.is_string(row.user)
        assert.same({}, box:ps "no such thing")
        assert.equal(1, #assert(box:ps(function(each)
          return each.pid == row.pid
        end)))
        assert.is_true(box:kill(row.pid))
        local r = assert(p:wait(20))
        assert.is_false(r.ok)
        assert.equal("not_found", code_of(box:kill(row.pid)))
      end)

      it("are killed with what is below them, and by name", function()
        local p = assert(box:start "sh -c 'sleep 61; :' & sleep 62; :")
        support.eventually(20, "they run", function() -- and nothing is forked any more
          return #assert(box:ps(function(row)
            return row.command == "sleep 61" or row.command == "sleep 62"
          end)) == 2
        end)
        local first = assert(box:ps(function(row)
          return row.command:find("62; :", 1, true) ~= nil
        end))[1]
        assert.is_true(box:kill(first.pid, { signal = "KILL", tree = true }))
        assert(p:wait(20))
        p = assert(box:start [[trap "" TERM; echo on; exec sleep 63]]) -- which has no fork to be counted
        assert.equal("on", p.stdout:read("l", 20))
        local function sleeps(row)
          return row.command == "sleep 63"
        end
        support.eventually(20, "it does not sleep", function()
          return #assert(box:ps(sleeps)) == 1
        end)
        assert.equal(1, box:killall(sleeps, { grace = 0.1 }))
        assert.equal("KILL", assert(p:wait(20)).signal)
        assert.equal(0, box:killall "no such thing")
      end)

      it("are measured until they end", function()
        local p = assert(box:start "echo on; while :; do :; done")
        assert.equal("on", p.stdout:read("l", 20)) -- by the program, not by who starts it
        local pid
        support.eventually(20, "it runs", function()
          local row = assert(box:ps "while :; do :")[1]
          pid = row and row.pid
          return pid
        end)
        local it_ = assert(box:monitor(pid, { interval = 0.1 }))
        support.eventually(20, "it uses no processor", function()
          local sample = assert(it_:next(20))
          assert.is_true(sample.memory > 0)
          return sample.cpu_percent > 1
        end)
        p:close()
        support.eventually(20, "the samples end", function()
          return it_:next(20) == nil
        end)
      end)

      it("and the whole is measured", function()
        local m = assert(box:metrics())
        for _, key in ipairs { "cpu_percent", "cpu_count", "memory_used", "memory_total",
          "memory_percent", "processes", "disk_used", "at" } do
          assert.is_number(m[key], key)
        end
        assert.is_true(m.memory_used <= m.memory_total and m.cpu_count >= 1)
        local it_ = box:watch_metrics { interval = 0.05 }
        assert.is_number(assert(it_:next(20)).cpu_percent)
        assert.is_number(assert(it_:next(20)).cpu_percent)
        it_:close()
      end)
    end)

    describe("sessions", function()
      it("live on from command to command, streams apart", function()
        local session = assert(box:session())
        assert.is_true(session.alive)
        assert(session:exec "cd /tmp; export X='a b'; f() { echo f:$1; }")
        local r = assert(session:exec "pwd; f \"$X\"; echo err >&2; false")
        assert.equal("/tmp\nf:a b\n", r.stdout)
        assert.equal("err\n", r.stderr)
        assert.equal(1, r.exit_code)
        assert.equal("/tmp", session:cwd())
        assert.equal("a b", session:getenv "X")
        r = assert(session:exec("sleep 60", { timeout = 1 }))
        assert.is_true(r.timed_out)
        assert.equal("a b\n", assert(session:exec "echo $X").stdout)
        assert.equal(5, assert(session:exec "exit 5").exit_code)
        assert.is_false(session.alive)
        assert.equal("closed", code_of(session:exec "echo"))
        session:close()
      end)
    end)

    if not lacks.background then
      it("has programs in the background, which are found again", function()
        local p = assert(box:start("echo one; echo two; while [ ! -e go-on ]; do sleep 0.05; done; echo three",
          { background = true }))
        assert.equal("one", p.stdout:read("l", 20))
        local id, since = p.id, assert(p:offsets())
        assert.is_true(p:detach())
        local q = assert(box:attach(id, { since = since }))
        assert.equal("two", q.stdout:read("l", 20))
        local rows = assert(box:processes())
        local found
        for _, row in ipairs(rows) do
          found = found or row.id == id and row
        end
        assert.is_true(found.running)
        assert(box.files:write("go-on", ""))
        assert.equal("three", q.stdout:read("l", 20))
        assert.is_true(assert(q:wait(20)).ok)
        assert.equal("one\ntwo\nthree\n", assert(q:log()).stdout)
        for _, row in ipairs(assert(box:processes())) do
          assert.is_true(row.id ~= id or not row.running and row.exit_code == 0)
        end
      end)
    end

    describe("what it lacks", function()
      for _, call in ipairs { { "pause" }, { "resume" }, { "snapshot" }, { "set_lifetime", 60 },
        { "url", 80 } } do
        if lacks[call[1]] then
          it(call[1] .. " is unsupported", function()
            assert.equal("unsupported", code_of(box[call[1]](box, call[2])))
          end)
        end
      end
    end)
  end)
end
