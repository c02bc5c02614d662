-- A pipeline across two sandboxes: what one writes the other reads, through this program, while
-- both run. Neither can fill the memory of anybody: who is too fast waits.
--
--     lua5.4 examples/pipeline.lua [lines]

local moonsand = require "moonsand"

local lines = tonumber(arg and arg[1]) or 200000
local source = moonsand.assert(moonsand.create { name = "source" })
local filter = moonsand.assert(moonsand.create { name = "filter" })

moonsand.run(function()
  -- An untrusted producer of log lines, and an untrusted filter.
  local producer = moonsand.assert(source:start {
    "awk", "-v", "n=" .. lines,
    'BEGIN { for (i = 1; i <= n; i++) print i, i % 1000 ? "GET /" : "ERROR disk on fire" }',
  })
  local consumer = moonsand.assert(filter:start({ "grep", "ERROR" }, { stdin = producer.stdout }))

  -- Meanwhile, whatever else there is to do.
  local ticks = 0
  local clock = moonsand.task(function()
    while true do
      moonsand.sleep(0.005)
      ticks = ticks + 1
    end
  end)

  local errors, last = 0, nil
  for line in consumer.stdout:lines() do
    errors, last = errors + 1, line
  end
  clock:cancel()

  local made = moonsand.assert(producer:wait())
  local kept = moonsand.assert(consumer:wait())
  print(("%s: %d bytes, %s"):format(source.name, made.stdout_bytes, made.status))
  print(("%s: %d bytes, %s"):format(filter.name, kept.stdout_bytes, kept.status))
  print(("%d errors, the last one: %s"):format(errors, last))
  print(ticks > 0 and "the clock ticked meanwhile" or "the clock stood still")
end)

source:close()
filter:close()
