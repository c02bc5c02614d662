--- Control groups, in which the kernel itself bounds what a sandbox uses: memory, CPU, processes.
--- Version 2 is one tree, version 1 a tree for each controller; a machine may have both.
---
--- A sandbox's groups are made below the group that this process is in, or, in version 2, below the
--- nearest one above it where that is possible: what bounds us bounds them. Its first process goes
--- in before it is ready. They are removed when it is over; what nobody was there to remove, the
--- keeper does (src/agent/keeper.c).

local core = require "moonsand.core"

local M = {}

--- Where the kernel tells of groups, and what touches them. Replaced in tests.
M.kernel = {
  membership = "/proc/self/cgroup",
  mounts = "/proc/self/mountinfo",
  make = core.cgroup,
  write = core.cgroup_write,
  keeper = core.keeper,
}

function M.kernel.read(path)
  local file = io.open(path, "r")
  local text = file and file:read "*a"
  if file then
    file:close()
  end
  return text
end

local NAMES = { "memory", "cpus", "processes" }
local CONTROLLERS = { memory = "memory", cpus = "cpu", processes = "pids" }

--- The time in which `cpus` is measured, in microseconds.
local PERIOD = 100000

--- What is written for a limit, by version: file, text. Where there is no swap to bound, its file
--- is missing.
local SETTINGS = {
  {
    memory = { "memory.limit_in_bytes", "%d", "memory.memsw.limit_in_bytes", "%d" },
    cpus = { "cpu.cfs_period_us", tostring(PERIOD), "cpu.cfs_quota_us", "%d" },
    processes = { "pids.max", "%d" },
  },
  {
    memory = { "memory.max", "%d", "memory.swap.max", "0" },
    cpus = { "cpu.max", "%d " .. PERIOD },
    processes = { "pids.max", "%d" },
  },
}
local MAY_LACK = { ["memory.memsw.limit_in_bytes"] = true, ["memory.swap.max"] = true }

--- What counts how often a limit was hit, by version: a file, and the word before the number. A
--- process counts as killed for `memory` only if the limit was `reached` at all, which another file
--- tells: it may have been the whole machine's memory that ran out.
local COUNTERS = {
  {
    memory = { "memory.oom_control", "oom_kill ", reached = { "memory.max_usage_in_bytes", "" } },
    processes = { "pids.events", "max " },
  },
  {
    memory = { "memory.events", "oom_kill ", reached = { "memory.events", "oom " } },
    processes = { "pids.events", "max " },
  },
}

--- The most that was ever used counts as the limit from here on: memory is charged in pieces.
local NEARLY = 15 / 16

--- Where processes go that must not be where they are. All hosts in a group share it.
local LEAF = "moonsand-host"

-- ---------------------------------------------------------------- names, and who removes them

