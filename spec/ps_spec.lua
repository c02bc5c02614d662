-- What runs in a local sandbox and what it uses, compared with what the host's /proc says; signals;
-- names that mean to mislead.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local portable = require "moonsand.portable"
local support = require "support.init"

local fails = support.fails

describe("processes of a local sandbox", function()
  helper.deadline(30)

  local box

  helper.no_leaks(function()
    box:close()
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  --- Starts a program and waits until it says so.
  local function start(command, opts)
    local p = moonsand.assert(box:start(command, opts))
    assert.equal("up", p.stdout:read("l", 10))
    return p
  end

  local function row_of(pid)
    for _, row in ipairs(moonsand.assert(box:ps())) do
      if row.pid == pid then
        return row
      end
    end
  end

  --- The numbers that the host knows what runs inside by, and the processes.
  local function outside()
    return support.descendants((support.agent(box)))
  end

  it("are read natively", function()
    for _, name in ipairs { "ps", "kill", "metrics", "monitor" } do
      assert.equal("native", box:can(name))
    end
  end)

  describe("box:ps", function()
    it("says of each what the host says", function()
      local p = start "echo up; exec sleep 100"
      local row
      support.eventually(10, "it does not sleep", function()
        row = row_of(p.pid)
        -- of a life of some hundredths of a second, its start is the most
        return row.name == "sleep" and row.state == "sleeping" and row.cpu_percent < 50
      end)
      local seen = outside()
      assert.equal(1, #seen)
      assert.equal(seen[1].name, row.name)
      assert.equal("sleep", row.name)
      assert.same({ "sleep", "100" }, row.argv)
      assert.equal("sleep 100", row.command)
      assert.equal(1, row.ppid)
      assert.equal("sandbox", row.user)
      assert.equal("sleeping", row.state)
      -- The kernel adds up what threads have counted now and then: some pages more or less.
      assert.is_true(math.abs(row.memory - support.rss(seen[1].pid)) <= 512 * 1024)
      assert.is_true(math.abs(row.started_at - os.time()) < 5)
      p:close()
    end)

    it("shows the sandbox's own, and not who looks", function()
      local rows = moonsand.assert(box:ps())
      assert.equal(1, #rows)
      assert.equal(1, rows[1].pid)
      assert.equal(0, rows[1].ppid)
    end)

    it("knows all states", function()
      local stopped = start "echo up; kill -STOP $$"
      local busy = start "echo up; while :; do :; done"
      local parent = start { "sh", "-c", "sleep 0.3 & echo up; exec sleep 100" }
      support.eventually(20, "not stopped", function()
        return row_of(stopped.pid).state == "stopped"
      end)
      support.eventually(20, "no zombie", function()
        return box:ps(function(row)
          return row.state == "zombie" and row.ppid == parent.pid
        end)[1]
      end)
      support.eventually(20, "not running", function()
        return row_of(busy.pid).state == "running"
      end)
      for _, p in ipairs { stopped, busy, parent } do
        p:close()
      end
    end)

    it("measures a known load", function()
      local p = start "echo up; while :; do :; done"
      local pid = outside()[1].pid
      --- Seconds of CPU and of life, as the host counts them.
      local function spent()
        local fields = {}
        for field in support.read(("/proc/%d/stat"):format(pid)):match("%) (.*)"):gmatch "%S+" do
          fields[#fields + 1] = tonumber(field) or field
        end
        local uptime = tonumber(support.read "/proc/uptime":match "%S+")
        return (fields[12] + fields[13]) / 100, uptime - fields[20] / 100
      end
      support.eventually(20, "no load", function()
        return spent() > 0.5
      end)
      local least, youngest = spent()
      local share = row_of(p.pid).cpu_percent
      local most, oldest = spent()
      assert.is_true(share >= 100 * least / (oldest + 0.02), share) -- the host's ages are in ticks
      assert.is_true(share <= 100 * most / (youngest - 0.02) and share <= 110, share)
      p:close()
    end)

    it("takes any name and any words", function()
      local names = {
        "a b", ") R 1 1", "new\nline", "\27[2Jx", "\255\254\192", "sh) Z 0", "((((", "))))", " ",
        "x) S 1 2 3 4 5",
      }
      for _, name in ipairs(names) do
        moonsand.assert(box.files:write("/tmp/name", name))
        local p = start { "sh", "-c", 'printf %s "$(cat /tmp/name)" >/proc/$$/comm; echo up; read x', "a\nb", "", "c d",
          "\255" }
        local row
        support.eventually(20, "it does not sleep", function()
          row = row_of(p.pid)
          return row.state == "sleeping", row.state
        end)
        assert.equal(name:sub(1, 15), row.name)
        assert.equal(1, row.ppid)
        assert.same({ "a\nb", "", "c d", "\255" }, { row.argv[4], row.argv[5], row.argv[6], row.argv[7] })
        assert.equal(7, #row.argv)
        p:close()
      end
    end)

    it("takes a command line that was written over, is empty, or is endless", function()
      local long = ("y"):rep(10000)
      local p = start { "sh", "-c", "echo up; read x", long }
      local row = row_of(p.pid)
      assert.equal(4 * 1024, #table.concat(row.argv, "\0") + (row.argv[4] and 0 or 1))
      p:close()
      local q = start { "python3", "-c", [[
import ctypes
libc = ctypes.CDLL(None)
libc.prctl(15, b"evil) R 1", 0, 0, 0)
print("up", flush=True)
input()
]] }
      assert.equal("evil) R 1", row_of(q.pid).name)
      q:close()
    end)

    it("makes little of what is told at length", function()
      local p = start { "python3", "-c", [[
import os, sys
if len(sys.argv) == 1:
  os.execv("/usr/bin/python3", ["python3", "-c", "print('up', flush=True); input()"] + [""] * 60000)
]] }
      local row = row_of(p.pid)
      assert.equal(1024, #row.argv)
      assert.equal("", row.argv[1024])
      for _, other in ipairs(moonsand.assert(portable.ps(box.core.driver, {}))) do
        if other.pid == p.pid then
          assert.same(row.argv, other.argv)
        end
      end
      p:close()
    end)

    it("knows when each began, again and again", function()
      local before = core.wall()
      local p = start "echo up; read x"
      local after = core.wall()
      local first = row_of(p.pid).started_at
      for _, began in ipairs { first, moonsand.assert(box:processes())[1].started_at } do
        assert.is_true(began >= before - 0.02 and began <= after + 0.02)
      end
      for _ = 1, 20 do
        assert.is_true(math.abs(row_of(p.pid).started_at - first) <= 0.02)
        moonsand.sleep(0.01)
      end
      p:close()
    end)

    it("works in a crowd", function()
      local p = start "for i in $(seq 300); do sleep 100 & done; echo up; wait"
      support.eventually(20, "not all are there", function()
        local count = 0
        for _, row in ipairs(moonsand.assert(box:ps "sleep 100")) do
          count = count + (row.name == "sleep" and row.ppid == p.pid and 1 or 0)
        end
        return count == 300, count
      end)
      p:close()
    end)

    it("ends with its limits, and with the sandbox", function()
      local token = moonsand.token()
      token:cancel()
      local rows, _, code = box:ps(nil, { cancel = token }) -- what is there at once is given
      assert.is_truthy(rows or code == "cancelled")
      fails("cancelled", box:metrics { cancel = token })
      assert.equal(1, moonsand.assert(box:ps())[1].pid)
      moonsand.run(function()
        local task = moonsand.task(function()
          return box:ps()
        end)
        task:cancel()
        assert.equal("cancelled", (select(3, task:wait())))
      end)
    end)
  end)

  describe("box:kill", function()
    it("sends a signal to one", function()
      local p = start "trap 'echo got' USR1; sleep 100 & echo up; while :; do wait; done"
      assert.is_true(box:kill(p.pid, { signal = "USR1" }))
      assert.equal("got", p.stdout:read("l", 5))
      assert.is_true(box:kill(p.pid, { signal = "KILL" }))
      local r = moonsand.assert(p:wait(5))
      assert.equal("KILL", r.signal)
    end)

    it("says what cannot be", function()
      fails("not_found", box:kill(999999))
      fails("not_found", box:kill(2 ^ 31))
      fails("not_found", box:kill(2 ^ 53))
      fails("permission_denied", box:kill(1))
      fails("permission_denied", box:kill(1, { tree = true, signal = "KILL" }))
      local p = moonsand.assert(box:start "true")
      p:wait()
      fails("not_found", box:kill(p.pid))
      fails("not_found", box:kill(p.pid, { tree = true }))
    end)

    it("reaches everything below, but nothing beside", function()
      local other = start "echo up; exec sleep 200"
      local p = start [[
        sh -c 'sleep 100 & setsid sleep 101 & sh -c "sleep 102 & wait" & wait' &
        echo up; wait
      ]]
      support.eventually(20, "not all are there", function()
        local sleeping = 0
        for _, process in ipairs(outside()) do
          sleeping = sleeping + (process.name == "sleep" and 1 or 0)
        end
        return sleeping == 4
      end)
      assert.is_true(box:kill(p.pid, { tree = true, signal = "KILL", grace = 5 }))
      support.eventually(20, "some are left", function()
        return #outside() == 1
      end)
      assert.is_true(other:is_running())
      support.eventually(20, "the other does not sleep", function()
        return row_of(other.pid).state == "sleeping"
      end)
      other:close()
      p:wait(5)
    end)

    it("asks the tree politely as well", function()
      local p = start([[
        trap 'echo parent >>/tmp/log; exit' TERM
        sh -c 'trap "echo child >>/tmp/log; exit" TERM; echo up; while :; do :; done' &
        while :; do :; done # nothing is started: dash can miss its trap while it does that
      ]], { leave = true }) -- otherwise the child ends with its parent
      assert.is_true(box:kill(p.pid, { tree = true, grace = 10 }))
      p:wait(5)
      support.eventually(20, "not both", function()
        local text = box.files:read "/tmp/log" or ""
        return text:find "parent" and text:find "child"
      end)
    end)

    it("ends a tree that grows all the time", function()
      local small = moonsand.assert(moonsand.create { limits = { processes = 60 } })
      local p = moonsand.assert(small:start([[
        f() { while :; do sh -c 'sleep 0.01; :' & f & sleep 0.01; done; }
        echo up; f
      ]]))
      assert.equal("up", p.stdout:read("l", 5))
      local killed, message, code = small:kill(p.pid, { tree = true, signal = "KILL" })
      assert.is_true(killed or code == "not_found", message) -- a shell that cannot fork ends
      moonsand.assert(p:wait(10))
      small:close()
    end)
  end)

  describe("box:killall", function()
    local DEAF = "trap '' TERM; echo up; read x"

    local function deaf(count)
      local list = {}
      for i = 1, count do
        list[i] = start(DEAF)
      end
      return list
    end

    it("has one grace for all", function()
      local list = deaf(6)
      local begun = core.now()
      assert.equal(6, box:killall("trap '' TERM", { grace = 2 }))
      local took = core.now() - begun
      assert.is_true(took >= 2 and took < 8, took) -- once, not six times
      for _, p in ipairs(list) do
        assert.equal("KILL", moonsand.assert(p:wait(5)).signal)
      end
    end)

    it("has sent all their signal when its time is over", function()
      local list = deaf(2)
      list[3], list[4] = start "echo up; read x; exit 4", start "echo up; read x; exit 4"
      local _, detail = fails("timeout", box:killall("echo up; read x", { grace = 20, timeout = 3 }))
      assert.equal(4, detail.count)
      assert.equal("TERM", moonsand.assert(list[3]:wait(5)).signal)
      assert.equal("TERM", moonsand.assert(list[4]:wait(5)).signal)
      assert.is_true(list[1]:is_running())
      list[1]:close()
      list[2]:close()
    end)
  end)

  describe("a pid that is another's by now", function()
    it("is told from what had it, natively and portably", function()
      local driver, TERM = box.core.driver, 15
      for _, calls in ipairs { driver, portable } do
        local p = start "echo up; exec sleep 100"
        local _, began = moonsand.assert(calls.ps(driver, {}))
        local sample = moonsand.assert(calls.sample(driver, p.pid, {}))
        assert.equal(began[p.pid], sample.began)
        local stranger = sample.began + 1
        for _, tree in ipairs { false, true } do
          assert.equal("not_found", (select(3, calls.kill(driver, p.pid, TERM, tree, {}, stranger))))
        end
        assert.equal("not_found", (select(3, calls.sample(driver, p.pid, {}, stranger))))
        assert.is_true(p:is_running())
        moonsand.assert(calls.sample(driver, p.pid, {}, sample.began))
        assert.equal(sample.began, calls.kill(driver, p.pid, TERM, true, {}, sample.began))
        assert.equal("TERM", moonsand.assert(p:wait(5)).signal)
      end
    end)

    if support.native().getuid() ~= 0 then
      return -- what follows needs the right to say which pid comes next
    end

    --- A program that has this pid.
    local function next_with(pid)
      support.native().pause(0.02) -- starts are told in hundredths of a second: these two are not the same
      local last = ("nsenter -t %d -p sh -c 'echo %d >/proc/sys/kernel/ns_last_pid'"):format(
        support.agent(box), pid - 1)
      for _ = 1, 50 do
        assert.equal(0, select(2, support.run(last)))
        local p = moonsand.assert(box:start "sleep 100")
        if p.pid == pid then
          return p
        end
        p:close()
      end
      error "the pid was always another's"
    end

    local function goes_on(p)
      assert.is_true(p:is_running())
      fails("timeout", p:wait(0.2))
      p:close()
    end

    it("is not killed after the grace", function()
      local p = start "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"
      moonsand.run(function()
        local killing = moonsand.task(box.kill, box, p.pid, { grace = 2 })
        moonsand.assert(p:wait(10))
        local stranger = next_with(p.pid)
        assert.is_true(moonsand.assert(killing:wait()))
        goes_on(stranger)
      end)
    end)

    it("is not killed with all others", function()
      local STUBBORN = ": both; trap 'echo got' TERM; echo up; while :; do :; done"
      local deaf, p = start(STUBBORN), start(STUBBORN)
      moonsand.run(function()
        local killing = moonsand.task(box.killall, box, ": both", { grace = 2 })
        assert.equal("got", deaf.stdout:read("l", 10))
        assert.equal("got", p.stdout:read("l", 10))
        p:kill "KILL"
        moonsand.assert(p:wait(10))
        local stranger = next_with(p.pid)
        assert.equal(2, killing:wait())
        assert.equal("KILL", moonsand.assert(deaf:wait(10)).signal)
        goes_on(stranger)
      end)
    end)

    it("is not watched", function()
      local p = start "echo up; read x"
      local samples = moonsand.assert(box:monitor(p.pid, { interval = 0.05 }))
      assert.is_table(samples:next(10))
      p:kill "KILL"
      moonsand.assert(p:wait(10))
      local stranger = next_with(p.pid)
      local sample, message = samples:next(10)
      assert.is_nil(sample)
      assert.is_nil(message)
      goes_on(stranger)
    end)
  end)

  describe("an iterator that is closed while somebody waits", function()
    local function is_closed(samples, close)
      moonsand.run(function()
        local waiting = moonsand.task(function()
          return samples:next(20)
        end)
        moonsand.sleep(0.3)
        close()
        local begun = core.now()
        fails("closed", waiting:wait())
        assert.is_true(core.now() - begun < 10)
      end)
    end

    it("says so", function()
      local p = start "echo up; read x"
      local samples = moonsand.assert(box:monitor(p.pid, { interval = 30 }))
      is_closed(samples, function()
        samples:close()
      end)
      assert.is_nil(samples:next())
      local all = box:watch_metrics { interval = 30 }
      assert.is_table(all:next(10))
      is_closed(all, function()
        all:close()
      end)
      p:close()
    end)

    it("also when it is the sandbox", function()
      local p = start "echo up; read x"
      is_closed(moonsand.assert(box:monitor(p.pid, { interval = 30 })), function()
        box:close()
      end)
    end)
  end)

  describe("box:monitor", function()
    it("measures a known load, and ends with the process", function()
      local p = start "echo up; while :; do :; done"
      local samples, shares = 0, {}
      for sample in moonsand.assert(box:monitor(p.pid, { interval = 0.1 })) do
        samples = samples + 1
        shares[samples] = sample.cpu_percent
        assert.is_true(sample.cpu_percent >= 0, sample.cpu_percent)
        assert.equal(1, sample.threads)
        assert.is_true(sample.memory > 0)
        if samples == 5 then
          p:kill "KILL"
          p:wait(5)
        end
      end
      assert.equal(5, samples)
      -- One is off when others run between the two readings, of what was used and of the clock.
      table.sort(shares)
      assert.is_true(shares[3] < 150, table.concat(shares, ", "))
    end)

    it("counts threads and memory", function()
      local p = start { "python3", "-c", [[
import threading, time
data = b"x" * 50000000
for _ in range(4):
  threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
print("up", flush=True)
time.sleep(100)
]] }
      local sample = moonsand.assert(box:monitor(p.pid, { interval = 0.01 })):next()
      assert.equal(5, sample.threads)
      assert.is_true(sample.memory > 50e6 and sample.memory < 120e6, sample.memory)
      p:close()
    end)

    it("says that there is none", function()
      fails("not_found", box:monitor(4242))
    end)
  end)

  describe("box:metrics", function()
    it("counts what is there", function()
      local before = moonsand.assert(box:metrics())
      assert.equal(1, before.processes)
      assert.equal(tonumber((support.run "nproc")), before.cpu_count)
      local total = tonumber(support.read("/proc/meminfo"):match "MemTotal:%s+(%d+)") * 1024
      assert.is_true(math.abs(before.memory_total - total) < 64 * 1024 * 1024)
      moonsand.assert(box.files:write("/tmp/data", ("x"):rep(3000000)))
      local p = start { "python3", "-c", "data = b'x' * 50000000; print('up', flush=True); input()" }
      local after = moonsand.assert(box:metrics())
      assert.equal(2, after.processes)
      local grown = after.disk_used - before.disk_used
      assert.is_true(grown >= 3000000 and grown < 4000000, grown)
      grown = after.memory_used - before.memory_used
      assert.is_true(grown > 50e6 and grown < 120e6, grown)
      p:close()
    end)

    it("measures a known load, also of what is soon over", function()
      assert.is_true(moonsand.assert(box:metrics()).cpu_percent < 20)
      local p = start "echo up; while :; do :; done"
      support.eventually(10, "no load", function()
        local share = moonsand.assert(box:metrics()).cpu_percent
        return share > 10 and share < 150
      end)
      p:close()
      local q = start "echo up; while :; do /bin/true; done"
      support.eventually(10, "no load", function()
        return moonsand.assert(box:metrics()).cpu_percent > 10
      end)
      q:close()
    end)

    it("ends with its limits", function()
      fails("timeout", box:metrics(0.01))
      local count = 0
      for m in box:watch_metrics { interval = 0.01 } do
        assert.is_true(m.processes >= 1)
        count = count + 1
        if count == 3 then
          break
        end
      end
      box:close()
    end)
  end)
end)
