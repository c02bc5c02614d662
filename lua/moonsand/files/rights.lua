--- Who may do what with a file: chmod and chown.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local look = require "moonsand.files.look"
local modes = require "moonsand.files.mode"
local options = require "moonsand.options"

local M = {}

--- As `files:chmod`, of an absolute path.
function M.chmod(driver, path, text, limits)
  local entry, message, code, detail
  if modes.is_relative(text) then
    entry, message, code, detail = look.stat(driver, path, true, limits, "chmod")
    if not entry then
      return nil, message, code, detail
    end
  end
  local mode
  mode, message, code, detail =
    modes.parse(text, entry and entry.mode, entry and entry.type == "directory")
  if not mode then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = calls.call(driver, "chmod", { path = path, mode = mode }, limits)
  if not ok then
    return nil, message, code, detail
  end
  return true
end

local ids = { sandbox = 1000, root = 0, nobody = 65534 }

--- The number of an owner; -1 leaves it as it is.
local function id_of(value)
  if value == nil then
    return -1
  end
  return ids[value] or tonumber(value)
end

--- As `files:chown`, of an absolute path.
function M.chown(driver, path, owner, group, limits)
  local uid, gid = id_of(owner), id_of(group)
  local what = "chown " .. options.quote(path)
  if not uid or not gid then
    return errors.fail("unsupported", ("%s: there is no %s here"):format(what,
      options.quote(uid and group or owner)), { path = path })
  end
  local errno, message, code, detail =
    driver:call(core.file_calls.chown, { path = path, a = uid, b = gid }, limits)
  if errno == 0 then
    return true
  elseif not errno then
    detail.path = path
    return errors.fail(code, what .. ": " .. message, detail)
  elseif errno == core.errno.EPERM or errno == core.errno.EINVAL then
    return errors.fail("unsupported", what .. ": one user exists in this sandbox", { path = path })
  end
  return errors.errno(errno, what, { path = path })
end

return M
