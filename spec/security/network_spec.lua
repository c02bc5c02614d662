--- Ways around the rules of `network = { allow = … }`, each as others' proxies were got around. The
--- attacker speaks from inside (`dial` to the proxy's port is a connection within the sandbox); the
--- oracle is a server outside, which notes every byte that reaches it.

local acceptors = require "moonsand.network.acceptor"
local address = require "moonsand.network.address"
local core = require "moonsand.core"
local helper = require "helper"
local http = require "moonsand.network.http"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local proxies = require "moonsand.network.proxy"
local resolver = require "moonsand.network.resolver"
local rules = require "moonsand.network.rules"
local support = require "support.init"
local tasks = require "moonsand.task"

local LOCAL = "127.0.0.1"

describe("the host's network", function()
  local native = support.native()

  helper.deadline(30)
  helper.no_leaks()

  it("is there by its word only, without the host's abstract sockets", function()
    local name = "moonsand-net-" .. native.getpid()
    local abstract = assert(native.listen_abstract(name))
    local tcp, port = native.listen_tcp()
    finally(function()
      native.close(abstract)
      native.close(tcp)
    end)
    local box = moonsand.assert(moonsand.create { network = "host" })
    assert.equal("host", box:info().network)
    local r = moonsand.assert(box:exec({ "/usr/bin/python3", "-c", [[
import socket, sys
def to(name, family, address):
    s = socket.socket(family)
    try: s.connect(address); print(name, "open")
    except OSError as e: print(name, e.strerror)
to("abstract", socket.AF_UNIX, "\0" + sys.argv[1])
to("loopback", socket.AF_INET, ("127.0.0.1", int(sys.argv[2])))
own = socket.socket(socket.AF_UNIX); own.bind("\0own" + sys.argv[1]); own.listen(1)
to("own", socket.AF_UNIX, "\0own" + sys.argv[1])
try: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print("raw open")
except OSError as e: print("raw", e.strerror)
]], name, tostring(port) }))
    assert.equal("abstract Operation not permitted\nloopback open\n"
      .. "own open\nraw Operation not permitted\n", r.stdout, r.stderr)
    assert.is_false(native.connected(abstract))
    assert.is_true(native.connected(tcp))
    box:close()
  end)

  it("comes to no sandbox that did not ask for it", function()
    local open = moonsand.assert(moonsand.create { network = "host" })
    for _, network in ipairs { false, { allow = {} } } do
      local box = moonsand.assert(moonsand.create { network = network })
      assert.equal(network and "rules" or "none", box:info().network)
      assert.equal("lo\n", moonsand.assert(box:exec "sed -n 's/^ *\\([^ ]*\\):.*/\\1/p' /proc/net/dev").stdout)
      box:close()
    end
    assert.equal("invalid", (select(3, moonsand.create { network = "Host" })))
    open:close()
  end)

  it("is unavailable where the kernel cannot keep those sockets out", function()
    local found = require("moonsand.doctor").explain("abstract sockets", core.errno.ENOSYS)
    assert.is_truthy(found.cause:find "abstract unix sockets")
    assert.is_truthy(found.fix:find "6.12")
  end)
end)

describe("the proxy", function()
  local box, server, looked_up, answers

  --- Notes what comes, up to the end or an empty line and what follows within a moment; answers.
  local function listen()
    local listener = assert(core.listen(loop.reactor(), core.address(LOCAL), 0))
    server = { port = listener:port(), got = {}, count = 0 }
    server.acceptor = acceptors.new(listener, 512, function(connection)
      server.count = server.count + 1
      local n, raw = server.count, connection.raw
      server.got[n] = ""
      while true do
        local data, why = raw:take("chunk", 0)
        if data then
          server.got[n] = server.got[n] .. data
          if server.got[n]:find "\r\n\r\n" and not server.silent then
            raw:write "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
          end
        elseif why ~= "again" or loop.wait(connection:limits(0.3), raw) then
          return
        end
      end
    end)
  end

  local function create(network)
    network.resolve = function(name)
      looked_up[#looked_up + 1] = name
      return answers[name] or answers["*"]
    end
    box = moonsand.assert(moonsand.create { network = network })
  end

  helper.deadline(60)
  helper.no_leaks(function()
    box:close()
    server.acceptor:close()
  end)
  before_each(function()
    looked_up, answers = {}, { ["*"] = { LOCAL } }
    listen()
    create { allow = { "ok.test:" .. server.port, "*.sub.test:" .. server.port, LOCAL .. ":" .. server.port },
      deny = { "bad.sub.test" } }
  end)

  --- Says something to the proxy: all that it answers.
  local function say(...)
    local s = moonsand.assert(box:dial(proxies.PORT, 10))
    for _, piece in ipairs { ... } do
      if not s:write(piece, 10) then
        break
      end
    end
    local got = {}
    repeat
      local data = s:chunk(20)
      got[#got + 1] = data
    until not data
    s:close()
    return table.concat(got)
  end

  local function last()
    local log = box:network_log()
    return log[#log] or {}
  end

  local function refused(request, status)
    local before = server.count
    local answer = say(request)
    assert.equal(status, answer:match "^HTTP/1.1 (%d+)", ("%q: %q"):format(request:sub(1, 200), answer))
    assert.equal(before, server.count, request)
    assert.is_true(last().decision == "denied" or last().decision == "failed", request)
    assert.is_truthy(last().reason)
    return answer
  end

  local function connect(target)
    return ("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n"):format(target, target)
  end

  --- A SOCKS 5 request for a name: the reply's code.
  local function socks(name, port, kind)
    local head = kind and "\5\1\0" .. kind or "\5\1\0\3" .. string.char(#name)
    local answer = say("\5\1\0", head .. name .. string.char(math.floor(port / 256), port % 256),
      "GET / HTTP/1.1\r\n\r\n")
    return answer:byte(4), answer
  end

  it("is the only way out", function()
    local r = moonsand.assert(box:exec(([[
      curl -sS --noproxy '*' -m 3 http://127.0.0.1:%d/; curl -sS --noproxy '*' -m 3 http://192.0.2.1/
      env -u http_proxy -u HTTP_PROXY -u all_proxy -u ALL_PROXY curl -sS -m 3 http://ok.test:%d/
      getent hosts ok.test]]):format(server.port, server.port), { timeout = 20 }))
    assert.equal("", r.stdout)
    assert.equal(0, server.count)
    assert.same({}, looked_up)
  end)

  it("asks the rules for names, whatever their spelling", function()
    local port = server.port
    for _, name in ipairs { "ok.test", "OK.Test", "ok.test.", "a.sub.test", "A.b.SUB.test" } do
      assert.is_truthy(say("GET http://" .. name .. ":" .. port .. "/ HTTP/1.1\r\n\r\n"):find "200 OK", name)
      assert.is_truthy(say(connect(name .. ":" .. port) .. "x\r\n\r\n"):find "^HTTP/1.1 200", name)
      assert.equal(0, (socks(name, port)), name)
    end
    local before, looks = server.count, #looked_up
    for _, name in ipairs { "sub.test", "xsub.test", "bad.sub.test", "BAD.sub.test.", "ok.test.evil.test",
      "evil-ok.test", "evil.test", "test", "okk.test", "xn--k-5ea.test" } do
      refused("GET http://" .. name .. ":" .. port .. "/ HTTP/1.1\r\n\r\n", "403")
      refused(connect(name .. ":" .. port), "403")
      assert.equal(2, (socks(name, port)), name)
      assert.equal("denied", last().decision)
    end
    assert.equal(before, server.count)
    assert.equal(looks, #looked_up, "a name was looked up that is not allowed: a tunnel through DNS")
  end)

  it("takes nothing for a host that is none", function()
    local port = server.port
    for _, host in ipairs { "ok.test\0.evil.test", "evil.test\0.ok.test", "ok.test%00.evil.test", "ok..test",
      ".ok.test", "ok.test..", "-ok.test", ("a"):rep(64) .. ".test", ("a."):rep(140) .. "test",
      "ok.test@evil.test", "evil.test#ok.test", "evil.test?ok.test", "ok test", "ok.test\\evil.test",
      "\239\188\179.test", "b\195\188cher.test", "[ok.test]", "ok.test/", "*", "*.sub.test" } do
      assert.is_falsy(say(connect(host .. ":" .. port)):find "^HTTP/1.1 200", host)
      if #host < 256 then
        assert.is_true(socks(host, port) ~= 0, host)
      end
      local answer = say(("GET http://%s:%d/ HTTP/1.1\r\n\r\n"):format(host, port))
      assert.is_falsy(answer:find "^HTTP/1.1 200", host)
    end
    assert.equal(0, server.count)
    assert.same({}, looked_up)
  end)

  it("knows addresses in one spelling only", function()
    local port = server.port
    assert.is_truthy(say(connect(LOCAL .. ":" .. port) .. "x\r\n\r\n"):find "^HTTP/1.1 200")
    local before = server.count
    for _, host in ipairs { "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.1.",
      "127.0.0.01", "0", "127.0.0.1.1", "[127.0.0.1]", "::1", "[::1%lo]", "[::1%25lo]", "[fe80::1%1]",
      "[::ffff:7f00:1]x", "1.2.3.0x7f" } do
      refused(connect(host .. ":" .. port), "400")
      assert.is_true(socks(host, port) ~= 0, host)
    end
    assert.equal(before, server.count)
    -- The mapped form is the IPv4 address, for rules as for the kernel.
    assert.is_truthy(say(connect("[::ffff:127.0.0.1]:" .. port) .. "x\r\n\r\n"):find "^HTTP/1.1 200")
    refused(connect("[::ffff:10.0.0.1]:" .. port), "403")
  end)

  it("holds to the port", function()
    for _, port in ipairs { "80", "443", "22", tostring(server.port + 1), tostring(server.port - 1) } do
      refused(connect("ok.test:" .. port), "403")
    end
    refused(connect("[2001:db8::1]" .. server.port), "400")
    refused(connect("ok.test:" .. server.port .. ":" .. server.port), "400")
    for _, port in ipairs { "0", "65536", "-1", "+80", "080", "8e1", "80 ", "", "99999999999999999999",
      tostring(server.port) .. "x", tostring(server.port + 65536) } do
      refused(connect("ok.test:" .. port), "400")
    end
    refused(connect "ok.test", "400")
  end)

  it("refuses addresses that are nobody's on the Internet, unless written out", function()
    for _, text in ipairs { "127.0.0.2", "127.255.255.255", "10.0.0.1", "172.16.0.1", "172.31.255.255",
      "192.168.1.1", "169.254.169.254", "169.254.1.1", "100.100.100.200", "100.64.0.1", "0.0.0.0", "0.1.2.3",
      "224.0.0.1", "239.255.255.250", "255.255.255.255", "240.0.0.1", "192.0.0.192", "198.18.0.1",
      "168.63.129.16", "192.0.2.1", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
      "::ffff:127.0.0.2", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
      "64:ff9b:1::1", "2002:7f00:1::1", "2001::1", "2001:db8::1", "100::1", "fec0::1" } do
      answers["ok.test"] = { text }
      refused("GET http://ok.test:" .. server.port .. "/ HTTP/1.1\r\n\r\n", "403")
      assert.is_truthy(last().reason:find "not written out", text .. ": " .. last().reason)
      assert.is_truthy(address.special(address.plain(core.address(text))), text)
    end
    for _, text in ipairs { "1.1.1.1", "8.8.8.8", "172.32.0.1", "172.15.255.255", "100.128.0.1", "11.0.0.1",
      "2606:4700::1111", "2a00::1" } do
      assert.is_nil(address.special(core.address(text)), text)
    end
  end)

  it("refuses this machine's own addresses", function()
    for _, bytes in ipairs(assert(core.own_addresses())) do
      assert.is_truthy(address.special(bytes), address.text(bytes))
    end
    local before = core.own_addresses
    core.own_addresses = function() return { core.address "8.8.4.4" } end
    local why = address.special(core.address "8.8.4.4")
    core.own_addresses = before
    assert.equal("this machine's own", why)
  end)

  it("refuses what may be its own, when nobody can tell", function()
    local before = core.own_addresses
    finally(function() core.own_addresses = before end)
    core.own_addresses = function() return nil, core.errno.EMFILE end
    answers["ok.test"] = { "8.8.8.8" }
    refused("GET http://ok.test:" .. server.port .. "/ HTTP/1.1\r\n\r\n", "403")
    assert.is_truthy(last().reason:find "perhaps this machine's own", last().reason)
  end)

  it("does not let `true` reach what is not public", function()
    box:close()
    box = moonsand.assert(moonsand.create { network = true })
    for _, target in ipairs { "127.0.0.1:80", "[::1]:443", "169.254.169.254:80", "10.0.0.1:443",
      "localhost:80", "host.internal:80", "a.localhost:80" } do
      local answer = say(connect(target))
      assert.is_truthy(answer:find "^HTTP/1.1 [45]", target .. answer)
      assert.is_true(last().decision ~= "allowed", target)
    end
    refused(connect "1.1.1.1:25", "403")
  end)

  it("denies an address by a rule even when its name is allowed", function()
    box:close()
    create { allow = { "ok.test:*", "127.0.0.0/8:*" }, deny = { "127.0.0.1/32" } }
    refused(connect("ok.test:" .. server.port), "403")
    assert.equal("denied by a rule", last().reason)
    refused(connect("127.0.0.1:" .. server.port), "403")
  end)

  it("takes an empty list for nothing allowed", function()
    for _, network in ipairs { {}, { allow = {} }, { deny = {} }, { deny = { "evil.test" } } } do
      box:close()
      create(network)
      refused(connect "ok.test:443", "403")
      refused("GET http://ok.test/ HTTP/1.1\r\n\r\n", "403")
      assert.equal(2, (socks("ok.test", 443)))
    end
    assert.same({}, looked_up)
  end)

  it("dials the address that was checked, looked up once", function()
    local asked = 0
    box:close()
    create { allow = { "re.test:" .. server.port, LOCAL .. ":" .. server.port } }
    box.core.driver.proxy.rules.resolve = function()
      asked = asked + 1
      return { asked == 1 and LOCAL or "10.0.0.1" }
    end
    assert.is_truthy(say(connect("re.test:" .. server.port) .. "x\r\n\r\n"):find "^HTTP/1.1 200")
    assert.equal(1, asked)
    assert.equal(LOCAL, last().address)
    refused(connect("re.test:" .. server.port), "403") -- asked again, it is private
    assert.equal(2, asked)
  end)

  it("dials the allowed one of two answers, never the other", function()
    answers["ok.test"] = { "10.0.0.1", "169.254.169.254", LOCAL }
    assert.is_truthy(say(connect("ok.test:" .. server.port) .. "x\r\n\r\n"):find "^HTTP/1.1 200")
    assert.equal(LOCAL, last().address)
  end)

  it("sends the host that was checked, not the one that is claimed", function()
    for _, header in ipairs { "Host: evil.test", "hOST:evil.test", "Host:" } do
      say(("GET http://ok.test:%d/ HTTP/1.1\r\n%s\r\n\r\n"):format(server.port, header))
      local got = server.got[server.count]
      assert.is_falsy(got:find "evil", got)
      assert.equal(1, select(2, got:lower():gsub("host:", "")), got)
      assert.is_truthy(got:find("Host: ok.test:" .. server.port, 1, true))
    end
    refused(("GET http://ok.test:%d/ HTTP/1.1\r\nHost: ok.test\r\nHost: evil.test\r\n\r\n"):format(server.port),
      "400")
    refused(("GET http://evil.test:%d/ HTTP/1.1\r\nHost: ok.test:%d\r\n\r\n"):format(server.port, server.port),
      "403")
    refused("GET / HTTP/1.1\r\nHost: ok.test:" .. server.port .. "\r\n\r\n", "400")
  end)

  it("refuses requests that two readers understand differently", function()
    local line = ("POST http://ok.test:%d/ HTTP/1.1\r\n"):format(server.port)
    for _, fields in ipairs {
      "Content-Length: 3\r\nContent-Length: 4\r\n", "Content-Length: 3\r\nContent-Length: 3\r\n",
      "Content-Length: 3, 4\r\n", "Content-Length: +3\r\n", "Content-Length: 0x3\r\n", "Content-Length: -1\r\n",
      "Content-Length: \r\n", "Content-Length: 3 4\r\n", "Content-Length: 99999999999999999999\r\n",
      "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
      "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "Content-Length : 3\r\n",
      " Content-Length: 3\r\n", "A: b\r\n c: d\r\n", "A: b\r\n\tc\r\n", "A: b\rC: d\r\n", "A: b\nC: d\r\n",
      "A: b\0c\r\n", "A b\r\n", ": b\r\n", "A\0: b\r\n", "A: b\1\r\n", "Connection: Content-Length\r\n",
      "Connection: close, Host\r\n", "Connection: transfer-encoding\r\n",
    } do
      refused(line .. fields .. "\r\n", "400")
    end
    for _, fields in ipairs { "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: xchunked\r\n",
      "Transfer-Encoding: \11chunked\r\n", "Transfer-Encoding: chunked, chunked\r\n",
      "Transfer-Encoding: identity\r\n" } do
      local answer = say(line .. fields .. "\r\n")
      assert.is_truthy(answer:find "^HTTP/1.1 [45]", fields)
    end
    refused(line:gsub("1%.1", "1.0") .. "Transfer-Encoding: chunked\r\n\r\n", "501")
    for _, request in ipairs { "GET http://ok.test/ HTTP/1.1\n\n", "GET  http://ok.test/ HTTP/1.1\r\n\r\n",
      "GET http://ok.test/ HTTP/1.1 \r\n\r\n", "GET\thttp://ok.test/ HTTP/1.1\r\n\r\n", "\r\n\r\n",
      "GET http://ok.test/\r\n\r\n", "GET http://ok.test/ HTTP/2.0\r\n\r\n", "GET http://ok.test/ HTTP/1.10\r\n\r\n",
      "GET http://ok.test/a b HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n", "GET https://ok.test/ HTTP/1.1\r\n\r\n",
      "GET ftp://ok.test/ HTTP/1.1\r\n\r\n", "GET file:///etc/passwd HTTP/1.1\r\n\r\n",
      "GET http://u:p@ok.test/ HTTP/1.1\r\n\r\n", "GET http:///x HTTP/1.1\r\n\r\n", "\4\1\0\80\127\0\0\1\0",
      "GET http://ok.test\r\n\r\n", ("A"):rep(33) .. " http://ok.test/ HTTP/1.1\r\n\r\n" } do
      local answer = say(request, "\r\n\r\n")
      assert.is_truthy(answer:find "^HTTP/1.1 400", ("%q: %q"):format(request, answer))
    end
    assert.equal(0, server.count)
  end)

  it("passes on one request and not a byte more", function()
    local smuggled = "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"
    local url = ("http://ok.test:%d/"):format(server.port)
    local requests = {
      { "GET " .. url .. " HTTP/1.1\r\n\r\n", "" },
      { "GET " .. url .. " HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", "" },
      { "POST " .. url .. " HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "hello" },
      { "GET " .. url .. " HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "" },
      { "POST " .. url .. " HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n" },
      { "GET " .. url .. " HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        .. "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "" },
    }
    for i, row in ipairs(requests) do
      say(row[1] .. smuggled) -- in one piece with the head
      say(row[1], smuggled) -- and behind it
      for n = 2 * i - 1, 2 * i do
        local got = server.got[n]
        assert.is_falsy(got:find "evil", got)
        assert.is_falsy(got:lower():find "upgrade", got)
        assert.is_falsy(got:lower():find "http2", got)
        assert.equal(row[2], got:match "\r\n\r\n(.*)$", got)
        assert.equal(1, select(2, got:gsub("Connection: close", "")))
      end
    end
    assert.equal(2 * #requests, server.count)
  end)

  it("ends a body in chunks that is not one", function()
    local head = ("POST http://ok.test:%d/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"):format(server.port)
    server.silent = true
    for _, body in ipairs { "5;evil\r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "5\r\nhelloo\r\n0\r\n\r\n",
      " 5\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "-1\r\n", "\r\n", "g\r\n", "fffffffffffffffff\r\n",
      "5\r\nhello0\r\n\r\n", "0\r\nX: y\r\n\r\n", "0\r\n\n", "5\r\n\r\n" } do
      local before = server.count
      assert.equal("", say(head .. body .. "EVIL"), body)
      assert.equal("Bad message", last().ended, body)
      support.eventually(20, "the server saw no head", function()
        loop.step(0)
        return server.count == before + 1 and server.got[server.count] ~= ""
      end)
      assert.is_falsy(server.got[server.count]:find "EVIL", body)
    end
  end)

  it("follows no redirect, and asks anew for each", function()
    local r = moonsand.assert(box:exec(([[curl -sS -L -o /dev/null -w '%%{http_code}' http://evil.test:%d/]])
      :format(server.port), { timeout = 10 }))
    assert.equal("403", r.stdout)
    assert.equal(0, server.count)
  end)

  it("reads SOCKS strictly", function()
    local port = string.char(math.floor(server.port / 256), server.port % 256)
    assert.equal(0, (socks("\127\0\0\1", server.port, "\1")))
    assert.equal(0, (socks(LOCAL, server.port)))
    assert.equal(0, (socks(core.address "::ffff:127.0.0.1", server.port, "\4")))
    local before = server.count
    assert.equal(2, (socks("\10\0\0\1", server.port, "\1")))
    assert.equal(2, (socks(core.address "::1", server.port, "\4")))
    assert.equal(2, (socks("\127\0\0\1", server.port + 1, "\1")))
    assert.equal(2, (socks("ok.test", 0)))
    for _, name in ipairs { "ok.test\0", "\0ok.test", "ok.test\0.evil.test", "evil.test\0ok.test", "", " ok.test",
      "ok.test\n", "ok.test:80" } do
      assert.is_true(socks(name, server.port) ~= 0, name)
    end
    assert.equal("\5\0\5\7", say("\5\1\0", "\5\2\0\3\7ok.test" .. port):sub(1, 4)) -- BIND
    assert.equal("\5\0\5\7", say("\5\1\0", "\5\3\0\3\7ok.test" .. port):sub(1, 4)) -- UDP
    assert.equal("\5\0\5\8", say("\5\1\0", "\5\1\0\2\7ok.test" .. port):sub(1, 4)) -- a kind of address
    assert.equal("\5\255", say "\5\1\2") -- a password only
    assert.equal("\5\0", say("\5\1\0", "\4\1\0\3\7ok.test" .. port))
    assert.equal(before, server.count)
  end)

  --- Says something and no more: all that is answered.
  local function cut(text)
    local s = moonsand.assert(box:dial(proxies.PORT, 10))
    if text ~= "" then
      s:write(text, 10)
    end
    s:shutdown()
    local got = s:read("a", { timeout = 20 })
    s:close()
    return got or ""
  end

  --- What the proxy raised meanwhile: an error there is the program's that runs the sandbox.
  local function raised(fn)
    local list, before = {}, tasks.on_error
    tasks.on_error = function(err, traceback)
      list[#list + 1] = tostring(err) .. traceback
    end
    finally(function() tasks.on_error = before end)
    fn()
    return list
  end

  it("makes no error out of any cut or broken request", function()
    local port = string.char(math.floor(server.port / 256), server.port % 256)
    local requests = {
      "\5\1\0\5\1\0\1\127\0\0\1" .. port,
      "\5\1\0\5\1\0\4" .. core.address "::ffff:127.0.0.1" .. port,
      "\5\1\0\5\1\0\3\7ok.test" .. port,
      connect("ok.test:" .. server.port),
      ("POST http://ok.test:%d/a HTTP/1.1\r\nContent-Length: 2\r\n\r\n"):format(server.port),
    }
    assert.same({}, raised(function()
      for _, request in ipairs(requests) do
        for length = 0, #request - 1 do
          local got = cut(request:sub(1, length))
          assert.is_falsy(got:find "^HTTP/1.1 200" or got:find "^\5%z\5%z", request:sub(1, length))
        end
      end
      assert.equal(0, server.count)
      for at = 1, #requests[3] do
        for _, byte in ipairs { 0, 1, 4, 127, 255 } do
          cut(requests[3]:sub(1, at - 1) .. string.char(byte) .. requests[3]:sub(at + 1))
        end
      end
    end))
    for _, request in ipairs(requests) do
      assert.is_truthy(cut(request), request)
    end
    assert.is_true(server.count >= #requests - 1)
  end)

  it("takes a field for a field, whatever it is called", function()
    local names = { "Seen", "Values", "List", "Name", "Line", "Value", "N", "1", "__index", "Self" }
    assert.same({}, raised(function()
      for _, name in ipairs(names) do
        local request = ("GET http://ok.test:%d/ HTTP/1.1\r\n%s: x\r\nA: b\r\nConnection: %s\r\n\r\n")
          :format(server.port, name, name)
        assert.is_truthy(say(request):find "200 OK", name)
        assert.is_falsy(server.got[server.count]:find(name .. ": x", 1, true), name)
        say((request:gsub("Connection: [^\r]*\r\n", "")))
        assert.is_truthy(server.got[server.count]:find(name .. ": x\r\nA: b\r\n", 1, true), name)
      end
    end))
  end)

  it("reads hostile heads in a time that grows as they do", function()
    local blanks, ones = (" "):rep(60000), ("1"):rep(60000)
    local function head(...)
      local lines, at = { ... }, 0
      return http.read(function()
        at = at + 1
        return (lines[at] or "") .. "\r\n"
      end)
    end
    local get = "GET http://ok.test/ HTTP/1.1"
    local cases = {
      blanks = function() return head(get, "X: a" .. blanks .. "b") end,
      ["blanks before"] = function() return head(get, "X:" .. blanks .. "b\1") end,
      ["blanks only"] = function() return head(get, "X:" .. blanks) end,
      tabs = function() return head(get, "X: " .. ("\t "):rep(30000) .. "b\127") end,
      ["a name"] = function() return head(get, ones) end,
      ["a list"] = function() return head(get, "Connection: " .. (", "):rep(30000) .. "a") end,
      method = function() return head(ones) end,
      target = function() return head("GET " .. ones .. " HTTP/1.2") end,
      scheme = function() return head("GET a" .. ones .. ":/ HTTP/1.1") end,
      ["a host"] = function() return head("GET http://" .. ones .. ":x/ HTTP/1.1") end,
      dots = function() return head("GET http://" .. ("."):rep(60000) .. "/ HTTP/1.1") end,
      ["a port"] = function() return head("CONNECT ok.test:" .. ones .. "x HTTP/1.1") end,
      authority = function() return head("CONNECT " .. ones .. ":x HTTP/1.1") end,
      brackets = function() return head("CONNECT [" .. ones .. "]1x HTTP/1.1") end,
      ["open brackets"] = function() return head("CONNECT " .. ("["):rep(60000) .. ":1 HTTP/1.1") end,
      colons = function() return head("CONNECT a" .. (":"):rep(60000) .. " HTTP/1.1") end,
      length = function() return head(get, "Content-Length: " .. ones .. "x") end,
    }
    for name, read in pairs(cases) do
      local began = os.clock()
      read()
      assert.is_true(os.clock() - began < 1, name)
    end
    assert.is_truthy(head(get, "X:\t a \tb\t ").head:find("\r\nX: a \tb\r\n", 1, true))
    assert.is_truthy(head(get, "X: \t").head:find("\r\nX: \r\n", 1, true))
  end)

  it("gives others a turn while a client that was refused talks on", function()
    local pieces, turns, stalled, over = 0, 0, false, false
    --- A connection whose client is always faster than the proxy.
    local function flooding(raw)
      local self = {}
      for _, name in ipairs { "id", "arm", "write", "shutdown", "close" } do
        self[name] = function(_, ...) return raw[name](raw, ...) end
      end
      function self.take(_, what, n)
        if what ~= "chunk" then
          return raw:take(what, n)
        end
        pieces = pieces + 1
        stalled = stalled or pieces - turns > 10000
        if stalled then
          return nil, "eof"
        end
        return "x"
      end
      return self
    end
    local listener = assert(core.listen(loop.reactor(), core.address(LOCAL), 0))
    local from_inside = { port = listener:port() }
    for _, name in ipairs { "id", "arm", "close" } do
      from_inside[name] = function() return listener[name](listener) end
    end
    function from_inside.accept()
      local raw, why = listener:accept()
      return raw and flooding(raw), why
    end
    local before = proxies.LINGER
    finally(function() proxies.LINGER = before end)
    proxies.LINGER = 0.2
    local proxy = assert(proxies.new({ call = function() return 0, "", from_inside end },
      assert(rules.read({}, 1)), {}))
    local raw = assert(core.connect(loop.reactor(), core.address(LOCAL), from_inside.port))
    moonsand.run(function()
      local task = moonsand.task(function()
        while not over do
          turns = pieces
          moonsand.sleep(0)
        end
      end)
      local s = require("moonsand.stream").new(raw, "client")
      s:write(connect "evil.test:80")
      assert.is_truthy(s:read("a", 20):find "^HTTP/1.1 403")
      s:close()
      over = true
      task:wait()
    end)
    proxy:close()
    assert.is_false(stalled)
    assert.is_true(pieces > 0)
  end)

  it("leaves descriptors to the program, and connections to other sandboxes", function()
    local before = core.max_descriptors
    finally(function() core.max_descriptors = before end)
    core.max_descriptors = function() return 128 end -- 32 connections for all
    local function held_by(sandbox)
      return sandbox.core.driver.proxy.acceptor.count
    end
    local function eventually(what, check)
      support.eventually(20, what, function()
        loop.step(0)
        return check()
      end)
    end
    local other = moonsand.assert(moonsand.create { network = { allow = {} } })
    local held = {}
    local function hold(sandbox)
      for _ = 1, 40 do
        local s = moonsand.assert(sandbox:dial(proxies.PORT, 10))
        s:write "G"
        held[#held + 1] = s
      end
    end
    hold(box)
    eventually("not half of them", function() return held_by(box) == 16 end)
    hold(other)
    eventually("not half of the rest", function() return held_by(other) == 8 end)
    loop.step(0.05)
    assert.equal(16, held_by(box))
    assert.equal(8, held_by(other))
    local third = moonsand.assert(moonsand.create { network = { allow = {} } })
    local s = moonsand.assert(third:dial(proxies.PORT, 10))
    s:write(connect "ok.test:80")
    assert.is_truthy(s:read("a", 20):find "^HTTP/1.1 403")
    s:close()
    local waits = held[#held] -- in the kernel
    waits:write("ET http://ok.test/ HTTP/1.1\r\n\r\n", 10)
    for i = 1, #held - 1 do
      held[i]:close()
    end
    assert.is_truthy(waits:read("a", 20):find "^HTTP/1.1 403")
    waits:close()
    eventually("some are still served", function() return held_by(box) + held_by(other) == 0 end)
    third:close()
    other:close()
    local forward = moonsand.assert(box:forward(8000))
    assert.is_nil(forward.acceptor.budget) -- who comes there is the program's own guest
    forward:close()
  end)

  it("keeps one sandbox's slow look-ups to a few", function()
    local begun, done = {}, false
    local before = core.lookup
    finally(function() core.lookup = before end)
    core.lookup = function(_, name)
      local signal = loop.signal()
      local lookup = { name = name, close = function() end }
      function lookup.answer()
        if done then
          return { core.address "8.8.8.8" }
        end
        return nil, "again"
      end
      function lookup.running() return not done end
      function lookup.add(_, ...) return signal:add(...) end
      function lookup.remove(_, ...) return signal:remove(...) end
      begun[#begun + 1] = lookup
      return lookup
    end
    local greedy, other = resolver.new(), resolver.new()
    local function ask(names, name)
      return { names:resolve(name, nil, { deadline = core.now() + 0.2 }) }
    end
    moonsand.run(function()
      local list = {}
      for i = 1, 20 do list[i] = moonsand.task(ask, greedy, "a" .. i .. ".test") end
      for _, task in ipairs(list) do
        assert.equal("timeout", task:wait()[3])
      end
      assert.equal(4, #begun)
      -- Nobody waits for these four any more, and yet they are under way.
      assert.equal("timeout", ask(greedy, "b.test")[3])
      assert.equal(4, #begun)
      ask(other, "c.test")
      assert.equal(5, #begun)
      done = true
      assert.same({ { core.address "8.8.8.8" } }, ask(greedy, "d.test"))
    end)
  end)

  it("bounds heads, in size and in time", function()
    local line = ("GET http://ok.test:%d/ HTTP/1.1\r\n"):format(server.port)
    assert.is_truthy(say("GET http://ok.test/" .. ("a"):rep(70000) .. " HTTP/1.1\r\n\r\n"):find "^HTTP/1.1 431")
    assert.is_truthy(say(line .. "A: " .. ("a"):rep(20000) .. "\r\n\r\n"):find "^HTTP/1.1 431")
    assert.is_truthy(say(line .. ("A: b\r\n"):rep(200) .. "\r\n"):find "^HTTP/1.1 431")
    assert.is_truthy(say(line .. ("A: " .. ("b"):rep(1000) .. "\r\n"):rep(90) .. "\r\n"):find "^HTTP/1.1 431")
    local before, linger = proxies.HEAD_TIMEOUT, proxies.LINGER
    finally(function() proxies.HEAD_TIMEOUT, proxies.LINGER = before, linger end)
    proxies.LINGER = 20 -- what is sent must have been read by then
    assert.is_truthy(say(("a"):rep(1000000)):find "^HTTP/1.1 4")
    local began = core.now()
    local slow = {}
    for i, text in ipairs { line, "G", "\5", "\5\1\0" } do
      proxies.HEAD_TIMEOUT = before
      local s = moonsand.assert(box:dial(proxies.PORT, 10))
      proxies.HEAD_TIMEOUT = 0.2 -- only now: it may be served before its dial is answered
      s:write(text, 10)
      slow[i] = s:read("a", { timeout = 20 })
      s:close()
    end
    proxies.HEAD_TIMEOUT = before
    assert.is_truthy(slow[1]:find "^HTTP/1.1 408", slow[1])
    assert.is_truthy(slow[2]:find "^HTTP/1.1 408", slow[2])
    assert.equal("", slow[3])
    assert.is_true(core.now() - began < 15)
    assert.equal(0, server.count)
  end)

  it("ends connections that nobody uses", function()
    local before = proxies.IDLE_TIMEOUT
    proxies.IDLE_TIMEOUT = 0.1
    server.silent = true
    local s = moonsand.assert(box:dial(proxies.PORT))
    s:write(connect("ok.test:" .. server.port))
    assert.is_truthy(s:read("a", 20):find "200")
    proxies.IDLE_TIMEOUT = before
    s:close()
    support.eventually(20, "no end in the log", function()
      loop.step(0)
      return last().ended ~= nil
    end)
    assert.is_truthy(last().ended)
  end)

  it("is not brought down by thousands of connections", function()
    local r = moonsand.assert(box:exec({ "/usr/bin/python3", "-c", [[
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
held, made = [], 0
for i in range(4000):
    s = socket.socket(); s.setblocking(False)
    s.connect_ex(("127.0.0.1", 3128)); made += 1
    held.append(s)
    if len(held) > 900: held.pop(0).close()
print(made)
]] }, { timeout = 40 }))
    assert.equal("4000\n", r.stdout, r.stderr)
    local acceptor = box.core.driver.proxy.acceptor
    assert.is_true(acceptor.count <= proxies.MAX_CONNECTIONS)
    support.eventually(10, "the dead are still served", function()
      loop.step(0)
      return acceptor.count == 0
    end)
    assert.is_truthy(say(connect("ok.test:" .. server.port) .. "x\r\n\r\n"):find "^HTTP/1.1 200")
  end)

  it("keeps another sandbox's rules to itself", function()
    local other = moonsand.assert(moonsand.create { network = { allow = {} } })
    local s = moonsand.assert(other:dial(proxies.PORT))
    s:write(connect("ok.test:" .. server.port))
    assert.is_truthy(s:read("a", 10):find "^HTTP/1.1 403")
    s:close()
    other:close()
    assert.equal(0, #box:network_log())
  end)

  it("reads no rule as more than it says", function()
    local function decide(list, host, port)
      local read = assert(rules.read({ allow = list }, 1))
      return read:refuse_host(assert(address.host(host)), port) == nil
    end
    assert.is_true(decide({ "example.org" }, "example.org", 80))
    assert.is_true(decide({ "example.org" }, "example.org", 443))
    assert.is_false(decide({ "example.org" }, "example.org", 8080))
    assert.is_false(decide({ "example.org:443" }, "example.org", 80))
    assert.is_true(decide({ "Example.ORG." }, "example.org", 80))
    assert.is_true(decide({ "example.org:*" }, "example.org", 8080))
    assert.is_false(decide({ "*.example.org" }, "example.org", 80))
    assert.is_true(decide({ "*.example.org" }, "a.b.example.org", 80))
    assert.is_false(decide({ "*.example.org" }, "badexample.org", 80))
    assert.is_false(decide({ "*" }, "localhost", 80))
    assert.is_false(decide({ "*.localhost" }, "localhost", 80))
    assert.is_true(decide({ "localhost" }, "localhost", 80))
    assert.is_true(decide({ "10.1.2.0/24" }, "10.1.2.3", 443))
    assert.is_false(decide({ "10.1.2.0/24" }, "10.1.3.3", 443))
    assert.is_false(decide({ "10.1.2.0/23" }, "10.1.4.0", 443))
    assert.is_true(decide({ "10.1.2.0/23" }, "10.1.3.255", 443))
    assert.is_true(decide({ "[2a00::/16]:8080" }, "[2a00::1]", 8080))
    assert.is_true(decide({ "2a00::1" }, "[2a00::1]", 80))
    assert.is_false(decide({ "0.0.0.0/0" }, "[2a00::1]", 80))
    assert.is_false(decide({ "10.1.2.0/24" }, "db.internal", 443)) -- a name is looked up for a name only
  end)
end)
