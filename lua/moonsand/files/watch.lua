--- What happens in a directory, and what is in many files: by workers inside (worker_watch.c,
--- worker_grep.c).

local calls = require "moonsand.files.calls"
local errors = require "moonsand.errors"
local options = require "moonsand.options"
local skips = require "moonsand.files.skipped"

local M = {}

---@class moonsand.NativeWatcher
---@field private worker moonsand.Worker
---@field private path string
---@field private closed boolean
local Watcher = {}
Watcher.__index = Watcher

--- What has happened next; nil when no more can.
---@return { event: string, path: string }? event, string? message, string? code, table? detail
function Watcher:next(limits)
  self.worker.limits = limits
  local kind, event, path, detail = self.worker:record()
  if self.closed then
    return errors.fail("closed", self.worker.what .. ": the iterator was closed", { path = self.path })
  end
  if kind == "event" then
    return { event = event, path = path == "" and self.path or calls.join(self.path, path) }
  elseif kind == "end" then
    self.worker:close()
    return nil
  elseif kind then
    return calls.nonsense(self.worker.what)
  end
  return nil, event, path, detail
end

function Watcher:close()
  self.closed = true
  self.worker:close()
end

--- As `files:watch`, of an absolute path: what happens from now on.
---@return moonsand.NativeWatcher? watcher, string? message, string? code, table? detail
function M.watch(driver, path, recursive, _, limits)
  local worker, message, code, detail = calls.begin(driver, { "watch", path, recursive and "1" or "0" },
    { path = path, verb = "watch" }, limits)
  if not worker then
    return nil, message, code, detail
  end
  local kind, a, b, more = worker:record()
  if kind == "total" then
    return setmetatable({ worker = worker, path = path, closed = false }, Watcher)
  end
  worker:close()
  if kind then
    return calls.nonsense(worker.what)
  end
  return nil, a, b, more
end

-- ---------------------------------------------------------------- grep

local function by_place(a, b)
  if a.path ~= b.path then
    return a.path < b.path
  end
  return a.line < b.line
end

--- Reads what a worker finds into a list.
local function collect(worker, root, limit)
  local list, skipped = {}, skips.new(root)
  while true do
    local kind, a, b, detail = worker:record()
    if not kind then
      return nil, a, b, detail
    elseif kind == "end" then
      break
    elseif kind == "skipped" then
      skipped:add(b, a)
    elseif kind == "match" then
      if #list == limit then
        return errors.fail("too_large", ("%s: more than %d lines"):format(worker.what, limit),
          { path = root, matches = list })
      end
      a.path = a.path == "" and root or calls.join(root, a.path)
      list[#list + 1] = a
    end
  end
  table.sort(list, by_place)
  list.skipped = skipped.list[1] and skipped.list
  return list
end

--- As `files:grep`, below an absolute path. What the kernel makes up, in /proc and its like, is left
--- to the portable form.
function M.grep(driver, path, pattern, plain, limit, limits)
  if pattern:find "%z" then
    return errors.fail("invalid", ("grep: %s has a NUL in it, which no line has"):format(
      options.quote(pattern)))
  end
  -- As string.find does: a pattern without these is a text, also where it would be malformed.
  plain = plain or not pattern:find "[%^%$%*%+%?%.%(%[%%%-]"
  local list, message, code, detail = calls.work(driver,
    { "grep", path, plain and "1" or "0", pattern }, { path = path, verb = "grep" }, limits, collect,
    path, limit)
  if list then
    return list
  elseif code == "too_large" and not detail.matches then
    message = ("grep %s: the pattern %s takes too long on a line"):format(options.quote(detail.path),
      options.quote(pattern))
    detail.message = message
  end
  detail.portable = code == "unsupported" or nil
  return nil, message, code, detail
end

return M
