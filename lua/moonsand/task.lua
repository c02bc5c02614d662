--- Tasks: functions that run side by side in coroutines, and what keeps them in order.
---
--- A task is *cancelled* from outside, and told twice. The wait that is in progress, or the next
--- one, answers `nil, message, "cancelled", detail`, so that whoever waits can clean up with plain
--- code. Every wait after that raises an error object with the same code, so that a loop which
--- ignores what its waits answer ends all the same. A wait with `loop.limits(opts, true)` is
--- shielded: it is for what has to be brought to its end first.
---
--- A task belongs to the innermost `run` that it was started in; no task outlives its `run`.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local unpack = table.unpack or unpack

local M = {}

local WAIT = { timeout = "number", cancel = "table" }
local SHIELD = { shield = true }
local NONE = {}

local function pack(...)
  return { n = select("#", ...), ... }
end

local function callable(value)
  if type(value) == "function" then
    return true
  end
  local meta = debug.getmetatable(value)
  return type(meta) == "table" and type(rawget(meta, "__call")) == "function"
end

-- ---------------------------------------------------------------- errors that nobody takes

--- Writes to stderr what a task raised that is never waited for.
function M.print_error(_, traceback)
  io.stderr:write("moonsand: a task failed: ", traceback, "\n")
end

--- Called with what a task raised that is never waited for: the value, a traceback.
---@type fun(err: any, traceback: string)
M.on_error = M.print_error

--- Failures whose task is gone, unseen; told in the next turn of the loop.
local untold = { list = {}, closing = false }

local function report(failure)
  if failure.taken then
    return
  end
  failure.taken = true
  local handler = M.on_error or M.print_error
  if untold.closing and jit then
    handler = M.print_error -- we are in a finalizer, and a user's may well have a `pairs`
  end
  local ok, err = pcall(handler, failure.error, failure.traceback)
  if not ok then
    pcall(M.print_error, err, ("%s\n(raised by on_error)"):format(tostring(err)))
  end
end

--- An object whose end calls `fn`. The collector comes in the middle of anything, so `fn` only
--- takes notes. What it calls has no `pairs`: LuaJIT (before August 2023) hangs in a finalizer where
--- it leaves such a loop that it compiled.
local function finalizer(fn)
  if newproxy then
    local guard = newproxy(true)
    getmetatable(guard).__gc = fn
    return guard
  end
  return setmetatable({}, { __gc = fn })
end
M.finalizer = finalizer

local function tell()
  local list = untold.list
  untold.list = {}
  for i = 1, #list do
    report(list[i])
  end
end

-- Made first, so finalized last when the state is closed; then no turn of the loop will come.
untold.guard = finalizer(function()
  untold.closing = true
  tell()
end)

