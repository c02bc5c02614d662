--- The commands about sandboxes that stay: create, ls, rm, ps, logs, cp, forward.

local errors = require "moonsand.errors"
local json = require "moonsand.cli.json"
local moonsand = require "moonsand"
local options = require "moonsand.options"
local program = require "moonsand.cli.program"
local terminal = require "moonsand.cli.terminal"

local M = {}

local LOOK = 0.5 -- seconds between two looks at whether a sandbox lives

local function mistake(command, format, ...)
  return errors.fail("invalid", format:format(...), { usage = command .. " " })
end

--- Prints a value as JSON: the exit status.
local function print_json(value)
  local codec, message, code, detail = json.codec()
  if not codec then
    return nil, message, code, detail
  end
  io.stdout:write(codec.encode(json.of_value(value)), "\n")
  return 0
end

--- The same of a list, which may be empty.
local function print_list(list)
  if #list > 0 or not json.codec() then
    return print_json(list)
  end
  io.stdout:write "[]\n"
  return 0
end

--- Seconds as a person reads them.
local function duration(seconds)
  for _, unit in ipairs { { 86400, "d" }, { 3600, "h" }, { 60, "m" } } do
    if seconds >= 2 * unit[1] then
      return ("%d%s"):format(math.floor(seconds / unit[1]), unit[2])
    end
  end
  return ("%ds"):format(math.max(0, math.floor(seconds)))
end

local function command_line(command)
  return type(command) == "table" and table.concat(command, " ") or command
end

-- ---------------------------------------------------------------- create, ls, rm

---@param line moonsand.cli.Line
---@return integer? status, string? message, string? code, table? detail
function M.create(line)
  local o = line.options
  local box, message, code, detail = program.create(o, line.words[1])
  if not box then
    return nil, message, code, detail
  end
  local row = { id = box.id, name = box.name }
  local ok
  ok, message, code, detail =
    box:detach { lifetime = o.lifetime, idle_timeout = o.idle_timeout }
  if not ok then
    box:close()
    return nil, message, code, detail
  elseif o.json then
    return print_json(row)
  end
  io.stdout:write(row.name, "\n")
  return 0
end

local function when(row, now)
  if row.expires_at then
    return "in " .. duration(row.expires_at - now)
  end
  return row.idle_timeout and duration(row.idle_timeout) .. " alone" or "never"
end

function M.ls(line)
  local o = line.options
  local list, message, code, detail = moonsand.list { provider = o.provider }
  if not list then
    return nil, message, code, detail
  elseif o.json then
    return print_list(list)
  elseif o.quiet then
    for _, row in ipairs(list) do
      io.stdout:write(terminal.harmless(row.name or row.id), "\n")
    end
    return 0
  end
  local now, rows = os.time(), { { "NAME", "STATE", "AGE", "ENDS", "ID" } }
  for _, row in ipairs(list) do
    rows[#rows + 1] = { row.name or "-", row.state,
      row.created_at and duration(now - row.created_at) or "-", when(row, now), row.id }
  end
  terminal.print_table(rows)
  return 0
end

local function names_of(o)
  local list, message, code, detail = moonsand.list { provider = o.provider }
  if not list then
    return nil, message, code, detail
  end
  local known, all = {}, {}
  for i, row in ipairs(list) do
    known[row.id], all[i] = true, row.id
    if row.name then
      known[row.name] = true
    end
  end
  return known, all
end

function M.rm(line)
  local o = line.options
  local known, all, code, detail = names_of(o)
  if not known then
    return nil, all, code, detail
  elseif o.all and line.words[1] then
    return mistake("rm", "--all and a name: one of them will do")
  elseif not o.all and not line.words[1] then
    return mistake("rm", "which one? A name is needed, or --all")
  end
  local failed
  for _, name in ipairs(o.all and all or line.words) do
    local ok, message, more
    if known[name] then
      ok, message, _, more = moonsand.destroy(name, { provider = o.provider })
    else
      message = ("there is no sandbox %s"):format(options.quote(name))
    end
    if not ok then
      terminal.complain(message, more)
      failed = true
    end
  end
  return failed and program.FAILED or 0
end

-- ---------------------------------------------------------------- what runs in one

--- `fn(box)` with the sandbox that the first word names.
local function with(line, fn)
  return program.with({ ["in"] = line.words[1], provider = line.options.provider }, fn)
end

local function print_processes(box, o)
  local list, message, code, detail = box:ps()
  if not list then
    return nil, message, code, detail
  elseif o.json then
    return print_list(list)
  end
  local rows = { { "PID", "PPID", "STATE", "CPU%", "MEMORY", "COMMAND" } }
  for _, row in ipairs(list) do
    rows[#rows + 1] = { tostring(row.pid), tostring(row.ppid), row.state,
      ("%.1f"):format(row.cpu_percent), terminal.size(row.memory), row.command }
  end
  terminal.print_table(rows)
  return 0
end

local function state_of(row)
  if row.running then
    return "running"
  elseif row.exit_code then
    return "exited " .. ("%d"):format(row.exit_code)
  end
  return row.signal_number and "signal " .. ("%d"):format(row.signal_number) or "over"
