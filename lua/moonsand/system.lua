--- What runs inside a sandbox and what it uses: ps, kill, killall, monitor, metrics. The provider
--- is asked, or portable.lua.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local portable = require "moonsand.portable"
local signals = require "moonsand.signals"
local streams = require "moonsand.stream"

local M = {}

local WAIT = { timeout = "number", cancel = "table" }
local KILL = {
  signal = "string|number", grace = "number", tree = "boolean", timeout = "number",
  cancel = "table",
}
local WATCH = { interval = "number", timeout = "number", cancel = "table" }

--- Seconds in which the kernel counts processor time.
local TICK = 0.01
--- How often one that is dying is looked at, and how long after a KILL.
local LOOK, KILLED = 0.02, 5

---@class moonsand.ProcessRow
---@field pid integer
---@field ppid integer
---@field user string
---@field state "running"|"sleeping"|"waiting"|"stopped"|"traced"|"zombie"|"idle"
---@field name string
---@field command string the words with spaces between
---@field argv string[]
---@field cpu_percent number since it began
---@field memory integer bytes
---@field started_at number Unix seconds

--- One of a driver's optional calls, or its portable form.
local function ask(box, name, ...)
  local driver = box.core.driver
  local call = driver[name] or portable[name]
  local value, message, code, detail = call(driver, ...)
  if value == nil then
    detail.provider = box.provider
  end
  return value, message, code, detail
end

local function fail(box, code, message, detail)
  detail = detail or {}
  detail.provider = box.provider
  return errors.fail(code, message, detail)
end

local function check_filter(call, filter, level)
  if filter ~= nil and type(filter) ~= "string" and type(filter) ~= "function" then
    errors.raise(level + 1, "%s: the filter is text or a function, got %s", call, type(filter))
  end
end

local function check_pid(call, pid, level)
  if type(pid) ~= "number" or pid % 1 ~= 0 or pid < 1 then
    errors.raise(level + 1, "%s: a pid is a positive whole number, got %s", call, tostring(pid))
  end
end

