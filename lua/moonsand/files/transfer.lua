--- Between the host and the sandbox: one file by its descriptor, a tree as a stream of records from
--- or to a worker (src/pack.h, src/unpack.h).

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local host = require "moonsand.files.host"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local reading = require "moonsand.files.read"
local skips = require "moonsand.files.skipped"
local trees = require "moonsand.files.tree"
local writing = require "moonsand.files.write"

local M = {}

--- What moves between two turns of everybody else.
local PIECE = 4 * 1024 * 1024

local function whole(number)
  return options.integer(number)
end

--- Counts what has moved: tells `progress`, and lets others have a turn now and then.
local function meter(progress, total, limits)
  local told, rested = nil, 0
  return function(done)
    if progress and told ~= done then
      told = done
      progress(whole(done), whole(math.max(total(), done)))
    end
    if done - rested >= PIECE then
      rested = done
      return loop.turn(limits)
    end
  end
end

local function summary(entries, bytes, skipped)
  return { entries = whole(entries), bytes = whole(bytes), skipped = skipped }
end

-- ---------------------------------------------------------------- one file

--- Copies up to `size` bytes from one file to the other: how many.
local function copy(from, to, size, advance, failed)
  local done = 0
  while done < size do
    local count, errno = to:copy(from, math.min(PIECE, size - done))
    if not count then
      return failed(errno)
    elseif count == 0 then
      break
    end
    done = done + count
    local message, code, detail = advance(done)
    if message then
      return errors.fail(code, message, detail)
    end
  end
  advance(done)
  return done
end

local function upload_file(driver, file, host_path, path, o, limits)
  local entry, errno = file:stat()
  if not entry then
    return host.failure("read", host_path, errno)
  end
  local done = 0
  local advance = meter(o.progress, function()
    return entry.size
  end, limits)
  local function failed(number)
    return errors.errno(number, "write " .. options.quote(path), { path = path })
  end
  local function fill(target)
    local count, message, code, detail = copy(file, target, entry.size, advance, failed)
    done = count or 0
    return count and true or nil, message, code, detail
  end
  local ok, message, code, detail =
    writing.replace(driver, path, entry.mode % 512, false, true, limits, fill)
  if not ok then
    return nil, message, code, detail
  end
  return summary(1, done, {})
end

