--- What an answer says piece by piece: lines, JSON lines, server-sent events. Each is an iterator
--- that ends when the body did, completely; a body that was cut is a failure.

local errors = require "moonsand.errors"
local http = require "moonsand.wire.http"
local json = require "moonsand.wire.json"
local net = require "moonsand.net"
local options = require "moonsand.options"
local streams = require "moonsand.stream"

local M = {}

local MAX_ITEM = 16 * 1024 * 1024

local OPTIONS = { max = "number", timeout = "number", cancel = "table" }

---@class moonsand.events.State
---@field response moonsand.http.Response
---@field reader userdata of moonsand.net
---@field convert fun(item: any, extra: any): any what an item is to the caller; nil: skip it
---@field opts table
---@field ended boolean the body was read to its end

local function fail(state, code, why, detail)
  local response = state.response
  response:close()
  detail = detail or {}
  detail.provider, detail.http_status = response.provider, response.status
  detail.request_id = response.request_id
  return errors.fail(code, ("%s %s: %s"):format(response.method, response.url, why), detail)
end

--- The next item of the reader, or the last line.
local function item_of(state)
  local item, extra = state.reader:next()
  if item == nil and extra == "again" and state.ended and state.reader.rest then
    local rest = state.reader:rest()
    if type(rest) == "string" then
      return rest
    end
  end
  return item, extra
end

--- One step: the next item that `convert` takes, nil at the end, or a failure.
local function step(state, opts)
  local limits = http.limits(state.response, opts or state.opts)
  while true do
    local item, extra = item_of(state)
    if item ~= nil then
      local value, why, code = state.convert(item, extra, state)
      if why then
        return fail(state, code or "protocol", why)
      elseif value ~= nil then
        return value
      end
    elseif extra == "too_large" then
      return fail(state, "too_large", ("an item of more than %d bytes"):format(state.max))
    elseif state.ended then
      if state.finish then
        return state.finish(state, fail)
      end
      return nil
    else
      local data, message, code, detail = http.take(state.response, "chunk", 0, limits)
      if data then
        state.reader:feed(data)
      elseif message then
        return nil, message, code, detail
      else
        state.ended = true
      end
    end
  end
end

--- An iterator over an answer's body.
---@param call string for messages
---@param response moonsand.http.Response
---@param opts? { max?: integer, timeout?: number, cancel?: moonsand.Token }
---@param make fun(max: integer): userdata
---@param convert fun(item: any, extra: any, state: moonsand.events.State): any, string?, string?
---@param finish? fun(state: moonsand.events.State, fail: function): any what the end means
---@return moonsand.Iterator
function M.iterator(call, response, opts, make, convert, finish)
  opts = options.check(call, opts, OPTIONS, 3)
  local max = opts.max or MAX_ITEM
  local state = {
    response = response,
    reader = make(max),
    convert = convert,
    finish = finish,
    max = max,
    opts = opts,
    ended = false,
  }
  return streams.iterator(step, state, function()
    response:close()
  end)
end

local function same(item)
  return item
end

--- A line as a JSON value; blank lines and null are skipped.
local function json_of(line)
  if not line:find "%S" then
    return nil
  end
  local value, message, code = json.decode(line)
  return value, message, code
end

--- A line in either framing: bare JSON, or the data of an event.
local function object_of(line)
  local text = line:match "^%s*(.*)$":match "^.*%S" or "" -- "(.-)%s*$" costs the square of blanks
  if text == "" or text:find "^:" or text:find "^event:" or text:find "^id:" or text:find "^retry:" then
    return nil
  end
  return json_of(text:match "^data:(.*)$" or text)
end

--- Lines, ended by LF, CRLF or CR; a last one without an end counts.
function M.lines(response, opts)
  return M.iterator("events.lines", response, opts, net.lines, same)
end

--- One JSON value a line.
function M.json(response, opts)
  return M.iterator("events.json", response, opts, net.lines, json_of)
end

--- Server-sent events: { event, data, id, retry }. One that the body's end cuts is dropped, as the
--- standard has it.
function M.sse(response, opts)
  return M.iterator("events.sse", response, opts, net.sse, same)
end

--- JSON objects, one a line, with or without "data:" before them.
function M.objects(response, opts)
  return M.iterator("events.objects", response, opts, net.lines, object_of)
end

return M
