-- The Neovim plugin, in a real editor without a screen: `nvim --headless` with the tree as a plugin.

local support = require "support.init"

local quote = support.quote
local BUILD = os.getenv "MOONSAND_BUILD" or "build"
local count = 0

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
local function output()
  local buffer = vim.fn.bufnr "moonsand://output"
  return buffer ~= -1 and api.nvim_buf_get_lines(buffer, 0, -1, false) or {}
end
local function finish()
  local plugin = require "moonsand.nvim"
  assert(vim.wait(10000, function() return not plugin.is_running() end), "it does not end")
  local lines = output()
  lines[#lines] = lines[#lines]:gsub("%d+%.%d+ s", "N s")
  return table.concat(lines, "|")
end
local function until_line(text)
  assert(vim.wait(5000, function() return vim.tbl_contains(output(), text) end), text)
end
]]

--- What a script says, in an editor that has the plugin.
local function nvim(code, more)
  count = count + 1
  local path = support.write(("%s/plugin-%d.lua"):format(support.directory(), count),
    HEAD:gsub("\n", " ") .. "local ok, err = xpcall(function() " .. code
    .. '\nend, debug.traceback) if not ok then say(err) end vim.cmd "qa!"')
  local build = BUILD:sub(1, 1) == "/" and BUILD or "$PWD/" .. BUILD
  return (support.run(([[env -u LUA_PATH LUA_CPATH="%s/jit/?.so;;" HOME=%s timeout 40 nvim --headless \
    -u NONE -i NONE -n --cmd "set rtp^=$PWD" --cmd "runtime plugin/moonsand.lua" %s -c %s \
    </dev/null]]):format(build, quote(support.directory()), more or "", quote("luafile " .. path))))
end

local function gives(expected, code)
  assert.equal(expected .. "\n", nvim(code))
end

