--- HTTP requests, over `moonsand.net`. Every wait goes through `loop`; one deadline holds for all of
--- a request: the connection, the headers, the body. Redirects are not followed, certificates are
--- checked. What may be secret (headers, the query, a user in an address) is in no message.

local bodies = require "moonsand.wire.body"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local failure = require "moonsand.wire.failure"
local json = require "moonsand.wire.json"
local loop = require "moonsand.loop"
local multipart = require "moonsand.wire.multipart"
local net = require "moonsand.net"
local options = require "moonsand.options"
local streams = require "moonsand.stream"
local urls = require "moonsand.wire.url"
local version = require "moonsand.version"

local M = {}

local MAX_BODY = 16 * 1024 * 1024
local RETRIES = 2
local RETRY_DELAY = 0.2 -- seconds, doubled each time, half of it by chance
local RETRY_AFTER_MAX = 60 -- a service that asks for more is told on

local CLIENT = {
  base_url = "string", headers = "table", proxy = "string|boolean", ca_file = "string",
  retries = "number", connect_timeout = "number", version = "string", compressed = "boolean",
  provider = "string", explain = "function",
}
local REQUEST = {
  url = "string", path = "string", query = "table", method = "string", body = "string|file|function",
  size = "number", json = "any", multipart = "table", type = "string", timeout = "number",
  cancel = "table", max = "number", fresh = "boolean", idempotent = "boolean",
  accept = "function|table",
}
for name, types in pairs(CLIENT) do
  REQUEST[name] = types
end
local READ = { timeout = "number", cancel = "table", max = "number" }
local SAFE = { GET = true, HEAD = true, OPTIONS = true }

-- ---------------------------------------------------------------- this process's connections

local connections, reactor_of_connections

--- The connections of this process, made on first use and again in a forked child.
local function network()
  local reactor, message, code, detail = loop.reactor()
  if not reactor then
    return nil, message, code, detail
  end
  if reactor ~= reactor_of_connections then
    connections, reactor_of_connections = net.open(reactor), reactor
  end
  return connections
end

--- Closes the connections that are kept for the next request, when none is under way.
function M.close_idle()
  if connections and not reactor_of_connections:foreign() then
    connections:close_idle()
  end
end

-- ---------------------------------------------------------------- headers

local NONE_GIVEN = {}

--- Headers by their name in lower case, the later over the earlier: { name, values }.
local function add_headers(known, headers)
  for name, value in pairs(headers or NONE_GIVEN) do
    if type(name) ~= "string" then
      errors.raise(4, "headers: names must be strings, got %s", type(name))
    elseif type(value) ~= "table" then
      value = { value }
    end
    known[name:lower()] = { name, value }
  end
end

--- One header as curl wants it: an empty value ends in ";", none at all in ":".
local function header_line(name, value)
  local kind = type(value)
  if value == false then
    return name .. ":"
  elseif kind ~= "string" and kind ~= "number" then
    errors.raise(6, "headers: the value of '%s' must be a string or a number, got %s", name, kind)
  end
  return value == "" and name .. ";" or name .. ": " .. value
end

local FRAMING = { ["content-length"] = true, ["transfer-encoding"] = true }

