-- Loops and task libraries that moonsand has no host for: a loop written by hand over the one
-- descriptor, cqueues, and libraries that run coroutines of their own, which take for theirs what
-- those yield and so are given the callback form. Each test is a program of its own.

local inside = require "hosts.inside"
local support = require "support.init"

local quote = support.quote
local BUILD = os.getenv "MOONSAND_BUILD" or "build"

--- Runs Lua code in a process of its own: its output, its exit status.
local function lua(code, seconds)
  return support.run(("env LUA_PATH=%s LUA_CPATH=%s timeout %d %s %s </dev/null"):format(
    quote(package.path), quote(package.cpath), seconds or 20, support.interpreter,
    inside.script(code)))
end

--- The same in Neovim, whose Lua is LuaJIT whatever runs the specs.
local function nvim(code)
  return support.run(("env LUA_PATH='lua/?.lua;lua/?/init.lua;spec/?.lua;;' LUA_CPATH=%s "
    .. "timeout 20 nvim --headless -u NONE -i NONE -n -c %s </dev/null"):format(
    quote(BUILD .. "/jit/?.so;;"), quote("luafile " .. inside.script(code))))
end

--- Fails unless the program says this, and ends well.
local function gives(expected, output, status)
  assert.equal(expected .. "\n", output)
  assert.equal(0, status)
end

--- Drives until `over`: a loop that sleeps in poll(2), on our descriptor alone, and beats every
--- 10 ms. `turns` counts how often it woke, `beats` the beats, `gap` is the longest pause.
local POLL = [[
local loop, native = moonsand.loop, require("support.init").native()
local over, turns, beats, gap = false, 0, 0, 0
local function drive(on_beat)
  local last = now()
  while not over do
    loop.step(0)
    native.readable(assert(loop.fd()), loop.timeout() or last + 0.01 - now())
    turns = turns + 1
    if now() >= last + 0.01 then
      beats, gap, last = beats + 1, math.max(gap, now() - last), now()
      if on_beat then on_beat() end
    end
  end
end
]]

--- The same with cqueues: one coroutine of its own steps; `await` is the callback form, for others.
local CQUEUES = [[
local cqueues, condition = require "cqueues", require "cqueues.condition"
local loop, controller, kick = moonsand.loop, cqueues.new(), condition.new()
local over, turns, beats, gap = false, 0, 0, 0
controller:wrap(function()
  while loop.step(0) ~= nil and not over do
    cqueues.poll(loop, kick)
    turns = turns + 1
  end
end)
local function await(fn, ...)
  local done, values = condition.new(), nil
  moonsand.task(fn, ...):on_done(function(...)
    values = { n = select("#", ...), ... }
    done:signal()
  end)
  kick:signal()
  while not values do done:wait() end
  return (table.unpack or unpack)(values, 1, values.n)
end
local function drive()
  controller:wrap(function()
    local last = now()
    while not over do
      cqueues.sleep(0.01)
      beats, gap, last = beats + 1, math.max(gap, now() - last), now()
    end
  end)
  assert(controller:loop())
end
]]

