-- What of the host is in a sandbox because somebody asked for it: `workspace` and `mounts`.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

local native_it = helper.native_it

-- The modes in which bwrap mounts directories too.
local modes = support.isolation == "native" and { "ro", "rw", "copy" } or { "ro", "rw", "rw" }

describe("moonsand.mounts", function()
  local box, dir, count

  helper.deadline(60)
  helper.no_leaks(function()
    if box then
      box:close()
    end
    box = nil
  end)

  before_each(function()
    count = (count or 0) + 1
    dir = support.directory() .. "/mounts-" .. count
    support.run("mkdir -p " .. dir .. "/sub")
    support.write(dir .. "/file", "of the host\n")
  end)

  local function create(opts)
    box = moonsand.assert(moonsand.create(opts))
    return box
  end

  local function sh(command)
    return moonsand.assert(box:exec("{ " .. command .. "\n} 2>&1")).stdout
  end

  --- Of the host, by its own tools.
  local function host(command)
    return (support.run("cd " .. support.quote(dir) .. " && " .. command))
  end

  local function refused(opts, code, pattern)
    local none, message, got, detail = moonsand.create(opts)
    if none then
      none:close()
    end
    assert.is_nil(none)
    assert.equal(code, got, message)
    assert.truthy(message:find(pattern), message)
    assert.is_false(detail.started)
    return detail
  end

  describe("workspace", function()
    it("is a directory of the host, read and written", function()
      create { workspace = dir }
      assert.equal("of the host\n", sh "cat file")
      assert.equal("", sh "echo inside >made; mkdir -p deep/er; rm file; mv sub moved")
      assert.equal("inside\n", support.read(dir .. "/made"))
      assert.equal("deep\nmade\nmoved\n", host "ls")
    end)

    it("holds files that belong to the directory's owner, inside and outside", function()
      create { workspace = dir }
      assert.equal("sandbox sandbox\n", sh "touch new; stat -c '%U %G' new")
      assert.equal(host "stat -c %u:%g .", host "stat -c %u:%g new")
      moonsand.assert(box.files:write("written", "by box.files"))
      assert.equal(host "stat -c %u:%g .", host "stat -c %u:%g written")
      assert.equal("by box.files", support.read(dir .. "/written"))
    end)

    it("stays when the sandbox goes, and is seen by the next", function()
      create { workspace = dir }
      sh "echo one >state"
      box:close()
      create { workspace = dir }
      assert.equal("one\n", sh "cat state")
    end)

    it("is shared by sandboxes at the same time", function()
      create { workspace = dir }
      local other = moonsand.assert(moonsand.create { workspace = dir })
      sh "echo hello >message"
      assert.equal("hello\n", moonsand.assert(other:exec "cat message").stdout)
      other:close()
    end)

    it("works with all file calls", function()
      create { workspace = dir }
      local files = box.files
      moonsand.assert(files:write("a/b.txt", "text", { mode = "755" }))
      moonsand.assert(files:write("a/b.txt", " and more", { append = true }))
      assert.equal("text and more", moonsand.assert(files:read "a/b.txt"))
      moonsand.assert(files:copy("a", "c"))
      moonsand.assert(files:move("c", "d"))
      assert.equal("text and more", support.read(dir .. "/d/b.txt"))
      assert.equal("755\n", host "stat -c %a d/b.txt")
      moonsand.assert(files:remove("d", { recursive = true }))
      moonsand.assert(files:upload(dir .. "/file", "up"))
      moonsand.assert(files:download("up", dir .. "/down"))
      assert.equal("of the host\n", support.read(dir .. "/down"))
      assert.equal("a\ndown\nfile\nsub\nup\n", host "ls -A")
      local none, _, code = files:chmod("up", "4755")
      assert.is_nil(none)
      assert.equal("permission_denied", code)
    end)

    it("takes a relative path, and a link, which is followed once", function()
      host("ln -s . link")
      local relative = support.run("realpath --relative-to=. " .. dir .. "/link/sub"):gsub("%s+$", "")
      create { workspace = relative }
      sh "touch here"
      assert.equal("here\n", host "ls sub")
      assert.equal(dir .. "/sub", box:info().mounts[1].source)
    end)

    native_it("is told by info, with all mounts", function()
      create { workspace = dir, mounts = {
        { source = dir .. "/file", target = "/data/file" },
        { source = dir, target = "/copy/", mode = "copy" },
        { source = dir .. "/file", target = "/etc/motd", mode = "copy" },
      } }
      assert.same({
        { source = dir, target = "/workspace", mode = "rw", by = "bind" },
        { source = dir, target = "/copy", mode = "copy", by = "overlay" },
        { source = dir .. "/file", target = "/data/file", mode = "ro", by = "bind" },
        { source = dir .. "/file", target = "/etc/motd", mode = "copy", by = "copy" },
      }, box:info().mounts)
      box:close()
      create()
      assert.same({}, box:info().mounts)
    end)

    it("must be a directory, there, and the caller's to read", function()
      refused({ workspace = dir .. "/nope" }, "not_found", "workspace: .*nope")
      refused({ workspace = dir .. "/file" }, "not_a_directory", "workspace: .*file")
      refused({ workspace = "" }, "invalid", "workspace")
    end)
  end)

  describe("ro", function()
    it("is the default, and cannot be written", function()
      create { mounts = { { source = dir, target = "/data" } } }
      assert.equal("of the host\n", sh "cat /data/file")
      sh [[cd /data; echo x >file; echo x >new; rm -f file; mkdir d; ln -s a b; mv file other
        chmod 777 file; touch -d 2001-01-01 file; mkfifo p; truncate -s 0 file]]
      assert.equal("file\nsub\n", host "ls -A")
      assert.equal("of the host\n", support.read(dir .. "/file"))
      local none, _, code = box.files:write("/data/new", "x")
      assert.is_nil(none)
      assert.equal("read_only", code)
    end)

    it("shows what happens outside meanwhile", function()
      create { mounts = { { source = dir, target = "/data" } } }
      support.write(dir .. "/later", "later")
      assert.equal("later", sh "cat /data/later")
    end)

    it("takes single files", function()
      create { mounts = { { source = dir .. "/file", target = "/etc/tool/config" } } }
      assert.equal("of the host\n", sh "cat /etc/tool/config")
      sh "echo x >/etc/tool/config; rm -f /etc/tool/config"
      assert.equal("of the host\n", support.read(dir .. "/file"))
    end)

    it("keeps what it opened when the source is replaced", function()
      create { mounts = { { source = dir .. "/sub", target = "/data" } } }
      host "mv sub old; ln -s /etc sub; touch old/inside"
      assert.equal("inside\n", sh "ls -A /data")
    end)
  end)

  describe("rw", function()
    it("writes files and directories", function()
      create { mounts = {
        { source = dir .. "/sub", target = "/out", mode = "rw" },
        { source = dir .. "/file", target = "/log", mode = "rw" },
      } }
      assert.equal("", sh "echo result >/out/r; echo more >>/log")
      assert.equal("result\n", support.read(dir .. "/sub/r"))
      assert.equal("of the host\nmore\n", support.read(dir .. "/file"))
    end)

    it("is refused where nothing can be written", function()
      if support.run "id -u" == "0\n" then
        refused({ mounts = { { source = "/dev/shm/..", target = "/d", mode = "rw" } } }, "invalid", "kernel")
      else
        refused({ mounts = { { source = "/etc/ssl/certs", target = "/d", mode = "rw" } } },
          "permission_denied", "cannot be written")
      end
    end)

    it("never holds the helper that makes sandboxes", function()
      local own = require("moonsand.providers.local.launch").agent
      for _, source in ipairs { own, (own:gsub("/[^/]*$", "")), (own:gsub("/[^/]*/[^/]*$", "")) } do
        if source:sub(1, 1) ~= "/" then
          source = "./" .. source
        end
        refused({ mounts = { { source = source, target = "/x", mode = "rw" } } }, "invalid", "helper")
      end
    end)
  end)

  describe("copy", function()
    native_it("is written inside only", function()
      create { mounts = {
        { source = dir, target = "/data", mode = "copy" },
        { source = dir .. "/file", target = "/etc/motd", mode = "copy" },
      } }
      assert.equal("", sh [[cd /data; echo mine >>file; rm -r sub; mkdir -p a/b; mv a c; touch c/new
        chmod 700 c; echo x >>/etc/motd]])
      assert.equal("c\nfile\n", sh "ls -A /data")
      assert.equal("of the host\nmine\n", sh "cat /data/file")
      assert.equal("of the host\nx\n", sh "cat /etc/motd")
      assert.equal("file\nsub\n", host "ls -A")
      assert.equal("of the host\n", support.read(dir .. "/file"))
    end)

    native_it("counts against the disk", function()
      create { limits = { disk = "4M" }, mounts = { { source = dir, target = "/data", mode = "copy" } } }
      assert.truthy(sh "head -c 8M /dev/zero >/data/big":find "No space")
      support.run("head -c 8M /dev/zero >" .. dir .. "/big")
      refused({ limits = { disk = "4M" }, mounts = {
        { source = dir .. "/big", target = "/data", mode = "copy" } } }, "no_space", "mounts%[1%]")
    end)

    native_it("is unavailable, with the reason, where the kernel cannot make one", function()
      -- An overlay on an overlay on an overlay is too deep for it.
      local output, status = support.child(([[
        local moonsand = require "moonsand"
        local box, message, code, detail = moonsand.create { mounts = {
          { source = %q, target = "/data", mode = "copy" } } }
        print(box, code, detail.cause, detail.fix ~= nil)
        moonsand.with({ mounts = { { source = %q, target = "/data" } } }, function(inside)
          print(moonsand.assert(inside:exec "cat /data/file").stdout)
        end)]]):format(dir .. "/sub", dir .. "/sub"), ([[%s sh -c 'cd %s && mkdir a b c one two && cp file a
          mount -t overlay -o lowerdir=a:b none one && mount -t overlay -o lowerdir=one:c none two &&
          mount --rbind two sub && cd - >/dev/null && exec "$@"' sh]]):format(
        support.run "id -u" == "0\n" and "unshare -m" or "unshare -rm", dir))
      assert.equal(0, status, output)
      assert.truthy(output:find "^nil\tunavailable\toverlayfs does not take[^\n]*\ttrue\nof the host\n", output)
    end)

    native_it("hides where its changes are kept", function()
      create { mounts = { { source = dir, target = "/data", mode = "copy" } } }
      sh "echo changed >/data/file"
      assert.equal("", sh "ls -A /.copies; find / -xdev -path '*upper*'")
    end)
  end)

  describe("targets", function()
    native_it("are mounted from the outside in, whatever order they are told in", function()
      create { mounts = {
        { source = dir .. "/file", target = "/data/sub/deep/file" },
        { source = dir, target = "/data", mode = "copy" },
      } }
      assert.equal("of the host\n", sh "cat /data/sub/deep/file")
      assert.equal("", host "ls -A sub")
    end)

    native_it("are made inside, never on the host", function()
      for _, mode in ipairs { "ro", "rw" } do
        refused({ mounts = {
          { source = dir, target = "/data", mode = mode },
          { source = dir .. "/file", target = "/data/missing" },
        } }, "not_found", "nothing is made on the host")
        refused({ workspace = dir, mounts = { { source = dir, target = "/workspace/a/b", mode = mode } } },
          "not_found", "nothing is made on the host")
      end
      assert.equal("file\nsub\n", host "ls -A")
      create { workspace = dir, mounts = { { source = "/etc/passwd", target = "/workspace/file" } } }
      assert.truthy(sh "cat file":find "root")
      assert.equal("of the host\n", support.read(dir .. "/file"))
    end)

    native_it("go through no link", function()
      host "ln -s /etc link; ln -s /tmp sub/link"
      refused({ workspace = dir, mounts = { { source = dir .. "/sub", target = "/workspace/link/x" } } },
        "loop", "symbolic link")
      refused({ workspace = dir, mounts = { { source = dir .. "/sub", target = "/workspace/link" } } },
        "loop", "symbolic link")
      refused({ workspace = dir, mounts = { { source = dir, target = "/workspace/sub/link/x" } } },
        "loop", "symbolic link")
    end)

    it("are of the same kind as the source", function()
      refused({ mounts = { { source = dir, target = "/etc/passwd" } } }, "not_a_directory", "target")
      refused({ mounts = { { source = dir .. "/file", target = "/tmp" } } }, "is_a_directory", "target")
    end)

    for _, target in ipairs { "/", "//", "/usr", "/usr/local", "/usr/share/x", "/bin/sh", "/lib64/x", "/proc",
      "/proc/self/root", "/sys", "/dev/null", "/dev", "/.copies", "data", "", "./x", "/a/../b", "/a/./b",
      "/..", "/a//b", "/a\0b", "/" .. ("x"):rep(5000) } do
      it("refuse " .. ("%q"):format(target:sub(1, 20)), function()
        refused({ mounts = { { source = dir, target = target } } }, "invalid", "target")
      end)
    end

    it("of too long a name, twice the same, or too many, are refused", function()
      refused({ mounts = { { source = dir, target = "/" .. ("x"):rep(300) } } }, "invalid", "mounts%[1%]")
      refused({ mounts = { { source = dir, target = "/a" }, { source = dir, target = "/a/" } } }, "invalid",
        "same target")
      refused({ workspace = dir, mounts = { { source = dir, target = "/workspace" } } }, "invalid",
        "workspace and mounts%[1%]")
      local many = {}
      for i = 1, 64 do
        many[i] = { source = dir, target = "/many/" .. i, mode = modes[i % 3 + 1] }
      end
      create { mounts = many }
      assert.equal("64\n", sh "ls -d /many/*/sub | wc -l")
      many[65] = { source = dir, target = "/more" }
      refused({ mounts = many }, "invalid", "more than 64")
    end)
  end)

  describe("sources", function()
    it("must be files or directories", function()
      host "mkfifo fifo; ln -s nowhere dangling; ln -s loop loop"
      local function source(path)
        return { mounts = { { source = path, target = "/data" } } }
      end
      refused(source(dir .. "/fifo"), "invalid", "neither a file nor a directory")
      refused(source "/dev/null", "invalid", "neither a file nor a directory")
      refused(source(dir .. "/dangling"), "not_found", "dangling")
      refused(source(dir .. "/loop"), "loop", "loop")
      refused(source(dir .. "/file/x"), "not_a_directory", "file/x")
      refused(source "", "invalid", "no path")
      refused(source(dir .. "\0/x"), "invalid", "no path")
    end)

    it("are not the kernel's own, nor have it below them", function()
      for _, path in ipairs { "/proc", "/proc/self", "/proc/self/root", "/proc/sys/kernel", "/sys",
        "/sys/kernel", "/", "/dev", "/dev/pts" } do
        refused({ mounts = { { source = path, target = "/data" } } }, "invalid", "kernel")
      end
    end)

    it("may have any name that a file may have", function()
      for _, name in ipairs { "a b", "new\nline", "com,ma", "co:lon", "back\\slash", "\255bytes", "'\"$(x)" } do
        local path = dir .. "/" .. name
        support.run("mkdir " .. support.quote(path) .. " && touch " .. support.quote(path) .. "/in")
        for _, mode in ipairs { modes[1], modes[3] } do
          create { mounts = { { source = path, target = "/" .. name, mode = mode } } }
          assert.equal("in\n", moonsand.assert(box:exec { "ls", "/" .. name }).stdout)
          box:close()
        end
      end
    end)
  end)

  it("outlives the helper that makes sandboxes", function()
    for _ = 1, 5 do
      create { workspace = dir }
      local killed = 0
      for _, process in ipairs(support.children(support.native().getpid())) do
        if process.name == "moonsand" and process.state ~= "Z" then
          support.run("kill -KILL " .. process.pid)
          killed = killed + 1
        end
      end
      assert.equal(1, killed)
      local other = moonsand.assert(moonsand.create { workspace = dir })
      assert.equal("of the host\n", moonsand.assert(other:exec "cat file").stdout)
      assert.equal("of the host\n", sh "cat file")
      other:close()
      box:close()
    end
  end)

  it("blames the caller's line for wrong types", function()
    for opts, pattern in pairs {
      [{ workspace = 3 }] = "'workspace'",
      [{ mounts = "x" }] = "'mounts'",
      [{ mounts = { "x" } }] = "mounts%[1%] must be a table",
      [{ mounts = { source = dir } }] = "mounts must be a list, and has the key 'source'",
      [{ mounts = { { source = dir, target = "/x" }, mode = "rw" } }] = "the key 'mode'",
      [{ mounts = { [2] = { source = dir, target = "/x" } } }] = "the key 2",
      [{ mounts = { { source = dir, target = "/x", modes = "ro" } } }] = "did you mean 'mode'",
      [{ mounts = { { source = dir } } }] = "mounts%[1%] needs a target",
      [{ mounts = { { source = 1, target = "/x" } } }] = "'source'",
    } do
      local ok, message = pcall(function() moonsand.create(opts) end)
      assert.is_false(ok)
      assert.truthy(message:find("mounts_spec.lua:%d+: .*" .. pattern), message)
    end
    refused({ mounts = { { source = dir, target = "/x", mode = "write" } } }, "invalid", "'ro', 'rw', 'copy'")
  end)
end)
