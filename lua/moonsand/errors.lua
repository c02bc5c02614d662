--- How things fail. A call that can fail answers `nil, message, code, detail`; a mistake in the
--- caller's program raises, at the caller's line.

local core = require "moonsand.core"

local M = {}

--- Why the kernel refused, by its number, in our words. What is not here is `provider`.
local names = {
  ENOENT = "not_found",
  EEXIST = "exists",
  ENOTDIR = "not_a_directory",
  EISDIR = "is_a_directory",
  ENOTEMPTY = "not_empty",
  EROFS = "read_only",
  ELOOP = "loop",
  EBUSY = "busy",
  ETXTBSY = "busy",
  EAGAIN = "busy",
  EWOULDBLOCK = "busy",
  EACCES = "permission_denied",
  EPERM = "permission_denied",
  ENOSPC = "no_space",
  EDQUOT = "no_space",
  EFBIG = "too_large",
  E2BIG = "too_large",
  ENAMETOOLONG = "invalid",
  EINVAL = "invalid",
  ENOEXEC = "invalid",
  EILSEQ = "invalid",
  EXDEV = "invalid",
  EPIPE = "closed",
  EBADF = "closed",
  ENOSYS = "unsupported",
  EOPNOTSUPP = "unsupported",
  ESRCH = "not_found",
  ENXIO = "invalid",
  EMFILE = "unavailable",
  ENFILE = "unavailable",
  ENOMEM = "unavailable",
  ETOOMANYREFS = "unavailable",
  EPROTO = "protocol",
  EADDRINUSE = "busy",
  EADDRNOTAVAIL = "invalid",
  ECONNREFUSED = "connection",
  EHOSTUNREACH = "connection",
  ENETUNREACH = "connection",
  ETIMEDOUT = "connection",
  ECONNRESET = "lost",
}

local codes = {}
for name, code in pairs(names) do
  if core.errno[name] then
    codes[core.errno[name]] = code
  end
end

--- Completes `detail` and answers a failure.
---@param code string one of the table at the end of the API page
---@param message string
---@param detail? table
---@return nil, string message, string code, table detail
function M.fail(code, message, detail)
  detail = detail or {}
  detail.code = code
  detail.message = message
  return nil, message, code, detail
end

--- Passes on what a call answered: a success as one value, so that it can be an argument, a failure
--- whole. `return errors.outcome(f())` is no tail call of f, so f can blame the caller's line.
function M.outcome(value, ...)
  if value == nil and (...) ~= nil then
    return nil, ...
  end
  return value
end

--- Completes what a call on a sandbox answered: a failure says which provider's it was.
---@param box { provider: string }
function M.attribute(box, value, message, code, detail)
  if value == nil and type(detail) == "table" then
    detail.provider = detail.provider or box.provider
  end
  return value, message, code, detail
end

--- A failure from a system call's number.
---@param errno integer
---@param context string what was tried, for example `open "/etc/shadow"`
---@param detail? table
function M.errno(errno, context, detail)
  return M.fail(
    codes[errno] or "provider",
    ("%s: %s"):format(context, core.strerror(errno)),
    detail
  )
end

--- The code for a system call's number.
---@param errno integer
---@return string
function M.code(errno)
  return codes[errno] or "provider"
end

--- Raises a mistake of the caller, at the line that called the public function.
---@param level integer as in `error`, counted from the function that calls `raise`
function M.raise(level, format, ...)
  local message = select("#", ...) > 0 and format:format(...) or format
  error("moonsand: " .. message, level + 1)
end

---@class moonsand.Error the error object that `moonsand.assert` raises: the fields of `detail`
local Error = {}
Error.__index = Error
Error.__name = "moonsand.Error"
Error.__tostring = function(self)
  return self.message
end

--- Makes an error object of a failure's detail.
---@param code string
---@param message string
---@param detail? table
---@return moonsand.Error
function M.object(code, message, detail)
  local object = setmetatable({}, Error)
  for key, value in pairs(detail or {}) do
    object[key] = value
  end
  object.code = code
  object.message = message
  return object
end

---@return boolean
function M.is_object(value)
  return getmetatable(value) == Error
end

--- Like `assert`, but raises an error object with the fields of `detail` and `__tostring`.
function M.assert(...)
  local first, message, code, detail = ...
  if first then
    return ...
  end
  if code == nil then
    error(message == nil and "assertion failed!" or message, 2)
  end
  error(M.object(code, message, detail), 0)
end

return M
