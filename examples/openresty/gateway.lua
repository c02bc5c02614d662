--- Runs code for people, over HTTP. Every run has a sandbox of its own, which is gone with it.
---
---   POST /execute   { language, code, stdin?, timeout? }   the whole result as JSON
---   POST /stream    the same                               events as they come (text/event-stream)
---   GET  /session   a WebSocket: { type = "run", language, code }, then "stdin" (data), "eof",
---                   "stop"; back come "stdout", "stderr" (data), "file" (name, mime, data), "end"
---   GET  /languages what is there

local cjson = require "cjson.safe"
local moonsand = require "moonsand"

local M = {}

local LIMITS = {
  sandbox = { disk = "256M", inodes = 10000, processes = 64, open_files = 256, cpu_time = 20 },
  memory = "1G", -- of addresses, a process
  roomy = { node = "16G", java = "16G", go = "16G" }, -- these reserve much more than they use
  timeout = 10, -- seconds, for /execute and /stream: the default and the most
  session = 120, -- seconds, for a program that a person talks to
  output = 1024 * 1024, -- bytes, of each stream
  code = 64 * 1024,
  stdin = 64 * 1024,
  frame = 1024 * 1024, -- a message of a WebSocket, in both directions: a picture as base64
  files = 4, -- pictures that are sent back
  file = 512 * 1024,
}

local PICTURES = { png = "image/png", svg = "image/svg+xml", jpg = "image/jpeg", gif = "image/gif" }

-- ---------------------------------------------------------------- text

