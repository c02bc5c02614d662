--- Files over execd's own calls, where those are exact: bytes, which need no shell, and as many as
--- there are. What execd knows less of (nine bits of a mode, no link's target, no atomic write, `$`
--- in a path means a variable) is left to portable.lua, whose input comes here as an upload.

local change = require "moonsand.portable.change"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local host = require "moonsand.files.host"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local services = require "moonsand.providers.opensandbox.service"
local shell = require "moonsand.portable.shell"
local uploads = require "moonsand.providers.opensandbox.upload"

local M = {}

local PIECE = 256 * 1024

--- These arguments are for portable.lua.
local function leave()
  return errors.fail("unsupported", "left to plain commands", { portable = true })
end

--- execd reads `$NAME` in paths and puts a file's name into a header; JSON takes only UTF-8.
local function is_literal(path)
  return not path:find("[$%c%z\127-\255]")
end

--- What execd says of a path: one row of its info, or a failure.
local function info(driver, path, verb, limits)
  local found, message, code, detail = driver.execd:call(services.within(limits,
    { path = "/files/info", query = { path = path } }))
  if type(found) == "table" and type(found[path]) == "table" then
    return found[path]
  elseif found ~= nil then
    return errors.fail("protocol", "execd says nothing of the path", { path = path })
  elseif code == "not_found" and detail.provider_code == "FILE_NOT_FOUND" then
    return errors.fail("not_found", ("%s %s: No such file or directory"):format(verb,
      options.quote(path)), { path = path, http_status = detail.http_status })
  end
  message, code, detail = driver:blame(message, code, detail)
  detail.path = path
  return nil, message, code, detail
end

--- A file that can be fetched as it is: not a link, and not one of those that say they are empty.
local function plain_file(driver, path, verb, limits)
  if not is_literal(path) then
    return leave()
  end
  local entry, message, code, detail = info(driver, path, verb, limits)
  if not entry then
    return nil, message, code, detail
  elseif entry.type ~= "file" or type(entry.size) ~= "number" or entry.size == 0 then
    return leave()
  end
  return entry
end

local function open_range(driver, path, offset, length, limits)
  local range
  if offset > 0 or length then
    range = ("bytes=%d-%s"):format(offset, length and ("%d"):format(offset + length - 1) or "")
  end
  return driver.execd:open(services.within(limits, { path = "/files/download",
    query = { path = path }, headers = { Range = range }, accept = { range and 206 or 200 } }))
end

local function too_large(verb, path, max)
  return errors.fail("too_large", ("%s %s: more than %d bytes"):format(verb, options.quote(path),
    max), { path = path })
end

--- As `files:read`.
function M.read(driver, path, offset, length, max, limits)
  local entry, message, code, detail = plain_file(driver, path, "read", limits)
  if not entry then
    return nil, message, code, detail
  end
  local wanted = math.min(length or math.huge, entry.size - offset)
  if wanted <= 0 then
    return ""
  elseif wanted > max then
    return too_large("read", path, max)
  end
  local response, data
  response, message, code, detail = open_range(driver, path, offset, length and wanted, limits)
  if response then
    data, message, code, detail = response:read { max = max }
    response:close()
  end
  if not data then
    return nil, driver:blame(message, code, detail)
  end
  return data
end

-- ---------------------------------------------------------------- between host and sandbox

local function progress(o, total)
  local done = 0
  return function(count)
    done = done + count
    if o.progress then
      o.progress(options.integer(done), options.integer(math.max(total, done)))
    end
    return done
  end
end

local function fetch(driver, path, placed, host_path, size, max, o, limits)
  local response, message, code, detail = open_range(driver, path, 0, nil, limits)
  if not response then
    return nil, driver:blame(message, code, detail)
  end
  local tell, done = progress(o, size), 0
  while true do
    local data
    data, message, code, detail = response.body:chunk()
    if not data then
      break
    end
    local ok, errno = placed:write(data)
    done = tell(#data)
    if not ok then
      response:close()
      return host.failure("write", host_path, errno)
    elseif done > max then
      response:close()
      return too_large("download", path, max)
    end
  end
  response:close()
  if message then
    return nil, driver:blame(message, code, detail)
  end
  local ok, errno = placed:commit()
  if not ok then
    return host.failure("write", host_path, errno)
  end
  return { entries = 1, bytes = options.integer(done), skipped = {} }
end

--- As `files:download`, of one file.
function M.download(driver, path, host_path, max, _, o)
  local limits = loop.limits(o)
  local entry, message, code, detail = plain_file(driver, path, "download", limits)
  if not entry then
    return nil, message, code, detail
  elseif host_path == "" or host_path:find "%z" then
    return leave()
  elseif entry.size > max then
    return errors.fail("too_large", ("download %s: %.0f bytes are more than max (%.0f)"):format(
      options.quote(path), entry.size, max), { path = path, size = entry.size })
  end
  local placed, errno = core.place(host_path, tonumber(tostring(entry.mode or 644), 8))
  if not placed then
    return host.failure("write", host_path, errno)
  end
  return host.with(placed, fetch, driver, path, placed, host_path, entry.size, max, o,
    limits)
end

--- What was sent becomes what `cat` reads, and portable.lua's script puts it in its place.
local FROM_FILE = 'exec <"$7" || exit; rm -f -- "$7"\n' .. change.REPLACE

local function send(driver, file, host_path, path, o, limits)
  local entry, errno = file:stat()
  if not entry then
    return host.failure("read", host_path, errno)
  end
  local sent, tell = "/tmp/.moonsand-" .. change.token(), progress(o, entry.size)
  local ok, message, code, detail = uploads.send(driver.execd, { { path = sent, mode = "600",
    size = entry.size, body = function()
      local data
      data, errno = file:read(PIECE)
      if data then
        tell(#data)
      end
      return data, errno and core.strerror(errno) or nil
    end } }, limits)
  if ok then
    ok, message, code, detail = shell.run(driver, FROM_FILE, { path, "1",
      ".moonsand-" .. change.token(), ("%d"):format(entry.size), ("%04o"):format(entry.mode % 512),
      "", sent }, shell.doing("write", path), limits)
  end
  if not ok then
    return nil, driver:blame(message, code, detail)
  elseif entry.size == 0 then
    tell(0)
  end
  return { entries = 1, bytes = options.integer(entry.size), skipped = {} }
end

--- As `files:upload`, of one file.
function M.upload(driver, host_path, path, o)
  if host_path == "" or host_path:find "%z" then
    return leave()
  end
  local file = core.host_file(host_path)
  if not file then
    return leave() -- a directory, or what cannot be read, of which it says why
  end
  return host.with(file, send, driver, file, host_path, path, o, loop.limits(o))
end

return M
