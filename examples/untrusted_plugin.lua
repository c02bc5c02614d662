-- A plugin that somebody has sent, as a service: it runs in a sandbox, gets a line for each
-- question and answers with a line. It has a deadline; if it hangs or dies, it is started again.
--
--     lua5.4 examples/untrusted_plugin.lua

local moonsand = require "moonsand"

-- Turns a title into a slug. It has two bugs, and wants to know who we are.
local PLUGIN = [[
io.stdout:setvbuf "line"
for title in io.lines() do
  if title == "" then error "empty title" end
  while title:find "spin" do end
  print((title:lower():gsub("%W+", "-")) .. "-by-" .. (os.getenv "API_KEY" or "nobody"))
end
]]

local Plugin = {}
Plugin.__index = Plugin

function Plugin.new(source)
  local box = moonsand.assert(moonsand.create { limits = { disk = "1M", processes = 4 } })
  moonsand.assert(box.files:write("plugin.lua", source))
  return setmetatable({ box = box, process = nil }, Plugin)
end

--- One answer: or nil and why there is none.
function Plugin:ask(question, seconds)
  if not self.process then
    self.process = moonsand.assert(self.box:start { "lua5.4", "plugin.lua" })
  end
  local p = self.process
  local sent, message = p.stdin:write(question .. "\n", seconds)
  local answer, failure, code
  if sent then
    answer, failure, code = p.stdout:read("l", { timeout = seconds, max_line = "4K" })
  end
  if answer then
    return answer
  elseif sent and not code then -- the end of its output: it has died
    local r = moonsand.assert(p:wait())
    failure = r.stderr:match "^[^\n]*:%d+: ([^\n]*)" or tostring(r)
  end
  p:close()
  self.process = nil
  return nil, failure or message
end

local plugin = Plugin.new(PLUGIN)
for _, title in ipairs { "Hello, World!", "", "spin me", "Moon & Sand" } do
  local slug, why = plugin:ask(title, 3)
  print(("%-16s %s"):format(("%q"):format(title), slug or "no answer: " .. why))
end
plugin.box:close()
