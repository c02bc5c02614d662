--- The server of spec/support/server.py for a spec: started once, ended with this Lua.

local http = require "moonsand.wire.http"
local support = require "support.init"

local M = {}

local running -- { port, tls_port, ca_file }

local function hex(bytes)
  return (bytes:gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end))
end
M.hex = hex

--- A certificate of our own for localhost and 127.0.0.1: the paths of certificate and key.
local function certificate(dir)
  local cert, key = dir .. "/cert.pem", dir .. "/key.pem"
  local output, status = support.run(([[openssl req -x509 -newkey ec \
    -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout %s -out %s -subj /CN=localhost -days 2 \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1]]):format(key, cert))
  assert(status == 0, output)
  return cert, key
end

--- Starts it, once: its ports.
function M.start()
  if running then
    return running
  end
  local dir = support.directory()
  local cert, key = certificate(dir)
  local ports = dir .. "/ports"
  -- The pipe is the server's stdin: it ends with us, however we end.
  local pipe = assert(io.popen(("exec python3 spec/support/server.py %s %s >%s"):format(cert, key,
    ports), "w"))
  local line = support.eventually(15, "the server did not start", function()
    local text = support.read(ports)
    return text and text:find "\n" and text
  end)
  local port, tls_port = line:match "(%d+) (%d+)"
  running = { pipe = pipe, port = tonumber(port), tls_port = tonumber(tls_port), ca_file = cert }
  return running
end

--- The address of a path with options; bytes in `data` and `body` are given as they are.
---@param path string
---@param options? table
---@param scheme? string
function M.url(path, options, scheme)
  local query = {}
  for name, value in pairs(options or {}) do
    value = tostring(value)
    query[#query + 1] = name .. "=" .. http.escape((name == "data" or name == "body") and hex(value)
      or value)
  end
  table.sort(query)
  local tls = scheme == "https" or scheme == "wss"
  return ("%s://127.0.0.1:%d%s%s"):format(scheme or "http", tls and running.tls_port or running.port,
    path, query[1] and "?" .. table.concat(query, "&") or "")
end

--- The address where these very bytes are the answer.
---@param data string
---@param options? table end, pause, early, count
function M.raw(data, options)
  options = options or {}
  options.data = data
  return M.url("/raw", options)
end

--- How often a request with ?count=name came, and what was noted of it.
function M.count(name)
  local value = assert(http.call { url = M.url("/count", { of = name }) })
  return value.count, value.note
end

local serial = 0
--- A name for ?count that nobody had before.
function M.name()
  serial = serial + 1
  return "n" .. serial
end

return M
