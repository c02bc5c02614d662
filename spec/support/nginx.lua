--- An nginx that a spec has started: what it answers, what it holds, what its log says, its end.
---
---     local server = nginx.server { dir = dir, pid = pid, path = "/content" }
---
--- `dir` is a directory of its own, with http.sock and error.log; `pid` the master process;
--- `path` where bodies go unless told otherwise; `allowed` a pattern of complaints that may come.

local core = require "moonsand.core"
local support = require "support.init"

local M = {}

--- Runs a shell command that must succeed: its output.
function M.must(command)
  local output, status = support.run(command)
  if status ~= 0 then
    error(("%s: status %d\n%s"):format(command, status, output), 2)
  end
  return output
end

local Server = {}
Server.__index = Server

local count = 0

function M.server(fields)
  fields.told = 0 -- complaints that the specs have seen
  return setmetatable(fields, Server)
end

-- ---------------------------------------------------------------- requests

--- The command that asks for something.
function Server:curl(path, options)
  return ("curl -sS --unix-socket %s/http.sock %s http://localhost%s"):format(self.dir,
    options or "", path)
end

function Server:get(path)
  return (support.run(self:curl(path)))
end

--- A file with the body of a request.
function Server:body(text)
  count = count + 1
  return support.write(("%s/body-%d"):format(self.dir, count), M.own(text))
end

--- Who has sent a request and waits for its answer.
local Client = {}
Client.__index = Client

--- The next line of the answer, once it is there.
function Client:line()
  return self.pipe:read "*l"
end

--- What is left of the answer, once it is whole, and its status.
function Client:answer()
  local text = self.pipe:read "*a"
  self.pipe:close()
  return text:match "^(.*)(%d%d%d)$"
end

--- Goes away without the answer.
function Client:leave()
  M.must(("kill -KILL %d"):format(self.pid))
  self.pipe:close()
end

--- Starts a request with a body.
function Server:begin(body, path, options)
  local command = self:curl(path or self.path,
    ("-N --data-binary @%s -w '%%{http_code}' %s"):format(self:body(body), options or ""))
  local pipe = assert(io.popen(("echo $$; exec %s 2>&1"):format(command)))
  return setmetatable({ pid = tonumber(pipe:read "*l"), pipe = pipe }, Client)
end

--- Sends a body: the answer, which must be a good one.
function Server:run(body, path)
  local text, status = self:begin(body, path):answer()
  if status ~= "200" then
    error(("status %s: %s"):format(tostring(status), tostring(text)), 2)
  end
  return text
end

-- ---------------------------------------------------------------- processes

--- The worker processes, without those of an older generation that are about to leave.
function Server:workers()
  local found = {}
  for pid, process in pairs(support.processes()) do
    local line = process.ppid == self.pid and support.read("/proc/" .. pid .. "/cmdline") or ""
    if line:find("worker process", 1, true) and not line:find("shutting down", 1, true) then
      found[#found + 1] = pid
    end
  end
  return found
end

function Server:signal(name, pid)
  M.must(("kill -%s %d"):format(name, pid or self.pid))
end

--- What a worker holds. Programs that run count as children.
function Server:holdings(pid)
  pid = pid or self:workers()[1]
  return {
    files = (support.fds(pid)),
    threads = #support.native().list("/proc/" .. pid .. "/task"),
    children = #support.descendants(pid),
  }
end

--- Waits until the worker has no more than it had: an idle driver may stay for ten seconds.
function Server:assert_no_more(before, pid)
  support.eventually(20, "something was left", function()
    local now = self:holdings(pid)
    for name, number in pairs(before) do
      if now[name] > number then
        return nil, ("%s: %d, not %d"):format(name, now[name], number)
      end
    end
    return true
  end)
end

--- Lines of the log that say that something is wrong.
function Server:complaints()
  local found, seen = {}, 0
  for line in (support.read(self.dir .. "/error.log") or ""):gmatch "[^\n]+" do
    local level = line:match "^%S+ %S+ %[(%a+)%]"
    if level ~= "notice" and level ~= "info" and level ~= "debug"
      and not (self.allowed and line:find(self.allowed)) then
      seen = seen + 1
      if seen > self.told then
        found[#found + 1] = line
      end
    end
  end
  self.told = seen
  return found
end

function Server:stop()
  local pid = self.pid
  self.pid = nil
  if pid and support.process(pid) then
    support.run("kill -QUIT " .. pid)
    local deadline = core.now() + 10
    while support.process(pid) and core.now() < deadline do
      support.native().pause(0.01)
    end
    if support.process(pid) then
      support.run("kill -KILL " .. pid)
      error "nginx did not leave within ten seconds"
    end
  end
end

-- ---------------------------------------------------------------- what runs in sandboxes

--- The programs `sleep 7…` of a job are counted on the whole machine, where other runs of the specs
--- may be: each run has numbers of its own, "sleep 7301.4711".
function M.own(text)
  return (text:gsub("sleep (7%d%d%d)%f[%D]", "sleep %1." .. support.native().getpid()))
end

--- The programs `sleep SECONDS` of all sandboxes; the argument is a number that no other test uses.
function M.sleepers(seconds)
  local n, line = 0, M.own("sleep " .. seconds):gsub(" ", "\0") .. "\0"
  for pid in pairs(support.processes()) do
    if support.read("/proc/" .. pid .. "/cmdline") == line then
      n = n + 1
    end
  end
  return n
end

--- Waits until there are so many of them.
function M.await_sleepers(seconds, number, within)
  support.eventually(within or 20, "programs: sleep " .. seconds, function()
    local now = M.sleepers(seconds)
    return now == number, ("%d, not %d"):format(now, number)
  end)
end

return M
