--- The README and the pages in doc/ say what is true: their Lua runs and prints what they say,
--- their links lead somewhere, their make targets exist, and the manual leaves out nothing that
--- there is.
---
--- The rule for ```lua blocks: all blocks of one chapter (a heading "## …") are one program, in
--- order. A program that does not begin with `local moonsand = require` gets the two lines that the
--- manual's "First steps" ends with. A block marked ```lua 5.4 is only there on Lua 5.4. A comment
--- `--> text` says all that `print` prints in that line, with one space between the pieces; `…`
--- stands for anything.

local support = require "support.init"

local PRELUDE = 'local moonsand = require "moonsand" local box = assert(moonsand.create()) '
local SECONDS = 120

local pages = { "README.md" }
for _, name in ipairs(support.native().list "doc") do
  if name:find "%.md$" then
    pages[#pages + 1] = "doc/" .. name
  end
end
if support.exists "examples/README.md" then
  pages[#pages + 1] = "examples/README.md"
end
table.sort(pages)

local function lines_of(path)
  local lines = {}
  for line in (assert(support.read(path)) .. "\n"):gmatch "([^\n]*)\n" do
    lines[#lines + 1] = line
  end
  return lines
end

--- The fenced blocks of a page: { language, mark, chapter, first, lines }.
local function blocks_of(path)
  local blocks, block, chapter = {}, nil, "(top)"
  for number, line in ipairs(lines_of(path)) do
    local language, mark = line:match "^```(%w*) ?(.*)$"
    if block and language == "" then
      block = nil
    elseif block then
      block.lines[#block.lines + 1] = line
    elseif language then
      block = { language = language, mark = mark, chapter = chapter, first = number + 1 }
      block.lines = {}
      blocks[#blocks + 1] = block
    else
      chapter = line:match "^## +(.-) *$" or chapter
    end
  end
  return blocks
end

--- A page without its fenced blocks, headings and prose as they are.
local function prose_of(path)
  local kept, inside = {}, false
  for _, line in ipairs(lines_of(path)) do
    if line:find "^```" then
      inside = not inside
    elseif not inside then
      kept[#kept + 1] = line
    end
  end
  return table.concat(kept, "\n")
end

-- ---------------------------------------------------------------- Lua

--- Put in front of a program, on its first line: notes what each line prints, and at the end
--- compares it with what the line says of itself.
local HARNESS = [[
local expected, printed, real = %s, {}, _G
local env = setmetatable({ print = function(...)
  local line = debug.getinfo(2, "l").currentline
  local words = { printed[line] }
  for i = 1, select("#", ...) do words[#words + 1] = tostring((select(i, ...))) end
  printed[line] = table.concat(words, " ")
end }, { __index = real, __newindex = function(_, name)
  error("the global variable " .. tostring(name) .. " is set", 2)
end })
local program = assert(real.io.open(%q)):read "*a"
local chunk = assert((loadstring or load)(program, "@" .. %q, "t", env))
if setfenv then setfenv(chunk, env) end
local ok, message = xpcall(chunk, function(e) return debug.traceback(tostring(e), 2) end)
if not ok then real.print(message) os.exit(1) end
local function plain(text) return (text:gsub("%%s+", " "):gsub("^ ", ""):gsub(" $", "")) end
local wrong = 0
for line, text in pairs(expected) do
  local pattern = plain(text):gsub("[%%^$().%%[%%]*+?%%-%%%%]", "%%%%%%0"):gsub("…", ".*")
  local got = printed[line] and plain(printed[line])
  if not got or not got:find("^" .. pattern .. "$") then
    wrong = wrong + 1
    real.print(("%%s:%%d: printed: %%s\n  the page says: %%s")
      :format(%q, line, got or "(nothing)", text))
  end
end
os.exit(wrong == 0 and 0 or 1, true)
]]

--- The programs of a page, one a chapter: { chapter, lines, expected }. A line has the number that
--- it has in the page.
local function programs_of(path, is_54)
  local programs, by_chapter = {}, {}
  for _, block in ipairs(blocks_of(path)) do
    if block.language == "lua" and (block.mark ~= "5.4" or is_54) then
      local program = by_chapter[block.chapter]
      if not program then
        program = { chapter = block.chapter, lines = {}, expected = {}, count = 0 }
        by_chapter[block.chapter] = program
        programs[#programs + 1] = program
        if not block.lines[1]:find "^local moonsand = require" then
          program.prelude = true
        end
      end
      while program.count < block.first - 1 do
        program.count = program.count + 1
        program.lines[program.count] = ""
      end
      for _, line in ipairs(block.lines) do
        program.count = program.count + 1
        program.lines[program.count] = line
        program.expected[program.count] = line:match "%-%->%s*(.-)%s*$"
      end
    end
  end
  for _, program in ipairs(programs) do
    if program.prelude then
      program.lines[1] = PRELUDE
    end
  end
  return programs
end

local here = support.run "pwd":gsub("%s+$", "")

--- The search paths, for a program that runs in another directory.
local function absolute(paths)
  return (paths:gsub("[^;]+", function(path)
    return path:sub(1, 1) == "/" and path or here .. "/" .. path
  end))
end

local count = 0

--- Runs a program in a directory of its own.
local function run(path, program)
  count = count + 1
  local directory = ("%s/page-%d"):format(support.directory(), count)
  assert(select(2, support.run("mkdir " .. directory)) == 0)
  local file = support.write(directory .. ".lua", table.concat(program.lines, "\n"))
  local expected = { "{" }
  for line, text in pairs(program.expected) do
    expected[#expected + 1] = ("[%d] = %q,"):format(line, text)
  end
  expected[#expected + 1] = "}"
  local harness = support.write(directory .. "-run.lua",
    HARNESS:format(table.concat(expected, " "), file, path, path))
  local command = "cd %s && env XDG_RUNTIME_DIR=$PWD XDG_STATE_HOME=$PWD LUA_PATH=%s LUA_CPATH=%s "
    .. "timeout %d %s %s </dev/null"
  local output, status = support.run(command:format(directory,
    support.quote(absolute(package.path)), support.quote(absolute(package.cpath)), SECONDS,
    support.interpreter, harness))
  if status ~= 0 then
    error(("%s, \"%s\": status %d\n%s"):format(path, program.chapter, status, output), 0)
  end
end

-- ---------------------------------------------------------------- what there is

--- The public functions of a source file of lua/moonsand: those of a class, `function Class:name`.
local function methods_of(file, class)
  local names = {}
  local text = assert(support.read(file), file)
  for name in text:gmatch("\nfunction " .. class .. "[:.]([%w_]+)") do
    names[#names + 1] = name
  end
  return names
end

--- The files of lua/moonsand that define methods of a class.
local function all_methods(class, under)
  local found, names = {}, {}
  local output = support.run("grep -rl --include=*.lua '^function " .. class .. "[:.]' " .. under)
  for file in output:gmatch "[^\n]+" do
    for _, name in ipairs(methods_of(file, class)) do
      if not found[name] then
        found[name] = true
        names[#names + 1] = name
      end
    end
  end
  table.sort(names)
  return names
end

--- What the manual calls an object, and where its methods are.
local NOUNS = {
  { "box", "Sandbox", "lua/moonsand/sandbox.lua", hidden = { check_open = true } },
  { "box.files", "Files", "lua/moonsand/files.lua lua/moonsand/files" },
  { "p", "Process", "lua/moonsand/process.lua" },
  { "stream", "Stream", "lua/moonsand/stream.lua", hidden = { try = true } },
  { "it", "Iterator", "lua/moonsand/stream.lua" },
  { "session", "Session", "lua/moonsand/session.lua", hidden = { give_up = true } },
  { "interpreter", "Interpreter", "lua/moonsand/interpreter.lua" },
  { "task", "Task", "lua/moonsand/task.lua", hidden = { abandoned = true } },
  { "sem", "Semaphore", "lua/moonsand/task.lua" },
  { "pool", "Pool", "lua/moonsand/pool.lua" },
  { "token", "Token", "lua/moonsand/task.lua" },
}

local CODES = [[invalid unavailable unsupported not_found exists not_a_directory is_a_directory
  not_empty read_only loop busy permission_denied no_space too_large timeout cancelled exit signal
  output_limit resource_limit closed gone connection lost auth rate_limited quota conflict not_ready
  protocol provider]]

-- ---------------------------------------------------------------- specs

describe("the pages", function()
  local is_54 = _VERSION == "Lua 5.4"

  for _, path in ipairs(pages) do
    describe(path, function()
      for _, program in ipairs(programs_of(path, is_54)) do
        it("runs: " .. program.chapter, function()
          run(path, program)
        end)
      end

      it("has links that lead somewhere", function()
        local wrong = {}
        local directory = path:match "^(.*/)" or ""
        for target in prose_of(path):gmatch "%]%(([^)]+)%)" do
          local file, anchor = target:match "^([^#]*)#?(.*)$"
          if not target:find "^%a+:" then
            local full = file == "" and path or directory .. file
            if not support.exists(full) then
              wrong[#wrong + 1] = target
            elseif anchor ~= "" then
              local found = false
              for heading in ("\n" .. prose_of(full)):gmatch "\n#+ +([^\n]+)" do
                local id = heading:lower():gsub("[^%w%- _]", ""):gsub(" ", "-")
                found = found or id == anchor
              end
              if not found then
                wrong[#wrong + 1] = target
              end
            end
          end
        end
        assert.same({}, wrong)
      end)

      it("names make targets that exist", function()
        local makefile, wrong = support.read "Makefile", {}
        for _, block in ipairs(blocks_of(path)) do
          if block.language == "sh" then
            for words in table.concat(block.lines, "\n"):gmatch "%f[%w]make([^\n#&;|]*)" do
              for target in words:gmatch "%S+" do
                local named = target:find "^%l[%l-]*$"
                if named and not makefile:find("\n" .. target .. ":", 1, true) then
                  wrong[#wrong + 1] = target
                end
              end
            end
          end
        end
        assert.same({}, wrong)
      end)

      it("has lines of a width that can be read, and closed blocks", function()
        local wide, fences = {}, 0
        for number, line in ipairs(lines_of(path)) do
          fences = fences + (line:find "^```" and 1 or 0)
          local width = #line:gsub("[\128-\191]", "")
          if width > 118 and not line:find "^|" and not line:find "%]%(" then
            wide[#wide + 1] = number
          end
        end
        assert.same({}, wide)
        assert.equal(0, fences % 2)
      end)
    end)
  end
end)

describe("the manual", function()
  local manual = assert(support.read "doc/manual.md")

  --- The names that the manual does not have between two patterns.
  local function missing(names, before, after)
    local list = {}
    for _, name in ipairs(names) do
      if not manual:find(before .. name:gsub("%p", "%%%0") .. after) then
        list[#list + 1] = name
      end
    end
    return list
  end

  it("has every error code", function()
    local codes = {}
    for code in CODES:gmatch "%S+" do
      codes[#codes + 1] = code
    end
    assert.same({}, missing(codes, "`", "`"))
  end)

  it("has no error code that the library gives and the contract does not know", function()
    local wrong = {}
    local output = support.run("grep -rhoE \"fail\\(\\\"[a-z_]+\\\"\" lua/moonsand")
    for code in output:gmatch 'fail%("([%l_]+)"' do
      if not (" " .. CODES:gsub("%s+", " ") .. " "):find(" " .. code .. " ", 1, true) then
        wrong[#wrong + 1] = code
      end
    end
    assert.same({}, wrong)
  end)

  for _, noun in ipairs(NOUNS) do
    local said, class, under = noun[1], noun[2], noun[3]
    it("has every method of " .. said, function()
      local names = {}
      for _, name in ipairs(all_methods(class, under)) do
        if not (noun.hidden or {})[name] and name:sub(1, 1) ~= "_" then
          names[#names + 1] = name
        end
      end
      assert.is_true(#names > 0)
      assert.same({}, missing(names, said:gsub("%.", "%%.") .. ":", "%f[%W]"))
    end)
  end

  it("has every function of the module", function()
    local names = {}
    for name, value in pairs(require "moonsand") do
      if type(value) == "function" and name:sub(1, 1) ~= "_" then
        names[#names + 1] = name
      end
    end
    table.sort(names)
    assert.is_true(#names > 10)
    assert.same({}, missing(names, "moonsand%.", "%f[%W]"))
  end)

  it("has every language and its helper", function()
    local names = {}
    for _, language in ipairs(require("moonsand.languages").list) do
      names[#names + 1] = language.name
    end
    assert.same({}, missing(names, "`", "`"))
  end)

  it("has every capability, and every option of exec", function()
    local names = {}
    for _, name in ipairs(require("moonsand.providers").capabilities) do
      names[#names + 1] = name
    end
    for name in pairs(require("moonsand.program").exec_options) do
      names[#names + 1] = name
    end
    table.sort(names)
    assert.same({}, missing(names, "`", "`"))
  end)
end)

describe("the page on the design", function()
  it("names every source file", function()
    local design, missing = support.read "doc/design.md", {}
    local output = support.run "find lua src -name '*.lua' -o -name '*.[ch]'"
    for path in output:gmatch "[^\n]+" do
      local name, base, extension = path:match "([^/]+)$", path:match "([^/]+)%.(%w+)$"
      local short = extension == "h" and design:find("%f[%w_]" .. base .. "%.c %.h%f[^%w]")
      if not short and not design:find("%f[%w_]" .. name:gsub("%p", "%%%0") .. "%f[^%w]") then
        missing[#missing + 1] = path
      end
    end
    table.sort(missing)
    assert.same({}, missing)
  end)

  it("names no file of lua or src that is not there", function()
    local wrong = {}
    local tree = support.read "doc/design.md":match "```text\n(.-)\n```"
    local output = "\n" .. support.run "find lua src -type f"
    for name in tree:gmatch "%f[%w_/][%w_/]+%.[%lch]+%f[^%w]" do
      if name:find "%.lua$" or name:find "%.[ch]$" then
        if not output:find("/" .. name:gsub("%p", "%%%0") .. "\n") then
          wrong[#wrong + 1] = name
        end
      end
    end
    assert.same({}, wrong)
  end)
end)
