--- Sandboxes that are there before they are needed. A pool keeps `size` of them warm, made in the
--- background, and lends each to one caller, once: what was handed out never comes back, and its end
--- makes room for another.
---
--- All that there is counts against `max`: warm ones, those that are being made, those that were
--- handed out. Who finds none warm and room for one more makes it himself, in his own coroutine, so
--- that nobody depends on the background, which comes late in a busy host and not at all in one that
--- nobody drives. Who finds no room waits, first come, first served.
---
--- After a failure the pool makes none for a while; until then `acquire` answers that failure.
---
--- The handle is apart from the *core*, which timers, coroutines and lent sandboxes hold: when
--- nobody holds the handle any more, the core is closed.

local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local sandboxes = require "moonsand.sandbox"
local tasks = require "moonsand.task"

local M = {}

local SIZE, MAX = 4, 64 -- what a pool has unless it is told
local AT_ONCE = 8 -- made side by side in the background
local PAUSE, PAUSE_MAX = 0.1, 5 -- seconds after a failure: at first, at most

M.options = { size = "number", max = "number", max_age = "number", create = "table" }

local WAIT = { timeout = "number", cancel = "table" }

---@class moonsand.PoolOptions
---@field size? integer how many are kept warm (4)
---@field max? integer how many there may be in all (64, or `size` when that is more)
---@field max_age? number seconds after which a warm one is replaced; never if nil
---@field create? table options of `moonsand.create`

---@class moonsand.Pool
---@field private core table
---@field private guard any closes the core when the handle is collected
local Pool = {}
Pool.__index = Pool
Pool.__name = "moonsand.Pool"

-- ---------------------------------------------------------------- counting

--- All that counts against `max`.
local function total(core)
  return #core.warm + #core.asked + core.making + core.out
end

local function resting(core)
  return core.retry_at ~= nil and loop.now() < core.retry_at
end

--- The one who has waited longest, taken out of the queue. An entry that nobody waits on is left
--- over from a wait that raised.
local function next_in_line(core)
  while core.queue[1] do
    local entry = table.remove(core.queue, 1)
    if entry.signal:awaited() then
      return entry
    end
  end
end

-- ---------------------------------------------------------------- lending

---@class moonsand.Lease what a sandbox that was handed out has of its pool
local Lease = {}
Lease.__index = Lease

local fill, serve

local function return_place(lease)
  if lease.over then
    return false
  end
  lease.over = true
  lease.core.out = lease.core.out - 1
  return true
end

--- The sandbox was closed.
function Lease:end_now()
  if return_place(self) then
    serve(self.core)
  end
end

local function lend(core, box)
  local lease = setmetatable({ core = core, over = false, guard = nil }, Lease)
  lease.guard = tasks.finalizer(function() -- it was dropped
    if return_place(lease) then
      loop.spawn_late(function()
        serve(core)
      end)
    end
  end)
  core.out = core.out + 1
  core.acquired = core.acquired + 1
  box.core.lease = lease
  return box
end

-- ---------------------------------------------------------------- warm ones

local function is_old(core, warm)
  return core.max_age ~= nil and loop.now() - warm.since >= core.max_age
end

--- Replaces those that have been warm for too long.
local function renew(core)
  while core.warm[1] and is_old(core, core.warm[1]) do
    table.remove(core.warm, 1).box:close()
  end
  local oldest = core.warm[1]
  if oldest and core.max_age and not core.renewal then
    core.renewal = loop.at(oldest.since + core.max_age, function()
      core.renewal = nil
      renew(core)
      fill(core)
    end)
  end
end

--- The oldest one that lives.
local function take(core)
  renew(core)
  while core.warm[1] do
    local box = table.remove(core.warm, 1).box
    if box.core.driver:state() == "ready" then
      return box
    end
    box:close()
  end
end

local function put(core, box)
  core.created = core.created + 1
  if core.closed then
    box:close()
    return
  end
  local entry = next_in_line(core)
  if entry then
    entry.box = lend(core, box)
    entry.signal:wake()
  else
    table.insert(core.warm, { box = box, since = loop.now() })
    renew(core)
  end
end

-- ---------------------------------------------------------------- failures

--- A failure as an answer of its own, since callers may write into details.
local function failure(core)
  local detail = {}
  for key, value in pairs(core.failure.detail or {}) do
    detail[key] = value
  end
  detail.retry_after = core.retry_at and math.max(core.retry_at - loop.now(), 0)
  return errors.fail(core.failure.code, core.failure.message, detail)
end

--- None could be made: those who wait hear of it, and there is a pause. Of several that fail side by
--- side only the first makes it longer.
local function rest(core, message, code, detail)
  core.failed = core.failed + 1
  core.failure = { message = message, code = code, detail = detail }
  if not resting(core) then
    local pause = core.pause and math.min(core.pause * 2, PAUSE_MAX) or PAUSE
    core.pause = pause
    pause = math.max(pause, type(detail) == "table" and tonumber(detail.retry_after) or 0)
    core.retry_at = loop.now() + pause
    if core.retry then
      core.retry() -- the end of a rest that a success has cut short
    end
    core.retry = loop.at(core.retry_at, function()
      core.retry = nil
      serve(core)
    end)
  end
  local entry = next_in_line(core)
  while entry do
    entry.failed = true
    entry.signal:wake()
    entry = next_in_line(core)
  end
