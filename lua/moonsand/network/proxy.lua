--- The one way out of a sandbox with `network = { allow = … }`: an HTTP and SOCKS 5 proxy in this
--- process, on a listener that the agent opened inside. There is no route out of the sandbox, so
--- what does not ask the proxy reaches nothing.
---
--- Each attempt: read the request's head, ask the rules about the host, look it up once, ask the
--- rules about each address, dial the first that is allowed, tie the connections together in C.

local acceptor = require "moonsand.network.acceptor"
local address = require "moonsand.network.address"
local core = require "moonsand.core"
local http = require "moonsand.network.http"
local inside = require "moonsand.network.inside"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local resolver = require "moonsand.network.resolver"
local socks = require "moonsand.network.socks"

local M = {}

--- Where the proxy listens, inside.
M.PORT = 3128

M.MAX_CONNECTIONS = 256 -- at once; further ones wait
--- Of the descriptors that this process may have, the connections of all its proxies together may be
--- so many: each has one, and a second one for the server. The rest is the program's own.
local SHARE, LEAST = 1 / 4, 16
M.HEAD_TIMEOUT = 30 -- seconds for the whole head of a request
M.LOOKUP_TIMEOUT = 15
M.CONNECT_TIMEOUT = 30 -- for all addresses of a name
M.IDLE_TIMEOUT = 600 -- without a byte either way
M.LINGER = 2 -- for the client to read a refusal
local LOG_MAX = 1000

-- ---------------------------------------------------------------- the log

local function note(log, entry)
  entry.at = os.time()
  entry.began = core.now()
  entry.decision, entry.reason = "failed", "not finished"
  log.last = log.last + 1
  log[log.last] = entry
  log[log.last - LOG_MAX] = nil
  return entry
end

--- What came of an attempt.
local function conclude(entry, decision, reason)
  entry.decision, entry.reason = decision, reason
  entry.duration = core.now() - entry.began
end

