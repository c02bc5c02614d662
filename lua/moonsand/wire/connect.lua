--- The Connect protocol with JSON messages: calls with one answer, and calls with a stream of them.

local errors = require "moonsand.errors"
local events = require "moonsand.wire.events"
local json = require "moonsand.wire.json"
local net = require "moonsand.net"

local M = {}

local COMPRESSED, END = 1, 2 -- flags of an envelope

local codes = {
  canceled = "cancelled",
  unknown = "provider",
  invalid_argument = "invalid",
  deadline_exceeded = "timeout",
  not_found = "not_found",
  already_exists = "exists",
  permission_denied = "permission_denied",
  resource_exhausted = "rate_limited",
  failed_precondition = "conflict",
  aborted = "conflict",
  out_of_range = "invalid",
  unimplemented = "unsupported",
  internal = "provider",
  unavailable = "not_ready",
  data_loss = "provider",
  unauthenticated = "auth",
}

--- The failure that an error of the protocol stands for.
---@param error { code?: string, message?: string, details?: table }
---@param detail? table
---@return nil, string message, string code, table detail
function M.failure(error, detail)
  detail = detail or {}
  local name = type(error.code) == "string" and error.code or "unknown"
  detail.provider_code = name
  detail.details = error.details
  local message = type(error.message) == "string" and error.message ~= "" and error.message or name
  return errors.fail(codes[name] or "provider", message, detail)
end

--- A refusal by HTTP whose body is an error of the protocol. Others keep the code of their status.
local function explain(_, body)
  if type(body) == "table" and codes[body.code] then
    return body.message, codes[body.code], { provider_code = body.code, details = body.details }
  end
end

--- A message in its envelope.
---@param message string
---@param flags? integer
---@return string bytes
function M.frame(message, flags)
  local length = #message
  return string.char(flags or 0, math.floor(length / 2 ^ 24) % 256, math.floor(length / 2 ^ 16) % 256,
    math.floor(length / 2 ^ 8) % 256, length % 256) .. message
end

local function request_of(path, body, kind, opts)
  local request = {
    method = "POST",
    path = path,
    body = body,
    type = kind,
    explain = explain,
    headers = { ["Connect-Protocol-Version"] = "1" },
  }
  for name, value in pairs(opts or {}) do
    if name == "headers" then
      for header, content in pairs(value) do
        request.headers[header] = content
      end
    elseif name ~= "max" then
      request[name] = value
    end
  end
  return request
end

--- No body is a message without fields.
local function encode(message)
  if message == nil or next(message) == nil then
    return "{}"
  end
  return json.encode(message)
end

--- A call with one answer.
---@param client moonsand.http.Client
---@param path string "/process.Process/List"
---@param message? table
---@param opts? { headers?: table, timeout?: number, cancel?: moonsand.Token, max?: integer }
---@return table? answer, moonsand.http.Response|string response, string? code, table? detail
function M.unary(client, path, message, opts)
  local body, why, code, detail = encode(message)
  if not body then
    return nil, why, code, detail
  end
  local request = request_of(path, body, "application/json", opts)
  request.max = opts and opts.max
  local answer, response
  answer, response, code, detail = client:call(request)
  if answer == nil then
    return nil, response, code, detail
  elseif type(answer) ~= "table" then
    return errors.fail("protocol", ("POST %s: the answer is no JSON object"):format(response.url),
      { http_status = response.status, provider = response.provider })
  end
  return answer, response
end

--- What one envelope means: a message, nil (the stream has ended well), or a failure.
local function message_of(text, flags, state)
  if state.closed then
    return nil, "something came after the end of the stream"
  elseif flags % 2 == COMPRESSED then
    return nil, "a compressed message, which was not asked for"
  end
  local value, why, code = json.decode(text)
  if why then
    return nil, why, code
  elseif type(value) ~= "table" then
    return nil, "a message that is no JSON object"
  elseif flags == END then
    state.closed = true
    state.error = type(value.error) == "table" and value.error or nil
    return nil
  elseif flags ~= 0 then
    return nil, ("an envelope with the flags %d"):format(flags)
  end
  return value
end

--- The end of the body: well only after an end frame without an error.
local function finish(state, fail)
  local response = state.response
  if state.error then
    return M.failure(state.error, { http_status = response.status, provider = response.provider,
      request_id = response.request_id })
  elseif state.closed and state.reader:rest() == 0 then
    return nil
  end
  return fail(state, "lost", "the stream ended without its end frame")
end

--- A call with a stream of answers.
---@param client moonsand.http.Client
---@param path string
---@param message? table
---@param opts? { headers?: table, timeout?: number, cancel?: moonsand.Token, max?: integer, fresh?: boolean }
---@return moonsand.Iterator? messages, string? text, string? code, table? detail
function M.stream(client, path, message, opts)
  local body, why, code, detail = encode(message)
  if not body then
    return nil, why, code, detail
  end
  local response
  response, why, code, detail =
    client:open(request_of(path, M.frame(body), "application/connect+json", opts))
  if not response then
    return nil, why, code, detail
  end
  local kind = response.headers["content-type"] or ""
  if not kind:find("^application/connect%+json") then
    response:close()
    return errors.fail("protocol", ("POST %s: not a Connect stream but '%s'"):format(response.url, kind),
      { http_status = response.status, provider = response.provider })
  end
  return events.iterator("connect.stream", response, { max = opts and opts.max }, net.envelopes,
    message_of, finish)
end

return M
