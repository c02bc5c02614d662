--- Source text and script files: `box:run`, `box:run_code`, its sugar `box:python(code)` and the
--- like, `box:languages`. What is known of languages is in languages.lua; how a piece of code gets
--- through is in code/job.lua, what it leaves in code/result.lua.

local errors = require "moonsand.errors"
local jobs = require "moonsand.code.job"
local languages = require "moonsand.languages"
local loop = require "moonsand.loop"
local options = require "moonsand.options"
local paths = require "moonsand.paths"
local programs = require "moonsand.program"

local M = {}

local CALL = { timeout = "number", cancel = "table" }
local NOT_YET = { packages = "table|string", requirements = "string|table",
  venv = "string|boolean|table", return_files = "table" }

local function whole(...)
  local all = {}
  for _, source in ipairs { programs.exec_options, ... } do
    for name, types in pairs(source) do
      all[name] = types
    end
  end
  return all
end

local RUN = whole({ interpreter = "string|table" }, NOT_YET)
local HELPER = whole({ args = "table" }, NOT_YET)
local CODE = whole({ args = "table", language = "string" }, NOT_YET)

-- Levels of errors count frames: where one is passed on, there must be no tail call.

--- Takes our own options out and checks the others before anything is done.
---@return table? opts, string? message, string? code, table? detail
local function begin(box, call, command, opts, level)
  box:check_open(call, level + 1)
  for name in pairs(NOT_YET) do
    if opts[name] ~= nil then
      return errors.fail("unsupported", ("%s: the option '%s' is not there yet"):format(call, name),
        { started = false, what = name })
    end
  end
  local program = {}
  for name, value in pairs(opts) do
    if programs.exec_options[name] then
      program[name] = value
    end
  end
  local planned, message, code, detail = programs.plan(call, box, command, program, level + 1)
  if not planned then
    return jobs.not_started(message, code, detail)
  end
  program.cwd = planned.spec.cwd
  return program
end

--- Words that follow a command, as a command to be checked.
local function checked_args(call, args, level)
  if args ~= nil and type(args) ~= "table" then
    errors.raise(level + 1, "%s: args must be a list of words, got %s", call, type(args))
  end
  local count = 0
  for key, word in pairs(args or {}) do
    if type(key) ~= "number" or key < 1 or key % 1 ~= 0 then
      errors.raise(level + 1, "%s: args is a list of words, not a table with the key %s", call,
        options.quote(key))
    elseif type(word) ~= "string" then
      errors.raise(level + 1, "%s: args[%d] must be a string, got %s", call, key, type(word))
    end
    count = math.max(count, key)
  end
  for i = 1, count do
    if args[i] == nil then
      errors.raise(level + 1, "%s: args[%d] must be a string, got nil", call, i)
    end
  end
  return languages.command({ "program" }, {}, args)
end

-- ---------------------------------------------------------------- source text

--- Runs source text.
local function run_source(box, call, language, code, opts, level)
  if type(code) ~= "string" then
    errors.raise(level + 1, "%s: the code must be a string, got %s", call, type(code))
  end
  local command = checked_args(call, opts.args, level + 1)
  local program, message, failure, detail = begin(box, call, command, opts, level + 1)
  if not program then
    return nil, message, failure, detail
  end
  local row = language
  local variant = language.variant and language.variant(code)
  if variant then
    row = setmetatable(variant, { __index = language })
  end
  local r
  r, message, failure, detail = jobs.execute {
    box = box,
    call = call,
    level = 7,
    opts = program,
    args = opts.args,
    cwd = program.cwd,
    language = language,
    row = row,
    code = row.prepare and row.prepare(code) or code,
    complete = true,
  }
  return r, message, failure, detail
end

--- Runs source text of a language: python if nil.
---@param code string
---@param opts? table language, args (list of words), and the options of exec
---@return moonsand.CodeResult? result, string? message, string? code, table? detail
function M.run_code(box, code, opts)
  opts = options.check("box:run_code", opts, CODE)
  local name = opts.language or "python"
  local language = languages.by_name[name]
  if not language then
    local near = options.nearest(name, languages.by_name)
    return errors.fail("invalid", ("language: %s is not known%s"):format(options.quote(name),
      near and (" (did you mean '" .. near .. "'?)") or ""),
      { what = "language", started = false, provider = box.provider })
  end
  local r, message, failure, detail = run_source(box, "box:run_code", language, code, opts, 2)
  return errors.attribute(box, r, message, failure, detail)
end

---@alias moonsand.CodeHelper fun(box: table, code: string, opts: table?): table?, string?, string?

--- `box:python(code, opts)` and the like, by name.
---@type table<string, moonsand.CodeHelper>
M.helpers = {}

for _, language in ipairs(languages.list) do
  local call = "box:" .. language.name
  M.helpers[language.name] = function(box, code, opts)
    opts = options.check(call, opts, HELPER)
    local r, message, failure, detail = run_source(box, call, language, code, opts, 2)
    return errors.attribute(box, r, message, failure, detail)
  end
