--- The Neovim plugin: `:Moonsand run` runs the buffer, or a range of it, in a sandbox of its own,
--- and shows what comes in a window (output.lua). Nothing has to be set up; `vim.g.moonsand` or
--- `setup` says what should be different.

local place = require "moonsand.nvim.place"
local view = require "moonsand.nvim.output"

local M = {}

--- What may be said in vim.g.moonsand.
M.defaults = {
  timeout = 60, -- seconds; false: none
  height = 12, -- lines of the window
  max_lines = 10000, -- that are kept of the output
  languages = {}, -- filetype -> language, where they are not called the same
  create = {}, -- options of moonsand.create
  run = {}, -- options of box:run_code
}

--- Filetypes that are not the name of a language.
local FILETYPES = {
  javascriptreact = "javascript",
  typescriptreact = "typescript",
  zsh = "bash",
}

---@class moonsand.NvimRun the last one, to be run again
---@field buffer integer
---@field first? integer nil: the whole buffer
---@field last? integer
---@field language string
---@field token? moonsand.Token while it runs
---@field stopped? boolean

local run ---@type moonsand.NvimRun?

local function notify(message, level)
  vim.notify("moonsand: " .. message, vim.log.levels[level or "ERROR"])
end

local function config()
  return vim.tbl_extend("force", M.defaults, vim.g.moonsand or {})
end

--- Says what should be different; the same as setting vim.g.moonsand.
---@param opts? table see `defaults`
function M.setup(opts)
  vim.g.moonsand = vim.tbl_extend("force", vim.g.moonsand or {}, opts or {})
end

--- The language of a buffer: that of the filetype.
---@return string? language, string? message
local function language_of(buffer)
  local filetype = vim.bo[buffer].filetype
  if filetype == "" then
    return nil, "no filetype here; try :Moonsand run python"
  end
  local language = config().languages[filetype] or FILETYPES[filetype] or filetype
  if not place.languages()[language] then
    return nil, ("cannot run '%s'; try :Moonsand run python"):format(filetype)
  end
  return language
end

--- How a run ended, for people, and which kind of end that is.
---@return string text, "ok"|"failed" kind
local function ending(this, seconds, r, message, detail)
  local after = (" after %.2f s"):format(seconds)
  if r then
    local how = r.status:gsub("_", " ")
    if r.exit_code then
      how = "exited with " .. r.exit_code
    elseif r.signal and not r.timed_out then
      how = "ended by SIG" .. r.signal
    end
    if r.limit then
      how = how .. " (" .. r.limit .. ")"
    end
    if r.stage and r.stage ~= "run" then
      how = r.stage .. ": " .. how
    end
    return how .. after, r.ok and "ok" or "failed"
  elseif this.stopped then
    return "stopped" .. after, "failed"
  end
  local fix = type(detail) == "table" and detail.fix
  return message .. (fix and "; " .. fix or ""), "failed"
end

--- The whole life of a run, in a coroutine.
local function perform(moonsand, this, code, settings)
  local start = vim.loop.hrtime()
  local box, message, _, detail = moonsand.create(settings.create)
  local r
  if box then
    r, message, _, detail = box:run_code(code, vim.tbl_extend("force", {
      language = this.language,
      timeout = settings.timeout or nil,
      cancel = this.token,
      on_stdout = function(data)
        view.add(this, data, "stdout")
      end,
      on_stderr = function(data)
        view.add(this, data, "stderr")
      end,
    }, settings.run))
    box:close()
  end
  if r and r.text then
    view.add(this, r.text .. "\n", "value")
  end
  this.token = nil
  local text, kind = ending(this, (vim.loop.hrtime() - start) / 1e9, r, message, detail)
  view.finish(this, text, kind)
end

