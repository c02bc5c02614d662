--- What a failed program says about it: from the last lines of its stderr to a name, a message and
--- the line with which the traceback begins. Written for lines that are not too many nor too long,
--- since all of it comes from inside.

local M = {}

--- The lines from one on, joined.
local function rest(lines, from, to)
  return table.concat(lines, "\n", from, math.max(from - 1, to or #lines))
end

--- The last line that a pattern matches, and its captures.
local function last_match(lines, pattern)
  for i = #lines, 1, -1 do
    local a, b, c = lines[i]:match(pattern)
    if a then
      return i, a, b, c
    end
  end
end

--- The first line from `from` on that is like this.
local function next_match(lines, pattern, from)
  for i = from, #lines do
    if lines[i]:find(pattern) then
      return i
    end
  end
end

function M.python(lines)
  local head = last_match(lines, "^Traceback %(most recent call last%):")
    or last_match(lines, '^  File "')
  local at = head and next_match(lines, "^[%a_]", head + 1)
    or last_match(lines, "^[%a_][%w_.]*Error: ") -- no frame of the user
  if not at then
    return nil
  end
  head = head or at
  local name, message = lines[at]:match "^([%w_.]+):%s?(.*)$"
  name = name or lines[at]:match "^[%w_.]+$"
  if name and at < #lines then
    message = (message or "") .. "\n" .. rest(lines, at + 1)
  end
  local first = next_match(lines, "^Traceback %(", 1) or head
  return name, message or "", first
end

function M.node(lines)
  local caret = next_match(lines, "^%s*%^+%s*$", 1)
  local at = caret and next_match(lines, "%S", caret + 1)
  if not at then
    return nil
  end
  local last = (next_match(lines, "^    at ", at) or next_match(lines, "^%(Use `node ", at)
    or next_match(lines, "^$", at) or #lines + 1) - 1
  local name, message = lines[at]:match "^([%w_$.]+):%s?(.*)$"
  if not name then
    name, message = lines[at]:match "^([%w_$.]+) %b[]:%s?(.*)$"
  end
  name = name or lines[at]:match "^[%w_$.]*Error$"
  if name and last > at then
    message = (message or "") .. "\n" .. rest(lines, at + 1, last)
  end
  return name or "Uncaught", message or name and "" or rest(lines, at, last), at
end

function M.ruby(lines)
  for i, line in ipairs(lines) do
    local message, name = line:match "^[^:]+:%d+:in [`'][^']*': (.*) %(([%w_:]+)%)$"
    if not message then
      message, name = line:match "^[^:]+:%d+: (.*) %(([%w_:]+)%)$"
    end
    if message then
      return name, message, i
    end
  end
  local at, message = last_match(lines, "^[^:]+:%d+: (syntax error.*)$")
  if at then
    return "SyntaxError", message, at
  end
end

function M.perl(lines)
  local at, message = last_match(lines, "^(.*) at %S+ line %d+[.,]")
  if at then
    return "Error", message, at
  end
end

function M.php(lines)
  for i, line in ipairs(lines) do
    local name, message = line:match "Fatal error:%s+Uncaught ([%w_\\]+): (.*)$"
    if not name then
      name, message = line:match "(%u%l+ error):%s+(.*)$"
    end
    if name then
      message = message:gsub(" in %S+:%d+$", ""):gsub(" in %S+ on line %d+$", "")
      return (name:gsub(" error$", "Error")), message, i
    end
  end
end

function M.lua(lines)
  for i, line in ipairs(lines) do
    local message = line:match "^lua[%w.]*: (.*)$"
    if message then
      local last = (next_match(lines, "^stack traceback:", i) or #lines + 1) - 1
      message = message:gsub("^[^:]+:(%d+): ", "", 1)
      return "Error", last > i and message .. "\n" .. rest(lines, i + 1, last) or message, i
    end
  end
end

function M.shell(lines)
  local at, message = last_match(lines, "^%S+: line %d+: (.*)$")
  if not at then
    at, message = last_match(lines, "^%S+: %d+: (.*)$")
  end
  if at then
    return "Error", message, at
  end
end

function M.java(lines)
  for i, line in ipairs(lines) do
    local name, message = line:match '^Exception in thread "[^"]*" ([%w_.$]+):?%s?(.*)$'
    if name then
      local last = (next_match(lines, "^%s+at ", i) or #lines + 1) - 1
      return name, last > i and message .. "\n" .. rest(lines, i + 1, last) or message, i
    end
  end
end

function M.panic(lines)
  for i, line in ipairs(lines) do
    local message = line:match "^panic: (.*)$" or line:match "^fatal error: (.*)$"
      or line:match "^thread '[^']*' panicked at '(.*)', "
    if message then
      return "panic", message, i
    elseif line:find "^thread '[^']*' .*panicked at .*:$" then
      return "panic", lines[i + 1] or "", i
    end
  end
end

function M.cpp(lines)
  local at, name = last_match(lines, "^terminate called after throwing an instance of '(.*)'$")
  if at then
    return name, (lines[at + 1] or ""):match "^%s*what%(%):%s*(.*)$" or "", at
  end
end


--- What a compiler complained about first.
function M.compiler(lines)
  local at = next_match(lines, "%f[%w]error%f[%W]", 1)
  return "CompileError", lines[at or #lines] or "", at or 1
end

return M
