--- How this process waits. The pattern is the same everywhere: try, wait, try again.
---
---     local limits = loop.limits(opts)
---     while true do
---       local value = stream:try_read()
---       if value then return value end
---       local message, code, detail = loop.wait(limits, stream)
---       if message then return errors.fail(code, message, detail) end
---     end
---
--- What is waited for is a *waitable*: a C object with `:id()` and `:arm()`, whose wake puts its id
--- on the reactor's ready list; or a `loop.signal()`, or a table that has one behind its `add` and
--- `remove`. Waking in vain is harmless.
---
--- How a coroutine is suspended, or a thread blocked, is up to the *host*: a table of
---
---   host.can_wait()    true, or nil and why not: may what runs now wait? Asked before anything is
---                      registered. False inside callbacks of C functions (`loop.root()` tells) and
---                      in phases that must not wait.
---   host.park(waiter)  true once `waiter.woken`; or nil and why it cannot be: the coroutine was
---                      resumed by somebody else, nobody is left to wake it. Suspends the
---                      coroutine that `loop.root()` names with `coroutine.yield(loop.PARK)`, which
---                      generators let pass, and knows its own resume by what the yield gives back;
---                      or blocks, calls `loop.poll(-1)` and runs what that woke; or waits on a
---                      semaphore.
---   host.wake(waiter)  `waiter.woken` has become true; called once. Runs nothing: it sees to it
---                      that `park` returns soon (a queue, vim.schedule, sem:post).
---   host.spawn(fn)     runs fn, which never raises, in a new coroutine; soon, or at once.
---   host.background(fn)  the same for what must outlive whoever asks for it (optional): in nginx a
---                      request's own coroutines end with the request.
---   host.run()         runs what was woken; true when there was anything (optional).
---   host.pending()     whether `run` would find anything (with `run`).
---   host.current()     the coroutine that it resumed last, still on the stack (optional).
---   host.began(co)     whether a coroutine is still one that `spawn` began (optional): for hosts
---                      that use coroutines again.
---   host.hold(waiter)  `park` in the running coroutine, for a generator made by `moonsand.wrap`
---                      that yielded PARK and the waiter (optional).
---   host.never_blocks  true where nothing but coroutines may wait (optional): `step` is refused.
---   host.lingers       true where the end of the Lua state may be held up for the requests that
---                      are left for it (optional).
---
--- Where coroutines can vanish in a wait, with no error and no return (nginx, when a client goes
--- away), the host has `vanishes = true`, finds that out, and calls `loop.abandon(waiter, why)`.
---
--- A host that watches `loop.fd()` calls `loop.poll(0)` when it is readable; timers are inside it.
--- It may put fields of its own into a waiter, and counts those it has parked if its loop must be
--- kept alive for them. The host is looked up anew for each wait, since where we are loaded (init
--- of nginx, a required file) says nothing about where we are called.

local core = require "moonsand.core"
local errors = require "moonsand.errors"

local M = {}

--- What a suspended coroutine yields.
M.PARK = setmetatable({}, {
  __tostring = function()
    return "moonsand: a wait (use moonsand.wrap for generators that wait)"
  end,
})

-- Weak both ways, for LuaJIT, whose weak tables keep a key that its own value reaches: whoever may
-- still go on has what it needs on its own stack.
local weak = { __mode = "kv" }
local reactor ---@type any the reactor of this process
local waiting = {} -- id -> waiter, or a list of them with `crowd`
local owners = setmetatable({}, weak) -- coroutine -> the task that it runs
local outer = setmetatable({}, weak) -- coroutine of a wrapped generator -> who resumed it
local blocked = setmetatable({}, weak) -- the same: true when it was resumed where it cannot yield
local guards = setmetatable({}, weak) -- coroutine -> list of what `guard` gave, which holds it
local NONE = {}
local late = {} -- functions that a finalizer left for the next turn
local chosen -- the host of `use`
local hosts = {} -- by name, those that were needed

---@class moonsand.Waiter one wait in progress
---@field host table
---@field woken boolean set before `host.wake`
---@field ready boolean woken by a waitable, not only by a limit
---@field timer? integer id of the deadline
---@field call? fun() no wait at all: what a timer calls
---@field token? moonsand.Token
---@field owner? table the task that waits
---@field guards? table[] the lists of `guard` that hold for it

---@class moonsand.Limits
---@field deadline? number monotonic seconds
---@field token? moonsand.Token
---@field shield? boolean goes on when the task is cancelled
---@field overdue? boolean the one turn after the deadline was given

