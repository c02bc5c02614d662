--- The files of sandboxes, kept: one file each, in a directory that only this user can get at. It is
--- what a worker inside wrote (src/agent/worker_snapshot.c), which is not looked into here, and at its
--- end 512 bytes about it, with the SHA-256 of all that is before. It appears whole or not at all,
--- and is put back inside, too, by a worker.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local skips = require "moonsand.files.skipped"

local M = {}

local FORMAT = "moonsand snapshot 1"
local SUFFIX = ".snapshot"
local TRAILER, DIGEST = 512, 65 -- the digest is 64 digits and a newline
local PIECE = 256 * 1024
local MOST_DIGITS = 15 -- no number of ours has more, and a larger one is none for Lua

local function fail_errno(errno, what, path)
  return errors.errno(errno, what, { path = path })
end

--- Where they are, whether or not there is such a directory.
---@return string? path, string? message, string? code, table? detail
function M.directory()
  local state, home = os.getenv "XDG_STATE_HOME", os.getenv "HOME"
  if not (state and state:sub(1, 1) == "/") then -- as its specification has it
    state = home and home:sub(1, 1) == "/" and home .. "/.local/state" or nil
  end
  if not state then
    return errors.fail("unavailable", "there is no place for snapshots", {
      cause = "neither XDG_STATE_HOME nor HOME is set to an absolute path",
      fix = "set XDG_STATE_HOME",
    })
  end
  return state .. "/moonsand/snapshots"
end

local function path_of(directory, name)
  return directory .. "/" .. name .. SUFFIX
end

local function check_name(name)
  if #name > 0 and #name <= 64 and not name:find "[^%w._-]" then
    return name
  end
  return errors.fail("invalid", ("snapshot: %s (letters, digits, '.', '_', '-', at most 64)"):format(
    options.quote(name)))
end

-- ---------------------------------------------------------------- what is known of one

--- The last bytes but for the digest, which covers them.
local function write_trailer(about)
  local text = ("%s\nversion %s\ncreated %d\nentries %d\nbase %s\n"):format(FORMAT,
    core.version, about.created_at, about.entries, about.base)
  return text .. (" "):rep(TRAILER - DIGEST - #text)
end

--- What a file says of itself at its end; nil when it is none of ours, or not whole.
local function read_trailer(file)
  local entry = file:stat()
  local size = entry and entry.size or 0
  local text = size >= TRAILER and file:read_all(size - TRAILER, TRAILER, TRAILER)
  if not text or #text ~= TRAILER then
    return nil
  end
  local created, entries, base, digest = text:match("^" .. FORMAT
    .. "\nversion [%w.-]+\ncreated (%d+)\nentries (%d+)\nbase (%l+)\n *(%x+)\n$")
  if not digest or #digest ~= DIGEST - 1 then
    return nil
  end
  if #created > MOST_DIGITS or #entries > MOST_DIGITS then
    return nil
  end
  return {
    created_at = options.integer(tonumber(created)),
    entries = options.integer(tonumber(entries)),
    size = options.integer(size),
    base = base,
    digest = digest,
  }
end

local function row(name, about)
  return { id = name, name = name, provider = "local", created_at = about.created_at,
    size = about.size, entries = about.entries }
end

local function damaged(name, path, cause)
  return errors.fail("provider", ("the snapshot %s is damaged"):format(options.quote(name)), {
    path = path,
    cause = cause,
    fix = ("moonsand.delete_snapshot(%q), and take it again"):format(name),
  })
end

-- ---------------------------------------------------------------- taking one

--- Copies what the worker writes, and watches for its end. What it says of files that it passed
--- over goes into `skipped`. The numbers of entries and of bytes; or a failure.
local function receive(worker, placed, digest, max, skipped)
  local records, size = core.records(true), 0
  while true do
    local data, message, code, detail = worker:chunk()
    if message then
      return nil, message, code, detail
    elseif not data then
      return worker:cut_off()
    end
    size = size + #data
    if size > max then
      return errors.fail("too_large", ("%s: more than %d bytes"):format(worker.what, max))
    end
    local ok, errno = placed:write(data)
    if not ok then
      return fail_errno(errno, "write the snapshot")
    end
    digest:add(data)
    records:feed(data)
    for kind, a, b in records.next, records do
      if kind == false then
        return calls.nonsense(worker.what)
      elseif kind == "failed" then
        worker.over = true
        return worker:refused(a, b)
      elseif kind == "end" then
        worker.over = true
        return options.integer(a), size
      elseif kind == "skipped" then
        skipped:add(b, a)
      end
    end
  end
end

--- Writes the end of it, and gives it its name.
local function finish(placed, digest, about, name, path)
  local trailer = write_trailer(about)
  local ok, errno = placed:write(trailer .. digest:add(trailer):hex() .. "\n")
  if ok then
    ok, errno = placed:commit(true)
  end
  if ok then
    return true
  elseif errno == core.errno.EEXIST then
    return errors.fail("exists", ("there is a snapshot %s already"):format(options.quote(name)),
      { path = path })
  end
  return fail_errno(errno, "write the snapshot", path)
end

local function take(box, name, path, about, max, limits)
  local placed, errno = core.place(path, 384) -- 0600
  if not placed then
    return fail_errno(errno, "write the snapshot", path)
  end
  local digest, skipped = core.sha256(), skips.new "/"
  local entries, bytes, code, detail = calls.work(box, { "snapshot" },
    { path = "/", verb = "snapshot" }, limits, receive, placed, digest, max, skipped)
  local ok
  if entries then
    about.entries, about.size = entries, bytes + TRAILER
    ok, bytes, code, detail = finish(placed, digest, about, name, path)
  end
  placed:close()
  if not ok then
    return nil, bytes, code, detail
  end
  local made = row(name, about)
  made.skipped = skipped.list
  return made
end

local function random_name()
  return "snapshot-" .. core.random(8):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end)
