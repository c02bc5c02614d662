-- :Moonsand, for Neovim 0.7 and later. See :help moonsand. Nothing of moonsand is loaded before
-- the command is used.

if vim.g.loaded_moonsand then
  return
end
vim.g.loaded_moonsand = true

-- The core that `make` has built here, for `require "moonsand"` anywhere in the editor. It is
-- looked at last: one that was installed comes first.
local root = vim.fn.fnamemodify(debug.getinfo(1, "S").source:sub(2), ":p:h:h")
package.cpath = package.cpath .. ";" .. root .. "/build/jit/?.so"

vim.api.nvim_create_user_command("Moonsand", function(command)
  require("moonsand.nvim").command(command)
end, {
  nargs = "*",
  range = true,
  desc = "Run code in a sandbox",
  complete = function(lead, line)
    return require("moonsand.nvim").complete(lead, line)
  end,
})
