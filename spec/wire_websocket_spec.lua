--- WebSockets: messages both ways, and every way in which a peer can break them.

local core = require "moonsand.core"
local helper = require "helper"
local http = require "moonsand.wire.http"
local moonsand = require "moonsand"
local server = require "support.server"
local support = require "support.init"
local websocket = require "moonsand.wire.websocket"

local function failure(value, message, code, detail)
  assert.is_nil(value)
  assert.is_string(message)
  assert.equal(code, detail.code)
  return code, message, detail
end

--- A frame as a server sends it.
local function frame(opcode, data, opts)
  opts = opts or {}
  local length = opts.length or #data
  local mask = opts.mask and 128 or 0
  local head = string.char((opts.more and 0 or 128) + (opts.reserved or 0) + opcode)
  if length < 126 then
    head = head .. string.char(mask + length)
  elseif length < 65536 then
    head = head .. string.char(mask + 126, math.floor(length / 256), length % 256)
  else
    local bytes = {}
    for i = 8, 1, -1 do
      bytes[i] = string.char(length % 256)
      length = math.floor(length / 256)
    end
    head = head .. string.char(mask + 127) .. table.concat(bytes)
  end
  return head .. (opts.mask and "\0\0\0\0" or "") .. data
end

local function connect(path, options, opts)
  opts = opts or {}
  opts.url = server.url(path, options, opts.scheme or "ws")
  opts.scheme = nil
  opts.timeout = opts.timeout or 10
  return websocket.connect(opts)
end

