--- The host of plain Lua: no loop but ours. Tasks (coroutines that `spawn` made) are suspended;
--- anything else, the main chunk and the user's own coroutines, blocks, and drives the loop, which
--- runs the tasks meanwhile. (The host contract is at the top of loop.lua.)
---
--- Woken tasks go into one queue, first come, first served; `run` gives each that is in it now one
--- turn. Driving nests: a task may call a user's generator, which blocks and drives, and so runs
--- other tasks on top of it. That is sound, since a suspended coroutine is resumed by nobody but
--- the innermost `run`, and what blocks looks at its own waiter only; but what drives further down
--- goes on only after what drives on top of it. `moonsand.wrap` avoids the nesting.
---
--- A task that stands in a callback of a C function (table.sort, string.gsub, require) cannot be
--- suspended. There a wait raises, before anything is registered, rather than to block the other
--- tasks' way back: every other host must refuse it too, and so what runs here runs there.

local loop = require "moonsand.loop"

local M = { name = "plain", lingers = true }

local tasks = setmetatable({}, { __mode = "k" }) -- the coroutines that are resumed here
local queue, first, last = {}, 1, 0 -- of items { thread = coroutine }; a woken waiter is one
local current -- the coroutine that was resumed last and has not come back

local function push(item)
  last = last + 1
  queue[last] = item
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

--- Gives the coroutine of an item one turn. A woken wait gets its waiter back, and knows by that
--- who resumed it.
local function resume(item)
  local co = item.thread
  if not co then
    return -- its wait ended otherwise
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
  elseif yielded ~= loop.PARK and coroutine.status(co) == "suspended" then
    push { thread = co } -- a bare coroutine.yield() in a task lets the others run
  end
end

function M.run()
  local turns = last - first + 1
  for _ = 1, turns do
    if first > last then
      break -- driving within one of them ran the rest
    end
    resume(pop())
  end
  return turns > 0
end

function M.pending()
  return first <= last
end

function M.current()
  return current
end

function M.can_wait()
  local co, yieldable = loop.root()
  if tasks[co] and not yieldable then
    return nil, "this task is inside a callback of a C function (table.sort, string.gsub, "
      .. "require …), where it cannot be suspended"
  end
  return true
end

--- Blocks until the waiter is woken.
local function drive(waiter)
  while not waiter.woken do
    M.run()
    if waiter.woken then
      break
    elseif M.pending() then
      loop.poll(0)
    elseif loop.idle() then
      return nil, "there is nothing left that could end this wait (a deadlock)"
    else
      loop.poll(-1)
    end
  end
  return true
end

function M.park(waiter)
  local co = loop.root()
  if not tasks[co] then
    return drive(waiter)
  end
  waiter.thread = co
  local back = coroutine.yield(loop.PARK)
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
