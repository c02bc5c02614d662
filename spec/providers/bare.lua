--- `local` with every native call switched off: a provider that can create, destroy and start
--- programs, and nothing else. What works on it is portable.lua's doing.

local inner = require "moonsand.providers.local"

local Bare = {}
Bare.__index = Bare

function Bare:start(spec)
  return self.inner:start(spec)
end

function Bare:close()
  self.inner:close()
end

function Bare:destroy(limits)
  return self.inner:destroy(limits)
end

function Bare:state()
  return self.inner:state()
end

local TRUE_OF_START = { argv = true, stdin = true, signals = true, kill_tree = true }

function Bare:can(name) -- luacheck: no self
  return TRUE_OF_START[name] and "native" or false
end

return {
  options = inner.options,
  create = function(opts, limits)
    local driver, message, code, detail = inner.create(opts, limits)
    if not driver then
      return nil, message, code, detail
    end
    return setmetatable({
      inner = driver,
      cwd = driver.cwd,
      environment = driver.environment,
      users = driver.users,
    }, Bare)
  end,
}
