-- The host's file calls, made in a sandbox that wants them to hang, to read what is elsewhere, or to
-- fill the host: files that are something else by the time they are opened, trees made to be copied out.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

describe("files", function()
  local box, files, probe, dir, count

  helper.deadline(60)
  helper.no_leaks(function()
    box:close()
    support.run("rm -rf " .. dir)
  end)

  before_each(function()
    count = (count or 0) + 1
    dir = support.directory() .. "/taken-" .. count
    support.run("mkdir -p " .. dir .. "/in")
    box = moonsand.assert(moonsand.create())
    files = box.files
    probe = support.put(box, support.probe "files")
  end)

  local function sh(command, ...)
    return moonsand.assert(box:exec({ "sh", "-c", command, ... }, { timeout = 20 })).stdout
  end

  local function racer(...)
    local p = moonsand.assert(box:start { probe, ... })
    assert.equal("ready", p.stdout:read("l", 10))
    return p
  end

  --- Calls that must all answer in time, whatever they answer; `data` may only be what was there.
  local function attack(path, allowed)
    local calls = {
      function() return files:read(path, { timeout = 20, max = "1M" }) end,
      function() return files:write(path, "mine\n", { timeout = 20, atomic = false }) end,
      function() return files:stat(path, { timeout = 20 }) end,
      function() return files:copy(path, "copy", { timeout = 20 }) end,
      function() return files:download(path, dir .. "/out", { timeout = 20 }) end,
      function() return files:upload(dir .. "/in", path .. "-up", { timeout = 20 }) end,
      function() return files:chmod(path, "600", { timeout = 20 }) end,
      function() return box:exec("true", { cwd = path, timeout = 20 }) end,
      function() return files:search(path .. "/*", { timeout = 20 }) end,
    }
    local codes = {}
    local stop, rounds = core.now() + 0.6, 0
    while core.now() < stop or rounds < 5 do
      rounds = rounds + 1
      for i, call in ipairs(calls) do
        local begun = core.now()
        local value, _, code = call()
        codes[code or "ok"] = true
        assert.is_true(core.now() - begun < 15, ("call %d on %s"):format(i, path))
        if i == 1 and value then
          assert.is_true(allowed[value] ~= nil, "read " .. value:sub(1, 100))
        end
      end
    end
    assert.is_nil(codes.protocol)
    assert.is_nil(codes.provider)
    assert.is_nil(codes.timeout)
    assert.equal("fine\n", moonsand.assert(box:exec "echo fine").stdout)
  end

  for name, make in pairs {
    ["a FIFO"] = "mkfifo other", ["a device that never ends"] = "ln -s /dev/zero other",
    ["a terminal"] = "ln -s /dev/ptmx other", ["a directory"] = "mkdir other",
    ["a magic link"] = "ln -s /proc/1/root other", ["its reader's own memory"] = "ln -s /proc/self/mem other",
    ["a file of 8 EiB"] = "truncate -s 9223372036854775807 other 2>&- || truncate -s 8796093022207 other",
    ["a link to itself"] = "ln -s other other",
  } do
    it("that turn into " .. name .. " while they are opened give what was there, or an error", function()
      sh("printf 'mine\\n' >f; " .. make)
      local p = racer("swap", "f", "other")
      attack("f", { ["mine\n"] = true, [""] = true })
      p:close()
      local root = support.run("find " .. dir .. " ! -type d ! -type f")
      assert.equal("", root)
    end)
  end

  it("of 8 EiB are too large, at once, for each call that would carry their bytes", function()
    sh "truncate -s 9223372036854775807 big 2>&- || truncate -s 8796093022207 big; mkdir t; ln big t/big"
    local begun = core.now()
    assert.equal("too_large", select(3, files:read "big"))
    local ok, _, code = files:download("big", dir .. "/big")
    assert.is_true(not ok and code == "too_large", code)
    ok, _, code = files:download("t", dir .. "/t", { max = "8M" })
    assert.is_true(not ok and code == "too_large", code)
    assert.is_true(core.now() - begun < 10)
    assert.is_true(tonumber((support.run("du -sk " .. dir):match "%d+")) < 1000)
    assert.is_true(moonsand.assert(files:stat "big").size > 2 ^ 42)
    assert.is_true(files:remove "big")
  end)

  it("with names that are made for others' eyes and shells come out under those names, and run nothing", function()
    local names = { "-rf", "$(touch owned)", "`touch owned`", ";touch owned", "a\nb", "\27[2J", "\255\254",
      "...", " ", "*", "CON", "a\\b", "%s%n", "|touch owned", "~", ("n"):rep(255) }
    for _, name in ipairs(names) do
      moonsand.assert(files:write("tree/" .. name, "x"))
    end
    moonsand.assert(files:download("tree", dir .. "/tree"))
    for _, name in ipairs(names) do
      assert.is_true(support.exists(dir .. "/tree/" .. name), ("%q"):format(name))
    end
    assert.is_false(support.exists "owned")
    assert.is_false(support.exists(dir .. "/tree/owned"))
    moonsand.assert(files:upload(dir .. "/tree", "back"))
    assert.equal(#names, #moonsand.assert(files:list "back"))
    assert.equal("", sh "find / -xdev -name owned 2>/dev/null")
  end)

  it("of a tree that turns into something else on its way out stay below their directory", function()
    support.write(dir .. "/victim", "of the host")
    sh([[mkdir -p t/d; echo x >t/d/f; echo x >t/f
      ln -s "$0" l; mkdir -p alt; ln -s "$0" alt/f; ln -s / up; mkfifo pipe]], dir .. "/victim")
    local racers = { racer("swap", "t/d", "up"), racer("swap", "t/f", "l"), racer("swap", "alt", "pipe") }
    for i = 1, 30 do
      files:download("t", dir .. "/out", { timeout = 10 })
      files:download(".", dir .. "/all", { timeout = 10, limit = 1000 })
      files:upload(dir .. "/in", "t/d", { timeout = 10 })
      if i % 10 == 0 then
        support.run("rm -rf " .. dir .. "/out " .. dir .. "/all")
      end
    end
    for _, p in ipairs(racers) do
      p:close()
    end
    assert.equal("of the host", support.read(dir .. "/victim"))
    assert.equal("", (support.run("find " .. dir .. " -type p -o -type s -o -type b -o -type c -o -perm /6000")))
    for target in support.run("find " .. dir .. " -type l -printf '%l\\n'"):gmatch "[^\n]+" do
      assert.is_nil(target:find "^/", target)
      assert.is_nil(target:find "%.%.", target)
    end
  end)
end)
