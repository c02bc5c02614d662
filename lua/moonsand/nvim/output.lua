--- A window with what a program prints, and the buffer in it: the output of `:Moonsand run`, and
--- what a shell says. Text comes in pieces of any size; it is put into the buffer a few dozen times
--- a second, and only the last lines are kept, so that a flood does not stop the editor.

---@chapter 4 moonsand-window The window
---
--- It opens below the others; the cursor stays where it is. It follows the output
--- as long as its own cursor is in the last line. The last line, and the status
--- line, say how the program ended and how long it took. The value of the last
--- expression is shown too, where the language has such a thing (python).
---
--- When no window shows the output any more, the program is stopped: closing the
--- window is enough. The text stays in the buffer "moonsand://output".
---
--- In the window:
---         q       closes it
---         r       |:Moonsand-rerun|
---         s       |:Moonsand-stop|
---
--- The text is shown without the codes that color it in a terminal. After a
--- carriage return a line begins anew, as progress bars want it. A line of more
--- than 4096 bytes is shown as several. stdout and stderr share no line. A
--- program that prints faster than the editor can show has to wait. One that
--- sees no terminal may hold its output back until it has much of it, or ends;
--- python is told not to.
---
--- The buffer's 'filetype' is "moonsand", and *b:moonsand_status* is how things
--- stand, for status lines of your own. Highlight groups:
---
--- *hl-MoonsandError*    what came on stderr
--- *hl-MoonsandValue*    the value of the last expression
--- *hl-MoonsandOk*       the last line, when all went well
--- *hl-MoonsandFailed*   the last line, when it did not

local api = vim.api

local M = {}

local INTERVAL = 30 -- milliseconds between two looks at what has come
local MAX_LINE = 4096 -- bytes; longer lines make the editor slow
local MAX_PENDING = 1024 * 1024 -- bytes; with more, who prints has to wait
local GROUPS = {
  stderr = { "MoonsandError", "DiagnosticError" },
  value = { "MoonsandValue", "Special" },
  ok = { "MoonsandOk", "Comment" },
  failed = { "MoonsandFailed", "WarningMsg" },
}
local LOOKS = "setlocal nonumber norelativenumber nolist nospell nocursorline winfixheight wrap "
  .. "signcolumn=no foldcolumn=0 colorcolumn= "
  .. [[statusline=\ %{get(b:,'moonsand_status','')}%<]]

local space = api.nvim_create_namespace "moonsand"

---@class moonsand.NvimOutput
---@field buffer integer
---@field prompt boolean its last line is typed in, and no output
---@field height integer
---@field max_lines integer
---@field heading string what it shows
---@field pending { kind: string, data: string }[] not yet in the buffer
---@field size integer bytes of it
---@field scheduled boolean a flush is to come
---@field open? { kind: string, data: string } the last line, which has no end yet
---@field empty boolean the buffer's one line is there because it must have one
local Output = {}
Output.__index = Output
Output.__name = "moonsand.NvimOutput"

--- A buffer; `show` gives it a window.
---@param name string
---@param opts { prompt?: boolean, height: integer, max_lines: integer, on_close: fun() }
---@return moonsand.NvimOutput
function M.new(name, opts)
  for _, group in pairs(GROUPS) do
    api.nvim_set_hl(0, group[1], { link = group[2], default = true })
  end
  local buffer = api.nvim_create_buf(false, true)
  api.nvim_buf_set_name(buffer, name)
  for option, value in pairs {
    buftype = opts.prompt and "prompt" or "nofile",
    bufhidden = opts.prompt and "wipe" or "hide",
    modifiable = opts.prompt or false,
    swapfile = false,
    undolevels = -1,
    filetype = "moonsand",
  } do
    api.nvim_buf_set_option(buffer, option, value)
  end
  api.nvim_create_autocmd({ "BufHidden", "BufUnload" },
    { buffer = buffer, callback = opts.on_close })
  return setmetatable({
    buffer = buffer,
    prompt = opts.prompt or false,
    height = opts.height,
    max_lines = math.max(opts.max_lines, 1),
    heading = "",
    pending = {},
    size = 0,
    scheduled = false,
    open = nil,
    empty = not opts.prompt,
  }, Output)
