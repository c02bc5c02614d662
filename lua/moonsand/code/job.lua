--- Takes one piece of code through: finds the tool, puts the text into a private directory,
--- compiles, runs, sees what it left, removes the directory. The workspace is not touched.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local languages = require "moonsand.languages"
local loop = require "moonsand.loop"
local outcomes = require "moonsand.code.result"
local processes = require "moonsand.process"
local programs = require "moonsand.program"
local results = require "moonsand.result"

local M = {}

---@class moonsand.Job
---@field box moonsand.Sandbox
---@field call string for messages
---@field level integer of the caller, as seen from `step`
---@field opts table those of exec
---@field args? string[]
---@field cwd string
---@field language? moonsand.Language
---@field row table the language, perhaps with a variant's fields
---@field interpreter? string[] words that the caller said, or a #! line
---@field code? string text to be put into a file; nil: `file` is there
---@field file? string
---@field complete? boolean a CodeResult is wanted
---@field dir? string the private directory, once it is asked for
---@field deadline? number monotonic seconds
---@field remembered? string where the tool was in the cache
---@field ended? table what on_exit is told

local MAX_TEXT = 8 * 1024 * 1024
local TEXT_READ = 5 -- seconds, for a step that the timeout of the program does not count

-- ---------------------------------------------------------------- tools

--- True and the seconds that are left, nil for no limit; or why no step can be taken any more.
local function remaining(job)
  if job.box.core.closed then
    return errors.fail("closed", "the sandbox was closed", { started = false })
  elseif not job.deadline then
    return true, nil
  end
  local left = job.deadline - loop.now()
  if left > 0 then
    return true, left
  end
  return errors.fail("timeout", "there was no time to start", { started = false })
end

--- The options of exec, with what this step has of its own.
local function step_options(job, more)
  local ok, left, code, detail = remaining(job)
  if not ok then
    return nil, left, code, detail
  end
  local opts = {}
  for name, value in pairs(job.opts) do
    opts[name] = value
  end
  opts.timeout, opts.check = left, false
  for name, value in pairs(more) do
    opts[name] = value
  end
  return opts
end

--- Runs a program of ours with the environment of the code.
function M.ask(job, script)
  local opts, message, code, detail = step_options(job, { stdin = false, leave = false })
  if not opts then
    return nil, message, code, detail
  end
  for _, name in ipairs { "stdout", "stderr", "on_stdout", "on_stderr", "on_line", "on_limit",
    "limits", "max_output", "on_exit" } do
    opts[name] = nil
  end
  return processes.exec(job.box, job.call, { "/bin/sh", "-c", script }, opts)
end

local function missing(language)
  local names = {}
  for i in ipairs(language.candidates) do
    names[i] = languages.tool(language, i)[1]
  end
  return errors.fail("unavailable", ("%s is not there"):format(language.name), {
    what = "language",
    language = language.name,
    started = false,
    cause = ("no %s in the sandbox's PATH that would do"):format(table.concat(names, ", ")),
    fix = ("install %s, or use an image that has it"):format(names[1]),
  })
end

