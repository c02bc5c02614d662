--- The files of a sandbox: `box.files`. Here is what users see. What is done is up to the provider's
--- own file calls (for `local`, files/native.lua: paths are resolved inside, by the agent or a worker
--- of its, with the rights of the sandbox's user), and where it has none, to portable.lua.

local errors = require "moonsand.errors"
local globs = require "moonsand.files.glob"
local loop = require "moonsand.loop"
local modes = require "moonsand.files.mode"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local iterators = require "moonsand.stream"
local streams = require "moonsand.files.stream"

local M = {}

---@class moonsand.Files
---@field private box moonsand.Sandbox
local Files = {}
Files.__index = Files
Files.__name = "moonsand.Files"

Files.__tostring = function(self)
  return ("moonsand.Files (%s)"):format(self.box.id)
end

---@class moonsand.Entry
---@field name string the last name of the path
---@field path string absolute
---@field type "file"|"directory"|"symlink"|"other"
---@field size integer bytes
---@field mode integer permission bits
---@field permissions string "0755"
---@field owner string a name, or the number where there is none
---@field group string
---@field modified_at number Unix seconds
---@field target? string of a symlink

local MAX_READ = 64 * 1024 * 1024
local MAX_LIST = 100000
local MAX_DOWNLOAD = 4 * 1024 ^ 3
local DIRECTORY_MODE = 493 -- 0755

-- ---------------------------------------------------------------- arguments

--- Options of every call, and those that only one takes.
local function known(more)
  local all = { timeout = "number", cancel = "table" }
  for name, types in pairs(more or {}) do
    all[name] = types
  end
  return all
end

local function check_string(call, what, value, level)
  if type(value) ~= "string" then
    errors.raise(level + 1, "%s: %s must be a string, got %s", call, what, type(value))
  end
end

--- What every call begins with: the absolute path and the checked options; or nil and the failure.
---@return string? path, any options_or_message, string? code, table? detail
local function begin(self, call, path, opts, accepted)
  opts = options.check(call, opts, accepted, 4)
  check_string(call, "the path", path, 4)
  self.box:check_open(call, 4)
  local full, message, code, detail = paths.resolve(self.box, path)
  if not full then
    return nil, message, code, detail
  end
  return full, opts
end

--- An option that counts bytes.
local function size_of(name, value, default)
  if value == nil then
    return default
  end
  return options.size(name, value)
end

--- An option that counts: whole and not negative.
local function count_of(name, value, default)
  if value == nil then
    return default
  elseif value == math.huge then
    return 2 ^ 53
  elseif value < 0 or value % 1 ~= 0 or value > 2 ^ 53 then
    return errors.fail("invalid", ("%s: %s is no such number"):format(name, value))
  end
  return options.integer(value)
end

--- Asks the provider, or, for what it cannot do, does it with plain commands inside.
local function ask(self, call, ...)
  local driver = self.box.core.driver
  local native = driver.files and driver.files[call]
  if native then
    local value, message, code, detail = native(driver, ...)
    if value ~= nil then
      return value
    elseif not detail.portable then
      return nil, message, code, detail
    end
  end
  return errors.outcome(require("moonsand.portable").files[call](driver, ...))
end

-- ---------------------------------------------------------------- looking

local STAT = known { follow = "boolean" }

--- What is there. A link is followed, unless `follow = false`.
---@param path string
---@param opts? { follow?: boolean, timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Entry? entry, string? message, string? code, table? detail
function Files:stat(path, opts)
  local full, o, code, detail = begin(self, "files:stat", path, opts, STAT)
  if not full then
    return nil, o, code, detail
  end
  return ask(self, "stat", full, o.follow ~= false, loop.limits(o), "stat")
end

local PLAIN = known()

--- Whether something is there; a link that leads nowhere is not.
---@param path string
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return boolean? exists, string? message, string? code, table? detail
function Files:exists(path, opts)
  local full, o, code, detail = begin(self, "files:exists", path, opts, PLAIN)
  if not full then
    return nil, o, code, detail
  end
  local entry, message
  entry, message, code, detail = ask(self, "stat", full, true, loop.limits(o), "stat")
  if entry then
    return true
  elseif code == "not_found" or code == "not_a_directory" then
    return false
  end
  return nil, message, code, detail
end

local LIST = known { depth = "number", limit = "number" }

--- What is in a directory, and `depth` levels below (1; math.huge: all). Links are not followed.
--- Sorted by path. What could not be read is in `skipped` of the list: { path, message, code }
--- each. More than `limit` entries (100,000) are `too_large`; `detail.entries` has those.
---@param path string
---@param opts? { depth?: integer, limit?: integer, timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Entry[]? entries, string? message, string? code, table? detail
function Files:list(path, opts)
  local full, o, code, detail = begin(self, "files:list", path, opts, LIST)
  if not full then
    return nil, o, code, detail
  end
  local depth, limit, message
  depth, message, code, detail = count_of("depth", o.depth, 1)
  if depth then
    limit, message, code, detail = count_of("limit", o.limit, MAX_LIST)
  end
  if not limit then
    return nil, message, code, detail
  elseif depth == 0 then
    return errors.fail("invalid", "depth: 0 levels are none")
  end
  return ask(self, "list", full, depth, limit, loop.limits(o))
end

local SEARCH = known { limit = "number" }

--- What matches a pattern: `*`, `?`, `[a-z]`, `{a,b}`, and `**` for any number of directories; `\`
--- before what is meant as itself. Names that begin with a dot only match what does, too. Links to
--- directories are followed in front of the first wildcard only. Sorted by path.
---@param pattern string
---@param opts? { limit?: integer, timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Entry[]? entries, string? message, string? code, table? detail
function Files:search(pattern, opts)
  local checked, o, code, detail = begin(self, "files:search", pattern, opts, SEARCH)
  if not checked then
    return nil, o, code, detail
  end
  local limit, list, message
  limit, message, code, detail = count_of("limit", o.limit, MAX_LIST)
  if limit then
    list, message, code, detail = globs.expand(pattern)
  end
  if not list then
    return nil, message, code, detail
  end
  for i, each in ipairs(list) do
    if each:sub(1, 1) ~= "/" then
      list[i] = paths.join(globs.escape(self.box:cwd()), each)
    end
  end
  return ask(self, "search", list, limit, loop.limits(o))
end

-- ---------------------------------------------------------------- reading

---@class moonsand.ReadOptions
---@field offset? integer bytes to begin behind (0)
---@field length? integer bytes to read; fewer at the end
---@field max? integer|string bytes; more are `too_large` (64M)
---@field timeout? number seconds to wait
---@field cancel? moonsand.Token

local READ = known { offset = "number", length = "number", max = "number|string" }

--- The bytes of a file: all, or `length` from `offset` on (fewer at its end). More than `max` (64M)
--- are `too_large`.
---@param path string
---@param opts? moonsand.ReadOptions
---@return string? data, string? message, string? code, table? detail
function Files:read(path, opts)
  local full, o, code, detail = begin(self, "files:read", path, opts, READ)
  if not full then
    return nil, o, code, detail
  end
  local offset, length, max, message
  offset, message, code, detail = count_of("offset", o.offset, 0)
  if offset then
    length, message, code, detail = count_of("length", o.length, math.huge)
  end
  if length then
    max, message, code, detail = size_of("max", o.max, MAX_READ)
  end
  if not max then
    return nil, message, code, detail
  end
  return ask(self, "read", full, offset, length < math.huge and length or nil, max,
    loop.limits(o))
end

-- ---------------------------------------------------------------- writing

---@class moonsand.WriteOptions
---@field mode? string "755", "u+x"; default 0644 for a new file, an existing one's own
---@field append? boolean write behind what is there
---@field atomic? boolean false: write into the file that is there
---@field parents? boolean false: missing directories are `not_found`
---@field timeout? number seconds to wait
---@field cancel? moonsand.Token

local WRITE = known { mode = "string", append = "boolean", atomic = "boolean", parents = "boolean" }

--- Writes a file: a new one is put in the place of the old one, so that readers see the one or the
--- other. It keeps the old one's mode and owner; a link is followed; new files are 0644, or `mode`.
--- `append`, and `atomic = false`, write into the file that is there. Missing directories are made
--- (`parents = false`: not).
---@param path string
---@param data string
---@param opts? moonsand.WriteOptions
---@return true|nil ok, string? message, string? code, table? detail
function Files:write(path, data, opts)
  check_string("files:write", "the data", data, 3)
  local full, o, code, detail = begin(self, "files:write", path, opts, WRITE)
  if not full then
    return nil, o, code, detail
  end
  return ask(self, "write", full, data, o, loop.limits(o))
end

local function check_batch(list)
  if type(list) ~= "table" then
    errors.raise(4, "files:write_many: a list of { path, data, mode } is needed, got %s",
      type(list))
  end
  local batch = {}
  for i, item in ipairs(list) do
    if type(item) ~= "table" then
      errors.raise(4, "files:write_many: item %d must be a table, got %s", i, type(item))
    end
    local path, data, mode = item.path or item[1], item.data or item[2], item.mode or item[3]
    check_string("files:write_many", ("the path of item %d"):format(i), path, 4)
    check_string("files:write_many", ("the data of item %d"):format(i), data, 4)
    if mode ~= nil then
      check_string("files:write_many", ("the mode of item %d"):format(i), mode, 4)
    end
    batch[i] = { path = path, data = data, mode = mode }
  end
  return batch
end

--- Writes files one after the other: { path, data, mode } each, by position or by name. Each is
--- whole or as it was; the first failure ends it (`detail.index`).
---@param list table[]
---@param opts? { parents?: boolean, timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Files:write_many(list, opts)
  local batch = check_batch(list)
  opts = options.check("files:write_many", opts, known { parents = "boolean" }, 3)
  self.box:check_open("files:write_many", 3)
  local limits = loop.limits(opts)
  for i, item in ipairs(batch) do
    local ok
    local path, message, code, detail = paths.resolve(self.box, item.path)
    if path then
      ok, message, code, detail =
        ask(self, "write", path, item.data, { mode = item.mode, parents = opts.parents }, limits)
    end
    if not ok then
      detail.index = i
      return nil, message, code, detail
    end
  end
  return true
end

--- Replaces text, taken as it is, wherever it is in a file: how many times. The file is written
--- only if it was there, and then as by `write`.
---@param path string
---@param old string
---@param new string
---@param opts? { max?: integer|string, timeout?: number, cancel?: moonsand.Token }
---@return integer? count, string? message, string? code, table? detail
function Files:replace(path, old, new, opts)
  check_string("files:replace", "the old text", old, 3)
  check_string("files:replace", "the new text", new, 3)
  local full, o, code, detail =
    begin(self, "files:replace", path, opts, known { max = "number|string" })
  if not full then
    return nil, o, code, detail
  elseif old == "" then
    return errors.fail("invalid", "replace: the text to look for is empty", { path = full })
  end
  local max, message
  max, message, code, detail = size_of("max", o.max, MAX_READ)
  if not max then
    return nil, message, code, detail
  end
  return ask(self, "edit", full, old, new, max, loop.limits(o))
end

--- Opens a file as a Stream: "r" (default), "w", "a" or "r+", as in `io`; a "b" means nothing.
---@param path string
---@param access? string
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Stream? stream, string? message, string? code, table? detail
function Files:open(path, access, opts)
  if not streams.access(access) then
    errors.raise(3, 'files:open: the mode must be "r", "w", "a" or "r+", got %s',
      options.quote(access))
  end
  local full, o, code, detail = begin(self, "files:open", path, opts, PLAIN)
  if not full then
    return nil, o, code, detail
  end
  return ask(self, "open", full, access, MAX_READ, loop.limits(o), self.box)
end

local GREP = known { path = "string", plain = "boolean", limit = "number" }

--- Lines that match a Lua pattern, or with `plain` hold a text, in the files below `path` (the
--- working directory), or in that file: { path, line, column, text } each, sorted. Files with a NUL
--- in them are passed over. More than `limit` (100,000) are `too_large`.
---@param pattern string
---@param opts? { path?: string, plain?: boolean, limit?: integer, timeout?: number, cancel?: moonsand.Token }
---@return table[]? matches, string? message, string? code, table? detail
function Files:grep(pattern, opts)
  check_string("files:grep", "the pattern", pattern, 3)
  local path = type(opts) == "table" and type(opts.path) == "string" and opts.path or "."
  local full, o, code, detail = begin(self, "files:grep", path, opts, GREP)
  if not full then
    return nil, o, code, detail
  end
  local limit, message
  limit, message, code, detail = count_of("limit", o.limit, MAX_LIST)
  if not limit then
    return nil, message, code, detail
  end
  local fine = o.plain or pcall(string.find, "", pattern)
  if not fine then
    return errors.fail("invalid", ("grep: %s is no pattern"):format(options.quote(pattern)))
  end
  return ask(self, "grep", full, pattern, o.plain or false, limit, loop.limits(o))
end

local WATCH = known { recursive = "boolean", interval = "number" }

local function next_change(state, opts)
  if state.over then
    return nil
  end
  local event, message, code, detail = state.watcher:next(loop.limits(opts or state.opts))
  state.over = event == nil and message == nil
  return errors.outcome(errors.attribute(state.box, event, message, code, detail))
end

--- An iterator of what happens in a directory: { event, path }, the event "created", "modified",
--- "removed", or "overflow" where more has happened than could be told. With `recursive` below it, too.
--- It ends after the directory itself was removed. Where the sandbox cannot tell by itself, it is
--- looked every `interval` seconds (0.5).
---@param path string
---@param opts? { recursive?: boolean, interval?: number, timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Iterator? events, string? message, string? code, table? detail
function Files:watch(path, opts)
  local full, o, code, detail = begin(self, "files:watch", path, opts, WATCH)
  if not full then
    return nil, o, code, detail
  elseif o.interval and not (o.interval > 0) then
    errors.raise(3, "files:watch: interval must be a positive number of seconds, not %s", o.interval)
  end
  local watcher, message
  watcher, message, code, detail =
    ask(self, "watch", full, o.recursive or false, o.interval or 0.5, loop.limits(o))
  if not watcher then
    return nil, message, code, detail
  end
  -- What is iterated keeps the sandbox alive.
  local state = { watcher = watcher, box = self.box, opts = opts, over = false }
  return iterators.iterator(next_change, state, function()
    state.over = true
    watcher:close()
  end)
end

-- ---------------------------------------------------------------- names and rights

local MKDIR = known { parents = "boolean", mode = "string" }

--- Makes a directory, 0755 or `mode`. With `parents` also those above it, and it may be there
--- already.
---@param path string
---@param opts? { parents?: boolean, mode?: string, timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Files:mkdir(path, opts)
  local full, o, code, detail = begin(self, "files:mkdir", path, opts, MKDIR)
  if not full then
    return nil, o, code, detail
  end
  local mode, message = DIRECTORY_MODE, nil
  if o.mode then
    mode, message, code, detail = modes.parse(o.mode, DIRECTORY_MODE, true)
  end
  if not mode then
    return nil, message, code, detail
  end
  return ask(self, "mkdir", full, mode, o.parents or false, loop.limits(o))
end

--- Removes a file, a link (not what it leads to) or an empty directory; with `recursive` a
--- directory with all that is in it. What is not there is `not_found`.
---@param path string
---@param opts? { recursive?: boolean, timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Files:remove(path, opts)
  local full, o, code, detail =
    begin(self, "files:remove", path, opts, known { recursive = "boolean" })
  if not full then
    return nil, o, code, detail
  end
  return ask(self, "remove", full, o.recursive or false, loop.limits(o))
end

--- Two paths and the options.
local function begin_pair(self, call, from, to, opts)
  check_string(call, "the second path", to, 4)
  opts = options.check(call, opts, PLAIN, 4)
  check_string(call, "the path", from, 4)
  self.box:check_open(call, 4)
  local source, message, code, detail = paths.resolve(self.box, from)
  local target
  if source then
    target, message, code, detail = paths.resolve(self.box, to)
  end
  if not target then
    return nil, message, code, detail
  end
  return source, target, loop.limits(opts)
end

--- Renames. What is at `to` is replaced, if it is a file, or an empty directory by a directory; it
--- is the new name, not a directory to move into. Between file systems it is a copy and a removal.
---@param from string
---@param to string
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Files:move(from, to, opts)
  local source, target, limits, detail = begin_pair(self, "files:move", from, to, opts)
  if not source then
    return nil, target, limits, detail
  end
  return ask(self, "move", source, target, limits)
end

--- Copies a file, or a directory with all that is in it: into the directory that is at `to`, if
--- there is one, replacing files of the same name. A link that `from` is is followed; links below
--- are copied. Modes are kept, but directories stay usable for their owner. What is no file,
--- directory or link, or cannot be read, is passed over.
---@param from string
---@param to string
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Transfer? summary without bytes
---@return string? message, string? code, table? detail
function Files:copy(from, to, opts)
  local source, target, limits, detail = begin_pair(self, "files:copy", from, to, opts)
  if not source then
    return nil, target, limits, detail
  end
  return ask(self, "copy", source, target, limits)
end

--- Changes the permissions: "755", "0755", "u+x". Links are followed.
---@param path string
---@param mode string
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Files:chmod(path, mode, opts)
  if type(mode) ~= "string" then
    errors.raise(3, 'files:chmod: the mode must be a string such as "755" or "u+x", got %s%s',
      type(mode), type(mode) == "number" and " (755 would be decimal)" or "")
  end
  local full, o, code, detail = begin(self, "files:chmod", path, opts, PLAIN)
  if not full then
    return nil, o, code, detail
  end
  return ask(self, "chmod", full, mode, loop.limits(o))
end

local function check_owner(what, value)
  if value ~= nil and type(value) ~= "string" and (type(value) ~= "number" or value % 1 ~= 0) then
    errors.raise(4, "files:chown: the %s must be a name or a whole number, got %s", what,
      options.quote(value))
  end
end

--- Changes owner and group: a name or a number; nil leaves it. One user exists inside, another one
--- is `unsupported`.
---@param path string
---@param owner? string|integer
---@param group? string|integer
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return true|nil ok, string? message, string? code, table? detail
function Files:chown(path, owner, group, opts)
  check_owner("owner", owner)
  check_owner("group", group)
  local full, o, code, detail = begin(self, "files:chown", path, opts, PLAIN)
  if not full then
    return nil, o, code, detail
  end
  return ask(self, "chown", full, owner, group, loop.limits(o))
end

-- ---------------------------------------------------------------- between host and sandbox

---@class moonsand.UploadOptions
---@field progress? fun(done: integer, total: integer) bytes; may wait; a raise ends the upload
---@field timeout? number seconds to wait
---@field cancel? moonsand.Token

---@class moonsand.DownloadOptions: moonsand.UploadOptions
---@field max? integer|string bytes in all; more are `too_large` (4G)
---@field limit? integer entries; more are `too_large` (100,000)

---@class moonsand.Transfer
---@field entries integer files, directories and links
---@field bytes integer
---@field skipped { path: string, message: string, code: string }[] what was passed over

local UPLOAD = known { progress = "callable" }
local DOWNLOAD = known { progress = "callable", max = "number|string", limit = "number" }

--- Copies a file or a whole directory of the host's into the sandbox, links as links. A file is put
--- in place as by `write`; a directory is made, or filled. `progress(done, total)`, in bytes, may
--- wait.
---@param host_path string
---@param path string
---@param opts? moonsand.UploadOptions
---@return moonsand.Transfer? summary
---@return string? message, string? code, table? detail
function Files:upload(host_path, path, opts)
  check_string("files:upload", "the host's path", host_path, 3)
  local full, o, code, detail = begin(self, "files:upload", path, opts, UPLOAD)
  if not full then
    return nil, o, code, detail
  end
  return ask(self, "upload", host_path, full, o)
end

--- Copies a file or a whole directory out of the sandbox. A file is put in place as a whole; a
--- directory is made (not those above it), or filled. Nothing is written outside of it, whatever
--- the sandbox does: links are not followed on the way, and those that lead out of it are passed
--- over, as is what is no file, directory or link. setuid and the like are taken off. More than
--- `max` bytes (4G) or `limit` entries (100,000) are `too_large`. `progress(done, total)`, in
--- bytes, may wait.
---@param path string
---@param host_path string
---@param opts? moonsand.DownloadOptions
---@return moonsand.Transfer? summary
---@return string? message, string? code, table? detail
function Files:download(path, host_path, opts)
  check_string("files:download", "the host's path", host_path, 3)
  local full, o, code, detail = begin(self, "files:download", path, opts, DOWNLOAD)
  if not full then
    return nil, o, code, detail
  end
  local limit, message, max
  limit, message, code, detail = count_of("limit", o.limit, MAX_LIST)
  if limit then
    max, message, code, detail = size_of("max", o.max, MAX_DOWNLOAD)
  end
  if not max then
    return nil, message, code, detail
  end
  return ask(self, "download", full, host_path, max, limit, o)
end

--- Each call, so that whatever fails in it says whose sandbox it was. (It stands between the call and
--- its caller: that is the one more in the levels of what raises here.)
for name, call in pairs(Files) do
  if type(call) == "function" and name:find "^%a" then
    Files[name] = function(self, ...)
      return errors.outcome(errors.attribute(self.box, call(self, ...)))
    end
  end
end

---@param box moonsand.Sandbox
---@return moonsand.Files
function M.new(box)
  return setmetatable({ box = box }, Files)
end

return M
