--- What this machine can do, and why it cannot: causes by name, each with its cure.

local core = require "moonsand.core"
local errors = require "moonsand.errors"

local M = {}

--- The first line of a file of the host, nil when there is none.
local function read_line(path)
  local file = io.open(path, "r")
  if not file then
    return nil
  end
  local line = file:read "l"
  file:close()
  return line
end

--- What the machine says of itself. Replaced in tests.
M.machine = {
  apparmor = function()
    return read_line "/proc/sys/kernel/apparmor_restrict_unprivileged_userns" == "1"
  end,
  userns_clone_off = function()
    return read_line "/proc/sys/kernel/unprivileged_userns_clone" == "0"
  end,
  max_user_namespaces = function()
    return tonumber(read_line "/proc/sys/user/max_user_namespaces" or "")
  end,
  memfd_noexec = function()
    return read_line "/proc/sys/vm/memfd_noexec" == "2"
  end,
  container = function()
    local docker = io.open "/.dockerenv" or io.open "/run/.containerenv"
    if docker then
      docker:close()
    end
    return docker ~= nil
  end,
  kernel = function()
    local major, minor = (read_line "/proc/sys/kernel/osrelease" or ""):match "^(%d+)%.(%d+)"
    return tonumber(major) or 0, tonumber(minor) or 0
  end,
}

local function kernel_before(major, minor)
  local a, b = M.machine.kernel()
  return a < major or a == major and b < minor
end

local APPARMOR = {
  cause = "AppArmor keeps unprivileged programs from using user namespaces "
    .. "(kernel.apparmor_restrict_unprivileged_userns = 1)",
  fix = "sudo apparmor_parser -r /etc/apparmor.d/moonsand (which make install puts there), or "
    .. "bubblewrap and its profile bwrap-userns-restrict, or "
    .. "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
}
local MEMFD_NOEXEC = {
  cause = "no program may run from memory here (vm.memfd_noexec = 2), and the helper does, so that "
    .. "nothing inside gets at its file",
  fix = "sudo sysctl -w vm.memfd_noexec=1",
}
local APPARMOR_BWRAP = {
  cause = "AppArmor keeps bwrap from using user namespaces",
  fix = "load the profile bwrap-userns-restrict, of Ubuntu's package apparmor-profiles",
}
local NO_BWRAP = {
  cause = "there is no bwrap",
  fix = "apt install bubblewrap",
}
local SETUID_BWRAP = {
  cause = "bwrap is setuid here, and so a way to root if it has a hole",
  fix = "sudo chmod u-s,g-s it: it needs that only where user namespaces are off",
}
local OLD_BWRAP = {
  cause = "this bwrap is older than 0.8",
  fix = "bubblewrap of 0.8 or later, as in Debian 12",
}
local CLONE_OFF = {
  cause = "user namespaces are off for ordinary users (kernel.unprivileged_userns_clone = 0)",
  fix = "sudo sysctl -w kernel.unprivileged_userns_clone=1",
}
local NO_NAMESPACES = {
  cause = "no more user namespaces are allowed (user.max_user_namespaces)",
  fix = "sudo sysctl -w user.max_user_namespaces=65536",
}
local NO_KERNEL_SUPPORT = {
  cause = "this kernel was built without user namespaces",
  fix = "a kernel with CONFIG_USER_NS, CONFIG_PID_NS and CONFIG_NET_NS",
}
local CONTAINER = {
  cause = "the container that this process runs in forbids namespaces (its seccomp profile)",
  fix = "start the container with --security-opt seccomp=unconfined or a profile that allows "
    .. "clone and unshare",
}
local MASKED_PROC = {
  cause = "/proc is partly masked here, as in most containers, so no new /proc may be mounted",
  fix = "docker run --security-opt systempaths=unconfined, in Kubernetes procMount: Unmasked",
}
local OLD_KERNEL = {
  cause = "this kernel is older than 5.14",
  fix = "a kernel of 5.14 or later",
}
local NO_SCOPE = {
  cause = "this kernel cannot keep abstract unix sockets of the host from a sandbox in its network "
    .. "(Landlock of Linux 6.12)",
  fix = "a kernel of 6.12 or later with Landlock, or network = { allow = { … } }, which needs neither",
}
local OTHER_BUILD = {
  cause = "the helper program is of another version than the module",
  fix = "install both from one build: make install",
}

--- What there may be too little of.
local SHORT = {}
for _, name in ipairs { "EAGAIN", "EMFILE", "ENFILE", "ENOMEM", "ETOOMANYREFS" } do
  SHORT[core.errno[name]] = true
