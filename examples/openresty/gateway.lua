--- Runs code for people, over HTTP. Every run has a sandbox of its own, which is gone with it.
---
---   POST /execute   { language, code, stdin?, timeout? }   the whole result as JSON
---   POST /stream    the same                               events as they come (text/event-stream)
---   GET  /session   a WebSocket for one run: { type = "run", language, code }, then "stdin" (data),
---                   "eof", "stop"; back come "stdout", "stderr" (data), "file" (name, mime, data
---                   in base64), and at last "end"
---   GET  /languages what is there
---
--- How many requests there may be, how large and how fast, is said in nginx.conf; what one of them
--- may cost, here.

local cjson = require "cjson.safe"
local moonsand = require "moonsand"
local semaphore = require "ngx.semaphore"
local text = require "text"

local found, websocket = pcall(require, "resty.websocket.server")
if not found then
  websocket = require "nginx.websocket.server" -- Debian's place for it
end

local M = {}

local LIMITS = {
  sandbox = { disk = "256M", inodes = 10000, processes = 64, open_files = 256, cpu_time = 30 },
  memory = "1G", -- of addresses, a process
  roomy = { node = "16G", typescript = "16G", java = "16G", go = "16G" }, -- reserve more than they use
  timeout = { usual = 10, most = 60 }, -- seconds, for /execute and /stream
  session = 120, -- seconds, for a program that a person talks to
  first_message = 10, -- seconds, until a WebSocket has to say what it wants
  sending = 10, -- seconds, for a client that does not read
  output = 1024 * 1024, -- bytes, of each stream
  piece = 64 * 1024, -- of output, at once
  code = 64 * 1024,
  stdin = 64 * 1024,
  message = 1024 * 1024, -- of a WebSocket, in both directions: a picture as base64
  files = 4, -- pictures that are sent back
  file = 512 * 1024,
}

local PICTURES = { png = "image/png", svg = "image/svg+xml", jpg = "image/jpeg",
  jpeg = "image/jpeg", gif = "image/gif", webp = "image/webp" }

-- ---------------------------------------------------------------- requests

local function refuse(status, code, message)
  ngx.status = status
  ngx.header.content_type = "application/json"
  ngx.say(cjson.encode { error = code, message = text.clean(message) })
  return ngx.exit(ngx.HTTP_OK)
end

local STATUS = { invalid = 400, unsupported = 400, unavailable = 503 }

--- Tells a client that nothing was run, and the log if that is not the client's doing.
local function refuse_failure(message, code, detail)
  local status = detail.what == "language" and 400 or STATUS[code] or 500
  if status >= 500 then
    ngx.log(ngx.WARN, "nothing was run: ", message)
  end
  return refuse(status, code, message)
end

--- Only pages of ours may ask: a page from elsewhere must not use its readers' gateways.
local function check_origin()
  local origin = ngx.var.http_origin
  if origin and origin:gsub("^%a+://", "") ~= ngx.var.http_host then
    return refuse(403, "forbidden", "a page from elsewhere")
  end
end

local FIELDS = { language = true, code = true, stdin = true, timeout = true }

--- Checks what is to be run: the job, or nil and what is wrong with it.
local function check(fields)
  if type(fields) ~= "table" then
    return nil, "a JSON object is needed"
  end
  for name, value in pairs(fields) do
    if not FIELDS[name] then
      return nil, "unknown field: " .. tostring(name)
    elseif value == cjson.null then
      fields[name] = nil
    end
  end
  local stdin, timeout = fields.stdin or "", fields.timeout or LIMITS.timeout.usual
  if type(fields.language) ~= "string" or #fields.language > 40 then
    return nil, "language: a name is needed"
  elseif type(fields.code) ~= "string" or #fields.code > LIMITS.code then
    return nil, ("code: text of at most %d bytes is needed"):format(LIMITS.code)
  elseif type(stdin) ~= "string" or #stdin > LIMITS.stdin then
    return nil, ("stdin: text of at most %d bytes"):format(LIMITS.stdin)
  elseif type(timeout) ~= "number" or not (timeout > 0 and timeout <= LIMITS.timeout.most) then
    return nil, ("timeout: seconds, at most %d"):format(LIMITS.timeout.most)
  end
  return { language = fields.language, code = fields.code, stdin = stdin, timeout = timeout }
end

local function read_job()
  if ngx.req.get_method() ~= "POST" then
    ngx.header.allow = "POST"
    return refuse(405, "invalid", "POST it")
  end
  check_origin()
  ngx.req.read_body()
  local job, why = check(cjson.decode(ngx.req.get_body_data() or ""))
  return job or refuse(400, "invalid", why)
end

-- ---------------------------------------------------------------- running

