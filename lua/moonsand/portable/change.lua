--- Reading and changing files with plain commands.

local core = require "moonsand.core"
local edit = require "moonsand.files.edit"
local errors = require "moonsand.errors"
local look = require "moonsand.portable.look"
local modes = require "moonsand.files.mode"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local shell = require "moonsand.portable.shell"
local skips = require "moonsand.files.skipped"
local texts = require "moonsand.text"

local M = {}

local NEW_FILE = 420 -- 0644

local function token()
  return (core.random(16):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end))
end
M.token = token

-- ---------------------------------------------------------------- reading

--- A FIFO would keep us waiting, so only what is a file is read.
local READ = shell.ONLY_FILES .. [[
only_files "$1"
if [ "$2" = 0 ]; then exec head -c "$3" <"$1"; fi
exec <"$1" || exit
tail -c "+$(($2 + 1))" | head -c "$3"
]]

--- As `files:read`, of an absolute path. `length` may be nil.
function M.read(driver, path, offset, length, max, limits)
  local most = math.min(length or max + 1, max + 1)
  local opts = shell.doing("read", path)
  opts.max = most
  local text, message, code, detail = shell.run(driver, READ,
    { path, ("%d"):format(offset), ("%d"):format(most) }, opts, limits)
  if not text then
    return nil, message, code, detail
  elseif #text > max then
    local entry = look.stat(driver, path, true, limits)
    return errors.fail("too_large", ("read %s: more than max (%d) bytes"):format(
      options.quote(path), max), { path = path, size = entry and entry.size })
  end
  return text
end

-- ---------------------------------------------------------------- writing

--- `$p`, where a link that `$1` is leads to; what is there and is no file is refused; with `$2`
--- directories on the way are made.
local TARGET = shell.ONLY_FILES .. [[
p=$1
n=0
while [ -h "$p" ]; do
  n=$((n + 1))
  [ "$n" -le 40 ] || exit 98
  l=$(readlink -n -- "$p" && printf x) || exit
  l=${l%x}
  case $l in /*) p=$l ;; *) p=${p%/*}/$l ;; esac
done
only_files "$p"
case $p in */) exit 92 ;; esac
d=${p%/*}
[ -z "$2" ] || mkdir -p -- "${d:-/}" || exit
]]

--- A new file beside the old one, and then in its place: `$3` its name, `$4` its size, `$5` the
--- mode of a new file, `$6` its mode in any case.
local REPLACE = TARGET .. [[
t=$d/$3
trap 'rm -f -- "$t"' EXIT
trap 'exit 97' HUP INT TERM
(umask 077; set -C; cat >"$t") || exit
n=$(wc -c <"$t") && [ "$n" -eq "$4" ] || exit 97
m=$5
if [ -e "$p" ]; then
  m=$(stat -L -c %a -- "$p") || exit
  chown "$(stat -L -c %u:%g -- "$p")" "$t" 2>/dev/null
fi
chmod "${6:-$m}" "$t" && mv -f -- "$t" "$p"
]]

M.REPLACE = REPLACE

local IN_PLACE = TARGET .. [[
[ -e "$p" ] || n=1
if [ "$3" = append ]; then cat >>"$p" || exit; else cat >"$p" || exit; fi
m=${6:-${n:+$5}}
[ -z "$m" ] || chmod "$m" "$p"
]]

--- The text of a mode option in octal digits: "" for none. What a relative one changes is looked
--- up.
local function octal(driver, text, path, default, limits)
  if text == nil then
    return ""
  end
  local entry, mode, message, code, detail
  if modes.is_relative(text) then
    entry, message, code, detail = look.stat(driver, path, true, limits)
    if not entry and code ~= "not_found" then
      return nil, message, code, detail
    end
  end
  mode, message, code, detail =
    modes.parse(text, entry and entry.mode or default, entry and entry.type == "directory")
  if not mode then
    return nil, message, code, detail
  end
  return modes.format(mode)
end

--- As `files:write`, to an absolute path; `o` are its checked options.
function M.write(driver, path, data, o, limits)
  if o.append and o.atomic then
    return errors.fail("invalid", "append writes into the file that is there: it is not atomic")
  end
  local forced, message, code, detail = octal(driver, o.mode, path, NEW_FILE, limits)
  if not forced then
    return nil, message, code, detail
  end
  local opts = shell.doing("write", path)
  opts.input = data
  local place = o.append or o.atomic == false
  local third = place and (o.append and "append" or "write") or ".moonsand-" .. token()
  local ok
  ok, message, code, detail = shell.run(driver, place and IN_PLACE or REPLACE, { path,
    o.parents ~= false and "1" or "", third, ("%d"):format(#data), modes.format(NEW_FILE), forced },
    opts, limits)
  if not ok then
    return nil, message, code, detail
  end
  return true
end

--- As `files:replace`, of an absolute path.
function M.edit(...)
  return edit(M.read, M.write, ...)
end

-- ---------------------------------------------------------------- names and rights

local function done(text, ...)
  if not text then
    return nil, ...
  end
  return true
end

local MKDIR = [[
if [ -e "$1" ] || [ -h "$1" ]; then
  [ -n "$3" ] && [ -d "$1" ] && exit 0
  exit 95
fi
if [ -n "$3" ]; then mkdir -p -- "$1" || exit; else mkdir -- "$1" || exit; fi
chmod "$2" "$1"
]]

--- As `files:mkdir`, of an absolute path.
function M.mkdir(driver, path, mode, parents, limits)
  return done(shell.run(driver, MKDIR, { path, modes.format(mode), parents and "1" or "" },
    shell.doing("mkdir", path), limits))
end

--- The names are looked at before anything is done, since `rm -f` has no word for what is missing.
local REMOVE = [[
p=$1
case $p in */) p=${p%"${p##*[!/]}"} ;; esac
[ -n "$p" ] || p=/
[ -e "$p" ] || [ -h "$p" ] || { stat -c %f -- "$p" >/dev/null; exit 91; }
if [ -d "$p" ] && [ ! -h "$p" ]; then
  if [ -n "$2" ]; then exec rm -rf -- "$p"; fi
  exec rmdir -- "$p"
fi
exec rm -f -- "$p"
]]

