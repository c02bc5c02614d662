--- Signals by name and number, as Linux has them on every machine we run on.

local errors = require "moonsand.errors"

local M = {}

M.numbers = {
  HUP = 1, INT = 2, QUIT = 3, ILL = 4, TRAP = 5, ABRT = 6, BUS = 7, FPE = 8, KILL = 9, USR1 = 10,
  SEGV = 11, USR2 = 12, PIPE = 13, ALRM = 14, TERM = 15, STKFLT = 16, CHLD = 17, CONT = 18,
  STOP = 19, TSTP = 20, TTIN = 21, TTOU = 22, URG = 23, XCPU = 24, XFSZ = 25, VTALRM = 26,
  PROF = 27, WINCH = 28, IO = 29, PWR = 30, SYS = 31,
}

local names = {}
for name, number in pairs(M.numbers) do
  names[number] = name
end

local REALTIME, LAST = 34, 64

--- `9` → `"KILL"`.
---@param number integer
---@return string
function M.name(number)
  return names[number] or ("RT%d"):format(number - REALTIME)
end

--- The number of `"TERM"`, `"SIGTERM"`, `"term"` or 15; nil, message, "invalid" for anything else.
---@param signal string|integer
---@return integer? number, string? message, string? code, table? detail
function M.number(signal)
  local number = signal
  if type(signal) == "string" then
    local word = signal:upper():gsub("^SIG", "")
    local realtime = tonumber(word:match "^RT(%d+)$")
    number = M.numbers[word] or realtime and REALTIME + realtime
  end
  if type(number) ~= "number" or number % 1 ~= 0 or number < 1 or number > LAST then
    return errors.fail("invalid", ("there is no signal %s"):format(tostring(signal)))
  end
  return number
end

return M
