--- A byte there and back: through a terminal, and through pipes.

return function(bench, moonsand)
  bench.area = "a terminal"
  local box = moonsand.assert(moonsand.create())

  local function echo(command, opts)
    local p = moonsand.assert(box:start(command, opts))
    assert(p.stdout:read():find "up")
    return p, function()
      assert(p.stdin:write "x")
      assert(p.stdout:chunk() == "x")
    end
  end

  local terminal, through_terminal = echo("stty raw -echo; echo up; exec cat", { pty = true })
  local pipes, through_pipes = echo("echo up; exec cat", { stdin = "pipe" })
  local r = bench.race("a byte there and back", 2000, {
    { name = "pty", run = through_terminal },
    { name = "pipes", run = through_pipes },
  })
  bench.ratio { name = "a byte there and back", ours = r.pty.p50, rival = "pipes", theirs = r.pipes.p50 }
  terminal:close()
  pipes:close()
  box:close()
end
