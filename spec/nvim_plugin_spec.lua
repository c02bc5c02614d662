--- The Neovim plugin, in a real editor without a screen: `nvim --headless`, with the project's
--- directory as a plugin. What it looks like is for eyes; this is what it does.

local helper = require "helper"
local support = require "support.init"

local quote = support.quote
local BUILD = os.getenv "MOONSAND_BUILD" or "build"

--- A script's first line, so that the numbers of the others are those of the spec.
local HEAD = [[
local api = vim.api
local function say(...)
  local words = { ... }
  for i = 1, select("#", ...) do words[i] = tostring(words[i]) end
  io.stdout:write(table.concat(words, " "), "\n")
end
local notes = {}
vim.notify = function(message) table.insert(notes, message) end
local function fill(filetype, ...)
  vim.cmd "enew!"
  api.nvim_buf_set_lines(0, 0, -1, false, { ... })
  vim.bo.filetype = filetype
end
local function lines_of(name)
  local buffer = vim.fn.bufnr(name or "moonsand://output")
  return buffer ~= -1 and api.nvim_buf_get_lines(buffer, 0, -1, false) or {}
end
local function text_of(name)
  return (table.concat(lines_of(name), "|"):gsub("%d+%.%d+ s", "N s"))
end
local function eventually(what, condition)
  assert(vim.wait(10000, condition, 10), what)
end
local function finish()
  local plugin = require "moonsand.nvim"
  eventually("it does not end", function() return not plugin.is_running() end)
  return text_of()
end
local function until_line(text, name)
  eventually("no line " .. text, function() return vim.tbl_contains(lines_of(name), text) end)
end
local function keys(text)
  api.nvim_feedkeys(api.nvim_replace_termcodes(text, true, true, true), "xt", false)
end
]]

local tree -- the directory that the editor has as a plugin

--- What a clone of the project has, in a directory of its own, built or not.
local function clone(name, build)
  local dir = support.directory() .. "/" .. name
  local output, status =
    support.run(("mkdir -p %s && cp -R plugin lua doc Makefile %s"):format(dir, dir))
  assert(status == 0, output)
  if build then
    build = build:sub(1, 1) == "/" and build or "$PWD/" .. build
    output, status = support.run(("ln -s %s %s/build"):format(build, dir))
    assert(status == 0, output)
  end
  return dir
end

local count = 0

--- What a script says, in an editor with these arguments. There is no LUA_CPATH: the core is found
--- by the plugin.
local function editor(arguments, code)
  count = count + 1
  local path = support.write(("%s/plugin-%d.lua"):format(support.directory(), count),
    HEAD:gsub("\n", " ") .. "local ok, err = xpcall(function() " .. code
    .. '\nend, debug.traceback) if not ok then say(err) end vim.cmd "qa!"')
  local home = quote(support.directory())
  return (support.run(("env -u LUA_PATH -u LUA_CPATH HOME=%s XDG_DATA_HOME=%s XDG_STATE_HOME=%s "
    .. "timeout 40 nvim --headless -i NONE -n %s -c %s </dev/null"):format(home, home, home,
    arguments, quote("luafile " .. path))))
end

--- The arguments for an editor that has nothing but this plugin.
local function with_plugin(dir)
  return ("-u NONE --cmd 'set rtp^=%s' --cmd 'runtime plugin/moonsand.lua'"):format(dir)
end

--- The usual one.
local function nvim(code)
  tree = tree or clone("tree", BUILD)
  return editor(with_plugin(tree), code)
end

local function gives(expected, code)
  assert.equal(expected .. "\n", nvim(code))
end

