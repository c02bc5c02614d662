local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

--- What each language does with one argument, its input, a variable; and how it fails.
local LANGUAGES = {
  {
    name = "python",
    hello = "import sys, os\nprint(sys.argv[1], sys.stdin.read(), os.environ['V'])",
    fails = "def f():\n    raise ValueError('bad')\nf()",
    error = { "ValueError", "bad" },
    broken = "x = = 1",
    broken_error = "SyntaxError",
  },
  {
    name = "node",
    hello = "const fs = require('fs');\n"
      .. "console.log(process.argv[2], fs.readFileSync(0, 'utf8'), process.env.V)",
    fails = "function f() { throw new TypeError('bad') }\nf()",
    error = { "TypeError", "bad" },
    broken = "let x = ;",
    broken_error = "SyntaxError",
  },
  {
    name = "bash",
    hello = 'read -r line; echo "$1 $line $V"',
    fails = "nosuch_command_here",
    error = { "Error", "nosuch_command_here: command not found" },
  },
  { name = "sh", hello = 'read -r line; echo "$1 $line $V"', fails = "exit 3" },
  {
    name = "lua",
    hello = "print((...) .. ' ' .. io.read('*a') .. ' ' .. os.getenv('V'))",
    fails = "error('bad')",
    error = { "Error", "bad" },
    broken = "x = = 1",
    broken_error = "Error",
  },
  {
    name = "ruby",
    hello = "puts [ARGV[0], STDIN.read, ENV['V']].join(' ')",
    fails = "raise ArgumentError, 'bad'",
    error = { "ArgumentError", "bad" },
  },
  {
    name = "perl",
    hello = 'my $in = join("", <STDIN>); print "$ARGV[0] $in $ENV{V}\\n";',
    fails = "die 'bad'",
    error = { "Error", "bad" },
  },
  {
    name = "php",
    hello = 'echo $argv[1], " ", stream_get_contents(STDIN), " ", getenv("V"), "\\n";',
    fails = "throw new RuntimeException('bad');",
    error = { "RuntimeException", "bad" },
    broken = "echo (;",
    broken_error = "ParseError",
  },
  {
    name = "c",
    hello = "#include <stdio.h>\n#include <stdlib.h>\n"
      .. 'int main(int c, char **v) { char s[99] = "";\n'
      .. 'if (c == 2 && fgets(s, 99, stdin)) printf("%s %s %s\\n", v[1], s, getenv("V")); }',
    fails = "int main(void) { return 3; }",
    broken = "int main(void) { return x; }",
    broken_error = "CompileError",
    compiled = true,
  },
  {
    name = "cpp",
    hello = "#include <iostream>\n#include <string>\n#include <cstdlib>\n"
      .. "int main(int, char **v) { std::string s; std::getline(std::cin, s);\n"
      .. 'std::cout << v[1] << " " << s << " " << std::getenv("V") << std::endl; }',
    fails = "#include <stdexcept>\nint main() { throw std::runtime_error(\"bad\"); }",
    error = { "std::runtime_error", "bad" },
    broken = "int main() { return x; }",
    broken_error = "CompileError",
    compiled = true,
  },
  {
    name = "java",
    hello = "class Any { public static void main(String[] a) throws Exception {\n"
      .. "System.out.println(a[0] + ' ' + new String(System.in.readAllBytes()) + ' '"
      .. ' + System.getenv("V")); } }',
    fails = "class A { public static void main(String[] a) {"
      .. ' throw new RuntimeException("bad"); } }',
    error = { "java.lang.RuntimeException", "bad" },
    broken = "class A { int x }",
    broken_error = "CompileError",
    compiled = true,
    optional = true,
  },
  {
    name = "go",
    hello = 'package main\nimport ("fmt"; "io"; "os")\n'
      .. "func main() { in, _ := io.ReadAll(os.Stdin)\n"
      .. 'fmt.Println(os.Args[1], string(in), os.Getenv("V")) }',
    fails = 'package main\nfunc main() { panic("bad") }',
    error = { "panic", "bad" },
    broken = "package main\nfunc main() { x }",
    broken_error = "CompileError",
    compiled = true,
    optional = true,
  },
  {
    name = "rust",
    hello = "use std::io::Read;\nfn main() { let mut s = String::new();\n"
      .. "std::io::stdin().read_to_string(&mut s).unwrap();\n"
      .. 'let v = std::env::var("V").unwrap();\n'
      .. 'println!("{} {} {}", std::env::args().nth(1).unwrap(), s, v); }',
    fails = 'fn main() { panic!("bad") }',
    error = { "panic", "bad" },
    broken = "fn main() { x }",
    broken_error = "CompileError",
    compiled = true,
    optional = true,
  },
  {
    name = "typescript",
    hello = "import { readFileSync } from 'node:fs';\nconst v: string = process.env.V ?? '';\n"
      .. "console.log(process.argv[2], readFileSync(0, 'utf8'), v)",
    fails = "const x: number = 1; throw new TypeError('bad')",
    error = { "TypeError", "bad" },
    optional = true,
  },
}

