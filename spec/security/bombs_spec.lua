-- Programs that take all that they can get, on every layer that holds limits here: each ends as it
-- should, and meanwhile a sandbox next door answers, and so does the host.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local MIB = 1024 * 1024

--- What holds them: rlimits and a tmpfs everywhere, control groups where they can be made.
local INODES = support.isolation == "native" and 2000 or nil
local layers = { rlimits = { processes = 60, disk = "8M", inodes = INODES, open_files = 100 } }

local function in_groups(memory)
  return { processes = 60, disk = "8M", inodes = INODES, open_files = 100, memory = memory, cpus = 1 }
end

do
  -- Where it is not memory that is used up, there is plenty: what the kernel has still to free, of
  -- processes that ended and of those that could not be made, counts too, and was 80M.
  local box = moonsand.create { limits = in_groups "1G" }
  if box then
    layers["control groups"] = in_groups "1G"
    moonsand.assert(box:destroy(10))
  end
end

for layer, limits in pairs(layers) do
  describe("bombs, held by " .. layer .. ":", function()
    local grouped = limits.memory ~= nil
    local box, neighbour, bomb, disk

    helper.deadline(60)
    helper.no_leaks(function()
      box:close()
      neighbour:close()
    end)

    local function open(held_by)
      box = moonsand.assert(moonsand.create { limits = held_by })
      bomb = support.put(box, support.probe "bomb")
      disk = support.put(box, support.probe "disk")
    end

    before_each(function()
      open(limits)
      neighbour = moonsand.assert(moonsand.create())
    end)

    --- With little memory instead, where groups hold it.
    local function open_small()
      if grouped then
        box:close()
        open(in_groups "128M")
      end
    end

    --- Lets one go off. While it does: the neighbour and the host.
    local function explode(argv, opts)
      local begun = core.now()
      local p = moonsand.assert(box:start(argv, opts))
      for _ = 1, 3 do
        assert.equal("fine\n", moonsand.assert(neighbour:exec("echo fine", 20)).stdout)
        assert.equal(0, select(2, support.run "true"))
      end
      local r = moonsand.assert(p:wait(40))
      return r, core.now() - begun
    end

    --- The sandbox goes on, and nothing is left of what was in it.
    local function assert_works()
      assert.equal(0, #support.descendants((support.agent(box))))
      assert.equal("fine\n", moonsand.assert(box:exec("echo fine", 20)).stdout)
      assert.equal("fine\n", moonsand.assert(neighbour:exec("echo fine", 20)).stdout)
    end

    for _, mode in ipairs { "fork", "runner", "zombies", "threads", "fill" } do
      it(mode .. " ends at its time", function()
        -- what multiplies meets the limit, on a slow machine not within a second
        local met = grouped and mode ~= "runner" and "processes" or nil
        local r = support.in_time({ 1, 10 }, function(timeout)
          local result, took = explode({ bomb, mode }, { timeout = timeout })
          assert.equal("timed_out", result.status)
          assert.is_true(took < timeout + 20, tostring(took))
          return result
        end, function(result)
          return mode == "runner" or result.limit == met
        end)
        assert.equal(met, mode ~= "runner" and r.limit or nil)
        assert_works()
      end)
    end

    it("memory ends at the limit", function()
      open_small()
      local r = explode({ bomb, "memory" },
        { limits = not grouped and { memory = "32M" } or nil, timeout = 30 })
      if grouped then
        assert.same({ "resource_limit", "memory", "KILL" }, { r.status, r.limit, r.signal })
        assert.equal("", r.stdout)
      else
        assert.is_true(tonumber(r.stdout:match "%d+") <= 32, r.stdout)
        assert.is_true(r.ok)
      end
      assert_works()
    end)

    it("memory that many take together ends at the limit, or at its time", function()
      if not grouped then -- nothing holds it but the number of processes: it must not try to fill the host
        assert.is_nil(box:info().limits.memory)
        return
      end
      open_small()
      local r = explode(("for i in $(seq 20); do %s memory & done; wait"):format(bomb), { timeout = 20 })
      assert.equal("memory", r.limit, tostring(r))
      assert_works()
    end)

    it("files are full at their size", function()
      local r = explode({ disk, "bytes", "/tmp", "/dev/shm", "/workspace" }, { timeout = 30 })
      local total = 0
      for count in r.stdout:gmatch "(%d+) ENOSPC" do
        total = total + tonumber(count)
      end
      assert.is_true(r.ok, r.stdout)
      assert.is_true(total > 4 * MIB and total <= 8 * MIB, r.stdout)
      assert_works()
      assert.is_nil(r.limit)
    end)

    helper.native_it("names are at an end at their number", function()
      local r = explode({ disk, "inodes", "/tmp" }, { timeout = 30 })
      assert.truthy(r.stdout:find "ENOSPC", r.stdout)
      assert.is_true(tonumber(r.stdout:match " (%d+) ") <= 2000, r.stdout)
      assert_works()
    end)

    it("open files are at an end at their number", function()
      local r = explode({ bomb, "files" }, { timeout = 30 })
      assert.is_true(tonumber(r.stdout:match "%d+") <= 100, r.stdout)
      assert_works()
    end)

    it("output is kept in part, or is the end", function()
      local r = support.in_time({ 1, 10 }, function(timeout)
        return (explode("yes", { timeout = timeout, max_output = 1000 }))
      end, function(result)
        assert.equal("timed_out", result.status)
        return result.stdout_bytes > 1000
      end)
      assert.equal("timed_out", r.status)
      assert.equal(1000, #r.stdout)
      assert.is_true(r.stdout_bytes > 1000)
      r = explode("yes", { timeout = 30, max_output = 1000, on_limit = "kill" })
      assert.same({ "output_limit", "output" }, { r.status, r.limit })
      assert_works()
    end)

    it("time on the CPU is at its end", function()
      local r = explode({ "sh", "-c", "while :; do :; done" }, { limits = { cpu_time = 1 }, timeout = 30 })
      assert.same({ "resource_limit", "cpu_time" }, { r.status, r.limit })
      assert_works()
    end)

    it("a file is at its size", function()
      local r = explode({ "head", "-c", "1M", "/dev/zero" }, { timeout = 30, limits = { file_size = "4K" } })
      assert.is_true(r.ok) -- a pipe is no file
      r = explode("exec dd if=/dev/zero of=big bs=8192 count=2 2>&-",
        { timeout = 30, limits = { file_size = "4K" } })
      assert.same({ "resource_limit", "file_size" }, { r.status, r.limit })
      assert_works()
    end)

    if grouped then
      it("all of it at once leaves the agent alive, or tells why it is not", function()
        open_small()
        local r, message, code, detail = box:exec(([[
          for mode in fork zombies threads memory; do %s $mode & done
          head -c 100M /dev/zero >/tmp/file; wait]]):format(bomb), { timeout = 3 })
        if r then
          assert.truthy(r.timed_out or r.limit)
          assert_works()
        else
          assert.equal("gone", code, message)
          assert.equal("memory", detail.limit)
        end
        assert.equal("fine\n", moonsand.assert(neighbour:exec("echo fine", 20)).stdout)
      end)
    end
  end)
end
