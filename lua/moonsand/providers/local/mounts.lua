--- What of the host is put into a sandbox: `workspace`, `mounts` and `root`. Sources are looked at and held
--- open here, with the rights of this process; src/agent/mounts.c puts them in their places.

local core = require "moonsand.core"
local doctor = require "moonsand.doctor"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

local MAX = 64 -- as the agent takes
local READ_ONLY, COPY, DETACHED, DIRECTORY, ROOT = 1, 2, 4, 8, 16 -- MS_MOUNT_… of wire.h
local MODES = { ro = READ_ONLY, rw = 0, copy = COPY }
local FIELDS = { source = "string", target = "string", mode = "string" }

--- Who the sandboxes of a root host are.
local UNPRIVILEGED = 65534

--- What is the sandbox's own, and stays so.
local OWN = {
  "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sys", "/dev", "/.copies",
}

--- File systems that show the kernel, not files: they know no sandbox.
local VIRTUAL = {}
for name in ("proc sysfs cgroup cgroup2 devpts devtmpfs debugfs tracefs securityfs bpf configfs "
  .. "efivarfs pstore mqueue binfmt_misc selinuxfs fusectl nsfs"):gmatch "%S+" do
  VIRTUAL[name] = true
end

local function is_below(path, directory)
  return path == directory or directory == "/" or path:sub(1, #directory + 1) == directory .. "/"
end

-- ---------------------------------------------------------------- what was asked for

--- Does a target make sense? It is written as it will be: absolute, without "." and "..".
local function check_target(mount)
  if mount.root then
    return true
  end
  local target = mount.target:gsub("/+$", "")
  local wrong = target:sub(1, 1) ~= "/" and "must be an absolute path below '/'"
    or #target > 4095 and "is too long"
    or target:find "%z" and "has a NUL in it"
    or (target .. "/"):find "/%.%.?/" and "must not have '.' or '..' in it"
    or target:find "//" and "must not have an empty name in it"
  for _, own in ipairs(OWN) do
    wrong = wrong or is_below(target, own) and ("is the sandbox's own: nothing is mounted at or below "
      .. own)
  end
  if wrong then
    return errors.fail("invalid", ("%s: target %s %s"):format(mount.label, options.quote(mount.target),
      wrong), { path = mount.target })
  end
  mount.target = target
  return true
end

local function add(list, label, source, target, mode)
  list[#list + 1] = { label = label, source = source, target = target, mode = mode }
end

--- The mounts as the options say: types raise, at the line that called `create`.
local function read(opts, level)
  local list = {}
  if opts.root then
    add(list, "root", opts.root, "/", opts.root_mode or "ro")
    list[1].root = true
  end
  if opts.workspace then
    add(list, "workspace", opts.workspace, "/workspace", "rw")
  end
  local rows = options.list("moonsand.create: mounts", opts.mounts, "table", level + 1)
  for i, row in ipairs(rows) do
    local label = ("mounts[%d]"):format(i)
    options.check("moonsand.create: " .. label, row, FIELDS, level + 1)
    for _, field in ipairs { "source", "target" } do
      if not row[field] then
        errors.raise(level + 1, "moonsand.create: %s needs a %s", label, field)
      end
    end
    add(list, label, row.source, row.target, row.mode or "ro")
  end
  return list
end

--- Values, which answer failures; and the order: what is mounted below another comes after it.
local function check(list)
  if #list > MAX then
    return errors.fail("invalid", ("mounts: more than %d"):format(MAX))
  end
  local seen = {}
  for i, mount in ipairs(list) do
    if not MODES[mount.mode] then
      return errors.fail("invalid", ("%s: mode %s is none of 'ro', 'rw', 'copy'"):format(mount.label,
        options.quote(mount.mode)))
    end
    local ok, message, code, detail = check_target(mount)
    if not ok then
      return nil, message, code, detail
    elseif seen[mount.target] then
      return errors.fail("invalid", ("%s and %s have the same target %s"):format(seen[mount.target],
        mount.label, options.quote(mount.target)), { path = mount.target })
    end
    seen[mount.target] = mount.label
    mount.order = i
    mount.depth = mount.root and 0 or select(2, mount.target:gsub("/", ""))
  end
  table.sort(list, function(a, b)
    if a.depth ~= b.depth then
      return a.depth < b.depth
    end
    return a.order < b.order
  end)
  return true
end

-- ---------------------------------------------------------------- sources

local function refuse(mount, why)
  return errors.fail("invalid", ("%s: %s %s"):format(mount.label, options.quote(mount.source), why),
    { path = mount.source })
end

--- A path as /proc/self/mountinfo writes it.
local function unescape(path)
  return (path:gsub("\\(%d%d%d)", function(digits)
    return string.char(tonumber(digits, 8))
  end))
end

--- The mount point of a file system below a directory that no sandbox may see; nil when there is none.
local function virtual_below(path)
  local file = io.open "/proc/self/mountinfo"
  if not file then
    return path
  end
  local found
  for line in file:lines() do
    local point, kind = line:match "^%d+ %d+ %S+ %S+ (%S+) .- %- (%S+)"
    if point and VIRTUAL[kind] and is_below(unescape(point), path) then
      found = unescape(point)
      break
    end
  end
  file:close()
  return found
end

--- Where this module's own helper is, which every later sandbox trusts.
local function own_directory()
  local held = core.source((core.module_path() or ""):match "^(.*)/" or ".")
  local described = held and held:describe()
  if held then
    held:close()
  end
  return described and described.path or "/"
end

--- Is this something that may be in a sandbox, in this way?
local function check_source(mount, is)
  if is.virtual then
    return refuse(mount, "is of a file system that shows the kernel, not files")
  elseif is.kind == "other" then
    return refuse(mount, "is neither a file nor a directory")
  elseif (mount.root or mount.label == "workspace") and is.kind ~= "directory" then
    return errors.fail("not_a_directory", ("%s: %s is no directory"):format(mount.label,
      options.quote(mount.source)), { path = mount.source })
  end
  local below = is.kind == "directory" and virtual_below(is.path)
  if below then
    return refuse(mount, ("has the kernel's %s below it"):format(below))
  end
  local own = own_directory()
  if mount.mode == "rw" and (is_below(own, is.path) or is_below(is.path, own)) then
    return refuse(mount, "has the helper that makes sandboxes in it: it must not be written from one")
  end
  local ok, errno = mount.held:readable()
  if not ok then
    return errors.errno(errno, ("%s: %s"):format(mount.label, options.quote(mount.source)),
      { path = mount.source })
  end
  return true
end

local function hold(mount)
  if mount.source == "" or mount.source:find "%z" then
    return refuse(mount, "is no path")
  end
  local held, errno = core.source(mount.source)
  if not held then
    return errors.errno(errno, ("%s: %s"):format(mount.label, options.quote(mount.source)),
      { path = mount.source })
  end
  mount.held = held
  local is
  is, errno = held:describe()
  if not is then
    return errors.errno(errno, mount.label)
  end
  mount.is, mount.path = is, is.path
  mount.flags = MODES[mount.mode] + (is.kind == "directory" and DIRECTORY or 0)
    + (mount.root and ROOT or 0)
  return check_source(mount, is)
end

-- ---------------------------------------------------------------- whose files they are

--- A failure of the zygote's; its death is told as such.
local function no_idmap(errno)
  if errno == core.errno.ECONNRESET or errno == core.errno.EPIPE then
    return doctor.unavailable("zygote", errno)
  end
  return errors.errno(errno, "no user namespace for a mount")
end

--- Waits for the user namespace that shows a source's owner as the sandbox's user.
local function idmap(zygote, is, limits)
  local map, errno = zygote:idmap(is.uid, is.gid)
  if not map then
    return no_idmap(errno)
  end
  while true do
    local ready
    ready, errno = map:state()
    if ready then
      return map
    elseif ready == false then
      map:close()
      return no_idmap(errno)
    end
    local message, code, detail = loop.wait(limits, map)
    if message then
      map:close()
      return errors.fail(code, message, detail)
    end
  end
end

--- A host that may mount clones the mount itself, with the owner's files shown as the sandbox's.
--- Where the file system cannot show them so, what is not written is shown as it is.
local function detach(mount, zygote, limits)
  local is, read_only = mount.is, mount.mode ~= "rw"
  local map, message, code, detail
  if core.euid() == 0 and not (is.uid == UNPRIVILEGED and is.gid == UNPRIVILEGED) then
    map, message, code, detail = idmap(zygote, is, limits)
    if not map then
      return nil, message, code, detail
    end
  end
  local ok, errno = mount.held:detach(read_only, map)
  if not ok and map and errno == core.errno.EINVAL and read_only then
    ok, errno = mount.held:detach(read_only)
  end
  if map then
    map:close()
  end
  if ok then
    return true
  elseif errno == core.errno.EPERM then
    return false -- an ordinary user: the sandbox does it
  elseif errno == core.errno.EINVAL and map then
    return errors.fail("unavailable", ("%s: %s cannot be written from a sandbox"):format(mount.label,
      options.quote(mount.source)), {
        path = mount.source,
        cause = "its file system cannot show files of one user as another's (idmapped mounts)",
        fix = ("chown it to %d:%d, or run this program as its owner"):format(UNPRIVILEGED, UNPRIVILEGED),
      })
  end
  return errors.errno(errno, ("%s: %s"):format(mount.label, options.quote(mount.source)),
    { path = mount.source })
end

-- ---------------------------------------------------------------- the calls

--- What is to be mounted, checked and held open; nil alone when it is nothing. `release` it.
---@param opts table of create
---@param level integer whose line is to blame for wrong types
---@return table? plan, string? message, string? code, table? detail
function M.plan(opts, level)
  local list = read(opts, level + 1)
  local mode = opts.root_mode
  if mode and (not opts.root or mode ~= "ro" and mode ~= "copy") then
    return errors.fail("invalid", not opts.root and "root_mode: there is no root"
      or ("root_mode: %s is none of 'ro', 'copy'"):format(options.quote(mode)))
  end
  local ok, message, code, detail = check(list)
  for _, mount in ipairs(list) do
    if ok then
      ok, message, code, detail = hold(mount)
    end
  end
  if not ok then
    M.release(list)
    return nil, message, code, detail
  end
  return list
end

--- Makes a plan ready for a zygote. `sight`: the sandbox has to see the host's mounts.
---@return boolean|nil sight, string? message, string? code, table? detail
function M.prepare(plan, zygote, limits)
  local sight = false
  for _, mount in ipairs(plan) do
    local message, code, detail
    if not mount.detached then
      mount.detached, message, code, detail = detach(mount, zygote, limits)
    end
    if mount.detached == nil then
      return nil, message, code, detail
    end
    sight = sight or mount.root or not mount.detached
  end
  return sight
end

--- What bwrap cannot do as safely as it is done without it.
local function beyond_bwrap(mount, plan)
  if mount.root then
    return "another root file system needs an overlay of the sandbox's own"
  elseif mount.mode == "copy" and mount.is.kind == "directory" then
    return "a copy of a directory needs an overlay of the sandbox's own"
  elseif core.euid() == 0 and not (mount.is.uid == UNPRIVILEGED and mount.is.gid == UNPRIVILEGED) then
    return ("its owner would have to be shown as the sandboxes' user, %d"):format(UNPRIVILEGED)
  end
  for _, other in ipairs(plan) do
    if other ~= mount and not other.root and is_below(mount.target, other.target) then
      return ("its target is below that of %s, where links could lead bwrap elsewhere"):format(other.label)
    end
  end
end

--- Makes a plan ready for bwrap, which binds by path; the agent then compares with what is held.
---@return boolean|nil sight, string? message, string? code, table? detail
function M.suit_bwrap(plan)
  for _, mount in ipairs(plan) do
    local cause = beyond_bwrap(mount, plan)
    if cause then
      return errors.fail("unsupported", ("%s: %s cannot be mounted with isolation = \"bwrap\": %s"):format(
        mount.label, options.quote(mount.source), cause), {
          started = false,
          path = mount.source,
          cause = cause,
          fix = "leave it out or upload its files, or let the helper make the namespaces (isolation = "
            .. "\"native\")",
        })
    end
  end
  return false
end

--- As the zygote takes them.
function M.rows(plan)
  local rows = {}
  for i, mount in ipairs(plan) do
    rows[i] = {
      source = mount.held,
      flags = mount.flags + (mount.detached and DETACHED or 0),
      path = mount.path,
      target = mount.target,
    }
  end
  return rows
end

--- What `box:info()` tells.
function M.describe(plan)
  local rows = {}
  for i, mount in ipairs(plan) do
    local by = mount.mode ~= "copy" and not mount.root and "bind"
      or mount.is.kind == "directory" and "overlay" or "copy"
    rows[i] = { source = mount.path, target = mount.target, mode = mount.mode, by = by }
  end
  return rows
end

--- What a snapshot has to know: what is under the sandbox's own files ("host" or "root"); what of its
--- own it could not hold, if anything; the paths that are files of mounts, and not its own.
---@return "host"|"root" base, string? unsaved, string[] kept
function M.survey(plan)
  local base, unsaved, kept = "host", nil, {}
  for _, mount in ipairs(plan) do
    if mount.root then
      base = "root"
    end
    if mount.mode == "copy" and mount.is.kind == "directory" then
      unsaved = unsaved or mount.label
    elseif mount.mode == "copy" then
      kept[#kept + 1] = mount.target
    end
  end
  return base, unsaved, kept
end

function M.release(plan)
  for _, mount in ipairs(plan) do
    if mount.held then
      mount.held:close()
    end
  end
end

--- What the agent says of a mount that failed: code, words, perhaps cause and fix.
local function why(stage, errno, mount)
  local e = core.errno
  if stage == "source" and errno == e.ESTALE then
    return "conflict", "is not what it was a moment ago"
  elseif stage == "write" then
    return "permission_denied", "cannot be written by " .. (core.euid() == 0 and "its owner" or "you")
  elseif stage == "target" and errno == e.ELOOP then
    return "loop", ("the target %s leads through a symbolic link"):format(options.quote(mount.target))
  elseif stage == "target" and errno == e.ENOENT then
    return "not_found", ("the target %s does not exist in what is mounted above it, and nothing is made "
      .. "on the host"):format(options.quote(mount.target))
  elseif stage == "target" and (errno == e.ENOTDIR or errno == e.EISDIR) then
    return errors.code(errno), ("the target %s is %s"):format(options.quote(mount.target),
      errno == e.EISDIR and "a directory, the source is a file" or "no directory")
  end
  if stage == "copy" and (errno == e.EINVAL or errno == e.ENODEV or errno == e.EPERM) then
    return "unavailable", "cannot be shown as a copy", {
      cause = "overlayfs does not take its file system as a lower layer",
      fix = "mount it with mode 'ro', or upload it with box.files:upload",
    }
  end
  return errors.code(errno), ("%s: %s"):format(stage, core.strerror(errno))
end

--- A complaint of bwrap's that is about one of the mounts: it names a path, and why.
local function complaint(plan, stage)
  local words = stage:match "^bwrap: (.*)"
  for _, mount in ipairs(words and plan or {}) do
    local target = words:find(mount.target:sub(1, 100), 1, true) -- it is cut at some length
    if target or words:find(mount.path:sub(1, 100), 1, true) then
      local code = "invalid"
      for _, errno in pairs(core.errno) do
        code = words:sub(-#core.strerror(errno)) == core.strerror(errno) and errors.code(errno) or code
      end
      return true, ("%s: %s: %sbwrap: %s"):format(mount.label, options.quote(mount.source),
        target and "target: " or "", words), code, { path = target and mount.target or mount.source }
    end
  end
  return false
end

--- The failure of a stage as the agent names it ("source:2"); nil when it is no mount's.
---@return boolean failed, string? message, string? code, table? detail
function M.failure(plan, stage, errno)
  local step, index = stage:match "^(%l+):(%d+)$"
  local root = plan[1] and plan[1].root and plan[1]
  if root and stage == "root" then
    return true, ("root: %s: one of /dev, /proc, /run, /tmp, /workspace in it: %s"):format(
      options.quote(root.source), core.strerror(errno)), errors.code(errno), { path = root.source }
  end
  local mount = plan[tonumber(index)]
  if not mount then
    return complaint(plan, stage)
  end
  local code, words, detail = why(step, errno, mount)
  detail = detail or {}
  detail.path = step == "target" and mount.target or mount.source
  return true, ("%s: %s %s"):format(mount.label, options.quote(mount.source), words), code, detail
end

return M