describe("the Neovim plugin", function()
  it("runs the buffer, by its filetype", function()
    gives("hello|45|[exited with 0 after N s]", [[
      fill("python", "print('hello')", "sum(range(10))")
      vim.cmd "Moonsand run"
      say(finish())]])
  end)

  it("runs a range, without its common indentation, and a language that is named", function()
    gives("2|3|[exited with 0 after N s]\nsh|[exited with 0 after N s]", [[
      fill("python", "if True:", "    for i in (2, 3):", "        print(i)", "nonsense(")
      vim.cmd "2,3Moonsand run"
      say(finish())
      fill("text", "echo sh")
      vim.cmd "Moonsand run sh"
      say(finish())]])
  end)

  it("shows output while the program runs, in a window that follows it", function()
    gives("first running 1\nfirst|last|[exited with 0 after N s]\n3 true", [[
      fill("sh", "echo first", "sleep 0.5", "echo last")
      local window = api.nvim_get_current_win()
      vim.cmd "Moonsand"
      until_line "first"
      local plugin = require "moonsand.nvim"
      say(output()[1], plugin.is_running() and "running", #output())
      say(finish())
      local shown = vim.fn.win_findbuf(vim.fn.bufnr "moonsand://output")[1]
      say(api.nvim_win_get_cursor(shown)[1], api.nvim_get_current_win() == window)]])
  end)

  it("joins lines that come in pieces, and shows bytes that are no text", function()
    gives("abc|d^@e|[exited with 0 after N s]", [[
      fill("sh", "printf a; sleep 0.1; printf b; sleep 0.1; printf 'c\\r\\nd\\000e'")
      vim.cmd "Moonsand run"
      say(finish())]])
  end)

  it("marks errors, and tells how it ended", function()
    gives("out|err|[exited with 3 after N s]\nMoonsandError,MoonsandFailed\n"
      .. "[ended by SIGSEGV after N s]", [[
      fill("sh", "echo out", "sleep 0.05", "echo err >&2", "sleep 0.05", "exit 3")
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
      say(finish())]])
  end)

  it("stops, times out, runs again", function()
    gives("go|[stopped after N s]\ngo|[timed out (timeout) after N s]\nagain|[exited with 0 after N s]", [[
      fill("sh", "echo go", "sleep 100")
      vim.cmd "Moonsand run"
      until_line "go"
      vim.cmd "Moonsand stop"
      say(finish())
      vim.g.moonsand = { timeout = 0.3 }
      vim.cmd "Moonsand rerun"
      say((finish():gsub("timed out after", "timed out (timeout) after")))
      api.nvim_buf_set_lines(0, 0, -1, false, { "echo again" })
      vim.cmd "Moonsand rerun"
      say(finish())]])
  end)

  it("stops what runs when something else is run, and shows only that", function()
    gives("second|[exited with 0 after N s]", [[
      fill("sh", "while :; do echo first; done")
      vim.cmd "Moonsand run"
      until_line "first"
      fill("sh", "echo second")
      vim.cmd "Moonsand run"
      local text = finish()
      vim.wait(200)
      say(text == finish() and text)]])
  end)

  it("keeps the last lines of a flood, and the editor alive", function()
    gives("true true 100000 [exited with 0 after N s]", [[
      fill("sh", "seq 100000")
      vim.g.moonsand = { max_lines = 500 }
      local beats = 0
      local timer = vim.loop.new_timer()
      timer:start(5, 5, vim.schedule_wrap(function() beats = beats + 1 end))
      vim.cmd "Moonsand run"
      local text = finish()
      local lines = output()
      say(#lines <= 500, beats > 2, lines[#lines - 1], text:match "[^|]*$")]])
  end)

  it("says what is wrong, and does nothing", function()
    gives(table.concat({
      "moonsand: no filetype here; try :Moonsand run python",
      "moonsand: cannot run 'markdown'; try :Moonsand run python",
      "moonsand: no language 'pyton'; did you mean python?",
      "moonsand: no subcommand 'jump' (there are: output, rerun, run, stop)",
      "moonsand: nothing runs",
      "moonsand: nothing was run yet",
      "moonsand: nothing was run yet",
    }, "\n"), [[
      fill("", "x")
      vim.cmd "Moonsand run"
      fill("markdown", "x")
      vim.cmd "Moonsand run"
      for _, rest in ipairs { "run pyton", "jump", "stop", "rerun", "output" } do
        vim.cmd("Moonsand " .. rest)
      end
      for _, note in ipairs(notes) do say(note) end]])
  end)

  it("shows the window again, and lives on when its buffer is gone", function()
    gives("1 2 1\n2\ntwo|[exited with 0 after N s]", [[
      fill("sh", "echo two")
      vim.cmd "Moonsand run"
      finish()
      vim.cmd "wincmd j"
      vim.cmd "normal q"
      local closed = #api.nvim_list_wins()
      vim.cmd "Moonsand output"
      say(closed, #api.nvim_list_wins(), api.nvim_get_current_win() == vim.fn.win_getid(1) and 1)
      vim.cmd "bwipeout! moonsand://output"
      vim.cmd "Moonsand run"
      say(#api.nvim_list_wins())
      say(finish())]])
  end)

  it("completes", function()
    gives("output rerun run stop\nrerun run\npython python3", [[
      local complete = require("moonsand.nvim").complete
      say(table.concat(complete("", "Moonsand "), " "))
      say(table.concat(vim.fn.getcompletion("Moonsand r", "cmdline"), " "))
      say(table.concat(complete("pyt", "Moonsand run pyt"), " "))]])
  end)

  it("tells of the machine's health", function()
    local text = nvim [[
      vim.cmd "checkhealth moonsand"
      say(table.concat(api.nvim_buf_get_lines(0, 0, -1, false), "\n"))]]
    for _, part in ipairs { "OK: moonsand %d", "OK: a local sandbox", "OK: a program in it",
      "moonsand: languages", "OK: python: %S*python3 " } do
      assert.truthy(text:find(part), part .. " is not in:\n" .. text)
    end
    assert.is_nil(text:find("ERROR", 1, true), text)
  end)

  it("has help whose tags can be found", function()
    local dir = support.directory() .. "/help"
    assert.equal(0, select(2, support.run("mkdir -p " .. dir .. "/doc && cp doc/moonsand.txt " .. dir
      .. "/doc")))
    assert.equal("moonsand.txt :Moonsand-run\nmoonsand.txt g:moonsand\n", nvim([[
      vim.cmd "helptags doc"
      for _, tag in ipairs { ":Moonsand-run", "g:moonsand" } do
        vim.cmd("help " .. tag)
        say(vim.fn.expand "%:t", (vim.fn.expand("<cWORD>"):gsub("%*", "")))
      end]], "--cmd " .. quote("cd " .. dir) .. " --cmd " .. quote("set rtp^=" .. dir)))
  end)
end)
