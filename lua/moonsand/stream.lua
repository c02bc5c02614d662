--- Bytes that come and go: the output of a program, its input, a connection. Written against the
--- few calls of a provider's stream (`take`, `write`, `shutdown`, `close`, `id`, `arm`), which never
--- wait.

local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local options = require "moonsand.options"

local M = {}

---@class moonsand.Stream
---@field private raw table the provider's stream
---@field private name string for messages
---@field private max_line integer
---@field private max_all integer
local Stream = {}
Stream.__index = Stream
Stream.__name = "moonsand.Stream"

local MAX_LINE = 1024 * 1024
local MAX_ALL = 16 * 1024 * 1024

local WAIT = { timeout = "number", cancel = "table" }
local READ = { timeout = "number", cancel = "table", max_line = "number|string", max = "number|string" }

Stream.__tostring = function(self)
  return ("moonsand.Stream (%s%s)"):format(self.name, self.closed and ", closed" or "")
end

--- What `read` is asked for: a kind that `take` knows and a count. As in `io`, with or without `*`.
local function parse_what(call, what, opts, self)
  if type(what) == "number" then
    if what < 0 or what % 1 ~= 0 or what > 2 ^ 53 then
      errors.raise(3, "%s: cannot read %s bytes", call, what)
    end
    return "n", what
  end
  local kind = what == nil and "l" or type(what) == "string" and what:match "^%*?([lLa])"
  if not kind then
    errors.raise(3, "%s: cannot read %s (\"l\", \"L\", \"a\" or a number)", call, options.quote(what))
  end
  if kind == "a" then
    return kind, opts.max or self.max_all
  end
  return kind, opts.max_line or self.max_line
end

local function sizes(opts)
  for _, name in ipairs { "max", "max_line" } do
    if type(opts[name]) == "string" then
      local bytes, message, code, detail = options.size(name, opts[name])
      if not bytes then
        return nil, message, code, detail
      end
      opts = setmetatable({ [name] = bytes }, { __index = opts })
    end
  end
  return opts
end

local function fail(self, code, message, detail)
  detail = detail or {}
  detail.provider = self.provider
  return errors.fail(code, message, detail)
end

--- Why the provider's stream gave or took nothing: an errno, or a failure's detail.
local function refused(self, errno, detail)
  if self.closed then
    return fail(self, "closed", self.name .. " was closed", detail)
  end
  if type(errno) == "table" then
    return errors.fail(errno.code, errno.message, errno)
  end
  local _, message, code = errors.errno(errno, self.name)
  return fail(self, code, message, detail)
end

--- Who reads has the stream from now on, as long as it lives.
local function own(self)
  self.owner, self.task = coroutine.running() or "main", loop.owner()
end

--- The coroutine that read is no more.
local function forget_reader(self)
  self.owner, self.task, self.reader = nil, nil, false
end

--- Tries, waits, tries again. The stream has one reader at a time. What ends the wait besides is
--- `other`, a waitable: then nil, "over".
local function take(self, kind, n, limits, level, other)
  if self.reader then
    errors.raise(level + 1, "%s: another coroutine is reading this stream", self.name)
  elseif self.write_only then
    return fail(self, "unsupported", self.name .. " is written, not read")
  end
  own(self)
  local raw = self.raw
  while true do
    local data, why = raw:take(kind, n)
    if data then
      return data
    elseif why == "eof" then
      return nil
    elseif why == "too_large" then
      return fail(self, "too_large", ("%s: more than %d bytes%s"):format(self.name, n,
        kind == "a" and "" or " without a newline"))
    elseif why ~= "again" then
      return refused(self, why)
    end
    local mark = self.owner
    self.reader = mark
    local guard = loop.guard(forget_reader, self)
    local message, code, detail = loop.wait(limits, raw, other)
    loop.unguard(guard)
    if self.reader == mark then
      self.reader = false
    end
    if self.closed then -- what is there is no end
      return fail(self, "closed", self.name .. " was closed")
    elseif message then
      return fail(self, code, ("%s: %s"):format(self.name, message), detail)
    elseif other then
      return nil, "over"
    end
  end
