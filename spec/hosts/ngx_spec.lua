-- moonsand in a real nginx with the Lua module: what suspends, what is refused, and that the worker
-- goes on whatever happens. Lua code is sent as the body of a request (see ngx_app.lua); any line in
-- nginx's log from "error" upwards fails the test.

local behaviour = require "hosts.behaviour"
local core = require "moonsand.core"
local nginx = require "support.nginx"
local support = require "support.init"

local quote, must = support.quote, nginx.must
local sleepers, await_sleepers = nginx.sleepers, nginx.await_sleepers
local BUILD = os.getenv "MOONSAND_BUILD" or "build"

-- ---------------------------------------------------------------- a server

local function start(opts)
  opts = opts or {}
  local dir = must "mktemp -d":gsub("%s+$", "")
  local self = nginx.server { dir = dir, path = "/content", allowed = opts.allowed }
  local modules = must "nginx -V":match "%-%-modules%-path=(%S+)"
  must(([[cd %s && mkdir lua so tmp && chmod 755 . && cp -R "$OLDPWD"/lua/moonsand lua &&
    cp "$OLDPWD"/spec/hosts/ngx_app.lua "$OLDPWD"/spec/hosts/behaviour.lua lua &&
    cp -R "$OLDPWD"/%s/jit/moonsand so &&
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
      -keyout key.pem -out cert.pem -subj /CN=localhost -days 2 2>/dev/null]]):format(dir, BUILD))
  local root = must "id -u" == "0\n"
  if root then
    must("chown -R www-data " .. dir)
  end
  local values = {
    USER = root and "user www-data;" or "",
    WORKERS = tostring(opts.workers or 1),
    MODULES = modules,
    DIR = dir,
    CACHE = opts.cache or "on",
    INIT = opts.init or "",
    MAIN = opts.main or "",
    HTTP = opts.http or "",
  }
  local conf = assert(support.read "spec/hosts/nginx.conf")
  support.write(dir .. "/nginx.conf", (conf:gsub("@(%u+)@", values)))
  must(("nginx -p %s -c %s/nginx.conf -e %s/error.log"):format(dir, dir, dir))
  support.eventually(10, "nginx did not start", function()
    local pid = support.read(dir .. "/nginx.pid")
    self.pid = pid and tonumber(pid:match "%d+")
    return self.pid and #self:workers() == (opts.workers or 1) and self:get "/hello" == "hello\n"
  end)
  return self
end

-- ---------------------------------------------------------------- the suite

