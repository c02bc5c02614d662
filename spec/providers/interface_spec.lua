--- What a provider is asked and how: registering, dispatching, programs made of `exec`, programs
--- made of events and their pipes, ends that are still under way.

local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local pipes = require "moonsand.providers.pipe"
local programs = require "moonsand.providers.program"
local providers = require "moonsand.providers"

local function code_of(value, message, code, detail)
  assert.is_nil(value)
  assert.is_string(message)
  assert.equal(code, detail.code)
  return code
end

--- A provider whose programs are `run(job)`.
local function events(name, run, opts, more)
  local provider = {
    create = function()
      local driver = { running = {} }
      function driver:start(spec)
        local program = programs.new(spec, run, opts)
        self.running[#self.running + 1] = program
        return program
      end
      function driver:close()
        self.closed = true
        for _, program in ipairs(self.running) do
          program:signal(9, true, "close")
        end
      end
      function driver:destroy()
        self:close()
        return true
      end
      function driver:state()
        return self.closed and "closed" or "ready"
      end
      return driver
    end,
  }
  for key, value in pairs(more or {}) do
    provider[key] = value
  end
  moonsand.register(name, provider)
  return provider
end

describe("moonsand.providers", function()
  helper.deadline(30)

  it("are registered by name, once they are what they must be", function()
    events("spec-named", function() end)
    local names = " " .. table.concat(moonsand.providers(), " ") .. " "
    assert.truthy(names:find(" spec-named ", 1, true))
    for _, wrong in ipairs { { 1, {} }, { "", { create = print } }, { "x", {} }, { "x", 1 },
      { "local", { create = print } }, { "x", { create = print, list = 1 } },
      { "x", { create = print, options = 1 } } } do
      assert.has_error(function()
        moonsand.register(wrong[1], wrong[2])
      end)
    end
  end)

  it("that are not there are named, with the nearest", function()
    local value, message, code, detail = moonsand.create { provider = "locl" }
    assert.equal("invalid", code_of(value, message, code, detail))
    assert.truthy(message:find("did you mean 'local'", 1, true))
    assert.equal("invalid", code_of(moonsand.list { provider = "nope" }))
  end)

  it("answer unsupported for calls that they lack", function()
    moonsand.register("spec-lacks", { create = function() end })
    for _, call in ipairs { "list", "snapshots" } do
      assert.equal("unsupported", code_of(moonsand[call] { provider = "spec-lacks" }))
    end
    for _, call in ipairs { "connect", "destroy", "delete_snapshot" } do
      assert.equal("unsupported", code_of(moonsand[call]("x", { provider = "spec-lacks" })))
      assert.has_error(function()
        moonsand[call](7)
      end)
    end
  end)

  it("are asked by connect, list, destroy with their own options", function()
    local asked = {}
    local provider = events("spec-calls", function() end, nil, { options = { region = "string" } })
    provider.connect = function(id, opts)
      asked[#asked + 1] = id .. opts.region
      local driver = provider.create()
      driver.id, driver.name = id, "named"
      return driver
    end
    provider.list = function(opts)
      return { { id = "a", state = opts.region } }
    end
    provider.destroy = function(id)
      return id == "a" or nil, "no", "not_found", { code = "not_found", message = "no" }
    end
    local box = assert(moonsand.connect("a", { provider = "spec-calls", region = "r" }))
    assert.same({ "ar" }, asked)
    assert.same({ "a", "named", false, "spec-calls" },
      { box.id, box.name, box.owned, box.provider })
    box:close()
    assert.same({ { id = "a", state = "r", provider = "spec-calls" } },
      moonsand.list { provider = "spec-calls", region = "r" })
    assert.is_true(moonsand.destroy("a", { provider = "spec-calls" }))
    local _, _, code, detail = moonsand.destroy("b", { provider = "spec-calls" })
    assert.equal("not_found", code)
    assert.equal("spec-calls", detail.provider)
    assert.has_error(function()
      moonsand.list { provider = "spec-calls", regoin = "r" }
    end)
  end)

  it("end what was closed in their own time, which flush waits for", function()
    local ended, may_end = 0, false
    for _ = 1, 3 do
      providers.ending(function()
        repeat
          moonsand.sleep(0.01)
        until may_end
        ended = ended + 1
      end)
    end
    assert.equal("timeout", code_of(moonsand.flush { timeout = 0.001 }))
    may_end = true
    assert.is_true(moonsand.flush { timeout = 20 })
    assert.equal(3, ended)
    assert.is_true(moonsand.flush())
  end)
end)

describe("a program that is events", function()
  helper.deadline(30)

  it("streams as it goes, and ends", function()
    events("spec-stream", function(job)
      job:began(7)
      for i = 1, 3 do
        moonsand.sleep(0.01)
        job:output(i == 2 and "stderr" or "stdout", i .. "\n")
      end
      return { exit_code = 4 }
    end)
    local box = assert(moonsand.create { provider = "spec-stream" })
    local p = assert(box:start "x")
    assert.equal(7, p.pid)
    assert.equal("1", p.stdout:read "l")
    assert.is_true(p:is_running())
    local r = assert(p:wait())
    assert.same({ 4, "3\n", "2\n", 7 }, { r.exit_code, r.stdout, r.stderr, r.pid })
    assert.equal("1\n3\n", assert(box:exec "x").stdout)
    box:close()
  end)

  it("waits while its reader is behind, and holds no more than that", function()
    local sent = 0
    events("spec-back", function(job)
      for _ = 1, 100 do
        job:output("stdout", ("x"):rep(65536))
        sent = sent + 1
      end
      return { exit_code = 0 }
    end)
    local box = assert(moonsand.create { provider = "spec-back" })
    local p = assert(box:start("x", { stdin = false }))
    moonsand.run(function()
      local total, most = 0, 0
      for data in p.stdout:chunks() do
        total = total + #data
        most = math.max(most, sent * 65536 - total)
        moonsand.sleep(0)
      end
      assert.equal(100 * 65536, total)
      -- what was collected before the first read (all that had come) is a reader's, too
      assert.is_true(most <= 100 * 65536)
    end)
    assert.is_true(assert(p:wait()).ok)
    box:close()
  end)

  it("is killed by its timeout, confirmed or lost", function()
    local told = {}
    events("spec-kill", function(job)
      job:began()
      local message = loop.wait(job.limits)
      return nil, message, "cancelled", { code = "cancelled", message = message }
    end, {
      signal = function(_, number)
        told[#told + 1] = number
        return true
      end,
    })
    local box = assert(moonsand.create { provider = "spec-kill" })
    local r = assert(box:exec("x", { timeout = 0.05 }))
    assert.equal("timed_out", r.status)
    r = assert(box:exec("x", { timeout = 0.05, grace = 0.05 }))
    assert.equal("timed_out", r.status)
    assert.same({ 9, 15, 9 }, told)
    box:close()
    events("spec-lost", function(job)
      job:began()
      loop.wait(job.limits)
      return nil, "cut", "lost", {}
    end)
    box = assert(moonsand.create { provider = "spec-lost" })
    assert.equal("lost", code_of(box:exec("x", { timeout = 0.05 })))
    box:close()
  end)

  it("reads what it is given, and says what went wrong", function()
    events("spec-input", function(job)
      local text = job:input_all(1000)
      if text == "raise" then
        error "a provider's own bug"
      elseif text == "fail" then
        return nil, "gone away", "lost", {}
      end
      job:output("stdout", text:upper())
      return { exit_code = 0 }
    end)
    local box = assert(moonsand.create { provider = "spec-input" })
    assert.equal("ABC", assert(box:exec("x", { stdin = "abc" })).stdout)
    assert.equal("provider", code_of(box:exec("x", { stdin = "raise" })))
    assert.equal("lost", code_of(box:exec("x", { stdin = "fail" })))
    local p = assert(box:start("x", { stdin = "abc" }))
    assert.equal("ABC", assert(p:wait()).stdout)
    box:close()
  end)
end)

describe("a pipe", function()
  helper.deadline(30)

  it("gives what came by line, count, all and chunk", function()
    local pipe = pipes.new(100)
    pipe:push "one\ntwo\nthr"
    assert.equal("one", pipe:take("l", 10))
    assert.equal("two\n", pipe:take("L", 10))
    assert.same({ nil, "again" }, { pipe:take("l", 10) })
    pipe:push "ee\nrest"
    assert.same({ nil, "too_large" }, { pipe:take("l", 2) })
    assert.equal("thr", pipe:take("n", 3))
    assert.equal("ee\n", pipe:take("n", 3))
    assert.same({ nil, "again" }, { pipe:take("a", 10) })
    pipe:finish()
    assert.same({ nil, "too_large" }, { pipe:take("a", 3) })
    assert.equal("rest", pipe:take "chunk")
    assert.same({ nil, "eof" }, { pipe:take "chunk" })
    assert.equal("", pipe:take("a", 3))
  end)

  it("keeps both ends of what is too much", function()
    for _, pieces in ipairs { { ("a"):rep(1000) .. ("b"):rep(1000) },
      { "aaaa", ("x"):rep(50), "bbbbb" } } do
      local pipe, all = pipes.new(9), table.concat(pieces)
      for _, piece in ipairs(pieces) do
        pipe:push(piece)
      end
      local text, at, dropped = pipe:excerpt()
      assert.equal(all:sub(1, 5) .. all:sub(-4), text)
      assert.same({ 5, #all - 9 }, { at, dropped })
      assert.equal(#all, pipe:received())
    end
  end)

  it("lets lines be looked at, and tees", function()
    local pipe = pipes.new(100)
    pipe:push "a\nb"
    assert.same({ "a", 2 }, { pipe:peek(0) })
    assert.same({ nil, "again" }, { pipe:peek(2) })
    pipe:tee()
    assert.equal("a\nb", pipe:take "chunk")
    pipe:finish()
    assert.equal("a\nb", (pipe:excerpt()))
  end)

  it("takes input until it is refused", function()
    local pipe = pipes.new()
    assert.equal(3, pipe:write "abc")
    local big = ("x"):rep(300000)
    local count = pipe:write(big)
    assert.equal(262144 - 3, count)
    assert.same({ nil, "again" }, { pipe:write(big, count + 1) })
    assert.equal("abc", pipe:get():sub(1, 3))
    pipe:refuse()
    assert.is_nil((pipe:write "more"))
    assert.is_nil((pipe:get()))
  end)
end)

describe("one line for a shell", function()
  local command = require "moonsand.providers.command"

  it("does what was asked", function()
    local box = assert(moonsand.create())
    local script = "pwd; umask; echo \"$0|$A|${HOME-none}\"; ulimit -n; echo e >&2"
    local spec = { argv = { "sh", "-c", script, "it's\nodd" }, cwd = "/tmp",
      umask = 23, env = { "A=x 'y'" }, unset = { "HOME" },
      open_files = 77, merge = true }
    local r = assert(box:exec(command.text(spec)))
    assert.equal("/tmp\n0027\nit's\nodd|x 'y'|none\n77\ne\n", r.stdout)
    assert.equal("exec echo -n '' 'a b'", command.text { argv = { "echo", "-n", "", "a b" } })
    box:close()
  end)
end)
