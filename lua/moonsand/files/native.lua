--- The file calls as the agent does them: a provider's `files` (doc/providers.md). Each takes the
--- driver, absolute paths and checked options.

local look = require "moonsand.files.look"
local reading = require "moonsand.files.read"
local rights = require "moonsand.files.rights"
local streams = require "moonsand.files.stream"
local transfer = require "moonsand.files.transfer"
local trees = require "moonsand.files.tree"
local watch = require "moonsand.files.watch"
local writing = require "moonsand.files.write"

return {
  stat = look.stat,
  list = look.list,
  search = look.search,
  read = reading.read,
  write = writing.write,
  edit = writing.edit,
  open = streams.open,
  mkdir = trees.mkdir,
  remove = trees.remove,
  move = trees.move,
  copy = trees.copy,
  chmod = rights.chmod,
  chown = rights.chown,
  upload = transfer.upload,
  download = transfer.download,
  watch = watch.watch,
  grep = watch.grep,
}
