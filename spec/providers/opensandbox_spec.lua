-- What is special to OpenSandbox: what is sent, what the wire loses and how it is had all the same,
-- and what happens when the service fails at each point. The fake holds every request against the
-- OpenAPI files.

local core = require "moonsand.core"
local events = require "moonsand.providers.opensandbox.events"
local helper = require "helper"
local http = require "moonsand.wire.http"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local opensandbox = require "support.opensandbox"
local support = require "support.init"
local times = require "moonsand.providers.opensandbox.time"

describe("moonsand.providers.opensandbox", function()
  helper.deadline(120)

  local fake, box

  local function options(more)
    local opts = { provider = "opensandbox", base_url = fake.url, api_key = fake.key }
    for name, value in pairs(more or {}) do
      opts[name] = value
    end
    return opts
  end

  local function create(more)
    more = more or {}
    more.image = more.image or not more.snapshot and "debian:12" or nil
    return moonsand.create(options(more))
  end

  setup(function()
    fake = opensandbox.start()
    box = assert(create())
    fake:clear()
  end)

  teardown(function()
    box:close()
    assert(moonsand.flush { timeout = 20 })
    http.close_idle()
    fake:stop()
  end)

  local silence = events.SILENCE

  after_each(function()
    events.SILENCE = silence
    assert.same({}, fake:violations())
    fake:set { framing = "bare", grace = 1 }
    fake:clear()
  end)

  local function code_of(value, message, code, detail)
    assert.is_nil(value)
    assert.is_string(message)
    assert.equal(code, detail.code)
    assert.equal("opensandbox", detail.provider)
    return code, detail
  end

  --- The next requests of a kind meet a fault; ours that nobody waits for are not among them.
  local function fault(what)
    assert(moonsand.flush { timeout = 20 })
    fake:fault(what)
  end

  --- The requests that were made, without our own cleaning up: bodies, by method and path.
  local function requests(method, path)
    local found = {}
    for _, one in ipairs(fake:requests()) do
      if one.method == method and one.path:find(path) then
        found[#found + 1] = one
      end
    end
    return found
  end

  --- How often a program was started whose text has these words.
  local function starts(words)
    local count = 0
    for _, one in ipairs(requests("POST", "^/command$")) do
      count = count + (one.body:find(words, 1, true) and 1 or 0)
    end
    return count
  end

  describe("create", function()
    it("sends what was asked for", function()
      local b = assert(create {
        image = { uri = "private/image", username = "u", password = "p" },
        entrypoint = { "sleep", "99" },
        env = { A = "1" }, metadata = { team = "x" }, name = "one", lifetime = 120.5,
        limits = { memory = "512M", cpus = 0.5 },
        network = { allow = { "example.org" }, deny = { "10.0.0.0/8" } },
        volumes = { { path = "/data", claim = "store", read_only = false } },
        extensions = { ["access.renew.extend.seconds"] = "300" }, secure_access = true,
      })
      local sent = require("cjson").decode(requests("POST", "^/sandboxes$")[1].body)
      assert.same({ uri = "private/image", auth = { username = "u", password = "p" } }, sent.image)
      assert.same({ "sleep", "99" }, sent.entrypoint)
      assert.same({ cpu = "500m", memory = "512Mi" }, sent.resourceLimits)
      assert.same({ team = "x", ["moonsand-name"] = "one" }, sent.metadata)
      assert.equal(121, sent.timeout)
      assert.same({ defaultAction = "deny", egress = {
        { action = "deny", target = "10.0.0.0/8" }, { action = "allow", target = "example.org" },
      } }, sent.networkPolicy)
      assert.same({ { name = "volume-1", mountPath = "/data", readOnly = false,
        pvc = { claimName = "store" } } }, sent.volumes)
      assert.equal(true, sent.secureAccess)
      assert.equal("one", b.name)
      local info = b:info()
      assert.equal("x", info.metadata.team)
      assert.is_true(math.abs(info.expires_at - os.time() - 121) < 10)
      assert.equal(512 * 1024 * 1024, info.limits.memory.value)
      assert.equal("1", assert(b:exec "printf %s $A").stdout)
      local again = assert(moonsand.connect("one", options()))
      assert.equal(b.id, again.id)
      assert.is_false(again.owned)
      assert.equal("2\n", assert(again:exec "echo 2").stdout)
      local p = assert(again:start("sleep 44", { stdin = false }))
      again:close()
      assert.equal("closed", select(3, p:wait(20)))
      support.eventually(20, "it was left", function()
        return #assert(b:ps "sleep 44") == 0
      end)
      assert.equal("ready", b:info().state)
      assert.is_true(b:destroy { timeout = 20 })
      assert.equal("not_found", code_of(moonsand.connect("one", options())))
    end)

    it("is refused before any request", function()
      for message, opts in pairs {
        ["image: OpenSandbox needs one"] = { image = false },
        ["lifetime: 5"] = { lifetime = 5 },
        ["limits.disk cannot be held"] = { limits = { disk = "1G" } },
        ["limits.memory: 'lots'"] = { limits = { memory = "lots" } },
        ["network: 'host' is not supported"] = { network = "host" },
        ["no ports and no groups"] = { network = { allow = { "@python" } } },
        ["volumes: 1 has no path"] = { volumes = { { host = "/srv" } } },
        ["base_url: 'ftp://x'"] = { base_url = "ftp://x" },
      } do
        local image = opts.image ~= false and "debian" or nil
        opts.image = image
        local value, said = moonsand.create(options(opts))
        assert.is_nil(value)
        assert.truthy(said:find(message, 1, true), said)
      end
      assert.same({}, fake:requests())
      assert.has_error(function()
        create { limits = { memroy = 1 } }
      end)
    end)

    it("passes on what the service refuses, in each of its forms", function()
      local cases = {
        { 401, "auth", "error" }, { 401, "auth", "unauthorized" }, { 403, "auth", "error" },
        { 404, "not_found", "error" }, { 409, "conflict", "error" }, { 413, "too_large", "text" },
        { 422, "invalid", "detail" }, { 429, "rate_limited", "error" },
        { 500, "provider", "error" }, { 502, "not_ready", "text" },
        { 503, "not_ready", "error" }, { 504, "not_ready", "text" },
      }
      for _, case in ipairs(cases) do
        fault { service = "lifecycle", method = "POST", path = "^/sandboxes$", fault = "status",
          status = case[1], form = case[3] }
        local code, detail = code_of(create())
        assert.equal(case[2], code)
        assert.equal(case[1], detail.http_status)
        assert.is_false(detail.started)
      end
      assert.equal("auth", code_of(create { api_key = "wrong" }))
      assert.equal("provider", code_of(create { image = "missing/image" }))
      fault { service = "lifecycle", method = "POST", path = "^/sandboxes$", fault = "status",
        status = 429, headers = { ["Retry-After"] = "7" } }
      local _, detail = code_of(create { retries = 0 })
      assert.equal(7, detail.retry_after)
    end)

    it("says which address does not answer, and takes the sandbox back", function()
      fault { service = "execd", path = "^/ping$", fault = "status", status = 502, form = "text",
        times = 1000 }
      local before = #fake:sandboxes()
      local value, message, code, detail = create { timeout = 3 }
      assert.equal("not_ready", code_of(value, message, code, detail))
      assert.truthy(message:find("127.0.0.1", 1, true))
      assert.truthy(message:find("use_server_proxy", 1, true))
      assert.is_string(detail.id)
      assert(moonsand.flush { timeout = 20 })
      assert.equal(before, #fake:sandboxes())
    end)

    it("reaches it through the server, and with the headers of every endpoint", function()
      local b = assert(create { use_server_proxy = true })
      assert.truthy(b:info().address:find("/sandboxes/" .. b.id .. "/proxy/44772", 1, true))
      assert.equal("hi\n", assert(b:exec "echo hi").stdout)
      local p = assert(b:start "cat")
      assert(p.stdin:write "through the proxy")
      p.stdin:close()
      assert.equal("through the proxy", assert(p:wait(20)).stdout)
      assert.is_true(b:destroy { timeout = 20 })
    end)

    it("finds the service by the environment", function()
      local script = support.write(support.directory() .. "/environment.lua", [[
        local moonsand = require "moonsand"
        local list = assert(moonsand.list { provider = "opensandbox" })
        print(list[1].provider)]])
      local output = support.run(("env OPEN_SANDBOX_DOMAIN=%s OPEN_SANDBOX_API_KEY=%s "
        .. "OPEN_SANDBOX_PROTOCOL=http LUA_PATH=%s LUA_CPATH=%s %s %s"):format(fake.domain, fake.key,
        support.quote(package.path), support.quote(package.cpath), support.interpreter, script))
      assert.equal("opensandbox\n", output)
    end)
  end)

  describe("list", function()
    it("gives all pages, and what is selected", function()
      local boxes = {}
      for i = 1, 3 do
        boxes[i] = assert(create { metadata = { group = "list", odd = "a b=&c" and "n" .. i } })
      end
      local rows = assert(moonsand.list(options { metadata = { group = "list" },
        state = "running" }))
      assert.equal(3, #rows)
      assert.equal("opensandbox", rows[1].provider)
      assert.equal("running", rows[1].state)
      assert.equal("debian:12", rows[1].image)
      assert.is_true(rows[1].created_at > 1.7e9)
      assert.same({}, assert(moonsand.list(options { metadata = { group = "none" } })))
      assert.is_true(#assert(moonsand.list(options())) >= 4)
      for _, b in ipairs(boxes) do
        assert.is_true(moonsand.destroy(b.id, options()))
      end
      assert.is_true(moonsand.destroy(boxes[1].id, options()))
    end)

    it("follows the pages", function()
      for page = 1, 2 do
        fault { service = "lifecycle", method = "GET", path = "^/sandboxes$", fault = "status",
          status = 200, headers = { ["Content-Type"] = "application/json" },
          body = ([[{"items":[{"id":"%d"}],"pagination":{"hasNextPage":%s}}]]):format(page,
            page == 1 and "true" or "false") }
      end
      local rows = assert(moonsand.list(options()))
      assert.equal(2, #rows)
      local asked = requests("GET", "^/sandboxes$")
      assert.truthy(asked[2].target:find "page=2")
    end)
  end)

  describe("a sandbox", function()
    it("is paused, and goes on where it was", function()
      local b = assert(create())
      local p = assert(b:start("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.1; done",
        { stdin = false }))
      assert.equal("1", p.stdout:read("l", 10))
      assert.is_true(b:pause { timeout = 10 })
      assert.equal("paused", b:info().state)
      assert.equal("conflict", code_of(b:pause { timeout = 10 }))
      assert.is_true(b:resume { timeout = 10 })
      assert.equal("2\n3\n4\n5\n6\n7\n8\n", assert(p:wait(20)).stdout)
      b:close()
    end)

    it("ends when its lifetime is over, and says so", function()
      local b = assert(create())
      local began, asked = core.now(), core.wall()
      assert.is_true(b:set_lifetime(3))
      assert.is_true(b:info().expires_at >= asked + 3) -- not short of a part of a second
      assert.equal("gone", code_of(b:exec "sleep 30"))
      assert.is_true(core.now() - began < 20)
      assert.equal("gone", code_of(b:exec "true"))
      assert.equal("gone", b:info().state)
      b:close()
      assert.equal("conflict", code_of(assert(create { lifetime = math.huge }):set_lifetime(100)))
    end)

    it("keeps its files in a snapshot", function()
      local b = assert(create())
      assert(b.files:write("/root/kept.txt", "kept"))
      local made = assert(b:snapshot("first", { timeout = 20 }))
      assert.equal("first", made.name)
      local found
      for _, row in ipairs(assert(moonsand.snapshots(options()))) do
        found = found or row.name == "first" and row
      end
      assert.equal(made.id, found.id)
      local copy = assert(create { snapshot = "first" })
      assert.equal("kept", assert(copy.files:read "/root/kept.txt"))
      assert.equal("not_found", code_of(create { snapshot = "second" }))
      copy:close()
      b:close()
      assert.is_true(moonsand.delete_snapshot("first", options()))
      assert.is_true(moonsand.delete_snapshot("first", options()))
    end)

    it("is destroyed by somebody else in the middle: gone", function()
      local b = assert(create())
      local p = assert(b:start("echo on; sleep 30", { stdin = false }))
      local q = assert(b:start "cat")
      assert.equal("on", p.stdout:read("l", 10))
      assert.is_true(moonsand.destroy(b.id, options()))
      assert.equal("gone", code_of(p:wait(20)))
      assert.equal("gone", code_of(q:wait(20)))
      b:close()
    end)

    it("is ended when nobody can reach it any more", function()
      local id = assert(create()).id
      support.eventually(20, "it is gone", function()
        helper.settle()
        for _, one in ipairs(fake:sandboxes()) do
          if one.id == id then
            return false
          end
        end
        return true
      end)
    end)

    --- Runs a program in which `create()` makes sandboxes and prints their ids: those ids, and how
    --- long its end took.
    local function program(text)
      local script = support.write(support.directory() .. "/end.lua", ([[
        local moonsand = require "moonsand"
        local function create()
          local made = assert(moonsand.create { provider = "opensandbox", image = "debian:12",
            base_url = %q, api_key = %q })
          print(made.id)
          return made
        end
        ]]):format(fake.url, fake.key) .. text .. "\nprint('end', require('moonsand.core').now())")
      local output, status = support.run(("LUA_PATH=%s LUA_CPATH=%s timeout 90 %s %s"):format(
        support.quote(package.path), support.quote(package.cpath), support.interpreter, script))
      assert.equal(0, status, output)
      local now, ids = core.now(), {}
      local began = output:match "\nend%s+(%S+)\n$"
      for id in output:gsub("end%s.*", ""):gmatch "%S+" do
        ids[#ids + 1] = id
      end
      return ids, began and now - began
    end

    --- How many of these sandboxes there are, and how often one was asked to end.
    local function count(ids)
      local there, asked = 0, 0
      for _, id in ipairs(ids) do
        for _, one in ipairs(fake:sandboxes()) do
          there = there + (one.id == id and 1 or 0)
        end
        asked = asked + #requests("DELETE", "^/sandboxes/" .. id:gsub("%-", "%%-") .. "$")
      end
      return there, asked
    end

    --- The same, once it is so many, at least: a slow service still has to read what it was asked.
    local function count_when(there, asked, ids)
      local counts
      support.eventually(20, "they were not ended as they should", function()
        counts = { count(ids) }
        return counts[1] == there and counts[2] >= asked, table.concat(counts, " ")
      end)
      return counts
    end

    for how, text in pairs {
      ["left"] = "box = create()",
      ["left in a program of luv's"] = [[require "luv"; box = create()]],
      ["left by a program that was busy"] = [[
        box = create()
        local r = assert(box:exec "seq 20000")
        local lines = {}
        for line in r.stdout:gmatch "[^\n]+" do lines[#lines + 1] = { line } end
        local p = assert(box:start("seq 20000; sleep 1000", { stdin = false }))
        for i = 1, 20000 do assert(p.stdout:read("l", 20) == lines[i][1]) end]],
      ["left with what runs in it"] = [[
        box = create()
        p, q = assert(box:start("cat")), assert(box:start("sleep 1000", { pty = true }))
        moonsand.task(function() while true do moonsand.sleep(0.001) p.stdin:write "x" end end)
        moonsand.task(function() while true do p.stdout:read(1) end end)
        moonsand.sleep(0.1)]],
      ["closed"] = "create():close()",
      ["closed, and told so"] = [[create():close() require("moonsand.loop").step(0)]],
      ["dropped"] = "create() collectgarbage() collectgarbage()",
    } do
      it("is ended with the Lua state when it was " .. how, function()
        local ids = program(text)
        assert.equal(1, #ids, table.concat(ids, " "))
        local counts = count_when(0, 1, ids)
        assert.is_true(counts[2] == 1 or counts[2] == 2 and how == "closed, and told so")
      end)
    end

    it("is ended with the Lua state beside all others", function()
      local ids = program "boxes = {} for i = 1, 40 do boxes[i] = create() end"
      assert.equal(40, #ids)
      assert.same({ 0, 40 }, count_when(0, 40, ids))
    end)

    it("is not ended again with the Lua state", function()
      local ids = program [[
        assert(create():destroy())
        create():close()
        assert(moonsand.flush())]]
      assert.same({ 0, 2 }, { count(ids) })
    end)

    it("is not ended by a process forked from its owner's", function()
      local ids = program [[
        local native = require("support.init").native()
        box = create()
        io.stdout:flush()
        local child = native.fork()
        if child == 0 then
          box = nil
          collectgarbage() collectgarbage()
          require("moonsand.loop").step(0)
          os.exit(0, true)
        end
        native.wait(child)
        assert(box:exec "true")]]
      assert.same({ 0, 1 }, count_when(0, 1, ids))
    end)

    it("is left where the end must not be held up, or none comes", function()
      for _, text in ipairs {
        "box = create() io.stdout:flush() os.exit(0)",
        [[local loop, host = require "moonsand.loop", {}
          for key, value in pairs(loop.host()) do host[key] = value end
          host.lingers = nil
          loop.use(host)
          box = create()]],
      } do
        local ids = program(text)
        assert.same({ 1, 0 }, { count(ids) }, text)
        assert.is_true(moonsand.destroy(ids[1], options()))
      end
    end)

    it("does not keep a program whose service is silent from its end", function()
      fault { service = "lifecycle", method = "DELETE", fault = "hang", times = 100 }
      local ids, took = program "boxes = {} for i = 1, 5 do boxes[i] = create() end"
      local counts = count_when(5, 5, ids)
      fake:clear()
      assert.same({ 5, 5 }, counts)
      assert.is_true(took > 1.9 and took < 8, tostring(took))
    end)

    it("says what it can", function()
      for name, how in pairs { argv = "native", stdin = "native", pty = "native", pause = "native",
        snapshot = "native", lifetime = "native", metrics = "native", session = "portable",
        ["limits.memory"] = "native", kill_tree = false, attach = "native",
        resize = "native", interpreter = "native" } do
        assert.equal(how, box:can(name), name)
      end
    end)

    it("names the address of a port", function()
      assert.truthy(assert(box:url(8000)):find("^http://127.0.0.1:%d+/.*8000$"))
    end)
  end)

  describe("a program", function()
    for _, framing in ipairs { "bare", "sse" } do
      it("is exact to the byte, whatever the events make of it: " .. framing, function()
        fake:set { framing = framing }
        local r = assert(box:exec [[printf 'a\r\nb\r\n\n\0\377 no end'; printf '\n\ne' >&2; exit 3]])
        assert.equal("a\r\nb\r\n\n\0\255 no end", r.stdout)
        assert.equal("\n\ne", r.stderr)
        assert.equal(3, r.exit_code)
        r = assert(box:exec "kill -SEGV $$")
        assert.equal("SEGV", r.signal)
        assert.equal(137, assert(box:exec "exit 137").exit_code)
        assert.equal("not_found", code_of(box:exec { "no-such-program" }))
      end)
    end

    it("ends with its last event, not with the connection", function()
      fake:set { grace = 60 }
      local began = core.now()
      assert.is_true(assert(box:exec "true").ok)
      assert.is_true(core.now() - began < 20)
    end)

    it("streams while it runs, both ways, byte for byte", function()
      local p = assert(box:start [[
        while IFS= read -r line; do echo "got $line"; done; echo over >&2; exit 9]])
      assert(p.stdin:write "one\n")
      assert.equal("got one", p.stdout:read("l", 10))
      assert(p.stdin:write "two\n")
      assert.equal("got two", p.stdout:read("l", 10))
      p.stdin:close()
      local r = assert(p:wait(20))
      assert.equal(9, r.exit_code)
      assert.equal("over\n", r.stderr)
      local bytes = {}
      for i = 0, 255 do
        bytes[i + 1] = string.char(i)
      end
      bytes = table.concat(bytes):rep(1000)
      p = assert(box:start "cat")
      moonsand.run(function()
        moonsand.task(function()
          for from = 1, #bytes, 10007 do
            assert(p.stdin:write(bytes:sub(from, from + 10006)))
          end
          p.stdin:close()
        end)
        assert.is_true(p.stdout:read("a", { timeout = 40, max = 1e6 }) == bytes)
      end)
    end)

    it("takes signals by name, and tells which one ended it", function()
      local p = assert(box:start "trap 'echo usr1' USR1; echo on; while :; do sleep 0.05; done")
      assert.equal("on", p.stdout:read("l", 10))
      assert.is_true(p:kill "USR1")
      assert.equal("usr1", p.stdout:read("l", 10))
      assert.is_true(p:kill "TERM")
      assert.equal("TERM", assert(p:wait(20)).signal)
    end)

    it("is ended by a DELETE of its id where a KILL from inside does not come through", function()
      local p = assert(box:start("echo on; sleep 33", { stdin = false }))
      assert.equal("on", p.stdout:read("l", 10))
      fault { service = "execd", method = "POST", path = "^/command$", fault = "status", status = 500,
        form = "error" }
      assert.is_true(p:kill "KILL")
      assert.equal("TERM", assert(p:wait(20)).signal)
      assert.equal(1, #requests("DELETE", "^/command$"))
    end)

    it("is cancelled, also when it does not listen to TERM", function()
      local token = moonsand.token()
      local value, message, code, detail
      moonsand.run(function()
        moonsand.task(function()
          moonsand.sleep(0.4)
          token:cancel()
        end)
        value, message, code, detail =
          box:exec("trap '' TERM; while :; do sleep 0.1; done", { cancel = token })
      end)
      assert.equal("cancelled", code_of(value, message, code, detail))
      support.eventually(20, "it was left", function()
        return #assert(box:ps "sleep 0.1") == 0
      end)
    end)

    it("has a terminal of the size that is asked for", function()
      local p = assert(box:start("stty size; read x; stty size; exit 5",
        { pty = { cols = 100, rows = 30 } }))
      assert.equal("30 100\r", p.stdout:read("l", 10))
      assert.is_true(p:resize(90, 20))
      assert(p.stdin:write "\n")
      local r = assert(p:wait(20))
      assert.truthy(r.stdout:find("20 90", 1, true))
      assert.equal(5, r.exit_code)
    end)

    it("runs in the background, with a log that is exact", function()
      local p = assert(box:start("printf 'a\\r\\n\\0b'; echo e >&2; sleep 0.3; printf c; exit 4",
        { background = true }))
      local r = assert(p:wait(20))
      assert.equal("a\r\n\0bc", r.stdout)
      assert.equal("e\n", r.stderr)
      assert.equal(4, r.exit_code)
      assert.is_true(#requests("GET", "^/command/%x+/logs$") > 0)
    end)

    it("takes a script that is longer than an argv can be, and says what cannot be", function()
      local r = assert(box:exec(("true %s\n"):format(("x"):rep(900)):rep(140) .. "echo end"))
      assert.equal("end\n", r.stdout)
      assert.equal("too_large", code_of(box:exec { "true", ("x"):rep(200000) }))
    end)

    it("is run by another user where that is a number", function()
      local r, message, code = box:exec("id -u", { user = 12345 })
      if support.run "id -u" == "0\n" then -- so is the service, which may become anybody
        assert.equal("12345\n", assert(r, message).stdout)
      else
        assert.equal("permission_denied", code)
        assert.matches("operation not permitted", message)
      end
      assert.equal("unsupported", code_of(box:exec("id -u", { user = "nobody" })))
      assert.equal("unsupported", code_of(box:start("id -u", { user = 12345 })))
    end)
  end)

  describe("a stream", function()
    local MARK = "echo marked"

    --- Runs it, and shows that it was never started twice.
    local function run(opts)
      local before = starts(MARK)
      local value, message, code, detail = box:exec(MARK, opts)
      assert.is_true(starts(MARK) - before <= 1)
      return value, message, code, detail
    end

    it("that is cut at any byte is never a success that was not", function()
      fake:set { grace = 0 }
      assert(run())
      local seen = { lost = 0, whole = 0 }
      for after = 0, 420, 7 do
        fault { service = "execd", method = "POST", path = "^/command$", fault = "cut",
          after = after }
        local r, message, code, detail = run()
        fake:clear()
        if r then
          assert.equal("marked\n", r.stdout)
          seen.whole = seen.whole + 1
        else
          assert.is_true(code == "lost" or code == "protocol", tostring(code) .. ": " .. message)
          seen.lost = seen.lost + 1
          if after > 120 then
            assert.truthy(detail.id:find "^%x+$")
            assert.is_true(detail.started)
          end
        end
      end
      assert.is_true(seen.lost > 10 and seen.whole > 1, seen.lost .. " " .. seen.whole)
    end)

    it("that was lost can be attached to again", function()
      fault { service = "execd", method = "POST", path = "^/command$", fault = "cut", after = 150,
        reset = true }
      local code, detail = code_of(box:exec "echo before; sleep 0.5; echo after; exit 6")
      assert.equal("lost", code)
      local r = assert(assert(box:attach(detail.id, 10)):wait(20))
      assert.equal(6, r.exit_code)
      assert.equal("before\nafter\n", r.stdout)
    end)

    it("of a background program is found by another handle, by its id", function()
      local p = assert(box:start("echo one; sleep 0.3; echo err >&2; echo two; exit 3",
        { background = true }))
      local other = assert(moonsand.connect(box.id, options()))
      local lines = {}
      local again = assert(other:attach(p.id, { on_line = function(line, name)
        lines[#lines + 1] = name .. " " .. line
      end }))
      assert.equal(p.id, again.id)
      local r = assert(again:wait(20))
      assert.equal(3, r.exit_code)
      assert.equal("one\ntwo\n", r.stdout)
      assert.equal("err\n", r.stderr)
      table.sort(lines)
      assert.same({ "stderr err", "stdout one", "stdout two" }, lines)
      assert.equal(3, assert(p:wait(20)).exit_code)
      local row
      for _, one in ipairs(assert(box:processes())) do
        row = one.id == p.id and one or row
      end
      assert.equal(3, row.exit_code)
      assert.is_false(row.running)
      assert.same({}, assert(other:processes()))
      other:close()
    end)

    it("is taken up where it was left, with what was not read", function()
      local p = assert(box:start("echo one; echo two; while [ ! -e /tmp/third ]; do sleep 0.05; done"
        .. "; echo three", { background = true }))
      assert.equal("one", p.stdout:read("l", 10))
      assert.equal("two", p:wait_for("two", 10))
      local since = assert(p:offsets())
      assert.is_true(p:detach())
      local token = moonsand.token()
      local again = assert(box:attach(p.id, { since = since, cancel = token }))
      token:cancel() -- that was for the call
      assert(box.files:write("/tmp/third", ""))
      assert.equal("two\nthree\n", assert(again:wait(20)).stdout)
      assert.same({ stdout = "one\ntwo\nthree\n", stderr = "" }, assert(again:log()))
      assert.equal("unsupported", code_of(again:resize(80, 24)))
      for _, wrong in ipairs { { stdout = -1 }, { stderr = 0.5 }, { stdin = 0 }, { stdout = "1" } } do
        assert.has_error(function()
          box:attach(p.id, { since = wrong })
        end)
      end
    end)

    it("is let go of while somebody waits, and runs on", function()
      local p = assert(box:start("while [ ! -e /tmp/let-go ]; do sleep 0.05; done; echo end",
        { background = true }))
      local told
      local heard = assert(box:attach(p.id, { on_exit = function(_, _, code)
        told = code
      end }))
      moonsand.run(function()
        local task = moonsand.task(function()
          return code_of(heard:wait(20))
        end)
        moonsand.sleep(0.05)
        assert.is_true(heard:detach())
        assert.equal("closed", task:wait())
      end)
      support.eventually(20, "on_exit is told", function()
        loop.step(0.01)
        return told
      end)
      assert.equal("closed", told)
      assert(box.files:write("/tmp/let-go", ""))
      assert.equal("end\n", assert(p:wait(20)).stdout)
      assert.is_true(assert(box:start "true"):wait(20).ok)
      assert.equal("unsupported", code_of(assert(box:start "true"):detach()))
    end)

    it("that was attached to outlives a handle of connect", function()
      local p = assert(box:start("while [ ! -e /tmp/outlived ]; do sleep 0.05; done; echo end",
        { background = true }))
      local other = assert(moonsand.connect(box.id, options()))
      local again = assert(other:attach(p.id))
      other:close()
      assert.equal("closed", code_of(again:wait(20)))
      assert(box.files:write("/tmp/outlived", ""))
      assert.equal("end\n", assert(p:wait(20)).stdout)
    end)

    it("that nobody knows is not found", function()
      assert.equal("not_found", code_of(box:attach "0123456789abcdef0123456789abcdef"))
    end)

    it("without its last event is lost", function()
      fault { service = "execd", method = "POST", path = "^/command$", fault = "no-terminal",
        ["end"] = true }
      assert.equal("lost", code_of(run()))
    end)

    it("that falls silent is lost", function()
      events.SILENCE = 4 -- execd says something every 3 s
      fault { service = "execd", method = "POST", path = "^/command$", fault = "hang" }
      local code, detail = code_of(run())
      assert.equal("lost", code)
      assert.is_nil(detail.started)
    end)

    it("with an error in it fails", function()
      fault { service = "execd", method = "POST", path = "^/command$", fault = "raw",
        text = 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n'
          .. '{"type":"init","text":"abc","timestamp":1}\n\n'
          .. '{"code":"RUNTIME_ERROR","message":"error running: permission denied"}' }
      local code, detail = code_of(run())
      assert.equal("permission_denied", code)
      assert.equal("RUNTIME_ERROR", detail.provider_code)
      assert.equal("abc", detail.id)
    end)

    it("with garbage in it is one that breaks its own rules", function()
      for _, text in ipairs { "not json\n\n", "{\"type\":\n\n", "[1]\n\n", "{}\n\n" } do
        fault { service = "execd", method = "POST", path = "^/command$", fault = "garbage",
          text = text, after = 0 }
        local r, _, code = run()
        assert.is_nil(r)
        assert.equal("protocol", code, text)
      end
    end)

    it("with an exit code that no program has does not say how it ended", function()
      for _, said in ipairs { "256", "-2", "1e999" } do
        fault { service = "execd", method = "POST", path = "^/command$", fault = "garbage",
          text = ('{"type":"error","error":{"evalue":"%s"}}\n\n'):format(said), after = 1 }
        assert.equal("lost", (code_of(run())))
      end
    end)

    it("that comes a byte at a time comes", function()
      fault { service = "execd", method = "POST", path = "^/command$", fault = "drip", bytes = 1,
        delay = 0.002 }
      assert.equal("marked\n", assert(run()).stdout)
    end)

    it("is refused in each form, and nothing was started", function()
      for _, case in ipairs {
        { 400, "invalid", "error" }, { 401, "auth", "unauthorized" }, { 403, "auth", "text" },
        { 404, "not_found", "error" }, { 409, "conflict", "error" }, { 413, "too_large", "text" },
        { 422, "invalid", "detail" }, { 429, "rate_limited", "error" },
        { 500, "provider", "error" }, { 502, "not_ready", "text" }, { 503, "not_ready", "error" },
      } do
        fault { service = "execd", method = "POST", path = "^/command$", fault = "status",
          status = case[1], form = case[3] }
        local code, detail = code_of(run())
        assert.equal(case[2], code, tostring(case[1]))
        assert.equal(case[1] < 500, detail.started == false)
      end
    end)

    it("is lost when the connection is reset, and never sent again", function()
      for _, how in ipairs { "reset", "lose" } do
        fault { service = "execd", method = "POST", path = "^/command$", fault = how }
        assert.equal("lost", code_of(run()))
      end
    end)

    it("ends in time when the service hangs", function()
      fault { service = "execd", method = "POST", path = "^/command$", fault = "hang" }
      local began = core.now()
      local value, message, code, detail = run { timeout = 0.3 }
      assert.equal("timeout", code_of(value, message, code, detail))
      assert.is_true(core.now() - began < 15)
    end)

    it("that gave its end, but not its output, is lost", function()
      fault { service = "execd", method = "GET", path = "^/files/download$", fault = "cut",
        after = 2, reset = true, times = 9 }
      local code, detail = code_of(run())
      assert.equal("lost", code)
      assert.equal(0, detail.exit.exit_code)
    end)
  end)

  describe("a connection", function()
    it("that nobody takes is one, and nothing was sent", function()
      local code, detail = code_of(create { retries = 0,
        base_url = "http://127.0.0.1:" .. math.floor(fake.refused_port) })
      assert.equal("connection", code)
      assert.is_false(detail.started)
      assert.is_true(detail.retry)
      code = code_of(create { base_url = "http://no-such-host.invalid", retries = 0 })
      assert.equal("connection", code)
    end)

    it("that hangs, is reset or redirects in the middle of create: once, and said", function()
      local cases = {
        { "timeout", { fault = "hang" } }, { "lost", { fault = "reset" } },
        { "protocol", { fault = "status", status = 307, headers = { Location = "/elsewhere" } } },
        { "lost", { fault = "cut", after = 10, reset = true } },
        { "protocol", { fault = "raw", text = "HTTP/1.1 202 A\r\nContent-Type: application/json\r\n"
          .. "Content-Length: 4\r\n\r\n{x}\n" } },
        { "protocol", { fault = "raw", text = "HTTP/1.1 202 A\r\nContent-Length: 0\r\n\r\n" } },
      }
      for i, case in ipairs(cases) do
        local what = case[2]
        what.service, what.method, what.path = "lifecycle", "POST", "^/sandboxes$"
        fault(what)
        local code = code_of(create { timeout = case[1] == "timeout" and 3 or 20 })
        assert.equal(case[1], code, "case " .. i)
        assert.equal(i, #requests("POST", "^/sandboxes$"))
      end
    end)

    it("whose answer is no HTTP, or has no end, is not believed", function()
      for code, what in pairs {
        protocol = { fault = "raw", text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" },
        too_large = { fault = "headers" },
        lost = { fault = "raw", text = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}" },
      } do
        what.service, what.method, what.path = "execd", "POST", "^/command$"
        fault(what)
        local r, _, said = box:exec "echo once"
        assert.is_nil(r)
        assert.equal(code, said)
      end
    end)

    it("of a live program may come in fragments, with pings between", function()
      for _, how in ipairs { "fragment", "ping" } do
        fault { service = "execd", path = "^/pty/[^/]+/ws$", fault = "websocket", how = how,
          after = 1 }
        local p = assert(box:start "echo on; cat")
        p.stdin:close()
        assert.equal("on\n", assert(p:wait(20)).stdout)
      end
    end)

    it("of a live program that drops is lost, with its id", function()
      fault { service = "execd", path = "^/pty/[^/]+/ws$", fault = "websocket", how = "drop",
        after = 2 }
      local p, message, code, detail = -- long: a frame has all that is there by then
        box:start "for i in $(seq 300); do echo $i; sleep 0.1; done"
      if p then
        p, message, code, detail = p:wait(20)
      end
      local said
      said, detail = code_of(p, message, code, detail)
      assert.equal("lost", said)
      assert.truthy(detail.id:find "-")
    end)

    it("of a live program may break the protocol in every way, and is never a success", function()
      for _, how in ipairs { "mask", "reserved", "text", "close" } do
        fault { service = "execd", path = "^/pty/[^/]+/ws$", fault = "websocket", how = how,
          code = 1011, after = 1 }
        local p, _, code = box:start "echo on; cat"
        if p then
          p, _, code = p:wait(20)
        end
        assert.is_nil(p)
        assert.is_true(code == "lost" or code == "protocol", how .. ": " .. tostring(code))
        fake:clear()
      end
    end)
  end)

  describe("a terminal session", function()
    it("is taken over, and what was missed comes first", function()
      local p = assert(box:start("echo one; read x; echo two; stty size; exit 3", { pty = true }))
      assert.equal("one\r", p.stdout:read("l", 10))
      local again = assert(box:attach(p.id, { pty = true, takeover = true }))
      assert.equal("closed", code_of(p:wait(20)))
      assert.is_true(again:resize(91, 21))
      assert(again.stdin:write "\n")
      local r = assert(again:wait(20))
      assert.equal(3, r.exit_code)
      assert.truthy(r.stdout:find("one\r\n.*two\r\n21 91\r\n"))
      assert.equal("gone", code_of(again:resize(80, 24)))
      assert.has_error(function()
        again:resize(0, "x")
      end)
    end)
  end)

  describe("an interpreter", function()
    local interpreter

    before_each(function()
      interpreter = assert(box:interpreter("py", { timeout = 20 }))
    end)

    after_each(function()
      interpreter:close()
      assert(moonsand.flush { timeout = 20 })
    end)

    local function run(code, opts)
      return assert(interpreter:run(code, opts))
    end

    it("keeps its state, and gives results, displays and errors", function()
      assert.equal("python", interpreter.language)
      local shown = {}
      local r = run("x = 41\nprint('out')\nx + 1", { on_display = function(display)
        shown[#shown + 1] = display
      end })
      assert.is_true(r.ok)
      assert.is_true(r.state_kept)
      assert.is_nil(r.exit_code)
      assert.equal("out\n", r.stdout)
      assert.equal("42", r.text)
      assert.equal(1, r.execution_count)
      assert.same({ { ["text/plain"] = "42" } }, r.displays)
      assert.same(r.displays, shown)
      local heard = {}
      r = run("import sys\nprint(x); print('e', file=sys.stderr); 1/0", { on_stdout = function(text)
        heard[#heard + 1] = text
      end })
      assert.equal("41\n", table.concat(heard))
      assert.equal("e\n", r.stderr)
      assert.is_false(r.ok)
      assert.equal("ZeroDivisionError", r.error.name)
      assert.equal("division by zero", r.error.message)
      assert.truthy(r.error.traceback:find("Traceback", 1, true))
      local code, detail = code_of(interpreter:run("1/0", { check = true }))
      assert.equal("exit", code)
      assert.equal("ZeroDivisionError", detail.result.error.name)
      assert.equal("", run("").output)
      assert.equal("unsupported", code_of(interpreter:complete "x"))
    end)

    it("is interrupted at a timeout, at a cancel and from outside, and keeps its state", function()
      run "x = 41"
      local r = run("import time\nprint('on', flush=True)\ntime.sleep(30)", { timeout = 3 })
      assert.is_true(r.timed_out)
      assert.is_true(r.state_kept)
      assert.equal("KeyboardInterrupt", r.error.name)
      assert.equal("on\n", r.stdout)
      local token = moonsand.token()
      local code, detail = code_of(interpreter:run("print('on', flush=True)\ntime.sleep(30)", {
        cancel = token,
        on_stdout = function()
          token:cancel()
        end,
      }))
      assert.equal("cancelled", code)
      assert.is_true(detail.result.state_kept)
      r = run("print('on', flush=True)\ntime.sleep(30)", { on_stdout = function()
        assert.is_true(interpreter:interrupt())
      end })
      assert.equal("KeyboardInterrupt", r.error.name)
      assert.is_false(r.timed_out)
      assert.equal("41", run("x").text)
    end)

    it("that ignores interrupts is started anew", function()
      local r = run("import time\nwhile True:\n  try: time.sleep(30)\n"
        .. "  except KeyboardInterrupt: pass", { timeout = 2 })
      assert.is_true(r.timed_out)
      assert.is_false(r.state_kept)
      assert.equal("NameError", run("time").error.name)
      assert.is_true(interpreter:restart { timeout = 20 })
      assert.is_true(interpreter.alive)
    end)

    it("is told dead by the service", function()
      local r = run "import os; os._exit(3)"
      assert.is_false(r.ok)
      assert.is_false(r.state_kept)
      assert.is_true(interpreter:restart { timeout = 20 })
      assert.equal("2", run("1 + 1").text)
    end)

    it("is closed while it runs, by itself and with its sandbox", function()
      for _, how in ipairs { "interpreter", "sandbox" } do
        local other = assert(moonsand.connect(box.id, options()))
        local closing = assert(other:interpreter())
        local began = core.now()
        local code, detail = code_of(closing:run("print('on')\nimport time\ntime.sleep(30)", {
          on_stdout = function()
            (how == "sandbox" and other or closing):close()
          end,
        }))
        assert.equal("closed", code)
        assert.equal("on\n", detail.result.stdout)
        assert.is_false(closing.alive)
        assert.is_true(core.now() - began < 20)
        other:close()
      end
      assert(moonsand.flush { timeout = 20 })
    end)

    it("whose stream is cut or makes no sense is no success", function()
      for _, case in ipairs {
        { "lost", { fault = "cut", after = 130 } },
        { "lost", { fault = "cut", after = 130, reset = true } },
        { "provider", { fault = "status", status = 500, form = "error" } },
        { "protocol", { fault = "status", status = 200, body = "{\"type\":3}\n\n",
          headers = { ["Content-Type"] = "text/event-stream" } } },
      } do
        case[2].service, case[2].method, case[2].path = "execd", "POST", "^/code$"
        fault(case[2])
        assert.equal(case[1], code_of(interpreter:run "print('x'); 1"))
        assert.is_true(interpreter:restart { timeout = 20 })
      end
    end)

    it("takes of what is told only what has its form", function()
      local lines = {}
      for _, line in ipairs {
        [[{"type":"init","text":"x"}]],
        [[{"type":"stdout","text":7}]],
        [[{"type":"stdout","text":"s"}]],
        [[{"type":"result","results":{"text":["no"],"application/json":{"a":[1,null]}}}]],
        [[{"type":"result","results":"none"}]],
        [[{"type":"execution_count","execution_count":"x"}]],
        [[{"type":"error","error":{"ename":{},"evalue":null,"traceback":"t"}}]],
        [[{"type":"execution_complete"}]],
      } do
        lines[#lines + 1] = line .. "\n\n"
      end
      fault { service = "execd", method = "POST", path = "^/code$", fault = "status", status = 200,
        body = table.concat(lines), headers = { ["Content-Type"] = "text/event-stream" } }
      local r = run "1"
      assert.equal("s", r.stdout)
      assert.is_nil(r.text)
      assert.is_nil(r.execution_count)
      assert.equal(1, #r.displays)
      assert.same({ name = "Error", message = "", traceback = "" }, r.error)
    end)

    it("that no kernel is there for is unavailable", function()
      local contexts = require "moonsand.providers.opensandbox.contexts"
      local ready = contexts.READY
      contexts.READY = 0.5
      local code, detail = code_of(box:interpreter "java")
      contexts.READY = ready
      assert.equal("unavailable", code)
      assert.is_string(detail.fix)
    end)
  end)

  describe("the service's own sessions", function()
    it("are bash sessions as execd has them", function()
      local session = assert(box.core.driver:bash_session({ cwd = "/tmp" }))
      assert.same({ exit_code = 0, lines = { "/tmp" } }, assert(session:run "export A=1; pwd"))
      assert.same({ exit_code = 3, lines = { "1" } }, assert(session:run "echo $A; exit 3"))
      local value, _, code = session:run("sleep 5", { timeout = 0.3 })
      assert.is_nil(value)
      assert.equal("timeout", code)
      assert.is_true(session:delete())
      assert.equal("closed", select(3, session:run "true"))
    end)

    it("end with no code but one that a program can have", function()
      for _, said in ipairs { "256", "-1", "1e999", "nan", "inf", "" } do
        local session = assert(box.core.driver:bash_session())
        fault { service = "execd", method = "POST", path = "^/session/", fault = "status",
          status = 200, times = 1, headers = { ["Content-Type"] = "text/event-stream" },
          body = ('{"type":"init","text":"x"}\n\n{"type":"error","error":{"evalue":"%s"}}\n\n')
            :format(said) }
        assert.equal("lost", (code_of(session:run "true")))
        assert.is_true(session:delete())
      end
    end)

    it("are isolated sessions where the server has them", function()
      assert(box.files:mkdir("/workspace/iso", { parents = true }))
      local driver = box.core.driver
      local session = assert(driver:isolated_session { workspace = { path = "/workspace/iso" } })
      local run = assert(session:run("echo $A; exit 2", { env = { A = "seen" }, timeout = 10 }))
      assert.same({ exit_code = 2, lines = { "seen" } }, run)
      local id = assert(session:start "echo behind")
      local text, cursor
      support.eventually(20, "it is written", function()
        text, cursor = session:log(id, 0)
        return text and #text > 0
      end)
      assert.equal("behind\n", text)
      assert.equal(7, cursor)
      assert.is_table(session:status(id))
      assert.is_true(session:delete())
    end)
  end)

  describe("files", function()
    it("of many bytes go up and come down by execd's own calls", function()
      local path = support.directory() .. "/big"
      local block = ("0123456789abcdef"):rep(4096)
      local file = assert(io.open(path, "wb"))
      for _ = 1, 160 do
        file:write(block)
      end
      file:close()
      local told = 0
      local sent = assert(box.files:upload(path, "/root/big", { progress = function(done, total)
        told = done
        assert.equal(160 * 65536, total)
      end }))
      assert.equal(160 * 65536, sent.bytes)
      assert.equal(160 * 65536, told)
      assert.equal(160 * 65536, assert(box.files:stat "/root/big").size)
      assert.equal("f0", assert(box.files:read("/root/big", { offset = 65535, length = 2 })))
      local came = assert(box.files:download("/root/big", path .. ".back"))
      assert.equal(160 * 65536, came.bytes)
      assert.is_true(support.read(path) == support.read(path .. ".back"))
      local _, _, code = box.files:read("/root/big", { max = 100 })
      assert.equal("too_large", code)
      assert(os.remove(path) and os.remove(path .. ".back"))
    end)

    it("are cut, and nothing of them is passed on", function()
      assert(box.files:write("/root/cut", ("x"):rep(10000)))
      fault { service = "execd", method = "GET", path = "^/files/download$", fault = "cut",
        after = 100, times = 1 }
      local value, _, code = box.files:read "/root/cut"
      assert.is_nil(value)
      assert.equal("lost", code)
      fault { service = "execd", method = "GET", path = "^/files/download$", fault = "length",
        add = 10, times = 1 }
      value, _, code = box.files:read "/root/cut"
      assert.is_nil(value)
      assert.equal("lost", code)
    end)
  end)

  describe("metrics", function()
    it("come from the service too, one after the other", function()
      local iterator = assert(box.core.driver:watch_metrics(loop.limits { timeout = 20 }))
      for _ = 1, 2 do
        local row = assert(iterator:next { timeout = 20 })
        assert.is_true(row.memory_used > 0 and row.memory_used < row.memory_total)
        assert.is_number(row.cpu_percent)
      end
      iterator:close()
    end)

    it("are refused when they are none", function()
      fault { service = "execd", method = "GET", path = "^/metrics$", fault = "status", status = 200,
        body = '{"cpu_count":1,"cpu_used_pct":1,"mem_total_mib":1}' }
      assert.equal("protocol", (code_of(box:metrics())))
      fault { service = "execd", method = "GET", path = "^/metrics/watch$", fault = "status",
        status = 200, body = 'data: {"cpu_count":1,"cpu_used_pct":1,"mem_total_mib":1}\n\n',
        headers = { ["Content-Type"] = "text/event-stream" } }
      local iterator = assert(box.core.driver:watch_metrics(loop.limits { timeout = 20 }))
      assert.equal("provider", (code_of(iterator:next { timeout = 20 })))
      iterator:close()
    end)
  end)

  describe("a time", function()
    it("is read and written", function()
      assert.equal(0, times.parse "1970-01-01T00:00:00Z")
      assert.equal(1795247171.5, times.parse "2026-11-21T07:46:11.5Z")
      assert.equal(1795247171, times.parse "2026-11-21T08:46:11+01:00")
      assert.equal(951782400, times.parse "2000-02-29T00:00:00.000000Z")
      assert.is_nil(times.parse "yesterday")
      assert.is_nil(times.parse(nil))
      assert.equal("2026-11-21T07:46:11Z", times.format(1795247170.2))
    end)
  end)
end)
