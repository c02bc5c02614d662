--- Sandboxes on this machine, without a service, a daemon or root: a thin layer over the C core,
--- which starts them through the zygote and speaks with their agents.

local detached = require "moonsand.providers.local.detached"
local errors = require "moonsand.errors"
local launch = require "moonsand.providers.local.launch"
local limiting = require "moonsand.providers.local.limits"
local mounts = require "moonsand.providers.local.mounts"
local options = require "moonsand.options"
local sandboxes = require "moonsand.providers.local.sandbox"
local snapshots = require "moonsand.providers.local.snapshots"
local way_out = require "moonsand.providers.local.way_out"

local M = { name = "local", embedded = true }

--- Who makes the namespaces when `create` does not say: nil for the helper itself, and bwrap where only
--- that may. Set in specs.
---@type "native"|"bwrap"|nil
M.isolation = nil

M.options = {
  limits = "table",
  hostname = "string",
  seccomp = "table",
  allow_unenforced = "table",
  network = "boolean|string|table",
  isolation = "string",
  workspace = "string",
  mounts = "table",
  root = "string",
  root_mode = "string",
  image = "string",
  template = "string",
  snapshot = "string",
  lifetime = "number",
  idle_timeout = "number",
}

local UNSUPPORTED = { "image", "template" }

--- Who may make the namespaces.
local LAUNCHERS = { native = true, bwrap = true }

local SECCOMP = { allow = "table" }
local ALLOW_MAX = 16 -- as the agent takes
--- What `can` may be asked besides.
M.capabilities = { "mounts", "root", "workspace" }

-- ---------------------------------------------------------------- creating

local function valid_hostname(name)
  return #name <= 64 and name:find "^[%w][%w.-]*$" ~= nil
end

--- The system calls that are to be allowed again. Which may be, the agent knows.
---@return string[]? names, string? message, string? code, table? detail
local function read_allow(seccomp)
  local asked = options.check("moonsand.create: seccomp", seccomp, SECCOMP, 6)
  local allow = options.list("moonsand.create: seccomp.allow", asked.allow, "string", 6)
  if #allow > ALLOW_MAX then
    return errors.fail("invalid", ("seccomp.allow: more than %d names"):format(ALLOW_MAX))
  end
  return allow
end

--- What a snapshot is to be put into lies on what it was taken from.
local function check_base(found, base)
  if found.base == base then
    return true
  end
  return errors.fail("invalid", ("the snapshot %s was taken of a sandbox %s root"):format(
    options.quote(found.name), base == "host" and "with another" or "without another"),
    { fix = base == "host" and "create { root = …, snapshot = … }" or "leave root out" })
end

--- The snapshot that a sandbox is to be made from; false: none. Close its file.
---@return table|false|nil found, string? message, string? code, table? detail
local function find_snapshot(opts)
  if not opts.snapshot then
    return false
  end
  local found, message, code, detail = snapshots.find(opts.snapshot)
  if not found then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = check_base(found, opts.root and "root" or "host")
  if not ok then
    found.file:close()
    return nil, message, code, detail
  end
  return found
end

local function forget(found)
  if found then
    found.file:close()
  end
end

--- Fills a new sandbox, if there is something to fill it with.
---@return true|nil ok, string? message, string? code, table? detail
local function put_back(box, found, kept, limits)
  if not found then
    return true
  end
  local ok, message, code, detail = snapshots.restore(box, found, kept, limits)
  forget(found)
  return ok, message, code, detail
end

--- Makes a sandbox.
---@return moonsand.local.Sandbox? sandbox, string? message, string? code, table? detail
function M.create(opts, limits)
  local hostname = opts.hostname or "sandbox"
  if not valid_hostname(hostname) then
    return errors.fail("invalid", ("hostname: %s is none"):format(options.quote(hostname)))
  end
  for _, name in ipairs(UNSUPPORTED) do
    if opts[name] ~= nil then
      return errors.fail("unsupported", name .. " is not supported by this provider")
    end
  end
  local isolation = opts.isolation or M.isolation
  if isolation and not LAUNCHERS[isolation] then
    return errors.fail("invalid", ("isolation: %s is none of 'native', 'bwrap'"):format(
      options.quote(isolation)))
  end
  local network, message, code, detail = way_out.read(opts.network)
  if network == nil then
    return nil, message, code, detail
  end
  local allow
  allow, message, code, detail = read_allow(opts.seccomp)
  if not allow then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = detached.check(opts)
  if not ok then
    return nil, message, code, detail
  end
  local found
  found, message, code, detail = find_snapshot(opts)
  if found == nil then
    return nil, message, code, detail
  end
  local plan
  plan, message, code, detail = mounts.plan(opts, 5)
  if not plan then
    forget(found)
    return nil, message, code, detail
  end
  local spec = { hostname = hostname, allow = allow, host_network = network == "host" }
  local raw, from, planned
  raw, from, code, detail, planned = launch.make(opts, isolation, spec, plan, limits)
  mounts.release(plan)
  if not raw then
    forget(found)
    return nil, from, code, detail
  end
  local base, unsaved, kept = mounts.survey(plan)
  local box = sandboxes.new(raw, {
    isolation = spec.bwrap and "bwrap" or "native",
    limits = limiting.of_programs(planned),
    held = planned.held,
    groups = planned.groups,
    mounts = mounts.describe(plan),
    base = base,
    unsaved = unsaved,
    network = network == "host" and "host" or network and "rules" or "none",
    rules = network and network ~= "host" and opts.network or nil,
    idle_timeout = opts.idle_timeout,
  })
  box.zygote = from
  ok, message, code, detail = put_back(box, found, kept, limits)
  if ok and opts.lifetime then
    ok, message, code, detail = box:set_lifetime(opts.lifetime, limits)
  end
  if not ok then
    box:close()
    return nil, message, code, detail
  end
  return way_out.open(box, network, limits)
end

M.snapshots = snapshots.list
M.delete_snapshot = snapshots.delete

-- ---------------------------------------------------------------- those that are there

--- One that was detached, by its id or its name.
---@return moonsand.local.Sandbox? sandbox, string? message, string? code, table? detail
function M.connect(id, opts, limits)
  for name in pairs(M.options) do
    if opts[name] ~= nil then
      return errors.fail("invalid", ("%s: only a sandbox that is made can be told that"):format(name))
    end
  end
  local raw, about, code, detail = detached.join(id, limits)
  if not raw then
    return nil, about, code, detail
  end
  local box = sandboxes.new(raw, about)
  box.id, box.name, box.metadata, box.created_at = about.id, about.name, about.metadata, about.created_at
  box.detached = true
  local ok, message
  ok, message, code, detail = way_out.take_over(box, limits)
  if not ok then
    box:close()
    return nil, message, code, detail
  end
  return box
end

---@return table[]? rows, string? message, string? code, table? detail
function M.list()
  return detached.list()
end

---@return true|nil ok, string? message, string? code, table? detail
function M.destroy(id, _, limits)
  return detached.destroy(id, limits)
end

return M
