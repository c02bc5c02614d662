-- The behaviour of every host, in plain Lua: on the main chunk, and in a task.

local behaviour = require "hosts.behaviour"
local helper = require "helper"
local moonsand = require "moonsand"

describe("the host plain", function()
  helper.deadline(60)

  local function spawn(fn)
    moonsand.task(fn)
  end

  for _, check in ipairs(behaviour.checks) do
    it("on the main chunk: " .. check.name, function()
      check.run(moonsand, spawn)
    end)
    it("in a task: " .. check.name, function()
      moonsand.run(check.run, moonsand, spawn)
    end)
  end
end)
