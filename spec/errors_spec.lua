-- How things fail: failures as values, mistakes that raise at the caller's line, codes.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local helper = require "helper"
local moonsand = require "moonsand"
local options = require "moonsand.options"
local signals = require "moonsand.signals"

local unpack = table.unpack or unpack

local CODES = {}
for code in ([[invalid unavailable unsupported not_found exists not_a_directory is_a_directory
  not_empty read_only loop busy permission_denied no_space too_large timeout cancelled exit signal
  output_limit resource_limit closed gone connection lost auth rate_limited quota conflict
  not_ready protocol provider]]):gmatch "%S+" do
  CODES[code] = true
end

local function line()
  return debug.getinfo(2, "l").currentline
end

describe("moonsand.errors", function()
  helper.deadline(20)

  describe(".fail", function()
    it("answers nil, the message, the code, and a detail with both", function()
      local answers = { n = select("#", errors.fail("busy", "later")), errors.fail("busy",
        "later") }
      assert.equal(4, answers.n)
      assert.is_nil(answers[1])
      assert.equal("later", answers[2])
      assert.equal("busy", answers[3])
      assert.same({ code = "busy", message = "later" }, answers[4])
    end)

    it("completes a detail", function()
      local detail = { path = "/x" }
      local _, _, _, got = errors.fail("exists", "there", detail)
      assert.equal(detail, got)
      assert.same({ code = "exists", message = "there", path = "/x" }, detail)
    end)
  end)

  describe(".errno", function()
    it("has a code of the table for every number", function()
      for name, number in pairs(core.errno) do
        local value, message, code, detail = errors.errno(number, "context")
        assert.is_nil(value)
        assert.is_true(CODES[code], name .. ": " .. code)
        assert.equal(code, errors.code(number))
        assert.equal("context: " .. core.strerror(number), message)
        assert.equal(code, detail.code)
      end
      assert.equal("provider", errors.code(9999))
    end)

    it("knows the usual ones", function()
      for name, code in pairs {
        ENOENT = "not_found", EEXIST = "exists", ENOTDIR = "not_a_directory",
          EISDIR = "is_a_directory",
        ENOTEMPTY = "not_empty", EROFS = "read_only", ELOOP = "loop", EBUSY = "busy",
        EACCES = "permission_denied", EPERM = "permission_denied", ENOSPC = "no_space",
        E2BIG = "too_large", EFBIG = "too_large", EINVAL = "invalid", ENAMETOOLONG = "invalid",
        ENOEXEC = "invalid", EPIPE = "closed", EMFILE = "unavailable",
      } do
        assert.equal(code, errors.code(core.errno[name]), name)
      end
    end)
  end)

  describe(".raise", function()
    it("blames the line that called the public function", function()
      local function public()
        errors.raise(2, "public: %s is no %s", "this", "that")
      end
      local here
      local ok, err = pcall(function()
        here = line() + 1
        public()
      end)
      assert.is_false(ok)
      assert.is_truthy(err:find(("errors_spec.lua:%d: moonsand: public: this is no that"):format(
        here), 1, true))
    end)

    it("takes a message as it is when there is nothing to put in", function()
      local _, err = pcall(errors.raise, 1, "100%")
      assert.is_truthy(err:find("moonsand: 100%", 1, true))
    end)
  end)

  describe("moonsand.assert", function()
    it("passes what is no failure", function()
      assert.same({ 1, "x", false }, { moonsand.assert(1, "x", false) })
      assert.equal(0, moonsand.assert(0))
      assert.equal("", moonsand.assert "")
    end)

    it("raises an error object with the fields of the detail", function()
      local result = {}
      local ok, err = pcall(moonsand.assert, errors.fail("exit", "exited with 1: oh",
        { result = result, id = "x" }))
      assert.is_false(ok)
      assert.is_true(errors.is_object(err))
      assert.equal("exit", err.code)
      assert.equal("exited with 1: oh", err.message)
      assert.equal("exited with 1: oh", tostring(err))
      assert.equal(result, err.result)
      assert.equal("x", err.id)
      assert.is_false(errors.is_object "text")
      assert.is_false(errors.is_object {})
    end)

    it("is like assert for the rest", function()
      for _, row in ipairs { { nil }, { false } } do
        local ok, err = pcall(moonsand.assert, unpack(row, 1, 1))
        assert.is_false(ok)
        assert.is_truthy(tostring(err):find "assertion failed!")
      end
      local ok, err = pcall(moonsand.assert, nil, "why")
      assert.is_false(ok)
      assert.is_truthy(tostring(err):find "why")
      local object = {}
      ok, err = pcall(moonsand.assert, false, object)
      assert.is_false(ok)
      assert.equal(object, err)
    end)

    it("leaves a failure that Lua's own assert can use, too", function()
      local ok, err = pcall(require("_G").assert, errors.fail("busy", "later"))
      assert.is_false(ok)
      assert.is_truthy(tostring(err):find "later")
    end)
  end)
end)