end

-- ---------------------------------------------------------------- files

--- From the first bytes of a file and its name to what runs it: a list of words, or a language.
local function interpreter_of(head, path)
  local program, argument = head:match "^#![ \t]*([^ \t\r\n%z]+)[ \t]*([^\r\n%z]*)"
  if program then
    argument = argument:gsub("[ \t]+$", "")
    return { program, argument ~= "" and argument or nil } -- as the kernel splits it
  elseif head:sub(1, 4) == "\127ELF" then
    return {}
  end
  local extension = path:match "[^/]%.(%w+)$"
  local language = extension and languages.by_extension[extension:lower()]
  if language then
    return nil, language
  end
  return nil, nil, ("cannot tell what runs %s: it has no #! line, and %s"):format(
    options.quote(path), extension and ("." .. extension .. " tells nothing") or "no extension")
end

--- Runs a script file. Its interpreter is `opts.interpreter` (a program or a list of words), or
--- what its #! line or its extension says. A relative path begins at `opts.cwd`, or at `box:cwd()`.
---@param path string
---@param args? string[]
---@param opts? table interpreter, and the options of exec
---@return moonsand.Result? result, string? message, string? code, table? detail
function M.run(box, path, args, opts)
  opts = options.check("box:run", opts, RUN)
  if type(path) ~= "string" then
    errors.raise(2, "box:run: a path is a string, got %s", type(path))
  end
  local command = checked_args("box:run", args, 2)
  local words = opts.interpreter
  if type(words) == "string" then
    words = { words }
  elseif words then
    programs.argv("box:run (interpreter)", words, nil, 2)
  end
  local program, message, code, detail = begin(box, "box:run", command, opts, 2)
  if not program then
    return errors.attribute(box, nil, message, code, detail)
  end
  local from_cwd = setmetatable({ cwd = function() return program.cwd end }, { __index = box })
  local full
  full, message, code, detail = paths.resolve(from_cwd, path)
  local language, head
  if full and not words then
    head, message, code, detail = box.files:read(full,
      { length = 512, timeout = program.timeout, cancel = program.cancel })
    if head then
      words, language, message = interpreter_of(head, path)
    end
  end
  if not full or not words and not head then
    return errors.attribute(box, jobs.not_started(message, code, detail))
  elseif not words and not language then
    return errors.fail("invalid", message,
      { path = full, what = "language", started = false, provider = box.provider })
  end
  if not path:find "^/" and (path:find "^%-" or words and #words == 0) then
    path = "./" .. path -- neither an option nor a name to be looked for
  end
  local r
  r, message, code, detail = jobs.execute {
    box = box,
    call = "box:run",
    level = 6,
    opts = program,
    args = args,
    cwd = program.cwd,
    language = language,
    row = language or {},
    interpreter = words,
    file = path,
  }
  return errors.attribute(box, r, message, code, detail)
end

-- ---------------------------------------------------------------- what is there

--- One program that looks at all languages, side by side.
local function survey()
  local script = {}
  for i, language in ipairs(languages.list) do
    local version = "v="
    if language.version then
      local words = { '"$p"', language.version }
      for name, value in pairs(language.env or {}) do
        table.insert(words, 1, ("%s='%s'"):format(name, value))
      end
      version = ("v=$(%s 2>&1 </dev/null)"):format(table.concat(words, " "))
    end
    script[i] = ([[{ %s; [ -n "$i" ] && { %s; printf '\036%%s\037%%s\037%%s' %s "$p" "$v"; }; } &]])
      :format(languages.finder(language), version, language.name)
  end
  return table.concat(script, "\n") .. "\nwait"
end

---@class moonsand.LanguageThere
---@field name string
---@field version? string
---@field interpreter string its path

--- The languages that are there.
---@param opts? { timeout?: number, cancel?: moonsand.Token }
---@return moonsand.LanguageThere[]? list, string? message, string? code, table? detail
function M.languages(box, opts)
  opts = options.check("box:languages", opts, CALL)
  box:check_open("box:languages", 2)
  local job = { box = box, call = "box:languages", opts = { cancel = opts.cancel },
    deadline = opts.timeout and loop.now() + opts.timeout }
  local r, message, code, detail = jobs.ask(job, survey())
  if not r then
    return errors.attribute(box, nil, message, code, detail)
  elseif r.timed_out then
    return errors.fail("timeout", "timed out", { result = r, provider = box.provider })
  end
  local found = {}
  for name, interpreter, text in r.stdout:gmatch "\30(%w+)\31([^\30\31]*)\31([^\30\31]*)" do
    found[name] = { name = name, interpreter = interpreter,
      version = text:match "%f[%d]%d+%.%d[%w.+-]*" or text:match "%f[%d]%d+" }
  end
  local list = {}
  for _, language in ipairs(languages.list) do
    list[#list + 1] = found[language.name]
  end
  return list
end

return M