--- The reactor of this process, made on first use and again in a forked child.
---@return userdata? reactor
---@return string? message, string? code, table? detail
function M.reactor()
  if reactor and not reactor:foreign() then
    return reactor
  end
  local fresh, errno = core.reactor()
  if not fresh then
    return errors.errno(errno, "the event loop could not be made")
  end
  reactor, waiting = fresh, {}
  return reactor
end

--- Monotonic seconds.
M.now = core.now

--- The descriptor to watch: readable when `step(0)` has something to do.
---@return integer? fd
---@return string? message, string? code, table? detail
function M.fd()
  local r, message, code, detail = M.reactor()
  if not r then
    return nil, message, code, detail
  end
  return r:fd()
end

--- True when no descriptor and no timer could wake anybody.
---@return boolean
function M.idle()
  return not late[1] and (not reactor or reactor:foreign() or reactor:active() == 0)
end

-- ---------------------------------------------------------------- hosts

local function named(name)
  local host = require("moonsand.hosts." .. name)
  hosts[name] = host
  return host
end

local loaded = package.loaded
local globals = _G -- in nginx, this file's own may be a request's

--- The name of the host that fits: nginx and Neovim run one loop, which must not be blocked; luv
--- is used when the program loaded it.
local function fitting()
  local ngx, vim = globals.ngx, globals.vim
  if ngx and type(ngx) == "table" and ngx.get_phase then
    return "ngx"
  elseif vim and type(vim) == "table" and (vim.uv or vim.loop) then
    return "nvim"
  elseif loaded.luv then
    return "luv"
  end
  return "plain"
end

--- The host of whoever calls.
---@return table
function M.host()
  if chosen then
    return chosen
  end
  local name = fitting()
  return hosts[name] or named(name)
end

--- Takes this host from now on; nil: the one that fits.
---@param host? string|table a name ("plain", "luv", "nvim", "ngx"), or a table as described above
function M.use(host)
  if type(host) == "string" then
    local found, value = pcall(named, host)
    if not found then
      errors.raise(2, "loop.use: there is no host '%s' here: %s", host, tostring(value))
    end
    host = value
  elseif host ~= nil and type(host) ~= "table" then
    errors.raise(2, "loop.use: a host is a name or a table, got %s", type(host))
  end
  for _, name in ipairs { "can_wait", "park", "wake", "spawn" } do
    if host and type(host[name]) ~= "function" then
      errors.raise(2, "loop.use: the host has no function '%s'", name)
    end
  end
  chosen = host
end

--- Runs fn, which never raises, in a coroutine of its own.
---@param fn fun()
function M.spawn(fn)
  M.host().spawn(fn)
end

--- The same for what nobody in particular asked for, and nobody's end may end.
---@param fn fun()
function M.background(fn)
  local host = M.host();
  (host.background or host.spawn)(fn)
end

