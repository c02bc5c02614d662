--- What is measured inside a host: run by plain Lua, luv, Neovim and nginx alike, in a coroutine
--- where the host has them. Samples are seconds, a line each on stdout.
---
---     MOONSAND_PROBE='lines 200' lua5.4 bench/hosts/probe.lua [luv]

local moonsand = require "moonsand"
local core = require "moonsand.core"

local M = {}

local NAP = 0.002

local CLOCK = [[
import os, sys, time
for _ in range(int(sys.argv[1])):
    time.sleep(float(sys.argv[2]))
    os.write(1, b"%.9f\n" % time.monotonic())
]]

--- From when a program writes a line until who waits for it goes on.
function M.lines(n)
  local samples = {}
  moonsand.with({}, function(box)
    local words = { "python3", "-c", CLOCK, tostring(n), tostring(NAP) }
    for line in moonsand.assert(box:start(words)).stdout:lines() do
      samples[#samples + 1] = core.now() - tonumber(line)
    end
  end)
  return samples
end

--- From when a timer is due until who waits for it goes on. In plain Lua the kernel may be late by
--- its timer slack, 50 µs; other loops watch a timerfd, which has none.
function M.timers(n)
  local samples = {}
  for i = 1, n do
    local due = core.now() + NAP
    moonsand.sleep(NAP)
    samples[i] = core.now() - due
  end
  return samples
end

--- One program after the other, each to its end.
function M.sequential(n)
  local samples = {}
  moonsand.with({}, function(box)
    for i = 1, n do
      local start = core.now()
      moonsand.assert(box:exec({ "/usr/bin/true" }, { check = true }))
      samples[i] = core.now() - start
    end
  end)
  return samples
end

--- Programs at once, as many as `n`, ten times: seconds for all of them.
function M.concurrent(n)
  local samples, list = {}, {}
  for i = 1, n do
    list[i] = i
  end
  moonsand.with({}, function(box)
    for round = 1, 10 do
      local start = core.now()
      moonsand.assert(moonsand.all(list, function()
        return box:exec({ "/usr/bin/true" }, { check = true })
      end))
      samples[round] = core.now() - start
    end
  end)
  return samples
end

--- Runs what the words say ("lines 200"): a line for each sample.
---@param words string
---@return string
function M.run(words)
  local name, n = words:match "(%l+) (%d+)"
  local samples = M[name](tonumber(n))
  for i, seconds in ipairs(samples) do
    samples[i] = ("%.9f"):format(seconds)
  end
  return table.concat(samples, "\n") .. "\n"
end

-- ---------------------------------------------------------------- as a program

local function print_samples()
  io.stdout:write(M.run(os.getenv "MOONSAND_PROBE"))
end

local vim = rawget(_G, "vim")
if rawget(_G, "ngx") then
  return M -- a module there
elseif vim then
  coroutine.wrap(function()
    print_samples()
    vim.schedule(function()
      vim.cmd "qa!"
    end)
  end)()
elseif arg and arg[1] == "luv" then
  local uv = require "luv"
  coroutine.wrap(print_samples)()
  uv.run()
else
  print_samples() -- the main chunk: step(-1)
end
