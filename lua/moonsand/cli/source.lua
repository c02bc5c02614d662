--- What the command-line tool is: its commands, their options, its exit status. The tool reads its
--- words by this table; the help, doc/moonsand.1 (tools/manpage) and the completion for bash
--- (tools/completion) are made from it.
---
--- In texts `word` is what a user types, and a blank line ends a paragraph.

local M = {}

M.name = "moonsand"
M.summary = "run what you do not trust, in a sandbox"

M.text = [[
Runs a program in a sandbox of its own, which ends with it: no files of yours, nothing of your
environment, no other processes, no network but its own loopback, no root and no daemon needed. Its
input and output are yours, byte by byte. `moonsand create` makes sandboxes that stay, and `--in` runs
programs in them.

`moonsand COMMAND --help` says more about a command.]]

--- How the value of an option is read: see words.lua.
---@class moonsand.cli.Option
---@field long string without its dashes
---@field short? string one letter
---@field value? string what its value is called; none: it takes none
---@field kind? "text"|"seconds"|"size"|"number"|"count"|"words" how the value is read
---@field many? boolean may be given more than once; its value is a list then
---@field complete? "file"|"directory"|string[] what the completion offers
---@field text string

---@type table<string, moonsand.cli.Option[]> groups of options
M.options = {
  sandbox = {
    title = "The sandbox",
    { long = "provider", value = "NAME", kind = "text",
      text = "Who makes the sandbox; `local`, this machine, if nothing is said." },
    { long = "image", value = "NAME", kind = "text",
      text = "What it is made from, with providers that have images." },
    { long = "workspace", value = "DIR", kind = "text", complete = "directory",
      text = "A directory of this machine that is `/workspace` inside: what is written there stays." },
    { long = "mount", value = "PATH:INSIDE[:MODE]", kind = "text", many = true, complete = "file",
      text = "Show a file or a directory of this machine at an absolute path inside: `ro`, which is "
        .. "the mode if none is said, `rw`, or `copy`, whose changes end with the sandbox." },
    { long = "root", value = "DIR", kind = "text", complete = "directory",
      text = "Another root file system, such as an unpacked image, instead of the `/usr` of this "
        .. "machine." },
    { long = "root-mode", value = "MODE", kind = "text", complete = { "ro", "copy" },
      text = "Whether that is as it is (`ro`), or a copy that may be changed (`copy`)." },
    { long = "network", value = "NAMES", kind = "words", many = true,
      text = "What programs may reach over HTTP and SOCKS: `example.org`, `*.example.org:443`, "
        .. "`10.1.2.0/24`, `@python` for its packages, `*` for all that is public. Or one word: "
        .. "`none`; `host`, the network of this machine as it is. What was refused is said at the end." },
    { long = "network-deny", value = "NAMES", kind = "words", many = true,
      text = "What they may not reach all the same." },
    { long = "memory", value = "SIZE", kind = "size",
      text = "Memory, of all in it: `512M`, `2G`. A limit that cannot be held on this machine is "
        .. "refused, with the cause, not ignored." },
    { long = "cpus", value = "NUMBER", kind = "number", text = "Processors; fractions are allowed." },
    { long = "processes", value = "COUNT", kind = "count",
      text = "Processes and threads (1024)." },
    { long = "disk", value = "SIZE", kind = "size", text = "All that is written (1G)." },
    { long = "inodes", value = "COUNT", kind = "count", text = "Files and directories (1000000)." },
    { long = "cpu-time", value = "SECONDS", kind = "seconds",
      text = "Seconds of processor that a program may use." },
    { long = "open-files", value = "COUNT", kind = "count",
      text = "Open files of a process (1024)." },
    { long = "file-size", value = "SIZE", kind = "size", text = "The size of one file." },
    { long = "allow-unenforced", value = "LIMIT", kind = "words", many = true,
      complete = { "cpus", "memory" },
      text = "Accept that this limit cannot be held here." },
    { long = "hostname", value = "NAME", kind = "text", text = "Its name inside (`sandbox`)." },
    { long = "isolation", value = "LAUNCHER", kind = "text", complete = { "native", "bwrap" },
      text = "Who makes its namespaces: `native`, or `bwrap`." },
    { long = "allow-syscall", value = "NAME", kind = "words", many = true,
      text = "Let programs make a system call that is kept from them, such as `ptrace`." },
  },
  program = {
    title = "The program",
    { long = "timeout", short = "t", value = "SECONDS", kind = "seconds",
      text = "End it, and all that it started, after so long: `1.5`, `90s`, `5m`, `2h`." },
    { long = "grace", value = "SECONDS", kind = "seconds",
      text = "At the timeout send TERM first, and KILL so much later." },
    { long = "env", short = "e", value = "NAME[=VALUE]", kind = "text", many = true,
      text = "Set a variable; without a value, as it is outside." },
    { long = "env-file", value = "FILE", kind = "text", complete = "file",
      text = "Set the variables of a file of lines `NAME=VALUE`." },
    { long = "clear-env", text = "Set no variables of its own, not even `PATH`." },
    { long = "cwd", short = "C", value = "DIR", kind = "text",
      text = "The directory to start in (`/workspace`)." },
    { long = "shell", value = "WORDS", kind = "text",
      text = "What runs a command that is text (`/bin/sh`): `bash`; or the words in front of the text, "
        .. "`bash -lc`." },
    { long = "umask", value = "MODE", kind = "text", text = "The mask of new files (`022`)." },
    { long = "no-stdin", short = "n",
      text = "Give it nothing to read, and leave our standard input to others." },
  },
  files = {
    title = "Files",
    { long = "put", value = "HOST[:INSIDE]", kind = "text", many = true, complete = "file",
      text = "Copy a file or a directory in, before the program starts. Without a path inside, and "
        .. "after one that ends with `/`, it keeps its name." },
    { long = "get", value = "INSIDE[:HOST]", kind = "text", many = true,
      text = "Copy a file or a directory out when the program has ended, however it ended." },
  },
  output = {
    title = "Output",
    { long = "json",
      text = "Print one JSON object with what came of it instead of passing output on. A stream that "
        .. "is not UTF-8 is there as `stdout_base64` or `stderr_base64`." },
    { long = "max-output", value = "SIZE", kind = "size",
      text = "With `--json`, keep so much of each stream (16M): the beginning and the end." },
    { long = "quiet", short = "q",
      text = "Show no progress, and do not say what ended the program." },
  },
  place = {
    title = "The place",
    { long = "in", value = "NAME", kind = "text",
      text = "Run it in this sandbox, which `moonsand create` has made, instead of a new one." },
  },
  provider = {
    { long = "provider", value = "NAME", kind = "text",
      text = "Whose sandbox it is; `local`, this machine, if nothing is said." },
  },
  quiet = {
    { long = "quiet", short = "q", text = "Say nothing but what was asked for." },
  },
  json = {
    { long = "json", text = "Print one JSON value." },
  },
  help = {
    { long = "help", short = "h", text = "Say how it is used." },
  },
}

