--- From what a caller of `exec` or `start` says to what a provider is asked: commands, options,
--- the environment, standard streams.

local environment = require "moonsand.environment"
local errors = require "moonsand.errors"
local options = require "moonsand.options"
local paths = require "moonsand.paths"

local unpack = table.unpack or unpack

local M = {}

--- The options of exec and start, with their types; which call takes which.
M.common = {
  cwd = "string",
  env = "table",
  env_file = "string",
  clear_env = "boolean",
  shell = "string|table",
  user = "string|number",
  umask = "string",
  limits = "table",
  timeout = "number",
  grace = "number",
  cancel = "table",
  check = "boolean",
  max_output = "number|string",
  on_limit = "string",
  stdin = "string|boolean|callable|file|stream",
  stdout = "string|callable",
  stderr = "string|callable",
  on_stdout = "callable",
  on_stderr = "callable",
  on_line = "callable",
  on_exit = "callable",
  pty = "boolean|table",
  background = "boolean",
  log = "table",
}

--- What a provider has to be able to do for an option.
local NEEDED = { pty = "pty", background = "background", log = "background" }

--- `options.check` walks tables with pairs, so each call has a whole one.
local function whole(more)
  local all = {}
  for name, types in pairs(M.common) do
    all[name] = types
  end
  for name, types in pairs(more) do
    all[name] = types
  end
  return all
end

M.exec_options = whole { leave = "boolean" }
M.start_options = whole { leave = "boolean" }

local LIMITS = {
  memory = "number|string",
  cpu_time = "number",
  open_files = "number",
  file_size = "number|string",
  processes = "number",
}

local LOG = { size = "number|string", keep = "string" }

M.MAX_OUTPUT = 16 * 1024 * 1024

-- ---------------------------------------------------------------- commands

local function check_argv(call, argv, level)
  local count = 0
  for key in pairs(argv) do
    if type(key) ~= "number" or key < 1 or key % 1 ~= 0 then
      errors.raise(level + 1, "%s: a command is a string or a list of words, not a table with the key %s",
        call, options.quote(key))
    end
    count = math.max(count, key)
  end
  if count == 0 then
    errors.raise(level + 1, "%s: the command is an empty list", call)
  end
  for i = 1, count do
    if type(argv[i]) ~= "string" then
      errors.raise(level + 1, "%s: word %d of the command must be a string, got %s", call, i, type(argv[i]))
    end
  end
end

