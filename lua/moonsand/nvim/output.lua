--- The window with what a program prints. There is one buffer for it, used again by each run; the
--- last lines that fit are kept. Errors, the value of the last expression, and the line at the end
--- are marked by highlights.

local api = vim.api

local M = {}

local NAME = "moonsand://output"
local MAX_WIDTH = 4096 -- bytes; longer lines would make the editor slow
local GROUPS = {
  stderr = { "MoonsandError", "DiagnosticError" },
  value = { "MoonsandValue", "Special" },
  ok = { "MoonsandOk", "Comment" },
  failed = { "MoonsandFailed", "WarningMsg" },
}

local space = api.nvim_create_namespace "moonsand"
local buffer ---@type integer?
local shown ---@type moonsand.NvimRun? the run whose output is shown
local open_line = false -- the last line has no end yet
local max_lines

---@return boolean
function M.is_output(number)
  return buffer ~= nil and number == buffer
end

local function window()
  for _, id in ipairs(buffer and vim.fn.win_findbuf(buffer) or {}) do
    if api.nvim_win_get_tabpage(id) == api.nvim_get_current_tabpage() then
      return id
    end
  end
end

local function make_buffer()
  buffer = api.nvim_create_buf(false, true)
  api.nvim_buf_set_name(buffer, NAME)
  for name, value in pairs { bufhidden = "hide", buftype = "nofile", swapfile = false,
    modifiable = false, undolevels = -1, filetype = "moonsand" } do
    api.nvim_buf_set_option(buffer, name, value)
  end
  for key, call in pairs { q = "close", r = "rerun", s = "stop" } do
    api.nvim_buf_set_keymap(buffer, "n", key, "", {
      nowait = true,
      desc = "moonsand: " .. call,
      callback = function()
        if call == "close" then
          pcall(api.nvim_win_close, 0, false)
        else
          require("moonsand.nvim")[call]()
        end
      end,
    })
  end
  for _, group in pairs(GROUPS) do
    api.nvim_set_hl(0, group[1], { link = group[2], default = true })
  end
end

local function set_local(id, values)
  api.nvim_win_call(id, function()
    for name, value in pairs(values) do
      vim.opt_local[name] = value
    end
  end)
end

--- Shows the window, leaving the cursor where it is. False when there is nothing to show.
function M.show(settings)
  if not buffer or not api.nvim_buf_is_valid(buffer) then
    return false
  elseif window() then
    return true
  end
  local before = api.nvim_get_current_win()
  local height = math.max(3, math.min(settings.height, math.floor(vim.o.lines / 2) - 1))
  vim.cmd(("botright %dsplit"):format(height))
  local id = api.nvim_get_current_win()
  api.nvim_win_set_buf(id, buffer)
  set_local(id, { number = false, relativenumber = false, signcolumn = "no", list = false,
    wrap = true, spell = false, winfixheight = true, foldcolumn = "0", cursorline = false,
    colorcolumn = "" })
  api.nvim_win_set_cursor(id, { api.nvim_buf_line_count(buffer), 0 })
  api.nvim_set_current_win(before)
  return true
end

--- How it stands, and of what: what does not fit is cut off at the end.
local function set_title(state)
  local id = window()
  if id then
    local text = (" %s  %s "):format(state, shown.heading):gsub("%%", "%%%%")
    set_local(id, { statusline = text .. "%<" })
  end
end

local function edit(first, last, lines)
  api.nvim_buf_set_option(buffer, "modifiable", true)
  api.nvim_buf_set_lines(buffer, first, last, false, lines)
  api.nvim_buf_set_option(buffer, "modifiable", false)
end

--- Begins a run: an empty window.
function M.open(this, title, settings)
  if not buffer or not api.nvim_buf_is_valid(buffer) then
    make_buffer()
  end
  shown, open_line, max_lines = this, false, settings.max_lines
  this.heading = title
  edit(0, -1, {})
  api.nvim_buf_clear_namespace(buffer, space, 0, -1)
  M.show(settings)
  set_title "running"
end

--- Windows that show the end go on showing it.
local function followers()
  local list, count = {}, api.nvim_buf_line_count(buffer)
  for _, id in ipairs(vim.fn.win_findbuf(buffer)) do
    if api.nvim_win_get_cursor(id)[1] >= count then
      list[#list + 1] = id
    end
  end
  return list
end

--- Lines as the editor can show them: no NULs, none too long.
local function split(text)
  local lines = {}
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    line = line:gsub("\r$", ""):gsub("%z", "^@")
    for at = 1, math.max(#line, 1), MAX_WIDTH do
      lines[#lines + 1] = line:sub(at, at + MAX_WIDTH - 1)
    end
  end
  return lines
end

--- Adds text behind what is there.
---@param kind "stdout"|"stderr"|"value"|"ok"|"failed"
local function append(text, kind)
  local follow = followers()
  local ends = text:sub(-1) == "\n"
  local lines = split(ends and text:sub(1, -2) or text)
  local count = api.nvim_buf_line_count(buffer)
  local first, column = count, 0
  if open_line then
    local start = api.nvim_buf_get_lines(buffer, count - 1, count, false)[1]
    first, column = count - 1, #start
    lines[1] = start .. lines[1]
  elseif count == 1 and api.nvim_buf_get_lines(buffer, 0, 1, false)[1] == "" then
    first = shown.began and 1 or 0
  end
  shown.began = true
  if #lines > max_lines then
    lines = vim.list_slice(lines, #lines - max_lines + 1)
    column = 0
  end
  edit(first, -1, lines)
  if GROUPS[kind] then
    for i, line in ipairs(lines) do
      local from = i == 1 and column or 0
      if #line > from then
        api.nvim_buf_set_extmark(buffer, space, first + i - 1, from,
          { end_col = #line, hl_group = GROUPS[kind][1] })
      end
    end
  end
  open_line = not ends
  count = api.nvim_buf_line_count(buffer)
  if count > max_lines then
    edit(0, count - max_lines, {})
    count = max_lines
  end
  for _, id in ipairs(follow) do
    api.nvim_win_set_cursor(id, { count, 0 })
  end
end

--- What a run printed. Nothing, when another run is shown by now.
function M.add(this, data, kind)
  if this == shown and api.nvim_buf_is_valid(buffer) then
    append(data, kind)
  end
end

--- The end of a run.
---@param kind "ok"|"failed"
function M.finish(this, text, kind)
  if this ~= shown or not api.nvim_buf_is_valid(buffer) then
    return
  end
  append((open_line and "\n" or "") .. "[" .. text .. "]\n", kind)
  shown.state = text
  set_title(text)
end

return M
