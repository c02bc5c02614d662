-- Grades submissions, of students or of a model: each in a sandbox of its own, three at a time,
-- with limits, against the same tests. One of them is right; the others are what one gets.
--
--     lua5.4 examples/grader.lua

local moonsand = require "moonsand"

-- The task: read numbers, one a line, print their median.
local tests = {
  { input = "1\n3\n2\n", output = "2" },
  { input = "4\n1\n3\n2\n", output = "2.5" },
  { input = "7\n", output = "7" },
}

local submissions = {
  { by = "ada", language = "python", code = [[
import sys, statistics
print(statistics.median(int(line) for line in sys.stdin))]] },
  { by = "brian", language = "lua", code = [[
local t = {}
for n in io.lines() do t[#t + 1] = n end
table.sort(t)
print(t[math.ceil(#t / 2)])]] },
  { by = "carol", language = "python", code = "while True: pass" },
  { by = "dan", language = "sh", code = "sort -n | sed -n '2p' | tee /etc/passwd /usr/bin/grade" },
  { by = "eve", language = "python", code = "print(open('/etc/shadow').read())" },
  { by = "frank", language = "sh", code = "f() { f | f & }; f; sleep 9" },
}

--- How one submission does in one test: true; or false, why, and whether that is enough.
local function try(box, submission, test)
  local r, message = box:run_code(submission.code, {
    language = submission.language,
    stdin = test.input,
    timeout = 5,
    max_output = "64K",
    limits = { memory = "256M", processes = 32 },
  })
  if not r then
    return false, message
  elseif r.ok and r.stdout:gsub("%s+$", "") == test.output then
    return true
  end
  local why = r.timed_out and "too slow" or r.ok and "wrong answer"
    or r.error and r.error.name .. ": " .. r.error.message or tostring(r)
  return false, why, r.timed_out
end

local function grade(submission)
  return moonsand.with({ limits = { disk = "16M" } }, function(box)
    local passed, why = 0, ""
    for _, test in ipairs(tests) do
      local ok, reason, enough = try(box, submission, test)
      passed, why = passed + (ok and 1 or 0), reason or why
      if enough then break end
    end
    return ("%-6s %d of %d  %s"):format(submission.by, passed, #tests, why)
  end)
end

for _, line in ipairs(moonsand.assert(moonsand.all(submissions, grade, { limit = 3 }))) do
  print(line)
end
