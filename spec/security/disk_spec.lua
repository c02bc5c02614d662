-- All that can be written counts against one size and one number of files.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

-- bwrap makes /dev of its own, read-only, and gives /dev/shm a part of the size.
local native = support.isolation == "native"

describe("disk", function()
  helper.deadline(30)
  helper.no_leaks()

  local SIZE = 8 * 1024 * 1024
  local PLACES = { "/workspace", "/tmp", "/", "/dev", "/dev/shm", "/run", "/var/tmp", "/var",
    "/etc" }

  local function fill(box, mode, places)
    local args = { mode }
    for _, place in ipairs(places) do
      args[#args + 1] = place
    end
    local total, rows = 0, {}
    local result = support.try(box, "disk", args)
    for place, count, word in result.stdout:gmatch "(%S+) (%d+) (%S+)\n" do
      total = total + tonumber(count)
      rows[#rows + 1] = { place = place, count = tonumber(count), word = word }
    end
    assert.equal(#places, #rows, result.stdout .. result.stderr)
    return total, rows
  end

  for _, place in ipairs(PLACES) do
    it("is full at its size in " .. place, function()
      local box = moonsand.assert(moonsand.create { limits = { disk = SIZE } })
      local total, rows = fill(box, "bytes", { place })
      box:close()
      local least = (native or place:sub(1, 4) ~= "/dev") and SIZE / 2 or place == "/dev" and -1 or SIZE / 9
      assert.equal(least < 0 and "EROFS" or "ENOSPC", rows[1].word)
      assert.is_true(total <= SIZE and total > least, tostring(total))
    end)
  end

  it("is one for all places", function()
    local box = moonsand.assert(moonsand.create { limits = { disk = "8M" } })
    local total, rows = fill(box, "bytes", PLACES)
    for _, row in ipairs(rows) do
      assert.equal(row.place == "/dev" and not native and "EROFS" or "ENOSPC", row.word, row.place)
    end
    assert.is_true(total <= SIZE, tostring(total))
    -- Full, and the engine goes on: programs run, and what is removed can be written again.
    assert.equal("still\n", moonsand.assert(box:exec "echo still").stdout)
    assert.is_false(moonsand.assert(box:exec "head -c 1M /dev/zero >/tmp/more").ok)
    moonsand.assert(box:exec "rm -f /workspace/fill")
    assert.is_true(moonsand.assert(box:exec "head -c 1M /dev/zero >/tmp/more").ok)
    box:close()
  end)

  helper.native_it("bounds the number of files everywhere", function()
    local box = moonsand.assert(moonsand.create { limits = { inodes = 500 } })
    local total, rows = fill(box, "inodes", { "/tmp", "/dev/shm", "/workspace", "/" })
    for _, row in ipairs(rows) do
      assert.equal("ENOSPC", row.word, row.place)
    end
    assert.is_true(total <= 500, tostring(total))
    assert.is_true(moonsand.assert(box:exec "true").ok)
    box:close()
  end)

  it("has no writable file system besides", function()
    local box = moonsand.assert(moonsand.create())
    local text = moonsand.assert(box:exec [[
      while read -r device path kind flags rest; do
        case $kind,$flags in
        tmpfs,rw*) test "$path" = / || echo "$path $kind" ;;
        proc,* | devpts,* | *,ro,* | *,ro) ;;
        *) test -c "$path" || echo "$path $kind $flags" ;;
        esac
      done </proc/self/mounts
      find /dev/pts /proc/self -xdev -maxdepth 0 -writable
      touch /dev/pts/x /proc/x 2>/dev/null; true]]).stdout
    box:close()
    -- a directory of devpts that belongs to the sandbox takes no files all the same
    assert.equal(native and "" or "/dev/shm tmpfs\n/dev/pts\n", (text:gsub("/proc/self\n", "")))
  end)

  it("is refused when it makes no sense", function()
    for _, value in ipairs { "lots", -1 } do
      local box, _, code = moonsand.create { limits = { disk = value } }
      assert.is_nil(box)
      assert.equal("invalid", code)
    end
  end)
end)