end

---@return boolean
function M.is(value)
  return getmetatable(value) == Stream
end

--- Takes a stream from a reader that will not go on.
function M.release(stream, reader)
  if stream.owner == reader then
    stream.owner, stream.task = nil, nil
  end
  if stream.reader == reader then
    stream.reader = false
  end
end

--- A chunk if there is one now; else nil and "again", or why there is none.
---@return string? data, string|integer|nil why
function Stream:try(level)
  if self.reader then
    errors.raise(level + 1, "%s: another coroutine is reading this stream", self.name)
  end
  own(self)
  return self.raw:take("chunk", 0)
end

local function forget_readers(list)
  for _, stream in ipairs(list) do
    forget_reader(stream)
  end
end

--- Waits for one of several streams, all of which have this reader meanwhile, or for `other`.
---@return string? message, string? code, table? detail
function M.wait(limits, other, list)
  for _, stream in ipairs(list) do
    stream.reader = true
  end
  local first, second = list[1], list[2]
  local guard = loop.guard(forget_readers, list)
  local message, code, detail = loop.wait(limits, other, first.raw, second and second.raw)
  loop.unguard(guard)
  for _, stream in ipairs(list) do
    stream.reader = false
  end
  return message, code, detail
end

--- What there is, for the input of a program; nil, too, when the program ends first.
---@param stream moonsand.Stream
---@param program table as a provider gives it
---@return string? data, string? message, string? code, table? detail
function M.chunk_for(stream, program)
  while not program:ended() do
    local data, why, code, detail = take(stream, "chunk", 0, nil, 2, program:waitable())
    if data or why ~= "over" then
      return data, why, code, detail
    end
  end
end

local function check_open(self, call, level)
  if self.closed then
    errors.raise(level + 1, "%s: the stream is closed", call)
  end
end

--- Reads as `io` does: "l" (default) a line without its end, "L" with it, "a" all, n bytes (fewer
--- only at the end). nil is the end; nil, message, code, detail a failure; what has arrived when a
--- timeout strikes is there for the next read.
---@param what? string|integer
---@param opts? { timeout?: number, cancel?: moonsand.Token, max_line?: integer, max?: integer }
---@return string? data, string? message, string? code, table? detail
function Stream:read(what, opts)
  opts = options.check("stream:read", opts, READ)
  check_open(self, "stream:read", 2)
  local message, code, detail
  opts, message, code, detail = sizes(opts)
  if not opts then
    return fail(self, code, message, detail)
  end
  local kind, n = parse_what("stream:read", what, opts, self)
  return errors.outcome(take(self, kind, n, loop.limits(opts), 2))
end

--- What there is: at least one byte, at most 256 KiB.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return string? data, string? message, string? code, table? detail
function Stream:chunk(opts)
  opts = options.check("stream:chunk", opts, WAIT)
  check_open(self, "stream:chunk", 2)
  return errors.outcome(take(self, "chunk", 0, loop.limits(opts), 2))
end

---@class moonsand.Iterator callable: `for x in it do`; `it:next(opts)`; `it:close()`
local Iterator = {}
Iterator.__index = Iterator
Iterator.__name = "moonsand.Iterator"

--- nil at the end, nil, message, code, detail for a failure. Whatever is not the end raises in `for`.
Iterator.__call = function(self)
  local a, b, code, detail = self.step(self.state, nil)
  if a == nil and code then
    error(errors.object(code, b, detail), 0)
  end
  return a, b
end

--- The next value; nil at the end; or nil, message, code, detail.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
function Iterator:next(opts)
  opts = opts ~= nil and options.check("iterator:next", opts, WAIT) or nil
  local a, b, code, detail = self.step(self.state, opts)
  return a, b, code, detail
