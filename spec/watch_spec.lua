-- files:watch, as the agent does it: by inotify, in a worker.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

describe("moonsand.files:watch", function()
  local box, watching

  helper.deadline(60)
  helper.no_leaks(function()
    if watching then
      watching:close()
    end
    box:close()
    box, watching = nil, nil
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
    moonsand.assert(box:exec "mkdir /w; cd /w; mkdir -p old/deep; echo 1 >file")
  end)

  local function watch(path, opts)
    watching = moonsand.assert(box.files:watch(path or "/w", opts))
    return watching
  end

  local function sh(command)
    local r = moonsand.assert(box:exec(command))
    assert.equal("", r.stderr)
    return r.stdout
  end

  --- What comes until something does, and then for a file of our own: as "event path" lines.
  local function events()
    sh "touch /w/.last"
    local list = {}
    for event in watching do
      if event.path == "/w/.last" then
        if event.event == "created" then
          break
        end
      else
        list[#list + 1] = event.event .. " " .. event.path
      end
    end
    sh "rm /w/.last"
    return table.concat(list, "\n")
  end

  it("says to who waits that it was closed", function()
    watch()
    moonsand.run(function()
      local waiting = moonsand.task(watching.next, watching, 20)
      moonsand.sleep(0.1)
      watching:close()
      local event, message, code = waiting:wait()
      assert.is_nil(event)
      assert.equal("closed", code)
      assert.truthy(message:find("closed", 1, true), message)
    end)
  end)

  it("is native, and needs no looking", function()
    assert.equal("native", box:can "watch")
    watch(nil, { interval = 1000 })
    sh "echo 2 >/w/file"
    assert.same({ event = "modified", path = "/w/file" }, watching:next(20))
  end)

  it("tells of files: made, written, changed, renamed, removed", function()
    watch()
    sh "echo x >/w/new"
    assert.equal("created /w/new\nmodified /w/new", events())
    sh "chmod 600 /w/new"
    assert.equal("modified /w/new", events())
    sh "mv /w/new /w/other"
    assert.equal("removed /w/new\ncreated /w/other", events())
    sh "rm /w/other; ln -s nowhere /w/link; mkfifo /w/fifo"
    assert.equal("removed /w/other\ncreated /w/link\ncreated /w/fifo", events())
    sh "touch /w/old/inner; mkdir /w/old/more"
    assert.equal("", events())
  end)

  it("tells of our own writes as what they are", function()
    watch()
    moonsand.assert(box.files:write("/w/ours", "1"))
    assert.equal("created /w/ours", events())
    moonsand.assert(box.files:write("/w/ours", "2"))
    assert.equal("modified /w/ours", events())
    moonsand.assert(box.files:remove "/w/ours")
    assert.equal("removed /w/ours", events())
  end)

  it("goes below with recursive, also into what is new", function()
    watch(nil, { recursive = true })
    sh "echo x >/w/old/deep/f"
    assert.equal("created /w/old/deep/f\nmodified /w/old/deep/f", events())
    sh "mkdir -p /w/a/b/c && : >/w/a/b/c/f"
    assert.equal("created /w/a\ncreated /w/a/b\ncreated /w/a/b/c\ncreated /w/a/b/c/f", events())
    sh ": >/w/a/b/c/g"
    assert.equal("created /w/a/b/c/g", events())
    sh "mv /w/a /w/z"
    assert.equal("removed /w/a\ncreated /w/z\ncreated /w/z/b\ncreated /w/z/b/c",
      (events():gsub("\ncreated /w/z/b/c/[fg]", "")))
    sh "echo 1 >>/w/z/b/c/f"
    assert.equal("modified /w/z/b/c/f", events())
    sh "mv /w/z /tmp/gone; touch /tmp/gone/b/x"
    assert.equal("removed /w/z", events())
    sh "rm -r /w/old"
    assert.equal("removed /w/old/deep/f\nremoved /w/old/deep\nremoved /w/old", events())
  end)

  it("follows no link below, and takes a link itself", function()
    sh "mkdir /out; ln -s /out /w/old/link; ln -s /w /to"
    watch("/to", { recursive = true })
    sh "touch /out/x /w/old/link/y /w/z"
    assert.same({ event = "created", path = "/to/z" }, watching:next(20))
  end)

  it("ends after the directory is removed, renamed, or what it is in is renamed", function()
    for _, command in ipairs { "rm -r /w/old", "mv /w/old /w/else", "mv /w /w2",
      "exec 3</w/old; rm -r /w/old; sleep 5 <&3 >/dev/null 2>&1 &" } do
      local w = watch "/w/old"
      sh(command)
      local event
      repeat
        event = moonsand.assert(w:next(20))
      until event.path == "/w/old"
      assert.equal("removed", event.event)
      assert.is_nil((w:next(20)))
      assert.is_nil((w:next(20)))
      sh "rm -rf /w2 /w; mkdir -p /w/old/deep"
    end
  end)

  it("refuses what it cannot watch", function()
    for path, expected in pairs { ["/w/nope"] = "not_found", ["/w/file"] = "not_a_directory" } do
      local none, message, code = box.files:watch(path)
      assert.is_nil(none)
      assert.equal(expected, code, message)
    end
    sh "mkdir /many; cd /many; seq 9000 | xargs mkdir"
    local none, message, code = box.files:watch("/many", { recursive = true })
    assert.is_nil(none)
    assert.equal("too_large", code, message)
    watch "/many"
  end)

  it("waits no longer than it is told, and goes on", function()
    watch()
    local none, _, code = watching:next(0.02)
    assert.is_nil(none)
    assert.equal("timeout", code)
    none, _, code = watching:next { cancel = moonsand.token { timeout = 0.02 } }
    assert.is_nil(none)
    assert.equal("cancelled", code)
    sh "touch /w/late"
    assert.equal("/w/late", moonsand.assert(watching:next(20)).path)
  end)

  local function workers()
    return tonumber(sh "set -- /proc/[0-9]*; echo $#")
  end

  it("leaves no process behind: closed, dropped, or with its sandbox", function()
    local before = workers()
    watch():close()
    support.eventually(20, "a worker is left", function()
      return workers() <= before
    end)
    assert.is_nil((watching:next(1)))
    box.files:watch("/w")
    watching = nil
    support.eventually(20, "a worker is left", function()
      helper.settle()
      return workers() <= before
    end)
    watch()
    box:close()
    local none, _, code = watching:next(20)
    assert.is_nil(none)
    assert.equal("closed", code)
  end)

  it("tells when its worker was killed inside", function()
    watch()
    sh "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -9 $p; done; true"
    local none, message, code = watching:next(20)
    assert.is_nil(none)
    assert.equal("lost", code, message)
  end)

  it("tells of what was lost, stays small, and goes on", function()
    watch(nil, { recursive = true })
    -- nobody reads: the pipe fills, the worker waits, the kernel's queue overflows
    sh [[cd /w; python3 -c '
import os
for i in range(30000):
    os.mkdir("d%d" % (i % 500)); open("d%d/f" % (i % 500), "w").close()
    os.unlink("d%d/f" % (i % 500)); os.rmdir("d%d" % (i % 500))
os.makedirs("end/of/it")']]
    local lost = false
    repeat
      local event = moonsand.assert(watching:next(20))
      lost = lost or event.event == "overflow"
    until lost
    sh "touch /w/end/of/it/all"
    repeat
      local event = moonsand.assert(watching:next(20))
    until event.path == "/w/end/of/it/all"
    local memory = 0
    for _, process in ipairs(moonsand.assert(box:ps())) do
      memory = math.max(memory, process.memory)
    end
    assert.truthy(memory < 64 * 1024 * 1024, memory)
  end)

  it("does not hinder the agent while directories are made at speed", function()
    watch(nil, { recursive = true })
    local busy = moonsand.assert(box:start { "python3", "-c", [[
import os, itertools
os.chdir("/w"); print("go", flush=True)
for i in itertools.count():
    try:
        os.makedirs("x/y/z"); os.rename("x", "v"); os.rename("v/y", "y"); os.rmdir("y/z"); os.rmdir("y"); os.rmdir("v")
    except OSError: pass]] })
    assert.equal("go", busy.stdout:read())
    for _ = 1, 30 do
      assert.equal("ok\n", moonsand.assert(box:exec("echo ok", 20)).stdout)
    end
    busy:close()
    sh "touch /w/after"
    repeat
      local event = moonsand.assert(watching:next(20))
    until event.path == "/w/after" or event.event == "overflow"
  end)
end)
