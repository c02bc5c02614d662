--- The Neovim plugin: `:Moonsand run` runs the buffer, or lines of it, in a sandbox of its own and
--- shows what comes in a window (output.lua); `:Moonsand shell` is in shell.lua. Nothing has to be
--- set up. tools/vimdoc makes doc/moonsand.txt of the comments here that are marked.

---@chapter 1 moonsand Introduction
---
--- Runs what is in a buffer in a sandbox on this machine: isolated, with no
--- network, none of your files and none of your environment. What it prints
--- appears in a window while it runs. The editor is never stopped. >
---
---     :Moonsand run           the buffer, by its 'filetype'
---     :'<,'>Moonsand run      some lines of it
---     :Moonsand shell         a shell in a new sandbox
--- <
--- Needs Linux 5.14 or later and Neovim 0.7 or later. `:checkhealth moonsand`
--- tells what is there and what is missing.

---@chapter 2 moonsand-install Install
---
--- The directory of moonsand is a plugin. Its core is built by `make`, which
--- needs a C compiler and the headers of LuaJIT, and says which packages it
--- misses. As a package of Vim's own: >
---
---     cd ~/.local/share/nvim/site/pack/moonsand/start
---     git clone <where it is> moonsand
---     make -C moonsand
---     nvim -c "helptags ALL" -c q
--- <
--- With lazy.nvim, from a clone: >
---
---     { dir = "~/src/moonsand", name = "moonsand", build = "make",
---       cmd = "Moonsand" }
--- <
--- A core that was installed otherwise is found as well, and comes first: in
--- /usr/local by `make install`, or as a rock, if 'luarocks path' is in the
--- environment of the editor: >
---
---     luarocks --lua-version 5.1 make --local
---     eval "$(luarocks --lua-version 5.1 path)"
--- <
--- Nothing has to be set up, and nothing is loaded before it is used. No key is
--- mapped: >
---
---     vim.keymap.set({ "n", "x" }, "<Leader>r", ":Moonsand run<CR>")
--- <

local output = require "moonsand.nvim.output"

local M = {}

---@chapter 6 moonsand-options Options
---
--- What should be different goes into *g:moonsand* at any time. The defaults: >
---
---     {defaults}
--- <
--- For example, at most ten seconds and 512 megabytes: >
---
---     vim.g.moonsand = { run = { timeout = 10, limits = { memory = "512M" } } }
--- <
--- doc/manual.md has the options of the library.
M.defaults = {
  height = 12, -- lines of a window
  max_lines = 10000, -- that are kept of the output
  languages = {}, -- what runs a filetype: { zsh = "bash" }
  shell = { "/bin/sh", "-i", "+m" }, -- what :Moonsand shell runs
  create = {}, -- options of moonsand.create: env, limits, …
  run = {}, -- options of box:run_code: args, stdin, timeout, …
}

---@class moonsand.NvimRun
---@field buffer integer
---@field first? integer nil: the whole buffer
---@field last? integer
---@field language string
---@field title string
---@field token? moonsand.Token while it runs

local run ---@type moonsand.NvimRun? the last one
local view ---@type moonsand.NvimOutput? where it shows

---@package
function M.notify(message, level)
  vim.notify("moonsand: " .. message, vim.log.levels[level or "ERROR"])
end

--- What was raised or answered, without where and without our name, and what to do about it.
---@package
function M.explain(message, detail)
  local fix = type(detail) == "table" and detail.fix
  return tostring(message):gsub("\n.*", ""):gsub("^.-moonsand: ", "") .. (fix and "; " .. fix or "")
end

--- The module and what is set, or why it cannot be used.
---@package
---@return table? moonsand, table|string settings
function M.load()
  if not package.searchpath("moonsand.core", package.cpath) then
    local root = vim.fn.fnamemodify(debug.getinfo(1, "S").source:sub(2), ":p:h:h:h:h")
    if vim.fn.filereadable(root .. "/Makefile") == 1 then
      return nil, "the core is not built; run `make` in " .. root
    end
    return nil, "moonsand.core is not in package.cpath; see :help moonsand-install"
  end
  local moonsand = require "moonsand"
  local types = vim.tbl_map(type, M.defaults)
  local fine, set = pcall(require("moonsand.options").check, "g:moonsand", vim.g.moonsand, types)
  if not fine then
    return nil, M.explain(set)
  end
  return moonsand, vim.tbl_extend("force", M.defaults, set)
end

local function languages()
  return require("moonsand.languages").by_name
end

