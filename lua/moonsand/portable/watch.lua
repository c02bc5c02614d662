--- Looking into many files, and at one directory again and again.

local change = require "moonsand.portable.change"
local errors = require "moonsand.errors"
local look = require "moonsand.portable.look"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local shell = require "moonsand.portable.shell"
local skips = require "moonsand.files.skipped"

local M = {}

--- A line is told of with so many bytes at most.
local MAX_LINE = 4096

--- What a file may have in it: it is held as a whole.
local MAX_FILE = 64 * 1024 * 1024

--- Each file: a mark, its name, a NUL, what is in it. The mark cannot be in a file.
local GREP = [[
[ -e "$1" ] || { stat -L -c %f -- "$1" >/dev/null; exit 91; }
find -H "$1" -type f -exec sh -c '
  mark=$1; shift
  for f; do printf "%s%s\0" "$mark" "$f"; cat -- "$f"; done' sh "$2" {} + 2>/dev/null
printf %s "$2"
exit 0
]]

--- What the script sends, file by file: `next()` gives a name and all that is in it; nil at the end;
--- or nil, message, code, detail. Each byte is looked at once, however large the files are; those
--- that are too large are passed over.
local function files(script, mark, skipped)
  local pieces, size, tail = {}, 0, "" -- of what has no end yet; the last bytes of it
  local text, at = "", nil -- of what has: the mark that comes next
  local function take(data)
    local joint = tail .. data
    pieces[#pieces + 1], size, tail = data, size + #data, joint:sub(1 - #mark)
    if joint:find(mark, 1, true) then
      text = table.concat(pieces)
      at = text:find(mark, 1, true)
    elseif size > MAX_FILE then
      local name = table.concat(pieces):match("^([^%z]+)%z", #mark + 1)
      skipped:tell(name or "", "File too large", "too_large")
      pieces, size = { tail }, #tail
    end
  end
  return function()
    while true do
      local to = at and text:find(mark, at + #mark, true)
      if to then
        local name, content = text:sub(at + #mark, to - 1):match "^([^%z]+)%z(.*)$"
        at = to
        if name then
          return name, content
        end
      else
        if at then
          pieces, text, at = { text:sub(at) }, "", nil
          size = #pieces[1]
        end
        local data, message, code, detail = script:chunk()
        if not data then
          return nil, message, code, detail
        end
        take(data)
      end
    end
  end
end

--- The lines of one file that match.
local function search_text(path, text, find, list, limit)
  local number = 0
  for line in text:gsub("\n$", ""):gmatch "([^\n]*)\n?" do
    number = number + 1
    local column = find(line)
    if column then
      if #list >= limit then
        return false
      end
      list[#list + 1] =
        { path = path, line = number, column = column, text = line:sub(1, MAX_LINE) }
    end
  end
  return true
end

--- As `files:grep`, below an absolute path. Binary files, which have a NUL, are passed over.
---@param pattern string
---@param plain boolean it is no pattern, but a text
function M.grep(driver, path, pattern, plain, limit, limits)
  local function find(line)
    return (line:find(pattern, 1, plain))
  end
  local mark = change.token()
  local script, message, code, detail =
    shell.start(driver, GREP, { path, mark }, shell.doing("grep", path), limits)
  if not script then
    return nil, message, code, detail
  end
  local list, skipped = {}, skips.new "/"
  local next_file = files(script, mark, skipped)
  while true do
    local name, text
    name, text, code, detail = next_file()
    if not name and text then
      return nil, text, code, detail
    elseif not name then
      break
    elseif not text:find "%z" and text ~= "" and not search_text(name, text, find, list, limit) then
      script:kill()
      return errors.fail("too_large", ("grep %s: more than %d lines"):format(options.quote(path),
        limit), { path = path, matches = list })
    end
  end
  local ok
  ok, message, code, detail = script:finish()
  if not ok then
    return nil, message, code, detail
  end
  table.sort(list, function(a, b)
    if a.path ~= b.path then
      return a.path < b.path
    end
    return a.line < b.line
  end)
  list.skipped = skipped.list[1] and skipped.list
  return list
end

--- What is below a directory now, by path: for finding out what has changed.
---@return table<string, string>? seen, string? message, string? code, table? detail
function M.changes(driver, path, recursive, limits)
  local entries, message, code, detail =
    look.list(driver, path, recursive and 2 ^ 31 or 1, 100000, limits)
  if not entries then
    return nil, message, code, detail
  end
  local seen = {}
  for _, entry in ipairs(entries) do
    seen[entry.path] = entry.type == "directory" and "directory" -- what is in it is told by itself
      or ("%s %.0f %.9f %o"):format(entry.type, entry.size, entry.modified_at, entry.mode)
  end
  return seen
end

-- ---------------------------------------------------------------- again and again

---@class moonsand.Watcher what `files:watch` iterates over
---@field private events table[] found, and not told yet
local Watcher = {}
Watcher.__index = Watcher

--- What is in `now` and was not in `before`, or not so.
local function differences(before, now)
  local events = {}
  for path, what in pairs(now) do
    if not before[path] then
      events[#events + 1] = { event = "created", path = path }
    elseif before[path] ~= what then
      events[#events + 1] = { event = "modified", path = path }
    end
  end
  for path in pairs(before) do
    if not now[path] then
      events[#events + 1] = { event = "removed", path = path }
    end
  end
  table.sort(events, function(a, b)
    return a.path < b.path
  end)
  return events
end

--- What has happened next; nil when no more can.
---@return { event: string, path: string }? event, string? message, string? code, table? detail
function Watcher:next(limits)
  while not self.over do
    local event = table.remove(self.events, 1)
    if event then
      return event
    end
    local deadline = math.min(self.next_at, limits.deadline or math.huge)
    local message, code, detail = loop.wait { deadline = deadline, token = limits.token }
    if code ~= "timeout" or loop.now() < self.next_at then
      return nil, message, code, detail
    end
    self.next_at = loop.now() + self.interval
    local now
    now, message, code, detail = self.look(self.driver, self.path, self.recursive, limits)
    if not now and code == "not_found" then
      self.over = true
      return { event = "removed", path = self.path }
    elseif not now then
      return nil, message, code, detail
    end
    self.events = differences(self.seen, now)
    self.seen = now
  end
end

function Watcher:close()
  self.over = true
end

--- As `files:watch`, of an absolute path: by looking every `interval` seconds.
---@return moonsand.Watcher? watcher, string? message, string? code, table? detail
function M.watch(driver, path, recursive, interval, limits)
  local look_at = driver.files and driver.files.changes or M.changes
  local seen, message, code, detail = look_at(driver, path, recursive, limits)
  if not seen then
    return nil, message, code, detail
  end
  return setmetatable({
    driver = driver,
    look = look_at,
    path = path,
    recursive = recursive,
    interval = interval,
    seen = seen,
    events = {},
    next_at = loop.now() + interval,
    over = false,
  }, Watcher)
end

return M
