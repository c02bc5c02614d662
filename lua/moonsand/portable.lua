--- What a provider lacks, done with plain commands inside the sandbox: a POSIX shell, and coreutils
--- or busybox. Nothing is asked of the provider but `start`. Names travel as arguments and data as
--- streams, so both may be any bytes; what comes back is parsed with limits, as the sandbox may
--- lie.

local change = require "moonsand.portable.change"
local look = require "moonsand.portable.look"
local processes = require "moonsand.portable.processes"
local shell = require "moonsand.portable.shell"
local texts = require "moonsand.text"
local transfer = require "moonsand.portable.transfer"
local watch = require "moonsand.portable.watch"

local M = {}

--- The file calls, as a provider would give them: see doc/providers.md.
M.files = {
  stat = look.stat,
  list = look.list,
  search = look.search,
  read = change.read,
  write = change.write,
  edit = change.edit,
  open = transfer.open,
  mkdir = change.mkdir,
  remove = change.remove,
  move = change.move,
  copy = change.copy,
  chmod = change.chmod,
  chown = change.chown,
  upload = transfer.upload,
  download = transfer.download,
  grep = watch.grep,
  watch = watch.watch,
}

M.ps = processes.ps
M.kill = processes.kill
M.sample = processes.sample
M.metrics = processes.metrics
M.tree = processes.tree

--- What programs find that are told nothing.
---@return table<string, string>? variables, string? message, string? code, table? detail
function M.environment(driver, limits)
  local text, message, code, detail =
    shell.run(driver, "exec cat /proc/self/environ", {}, { what = "getenv" }, limits)
  if not text then
    return nil, message, code, detail
  end
  local variables = texts.variables(text)
  variables.LC_ALL = nil -- ours
  return variables
end

return M