end

local function clone_refused(errno)
  local e = core.errno
  if SHORT[errno] then
    return {
      cause = "this process, or its user, has no more of what a sandbox needs: "
        .. core.strerror(errno),
      fix = "see ulimit -u, ulimit -n, and free memory",
    }
  elseif errno == e.ENOSPC or errno == e.EUSERS or M.machine.max_user_namespaces() == 0 then
    return NO_NAMESPACES
  elseif errno == e.EINVAL or errno == e.ENOSYS then
    return NO_KERNEL_SUPPORT
  elseif M.machine.userns_clone_off() then
    return CLONE_OFF
  elseif M.machine.apparmor() then
    return APPARMOR
  elseif M.machine.container() then
    return CONTAINER
  end
  return {
    cause = "the kernel, or a policy of it, refuses user namespaces to this process",
    fix = "see whether seccomp, SELinux or AppArmor restricts it",
  }
end

local function helper_failed(errno, path)
  local e = core.errno
  if errno == e.ENOENT then
    return { cause = "the helper program is missing: " .. tostring(path), fix = "make, or make install" }
  elseif errno == e.EACCES then
    return {
      cause = "the helper program cannot be executed: " .. tostring(path),
      fix = "chmod +x it, and see that its file system is not mounted noexec",
    }
  end
  return {
    cause = "the helper program could not be started: " .. core.strerror(errno),
    fix = "see ulimit -u, ulimit -n, and free memory",
  }
end

--- What bwrap says, understood.
local COMPLAINTS = {
  { "Unknown option", OLD_BWRAP },
  { "Can't mount proc", MASKED_PROC },
  { "max_*_namespaces exceeded", NO_NAMESPACES },
  { "user namespace not available", NO_KERNEL_SUPPORT },
}

local function bwrap_failed(words)
  for _, row in ipairs(COMPLAINTS) do
    if words:find(row[1], 1, true) then
      return row[2]
    end
  end
  if M.machine.apparmor() and words:find "[Pp]ermi" then
    return APPARMOR_BWRAP
  elseif words:find "^No permissions to creat" then
    return clone_refused(core.errno.EPERM)
  end
  return { cause = "bwrap could not make it: " .. words, fix = "see bwrap(1)" }
end

--- The cause and the cure of a stage that failed.
---@param stage string as the helper names it
---@param errno integer
---@param path? string of the helper
---@return { cause: string, fix: string }
function M.explain(stage, errno, path)
  local e = core.errno
  if stage == "helper" then
    return helper_failed(errno, path)
  elseif stage:find "^bwrap: " then
    return bwrap_failed(stage:sub(8))
  elseif stage == "bwrap" and errno == e.ENOENT then
    return NO_BWRAP
  elseif stage == "bwrap is setuid" then
    return SETUID_BWRAP
  elseif stage == "clone" then
    return clone_refused(errno)
  elseif stage == "abstract sockets" then
    return NO_SCOPE
  elseif stage == "version" then
    return OTHER_BUILD
  elseif stage == "cgroup" then
    return {
      cause = "the kernel does not let a sandbox into the control group that was made for it: "
        .. core.strerror(errno),
      fix = "systemd-run --user --scope -p Delegate=yes PROGRAM, or create without limits of memory "
        .. "and cpus",
    }
  elseif stage == "proc" and errno == e.EPERM then
    return MASKED_PROC
  elseif kernel_before(5, 14) then
    return OLD_KERNEL
  elseif M.machine.apparmor() and (errno == e.EPERM or errno == e.EACCES) then
    return APPARMOR
  elseif stage == "zygote" and M.machine.memfd_noexec() then
    return MEMFD_NOEXEC
  elseif stage == "zygote" or stage == "agent" then
    return { cause = "the helper process ended unexpectedly", fix = "try again; see dmesg for the reason" }
  end
  return {
    cause = ("the step '%s' failed: %s"):format(stage, core.strerror(errno)),
    fix = "moonsand.doctor() tells what this machine allows",
  }
end

--- The failure of a create that this machine does not allow.
---@return nil, string message, string code, table detail
function M.unavailable(stage, errno, path)
  if stage == "seccomp.allow" then -- the agent's word on what was asked for, not on the machine
    return errors.fail("invalid", "seccomp.allow names a system call that may not be allowed",
      { started = false })
  end
  local why = M.explain(stage, errno, path)
  return errors.fail("unavailable", "no sandbox can be made here: " .. why.cause, {
    started = false,
    cause = why.cause,
    fix = why.fix,
    stage = stage,
    errno = errno,
  })
