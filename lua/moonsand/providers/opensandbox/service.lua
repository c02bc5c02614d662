--- The lifecycle server: its address and key, its calls, and where the ports of a sandbox are.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local http = require "moonsand.wire.http"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local texts = require "moonsand.text"

local M = {}

local NAME = "opensandbox"
local PAGE = 100 -- of a list; the server's most is 200

--- How often something that changes by itself is looked at.
local LOOK = 0.2

---@class moonsand.opensandbox.Service
---@field client moonsand.http.Client of the lifecycle server
---@field private protocol string of the sandboxes' addresses, which come without one
---@field private shared table options of all clients
---@field private by_server boolean ports are reached through the lifecycle server
local Service = {}
Service.__index = Service

-- ---------------------------------------------------------------- what a refusal means

--- What execd (Go) calls an error of the system, in our words.
local WORDS = {
  ["no such file or directory"] = "not_found",
  ["permission denied"] = "permission_denied",
  ["operation not permitted"] = "permission_denied",
  ["file exists"] = "exists",
  ["not a directory"] = "not_a_directory",
  ["is a directory"] = "is_a_directory",
  ["directory not empty"] = "not_empty",
  ["read-only file system"] = "read_only",
  ["too many levels of symbolic links"] = "loop",
  ["device or resource busy"] = "busy",
  ["text file busy"] = "busy",
  ["no space left on device"] = "no_space",
  ["disk quota exceeded"] = "no_space",
  ["argument list too long"] = "too_large",
  ["file name too long"] = "invalid",
}

--- The service's own codes, where they say more than the status.
local CODES = {
  FILE_NOT_FOUND = "not_found",
  CONTEXT_NOT_FOUND = "not_found",
  SESSION_NOT_FOUND = "not_found",
  NOT_SUPPORTED = "unsupported",
  ALREADY_CONNECTED = "busy",
  SERVICE_UNAVAILABLE = "not_ready",
}

--- Parts of messages of RUNTIME_ERROR, which says nothing by itself.
local PARTS = {
  { "context not found", "not_found" }, { "no such session", "not_found" },
  { "session is busy", "busy" }, { "is not running", "gone" },
  { "unknown language", "unsupported" }, { "unsupported language", "unsupported" },
  { "unknown user", "not_found" }, { "unknown group", "not_found" },
  { "timeout after", "timeout" },
}

--- The code that a message of execd's stands for; nil when it says nothing that we know.
---@param provider_code any
---@param message any
---@return string?
function M.code_of(provider_code, message)
  if CODES[provider_code] then
    return CODES[provider_code]
  elseif provider_code ~= "RUNTIME_ERROR" or type(message) ~= "string" then
    return nil
  end
  local last = texts.reason(message) or message
  if WORDS[last] then
    return WORDS[last]
  end
  for _, part in ipairs(PARTS) do
    if message:find(part[1], 1, true) then
      return part[2]
    end
  end
end

--- The words of the system alone: "permission denied".
---@return string?
function M.errno_of(message)
  return WORDS[texts.reason(message) or message]
end

local function explain(response, body)
  if response.status == 502 or response.status == 504 then
    return nil, "not_ready" -- a gateway that does not reach what is behind it
  elseif type(body) == "table" then
    return nil, M.code_of(body.code, body.message)
  end
end

--- The failure that an object of an event stream tells, `{ code, message }`.
function M.told(object, what, detail)
  detail = detail or {}
  detail.provider, detail.provider_code = NAME, object.code
  local message = type(object.message) == "string" and object.message or "it failed"
  return errors.fail(M.code_of(object.code, object.message) or "provider",
    ("%s: %s"):format(what, message), detail)
end

-- ---------------------------------------------------------------- requests

--- A request's options from limits that were computed once.
---@param limits? moonsand.Limits
---@param request table is changed
---@return table request
function M.within(limits, request)
  if limits then
    request.timeout = limits.deadline and math.max(limits.deadline - core.now(), 0) or nil
    request.cancel = limits.token
  end
  return request
end

--- One call of the lifecycle server: the decoded answer, or true for an empty one.
---@param limits? moonsand.Limits
---@param request moonsand.http.Request
function Service:call(limits, request)
  local value, message, code, detail = self.client:call(M.within(limits, request))
  if value == nil and code then
    return nil, message, code, detail
  elseif value == nil or value == "" then
    return true
  elseif type(value) ~= "table" then
    return errors.fail("protocol", "the OpenSandbox server answered something that is no object",
      { provider = NAME })
  end
  return value
end