--- As `files:remove`, of an absolute path.
function M.remove(driver, path, recursive, limits)
  return done(shell.run(driver, REMOVE, { path, recursive and "1" or "" },
    shell.doing("remove", path), limits))
end

--- As `rename` would: never into a directory.
local MOVE = [[
case ${2%/}/ in "${1%/}"/?*) exit 93 ;; esac
[ -e "$1" ] || [ -h "$1" ] || { stat -c %f -- "$1" >/dev/null; exit 91; }
if [ -d "$1" ] && [ ! -h "$1" ]; then
  if [ -d "$2" ] && [ ! -h "$2" ]; then
    [ "$1" -ef "$2" ] && exit 0
    rmdir -- "$2" || exit
  elif [ -e "$2" ] || [ -h "$2" ]; then exit 94; fi
elif [ -d "$2" ] && [ ! -h "$2" ]; then exit 92
elif [ "$1" -ef "$2" ] && [ ! -h "$1" ] && [ ! -h "$2" ]; then exit 0
elif [ -h "$2" ]; then rm -f -- "$2" || exit; fi
exec mv -f -- "$1" "$2"
]]

--- As `files:move`, of absolute paths.
function M.move(driver, from, to, limits)
  local what = ("move %s to %s"):format(options.quote(from), options.quote(to))
  return done(shell.run(driver, MOVE, { from, to }, { what = what, path = from }, limits))
end

--- Says how many entries there are, and which are passed over: what is no file, directory or link.
--- What `cp` cannot read it says itself.
local COPY = shell.ONLY_FILES .. [[
if [ -d "$1" ]; then
  if [ -e "$2" ] && [ ! -d "$2" ]; then exit 94; fi
  a=$(cd -P -- "$1" && pwd -P && printf x) || exit
  b=$2
  if [ -d "$2" ]; then b=$2/; else b=${2%/*}/; fi
  b=$(cd -P -- "$b" && pwd -P && printf x) || exit
  a=${a%
x} b=${b%
x}
  [ -d "$2" ] || b=${b%/}/${2##*/}
  case $b/ in "${a%/}"/*) exit 93 ;; esac
  mkdir -p -- "$2" || exit
  cp -RPp -- "$1/." "$2/"
  find -H "$1" ! -type f ! -type d ! -type l -exec sh -c '
    from=$1 to=$2; shift 2
    for f; do rm -f -- "$to/${f#"$from"/}"; printf "%s\0" "$f"; done' sh "$1" "$2" {} +
  find -H "$1" -mindepth 1 \( -type f -o -type d -o -type l \) -exec sh -c '
    printf "\0%s\0" "$#"' sh {} +
  exit 0
fi
only_files "$1"
[ -e "$1" ] || { stat -L -c %f -- "$1" >/dev/null; exit 91; }
[ -d "$2" ] && exit 92
[ "$1" -ef "$2" ] && exit 93
cp -p -- "$1" "$2" && printf '\0001\000'
]]

--- As `files:copy`, of absolute paths.
function M.copy(driver, from, to, limits)
  local target = paths.bare(to)
  target = target == "" and "/" or target
  local text, stderr, code, detail = shell.run(driver, COPY, { from, target },
    shell.doing("copy", from), limits)
  if not text then
    return nil, stderr, code, detail
  end
  local count, skipped = 0, skips.new "/"
  for path in text:gmatch "/[^%z]*" do
    skipped:tell(path, "it is no file, directory or link", "unsupported")
  end
  for number in text:gmatch "%z(%d+)%z" do
    count = count + tonumber(number)
  end
  for line in stderr:gmatch "[^\n]+" do
    local about, why = texts.blame(line)
    local path = about and about:match "^cp: [^/]*(/.*)$"
    if path then
      path = path:match "^(.*)'[^'/]*$" or path
      path = path:gsub("/%./", "/"):gsub("'$", "")
      skipped:tell(path, why, shell.code_of(line) or "provider")
      count = count - 1
    end
  end
  return { entries = options.integer(math.max(0, count)), skipped = skipped.list }
end

--- As `files:chmod`, of an absolute path.
function M.chmod(driver, path, text, limits)
  local mode, message, code, detail = octal(driver, text, path, 0, limits)
  if not mode then
    return nil, message, code, detail
  end
  return done(shell.run(driver, 'exec chmod "$2" -- "$1"', { path, mode },
    shell.doing("chmod", path), limits))
end

local CHOWN = [[
[ -e "$1" ] || { stat -L -c %f -- "$1" >/dev/null; exit 91; }
exec chown -- "$2" "$1"
]]

--- As `files:chown`, of an absolute path.
function M.chown(driver, path, owner, group, limits)
  if owner == nil and group == nil then
    return true
  end
  local spec = tostring(owner or "") .. (group ~= nil and ":" .. tostring(group) or "")
  local ok, message, code, detail = done(shell.run(driver, CHOWN, { path, spec },
    shell.doing("chown", path), limits))
  if not ok and (code == "permission_denied" or code == "provider" or code == "invalid") then
    return errors.fail("unsupported", message, detail)
  end
  return ok, message, code, detail
end

return M
