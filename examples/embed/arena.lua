--- The arena: bots look for coins. What a bot does is decided by a program that nobody has read, in
--- a sandbox of its own: it gets a line each turn, and answers with a direction. Each bot is a
--- task; the tasks go on between frames, when `frame` turns the loop. No frame waits for a program.

local moonsand = require "moonsand"

local here = ...

local WIDTH, HEIGHT, COINS = 46, 14, 12
local TURN = 0.1 -- seconds between a bot's moves
local DEADLINE = 1 -- for an answer; then the program is started anew
local STEPS = { N = { 0, -1 }, S = { 0, 1 }, E = { 1, 0 }, W = { -1, 0 } }

local COMMANDS = { py = "python3", lua = "lua5.4", sh = "sh" }
local BOTS = { "hunter.py", "sweeper.lua", "thinker.sh", "cheat.py", "frozen.lua" }

local bots, coins = {}, {}
local changed = true

-- ---------------------------------------------------------------- the rules

local function drop_coin(index)
  coins[index] = { x = math.random(WIDTH), y = math.random(HEIGHT) }
end

--- What a bot sees: the size of the arena, where it is, where the coins are.
local function view(bot)
  local words = { WIDTH, HEIGHT, bot.x, bot.y }
  for _, coin in ipairs(coins) do
    words[#words + 1] = coin.x
    words[#words + 1] = coin.y
  end
  return table.concat(words, " ") .. "\n"
end

local function move(bot, answer)
  local step = STEPS[answer]
  if not step then
    bot.refused = bot.refused + 1
    return
  end
  bot.moves, changed = bot.moves + 1, true
  bot.x = math.max(1, math.min(WIDTH, bot.x + step[1]))
  bot.y = math.max(1, math.min(HEIGHT, bot.y + step[2]))
  for i, coin in ipairs(coins) do
    if coin.x == bot.x and coin.y == bot.y then
      bot.coins = bot.coins + 1
      drop_coin(i)
    end
  end
end

-- ---------------------------------------------------------------- the programs

--- A direction; or nil when the program hangs, or has ended.
local function ask(program, question)
  if program.stdin:write(question, DEADLINE) then
    return (program.stdout:read("l", { timeout = DEADLINE, max_line = 64 }))
  end
end

--- Plays one bot, for ever: the task is cancelled at the end.
local function play(bot, box)
  moonsand.assert(box.files:write(bot.file, bot.source))
  while true do
    local program = moonsand.assert(box:start { COMMANDS[bot.kind], bot.file })
    repeat
      local answer = ask(program, view(bot))
      if answer then
        move(bot, answer)
        moonsand.sleep(TURN)
      end
    until not answer
    program:close()
    bot.restarts = bot.restarts + 1
  end
end

local function enter(number, file)
  local handle = assert(io.open(here .. "/bots/" .. file))
  local bot = {
    file = file,
    kind = file:match "%.(%a+)$",
    source = handle:read "*a",
    sign = file:sub(1, 1):upper(),
    x = math.random(WIDTH),
    y = math.random(HEIGHT),
    coins = 0,
    moves = 0,
    refused = 0, -- answers that are no direction
    restarts = 0,
  }
  handle:close()
  bots[number] = bot
  bot.task = moonsand.task(moonsand.with, { limits = { processes = 8, disk = "1M" } }, function(box)
    play(bot, box)
  end)
end

-- ---------------------------------------------------------------- the picture

local function row_of(y)
  local cells = {}
  for x = 1, WIDTH do
    cells[x] = " "
  end
  for _, coin in ipairs(coins) do
    if coin.y == y then
      cells[coin.x] = "\27[33m$\27[m"
    end
  end
  for i, bot in ipairs(bots) do
    if bot.y == y then
      cells[bot.x] = ("\27[1;%dm%s\27[m"):format(31 + i % 6, bot.sign)
    end
  end
  return "|" .. table.concat(cells) .. "|"
end

local function score(bot)
  return ("%s %-12s %3d coins  %4d moves  %3d refused  %2d restarts"):format(bot.sign, bot.file,
    bot.coins, bot.moves, bot.refused, bot.restarts)
end

local function picture()
  local rim = "+" .. ("-"):rep(WIDTH) .. "+"
  local rows = { rim }
  for y = 1, HEIGHT do
    rows[#rows + 1] = row_of(y)
  end
  rows[#rows + 1] = rim
  for _, bot in ipairs(bots) do
    rows[#rows + 1] = score(bot)
  end
  return table.concat(rows, "\27[K\n") .. "\27[K\n"
end

-- ---------------------------------------------------------------- what the C program calls

local M = {}

--- One frame: whoever has something to do does it. Gives a picture when there is a new one.
function M.frame()
  moonsand.loop.step(0)
  if changed then
    changed = false
    return picture()
  end
end

function M.finish()
  for _, bot in ipairs(bots) do
    print(score(bot))
    if bot.task:status() ~= "running" then
      bot.task:wait() -- raises what went wrong
    end
    bot.task:cancel()
  end
end

math.randomseed(os.time())
for i = 1, COINS do
  drop_coin(i)
end
for i, file in ipairs(BOTS) do
  enter(i, file)
end
return M
