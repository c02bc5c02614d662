-- Another root file system: `root` and `root_mode`. The one here is made of a few programs of the
-- host and the libraries that they need.

local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

--- In an empty directory.
local MAKE = [[
  set -e
  mkdir -p bin usr/bin etc opt
  for name in sh ls cat id touch mkdir rm mv stat grep head readlink; do
    file=$(readlink -f "$(command -v $name)")
    cp "$file" bin/$name
    ldd "$file" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
      mkdir -p ".${library%/*}"
      test -e ".$library" || cp "$library" ".$library"
    done
  done
  echo "root:x:0:0:root:/root:/bin/sh" >etc/passwd
  echo "root:x:0:" >etc/group
  echo "of the image" >etc/release
  chmod -R a+rX .
]]

describe("moonsand.root", function()
  local box, root, count

  helper.deadline(60)
  helper.no_leaks(function()
    if box then
      box:close()
    end
    box = nil
  end)

  local function make_root(path)
    local template = support.directory() .. "/root"
    local output, status = support.run(([[test -d %s || { mkdir %s && cd %s && %s
      }
      rm -rf %s && cp -a %s %s]]):format(template, template, template, MAKE, path, template, path))
    assert.equal(0, status, output)
  end

  before_each(function()
    count = (count or 0) + 1
    root = support.directory() .. "/root-" .. count
    make_root(root)
  end)

  local function create(opts)
    opts.root = root
    box = moonsand.assert(moonsand.create(opts))
    return box
  end

  local function sh(command)
    return moonsand.assert(box:exec("{ " .. command .. "\n} 2>&1")).stdout
  end

  local function host(command)
    return (support.run("cd " .. support.quote(root) .. " && " .. command))
  end

  local function listing()
    return host "find . -printf '%p %m %s %y %l\\n' | sort"
  end

  it("takes the place of the host's", function()
    create {}
    assert.equal("of the image\n", sh "cat /etc/release")
    assert.equal("1000:1000\n", sh "echo $(id -u):$(id -g)")
    assert.equal("cat\ngrep\nhead\nid\nls\nmkdir\nmv\nreadlink\nrm\nsh\nstat\ntouch\n", sh "ls /bin")
    assert.equal("", sh "ls -A /usr/bin; ls -d /usr/share /etc/ssl /etc/alternatives 2>/dev/null")
    assert.same({ { source = root, target = "/", mode = "ro", by = "overlay" } }, box:info().mounts)
  end)

  it("names the sandbox's user, where it may", function()
    create { root_mode = "copy" }
    assert.equal("root:x:0:0:root:/root:/bin/sh\nsandbox:x:1000:1000::/workspace:/bin/sh\n", sh "cat /etc/passwd")
    assert.equal("sandbox\n", sh "id -un")
  end)

  for _, mode in ipairs { "ro", "copy" } do
    it("has what every sandbox has, " .. mode, function()
      create { root_mode = mode }
      assert.equal("/workspace /workspace\n", sh "echo $PWD $HOME")
      assert.equal("", sh "touch /tmp/a /run/b /workspace/c /dev/shm/d; test -c /dev/null || echo none")
      assert.equal("", sh "echo x >/dev/null; head -c 4 /dev/urandom >/tmp/r; ls -A /.copies")
      assert.equal("sh\n", sh "cat /proc/$$/comm")
      moonsand.assert(box.files:write("/tmp/file", "text"))
      assert.equal("text", moonsand.assert(box.files:read "/tmp/file"))
      assert.equal("127", tostring(moonsand.assert(box:exec "python3").exit_code))
    end)

    it("leaves the directory as it was, " .. mode, function()
      local before = listing()
      create { root_mode = mode }
      sh [[touch /new /etc/new /bin/new /opt/new; rm -r /opt /etc/release; mv /bin/id /bin/it
        echo x >>/etc/passwd; echo x >>/etc/release; touch /workspace/x /tmp/x]]
      box:close()
      assert.equal(before, listing())
    end)
  end

  it("is read-only unless it is a copy", function()
    create {}
    assert.equal("", sh [[for path in /new /etc/new /opt/new /bin/sh; do
      { echo x >$path; } 2>/dev/null && echo "wrote $path"
      done; rm -rf /opt /etc/release 2>/dev/null; ls -d /opt /etc/release >/dev/null]])
    box:close()
    create { root_mode = "copy" }
    assert.equal("x\n", sh "echo x >/opt/new; rm /etc/release; mkdir -p /app/deep; cat /opt/new")
    assert.equal("", sh "ls /etc/release 2>/dev/null")
  end)

  it("counts what is written against the disk, wherever that is", function()
    create { root_mode = "copy", limits = { disk = "4M" } }
    for _, path in ipairs { "/big", "/opt/big", "/tmp/big", "/workspace/big", "/dev/shm/big" } do
      assert.truthy(sh("head -c 8M /dev/zero >" .. path .. "; rm " .. path):find "No space", path)
    end
    assert.truthy(sh "head -c 3M /dev/zero >/opt/a; head -c 3M /dev/zero >/tmp/b":find "No space")
  end)

  it("takes mounts and a workspace", function()
    local dir = support.directory() .. "/kept-" .. count
    support.run("mkdir " .. dir)
    support.write(dir .. "/file", "kept")
    create { workspace = dir, mounts = {
      { source = dir, target = "/data" }, { source = dir, target = "/opt/copy", mode = "copy" } } }
    assert.equal("keptkeptkept", sh "cat file /data/file /opt/copy/file; echo new >made; echo y >/opt/copy/z")
    assert.equal("new\n", support.read(dir .. "/made"))
    assert.is_nil(support.read(dir .. "/z"))
    assert.equal("copy\n", sh "ls /opt")
    assert.equal("", host "ls opt")
  end)

  describe("that is hostile", function()
    it("does not lead its making astray by links", function()
      local target = support.directory() .. "/target-" .. count
      support.run(("mkdir %s && echo precious >%s/passwd"):format(target, target))
      local shapes = {
        "rm -r etc && ln -s " .. target .. " etc",
        "rm etc/passwd && ln -s " .. target .. "/passwd etc/passwd",
        "rm etc/passwd && ln -s /proc/sys/user/max_user_namespaces etc/passwd",
        "rm etc/passwd && mkfifo etc/passwd",
        "mkdir var && ln -s " .. target .. " var/tmp",
        "ln -s " .. target .. " var",
      }
      for _, shape in ipairs(shapes) do
        make_root(root)
        host(shape)
        create { root_mode = "copy" }
        assert.equal("1000\n", sh "id -u", shape)
        assert.equal("0\n", sh "cat /proc/sys/user/max_user_namespaces", shape)
        box:close()
      end
      assert.equal("passwd\n", (support.run("ls -A " .. target)))
      assert.equal("precious\n", support.read(target .. "/passwd"))
    end)

    it("is refused where its own places are links", function()
      for _, name in ipairs { "dev", "proc", "tmp", "run", "workspace", ".copies" } do
        local target = support.directory() .. "/target-" .. count .. "-" .. name
        support.run("mkdir " .. target)
        host("ln -s " .. target .. " " .. name)
        local none, message, code = moonsand.create { root = root, root_mode = "copy" }
        assert.is_nil(none, name)
        assert.equal("not_a_directory", code, message)
        assert.truthy(message:find "root", message)
        assert.equal("", (support.run("ls -A " .. target)))
        os.remove(root .. "/" .. name)
      end
    end)

    it("has no setuid programs and no devices", function()
      host "chmod 6755 bin/id"
      if support.run "id -u" == "0\n" then
        host "mknod opt/zero c 1 5 && chmod 666 opt/zero"
        create {}
        assert.truthy(sh "head -c 1 /opt/zero":find "Permission denied")
        box:close()
      end
      create {}
      assert.equal("1000 1000\n", sh "echo $(/bin/id -u) $(/bin/id -g)")
    end)
  end)

  it("has snapshots of its /workspace and /tmp, for others with a root", function()
    local name = ("root-spec-%d-%d"):format(support.native().getpid(), os.time())
    create {}
    sh "echo w >/workspace/w; echo t >/tmp/t"
    local made = moonsand.assert(box:snapshot(name))
    assert.same({}, made.skipped)
    box:close()
    create { snapshot = name }
    assert.equal("w\nt\nof the image\n", sh "cat w /tmp/t; cat /etc/release")
    box:close()
    local none, message, code = moonsand.create { snapshot = name }
    assert.is_nil(none)
    assert.equal("invalid", code)
    assert.truthy(message:find "root", message)
    create { root_mode = "copy" }
    none, message, code = box:snapshot(name .. "-copy")
    assert.is_nil(none)
    assert.equal("unsupported", code, message)
    assert.is_true(moonsand.delete_snapshot(name))
  end)

  it("is refused when it is no root", function()
    local function refused(opts, code, pattern)
      local none, message, got = moonsand.create(opts)
      assert.is_nil(none)
      assert.equal(code, got, message)
      assert.truthy(message:find(pattern), message)
    end
    refused({ root = root .. "/nope" }, "not_found", "root: .*nope")
    refused({ root = root .. "/etc/passwd" }, "not_a_directory", "root")
    refused({ root = "/" }, "invalid", "kernel")
    refused({ root = root, root_mode = "rw" }, "invalid", "'ro', 'copy'")
    refused({ root_mode = "ro" }, "invalid", "no root")
  end)
end)