end

--- Where a policy about user namespaces is felt: in making them, or in what a process that owns one
--- may do first.
local POLICY = { clone = true, uid_map = true, propagation = true, loopback = true }

--- Does that failure say that this helper may not have user namespaces, where another program might?
---@param detail table of `unavailable`
---@return boolean
function M.is_policy(detail)
  local e = core.errno
  return POLICY[detail.stage] == true and (detail.errno == e.EPERM or detail.errno == e.EACCES)
end

--- The failure where neither the helper nor bwrap can make one.
---@param refused table detail of the first failure
---@param message string
---@param detail table of the second
---@return nil, string message, string code, table detail
function M.neither(refused, message, detail)
  local cause = ("%s; and by bwrap: %s"):format(refused.cause, detail.cause or message)
  return errors.fail("unavailable", "no sandbox can be made here: " .. cause, {
    started = false,
    cause = cause,
    fix = ("%s; or for bwrap: %s"):format(refused.fix, detail.fix or "see the cause"),
    stage = refused.stage,
    errno = refused.errno,
  })
end

---@class moonsand.Finding
---@field name string what was looked at
---@field ok boolean
---@field cause? string why not
---@field fix? string what to do

--- Tries the other launcher. No bwrap is no fault where there is no need of it.
local function examine_launchers(create, chosen, add)
  for _, isolation in ipairs { "native", "bwrap" } do
    if isolation ~= chosen then
      local box, message, _, detail = create { isolation = isolation }
      if not box and detail.cause == NO_BWRAP.cause then
        return
      end
      add(("a sandbox with isolation = %q"):format(isolation), box ~= nil,
        not box and (detail.cause or message) or nil, not box and (detail.fix or "") or nil)
      if box then
        box:close()
      end
    end
  end
end

--- Limits that only control groups hold, each with a value to try.
local GROUPED = { { "memory", 64 * 1024 * 1024 }, { "cpus", 1 } }

--- Whether a limit of a whole sandbox can be held: by what, or nil, why not, what to do.
local function try_limit(create, name, value)
  local box, message, _, detail = create { limits = { [name] = value } }
  if not box then
    return nil, detail.cause or message, detail.fix or ""
  end
  local by = box:info().limits[name].by
  box:close()
  return by
end

--- Tries what matters and tells what works: a list of findings, `ok` when a sandbox can be made.
--- `tostring` gives it as text.
---@return { ok: boolean, [integer]: moonsand.Finding }
function M.examine(create)
  local report = setmetatable({ ok = false }, {
    __tostring = function(self)
      local lines = {}
      for _, finding in ipairs(self) do
        lines[#lines + 1] = ("%s  %s"):format(finding.ok and "ok " or "NO ", finding.name)
        if finding.cause then
          lines[#lines + 1] = "       cause: " .. finding.cause
          lines[#lines + 1] = "       fix:   " .. finding.fix
        end
      end
      return table.concat(lines, "\n")
    end,
  })
  local function add(name, ok, cause, fix)
    report[#report + 1] = { name = name, ok = ok, cause = cause, fix = fix }
  end
  local major, minor = M.machine.kernel()
  add(("kernel %d.%d (5.14 or later)"):format(major, minor), not kernel_before(5, 14),
    kernel_before(5, 14) and OLD_KERNEL.cause or nil, OLD_KERNEL.fix)
  local box, message, _, detail = create()
  report.ok = box ~= nil
  local isolation = box and box:info().isolation
  local how = box and (" (isolation = %q)"):format(isolation) or ""
  add("a local sandbox" .. how, report.ok, not box and (detail.cause or message) or nil,
    not box and (detail.fix or "") or nil)
  if box then
    local result
    result, message = box:exec({ "/bin/true" })
    add("a program in it", result ~= nil and result.ok, not result and message or nil, "")
    box:close()
    examine_launchers(create, isolation, add)
    for _, row in ipairs(GROUPED) do
      local by, cause, fix = try_limit(create, row[1], row[2])
      add(("limits.%s of a sandbox%s"):format(row[1], by and ", by " .. by or ""), by ~= nil, cause, fix)
    end
  end
  local json = pcall(require, "cjson")
  add("lua-cjson (for CodeResult.value and remote providers)", json,
    not json and "the module cjson is not found" or nil, "apt install lua-cjson")
  return report
end

return M
