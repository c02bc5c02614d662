--- The sandboxes of this user that live without a host: entries in a directory that only the user can
--- look into. What an entry says was written by a process of ours; whether its sandbox still lives,
--- the kernel says. Entries of sandboxes that are over are removed by whoever comes across them.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

--- How long somebody else may hold the lock before we look again.
local LOCK_TRY = 0.005

--- How many tables an entry may have in each other.
local DEPTH = 100

-- ---------------------------------------------------------------- values as text

--- A number that every Lua reads again: none reads "inf" as one but LuaJIT.
local function encode_number(value, what)
  if value ~= value then
    error(("%s: a number that is none (nan) cannot be kept for others"):format(what), 0)
  elseif value == math.huge or value == -math.huge then
    return value > 0 and "n1e999;" or "n-1e999;"
  end
  return ("n%.17g;"):format(value)
end

--- Strings, numbers, booleans and tables of them, each with its length or its end: nothing in a
--- string is special.
local function encode(value, out, what, depth)
  local kind = type(value)
  if depth > DEPTH then
    error(("%s: a table that holds itself, or more than %d in each other, cannot be kept for others")
      :format(what, DEPTH), 0)
  elseif kind == "string" then
    out[#out + 1] = ("s%d:%s"):format(#value, value)
  elseif kind == "number" then
    out[#out + 1] = encode_number(value, what)
  elseif kind == "boolean" then
    out[#out + 1] = value and "t" or "f"
  elseif kind == "table" then
    out[#out + 1] = "{"
    for key, each in pairs(value) do
      encode(key, out, what, depth + 1)
      encode(each, out, what, depth + 1)
    end
    out[#out + 1] = "}"
  else
    error(("%s: a %s cannot be kept for others"):format(what, kind), 0)
  end
end

local decode

local function decode_table(text, at)
  local value = {}
  while text:sub(at, at) ~= "}" do
    local key, each
    key, at = decode(text, at)
    each, at = decode(text, at)
    if type(key) == "table" or key ~= key then
      error("no key", 0)
    end
    value[key] = each
  end
  return value, at + 1
end

--- Raises when that is nothing that `encode` gives.
function decode(text, at)
  local kind = text:sub(at, at)
  if kind == "s" then
    local length, from = text:match("^(%d+):()", at + 1)
    local last = from + tonumber(length) - 1
    assert(last <= #text)
    return text:sub(from, last), last + 1
  elseif kind == "n" then
    local number, after = text:match("^([^;]*);()", at + 1)
    return options.integer(assert(tonumber(number))) or tonumber(number), after
  elseif kind == "{" then
    return decode_table(text, at + 1)
  end
  assert(kind == "t" or kind == "f")
  return kind == "t", at + 1
end

--- An entry as text; nil and why, when something in it cannot be told.
---@return string? text, string? message, string? code, table? detail
local function to_text(about)
  local out = {}
  local ok, message = pcall(encode, about, out, "detach", 0)
  if not ok then
    return errors.fail("invalid", tostring(message))
  end
  return table.concat(out)
end

---@return table? about
local function from_text(text)
  local ok, about, after = pcall(decode, text, 1)
  return ok and type(about) == "table" and after == #text + 1 and about or nil
end

-- ---------------------------------------------------------------- the directory

--- Where it is: below the directory that the system gives a user for such things, else in /tmp.
---@return string
function M.path()
  local runtime = os.getenv "XDG_RUNTIME_DIR"
  if runtime and runtime:sub(1, 1) == "/" then
    return runtime .. "/moonsand"
  end
  return ("/tmp/moonsand-%d"):format(core.euid())
end

---@return userdata? registry, string? message, string? code, table? detail
local function open()
  local path = M.path()
  local registry, errno = core.registry(path)
  if registry then
    return registry
  end
  return errors.fail("unavailable", ("the directory of detached sandboxes, %s: %s"):format(path,
    core.strerror(errno)), {
      cause = errno == core.errno.EPERM and "it belongs to somebody else, or others may enter it"
        or path .. ": " .. core.strerror(errno),
      fix = "make it a directory of yours with mode 0700, or set XDG_RUNTIME_DIR to a directory of "
        .. "yours",
      path = path,
    })
end

--- `fn(registry)` with the lock.
local function locked(limits, fn)
  local registry, message, code, detail = open()
  if not registry then
    return nil, message, code, detail
  end
  while not registry:lock() do
    local over = loop.now() + LOCK_TRY
    message, code, detail = loop.wait { deadline = math.min(over, limits.deadline or over),
      token = limits.token, shield = limits.shield }
    if code ~= "timeout" or limits.deadline and limits.deadline <= over then
      registry:close()
      return errors.fail(code, "the directory of detached sandboxes is in use: " .. message, detail)
    end
  end
  local function pass(ok, ...)
    registry:close()
    if not ok then
      error((...), 0)
    end
    return ...
  end
  return pass(pcall(fn, registry))
end

-- ---------------------------------------------------------------- entries

--- What is known of a sandbox, and whether it is "running", "gone", or somewhere we cannot look
--- ("elsewhere"): another boot's pids are gone, those of another pid namespace mean nothing here. Of
--- one whose entry cannot be read but whose agent listens, nothing is known ("unreadable").
local function look(registry, id)
  local text = registry:read(id)
  local about = text and from_text(text)
  if not about or type(about.pid) ~= "number" or type(about.place) ~= "string" or about.id ~= id then
    return nil, registry:listens(id) and "unreadable" or "gone"
  end
  local birth, place = core.birth(about.pid)
  if about.place ~= place then
    local boot, here = about.place:match "^[^/]*", place and place:match "^[^/]*"
    return about, boot == here and "elsewhere" or "gone"
  end
  return about, birth == about.birth and "running" or "gone"
end

--- Removes what is over. Only with the lock: an entry that is being made has nothing in it yet.
local function clean(registry)
  for _, id in ipairs(registry:ids()) do
    local _, state = look(registry, id)
    if state == "gone" then
      registry:remove(id)
    end
  end
end

--- All that live.
---@return table[] list of what is known
local function living(registry)
  local list = {}
  for _, id in ipairs(registry:ids()) do
    local about, state = look(registry, id)
    if state == "running" then
      list[#list + 1] = about
    end
  end
  table.sort(list, function(a, b)
    for _, name in ipairs { "created_at", "birth" } do
      local first, second = tonumber(a[name]) or 0, tonumber(b[name]) or 0
      if first ~= second then
        return first < second
      end
    end
    return a.id < b.id
  end)
  return list
end

--- By id, else by name.
local function find(registry, id_or_name)
  local named
  for _, about in ipairs(living(registry)) do
    if about.id == id_or_name then
      return about
    elseif about.name == id_or_name then
      named = about
    end
  end
  return named
end

--- Why none was found of that id or name.
local function not_found(registry, id)
  for _, each in ipairs(registry:ids()) do
    local _, state = look(registry, each)
    if each == id and state == "unreadable" then
      return errors.fail("unavailable", ("what is known of %s cannot be read"):format(
        options.quote(id)), {
          cause = ("its entry in %s is damaged; the sandbox lives"):format(M.path()),
          fix = "end the process that listens on the socket there",
          id = id,
        })
    end
  end
  return errors.fail("not_found", ("there is no detached sandbox %s"):format(options.quote(id)),
    { id = id })
end

-- ---------------------------------------------------------------- calls

--- Those that live.
---@return table[]? list, string? message, string? code, table? detail
function M.list()
  local registry, message, code, detail = open()
  if not registry then
    return nil, message, code, detail
  end
  if registry:lock() then -- else somebody else is at it
    clean(registry)
    registry:unlock()
  end
  local list = living(registry)
  registry:close()
  return list
end

--- Makes a sandbox known, and hands the socket to listen on to `give`, which may wait. What `give`
--- refuses is forgotten.
---@param about table id, name, pid, …
---@param give fun(socket: userdata): true|nil, string?, string?, table?
---@return true|nil ok, string? message, string? code, table? detail
function M.publish(about, limits, give)
  local birth, place = core.birth(about.pid)
  if not birth then
    return errors.fail("unavailable", "detach: the sandbox's first process cannot be seen", {
      cause = "/proc hides processes (hidepid), or the sandbox has ended",
      fix = "mount /proc without hidepid",
    })
  end
  about.birth, about.place, about.version = birth, place, core.version
  local text, message, code, detail = to_text(about)
  if not text then
    return nil, message, code, detail
  end
  return locked(limits, function(registry)
    clean(registry)
    if find(registry, about.name) then
      return errors.fail("exists", ("there is a detached sandbox of the name %s"):format(
        options.quote(about.name)), { id = about.name })
    end
    local socket, errno = registry:add(about.id)
    local ok
    if socket then
      ok, errno = registry:write(about.id, text)
    end
    if not ok then
      registry:remove(about.id)
      return errors.errno(errno, "detach: " .. M.path())
    end
    ok, message, code, detail = give(socket)
    socket:close()
    if not ok then
      registry:remove(about.id)
      return nil, message, code, detail
    end
    return true
  end)
end

--- Changes what is known of one.
---@param change fun(about: table)
---@return true|nil ok, string? message, string? code, table? detail
function M.update(id, limits, change)
  return locked(limits, function(registry)
    local about = find(registry, id)
    if not about then
      return not_found(registry, id)
    end
    change(about)
    local text, message, code, detail = to_text(about)
    if not text then
      return nil, message, code, detail
    end
    local ok, errno = registry:write(about.id, text)
    if not ok then
      return errors.errno(errno, M.path())
    end
    return true
  end)
end

--- What is known of one now; nil when it is over.
---@return table? about
function M.read(id)
  local registry = open()
  local about, state
  if registry then
    about, state = look(registry, id)
    registry:close()
  end
  return state == "running" and about or nil
end

local AGAIN = { [core.errno.EAGAIN] = true }
local OVER = { [core.errno.ESRCH] = true, [core.errno.ENOENT] = true, [core.errno.ECONNREFUSED] = true }

--- A handle of the core's for one of them: connected, or (not `connected`) only to end it.
---@return userdata? raw, table|string about_or_message, string? code, table? detail
function M.join(id_or_name, connected, limits)
  local reactor, message, code, detail = loop.reactor()
  if not reactor then
    return nil, message, code, detail
  end
  return locked(limits, function(registry)
    clean(registry)
    local about = find(registry, id_or_name)
    if not about then
      return not_found(registry, id_or_name)
    elseif connected and about.version ~= core.version then
      return errors.fail("unavailable", ("%s was made by moonsand %s"):format(
        options.quote(id_or_name), tostring(about.version)), {
          cause = "a sandbox and who connects to it have to be of one version",
          fix = "use that version, or destroy it and make another one",
        })
    end
    local raw, errno
    repeat
      raw, errno = registry:join(reactor, connected and about.id or nil, about.pid)
      local again = not raw and AGAIN[errno] and (not limits.deadline or loop.now() < limits.deadline)
      if again then -- many connect at once
        loop.wait { deadline = loop.now() + LOCK_TRY, token = limits.token, shield = limits.shield }
      end
    until not again
    if raw and core.birth(about.pid) ~= about.birth or not raw and OVER[errno] then
      return not_found(registry, id_or_name)
    elseif not raw then
      return errors.errno(errno, "cannot connect to " .. options.quote(id_or_name))
    end
    return raw, about
  end)
end

--- Removes the entry of one that is over.
function M.forget(id)
  local registry = open()
  if registry then
    local _, state = look(registry, id)
    if state == "gone" then
      registry:remove(id)
    end
    registry:close()
  end
end

return M
