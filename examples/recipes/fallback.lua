-- Retry with a fall-back: the tool that is best, a few times where another try may help, then the
-- next best. Which one it was in the end is said.
--
--     lua5.4 examples/recipes/fallback.lua

local moonsand = require "moonsand"

-- Each gives the number of primes below 100. The first is seldom there; the second fails twice.
local ways = {
  { "sage", "-c", "print(len(list(primes(100))))" },
  { "sh", "-c", 'echo >>tries; [ "$(wc -l <tries)" -ge 3 ] || exit 75; '
    .. "seq 2 99 | factor | awk 'NF == 2' | wc -l" },
  { "python3", "-c", "print(sum(all(n % d for d in range(2, n)) for n in range(2, 100)))" },
}

--- The first way that works: its Result, and the tool.
local function first_that_works(box)
  local message, code, detail
  for _, words in ipairs(ways) do
    local tries, r = 0
    r, message, code, detail = moonsand.retry(function()
      tries = tries + 1
      return box:exec(words, { check = true, timeout = 10 })
    end, { times = 3, delay = 0.05, on = { "exit", "timeout" } }) -- a missing tool stays missing
    print(("%-8s tries: %d, %s"):format(words[1], tries, r and "ok" or message))
    if r then
      return r, words[1]
    end
  end
  return nil, message, code, detail
end

moonsand.with({}, function(box)
  local r, tool = moonsand.assert(first_that_works(box))
  print("answer by " .. tool .. ": " .. r.stdout:match "%d+")
end)
