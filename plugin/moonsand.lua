-- :Moonsand, for Neovim 0.7 and later. See :help moonsand.

if vim.g.loaded_moonsand then
  return
end
vim.g.loaded_moonsand = true

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
