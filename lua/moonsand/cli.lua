--- The command-line tool: from words to an exit status. What there is to say and to ask for is in
--- cli/source.lua.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local help = require "moonsand.cli.help"
local json = require "moonsand.cli.json"
local moonsand = require "moonsand"
local program = require "moonsand.cli.program"
local sandboxes = require "moonsand.cli.sandboxes"
local source = require "moonsand.cli.source"
local terminal = require "moonsand.cli.terminal"
local words = require "moonsand.cli.words"

local M = {}

local FAILED, SIGPIPE, SIGINT = 125, 128 + 13, 128 + 2

-- ---------------------------------------------------------------- commands

local function paint(style, text)
  return terminal.paint(1, style, text)
end

local function width()
  return terminal.is_terminal(1) and terminal.width() or 80
end

local function show_help(command)
  local text = command and help.command(command, width(), paint) or help.tool(width(), paint)
  io.stdout:write(text)
  return 0
end

local function print_json(value)
  local codec, message, code, detail = json.codec()
  if not codec then
    return nil, message, code, detail
  end
  io.stdout:write(codec.encode(value), "\n")
  return true
end

--- name -> function(line): the exit status, or a failure.
local commands = {
  run = program.run, exec = program.exec, shell = program.shell,
  create = sandboxes.create, ls = sandboxes.ls, rm = sandboxes.rm, ps = sandboxes.ps,
  logs = sandboxes.logs, cp = sandboxes.cp, forward = sandboxes.forward,
}

function commands.version()
  io.stdout:write(source.name, " ", moonsand._VERSION, "\n")
  return 0
end

function commands.help(line)
  local name = line.words[1]
  if not name then
    return show_help()
  end
  local other, message, code, detail = words.read { name, "--help" }
  if not other then
    return nil, message, code, detail
  end
  return show_help(other.command)
end

function commands.doctor(line)
  local report = moonsand.doctor()
  local status = report.ok and 0 or 1
  if line.options.json then
    local findings = {}
    for i, finding in ipairs(report) do
      findings[i] = { name = finding.name, ok = finding.ok, cause = finding.cause,
        fix = finding.cause and finding.fix }
    end
    local ok, message, code, detail = print_json { ok = report.ok, findings = findings }
    return ok and status, message, code, detail
  end
  for _, finding in ipairs(report) do
    local mark = finding.ok and paint("green", "ok ") or paint("red", "NO ")
    io.stdout:write(mark, " ", finding.name, "\n")
    if finding.cause then
      io.stdout:write("      cause: ", finding.cause, "\n      fix:   ", finding.fix, "\n")
    end
  end
  return status
end

local function print_languages(list)
  local name_width, version_width = 0, 0
  for _, row in ipairs(list) do
    name_width = math.max(name_width, #row.name)
    version_width = math.max(version_width, #(row.version or "-"))
  end
  local format = ("%%-%ds  %%-%ds  %%s\n"):format(name_width, version_width)
  for _, row in ipairs(list) do
    io.stdout:write(terminal.harmless(format:format(row.name, row.version or "-", row.interpreter)))
  end
end

function commands.languages(line)
  local list, message, code, detail = program.with(line.options, function(box)
    return box:languages()
  end)
  if not list then
    return nil, message, code, detail
  elseif not line.options.json then
    print_languages(list)
    return 0
  end
  local ok
  ok, message, code, detail = print_json(list)
  return ok and 0, message, code, detail
end

-- ---------------------------------------------------------------- the end

--- Says what went wrong: the exit status.
local function fail(line, message, code, detail)
  if line and line.options.json and json.codec() then
    print_json(json.of_failure(message, code, detail))
  else
    terminal.complain(message, detail)
    if detail and detail.usage then -- the words were wrong, not what they ask for
      io.stderr:write("Try 'moonsand ", detail.usage, "--help'.\n")
    end
  end
  return program.status_of_failure(code, detail)
end

--- Ends as a program that Ctrl-C ends, so that a shell's loop around us ends, too. Lua's own handler
--- is gone once it was called, and `os.execute` would have the signal ignored meanwhile.
local function die_interrupted()
  io.stdout:flush()
  local pipe = io.popen("kill -INT " .. core.getpid())
  if pipe then
    pipe:close()
  end
  return SIGINT
end

--- What came as an error: Ctrl-C, a reader that has gone, or a bug of ours.
local function rescue(raised)
  local err = raised.value
  if type(err) == "string" and err:find "interrupted!$" then
    return die_interrupted()
  elseif errors.is_object(err) and err.what == "stdout" or err.what == "stderr" then
    if err.errno == core.errno.EPIPE then
      return SIGPIPE
    end
    terminal.complain(err.what .. ": " .. err.message)
    return FAILED
  end
  terminal.complain("this is a bug of moonsand's: " .. raised.traceback)
  return FAILED
end

--- What was closed when we began must not become a file of ours: programs would read or write that.
local function open_standard_files()
  local kept = {}
  for _, file in ipairs { io.stdin, io.stdout, io.stderr } do
    if select(3, file:seek()) == core.errno.EBADF then
      kept[#kept + 1] = io.open("/dev/null", "r+")
    end
  end
  return kept
end

local function perform(list)
  local line, message, code, detail = words.read(list)
  if not line then
    return fail(nil, message, code, detail)
  elseif line.options.help then
    return show_help(line.command)
  end
  local status
  status, message, code, detail = commands[line.command.name](line)
  if not status then
    return fail(line, message, code, detail)
  end
  return status
end

--- Does what the words say.
---@param list string[] the words behind the tool's name
---@return integer status what the process is to exit with
function M.main(list)
  M.kept = open_standard_files()
  local ok, status = xpcall(perform, function(err)
    return { value = err, traceback = debug.traceback(tostring(err), 2) }
  end, list)
  return ok and status or rescue(status)
end

return M
