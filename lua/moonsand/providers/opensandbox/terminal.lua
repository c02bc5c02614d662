--- Programs over execd's terminal sessions, a WebSocket each: the only way in which input goes to a
--- program while it runs. On plain pipes the streams are apart and exact; on a pty they are one.

local errors = require "moonsand.errors"
local events = require "moonsand.providers.opensandbox.events"
local http = require "moonsand.wire.http"
local json = require "moonsand.wire.json"
local loop = require "moonsand.loop"
local net = require "moonsand.net"
local script = require "moonsand.providers.opensandbox.script"
local services = require "moonsand.providers.opensandbox.service"
local signals = require "moonsand.signals"

local M = {}

local KILL = signals.numbers.KILL
local PIECE = 48 * 1024 -- of input, in one message
local STDIN = "\0"
local STDOUT, STDERR, REPLAY = 1, 2, 3
local MAX_HEAD = 1024

--- The signals that a session takes by name.
local BY_NAME = { [1] = "SIGHUP", [2] = "SIGINT", [3] = "SIGQUIT", [15] = "SIGTERM" }

---@class moonsand.opensandbox.Terminal
---@field driver moonsand.opensandbox.Driver
---@field id? string of the session
---@field socket? moonsand.WebSocket
---@field at integer bytes of output that came, both streams
---@field head? string what came of the first line, which is not the program's
---@field pid? integer
---@field group? integer
---@field refused? string[]
---@field over boolean
local Terminal = {}
Terminal.__index = Terminal

local function path_of(id, rest)
  return "/pty/" .. http.escape(id) .. (rest or "")
end

-- ---------------------------------------------------------------- what comes

--- The first line is the script's; answers what is the program's.
local function after_head(self, job, data)
  self.head = self.head .. data
  local line, rest = self.head:match "^([^\r\n]*)\r?\n(.*)$"
  if not line then
    return #self.head <= MAX_HEAD and "" or false
  end
  self.head = nil
  local pid, what, why, group = script.read(line)
  if pid then
    self.pid, self.group = pid, group
    job:began(pid)
  elseif what then
    self.refused = { what, why }
  else
    return false
  end
  self.news:wake()
  return rest
end

local function take_output(self, job, channel, data)
  self.at = self.at + #data
  if self.head and channel ~= STDERR then
    data = after_head(self, job, data)
    if not data then
      return errors.fail("protocol", "the session's shell does not say what it started")
    end
  end
  if data ~= "" then
    job:output(channel == STDERR and "stderr" or "stdout", data)
  end
  return true
end

--- What was missed goes before what is new; on pipes both streams are in one, and nobody can tell.
local function take_replay(self, job, data)
  local at = 0
  for i = 1, 8 do
    at = at * 256 + (data:byte(i) or 0)
  end
  local text = data:sub(9)
  if at ~= self.at then
    return errors.fail("lost", ("%d bytes of its output are no longer kept"):format(at - self.at),
      { id = self.id, started = true })
  end
  return take_output(self, job, STDOUT, text)
end

local function take_binary(self, job, message)
  local channel = message:byte(1)
  if channel == STDOUT or channel == STDERR then
    return take_output(self, job, channel, message:sub(2))
  elseif channel == REPLAY then
    return take_replay(self, job, message:sub(2))
  end
  return true -- channels to come
end

--- How it ended. The shell above the program outlives all signals but KILL.
local function exit_of(self, number)
  local code = events.exit_code(number)
  if number == -1 then
    return { signal_number = KILL }
  elseif not code then
    return events.unknown_end(number, self.id)
  elseif code > 128 and code <= 192 then
    return { signal_number = code - 128 }
  end
  return { exit_code = code }
end

--- A message that is text: the exit, `true` to go on, or a failure.
local function take_text(self, text)
  local value, message, code, detail = json.decode(text)
  if type(value) ~= "table" then
    return nil, message or "a message is no object", code or "protocol", detail or {}
  elseif value.type == "exit" then
    return exit_of(self, value.exit_code)
  elseif value.type == "error" and value.code == "START_FAILED" then
    return errors.fail("provider", "cannot start: " .. tostring(value.error),
      { id = self.id, started = false, provider_code = value.code })
  end
  return true
end

local function lost(self, message, code, detail)
  if code == "closed" and detail.close_code == 4001 then
    return errors.fail("closed", "another client took the session over", { id = self.id,
      started = true, cause = detail.close_reason })
  elseif code == "cancelled" then
    return nil, message, code, detail
  end
  return errors.fail(code == "closed" and "lost" or code, "the session was lost: " .. message,
    { id = self.id, started = true, cause = detail })
end

--- Hands on what comes until the end is told.
local function receive(self, job)
  while true do
    local data, kind, code, detail = self.socket:receive { cancel = job.limits.token }
    if not data then
      return lost(self, kind, code, detail)
    end
    local result, message
    if kind == "binary" then
      result, message, code, detail = take_binary(self, job, data)
    else
      result, message, code, detail = take_text(self, data)
    end
    if result ~= true then
      return result, message, code, detail
    end
  end
end

-- ---------------------------------------------------------------- what goes

--- Sends the input until it ends, or the program does.
local function feed(self, job)
  local pty = job.spec.pty
  if not pty and self.head then
    self.socket:send(STDIN .. net.base64(script.of_session(job.spec)) .. "\n",
      { cancel = job.limits.token })
  end
  while true do
    local data = job:input()
    if self.over then
      return
    end
    for from = 1, #(data or ""), PIECE do
      local piece = data:sub(from, from + PIECE - 1)
      if not pty then
        piece = net.base64(piece)
        piece = #piece .. "\n" .. piece
      end
      if not self.socket:send(STDIN .. piece, { cancel = job.limits.token }) then
        return
      end
    end
    if not data then
      self.socket:send(STDIN .. (pty and "\4" or "0\n"), { cancel = job.limits.token })
      return
    end
  end
