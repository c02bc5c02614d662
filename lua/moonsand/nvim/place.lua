--- Where the module is: installed, or built in the directory of the plugin, by `make`.

local M = {}

--- The directory that the plugin is in.
M.root = vim.fn.fnamemodify(debug.getinfo(1, "S").source:sub(2), ":p:h:h:h:h")

local looked = false

--- The module, or why it cannot be loaded.
---@return table? moonsand, string? message
function M.load()
  if not looked then
    looked = true
    package.cpath = package.cpath .. ";" .. M.root .. "/build/jit/?.so"
  end
  local ok, moonsand = pcall(require, "moonsand")
  if ok then
    return moonsand
  end
  local reason = tostring(moonsand)
  if reason:find("module 'moonsand.core' not found", 1, true) then
    reason = ("the module is not built: run `make` in %s (it needs LuaJIT's headers)"):format(M.root)
  end
  return nil, reason
end

--- The names and aliases of languages, as keys. Needs no built module.
---@return table<string, table>
function M.languages()
  return require("moonsand.languages").by_name
end

return M