--- The pictures that a program left where it ran.
local function pictures(box)
  local list = {}
  for _, entry in ipairs(box.files:list(".", { limit = 1000, timeout = 5 }) or {}) do
    local mime = PICTURES[(entry.name:match "%.(%w+)$" or ""):lower()]
    if mime and entry.type == "file" and entry.size <= LIMITS.file and #list < LIMITS.files then
      local data = box.files:read(entry.path, { max = LIMITS.file, timeout = 5 })
      if data then
        list[#list + 1] =
          { name = text.clean(entry.name), mime = mime, data = ngx.encode_base64(data) }
      end
    end
  end
  return list
end

local function summary(r)
  return { ok = r.ok, status = r.status, exit_code = r.exit_code, signal = r.signal,
    limit = r.limit, duration = r.duration, stage = r.stage }
end

--- Runs a job in a sandbox of its own: the result, and what it drew.
local function run(job, opts)
  opts.language = job.language
  opts.timeout = opts.timeout or job.timeout
  opts.stdin = opts.stdin or job.stdin
  opts.max_output, opts.on_limit = LIMITS.output, "kill"
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
  local r, files, code, detail = run(job, {})
  if not r then
    return refuse_failure(files, code, detail)
  end
  local answer = summary(r)
  answer.stdout, answer.stderr = text.clean(r.stdout), text.clean(r.stderr)
  answer.files = files[1] and files or nil -- an empty list would look like an object
  ngx.say(cjson.encode(answer))
end

--- Runs a job and sends what happens: true, or why nothing ran to its end. `send(kind, fields)`
--- gives nothing when the client is gone; then the program has nobody to run for.
local function stream(job, opts, send)
  opts.cancel = opts.cancel or moonsand.token()
  local function tell(kind, fields)
    if not opts.cancel:cancelled() and not send(kind, fields) then
      opts.cancel:cancel "the client is gone"
    end
  end
  local decoders = {}
  for _, name in ipairs { "stdout", "stderr" } do
    local decode, left = text.decoder(), LIMITS.output
    decoders[name] = decode
    opts["on_" .. name] = function(data)
      for from = 1, math.min(#data, left), LIMITS.piece do
        local to = math.min(from + LIMITS.piece - 1, left)
        tell(name, { data = decode(data:sub(from, to)) })
      end
      left = math.max(left - #data, 0)
    end
  end
  local r, files, code, detail = run(job, opts)
  for name, decode in pairs(decoders) do
    local rest = decode(nil)
    if rest ~= "" then
      tell(name, { data = rest })
    end
  end
  if not r then
    return nil, files, code, detail
  end
  for _, file in ipairs(files) do
    tell("file", file)
  end
  tell("end", summary(r))
  return true
end

local function failure(message, code)
  return { ok = false, error = code, message = text.clean(message) }
end

function M.stream()
  local job = read_job()
  ngx.header.content_type = "text/event-stream"
  ngx.header.cache_control = "no-store"
  ngx.header["X-Accel-Buffering"] = "no"
  local function send(kind, fields)
    return ngx.print("event: ", kind, "\ndata: ", cjson.encode(fields), "\n\n") and ngx.flush(true)
  end
  local ok, message, code, detail = stream(job, {}, send)
  if not ok and not ngx.headers_sent then
    return refuse_failure(message, code, detail)
  elseif not ok then
    send("end", failure(message, code))
  end
end

function M.languages()
  if not M.known then
    local list, message, code, detail = moonsand.with({}, function(box)
      return box:languages { timeout = 20 }
    end)
    if not list then
      return refuse_failure(message, code, detail)
    end
    M.known = cjson.encode(list)
  end
  ngx.say(M.known)
end

-- ---------------------------------------------------------------- a person at the keyboard

--- What a person types, one piece after the other, for a program's stdin.
local function keyboard()
  local pieces, size, ended = {}, 0, false
  local typed = semaphore.new(0)
  local self = {}

  --- False when the program has left too much of it unread.
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
    while not pieces[1] and not ended do
      typed:wait(LIMITS.session)
    end
    local data = table.remove(pieces, 1)
    size = size - #(data or "")
    return data
  end

  return self
end

--- A WebSocket of JSON messages that two coroutines may write to.
local function channel(socket)
  local writing = moonsand.semaphore(1)
  local self = {}

  function self.send(kind, fields)
    fields.type = kind
    return writing:with(function()
      return socket:send_text(cjson.encode(fields))
    end)
  end

  --- The next message; nil when the page is gone, or has said what is none.
  function self.receive()
    local pieces, size = {}, 0
    while true do
      local data, kind, more = socket:recv_frame()
      if kind == "text" or kind == "continuation" then
        size = size + #data
        pieces[#pieces + 1] = data
        if size > LIMITS.message then
          return nil
        elseif more ~= "again" then
          local message = cjson.decode(table.concat(pieces))
          return type(message) == "table" and message or nil
        end
      elseif kind == "ping" then
        writing:with(function()
          socket:send_pong(data)
        end)
      elseif kind ~= "pong" then
        return nil
      end
    end
  end

  return self
end

--- Does what the page says, until it is gone.
local function obey(page, keys, token)
  local handlers = {
    stdin = function(data)
      if type(data) == "string" and not keys.type(data) then
        page.send("stderr", { data = "(the program does not read: this line is lost)\n" })
      end
    end,
    eof = keys.close,
    stop = function()
      token:cancel "stopped"
    end,
  }
  for message in page.receive do
    local handler = handlers[message.type]
    if not handler then
      break
    end
    handler(message.data)
  end
  token:cancel "the page is gone"
end

function M.session()
  check_origin()
  local socket, why = websocket:new { max_payload_len = LIMITS.message }
  if not socket then
    return refuse(400, "invalid", "no WebSocket: " .. tostring(why))
  end
  local sending = LIMITS.sending * 1000
  socket.sock:settimeouts(0, sending, LIMITS.first_message * 1000)
  local page = channel(socket)
  local fields = page.receive() or {}
  local wanted = fields.type == "run"
  fields.type = nil
  local job, wrong = check(fields)
  if wanted and job then
    socket.sock:settimeouts(0, sending, (LIMITS.session + LIMITS.timeout.most) * 1000)
    local keys, token = keyboard(), moonsand.token()
    ngx.thread.spawn(obey, page, keys, token)
    local ok, message, code = stream(job,
      { stdin = keys.read, cancel = token, timeout = LIMITS.session }, page.send)
    keys.close()
    if not ok then
      page.send("end", failure(message, code))
    end
  else
    page.send("end", failure(wrong or "'run' comes first", "invalid"))
  end
  socket:send_close(1000)
  return ngx.exit(ngx.OK) -- ends the thread that listens
end

return M
