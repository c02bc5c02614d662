--- Looking, with `find`, `stat` and `readlink`: what is told of files, of directories, of what
--- matches a pattern.

local errors = require "moonsand.errors"
local match = require "moonsand.portable.match"
local modes = require "moonsand.files.mode"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local shell = require "moonsand.portable.shell"
local skips = require "moonsand.files.skipped"
local texts = require "moonsand.text"

local M = {}

--- What `stat` says in one line before the name. Both GNU's and busybox's know these.
local FORMAT = "%f %s %u %g %Y %U %G %y %n"
local FIELDS = "^(%x+) (%d+) (%d+) (%d+) (%-?%d+) (%S+) (%S+) (%S+ %S+ %S+) "
local LONGEST = 1024

--- The longest number in it: of those that are exact in any Lua.
local DIGITS = 15

--- For the names that it is given: their number, they themselves, what stat says of them, and the
--- targets of links, each part ended by a NUL.
local TELL = [[
tell() {
  printf '%s\0' "$#" "$@"
  stat $follow -c ']] .. FORMAT .. [[' -- "$@" 2>/dev/null
  printf '\0'
  for f; do
    if [ -z "$follow" ] && [ -h "$f" ]; then readlink -n -- "$f"; fi
    printf '\0'
  done
}
]]

local types = { [4] = "directory", [8] = "file", [10] = "symlink" }

local function number(text)
  return options.integer(tonumber(text))
end

--- One entry of what stat says in front of its name.
local function entry_of(path, raw, size, uid, gid, seconds, owner, group, stamp, target)
  local mode = tonumber(raw, 16)
  local bits = options.integer(mode % 4096)
  local fraction = tonumber(stamp:match " %S*(%.%d+)" or "0")
  local kind = types[(mode - mode % 4096) / 4096] or "other"
  return {
    name = paths.name(path),
    path = path,
    type = kind,
    size = number(size),
    mode = bits,
    permissions = modes.format(bits),
    owner = owner ~= "UNKNOWN" and owner or uid,
    group = group ~= "UNKNOWN" and group or gid,
    modified_at = tonumber(seconds) + fraction,
    target = kind == "symlink" and target or nil,
  }
end

--- The parts of what was told, up to the next NUL each.
local function parts(text)
  local at = 1
  return function()
    local nul = text:find("\0", at, true)
    if not nul then
      return nil
    end
    local part = text:sub(at, nul - 1)
    at = nul + 1
    return part
  end
end

