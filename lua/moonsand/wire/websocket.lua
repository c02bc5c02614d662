--- WebSockets (RFC 6455) over `moonsand.net`: the upgrade is asked for and checked here, frames are
--- the C module's. Messages are whole; text and binary are told apart.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local failure = require "moonsand.wire.failure"
local http = require "moonsand.wire.http"
local loop = require "moonsand.loop"
local net = require "moonsand.net"
local options = require "moonsand.options"
local urls = require "moonsand.wire.url"
local version = require "moonsand.version"

local M = {}

local MAX_MESSAGE = 16 * 1024 * 1024
local REFUSAL_TIME = 5 -- seconds for the body of a refusal
local MAX_SIZE_DIGITS = 8 -- of a chunk
local MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

---@class moonsand.websocket.Options: moonsand.http.Options
---@field url? string ws://, wss://, http:// or https://
---@field path? string after base_url
---@field query? table
---@field protocols? string[]
---@field max? integer bytes of one message
---@field timeout? number seconds to the upgrade
---@field cancel? moonsand.Token until the upgrade
local CONNECT = {
  url = "string", path = "string", query = "table", protocols = "table", max = "number",
  timeout = "number", cancel = "table",
  base_url = "string", headers = "table", proxy = "string|boolean", ca_file = "string",
  retries = "number", connect_timeout = "number", version = "string", compressed = "boolean",
  provider = "string", explain = "function",
}
local WAIT = { timeout = "number", cancel = "table" }
local SEND = { timeout = "number", cancel = "table", kind = "string" }
local SCHEMES = { ws = "http", wss = "https", http = "http", https = "https" }

---@class moonsand.WebSocket
---@field url string without query, user or password
---@field protocol? string what the server chose
---@field private socket userdata
local WebSocket = {}
WebSocket.__index = WebSocket
WebSocket.__name = "moonsand.WebSocket"
WebSocket.__tostring = function(self)
  return ("moonsand.WebSocket (%s%s)"):format(self.url, self.socket:failure() and ", closed" or "")
end

-- ---------------------------------------------------------------- the upgrade

--- What is asked for: { url for curl, shown, request, key }.
local function plan_of(opts)
  local url = opts.url or (opts.base_url or "") .. (opts.path or "")
  local ok, message, code, detail = urls.check(url, SCHEMES)
  if not ok then
    return nil, message, code, detail
  end
  local scheme, authority, target = url:gsub("#.*$", ""):match "^(%a+)://([^/?]*)(.*)$"
  target = (target:find "^/" and target or "/" .. target) .. urls.query(opts.query)
  local key = net.base64(core.random(16))
  local known = {}
  http.add_headers(known, { ["User-Agent"] = "moonsand/" .. version })
  http.add_headers(known, opts.headers)
  http.add_headers(known, {
    Host = authority:gsub("^.*@", ""),
    Connection = "Upgrade",
    Upgrade = "websocket",
    ["Sec-WebSocket-Version"] = "13",
    ["Sec-WebSocket-Key"] = key,
    ["Sec-WebSocket-Protocol"] = opts.protocols and table.concat(opts.protocols, ", ") or nil,
  })
  for name, header in pairs(known) do
    if header[2][1] == false then
      known[name] = nil
    end
  end
  local lines
  lines, message, code, detail = http.header_lines(known)
  if not lines then
    return nil, message, code, detail
  end
  for i, line in ipairs(lines) do
    lines[i] = line:gsub(";$", ":")
  end
  return {
    url = SCHEMES[scheme:lower()] .. "://" .. authority .. "/",
    shown = urls.safe(url),
    request = ("GET %s HTTP/1.1\r\n%s\r\n\r\n"):format(target, table.concat(lines, "\r\n")),
    key = key,
  }
end

--- Status and headers of the answer to the request; nil when it is no HTTP.
local function parse_head(head)
  local status = head:match "^HTTP/1%.[01] (%d%d%d)[ \r\n]"
  local headers = {}
  for name, value in head:gmatch "\n([^:\r\n]+):[ \t]*([^\r\n]*)" do
    name, value = name:lower(), value:match "^.*[^ \t]" or ""
    headers[name] = headers[name] and headers[name] .. ", " .. value or value
  end
  return tonumber(status), headers
end

--- Whether a list in a header has a word.
local function has(list, word)
  for item in (list or ""):gmatch "[^,%s]+" do
    if item:lower() == word then
      return true
    end
  end
  return false
end

--- What is wrong with an upgrade, or nil.
local function wrong(headers, plan, opts)
  if not has(headers.upgrade, "websocket") or not has(headers.connection, "upgrade") then
    return "the answer is no upgrade to a WebSocket"
  elseif headers["sec-websocket-accept"] ~= net.base64(net.sha1(plan.key .. MAGIC)) then
    return "the answer has the wrong Sec-WebSocket-Accept"
  elseif headers["sec-websocket-extensions"] then
    return "the answer has an extension that was not asked for"
  end
  local chosen = headers["sec-websocket-protocol"]
  for _, protocol in ipairs(chosen and opts.protocols or {}) do
    if protocol == chosen then
      return nil
    end
  end
  return chosen and "the answer has a protocol that was not asked for" or nil
