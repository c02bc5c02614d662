--- The records that the core unpacks trees from (src/entry.h), written in Lua: machine byte order,
--- since the core is on this machine.

local core = require "moonsand.core"

local M = {}

local DATA_MAX = 128 * 1024
local KIND = { entry = 1, data = 2, ending = 6 }
local TYPE = { file = 1, directory = 2, symlink = 3 }

local little = nil

local function bytes_of(value, width)
  local bytes = {}
  for i = 1, width do
    bytes[little and i or width + 1 - i] = string.char(value % 256)
    value = (value - value % 256) / 256
  end
  return table.concat(bytes)
end

--- The core knows its own byte order.
local function learn()
  if little == nil then
    little = true
    local probe = core.records()
    probe:feed(bytes_of(12, 4) .. bytes_of(KIND.ending, 4) .. bytes_of(0, 8))
    little = probe:next() == "end"
  end
end

local function text(value)
  return bytes_of(#value, 4) .. value .. "\0"
end

local function record(kind, body)
  return bytes_of(#body + 4, 4) .. bytes_of(kind, 4) .. body
end

--- One entry; its path is relative.
---@param e table
---@return string
function M.entry(e)
  learn()
  local seconds = math.max(0, math.floor(e.modified_at))
  return record(KIND.entry, bytes_of(TYPE[e.type], 4) .. bytes_of(e.mode, 4) .. bytes_of(0, 8)
    .. bytes_of(e.type == "file" and e.size or 0, 8) .. bytes_of(seconds, 8)
    .. bytes_of(math.floor((e.modified_at - seconds) % 1 * 1e9), 4) .. text(e.path)
    .. text(e.type == "symlink" and e.target or ""))
end

--- The next bytes of the file that the last entry named.
---@param data string
---@return string
function M.data(data)
  learn()
  local list = {}
  for from = 1, #data, DATA_MAX do
    list[#list + 1] = record(KIND.data, data:sub(from, from + DATA_MAX - 1))
  end
  return table.concat(list)
end

--- All is there.
---@param count integer
---@return string
function M.ending(count)
  learn()
  return record(KIND.ending, bytes_of(count, 8))
end

return M
