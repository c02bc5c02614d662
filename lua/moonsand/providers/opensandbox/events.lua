--- The event stream of execd's runs: JSON objects, bare or as server-sent events. A run is over
--- when its last event says so, or its stream ended as that kind of run ends; never by silence.

local errors = require "moonsand.errors"
local json = require "moonsand.wire.json"
local lines = require "moonsand.wire.events"
local loop = require "moonsand.loop"
local services = require "moonsand.providers.opensandbox.service"
local tasks = require "moonsand.task"

local M = {}

--- execd says "ping" every 3 s; the line is dead when nothing came for so long.
M.SILENCE = 20

--- One event: an output's line may be as long as it likes, within reason.
local MAX_EVENT = 64 * 1024 * 1024

---@class moonsand.opensandbox.Run what is known of a run from its stream
---@field id? string of the command (or of the context, the session)
---@field failure? table of the last `error` event: { ename, evalue, traceback }
---@field complete boolean `execution_complete` came

--- A run that nothing is known of any more. With an id it can be asked after.
local function lost(what, run, why, detail)
  detail = detail or {}
  detail.id, detail.started, detail.cause = run.id, run.id ~= nil or nil, detail.message
  return errors.fail("lost", ("%s: the stream was lost before its end: %s"):format(what, why),
    detail)
end

--- Codes of a stream's failure that stay what they are.
local KEPT = { cancelled = true, timeout = true, too_large = true, closed = true, protocol = true }

local function read(iterator, what, run, opts)
  while true do
    local event, message, code, detail = iterator:next { timeout = M.SILENCE, cancel = opts.cancel }
    if event == nil and not message then
      return nil -- the end of the body
    elseif event == nil then
      if (run.complete or run.failure) and not opts.to_the_end then
        return nil -- a dirty end after the last event is one
      elseif code == "timeout" and opts.patient and opts.patient() then
        event = { type = "ping" }
      elseif KEPT[code] and code ~= "timeout" then
        detail.id, detail.started = run.id, run.id ~= nil or nil
        return false, message, code, detail
      else
        return false, select(2, lost(what, run, message, detail))
      end
    end
    if type(event) ~= "table" then
      return false, select(2, errors.fail("protocol", what .. ": an event is no object",
        { id = run.id }))
    elseif event.type == nil and event.code ~= nil then
      return false, select(2, services.told(event, what, { id = run.id,
        started = run.id ~= nil or nil }))
    elseif type(event.type) ~= "string" then
      return false, select(2, errors.fail("protocol", what .. ": an event has no type",
        { id = run.id }))
    elseif event.type ~= "ping" then
      return event
    end
  end
end

local function note(run, event)
  if event.type == "init" then
    run.id = run.id or type(event.text) == "string" and event.text or nil
  elseif event.type == "error" then
    run.failure = type(event.error) == "table" and event.error or {}
  elseif event.type == "execution_complete" then
    run.complete = true
  end
end

---@class moonsand.opensandbox.StreamOptions
---@field cancel? moonsand.Token
---@field to_the_end? boolean `execution_complete` is not the last: the end of the body is
---@field patient? fun(): boolean silence is no sign of death now
---@field on_event fun(event: table, run: moonsand.opensandbox.Run)

--- Sends it: the answer, once its headers are there, which is at once or the line is dead.
local function open(client, what, request, cancel)
  local token = tasks.token()
  local forget = cancel and cancel:on_cancel(function(reason)
    token:cancel(reason)
  end)
  local silent = false
  local untime = loop.at(loop.now() + M.SILENCE, function()
    silent = true
    token:cancel()
  end)
  request.cancel = token
  local response, message, code, detail = client:open(request)
  if untime then
    untime()
  end
  if forget then
    forget()
  end
  if response then
    return response
  elseif silent then
    return errors.fail("lost", ("%s: no answer for %g s"):format(what, M.SILENCE),
      { provider = detail.provider })
  end
  return nil, message, code, detail
end

--- Sends a run and hands its events on.
---@param client moonsand.http.Client
---@param path string
---@param body table
---@param opts moonsand.opensandbox.StreamOptions
---@return moonsand.opensandbox.Run? run, string? message, string? code, table? detail
function M.run(client, path, body, opts)
  local what = "POST " .. path
  local response, message, code, detail = open(client, what, { method = "POST", path = path,
    json = body, headers = { Accept = "text/event-stream" } }, opts.cancel)
  if not response then
    local status = detail.http_status
    if status and status < 500 then
      detail.started = false
    end
    return nil, message, code, detail
  end
  local run = { id = nil, failure = nil, complete = false }
  local iterator = lines.objects(response, { max = MAX_EVENT })
  local event
  repeat
    event, message, code, detail = read(iterator, what, run, opts)
    if event then
      note(run, event)
      opts.on_event(event, run)
    end
    local over = (run.complete or run.failure) and not opts.to_the_end
  until not event or over
  iterator:close()
  if event == false then
    return nil, message, code, detail
  elseif not run.complete and not run.failure then
    return lost(what, run, "it ended without saying how")
  end
  return run
end

--- The exit code that a number, or a text, is; nil when it is none.
---@return integer?
function M.exit_code(said)
  local number = tonumber(said)
  if number and number >= 0 and number <= 255 then
    return math.floor(number)
  end
end

--- The failure of what ended with a code that is none.
---@return nil, string message, string code, table detail
function M.unknown_end(said, id)
  return errors.fail("lost", ("it ended, but the service does not say how (%s)"):format(
    tostring(said)), { id = id, started = true })
end

---@class moonsand.opensandbox.SessionRun
---@field exit_code integer
---@field lines string[] what it wrote, both streams, without line ends

--- A run in a shell that lives on after it.
---@param driver moonsand.opensandbox.Driver
---@param id string of the shell's session
---@param on_line? fun(line: string)
---@param limits? moonsand.Limits its token ends the run
---@return moonsand.opensandbox.SessionRun? run, string? message, string? code, table? detail
function M.run_in_shell(driver, id, path, body, on_line, limits)
  local written = {}
  local run, message, code, detail = M.run(driver.execd, path, body, {
    cancel = limits and limits.token,
    patient = function()
      return driver.paused
    end,
    on_event = function(event)
      if (event.type == "stdout" or event.type == "stderr") and type(event.text) == "string" then
        written[#written + 1] = event.text
        if on_line then
          on_line(event.text)
        end
      end
    end,
  })
  if not run then
    return nil, driver:blame(message, code, detail)
  end
  local exit_code = not run.failure and 0 or M.exit_code(run.failure.evalue)
  if not exit_code then
    return errors.fail("lost", "the session's shell ended: " .. tostring(run.failure.evalue),
      { provider = "opensandbox", id = id, started = true })
  end
  return { exit_code = exit_code, lines = written }
end

--- Whether a text can travel in JSON as it is.
---@return boolean
function M.is_text(text)
  return json.encode(text) ~= nil
end

return M
