--- What came of a program, as one JSON object.

local errors = require "moonsand.errors"

local M = {}

local RESULT = {
  "ok", "status", "exit_code", "signal", "signal_number", "timed_out", "limit", "duration",
  "stdout_bytes", "stderr_bytes", "truncated", "usage", "pipes_held", "stage", "error",
}

--- Whether a text is UTF-8, as JSON has to be: no overlong forms, no surrogates.
local function is_utf8(text)
  local at, length = 1, #text
  while true do
    at = text:find("[\128-\255]", at)
    if not at then
      return true
    end
    local a, b, c, d = text:byte(at, math.min(at + 3, length))
    local function tail(byte, low, high)
      return byte ~= nil and byte >= (low or 0x80) and byte <= (high or 0xBF)
    end
    if a >= 0xC2 and a <= 0xDF and tail(b) then
      at = at + 2
    elseif a >= 0xE0 and a <= 0xEF and tail(b, a == 0xE0 and 0xA0, a == 0xED and 0x9F) and tail(c) then
      at = at + 3
    elseif a >= 0xF0 and a <= 0xF4 and tail(b, a == 0xF0 and 0x90, a == 0xF4 and 0x8F) and tail(c)
      and tail(d) then
      at = at + 4
    else
      return false
    end
  end
end
M.is_utf8 = is_utf8

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

--- Bytes as base64.
local function base64(text)
  return (text:gsub("..?.?", function(group)
    local a, b, c = group:byte(1, 3)
    local number = a * 65536 + (b or 0) * 256 + (c or 0)
    local letters = {}
    for i = 4, 1, -1 do
      local place = number % 64
      number = (number - place) / 64
      letters[i] = ALPHABET:sub(place + 1, place + 1)
    end
    return table.concat(letters, "", 1, #group + 1) .. ("="):rep(3 - #group)
  end))
end
M.base64 = base64

--- The module cjson, or why it cannot be.
---@return table? cjson, string? message, string? code, table? detail
function M.codec()
  local there, cjson = pcall(require, "cjson")
  if not there then
    return errors.fail("unavailable", "--json: the module cjson is not found",
      { cause = "the module cjson is not found", fix = "apt install lua-cjson" })
  end
  return cjson
end

--- What JSON can say of a Result.
---@param result moonsand.Result
---@return table
function M.of_result(result)
  local object = {}
  for _, name in ipairs(RESULT) do
    object[name] = result[name]
  end
  for _, name in ipairs { "stdout", "stderr" } do
    local text = result[name]
    if is_utf8(text) then
      object[name] = text
    else
      object[name .. "_base64"] = base64(text)
    end
  end
  return object
end

--- What JSON can say of a value: text that is not UTF-8 loses what is not.
function M.of_value(value)
  if type(value) == "string" and not is_utf8(value) then
    return (value:gsub("[\128-\255]", "?"))
  elseif type(value) ~= "table" then
    return value
  end
  local copy = {}
  for key, each in pairs(value) do
    copy[key] = M.of_value(each)
  end
  return copy
end

--- The same of a list, of which nothing but its members is said.
function M.of_list(list)
  local copy = {}
  for i, each in ipairs(list) do
    copy[i] = M.of_value(each)
  end
  return copy
end

local function plain(value)
  local kind = type(value)
  return kind == "number" or kind == "boolean" or kind == "string" and is_utf8(value)
end

--- The same of a failure: its message and its code, and of its detail what is plain.
---@param message string
---@param code string
---@param detail? table
---@return table
function M.of_failure(message, code, detail)
  local err = {}
  for name, value in pairs(detail or {}) do
    if type(name) == "string" and plain(value) then
      err[name] = value
    end
  end
  err.message = is_utf8(message) and message or message:gsub("[\128-\255]", "?")
  err.code = code
  return { ok = false, error = err }
end

return M