describe("moonsand.options", function()
  local KNOWN = { timeout = "number", cancel = "table", size = "number|string", fn = "callable",
    input = "file" }

  local function check(opts)
    local checked = options.check("box:call", opts, KNOWN)
    return checked
  end

  describe(".check", function()
    it("passes what is right, and never the caller's table changed", function()
      assert.same({}, check(nil))
      local opts = { timeout = 5, size = "1M", fn = print }
      assert.equal(opts, check(opts))
      assert.same({ timeout = 5 }, check(5))
      assert.same({ timeout = 0 }, check(0))
      assert.same({ timeout = math.huge }, check(math.huge))
      check { fn = setmetatable({}, { __call = function() end }), input = io.stdout, size = 1 }
    end)

    it("raises at the line of the caller", function()
      for text, opts in pairs {
        ["box:call: options must be a table, got string"] = "x",
        ["box:call: options must be a table, got boolean"] = true,
        ["unknown option 'tiemout' (did you mean 'timeout'?)"] = { tiemout = 1 },
        ["unknown option 'timeot' (did you mean 'timeout'?)"] = { timeot = 1 },
        ["unknown option 'szie' (did you mean 'size'?)"] = { szie = 1 },
        ["unknown option 'Size' (did you mean 'size'?)"] = { Size = 1 },
        ["unknown option 1"] = { "x" },
        ["option 'timeout' must be a number, got string"] = { timeout = "1" },
        ["option 'size' must be a number or string, got table"] = { size = {} },
        ["option 'fn' must be a callable, got table"] = { fn = {} },
        ["option 'fn' must be a callable, got string"] = { fn = "print" },
        ["option 'input' must be a file, got string"] = { input = "x" },
        ["option 'timeout' must be a number of seconds, not -1"] = -1,
        ["option 'timeout' must be a number of seconds, not -2"] = { timeout = -2 },
        ["option 'timeout' must be a number of seconds"] = 0 / 0,
        ["option 'cancel' must be a token"] = { cancel = {} },
      } do
        local here
        local ok, err = pcall(function()
          here = line() + 1
          local checked = check(opts)
          return checked
        end)
        assert.is_false(ok, text)
        assert.is_truthy(err:find(("errors_spec.lua:%d: moonsand: "):format(here), 1, true), err)
        assert.is_truthy(err:find(text, 1, true), err)
      end
      local _, err = pcall(check, { nothing_like_it = 1 })
      assert.is_nil(err:find "did you mean")
    end)
  end)

  describe(".nearest", function()
    it("is near, or nothing", function()
      local known = { timeout = 1, cwd = 1, env = 1, stdout = 1, on_stdout = 1, max_output = 1 }
      for given, expected in pairs {
        timout = "timeout", tiemout = "timeout", cdw = "cwd", envs = "env", stdot = "stdout",
        onstdout = "on_stdout", maxoutput = "max_output", Timeout = "timeout",
      } do
        assert.equal(expected, options.nearest(given, known), given)
      end
      for _, given in ipairs { "x", "", "directory", "qqq", "tt" } do
        assert.is_nil(options.nearest(given, known), given)
      end
    end)
  end)

  describe(".size", function()
    it("reads bytes and units of 1024", function()
      for given, expected in pairs {
        [0] = 0, [5] = 5, [1.9] = 1, ["0"] = 0, ["512"] = 512, ["1K"] = 1024, ["1k"] = 1024,
        ["1.5M"] = 1572864, ["2G"] = 2147483648, ["1T"] = 1099511627776, [" 3 M "] = 3145728,
        ["4KiB"] = 4096, ["4KB"] = 4096,
      } do
        local got = options.size("size", given)
        assert.equal(expected, got, tostring(given))
        assert.is_true(not math.type or math.type(got) == "integer")
      end
    end)

    it("answers invalid for the rest", function()
      for _, given in ipairs { "", "x", "-1", -1, 0 / 0, math.huge, "1X", "1 2", "K", "1e3",
        "9999999T", "0x10" } do
        local value, message, code = options.size("limits.disk", given)
        assert.is_nil(value, tostring(given))
        assert.equal("invalid", code)
        assert.is_truthy(message:find("limits.disk", 1, true))
      end
    end)
  end)

  describe(".quote", function()
    it("shows any value in one short printable line", function()
      assert.equal("'x y'", options.quote "x y")
      assert.equal("'\\x00\\x0a\\xff'", options.quote "\0\n\255")
      assert.equal("5", options.quote(5))
      assert.equal("nil", options.quote(nil))
      local long = options.quote(("x"):rep(1000))
      assert.is_true(#long < 100)
      assert.is_truthy(long:find("...", 1, true))
    end)
  end)
end)

describe("moonsand.signals", function()
  it("have names and numbers", function()
    for given, number in pairs {
      TERM = 15, SIGTERM = 15, term = 15, sigkill = 9, [9] = 9, HUP = 1, [64] = 64, RT0 = 34,
        SIGRT2 = 36,
    } do
      assert.equal(number, signals.number(given))
    end
    for name, number in pairs(signals.numbers) do
      assert.equal(name, signals.name(number))
    end
    assert.equal("RT2", signals.name(36))
    for _, given in ipairs { "", "NONE", 0, 65, -1, 1.5, "9", true, {} } do
      local value, _, code = signals.number(given)
      assert.is_nil(value)
      assert.equal("invalid", code)
    end
  end)
end)
