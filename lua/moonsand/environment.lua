--- The environment of a program: a base, what the sandbox, the view and the call set, and files of
--- `NAME=value` lines.

local errors = require "moonsand.errors"
local options = require "moonsand.options"

local M = {}

--- What every program inside finds, unless it is cleared.
M.base = {
  PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  HOME = "/workspace",
  USER = "sandbox",
  LANG = "C.UTF-8",
  TMPDIR = "/tmp",
  TERM = "dumb",
}

--- Checks one variable. Types are the caller's bug; what the system cannot take is a failure.
---@return true|nil ok, string? message, string? code, table? detail
local function check(call, name, value, level)
  if type(name) ~= "string" then
    errors.raise(level + 1, "%s: names of variables are strings, got %s", call, type(name))
  elseif value ~= false and type(value) ~= "string" and type(value) ~= "number" then
    errors.raise(level + 1, "%s: variable %s must be a string, a number or false, got %s", call, name,
      type(value))
  elseif name == "" or name:find "[=%z]" then
    return errors.fail("invalid", ("a variable cannot be named %s"):format(options.quote(name)))
  elseif type(value) == "string" and value:find "%z" then
    return errors.fail("invalid", ("variable %s: a value cannot hold a NUL"):format(name))
  end
  return true
end

--- Checks a table of variables.
---@param call string
---@param variables? table<string, string|number|false>
---@param level integer
---@return true|nil ok, string? message, string? code, table? detail
function M.check(call, variables, level)
  for name, value in pairs(variables or {}) do
    local ok, message, code, detail = check(call, name, value, level + 1)
    if not ok then
      return nil, message, code, detail
    end
  end
  return true
end

local escapes = { n = "\n", t = "\t", r = "\r" }

local function unquote(value)
  local single = value:match "^'([^']*)'%s*$"
  if single then
    return single
  end
  local double = value:match '^"(.*)"%s*$'
  if double then
    return (double:gsub("\\(.)", function(c)
      return escapes[c] or c
    end))
  end
  return (value:gsub("%s+#.*$", ""):gsub("%s+$", ""))
end

--- Reads `NAME=value` lines from a file of the host: blank lines and `#` comments are skipped,
--- `export` is allowed, quotes are taken off, nothing is expanded.
---@param path string
---@return table<string, string>? variables, string? message, string? code, table? detail
function M.load(path)
  local file, reason, errno = io.open(path, "r")
  local text
  if file then
    text, reason, errno = file:read "*a"
    file:close()
  end
  if not text then
    return errors.fail(errors.code(errno), "env_file: " .. reason, { path = path })
  elseif text:find "%z" then
    return errors.fail("invalid", ("env_file: %s holds a NUL"):format(path), { path = path })
  end
  local variables, number = {}, 0
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    number = number + 1
    line = line:gsub("\r$", "")
    if line:find "%S" and not line:find "^%s*#" then
      local name, value = line:match "^%s*([%w_.]+)%s*=%s*(.*)$"
      if not name then
        name, value = line:match "^%s*export%s+([%w_.]+)%s*=%s*(.*)$"
      end
      if not name then
        return errors.fail("invalid", ("env_file: %s:%d: not NAME=value"):format(path, number),
          { path = path })
      end
      variables[name] = unquote(value)
    end
  end
  return variables
end

--- Lays tables over each other, later ones win; false stays.
---@param ... table<string, string|number|false>?
---@return table<string, string|number|false>
function M.lay(...)
  local laid = {}
  for i = 1, select("#", ...) do
    for name, value in pairs((select(i, ...)) or {}) do
      laid[name] = value
    end
  end
  return laid
end

--- Lays tables over each other, later ones win; false takes a variable out.
---@param ... table<string, string|number|false>?
---@return table<string, string>
function M.merge(...)
  local merged = {}
  for name, value in pairs(M.lay(...)) do
    merged[name] = value ~= false and tostring(value) or nil
  end
  return merged
end

--- As the kernel wants it: sorted, for the same environment every time.
---@param variables table<string, string>
---@return string[]
function M.list(variables)
  local list = {}
  for name, value in pairs(variables) do
    list[#list + 1] = name .. "=" .. value
  end
  table.sort(list)
  return list
end

return M
