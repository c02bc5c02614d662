--- Writing files: a new one in the place of the old one, or into the one that is there.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local edit = require "moonsand.files.edit"
local errors = require "moonsand.errors"
local look = require "moonsand.files.look"
local loop = require "moonsand.loop"
local modes = require "moonsand.files.mode"
local options = require "moonsand.options"
local reading = require "moonsand.files.read"

local M = {}

--- What new files get.
M.MODE = 420 -- 0644

--- A larger piece would keep everybody else waiting.
local PIECE = 4 * 1024 * 1024

local flags = core.file_flags

--- The number for a mode option; what a relative one changes is looked up. nil, nil: none was
--- given.
local function mode_of(driver, text, path, default, limits)
  if text == nil then
    return nil
  elseif not modes.is_relative(text) then
    return modes.parse(text)
  end
  local entry, message, code, detail = look.stat(driver, path, true, limits, "stat")
  if not entry and code ~= "not_found" then
    return nil, message, code, detail
  end
  return modes.parse(text, entry and entry.mode or default, entry and entry.type == "directory")
end

--- Writes a string in pieces, and lets others have a turn in between.
local function pour(file, data, path, limits)
  local from = 1
  repeat
    local ok, errno = file:write(data, from, PIECE)
    if not ok then
      return errors.errno(errno, "write " .. options.quote(path), { path = path })
    end
    from = from + PIECE
    if from <= #data then
      local message, code, detail = loop.turn(limits)
      if message then
        return errors.fail(code, ("write %s: %s"):format(options.quote(path), message), detail)
      end
    end
  until from > #data
  return true
end

--- Opens what is to be put in the place of a file; `commit` or `abort` ends it.
---@return table? draft { file, temporary, path, target }
local function create(driver, path, mode, forced, parents, limits)
  local ok, body, file, detail = calls.call(driver, "create", {
    path = path,
    mode = mode,
    flags = driver.returns_files and flags.NAMELESS or 0,
    a = parents and 1 or 0,
    b = forced and 1 or 0,
  }, limits, "write")
  if not ok then
    if file == "busy" or file == "permission_denied" then
      detail.fix = "atomic = false writes into the file that is there"
    end
    return nil, body, file, detail
  end
  local kind, message, code
  kind, message, code, detail = calls.opened(body, file, "write", path)
  if not kind then
    return nil, message, code, detail
  elseif kind == "virtual" then
    return errors.fail("unsupported", ("write %s: it is not a file that can be replaced"):format(
      options.quote(path)), { path = path })
  end
  local _, temporary, target = core.opened(body)
  if not target then
    file:close()
    return calls.nonsense("write " .. options.quote(path))
  end
  return { file = file, temporary = temporary, target = target, path = path }
end

local function abort(driver, draft)
  draft.file:close()
  if draft.temporary ~= "" then
    calls.call(driver, "remove", { path = draft.temporary }, loop.limits({ timeout = 2 }, true))
  end
end

local function commit(driver, draft, limits)
  local nameless = draft.temporary == ""
  local ok, message, code, detail = calls.call(driver, "commit", {
    path = draft.temporary,
    path2 = draft.target,
    file = nameless and draft.file or nil,
  }, limits, "write")
  draft.file:close()
  if not ok then
    detail.path = draft.path
    if not nameless and code ~= "timeout" and code ~= "cancelled" then
      abort(driver, draft)
    end
    return nil, message, code, detail
  end
  return true
end

--- Puts a new file in the place of an old one. `fill(file)` writes it: true or a failure.
function M.replace(driver, path, mode, forced, parents, limits, fill, ...)
  local draft, message, code, detail = create(driver, path, mode, forced, parents, limits)
  if not draft then
    return nil, message, code, detail
  end
  local fine, ok
  fine, ok, message, code, detail = pcall(fill, draft.file, ...)
  if not fine or not ok then
    abort(driver, draft)
    if not fine then
      error(ok, 0)
    end
    return nil, message, code, detail
  end
  return commit(driver, draft, limits)
end

--- Writes into the file that is there.
local function write_in_place(driver, path, data, mode, append, parents, limits)
  local ok, body, file, detail = calls.call(driver, "open", {
    path = path,
    flags = flags.WRONLY + flags.CREAT + (append and flags.APPEND or flags.TRUNC),
    mode = mode or M.MODE,
    a = parents and 1 or 0,
  }, limits, "write")
  if not ok then
    return nil, body, file, detail
  end
  local kind, message, code
  kind, message, code, detail = calls.opened(body, file, "write", path)
  if not kind then
    return nil, message, code, detail
  elseif kind == "virtual" then
    return errors.fail("unsupported", ("write %s: it is not an ordinary file"):format(
      options.quote(path)), { path = path })
  end
  ok, message, code, detail = pour(file, data, path, limits)
  file:close()
  if ok and mode then
    ok, message, code, detail =
      calls.call(driver, "chmod", { path = path, mode = mode }, limits, "chmod")
  end
  if not ok then
    return nil, message, code, detail
  end
  return true
end

--- As `files:write`, to an absolute path; `o` are its checked options.
function M.write(driver, path, data, o, limits)
  if o.append and o.atomic then
    return errors.fail("invalid", "append writes into the file that is there: it is not atomic")
  end
  local mode, message, code, detail = mode_of(driver, o.mode, path, M.MODE, limits)
  if message then
    return nil, message, code, detail
  end
  local parents = o.parents ~= false
  if o.append or o.atomic == false then
    return write_in_place(driver, path, data, mode, o.append, parents, limits)
  end
  return M.replace(driver, path, mode or M.MODE, mode ~= nil, parents, limits, pour, data,
    path, limits)
end

--- As `files:replace`, of an absolute path.
function M.edit(...)
  return edit(reading.read, M.write, ...)
end

return M
