--- What is below requests: curl in the reactor of each host, HTTP/2, names that are not answered, and
--- what is left of it in other processes.

local helper = require "helper"
local http = require "moonsand.wire.http"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local net = require "moonsand.net"
local server = require "support.server"
local support = require "support.init"

local quote = support.quote
local BUILD = os.getenv "MOONSAND_BUILD" or "build"

--- Asks the server whose address is BASE for a bit of everything; raises, or answers "fine".
local EVERYTHING = [[
local http, websocket = require "moonsand.wire.http", require "moonsand.wire.websocket"
local moonsand = require "moonsand"
local function everything(base)
  assert(http.call { url = base .. "/hello", timeout = 10 } == "hello")
  local left = 20
  local text = assert(http.call { url = base .. "/echo", timeout = 10, body = function()
    left = left - 1
    return left >= 0 and ("x"):rep(50000) or nil
  end })
  assert(#text == 1000000)
  local response = assert(http.open { url = base .. "/trickle?count_of=5&pause=0.01", timeout = 10 })
  local lines = 0
  for _ in response.body:lines() do lines = lines + 1 end
  assert(lines == 5)
  local _, _, code = http.call { url = base .. "/raw?end=hold", timeout = 0.1 }
  assert(code == "timeout", code)
  local ws = assert(websocket.connect { url = base:gsub("^http", "ws") .. "/ws/echo", timeout = 10 })
  assert(ws:send("hello", 5))
  assert(ws:receive(5) == "hello")
  ws:close()
  local list = {}
  for i = 1, 20 do list[i] = i end
  local all = assert(moonsand.all(list, function(i)
    return http.call { url = base .. "/echo", body = tostring(i), timeout = 10 }
  end))
  for i = 1, 20 do assert(all[i] == tostring(i)) end
  http.close_idle()
  return "fine"
end
]]

--- Runs code with EVERYTHING before it: what it wrote.
local function child(code, command)
  local path = support.directory() .. "/net-child.lua"
  support.write(path, EVERYTHING .. code)
  return (support.run(("env LUA_PATH=%s LUA_CPATH=%s BASE=%s timeout 60 %s %s </dev/null"):format(
    quote(package.path), quote(package.cpath), quote(server.url ""), command or support.interpreter,
    quote(path))))
end

describe("moonsand.net", function()
  helper.deadline(90)
  helper.no_leaks(nil, http.close_idle)
  setup(server.start)

  it("leaves the loop idle when nothing is under way", function()
    loop.step(0)
    local before = loop.reactor():active()
    assert(http.call { url = server.url "/hello", timeout = 5 })
    loop.step(0)
    assert.equal(before, loop.reactor():active())
  end)

  describe("a kept connection", function()
    --- How many descriptors the reactor's set holds.
    local function registered()
      local count = 0
      for line in io.lines("/proc/self/fdinfo/" .. loop.fd()) do
        count = count + (line:find("^tfd:") and 1 or 0)
      end
      return count
    end

    it("stays in the reactor's set until it is closed", function()
      http.close_idle()
      local before = registered()
      for _ = 1, 3 do
        assert(http.call { url = server.url "/hello", timeout = 5 })
        assert.equal(before + 1, registered())
      end
      http.close_idle()
      assert.equal(before, registered())
    end)

    it("is not left readable when the peer closes it", function()
      http.close_idle()
      local before = registered()
      local answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
      for _ = 1, 3 do
        assert.equal("hello", (assert(http.call { url = server.raw(answer), timeout = 5 })))
        support.eventually(10, "the connection stays in the set", function()
          loop.step(0)
          return registered() == before
        end)
      end
    end)
  end)

  it("gives back what was dropped", function()
    local own, held = net.open(loop.reactor()), {}
    for i = 1, 10 do
      held[i] = own:start { url = server.raw("", { ["end"] = "hold" }), method = "GET", headers = {} }
    end
    loop.step(0.05)
    assert.equal(10, own:running())
    for i = 1, #held do
      held[i] = nil
    end
    helper.settle()
    assert.is_true(own:running() <= 1) -- the last may still be in a register
  end)

  it("opens nothing for the programs that the host starts", function()
    local held = {}
    for i = 1, 3 do
      held[i] = assert(http.request { url = server.raw("HTTP/1.1 200 OK\r\n\r\nx", { ["end"] = "hold" }),
        timeout = 20 })
    end
    local peers = {}
    for _, target in pairs(select(2, support.fds())) do
      peers[target] = true
    end
    local inherited = 0
    local output = support.run "ls -l /proc/self/fd"
    for socket in output:gmatch "socket:%[%d+%]" do
      inherited = inherited + (peers[socket] and 1 or 0)
    end
    -- curl wakes itself over a pair of sockets that it makes for itself
    assert.is_true(inherited <= 2, output)
    for i = 1, 3 do
      held[i]:close()
    end
  end)

  -- ---------------------------------------------------------------- the end of the Lua state

  describe("a last wish", function()
    --- Runs a program with a function `wish(name, options)`: what it wrote, how long its end took.
    local function program(code)
      local output = child(([[
        local core = require "moonsand.core"
        local clients = require "moonsand.wire.http"
        local function wish(name, more)
          local opts = { url = %q .. name, method = "DELETE", headers = { ["X-Wish"] = name } }
          for key, value in pairs(more or {}) do opts[key] = value end
          return clients.client():wish(opts)
        end
        ]]):format(server.url "/shown" .. "?count=") .. code .. "\nprint('end', core.now())")
      local now = loop.now()
      local before, began = output:match "^(.*)end%s+(%S+)\n$"
      assert.is_string(before, output)
      return before, now - tonumber(began)
    end

    --- The same for what must be sent, with a name of its own for each NAME: again where the two
    --- seconds for all wishes may have been over before, as on a machine that stands still.
    local function sent(code)
      local name, before, took
      support.eventually(40, "its end takes two seconds", function()
        name = server.name()
        before, took = program((code:gsub("NAME", name)))
        return took < 1.9, took
      end)
      return name, before
    end

    it("is sent when the state is closed, as it was set up", function()
      local name, output = sent "kept = wish 'NAME'"
      assert.equal("", output)
      local count, lines = server.count(name)
      assert.equal(1, count)
      local head = table.concat(lines, "\n") .. "\n"
      assert.truthy(head:find("DELETE /shown?count=" .. name, 1, true), head)
      assert.truthy(head:find("X-Wish: " .. name .. "\n", 1, true), head)
      assert.truthy(head:find("User-Agent: moonsand/", 1, true), head)
    end)

    it("is sent also when nobody holds it, and everything was loaded anew", function()
      local name = sent [[
        wish "NAME"
        for key in pairs(package.loaded) do
          if key:find "^moonsand" then package.loaded[key] = nil end
        end
        clients, wish = nil, nil
        for _ = 1, 5 do collectgarbage() end]]
      assert.equal(1, (server.count(name)))
    end)

    it("is not sent before, whatever is collected", function()
      local name, output = sent [[
        wish "NAME"
        for _ = 1, 5 do collectgarbage() end
        local base = os.getenv "BASE"
        print(clients.call { url = base .. "/count?of=NAME" }.count)]]
      assert.equal(0, tonumber(output), output)
      assert.equal(1, (server.count(name)))
    end)

    it("is not sent once it was revoked", function()
      local name = server.name()
      assert.equal("moonsand.wish (wished)\nmoonsand.wish (over)\n", (program(([[
        local w = wish(%q)
        print(w)
        w:revoke()
        w:revoke()
        print(w)]]):format(name))))
      assert.equal(0, (server.count(name)))
    end)

    it("is sent over TLS, checked as ever", function()
      local name = sent(([[
        wish("", { url = %q, ca_file = %q })
        wish("", { url = %q })]]):format(server.url("/shown", { count = "NAME" }, "https"),
        server.start().ca_file, server.url("/shown", { count = "NAME-bad" }, "https")))
      assert.equal(1, (server.count(name)))
      assert.equal(0, (server.count(name .. "-bad")))
    end)

    it("is sent side by side with hundreds", function()
      local name = sent "for i = 1, 300 do wish 'NAME' end"
      assert.equal(300, (server.count(name)))
    end)

    it("does not wait for who does not answer, nor longer than two seconds for all", function()
      local name = server.name()
      local _, took = program(([[
        for i = 1, 100 do wish("", { url = %q }) end
        wish("", { url = "http://127.0.0.1:1/" })
        wish("", { url = "http://moonsand.invalid/" })]]):format(
        server.raw("", { ["end"] = "hold", count = name })))
      assert.is_true(took > 1.9 and took < 20, tostring(took))
      support.eventually(20, "too few were sent", function()
        return server.count(name) >= 16
      end)
      sent [[wish("", { url = "http://127.0.0.1:1/" })]]
    end)

    it("is not sent by a forked child, which cannot wish by what is its parent's", function()
      local name, output = sent [[
        local w = wish "NAME"
        local native = require("support.init").native()
        local child = native.fork()
        if child == 0 then
          os.exit(0, true)
        end
        native.wait(child)
        local base = os.getenv "BASE"
        print(clients.call { url = base .. "/count?of=NAME" }.count)]]
      assert.equal(0, tonumber(output), output)
      assert.equal(1, (server.count(name)))
    end)

    it("is none where the end must not be held up, or when it cannot be sent", function()
      local client = http.client()
      local refused, _, code = client:wish { url = "http://x y/" }
      assert.is_nil(refused)
      assert.equal("invalid", code)
      assert.has_error(function()
        client:wish { url = "http://x/", body = "some" }
      end, "moonsand: client:wish: a wish has no body")
      local host = {}
      for key, value in pairs(loop.host()) do
        host[key] = value
      end
      host.lingers = nil
      loop.use(host)
      local wish = client:wish { url = server.url "/hello" }
      loop.use(nil)
      assert.is_nil(wish)
    end)
  end)

  -- ---------------------------------------------------------------- names

  describe("a name that nobody answers for", function()
    local library

    setup(function()
      local dir = support.directory()
      support.write(dir .. "/slow.c", [[
        #include <netdb.h>
        #include <unistd.h>
        int getaddrinfo(const char *n, const char *s, const struct addrinfo *h, struct addrinfo **r) {
          (void)n, (void)s, (void)h, (void)r;
          sleep(20);
          return EAI_AGAIN;
        }]])
      library = dir .. "/slow.so"
      local output, status = support.run(("gcc -shared -fPIC -o %s %s/slow.c"):format(library, dir))
      assert(status == 0, output)
    end)

    local function slow(code)
      local core = require "moonsand.core"
      local before = core.now()
      local others = os.getenv "LD_PRELOAD" -- a sanitizer's comes first
      local output = child(code, ("env LD_PRELOAD=%s %s"):format(
        quote((others and others .. ":" or "") .. library), support.interpreter))
      return output, core.now() - before
    end

    it("does not hold up a deadline, a close or the end of the program", function()
      local output, took = slow [[
        local before = os.time()
        print((select(3, http.call { url = "http://slow.example/", timeout = 0.2 })))
        assert(os.time() - before <= 8)
      ]]
      assert.equal("timeout\n", output)
      assert.is_true(took < 8, took)
    end)

    it("is over for the connection in its own time", function()
      local output, took = slow [[
        print((select(3, http.call { url = "http://slow.example/", connect_timeout = 0.2, retries = 0 })))
      ]]
      assert.equal("connection\n", output)
      assert.is_true(took < 8, took)
    end)
  end)

  -- ---------------------------------------------------------------- hosts

  describe("works in each host:", function()
    it("tasks", function()
      assert.equal("fine\n", child [[print(moonsand.run(everything, os.getenv "BASE"))]])
    end)

    it("the main chunk", function()
      assert.equal("fine\n", child [[print(everything(os.getenv "BASE"))]])
    end)

    it("luv, in a coroutine and on the main chunk", function()
      assert.equal("fine\nfine\n", child [[
        local uv = require "luv"
        coroutine.wrap(function() print(everything(os.getenv "BASE")) end)()
        uv.run()
        print(everything(os.getenv "BASE"))
      ]])
    end)

    it("Neovim", function()
      if support.instrumented() then
        return -- Neovim cannot load the module then
      end
      local jit = BUILD .. "/jit/?.so"
      local code = ([[
        package.path = %q .. ";" .. package.path
        package.cpath = %q .. ";" .. package.cpath
        local beats = 0
        local timer = vim.loop.new_timer()
        timer:start(5, 5, function() beats = beats + 1 end)
        local said
        coroutine.wrap(function() said = everything(os.getenv "BASE") end)()
        vim.wait(30000, function() return said ~= nil end, 5)
        local main = everything(os.getenv "BASE")
        timer:close()
        io.stdout:write(tostring(said), " ", main, " ", tostring(beats > 5), "\n")
        vim.cmd "qa!"
      ]]):format(package.path, jit)
      local output = child(code, ("env LUA_CPATH=%s nvim --headless -u NONE -i NONE -S"):format(
        quote(jit .. ";;")))
      assert.matches("fine fine true", output)
    end)
  end)

  -- ---------------------------------------------------------------- nginx: HTTP/2, and as a host

  describe("with nginx", function()
    local dir, port, pid

    setup(function()
      dir = support.run "mktemp -d":gsub("%s+$", "")
      local function run(command)
        local output, status = support.run(command)
        assert(status == 0, output)
        return output
      end
      local modules = run "nginx -V":match "%-%-modules%-path=(%S+)"
      run(("cp %s %s/cert.pem && cp %s %s/key.pem && mkdir %s/so && cp -R lua/moonsand %s/ && "
        .. "cp -R %s/jit/moonsand %s/so/ && head -c 3000000 /dev/zero >%s/big && echo -n hello >%s/hello")
        :format(server.start().ca_file, dir, (server.start().ca_file:gsub("cert", "key")), dir, dir, dir,
          BUILD, dir, dir, dir))
      support.write(dir .. "/everything.lua", EVERYTHING .. "\nreturn everything")
      local configuration = ([[
        USER
        load_module MODULES/ndk_http_module.so;
        load_module MODULES/ngx_http_lua_module.so;
        pid DIR/nginx.pid;
        error_log DIR/error.log notice;
        events { worker_connections 512; }
        http {
          access_log off;
          client_body_temp_path DIR/a; proxy_temp_path DIR/b; fastcgi_temp_path DIR/c;
          uwsgi_temp_path DIR/d; scgi_temp_path DIR/e;
          lua_package_path "DIR/?.lua;DIR/?/init.lua;;";
          lua_package_cpath "DIR/so/?.so;;";
          server {
            listen 127.0.0.1:PORT ssl http2;
            ssl_certificate DIR/cert.pem;
            ssl_certificate_key DIR/key.pem;
            root DIR;
            location = /drop { return 444; }
            location = /serial { content_by_lua_block { ngx.say(ngx.var.connection) } }
            location = /slow { content_by_lua_block { ngx.say(1) ngx.flush(true) ngx.sleep(20) } }
            location = /everything { content_by_lua_block {
              ngx.print(require "everything" ("BASE"))
            } }
          }
        }]]):gsub("USER", run "id -u" == "0\n" and "user root;" or ""):gsub("MODULES", modules)
        :gsub("DIR", dir):gsub("BASE", (server.url ""))
      support.eventually(20, "nginx does not start", function()
        port = tonumber((run [[python3 -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])']]))
        support.write(dir .. "/nginx.conf", (configuration:gsub("PORT", port)))
        local output, status = support.run(("nginx -p %s -c %s/nginx.conf -e %s/error.log"):format(dir,
          dir, dir))
        return status == 0, output -- somebody else may have the port by now
      end)
      pid = support.eventually(10, "nginx did not start", function()
        local text = support.read(dir .. "/nginx.pid")
        return text and text:match "%d+"
      end)
    end)

    teardown(function()
      http.close_idle()
      support.run(("kill %s; rm -rf %s"):format(pid, dir))
    end)

    local function ask(path, opts)
      opts = opts or {}
      opts.url = ("https://127.0.0.1:%d%s"):format(port, path)
      opts.ca_file = server.start().ca_file
      opts.timeout = opts.timeout or 20
      return opts
    end

    it("speaks HTTP/2 where TLS offers it, and HTTP/1.1 when told to", function()
      local r = assert(http.request(ask "/hello"))
      assert.equal("2", r.version)
      assert.equal("hello", r:read())
      r = assert(http.request(ask("/hello", { version = "1.1" })))
      assert.equal("1.1", r.version)
      assert.equal("hello", r:read())
    end)

    it("sends many at once over one connection, and one that is dropped disturbs none", function()
      assert(http.call(ask "/hello"))
      local serials = {}
      assert(moonsand.run(function()
        local slow = assert(http.request(ask "/slow"))
        local list = {}
        for i = 1, 50 do
          list[i] = i
        end
        local all = assert(moonsand.all(list, function(i)
          if i == 25 then
            slow:close()
          end
          serials[assert(http.call(ask("/serial", { timeout = 60 })))] = true
          return #assert(http.call(ask("/big", { timeout = 60 })))
        end))
        for i = 1, 50 do
          assert.equal(3000000, all[i])
        end
        return true
      end))
      local count = 0
      for _ in pairs(serials) do
        count = count + 1
      end
      assert.equal(1, count)
    end)

    it("pauses one stream of a connection while others go on", function()
      local r = assert(http.request(ask "/big"))
      for _ = 1, 5 do
        assert.equal("hello", (http.call(ask "/hello")))
      end
      assert.is_true((r.transfer:held()) < 600000)
      assert.equal(3000000, #assert(r:read()))
    end)

    it("tells a stream that the server drops", function()
      local _, _, code = http.call(ask "/drop")
      assert.is_true(code == "lost" or code == "protocol", code)
    end)

    it("works inside its workers", function()
      if support.instrumented() then
        return -- nginx cannot load the module then
      end
      local text, message = http.call(ask("/everything", { timeout = 60 }))
      assert.equal("fine", text, tostring(message) .. "\n" .. tostring(support.read(dir .. "/error.log")))
    end)
  end)
end)
