--- The gateway of examples/openresty, started by its run.sh in a real nginx and asked by curl and
--- by a WebSocket of our own. Any line in its log that complains fails the test.

local cjson = require "cjson"
local core = require "moonsand.core"
local helper = require "helper"
local languages = require "moonsand.languages"
local nginx = require "support.nginx"
local support = require "support.init"

local must, await_sleepers = nginx.must, nginx.await_sleepers
local HERE = "examples/openresty/"

-- ---------------------------------------------------------------- the gateway

--- Starts it; `settings` are words for its environment.
local function start(settings)
  local dir = must "mktemp -d":gsub("%s+$", "")
  must("chmod 755 " .. dir)
  local runner = tonumber(must(("env TMPDIR=%s %s sh %srun.sh unix:%s/http.sock"
    .. " </dev/null >%s/out 2>%s/error.log & echo $!"):format(dir, settings or "", HERE, dir, dir, dir)))
  local server = nginx.server { dir = dir, path = "/execute",
    allowed = "client intended to send too large" } -- which nginx calls an error, and it is not ours
  support.eventually(10, "the gateway did not start", function()
    for _, process in ipairs(support.children(runner)) do
      if process.name == "nginx" then
        server.pid = process.pid
      end
    end
    local log = support.read(dir .. "/error.log")
    return server.pid and #server:workers() == 2 and server:get("/"):find "moonsand",
      support.process(runner) and log or "it has ended: " .. log
  end)
  server.runner = support.process(runner)
  return server
end

local function stop(server)
  server:stop()
  support.eventually(20, "run.sh is there still", function()
    return not support.alive(server.runner)
  end)
  local left = support.native().list(server.dir)
  os.execute("rm -rf " .. support.quote(server.dir))
  for _, name in ipairs(left) do
    assert(not name:find "^tmp%.", "run.sh has left its directory")
  end
end

--- What all its workers hold.
local function holdings(server)
  local all = { files = 0, threads = 0, children = 0 }
  for _, pid in ipairs(server:workers()) do
    for name, number in pairs(server:holdings(pid)) do
      all[name] = all[name] + number
    end
  end
  return all
end

--- Sends a job: the answer as a table, and the status.
local function ask(server, job, path, options)
  local text, status = server:begin(type(job) == "string" and job or cjson.encode(job), path,
    options):answer()
  local ok, answer = pcall(cjson.decode, text)
  return ok and answer or text, tonumber(status)
end

