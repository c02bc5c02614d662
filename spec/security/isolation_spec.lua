-- What a sandbox can see of the host: files, variables, descriptors, keys, the agent. Each attack is
-- tried from inside; where the host can tell what really happened, it is asked too.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()

describe("isolation", function()
  local box

  helper.deadline(30)
  helper.no_leaks(function()
    box:close()
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  local function output(command, opts)
    return moonsand.assert(box:exec(command, opts)).stdout
  end

  describe("files", function()
    it("shows nothing of the host's home, configuration, state and sockets", function()
      local text = output [[
        for path in /root /home /boot /mnt /media /opt /srv /sys /var/lib /var/log /var/spool \
          /etc/shadow /etc/gshadow /etc/sudoers /etc/ssh /etc/ssl/private /etc/hostname \
          /etc/machine-id /etc/resolv.conf /etc/fstab /etc/crontab /etc/pam.d /run/systemd \
          /run/dbus /run/user /run/docker.sock /var/run/docker.sock /dev/mem /dev/kmsg /dev/kvm \
          /dev/fuse /dev/vda /dev/sda /dev/net /dev/vsock /dev/vhost-vsock /dev/input /dev/mqueue; do
          test ! -e $path || echo "$path is there"
        done]]
      assert.equal("", text)
    end)

    it("has an empty workspace, /tmp, /run and /dev/shm of its own", function()
      local marker = support.write(os.tmpname(), "host")
      local text = output("ls -A /workspace /tmp /run /dev/shm /var/tmp")
      os.remove(marker)
      assert.equal("/dev/shm:\n\n/run:\n\n/tmp:\n\n/var/tmp:\n\n/workspace:\n", text)
    end)

    it("does not read a file of the host by any name", function()
      local path = support.write(support.directory() .. "/secret", "the secret of the host")
      local fd = native.leak(path)
      local text = output({ "sh", "-c", [[
        for name in "$0" "/proc/1/root$0" "/proc/1/cwd/$0" "/proc/self/root$0" \
          "/proc/self/cwd/../../../..$0" "/proc/2/root$0" "/dev/fd/]] .. fd .. [[" \
          "/proc/self/fd/]] .. fd .. [[" "/usr/../..$0" "/usr/../../../../..$0"; do
          cat "$name" 2>/dev/null
        done
        find / -xdev -name secret 2>/dev/null]], path })
      native.close(fd)
      assert.equal("", text)
    end)

    it("writes nothing below /usr, and nothing into what came from /etc", function()
      local text = output [[
        exec 2>/dev/null
        for path in /usr/x /usr/bin/x /bin/x /lib/x /usr/local/x /etc/alternatives/x \
          /etc/ssl/certs/x; do
          touch $path && echo "made $path"
        done
        for path in /usr/bin/env /etc/ld.so.cache /etc/services /etc/localtime; do
          test -e $path || continue
          echo x >>$path && echo "wrote $path"
          rm -f $path && test ! -e $path && test ! -L $path && echo "removed $path"
          chmod 777 $path && echo "changed $path"
        done
        true]]
      -- its own link, not what it leads to
      assert.equal("", (text:gsub("removed /etc/localtime\n", ""):gsub("changed /etc/localtime\n", "")))
      assert.is_nil(native.list("/usr/bin/x"))
      assert.is_false(support.exists "/usr/x")
    end)

    it("makes no devices and runs no setuid programs as somebody else", function()
      local text = output [[
        exec 2>/dev/null
        mknod /tmp/null c 1 3 && echo "made a device"
        cp /bin/sh /tmp/s && chmod 4755 /tmp/s && /tmp/s -p -c 'id -u'
        for program in /usr/bin/su /usr/bin/passwd /usr/bin/mount /usr/bin/newgrp; do
          test -u $program && echo "$(stat -c %U $program)"
        done | sort -u
        grep NoNewPrivs /proc/self/status]]
      text = text:gsub("^1000\n", ""):gsub("nobody\n", "")
      assert.equal("NoNewPrivs:\t1\n", text)
    end)
  end)

  describe("variables", function()
    it("shows none of the host's, in no process", function()
      native.setenv("MS_SPEC_SECRET", "the secret variable")
      local text = output { "sh", "-c", "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; env" }
      assert.is_nil(text:find("secret", 1, true))
      assert.is_nil(text:find("LUA_PATH", 1, true))
    end)

    it("has those of the manual, and no others", function()
      local names = {}
      for name in output({ "env" }):gmatch "([^\n=]+)=[^\n]*\n" do
        names[#names + 1] = name
      end
      table.sort(names)
      assert.same({ "HOME", "LANG", "PATH", "TERM", "TMPDIR", "USER" }, names)
    end)
  end)

  describe("descriptors", function()
    it("passes none but 0, 1 and 2, whatever the host has open", function()
      local leaked = {}
      for i = 1, 40 do
        leaked[i] = native.leak(support.directory() .. "/leak")
      end
      local other = moonsand.assert(moonsand.create())
      local text = other:exec({ "sh", "-c", "ls /proc/$$/fd" }).stdout
      local mine = output { "sh", "-c", "ls /proc/$$/fd" }
      for _, fd in ipairs(leaked) do
        native.close(fd)
      end
      other:close()
      assert.equal("0\n1\n2\n", text)
      assert.equal("0\n1\n2\n", mine)
    end)

    it("passes none when the zygote is started by a host with open files", function()
      local output_, status = support.child [[
        local support = require "support.init"
        local native = support.native()
        for i = 1, 200 do native.leak(support.directory() .. "/leak") end
        local box = assert(require "moonsand".create())
        io.write(box:exec({ "sh", "-c", "ls /proc/$$/fd" }).stdout)
        local agent, zygote = support.agent(box)
        for _, pid in ipairs { agent, zygote } do
          local count, targets = support.fds(pid) -- an ordinary user may not see the agent's
          assert((count or 0) < 12, count)
          for fd, target in pairs(targets or {}) do
            assert(not target:find("leak", 1, true), fd .. " -> " .. target)
          end
        end
      ]]
      assert.equal(0, status, output_)
      assert.equal("0\n1\n2\n", output_)
    end)

    it("has pipes, so that /dev/stdout can be opened again", function()
      assert.equal("x\n", output { "sh", "-c", "echo x >/dev/stdout; test ! -t 0 && test ! -t 1" })
    end)
  end)

  describe("keys", function()
    it("does not reach the host's session keyring", function()
      -- in a process of its own: the keyring is the whole process's
      local text, status = support.child [[
        local support = require "support.init"
        local serial, errno = support.native().keyring("moonsand-spec", "the key of the host")
        if not serial then print("no keys here", errno) os.exit(0) end
        local box = assert(require "moonsand".create())
        local answers = support.answers(support.try(box, "keys", { serial, "moonsand-spec" }))
        for name, word in pairs(answers) do print(name, word) end
        print("listed", box:exec("cat /proc/keys /proc/key-users 2>/dev/null")
          .stdout:find("moonsand", 1, true))
      ]]
      assert.equal(0, status, text)
      if not text:find "no keys here" then
        assert.is_nil(text:find "OK", text)
        assert.truthy(text:find "search%s+EPERM", text)
        assert.truthy(text:find "listed%s+nil")
      end
    end)
  end)

  describe("the agent", function()
    it("is not read, stopped, limited, slowed or ended from inside", function()
      local agent = support.agent(box)
      local before = support.status(agent, "SigBlk")
      local answers = support.answers(support.try(box, "agent"))
      support.refused(answers, {
        ["ptrace attach"] = "EPERM", ["ptrace seize"] = "EPERM",
        ["process_vm_readv"] = "EPERM", ["process_vm_writev"] = "EPERM",
        ["pidfd_getfd"] = "EPERM", ["kcmp"] = "EPERM",
        ["/proc/1/mem"] = "EACCES", ["/proc/1/environ"] = "EACCES", ["/proc/1/maps"] = "EACCES",
        ["/proc/1/auxv"] = "EACCES", ["/proc/1/syscall"] = "EACCES|ENOENT",
        ["/proc/1/stack"] = "EACCES|ENOENT", ["/proc/1/fd"] = "EACCES",
        ["/proc/1/fdinfo"] = "EACCES", ["/proc/1/map_files"] = "EACCES|ENOENT",
        ["/proc/1/root"] = "EACCES", ["/proc/1/cwd"] = "EACCES", ["/proc/1/exe"] = "EACCES",
        ["/proc/1/ns/mnt"] = "EACCES", ["through /proc/1/root"] = "EACCES",
        ["write oom_score_adj"] = "EACCES", ["write comm"] = "EACCES",
        ["write uid_map"] = "EACCES", ["write clear_refs"] = "EACCES|ENOENT",
        ["prlimit get"] = "EPERM", ["prlimit set"] = "EPERM", ["prlimit cpu"] = "EPERM",
        ["setpriority process"] = "EPERM", ["setpriority group"] = "EPERM",
        ["setpriority user"] = "EPERM", ["setpriority own user"] = "EPERM",
        ["ioprio_set"] = "EPERM", ["ioprio_set user"] = "EPERM",
        ["sched_setscheduler"] = "EPERM", ["sched_setparam"] = "EPERM",
        ["sched_setaffinity"] = "EPERM", ["setpgid"] = "EPERM|ESRCH",
        -- said to be sent; the init of a namespace gets none from inside
        ["pidfd_send_signal KILL"] = "OK", ["pidfd_send_signal STOP"] = "OK",
      })
      support.await_rest(agent)
      assert.equal("0", support.status(agent, "TracerPid"))
      assert.equal(before, support.status(agent, "SigBlk"))
      assert.equal("0000000000000000", support.status(agent, "SigPnd"))
      assert.equal("ready", box.core.driver:state())
    end)

    it("is non-dumpable: even its own user outside does not read it", function()
      local agent = support.agent(box)
      local names = native.list("/proc/" .. agent .. "/fd")
      if native.getuid() == 0 then
        -- root reads everything: the owner of the files tells
        local owner = support.run("stat -c %u /proc/" .. agent .. "/environ"):gsub("%s", "")
        assert.equal("0", owner)
      else
        assert.is_nil(names)
        assert.is_nil((support.read("/proc/" .. agent .. "/environ")))
      end
    end)

    it("works for two sandboxes that do not see each other", function()
      local other = moonsand.assert(moonsand.create())
      local sleeper = moonsand.assert(other:start { "sleep", "1000" })
      moonsand.assert(other:exec "echo mine >/workspace/file; echo mine >/tmp/file; echo mine >/dev/shm/f")
      assert.equal("", output "cat /workspace/file /tmp/file /dev/shm/f 2>/dev/null; pgrep sleep; true")
      assert.equal("", output("kill -9 " .. sleeper.pid .. " 2>/dev/null; kill -9 -1 2>/dev/null; true"))
      assert.is_true(sleeper:is_running())
      other:close()
    end)
  end)

  describe("mounts", function()
    it("tell no path of the host but what is mounted", function()
      local text = output "cat /proc/self/mountinfo /proc/self/mounts"
      local directory = support.run "pwd":gsub("%s+$", "")
      for _, word in ipairs { directory, support.directory(), os.getenv "HOME" or "/root", "/old",
        "upperdir", "lowerdir", "/run", "/home" } do
        if word ~= "/" then
          assert.is_nil(text:find(word, 1, true), word)
        end
      end
    end)

    it("are read-only where they are the host's, and nosuid and nodev everywhere", function()
      for line in output("cat /proc/self/mounts"):gmatch "[^\n]+" do
        local device, path, kind, flags = line:match "^(%S+) (%S+) (%S+) (%S+)"
        flags = "," .. flags .. ","
        assert.truthy(flags:find(",nosuid,", 1, true), line)
        local is_device = kind:find "^devtmpfs$" or kind == "tmpfs" and path:find "^/dev/%l+$"
        if path ~= "/dev/pts" and not is_device then
          assert.truthy(flags:find(",nodev,", 1, true), line)
        end
        if not is_device and kind ~= "tmpfs" and kind ~= "proc" and kind ~= "devpts" then
          assert.truthy(flags:find("^,ro,"), line)
        end
        if path == "/" then
          assert.equal("tmpfs", kind, device)
        end
      end
    end)

    it("of the host do not change", function()
      local before = support.read "/proc/self/mountinfo"
      local other = moonsand.assert(moonsand.create())
      other:exec "true"
      assert.equal(before, support.read "/proc/self/mountinfo")
      other:destroy(5)
      assert.equal(before, support.read "/proc/self/mountinfo")
    end)
  end)

  describe("/proc", function()
    it("changes nothing of the machine", function()
      local pattern = support.read "/proc/sys/kernel/core_pattern"
      local text = output [[
        exec 2>/dev/null
        for file in sys/kernel/core_pattern sys/kernel/modprobe sys/kernel/hotplug \
          sys/kernel/hostname sys/kernel/domainname sys/kernel/randomize_va_space \
          sys/kernel/panic sys/kernel/sysrq sys/kernel/shmmax sys/kernel/msgmax sys/kernel/sem \
          sys/kernel/ns_last_pid sys/kernel/cad_pid sys/vm/drop_caches sys/vm/overcommit_memory \
          sys/fs/suid_dumpable sys/fs/binfmt_misc/register sys/fs/mqueue/queues_max \
          sys/net/ipv4/ip_forward sys/net/ipv4/ip_unprivileged_port_start \
          sys/user/max_user_namespaces sys/user/max_inotify_watches sys/user/max_mnt_namespaces \
          sysrq-trigger irq/default_smp_affinity mtrr acpi/wakeup scsi/scsi timer_list \
          kcore kpagecount bus/pci/00/00.0 self/uid_map self/gid_map self/setgroups \
          self/projid_map; do
          test -e /proc/$file || continue
          old=$(head -c 4096 /proc/$file | tr -d '\0')
          (printf %s "${old:-1}" >/proc/$file) && echo "wrote $file"
        done
        true]]
      assert.equal("", text)
      assert.equal(pattern, support.read "/proc/sys/kernel/core_pattern")
    end)

    it("shows the sandbox's processes only", function()
      local text = output "ls /proc | grep '^[0-9]' | tr '\\n' ' '; cat /proc/1/comm"
      local pids = text:match "^[%d ]*"
      local count = select(2, pids:gsub("%d+", ""))
      assert.is_true(count <= 6, text)
      assert.truthy(text:find "moonsand\n$")
    end)

    it("gives no kernel addresses and no kernel memory", function()
      local text = output [[
        exec 2>/dev/null
        cut -c1-16 /proc/kallsyms | grep -v '^0*$' | head -1
        head -c 1 /proc/kcore | wc -c | grep -v '^0$'
        head -c 1 /proc/kmsg; dmesg | head -1
        head -c 8 /proc/self/pagemap | od -An -tx1 | grep -q 'ff ff' && echo pagemap
        true]]
      assert.equal("", text)
    end)
  end)
end)
