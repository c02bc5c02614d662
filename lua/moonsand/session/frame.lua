--- What a session's shell is told and how its answers are read.
---
--- The shell is an interactive one (`-i`), since that is what goes on after an error, an interrupt
--- or an unset variable. Its own stdout and stderr lead nowhere; 8 and 7 are the pipes to us, which
--- no command gets: each has them as its 1 and 2, and /dev/null as its 0 (and in bash 9, its own
--- text). What a command does to its own with `exec` ends with it.
---
--- (`command :` is there because `$_` would have the token otherwise.)
---
--- Before a command the shell writes a token to both pipes, and after it the token again with the
--- status, its background jobs, and the token once more. A token is 128 random bits, new for each
--- command and in no variable, so no output can hold it by chance or by malice. A pipe takes each
--- token with what stands beside it whole; between them may lie what the background writes. The
--- line that writes the second token is sent along; a shell that drops what it has read ahead (dash,
--- after an error) loses it, so it is sent again until it is answered.

local core = require "moonsand.core"

local M = {}

--- What may lie between the status and the end of the answer, how many jobs there may be, and how
--- many digits a pid or a status has: both are an int. More is no answer: the shell's \command is a
--- function that lies.
local MAX_TAIL, MAX_JOBS, MAX_DIGITS = 8 * 1024 * 1024, 8192, 10

--- The first line: silence for prompts, our pipes, no history. Then who it is.
local HELLO = [[
PS1= PS2=; exec 8>&1 7>&2 >/dev/null 2>&1
[ -z "${BASH_VERSION-}" ] || { set +H; set +o history; unset HISTFILE; }
read -r up rest </proc/uptime
\command \printf '%%s(%%s %%s %%s)' %s "$$" "$up" "${BASH_VERSION+bash}" >&8
unset up rest
]]

--- In one line with what it is the beginning of.
local BEGIN =
  [[{ \command \printf '%%s(' %s >&8; \command \printf '%%s(' %s >&7; \command :; }; ]]

--- `eval` goes on after an error where the shell does.
local EVAL = BEGIN .. [[
eval %s <%s 1>&8 2>&7 7>&- 8>&-
]]

--- bash says things of its own when it is interactive ("[1] 4711"); not in what it reads from a
--- file.
local SOURCE = BEGIN .. [[
. /dev/fd/9 9<<'%s' <%s 1>&8 2>&7 7>&- 8>&-
%s
%s
]]

local END = [[
{ \command \printf '%%s)%%s\n' %s "$?"; \jobs -p; \command \printf '%%s.' %s; } >&8
\command \printf '%%s)' %s >&7; \command :
]]

function M.token()
  return (core.random(16):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end))
end

local function quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

function M.hello(token)
  return HELLO:format(token)
end

--- What it said: its pid, the seconds that its machine is up, and which shell it is.
---@return integer? pid, number? uptime, boolean? bash
function M.who(said, token)
  local pid, uptime, name = said:match(token .. "%((%d+) (%d+%.?%d*) (%a*)%)")
  if pid and #pid <= MAX_DIGITS and #uptime <= MAX_DIGITS + #".00" then
    return tonumber(pid), tonumber(uptime), name == "bash"
  end
end

--- The lines that run a command.
---@param token string
---@param command string
---@param input? string a path
---@param bash boolean
function M.command(token, command, input, bash)
  local from = quote(input or "/dev/null")
  if bash then
    return SOURCE:format(token, token, token, from, command, token)
  end
  return EVAL:format(token, token, quote(command), from)
end

function M.ending(token)
  return END:format(token, token, token)
end

--- Reads one pipe: `feed(data)` hands on what lies between the first two tokens.
---@class moonsand.FrameReader
---@field private first string
---@field private last string
---@field private over string
---@field private state "before"|"inside"|"after"
---@field private rest string what may be the beginning of a token, or of a line
---@field private tail integer bytes after the second token
---@field private exit_code? integer
---@field private jobs string[]
---@field private answered boolean the answer is whole, or can never be
local Reader = {}
Reader.__index = Reader

