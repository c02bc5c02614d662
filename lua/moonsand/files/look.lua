--- Looking: what is told of one file, of a directory, of what matches a pattern.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local modes = require "moonsand.files.mode"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local skips = require "moonsand.files.skipped"

local M = {}

local flags = core.file_flags

local names = { [0] = "root", [1000] = "sandbox", [65534] = "nobody" }

local function name_of(number)
  return names[number] or tostring(number)
end

local permissions = setmetatable({}, {
  __index = function(self, mode)
    local text = modes.format(mode)
    self[mode] = text
    return text
  end,
})

--- From what the core tells to what users get.
local function complete(entry, path)
  entry.path = path
  entry.name = paths.name(path)
  entry.permissions = permissions[entry.mode]
  entry.owner, entry.group = name_of(entry.uid), name_of(entry.gid)
  entry.uid, entry.gid = nil, nil
  return entry
end

--- As `files:stat`, of an absolute path.
function M.stat(driver, path, follow, limits, verb)
  local args = { path = path, flags = follow and 0 or flags.NOFOLLOW }
  local ok, body, code, detail = calls.call(driver, "stat", args, limits, verb)
  if not ok then
    return nil, body, code, detail
  end
  local entry = core.entry(body)
  if not entry then
    return calls.nonsense("stat " .. options.quote(path))
  end
  return complete(entry, path)
end

--- Reads a worker's entries into a list, sorted by path; what was told twice is in it once. What is
--- more than `limit` is a failure, with those that fit in `detail.entries`.
local function collect(worker, limit, root)
  local found, sorted, skipped = {}, {}, skips.new(root, limit)
  while true do
    local kind, a, b, detail = worker:record()
    if not kind then
      return nil, a, b, detail
    elseif kind == "end" then
      break
    elseif kind == "entry" then
      local path = root .. a.path
      if not found[path] then
        if #sorted == limit then
          for i, each in ipairs(sorted) do
            sorted[i] = found[each]
          end
          local message = ("more than %d entries"):format(limit)
          return errors.fail("too_large", message, { entries = sorted })
        end
        sorted[#sorted + 1] = path
        found[path] = complete(a, path)
      end
    elseif kind == "skipped" then
      skipped:add(b, a)
    end
  end
  table.sort(sorted)
  for i, path in ipairs(sorted) do
    sorted[i] = found[path]
  end
  sorted.skipped = skipped.list[1] and skipped.list
  return sorted
end

--- As `files:list`, of an absolute path.
function M.list(driver, path, depth, limit, limits)
  return calls.work(driver, { "list", path, ("%d"):format(depth) }, { path = path, verb = "list" },
    limits, collect, limit, calls.join(path, ""))
end

--- What matches one of some patterns, which are absolute and have no braces.
function M.search(driver, patterns, limit, limits)
  local argv = { "search" }
  for i, pattern in ipairs(patterns) do
    argv[i + 1] = pattern
  end
  return calls.work(driver, argv, { path = "/", verb = "search" }, limits, collect, limit, "/")
end

return M
