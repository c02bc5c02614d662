--- Code contexts: execd's Jupyter kernels, whose state lives on from run to run. Their stream is
--- read to its end: `execution_complete` may come before the output does.

local errors = require "moonsand.errors"
local events = require "moonsand.providers.opensandbox.events"
local http = require "moonsand.wire.http"
local loop = require "moonsand.loop"
local services = require "moonsand.providers.opensandbox.service"

local M = {}

--- Without a kernel execd tries for ever to make a context; this is how long one may take.
M.READY = 60

--- The error of code whose kernel did not survive it.
local DEAD = "DeadKernelError"

--- What execd calls the languages that have another name here.
local NAMES = { node = "javascript" }

---@class moonsand.opensandbox.Context
---@field id string
---@field language string
---@field cwd? string
---@field private driver moonsand.opensandbox.Driver
---@field private closed boolean
local Context = {}
Context.__index = Context
Context.__name = "moonsand.opensandbox.Context"

--- MIME types by their names; the service calls "text/plain" "text".
local function display_of(results)
  local display = {}
  for kind, value in pairs(results) do
    display[kind == "text" and "text/plain" or kind] = value
  end
  return display
end

local function error_of(failure)
  local lines = {}
  for i, line in ipairs(type(failure.traceback) == "table" and failure.traceback or {}) do
    lines[i] = tostring(line)
  end
  return { name = failure.ename, message = failure.evalue, traceback = table.concat(lines, "\n") }
end

--- Hands on what one event says, and notes what it tells of the end.
local function take(told, event, hear)
  local kind = event.type
  if kind == "stdout" or kind == "stderr" then
    hear["on_" .. kind](event.text)
  elseif kind == "result" and type(event.results) == "table" then
    local display = display_of(event.results)
    told.text = display["text/plain"] or told.text
    hear.on_display(display)
  elseif kind == "execution_count" then
    told.execution_count = event.execution_count
  end
end

--- Runs code: what `box:interpreter` asks of a driver's.
---@param code string
---@param hear table<"on_stdout"|"on_stderr"|"on_display", fun(value: any)>
---@param limits moonsand.Limits
---@return { text: string?, execution_count: integer?, error: table?, state_kept: boolean }? told
---@return string? message, string? code, table? detail
function Context:run(code, hear, limits)
  local told = {}
  if code == "" then
    return told -- execd takes none
  end
  local run, message, failure, detail = events.run(self.driver.execd, "/code", {
    code = code, context = { id = self.id, language = self.language },
  }, {
    cancel = limits.token,
    to_the_end = true,
    patient = function()
      return self.driver.paused
    end,
    on_event = function(event)
      take(told, event, hear)
    end,
  })
  if not run then
    return nil, self.driver:blame(message, failure, detail)
  end
  told.error = run.failure and error_of(run.failure) or nil
  told.state_kept = not told.error or told.error.name ~= DEAD
  return told
end

--- Ends what runs in it, as Ctrl-C would.
---@param limits? moonsand.Limits
---@return true|nil ok, string? message, string? code, table? detail
function Context:interrupt(limits)
  local request = services.within(limits, { method = "DELETE", path = "/code",
    query = { id = self.id } })
  request.timeout = request.timeout or 10
  local answer, message, code, detail = self.driver.execd:call(request)
  if answer == nil and code then
    return nil, message, code, detail
  end
  return true
end

local function delete(self, limits)
  local answer, message, code, detail = self.driver.execd:call(services.within(limits,
    { method = "DELETE", path = "/code/contexts/" .. http.escape(self.id) }))
  if answer == nil and code and code ~= "not_found" then
    return nil, message, code, detail
  end
  return true
end

--- Another kernel in the place of this one: what it knew is gone.
---@param limits? moonsand.Limits
---@return true|nil ok, string? message, string? code, table? detail
function Context:restart(limits)
  local ok, message, code, detail = delete(self, limits)
  local fresh
  if ok then
    fresh, message, code, detail = M.create(self.driver, self.language, { cwd = self.cwd }, limits)
  end
  if not fresh then
    return nil, message, code, detail
  end
  self.id = fresh.id
  return true
end

---@return boolean
function Context:alive()
  return not self.closed and self.driver.ended == nil
end

--- Ends its kernel, in its own time.
function Context:close()
  if not self.closed then
    self.closed = true
    self.driver:unless_gone(function()
      delete(self, loop.limits({ timeout = 10 }, true))
    end)
  end
end

local function new(driver, row)
  return setmetatable({
    id = row.id,
    language = row.language,
    cwd = row.cwd,
    driver = driver,
    closed = false,
  }, Context)
end

--- Makes a context.
---@param driver moonsand.opensandbox.Driver
---@param language string
---@param opts? { cwd?: string }
---@param limits? moonsand.Limits
---@return moonsand.opensandbox.Context? context, string? message, string? code, table? detail
function M.create(driver, language, opts, limits)
  language = NAMES[language] or language
  local request = services.within(limits, { method = "POST", path = "/code/context",
    json = { language = language, cwd = opts and opts.cwd } })
  local own = request.timeout == nil
  request.timeout = request.timeout or M.READY
  local row, message, code, detail = driver.execd:call(request)
  if code == "timeout" and own then
    return errors.fail("unavailable", ("no kernel for %s came in %g s"):format(language, M.READY),
      { cause = detail, fix = "use an image with Jupyter and such a kernel" })
  elseif row == nil then
    return nil, driver:blame(message, code, detail)
  elseif type(row) ~= "table" or type(row.id) ~= "string" then
    return errors.fail("protocol", "execd named no context", { provider = "opensandbox" })
  end
  row.language = row.language or language
  return new(driver, row)
end

--- The contexts that there are.
---@return moonsand.opensandbox.Context[]? contexts, string? message, string? code, table? detail
function M.list(driver, language, limits)
  local rows, message, code, detail = driver.execd:call(services.within(limits,
    { path = "/code/contexts", query = language and { language = language } or nil }))
  if type(rows) ~= "table" then
    return nil, driver:blame(message or "no list came", code or "protocol", detail)
  end
  local list = {}
  for i, row in ipairs(rows) do
    list[i] = new(driver, row)
  end
  return list
end

return M
