--- What is known of languages: one table, one row a language. Everything that runs, compiles or
--- recognizes source text reads it here; a new language is a new row.
---
--- Commands are lists in which a word may be one of
---   $tool     the interpreter or compiler that was found, with the words it needs to run a file
---   $file     the source file
---   $program  where the compiled program goes
---   $cwd      the directory that the code runs in

local failures = require "moonsand.code.failures"

local M = {}

---@class moonsand.Language
---@field name string
---@field aliases? string[]
---@field extensions string[]
---@field candidates (string|moonsand.LanguageTool)[] the first that is there is taken
---@field file string what a source file of it is called
---@field run? string[] runs a file; { "$tool", "$file" } if nil
---@field code? string[] runs source text that was put into a file; as `run` if nil
---@field compile? string[] makes $program; then `run` is { "$program" }
---@field variant? fun(code: string): table? fields that replace those of the row for this text
---@field prepare? fun(code: string): string the text as it goes into the file
---@field env? table<string, string> variables that are set unless they are already
---@field version? string shell words that make the tool tell its version
---@field text? boolean `code` leaves the value of the last expression in a file "text" beside $file
---@field misfit? string a line of stderr like this: it was not compiled, though nothing compiles it
---@field failure? fun(lines: string[]): string?, string?, integer? name, message, first line

---@class moonsand.LanguageTool
---@field [1] string the program
---@field args? string[] words after it
---@field test? string shell words after it that succeed when it will do

-- ---------------------------------------------------------------- drivers

--- Runs a file as `python3 file` would, but that modules come from the working directory, that the
--- file is called main.py in tracebacks, which show nothing of this, and that the value of the last
--- expression goes to the file "text". A cut value is better than one that nobody can read.
local PYTHON = [[
import sys

def run():
    here = sys.path and sys.path[0] == ''
    if here:
        del sys.path[0]  # a file ast.py or os.py of the user is not meant for us
    import _ast, builtins, os
    path, name, opener = sys.argv.pop(1), 'main.py', open
    if os.path.lexists(name):
        name = path
    with opener(path, 'rb') as file:
        source = file.read()
    sys.argv[0] = name

    class Source:
        driver = sys.modules['__main__']
        def get_source(self, _=None):
            return source.decode('utf-8', 'replace')

    main = type(sys)('__main__')
    main.__file__, main.__loader__, main.__builtins__ = path, Source(), builtins
    sys.modules['__main__'] = main
    mine = globals()

    def show(kind, value, trace):
        try:
            sys.stdout.flush()
        except BaseException:
            pass
        while trace and trace.tb_frame.f_globals is mine:
            trace = trace.tb_next
        shadow = here and sys.path and sys.path[0] == ''
        try:
            if shadow:
                del sys.path[0]
            import linecache, traceback
            lines = main.__loader__.get_source().splitlines(True)
            linecache.cache[name] = len(source), None, lines, name
            traceback.print_exception(kind, value, trace)
        except Exception:
            sys.__excepthook__(kind, value.with_traceback(trace), trace)
        finally:
            if shadow:
                sys.path.insert(0, '')
        if issubclass(kind, KeyboardInterrupt):
            try:  # it is to end by SIGINT; what we imported has made python forget that
                exec('raise KeyboardInterrupt')
            except KeyboardInterrupt:
                pass

    sys.excepthook = show
    if here:
        sys.path.insert(0, '')
    tree = compile(source, name, 'exec', _ast.PyCF_ONLY_AST, True)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
    code = compile(tree, name, 'exec', 0, True)
    if last is not None:
        last = compile(_ast.Expression(last.value), name, 'eval', 0, True)
    del tree
    exec(code, main.__dict__)
    if last is not None:
        value = eval(last, main.__dict__)
        if value is not None:
            text = repr(value)[:1000000].encode('utf-8', 'backslashreplace')
            try:
                how = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with opener(os.open(path[:-7] + 'text', how, 0o600), 'wb') as file:
                    file.write(text)
            except OSError:
                pass

run()
]]

