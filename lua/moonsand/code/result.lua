--- What a run of source text leaves, beyond a Result: the value on its last line, both streams as
--- one, what its traceback says.

local failures = require "moonsand.code.failures"
local options = require "moonsand.options"

local M = {}

---@class moonsand.CodeResult: moonsand.Result
---@field text? string the value of the last expression, as the language shows it
---@field value? any the last line of stdout, decoded, when it is JSON (and lua-cjson is there)
---@field displays table[] what was shown, in rich forms: { ["text/plain"] = …, ["image/png"] = … }
---@field output string both streams as at a prompt, the last newline off
---@field error? { name: string, message: string, traceback: string }
---@field files? table<string, string>
---@field missing_files? string[]
---@field stage "install"|"compile"|"run"
---@field execution_count? integer
---@field state_kept? boolean of an interpreter: what it knew before is still there
local CodeResult = {}
CodeResult.__index = CodeResult
CodeResult.__name = "moonsand.CodeResult"

--- Larger lines are not decoded, longer tails not searched for a traceback: what comes from inside
--- must not keep the host busy.
local MAX_VALUE, MAX_DEPTH = 1024 * 1024, 100
local MAX_TAIL, MAX_TAIL_LINE = 16384, 1000
local MAX_TURNS = 10000

local json -- a decoder of our own; false when there is no lua-cjson

local function decoder()
  if json == nil then
    local there, cjson = pcall(require, "cjson")
    json = there and cjson.new() or false
    if json then
      json.decode_invalid_numbers(false)
      json.decode_max_depth(MAX_DEPTH)
    end
  end
  return json
end

--- Without null, and with whole numbers as integers where Lua has them.
local function plain(value)
  if value == json.null then
    return nil
  elseif type(value) == "number" then
    return math.abs(value) < 2 ^ 53 and value % 1 == 0 and options.integer(value) or value
  elseif type(value) == "table" then
    for key, item in pairs(value) do
      value[key] = plain(item)
    end
  end
  return value
end

--- The last line of stdout, decoded when it is JSON.
local function read_value(r)
  local last = r.stdout:sub(-MAX_VALUE - 2):gsub("\r?\n$", "")
  local from = #last
  while from > 0 and last:byte(from) ~= 10 do
    from = from - 1
  end
  last = last:sub(from + 1)
  local cut = r.truncated and r.truncated.stdout
  if #last > MAX_VALUE or cut and #r.stdout - #last - 2 < cut.at
    or not last:find '^%s*[%[{"%-%dtf]' or not decoder() then
    return nil
  end
  local ok, value = pcall(json.decode, last)
  if ok then
    return plain(value)
  end
end

--- The last lines of a text.
---@param text string
---@return string[]
function M.tail(text)
  local lines = {}
  if #text > MAX_TAIL then
    text = text:sub(-MAX_TAIL):gsub("^[^\n]*\n", "", 1)
  end
  for line in text:gsub("\n$", ""):gmatch "([^\n]*)\n?" do
    lines[#lines + 1] = line:sub(1, MAX_TAIL_LINE)
  end
  while lines[1] and lines[#lines] == "" do
    lines[#lines] = nil
  end
  return lines
end

--- What went wrong, as far as its stderr tells.
local function read_error(r, language)
  local read = r.stage == "compile" and failures.compiler or language.failure
  if r.ok or r.timed_out or not read then
    return nil
  end
  local lines = M.tail(r.stderr)
  local name, message, first = read(lines)
  if name then
    return { name = name, message = message, traceback = table.concat(lines, "\n", first) }
  end
end

--- Notes in which order the streams came: the lengths of turns, stdout's first. Answers them, and
--- the two callbacks that exec is to be given.
function M.note_order(opts)
  local turns, current = { 0 }, "stdout"
  if (opts.stdout or "collect") ~= "collect" or (opts.stderr or "collect") ~= "collect" then
    return nil, opts.on_stdout, opts.on_stderr
  end
  local function noting(name, callback)
    return function(data, process)
      if name ~= current and #turns < MAX_TURNS then
        turns[#turns + 1], current = 0, name
      end
      if name == current then
        turns[#turns] = turns[#turns] + #data
      end
      if callback then
        callback(data, process)
      end
    end
  end
  return turns, noting("stdout", opts.on_stdout), noting("stderr", opts.on_stderr)
end

--- Both streams in the order in which they came.
local function read_output(r, turns)
  local output
  if r.stdout == "" or r.stderr == "" or r.truncated or not turns then
    output = r.stdout .. r.stderr
  else
    local pieces, at, name = {}, { stdout = 1, stderr = 1 }, "stdout"
    for i, length in ipairs(turns) do
      pieces[i] = r[name]:sub(at[name], at[name] + length - 1)
      at[name] = at[name] + length
      name = name == "stdout" and "stderr" or "stdout"
    end
    pieces[#pieces + 1] = r.stdout:sub(at.stdout)
    pieces[#pieces + 1] = r.stderr:sub(at.stderr)
    output = table.concat(pieces)
  end
  return (output:gsub("\n$", ""))
end

--- Makes a CodeResult of a Result.
---@param r moonsand.Result
---@param language moonsand.Language
---@param turns? integer[] as from `note_order`
---@return moonsand.CodeResult
function M.complete(r, language, turns)
  CodeResult.__tostring = CodeResult.__tostring or getmetatable(r).__tostring
  r.displays = {}
  r.execution_count = 1
  r.output = read_output(r, turns)
  r.value = r.stage == "run" and read_value(r) or nil
  r.error = read_error(r, language)
  return setmetatable(r, CodeResult)
end

--- Makes a CodeResult of a Result, what an interpreter told of the end and what it showed.
---@param r moonsand.Result
---@param told { text: string?, error: table?, execution_count: integer? }
---@param displays table[]
---@param turns? integer[] as from `note_order`
---@return moonsand.CodeResult
function M.of_interpreter(r, told, displays, turns)
  CodeResult.__tostring = CodeResult.__tostring or getmetatable(r).__tostring
  r.stage = "run"
  r.text, r.error, r.execution_count = told.text, told.error, told.execution_count
  r.displays = displays
  r.output = read_output(r, turns)
  r.value = read_value(r)
  return setmetatable(r, CodeResult)
end

--- It was the compiling that failed, as its last words show.
---@param r moonsand.Result
---@param language moonsand.Language
function M.reconsider(r, language)
  local lines = language.misfit and not r.ok and M.tail(r.stderr) or {}
  if lines[1] and lines[#lines]:find(language.misfit) then
    r.stage = "compile"
    if getmetatable(r) == CodeResult then
      r.value, r.error = nil, read_error(r, language)
    end
  end
end

return M
