--- Samples and what is said of them. Nothing is trimmed: an outlier counts.

local M = {}

---@class bench.Stat seconds, or whatever was sampled
---@field n integer
---@field min number
---@field p50 number
---@field p95 number
---@field p99 number
---@field max number

--- The value that a share `q` of the sorted samples does not exceed (nearest rank).
local function quantile(sorted, q)
  return sorted[math.max(1, math.ceil(q * #sorted))]
end

---@param samples number[] is sorted in place
---@return bench.Stat
function M.summarize(samples)
  table.sort(samples)
  return {
    n = #samples,
    min = samples[1],
    p50 = quantile(samples, 0.50),
    p95 = quantile(samples, 0.95),
    p99 = quantile(samples, 0.99),
    max = samples[#samples],
  }
end

---@class bench.Contestant
---@field name string
---@field run fun(): number? does it once; answers seconds when it has timed itself
---@field after? fun() cleans up, untimed
---@field n? integer fewer samples than the others: for what is slow

--- Lets the contestants take turns, so that what disturbs the machine disturbs them all.
---@param clock fun(): number seconds
---@param n integer rounds
---@param contestants bench.Contestant[]
---@return table<string, bench.Stat> stats by name
function M.race(clock, n, contestants)
  local samples, warmup = {}, math.min(5, n)
  for _, each in ipairs(contestants) do
    samples[each.name] = {}
  end
  for round = 1 - warmup, n do
    for turn = 0, #contestants - 1 do
      -- another one begins each round: nobody always follows the same neighbour
      local each = contestants[(round + turn) % #contestants + 1]
      if round <= (each.n or n) then
        local start = clock()
        local own = each.run()
        local seconds = own or clock() - start
        if round > 0 then
          table.insert(samples[each.name], seconds)
        end
        if each.after then
          each.after()
        end
      end
    end
  end
  local stats = {}
  for name, list in pairs(samples) do
    stats[name] = M.summarize(list)
  end
  return stats
end

return M
