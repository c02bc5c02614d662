--- Trees inside: removing, copying and moving them.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local look = require "moonsand.files.look"
local options = require "moonsand.options"
local skips = require "moonsand.files.skipped"

local M = {}

--- Waits for a worker's "end"; answers how many entries it counted, and what it passed over.
function M.await(worker, root)
  local skipped = skips.new(root)
  while true do
    local kind, a, b, detail = worker:record()
    if not kind then
      return nil, a, b, detail
    elseif kind == "end" then
      return { entries = options.integer(a), skipped = skipped.list }
    elseif kind == "skipped" then
      skipped:add(b, a)
    end
  end
end

--- As `files:mkdir`, of an absolute path.
function M.mkdir(driver, path, mode, parents, limits)
  local ok, message, code, detail =
    calls.call(driver, "mkdir", { path = path, mode = mode, a = parents and 1 or 0 }, limits)
  if not ok then
    return nil, message, code, detail
  end
  return true
end

--- Removes a directory with all that is in it.
local function remove_all(driver, path, limits)
  local summary, message, code, detail = calls.work(driver, { "remove", path },
    { path = path, verb = "remove" }, limits, M.await, path)
  if not summary then
    return nil, message, code, detail
  end
  return true
end

--- As `files:remove`, of an absolute path.
function M.remove(driver, path, recursive, limits)
  local ok, message, code, detail = calls.call(driver, "remove", { path = path }, limits)
  if ok then
    return true
  elseif recursive and (code == "not_empty" or code == "exists") then
    return remove_all(driver, path, limits)
  end
  return nil, message, code, detail
end

--- Copies a tree or a file; `follow` a link that `from` is.
local function copy(driver, from, to, follow, limits)
  return calls.work(driver, { "copy", from, to, follow and "1" or "0" },
    { path = from, verb = "copy" }, limits, M.await, from)
end

--- As `files:copy`, of absolute paths.
function M.copy(driver, from, to, limits)
  return copy(driver, from, to, true, limits)
end

--- Between file systems a rename is a copy and a removal. What rename would refuse is refused
--- first.
local function move_across(driver, from, to, limits)
  local source, message, code, detail = look.stat(driver, from, false, limits, "move")
  if not source then
    return nil, message, code, detail
  end
  local target = look.stat(driver, to, false, limits, "move")
  local directory = source.type == "directory"
  local what = "move " .. options.quote(from)
  if target and directory ~= (target.type == "directory") then
    return errors.fail(directory and "not_a_directory" or "is_a_directory",
      ("%s: %s is there already"):format(what, options.quote(to)), { path = to })
  elseif target and directory then
    local ok
    ok, message, code, detail = calls.call(driver, "remove", { path = to }, limits, "replace")
    if not ok then
      return nil, message, code, detail
    end
  end
  local summary
  summary, message, code, detail = copy(driver, from, to, false, limits)
  if not summary then
    return nil, message, code, detail
  elseif #summary.skipped > 0 then
    local first = summary.skipped[1]
    return errors.fail(first.code, ("%s: %s could not be copied: %s"):format(what,
      options.quote(first.path), first.message), { path = first.path })
  elseif directory then
    return remove_all(driver, from, limits)
  end
  summary, message, code, detail = calls.call(driver, "remove", { path = from }, limits)
  if not summary then
    return nil, message, code, detail
  end
  return true
end

--- As `files:move`, of absolute paths.
function M.move(driver, from, to, limits)
  local errno, message, code, detail =
    driver:call(core.file_calls.move, { path = from, path2 = to }, limits)
  local what = ("move %s to %s"):format(options.quote(from), options.quote(to))
  if errno == 0 then
    return true
  elseif not errno then
    detail.path = from
    return errors.fail(code, what .. ": " .. message, detail)
  elseif errno == core.errno.EXDEV then
    return move_across(driver, from, to, limits)
  end
  return errors.errno(errno, what, { path = from })
end

return M
