--- The host for programs that run a luv loop. Any coroutine is suspended. The main chunk runs the
--- loop until its wait is over, so the program's own timers and sockets go on; inside a callback of
--- a loop that runs already, that is impossible, and a wait blocks on our descriptor alone.

local loop = require "moonsand.loop"
local uv = require "luv"

local idle -- active while coroutines can go on: keeps the loop from sleeping

local function defer(run)
  idle = idle or uv.new_idle()
  idle:start(function()
    idle:stop()
    run()
  end)
end

local function block_alone(waiter, host)
  while not waiter.woken do
    host.run()
    if not waiter.woken then
      loop.poll(host.pending() and 0 or -1)
    end
  end
  return true
end

local function block(waiter, host)
  if uv.loop_mode() then
    return block_alone(waiter, host)
  end
  while not waiter.woken do
    uv.run "once"
  end
  return true
end

return require "moonsand.hosts.uv"(uv, {
  name = "luv",
  defer = defer,
  may_block = function()
    return true
  end,
  block = block,
})