--- The language of a buffer: the one that is named, or that of the filetype.
---@return string? language, string? message
local function language_of(buffer, named, settings)
  if named and not languages()[named] then
    local near = require("moonsand.options").nearest(named, languages())
    near = near and ("; did you mean %s?"):format(near) or ""
    return nil, ("no language '%s'%s"):format(named, near)
  elseif named then
    return named
  end
  local filetype = vim.bo[buffer].filetype
  if filetype == "" then
    return nil, "the buffer has no filetype; name a language: :Moonsand run python"
  end
  local language = settings.languages[filetype]
    or filetype == "sh" and vim.b[buffer].is_bash and "bash" or filetype
  if not languages()[language] then
    return nil, ("cannot run the filetype '%s'; name a language: :Moonsand run python")
      :format(filetype)
  end
  return language
end

--- How a program ended, for people, and which kind of end that is.
---@package
---@return string text, "ok"|"failed" kind
function M.ending(r, seconds)
  local how = r.status:gsub("_", " ")
  if r.exit_code then
    how = "exited with " .. r.exit_code
  elseif r.limit then
    how = "ended by its limit of " .. r.limit
  elseif r.signal and not r.timed_out then
    how = "ended by SIG" .. r.signal
  end
  if r.stage and r.stage ~= "run" then
    how = r.stage .. ": " .. how
  end
  return ("%s after %.2f s"):format(how, seconds), r.ok and "ok" or "failed"
end

