--- Sandboxes of an OpenSandbox server, on Docker or Kubernetes: a lifecycle server makes them, and
--- in each a daemon, execd, runs programs. What the wire loses is in doc/opensandbox.md.

local drivers = require "moonsand.providers.opensandbox.driver"
local errors = require "moonsand.errors"
local json = require "moonsand.wire.json"
local options = require "moonsand.options"
local services = require "moonsand.providers.opensandbox.service"
local times = require "moonsand.providers.opensandbox.time"

local M = { name = "opensandbox" }

local LIFETIME = 3600 -- seconds, where nobody says
local ENTRYPOINT = { "tail", "-f", "/dev/null" }

--- A name is kept as a label: the service has none.
local NAME = "moonsand-name"

M.options = {
  api_key = "string",
  base_url = "string",
  domain = "string",
  protocol = "string",
  headers = "table",
  proxy = "string|boolean",
  ca_file = "string",
  retries = "number",
  use_server_proxy = "boolean",
  image = "string|table",
  snapshot = "string",
  entrypoint = "table",
  lifetime = "number",
  limits = "table",
  allow_unenforced = "table",
  network = "boolean|string|table",
  volumes = "table",
  platform = "table",
  extensions = "table",
  secure_access = "boolean",
  state = "string|table",
  metadata = "table",
}

M.capabilities = {}

-- ---------------------------------------------------------------- what is asked for

local LIMITS = { memory = "number|string", cpus = "number", gpus = "number" }
local UNHELD = {
  processes = "number", disk = "number|string", inodes = "number", cpu_time = "number",
  open_files = "number", file_size = "number|string",
}

--- Limits as Kubernetes writes them. What the service does not hold is refused, unless accepted.
---@return table? wire, table|string shown_or_message, string? code, table? detail
local function limits_of(opts)
  local known, waived = {}, {}
  for _, source in ipairs { LIMITS, UNHELD } do
    for name, types in pairs(source) do
      known[name] = types
    end
  end
  for _, name in ipairs(opts.allow_unenforced or {}) do
    waived[name] = true
  end
  local shown, wire = {}, { cpu = "1000m", memory = "2048Mi" }
  for name, value in pairs(options.check("moonsand.create: limits", opts.limits, known, 5)) do
    if UNHELD[name] then
      if not waived[name] then
        return errors.fail("unavailable",
          ("limits.%s cannot be held for a whole sandbox by OpenSandbox"):format(name),
          { cause = "the service has no such limit",
            fix = ("leave it out, or accept it with allow_unenforced = { %q }"):format(name) })
      end
      shown[name] = { value = value, by = "none" }
    elseif name == "memory" then
      local bytes, message, code, detail = options.size("limits.memory", value)
      if not bytes then
        return nil, message, code, detail
      end
      wire.memory, shown.memory = ("%dMi"):format(math.ceil(bytes / 2 ^ 20)),
        { value = bytes, by = "cgroup" }
    elseif not (value > 0) then
      return errors.fail("invalid", ("limits.%s: %s is not a positive number"):format(name, value))
    elseif name == "cpus" then
      wire.cpu = ("%dm"):format(math.ceil(value * 1000))
      shown.cpus = { value = value, by = "cgroup" }
    else
      wire.gpu, shown.gpus = ("%d"):format(math.ceil(value)), { value = value, by = "device" }
    end
  end
  return wire, shown
end

