--- The host inside nginx with the Lua module (OpenResty). Coroutines of requests, timers and light
--- threads are suspended in the phases where nginx lets them be; anywhere else a wait raises before
--- anything is registered: a worker is never blocked.
---
--- Who waits is suspended on a semaphore of his own. It is a hint and no more: what counts is
--- `waiter.woken`. The semaphores are posted by the *driver*, one timer's coroutine per worker
--- (per Lua state, that is: with lua_code_cache off each request has its own). The driver reads
--- bytes from the wake thread (src/wake.c), which watches the reactor, and steps it:
---
---     reactor readable -> thread: 'x' -> driver: poll, post -> coroutine goes on
---
---   * The thread beats ten times a second, for reads without an end (one that times out is an
---     error in the log). At a beat the driver looks for coroutines that are no more, and whether
---     the worker is about to leave: an idle driver holds up a reload for a tenth of a second.
---   * The driver leaves when nobody has waited for a while: a short one at first, since with
---     lua_code_cache off the whole Lua state is kept by it, longer each time it is needed again.
---   * nginx drops timers without a word to us when lua_max_running_timers are running. Who waits
---     and sees no driver after a moment polls the reactor himself, and asks again once a second.
---   * A client that goes away (lua_check_client_abort), ngx.exit, ngx.exec: nginx drops the
---     coroutines without a word to them. Their semaphores tell; then `loop.abandon` ends what they
---     guarded, and the collector is moved on in small steps, since what they held is garbage now:
---     sandboxes end when the last handle goes.
---   * Coroutines are used again by nginx for other requests: a task's is known by the function at
---     the bottom of its stack. The locals of one that was dropped are overwritten, even those that
---     closures have kept: no closure made in it may be called any more.
---   * When a request with light threads is aborted, nginx forgets the waits of coroutines inside
---     them, which later wake into freed memory and crash the worker. So nothing of ours runs in
---     such a coroutine, and a wrapped generator's wait is made by the coroutine that called it.

local core = require "moonsand.core"
local loop = require "moonsand.loop"
local semaphore = require "ngx.semaphore"

local ngx = ngx -- luacheck: ignore

local M = { name = "ngx", never_blocks = true, vanishes = true }

local BEAT = 0.1 -- seconds
local LINGER, LINGER_MAX = 0.05, 10 -- how long an idle driver stays: at first, at most
local PATIENCE = 60 -- of a wait on the semaphore, with a driver; then it looks around and goes on
local GRACE = 0.05 -- how long a new driver may take before those who wait poll
local POLL, POLL_MAX = 0.002, 0.05
local AGAIN = 1 -- how long until another driver is asked for
local READ_TIMEOUT = 2 ^ 31 - 1 -- milliseconds: none
local COLLECT_CYCLES, COLLECT_SLICE = 3, 0.0005

local parked, count = {}, 0 -- the waiters whose coroutines are suspended
local alive = false -- the driver runs
local asked, asked_first -- when a driver was asked for: last, and first since there was none
local linger = LINGER
local polling = false -- within a poll nothing may yield
local last_poll, last_sweep = 0, 0
local collecting = 0 -- cycles of the collector that are still to come
local waker -- of the driver

-- ---------------------------------------------------------------- where waiting is possible

local YIELDABLE = {
  rewrite = true, server_rewrite = true, access = true, content = true, timer = true,
  ssl_client_hello = true, ssl_cert = true, ssl_session_fetch = true, -- TLS
  preread = true, -- of the stream module
}

function M.can_wait()
  local _, yieldable = loop.root()
  local phase = ngx.get_phase()
  if yieldable and YIELDABLE[phase] then
    return true
  elseif YIELDABLE[phase] then
    return nil, "this coroutine is inside a callback of a C function (table.sort, string.gsub, "
      .. "require …), where it cannot be suspended"
  end
  return nil, ("nginx cannot suspend what runs in its phase '%s'; rewrite, access, content, timers "
    .. "(ngx.timer.at) and light threads can wait"):format(phase)
end

