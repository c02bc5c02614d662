-- Sandboxes: creating, views, the environment of programs, what is inside, the end.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local fails = support.fails

--- Asserts that fn raises, with this text, at one of its own lines.
local function blames(fn, text)
  local ok, err = pcall(fn)
  assert.is_false(ok, "it did not raise: " .. text)
  local line, message = tostring(err):match "sandbox_spec%.lua:(%d+): moonsand: (.*)$"
  assert.is_truthy(line, "not at the caller's line: " .. tostring(err))
  local info = debug.getinfo(fn, "S")
  assert.is_true(tonumber(line) >= info.linedefined and tonumber(line) <= info.lastlinedefined,
    "not at the caller's line: " .. err)
  assert.is_truthy(message:find(text, 1, true), ("%q lacks %q"):format(message, text))
end

local function is_integer(value)
  return type(value) == "number" and value % 1 == 0
    and (not math.type or math.type(value) == "integer")
end

local PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
local BASE = {
  PATH = PATH, HOME = "/workspace", USER = "sandbox", LANG = "C.UTF-8", TMPDIR = "/tmp",
    TERM = "dumb",
}

--- The environment of a program, as a table.
local function env_of(box, opts)
  local env = {}
  local r = moonsand.assert(box:exec({ "/usr/bin/env", "-0" }, opts))
  for name, value in r.stdout:gmatch "([^=%z]+)=([^%z]*)%z" do
    env[name] = value
  end
  return env
end

local function with(changes)
  local env = {}
  for name, value in pairs(BASE) do
    env[name] = value
  end
  for name, value in pairs(changes) do
    env[name] = value or nil
  end
  return env
end

