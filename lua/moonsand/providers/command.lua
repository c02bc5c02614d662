--- One line for a shell that does what a service cannot do itself: argv, directory, environment,
--- umask, limits, stderr into stdout. POSIX shell only.

local M = {}

--- A word for the shell. Bytes are as they are; a NUL cannot be in a word.
---@param word string
---@return string
function M.quote(word)
  if word:find "^[%w_/.,:=@%%+-]+$" then
    return word
  end
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

--- What `ulimit` calls a limit, and its unit.
local ULIMITS = {
  { "memory", "v", 1024 }, { "cpu_time", "t", 1 }, { "open_files", "n", 1 },
  { "file_size", "f", 512 }, { "processes", "u", 1 },
}

local function words(list)
  local quoted = {}
  for i, word in ipairs(list) do
    quoted[i] = M.quote(word)
  end
  return table.concat(quoted, " ")
end

--- `env` sets and takes out variables, also those that a shell could not name.
local function environment(spec)
  local sets, unsets = spec.env and spec.env[1], spec.unset and spec.unset[1]
  if not spec.clear_env and not sets and not unsets then
    return ""
  end
  local list = { "env" }
  if spec.clear_env then
    list[2] = "-i"
  end
  for _, name in ipairs(not spec.clear_env and spec.unset or {}) do
    list[#list + 1] = "-u"
    list[#list + 1] = name
  end
  for _, pair in ipairs(spec.env or {}) do
    list[#list + 1] = pair
  end
  return words(list) .. " "
end

--- The text for `sh -c`. `done` names what the service does itself: cwd, env, umask, limits, merge.
---@param spec table as `start` is given it
---@param done? table<string, boolean>
---@return string
function M.text(spec, done)
  done = done or {}
  local lines = {}
  local function add(format, ...)
    lines[#lines + 1] = format:format(...)
  end
  if spec.cwd and not done.cwd then
    add("cd -- %s || exit 126", M.quote(spec.cwd))
  end
  if spec.umask and not done.umask then
    add("umask %04o", spec.umask)
  end
  for _, row in ipairs(done.limits and {} or ULIMITS) do
    local value = spec[row[1]]
    if value then
      add("ulimit -%s %d || exit 126", row[2], math.ceil(value / row[3]))
    end
  end
  add("exec %s%s%s", done.env and "" or environment(spec), words(spec.argv),
    spec.merge and not done.merge and " 2>&1" or "")
  return table.concat(lines, "\n")
end

return M