describe("a loop that is not ours", function()
  for _, each in ipairs { { "written by hand, over poll", POLL }, { "of cqueues", CQUEUES } } do
    local name, code = each[1], each[2]

    describe(name, function()
      inside.suite("in a task", function()
        return (lua(code .. [[
          spawn = moonsand.task
          moonsand.task(function() suite() over = true end)
          drive()]], 100))
      end)

      it("keeps its pace while a program runs, and sleeps", function()
        gives("0 true true", lua(code .. [[
          moonsand.task(function()
            local r = moonsand.with({}, function(box) return assert(box:exec("sleep 3")) end)
            local even = beats > 10 and beats < 1200 and gap < 2.5
            say(r.exit_code, even or beats .. " beats, gap " .. gap,
              turns < 1200 or turns .. " turns")
            over = true
          end)
          drive()]]))
      end)

      it("hears at once of tasks that wake each other", function()
        gives("done 2000 true", lua(code .. [[
          local sem, count, start = moonsand.semaphore(1), 0, now()
          local function pass() sem:acquire() moonsand.sleep(0) count = count + 1 sem:release() end
          moonsand.task(function()
            moonsand.all({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, function()
              for _ = 1, 200 do pass() end -- a beat for each would take 20 s
              return true
            end)
            say("done", count, now() - start < 10)
            over = true
          end)
          drive()]]))
      end)
    end)
  end

  it("starts tasks between its turns", function()
    gives("3 6", lua(POLL .. [[
      local box, started, ended, sum = assert(moonsand.create()), 0, 0, 0
      drive(function()
        if started < 3 then
          started = started + 1
          moonsand.task(box.exec, box, "echo " .. started):on_done(function(ok, r)
            assert(ok)
            ended, sum = ended + 1, sum + tonumber(r.stdout) -- in any order
            over = ended == 3
          end)
        end
      end)
      say(ended, sum)]]))
  end)

  it("gets an answer into a coroutine of cqueues, by the callback form", function()
    gives("true one 2\nfalse boom 2\ntrue nil 4", lua(CQUEUES .. [[
      controller:wrap(function()
        cqueues.sleep(0.05)
        local box = select(2, await(moonsand.create))
        local ok, r = await(box.exec, box, "sleep 0.1; printf one")
        say(ok, r.stdout, select("#", ok, r))
        say(await(error, "boom", 0), (select(2, await(error, "boom", 0))), 2)
        local words = { await(box.exec, box, { "nope" }) }
        say(words[1], words[2], words[4] == "not_found" and 4)
        over = true
        kick:signal()
      end)
      drive()]]))
  end)

  it("is blocked by a wait outside of tasks, which runs the tasks meanwhile", function()
    gives("true true", lua(POLL .. [[
      local box, ticks = assert(moonsand.create()), 0
      moonsand.task(function() while true do moonsand.sleep(0.01) ticks = ticks + 1 end end)
      local start = now()
      box:exec("sleep 0.3")
      local took = now() - start
      while ticks <= 3 do box:exec("sleep 0.1") end
      say(took >= 0.3, ticks > 3)]]))
  end)
end)

-- ---------------------------------------------------------------- task libraries

--- What they are given: box:exec with the callback last. The handle is for libraries that close
--- what they no longer wait for.
local LEAF = [[
local function exec(box, command, opts, callback)
  local task = moonsand.task(box.exec, box, command, opts):on_done(callback)
  return {
    close = function(_, closed)
      task:cancel()
      task:on_done(function() closed() end)
    end,
  }
end
]]

--- Put around the test: what drives our tasks, and ends the program.
local HOSTS = {
  ["over poll"] = {
    run = lua,
    code = POLL .. "local function quit() over = true end %s drive()",
  },
  ["in Neovim"] = {
    run = nvim,
    code = "local function quit() vim.schedule(function() vim.cmd 'qa!' end) end %s",
  },
}

for where, host in pairs(HOSTS) do
  describe("a task library of somebody else's, " .. where .. ",", function()
    local function inside_of(name, code)
      return host.run((host.code:gsub("%%s", function()
        return LEAF .. ("local library = require('hosts.conventions').%s "):format(name)
          .. "local box = assert(moonsand.create()) " .. code
      end)))
    end

    for _, name in ipairs { "plenary", "nio", "async" } do
      local library = require("hosts.conventions")[name].name

      it("gets values, failures and what was raised: " .. library, function()
        gives("true one 0\ntrue nil not_found\nfalse true\ntrue over", inside_of(name, [[
          local exec = library.wrap(exec, 4)
          library.run(function()
            local ok, r = exec(box, "sleep 0.05; printf one", {})
            say(ok, r.stdout, r.exit_code)
            local fine, none, message, code = exec(box, { "nope" }, {})
            say(fine, none, code)
            local well, err = exec(box, "true", { tiemout = 3 })
            say(well, tostring(err):find("unknown option 'tiemout'", 1, true) ~= nil)
            return "over"
          end, function(ok, value)
            say(ok, value)
            quit()
          end)]]))
      end)

      it("runs many side by side: " .. library, function()
        gives("true 55", inside_of(name, [[
          local exec, sum, left = library.wrap(exec, 4), 0, 10
          local together =
            ": >at-%d; while set -- at-*; [ $# -lt 10 ]; do sleep 0.05; done; echo %d"
          for i = 1, 10 do
            library.run(function()
              local ok, r = exec(box, together:format(i, i), {})
              assert(ok)
              return tonumber(r.stdout)
            end, function(ok, n)
              assert(ok, n)
              sum, left = sum + n, left - 1
              if left == 0 then
                say(true, sum)
                quit()
              end
            end)
          end]]))
      end)

      if name ~= "plenary" then -- which has no way to cancel
        it("cancels, and the program is killed: " .. library, function()
          gives("false true\n0", inside_of(name, [[
            local exec, token = library.wrap(exec, 4), moonsand.token()
            local task = library.run(function()
              exec(box, "sleep 1000", { cancel = token })
              say "not this"
            end, function(ok, err)
              say(ok, err == "closed" or err == "Task was cancelled")
              moonsand.task(function()
                local r
                repeat
                  r = box:exec("cat /proc/[0-9]*/comm | grep -c sleep")
                until r.stdout == "0\n"
                say "0"
                quit()
              end)
            end)
            moonsand.task(function()
              moonsand.sleep(0.1)
              if task.close then
                task.close()
              else -- nvim-nio tells nobody: a token does
                token:cancel()
                task.cancel()
              end
            end)]]))
        end)
      end
    end
  end)
end