--- The events of a stream: a list of { kind, fields }.
local function events(text)
  local list = {}
  for kind, data in text:gmatch "event: (%w+)\ndata: ([^\n]*)\n\n" do
    list[#list + 1] = { kind, cjson.decode(data) }
  end
  return list
end

-- ---------------------------------------------------------------- a WebSocket

local Page = {}
Page.__index = Page

local pages = 0

local function open(server, origin)
  pages = pages + 1
  local out = ("%s/page-%d"):format(server.dir, pages)
  local pipe = assert(io.popen(("exec python3 spec/support/gateway/websocket.py %s/http.sock %s >%s")
    :format(server.dir, origin or "", out), "w"))
  return setmetatable({ pipe = pipe, out = out, seen = 0 }, Page)
end

--- A message as a table, or a line of websocket.py.
function Page:send(message)
  self.pipe:write(nginx.own(type(message) == "table" and cjson.encode(message) or message), "\n")
  self.pipe:flush()
end

--- What has come so far, in whole lines: a pattern that looks for the end of half a line, and of
--- half of it but for a byte, … takes for ever with a long one.
function Page:lines()
  local list = {}
  local whole = (support.read(self.out) or ""):match "^.*\n" or ""
  for line in whole:gmatch "([^\n]*)\n" do
    list[#list + 1] = line
  end
  return list
end

--- Waits for a line that has this text, behind those that were waited for before.
function Page:expect(text, within)
  return support.eventually(within or 20, "there came no " .. text, function()
    local list = self:lines()
    for i = self.seen + 1, #list do
      if list[i]:find(text, 1, true) then
        self.seen = i
        return list[i]
      end
    end
    return nil, table.concat(list, "\n"):sub(-500)
  end)
end

--- Waits for the end of the program: the message that tells.
function Page:ending(within)
  local message = cjson.decode(self:expect('"type":"end"', within))
  self:expect "!close 1000"
  self:expect "!gone"
  return message
end

--- All that a program has said so far on a stream.
function Page:said(stream)
  local pieces = {}
  for _, line in ipairs(self:lines()) do
    local message = line:find "^{" and cjson.decode(line)
    if message and message.type == stream then
      pieces[#pieces + 1] = message.data
    end
  end
  return table.concat(pieces)
end

function Page:close()
  self.pipe:close()
end

-- ---------------------------------------------------------------- the suite

describe("the gateway", function()
  helper.deadline(120) -- go compiles its library anew for each sandbox

  local server

  --- Each block has a gateway of its own.
  local function with_gateway(settings)
    setup(function()
      server = start(settings)
    end)
    after_each(function()
      local complaints = server:complaints()
      assert(#complaints == 0, table.concat(complaints, "\n"))
    end)
    teardown(function()
      stop(server)
    end)
  end

  local GENEROUS = "RATE=10000 PER_CLIENT=16"

  describe("/execute", function()
    with_gateway(GENEROUS)

    it("answers with all that there is to know", function()
      local r, status = ask(server, { language = "python", stdin = "you\n",
        code = "import sys; print('hello', input()); print('oh', file=sys.stderr); sys.exit(3)" })
      assert.equal(200, status)
      assert.is_true(r.duration > 0)
      r.duration = nil
      assert.same({ ok = false, status = "exited", exit_code = 3, stage = "run",
        stdout = "hello you\n", stderr = "oh\n" }, r)
    end)

    for name, case in pairs {
      ["a signal"] = { { code = "kill -SEGV $$" }, { status = "signaled", signal = "SEGV" } },
      ["a timeout"] = { { code = "sleep 20", timeout = 2 }, { status = "timed_out" } },
      ["too much output"] = { { code = "yes" }, { status = "output_limit" } },
      ["a file that is too large"] = { { code = "head -c 300M /dev/zero >big" },
        { status = "exited", exit_code = 1 } },
      ["what does not compile"] = { { language = "c", code = "int main(void) { return x; }" },
        { status = "exited", exit_code = 1, stage = "compile" } },
      ["fields that are null"] = { { code = "echo $(cat)", stdin = cjson.null, timeout = cjson.null },
        { ok = true, stdout = "\n" } },
      ["bytes that are no UTF-8"] = { { code = [[printf '\377a\303\244\303 \360\237\214\231 \355\240\200']] },
        { stdout = "\239\191\189aä\239\191\189 🌙 \239\191\189\239\191\189\239\191\189" } },
    } do
      it("tells of " .. name, function()
        case[1].language = case[1].language or "bash"
        local r, status = ask(server, case[1])
        assert.equal(200, status)
        for field, value in pairs(case[2]) do
          assert.equal(value, r[field])
        end
        assert.is_true(#r.stdout <= 1024 * 1024)
      end)
    end

    it("brings the pictures that the code has drawn, and no other file", function()
      local r = ask(server, { language = "bash",
        code = [[printf '<svg/>' >plot.svg; printf x >notes.txt; ln -s /etc/passwd link.png
          mkdir dir.png; head -c 600K /dev/zero >huge.png; printf '\211PNG' >a.PNG]] })
      table.sort(r.files, function(a, b) return a.name < b.name end)
      assert.same({
        { name = "a.PNG", mime = "image/png", data = "iVBORw==" },
        { name = "plot.svg", mime = "image/svg+xml", data = "PHN2Zy8+" },
      }, r.files)
    end)

    it("gives each run a sandbox of its own", function()
      ask(server, { language = "bash", code = "echo secret >/workspace/left" })
      local r = ask(server, { language = "bash", code = "ls /workspace; ls -d /home /root /tmp/tmp.*" })
      assert.equal("", r.stdout)
    end)

    for name, case in pairs {
      ["what is no JSON"] = { "{", 400 },
      ["nothing"] = { "", 400 },
      ["JSON that is no object"] = { "42", 400 },
      ["a list"] = { '["python", "1"]', 400 },
      ["JSON of endless depth"] = { ("["):rep(100000), 400 },
      ["no language"] = { { code = "1" }, 400 },
      ["a language that nobody knows"] = { { language = "cobol", code = "1" }, 400 },
      ["the name of a method"] = { { language = "close", code = "1" }, 400 },
      ["no code"] = { { language = "python" }, 400 },
      ["code that is a number"] = { { language = "python", code = 1 }, 400 },
      ["code that is too long"] = { { language = "python", code = ("#"):rep(64 * 1024 + 1) }, 400 },
      ["an unknown field"] = { { language = "python", code = "1", privileged = true }, 400 },
      ["a timeout below nothing"] = { { language = "python", code = "1", timeout = -1 }, 400 },
      ["a timeout that is too long"] = { { language = "python", code = "1", timeout = 61 }, 400 },
      ["a timeout that is no number"] = { '{"language":"python","code":"1","timeout":nan}', 400 },
      ["input that is a list"] = { { language = "python", code = "1", stdin = { "a" } }, 400 },
      ["a body that is too large"] = { (" "):rep(256 * 1024 + 1), 413 },
      ["the same in chunks"] = { (" "):rep(256 * 1024 + 1), 413, "-H 'Transfer-Encoding: chunked'" },
      ["a page from elsewhere"] = { { language = "python", code = "1" }, 403,
        "-H 'Origin: https://example.org'" },
      ["another method"] = { { language = "python", code = "1" }, 405, "-X PUT" },
    } do
      it("refuses " .. name, function()
        for _, path in ipairs { "/execute", "/stream" } do
          local answer, status = ask(server, case[1], path, case[3])
          assert.equal(case[2], status)
          assert.equal("string", type(answer.error))
          assert.equal("string", type(answer.message))
        end
      end)
    end

    it("lets pages of its own ask", function()
      local r = ask(server, { language = "bash", code = "echo 1" }, nil, "-H 'Origin: http://localhost'")
      assert.equal("1\n", r.stdout)
    end)

    it("knows no other path", function()
      local answer, status = ask(server, {}, "/languages/../etc/passwd")
      assert.equal(404, status)
      assert.equal("not_found", answer.error)
    end)

    it("ends what runs for a client that has left", function()
      for _, path in ipairs { "/execute", "/stream" } do
        local client = server:begin(cjson.encode { language = "bash", code = "sleep 7301 & sleep 7301" },
          path)
        await_sleepers("7301", 2)
        client:leave()
        await_sleepers("7301", 0)
      end
    end)

    it("has an example for each language, and each one runs", function()
      local there = cjson.decode(server:get "/languages")
      assert.is_true(#there >= 3)
      for _, language in ipairs(there) do
        local code = server:get("/samples/" .. language.name)
        assert.equal(support.read(HERE .. "samples/" .. language.name), code)
        local r = ask(server, { language = language.name, code = code, stdin = "9\n", timeout = 60 })
        assert.same({ language.name, "exited", 0 }, { language.name, r.status, r.exit_code })
        assert.is_true(#r.stdout > 20)
        assert.equal(language.name == "sh" and "That was the network.\n" or "", r.stderr)
        local svg = code:match "(%w+%.svg)"
        assert.equal(svg, r.files and r.files[1].name)
      end
      for _, language in ipairs(languages.list) do
        assert.is_true(support.exists(HERE .. "samples/" .. language.name), language.name)
      end
    end)
  end)

  describe("/stream", function()
    with_gateway(GENEROUS)

    it("sends what happens as it happens", function()
      local function code(seconds)
        return cjson.encode { language = "bash",
          code = ("echo first; echo wrong >&2; sleep %d; echo last"):format(seconds) }
      end
      local client = server:begin(code(7309), "/stream")
      local lines = {}
      for i = 1, 6 do -- two events
        lines[i] = client:line() .. "\n"
      end
      client:leave()
      for _, event in ipairs(events(table.concat(lines))) do
        assert.equal(event[1] == "stdout" and "first\n" or "wrong\n", event[2].data)
      end
      local all = events(server:run(code(1), "/stream"))
      local last, said = table.remove(all), { stdout = "", stderr = "" }
      for _, event in ipairs(all) do -- as many as the machine made of it
        said[event[1]] = said[event[1]] .. event[2].data
      end
      assert.same({ stdout = "first\nlast\n", stderr = "wrong\n" }, said)
      assert.equal("end", last[1])
      assert.equal(0, last[2].exit_code)
    end)

    it("sends pictures, and characters whole", function()
      local list = events(server:run(cjson.encode { language = "bash", code = [[
        printf '\360\237'; sleep 0.1; printf '\214\231\303'; printf '<svg/>' >moon.svg]] }, "/stream"))
      local said, kinds = {}, {}
      for i, event in ipairs(list) do
        kinds[i] = event[1]
        said[i] = event[1] == "stdout" and event[2].data or ""
      end
      assert.equal("🌙\239\191\189", table.concat(said))
      assert.equal("file end", table.concat(kinds, " ", #kinds - 1))
    end)

    it("ends a flood", function()
      local size, last = 0, nil
      for _, event in ipairs(events(server:run(cjson.encode { language = "bash",
        code = "head -c 20M /dev/zero" }, "/stream"))) do
        size = size + #(event[2].data or "")
        last = event[2]
      end
      assert.equal(1024 * 1024, size)
      assert.equal("output_limit", last.status)
    end)
  end)

  describe("/session", function()
    with_gateway(GENEROUS)

    local page

    before_each(function()
      page = open(server)
      page:expect "!status 101"
    end)
    after_each(function()
      page:close()
    end)

    local function run(language, code)
      page:send { type = "run", language = language, code = code }
    end

    it("talks with a program", function()
      run("bash", "echo name?; read name; echo hello $name; cat; echo bye >&2; exit 4")
      page:expect "name?"
      page:send { type = "stdin", data = "Ada\n" }
      page:expect "hello Ada"
      page:send { type = "stdin", data = "äöü\n" }
      page:expect "äöü"
      page:send { type = "eof" }
      local ending = page:ending()
      assert.equal("exited", ending.status)
      assert.equal(4, ending.exit_code)
      assert.equal("bye\n", page:said "stderr")
    end)

    it("stops it, and all that it has started", function()
      run("bash", "setsid sleep 7302 & trap '' TERM INT; echo on; sleep 7302")
      page:expect "on"
      await_sleepers("7302", 2)
      page:send { type = "stop" }
      assert.equal("cancelled", page:ending().error)
      await_sleepers("7302", 0)
    end)

    it("shows what it has drawn", function()
      run("bash", "printf '<svg/>' >plot.svg")
      assert.equal("PHN2Zy8+", cjson.decode(page:expect '"type":"file"').data)
      assert.is_true(page:ending().ok)
    end)

    it("ends with the page", function()
      run("bash", "sleep 7303")
      await_sleepers("7303", 1)
      page:send "!drop"
      await_sleepers("7303", 0)
    end)

    it("ends a flood that nobody reads", function()
      page:send "!deaf"
      run("bash", "sleep 7304 & yes")
      await_sleepers("7304", 1)
      await_sleepers("7304", 0, 15)
    end)

    it("says when input is lost since nobody reads it", function()
      run("bash", "sleep 7305")
      await_sleepers("7305", 1)
      for _ = 1, 8 do
        page:send { type = "stdin", data = ("x"):rep(60000) }
      end
      page:expect "this line is lost"
      page:send { type = "stop" }
      page:ending()
    end)

    it("takes messages in pieces, answers pings, and passes all bytes", function()
      page:send("!pieces " .. cjson.encode { type = "run", language = "bash",
        code = [[printf '\377\000\n'; read line; echo "$line"]] })
      page:expect "\239\191\189\\u0000"
      page:send "!ping are you there"
      page:expect "!pong are you there"
      page:send { type = "stdin", data = "over\n" }
      assert.is_true(page:ending().ok)
    end)

    it("sends much output in messages that can be sent", function()
      run("bash", "head -c 500000 /dev/zero; head -c 200000 /dev/urandom")
      assert.is_true(page:ending().ok)
      assert.equal(("\0"):rep(500000), page:said "stdout":sub(1, 500000))
    end)

    for name, message in pairs {
      ["what is no JSON"] = "hello",
      ["JSON that is no object"] = "42",
      ["a list"] = "[1]",
      ["input for no program"] = { type = "stdin", data = "x" },
      ["a language that nobody knows"] = { type = "run", language = "cobol", code = "" },
      ["no code"] = { type = "run", language = "bash" },
      ["an unknown field"] = { type = "run", language = "bash", code = "", user = "root" },
    } do
      it("refuses " .. name, function()
        page:send(message)
        local ending = page:ending()
        assert.is_false(ending.ok)
        assert.equal("invalid", ending.error)
      end)
    end

    for name, message in pairs {
      ["is no JSON"] = "stop!",
      ["it does not know"] = { type = "run", language = "bash", code = "" },
    } do
      it("ends the program at a message that " .. name, function()
        run("bash", "sleep 7306")
        await_sleepers("7306", 1)
        page:send(message)
        assert.equal("cancelled", page:ending().error)
        await_sleepers("7306", 0)
      end)
    end

    for name, bytes in pairs {
      ["too large"] = "81ff0000000000200000",
      ["without a mask"] = "810568656c6c6f",
      ["that breaks the rules"] = "ffff",
    } do
      it("hangs up at a frame " .. name, function()
        page:send("!raw " .. bytes)
        page:expect "!gone"
        local second = open(server)
        second:expect "!status 101"
        second:send { type = "run", language = "bash", code = "sleep 7309" }
        await_sleepers("7309", 1)
        second:send("!raw " .. bytes)
        second:expect "!gone"
        await_sleepers("7309", 0)
        second:close()
      end)
    end

    it("refuses pages from elsewhere, and what is no WebSocket", function()
      local stranger = open(server, "https://example.org")
      stranger:expect "!status 403"
      stranger:close()
      local answer, status = ask(server, {}, "/session")
      assert.equal(400, status)
      assert.equal("invalid", answer.error)
    end)

    it("lives on through a reload", function()
      run("bash", "echo on; read line; echo $line")
      page:expect "on"
      local old = server:workers()
      server:signal "HUP"
      support.eventually(20, "there are no new workers", function()
        local now = server:workers()
        return #now == 2 and now[1] ~= old[1] and now[1] ~= old[2]
      end)
      page:send { type = "stdin", data = "still here\n" }
      page:expect "still here"
      assert.is_true(page:ending().ok)
      for _, pid in ipairs(old) do
        support.eventually(20, "an old worker is there still", function()
          return not support.process(pid)
        end)
      end
    end)
  end)

  describe("has limits:", function()
    with_gateway "RATE=5 PER_CLIENT=2"

    local SLEEP = cjson.encode { language = "bash", code = "sleep 7307", timeout = 20 }

    it("so many programs at once", function()
      local first = server:begin(SLEEP)
      local second = server:begin(SLEEP, "/stream")
      await_sleepers("7307", 2)
      local answer, status = ask(server, SLEEP)
      assert.equal(429, status)
      assert.equal("too_many", answer.error)
      local page = open(server)
      page:expect "!status 429"
      page:close()
      first:leave()
      second:leave()
      await_sleepers("7307", 0)
      assert.equal("1\n", support.eventually(20, "it refuses still", function()
        local said = ask(server, { language = "bash", code = "echo 1" }).stdout
        if not said then
          support.native().pause(0.3) -- fewer than five a second: the next test needs what is left
        end
        return said
      end))
    end)

    it("so many requests a second", function()
      local seen, began = {}, core.now()
      for code in must(server:curl("'/execute?[1-200]'", "-w '%{http_code} ' -o /dev/null -X GET"))
        :gmatch "%d+" do
        seen[code] = (seen[code] or 0) + 1
      end
      local most = 22 + 5 * (core.now() - began) -- the burst, and five a second
      assert.is_true(seen["405"] >= 15 and seen["405"] <= most and seen["429"] >= 20
        and seen["405"] + seen["429"] == 200, cjson.encode(seen))
    end)
  end)

  describe("has no patience:", function()
    with_gateway "PATIENCE=1"

    -- Who stands still before he has sent anything is hung up on, too: then once more.
    local CONNECT = [[import os, socket, sys, time
def connect(data):
  while True:
    try:
      s = socket.socket(socket.AF_UNIX)
      s.connect(sys.argv[1])
      s.settimeout(20)
      s.sendall(data)
      return s
    except OSError: pass
]]

    --- Sends a beginning and waits for the end, as someone does who wants to keep the place; nginx hangs up.
    local function slow(beginning)
      local script = CONNECT .. [[
s = connect(sys.argv[2].encode().decode("unicode_escape").encode())
while s.recv(65536): pass]]
      local began = core.now()
      must(("timeout 40 python3 -c %s %s/http.sock %s"):format(support.quote(script), server.dir,
        support.quote(beginning)))
      assert.is_true(core.now() - began < 10)
    end

    it("so long for a head and a body to come", function()
      local head = "POST /execute HTTP/1.1\\r\\nHost: localhost\\r\\n"
      slow(head)
      slow(head .. 'Content-Length: 99\\r\\n\\r\\n{"code":')
    end)

    it("so long for an answer to be taken", function()
      local script = CONNECT .. [[
body = sys.argv[2].encode()
head = b"POST /stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
s = connect(head % len(body) + body)
while b"event: stdout" not in s.recv(65536, socket.MSG_PEEK): time.sleep(0.05)
print("it runs", flush=True)
while not os.path.exists(sys.argv[3]): time.sleep(0.05)]]
      local over = server.dir .. "/over"
      local job = cjson.encode { language = "bash", code = "sleep 7308 & yes", timeout = 60 }
      local pipe = io.popen(("timeout 60 python3 -c %s %s/http.sock %s %s"):format(
        support.quote(script), server.dir, support.quote(nginx.own(job)), over))
      assert.equal("it runs", pipe:read())
      await_sleepers("7308", 0, 20)
      support.write(over, "")
      pipe:close()
    end)
  end)

  describe("the page", function()
    with_gateway()

    it("may load nothing from elsewhere, and run nothing but its own script", function()
      local head = must(server:curl("/", "-I"))
      for _, line in ipairs { "Content-Type: text/html; charset=utf-8",
        "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; ",
        "frame-ancestors 'none'", "X-Content-Type-Options: nosniff", "Referrer-Policy: no-referrer" } do
        assert.truthy(head:find(line, 1, true), line)
      end
      local page = server:get "/"
      assert.is_nil(page:find "<script>")
      assert.is_nil(page:find "<style")
      assert.is_nil(page:find "%son%l+=")
      assert.is_nil(page:find "style=")
      local script = server:get "/page.js"
      assert.is_nil(script:find "innerHTML")
      assert.matches("text/css", must(server:curl("/page.css", "-I")))
      assert.matches("text/javascript", must(server:curl("/page.js", "-I")))
    end)

    it("is all that can be had of the directory", function()
      for _, path in ipairs { "/gateway.lua", "/nginx.conf", "/run.sh", "/samples/", "/samples/../run.sh",
        "/samples/%2e%2e/run.sh" } do
        local answer, status = ask(server, {}, path, "-X GET --path-as-is")
        assert.equal(path .. " 404", path .. " " .. status)
        assert.equal("not_found", answer.error)
      end
    end)
  end)

  describe("in the long run", function()
    with_gateway(GENEROUS)

    it("keeps nothing", function()
      local job = server:body(cjson.encode { language = "bash", code = "echo x; printf y >y.svg" })
      local function rounds(n)
        for _, path in ipairs { "/execute", "/stream" } do
          local clients = {}
          for i = 1, 2 do
            clients[i] = io.popen(server:curl(("'%s?[1-%d]'"):format(path, n), "-o /dev/null"
              .. " -w '%{http_code} ' -H 'Connection: close' --data-binary @" .. job))
          end
          for i = 1, 2 do
            assert.equal(("200 "):rep(n), (clients[i]:read "*a"))
            clients[i]:close()
          end
        end
        for _ = 1, 3 do
          local page = open(server)
          page:expect "!status 101"
          page:send { type = "run", language = "bash", code = "sleep 0.1" }
          page:ending()
          page:close()
        end
      end
      rounds(20)
      local before = holdings(server)
      rounds(50)
      before.files = before.files + 6 -- what is remembered of the last requests, collected later
      support.eventually(25, "something was left", function() -- an idle driver stays for ten
        local now = holdings(server)
        for name, number in pairs(before) do
          if now[name] > number then
            return nil, ("%s: %d, not %d"):format(name, now[name], number)
          end
        end
        return true
      end)
    end)
  end)
end)
