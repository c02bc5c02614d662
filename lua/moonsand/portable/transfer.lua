--- Between the host and the sandbox, with `cat` and `tar`; and files as Streams. On the host's side
--- trees are read and written by the core, which never leaves the directory that it was given.

local change = require "moonsand.portable.change"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local file_streams = require "moonsand.files.stream"
local host = require "moonsand.files.host"
local loop = require "moonsand.loop"
local look = require "moonsand.portable.look"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local records = require "moonsand.portable.records"
local shell = require "moonsand.portable.shell"
local skips = require "moonsand.files.skipped"
local tar = require "moonsand.portable.tar"
local texts = require "moonsand.text"

local M = {}

local PIECE = 64 * 1024

local function whole(number)
  return options.integer(number)
end

--- A script that is killed when `fn(script)` raises or fails.
local function with_script(fn, script)
  local fine, value, message, code, detail = pcall(fn, script)
  if not fine or value == nil then
    script:kill()
  end
  if not fine then
    error(value, 0)
  end
  return value, message, code, detail
end

local function progress_of(o, total)
  return function(done)
    if o.progress then
      o.progress(whole(done), whole(math.max(total(), done)))
    end
  end
end

-- ---------------------------------------------------------------- to the sandbox

local function upload_file(driver, file, host_path, path, o, limits)
  local entry, errno = file:stat()
  if not entry then
    return host.failure("read", host_path, errno)
  end
  local opts = shell.doing("write", path)
  opts.stdin = true
  local size, mode = ("%d"):format(entry.size), ("%04o"):format(entry.mode % 512)
  local script, message, code, detail = shell.start(driver, change.REPLACE,
    { path, "1", ".moonsand-" .. change.token(), size, mode, "" }, opts, limits)
  if not script then
    return nil, message, code, detail
  end
  local tell, done = progress_of(o, function()
    return entry.size
  end), 0
  return with_script(function()
    while done < entry.size do
      local data
      data, errno = file:read(math.min(PIECE, entry.size - done))
      if errno then
        return host.failure("read", host_path, errno)
      elseif not data then
        break
      end
      local taken
      taken, message, code, detail = script:write(data)
      if message then
        return nil, message, code, detail
      elseif not taken then
        break
      end
      done = done + #data
      tell(done)
    end
    if entry.size == 0 then
      tell(0)
    end
    script:shutdown()
    local ok
    ok, message, code, detail = script:finish()
    if not ok then
      return nil, message, code, detail
    end
    return { entries = 1, bytes = whole(done), skipped = {} }
  end, script)
end

local UNPACK = [[
[ -e "$1" ] && [ ! -d "$1" ] && exit 94
command -v tar >/dev/null || { echo 'tar: not found' >&2; exit 1; }
mkdir -p -- "$1" && cd -- "$1" && exec tar -xpf - ${2:+"$2"}
]]

