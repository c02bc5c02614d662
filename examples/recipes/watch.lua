-- Watch and re-run: a Lua file on this machine is run in a fresh sandbox whenever it changes. A run
-- that is still going when the file changes again is cancelled, and its program is killed.
--
--     lua5.4 examples/recipes/watch.lua FILE [RUNS]          (ends after so many; else Ctrl-C)

local moonsand = require "moonsand"

local path, runs = arg[1], tonumber(arg[2]) or math.huge
assert(path, "usage: watch.lua FILE [RUNS]")

local function content()
  local file = io.open(path, "rb")
  local text = file and file:read "*a"
  return text and file:close() and text
end

local function run(source)
  return moonsand.with({ limits = { disk = "16M" } }, function(box)
    return box:lua(source, { timeout = 60, on_line = function(line) print("  " .. line) end })
  end)
end

moonsand.run(function()
  local known, task, untold = nil, nil, 0
  while runs > 0 or untold > 0 do
    local text = content()
    if runs > 0 and text and text ~= known then
      if task and task:cancel("the file changed") then task:wait() end
      known, runs, untold = text, runs - 1, untold + 1
      task = moonsand.task(run, text):on_done(function(_, result, message)
        print("ended: " .. tostring(result or message))
        untold = untold - 1
      end)
    end
    moonsand.sleep(0.05)
  end
end)
