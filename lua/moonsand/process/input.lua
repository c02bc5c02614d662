--- What a program is given to read: functions, files, streams of other programs.

local errors = require "moonsand.errors"
local loop = require "moonsand.loop"
local streams = require "moonsand.stream"

local M = {}

--- What can be no input raises at the caller's line, before anything is started.
function M.check(call, input, interactive, level)
  if input == true and not interactive then
    errors.raise(level + 1, '%s: stdin must not be true: a pipe needs box:start', call)
  elseif io.type(input) == "closed file" then
    errors.raise(level + 1, "%s: stdin is a closed file", call)
  elseif streams.is(input) and (input.closed or input.reader) then
    errors.raise(level + 1, "%s: stdin is a stream that %s", call,
      input.closed and "is closed" or "another coroutine is reading")
  end
end

-- What gives the next piece of an input. No closures: LuaJIT's traces keep the functions of hot
-- loops alive, and so would the streams that they hold.

local function next_of_file(_, file)
  local data, reason, errno = file:read(65536)
  return data, reason, reason and errors.code(errno)
end

local function next_of_stream(program, stream)
  return streams.chunk_for(stream, program)
end

local function next_of_function(_, fn)
  return fn()
end

local function reader_of(input)
  return io.type(input) and next_of_file or streams.is(input) and next_of_stream or next_of_function
end

--- Writes what the source gives until it ends. Answers nothing, or the source's own failure.
---@param program table
---@param input function|file*|moonsand.Stream|table
---@return any message, any code, any detail
function M.pour(program, input)
  local read, raw = reader_of(input), program.stdin
  while not program:ended() do
    local data, message, code, detail = read(program, input)
    if data == nil then
      raw:shutdown()
      return message, code, detail
    elseif type(data) == "number" then
      data = tostring(data)
    elseif type(data) ~= "string" then
      error(("moonsand: stdin: the function must give strings, got %s"):format(type(data)), 0)
    end
    local from = 1
    while from <= #data do
      local count, why = raw:write(data, from)
      if count then
        from = from + count
      elseif why ~= "again" then
        return -- it does not want more: no error
      elseif loop.wait(nil, raw) then
        return
      end
    end
  end
end

return M
