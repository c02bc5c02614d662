--- The processes of a sandbox and what it uses, out of `/proc`, read by a shell.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local options = require "moonsand.options"
local shell = require "moonsand.portable.shell"
local texts = require "moonsand.text"

local M = {}

--- Ticks of `/proc` in a second: the same on every Linux that programs see.
local TICKS = 100
--- Of a command line, at most.
local WORDS = 1024

local STATES = {
  R = "running", S = "sleeping", D = "waiting", T = "stopped", t = "traced", Z = "zombie",
  X = "dead", I = "idle",
}

--- `show pid`: its stat; those lines of status and io that are asked for; its command line; each
--- part ended by a NUL. What has a name of its own making, stat, comes first and has none in it.
local SHOW = [[
lines() { while IFS= read -r l; do printf '%s\n' "$l"; done; }
show() {
  s=$({ lines </proc/$1/stat; } 2>/dev/null && printf x) || return
  printf '%s\0%s\0' "$2" "${s%x}"
  { while IFS= read -r l; do
      case $l in VmRSS:*|Threads:*|Uid:*) printf '%s\n' "$l" ;; esac
    done </proc/$1/status; } 2>/dev/null
  { while IFS= read -r l; do
      case $l in read_bytes:*|write_bytes:*) printf '%s\n' "$l" ;; esac
    done </proc/$1/io; } 2>/dev/null
  printf '\0'
  head -c 4096 /proc/$1/cmdline 2>/dev/null
}
clock() {
  read -r up rest </proc/uptime
  while read -r word value rest; do [ "$word" = btime ] && break; done </proc/stat
  printf '%s %s %s\0' "$$" "$up" "$value"
}
]]

local PS = SHOW .. [[
clock
stat -c '%u %U' /proc/[0-9]* 2>/dev/null | sort -u
printf '\0'
for p in /proc/[0-9]*; do show "${p#/proc/}" "$1"; done
printf '%s\0' "$1"
]]

local ONE = SHOW .. [[
clock
printf '\0'
show "$2" "$1"
printf '%s\0' "$1"
]]

local function token()
  return (core.random(16):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end))
end

local function integer(text)
  local number = tonumber(text or "")
  return number and options.integer(number)
end