end

---@return boolean
function Output:is_valid()
  return api.nvim_buf_is_valid(self.buffer)
end

--- Calls a function when a key is typed in the buffer.
---@param modes string[]
function Output:map(modes, key, desc, fn)
  for _, mode in ipairs(modes) do
    api.nvim_buf_set_keymap(self.buffer, mode, key, "",
      { nowait = true, desc = "moonsand: " .. desc, callback = fn })
  end
end

--- Sees that there is a window in this tab page, and leaves the cursor where it is.
---@return integer window
function Output:show()
  for _, window in ipairs(api.nvim_tabpage_list_wins(0)) do
    if api.nvim_win_get_buf(window) == self.buffer then
      return window
    end
  end
  local before = api.nvim_get_current_win()
  local height = math.max(3, math.min(self.height, math.floor(vim.o.lines / 2) - 1))
  vim.cmd(("botright %dsplit"):format(height))
  local window = api.nvim_get_current_win()
  api.nvim_win_set_buf(window, self.buffer)
  vim.cmd(LOOKS)
  api.nvim_win_set_cursor(window, { api.nvim_buf_line_count(self.buffer), 0 })
  api.nvim_set_current_win(before)
  return window
end

--- Says how things stand.
function Output:set_status(text)
  vim.b[self.buffer].moonsand_status = ("%s  %s"):format(text, self.heading)
  vim.cmd "redrawstatus!"
end

-- ---------------------------------------------------------------- text

--- What a terminal would show of a line: of what was written over itself the last, and no codes.
local function visible(line)
  if not line:find "[\r\27]" then
    return line
  end
  return ((line:match "^.*[^\r]" or ""):gsub("^.*\r", "")
    :gsub("\27%][^\7\27]*\7?", "") -- titles, links
    :gsub("\27%[[0-?]*[ -/]*[@-~]", "") -- colors, movements
    :gsub("\27%[[0-?]*[ -/]*$", "") -- one that is still to come
    :gsub("\27[ -/]*[0-~]?", ""))
end