--- The rows that a filter says yes to; and by pid when each process began, where that is known.
local function select_rows(box, filter, limits)
  local rows, began, code, detail = ask(box, "ps", limits)
  if not rows or filter == nil then
    return rows, began, code, detail
  end
  local list = {}
  for _, row in ipairs(rows) do
    local wanted
    if type(filter) == "function" then
      wanted = filter(row)
    else
      wanted = row.command:find(filter, 1, true)
    end
    if wanted then
      list[#list + 1] = row
    end
  end
  return list, began
end

--- All processes of the sandbox, or those that a filter says yes to: a function of a row, or text
--- that is somewhere in `command`.
---@param filter? string|fun(row: moonsand.ProcessRow): any
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.ProcessRow[]? rows, string? message, string? code, table? detail
function M.ps(box, filter, opts)
  check_filter("box:ps", filter, 2)
  opts = options.check("box:ps", opts, WAIT)
  box:check_open("box:ps", 2)
  local rows, message, code, detail = select_rows(box, filter, loop.limits(opts))
  if not rows then
    return nil, message, code, detail
  end
  return rows
end

---@class moonsand.Target a process that is sent signals: a pid may be another's by the time it is used
---@field pid integer
---@field began? number nil: whichever has the pid now, or the provider cannot tell them apart

--- Sends a signal to a process, or to it and all below it. From then on we know which it is.
local function send(box, target, number, opts, limits)
  local began, message, code, detail =
    ask(box, "kill", target.pid, number, opts.tree or false, limits, target.began)
  if began == nil then
    return nil, message, code, detail
  end
  target.began = target.began or type(began) == "number" and began or nil
  return true
end

--- Whether it is over; zombies are.
local function is_over(box, target, limits)
  local sample, message, code, detail = ask(box, "sample", target.pid, limits, target.began)
  if not sample and code ~= "not_found" then
    return nil, message, code, detail
  end
  return not sample
end

local function await_death(box, target, last, limits)
  while true do
    local over, message, code, detail = is_over(box, target, limits)
    if over ~= false then
      return over, message, code, detail
    elseif loop.now() > last then
      return false
    end
    message, code, detail = loop.wait { deadline = loop.now() + LOOK, token = limits.token }
    if code ~= "timeout" then
      return fail(box, code, message, detail)
    elseif limits.deadline and loop.now() > limits.deadline then
      return fail(box, "timeout", ("process %d: timed out"):format(target.pid))
    end
  end
end

--- Waits so many seconds for the end of all: those that are left.
local function await_deaths(box, targets, seconds, limits)
  local last, left = loop.now() + seconds, {}
  for _, target in ipairs(targets) do
    local over, message, code, detail = await_death(box, target, last, limits)
    if over == nil then
      return nil, message, code, detail
    elseif not over then
      left[#left + 1] = target
    end
  end
  return left
end

--- After the signal: the wait, for all together, and the KILL for those that are left.
local function finish_off(box, targets, opts, limits)
  local left, message, code, detail = await_deaths(box, targets, opts.grace, limits)
  if not left then
    return nil, message, code, detail
  end
  for _, target in ipairs(left) do
    local ok
    ok, message, code, detail = send(box, target, signals.numbers.KILL, opts, limits)
    if not ok and code ~= "not_found" then
      return nil, message, code, detail
    end
  end
  left, message, code, detail = await_deaths(box, left, KILLED, limits)
  if left and left[1] then
    return fail(box, "timeout",
      ("process %d: killed, but its end was not confirmed"):format(left[1].pid))
  end
  return left and true, message, code, detail
end

--- The signal's number; raises for a grace that is none.
local function read_kill(call, opts)
  if opts.grace and not (opts.grace >= 0) then
    errors.raise(3, "%s: grace must be a number of seconds, not %s", call, opts.grace)
  end
  return signals.number(opts.signal or "TERM")
end

---@class moonsand.KillOptions
---@field signal? string|integer TERM if nil
---@field grace? number seconds, then KILL; waits
---@field tree? boolean
---@field timeout? number seconds to wait
---@field cancel? moonsand.Token

--- Sends a signal to a process of the sandbox (TERM). With `grace`, waits so long for its end, and
--- then kills it; with `tree`, everything below it too.
---@param pid integer
---@param opts? moonsand.KillOptions
---@return true|nil ok, string? message, string? code, table? detail
function M.kill(box, pid, opts)
  check_pid("box:kill", pid, 2)
  opts = options.check("box:kill", opts, KILL)
  box:check_open("box:kill", 2)
  local number, message, code, detail = read_kill("box:kill", opts)
  if not number then
    return nil, message, code, detail
  end
  local target, limits = { pid = pid }, loop.limits(opts)
  local ok
  ok, message, code, detail = send(box, target, number, opts, limits)
  if ok and opts.grace then
    ok, message, code, detail = finish_off(box, { target }, opts, limits)
  end
  return errors.outcome(ok, message, code, detail)
end

--- Sends a signal to all of them, the sandbox's first process excepted: those that were there to be
--- sent it, or are over by now.
local function send_all(box, rows, began, number, opts, limits)
  local targets = {}
  for _, row in ipairs(rows) do
    if row.pid ~= 1 then
      local target = { pid = row.pid, began = began and began[row.pid] }
      local ok, message, code, detail = send(box, target, number, opts, limits)
      if not ok and code ~= "not_found" then
        detail.count = #targets
        return nil, message, code, detail
      end
      targets[#targets + 1] = target
    end
  end
  return targets
end

--- The same for all that a filter says yes to: how many there were. Each is sent its signal first,
--- then all have the same `grace`. Those that are over by then count as well; the sandbox's first
--- process (1) is let be. A failure has `detail.count`, how many were sent it.
---@param filter string|fun(row: moonsand.ProcessRow): any
---@param opts? moonsand.KillOptions
---@return integer? count, string? message, string? code, table? detail
function M.killall(box, filter, opts)
  if filter == nil then
    errors.raise(2, "box:killall: a filter is needed: text or a function")
  end
  check_filter("box:killall", filter, 2)
  opts = options.check("box:killall", opts, KILL)
  box:check_open("box:killall", 2)
  local number, message, code, detail = read_kill("box:killall", opts)
  if not number then
    return nil, message, code, detail
  end
  local limits = loop.limits(opts)
  local rows, began
  rows, began, code, detail = select_rows(box, filter, limits)
  if not rows then
    return nil, began, code, detail
  end
  local targets
  targets, message, code, detail = send_all(box, rows, began, number, opts, limits)
  if not targets then
    return nil, message, code, detail
  elseif opts.grace then
    local ok
    ok, message, code, detail = finish_off(box, targets, opts, limits)
    if not ok then
      detail.count = #targets
      return nil, message, code, detail
    end
  end
  return #targets
end

--- What `box:monitor` and `box:watch_metrics` go on with.
---@class moonsand.Watching
---@field box table
---@field look fun(state: moonsand.Watching, limits: moonsand.Limits): table? what is asked each time
---@field pid? integer
---@field last? table the sample before
---@field interval number
---@field next_at number monotonic seconds
---@field opts table
---@field over boolean nothing more comes
---@field closed boolean
---@field closing moonsand.Signal

local function iterate(step, state)
  state.over, state.closed, state.closing = false, false, loop.signal()
  return streams.iterator(step, state, function()
    state.over, state.closed = true, true
    state.closing:wake()
  end)
end

--- Waits for the next moment of an iterator, unless that or its sandbox is closed meanwhile.
---@return true|nil ok, string? message, string? code, table? detail
local function await_turn(state, limits)
  local deadline = math.min(state.next_at, limits.deadline or math.huge)
  local box = state.box
  local message, code, detail
  repeat
    message, code, detail = loop.wait({ deadline = deadline, token = limits.token },
      state.closing, box.core.closing)
    if state.closed or box.core.closed then
      return fail(box, "closed",
        ("the %s was closed"):format(state.closed and "iterator" or "sandbox"))
    end
  until message
  if code ~= "timeout" or limits.deadline and loop.now() < state.next_at then
    return fail(box, code, message, detail)
  end
  state.next_at = math.max(state.next_at + state.interval, loop.now())
  return true
end

--- Waits for the turn of an iterator, and asks. Whoever closes it meanwhile wants no answer.
local function next_answer(state, opts)
  local limits = loop.limits(opts or state.opts)
  local ok, message, code, detail = await_turn(state, limits)
  if not ok then
    return nil, message, code, detail
  end
  local answer
  answer, message, code, detail = state.look(state, limits)
  if state.closed then
    return fail(state.box, "closed", "the iterator was closed")
  end
  return answer, message, code, detail
end

local function sample(state, limits)
  return ask(state.box, "sample", state.pid, limits, state.last.began)
end

local function next_sample(state, opts)
  if state.over then
    return nil
  end
  local now, message, code, detail = next_answer(state, opts)
  if code == "not_found" then
    state.over = true
    return nil
  elseif not now then
    return nil, message, code, detail
  end
  local before = state.last
  local elapsed = math.max(now.at - before.at, TICK)
  state.last = now
  return {
    cpu_percent = math.max(0, 100 * (now.cpu_time - before.cpu_time) / elapsed),
    memory = now.memory,
    threads = now.threads,
    read_bytes = now.read_bytes,
    write_bytes = now.write_bytes,
    at = core.wall(),
  }
end

local function read_interval(call, opts)
  if opts.interval and not (opts.interval > 0) then
    errors.raise(3, "%s: interval must be a positive number of seconds, not %s", call,
      opts.interval)
  end
  return opts.interval or 1
end

--- An iterator of what a process uses, every `interval` seconds (1); it ends with the process.
---@param pid integer
---@param opts? { interval?: number, timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Iterator? samples { cpu_percent, memory, threads, read_bytes, write_bytes, at }
---@return string? message, string? code, table? detail
function M.monitor(box, pid, opts)
  check_pid("box:monitor", pid, 2)
  opts = options.check("box:monitor", opts, WATCH)
  box:check_open("box:monitor", 2)
  local interval = read_interval("box:monitor", opts)
  local first, message, code, detail = ask(box, "sample", pid, loop.limits(opts))
  if not first then
    return nil, message, code, detail
  end
  return iterate(next_sample, { box = box, look = sample, pid = pid, last = first,
    interval = interval, next_at = loop.now() + interval, opts = opts })
end

---@class moonsand.Metrics
---@field cpu_percent number 100 is one CPU
---@field cpu_count integer
---@field memory_used integer bytes
---@field memory_total integer
---@field memory_percent number
---@field processes integer
---@field disk_used integer bytes
---@field at number Unix seconds

--- What the sandbox uses now.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Metrics? metrics, string? message, string? code, table? detail
function M.metrics(box, opts)
  opts = options.check("box:metrics", opts, WAIT)
  box:check_open("box:metrics", 2)
  return errors.outcome(ask(box, "metrics", loop.limits(opts)))
end

local function metrics(state, limits)
  return ask(state.box, "metrics", limits)
end

local function next_metrics(state, opts)
  if state.over then
    return nil
  end
  return errors.outcome(next_answer(state, opts))
end

--- An iterator of the same, every `interval` seconds (1), the first at once.
---@param opts? { interval?: number, timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Iterator
function M.watch_metrics(box, opts)
  opts = options.check("box:watch_metrics", opts, WATCH)
  box:check_open("box:watch_metrics", 2)
  return iterate(next_metrics, { box = box, look = metrics,
    interval = read_interval("box:watch_metrics", opts), next_at = loop.now(), opts = opts })
end

return M
