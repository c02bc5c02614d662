--- What the specs of isolation, faults and leaks share: C programs compiled once, child Luas, and
--- oracles that look at the host, not at what the sandbox says.

local assert = require "luassert"
local core = require "moonsand.core"

local M = {}

local BUILD = os.getenv "MOONSAND_BUILD" or "build"
local HERE = "spec/support/"

M.interpreter = rawget(_G, "jit") and "luajit" or "lua5.4"

--- Who makes the namespaces of sandboxes in this run: see helper.lua.
---@type "native"|"bwrap"
M.isolation = (os.getenv "MOONSAND_TEST_ISOLATION" or ""):match "%S+" or "native"

-- ---------------------------------------------------------------- the shell

--- A word for the shell.
function M.quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

--- Runs a shell command: its output (both streams) and its exit status.
---@param command string
---@return string output, integer status
function M.run(command)
  local pipe = assert(io.popen("exec 2>&1; (" .. command .. "\n); echo \" status=$?\""))
  local text = pipe:read "*a"
  pipe:close()
  local output, status = text:match "^(.*) status=(%d+)\n$"
  return output or text, tonumber(status) or -1
end

local function must(command)
  local output, status = M.run(command)
  if status ~= 0 then
    error(("%s: status %d\n%s"):format(command, status, output), 3)
  end
  return output
end

function M.exists(path)
  local file = io.open(path)
  if file then
    file:close()
  end
  return file ~= nil
end

function M.read(path)
  local file = io.open(path, "rb")
  if not file then
    return nil
  end
  local text = file:read "*a"
  file:close()
  return text
end

function M.write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

--- Calls fn when this Lua ends. What is returned must be kept.
local function at_end(fn)
  local new = rawget(_G, "newproxy")
  if not new then
    return setmetatable({}, { __gc = fn })
  end
  local guard = new(true)
  getmetatable(guard).__gc = fn
  return guard
end

local directory

--- A directory of this process, for files that the specs make; removed at its end.
function M.directory()
  if not directory then
    directory = must("mktemp -d"):gsub("%s+$", "")
    must("chmod 755 " .. directory) -- children may be other users
    local owner = M.native().getpid()
    M.guard = at_end(function()
      if M.native().getpid() == owner then
        os.execute("rm -rf " .. M.quote(directory))
      end
    end)
  end
  return directory
end

-- ---------------------------------------------------------------- C

local compiled = {}

--- Where compiled programs go: the build directory, or, when that is somebody else's, our own.
local function place()
  local own = BUILD .. "/spec"
  local _, status = M.run(("mkdir -p %s && test -w %s"):format(own, own))
  return status == 0 and own or M.directory()
end

local function compile(source, target, flags)
  if compiled[target] then
    return compiled[target]
  end
  local path = place() .. "/" .. target
  local links = M.read(source):match "^/%* *links: *(.-) *%*/" or ""
  local version = M.read "lua/moonsand/version.lua":match '"(.-)"'
  must(([[test %s -nt %s && test %s -nt src/wire.h || {
    gcc -std=c11 -D_GNU_SOURCE -DMS_VERSION='"%s"' -Isrc -Wall -Wextra -O1 -g %s -o %s.$$ %s &&
    mv %s.$$ %s; }]]):format(path, source, path, version,
    source .. " " .. links:gsub("%-%S+", ""), path, flags .. " " .. links:gsub("src/%S+", ""), path, path))
  compiled[target] = path
  return path
end

--- A program of spec/support/, for the host.
function M.program(name)
  return compile(HERE .. name .. ".c", name, "")
end

--- A program of spec/support/probes/, static: it runs in a sandbox.
function M.probe(name)
  return compile(HERE .. "probes/" .. name .. ".c", "probe-" .. name,
    "-static -no-pie -fno-pie -pthread")
end

local native

--- What Lua has no functions for: see spec/support/modules/native.c.
function M.native()
  if not native then
    local headers = M.interpreter == "luajit" and "luajit-2.1" or "lua5.4"
    local module = M.interpreter == "luajit" and "luajit" or "lua5.4"
    local include = M.run("pkg-config --cflags-only-I --keep-system-cflags " .. module .. " 2>/dev/null")
      :gsub("%s+$", "")
    if include == "" or include:find "not found" then
      include = "-I/usr/include/" .. headers
    end
    local own = BUILD .. "/spec"
    local path
    local function build(where)
      path = where .. "/native-" .. headers .. ".so"
      return M.run(([[mkdir -p %s && { test %s -nt %smodules/native.c || {
        gcc -std=c11 -D_GNU_SOURCE -Wall -Wextra -O1 -g -shared -fPIC %s %smodules/native.c -o %s.$$ &&
        mv %s.$$ %s; }; }]]):format(where, path, HERE, include, HERE, path, path, path))
    end
    local _, status = build(own)
    if status ~= 0 then
      local temporary = M.run "mktemp -d":gsub("%s+$", "")
      local output
      output, status = build(temporary)
      if status ~= 0 then
        error(output)
      end
      native = assert(package.loadlib(path, "luaopen_native"))()
      os.execute("rm -rf " .. M.quote(temporary))
      return native
    end
    native = assert(package.loadlib(path, "luaopen_native"))()
  end
  return native