end

local function print_programs(box, o)
  local list, message, code, detail = box:processes()
  if not list then
    return nil, message, code, detail
  elseif o.json then
    return print_list(list)
  end
  local now, rows = os.time(), { { "ID", "PID", "STATE", "AGE", "COMMAND" } }
  for _, row in ipairs(list) do
    rows[#rows + 1] = { row.id, tostring(row.pid), state_of(row),
      duration(now - (row.started_at or now)), command_line(row.command) }
  end
  terminal.print_table(rows)
  return 0
end

function M.ps(line)
  return with(line, function(box)
    return (line.options.all and print_processes or print_programs)(box, line.options)
  end)
end

-- ---------------------------------------------------------------- logs

--- The background program that is meant: by its id, else the last one that was started.
local function find_program(box, id)
  if id then
    return id
  end
  local list, message, code, detail = box:processes()
  if not list then
    return nil, message, code, detail
  end
  for i = #list, 1, -1 do
    if list[i].background then
      return list[i].id
    end
  end
  return errors.fail("not_found", "nothing was started in the background there")
end

--- Passes on what comes. Nothing that goes wrong here is the program's business.
local function follow(p, write)
  for stream, data in p:events() do
    write[stream](data)
  end
  return 0
end

local function show(p, write, o)
  local log, message, code, detail = p:log()
  if not log then
    return nil, message, code, detail
  elseif o.json then
    return print_json { id = p.id, running = p:is_running(), exit_code = p:info().exit_code,
      stdout = log.stdout, stderr = log.stderr, truncated = log.truncated }
  end
  write.stdout(log.stdout)
  write.stderr(log.stderr)
  return 0
end

--- What is missing.
local function say_gaps(p)
  for _, gap in ipairs(p:info().gaps or {}) do
    terminal.say(("%s: %d bytes from %d on are not in the log any more"):format(gap.stream,
      gap.dropped, gap.at))
  end
end

function M.logs(line)
  local o = line.options
  if o.follow and o.json then
    return mistake("logs", "--follow and --json: one of them will do")
  end
  return with(line, function(box)
    local id, message, code, detail = find_program(box, line.words[2])
    local p
    if id then
      p, message, code, detail = box:attach(id)
    end
    if not p then
      return nil, message, code, detail
    end
    local write = { stdout = program.writer(io.stdout, "stdout"),
      stderr = program.writer(io.stderr, "stderr") }
    local status
    status, message, code, detail = (o.follow and follow or show)(p, write, o)
    if status and not o.quiet and not o.json then
      say_gaps(p)
    end
    return status, message, code, detail
  end)
end

-- ---------------------------------------------------------------- cp, forward

--- `NAME:PATH`, as with scp: a path with a "/" in front of the first ":" is one of this machine.
local function parse_place(word)
  local name, path = word:match "^([^/:]+):(.*)$"
  return name, path or word
end

function M.cp(line)
  local o = line.options
  local from, source = parse_place(line.words[1])
  local to, target = parse_place(line.words[2])
  if (from == nil) == (to == nil) then
    return mistake("cp", "one of the two has to be in a sandbox: NAME:PATH")
  end
  return program.with({ ["in"] = from or to, provider = o.provider }, function(box)
    local inside, host = target, source
    if from then
      inside, host = source, target
    end
    local last = source:match "([^/]+)/*$" or "."
    if from and (host == "" or host:find "/$") then
      host = host .. last
    elseif to and (inside == "" or inside:find "/$") then
      inside = inside .. last
    end
    local done, message, code, detail = program.copy(function(progress)
      if from then
        return box.files:download(inside, host, { progress = progress })
      end
      return box.files:upload(host, inside, { progress = progress })
    end, "cp " .. last, o.quiet or o.json)
    if not done then
      return nil, message, code, detail
    elseif o.json then
      return print_json { entries = done.entries, bytes = done.bytes,
        skipped = done.skipped[1] and done.skipped }
    end
    return #done.skipped > 0 and program.FAILED or 0
  end)
end

function M.forward(line)
  local o, name, ports = line.options, line.words[1], line.words[2]
  local inside, listen = ports:match "^(%d+)$", nil
  if not inside then
    inside, listen = ports:match "^(%d+):([%d.:]+)$"
  end
  local number = tonumber(inside)
  if not number or number < 1 or number > 65535 then
    return mistake("forward", "%s is no PORT[:LISTEN]", options.quote(ports))
  end
  return program.with({ ["in"] = name, provider = o.provider }, function(box)
    local made, message, code, detail = box:forward(options.integer(number),
      { listen = tonumber(listen) and options.integer(tonumber(listen)) or listen })
    if not made then
      return nil, message, code, detail
    end
    io.stdout:write(("%s:%d\n"):format(made.host, made.port))
    io.stdout:flush()
    repeat
      moonsand.sleep(LOOK)
    until box:info().state ~= "ready"
    return errors.fail("gone", ("%s has ended"):format(options.quote(name)))
  end)
end

return M