--- Bytes of a program to text that JSON can hold: what is no UTF-8 becomes U+FFFD. A character
--- that is cut at the end of a piece waits for the next one.
local function decoder()
  local rest = ""
  return function(data, last)
    data = rest .. data
    local cut = not last and data:match "()[\194-\244][\128-\191]?[\128-\191]?$"
    local lead = cut and data:byte(cut)
    if lead and #data - cut + 1 < (lead >= 240 and 4 or lead >= 224 and 3 or 2) then
      data, rest = data:sub(1, cut - 1), data:sub(cut)
    else
      rest = ""
    end
    local clean = data:gsub("[\128-\255]+", function(run)
      local out, i = {}, 1
      while i <= #run do
        local character = run:match("^[\194-\223][\128-\191]", i)
          or run:match("^[\225-\236\238\239][\128-\191][\128-\191]", i)
          or run:match("^\224[\160-\191][\128-\191]", i)
          or run:match("^\237[\128-\159][\128-\191]", i)
          or run:match("^\240[\144-\191][\128-\191][\128-\191]", i)
          or run:match("^[\241-\243][\128-\191][\128-\191][\128-\191]", i)
          or run:match("^\244[\128-\143][\128-\191][\128-\191]", i)
        out[#out + 1] = character or "\239\191\189"
        i = i + (character and #character or 1)
      end
      return table.concat(out)
    end)
    return clean
  end
end

local function text(data)
  return decoder()(data, true)
end

-- ---------------------------------------------------------------- requests

local STATUS = { invalid = 400, unsupported = 400, not_found = 400, unavailable = 503 }

local function refuse(status, code, message)
  ngx.status = status
  ngx.header.content_type = "application/json"
  ngx.say(cjson.encode { error = code, message = text(message) })
  return ngx.exit(ngx.HTTP_OK)
end

--- Reads and checks what is to be run; answers nil and why, when it cannot be.
local function check(job)
  if type(job) ~= "table" then
    return nil, "a JSON object is needed"
  end
  for name in pairs(job) do
    if name ~= "language" and name ~= "code" and name ~= "stdin" and name ~= "timeout"
      and name ~= "type" then
      return nil, "unknown field: " .. tostring(name)
    end
  end
  local stdin, timeout = job.stdin or "", job.timeout or LIMITS.timeout
  if type(job.language) ~= "string" or #job.language > 40 then
    return nil, "language: a name is needed"
  elseif type(job.code) ~= "string" or #job.code > LIMITS.code then
    return nil, ("code: a string of at most %d bytes is needed"):format(LIMITS.code)
  elseif type(stdin) ~= "string" or #stdin > LIMITS.stdin then
    return nil, ("stdin: a string of at most %d bytes is needed"):format(LIMITS.stdin)
  elseif type(timeout) ~= "number" or not (timeout > 0 and timeout <= LIMITS.timeout) then
    return nil, ("timeout: seconds, at most %d"):format(LIMITS.timeout)
  end
  return { language = job.language, code = job.code, stdin = stdin, timeout = timeout }
end

local function read_job()
  if ngx.req.get_method() ~= "POST" then
    ngx.header.allow = "POST"
    return refuse(405, "invalid", "POST it")
  end
  ngx.req.read_body()
  local job, why = check(cjson.decode(ngx.req.get_body_data() or ""))
  return job or refuse(400, "invalid", why)
end

-- ---------------------------------------------------------------- running

--- The pictures that a program left where it ran.
local function pictures(box)
  local found = {}
  for _, entry in ipairs(box.files:list(".", { limit = 1000 }) or {}) do
    local mime = PICTURES[(entry.name:match "%.(%w+)$" or ""):lower()]
    if mime and entry.type == "file" and entry.size <= LIMITS.file and #found < LIMITS.files then
      local data = box.files:read(entry.path, { max = LIMITS.file, timeout = 5 })
      if data then
        found[#found + 1] = { name = text(entry.name), mime = mime, data = ngx.encode_base64(data) }
      end
    end
  end
  return found
end

local function summary(r)
  return {
    ok = r.ok,
    status = r.status,
    exit_code = r.exit_code,
    signal = r.signal,
    limit = r.limit,
    duration = r.duration,
    stage = r.stage,
    truncated = r.truncated and true or false,
  }
end

--- Runs a job in a sandbox of its own: the result, and what it drew.
local function run(job, opts)
  opts.language = job.language
  opts.timeout = opts.timeout or job.timeout
  opts.stdin = opts.stdin or job.stdin
  opts.max_output = LIMITS.output
  opts.limits = { memory = LIMITS.roomy[job.language] or LIMITS.memory }
  return moonsand.with({ limits = LIMITS.sandbox }, function(box)
    local r, message, code, detail = box:run_code(job.code, opts)
    if not r then
      return nil, message, code, detail
    end
    return r, pictures(box)
  end)
end

function M.execute()
  local job = read_job()
  local r, files, code = run(job, {})
  if not r then
    return refuse(STATUS[code] or 500, code, files)
  end
  local answer = summary(r)
  answer.stdout, answer.stderr = text(r.stdout), text(r.stderr)
  answer.files = files[1] and files or nil -- an empty list would look like an object
  ngx.say(cjson.encode(answer))
end

local FLOOD = {}

--- What both kinds of streams share: `send(type, fields)` for all that happens.
local function stream(job, opts, send)
  local left = LIMITS.output
  for _, name in ipairs { "stdout", "stderr" } do
    local decode = decoder()
    opts["on_" .. name] = function(data)
      left = left - #data
      if left < 0 then
        error(FLOOD, 0) -- ends the program
      end
      send(name, { data = decode(data) })
    end
  end
  local ok, r, files, code = pcall(run, job, opts)
  if ok and r then
    for _, file in ipairs(files) do
      send("file", file)
    end
    send("end", summary(r))
  elseif ok then
    send("end", { ok = false, error = code, message = text(files) })
  elseif r == FLOOD then
    send("end", { ok = false, error = "output_limit", message = "too much output: it was ended" })
  else
    error(r, 0) -- the client is gone
  end
end

function M.stream()
  local job = read_job()
  ngx.header.content_type = "text/event-stream"
  ngx.header.cache_control = "no-store"
  ngx.header["X-Accel-Buffering"] = "no"
  stream(job, {}, function(kind, fields)
    assert(ngx.print("event: ", kind, "\ndata: ", cjson.encode(fields), "\n\n"))
    assert(ngx.flush(true))
  end)
end

function M.languages()
  M.known = M.known or moonsand.with({}, function(box)
    return box:languages { timeout = 20 }
  end)
  if not M.known then
    return refuse(503, "unavailable", "no sandbox could be made")
  end
  ngx.say(cjson.encode(M.known))
end

-- ---------------------------------------------------------------- a person at the keyboard

local found, websocket = pcall(require, "resty.websocket.server")
if not found then
  websocket = require "nginx.websocket.server" -- Debian's place for it
end

--- What a person types, one piece after the other, for a program's stdin.
local function keyboard()
  local pieces, size, ended = {}, 0, false
  local typed = require("ngx.semaphore").new(0)
  local self = {}
  function self.type(data)
    if size + #data > LIMITS.stdin then
      return false
    end
    size = size + #data
    pieces[#pieces + 1] = data
    typed:post(1)
    return true
  end
  function self.close()
    ended = true
    typed:post(1)
  end
  function self.read()
    while not pieces[1] do
      if ended then
        return nil
      end
      typed:wait(LIMITS.session)
    end
    local data = table.remove(pieces, 1)
    size = size - #data
    return data
  end
  return self
end

--- Only pages of ours may talk to us.
local function same_origin()
  local origin = ngx.var.http_origin
  return not origin or origin:gsub("^%a+://", "") == ngx.var.http_host
end

function M.session()
  if not same_origin() then
    return refuse(403, "invalid", "a page from elsewhere")
  end
  local socket, why = websocket:new {
    timeout = LIMITS.session * 1000,
    max_payload_len = LIMITS.frame,
  }
  if not socket then
    return refuse(400, "invalid", "no WebSocket: " .. tostring(why))
  end
  local writing = moonsand.semaphore(1)
  local function send(kind, fields)
    fields.type = kind
    return writing:with(function()
      assert(socket:send_text(cjson.encode(fields)))
    end)
  end

  local going -- { keyboard, token } of the program that runs
  local function begin(message)
    message.type = nil
    local job, wrong = check(message)
    if going or not job then
      send("end", { ok = false, error = "invalid", message = wrong or "one at a time" })
      return
    end
    going = { keyboard = keyboard(), token = moonsand.token() }
    ngx.thread.spawn(function()
      local opts = { stdin = going.keyboard.read, cancel = going.token, timeout = LIMITS.session }
      local ok, wrong_too = pcall(stream, job, opts, function(kind, fields)
        if kind == "end" then
          going.keyboard.close()
          going = nil
        end
        return send(kind, fields)
      end)
      if not ok then
        ngx.log(ngx.INFO, "a session broke: ", wrong_too)
        ngx.exit(ngx.HTTP_CLOSE)
      end
    end)
  end

  local handlers = {
    run = begin,
    stdin = function(message)
      if going and type(message.data) == "string" and not going.keyboard.type(message.data) then
        send("stderr", { data = "(the program does not read: too much input)\n" })
      end
    end,
    eof = function()
      if going then
        going.keyboard.close()
      end
    end,
    stop = function()
      if going then
        going.token:cancel("stopped")
      end
    end,
  }

  while true do
    local data, kind = socket:recv_frame()
    if kind == "text" then
      local message = cjson.decode(data)
      local handler = type(message) == "table" and handlers[message.type]
      if not handler then
        break
      end
      handler(message)
    elseif kind == "ping" then
      writing:with(function()
        socket:send_pong(data)
      end)
    elseif kind ~= "pong" then
      break -- closed, or nothing said for too long
    end
  end
  if going then
    going.token:cancel "the page was closed"
    going.keyboard.close()
  end
  socket:send_close()
end

return M