describe("moonsand.code", function()
  helper.deadline(120)
  local box

  setup(function()
    box = assert(moonsand.create())
  end)

  teardown(function()
    box:close()
  end)

  --- The private directories are removed behind the caller's back: soon there is none.
  local function assert_clean(where)
    where = where or box
    support.eventually(20, "left in /tmp", function()
      local left = assert(where:exec("ls -A /tmp | grep moonsand || true")).stdout
      return left == "", left
    end)
  end

  after_each(function()
    if not box.core.closed then
      assert_clean()
    end
  end)

  local there = {}

  describe(":languages", function()
    it("lists what is there, in one program", function()
      for _, language in ipairs(assert(box:languages())) do
        there[language.name] = language
        assert.matches("^/", language.interpreter)
        assert.is_true(language.version == nil or language.version:find "^%d" ~= nil)
      end
      for _, language in ipairs(LANGUAGES) do
        assert.is_true(language.optional or there[language.name] ~= nil, language.name)
      end
      assert.matches("^3%.", there.python.version)
      assert.equal("", assert(box:exec("ls -A /workspace")).stdout)
    end)

    it("takes limits", function()
      local list, _, code = box:languages { timeout = 0 }
      assert.is_nil(list)
      assert.equal("timeout", code)
    end)
  end)

  describe(":run_code", function()
    for _, language in ipairs(LANGUAGES) do
      it("runs " .. language.name .. ", or says that it is not there", function()
        local opts = { args = { "an arg" }, stdin = "input", env = { V = "v" } }
        local r, message, code, detail = box[language.name](box, language.hello, opts)
        if not there[language.name] then
          assert.is_true(language.optional)
          assert.is_nil(r)
          assert.equal("unavailable", code)
          assert.matches(language.name, message, 1, true)
          assert.equal("language", detail.what)
          assert.is_false(detail.started)
          assert.is_string(detail.cause)
          assert.is_string(detail.fix)
          return
        end
        assert(r, message)
        assert.equal("an arg input v\n", r.stdout)
        assert.equal("an arg input v", r.output)
        assert.is_true(r.ok)
        assert.equal("run", r.stage)
        assert.same({}, r.displays)
        assert.is_nil(r.error)

        r = assert(box:run_code(language.fails, { language = language.name }))
        assert.is_false(r.ok)
        assert.equal("run", r.stage)
        if language.error then
          assert.same(language.error, { r.error.name, r.error.message })
          assert.is_string(r.error.traceback)
        end

        if language.broken then
          r = assert(box:run_code(language.broken, { language = language.name }))
          assert.is_false(r.ok)
          assert.equal(language.compiled and "compile" or "run", r.stage)
          assert.equal(language.broken_error, r.error.name)
        end
      end)
    end

    it("is python if nothing is said", function()
      assert.equal("1\n", assert(box:run_code("print(1)")).stdout)
      assert.equal("1\n", assert(box:run_code("echo 1", { language = "shell" })).stdout)
    end)

    it("answers for a language that nobody knows, with what may be meant", function()
      local r, message, code, detail = box:run_code("1", { language = "pyton" })
      assert.is_nil(r)
      assert.equal("invalid", code)
      assert.matches("did you mean 'python'", message, 1, true)
      assert.equal("language", detail.what)
      for _, name in ipairs { "", "close", "__index", "core", "../sh", "sh\0", "c;id" } do
        assert.equal("invalid", (select(3, box:run_code("1", { language = name }))))
      end
      assert.is_nil(box.brainfuck)
      assert.is_nil(box.js)
      assert.is_nil(box[nil])
      assert.is_nil(box[0 / 0])
    end)

    it("refuses options that are to come, and NULs", function()
      for name, value in pairs { packages = { "x" }, requirements = "x", venv = "x",
        return_files = { "x" } } do
        local r, message, code = box:python("1", { [name] = value })
        assert.is_nil(r)
        assert.equal("unsupported", code)
        assert.matches(name, message, 1, true)
      end
      local r, _, code, detail = box:python("1", { args = { "a\0b" } })
      assert.is_nil(r)
      assert.equal("invalid", code)
      assert.is_false(detail.started)
    end)

    it("raises at the caller's line, with the call's own name", function()
      local cases = {
        { "box:python: the code must be a string", function() box:python(1) end },
        { "box:python: unknown option 'language'",
          function() box:python("", { language = "c" }) end },
        { "box:run_code: unknown option 'langauge' (did you mean 'language'?)",
          function() box:run_code("", { langauge = "c" }) end },
        { "box:lua: args[2] must be a string, got number",
          function() box:lua("", { args = { "", 2 } }) end },
        { "box:lua: args[2] must be a string, got nil",
          function() box:lua("", { args = { "", nil, "" } }) end },
        { "box:c: args is a list of words", function() box:c("", { args = { x = "" } }) end },
        { "box:c: env", function() box:c("", { env = { {} } }) end },
        { "box:sh: stdin", function() box:sh("", { stdin = true }) end },
        { "box:run_code: stdin", function() box:run_code("", { stdin = true }) end },
        { "box:run: stdin", function() box:run("/bin/ls", {}, { stdin = true }) end },
        { "box:run: args is a list", function() box:run("x", { timeout = 1 }) end },
        { "box:run: a path is a string", function() box:run() end },
        { "box:languages: unknown option", function() box:languages { x = 1 } end },
      }
      for _, case in ipairs(cases) do
        local line = debug.getinfo(case[2], "S").linedefined
        local ok, message = pcall(case[2])
        assert.is_false(ok)
        assert.matches(case[1], message, 1, true)
        assert.matches(("code_spec.lua:%d:"):format(line), message, 1, true)
      end
      local other = assert(moonsand.create())
      other:close()
      local ok, message = pcall(function()
        local r = other:python("1")
        return r
      end)
      assert.is_false(ok)
      assert.matches("code_spec.lua:%d+: moonsand: box:python: the sandbox was closed", message)
    end)

    it("keeps the workspace as it is, and runs in the caller's directory", function()
      local view = assert(box:view { cwd = "/var", env = { V = "from the view" } })
      local r = assert(view:python("import os; print(os.getcwd(), os.environ['V'])"))
      assert.equal("/var from the view\n", r.stdout)
      r = assert(view:node("console.log(process.cwd())", { cwd = "/usr" }))
      assert.equal("/usr\n", r.stdout)
      assert.equal("/var\n", assert(view:sh("pwd")).stdout)
      local before = assert(box:exec("ls -A /workspace")).stdout
      for _, language in ipairs { "python", "node", "c", "lua" } do
        box[language](box, "")
      end
      assert.equal(before, assert(box:exec("ls -A /workspace")).stdout)
    end)

    it("takes modules from the working directory", function()
      assert(box.files:write("/workspace/helper.py", "x = 41"))
      assert(box.files:write("/workspace/helper.js", "exports.x = 42"))
      assert(box.files:write("/workspace/helper.h", "#define X 43"))
      assert.equal("41\n", assert(box:python("import helper; print(helper.x)")).stdout)
      assert.equal("42\n", assert(box:node("console.log(require('./helper').x)")).stdout)
      assert.equal(43, assert(box:c('#include "helper.h"\nint main(void) { return X; }')).exit_code)
      assert(box:exec("rm -rf /workspace/*"))
    end)

    it("is not misled by files that are called as modules of the driver", function()
      for _, name in ipairs { "os", "_ast", "linecache", "traceback", "ast", "builtins" } do
        assert(box.files:write("/workspace/" .. name .. ".py", "raise SystemExit(9)"))
      end
      local r = assert(box:python("1/0"))
      assert.equal("ZeroDivisionError", r.error.name)
      assert(box.files:write("/workspace/main.py", "not\nthis\none"))
      r = assert(box:python("x = 1\n1/0"))
      assert.matches("    1/0\n", r.stderr, 1, true)
      assert(box:exec("rm -rf /workspace/*"))
    end)

    it("does not let words become options or commands", function()
      local words = { "--version", "-c", "$(id)", "`id`", "; id", "a b", "'", '"', "\n", "*", "\\",
        "-", "--", "" }
      local expected = table.concat(words, "|") .. "|\n"
      local print_them = {
        python = "import sys\nprint('|'.join(sys.argv[1:]) + '|')",
        node = "console.log(process.argv.slice(2).join('|') + '|')",
        bash = "printf '%s|' \"$@\"; echo",
        sh = "printf '%s|' \"$@\"; echo",
        lua = "print(table.concat({...}, '|') .. '|')",
        ruby = "puts ARGV.join('|') + '|'",
        perl = "print join('|', @ARGV), \"|\\n\";",
        php = "echo implode('|', array_slice($argv, 1)), \"|\\n\";",
        c = '#include <stdio.h>\nint main(int c, char **v) { for (int i = 1; i < c; i++) '
          .. 'printf("%s|", v[i]); puts(""); }',
      }
      for language, code in pairs(print_them) do
        local r = assert(box:run_code(code, { language = language, args = words }))
        assert.equal(expected, r.stdout, language)
      end
    end)

    it("passes bytes as they are", function()
      local odd = "caf\195\169 \255\254 \1\127"
      assert.equal(odd .. "\n", assert(box:lua("print('" .. odd .. "')")).stdout)
      assert.equal("a\0b\n", assert(box:lua("print('a\0b')")).stdout)
      local r = assert(box:python("print('a\0b')"))
      assert.is_false(r.ok)
      assert.matches("null byte", r.error.message, 1, true)
      r = assert(box:python("print('\255')"))
      assert.equal("SyntaxError", r.error.name)
      assert.equal("\195\169\n", assert(box:python("\239\187\191print('\195\169')")).stdout)
      assert.equal("1\n", assert(box:node("#!/usr/bin/env node\nconsole.log(1)")).stdout)
      assert.equal("", assert(box:python("")).stdout)
    end)

    it("takes a megabyte of text", function()
      local lines = {}
      for i = 1, 100000 do
        lines[i] = "x = 1 # 34"
      end
      local code = table.concat(lines, "\n")
      local r = assert(box:python(code .. "\nx + 1"))
      assert.equal("2", r.text)
      r = assert(box:sh((code:gsub("x = 1", ": = 1")) .. "\necho end"))
      assert.equal("end\n", r.stdout)
    end)

    it("says what stands at the end of python's text, and nothing else changes", function()
      local texts = {
        ["1 + 41"] = "42",
        ["x = 1"] = false,
        ["None"] = false,
        ["print(1)"] = false,
        ["x = [1]\nx"] = "[1]",
        ["'caf\195\169'"] = "'caf\195\169'",
        ["'\\ud800'"] = "'\\ud800'",
        ["from __future__ import annotations\n'doc'"] = "'doc'",
        ["for i in range(3):\n    i"] = false,
        ["import os\nos.chdir('/')\n5"] = "5",
        ["open = None\n5"] = "5",
        ["__name__"] = "'__main__'",
        ["import sys\nsys.argv"] = "['main.py']",
        ["import sys\nsys.modules[__name__].__dict__ is globals()"] = "True",
        ["sorted(k for k in globals() if not k.startswith('__'))"] = "[]",
        ["import pickle\nclass A: pass\nisinstance(pickle.loads(pickle.dumps(A())), A)"] = "True",
        ["import inspect\ndef f(): return 7\ninspect.getsource(f)"] = "'def f(): return 7\\n'",
      }
      for code, text in pairs(texts) do
        local r = assert(box:python(code))
        assert.equal("", r.stderr, code)
        assert.equal(text or nil, r.text, code)
      end
      assert.equal("in\n", assert(box:python("if __name__ == '__main__':\n  print('in')")).stdout)
      assert.equal(7, assert(box:python("import sys\nsys.exit(7)")).exit_code)
      assert.equal("no\n", assert(box:python("raise SystemExit('no')")).stderr)
      assert.is_nil(assert(box:python("import sys\nsys.exit(0)\n5")).text)
      assert.equal("INT", assert(box:python("raise KeyboardInterrupt")).signal)
    end)

    it("shows only frames of the user", function()
      local r = assert(box:python("print('first')\ndef f():\n    1/0\ntry:\n    f()\n"
        .. "except Exception as e:\n    raise KeyError('k') from e"))
      local frame = '  File "main.py", line %d, in %s\n    %s\n'
      assert.equal("Traceback (most recent call last):\n" .. frame:format(5, "<module>", "f()")
        .. frame:format(3, "f", "1/0"),
        (r.stderr:gsub("    [~^]+\n", ""):match "^(.-)ZeroDivisionError"))
      assert.is_nil(r.stderr:find("moonsand", 1, true))
      assert.is_nil(r.stderr:find("<string>", 1, true))
      assert.same({ "KeyError", "'k'" }, { r.error.name, r.error.message })
      assert.equal("first\n" .. r.stderr:gsub("\n$", ""), r.output)
      r = assert(box:python(
        "class A:\n    def __repr__(self):\n        raise ValueError('in repr')\nA()"))
      assert.equal("in repr", r.error.message)
      r = assert(box:python("raise ValueError('two\\nlines')"))
      assert.equal("two\nlines", r.error.message)
    end)

    it("decodes a last line that is JSON", function()
      local values = {
        ['{"a": [1, 2.5, "x"], "b": null}'] = { a = { 1, 2.5, "x" } },
        ["[]"] = {},
        ["45"] = 45,
        ["true"] = true,
        ['"text"'] = "text",
      }
      for text, value in pairs(values) do
        local r = assert(box:sh("echo before; echo '" .. text .. "'"))
        assert.same(value, r.value)
      end
      if math.type then
        assert.equal("integer", math.type(assert(box:sh("echo 45")).value))
      end
      local others = { "null", "NaN", "hello", "", "{", "1 2", ("["):rep(2000), "Infinity" }
      for _, text in ipairs(others) do
        assert.is_nil(assert(box:sh("echo '" .. text .. "'")).value)
      end
    end)

    it("puts both streams together as they came", function()
      local r = assert(box:sh([[
        seen() { until [ -e "/tmp/seen$1" ]; do sleep 0.01; done; }
        echo 1; seen 1; echo 2 >&2; seen 2; echo 3; echo]], {
        on_line = function(line)
          assert(box.files:write("/tmp/seen" .. line, ""))
        end,
      }))
      assert.equal("1\n2\n3\n", r.output)
      assert.equal("1\n3\n\n", r.stdout)
      local seen = {}
      r = assert(box:sh("echo 1; echo 2 >&2", {
        on_line = function(line, stream) seen[#seen + 1] = stream .. line end,
        on_exit = function(result) seen[#seen + 1] = result end,
      }))
      assert.equal(r, seen[#seen])
      assert.equal(3, #seen)
      r = assert(box:sh("echo 1; echo 2 >&2", { stderr = "stdout" }))
      assert.equal("1\n2", r.output)
    end)

    it("survives a flood", function()
      local r = assert(box:sh("head -c 50000000 /dev/zero; echo; echo 7; echo e >&2"))
      assert.equal(50000003, r.stdout_bytes)
      assert.is_true(#r.stdout <= 16 * 1024 * 1024)
      assert.equal(7, r.value)
      r = assert(box:python("print('[' * 3000000)"))
      assert.is_nil(r.value)
      r = assert(box:python(
        "import sys\nsys.stderr.write('Traceback at x line (' * 300000)\nsys.exit(1)"))
      assert.is_nil(r.error)
      r = assert(box:python("'x' * 3000000"))
      assert.equal(1000000, #r.text)
    end)

    it("ends in time, in whichever stage", function()
      local TIMEOUTS = { 2, 4, 15 }
      local function printed(result)
        return result.stdout ~= ""
      end
      local function ran(result)
        return result.stage == "run"
      end
      local function compiled(result)
        return result.stage == "compile"
      end
      local r = assert(support.in_time(TIMEOUTS, function(timeout)
        return box:python("print(1, flush=True)\nwhile True: pass", { timeout = timeout })
      end, printed))
      assert.is_true(r.timed_out)
      assert.equal("1\n", r.stdout)
      assert.equal("1", r.output)
      assert.is_nil(r.error)
      local slow = '#include "/dev/stdin"\nint main(void) { for (;;); }'
      r = assert(support.in_time(TIMEOUTS, function(timeout)
        return box:c(slow, { timeout = timeout, stdin = "x" })
      end, ran))
      assert.equal("run", r.stage)
      assert.is_true(r.timed_out)
      assert(box:exec("mkfifo /tmp/fifo"))
      r = assert(support.in_time(TIMEOUTS, function(timeout)
        return box:c('#include "/tmp/fifo"', { timeout = timeout })
      end, compiled))
      assert.equal("compile", r.stage)
      assert.is_true(r.timed_out)
      local none, _, code, detail = box:python("1", { timeout = 0 })
      assert.is_nil(none)
      assert.equal("timeout", code)
      assert.is_false(detail.started)
      none, _, code, detail = support.in_time(TIMEOUTS, function(timeout)
        return box:python("while True: pass", { timeout = timeout, check = true })
      end, ran)
      assert.is_nil(none)
      assert.equal("timeout", code)
      assert.equal("run", detail.result.stage)
    end)

    it("is cancelled, by its token and with its task", function()
      local token = moonsand.token {}
      local r, _, code, detail = box:python("print(1, flush=True)\nwhile True: pass", {
        cancel = token,
        on_stdout = function() token:cancel() end,
      })
      assert.is_nil(r)
      assert.equal("cancelled", code)
      assert.equal("1\n", detail.result.stdout)
      assert.equal("1", detail.result.output)
      moonsand.run(function()
        local started = moonsand.token {}
        local task = moonsand.task(function()
          return box:sh("echo; while :; do :; done", {
            on_stdout = function() started:cancel() end,
          })
        end)
        moonsand.sleep(10, { cancel = started })
        task:cancel()
        assert.equal("cancelled", (select(3, task:wait())))
      end)
      r, _, code = box:python("1", { cancel = token })
      assert.is_nil(r)
      assert.equal("cancelled", code)
    end)

    it("cleans up when a callback raises", function()
      assert.has_error(function()
        box:sh("echo; sleep 10", { on_stdout = function() error("mine", 0) end })
      end, "mine")
      local told = {}
      local r, message, code = box:c("int main(void) { return 4; }", {
        check = true,
        on_exit = function(result) told[#told + 1] = result.exit_code end,
      })
      assert.is_nil(r)
      assert.equal("exit", code)
      assert.matches("exited with 4", message, 1, true)
      assert.same({ 4 }, told)
    end)

    it("cleans up what the code did to its own directory", function()
      assert(box:sh('d=$(dirname "$0"); mkdir -p "$d/a/b"; ln -s /etc "$d/l"; rm "$0"'))
      assert(box:sh('rm -rf "$(dirname "$0")"'))
      assert(box:python("import os\nos.mkfifo(os.path.dirname(__file__) + '/text')\n1"))
      assert.is_true(box.files:exists("/etc/passwd"))
    end)

    it("runs side by side", function()
      local both = assert(moonsand.all({ "1", "2" }, function(code)
        return box:python("import time; time.sleep(0.2); print([" .. code .. "])\n" .. code)
      end))
      assert.same({ "1", "2" }, { both[1].text, both[2].text })
      assert.same({ { 1 }, { 2 } }, { both[1].value, both[2].value })
    end)

    it("finds a tool when it is installed, and misses it when it goes", function()
      local other = assert(moonsand.create { env = { PATH = "/opt:/bin" } })
      local _, _, code = other:run_code("x", { language = "rust" })
      assert.equal("unavailable", code)
      assert(other.files:write("/opt/rustc", "#!/bin/sh\n"
        .. "while [ \"$1\" != -o ]; do shift; done\ncp \"$3\" \"$2\" && chmod 755 \"$2\"\n",
        { mode = "755" }))
      local program = "#!/bin/sh\necho ran \"$@\"; kill -9 $$"
      local r = assert(other:rust(program, { args = { "a" } }))
      assert.equal("KILL", r.signal)
      assert.equal("ran a\n", r.stdout)
      assert(other:exec("rm /opt/rustc"))
      _, _, code = other:run_code("x", { language = "rust" })
      assert.equal("unavailable", code)
      other:close()
    end)

    it("answers closed when the sandbox is closed meanwhile", function()
      local other = assert(moonsand.create())
      local r, _, code = other:sh("echo; sleep 10", { on_stdout = function() other:close() end })
      assert.is_nil(r)
      assert.equal("closed", code)
    end)
  end)

  describe(":run", function()
    setup(function()
      assert(box.files:write_many {
        { "/workspace/a.py", "import sys\nprint(sys.argv)" },
        { "/workspace/a.c", "int main(int c, char **v) { return c; }" },
        { "/workspace/bad.c", "int main(void) { return x; }" },
        { "/workspace/script", "#!/bin/sh -e\necho \"$0\" \"$@\"; false; echo not" },
        { "/workspace/env", "#! /usr/bin/env python3\r\nprint(1)" },
        { "/workspace/env-s", "#!/usr/bin/env -S perl -w -l\nprint for @ARGV" },
        { "/workspace/none", "#!/nowhere/sh\n" },
        { "/workspace/plain", "hello" },
        { "/workspace/-c", "#!/bin/sh\necho dash" },
        { "/workspace/sub/b.LUA", "print(...)" },
        { "/workspace/x.rs", "fn main() {}" },
      })
    end)

    it("takes the interpreter from the #! line, the extension or the caller", function()
      assert.equal("['a.py', 'x', '-y']\n", assert(box:run("a.py", { "x", "-y" })).stdout)
      local r = assert(box:run("script", { "x" }))
      assert.equal("script x\n", r.stdout)
      assert.equal(1, r.exit_code)
      assert.equal("1\n", assert(box:run("env")).stdout)
      assert.equal("x\ny\n", assert(box:run("env-s", { "x", "y" })).stdout)
      assert.equal("q\n", assert(box:run("/workspace/sub/b.LUA", { "q" })).stdout)
      assert.equal("q\n", assert(box:run("b.LUA", { "q" }, { cwd = "sub" })).stdout)
      assert.equal("hello", assert(box:run("plain", nil, { interpreter = "cat" })).stdout)
      r = assert(box:run("a.py", { "z" }, { interpreter = { "python3", "-u" } }))
      assert.equal("['a.py', 'z']\n", r.stdout)
      assert.equal("dash\n", assert(box:run("-c")).stdout)
      assert.equal("plain\n", assert(box:run("/bin/ls", { "plain" })).stdout)
    end)

    it("compiles what must be", function()
      local r = assert(box:run("a.c", { "x", "y" }))
      assert.equal(3, r.exit_code)
      assert.equal("run", r.stage)
      r = assert(box:run("bad.c"))
      assert.equal("compile", r.stage)
      assert.matches("bad.c:1", r.stderr, 1, true)
      if not there.rust then
        local none, _, code = box:run("x.rs")
        assert.is_nil(none)
        assert.equal("unavailable", code)
      end
    end)

    it("answers for what cannot be run", function()
      local cases = {
        { "nothing.py", "not_found" },
        { "sub", "is_a_directory" },
        { "plain", "invalid" },
        { "none", "not_found" },
        { "", "invalid" },
        { "a\0.py", "invalid" },
        { "a.py/x", "not_a_directory" },
      }
      for _, case in ipairs(cases) do
        local r, message, code, detail = box:run(case[1])
        assert.is_nil(r, case[1])
        assert.equal(case[2], code, message)
        assert.is_false(detail.started)
      end
      local r, _, code = box:run("a.py", nil, { interpreter = "nosuch" })
      assert.is_nil(r)
      assert.equal("not_found", code)
      assert.equal("unsupported", (select(3, box:run("a.py", nil, { packages = { "x" } }))))
    end)

    it("takes the options of exec", function()
      local r, _, code = box:run("script", nil, { check = true })
      assert.is_nil(r)
      assert.equal("exit", code)
      local _, _, timeout = box:run("a.py", nil, { timeout = 0 })
      assert.equal("timeout", timeout)
    end)
  end)
end)
