--- What a sandbox may reach: the rules of `network = { allow, deny }`, read once, asked for each
--- attempt, twice: for the name before it is looked up, so that no look-up tells anything to
--- somebody who is not allowed; for each address before it is dialled.

local address = require "moonsand.network.address"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

--- Names for lists of rules.
local GROUPS = {
  ["@python"] = { "pypi.org:443", "files.pythonhosted.org:443" },
  ["@npm"] = { "registry.npmjs.org:443" },
  ["@ruby"] = { "rubygems.org:443", "index.rubygems.org:443" },
  ["@rust"] = { "crates.io:443", "index.crates.io:443", "static.crates.io:443" },
  ["@go"] = { "proxy.golang.org:443", "sum.golang.org:443" },
  ["@java"] = { "repo.maven.apache.org:443", "repo1.maven.org:443" },
  ["@php"] = { "packagist.org:443", "repo.packagist.org:443" },
  ["@lua"] = { "luarocks.org:443" },
  ["@debian"] = { "deb.debian.org", "security.debian.org" },
}

local KNOWN = { allow = "table", deny = "table", resolve = "callable" }
local MAX_RULES = 1000

--- Names that are never looked up. A rule with one of them writes the loopback out.
local LOOPBACK = { core.address "127.0.0.1", core.address "::1" }
M.fixed = { localhost = LOOPBACK, ["host.internal"] = { LOOPBACK[1] } }

---@class moonsand.Rule
---@field name? string
---@field below? boolean the names below it, not itself
---@field network? { address: string, bits: integer }
---@field all? boolean any name, any public address
---@field ports table<integer, true>|"any"

--- A rule's host and port apart. IPv6 has brackets, or no port.
local function split(text)
  local host, port = text:match "^%[([^%]]+)%]:?([%d*]*)$"
  if not host and select(2, text:gsub(":", "")) > 1 then
    host, port = text, ""
  elseif not host then
    host, port = text:match "^([^:]+):?([%d*]*)$"
  end
  if host and not (port == "" and text:sub(-1) == ":") then
    return host, port
  end
end

local function read_ports(port, default)
  if port == "" then
    return default
  elseif port == "*" then
    return "any"
  end
  port = address.port(port)
  return port and { [port] = true }
end

---@return moonsand.Rule? rule
local function read_rule(text, default)
  local host, port = split(text)
  local ports = host and read_ports(port, default)
  if not ports then
    return nil
  elseif host == "*" then
    return { all = true, ports = ports }
  end
  local network = address.network(host)
  if network then
    return { network = network, ports = ports }
  end
  local below = host:match "^%*%.(.+)$"
  local name = address.name(below or host)
  return name and { name = name, below = below ~= nil, ports = ports } or nil
end

local function expand(list)
  local texts = {}
  for _, text in ipairs(list) do
    for _, each in ipairs(GROUPS[text] or { text }) do
      texts[#texts + 1] = each
    end
  end
  return texts
end

local function why_not(text)
  if text:sub(1, 1) == "@" then
    local near = options.nearest(text, GROUPS)
    return "there is no such group" .. (near and (" (did you mean '" .. near .. "'?)") or "")
  elseif text:find "/" then
    return "not a network (no bits beyond the mask, no URL)"
  elseif text:find "[\128-\255]" then
    return "names of other alphabets are written as they are looked up: xn--…"
  end
  return "neither a name, *.name, an address, a network nor a group, with a port or without"
end

local function read_list(which, list, default, level)
  local rules = {}
  for i, text in ipairs(list) do
    if type(text) ~= "string" then
      errors.raise(level + 2, "moonsand.create: network.%s: rule %d must be a string, got %s", which, i,
        type(text))
    end
  end
  for key in pairs(list) do
    if type(key) ~= "number" then
      errors.raise(level + 2, "moonsand.create: network.%s is a list of rules, not a table with '%s'",
        which, tostring(key))
    end
  end
  local texts = expand(list)
  if #texts > MAX_RULES then
    return errors.fail("invalid", ("network.%s: more than %d rules"):format(which, MAX_RULES))
  end
  for i, text in ipairs(texts) do
    rules[i] = read_rule(text, default)
    if not rules[i] then
      return errors.fail("invalid", ("network.%s: %s: %s"):format(which, options.quote(text),
        why_not(text)))
    end
  end
  return rules
end

---@class moonsand.Rules
---@field allow moonsand.Rule[]
---@field deny moonsand.Rule[]
---@field resolve? fun(name: string): string[]?, string? the user's own look-up
local Rules = {}
Rules.__index = Rules

local function holds_port(rule, port)
  return rule.ports == "any" or rule.ports[port] == true
end

local function matches_name(rule, name)
  if rule.all then
    return true
  elseif not rule.name then
    return false
  elseif rule.below then
    return #name > #rule.name + 1 and name:sub(-#rule.name - 1) == "." .. rule.name
  end
  return rule.name == name
end

local function find(list, port, matches, value)
  for _, rule in ipairs(list) do
    if holds_port(rule, port) and matches(rule, value) then
      return rule
    end
  end
end

local function matches_address(rule, bytes)
  return rule.all or rule.network and address.within(rule.network, bytes)
end

local function written_out(rule, bytes)
  return rule.network and address.within(rule.network, bytes)
end

local function matches_exactly(rule, name)
  return rule.name == name and not rule.below
end

--- Whether a host may be asked for: nil, or why not. A fixed name needs a rule of that very name.
---@param host { name: string?, address: string? }
---@param port integer
---@return string? refusal
function Rules:refuse_host(host, port)
  local matches, value = matches_name, host.name
  if host.address then
    matches, value = matches_address, host.address
  end
  if find(self.deny, port, matches, value) then
    return "denied by a rule"
  elseif not find(self.allow, port, M.fixed[value] and matches_exactly or matches, value) then
    return "not allowed by any rule"
  end
end

--- Whether an address may be dialled for that host: nil, or why not.
---@param bytes string
---@return string? refusal
function Rules:refuse_address(bytes, host, port)
  bytes = address.plain(bytes)
  if find(self.deny, port, matches_address, bytes) then
    return "denied by a rule"
  elseif find(self.allow, port, written_out, bytes) or M.fixed[host.name] then
    return nil
  end
  local special = address.special(bytes)
  return special and ("%s is %s, and not written out in a rule"):format(address.text(bytes), special)
end

--- Reads the option. Types raise, at the line of `create`'s caller.
---@param network true|{ allow: string[]?, deny: string[]?, resolve: function? }
---@param level integer
---@return moonsand.Rules? rules, string? message, string? code, table? detail
function M.read(network, level)
  if network == true then
    network = { allow = { "*" } }
  end
  options.check("moonsand.create: network", network, KNOWN, level + 2)
  local usual = { [80] = true, [443] = true }
  local allow, deny, message, code, detail
  allow, message, code, detail = read_list("allow", network.allow or {}, usual, level + 1)
  if not allow then
    return nil, message, code, detail
  end
  deny, message, code, detail = read_list("deny", network.deny or {}, "any", level + 1)
  if not deny then
    return nil, message, code, detail
  end
  return setmetatable({ allow = allow, deny = deny, resolve = network.resolve }, Rules)
end

return M