describe("moonsand in nginx", function()
  local server

  --- Each block has a server of its own.
  local function with_server(opts)
    setup(function()
      server = start(opts)
    end)
    after_each(function()
      local complaints = server:complaints()
      assert(#complaints == 0, table.concat(complaints, "\n"))
    end)
    teardown(function()
      local ok, why = pcall(server.stop, server)
      os.execute("rm -rf " .. quote(server.dir))
      assert(ok, why)
    end)
  end

  describe("does what it does everywhere:", function()
    with_server()

    for _, case in ipairs {
      { "exec", [[
        local box = moonsand.assert(moonsand.create())
        local r = moonsand.assert(box:exec("echo out; echo err >&2; exit 3"))
        box:close()
        return r.stdout .. r.stderr .. r.exit_code]], "out\nerr\n3\n" },
      { "a stream, read as it comes", [[
        return moonsand.with({}, function(box)
          local p = moonsand.assert(box:start("for i in 1 2 3; do echo $i; sleep 0.05; done"))
          local lines = {}
          for line in p.stdout:lines() do lines[#lines + 1] = line end
          return table.concat(lines, " ") .. " " .. moonsand.assert(p:wait()).exit_code
        end)]], "1 2 3 0\n" },
      { "stdin, in both ways", [[
        return moonsand.with({}, function(box)
          local once = moonsand.assert(box:exec("cat", { stdin = "at once, " })).stdout
          local p = moonsand.assert(box:start("cat"))
          moonsand.assert(p.stdin:write("line by line\n"))
          local line = p.stdout:read()
          p.stdin:close()
          return once .. line .. " " .. moonsand.assert(p:wait()).exit_code
        end)]], "at once, line by line 0\n" },
      { "much output", [[
        return moonsand.with({}, function(box)
          return #moonsand.assert(box:exec("head -c 5000000 /dev/zero")).stdout
        end)]], "5000000\n" },
      { "a program's timeout", [[
        return moonsand.with({}, function(box)
          local r = moonsand.assert(box:exec("sleep 20", { timeout = 0.1 }))
          return r.status, r.duration < 15
        end)]], "timed_out\ntrue\n" },
      { "a wait's timeout", [[
        return moonsand.with({}, function(box)
          local p = moonsand.assert(box:start("sleep 20"))
          local _, _, code = p:wait(0.05)
          return code, p:is_running()
        end)]], "timeout\ntrue\n" },
      { "cancel", [[
        return moonsand.with({}, function(box)
          local _, _, code = box:exec("sleep 20", { cancel = moonsand.token(0.1) })
          return code
        end)]], "cancelled\n" },
      { "cancelled tasks", [[
        return moonsand.with({}, function(box)
          local task = moonsand.task(function() return box:exec("sleep 20") end)
          moonsand.sleep(0.05)
          task:cancel("enough")
          local _, message, code = task:wait()
          return message, code
        end)]], "cancelled: enough\ncancelled\n" },
      { "fifty at once", [[
        return moonsand.with({}, function(box)
          local jobs = {}
          for i = 1, 50 do jobs[i] = i end
          local began = ngx.now()
          local all = moonsand.assert(moonsand.all(jobs, function(i)
            return moonsand.assert(box:exec("sleep 1; echo " .. i)).stdout
          end))
          local right = 0
          for i = 1, 50 do right = right + (all[i] == i .. "\n" and 1 or 0) end
          ngx.update_time()
          return right, ngx.now() - began < 20
        end)]], "50\ntrue\n" },
      { "files", [[
        return moonsand.with({}, function(box)
          moonsand.assert(box.files:write("a/b.txt", ("x"):rep(1e6)))
          local text = moonsand.assert(box.files:read("a/b.txt"))
          local _, _, code = box.files:read("nope")
          return #text, code
        end)]], "1000000\nnot_found\n" },
      { "errors", [[
        return moonsand.with({}, function(box)
          local _, _, code, detail = box:exec({ "nope" })
          local ok, message = pcall(box.exec, box, "true", { timout = 1 })
          return code, detail.what, ok, (message:match "did you mean '%a+'")
        end)]], "not_found\nprogram\nfalse\ndid you mean 'timeout'\n" },
      { "moonsand.run", [[
        return moonsand.run(function()
          local order = {}
          local task = moonsand.task(function()
            moonsand.sleep(0.02)
            order[#order + 1] = "task"
          end)
          order[#order + 1] = "first"
          task:wait()
          return table.concat(order, " ")
        end)]], "first task\n" },
      { "generators that wait", [[
        local next_one = moonsand.wrap(function()
          for i = 1, 3 do moonsand.sleep(0.001); coroutine.yield(i) end
        end)
        local plain = coroutine.wrap(function()
          for i = 4, 6 do moonsand.sleep(0.001); coroutine.yield(i) end
        end)
        return table.concat({ next_one(), next_one(), next_one(), plain(), plain(), plain() })]],
        "123456\n" },
      { "a code of another language", [[
        return moonsand.with({}, function(box)
          return moonsand.assert(box:run_code("print(sum(range(10)))")).stdout
        end)]], "45\n\n" },
    } do
      it(case[1], function()
        assert.equal(case[3], server:run(case[2]))
      end)
    end

    it("gives the first bytes to the client before the program ends", function()
      local client = server:begin [[
        moonsand.with({}, function(box)
          box:exec("echo first; sleep 7008", {
            on_line = function(line) ngx.say(line); ngx.flush(true) end,
          })
        end)]]
      assert.equal("first", client:line())
      client:leave()
      await_sleepers("7008", 0)
    end)

    it("keeps one sandbox for many requests", function()
      server:run [[app.box = moonsand.assert(moonsand.create())]]
      local pending = {}
      for i = 1, 10 do
        pending[i] = server:begin("return moonsand.assert(app.box:exec('sleep 0.1; echo " .. i
          .. "')).stdout")
      end
      for i = 1, 10 do
        assert.equal(i .. "\n\n", pending[i]:answer())
      end
      server:run [[app.box:close(); app.box = nil]]
    end)

    it("tells who waits when another request closes the sandbox", function()
      server:run [[app.box = moonsand.assert(moonsand.create())]]
      local pending = server:begin [[return select(3, app.box:exec("sleep 7001"))]]
      await_sleepers("7001", 1)
      server:run [[app.box:close(); app.box = nil]]
      assert.equal("closed", (pending:answer():match "^%a+"))
      await_sleepers("7001", 0)
    end)
  end)

  describe("behaves as everywhere:", function()
    with_server()

    for i, check in ipairs(behaviour.checks) do
      for _, place in ipairs { "/content", "/access" } do
        it(check.name .. ", in " .. place, function()
          assert.equal("fine\n", server:run(([[
            require("behaviour").checks[%d].run(moonsand, function(fn) ngx.thread.spawn(fn) end)
            return "fine"]]):format(i), place))
        end)
      end
    end
  end)

  describe("suspends in", function()
    with_server { init = [[require("ngx_app").wish.tls = true]] }

    local say = [[return moonsand.with({}, function(box)
      return moonsand.assert(box:exec("printf '%s' done")).stdout .. " in " .. ngx.get_phase()
    end)]]

    for _, phase in ipairs { "rewrite", "access", "content" } do
      it("the phase " .. phase, function()
        assert.equal("done in " .. phase .. "\n", server:run(say, "/" .. phase))
      end)
    end

    it("a timer", function()
      assert.equal("done in timer\n", server:run([[
        local semaphore = require("ngx.semaphore").new(0)
        local result
        ngx.timer.at(0, function()
          result = (function() ]] .. say .. [[ end)()
          semaphore:post(1)
        end)
        semaphore:wait(10)
        return result]]))
    end)

    it("light threads and coroutines of the user's own", function()
      assert.equal("done in content, done in content\n", server:run([[
        local function say() ]] .. say .. [[ end
        local _, one = ngx.thread.wait(ngx.thread.spawn(say))
        local _, two = coroutine.resume(coroutine.create(say))
        return one .. ", " .. two]]))
    end)

    it("the phase that looks for a certificate", function()
      local output = must(("curl -sS -k --unix-socket %s/tls.sock https://localhost/hello")
        :format(server.dir))
      assert.equal("hello\n", output)
      assert.equal("certified\n", server:run [[return notes:get "tls"]])
    end)
  end)

  describe("refuses", function()
    with_server { allowed = "while connecting to upstream" }

    it("the other phases, before anything is started", function()
      server:get "/filters"
      server:get "/balancer"
      for _, phase in ipairs { "init_worker", "set", "header_filter", "body_filter", "log",
        "balancer" } do
        local expected = "cannot wait here: nginx cannot suspend what runs in its phase '" .. phase
        local function why(what)
          return server:run(("return notes:get '%s:%s'"):format(what, phase))
        end
        assert.truthy(why "refused":find(expected, 1, true), why "refused")
        assert.truthy(why "run refused":find(expected, 1, true), why "run refused")
      end
    end)

    it("to start a sandbox or to ask one for anything where no answer can be waited for", function()
      server:run [[app.box = moonsand.assert(moonsand.create())]]
      server:get "/log"
      assert.matches("cannot wait here", server:run [[return notes:get "created in log"]])
      assert.matches("cannot wait here", server:run [[return notes:get "written in log"]])
      assert.equal("false\n", server:run [[return app.box.files:exists("written in log")]])
      server:run [[app.box:close(); app.box = nil]]
    end)

    it("no tasks there: they run in a timer", function()
      for _, phase in ipairs { "init_worker", "set", "header_filter", "body_filter", "log",
        "balancer" } do
        support.eventually(20, "a task of " .. phase, function()
          return server:run(("return notes:get 'task of:%s'"):format(phase)) == "timer\n"
        end)
      end
    end)

    it("callbacks of C functions, and is as before afterwards", function()
      assert.equal("nil\ntrue\n", server:run [[
        local wrong
        local function wait() moonsand.sleep(0.001) end
        for _ = 1, 20 do
          for _, call in ipairs {
            function() table.sort({ 3, 2, 1 }, wait) end,
            function() return (("x"):gsub(".", wait)) end,
          } do
            local ok, why = pcall(call)
            if ok or not why:find("inside a callback of a C function", 1, true) then
              wrong = tostring(why)
            end
          end
          moonsand.sleep(0.001)
        end
        return wrong, moonsand.with({}, function(box)
          return moonsand.assert(box:exec("true")).ok
        end)]])
    end)

    it("to block the worker in loop.step", function()
      local ok = server:run [[return (pcall(moonsand.loop.step, 1))]]
      assert.equal("false\n", ok)
      assert.equal("true\n", server:run [[return (pcall(moonsand.loop.step, 0))]])
    end)
  end)

  describe("never stops the worker:", function()
    with_server()

    it("other requests keep their pace while a program runs", function()
      server:run [[app.box = moonsand.assert(moonsand.create())]]
      local pending = server:begin [[
        return moonsand.assert(app.box:exec("until [ -e over ]; do sleep 0.1; done")).ok]]
      local times = must(server:curl("'/hello?[1-3000]'", "-w '%{time_total}\\n'"))
      local list = {}
      for time in times:gmatch "(%d+%.%d+)\n" do
        list[#list + 1] = tonumber(time)
      end
      table.sort(list)
      assert.equal(3000, #list)
      assert.is_true(list[2970] < 0.1, "the slowest of a hundred took " .. list[2970])
      server:run [[moonsand.assert(app.box.files:write("over", ""))]]
      assert.equal("true\n", (pending:answer()))
      server:run [[app.box:close(); app.box = nil]]
    end)

    it("nothing is left of 200 requests", function()
      local job = server:body [[return moonsand.with({}, function(box)
        return moonsand.assert(box:exec("echo x")).stdout
      end)]]
      local function rounds(n)
        local text = must(server:curl(("'/content?[1-%d]'"):format(n), "--data-binary @" .. job))
        assert.equal(("x\n\n"):rep(n), text)
      end
      rounds(5)
      local before = server:holdings()
      rounds(200)
      server:assert_no_more(before)
    end)

    it("an idle driver and its thread leave", function()
      server:run [[moonsand.sleep(0.01)]]
      support.eventually(15, "the thread is there still", function()
        return server:holdings().threads == 1
      end)
    end)
  end)

  describe("when a client goes away", function()
    with_server()

    for name, code in pairs {
      ["ends a sandbox of the request's"] =
        [[local box = moonsand.assert(moonsand.create()); box:exec("sleep 7002")]],
      ["ends the sandbox of moonsand.with"] =
        [[moonsand.with({}, function(box) box:exec("sleep 7002") end)]],
      ["ends what tasks of the request do"] = [[
        local box = moonsand.assert(moonsand.create())
        moonsand.all({ 1, 2 }, function() return box:exec("sleep 7002") end)]],
      ["ends what generators of its tasks do"] = [[
        local box = moonsand.assert(moonsand.create())
        moonsand.all({ 1, 2 }, function()
          return moonsand.wrap(function() return box:exec("sleep 7002") end)()
        end)]],
      ["ends what a stream is read from"] = [[
        local box = moonsand.assert(moonsand.create())
        local p = moonsand.assert(box:start("sleep 7002"))
        p.stdout:read()]],
    } do
      it(name, function()
        server:run [[moonsand.with({}, function(box) box:exec("true") end)]]
        local before = server:holdings()
        before.threads = nil -- the driver stays for a while
        before.files = before.files + 10
        local client = server:begin(code)
        support.eventually(20, "it did not start", function()
          return sleepers "7002" > 0
        end)
        client:leave()
        await_sleepers("7002", 0)
        server:assert_no_more(before)
        assert.equal("true\n", server:run [[
          return moonsand.with({}, function(box) return box:exec("true").ok end)]])
      end)
    end

    it("ends what ran for it in a sandbox that others share", function()
      server:run [[app.box = moonsand.assert(moonsand.create())]]
      local client = server:begin [[app.box:exec("sleep 7005")]]
      await_sleepers("7005", 1)
      client:leave()
      await_sleepers("7005", 0)
      server:run [[app.box:close(); app.box = nil]]
    end)

    it("gives back its place at a semaphore, and the stream that it read", function()
      server:run [[
        app.box = moonsand.assert(moonsand.create())
        app.process = moonsand.assert(app.box:start("read line; echo $line; sleep 7006"))
        app.semaphore = moonsand.semaphore(1)]]
      local client = server:begin [[
        app.semaphore:with(function()
          app.held = true
          app.process.stdout:read()
        end)]]
      server:run [[while not app.held do moonsand.sleep(0.01) end]]
      client:leave()
      assert.equal("back\n", server:run [[
        moonsand.assert(app.semaphore:acquire(20))
        app.process.stdin:write("back\n")
        return moonsand.assert(app.process.stdout:read("l", 20))]])
      server:run [[app.box:close(); app.box, app.held = nil]]
    end)

    it("gives back its place in a pool: who used one, who waited, who made one", function()
      server:run [[app.pool = moonsand.pool { size = 0, max = 1 }]]
      local using = server:begin [[app.pool:with(function(box) box:exec("sleep 7007") end)]]
      await_sleepers("7007", 1)
      local waiting = server:begin [[app.pool:acquire()]]
      server:run [[while app.pool:stats().waiting == 0 do moonsand.sleep(0.01) end]]
      waiting:leave()
      using:leave()
      assert.equal("on\n\n0\n", server:run [[
        local said = app.pool:with(function(box) return moonsand.assert(box:exec("echo on")).stdout end)
        return said, app.pool:stats().waiting]])
      await_sleepers("7007", 0)
      server:run [[app.pool:close(); app.pool = nil]]
    end)

    it("does not end what a pool makes in the background", function()
      local client = server:begin [[app.pool = moonsand.pool { size = 2, max = 2 }; moonsand.sleep(100)]]
      server:run [[while not app.pool do moonsand.sleep(0.01) end]]
      client:leave()
      assert.equal("2\n", server:run [[
        while app.pool:stats().warm < 2 do moonsand.sleep(0.01) end
        return app.pool:stats().warm]])
      server:run [[app.pool:close(); app.pool = nil]]
    end)

    it("ends its tasks for those who wait for them elsewhere", function()
      local owner = server:begin [[
        app.task = moonsand.task(function() moonsand.sleep(100) end)
        app.task:wait()]]
      server:run [[while not app.task do moonsand.sleep(0.01) end]]
      local other = server:begin [[
        app.other = true
        local _, message, code = app.task:wait()
        return message, code]]
      server:run [[while not app.other do moonsand.sleep(0.01) end]]
      owner:leave()
      assert.equal("cancelled: its request was aborted\ncancelled\n", (other:answer()))
    end)

    it("goes on for everybody else", function()
      server:run [[app.box = moonsand.assert(moonsand.create())]]
      local other = server:begin [[
        return moonsand.assert(app.box:exec("while [ ! -e go-on ]; do sleep 0.05; done; echo kept")).stdout]]
      for _ = 1, 5 do
        local client = server:begin [[moonsand.with({}, function(box) box:exec("sleep 7003") end)]]
        await_sleepers("7003", 1)
        client:leave()
        await_sleepers("7003", 0)
      end
      server:run [[moonsand.assert(app.box.files:write("go-on", ""))]]
      assert.equal("kept\n\n", (other:answer()))
      server:run [[app.box:close(); app.box = nil]]
    end)
  end)

  describe("at a reload", function()
    with_server { workers = 2 }

    it("fails no request, and leaves nothing", function()
      local job = server:body [[return moonsand.with({}, function(box)
        return moonsand.assert(box:exec("sleep 0.05; echo x")).stdout
      end)]]
      local clients = {}
      for i = 1, 6 do
        clients[i] = assert(io.popen(([[end=$(($(date +%%s) + 4))
          while [ $(date +%%s) -lt $end ]; do %s; done 2>&1]]):format(server:curl("/content",
          "-w '%{http_code}\\n' -H 'Connection: close' --data-binary @" .. job))))
      end
      local old = server:workers()
      for _ = 1, 4 do
        support.native().pause(0.7)
        server:signal "HUP"
      end
      local answered = 0
      for i = 1, 6 do
        local text = clients[i]:read "*a"
        clients[i]:close()
        local rest = text:gsub("x\n\n200\n", function()
          answered = answered + 1
          return ""
        end)
        assert.equal("", rest)
      end
      assert.is_true(answered > 10, answered .. " requests only")
      for _, pid in ipairs(old) do
        support.eventually(20, "an old worker is there still", function()
          return not support.process(pid)
        end)
      end
      support.eventually(20, "there are other workers than two", function()
        return #support.native().list("/proc/" .. server.pid .. "/task") == 1
          and #server:workers() == 2
      end)
    end)
  end)

  describe("at the end", function()
    local function ends(signal)
      local began = core.now()
      local pid = server.pid
      server:signal(signal)
      support.eventually(20, "nginx is there still", function()
        return not support.process(pid)
      end)
      return core.now() - began
    end

    before_each(function()
      server = start { workers = 2 }
    end)
    after_each(function()
      local complaints = server:complaints()
      server:stop()
      os.execute("rm -rf " .. quote(server.dir))
      assert(#complaints == 0, table.concat(complaints, "\n"))
    end)

    it("an idle worker leaves at once", function()
      server:run [[moonsand.with({}, function(box) box:exec("true") end)]]
      assert.is_true(ends "QUIT" < 15) -- it may take 30
    end)

    it("QUIT lets programs end, and new ones start", function()
      local pending = server:begin [[return moonsand.with({}, function(box)
        local p = moonsand.assert(box:start("echo up; read line; sleep 0.5; echo first"))
        p.stdout:read()
        notes:set("up", true)
        while not ngx.worker.exiting() do moonsand.sleep(0.05) end
        p.stdin:write "\n"
        local first = moonsand.assert(p:wait()).stdout
        return first .. moonsand.assert(box:exec("echo second")).stdout
          .. tostring(ngx.worker.exiting())
      end)]]
      server:run [[while not notes:get "up" do moonsand.sleep(0.01) end]]
      assert.is_true(ends "QUIT" < 15)
      assert.equal("first\nsecond\ntrue\n", (pending:answer()))
    end)

    it("TERM takes the programs along", function()
      local pending = server:begin [[moonsand.with({}, function(box) box:exec("sleep 7004") end)]]
      await_sleepers("7004", 1)
      ends "TERM"
      pending:answer()
      await_sleepers("7004", 0)
    end)
  end)

  describe("with lua_code_cache off", function()
    with_server { cache = "off", allowed = "lua_code_cache is off" }

    it("every request is served, and takes its state with it", function()
      local job = server:body [[return moonsand.with({}, function(box)
        return moonsand.assert(box:exec("echo x")).stdout
      end)]]
      must(server:curl("/content", "--data-binary @" .. job))
      support.native().pause(0.5)
      local before = server:holdings()
      local clients = {}
      for i = 1, 4 do
        clients[i] = assert(io.popen(server:curl("'/content?[1-25]'", "--data-binary @" .. job)))
      end
      for i = 1, 4 do
        local text = clients[i]:read "*a"
        clients[i]:close()
        assert.equal(("x\n\n"):rep(25), text)
      end
      server:assert_no_more(before)
    end)
  end)

  describe("when there are no timers left", function()
    with_server {
      http = "lua_max_running_timers 1;",
      allowed = "lua_max_running_timers",
    }

    it("waits go on, a little slower, until there are", function()
      server:run [[
        local function hold()
          if app.held then return end
          app.held = true
          for _ = 1, 1200 do
            if not app.held then break end
            ngx.sleep(0.05)
          end
        end
        while not app.held do -- the task of init_worker may have the only one
          ngx.timer.at(0, hold)
          ngx.sleep(0.05)
        end]]
      local took = tonumber(server:run [[
        local box = moonsand.assert(moonsand.create())
        local now = require("moonsand.core").now
        local began = now()
        moonsand.assert(box:exec("sleep 0.2"))
        local took = now() - began
        box:close()
        return took]])
      assert.is_true(took < 10, took .. " s for a program of 0.2 s")
      assert.equal(1, server:holdings().threads)
      server:run [[app.held = nil]]
      support.eventually(20, "there is no thread for the waits", function()
        server:run [[return moonsand.with({}, function(box) box:exec("sleep 1.2") end)]]
        return server:holdings().threads == 2
      end)
    end)
  end)

  describe("when the reactor was made in the master", function()
    with_server { workers = 2, init = [[require("ngx_app").wish.core_in_master = true]] }

    it("each worker makes its own", function()
      local job = server:body [[return moonsand.with({}, function(box)
        return moonsand.assert(box:exec("echo x")).stdout
      end)]]
      local clients = {}
      for i = 1, 4 do
        clients[i] = assert(io.popen(server:curl("'/content?[1-15]'",
          "-H 'Connection: close' --data-binary @" .. job)))
      end
      for i = 1, 4 do
        local text = clients[i]:read "*a"
        clients[i]:close()
        assert.equal(("x\n\n"):rep(15), text)
      end
    end)
  end)
end)
