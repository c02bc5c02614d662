-- The reactor from Lua's side: timers, steps, life. Sources and forks: support/reactor_check.c.

local core = require "moonsand.core"

--- The lowest free descriptor: the same before and after what leaks none.
local function free_descriptor()
  collectgarbage()
  collectgarbage()
  local probe = assert(core.reactor())
  local fd = probe:fd()
  probe:close()
  return fd
end

local function drain(r)
  local ids = {}
  local id = r:next()
  while id do
    ids[#ids + 1] = id
    id = r:next()
  end
  return ids
end

--- A permutation of 1 … n that is the same in each run.
local function shuffled(n)
  local list, state = {}, 42
  for i = 1, n do
    list[i] = i
  end
  for i = n, 2, -1 do
    state = (state * 16807) % 2147483647
    local j = state % i + 1
    list[i], list[j] = list[j], list[i]
  end
  return list
end

describe("moonsand.reactor", function()
  local r

  before_each(function()
    r = assert(core.reactor())
  end)

  after_each(function()
    r:close()
  end)

  describe(":step", function()
    it("answers 0 at once when there is nothing", function()
      assert.equal(0, r:step(0))
      assert.is_nil(r:next())
    end)

    it("waits for a fraction of a second, and not less", function()
      for _, seconds in ipairs { 0.0001, 0.0025, 0.02 } do
        local start = core.now()
        assert.equal(0, r:step(seconds))
        local took = core.now() - start
        assert.is_true(took >= seconds)
        assert.is_true(took < seconds + 5)
      end
    end)

    it("waits for ever, until a timer", function()
      local at = core.now() + 0.01
      local id = r:timer(at)
      assert.equal(1, r:step(-1))
      assert.is_true(core.now() >= at)
      assert.equal(id, r:next())
      assert.is_nil(r:next())
    end)

    it("takes a very long timeout", function()
      r:timer(core.now() + 0.005)
      assert.equal(1, r:step(math.huge))
      drain(r)
      r:timer(core.now() + 0.005)
      assert.equal(1, r:step(1e300))
    end)

    it("does not wait while something is ready", function()
      r:timer(0)
      assert.equal(1, r:step(0))
      assert.equal(1, r:step(-1))
      assert.equal(1, #drain(r))
    end)

    it("raises what is no number", function()
      assert.has_error(function() r:step(0 / 0) end)
      assert.has_error(function() r:step({}) end)
      assert.has_error(function() r:step("soon") end)
    end)

    it("costs little when idle", function()
      if os.getenv "MOONSAND_VALGRIND" then
        return
      end
      local n, least = 20000, math.huge
      for _ = 1, 10 do -- the quickest round: what a busy machine takes is not the step's
        local start = os.clock()
        for _ = 1, n do
          r:step(0)
        end
        least = math.min(least, os.clock() - start)
      end
      -- the budget is 0.3 µs; ten times that is a system call that crept in, on any machine
      assert.is_true(least / n < 3e-6)
    end)
  end)

  describe(":timer", function()
    it("gives ids that are never used twice, and are integers", function()
      local seen = {}
      for _ = 1, 1000 do
        local id = r:timer(core.now() + 100)
        assert.is_nil(seen[id])
        seen[id] = true
        if math.type then
          assert.equal("integer", math.type(id))
        end
        r:cancel(id)
      end
    end)

    it("is due at once when its time is past", function()
      local a, b, c = r:timer(0), r:timer(-5), r:timer(-math.huge)
      assert.equal(3, r:step(0))
      assert.same({ a, b, c }, drain(r))
    end)

    it("may never come", function()
      local id = r:timer(math.huge)
      assert.equal(0, r:step(0.001))
      assert.is_true(r:cancel(id))
    end)

    it("goes off once", function()
      r:timer(core.now() + 0.001)
      assert.equal(1, r:step(-1))
      drain(r)
      assert.equal(0, r:step(0.003))
      assert.equal(0, r:active())
    end)

    it("keeps the order of 10,000", function()
      local base, by_rank, order = core.now() - 100, {}, shuffled(10000)
      for _, rank in ipairs(order) do
        by_rank[rank] = r:timer(base + rank * 1e-6)
      end
      assert.equal(10000, r:active())
      assert.equal(10000, r:step(-1))
      assert.same(by_rank, drain(r))
      assert.equal(0, r:active())
    end)

    it("keeps the order of age among those of one instant", function()
      local at, ids = core.now() + 0.002, {}
      for i = 1, 1000 do
        ids[i] = r:timer(at)
      end
      local got = {}
      while #got < 1000 do
        assert.is_true(r:step(5) > 0)
        for _, id in ipairs(drain(r)) do
          got[#got + 1] = id
        end
      end
      assert.same(ids, got)
    end)

    it("raises what is no time", function()
      assert.has_error(function() r:timer() end)
      assert.has_error(function() r:timer(0 / 0) end)
      assert.has_error(function() r:timer("x") end)
    end)
  end)

  describe(":cancel", function()
    it("takes out any timer, in any order", function()
      local base, ids, order = core.now() - 100, {}, shuffled(10000)
      for rank = 1, 10000 do
        ids[rank] = r:timer(base + rank * 1e-6)
      end
      local left = {}
      for i, rank in ipairs(order) do
        if i <= 9000 then
          assert.is_true(r:cancel(ids[rank]))
          ids[rank] = false
        end
      end
      for rank = 1, 10000 do
        left[#left + 1] = ids[rank] or nil
      end
      assert.equal(1000, r:step(0))
      assert.same(left, drain(r))
    end)

    it("answers false for what is not a pending timer", function()
      local id = r:timer(core.now() + 100)
      assert.is_true(r:cancel(id))
      assert.is_false(r:cancel(id))
      assert.is_false(r:cancel(0))
      assert.is_false(r:cancel(-1))
      assert.is_false(r:cancel(123456789))
      local due = r:timer(0)
      r:step(0)
      assert.is_false(r:cancel(due))
    end)

    it("leaves the next one on time", function()
      r:fd() -- the timerfd is in use
      local first = r:timer(core.now() + 0.001)
      local at = core.now() + 0.01
      local second = r:timer(at)
      r:cancel(first)
      assert.equal(1, r:step(-1))
      assert.equal(second, r:next())
      assert.is_true(core.now() >= at)
    end)
  end)

  describe(":fd", function()
    it("is readable when a timer is due, and no longer once it was served", function()
      -- epoll sets can be watched by epoll sets: here by nothing but their /proc entry
      local outer = r:fd()
      assert.is_true(outer >= 0)
      for _ = 1, 3 do
        local id = r:timer(core.now() + 0.001)
        assert.equal(1, r:step(-1))
        assert.equal(id, r:next())
        assert.equal(0, r:step(0))
      end
    end)

    it("sees timers that were made before it was asked for", function()
      local id = r:timer(core.now() + 0.002)
      r:fd()
      assert.equal(1, r:step(-1))
      assert.equal(id, r:next())
    end)
  end)

  describe(":close", function()
    it("may be called twice, and gives back what it had", function()
      local before = free_descriptor()
      local other = assert(core.reactor())
      assert.equal(before, other:fd())
      assert.not_equal(before, free_descriptor())
      other:close()
      other:close()
      assert.equal(before, free_descriptor())
      assert.is_true(other:foreign())
    end)

    it("makes every later use raise, but for what asks", function()
      r:timer(core.now() + 1)
      r:close()
      assert.equal("moonsand.reactor (closed)", tostring(r))
      assert.is_true(r:foreign())
      assert.is_nil(r:next())
      assert.is_false(r:cancel(1))
      assert.equal(0, r:active())
      assert.is_nil(r:step(0))
      for _, call in ipairs { "fd", "timer" } do
        assert.has_error(function() r[call](r, 1) end, "moonsand.reactor: used after close()")
      end
    end)

    it("happens by itself when it is collected", function()
      local before = free_descriptor()
      for _ = 1, 50 do
        assert(core.reactor()):timer(core.now() + 1)
      end
      assert.equal(before, free_descriptor())
    end)
  end)

  it("is nothing but itself", function()
    assert.has_error(function() r.step({}, 0) end)
    assert.has_error(function() r.step(io.stdout, 0) end)
    assert.equal("moonsand.reactor", getmetatable(r))
    assert.is_false(r:foreign())
  end)

  it("does not grow with use", function()
    local function use()
      for _ = 1, 20000 do
        r:cancel(r:timer(core.now() + 100))
        r:timer(0)
        r:step(0)
        r:next()
      end
      collectgarbage()
      collectgarbage()
    end
    local function resident()
      for line in io.lines "/proc/self/status" do
        local kib = line:match "^VmRSS:%s*(%d+)"
        if kib then
          return tonumber(kib)
        end
      end
    end
    use()
    local before = resident()
    use()
    use()
    assert.is_true(resident() - before < 1024)
  end)
end)

describe("moonsand.core", function()
  it("names errors both ways", function()
    assert.equal(2, core.errno.ENOENT)
    assert.equal("No such file or directory", core.strerror(core.errno.ENOENT))
  end)

  it("gives random bytes", function()
    assert.equal("", core.random(0))
    assert.equal(16, #core.random(16))
    assert.equal(4096, #core.random(4096))
    assert.not_equal(core.random(16), core.random(16))
    assert.has_error(function() core.random(-1) end)
    assert.has_error(function() core.random(4097) end)
  end)

  it("knows its file, by an absolute path", function()
    local path = core.module_path()
    assert.equal("/", path:sub(1, 1))
    assert(io.open(path)):close()
  end)

  it("knows where one can yield", function()
    local inside, sorted
    coroutine.wrap(function()
      inside = core.isyieldable()
      table.sort({ 2, 1 }, function(a, b)
        sorted = core.isyieldable()
        return a < b
      end)
    end)()
    assert.is_true(inside)
    assert.is_false(sorted)
  end)

  it("has a clock that does not go back", function()
    local last = core.now()
    for _ = 1, 1000 do
      local now = core.now()
      assert.is_true(now >= last)
      last = now
    end
  end)
end)
