--- For every spec: a collector that runs all the time when MOONSAND_GCSTRESS=1. For those that ask:
--- a deadline per test, and a check that nothing was left open.
---
---     local helper = require "helper"
---     describe("…", function()
---       helper.deadline(20)      -- seconds for each test
---       helper.no_leaks()        -- open files, children, sandboxes

local busted = require "busted"
local support = require "support.init"

local M = {}

local before_each, after_each = busted.before_each, busted.after_each

if os.getenv "MOONSAND_GCSTRESS" == "1" then
  if _VERSION == "Lua 5.4" then
    collectgarbage("incremental", 10, 1000)
  else
    collectgarbage("setpause", 10)
    collectgarbage("setstepmul", 1000)
  end
end

--- MOONSAND_TEST_ISOLATION=bwrap runs whatever spec with the other launcher.
if support.isolation ~= "native" then
  require("moonsand.providers.local").isolation = support.isolation
end

--- `it` of what bwrap does not offer. That it refuses it, and says why, is in bwrap_spec.lua.
function M.native_it(...)
  if support.isolation == "native" then
    return busted.it(...)
  end
end

--- A test that takes longer fails, with a traceback of where it hangs.
---@param seconds number
function M.deadline(seconds)
  before_each(function()
    support.native().alarm(os.getenv "MOONSAND_VALGRIND" and seconds * 20 or seconds)
  end)
  after_each(function()
    support.native().alarm(0)
  end)
end

--- Everything that nobody holds any more is finalized, and the loop has seen it.
function M.settle()
  local loop = require "moonsand.loop"
  if rawget(_G, "jit") then
    require("jit").flush() -- traces hold the functions of the tests, and so what those hold
  end
  for _ = 1, 3 do
    collectgarbage()
    loop.step(0)
  end
end

--- What a host has: its open files, its children, its sandboxes.
function M.holdings()
  local native = support.native()
  local count, targets = support.fds()
  local zygotes, agents = 0, 0
  for _, process in ipairs(support.descendants(native.getpid())) do
    if process.ppid == native.getpid() then
      zygotes = zygotes + 1
    else
      agents = agents + 1
    end
  end
  -- each zygote keeps a spare at hand
  return { fds = count, targets = targets, children = zygotes, below = math.max(agents - zygotes, 0) }
end

--- What a host has before a test, to be held against what it has behind it.
function M.baseline()
  -- What is made once is there now. So is each zygote's spare: the zygote makes that before it buries
  -- the sandbox that ended here.
  require("moonsand").with({}, function() end)
  M.settle()
  return M.holdings()
end

local function describe_files(before, after)
  local names = {}
  for fd, target in pairs(after.targets) do
    if before.targets[fd] ~= target then
      names[#names + 1] = fd .. " -> " .. target
    end
  end
  table.sort(names)
  return table.concat(names, ", ")
end

--- Waits until a host has no more than it had, and fails when that does not come.
---@param before table its holdings
---@param let_go? fun() lets go of what is kept for the next use, where nothing uses it
function M.assert_no_more(before, let_go)
  support.eventually(20, "something was left", function()
    M.settle()
    if let_go then
      let_go()
    end
    local now = M.holdings()
    if now.fds > before.fds then
      return nil, ("%d files, not %d: %s"):format(now.fds, before.fds, describe_files(before, now))
    end
    return now.children <= before.children and now.below <= before.below,
      ("%d children and %d below, not %d and %d"):format(now.children, now.below, before.children,
        before.below)
  end)
end

--- Each test leaves the open files, the children and the sandboxes that it found.
---@param close? fun() ends what the tests of this block share, before it is looked
---@param let_go? fun() as for `assert_no_more`
function M.no_leaks(close, let_go)
  local before
  before_each(function()
    before = M.baseline()
  end)
  after_each(function()
    if close then
      close()
    end
    M.assert_no_more(before, let_go)
  end)
end

return M