--- When a process began, as /proc tells it; its parent.
local function read_stat(pid)
  local text = M.kernel.read(("/proc/%s/stat"):format(pid))
  local rest = text and text:match "^.*%) (.*)$"
  if not rest then
    return nil
  end
  local fields = {}
  for field in rest:gmatch "%S+" do
    fields[#fields + 1] = field
  end
  return fields[20], tonumber(fields[2])
end

--- What we have there: `prefix` names this Lua state of this process. A fork has another.
local function own_state()
  local pid, own = core.getpid(), M.kernel.state
  if not own or own.pid ~= pid then
    local token = core.random(4):gsub(".", function(byte)
      return ("%02x"):format(byte:byte())
    end)
    own = { pid = pid, last = 0, kept = {},
      prefix = ("moonsand-%d-%s-%s-"):format(pid, read_stat(pid), token) }
    M.kernel.state = own
  end
  return own
end

--- Somebody who removes what is left in a directory once we are gone. One that was killed is
--- replaced.
---@return true|nil ok, integer? errno
local function keep(own, agent, directory)
  if own.keeper and own.kept[directory] and own.keeper:alive() then
    return true
  end
  local errno
  if not own.keeper or not own.keeper:alive() then
    own.kept = {}
    own.keeper, errno = M.kernel.keeper(agent, own.prefix)
  end
  if own.keeper then
    own.kept[directory], errno = own.keeper:add(directory)
  end
  return own.kept[directory], errno
end

-- ---------------------------------------------------------------- where groups can be made

--- The group of this process in each tree: by controller of version 1, and `unified`.
local function memberships()
  local found = {}
  for names, path in (M.kernel.read(M.kernel.membership) or ""):gmatch "%d+:([^:\n]*):([^\n]*)" do
    if names == "" then
      found.unified = path
    end
    for name in names:gmatch "[^,]+" do
      found[name] = path
    end
  end
  return found
end

--- Where each tree is mounted: { root, point }.
local function mounts()
  local found = {}
  for line in (M.kernel.read(M.kernel.mounts) or ""):gmatch "[^\n]+" do
    local root, point, rest = line:match "^%S+ %S+ %S+ (%S+) (%S+) (.*)$"
    local kind, options = (rest or ""):match "%- (%S+) %S+ (%S+)"
    local mount = point and { root = root, point = point:gsub("\\(%d%d%d)", function(digits)
      return string.char(tonumber(digits, 8))
    end) }
    if kind == "cgroup2" then
      found.unified = found.unified or mount
    elseif kind == "cgroup" then
      for name in options:gmatch "[^,]+" do
        found[name] = found[name] or mount
      end
    end
  end
  return found
end

--- The directories of a tree from the group of this process up to the top, nearest first.
local function directories_of(path, mount)
  local list = {}
  if not path or not mount or path:find "^/%.%." then -- not mounted, or we are not below what is
    return list
  end
  local below = mount.root == "/" and path or path == mount.root and "/"
    or path:sub(1, #mount.root + 1) == mount.root .. "/" and path:sub(#mount.root + 1)
  if not below then
    return list
  end
  below = below:gsub("/+$", "")
  if below:match "[^/]*$" == LEAF then
    below = below:gsub("/[^/]*$", "")
  end
  while true do
    list[#list + 1] = mount.point .. below
    if below == "" then
      return list
    end
    below = below:gsub("/[^/]*$", "")
  end
end

local function has_word(text, word)
  return ((" " .. (text or ""):gsub("%s", " ")) .. " "):find(" " .. word .. " ", 1, true) ~= nil
end

--- Whether a process is this one or descends from it, or is gone meanwhile.
local function is_own(pid)
  local own = core.getpid()
  while pid and pid > 1 and pid ~= own do
    pid = select(2, read_stat(pid))
  end
  return pid == nil or pid == own
end

local function processes_in(directory)
  local pids = {}
  for pid in (M.kernel.read(directory .. "/cgroup.procs") or ""):gmatch "%d+" do
    pids[#pids + 1] = pid
  end
  return pids
end

local function not_ours(directory, errno)
  return ("the group %s is not for this process to use: %s"):format(directory, core.strerror(errno))
end

--- How often new processes of ours are followed into the group that they should be in.
local ROUNDS = 5

--- What has groups with controllers below it must not have processes itself: those there go into a
--- group of their own, if all of them are ours. (For some controllers the kernel would not refuse,
--- but make the group one of threads, which no process can be put below.)
---@return true|nil empty, string? cause
local function vacate(directory)
  local leaf = directory .. "/" .. LEAF
  local others = ("there are other processes in the group %s"):format(directory)
  for _ = 1, ROUNDS do
    local pids = processes_in(directory)
    if #pids == 0 then
      return true
    end
    for _, pid in ipairs(pids) do
      if not is_own(tonumber(pid)) then
        return nil, others
      end
    end
    local made, errno = M.kernel.make(leaf)
    if not made and errno ~= core.errno.EEXIST then
      return nil, not_ours(directory, errno)
    end
    for _, pid in ipairs(pids) do
      M.kernel.write(leaf, "cgroup.procs", pid)
    end
  end
  return #processes_in(directory) == 0 or nil, others
end

--- Sees that groups below a directory of version 2 have these controllers.
---@return true|nil ok, string? cause
local function enable(directory, names)
  local there = M.kernel.read(directory .. "/cgroup.controllers")
  for _, name in ipairs(names) do
    if not has_word(there, CONTROLLERS[name]) then
      return nil, ("the group %s has no controller '%s'"):format(directory, CONTROLLERS[name])
    end
  end
  if M.kernel.read(directory .. "/cgroup.type") then -- else it is the top, which may have both
    local empty, cause = vacate(directory)
    if not empty then
      return nil, cause
    end
  end
  for _, name in ipairs(names) do
    local enabled = M.kernel.read(directory .. "/cgroup.subtree_control")
    if not has_word(enabled, CONTROLLERS[name]) then
      local ok, errno = M.kernel.write(directory, "cgroup.subtree_control", "+" .. CONTROLLERS[name])
      if not ok then
        return nil, not_ours(directory, errno)
      end
    end
  end
  return true
end

-- ---------------------------------------------------------------- making

local FIX = {
  "run it as root",
  "systemd-run --user --scope -p Delegate=yes PROGRAM, or Delegate=yes in the service's unit; in a "
    .. "container, a /sys/fs/cgroup of its own that can be written",
}

---@class moonsand.local.Groups what holds a sandbox
---@field handles userdata[]
---@field held table<string, string> by limit: "cgroup1" or "cgroup2"
local Groups = {}
Groups.__index = Groups

--- One in a directory, and somebody who will remove it.
---@return userdata? handle, string? cause
local function make_group(self, own, directory)
  local kept, errno = keep(own, self.agent, directory)
  if not kept then
    return nil, "the keeper could not be started: " .. core.strerror(errno)
  end
  own.last = own.last + 1
  local path = ("%s/%s%d"):format(directory, own.prefix, own.last)
  local handle
  handle, errno = M.kernel.make(path, own.keeper)
  if not handle then
    return nil, ("no group can be made in %s: %s"):format(directory, core.strerror(errno))
  end
  self.handles[#self.handles + 1] = handle
  return handle
end

--- Has what counts how often a limit is hit watched.
local function watch(self, handle, version, name, value)
  local counter = COUNTERS[version][name]
  if not counter then
    return
  end
  handle:watch(counter[1])
  handle:watch((counter.reached or counter)[1])
  self.counters[name] = { handle = handle, files = counter, least = version == 1 and value * NEARLY or 1 }
end

--- Writes one limit into a group.
---@return true|nil ok, string? cause
local function set(self, handle, version, name, value)
  local settings = SETTINGS[version][name]
  local text = name == "cpus" and math.floor(value * PERIOD) or value
  for i = 1, #settings, 2 do
    local ok, errno = handle:write(settings[i], settings[i + 1]:format(text))
    if not ok and not (errno == core.errno.ENOENT and MAY_LACK[settings[i]]) then
      return nil, ("%s cannot be set: %s"):format(settings[i], core.strerror(errno))
    end
  end
  watch(self, handle, version, name, value)
  self.held[name] = "cgroup" .. version
  return true
end

--- Version 1: a group for each limit.
---@return true|nil ok, string? cause
local function make_single(self, own, directory, name, value)
  local handle, cause = make_group(self, own, directory)
  if not handle then
    return nil, cause
  end
  return set(self, handle, 1, name, value)
end

--- Version 2: one for all, in the nearest directory where that is possible. `processes` only if it
--- is to be had there.
---@return true|nil ok, string? cause
local function make_unified(self, own, directories, names, wants)
  local nearest
  for _, directory in ipairs(directories) do
    local handle
    local ok, cause = enable(directory, names)
    if ok then
      handle, cause = make_group(self, own, directory)
    end
    for i = 1, handle and #names or 0 do
      ok, cause = set(self, handle, 2, names[i], wants[names[i]])
      if not ok then
        return nil, cause
      end
    end
    if handle then
      if wants.processes and enable(directory, { "processes" }) then
        set(self, handle, 2, "processes", wants.processes)
      end
      return true
    end
    nearest = nearest or cause
  end
  return nil, nearest or "no cgroup file system is mounted that this process is in"
end

--- Makes the groups for what is wanted: { memory, cpus, processes }. `processes` is taken along where
--- it can be. What cannot be held is not there in `held`, but in `missing`.
---@param agent string the helper program
---@return moonsand.local.Groups groups, table<string, { cause: string, fix: string }> missing
function M.make(wants, agent)
  local own = own_state()
  local self = setmetatable({ agent = agent, handles = {}, held = {}, counters = {} }, Groups)
  local paths, points = memberships(), mounts()
  local missing, unified, rest = {}, {}, {}
  for _, name in ipairs(NAMES) do
    local controller = CONTROLLERS[name]
    local directory = directories_of(paths[controller], points[controller])[1]
    if wants[name] and directory then
      local ok, cause = make_single(self, own, directory, name, wants[name])
      missing[name] = not ok and { cause = cause, fix = FIX[1] } or nil
    elseif wants[name] then
      rest[name] = wants[name]
      unified[#unified + 1] = name ~= "processes" and name or nil
    end
  end
  if #unified > 0 then
    local ok, cause =
      make_unified(self, own, directories_of(paths.unified, points.unified), unified, rest)
    for _, name in ipairs(unified) do
      missing[name] = not ok and { cause = cause, fix = FIX[2] } or nil
    end
  end
  return self, missing
end

-- ---------------------------------------------------------------- afterwards

local function read_count(handle, row)
  local text = handle:read(row[1])
  return tonumber(text and ("\n" .. text):match("\n" .. row[2] .. "(%d+)")) or 0
end

--- How often each limit was hit so far. Of a sandbox that is over: until then.
---@return table<string, integer>
function Groups:hits()
  local hits = {}
  for name, each in pairs(self.counters) do
    local count, reached = read_count(each.handle, each.files), each.files.reached
    if count > 0 and reached and read_count(each.handle, reached) < each.least then
      count = 0
    end
    hits[name] = count
  end
  return hits
end

--- There is no sandbox in them, or will not be one for long.
function Groups:remove()
  for _, handle in ipairs(self.handles) do
    handle:remove()
  end
end

return M
