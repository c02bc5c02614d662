-- Who the programs of a sandbox are, inside and as the host sees them, and what they start with.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()

describe("identity", function()
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

  --- A program that sleeps, as the host sees it.
  local function outside()
    local p = moonsand.assert(box:start { "sleep", "1000" })
    local agent = support.agent(box)
    local pid = support.eventually(20, "the program is not to be seen", function()
      for _, process in ipairs(support.descendants(agent)) do
        if process.name == "sleep" then
          return process.pid
        end
      end
    end)
    return pid, p, agent
  end

  local function root_of_the_machine()
    local map = support.read "/proc/self/uid_map"
    return native.getuid() == 0 and map:find "^%s*0%s+0%s" ~= nil
  end

  it("is not 0 inside", function()
    assert.equal("1000 1000\n", output "echo $(id -u) $(id -g)")
    assert.equal("sandbox\n", output "id -un")
    assert.equal("1000\t1000\t1000\t1000\n", output "sed -n 's/^Uid:\t//p' /proc/self/status")
  end)

  it("is not root outside, also when the host is", function()
    local pid, _, agent = outside()
    for _, process in ipairs { pid, agent, support.process(agent).ppid } do
      for _, field in ipairs { "Uid", "Gid" } do
        local ids = support.status(process, field)
        for id in ids:gmatch "%d+" do
          if root_of_the_machine() or native.getuid() ~= 0 then
            assert.are_not.equal("0", id, field .. " of " .. process)
          end
          if native.getuid() ~= 0 and field == "Uid" then
            assert.equal(tostring(native.getuid()), id)
          end
        end
      end
    end
  end)

  it("has no groups of root's, and none that opens anything more", function()
    local pid, _, agent = outside()
    if native.getuid() == 0 then
      assert.equal("", (support.status(pid, "Groups"):gsub("%s", "")))
      assert.equal("", (support.status(agent, "Groups"):gsub("%s", "")))
    end
    -- an ordinary user's groups come along; inside they have no name and open nothing
    for group in output("id -G"):gmatch "%d+" do
      assert.is_true(group == "1000" or group == "65534", group)
    end
    assert.equal("deny\n", output "cat /proc/self/setgroups")
    assert.equal("", output "find / -xdev -group 65534 ! -type c ! -path '/proc*' ! -perm -o=r 2>/dev/null")
  end)

  it("maps one user and one group", function()
    for _, file in ipairs { "uid_map", "gid_map" } do
      local inside, _, count = output("cat /proc/self/" .. file):match "^%s*(%d+)%s+(%d+)%s+(%d+)\n$"
      assert.same({ "1000", "1" }, { inside, count })
    end
  end)

  it("has no capability, in no set, and cannot get one", function()
    local pid, _, agent = outside()
    for _, process in ipairs { pid, agent } do
      for _, set in ipairs { "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb" } do
        assert.equal("0000000000000000", support.status(process, set), set)
      end
      assert.equal("1", support.status(process, "NoNewPrivs"))
      assert.equal("2", support.status(process, "Seccomp"))
    end
  end)

  it("is in namespaces of its own, all seven", function()
    if native.getuid() ~= 0 then
      return -- only root may look at those of an agent
    end
    local pid = outside()
    for _, name in ipairs { "user", "mnt", "pid", "net", "ipc", "uts", "cgroup" } do
      local theirs = native.readlink(("/proc/%d/ns/%s"):format(pid, name))
      local ours = native.readlink("/proc/self/ns/" .. name)
      assert.truthy(theirs)
      assert.are_not.equal(ours, theirs, name)
    end
  end)

  it("shows a host name of its own", function()
    assert.equal("sandbox\n", output "uname -n")
    local other = moonsand.assert(moonsand.create { hostname = "box-7" })
    local name = other:exec("uname -n; cat /proc/sys/kernel/hostname").stdout
    other:close()
    assert.equal("box-7\nbox-7\n", name)
  end)

  describe("a program starts", function()
    it("with no signal blocked or ignored, whatever the host does", function()
      local text, status = support.child [[
        local native = require "support.init".native()
        for _, number in ipairs { 1, 2, 3, 13, 15, 17, 28, 34, 64 } do
          native.ignore(number, true)
          native.block(number, true)
        end
        local box = assert(require "moonsand".create())
        io.write(box:exec("grep -E '^Sig(Blk|Ign|Pnd)' /proc/self/status").stdout)
      ]]
      assert.equal(0, status, text)
      local zeros = "0000000000000000\n"
      assert.equal("SigPnd:\t" .. zeros .. "SigBlk:\t" .. zeros .. "SigIgn:\t" .. zeros, text)
    end)

    it("with the umask that was asked for, 022 if none", function()
      native.umask(tonumber("077", 8))
      local other = moonsand.assert(moonsand.create())
      local default, own = other:exec("umask").stdout, other:exec("umask", { umask = "027" }).stdout
      other:close()
      native.umask(tonumber("022", 8))
      assert.equal("0022\n", default)
      assert.equal("0027\n", own)
    end)

    it("with the limits of the manual", function()
      local limits = {}
      for name, soft, hard in output("cat /proc/self/limits"):gmatch "Max ([%l ]-)  +(%w+) +(%w+)" do
        limits[name] = soft .. " " .. hard
      end
      assert.equal("1024 1024", limits["open files"])
      assert.equal("1024 1024", limits.processes)
      assert.equal("1 1", limits["core file size"]) -- the one value that a |handler respects
      assert.equal("4096 4096", limits["pending signals"])
      assert.equal("102400 102400", limits["msgqueue size"])
    end)

    it("without core dumps, and without a handler of the host's", function()
      local result = moonsand.assert(box:exec "kill -SEGV $$")
      assert.equal("SEGV", result.signal)
      assert.equal("", output "ls -A /workspace /tmp | grep core; true")
    end)

    it("in no cgroup that it can see or change", function()
      for line in output("cat /proc/self/cgroup"):gmatch "[^\n]+" do
        assert.truthy(line:find ":/$", line)
      end
      assert.equal("", output "grep cgroup /proc/self/mounts; true")
    end)
  end)
end)
