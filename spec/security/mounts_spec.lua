-- What a sandbox may do with directories of the host, and what it tries beyond.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

describe("mounts", function()
  local box, dir, secret, count

  helper.deadline(60)
  helper.no_leaks(function()
    if box then
      box:close()
    end
    box = nil
  end)

  before_each(function()
    count = (count or 0) + 1
    dir = support.directory() .. "/attacked-" .. count
    secret = support.directory() .. "/secret"
    support.run("mkdir -p " .. dir .. "/sub")
    support.write(dir .. "/file", "of the host\n")
    support.write(secret, "the secret of the host")
  end)

  local function create(opts)
    box = moonsand.assert(moonsand.create(opts))
    return box
  end

  local function sh(command, ...)
    return moonsand.assert(box:exec { "sh", "-c", "{ " .. command .. "\n} 2>&1", ... }).stdout
  end

  local function host(command)
    return (support.run("cd " .. support.quote(dir) .. " && " .. command))
  end

  local SETID = {
    file = "OK", chmod = "EPERM", ["chmod, group"] = "EPERM", ["chmod, high half"] = "EPERM",
    fchmod = "EPERM", fchmodat = "EPERM", fchmodat2 = "EPERM", open = "EPERM", openat = "EPERM",
    creat = "EPERM", nameless = "EPERM", mknod = "EPERM", mknodat = "EPERM", openat2 = "ENOSYS",
    ["openat2, plain"] = "ENOSYS", ["plain chmod"] = "OK", sticky = "OK", ["plain open"] = "OK",
    ["stray mode"] = "OK", ["stray mode of a directory"] = "OK", mkdir = "OK",
  }

  describe("that can be written", function()
    it("get no setuid or setgid file, however it is tried", function()
      create { workspace = dir }
      support.refused(support.answers(support.try(box, "setid", {}, { cwd = "/workspace" })), SETID)
      support.refused(support.answers(support.try(box, "setid", {}, { cwd = "/tmp" })), SETID)
      assert.equal("", host "find . -perm /6000")
      -- The agent's own calls are under the same rule.
      for _, mode in ipairs { "4755", "2755", "u+s" } do
        assert.equal("permission_denied", select(3, box.files:chmod("file", mode)))
        assert.is_nil((box.files:write("by-agent", "x", { mode = mode })))
      end
      assert.equal("", host "find . -perm /6000")
    end)

    it("leave setuid files alone in sandboxes that write nothing of the host", function()
      create { mounts = { { source = dir, target = "/data" } } }
      assert.equal("4755\n", sh "touch /tmp/x; chmod 4755 /tmp/x; stat -c %a /tmp/x")
    end)

    it("get no devices, and what is setuid there already is not", function()
      host "cp /bin/sh shell && chmod 6755 shell"
      create { workspace = dir }
      sh "mknod null c 1 3; mknod disk b 254 0"
      assert.equal("shell\n", host "ls -A | grep -v '^file$\\|^sub$'")
      assert.equal("1000 1000 1000\n", sh "./shell -p -c 'echo $(id -u) $(id -ru) $(id -g)'")
      if support.run "id -u" == "0\n" then
        host "mknod zero c 1 5 && chmod 666 zero && mknod disk b $(stat -c '%Hd %Ld' . 2>/dev/null || echo 8 0)"
        assert.truthy(sh "head -c 1 zero":find "Permission denied")
        assert.truthy(sh "head -c 1 disk":find "Permission denied")
      end
    end)

    it("are no way out: no hard link, no link, no name of /proc", function()
      create { workspace = dir }
      local text = sh([[
        exec 2>/dev/null
        ln /etc/passwd out && echo "linked in"
        ln file /tmp/out && echo "linked out"
        ln -s "$0" link; ln -s ../secret up; ln -s / root; ln -s /proc/1/root magic
        for path in link up ../secret root"$0" magic"$0" /workspace/../secret /proc/self/cwd/../secret \
          /proc/1/cwd/../secret /workspace/sub/../../secret; do
          cat $path
        done
        cd sub; cat ../../secret
        find / -path /usr -prune -o -name secret -print]], secret)
      assert.equal("", text)
    end)

    it("lead the host's own calls nowhere, however links are swapped", function()
      create { workspace = dir }
      local outside = support.directory() .. "/outside-" .. count
      support.run("mkdir -p " .. outside)
      support.write(outside .. "/f", "outside")
      local racer = moonsand.assert(box:start({ "sh", "-c", [[
        mkdir real; echo inside >real/f
        while :; do
          mv real kept; ln -s "$0" real; rm real; ln -s /etc real; rm real; mv kept real
        done]], outside }))
      for i = 1, 150 do
        local text = box.files:read "real/f" -- empty while the racer writes it first
        assert.is_true(text == nil or text == "" or text == "inside\n" or text == "x", text)
        box.files:write("real/f", "x")
        box.files:write("real/new-" .. i, "x")
        box.files:chmod("real/f", "600")
        box.files:remove("real/new-" .. i)
        if i % 10 == 0 then
          box.files:upload(dir .. "/file", "real/up")
          box.files:copy("real", "copied")
          box.files:remove("copied", { recursive = true })
        end
      end
      racer:close()
      assert.equal("outside", support.read(outside .. "/f"))
      assert.equal("f\n", (support.run("ls -A " .. outside)))
      assert.equal("644\n", (support.run("stat -c %a " .. outside .. "/f")))
    end)

    helper.native_it("may be moved about by one sandbox while another is made", function()
      create { workspace = dir }
      host "mkdir victim"
      local racer = moonsand.assert(box:start [[
        while :; do mv victim kept; ln -s /etc victim; rm victim; ln -s / victim; rm victim
          mv kept victim; done]])
      local codes = {}
      for _ = 1, 40 do
        local other, message, code = moonsand.create { workspace = dir, mounts = {
          { source = dir .. "/sub", target = "/workspace/victim" } } }
        codes[code or "ok"] = true
        if other then
          local text = moonsand.assert(other:exec "grep -c ' /etc ' /proc/self/mountinfo; ls /etc").stdout
          assert.truthy(text:find "^0\n", text)
          assert.truthy(text:find "passwd", text)
          other:close()
        else
          assert.truthy(code == "loop" or code == "not_found" or code == "not_a_directory", message)
        end
      end
      racer:close()
      assert.equal("of the host\n", support.read(dir .. "/file"))
      assert.is_not_nil(next(codes))
    end)
  end)

  describe("that are read-only", function()
    it("cannot be made writable, nor taken away", function()
      create { mounts = { { source = dir, target = "/data" } } }
      sh [[exec 2>/dev/null
        mount -o remount,rw /data; mount -o remount,bind,rw /data; mount --bind /data /tmp; umount /data
        umount -l /data; mount -t tmpfs none /data; unshare -Urm mount -o remount,rw /data
        echo x >/data/x; echo x >/proc/self/root/data/x; echo x >/proc/1/root/data/x
        cd /data; echo x >/proc/self/cwd/x; exec 3<file; echo x >/proc/self/fd/3; echo x >/dev/fd/3
        chmod 777 file; setfattr -n user.x -v y file; rm -f file; ln file other; truncate -s 0 file]]
      assert.equal("file\nsub\n", host "ls -A")
      assert.equal("of the host\n", support.read(dir .. "/file"))
      assert.equal(host "stat -c %a file", (support.run("stat -c %a " .. dir .. "/file")))
      assert.truthy(sh "cat /data/file":find "of the host")
    end)

    helper.native_it("are so with all that is mounted below them", function()
      -- In mounts of its own: as root, or as root of a user namespace.
      local output, status = support.child(([[
        local moonsand = require "moonsand"
        local box = moonsand.assert(moonsand.create { mounts = {
          { source = %q, target = "/data" }, { source = %q, target = "/again", mode = "rw" } } })
        print(moonsand.assert(box:exec("cat /data/sub/deep; { echo x >/data/sub/deep; } 2>/dev/null || "
          .. "echo refused; { echo x >/data/sub/new; } 2>/dev/null || echo refused; "
          .. "grep -c nosuid,nodev.*$0 /proc/self/mountinfo | head -1; echo y >/again/sub/deep; "
          .. "cat /data/sub/deep")).stdout)
        box:close()]]):format(dir, dir), ([[%s sh -c 'mount -t tmpfs -o mode=777 none %s/sub &&
          echo deep >%s/sub/deep && chmod 666 %s/sub/deep && exec "$@"' sh]]):format(
        support.run "id -u" == "0\n" and "unshare -m" or "unshare -rm", dir, dir, dir))
      assert.equal(0, status, output)
      assert.truthy(output:find "^deep\nrefused\nrefused\n", output)
      assert.truthy(output:find "y\n", output)
    end)
  end)

  it("show nothing of a directory that its caller may not read", function()
    host "mkdir shut && touch shut/inside && chmod 000 shut"
    if support.run "id -u" ~= "0\n" then
      local none, message, code = moonsand.create { mounts = { { source = dir .. "/shut", target = "/d" } } }
      assert.is_nil(none)
      assert.equal("permission_denied", code, message)
      none, message, code = moonsand.create { mounts = { { source = "/root", target = "/d" } } }
      assert.is_nil(none)
      assert.equal("permission_denied", code, message)
    else -- root's own directory is root's to show
      create { mounts = { { source = dir .. "/shut", target = "/d" } } }
      assert.truthy(sh "ls /d":find "denied")
    end
    host "chmod 700 shut"
  end)

  it("are what was there when they were asked for, whatever a racer swaps in", function()
    local other = support.directory() .. "/swapped-" .. count
    support.run("mkdir -p " .. other .. "/in")
    support.write(other .. "/in/mark", "other")
    host "mkdir in; echo one >in/mark"
    local racer = support.run(([[cd %s; (while [ -e file ]; do
        ln -sfn %s/in swap; ln -sfn %s/in swap; done) >/dev/null 2>&1 & echo $!]]):format(dir, dir, other))
    host "until [ -e swap ]; do :; done"
    for _ = 1, 40 do
      local made, message, code = moonsand.create { mounts = { { source = dir .. "/swap", target = "/d" } } }
      if made then
        local source = made:info().mounts[1].source
        local mark = moonsand.assert(made:exec "cat /d/mark").stdout
        assert.equal(source == other .. "/in" and "other" or "one\n", mark)
        made:close()
      else
        assert.equal("conflict", code, message)
      end
    end
    os.remove(dir .. "/file")
    support.run("while kill -0 " .. racer:match "%d+" .. " 2>/dev/null; do :; done")
  end)

  helper.native_it("leave the host's mounts as they are", function()
    local before = support.read "/proc/self/mountinfo"
    create { workspace = dir, mounts = { { source = dir, target = "/a" },
      { source = dir, target = "/b", mode = "copy" } } }
    sh "true"
    box:close()
    assert.equal(before, support.read "/proc/self/mountinfo")
    assert.equal("file\nsub\n", host "ls -A")
  end)
end)