end

function Iterator:close()
  if self.on_close then
    self.on_close()
  end
end

Iterator.__close = Iterator.close

--- A callable iterator over `step(state, opts)`, which answers values, nil, or a failure. `step`
--- should be no closure: LuaJIT's traces keep the functions of hot loops alive, and so would what
--- they hold.
---@param step fun(state: any, opts: table?): any
---@param state any
---@param on_close? fun()
---@return moonsand.Iterator
function M.iterator(step, state, on_close)
  return setmetatable({ step = step, state = state, on_close = on_close }, Iterator)
end

local function next_line(state, opts)
  local kind = state.kind
  local data, message, code, detail =
    take(state.stream, kind, state.n, loop.limits(opts or state.opts), 3)
  if data == "" and kind == "a" then
    return nil -- all was read, the end would be "" for ever
  end
  return errors.outcome(data, message, code, detail)
end

--- Lines, or whatever `what` says, one after the other.
---@param what? string|integer
---@param opts? table
---@return moonsand.Iterator
function Stream:lines(what, opts)
  opts = options.check("stream:lines", opts, READ)
  check_open(self, "stream:lines", 2)
  local sized, message = sizes(opts)
  if not sized then
    errors.raise(2, "stream:lines: %s", message)
  end
  local kind, n = parse_what("stream:lines", what, sized, self)
  return M.iterator(next_line, { stream = self, kind = kind, n = n, opts = opts })
end

--- Pieces as they come.
---@param opts? table
---@return moonsand.Iterator
function Stream:chunks(opts)
  opts = options.check("stream:chunks", opts, WAIT)
  check_open(self, "stream:chunks", 2)
  return M.iterator(next_line, { stream = self, kind = "chunk", n = 0, opts = opts })
end

--- Writes all of it, waiting while the other side has no room. A timeout says how much went out
--- (`detail.written`).
---@param data string|number
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.Stream? self, string? message, string? code, table? detail
function Stream:write(data, opts)
  opts = options.check("stream:write", opts, WAIT)
  if type(data) == "number" then
    data = tostring(data)
  elseif type(data) ~= "string" then
    errors.raise(2, "stream:write: data must be a string, got %s", type(data))
  end
  check_open(self, "stream:write", 2)
  local limits, raw, from = loop.limits(opts), self.raw, 1
  repeat
    local count, why = raw:write(data, from)
    if count then
      from = from + count
    elseif why == "again" then
      local message, code, detail = loop.wait(limits, raw)
      if message then
        detail.written = from - 1
        return fail(self, code, ("%s: %s"):format(self.name, message), detail)
      end
    else
      return refused(self, why, { written = from - 1 })
    end
  until from > #data
  return self
end

--- Says that no more will be written; reading goes on.
function Stream:shutdown()
  if not self.closed then
    self.raw:shutdown()
  end
end

--- Only files can.
function Stream:seek()
  return fail(self, "unsupported", self.name .. " cannot seek")
end

--- Ends it, at once. Coroutines that wait on it get `closed`. Idempotent.
function Stream:close()
  if not self.closed then
    self.closed = true
    self.raw:close()
  end
end

Stream.__close = Stream.close

--- The Stream over a provider's stream.
---@param raw table
---@param name string for messages: "stdout"
---@param limit? integer the most that "a" may give
---@param from? table what it belongs to and keeps alive; its `box` names the provider
---@return moonsand.Stream
function M.new(raw, name, limit, from)
  return setmetatable({
    raw = raw,
    name = name,
    max_line = MAX_LINE,
    max_all = limit or MAX_ALL,
    from = from,
    provider = from and from.box.provider,
    write_only = from ~= nil and name == "stdin",
    reader = false, -- the coroutine that waits for data
    owner = nil, -- the coroutine that read last
    task = nil, -- the task that it is of
    closed = false,
  }, Stream)
end

return M
