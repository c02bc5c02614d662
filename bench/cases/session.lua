--- A command in a session: one shell that is there already, against one that is started each time.

return function(bench, moonsand)
  bench.area = "a command in a session"
  local box = bench.sandbox()
  local session = moonsand.assert(box:session())
  local r = bench.race("echo hi", 400, {
    { name = "session:exec", run = function()
      moonsand.assert(session:exec "echo hi")
    end },
    { name = "box:exec", run = function()
      moonsand.assert(box:exec "echo hi")
    end },
  })
  bench.ratio { name = "echo hi", ours = r["session:exec"].p50, rival = "box:exec",
    theirs = r["box:exec"].p50, target = 0.6 }
  session:close()
  box:close()
end
