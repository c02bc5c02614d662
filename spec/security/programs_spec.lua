-- Odd programs, started by the host's own calls: each ends in time, with a Result or an error that says
-- why, with no right more than any other, and the sandbox goes on.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

describe("programs", function()
  local box

  helper.deadline(40)
  helper.no_leaks(function()
    box:close()
  end)

  before_each(function()
    box = moonsand.assert(moonsand.create())
  end)

  local function output(command, opts)
    return moonsand.assert(box:exec(command, opts)).stdout
  end

  it("that are none are refused by name, and hold nobody up", function()
    output [[
      mkdir /tmp/p; cd /tmp/p
      echo 'no magic' >text; : >empty; printf '#!' >bare; printf '#!\n' >blank
      printf '#!/tmp/p/itself\n' >itself; printf '#!/no/where\n' >orphan; printf '#!/tmp\n' >place
      printf '#!/tmp/p/fifo\n' >piped; mkfifo fifo; printf '#!%s\n' "$(printf '%05000d' 0)" >long
      printf '#!/bin/sh\0\n' >nul
      i=0; printf '#!/bin/sh\necho 0\n' >s0
      while [ $i -lt 8 ]; do n=$((i + 1)); printf '#!/tmp/p/s%d\n' $i >s$n; i=$n; done
      head -c 64 /bin/true >cut; head -c 5000 /bin/true >short; head -c 4096 /dev/urandom >noise
      printf '\177ELF' >magic; (head -c 4 /bin/true; head -c 200 /dev/zero | tr '\0' '\377') >ones
      (head -c 54 /bin/true; printf '\377\377\377\377'; head -c 9000 /dev/zero) >many
      chmod +x *; ln -s /proc/1/exe agent]]
    for name, codes in pairs {
      text = "invalid", empty = "invalid", bare = "invalid|permission_denied",
      blank = "invalid|permission_denied", itself = "loop",
      orphan = "not_found", place = "permission_denied", piped = "permission_denied",
      fifo = "permission_denied", long = "invalid|not_found", s8 = "loop", cut = "invalid|provider",
      noise = "invalid", magic = "invalid|provider", ones = "invalid|provider",
      many = "invalid|provider", agent = "permission_denied",
      ["s0/x"] = "not_found|not_a_directory",
    } do
      local begun = core.now()
      local r, message, code = box:exec({ "/tmp/p/" .. name }, { timeout = 10 })
      assert.is_nil(r, name .. ": " .. tostring(r))
      local expected = ("|" .. codes .. "|"):find("|" .. code .. "|", 1, true)
      assert.is_true(expected ~= nil, ("%s: %s, %s"):format(name, code, message))
      assert.is_true(core.now() - begun < 5, name)
    end
    assert.equal("0\n", output { "/tmp/p/s3" }) -- a short chain works
    local r = box:exec({ "/tmp/p/short" }, { timeout = 10 })
    assert.is_true(r == nil or r.signal ~= nil)
    for _, path in ipairs { "/proc/1/exe", "/proc/1/root/bin/sh", "/dev/fd/0", "/proc/self/fd/3",
      "/dev/null", "/dev/stdin" } do
      local ran, _, code = box:exec({ path, "-c", "echo ran" }, { timeout = 10 })
      assert.is_nil(ran, path)
      assert.is_true(code == "permission_denied" or code == "not_found" or code == "is_a_directory",
        path .. ": " .. code)
    end
    assert.equal("fine\n", output "echo fine")
  end)

  it("that lead to what starts them do not give away its file (CVE-2019-5736)", function()
    -- "#!/proc/self/exe" is the agent's own program, which may be a file of the host's user: a sandbox
    -- that opened it through the process that ran it could change its mode and more.
    local file = ("%s/%s/moonsand/agent"):format(os.getenv "MOONSAND_BUILD" or "build",
      support.interpreter == "luajit" and "jit" or "5.4")
    local function state()
      return (support.run("stat -c '%a %u %s %Y %Z %h' " .. file .. "; cksum " .. file))
    end
    local before = state()
    output [[printf '#!/proc/self/exe\n' >/tmp/script; chmod +x /tmp/script; ln -s /proc/self/exe /tmp/link]]
    local spoiler = moonsand.assert(box:start { support.put(box, support.probe "protocol"), "program" })
    moonsand.assert(spoiler:wait_for("^ready", 10))
    for _ = 1, 10 do
      for _, path in ipairs { "/tmp/script", "/tmp/link", "/proc/self/exe", "/proc/thread-self/exe" } do
        box:exec({ path }, { timeout = 0.05 }) -- the agent is stopped before and after its exec
      end
    end
    assert.is_nil(spoiler:wait_for("opened", 0.1))
    spoiler:close()
    assert.equal(before, state())
    assert.equal("fine\n", output "echo fine")
  end)

  it("that change while they are started are busy, or run, and hold up only themselves", function()
    local path = support.put(box, support.probe "files")
    output "cp /bin/true /tmp/busy; cp /bin/true /tmp/leased; cp /bin/true /tmp/a; mkfifo /tmp/b"
    local writer = moonsand.assert(box:start "exec 3>>/tmp/busy; echo ready; exec sleep 1000")
    moonsand.assert(writer:wait_for("^ready", 10))
    assert.equal("busy", select(3, box:exec { "/tmp/busy" }))
    local lease = moonsand.assert(box:start { path, "lease", "/tmp/leased" })
    moonsand.assert(lease:wait_for("^ready", 10))
    local begun = core.now()
    local r, _, code = box:exec({ "/tmp/leased" }, { timeout = 1 })
    assert.is_true(r == nil and (code == "busy" or code == "timeout") or r ~= nil, code)
    assert.is_true(core.now() - begun < 10)
    local racer = moonsand.assert(box:start { path, "swap", "/tmp/a", "/tmp/b" })
    moonsand.assert(racer:wait_for("^ready", 10))
    for _ = 1, 200 do
      local ran, _, why = box:exec({ "/tmp/a" }, { timeout = 10 })
      assert.is_true(ran and ran.ok or why == "permission_denied" or why == "not_found", why)
    end
    for _, p in ipairs { writer, lease, racer } do
      p:close()
    end
    assert.equal("fine\n", output "echo fine")
  end)

  it("that are set uid take nothing from the variables that load libraries, and get no rights", function()
    output "cp /bin/true /tmp/lib.so"
    local text = output([[
      for program in /usr/bin/su /usr/bin/passwd /usr/bin/mount /usr/bin/newgrp /usr/bin/chsh; do
        test -u $program || continue
        $program --help >/dev/null 2>&1
        $program </dev/null >/dev/null 2>&1
      done
      id -u; id -ru; grep -E 'CapEff|NoNewPrivs' /proc/self/status]],
      { env = { LD_PRELOAD = "/tmp/lib.so", LD_LIBRARY_PATH = "/tmp", GCONV_PATH = "/tmp" },
        timeout = 20 })
    assert.equal("1000\n1000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n", text)
  end)

  it("that fail to start, thousands of them, leave the agent whole", function()
    -- Their processes share its memory until they are gone: they ran on its stack when it had gone on,
    -- crashed there (the kernel's log told of it), and once in a while took it with them.
    local agent = support.agent(box)
    local before = support.process(agent)
    output "touch /tmp/file"
    local busy = { moonsand.assert(box:start "while :; do :; done"),
      moonsand.assert(box:start "while :; do :; done") }
    for i = 1, 1500 do
      local r, _, code = box:exec(i % 2 == 0 and { "/tmp/file" } or { "true" },
        { cwd = i % 2 == 1 and "/tmp/file" or nil })
      assert.is_nil(r)
      assert.is_true(code == "not_a_directory" or code == "permission_denied", code)
    end
    for _, p in ipairs(busy) do
      p:close()
    end
    assert.equal(before.started, support.process(agent).started)
    assert.equal("fine\n", output "echo fine")
  end)

  it("that have no file run with the same filter and rights as others", function()
    if not output "command -v python3; true":find "python3" then
      return -- memfd_create has no shell command; the filter is that of every process
    end
    local text = output { "python3", "-c", [[
import os
fd = os.memfd_create("m", 0)
os.write(fd, open("/bin/grep", "rb").read())
os.execve(fd, ["grep", "-E", "^(Seccomp|NoNewPrivs|CapEff):", "/proc/self/status"], {})]] }
    assert.equal("CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n", text)
  end)

  it("cannot register formats of programs, nor find those of the host", function()
    local before = support.run "ls /proc/sys/fs/binfmt_misc 2>&1"
    local text = output [[exec 2>/dev/null
      echo ':x:M::\x7fELF::/tmp/x:OC' >/proc/sys/fs/binfmt_misc/register && echo registered
      mount -t binfmt_misc none /tmp && echo mounted; true]]
    assert.equal("", text)
    assert.equal(before, support.run "ls /proc/sys/fs/binfmt_misc 2>&1")
  end)

  it("with more words and variables than the kernel takes are too large, also one by one", function()
    local word = ("x"):rep(100000)
    local many = { "true" }
    for i = 2, 60 do
      many[i] = word
    end
    assert.equal("too_large", select(3, box:exec(many)))
    assert.equal("too_large", select(3, box:exec { "true", ("x"):rep(3 * 1024 * 1024) }))
    assert.equal("too_large", select(3, box:exec("true", { env = { A = ("x"):rep(3 * 1024 * 1024) } })))
    local short = { "true" }
    for i = 2, 100000 do
      short[i] = ""
    end
    local r, _, code = box:exec(short)
    assert.is_true(r ~= nil and r.ok or code == "too_large", code)
    assert.equal("fine\n", output "echo fine")
  end)
end)
