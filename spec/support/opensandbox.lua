--- Starts the fake OpenSandbox of spec/fakes/opensandbox/ and asks it what it saw.
---
---     local fake = require("support.opensandbox").start()
---     fake.domain, fake.key, fake.refused_port
---     fake:fault { service = "execd", path = "^/command$", fault = "cut", after = 100 }
---     fake:requests(), fake:violations(), fake:clear()
---     fake:stop()

local cjson = require "cjson"
local support = require "support.init"

local M = {}

local Fake = {}
Fake.__index = Fake

local PROGRAM = "spec/fakes/opensandbox/fake.py"
local quote = support.quote

local function must_answer(fake, method, path, value)
  local answer = fake:curl(method, path, { json = value })
  if answer.status ~= 200 then
    error(("%s %s: %s\n%s"):format(method, path, answer.status or answer.problem, answer.body), 3)
  end
  return cjson.decode(answer.body)
end

local function parse(text)
  local answer = { headers = {} }
  -- of several answers, as after a 100, the last one counts
  local head, body = text:match "^(HTTP/1%.1 .-\r\n)\r\n(.*)$"
  while head and head:find "^HTTP/1%.1 100" do
    head, body = body:match "^(HTTP/1%.1 .-\r\n)\r\n(.*)$"
  end
  answer.body = body or ""
  answer.status = head and tonumber(head:match "^HTTP/1%.1 (%d+)")
  for name, value in (head or ""):gmatch "\n([^:\r\n]+): ([^\r\n]*)" do
    answer.headers[name:lower()] = value
  end
  return answer
end

--- One request by curl, as another's client: { status, headers, body, problem }, the last being
--- curl's exit status. `opts`: `json` or `data` (the body), `headers`, `more` (words for curl),
--- `seconds` (20).
---@param method string
---@param path string
---@param opts? table
function Fake:curl(method, path, opts)
  opts = opts or {}
  local words = { "curl -isS --path-as-is -m", tostring(opts.seconds or 20), "-X", method }
  for name, value in pairs(opts.headers or {}) do
    words[#words + 1] = "-H " .. quote(name .. ": " .. value)
  end
  local data = opts.data or (opts.json ~= nil and cjson.encode(opts.json)) or nil
  if data then
    words[#words + 1] = "-H 'Content-Type: application/json' --data-binary " .. quote(data)
  end
  words[#words + 1] = opts.more or ""
  words[#words + 1] = quote(self.url .. path)
  local pipe = assert(io.popen(table.concat(words, " ") .. " 2>/dev/null; printf ' %d' $?"))
  local text, problem = pipe:read "*a":match "^(.*) (%d+)$"
  pipe:close()
  local answer = parse(text)
  answer.problem = tonumber(problem)
  return answer
end

--- The next requests of a kind meet a fault: see faults.py.
---@param fault table
function Fake:fault(fault)
  must_answer(self, "POST", "/fake/faults", fault)
end

--- All requests since the last `clear`, in order.
function Fake:requests()
  return must_answer(self, "GET", "/fake/requests")
end

--- What broke the specification since the last `clear`, as sentences.
function Fake:violations()
  return must_answer(self, "GET", "/fake/violations")
end

--- The sandboxes: { id, state, root, pid }.
function Fake:sandboxes()
  return must_answer(self, "GET", "/fake/sandboxes")
end

--- `framing` ("bare", "sse"), `grace` (seconds that a command's stream stays open after its end).
---@param settings table
function Fake:set(settings)
  must_answer(self, "POST", "/fake/settings", settings)
end

--- Forgets requests, violations and faults.
function Fake:clear()
  for _, name in ipairs { "requests", "violations", "faults" } do
    must_answer(self, "DELETE", "/fake/" .. name)
  end
end

--- Ends it; its processes and files are gone when this returns.
function Fake:stop()
  if self.stdin then
    self.stdin:close()
    self.stdin = nil
    support.eventually(20, "the fake did not end", function()
      return not support.alive(self.process)
    end)
  end
end

local count = 0

--- Starts one. It ends with `stop`, and with this process.
---@param arguments? string for fake.py
function M.start(arguments)
  count = count + 1
  local base = ("%s/opensandbox-%d"):format(support.directory(), count)
  local pipe, output, errors = base .. ".in", base .. ".out", base .. ".err"
  assert(os.execute("mkfifo " .. quote(pipe)))
  -- Debian's Python, whatever else is in the path: it has the modules
  os.execute(("env -u LD_PRELOAD /usr/bin/python3 -B %s %s <%s >%s 2>%s &"):format(PROGRAM,
    arguments or "", quote(pipe), quote(output), quote(errors)))
  local stdin = assert(io.open(pipe, "w"))
  local line = support.eventually(30, "the fake did not start", function()
    return (support.read(output) or ""):match "^(.-)\n", support.read(errors)
  end)
  local fake = setmetatable(cjson.decode(line), Fake)
  fake.pid = math.floor(fake.pid) -- cjson has floats only
  fake.url = "http://" .. fake.domain
  fake.stdin = stdin
  fake.process = support.process(fake.pid)
  return fake
end

return M
