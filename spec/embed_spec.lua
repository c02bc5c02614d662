-- A C program with a frame loop of its own (examples/embed): it is compiled, linked with the Lua
-- that runs the specs, and played without a screen.

local support = require "support.init"

local BUILD = os.getenv "MOONSAND_BUILD" or "build"
local SECONDS = 3
local FRAME = 1000 / 60 -- milliseconds

--- Plays: what it printed, and its exit status.
local function play(args)
  -- Without what an outer make says of its own variables.
  return support.run(("env -u MAKEFLAGS -u MAKELEVEL timeout 100 make -s -C examples/embed "
    .. "--no-print-directory LUA=%s B=\"$PWD\"/%s ARGS=%s </dev/null"):format(support.interpreter,
    BUILD, support.quote(args)))
end

describe("the game with a loop of its own", function()
  local output, status

  setup(function()
    output, status = play("--headless --seconds " .. SECONDS)
  end)

  it("runs, and ends well", function()
    assert.equal(0, status, output)
    assert.truthy(output:find(("^%d frames of 16.7 ms: "):format(SECONDS * 60)), output)
  end)

  --- Where the machine stood still for a second or two, a longer game counts.
  local function judge(fn)
    if not pcall(fn, output, SECONDS) then
      fn(play("--headless --seconds " .. 4 * SECONDS), 4 * SECONDS)
    end
  end

  local function had_even_frames(said, seconds)
    local p50, p99, late = said:match "p50 ([%d.]+) ms, p99 ([%d.]+) ms, max [%d.]+ ms, (%d+) late"
    assert.is_true(tonumber(p50) < FRAME / 3, said)
    -- the thinker takes 500 ms for each of five moves, and the frozen one 1000 until it is given up:
    -- more than one frame of a hundred would tell; a single one is the machine's
    assert.is_true(tonumber(p99) < 400, said)
    assert.is_true(tonumber(late) < seconds * 60 / 4, said) -- the machine may be busy
  end

  it("had no frame that waited for a program", function()
    judge(had_even_frames)
  end)

  local function had_programs(said, seconds)
    local moves, refused, restarts = {}, {}, {}
    local line = "(%l+)%.%l+ +%d+ coins +(%d+) moves +(%d+) refused +(%d+) restarts"
    for name, m, r, n in said:gmatch(line) do
      moves[name], refused[name], restarts[name] = tonumber(m), tonumber(r), tonumber(n)
    end
    assert.is_true(moves.hunter > 5, said)
    assert.is_true(moves.sweeper > 5, said)
    assert.is_true(moves.thinker >= 2 and moves.thinker <= seconds / 0.5, said)
    assert.is_true(moves.cheat > 5 and refused.cheat == 0, said)
    local lives = restarts.frozen + 1 -- of four moves each, but for the last
    assert.is_true(lives >= 2 and moves.frozen >= 4 * (lives - 1) and moves.frozen <= 4 * lives, said)
  end

  it("had programs that worked meanwhile, each within its bounds", function()
    judge(had_programs)
  end)

  it("says how it is called", function()
    local text, code = play "--seconds 0"
    assert.truthy(text:find("usage: [^\n]*%-%-headless", 1), text)
    assert.not_equal(0, code)
  end)
end)
