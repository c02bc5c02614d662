-- The tour in a minute: a sandbox, a program that nobody has read, its output as it comes, a file
-- back, and what happens to one that misbehaves.
--
--     lua5.4 examples/quickstart.lua          (or: make demo)

local moonsand = require "moonsand"

local function say(what, text)
  print(("%-9s %s"):format(what, (text:gsub("\n$", ""):gsub("\n", "\n" .. (" "):rep(10)))))
end

local box = moonsand.assert(moonsand.create())
say("made", tostring(box))

-- A command. It sees a system of its own: no files of yours, none of your environment, no network.
local look = [[
echo "I am $(id -un), at home in $PWD"
[ -e /home ] || echo "there is no /home"
echo "the network is $(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ')"]]
say("inside", moonsand.assert(box:exec(look)).stdout)

-- A program, written into the sandbox and run; its lines arrive while it works.
moonsand.assert(box.files:write("primes.py", [[
import time

found = []
for n in range(2, 40):
    if all(n % p for p in found):
        found.append(n)
        print(n, flush=True)
        time.sleep(0.05)
with open("primes.txt", "w") as f:
    f.write("the sum is %d\n" % sum(found))
]]))

local program = moonsand.assert(box:start { "python3", "primes.py" })
io.write(("%-10s"):format("live"))
for line in program.stdout:lines() do
  io.write(line, " ")
  io.flush()
end
print()
say("ended", tostring(moonsand.assert(program:wait())))

-- A file back.
say("file", (moonsand.assert(box.files:read("primes.txt"))))

-- What misbehaves is ended, with all that it started.
local command = "setsid sleep 1000 & while :; do :; done"
local endless = moonsand.assert(box:exec(command, { timeout = 0.5 }))
local left = moonsand.assert(box:exec("cat /proc/[0-9]*/comm | grep -c sleep"))
say("bounded", ("%s after %.1f s, and %d of its processes are left"):format(endless.status,
  endless.duration, tonumber(left.stdout)))

box:close()
say("over", tostring(box))
