-- moonsand.doctor(): what it says on a machine where sandboxes can be made.
-- (What it says where they cannot is in the specs of faults.)

local doctor = require "moonsand.doctor"
local helper = require "helper"
local moonsand = require "moonsand"

describe("moonsand.doctor", function()
  helper.deadline(20)
  setup(moonsand.doctor) -- what it starts once is there now
  helper.no_leaks()

  it("finds that this machine can make sandboxes", function()
    local report = moonsand.doctor()
    assert.is_true(report.ok, tostring(report))
    assert.is_true(#report >= 3)
    for _, finding in ipairs(report) do
      assert.equal("string", type(finding.name))
      assert.equal("boolean", type(finding.ok))
      if not finding.name:find "^limits" then
        assert.is_true(finding.ok, finding.name)
      end
      assert.equal(finding.ok, finding.cause == nil)
    end
  end)

  it("tells by what the limits of a whole sandbox are held, or why they are not", function()
    local found = {}
    for _, finding in ipairs(moonsand.doctor()) do
      local name, by = finding.name:match "^limits%.(%a+) of a sandbox(.*)$"
      if name then
        found[name] = true
        local box, _, _, detail = moonsand.create { limits = { [name] = name == "memory" and "64M" or 1 } }
        if box then
          assert.equal(", by " .. box:info().limits[name].by, by)
          box:close()
        else
          assert.same({ false, detail.cause, detail.fix, "" }, { finding.ok, finding.cause, finding.fix, by })
        end
      end
    end
    assert.same({ memory = true, cpus = true }, found)
  end)

  it("is text, a line for what works", function()
    local report = moonsand.doctor()
    local lines, failures = 0, 0
    for line in tostring(report):gmatch "[^\n]+" do
      if line:find "^ok +%S" then
        lines = lines + 1
      elseif line:find "^NO +limits" then
        lines, failures = lines + 1, failures + 1
      else
        assert.is_truthy(line:find "^ +cause: " or line:find "^ +fix: ", line)
      end
    end
    assert.equal(#report, lines)
    for _, finding in ipairs(report) do
      failures = failures - (finding.ok and 0 or 1)
    end
    assert.equal(0, failures)
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
