-- In a real Neovim, which has LuaJIT whatever Lua runs the specs. Each test is an editor of its own.

local inside = require "hosts.inside"
local support = require "support.init"

local quote = support.quote
local BUILD = os.getenv "MOONSAND_BUILD" or "build"

--- Ends the editor however the script ends.
local FRAME = [[
local uv, api = vim.uv or vim.loop, vim.api
local function quit()
  vim.schedule(function() vim.cmd "qa!" end)
end
local function try(fn)
  local ok, err = xpcall(fn, debug.traceback)
  if not ok then say(err) quit() end
end
local function later(ms, fn)
  local timer = uv.new_timer()
  timer:start(ms, 0, function() timer:close() fn() end)
end
try(function() %s
end)
]]

local function nvim(code, seconds)
  local script = inside.script(FRAME:gsub("%%s", function()
    return code
  end))
  return support.run(("env LUA_PATH='lua/?.lua;lua/?/init.lua;spec/?.lua;;' LUA_CPATH=%s timeout %d "
    .. "nvim --headless -u NONE -i NONE -n -c %s </dev/null"):format(quote(BUILD .. "/jit/?.so;;"),
    seconds or 20, quote("luafile " .. script)))
end

--- What the script says; the editor adds nothing and ends well.
local function gives(expected, code)
  local output, status = nvim(code)
  assert.equal(expected .. "\n", output)
  assert.equal(0, status)
end

--- Counts the beats of an editor's timer of 10 ms from here to `count()`.
local BEATS = [[
local timer, beats, last, gap = uv.new_timer(), 0, now(), 0
timer:start(10, 10, vim.schedule_wrap(function()
  api.nvim_get_current_line()
  beats, gap, last = beats + 1, math.max(gap, now() - last), now()
end))
local function fair()
  timer:close()
  return beats > 10 and beats < 1200 and gap < 2.5 or beats .. ' beats, gap ' .. gap
end
]]

