-- A sandbox, a program nobody has read, its output as it comes, a file back.

local moonsand = require "moonsand"

local box = moonsand.assert(moonsand.create())
print("made    " .. tostring(box))

-- A command. What it may see is a system of its own: no files of yours, no network.
local result = moonsand.assert(box:exec("id -un; hostname; ls -A /home /root 2>&1 | head -2"))
io.write("inside  ", (result.stdout:gsub("\n(.)", "\n        %1")))

-- A program, written into the sandbox and run; its lines arrive while it works.
moonsand.assert(box.files:write("primes.py", [[
import sys, time

found = []
for n in range(2, 40):
    if all(n % p for p in found):
        found.append(n)
        print(n, flush=True)
        time.sleep(0.05)
with open("primes.txt", "w") as f:
    f.write(" ".join(map(str, found)) + "\n")
print("done", file=sys.stderr)
]]))

local program = moonsand.assert(box:start { "python3", "primes.py" })
io.write "live   "
for line in program.stdout:lines() do
  io.write(" ", line)
  io.flush()
end
print()
print("ended   " .. tostring(moonsand.assert(program:wait())))

-- A file back.
io.write("file    ", moonsand.assert(box.files:read "primes.txt"))

-- What misbehaves is ended, with all that it started.
local endless = moonsand.assert(box:exec("setsid sleep 1000 & while :; do :; done", { timeout = 0.5 }))
print("bounded " .. tostring(endless))

box:close()