end

-- ---------------------------------------------------------------- child Luas

--- The command that runs a file of Lua code with this Lua and these paths.
---@param code string
---@return string command, string path
function M.command(code)
  M.count = (M.count or 0) + 1
  if M.isolation ~= "native" then
    code = ("require('moonsand.providers.local').isolation = %q; "):format(M.isolation) .. code
  end
  local path = M.write(("%s/child-%d.lua"):format(M.directory(), M.count), code)
  return ("env LUA_PATH=%s LUA_CPATH=%s MOONSAND_BUILD=%s %s %s"):format(M.quote(package.path),
    M.quote(package.cpath), M.quote(BUILD), M.interpreter, M.quote(path)), path
end

--- Runs Lua code in a process of its own: what it wrote, and its exit status.
---@param code string
---@param prefix? string a command that runs it, for example "unshare -Ur"
function M.child(code, prefix)
  return M.run((prefix and prefix .. " " or "") .. M.command(code) .. " </dev/null")
end

--- The same with at most so many open files; again while another spec has all files on their way
--- that may be (`take_flights`), since who has fewer sends none then.
---@param code string
---@param count integer
function M.child_with_files(code, count)
  local output, status
  M.eventually(40, "no file may be on its way", function()
    output, status = M.child(code, ("ulimit -n %d;"):format(count))
    return not output:find "Too many references", output
  end)
  return output, status
end

-- ---------------------------------------------------------------- the host's processes