--- What is kept for `sample` besides the row.
local function row_of(stat, status, cmdline, uptime, booted, users)
  local pid, name, rest = stat:match "^(%d+) %((.*)%) (.*)$"
  if not pid then
    return nil
  end
  local fields = {}
  for field in rest:gmatch "%S+" do
    fields[#fields + 1] = field
  end
  local cpu_time = ((tonumber(fields[12]) or 0) + (tonumber(fields[13]) or 0)) / TICKS
  local began = integer(fields[20]) or 0
  local started = began / TICKS
  local argv, uid = texts.words(cmdline, WORDS), status:match "Uid:%s+(%d+)"
  local age = uptime - started
  return {
    pid = integer(pid),
    ppid = integer(fields[2]),
    user = users[uid] or uid,
    state = STATES[fields[1]] or fields[1],
    name = name,
    command = argv[1] and table.concat(argv, " ") or "[" .. name .. "]",
    argv = argv,
    cpu_percent = age > 0 and 100 * cpu_time / age or 0,
    memory = (integer(status:match "VmRSS:%s+(%d+)") or 0) * 1024,
    started_at = booted + started,
  }, {
    cpu_time = cpu_time,
    threads = integer(status:match "Threads:%s+(%d+)"),
    read_bytes = integer(status:match "read_bytes:%s+(%d+)"),
    write_bytes = integer(status:match "write_bytes:%s+(%d+)"),
    session = integer(fields[4]),
    at = uptime,
    began = began,
  }
end

--- Calls `fn(row, more)` for each process but the script's own.
local function each(text, mark, fn)
  local own, uptime, booted, names, at =
    text:match "^(%d+) ([%d.]+) (%d+)%z([^%z]*)%z()"
  uptime = tonumber(uptime or "")
  if not uptime then
    return false
  end
  local users = {}
  for line in names:gmatch "[^\n]+" do
    local uid, name = line:match "^(%d+) (.+)$"
    if uid and name ~= "UNKNOWN" then
      users[uid] = name
    end
  end
  local separator = mark .. "\0"
  own, booted = tonumber(own), tonumber(booted)
  while true do
    local from = select(2, text:find(separator, at, true))
    local to = from and text:find(separator, from + 1, true)
    if not to then
      return true
    end
    local stat, status, cmdline = text:sub(from + 1, to - 1):match "^([^%z]*)%z([^%z]*)%z(.*)$"
    if stat then
      local row, more = row_of(stat:gsub("\n$", ""), status, cmdline, uptime, booted, users)
      if row and row.pid ~= own and row.ppid ~= own then
        fn(row, more)
      end
    end
    at = to
  end
end

--- All processes that can be seen, and by pid when each began.
---@return table[]? rows, table<integer, integer>|string began, string? code, table? detail
function M.ps(driver, limits)
  local mark, rows, began = token(), {}, {}
  local text, message, code, detail = shell.run(driver, PS, { mark }, { what = "ps" }, limits)
  if not text then
    return nil, message, code, detail
  end
  local sane = each(text, mark, function(row, more)
    rows[#rows + 1] = row
    began[row.pid] = more.began
  end)
  if not sane then
    return errors.fail("protocol", "ps: what its commands say makes no sense")
  end
  table.sort(rows, function(a, b)
    return a.pid < b.pid
  end)
  return rows, began
end

--- What one process has used; `not_found` when it is over, or is another than that which began then.
---@return table? sample, string? message, string? code, table? detail
function M.sample(driver, pid, limits, began)
  local mark, sample = token(), nil
  local what = { what = ("process %d"):format(pid) }
  local text, message, code, detail =
    shell.run(driver, ONE, { mark, ("%d"):format(pid) }, what, limits)
  if not text then
    return nil, message, code, detail
  end
  each(text, mark, function(row, more)
    local same = not began or more.began == began
    if same and row.state ~= "zombie" and row.state ~= "dead" then
      more.memory = row.memory
      sample = more
    end
  end)
  if not sample then
    return errors.fail("not_found", ("there is no process %d"):format(pid))
  end
  return sample
end

--- Those below a process, by what `ps` told; itself first.
---@return integer[]
function M.tree(rows, pid)
  local below, list, at = {}, { pid }, 1
  for _, row in ipairs(rows) do
    below[row.ppid] = below[row.ppid] or {}
    table.insert(below[row.ppid], row.pid)
  end
  while list[at] do
    for _, child in ipairs(below[list[at]] or {}) do
      list[#list + 1] = child
    end
    at = at + 1
  end
  return list
end

--- `$1` is the signal, `$2` when the first process began (0: whichever has the pid), then pids.
local KILL = [[
began() {
  s=; { while IFS= read -r l; do s=$l; done </proc/$1/stat; } 2>/dev/null
  set -f; set -- ${s##*") "}; set +f
  printf '%s' "${20}"
}
n=$1 t=$2; shift 2
b=$(began "$1")
[ -n "$b" ] || exit 91
[ "$t" = 0 ] || [ "$t" = "$b" ] || exit 91
kill "-$n" "$1" || { [ -d "/proc/$1" ] || exit 91; exit 1; }
printf '%s' "$b"
shift
for p; do kill "-$n" "$p" 2>/dev/null; done
exit 0
]]

--- Sends a signal to a process, or to it and all below it: when it began. With `began`, only to the
--- one that began then.
---@return integer? began, string? message, string? code, table? detail
function M.kill(driver, pid, number, tree, limits, began)
  local pids = { pid }
  if tree then
    local rows, message, code, detail = M.ps(driver, limits)
    if not rows then
      return nil, message, code, detail
    end
    pids = M.tree(rows, pid)
  end
  local args = { ("%d"):format(number), ("%d"):format(began or 0) }
  for i, each_pid in ipairs(pids) do
    args[i + 2] = ("%d"):format(each_pid)
  end
  local text, message, code, detail =
    shell.run(driver, KILL, args, { what = ("kill %d"):format(pid) }, limits)
  if not text then
    return nil, message, code, detail
  end
  return integer(text)
    or errors.fail("protocol", ("kill %d: what its commands say makes no sense"):format(pid))
end

-- ---------------------------------------------------------------- the whole of it

--- A control group's figures where there is one; what the processes that can be seen have used
--- otherwise. Twice, `$1` seconds apart.
local METRICS = [[
up() { read -r up rest </proc/uptime; printf '%s' "$up"; }
use() {
  if [ -r /sys/fs/cgroup/cpu.stat ] && [ -r /sys/fs/cgroup/memory.current ]; then
    while read -r k v; do
      [ "$k" = usage_usec ] && printf 'usec %s\n' "$v"
    done </sys/fs/cgroup/cpu.stat
  else
    t=0
    for p in /proc/[0-9]*; do
      { l=; while IFS= read -r x; do l=$x; done <"$p/stat"; } 2>/dev/null
      set -f; set -- ${l##*") "}; set +f
      t=$((t + ${12:-0} + ${13:-0}))
    done
    printf 'ticks %s\n' "$t"
  fi
}
one() { { read -r v <"$2"; } 2>/dev/null && printf '%s %s\n' "$1" "$v"; }
printf 'up %s\n' "$(up)"; use
sleep "$1"
printf 'up %s\n' "$(up)"; use
one memory_used /sys/fs/cgroup/memory.current
one memory_max /sys/fs/cgroup/memory.max
one quota /sys/fs/cgroup/cpu.max
r=0 n=0
for p in /proc/[0-9]*; do
  n=$((n + 1))
  { while IFS=' 	' read -r k v rest; do
      case $k in VmRSS:) r=$((r + v)) ;; esac
    done <"$p/status"; } 2>/dev/null
done
printf 'rss %s\nprocesses %s\n' "$r" "$((n - 1))"
while read -r k v rest; do [ "$k" = MemTotal: ] && printf 'total %s\n' "$v"; done </proc/meminfo
printf 'cpus %s\n' "$(nproc 2>/dev/null || grep -c '^processor' /proc/cpuinfo)"
df -kP / | { read -r l; read -r a b used rest; printf 'disk %s\n' "$used"; }
]]

local INTERVAL = 0.1

--- What the sandbox uses; takes a tenth of a second, which is what the CPU's share is measured
--- over.
---@return table? metrics, string? message, string? code, table? detail
function M.metrics(driver, limits)
  local text, message, code, detail =
    shell.run(driver, METRICS, { tostring(INTERVAL) }, { what = "metrics" }, limits)
  if not text then
    return nil, message, code, detail
  end
  local value, ups, uses = {}, {}, {}
  for line in text:gmatch "[^\n]+" do
    local key, number = line:match "^(%l[%l_]*) (%d[%d.]*)"
    number = key and tonumber(number)
    if number then
      value[key] = number
    end
    if number and key == "up" then
      ups[#ups + 1] = number
    elseif number and (key == "usec" or key == "ticks") then
      uses[#uses + 1] = number / (key == "usec" and 1e6 or TICKS)
    end
  end
  if #ups < 2 or #uses < 2 or not value.total then
    return errors.fail("protocol", "metrics: what its commands say makes no sense")
  end
  local elapsed = math.max(ups[2] - ups[1], 0.01)
  local used = value.memory_used or (value.rss or 0) * 1024
  local total = math.min(value.memory_max or math.huge, value.total * 1024)
  return {
    cpu_percent = math.max(0, 100 * (uses[2] - uses[1]) / elapsed),
    cpu_count = options.integer(value.cpus or 1),
    memory_used = options.integer(used),
    memory_total = options.integer(total),
    memory_percent = 100 * used / total,
    processes = options.integer(value.processes or 0),
    disk_used = options.integer((value.disk or 0) * 1024),
    at = core.wall(),
  }
end

return M