describe("the host nvim", function()
  inside.suite("in a coroutine", function()
    return (nvim("spawn(function() suite() quit() end)", 100))
  end)

  inside.suite("on the main chunk", function()
    return (nvim("suite() quit()", 100))
  end)

  describe("does not stop the editor", function()
    it("while a coroutine waits", function()
      gives("true", BEATS .. [[
        spawn(function()
          moonsand.with({}, function(box) assert(box:exec("sleep 3")) end)
          say(fair())
          quit()
        end)]])
    end)

    it("while the main chunk waits", function()
      gives("true", BEATS .. [[
        moonsand.with({}, function(box) assert(box:exec("sleep 3")) end)
        say(fair())
        quit()]])
    end)

    it("while a program waits for its reader", function()
      gives("true true", [[
        spawn(function()
          box = moonsand.create()
          p = box:start("yes")
          p.stdout:read()
          local cpu = os.clock()
          later(500, function()
            say(os.clock() - cpu < 0.1, p:is_running())
            quit()
          end)
        end)]])
    end)
  end)

  describe("in a fast event", function()
    it("refuses outside of coroutines, before anything has begun", function()
      gives("false true true", [[
        local box = moonsand.create()
        later(1, function()
          local ok, err = pcall(box.exec, box, "touch /tmp/began")
          vim.schedule(function()
            say(ok, err:find("fast event", 1, true) ~= nil, not box.files:exists "/tmp/began")
            quit()
          end)
        end)]])
    end)

    it("suspends a coroutine, which goes on where the editor's API may be used", function()
      gives("fast: true\nfast: false\nset by a callback", [[
        local box = moonsand.create()
        later(1, function()
          spawn(function()
            say("fast:", vim.in_fast_event())
            box:exec("echo set by a callback", { on_line = function(line)
              api.nvim_buf_set_lines(0, 0, -1, true, { line })
            end })
            say("fast:", vim.in_fast_event())
            say(api.nvim_get_current_line())
            quit()
          end)
        end)]])
    end)
  end)

  it("lets callbacks of a started program touch the editor", function()
    gives("1|2|3", [[
      local box, lines = moonsand.create(), {}
      box:start("seq 3", {
        on_line = function(line)
          table.insert(lines, line)
          api.nvim_buf_set_lines(0, 0, -1, true, lines)
        end,
        on_exit = function()
          say(table.concat(api.nvim_buf_get_lines(0, 0, -1, true), "|"))
          quit()
        end,
      })]])
  end)

  it("lets a coroutine run code that waits on the main chunk, while others go on", function()
    gives("others 3\nmain 7", [[
      _G.box, _G.others = moonsand.create(), 0
      for i = 1, 3 do
        spawn(function() box:exec("sleep 0.1") others = others + 1 end)
      end
      spawn(function()
        box:exec("true")
        vim.cmd("lua value = require('moonsand').run(function() "
          .. "repeat box:exec('sleep 0.05') until others == 3 return 7 end)")
        say("others", others)
        say("main", value)
        quit()
      end)]])
  end)

  it("shows what a coroutine raises, and resumes the others", function()
    local output, status = nvim [[
      local awake = 0
      for i = 1, 3 do
        spawn(function()
          moonsand.sleep(0.05)
          if i == 2 then error "mine" end
          awake = awake + 1
        end)
      end
      vim.wait(20000, function() return awake == 2 end)
      moonsand.sleep(0.1)
      say("awake", awake)
      quit()]]
    assert.truthy(output:find("awake 2\n", 1, true), output)
    assert.truthy(output:find("vim.schedule lua callback: [^\n]*mine"), output)
    assert.equal(0, status)
  end)

  it("ends a wait of the main chunk at Ctrl-C, and the program with it", function()
    gives("true true 0", [[
      local child = vim.fn.jobstart({ vim.v.progpath, "--embed", "--headless", "-u", "NONE", "-i",
        "NONE", "-n" }, { rpc = true })
      local start = now()
      vim.rpcrequest(child, "nvim_exec_lua", "box = require('moonsand').create()", {})
      vim.rpcnotify(child, "nvim_command",
        "lua _, err = pcall(box.exec, box, 'echo up; sleep 100', "
          .. "{ on_line = function() up = true end })")
      vim.wait(20000, function()
        return vim.rpcrequest(child, "nvim_exec_lua", "return up or false", {})
      end)
      vim.rpcrequest(child, "nvim_input", "<C-c>")
      local err
      vim.wait(20000, function()
        err = vim.rpcrequest(child, "nvim_exec_lua", "return tostring(err)", {})
        return err ~= "nil"
      end)
      local left
      vim.wait(20000, function()
        left = vim.rpcrequest(child, "nvim_exec_lua",
          "return box:exec('cat /proc/[0-9]*/comm | grep -c sleep; :').stdout", {})
        return left == "0\n"
      end)
      say(now() - start < 50, err:find("Ctrl-C", 1, true) ~= nil or err, vim.trim(left))
      vim.fn.jobstop(child)
      quit()]])
  end)

  it("quits at once though programs run, and they end with it", function()
    local output, status = nvim [[
      box = moonsand.create()
      spawn(function() box:exec("sleep 1000") end)
      p = box:start("sleep 1000")
      moonsand.sleep(0.1)
      say(box:info().pid)
      quit()]]
    assert.equal(0, status)
    local pid = tonumber(output)
    support.eventually(10, "the sandbox is still there", function()
      return not support.process(pid)
    end)
  end)

  it("waits while the editor leaves, too", function()
    gives("left", [[
      _G.leave = function()
        moonsand.with({}, function(box) say((box:exec("printf left").stdout)) end)
      end
      vim.cmd "autocmd VimLeavePre * lua leave()"
      quit()]])
  end)

  -- Task libraries run coroutines of their own, and take for theirs what those yield. They get the
  -- callback form. Each stand-in does with a coroutine what the library of that name does.
  describe("serves, by callbacks, coroutines of", function()
    local LEAF = [[
      local function exec(box, command, opts, callback)
        moonsand.task(box.exec, box, command, opts):on_done(callback)
      end
    ]]
    local USE = [[
      local function use(exec)
        local ok, r = exec(moonsand_box, "sleep 0.1; echo one", {})
        local fine, none, message, code = exec(moonsand_box, { "nope" }, {})
        api.nvim_buf_set_lines(0, 0, -1, true, { r.stdout:sub(1, -2) })
        say(ok, api.nvim_get_current_line(), fine, none, code)
        quit()
      end
      moonsand_box = moonsand.create()
    ]]

    it("plenary.async", function()
      gives("true one true nil not_found", LEAF .. USE .. [[
        local function wrap(fn, argc)
          return function(...) return coroutine.yield(fn, argc, ...) end
        end
        local function run(fn)
          local co = coroutine.create(fn)
          local function step(...)
            local ok, leaf, argc, a, b, c = coroutine.resume(co, ...)
            assert(ok, leaf)
            if coroutine.status(co) ~= "dead" then
              assert(type(leaf) == "function" and argc == 4)
              leaf(a, b, c, step)
            end
          end
          step()
        end
        run(function() use(wrap(exec, 4)) end)]])
    end)

    it("nvim-nio", function()
      gives("true one true nil not_found", LEAF .. USE .. [[
        local function wrap(fn, argc)
          return function(...)
            local protected = function(...)
              local args = { ... }
              local step = args[argc]
              args[argc] = function(...) step(true, ...) end
              xpcall(fn, function(err) step(false, err) end, unpack(args, 1, argc))
            end
            local got = vim.F.pack_len(coroutine.yield(argc, protected, ...))
            assert(got[1], got[2])
            return unpack(got, 2, got.n)
          end
        end
        local function run(fn)
          local co = coroutine.create(fn)
          local function step(...)
            local got = { coroutine.resume(co, ...) }
            assert(got[1], got[2])
            if coroutine.status(co) ~= "dead" then
              local args = { unpack(got, 4, 7) }
              args[got[2] ] = step
              got[3](unpack(args, 1, got[2]))
            end
          end
          step()
        end
        run(function() use(wrap(exec, 4)) end)]])
    end)

    it("async.nvim", function()
      gives("true one true nil not_found", LEAF .. USE .. [[
        local function await(argc, fn, ...)
          local args = { ... }
          return coroutine.yield(function(callback)
            args[argc] = callback
            return fn(unpack(args, 1, argc))
          end)
        end
        local function run(fn)
          local co = coroutine.create(fn)
          local function resume(...)
            local ok, leaf = coroutine.resume(co, ...)
            assert(ok, leaf)
            if coroutine.status(co) ~= "dead" then
              local handle = leaf(resume)
              assert(handle == nil, "a handle, to be closed before we go on")
            end
          end
          resume()
        end
        run(function() use(function(...) return await(4, exec, ...) end) end)]])
    end)

    it("somebody else, who resumes ours, by an error", function()
      gives("false true", [[
        local co = coroutine.create(function()
          local ok, err = pcall(moonsand.sleep, 10)
          say(ok, err:find("resumed by somebody else", 1, true) ~= nil)
          quit()
        end)
        coroutine.resume(co)
        coroutine.resume(co)]])
    end)
  end)
end)
