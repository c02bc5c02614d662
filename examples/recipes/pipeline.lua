-- A pipeline between two sandboxes: what one program writes is what the other reads, while both
-- run. They share nothing else. Neither fills anybody's memory: who is too fast waits.
--
--     lua5.4 examples/recipes/pipeline.lua [NUMBERS]

local moonsand = require "moonsand"

local numbers = arg and arg[1] or "300000"

moonsand.with({ name = "left" }, function(left)
  moonsand.with({ name = "right", limits = { disk = "1M" } }, function(right)
    local source = moonsand.assert(left:start { "seq", numbers })
    local add = '{ sum += $1 } END { printf "%.0f", sum }'
    local sum = moonsand.assert(right:exec({ "awk", add }, {
      stdin = source.stdout, -- the stream of one is the input of the other
      check = true,
    }))
    local made = moonsand.assert(source:wait())
    print(("%s wrote %d bytes"):format(left.name, made.stdout_bytes))
    print(("%s says the sum is %s"):format(right.name, sum.stdout))
  end)
end)
