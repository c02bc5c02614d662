--- What comes in pieces: lines, server-sent events, envelopes, cut anywhere; and the same read from
--- a socket, where the end of the body is told from its being cut.

local connect = require "moonsand.wire.connect"
local events = require "moonsand.wire.events"
local helper = require "helper"
local http = require "moonsand.wire.http"
local net = require "moonsand.net"
local server = require "support.server"

local OK = "HTTP/1.1 200 OK\r\n"

--- All items of a reader that is fed pieces of so many bytes.
local function read(reader, bytes, size)
  local items = {}
  for at = 1, #bytes, size do
    reader:feed(bytes:sub(at, at + size - 1))
    local item, extra = reader:next()
    while item do
      items[#items + 1] = item
      item, extra = reader:next()
    end
    assert.equal("again", extra)
  end
  return items
end

--- The same whatever the size of the pieces.
local function same_in_pieces(make, bytes, expected)
  for _, size in ipairs { 1, 2, 3, 5, 7, #bytes + 1 } do
    assert.same(expected, read(make(1000), bytes, size), "in pieces of " .. size)
  end
end

local function failure(value, message, code, detail)
  assert.is_nil(value)
  assert.is_string(message)
  assert.equal(code, detail.code)
  return code, message, detail
end

--- All that an iterator gives, and its failure's code.
local function drain(iterator)
  local items = {}
  while true do
    local item, message, code = iterator:next { timeout = 10 }
    if item == nil then
      return items, message and code or nil
    end
    items[#items + 1] = item
  end
end

describe("moonsand.net.lines", function()
  for _, case in ipairs {
    { "a\nb\n", { "a", "b" } },
    { "a\r\nb\r\n", { "a", "b" } },
    { "a\rb\rc\r", { "a", "b", "c" } },
    { "\n\n", { "", "" } },
    { "\r\n\r\n", { "", "" } },
    { "\r\r\n\n\r", { "", "", "", "" } },
    { "a\n\rb\n", { "a", "", "b" } },
    { "\0\255\n", { "\0\255" } },
    { "no end", {} },
  } do
    it(("cuts %q"):format(case[1]), function()
      same_in_pieces(net.lines, case[1], case[2])
    end)
  end

  it("gives a line with a CR at once, not when the next byte is there", function()
    local reader = net.lines(100)
    reader:feed "a\r"
    assert.equal("a", (reader:next()))
    reader:feed "\nb\n"
    assert.equal("b", (reader:next()))
  end)

  it("gives what has no end as the rest", function()
    local reader = net.lines(100)
    reader:feed "a\nb"
    assert.equal("a", (reader:next()))
    assert.is_nil((reader:next()))
    assert.equal("b", reader:rest())
    assert.is_nil(reader:rest())
  end)

  it("does not grow past its bound", function()
    local reader = net.lines(10)
    reader:feed "0123456789\n"
    assert.equal("0123456789", (reader:next()))
    reader:feed "0123456789a"
    assert.same({ nil, "too_large" }, { reader:next() })
    assert.has_error(function()
      net.lines(0)
    end)
  end)
end)

describe("moonsand.net.sse", function()
  local function event(data, kind, id, retry)
    return { data = data, event = kind or "message", id = id or "", retry = retry }
  end

  for name, case in pairs {
    ["the example of the standard"] = { "data: YHOO\ndata: +2\ndata: 10\n\n", { event "YHOO\n+2\n10" } },
    ["comments, ids and their resets"] = {
      ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
      { event("first event", nil, "1"), event "second event", event " third event" },
    },
    ["empty data"] = { "data\n\ndata\ndata\n\ndata:", { event "", event "\n" } },
    ["a space after the colon, and none"] = { "data:test\n\ndata: test\n\n", { event "test", event "test" } },
    ["CR, LF and CRLF"] = { "data: a\rdata: b\r\ndata: c\n\r\ndata: d\r\r", { event "a\nb\nc", event "d" } },
    ["a byte order mark"] = { "\239\187\191data: a\n\n\239\187\191data: b\n\n", { event "a" } },
    ["kinds, which do not live on"] = { "event: add\ndata: 1\n\ndata: 2\n\n",
      { event("1", "add"), event "2" } },
    ["ids, which do"] = { "id: 7\ndata: 1\n\ndata: 2\n\nid: \0x\ndata: 3\n\n",
      { event("1", nil, "7"), event("2", nil, "7"), event("3", nil, "7") } },
    ["a kind without data"] = { "event: none\n\ndata: x\n\n", { event "x" } },
    ["when to come back"] = { "retry: 1500\ndata: 1\n\nretry: 3x\ndata: 2\n\nretry:\ndata: 3\n\n",
      { event("1", nil, nil, 1.5), event("2", nil, nil, 1.5), event("3", nil, nil, 1.5) } },
    ["fields that nobody knows"] = { "foo: bar\ndata: x\nDATA: y\ndata2: z\n\n", { event "x" } },
    ["an unfinished event"] = { "data: a\n\ndata: b\n", { event "a" } },
  } do
    it("knows " .. name, function()
      same_in_pieces(net.sse, case[1], case[2])
    end)
  end

  it("does not grow past its bound", function()
    local reader = net.sse(100)
    reader:feed(("data: 0123456789\n"):rep(20))
    assert.same({ nil, "too_large" }, { reader:next() })
  end)
end)

describe("moonsand.net.envelopes", function()
  it("cuts messages, with their flags", function()
    local bytes = connect.frame "{}" .. connect.frame("", 2) .. connect.frame(("x"):rep(300), 1)
    same_in_pieces(net.envelopes, bytes, { "{}", "", ("x"):rep(300) })
    local reader = net.envelopes(1000)
    reader:feed(bytes)
    local flags = {}
    for i = 1, 3 do
      flags[i] = select(2, reader:next())
    end
    assert.same({ 0, 2, 1 }, flags)
  end)

  it("knows of what is unfinished", function()
    local reader = net.envelopes(1000)
    reader:feed(connect.frame "abc" .. "\0\0\0")
    assert.equal("abc", (reader:next()))
    assert.equal(3, reader:rest())
  end)

  it("refuses a message past its bound before it is there", function()
    local reader = net.envelopes(1000)
    reader:feed "\0\255\255\255\255"
    assert.same({ nil, "too_large" }, { reader:next() })
  end)
end)

describe("moonsand.wire.events", function()
  helper.deadline(60)
  helper.no_leaks(nil, http.close_idle)
  setup(server.start)

  --- An answer whose body is this, in chunks of so many bytes.
  local function answer(body, size, options)
    local pieces = { OK, "Transfer-Encoding: chunked\r\n\r\n" }
    for at = 1, #body, size or 5 do
      local piece = body:sub(at, at + (size or 5) - 1)
      pieces[#pieces + 1] = ("%x\r\n%s\r\n"):format(#piece, piece)
    end
    pieces[#pieces + 1] = options and options.cut and "" or "0\r\n\r\n"
    return assert(http.open { url = server.raw(table.concat(pieces), options), timeout = 10 })
  end

  it("reads lines, JSON lines, events", function()
    assert.same({ "a", "", "b", "c" }, (drain(events.lines(answer "a\r\n\nb\rc"))))
    assert.same({ { a = 1 }, { 1 }, "x" }, (drain(events.json(answer '{"a":1}\n\n[1]\r\nnull\n"x"'))))
    local list = drain(events.sse(answer "data: a\n\nevent: b\ndata: c\n\n"))
    assert.equal("a", list[1].data)
    assert.equal("b", list[2].event)
  end)

  it("reads JSON in either framing, as execd and its clients' tests write it", function()
    local objects, code = drain(events.objects(answer('{"type":"init"}\n\ndata: {"type":"stdout"}\n\n'
      .. ': comment\nevent: x\nid: 1\nretry: 5\ndata:{"type":"end"}\n\n{"code":"RUNTIME_ERROR"}')))
    assert.is_nil(code)
    local seen = {}
    for i, object in ipairs(objects) do
      seen[i] = object.type or object.code
    end
    assert.same({ "init", "stdout", "end", "RUNTIME_ERROR" }, seen)
  end)

  it("takes no longer for many blanks than for as many letters", function()
    local before = os.clock()
    local objects = drain(events.objects(answer('{"a":' .. (" "):rep(65536) .. "1}\n" .. (" "):rep(65536)
      .. "\n \t{} \t\n")))
    assert.same({ { a = 1 }, {} }, objects)
    assert.is_true(os.clock() - before < 2)
  end)

  it("tells a body that was cut from one that ended", function()
    for _, make in ipairs { events.lines, events.json, events.sse, events.objects } do
      local items, code = drain(make(answer('{"a":1}\n{"b":2}\n{"c', 5, { cut = true })))
      assert.equal("lost", code)
      assert.is_true(#items <= 2)
    end
  end)

  it("raises in a for loop what is not the end", function()
    assert.has_error(function()
      for _ in events.json(answer "nope\n") do
        assert(false)
      end
    end)
  end)

  it("refuses what is too large or no JSON, and drops the connection", function()
    local response = answer('{"a":1}\nnope\n{"b":2}\n', 100)
    local iterator = events.json(response)
    assert.same({ a = 1 }, iterator:next())
    local code, _, detail = failure(iterator:next())
    assert.equal("protocol", code)
    assert.equal(200, detail.http_status)
    assert.is_true(response.transfer:over())
    response = assert(http.open { url = server.url("/flood", { kind = "line" }), timeout = 20 })
    assert.equal("too_large", (failure(events.lines(response, { max = 100000 }):next())))
    response = assert(http.open { url = server.url("/big", { size = 100 * 1024 * 1024 }), timeout = 20 })
    assert.equal("too_large", (failure(events.sse(response):next())))
  end)

  it("waits for as long as it is told, and loses nothing", function()
    local response = assert(http.open { url = server.raw(OK .. "\r\n{\"a\":1}\n{\"b\"",
      { ["end"] = "hold" }), timeout = 10 })
    local iterator = events.json(response)
    assert.same({ a = 1 }, iterator:next())
    assert.equal("timeout", (failure(iterator:next(0.1))))
    assert.equal("timeout", (failure(iterator:next { timeout = 0 })))
    iterator:close()
    assert.is_true(response.transfer:over())
  end)
end)

describe("moonsand.wire.connect", function()
  helper.deadline(60)
  helper.no_leaks(nil, http.close_idle)
  setup(server.start)

  --- A stream whose answer's body is these bytes.
  local function stream(body, kind)
    local client = http.client { base_url = server.url "", provider = "e2b" }
    local path = server.raw(OK .. "Content-Type: " .. (kind or "application/connect+json")
      .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body):match "//[^/]+(/.*)$"
    -- the server closes without a word of it: a connection used again might be half gone
    return connect.stream(client, path, { a = 1 }, { timeout = 10, fresh = true })
  end

  local START, STOP = connect.frame '{"event":{"start":{"pid":25}}}', connect.frame("{}", 2)

  it("reads messages up to the end frame", function()
    local items, code = drain(assert(stream(START .. connect.frame "{}" .. STOP)))
    assert.is_nil(code)
    assert.same({ { event = { start = { pid = 25 } } }, {} }, items)
  end)

  it("sends one message in an envelope", function()
    local name = server.name()
    local client = http.client { base_url = server.url "" }
    failure(connect.stream(client, "/shown?count=" .. name, { a = { b = 1 } }, { timeout = 5 }))
    local sent = assert(http.call { url = server.url "/shown", method = "POST",
      body = connect.frame '{"a":{"b":1}}' })
    assert.equal("0000000d" .. server.hex '{"a":{"b":1}}', sent.body:sub(3))
  end)

  it("tells the error of an end frame", function()
    local bytes = START .. connect.frame(
      '{"error":{"code":"deadline_exceeded","message":"context deadline exceeded"}}', 2)
    local iterator = assert(stream(bytes))
    assert.is_table(iterator:next())
    local code, message, detail = failure(iterator:next())
    assert.equal("timeout", code)
    assert.equal("context deadline exceeded", message)
    assert.equal("deadline_exceeded", detail.provider_code)
    assert.equal("e2b", detail.provider)
  end)

  it("takes no end for one but the end frame", function()
    local whole = START .. STOP
    for i = 0, #whole - 1 do
      local _, code = drain(assert(stream(whole:sub(1, i))))
      assert.equal("lost", code, i)
    end
  end)

  for name, bytes in pairs {
    ["something after the end"] = STOP .. START, ["a compressed message"] = connect.frame("{}", 1),
    ["unknown flags"] = connect.frame("{}", 4), ["no JSON"] = connect.frame "nope",
    ["no object"] = connect.frame "1",
  } do
    it("refuses " .. name, function()
      local _, code = drain(assert(stream(bytes)))
      assert.equal("protocol", code)
    end)
  end

  it("refuses another content type, and maps refusals by HTTP", function()
    assert.equal("protocol", (failure(stream(START, "text/html"))))
    local client = http.client { base_url = server.url "" }
    local function refused(status, body)
      return failure(connect.unary(client, server.url("/status", { code = status, body = body })
        :match "//[^/]+(/.*)$", {}, { timeout = 5 }))
    end
    local code, _, detail = refused(404, '{"code":"not_found","message":"no process"}')
    assert.equal("not_found", code)
    assert.equal("not_found", detail.provider_code)
    assert.equal("conflict", (refused(400, '{"code":"failed_precondition"}')))
    assert.equal("auth", (refused(401, '{"code":401,"message":"no token"}')))
    assert.equal("invalid", (refused(415, "")))
  end)

  it("answers one message for one", function()
    local client = http.client { base_url = server.url "" }
    local answer = connect.unary(client, "/shown", nil, { timeout = 5 })
    assert.equal("7b7d", answer.body)
    local path = server.url("/status", { code = 200, body = "[", headers = "Content-Type:application/json" })
    assert.equal("protocol", (failure(connect.unary(client, path:match "//[^/]+(/.*)$"))))
  end)
end)
