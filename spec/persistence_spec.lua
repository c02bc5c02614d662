-- Sandboxes that outlive who made them: found by other processes of the same user, and by nobody
-- else; ended by their own clock; and what is left of those that are over.

local helper = require "helper"
local moonsand = require "moonsand"
local registry = require "moonsand.providers.local.registry"
local support = require "support.init"

local native = support.native()

local fails = support.fails

describe("a detached sandbox", function()
  helper.deadline(90)

  local directory, runtime, count

  setup(function()
    runtime, count = os.getenv "XDG_RUNTIME_DIR", 0
  end)

  --- Every test has a directory of its own.
  local function own_directory()
    count = count + 1
    directory = ("%s/runtime-%d"):format(support.directory(), count)
    assert(os.execute("mkdir -m 700 " .. directory))
    native.setenv("XDG_RUNTIME_DIR", directory)
  end

  before_each(own_directory)

  local function end_all()
    os.execute("chmod 700 " .. directory .. "/moonsand 2>/dev/null")
    for _, row in ipairs(moonsand.list() or {}) do
      moonsand.destroy(row.id)
    end
  end

  helper.no_leaks(end_all)

  teardown(function()
    native.setenv("XDG_RUNTIME_DIR", runtime or "")
  end)

  --- Makes one, lets go of it: its id, its agent.
  local function detached(name, opts, fn)
    local box = moonsand.assert(moonsand.create { name = name })
    if fn then
      fn(box)
    end
    local agent = support.process(support.agent(box))
    moonsand.assert(box:detach(opts))
    return box.id, agent
  end

  local function connect(id)
    return moonsand.assert(moonsand.connect(id))
  end

  --- Runs Lua code, in which `id` is known, in another process. What it printed.
  local function elsewhere(id, code, prefix)
    local output, status = support.child(([[
      local moonsand = require "moonsand"
      local id = %q
      %s]]):format(id, code), prefix)
    return output, status
  end

  local function socket_of(id)
    return ("%s/moonsand/%s/socket"):format(directory, id)
  end

  local function entries()
    return native.list(directory .. "/moonsand")
  end

  local function ends(agent, seconds)
    support.eventually(seconds or 10, "it did not end", function()
      return not support.alive(agent)
    end)
  end

  it("is found by another process, by its name and its id", function()
    local id = detached("one", nil, function(box)
      assert(box.files:write("kept.txt", "kept"))
    end)
    for _, name in ipairs { "one", id } do
      assert.equal("local one false kept\n" .. id .. "\n", (elsewhere(name, [[
        local box = moonsand.assert(moonsand.connect(id))
        print(box.provider, box.name, box.owned, box.files:read "kept.txt")
        print(box.id)
        box:close()]]):gsub("\t", " ")))
    end
    assert.equal("one running\n", (elsewhere(id, [[
      for _, row in ipairs(moonsand.list()) do print(row.name, row.state) end]]):gsub("\t", " ")))
  end)

  it("has a row with what is known of it", function()
    local box = moonsand.assert(moonsand.create {
      name = "known", metadata = { owner = "me", tags = { "a", "b" }, n = 1.5, yes = true },
    })
    local id, pid = box.id, box.core.driver:pid()
    moonsand.assert(box:detach { lifetime = 100, idle_timeout = 50 })
    local rows = moonsand.assert(moonsand.list())
    assert.equal(1, #rows)
    local row = rows[1]
    assert.same({ id, "known", "local", "running", pid, 50 }, { row.id, row.name, row.provider,
      row.state, row.pid, row.idle_timeout })
    assert.same({ owner = "me", tags = { "a", "b" }, n = 1.5, yes = true }, row.metadata)
    assert.is_true(math.abs(row.created_at - os.time()) < 60)
    assert.is_true(math.abs(row.expires_at - os.time() - 100) < 60)
    local info = connect(id):info()
    assert.same({ true, 50, row.expires_at, row.created_at }, { info.detached, info.idle_timeout,
      info.expires_at, info.created_at })
    assert.equal("tmpfs", info.limits.disk.by)
    assert.same(row.metadata, info.metadata)
  end)

  it("may have numbers without an end among what is known of it", function()
    local box = moonsand.assert(moonsand.create {
      name = "endless", metadata = { score = math.huge, low = -math.huge },
    })
    moonsand.assert(box:detach { lifetime = math.huge })
    local row = moonsand.assert(moonsand.list())[1]
    assert.same({ score = math.huge, low = -math.huge }, row.metadata)
    assert.is_nil(row.expires_at)
    assert.is_nil(row.idle_timeout)
    local again = connect "endless"
    assert.is_nil(again:info().expires_at)
    moonsand.assert(again:set_lifetime(100))
    moonsand.assert(again:detach { lifetime = math.huge, idle_timeout = math.huge })
    row = moonsand.assert(moonsand.list())[1]
    assert.same({ "endless" }, { row.name, row.expires_at, row.idle_timeout })
  end)

  it("may have to be without an end from the beginning", function()
    local box = moonsand.assert(moonsand.create { lifetime = 100, idle_timeout = math.huge })
    assert.is_nil(box:info().idle_timeout)
    moonsand.assert(box:detach { lifetime = math.huge })
    local row = moonsand.list()[1]
    assert.same({ box.id }, { row.id, row.expires_at, row.idle_timeout })
  end)

  it("is not made of what nobody could read again", function()
    local round = { n = 1 }
    round.round = { round }
    for word, metadata in pairs { nan = { 0 / 0 }, ["holds itself"] = round } do
      local box = moonsand.assert(moonsand.create { metadata = metadata })
      local message = fails("invalid", box:detach())
      assert.truthy(message:find(word, 1, true), message)
      assert.is_true(box:exec("true").ok)
      box:close()
    end
    for _, seconds in ipairs { 0 / 0, 1e300, -math.huge } do
      fails("invalid", moonsand.create { lifetime = seconds })
      fails("invalid", moonsand.create { idle_timeout = seconds })
    end
  end)

  it("keeps its entry while it lives, even one that nobody can read", function()
    local id, agent = detached "damaged"
    support.write(socket_of(id):gsub("socket$", "about"), "{s2:idninf;}")
    assert.same({}, moonsand.list())
    assert.same({ id }, entries())
    fails("unavailable", moonsand.connect(id))
    fails("unavailable", moonsand.destroy(id))
    assert.is_true(support.alive(agent))
    native.kill(agent.pid, 9)
    ends(agent)
    assert.same({}, moonsand.list())
    assert.same({}, entries())
  end)

  it("has programs of different ids, whichever handle started them", function()
    local id, ids = detached "many", {}
    local handles = { connect(id), connect(id) }
    for _, box in ipairs(handles) do
      for _ = 1, 2 do
        local p = moonsand.assert(box:start "sleep 1000")
        assert.is_nil(ids[p.id])
        ids[p.id] = p.pid
      end
    end
    local rows = moonsand.assert(handles[1]:processes())
    assert.equal(4, #rows)
    for _, row in ipairs(rows) do
      assert.equal(ids[row.id], row.pid)
    end
    moonsand.assert(handles[1]:destroy())
  end)

  it("is let go of: the handle is closed, and what was not in the background has ended", function()
    local box = moonsand.assert(moonsand.create())
    local front = moonsand.assert(box:start "sleep 1000")
    local back = moonsand.assert(box:start("exec sleep 1001", { background = true }))
    local agent = support.agent(box)
    moonsand.assert(box:detach())
    assert.has_error(function() box:exec "true" end)
    fails("closed", front:wait())
    support.eventually(10, "the program in front runs on", function()
      local left = support.descendants(agent)
      return #left == 1 and left[1].name == "sleep" -- no shell any more
    end)
    assert.is_string(back.id)
  end)

  it("outlives its maker, also one that is killed", function()
    local id = elsewhere("x", [[
      local box = moonsand.assert(moonsand.create { name = "orphan" })
      box:start("while :; do echo tick; sleep 0.01; done", { background = true })
      assert(box:detach())
      io.stdout:write(box.id)
      io.stdout:flush()
      os.execute("kill -KILL $PPID")]])
    local box = connect "orphan"
    assert.equal(id:match "^ms%-%x+", box.id)
    local rows = moonsand.assert(box:processes())
    local p = moonsand.assert(box:attach(rows[1].id))
    for _ = 1, 20 do
      assert.equal("tick", p.stdout:read("l", 10))
    end
    moonsand.assert(box:destroy())
    assert.same({}, moonsand.list())
  end)

  it("is one only when it was detached: others end with their maker", function()
    elsewhere("x", [[
      local box = moonsand.assert(moonsand.create { name = "mine" })
      os.execute("kill -KILL $PPID")]])
    assert.same({}, moonsand.list())
    fails("not_found", moonsand.connect "mine")
  end)

  it("can be used as any", function()
    local box = connect((detached "any"))
    assert.equal("42\n", moonsand.assert(box:run_code("print(42)", { language = "lua" })).stdout)
    local session = moonsand.assert(box:session())
    session:exec "cd /tmp"
    assert.equal("/tmp", session:cwd())
    session:close()
    assert.equal("24 80\r\n", box:exec("stty size", { pty = true }).stdout)
    moonsand.assert(box.files:write("big", ("x"):rep(1e6)))
    assert.equal(1e6, #box.files:read "big")
    assert.is_true(#moonsand.assert(box:ps()) >= 1)
    local r = moonsand.assert(box:exec("cat", { stdin = ("y"):rep(300000) }))
    assert.equal(300000, #r.stdout)
    assert.is_true(box:exec("sleep 10", { timeout = 0.1 }).timed_out)
  end)

  it("is known with all that matters for a snapshot", function()
    local box = moonsand.assert(moonsand.create {
      name = "copied", mounts = { { source = directory, target = "/data", mode = "copy" } },
    })
    moonsand.assert(box:detach())
    fails("unsupported", connect("copied"):snapshot "spec-copied")
    detached("plain", nil, function(each)
      assert(each.files:write("kept", "kept"))
    end)
    local name = "spec-plain-" .. native.getpid()
    moonsand.assert(connect("plain"):snapshot(name))
    local again = moonsand.assert(moonsand.create { snapshot = name })
    assert.equal("kept", again.files:read "kept")
    again:close()
    moonsand.assert(moonsand.delete_snapshot(name))
  end)

  it("is left as it was by a handle's end, but for what that started", function()
    local id, agent = detached("left", nil, function(box)
      box:start("exec sleep 1000", { background = true })
    end)
    local box, other = connect(id), connect(id)
    moonsand.assert(box:start "exec sleep 1001")
    local kept = moonsand.assert(other:start "exec sleep 1002")
    assert.equal(3, #support.descendants(agent.pid))
    box:close()
    support.eventually(10, "what was started runs on", function()
      return #support.descendants(agent.pid) == 2
    end)
    assert.is_true(kept:is_running())
    other = connect(id) -- the first one is collected
    kept = nil
    support.eventually(10, "what was started runs on", function()
      helper.settle()
      return #support.descendants(agent.pid) == 1
    end)
    other:close()
    assert.is_true(support.alive(agent))
    assert.is_nil(kept)
  end)

  it("is ended by destroy, with or without a handle, and its entry is gone", function()
    local id, agent = detached "a"
    moonsand.assert(connect(id):destroy())
    assert.is_false(support.alive(agent))
    id, agent = detached "b"
    local box = connect "b"
    assert.is_true(moonsand.destroy "b")
    assert.is_false(support.alive(agent))
    fails("gone", box:exec "true")
    assert.is_true(moonsand.destroy(id))
    assert.same({}, entries())
  end)

  it("has a name that no other one has", function()
    detached "taken"
    local box = moonsand.assert(moonsand.create { name = "taken" })
    fails("exists", box:detach())
    assert.is_true(box:exec("true").ok) -- nothing has changed
    box:close()
    fails("not_found", moonsand.connect "free")
    fails("invalid", moonsand.connect("taken", { limits = { disk = "1G" } }))
  end)

  it("takes several at once", function()
    local id = detached "shared"
    local output = support.run(([[
      for i in 1 2 3 4 5 6 7 8 9 10 11 12; do %s & done; wait]]):format(support.command(([[
      local moonsand = require "moonsand"
      local box = moonsand.assert(moonsand.connect(%q))
      local p = moonsand.assert(box:start("cat", { background = true }))
      assert(box.files:write("of-" .. p.id, p.id))
      p.stdin:write(p.id)
      p.stdin:close()
      print(moonsand.assert(p:wait()).stdout == p.id and box.files:read("of-" .. p.id) == p.id)]])
      :format(id))))
    assert.equal(("true\n"):rep(12), output)
    assert.equal(12, #connect(id):processes())
  end)

  it("lets two of one name be detached at once only once", function()
    local output = support.run(([[
      for i in 1 2 3 4 5 6; do %s & done; wait]]):format((support.command [[
      local moonsand = require "moonsand"
      local box = moonsand.assert(moonsand.create { name = "race" })
      local ok, _, code = box:detach()
      print(ok or code)
      box:close()]])))
    local _, made = output:gsub("true\n", "")
    local _, refused = output:gsub("exists\n", "")
    assert.same({ 1, 5 }, { made, refused })
    assert.equal(1, #moonsand.list())
  end)

  describe("of which only an entry is left", function()
    it("is noticed and cleaned up", function()
      local id, agent = detached "dead"
      native.kill(agent.pid, 9)
      ends(agent)
      fails("not_found", moonsand.connect(id))
      id, agent = detached "dead"
      native.kill(agent.pid, 9)
      ends(agent)
      assert.same({}, moonsand.list())
      assert.same({}, entries())
      assert.is_true(moonsand.destroy(id))
    end)

    it("or less, or something else", function()
      detached "good"
      local base = directory .. "/moonsand/"
      os.execute(("mkdir %shalf %sodd %sother"):format(base, base, base))
      support.write(base .. "odd/about", "{s2:ids3:odds3:pidn1;s5:birth")
      support.write(base .. "other/about", "{s2:ids5:othersNaN")
      support.write(base .. "file", "")
      os.execute(("ln -s / %slink"):format(base))
      assert.equal(1, #moonsand.list())
      table.sort(entries())
      assert.is_false(support.exists(base .. "half/."))
      assert.is_false(support.exists(base .. "odd/."))
      assert.is_true(support.exists "/etc/passwd")
      os.execute(("rm -f %sfile %slink"):format(base, base))
    end)

    it("is not mistaken for another process with its pid", function()
      local id, agent = detached "pid"
      native.kill(agent.pid, 9)
      ends(agent)
      local path = ("%s/moonsand/%s/about"):format(directory, id)
      local text = support.read(path):gsub("s3:pidn%d+;", ("s3:pidn%d;"):format(native.getpid()))
      support.write(path, text)
      assert.is_true(moonsand.destroy(id)) -- and we live
      assert.same({}, moonsand.list())
    end)
  end)

  describe("ends by itself", function()
    it("at the end of its lifetime, whoever is connected", function()
      local id, agent = detached("short", { lifetime = 2.5 })
      local box = connect(id)
      ends(agent)
      support.eventually(10, "nobody was told", function()
        return box.core.driver:state() == "gone"
      end)
      fails("gone", box:exec "true")
      assert.same({}, moonsand.list())
    end)

    it("when nobody has been connected for so long", function()
      local _, alone = detached("idle", { idle_timeout = 0.4 })
      ends(alone)
      local id, agent = detached "idle"
      local box = connect(id)
      moonsand.assert(connect(id):detach { idle_timeout = 0.4 })
      assert.is_true(box:exec("sleep 1").ok) -- connected
      assert.is_true(support.alive(agent))
      box:close()
      ends(agent)
    end)

    it("at a lifetime that was set later, which others see", function()
      local id, agent = detached("later", { lifetime = 1000 })
      local box = connect(id)
      moonsand.assert(box:set_lifetime(2000))
      assert.is_true(math.abs(moonsand.list()[1].expires_at - os.time() - 2000) < 60)
      moonsand.assert(connect(id):set_lifetime(0.2))
      ends(agent)
    end)

    it("also when it was never detached", function()
      local box = moonsand.assert(moonsand.create { lifetime = 0.3 })
      assert.is_true(box:info().expires_at > os.time() - 60)
      fails("gone", box:exec "sleep 100")
      box = moonsand.assert(moonsand.create())
      moonsand.assert(box:set_lifetime(0.1))
      fails("gone", box:exec "sleep 100")
      fails("invalid", moonsand.create { lifetime = 0 })
      fails("invalid", moonsand.create { idle_timeout = -1 })
    end)
  end)

  describe("is its owner's alone:", function()
    it("a directory that others may enter is refused", function()
      os.execute("mkdir -m 755 " .. directory .. "/moonsand")
      local box = moonsand.assert(moonsand.create())
      local ok, message, code, detail = box:detach()
      fails("unavailable", ok, message, code, detail)
      assert.is_string(detail.fix)
      fails("unavailable", moonsand.list())
      box:close()
      os.execute(("rmdir %s/moonsand; mkdir -m 700 %s/x; ln -s %s/x %s/moonsand"):format(directory,
        directory, directory, directory))
      fails("unavailable", moonsand.list())
      os.execute(("rm %s/moonsand"):format(directory))
    end)

    it("what is made has the right modes", function()
      local id = detached "modes"
      local output = support.run(("stat -c '%%a %%U' %s/moonsand %s/moonsand/%s %s/moonsand/%s/about")
        :format(directory, directory, id, directory, id))
      local user = support.run("id -un"):gsub("%s", "")
      assert.equal(("700 %s\n700 %s\n600 %s\n"):format(user, user, user), output)
    end)

    it("another user has no way in", function()
      if native.getuid() ~= 0 then
        return -- only root can be somebody else
      end
      local id = detached "roots"
      os.execute("chmod 711 " .. directory)
      local caller = support.probe "caller"
      for _, user in ipairs { 65534, 12345 } do
        local as = ("setpriv --reuid=%d --regid=%d --clear-groups "):format(user, user)
        assert.equal("connect: EACCES\n", (support.run(as .. caller .. " " .. socket_of(id) .. " greet")))
        local output = elsewhere(id, [[
          print((select(3, moonsand.list())), (select(3, moonsand.connect(id))))]], as)
        assert.equal("unavailable\tunavailable\n", output)
      end
      -- With the way open, it is asked who they are. The sandbox's own user outside is not its owner.
      os.execute(("chmod 711 %s/moonsand %s/moonsand/%s; chmod 666 %s"):format(directory, directory, id,
        socket_of(id)))
      assert.equal("connect: OK\ngreeting: ECONNRESET\n",
        (support.run(("setpriv --reuid=65534 --clear-groups %s %s greet"):format(caller, socket_of(id)))))
      os.execute(("chmod 700 %s/moonsand %s/moonsand/%s"):format(directory, directory, id))
    end)

    it("what runs inside has no way in, even where it finds the socket", function()
      local box = moonsand.assert(moonsand.create {
        name = "inside", mounts = { { source = directory, target = "/host", mode = "rw" } },
      })
      local path = support.put(box, support.probe "caller")
      local id = box.id
      moonsand.assert(box:detach())
      os.execute(("chmod -R go+rwX %s"):format(directory)) -- for the user that root's sandboxes have
      os.execute(("chmod 777 %s"):format(socket_of(id)))
      local output = support.run(("%s %s greet"):format(support.probe "caller", socket_of(id)))
      assert.equal("connect: OK\ngreeting: OK\n", output) -- as its owner, outside
      os.execute(("chmod 700 %s/moonsand"):format(directory))
      box = connect(id)
      os.execute(("chmod 755 %s/moonsand"):format(directory))
      local r = moonsand.assert(box:exec { path, ("/host/moonsand/%s/socket"):format(id), "greet" })
      assert.equal("connect: OK\ngreeting: ECONNRESET\n", r.stdout)
      os.execute(("chmod 700 %s/moonsand"):format(directory))
    end)
  end)

  describe("with callers who mean no good", function()
    local caller

    before_each(function()
      caller = support.probe "caller"
    end)

    --- Starts one on the host, and gives its first line and what ends it.
    local function calling(id, mode, number)
      local pipe = assert(io.popen(("{ %s %s %s %d; } < %s/stop"):format(caller, socket_of(id), mode,
        number or 0, directory)))
      local stop = assert(io.open(directory .. "/stop", "w")) -- a FIFO, both ends of which are open now
      return pipe:read "*l", function()
        stop:close()
        pipe:close()
      end
    end

    before_each(function()
      os.execute("mkfifo " .. directory .. "/stop")
    end)

    it("serves others through any garbage", function()
      local id, agent = detached "garbage"
      local box = connect(id)
      local p = moonsand.assert(box:start("cat", { background = true }))
      local before = support.fds(agent.pid)
      local output, status = support.run(("%s %s garbage 3000 </dev/null"):format(caller, socket_of(id)))
      assert.equal(0, status, output)
      p.stdin:write "still here"
      p.stdin:close()
      assert.equal("still here", p:wait().stdout)
      if before then
        support.eventually(10, "files were left with the agent", function()
          return support.fds(agent.pid) <= before
        end)
      end
      assert.is_true(box:exec("true").ok)
    end)

    it("serves others while one calls and calls and never listens", function()
      local id, agent = detached "flood"
      local box = connect(id)
      for i = 1, 100 do
        box:exec { "true", ("x"):rep(1000), tostring(i) } -- long answers
      end
      local line, stop = calling(id, "flood")
      assert.is_true(tonumber(line) < 1000000)
      assert.is_true(box:exec("true").ok)
      if not support.instrumented() then
        assert.is_true(support.rss(agent.pid) < 128 * 1024 * 1024)
      end
      stop()
    end)

    --- The id of one whose agent has 40 descriptors. `hard`: it cannot help itself to more of what is
    --- measured by them; then it takes until nobody else uses that up to make one.
    local function poor(hard)
      return support.eventually(60, "no sandbox could be made", function()
        local output = support.child([[
          local moonsand = require "moonsand"
          local box = moonsand.create { limits = { open_files = 30 } }
          if box and box:detach() then
            io.stdout:write(box.id)
          end]], ([[sh -c 'ulimit %sn 40; exec "$@"' --]]):format(hard and "-" or "-S"))
        return output ~= "" and output
      end)
    end

    it("tells at once what the kernel carries no file for", function()
      local id = poor(true)
      local early = connect(id)
      assert(early.files:write("f", "here"))
      local box = moonsand.assert(moonsand.create())
      local p = support.take_flights(box, support.put(box, support.probe "shared"))
      fails("connection", moonsand.connect(id, { timeout = 60 }))
      fails("unavailable", early:dial(80, { timeout = 60 }))
      local limits = { open_files = 20 }
      assert.equal("here", early:exec("cat f", { limits = limits, timeout = 60 }).stdout)
      local told = support.child([[
        local _, message, code = require "moonsand".create { timeout = 60 }
        io.stdout:write(code, ": ", message)]], [[sh -c 'ulimit -n 40; exec "$@"' --]])
      assert.matches("^unavailable: .*Too many references", told)
      assert.is_true(p:is_running()) -- it has kept all of it
      box:close()
      support.eventually(30, "nothing is carried again", function()
        return select(3, early:dial(80)) == "connection" and moonsand.connect(id)
      end)
    end)

    it("turns away whom it has no descriptors for, and does not wait at the door", function()
      local id = poor(false)
      local agent = moonsand.assert(moonsand.list())[1].pid
      local line, stop = calling(id, "hold", 80)
      assert.is_true(tonumber(line) < 40, line)
      local function ticks()
        local user, system = support.read("/proc/" .. agent .. "/stat"):match "%) %S+ (.*)":match(
          "%S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ %S+ (%d+) (%d+)")
        return user + system
      end
      local before = ticks()
      native.pause(0.5)
      assert.is_true(ticks() - before < 20)
      stop()
      local box = support.eventually(10, "there was no room again", function()
        return (moonsand.connect(id))
      end)
      assert.is_true(box:exec("true", { limits = { open_files = 20 } }).ok)
    end)

    it("has room for so many, and again when they leave", function()
      local id = detached "many"
      local line, stop = calling(id, "hold", 100)
      assert.equal(64, tonumber(line))
      fails("connection", moonsand.connect(id))
      stop()
      local box = support.eventually(10, "there was no room again", function()
        return (moonsand.connect(id))
      end)
      assert.is_true(box:exec("true").ok)
    end)
  end)

  describe("with rules for its network", function()
    --- What the proxy answers to somebody inside.
    local function ask(box)
      return moonsand.assert(box:exec [[
        bash -c 'exec 3<>/dev/tcp/127.0.0.1/3128 || exit
          printf "CONNECT no.example:443 HTTP/1.1\r\n\r\n" >&3; head -n 1 <&3' 2>&1]]).stdout
    end

    it("is served by whoever is connected", function()
      local box = moonsand.assert(moonsand.create {
        name = "ruled", network = { allow = { "example.org" } },
      })
      assert.matches("403", ask(box))
      local id = box.id
      moonsand.assert(box:detach())
      local first = connect(id)
      assert.equal("rules", first:info().network)
      assert.matches("3128", first:getenv "http_proxy")
      assert.matches("403", ask(first))
      assert.equal(1, #first:network_log())
      local second = connect(id)
      assert.matches("403", ask(second))
      assert.equal(2, #first:network_log())
      first:close()
      assert.matches("403", ask(second)) -- taken over
      assert.equal(1, #second:network_log())
    end)

    it("that need this very process, cannot be detached", function()
      local box = moonsand.assert(moonsand.create {
        network = { allow = { "example.org" }, resolve = function() return {} end },
      })
      fails("unsupported", box:detach())
      assert.is_true(box:exec("true").ok)
      box:close()
    end)
  end)

  it("keeps its control groups, which are removed when it is over", function()
    local output = elsewhere("x", [[
      print(require("moonsand.core").getpid())
      local box, _, code = moonsand.create { name = "grouped", limits = { memory = "64M" } }
      print(box and box:detach() or code)
      io.stdout:flush()
      os.execute("kill -KILL $PPID")]])
    if output:find "unavailable" then
      return -- no control groups for this user, which is what limits.memory is refused for
    end
    local function groups()
      return (support.run(("find /sys/fs/cgroup -name 'moonsand-%s-*' -type d 2>/dev/null"):format(
        output:match "%d+")))
    end
    assert.truthy(groups():find "moonsand")
    local box = connect "grouped"
    assert.matches("^cgroup", box:info().limits.memory.by)
    assert.equal(64 * 1024 ^ 2, moonsand.assert(box:metrics()).memory_total)
    local r = moonsand.assert(box:exec "head -c 200M /dev/zero | tail -c 190M | wc -c")
    assert.is_true(r.stdout ~= "199229440\n", "the limit does not hold any more")
    moonsand.assert(box:destroy())
    support.eventually(20, "groups were left", function()
      local now = groups()
      return now == "", now
    end)
  end)

  it("does not keep forwards of who is gone", function()
    local box = moonsand.assert(moonsand.create())
    local forward = moonsand.assert(box:forward(8080))
    local port = forward.port
    moonsand.assert(box:detach())
    assert.is_falsy(native.connect_tcp(port))
  end)

  it("leaves nothing behind, many times over", function()
    detached "first"
    local before = helper.baseline()
    for i = 1, 30 do
      local id = detached("n" .. i)
      local box = connect(id)
      assert.is_true(box:exec("true").ok)
      if i % 2 == 0 then
        box:detach()
        box = connect(id)
      end
      moonsand.assert(box:destroy())
    end
    moonsand.destroy "first"
    before.below = before.below - 1
    helper.assert_no_more(before)
    assert.same({}, entries())
  end)

  it("cannot be told what cannot be kept", function()
    local box = moonsand.assert(moonsand.create { metadata = { f = print } })
    fails("invalid", box:detach())
    assert.is_true(box:exec("true").ok)
    box:close()
    assert.equal(directory .. "/moonsand", registry.path())
  end)
end)