--- Adds a line to a list, in pieces when it is long; none ends within a character.
local function add_line(lines, kind, data)
  local text, from = visible(data), 1
  repeat
    local to = from + MAX_LINE
    while to <= #text and to > from + MAX_LINE - 4 and text:find("^[\128-\191]", to) do
      to = to - 1
    end
    lines[#lines + 1] = { kind = kind, text = text:sub(from, to - 1) }
    from = to
  until from > #text
end

--- The last lines of a text; nil when that is all of it.
local function tail(text, count)
  for at = #text - 1, #text > count and 1 or #text, -1 do
    if text:byte(at) == 10 then
      count = count - 1
      if count == 0 then
        return text:sub(at + 1)
      end
    end
  end
end

--- The lines of what is pending. The first of them stands for the one that had no end.
function Output:take_lines()
  local lines, open = {}, self.open
  for _, piece in ipairs(self.pending) do
    local last = tail(piece.data, self.max_lines)
    if last then -- what was before need not be looked at
      lines, open = {}, nil
    elseif open and open.kind ~= piece.kind then
      if open.data:sub(-1) ~= "\r" then -- else it was to be written over
        add_line(lines, open.kind, open.data)
      end
      open = nil
    end
    local data, from = (open and open.data or "") .. (last or piece.data), 1
    local at = data:find("\n", from, true)
    while at do
      add_line(lines, piece.kind, data:sub(from, at - 1))
      from = at + 1
      at = data:find("\n", from, true)
    end
    local rest = data:sub(from):gsub("^.*\r([^\r])", "%1")
    open = rest ~= "" and { kind = piece.kind, data = rest } or nil
  end
  self.pending, self.size = {}, 0
  if open then
    add_line(lines, open.kind, open.data)
    if #open.data > MAX_LINE then
      open = nil -- what comes next begins a line
    end
  end
  self.open = open
  return lines
end

--- Replaces lines of the buffer, which nobody else may.
function Output:edit(first, last, texts)
  api.nvim_buf_set_option(self.buffer, "modifiable", true)
  api.nvim_buf_set_lines(self.buffer, first, last, false, texts)
  api.nvim_buf_set_option(self.buffer, "modifiable", self.prompt)
end

--- Windows that show the end go on showing it.
function Output:followers()
  local count = api.nvim_buf_line_count(self.buffer)
  return vim.tbl_filter(function(window)
    return api.nvim_win_get_cursor(window)[1] >= count
  end, vim.fn.win_findbuf(self.buffer))
end

--- Puts what is pending into the buffer.
function Output:flush()
  if not self:is_valid() or #self.pending == 0 then
    return
  end
  local windows = self:followers()
  local last = api.nvim_buf_line_count(self.buffer) - (self.prompt and 1 or 0)
  local first = self.empty and 0 or last - (self.open and 1 or 0)
  local lines = self:take_lines()
  if #lines > self.max_lines then
    lines = vim.list_slice(lines, #lines - self.max_lines + 1)
  end
  self.empty = false
  api.nvim_buf_clear_namespace(self.buffer, space, first, last)
  self:edit(first, last, vim.tbl_map(function(line)
    return line.text
  end, lines))
  for i, line in ipairs(lines) do
    local group = GROUPS[line.kind]
    if group then
      api.nvim_buf_set_extmark(self.buffer, space, first + i - 1, 0,
        { end_col = #line.text, hl_group = group[1] })
    end
  end
  local excess = first + #lines - self.max_lines
  if excess > 0 then
    api.nvim_buf_clear_namespace(self.buffer, space, 0, excess) -- marks outlive their lines
    self:edit(0, excess, {})
  end
  for _, window in ipairs(windows) do
    local column = self.prompt and api.nvim_win_get_cursor(window)[2] or 0
    api.nvim_win_set_cursor(window, { api.nvim_buf_line_count(self.buffer), column })
  end
end

--- Takes a piece of output.
---@param data string
---@param kind "stdout"|"stderr"|"value"|"ok"|"failed"
function Output:add(data, kind)
  self.pending[#self.pending + 1] = { kind = kind, data = data }
  self.size = self.size + #data
  if not self.scheduled then
    self.scheduled = true
    vim.defer_fn(function()
      self.scheduled = false
      self:flush()
    end, INTERVAL)
  end
end

--- Takes a piece of a program's output; makes the program wait while there is too much.
---@param moonsand table
function Output:take(moonsand, data, kind)
  self:add(data, kind)
  while self.size > MAX_PENDING and self:is_valid() do
    moonsand.sleep(INTERVAL / 1000)
  end
end

--- Begins anew.
---@param heading string
function Output:clear(heading)
  self.pending, self.size, self.open, self.empty = {}, 0, nil, true
  self.heading = heading
  api.nvim_buf_clear_namespace(self.buffer, space, 0, -1)
  self:edit(0, -1, {})
end

--- The line that is open gets no more.
function Output:end_line()
  self:flush()
  self.open = nil
end

--- Says how it ended. What is typed has nowhere to go any more.
---@param kind "ok"|"failed"
function Output:finish(text, kind)
  if not self:is_valid() then
    return
  end
  self:add("[" .. text .. "]\n", kind)
  self:flush()
  if self.prompt then
    self.prompt = false
    if api.nvim_get_current_buf() == self.buffer then
      vim.cmd "stopinsert"
    end
    api.nvim_buf_set_option(self.buffer, "buftype", "nofile")
    self:edit(-2, -1, {})
  end
  self:set_status(text)
end

return M