end

local function tell(self, value)
  return self.socket ~= nil and not self.over
    and self.socket:send(json.encode(value), { kind = "text", timeout = 5 }) ~= nil
end

--- Ends the session and all in it; true when it is gone.
local function delete(self)
  local limits = loop.limits({ timeout = 4 }, true)
  while not self.id and not self.over do
    if loop.wait(limits, self.news) then
      return false
    end
  end
  if not self.id then
    return false
  end
  local ok, _, code = self.driver.execd:call { method = "DELETE", path = path_of(self.id),
    timeout = 10 }
  return ok ~= nil or code == "not_found"
end

local function signal(self, number, tree)
  if number == KILL and tree then
    return delete(self)
  elseif BY_NAME[number] and tree then
    return tell(self, { type = "signal", signal = BY_NAME[number] })
  elseif self.pid and not self.over then
    return self.driver:aside(("kill -%d -- %s%d"):format(number, tree and "-" or "",
      tree and self.group or self.pid)) == 0
  end
  return false
end

-- ---------------------------------------------------------------- running

local function connect(self, job, takeover)
  local socket, message, code, detail = self.driver.execd:websocket(services.within(job.limits, {
    path = path_of(self.id, "/ws"), max = 2 * 1024 * 1024,
    query = { pty = job.spec.pty and "1" or "0", since = ("%d"):format(self.at),
      takeover = takeover and "1" or nil },
  }))
  if not socket then
    detail.id = self.id
    return nil, message, code, detail
  end
  self.socket = socket
  return true
end

local function create(self, job)
  local spec = job.spec
  local answer, message, code, detail = self.driver.execd:call { method = "POST", path = "/pty",
    json = { command = spec.pty and script.portable(script.of_session(spec)) or script.BOOT },
    cancel = job.limits.token }
  if answer == nil then
    return nil, message, code, detail
  elseif type(answer) ~= "table" or type(answer.session_id) ~= "string" then
    return errors.fail("protocol", "execd named no session", { provider = "opensandbox" })
  end
  self.id = answer.session_id
  self.news:wake()
  return true
end

--- Takes the session away and, unless they may stay, what the program left; nobody waits.
local function tidy(self, spec)
  local driver, id, group = self.driver, self.id, self.group
  driver:unless_gone(function()
    if group and not spec.leave then
      driver:aside(("kill -KILL -- -%d"):format(group))
    end
    driver.execd:call { method = "DELETE", path = path_of(id), timeout = 10 }
  end)
end

local function resize(self, size)
  if type(size) == "table" then
    tell(self, { type = "resize", cols = size.cols or 80, rows = size.rows or 24 })
  end
end

--- The talk of a session that is connected, to its end.
local function talk(self, job)
  resize(self, job.spec.pty)
  loop.spawn(function()
    feed(self, job)
  end)
  local exit, message, code, detail = receive(self, job)
  self.over = true
  self.socket:close()
  self.news:wake()
  if exit then -- else it may be running, and can be attached to
    tidy(self, job.spec)
  end
  if self.refused then
    return script.refused(job.spec, self.refused[1], self.refused[2])
  elseif not exit then
    return nil, self.driver:blame(message, code, detail)
  end
  return exit
end

local function new(driver)
  return setmetatable({
    driver = driver,
    id = nil,
    socket = nil,
    at = 0,
    head = "",
    pid = nil,
    group = nil,
    refused = nil,
    over = false,
    news = loop.signal(),
  }, Terminal)
end

--- What `attach` takes as `since`: both streams count as one.
---@return { stdout: integer, stderr: integer }
function Terminal:offsets()
  return { stdout = self.at, stderr = 0 }
end

--- Says how large a pty is from now on.
---@return boolean
function Terminal:resize(columns, rows)
  return tell(self, { type = "resize", cols = columns, rows = rows })
end

--- A program's run, in the coroutine of its job, and how it is signalled.
---@param driver moonsand.opensandbox.Driver
---@return fun(job: moonsand.Job) run, function signal, moonsand.opensandbox.Terminal terminal
function M.make(driver, spec)
  local self = new(driver)
  return function(job)
    local ok, message, code, detail = create(self, job)
    if not ok then
      detail.started = false
      return nil, driver:blame(message, code, detail)
    end
    ok, message, code, detail = connect(self, job)
    if not ok then
      self.over = true
      tidy(self, spec)
      return nil, driver:blame(message, code, detail)
    end
    return talk(self, job)
  end, function(_, number, tree)
    return signal(self, number, tree)
  end, self
end

--- A session that somebody else, or we, left: `since` bytes of its output are known already.
--- Whoever holds it is sent away with `takeover`.
---@param driver moonsand.opensandbox.Driver
---@param id string
---@param opts table since = { stdout, stderr }, max_output, pty, takeover
---@return moonsand.EventProgram program, moonsand.opensandbox.Terminal terminal
function M.attach(driver, id, opts)
  local programs = require "moonsand.providers.program"
  local self = new(driver)
  self.id, self.at = id, opts.since.stdout
  if self.at > 0 then
    self.head = nil
  end
  local spec = { argv = { id }, stdin = true, stdout = true, stderr = not opts.pty,
    pty = opts.pty or nil, max_output = opts.max_output, leave = true }
  return programs.new(spec, function(job)
    local ok, message, code, detail = connect(self, job, opts.takeover)
    if not ok then
      self.over = true
      return nil, driver:blame(message, code, detail)
    end
    job:began()
    return talk(self, job)
  end, { signal = function(_, number, tree)
    return signal(self, number, tree)
  end, confirms = true }), self
end

return M
