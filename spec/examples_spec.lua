--- Every program in examples/ runs as a person would run it, ends well, and says what it should.

local support = require "support.init"

local SECONDS = 200

--- Runs an example: all that it printed.
local function run(name, args)
  local command = "env LUA_PATH=%s LUA_CPATH=%s timeout %d %s examples/%s %s </dev/null"
  local output, status = support.run(command:format(support.quote(package.path),
    support.quote(package.cpath), SECONDS, support.interpreter, name, args or ""))
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
      "bounded +timed_out after 0%.%d s, and 0 of its processes are left\n",
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

  ["tidy.lua"] = function(name)
    local from, to = support.directory() .. "/tidy-from", support.directory() .. "/tidy-to"
    assert.equal(0, select(2, support.run("rm -rf " .. to .. "; mkdir -p " .. from .. "/sub")))
    support.write(from .. "/sub/a.json", '{"a":[1,2]}')
    has(run(name, from .. " " .. to), { "2 files and directories, 11 bytes\n", '%-{"a":%[1,2%]}',
      '%+  "a": %[' })
    assert.equal('{"a":[1,2]}', support.read(from .. "/sub/a.json"))
    assert.equal('{\n  "a": [\n    1,\n    2\n  ]\n}\n', support.read(to .. "/sub/a.json"))
  end,
}

describe("the examples", function()
  for _, name in ipairs(support.native().list "examples") do
    if name:find "%.lua$" then
      it(name, function()
        assert.is_truthy(specs[name], "no spec for it")
        specs[name](name)
      end)
    end
  end

  it("are all in their README, and begin with a comment that says how to run them", function()
    local readme = support.read "examples/README.md"
    for name in pairs(specs) do
      assert.truthy(readme:find("[" .. name .. "](" .. name .. ")", 1, true), name)
      local head = support.read("examples/" .. name):match "^%-%- [^\n]+\n.-\n\n"
      assert.truthy(head and head:find("examples/" .. name, 1, true), name)
    end
  end)
end)