end

-- ---------------------------------------------------------------- making

--- A place was counted for one that will not be made: the coroutine that made it is no more.
local function give_up(core)
  core.making = core.making - 1
  serve(core)
end

--- Makes one, for which a place is counted already: what `create` answers, or false and what it
--- raised.
local function make(core, opts)
  local guard = loop.guard(give_up, core)
  local ok, box, message, code, detail = pcall(core.create, opts)
  loop.unguard(guard)
  core.making = core.making - 1
  if ok and box then
    core.pause, core.retry_at = nil, nil
  end
  return ok, box, message, code, detail
end

--- The life of a coroutine in the background, unless its place was taken meanwhile.
local function make_one(maker)
  local core = maker.core
  if maker.void then
    return
  end
  for i, each in ipairs(core.asked) do
    if each == maker then
      table.remove(core.asked, i)
    end
  end
  core.making = core.making + 1
  local ok, box, message, code, detail = make(core, core.opts)
  if not ok then
    message = tostring(box)
    box, code, detail = nil, "invalid", { cause = box }
  end
  if box then
    put(core, box)
  elseif not core.closed then
    rest(core, message, code, detail)
  end
  serve(core)
end

--- Sees to it that as many are warm as should be, if that can be done in the background here.
function fill(core)
  while not core.closed and not resting(core) and total(core) < core.max
    and #core.warm + #core.asked + core.making < core.size and #core.asked + core.making < AT_ONCE do
    local maker = { core = core, void = false }
    table.insert(core.asked, maker)
    if not pcall(loop.background, function() make_one(maker) end) then
      table.remove(core.asked)
      return
    end
  end
end

--- There may be room: for those who wait, then for warm ones.
function serve(core)
  while not core.closed and not resting(core) and total(core) < core.max do
    local entry = next_in_line(core)
    if not entry then
      break
    end
    core.making, entry.turn = core.making + 1, true
    entry.signal:wake()
  end
  fill(core)
end

--- A place for one that is to be made at once: room, or the place of one that nobody has begun.
local function reserve(core)
  if core.asked[1] then
    table.remove(core.asked, 1).void = true
  elseif total(core) >= core.max then
    return false
  end
  core.making = core.making + 1
  return true
end

--- What `create` is to be given when the time is short.
local function limited(core, limits)
  local opts = {}
  for name, value in pairs(core.opts) do
    opts[name] = value
  end
  local left = limits.deadline and math.max(limits.deadline - loop.now(), 0)
  opts.timeout = left and math.min(left, opts.timeout or left) or opts.timeout
  opts.cancel = limits.token or opts.cancel
  return opts
end

local function closed()
  return errors.fail("closed", "the pool was closed")
end

--- Makes one for whoever calls. When it was his own limit that ended it, the pool has not failed.
local function make_for(core, limits)
  local ok, box, message, code, detail = make(core, limited(core, limits))
  if not ok then
    serve(core)
    error(box, 0)
  elseif core.closed then
    if box then
      box:close()
    end
    return closed()
  elseif box then
    core.created = core.created + 1
    lend(core, box)
    fill(core)
    return box
  end
  local own = code == "cancelled"
    or code == "timeout" and limits.deadline and limits.deadline <= loop.now()
  if not own then
    rest(core, message, code, detail)
  end
  serve(core)
  return nil, message, code, detail
end

-- ---------------------------------------------------------------- acquiring

--- Who waited does not want one any more.
local function leave_queue(wait)
  local core, entry = wait.core, wait.entry
  if entry.box then
    entry.box:close()
  elseif entry.turn then
    give_up(core)
  else
    for i, each in ipairs(core.queue) do
      if each == entry then
        table.remove(core.queue, i)
        return
      end
    end
  end
end

local function wait_in_line(core, limits)
  local entry = { signal = loop.signal(), box = nil, turn = false, failed = false }
  table.insert(core.queue, entry)
  local wait = { core = core, entry = entry }
  local guard = loop.guard(leave_queue, wait)
  local message, code, detail = loop.wait(limits, entry.signal)
  loop.unguard(guard)
  if message then
    leave_queue(wait)
    return nil, message, code, detail
  elseif entry.box then
    return entry.box
  elseif entry.turn then
    return make_for(core, limits)
  elseif entry.failed then
    return failure(core)
  end
  return closed()
end

local function acquire(self, call, opts, level)
  local core = self.core
  opts = options.check(call, opts, WAIT, level + 1)
  if core.closed then
    errors.raise(level + 1, "%s: the pool was closed", call)
  end
  local limits = loop.limits(opts)
  local box = take(core)
  if box then
    lend(core, box)
    fill(core)
    return box
  elseif opts.cancel and opts.cancel:cancelled() then
    return nil, loop.cancelled(opts.cancel.reason)
  elseif resting(core) then
    return failure(core)
  end
  loop.demand()
  if reserve(core) then
    fill(core)
    return make_for(core, limits)
  end
  return wait_in_line(core, limits)
