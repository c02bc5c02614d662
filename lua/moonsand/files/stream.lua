--- The Stream over a file: `files:open`. Reads and writes go to the file's descriptor and never
--- wait, so this gives `moonsand.stream` the few calls that it wants of a provider's stream, with a
--- read-ahead in front of the file. What is read ahead is given back before a write and a seek.

local calls = require "moonsand.files.calls"
local core = require "moonsand.core"
local errors = require "moonsand.errors"
local options = require "moonsand.options"
local reading = require "moonsand.files.read"
local streams = require "moonsand.stream"
local writing = require "moonsand.files.write"

local M = {}

local PIECE = 64 * 1024
local CHUNK = 256 * 1024
local MAX_ALL = 64 * 1024 * 1024

---@class moonsand.FileSource what moonsand.stream reads from and writes to
---@field file userdata a moonsand.file, or text with its methods
---@field box moonsand.Sandbox kept alive by what was made from it
---@field ahead string read, from `at` on not yet taken
---@field at integer
---@field readable boolean
---@field writable boolean
local Source = {}
Source.__index = Source

--- nil when it may be used, else the errno.
local function refused(self, allowed)
  if self.box.core.closed or not self.file then
    return core.errno.EBADF
  end
  return not allowed and core.errno.EACCES or nil
end

--- Reads more behind what is there: true; false at the end; or nil, errno.
local function fill(self, size)
  local data, errno = self.file:read(size)
  if data then
    self.ahead, self.at = self.ahead:sub(self.at) .. data, 1
    return true
  end
  return errno == nil and false or nil, errno
end

--- Takes the first `count` bytes, and drops `skip` more.
local function cut(self, count, skip)
  local data = self.ahead:sub(self.at, self.at + count - 1)
  self.at = self.at + count + (skip or 0)
  return data
end

local function available(self)
  return #self.ahead - self.at + 1
end

local function take_line(self, keep_end, max)
  local searched = 0
  while true do
    local newline = self.ahead:find("\n", self.at + searched, true)
    local length = newline and newline - self.at or available(self)
    if length > max then
      return nil, "too_large"
    elseif newline then
      return keep_end and cut(self, length + 1) or cut(self, length, 1)
    end
    searched = length
    local more, errno = fill(self, math.max(PIECE, length))
    if errno then
      return nil, errno
    elseif not more then
      if length == 0 then
        return nil, "eof"
      end
      return cut(self, length)
    end
  end
end

local function take_count(self, count)
  local missing = math.max(count, 1) - available(self)
  if missing > 0 then
    local _, errno = fill(self, math.max(missing, PIECE))
    if errno then
      return nil, errno
    elseif available(self) == 0 then
      return nil, "eof"
    end
  end
  return cut(self, math.min(count, available(self)))
end

local function take_chunk(self)
  if available(self) == 0 then
    local more, errno = fill(self, CHUNK)
    if not more then
      return nil, errno or "eof"
    end
  end
  return cut(self, math.min(CHUNK, available(self)))
end

