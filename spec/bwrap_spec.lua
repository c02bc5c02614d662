-- The second launcher: chosen where the helper may make no user namespaces and bwrap may, never where
-- it may; what it cannot give is refused. What its sandboxes hold is in the other specs, which run
-- with it as well: MOONSAND_TEST_ISOLATION=bwrap.

local core = require "moonsand.core"
local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local launch = require "moonsand.providers.local.launch"
local provider = require "moonsand.providers.local"
local support = require "support.init"

local native = support.native()
local errno = core.errno
local root = native.getuid() == 0

describe("bwrap:", function()
  local bwrap, isolation = launch.bwrap, provider.isolation

  helper.deadline(60)

  before_each(function()
    provider.isolation = nil
  end)

  after_each(function()
    launch.bwrap, provider.isolation = bwrap, isolation
  end)

  helper.no_leaks()

  local function refused(opts, code)
    local box, message, got, detail = moonsand.create(opts)
    if box then
      box:close()
    end
    assert.is_nil(box)
    assert.equal(code, got, message)
    assert.is_string(detail.cause)
    assert.is_string(detail.fix)
    return detail, message
  end

  --- A program in the place of bwrap.
  local function script(name, text)
    local path = support.write(support.directory() .. "/" .. name, "#!/bin/sh\n" .. text .. "\n")
    support.run("chmod 755 " .. path)
    launch.bwrap = path
  end

  -- ------------------------------------------------------------------ choosing

  describe("isolation", function()
    it("is native where that works, also when there is a bwrap", function()
      moonsand.with({}, function(box)
        assert.equal("native", box:info().isolation)
      end)
      moonsand.with({ isolation = "native" }, function(box)
        assert.equal("native", box:info().isolation)
      end)
    end)

    it("is bwrap when that is asked for", function()
      moonsand.with({ isolation = "bwrap" }, function(box)
        assert.equal("bwrap", box:info().isolation)
        assert.equal("1000\n", moonsand.assert(box:exec "id -u").stdout)
        local parent = support.process(support.process(box:info().pid).ppid)
        assert.equal("bwrap", parent.name)
      end)
    end)

    it("is one of the two", function()
      local box, message, code = moonsand.create { isolation = "docker" }
      assert.is_nil(box)
      assert.equal("invalid", code, message)
    end)

    --- What a child says whose system call fails: see spec/support/deny.c.
    local function denied(call, code)
      local text, status = support.child("require('moonsand.providers.local').isolation = nil; " .. code,
        ("%s %s %d"):format(support.program "deny", call, errno.EPERM))
      assert.equal(0, status, text)
      return text
    end

    it("is bwrap by itself where only that may make user namespaces", function()
      local text = denied("own-userns", [[
        local moonsand = require "moonsand"
        for _ = 1, 3 do
          moonsand.with({ limits = { processes = 50 } }, function(box)
            print(box:info().isolation, box:exec("echo works").stdout)
          end)
        end
        print(moonsand.create { isolation = "native" })
        local report = moonsand.doctor()
        print(report.ok)
        print(report)]])
      assert.truthy(text:find(("bwrap\tworks\n\n"):rep(3) .. "nil\tno sandbox can be made here: ", 1, true), text)
      assert.truthy(text:find('\ntrue\nok   kernel', 1, true), text)
      assert.truthy(text:find('\nok   a local sandbox (isolation = "bwrap")\n', 1, true), text)
      assert.truthy(text:find('\nNO   a sandbox with isolation = "native"\n       cause: ', 1, true), text)
    end)

    it("is not bwrap for a limit that it cannot hold", function()
      local text = denied("own-userns", [[
        local box, message, code, detail = require "moonsand".create { limits = { inodes = 1000 } }
        print(box, code, detail.cause)
        print(require "moonsand".create { limits = { inodes = 1000 }, allow_unenforced = { "inodes" } })]])
      assert.truthy(text:find "^nil\tunavailable\t[^\n]*; and by bwrap: bwrap sets no number", text)
      assert.truthy(text:find "\nmoonsand.Sandbox", text)
    end)

    it("is none where neither may, with both causes", function()
      local text = denied("userns", [[
        local box, message, code, detail = require "moonsand".create()
        print(box, code, detail.stage)
        print(detail.cause)
        print(require "moonsand".doctor().ok)]])
      assert.truthy(text:find "^nil\tunavailable\tclone\n[^\n]+; and by bwrap: [^\n]+\nfalse\n$", text)
    end)

    it("is none where the helper may not and there is no bwrap", function()
      local text = denied("own-userns", [[
        require("moonsand.providers.local.launch").bwrap = "/nonexistent/bwrap"
        local box, message, code, detail = require "moonsand".create()
        print(box, code, detail.cause, detail.fix)]])
      assert.truthy(text:find "^nil\tunavailable\t[^\n]+; and by bwrap: there is no bwrap\t[^\n]+"
        .. "apt install bubblewrap", text)
    end)
  end)

  -- ------------------------------------------------------------------ programs in its place

  describe("a bwrap", function()
    it("that is missing", function()
      launch.bwrap = "/nonexistent/bwrap"
      local detail = refused({ isolation = "bwrap" }, "unavailable")
      assert.equal("there is no bwrap", detail.cause)
      assert.truthy(detail.fix:find "apt install bubblewrap")
    end)

    it("that is missing is no fault where it is not needed", function()
      local text = support.child [[
        require("moonsand.providers.local").isolation = nil
        require("moonsand.providers.local.launch").bwrap = "/nonexistent/bwrap"
        print(require "moonsand".doctor())]]
      assert.truthy(text:find('ok   a local sandbox (isolation = "native")', 1, true), text)
      assert.is_nil(text:find "bwrap", text)
    end)

    it("that is setuid is not used", function()
      local path = support.directory() .. "/setuid"
      support.run(("cp %s %s; chmod 4755 %s"):format(bwrap, path, path))
      launch.bwrap = path
      assert.truthy(refused({ isolation = "bwrap" }, "unavailable").cause:find "setuid")
    end)

    it("that is too old is told so", function()
      script("old", "echo 'bwrap: Unknown option --disable-userns' >&2; exit 1")
      assert.truthy(refused({ isolation = "bwrap" }, "unavailable").cause:find "older than 0.8")
    end)

    it("that may make no namespaces is understood", function()
      for words, cause in pairs {
        ["Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)"] =
          "user.max_user_namespaces",
        ["No permissions to create new namespace, likely because …"] = "namespaces",
        ["Can't mount proc on /newroot/proc: Operation not permitted"] = "/proc is partly masked",
      } do
        script("understood", ("echo \"bwrap: %s\" >&2; exit 1"):format(words))
        local detail = refused({ isolation = "bwrap" }, "unavailable")
        assert.truthy(detail.cause:find(cause, 1, true), detail.cause)
      end
    end)

    it("is quoted when it fails, within bounds, its bytes harmless", function()
      script("fails", [[printf 'bwrap: \033[31mno\n' >&2; exit 1]])
      assert.equal("bwrap could not make it: ?[31mno", refused({ isolation = "bwrap" }, "unavailable").cause)
      script("floods", "exec head -c 100000 /dev/zero >&2")
      assert.is_true(#refused({ isolation = "bwrap" }, "unavailable").cause < 300)
      script("silent", "exit 0")
      refused({ isolation = "bwrap" }, "unavailable")
    end)

    it("that hangs is not waited for", function()
      script("hangs", "exec sleep 1000")
      local box, _, code = moonsand.create { isolation = "bwrap", timeout = 0.2 }
      assert.is_nil(box)
      assert.equal("timeout", code)
    end)

    -- What the agent finds missing: words that are not passed on.
    local lies = {
      { "a user namespace", "--unshare-user --uid --gid 1000 --disable-userns --assert-userns-disabled" },
      { "a pid namespace", "--unshare-pid --as-pid-1" },
      { "an ipc namespace", "--unshare-ipc" },
      { "a uts namespace", "--unshare-uts --hostname sandbox" },
      { "a cgroup namespace", "--unshare-cgroup" },
      { "a network namespace", "--unshare-net" },
      { "a session", "--new-session" },
      { "a first process", "--as-pid-1" },
      { "another user", "--uid --gid 1000" },
      { "a read-only /dev", "--remount-ro" },
    }
    for _, lie in ipairs(lies) do
      it("that does not give " .. lie[1] .. " makes no sandbox", function()
        script("lies", ([[
          for word in "$@"; do
            shift
            case " %s " in *" $word "*) continue ;; esac
            [ "$word" != /dev ] || [ "$last" != --remount-ro ] || continue
            last=$word
            set -- "$@" "$word"
          done
          exec %s "$@"]]):format(lie[2], bwrap))
        local detail = refused({ isolation = "bwrap" }, "unavailable")
        assert.truthy(detail.cause:find "^bwrap could not make it: ", detail.cause)
      end)
    end

    it("that only starts the agent makes no sandbox", function()
      script("nothing", [[while [ "$1" != -- ]; do shift; done; shift; exec "$@"]])
      local detail = refused({ isolation = "bwrap" }, "unavailable")
      assert.truthy(detail.cause:find "bwrap could not make it: it ", detail.cause)
    end)
  end)

  -- ------------------------------------------------------------------ what it cannot give

  describe("what it cannot give is refused:", function()
    local dir

    before_each(function()
      dir = support.run "mktemp -d":gsub("%s+$", "")
      support.run(("mkdir %s/sub; echo x >%s/file; chmod 755 %s"):format(dir, dir, dir))
    end)

    after_each(function()
      support.run("rm -rf " .. dir)
    end)

    local function unsupported(opts, pattern)
      opts.isolation = "bwrap"
      local detail, message = refused(opts, "unsupported")
      assert.truthy(detail.cause:find(pattern), message)
      assert.is_false(detail.started)
    end

    it("a number of files", function()
      assert.truthy(refused({ isolation = "bwrap", limits = { inodes = 500 } }, "unavailable").cause
        :find "no number of files")
      moonsand.with({ isolation = "bwrap" }, function(box)
        assert.is_false(box:can "limits.inodes")
        assert.is_false(box:can "root")
        assert.equal("native", box:can "limits.disk")
        assert.equal("none", box:info().limits.inodes.by)
        assert.equal("tmpfs", box:info().limits.disk.by)
      end)
    end)

    it("another root, and copies of directories", function()
      unsupported({ root = dir }, "overlay")
      unsupported({ mounts = { { source = dir, target = "/data", mode = "copy" } } }, "overlay")
    end)

    it("mounts below others", function()
      if root then
        support.run("chown -R 65534:65534 " .. dir)
      end
      for _, mode in ipairs { "ro", "rw" } do
        unsupported({ workspace = dir, mounts = {
          { source = dir .. "/sub", target = "/workspace/missing", mode = mode } } }, "below that of workspace")
      end
      assert.equal("file\nsub\n", (support.run("ls -A " .. dir)))
    end)

    it("files of others than the sandboxes' user", function()
      if not root then
        moonsand.with({ isolation = "bwrap", workspace = dir }, function(box)
          assert.equal("file\nsub\n", moonsand.assert(box:exec "ls; touch made").stdout)
        end)
        assert.equal("file\nmade\nsub\n", (support.run("ls -A " .. dir)))
        return
      end
      unsupported({ workspace = dir }, "owner")
      support.run("chown -R 65534:65534 " .. dir)
      moonsand.with({ isolation = "bwrap", workspace = dir }, function(box)
        assert.equal("file\nsub\n", moonsand.assert(box:exec "ls; touch made").stdout)
      end)
      assert.equal("65534\n", (support.run("stat -c %u " .. dir .. "/made")))
    end)
  end)

  -- ------------------------------------------------------------------ the other way out

  it("the AppArmor profile is installed for the helper where it will be", function()
    local root_directory = support.directory() .. "/installed"
    local output, status = support.run(("make -s install-profile APPARMOR=yes DESTDIR=%s PREFIX=/opt/m"):format(
      root_directory))
    assert.equal(0, status, output)
    local text = support.read(root_directory .. "/etc/apparmor.d/moonsand")
    assert.truthy(text:find('\n@{moonsand_agent} = ?"/opt/m/lib/lua/5%.[14]/moonsand/agent"'), text)
    assert.truthy(text:find("\nprofile moonsand%-agent @{moonsand_agent} .*\n  userns,\n"), text)
    support.run(("make -s install-profile APPARMOR=no DESTDIR=%s/none"):format(root_directory))
    assert.is_false(support.exists(root_directory .. "/none"))
  end)

  -- ------------------------------------------------------------------ lives and deaths

  describe("a sandbox below it", function()
    it("has a proof of its end, and takes its bwrap along", function()
      local box = moonsand.assert(moonsand.create { isolation = "bwrap" })
      local pid = box:info().pid
      local parent = support.process(pid).ppid
      moonsand.assert(box:start "sleep 1000")
      assert.is_true(box:destroy())
      local left = support.process(pid)
      assert.is_true(left == nil or left.state == "Z")
      support.eventually(20, "bwrap stays", function()
        return support.process(parent) == nil
      end)
    end)

    it("is noticed to be gone when it is killed from outside", function()
      local box = moonsand.assert(moonsand.create { isolation = "bwrap" })
      native.kill(box:info().pid, 9)
      support.eventually(20, "it is not noticed", function()
        loop.step(0)
        return box.core.driver:state() == "gone"
      end)
      box:close()
    end)

    it("ends with its host, also when that is killed", function()
      local text = support.child [[
        local support = require "support.init"
        local box = assert(require "moonsand".create { isolation = "bwrap" })
        box:exec "setsid sleep 1000 & true"
        local pid = box:info().pid
        io.write(pid, " ", support.process(pid).ppid, "\n")
        io.stdout:flush()
        support.native().kill(support.native().getpid(), 9)]]
      local pid, parent = text:match "(%d+) (%d+)"
      support.eventually(20, "it lives on: " .. text, function()
        return support.process(pid) == nil and support.process(parent) == nil
      end)
    end)

    it("is held by the same limits", function()
      -- in a process of its own: what keeps control groups stays until its end
      local text, status = support.child [[
        local moonsand = require "moonsand"
        for _, launcher in ipairs { "native", "bwrap" } do
          -- memory: where this machine has control groups, they hold the processes, too
          moonsand.with({ isolation = launcher, limits = { memory = "64M", processes = 20 },
            allow_unenforced = { "memory" } }, function(box)
            local result = assert(box:exec "n=1; while sleep 100 & do n=$((n+1)); echo $n; done 2>/dev/null")
            local held = box:info().limits
            print(held.memory.by, held.processes.by, result.stdout:match "(%d+)%s*$")
          end)
        end]]
      assert.equal(0, status, text)
      local native_line, bwrap_line, rest = text:match "^(.-)\n(.-)\n(.*)$"
      assert.equal(native_line, bwrap_line)
      assert.truthy(native_line:find "%d+$", text)
      assert.equal("", rest)
    end)

    it("lives on without its host when it is let go of", function()
      local prefix = "env XDG_RUNTIME_DIR=" .. support.directory()
      local text, status = support.child([[
        local moonsand = require "moonsand"
        local box = assert(moonsand.create { isolation = "bwrap", name = "below-bwrap" })
        assert(box:exec "echo kept >file")
        assert(box:detach { lifetime = 60 })]], prefix)
      assert.equal(0, status, text)
      text, status = support.child([[
        local box = assert(require "moonsand".connect "below-bwrap")
        io.write(box:info().isolation, " ", assert(box:exec "cat file").stdout)
        assert(box:destroy(5))
        io.write(#require "moonsand".list())]], prefix)
      assert.equal(0, status, text)
      assert.equal("bwrap kept\n0", text)
    end)

    it("leaves nothing, however early its host is killed, or gives up and ends", function()
      for i = 1, 30 do
        local mark = ("ms-early-%d-%d"):format(native.getpid(), i)
        local command = support.command(([[
          require "moonsand".create { isolation = "bwrap", hostname = %q, timeout = %f }]]):format(mark,
            i % 2 == 0 and 10 or i / 2000))
        support.run(i % 2 == 0 and ("timeout -s KILL 0.%03d %s"):format(i * 2, command) or command)
        support.eventually(20, "a bwrap lives on", function()
          return not support.run("grep -slz " .. mark:gsub("early", "[e]arly") .. " /proc/[0-9]*/cmdline"):find "%d"
        end)
      end
    end)

    it("can be made fifty at a time", function()
      local boxes = {}
      for i = 1, 50 do
        boxes[i] = moonsand.assert(moonsand.create { isolation = "bwrap" })
      end
      for _, box in ipairs(boxes) do
        assert.is_true(moonsand.assert(box:exec { "true" }).ok)
        box:close()
      end
    end)
  end)
end)