end

--- A sandbox of the caller's own: a warm one, else a new one, else, when there are `max`, the next
--- for which there is room. It is closed as any other, by `close`, `destroy` or the collector.
---@param opts? { timeout?: number, cancel?: moonsand.Token }|number
---@return moonsand.Sandbox? box, string? message, string? code, table? detail
function Pool:acquire(opts)
  -- No tail call: it would take the frame that levels of errors count.
  return errors.outcome(acquire(self, "pool:acquire", opts, 2))
end

--- Acquires, calls `fn(box, …)`, closes the sandbox in every case, returns what `fn` returned.
---@param fn fun(box: moonsand.Sandbox, ...): any
---@return any ... or nil, message, code, detail when there was no sandbox
function Pool:with(fn, ...)
  if type(fn) ~= "function" then
    errors.raise(2, "pool:with: a function is needed, got %s", type(fn))
  end
  local box, message, code, detail = acquire(self, "pool:with", nil, 2)
  if not box then
    return nil, message, code, detail
  end
  return sandboxes.with(box, fn, ...)
end

---@class moonsand.PoolStats
---@field size integer as asked for
---@field max integer
---@field warm integer ready to be handed out
---@field making integer
---@field used integer handed out and not closed
---@field waiting integer who wait in `acquire`
---@field created integer ever
---@field acquired integer ever
---@field failed integer how often none could be made
---@field failure? string the last one's message, while the pool rests after it

--- What it has, and has done.
---@return moonsand.PoolStats
function Pool:stats()
  local core = self.core
  return {
    size = core.size,
    max = core.max,
    warm = #core.warm,
    making = #core.asked + core.making,
    used = core.out,
    waiting = #core.queue,
    created = core.created,
    acquired = core.acquired,
    failed = core.failed,
    failure = resting(core) and core.failure.message or nil,
  }
end

-- ---------------------------------------------------------------- the end

local function shut(core)
  core.closed = true
  for _, warm in ipairs(core.warm) do
    warm.box:close()
  end
  for _, maker in ipairs(core.asked) do
    maker.void = true
  end
  core.warm, core.asked = {}, {}
  for _, timer in ipairs { "renewal", "retry" } do
    if core[timer] then
      core[timer]()
      core[timer] = nil
    end
  end
end

--- Closes those that are warm or being made; who waits gets `closed`. What was handed out belongs to
--- who acquired it. Idempotent; never waits.
function Pool:close()
  local core = self.core
  if core.closed then
    return
  end
  shut(core)
  local entry = next_in_line(core)
  while entry do
    entry.signal:wake()
    entry = next_in_line(core)
  end
end

Pool.__close = Pool.close

Pool.__tostring = function(self)
  local core = self.core
  return ("moonsand.Pool (%s%d warm, %d handed out)"):format(core.closed and "closed, " or "",
    #core.warm, core.out)
end

-- ---------------------------------------------------------------- a new one

local function whole(name, value, least)
  if value ~= value or value < least or value ~= math.floor(value) or value == math.huge then
    errors.raise(4, "moonsand.pool: option '%s' must be a whole number from %d, not %s", name, least,
      value)
  end
  return options.integer(value)
end

local function copy(from)
  local to = {}
  for key, value in pairs(from or {}) do
    to[key] = value
  end
  return to
end

--- A pool; returns at once.
---@param opts moonsand.PoolOptions types were checked
---@param create fun(opts: table): any `moonsand.create`
---@return moonsand.Pool
function M.new(opts, create)
  local size = whole("size", opts.size or SIZE, 0)
  local max = whole("max", opts.max or math.max(MAX, size), math.max(size, 1))
  if opts.max_age and not (opts.max_age > 0) then
    errors.raise(3, "moonsand.pool: option 'max_age' must be a number of seconds above 0, not %s",
      opts.max_age)
  elseif opts.create and opts.create.name then
    errors.raise(3, "moonsand.pool: create.name would be the name of many sandboxes")
  end
  local core = {
    create = create,
    opts = copy(opts.create),
    size = size,
    max = max,
    max_age = opts.max_age,
    closed = false,
    warm = {}, -- { box, since }, oldest first
    asked = {}, -- places of coroutines in the background that have not begun
    making = 0, -- under way
    out = 0, -- handed out
    queue = {}, -- who waits: { signal, box, turn, failed }
    failure = nil, -- the last one
    pause = nil, -- how long it rested after that
    retry_at = nil, -- until when
    retry = nil, -- ends the timer of that
    renewal = nil, -- ends the timer of the oldest one's age
    created = 0,
    acquired = 0,
    failed = 0,
  }
  fill(core)
  return setmetatable({
    core = core,
    guard = tasks.finalizer(function()
      loop.spawn_late(function()
        shut(core)
      end)
    end),
  }, Pool)
end

return M
