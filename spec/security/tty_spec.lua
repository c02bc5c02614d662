-- Terminals: what a sandbox types must not reach the host's.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local native = support.native()

describe("terminals", function()
  helper.deadline(30)
  helper.no_leaks()

  local expected = {
    ["open /dev/tty"] = "ENXIO", ["open /dev/console"] = "ENOENT", ["open /dev/tty1"] = "ENOENT",
    ["terminals of others"] = "ENOENT", ["own terminal"] = "OK",
    ["own controlling terminal"] = "OK", ["TIOCSTI"] = "EPERM", ["TIOCSTI with high bits"] = "EPERM",
    ["TIOCLINUX"] = "EPERM", ["TIOCCONS"] = "EPERM", ["TIOCSETD"] = "EPERM",
  }

  it("of its own cannot be typed into", function()
    local box = moonsand.assert(moonsand.create())
    support.refused(support.answers(support.try(box, "tty")), expected)
    box:close()
  end)

  it("of the host gets nothing typed, also with inherited output", function()
    local command = support.command [[
      local support = require "support.init"
      local moonsand = require "moonsand"
      local box = assert(moonsand.create())
      local answers = support.answers(support.try(box, "tty"))
      local path = support.put(box, support.probe "tty")
      assert(box:exec({ path }, { stdout = "inherit", stderr = "inherit" }))
      for name, word in pairs(answers) do io.stdout:write("<", name, "=", word, ">\n") end
      box:close()
    ]]
    local text, typed = native.on_pty(20, "sh", "-c", command)
    assert.equal("", typed)
    for name, word in pairs(expected) do
      assert.truthy(text:find(("<%s=%s>"):format(name, word), 1, true), name .. "\n" .. text)
    end
  end)

  it("is nowhere a controlling one, and each program has a session of its own", function()
    local box = moonsand.assert(moonsand.create())
    local function session()
      local text = moonsand.assert(box:exec { "sh", "-c", "cat /proc/self/stat; cat /proc/$$/stat" }).stdout
      local shell, sid, tty = text:match "\n(%d+) %(sh%) %a %d+ %d+ (%d+) (%-?%d+)"
      assert.equal(shell, sid)
      assert.equal("0", tty)
      return sid
    end
    assert.are_not.equal(session(), session())
    box:close()
  end)
end)