-- ---------------------------------------------------------------- waking

function M.wake(waiter)
  if waiter.semaphore then
    waiter.semaphore:post(1)
  end
end

local function poll()
  polling = true
  local ok, message = pcall(loop.poll, 0)
  polling = false
  last_poll = core.now()
  if not ok then
    ngx.log(ngx.ERR, "moonsand: ", message)
  end
end

local function enter(waiter)
  parked[waiter] = true
  count = count + 1
end

local function leave(waiter)
  if parked[waiter] then
    parked[waiter] = nil
    count = count - 1
  end
end

--- Whether the coroutine of a waiter is no more. Nobody waits on its semaphore then; one that was
--- posted is served within the same turn of nginx's loop, so that it must be gone at the next beat.
local function has_vanished(waiter)
  if not waiter.waiting then
    return false -- it is what runs now
  elseif waiter.woken or waiter.posted then
    local before = waiter.overdue
    waiter.overdue = true
    return before
  end
  return waiter.semaphore:count() >= 0
end

local function sweep()
  last_sweep = core.now()
  local gone
  for waiter in pairs(parked) do
    if has_vanished(waiter) then
      gone = gone or {}
      gone[#gone + 1] = waiter
    end
  end
  for _, waiter in ipairs(gone or {}) do
    leave(waiter)
    collecting = COLLECT_CYCLES
    local ok, why = pcall(loop.abandon, waiter, "its request was aborted")
    if not ok then
      ngx.log(ngx.ERR, "moonsand: ", why)
    end
  end
end

--- A slice of the collector's work, for what the vanished held.
local function collect()
  local stop = core.now() + COLLECT_SLICE
  repeat
    if collectgarbage("step", 16) then
      collecting = collecting - 1
    end
  until collecting == 0 or core.now() >= stop
end

-- ---------------------------------------------------------------- the driver

--- A connection to a new wake thread on the reactor: a unix socket, or else loopback.
local function connect(fd)
  local why
  for _, kind in ipairs { "unix", "tcp" } do
    local thread, errno = core.wake(fd)
    if not thread then
      return nil, core.strerror(errno)
    end
    local socket = ngx.socket.tcp()
    socket:settimeouts(1000, 1000, READ_TIMEOUT)
    local ok
    local address, nonce = thread:listen(kind)
    if not address then
      ok, why = nil, core.strerror(nonce)
    elseif kind == "unix" then
      ok, why = socket:connect("unix:" .. address)
    else
      ok, why = socket:connect("127.0.0.1", address)
      if ok then
        ok, why = socket:send(nonce)
      end
    end
    if ok then
      ok, errno = thread:start(BEAT)
      if ok then
        return socket, thread
      end
      why = core.strerror(errno)
    end
    socket:close()
    thread:stop()
  end
  return nil, why
end

--- Serves until nobody has waited for a while. Nothing, or why it had to stop.
local function serve(socket)
  local idle_since = core.now()
  while true do
    poll()
    local now = core.now()
    if now - last_sweep >= BEAT then
      sweep()
    end
    if count > 0 then
      idle_since = now
    elseif ngx.worker.exiting() or now - idle_since >= linger and collecting == 0 then
      linger = math.min(linger * 4, LINGER_MAX)
      return nil
    end
    if collecting > 0 then
      collect()
      waker:kick()
    end
    local ok, errno = waker:arm()
    if not ok then
      return core.strerror(errno)
    end
    local data, why = socket:receiveany(64)
    if not data then
      return why
    end
  end
end

local function drive_once()
  local fd, message = loop.fd()
  if not fd then
    return message
  end
  local socket, thread = connect(fd)
  if not socket then
    return "no connection to the wake thread: " .. tostring(thread)
  end
  waker = thread
  local ok, why = pcall(serve, socket)
  waker = nil
  socket:close()
  thread:stop()
  if not ok then
    error(why, 0)
  end
  return why
end

local function drive()
  if alive then
    return
  end
  alive = true
  local ok, why = pcall(drive_once)
  alive, asked, asked_first = false, nil, nil
  if why then
    ngx.log(ngx.ERR, "moonsand: the driver of this worker ended: ", why,
      ok and "" or " (an error)")
    asked = core.now() -- another one is not for now: those who wait poll
    asked_first = asked - GRACE
  end
  for waiter in pairs(parked) do -- there is none in the usual case
    waiter.posted = true
    waiter.semaphore:post(1)
  end
end

--- Sees to it that there is a driver, or will be.
local function demand_driver()
  if alive then
    return
  end
  local now = core.now()
  if asked and now - asked < AGAIN then
    return
  end
  asked, asked_first = now, asked_first or now
  if not ngx.timer.at(0, drive) then
    asked_first = now - GRACE
  end
end

local warned = false

--- What those who wait do when there is no driver.
local function make_do()
  local now = core.now()
  if not warned then
    warned = true
    ngx.log(ngx.WARN, "moonsand: nginx runs no timer for us (lua_max_running_timers, ",
      "lua_max_pending_timers); until it does, those who wait poll")
  end
  if now - last_poll >= POLL / 2 then
    poll()
  end
  if now - last_sweep >= BEAT then
    sweep()
  end
  if collecting > 0 then
    collect()
  end
end

-- ---------------------------------------------------------------- waiting

local function wait(waiter)
  while not waiter.woken do
    demand_driver()
    local orphaned = not alive and core.now() - asked_first >= GRACE
    local patience = PATIENCE
    if orphaned then
      patience = math.min(POLL * count, POLL_MAX) -- many share the work
    elseif not alive then
      patience = GRACE
    end
    waiter.waiting, waiter.posted, waiter.overdue = true, false, false
    local ok, why = waiter.semaphore:wait(patience)
    waiter.waiting = false
    if not ok and why ~= "timeout" then
      return nil, why
    elseif orphaned and not alive and not waiter.woken then
      make_do()
    end
  end
  return true
end

--- Suspends the running coroutine.
function M.hold(waiter)
  local why
  waiter.semaphore, why = semaphore.new(0)
  if not waiter.semaphore then
    return nil, why
  end
  enter(waiter)
  local ok
  ok, why = wait(waiter)
  leave(waiter)
  return ok, why
end

function M.park(waiter)
  if loop.is_wrapped() then
    return coroutine.yield(loop.PARK, waiter) -- the one who called the generator holds
  end
  return M.hold(waiter)
end

-- ---------------------------------------------------------------- new coroutines

local function run_behind(gate, fn)
  loop.own(nil)
  gate:wait(PATIENCE)
  fn()
  loop.own(nil)
end

local function run_timer(_, fn)
  loop.own(nil)
  fn()
  loop.own(nil)
end

--- Whether a coroutine is one that spawn began, and not one that nginx has used again since.
function M.began(co)
  local top, bottom = 4, 0 -- there is a frame at `bottom`, none at `top`
  while debug.getinfo(co, top, "l") do
    bottom, top = top, top * 2
  end
  while top - bottom > 1 do
    local middle = math.floor((top + bottom) / 2)
    if debug.getinfo(co, middle, "l") then
      bottom = middle
    else
      top = middle
    end
  end
  local info = debug.getinfo(co, bottom, "f")
  return info and (info.func == run_behind or info.func == run_timer)
end

--- A timer: it belongs to no request, and no request waits for it.
function M.background(fn)
  local ok, why = ngx.timer.at(0, run_timer, fn)
  if not ok then
    error("moonsand: nginx starts no timer for a task: " .. tostring(why), 0)
  end
end

--- A light thread of the request (or timer) that runs: it may answer the client, the request lasts
--- until it has ended, and it goes when the request is aborted. Where there can be none, a timer.
--- nginx runs a light thread at once; the gate opens when whoever spawns it has gone on.
function M.spawn(fn)
  if not polling and M.can_wait() then
    local gate = assert(semaphore.new(0))
    ngx.thread.spawn(run_behind, gate, fn)
    gate:post(1)
    return
  end
  M.background(fn)
end

return M