end

--- Keeps a sandbox's own files.
---@param box moonsand.local.Sandbox
---@param name? string
---@param base "host"|"root" what lies under them
---@param max number bytes
---@return table? snapshot, string? message, string? code, table? detail
function M.take(box, name, base, max, limits)
  local message, code, detail, directory
  name, message, code, detail = check_name(name or random_name())
  if name then
    directory, message, code, detail = M.directory()
  end
  if not directory then
    return nil, message, code, detail
  end
  local ok, errno = core.private_directory(directory)
  if not ok and errno == core.errno.EPERM then
    return errors.fail("permission_denied", ("%s is another user's, or open to others"):format(
      options.quote(directory)), { path = directory, fix = "chmod 700, or another XDG_STATE_HOME" })
  elseif not ok then
    return fail_errno(errno, options.quote(directory), directory)
  end
  local path = path_of(directory, name)
  local there = core.host_file(path)
  if there then
    there:close()
    return errors.fail("exists", ("there is a snapshot %s already"):format(options.quote(name)),
      { path = path })
  end
  return take(box, name, path, { created_at = os.time(), base = base }, max, limits)
end

-- ---------------------------------------------------------------- finding them

--- Where one of this name would be.
local function locate(name)
  local ok, message, code, detail = check_name(name)
  local directory
  if ok then
    directory, message, code, detail = M.directory()
  end
  if not directory then
    return nil, message, code, detail
  end
  return path_of(directory, name)
end

local function not_there(name, path)
  return errors.fail("not_found", ("there is no snapshot %s"):format(options.quote(name)),
    { path = path })
end

--- One, open: what is known of it, its file and name with it. Close the file.
---@return table? about, string? message, string? code, table? detail
function M.find(name)
  local path, message, code, detail = locate(name)
  if not path then
    return nil, message, code, detail
  end
  local file, errno = core.host_file(path)
  if not file and errno == core.errno.ENOENT then
    return not_there(name, path)
  elseif not file then
    return fail_errno(errno, ("the snapshot %s"):format(options.quote(name)), path)
  end
  local about = read_trailer(file)
  if not about then
    file:close()
    return damaged(name, path, "it is cut, or was made by another version of moonsand")
  end
  about.file, about.name, about.path = file, name, path
  return about