describe("the Neovim plugin", function()
  helper.deadline(60)

  describe(":Moonsand run", function()
    it("runs the buffer, by its filetype", function()
      gives("hello|45|[exited with 0 after N s]", [[
        fill("python", "print('hello')", "sum(range(10))")
        vim.cmd "Moonsand run"
        say(finish())]])
    end)

    it("runs a range without its common indentation, and a language that is named", function()
      gives("2|3|[exited with 0 after N s]\nsh|[exited with 0 after N s]", [[
        fill("python", "if True:", "    for i in (2, 3):", "", "        print(i)", "nonsense(")
        vim.cmd "2,4Moonsand run"
        say(finish())
        fill("text", "echo sh")
        vim.cmd "Moonsand run sh"
        say(finish())]])
    end)

    it("runs a script of bash, whose filetype is sh, by bash", function()
      gives("2|[exited with 0 after N s]", [[
        vim.cmd "filetype on"
        vim.cmd "enew"
        api.nvim_buf_set_lines(0, 0, -1, false, { "#!/bin/bash", "a=(1 2)", "echo ${a[1]}" })
        vim.cmd "filetype detect"
        assert(vim.bo.filetype == "sh")
        vim.cmd "Moonsand"
        say(finish())]])
    end)

    it("shows output while the program runs, in a window that follows it", function()
      gives("first true 1\nfirst|last|[exited with 0 after N s]\n3 true", [[
        local shared = vim.fn.tempname()
        vim.fn.mkdir(shared, "p")
        vim.g.moonsand = { create = { workspace = shared } }
        fill("sh", "echo first", "while [ ! -e /workspace/go ]; do sleep 0.05; done", "echo last")
        local window = api.nvim_get_current_win()
        vim.cmd "Moonsand"
        until_line "first"
        say(lines_of()[1], require("moonsand.nvim").is_running(), #lines_of())
        vim.fn.writefile({}, shared .. "/go")
        say(finish())
        local shown = vim.fn.win_findbuf(vim.fn.bufnr "moonsand://output")[1]
        say(api.nvim_win_get_cursor(shown)[1], api.nvim_get_current_win() == window)]])
    end)

    it("shows at once what a python program prints", function()
      gives("first", [[
        fill("python", "import time", "print('first')", "time.sleep(100)")
        vim.cmd "Moonsand"
        until_line "first"
        say(text_of())]])
    end)

    it("leaves a window alone whose cursor is not at the end", function()
      gives("2", [[
        fill("sh", "seq 20", "sleep 0.3", "seq 20")
        vim.cmd "Moonsand"
        until_line "20"
        local shown = vim.fn.win_findbuf(vim.fn.bufnr "moonsand://output")[1]
        api.nvim_win_set_cursor(shown, { 2, 0 })
        finish()
        say(api.nvim_win_get_cursor(shown)[1])]])
    end)

    it("joins lines that come in pieces", function()
      gives("abc|d|[exited with 0 after N s]", [[
        fill("sh", "printf a; sleep 0.1; printf b; sleep 0.1; printf 'c\\nd'")
        vim.cmd "Moonsand run"
        say(finish())]])
    end)

    it("shows what a terminal would: no codes, what was written last", function()
      gives("red, 100%, a link, x|done 2|crlf|err|[exited with 0 after N s]", [[
        fill("python", "import sys, time",
          "def put(text): sys.stdout.write(text); sys.stdout.flush(); time.sleep(0.05)",
          "put('\\x1b[1;3'); put('1mred\\x1b[0m, 100%, \\x1b]8;;http://x\\x1b')",
          "put('\\\\a link\\x1b]8;;\\x07, \\x1b(Bx\\n')",
          "put('working 1\\r'); put('working 2'); put('\\r'); put('\\x1b[Kdone 2\\n')",
          "put('crlf\\r\\n'); put('99%\\r'); print('err', file=sys.stderr)")
        vim.cmd "Moonsand run"
        say(finish())]])
    end)

    it("takes any bytes, and breaks lines that are too long between characters", function()
      gives("true 4095 true", [[
        fill("python", "import os", "os.write(1, b'a\\0b\\xff\\n')",
          "os.write(1, b'x' * 4095 + b'\\xc3\\xa9\\n')")
        vim.cmd "Moonsand run"
        finish()
        local lines = lines_of()
        say(lines[1] == "a\0b\255", #lines[2], lines[3] == "\195\169")]])
    end)

    it("marks errors, and tells how it ended", function()
      gives("out|err|[exited with 3 after N s]\nMoonsandError,MoonsandFailed\n"
        .. "[ended by SIGSEGV after N s]\n[timed out after N s]\n"
        .. "timed out after N s  sh: [No Name]", [[
        fill("sh", "printf out", "sleep 0.1", "echo err >&2", "sleep 0.1", "exit 3")
        vim.cmd "Moonsand run"
        say(finish())
        local groups = {}
        for _, mark in ipairs(api.nvim_buf_get_extmarks(vim.fn.bufnr "moonsand://output",
            api.nvim_get_namespaces().moonsand, 0, -1, { details = true })) do
          table.insert(groups, mark[4].hl_group)
        end
        say(table.concat(groups, ","))
        fill("sh", "kill -SEGV $$")
        vim.cmd "Moonsand run"
        say(finish())
        fill("sh", "sleep 100")
        vim.g.moonsand = { run = { timeout = 1 } }
        vim.cmd "Moonsand run"
        say(finish())
        say((vim.b[vim.fn.bufnr "moonsand://output"].moonsand_status:gsub("%d+%.%d+ s", "N s")))]])
    end)

    it("tells a program that was not compiled from one that failed", function()
      gives("[compile: exited with 1 after N s]", [[
        fill("c", "int main(void) { return nothing; }")
        vim.cmd "Moonsand run"
        say((finish():match "[^|]*$"))]])
    end)

    it("stops what runs when something else is run, and shows only that", function()
      gives("second|[exited with 0 after N s]\ntrue", [[
        fill("sh", "while :; do echo first; done")
        vim.cmd "Moonsand run"
        until_line "first"
        fill("sh", "echo second")
        vim.cmd "Moonsand run"
        local text = finish()
        say(text)
        vim.wait(200)
        say(text == text_of())]])
    end)
  end)

  describe("under a flood", function()
    it("keeps the last lines, and loses none of those", function()
      gives("500 999502 1000000 [exited with 0 after N s]", [[
        fill("sh", "seq 1000000")
        vim.g.moonsand = { max_lines = 500 }
        vim.cmd "Moonsand run"
        local text, lines = finish(), lines_of()
        say(#lines, lines[1], lines[#lines - 1], text:match "[^|]*$")]])
    end)

    -- A bug once: a callback that waits was given pieces for ever, and a cancel was not seen.
    it("keeps the editor alive, and can be stopped", function()
      gives("true true true", [[
        fill("sh", "yes & yes >&2")
        local beats, last, gap = 0, vim.loop.hrtime(), 0
        local timer = vim.loop.new_timer()
        timer:start(10, 10, vim.schedule_wrap(function()
          local now = vim.loop.hrtime()
          beats, gap, last = beats + 1, math.max(gap, (now - last) / 1e9), now
        end))
        vim.cmd "Moonsand run"
        until_line "y"
        vim.wait(3000, function() return false end)
        local start = vim.loop.hrtime()
        vim.cmd "Moonsand stop"
        local text = finish()
        say(beats > 10, gap < 2.5 or gap, text:find("[stopped after N s]", 1, true) ~= nil
          and vim.loop.hrtime() - start < 5e9)]])
    end)

    it("bounds a line that has no end", function()
      gives("true true", [[
        fill("sh", "tr '\\0' x </dev/zero | head -c 30000000; sleep 100")
        vim.g.moonsand = { max_lines = 100 }
        vim.cmd "Moonsand run"
        eventually("nothing came", function() return #lines_of() > 50 end)
        vim.cmd "Moonsand stop"
        finish()
        local longest = 0
        for _, line in ipairs(lines_of()) do longest = math.max(longest, #line) end
        say(#lines_of() <= 100, longest <= 4096)]])
    end)
  end)

  describe("what runs", function()
    it("can be stopped and run again, with the text that is there then", function()
      gives("go|[stopped after N s]\nagain|[exited with 0 after N s]\n"
        .. "once more|[exited with 0 after N s]", [[
        fill("sh", "echo go", "sleep 100")
        vim.cmd "Moonsand run"
        until_line "go"
        vim.cmd "Moonsand stop"
        say(finish())
        api.nvim_buf_set_lines(0, 0, -1, false, { "echo again" })
        vim.cmd "Moonsand rerun"
        say(finish())
        api.nvim_buf_set_lines(0, 0, -1, false, { "echo once more" })
        vim.cmd "wincmd j"
        vim.cmd "Moonsand"
        say(finish())]])
    end)

    for how, code in pairs {
      ["its window is closed"] = 'vim.cmd "wincmd j" keys "q"',
      ["another buffer is shown there"] = 'vim.cmd "wincmd j" vim.cmd "enew"',
      ["its buffer is deleted"] = 'vim.cmd "bwipeout! moonsand://output"',
    } do
      it("ends when " .. how, function()
        gives("false\nthere|[exited with 0 after N s]", [[
          fill("sh", "echo go", "sleep 100")
          local buffer = vim.fn.bufnr()
          vim.cmd "Moonsand run"
          until_line "go"
          ]] .. code .. [[
          finish()
          say(require("moonsand.nvim").is_running())
          vim.cmd("buffer! " .. buffer)
          api.nvim_buf_set_lines(0, 0, -1, false, { "echo there" })
          vim.cmd "Moonsand run"
          say(finish())]])
      end)
    end

    it("ends with the editor, and nothing is left", function()
      local name = "nvim-leaves-" .. support.native().getpid()
      local output = nvim([[
        fill("sh", "echo go", "exec -a ]] .. name .. [[ sleep 1000")
        vim.cmd "Moonsand run bash"
        until_line "go"
        vim.cmd "Moonsand shell"
        eventually("no program", function()
          local all = vim.fn.system "cat /proc/[0-9]*/cmdline 2>/dev/null"
          return all:find("]] .. name .. [[", 1, true)
        end)
        say "runs"]])
      assert.equal("runs\n", output)
      support.eventually(20, "it still runs", function()
        local left = support.run("grep -las " .. name .. " /proc/[0-9]*/cmdline | grep -v self")
        for pid in left:gmatch "/proc/(%d+)/" do
          if (support.read("/proc/" .. pid .. "/cmdline") or ""):sub(1, #name) == name then
            return false
          end
        end
        return true
      end)
    end)
  end)

  describe(":Moonsand shell", function()
    it("runs what is typed, in one shell, and ends with it", function()
      gives("true\n$ cd /tmp; x=4|$ pwd; echo $x|/tmp|4|$ nope|/bin/sh: 3: nope: not found"
        .. "|$ echo ask; read y; echo got $y|ask|$ word|got word"
        .. "|$ exit 3|[exited with 3 after N s]\nnofile", [[
        local name = "moonsand://shell/1"
        vim.cmd "Moonsand shell"
        say(vim.fn.bufname() == name)
        local function enter(text, line)
          keys("A" .. text .. "<CR><Esc>")
          if line then until_line(line, name) end
        end
        enter "cd /tmp; x=4"
        enter("pwd; echo $x", "4")
        enter("nope", "/bin/sh: 3: nope: not found")
        enter("echo ask; read y; echo got $y", "ask")
        enter("word", "got word")
        enter "exit 3"
        eventually("it does not end", function() return vim.bo.buftype == "nofile" end)
        say(text_of(name))
        say(vim.bo.buftype)]])
    end)

    it("interrupts what runs in it, and has an end of input", function()
      local seconds = "100." .. support.native().getpid() -- to be known by, on the whole machine
      gives("$ echo go; sleep " .. seconds .. "|go|$ echo after||after||[exited with 0 after N s]", [[
        local name = "moonsand://shell/1"
        vim.cmd "Moonsand shell"
        keys "Aecho go; sleep ]] .. seconds .. [[<CR><Esc>"
        until_line("go", name)
        eventually("it does not sleep", function()
          local all = vim.fn.system "cat /proc/[0-9]*/cmdline 2>/dev/null"
          return all:find("sleep%c]] .. seconds .. [[%c")
        end)
        keys "A<C-c><Esc>"
        keys "Aecho after<CR><Esc>"
        until_line("after", name)
        keys "A<C-d><Esc>"
        eventually("it does not end", function() return vim.bo.buftype == "nofile" end)
        say((text_of(name)))]])
    end)

    it("ends when its window is closed; others go on", function()
      gives("-1 2\n$ echo here|here|$ ", [[
        vim.cmd "Moonsand shell"
        vim.cmd "Moonsand shell"
        vim.cmd "stopinsert"
        vim.cmd "close"
        say(vim.fn.bufnr "moonsand://shell/2", #api.nvim_list_wins())
        vim.fn.win_gotoid(vim.fn.win_findbuf(vim.fn.bufnr "moonsand://shell/1")[1])
        keys "Aecho here<CR><Esc>"
        until_line("here", "moonsand://shell/1")
        say(text_of "moonsand://shell/1")]])
    end)
  end)

  describe("says what is wrong:", function()
    it("a filetype, a language, a subcommand, nothing to stop", function()
      gives(table.concat({
        "moonsand: the buffer has no filetype; name a language: :Moonsand run python",
        "moonsand: cannot run the filetype 'markdown'; name a language: :Moonsand run python",
        "moonsand: no language 'pyton'; did you mean python?",
        "moonsand: no subcommand 'jump' (there are: rerun, run, shell, stop)",
        "moonsand: 'now' is too much for :Moonsand stop",
        "moonsand: nothing runs",
        "moonsand: nothing was run yet",
        "-1",
      }, "\n"), [[
        fill("", "x")
        vim.cmd "Moonsand run"
        fill("markdown", "x")
        vim.cmd "Moonsand run"
        for _, rest in ipairs { "run pyton", "jump", "stop now", "stop", "rerun" } do
          vim.cmd("Moonsand " .. rest)
        end
        for _, note in ipairs(notes) do say(note) end
        say(vim.fn.bufnr "moonsand://output")]])
    end)

    it("an option", function()
      gives(table.concat({
        "moonsand: g:moonsand: unknown option 'hight' (did you mean 'height'?)",
        "moonsand: g:moonsand: option 'run' must be a table, got number",
        "moonsand: box:run_code: unknown option 'tiemout' (did you mean 'timeout'?)",
        "[failed: box:run_code: unknown option 'tiemout' (did you mean 'timeout'?)]",
      }, "\n"), [[
        fill("sh", "echo never")
        for _, set in ipairs { { hight = 3 }, { run = 3 }, { run = { tiemout = 3 } } } do
          vim.g.moonsand = set
          vim.cmd "Moonsand run"
        end
        local text = finish()
        for _, note in ipairs(notes) do say(note) end
        say(text)]])
    end)

    it("a core that is not there", function()
      local bare = clone "bare"
      local output = editor(with_plugin(bare), [[
        package.cpath = package.cpath:match "[^;]*$"
        fill("sh", "echo never")
        vim.cmd "Moonsand run"
        say(notes[1])
        vim.cmd "checkhealth moonsand"
        say(table.concat(api.nvim_buf_get_lines(0, 0, -1, false), "\n"))]])
      local why = ("the core is not built; run `make` in %s"):format(bare)
      assert.equal("moonsand: " .. why, output:match "^[^\n]*")
      assert.truthy(output:find("ERROR: " .. why, 1, true), output)
    end)
  end)

  it("completes", function()
    gives("rerun run shell stop\nrerun run\npython python3", [[
      local complete = require("moonsand.nvim").complete
      say(table.concat(complete("", "Moonsand "), " "))
      say(table.concat(vim.fn.getcompletion("Moonsand r", "cmdline"), " "))
      say(table.concat(vim.fn.getcompletion("'<,'>Moonsand run pyt", "cmdline"), " "))]])
  end)

  it("is a package of Vim's that loads nothing and maps nothing before it is used", function()
    clone("nvim/site/pack/moonsand/start/moonsand", BUILD)
    assert.equal("2\n0 0 0\n[exited with 0 after N s]\n", editor("-u NORC", [[
      say(vim.fn.exists ":Moonsand")
      local loaded, mapped = 0, 0
      for name in pairs(package.loaded) do
        loaded = loaded + (name:find "moonsand" and 1 or 0)
      end
      for _, map in ipairs(api.nvim_get_keymap "") do
        mapped = mapped + ((map.rhs or map.desc or ""):find "oonsand" and 1 or 0)
      end
      say(loaded, mapped, vim.fn.exists "#BufHidden")
      fill("sh", ":")
      vim.cmd "Moonsand"
      say(finish())]]))
  end)

  it("tells of the machine's health", function()
    local text = nvim [[
      vim.cmd "checkhealth moonsand"
      say(table.concat(api.nvim_buf_get_lines(0, 0, -1, false), "\n"))]]
    for _, part in ipairs { "OK: moonsand %d", "its core is /%S+core.so", "OK: a local sandbox",
      "OK: a program in it", "moonsand: languages", "OK: python: %S*python3 " } do
      assert.truthy(text:find(part), part .. " is not in:\n" .. text)
    end
    assert.is_nil(text:find("ERROR", 1, true), text)
  end)

  it("reports by the names that newer editors have", function()
    gives("start moonsand\nok\nstart moonsand: languages", [[
      local said = {}
      vim.health = {}
      for _, name in ipairs { "start", "ok", "warn", "error", "info" } do
        vim.health[name] = function(text)
          table.insert(said, name == "start" and "start " .. text or name)
        end
      end
      require("moonsand.health").check()
      say(said[1])
      say(said[2])
      for i = 3, #said do
        if said[i]:find "^start" then say(said[i]) end
        assert(said[i] ~= "error")
      end]])
  end)
end)

describe("the examples for Neovim", function()
  helper.deadline(60)

  -- The specs of the pages run what is Lua; these are Vim's. Each ends by saying this.
  local ends = { "moonsand: nothing runs", "2 lines", "1, 2, 3: exited with 0" }
  local blocks = {}
  for block in assert(support.read "doc/neovim.md"):gmatch "\n```vim\n(.-\n)```" do
    blocks[#blocks + 1] = block
  end

  it("are as many as are known here", function()
    assert.equal(#ends, #blocks)
  end)

  for number, block in ipairs(blocks) do
    it("work: " .. block:match "[^\n]+", function()
      local path = support.write(support.directory() .. "/example.vim", block)
      assert.equal(ends[number] .. "\n", nvim(([[
        fill("python", "print('some')", "print('text')")
        vim.cmd "source %s"
        if vim.g.moonsand then
          assert(finish():find("some|text|[exited with 0", 1, true), finish())
          vim.cmd "Moonsand stop"
        end
        eventually("it says nothing", function() return notes[1] end)
        say(notes[1])]]):format(path)))
    end)
  end
end)

describe("the help of the plugin", function()
  helper.deadline(60)

  it("is what tools/vimdoc makes", function()
    local made, status = support.run(support.interpreter .. " tools/vimdoc")
    assert.equal(0, status)
    assert.equal(support.read "doc/moonsand.txt", made)
  end)

  it("has a tag for each command, and those it refers to", function()
    local dir = support.directory() .. "/help"
    local output, status =
      support.run(("mkdir -p %s/doc && cp doc/moonsand.txt %s/doc"):format(dir, dir))
    assert.equal(0, status, output)
    local said = editor("-u NONE --cmd " .. quote("set rtp^=" .. dir), [[
      vim.cmd("helptags ]] .. dir .. [[/doc")
      for _, tag in ipairs { "moonsand", ":Moonsand", ":Moonsand-run", ":Moonsand-stop",
          ":Moonsand-rerun", ":Moonsand-shell", "g:moonsand", "moonsand.nvim.run()" } do
        vim.cmd("help " .. tag)
        say(vim.fn.expand "%:t", (vim.fn.expand("<cWORD>"):gsub("%*", "")))
      end
      for tag in table.concat(api.nvim_buf_get_lines(0, 0, -1, false), "\n"):gmatch "|([^|%s]+)|" do
        vim.cmd("help " .. tag)
        vim.cmd "help moonsand"
      end]])
    assert.equal([[
moonsand.txt moonsand
moonsand.txt :Moonsand
moonsand.txt :Moonsand-run
moonsand.txt :Moonsand-stop
moonsand.txt :Moonsand-rerun
moonsand.txt :Moonsand-shell
moonsand.txt g:moonsand
moonsand.txt moonsand.nvim.run()
]], said)
  end)
end)
