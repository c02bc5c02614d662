--- What a service says when it refuses, in our words.

local errors = require "moonsand.errors"
local json = require "moonsand.wire.json"

local M = {}

local MAX_BODY = 64 * 1024
local MAX_MESSAGE = 2000

local codes = {
  [400] = "invalid",
  [401] = "auth",
  [402] = "quota",
  [403] = "auth",
  [404] = "not_found",
  [405] = "unsupported",
  [407] = "auth",
  [409] = "conflict",
  [410] = "gone",
  [413] = "too_large",
  [429] = "rate_limited",
  [501] = "unsupported",
  [503] = "not_ready",
  [507] = "no_space",
}

--- The code for a status that is no success.
---@param status integer
---@return string
function M.code(status)
  if codes[status] then
    return codes[status]
  end
  return status < 400 and "protocol" or status < 500 and "invalid" or "provider"
end

local months = { Jan = 1, Feb = 2, Mar = 3, Apr = 4, May = 5, Jun = 6,
  Jul = 7, Aug = 8, Sep = 9, Oct = 10, Nov = 11, Dec = 12 }

--- Unix seconds of a date in universal time; os.time would take it for a local one.
local function timestamp(year, month, day, hour, minute, second)
  if month <= 2 then
    year, month = year - 1, month + 12
  end
  local days = 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
    + math.floor((153 * (month - 3) + 2) / 5) + day - 719469
  return ((days * 24 + hour) * 60 + minute) * 60 + second
end

--- The seconds that a Retry-After asks for, given as such or as a date.
---@param value? string
---@return number? seconds never negative
function M.retry_after(value)
  local seconds = value and tonumber(value:match "^%s*(%d[%d.]*)%s*$")
  if seconds or not value then
    return seconds
  end
  local day, month, year, hour, minute, second =
    value:match "^%a+, (%d+) (%a+) (%d+) (%d+):(%d+):(%d+) GMT$"
  if not months[month] then
    return nil
  end
  local at = timestamp(tonumber(year), months[month], tonumber(day), tonumber(hour),
    tonumber(minute), tonumber(second))
  return math.max(0, at - os.time())
end

--- The first of FastAPI's complaints: { detail = { { loc, msg } } }.
local function complaint(detail)
  local first = detail[1]
  if type(first) ~= "table" or type(first.msg) ~= "string" then
    return nil
  end
  local where = {}
  for _, step in ipairs(type(first.loc) == "table" and first.loc or {}) do
    where[#where + 1] = (type(step) == "string" or type(step) == "number") and step or nil
  end
  return where[1] and table.concat(where, ".") .. ": " .. first.msg or first.msg
end

local function text(value)
  return type(value) == "string" and value ~= "" and value or nil
end

--- The words of a refusal, and the service's own code, in the forms that services have.
local function explain(body)
  if type(body) ~= "table" then
    return text(body)
  elseif type(body.error) == "table" then
    return explain(body.error)
  end
  local message = text(body.message) or text(body.error) or text(body.detail)
    or type(body.detail) == "table" and (complaint(body.detail) or text(body.detail.message)) or nil
  local code = body.code
  return message, type(code) == "string" and code or type(code) == "number" and tostring(code) or nil
end

--- One line of text, not too long, for a message; nil for a page of HTML and the like.
local function one_line(message)
  if not message or message:find "^%s*<" then
    return nil
  end
  -- Cut first: the square of many blanks is what these patterns cost.
  message = message:gsub("^%s+", ""):sub(1, MAX_MESSAGE):gsub("%s+$", "")
    :gsub("%s*[\r\n]+%s*", "; "):gsub("[%c\127]", "?")
  return message ~= "" and message:sub(1, MAX_MESSAGE) or nil
end

--- The body of a refusal, decoded where it is JSON; whatever hinders that is no news.
local function read(response, opts)
  local body = response:read { max = MAX_BODY, timeout = opts.timeout, cancel = opts.cancel }
  if not body or body == "" then
    return nil
  end
  local value = body:find "^%s*[%[{]" and json.decode(body) or nil
  return value ~= nil and value or body
end

--- The failure that an answer stands for. Reads its body, and ends it.
---@param response moonsand.http.Response
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return nil, string message, string code, table detail
function M.from(response, opts)
  local body = read(response, opts or {})
  response:close()
  local detail = {
    http_status = response.status,
    retry_after = M.retry_after(response.headers["retry-after"]),
    request_id = response.request_id,
    provider = response.provider,
    body = body,
  }
  local message, provider_code = explain(body)
  local code = M.code(response.status)
  detail.retry = (response.status == 429 or response.status == 503)
    and detail.retry_after ~= nil or nil
  detail.provider_code = provider_code
  if response.explain then
    local own_message, own_code, more = response.explain(response, body)
    message, code = own_message or message, own_code or code
    for key, value in pairs(more or {}) do
      detail[key] = value
    end
  end
  message = one_line(message)
  if response.status >= 300 and response.status < 400 then
    message = message or "a redirect, which is not followed"
  end
  return errors.fail(code, ("%s %s: HTTP %d%s"):format(response.method, response.url,
    response.status, message and ": " .. message or ""), detail)
end

return M