describe("moonsand.wire.websocket", function()
  helper.deadline(60)
  helper.no_leaks(nil, http.close_idle)
  setup(server.start)

  it("carries messages both ways, text and binary, of every size", function()
    local ws = assert(connect "/ws/echo")
    for _, size in ipairs { 0, 1, 125, 126, 65535, 65536, 300000, 5000000 } do
      local data = ("0123456789abcdef"):rep(math.ceil(size / 16)):sub(1, size)
      for _, kind in ipairs { "text", "binary" } do
        assert(ws:send(data, { kind = kind, timeout = 10 }))
        local back, back_kind = ws:receive(10)
        assert.is_true(back == data, size .. " " .. tostring(back_kind))
        assert.equal(kind, back_kind)
      end
    end
    assert.is_nil((ws:try()))
    assert.equal("again", select(2, ws:try()))
    ws:close()
  end)

  it("works over TLS, and through a proxy", function()
    local ca = server.start().ca_file
    local ws = assert(connect("/ws/echo", {}, { scheme = "wss", ca_file = ca }))
    local data = ("x"):rep(1000000)
    assert(ws:send(data, 10))
    assert.is_true(ws:receive(10) == data)
    ws:close()
    assert.equal("connection", (failure(connect("/ws/echo", {}, { scheme = "wss" }))))
    ws = assert(connect("/ws/echo", {}, { proxy = "http://127.0.0.1:" .. server.start().port }))
    assert(ws:send("x", 5))
    assert.equal("x", (ws:receive(5)))
    ws:close()
  end)

  it("keeps the order of many messages", function()
    local ws = assert(connect "/ws/echo")
    moonsand.run(function()
      moonsand.task(function()
        for i = 1, 3000 do
          assert(ws:send(tostring(i) .. ("."):rep(i), 20))
        end
      end)
      for i = 1, 3000 do
        assert.equal(tostring(i) .. ("."):rep(i), (assert(ws:receive(20))))
      end
    end)
    ws:close()
  end)

  it("sends what it is given in headers and query", function()
    local name = server.name()
    local ws = assert(connect("/ws/echo", { count = name }, { headers = { ["X-Key"] = "k" },
      query = nil }))
    ws:close()
    assert.equal(1, (server.count(name)))
    assert.equal("invalid", (failure(connect("/ws/echo", {}, { headers = { ["X-A"] = "1\r\nX: 2" } }))))
  end)

  -- ---------------------------------------------------------------- the end

  it("says good-bye, and hears it", function()
    local name = server.name()
    local ws = assert(connect("/ws/echo", { count = name }))
    assert(ws:send("last", 5))
    ws:shutdown(1001, "going")
    assert.equal("closed", (failure(ws:send("more", 5))))
    assert.equal("last", (ws:receive(5)))
    local code, _, detail = failure(ws:receive(5))
    assert.equal("closed", code)
    assert.equal(1001, detail.close_code)
    assert.equal("going", detail.close_reason)
    local _, noted = server.count(name)
    assert.same({ 1001, "going" }, noted)
    ws:close()
    ws:close()
  end)

  it("says it at a close, too, without waiting", function()
    local name = server.name()
    local ws = assert(connect("/ws/echo", { count = name }))
    ws:close()
    assert.equal("closed", (failure(ws:send("x", 5))))
    assert.equal("closed", (failure(ws:receive(5))))
    support.eventually(20, "no Close came", function()
      return select(2, server.count(name)) ~= nil
    end)
    assert.equal(1000, select(2, server.count(name))[1])
  end)

  it("hears why the peer closes", function()
    local name = server.name()
    local ws = assert(connect("/ws/raw", { count = name,
      data = frame(1, "hi") .. frame(8, "\15\161TAKEN_OVER") .. frame(1, "too late") }))
    assert.equal("hi", (ws:receive(5)))
    local code, message, detail = failure(ws:receive(5))
    assert.equal("closed", code)
    assert.equal(4001, detail.close_code)
    assert.equal("TAKEN_OVER", detail.close_reason)
    assert.matches("TAKEN_OVER", message)
    support.eventually(20, "the close was not echoed", function()
      return select(2, server.count(name)) ~= nil
    end)
    assert.equal(4001, select(2, server.count(name))[1])
    ws = assert(connect("/ws/raw", { data = frame(8, "") }))
    assert.equal(1005, select(3, failure(ws:receive(5))).close_code)
  end)

  it("answers pings, also while nobody receives, and counts pongs", function()
    local name = server.name()
    local ws = assert(connect("/ws/raw", { count = name, data = frame(9, "are you there") }))
    moonsand.loop.step(0.1)
    ws:close()
    ws = assert(connect("/ws/echo", { count = name }))
    assert(ws:ping("x", 5))
    support.eventually(20, "no pong", function()
      moonsand.loop.step(0.01)
      return ws:pongs() == 1
    end)
    ws:close()
    assert.has_error(function()
      ws:ping(("x"):rep(126))
    end)
  end)

  it("tells a connection that ended at any byte from a close", function()
    local whole = frame(2, "abc") .. frame(8, "\3\232bye")
    for i = 0, #whole - 1 do
      for _, how in ipairs { "close", "reset" } do
        local ws = assert(connect("/ws/raw", { data = whole:sub(1, i), ["end"] = how }))
        local data, _, code = ws:receive(5) -- what came before a reset may be gone, too
        if data then
          assert.equal("abc", data)
          assert.is_true(i >= 5)
          code = failure(ws:receive(5))
        end
        assert.equal("lost", code, i .. " " .. how)
      end
    end
    local ws = assert(connect("/ws/raw", { data = whole, ["end"] = "half" }))
    assert.equal("abc", (ws:receive(5)))
    assert.equal(1000, select(3, failure(ws:receive(5))).close_code)
  end)

  -- ---------------------------------------------------------------- frames

  it("joins fragments, with pings between", function()
    local ws = assert(connect("/ws/raw", { data = frame(1, "a\xc3", { more = true }) .. frame(9, "")
      .. frame(0, "\xbc", { more = true }) .. frame(0, "c") .. frame(2, "next") }))
    assert.equal("aüc", (ws:receive(5)))
    assert.equal("next", (ws:receive(5)))
    ws:close()
  end)

  for name, case in pairs {
    ["a masked frame"] = { frame(1, "abc", { mask = true }), 1002 },
    ["a reserved bit"] = { frame(1, "abc", { reserved = 64 }), 1002 },
    ["an unknown opcode"] = { frame(3, "abc"), 1002 },
    ["a continuation of nothing"] = { frame(0, "abc"), 1002 },
    ["a message within another"] = { frame(1, "a", { more = true }) .. frame(1, "b"), 1002 },
    ["a ping in pieces"] = { frame(9, "a", { more = true }), 1002 },
    ["a ping that is too large"] = { frame(9, ("x"):rep(126)), 1002 },
    ["text that is not UTF-8"] = { frame(1, "\xff"), 1007 },
    ["text cut within a character"] = { frame(1, "\xc3"), 1007 },
    ["a close with half a code"] = { frame(8, "\3"), 1002 },
    ["a close with a code that is none"] = { frame(8, "\0\1"), 1002 },
    ["a length with its first bit set"] = { "\130\127\128\0\0\0\0\0\0\1", 1002 },
  } do
    it("refuses " .. name, function()
      local noted = server.name()
      local ws = assert(connect("/ws/raw", { count = noted, data = case[1] }))
      local code = failure(ws:receive(5))
      assert.equal("protocol", code)
      support.eventually(20, "the peer was not told", function()
        return select(2, server.count(noted)) ~= nil
      end)
      -- a frame that cannot be read at all is answered with a Close without a code
      local told = select(2, server.count(noted))[1]
      assert.is_true(told == case[2] or told == 0, told)
    end)
  end

  it("refuses a message that is too large, before it is there", function()
    for _, data in ipairs { frame(2, "x", { length = 2 ^ 40 }), frame(2, ("x"):rep(1001)),
      frame(2, ("x"):rep(600), { more = true }) .. frame(0, ("x"):rep(600)) } do
      local noted = server.name()
      local ws = assert(connect("/ws/raw", { count = noted, data = data }, { max = 1000 }))
      assert.equal("too_large", (failure(ws:receive(5))))
      support.eventually(20, "the peer was not told", function()
        return select(2, server.count(noted)) ~= nil
      end)
      assert.equal(1009, select(2, server.count(noted))[1])
    end
    local ws = assert(connect("/ws/raw", { data = frame(2, ("x"):rep(1000)) }, { max = 1000 }))
    assert.equal(1000, #ws:receive(5))
    ws:close()
  end)

  it("stops reading while nobody receives", function()
    local name = server.name()
    local ws = assert(connect("/ws/flood", { count = name }))
    local before
    support.eventually(10, "it never stopped", function()
      moonsand.loop.step(0.05)
      local _, now = server.count(name)
      local stopped = now == before
      before = now
      return stopped
    end)
    assert.is_true((ws.socket:held()) < 512 * 1024)
    for _ = 1, 500 do
      assert.equal(65536, #assert(ws:receive(10)))
    end
    ws:close()
  end)

  it("waits while the peer does not read, and says how long it may", function()
    local ws = assert(connect("/ws/echo", { pause = 30 }))
    local code
    for _ = 1, 2000 do
      local sent, _, why = ws:send(("x"):rep(65536), 0.2)
      if not sent then
        code = why
        break
      end
    end
    assert.equal("timeout", code)
    local _, unsent = ws.socket:held()
    assert.is_true(unsent < 1024 * 1024, unsent)
    ws:close()
  end)

  -- ---------------------------------------------------------------- the upgrade

  it("is not made up: whatever is not one is refused", function()
    for name, options in pairs {
      ["a wrong accept"] = { accept = "AAAAAAAAAAAAAAAAAAAAAAAAAAA=" },
      ["an empty accept"] = { accept = "" },
      ["an extension"] = { headers = "Sec-WebSocket-Extensions: permessage-deflate" },
      ["a protocol"] = { headers = "Sec-WebSocket-Protocol: chat" },
    } do
      assert.equal("protocol", (failure(connect("/ws/echo", options))), name)
    end
    local ws = assert(connect("/ws/echo", { headers = "Sec-WebSocket-Protocol: chat" },
      { protocols = { "talk", "chat" } }))
    assert.equal("chat", ws.protocol)
    ws:close()
    for data, expected in pairs {
      [""] = "lost", ["HTTP/1.1 101 Swi"] = "lost", ["SSH-2.0\r\n\r\n"] = "protocol",
      ["HTTP/1.1 101 X\r\n\r\n"] = "protocol",
      ["HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"] = "protocol",
      ["HTTP/1.1 101 X\r\n" .. ("X: y\r\n"):rep(30000)] = "too_large",
    } do
      assert.equal(expected, (failure(websocket.connect { url = server.raw(data), timeout = 5 })), data)
    end
  end)

  it("tells a refusal with its status and body", function()
    local body = '{"code":"ALREADY_CONNECTED","message":"another holds it"}'
    local function refused(url)
      local code, message, detail = failure(websocket.connect { url = url, timeout = 5, provider = "p" })
      assert.matches("another holds it", message)
      assert.equal("ALREADY_CONNECTED", detail.provider_code)
      assert.equal("p", detail.provider)
      return code, detail.http_status
    end
    assert.same({ "conflict", 409 }, { refused(server.url("/status", { code = 409, body = body })) })
    local half = #body - 10
    assert.same({ "not_found", 404 }, { refused(server.raw(("HTTP/1.1 404 X\r\n"
      .. "Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n"):format(half,
        body:sub(1, half), 10, body:sub(half + 1)), { ["end"] = "hold" })) })
    assert.same({ "provider", 500 }, { refused(server.raw("HTTP/1.1 500 X\r\n\r\n" .. body)) })
    assert.equal("not_found", (failure(connect "/nowhere")))
  end)

  it("reads a hostile refusal in a time that grows as it does", function()
    local blanks, digits = (" "):rep(100000), ("f"):rep(100000)
    local chunked = "HTTP/1.1 404 X\r\nTransfer-Encoding: chunked\r\n\r\n"
    for name, data in pairs {
      ["blanks in a field"] = "HTTP/1.1 404 X\r\nX: a" .. blanks .. "b\r\n\r\n",
      ["a field of blanks"] = "HTTP/1.1 404 X\r\nX:" .. blanks .. "\r\n\r\n",
      ["a chunk's size"] = chunked .. digits,
      ["a chunk's extension"] = chunked .. "1" .. blanks .. "x\r\n",
      -- As a number of 64 bits it is negative, and leads back to where it was read.
      ["a chunk before this one"] = chunked .. "ffffffffffffffec\r\n",
      ["no chunk"] = chunked .. "x\r\n\r\n",
    } do
      local before = core.now()
      assert.equal("not_found", (failure(websocket.connect { url = server.raw(data), timeout = 20 })), name)
      assert.is_true(core.now() - before < 10, name .. ": " .. core.now() - before)
    end
  end)

  it("ends in time, and when it is cancelled", function()
    for _, data in ipairs { "", "HTTP/1.1 101 X\r\n" } do
      local before = core.now()
      assert.equal("timeout", (failure(websocket.connect { timeout = 0.2,
        url = server.raw(data, { ["end"] = "hold" }) })))
      assert.is_true(core.now() - before < 10)
    end
    local code = failure(moonsand.run(function()
      local token = moonsand.token()
      moonsand.task(function()
        moonsand.sleep(0.1)
        token:cancel()
      end)
      return websocket.connect { url = server.raw("", { ["end"] = "hold" }), cancel = token }
    end))
    assert.equal("cancelled", code)
    assert.equal("connection", (failure(websocket.connect { url = "ws://127.0.0.1:1/?secret" })))
    local ws = assert(connect "/ws/echo")
    assert.equal("timeout", (failure(ws:receive(0.1))))
    assert(ws:send("x", 5))
    assert.equal("x", (ws:receive(5)))
    ws:close()
  end)

  it("is not disturbed by other requests", function()
    local ws = assert(connect "/ws/echo")
    assert(ws:send("kept", 5))
    for _ = 1, 3 do
      assert(http.call { url = server.url "/hello", fresh = true, timeout = 5 })
    end
    assert.equal("kept", (ws:receive(5)))
    ws:close()
  end)

  it("blames the caller for what is a mistake, and refuses text that is none", function()
    local ws = assert(connect "/ws/echo")
    for _, call in ipairs {
      function() ws:send(1) end,
      function() ws:send("x", { kind = "ping" }) end,
      function() ws:receive { until_ = 1 } end,
      function() ws:shutdown("x") end,
      function() websocket.connect { uri = "x" } end,
    } do
      assert.has_error(call)
    end
    assert.equal("invalid", (failure(ws:send("\xff", { kind = "text" }))))
    assert.is_nil(tostring(ws):find("?", 1, true))
    ws:close()
  end)
end)
