--- What remote sandboxes do in every host. A plain module, as behaviour.lua: it runs wherever the
--- host can load a file.
---
---     require("hosts.remote").run(options, spawn, function(name, failure) … end)
---
--- `options` are those of `create`; `spawn(fn)` runs fn side by side with its caller.

local M = {}

local function eq(wanted, got, what)
  if wanted ~= got then
    error(("%s: %s wanted, got %s"):format(what or "value", tostring(wanted), tostring(got)), 2)
  end
end

M.checks = {
  { "exec: status, both streams, all bytes", function(box)
    local r = assert(box:exec "printf 'a\\r\\n\\0b'; echo err >&2; exit 3")
    eq("a\r\n\0b", r.stdout)
    eq("err\n", r.stderr)
    eq(3, r.exit_code)
  end },
  { "exec: input, and a timeout", function(box)
    eq("in", assert(box:exec("cat", { stdin = "in" })).stdout)
    eq(true, assert(box:exec("sleep 20", { timeout = 1 })).timed_out)
  end },
  { "start: both ways while it runs", function(box)
    local p = assert(box:start "while read l; do echo got $l; done; exit 4")
    assert(p.stdin:write "one\n")
    eq("got one", p.stdout:read("l", 10))
    p.stdin:close()
    eq(4, assert(p:wait(20)).exit_code)
  end },
  { "files: there and back", function(box)
    assert(box.files:write("/tmp/there", "data\0"))
    eq("data\0", assert(box.files:read "/tmp/there"))
    eq("not_found", select(3, box.files:read "/tmp/nowhere"))
  end },
  { "a session", function(box)
    local session = assert(box:session())
    assert(session:exec "cd /tmp; f() { echo f; }")
    eq("/tmp\nf\n", assert(session:exec "pwd; f").stdout)
    session:close()
  end },
  { "an interpreter", function(box)
    local python = assert(box:interpreter("python", { timeout = 20 }))
    local heard = {}
    assert(python:run("x = 41; print(x)", { on_stdout = function(data)
      heard[#heard + 1] = data
    end }))
    eq("41\n", table.concat(heard))
    local r = assert(python:run("import time; time.sleep(20)", { timeout = 2 }))
    eq(true, r.timed_out and r.state_kept)
    eq("42", assert(python:run "x + 1").text)
    python:close()
  end },
  { "a background program, attached to again", function(box)
    local p = assert(box:start("echo one; while [ ! -e /tmp/two ]; do sleep 0.05; done; echo two",
      { background = true }))
    eq("one", p.stdout:read("l", 10))
    local id, since = p.id, p:offsets()
    eq(true, p:detach())
    local again = assert(box:attach(id, { since = since }))
    assert(box.files:write("/tmp/two", ""))
    eq("two\n", assert(again:wait(20)).stdout)
  end },
  { "side by side", function(box, moonsand, spawn)
    local done, waits = 0, 0
    for i = 1, 3 do
      spawn(function()
        local said = assert(box:exec("sleep 0.2; echo " .. i)).stdout
        done = done + tonumber(said)
      end)
    end
    while done < 6 and waits < 1000 do
      waits = waits + 1
      moonsand.sleep(0.01)
    end
    eq(6, done)
  end },
  { "a refusal", function(_, moonsand, _, options)
    local wrong = {}
    for name, value in pairs(options) do
      wrong[name] = value
    end
    wrong.api_key = "wrong"
    eq("auth", select(3, moonsand.create(wrong)))
  end },
}

--- Runs all of them in one sandbox and tells of each: its name, and what it raised.
---@param options table
---@param spawn fun(fn: fun())
---@param tell fun(name: string, failure?: string)
function M.run(options, spawn, tell)
  local moonsand = require "moonsand"
  local box = assert(moonsand.create(options))
  for _, check in ipairs(M.checks) do
    local ok, failure = pcall(check[2], box, moonsand, spawn, options)
    tell(check[1], not ok and tostring(failure) or nil)
  end
  local ok, failure = pcall(function()
    assert(box:destroy { timeout = 20 })
    assert(moonsand.flush { timeout = 20 })
  end)
  tell("the end", not ok and tostring(failure) or nil)
end

return M
