-- What spec/hosts/ngx_spec.lua has run inside nginx: it sends Lua code, as the body of a request.

local M = {}

--- In the master, before there are workers.
function M.init()
  if MASTER_MADE then -- luacheck: ignore
    M.fd = assert(require("moonsand").loop.fd())
  end
end

local function compile()
  ngx.req.read_body()
  return assert(loadstring(ngx.req.get_body_data() or "", "=sent"))
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
  say(unpack(ngx.ctx.kept, 1, 2))
end

--- Tries to wait and to start something, in a phase that can do neither; keeps what came of it.
function M.refused(phase)
  local moonsand = require "moonsand"
  local _, slept = pcall(moonsand.sleep, 0)
  local ok, ran = pcall(moonsand.run, function() end)
  ngx.shared.notes:set("refused:" .. phase, tostring(slept) .. "|" .. tostring(ok and "?" or ran))
end

--- A certificate may be looked for by a program.
function M.tls()
  if TLS then -- luacheck: ignore
    local moonsand = require "moonsand"
    ngx.shared.notes:set("tls", moonsand.with({}, function(box)
      return moonsand.assert(box:exec("echo certified")).stdout
    end))
  end
end

return M
