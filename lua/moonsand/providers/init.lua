--- The providers by name. Ours are loaded when they are first asked for; a user's own are
--- registered. What a provider has to give: doc/providers.md.

local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

local ours = {
  ["local"] = "moonsand.providers.local",
  opensandbox = "moonsand.providers.opensandbox",
}
local registered = {}

--- What `box:can` may be asked of every sandbox, beyond a provider's own names.
M.capabilities = {
  "argv", "stdin", "signals", "kill_tree", "pty", "resize", "attach", "background", "users",
  "atomic_write", "files", "watch", "grep", "ps", "kill", "monitor", "metrics", "session", "interpreter",
  "pause", "snapshot", "lifetime", "network_allow", "ports", "limits.memory", "limits.cpus",
  "limits.disk", "limits.inodes", "limits.processes", "limits.open_files", "limits.file_size",
  "limits.cpu_time",
}

local function check(name, provider, level)
  if type(name) ~= "string" or name == "" then
    errors.raise(level + 1, "moonsand.register: a name is needed")
  elseif type(provider) ~= "table" or type(provider.create) ~= "function" then
    errors.raise(level + 1, "moonsand.register: a provider is a table with a function 'create'")
  elseif ours[name] then
    errors.raise(level + 1, "moonsand.register: '%s' is one of ours", name)
  end
  for _, call in ipairs { "connect", "list", "destroy", "snapshots", "delete_snapshot" } do
    if provider[call] ~= nil and type(provider[call]) ~= "function" then
      errors.raise(level + 1, "moonsand.register: '%s' of a provider is a function, got %s", call,
        type(provider[call]))
    end
  end
  for _, field in ipairs { "options", "capabilities" } do
    if provider[field] ~= nil and type(provider[field]) ~= "table" then
      errors.raise(level + 1, "moonsand.register: '%s' of a provider is a table, got %s", field,
        type(provider[field]))
    end
  end
end

--- Makes a provider known under a name.
---@param name string
---@param provider table create and, if it can, connect, list, destroy; options, capabilities
function M.register(name, provider)
  check(name, provider, 2)
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

local function no()
  return false
end

local function start(driver, spec)
  return require("moonsand.providers.program").of_exec(spec, function(...)
    return driver:exec(...)
  end)
end

--- The provider's sandbox with what may be left out: `can`, and a `start` made of `exec`.
---@param driver table
---@return table driver
function M.complete(driver)
  driver.can = driver.can or no
  driver.start = driver.start or start
  return driver
end

--- One of a provider's optional calls; what it lacks is `unsupported`, before any request.
---@param provider table
---@param call string
---@return any ... what the call answers
function M.ask(provider, call, ...)
  if not provider[call] then
    return errors.fail("unsupported", ("%s is not supported by the provider '%s'"):format(call,
      provider.name), { provider = provider.name })
  end
  return provider[call](...)
end

-- ---------------------------------------------------------------- ends that are still under way

local endings, ended = 0, nil

--- For a `close` that cannot be done at once: `fn` runs in a coroutine of its own and may wait.
--- `moonsand.flush` waits for it.
---@param fn fun(limits: moonsand.Limits)
function M.ending(fn)
  ended = ended or loop.signal()
  endings = endings + 1
  loop.spawn_late(function()
    pcall(fn, loop.limits(nil, true))
    endings = endings - 1
    ended:wake()
  end)
end

--- Waits until every sandbox that was closed is gone.
---@param limits moonsand.Limits
---@return true|nil ok, string? message, string? code, table? detail
function M.flush(limits)
  while endings > 0 do
    local message, code, detail = loop.wait(limits, ended)
    if message then
      return errors.fail(code, ("%d ends have not come yet: %s"):format(endings, message), detail)
    end
  end
  return true
end

return M
