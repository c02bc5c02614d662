--- A raw stream in Lua, with the calls of the C core's (src/stream.c): for providers whose programs
--- are no pipes but events of a service. One side is `moonsand.stream`'s; the provider's side is
--- `put` and `finish` for an output, `get` for an input, which wait.
---
--- What it holds is bounded as there: the excerpt's limit while nobody reads, the high-water mark
--- while somebody does, and then `put` waits.

local core = require "moonsand.core"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

local HIGH_WATER = 256 * 1024
local TAKEN = 128 * 1024 -- what a reader is given at once

-- ---------------------------------------------------------------- excerpts

--- Keeps the first and the last half of what is appended.
---@class moonsand.Excerpt
---@field limit integer
---@field total integer bytes that came
---@field head string[] the first half
---@field head_size integer
---@field tail string[] pieces `first` to `last`
---@field tail_size integer
local Excerpt = {}
Excerpt.__index = Excerpt

local function new_excerpt(limit)
  return setmetatable({ limit = limit, total = 0, head = {}, head_size = 0, tail = {},
    tail_size = 0, first = 1, last = 0 }, Excerpt)
end

--- Lets go of the oldest pieces of the second half, of which what remains is `room` at least.
local function trim(self, room)
  while self.first <= self.last and self.tail_size - #self.tail[self.first] >= room do
    self.tail_size = self.tail_size - #self.tail[self.first]
    self.tail[self.first] = nil
    self.first = self.first + 1
  end
end

