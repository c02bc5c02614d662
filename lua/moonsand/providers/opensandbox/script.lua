--- What is sent to execd's shell in place of a command. execd tells output as text, line by line,
--- and reads no input: so the program's streams are files or a WebSocket's, byte for byte, and what
--- the shell says itself, first, is for us: the pid, or why there is no program.

local commands = require "moonsand.providers.command"
local errors = require "moonsand.errors"
local events = require "moonsand.providers.opensandbox.events"

local M = {}

local quote = commands.quote

--- One word of an argv may have so many bytes (Linux: MAX_ARG_STRLEN), and execd's shell is given
--- the whole script as one.
local MAX_WORD = 128 * 1024
M.MAX = 120 * 1024

--- Enters `$1` and looks for the program `$2` as `execvp` would, which says only afterwards that
--- there is none, where nobody could tell it from the program's own words.
local CHECKS = [[
_ms_refuse() { echo "refused $1 $2"; exit 127; }
_ms_look() {
  cd -- "$1" 2>/dev/null || {
    [ -d "$1" ] && _ms_refuse cwd permission_denied
    [ -e "$1" ] && _ms_refuse cwd not_a_directory
    _ms_refuse cwd not_found
  }
  _ms_why=not_found
  _ms_ifs=$IFS
  case $2 in */*) set -- "$2" ;; *)
    _ms_name=$2; set --; IFS=:
    for _ms_i in $PATH; do set -- "$@" "${_ms_i:-.}/$_ms_name"; done ;;
  esac
  IFS=$_ms_ifs
  for _ms_i; do
    if [ -f "$_ms_i" ] && [ -x "$_ms_i" ]; then return; fi
    if [ -e "$_ms_i" ]; then _ms_why=permission_denied; fi
  done
  _ms_refuse program $_ms_why
}
_ms_look %s %s
]]

--- Feeds a program's input, which comes in pieces of base64 behind their length, up to one of none:
--- so that it can end. bash reads a line byte by byte, but a number of bytes at once.
local FEED = [[
_ms_feed() {
  trap '' HUP INT QUIT TERM
  while IFS= read -r _ms_l && [ "$_ms_l" -gt 0 ]; do
    LC_ALL=C IFS= read -r -N "$_ms_l" _ms_l
    printf %s "$_ms_l" | base64 -d || exit
  done
}
]]

--- A text of any bytes as one of ASCII that the shell takes apart again.
local function armoured(text)
  return 'eval "$(printf %b \'' .. text:gsub("[^%w\n /.,:=+-]", function(c)
    return ("\\0%03o"):format(c:byte())
  end) .. '\')"'
end

--- The script as it can travel.
function M.portable(text)
  return events.is_text(text) and text or armoured(text)
end

--- Whether the variables can travel as such; else the script sets them.
local function is_plain(env)
  for _, pair in ipairs(env or {}) do
    if not events.is_text(pair) then
      return false
    end
  end
  return true
end

--- `{ "A=1" }` as `{ A = "1" }`, for a request; nil when the script has to do it.
---@return table<string, string>?
function M.variables(spec)
  if spec.clear_env or not is_plain(spec.env) or not (spec.env and spec.env[1]) then
    return nil
  end
  local variables = {}
  for _, pair in ipairs(spec.env) do
    local name, value = pair:match "^([^=]*)=(.*)$"
    variables[name] = value
  end
  return variables
end

--- A word that no argv can have.
---@return true|nil ok, string? message, string? code, table? detail
function M.check(spec)
  for i, word in ipairs(spec.argv) do
    if #word >= MAX_WORD then
      return errors.fail("too_large", ("word %d of the command has %d bytes; %d are possible")
        :format(i, #word, MAX_WORD - 1), { started = false })
    end
  end
  return true
end

local function checks(spec)
  return CHECKS:format(quote(spec.cwd), quote(spec.argv[1]))
end

--- The variables that the looking for a program has to know, when they are set by the script only.
local function path_of(spec, sent)
  for _, pair in ipairs(not sent and spec.env or {}) do
    if pair:find "^PATH=" then
      return "PATH=" .. quote(pair:sub(6)) .. "\n"
    end
  end
  return ""
end

---@class moonsand.opensandbox.Place where a program's streams are
---@field directory string
---@field stdin boolean it reads the file "0" there
---@field log? boolean its stdout is execd's own log

--- For `/command`: the shell becomes the program, so that execd tells how that ended.
---@param spec table
---@param place moonsand.opensandbox.Place
---@param sent boolean the variables are in the request
---@return string
function M.of_command(spec, place, sent)
  local directory = quote(place.directory)
  return table.concat {
    path_of(spec, sent),
    ("(umask 077; mkdir -p -- %s) 2>/dev/null || { echo 'refused directory'; exit 127; }\n"):format(
      directory),
    checks(spec),
    "echo \"pid $$\"\n",
    ("exec <%s 2>>%s/2"):format(place.stdin and directory .. "/0" or "/dev/null", directory),
    place.log and "\n" or (" >>%s\n"):format(spec.stdout and directory .. "/1" or "/dev/null"),
    commands.text(spec, { cwd = true, env = sent }),
  }
end

--- What a session on pipes is made with: its script comes as the first line of its input, since
--- what stands in an argv is what `ps` shows of three processes.
M.BOOT = 'IFS= read -r _ms_l && eval "$(printf %s "$_ms_l" | base64 -d)"'

--- Gives its terminal the size that it is to have.
local function size_of(pty)
  if type(pty) ~= "table" then
    return ""
  end
  return ("stty cols %d rows %d 2>/dev/null\n"):format(pty.cols or 80, pty.rows or 24)
end

--- For a terminal session: a shell stays above the program, whatever signal it gets, and tells how
--- that ended.
---@param spec table
---@return string
function M.of_session(spec)
  local pty = spec.pty
  return table.concat {
    path_of(spec, false),
    pty and "" or FEED,
    "( ", checks(spec), ")|| exit\n",
    "trap : HUP INT QUIT USR1 USR2 ALRM TERM\n",
    -- before the program looks: the message that says it may come later
    size_of(pty),
    -- the feeder is our child, not the program's, which may look after its own
    pty and "" or "exec 4>&2 2>/dev/null 5< <(_ms_feed <&0 2>/dev/null)\n",
    "( echo \"pid $BASHPID $$\"\n",
    pty and "" or "exec <&5 2>&4 4>&- 5<&-\n",
    commands.text(spec, { env = false }),
    "\n)\n_ms_s=$?\n",
    pty and "" or "kill -KILL $! 2>/dev/null\n",
    "exit $_ms_s",
  }
end

local MAX_DIGITS = 10 -- of a pid, which is an int

--- What the shell says before the program runs: `pid`, or what is refused and why.
---@param line string
---@return integer? pid, string? what, string? why, integer? group
function M.read(line)
  local pid, group = line:match "^pid (%d+) ?(%d*)"
  if pid and #pid <= MAX_DIGITS and #group <= MAX_DIGITS then
    return math.floor(tonumber(pid)), nil, nil, math.floor(tonumber(group) or tonumber(pid))
  end
  local what, why = line:match "^refused (%l+) ?([%l_]*)"
  return nil, what, why
end

local REASONS = {
  not_found = "No such file or directory",
  permission_denied = "Permission denied",
  not_a_directory = "Not a directory",
}

--- The failure of a program that the shell would not start.
---@return nil, string message, string code, table detail
function M.refused(spec, what, why)
  local which = what == "program" and spec.argv[1] or what == "cwd" and spec.cwd or nil
  local code = REASONS[why] and why or "unavailable"
  return errors.fail(code, ("cannot start: %s%s: %s"):format(what, which and " '" .. which .. "'"
    or "", REASONS[why] or "none can be made for its streams in /tmp"),
    { started = false, what = what, path = which })
end

return M