--- The lines of a run. Those out of the middle of a block lose the indentation that all have.
local function code_of(this)
  local from, indent = (this.first or 1) - 1, nil
  local lines = vim.api.nvim_buf_get_lines(this.buffer, from, this.last or -1, false)
  for _, line in ipairs(this.first and lines or {}) do
    local blank, rest = line:match "^(%s*)(.*)$"
    if rest ~= "" then
      indent = indent or blank
      while blank:sub(1, #indent) ~= indent do
        indent = indent:sub(1, -2)
      end
    end
  end
  for i, line in ipairs(indent and lines or {}) do
    lines[i] = line:sub(#indent + 1)
  end
  return table.concat(lines, "\n") .. "\n"
end

--- Does what a run does, in a task, and tells how it went.
local function perform(moonsand, this, code, settings)
  local start = vim.loop.hrtime()
  local function show(kind)
    return function(data)
      if run == this then
        view:take(moonsand, data, kind)
      end
    end
  end
  local opts = vim.tbl_extend("force", { stdout = "discard" }, settings.run, {
    env = vim.tbl_extend("force", { PYTHONUNBUFFERED = "1" }, settings.run.env or {}),
    language = this.language,
    cancel = this.token,
    on_stdout = show "stdout",
    on_stderr = show "stderr",
  })
  local r, message, code_of_failure, detail = moonsand.with(settings.create, function(box)
    return box:run_code(code, opts)
  end)
  if run ~= this then
    return
  end
  local seconds = (vim.loop.hrtime() - start) / 1e9
  if r and r.text then
    view:add(r.text .. "\n", "value")
  end
  this.token = nil
  if r then
    view:finish(M.ending(r, seconds))
  elseif code_of_failure == "cancelled" then
    view:finish(("stopped after %.2f s"):format(seconds), "failed")
  else
    error(M.explain(message, detail), 0)
  end
end

local function open_view(settings)
  if not view or not view:is_valid() then
    view = output.new("moonsand://output", {
      height = settings.height,
      max_lines = settings.max_lines,
      on_close = M.stop,
    })
    view:map({ "n" }, "q", "close", function()
      pcall(vim.api.nvim_win_close, 0, false) -- not the last one
    end)
    view:map({ "n" }, "r", "run again", M.rerun)
    view:map({ "n" }, "s", "stop", M.stop)
  end
  view.height, view.max_lines = settings.height, settings.max_lines
  view:show()
end

local function begin(moonsand, this, settings)
  local code = code_of(this)
  M.stop()
  this.token, run = moonsand.token(), this
  open_view(settings)
  view:clear(("%s: %s"):format(this.language, this.title))
  view:set_status "running"
  moonsand.task(perform, moonsand, this, code, settings):on_done(function(ok, err)
    if not ok then
      this.token = nil
      M.notify(M.explain(err))
      if run == this then
        view:finish("failed: " .. M.explain(err), "failed")
      end
    end
  end)
end

---@chapter 7 moonsand-lua From Lua
---
--- What the commands do: *moonsand.nvim*
---
--- {functions}
---
--- The library works inside the editor, too: calls suspend the coroutine that
--- makes them, and outside of coroutines they wait as |vim.wait()| does, until
--- Ctrl-C. doc/neovim.md says more, doc/manual.md all the rest: >
---
---     local moonsand = require "moonsand"
---     coroutine.wrap(function()
---       local box = assert(moonsand.create())
---       local r = assert(box:exec("uname -a"))
---       vim.notify(r.stdout)
---       box:close()
---     end)()
--- <

--- Runs a buffer, the current one unless it is given, or lines of it.
---@param opts? { buffer?: integer, first?: integer, last?: integer, language?: string }
function M.run(opts)
  opts = opts or {}
  local buffer = opts.buffer or vim.api.nvim_get_current_buf()
  if view and buffer == view.buffer then
    return M.rerun()
  end
  local moonsand, settings = M.load()
  if not moonsand then
    return M.notify(settings)
  end
  local language, message = language_of(buffer, opts.language, settings)
  if not language then
    return M.notify(message)
  end
  local name = vim.fn.fnamemodify(vim.api.nvim_buf_get_name(buffer), ":t")
  local lines = opts.first and (":%d-%d"):format(opts.first, opts.last) or ""
  begin(moonsand, {
    buffer = buffer,
    first = opts.first,
    last = opts.last,
    language = language,
    title = (name ~= "" and name or "[No Name]") .. lines,
  }, settings)
end

--- Runs what was run last, as it is now.
function M.rerun()
  if not run then
    return M.notify("nothing was run yet", "WARN")
  elseif not vim.api.nvim_buf_is_loaded(run.buffer) then
    return M.notify("the buffer that was run is gone", "WARN")
  end
  local moonsand, settings = M.load()
  if not moonsand then
    return M.notify(settings)
  end
  begin(moonsand, vim.tbl_extend("force", {}, run), settings)
end

--- Ends what runs, if something does.
function M.stop()
  if M.is_running() then
    run.token:cancel "stopped"
  end
end

--- Whether something runs.
---@return boolean
function M.is_running()
  return run ~= nil and run.token ~= nil
end

-- ---------------------------------------------------------------- :Moonsand

---@chapter 3 moonsand-commands Commands

local subcommands = {}

---@command :Moonsand-run :[range]Moonsand run [language]
--- Runs the buffer, or the lines of [range] without the indentation that they
--- have in common, in a new sandbox. The text is taken as it is in the buffer; it
--- need not be written. The language is that of the 'filetype', unless it is
--- named: {languages}.
--- What still runs from before is stopped.
function subcommands.run(language, command)
  local part = command.range > 0
  M.run {
    language = language,
    first = part and command.line1 or nil,
    last = part and command.line2 or nil,
  }
end

---@command :Moonsand-stop :Moonsand stop
--- Ends what runs, with all that it has started.
function subcommands.stop()
  if not M.is_running() then
    return M.notify("nothing runs", "WARN")
  end
  M.stop()
end

---@command :Moonsand-rerun :Moonsand rerun
--- Runs once more what was run last, the buffer or the same lines of it, with the
--- text that is there now.
function subcommands.rerun()
  M.rerun()
end

---@command :Moonsand-shell :Moonsand shell
--- Opens a shell in a new sandbox: see |moonsand-shell|.
function subcommands.shell()
  local moonsand, settings = M.load()
  if not moonsand then
    return M.notify(settings)
  end
  require("moonsand.nvim.shell").open(moonsand, settings)
end

local function names()
  local list = vim.tbl_keys(subcommands)
  table.sort(list)
  return list
end

---@command :Moonsand :[range]Moonsand
--- The same as |:Moonsand-run|.
---@package
---@param command table as nvim_create_user_command gives it
function M.command(command)
  local words = vim.split(vim.trim(command.args), "%s+")
  local name = words[1] ~= "" and words[1] or "run"
  if not subcommands[name] then
    local known = table.concat(names(), ", ")
    return M.notify(("no subcommand '%s' (there are: %s)"):format(name, known))
  elseif #words > (name == "run" and 2 or 1) then
    return M.notify(("'%s' is too much for :Moonsand %s"):format(words[#words], name))
  end
  subcommands[name](words[2], command)
end

--- Completes `:Moonsand`.
---@package
---@return string[]
function M.complete(lead, line)
  local words = vim.split(line:gsub("^.-Moonsand%s*", ""), "%s+")
  local candidates = {}
  if #words == 1 then
    candidates = names()
  elseif #words == 2 and words[1] == "run" then
    candidates = vim.tbl_keys(languages())
    table.sort(candidates)
  end
  return vim.tbl_filter(function(word)
    return vim.startswith(word, lead)
  end, candidates)
end

return M
