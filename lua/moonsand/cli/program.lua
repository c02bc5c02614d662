--- The commands that run a program: run, exec, shell, in a sandbox of its own or in one that is there.
--- Files go in, the program has our streams, files come out.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local json = require "moonsand.cli.json"
local loop = require "moonsand.loop"
local moonsand = require "moonsand"
local options = require "moonsand.options"
local streams = require "moonsand.stream"
local terminal = require "moonsand.cli.terminal"

local M = {}

local TIMED_OUT, FAILED, NO_PROGRAM, NOT_FOUND, SIGNALED = 124, 125, 126, 127, 128
local PROMPT = "sandbox$ "
local REFUSALS = 10 -- what the network did not give is said of so many
local LIMITS = {
  "memory", "cpus", "processes", "disk", "inodes", "cpu_time", "open_files", "file_size",
}
local CREATE = {
  "image", "workspace", "root", "root_mode", "hostname", "isolation", "allow_unenforced",
}
local HANDLE = { "provider", "cwd", "clear_env", "env_file" } -- also of one that is there

M.FAILED = FAILED

-- ---------------------------------------------------------------- the sandbox

local function split(text)
  local words = {}
  for word in text:gmatch "%S+" do
    words[#words + 1] = word
  end
  return words
end

--- The variables of `--env`.
local function read_env(list)
  local env = {}
  for _, text in ipairs(list or {}) do
    local name, value = text:match "^([^=]+)=(.*)$"
    if not name then
      name, value = text, os.getenv(text)
    end
    if not value then
      return errors.fail("invalid", ("--env: there is no variable %s here"):format(options.quote(name)))
    end
    env[name] = value
  end
  return env
end

--- The options of a handle that a command line says.
local function handle_options(o)
  local env, message, code, detail = read_env(o.env)
  if not env then
    return nil, message, code, detail
  end
  local opts, shell = { env = env }, split(o.shell or "")
  for _, name in ipairs(HANDLE) do
    opts[name] = o[name]
  end
  opts.shell = shell[2] and shell or shell[1]
  return opts
end

--- The mounts of `--mount`.
local function read_mounts(list)
  local mounts = {}
  for i, text in ipairs(list) do
    local source, target, mode = text:match "^(.+):(/[^:]*):(%l+)$"
    if not source then
      source, target = text:match "^(.+):(/[^:]*)$"
    end
    if not source then
      return errors.fail("invalid",
        ("--mount: %s is not PATH:INSIDE[:MODE]"):format(options.quote(text)))
    end
    mounts[i] = { source = source, target = target, mode = mode }
  end
  return mounts
end

--- What `--network` and `--network-deny` say.
local function read_network(allow, deny)
  for _, word in ipairs(allow or {}) do
    if word == "none" or word == "host" then
      if allow[2] or deny then
        return errors.fail("invalid", ("--network: %s stands alone"):format(word))
      end
      return word == "host" and word
    end
  end
  if not allow then
    return errors.fail("invalid", "--network-deny: without --network nothing can be reached")
  end
  return { allow = allow, deny = deny }
end

--- And those of `moonsand.create` besides.
local function create_options(o)
  local opts, limits = {}, {}
  for _, name in ipairs(CREATE) do
    opts[name] = o[name]
  end
  for _, name in ipairs(LIMITS) do
    limits[name] = o[name]
  end
  opts.limits = next(limits) and limits
  opts.seccomp = o.allow_syscall and { allow = o.allow_syscall }
  local message, code, detail
  if o.mount then
    opts.mounts, message, code, detail = read_mounts(o.mount)
  end
  if not message and (o.network or o.network_deny) then
    opts.network, message, code, detail = read_network(o.network, o.network_deny)
  end
  if message then
    return nil, message, code, detail
  end
  return opts
end

--- A call of the module's. What a provider does not know raises in a program; here it is the user's
--- word.
local function ask(fn, ...)
  local ok, box, message, code, detail = pcall(fn, ...)
  if ok then
    return box, message, code, detail
  end
  local mistake = type(box) == "string" and box:match "moonsand: moonsand%.%l+: (.*)$"
  if not mistake then
    error(box, 0)
  end
  return errors.fail("invalid", mistake)
end

--- A new sandbox, as the command line says.
---@param o table
---@param name? string
---@return moonsand.Sandbox? box, string? message, string? code, table? detail
function M.create(o, name)
  local opts, message, code, detail = handle_options(o)
  if not opts then
    return nil, message, code, detail
  end
  local more
  more, message, code, detail = create_options(o)
  if not more then
    return nil, message, code, detail
  end
  for option, value in pairs(more) do
    opts[option] = value
  end
  opts.name = name
  return ask(moonsand.create, opts)
end

--- The one that `--in` names.
local function connect(o)
  local opts, message, code, detail = handle_options(o)
  if not opts then
    return nil, message, code, detail
  end
  local more
  more, message, code, detail = create_options(o)
  if not more then
    return nil, message, code, detail
  end
  local given = next(more)
  if given then
    return errors.fail("invalid", ("--in: %s can only be said when a sandbox is made"):format(given))
  end
  return ask(moonsand.connect, o["in"], opts)
end

local function close_and_pass(box, ok, ...)
  box:close()
  if not ok then
    error((...), 0)
  end
  return ...
end

--- `fn(box, …)` with a sandbox, which is closed in every case.
function M.with(o, fn, ...)
  local box, message, code, detail = (o["in"] and connect or M.create)(o)
  if not box then
    return nil, message, code, detail
  end
  return close_and_pass(box, pcall(fn, box, ...))
end

-- ---------------------------------------------------------------- files

local function base(path)
  return path:match "([^/]+)/*$" or path
end

--- One copy, with a bar of progress.
function M.copy(call, label, quiet)
  local progress, finish = nil, function() end
  if not quiet then
    progress, finish = terminal.progress(label)
  end
  local ok, done, message, code, detail = pcall(call, progress)
  finish()
  if not ok then
    error(done, 0)
  elseif not done then
    return nil, message, code, detail
  end
  for _, skipped in ipairs(done.skipped) do
    terminal.say(("%s: passed over: %s"):format(skipped.path, skipped.message))
  end
  return done
end

local function put(box, o)
  for _, text in ipairs(o.put or {}) do
    local host, inside = text:match "^(.*):([^:]*)$"
    host = host or text
    if not inside or inside == "" or inside:find "/$" then
      inside = (inside or "") .. base(host)
    end
    local done, message, code, detail = M.copy(function(progress)
      return box.files:upload(host, inside, { progress = progress })
    end, "put " .. base(host), o.quiet or o.json)
    if not done then
      return errors.fail(code, "--put: " .. message, detail)
    end
  end
  return true
end

local function get(box, o)
  for _, text in ipairs(o.get or {}) do
    local inside, host = text:match "^([^:]*):(.*)$"
    inside = inside or text
    if not host or host == "" or host:find "/$" then
      host = (host or "") .. base(inside)
    end
    local done, message, code, detail = M.copy(function(progress)
      return box.files:download(inside, host, { progress = progress })
    end, "get " .. base(inside), o.quiet or o.json)
    if not done then
      return errors.fail(code, "--get: " .. message, detail)
    end
  end
  return true
end

-- ---------------------------------------------------------------- streams

--- What the program reads: our standard input. One that can be waited for is, so that what it gives
--- arrives at once and the program's end is noticed meanwhile.
local function input(o)
  if o.no_stdin then
    return false
  end
  local reactor, message = loop.reactor()
  if not reactor then
    error(message, 0)
  end
  local raw, errno = core.input(reactor, 0)
  if raw then
    raw:watch()
    return streams.new(raw, "standard input")
  end
  return errno ~= core.errno.EBADF and io.stdin
end

--- Passes bytes on as they are, at once.
function M.writer(file, name)
  file:setvbuf "no"
  return function(data)
    local ok, why, errno = file:write(data)
    if not ok then
      error(errors.object(errors.code(errno), why, { what = name, errno = errno }), 0)
    end
  end
end

--- The options of exec that a command line says.
local function program_options(o)
  local opts = { timeout = o.timeout, grace = o.grace, umask = o.umask, stdin = input(o) }
  if o.json then
    opts.max_output = o.max_output
  else
    opts.stdout, opts.stderr = M.writer(io.stdout, "stdout"), M.writer(io.stderr, "stderr")
  end
  return opts
end

-- ---------------------------------------------------------------- the end

--- What the tool's exit status is for a Result.
---@return integer
local function status_of(result)
  if result.timed_out then
    return TIMED_OUT
  end
  return result.exit_code or SIGNALED + result.signal_number
end

--- The same for a failure.
---@return integer
function M.status_of_failure(code, detail)
  if not detail or detail.what ~= "program" then
    return FAILED
  end
  return code == "not_found" and NOT_FOUND or NO_PROGRAM
end

--- What ended the program, where its exit status alone does not say.
local function ending(result)
  if result.timed_out then
    return ("timed out after %.3f s"):format(result.duration)
  elseif result.limit then
    return "ended by its limit of " .. result.limit
  elseif result.signal then
    return "ended by signal " .. result.signal
  end
end

--- What it did not get from the network, each once.
local function tell_refusals(attempts)
  local seen, rows = {}, {}
  for _, attempt in ipairs(attempts) do
    if attempt.decision == "denied" or attempt.decision == "failed" then
      local text = ("network: %s %s:%s: %s"):format(attempt.decision, attempt.host or "?",
        attempt.port or "?", attempt.reason)
      if not seen[text] then
        seen[text] = true
        rows[#rows + 1] = text
      end
    end
  end
  for i = 1, math.min(#rows, REFUSALS) do
    terminal.say(rows[i])
  end
  if #rows > REFUSALS then
    terminal.say(("network: and %d others"):format(#rows - REFUSALS))
  end
end

--- Prints or says what came of it: the exit status.
local function report(box, result, o)
  local attempts = box:network_log()
  if o.json then
    local codec, message, code, detail = json.codec()
    if not codec then
      return nil, message, code, detail
    end
    local object = json.of_result(result)
    object.network = attempts[1] and json.of_list(attempts)
    io.stdout:write(codec.encode(object), "\n")
  elseif not o.quiet then
    tell_refusals(attempts)
    if ending(result) then
      terminal.say(ending(result))
    end
  end
  return status_of(result)
end

--- The whole of it, in a sandbox that is there: `start()` gives the Result.
local function perform(box, o, start)
  local ok, message, code, detail = put(box, o)
  if not ok then
    return nil, message, code, detail
  end
  local result
  result, message, code, detail = start()
  if not result then
    return nil, message, code, detail
  end
  local status
  status, message, code, detail = report(box, result, o)
  if not status then
    return nil, message, code, detail
  end
  local got, why, _, more = get(box, o)
  if not got then
    terminal.complain(why, more)
    return status ~= 0 and status or FAILED
  end
  return status
end

-- ---------------------------------------------------------------- run

--- The text of a script: "-" is standard input.
local function read_text(path)
  if path == "-" then
    return io.stdin:read "*a"
  end
  local file, message, errno = io.open(path, "rb")
  local text
  if file then -- a directory can be opened, and not read
    text, message, errno = file:read "*a"
    file:close()
  end
  if not text then
    return errors.fail(errors.code(errno), message)
  end
  return text
end

local function run_text(box, o, path, args)
  local text, message, code, detail = read_text(path)
  if not text then
    return nil, message, code, detail
  end
  return perform(box, o, function()
    local opts = program_options(o)
    opts.language, opts.args = o.language, args
    if path == "-" then
      opts.stdin = false
    end
    return box:run_code(text, opts)
  end)
end

local function run_file(box, o, path, args)
  local name = base(path)
  local done, message, code, detail = M.copy(function(progress)
    return box.files:upload(path, name, { progress = progress })
  end, "put " .. name, o.quiet or o.json)
  if not done then
    return nil, message, code, detail
  end
  return perform(box, o, function()
    local opts = program_options(o)
    opts.interpreter = o.interpreter and split(o.interpreter)
    return box:run(name, args, opts)
  end)
end

--- `moonsand run`: the exit status, or a failure.
---@param line moonsand.cli.Line
---@return integer? status, string? message, string? code, table? detail
function M.run(line)
  local o, path, args = line.options, line.words[1], {}
  for i = 2, #line.words do
    args[i - 1] = line.words[i]
  end
  if o.language and o.interpreter then
    return errors.fail("invalid", "--language and --interpreter: one of them will do",
      { usage = "run " })
  elseif path == "-" and not o.language then
    return errors.fail("invalid", "a text from standard input needs --language", { usage = "run " })
  end
  return M.with(o, o.language and run_text or run_file, o, path, args)
end

-- ---------------------------------------------------------------- exec and shell

--- Starts it, and leaves it running: says where it can be looked at.
local function in_background(box, o, command)
  local ok, message, code, detail = put(box, o)
  local p
  if ok then
    p, message, code, detail = box:start(command, {
      background = true, stdin = false, timeout = o.timeout, grace = o.grace, umask = o.umask,
    })
  end
  if not p then
    return nil, message, code, detail
  end
  io.stdout:write(p.id, "\n")
  p:detach()
  return 0
end

---@param line moonsand.cli.Line
---@return integer? status, string? message, string? code, table? detail
function M.exec(line)
  local o = line.options
  local command = o.command or line.words
  if o.command and line.words[1] then
    return errors.fail("invalid", "--command and a program: one of them will do", { usage = "exec " })
  elseif not o.command and not line.words[1] then
    return errors.fail("invalid", "what to run? A program is needed, or --command",
      { usage = "exec " })
  end
  if o.background and not o["in"] then
    return errors.fail("invalid", "--background: a new sandbox would end with us; --in names one that stays",
      { usage = "exec " })
  end
  local status, message, code, detail = M.with(o, function(box)
    if o.background then
      return in_background(box, o, command)
    end
    return perform(box, o, function()
      return box:exec(command, program_options(o))
    end)
  end)
  if code == "not_found" and detail.what == "program" and #line.words == 1
    and line.words[1]:find "%s" then
    message = message .. " (-c gives a text to the shell)"
  end
  return status, message, code, detail
end

--- A shell on a terminal of its own, tied to ours.
local function on_terminal(box, o)
  local p, message, code, detail =
    box:terminal { timeout = o.timeout, grace = o.grace, umask = o.umask }
  if not p then
    return nil, message, code, detail
  end
  local ok
  ok, message, code, detail = p:interact()
  if not ok then
    return nil, message, code, detail
  end
  return p:wait()
end

--- A shell that reads line after line.
local function on_lines(box, o, interactive)
  local opts = program_options(o)
  local words = o.shell and split(o.shell) or { "/bin/sh" }
  if interactive then
    words[#words + 1] = "-i"
    if not o.shell then
      words[#words + 1] = "+m" -- no job control without a terminal, and no word about that
    end
    opts.env = { PS1 = box:getenv "PS1" or PROMPT }
  end
  return box:exec(words, opts)
end

---@param line moonsand.cli.Line
---@return integer? status, string? message, string? code, table? detail
function M.shell(line)
  local o = line.options
  local interactive = not o.no_stdin and terminal.is_terminal(0)
  return M.with(o, function(box)
    return perform(box, o, function()
      if interactive and box:can "pty" then
        return on_terminal(box, o)
      end
      return on_lines(box, o, interactive)
    end)
  end)
end

return M
