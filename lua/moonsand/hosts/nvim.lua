--- The host inside Neovim. Any coroutine is suspended, and goes on in the editor's main loop
--- (vim.schedule), where all of its API may be used. The main chunk waits with vim.wait, while the
--- editor goes on, until Ctrl-C; a fast event may not.

local uv = vim.uv or vim.loop

local FOREVER = 2 ^ 31 - 1 -- milliseconds
local LOOK = 200 -- milliseconds; what wakes us is an event, this is a second line
local INTERRUPTED = -2

local function may_block()
  if vim.in_fast_event() then
    return nil, "this is a fast event of Neovim (a callback of the loop); use vim.schedule, or a "
      .. "coroutine"
  end
  return true
end

local function block(waiter)
  local function is_woken()
    return waiter.woken
  end
  while not waiter.woken do
    local _, why = vim.wait(FOREVER, is_woken, LOOK)
    if why == INTERRUPTED and not waiter.woken then
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
