-- moonsand.doctor(): what it says on a machine where sandboxes can be made.
-- (What it says where they cannot is in the specs of faults.)

local doctor = require "moonsand.doctor"
local helper = require "helper"
local moonsand = require "moonsand"

describe("moonsand.doctor", function()
  helper.deadline(20)
  helper.no_leaks()

  it("finds that this machine can make sandboxes", function()
    local report = moonsand.doctor()
    assert.is_true(report.ok, tostring(report))
    assert.is_true(#report >= 3)
    for _, finding in ipairs(report) do
      assert.equal("string", type(finding.name))
      assert.equal("boolean", type(finding.ok))
      assert.is_true(finding.ok, finding.name)
      assert.is_nil(finding.cause)
    end
  end)

  it("is text, a line for what works", function()
    local report = moonsand.doctor()
    local lines = 0
    for line in tostring(report):gmatch "[^\n]+" do
      lines = lines + 1
      assert.is_truthy(line:find "^ok +%S", line)
    end
    assert.equal(#report, lines)
  end)

  it("gives cause and fix for what does not", function()
    local report = doctor.examine(function()
      return doctor.unavailable("clone", require("moonsand.core").errno.ENOSPC)
    end)
    assert.is_false(report.ok)
    local bad
    for _, finding in ipairs(report) do
      bad = bad or not finding.ok and finding
    end
    assert.is_truthy(bad.cause:find("user.max_user_namespaces", 1, true))
    assert.is_truthy(bad.fix:find("sysctl", 1, true))
    local text = tostring(report)
    assert.is_truthy(text:find("NO   " .. bad.name, 1, true))
    assert.is_truthy(text:find("cause: " .. bad.cause, 1, true))
    assert.is_truthy(text:find("fix:   " .. bad.fix, 1, true))
  end)

  it("leaves nothing behind, however often it is asked", function()
    for _ = 1, 5 do
      assert.is_true(moonsand.doctor().ok)
    end
  end)
end)
