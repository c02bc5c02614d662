--- The host's side of what moves between it and a sandbox, for every provider.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

--- A failure on this side.
function M.failure(verb, path, errno)
  return errors.errno(errno, ("%s the host's %s"):format(verb, options.quote(path)), { path = path })
end

---@return true|nil ok, string? message, string? code, table? detail
function M.check(path)
  if path == "" or path:find "%z" then
    return errors.fail("invalid", ("%s is no path"):format(options.quote(path)), { path = path })
  end
  return true
end

local function close_and_pass(resource, ok, ...)
  resource:close()
  if not ok then
    error((...), 0)
  end
  return ...
end

--- `fn(…)`, after which the resource is closed in every case.
function M.with(resource, fn, ...)
  return close_and_pass(resource, pcall(fn, ...))
end

--- As `files:upload`, to an absolute path, by one of two functions: for a file or for a directory.
---@param of_file fun(driver: table, file: userdata, host_path: string, path: string, o: table, limits: table)
---@param of_tree fun(driver: table, host_path: string, path: string, o: table, limits: table)
function M.upload(of_file, of_tree, driver, host_path, path, o, limits)
  local ok, message, code, detail = M.check(host_path)
  if not ok then
    return nil, message, code, detail
  end
  local file, errno = core.host_file(host_path)
  if file then
    return M.with(file, of_file, driver, file, host_path, path, o, limits)
  elseif errno == core.errno.EISDIR then
    return of_tree(driver, host_path, path, o, limits)
  end
  return M.failure("read", host_path, errno)
end

return M