--- Adds the lines of one header, its name in lower case: true, or a failure.
local function add_lines(lines, lower, header)
  local name = header[1]
  if name:find "[^%w!#$%%&'*+%-.^_`|~]" or name == "" then
    return errors.fail("invalid", ("a header cannot be called %s"):format(options.quote(name)))
  elseif FRAMING[lower] then
    return errors.fail("invalid", ("the header '%s' is ours to set"):format(name))
  end
  for _, value in ipairs(header[2]) do
    local line = header_line(name, value)
    if line:find "[%z\r\n]" then
      return errors.fail("invalid",
        ("the header '%s' has a line end or a NUL in its value"):format(name))
    end
    lines[#lines + 1] = line
  end
  return true
end

--- The lines of headers, sorted. What is ours has its line already.
local function header_lines(known)
  local lines = {}
  for lower, header in pairs(known) do
    if header.line then
      lines[#lines + 1] = header.line
    else
      local added, message, code, detail = add_lines(lines, lower, header)
      if not added then
        return nil, message, code, detail
      end
    end
  end
  table.sort(lines)
  return lines
end

-- ---------------------------------------------------------------- what is sent

---@class moonsand.http.Plan
---@field request moonsand.http.Request
---@field method string
---@field url string
---@field shown string the address as it may be told
---@field source? moonsand.http.Source
---@field headers string[]

--- The body, and its content type.
local function source_of(request)
  if request.json ~= nil then
    local text, message, code, detail = json.encode(request.json)
    if not text then
      return nil, nil, message, code, detail
    end
    return bodies.source(text), "application/json"
  elseif request.multipart then
    return multipart.source(request.multipart, bodies.source)
  elseif request.body ~= nil then
    return bodies.source(request.body, request.size)
  end
end

-- Without a body, such a request is given an empty one: services expect it.
local WITH_BODY = { POST = true, PUT = true, PATCH = true }
-- What curl would add by itself is taken out.
local AGENT = { "User-Agent", line = "User-Agent: moonsand/" .. version }
local NO_EXPECT, NO_TYPE = { "Expect", line = "Expect:" }, { "Content-Type", line = "Content-Type:" }

local function plan_of(request)
  local url = request.url or (request.base_url or "") .. (request.path or "")
  local ok, message, code, detail = urls.check(url, { http = true, https = true })
  if not ok then
    return nil, message, code, detail
  end
  local source, kind
  source, kind, message, code, detail = source_of(request)
  if message then
    return nil, message, code, detail
  end
  local method = request.method or (source and "POST" or "GET")
  if method:find "[^%u%l%-]" or method == "" then
    return errors.fail("invalid", ("there is no method %s"):format(options.quote(method)))
  end
  kind = request.type or kind
  local known = { ["user-agent"] = AGENT }
  if source then
    known.expect = NO_EXPECT
    known["content-type"] = kind and { "Content-Type", { kind } } or NO_TYPE
  elseif WITH_BODY[method] then
    known["content-type"] = NO_TYPE
  end
  add_headers(known, request.headers)
  local lines
  lines, message, code, detail = header_lines(known)
  if not lines then
    return nil, message, code, detail
  end
  return {
    request = request,
    method = method,
    url = url .. urls.query(request.query),
    shown = urls.safe(url),
    source = source,
    headers = lines,
  }
end

--- What src/net/request.c and transfer.c set up.
---@param timeout? number seconds
local function wire_of(plan, timeout)
  local request, source = plan.request, plan.source
  local text = source and source.text
  local idempotent = request.idempotent
  if idempotent == nil then
    idempotent = SAFE[plan.method] or false
  end
  return {
    url = plan.url,
    method = plan.method,
    headers = plan.headers,
    connect_timeout = request.connect_timeout,
    proxy = request.proxy == false and "" or request.proxy ~= true and request.proxy or nil,
    ca_file = request.ca_file,
    version = request.version,
    fresh = request.fresh,
    body = text or not source and WITH_BODY[plan.method] and "" or nil,
    feed = source ~= nil and not text,
    size = source and not text and source.size or nil,
    timeout = timeout,
    compressed = request.compressed,
    safe = idempotent,
  }
end

---@param limits moonsand.Limits
local function start(plan, limits)
  local connected, message, code, detail = network()
  if not connected then
    return nil, message, code, detail
  end
  local left
  if limits.deadline then
    left = math.max(limits.deadline - core.now(), 1e-3)
  end
  return connected:start(wire_of(plan, left))
end

-- ---------------------------------------------------------------- how it fails

local kinds = {
  dns = "connection",
  connect = "connection",
  tls = "connection",
  proxy = "connection",
  memory = "unavailable",
  headers = "too_large",
  body = "protocol",
}
local words = {
  headers = "the headers of the answer are larger than 256 KiB",
  timeout = "timed out",
  cancelled = "cancelled",
  closed = "closed",
  invalid = "the address cannot be",
}

--- The failure of a transfer that is over, as its detail.
---@param transfer userdata
---@param shown string what was asked, for the message
---@param provider? string
---@return table detail
function M.explain(transfer, shown, provider)
  local kind, text, sent = transfer:failure()
  local code = kinds[kind] or kind
  local detail = {
    code = code,
    message = ("%s: %s"):format(shown, words[kind] or text),
    what = code == "connection" and kind or nil,
    sent = sent,
    provider = provider,
  }
  if not sent then
    detail.started, detail.retry = false, true
  end
  return detail
end

local function fail(detail)
  return errors.fail(detail.code, detail.message, detail)
end

--- A wait ended by its limit: so does the transfer. Closed before anything of it had left, it could
--- be sent again.
local function stop(transfer, shown, provider, message, code, detail)
  transfer:close(code)
  local why = M.explain(transfer, shown, provider)
  for key, value in pairs(detail or {}) do
    why[key] = value
  end
  return errors.fail(code, ("%s: %s"):format(shown, message), why)
end

-- ---------------------------------------------------------------- Response

---@class moonsand.http.Response
---@field status integer
---@field headers table<string, string> names in lower case; what came twice is joined by ", "
---@field version string "1.1", "2"
---@field method string
---@field url string without query, user or password
---@field request_id? string
---@field provider? string
---@field body moonsand.Stream what there is of it; the end is told only for a whole body
---@field private limits moonsand.Limits of the request
---@field private transfer userdata
local Response = {}

--- The stream is made when it is asked for: most bodies are read whole.
Response.__index = function(self, name)
  if name == "body" then
    local shown = self.method .. " " .. self.url
    local raw = bodies.raw(self.transfer, M.explain, shown, self.provider)
    local body = streams.new(raw, shown, self.max)
    body.provider = self.provider
    self.body = body
    return body
  end
  return Response[name]
end
Response.__name = "moonsand.http.Response"
Response.__tostring = function(self)
  return ("moonsand.http.Response (%s %s: %d)"):format(self.method, self.url, self.status)
end

local function new_response(plan, transfer, limits)
  local status, headers, http_version = transfer:head()
  local request = plan.request
  return setmetatable({
    status = status,
    headers = headers,
    version = http_version,
    method = plan.method,
    url = plan.shown,
    request_id = headers["x-request-id"] or headers["request-id"] or headers["x-trace-id"],
    provider = request.provider,
    explain = request.explain,
    limits = limits,
    max = request.max or MAX_BODY,
    transfer = transfer,
  }, Response)
end

--- Takes from the body, waiting: data, nil at the end, or a failure.
---@return string? data, string? message, string? code, table? detail
function M.take(response, kind, n, limits)
  local transfer = response.transfer
  while true do
    local data, why = transfer:take(kind, n)
    if data then
      return data
    elseif why == "eof" then
      return nil
    elseif why == "too_large" then
      response:close()
      return errors.fail("too_large", ("%s %s: the body is larger than %d bytes"):format(
        response.method, response.url, n), { provider = response.provider,
        http_status = response.status })
    elseif why == "failed" then
      local detail = M.explain(transfer, response.method .. " " .. response.url, response.provider)
      detail.http_status = response.status
      return fail(detail)
    end
    local message, code, detail = loop.wait(limits, transfer)
    if message then
      detail.provider = response.provider
      return errors.fail(code, ("%s %s: %s"):format(response.method, response.url, message), detail)
    end
  end
end

--- The limits of a read: its own, or else those of the request.
function M.limits(response, opts)
  if opts and (opts.timeout or opts.cancel) then
    return loop.limits { timeout = opts.timeout, cancel = opts.cancel or response.limits.token }
  end
  return response.limits
end

--- The whole body.
---@param opts? { max?: integer, timeout?: number, cancel?: moonsand.Token }
---@return string? body, string? message, string? code, table? detail
function Response:read(opts)
  opts = options.check("response:read", opts, READ)
  return errors.outcome(M.take(self, "a", opts.max or self.max, M.limits(self, opts)))
end

--- The whole body, decoded. An empty one is nil without a message.
---@param opts? { max?: integer, timeout?: number, cancel?: moonsand.Token }
---@return any value, string? message, string? code, table? detail
function Response:json(opts)
  opts = options.check("response:json", opts, READ)
  local text, message, code, detail = M.take(self, "a", opts.max or self.max, M.limits(self, opts))
  if not text then
    return nil, message, code, detail
  elseif not text:find "%S" then
    return nil
  end
  local value
  value, message, code, detail = json.decode(text)
  if message then
    detail.http_status, detail.request_id = self.status, self.request_id
    detail.provider = self.provider
    return errors.fail(code, ("%s %s: %s"):format(self.method, self.url, message), detail)
  end
  return value
end

--- Drops the body, and the connection if it was not whole. Idempotent, at once.
function Response:close()
  self.transfer:close()
  local body = rawget(self, "body")
  if body then
    body:close()
  end
  if self.forget then
    self.forget()
    self.forget = nil
  end
end

Response.__close = Response.close

--- From the headers on the token ends the transfer itself, whoever reads or does not.
local function end_by_token(response, token)
  if not token or response.transfer:over() then
    return
  end
  local weak = setmetatable({ transfer = response.transfer }, { __mode = "v" })
  response.forget = token:on_cancel(function()
    if weak.transfer then
      weak.transfer:close "cancelled"
    end
  end)
end

-- ---------------------------------------------------------------- sending

local function close_transfer(transfer)
  transfer:close()
end

--- Waits for the headers, after the body was given.
local function exchange(plan, transfer, limits)
  if plan.source and not plan.source.text then
    local done, message, code, detail = bodies.feed(transfer, plan.source, limits)
    if not done then
      return nil, message, code, detail
    end
  end
  while not transfer:answered() do
    if transfer:over() then
      return nil
    end
    local message, code, detail = loop.wait(limits, transfer)
    if message then
      return nil, message, code, detail
    end
  end
  return true
end

--- Sends it once.
---@return moonsand.http.Response? response, string? message, string? code, table? detail
local function attempt(plan, limits)
  local transfer, message, code, detail = start(plan, limits)
  if not transfer then
    return nil, message, code, detail
  end
  local guard = loop.guard(close_transfer, transfer)
  local done
  done, message, code, detail = exchange(plan, transfer, limits)
  loop.unguard(guard)
  if not done then
    local shown, provider = plan.method .. " " .. plan.shown, plan.request.provider
    if message then
      return stop(transfer, shown, provider, message, code, detail)
    end
    return fail(M.explain(transfer, shown, provider))
  end
  local response = new_response(plan, transfer, limits)
  end_by_token(response, limits.token)
  return response
end

--- How long to wait before it is sent again; nil: it is not. Only what cannot have started anything
--- is: nothing had left, or the service says so and when to come back.
local function delay_before_retry(response, detail, count)
  if response then
    if response.status ~= 429 and response.status ~= 503 then
      return nil
    end
    local seconds = failure.retry_after(response.headers["retry-after"])
    return seconds and seconds <= RETRY_AFTER_MAX and seconds + RETRY_DELAY * math.random() or nil
  elseif detail.retry and (detail.what == "connect" or detail.what == "dns") then
    return RETRY_DELAY * 2 ^ (count - 1) * (0.5 + math.random())
  end
end

local function rewind(source)
  return not source or source.text ~= nil or (source.rewind ~= nil and source.rewind())
end

--- Waits; false when the time of the request would be over before, or the limits' failure.
local function pause(seconds, limits)
  local until_ = core.now() + seconds
  if limits.deadline and until_ >= limits.deadline then
    return false
  end
  local message, code, detail = loop.wait({ deadline = until_, token = limits.token }, loop.signal())
  if code == "cancelled" then
    return nil, message, code, detail
  end
  return true
end

local function send(plan, limits)
  local retries, count = plan.request.retries or RETRIES, 0
  while true do
    local response, message, code, detail = attempt(plan, limits)
    count = count + 1
    local seconds = count <= retries and delay_before_retry(response, detail, count)
    if not seconds or not rewind(plan.source) then
      return response, message, code, detail
    end
    local paused, why, why_code, why_detail = pause(seconds, limits)
    if paused == false then
      return response, message, code, detail
    end
    if response then
      response:close()
    end
    if not paused then
      return nil, why, why_code, why_detail
    end
  end
end

-- ---------------------------------------------------------------- Client

---@class moonsand.http.Client
---@field private options moonsand.http.Options
local Client = {}
Client.__index = Client
Client.__name = "moonsand.http.Client"
Client.__tostring = function(self)
  return ("moonsand.http.Client (%s)"):format(urls.safe(self.options.base_url or ""))
end

--- `over` over `under`; headers one by one.
local function merge(under, over)
  if next(under) == nil then
    return over
  end
  local merged = {}
  for name, value in pairs(under) do
    merged[name] = value
  end
  for name, value in pairs(over) do
    merged[name] = value
  end
  if under.headers and over.headers then
    local known = {}
    add_headers(known, under.headers)
    add_headers(known, over.headers)
    merged.headers = {}
    for _, header in pairs(known) do
      merged.headers[header[1]] = header[2]
    end
  end
  return merged
end

local NONE = setmetatable({ options = {} }, Client) -- the client of nobody in particular

---@param opts? moonsand.http.Options
---@return moonsand.http.Client
function M.client(opts)
  return setmetatable({ options = options.check("http.client", opts, CLIENT) }, Client)
end

--- Another client with these options over this one's.
---@param opts moonsand.http.Options
---@return moonsand.http.Client
function Client:with(opts)
  return M.client(merge(self.options, options.check("client:with", opts, CLIENT)))
end

local function accepted(accept, status)
  if not accept then
    return status >= 200 and status < 300
  elseif type(accept) == "function" then
    return accept(status)
  end
  for _, one in ipairs(accept) do
    if one == status then
      return true
    end
  end
  return false
end

--- The plan of a request and its limits, or a failure.
local function prepare(self, request)
  request = merge(self.options, request)
  local plan, message, code, detail = plan_of(request)
  if not plan then
    detail.provider = request.provider
    return nil, message, code, detail
  end
  return plan, loop.limits(request)
end

local function request(self, opts)
  local plan, limits, code, detail = prepare(self, opts)
  if not plan then
    return nil, limits, code, detail
  end
  return send(plan, limits)
end

local function open(self, opts)
  local response, message, code, detail = request(self, opts)
  if not response then
    return nil, message, code, detail
  elseif accepted(opts.accept, response.status) then
    return response
  end
  return failure.from(response)
end

local function call(self, opts)
  local response, message, code, detail = open(self, opts)
  if not response then
    return nil, message, code, detail
  end
  local kind = response.headers["content-type"] or ""
  local value
  if kind:lower():find("json", 1, true) then
    value, message, code, detail = response:json()
  else
    value, message, code, detail = response:read()
  end
  if message then
    return nil, message, code, detail
  end
  response:close()
  return value, response
end

--- Sends a request: the answer, whatever its status, once its headers are there.
---@param opts moonsand.http.Request
---@return moonsand.http.Response? response, string? message, string? code, table? detail
function Client:request(opts)
  opts = options.check("client:request", opts, REQUEST)
  return errors.outcome(request(self, opts))
end

--- The same, but a status that is not accepted (other than 2xx) is a failure.
---@param opts moonsand.http.Request
---@return moonsand.http.Response? response, string? message, string? code, table? detail
function Client:open(opts)
  opts = options.check("client:open", opts, REQUEST)
  return errors.outcome(open(self, opts))
end

--- The same, and the body is read: decoded when it says that it is JSON.
---@param opts moonsand.http.Request
---@return any value, moonsand.http.Response|string response_or_message, string? code, table? detail
function Client:call(opts)
  opts = options.check("client:call", opts, REQUEST)
  local value, response, code, detail = call(self, opts)
  return value, response, code, detail
end

--- A request without a body for the end of the Lua state, if `wish:revoke()` is not called before:
--- it is sent then without Lua, once, side by side with others of its kind, for two seconds at most
--- in all, and nobody looks at the answer. Nil where the host's end must not be held up.
---@param opts moonsand.http.Request
---@return { revoke: fun(self) }? wish, string? message, string? code, table? detail
function Client:wish(opts)
  opts = options.check("client:wish", opts, REQUEST)
  if opts.body or opts.json or opts.multipart then
    errors.raise(2, "client:wish: a wish has no body")
  elseif not loop.host().lingers then
    return nil
  end
  local plan, message, code, detail = prepare(self, opts)
  if not plan then
    return nil, message, code, detail
  end
  local connected
  connected, message, code, detail = network()
  if not connected then
    return nil, message, code, detail
  end
  return connected:wish(wire_of(plan))
end

--- `request`, `open` and `call` without a client.
function M.request(opts)
  opts = options.check("http.request", opts, REQUEST)
  return errors.outcome(request(NONE, opts))
end

function M.open(opts)
  opts = options.check("http.open", opts, REQUEST)
  return errors.outcome(open(NONE, opts))
end

function M.call(opts)
  opts = options.check("http.call", opts, REQUEST)
  local value, response, code, detail = call(NONE, opts)
  return value, response, code, detail
end

--- A WebSocket with this client's options.
---@param opts moonsand.websocket.Options
---@return moonsand.WebSocket? websocket, string? message, string? code, table? detail
function Client:websocket(opts)
  return require("moonsand.wire.websocket").connect(merge(self.options, opts))
end

M.failure = failure.from
M.retry_after = failure.retry_after
M.escape = urls.escape
M.header_lines = header_lines
M.add_headers = add_headers

return M
