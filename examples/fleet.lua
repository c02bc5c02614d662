-- A fleet: hundreds of jobs over a few remote sandboxes, with progress and a summary. A job is
-- tried again only where it cannot have begun; of one that was lost sight of we say so, and do not guess.
--
--     export OPEN_SANDBOX_DOMAIN=localhost:8080 OPEN_SANDBOX_API_KEY=…
--     lua5.4 examples/fleet.lua [jobs] [sandboxes]

local moonsand = require "moonsand"

local jobs, width = tonumber(arg[1]) or 200, tonumber(arg[2]) or 8
local create = {
  provider = os.getenv "FLEET_PROVIDER" or "opensandbox",
  image = os.getenv "FLEET_IMAGE" or "debian:12",
  metadata = { fleet = "example" },
  timeout = 120,
}
if create.provider == "local" then -- the same jobs on this machine
  create = { provider = "local" }
end

--- What a job is: the sum of the squares up to its number; every fiftieth has a bug.
local function command(number)
  if number % 50 == 0 then
    return "echo 'no such luck' >&2; exit 3"
  end
  return ("i=0 s=0; while [ $i -lt %d ]; do i=$((i + 1)) s=$((s + i * i)); done; echo $s")
    :format(number)
end

local done, next_job, waiting = {}, 1, {} -- outcomes; and what was sent back
local tally = { ok = 0, failed = 0, unknown = 0, again = 0, sandboxes = 0 }

local function take()
  local number = table.remove(waiting)
  if not number and next_job <= jobs then
    number, next_job = next_job, next_job + 1
  end
  return number
end

local function finish(number, kind, text)
  done[number] = text
  tally[kind] = tally[kind] + 1
  local count = tally.ok + tally.failed + tally.unknown
  if count % math.max(1, math.floor(jobs / 10)) == 0 then
    print(("%3d %%  %d ok, %d failed, %d unknown"):format(math.floor(100 * count / jobs), tally.ok,
      tally.failed, tally.unknown))
  end
end

local tries = {}

--- One job. False when the sandbox is of no more use.
local function run(box, number)
  local r, message, code, detail = box:exec(command(number), { timeout = 30 })
  if r then
    finish(number, r.ok and "ok" or "failed", r.ok and r.stdout:match "%d+" or tostring(r))
    return true
  end
  tries[number] = (tries[number] or 0) + 1
  if (detail.started == false or detail.retry) and tries[number] < 5 then
    tally.again = tally.again + 1
    waiting[#waiting + 1] = number
    if code == "rate_limited" or code == "not_ready" then
      moonsand.sleep(detail.retry_after or 0.2 * tries[number])
    end
  else -- it may have begun, or be running still: look it up, do not start it again
    finish(number, "unknown", ("%s: %s (%s)"):format(code, message, detail.id or "no id"))
  end
  return code ~= "gone" and code ~= "lost" and code ~= "connection"
end

--- A worker has a sandbox, and another one when that is gone.
local function work()
  local number = take()
  while number do
    local box = moonsand.assert(moonsand.retry(function()
      return moonsand.create(create)
    end, { times = 3, on = { "not_ready", "rate_limited", "connection" } }))
    tally.sandboxes = tally.sandboxes + 1
    local usable = true
    while number and usable do
      usable = run(box, number)
      number = take()
    end
    box:close()
  end
end

local workers = {}
for i = 1, math.min(width, jobs) do
  workers[i] = work
end
moonsand.assert(moonsand.all(workers, function(worker)
  worker()
  return true
end))
moonsand.assert(moonsand.flush { timeout = 60 }) -- the sandboxes are gone, not only told to go

print(("%d jobs in %d sandboxes: %d ok, %d failed, %d unknown; %d were sent again"):format(jobs,
  tally.sandboxes, tally.ok, tally.failed, tally.unknown, tally.again))
print(("the last result is that of job %d: %s"):format(jobs - 1, tostring(done[jobs - 1])))
