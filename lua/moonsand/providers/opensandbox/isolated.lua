--- Isolated sessions of newer execds: a shell behind one more wall inside the sandbox, with the
--- parts of the files and of the environment that it may see. Seconds here, `code` for the command.

local errors = require "moonsand.errors"
local events = require "moonsand.providers.opensandbox.events"
local http = require "moonsand.wire.http"
local services = require "moonsand.providers.opensandbox.service"

local M = {}

local ROOT = "/v1/isolated"

---@class moonsand.opensandbox.Isolated
---@field id string
---@field private driver moonsand.opensandbox.Driver
---@field private closed boolean
local Isolated = {}
Isolated.__index = Isolated
Isolated.__name = "moonsand.opensandbox.Isolated"

local function path_of(self, rest)
  return ("%s/session/%s%s"):format(ROOT, http.escape(self.id), rest or "")
end

--- An answer that has to be an object.
local function object(driver, limits, request, field)
  local row, message, code, detail = driver.execd:call(services.within(limits, request))
  if row == nil then
    return nil, driver:blame(message or "nothing came", code or "protocol", detail)
  elseif type(row) ~= "table" or field and type(row[field]) ~= "string" then
    return errors.fail("protocol", ("%s: the answer is not what it should be"):format(request.path),
      { provider = "opensandbox" })
  end
  return row
end

local function body_of(code, opts)
  return { code = code, envs = opts.env, background = opts.background,
    timeout_seconds = opts.timeout and math.max(1, math.ceil(opts.timeout)) or nil }
end

--- Runs code in its shell: the exit code and the lines that it wrote.
---@param code string
---@param opts? { env?: table<string, string>, timeout?: number, on_line?: fun(line: string) }
---@param limits? moonsand.Limits
---@return moonsand.opensandbox.SessionRun? run, string? message, string? code, table? detail
function Isolated:run(code, opts, limits)
  opts = opts or {}
  if self.closed then
    return errors.fail("closed", "the session was closed", { started = false })
  end
  return events.run_in_shell(self.driver, self.id, path_of(self, "/run"), body_of(code, opts),
    opts.on_line, limits)
end

--- Starts code that nobody waits for: the id of the run.
---@return string? run_id, string? message, string? code, table? detail
function Isolated:start(code, opts, limits)
  local body = body_of(code, opts or {})
  body.background = true
  local row, message, failure, detail =
    object(self.driver, limits, { method = "POST", path = path_of(self, "/run"), json = body },
      "run_id")
  if not row then
    return nil, message, failure, detail
  end
  return row.run_id
end

--- How a run is: as the service shows it.
function Isolated:status(run_id, limits)
  return object(self.driver, limits, { path = path_of(self, "/runs/" .. http.escape(run_id)) })
end

--- The bytes that a run wrote from a cursor on, and the next cursor.
---@return string? data, integer|string next_or_message, string? code, table? detail
function Isolated:log(run_id, cursor, limits)
  local text, response, code, detail = self.driver.execd:call(services.within(limits, {
    path = path_of(self, ("/runs/%s/logs"):format(http.escape(run_id))),
    query = { cursor = cursor or 0 },
  }))
  if text == nil then
    return nil, self.driver:blame(response, code, detail)
  end
  local next_cursor = tonumber(response.headers["execd-isolated-tail-cursor"])
  return text, math.floor(next_cursor or (cursor or 0) + #text)
end

--- Ends it.
---@return true|nil ok, string? message, string? code, table? detail
function Isolated:delete(limits)
  self.closed = true
  local answer, message, code, detail = self.driver.execd:call(services.within(limits,
    { method = "DELETE", path = path_of(self) }))
  if answer == nil and code and code ~= "not_found" then
    return nil, message, code, detail
  end
  return true
end

--- Makes one. Where execd has none, or bubblewrap is missing inside, it is `unsupported`.
---@param driver moonsand.opensandbox.Driver
---@param opts table as the service takes it: workspace = { path, mode }, profile, share_net, …
---@param limits? moonsand.Limits
---@return moonsand.opensandbox.Isolated? session, string? message, string? code, table? detail
function M.create(driver, opts, limits)
  local row, message, code, detail =
    object(driver, limits, { method = "POST", path = ROOT .. "/session", json = opts },
      "session_id")
  if not row then
    if code == "not_found" and not detail.provider_code then
      return errors.fail("unsupported", "this execd has no isolated sessions", { cause = detail })
    end
    return nil, message, code, detail
  end
  return setmetatable({ id = row.session_id, driver = driver, closed = false }, Isolated)
end

--- What isolation this execd can give, as it says it.
function M.capabilities(driver, limits)
  return object(driver, limits, { path = ROOT .. "/capabilities" })
end

return M
