--- The host inside Neovim. Any coroutine is suspended, and goes on in the editor's main loop
--- (vim.schedule), where all of its API may be used. The main chunk waits with vim.wait, while the
--- editor goes on; a fast event may not.

local uv = vim.uv or vim.loop

local FOREVER = 2 ^ 31 - 1 -- milliseconds

local function may_block()
  if vim.in_fast_event() then
    return nil, "this is a fast event of Neovim (a callback of the loop); use vim.schedule, or a "
      .. "coroutine"
  end
  return true
end

local function block(waiter)
  while not waiter.woken do
    vim.wait(FOREVER, function()
      return waiter.woken
    end, 200)
  end
  return true
end

return require "moonsand.hosts.uv"(uv, {
  name = "nvim",
  defer = vim.schedule,
  may_block = may_block,
  block = block,
})