--- Runs a CommonJS file as if it lay in the working directory, so that `require("./x")` and
--- node_modules are found there.
local NODE = [[
((Module, fs, path) => {
  const file = process.argv[1], name = path.resolve("main.js"), main = new Module(name);
  process.argv[1] = name;
  main.id = ".";
  main.filename = name;
  main.paths = Module._nodeModulePaths(process.cwd());
  process.mainModule = main;
  const text = fs.readFileSync(file, "utf8");
  main._compile(text.replace(/^\uFEFF/, "").replace(/^#!.*/, ""), name);
  main.loaded = true;
})(require("module"), require("fs"), require("path"));
]]

--- Whether some line begins with this word, and one of these follows it.
local function has_line(code, word, follows)
  for at in code:gmatch("\n[^%S\n]*" .. word .. "()") do
    if code:find("^%s*" .. follows, at) then
      return true
    end
  end
  return false
end

--- Text that only works as an ES module.
local function node_variant(code)
  code = "\n" .. code
  if has_line(code, "import", "[%w_${*\"']") or has_line(code, "export", "[%w_{*]")
    or code:find "\n[%w_$ =%[%]{},(]*await[%s(]" and not code:find("require(", 1, true) then
    return { file = "main.mjs", code = { "$tool", "$file" } }
  end
end

local function php_open(code)
  return code:find("<?", 1, true) and code or "<?php " .. code
end

-- ---------------------------------------------------------------- the table

---@type moonsand.Language[]
M.list = {
  {
    name = "python",
    aliases = { "python3", "py" },
    extensions = { "py" },
    candidates = { "python3", "python" },
    file = "main.py",
    code = { "$tool", "-c", PYTHON, "$file" },
    version = "--version",
    text = true,
    failure = failures.python,
  },
  {
    name = "node",
    aliases = { "nodejs", "javascript", "js" },
    extensions = { "js", "mjs", "cjs" },
    candidates = { "node", "nodejs" },
    file = "main.js",
    code = { "$tool", "-e", NODE, "$file" },
    variant = node_variant,
    version = "--version",
    failure = failures.node,
  },
  {
    name = "typescript",
    aliases = { "ts" },
    extensions = { "ts", "mts", "cts" },
    candidates = {
      -- From 22.18 on.
      { "node", test = "-e 'process.exit(process.features.typescript ? 0 : 1)'" },
      "tsx",
      { "deno", args = { "run", "--quiet", "--allow-all", "--no-prompt" } },
      { "bun", args = { "run" } },
    },
    file = "main.ts",
    version = "--version",
    failure = failures.node,
  },
  {
    name = "bash",
    extensions = { "bash" },
    candidates = { "bash" },
    file = "main.sh",
    version = "--version",
    failure = failures.shell,
  },
  {
    name = "sh",
    aliases = { "shell" },
    extensions = { "sh" },
    candidates = { "sh" },
    file = "main.sh",
    failure = failures.shell,
  },
  {
    name = "lua",
    extensions = { "lua" },
    candidates = { "lua5.4", "lua", "luajit", "lua5.3", "lua5.1" },
    file = "main.lua",
    version = "-v",
    failure = failures.lua,
  },
  {
    name = "ruby",
    aliases = { "rb" },
    extensions = { "rb" },
    candidates = { "ruby" },
    file = "main.rb",
    version = "--version",
    failure = failures.ruby,
  },
  {
    name = "perl",
    aliases = { "pl" },
    extensions = { "pl" },
    candidates = { "perl" },
    file = "main.pl",
    version = "-e 'printf(\"%vd\", $^V)'",
    failure = failures.perl,
  },
  {
    name = "php",
    extensions = { "php" },
    candidates = { "php" },
    file = "main.php",
    -- Errors belong on stderr, once.
    run = { "$tool", "-d", "display_errors=stderr", "-d", "log_errors=0", "$file" },
    prepare = php_open,
    version = "--version",
    failure = failures.php,
  },
  {
    name = "go",
    aliases = { "golang" },
    extensions = { "go" },
    candidates = { "go", "/usr/local/go/bin/go" },
    file = "main.go",
    -- `go run` would tell every exit code as 1.
    compile = { "$tool", "build", "-o", "$program", "$file" },
    -- The cache outlives one run: without it the standard library is compiled each time.
    env = {
      GOCACHE = "/tmp/.cache/go-build",
      GOPATH = "/tmp/.cache/go",
      XDG_CONFIG_HOME = "/tmp/.cache", -- its telemetry would go to the workspace
      GOTOOLCHAIN = "local",
      GOFLAGS = "-mod=mod",
    },
    version = "version",
    failure = failures.panic,
  },
  {
    name = "rust",
    aliases = { "rs" },
    extensions = { "rs" },
    candidates = { "rustc" },
    file = "main.rs",
    compile = { "$tool", "--edition", "2021", "-O", "-o", "$program", "$file" },
    version = "--version",
    failure = failures.panic,
  },
  {
    name = "java",
    extensions = { "java" },
    candidates = { "java" },
    file = "Main.java", -- its class may have any name (JEP 330)
    run = { "$tool", "-XX:-UsePerfData", "$file" },
    version = "-XX:-UsePerfData -version",
    misfit = "^error: compilation failed",
    failure = failures.java,
  },
  {
    name = "c",
    extensions = { "c" },
    candidates = { "cc", "gcc", "clang", "tcc" },
    file = "main.c",
    compile = { "$tool", "-O2", "-I", "$cwd", "-o", "$program", "$file", "-lm" },
    version = "--version",
  },
  {
    name = "cpp",
    aliases = { "c++", "cxx" },
    extensions = { "cpp", "cc", "cxx" },
    candidates = { "c++", "g++", "clang++" },
    file = "main.cpp",
    compile = { "$tool", "-O2", "-I", "$cwd", "-o", "$program", "$file" },
    version = "--version",
    failure = failures.cpp,
  },
}

--- By name and alias, and by extension.
---@type table<string, moonsand.Language>
M.by_name, M.by_extension = {}, {}

for _, language in ipairs(M.list) do
  M.by_name[language.name] = language
  for _, alias in ipairs(language.aliases or {}) do
    M.by_name[alias] = language
  end
  for _, extension in ipairs(language.extensions) do
    M.by_extension[extension] = language
  end
end

-- ---------------------------------------------------------------- commands

--- One of a language's tools, as a table.
---@param language moonsand.Language
---@param number integer
---@return moonsand.LanguageTool
function M.tool(language, number)
  local tool = language.candidates[number]
  return type(tool) == "string" and { tool } or tool
end

--- Shell text that sets $i to the number of the first tool that is there, and $p to its path.
---@param language moonsand.Language
---@return string
function M.finder(language)
  local text = { "i= p=; " }
  for i in ipairs(language.candidates) do
    local tool = M.tool(language, i)
    text[#text + 1] = ("%s p=$(command -v %s)%s; then i=%d; "):format(i == 1 and "if" or "elif",
      tool[1], tool.test and (' && "$p" %s >/dev/null 2>&1 </dev/null'):format(tool.test) or "", i)
  end
  text[#text + 1] = "fi"
  return table.concat(text)
end

--- Fills in a command.
---@param words string[]
---@param values table<string, string|string[]> by placeholder
---@param args? string[] words that follow
---@return string[]
function M.command(words, values, args)
  local argv = {}
  local function add(word)
    argv[#argv + 1] = word
  end
  for _, word in ipairs(words) do
    local value = values[word] or word
    if type(value) == "table" then
      for _, each in ipairs(value) do
        add(each)
      end
    else
      add(value)
    end
  end
  for _, word in ipairs(args or {}) do
    add(word)
  end
  return argv
end

return M
