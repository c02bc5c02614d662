--- What programs of ours inside are given to read.

local loop = require "moonsand.loop"

--- Writes all of it: true; false when the program wants no more; nil when a limit was hit.
---@param stdin userdata as src/stream.c has it, or of the same calls
---@param data string
---@param limits moonsand.Limits
---@return boolean? taken, string? message, string? code, table? detail
return function(stdin, data, limits)
  local from = 1
  while from <= #data do
    local count, why = stdin:write(data, from)
    if count then
      from = from + count
    elseif why ~= "again" then
      return false
    else
      local message, code, detail = loop.wait(limits, stdin)
      if message then
        return nil, message, code, detail
      end
    end
  end
  return true
end