end

--- All that there are, by name. One that cannot be read is told with `damaged`.
---@return table[]? list, string? message, string? code, table? detail
function M.list()
  local directory, message, code, detail = M.directory()
  if not directory then
    return nil, message, code, detail
  end
  local names, errno = core.names(directory)
  if not names and errno ~= core.errno.ENOENT then
    return fail_errno(errno, options.quote(directory), directory)
  end
  local list = {}
  for _, entry in ipairs(names or {}) do
    local name = entry:sub(-#SUFFIX) == SUFFIX and entry:sub(1, -#SUFFIX - 1)
    local about = name and check_name(name) and M.find(name)
    if about then
      about.file:close()
      list[#list + 1] = row(name, about)
    elseif name and check_name(name) then
      list[#list + 1] = { id = name, name = name, provider = "local", damaged = true }
    end
  end
  table.sort(list, function(a, b)
    return a.name < b.name
  end)
  return list
end

--- Takes one away. Sandboxes that are being made from it are made.
---@return true|nil ok, string? message, string? code, table? detail
function M.delete(name)
  local path, message, code, detail = locate(name)
  if not path then
    return nil, message, code, detail
  end
  local removed, errno = core.remove(path)
  if removed then
    return true
  elseif errno == core.errno.ENOENT then
    return not_there(name, path)
  end
  return fail_errno(errno, ("delete the snapshot %s"):format(options.quote(name)), path)
end

-- ---------------------------------------------------------------- putting one back

--- Gives the worker all of the file but its end; nil when it wants no more. Then, unless it was
--- refused meanwhile, the digest is that of what it got.
local function send(worker, about, digest)
  local left = about.size - TRAILER
  while left > 0 do
    local data, errno = about.file:read(math.min(left, PIECE))
    if not data then
      return nil, core.strerror(errno or core.errno.EIO), "provider", { path = about.path }
    end
    left = left - #data
    digest:add(data)
    local taken, message, code, detail = worker:write(data)
    if message then
      return nil, message, code, detail
    elseif not taken then
      return false
    end
    message, code, detail = loop.turn(worker.limits)
    if message then
      return nil, message, code, detail
    end
  end
  worker:shutdown()
  return true
end

--- The rest of what the digest covers: what the file says of itself.
local function is_whole(about, digest)
  local text = about.file:read_all(about.size - TRAILER, TRAILER - DIGEST, TRAILER)
  return text and digest:add(text):hex() == about.digest
end

local function restore(worker, about)
  local digest = core.sha256()
  local sent, message, code, detail = send(worker, about, digest)
  if message then
    return nil, message, code, detail
  elseif sent and not is_whole(about, digest) then
    return damaged(about.name, about.path, "its digest is not what it was when it was taken")
  end
  local kind, a, b, more = worker:record()
  if kind == "end" then
    return true
  elseif b == "protocol" or b == "closed" then -- it cannot be read, or is over too early
    return damaged(about.name, about.path, "there is something in it that cannot be")
  end
  return nil, a, b, more
end

--- Fills a new sandbox, in which nothing runs yet, with what was found, but for the paths in `kept`.
--- What fails is half done: the sandbox is to be ended.
---@param box moonsand.local.Sandbox
---@param about table as `find` gives it
---@param kept string[] absolute
---@return true|nil ok, string? message, string? code, table? detail
function M.restore(box, about, kept, limits)
  local argv = { "restore" }
  for i, path in ipairs(kept) do
    argv[i + 1] = path:sub(2)
  end
  return calls.work(box, argv, { path = "/", verb = "put back the snapshot into", stdin = true },
    limits, restore, about)
end

return M
