--- Reading files: through a descriptor that the agent opened, or, where the host must not have one,
--- through a worker's pipe.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

local flags = core.file_flags

--- What a worker copies out of a file that cannot be passed, as those in /proc.
local function gather(worker, length, max)
  local pieces, total = {}, 0
  while true do
    local data, message, code, detail = worker:chunk()
    if message then
      return nil, message, code, detail
    elseif not data then
      break
    end
    pieces[#pieces + 1] = data
    total = total + #data
    if total > max then
      return errors.fail("too_large", ("more than %d bytes"):format(max))
    end
  end
  local exit, message, code, detail = worker:exit()
  if not exit then
    return nil, message, code, detail
  elseif exit.exit_code ~= 0 then
    return worker:refused(exit.exit_code)
  end
  return table.concat(pieces)
end

function M.cat(driver, path, offset, length, max, limits)
  local most = math.min(length or max + 1, max + 1)
  return calls.work(driver, { "cat", path, ("%d"):format(offset), ("%d"):format(most) },
    { path = path, verb = "read" }, limits, gather, length, max)
end

--- A file to read from: "file", file; or "virtual".
function M.open(driver, path, limits)
  local file = driver.open and driver:open(path)
  if file then
    return "file", file
  end
  local ok, body, code, detail =
    calls.call(driver, "open", { path = path, flags = flags.RDONLY }, limits, "read")
  if not ok then
    return nil, body, code, detail
  end
  return calls.opened(body, code, "read", path)
end

--- As `files:read`, of an absolute path. `length` may be nil.
function M.read(driver, path, offset, length, max, limits)
  local kind, file, code, detail = M.open(driver, path, limits)
  if not kind then
    return nil, file, code, detail
  elseif kind == "virtual" then
    return M.cat(driver, path, offset, length, max, limits)
  end
  local data, errno, size = file:read_all(offset, length, max)
  file:close()
  if data then
    return data
  end
  local what = "read " .. options.quote(path)
  if errno == "too_large" then
    return errors.fail("too_large", ("%s: %.0f bytes are more than max (%.0f)"):format(what, size, max),
      { path = path, size = size })
  end
  return errors.errno(errno, what, { path = path })
end

return M
