--- Serves the connections of a listener, each in a coroutine of its own and so many at once; further
--- ones wait in the kernel. The loop holds an acceptor weakly: one that nobody holds any more is
--- collected, and its listener with it.
---
--- Acceptors for strangers share a *budget* of connections besides, or a few of them could take all
--- descriptors that the process may have. One has at most as many as are left for all others: that
--- way there is something left, however greedy they are.

local core = require "moonsand.core"
local loop = require "moonsand.loop"
local tasks = require "moonsand.task"

local M = {}

local BURST = 64 -- connections taken in one turn
local PAUSE = 0.1 -- seconds, when there are no descriptors left

---@class moonsand.Connection one that is being served
---@field raw userdata the stream that was accepted
---@field token moonsand.Token cancelled when the acceptor is closed
---@field private things table[] what is closed with it
local Connection = {}
Connection.__index = Connection

--- What is to be closed when the connection ends, however it ends.
---@generic T
---@param thing T
---@return T thing
function Connection:own(thing)
  self.things[#self.things + 1] = thing
  return thing
end

--- The limits of a wait that is part of serving it.
---@param seconds? number
function Connection:limits(seconds)
  return { deadline = seconds and core.now() + seconds, token = self.token }
end

function Connection:close()
  for _, thing in ipairs(self.things) do
    thing:close()
  end
end

--- Ties it to another connection until both have ended, or none has said anything for `idle`
--- seconds. How many bytes went there and back, and why it ended, if not by itself.
---@param other userdata a stream
---@param opts? { idle?: number, body?: number|"chunked" } body: see src/relay.c
---@return number sent, number received, string? why
function Connection:relay(other, opts)
  local idle = opts and opts.idle
  local relay = self:own(core.relay(loop.reactor(), self.raw, other, opts and opts.body))
  local why
  while true do
    local over, errno = relay:over()
    local sent, received, active = relay:counts()
    if over then
      return sent, received, why or errno ~= 0 and core.strerror(errno) or nil
    elseif idle and active + idle <= core.now() then
      why = "idle"
      relay:close()
    else
      local limits = { deadline = idle and active + idle, token = self.token }
      local message, code = loop.wait(limits, relay)
      if message and code ~= "timeout" then
        why = message
        relay:close()
      end
    end
  end
end

---@class moonsand.Acceptor
---@field listener userdata
local Acceptor = {}
Acceptor.__index = Acceptor

local accept

--- May it take one more? If only the budget is against it, it is told when that changes.
local function has_room(self)
  if self.closed or self.count >= self.max then
    return false
  end
  local budget = self.budget
  if budget and self.count >= budget.most() - budget.count then
    budget.waiting[self] = true
    return false
  end
  return true
end

local function expect(self)
  if self.expecting or not has_room(self) then
    return
  end
  self.expecting = true
  local weak = setmetatable({ acceptor = self }, { __mode = "v" })
  loop.watch(self.listener, function()
    if weak.acceptor then
      weak.acceptor.expecting = false
      accept(weak.acceptor)
    end
  end)
end

--- One connection of a budget is over.
local function give_back(budget)
  budget.count = budget.count - 1
  local waiting = budget.waiting
  budget.waiting = setmetatable({}, { __mode = "k" })
  for acceptor in pairs(waiting) do
    expect(acceptor)
  end
end

local function ended(self, connection)
  connection:close()
  self.active[connection] = nil
  self.count = self.count - 1
  expect(self)
  if self.budget then
    give_back(self.budget)
  end
end

local function serve(self, raw)
  local connection = setmetatable({ raw = raw, token = self.token, things = { raw } }, Connection)
  self.active[connection] = true
  self.count = self.count + 1
  if self.budget then
    self.budget.count = self.budget.count + 1
  end
  local started = pcall(loop.spawn, function()
    local traceback
    local ok, err = xpcall(self.serve, function(e)
      traceback = debug.traceback(tostring(e), 2)
      return e
    end, connection)
    ended(self, connection)
    if not ok and not self.closed then
      tasks.on_error(err, traceback)
    end
  end)
  if not started then -- nginx has no timer left
    ended(self, connection)
  end
end

function accept(self)
  for _ = 1, BURST do
    if not has_room(self) then
      break
    end
    local raw, why = self.listener:accept()
    if raw then
      serve(self, raw)
    elseif why == "again" then
      break
    else
      local weak = setmetatable({ acceptor = self }, { __mode = "v" })
      loop.at(core.now() + PAUSE, function()
        if weak.acceptor then
          expect(weak.acceptor)
        end
      end)
      return
    end
  end
  expect(self)
end

--- Takes no more, and ends those that there are. Idempotent.
function Acceptor:close()
  if self.closed then
    return
  end
  self.closed = true
  self.listener:close()
  self.token:cancel "closed"
  for connection in pairs(self.active) do
    connection:close()
  end
end

---@class moonsand.Budget what acceptors have between them
---@field most fun(): integer connections at once
---@field count integer
---@field waiting table<moonsand.Acceptor, true> who would take more

---@param most fun(): integer asked each time
---@return moonsand.Budget
function M.budget(most)
  return { most = most, count = 0, waiting = setmetatable({}, { __mode = "k" }) }
end

---@param listener userdata
---@param max integer connections at once
---@param fn fun(connection: moonsand.Connection) must not hold what holds the acceptor, unless that
---  is to live as long as a connection does
---@param budget? moonsand.Budget
---@return moonsand.Acceptor
function M.new(listener, max, fn, budget)
  local self = setmetatable({
    listener = listener,
    max = max,
    serve = fn,
    budget = budget,
    active = {}, -- connections
    count = 0,
    expecting = false, -- the loop will call
    closed = false,
    token = tasks.token(),
  }, Acceptor)
  expect(self)
  return self
end

return M