local function rules(list, action, egress)
  for i, target in ipairs(list or {}) do
    if type(target) ~= "string" or target == "" then
      return errors.fail("invalid", ("network.%s: entry %d is no name"):format(action, i))
    elseif target:find("^@") or target:find ":%d+$" then
      return errors.fail("unsupported",
        ("network.%s: %s: OpenSandbox knows hosts and addresses, no ports and no groups"):format(
        action, options.quote(target)))
    end
    egress[#egress + 1] = { action = action, target = target }
  end
  return true
end

--- The network policy: true or nil is the server's own.
local function policy_of(network)
  if network == nil or network == true then
    return true
  elseif network == false then
    return { defaultAction = "deny", egress = json.array() }
  elseif type(network) ~= "table" then
    return errors.fail("unsupported", ("network: %s is not supported by OpenSandbox"):format(
      options.quote(network)))
  end
  options.check("moonsand.create: network", network, { allow = "table", deny = "table" }, 5)
  local egress = json.array()
  local ok, message, code, detail = rules(network.deny, "deny", egress)
  if ok then
    ok, message, code, detail = rules(network.allow, "allow", egress)
  end
  if not ok then
    return nil, message, code, detail
  end
  local all = network.allow and #network.allow == 1 and network.allow[1] == "*"
  return { defaultAction = all and "allow" or "deny", egress = egress }
end

local function image_of(image)
  if type(image) == "string" then
    return { uri = image }
  end
  image = options.check("moonsand.create: image", image,
    { uri = "string", username = "string", password = "string" }, 5)
  local auth = image.username and { username = image.username, password = image.password } or nil
  return { uri = image.uri, auth = auth }
end

local VOLUME = {
  name = "string", path = "string", read_only = "boolean", sub_path = "string", host = "string",
  claim = "string|table", ossfs = "table",
}

--- Volumes: what the service calls host, pvc and ossfs.
local function volumes_of(list)
  local volumes = json.array()
  for i, volume in ipairs(list) do
    volume = options.check(("moonsand.create: volume %d"):format(i), volume, VOLUME, 5)
    if not volume.path or not (volume.host or volume.claim or volume.ossfs) then
      return errors.fail("invalid",
        ("volumes: %d has no path, or neither host, claim nor ossfs"):format(i))
    end
    local claim = type(volume.claim) == "string" and { claimName = volume.claim } or volume.claim
    volumes[i] = {
      name = volume.name or ("volume-%d"):format(i),
      mountPath = volume.path,
      readOnly = volume.read_only,
      subPath = volume.sub_path,
      host = volume.host and { path = volume.host } or nil,
      pvc = claim,
      ossfs = volume.ossfs,
    }
  end
  return volumes
end

--- The whole of them, in seconds; nil for one without an end.
local function lifetime_of(seconds)
  seconds = seconds or LIFETIME
  if seconds == math.huge then
    return json.null
  elseif not (seconds >= 60) then
    return errors.fail("invalid", ("lifetime: %s; OpenSandbox takes 60 s or more"):format(seconds))
  end
  return options.integer(math.ceil(seconds))
end

local function metadata_of(opts)
  local metadata = {}
  for name, value in pairs(opts.metadata or {}) do
    metadata[name] = tostring(value)
  end
  metadata[NAME] = opts.name
  return next(metadata) and metadata or nil
end

--- What `create` sends.
---@return table? request, table|string shown_limits, string? code, table? detail
local function request_of(opts)
  if not opts.image and not opts.snapshot and not (opts.extensions and opts.extensions.poolRef) then
    return errors.fail("invalid",
      "image: OpenSandbox needs one, such as 'python:3.12', or a snapshot")
  end
  local lifetime, message, code, detail = lifetime_of(opts.lifetime)
  local limits, shown, policy, volumes
  if lifetime then
    limits, shown, code, detail = limits_of(opts)
    message = shown
  end
  if limits then
    policy, message, code, detail = policy_of(opts.network)
  end
  if policy then
    volumes, message, code, detail = volumes_of(opts.volumes or {})
  end
  if not volumes then
    return nil, message, code, detail
  end
  return {
    image = opts.image and image_of(opts.image) or nil,
    snapshotId = opts.snapshot,
    entrypoint = opts.entrypoint or opts.image and ENTRYPOINT or nil,
    resourceLimits = limits,
    timeout = lifetime,
    metadata = metadata_of(opts),
    networkPolicy = policy ~= true and policy or nil,
    volumes = volumes[1] and volumes or nil,
    platform = opts.platform,
    extensions = opts.extensions,
    secureAccess = opts.secure_access,
  }, shown
end

-- ---------------------------------------------------------------- the provider's calls

--- A snapshot's id by its name.
local function find_snapshot(service, name, limits)
  local list, message, code, detail = service:pages("/snapshots", {}, limits)
  if not list then
    return nil, message, code, detail
  end
  for _, snapshot in ipairs(list) do
    if snapshot.id == name or snapshot.name == name then
      return snapshot.id
    end
  end
  return errors.fail("not_found", ("there is no snapshot %s"):format(options.quote(name)))
end

---@return moonsand.opensandbox.Driver? driver, string? message, string? code, table? detail
function M.create(opts, limits)
  local service, shown, known
  local request, message, code, detail = request_of(opts)
  if request then
    shown = message
    service, message, code, detail = services.open(opts)
  end
  if service and opts.snapshot then
    request.snapshotId, message, code, detail = find_snapshot(service, opts.snapshot, limits)
    service = request.snapshotId and service
  end
  if service then
    known, message, code, detail =
      service:call(limits, { method = "POST", path = "/sandboxes", json = request })
  end
  if not known then
    return nil, message, code, detail
  elseif known == true or type(known.id) ~= "string" then
    return errors.fail("protocol", "the OpenSandbox server named no sandbox")
  end
  local driver = drivers.new(service, known, true, shown)
  local ok
  ok, message, code, detail = drivers.reach(driver, limits)
  if not ok then
    driver:close()
    detail.id = known.id
    return nil, message, code, detail
  end
  return driver
end

--- The sandbox of a name that `create` gave.
local function find(service, name, limits)
  local list, message, code, detail =
    service:pages("/sandboxes", { { "metadata", NAME .. "=" .. name } }, limits)
  if not list then
    return nil, message, code, detail
  end
  for _, sandbox in ipairs(list) do
    if not services.is_over(sandbox) then
      return sandbox
    end
  end
  return errors.fail("not_found", ("there is no sandbox %s"):format(options.quote(name)))
end

---@param id string or a name
---@return moonsand.opensandbox.Driver? driver, string? message, string? code, table? detail
function M.connect(id, opts, limits)
  local service, message, code, detail = services.open(opts)
  if not service then
    return nil, message, code, detail
  end
  local known
  known, message, code, detail = service:get(id, limits)
  if not known and code == "not_found" then
    known, message, code, detail = find(service, id, limits)
  end
  if not known then
    return nil, message, code, detail
  elseif known == true or services.is_over(known) then
    return errors.fail("gone", ("the sandbox %s ended"):format(options.quote(id)))
  end
  local driver = drivers.new(service, known, false)
  local ok
  driver.paused = type(known.status) == "table" and known.status.state == "Paused"
  if driver.paused then -- it answers after `resume`
    ok, message, code, detail = service:endpoint(driver.id, drivers.EXECD, limits)
    driver.execd = ok
  else
    ok, message, code, detail = drivers.reach(driver, limits)
  end
  if not ok then
    return nil, message, code, detail
  end
  return driver
end

local function row_of(sandbox)
  local status = type(sandbox.status) == "table" and sandbox.status or {}
  local metadata = type(sandbox.metadata) == "table" and sandbox.metadata or {}
  return {
    id = sandbox.id,
    name = metadata[NAME] or sandbox.id,
    state = type(status.state) == "string" and status.state:lower() or "unknown",
    reason = status.reason,
    image = type(sandbox.image) == "table" and sandbox.image.uri or nil,
    snapshot = sandbox.snapshotId,
    metadata = metadata,
    created_at = times.parse(sandbox.createdAt),
    expires_at = times.parse(sandbox.expiresAt),
  }
end

local function escape(text)
  return (tostring(text):gsub("[^%w%-._~]", function(c)
    return ("%%%02X"):format(c:byte())
  end))
end

--- The filters, as the server's query: a query inside a query for metadata.
local function filters(opts)
  local query = {}
  local states = type(opts.state) == "string" and { opts.state } or opts.state or {}
  for _, state in ipairs(states) do
    query[#query + 1] = { "state", (state:gsub("^%l", string.upper)) }
  end
  local pairs_of = {}
  for name, value in pairs(opts.metadata or {}) do
    pairs_of[#pairs_of + 1] = escape(name) .. "=" .. escape(value)
  end
  table.sort(pairs_of)
  if pairs_of[1] then
    query[#query + 1] = { "metadata", table.concat(pairs_of, "&") }
  end
  return query
end

--- The service's sandboxes, all pages; `state` and `metadata` select.
function M.list(opts, limits)
  local service, message, code, detail = services.open(opts)
  if not service then
    return nil, message, code, detail
  end
  local list
  list, message, code, detail = service:pages("/sandboxes", filters(opts), limits)
  if not list then
    return nil, message, code, detail
  end
  local rows = {}
  for i, sandbox in ipairs(list) do
    rows[i] = row_of(sandbox)
  end
  return rows
end

--- Ends a sandbox, and waits until it is no more.
function M.destroy(id, opts, limits)
  local service, message, code, detail = services.open(opts)
  if not service then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = service:delete(id, limits)
  if not ok then
    return nil, message, code, detail
  end
  return service:await_gone(id, limits)
end

function M.snapshots(opts, limits)
  local service, message, code, detail = services.open(opts)
  local list
  if service then
    list, message, code, detail = service:pages("/snapshots", {}, limits)
  end
  if not list then
    return nil, message, code, detail
  end
  local rows = {}
  for i, snapshot in ipairs(list) do
    rows[i] = drivers.snapshot_row(snapshot)
  end
  return rows
end

--- By id or name. Gone already is true.
function M.delete_snapshot(name, opts, limits)
  local service, message, code, detail = services.open(opts)
  local id, ok
  if service then
    id, message, code, detail = find_snapshot(service, name, limits)
  end
  if id then
    ok, message, code, detail =
      service:call(limits, { method = "DELETE", path = "/snapshots/" .. id, idempotent = true })
  end
  if ok or code == "not_found" then
    return true
  end
  return nil, message, code, detail
end

return M
