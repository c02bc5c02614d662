--- What a call has passed over, as users get it: { path, message, code } each. A sandbox may have any
--- number of files that cannot be read, with long names, so the list has bounds; what is beyond them
--- is not told.

local core = require "moonsand.core"
local errors = require "moonsand.errors"
local paths = require "moonsand.paths"

local M = {}

local MOST, MOST_BYTES = 100000, 8 * 1024 * 1024

---@class moonsand.Skipped
---@field list { path: string, message: string, code: string }[]
---@field private root string
---@field private most integer
---@field private bytes integer of text in the list
local Skipped = {}
Skipped.__index = Skipped

---@param root string what paths are relative to
---@param most? integer fewer than there may be anyway
---@return moonsand.Skipped
function M.new(root, most)
  return setmetatable({ list = {}, root = root, most = math.min(most or MOST, MOST), bytes = 0 },
    Skipped)
end

--- Adds one, of which there is a reason in words.
---@param path string relative; "" for the root itself
function Skipped:tell(path, message, code)
  local list = self.list
  path = path == "" and self.root or paths.join(self.root, path)
  self.bytes = self.bytes + #path + #message
  if #list < self.most and self.bytes <= MOST_BYTES then
    list[#list + 1] = { path = path, message = message, code = code }
  end
end

--- Adds one, of which there is an error number.
function Skipped:add(path, errno)
  self:tell(path, core.strerror(errno), errors.code(errno))
end

--- Moves what the core has put into a list of its own.
---@param passed { path: string, errno: integer }[]
function Skipped:take(passed)
  for i, skip in ipairs(passed) do
    self:add(skip.path, skip.errno)
    passed[i] = nil
  end
end

return M