local function shell_argv(call, shell, text, level)
  if shell == nil then
    return { "/bin/sh", "-c", text }
  elseif type(shell) == "string" then
    return { shell, "-c", text }
  end
  check_argv(call .. " (shell)", shell, level + 1)
  local argv = {}
  for i, word in ipairs(shell) do
    argv[i] = word
  end
  argv[#argv + 1] = text
  return argv
end

--- The words of a command: a string goes to the shell, a list never meets one.
---@return string[]? argv, string? message, string? code, table? detail
function M.argv(call, command, shell, level)
  local argv
  if type(command) == "string" then
    argv = shell_argv(call, shell, command, level + 1)
  elseif type(command) == "table" then
    check_argv(call, command, level + 1)
    argv = command
  else
    errors.raise(level + 1, "%s: a command is a string or a list of words, got %s", call, type(command))
  end
  for i, word in ipairs(argv) do
    if word:find "%z" then
      return errors.fail("invalid", ("word %d of the command holds a NUL"):format(i), { started = false })
    end
  end
  return argv
end

-- ---------------------------------------------------------------- values

local function read_limits(call, asked, level)
  local limits = {}
  for name, value in pairs(options.check(call .. ": limits", asked, LIMITS, level + 1)) do
    local message, code, detail
    limits[name], message, code, detail = options.limit(name, value)
    if not limits[name] then
      return nil, message, code, detail
    end
  end
  return limits
end

local function read_umask(value)
  local mask = value == nil and 18 or value:match "^[0-7]+$" and tonumber(value, 8)
  if not mask or mask > 511 then
    return errors.fail("invalid", ("umask: %s is none"):format(options.quote(value)))
  end
  return mask
end

--- The user to name to the provider: none where it is the one that there is.
local function read_user(driver, user)
  if user == nil or driver.users and driver.users[tostring(user)] then
    return false
  elseif driver:can "users" then
    return user
  end
  return errors.fail("unsupported", ("user: there is no %s in this sandbox"):format(
    options.quote(user)))
end

--- What the caller says of a program's environment: `false` takes a variable out.
local function own_environment(call, base, defaults, opts, level)
  local ok, message, code, detail = environment.check(call .. ": env", opts.env, level + 1)
  if not ok then
    return nil, message, code, detail
  end
  local file
  if opts.env_file then
    file, message, code, detail = environment.load(opts.env_file)
    if not file then
      return nil, message, code, detail
    end
  end
  if opts.clear_env then
    return { file or {}, opts.env or {} }
  end
  return { not defaults.clear_env and base or {}, defaults.env, file or {}, opts.env or {} }
end

--- The whole environment that a program gets.
---@param base? table<string, string> what every program finds
---@return table<string, string>? variables, string? message, string? code, table? detail
function M.environment(call, base, defaults, opts, level)
  local layers, message, code, detail = own_environment(call, base, defaults, opts, level + 1)
  if not layers then
    return nil, message, code, detail
  end
  return environment.merge(unpack(layers))
end

--- Those variables that a sandbox's own environment has and this program must not.
local function unset(defaults, opts)
  local names = {}
  for name, value in pairs(environment.lay(defaults.env, opts.env)) do
    if value == false then
      names[#names + 1] = name
    end
  end
  table.sort(names)
  return names
end

-- ---------------------------------------------------------------- terminals

--- What programs draw for that know no better, and nearly every terminal understands.
local TERM = "xterm-256color"
local SIZE = { cols = "number", rows = "number" }
local SIZE_MAX = 65535

--- Checks a terminal's size; raises for what can be none.
---@param size { cols: integer, rows: integer }
function M.check_size(call, size, level)
  for _, name in ipairs { "cols", "rows" } do
    local value = size[name]
    if type(value) ~= "number" or value % 1 ~= 0 or value < 1 or value > SIZE_MAX then
      errors.raise(level + 1, "%s: %s must be a whole number from 1 to %d, got %s", call, name,
        SIZE_MAX, tostring(value))
    end
  end
end

--- The size of the terminal that was asked for, if one was.
local function read_pty(call, opts, level)
  if not opts.pty then
    return nil
  end
  local asked = options.check(call .. ": pty", opts.pty ~= true and opts.pty or nil, SIZE, level + 1)
  local size = { cols = asked.cols or 80, rows = asked.rows or 24 }
  M.check_size(call .. ": pty", size, level + 1)
  if opts.on_stderr or opts.stderr ~= nil and opts.stderr ~= "stdout" then
    errors.raise(level + 1, "%s: with pty there is no stderr: everything comes on stdout", call)
  end
  return size
end

--- What programs find that run in a terminal.
local function terminal_environment(base)
  return environment.lay(base, { TERM = TERM })
end

-- ---------------------------------------------------------------- streams

--- How the log of a background program is asked for; what the values may be, a provider knows.
local function read_log(call, opts, level)
  if opts.log ~= nil and not opts.background then
    errors.raise(level + 1, "%s: log is for programs that run in the background", call)
  end
  return opts.log and options.check(call .. ": log", opts.log, LOG, level + 1)
end

--- How one output stream is treated: "collect", "discard", "inherit", or a function.
local function output_mode(call, name, value, level)
  if value == nil then
    return "collect"
  elseif type(value) == "string" and value ~= "collect" and value ~= "discard" and value ~= "inherit"
    and not (name == "stderr" and value == "stdout") then
    errors.raise(level + 1,
      "%s: %s must be \"collect\", \"discard\", \"inherit\"%s or a function, got %s", call, name,
      name == "stderr" and ', "stdout"' or "", options.quote(value))
  end
  return value
end

--- Whether a callback wants what comes from a stream, even if nothing of it is kept.
local function is_heard(opts, name)
  return opts["on_" .. name] ~= nil or opts.on_line ~= nil
end

--- Whether what comes from a stream goes on at once: "inherit", or a function.
local function is_passed_on(sink)
  return sink == "inherit" or sink ~= nil and type(sink) ~= "string"
end

local function has_callbacks(opts)
  return is_heard(opts, "stdout") or is_heard(opts, "stderr") or opts.on_exit ~= nil
    or is_passed_on(opts.stdout) or is_passed_on(opts.stderr)
end

--- The same, as a provider wants it. That of a call which sets nothing is made once.
local function environment_list(call, base, defaults, opts, level)
  local plain = not opts.env and not opts.env_file and not opts.clear_env and not opts.pty
  if plain and defaults.env_list then
    return defaults.env_list
  end
  local variables, message, code, detail =
    M.environment(call, base, defaults, opts, level + 1)
  if not variables then
    return nil, message, code, detail
  end
  local list = environment.list(variables)
  if plain then
    defaults.env_list = list
  end
  return list
end

--- Everything that a provider's `start` needs, and how the result is put together.
---@param call string for messages
---@param box table the sandbox or view: its defaults count
---@return table? plan, string? message, string? code, table? detail
function M.plan(call, box, command, opts, level)
  level = level + 1
  local defaults = box.defaults
  local argv, message, code, detail = M.argv(call, command, opts.shell or defaults.shell, level)
  if not argv then
    return nil, message, code, detail
  end
  local driver = box.core.driver
  for name, capability in pairs(NEEDED) do
    if opts[name] and not driver:can(capability) then
      return errors.fail("unsupported", name .. " is not supported by this provider")
    end
  end
  local base, pty = driver.environment, read_pty(call, opts, level)
  local user, env, limits, umask, max_output
  user, message, code, detail = read_user(driver, opts.user or defaults.user)
  if user ~= nil then
    env, message, code, detail = environment_list(call, pty and terminal_environment(base) or base,
      defaults, opts, level)
  end
  if env then
    limits, message, code, detail = read_limits(call, opts.limits, level)
  end
  if limits then
    umask, message, code, detail = read_umask(opts.umask or defaults.umask)
  end
  if umask then
    max_output, message, code, detail =
      options.size("max_output", opts.max_output or defaults.max_output or M.MAX_OUTPUT)
  end
  if not max_output then
    return nil, message, code, detail
  end
  local cwd
  cwd, message, code, detail = paths.resolve(box, opts.cwd or ".")
  if not cwd then
    return nil, message, code, detail
  end
  if opts.on_limit ~= nil and opts.on_limit ~= "truncate" and opts.on_limit ~= "kill" then
    errors.raise(level, '%s: on_limit must be "truncate" or "kill", got %s', call,
      options.quote(opts.on_limit))
  end
  if opts.grace and not (opts.grace >= 0) then
    errors.raise(level, "%s: grace must be a number of seconds, not %s", call, opts.grace)
  end

  local timeout = opts.timeout or defaults.timeout
  local stdout = output_mode(call, "stdout", opts.stdout, level)
  local stderr = output_mode(call, "stderr", opts.stderr, level)
  local merged = pty ~= nil or stderr == "stdout"
  local spec = {
    argv = argv,
    env = env,
    clear_env = not base and (opts.clear_env or defaults.clear_env) or nil,
    unset = not base and unset(defaults, opts) or nil,
    cwd = cwd,
    umask = umask,
    user = user or nil,
    pty = pty,
    background = opts.background or nil,
    log = read_log(call, opts, level),
    timeout = timeout,
    grace = opts.grace,
    leave = opts.leave,
    max_output = pty and stdout == "discard" and 0 or max_output,
    merge = merged,
    stdout = pty ~= nil or stdout ~= "discard" or is_heard(opts, "stdout"),
    stderr = not merged and (stderr ~= "discard" or is_heard(opts, "stderr")),
  }
  for name, value in pairs(limits) do
    spec[name] = value
  end
  return {
    spec = spec,
    limits = limits,
    timeout = timeout,
    grace = opts.grace or 0,
    max_output = max_output,
    on_limit = opts.on_limit or "truncate",
    check = opts.check == nil and defaults.check or opts.check,
    sinks = { stdout = stdout, stderr = not merged and stderr or nil },
    callbacks = has_callbacks(opts),
  }
end

return M
