-- The fake OpenSandbox is judged by others before anything is judged by it: by the official client,
-- by another WebSocket, by curl, and by what was seen of the real daemon.
local cjson = require "cjson"
local helper = require "helper"
local support = require "support.init"
local opensandbox = require "support.opensandbox"

local FAKES = "spec/fakes/opensandbox/"
local MODULES = "build/npm/node_modules/"

local CREATE = {
  image = { uri = "debian:12" },
  entrypoint = { "tail", "-f", "/dev/null" },
  resourceLimits = { cpu = "1", memory = "1Gi" },
}

describe("the fake OpenSandbox", function()
  helper.deadline(90)

  local fake, box

  --- A sandbox whose daemon answers: { id, path, headers, root }.
  local function create(opts)
    local request = {}
    for _, values in ipairs { CREATE, opts or {} } do
      for name, value in pairs(values) do
        request[name] = value
      end
    end
    local key = { ["OPEN-SANDBOX-API-KEY"] = fake.key }
    local answer = fake:curl("POST", "/v1/sandboxes", { json = request, headers = key })
    assert.equal(202, answer.status, answer.body)
    local made = { id = cjson.decode(answer.body).id }
    answer = fake:curl("GET", "/v1/sandboxes/" .. made.id .. "/endpoints/44772", { headers = key })
    local endpoint = cjson.decode(answer.body)
    made.path, made.headers = endpoint.endpoint:match "(/.*)", endpoint.headers
    support.eventually(20, "the daemon did not answer", function()
      return fake:curl("GET", made.path .. "/ping", { headers = made.headers }).status == 200
    end)
    for _, one in ipairs(fake:sandboxes()) do
      if one.id == made.id then
        made.root = one.root
      end
    end
    return made
  end

  --- One request to the daemon of `box`.
  local function call(method, path, opts)
    opts = opts or {}
    opts.headers = opts.headers or box.headers
    return fake:curl(method, box.path .. path, opts)
  end

  --- The events of a stream, without those that only keep it alive.
  local function events(answer)
    local found = {}
    for line in answer.body:gmatch "[^\n]+" do
      local event = cjson.decode((line:gsub("^data: ", "")))
      if event.type ~= "ping" then
        found[#found + 1] = event
      end
    end
    return found
  end

  --- A stream's events in short: "stdout:text", "error:3", "execution_complete".
  local function short(answer)
    local words = {}
    for i, event in ipairs(events(answer)) do
      local text = event.text or (event.results and event.results.text)
        or (type(event.error) == "table" and event.error.evalue) or event.message
      words[i] = text and event.type ~= "init" and ("%s:%s"):format(event.type or event.code, text)
        or event.type
    end
    return words
  end

  local function run(command, opts)
    opts = opts or {}
    opts.json = { command = command }
    return call("POST", "/command", opts)
  end

  setup(function()
    fake = opensandbox.start()
    box = create()
    fake:set { grace = 0 }
  end)

  teardown(function()
    fake:stop()
  end)

  before_each(function()
    fake:clear()
  end)

  local function lines(text)
    local found = {}
    for line in text:gmatch "[^\n]+" do
      found[#found + 1] = line
    end
    return found
  end

  --- Runs a program of the fake's directory with Node: it says "ok NAME" for each step.
  local function drive(program, pattern, arguments)
    local steps = {}
    for name in support.read(FAKES .. program):gmatch(pattern) do
      steps[#steps + 1] = "ok " .. name
    end
    assert.is_true(#steps > 2)
    local output, status = support.run(("node --no-warnings %s%s %s"):format(FAKES, program,
      arguments))
    assert.same(steps, lines(output))
    assert.equal(0, status)
  end

  describe("and the official client agree", function()
    local function official(way, arguments, settings)
      local other = opensandbox.start(arguments)
      finally(function()
        other:stop()
      end)
      other:set(settings)
      drive("client.mjs", '\nstep%("(.-)"', ("%s@alibaba-group/opensandbox/dist/index.js %s %s %s")
        :format(MODULES, other.domain, other.key, way))
      assert.same({}, other:violations())
      assert.same({}, other:sandboxes())
      return other:requests()
    end

    --- The first request of a kind.
    local function first(requests, path)
      for _, request in ipairs(requests) do
        if request.path == path then
          return request
        end
      end
      error("no request for " .. path)
    end

    it("directly, with the real daemon's framing and end", function()
      local requests = official("direct", "", { framing = "bare", grace = 0.3 })
      -- what was recorded of this client with the real daemon
      assert.same({ command = "echo a; echo; printf b; echo e >&2; echo $GREETING $X", cwd = "/tmp",
        background = false, timeout = 30000, envs = { X = "y" } },
        cjson.decode(first(requests, "/command").body))
      local upload = first(requests, "/files/upload").body:gsub("\r\n", "\n")
        :gsub("%-%-%-%-%-%-formdata%-undici%-%d+", "BOUNDARY")
      assert.equal([[
BOUNDARY
Content-Disposition: form-data; name="metadata"; filename="metadata"
Content-Type: application/json

{"path":"/workspace/d/text.txt","mode":640}
BOUNDARY
Content-Disposition: form-data; name="file"; filename="text.txt"
Content-Type: text/plain; charset=utf-8

one
two
three

BOUNDARY--]], (upload:gsub("%s+$", "")))
    end)

    it("through the server's proxy, with the standard's framing", function()
      official("proxy", "--no-execd-token", { framing = "sse", grace = 0 })
    end)

    it("through a gateway that wants a header", function()
      official("direct", "--ingress header", { framing = "bare", grace = 0 })
    end)
  end)

  it("and another's WebSocket agree", function()
    drive("terminal.mjs", '\n  async "(.-)"', ("%sundici/index.js %s %s"):format(MODULES,
      fake.url .. box.path, support.quote(cjson.encode(box.headers))))
    assert.same({}, fake:violations())
  end)

  describe("answers as the real daemon did:", function()
    local FAILED = "invalid request, validation error Key: 'RunCommandRequest.%s' Error:Field "
      .. "validation for '%s' failed on the '%s' tag"

    --- method, path, body; status, code, message
    local refused = {
      { "GET", "/command/status/zzz", nil, 404, "INVALID_REQUEST_BODY", "command not found: zzz" },
      { "GET", "/command/zzz/logs", nil, 400, "INVALID_REQUEST_BODY", "command not found: zzz" },
      { "DELETE", "/command?id=zzz", nil, 500, "RUNTIME_ERROR",
        "error interruptting code context. no such session" },
      { "POST", "/command", { command = "true", timeout = -1 }, 400, "INVALID_REQUEST_BODY",
        FAILED:format("TimeoutMs", "TimeoutMs", "gte") },
      { "POST", "/command", { command = "" }, 400, "INVALID_REQUEST_BODY",
        FAILED:format("Command", "Command", "required") },
      { "POST", "/command", { command = "id", gid = 0 }, 400, "INVALID_REQUEST_BODY",
        "invalid request, validation error uid is required when gid is provided" },
      { "POST", "/command", { command = "id", cwd = "/nope" }, 400, "INVALID_REQUEST_BODY",
        "invalid request, validation error working directory does not exist: /nope: "
        .. "stat /nope: no such file or directory" },
      { "POST", "/session/zzz/run", { command = "ls" }, 500, "RUNTIME_ERROR",
        "error running in session. context not found" },
      { "DELETE", "/session/zzz", nil, 404, "CONTEXT_NOT_FOUND", "session zzz not found" },
      { "POST", "/code", { code = "1", context = { language = "ruby" } }, 500, "RUNTIME_ERROR",
        "error running codes unknown language: ruby" },
      { "POST", "/code", { code = "1", context = { id = "nope", language = "python" } }, 500,
        "RUNTIME_ERROR", "error running codes context not found" },
      { "GET", "/code/contexts?language=sql", nil, 500, "RUNTIME_ERROR",
        "unsupported language context operation: sql" },
      { "GET", "/code/contexts/nope", nil, 404, "CONTEXT_NOT_FOUND", "context nope not found" },
      { "GET", "/files/info?path=/none", nil, 404, "FILE_NOT_FOUND", "file not found. "
        .. "file not found: /none: lstat /none: no such file or directory" },
      { "GET", "/files/download?path=/none", nil, 404, "FILE_NOT_FOUND",
        "file not found. open /none: no such file or directory" },
      { "GET", "/files/download?path=/%24weird.txt", nil, 500, "RUNTIME_ERROR", "error resolving "
        .. "file path: /$weird.txt. path references undefined environment variables: weird" },
      { "GET", "/directories/list?path=/none", nil, 404, "FILE_NOT_FOUND",
        "file not found. lstat /none: no such file or directory" },
      { "GET", "/directories/list?path=/bin", nil, 400, "INVALID_REQUEST_BODY",
        "path is a symbolic link, refusing to traverse: /bin" },
      { "GET", "/directories/list?path=/etc/passwd", nil, 400, "INVALID_REQUEST_BODY",
        "path is not a directory: /etc/passwd" },
      { "GET", "/files/search?path=/tmp&pattern=%5B", nil, 500, "RUNTIME_ERROR",
        "error searching files. invalid pattern [: syntax error in pattern" },
      { "POST", "/files/permissions", { ["/tmp"] = { mode = 493 } }, 500, "RUNTIME_ERROR",
        'error changing permissions for /tmp. strconv.ParseUint: parsing "493": invalid syntax' },
      { "POST", "/files/permissions", { ["/none"] = { mode = 640 } }, 500, "RUNTIME_ERROR",
        "error changing permissions for /none. chmod /none: no such file or directory" },
      { "POST", "/files/mv", { { src = "/none", dest = "/n" } }, 404, "FILE_NOT_FOUND", "file not "
        .. "found. source path not found: /none: stat /none: no such file or directory" },
      { "POST", "/files/replace", { ["/none"] = { old = "a", new = "b" } }, 404, "FILE_NOT_FOUND",
        "file not found. stat /none: no such file or directory" },
      { "DELETE", "/files?path=/tmp", nil, 500, "RUNTIME_ERROR",
        "error removing file /tmp. path is a directory: /tmp" },
      { "GET", "/pty/none", nil, 404, "CONTEXT_NOT_FOUND", "pty session none not found" },
    }
    for _, row in ipairs(refused) do
      it(("%s %s %s"):format(row[1], row[2], row[3] and cjson.encode(row[3]) or ""), function()
        local answer = call(row[1], row[2], { json = row[3] })
        assert.same({ row[4], { code = row[5], message = row[6] } },
          { answer.status, cjson.decode(answer.body) })
        assert.equal("application/json; charset=utf-8", answer.headers["content-type"])
      end)
    end

    it("no token, or a wrong one", function()
      for _, headers in ipairs { {}, { ["X-EXECD-ACCESS-TOKEN"] = "wrong" } } do
        local answer = call("GET", "/ping", { headers = headers })
        assert.same({ 401,
          '{"error":"Unauthorized: invalid or missing header X-EXECD-ACCESS-TOKEN"}' },
          { answer.status, answer.body })
      end
    end)

    it("a command's lines, in order for each stream, without their ends", function()
      assert.same({ "init", "stdout:out", "stdout:\n", "stdout:b<&>", "stdout:c", "stdout:d",
        "execution_complete" }, short(run "printf 'out\\n\\nb<&>\\rc\\r\\nd'"))
      assert.same({ "init", "stdout:\239\191\189\239\191\189", "execution_complete" },
        short(run "printf '\\377\\376\\n'"))
    end)

    it("a command that cannot be started", function()
      local body = support.write(support.directory() .. "/long.json",
        cjson.encode { command = ":" .. (" "):rep(200000) })
      local answer = call("POST", "/command",
        { more = "-H 'Content-Type: application/json' --data-binary @" .. body })
      assert.same({ "init", "error:fork/exec /usr/bin/bash: argument list too long" },
        short(answer))
    end)

    it("an error in the middle of a stream: a bare object at the end", function()
      local id = cjson.decode(call("POST", "/session").body).session_id
      local answer = call("POST", "/session/" .. id .. "/run",
        { json = { command = "exec sleep 9", timeout = 200 } })
      assert.equal(200, answer.status)
      assert.is_truthy(answer.body:find('{"code":"RUNTIME_ERROR","message":"error running in '
        .. 'session. timeout after 200ms"}', 1, true))
      assert.is_nil(answer.body:find "\n$")
    end)

    it("a command goes on when its client leaves, and is ended by DELETE", function()
      local answer = run("echo $$; exec sleep 60", { seconds = 2.5 })
      assert.equal(28, answer.problem)
      local id = events(answer)[1].text
      local status = cjson.decode(call("GET", "/command/status/" .. id).body)
      assert.is_true(status.running)
      assert.equal(200, call("DELETE", "/command?id=" .. id).status)
      status = cjson.decode(call("GET", "/command/status/" .. id).body)
      assert.same({ false, -1, "signal: terminated" },
        { status.running, status.exit_code, status.error })
    end)

    it("downloads: ranges, no such range, a directory", function()
      support.write(box.root .. "/tmp/a.txt", "hello execd\n")
      for range, expected in pairs { ["0-4"] = "hello", ["-3"] = "cd\n", ["6-"] = "execd\n",
        ["0-1,3-4"] = "he" } do
        local answer = call("GET", "/files/download?path=/tmp/a.txt", { more = "-r " .. range })
        assert.same({ 206, expected }, { answer.status, answer.body })
      end
      local answer = call("GET", "/files/download?path=/tmp/a.txt", { more = "-r 100-200" })
      assert.same({ 416, "bytes */12", "invalid range: failed to overlap\n" },
        { answer.status, answer.headers["content-range"], answer.body })
      answer = call("GET", "/files/download?path=/tmp/a.txt", { more = "-H 'Range: bytes=zz'" })
      assert.same({ 416, "12", "", 18 },
        { answer.status, answer.headers["content-length"], answer.body, answer.problem })
      answer = call("GET", "/files/download?path=/tmp")
      assert.same({ 200, "9223372036854775807", 18 },
        { answer.status, answer.headers["content-length"], answer.problem })
    end)

    it("an upload whose metadata has no file name, and one of many files", function()
      local file = support.write(support.directory() .. "/up.txt", "up\n")
      local form = [[-F 'metadata={"path":"/workspace/%s","mode":640}%s' ]]
      local answer = call("POST", "/files/upload",
        { more = form:format("n", "") .. "-F file=@" .. file })
      assert.same({ 400, '{"code":"INVALID_FILE_METADATA","message":"metadata file is missing"}' },
        { answer.status, answer.body })
      local named = ";filename=metadata;type=application/json"
      answer = call("POST", "/files/upload", { more = form:format("new/1", named)
        .. form:format("new/2", named) .. ("-F file=@%s -F file=@%s"):format(file, file) })
      assert.same({ 200, "" }, { answer.status, answer.body })
      assert.equal("up\n", support.read(box.root .. "/workspace/new/2"))
      answer = call("POST", "/files/upload", { more = form:format("n", named)
        .. ("-F file=@%s -F file=@%s"):format(file, file) })
      assert.equal('{"code":"INVALID_FILE","message":"metadata and file count mismatch: 1 vs 2"}',
        answer.body)
    end)

    it("metrics, again and again", function()
      local answer = call("GET", "/metrics/watch", { seconds = 3.5 })
      assert.equal(28, answer.problem)
      local first = cjson.decode(lines(answer.body)[1])
      assert.is_true(first.cpu_count >= 1 and first.mem_total_mib > first.mem_used_mib)
      assert.is_nil(answer.body:find "\n\n")
    end)
  end)

  describe("runs code", function()
    local function code(text, context, opts)
      opts = opts or {}
      opts.json = { code = text, context = context }
      return call("POST", "/code", opts)
    end

    local function python()
      local answer = call("POST", "/code/context", { json = { language = "python", cwd = "/tmp" } })
      local context = cjson.decode(answer.body)
      assert.same({ 200, "python", "/tmp" }, { answer.status, context.language, context.cwd })
      return { id = context.id, language = "python" }
    end

    it("in a context that keeps what was made, told complete too early", function()
      local context = python()
      local first = code("import sys; print('hello'); print('e', file=sys.stderr)\nx=41\nx+1",
        context)
      assert.same({ "init", "stdout:hello\n", "stderr:e\n", "execution_count", "result:42",
        "execution_complete" }, short(first))
      assert.same({ "init", "execution_complete", "execution_count", "result:82" },
        short(code("x * 2", context)))
      assert.same({ "init", "execution_complete", "status:error", "error:division by zero" },
        short(code("1/0", context)))
      assert.same({ "init", "execution_complete", "stdout:/tmp\n" },
        short(code("import os; print(os.getcwd())", context)))
    end)

    it("in one context once at a time, until it is interrupted", function()
      local context = python()
      assert.equal(28, code("import time; time.sleep(60)", context, { seconds = 2.5 }).problem)
      assert.same({ "init", "RUNTIME_ERROR:error running codes session is busy" },
        short(code("1", context)))
      assert.equal(200, call("DELETE", "/code?id=" .. context.id).status)
      support.eventually(20, "the context stayed busy", function()
        return short(code("6*7", context))[4] == "result:42"
      end)
    end)

    it("in a default context, and in the shell without a language", function()
      local first = events(code("kept = 1", { language = "python" }))[1].text
      assert.equal(first, events(code("kept", { language = "python" }))[1].text)
      assert.same({ "init", "stdout:hi", "error:2" }, short(code "echo hi; exit 2"))
      assert.equal(200, call("DELETE", "/code/contexts?language=python").status)
      assert.equal("[]", call("GET", "/code/contexts?language=python").body)
    end)

    it("hangs where the real daemon has no kernel, as that does", function()
      local answer = call("POST", "/code/context", { json = { language = "java" }, seconds = 0.5 })
      assert.same({ 28 }, { answer.problem, answer.status })
    end)
  end)

  describe("keeps a sandbox", function()
    local function server(method, path, value)
      local answer = fake:curl(method, path,
        { json = value, headers = { ["OPEN-SANDBOX-API-KEY"] = fake.key } })
      return answer.status, answer.body ~= "" and cjson.decode(answer.body) or nil
    end

    it("until its time is over, unless that is moved", function()
      local made = create { timeout = 60 }
      local function renew(seconds)
        return server("POST", "/v1/sandboxes/" .. made.id .. "/renew-expiration",
          { expiresAt = os.date("!%Y-%m-%dT%H:%M:%SZ", os.time() + seconds) })
      end
      assert.equal(400, (renew(-10)))
      assert.equal(200, (renew(4)))
      support.eventually(10, "it did not end", function()
        return server("GET", "/v1/sandboxes/" .. made.id) == 404
      end)
      support.eventually(20, "its files stayed", function()
        return not support.exists(made.root)
      end)
    end)

    it("as long as its entry point runs", function()
      local made = create { entrypoint = { "sh", "-c",
        "while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 3" } }
      support.write(made.root .. "/tmp/end", "")
      support.eventually(20, "it did not fail", function()
        local _, value = server("GET", "/v1/sandboxes/" .. made.id)
        return value.status.state == "Failed"
      end)
      assert.equal(502, fake:curl("GET", made.path .. "/ping", { headers = made.headers }).status)
      assert.equal(204, (server("DELETE", "/v1/sandboxes/" .. made.id)))
    end)

    it("with volumes, environment and files of its own", function()
      local host = support.directory() .. "/volume"
      support.run("mkdir -p " .. host)
      support.write(host .. "/in", "from the host")
      local made = create { env = { A = "b c" }, volumes = {
        { name = "h", mountPath = "/mnt/h", host = { path = host }, readOnly = true },
        { name = "p", mountPath = "/mnt/p", pvc = { claimName = "claim" } },
      } }
      local answer = fake:curl("POST", made.path .. "/command", { headers = made.headers, json = {
        command = "cat /mnt/h/in; echo; touch /mnt/h/x || echo no; echo $A; echo y >/mnt/p/y; "
          .. "test -e /tmp/a.txt || echo apart" } })
      local told = {} -- each stream is in order; the two of them are not
      for _, event in ipairs(short(answer)) do
        told[#told + 1] = event:match "^stdout:(.*)"
      end
      assert.same({ "from the host", "no", "b c", "apart" }, told)
      assert.equal(204, (server("DELETE", "/v1/sandboxes/" .. made.id)))
      assert.is_false(support.exists(made.root))
    end)

    it("that a request without its headers does not reach", function()
      local made = create { secureAccess = true }
      local headers = { ["X-EXECD-ACCESS-TOKEN"] = made.headers["X-EXECD-ACCESS-TOKEN"] }
      assert.equal(401, fake:curl("GET", made.path .. "/ping", { headers = headers }).status)
      assert.equal(204, (server("DELETE", "/v1/sandboxes/" .. made.id)))
    end)

    it("and refuses what the server refuses", function()
      local function create_status(changes)
        local request = {}
        for _, values in ipairs { CREATE, changes } do
          for name, value in pairs(values) do
            request[name] = value
          end
        end
        local status, value = server("POST", "/v1/sandboxes", request)
        return status, value.code or value.detail
      end
      local rows = {
        { { image = { uri = "missing/image" } }, 500, "DOCKER::SANDBOX_IMAGE_PULL_FAILED" },
        { { metadata = { ["opensandbox.io/x"] = "y" } }, 400, "SANDBOX::INVALID_METADATA_LABEL" },
        { { snapshotId = "x", image = cjson.null }, 422 },
        { { timeout = 10 }, 422 },
        { { resourceLimits = {} }, 422 },
        { { volumes = { { name = "v", mountPath = "/v", host = { path = "/none" } } } }, 400,
          "VOLUME::HOST_PATH_NOT_FOUND" },
        { { extensions = { poolRef = "p" } }, 400, "SANDBOX::UNSUPPORTED_POOL_REF" },
      }
      for i, row in ipairs(rows) do
        local status, code = create_status(row[1])
        assert.equal(row[2], status, "row " .. i)
        assert.is_true(code == row[3] or type(code) == "table")
      end
      assert.equal(404, (server("GET", "/v1/sandboxes/none")))
      assert.equal(401, fake:curl("GET", "/v1/sandboxes").status)
    end)
  end)

  describe("is loud about", function()
    local wrong = {
      ["a field that there is not"] = { "POST", "/command", { command = "true", comand = "x" } },
      ["a field of the wrong type"] = { "POST", "/command", { command = "true", timeout = "1" } },
      ["a query that there is not"] = { "GET", "/files/info?path=/tmp&paht=x" },
      ["a query that is missing"] = { "GET", "/files/search" },
      ["a call that there is not"] = { "POST", "/files/info" },
      ["a body where none belongs"] = { "GET", "/ping", { x = 1 } },
    }
    for name, row in pairs(wrong) do
      it(name, function()
        local answer = call(row[1], row[2], { json = row[3] })
        assert.equal(400, answer.status)
        assert.equal(1, #fake:violations())
      end)
    end

    it("the same at the server, with its 422", function()
      local answer = fake:curl("POST", "/v1/sandboxes", { json = { imagee = {} },
        headers = { ["OPEN-SANDBOX-API-KEY"] = fake.key } })
      assert.equal(422, answer.status)
      assert.is_table(cjson.decode(answer.body).detail)
      assert.equal(1, #fake:violations())
    end)
  end)

  describe("does faults:", function()
    local PING = { service = "execd", method = "GET", path = "^/ping$" }

    local function fault(of, changes)
      local value = {}
      for _, values in ipairs { of, changes } do
        for name, field in pairs(values) do
          value[name] = field
        end
      end
      fake:fault(value)
    end

    it("once, then all is as it was", function()
      fault(PING, { fault = "status", status = 503, headers = { ["Retry-After"] = "7" } })
      local answer = call("GET", "/ping")
      assert.same({ 503, "7", "RUNTIME_ERROR" },
        { answer.status, answer.headers["retry-after"], cjson.decode(answer.body).code })
      assert.equal(200, call("GET", "/ping").status)
      fault(PING, { fault = "status", status = 429, form = "text", skip = 1, times = 2 })
      local seen = {}
      for i = 1, 4 do
        seen[i] = call("GET", "/ping").status
      end
      assert.same({ 200, 429, 429, 200 }, seen)
    end)

    --- fault; curl's exit status
    local lost = {
      { { fault = "reset" }, 56 },
      { { fault = "lose" }, 56 },
      { { fault = "hang" }, 28 },
      { { fault = "raw", text = "garbage\r\n" }, 1 },
      { { fault = "raw", text = "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n" }, 56 },
      { { fault = "raw", text = "HTTP/1.1 200 OK\r\n", hold = true }, 28 },
      { { fault = "length", add = 3 }, 18 },
      { { fault = "delay", seconds = 3 }, 28 },
    }
    for _, row in ipairs(lost) do
      it(cjson.encode(row[1]), function()
        fault(PING, row[1])
        local seconds = row[2] == 28 and 1 or 20
        assert.equal(row[2], call("GET", "/ping", { seconds = seconds }).problem)
        assert.equal(200, call("GET", "/ping").status)
      end)
    end

    it("headers without end", function()
      fault(PING, { fault = "headers" })
      assert.is_true(call("GET", "/ping", { seconds = 2 }).problem > 0)
    end)

    it("an answer cut at each of its bytes", function()
      local whole = call("GET", "/code/contexts?language=python").body
      for after = 0, #whole - 1 do
        fault({ path = "^/code/contexts" }, { fault = "cut", after = after })
        local answer = call("GET", "/code/contexts?language=python")
        assert.same({ 18, whole:sub(1, after) }, { answer.problem, answer.body })
      end
    end)

    it("an answer byte for byte", function()
      fault({ path = "^/command$" }, { fault = "drip", delay = 0.05 })
      local answer = run("echo x", { seconds = 3 }) -- all of it takes more than 10
      assert.equal(28, answer.problem)
      assert.is_true(#answer.body > 5 and #answer.body < 120)
    end)

    it("a request that is carried out, though nobody hears of it", function()
      fault({ path = "^/command$" }, { fault = "lose" })
      assert.is_nil(run("echo here >/tmp/lost; sleep 0.1").status)
      support.eventually(20, "it was not run", function()
        return support.read(box.root .. "/tmp/lost") == "here\n"
      end)
    end)

    it("a stream without its last event, open or ended", function()
      fault({ path = "^/command$" }, { fault = "no-terminal" })
      local answer = run("echo x", { seconds = 3 })
      assert.same({ 28, { "init", "stdout:x" } }, { answer.problem, short(answer) })
      fault({ path = "^/command$" }, { fault = "no-terminal", ["end"] = true })
      answer = run "echo x"
      assert.same({ 0, { "init", "stdout:x" } }, { answer.problem, short(answer) })
    end)

    it("garbage in a stream", function()
      fault({ path = "^/command$" }, { fault = "garbage", text = "data: {]\n\n", after = 1 })
      assert.is_truthy(run "echo x".body:find("data: {]", 1, true))
    end)

    it("a terminal's frames, spoilt", function()
      -- the bytes after the handshake, in hexadecimal
      local python = [[
import json, os, socket, sys
port, path, headers = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
wanted = int(sys.argv[4])
headers.update({"Host": "x", "Connection": "Upgrade", "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
lines = ["GET %s HTTP/1.1" % path] + ["%s: %s" % pair for pair in headers.items()]
sock = socket.create_connection(("127.0.0.1", port))
sock.settimeout(20)
sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
data = b""
try:
    while len(data.partition(b"\r\n\r\n")[2]) < wanted and (piece := sock.recv(65536)):
        data += piece
except OSError as error:
    sys.stderr.write(type(error).__name__)
print(data.partition(b"\r\n\r\n")[2][:12].hex())
]]
      local program = support.write(support.directory() .. "/frames.py", python)
      --- what comes; how many bytes of it are waited for
      local expected = {
        fragment = { "^01017b8907", 5 }, ping = { "^89017881", 4 }, mask = { "^81%x%x01020304", 6 },
        text = { "^8102fffe", 4 }, oversize = { "^817f0000010000000000", 10 },
        reserved = { "^c1", 1 }, close = { "^8807040", 4 }, drop = { "^ConnectionR", 1 },
      }
      for how, row in pairs(expected) do
        local id = cjson.decode(call("POST", "/pty").body).session_id
        fault({ path = "/ws$" }, { fault = "websocket", how = how, code = 1024 + 11 })
        local output = support.run(("python3 %s %d %s %s %d"):format(program, fake.port,
          support.quote(("%s/pty/%s/ws?pty=0"):format(box.path, id)),
          support.quote(cjson.encode(box.headers)), row[2]))
        assert.is_truthy(output:find(row[1]), how .. ": " .. output)
        call("DELETE", "/pty/" .. id)
      end
    end)

    it("of the server too, and not of another call", function()
      local key = { ["OPEN-SANDBOX-API-KEY"] = fake.key }
      fake:fault { service = "lifecycle", method = "GET", path = "^/sandboxes$", fault = "status",
        status = 500 }
      assert.equal(200, fake:curl("GET", "/v1/sandboxes/" .. box.id, { headers = key }).status)
      local answer = fake:curl("GET", "/v1/sandboxes", { headers = key })
      assert.same({ 500, "GENERAL::UNKNOWN_ERROR" },
        { answer.status, cjson.decode(answer.body).code })
    end)
  end)

  describe("leaves nothing", function()
    --- Everything below a fake, which must be gone after it.
    local function started()
      local other = opensandbox.start()
      local kept = fake
      fake = other
      finally(function()
        fake = kept
        other:stop()
      end)
      local made = create()
      other:curl("POST", made.path .. "/command", { headers = made.headers, seconds = 2,
        json = { command = "setsid sleep 60 & sleep 60" } })
      return other, support.descendants(other.pid)
    end

    local function gone(processes)
      support.eventually(10, "processes were left", function()
        for _, process in ipairs(processes) do
          if support.alive(process) then
            return nil, process.name
          end
        end
        return true
      end)
    end

    it("when its stdin is closed", function()
      local other, processes = started()
      assert.is_true(#processes >= 4)
      other:stop()
      gone(processes)
      assert.is_false(support.exists(other.directory))
    end)

    it("running when it is killed", function()
      local other, processes = started()
      support.native().kill(other.pid, 9)
      gone(processes)
      support.run("rm -rf " .. support.quote(other.directory))
    end)
  end)
end)
