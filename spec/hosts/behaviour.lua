--- What moonsand does in every host. A plain module, with nothing of a test framework in it, so that
--- it runs wherever the host can load a file:
---
---     local behaviour = require "hosts.behaviour"
---     behaviour.run(spawn, function(name, failure) … end)
---
--- or check by check: `for _, check in ipairs(behaviour.checks) do check.run(moonsand, spawn) end`.
--- `spawn(fn)` runs fn side by side with its caller, in whatever the host calls a coroutine. Each
--- check raises when something is not as it should be, and may be run in a coroutine or, where the
--- host can wait there, outside of one.

local unpack = table.unpack or unpack

local M = { checks = {} }

local function check(name, fn)
  M.checks[#M.checks + 1] = { name = name, run = fn }
end

-- ---------------------------------------------------------------- a tiny assert

local function show(value)
  return type(value) == "string" and ("%q"):format(value) or tostring(value)
end

local function eq(wanted, got, what)
  if wanted ~= got then
    error(("%s: %s wanted, got %s"):format(what or "value", show(wanted), show(got)), 2)
  end
end

local function has(text, part)
  if type(text) ~= "string" or not text:find(part, 1, true) then
    error(("%s is not in %s"):format(show(part), show(text)), 2)
  end
end

local function within(low, value, high, what)
  if not (value >= low and value <= high) then
    error(("%s: %.3f is not from %.3f to %.3f"):format(what, value, low, high), 2)
  end
end

local function now()
  return require("moonsand.core").now()
end

--- What a check does with a sandbox of its own.
local function boxed(name, fn)
  check(name, function(moonsand, spawn)
    moonsand.with({}, function(box)
      fn(box, moonsand, spawn)
    end)
  end)
end

--- Waits, as the host waits, until fn gives something true.
local function eventually(moonsand, what, fn)
  for _ = 1, 1000 do
    if fn() then
      return
    end
    moonsand.sleep(0.01)
  end
  error("this did not come: " .. what, 2)
end

-- ---------------------------------------------------------------- programs

boxed("exec: output, errors, exit code", function(box)
  local r = assert(box:exec("printf 'a\\000b'; echo err >&2; exit 3"))
  eq("a\0b", r.stdout, "stdout")
  eq("err\n", r.stderr, "stderr")
  eq(3, r.exit_code, "exit code")
  eq("exited", r.status, "status")
  eq(false, r.ok, "ok")
end)

boxed("exec: a list, a directory, the environment", function(box)
  local r = assert(box:exec({ "sh", "-c", 'echo "$0 $X $PWD"', "a  b" }, { cwd = "/tmp", env = { X = 7 } }))
  eq("a  b 7 /tmp\n", r.stdout)
end)

boxed("exec: a signal", function(box)
  local r = assert(box:exec("kill -SEGV $$"))
  eq("SEGV", r.signal, "signal")
  eq(nil, r.exit_code, "exit code")
end)

boxed("exec: one after the other, many times", function(box)
  for i = 1, 50 do
    eq(i .. "\n", assert(box:exec { "echo", tostring(i) }).stdout)
  end
end)

boxed("code: in a language", function(box)
  eq("45\n", assert(box:run_code("echo $((9 * 5))", { language = "sh" })).stdout)
end)

-- ---------------------------------------------------------------- streams

boxed("stream: the first output is there before the end", function(box)
  local p = assert(box:start("echo first; read x; echo last"))
  eq("first", p.stdout:read(), "line")
  eq(true, p:is_running(), "running")
  assert(p.stdin:write "\n")
  eq("last", p.stdout:read(), "line")
  eq(nil, (p.stdout:read()), "end")
  eq(0, assert(p:wait()).exit_code, "exit code")
end)

boxed("stream: lines, chunks, events", function(box)
  local lines = {}
  for line in assert(box:start("seq 5")).stdout:lines() do
    lines[#lines + 1] = line
  end
  eq("1 2 3 4 5", table.concat(lines, " "), "lines")
  local bytes = 0
  for chunk in assert(box:start("head -c 3000000 /dev/zero")).stdout:chunks() do
    bytes = bytes + #chunk
  end
  eq(3000000, bytes, "bytes")
  local seen = {}
  local p = assert(box:start("echo o; read x; echo e >&2"))
  for stream, data in p:events() do
    seen[#seen + 1] = stream .. "=" .. data
    if #seen == 1 then
      assert(p.stdin:write "\n")
    end
  end
  eq("stdout=o\n stderr=e\n", table.concat(seen, " "), "events")
end)

boxed("stream: a slow reader stops the program, not the host", function(box, moonsand)
  local p = assert(box:start("echo ready; read x; seq 1000000"))
  eq("ready", p.stdout:read(), "line") -- what comes from here on waits for a reader
  assert(p.stdin:write "\n")
  moonsand.sleep(0.1)
  eq(true, p:is_running(), "running")
  eq(6 + 6888896, assert(p:wait()).stdout_bytes, "bytes")
end)

boxed("stream: a terminal", function(box)
  local p = assert(box:start("read -r line; echo \"<$line>\"; stty size; cat", { pty = true }))
  eq(true, p:resize(100, 30), "resized")
  assert(p.stdin:write("hello\n"))
  p.stdin:close()
  eq("hello\r\n<hello>\r\n30 100\r\n", p.stdout:read("a"), "shown")
  eq(0, assert(p:wait()).exit_code, "exit code")
end)

boxed("stream: two programs, one feeds the other", function(box)
  local source = assert(box:start("seq 20000"))
  eq("20000\n", assert(box:exec("tail -n 1", { stdin = source.stdout })).stdout)
end)

boxed("stdin: a string, a pipe, a function that waits", function(box, moonsand)
  eq("LOUD", assert(box:exec("tr a-z A-Z", { stdin = "loud" })).stdout, "string")
  local p = assert(box:start { "sort" })
  assert(p.stdin:write "pear\n")
  moonsand.sleep(0.02)
  assert(p.stdin:write "apple\n")
  p.stdin:close()
  eq("apple\npear\n", assert(p:wait()).stdout, "pipe")
  local n = 0
  local r = assert(box:exec("paste -sd+", {
    stdin = function()
      moonsand.sleep(0.01)
      n = n + 1
      return n <= 3 and n .. "\n" or nil
    end,
  }))
  eq("1+2+3\n", r.stdout, "function")
end)

boxed("stdin: more than a pipe holds, in both directions", function(box)
  local data = ("x"):rep(2 ^ 20)
  eq(data, assert(box:exec("cat", { stdin = data })).stdout)
end)

boxed("callbacks: lines as they come, the end last, and they may wait", function(box, moonsand)
  local told = {}
  local r = assert(box:exec("echo one; echo two >&2; printf three", {
    on_line = function(line, stream)
      moonsand.sleep(0.01)
      told[#told + 1] = stream .. ":" .. line
    end,
    on_exit = function(result)
      told[#told + 1] = tostring(result.ok)
    end,
  }))
  eq("one\nthree", r.stdout, "stdout")
  eq("true", told[4], "last")
  table.sort(told)
  eq("stderr:two stdout:one stdout:three true", table.concat(told, " "), "told")

  local heard = {}
  local p = assert(box:start("echo a; sleep 0.05; echo b", {
    on_line = function(line)
      heard[#heard + 1] = line
    end,
  }))
  assert(p:wait())
  eq("a b", table.concat(heard, " "), "start")
end)

boxed("callbacks: what they raise comes out of the call", function(box)
  local ok, err = pcall(box.exec, box, "echo a; sleep 100", {
    on_line = function(line)
      error("unwanted: " .. line, 0)
    end,
  })
  eq(false, ok, "ok")
  eq("unwanted: a", err, "error")
end)

-- ---------------------------------------------------------------- ends

boxed("timeout: of a program", function(box)
  local start = now()
  local r = assert(box:exec("echo before; setsid sleep 100 & sleep 100", { timeout = 2 }))
  eq("timed_out", r.status, "status")
  eq("before\n", r.stdout, "stdout")
  within(1.99, now() - start, 50, "seconds")
  eq("0\n", assert(box:exec("cat /proc/[0-9]*/comm | grep -c sleep")).stdout, "left")
end)

boxed("timeout: of a wait, which loses nothing", function(box)
  local p = assert(box:start("printf re; read x; echo ady"))
  local line, _, code = p.stdout:read("l", 0.05)
  eq(nil, line, "line")
  eq("timeout", code, "code")
  assert(p.stdin:write "\n")
  eq("ready", p.stdout:read(), "line")
end)

boxed("cancel: a token ends a program, from elsewhere", function(box, moonsand, spawn)
  local token, start, up = moonsand.token(), now(), false
  spawn(function()
    moonsand.sleep(0.1)
    eventually(moonsand, "the program", function()
      return up
    end)
    token:cancel "enough"
  end)
  local r, message, code, detail = box:exec("echo up; sleep 100", {
    cancel = token,
    on_line = function()
      up = true
    end,
  })
  eq(nil, r, "result")
  eq("cancelled: enough", message, "message")
  eq("cancelled", code, "code")
  eq(true, detail.started, "started")
  within(0.09, now() - start, 50, "seconds")
end)

boxed("cancel: a token with a timeout, though nobody waits for the program", function(box, moonsand)
  local p = assert(box:start("sleep 100", { cancel = moonsand.token(2) }))
  eventually(moonsand, "the end of the program", function()
    return not p:is_running()
  end)
  local _, _, code = p:wait()
  eq("cancelled", code, "code")
end)

boxed("close: wakes who waits", function(box, moonsand, spawn)
  local p, code = assert(box:start("sleep 100")), nil
  spawn(function()
    local _, _, why = p.stdout:read()
    code = why
  end)
  moonsand.sleep(0.05)
  p:close()
  eventually(moonsand, "the end of the read", function()
    return code
  end)
  eq("closed", code, "code")
end)

check("close: a sandbox, under the feet of its program", function(moonsand, spawn)
  local box, code = assert(moonsand.create()), nil
  spawn(function()
    local _, _, why = box:exec("sleep 100")
    code = why or "?"
  end)
  moonsand.sleep(0.1)
  box:close()
  eventually(moonsand, "the end of the program", function()
    return code
  end)
  eq("closed", code, "code")
end)

-- ---------------------------------------------------------------- many

--- A command that ends once so many of them run at the same time, and says its number.
local function together(i, count)
  return (": >at-%d; while set -- at-*; [ $# -lt %d ]; do sleep 0.05; done; echo %d")
    :format(i, count, i)
end

boxed("many: programs side by side", function(box, moonsand)
  local items = {}
  for i = 1, 10 do
    items[i] = i
  end
  local got = assert(moonsand.all(items, function(i)
    return assert(box:exec(together(i, 10), 20)).stdout
  end))
  for i = 1, 10 do
    eq(i .. "\n", got[i], "item " .. i)
  end
end)

check("many: sandboxes, with a limit", function(moonsand)
  local busy, most = 0, 0
  local got = assert(moonsand.all({ 1, 2, 3, 4, 5, 6, 7, 8 }, function(i)
    busy = busy + 1
    most = math.max(most, busy)
    local text = moonsand.with({}, function(box)
      return assert(box:exec { "echo", tostring(i * i) }).stdout
    end)
    busy = busy - 1
    return text
  end, { limit = 3 }))
  eq("1\n4\n9\n16\n25\n36\n49\n64\n", table.concat(got), "results")
  eq(3, most, "at once")
end)

boxed("many: the host's own coroutines", function(box, moonsand, spawn)
  local done = {}
  for i = 1, 5 do
    spawn(function()
      local r = assert(box:exec(together(i, 5)))
      done[#done + 1] = tonumber(r.stdout)
    end)
  end
  eventually(moonsand, "the end of five", function()
    return #done == 5
  end)
  table.sort(done)
  eq("1 2 3 4 5", table.concat(done, " "), "done")
end)

boxed("many: others go on while one reads without end", function(box, moonsand, spawn)
  local beats, over = 0, false
  spawn(function()
    while not over do
      moonsand.sleep(0.01)
      beats = beats + 1
    end
  end)
  local p, bytes = assert(box:start("yes")), 0
  repeat
    bytes = bytes + #assert(p.stdout:read(65536))
  until beats >= 10 and bytes >= 2 ^ 20
  over = true
  p:close()
end)

-- ---------------------------------------------------------------- files

boxed("files: write, read, list, move, remove", function(box)
  local files, data = box.files, ("\0\1\2\255"):rep(100000)
  assert(files:write("sub/data.bin", data, { parents = true }))
  eq(data, assert(files:read "sub/data.bin"), "data")
  assert(files:write("sub/note.txt", "hello"))
  eq(2, #assert(files:list "sub"), "entries")
  assert(files:move("sub/note.txt", "note.txt"))
  eq("hello", assert(files:read "note.txt"), "moved")
  eq("hello", assert(box:exec("cat note.txt")).stdout, "as a program sees it")
  assert(files:remove("sub", { recursive = true }))
  local _, _, code = files:read "sub/data.bin"
  eq("not_found", code, "code")
end)

-- ---------------------------------------------------------------- errors

boxed("errors: values", function(box)
  local r, message, code, detail = box:exec { "nope" }
  eq(nil, r, "result")
  eq("not_found", code, "code")
  eq("program", detail.what, "what")
  eq(false, detail.started, "started")
  eq("string", type(message), "message")
  local _, _, why, more = box:exec("echo no space >&2; exit 2", { check = true })
  eq("exit", why, "code")
  eq(2, more.result.exit_code, "exit code")
end)

boxed("errors: mistakes raise where they are made", function(box)
  local ok, err = pcall(function()
    box:exec("true", { tiemout = 3 })
  end)
  eq(false, ok, "ok")
  has(err, "tiemout")
  has(err, "behaviour.lua")
end)

check("errors: with closes, and passes on", function(moonsand)
  local kept
  local ok, err = pcall(moonsand.with, {}, function(box)
    kept = box
    assert(box:exec("true"))
    error({ mine = true })
  end)
  eq(false, ok, "ok")
  eq(true, type(err) == "table" and err.mine, "error")
  eq(false, (pcall(kept.exec, kept, "true")), "still open")
end)

-- ---------------------------------------------------------------- tasks

boxed("tasks: values, errors, cancelling", function(box, moonsand)
  local a = moonsand.task(function(...)
    moonsand.sleep(0.01)
    return select("#", ...), ...
  end, 1, nil, 3, nil)
  local values = { n = select("#", a:wait()), a:wait() }
  eq(5, values.n, "count")
  eq(4, values[1], "count of arguments")
  eq(3, values[4], "argument")
  eq("done", a:status(), "status")

  local b = moonsand.task(function()
    moonsand.sleep(0.01)
    error("boom", 0)
  end)
  local ok, err = pcall(b.wait, b)
  eq(false, ok, "ok")
  eq("boom", err, "error")

  local heard
  local c = moonsand.task(function()
    local r, message, code = box:exec("sleep 100")
    heard = code
    return r, message, code
  end)
  moonsand.sleep(0.1)
  eq(true, c:cancel "late", "cancel")
  local _, message, code = c:wait()
  eq("cancelled", heard, "in the task")
  eq("cancelled: late", message, "message")
  eq("cancelled", code, "code")
end)

boxed("tasks: the callback form", function(box, moonsand)
  local heard = {}
  moonsand.task(box.exec, box, "echo called"):on_done(function(ok, result)
    moonsand.sleep(0.01) -- it may wait
    heard[#heard + 1] = ("%s %s"):format(tostring(ok), result.stdout)
  end)
  moonsand.task(error, "boom", 0):on_done(function(ok, err)
    heard[#heard + 1] = ("%s %s"):format(tostring(ok), tostring(err))
  end)
  eq(0, #heard, "heard within the call")
  eventually(moonsand, "both callbacks", function()
    return #heard == 2
  end)
  table.sort(heard)
  eq("false boom; true called\n", table.concat(heard, "; "), "heard")
end)

boxed("tasks: the first failure of all ends the rest", function(box, moonsand)
  local start = now()
  local list, _, code, detail = moonsand.all({ "true", "exit 3", "sleep 100" }, function(command)
    return box:exec(command, { check = true })
  end)
  eq(nil, list, "list")
  eq("exit", code, "code")
  eq(2, detail.index, "index")
  within(0, now() - start, 50, "seconds")
end)

check("tasks: run waits for its own, and cancels the rest", function(moonsand)
  local ended
  eq("value", moonsand.run(function()
    moonsand.task(function()
      local _, _, code = moonsand.sleep(100)
      ended = code
    end)
    moonsand.sleep(0.01)
    return "value"
  end))
  eq("cancelled", ended, "the other task")
end)

check("tasks: a bare yield lets the others run", function(moonsand)
  local order = {}
  local function turns(name)
    return moonsand.task(function()
      for _ = 1, 3 do
        order[#order + 1] = name
        coroutine.yield()
      end
      return name
    end)
  end
  local a, b = turns "a", turns "b"
  eq("a", a:wait(), "a")
  eq("b", b:wait(), "b")
  eq(6, #order, "turns")
end)

check("tasks: semaphores, retry, sleep", function(moonsand)
  local sem, inside, most, start = moonsand.semaphore(2), 0, 0, now()
  assert(moonsand.all({ 1, 2, 3, 4 }, function()
    return sem:with(function()
      inside = inside + 1
      most = math.max(most, inside)
      moonsand.sleep(0.05)
      inside = inside - 1
      return true
    end)
  end))
  eq(2, most, "at once")
  within(0.09, now() - start, 50, "seconds")
  local last = moonsand.retry(function(attempt)
    if attempt < 3 then
      return nil, "not yet", "busy"
    end
    return attempt
  end, { times = 5, delay = 0.01 })
  eq(3, last, "attempts")
  eq(true, moonsand.sleep(0), "sleep(0)")
end)

-- ---------------------------------------------------------------- where waits are

check("pool: fills by itself, lends once, makes those wait who come late", function(moonsand, spawn)
  local pool = moonsand.pool { size = 1, max = 1 }
  eventually(moonsand, "a warm sandbox", function()
    return pool:stats().warm == 1
  end)
  local box = assert(pool:acquire(0))
  local second
  spawn(function()
    second = pool:with(function(other)
      return assert(other:exec("echo " .. (other.id == box.id and "same" or "new"))).stdout
    end)
  end)
  eventually(moonsand, "one who waits", function()
    return pool:stats().waiting == 1
  end)
  box:close()
  eventually(moonsand, "the second", function()
    return second
  end)
  eq("new\n", second, "sandbox")
  pool:close()
  eq(0, pool:stats().used, "used")
end)

boxed("waits: pass through a wrapped generator", function(box, moonsand)
  local function numbers(n)
    return moonsand.wrap(function()
      for line in assert(box:start { "seq", tostring(n) }).stdout:lines() do
        coroutine.yield(tonumber(line))
      end
    end)
  end
  local sum = 0
  for n in numbers(4) do
    sum = sum + n * assert(box:exec("echo 10")).stdout
  end
  eq(100, sum, "sum")
end)

boxed("waits: through pcall, metamethods and iterators", function(box)
  local object = setmetatable({}, {
    __index = function(_, key)
      return assert(box:exec { "echo", key }).stdout
    end,
  })
  local ok, value = pcall(function()
    return object.hello
  end)
  eq(true, ok, "ok")
  eq("hello\n", value, "value")
end)

boxed("waits: refused inside table.sort, and nothing is broken then", function(box, moonsand)
  local why = moonsand.task(function()
    local ok, err = pcall(table.sort, { 2, 1, 3 }, function(a, b)
      assert(box:exec("true"))
      return a < b
    end)
    assert(box:exec("true"))
    return tostring(ok) .. " " .. tostring(err)
  end):wait()
  has(why, "false")
  has(why, "cannot wait here")
  for _ = 1, 5 do
    eq("on\n", assert(box:exec("echo on")).stdout)
  end
end)

-- ---------------------------------------------------------------- the network

boxed("network: a forward, and the proxy of another sandbox that leads there", function(box, moonsand)
  assert(box:start { "/usr/bin/python3", "-m", "http.server", "8000", "-d", "/etc" })
  eq(true, assert(box:wait_port(8000, 20)))
  local forward = assert(box:forward(8000))
  local network = {
    allow = { "ok.test:" .. forward.port, "127.0.0.1:" .. forward.port },
    resolve = function()
      moonsand.sleep(0.01) -- it may wait
      return { "127.0.0.1" }
    end,
  }
  moonsand.with({ network = network }, function(inside)
    local url = ("http://ok.test:%d/hosts"):format(forward.port)
    has(assert(inside:exec("curl -sS " .. url, 20)).stdout, "127.0.0.1 localhost")
    has(assert(inside:exec("curl -sSp " .. url, 20)).stdout, "127.0.0.1 localhost")
    has(assert(inside:exec("curl -sS http://evil.test/", 20)).stdout, "not allowed by any rule")
    eq(3, #inside:network_log(), "attempts")
    local s = assert(inside:dial(3128, 10))
    assert(s:write("CONNECT evil.test:443 HTTP/1.1\r\n\r\n", 10))
    has(s:read("a", 10), "403 Forbidden")
    s:close()
  end)
  forward:close()
end)

-- ---------------------------------------------------------------- running them

--- Runs all of them, one after the other, and tells of each: its name, and what it raised.
---@param spawn fun(fn: fun())
---@param tell fun(name: string, failure?: string)
---@param around? fun(run: fun()): boolean, any runs one check, as pcall does
function M.run(spawn, tell, around)
  local moonsand = require "moonsand"
  for _, each in ipairs(M.checks) do
    local results = { (around or pcall)(function()
      each.run(moonsand, spawn)
    end) }
    local ok, failure = unpack(results, 1, 2)
    tell(each.name, not ok and tostring(failure) or nil)
  end
end

return M
