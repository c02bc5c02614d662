--- Source text, against a command that runs the same.

return function(bench, moonsand)
  bench.area = "running code"
  if not pcall(require, "moonsand.code") then
    bench.skip("run_code", "moonsand.code is not there yet")
    return
  end
  local box = bench.sandbox()
  local first, message = box:run_code("print(1)", { language = "python" })
  if not first then
    box:close()
    bench.skip("run_code", message)
    return
  end
  local r = bench.race("print(1) in Python", 200, {
    { name = "run_code", run = function()
      assert(moonsand.assert(box:run_code("print(1)", { language = "python" })).stdout == "1\n")
    end },
    { name = "exec python3 -c", run = function()
      assert(moonsand.assert(box:exec { "python3", "-c", "print(1)" }).stdout == "1\n")
    end },
  })
  bench.ratio { name = "run_code, python", ours = r.run_code.p50, rival = "exec python3 -c",
    theirs = r["exec python3 -c"].p50 }
  box:close()
end