--- All items of all pages.
---@param path string
---@param query table list of { name, value }
---@param limits? moonsand.Limits
function Service:pages(path, query, limits)
  local items, number = {}, 0
  repeat
    number = number + 1
    local asked = { { "page", number }, { "pageSize", PAGE } }
    for _, pair in ipairs(query) do
      asked[#asked + 1] = pair
    end
    local answer, message, code, detail = self:call(limits, { path = path, query = asked })
    if not answer then
      return nil, message, code, detail
    elseif answer == true or type(answer.items) ~= "table" then
      return errors.fail("protocol", "a list of the OpenSandbox server has no items",
        { provider = NAME })
    end
    for _, item in ipairs(answer.items) do
      items[#items + 1] = item
    end
    local more = type(answer.pagination) == "table" and answer.pagination.hasNextPage == true
  until not more or #answer.items == 0
  return items
end

---@param id string
---@param rest? string
function M.path(id, rest)
  return "/sandboxes/" .. http.escape(id) .. (rest or "")
end

--- What the server knows of one sandbox.
function Service:get(id, limits)
  return self:call(limits, { path = M.path(id) })
end

local function deletion(id)
  return { method = "DELETE", path = M.path(id), idempotent = true }
end

--- Its end as a last wish (see `client:wish`).
function Service:wish_deleted(id)
  return self.client:wish(deletion(id))
end

--- Ends a sandbox. Gone already is true.
function Service:delete(id, limits)
  local ok, message, code, detail = self:call(limits, deletion(id))
  if ok or code == "not_found" or code == "gone" then
    return true
  end
  return nil, message, code, detail
end

--- States in which nothing runs any more and nothing will.
local OVER = { Terminated = true, Failed = true, Stopping = true }

---@return boolean
function M.is_over(sandbox)
  return type(sandbox.status) == "table" and OVER[sandbox.status.state] or false
end

--- Waits until a sandbox that was deleted is no more.
function Service:await_gone(id, limits)
  while true do
    local there, message, code, detail = self:get(id, limits)
    if code == "not_found" or code == "gone" then
      return true
    elseif not there then
      return nil, message, code, detail
    elseif there.status and there.status.state == "Terminated" then
      return true
    end
    message, code, detail = M.pause(LOOK, limits)
    if message then
      return errors.fail(code, "the sandbox has not ended yet: " .. message, detail)
    end
  end
end

--- Waits so long, or until one of the waitables has something. Answers the failure of the limits.
---@param seconds number
---@param limits? moonsand.Limits
---@param ... any waitables
---@return string? message, string? code, table? detail
function M.pause(seconds, limits, ...)
  local at = core.now() + seconds
  local last = limits and limits.deadline
  local mine = { deadline = last and math.min(last, at) or at,
    token = limits and limits.token, shield = limits and limits.shield }
  local message, code, detail = loop.wait(mine, ...)
  if code == "timeout" and not (last and last <= core.now()) then
    return nil
  end
  return message, code, detail
end

-- ---------------------------------------------------------------- ports

--- A client of a port inside: its address has a path, and its headers go with every request.
---@param id string
---@param port integer
---@param limits? moonsand.Limits
---@return moonsand.http.Client? client, string? address_or_message, string? code, table? detail
function Service:endpoint(id, port, limits)
  local query = self.by_server and { use_server_proxy = true } or nil
  local answer, message, code, detail = self:call(limits,
    { path = M.path(id, ("/endpoints/%d"):format(port)), query = query })
  if not answer then
    return nil, message, code, detail
  elseif answer == true or type(answer.endpoint) ~= "string" then
    return errors.fail("protocol", "the OpenSandbox server named no endpoint", { provider = NAME })
  end
  local address = paths.bare(answer.endpoint)
  if not address:find "^%a[%w+.-]*://" then
    address = self.protocol .. "://" .. address
  end
  local client = http.client(self.shared):with { base_url = address,
    headers = type(answer.headers) == "table" and answer.headers or {} }
  return client, address
end

-- ---------------------------------------------------------------- opening

local function environment(name)
  local value = os.getenv(name)
  return value ~= "" and value or nil
end

--- The server's address: of the options, of the environment, else the one of a laptop.
local function address_of(opts)
  local url = opts.base_url
  if not url then
    local domain = opts.domain or environment "OPEN_SANDBOX_DOMAIN" or "localhost:8080"
    local protocol = opts.protocol or environment "OPEN_SANDBOX_PROTOCOL" or "http"
    url = domain:find "://" and domain or protocol .. "://" .. domain
  end
  url = url:gsub("/+$", "")
  local protocol, rest = url:match "^(https?)://([^%s]+)$"
  if not protocol then
    return errors.fail("invalid", ("base_url: %s is no address of a server"):format(
      options.quote(url)))
  end
  return rest:find("/", 1, true) and url or url .. "/v1", protocol
end

--- The service that a call's options and the environment name.
---@return moonsand.opensandbox.Service? service, string? message, string? code, table? detail
function M.open(opts)
  local url, protocol, code, detail = address_of(opts)
  if not url then
    return nil, protocol, code, detail
  end
  local key = opts.api_key or environment "OPEN_SANDBOX_API_KEY"
  local shared = { proxy = opts.proxy, ca_file = opts.ca_file, retries = opts.retries,
    headers = opts.headers, provider = NAME, explain = explain }
  return setmetatable({
    client = http.client(shared):with { base_url = url,
      headers = { ["OPEN-SANDBOX-API-KEY"] = key or false } },
    protocol = protocol,
    shared = shared,
    by_server = opts.use_server_proxy or false,
  }, Service)
end

return M
