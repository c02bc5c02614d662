-- box:snapshot, create { snapshot }, moonsand.snapshots: the files of a sandbox, kept and put back.

local core = require "moonsand.core"
local helper = require "helper"
local moonsand = require "moonsand"
local support = require "support.init"

--- All of a tree that is on the file system of "/", as programs see it.
local LOOK = [[cd / && find . -xdev \( -type s -o -path ./dev -prune -o -path ./proc -prune \) \
  -o -printf '%p %y %m %s %n %T@ %l\n' | sort
  find / -xdev -path /dev -prune -o -type f -size -100k ! -name '*[!a-zA-Z0-9._-]*' -perm -400 -print |
  sort | xargs sha256sum]]

describe("moonsand.snapshot", function()
  local store, directory, count = nil, nil, 0
  local boxes, environment = {}, nil

  helper.deadline(60)
  helper.no_leaks(function()
    for _, box in ipairs(boxes) do
      box:close()
    end
    boxes = {}
  end)

  setup(function()
    -- os.getenv is what the module asks; a Lua program cannot set its own environment
    environment = os.getenv
    os.getenv = function(name) -- luacheck: ignore 122
      if name == "XDG_STATE_HOME" then
        return store
      end
      return environment(name)
    end
  end)

  teardown(function()
    os.getenv = environment -- luacheck: ignore 122
  end)

  before_each(function()
    count = count + 1
    store = support.directory() .. "/state-" .. count
    directory = store .. "/moonsand/snapshots"
  end)

  local function create(opts)
    local box = moonsand.assert(moonsand.create(opts))
    boxes[#boxes + 1] = box
    return box
  end

  local function sh(box, command)
    return moonsand.assert(box:exec("{ " .. command .. "\n} 2>&1")).stdout
  end

  local function take(box, name)
    return moonsand.assert(box:snapshot(name))
  end

  local function file_of(name)
    return directory .. "/" .. name .. ".snapshot"
  end

  local function refused(opts, expected, pattern)
    local none, message, code, detail = moonsand.create(opts)
    if none then
      none:close()
    end
    assert.is_nil(none)
    assert.equal(expected, code, message)
    assert.truthy(message:find(pattern), message)
    assert.is_false(detail.started)
    return detail
  end

  local function names()
    local list = {}
    for i, row in ipairs(moonsand.assert(moonsand.snapshots())) do
      list[i] = row.name .. (row.damaged and " (damaged)" or "")
    end
    return list
  end

  describe("sha256", function()
    it("is that of FIPS 180-4, however the bytes are cut", function()
      for text, digest in pairs {
        [""] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        [("a"):rep(1000000)] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
      } do
        assert.equal(digest, core.sha256():add(text):hex())
        assert.equal(digest, core.sha256(true):add(text):hex()) -- without the processor's own
      end
      local path = support.directory() .. "/bytes"
      for length = 0, 200, 7 do
        local text, digest = core.random(length), core.sha256(length % 2 == 0)
        support.write(path, text)
        for at = 1, length, 13 do
          digest:add(text:sub(at, at + 12))
        end
        assert.equal(support.run("sha256sum <" .. path):sub(1, 64), digest:hex())
      end
    end)
  end)

  it("keeps everything: modes, times, holes, links, names, and what is gone", function()
    local box = create()
    sh(box, [[mkdir -p /app/deep/er && cd /app && echo hi >f && ln f g && ln f deep/er/h
      ln -s /nope l; ln -s ../etc m; mkfifo -m 640 p; truncate -s 1T sparse
      printf x | dd of=sparse bs=1 seek=1000000 conv=notrunc
      printf x | dd of=sparse bs=1 seek=900000000000 conv=notrunc
      : >empty; chmod 4755 f; chmod 1777 deep; seq 100000 >lines
      printf 1 >"$(printf 'new\nline')"; printf 2 >"$(printf 'bytes\377\001')"; printf 3 >' '
      printf 4 >-rf; printf 5 >.moonsand-hidden
      touch -d 2001-02-03T04:05:06.123456789 f lines; touch -h -d 1999-01-01 l
      touch -d 2031-01-01 deep/er; chmod 555 deep/er; touch -d 1970-01-01 deep
      rm /etc/hosts; rmdir /run; echo changed >/etc/group; mkdir -m 700 /tmp/own; chmod 711 /]])
    local before = sh(box, LOOK)
    assert.truthy(before:find("./app/sparse f 644 1099511627776 1", 1, true))
    take(box, "all")
    local after = create { snapshot = "all" }
    assert.equal(before, sh(after, LOOK))
    assert.equal("x x\n", sh(after, [[cd /app; echo $(dd if=sparse bs=1 count=1 skip=1000000 2>/dev/null) \
      $(dd if=sparse bs=1 count=1 skip=900000000000 2>/dev/null)]]))
    assert.equal(sh(box, "du -k /app/sparse"), sh(after, "du -k /app/sparse"))
    assert.equal("1 2 3 4 5", sh(after, [[cd /app; printf '%s %s %s %s %s' "$(cat new*)" "$(cat bytes*)" \
      "$(cat ' ')" "$(cat ./-rf)" "$(cat .moonsand-hidden)"]]))
    assert.equal("3\n", sh(after, "stat -c %h /app/g"))
  end)

  it("tells what it is, once, and is listed", function()
    local box = create()
    moonsand.assert(box.files:write("file", "text"))
    local made = take(box, "base")
    assert.same({}, made.skipped)
    assert.equal("base", made.id)
    assert.truthy(math.abs(made.created_at - os.time()) < 60)
    made.skipped = nil
    assert.same({ made }, moonsand.snapshots())
    assert.equal("local", made.provider)
    assert.truthy(made.entries > 10 and made.size > 1000)
    assert.equal("native", box:can "snapshot")
    local other = take(box)
    assert.same({ "base", other.name }, names())
  end)

  it("is refused under a name that is taken, or is none", function()
    local box = create()
    take(box, "base")
    local none, message, code = box:snapshot "base"
    assert.is_nil(none)
    assert.equal("exists", code, message)
    for _, name in ipairs { "", "a/b", "..", "../../x", "a b", ("x"):rep(65), "a\0b" } do
      none, message, code = box:snapshot(name)
      if name == ".." then -- dots are letters as any other: the file is "...snapshot"
        assert.truthy(none)
      else
        assert.is_nil(none, name)
        assert.equal("invalid", code, message)
        refused({ snapshot = name }, "invalid", "snapshot")
        assert.equal("invalid", select(3, moonsand.delete_snapshot(name ~= "" and name or " ")))
      end
    end
    assert.has_error(function()
      box:snapshot(5)
    end)
    assert.equal("base.snapshot\n", support.run("cd " .. directory .. " && ls"))
  end)

  it("is a file of this user's alone", function()
    take(create(), "base")
    assert.equal("700\n700\n600\n", support.run(("stat -c %%a %s/moonsand %s %s"):format(store, directory,
      file_of "base")))
    support.run("chmod 755 " .. directory)
    local none, message, code, detail = create():snapshot "other"
    assert.is_nil(none)
    assert.equal("permission_denied", code, message)
    assert.truthy(detail.fix:find "700")
  end)

  it("is deleted; one that is not there is not_found", function()
    take(create(), "base")
    assert.is_true(moonsand.delete_snapshot "base")
    assert.same({}, names())
    assert.equal("not_found", select(3, moonsand.delete_snapshot "base"))
    refused({ snapshot = "base" }, "not_found", "base")
  end)

  it("may be deleted while sandboxes are made from it, many at once", function()
    local box = create()
    sh(box, "head -c 20000000 /dev/urandom >data; sha256sum data >sum")
    take(box, "base")
    local made = moonsand.run(function()
      local tasks = {}
      for i = 1, 4 do
        tasks[i] = moonsand.task(function()
          local one = create { snapshot = "base" }
          return sh(one, "sha256sum -c sum")
        end)
      end
      moonsand.sleep(0)
      assert.is_true(moonsand.delete_snapshot "base")
      local list = {}
      for i, task in ipairs(tasks) do
        list[i] = task:wait()
      end
      return list
    end)
    assert.same({ "data: OK\n", "data: OK\n", "data: OK\n", "data: OK\n" }, made)
    assert.same({}, names())
  end)

  it("goes from one launcher to the other, and back", function()
    local from = "native"
    for i, to in ipairs { "bwrap", "native", "bwrap", "bwrap" } do
      local box = create { isolation = from, snapshot = i > 1 and "step-" .. i - 1 or nil }
      assert.equal(("x\n"):rep(i - 1), sh(box, "cat data 2>/dev/null"))
      sh(box, "mkdir -p /app; echo x >>data; chmod 700 /tmp")
      take(box, "step-" .. i)
      assert.equal("700 /tmp\n", sh(create { isolation = to, snapshot = "step-" .. i }, "stat -c '%a %n' /tmp"))
      from = to
    end
  end)

  it("does not follow the sandbox that it was taken of", function()
    local box = create()
    moonsand.assert(box.files:write("file", "before"))
    take(box, "base")
    moonsand.assert(box.files:write("file", "after"))
    box:close()
    local one, two = create { snapshot = "base" }, create { snapshot = "base" }
    moonsand.assert(one.files:write("file", "one"))
    assert.equal("before", two.files:read "file")
    take(one, "next")
    assert.equal("one", create({ snapshot = "next" }).files:read "file")
  end)

  it("works with a pool, rules for the network, and another sandbox's settings", function()
    local box = create()
    moonsand.assert(box.files:write("/app/file", "text"))
    take(box, "base")
    local pool = moonsand.assert(moonsand.pool { size = 1, create = { snapshot = "base" } })
    local got = moonsand.assert(pool:with(function(each)
      return each.files:read "/app/file"
    end))
    pool:close()
    assert.equal("text", got)
    local other = create { snapshot = "base", network = { allow = { "example.org" } }, hostname = "h" }
    assert.equal("h text\n", sh(other, "echo $(hostname) $(cat /app/file)"))
  end)

  describe("with what is mounted", function()
    local dir

    before_each(function()
      dir = support.directory() .. "/mounted-" .. count
      support.run("mkdir -p " .. dir .. "/sub && echo host >" .. dir .. "/file")
    end)

    it("leaves that out, and never writes there", function()
      local box = create { workspace = dir, mounts = { { source = dir, target = "/data/ro" } } }
      sh(box, "echo own >/tmp/file; echo made >made; mkdir -p /app; echo a >/app/a")
      take(box, "base")
      local plain = create { snapshot = "base" }
      assert.equal("own a\n", sh(plain, "ls -A /workspace; ls -d /data/ro 2>/dev/null; "
        .. "echo $(cat /tmp/file /app/a)"))
      sh(plain, "echo mine >/workspace/made; echo mine >/workspace/file; chmod 700 /workspace; "
        .. "mkdir /workspace/new /workspace/sub; echo x >/workspace/sub/x; ln /tmp/file /workspace/name; "
        .. "chmod 4755 /app/a")
      take(plain, "covered")
      local before = support.run("cd " .. dir .. " && find . -printf '%p %m %s %T@\n' | sort")
      local again = create { snapshot = "covered", workspace = dir }
      assert.equal("host\nmade\na\n", sh(again, "cat file made /app/a"))
      assert.equal(before, support.run("cd " .. dir .. " && find . -printf '%p %m %s %T@\n' | sort"))
      assert.equal("755\n", sh(again, "stat -c %a /app/a")) -- no setuid files beside the host's
    end)

    it("is refused where the bytes of a file would be lost with what covers its first name", function()
      local box = create()
      sh(box, "mkdir /a /b; echo x >/a/x; ln /a/x /b/x")
      take(box, "base")
      local opts = { snapshot = "base", mounts = { { source = dir, target = "/a" },
        { source = dir, target = "/b/sub" } } }
      local one, message, code = moonsand.create(opts)
      if one then -- the first name was that in /b
        assert.equal("x\n", sh(one, "cat /b/x"))
        one:close()
      else
        assert.equal("invalid", code, message)
        assert.truthy(message:find "b/x")
      end
    end)

    it("keeps files that are mounted as copies as the mounts have them", function()
      local file = { { source = dir .. "/file", target = "/etc/motd", mode = "copy" } }
      local box = create { mounts = file }
      sh(box, "echo changed >/etc/motd")
      take(box, "base")
      assert.equal("changed\n", sh(create { snapshot = "base" }, "cat /etc/motd"))
      assert.equal("host\n", sh(create { snapshot = "base", mounts = file }, "cat /etc/motd"))
    end)

    helper.native_it("is not supported where it would lose what was changed in a copy", function()
      local box = create { mounts = { { source = dir, target = "/data", mode = "copy" } } }
      local none, message, code, detail = box:snapshot "base"
      assert.is_nil(none)
      assert.equal("unsupported", code)
      assert.truthy(message:find "mounts%[1%]")
      assert.truthy(detail.fix)
      assert.is_false(box:can "snapshot")
      assert.same({}, names())
    end)
  end)

  describe("damaged", function()
    local box

    before_each(function()
      box = create()
      sh(box, "echo text >file; mkdir d; ln -s file d/link; seq 2000 >d/lines")
      take(box, "base")
    end)

    it("in any byte is refused, and nothing is made", function()
      local whole = support.read(file_of "base")
      local step = math.floor(#whole / 40)
      local places = { 1, #whole, #whole - 64, #whole - 65, #whole - 66, #whole - 511, #whole - 512 }
      for at = 2, #whole, step do
        places[#places + 1] = at
      end
      for _, at in ipairs(places) do
        local byte = string.char((whole:byte(at) + 1) % 256)
        support.write(file_of "base", whole:sub(1, at - 1) .. byte .. whole:sub(at + 1))
        local none, message, code, detail = moonsand.create { snapshot = "base" }
        assert.is_nil(none, "at " .. at)
        -- a version or a number may still be one; what is not even begun is refused by its end
        assert.equal("provider", code, ("at %d of %d: %s"):format(at, #whole, message))
        assert.truthy(message:find("damaged", 1, true), message)
        assert.truthy(detail.fix:find "delete_snapshot")
      end
      support.write(file_of "base", whole)
      assert.equal("text\n", create({ snapshot = "base" }).files:read "file")
    end)

    it("by being cut, or longer, or something else, is refused and listed as damaged", function()
      local whole = support.read(file_of "base")
      for _, text in ipairs { "", "x", whole:sub(1, 511), whole:sub(1, -2), whole:sub(2), whole .. "x",
        whole:sub(-512), whole:sub(1, 100) .. whole:sub(200), ("\0"):rep(100000) } do
        support.write(file_of "base", text)
        refused({ snapshot = "base" }, "provider", "damaged")
      end
      support.write(file_of "base", "x")
      support.run(("touch %s/README %s/.moonsand-0 && mkdir %s/dir.snapshot"):format(directory, directory,
        directory))
      assert.same({ "base (damaged)", "dir (damaged)" }, names())
      assert.is_true(moonsand.delete_snapshot "base")
    end)

    it("by numbers that are none, is refused and listed as damaged", function()
      local whole = support.read(file_of "base")
      local body, trailer = whole:sub(1, -513), whole:sub(-512, -66)
      local function forge(name, digits)
        local text = trailer:gsub(name .. " %d+", name .. " " .. ("9"):rep(digits)):gsub(" +$", "")
        text = text .. (" "):rep(512 - 65 - #text)
        support.write(file_of "base", body .. text .. core.sha256():add(body):add(text):hex() .. "\n")
      end
      for _, name in ipairs { "created", "entries" } do
        forge(name, 15)
        assert.same({ "base" }, names())
        for _, digits in ipairs { 16, 20, 330 } do
          forge(name, digits)
          assert.same({ "base (damaged)" }, names())
          refused({ snapshot = "base" }, "provider", "damaged")
        end
      end
    end)

    it("on purpose, with a digest that is right, is refused and leads nowhere", function()
      local function u32(n)
        return string.char(n % 256, math.floor(n / 256) % 256, math.floor(n / 65536) % 256, 0)
      end
      local function text(value)
        return u32(#value) .. value .. "\0"
      end
      local function record(kind, body)
        return u32(#body + 4) .. u32(kind) .. body
      end
      local zero = ("\0"):rep(8)
      local function entry(kind, path, target, size)
        return record(1, u32(kind) .. u32(493) .. u32(0) .. u32(0) .. (size or zero) .. zero .. u32(0)
          .. text(path) .. text(target or ""))
      end
      local finish = record(6, zero)
      local trailer = support.read(file_of "base"):sub(-512, -66)
      local function forge(stream)
        local all = stream .. trailer
        support.write(file_of "base", all .. core.sha256():add(all):hex() .. "\n")
      end
      local outside = support.directory() .. "/outside-" .. count
      support.run("mkdir " .. outside)
      for _, stream in ipairs {
        "", entry(1, "x"), entry(1, "../x") .. finish, entry(1, "/x") .. finish, entry(9, "x") .. finish,
        entry(1, "x") .. record(2, "bytes") .. finish, record(2, "bytes") .. finish,
        record(7, zero:sub(2) .. "\127") .. finish, record(8, text "a" .. text "../../etc/passwd") .. finish,
        record(8, text "a" .. text "workspace/l/passwd") .. finish, entry(1, "") .. finish,
        record(5, u32(1) .. text "x"), record(3, zero .. zero) .. finish, entry(2, "x", "y") .. finish,
        ("\255"):rep(100000), entry(1, "x", nil, ("\255"):rep(8)) .. finish,
      } do
        forge(stream)
        local none, message, code = moonsand.create { snapshot = "base" }
        assert.is_nil(none)
        assert.truthy(code == "provider" or code == "not_found" or code == "lost"
          or code == "not_a_directory" or code == "invalid", tostring(code) .. ": " .. message)
      end
      forge(entry(2, "workspace") .. entry(3, "workspace/out", "/data") .. entry(1, "workspace/out/x")
        .. entry(2, "workspace/out/d") .. entry(3, "data", "/usr") .. entry(1, "data/y")
        .. entry(1, "usr/z") .. entry(2, "proc/1/root") .. finish)
      create { snapshot = "base", mounts = { { source = outside, target = "/data", mode = "rw" } } }
      assert.equal("", support.run("ls -A " .. outside))
      assert.is_false(support.exists "/usr/z")
    end)
  end)

  describe("of a hostile sandbox", function()
    it("ends while the tree is changed as fast as it can be", function()
      local box = create()
      sh(box, "mkdir /t; cd /t; for i in 1 2 3 4 5 6 7 8; do mkdir -p $i/a/b/c; seq 3000 >$i/f; done")
      local busy = moonsand.assert(box:start { "python3", "-c", [[
import os, itertools
os.chdir("/t")
def quiet(f, *a):
    try: f(*a)
    except OSError: pass
print("go", flush=True)
for n in itertools.count():
    d = str(n % 8 + 1)
    quiet(os.rename, d, "moved"); quiet(os.rename, "moved", d + "/../x"); quiet(os.rename, "x", d)
    quiet(os.symlink, "/etc", d + "/a/l"); quiet(os.unlink, d + "/a/l"); quiet(os.mkdir, d + "/a/l")
    quiet(os.rmdir, d + "/a/l"); quiet(os.mkfifo, d + "/a/l"); quiet(os.unlink, d + "/a/l")
    quiet(os.truncate, d + "/f", n % 20000); quiet(os.link, d + "/f", d + "/a/g")
    quiet(os.unlink, d + "/a/g"); quiet(os.rename, d + "/a/b", d + "/c2"); quiet(os.rename, d + "/c2", d + "/a/b")
]] })
      assert.equal("go", busy.stdout:read())
      for i = 1, 8 do
        take(box, "race-" .. i)
        local one, message, code = moonsand.create { snapshot = "race-" .. i }
        if one then
          one:close()
        else -- two moments that do not fit together
          assert.truthy(code == "invalid" or code == "not_found", tostring(code) .. ": " .. message)
        end
      end
      busy:close()
    end)

    it("tells what it could not keep", function()
      local box = create()
      sh(box, [[mkdir -p /t/shut; cd /t; echo x >unreadable; echo x >shut/file; chmod 0 unreadable shut
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/t/socket")'; mknod whiteout c 0 0]])
      local skipped = {}
      for _, skip in ipairs(take(box, "base").skipped) do
        skipped[skip.path] = skip.code
      end
      assert.equal("unsupported", skipped["/t/socket"])
      assert.equal("permission_denied", skipped["/t/unreadable"])
      assert.equal("permission_denied", skipped["/t/shut"])
      assert.equal("0 shut\n", sh(create { snapshot = "base" }, "cd /t; stat -c '%a %n' *"))
    end)

    it("takes trees of any depth, and many names", function()
      local box = create { limits = { inodes = 30000 }, allow_unenforced = { "inodes" } }
      assert.equal("ok\n", sh(box, [[python3 -c '
import os
os.mkdir("/deep"); os.chdir("/deep")
for i in range(900): os.mkdir("d"); os.chdir("d")
open("bottom", "w").write("x"); os.chmod(".", 0o555)
os.mkdir("/wide"); os.chdir("/wide")
for i in range(8000): open(str(i) * 20, "w")
for i in range(4000): os.link("0" * 20, "l%d" % i)
print("ok")']]))
      local made = take(box, "base")
      assert.same({}, made.skipped)
      local after = create { snapshot = "base", limits = { inodes = 30000 } }
      assert.equal("12000\n4001\n", sh(after, "ls /wide | wc -l; stat -c %h /wide/l17"))
      assert.equal("x555", sh(after, [[python3 -c '
import os
os.chdir("/deep/" + "d/" * 900); print(open("bottom").read() + oct(os.stat(".").st_mode)[-3:], end="")']]))
    end)

    it("tells of what is too deep for a path", function()
      local box = create()
      sh(box, [[python3 -c '
import os
os.mkdir("/deep"); os.chdir("/deep")
for i in range(40): os.mkdir("d" * 200); os.chdir("d" * 200)']])
      local skipped = take(box, "base").skipped
      assert.truthy(#skipped > 0)
      assert.equal("invalid", skipped[1].code)
      create { snapshot = "base" }
    end)

    it("that does not fit is no_space, and nothing is made", function()
      local box = create()
      sh(box, "head -c 8000000 /dev/urandom >data")
      take(box, "base")
      refused({ snapshot = "base", limits = { disk = "4M" } }, "no_space", "data")
      refused({ snapshot = "base", limits = { inodes = 128, disk = "1M" }, allow_unenforced = { "inodes" } },
        "no_space", "data")
    end)

    it("whose worker is killed, stopped or waited for too long leaves nothing", function()
      local box = create()
      sh(box, "head -c 50000000 /dev/zero >data")
      local none, message, code = box:snapshot("base", { timeout = 0 })
      assert.is_nil(none)
      assert.equal("timeout", code, message)
      local token = moonsand.token { timeout = 0.01 }
      none, message, code = box:snapshot("base", { cancel = token })
      assert.is_nil(none)
      assert.equal("cancelled", code, message)
      local killer = moonsand.assert(box:start [[while :; do for p in /proc/[0-9]*; do
        p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -9 $p; done; done 2>/dev/null]])
      support.eventually(20, "no worker was killed", function()
        none, message, code = box:snapshot("base")
        if none then
          assert.is_true(moonsand.delete_snapshot "base")
        end
        return not none and code == "lost", message
      end)
      killer:kill "KILL"
      killer:wait() -- or it would have the next worker, too
      killer:close()
      assert.equal("", support.run("ls -A " .. directory))
      take(box, "base")
      none, message, code = moonsand.create { snapshot = "base", timeout = 0 }
      assert.is_nil(none)
      assert.equal("timeout", code, message)
    end)

    it("does not grow the host without end", function()
      local box = create { limits = { disk = "1M" } }
      sh(box, "for i in 1 2 3 4 5 6 7 8 9; do truncate -s 8E $i; done; true")
      assert.truthy(take(box, "base").size < 100000)
      assert.equal(sh(box, "stat -c %s 9"), sh(create { snapshot = "base" }, "stat -c %s 9"))
    end)
  end)
end)