---@class moonsand.cli.Command
---@field name string
---@field usage string what follows its name
---@field summary string
---@field text string
---@field options? moonsand.cli.Option[] of its own
---@field groups string[] of M.options
---@field least integer how many words it takes at least
---@field most integer
---@field passes? boolean options end at the first word: the rest is the program's
---@field lacks? string what to say when there are too few words
---@field complete? "file"|"command"|string[]
---@type moonsand.cli.Command[]
M.commands = {
  {
    name = "run",
    usage = "[OPTION…] FILE [ARGUMENT…]",
    summary = "run a script of this machine in a new sandbox",
    text = [[
Copies `FILE` into a new sandbox and runs it there. What runs it is said by `--interpreter` or
`--language`, by its `#!` line, or by its extension; languages that are compiled are. With `-` for
`FILE` the text is read from standard input, and `--language` is needed.]],
    options = {
      { long = "language", short = "l", value = "NAME", kind = "text", complete = "languages",
        text = "Run it as text in this language; `moonsand languages` lists them." },
      { long = "interpreter", short = "i", value = "WORDS", kind = "text",
        text = "Run it by this program: `python3 -u`." },
    },
    groups = { "program", "place", "files", "sandbox", "output" },
    least = 1,
    most = math.huge,
    lacks = "what to run? A file is needed",
    passes = true,
    complete = "file",
  },
  {
    name = "exec",
    usage = "[OPTION…] [--] PROGRAM [ARGUMENT…]",
    summary = "run a command in a new sandbox",
    text = [[
Runs a program that is in the sandbox: those in the `/usr` of this machine are. The words are given to
it as they are; no shell sees them. `-c` gives a text to the shell instead.]],
    options = {
      { long = "command", short = "c", value = "TEXT", kind = "text",
        text = "Have the shell run this text: `moonsand exec -c 'ls | wc -l'`." },
      { long = "background", short = "b",
        text = "With `--in`: leave it running, and print its id for `moonsand logs`." },
    },
    groups = { "program", "place", "files", "sandbox", "output" },
    least = 0,
    most = math.huge,
    passes = true,
    complete = "command",
  },
  {
    name = "shell",
    usage = "[OPTION…]",
    summary = "an interactive shell in a new sandbox",
    text = [[
Starts a shell, on a terminal of its own where the provider has terminals; elsewhere it is given line
after line. `exit` or Ctrl-D ends it, and a new sandbox with all that is in it.]],
    groups = { "program", "place", "files", "sandbox" },
    least = 0,
    most = 0,
  },
  {
    name = "create",
    usage = "[OPTION…] [NAME]",
    summary = "a sandbox that stays",
    text = [[
Makes a sandbox that lives on without us, and prints its name. `--in NAME` runs programs in it, as often as
you like; `moonsand rm` ends it. It ends by itself when nobody has used it for an hour, or as said here.]],
    options = {
      { long = "lifetime", value = "SECONDS", kind = "seconds", text = "End it after so long." },
      { long = "idle-timeout", value = "SECONDS", kind = "seconds",
        text = "End it when nobody has been connected for so long." },
    },
    groups = { "sandbox", "json" },
    least = 0,
    most = 1,
  },
  {
    name = "ls",
    usage = "[OPTION…]",
    summary = "the sandboxes that stay",
    text = "Lists the sandboxes of this user that were made to stay. With `--quiet` the names only.",
    groups = { "provider", "quiet", "json" },
    least = 0,
    most = 0,
  },
  {
    name = "rm",
    usage = "[OPTION…] NAME…",
    summary = "end sandboxes that stay",
    text = "Ends these sandboxes, with all that runs in them and all their files.",
    options = { { long = "all", text = "All of them." } },
    groups = { "provider" },
    least = 0,
    most = math.huge,
  },
  {
    name = "ps",
    usage = "[OPTION…] NAME",
    summary = "what was started in a sandbox",
    text = [[
Lists what was started in a sandbox, running and the last that ended. Those whose id begins with `bg` run in
the background, and have a log.]],
    options = { { long = "all", text = "List all processes in it instead, whoever started them." } },
    groups = { "provider", "json" },
    least = 1,
    most = 1,
    lacks = "of which sandbox? A name is needed",
  },
  {
    name = "logs",
    usage = "[OPTION…] NAME [ID]",
    summary = "what a program in the background has written",
    text = [[
Prints the log of a program that `moonsand exec --background` has started: of the last one, or of that with
this id.]],
    options = {
      { long = "follow", short = "f", text = "Go on until the program ends." },
    },
    groups = { "provider", "quiet", "json" },
    least = 1,
    most = 2,
    lacks = "of which sandbox? A name is needed",
  },
  {
    name = "cp",
    usage = "[OPTION…] FROM TO",
    summary = "copy files into a sandbox, or out of one",
    text = [[
Copies a file or a directory. One of the two is `NAME:PATH`, in a sandbox; without a path, and behind one that
ends with `/`, the file keeps its name.]],
    groups = { "provider", "quiet", "json" },
    least = 2,
    most = 2,
    lacks = "FROM and TO are needed",
    complete = "file",
  },
  {
    name = "forward",
    usage = "[OPTION…] NAME PORT[:LISTEN]",
    summary = "a port of this machine that leads into a sandbox",
    text = [[
Listens on this machine and passes each connection on to `PORT` in the sandbox, until Ctrl-C. Prints where it
listens: on `LISTEN`, a port or `ADDRESS:PORT`; if nothing is said, on any port of 127.0.0.1.]],
    groups = { "provider" },
    least = 2,
    most = 2,
    lacks = "a sandbox and a port are needed",
  },
  {
    name = "doctor",
    usage = "[--json]",
    summary = "what works on this machine, and why not",
    text = [[
Tries what matters, and says for each thing that does not work the cause and the cure. The exit status
is 0 when sandboxes can be made, else 1.]],
    groups = { "json" },
    least = 0,
    most = 0,
  },
  {
    name = "languages",
    usage = "[OPTION…]",
    summary = "the languages that can be run in a sandbox",
    text = [[
Lists the languages whose interpreter or compiler is in a new sandbox: name, version, path.]],
    options = {
      { long = "provider", value = "NAME", kind = "text", text = "Who makes the sandbox (`local`)." },
      { long = "image", value = "NAME", kind = "text", text = "What it is made from." },
    },
    groups = { "json" },
    least = 0,
    most = 0,
  },
  {
    name = "version",
    usage = "",
    summary = "the version",
    text = "Prints the version, as `moonsand --version` does.",
    groups = {},
    least = 0,
    most = 0,
  },
  {
    name = "help",
    usage = "[COMMAND]",
    summary = "how it is used",
    text = "Says how the tool or a command is used, as `moonsand COMMAND --help` does.",
    groups = {},
    least = 0,
    most = 1,
    complete = "commands",
  },
}

