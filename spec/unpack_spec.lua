-- What a download makes of a stream that an honest worker would never send: written by hand here,
-- fed to the host's end of it. Nothing may ever be written outside of the destination.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local support = require "support.init"

local ENTRY, DATA, TOTAL, SKIPPED, FAILED, END = 1, 2, 3, 4, 5, 6
local FILE, DIRECTORY, LINK, OTHER = 1, 2, 3, 4

local function bytes(number, count)
  local list = {}
  for i = 1, count do
    list[i] = string.char(number % 256)
    number = math.floor(number / 256)
  end
  return table.concat(list)
end

local function u32(number)
  return bytes(number, 4)
end

local function u64(number)
  return bytes(number, 8)
end

local function str(text)
  return u32(#text) .. text .. "\0"
end

local function record(kind, body)
  return u32(#body + 4) .. u32(kind) .. body
end

local function entry(fields)
  return record(ENTRY, u32(fields.type or FILE) .. u32(fields.mode or 420) .. u32(1000) .. u32(1000)
    .. u64(fields.size or 0) .. u64(fields.mtime or 0) .. u32(fields.mtime_ns or 0)
    .. str(fields.path) .. str(fields.target or ""))
end

local function file(path, data)
  return entry { path = path, size = #data } .. (data ~= "" and record(DATA, data) or "")
end

local function directory(path)
  return entry { type = DIRECTORY, path = path, mode = 493 }
end

local function link(path, target)
  return entry { type = LINK, path = path, target = target, mode = 511 }
end

local done = record(END, u64(1))

describe("core.unpack", function()
  local base, root
  before_each(function()
    base = support.directory() .. "/unpack"
    root = base .. "/root"
    support.run(("rm -rf %s; mkdir -p %s %s/outside; echo safe >%s/outside/f"):format(base, root, base,
      base))
  end)
  after_each(function()
    support.run("rm -rf " .. base)
  end)

  --- What there is, but for what was there before.
  local function tree()
    return (support.run(("cd %s && find . -mindepth 1 | LC_ALL=C sort | sed 's/^..//'"):format(root)))
  end

  --- Feeds a stream, in pieces of so many bytes.
  local function feed(stream, options)
    options = options or {}
    local unpack = assert(core.unpack(root, options.max or 1e6, options.limit or 100))
    local skipped, state, errno, path = {}, "more", nil, nil
    local step = options.step or #stream
    for from = 1, #stream, step do
      state, errno, path = unpack:feed(stream:sub(from, from + step - 1), skipped)
      if state ~= "more" then
        break
      end
    end
    unpack:close()
    unpack:close()
    local outside = support.run(("cd %s && ls -A . outside && cat outside/f"):format(base))
    assert.equal(".:\noutside\nroot\n\noutside:\nf\nsafe\n", outside)
    return state, errno and errors.code(errno), path, skipped
  end

  it("makes what an honest stream says, however it is cut", function()
    local stream = record(TOTAL, u64(4) .. u64(6)) .. directory "d" .. file("d/a", "hello")
      .. file("b", "") .. link("d/l", "../b") .. file("c", "x") .. done
    for _, step in ipairs { 1, 2, 7, 64, #stream } do
      support.run("rm -rf " .. root .. "; mkdir " .. root)
      assert.equal("end", feed(stream, { step = step }))
      assert.equal("b\nc\nd\nd/a\nd/l\n", tree())
      assert.equal("hello", support.read(root .. "/d/a"))
    end
  end)

  it("refuses paths that are none", function()
    for _, path in ipairs {
      "/etc/passwd", "../outside/f", "..", ".", "", "a/../../outside/f", "a//b", "/", "a/", "./a",
      "d/.", "d/..", "\0", "a\0b", ("x"):rep(256), ("x/"):rep(2048) .. "x",
    } do
      for _, kind in ipairs { FILE, DIRECTORY, LINK } do
        local state, code = feed(directory "d"
          .. entry { type = kind, path = path, target = kind == LINK and "x" or "" })
        assert.is_nil(state, path)
        assert.equal("protocol", code, path)
      end
    end
    assert.equal("d\n", tree())
  end)

  it("writes through no link, whoever made it", function()
    for _, target in ipairs { "../outside", base .. "/outside", ".", "d", "d/../../outside" } do
      support.run(("rm -rf %s; mkdir -p %s/d; ln -s %s %s/l"):format(root, root, target, root))
      local state, code = feed(file("l/f", "evil") .. done)
      assert.is_nil(state)
      assert.equal("loop", code)
      state, code = feed(directory "l" .. file("l/f", "evil") .. done)
      assert.is_nil(state)
      assert.equal("loop", code)
      assert.equal("end", feed(file("l", "mine") .. done))
      assert.equal("mine", support.read(root .. "/l"))
    end
    -- The stream's own link, then something through it.
    local state, code = feed(directory "d" .. link("m", "d") .. file("m/f", "x") .. done)
    assert.is_nil(state)
    assert.equal("loop", code)
  end)

  it("leaves out links that lead out, and says so", function()
    local _, _, _, skipped = feed(directory "d" .. link("a", "/etc/passwd") .. link("b", "..")
      .. link("c", "../outside") .. link("d/e", "../../outside") .. link("d/f", "x/../../..")
      .. link("g", "d/../..") .. link("d/h", "../d") .. link("i", "d") .. done)
    assert.equal("d\nd/h\ni\n", tree())
    assert.equal(6, #skipped)
    assert.equal("a", skipped[1].path)
  end)

  it("lets the last of equal names win, but no file be a directory", function()
    assert.equal("end", feed(file("a", "1") .. file("a", "2") .. link("a", "b") .. link("a", "c")
      .. file("a", "3") .. directory "d" .. directory "d" .. done))
    assert.equal("3", support.read(root .. "/a"))
    local state, code = feed(file("d", "x") .. done)
    assert.is_nil(state)
    assert.equal("is_a_directory", code)
    state, code = feed(link("d", "x") .. done)
    assert.is_nil(state)
    assert.truthy(code == "exists" or code == "is_a_directory", code)
    state, code = feed(directory "a" .. done)
    assert.is_nil(state)
    assert.equal("not_a_directory", code)
    assert.equal("a\nd\n", tree())
  end)

  it("takes modes down to what is harmless", function()
    assert.equal("end", feed(entry { path = "f", mode = 4095 } .. entry { path = "g", mode = 0 }
      .. entry { type = DIRECTORY, path = "d", mode = 2 ^ 9 + 2 ^ 10 } .. done))
    local output = support.run(("cd %s; stat -c %%a f g d"):format(root))
    assert.truthy(output:find "^7[0-7][0-7]\n600\n700\n$", output) -- less the umask
    assert.equal("protocol", select(2, feed(entry { path = "h", mode = 4096 })))
  end)

  it("knows no devices, and no numbers that cannot be", function()
    for _, fields in ipairs {
      { path = "a", type = OTHER }, { path = "a", type = 0 }, { path = "a", type = 5 },
      { path = "a", size = 2 ^ 63 }, { path = "a", mtime = 2 ^ 60 }, { path = "a", mtime_ns = 1e9 },
      { path = "a", target = "x" },
    } do
      local state, code = feed(entry(fields) .. done)
      assert.is_nil(state)
      assert.equal("protocol", code)
    end
    assert.equal("", tree())
  end)

  it("has limits", function()
    local data = ("x"):rep(1000)
    assert.equal("end", feed(file("a", data) .. record(DATA, data) .. done, { max = 2000 }))
    assert.equal("too_large", select(2, feed(file("a", data) .. record(DATA, data), { max = 1999 })))
    local many = {}
    for i = 1, 11 do
      many[i] = file("f" .. i, "")
    end
    assert.equal("too_large", select(2, feed(table.concat(many), { limit = 10 })))
    local skips = record(SKIPPED, u32(13) .. str "x"):rep(11)
    assert.equal("too_large", select(2, feed(skips, { limit = 10 })))
    assert.is_nil(tree():find "f11")
  end)

  it("tells noise from a stream", function()
    for _, noise in ipairs {
      record(DATA, "x"), -- of no file
      directory "d" .. record(DATA, "x"),
      record(7, ""), record(0, ""), u32(0), u32(3), u32(2 ^ 32 - 1), u32(200000),
      record(END, ""), record(END, u64(1) .. "x"), record(TOTAL, ""), record(ENTRY, ""),
      record(SKIPPED, u32(0) .. str "x"), record(FAILED, u32(1)), record(ENTRY, ("\255"):rep(100)),
      record(FAILED, u32(1) .. str(("x"):rep(5000))), "\255\255\255\255\255", "HTTP/1.1 200 OK\r\n",
    } do
      local state, code = feed(noise)
      assert.is_nil(state)
      assert.equal("protocol", code)
    end
    assert.equal("more", feed(done:sub(1, -2)))
    local state, code, path = feed(record(FAILED, u32(13) .. str "some/where"))
    assert.equal("failed", state)
    assert.equal("permission_denied", code)
    assert.equal("some/where", path)
  end)

  it("forgets what could not be read to its end, and what was cut off", function()
    assert.equal("end", feed(file("a", "x") .. record(SKIPPED, u32(5) .. str "a") .. file("b", "y")
      .. record(SKIPPED, u32(5) .. str "c") .. done))
    assert.equal("b\n", tree())
    assert.equal("more", feed(file("cut", "half of it")))
    assert.equal("b\n", tree())
  end)
end)
