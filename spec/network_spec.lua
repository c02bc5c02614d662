--- A sandbox's network: connections to what listens inside, ports of the host that lead there, and
--- the proxy behind `network = { allow = … }`. The servers are this process's own or python's, on
--- 127.0.0.1; names are looked up by a function of the test's.

local acceptors = require "moonsand.network.acceptor"
local core = require "moonsand.core"
local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local support = require "support.init"

local LOCAL = "127.0.0.1"

local fails = support.fails

local function raises(pattern, fn)
  local ok, err = pcall(fn)
  assert.is_false(ok)
  assert.is_truthy(tostring(err):find(pattern), tostring(err))
  assert.is_truthy(tostring(err):find "network_spec%.lua:%d+: moonsand: ", tostring(err))
end

--- A server in this process: `answer(connection, read)` for each connection.
local function serve(answer)
  local listener = assert(core.listen(loop.reactor(), core.address(LOCAL), 0))
  local server = { port = listener:port(), seen = {}, count = 0 }
  server.acceptor = acceptors.new(listener, 64, function(connection)
    server.count = server.count + 1
    local raw = connection.raw
    answer(function(what, n)
      while true do
        local data, why = raw:take(what, n or 65536)
        if data or why ~= "again" then
          return data
        end
        if loop.wait(connection:limits(20), raw) then
          return nil
        end
      end
    end, function(data)
      local from = 1
      while from <= #data do
        local count, why = raw:write(data, from)
        if count then
          from = from + count
        elseif why ~= "again" or loop.wait(connection:limits(20), raw) then
          return nil
        end
      end
      return true
    end, raw, server)
  end)
  finally(function()
    server.acceptor:close()
  end)
  return server
end