--- What follows the second token: the status in a line, then lines of which those that are numbers
--- are jobs, until the third.
local function append(self, data)
  if self.answered then
    return
  end
  local text, from = self.rest .. data, 1
  self.tail = self.tail + #data
  while true do
    local to = text:find("\n", from, true)
    local line = text:sub(from, to and to - 1)
    if not self.exit_code then
      if to and #line <= MAX_DIGITS and line:find "^%d+$" then
        self.exit_code = tonumber(line) % 256 -- dash's `return` may make it more
      end
      self.answered = not self.exit_code and (to ~= nil or #line > MAX_DIGITS)
    elseif line:find(self.over, 1, true) then
      self.answered = true
    elseif to and #line <= MAX_DIGITS and line:find "^%d+$" then
      self.jobs[#self.jobs + 1] = line
    end
    if self.answered or not to then
      break
    end
    from = to + 1
  end
  self.rest = self.answered and "" or text:sub(math.max(from, #text - #self.over - MAX_DIGITS))
  if self.tail > MAX_TAIL or #self.jobs > MAX_JOBS then
    self.answered, self.exit_code = true, nil
  end
end

--- How many bytes at the end of a text may be the beginning of a token.
local function beginning(token, text)
  for n = math.min(#text, #token - 1), 1, -1 do
    if text:sub(-n) == token:sub(1, n) then
      return n
    end
  end
  return 0
end

--- What comes is scanned once, and handed on at once but for what may be the beginning of a token.
function Reader:feed(data, emit)
  if self.state == "after" then
    append(self, data)
    return
  end
  local text = self.rest .. data
  if self.state == "before" then
    local _, to = text:find(self.first, 1, true)
    local ended = text:find(self.last, 1, true)
    if ended and (not to or ended < to) then
      self.lost = true -- the command was never begun
      to = ended - 1
    end
    if not to then
      self.rest = text:sub(-#self.first)
      return
    end
    self.state, text = "inside", text:sub(to + 1)
  end
  local from, to = text:find(self.last, 1, true)
  if from then
    self.state, self.rest = "after", ""
    append(self, text:sub(to + 1))
    text = text:sub(1, from - 1)
  else
    local kept = beginning(self.last, text)
    self.rest = text:sub(#text - kept + 1)
    text = text:sub(1, #text - kept)
  end
  if text ~= "" then
    emit(text)
  end
end

--- The pipe has ended: what was kept back is output.
function Reader:finish(emit)
  if self.state == "inside" and self.rest ~= "" then
    emit(self.rest)
  end
  self.rest = ""
end

function Reader:done()
  return self.state == "after"
end

--- The status and the jobs, once all of it is there; nil, true when it will never be.
---@return integer? status, string[]|boolean jobs_or_never
function Reader:status()
  if self.answered and self.exit_code then
    return self.exit_code, self.jobs
  end
  return nil, self.answered
end

---@param token string
---@return moonsand.FrameReader
function M.reader(token)
  return setmetatable({
    first = token .. "(",
    last = token .. ")",
    over = token .. ".",
    state = "before",
    rest = "",
    tail = 0,
    exit_code = nil,
    jobs = {},
    answered = false,
    lost = false,
  }, Reader)
end

--- Interrupts a shell and kills what runs below it, but what was put into the background before: `$1`
--- its pid, `$2` the signal for the others, `$3` when the command began, in ticks of `/proc`, then
--- those that stay. What has lost its parent is one of the command's if it began after it. A shell
--- leaves its loop when it was interrupted and so was what it waits for. What answers an interrupt
--- with more programs, or starts them while others are killed, is looked for again until nothing is
--- left but zombies. (One with threads lives: only its first thread has ended.)
M.STOP = [[
shell=$1 signal=$2 from=$3; shift 3
keep=" $* " sid=
set -f
below() {
  all= hit=
  for p in $(set +f; echo /proc/[0-9]*); do
    l=
    { while IFS= read -r x; do l=$x; done <"$p/stat"; } 2>/dev/null
    [ -n "$l" ] || continue
    p=${p#/proc/}
    set -- ${l##*") "}
    case $1${18} in Z[01] | X*) continue ;; esac
    [ "$p" = "$shell" ] && sid=$4
    q=$2
    if [ "$q" = 1 ] && [ "${20}" -lt "$from" ]; then q=-; fi
    all="$all $p:$q:$4"
  done
  [ -n "$sid" ] || return
  hit=" $shell " more=1
  while [ -n "$more" ]; do
    more=
    for e in $all; do
      p=${e%%:*} r=${e#*:}; q=${r%:*}
      case $hit$keep in *" $p "*) continue ;; esac
      case $hit in *" $q "*) hit="$hit$p " more=1 ;; *)
        [ "$q" = 1 ] && [ "${r#*:}" = "$sid" ] && hit="$hit$p " more=1 ;;
      esac
    done
  done
  hit=${hit#" $shell "}
}
{
  below
  if [ "$signal" = TERM ]; then
    [ -z "$hit" ] || kill -TERM $hit
    exit 0
  fi
  [ -z "$sid" ] || kill -INT "$shell" $hit
  for pass in 1 2 3 4 5 6 7 8 9 10; do
    sleep 0.01
    below
    [ -n "$hit" ] || exit 0
    kill -KILL $hit
  done
} 2>/dev/null
exit 0
]]

return M
