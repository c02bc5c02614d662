--- A host that is going to be killed: makes sandboxes with programs in them, says so, and waits.
--- Started by cases/death.lua as `lua -e "package.path=…" victim.lua COUNT`.

local moonsand = require "moonsand"

local kept = {} -- a sandbox lives as long as something of it is reachable
for i = 1, tonumber(arg[1]) do
  local box = moonsand.assert(moonsand.create())
  -- one that waits, one that has left its session
  moonsand.assert(box:exec("sleep 1000 & setsid sleep 1000 & sleep 0", { leave = true }))
  kept[i] = {
    box, moonsand.assert(box:start { "/usr/bin/sleep", "1000" }),
  }
end
io.stdout:write "ready\n"
io.stdout:flush()
moonsand.sleep(1000)
assert(#kept > 0)