--- A file of which only the bytes can be had.
local function download_text(driver, path, host_path, max, limits, advance)
  local text, message, code, detail = reading.cat(driver, path, 0, nil, max, limits)
  if not text then
    return nil, message, code, detail
  end
  local placed, errno = core.place(host_path, writing.MODE)
  if not placed then
    return host.failure("write", host_path, errno)
  end
  local ok
  ok, errno = placed:write(text)
  if ok then
    ok, errno = placed:commit()
  end
  placed:close()
  if not ok then
    return host.failure("write", host_path, errno)
  end
  advance(#text)
  return summary(1, #text, {})
end

local function download_file(file, entry, host_path, advance)
  local placed, errno = core.place(host_path, entry.mode % 512)
  local function failed(number)
    return host.failure("write", host_path, number)
  end
  if not placed then
    return failed(errno)
  end
  return host.with(placed, function()
    local done, message, code, detail = copy(file, placed, entry.size, advance, failed)
    if not done then
      return nil, message, code, detail
    end
    local ok, why = placed:commit()
    if not ok then
      return failed(why)
    end
    return summary(1, done, {})
  end)
end

-- ---------------------------------------------------------------- trees

--- Feeds the worker; false when it does not want more.
local function send(worker, pack, skipped, advance)
  local passed = {}
  while true do
    local data = pack:read(passed)
    skipped:take(passed)
    if not data then
      worker:shutdown()
      return true
    end
    local taken, message, code, detail = worker:write(data)
    if not taken then
      return taken, message, code, detail
    end
    local _, bytes = pack:counts()
    message, code, detail = advance(bytes)
    if message then
      return nil, message, code, detail
    end
  end
end

local function upload_tree(driver, host_path, path, o, limits)
  local total = 0
  if o.progress then
    local _, bytes = core.measure(host_path)
    total = bytes or 0
  end
  local pack, errno = core.pack(host_path)
  if not pack then
    return host.failure("read", host_path, errno)
  end
  local skipped = skips.new(host_path)
  local advance = meter(o.progress, function()
    return total
  end, limits)
  return host.with(pack, calls.work, driver, { "unpack", path },
    { path = path, verb = "upload to", stdin = true }, limits, function(worker)
      local sent, message, code, detail = send(worker, pack, skipped, advance)
      if message then
        return nil, message, code, detail
      end
      local done
      done, message, code, detail = trees.await(worker, path)
      if not done then
        return nil, message, code, detail
      elseif not sent then
        return worker:cut_off()
      end
      local entries, bytes = pack:counts()
      return summary(entries, bytes, skipped.list)
    end)
end

--- What became of a piece that the sandbox sent.
local function judge(worker, host_path, state, errno, at)
  if state == "failed" then
    worker.over = true
    return worker:refused(errno, at)
  elseif errno == core.errno.EPROTO then
    return calls.nonsense(worker.what)
  end
  local path = at == "" and host_path or calls.join(host_path, at)
  if errno == core.errno.EFBIG then
    local message = worker.what .. ": more than max bytes, or more than limit entries"
    return errors.fail("too_large", message, { path = path })
  end
  return host.failure("write", path, errno)
end

local function receive(worker, unpack, host_path, skipped, advance)
  local passed = {}
  while true do
    local data, message, code, detail = worker:chunk()
    if message then
      return nil, message, code, detail
    elseif not data then
      return worker:cut_off()
    end
    local state, errno, at = unpack:feed(data, passed)
    skipped:take(passed)
    if state ~= "more" and state ~= "end" then
      return judge(worker, host_path, state, errno, at)
    end
    local entries, bytes = unpack:counts()
    message, code, detail = advance(bytes)
    if state == "end" then
      worker.over = true
      return summary(entries, bytes, skipped.list)
    elseif message then
      return nil, message, code, detail
    end
  end
end

local function download_tree(driver, path, host_path, max, limit, o, limits)
  local unpack, errno = core.unpack(host_path, max, limit)
  if not unpack then
    return host.failure("write", host_path, errno)
  end
  local skipped = skips.new(path)
  local advance = meter(o.progress, function()
    local _, bytes = unpack:total()
    return bytes
  end, limits)
  return host.with(unpack, calls.work, driver, { "pack", path, o.progress and "1" or "0" },
    { path = path, verb = "download" }, limits, receive, unpack, host_path, skipped, advance)
end

-- ---------------------------------------------------------------- both

--- As `files:upload`, to an absolute path; `o` are its checked options.
function M.upload(driver, host_path, path, o)
  return host.upload(upload_file, upload_tree, driver, host_path, path, o, loop.limits(o))
end

--- As `files:download`, of an absolute path; `o` are its checked options.
function M.download(driver, path, host_path, max, limit, o)
  local ok, message, code, detail = host.check(host_path)
  if not ok then
    return nil, message, code, detail
  end
  local limits = loop.limits(o)
  local kind, file
  kind, file, code, detail = reading.open(driver, path, limits)
  if not kind and code == "is_a_directory" then
    return download_tree(driver, path, host_path, max, limit, o, limits)
  elseif not kind then
    return nil, file, code, detail
  end
  local size = 0
  local advance = meter(o.progress, function()
    return size
  end, limits)
  if kind == "virtual" then
    return download_text(driver, path, host_path, max, limits, advance)
  end
  return host.with(file, function()
    local entry, errno = file:stat()
    local what = "download " .. options.quote(path)
    if not entry then
      return errors.errno(errno, what, { path = path })
    elseif entry.size > max then
      return errors.fail("too_large", ("%s: %.0f bytes are more than max (%.0f)"):format(what,
        entry.size, max), { path = path, size = entry.size })
    end
    size = entry.size
    return download_file(file, entry, host_path, advance)
  end)
end

return M
