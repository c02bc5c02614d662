--- What the hosts with a libuv loop have in common: one poll handle on the reactor's descriptor, a
--- queue of coroutines that can go on, and the rule that any coroutine is suspended. How the queue
--- gets its turn, and what happens outside of coroutines, is for luv.lua and nvim.lua to say.
---
--- The poll handle is active only while somebody is parked, so that an idle module never keeps
--- `uv.run` from returning.

local loop = require "moonsand.loop"

---@param uv table luv, vim.uv or vim.loop
---@param how { name: string, defer: fun(run: fun()), may_block: (fun(): boolean?, string?), block: fun(waiter: table, host: table): boolean?, string? }
---@return table host see loop.lua
return function(uv, how)
  local M = { name = how.name }

  local queue, first, last = {}, 1, 0 -- of items { thread = coroutine }; a woken waiter is one
  local deferred = false -- the queue has been given a turn that has not come yet
  local parked = 0
  local poll, polled -- the handle, and the reactor that it is for
  local current

  local function push(item)
    last = last + 1
    queue[last] = item
    if not deferred then
      deferred = true
      how.defer(M.run)
    end
  end

  local function resume(item)
    local co = item.thread
    if not co then
      return
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
      error(debug.traceback(co, tostring(yielded)), 0)
    end
  end

  function M.run()
    deferred = false
    local turns = last - first + 1
    for _ = 1, turns do
      if first > last then
        break
      end
      local item = queue[first]
      queue[first] = nil
      first = first + 1
      resume(item)
    end
    if first > last then
      first, last = 1, 0
    elseif not deferred then
      deferred = true
      how.defer(M.run)
    end
    return turns > 0
  end

  function M.pending()
    return first <= last
  end

  function M.current()
    return current
  end

  local function on_readable()
    loop.poll(0)
  end

  --- Someone parks or has come back.
  local function count(change)
    parked = parked + change
    local reactor = loop.reactor()
    if not reactor then
      return -- the wait itself finds out
    end
    if polled ~= reactor then
      if poll then
        poll:close()
      end
      poll, polled = uv.new_poll(reactor:fd()), reactor
      if parked > 0 then
        poll:start("r", on_readable)
      end
    elseif parked == 1 and change == 1 then
      poll:start("r", on_readable)
    elseif parked == 0 then
      poll:stop()
    end
  end

  --- May the coroutine that runs be suspended? The main one cannot.
  local function suspendable()
    local co, yieldable = loop.root()
    return type(co) == "thread" and coroutine.running() ~= nil and yieldable, co
  end

  local function on_main()
    local co, is_main = coroutine.running()
    return co == nil or is_main == true
  end

  function M.can_wait()
    if suspendable() then
      return true
    elseif on_main() then
      return how.may_block()
    end
    return nil, "this coroutine is inside a callback of a C function (table.sort, string.gsub, "
      .. "require …), where it cannot be suspended"
  end

  function M.park(waiter)
    if on_main() then
      count(1)
      local ok, why = how.block(waiter, M)
      count(-1)
      return ok, why
    end
    local _, co = suspendable()
    waiter.thread = co
    count(1)
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
    push { thread = coroutine.create(fn) }
  end

  return M
end
