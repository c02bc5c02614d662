--- The callbacks of a program: what each piece of its output goes through.

local M = {}

--- `on_line` gives a longer line in pieces.
local MAX_LINE = 1024 * 1024

--- More than what is read ahead of a pipe and what the kernel lets it hold.
local MAX_PIPE = 2 * 1024 * 1024

--- Splits what comes into lines for `on_line`; the last one may lack its end.
local function line_splitter(emit)
  local rest, length = {}, 0
  return function(data)
    if data == nil then
      local last = table.concat(rest)
      rest = {}
      if last ~= "" then
        emit(last)
      end
      return
    end
    local from = 1
    while true do
      local at = data:find("\n", from, true)
      if not at then
        break
      end
      rest[#rest + 1] = data:sub(from, at - 1)
      emit(table.concat(rest))
      rest, length, from = {}, 0, at + 1
    end
    if from <= #data then
      rest[#rest + 1] = data:sub(from)
      length = length + #data - from + 1
    end
    if length >= MAX_LINE then
      emit(table.concat(rest))
      rest, length = {}, 0
    end
  end
end

local function host_writer(name)
  return function(data)
    local file = io[name]
    file:write(data)
    file:flush()
  end
end

--- What each stream's data goes through: name -> list of functions of (data or nil at the end).
---@param process moonsand.Process handed on to the callbacks
---@param opts table
---@return table<string, function[]>?
function M.make(process, opts)
  local handlers
  for _, name in ipairs { "stdout", "stderr" } do
    local raw, list = process.program[name], {}
    local sink, callback = process.plan.sinks[name], opts["on_" .. name]
    if sink == "inherit" then
      sink = host_writer(name)
    end
    local collected = sink == "collect"
    local function add(fn)
      list[#list + 1] = function(data)
        if data then
          fn(data, process)
        end
      end
    end
    if not collected and sink and sink ~= "discard" then
      add(sink)
    end
    if callback then
      add(callback)
    end
    if opts.on_line and raw then
      list[#list + 1] = line_splitter(function(line)
        opts.on_line(line, name)
      end)
    end
    if raw and #list > 0 then
      handlers = handlers or {}
      handlers[name] = list
      if collected then
        raw:tee()
      end
    end
  end
  return handlers
end

--- A piece of one stream: how many bytes.
local function give(list, stream)
  local data = stream:take("chunk", 0)
  if not data then
    return 0
  end
  for _, handle in ipairs(list) do
    handle(data)
  end
  return #data
end

--- Gives the callbacks a piece of each stream. They may wait, and raise.
---@param handlers table<string, function[]>
---@param program table
---@return boolean moved false: there was nothing
function M.pump(handlers, program)
  local moved = 0
  for _, name in ipairs { "stdout", "stderr" } do
    if handlers[name] then
      moved = moved + give(handlers[name], program[name])
    end
  end
  return moved > 0
end

--- Gives them the rest, and says that it was. What had been read ahead, and what a pipe holds, is of
--- the program that is over; who else has the pipe may write into it for ever.
function M.finish(handlers, program)
  for _, name in ipairs { "stdout", "stderr" } do
    local list, stream = handlers[name], program[name]
    local left = list and MAX_PIPE + (stream.unread and stream:unread() or 0) or 0
    while left > 0 do
      local count = give(list, stream)
      left = count > 0 and left - count or 0
    end
  end
  for _, name in ipairs { "stdout", "stderr" } do
    for _, handle in ipairs(handlers[name] or {}) do
      handle(nil)
    end
  end
end

return M
