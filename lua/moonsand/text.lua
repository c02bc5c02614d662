--- Text from inside a sandbox, taken apart. It may be megabytes of anything, so each of these costs
--- time in proportion to it: a pattern that is tried at every byte, and runs on from each, does not.

local M = {}

--- Lines are looked for in so much of the end of a text.
local MAX_TAIL = 64 * 1024

--- The last line with something in it; nil when there is none.
---@param text string
---@return string?
function M.last_line(text)
  for line in text:sub(-MAX_TAIL):reverse():gmatch "[^\n]+" do
    if line:find "%S" then
      return line:reverse()
    end
  end
end

--- What a message gives as the reason: what follows its last ": ". nil when there is none.
---@param message string
---@return string?
function M.reason(message)
  local trimmed = message:match "^.*%S"
  return trimmed and trimmed:match "^.*: ([^:\n]+)$"
end

--- A message that names a path and ends with a reason, as `find: '/x': Permission denied`: what is
--- before the last ": ", and what is behind it.
---@param line string
---@return string? about, string? reason
function M.blame(line)
  return line:match "^(.*): ([^:]+)$"
end

--- The variables of an environment, as /proc has it.
---@param text string
---@return table<string, string>
function M.variables(text)
  local variables = {}
  for pair in text:gmatch "[^%z]+" do
    local at = pair:find("=", 1, true)
    if at and at > 1 then
      variables[pair:sub(1, at - 1)] = pair:sub(at + 1)
    end
  end
  return variables
end

--- Words that are ended by a NUL each, the last one perhaps not; as many as are wanted.
---@param text string
---@param most? integer
---@return string[]
function M.words(text, most)
  local list = {}
  for word in (text .. "\0"):gmatch "([^%z]*)%z" do
    if #list == most then
      return list
    end
    list[#list + 1] = word
  end
  if list[#list] == "" then -- what followed the last NUL
    list[#list] = nil
  end
  return list
end

return M
