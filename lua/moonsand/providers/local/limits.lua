--- The limits of a local sandbox: what is asked for, what is set, and by what each is held.

local cgroups = require "moonsand.providers.local.cgroups"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

local DISK, INODES = 1024 ^ 3, 1e6

--- What holds each without a control group.
local HOW = {
  disk = "tmpfs", inodes = "tmpfs", processes = "rlimit", open_files = "rlimit",
  file_size = "rlimit", cpu_time = "rlimit",
}
local DEFAULTS = { disk = DISK, inodes = INODES, processes = 1024, open_files = 1024 }
local KNOWN = {
  disk = "number|string", inodes = "number", processes = "number", open_files = "number",
  file_size = "number|string", cpu_time = "number", memory = "number|string", cpus = "number",
}

--- Less is no room for the root and the agent, or nothing that the kernel would take.
local LEAST = { disk = 1024 * 1024, inodes = 128, memory = 4 * 1024 * 1024, cpus = 0.01 }

local function read(name, value)
  local number, message, code, detail = options.limit(name, value)
  if not number then
    return nil, message, code, detail
  elseif number < (LEAST[name] or 0) then
    return errors.fail("invalid", ("limits.%s: at least %s are needed"):format(name, LEAST[name]))
  end
  return number
end

local function read_all(asked)
  local values = {}
  for name, value in pairs(options.check("moonsand.create: limits", asked, KNOWN, 9)) do
    local message, code, detail
    values[name], message, code, detail = read(name, value)
    if values[name] == nil then
      return nil, message, code, detail
    end
  end
  return values
end

--- The limits that need not be held, as a set.
---@return table<string, true>
local function read_waived(names)
  local waived = {}
  for _, name in ipairs(options.list("moonsand.create: allow_unenforced", names, "string", 9)) do
    if not KNOWN[name] then
      local near = options.nearest(name, KNOWN)
      errors.raise(9, "moonsand.create: allow_unenforced: there is no limit %s%s", options.quote(name),
        near and (" (did you mean '" .. near .. "'?)") or "")
    end
    waived[name] = true
  end
  return waived
end

local function cannot_hold(name, why)
  return errors.fail("unavailable", ("limits.%s cannot be held for a whole sandbox here"):format(name), {
    started = false,
    cause = why.cause,
    fix = ("%s; or leave it out, limit single programs (exec's limits), or accept it with "
      .. "allow_unenforced = { %q }"):format(why.fix, name),
  })
end

--- Limits of each program: true, or the failure of the first that is above this process's own.
---@param values table<string, number>
---@return true|nil ok, string? message, string? code, table? detail
local function check_hard(values)
  for _, name in ipairs { "open_files", "processes", "file_size", "cpu_time", "memory" } do
    local value, most = values[name], core.hard_limit(name)
    if value and value > most then
      return errors.fail("unavailable", ("limits.%s: no program here can be given %.0f"):format(name,
        value), {
          started = false,
          what = "limits",
          cause = ("the hard limit of this process (getrlimit) is %.0f"):format(most),
          fix = ("ask for at most %.0f, or start this process with more (ulimit -H)"):format(most),
        })
    end
  end
  return true
end

--- Why the kernel refused a program's limits.
---@param values table<string, number> what was asked for
---@param why string
function M.refused(values, why)
  local ok, message, code, detail = check_hard(values)
  if not ok then
    return nil, message, code, detail
  end
  return errors.fail("unavailable", "cannot start: its limits cannot be set: " .. why, {
    started = false,
    what = "limits",
    cause = "one is above the hard limit (getrlimit) that the sandbox was made with",
    fix = "ask for less, or make the sandbox where hard limits are higher (ulimit -H)",
  })
end

--- The limits of a sandbox.
---@class moonsand.local.Limits
---@field values table<string, number> those that are set
---@field held table<string, { value: number, by: string }> as `box:info()` tells them
---@field groups? moonsand.local.Groups

--- A number of files cannot be told to bwrap.
local NO_INODES = { cause = "bwrap sets no number of files for a tmpfs", fix = "use isolation = \"native\"" }

--- What holds memory and CPU. Whoever asks for neither, for whatever reason, pays for nothing.
local function hold(self, values, asked, waived, agent, isolation)
  local wants = { memory = asked.memory, cpus = asked.cpus }
  if not next(wants) then
    return true
  end
  wants.processes = values.processes + (isolation == "bwrap" and 1 or 0) -- bwrap is in the group
  local groups, missing = cgroups.make(wants, agent)
  for _, name in ipairs { "memory", "cpus" } do
    if missing[name] and not waived[name] then
      groups:remove()
      return cannot_hold(name, missing[name])
    end
  end
  self.groups = #groups.handles > 0 and groups or nil
  for name, how in pairs(groups.held) do
    self.held[name] = { value = values[name], by = how }
  end
  return true
end

--- Reads what was asked for and makes what is needed to hold it; or a failure.
---@return moonsand.local.Limits? limits, string? message, string? code, table? detail
function M.plan(opts, agent, isolation)
  local asked, message, code, detail = read_all(opts.limits)
  if not asked then
    return nil, message, code, detail
  end
  local waived, values, self = read_waived(opts.allow_unenforced), {}, { held = {} }
  if isolation == "bwrap" and asked.inodes and not waived.inodes then
    return cannot_hold("inodes", NO_INODES)
  end
  for name, value in pairs(DEFAULTS) do
    values[name] = HOW[name] == "rlimit" and math.min(value, core.hard_limit(name)) or value
  end
  if asked.memory then -- files are memory: they should not take it all
    values.disk = math.min(DISK, math.max(LEAST.disk, math.floor(asked.memory / 2)))
  end
  local each = {}
  for name, value in pairs(asked) do
    values[name], each[name] = value, HOW[name] == "rlimit" and value or nil
  end
  local ok
  ok, message, code, detail = check_hard(each)
  if not ok then
    return nil, message, code, detail
  end
  for name, value in pairs(values) do
    local nothing = name == "inodes" and isolation == "bwrap"
    self.held[name] = { value = value, by = not nothing and HOW[name] or "none" }
  end
  ok, message, code, detail = hold(self, values, asked, waived, agent, isolation)
  if not ok then
    return nil, message, code, detail
  end
  self.values = values
  return self
end

--- What each program is given as rlimits, unless it says otherwise.
function M.of_programs(self)
  local limits = {}
  for name, held in pairs(self.held) do
    if held.by == "rlimit" then
      limits[name] = held.value
    end
  end
  return limits
end

--- The limits that were hit more often than before, as a set; nil when there are none.
---@param groups? moonsand.local.Groups
---@param before? table<string, integer>
function M.hit(groups, before)
  local hit
  for name, count in pairs(groups and groups:hits() or {}) do
    if count > (before and before[name] or 0) then
      hit = hit or {}
      hit[name] = true
    end
  end
  return hit
end

return M
