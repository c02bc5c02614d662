--- Paths inside a sandbox. They are resolved inside; here only what the caller's directory means.

local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

local MAX = 4095

--- A path without the slashes at its end: "" of "/".
---@param path string
---@return string
function M.bare(path)
  return path:match "^.*[^/]" or ""
end

--- The last name of a path; "/" of the root.
---@param path string
---@return string
function M.name(path)
  local bare = M.bare(path)
  return bare == "" and "/" or bare:match "^.*/(.*)$" or bare
end

--- A path in a directory; an absolute one as it is.
---@param directory string
---@param path string
---@return string
function M.join(directory, path)
  if path:sub(1, 1) == "/" then
    return path
  end
  return M.bare(directory) .. "/" .. path
end

--- An absolute path: relative ones begin at the sandbox's working directory.
---@param box moonsand.Sandbox
---@param path string
---@return string? path, string? message, string? code, table? detail
function M.resolve(box, path)
  if path == "" or path:find "%z" then
    return errors.fail("invalid", ("%s is no path"):format(options.quote(path)), { path = path })
  end
  if path == "." then
    path = box:cwd()
  end
  path = M.join(box:cwd(), path)
  if #path > MAX then
    return errors.fail("invalid", ("a path of %d bytes is too long"):format(#path), { path = path })
  end
  return path
end

return M