---@return table[] attempts oldest first
local function read_log(log)
  local first = math.max(1, log.last - LOG_MAX + 1)
  local list = { dropped = first - 1 }
  for i = first, log.last do
    local copy = {}
    for key, value in pairs(log[i]) do
      copy[key] = value
    end
    copy.began = nil
    list[#list + 1] = copy
  end
  return list
end

-- ---------------------------------------------------------------- bytes

--- Takes from a stream within limits: data, or nil and "end", "too_large" or "timeout". What ends
--- before `n` bytes has ended.
local function take(raw, what, n, limits)
  while true do
    local data, why = raw:take(what, n)
    if data then
      if what == "n" and #data < n then
        return nil, "end"
      end
      return data
    elseif why ~= "again" then
      return nil, why == "too_large" and why or "end"
    elseif loop.wait(limits, raw) then
      return nil, "timeout"
    end
  end
end

local function write(raw, data, limits)
  local from = 1
  repeat
    local count, why = raw:write(data, from)
    if count then
      from = from + count
    elseif why ~= "again" or loop.wait(limits, raw) then
      return nil
    end
  until from > #data
  return true
end

--- A last word. The client's rest is read for a moment: a close with unread bytes would be a reset,
--- which takes the answer with it. It may send faster than we read, so there is a turn for the others
--- after each piece.
local function answer(connection, data)
  local raw, limits = connection.raw, connection:limits(M.LINGER)
  if write(raw, data, limits) then
    raw:shutdown()
    repeat
      local rest = take(raw, "chunk", 0, limits)
    until not rest or loop.turn(limits)
  end
end

-- ---------------------------------------------------------------- one attempt

--- Connects to the first address that the rules let through.
---@return userdata? raw
---@return string? decision, string? reason, string? code
local function dial_one_of(self, connection, entry, list, host, port)
  local limits = connection:limits(M.CONNECT_TIMEOUT)
  local decision, reason, code = "denied", "no address", nil
  for _, bytes in ipairs(list) do
    bytes = address.plain(bytes)
    local refusal = self.rules:refuse_address(bytes, host, port)
    if refusal then
      reason = decision == "failed" and reason or refusal
    else
      entry.address = address.text(bytes)
      local raw, errno = core.connect(loop.reactor(), bytes, port)
      local ok, message
      if raw then
        connection:own(raw)
        ok, message, code = inside.connected(raw, entry.address, limits)
        if ok then
          return raw
        end
        raw:close()
      else
        message, code = ("%s: %s"):format(entry.address, core.strerror(errno)), "connection"
      end
      decision, reason = "failed", message
      if code == "timeout" or code == "cancelled" then
        break
      end
    end
  end
  return nil, decision, reason, code
end

--- From what was asked for to a connection: nil, decision, reason, code when there is none.
local function reach(self, connection, entry, host, port)
  entry.host, entry.port = host.text, port
  local refusal = self.rules:refuse_host(host, port)
  if refusal then
    return nil, "denied", refusal
  end
  if host.address then
    return dial_one_of(self, connection, entry, { host.address }, host, port)
  end
  local list, message, code =
    self.resolver:resolve(host.name, self.rules.resolve, connection:limits(M.LOOKUP_TIMEOUT))
  if not list then
    return nil, "failed", message, code
  end
  return dial_one_of(self, connection, entry, list, host, port)
end

local function run(connection, entry, outside, body)
  conclude(entry, "allowed")
  local sent, received, why = connection:relay(outside, { idle = M.IDLE_TIMEOUT, body = body })
  entry.sent, entry.received = options.integer(sent), options.integer(received)
  entry.duration = core.now() - entry.began
  entry.ended = why
end

local function serve_socks(self, connection)
  local raw, limits = connection.raw, connection:limits(M.HEAD_TIMEOUT)
  local entry = note(self.log, { protocol = "socks5" })
  local request, reply = socks.read(function(count)
    return count == 0 and "" or take(raw, "n", count, limits)
  end, function(data)
    return write(raw, data, limits)
  end)
  if not request then
    conclude(entry, "failed", "no proper SOCKS 5 request")
    return reply and answer(connection, reply)
  end
  local outside, decision, reason, code = reach(self, connection, entry, request.host, request.port)
  if outside then
    if write(raw, socks.answer "connected", limits) then
      run(connection, entry, outside)
    else
      conclude(entry, "failed", "the client went away")
    end
    return
  end
  conclude(entry, decision, reason)
  local what = decision == "denied" and "denied" or code == "timeout" and "timeout"
    or code == "not_found" and "unreachable" or code == "connection" and "refused" or "failed"
  answer(connection, socks.answer(what))
end

local function serve_http(self, connection, first)
  local raw, limits = connection.raw, connection:limits(M.HEAD_TIMEOUT)
  local entry = note(self.log, { protocol = "http" })
  local request, status, why, partial = http.read(function(most)
    local line, problem = take(raw, "L", most, limits)
    if line then
      return line
    elseif problem == "timeout" then
      return nil, 408, "the request took too long"
    elseif problem == "too_large" then
      return nil, 431, "the head is too large"
    end
    return nil, 400, "the request is cut short"
  end, first)
  local known = request or partial
  if known then
    entry.protocol, entry.method = known.connect and "connect" or "http", known.method
    entry.host, entry.port = known.host.text, known.port
  end
  if not request then
    conclude(entry, "failed", why)
    return answer(connection, http.answer(status, why))
  end
  local outside, decision, reason, code =
    reach(self, connection, entry, request.host, request.port)
  if not outside then
    conclude(entry, decision, reason)
    status = decision == "denied" and 403 or code == "timeout" and 504 or 502
    return answer(connection, http.answer(status, ("%s:%d: %s"):format(request.host.text,
      request.port, reason)))
  end
  local to, data = raw, http.CONNECTED
  if not request.connect then
    to, data = outside, request.head
  end
  if write(to, data, connection:limits(M.CONNECT_TIMEOUT)) then
    run(connection, entry, outside, request.body)
  else
    conclude(entry, "failed", "the connection was lost")
  end
end

--- The first byte tells which protocol it is.
local function serve(self, connection)
  local first = take(connection.raw, "n", 1, connection:limits(M.HEAD_TIMEOUT))
  if first == socks.VERSION then
    serve_socks(self, connection)
  elseif first then
    serve_http(self, connection, first)
  end
end

-- ---------------------------------------------------------------- the proxy

---@class moonsand.Proxy
---@field private rules moonsand.Rules
---@field private log table
---@field private acceptor moonsand.Acceptor
local Proxy = {}
Proxy.__index = Proxy

function Proxy:read_log()
  return read_log(self.log)
end

function Proxy:close()
  self.acceptor:close()
end

local shared, reactor_of_shared

--- The budget of this process's proxies, made on first use and again in a forked child.
local function budget()
  local reactor = loop.reactor()
  if reactor ~= reactor_of_shared then
    shared, reactor_of_shared = acceptor.budget(function()
      return math.max(LEAST, math.floor(core.max_descriptors() * SHARE))
    end), reactor
  end
  return shared
end

--- What tells programs of the proxy. Each tool reads some of these, in one case or the other.
---@return table<string, string>
function M.environment()
  local proxy = ("http://127.0.0.1:%d"):format(M.PORT)
  local own = "localhost,127.0.0.1,::1"
  local variables = { NODE_USE_ENV_PROXY = "1" } -- node 24 and later
  for name, value in pairs {
    http_proxy = proxy, https_proxy = proxy, ftp_proxy = proxy, all_proxy = proxy, no_proxy = own,
  } do
    variables[name], variables[name:upper()] = value, value
  end
  for _, name in ipairs { "npm_config_proxy", "npm_config_https_proxy", "YARN_HTTP_PROXY",
    "YARN_HTTPS_PROXY", "GRPC_PROXY", "grpc_proxy" } do
    variables[name] = proxy
  end
  return variables
end

--- Serves a sandbox. The proxy lives as long as somebody holds it.
---@param driver moonsand.local.Sandbox
---@param rules moonsand.Rules
---@param limits moonsand.Limits
---@return moonsand.Proxy? proxy, string? message, string? code, table? detail
function M.new(driver, rules, limits)
  local listener, message, code, detail = inside.listen(driver, M.PORT, limits)
  if not listener then
    return nil, message, code, detail
  end
  local attempts = { rules = rules, log = { last = 0 }, resolver = resolver.new() }
  return setmetatable({
    rules = rules,
    log = attempts.log,
    acceptor = acceptor.new(listener, M.MAX_CONNECTIONS, function(connection)
      serve(attempts, connection)
    end, budget()),
  }, Proxy)
end

return M
