--- Bash sessions of execd. Each run is a bash of its own that is given the last one's variables and
--- directory; functions and options do not live on, stderr is in stdout, empty lines are missing. So
--- `box:session()` does not stand on them; they are here for who knows what execd's are.

local errors = require "moonsand.errors"
local events = require "moonsand.providers.opensandbox.events"
local http = require "moonsand.wire.http"
local services = require "moonsand.providers.opensandbox.service"

local M = {}

---@class moonsand.opensandbox.Session
---@field id string
---@field private driver moonsand.opensandbox.Driver
---@field private closed boolean
local Session = {}
Session.__index = Session
Session.__name = "moonsand.opensandbox.Session"

--- Runs a command in it.
---@param command string
---@param opts? { cwd?: string, timeout?: number, on_line?: fun(line: string) }
---@param limits? moonsand.Limits its token ends the run
---@return moonsand.opensandbox.SessionRun? run, string? message, string? code, table? detail
function Session:run(command, opts, limits)
  opts = opts or {}
  if self.closed then
    return errors.fail("closed", "the session was closed", { started = false })
  end
  return events.run_in_shell(self.driver, self.id, ("/session/%s/run"):format(http.escape(self.id)), {
    command = command, cwd = opts.cwd,
    timeout = opts.timeout and math.max(1, math.ceil(opts.timeout * 1000)) or nil,
  }, opts.on_line, limits)
end

---@return boolean
function Session:alive()
  return not self.closed and self.driver.ended == nil
end

--- Ends it and what runs in it.
---@param limits? moonsand.Limits
---@return true|nil ok, string? message, string? code, table? detail
function Session:delete(limits)
  self.closed = true
  local answer, message, code, detail = self.driver.execd:call(services.within(limits,
    { method = "DELETE", path = "/session/" .. http.escape(self.id) }))
  if answer == nil and code and code ~= "not_found" then
    return nil, message, code, detail
  end
  return true
end

--- Makes a session.
---@param driver moonsand.opensandbox.Driver
---@param opts? { cwd?: string }
---@param limits? moonsand.Limits
---@return moonsand.opensandbox.Session? session, string? message, string? code, table? detail
function M.create(driver, opts, limits)
  local row, message, code, detail = driver.execd:call(services.within(limits,
    { method = "POST", path = "/session", json = { cwd = opts and opts.cwd } }))
  if row == nil then
    return nil, driver:blame(message, code, detail)
  elseif type(row) ~= "table" or type(row.session_id) ~= "string" then
    return errors.fail("protocol", "execd named no session", { provider = "opensandbox" })
  end
  return setmetatable({ id = row.session_id, driver = driver, closed = false }, Session)
end

return M
