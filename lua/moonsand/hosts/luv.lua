--- The host for programs that run a luv loop. Any coroutine is suspended. The main chunk runs the
--- loop until its wait is over, so the program's own timers and sockets go on; inside a callback of
--- a loop that runs already, that is impossible, and a wait blocks on our descriptor alone.

local loop = require "moonsand.loop"
local uv = require "luv"

local DEADLOCK = "there is nothing left that could end this wait (a deadlock)"

local turn -- active while coroutines can go on: keeps the loop from sleeping

local function defer(run)
  if not turn or turn:is_closing() then
    turn = uv.new_idle()
  end
  turn:start(function()
    turn:stop()
    run()
  end)
end

--- luv prints what a callback raises, and ends the program, unless it was told otherwise.
local function raise(message)
  local once = uv.new_idle()
  once:start(function()
    once:close()
    error(message, 0)
  end)
end

local function block_alone(waiter, host)
  while not waiter.woken do
    host.run()
    if waiter.woken then
      break
    elseif host.pending() then
      loop.poll(0)
    elseif loop.idle() then
      return nil, DEADLOCK
    else
      loop.poll(-1)
    end
  end
  return true
end

local function block(waiter, host)
  if uv.loop_mode() then
    return block_alone(waiter, host)
  end
  while not waiter.woken do
    if not uv.loop_alive() then
      return nil, DEADLOCK
    end
    uv.run "once"
  end
  return true
end

return require "moonsand.hosts.uv"(uv, {
  name = "luv",
  lingers = true,
  defer = defer,
  raise = raise,
  at_once = true,
  may_block = function()
    return true
  end,
  block = block,
})
