--- For specs of hosts that are processes of their own: runs Lua code there, and the behaviour suite.

local behaviour = require "hosts.behaviour"
local busted = require "busted"
local support = require "support.init"

local M = {}

--- Put in front of what runs in the host.
local HEAD = [[
local moonsand, now = require "moonsand", require("moonsand.core").now
local function say(...)
  local words = { ... }
  for i = 1, select("#", ...) do words[i] = tostring(words[i]) end
  io.stdout:write(table.concat(words, " "), "\n")
  io.stdout:flush()
end
local function spawn(fn)
  coroutine.wrap(fn)()
end
local function suite()
  require("hosts.behaviour").run(spawn, function(name, failure)
    say(failure and "not ok" or "ok", name, ((failure or ""):gsub("\n", " / ")))
  end)
end
]]

--- Lua code, written to a file.
function M.script(code)
  M.count = (M.count or 0) + 1
  return support.write(("%s/inside-%d.lua"):format(support.directory(), M.count),
    HEAD:gsub("\n", " ") .. code)
end

--- One `it` for each check of the behaviour suite, which `run()` runs in the host, all at once.
---@param where string
---@param run fun(): string its output
function M.suite(where, run)
  busted.describe(where, function()
    local output
    for _, check in ipairs(behaviour.checks) do
      busted.it(check.name, function()
        output = output or "\n" .. run()
        if not output:find("\nok " .. check.name .. " ", 1, true) then
          local at = output:find("\nnot ok " .. check.name, 1, true)
          error(at and output:match("[^\n]+", at + 1) or "it did not get that far:" .. output, 0)
        end
      end)
    end
  end)
end

return M
