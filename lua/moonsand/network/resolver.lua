--- Names to addresses, outside, once for each attempt. The user's own function, or the machine's
--- resolver in a thread (src/lookup.c).

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local rules = require "moonsand.network.rules"
local tasks = require "moonsand.task"

local M = {}

--- Look-ups of one sandbox at once. The threads are everybody's: where the answers are slow, one
--- sandbox alone would have them all.
local MAX = 4
local BUSY_PAUSE = 0.02 -- seconds, while too many look-ups are under way

---@class moonsand.Resolver one sandbox's
---@field private turns moonsand.Semaphore
---@field private begun userdata[] look-ups that may be under way: nothing stops one that was given up
local Resolver = {}
Resolver.__index = Resolver

---@return moonsand.Resolver
function M.new()
  return setmetatable({ turns = tasks.semaphore(MAX), begun = {} }, Resolver)
end

--- Whether so many are under way, whoever still waits for them.
local function is_busy(self)
  local running = {}
  for _, lookup in ipairs(self.begun) do
    if lookup:running() then
      running[#running + 1] = lookup
    end
  end
  self.begun = running
  return #running >= MAX
end

--- One more; nil and EAGAIN while that is too many, for this sandbox or for the process.
local function start(self, reactor, name)
  if is_busy(self) then
    return nil, core.errno.EAGAIN
  end
  local lookup, errno = core.lookup(reactor, name)
  self.begun[#self.begun + 1] = lookup
  return lookup, errno
end

local function begin(self, name, limits)
  while true do
    local reactor, message, code, detail = loop.reactor()
    if not reactor then
      return nil, message, code, detail
    end
    local lookup, errno = start(self, reactor, name)
    if lookup then
      return lookup
    elseif errno ~= core.errno.EAGAIN then
      return errors.errno(errno, "looking up " .. name)
    end
    local wake = core.now() + BUSY_PAUSE
    message, code, detail = loop.wait {
      deadline = math.min(limits.deadline or wake, wake),
      token = limits.token,
    }
    if code ~= "timeout" or limits.deadline and core.now() >= limits.deadline then
      return errors.fail(code, message, detail)
    end
  end
end

local function answer_of(self, name, limits)
  local lookup, message, code, detail = begin(self, name, limits)
  if not lookup then
    return nil, message, code, detail
  end
  while true do
    local list, again, why = lookup:answer()
    if list then
      lookup:close()
      return list
    elseif not again then
      lookup:close()
      return errors.fail("not_found", ("%s: %s"):format(name, why))
    end
    message, code, detail = loop.wait(limits, lookup)
    if message then
      lookup:close()
      return errors.fail(code, ("looking up %s: %s"):format(name, message), detail)
    end
  end
end

local function from_machine(self, name, limits)
  local left = limits.deadline and math.max(0, limits.deadline - core.now())
  local ok, message, code, detail =
    self.turns:acquire { timeout = left, cancel = limits.token }
  if not ok then
    return errors.fail(code, ("looking up %s: %s"):format(name, message), detail)
  end
  local list
  list, message, code, detail = answer_of(self, name, limits)
  self.turns:release()
  return list, message, code, detail
end

--- What the user's function answers: texts.
local function from_user(resolve, name)
  local list, why = resolve(name)
  local addresses = {}
  for i, text in ipairs(type(list) == "table" and list or {}) do
    addresses[i] = type(text) == "string" and core.address(text)
    if not addresses[i] then
      return errors.fail("invalid", ("network.resolve: %s is no address"):format(tostring(text)))
    end
  end
  if not addresses[1] then
    return errors.fail("not_found", ("%s: %s"):format(name, tostring(why or "no address")))
  end
  return addresses
end

---@param name string
---@param resolve? fun(name: string): string[]?, string?
---@param limits moonsand.Limits
---@return string[]? addresses as bytes
---@return string? message, string? code, table? detail
function Resolver:resolve(name, resolve, limits)
  if rules.fixed[name] then
    return rules.fixed[name]
  elseif resolve then
    return from_user(resolve, name)
  end
  return from_machine(self, name, limits)
end

return M
