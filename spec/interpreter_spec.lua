--- `box:interpreter` over a provider of a few lines, whose interpreter does what each test scripts:
--- so what is specified here holds on every provider. (What OpenSandbox's own do is in its spec.)

local errors = require "moonsand.errors"
local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"

--- An interpreter whose code is Lua, with globals: `state`, `out`, `err`, `show`, and `nap(seconds)`,
--- which answers true when it is interrupted.
local Scripted = {}
Scripted.__index = Scripted

local made -- the last one

function Scripted:run(code, hear, limits)
  self.runs = self.runs + 1
  self.signal, self.interrupted = loop.signal(), false
  local env = setmetatable({
    state = self.state, self = self, hear = hear, limits = limits,
    out = hear.on_stdout, err = hear.on_stderr, show = hear.on_display,
    nap = function(seconds)
      local message, why = loop.wait({ deadline = loop.now() + seconds, token = limits.token,
        shield = true }, self.signal)
      if why == "cancelled" then
        error(errors.object(why, message), 0)
      end
      return self.interrupted
    end,
  }, { __index = _G })
  local chunk = setfenv and setfenv(assert(loadstring(code)), env) -- luacheck: ignore
    or assert(load(code, "code", "t", env))
  return chunk()
end

function Scripted:interrupt()
  self.interrupts = self.interrupts + 1
  self.interrupted = true
  self.signal:wake()
  return true
end

function Scripted:restart()
  self.restarts = self.restarts + 1
  if self.broken then
    return errors.fail("provider", "no interpreter came")
  end
  self.state = {}
  return true
end

function Scripted:complete(code, cursor)
  return { matches = { "print" }, from = 1, to = cursor, code = code }
end

function Scripted:alive()
  return not self.dead
end

function Scripted:close()
  self.closes = self.closes + 1
end

local Driver = { cwd = "/home" }
Driver.__index = Driver

function Driver:interpreter(language, opts) -- luacheck: no self
  if language == "none" then
    return errors.fail("unavailable", "there is no such interpreter")
  end
  made = setmetatable({ language = language, cwd = opts.cwd, state = {}, runs = 0, interrupts = 0,
    restarts = 0, closes = 0, signal = loop.signal() }, Scripted)
  return made
end

function Driver:exec() -- luacheck: no self
  return errors.fail("unsupported", "no programs here")
end

function Driver:close() -- luacheck: no self
end

function Driver:destroy() -- luacheck: no self
  return true
end

function Driver:state() -- luacheck: no self
  return "ready"
end

moonsand.register("scripted", {
  create = function()
    return setmetatable({}, Driver)
  end,
})

describe("moonsand.interpreter", function()
  local box, interpreter

  helper.deadline(60)
  helper.no_leaks()

  before_each(function()
    box = assert(moonsand.create { provider = "scripted" })
    interpreter = assert(box:interpreter())
  end)

  after_each(function()
    interpreter:close()
    box:close()
  end)

  local function code_of(value, message, code, detail)
    assert.is_nil(value)
    assert.is_string(message)
    assert.equal(code, detail.code)
    assert.equal("scripted", detail.provider)
    return code, detail
  end

  local function run(code, opts)
    return assert(interpreter:run(code, opts))
  end

  describe(":run", function()
    it("gives a CodeResult, and state lives on", function()
      local r = run [[state.x = 41; out "a\n"; err "b\n"; out "c\n"; out '{"n": 1}\n'
        return { text = "41", execution_count = 7 }]]
      assert.is_true(r.ok)
      assert.is_true(r.state_kept)
      assert.is_false(r.timed_out)
      assert.equal("exited", r.status)
      assert.is_nil(r.exit_code)
      assert.equal('a\nc\n{"n": 1}\n', r.stdout)
      assert.equal("b\n", r.stderr)
      assert.equal('a\nb\nc\n{"n": 1}', r.output)
      assert.same({ n = 1 }, r.value)
      assert.equal("41", r.text)
      assert.equal(7, r.execution_count)
      assert.equal("run", r.stage)
      assert.same({}, r.displays)
      assert.truthy(tostring(r):find "^ran after")
      assert.equal("42", run("return { text = tostring(state.x + 1) }").text)
    end)

    it("tells an error with its traceback; with check it is a failure", function()
      local code = [[err "words\n"
        return { error = { name = "E", message = "m", traceback = "t1\nt2" } }]]
      local r = run(code)
      assert.is_false(r.ok)
      assert.is_true(r.state_kept)
      assert.same({ name = "E", message = "m", traceback = "t1\nt2" }, r.error)
      local failure, detail = code_of(interpreter:run(code, { check = true }))
      assert.equal("exit", failure)
      assert.equal("raised E: m: words", detail.message)
      assert.equal("E", detail.result.error.name)
      interpreter:close()
      interpreter = assert(box:view({ check = true }):interpreter())
      assert.equal("exit", code_of(interpreter:run(code)))
      assert.is_false(run(code, { check = false }).ok)
    end)

    it("calls back while it runs, in order, and waits for callbacks that do", function()
      local seen = {}
      local function note(name)
        return function(data)
          moonsand.sleep(0.001)
          seen[#seen + 1] = name .. (type(data) == "table" and data.n or data)
        end
      end
      moonsand.run(function()
        run([[for i = 1, 40 do show { n = i } end; out "x\ny"; return {}]],
          { on_display = note "d", on_stdout = note "o" })
      end)
      local displays, rest = 0, {}
      for _, one in ipairs(seen) do
        if one:find "^d" then
          displays = displays + 1
          assert.equal("d" .. displays, one)
        else
          rest[#rest + 1] = one
        end
      end
      assert.equal(40, displays)
      assert.equal("ox\ny", table.concat(rest))
      local lines = {}
      local r = run([[out "one\ntw"; err "e\n"; out "o"; return {}]], {
        on_line = function(line, name)
          lines[#lines + 1] = name .. ":" .. line
        end,
      })
      table.sort(lines)
      assert.same({ "stderr:e", "stdout:one", "stdout:two" }, lines)
      assert.equal("one\ntwo", r.stdout)
    end)

    it("makes the interpreter wait for a callback that is behind", function()
      local most = 0
      moonsand.run(function()
        run([[for i = 1, 200 do self.sent = i; show { n = i } end; return {}]], {
          on_display = function(display)
            moonsand.sleep(0)
            most = math.max(most, made.sent - display.n)
          end,
        })
        run([[for i = 1, 100 do self.sent = i; out(("x"):rep(65536)) end; return {}]], {
          max_output = 100,
          on_stdout = function()
            moonsand.sleep(0)
          end,
        })
      end)
      assert.is_true(most > 0 and most <= 20, tostring(most))
    end)

    it("keeps no more than max_output of each stream and of all displays", function()
      local r = run([[out(("o"):rep(1000)); for i = 1, 50 do
          show { ["text/plain"] = ("d"):rep(100), deep = { { ("x"):rep(100) } } } end
        return {}]], { max_output = 2000 })
      assert.is_false(r.truncated.stdout ~= nil)
      assert.is_true(#r.displays > 0 and #r.displays < 10)
      assert.equal(50 - #r.displays, r.truncated.displays.dropped)
      r = run([[out(("o"):rep(1000)); return {}]], { max_output = "100" })
      assert.equal(100, #r.stdout)
      assert.equal(1000, r.stdout_bytes)
      assert.equal(900, r.truncated.stdout.dropped)
      assert.equal("invalid", code_of(interpreter:run("return {}", { max_output = "lots" })))
    end)

    it("queues: one piece at a time, first come, first served", function()
      local order = {}
      moonsand.run(function()
        moonsand.all({ 1, 2, 3 }, function(i)
          run(("state.n = (state.n or 0) + 1; nap(0.01); out(tostring(state.n)); return {}"), {
            on_stdout = function(data)
              order[#order + 1] = i .. data
            end,
          })
          return true
        end)
      end)
      assert.same({ "11", "22", "33" }, order)
    end)

    it("bounds the code, not the turns before it", function()
      moonsand.run(function()
        local first = moonsand.task(run, "nap(1.2) return {}")
        moonsand.sleep(0.01)
        assert.is_true(run("return {}", { timeout = 1 }).ok)
        first:wait()
      end)
    end)

    it("interrupts at a timeout; what was written and the state stay", function()
      run "state.x = 1; return {}"
      local r = run([[out "before"; show { n = 1 }; while not nap(30) do end; out " after"
        return { error = { name = "Interrupt", message = "" } }]], { timeout = 0.1 })
      assert.is_true(r.timed_out)
      assert.equal("timed_out", r.status)
      assert.is_false(r.ok)
      assert.is_true(r.state_kept)
      assert.equal("before after", r.stdout)
      assert.equal("Interrupt", r.error.name)
      assert.equal(1, #r.displays)
      assert.equal(1, made.interrupts)
      assert.equal("1", run("return { text = tostring(state.x) }").text)
      assert.equal("timeout", code_of(interpreter:run("nap(30)", { timeout = 0.1, check = true })))
    end)

    it("interrupts again while that does not help", function()
      local r = run("for _ = 1, 3 do nap(30) end; return {}", { timeout = 0.1 })
      assert.is_true(r.state_kept)
      assert.equal(3, made.interrupts)
    end)

    it("starts an interpreter anew that ignores interrupts", function()
      run "state.x = 1; return {}"
      local r = run("while true do nap(30) end", { timeout = 0.1 })
      assert.is_true(r.timed_out)
      assert.is_false(r.state_kept)
      assert.equal(1, made.restarts)
      assert.equal("nil", run("return { text = tostring(state.x) }").text)
      made.broken = true
      r = run("while true do nap(30) end", { timeout = 0.1 })
      assert.is_false(r.state_kept)
      assert.is_false(interpreter.alive)
      local code, detail = code_of(interpreter:run "return {}")
      assert.equal("closed", code)
      assert.is_false(detail.started)
    end)

    it("is cancelled by a token and with its task", function()
      local code, detail = code_of(interpreter:run("out 'x'; nap(30); return {}",
        { cancel = moonsand.token { timeout = 1 } }))
      assert.equal("cancelled", code)
      assert.is_true(detail.started)
      assert.equal("x", detail.result.stdout)
      assert.is_true(detail.result.state_kept)
      assert.is_false(detail.result.ok)
      moonsand.run(function()
        local task = moonsand.task(function()
          return select(3, interpreter:run "nap(30); return {}")
        end)
        moonsand.sleep(0.05)
        task:cancel()
        assert.equal("cancelled", task:wait())
      end)
      assert.equal(2, made.interrupts)
      local token, runs = moonsand.token(), made.runs
      token:cancel "no"
      code, detail = code_of(interpreter:run("return {}", { cancel = token }))
      assert.equal("cancelled", code)
      assert.is_false(detail.started)
      code, detail = code_of(interpreter:run("return {}", { timeout = 0 }))
      assert.equal("timeout", code)
      assert.is_false(detail.started)
      assert.equal(runs, made.runs)
    end)

    it("is cancelled while it waits for its turn", function()
      moonsand.run(function()
        local first = moonsand.task(run, "nap(30) return {}")
        moonsand.sleep(0.01)
        local code, detail = code_of(interpreter:run("state.never = 1; return {}",
          { cancel = moonsand.token { timeout = 0.05 } }))
        assert.equal("cancelled", code)
        assert.is_false(detail.started)
        assert.is_true(interpreter:interrupt())
        first:wait()
      end)
      assert.is_nil(made.state.never)
    end)

    it("lets out what a callback raises, when the code has ended", function()
      for _, name in ipairs { "on_stdout", "on_line", "on_display" } do
        local ok, raised = pcall(interpreter.run, interpreter,
          "out 'x\\n'; show {}; nap(30); state.over = true; return {}", {
            [name] = function()
              error({ mine = name }, 0)
            end,
          })
        assert.is_false(ok)
        assert.equal(name, raised.mine)
        assert.is_true(made.state.over)
        made.state.over = nil
      end
      assert.is_true(run("return {}").ok)
    end)
  end)

  describe("what a provider tells", function()
    it("counts only where it has its form", function()
      local r = run [[out(7); out {}; out(nil); err(false); show "x"; show(nil); out "s"
        return { text = {}, execution_count = "1", error = { name = 1, traceback = {} } }]]
      assert.equal("s", r.stdout)
      assert.equal("", r.stderr)
      assert.same({}, r.displays)
      assert.is_nil(r.text)
      assert.is_nil(r.execution_count)
      assert.same({ name = "Error", message = "", traceback = "" }, r.error)
      assert.is_false(run("return { state_kept = false }").state_kept)
    end)

    it("is a failure when it is none", function()
      for _, code in ipairs { "return", "return 7", "return nil, 7, {}", "return false",
        "return 'x'", "error 'oops'", "error { 1 }", "local x = nil; x()" } do
        assert.equal("provider", code_of(interpreter:run(code)), code)
      end
      local code, detail =
        code_of(interpreter:run "out 'x'; return nil, 'cut', 'lost', { id = '1' }")
      assert.equal("lost", code)
      assert.equal("1", detail.id)
      assert.equal("lost", code_of(interpreter:run "return nil, 'cut', 'lost'"))
    end)

    it("after the end is nobody's", function()
      local r = run "self.late = hear; return {}"
      made.late.on_stdout "late"
      made.late.on_display {}
      assert.equal("", r.stdout)
      assert.same({}, r.displays)
    end)
  end)

  it("interrupts from outside", function()
    assert.is_true(interpreter:interrupt())
    local r
    moonsand.run(function()
      local task = moonsand.task(function()
        r = run "while not nap(30) do end; return { error = { name = 'I', message = '' } }"
      end)
      moonsand.sleep(0.02)
      assert.is_true(interpreter:interrupt())
      task:wait()
    end)
    assert.equal("I", r.error.name)
    assert.is_false(r.timed_out)
    assert.is_true(r.state_kept)
  end)

  it("is started anew, at once", function()
    run "state.x = 1; return {}"
    assert.is_true(interpreter:restart())
    assert.equal("nil", run("return { text = tostring(state.x) }").text)
    moonsand.run(function()
      local task = moonsand.task(function()
        return interpreter:run "out 'x'; while true do nap(30) end"
      end)
      local after = moonsand.task(run, "return { text = 'after' }")
      moonsand.sleep(0.02)
      assert.is_true(interpreter:restart(20))
      local code, detail = code_of(task:wait())
      assert.equal("closed", code)
      assert.equal("x", detail.result.stdout)
      assert.is_false(detail.result.state_kept)
      assert.equal("after", after:wait().text)
    end)
    assert.equal(2, made.restarts)
    made.broken = true
    assert.equal("provider", code_of(interpreter:restart()))
    assert.is_false(interpreter.alive)
    assert.equal("closed", code_of(interpreter:restart()))
  end)

  it("completes, where it can", function()
    assert.same({ matches = { "print" }, from = 1, to = 2, code = "pri" },
      interpreter:complete("pri", 2))
    assert.equal(3, interpreter:complete("pri").to)
    assert.has_error(function()
      interpreter:complete("pri", 4)
    end)
    local complete = Scripted.complete
    Scripted.complete = nil
    local code = code_of(interpreter:complete "pri")
    Scripted.complete = complete
    assert.equal("unsupported", code)
  end)

  it("is closed while it runs, and while others wait for their turn", function()
    for _, how in ipairs { "interpreter", "box", "destroy" } do
      local own = assert(moonsand.create { provider = "scripted" })
      local closing = assert(own:interpreter())
      moonsand.run(function()
        local function code()
          return select(3, closing:run "nap(30); return {}")
        end
        local tasks = { moonsand.task(code), moonsand.task(code), moonsand.task(code) }
        moonsand.sleep(0.02)
        if how == "interpreter" then
          closing:close()
        elseif how == "box" then
          own:close()
        else
          assert(own:destroy())
        end
        for _, task in ipairs(tasks) do
          assert.equal("closed", task:wait())
        end
      end)
      closing:close()
      assert.equal(1, made.closes)
      assert.equal(1, made.runs)
      assert.is_false(closing.alive)
      assert.truthy(tostring(closing):find "closed")
      assert.has_error(function()
        closing:run "return {}"
      end, "moonsand: interpreter:run: the interpreter was closed")
      own:close()
    end
  end)

  it("has ended when the provider says so", function()
    made.dead = true
    assert.is_false(interpreter.alive)
    for _, call in ipairs { "run", "interrupt", "restart", "complete" } do
      assert.equal("closed", code_of(interpreter[call](interpreter, (call == "run"
        or call == "complete") and "x" or nil)), call)
    end
  end)

  it("is opened with a language and a directory", function()
    assert.equal("python", interpreter.language)
    assert.equal("/home", made.cwd)
    for given, language in pairs { py = "python", js = "node", R = "R" } do
      local other = assert(box:interpreter(given, { cwd = "sub" }))
      assert.equal(language, other.language)
      assert.equal("/home/sub", made.cwd)
      other:close()
    end
    assert.equal("unavailable", code_of(box:interpreter "none"))
    assert.equal("invalid", code_of(box:interpreter("lua", { cwd = "" })))
    assert.equal("native", box:can "interpreter")
    moonsand.with({}, function(plain)
      assert.is_false(plain:can "interpreter")
      assert.equal("unsupported", select(3, plain:interpreter()))
    end)
    assert.equal("unsupported", code_of(box:attach "x"))
    assert.equal("unsupported", code_of(box:processes()))
  end)

  it("raises what is the caller's mistake, at the caller's line", function()
    for _, wrong in ipairs {
      function() interpreter:run(7) end,
      function() interpreter:run("", { timout = 1 }) end,
      function() interpreter:run("", { on_display = 1 }) end,
      function() interpreter:complete(7) end,
      function() box:interpreter(7) end,
      function() box:interpreter("lua", { timeout = -1 }) end,
    } do
      local ok, message = pcall(wrong)
      assert.is_false(ok)
      assert.truthy(message:find("interpreter_spec.lua", 1, true), message)
    end
  end)
end)
