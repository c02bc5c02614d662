--- JSON both ways: what is lost elsewhere (null, [], integers), and what must not get through.

local json = require "moonsand.wire.json"
local net = require "moonsand.net"

local function failure(value, message, code, detail)
  assert.is_nil(value)
  assert.is_string(message)
  assert.equal(code, detail.code)
  return code, message
end

describe("moonsand.wire.json", function()
  describe("decode", function()
    it("leaves null out of objects, and keeps the places of lists", function()
      assert.same({ b = { 1, false, 3 } }, (json.decode '{"a":null,"b":[1,null,3]}'))
      assert.same({ false, false }, (json.decode "[null,null]"))
      assert.same(0, select("#", json.decode "null") - 1)
      local value, message = json.decode "null"
      assert.is_nil(value)
      assert.is_nil(message)
    end)

    it("gives whole numbers as integers, where there are any", function()
      for text, number in pairs { ["0"] = 0, ["-7"] = -7, ["1e3"] = 1000, ["1.5"] = 1.5,
        ["9007199254740991"] = 9007199254740991 } do
        local value = json.decode("[" .. text .. "]")[1]
        assert.equal(number, value)
        if math.type and number % 1 == 0 then
          assert.equal("integer", math.type(value))
        end
      end
      assert.is_true(json.decode "[1e300]"[1] == 1e300)
    end)

    for name, text in pairs {
      ["nothing"] = "", ["half an object"] = '{"a":', ["two values"] = "{} {}", ["a word"] = "nope",
      ["NaN"] = "[NaN]", ["infinity"] = "[Infinity]", ["hexadecimal"] = "[0x10]",
      ["bytes that are no UTF-8"] = '["\xff"]', ["an overlong NUL"] = '["\xc0\x80"]',
      ["a surrogate"] = '["\xed\xa0\x80"]', ["a cut character"] = '["\xe2\x82"]',
      ["deep lists"] = ("["):rep(200) .. ("]"):rep(200), ["single quotes"] = "{'a':1}",
    } do
      it("refuses " .. name, function()
        local code, message = failure(json.decode(text))
        assert.equal("protocol", code)
        assert.is_true(#message < 100)
      end)
    end

    it("has bounds that can be set", function()
      assert.equal("too_large", (failure(json.decode("[1,2,3]", { max = 5 }))))
      assert.equal("protocol", (failure(json.decode("[[[1]]]", { depth = 2 }))))
      assert.same({ { { 1 } } }, (json.decode("[[[1]]]", { depth = 3 })))
    end)

    it("says nothing of what it read", function()
      local _, message = failure(json.decode '{"key": secret}')
      assert.is_nil(message:find("secret", 1, true))
    end)
  end)

  describe("encode", function()
    local loop = {}
    loop.loop = { loop }
    local shared = { 1 }
    for _, case in ipairs {
      { { b = 1, a = 2 }, '{"a":2,"b":1}' },
      { { 1, "x", true, false, json.null }, '[1,"x",true,false,null]' },
      { {}, "{}" },
      { json.array(), "[]" },
      { json.array { 1 }, "[1]" },
      { { shared, shared }, "[[1],[1]]" },
      { 'a"b\\\n\0', '"a\\"b\\\\\\n\\u0000"' },
      { "ü€😀", '"ü€😀"' },
      { 2 ^ 53 - 1, "9007199254740991" },
      { 0.1, "0.10000000000000001" },
      { -0.5, "-0.5" },
      { 1e300, "1.0000000000000001e+300" },
    } do
      it("writes " .. case[2], function()
        assert.equal(case[2], (json.encode(case[1])))
      end)
    end

    for name, value in pairs {
      ["bytes that are no UTF-8"] = { cmd = "\xff" }, ["them in a key"] = { ["\xff"] = 1 },
      ["NaN"] = { 0 / 0 }, ["infinity"] = { 1 / 0 }, ["a function"] = { print },
      ["holes"] = { 1, nil, 3 }, ["mixed keys"] = { 1, a = 2 }, ["a table in itself"] = loop,
      ["number keys"] = { [7] = 1 },
    } do
      it("refuses " .. name, function()
        assert.equal("invalid", (failure(json.encode(value))))
      end)
    end

    it("refuses tables without an end to their depth", function()
      local deep = {}
      for _ = 1, 200 do
        deep = { deep }
      end
      assert.equal("invalid", (failure(json.encode(deep))))
    end)

    it("is read back as it was", function()
      local value = { list = { 1, 2, { x = "y" } }, text = "\1\127ü", no = false, n = -12.25 }
      assert.same(value, (json.decode((json.encode(value)))))
    end)
  end)
end)

describe("moonsand.net", function()
  it("knows UTF-8", function()
    for text, at in pairs {
      [""] = false, ["abc"] = false, ["ü€😀"] = false, ["\xf4\x8f\xbf\xbf"] = false,
      ["12345678\xff"] = 9, ["\x80"] = 1, ["a\xc3"] = 2, ["\xc1\xbf"] = 1, ["\xe0\x9f\xbf"] = 1,
      ["\xed\xa0\x80"] = 1, ["\xf0\x8f\xbf\xbf"] = 1, ["\xf4\x90\x80\x80"] = 1, ["\xf5\x80\x80\x80"] = 1,
      ["12345678ü1234567\xe2\x82x"] = 18,
    } do
      assert.equal(at or nil, net.utf8(text), ("%q"):format(text))
    end
  end)

  it("knows SHA-1, at every length about a block", function()
    local function hex(bytes)
      return (bytes:gsub(".", function(c)
        return ("%02x"):format(c:byte())
      end))
    end
    assert.equal("a9993e364706816aba3e25717850c26c9cd0d89d", hex(net.sha1 "abc"))
    assert.equal("da39a3ee5e6b4b0d3255bfef95601890afd80709", hex(net.sha1 ""))
    assert.equal("84983e441c3bd26ebaae4aa1f95129e5e54670f1",
      hex(net.sha1 "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"))
    -- each digest of "a" … "a" * 200, digested together; from another implementation
    local all = {}
    for i = 1, 200 do
      all[i] = net.sha1(("a"):rep(i))
    end
    assert.equal("5de7fd36f6aab747c9c61aba8bd9abf42390bfcb", hex(net.sha1(table.concat(all))))
  end)

  it("knows base64", function()
    for bytes, text in pairs { [""] = "", f = "Zg==", fo = "Zm8=", foo = "Zm9v", foob = "Zm9vYg==",
      ["\0\255\254"] = "AP/+" } do
      assert.equal(text, net.base64(bytes))
      assert.equal(bytes, net.unbase64(text))
      assert.equal(bytes, net.unbase64((text:gsub("=", ""))))
    end
    assert.equal("\0\255\254", net.unbase64 "AP_-")
    for _, text in ipairs { "Z", "Zg=", "Zg===", "Z g=", "Zm9v=", "=", "Zg==Zg==" } do
      assert.is_nil((net.unbase64(text)), text)
    end
    local bytes = require("moonsand.core").random(1000)
    assert.equal(bytes, net.unbase64(net.base64(bytes)))
  end)
end)