--- The same for finalizers, which may come in the middle of anything: nothing happens but in the
--- next turn of the loop.
---@param fn fun()
function M.spawn_late(fn)
  late[#late + 1] = fn
end

local function spawn_latecomers()
  local list = late
  late = {}
  for i = 1, #list do
    M.spawn(list[i])
  end
end

-- ---------------------------------------------------------------- which coroutine this is

local MAIN = {} -- LuaJIT has no object for the main thread

local function running()
  return coroutine.running() or MAIN
end

--- The coroutine that a wait suspends in the end, through wrapped generators; and whether each
--- of them can yield where it stands.
---@return any coroutine
---@return boolean yieldable
function M.root()
  local co, yieldable = running(), core.isyieldable()
  while outer[co] do
    yieldable = yieldable and not blocked[co]
    co = outer[co]
  end
  return co, yieldable
end

--- The task that runs now, or nil.
---@return table?
function M.owner()
  local co = running()
  local host = M.host()
  while co do
    local task = owners[co]
    if task and (not host.began or host.began(co)) then
      return task
    end
    co = outer[co]
  end
  return host.current and owners[host.current() or MAIN] or nil
end

--- Whether a generator runs that `moonsand.wrap` made.
function M.is_wrapped()
  return outer[running()] ~= nil
end

--- Says that the running coroutine is this task's, or nobody's.
function M.own(task)
  owners[running()] = task
end

local passing = setmetatable({}, weak) -- coroutines of generators whose wait was let through

local function go_on(co, ...)
  passing[co] = nil
  return coroutine.resume(co, ...)
end

--- Suspends whoever called a generator, for the generator's wait.
local function hold(waiter)
  if waiter and waiter.host.hold and not outer[running()] then
    return waiter.host.hold(waiter)
  end
  return coroutine.yield(M.PARK, waiter)
end

local function pass(co, ok, first, ...)
  if ok and first == M.PARK then
    passing[co] = true
    return pass(co, go_on(co, hold(...)))
  end
  return ok, first, ...
end

--- `coroutine.resume` that lets waits through to whoever resumed us.
function M.resume(co, ...)
  if passing[co] then
    return false, "moonsand: this generator is suspended in a wait, called by another coroutine"
  end
  outer[co] = running()
  blocked[co] = not core.isyieldable() or nil
  return pass(co, coroutine.resume(co, ...))
end

-- ---------------------------------------------------------------- waking

--- Wakes one waiter. `by` is the id that was ready, if it was one.
local function wake(waiter, by)
  if waiter.call then
    waiter.call()
    return
  end
  if by == nil or by ~= waiter.timer then
    waiter.ready = true
  end
  if not waiter.woken then
    waiter.woken = true
    waiter.host.wake(waiter)
  end
end
M.wake = wake

local function register(id, waiter)
  local there = waiting[id]
  if there == nil then
    waiting[id] = waiter
  elseif there.crowd then
    there[#there + 1] = waiter
  else
    waiting[id] = { crowd = true, there, waiter }
  end
end

local function unregister(id, waiter)
  local there = waiting[id]
  if there == waiter then
    waiting[id] = nil
  elseif there and there.crowd then
    for i = #there, 1, -1 do
      if there[i] == waiter then
        table.remove(there, i)
      end
    end
    if #there == 0 then
      waiting[id] = nil
    end
  end
end

local function dispatch(id)
  local there = waiting[id]
  if not there then
    return
  end
  waiting[id] = nil
  if there.crowd then
    for i = 1, #there do
      wake(there[i], id)
    end
  else
    wake(there, id)
  end
end

--- Steps the reactor and wakes who waited for what is ready; runs none of them.
---@param timeout number seconds; negative: for ever
---@return boolean? something was ready
---@return string? message, string? code, table? detail
function M.poll(timeout)
  if late[1] then
    spawn_latecomers()
    timeout = 0
  end
  local r, message, code, detail = M.reactor()
  if not r then
    return nil, message, code, detail
  end
  if r:step(timeout) == 0 then
    return false
  end
  local id = r:next()
  while id do
    dispatch(id)
    id = r:next()
  end
  return true
end

--- One turn for a program with a loop of its own: serves what is there, runs the tasks that can go
--- on. Waits for at most `timeout` seconds, and only when no task could run.
---@param timeout? number seconds, 0 if nil; negative: for ever
---@return boolean? something happened
---@return string? message, string? code, table? detail
function M.step(timeout)
  local pending = (chosen or hosts[fitting()] or NONE).pending
  if (timeout == 0 or timeout == nil) and reactor and not late[1]
    and not (pending and pending()) and reactor:step(0) == 0 then
    return false -- nothing to do: the common case of a game's frame, and so kept short
  elseif timeout ~= nil and (type(timeout) ~= "number" or timeout ~= timeout) then
    errors.raise(2, "loop.step: the timeout must be a number of seconds, got %s", tostring(timeout))
  end
  local host = M.host()
  if host.never_blocks and timeout and timeout ~= 0 then
    errors.raise(2, "loop.step: this host must not be blocked; only step(0) is allowed")
  end
  local ran = host.run and host.run()
  if ran or timeout == nil then
    timeout = 0
  end
  if ran and not host.pending() and M.idle() then
    return true -- no reactor is needed for tasks that wait for each other
  end
  local ready, message, code, detail = M.poll(timeout)
  if ready == nil then
    return nil, message, code, detail
  end
  if host.run and host.run() then
    ran = true
  end
  return ran or ready
end

--- What loops such as cqueues ask of an object that they watch: `cqueues.poll(moonsand.loop)`.
---@return integer? fd
---@return string? message, string? code, table? detail
function M.pollfd()
  return M.fd()
end

---@return "r"
function M.events()
  return "r"
end

--- 0 while tasks can go on, of which the descriptor says nothing; else nil, no limit.
---@return 0|nil seconds
function M.timeout()
  local host = M.host()
  return (late[1] or host.pending and host.pending()) and 0 or nil
end

-- ---------------------------------------------------------------- signals and timers

---@class moonsand.Signal a waitable in Lua
---@field private list moonsand.Waiter[]
---@field private place table<moonsand.Waiter, integer>
local Signal = {}
Signal.__index = Signal
Signal.__name = "moonsand.Signal"

---@return moonsand.Signal
function M.signal()
  return setmetatable({ list = {}, place = {} }, Signal)
end

--- Wakes all who wait now. Works from anywhere; they go on later, not within this call.
function Signal:wake()
  local list = self.list
  if list[1] == nil then
    return
  end
  self.list, self.place = {}, {}
  for i = 1, #list do
    wake(list[i])
  end
end

--- Whether anybody waits.
function Signal:awaited()
  return self.list[1] ~= nil
end

function Signal:add(waiter)
  if not self.place[waiter] then
    self.list[#self.list + 1] = waiter
    self.place[waiter] = #self.list
  end
end

--- The last one takes the place of the one that goes.
function Signal:remove(waiter)
  local at = self.place[waiter]
  if not at then
    return
  end
  local last = table.remove(self.list)
  self.place[waiter] = nil
  if last ~= waiter then
    self.list[at] = last
    self.place[last] = at
  end
end

--- Calls fn, which must neither wait nor raise, at a time. For the library's own use.
---@param at number monotonic seconds
---@param fn fun()
---@return fun()? cancel from then on fn is not called, though its time has come
---@return string? message, string? code, table? detail
function M.at(at, fn)
  local r, message, code, detail = M.reactor()
  if not r then
    return nil, message, code, detail
  end
  local id = r:timer(at)
  local waiter = { call = fn }
  register(id, waiter)
  return function()
    r:cancel(id)
    unregister(id, waiter)
  end
end

--- Calls fn, which must neither wait nor raise, once: when a C waitable has something, or is gone.
--- Holds neither. For the library's own use.
---@param waitable table|userdata
---@param fn fun()
function M.watch(waitable, fn)
  local id = waitable:id()
  register(id, { call = fn })
  waitable:arm()
end

-- ---------------------------------------------------------------- waiting

--- The limits of one call, computed once and passed down. The options were checked already.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@param shield? boolean the wait goes on when the task is cancelled: for cleaning up
---@return moonsand.Limits
function M.limits(opts, shield)
  local timeout, token = opts and opts.timeout, opts and opts.cancel
  if not timeout and not token and not shield then
    return NONE
  end
  return { deadline = timeout and core.now() + timeout, token = token, shield = shield }
end

--- What a cancelled wait answers.
---@param reason? any as given to `cancel`
---@return string message, string code, table detail
function M.cancelled(reason)
  local message = "cancelled"
  if type(reason) == "string" or type(reason) == "number" then
    message = message .. ": " .. reason
  end
  return message, "cancelled", { code = "cancelled", message = message, cause = reason }
end

local function timed_out()
  return "timed out", "timeout", { code = "timeout", message = "timed out" }
end

local HERE = debug.getinfo(1, "S").source:match "^(.*)loop%.lua$" or "@"

--- The level, for whoever calls this, of the first function outside of the library.
local function blame()
  local level = 3
  while true do
    local info = debug.getinfo(level, "S")
    if not info then
      return 2
    elseif info.what ~= "C" and info.source:sub(1, #HERE) ~= HERE then
      return level - 1
    end
    level = level + 1
  end
end

local function refuse(why)
  error("moonsand: cannot wait here: " .. why, blame())
end

--- Waits for what is in the list of a waiter, and leaves there what `unwatch` needs of it.
local function watch(waiter)
  for i = 1, #waiter do
    local waitable = waiter[i]
    if type(waitable) == "table" and waitable.add then
      waitable:add(waiter)
    else
      local id = waitable:id()
      waitable:arm()
      register(id, waiter)
      waiter[i] = id
    end
  end
end

local function unwatch(waiter, token)
  for i = 1, #waiter do
    local key = waiter[i]
    if type(key) == "table" then
      key:remove(waiter)
    else
      unregister(key, waiter)
    end
  end
  if token then
    token.signal:remove(waiter)
  end
  if waiter.timer and reactor:cancel(waiter.timer) then
    waiting[waiter.timer] = nil
  end
end

--- Until `unguard`: when the running coroutine vanishes in a wait, `fn(value)` is called, which must
--- neither wait nor raise. For what has to end with it: a program, a sandbox. `fn` must not use
--- locals of the frames that vanish: where coroutines are used again, they are somebody else's then.
---@param fn fun(value: any)
---@param value any
---@return table? guard
function M.guard(fn, value)
  if not M.host().vanishes then
    return nil
  end
  local co = running()
  local list = guards[co]
  if not list or list.parked then -- of one that vanished, in this same coroutine
    list = {}
    guards[co] = list
  end
  local guard = { fn = fn, value = value, list = list }
  list[#list + 1] = guard
  return guard
end

---@param guard table? what `guard` gave
function M.unguard(guard)
  local list = guard and guard.list or {}
  for i = #list, 1, -1 do
    if list[i] == guard then
      table.remove(list, i)
    end
  end
end

--- The lists of guards that hold for the running coroutine, innermost first, from now on parked.
local function guards_here()
  local lists = {}
  local co = running()
  while co do
    local list = guards[co]
    if list and not list.parked then
      list.parked = true
      lists[#lists + 1] = list
    end
    co = outer[co]
  end
  return lists
end

--- For hosts: the coroutine of a parked waiter is gone and will never come back.
---@param waiter moonsand.Waiter
---@param why string for those who wait for a task that ran in it
function M.abandon(waiter, why)
  unwatch(waiter, waiter.token)
  for _, list in ipairs(waiter.guards or {}) do
    for co, there in pairs(guards) do
      if there == list then
        guards[co] = nil -- another may run in it by now
      end
    end
    for i = #list, 1, -1 do
      local guard = table.remove(list, i)
      guard.fn(guard.value)
    end
  end
  local owner = waiter.owner
  if owner and owner.waiter == waiter then
    owner:abandoned(why)
  end
end

--- The limit that holds when a wait begins or has ended, as message, code, detail; else nil. The
--- first time, a cancelled task is told by values, so that what waited can clean up without a
--- pcall; after that by an error, so that `while true do sleep(1) end` ends.
local function limit(owner, token)
  if owner and owner.cancelled then
    local message, code, detail = M.cancelled(owner.cancelled.reason)
    if owner.told then
      error(errors.object(code, message, detail), 0)
    end
    owner.told = true
    return message, code, detail
  end
  if token and token:cancelled() then
    return M.cancelled(token.reason)
  end
end

--- Raises where a wait would: for calls that start something first and wait for it then.
function M.demand()
  local owner = M.owner()
  if owner and owner.told then
    limit(owner)
  end
  local may, why = M.host().can_wait()
  if not may then
    refuse(why)
  end
end

--- The deadline that comes first; its passing is the token's doing when the token's is.
local function earlier(limits, token)
  local deadline = limits.deadline
  if token and token.deadline and (not deadline or token.deadline < deadline) then
    return token.deadline
  end
  return deadline
end

--- Waits until one of the waitables (perhaps) has something: then nil, try again. Or the limit was
--- hit: message, code ("timeout", "cancelled"), detail. Past the deadline one turn of the loop is
--- given, so that `timeout = 0` sees what is there.
---@param limits? moonsand.Limits
---@param ... any waitables
---@return string? message, string? code, table? detail
function M.wait(limits, ...)
  limits = limits or NONE
  local token = limits.token
  local owner = not limits.shield and M.owner() or nil
  local message, code, detail = limit(owner, token)
  if message then
    return message, code, detail
  end
  local deadline = limits.deadline
  if deadline and deadline <= core.now() then
    if limits.overdue then
      return timed_out()
    end
    limits.overdue = true
  end

  local host = M.host()
  local may, why = host.can_wait()
  if not may then
    refuse(why)
  end
  local waiter = { host = host, woken = false, ready = false, token = token, owner = owner, ... }
  if next(guards) then
    waiter.guards = guards_here()
  end
  deadline = earlier(limits, token)
  if deadline then
    local r
    r, message, code, detail = M.reactor()
    if not r then
      return message, code, detail
    end
    waiter.timer = r:timer(deadline)
    waiting[waiter.timer] = waiter
  end
  watch(waiter)
  if token then
    token.signal:add(waiter)
  end
  if owner then
    owner.waiter = waiter
  end
  local parked
  parked, why = host.park(waiter)
  for _, list in ipairs(waiter.guards or NONE) do
    list.parked = false
  end
  if owner then
    owner.waiter = nil
  end
  unwatch(waiter, token)
  if not parked then
    refuse(why)
  end

  message, code, detail = limit(owner, token)
  if message then
    return message, code, detail
  elseif waiter.ready then
    return nil
  end
  return timed_out()
end

--- So many seconds functions of the caller's are called one after the other, before others have a
--- turn.
M.SLICE = 0.005

--- Lets everybody else have a turn: for those who move many bytes. Answers nothing, or why the call
--- must end here.
---@param limits moonsand.Limits
---@return string? message, string? code, table? detail
function M.turn(limits)
  local now = core.now()
  local message, code, detail =
    M.wait { deadline = now, token = limits.token, shield = limits.shield }
  if code ~= "timeout" then
    return message, code, detail
  elseif limits.deadline and limits.deadline <= now then
    return message, code, detail
  end
end

return M