--- { status, what it means }.
M.exit_status = {
  { "124", "The program was ended by `--timeout`." },
  { "125", "moonsand failed: a word it does not know, no sandbox, a file that could not be copied. "
    .. "It says why." },
  { "126", "The program cannot be started: it is there, and is no program." },
  { "127", "There is no such program." },
  { "128+n", "The program was ended by signal n; a limit such as `--cpu-time` ends it by one, too. "
    .. "130 is also our own end by Ctrl-C." },
  { "other", "The program's own." },
}

--- { variable, what it does }.
M.environment = {
  { "NO_COLOR", "When set to anything, no colors. There are none either where output is no terminal." },
  { "COLUMNS", "How wide the help may be, where the terminal does not say." },
}

--- { command, what it does }.
M.examples = {
  { "moonsand run script.py --fast input.txt", "A script, with arguments of its own." },
  { "moonsand exec --timeout 10 -- make -C /workspace test", "A program, for ten seconds at most." },
  { "tar cz src | moonsand exec -c 'tar xz && ls -R'", "Bytes through a pipe." },
  { "moonsand exec --put data:in/ --get out:result -c './job in >out'",
    "Files in, a program, files out." },
  { "moonsand exec --workspace . --network '@npm' -- npm install",
    "In this directory, and nowhere else; with some of the network." },
  { "moonsand create dev && moonsand exec --in dev -b -- make serve && moonsand logs -f dev",
    "A sandbox that stays, and a program in the background." },
  { "moonsand exec --json -- id | jq .exit_code", "What came of it, for another program." },
}

--- The command of this name.
---@return moonsand.cli.Command?
function M.command(name)
  for _, command in ipairs(M.commands) do
    if command.name == name then
      return command
    end
  end
end

--- The options of a command, in groups: { title?, option … } each.
---@param command moonsand.cli.Command
---@return table[]
function M.groups_of(command)
  local groups = {}
  if command.options then
    groups[1] = command.options
  end
  for _, name in ipairs(command.groups) do
    groups[#groups + 1] = M.options[name]
  end
  groups[#groups + 1] = M.options.help
  return groups
end

--- How an option is written: `-t, --timeout SECONDS`.
---@param option moonsand.cli.Option
---@return string
function M.signature(option)
  return (option.short and "-" .. option.short .. ", " or "") .. "--" .. option.long
    .. (option.value and " " .. option.value or "")
end

return M
