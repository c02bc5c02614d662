--- Many commands at once, in one sandbox, from one Lua state.

local AT_ONCE = 64

return function(bench, moonsand, rivals)
  bench.area = ("%d commands at once"):format(AT_ONCE)
  local floor, box = rivals.floor, bench.sandbox()
  local cores, list = floor.cores(), {}
  for i = 1, AT_ONCE do
    list[i] = i
  end

  local function at_once(words)
    return function()
      moonsand.run(function()
        moonsand.assert(moonsand.all(list, function()
          return moonsand.assert(box:exec(words))
        end))
      end)
    end
  end

  local function in_c(path)
    return function()
      return floor.batch(AT_ONCE, cores, path)
    end
  end

  for _, each in ipairs {
    { "true", "/usr/bin/true", "/usr/bin/true", 0.9 },
    { "a static program", "/tmp/nothing", rivals.nothing },
  } do
    local name, inside, outside, target = each[1], each[2], each[3], each[4]
    local r = bench.race(AT_ONCE .. " x " .. name, 50, {
      { name = "moonsand.all", run = at_once { inside } },
      { name = "C, one a core", run = in_c(outside) },
    })
    bench.ratio { name = name .. ", commands a second", unit = "/s",
      ours = AT_ONCE / r["moonsand.all"].p50, rival = "C, one a core",
      theirs = AT_ONCE / r["C, one a core"].p50, target = target, at_least = true }
  end
  box:close()
end
