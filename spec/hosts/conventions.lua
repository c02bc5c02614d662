--- Stand-ins for task libraries of others, of which each does with a coroutine what the library of
--- that name does: what it yields, what it puts where among the arguments, when it resumes. Each:
---
---     wrap(fn, argc)      an async function from fn, whose argument `argc` is a callback
---     run(fn, callback)   runs fn in a coroutine of its own; callback(ok, …) at its end
---
--- and gives back, from `run`, what its users cancel by. Plain Lua: it is run in Neovim, too.

local unpack = table.unpack or unpack

local M = {}

local function pack(...)
  return { n = select("#", ...), ... }
end

--- The arguments, with the callback at its place.
local function with_callback(argc, callback, args)
  args[argc] = callback
  return unpack(args, 1, argc)
end

-- ---------------------------------------------------------------- plenary.async

--- A leaf yields its function, the place of the callback, and the arguments. With a callback among
--- them it is an ordinary call.
M.plenary = { name = "plenary.async" }

function M.plenary.wrap(fn, argc)
  return function(...)
    if select("#", ...) == argc then
      return fn(...)
    end
    return coroutine.yield(fn, argc, ...)
  end
end

function M.plenary.run(fn, callback)
  local co = coroutine.create(fn)
  local function step(...)
    local got = pack(coroutine.resume(co, ...))
    if not got[1] then
      error("The coroutine failed with this message: " .. tostring(got[2]))
    elseif coroutine.status(co) == "dead" then
      return callback(true, unpack(got, 2, got.n))
    end
    local leaf, argc = got[2], got[3]
    assert(type(leaf) == "function", "type error :: expected func")
    leaf(with_callback(argc, step, { unpack(got, 4, got.n) }))
  end
  step()
end

-- ---------------------------------------------------------------- nvim-nio

--- A leaf yields the place of the callback, a function, and the arguments. The function says true
--- or false in front of what the callback gets.
M.nio = { name = "nvim-nio" }

function M.nio.wrap(fn, argc)
  local function protected(...)
    local args = { ... }
    local callback = args[argc]
    args[argc] = function(...)
      callback(true, ...)
    end
    xpcall(function()
      fn(unpack(args, 1, argc))
    end, function(err)
      callback(false, err)
    end)
  end
  return function(...)
    local got = pack(coroutine.yield(argc, protected, ...))
    if not got[1] then
      error("Wrapped function failed: " .. tostring(got[2]))
    end
    return unpack(got, 2, got.n)
  end
end

function M.nio.run(fn, callback)
  local co, cancelled, over = coroutine.create(fn), false, false
  local function finish(...)
    if not over then
      over = true
      callback(...)
    end
  end
  local function step(...)
    if cancelled then
      return finish(false, "Task was cancelled")
    end
    local got = pack(coroutine.resume(co, ...))
    if not got[1] then
      return finish(false, got[2])
    elseif coroutine.status(co) == "dead" then
      return finish(true, unpack(got, 2, got.n))
    end
    local argc, leaf = got[2], got[3]
    assert(type(leaf) == "function", "Async internal error: expected function")
    leaf(with_callback(argc, step, { unpack(got, 4, got.n) }))
  end
  step()
  return {
    cancel = function()
      cancelled = true
      step()
    end,
  }
end

-- ---------------------------------------------------------------- async.nvim

--- A leaf yields a function that takes the callback alone, and may give a handle: something with
--- `close(self, callback)`. It is closed before the coroutine goes on, and when the task is closed.
M.async = { name = "async.nvim" }

function M.async.wrap(fn, argc)
  return function(...)
    local args = { ... }
    return coroutine.yield(function(callback)
      return fn(with_callback(argc, callback, args))
    end)
  end
end

function M.async.run(fn, callback)
  local co, child, over = coroutine.create(fn), nil, false
  local function finish(...)
    over, child = true, nil
    callback(...)
  end
  local function resume(...)
    local got = pack(coroutine.resume(co, ...))
    if not got[1] then
      return finish(false, got[2])
    elseif coroutine.status(co) == "dead" then
      return finish(true, unpack(got, 2, got.n))
    end
    local handle
    handle = got[2](function(...)
      local values = pack(...)
      if not handle then
        return resume(unpack(values, 1, values.n))
      end
      handle:close(function()
        if not over then
          resume(unpack(values, 1, values.n))
        end
      end)
    end)
    child = handle
  end
  resume()
  return {
    close = function()
      assert(child, "nothing to close"):close(function()
        finish(false, "closed")
      end)
    end,
  }
end

return M
