-- What goes wrong outside of programs: machines that refuse, helpers that are missing, lie, die or
-- hang; hosts without room; hosts that are killed. Nothing of it may crash the host, make it wait
-- for ever, or leave something behind.

local core = require "moonsand.core"
local doctor = require "moonsand.doctor"
local helper = require "helper"
local launch = require "moonsand.providers.local.launch"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()
local errno = core.errno
local KILL, CONT = 9, 18

--- The zygotes of this process: all its children are.
local function zygotes()
  local found = {}
  for _, process in ipairs(support.children(native.getpid())) do
    if process.state ~= "Z" then
      found[#found + 1] = process
    end
  end
  return found
end

local function end_zygotes()
  for _, zygote in ipairs(zygotes()) do
    native.kill(zygote.pid, KILL)
  end
  support.eventually(20, "the zygote does not end", function()
    loop.step(0)
    return #zygotes() == 0
  end)
end

local agent = launch.agent

--- The next sandboxes come from another helper.
local function use(path)
  end_zygotes()
  launch.agent = path
end

--- A helper that lies: see spec/support/liar.c.
local function liar(mode)
  local path = support.directory() .. "/liar-" .. mode
  if not support.exists(path) then
    support.run(("cp %s %s"):format(support.program "liar", path))
  end
  use(path)
end

describe("faults:", function()
  helper.deadline(30)

  after_each(function()
    if launch.agent ~= agent then
      use(agent)
    end
  end)

  helper.no_leaks()

  local function assert_works()
    local box = moonsand.assert(moonsand.create())
    assert.equal("fine\n", moonsand.assert(box:exec "echo fine").stdout)
    box:close()
  end

  -- ------------------------------------------------------------------ machines

  describe("a machine that refuses", function()
    local machine = doctor.machine

    after_each(function()
      doctor.machine = machine
    end)

    local function a_machine(fields)
      local fake = {
        apparmor = function() return false end,
        userns_clone_off = function() return false end,
        max_user_namespaces = function() return 65536 end,
        memfd_noexec = function() return false end,
        container = function() return false end,
        kernel = function() return 6, 1 end,
      }
      for name, value in pairs(fields) do
        fake[name] = type(value) == "function" and value or function() return value end
      end
      doctor.machine = fake
    end

    -- stage, errno, the machine -> what the cause and the cure name
    local rows = {
      { "Ubuntu's AppArmor", "uid_map", "EPERM", { apparmor = true },
        "apparmor_restrict_unprivileged_userns", "apparmor_restrict_unprivileged_userns=0" },
      { "Ubuntu's AppArmor, later", "loopback", "EPERM", { apparmor = true },
        "apparmor_restrict_unprivileged_userns", "profile" },
      { "AppArmor at the clone", "clone", "EACCES", { apparmor = true }, "AppArmor", "sysctl" },
      { "an old Debian", "clone", "EPERM", { userns_clone_off = true },
        "unprivileged_userns_clone", "unprivileged_userns_clone=1" },
      { "a limit of none", "clone", "ENOSPC", {}, "max_user_namespaces", "max_user_namespaces=" },
      { "a limit of none, told otherwise", "clone", "EPERM", { max_user_namespaces = 0 },
        "max_user_namespaces", "max_user_namespaces=" },
      { "too many levels", "clone", "EUSERS", {}, "max_user_namespaces", "sysctl" },
      { "a kernel without namespaces", "clone", "EINVAL", {}, "built without", "CONFIG_USER_NS" },
      { "Docker's seccomp", "clone", "EPERM", { container = true }, "container", "seccomp=unconfined" },
      { "a masked /proc", "proc", "EPERM", { container = true }, "/proc", "systempaths=unconfined" },
      { "an old kernel", "open_tree", "ENOSYS", { kernel = function() return 5, 4 end },
        "5%.14", "5%.14" },
      { "an unknown policy", "clone", "EPERM", {}, "policy", "SELinux" },
      { "no programs from memory", "zygote", "ECONNRESET", { memfd_noexec = true }, "memfd_noexec",
        "memfd_noexec=1" },
      { "another version", "version", "EPROTO", {}, "version", "make install" },
      { "no helper", "helper", "ENOENT", {}, "missing", "make" },
      { "a helper that may not run", "helper", "EACCES", {}, "executed", "noexec" },
      { "no room for a helper", "helper", "EAGAIN", {}, "started", "ulimit" },
      { "a control group that it may not go into", "cgroup", "EACCES", {}, "control group", "Delegate=yes" },
      { "something new", "devpts", "EIO", {}, "devpts", "doctor" },
    }
    for _, row in ipairs(rows) do
      it("says why and what to do: " .. row[1], function()
        a_machine(row[4])
        local nothing, message, code, detail = doctor.unavailable(row[2], errno[row[3]] or 87, "/x")
        assert.is_nil(nothing)
        assert.equal("unavailable", code)
        assert.truthy(detail.cause:find(row[5]), detail.cause)
        assert.truthy(detail.fix:find(row[6]), detail.fix)
        assert.truthy(message:find(detail.cause, 1, true))
        assert.is_false(detail.started)
      end)
    end

    -- The real ones need a user namespace of an ordinary user's.
    local ordinary = native.getuid() == 0
      and "setpriv --reuid 65534 --regid 65534 --clear-groups " or ""

    --- What create says in a process that something was taken from.
    local function in_a_child(prefix)
      local text, status = support.child([[
        local box, message, code, detail = require "moonsand".create { timeout = 10 }
        print(box, code, detail and detail.stage)
        print(detail and detail.cause)
        print(detail and detail.fix)
        local report = require "moonsand".doctor()
        print(report.ok, tostring(report):find(detail and detail.cause or "?", 1, true) ~= nil)
      ]], prefix)
      assert.equal(0, status, text)
      return text
    end

    it("by user.max_user_namespaces = 0, really", function()
      local text = in_a_child(ordinary .. "unshare -Ur sh -c "
        .. "'echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"' sh")
      assert.truthy(text:find("^nil%s+unavailable%s+clone"), text)
      assert.truthy(text:find "user%.max_user_namespaces")
      assert.truthy(text:find "false%s+true\n$", text)
    end)

    it("by a masked /proc, really", function()
      local text = in_a_child(ordinary .. "unshare -Urm sh -c "
        .. "'mount -t tmpfs none /proc/bus && exec \"$@\"' sh")
      assert.truthy(text:find "^nil%s+unavailable%s+proc", text)
      assert.truthy(text:find "/proc is partly masked")
      assert.truthy(text:find "systempaths=unconfined")
    end)

    local function denied(call, number)
      return ("%s %s %d"):format(support.program "deny", call, number)
    end

    it("by a seccomp profile, really", function()
      local text = in_a_child(denied("userns", errno.EPERM))
      assert.truthy(text:find "^nil%s+unavailable%s+clone", text)
      text = in_a_child(denied("userns", errno.EINVAL))
      assert.truthy(text:find "built without user namespaces", text)
    end)

    for _, call in ipairs { "open_tree", "mount_setattr", "seccomp", "pivot_root", "capset",
      "sethostname", "pidfd_open" } do
      it("by a kernel without " .. call .. ", really", function()
        local text = in_a_child(denied(call, errno.ENOSYS))
        assert.truthy(text:find "^nil%s+unavailable", text)
        assert.truthy(text:find "Function not implemented" or text:find "could not be started", text)
      end)
    end

    it("makes nothing that is less isolated instead", function()
      local text = support.child([[
        local moonsand = require "moonsand"
        for _ = 1, 3 do assert(not moonsand.create()) end
        print(moonsand.with({}, function() print "ran" end))
      ]], denied("userns", errno.EPERM))
      assert.is_nil(text:find "ran", text)
    end)
  end)

  -- ------------------------------------------------------------------ the helper

  describe("the helper program", function()
    local function file(name, content, mode)
      local path = support.write(support.directory() .. "/" .. name, content)
      support.run(("chmod %s %s"):format(mode, path))
      return path
    end

    local function create()
      local box, message, code, detail = moonsand.create { timeout = 20 } -- it is told at once
      assert.is_nil(box)
      assert.equal("unavailable", code, message)
      assert.truthy(detail.cause)
      assert.truthy(detail.fix)
      return detail.cause
    end

    it("is missing", function()
      use "/nowhere/agent"
      assert.truthy(create():find("missing: /nowhere/agent", 1, true))
    end)

    it("may not be executed", function()
      use(file("no-execute", support.read(agent), "644"))
      assert.truthy(create():find "cannot be executed")
    end)

    it("is a directory", function()
      use(support.directory())
      assert.truthy(create():find "cannot be executed")
    end)

    it("is no program", function()
      use(file("empty", "", "755"))
      create()
      use(file("garbage", "\127ELF and then nothing", "755"))
      create()
      use(file("script", "#!/nowhere/interpreter\n", "755"))
      create()
    end)

    it("is another program altogether", function()
      use(file("other", "#!/bin/sh\necho hello\nexit 0\n", "755"))
      create()
      use "/bin/cat"
      create()
    end)

    it("is of another version", function()
      local version = core.version
      local other = version:gsub("%d", "9")
      local text, count = support.read(agent):gsub(version:gsub("%p", "%%%0") .. "%z",
        other .. "\0")
      assert.is_true(count >= 1)
      use(file("other-version", text, "755"))
      assert.truthy(create():find "of another version")
    end)

    it("is replaced while it runs, and the next process takes the new one", function()
      use(file("agent", support.read(agent), "755"))
      local box = moonsand.assert(moonsand.create())
      os.remove(support.directory() .. "/agent")
      local second = moonsand.assert(moonsand.create())
      assert.equal("fine\n", moonsand.assert(second:exec "echo fine").stdout)
      box:close()
      second:close()
    end)
  end)

  -- ------------------------------------------------------------------ deaths

  describe("the zygote", function()
    it("is killed: what runs goes on, and the next create starts another", function()
      local box = moonsand.assert(moonsand.create())
      local p = moonsand.assert(box:start "read line; echo got $line")
      local zygote = zygotes()[1]
      native.kill(zygote.pid, KILL)
      -- at once, before the loop has heard of it
      local second = moonsand.assert(moonsand.create())
      assert.are_not.equal(zygote.pid, zygotes()[1].pid)
      moonsand.assert(p.stdin:write "it\n")
      assert.equal("got it\n", moonsand.assert(p:wait(5)).stdout)
      assert.equal("fine\n", moonsand.assert(box:exec "echo fine").stdout)
      assert.equal("fine\n", moonsand.assert(second:exec "echo fine").stdout)
      moonsand.assert(box:destroy(5))
      moonsand.assert(second:destroy(5))
      assert.is_nil(support.process(zygote.pid), "the zombie was left")
    end)

    it("is killed twenty times, at any moment of a create", function()
      for i = 1, 20 do
        local result = moonsand.run(function()
          local creating = moonsand.task(function()
            local box, _, code = moonsand.create { timeout = 10 }
            if box then
              local ok = box:exec "true"
              box:close()
              return ok and "ok" or "lost"
            end
            return code
          end)
          local all = zygotes()
          if i > 4 then
            moonsand.sleep(i * 0.0001)
          end
          for _, zygote in ipairs(all) do
            native.kill(zygote.pid, KILL)
          end
          return creating:wait(15)
        end)
        assert.is_true(result == "ok" or result == "unavailable", tostring(result))
      end
      assert_works()
    end)

    it("is stopped: the create times out, and nothing is left of it", function()
      assert_works()
      local zygote = zygotes()[1]
      finally(function()
        native.kill(zygote.pid, CONT)
      end)
      support.stop(zygote.pid)
      local box, _, code = moonsand.create { timeout = 0.2 }
      assert.is_nil(box)
      assert.equal("timeout", code)
      native.kill(zygote.pid, CONT)
      assert_works()
    end)
  end)

  describe("the agent", function()
    it("is killed while programs run, calls are pending, and nobody waits", function()
      local box = moonsand.assert(moonsand.create())
      local p = moonsand.assert(box:start { "sleep", "1000" })
      local pid = support.agent(box)
      local all = support.descendants(pid)
      native.kill(pid, KILL)
      local result, _, code, detail = p:wait(5)
      assert.is_nil(result)
      assert.equal("gone", code)
      assert.is_true(detail.started)
      result, _, code = box:exec "echo again"
      assert.is_nil(result)
      assert.equal("gone", code)
      local number, _, why = box.core.driver:call(2, { path = "/" }, loop.limits { timeout = 5 })
      assert.is_nil(number)
      assert.equal("gone", why)
      moonsand.assert(box:destroy(5))
      for _, process in ipairs(all) do
        assert.is_false(support.alive(process))
      end
    end)

    it("is killed in the middle of an exec: the output so far is not made a success", function()
      local box = moonsand.assert(moonsand.create())
      local pid = support.agent(box)
      local result, _, code = box:exec("echo begun; sleep 1000", {
        on_stdout = function()
          native.kill(pid, KILL)
        end,
      })
      assert.is_nil(result)
      assert.equal("gone", code)
      box:close()
    end)

    it("is stopped: nothing blocks, and close ends it all the same", function()
      local box = moonsand.assert(moonsand.create())
      local pid = support.agent(box)
      support.stop(pid)
      local p, _, code = box:start("true", { timeout = 0.2 })
      assert.is_nil(p)
      assert.equal("timeout", code)
      local number, _, why = box.core.driver:call(2, { path = "/" }, loop.limits { timeout = 0.2 })
      assert.is_nil(number)
      assert.equal("timeout", why)
      moonsand.assert(box:destroy(5))
      local left = support.process(pid)
      assert.is_true(not left or left.state == "Z")
    end)

    it("is stopped: what the host has to say is bounded", function()
      local box = moonsand.assert(moonsand.create())
      support.stop(support.agent(box))
      local before = support.rss(native.getpid())
      local raw, refused = box.core.driver.raw, false
      for _ = 1, 20000 do
        local id, number = raw:call(2, 0, 0, 0, 0, "/", "")
        if not id then
          assert.equal(errno.EBUSY, number)
          refused = true
          break
        end
      end
      assert.is_true(refused)
      assert.is_true(support.rss(native.getpid()) - before < 16 * 1024 * 1024)
      box:close()
    end)
  end)

  -- ------------------------------------------------------------------ lies

  describe("an agent that lies is found out before it is ready:", function()
    for _, mode in ipairs { "ready-nothing", "ready-file", "ready-fifo", "ready-socket",
      "ready-device", "ready-two", "ready-many", "ready-253", "ready-itself", "self", "half", "long",
      "unknown", "type-0", "echo", "failed-garbage", "failed-huge", "failed-nul", "early-started",
      "early-return", "flood" } do
      it(mode, function()
        liar(mode)
        local box, message, code = moonsand.create { timeout = 5 }
        assert.is_nil(box)
        assert.equal("protocol", code, message)
      end)
    end
    for mode, expected in pairs { silent = "timeout", stubborn = "timeout", dies = "unavailable",
      empty = "unavailable", ["failed-long"] = "unavailable", ["failed-strange"] = "unavailable",
      exit = "unavailable", ["zygote-dies"] = "unavailable", ["zygote-closes"] = "unavailable",
      ["zygote-half"] = "unavailable", ["zygote-empty"] = "unavailable",
      ["zygote-error"] = "unavailable", ["zygote-nothing"] = "unavailable",
      ["zygote-two"] = "unavailable", ["zygote-silent"] = "timeout|unavailable",
      ["zygote-mute"] = "timeout", ["zygote-other"] = "timeout|unavailable",
      ["zygote-flood"] = "timeout", ["zygote-file"] = "timeout|unavailable" } do
      it(mode, function()
        liar(mode)
        local before = core.now()
        -- what is told at once is waited for: a busy machine starts it late
        local limit = expected:find "timeout" and 0.3 or 5
        local box, message, code = moonsand.create { timeout = limit }
        assert.is_nil(box)
        assert.truthy(("|" .. expected .. "|"):find("|" .. code .. "|", 1, true), message)
        assert.is_true(core.now() - before < limit + 20)
        if code == "unavailable" and mode:find "strange" then
          assert.is_nil(message:find "[%c]", "control characters of an agent's in a message")
        end
      end)
    end
  end)

  describe("an agent that lies about programs is found out:", function()
    for _, mode in ipairs { "ready-twice", "failed-late", "half-later",
      "started-pid-0", "started-pid-1", "started-negative", "started-long", "started-short",
      "started-future", "started-id-0", "started-twice", "started-file", "refused-0",
      "refused-5000", "refused-huge", "refused-late", "exit-stopped", "exit-reason", "exit-short",
      "return-uncalled", "files-later", "flood-started", "gap-foreground" } do
      it(mode, function()
        liar(mode)
        local box = moonsand.assert(moonsand.create { timeout = 5 })
        local result, message, code = box:exec("true", { timeout = 1 })
        assert.is_nil(result)
        assert.equal("protocol", code, message)
        result, message, code = box:exec "true"
        assert.is_nil(result)
        assert.equal("protocol", code, message)
        box:close()
      end)
    end
    for mode, expected in pairs { ["dies-later"] = "gone", ["empty-later"] = "gone",
      ["silent-later"] = "timeout", ["refused-long"] = "not_found" } do
      it(mode, function()
        liar(mode)
        local box = moonsand.assert(moonsand.create { timeout = 5 })
        local p, message, code = box:start("true", { timeout = expected == "timeout" and 0.2 or 5 })
        assert.is_nil(p)
        assert.equal(expected, code, message)
        box:close()
      end)
    end
    for _, mode in ipairs { "root-fifo", "root-file", "root-link", "root-empty" } do
      it(mode .. " (where terminals are made)", function()
        liar(mode)
        local box = moonsand.assert(moonsand.create { timeout = 5 })
        local p, message, code, detail = box:start("true", { pty = true, timeout = 20 })
        assert.is_nil(p)
        assert.equal("unavailable", code, message)
        assert.is_false(detail.started)
        assert.is_true(moonsand.assert(box:exec "true").ok)
        box:close()
      end)
    end
    it("exited-first", function()
      liar "exited-first"
      local box = moonsand.assert(moonsand.create { timeout = 5 })
      local p, message, code = box:start("true", { timeout = 20 })
      assert.is_nil(p)
      assert.equal("protocol", code, message)
      box:close()
    end)
    for _, mode in ipairs { "gap-early", "gap-stream", "gap-nothing", "gap-wraps", "gap-back",
      "gap-late", "gap-short", "started-short" } do
      it(mode .. ", in the background", function()
        liar(mode)
        local box = moonsand.assert(moonsand.create { timeout = 5 })
        box:exec("true", { background = true, timeout = 20 })
        local result, message, code = box:exec "true"
        assert.is_nil(result)
        assert.equal("protocol", code, message)
        box:close()
      end)
    end
    it("gap-flood, which is counted and no more", function()
      liar "gap-flood"
      local box = moonsand.assert(moonsand.create { timeout = 5 })
      local rss = support.rss(native.getpid())
      local p = moonsand.assert(box:start("true", { background = true }))
      support.eventually(20, "it did not end", function()
        require("moonsand.loop").step(0)
        return not p:is_running()
      end)
      assert.equal(1024, #p:info().gaps)
      local offsets, message, code = p:offsets()
      assert.is_nil(offsets)
      assert.equal("too_large", code, message)
      assert.is_true(support.instrumented() or support.rss(native.getpid()) - rss < 4 * 1024 * 1024)
      box:close()
    end)
    for _, mode in ipairs { "exit-twice", "exit-other" } do
      it(mode .. " (which changes nothing)", function()
        liar(mode)
        local box = moonsand.assert(moonsand.create { timeout = 5 })
        for _ = 1, 3 do
          assert.is_true(moonsand.assert(box:exec "true").ok)
        end
        box:close()
      end)
    end
  end)

  describe("an agent that lies about files is found out:", function()
    local OPEN = 1

    local function call(mode, timeout)
      liar(mode)
      local box = moonsand.assert(moonsand.create { timeout = 5 })
      local number, body, file = box.core.driver:call(OPEN, { path = "/x" },
        loop.limits { timeout = timeout or 5 })
      return box, number, body, file
    end

    for mode, expected in pairs { ["return-never"] = "timeout", ["return-other"] = "protocol",
      ["return-5000"] = "protocol", ["return-short"] = "protocol",
      ["return-two-files"] = "protocol", ["return-dies"] = "gone" } do
      it(mode, function()
        local box, number, message, code = call(mode, expected == "timeout" and 0.3)
        assert.is_nil(number)
        assert.equal(expected, code, message)
        box:close()
      end)
    end
    for _, mode in ipairs { "return-fifo", "return-directory", "return-path", "return-socket",
      "return-device", "return-nothing" } do
      it(mode .. " gives no file", function()
        local box, number, _, file = call(mode)
        assert.equal(0, number)
        assert.is_nil(file)
        box:close()
      end)
    end
    it("return-never is no detached sandbox", function()
      native.setenv("XDG_RUNTIME_DIR", support.directory())
      liar "return-never"
      local box = moonsand.assert(moonsand.create { timeout = 5 })
      local ok, message, code = box:detach { timeout = 0.2 }
      assert.is_nil(ok)
      assert.equal("timeout", code, message)
      assert.same({}, moonsand.list())
      assert.equal("closed", box:info().state) -- nobody could say what it would do
      box:close()
    end)
    it("return-nothing says nothing of processes", function()
      liar "return-nothing"
      local box = moonsand.assert(moonsand.create { timeout = 5 })
      local function found_out(wanted, value, message, code)
        assert.is_nil(value)
        assert.equal(wanted, code, message)
      end
      found_out("protocol", box:metrics(5))
      found_out("protocol", box:monitor(7, { timeout = 5 }))
      found_out("protocol", box:processes(5))
      found_out("lost", box:ps(nil, 5)) -- a worker that ends without a word
      box:close()
    end)
    it("return-twice", function()
      local box, number = call "return-twice"
      assert.equal(errno.ENOENT, number)
      local _, _, code = box:exec("true", 1)
      assert.equal("protocol", code)
      box:close()
    end)
  end)

  it("an agent that floods does not starve the others, nor make the host grow", function()
    local good = moonsand.assert(moonsand.create())
    liar "flood-later"
    local bad = moonsand.assert(moonsand.create { timeout = 5 })
    moonsand.assert(bad:start("true", { timeout = 5 })) -- the next one makes it flood
    bad:start("true", { timeout = 0.1 })
    local rss = support.rss(native.getpid())
    for _ = 1, 50 do
      assert.equal("fine\n", moonsand.assert(good:exec("echo fine", 10)).stdout)
    end
    assert.is_true(support.rss(native.getpid()) - rss < 4 * 1024 * 1024)
    bad:close()
    good:close()
  end)

  -- ------------------------------------------------------------------ no room

  describe("a host without room for files", function()
    local eaten

    local function eat(spare)
      eaten = {}
      for i = 1, 4096 do
        local fd = native.leak "/dev/null"
        if not fd then
          break
        end
        eaten[i] = fd
      end
      for _ = 1, spare do
        native.close(table.remove(eaten))
      end
    end

    local function give_back()
      for _, fd in ipairs(eaten) do
        native.close(fd)
      end
      eaten = {}
    end

    it("says so, loses nothing that runs, and goes on when there is room", function()
      local box = moonsand.assert(moonsand.create())
      local sleeper = moonsand.assert(box:start { "sleep", "1000" })
      local was = native.nofile(64)
      local seen = {}
      for spare = 0, 9 do
        eat(spare)
        local other, message, code = moonsand.create { timeout = 5 }
        local result, why, code2 = box:exec "echo fine"
        local number, body = box.core.driver:call(1, { path = "/etc/passwd" },
          loop.limits { timeout = 5 })
        give_back()
        if other then
          other:close()
          seen.created = true
        else
          assert.equal("unavailable", code, spare .. ": " .. message)
          assert.truthy(message:find "Too many open files", message)
          seen.refused = true
        end
        if result then
          assert.equal("fine\n", result.stdout)
          seen.ran = true
        else
          assert.equal("unavailable", code2, why)
          assert.truthy(why:find "Too many open files", why)
          seen.stopped = true
        end
        assert.is_true(number == 0 or number == errno.EMFILE,
          ("%d: %s %s"):format(spare, tostring(number), tostring(body)))
        helper.settle()
        assert.equal("ready", box.core.driver:state())
        assert.is_true(sleeper:is_running())
      end
      native.nofile(was)
      assert.same({ created = true, refused = true, ran = true, stopped = true }, seen)
      box:close()
      assert_works()
    end)

    it("cannot even start: the first create says so", function()
      local text, status = support.child [[
        local support = require "support.init"
        local native = support.native()
        local moonsand = require "moonsand"
        require "moonsand.providers.local" -- modules are files too
        require "moonsand.doctor"
        for spare = 0, 12 do
          native.nofile(40)
          local eaten = {}
          while true do
            local fd = native.leak "/dev/null"
            if not fd then break end
            eaten[#eaten + 1] = fd
          end
          for _ = 1, spare do native.close(table.remove(eaten)) end
          local box, message, code = moonsand.create { timeout = 5 }
          for _, fd in ipairs(eaten) do native.close(fd) end
          if not box then
            assert(code == "unavailable", tostring(code) .. ": " .. message)
          else
            box:close()
          end
        end
        local box = assert(moonsand.create())
        print(assert(box:exec "echo recovered").stdout)
      ]]
      assert.equal(0, status, text)
      assert.truthy(text:find "recovered", text)
    end)
  end)

  -- ------------------------------------------------------------------ the end of the host

  describe("a host that is killed", function()
    local life = [[
      local moonsand = require "moonsand"
      io.stdout:setvbuf "no"
      local has_files = pcall(require, "moonsand.files")
      local boxes = {}
      for i = 1, 1000 do
        print "create"
        local box = assert(moonsand.create())
        boxes[i % 4] = box
        print "start"
        box:start("setsid sh -c 'setsid sleep 1000 & sleep 1000' & sleep 1000")
        print "exec"
        assert(box:exec "(setsid sleep 1000 &) ; echo x")
        print "write"
        if has_files then
          assert(box.files:write("/workspace/file", ("x"):rep(1e6)))
        else
          assert(box:exec("cat >file", { stdin = ("x"):rep(1e6) }))
        end
      end]]

    it("leaves nothing, at no moment of 24", function()
      local mounts = support.read "/proc/self/mountinfo"
      local own = support.directory() .. "/tmp"
      support.run("mkdir -p " .. own)
      local command = support.command(life)
      math.randomseed(native.getpid())
      for step = 0, 23 do
        local output, status = support.run(("TMPDIR=%s %s %d %d 5000 -- %s </dev/null"):format(
          own, support.program "keeper", step, math.random(0, 3000), command))
        assert.equal(0, status, ("step %d: %s"):format(step, output))
      end
      assert.equal("", support.run("ls -A " .. own))
      assert.equal(mounts, support.read "/proc/self/mountinfo")
      assert.is_nil(support.read "/proc/net/unix":find(own, 1, true))
    end)

    it("by an error, or ends in order, or by os.exit: nothing is left", function()
      for _, ending in ipairs { "", "error 'over'", "os.exit(0, true)", "os.exit(0)",
        "box:close()", "box = nil collectgarbage()" } do
        local output, status = support.run(("%s -1 0 5000 -- sh -c %s"):format(
          support.program "keeper", support.quote(support.command([[
            local moonsand = require "moonsand"
            local box = assert(moonsand.create())
            box:start "setsid sleep 1000 & sleep 1000"
            io.stderr:close() ]] .. ending) .. " </dev/null; exit 0")))
        assert.equal(0, status, ending .. ": " .. output)
      end
    end)
  end)

  -- ------------------------------------------------------------------ company

  it("200 sandboxes are made and closed at once", function()
    local count = 200
    local results = moonsand.run(function()
      local list = {}
      for i = 1, count do
        list[i] = i
      end
      return moonsand.assert(moonsand.all(list, function(i)
        local box = moonsand.assert(moonsand.create())
        local result = moonsand.assert(box:exec { "echo", tostring(i) })
        box:close()
        return result.stdout
      end))
    end)
    for i = 1, count do
      assert.equal(i .. "\n", results[i])
    end
  end)

  it("a fork of the host does not keep sandboxes alive, nor end them", function()
    local box = moonsand.assert(moonsand.create())
    local p = moonsand.assert(box:start { "sleep", "1000" })
    local agent_pid = support.agent(box)
    local all = support.descendants(agent_pid)
    all[#all + 1] = support.process(agent_pid)
    local child = native.fork()
    if child == 0 then -- has copies of all files, and a Lua state with the same objects
      box:close()
      box, p = nil, nil
      collectgarbage()
      native.pause(30)
      native.exit(0)
    end
    finally(function()
      native.kill(child, KILL)
      native.wait(child)
    end)
    assert.equal("fine\n", moonsand.assert(box:exec "echo fine").stdout)
    assert.is_true(p:is_running())
    moonsand.assert(box:destroy(5))
    for _, process in ipairs(all) do
      assert.is_false(support.alive(process))
    end
    -- also one that is given up before it is ready
    local zygote = zygotes()
    assert.is_true(#zygote >= 1)
    native.kill(child, KILL)
  end)

  it("a fork of the host makes sandboxes of its own, and they end with it", function()
    local output, status = support.child [[
      local support = require "support.init"
      local native = support.native()
      local moonsand = require "moonsand"
      native.subreaper(true)
      local box = assert(moonsand.create())
      local child = native.fork()
      if child == 0 then
        local ok, why = pcall(function()
          local own = assert(moonsand.create())
          assert(own:exec("echo child").stdout == "child\n")
          assert(support.agent(own) ~= support.agent(box))
          own:start "setsid sleep 1000 & sleep 1000"
        end)
        if not ok then print(why) end
        native.kill(native.getpid(), 9)
      end
      native.wait(child)
      assert(box:exec("echo parent").stdout == "parent\n")
      local agent, zygote = support.agent(box)
      support.eventually(20, "something of the child's is left", function()
        for _, process in ipairs(support.descendants(native.getpid())) do
          if process.state == "Z" then
            native.wait(process.pid)
          elseif process.ppid ~= zygote and process.pid ~= zygote then
            return nil, process.name
          end
        end
        return true
      end)
      print "nothing is left"
    ]]
    assert.equal(0, status, output)
    assert.equal("nothing is left\n", output)
  end)

  it("two Lua states in one process do not disturb each other", function()
    local box = moonsand.assert(moonsand.create())
    for _ = 1, 3 do
      local text, why = native.state [[
        local moonsand = require "moonsand"
        local box = assert(moonsand.create())
        local dropped = assert(moonsand.create())
        dropped:start "sleep 1000"
        return assert(box:exec "echo from another state").stdout
      ]]
      assert.equal("from another state\n", text, why)
      assert.equal("fine\n", moonsand.assert(box:exec "echo fine").stdout)
    end
    box:close()
  end)
end)