--- What /proc says of a process; nil when there is none. Zombies have state "Z"; one that is just
--- being reaped ("X") is none any more.
---@return { pid: integer, ppid: integer, name: string, state: string, started: string }?
function M.process(pid)
  local text = M.read("/proc/" .. pid .. "/stat")
  if not text then
    return nil
  end
  local name, rest = text:match "^%d+ %((.*)%) (.*)$"
  if not name then
    return nil
  end
  local fields = {}
  for field in rest:gmatch "%S+" do
    fields[#fields + 1] = field
  end
  if fields[1] == "X" then
    return nil
  end
  return { pid = tonumber(pid), ppid = tonumber(fields[2]), name = name, state = fields[1],
    session = tonumber(fields[4]), started = fields[20] }
end

--- All of them, by pid.
function M.processes()
  local all = {}
  for _, name in ipairs(M.native().list "/proc") do
    local pid = tonumber(name)
    if pid then
      all[pid] = M.process(pid)
    end
  end
  return all
end

--- Those below a process, children's children too: for an agent, all that is in its sandbox. A look
--- takes a while: one may come and another go, and both be missed. So it counts when a second look
--- finds the same; where they come and go all the time, the fifth is as good as any.
function M.descendants(root)
  local found, seen
  for _ = 1, 5 do
    local before, pids = seen, {}
    found = {}
    for _, pid in ipairs(M.native().below(root)) do
      local process = M.process(pid)
      if process then
        found[#found + 1], pids[#pids + 1] = process, pid
      end
    end
    seen = table.concat(pids, " ")
    if seen == before then
      break
    end
  end
  return found
end

--- Its children.
function M.children(parent)
  local found = {}
  for _, process in ipairs(M.descendants(parent)) do
    if process.ppid == parent then
      found[#found + 1] = process
    end
  end
  return found
end

--- Is this very process, not another with its number, still there?
function M.alive(process)
  local now = M.process(process.pid)
  return now ~= nil and now.started == process.started and now.state ~= "Z"
end

--- One field of /proc/PID/status.
function M.status(pid, field)
  local text = M.read("/proc/" .. pid .. "/status") or ""
  return ("\n" .. text):match("\n" .. field .. ":[ \t]*([^\n]*)")
end

--- Waits until a process has nothing to do.
function M.await_rest(pid)
  M.eventually(20, "it does not sleep", function()
    return M.status(pid, "State") == "S (sleeping)"
  end)
end

--- Stops a process: from here on it does nothing. Nobody else has a turn meanwhile.
function M.stop(pid)
  M.native().kill(pid, 19)
  local deadline = core.now() + 10
  while not (M.status(pid, "State") or ""):find "^T" do
    assert.is_true(core.now() < deadline, "it does not stop")
  end
end

--- Under a tool that keeps freed memory, its size tells nothing.
function M.instrumented()
  return os.getenv "MOONSAND_VALGRIND" ~= nil or (os.getenv "LD_PRELOAD" or ""):find "asan" ~= nil
end

--- Bytes of memory that a process has to itself, as well as can be seen.
function M.rss(pid)
  return tonumber((M.status(pid, "VmRSS") or "0"):match "%d+") * 1024
end

--- Open files of a process: how many, and what they are.
function M.fds(pid)
  local base = "/proc/" .. (pid or M.native().getpid()) .. "/fd"
  local names, targets = M.native().list(base), {}
  if not names then
    return nil
  end
  for _, name in ipairs(names) do
    targets[name] = M.native().readlink(base .. "/" .. name) or "(closed)"
  end
  return #names, targets
end

--- Waits until fn gives something true, at most so many seconds, and gives that.
---@param seconds number
---@param what string for the failure
---@param fn fun(): any
function M.eventually(seconds, what, fn)
  local deadline = core.now() + seconds
  while true do
    local value, why = fn()
    if value then
      return value
    elseif core.now() > deadline then
      error(("after %g s: %s%s"):format(seconds, what, why and (": " .. tostring(why)) or ""), 2)
    end
    M.native().pause(0.001)
  end
end

--- What a call answers that ends at its timeout: with the next timeout where the program had not
--- begun by then.
---@param timeouts number[]
---@param call fun(timeout: number): moonsand.Result?, string?, string?, table?
---@param begun fun(result: moonsand.Result): any
function M.in_time(timeouts, call, begun)
  for i, timeout in ipairs(timeouts) do
    local r, message, code, detail = call(timeout)
    local result = r or detail.result
    if i == #timeouts or result and begun(result) then
      return r, message, code, detail
    end
  end
end

-- ---------------------------------------------------------------- sandboxes

--- The number that the host knows an agent by, and its zygote's.
function M.agent(box)
  local pid = box.core.driver:pid()
  return pid, M.process(pid).ppid
end

--- Puts a host file into a sandbox, executable. Gives its path inside.
function M.put(box, path, name)
  local target = "/tmp/" .. (name or path:match "[^/]*$")
  assert(require("moonsand").assert(box:exec({ "sh", "-c", 'cat >"$0" && chmod +x "$0"', target },
    { stdin = M.read(path) })).ok)
  return target
end

--- Runs a probe in a sandbox: its Result.
function M.try(box, probe, args, opts)
  local path = M.put(box, M.probe(probe))
  local argv = { path }
  for i, word in ipairs(args or {}) do
    argv[i + 1] = tostring(word)
  end
  opts = opts or {}
  opts.timeout = opts.timeout or 20
  return require("moonsand").assert(box:exec(argv, opts))
end

--- A program that has in a sandbox all that there is of something the kernel counts for a user, and
--- keeps it.
---@param probe string where the probe "shared" is in it
---@return moonsand.Process process, integer count, string errno how the kernel said no more
function M.take(box, probe, mode)
  local moonsand = require "moonsand"
  local p = moonsand.assert(box:start({ probe, mode }, { stdin = "pipe" }))
  local count, errno = moonsand.assert(p:wait_for("^ready %d+ %u+", 40)):match "ready (%d+) (%u+)"
  return p, tonumber(count), errno
end

--- One that has all files that may be on their way, once no other spec has them.
---@return moonsand.Process
function M.take_flights(box, probe)
  return M.eventually(40, "no file may be on its way", function()
    local p, count, errno = M.take(box, probe, "flights")
    if errno == "ETOOMANYREFS" and count >= 1024 then -- more than a login may have open
      return p
    end
    p:kill()
    p:wait()
  end)
end

--- The answers of a probe, "name: WORD" a line, as a table.
function M.answers(result)
  local answers = {}
  for name, word in result.stdout:gmatch "([^\n]-): (%S+)\n" do
    answers[name] = word
  end
  if not result.ok then
    error("the probe failed: " .. tostring(result) .. "\n" .. result.stdout .. result.stderr, 2)
  end
  return answers
end

--- Compares answers with what they must be: a word, or words with "|" between. Nothing may be
--- missing on either side.
function M.refused(answers, expected)
  local wrong = {}
  for name, words in pairs(expected) do
    local answer = answers[name] or "(not tried)"
    if not ("|" .. words .. "|"):find("|" .. answer .. "|", 1, true) then
      wrong[#wrong + 1] = ("%s: %s, not %s"):format(name, answer, words)
    end
  end
  for name, answer in pairs(answers) do
    if not expected[name] then
      wrong[#wrong + 1] = ("%s: %s, not expected at all"):format(name, answer)
    end
  end
  table.sort(wrong)
  if #wrong > 0 then
    error(table.concat(wrong, "\n"), 2)
  end
end

--- Asserts a failure of a local sandbox, in full.
---@return string message, table detail
function M.fails(code, value, message, got, detail)
  assert.is_nil(value, tostring(value))
  assert.equal(code, got, tostring(message))
  assert.equal("string", type(message))
  assert.equal(code, detail.code)
  assert.equal(message, detail.message)
  assert.equal("local", detail.provider)
  return message, detail
end

return M