--- The words that run a file of this language. What is found is remembered, what is not is looked
--- for again: it may have been installed.
---@return string[]? words, string? message, string? code, table? detail
local function find_tool(job)
  local language, shared = job.language, job.box.core
  shared.languages = shared.languages or {}
  local variables = programs.environment(job.call, job.box.core.driver.environment,
    job.box.defaults, job.opts, 2)
  local search = variables and variables.PATH
  local key = language.name .. "\0" .. (search or "")
  local words = shared.languages[key]
  if words then
    job.remembered = key
    return words
  end
  local r, message, code, detail =
    M.ask(job, languages.finder(language) .. '; printf "%s %s" "$i" "$p"')
  if not r then
    return nil, message, code, detail
  elseif r.timed_out then
    return errors.fail("timeout", "there was no time to start", { started = false })
  end
  local number, path = r.stdout:match "^(%d+) (.+)$"
  local tool = number and languages.tool(language, tonumber(number))
  if not tool then
    return missing(language)
  end
  -- By its name, so that a newer one in front of it is taken.
  words = { search and tool[1] or path }
  for _, word in ipairs(tool.args or {}) do
    words[#words + 1] = word
  end
  shared.languages[key] = words
  return words
end

-- ---------------------------------------------------------------- a job

local function file_options(job, more)
  local ok, left, code, detail = remaining(job)
  if not ok then
    return nil, left, code, detail
  end
  more.timeout, more.cancel = left, job.opts.cancel
  return more
end

--- A failure that came before anything ran.
function M.not_started(message, code, detail)
  detail.started = false
  return nil, message, code, detail
end

--- Makes the private directory, with the text in it if there is one.
local function put(job)
  local dir = "/tmp/.moonsand-" .. core.random(8):gsub(".", function(c)
    return ("%02x"):format(c:byte())
  end)
  local files = job.box.files
  local opts, message, code, detail = file_options(job, { mode = "0700" })
  local ok
  if opts then
    job.dir = dir
    ok, message, code, detail = files:mkdir(dir, opts)
  end
  if ok and job.code then
    job.file = dir .. "/" .. job.row.file
    opts, message, code, detail =
      file_options(job, { mode = "0600", atomic = false, parents = false })
    if opts then
      ok, message, code, detail = files:write(job.file, job.code, opts)
    else
      ok = nil
    end
  end
  if not ok then
    return M.not_started(message, code, detail)
  end
  return true
end

--- Removes the private directory while others go on: what is usual is gone in two calls.
local function clean(job)
  local files, dir, file = job.box.files, job.dir, job.code and job.file
  if not dir or job.box.core.closed then
    return
  end
  loop.spawn(function()
    pcall(function() -- closed meanwhile: gone with the sandbox
      for _, path in ipairs { file or nil, file and job.row.text and dir .. "/text" or nil } do
        files:remove(path)
      end
      files:remove(dir, { recursive = true })
    end)
  end)
end

--- The variables that a language needs, under those that are set.
local function with_environment(job, stage, opts)
  if not job.language or job.language.compile and stage == "run" then
    return opts
  end
  local variables = programs.environment(job.call, job.box.core.driver.environment,
    job.box.defaults, opts, 2)
  local env
  for name, value in pairs(job.language.env or {}) do
    if variables and not variables[name] and not (opts.env and opts.env[name] == false) then
      env = env or {}
      env[name] = value
    end
  end
  for name, value in pairs(env and opts.env or {}) do
    env[name] = value
  end
  opts.env = env or opts.env
  return opts
end

--- One program of the job: its Result, with the stage.
local function step(job, stage, argv, more)
  local opts, message, code, detail = step_options(job, more)
  if not opts then
    return nil, message, code, detail
  end
  local turns
  turns, opts.on_stdout, opts.on_stderr = outcomes.note_order(opts)
  opts.on_exit = function(...)
    job.ended = { ... }
  end
  local r
  r, message, code, detail =
    processes.exec(job.box, job.call, argv, with_environment(job, stage, opts), job.level)
  local result = r or detail.result
  if result then
    result.stage = stage
    if job.complete then
      outcomes.complete(result, job.language, turns)
    end
  end
  return r, message, code, detail
end

--- Compiles: nothing when it went well; else what the job ends with. Text that has no place in the
--- workspace is compiled where it is, so that its file has a short name in messages.
local function compile(job, values)
  if job.code then
    values = setmetatable({ ["$file"] = job.row.file }, { __index = values })
  end
  local more = { stdin = false, leave = false, cwd = job.code and job.dir or nil }
  local r, message, code, detail =
    step(job, "compile", languages.command(job.language.compile, values), more)
  if r and r.ok then
    return false
  end
  return true, r, message, code, detail
end

--- The steps that need no cleaning up themselves.
local function perform(job)
  local language, row, words = job.language, job.row, job.interpreter
  local message, code, detail
  if not words then
    words, message, code, detail = find_tool(job)
    if not words then
      return nil, message, code, detail
    end
  end
  local ok
  if not job.dir and (job.code or language and language.compile) then
    ok, message, code, detail = put(job)
    if not ok then
      return nil, message, code, detail
    end
  end
  local values = { ["$tool"] = words, ["$file"] = job.file, ["$cwd"] = job.cwd,
    ["$program"] = job.dir and job.dir .. "/program" }
  if row.compile then
    local ended, r
    ended, r, message, code, detail = compile(job, values)
    if ended then
      return r, message, code, detail
    end
  end
  local template = job.code and row.code or row.run
    or row.compile and { "$program" } or { "$tool", "$file" }
  local r
  r, message, code, detail = step(job, "run", languages.command(template, values, job.args), {})
  if r then
    outcomes.reconsider(r, row)
  end
  if r and r.ok and job.code and row.text then
    local opts = not job.box.core.closed and { max = MAX_TEXT, timeout = TEXT_READ }
    r.text = opts and job.box.files:read(job.dir .. "/text", opts) or nil
  end
  return r, message, code, detail
end

--- Whether the tool that was remembered has gone, and the job may begin again.
local function tool_is_gone(job, r, code, detail)
  local key, input = job.remembered, job.opts.stdin
  if r or not key or code ~= "not_found" or detail.what ~= "program" then
    return false
  end
  job.box.core.languages[key], job.remembered = nil, nil
  return type(input) ~= "function" and type(input) ~= "table" and not io.type(input)
end

--- A whole job, in every case without leaving its directory behind.
function M.execute(job)
  local timeout = job.opts.timeout or job.box.defaults.timeout
  job.deadline = timeout and loop.now() + timeout
  local done, r, message, code, detail = pcall(perform, job)
  if done and tool_is_gone(job, r, code, detail) then
    done, r, message, code, detail = pcall(perform, job)
  end
  clean(job)
  local on_exit, ended = job.opts.on_exit, job.ended or {}
  if on_exit and done then
    on_exit(r, message, code, detail)
  elseif on_exit then
    pcall(on_exit, nil, ended[2], ended[3], ended[4])
  end
  if not done then
    error(r, 0)
  end
  local check = job.opts.check
  if check == nil then
    check = job.box.defaults.check
  end
  if r and check then
    return results.check(r)
  elseif r then
    return r
  end
  return nil, message, code, detail
end

return M
