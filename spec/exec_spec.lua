-- box:exec against the contract: commands, options, input, output, how programs end.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local now = require("moonsand.core").now

local LONG = 300 -- seconds that no test takes: who sleeps so long must be killed

local unpack = table.unpack or unpack

local fails = support.fails

--- A failure of something that was never started.
local function fails_unstarted(code, ...)
  local message, detail = fails(code, ...)
  assert.is_false(detail.started)
  return message, detail
end

--- Asserts that fn raises, with this text, at one of its own lines.
local function blames(fn, text)
  local ok, err = pcall(fn)
  assert.is_false(ok, "it did not raise: " .. text)
  local line, message = tostring(err):match "exec_spec%.lua:(%d+): moonsand: (.*)$"
  assert.is_truthy(line, "not at the caller's line: " .. tostring(err))
  local info = debug.getinfo(fn, "S")
  assert.is_true(tonumber(line) >= info.linedefined and tonumber(line) <= info.lastlinedefined,
    "not at the caller's line: " .. err)
  assert.is_truthy(message:find(text, 1, true), ("%q lacks %q"):format(message, text))
end

local function is_integer(value)
  return type(value) == "number" and value % 1 == 0
    and (not math.type or math.type(value) == "integer")
end

local function numbers(last)
  local lines = {}
  for i = 1, last do
    lines[i] = i .. "\n"
  end
  return table.concat(lines)
end

