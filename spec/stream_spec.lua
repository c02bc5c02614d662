-- Streams: what read, chunk, lines and chunks give of a program's output, byte for byte.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local fails = support.fails

--- Asserts that fn raises, with this text, at one of its own lines.
local function blames(fn, text)
  local ok, err = pcall(fn)
  assert.is_false(ok, "it did not raise: " .. text)
  local line, message = tostring(err):match "stream_spec%.lua:(%d+): moonsand: (.*)$"
  assert.is_truthy(line, "not at the caller's line: " .. tostring(err))
  local info = debug.getinfo(fn, "S")
  assert.is_true(tonumber(line) >= info.linedefined and tonumber(line) <= info.lastlinedefined,
    "not at the caller's line: " .. err)
  assert.is_truthy(message:find(text, 1, true), ("%q lacks %q"):format(message, text))
end

describe("moonsand.stream", function()
  helper.deadline(30)
  helper.no_leaks()

  describe("of a program", function()
    local box

    before_each(function()
      box = moonsand.assert(moonsand.create())
    end)
    after_each(function()
      box:close()
    end)

    --- The output stream of a program that gives these bytes back.
    local function stream(bytes)
      local p = moonsand.assert(box:start({ "cat" }, { stdin = bytes }))
      return p.stdout, p
    end

    --- What the reads of `io` would give: the oracle. (LuaJIT's own loses what follows a NUL.)
    local function oracle(bytes)
      local at = 1
      return function(what)
        if at > #bytes then
          return nil
        end
        local from = at
        if type(what) == "number" then
          at = from + what
          return bytes:sub(from, at - 1)
        end
        local newline = bytes:find("\n", from, true)
        at = (newline or #bytes) + 1
        return bytes:sub(from, newline and what:sub(-1) == "l" and newline - 1 or at - 1)
      end
    end

    local contents = {
      "", "\n", "\n\n", "a", "a\n", "a\nb", "one\ntwo\n\nfour", "x\r\ny\r\n", "\r", "\0",
        "\0\n\0", "a\0b\nc\0\n",
      ("\255\254\n"):rep(3), ("long"):rep(20000) .. "\n" .. ("er"):rep(100000) .. "\nend",
      ("l\n"):rep(50000), (" "):rep(65536) .. "\n", (" "):rep(65535) .. "\nx",
    }

    describe(":read", function()
      for _, what in ipairs { "l", "L", "*l", "*L", 1, 2, 7, 100000 } do
        it(("gives what io gives, for %s"):format(tostring(what)), function()
          for _, bytes in ipairs(contents) do
            if type(what) ~= "number" or #bytes / what < 20000 then
              local s, expect = stream(bytes), oracle(bytes)
              local count = 0
              repeat
                local expected, got, message = expect(what), s:read(what)
                count = count + 1
                if expected ~= got or message then
                  assert.equal(expected, got, ("read %d of %q…"):format(count, bytes:sub(1, 20)))
                  assert.is_nil(message)
                end
              until expected == nil
              assert.is_nil((s:read(what)))
            end
          end
        end)
      end

      it("gives a line without its end by default", function()
        local s = stream "one\ntwo\n"
        assert.equal("one", s:read())
        assert.equal("two", s:read(nil, { timeout = 20 }))
        assert.is_nil(s:read())
        assert.equal(1, (select("#", s:read()))) -- nil alone is the end
        local data, message = s:read()
        assert.is_nil(data)
        assert.is_nil(message)
      end)

      it("gives all, and then nothing for ever", function()
        for _, what in ipairs { "a", "*a" } do
          for _, bytes in ipairs(contents) do
            local s = stream(bytes)
            assert.is_true(bytes == s:read(what))
            assert.equal("", s:read(what))
            assert.equal("", s:read(what))
            assert.is_nil((s:read()))
          end
        end
      end)

      it("gives nothing for 0 bytes, and nil at the end", function()
        local s = stream "ab"
        assert.equal("", s:read(0))
        assert.equal("ab", s:read(2))
        assert.is_nil((s:read(0)))
        assert.is_nil((stream(""):read(0)))
      end)

      it("can change its mind", function()
        local s = stream "one\ntwo\n\0three\nfour\nrest\nof it"
        assert.equal("one\n", s:read "L")
        assert.equal("t", s:read(1))
        assert.equal("wo", s:read "l")
        assert.equal("\0th", s:read(3))
        assert.equal("ree", s:read())
        assert.equal("four\nrest\nof it", s:read "a")
      end)

      it("gives fewer bytes only at the end", function()
        local p = moonsand.assert(box:start
          "printf 12; sleep 0.02; printf 345; sleep 0.02; printf 6789")
        assert.equal("123456", p.stdout:read(6))
        assert.equal("789", p.stdout:read(6))
        assert.is_nil((p.stdout:read(6)))
      end)

      it("puts together what comes in pieces", function()
        local p = moonsand.assert(box:start
          "printf one; sleep 0.02; printf ' line\\ntw'; sleep 0.02; printf o; sleep 0.02")
        assert.equal("one line", p.stdout:read())
        assert.equal("two", p.stdout:read())
        assert.is_nil((p.stdout:read()))
      end)

      it("refuses lines that are too long, which stay readable", function()
        local s = stream(("x"):rep(5000) .. "\nshort\n" .. ("y"):rep(101) .. "\n"
          .. ("z"):rep(100) .. "\n")
        local message = fails("too_large", s:read("l", { max_line = 4999 }))
        assert.is_truthy(message:find "4999")
        fails("too_large", s:read("L", { max_line = "4K" }))
        assert.equal(("x"):rep(5000), s:read("l", { max_line = 5000 }))
        assert.equal("short", s:read("l", { max_line = 5 }))
        fails("too_large", s:read("l", { max_line = 100 }))
        assert.equal(("y"):rep(100), s:read(100))
        assert.equal("y\n", s:read "L")
        assert.equal(("z"):rep(100) .. "\n", s:read("L", { max_line = 100 }))
        assert.is_nil((s:read()))
      end)

      it("has a longest line of 1 MiB if nothing is said", function()
        local mib = 1024 * 1024
        local s = stream(("a"):rep(mib) .. "\n" .. ("b"):rep(mib + 1) .. "\nend\n")
        assert.equal(mib, #s:read())
        fails("too_large", s:read())
        fails("too_large", s:read())
        local count = 0
        while count < mib + 1 do
          local piece = assert(s:read(math.min(100000, mib + 1 - count)))
          assert.is_nil(piece:find "[^b]")
          count = count + #piece
        end
        assert.equal("", s:read())
        assert.equal("end", s:read())
        s = stream(("c"):rep(3 * mib)) -- no newline at all
        fails("too_large", s:read())
        assert.equal(3 * mib, #s:read "a")
        s = stream(("d"):rep(2 * mib) .. "\nx\n")
        assert.equal(2 * mib, #s:read("l", { max_line = "4M" }))
        assert.equal("x", s:read())
      end)

      it("refuses more than all that may be, which stays readable", function()
        local s = stream(("x"):rep(300000))
        fails("too_large", s:read("a", { max = 299999 }))
        fails("too_large", s:read("a", { max = "100K" }))
        assert.equal("xx", s:read(2))
        assert.equal(299998, #s:read("a", { max = 299998 }))
        local p = moonsand.assert(box:start("read x; head -c 2000 /dev/zero",
          { max_output = 1000 }))
        fails("timeout", p.stdout:read(1, 0)) -- from now on it is read, and not cut
        assert(p.stdin:write "\n")
        fails("too_large", p.stdout:read "a")
        assert.equal(2000, #p.stdout:read("a", { max = 2000 }))
      end)

      it("refuses what is no format", function()
        local s = stream ""
        for text, what in pairs {
          ["cannot read 'x'"] = "x",
          ["cannot read 'n'"] = "n",
          ["cannot read ''"] = "",
          ["cannot read -1 bytes"] = -1,
          ["cannot read 1.5 bytes"] = 1.5,
          ["bytes"] = math.huge,
          ["cannot read true"] = true,
        } do
          blames(function()
            local data = s:read(what)
            return data
          end, text)
          blames(function()
            local lines = s:lines(what)
            return lines
          end, text)
        end
        fails("invalid", s:read("l", { max_line = "long" }))
        blames(function()
          local data = s:read("l", { maxline = 5 })
          return data
        end, "unknown option 'maxline' (did you mean 'max_line'?)")
        blames(function()
          local data = s:read("l", { timeout = -1 })
          return data
        end, "timeout")
        s:read "a"
      end)
    end)

    describe(":chunk", function()
      it("gives what there is, at most 256 KiB", function()
        local p = moonsand.assert(box:start "printf one; read x; printf two")
        assert.equal("one", p.stdout:chunk())
        fails("timeout", p.stdout:chunk(0.02))
        assert(p.stdin:write "\n")
        assert.equal("two", p.stdout:chunk())
        assert.is_nil((p.stdout:chunk()))
        assert.is_nil((p.stdout:chunk()))
        p.stdin:close()
        p = moonsand.assert(box:start { "head", "-c", "5000000", "/dev/zero" })
        local total = 0
        while true do
          local data, message = p.stdout:chunk()
          if not data then
            assert.is_nil(message)
            break
          end
          assert.is_true(#data >= 1 and #data <= 256 * 1024)
          total = total + #data
        end
        assert.equal(5000000, total)
      end)

      it("leaves nothing out and changes nothing", function()
        local bytes = {}
        for i = 0, 255 do
          bytes[#bytes + 1] = string.char(i)
        end
        bytes = table.concat(bytes):rep(8000) -- 2 MB
        local s, got = stream(bytes), {}
        for data in s:chunks() do
          got[#got + 1] = data
        end
        assert.is_true(bytes == table.concat(got))
      end)
    end)

    describe(":lines", function()
      it("gives what io.lines gives", function()
        for _, bytes in ipairs(contents) do
          local s, expect = stream(bytes), oracle(bytes)
          for line in s:lines() do
            local expected = expect "l"
            if line ~= expected then
              assert.equal(expected, line)
            end
          end
          assert.is_nil(expect "l")
        end
      end)

      it("takes formats and limits", function()
        local got = {}
        for line in stream("a\nb\n\nc"):lines "L" do
          got[#got + 1] = line
        end
        assert.same({ "a\n", "b\n", "\n", "c" }, got)
        got = {}
        for piece in stream("abcdefgh"):lines(3) do
          got[#got + 1] = piece
        end
        assert.same({ "abc", "def", "gh" }, got)
        got = {}
        for all in stream("x\ny"):lines "a" do
          got[#got + 1] = all
        end
        assert.same({ "x\ny" }, got)
        local it = stream("short\nmuch too long\nend\n"):lines("l", { max_line = 5 })
        assert.equal("short", it:next())
        fails("too_large", it:next())
        blames(function()
          local lines = stream(""):lines("l", { max_line = "x" })
          return lines
        end, "max_line")
      end)

      it("leaves the stream where it was after a break", function()
        local s = stream "1\n2\n3\n4\n"
        for line in s:lines() do
          if line == "2" then
            break
          end
        end
        assert.equal("3", s:read())
        local it = s:lines()
        assert.equal("4", it())
        it:close()
        assert.is_nil(it())
        assert.is_nil((it:next()))
      end)

      -- next() without options ignored those that lines() was given, and waited for ever.
      it("have the limits of lines for each step, unless next has its own", function()
        local p = moonsand.assert(box:start "printf x; read y")
        local lines = p.stdout:lines("l", { timeout = 0.03 })
        fails("timeout", lines:next())
        fails("timeout", lines:next(0.01))
        fails("timeout", lines:next { timeout = 0 })
        local ok, err = pcall(lines)
        assert.is_false(ok)
        assert.equal("timeout", err.code)
        assert.is_truthy(tostring(err):find "timed out")
        assert.equal("x", p.stdout:chunks({ timeout = 20 }):next())
        fails("timeout", p.stdout:chunks({ timeout = 0.02 }):next())
        blames(function()
          local line = lines:next { tmeout = 1 }
          return line
        end, "did you mean 'timeout'?")
        p:close()
      end)

      it("have huge lines across the borders of what is read at once", function()
        local lengths = { 65535, 65536, 65537, 262143, 262144, 262145, 0, 1048576, 1 }
        local parts = {}
        for i, length in ipairs(lengths) do
          parts[i] = (string.char(96 + i)):rep(length) .. "\n"
        end
        local i = 0
        for line in stream(table.concat(parts)):lines() do
          i = i + 1
          assert.is_true(line .. "\n" == parts[i], "line " .. i)
        end
        assert.equal(#lengths, i)
      end)
    end)

    describe("with nothing in it", function()
      it("has an end", function()
        for _, read in ipairs {
          function(s)
            return s:read()
          end,
          function(s)
            return s:read "L"
          end,
          function(s)
            return s:read(1)
          end,
          function(s)
            return s:chunk()
          end,
          function(s)
            return s:lines()()
          end,
          function(s)
            return s:chunks()()
          end,
          function(s)
            return s:lines():next()
          end,
        } do
          local data, message = read(stream "")
          assert.is_nil(data)
          assert.is_nil(message)
        end
        assert.equal("", stream(""):read "a")
      end)
    end)

    describe(":close", function()
      it("ends the program's wish to write, and is idempotent", function()
        local p = moonsand.assert(box:start { "yes" })
        assert.equal("y", p.stdout:read())
        p.stdout:close()
        p.stdout:close()
        assert.is_truthy(tostring(p.stdout):find "closed")
        local r = moonsand.assert(p:wait())
        assert.equal("PIPE", r.signal)
        assert.is_false(r.pipes_held)
      end)

      it("tells who reads that it was closed", function()
        local p = moonsand.assert(box:start "cat")
        moonsand.run(function()
          local reader = moonsand.task(function()
            return p.stdout:read()
          end)
          local writer = moonsand.task(function()
            return p.stderr:read "a"
          end)
          moonsand.sleep(0.001)
          p.stdout:close()
          p.stderr:close()
          fails("closed", reader:wait())
          fails("closed", writer:wait())
        end)
        p:close()
      end)
    end)

    it("says what it is", function()
      local p = moonsand.assert(box:start "true")
      assert.equal("moonsand.Stream (stdout)", tostring(p.stdout))
      fails("unsupported", p.stdout:seek "set")
      p:wait()
    end)
  end)
end)
