--- `:Moonsand shell`: a shell in a sandbox of its own, in a prompt buffer. There is no terminal
--- between the two, only pipes, so it goes by lines.

---@chapter 5 moonsand-shell The shell
---
--- |:Moonsand-shell| opens a window whose last line is a prompt. What is typed
--- there goes to the shell, or to the program that the shell runs, a line at a
--- time; what they print appears above it. Each shell has a sandbox of its own,
--- which ends with it: by "exit", or when its window is closed.
---
---         <CR>    sends the line
---         <C-c>   interrupts what runs (SIGINT)
---         <C-d>   in Insert mode: says that no more lines will come
---
--- It is no terminal: there is no editing of the line but the editor's, no job
--- control, no program that wants the whole screen.

local output = require "moonsand.nvim.output"
local plugin = require "moonsand.nvim"

local M = {}

local PROMPT = "$ "

local count = 0

--- Runs the shell to its end.
local function perform(moonsand, settings, view, shell)
  local start = vim.loop.hrtime()
  local r, message, code, detail = moonsand.with(settings.create, function(box)
    local p, message, code, detail = box:start(settings.shell, {
      env = { PS1 = "", PS2 = "", TERM = "dumb" },
      stderr = "stdout",
      cancel = shell.token,
      on_stdout = function(data)
        view:take(moonsand, data, "stdout")
      end,
    })
    if not p then
      return nil, message, code, detail
    end
    shell.process = p
    shell.turn:release()
    return p:wait()
  end)
  shell.process = nil
  if r then
    view:finish(plugin.ending(r, (vim.loop.hrtime() - start) / 1e9))
  elseif code ~= "cancelled" then
    error(plugin.explain(message, detail), 0)
  end
end

--- Opens one, with the cursor in it.
---@param moonsand table
---@param settings table
function M.open(moonsand, settings)
  count = count + 1
  local shell = {
    token = moonsand.token(),
    turn = moonsand.semaphore(1), -- to write: each line may have to wait, the first for the start
    process = nil,
  }
  shell.turn:acquire()
  local view = output.new("moonsand://shell/" .. count, {
    prompt = true,
    height = settings.height,
    max_lines = settings.max_lines,
    on_close = function()
      shell.token:cancel "its window was closed"
    end,
  })
  vim.fn.prompt_setprompt(view.buffer, PROMPT)
  vim.fn.prompt_setcallback(view.buffer, function(line)
    view:end_line()
    moonsand.task(shell.turn.with, shell.turn, function()
      if shell.process then
        shell.process.stdin:write(line .. "\n")
      end
    end)
  end)
  view:map({ "n", "i" }, "<C-c>", "interrupt", function()
    if shell.process then
      shell.process:kill "INT"
    end
  end)
  view:map({ "i" }, "<C-d>", "end of the input", function()
    if shell.process then
      shell.process.stdin:shutdown()
    end
  end)
  view.heading = "a shell in a sandbox"
  vim.api.nvim_set_current_win(view:show())
  view:set_status "running"
  vim.cmd "startinsert!"
  moonsand.task(perform, moonsand, settings, view, shell):on_done(function(ok, err)
    if not ok then
      plugin.notify(plugin.explain(err))
      view:finish("failed: " .. plugin.explain(err), "failed")
    end
  end)
end

return M