describe("moonsand.sandbox", function()
  helper.deadline(30)
  helper.no_leaks()

  describe(":exec", function()
    local box

    before_each(function()
      box = moonsand.assert(moonsand.create())
    end)
    after_each(function()
      box:close()
    end)

    local function exec(...)
      return moonsand.assert(box:exec(...))
    end

    --- Makes an executable file inside.
    local function script(path, text)
      assert.is_true(exec({ "sh", "-c", 'cat >"$0" && chmod +x "$0"', path }, { stdin = text }).ok)
    end

    --- All that runs in the sandbox now, as the host sees it.
    local function running()
      local names = {}
      for _, process in ipairs(support.descendants((support.agent(box)))) do
        names[#names + 1] = process.name
      end
      return names
    end

    local function read(path)
      return exec({ "cat", path }).stdout
    end

    describe("with a command", function()
      it("gives a string to /bin/sh", function()
        local r = exec 'printf "%s|" "$0" $((6 * 7)); echo err >&2; exit 3'
        assert.equal("/bin/sh|42|", r.stdout)
        assert.equal("err\n", r.stderr)
        assert.equal(3, r.exit_code)
      end)

      it("gives the words of a list as they are, byte for byte", function()
        local bytes = {}
        for i = 1, 255 do
          bytes[i] = string.char(i)
        end
        local words = { "a b", "", "*", "$HOME", "`id`", "'\"\\", "-n", table.concat(bytes) }
        local r = exec { "printf", "%s|", unpack(words) }
        assert.equal(table.concat(words, "|") .. "|", r.stdout)
      end)

      it("raises for what is no command, naming the word", function()
        for text, command in pairs {
          ["word 2 of the command must be a string, got nil"] = { "a", nil, "b" },
          ["word 3 of the command must be a string, got nil"] = { "a", "b", [5] = "c" },
          ["word 1 of the command must be a string, got number"] = { 1 },
          ["word 2 of the command must be a string, got table"] = { "a", {} },
          ["word 3 of the command must be a string, got boolean"] = { "a", "b", false },
          ["the command is an empty list"] = {},
          ["a list of words, got number"] = 42,
          ["not a table with the key 'cmd'"] = { cmd = "true" },
          ["not a table with the key 1.5"] = { "a", [1.5] = "b" },
        } do
          blames(function()
            local r = box:exec(command)
            return r
          end, text)
          blames(function()
            local p = box:start(command)
            return p
          end, text)
        end
        blames(function()
          local r = box:exec()
          return r
        end, "a list of words, got nil")
      end)

      it("refuses a NUL", function()
        for _, command in ipairs { "echo a\0b", { "echo", "a\0b" }, { "ec\0ho" } } do
          local message = fails_unstarted("invalid", box:exec(command))
          assert.is_truthy(message:find("NUL", 1, true))
          fails_unstarted("invalid", box:start(command))
        end
      end)

      it("tells a program that is missing from a shell that does not find it", function()
        local r = exec "no-such-program"
        assert.equal(127, r.exit_code)
        assert.is_false(r.ok)
        local _, detail = fails_unstarted("not_found", box:exec { "no-such-program" })
        assert.equal("program", detail.what)
        _, detail = fails_unstarted("not_found", box:start { "no-such-program" })
        assert.equal("program", detail.what)
      end)

      it("says why a program cannot be started", function()
        script("/tmp/orphan", "#!/no/such/interpreter\n")
        script("/tmp/text", "neither a script nor a binary\n")
        script("/tmp/shebang-directory", "#!/tmp\n")
        exec "echo 'echo x' >/tmp/plain; mkfifo /tmp/pipe; ln -s loop /tmp/loop"
        for _, row in ipairs {
          { "/tmp", "is_a_directory", "program" },
          { "/tmp/", "is_a_directory", "program" },
          { "/tmp/plain", "permission_denied", "program" },
          { "/tmp/pipe", "permission_denied", "program" },
          { "/tmp/orphan", "not_found", "interpreter" },
          { "/tmp/shebang-directory", "permission_denied", "program" },
          { "/tmp/text", "invalid", "program" },
          { "/tmp/plain/x", "not_found", "program" },
          { "./none", "not_found", "program" },
          { "", "not_found", "program" },
          { "/tmp/loop", "loop", "program" },
          { ("x"):rep(300), "invalid", "program" },
        } do
          local _, detail = fails_unstarted(row[2], box:exec { row[1] })
          assert.equal(row[3], detail.what, row[1])
          fails_unstarted(row[2], box:start { row[1] })
        end
      end)

      it("looks for a program in the PATH that the program gets", function()
        exec "mkdir /tmp/a /tmp/b /tmp/c; echo >/tmp/a/tool; mkdir /tmp/a/other"
        script("/tmp/b/tool", "#!/bin/sh\necho b\n")
        script("/tmp/b/other", "#!/bin/sh\necho other\n")
        script("/workspace/tool", "#!/bin/sh\necho here\n")
        for _, row in ipairs {
          { "/tmp/b", "b\n" },
          { "/no:/tmp/c:/tmp/b", "b\n" },
          { "/tmp/a:/tmp/b", "b\n" }, -- one that may not be executed is passed over
          { "/etc/passwd:/tmp/b", "b\n" },
          { ":/tmp/b", "here\n" }, -- an empty entry is the working directory
          { "/tmp/c:", "here\n" },
          { ".", "here\n" },
        } do
          assert.equal(row[2], exec({ "tool" }, { env = { PATH = row[1] } }).stdout, row[1])
        end
        local _, detail = fails_unstarted("permission_denied",
          box:exec({ "tool" }, { env = { PATH = "/tmp/a:/tmp/c" } }))
        assert.equal("program", detail.what)
        fails_unstarted("not_found", box:exec({ "tool" }, { env = { PATH = "/tmp/c" } }))
        fails_unstarted("not_found", box:exec({ "tool" }))
        assert.equal("x\n", exec({ "echo", "x" }, { env = { PATH = false } }).stdout)
        assert.equal("here\n", exec({ "./tool" }, { env = { PATH = "/tmp/b" } }).stdout)
      end)

      it("refuses words and variables that are too big for the system", function()
        local big = ("x"):rep(200 * 1024)
        local many = { "true" }
        for i = 1, 40 do
          many[i + 1] = ("y"):rep(100 * 1024)
        end
        for _, command in ipairs { { "true", big }, many, { "true",
          ("z"):rep(20 * 1024 * 1024) } } do
          fails_unstarted("too_large", box:exec(command))
          fails_unstarted("too_large", box:start(command))
        end
        fails_unstarted("too_large", box:exec(big))
        fails_unstarted("too_large", box:exec({ "true" }, { env = { BIG = big } }))
        assert.equal("fine\n", exec("echo fine").stdout)
      end)

      it("passes big words and variables that fit", function()
        local word = ("0123456789"):rep(10000) -- 100 KB
        assert.is_true(word == exec({ "printf", "%s", word }).stdout)
        assert.is_true(word == exec('printf "%s" "$BIG"', { env = { BIG = word } }).stdout)
        local argv = { "printf", "%s" } -- 1 MB: more than one message takes
        for i = 1, 10 do
          argv[#argv + 1] = (string.char(96 + i)):rep(100000)
        end
        assert.is_true(table.concat(argv, "", 3) == exec(argv).stdout)
        local list = { "printf", "%s" } -- many small ones
        for i = 1, 20000 do
          list[#list + 1] = tostring(i)
        end
        assert.is_true(table.concat(list, "", 3) == exec(list).stdout)
      end)
    end)

    describe("cwd", function()
      it("begins in /workspace, and may be absolute or relative", function()
        exec "mkdir -p sub/deep 'a b'"
        assert.equal("/workspace\n", exec("pwd").stdout)
        for cwd, expected in pairs {
          ["/tmp"] = "/tmp\n",
          ["."] = "/workspace\n",
          sub = "/workspace/sub\n",
          ["./sub/deep/.."] = "/workspace/sub\n",
          ["a b/"] = "/workspace/a b\n",
        } do
          assert.equal(expected, exec({ "pwd", "-P" }, { cwd = cwd }).stdout)
        end
        assert.equal("/workspace/sub/deep\n",
          moonsand.assert(box:view { cwd = "sub" }:exec("pwd", { cwd = "deep" })).stdout)
      end)

      it("says what is wrong with it", function()
        exec "echo >file; mkdir locked; chmod 0 locked"
        for cwd, code in pairs {
          ["/no/such"] = "not_found",
          none = "not_found",
          file = "not_a_directory",
          ["file/x"] = "not_a_directory",
          locked = "permission_denied",
        } do
          local _, detail = fails_unstarted(code, box:exec("true", { cwd = cwd }))
          assert.equal("cwd", detail.what)
        end
        for _, cwd in ipairs { "", "a\0b", ("d/"):rep(4000) } do
          fails_unstarted("invalid", box:exec("true", { cwd = cwd }))
        end
      end)
    end)

    describe("env", function()
      local function env_of(opts)
        local list = {}
        for entry in exec({ "env", "-0" }, opts).stdout:gmatch "([^%z]*)%z" do
          list[#list + 1] = entry
        end
        table.sort(list)
        return list
      end

      it("is what the manual says, and nothing of the host's", function()
        local list = env_of()
        local path = table.remove(list, 3)
        assert.is_truthy(path:find "^PATH=/[%w/:]*/usr/bin", path)
        assert.same({ "HOME=/workspace", "LANG=C.UTF-8", "TERM=dumb", "TMPDIR=/tmp",
          "USER=sandbox" },
          list)
      end)

      it("takes strings and numbers, and false takes one out", function()
        local env = { EMPTY = "", N = 5, F = 1.5, BYTES = "a=b\n\255 'q'", TERM = false,
          NONE = false }
        local r = exec([[printf '%s|' "${EMPTY-unset}" "$N" "$F" "$BYTES" \
          "${TERM-unset}" "${NONE-unset}"]], { env = env })
        assert.equal("|5|1.5|a=b\n\255 'q'|unset|unset|", r.stdout)
      end)

      it("is all there is with clear_env", function()
        assert.same({}, env_of { clear_env = true, env = { PATH = false } })
        assert.same({ "A=1" }, env_of { clear_env = true, env = { A = 1 } })
        local other = moonsand.assert(moonsand.create { clear_env = true, env = { B = "2" } })
        assert.equal("B=2\0", moonsand.assert(other:exec { "/usr/bin/env", "-0" }).stdout)
        other:close()
      end)

      it("refuses names and values that cannot be", function()
        for _, env in ipairs { { [""] = "x" }, { ["A=B"] = "x" }, { ["A\0"] = "x" },
          { A = "x\0y" } } do
          fails_unstarted("invalid", box:exec("true", { env = env }))
        end
        for text, env in pairs {
          ["names of variables are strings, got number"] = { "A=1" },
          ["variable A must be a string, a number or false, got boolean"] = { A = true },
          ["variable A must be a string, a number or false, got table"] = { A = {} },
        } do
          blames(function()
            local r = box:exec("true", { env = env })
            return r
          end, text)
        end
      end)

      it("reads env_file, under env", function()
        local path = support.write(support.directory() .. "/env", table.concat {
          "# a comment\n\nPLAIN=some text # not this\nexport EXPORTED=1\n  SPACED = x  \n",
          "SINGLE='a $b #c'\nDOUBLE=\"line\\nnext\"\nEMPTY=\nCRLF=y\r\nOVER=file\nLAST=end",
        })
        local r = exec([[printf '%s|' "$PLAIN" "$EXPORTED" "$SPACED" "$SINGLE" "$DOUBLE" \
          "${EMPTY-unset}" "$CRLF" "$OVER" "$LAST"]], { env_file = path, env = { OVER = "call" } })
        assert.equal("some text|1|x|a $b #c|line\nnext||y|call|end|", r.stdout)
        assert.same({ "A=b" }, env_of {
          clear_env = true,
          env_file = support.write(support.directory() .. "/env", "A=b\n"),
        })
      end)

      it("says what is wrong with env_file", function()
        local path = support.directory() .. "/env-bad"
        local _, detail = fails_unstarted("not_found", box:exec("true", { env_file = path }))
        assert.equal(path, detail.path)
        fails_unstarted("is_a_directory", box:exec("true", { env_file = support.directory() }))
        support.write(path, "A=1\n\n# x\nnot a variable\n")
        local message
        message, detail = fails_unstarted("invalid", box:exec("true", { env_file = path }))
        assert.is_truthy(message:find(path .. ":4:", 1, true), message)
        assert.equal(path, detail.path)
        support.write(path, "A=1\0\n")
        fails_unstarted("invalid", box:exec("true", { env_file = path }))
        fails("not_found", moonsand.create { env_file = path .. "-none" })
      end)
    end)

    describe("shell", function()
      it("is a program or a list, of the sandbox, the view or the call", function()
        local bash = 'echo "${BASH_VERSION:+bash} $-"'
        assert.equal(" \n", (exec(bash).stdout:gsub("%a", "")))
        assert.is_truthy(exec(bash, { shell = "bash" }).stdout:find "^bash ")
        assert.is_truthy(exec(bash, { shell = { "bash", "-ec" } }).stdout:find "^bash .*e")
        assert.equal("-- x --", exec("x", { shell = { "printf", "-- %s --" } }).stdout)
        local view = box:view { shell = "bash" }
        assert.is_truthy(moonsand.assert(view:exec(bash)).stdout:find "^bash ")
        assert.is_nil(moonsand.assert(view:exec(bash, { shell = "sh" })).stdout:find "bash")
        local other = moonsand.assert(moonsand.create { shell = { "bash", "-uc" } })
        assert.is_truthy(moonsand.assert(other:exec(bash)).stdout:find "^bash .*u")
        other:close()
        assert.equal("x\n", exec({ "echo", "x" },
          { shell = "/no/such" }).stdout) -- a list meets none
      end)

      it("may be missing, which is no 127", function()
        local _, detail = fails_unstarted("not_found", box:exec("true",
          { shell = "no-such-shell" }))
        assert.equal("program", detail.what)
        fails_unstarted("invalid", box:exec("true", { shell = "a\0" }))
        blames(function()
          local r = box:exec("true", { shell = {} })
          return r
        end, "empty list")
        blames(function()
          local r = box:exec("true", { shell = { "sh", 1 } })
          return r
        end, "word 2")
      end)
    end)

    describe("user and umask", function()
      it("knows the one user that there is", function()
        for _, user in ipairs { "sandbox", 1000, "1000" } do
          assert.equal("1000 sandbox\n", exec('echo "$(id -u) $(id -un)"', { user = user }).stdout)
        end
        for _, user in ipairs { "root", 0, "nobody", "" } do
          fails_unstarted("unsupported", box:exec("true", { user = user }))
        end
      end)

      it("sets the umask", function()
        for mask, expected in pairs { ["077"] = "600", ["0"] = "666", ["0027"] = "640" } do
          assert.equal(expected .. "\n",
            exec("rm -f f; echo >f; stat -c %a f", { umask = mask }).stdout)
        end
        assert.equal("644\n", exec("echo >g; stat -c %a g").stdout)
        for _, mask in ipairs { "", "8", "rwx", "1000", "-1", "0x1" } do
          fails_unstarted("invalid", box:exec("true", { umask = mask }))
        end
        blames(function()
          local r = box:exec("true", { umask = 77 })
          return r
        end, "option 'umask' must be a string, got number")
      end)
    end)

    describe("limits", function()
      it("cpu_time ends what computes too long", function()
        local r = exec("while :; do :; done", { limits = { cpu_time = 1 } })
        assert.equal("resource_limit", r.status)
        assert.equal("cpu_time", r.limit)
        assert.equal("XCPU", r.signal)
        assert.is_nil(r.exit_code)
        assert.is_false(r.ok)
        -- The kernel counts ticks for the limit, time for the usage: they differ when it is busy.
        assert.is_true(r.usage.cpu_time > 0.2 and r.usage.cpu_time < 5, r.usage.cpu_time)
      end)

      it("of the sandbox hold for each program, and are named too", function()
        local small = moonsand.assert(moonsand.create { limits = { file_size = "8K",
          open_files = 20 } })
        local dd = { "dd", "if=/dev/zero", "of=big", "bs=4096", "count=4" }
        local r = moonsand.assert(small:exec(dd))
        assert.equal("resource_limit", r.status)
        assert.equal("file_size", r.limit)
        assert.equal("20\n", moonsand.assert(small:exec "ulimit -n").stdout)
        assert.is_true(moonsand.assert(small:exec(dd, { limits = { file_size = "1M" } })).ok)
        small:close()
      end)

      it("file_size ends what writes a longer file", function()
        local r = exec({ "dd", "if=/dev/zero", "of=big", "bs=65536", "count=3" },
          { limits = { file_size = "64K" } })
        assert.equal("resource_limit", r.status)
        assert.equal("file_size", r.limit)
        assert.equal("XFSZ", r.signal)
        assert.equal("65536\n", exec("stat -c %s big").stdout)
      end)

      it("open_files, processes and memory are refused inside", function()
        assert.equal("17\n", exec("ulimit -n", { limits = { open_files = 17 } }).stdout)
        local r = exec("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 300 & done",
          { limits = { processes = 8 } })
        assert.equal("exited", r.status)
        assert.is_false(r.ok)
        assert.is_truthy(r.stderr:lower():find "fork")
        local hog = { "lua5.4", "-e", "print(#('x'):rep(128 * 1024 * 1024))" }
        r = exec(hog, { limits = { memory = "64M" } })
        assert.is_false(r.ok)
        assert.is_truthy(r.stderr:find "not enough memory")
        assert.is_true(exec(hog, { limits = { memory = "512M" } }).ok)
      end)

      it("that cannot be set are refused, not ignored", function()
        local message, detail = fails_unstarted("unavailable",
          box:exec("true", { limits = { open_files = 2 ^ 40 } }))
        assert.equal("limits", detail.what)
        assert.truthy(message:find("limits.open_files", 1, true))
        assert.truthy(detail.cause:find "hard limit")
        assert.truthy(detail.fix:find "ask for at most %d+,")
      end)

      it("are checked", function()
        for _, limits in ipairs {
          { cpu_time = 0 }, { cpu_time = -1 }, { open_files = 0 }, { processes = 0 / 0 },
          { memory = "much" }, { memory = -1 }, { file_size = "1X" },
          { processes = math.huge }, { processes = 1e19 }, { open_files = 1.5 }, { cpu_time = 1e12 },
          { cpu_time = math.huge }, { memory = math.huge },
        } do
          fails_unstarted("invalid", box:exec("true", { limits = limits }))
        end
        for text, limits in pairs {
          ["unknown option 'memroy' (did you mean 'memory'?)"] = { memroy = 1 },
          ["unknown option 'cpus'"] = { cpus = 1 },
          ["option 'cpu_time' must be a number, got string"] = { cpu_time = "1" },
        } do
          blames(function()
            local r = box:exec("true", { limits = limits })
            return r
          end, text)
        end
      end)
    end)

    describe("timeout", function()
      it("ends the tree and is a Result that says so", function()
        local results = moonsand.run(function() -- side by side: it is long enough to begin
          return moonsand.assert(moonsand.all({ { timeout = 2.5 }, 2.5 }, function(opts)
            return box:exec("echo before; setsid sleep 300 & sleep 300", opts)
          end))
        end)
        assert.equal(2, #results)
        for _, r in ipairs(results) do
          assert.equal("timed_out", r.status)
          assert.is_true(r.timed_out)
          assert.is_false(r.ok)
          assert.is_nil(r.exit_code)
          assert.equal("KILL", r.signal)
          assert.equal(9, r.signal_number)
          assert.equal("before\n", r.stdout)
          assert.is_true(r.duration >= 2.5 and r.duration < 20)
          assert.same({}, running())
        end
      end)

      it("sends TERM first when there is a grace", function()
        local r = exec([[trap 'echo bye; exit 7' TERM; while :; do :; done]],
          { timeout = 2, grace = LONG })
        assert.equal("timed_out", r.status)
        assert.equal("bye\n", r.stdout)
        assert.equal(7, r.exit_code)
        assert.is_false(r.ok)
      end)

      it("sends KILL to what ignores TERM, after the grace", function()
        local r = exec([[trap '' TERM; echo on; while :; do sleep 0.01; done]],
          { timeout = 2, grace = 0.1 })
        assert.equal("timed_out", r.status)
        assert.equal("KILL", r.signal)
        assert.equal("on\n", r.stdout)
        assert.is_true(r.duration >= 2.1 and r.duration < 20)
      end)

      it("of 0 starts nothing", function()
        fails_unstarted("timeout", box:exec("echo x >made", { timeout = 0 }))
        fails_unstarted("timeout", box:exec("echo x >made", 0))
        assert.equal(1, exec("test -e made").exit_code)
      end)

      it("must be a number from 0", function()
        for _, timeout in ipairs { -1, -0.001, 0 / 0, -math.huge } do
          blames(function()
            local r = box:exec("true", { timeout = timeout })
            return r
          end, "'timeout' must be a number of seconds")
        end
        blames(function()
          local r = box:exec("true", { timeout = "1" })
          return r
        end, "option 'timeout' must be a number, got string")
        blames(function()
          local r = box:exec("true", { grace = -1 })
          return r
        end, "grace")
        assert.is_true(exec("true", { timeout = math.huge }).ok)
      end)

      it("of a view holds for its programs", function()
        local view = box:view { timeout = 0.05 }
        assert.is_true(moonsand.assert(view:exec "sleep 300").timed_out)
        assert.is_false(moonsand.assert(view:exec("sleep 0.06", { timeout = LONG })).timed_out)
      end)
    end)

    describe("cancel", function()
      it("before the start starts nothing", function()
        local token = moonsand.token()
        token:cancel "no more"
        local message, detail = fails_unstarted("cancelled", box:exec("echo >made",
          { cancel = token }))
        assert.equal("cancelled: no more", message)
        assert.equal("no more", detail.cause)
        assert.equal(1, exec("test -e made").exit_code)
      end)

      it("kills the tree and is a failure with what there was", function()
        local token = moonsand.token()
        local message, detail = fails("cancelled",
          box:exec("echo go; setsid sleep 300 & sleep 300", {
          cancel = token,
          on_stdout = function()
            token:cancel "enough"
          end,
        }))
        assert.equal("cancelled: enough", message)
        assert.equal("enough", detail.cause)
        assert.is_true(detail.started)
        assert.equal("go\n", detail.result.stdout)
        assert.equal("KILL", detail.result.signal)
        assert.same({}, running())
      end)

      it("may be a token's own deadline", function()
        fails("cancelled", box:exec("sleep 300", { cancel = moonsand.token { timeout = 0.05 } }))
        assert.same({}, running())
      end)

      it("of the task around it kills the tree too", function()
        moonsand.run(function()
          local task
          task = moonsand.task(function()
            return box:exec("echo go; sleep 300 & sleep 300", {
              on_stdout = function()
                task:cancel "over"
              end,
            })
          end)
          fails("cancelled", task:wait())
        end)
        assert.same({}, running())
      end)

      it("must be a token", function()
        blames(function()
          local r = box:exec("true", { cancel = {} })
          return r
        end, "must be a token")
      end)
    end)

    describe("check", function()
      it("passes a Result that is ok", function()
        assert.equal("x\n", exec("echo x", { check = true }).stdout)
      end)

      it("turns the others into failures that say why", function()
        for _, row in ipairs {
          { "exit", "echo first >&2; echo 'last line' >&2; echo >&2; exit 3", {},
            "exited with 3: last line" },
          { "exit", "exit 1", {}, "exited with 1" },
          { "signal", "echo hurt >&2; kill -SEGV $$", {}, "ended by signal SEGV: hurt" },
          { "timeout", "sleep 300", { timeout = 0.05 }, "timed out after" },
          { "output_limit", "yes", { max_output = 100, on_limit = "kill" }, "too much output" },
          { "resource_limit", "exec dd if=/dev/zero of=big bs=8192 count=2 2>&-",
            { limits = { file_size = "4K" } }, "its limit of file_size" },
        } do
          row[3].check = true
          local message, detail = fails(row[1], box:exec(row[2], row[3]))
          assert.is_truthy(message:find(row[4], 1, true), message)
          assert.is_true(detail.started)
          assert.is_false(detail.result.ok)
          assert.is_truthy(detail.id)
        end
      end)

      it("of a view can be taken back by a call", function()
        local view = box:view { check = true }
        fails("exit", view:exec "exit 1")
        assert.equal(1, moonsand.assert(view:exec("exit 1", { check = false })).exit_code)
      end)
    end)

    describe("max_output", function()
      it("keeps the first and the last half, byte for byte", function()
        local all = numbers(1000)
        local total = #all
        for _, limit in ipairs { 0, 1, 2, 3, 99, 100, 4096, total - 1, total, total + 1 } do
          local r = exec("seq 1000; seq 1000 >&2", { max_output = limit })
          assert.is_true(r.ok)
          local head = math.floor(limit / 2)
          local text, truncated = all, nil
          if limit < total then
            text = all:sub(1, head) .. all:sub(total - (limit - head) + 1)
            truncated = { at = head, dropped = total - limit }
          end
          assert.equal(text, r.stdout)
          assert.equal(text, r.stderr)
          assert.same(truncated and { stdout = truncated, stderr = truncated } or false,
            r.truncated)
          assert.equal(total, r.stdout_bytes)
          assert.equal(total, r.stderr_bytes)
          assert.is_true(is_integer(r.stdout_bytes))
        end
      end)

      it("names the stream that was cut", function()
        local r = exec("echo long text; echo x >&2", { max_output = 4 })
        assert.same({ stdout = { at = 2, dropped = 6 } }, r.truncated)
        assert.equal("lot\n", r.stdout)
      end)

      it("takes sizes in words, and is 16 MiB without", function()
        local r = exec("head -c 20000 /dev/zero", { max_output = "10K" })
        assert.equal(10240, #r.stdout)
        assert.equal(20000 - 10240, r.truncated.stdout.dropped)
        r = exec "printf first; head -c 17M /dev/zero; printf last"
        assert.equal(16 * 1024 * 1024, #r.stdout)
        assert.equal("first", r.stdout:sub(1, 5))
        assert.equal("last", r.stdout:sub(-4))
        assert.equal(17 * 1024 * 1024 + 9, r.stdout_bytes)
        for _, bad in ipairs { "x", -1, "1X", 0 / 0 } do
          fails_unstarted("invalid", box:exec("true", { max_output = bad }))
        end
      end)

      it("may end the program", function()
        local r = exec("setsid sleep 300 & yes", { max_output = 1000, on_limit = "kill" })
        assert.equal("output_limit", r.status)
        assert.equal("output", r.limit)
        assert.equal("KILL", r.signal)
        assert.is_false(r.ok)
        assert.is_false(r.timed_out)
        assert.equal(("y\n"):rep(500), r.stdout)
        assert.is_true(r.stdout_bytes > 1000)
        assert.same({}, running())
        r = exec("yes >&2", { max_output = 1000, on_limit = "kill" })
        assert.equal("output_limit", r.status)
      end)

      -- It depended on who was first, the end or the kill: "exited" now and then.
      it("is exceeded by a program that has ended already, too", function()
        for _ = 1, 20 do
          local r = exec("echo too much", { max_output = 4, on_limit = "kill" })
          assert.equal("output_limit", r.status)
          assert.is_false(r.ok)
        end
        assert.is_true(exec("echo abc", { max_output = 4, on_limit = "kill" }).ok)
        blames(function()
          local r = box:exec("true", { on_limit = "stop" })
          return r
        end, "on_limit")
      end)
    end)

    describe("stdout and stderr", function()
      it("can be one, in order", function()
        local r = exec("echo a; echo b >&2; echo c; echo d >&2", { stderr = "stdout" })
        assert.equal("a\nb\nc\nd\n", r.stdout)
        assert.equal("", r.stderr)
        assert.same({ 8, 0 }, { r.stdout_bytes, r.stderr_bytes })
        r = exec("echo a; echo b >&2", { pty = true })
        assert.same({ 6, 0 }, { r.stdout_bytes, r.stderr_bytes })
      end)

      it("can be discarded", function()
        local r = exec("echo a; echo b >&2", { stdout = "discard" })
        assert.equal("", r.stdout)
        assert.equal("b\n", r.stderr)
        assert.same({ 0, 2 }, { r.stdout_bytes, r.stderr_bytes })
        assert.is_false(r.truncated)
        r = exec("echo a; echo b >&2", { stdout = "discard", stderr = "stdout" })
        assert.equal("", r.stdout .. r.stderr)
        local got = {}
        r = exec("echo a; echo b >&2", {
          stdout = "discard",
          on_stdout = function(data)
            got[#got + 1] = data
          end,
        })
        assert.equal("a\n", table.concat(got))
        assert.equal("", r.stdout)
      end)

      it("can go to a function instead", function()
        local got = { {}, {} }
        local r = exec("seq 20000; echo b >&2", {
          stdout = function(data)
            table.insert(got[1], data)
          end,
          stderr = setmetatable({}, {
            __call = function(_, data)
              table.insert(got[2], data)
            end,
          }),
        })
        assert.is_true(numbers(20000) == table.concat(got[1]))
        assert.equal("b\n", table.concat(got[2]))
        assert.equal("", r.stdout .. r.stderr)
        assert.equal(#numbers(20000), r.stdout_bytes)
        assert.is_false(r.truncated)
      end)

      it("can be the host's own", function()
        local output = support.child [[
          local box = assert(require("moonsand").create())
          local r = assert(box:exec("echo out; echo err >&2", { stdout = "inherit",
            stderr = "inherit" }))
          io.write("[", r.stdout, r.stderr, "]")
        ]]
        assert.is_truthy(output:find("out\n", 1, true))
        assert.is_truthy(output:find("err\n", 1, true))
        assert.equal("[]", output:sub(-2))
      end)

      it("are nothing else", function()
        for _, opts in ipairs { { stdout = "stdout" }, { stdout = "file" }, { stderr = "x" } } do
          blames(function()
            local r = box:exec("true", opts)
            return r
          end, "must be \"collect\"")
        end
        blames(function()
          local r = box:exec("true", { stdout = {} })
          return r
        end, "option 'stdout'")
      end)
    end)

    describe("callbacks", function()
      it("run inside the call, in order, on_exit last", function()
        local here, log, step = coroutine.running() or "main", {}, 1
        local function note(...)
          assert.equal(here, coroutine.running() or "main")
          log[#log + 1] = table.concat({ ... }, " ")
        end
        local r = exec("echo a; read x; echo b >&2; read x; printf c", {
          stdin = function() -- the next step when the one before was heard
            while step <= 2 and #log < 2 * step do
              moonsand.sleep(0.001)
            end
            step = step + 1
            return step <= 3 and "\n" or nil
          end,
          on_stdout = function(data, p)
            assert.is_true(p.pid > 1)
            note("out", data)
          end,
          on_stderr = function(data)
            note("err", data)
          end,
          on_line = function(line, stream)
            note(stream, line)
          end,
          on_exit = function(result, ...)
            assert.equal(0, select("#", ...) - 3)
            note("exit", tostring(result.ok))
          end,
        })
        assert.equal("a\nc", r.stdout)
        assert.equal("b\n", r.stderr)
        assert.same({ "out a\n", "stdout a", "err b\n", "stderr b", "out c", "stdout c",
          "exit true" },
          log)
      end)

      it("hear every byte, and on_line every line, also a last one without its end", function()
        local pieces, lines = {}, {}
        local r = exec("seq 30000; printf tail", {
          on_stdout = function(data)
            pieces[#pieces + 1] = data
          end,
          on_line = function(line, stream)
            assert.equal("stdout", stream)
            lines[#lines + 1] = line
          end,
        })
        local expected = numbers(30000) .. "tail"
        assert.is_true(expected == table.concat(pieces))
        assert.is_true(expected == table.concat(lines, "\n"))
        assert.is_true(expected == r.stdout)
      end)

      it("do not change what is collected", function()
        local r = exec("seq 1000", { max_output = 100, on_stdout = function() end })
        local all = numbers(1000)
        assert.equal(all:sub(1, 50) .. all:sub(-50), r.stdout)
        assert.same({ stdout = { at = 50, dropped = #all - 100 } }, r.truncated)
      end)

      -- Memory grew with the line, without a limit.
      it("hear a line without end in pieces", function()
        local longest, total = 0, 0
        exec("head -c 10000000 /dev/zero", {
          max_output = 0,
          on_line = function(line)
            longest, total = math.max(longest, #line), total + #line
          end,
        })
        assert.equal(10000000, total)
        assert.is_true(longest < 2 * 1024 * 1024)
      end)

      it("may wait, and the program waits for them", function()
        local other = moonsand.assert(moonsand.create())
        local count = 0
        local r = exec("head -c 3000000 /dev/zero", {
          on_stdout = function(data)
            count = count + #data
            assert.equal("x\n", moonsand.assert(other:exec "echo x").stdout)
            moonsand.sleep(0.001)
          end,
        })
        assert.equal(3000000, count)
        assert.equal(3000000, #r.stdout)
        other:close()
      end)

      it("leave others their turn, and who waits his limits, when more comes for ever", function()
        moonsand.run(function()
          local turns, calls = 0, 0
          local others = moonsand.task(function()
            while true do
              moonsand.sleep(0)
              turns = turns + 1
            end
          end)
          local p = moonsand.assert(box:start("yes", {
            max_output = 0,
            on_stdout = function() -- slower than what writes
              calls = calls + 1
              local over = now() + 0.002
              repeat until now() > over
            end,
          }))
          while calls == 0 do
            moonsand.sleep(0.001)
          end
          turns, calls = 0, 0
          fails("timeout", p:wait(0.2))
          fails("cancelled", p:wait { cancel = moonsand.token(0.2) })
          -- A call takes longer where the machine stands still, and then fewer of them are a turn.
          assert.is_true(calls <= 20 * (turns + 1), calls .. " calls in " .. turns .. " turns")
          p:close()
          others:cancel()
        end)
      end)

      it("that raise kill the program, and the error comes out as it is", function()
        for _, name in ipairs { "on_stdout", "on_stderr", "on_line", "stdout", "stderr" } do
          local failure, ends = { name }, {}
          local ok, err = pcall(box.exec, box, "echo x; echo x >&2; setsid sleep 300 & sleep 300", {
            [name] = function()
              error(failure)
            end,
            on_exit = function(...)
              ends[#ends + 1] = { n = select("#", ...), ... }
            end,
          })
          assert.is_false(ok)
          assert.equal(failure, err)
          assert.same({}, running())
          assert.equal(1, #ends)
          fails("closed", unpack(ends[1], 1, 4))
          assert.equal(failure, ends[1][4].cause)
        end
      end)

      it("hear of failures, and what on_exit raises comes out", function()
        local ends = {}
        local function on_exit(...)
          ends[#ends + 1] = { ... }
        end
        fails("exit", box:exec("exit 4", { check = true, on_exit = on_exit }))
        assert.equal(4, ends[1][1].exit_code) -- a Result: check is the call's matter
        local token = moonsand.token()
        fails("cancelled", box:exec("echo on; sleep 300", {
          cancel = token,
          on_stdout = function()
            token:cancel()
          end,
          on_exit = on_exit,
        }))
        fails("cancelled", unpack(ends[2], 1, 4))
        assert.equal(2, #ends)
        local ok, err = pcall(box.exec, box, "true", {
          on_exit = function()
            error("from on_exit", 0)
          end,
        })
        assert.is_false(ok)
        assert.equal("from on_exit", err)
      end)
    end)

    describe("at the end", function()
      it("does not wait for a child that holds the pipes, and kills it", function()
        local r = exec "sleep 300 & echo done"
        assert.equal("done\n", r.stdout)
        assert.is_true(r.duration < 10)
        assert.same({}, running())
      end)

      it("kills what broke away", function()
        local r = exec [[
          setsid sh -c 'trap "" TERM HUP; while :; do sleep 1; done' &
          (setsid sleep 300 &)
          sh -c '(sleep 300 &) &'
          echo started]]
        assert.equal("started\n", r.stdout)
        assert.same({}, running())
      end)

      it("lets it live with leave, and says who holds the pipes", function()
        local r = exec("mkfifo go; (read word <go; echo $word >out) & echo left", { leave = true })
        assert.equal("left\n", r.stdout)
        assert.is_true(r.pipes_held)
        assert.is_true(#running() >= 1)
        exec("echo word >go; until [ -s out ]; do :; done")
        assert.equal("word\n", read "out")
        r = exec("mkfifo shut; (exec >&- 2>&-; echo >shut; exec sleep 300) & read line <shut",
          { leave = true })
        assert.is_false(r.pipes_held)
        assert.is_false(exec("true").pipes_held)
        support.eventually(20, "it is no sleep", function()
          return table.concat(running(), " ") == "sleep"
        end)
      end)

      it("has read what was in the pipes", function()
        for _ = 1, 20 do
          assert.equal(60000, #exec("head -c 60000 /dev/zero").stdout)
          assert.equal(1000000, #exec("head -c 1000000 /dev/zero").stdout)
        end
      end)

      it("waits for a program that closes its output and lives on", function()
        local r = exec "exec >&- 2>&-; sleep 0.1; exit 5"
        assert.equal(5, r.exit_code)
        assert.is_true(r.duration >= 0.1)
        assert.is_false(r.pipes_held)
      end)
    end)

    describe("its Result", function()
      it("tells each way to end", function()
        for _, code in ipairs { 0, 1, 2, 126, 128, 255 } do
          local r = exec("exit " .. code)
          assert.equal("exited", r.status)
          assert.equal(code, r.exit_code)
          assert.equal(code == 0, r.ok)
          assert.is_nil(r.signal)
          assert.is_nil(r.signal_number)
          assert.is_nil(r.limit)
          assert.is_false(r.timed_out)
          assert.is_false(r.truncated)
          assert.is_true(is_integer(r.exit_code))
        end
        for name, number in pairs { TERM = 15, KILL = 9, SEGV = 11, USR1 = 10, PIPE = 13,
          XCPU = 24 } do
          local r = exec({ "sh", "-c", "ulimit -c 0; kill -" .. name .. " $$" })
          assert.equal("signaled", r.status)
          assert.equal(name, r.signal)
          assert.equal(number, r.signal_number)
          assert.is_nil(r.exit_code)
          assert.is_false(r.ok)
          assert.is_nil(r.limit)
        end
      end)

      it("has plausible figures", function()
        local r = exec "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
        local u = r.usage
        assert.is_true(u.cpu_time > 0.02 and u.cpu_time < 20)
        assert.is_true(math.abs(u.user_time + u.system_time - u.cpu_time) < 1e-6)
        assert.is_true(r.duration >= u.cpu_time * 0.5)
        local idle = exec "sleep 0.5"
        assert.is_true(idle.duration >= 0.5 and idle.duration < 20)
        assert.is_true(idle.usage.cpu_time < 0.4)
        assert.is_true(idle.usage.memory_peak > 100 * 1024)
        assert.is_true(idle.usage.memory_peak < 32 * 1024 * 1024)
        local big = exec { "lua5.4", "-e", "local s = ('x'):rep(64 * 1024 * 1024)" }
        assert.is_true(big.usage.memory_peak >= 64 * 1024 * 1024)
        assert.is_true(big.usage.memory_peak < 200 * 1024 * 1024)
        -- what its children used is its own
        big = exec "lua5.4 -e \"local s = ('x'):rep(64 * 1024 * 1024)\"; :"
        assert.is_true(big.usage.memory_peak >= 64 * 1024 * 1024)
        for _, name in ipairs { "memory_peak", "read_bytes", "write_bytes" } do
          assert.is_true(is_integer(u[name]), name)
        end
        assert.is_true(is_integer(r.pid) and r.pid > 1)
        assert.equal(exec("exec sh -c 'echo $$'").stdout:match "%d+" + 0 > 1, true)
      end)

      it("has the pid that the program saw", function()
        local r = exec "echo $$"
        assert.equal(r.pid .. "\n", r.stdout)
      end)

      it("says it in a line", function()
        assert.is_truthy(tostring(exec "printf ab; printf c >&2; exit 3"):find
          "^exited with 3 after [%d.]+ s, 2 bytes of stdout, 1 of stderr$")
        assert.is_truthy(tostring(exec "kill -9 $$"):find "^ended by signal KILL after ")
        assert.is_truthy(tostring(exec("sleep 300", 0.01)):find "^timed out after ")
      end)
    end)

    describe("stdin", function()
      local function cat(input)
        return exec("cat", { stdin = input }).stdout
      end

      it("is empty by default", function()
        assert.equal("0\n", exec("wc -c").stdout)
        assert.equal("0\n", exec("wc -c", { stdin = false }).stdout)
        assert.equal("0\n", exec("wc -c", { stdin = "" }).stdout)
      end)

      it("can be a string of any bytes and length", function()
        local bytes = {}
        for i = 0, 255 do
          bytes[#bytes + 1] = string.char(i)
        end
        local all = table.concat(bytes)
        assert.equal(all, cat(all))
        assert.equal("pipe", cat "pipe")
        local big = all:rep(20000) -- 5 MB: more than a pipe holds
        assert.is_true(big == cat(big))
      end)

      it("can be a function, which may wait", function()
        local given = 0
        assert.equal("12345", cat(function()
          given = given + 1
          if given > 5 then
            return nil
          end
          moonsand.sleep(0.002)
          return given % 2 == 0 and given or tostring(given)
        end))
        local left = 40
        assert.equal(40 * 100000, #cat(function()
          left = left - 1
          return left >= 0 and ("x"):rep(100000) or nil
        end))
        local more = { "a", "", "b" }
        assert.equal("ab", cat(setmetatable({}, {
          __call = function()
            return table.remove(more, 1)
          end,
        })))
      end)

      it("can fail, which kills the program", function()
        local function failing(...)
          local answer = { n = select("#", ...), ... }
          local calls = 0
          return function()
            calls = calls + 1
            if calls == 1 then
              return "first\n"
            end
            return unpack(answer, 1, answer.n)
          end
        end
        local command = "read x; echo got $x; sleep 300 & sleep 300"
        local message, detail =
          fails("provider", box:exec(command, { stdin = failing(nil, "no more") }))
        assert.equal("no more", message)
        assert.is_true(detail.started)
        assert.same({}, running())
        message, detail = fails("busy", box:exec(command,
          { stdin = failing(nil, "later", "busy", { code = "busy", message = "later",
            extra = 1 }) }))
        assert.equal("later", message)
        assert.equal(1, detail.extra)
        local failure = {}
        local ok, err = pcall(box.exec, box, command, {
          stdin = function()
            error(failure)
          end,
        })
        assert.is_false(ok)
        assert.equal(failure, err)
        ok, err = pcall(box.exec, box, command, { stdin = failing({}) })
        assert.is_false(ok)
        assert.is_truthy(tostring(err):find "must give strings, got table")
        assert.same({}, running())
      end)

      it("can be an open Lua file", function()
        local path = support.write(support.directory() .. "/input", ("line\n"):rep(100000))
        local file = assert(io.open(path))
        file:read "*l"
        assert.equal(("line\n"):rep(99999), cat(file))
        file:close()
        blames(function()
          local r = box:exec("cat", { stdin = file })
          return r
        end, "closed file")
        file = assert(io.open(support.directory()))
        fails("is_a_directory", box:exec("cat; sleep 300", { stdin = file }))
        file:close()
      end)

      it("can be another process's stream, from another sandbox too", function()
        local other = moonsand.assert(moonsand.create())
        for _, from in ipairs { box, other } do
          local p = moonsand.assert(from:start "seq 200000")
          local r = exec("cat", { stdin = p.stdout })
          assert.is_true(numbers(200000) == r.stdout)
          assert.is_true(moonsand.assert(p:wait()).ok)
        end
        other:close()
      end)

      -- The stream kept the end of the program that had stopped to read as its reader.
      it("gives a stream back when the program ends before it", function()
        local p = moonsand.assert(box:start "echo one; read x; echo two; read x; echo three")
        assert.equal("one\n", exec("head -n 1", { stdin = p.stdout }).stdout)
        assert(p.stdin:write "\n")
        assert.equal("two", p.stdout:read())
        assert.is_true(exec("true", { stdin = p.stdout }).ok)
        assert(p.stdin:write "\n")
        assert.equal("three", p.stdout:read())
        assert.is_true(moonsand.assert(p:wait()).ok)
      end)

      it("need not be read", function()
        local big = ("x"):rep(3000000)
        assert.is_true(exec("true", { stdin = big }).ok)
        assert.equal("on\n", exec("exec <&-; echo on", { stdin = big }).stdout)
        assert.equal("xxx", exec("head -c 3", { stdin = big }).stdout)
        local calls = 0
        assert.is_true(exec("true", {
          stdin = function()
            calls = calls + 1
            return big
          end,
        }).ok)
        assert.equal("on\n", exec("exec <&-; sleep 0.05; echo on", {
          stdin = function()
            return "endless"
          end,
        }).stdout)
      end)

      it("is nothing else", function()
        for text, input in pairs {
          ["option 'stdin' must be"] = {},
          ["got number"] = 5,
          ["stdin must not be true"] = true,
        } do
          blames(function()
            local r = box:exec("cat", { stdin = input })
            return r
          end, text)
        end
        local p = moonsand.assert(box:start "true")
        p.stdout:close()
        blames(function()
          local r = box:exec("cat", { stdin = p.stdout })
          return r
        end, "stream that is closed")
        p:wait()
      end)
    end)

    describe("with a loud program", function()
      it("stays small: 1 GiB without a newline", function()
        local output, status = support.child [[
          local moonsand = require "moonsand"
          local box = assert(moonsand.create())
          local r = assert(box:exec({ "head", "-c", "1073741824", "/dev/zero" }))
          assert(r.ok and r.stdout_bytes == 1073741824 and #r.stdout == 16 * 1024 * 1024)
          assert(r.truncated.stdout.at == 8 * 1024 * 1024)
          assert(r.truncated.stdout.dropped == 1073741824 - 16 * 1024 * 1024)
          local count, longest = 0, 0
          assert(box:exec({ "head", "-c", "67108864", "/dev/zero" }, { max_output = 0,
            on_line = function(line)
              count, longest = count + #line, math.max(longest, #line)
            end }))
          assert(count == 67108864 and longest <= 2 * 1024 * 1024)
          for line in io.lines "/proc/self/status" do
            local peak = line:match "^VmHWM:%s*(%d+)"
            if peak then
              print(peak)
            end
          end
        ]]
        assert.equal(0, status, output)
        assert.is_true(tonumber(output) < 100 * 1024, output)
      end)

      it("takes endless output of both streams at once", function()
        local r = exec("yes out & exec yes err >&2", { timeout = 3, max_output = 20000 })
        assert.equal("timed_out", r.status)
        for _, name in ipairs { "stdout", "stderr" } do
          assert.equal(20000, #r[name])
          assert.is_true(r[name .. "_bytes"] > 100000, name)
          assert.equal(r[name .. "_bytes"] - 20000, r.truncated[name].dropped)
          assert.equal((name == "stdout" and "out\n" or "err\n"):rep(2500), r[name]:sub(1, 10000))
        end
        assert.same({}, running())
      end)
    end)

    describe("beside others", function()
      it("keeps many apart", function()
        local jobs = {}
        for i = 1, 40 do
          jobs[i] = i
        end
        local results = moonsand.run(function()
          return moonsand.assert(moonsand.all(jobs, function(i)
            return box:exec("cat; echo " .. i .. " >&2; exit " .. i,
              { stdin = ("x"):rep(i * 1000) })
          end))
        end)
        for i, r in ipairs(results) do
          assert.equal(i, r.exit_code)
          assert.equal(i * 1000, #r.stdout)
          assert.equal(i .. "\n", r.stderr)
        end
      end)

      it("ends with its sandbox", function()
        moonsand.run(function()
          local closer = moonsand.task(function()
            while #running() == 0 do
              moonsand.sleep(0.001)
            end
            box:close()
          end)
          local _, detail = fails("closed", box:exec "sleep 300")
          assert.is_true(detail.started ~= false) -- it ran: nobody may think otherwise
          closer:wait()
        end)
        blames(function()
          local r = box:exec "true"
          return r
        end, "the sandbox was closed")
      end)

      it("refuses to wait where it cannot, before anything is started", function()
        moonsand.run(function()
          local ok, err = pcall(string.gsub, "x", "x", function()
            box:exec "echo >made"
          end)
          assert.is_false(ok)
          assert.is_truthy(tostring(err):find "cannot wait here")
        end)
        assert.equal(1, exec("test -e made").exit_code)
      end)
    end)

    describe("options", function()
      it("have names that are known", function()
        for given, meant in pairs { timout = "timeout", cwdd = "cwd", envv = "env",
          on_stdot = "on_stdout" } do
          blames(function()
            local r = box:exec("true", { [given] = 1 })
            return r
          end, ("box:exec: unknown option '%s' (did you mean '%s'?)"):format(given, meant))
        end
        blames(function()
          local r = box:exec("true", { zzzzzz = 1 })
          return r
        end, "box:exec: unknown option 'zzzzzz'")
        blames(function()
          local r = box:exec("true", "fast")
          return r
        end, "box:exec: options must be a table, got string")
      end)
    end)
  end)
end)
