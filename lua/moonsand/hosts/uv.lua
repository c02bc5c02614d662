--- What the hosts with a libuv loop have in common: one poll handle on the reactor's descriptor, a
--- queue of coroutines that can go on, and the rule that any coroutine is suspended. How the queue
--- gets its turn, and what happens outside of coroutines, is for luv.lua and nvim.lua to say.
---
--- The poll handle stays started, so that timers of ours go off though nobody waits, but it keeps
--- `uv.run` from returning only while somebody is parked. It is made anew when the program has
--- closed it (`uv.walk` at an end that was none). A forked child shares its parent's loop, down to
--- the epoll set: nothing is done with it there, not even closed.

local loop = require "moonsand.loop"

---@class moonsand.UvHost what luv.lua and nvim.lua add
---@field name string
---@field lingers? boolean as in loop.lua
---@field defer fun(run: fun()) calls it in a turn of the loop of its own; called again only after that
---@field raise fun(message: string) raises it where the host shows what its callbacks raise
---@field at_once boolean coroutines may go on in the callback of the poll handle
---@field may_block fun(): boolean?, string?
---@field block fun(waiter: table, host: table): boolean?, string?

local FORKED = "this process was forked, and the libuv loop that moonsand used is its parent's; "
  .. 'use moonsand.loop.use("plain")'

local main = debug.getregistry()[1] -- Lua 5.4: the main thread (LUA_RIDX_MAINTHREAD)

--- Is this the main chunk, or a callback that the loop calls there? LuaJIT has no object for it.
local function is_main(co)
  return co == main or type(co) ~= "thread"
end

---@param uv table luv, vim.uv or vim.loop
---@param how moonsand.UvHost
---@return table host see loop.lua
return function(uv, how)
  local M = { name = how.name, lingers = how.lingers }

  local tasks = setmetatable({}, { __mode = "k" }) -- the coroutines that `spawn` made
  local queue, first, last = {}, 1, 0 -- of items { thread = coroutine }; a woken waiter is one
  local expected = false -- the queue will get a turn without our asking for it
  local parked, held = 0, false -- held: the poll handle keeps the loop alive
  local poll, polled -- the handle, and the reactor that it is for
  local current

  local function expect_turn()
    if first <= last and not expected then
      expected = true
      how.defer(M.run)
    end
  end

  local function push(item)
    last = last + 1
    queue[last] = item
    expect_turn()
  end

  local function pop()
    local item = queue[first]
    queue[first] = nil
    first = first + 1
    if first > last then
      first, last = 1, 0
    end
    return item
  end

  local function on_readable()
    local outer = expected
    expected = true -- not by each wake, but once, here
    loop.poll(0)
    expected = outer
    if how.at_once and not outer then
      M.run()
    else
      expect_turn()
    end
  end

  --- The handle on the reactor that there is now.
  local function watch()
    local reactor = loop.reactor()
    if not reactor then
      return -- the wait itself finds out
    elseif polled ~= reactor or poll:is_closing() then
      poll, polled, held = assert(uv.new_poll(reactor:fd())), reactor, true
      poll:start("r", on_readable)
    end
  end

  --- Someone parks or has come back. Who waits for what only another coroutine can do (a
  --- semaphore) keeps no loop alive.
  local function count(change)
    parked = parked + change
    if change > 0 then
      watch()
    end
    local hold = parked > 0 and not loop.idle()
    if hold ~= held and poll and not poll:is_closing() then
      held = hold
      if hold then
        poll:ref()
      else
        poll:unref()
      end
    end
  end

  --- The program has closed a coroutine that waited.
  local function forget(waiter)
    waiter.thread = nil
    count(-1)
    loop.abandon(waiter, "its coroutine was closed")
  end

  --- Gives the coroutine of an item one turn. What a coroutine of the program's own raises has no
  --- caller who could catch it: it is the host's to show, and none of those who wait here.
  local function resume(item)
    local co = item.thread
    if not co then
      return -- its wait ended otherwise
    elseif coroutine.status(co) == "dead" then
      return forget(item)
    end
    local before = current
    local ok, yielded
    current = co
    if item.host then
      ok, yielded = coroutine.resume(co, item)
    else
      ok, yielded = coroutine.resume(co)
    end
    current = before
    if not ok then
      how.raise(debug.traceback(co, tostring(yielded)))
    elseif tasks[co] and yielded ~= loop.PARK and coroutine.status(co) == "suspended" then
      push { thread = co } -- a bare coroutine.yield() in a task lets the others run
    end
  end

  function M.run()
    local turns = last - first + 1
    expected = true
    for _ = 1, turns do
      if first > last then
        break -- waiting within one of them ran the rest
      end
      resume(pop())
    end
    expected = false
    expect_turn()
    return turns > 0
  end

  function M.pending()
    return first <= last
  end

  function M.current()
    return current
  end

  --- May the coroutine that runs be suspended? And which one that is, through wrapped generators.
  local function suspendable()
    local co, yieldable = loop.root()
    return yieldable and not is_main(co), co
  end

  function M.can_wait()
    if polled and polled:foreign() then
      return nil, FORKED
    end
    local may, co = suspendable()
    if may then
      return true
    elseif is_main(co) then
      return how.may_block()
    end
    return nil, "this coroutine is inside a callback of a C function (table.sort, string.gsub, "
      .. "require …), where it cannot be suspended"
  end

  function M.park(waiter)
    local may, co = suspendable()
    count(1)
    if not may then
      expected = false -- who resumes the others may be the one that waits here for them
      expect_turn()
      local ok, done, why = pcall(how.block, waiter, M)
      count(-1)
      if not ok then
        error(done, 0)
      end
      return done, why
    end
    waiter.thread = co
    local back = coroutine.yield(loop.PARK)
    count(-1)
    waiter.thread = nil
    if back ~= waiter then
      return nil, "this coroutine was suspended in a wait and was resumed by somebody else"
    end
    return true
  end

  function M.wake(waiter)
    if waiter.thread then
      push(waiter)
    end
  end

  function M.spawn(fn)
    local co = coroutine.create(fn)
    tasks[co] = true
    push { thread = co }
  end

  return M
end
