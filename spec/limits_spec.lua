-- The limits of a whole sandbox: what holds them on this machine, what is told of them, and that
-- what runs into them harms nobody else. The tree of version 2 that most machines have and some
-- do not is also a fake, made of the kernel's documented rules.

local cgroups = require "moonsand.providers.local.cgroups"
local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local E = core.errno
local MIB = 1024 * 1024

-- ---------------------------------------------------------------- a kernel that is none

--- A tree of version 2 (or, with `single`, one of version 1): groups by path, each with its files.
---@param opts { own: string, groups: table<string, table>, root?: string, single?: string[] }
local function fake(opts)
  local kernel = { membership = "membership", mounts = "mounts", groups = opts.groups, kept = {} }
  local point = "/cg"

  local function group_of(path)
    return kernel.groups[path:sub(#point + 1)] or path == point and kernel.groups[""]
  end

  function kernel.read(path)
    if path == "membership" then
      local lines = {}
      for i, name in ipairs(opts.single or {}) do
        lines[i] = ("%d:%s:%s\n"):format(i + 1, name, opts.own)
      end
      return table.concat(lines) .. (opts.single and "" or "0::" .. opts.own .. "\n")
    elseif path == "mounts" then
      local lines = {}
      for i, name in ipairs(opts.single or {}) do
        lines[i] = ("3%d 1 0:2 %s /cg rw - cgroup cgroup rw,%s\n"):format(i, opts.root or "/", name)
      end
      if not opts.single then
        lines[1] = ("40 1 0:2 %s /cg rw shared:9 - cgroup2 cgroup2 rw\n"):format(opts.root or "/")
      end
      return table.concat(lines)
    elseif path:find "^/proc/" then
      return support.read(path)
    end
    local directory, name = path:match "^(.*)/([^/]*)$"
    local group = group_of(directory)
    if group and name == "cgroup.type" then
      return directory ~= point and "domain\n" or nil
    elseif group and name == "cgroup.procs" then
      return table.concat(group.procs or {}, "\n") .. "\n"
    end
    return group and group[name]
  end

  function kernel.write(path, name, text)
    local group = group_of(path)
    if not group then
      return nil, E.ENOENT
    elseif group.denied then
      return nil, E.EACCES
    elseif name == "cgroup.subtree_control" then
      if group.procs and #group.procs > 0 and path ~= point then
        if text == "+memory" then
          return nil, E.EBUSY
        end
        group.threads = true -- without a word
      end
      group[name] = (group[name] or "") .. " " .. text:sub(2)
    elseif name == "cgroup.procs" then
      for _, other in pairs(kernel.groups) do
        for i = #(other.procs or {}), 1, -1 do
          if other.procs[i] == text then
            table.remove(other.procs, i)
          end
        end
      end
      table.insert(group.procs, text)
    end
    return true
  end

  function kernel.make(path)
    local parent = group_of(path:match "^(.*)/")
    if not parent or parent.denied then
      return nil, parent and E.EACCES or E.ENOENT
    end
    assert.is_nil(parent.threads, "nothing can be put into a group below one of threads")
    local below = path:sub(#point + 1)
    kernel.groups[below] = { procs = {}, files = {} }
    local group = kernel.groups[below]
    local handle = { path = below, files = group.files, watched = {} }
    function handle:write(name, text)
      if opts.lacks and opts.lacks[name] then
        return nil, E.ENOENT
      end
      self.files[name] = text
      return true
    end
    function handle:watch(name)
      self.watched[name] = true
      return true
    end
    function handle:read(name)
      return self.watched[name] and self.files[name] or nil
    end
    return handle
  end

  function kernel.keeper(_, prefix)
    return {
      add = function(_, directory)
        kernel.kept[directory] = prefix
        return true
      end,
      alive = function()
        return kernel.keeper_lives ~= false
      end,
    }
  end

  return kernel
end

describe("control groups", function()
  local real = {}

  before_each(function()
    for name, value in pairs(cgroups.kernel) do
      real[name] = value
    end
  end)

  after_each(function()
    cgroups.kernel.state = nil
    for name, value in pairs(real) do
      cgroups.kernel[name] = value
    end
  end)

  local function use(opts)
    local kernel = fake(opts)
    cgroups.kernel.state = nil
    for name in pairs(real) do
      cgroups.kernel[name] = kernel[name]
    end
    return kernel
  end

  local ALL = "cpuset cpu io memory pids"
  local WANTS = { memory = 64 * MIB, cpus = 1.5, processes = 50 }
  local self = tostring(core.getpid())

  local function below(path, directory)
    return path:match "^(.*)/moonsand%-%d+%-%d+%-%x+%-%d+$" == directory
  end

  describe("of version 2", function()
    it("are one for all limits, beside a group for this process, where it has one to itself", function()
      local kernel = use { own = "/a/scope", groups = {
        [""] = { denied = true }, ["/a"] = { denied = true, procs = {} },
        ["/a/scope"] = { procs = { self }, ["cgroup.controllers"] = ALL },
      } }
      local groups, missing = cgroups.make(WANTS, "agent")
      assert.same({}, missing)
      assert.same({ memory = "cgroup2", cpus = "cgroup2", processes = "cgroup2" }, groups.held)
      assert.equal(1, #groups.handles)
      local handle = groups.handles[1]
      assert.is_true(below(handle.path, "/a/scope"), handle.path)
      assert.same({ ["memory.max"] = "67108864", ["memory.swap.max"] = "0", ["cpu.max"] = "150000 100000",
        ["pids.max"] = "50" }, handle.files)
      assert.equal(" memory cpu pids", kernel.groups["/a/scope"]["cgroup.subtree_control"])
      assert.same({}, kernel.groups["/a/scope"].procs)
      assert.same({ self }, kernel.groups["/a/scope/moonsand-host"].procs)
      assert.equal(handle.path:match "[^/]*$", (kernel.kept["/cg/a/scope"] or "") .. handle.path:match "%d+$")
    end)

    it("for the CPU alone do not make the group of this process one of threads", function()
      local kernel = use { own = "/a", groups = {
        [""] = { denied = true }, ["/a"] = { procs = { self }, ["cgroup.controllers"] = ALL } } }
      local groups, missing = cgroups.make({ cpus = 1 }, "agent")
      assert.same({}, missing)
      assert.is_true(below(groups.handles[1].path, "/a"))
      assert.same({}, kernel.groups["/a"].procs)
    end)

    it("are found again by a process that went into such a group", function()
      local kernel = use { own = "/a/moonsand-host", groups = {
        [""] = { denied = true }, ["/a"] = { procs = {}, ["cgroup.controllers"] = ALL },
        ["/a/moonsand-host"] = { procs = { self }, ["cgroup.controllers"] = "memory" },
      } }
      local groups = cgroups.make(WANTS, "agent")
      assert.is_true(below(groups.handles[1].path, "/a"))
      assert.same({ self }, kernel.groups["/a/moonsand-host"].procs)
    end)

    it("are made further up where others are in the same group, who stay where they are", function()
      local kernel = use { own = "/a/b/session", groups = {
        [""] = { denied = true }, ["/a"] = { procs = {}, ["cgroup.controllers"] = ALL },
        ["/a/b"] = { denied = true, procs = {}, ["cgroup.controllers"] = ALL },
        ["/a/b/session"] = { procs = { "1", self }, ["cgroup.controllers"] = ALL },
      } }
      local groups, missing = cgroups.make(WANTS, "agent")
      assert.same({}, missing)
      assert.is_true(below(groups.handles[1].path, "/a"))
      assert.same({ "1", self }, kernel.groups["/a/b/session"].procs)
    end)

    it("hold the processes only if that is to be had", function()
      use { own = "/a", groups = {
        [""] = { ["cgroup.controllers"] = "memory cpu" },
        ["/a"] = { procs = {}, ["cgroup.controllers"] = "memory cpu" },
      } }
      local groups, missing = cgroups.make(WANTS, "agent")
      assert.same({}, missing)
      assert.same({ memory = "cgroup2", cpus = "cgroup2" }, groups.held)
    end)

    it("do without a bound for swap where there is none", function()
      use { own = "/", lacks = { ["memory.swap.max"] = true },
        groups = { [""] = { ["cgroup.controllers"] = ALL, procs = { "1" } } } }
      local groups, missing = cgroups.make({ memory = 64 * MIB }, "agent")
      assert.same({}, missing)
      assert.same({ memory = "cgroup2" }, groups.held)
    end)

    for what, case in pairs {
      ["nothing is ours"] = { "not for this process to use: Permission denied", {
        [""] = { denied = true, ["cgroup.controllers"] = ALL },
        ["/a"] = { denied = true, ["cgroup.controllers"] = ALL } } },
      ["others are in it"] = { "other processes in the group /cg/a", {
        [""] = { denied = true, ["cgroup.controllers"] = ALL },
        ["/a"] = { procs = { "1" }, ["cgroup.controllers"] = ALL } } },
      ["it has no controllers"] = { "/cg/a has no controller 'memory'", {
        [""] = { ["cgroup.controllers"] = "hugetlb" }, ["/a"] = { ["cgroup.controllers"] = "" } } },
      ["no file system is mounted"] = { "no cgroup file system is mounted", {}, root = "/elsewhere" },
    } do
      it("are not there when " .. what .. ", which is told", function()
        use { own = "/a", groups = case[2], root = case.root }
        local groups, missing = cgroups.make({ memory = 64 * MIB, cpus = 1 }, "agent")
        assert.same({}, groups.handles)
        for _, name in ipairs { "memory", "cpus" } do
          assert.truthy(missing[name].cause:find(case[1], 1, true), missing[name].cause)
          assert.truthy(missing[name].fix:find("Delegate=yes", 1, true))
        end
      end)
    end

    it("count what was hit, and not what another's lack of memory ended", function()
      use { own = "/", groups = { [""] = { ["cgroup.controllers"] = ALL } } }
      local groups = cgroups.make(WANTS, "agent")
      local files = groups.handles[1].files
      files["memory.events"] = "low 0\nhigh 0\nmax 12\noom 0\noom_kill 3\noom_group_kill 0\n"
      files["pids.events"] = "max 7\n"
      assert.same({ memory = 0, processes = 7 }, groups:hits())
      files["memory.events"] = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\noom_group_kill 0\n"
      assert.same({ memory = 3, processes = 7 }, groups:hits())
      files["memory.events"], files["pids.events"] = "", nil
      assert.same({ memory = 0, processes = 0 }, groups:hits())
    end)
  end)

  describe("of version 1", function()
    it("are one for each limit", function()
      local kernel = use { own = "/x", single = { "memory", "cpu", "pids" },
        groups = { [""] = {}, ["/x"] = { procs = { "1" } } } }
      local groups, missing = cgroups.make(WANTS, "agent")
      assert.same({}, missing)
      assert.same({ memory = "cgroup1", cpus = "cgroup1", processes = "cgroup1" }, groups.held)
      local all = {}
      for _, handle in ipairs(groups.handles) do
        assert.is_true(below(handle.path, "/x"), handle.path)
        for name, text in pairs(handle.files) do
          all[name] = text
        end
      end
      assert.same({ ["memory.limit_in_bytes"] = "67108864", ["memory.memsw.limit_in_bytes"] = "67108864",
        ["cpu.cfs_period_us"] = "100000", ["cpu.cfs_quota_us"] = "150000", ["pids.max"] = "50" }, all)
      assert.same({ "1" }, kernel.groups["/x"].procs)
    end)

    it("are below what a container shows of the tree", function()
      use { own = "/docker/abc", root = "/docker/abc", single = { "memory" }, groups = { [""] = {} } }
      local groups = cgroups.make({ memory = 64 * MIB }, "agent")
      assert.is_true(below(groups.handles[1].path, ""), groups.handles[1].path)
    end)

    it("are not there for who may make none, which is told", function()
      use { own = "/", single = { "memory" }, groups = { [""] = { denied = true } } }
      local _, missing = cgroups.make({ memory = 64 * MIB, cpus = 1 }, "agent")
      assert.truthy(missing.memory.cause:find("Permission denied", 1, true))
      assert.equal("run it as root", missing.memory.fix)
      assert.truthy(missing.cpus.cause:find("no cgroup file system", 1, true))
    end)

    it("count a kill only when the limit was reached", function()
      use { own = "/", single = { "memory" }, groups = { [""] = {} } }
      local groups = cgroups.make({ memory = 64 * MIB }, "agent")
      local files = groups.handles[1].files
      files["memory.oom_control"] = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"
      files["memory.max_usage_in_bytes"] = "30000000\n"
      assert.same({ memory = 0 }, groups:hits())
      files["memory.max_usage_in_bytes"] = "67108864\n"
      assert.same({ memory = 2 }, groups:hits())
    end)
  end)

  it("are watched over by a keeper, another one when it was killed", function()
    local kernel = use { own = "/", single = { "memory" }, groups = { [""] = {} } }
    cgroups.make({ memory = 64 * MIB }, "agent")
    assert.truthy(kernel.kept["/cg"])
    kernel.kept = {}
    cgroups.make({ memory = 64 * MIB }, "agent")
    assert.is_nil(kernel.kept["/cg"])
    kernel.keeper_lives = false
    cgroups.make({ memory = 64 * MIB }, "agent")
    assert.truthy(kernel.kept["/cg"])
  end)
end)

-- ---------------------------------------------------------------- this machine

--- What it offers, tried out before anything else; the keeper is started by that.
local offered = {}
for _, name in ipairs { "memory", "cpus" } do
  local box = moonsand.create { limits = { [name] = name == "memory" and 64 * MIB or 1 } }
  offered[name] = box ~= nil
  if box then
    moonsand.assert(box:destroy(10))
  end
end

--- The groups of a host that there are now, in all trees.
local function groups_of(pid)
  local found = support.run(("find /sys/fs/cgroup -type d -name 'moonsand-%d-*'"):format(pid))
  local list = {}
  for line in found:gmatch "[^\n]+" do
    if line:find "^/" then -- find complains of others' groups that are removed while it looks
      list[#list + 1] = line
    end
  end
  return list
end

local function await_none(pid)
  support.eventually(10, "groups are left", function()
    helper.settle()
    local left = groups_of(pid)
    return #left == 0, table.concat(left, ", ")
  end)
end

describe("memory and cpus of a sandbox", function()
  helper.deadline(60)
  helper.no_leaks()

  local own = core.getpid()

  for name, value in pairs { memory = 64 * MIB, cpus = 1 } do
    it(name .. " are held by a control group, or refused with cause and fix", function()
      local box, message, code, detail = moonsand.create { limits = { [name] = value } }
      if not offered[name] then
        assert.is_nil(box)
        assert.equal("unavailable", code)
        assert.truthy(message:find("limits." .. name, 1, true))
        assert.is_false(detail.started)
        assert.truthy(#detail.cause > 0)
        assert.truthy(detail.fix:find("allow_unenforced", 1, true))
        box = moonsand.assert(moonsand.create { limits = { [name] = value }, allow_unenforced = { name } })
        assert.same({ value = value, by = "none" }, box:info().limits[name])
        assert.is_false(box:can("limits." .. name))
        box:close()
        return
      end
      assert.is_nil(message)
      local held = box:info().limits[name]
      assert.equal(value, held.value)
      assert.truthy(held.by:find "^cgroup[12]$")
      assert.equal("native", box:can("limits." .. name))
      assert.truthy(support.read(("/proc/%d/cgroup"):format((support.agent(box)))):find "/moonsand%-")
      moonsand.assert(box:destroy(10))
      await_none(own)
    end)
  end

  it("are there for root where the group of this process can be written", function()
    local _, status = support.run [[
      d=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
      test "$d" != /sys/fs/cgroup/memory -a -d "$d" -a -w "$d"]]
    if status == 0 then
      assert.is_true(offered.memory)
    end
  end)

  it("that nobody asked for make no group", function()
    local box = moonsand.assert(moonsand.create { limits = { processes = 50, disk = "8M" } })
    assert.same({}, groups_of(own))
    assert.is_false(box:can "limits.memory")
    box:close()
  end)

  it("are waived by name, in a list", function()
    for pattern, waived in pairs {
      ["there is no limit 'memry' %(did you mean 'memory'%?%)"] = { "memry" },
      ["allow_unenforced%[1%] must be a string, got number"] = { 5 },
      ["allow_unenforced must be a list, and has the key 'memory'"] = { memory = true },
    } do
      local ok, message = pcall(function() moonsand.create { allow_unenforced = waived } end)
      assert.is_false(ok)
      assert.truthy(message:find("limits_spec.lua:%d+: .*" .. pattern), message)
    end
  end)

  it("have a greatest value, as all limits", function()
    for _, name in ipairs { "cpus", "processes", "inodes", "open_files", "cpu_time" } do
      for _, value in ipairs { math.huge, 1e19, 2 ^ 54, 0 / 0, -1, 0 } do
        local box, message, code = moonsand.create { limits = { [name] = value } }
        assert.is_nil(box)
        assert.equal("invalid", code)
        assert.truthy(message:find("limits." .. name, 1, true))
      end
    end
    local box, message = moonsand.create { limits = { disk = math.huge } }
    assert.is_nil(box)
    assert.equal("limits.disk: inf is not a size in bytes", message)
  end)

  it("have a least value", function()
    for name, value in pairs { memory = "1M", cpus = 0.001 } do
      local box, message, code = moonsand.create { limits = { [name] = value } }
      assert.is_nil(box)
      assert.equal("invalid", code)
      assert.truthy(message:find("at least", 1, true))
    end
  end)

  if offered.memory then
    local HOG = { "python3", "-c", "x = bytearray(200 << 20); print('there')" }

    local function create(limits)
      return moonsand.assert(moonsand.create { limits = limits })
    end

    it("show nothing of the groups inside", function()
      local box = create { memory = "64M" }
      local text = moonsand.assert(box:exec [[
        grep -v ':/$' /proc/self/cgroup /proc/1/cgroup; ls /sys/fs 2>&1; grep cgroup /proc/self/mountinfo]])
      assert.equal("", (text.stdout:gsub("ls: [^\n]*\n", "")))
      box:close()
    end)

    it("memory ends the program that needs more, and says so", function()
      local box = create { memory = "64M" }
      local r = moonsand.assert(box:exec(HOG, 30))
      assert.same({ "resource_limit", "memory", "KILL", false, "" },
        { r.status, r.limit, r.signal, r.ok, r.stdout })
      local result, message, code = box:exec(HOG, { timeout = 30, check = true })
      assert.is_nil(result)
      assert.equal("resource_limit", code)
      assert.truthy(message:find("limit of memory", 1, true))
      assert.is_true(moonsand.assert(box:exec("echo fine", 10)).ok)
      box:close()
    end)

    it("memory is told when it ended what a shell had started", function()
      local box = create { memory = "64M" }
      local r = moonsand.assert(box:exec("python3 -c 'bytearray(200 << 20)'; echo $?", 30))
      assert.same({ "exited", "137\n", "memory" }, { r.status, r.stdout, r.limit })
      box:close()
    end)

    it("memory is not blamed for another signal, nor for what was before", function()
      local box = create { memory = "64M" }
      local r = moonsand.assert(box:exec("kill -9 $$", 10))
      assert.same({ "signaled", "KILL" }, { r.status, r.signal })
      assert.is_nil(r.limit)
      moonsand.assert(box:exec(HOG, 30))
      r = moonsand.assert(box:exec("kill -9 $$", 10))
      assert.equal("signaled", r.status)
      assert.is_nil(r.limit)
      r = moonsand.assert(box:exec("sleep 100", { timeout = 0.1 }))
      assert.equal("timed_out", r.status)
      assert.is_nil(r.limit)
      box:close()
    end)

    it("memory is for all programs together, and for files", function()
      local box = create { memory = "64M", disk = "48M" }
      assert.is_true(moonsand.assert(box:exec("head -c 40M /dev/zero >/tmp/file", 30)).ok)
      local hog = "python3 -c 'bytearray(40 << 20)'"
      local r = moonsand.assert(box:exec("exec " .. hog, 30))
      assert.equal("memory", r.limit)
      assert.is_true(moonsand.assert(box.files:remove("/tmp/file")))
      assert.is_true(moonsand.assert(box:exec("exec " .. hog, 30)).ok)
      box:close()
    end)

    it("memory bounds files too: by default they take half of it", function()
      local box = create { memory = "64M" }
      assert.equal(32 * MIB, box:info().limits.disk.value)
      local r = moonsand.assert(box:exec("exec head -c 100M /dev/zero >/tmp/file", 30))
      assert.truthy(r.stderr:find("No space left", 1, true))
      assert.is_nil(r.limit)
      box:close()
    end)

    it("memory is not blamed for a sandbox that ended otherwise", function()
      local box = create { memory = "64M" }
      moonsand.assert(box:exec(HOG, 30))
      moonsand.assert(box:exec("true", 10))
      support.run("kill -KILL " .. support.agent(box))
      support.eventually(10, "it lives on", function()
        helper.settle()
        return box:info().state == "gone"
      end)
      local result, message, code, detail = box:exec("true", 10)
      assert.is_nil(result)
      assert.equal("gone", code, message)
      assert.is_nil(detail.limit)
      box:close()
    end)

    it("is what metrics tell as all the memory that there is", function()
      local box = create { memory = "64M" }
      local metrics = moonsand.assert(box:metrics())
      assert.equal(64 * MIB, metrics.memory_total)
      assert.is_true(metrics.memory_percent > 0 and metrics.memory_percent < 100)
      box:close()
    end)

    it("is the sandbox's end when nothing is left to be killed, which is told", function()
      local box = create { memory = "8M", disk = "64M" }
      local result, message, code, detail
      for _ = 1, 200 do -- full of files: each program is killed, and perhaps the agent
        result, message, code, detail = box:exec("head -c 32M /dev/zero >>/tmp/file", 20)
        if not result then
          break
        end
        assert.equal("memory", result.limit, tostring(result) .. result.stderr)
      end
      if not result then
        assert.equal("gone", code, message)
        assert.equal("memory", detail.limit)
        assert.truthy(message:find("limits.memory", 1, true))
        local again
        again, message, code, detail = box:exec "true"
        assert.is_nil(again)
        assert.same({ "gone", "memory" }, { code, detail.limit }, message)
      end
      box:close()
    end)
  end

  if offered.cpus then
    it("cpus are for all programs together", function()
      local box = moonsand.assert(moonsand.create { limits = { cpus = 0.5 } })
      local before = core.now()
      local spin = { "timeout", "1", "sh", "-c", "while :; do :; done" }
      local results = moonsand.run(function()
        return moonsand.all({ 1, 2, 3 }, function()
          return box:exec(spin, 30)
        end)
      end)
      local wall, used = core.now() - before, 0
      for _, r in ipairs(results) do
        used = used + r.usage.cpu_time
      end
      assert.is_true(used < 0.75 * wall, ("%g s of %g s"):format(used, wall))
      box:close()
    end)
  end

  if offered.memory then
    it("leave no group behind, however a sandbox and its host end", function()
      local box = moonsand.assert(moonsand.create { limits = { memory = "64M" } })
      assert.is_true(#groups_of(own) > 0)
      box:close()
      await_none(own)
      moonsand.assert(moonsand.create { limits = { memory = "64M" } })
      collectgarbage()
      collectgarbage()
      moonsand.assert(moonsand.create { limits = { memory = "64M" } }):destroy(10)
      await_none(own)
      for how, last in pairs {
        ["by itself"] = "", ["with its sandbox closed"] = "box:close()",
        ["killed"] = "os.execute('kill -KILL $PPID')",
      } do
        local text = support.child([[
          local moonsand = require "moonsand"
          box = moonsand.assert(moonsand.create { limits = { memory = "64M", cpus = nil } })
          moonsand.assert(box:start "sleep 1000")
          print(require "moonsand.core".getpid())
          io.stdout:flush()
        ]] .. last)
        local pid = tonumber(text:match "^%d+")
        assert.truthy(pid, text)
        support.eventually(10, how .. ": groups are left", function()
          local left = groups_of(pid)
          return #left == 0, table.concat(left, ", ")
        end)
        support.eventually(30, how .. ": the keeper stays", function()
          for each, process in pairs(support.processes()) do
            local line = process.name == "moonsand-keeper" and process.state ~= "Z"
              and support.read(("/proc/%d/cmdline"):format(each)) or ""
            if line:find(("moonsand-%d-"):format(pid), 1, true) then
              return false
            end
          end
          return true
        end)
      end
    end)

    it("leave no group behind for long, even if their keeper was killed as well", function()
      local text = support.child [[
        local moonsand = require "moonsand"
        box = moonsand.assert(moonsand.create { limits = { memory = "64M" } })
        print(require "moonsand.core".getpid())
        io.stdout:flush()
        os.execute [=[
          find /sys/fs/cgroup -type d -name "moonsand-$PPID-*" 2>/dev/null
          for each in /proc/[0-9]*; do
            case "$(tr '\0' ' ' 2>&1 <$each/cmdline)" in
            "moonsand-keeper moonsand-$PPID-"*) kill -KILL ${each#/proc/} ;;
            esac
          done
          kill -KILL $PPID]=]
      ]]
      local pid = tonumber(text:match "^%d+")
      assert.truthy(pid, text)
      -- seen while it lived: from then on any host that starts removes it
      assert.truthy(text:find(("\n/sys/fs/cgroup/[^\n]*/moonsand%%-%d%%-"):format(pid)), text)
      support.eventually(20, "its sandbox lives on", function() -- what is not empty is let be
        for _, path in ipairs(groups_of(pid)) do
          if (support.read(path .. "/cgroup.procs") or "") ~= "" then
            return nil, path
          end
        end
        return true
      end)
      support.child [[
        local moonsand = require "moonsand"
        moonsand.assert(moonsand.create { limits = { memory = "64M" } }):destroy(10)]]
      support.eventually(30, "groups are left", function()
        local left = groups_of(pid)
        return #left == 0, table.concat(left, ", ")
      end)
    end)

    it("leave no group behind when the sandbox cannot be made", function()
      local box, _, code = moonsand.create { limits = { memory = "64M" }, seccomp = { allow = { "mount" } } }
      assert.is_nil(box)
      assert.equal("invalid", code)
      await_none(own)
    end)
  end
end)

describe("limits of each program", function()
  helper.deadline(60)
  helper.no_leaks()

  it("are whole numbers; of half a second of CPU time a whole one is held", function()
    local box = moonsand.assert(moonsand.create { limits = { cpu_time = 0.5 } })
    assert.equal("1", tostring(box:info().limits.cpu_time.value))
    for _ = 1, 5 do
      assert.equal("1\n", moonsand.assert(box:exec "ulimit -t").stdout)
    end
    box:close()
    for _, name in ipairs { "processes", "open_files", "inodes" } do
      local none, message, code = moonsand.create { limits = { [name] = 200.5 } }
      assert.is_nil(none)
      assert.equal("invalid", code)
      assert.truthy(message:find "whole number")
    end
  end)

  it("that are above the hard ones of this process are refused, with cause and fix", function()
    local box, message, code, detail = moonsand.create { limits = { open_files = 2 ^ 40 } }
    assert.is_nil(box)
    assert.equal("unavailable", code)
    assert.truthy(message:find("limits.open_files", 1, true))
    assert.is_false(detail.started)
    assert.truthy(detail.cause:find "hard limit")
    assert.truthy(detail.fix:find("at most " .. ("%.0f"):format(core.hard_limit "open_files"), 1, true))
  end)

  it("are by default no more than the hard ones of this process", function()
    assert.equal("500 500 ok\n", (support.child_with_files([[
      local moonsand = require "moonsand"
      local box = moonsand.assert(moonsand.create())
      local _, _, code = box:exec("true", { limits = { open_files = 501 } })
      print(box:info().limits.open_files.value, moonsand.assert(box:exec "ulimit -n").stdout:match "%d+",
        code == "unavailable" and "ok" or code)]], 500):gsub("\t", " ")))
  end)
end)
