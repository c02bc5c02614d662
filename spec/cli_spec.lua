-- The command-line tool, as a program of its own: every command, option, error and exit status, from
-- this tree and from an installed one.

local help = require "moonsand.cli.help"
local json = require "moonsand.cli.json"
local source = require "moonsand.cli.source"
local support = require "support.init"
local terminal = require "moonsand.cli.terminal"
local words = require "moonsand.cli.words"

local quote = support.quote
local SECONDS = 60
local here = support.run "pwd":gsub("%s+$", "")
local scratch = support.directory()

--- Before a command: it finds no control groups, whatever the machine offers.
local WITHOUT_GROUPS = "unshare -rm sh -c 'mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"' - "

local function plain(_, text)
  return text
end

describe("moonsand (the command-line tool)", function()
  local tool = ("timeout %d %s %s/bin/moonsand"):format(SECONDS, support.interpreter, here)

  --- Runs it by a shell: what comes on stdout, on stderr, and its exit status. `{}` in the command is
  --- the tool.
  local function sh(command)
    local out, err = scratch .. "/out", scratch .. "/err"
    local _, status = support.run(("cd %s && { %s\n} >%s 2>%s"):format(scratch,
      (command:gsub("{}", (tool:gsub("%%", "%%%%")))), out, err))
    return support.read(out), support.read(err), status
  end

  local function cli(command)
    return sh("{} " .. command .. " </dev/null")
  end

  local function gives(expected, command)
    assert.same(expected, { cli(command) })
  end

  setup(function()
    support.write(scratch .. "/hello.py", "import sys\nprint('hello', sys.argv[1:])\nsys.exit(4)\n")
    support.write(scratch .. "/plain", "print(6 * 7)\n")
    support.write(scratch .. "/vars", "COLOR=red\n")
    support.run("mkdir -p " .. scratch .. "/tree/sub && echo deep >" .. scratch .. "/tree/sub/file")
    support.write(scratch .. "/c.c", '#include <stdio.h>\nint main(void) { puts("compiled"); return 5; }\n')
    support.write(scratch .. "/bad.c", "int main(void) { return x; }\n")
  end)

  -- ------------------------------------------------------------------ exec

  describe("exec", function()
    for command, expected in pairs {
      ["exec echo 'a  b' '$HOME'"] = { "a  b $HOME\n", "", 0 },
      ["exec -- echo --json"] = { "--json\n", "", 0 },
      ["exec echo --json"] = { "--json\n", "", 0 },
      ["exec -c 'echo out; echo err >&2; exit 3'"] = { "out\n", "err\n", 3 },
      ["exec --command='echo x | tr x y'"] = { "y\n", "", 0 },
      ["exec --shell 'bash -ec' -c 'echo $BASH_VERSION | grep -c 5; false'"] = { "1\n", "", 1 },
      ["exec -c 'kill -SEGV $$'"] = { "", "moonsand: ended by signal SEGV\n", 139 },
      ["exec -q -c 'kill -TERM $$'"] = { "", "", 143 },
      ["exec nope"] = { "", "moonsand: cannot start: program 'nope': No such file or directory\n", 127 },
      ["exec 'no pe'"] = { "", "moonsand: cannot start: program 'no pe': No such file or directory "
        .. "(-c gives a text to the shell)\n", 127 },
      ["exec /etc"] = { "", "moonsand: cannot start: program '/etc': Is a directory\n", 126 },
      ["exec -q --timeout 50ms sleep 60"] = { "", "", 124 },
      ["exec -q -t0.05 sleep 60"] = { "", "", 124 },
      ["exec -q -t 2 --grace 20 -c 'trap \"echo bye; exit 9\" TERM; sleep 60 & wait'"] =
        { "bye\n", "", 124 },
      ["exec --cpu-time 1 -c 'while :; do :; done'"] =
        { "", "moonsand: ended by its limit of cpu_time\n", 152 },
      ["exec --file-size 4K -c 'head -c 9000 /dev/zero >f; wc -c <f' 2>/dev/null"] = { "4096\n", "", 0 },
      ["exec --disk 2M -c 'head -c 9000000 /dev/zero >f' 2>/dev/null"] = { "", "", 1 },
      ["exec --open-files 20 -c 'ulimit -n'"] = { "20\n", "", 0 },
      ["exec --hostname moon hostname"] = { "moon\n", "", 0 },
      ["exec --env A=1 -e B='x y' -e C -c 'echo $A$B$C'"] = { "1x yz\n", "", 0 },
      ["exec --env-file vars -c 'echo $COLOR'"] = { "red\n", "", 0 },
      ["exec --clear-env -e X=1 /usr/bin/env"] = { "X=1\n", "", 0 },
      ["exec --cwd /tmp pwd"] = { "/tmp\n", "", 0 },
      ["exec -C / pwd"] = { "/\n", "", 0 },
      ["exec --umask 077 -c 'umask'"] = { "0077\n", "", 0 },
      ["exec --provider local echo on"] = { "on\n", "", 0 },
      ["exec --processes 50 --inodes 1000 --allow-unenforced memory,cpus --memory 1G --cpus 0.5 echo on"] =
        { "on\n", "", 0 },
      ["exec -nq echo on"] = { "on\n", "", 0 },
    } do
      it("gives what it should: " .. command, function()
        assert.same(expected, { sh("C=z; export C; {} " .. command .. " </dev/null") })
      end)
    end

    it("lets a system call through that is asked for", function()
      local _, err, status = cli "exec --allow-syscall ptrace echo on"
      assert.same({ "", 0 }, { err, status })
      _, err, status = cli "exec --allow-syscall reboot echo on"
      assert.same({ "moonsand: seccomp.allow names a system call that may not be allowed\n", 125 },
        { err, status })
    end)

    for what, command in pairs {
      ["a file"] = "{} exec cat <bytes", ["a pipe"] = "cat bytes | {} exec cat",
    } do
      it("passes bytes on as they are, through " .. what, function()
        local bytes = {}
        for i = 0, 255 do
          bytes[#bytes + 1] = string.char(i):rep(i * 131)
        end
        bytes = table.concat(bytes)
        support.write(scratch .. "/bytes", bytes)
        local out, err, status = sh(command)
        assert.same({ "", 0 }, { err, status })
        assert.is_true(out == bytes)
      end)
    end

    it("passes on more than is ever kept", function()
      assert.same({ "40000000\n", "", 0 },
        { sh "{} exec -- head -c 40000000 /dev/zero </dev/null | wc -c" })
    end)

    it("answers line by line, while the other side still writes", function()
      -- Each line is sent when the answer to the one before has come.
      local fifo = scratch .. "/fifo"
      support.run("mkfifo " .. fifo)
      assert.same({ "1\n11\n111\n", "", 0 }, { sh(([[
        { echo; while read -r line; do
            echo "$line" >>answers; [ ${#line} -lt 3 ] || break; echo "$line"; done <%s; } |
          {} exec -c 'while read -r l; do echo "1$l"; done' >%s; cat answers; rm answers]]):format(fifo, fifo)) })
    end)

    it("ends with its program, whatever is still to be read", function()
      support.run("mkfifo " .. scratch .. "/open")
      assert.same({ "on\n", "", 0 }, { sh "{} exec echo on <>open" })
    end)

    it("leaves its own input to others with --no-stdin", function()
      assert.same({ "rest\n", "", 0 }, { sh "echo rest | { {} exec -n cat; cat; }" })
    end)

    it("is a program with closed streams, too", function()
      assert.same({ "kept\n", "", 0 }, { sh "{} exec -c 'cat; echo kept' 2>&- <&-" })
      assert.same({ "", "moonsand: stdout: Bad file descriptor\n", 125 },
        { sh "{} exec echo lost >&- </dev/null" })
      assert.same({ "", "", 125 }, { sh "{} exec -c 'echo lost >&2' 2>&- </dev/null" })
    end)

    it("ends by SIGPIPE when nobody reads on", function()
      local out = sh "{ {} exec yes </dev/null; echo $? >status; } | head -n 1; cat status"
      assert.equal("y\n141\n", out)
    end)

    it("says that its output cannot be written", function()
      assert.same({ "", "moonsand: stdout: No space left on device\n", 125 },
        { sh "{} exec yes >/dev/full </dev/null" })
    end)

    for signal, status in pairs { INT = 130, TERM = 143, KILL = 137 } do
      it("leaves nothing when SIG" .. signal .. " ends it", function()
        local mark = "71" .. status
        local command = tool:gsub("^timeout %d+", "timeout --foreground --preserve-status -s " .. signal .. " 1")
        local _, _, ended = sh(command .. " exec -- sleep " .. mark .. " </dev/null")
        assert.equal(status, ended)
        support.eventually(10, "the program's end", function()
          return select(2, support.run("pgrep -xf 'sleep " .. mark .. "'")) ~= 0
        end)
      end)
    end
  end)

  -- ------------------------------------------------------------------ run

  describe("run", function()
    for command, expected in pairs {
      ["run hello.py a '--b c'"] = { "hello ['a', '--b c']\n", "", 4 },
      ["run --language python plain"] = { "42\n", "", 0 },
      ["run -i 'python3 -u' plain"] = { "42\n", "", 0 },
      ["run c.c"] = { "compiled\n", "", 5 },
      ["run nope.py"] = { "", "moonsand: read the host's 'nope.py': No such file or directory\n", 125 },
      ["run plain"] = { "", "moonsand: cannot tell what runs 'plain': it has no #! line, and no extension\n",
        125 },
      ["run -l pyton plain"] = { "",
        "moonsand: language: 'pyton' is not known (did you mean 'python'?)\n", 125 },
    } do
      it("gives what it should: " .. command, function()
        gives(expected, command)
      end)
    end

    it("says what a compiler says", function()
      local out, err, status = cli "run bad.c"
      assert.equal("", out)
      assert.truthy(err:find("undeclared", 1, true))
      assert.equal(1, status)
    end)

    it("takes a text from standard input", function()
      assert.same({ "1 x\n", "", 0 }, { sh "echo 'import sys; print(1, sys.argv[1])' | {} run -l python - x" })
    end)

    it("gives a script its input", function()
      support.write(scratch .. "/up.py", "import sys; print(sys.stdin.read().upper(), end='')")
      assert.same({ "ABC\n", "", 0 }, { sh "echo abc | {} run up.py" })
    end)
  end)

  -- ------------------------------------------------------------------ files

  describe("--put and --get", function()
    it("copy files and directories, under their names or others", function()
      assert.same({ "", "", 0 }, { sh [[rm -rf got && mkdir got && {} exec --put tree --put vars:in/ \
        --put plain:in/other --get tree/sub:got/ --get sums:got/sums --get in/other \
        -c 'cat tree/sub/file in/vars in/other >sums' </dev/null]] })
      assert.equal("deep\nCOLOR=red\nprint(6 * 7)\n", support.read(scratch .. "/got/sums"))
      assert.equal("deep\n", support.read(scratch .. "/got/sub/file"))
      assert.equal("print(6 * 7)\n", support.read(scratch .. "/other"))
    end)

    it("get what there is when the program has failed", function()
      assert.same({ "", "", 6 }, { cli "exec --get log -c 'echo so far >log; exit 6'" })
      assert.equal("so far\n", support.read(scratch .. "/log"))
    end)

    it("say what cannot be copied", function()
      gives({ "", "moonsand: --put: read the host's 'nope': No such file or directory\n", 125 },
        "exec --put nope true")
      local _, err, status = cli "exec --get nope true"
      assert.truthy(err:find("^moonsand: %-%-get: .*'/workspace/nope'"))
      assert.equal(125, status)
    end)
  end)

  -- ------------------------------------------------------------------ the machine

  describe("--workspace, --mount and --root", function()
    before_each(function()
      support.run(("cd %s && rm -rf work && mkdir work && echo mine >work/file && echo v >'a:b'"):format(
        scratch))
    end)

    it("show what is named, as it is named", function()
      gives({ "mine\n", "", 0 }, "exec --workspace work -c 'cat file; echo new >made'")
      assert.equal("new\n", support.read(scratch .. "/work/made"))
      gives({ "mine\nv\n", "", 1 }, "exec --mount work:/in/here --mount a:b:/in/b "
        .. "-c 'cat /in/here/file /in/b; touch /in/here/file 2>/dev/null'")
      gives({ "", "", 0 }, "exec --mount work:/in:rw -c 'echo changed >/in/file'")
      gives({ "gone\n", "", 0 }, "exec --mount work:/in:copy -c 'echo gone >/in/file; cat /in/file'")
      assert.equal("changed\n", support.read(scratch .. "/work/file"))
    end)

    it("show another root", function()
      assert.same({ "changed\n", "", 0 }, { sh [[
        mkdir -p root/bin && cp /bin/sh root/bin/sh && echo as it was >root/bin/file
        for library in $(ldd /bin/sh | grep -o '/[^ ]*'); do
          mkdir -p "root${library%/*}" && cp "$library" "root$library"
        done
        {} exec --root root --root-mode copy -c '
          echo changed >/bin/file; read -r text </bin/file; echo "$text"' </dev/null &&
        grep -qx 'as it was' root/bin/file]] })
    end)

    it("say what is wrong", function()
      gives({ "", "moonsand: --mount: 'work' is not PATH:INSIDE[:MODE]\n", 125 },
        "exec --mount work true")
      gives({ "", "moonsand: --mount: 'work:in' is not PATH:INSIDE[:MODE]\n", 125 },
        "exec --mount work:in true")
      gives({ "", "moonsand: mounts[1]: mode 'wr' is none of 'ro', 'rw', 'copy'\n", 125 },
        "exec --mount work:/in:wr true")
      local _, err, status = cli "exec --mount nope:/in true"
      assert.matches("^moonsand: mounts%[1%]: .*nope", err)
      assert.equal(125, status)
    end)
  end)

  describe("--network", function()
    it("lets programs reach what is named, and nothing else", function()
      local out, err, status = sh [[
        mkdir -p served && printf mine >served/file && : >listens
        python3 -u -m http.server --bind 127.0.0.1 --directory served 0 >listens 2>/dev/null & server=$!
        until port=$(sed -n 's/.*port \([0-9]*\) .*/\1/p' listens) && [ "$port" ]; do sleep 0.05; done
        {} exec -n --network example.org --network 127.0.0.1:$port -e port=$port -c '
          curl -sS --noproxy - http://127.0.0.1:$port/file
          curl -s -o /dev/null -w " %{http_code}\\n" http://elsewhere.example/'
        status=$?
        kill $server
        exit $status]]
      assert.same({ "mine 403\n", 0 }, { out, status })
      assert.matches("^moonsand: network: denied elsewhere%.example:80: [^\n]+\n$", err)
    end)

    it("says each thing once that was not reached, and with --json all that was tried", function()
      local try = "for i in $(seq 24); do curl -s -o /dev/null http://no$((i / 2)).example; done"
      local _, err = cli(("exec --network 127.0.0.1 -c '%s'"):format(try))
      assert.matches("denied no0%.example:80: .*denied no9%.example:80: [^\n]+\n"
        .. "moonsand: network: and 3 others\n$", err)
      assert.equal(11, select(2, err:gsub("\n", "")))
      gives({ "", "", 0 }, ("exec -q --network 127.0.0.1 -c '%s; true'"):format(try))
      local out = cli(("exec --json --network 127.0.0.1 -c '%s'"):format(try))
      local attempts = require("cjson").decode(out).network
      assert.equal(24, #attempts)
      assert.equal("no0.example", attempts[1].host)
      assert.equal("denied", attempts[1].decision)
    end)

    it("takes the network of the machine, or none", function()
      local outside = support.run "cat /proc/net/dev | wc -l"
      gives({ outside, "", 0 }, "exec --network host -c 'cat /proc/net/dev | wc -l'")
      gives({ "3\n", "", 0 }, "exec --network none -c 'cat /proc/net/dev | wc -l'")
    end)

    it("says what is wrong", function()
      gives({ "", "moonsand: --network: host stands alone\n", 125 },
        "exec --network host,example.org true")
      gives({ "", "moonsand: --network: none stands alone\n", 125 },
        "exec --network none --network-deny example.org true")
      gives({ "", "moonsand: --network-deny: without --network nothing can be reached\n", 125 },
        "exec --network-deny example.org true")
      local _, err, status = cli "exec --network 'ex ample..org' true"
      assert.matches("^moonsand: .*ample%.%.org", err)
      assert.equal(125, status)
    end)
  end)

  -- ------------------------------------------------------------------ JSON

  describe("--json", function()
    local function object(command, prefix)
      local out, err, status = sh((prefix or "") .. "{} " .. command .. " </dev/null")
      assert.equal("", err)
      assert.equal(1, select(2, out:gsub("\n", "")))
      return require "cjson".decode(out), status
    end

    it("is one object with the Result", function()
      local r, status = object "exec --json -c 'echo out; echo err >&2; exit 3'"
      assert.same({ false, "exited", 3, "out\n", "err\n", false, 3 },
        { r.ok, r.status, r.exit_code, r.stdout, r.stderr, r.timed_out, status })
      assert.is_true(r.usage.memory_peak > 0)
      r, status = object "exec --json -t 0.05 sleep 60"
      assert.same({ "timed_out", true, 124 }, { r.status, r.timed_out, status })
      r, status = object "run --json hello.py"
      assert.same({ "hello []\n", 4, 4 }, { r.stdout, r.exit_code, status })
    end)

    it("says bytes that are no UTF-8 in base64", function()
      local r = object [[exec --json -c "printf 'a\\377\\000'"]]
      assert.is_nil(r.stdout)
      assert.equal("Yf8A", r.stdout_base64)
      assert.equal("", r.stderr)
    end)

    it("is bounded by --max-output", function()
      local r = object "exec --json --max-output 1K -- head -c 5000 /dev/zero"
      assert.equal(1024, #r.stdout)
      assert.same({ 5000, 5000 - 1024 }, { r.stdout_bytes, r.truncated.stdout.dropped })
    end)

    it("says a failure as an object", function()
      local r, status = object "exec --json nope"
      assert.same({ false, "not_found", "program", 127 }, { r.ok, r.error.code, r.error.what, status })
      r, status = object("exec --json --memory 1G true", WITHOUT_GROUPS)
      assert.same({ "unavailable", 125 }, { r.error.code, status })
      assert.is_string(r.error.fix)
    end)

    it("knows UTF-8, and base64", function()
      for text, is in pairs {
        [""] = true, ["a\0z"] = true, ["äöü€"] = true, ["\240\159\140\153"] = true, ["\244\143\191\191"] = true,
        ["\192\128"] = false, ["\224\128\128"] = false, ["\237\160\128"] = false, ["\244\144\128\128"] = false,
        ["\240\128\128\128"] = false, ["a\228"] = false, ["\128"] = false, ["\255"] = false,
      } do
        assert.equal(is, json.is_utf8(text), ("%q"):format(text))
      end
      for text, encoded in pairs { [""] = "", f = "Zg==", fo = "Zm8=", foo = "Zm9v", ["foob"] = "Zm9vYg==",
        ["\255\254\253"] = "//79" } do
        assert.equal(encoded, json.base64(text))
      end
    end)
  end)

  -- ------------------------------------------------------------------ shell, doctor, the rest

  describe("shell", function()
    it("runs what it is given, in one shell", function()
      assert.same({ "/tmp 7\n", "", 3 }, { sh "printf 'cd /tmp\\nX=7\\necho $PWD $X\\nexit 3\\n' | {} shell" })
      assert.same({ "yes\n", "", 0 },
        { sh "echo '[[ -n $BASH_VERSION ]] && echo yes' | {} shell --shell bash" })
    end)
  end)

  it("doctor says what works", function()
    local out, err, status = cli "doctor"
    assert.same({ "", 0 }, { err, status })
    assert.truthy(out:find("ok  a local sandbox", 1, true))
    out, err, status = cli "doctor --json"
    local report = require "cjson".decode(out)
    assert.same({ "", 0, true }, { err, status, report.ok })
    assert.is_string(report.findings[1].name)
  end)

  it("languages lists what is there", function()
    local out, err, status = cli "languages"
    assert.same({ "", 0 }, { err, status })
    assert.truthy(("\n" .. out):find "\npython +3%.[%d.]+ +/%S*python3\n")
    out = cli "languages --json"
    assert.equal("python", require "cjson".decode(out)[1].name)
  end)

  it("has a version and help, in every form", function()
    local version = { "moonsand " .. require "moonsand.version" .. "\n", "", 0 }
    for _, command in ipairs { "version", "--version", "-V" } do
      gives(version, command)
    end
    local all = { help.tool(80, plain), "", 0 }
    for _, command in ipairs { "help", "--help", "-h" } do
      gives(all, command)
    end
    for _, command in ipairs(source.commands) do
      local text = { help.command(command, 80, plain), "", 0 }
      gives(text, "help " .. command.name)
      gives(text, command.name .. " --help")
      gives(text, command.name .. " -h")
    end
  end)

  -- ------------------------------------------------------------------ sandboxes that stay

  describe("with sandboxes that stay", function()
    local native, runtime = support.native(), os.getenv "XDG_RUNTIME_DIR"

    setup(function()
      support.run("mkdir -m 700 " .. scratch .. "/runtime")
      native.setenv("XDG_RUNTIME_DIR", scratch .. "/runtime")
    end)

    before_each(function()
      gives({ "dev\n", "", 0 }, "create dev")
    end)

    after_each(function()
      gives({ "", "", 0 }, "rm --all")
      gives({ "", "", 0 }, "ls --quiet")
    end)

    teardown(function()
      native.setenv("XDG_RUNTIME_DIR", runtime or "")
    end)

    it("lists and ends them", function()
      local out = cli "create --lifetime 1h --json other"
      assert.matches('"name":"other"', out, 1, true)
      out = cli "ls"
      assert.matches("^NAME +STATE +AGE +ENDS +ID\n", out)
      assert.matches("\ndev +running +%d+s +60m alone +ms%-%x+\n", out)
      assert.matches("\nother +running +%d+s +in %d+m +ms%-%x+\n", out)
      assert.same({ "dev", "other" }, { (cli "ls -q"):match "(%w+)\n(%w+)\n" })
      assert.matches('"idle_timeout":3600', (cli "ls --json"), 1, true)
      assert.matches("^ms%-%x+\n$", (cli "create")) -- without a name
      gives({ "", "moonsand: there is a detached sandbox of the name 'dev'\n", 125 }, "create dev")
      gives({ "", "moonsand: there is no sandbox 'nope'\n", 125 }, "rm nope other")
      assert.is_nil((cli "ls -q"):find "other")
      cli "rm --all"
      gives({ "[]\n", "", 0 }, "ls --json")
      gives({ "", "moonsand: there is no detached sandbox 'dev'\n", 125 }, "exec --in dev ls")
    end)

    it("runs programs in them", function()
      gives({ "", "", 3 }, "exec --in dev -c 'echo kept >file; exit 3'")
      gives({ "kept x\n", "", 0 }, "exec --in dev -e A=x -C /tmp -c 'echo $(cat /workspace/file) $A'")
      gives({ "hello ['a']\n", "", 4 }, "run --in dev hello.py a")
      gives({ "kept\n", "", 0 }, "shell --in dev -n --shell 'cat /workspace/file'")
      assert.same({ "in\n", "", 0 }, { sh "echo in | {} exec --in dev cat" })
      gives({ "", "moonsand: --in: limits can only be said when a sandbox is made\n", 125 },
        "exec --in dev --disk 1G ls")
    end)

    it("leaves programs running, and shows what they write", function()
      local id = cli "exec --in dev -b -c 'echo one; echo two >&2; until [ -e go ]; do sleep 0.01; done; echo three'"
      assert.matches("^bg%-%d+\n$", id)
      id = id:sub(1, -2)
      support.eventually(20, "nothing was written", function()
        local out, err = cli "logs dev"
        return out == "one\n" and err == "two\n"
      end)
      assert.matches(id:gsub("%-", "%%-") .. " +%d+ +running +%d+s +echo one", (cli "ps dev"))
      assert.matches("sleep 0.01", (cli "ps --all dev"))
      local out, err, status = sh("{ {} logs -f dev " .. id .. " & {} exec --in dev touch go; wait; } </dev/null")
      assert.same({ "one\nthree\n", "two\n", 0 }, { out, err, status })
      gives({ "one\nthree\n", "two\n", 0 }, "logs dev")
      out = cli "logs --json dev"
      assert.matches('"exit_code":0', out, 1, true)
      assert.matches('"stdout":"one\\nthree\\n"', out, 1, true)
      assert.matches("exited 0", (cli "ps dev"))
      assert.matches('"background":true', (cli "ps --json dev"), 1, true)
      gives({ "", "moonsand: there is no such program in the background, or not any more\n", 125 },
        "logs dev bg-99")
    end)

    it("does nothing to a program whose reader leaves", function()
      cli "exec --in dev -b -c 'while :; do echo tick; sleep 0.02; done'"
      assert.equal("tick\n", (sh "{} logs -f dev </dev/null | head -n 1"))
      assert.matches("running", (cli "ps dev"))
    end)

    it("copies files in and out", function()
      gives({ "", "", 0 }, "cp tree dev:")
      gives({ "", "", 0 }, "cp hello.py dev:tree/renamed.py")
      gives({ "deep\n", "", 0 }, "exec --in dev cat tree/sub/file")
      gives({ "", "", 0 }, "cp dev:/workspace/tree back")
      assert.equal("deep\n", support.read(scratch .. "/back/sub/file"))
      assert.equal(support.read(scratch .. "/hello.py"), support.read(scratch .. "/back/renamed.py"))
      gives({ "", "", 0 }, "cp dev:tree/sub/file back/")
      assert.equal("deep\n", support.read(scratch .. "/back/file"))
      assert.matches('"bytes":5', (cli "cp --json dev:tree/sub/file again"), 1, true)
      local _, err, status = cli "cp dev:nope there"
      assert.matches("No such file", err)
      assert.equal(125, status)
    end)

    it("leads a port into one", function()
      gives({ "bg-1\n", "", 0 }, [[exec --in dev -b python3 -c '
import socket
s = socket.create_server(("127.0.0.1", 8000))
while True:
    c, _ = s.accept()
    c.sendall(b"from inside\n")
    c.close()']])
      local port = support.run(("mkfifo %s/port"):format(scratch)) and scratch .. "/port"
      local pipe = assert(io.popen(("cd %s && exec %s forward dev 8000 >%s 2>/dev/null & echo $!")
        :format(scratch, tool, port)))
      local pid = tonumber(pipe:read "*l")
      pipe:close()
      local file = assert(io.open(port))
      local address, number = file:read("*l"):match "^([%d.]+):(%d+)$"
      assert.equal("127.0.0.1", address)
      support.eventually(20, "nobody answered", function()
        local output = support.run(("bash -c 'exec 3<>/dev/tcp/127.0.0.1/%s; cat <&3'"):format(number))
        return output:find "from inside" ~= nil, output
      end)
      native.kill(pid, 15)
      file:close()
    end)

    it("says what is wrong with the words", function()
      for command, message in pairs {
        ["cp a b"] = "one of the two has to be in a sandbox: NAME:PATH",
        ["cp dev:a dev:b"] = "one of the two has to be in a sandbox: NAME:PATH",
        ["cp dev:a"] = "FROM and TO are needed",
        ["rm"] = "which one? A name is needed, or --all",
        ["rm --all dev"] = "--all and a name: one of them will do",
        ["ps"] = "of which sandbox? A name is needed",
        ["logs"] = "of which sandbox? A name is needed",
        ["forward dev x"] = "'x' is no PORT[:LISTEN]",
        ["forward dev 70000"] = "'70000' is no PORT[:LISTEN]",
        ["exec -b ls"] = "--background: a new sandbox would end with us; --in names one that stays",
      } do
        local name = command:match "%w+"
        gives({ "", ("moonsand: %s\nTry 'moonsand %s --help'.\n"):format(message, name), 125 }, command)
      end
    end)
  end)

  -- ------------------------------------------------------------------ mistakes

  describe("(mistakes)", function()
    local function mistake(message, command, try)
      gives({ "", ("moonsand: %s\n%s"):format(message, try and ("Try 'moonsand %s--help'.\n"):format(try) or ""),
        125 }, command)
    end

    it("in commands and options are named, with what was meant", function()
      mistake("a command is needed", "", "")
      mistake("there is no command 'exce' (did you mean 'exec'?)", "exce ls", "")
      mistake("there is no command 'frobnicate'", "frobnicate", "")
      mistake("there is no command 'runn' (did you mean 'run'?)", "help runn", "")
      mistake("unknown option '--json': options come behind a command", "--json exec ls", "")
      mistake("unknown option '--timeot' (did you mean '--timeout'?)", "exec --timeot 3 ls", "exec ")
      mistake("unknown option '-z'", "exec -z ls", "exec ")
      mistake("--timeout needs a value: SECONDS", "exec --timeout", "exec ")
      mistake("-t needs a value: SECONDS", "exec -t", "exec ")
      mistake("--json takes no value", "exec --json=yes ls", "exec ")
      mistake("'more' is one word too many", "doctor more", "doctor ")
      mistake("what to run? A file is needed", "run", "run ")
      mistake("what to run? A program is needed, or --command", "exec", "exec ")
      mistake("--command and a program: one of them will do", "exec -c ls ls", "exec ")
      mistake("--language and --interpreter: one of them will do", "run -l lua -i lua x", "run ")
      mistake("a text from standard input needs --language", "run -", "run ")
    end)

    it("in values are named", function()
      for option, texts in pairs {
        ["timeout"] = { "a number of seconds (10, 1.5, 500ms, 5m, 2h)", "x", "-1", "1d", "", "1.2.3", "inf" },
        ["disk"] = { "a size in bytes (4096, 64K, 512M, 2G)", "x", "-1", "1X", "" },
        ["cpus"] = { "a number above 0", "0", "x", "-1", "" },
        ["processes"] = { "a whole number above 0", "0", "1.5", "x", "" },
      } do
        for i = 2, #texts do
          local line, message = words.read { "exec", ("--%s=%s"):format(option, texts[i]), "ls" }
          assert.is_nil(line)
          assert.equal(("--%s: '%s' is not %s"):format(option, texts[i], texts[1]), message)
        end
      end
      mistake("--env: there is no variable 'NOPE_NOPE' here", "exec --env NOPE_NOPE ls")
      mistake("there is no provider 'locla' (did you mean 'local'?)", "exec --provider locla ls")
      mistake("umask: '9' is none", "exec --umask 9 ls")
      mistake("limits.disk: at least 1048576 are needed", "exec --disk 1 ls")
    end)

    it("of the machine come with cause and cure", function()
      local out, err, status = sh(WITHOUT_GROUPS .. "{} exec --memory 1G ls </dev/null")
      assert.same({ "", 125 }, { out, status })
      assert.truthy(err:find "^moonsand: limits%.memory cannot be held[^\n]*\n  cause: [^\n]+\n  fix:   [^\n]+\n$")
    end)

    it("cannot steer the terminal", function()
      local _, err = cli [["$(printf 'a\033[31mb')"]]
      assert.is_nil(err:find "\27")
    end)
  end)

  it("reads seconds and sizes as people write them", function()
    for text, seconds in pairs { ["10"] = 10, ["1.5"] = 1.5, ["500ms"] = 0.5, ["5m"] = 300, ["2h"] = 7200 } do
      assert.equal(seconds, words.read({ "exec", "-t", text, "ls" }).options.timeout)
    end
    for text, bytes in pairs { ["10"] = 10, ["64K"] = 65536, ["1.5M"] = 1572864, ["2g"] = 2 * 1024 ^ 3 } do
      assert.equal(bytes, words.read({ "exec", "--disk", text, "ls" }).options.disk)
    end
  end)

  -- ------------------------------------------------------------------ what people see

  it("keeps to the width, narrow and wide", function()
    local examples = {} -- are to be copied, and so not cut
    for _, row in ipairs(source.examples) do
      examples["  " .. row[1]] = true
    end
    for _, width in ipairs { 40, 80, 100, 160 } do
      local texts = { help.tool(width, plain) }
      for _, command in ipairs(source.commands) do
        texts[#texts + 1] = help.command(command, width, plain)
      end
      for line in table.concat(texts):gmatch "[^\n]+" do
        local columns = #line:gsub("[\128-\191]", "")
        assert.is_true(columns <= width or examples[line] ~= nil, line)
      end
    end
  end)

  it("shows progress in one line that fits", function()
    assert.equal("put file [#####     ]  50% 512 B", terminal.bar("put file", 512, 1024, 31 + 1))
    for width = 20, 160 do
      for _, done in ipairs { 0, 1, 1023, 1024, 5e9, 1e12 } do
        assert.is_true(#terminal.bar("put a-rather-long-name.tar.gz", done, 1e12, width) <= width)
      end
    end
    assert.truthy(terminal.bar("x", 0, 0, 80):find "100%%")
  end)

  it("colors only terminals that want it", function()
    local _, script = support.run "command -v script"
    assert.equal(0, script, "script (of bsdutils) is missing")
    local function shown(prefix)
      return (support.run(("cd %s && %s script -qec %s /dev/null </dev/null"):format(scratch, prefix,
        quote(tool .. " doctor"))))
    end
    assert.truthy(shown("env -u NO_COLOR TERM=xterm"):find("\27[32mok ", 1, true))
    assert.is_nil(shown("env NO_COLOR=1 TERM=xterm"):find("\27", 1, true))
    assert.is_nil(shown("env -u NO_COLOR TERM=dumb"):find("\27", 1, true))
    assert.is_nil((cli "doctor"):find("\27", 1, true))
  end)

  -- ------------------------------------------------------------------ what is made of the table

  describe("(pages)", function()
    for page, maker in pairs {
      ["doc/moonsand.1"] = "tools/manpage", ["share/bash-completion/moonsand"] = "tools/completion",
    } do
      it(page .. " is what " .. maker .. " makes", function()
        local made, status = support.run(support.interpreter .. " " .. maker)
        assert.equal(0, status)
        assert.equal(support.read(page), made)
      end)
    end

    it("the completion offers commands, options, values, and words of the program", function()
      local function offers(line)
        local script = ([[. %s/share/bash-completion/moonsand; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
          _moonsand; echo "${COMPREPLY[*]}"]]):format(here, line)
        return (support.run(("cd %s && bash -c %s"):format(scratch, quote(script))):gsub("\n$", ""))
      end
      assert.equal("exec", offers "moonsand ex")
      assert.equal("--timeout", offers "moonsand exec --tim")
      assert.equal("--language", offers "moonsand run --lang")
      assert.equal("python php", (offers "moonsand run --language p":gsub(" perl", "")))
      assert.equal("hello.py", offers "moonsand run --timeout 5 hel")
      assert.equal("hello.py", offers "moonsand exec cat hel")
      assert.equal("doctor", offers "moonsand help doc")
    end)
  end)

  -- ------------------------------------------------------------------ elsewhere

  describe("(installed)", function()
    local root = scratch .. "/root"
    local build = os.getenv "MOONSAND_BUILD" or "build"
    local bare = "cd / && env -u LUA_PATH -u LUA_CPATH -u B "

    setup(function()
      local output, status = support.run(("make -s -o all install B=%s DESTDIR=%s PREFIX=/usr"):format(build, root))
      assert(status == 0, output)
    end)

    it("finds its modules beside itself, also through a link", function()
      local run = bare .. support.interpreter .. " %s exec echo on </dev/null"
      assert.same({ "on\n", 0 }, { support.run(run:format(root .. "/usr/bin/moonsand")) })
      support.run(("ln -sf %s/usr/bin/moonsand %s/link"):format(root, scratch))
      assert.same({ "on\n", 0 }, { support.run(run:format(scratch .. "/link")) })
    end)

    it("says so when they are nowhere", function()
      support.run(("mkdir -p %s/alone/bin && cp bin/moonsand %s/alone/bin"):format(scratch, scratch))
      local output, status = support.run(([[cd / && env LUA_PATH=/nowhere/?.lua LUA_CPATH=/nowhere/?.so \
        %s %s/alone/bin/moonsand version]]):format(support.interpreter, scratch))
      assert.truthy(output:find "^moonsand: its modules are not found")
      assert.equal(125, status)
    end)

    it("comes with its page and its completion, and goes with them", function()
      local files = { "bin/moonsand", "share/man/man1/moonsand.1", "share/bash-completion/completions/moonsand" }
      for _, file in ipairs(files) do
        assert.is_true(support.exists(root .. "/usr/" .. file), file)
      end
      local output, status = support.run(("make -s uninstall DESTDIR=%s PREFIX=/usr"):format(root))
      assert.same({ "", 0 }, { output, status })
      for _, file in ipairs(files) do
        assert.is_false(support.exists(root .. "/usr/" .. file), file)
      end
    end)
  end)
end)
