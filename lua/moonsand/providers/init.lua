--- The providers by name. Ours are loaded when they are first asked for; a user's own are
--- registered. What a provider has to give is described in the manual.

local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

local ours = { ["local"] = "moonsand.providers.local" }
local registered = {}

--- Makes a provider known under a name.
---@param name string
---@param provider table create, capabilities, options
function M.register(name, provider)
  if type(name) ~= "string" or name == "" then
    errors.raise(2, "moonsand.register: a name is needed")
  elseif type(provider) ~= "table" or type(provider.create) ~= "function" then
    errors.raise(2, "moonsand.register: a provider is a table with a function 'create'")
  elseif ours[name] then
    errors.raise(2, "moonsand.register: '%s' is one of ours", name)
  end
  provider.name = provider.name or name
  provider.options = provider.options or {}
  provider.capabilities = provider.capabilities or {}
  registered[name] = provider
end

--- The names of all providers.
---@return string[]
function M.names()
  local names = {}
  for name in pairs(ours) do
    names[#names + 1] = name
  end
  for name in pairs(registered) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

---@return table? provider, string? message, string? code, table? detail
function M.find(name)
  if registered[name] then
    return registered[name]
  elseif ours[name] then
    return require(ours[name])
  end
  local known = {}
  for _, each in ipairs(M.names()) do
    known[each] = true
  end
  local near = options.nearest(name, known)
  return errors.fail("invalid", ("there is no provider %s%s"):format(options.quote(name),
    near and (" (did you mean '" .. near .. "'?)") or ""))
end

return M
