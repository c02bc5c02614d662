--- The processes of a local sandbox and what it uses, as its agent reads them out of /proc.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local environment = require "moonsand.environment"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

local STATES = {
  R = "running", S = "sleeping", D = "waiting", T = "stopped", t = "traced", Z = "zombie",
  X = "dead", I = "idle",
}

--- The one user that is mapped; whoever owns anything else is nobody here.
local USERS = { [1000] = environment.base.USER, [65534] = "nobody" }

--- What the CPU's share is measured over, and the least of it that the kernel tells.
local INTERVAL, TICK = 0.1, 0.01

--- What the agent said of a process, as `box:ps` gives it.
local function row_of(process)
  local argv, seconds = process.argv, process.cpu_time
  return {
    pid = process.pid,
    ppid = process.ppid,
    user = USERS[process.uid] or tostring(process.uid),
    state = STATES[process.state] or process.state,
    name = process.name,
    command = argv[1] and table.concat(argv, " ") or "[" .. process.name .. "]",
    argv = argv,
    cpu_percent = process.age > 0 and 100 * seconds / process.age or 0,
    memory = process.memory,
    started_at = process.started_at,
  }
end

local function read_rows(worker)
  local rows, began = {}, {}
  while true do
    local kind, data, code, detail = worker:record()
    if kind == "data" then
      local process = core.process(data)
      if not process then
        return calls.nonsense "ps"
      end
      rows[#rows + 1] = row_of(process)
      began[process.pid] = process.began
    elseif kind == "end" then
      table.sort(rows, function(a, b)
        return a.pid < b.pid
      end)
      return rows, began
    else
      return nil, data, code, detail
    end
  end
end

--- All processes that can be seen, and by pid when each began.
---@return table[]? rows, table<integer, number>|string began, string? code, table? detail
function M.ps(driver, limits)
  return calls.work(driver, { "ps" }, { path = "/proc", verb = "ps" }, limits, read_rows)
end

--- One call about a process, or about all.
local function ask(driver, op, args, limits, what)
  args.path = "/"
  local errno, body, code, detail = driver:call(core.file_calls[op], args, limits)
  if errno == 0 then
    return body
  elseif errno == core.errno.ESRCH then
    return errors.fail("not_found", ("there is no process %d"):format(args.a))
  elseif errno then
    return errors.errno(errno, what)
  end
  return errors.fail(code, ("%s: %s"):format(what, body), detail)
end

--- Sends a signal to a process, or to it and all below it: when it began. With `began`, only to the
--- one that began then; else to whichever has the pid.
---@return number? began, string? message, string? code, table? detail
function M.kill(driver, pid, number, tree, limits, began)
  local what = ("kill %d"):format(pid)
  local body, message, code, detail = ask(driver, "signal",
    { a = pid, b = began, flags = number, mode = tree and 1 or 0 }, limits, what)
  if not body then
    return nil, message, code, detail
  end
  began = core.began(body)
  if not began then
    return calls.nonsense(what)
  end
  return began
end

--- What one process has used; `not_found` when it is over, or is another than that which began then.
---@return table? sample, string? message, string? code, table? detail
function M.sample(driver, pid, limits, began)
  local what = ("process %d"):format(pid)
  local body, message, code, detail = ask(driver, "sample", { a = pid, b = began }, limits, what)
  if not body then
    return nil, message, code, detail
  end
  local process = core.process(body)
  if not process then
    return calls.nonsense(what)
  end
  process.at = process.age -- the agent's own clock: answers may wait for us to run
  return process
end

local function usage(driver, limits)
  local body, message, code, detail = ask(driver, "usage", {}, limits, "metrics")
  if not body then
    return nil, message, code, detail
  end
  local now = core.usage(body)
  if not now then
    return calls.nonsense "metrics"
  end
  return now
end

--- What the sandbox uses; takes a tenth of a second, which is what the CPU's share is measured over.
---@return table? metrics, string? message, string? code, table? detail
function M.metrics(driver, limits)
  local first, message, code, detail = usage(driver, limits)
  if not first then
    return nil, message, code, detail
  end
  local over = loop.now() + INTERVAL
  message, code, detail = loop.wait {
    deadline = math.min(over, limits.deadline or over), token = limits.token, shield = limits.shield,
  }
  if code ~= "timeout" or limits.deadline and limits.deadline < over then
    return errors.fail(code, "metrics: " .. message, detail)
  end
  local now
  now, message, code, detail = usage(driver, limits)
  if not now then
    return nil, message, code, detail
  end
  local memory = driver.held.memory
  local bound = memory and memory.by ~= "none" and memory.value or now.memory_total
  local total = math.min(now.memory_total, bound)
  return {
    cpu_percent = math.max(0, 100 * (now.cpu_time - first.cpu_time) / math.max(now.at - first.at, TICK)),
    cpu_count = now.cpus,
    memory_used = options.integer(now.memory),
    memory_total = options.integer(total),
    memory_percent = 100 * now.memory / total,
    processes = now.processes,
    disk_used = options.integer(now.disk_used),
    at = core.wall(),
  }
end

return M
