-- System calls that the filter refuses, each called: by its own number and through the back doors.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

describe("system calls", function()
  helper.deadline(30)
  helper.no_leaks()

  local refused = {} -- how each is answered

  local function rows(answer, names)
    for name in names:gmatch "[^,]+" do
      refused[name:match "^%s*(.-)%s*$"] = answer
    end
  end

  rows("EPERM", [[mount, umount2, pivot_root, chroot, unshare, setns, keyctl, add_key, request_key,
    bpf, init_module, finit_module, delete_module, kexec_load, reboot, swapon, swapoff, syslog, acct,
    quotactl, quotactl_fd, sethostname, setdomainname, vhangup, open_by_handle_at,
    name_to_handle_at, settimeofday, clock_settime, adjtimex, clock_adjtime, ptrace,
    perf_event_open, userfaultfd, fanotify_init, fanotify_mark, mbind, set_mempolicy,
    set_mempolicy_home_node, migrate_pages, move_pages, lsm_set_self_attr,
    personality no randomize, personality read implies exec, mknod]])
  rows("ENOSYS", [[open_tree, open_tree_attr, move_mount, fsopen, fsconfig, fsmount, fspick,
    mount_setattr, clone3, listns, io_uring_setup, io_uring_enter, io_uring_register, io_setup,
    memfd_secret, process_madvise, a call of the future, a call of the far future]])
  rows("EPERM", [[PR_SET_MM, PR_SET_SECUREBITS, PR_CAP_AMBIENT, setgroups]])
  rows("EINVAL|EPERM", "PR_SET_DUMPABLE suid, setuid 0, setgid 0, chown root")
  rows("OK", "personality ask")
  for name in ("mnt cgroup uts ipc user pid net user+mnt user+net"):gmatch "%S+" do
    rows("EPERM", "unshare " .. name)
    rows("EPERM", "clone " .. name)
  end
  rows("EPERM", "unshare time, unshare with high bits")
  if support.run "uname -m":find "x86_64" then
    for name in ("getpid mount ptrace keyctl ioctl setrlimit"):gmatch "%S+" do
      rows("ENOSYS", "x32 " .. name)
    end
    -- a kernel without the entry answers by a signal
    for name in ("getpid open mount ptrace socketcall setrlimit unshare fork"):gmatch "%S+" do
      rows("ENOSYS|SIGSEGV", "i386 " .. name)
    end
  end

  local function answers(opts)
    local box = moonsand.assert(moonsand.create(opts))
    local given = support.answers(support.try(box, "kernel"))
    box:close()
    return given
  end

  it("that reach the machine or other processes are refused", function()
    support.refused(answers(), refused)
  end)

  it("can be given back by name, and only those that were named", function()
    local given = answers { seccomp = { allow = { "debug", "userfaultfd" } } }
    local expected = {}
    for name, answer in pairs(refused) do
      expected[name] = answer
    end
    -- from here on the kernel's own answers, to nonsense
    expected.ptrace = "OK|EPERM|EIO"
    expected.userfaultfd = "EINVAL|EPERM|OK"
    expected["personality no randomize"] = "OK"
    expected["personality read implies exec"] = "OK"
    support.refused(given, expected)
  end)

  it("give nothing away in a sweep of requests to devices, flags of namespaces, options of prctl", function()
    local host = support.read "/proc/self/mountinfo" .. support.run "stty -a </dev/null; uname -n"
    local box = moonsand.assert(moonsand.create())
    assert.equal("done\n", support.try(box, "sweep").stdout)
    assert.equal("fine\n", moonsand.assert(box:exec "echo fine").stdout)
    box:close()
    assert.equal(host, support.read "/proc/self/mountinfo" .. support.run "stty -a </dev/null; uname -n")
  end)

  it("that open the sandbox are not given back", function()
    for _, name in ipairs { "mount", "unshare", "keyctl", "bpf", "io_uring_setup", "prlimit64",
      "setrlimit", "socket", "ioctl", "clone", "clone3", "nonsense", "", "open_tree" } do
      local box, message, code, detail = moonsand.create { seccomp = { allow = { name } } }
      if box then
        box:close()
      end
      assert.is_nil(box, name)
      assert.truthy(message)
      assert.is_true(code == "unavailable" or code == "invalid", name .. ": " .. tostring(code))
      assert.truthy(detail.fix or code == "invalid")
    end
  end)

  it("holds for every program, and for what it starts", function()
    local box = moonsand.assert(moonsand.create())
    local text = moonsand.assert(box:exec [[
      for p in self 1; do grep -E '^(Seccomp|NoNewPrivs|Cap)' /proc/$p/status; done
      sh -c 'setsid sh -c "grep ^Seccomp: /proc/self/status"']]).stdout
    box:close()
    for field, value in text:gmatch "([%w]+):%s+(%x+)" do
      if field == "Seccomp" then
        assert.equal("2", value)
      elseif field:find "^Cap" then
        assert.equal("0000000000000000", value, field)
      elseif field == "NoNewPrivs" then
        assert.equal("1", value)
      end
    end
  end)

  it("does not run what is set uid or has file capabilities with more rights", function()
    local box = moonsand.assert(moonsand.create())
    local text = moonsand.assert(box:exec [[
      for p in su passwd newgrp mount ping; do
        f=$(command -v $p) || continue
        test -u "$f" || continue
        "$f" --version >/dev/null 2>&1
      done
      id -u; grep CapEff /proc/self/status]]).stdout
    box:close()
    assert.equal("1000\nCapEff:\t0000000000000000\n", text)
  end)
end)
