--- The network of a local sandbox: none, the host's, or a proxy with rules in this process.

local core = require "moonsand.core"
local environment = require "moonsand.environment"
local errors = require "moonsand.errors"
local options = require "moonsand.options"
local proxies = require "moonsand.network.proxy"
local rules = require "moonsand.network.rules"

local M = {}

--- What the option asks for: false, "host", or rules.
---@return moonsand.Rules|false|"host"|nil network, string? message, string? code, table? detail
function M.read(network)
  if network == "host" then
    return network
  elseif type(network) == "string" then
    return errors.fail("invalid", ("network: %s (false, true, \"host\", or a table of rules)")
      :format(options.quote(network)))
  end
  if not network then
    return false
  end
  return errors.outcome(rules.read(network, 5))
end

--- How names are looked up in the host's network.
local function copy_resolver(box, limits)
  for _, path in ipairs { "/etc/hosts", "/etc/resolv.conf" } do
    local file = io.open(path, "rb")
    local text = file and file:read "*a"
    if file then
      file:close()
    end
    if text then
      local flags = core.file_flags
      local errno, message, to, detail = box:call(core.file_calls.open,
        { path = path, flags = flags.WRONLY + flags.CREAT + flags.TRUNC, mode = 420 }, limits)
      if not errno then
        return nil, message, to, detail
      elseif to then
        to:write(text)
        to:close()
      end
    end
  end
  return box
end

--- Gives a sandbox the way out that was asked for.
function M.open(box, network, limits)
  if not network then
    return box
  elseif network == "host" then
    return copy_resolver(box, limits)
  end
  local message, code, detail
  box.proxy, message, code, detail = proxies.new(box, network, limits)
  if not box.proxy then
    box:close()
    return nil, message, code, detail
  end
  box.environment = environment.merge(box.environment, proxies.environment())
  return box
end

--- Serves the way out of one that was detached, unless somebody else does. It is looked at again
--- when a program is started: who served it may have left.
function M.take_over(box, limits)
  if not box.detached or box.network ~= "rules" or box.proxy then
    return true
  end
  local network, message, code, detail = M.read(box.rules)
  if not network then
    return nil, message, code, detail
  end
  box.environment = environment.merge(box.environment, proxies.environment())
  box.proxy, message, code, detail = proxies.new(box, network, limits)
  if not box.proxy and code ~= "busy" then
    return nil, message, code, detail
  end
  return true
end

return M