--- The lines of a run. A range out of the middle of a block loses the indentation of all its lines.
local function code_of(this)
  local lines = vim.api.nvim_buf_get_lines(this.buffer, (this.first or 1) - 1, this.last or -1, false)
  local indent
  for _, line in ipairs(this.first and lines or {}) do
    local blank = line:match "^%s*"
    if blank ~= line then
      while indent and blank:sub(1, #indent) ~= indent do
        indent = indent:sub(1, -2)
      end
      indent = indent or blank
    end
  end
  for i, line in ipairs(indent and lines or {}) do
    lines[i] = line:sub(#indent + 1)
  end
  return table.concat(lines, "\n") .. "\n"
end

local function begin(this)
  local moonsand, message = place.load()
  if not moonsand then
    return notify(message)
  end
  M.stop()
  local settings, code = config(), code_of(this)
  this.token, this.stopped = moonsand.token(), false
  run = this
  view.open(this, ("%s: %s"):format(this.language, this.title), settings)
  moonsand.task(perform, moonsand, this, code, settings):on_done(function(ok, err)
    if not ok then
      this.token = nil
      view.finish(this, tostring(err), "failed")
    end
  end)
end

--- Runs a buffer, or lines of it.
---@param opts? { buffer?: integer, first?: integer, last?: integer, language?: string }
function M.run(opts)
  opts = opts or {}
  local buffer = opts.buffer or vim.api.nvim_get_current_buf()
  if view.is_output(buffer) then
    return M.rerun()
  end
  local language, message = opts.language, nil
  if not language then
    language, message = language_of(buffer)
  elseif not place.languages()[language] then
    local near = require("moonsand.options").nearest(language, place.languages())
    message = ("no language '%s'"):format(language) .. (near and "; did you mean " .. near .. "?" or "")
  end
  if message then
    return notify(message)
  end
  local name = vim.fn.fnamemodify(vim.api.nvim_buf_get_name(buffer), ":t")
  local lines = opts.first and (":%d-%d"):format(opts.first, opts.last) or ""
  begin {
    buffer = buffer,
    first = opts.first,
    last = opts.last,
    language = language,
    title = (name ~= "" and name or "[No Name]") .. lines,
  }
end

--- Runs what was run last, as it is now.
function M.rerun()
  if not run then
    return notify("nothing was run yet", "WARN")
  elseif not vim.api.nvim_buf_is_loaded(run.buffer) then
    return notify("the buffer that was run is gone", "WARN")
  end
  local this = run
  begin {
    buffer = this.buffer,
    first = this.first,
    last = this.last,
    language = this.language,
    title = this.title,
  }
end

--- Ends what runs.
---@return boolean stopped
function M.stop()
  if not run or not run.token then
    return false
  end
  run.stopped = true
  run.token:cancel "stopped"
  return true
end

--- Whether something runs.
function M.is_running()
  return run ~= nil and run.token ~= nil
end

-- ---------------------------------------------------------------- :Moonsand

local subcommands = {
  run = function(words, command)
    local whole = command.range == 0
    M.run {
      language = words[2],
      first = not whole and command.line1 or nil,
      last = not whole and command.line2 or nil,
    }
  end,
  rerun = function()
    M.rerun()
  end,
  stop = function()
    if not M.stop() then
      notify("nothing runs", "WARN")
    end
  end,
  output = function()
    if not view.show(config()) then
      notify("nothing was run yet", "WARN")
    end
  end,
}

local function names()
  local list = vim.tbl_keys(subcommands)
  table.sort(list)
  return list
end

--- What `:Moonsand` does; `run` when nothing is said.
---@param command table as nvim_create_user_command gives it
function M.command(command)
  local words = vim.split(vim.trim(command.args), "%s+")
  local name = words[1] ~= "" and words[1] or "run"
  local subcommand = subcommands[name]
  if not subcommand then
    return notify(("no subcommand '%s' (there are: %s)"):format(name, table.concat(names(), ", ")))
  end
  subcommand(words, command)
end

--- Completes `:Moonsand`.
---@return string[]
function M.complete(lead, line)
  local words = vim.split(line:gsub("^.-Moonsand!?%s*", ""), "%s+")
  local candidates = {}
  if #words <= 1 then
    candidates = names()
  elseif #words == 2 and words[1] == "run" then
    candidates = vim.tbl_keys(place.languages())
    table.sort(candidates)
  end
  return vim.tbl_filter(function(word)
    return vim.startswith(word, lead)
  end, candidates)
end

return M