--- Calls `fn(entry)` for what a script told; false when it makes no sense.
local function each_entry(text, fn)
  local next_part = parts(text)
  for count in next_part do
    local names = {}
    for i = 1, tonumber(count) or 0 do
      names[i] = next_part()
      if not names[i] then
        return false
      end
    end
    local stats, at = next_part(), 1
    if not stats then
      return false
    end
    for _, name in ipairs(names) do
      local target = next_part()
      local _, to, a, b, c, d, e, f, g, h = stats:sub(at, at + LONGEST):find(FIELDS)
      to = to and at + to - 1
      -- the line of one that has vanished is not there
      if not target or to and math.max(#a, #b, #e) > DIGITS then
        return false
      elseif to and stats:sub(to + 1, to + #name + 1) == name .. "\n" then
        at = to + #name + 2
        fn(entry_of(name, a, b, c, d, e, f, g, h, target))
      end
    end
  end
  return true
end

local function nonsense(path)
  return errors.fail("protocol", ("%s: what its commands say makes no sense"):format(
    options.quote(path)), { path = path })
end

local STAT = TELL .. [[
follow=$2
[ -e "$1" ] || { [ -z "$follow" ] && [ -h "$1" ]; } || {
  stat $follow -c %f -- "$1" >/dev/null || exit
}
tell "$1"
]]

--- As `files:stat`, of an absolute path.
function M.stat(driver, path, follow, limits, verb)
  local text, message, code, detail = shell.run(driver, STAT, { path, follow and "-L" or "" },
    shell.doing(verb or "stat", path), limits)
  if not text then
    return nil, message, code, detail
  end
  local entry
  local sane = each_entry(text, function(found)
    entry = found
  end)
  if not sane then
    return nonsense(path)
  elseif not entry then
    return errors.fail("not_found", ("stat %s: No such file or directory"):format(
      options.quote(path)), { path = path })
  end
  return entry
end

--- Everything below a directory that the link `$1` may lead to. `find` goes on past what it may
--- not read, and says so.
local LIST = [[
[ -d "$1" ] || {
  [ -e "$1" ] && exit 94
  stat -L -c %f -- "$1" >/dev/null; exit
}
set -- "$1" -mindepth 1 -maxdepth "$2" $3
find -H "$@" -exec sh -c ']] .. TELL:gsub("'", "'\\''") .. [[
follow=; tell "$@"' sh {} + || exit 0
]]

--- What a search of everything leaves out: the kernel's own files.
local KERNEL = "( -path /proc -o -path /sys -o -path /dev ) -prune -o"

--- What find could not read, by its messages.
local function skipped_of(stderr)
  local skipped = skips.new "/"
  for line in stderr:gmatch "[^\n]+" do
    local about, why = texts.blame(line)
    local path = about and about:match "^find: [^/]*(/.*)$"
    if path then
      path = path:gsub("['\"]$", ""):match "^.*[%w%p]" -- in quotes of whatever kind
      skipped:tell(path, why, shell.code_of(line) or "provider")
    end
  end
  return skipped.list[1] and skipped.list
end

local function by_path(a, b)
  return a.path < b.path
end

--- Those below a directory that `wanted` says yes to.
local function gather(driver, path, depth, limit, wanted, verb, limits)
  local base = paths.bare(path)
  base = base == "" and "/" or base
  local prune = wanted and base == "/" and KERNEL or ""
  local text, stderr, code, detail = shell.run(driver, LIST,
    { base, ("%d"):format(math.min(depth, 2 ^ 31 - 1)), prune }, shell.doing(verb, path), limits)
  if not text then
    return nil, stderr, code, detail
  end
  local skipped = skipped_of(stderr)
  if text == "" and skipped and skipped[1].path == base then
    return errors.fail(skipped[1].code, ("%s %s: %s"):format(verb, options.quote(path),
      skipped[1].message), { path = path })
  end
  local list, more = {}, false
  local sane = each_entry(text, function(entry)
    if not wanted or wanted(entry) then
      more = more or #list >= limit
      list[#list + 1] = not more and entry or nil
    end
  end)
  table.sort(list, by_path)
  if not sane then
    return nonsense(path)
  elseif more then
    return errors.fail("too_large", ("%s %s: more than %d entries"):format(verb,
      options.quote(path), limit), { path = path, entries = list })
  end
  list.skipped = skipped
  return list
end

--- As `files:list`, of an absolute path.
function M.list(driver, path, depth, limit, limits)
  return gather(driver, path, depth, limit, nil, "list", limits)
end

--- What matches one of some patterns, which are absolute and have no braces. Each is looked for
--- below the directory that it names before its first wildcard.
function M.search(driver, patterns, limit, limits)
  local found, list = {}, {}
  for _, pattern in ipairs(patterns) do
    local base, depth, matches = match.compile(pattern)
    local entries, message, code, detail
    if not base then
      return errors.fail("invalid",
        ("search: %s has too many parts"):format(options.quote(pattern)))
    end
    if depth == 0 then
      local entry
      entry, message, code, detail = M.stat(driver, base, false, limits)
      entries = entry and { entry } or code == "not_found" and {} or nil
    else
      entries, message, code, detail =
        gather(driver, base, depth, limit, matches, "search", limits)
    end
    if not entries and code ~= "not_found" and code ~= "not_a_directory" then
      return nil, message, code, detail
    end
    for _, entry in ipairs(entries or {}) do
      if not found[entry.path] then
        found[entry.path] = true
        list[#list + 1] = entry
      end
    end
  end
  if #list > limit then
    return errors.fail("too_large", ("more than %d entries"):format(limit), { entries = list })
  end
  table.sort(list, by_path)
  return list
end

return M
