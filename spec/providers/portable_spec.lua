--- The same suite where the provider can do nothing but start programs: what portable.lua does.
require("moonsand").register("bare", require "providers.bare")
require "providers.suite" ("bare", {
  create = { provider = "bare" },
  lacks = { "pause", "resume", "snapshot", "set_lifetime", "url", "background" },
})

describe("moonsand.portable", function()
  it("takes no number of a stranger's stat that no file has", function()
    local look, shell = require "moonsand.portable.look", require "moonsand.portable.shell"
    local run, many, said = shell.run, ("9"):rep(300), nil
    shell.run = function()
      return ("1\0/x\0%s root root 2026-11-22 00:00:00.5 +0000 /x\n\0\0"):format(said)
    end
    finally(function()
      shell.run = run
    end)
    said = "81a4 5 0 0 1700000000"
    local entry = assert(look.stat({}, "/x", false, {}))
    assert.same({ "file", 5, "0644", 1700000000.5 },
      { entry.type, entry.size, entry.permissions, entry.modified_at })
    for _, line in ipairs { "81a4 %s 0 0 0", "81a4 5 0 0 %s", "%s 5 0 0 0" } do
      said = line:format(many)
      assert.equal("protocol", (select(3, look.stat({}, "/x", false, {}))), line)
    end
  end)
end)