function Excerpt:append(data)
  self.total = self.total + #data
  local half = self.limit - math.floor(self.limit / 2)
  local room = half - self.head_size
  if room > 0 then
    self.head[#self.head + 1] = data:sub(1, room)
    self.head_size = self.head_size + math.min(room, #data)
    data = data:sub(room + 1)
  end
  if data ~= "" and self.limit > half then
    self.last = self.last + 1
    self.tail[self.last] = data
    self.tail_size = self.tail_size + #data
    trim(self, self.limit - half)
  end
end

--- The first and the last half, and how many bytes are missing between them.
function Excerpt:parts()
  local head = table.concat(self.head)
  local tail = table.concat(self.tail, "", self.first, self.last)
  if #head + #tail > self.limit then
    tail = tail:sub(#head - self.limit)
  end
  return head, tail, self.total - #head - #tail
end

-- ---------------------------------------------------------------- pipes

---@class moonsand.Pipe
---@field private mode "collect"|"read"|"tee"
---@field private queue string what came and nobody took yet, from `at` on
---@field private at integer
---@field private more string[] what came after that
---@field private more_size integer
---@field private kept moonsand.Excerpt
---@field private want integer read ahead so much
---@field private dropped integer lost before a reader came
---@field private count integer bytes that came
---@field private over boolean nothing more will come
---@field private closed boolean by the reader, or the writer of an input
---@field private refused boolean nobody reads this input
---@field private signal moonsand.Signal
local Pipe = {}
Pipe.__index = Pipe
Pipe.__name = "moonsand.Pipe"

--- As a waitable: see loop.lua.
function Pipe:add(waiter)
  self.signal:add(waiter)
end

function Pipe:remove(waiter)
  self.signal:remove(waiter)
end

--- How many bytes wait for a reader.
local function size(self)
  return #self.queue - self.at + 1 + self.more_size
end

--- What waits for a reader, in one piece from `at` on.
local function joined(self)
  if self.more_size > 0 then
    self.queue = self.queue:sub(self.at) .. table.concat(self.more)
    self.at, self.more, self.more_size = 1, {}, 0
  end
  return self.queue
end

local function append(self, data)
  self.more[#self.more + 1] = data
  self.more_size = self.more_size + #data
end

local function clear(self)
  self.queue, self.at, self.more, self.more_size = "", 1, {}, 0
end

--- Takes away the first bytes.
local function pull(self, count)
  local queue = joined(self)
  local data = queue:sub(self.at, self.at + count - 1)
  self.at = self.at + count
  if self.at > #queue / 2 then
    self.queue, self.at = queue:sub(self.at), 1
  end
  self.signal:wake()
  return data
end

--- What was collected becomes what a reader reads first.
local function start_reading(self)
  if self.mode ~= "collect" then
    return
  end
  local head, tail, missing = self.kept:parts()
  append(self, head .. tail)
  self.dropped = self.dropped + missing
  self.kept = new_excerpt(self.kept.limit)
  self.mode = "read"
end

--- Takes the first bytes and drops `skip` more.
local function cut(self, count, skip)
  local data = pull(self, count + (skip or 0))
  if self.mode == "tee" then
    self.kept:append(data)
  end
  self.want = HIGH_WATER
  return skip and data:sub(1, count) or data
end

local function nothing(self)
  if self.errno then
    return nil, self.errno
  elseif self.over then
    return nil, "eof"
  elseif self.closed then
    return nil, core.errno.EBADF
  end
  return nil, "again"
end

--- Lets more be read ahead than usual.
local function grow(self, want)
  if want > self.want then
    self.want = want
    self.signal:wake()
  end
end

local function ended(self)
  return self.over or self.closed
end

local function take_line(self, keep_end, max)
  local newline = joined(self):find("\n", self.at, true)
  local length = newline and newline - self.at or size(self)
  if length > max then
    return nil, "too_large"
  elseif newline then
    return keep_end and cut(self, length + 1) or cut(self, length, 1)
  elseif ended(self) and length > 0 then
    return cut(self, length)
  end
  grow(self, length + 1 > HIGH_WATER and max + 1 or HIGH_WATER)
  return nothing(self)
end

local function take_count(self, count)
  local needed = math.max(count, 1)
  if size(self) >= needed then
    return cut(self, count)
  elseif ended(self) and size(self) > 0 then
    return cut(self, size(self))
  end
  grow(self, needed)
  return nothing(self)
end

local function take_all(self, max)
  if size(self) > max then
    return nil, "too_large"
  elseif self.over then
    return cut(self, size(self))
  end
  grow(self, max + 1)
  return nothing(self)
end

--- As the core's: the data; or nil and "again", "eof", "too_large" or an errno.
---@param kind "l"|"L"|"a"|"n"|"chunk"
---@param n? integer the longest line, the most, how many
function Pipe:take(kind, n)
  start_reading(self)
  if kind == "chunk" then
    if size(self) > 0 then
      return cut(self, math.min(size(self), TAKEN))
    end
    return nothing(self)
  elseif kind == "n" then
    return take_count(self, n)
  elseif kind == "a" then
    return take_all(self, n)
  end
  return take_line(self, kind == "L", n)
end

--- What the reader takes is kept for the result too.
function Pipe:tee()
  start_reading(self)
  self.mode = "tee"
end

--- There is no reader any more: what it left, and what comes, is kept.
function Pipe:collect()
  if self.mode ~= "collect" then
    self.kept:append(joined(self):sub(self.at))
    clear(self)
    self.mode = "collect"
    self.signal:wake()
  end
end

--- What was collected, where bytes are missing, how many.
---@return string text, integer at, integer dropped
function Pipe:excerpt()
  local head, tail, missing = self.kept:parts()
  return head .. tail, #head, missing + self.dropped
end

--- The line that begins so many bytes from the front, and where the next one begins; or nil and
--- "again", "eof", "too_large". Takes nothing.
---@param from integer
---@return string? line, integer|string next
function Pipe:peek(from)
  local text, full
  if self.mode == "collect" then
    local head, tail, missing = self.kept:parts()
    text, full = missing > 0 and head or head .. tail, missing > 0
  else
    text, full = joined(self):sub(self.at), size(self) >= self.want
  end
  self.peeked = true
  local at = text:find("\n", from + 1, true)
  if at then
    return text:sub(from + 1, at - 1), at
  elseif ended(self) and from < #text then
    return text:sub(from + 1), #text
  end
  return nil, ended(self) and "eof" or full and "too_large" or "again"
end

---@return integer bytes that came
function Pipe:received()
  return self.count
end

---@return integer bytes that wait for a reader
function Pipe:unread()
  return size(self)
end

---@return boolean
function Pipe:ended()
  return ended(self)
end

--- For streams that are served late; here they always are.
function Pipe.watch() end

--- What was collected has been taken; nothing more is wanted. Not while somebody reads it.
function Pipe:release()
  if self.mode ~= "read" then
    self.kept = new_excerpt(self.kept.limit)
    clear(self)
    self.mode, self.over = "read", true
    self:close()
  end
end

--- The reader wants no more; or, of an input, the writer is done and what was written is dropped.
function Pipe:close()
  if not self.closed then
    self.closed = true
    self.signal:wake()
  end
end

-- ---------------------------------------------------------------- an input's writer

--- How many bytes were accepted; or nil and "again" or an errno.
---@param data string
---@param from? integer
function Pipe:write(data, from)
  from = from or 1
  if self.refused or self.over or self.closed then
    return nil, core.errno.EPIPE
  end
  local room = HIGH_WATER - size(self)
  if room <= 0 and from <= #data then
    return nil, "again"
  end
  local piece = data:sub(from, from + room - 1)
  append(self, piece)
  self.signal:wake()
  return #piece
end

--- All of it, and then the end.
function Pipe:feed(data)
  append(self, data)
  self:shutdown()
end

--- No more will be written.
function Pipe:shutdown()
  self.over = true
  self.signal:wake()
end

-- ---------------------------------------------------------------- the provider's side

--- Hands on output, however far behind the reader is. False: nobody wants it any more.
---@param data string
---@return boolean wanted
function Pipe:push(data)
  if self.closed or self.over then
    return false
  end
  self.count = options.integer(self.count + #data)
  if self.mode == "collect" then
    local before = self.kept.total
    self.kept:append(data)
    if self.peeked or before <= self.kept.limit and self.kept.total > self.kept.limit then
      self.signal:wake()
    end
  else
    append(self, data)
    self.signal:wake()
  end
  return true
end

--- The same, and waits while the reader is behind.
---@param data string
---@param limits? moonsand.Limits
---@return boolean? wanted, string? message, string? code, table? detail
function Pipe:put(data, limits)
  if not self:push(data) then
    return false
  end
  while self.mode ~= "collect" and size(self) >= self.want and not self.closed do
    local message, code, detail = loop.wait(limits, self)
    if message then
      return nil, message, code, detail
    end
  end
  return not self.closed
end

--- Nothing more will come; with an errno, because it failed.
---@param errno? integer
function Pipe:finish(errno)
  if not self.over then
    self.over, self.errno = errno == nil, errno
    self.signal:wake()
  end
end

--- The next piece of an input; nil at its end.
---@param limits? moonsand.Limits
---@return string? data, string? message, string? code, table? detail
function Pipe:get(limits)
  while true do
    if size(self) > 0 then
      return pull(self, math.min(size(self), TAKEN))
    elseif self.over or self.closed or self.refused then
      return nil
    end
    local message, code, detail = loop.wait(limits, self)
    if message then
      return nil, message, code, detail
    end
  end
end

--- Nobody reads this input: its writers get `closed`.
function Pipe:refuse()
  self.refused = true
  clear(self)
  self.signal:wake()
end

---@param limit? integer what is collected at most; 0 if nil
---@return moonsand.Pipe
function M.new(limit)
  return setmetatable({
    mode = "collect",
    queue = "",
    at = 1,
    more = {},
    more_size = 0,
    kept = new_excerpt(limit or 0),
    want = HIGH_WATER,
    dropped = 0,
    count = 0,
    over = false,
    errno = nil,
    closed = false,
    refused = false,
    peeked = false,
    signal = loop.signal(),
  }, Pipe)
end

return M
