--- What comes from inside is taken apart in linear time, whatever it is. Each of these was a pattern
--- once that a sandbox could keep the host busy with: a thousand bytes of stderr for seven seconds.

local helper = require "helper"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local paths = require "moonsand.paths"
local pipes = require "moonsand.providers.pipe"
local portable = require "moonsand.portable"
local texts = require "moonsand.text"

--- What the old patterns said; on short texts they were quick.
local old = {
  last_line = function(text)
    return text:match "([^\n]*%S[^\n]*)%s*$"
  end,
  reason = function(text)
    return (text:match "^.*%S" or ""):match ": ([^:\n]+)%s*$"
  end,
  variables = function(text)
    local variables = {}
    for key, value in text:gmatch "([^=%z]+)=([^%z]*)%z" do
      variables[key] = value
    end
    return variables
  end,
  words = function(text)
    local list = {}
    for word in text:gmatch "([^%z]*)%z" do
      list[#list + 1] = word
    end
    list[#list + 1] = text:match "([^%z]+)$"
    return list
  end,
  name = function(path)
    return path:match "([^/]+)/*$" or "/"
  end,
}

--- Texts of a few letters, where they matter.
local function random_text(letters)
  local list = {}
  for i = 1, math.random(0, 12) do
    local at = math.random(#letters)
    list[i] = letters:sub(at, at)
  end
  return table.concat(list)
end

local SIZE = 64 * 1024

--- Long runs of what patterns run over, with and without what ends them.
local hostile = {}
for _, unit in ipairs { "a", " ", "\n", "\r", "/", ":", ": ", "7", "7 ", "=", "\0", "'", "\t", "\255",
  "find: /", "cp: '/", "tar: ./: ", "\n ", "\nimport", "import\n", "a\nb", "up 1" } do
  local run = unit:rep(math.floor(SIZE / #unit))
  for _, ends in ipairs { "", "x", "\nb", " ", ": ", "\0" } do
    hostile[#hostile + 1] = run .. ends
  end
end

--- Every hostile text, with a bound that the old patterns would pass by hours. In seconds of this
--- process, so that a busy machine does not matter.
local function quick(fn)
  for _, text in ipairs(hostile) do
    local began = os.clock()
    fn(text)
    local took = os.clock() - began
    assert.is_true(took < 2, ("%.1f s of %q…"):format(took, text:sub(1, 16)))
  end
end

describe("moonsand.text", function()
  helper.deadline(300)

  for name, letters in pairs { last_line = "ab \t\r\n", reason = "ab: :\n", words = "ab\0\0",
    name = "ab//" } do
    it(name .. " says what the pattern said", function()
      local fn = texts[name] or paths[name]
      for _ = 1, 3000 do
        local text = random_text(letters)
        assert.same(old[name](text), fn(text), ("%q"):format(text))
      end
    end)
  end

  it("reads an environment with whatever in it", function()
    assert.same({ A = "1", B = "x=y\n", C = "" }, texts.variables "A=1\0B=x=y\n\0C=\0nothing\0=x\0\0")
    for _ = 1, 3000 do
      local text = "A=1\0" .. random_text "ab\0" .. "\0"
      assert.same(old.variables(text), texts.variables(text))
    end
  end)

  for name, fn in pairs { last_line = texts.last_line, reason = texts.reason, blame = texts.blame,
    variables = texts.variables, words = texts.words, ["paths.name"] = paths.name,
    ["paths.bare"] = paths.bare } do
    it(name .. " is quick with anything", function()
      quick(fn)
    end)
  end

  it("sizes are read quickly", function()
    local size = require("moonsand.options").size
    assert.equal(1536, size("max", " 1.5 KiB "))
    quick(function(text)
      assert.is_nil((size("max", text)))
    end)
  end)

  it("tells which JavaScript is a module, quickly", function()
    local node = require("moonsand.languages").by_name.node
    assert.is_table(node.variant "const a = 1\n  import\n{ b } from 'c'")
    assert.is_table(node.variant "export default 1")
    assert.is_nil(node.variant "import(1)\n export.x = 2")
    quick(node.variant)
  end)
end)

-- ---------------------------------------------------------------- who uses them

describe("a failure's last words", function()
  local box

  helper.deadline(60)
  helper.no_leaks(function()
    box:close()
  end)
  before_each(function()
    box = assert(moonsand.create())
  end)

  it("cost no more than the text is long", function()
    local began = os.clock()
    local r, message, code = box:exec("printf '%4000s\\nb' x | tr ' ' a >&2; exit 1", { check = true })
    assert.same({ n = 3, nil, "exited with 1: b", "exit" }, { n = 3, r, message, code })
    r, message = box:exec("head -c 300000 /dev/zero | tr '\\0' ' ' >&2; exit 1", { check = true })
    assert.same({ n = 2, nil, "exited with 1" }, { n = 2, r, message })
    assert.is_true(os.clock() - began < 2)
  end)

  it("are not how an environment keeps the host busy", function()
    local session = assert(box:session())
    assert(session:exec([[mkdir /tmp/e; printf '#!/bin/sh\nhead -c 400000 /dev/zero | tr "\\0" a\n' \
      >/tmp/e/cat; chmod +x /tmp/e/cat; PATH=/tmp/e:$PATH]]))
    local began = os.clock()
    assert.same({}, session:getenv())
    assert.is_true(os.clock() - began < 2)
    session:close()
  end)
end)

--- A provider's driver in whose sandbox every command says this and ends with `code`.
local function liar(stdout, stderr, code)
  local driver = {}
  function driver.start()
    local program = { stdout = pipes.new(64 * 1024 * 1024), stderr = pipes.new(64 * 1024 * 1024) }
    for name, text in pairs { stdout = stdout, stderr = stderr } do
      if type(text) == "function" then -- it never ends
        program[name].take = text
      else
        program[name]:push(text)
        program[name]:finish()
      end
    end
    function program.ended()
      return { exit_code = code }
    end
    function program.signal()
      return true
    end
    return program
  end
  return driver
end

describe("moonsand.portable, of what a sandbox's commands say", function()
  helper.deadline(600)

  local calls = {
    stat = function(driver) return portable.files.stat(driver, "/x", true, {}, "stat") end,
    list = function(driver) return portable.files.list(driver, "/x", 1, 1000, {}) end,
    copy = function(driver) return portable.files.copy(driver, "/x", "/y", {}) end,
    ps = function(driver) return portable.ps(driver, {}) end,
    metrics = function(driver) return portable.metrics(driver, {}) end,
    environment = function(driver) return portable.environment(driver, {}) end,
  }
  for name, call in pairs(calls) do
    it(name .. " makes something or nothing, quickly", function()
      quick(function(text)
        call(liar(text, text, 1))
        call(liar("1 1.0 1\0" .. text, "find: " .. text, 0))
        call(liar("1\0/x\0" .. text .. "\0\0", "cp: " .. text, 0))
      end)
    end)
  end

  it("list does not count as far as it is told to", function()
    local list, _, code = calls.list(liar("1e300\0/x\0", "", 0))
    assert.is_nil(list)
    assert.equal("protocol", code)
  end)

  it("ps and metrics do not calculate with what is no number", function()
    local rows, _, why = calls.ps(liar("1 1..2 1\0\0", "", 0))
    assert.is_nil(rows)
    assert.equal("protocol", why)
    local metrics, _, code = calls.metrics(liar("up 1.2.3\nusec 1.1.1\ntotal 5\n", "", 0))
    assert.is_nil(metrics)
    assert.equal("protocol", code)
  end)

  it("grep finds what lies across pieces, and holds no more than one file", function()
    local count, total = 0, 0
    local mark, near
    local driver = liar(function()
      count = count + 1
      local data
      if count == 1 then
        data = mark .. "/large\0" .. mark:sub(1, 20)
      elseif count <= 1100 then
        near = near or (mark:sub(1, 31) .. "!"):rep(2048)
        data = near
      elseif count == 1101 then
        data = mark:sub(1, 7)
      elseif count == 1102 then
        data = mark:sub(8) .. "/small\0one\ntwo\n" .. mark .. "/more\0two" .. mark .. "/no\0two\0" .. mark
      else
        return nil, "eof"
      end
      total = total + #data
      return data
    end, "", 0)
    local start = driver.start
    function driver.start(_, spec)
      mark = spec.argv[#spec.argv]
      return start()
    end
    local began = os.clock()
    local list = assert(portable.files.grep(driver, "/", "two", true, 10, {}))
    assert.is_true(os.clock() - began < 10)
    assert.is_true(total > 64 * 1024 * 1024)
    local found = {}
    for i, hit in ipairs(list) do
      found[i] = hit.path .. ":" .. hit.line
    end
    assert.same({ "/more:1", "/small:2" }, found)
    assert.same({ { path = "/large", message = "File too large", code = "too_large" } }, list.skipped)
  end)

  it("looks at its limits while there is always more", function()
    local data = ("x"):rep(65536)
    local driver = liar(function()
      return data
    end, "", 0)
    local began = loop.now()
    local list, _, code = portable.files.grep(driver, "/", "x", true, 10,
      loop.limits { timeout = 0.1 })
    assert.is_nil(list)
    assert.equal("timeout", code)
    assert.is_true(loop.now() - began < 20)
  end)

  it("reads the messages of find and cp", function()
    local list = calls.list(liar("0\0\0", "find: '/x/a: b': Permission denied\n"
      .. "find: /x/c: Permission denied\nfind: \226\128\152/x/d\226\128\153: Permission denied\n", 0))
    local named = {}
    for i, skip in ipairs(list and list.skipped or {}) do
      named[i] = skip.path .. " " .. skip.code
    end
    assert.same({ "/x/a: b permission_denied", "/x/c permission_denied",
      "/x/d permission_denied" }, named)
    local copied = assert(calls.copy(liar("\0009\0",
      "cp: cannot open '/x/./a b' for reading: Permission denied\n", 0)))
    assert.same({ "/x/a b", 8 }, { copied.skipped[1].path, copied.entries })
  end)
end)

describe("callbacks of a program that is over", function()
  local callbacks = require "moonsand.process.callbacks"

  it("are given all that was left of it, but not what others write for ever", function()
    local given, ended = 0, false
    local handlers = { stdout = { function(data)
      given, ended = given + #(data or ""), data == nil
    end } }
    local pipe = pipes.new(1000)
    pipe:take("chunk", 0)
    pipe:push(("x"):rep(5000000))
    callbacks.finish(handlers, { stdout = pipe })
    assert.same({ 5000000, true }, { given, ended })
    given, ended = 0, false
    callbacks.finish(handlers, { stdout = { take = function()
      return ("x"):rep(65536)
    end } })
    assert.is_true(given >= 1024 * 1024 and ended)
  end)
end)