local function take_all(self, max)
  local pieces = { cut(self, available(self)) }
  local total = #pieces[1]
  while total <= max do
    local data, errno = self.file:read(1024 * 1024)
    if errno then
      return nil, errno
    elseif not data then
      return table.concat(pieces)
    end
    pieces[#pieces + 1] = data
    total = total + #data
  end
  self.ahead, self.at = table.concat(pieces), 1
  return nil, "too_large"
end

--- As stream:take of the core: "l", "L" and "a" with the most, "n" with a count, "chunk".
function Source:take(kind, n)
  local errno = refused(self, self.readable)
  if errno then
    return nil, errno
  elseif kind == "chunk" then
    return take_chunk(self)
  elseif kind == "n" then
    return take_count(self, n)
  elseif kind == "a" then
    return take_all(self, n)
  end
  return take_line(self, kind == "L", n)
end

--- Puts the file back to where its reader is.
local function give_back(self)
  local ahead = available(self)
  self.ahead, self.at = "", 1
  if ahead > 0 then
    return self.file:seek("cur", -ahead)
  end
  return true
end

--- Writes all from `from` on: how many bytes; or nil, errno.
function Source:write(data, from)
  local errno = refused(self, self.writable)
  if errno then
    return nil, self.shut and core.errno.EPIPE or errno
  end
  local ok
  ok, errno = give_back(self)
  if ok then
    ok, errno = self.file:write(data, from)
  end
  if not ok then
    return nil, errno
  end
  return #data - from + 1
end

function Source:shutdown()
  self.writable, self.shut = false, true
end

function Source:close()
  if self.file then
    self.file:close()
  end
  self.file = nil
end

--- As in `io`: "set", "cur" (default) or "end", and an offset. Where the file is then.
---@param whence? "set"|"cur"|"end"
---@param offset? integer
---@return integer? position, string? message, string? code, table? detail
local function seek(stream, whence, offset)
  whence, offset = whence or "cur", offset or 0
  if whence ~= "set" and whence ~= "cur" and whence ~= "end" then
    errors.raise(2, 'stream:seek: whence must be "set", "cur" or "end", got %s',
      options.quote(whence))
  elseif type(offset) ~= "number" or offset % 1 ~= 0 or math.abs(offset) > 2 ^ 53 then
    errors.raise(2, "stream:seek: the offset must be a whole number, got %s",
      options.quote(offset))
  elseif stream.closed then
    errors.raise(2, "stream:seek: the stream is closed")
  end
  local self = stream.raw
  local errno, position = refused(self, true), nil
  if not errno then
    position, errno = give_back(self)
  end
  if position then
    position, errno = self.file:seek(whence, offset)
  end
  if not position then
    return errors.errno(errno, stream.name)
  end
  return options.integer(position)
end

--- Text with the calls of a file, for what was read as a whole.
local Text = {}
Text.__index = Text

function Text:read(n)
  if self.at > #self.text then
    return nil
  end
  local data = self.text:sub(self.at, self.at + n - 1)
  self.at = self.at + #data
  return data
end

function Text:seek(whence, offset)
  local base = whence == "set" and 0 or whence == "cur" and self.at - 1 or #self.text
  if base + offset < 0 then
    return nil, core.errno.EINVAL
  end
  self.at = base + offset + 1
  return base + offset
end

function Text:close()
  self.text = ""
end

--- The Stream over a file, which is taken over, or over its content.
---@param file userdata|table|string
local function new(box, file, path, access)
  if type(file) == "string" then
    file = setmetatable({ text = file, at = 1 }, Text)
  end
  local stream = streams.new(setmetatable({
    file = file,
    box = box,
    ahead = "",
    at = 1,
    readable = access.readable or false,
    writable = access.writable or false,
    shut = false,
  }, Source), path, MAX_ALL)
  stream.seek = seek
  return stream
end

M.new = new

local flags = core.file_flags

local ACCESS = {
  r = { flags = flags.RDONLY, readable = true },
  w = { flags = flags.WRONLY + flags.CREAT + flags.TRUNC, writable = true },
  a = { flags = flags.WRONLY + flags.CREAT + flags.APPEND, writable = true },
  ["r+"] = { flags = flags.RDWR, readable = true, writable = true },
}

--- What "r", "w", "a", "r+" mean; nil for anything else.
---@param text? string
---@return { flags: integer, readable: boolean?, writable: boolean? }?
function M.access(text)
  if text == nil then
    text = "r"
  end
  return type(text) == "string" and ACCESS[(text:gsub("b", ""))] or nil
end

--- As `files:open`, of an absolute path.
---@param driver table
---@param path string
---@param text? string
---@param max integer the most that is read of a file that cannot be passed
---@param limits moonsand.Limits
---@param box moonsand.Sandbox kept alive by the stream
---@return moonsand.Stream? stream, string? message, string? code, table? detail
function M.open(driver, path, text, max, limits, box)
  local access = M.access(text)
  local ok, body, file, detail = calls.call(driver, "open",
    { path = path, flags = access.flags, mode = writing.MODE }, limits)
  if not ok then
    return nil, body, file, detail
  end
  local kind, content, code
  kind, content, code, detail = calls.opened(body, file, "open", path)
  if not kind then
    return nil, content, code, detail
  elseif kind == "virtual" then
    if access.writable then
      return errors.fail("unsupported", ("open %s: it is not an ordinary file"):format(
        options.quote(path)), { path = path })
    end
    local message
    content, message, code, detail = reading.cat(driver, path, 0, nil, max, limits)
    if not content then
      return nil, message, code, detail
    end
  end
  return new(box, content, path, access)
end

return M
