--- Every program in examples/ and examples/recipes/ runs as a person would run it, ends well, and
--- says what it should. (The game has embed_spec.lua, the gateway gateway_spec.lua.)

local support = require "support.init"

local SECONDS = 200

local function command(name, args)
  return ("env LUA_PATH=%s LUA_CPATH=%s timeout %d %s examples/%s %s </dev/null"):format(
    support.quote(package.path), support.quote(package.cpath), SECONDS, support.interpreter, name,
    args or "")
end

--- Starts an example: gives what reads its output, as `io` does.
local function begin(name, args)
  local pipe = assert(io.popen("stdbuf -oL " .. command(name, args) .. " 2>&1"))
  return function(what)
    return pipe:read(rawget(_G, "jit") and "*" .. what or what)
  end
end

--- Runs an example: all that it printed.
local function run(name, args)
  local output, status = support.run(command(name, args))
  if status ~= 0 then
    error(("%s: status %d\n%s"):format(name, status, output), 2)
  end
  return output
end

--- Fails unless every pattern is found, each behind the one before.
local function has(output, patterns)
  local from = 1
  for _, pattern in ipairs(patterns) do
    local _, to = output:find(pattern, from)
    if not to then
      error(("%q is not there (or not in that place) in:\n%s"):format(pattern, output), 2)
    end
    from = to + 1
  end
end

local specs = {
  ["quickstart.lua"] = function(name)
    has(run(name), {
      "^made +moonsand.Sandbox %(ms%-%x+, local, ready%)\n",
      "inside +I am sandbox, at home in /workspace\n", "there is no /home\n", "the network is lo\n",
      "live +2 3 5 7 11 13 17 19 23 29 31 37 \n",
      "ended +exited with 0 after", "file +the sum is 197\n",
      "bounded +timed_out after %d%.%d s, and 0 of its processes are left\n",
      "over +moonsand.Sandbox .*closed%)\n$",
    })
  end,

  ["grader.lua"] = function(name)
    has(run(name), {
      "^ada +3 of 3 *\n", "brian +2 of 3  wrong answer\n", "carol +0 of 3  too slow\n",
      "dan +0 of 3  [^\n]+\n", "eve +0 of 3  FileNotFoundError: [^\n]+\n",
      "frank +0 of 3  [^\n]+\n$",
    })
  end,

  ["pipeline.lua"] = function(name)
    has(run(name, "50000"), {
      "^source: 589544 bytes, exited\n", "filter: 1241 bytes, exited\n",
      "50 errors, the last one: 50000 ERROR disk on fire\n", "the clock [^\n]+\n$",
    })
  end,

  ["untrusted_plugin.lua"] = function(name)
    has(run(name), {
      'hello%-world%-%-by%-nobody\n', '""  +no answer: empty title\n',
      '"spin me" +no answer: [^\n]*timed out\n', "moon%-sand%-by%-nobody\n$",
    })
  end,

  ["polyglot.lua"] = function(name)
    local output = run(name)
    has(output, { "^python +%d[^\n]* 5050 in %d+ ms\n" })
    for line in output:gmatch "[^\n]+" do
      assert.truthy(line:find " 5050 in %d+ ms$", line)
    end
  end,

  ["fleet.lua"] = function(name)
    local fake = require("support.opensandbox").start()
    -- some of the first starts are refused, and one stream is cut: that job is not run again
    fake:fault { service = "execd", method = "POST", path = "^/command$", fault = "status",
      status = 429, form = "error", skip = 10, times = 3 }
    fake:fault { service = "execd", method = "POST", path = "^/command$", fault = "no-terminal",
      ["end"] = true, skip = 20 }
    local output = support.run(("env OPEN_SANDBOX_DOMAIN=%s OPEN_SANDBOX_API_KEY=%s %s"):format(
      fake.domain, fake.key, command(name, "200 4"):gsub("^env ", "")))
    local left, broken = fake:sandboxes(), fake:violations()
    fake:stop()
    has(output, { "\n 50 %%  ", "\n100 %%  ", "\n200 jobs in %d sandboxes: 19[4-6] ok, 4 failed, [0-2] "
      .. "unknown; [0-3] were sent again\n", "that of job 199: 2646700\n$" })
    assert.same({}, left)
    assert.same({}, broken)
  end,

  ["tidy.lua"] = function(name)
    local from, to = support.directory() .. "/tidy-from", support.directory() .. "/tidy-to"
    assert.equal(0, select(2, support.run("rm -rf " .. to .. "; mkdir -p " .. from .. "/sub")))
    support.write(from .. "/sub/a.json", '{"a":[1,2]}')
    has(run(name, from .. " " .. to), { "2 files and directories, 11 bytes\n", '%-{"a":%[1,2%]}',
      '%+  "a": %[' })
    assert.equal('{"a":[1,2]}', support.read(from .. "/sub/a.json"))
    assert.equal('{\n  "a": [\n    1,\n    2\n  ]\n}\n', support.read(to .. "/sub/a.json"))
  end,

  ["recipes/matrix.lua"] = function(name)
    local output = run(name)
    has(output, { "^awk, empty +passed\n", "awk, reversed +FAILED: exited with 1: sort: [^\n]*\n",
      "shell, sorted +passed\n$" })
    assert.equal(8, select(2, output:gsub(" passed\n", "")))
  end,

  ["recipes/fallback.lua"] = function(name)
    has(run(name), { "^sage +tries: 1, [^\n]*No such file", "sh +tries: 3, ok\n",
      "answer by sh: 25\n$" })
  end,

  ["recipes/watch.lua"] = function(name)
    local file = support.write(support.directory() .. "/watched.lua",
      'print "one" io.stdout:flush() while true do end')
    local read = begin(name, file .. " 3")
    assert.equal("  one", read "l")
    local function change(text) -- at once: half a file would be another change
      assert(os.rename(support.write(file .. ".new", text), file))
    end
    change "print(40 + 2)" -- the first is under way: it is cancelled
    assert.equal("ended: cancelled: the file changed", read "l")
    assert.equal("  42", read "l")
    has(read "l", { "^ended: exited with 0 after" })
    change 'error("mine", 0)'
    has(read "a", { "^  lua5.4: mine\n", "ended: exited with 1 after [^\n]*\n$" })
  end,

  ["recipes/pipeline.lua"] = function(name)
    has(run(name), { "^left wrote 1988895 bytes\n", "right says the sum is 45000150000\n$" })
  end,
}

describe("the examples", function()
  for _, under in ipairs { "", "recipes/" } do
    for _, file in ipairs(support.native().list("examples/" .. under)) do
      if file:find "%.lua$" then
        local name = under .. file
        it(name, function()
          assert.is_truthy(specs[name], "no spec for it")
          specs[name](name)
        end)
      end
    end
  end

  it("that are recipes can be read at one glance", function()
    for _, file in ipairs(support.native().list "examples/recipes") do
      local _, lines = support.read("examples/recipes/" .. file):gsub("\n", "")
      assert.is_true(lines < 40, file .. ": " .. lines .. " lines")
    end
  end)

  it("are all in their README, and begin with a comment that says how to run them", function()
    local readme = support.read "examples/README.md"
    for name in pairs(specs) do
      assert.truthy(readme:find("[" .. name .. "](" .. name .. ")", 1, true), name)
      local head = support.read("examples/" .. name):match "^%-%- [^\n]+\n.-\n\n"
      assert.truthy(head and head:find("examples/" .. name, 1, true), name)
    end
  end)
end)