describe("moonsand.sandbox", function()
  helper.deadline(30)
  helper.no_leaks()

  describe("moonsand.create", function()
    it("makes a sandbox with a name and an id of its own", function()
      local a, b = moonsand.assert(moonsand.create()),
        moonsand.assert(moonsand.create { name = "my-box_1.x" })
      assert.is_truthy(a.id:find "^ms%-%x+$")
      assert.is_true(a.id ~= b.id)
      assert.equal(a.id, a.name)
      assert.equal("my-box_1.x", b.name)
      assert.equal("local", a.provider)
      assert.is_true(a.owned)
      assert.equal(("moonsand.Sandbox (%s, local, ready)"):format(a.id), tostring(a))
      assert.equal("1\n", moonsand.assert(a:exec "echo 1").stdout)
      assert.equal("2\n", moonsand.assert(b:exec "echo 2").stdout)
      a:close()
      b:close()
      assert.equal(("moonsand.Sandbox (%s, local, closed)"):format(a.id), tostring(a))
    end)

    it("raises for options that there are not, and says which are near", function()
      for given, meant in pairs {
        limit = "limits", nmae = "name", evn = "env", hostnam = "hostname", secomp = "seccomp",
      } do
        blames(function()
          local box = moonsand.create { [given] = 1 }
          return box
        end, ("moonsand.create: unknown option '%s' (did you mean '%s'?)"):format(given, meant))
        blames(function()
          local r = moonsand.with({ [given] = 1 }, function() end)
          return r
        end, ("moonsand.with: unknown option '%s'"):format(given))
      end
      blames(function()
        local box = moonsand.create { [1] = "local" }
        return box
      end, "unknown option 1")
      blames(function()
        local box = moonsand.create { limits = { memroy = 1 } }
        return box
      end, "unknown option 'memroy' (did you mean 'memory'?)")
    end)

    it("raises for wrong types", function()
      for text, opts in pairs {
        ["options must be a table, got string"] = "local",
        ["option 'provider' must be a string, got number"] = { provider = 5 },
        ["option 'name' must be a string, got number"] = { name = 5 },
        ["option 'env' must be a table, got string"] = { env = "A=1" },
        ["option 'limits' must be a table, got number"] = { limits = 5 },
        ["option 'timeout' must be a number, got string"] = { timeout = "5" },
        ["option 'timeout' must be a number of seconds"] = { timeout = -1 },
        ["option 'cancel' must be a token"] = { cancel = {} },
        ["variable A must be a string"] = { env = { A = {} } },
        ["option 'processes' must be a number, got string"] = { limits = { processes = "many" } },
        ["option 'shell' must be a string or table, got boolean"] = { shell = true },
      } do
        blames(function()
          local box = moonsand.create(opts)
          return box
        end, text)
      end
      blames(function()
        local r = moonsand.with({}, nil)
        return r
      end, "a function is needed, got nil")
    end)

    it("answers values that cannot be", function()
      for _, opts in ipairs {
        { provider = "nowhere" }, { name = "" }, { name = "a b" }, { name = ("x"):rep(65) },
          { name = "a/b" },
        { hostname = "" }, { hostname = "a b" }, { hostname = ("x"):rep(65) }, { hostname = "-x" },
        { env = { ["A=B"] = "x" } }, { limits = { disk = "much" } }, { limits = { processes = 0 } },
        { limits = { cpu_time = -1 } }, { limits = { disk = 0 / 0 } },
      } do
        local box, message, code, detail = moonsand.create(opts)
        assert.is_nil(box)
        assert.equal("invalid", code, message)
        assert.equal(code, detail.code)
        assert.equal(message, detail.message)
      end
    end)

    it("is not made for a token that was cancelled", function()
      local token = moonsand.token()
      token:cancel "never mind"
      local _, detail = fails("cancelled", moonsand.create { cancel = token })
      assert.equal("never mind", detail.cause)
      assert.is_false(detail.started)
    end)

    it("gives programs its defaults", function()
      local box = moonsand.assert(moonsand.create {
        cwd = "/tmp", env = { A = "box", N = 1, LANG = false }, shell = { "bash", "-c" },
          umask = "077",
        max_output = 10, check = true,
      })
      local r = moonsand.assert(
        box:exec 'pwd; echo "$A$N${LANG-none}${BASH_VERSION:+bash}" >&2; umask >&2')
      assert.equal("/tmp\n", r.stdout)
      assert.equal("box1n0077\n", r.stderr)
      fails("exit", box:exec "exit 1")
      box:close()
      box = moonsand.assert(moonsand.create { cwd = "/" })
      assert.equal("/\n", moonsand.assert(box:exec "pwd").stdout)
      box:close()
    end)
  end)

  describe("inside", function()
    local box
    before_each(function()
      box = moonsand.assert(moonsand.create())
    end)
    after_each(function()
      box:close()
    end)

    local function sh(command)
      return moonsand.assert(box:exec(command, { stderr = "stdout" })).stdout
    end

    it("starts in /workspace, which is HOME", function()
      assert.equal("/workspace\n/workspace\n", sh "pwd -P; cd; pwd -P")
      assert.equal("/workspace", box:cwd())
    end)

    it("gives exactly the environment that the manual says", function()
      assert.same(BASE, env_of(box))
      assert.same(BASE, box:getenv())
    end)

    it("has one user, who is not root, and a name of its own", function()
      assert.equal("1000 1000 sandbox sandbox\n",
        sh 'echo "$(id -u) $(id -g) $(id -un) $(hostname)"')
      local other = moonsand.assert(moonsand.create { hostname = "build-7.example" })
      assert.equal("build-7.example\n", moonsand.assert(other:exec "hostname").stdout)
      other:close()
    end)

    it("can be written but for /usr", function()
      assert.equal("ok\n",
        sh "mkdir -p /app/src /opt/x && echo x >/app/src/f && echo >/etc/new && echo ok")
      for _, path in ipairs { "/workspace", "/tmp", "/var/tmp", "/run", "/dev/shm", "/etc", "/" } do
        assert.equal("ok\n", sh(("echo x >%s/made && echo ok"):format(path)), path)
      end
      for _, path in ipairs { "/usr", "/usr/bin", "/bin", "/proc", "/dev/pts" } do
        assert.is_nil(sh(("echo x >%s/made && echo ok"):format(path)):find "ok", path)
      end
      local other = moonsand.assert(moonsand.create())
      assert.equal(1, moonsand.assert(other:exec "test -e /app").exit_code)
      other:close()
    end)
  end)

  describe("a handle", function()
    local box
    before_each(function()
      box = moonsand.assert(moonsand.create { env = { A = "1" }, metadata = { owner = "me" } })
    end)
    after_each(function()
      box:close()
    end)

    local function pwd(handle, opts)
      return (moonsand.assert(handle:exec("pwd -P", opts)).stdout:gsub("\n$", ""))
    end

    describe(":view", function()
      it("is the same sandbox with its own defaults", function()
        local view = box:view { cwd = "/tmp", env = { A = "2", B = "3" }, shell = "bash" }
        assert.equal(box.id, view.id)
        assert.equal("/tmp", pwd(view))
        assert.equal("/workspace", pwd(box))
        assert.same(with { A = "2", B = "3" }, env_of(view))
        assert.same(with { A = "1" }, env_of(box))
        moonsand.assert(view:exec "echo x >made")
        assert.equal("x\n", moonsand.assert(box:exec "cat /tmp/made").stdout)
      end)

      it("takes over what it is not told", function()
        local view = box:view { cwd = "/tmp", env = { A = false, B = "2" }, check = true }
        local nested = view:view { env = { C = "3" }, cwd = "sub" }
        assert.equal("/tmp/sub", nested:cwd())
        moonsand.assert(view:exec "mkdir sub")
        assert.equal("/tmp/sub", pwd(nested))
        assert.same(with { B = "2", C = "3" }, env_of(nested))
        assert.same(with { B = "2" }, env_of(view))
        fails("exit", nested:exec "false")
        assert.equal("/tmp/sub", pwd(nested:view()))
      end)

      it("begins with an empty environment with clear_env", function()
        assert.same({}, env_of(box:view { clear_env = true }))
        local view = box:view { clear_env = true, env = { X = "1" } }
        assert.same({ X = "1" }, env_of(view))
        assert.same({ X = "1", Y = "2" }, env_of(view:view { env = { Y = "2" } }))
        assert.same({ Z = "3" }, env_of(view, { clear_env = true, env = { Z = "3" } }))
        assert.same(with { A = "1" }, env_of(box))
      end)

      -- It shared its table of variables with the handle that it was made from.
      it("keeps its changes to itself, as does the handle that it came from", function()
        local view = box:view()
        view:setenv("A", "view")
        view:setenv("B", "view")
        box:setenv("C", "box")
        moonsand.assert(box:cd "/tmp")
        assert.same(with { A = "1", C = "box" }, env_of(box))
        assert.same(with { A = "view", B = "view" }, env_of(view))
        assert.equal("/workspace", pwd(view))
        local env = { D = "1" }
        view = box:view { env = env }
        env.D = "2"
        assert.equal("1", view:getenv "D")
      end)

      it("costs nothing to speak of", function()
        local before = os.clock()
        for _ = 1, 1000 do
          box:view { cwd = "/tmp", env = { B = "1" } }
        end
        assert.is_true(os.clock() - before < 1)
        assert.equal(0, #support.descendants((support.agent(box))))
      end)

      it("is closed with the sandbox, and closes it", function()
        local view = box:view()
        view:close()
        blames(function()
          local r = box:exec "true"
          return r
        end, "the sandbox was closed")
      end)

      it("checks its options", function()
        blames(function()
          local view = box:view { cdw = "/" }
          return view
        end, "box:view: unknown option 'cdw' (did you mean 'cwd'?)")
        blames(function()
          local view = box:view { timeout = -1 }
          return view
        end, "timeout")
        blames(function()
          local view = box:view { env = { A = true } }
          return view
        end, "variable A must be")
        fails("invalid", box:view { env = { ["="] = "x" } })
        fails("invalid", box:view { cwd = "" })
        fails("invalid", box:view { cwd = "a\0b" })
      end)
    end)

    describe(":cd", function()
      it("changes where programs begin, as a shell's does", function()
        moonsand.assert(box:exec "mkdir -p a/b; ln -s /tmp link; echo >file")
        for _, row in ipairs {
          { "a", "/workspace/a" }, { "b", "/workspace/a/b" }, { "..", "/workspace/a" },
          { "./../link/.", "/workspace/link", "/tmp" }, { "..", "/workspace" }, { "/", "/" },
            { "..", "/" },
          { "/workspace/a/", "/workspace/a" }, { ".", "/workspace/a" }, { "/usr//bin/../lib",
            "/usr/lib" },
        } do
          assert.is_true(moonsand.assert(box:cd(row[1])))
          assert.equal(row[2], box:cwd())
          assert.equal(row[3] or row[2], pwd(box))
        end
      end)

      it("stays where it is when that cannot be", function()
        moonsand.assert(box:exec "echo >file")
        for path, code in pairs {
          none = "not_found", file = "not_a_directory", ["file/x"] = "not_a_directory",
            [""] = "invalid",
          ["a\0"] = "invalid",
        } do
          fails(code, box:cd(path))
          assert.equal("/workspace", box:cwd())
        end
        blames(function()
          local r = box:cd(5)
          return r
        end, "a path is a string, got number")
        blames(function()
          local r = box:cd("/", { tmeout = 1 })
          return r
        end, "did you mean 'timeout'?")
      end)
    end)

    describe(":setenv and :getenv", function()
      it("change and show what the next program gets", function()
        assert.is_true(box:setenv("B", "two"))
        assert.is_true(box:setenv("N", 5))
        assert.is_true(box:setenv("LANG", false))
        assert.is_true(box:setenv("TERM", nil))
        local expected = with { A = "1", B = "two", N = "5", LANG = false, TERM = false }
        assert.same(expected, box:getenv())
        assert.same(expected, env_of(box))
        assert.equal("two", box:getenv "B")
        assert.equal("5", box:getenv "N")
        assert.equal(PATH, box:getenv "PATH")
        assert.is_nil(box:getenv "LANG")
        assert.is_nil(box:getenv "none")
        assert.is_true(box:setenv("LANG", "de"))
        assert.equal("de", box:getenv "LANG")
        box:getenv().B = "changed"
        assert.equal("two", box:getenv "B")
      end)

      it("are checked", function()
        fails("invalid", box:setenv("A=", "x"))
        fails("invalid", box:setenv("", "x"))
        fails("invalid", box:setenv("A", "x\0"))
        blames(function()
          local r = box:setenv(5, "x")
          return r
        end, "names of variables are strings, got number")
        blames(function()
          local r = box:setenv("A", {})
          return r
        end, "variable A must be a string, a number or false, got table")
        blames(function()
          local r = box:getenv(5)
          return r
        end, "names of variables are strings, got number")
        assert.equal("1", box:getenv "A")
      end)
    end)

    describe(":can", function()
      it("says what the provider can", function()
        for name, expected in pairs {
          argv = "native", stdin = "native", signals = "native", kill_tree = "native",
            atomic_write = "native",
          ["limits.disk"] = "native", ["limits.memory"] = false, -- nobody asked for it
          users = false, snapshot = "native", pause = false,
        } do
          assert.equal(expected, box:can(name), name)
        end
      end)

      it("raises for names that there are not", function()
        for text, name in pairs {
          ["no capability 'limits.memroy' (did you mean 'limits.memory'?)"] = "limits.memroy",
          ["no capability 'fly'"] = "fly",
          ["no capability 5"] = 5,
          ["no capability nil"] = nil,
        } do
          blames(function()
            local r = box:can(name)
            return r
          end, text)
        end
      end)
    end)

    describe(":info", function()
      it("shows the limits and how each is held", function()
        local small = moonsand.assert(moonsand.create {
          name = "small",
          limits = { disk = "64M", processes = 50, cpu_time = 5, file_size = "1K" },
        })
        local info = small:info()
        assert.same({ value = 64 * 1024 * 1024, by = "tmpfs" }, info.limits.disk)
        assert.same({ value = 1000000, by = support.isolation == "native" and "tmpfs" or "none" },
          info.limits.inodes)
        assert.same({ value = 50, by = "rlimit" }, info.limits.processes)
        assert.same({ value = 1024, by = "rlimit" }, info.limits.open_files)
        assert.same({ value = 5, by = "rlimit" }, info.limits.cpu_time)
        assert.same({ value = 1024, by = "rlimit" }, info.limits.file_size)
        assert.is_nil(info.limits.memory)
        assert.equal("small", info.name)
        small:close()
      end)

      it("tells the rest", function()
        local info = box:info()
        assert.equal(box.id, info.id)
        assert.equal(box.name, info.name)
        assert.equal("local", info.provider)
        assert.equal("ready", info.state)
        assert.same({ owner = "me" }, info.metadata)
        assert.is_true(math.abs(info.created_at - os.time()) < 30)
        for name, limit in pairs(info.limits) do
          assert.is_true(is_integer(limit.value), name) -- sizes and counts are integers
        end
        assert.equal(1024 * 1024 * 1024, info.limits.disk.value)
      end)
    end)

    describe(":close", function()
      it("ends all in it at once, and again is nothing", function()
        local p = moonsand.assert(box:start "setsid sleep 300 & sleep 300")
        local agent = support.process((support.agent(box)))
        local inside = support.descendants(agent.pid)
        assert.is_true(#inside >= 1)
        box:close()
        box:close()
        support.eventually(20, "something lives on", function()
          for _, process in ipairs(inside) do
            if support.alive(process) then
              return false
            end
          end
          return not support.alive(agent)
        end)
        fails("closed", p:wait())
        assert.is_false(p:is_running())
      end)

      it("makes every new call raise", function()
        local view = box:view()
        box:close()
        for name, call in pairs {
          ["box:exec"] = function()
            local r = box:exec "true"
            return r
          end,
          ["box:start"] = function()
            local r = view:start "true"
            return r
          end,
          ["box:view"] = function()
            local r = box:view()
            return r
          end,
          ["box:cd"] = function()
            local r = box:cd "/"
            return r
          end,
          ["box:setenv"] = function()
            local r = box:setenv("A", "1")
            return r
          end,
          ["box:getenv"] = function()
            local r = box:getenv()
            return r
          end,
          ["box:info"] = function()
            local r = box:info()
            return r
          end,
        } do
          blames(call, name .. ": the sandbox was closed")
        end
      end)

      it("comes with the end of a block on Lua 5.4", function()
        assert.equal(getmetatable(box).__close, getmetatable(box).__index(box, "close"))
        if _VERSION == "Lua 5.4" then
          local closed = load [[
            local moonsand = ...
            local box <close> = moonsand.assert(moonsand.create())
            return box
          ]](moonsand)
          assert.is_truthy(tostring(closed):find "closed")
        end
      end)

      it("comes with the last handle, if nobody calls it", function()
        local agent
        do
          local own = moonsand.assert(moonsand.create())
          moonsand.assert(own:start "setsid sleep 300 & sleep 300")
          local view = own:view { cwd = "/tmp" }
          agent = support.process((support.agent(own)))
          own = nil -- luacheck: ignore
          helper.settle()
          assert.is_true(support.alive(agent)) -- the view holds it
          assert.equal("x\n", moonsand.assert(view:exec "echo x").stdout)
        end
        support.eventually(20, "the sandbox lives on", function()
          helper.settle()
          return not support.alive(agent)
        end)
      end)
    end)

    describe(":destroy", function()
      it("waits for the proof", function()
        moonsand.assert(box:start "setsid sleep 300 & sleep 300")
        local agent = support.process((support.agent(box)))
        local inside = support.descendants(agent.pid)
        assert.is_true(moonsand.assert(box:destroy()))
        for _, process in ipairs(inside) do
          assert.is_false(support.alive(process))
        end
        assert.is_false(support.alive(agent))
        assert.is_true(moonsand.assert(box:destroy()))
        assert.is_true(moonsand.assert(box:destroy { timeout = 5 }))
        blames(function()
          local r = box:exec "true"
          return r
        end, "the sandbox was closed")
        blames(function()
          local r = box:destroy { time = 5 }
          return r
        end, "box:destroy: unknown option 'time'")
      end)

      it("is true for what is closed, or gone already", function()
        box:close()
        assert.is_true(moonsand.assert(box:destroy()))
      end)
    end)

    it("is done by moonsand.destroy too, by its id or name, of all that are not closed", function()
      for _, field in ipairs { "id", "name" } do
        local twins = {}
        for i = 1, 2 do
          twins[i] = moonsand.assert(moonsand.create { name = "twin" })
        end
        local agent = support.process((support.agent(twins[1])))
        assert.is_true(moonsand.assert(moonsand.destroy(twins[1][field])))
        assert.is_false(support.alive(agent))
        assert.truthy(tostring(twins[1]):find "closed")
        assert.equal(field == "id", tostring(twins[2]):match "closed" == nil)
        twins[2]:close()
      end
      assert.is_true(moonsand.destroy "twin")
    end)

    it("whose sandbox went away answers gone", function()
      local p = moonsand.assert(box:start "sleep 300")
      local pid = support.agent(box)
      support.run("kill -9 " .. pid)
      local _, detail = fails("gone", p:wait())
      assert.is_true(detail.started)
      assert.equal(p.id, detail.id)
      local _, unstarted = fails("gone", box:exec "true")
      assert.is_false(unstarted.started)
      fails("gone", box:start "true")
      fails("gone", p:kill())
      assert.equal(("moonsand.Sandbox (%s, local, gone)"):format(box.id), tostring(box))
      assert.equal("gone", box:info().state)
      assert.is_true(moonsand.assert(box:destroy()))
    end)
  end)

  describe("moonsand.with", function()
    it("returns what the function returned, and closes", function()
      local kept
      local answers = { n = select("#", moonsand.with({ env = { A = "x" } }, function(box, ...)
        kept = box
        return moonsand.assert(box:exec "echo $A").stdout, nil, ...
      end, 1, nil)), moonsand.with({ env = { A = "x" } }, function(box, ...)
        return moonsand.assert(box:exec "echo $A").stdout, nil, ...
      end, 1, nil) }
      assert.equal(4, answers.n)
      assert.equal("x\n", answers[1])
      assert.equal(1, answers[3])
      assert.is_truthy(tostring(kept):find "closed")
    end)

    it("closes when the function raises, and lets that out as it is", function()
      local kept
      local failure = {}
      local ok, err = pcall(moonsand.with, {}, function(box)
        kept = box
        error(failure)
      end)
      assert.is_false(ok)
      assert.equal(failure, err)
      assert.is_truthy(tostring(kept):find "closed")
    end)

    it("closes when its task is cancelled", function()
      local kept
      moonsand.run(function()
        local task = moonsand.task(function()
          return moonsand.with({}, function(box)
            kept = box
            while true do
              moonsand.assert(box:exec "sleep 300")
            end
          end)
        end)
        while not kept do
          moonsand.sleep(0.001)
        end
        task:cancel()
        fails("cancelled", (function(...)
          if select("#", ...) == 3 then
            return ...
          end
          select(4, ...).provider = "local" -- a task's own failure has none
          return ...
        end)(task:wait()))
      end)
      assert.is_truthy(tostring(kept):find "closed")
    end)

    it("answers why there is no sandbox", function()
      local called = false
      fails("invalid", moonsand.with({ hostname = "" }, function()
        called = true
      end))
      assert.is_false(called)
    end)
  end)
end)