--- Answers a request with what it was.
local function mirror(read, write, _, server)
  local lines, length = {}, 0
  repeat
    local line = read "L"
    lines[#lines + 1] = line
    length = tonumber(line and line:match "^Content%-Length: (%d+)" or length)
  until not line or line == "\r\n"
  local text = table.concat(lines) .. (length > 0 and read("n", length) or "")
  server.seen[#server.seen + 1] = text
  write(("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"):format(#text, text))
end

local function resolve()
  return { LOCAL }
end

--- A sandbox that may reach `ok.test` at these ports.
local function open(ports, more)
  local network = { allow = {}, resolve = resolve }
  for _, port in ipairs(ports) do
    table.insert(network.allow, "ok.test:" .. port)
    table.insert(network.allow, LOCAL .. ":" .. port)
  end
  for key, value in pairs(more or {}) do
    network[key] = value
  end
  return moonsand.assert(moonsand.create { network = network })
end

local function sh(box, command, opts)
  opts = opts or {}
  opts.timeout = opts.timeout or 20
  return moonsand.assert(box:exec(command, opts))
end

local LISTEN = [[
import socket, sys
s = socket.socket(socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("::1" if sys.argv[1] == "6" else "127.0.0.1", int(sys.argv[2])))
s.listen(64)
while True:
    c, _ = s.accept()
    got = b""
    while True:
        data = c.recv(65536)
        if not data: break
        got += data
        if len(sys.argv) > 3: c.sendall(data)
    c.sendall(b"got %d" % len(got))
    c.close()
]]

describe("moonsand.network", function()
  local box

  helper.deadline(60)
  helper.no_leaks(function()
    box:close()
  end)
  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  local function listen(port, family, echo)
    local p = moonsand.assert(box:start({ "/usr/bin/python3", "-c", LISTEN, family or "4", tostring(port),
      echo }))
    assert.is_true(moonsand.assert(box:wait_port(port, 20)))
    return p
  end

  describe(":dial", function()
    it("connects to what listens inside, both directions ending apart", function()
      listen(8000)
      local s = moonsand.assert(box:dial(8000, 10))
      assert.equal(s, s:write "hello")
      s:shutdown()
      assert.equal("got 5", s:read("a", 10))
      assert.is_nil((s:read()))
      s:close()
    end)

    it("moves a lot, byte for byte, with the reader behind the writer", function()
      listen(8000, "4", "echo")
      local s = moonsand.assert(box:dial(8000, 10))
      local sent = core.random(4096):rep(1024)
      local task = moonsand.task(function()
        assert(s:write(sent, 30))
        s:shutdown()
      end)
      local got = assert(s:read("a", { timeout = 30 }))
      task:wait()
      assert.equal(#sent + #("got " .. #sent), #got)
      assert.is_true(got == sent .. "got " .. #sent)
      s:close()
    end)

    it("finds what listens on IPv6 only", function()
      listen(8006, "6")
      local s = moonsand.assert(box:dial(8006, 10))
      s:shutdown()
      assert.equal("got 0", s:read("a", 10))
      s:close()
    end)

    it("says what is wrong", function()
      local _, detail = fails("connection", box:dial(9))
      assert.equal(9, detail.port)
      raises("a port is a number", function() box:dial(0) end)
      raises("a port is a number", function() box:dial "80" end)
      raises("a port is a number", function() box:dial(1.5) end)
      raises("unknown option 'tiemout'", function() box:dial(80, { tiemout = 1 }) end)
      box:close()
      raises("the sandbox was closed", function() box:dial(80) end)
    end)

    it("reaches the sandbox's loopback, not the host's", function()
      local server = serve(function() end)
      fails("connection", box:dial(server.port))
      assert.equal(0, server.count)
    end)

    it("reads what was there before a reset or an end, then says so", function()
      listen(8000)
      local s = moonsand.assert(box:dial(8000, 10))
      assert.is_true(box:can "ports" == "native")
      s:write "x"
      local data, message, code = s:read("a", 0.05)
      assert.is_nil(data)
      assert.equal("timeout", code, message)
      s:shutdown()
      assert.equal("got 1", s:read("a", 10))
      s:close()
      raises("the stream is closed", function() s:read() end)
    end)
  end)

  describe(":wait_port", function()
    it("waits until something listens", function()
      local p = moonsand.assert(box:start({ "/usr/bin/python3", "-c",
        "import sys; sys.stdin.readline()\n" .. LISTEN, "4", "8000" }))
      local began = core.now()
      fails("timeout", box:wait_port(8000, 0.05))
      assert.is_true(core.now() - began >= 0.05)
      p.stdin:write "\n"
      assert.is_true(moonsand.assert(box:wait_port(8000, 20)))
    end)

    it("ends with a token, and with the sandbox", function()
      local token = moonsand.token()
      moonsand.run(function()
        local task = moonsand.task(function()
          return { box:wait_port(8000, { cancel = token }) }
        end)
        moonsand.sleep(0.02)
        token:cancel "enough"
        assert.equal("cancelled", task:wait()[3])
        task = moonsand.task(function()
          return { box:wait_port(8000) }
        end)
        moonsand.sleep(0.02)
        box:close()
        assert.equal("closed", task:wait()[3])
      end)
    end)
  end)

  describe(":forward", function()
    --- Talks to a port of the host from a process of its own.
    local function fetch(port, text)
      local raw = assert(core.connect(loop.reactor(), core.address(LOCAL), port))
      local s = require("moonsand.stream").new(raw, "client")
      if not s:write(text, 10) then
        return nil
      end
      s:shutdown()
      local all = s:read("a", { timeout = 20 })
      s:close()
      return all
    end

    it("listens on the host's loopback and dials inside", function()
      listen(8000)
      local forward = moonsand.assert(box:forward(8000))
      assert.equal(LOCAL, forward.host)
      assert.is_truthy(tostring(forward):find "to port 8000")
      assert.equal("got 3", fetch(forward.port, "abc"))
      moonsand.run(function()
        local list = {}
        for i = 1, 100 do list[i] = i end
        for i, got in ipairs(moonsand.assert(moonsand.all(list, function(n)
          return fetch(forward.port, ("x"):rep(n * 100))
        end, { limit = 30 }))) do
          assert.equal("got " .. i * 100, got)
        end
      end)
      forward:close()
      forward:close()
      assert.is_nil((fetch(forward.port, "abc")))
    end)

    it("listens where it is told, and says when that is taken", function()
      listen(8000)
      local first = moonsand.assert(box:forward(8000, { listen = LOCAL .. ":0" }))
      fails("busy", box:forward(8000, { listen = first.port }))
      fails("invalid", box:forward(8000, { listen = "example.org:80" }))
      fails("invalid", box:forward(8000, { listen = 70000 }))
      raises("unknown option", function() box:forward(8000, { port = 1 }) end)
      first:close()
      local second = moonsand.assert(box:forward(8000, { listen = first.port }))
      assert.equal(first.port, second.port)
      second:close()
    end)

    it("closes a connection when nothing listens inside", function()
      local forward = moonsand.assert(box:forward(8000))
      assert.is_true((fetch(forward.port, "abc") or "") == "")
      forward:close()
    end)

    it("ends with the sandbox, and when nobody holds it", function()
      listen(8000)
      local forward = moonsand.assert(box:forward(8000))
      local port = forward.port
      forward = nil -- luacheck: ignore
      helper.settle()
      assert.is_nil((fetch(port, "abc")))
      forward = moonsand.assert(box:forward(8000))
      box:close()
      assert.is_nil((fetch(forward.port, "abc")))
    end)

    it("keeps the sandbox alive that it leads to", function()
      listen(8000)
      local forward = moonsand.assert(box:forward(8000))
      box = moonsand.assert(moonsand.create())
      helper.settle()
      assert.equal("got 1", fetch(forward.port, "x"))
      forward:close()
    end)

    it("is behind :url, one for each port", function()
      listen(8000)
      local url = moonsand.assert(box:url(8000))
      assert.equal(url, box:url(8000))
      assert.equal("got 2", fetch(tonumber(url:match "^http://127%.0%.0%.1:(%d+)$"), "ab"))
    end)
  end)

  describe("without rules", function()
    it("has no proxy, no variables, an empty log", function()
      assert.equal("", sh(box, "env | grep -i proxy").stdout)
      assert.same({ dropped = 0 }, box:network_log())
      fails("connection", box:dial(3128))
      local off = moonsand.assert(moonsand.create { network = false })
      fails("connection", off:dial(3128))
      off:close()
    end)
  end)

  describe("with rules", function()
    it("lets the usual tools through, by HTTP, CONNECT and SOCKS 5", function()
      local server = serve(mirror)
      local inside = open { server.port }
      assert.equal("native", inside:can "network_allow")
      local url = ("http://ok.test:%d/a?b=c"):format(server.port)
      local commands = {
        "curl -sS " .. url, "curl -sSp " .. url, "wget -qO- " .. url,
        "curl -sS -x socks5h://127.0.0.1:3128 " .. url,
        ("/usr/bin/python3 -c 'import urllib.request as u; print(u.urlopen(%q).read().decode())'"):format(url),
      }
      for i, command in ipairs(commands) do
        local r = sh(inside, command)
        assert.is_true(r.ok, command .. ": " .. r.stderr)
        assert.is_truthy(r.stdout:find("GET /a?b=c HTTP/1.1", 1, true), command .. ": " .. r.stdout)
        assert.is_truthy(r.stdout:find("Host: ok.test:" .. server.port, 1, true), command)
        assert.equal(i, server.count)
      end
      local log = inside:network_log()
      assert.equal(#commands, #log)
      -- a program may have ended before its connection has
      support.eventually(20, "an attempt goes on", function()
        loop.step(0)
        log = inside:network_log()
        for _, entry in ipairs(log) do
          if not entry.received then
            return nil, entry.protocol
          end
        end
        return true
      end)
      local protocols = {}
      for i, entry in ipairs(log) do
        assert.equal("allowed", entry.decision)
        assert.equal("ok.test", entry.host)
        assert.equal(server.port, entry.port)
        assert.equal(LOCAL, entry.address)
        assert.is_true(entry.received > 0 and entry.duration >= 0 and os.time() - entry.at < 60)
        protocols[i] = entry.protocol
      end
      assert.same({ "http", "connect", "http", "socks5", "http" }, protocols)
      inside:close()
    end)

    it("carries TLS that ends inside", function()
      local dir = support.directory()
      support.run(("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ok.test "
        .. "-addext subjectAltName=DNS:ok.test -keyout %s/key.pem -out %s/cert.pem"):format(dir, dir))
      local host = moonsand.assert(moonsand.create())
      host.files:upload(dir .. "/key.pem", "key.pem")
      host.files:upload(dir .. "/cert.pem", "cert.pem")
      host:start { "/usr/bin/python3", "-c", [[
import http.server, ssl
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"over TLS")
s = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), H)
c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain("cert.pem", "key.pem")
s.socket = c.wrap_socket(s.socket, server_side=True); s.serve_forever()]] }
      moonsand.assert(host:wait_port(8443, 20))
      local forward = moonsand.assert(host:forward(8443))
      local inside = open { forward.port }
      inside.files:upload(dir .. "/cert.pem", "cert.pem")
      local r = sh(inside, ("curl -sS --cacert cert.pem https://ok.test:%d/"):format(forward.port))
      assert.equal("over TLS", r.stdout, r.stderr)
      assert.equal("connect", inside:network_log()[1].protocol)
      inside:close()
      forward:close()
      host:close()
    end)

    it("posts bodies, by length and in chunks", function()
      local server = serve(function(read, write, _, server)
        local lines = {}
        repeat
          lines[#lines + 1] = read "L"
        until lines[#lines] == "\r\n"
        local head = table.concat(lines)
        local length, body = tonumber(head:match "Content%-Length: (%d+)"), {}
        if length then
          body[1] = read("n", length)
        else
          repeat
            local size = tonumber(read("l"):match "^%x+", 16)
            body[#body + 1] = size > 0 and read("n", size) or nil
            read "l"
          until size == 0
        end
        server.body = table.concat(body)
        write("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" .. #server.body)
      end)
      local inside = open { server.port }
      local body = core.random(4096):rep(300)
      inside.files:write("body", body)
      for _, options in ipairs { "", "-H 'Transfer-Encoding: chunked'", "-H Expect:" } do
        local r = sh(inside, ("curl -sS --data-binary @body %s http://ok.test:%d/"):format(options,
          server.port))
        assert.equal(tostring(#body), r.stdout, options .. r.stderr)
        assert.is_true(server.body == body)
      end
      inside:close()
    end)

    it("streams a lot both ways without holding it", function()
      local total = 64 * 1024 * 1024
      local server = serve(function(read, write)
        repeat until read "L" == "\r\n"
        write "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        local piece = ("0123456789abcdef"):rep(4096)
        for _ = 1, total / #piece do
          if not write(piece) then return end
        end
      end)
      local inside = open { server.port }
      helper.settle()
      local before = support.rss(core.getpid())
      local url = ("http://ok.test:%d/"):format(server.port)
      local r = sh(inside, "curl -sS --limit-rate 200M " .. url .. " | wc -c", { timeout = 50 })
      assert.equal(tostring(total), r.stdout:match "%d+", r.stderr)
      if not support.instrumented() then
        assert.is_true(support.rss(core.getpid()) - before < 24 * 1024 * 1024)
      end
      inside:close()
    end)

    it("passes an end on and lets the other direction live", function()
      local server = serve(function(read, write)
        local all = read("a", 1024 * 1024)
        write("you said " .. all)
      end)
      local inside = open { server.port }
      local s = moonsand.assert(inside:dial(3128))
      s:write(("CONNECT ok.test:%d HTTP/1.1\r\n\r\nearly "):format(server.port))
      s:write "late"
      s:shutdown()
      local text = s:read("a", 20)
      assert.equal("HTTP/1.1 200 Connection established\r\n\r\nyou said early late", text)
      s:close()
      inside:close()
    end)

    it("resolves by the machine where it is not told how, and never blocks meanwhile", function()
      local server = serve(mirror)
      local inside = moonsand.assert(moonsand.create {
        network = { allow = { "localhost:" .. server.port, "host.internal:" .. server.port } },
      })
      local r = sh(inside, ("curl -sS http://host.internal:%d/"):format(server.port))
      assert.is_truthy(r.stdout:find "GET / HTTP", r.stdout .. r.stderr)
      -- Numeric names go to nobody's server: the thread itself is tried.
      local lookup = assert(core.lookup(loop.reactor(), LOCAL))
      local list, again
      repeat
        list, again = lookup:answer()
        if again then
          loop.wait(loop.limits { timeout = 10 }, lookup)
        end
      until list or not again
      assert.same({ core.address(LOCAL) }, list)
      assert.is_false(lookup:running())
      lookup:close()
      assert.same({ nil, false, "closed" }, { lookup:answer() })
      -- One that is given up is known until its thread has ended.
      lookup = assert(core.lookup(loop.reactor(), LOCAL))
      lookup:close()
      support.eventually(10, "the thread runs", function()
        return not lookup:running()
      end)
      lookup:close()
      inside:close()
    end)

    it("lets a program on its own loopback alone", function()
      local inside = open { 1 }
      inside:start { "/usr/bin/python3", "-m", "http.server", "8000", "--bind", LOCAL }
      moonsand.assert(inside:wait_port(8000, 20))
      for _, host in ipairs { "localhost", LOCAL } do
        local r = sh(inside, ("curl -sS -o /dev/null -w '%%{http_code}' http://%s:8000/"):format(host))
        assert.equal("200", r.stdout, r.stderr)
      end
      assert.equal(0, #inside:network_log())
      inside:close()
    end)

    it("tells programs by the usual variables, which a caller may change", function()
      local inside = open { 1 }
      for _, name in ipairs { "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy",
        "ALL_PROXY" } do
        assert.equal("http://127.0.0.1:3128", inside:getenv(name))
        assert.equal("http://127.0.0.1:3128\n", sh(inside, "echo $" .. name).stdout)
      end
      assert.equal("localhost,127.0.0.1,::1", inside:getenv "no_proxy")
      assert.equal("\n", sh(inside, "echo $http_proxy", { env = { http_proxy = false } }).stdout)
      inside:close()
    end)

    it("serves many at once", function()
      local server = serve(mirror)
      local inside = open { server.port }
      local r = sh(inside, ([[for i in $(seq 60); do
        curl -sS -o /dev/null -w '%%{http_code}\n' http://ok.test:%d/$i & done; wait]]):format(server.port),
        { timeout = 50 })
      assert.equal(("200\n"):rep(60), r.stdout, r.stderr)
      assert.equal(60, #inside:network_log())
      inside:close()
    end)

    it("says what it cannot reach", function()
      local server = serve(mirror)
      server.acceptor:close()
      local inside = open({ server.port }, { resolve = function(name)
        if name == "ok.test" then
          return { LOCAL }
        end
        return nil, "no such name"
      end, allow = { "ok.test:" .. server.port, LOCAL, "gone.test" } })
      local log
      assert.is_truthy(sh(inside, ("curl -sS http://ok.test:%d/"):format(server.port)).stdout
        :find "not written out")
      assert.is_truthy(sh(inside, "curl -sS http://gone.test/").stdout:find "no such name")
      log = inside:network_log()
      assert.equal("denied", log[1].decision)
      assert.equal("failed", log[2].decision)
      inside:close()
      inside = open { server.port }
      assert.is_truthy(sh(inside, ("curl -sS http://ok.test:%d/"):format(server.port)).stdout
        :find "Connection refused")
      assert.equal("failed", inside:network_log()[1].decision)
      inside:close()
    end)

    it("keeps the last 1000 attempts", function()
      local inside = open { 1 }
      local raw = moonsand.assert(inside:dial(3128))
      raw:close()
      local log = inside.core.driver.proxy.log
      for i = 1, 1500 do
        log.last = log.last + 1
        log[log.last] = { n = i }
        log[log.last - 1000] = nil
      end
      local list = inside:network_log()
      assert.equal(1000, #list)
      assert.equal(1500, list[1000].n)
      assert.equal(log.last - 1000, list.dropped)
      inside:close()
    end)

    it("ends with the sandbox, in the middle of things", function()
      local server = serve(function(read)
        read("a", 1024)
      end)
      local inside = open { server.port }
      local s = moonsand.assert(inside:dial(3128))
      s:write(("CONNECT ok.test:%d HTTP/1.1\r\n\r\n"):format(server.port))
      assert.equal("HTTP/1.1 200 Connection established", (s:read("l", 10)):sub(1, -2))
      local other = moonsand.assert(inside:dial(3128))
      inside:close()
      assert.is_truthy((s:read("a", 10) or "reset"))
      s:close()
      other:close()
    end)

    it("is collected with a sandbox that nobody holds", function()
      local weak = setmetatable({ open({ 1 }) }, { __mode = "v" })
      support.eventually(10, "the sandbox is still there", function()
        helper.settle()
        return weak[1] == nil
      end)
    end)
  end)

  describe("the option", function()
    local function invalid(network, pattern)
      local message = fails("invalid", moonsand.create { network = network })
      assert.is_truthy(message:find(pattern), message)
    end

    it("refuses rules that cannot be right", function()
      for _, rule in ipairs { "", "http://example.org", "exam ple.org", "*.*.org", "a*.org", "example.org:",
        "example.org:0", "example.org:65536", "example.org:+80", "10.0.0.1/8", "10.0.0.0/33", "1.2.3",
        "0x7f.1", "m\195\188nchen.de", "-a.org", "a..org", "[::1", "::1/129", "*.", "a:b:c",
        "example.org:80:80", "user@example.org" } do
        invalid({ allow = { rule } }, "network%.allow: ")
        invalid({ deny = { rule } }, "network%.deny: ")
      end
      invalid({ allow = { "@pyton" } }, "did you mean '@python'")
      invalid({ allow = { "m\195\188nchen.de" } }, "xn%-%-")
      invalid("open", "network: 'open'")
    end)

    it("raises for what is no rule at all", function()
      raises("rule 1 must be a string", function() moonsand.create { network = { allow = { 80 } } } end)
      raises("is a list of rules", function()
        moonsand.create { network = { allow = { ["example.org"] = true } } }
      end)
      raises("unknown option 'alow'", function() moonsand.create { network = { alow = {} } } end)
      raises("must be a table", function() moonsand.create { network = { allow = "example.org" } } end)
    end)

    it("knows the groups", function()
      for _, group in ipairs { "@python", "@npm", "@ruby", "@rust", "@go", "@java", "@php", "@lua",
        "@debian" } do
        local inside = moonsand.assert(moonsand.create { network = { allow = { group } } })
        inside:close()
      end
    end)
  end)
end)