--- To be kept by the task: tells of its failure when nobody can ask for it any more.
local function teller(failure)
  return finalizer(function()
    if failure.taken then
      return
    end
    local list = untold.list
    list[#list + 1] = failure
    if untold.closing then
      tell()
    elseif #list == 1 then
      loop.spawn_late(tell)
    end
  end)
end

-- ---------------------------------------------------------------- tasks

---@class moonsand.Task
---@field package state "running"|"done"|"failed"|"cancelled"
---@field package values? table what it returned
---@field package failure? { error: any, traceback: string, taken: boolean }
---@field package finished moonsand.Signal
---@field package callbacks? function[]
---@field package scope? table the `run` that it belongs to
---@field package number integer
---@field package awaited boolean somebody takes what it raises
---@field package groups? { group: table, index: integer }[] the calls of `all` that it belongs to
---@field cancelled? { reason: any } read by loop.lua, as are the next two
---@field told? boolean
---@field waiter? moonsand.Waiter
local Task = {}
Task.__index = Task
Task.__name = "moonsand.Task"

Task.__tostring = function(self)
  return ("moonsand.Task (%s)"):format(self.state)
end

local last_number = 0

--- Whether what a cancelled task raised is the cancellation itself, perhaps through `assert`.
local function is_cancellation(task, err)
  if not task.cancelled then
    return false
  end
  local message = loop.cancelled(task.cancelled.reason)
  return type(err) == "string" and err:sub(-#message) == message -- perhaps behind a position
    or errors.is_object(err) and err.code == "cancelled"
end

local function call_back(cb, ...)
  local args = pack(...)
  loop.spawn(function()
    local traceback
    local ok, err = xpcall(function()
      cb(unpack(args, 1, args.n))
    end, function(e)
      traceback = debug.traceback(tostring(e), 2)
      return e
    end)
    if not ok then
      report { error = err, traceback = traceback }
    end
  end)
end

--- What `on_done` hears: true and the values, or false and the error.
local function outcome(task)
  if task.state == "done" or (task.state == "cancelled" and task.values) then
    return true, unpack(task.values, 1, task.values.n)
  elseif task.state == "cancelled" then
    local message, code, detail = loop.cancelled(task.cancelled.reason)
    return false, errors.object(code, message, detail)
  end
  return false, task.failure.error
end

--- How an item of `all` failed, as message, code, detail; nothing when it did not.
local function failure_of(task)
  local values = task.values
  if task.state == "failed" then
    local err = task.failure.error
    local fields = type(err) == "table" and err or {}
    local code = type(fields.code) == "string" and fields.code or "failed"
    local text = type(fields.message) == "string" and fields.message or tostring(err)
    local detail = { error = err, traceback = task.failure.traceback }
    if errors.is_object(err) then
      for key, value in pairs(err) do
        detail[key] = value
      end
    end
    local _, message = errors.fail(code, text, detail)
    return message, code, detail
  elseif not values then
    return loop.cancelled(task.cancelled.reason)
  elseif values[1] == nil and values[2] ~= nil then
    local detail = {}
    for key, value in pairs(type(values[4]) == "table" and values[4] or {}) do
      detail[key] = value
    end
    local code = type(values[3]) == "string" and values[3] or "failed"
    local _, message = errors.fail(code, tostring(values[2]), detail)
    return message, code, detail
  end
end

--- Takes down how an item of `all` ended. A group is a table, and this no closure, because in
--- nginx whoever called `all` may have vanished, and then its locals are overwritten.
local function item_ended(group, index, task)
  group.going[index] = nil
  group.count = group.count - 1
  group.changed:wake()
  local message, code, detail = failure_of(task)
  if not message then
    local value = task.values[1]
    group.results[index] = group.settle and { ok = true, value = value } or value
    return
  end
  detail.index = index
  if group.settle then
    group.results[index] = { ok = false, message = message, code = code, detail = detail }
  elseif not group.failure then
    group.failure = { message, code, detail }
  end
end

local function finish(task, state)
  task.state = state
  task.waiter = nil
  if state == "failed" then
    if task.awaited or task.callbacks then
      task.failure.taken = true
    else
      task.teller = teller(task.failure)
    end
  end
  local scope = task.scope
  if scope then
    scope.live[task] = nil
    scope.count = scope.count - 1
    if task.teller then
      scope.failed[task] = true
    end
    if scope.count == 0 then
      scope.empty:wake()
    end
  end
  task.finished:wake()
  for _, place in ipairs(task.groups or NONE) do
    item_ended(place.group, place.index, task)
  end
  for _, cb in ipairs(task.callbacks or {}) do
    call_back(cb, outcome(task))
  end
  task.callbacks = nil
end

--- The whole life of a task, in its own coroutine.
local function live(task, fn, args)
  loop.own(task)
  if task.cancelled then
    return finish(task, "cancelled") -- before it began
  end
  local traceback
  local values = pack(xpcall(function()
    return fn(unpack(args, 1, args.n))
  end, function(err)
    traceback = debug.traceback(tostring(err), 2)
    return err
  end))
  if values[1] then
    task.values = pack(unpack(values, 2, values.n))
    local was_cancelled = task.cancelled and task.values[1] == nil and task.values[3] == "cancelled"
    finish(task, was_cancelled and "cancelled" or "done")
  elseif is_cancellation(task, values[2]) then
    finish(task, "cancelled")
  else
    traceback = traceback or tostring(values[2])
    task.failure = { error = values[2], traceback = traceback, taken = false }
    finish(task, "failed")
  end
end

local function start(scope, fn, ...)
  last_number = last_number + 1
  local task = setmetatable({
    state = "running",
    values = nil,
    failure = nil,
    finished = loop.signal(),
    callbacks = nil,
    scope = scope,
    number = last_number,
    awaited = false,
    groups = nil,
    cancelled = nil,
    told = false,
    waiter = nil,
  }, Task)
  if scope then
    scope.live[task] = true
    scope.count = scope.count + 1
    if scope.closing then
      task.cancelled = {}
    end
  end
  local args = pack(...)
  loop.spawn(function()
    live(task, fn, args)
  end)
  return task
end

--- Starts a task. It begins to run when the caller next waits (on some hosts: at once).
---@param fn function
---@param ... any its arguments
---@return moonsand.Task
function M.task(fn, ...)
  if not callable(fn) then
    errors.raise(2, "moonsand.task: argument 1 must be a function, got %s", type(fn))
  end
  local owner = loop.owner()
  return start(owner and owner.scope, fn, ...)
end

--- What a finished task gives to whoever waits for it: returns what it returned, raises what it
--- raised; `nil, message, "cancelled", detail` when the cancellation ended it.
local function result(task)
  if task.state == "failed" then
    task.failure.taken = true
    error(task.failure.error, 0)
  elseif task.values then
    return unpack(task.values, 1, task.values.n)
  end
  return nil, loop.cancelled(task.cancelled.reason)
end

--- Waits for a task's end: nothing, or message, code, detail when the limit was hit before.
local function join(task, limits)
  while task.state == "running" do
    local message, code, detail = loop.wait(limits, task.finished)
    if message and task.state == "running" then
      return message, code, detail
    end
  end
end

--- Waits for the end of the task: returns what it returned, or raises what it raised. A task that
--- was cancelled answers `nil, message, "cancelled", detail`. The limits are this wait's, not the
--- task's.
---@param opts? { timeout?: number, cancel?: moonsand.Token }|number
---@return any ...
function Task:wait(opts)
  opts = options.check("task:wait", opts, WAIT)
  if self == loop.owner() then
    errors.raise(2, "task:wait: a task cannot wait for itself")
  end
  local message, code, detail = join(self, loop.limits(opts))
  if message then
    return nil, message, code, detail
  end
  return result(self)
end

--- Cancels the task: see the top of this file. It goes on until it has ended by itself.
---@param reason? any shown in the message when it is a string or a number, kept as `detail.cause`
---@return boolean cancelled false when it had ended, or was cancelled before
function Task:cancel(reason)
  if self.state ~= "running" or self.cancelled then
    return false
  end
  self.cancelled = { reason = reason }
  if self.waiter then
    loop.wake(self.waiter)
  end
  return true
end

--- For the loop: its coroutine is gone, in the middle of a wait. Functions of `on_done` are not
--- called: those that were made in that coroutine, or in others of its request, must not be.
---@param why string
function Task:abandoned(why)
  if self.state == "running" then
    self.cancelled = self.cancelled or { reason = why }
    self.callbacks = nil
    finish(self, "cancelled")
  end
end

---@return "running"|"done"|"failed"|"cancelled"
function Task:status()
  return self.state
end

--- Calls `cb(true, …)` with what the task returned, or `cb(false, err)`, once it has ended; never
--- within this call, and in a coroutine of its own. What it raises goes to `moonsand.on_error`.
---@param cb fun(ok: boolean, ...)
---@return moonsand.Task self
function Task:on_done(cb)
  if not callable(cb) then
    errors.raise(2, "task:on_done: argument 1 must be a function, got %s", type(cb))
  end
  if self.state ~= "running" then
    if self.failure then
      self.failure.taken = true
    end
    call_back(cb, outcome(self))
  else
    self.callbacks = self.callbacks or {}
    table.insert(self.callbacks, cb)
  end
  return self
end

--- The tasks of a scope, oldest first.
local function by_age(set)
  local list = {}
  for task in pairs(set) do
    list[#list + 1] = task
  end
  table.sort(list, function(a, b)
    return a.number < b.number
  end)
  return list
end

--- Ends what was started in a `run` and is still going, and tells of what nobody waited for.
local function close_scope(scope)
  scope.closing = true
  for _, task in ipairs(by_age(scope.live)) do
    task:cancel()
  end
  while scope.count > 0 do
    loop.wait(SHIELD, scope.empty)
  end
  for _, task in ipairs(by_age(scope.failed)) do
    report(task.failure)
  end
  tell()
end

--- Runs `fn` as a task and drives the loop until it has ended; returns what it returned, raises
--- what it raised. Tasks that were started inside and are still going are cancelled, and awaited.
---@param fn function
---@param ... any its arguments
---@return any ...
function M.run(fn, ...)
  if not callable(fn) then
    errors.raise(2, "moonsand.run: argument 1 must be a function, got %s", type(fn))
  end
  loop.demand()
  local scope = {
    live = {},
    count = 0,
    failed = setmetatable({}, { __mode = "k" }),
    empty = loop.signal(),
    closing = false,
  }
  local main = start(scope, fn, ...)
  main.awaited = true
  local message, code, detail = join(main)
  if message then
    main:cancel(detail.cause)
    join(main, SHIELD)
  end
  close_scope(scope)
  if message then
    return nil, message, code, detail
  end
  return result(main)
end

-- ---------------------------------------------------------------- all

local ALL = { limit = "number", settle = "boolean", timeout = "number", cancel = "table" }

--- What to start for each item, checked before anything is.
local function jobs(list, fn)
  if type(list) ~= "table" or getmetatable(list) == Task then
    errors.raise(3, "moonsand.all: argument 1 must be a list, got %s", type(list))
  elseif fn ~= nil and not callable(fn) then
    errors.raise(3, "moonsand.all: argument 2 must be a function, got %s", type(fn))
  end
  local n = #list
  for i = 1, n do
    local item = list[i]
    if not fn and getmetatable(item) ~= Task and not callable(item) then
      errors.raise(3, "moonsand.all: item %d must be a function or a task, got %s", i, type(item))
    end
  end
  return n
end

local function begin(scope, item, fn, index)
  if fn then
    return start(scope, fn, item, index)
  elseif getmetatable(item) == Task then
    return item
  end
  return start(scope, item, index)
end

local function join_group(group, index, task)
  task.awaited = true
  group.going[index] = task
  group.count = group.count + 1
  if task.state == "running" then
    task.groups = task.groups or {}
    table.insert(task.groups, { group = group, index = index })
    return
  elseif task.failure then
    task.failure.taken = true
  end
  item_ended(group, index, task)
end

local function cancel_group(group, n)
  for index = 1, n do
    if group.going[index] then
      group.going[index]:cancel(group.failure[3].cause)
    end
  end
end

--- Calls `fn(item, index)` for each item, or each item itself, side by side, at most `limit` at
--- once. Items may be tasks that are running already. Gives each one's first value, in order. The
--- first failure cancels the rest, waits for its end, and is answered with `detail.index`. With
--- `settle` all run to their end, and each gives `{ ok = true, value = v }` or
--- `{ ok = false, message = m, code = c, detail = d }`. A raise, and a failure without a code, has
--- the code "failed".
---@param list any[]
---@param fn? fun(item: any, index: integer): any
---@param opts? { limit?: integer, settle?: boolean, timeout?: number, cancel?: moonsand.Token }
---@return { n: integer, [integer]: any }?
---@return string? message, string? code, table? detail
function M.all(list, fn, opts)
  if opts == nil and (type(fn) == "number" or type(fn) == "table" and not callable(fn)) then
    fn, opts = nil, fn
  end
  local n = jobs(list, fn)
  opts = options.check("moonsand.all", opts, ALL)
  local limit = opts.limit or math.max(n, 1)
  if limit < 1 or limit ~= math.floor(limit) then
    errors.raise(2, "moonsand.all: option 'limit' must be a whole number from 1, not %s", limit)
  end
  local limits = loop.limits(opts)
  local results = { n = n }
  if n == 0 then
    return results
  end
  loop.demand()

  local owner = loop.owner()
  local group = {
    scope = owner and owner.scope,
    changed = loop.signal(),
    going = {}, -- index -> task
    count = 0,
    settle = opts.settle,
    results = results,
    failure = nil, -- { message, code, detail }: the first, for all
  }
  local next_index, cancelled = 1, false
  while true do
    while next_index <= n and group.count < limit and not group.failure do
      join_group(group, next_index, begin(group.scope, list[next_index], fn, next_index))
      next_index = next_index + 1
    end
    if group.failure and not cancelled then
      cancelled, limits = true, SHIELD
      cancel_group(group, n)
    end
    if group.count == 0 then
      break
    end
    local message, code, detail = loop.wait(limits, group.changed)
    if message and not group.failure then
      group.failure = { message, code, detail }
    end
  end
  if group.failure then
    return nil, unpack(group.failure, 1, 3)
  end
  return results
end

-- ---------------------------------------------------------------- semaphore

---@class moonsand.Semaphore
---@field package free integer
---@field package size integer
---@field package queue table[] of { signal, granted }: who waits, first come first served
---@field package first integer
---@field package last integer
local Semaphore = {}
Semaphore.__index = Semaphore
Semaphore.__name = "moonsand.Semaphore"

Semaphore.__tostring = function(self)
  return ("moonsand.Semaphore (%d of %d free)"):format(self.free, self.size)
end

--- Lets at most `n` in at once; first come, first served.
---@param n integer
---@return moonsand.Semaphore
function M.semaphore(n)
  if type(n) ~= "number" or n < 1 or n ~= math.floor(n) then
    errors.raise(2, "moonsand.semaphore: argument 1 must be a whole number from 1, got %s",
      tostring(n))
  end
  n = options.integer(n)
  return setmetatable({ free = n, size = n, queue = {}, first = 1, last = 0 }, Semaphore)
end

--- Gives one place to who has waited longest. An entry that nobody waits on is left over from a
--- wait that raised.
local function hand_on(self)
  while self.first <= self.last do
    local entry = self.queue[self.first]
    self.queue[self.first] = nil
    self.first = self.first + 1
    if entry and entry.signal:awaited() then
      entry.granted = true
      entry.signal:wake()
      return
    end
  end
  self.first, self.last = 1, 0
  self.free = self.free + 1
end

--- Takes an entry out, and with it what is at either end of the queue for nothing.
local function withdraw(self, place)
  self.queue[place] = false
  while self.last >= self.first and not self.queue[self.last] do
    self.queue[self.last] = nil
    self.last = self.last - 1
  end
  while self.first <= self.last and not self.queue[self.first] do
    self.queue[self.first] = nil
    self.first = self.first + 1
  end
end

--- Who waited for a place does not want it any more.
local function leave_queue(wait)
  if wait.entry.granted then
    hand_on(wait.semaphore)
  else
    withdraw(wait.semaphore, wait.place)
  end
end

--- Takes a place, waiting for one if it must.
---@param opts? { timeout?: number, cancel?: moonsand.Token }|number
---@return true?
---@return string? message, string? code, table? detail
function Semaphore:acquire(opts)
  opts = options.check("semaphore:acquire", opts, WAIT)
  if self.free > 0 then
    self.free = self.free - 1
    return true
  end
  local limits = loop.limits(opts)
  local entry = { signal = loop.signal(), granted = false }
  self.last = self.last + 1
  local place = self.last
  self.queue[place] = entry
  local wait = { semaphore = self, entry = entry, place = place }
  local guard = loop.guard(leave_queue, wait)
  while not entry.granted do
    local message, code, detail = loop.wait(limits, entry.signal)
    if message then
      loop.unguard(guard)
      leave_queue(wait)
      return nil, message, code, detail
    end
  end
  loop.unguard(guard)
  return true
end

--- Gives a place back; from any coroutine.
function Semaphore:release()
  if self.free >= self.size then
    errors.raise(2, "semaphore:release: released more often than acquired")
  end
  hand_on(self)
end

local function leave(self, guard, ok, ...)
  loop.unguard(guard)
  self:release()
  if not ok then
    error((...), 0)
  end
  return ...
end

--- Acquires, calls `fn(…)`, releases in every case; returns or raises what `fn` did.
---@param fn function
---@return any ...
function Semaphore:with(fn, ...)
  if not callable(fn) then
    errors.raise(2, "semaphore:with: argument 1 must be a function, got %s", type(fn))
  end
  local ok, message, code, detail = self:acquire()
  if not ok then
    return nil, message, code, detail
  end
  return leave(self, loop.guard(hand_on, self), pcall(fn, ...))
end

-- ---------------------------------------------------------------- token

---@class moonsand.Token
---@field reason? any
---@field deadline? number read by loop.lua, as is `signal`
---@field signal moonsand.Signal
---@field package done boolean
---@field package callbacks table<integer, function>
---@field package count integer how many there ever were
---@field package stop? fun() ends the timer, which runs only for callbacks
local Token = {}
Token.__index = Token
Token.__name = "moonsand.Token"

Token.__tostring = function(self)
  return ("moonsand.Token (%s)"):format(self:cancelled() and "cancelled" or "open")
end

--- Something to give as `cancel` to any number of calls. With a timeout it cancels itself.
---@param opts? { timeout?: number }|number
---@return moonsand.Token
function M.token(opts)
  opts = options.check("moonsand.token", opts, { timeout = "number" })
  return setmetatable({
    reason = nil,
    deadline = opts.timeout and core.now() + opts.timeout,
    signal = loop.signal(),
    done = false,
    callbacks = {},
    count = 0,
    stop = nil,
  }, Token)
end

local function run_callbacks(self)
  local callbacks = self.callbacks
  self.callbacks = {}
  for i = 1, self.count do
    local fn = callbacks[i]
    if fn then
      local traceback
      local ok, err = xpcall(fn, function(e)
        traceback = debug.traceback(tostring(e), 2)
        return e
      end, self.reason)
      if not ok then
        report { error = err, traceback = traceback or tostring(err) }
      end
    end
  end
end

local function trip(self, reason)
  self.done = true
  self.reason = reason
  self.deadline = nil
  if self.stop then
    self.stop()
    self.stop = nil
  end
  self.signal:wake()
end

--- Cancels what the token was given to, and calls the functions of `on_cancel`, here and now.
---@param reason? any
---@return boolean cancelled false when it was before
function Token:cancel(reason)
  if self:cancelled() then
    return false
  end
  trip(self, reason)
  run_callbacks(self)
  return true
end

---@return boolean cancelled
---@return any reason
function Token:cancelled()
  if not self.done and self.deadline and core.now() >= self.deadline then
    trip(self, "timed out")
    if next(self.callbacks) then
      loop.spawn(function()
        run_callbacks(self)
      end)
    end
  end
  return self.done, self.reason
end

--- Calls `fn(reason)` when the token is cancelled; at once when it is already.
---@param fn fun(reason: any)
---@return fun() off takes it back
function Token:on_cancel(fn)
  if not callable(fn) then
    errors.raise(2, "token:on_cancel: argument 1 must be a function, got %s", type(fn))
  end
  if self:cancelled() then
    fn(self.reason)
    return function() end
  end
  self.count = self.count + 1
  local index = self.count
  self.callbacks[index] = fn
  if self.deadline and not self.stop then
    self.stop = loop.at(self.deadline, function()
      self.stop = nil
      self:cancelled()
    end)
  end
  return function()
    self.callbacks[index] = nil
    if self.stop and not next(self.callbacks) then
      self.stop()
      self.stop = nil
    end
  end
end

-- ---------------------------------------------------------------- sleep, retry, wrap

--- Waits until `at`, or until the limit: true, or nil, message, code, detail.
local function sleep_until(at, limits)
  local deadline = limits.deadline
  local whole = not deadline or at <= deadline
  local message, code, detail
  repeat
    message, code, detail = loop.wait {
      deadline = whole and at or deadline,
      token = limits.token,
    }
  until message
  if code == "timeout" and whole then
    return true
  end
  return nil, message, code, detail
end

--- Waits. `sleep(0)` lets everything else have a turn.
---@param seconds number
---@param opts? { timeout?: number, cancel?: moonsand.Token }|number
---@return true?
---@return string? message, string? code, table? detail
function M.sleep(seconds, opts)
  if type(seconds) ~= "number" or not (seconds >= 0) then
    errors.raise(2, "moonsand.sleep: argument 1 must be a number of seconds, got %s",
      tostring(seconds))
  end
  local at = core.now() + seconds
  opts = options.check("moonsand.sleep", opts, WAIT)
  return sleep_until(at, loop.limits(opts))
end

local RETRY = {
  times = "number",
  delay = "number",
  factor = "number",
  on = "table",
  timeout = "number",
  cancel = "table",
}

--- Failures that the same call would meet again.
local LASTING = {
  auth = true,
  cancelled = true,
  closed = true,
  invalid = true,
  quota = true,
  unsupported = true,
}

local function retry_options(opts)
  opts = options.check("moonsand.retry", opts, RETRY, 3)
  local times, delay, factor = opts.times or 3, opts.delay or 0.5, opts.factor or 2
  if not (times >= 1) then
    errors.raise(3, "moonsand.retry: option 'times' must be 1 or more, not %s", times)
  elseif not (delay >= 0) then
    errors.raise(3, "moonsand.retry: option 'delay' must be a number of seconds, not %s", delay)
  elseif not (factor >= 0) then
    errors.raise(3, "moonsand.retry: option 'factor' must not be negative, not %s", factor)
  end
  local on = opts.on and {}
  for i, code in ipairs(opts.on or {}) do
    if type(code) ~= "string" then
      errors.raise(3, "moonsand.retry: item %d of 'on' must be a code, got %s", i, type(code))
    end
    on[code] = true
  end
  return opts, times, delay, factor, on
end

---@class moonsand.RetryOptions
---@field times? integer
---@field delay? number seconds
---@field factor? number
---@field on? string[] codes
---@field timeout? number seconds
---@field cancel? moonsand.Token

--- Calls `fn(attempt)` until it does not answer a failure, at most `times` (3) times. Between two
--- calls it sleeps: `delay` (0.5) seconds, then `factor` (2) times as long each time, or as long as
--- the failure's `retry_after`. `on` lists the codes that are worth another try; else all are but
--- auth, cancelled, closed, invalid, quota and unsupported. What `fn` raises is not caught.
---@param fn fun(attempt: integer): any
---@param opts? moonsand.RetryOptions
---@return any ... what `fn` returned, or its last failure with `detail.attempts`
function M.retry(fn, opts)
  if not callable(fn) then
    errors.raise(2, "moonsand.retry: argument 1 must be a function, got %s", type(fn))
  end
  local times, delay, factor, on
  opts, times, delay, factor, on = retry_options(opts)
  local limits = loop.limits(opts)
  local attempt = 0
  while true do
    attempt = attempt + 1
    local values = pack(fn(attempt))
    if values[1] ~= nil or values[2] == nil then
      return unpack(values, 1, values.n)
    end
    local code, detail = values[3], values[4]
    local worth = not LASTING[code]
    if on then
      worth = on[code]
    end
    if type(detail) == "table" then
      detail.attempts = attempt
    end
    if not worth or attempt >= times then
      return unpack(values, 1, values.n)
    end
    local pause = math.max(delay, type(detail) == "table" and tonumber(detail.retry_after) or 0)
    local slept, message, why, limit = sleep_until(core.now() + pause, limits)
    if not slept then
      limit.attempts = attempt
      limit.cause = detail or values[2]
      return nil, message, why, limit
    end
    delay = delay * factor
  end
end

local function give(ok, ...)
  if not ok then
    error((...), 0)
  end
  return ...
end

--- `coroutine.wrap` for generators that wait: the wait suspends the task that called the generator,
--- instead of coming out of it as a value.
---@param fn function
---@return fun(...): any
function M.wrap(fn)
  if not callable(fn) then
    errors.raise(2, "moonsand.wrap: argument 1 must be a function, got %s", type(fn))
  end
  local co = coroutine.create(fn)
  return function(...)
    return give(loop.resume(co, ...))
  end
end

return M