--- From the host's records to tar's stream. `sink(bytes)` takes it.
local function write_tar(pack, skipped, sink, tell)
  local parser, left, pad, passed = core.records(), 0, "", {}
  local function close_file()
    local rest = ("\0"):rep(left) .. pad -- of a file that has shrunk meanwhile
    left, pad = 0, ""
    return rest ~= "" and rest or nil
  end
  while true do
    local data = pack:read(passed)
    skipped:take(passed)
    if not data then
      break
    end
    parser:feed(data)
    local out = {}
    for kind, value in
      function()
        return parser:next()
      end
    do
      if kind == "entry" then
        out[#out + 1] = close_file()
        out[#out + 1] = value.path ~= "" and tar.header(value) or nil
        if value.type == "file" then
          left, pad = value.size, tar.padding(value.size)
        end
      elseif kind == "data" then
        out[#out + 1] = value:sub(1, left)
        left = left - math.min(left, #value)
      end
    end
    local taken, message, code, detail = sink(table.concat(out))
    if not taken then
      return taken, message, code, detail
    end
    local _, bytes = pack:counts()
    tell(bytes)
  end
  return sink((close_file() or "") .. tar.ending)
end

local function upload_tree(driver, host_path, path, o, limits)
  local skipped, total = skips.new(host_path), 0
  if o.progress then
    local _, bytes = core.measure(host_path)
    total = tonumber(bytes) or 0
  end
  local pack, errno = core.pack(host_path)
  if not pack then
    return host.failure("read", host_path, errno)
  end
  local opts = shell.doing("upload to", path)
  opts.stdin = true
  local script, message, code, detail = shell.start(driver, UNPACK, { path, "" }, opts, limits)
  if not script then
    pack:close()
    return nil, message, code, detail
  end
  return host.with(pack, with_script, function()
    local taken
    taken, message, code, detail = write_tar(pack, skipped, function(data)
      return script:write(data)
    end, progress_of(o, function()
      return total
    end))
    if message then
      return nil, message, code, detail
    end
    script:shutdown()
    local ok
    ok, message, code, detail = script:finish()
    if not ok then
      return nil, message, code, detail
    elseif not taken then
      return errors.fail("lost", opts.what .. ": not all of it was taken", { path = path })
    end
    local entries, bytes = pack:counts()
    return { entries = whole(entries), bytes = whole(bytes), skipped = skipped.list }
  end, script)
end

--- As `files:upload`, to an absolute path; `o` are its checked options.
function M.upload(driver, host_path, path, o)
  return host.upload(upload_file, upload_tree, driver, host_path, path, o, loop.limits(o))
end

-- ---------------------------------------------------------------- from the sandbox

local SEND = shell.ONLY_FILES .. 'only_files "$1"; exec cat <"$1"'

local function download_file(driver, entry, path, host_path, max, o, limits)
  if entry.size > max then
    return errors.fail("too_large", ("download %s: %.0f bytes are more than max (%.0f)"):format(
      options.quote(path), entry.size, max), { path = path, size = entry.size })
  end
  local placed, errno = core.place(host_path, entry.mode % 512)
  if not placed then
    return host.failure("write", host_path, errno)
  end
  local script, message, code, detail =
    shell.start(driver, SEND, { path }, shell.doing("download", path), limits)
  if not script then
    placed:close()
    return nil, message, code, detail
  end
  local done = 0
  local tell = progress_of(o, function()
    return entry.size
  end)
  return host.with(placed, with_script, function()
    while true do
      local data, ok
      data, message, code, detail = script:chunk()
      if message then
        return nil, message, code, detail
      elseif not data then
        break
      end
      done = done + #data
      if done > max then
        return errors.fail("too_large", ("download %s: more than max (%.0f) bytes"):format(
          options.quote(path), max), { path = path })
      end
      ok, errno = placed:write(data)
      if not ok then
        return host.failure("write", host_path, errno)
      end
      tell(done)
    end
    local ok
    ok, message, code, detail = script:finish()
    if not ok then
      return nil, message, code, detail
    end
    ok, errno = placed:commit()
    if not ok then
      return host.failure("write", host_path, errno)
    end
    if done == 0 then
      tell(0)
    end
    return { entries = 1, bytes = whole(done), skipped = {} }
  end, script)
end

--- GNU tar tells of a file's second name by a word that others do not know.
local PACK = [[
command -v tar >/dev/null || { echo 'tar: not found' >&2; exit 1; }
cd -- "$1" || exit
h=
case $(tar --help 2>&1) in *--hard-dereference*) h=--hard-dereference ;; esac
tar $h -cf - . && exit 0
exit 3
]]

--- Adds what tar could not read, by its messages.
local function read_messages(stderr, skipped)
  for line in stderr:gmatch "[^\n]+" do
    local about, why = texts.blame(line)
    local name = about and about:match "^tar: (%./.-): "
    if name then
      skipped:tell(name:sub(3), why, shell.code_of(line) or "provider")
    end
  end
end

--- Feeds the core with what tar sends. Answers true at its end.
local function read_tar(script, unpack, path, host_path, skipped, tell)
  local reader, count = tar.reader(), 0
  local passed = {}
  local function put(record)
    local state, errno, at = unpack:feed(record, passed)
    skipped:take(passed)
    if state == "more" or state == "end" then
      return true
    end
    local where = (at == "" or at == nil) and host_path or host_path .. "/" .. at
    if errno == core.errno.EFBIG then
      local message = "download %s: more than max bytes, or more than limit entries"
      return errors.fail("too_large", message:format(options.quote(path)), { path = where })
    end
    return host.failure("write", where, errno)
  end
  while true do
    local data, message, code, detail = script:chunk()
    if message then
      return nil, message, code, detail
    elseif not data then
      return errors.fail("lost", ("download %s: tar ended too early"):format(options.quote(path)),
        { path = path })
    end
    reader:feed(data)
    for kind, value in
      function()
        return reader:next()
      end
    do
      local ok = true
      if kind == false then
        return errors.fail("protocol", ("download %s: tar's answer makes no sense"):format(
          options.quote(path)), { path = path })
      elseif kind == "end" then
        return put(records.ending(count))
      elseif kind == "data" then
        ok, message, code, detail = put(records.data(value))
      elseif value.type == "other" or value.type == "link" then
        skipped:tell((value.path:gsub("^%./", "")), "it is no file, directory or link",
          "unsupported")
      else
        value.path = paths.bare((value.path:gsub("^%./?", "")))
        if value.path ~= "" then
          count = count + 1
          ok, message, code, detail = put(records.entry(value))
        end
      end
      if not ok then
        return nil, message, code, detail
      end
    end
    local _, bytes = unpack:counts()
    tell(bytes)
  end
end

local function download_tree(driver, path, host_path, max, limit, o, limits)
  local unpack, errno = core.unpack(host_path, max, limit)
  if not unpack then
    return host.failure("write", host_path, errno)
  end
  local script, message, code, detail =
    shell.start(driver, PACK, { path }, shell.doing("download", path), limits)
  if not script then
    unpack:close()
    return nil, message, code, detail
  end
  local skipped = skips.new(path)
  return host.with(unpack, with_script, function()
    local tell = progress_of(o, function()
      return 0
    end)
    local ok
    ok, message, code, detail = read_tar(script, unpack, path, host_path, skipped, tell)
    if not ok then
      return nil, message, code, detail
    end
    local stderr
    ok, stderr = script:drain()
    if ok then
      read_messages(stderr, skipped)
    end
    local entries, bytes = unpack:counts()
    return { entries = whole(entries), bytes = whole(bytes), skipped = skipped.list }
  end, script)
end

--- As `files:download`, of an absolute path; `o` are its checked options.
function M.download(driver, path, host_path, max, limit, o)
  local ok, message, code, detail = host.check(host_path)
  if not ok then
    return nil, message, code, detail
  end
  local limits = loop.limits(o)
  local entry
  entry, message, code, detail = look.stat(driver, path, true, limits, "download")
  if not entry then
    return nil, message, code, detail
  elseif entry.type == "directory" then
    return download_tree(driver, path, host_path, max, limit, o, limits)
  elseif entry.type ~= "file" then
    return errors.fail("invalid", ("download %s: it is not a file"):format(options.quote(path)),
      { path = path })
  end
  return download_file(driver, entry, path, host_path, max, o, limits)
end

-- ---------------------------------------------------------------- a file as a Stream

--- The calls of a file of the core's, each a command inside; errors are errnos there.
---@class moonsand.FarFile
local File = {}
File.__index = File

local ERRNO = {
  not_found = "ENOENT", permission_denied = "EACCES", is_a_directory = "EISDIR",
  no_space = "ENOSPC", closed = "EBADF", gone = "ESRCH", read_only = "EROFS",
}

local function errno_of(code)
  return core.errno[ERRNO[code] or "EINVAL"]
end

function File:read(size)
  local data, _, code = change.read(self.driver, self.path, self.at, size, size, {})
  if not data then
    return nil, errno_of(code)
  elseif data == "" then
    return nil
  end
  self.at = self.at + #data
  return data
end

local WRITE_AT = [[
if [ -n "$3" ]; then exec cat >>"$1"; fi
exec 3<>"$1" || exit
[ "$2" = 0 ] || head -c "$2" <&3 >/dev/null || exit
exec cat >&3
]]

function File:write(data, from)
  local opts = shell.doing("write", self.path)
  opts.input = data:sub(from or 1)
  local ok, _, code = shell.run(self.driver, WRITE_AT,
    { self.path, ("%d"):format(self.at), self.append and "1" or "" }, opts, {})
  if not ok then
    return nil, errno_of(code)
  end
  self.at = self.at + #opts.input
  return true
end

function File:seek(whence, offset)
  local base = whence == "set" and 0 or self.at
  if whence == "end" then
    local entry, _, code = look.stat(self.driver, self.path, true, {})
    if not entry then
      return nil, errno_of(code)
    end
    base = entry.size
  end
  if base + offset < 0 then
    return nil, core.errno.EINVAL
  end
  self.at = base + offset
  return self.at
end

function File.close() end

--- What `io.open` does to a file, before anything is read or written.
local OPEN = shell.ONLY_FILES .. [[
only_files "$1"
umask 022
case $2 in
r) exec <"$1" ;;
w) exec >"$1" ;;
a) exec >>"$1" ;;
r+) [ -e "$1" ] || exit 91; exec 3<>"$1" ;;
esac
]]

--- As `files:open`, of an absolute path. Each read-ahead and each write is a command of its own.
function M.open(driver, path, text, _, limits, box)
  local access = file_streams.access(text)
  local kind = (text or "r"):gsub("b", "")
  local ok, message, code, detail =
    shell.run(driver, OPEN, { path, kind }, shell.doing("open", path), limits)
  if not ok then
    return nil, message, code, detail
  end
  local file = setmetatable({ driver = driver, path = path, at = 0, append = kind == "a" }, File)
  return file_streams.new(box, file, path, access)
end

return M
