--- The host inside Neovim. Any coroutine is suspended, and goes on in the editor's main loop
--- (vim.schedule), where all of its API may be used. The main chunk waits with vim.wait, while the
--- editor goes on, until Ctrl-C; a fast event may not.

local uv = vim.uv or vim.loop

local FOREVER = 2 ^ 31 - 1 -- milliseconds
local LOOK = 200 -- milliseconds, for Ctrl-C; what wakes us is an event of the loop
local INTERRUPTED = -2

local function may_block()
  if vim.in_fast_event() then
    return nil, "this is a fast event of Neovim (a callback of the loop); use vim.schedule, or a "
      .. "coroutine"
  end
  return true
end

--- Whether Ctrl-C was typed: any call of the API that evaluates something fails then, once. Before
--- 0.8, vim.wait with a function does not look.
local function is_interrupted()
  local ok, err = pcall(vim.api.nvim_eval, "0")
  return not ok and tostring(err):lower():find("interrupt", 1, true) ~= nil
end

local function block(waiter)
  local interrupted, looked = false, uv.now()
  local function is_over()
    if not waiter.woken and uv.now() - looked >= LOOK then
      looked = uv.now()
      interrupted = is_interrupted()
    end
    return waiter.woken or interrupted
  end
  while not waiter.woken do
    local _, why = vim.wait(FOREVER, is_over, LOOK)
    if (interrupted or why == INTERRUPTED) and not waiter.woken then
      return nil, "it was interrupted (Ctrl-C)"
    end
  end
  return true
end

local function raise(message)
  vim.schedule(function()
    error(message, 0)
  end)
end

return require "moonsand.hosts.uv"(uv, {
  name = "nvim",
  defer = vim.schedule,
  raise = raise,
  at_once = false,
  may_block = may_block,
  block = block,
})