end

--- The pieces of a chunked body, as many as are whole; then whether that was all.
local function unchunk(text)
  local pieces, at = {}, 1
  while true do
    local stop, from = text:find("\r\n", at, true)
    if not stop then
      return table.concat(pieces), false
    end
    local digits = text:sub(at, stop - 1):match "^%x+" or ""
    -- Longer numbers are none: they could be read as negative ones, and lead back here.
    local size = #digits <= MAX_SIZE_DIGITS and tonumber(digits, 16) or 0
    if size == 0 then
      return table.concat(pieces), true
    elseif from + size > #text then
      return table.concat(pieces), false
    end
    pieces[#pieces + 1] = text:sub(from + 1, from + size)
    at = from + size + 3
  end
end

--- The body of a refusal, as far as it comes in time.
local function refusal_body(socket, headers)
  local limits = loop.limits { timeout = REFUSAL_TIME }
  local length = tonumber(headers["content-length"])
  while true do
    local text, all = socket:rest()
    if has(headers["transfer-encoding"], "chunked") then
      local whole
      text, whole = unchunk(text)
      all = all or whole
    elseif length and #text >= length then
      return text:sub(1, length)
    end
    if all or loop.wait(limits, socket) then
      return text
    end
  end
end

--- A refusal in the form of an answer to a request.
local function refused(socket, status, headers, plan, opts)
  local body = refusal_body(socket, headers)
  socket:close()
  return failure.from {
    status = status,
    headers = headers,
    method = "GET",
    url = plan.shown,
    request_id = headers["x-request-id"],
    provider = opts.provider,
    explain = opts.explain,
    read = function()
      return body
    end,
    close = function() end,
  }
end

local function lost(plan, opts, code, why)
  return errors.fail(code, ("WebSocket %s: %s"):format(plan.shown, why), { provider = opts.provider })
end

--- The connection itself: a transfer that only connects.
local function dial(plan, opts, limits)
  local reactor, message, code, detail = loop.reactor()
  if not reactor then
    return nil, message, code, detail
  end
  local own = net.open(reactor) -- src/net/websocket.c says why it shares none
  local transfer = own:start {
    url = plan.url,
    method = "GET",
    headers = {},
    connect_only = true,
    version = "1.1",
    connect_timeout = opts.connect_timeout,
    proxy = opts.proxy == false and "" or opts.proxy ~= true and opts.proxy or nil,
    ca_file = opts.ca_file,
  }
  local shown = "WebSocket " .. plan.shown
  while not transfer:over() do
    message, code, detail = loop.wait(limits, transfer)
    if message then
      transfer:close()
      own:close_idle()
      detail.provider = opts.provider
      return errors.fail(code, ("%s: %s"):format(shown, message), detail)
    end
  end
  if transfer:failure() then
    local why = http.explain(transfer, shown, opts.provider)
    own:close_idle()
    return errors.fail(why.code, why.message, why)
  end
  return net.websocket(own, transfer, plan.request, opts.max or MAX_MESSAGE)
end

local function read_head(socket, plan, opts, limits)
  while true do
    local head, why = socket:head()
    if head then
      return head
    elseif why == "over" then
      local kind = socket:failure()
      if kind == "headers" then
        return lost(plan, opts, "too_large", "the answer's headers are too large")
      end
      return lost(plan, opts, "lost", "the connection ended before an answer")
    end
    local message, code, detail = loop.wait(limits, socket)
    if message then
      socket:close()
      detail.provider = opts.provider
      return errors.fail(code, ("WebSocket %s: %s"):format(plan.shown, message), detail)
    end
  end
end

--- Connects and upgrades.
---@param opts moonsand.websocket.Options
---@return moonsand.WebSocket? websocket, string? message, string? code, table? detail
function M.connect(opts)
  opts = options.check("websocket.connect", opts, CONNECT)
  local plan, message, code, detail = plan_of(opts)
  if not plan then
    return nil, message, code, detail
  end
  local limits = loop.limits(opts)
  local socket
  socket, message, code, detail = dial(plan, opts, limits)
  if not socket then
    return nil, message, code, detail
  end
  local head
  head, message, code, detail = read_head(socket, plan, opts, limits)
  if not head then
    return nil, message, code, detail
  end
  local status, headers = parse_head(head)
  if not status then
    socket:close()
    return lost(plan, opts, "protocol", "the answer is no HTTP")
  elseif status ~= 101 then
    return refused(socket, status, headers, plan, opts)
  end
  local why = wrong(headers, plan, opts)
  if why then
    socket:close()
    return lost(plan, opts, "protocol", why)
  end
  socket:upgrade()
  return setmetatable({
    url = plan.shown,
    protocol = headers["sec-websocket-protocol"],
    provider = opts.provider,
    socket = socket,
    reader = false, -- somebody waits in `receive`
  }, WebSocket)
end

-- ---------------------------------------------------------------- messages

local words = {
  lost = "the connection was lost",
  protocol = "the peer broke the protocol",
  too_large = "a message is larger than was allowed",
}

--- Why there is nothing more.
local function over(self)
  local kind, close_code, reason = self.socket:failure()
  if not kind then -- our own Close went out, the peer's is to come
    return errors.fail("closed", ("WebSocket %s: closed"):format(self.url),
      { provider = self.provider })
  end
  local why = words[kind] or self.closed and "closed"
    or ("closed by the peer (%d%s)"):format(close_code, reason ~= "" and ", " .. reason or "")
  return errors.fail(kind, ("WebSocket %s: %s"):format(self.url, why), {
    provider = self.provider,
    close_code = close_code ~= 0 and close_code or nil,
    close_reason = close_code ~= 0 and reason or nil,
  })
end

local function wait(self, limits)
  local message, code, detail = loop.wait(limits, self.socket)
  if message then
    detail.provider = self.provider
    return errors.fail(code, ("WebSocket %s: %s"):format(self.url, message), detail)
  end
  return true
end

local function send(self, data, kind, opts)
  local limits = loop.limits(opts)
  while true do
    local sent, why = self.socket:send(data, kind)
    if sent then
      return self
    elseif why == "over" then
      return over(self)
    elseif why ~= "again" then
      return errors.fail("invalid", ("WebSocket %s: this cannot be sent"):format(self.url))
    end
    local waited, message, code, detail = wait(self, limits)
    if not waited then
      return nil, message, code, detail
    end
  end
end

--- Sends a message, waiting while 256 KiB are unsent.
---@param data string
---@param opts? { kind?: "binary"|"text", timeout?: number, cancel?: moonsand.Token }
---@return moonsand.WebSocket? self, string? message, string? code, table? detail
function WebSocket:send(data, opts)
  opts = options.check("websocket:send", opts, SEND)
  local kind = opts.kind or "binary"
  if type(data) ~= "string" then
    errors.raise(2, "websocket:send: data must be a string, got %s", type(data))
  elseif kind ~= "binary" and kind ~= "text" then
    errors.raise(2, "websocket:send: kind must be \"binary\" or \"text\", got %s", options.quote(kind))
  elseif kind == "text" and net.utf8(data) then
    return errors.fail("invalid", "a text message must be UTF-8")
  end
  return errors.outcome(send(self, data, kind, opts))
end

--- The peer answers with a pong, which `pongs` counts.
---@param data? string at most 125 bytes
---@param opts? { timeout?: number, cancel?: moonsand.Token }
function WebSocket:ping(data, opts)
  data = data or ""
  if type(data) ~= "string" or #data > 125 then
    errors.raise(2, "websocket:ping: data must be a string of at most 125 bytes")
  end
  opts = options.check("websocket:ping", opts, WAIT)
  return errors.outcome(send(self, data, "ping", opts))
end

---@return integer
function WebSocket:pongs()
  return self.socket:pongs()
end

--- A message if there is one; else nil and "again" or "over". Never waits.
---@return string? data, string kind_or_why
function WebSocket:try()
  return self.socket:receive()
end

--- The next message. After the last: `closed` with the peer's code and reason, or `lost`.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return string? data, string? kind_or_message, string? code, table? detail
function WebSocket:receive(opts)
  opts = options.check("websocket:receive", opts, WAIT)
  if self.reader then
    errors.raise(2, "websocket:receive: another coroutine is receiving")
  end
  local limits = loop.limits(opts)
  while true do
    local data, kind = self.socket:receive()
    if data then
      return data, kind
    elseif kind == "over" then
      return over(self)
    end
    self.reader = true
    local waited, message, code, detail = wait(self, limits)
    self.reader = false
    if not waited then
      return nil, message, code, detail
    end
  end
end

--- Says good-bye after what was sent; `receive` goes on until the peer does.
---@param code? integer default 1000
---@param reason? string at most 123 bytes of UTF-8
---@return moonsand.WebSocket self
function WebSocket:shutdown(code, reason)
  code, reason = code or 1000, reason or ""
  if type(code) ~= "number" or type(reason) ~= "string" or #reason > 123 then
    errors.raise(2, "websocket:shutdown: a number and at most 123 bytes")
  end
  self.socket:shutdown(code, reason)
  return self
end

--- Ends it, at once. Idempotent.
function WebSocket:close()
  self.closed = true
  self.socket:close()
end

WebSocket.__close = WebSocket.close

function WebSocket:id()
  return self.socket:id()
end

function WebSocket:arm()
  self.socket:arm()
end

return M
