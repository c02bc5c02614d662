-- What spec/hosts/ngx_spec.lua has run inside nginx: it sends Lua code, as the body of a request.

local M = {}

--- Set in the configuration's init_by_lua_block: what a test wants to be different.
M.wish = {}

--- In the master, before there are workers.
function M.init()
  if M.wish.core_in_master then
    M.fd = assert(require("moonsand").loop.fd())
  end
end

local function compile()
  ngx.req.read_body()
  local code = "local moonsand, app, notes = ...; " .. (ngx.req.get_body_data() or "")
  local chunk = assert(loadstring(code, "=sent"))
  return function()
    return chunk(require "moonsand", M, ngx.shared.notes)
  end
end

local function say(ok, ...)
  if not ok then
    ngx.status = 500
  end
  for i = 1, select("#", ...) do
    ngx.say(tostring((select(i, ...))))
  end
end

--- Runs the code and answers with what it returned, a line each.
function M.content()
  say(pcall(compile()))
end

--- The same in another phase of the request.
function M.keep()
  ngx.ctx.kept = { pcall(compile()) }
end

function M.kept()
  say(unpack(ngx.ctx.kept))
end

--- Tries to wait, in a phase that cannot; keeps what came of it. And starts a task there.
function M.refused(phase)
  local moonsand, notes = require "moonsand", ngx.shared.notes
  local slept, why = pcall(moonsand.sleep, 0)
  notes:set("refused:" .. phase, slept and "not at all" or tostring(why))
  local ran, because = pcall(moonsand.run, function()
    notes:set("refused:" .. phase, "not at all")
  end)
  notes:set("run refused:" .. phase, ran and "not at all" or tostring(because))
  moonsand.task(function()
    moonsand.sleep(0.01)
    notes:set("task of:" .. phase, ngx.get_phase())
  end)
end

--- Tries to start things after the answer has been sent.
function M.late()
  local moonsand, notes = require "moonsand", ngx.shared.notes
  notes:set("created in log", tostring(select(2, pcall(moonsand.create))))
  notes:set("written in log", tostring(select(2, pcall(function()
    return M.box.files:write("written in log", "x")
  end))))
end

--- A certificate may be looked for by a program.
function M.tls()
  if M.wish.tls then
    local moonsand = require "moonsand"
    moonsand.with({}, function(box)
      ngx.shared.notes:set("tls", moonsand.assert(box:exec("printf certified")).stdout)
    end)
  end
end

return M
