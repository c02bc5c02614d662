--- Trees as `tar` knows them, to and from the records that the core packs and unpacks on the host's
--- side (src/entry.h): ustar, with GNU's long names, which every tar reads, and pax's, which some
--- write.

local M = {}

local BLOCK = 512
local ZEROS = ("\0"):rep(BLOCK)

local function padding(size)
  return ZEROS:sub(1, -size % BLOCK)
end

-- ---------------------------------------------------------------- writing

local function octal(value, width)
  local text = ("%0" .. width - 1 .. "o"):format(value)
  if #text < width then
    return text .. "\0"
  end
  -- GNU's form for what is larger: base 256
  local bytes = {}
  for i = width, 2, -1 do
    bytes[i] = string.char(value % 256)
    value = (value - value % 256) / 256
  end
  bytes[1] = "\128"
  return table.concat(bytes)
end

local function field(text, width)
  return text:sub(1, width) .. ("\0"):rep(width - #text)
end

local function block(name, mode, size, mtime, kind, link)
  local head = field(name, 100) .. octal(mode, 8) .. octal(0, 8) .. octal(0, 8) .. octal(size, 12)
    .. octal(mtime, 12)
  local tail = kind .. field(link, 100) .. "ustar  \0" .. ("\0"):rep(247)
  local sum = 8 * 32
  for i = 1, #head do
    sum = sum + head:byte(i)
  end
  for i = 1, #tail do
    sum = sum + tail:byte(i)
  end
  return head .. ("%06o\0 "):format(sum) .. tail
end

local function long_name(kind, text)
  return block("././@LongLink", 0, #text + 1, 0, kind, "") .. text .. "\0" .. padding(#text + 1)
end

local KINDS = { file = "0", directory = "5", symlink = "2" }

--- The header of an entry; its data, if it is a file, comes after it.
---@param entry table as the core's records tell it
---@return string
function M.header(entry)
  local path, target = "./" .. entry.path, entry.target or ""
  local size = entry.type == "file" and entry.size or 0
  return (#path > 99 and long_name("L", path) or "") .. (#target > 99 and long_name("K", target) or "")
    .. block(path, entry.mode, size, math.max(0, math.floor(entry.modified_at)), KINDS[entry.type],
      target)
end

M.padding = padding
M.ending = ZEROS .. ZEROS

-- ---------------------------------------------------------------- reading

---@class moonsand.TarReader
---@field private rest string
---@field private left integer bytes of the file that are still to come
---@field private pad integer
local Reader = {}
Reader.__index = Reader

---@return moonsand.TarReader
function M.reader()
  return setmetatable({ rest = "", left = 0, pad = 0, long = {}, over = false }, Reader)
end

function Reader:feed(data)
  self.rest = self.rest .. data
end

local function number(text)
  local first = text:byte(1)
  if first and first >= 128 then
    local value = first % 128
    for i = 2, #text do
      value = value * 256 + text:byte(i)
    end
    return value
  end
  return tonumber(text:match "[0-7]+" or "0", 8)
end

local function text_of(bytes)
  return bytes:match "^[^%z]*"
end

--- Pax's records: "20 path=…\n".
local function read_pax(self, body)
  local at = 1
  while at <= #body do
    local length = tonumber(body:match("^(%d+) ", at))
    if not length or length < 4 then
      return
    end
    local key, value = body:sub(at, at + length - 2):match "^%d+ ([^=]+)=(.*)$"
    if key then
      self.long[key] = value
    end
    at = at + length
  end
end

local TYPES = {
  ["0"] = "file", ["\0"] = "file", ["7"] = "file", ["5"] = "directory", ["2"] = "symlink",
  ["1"] = "link",
}
local LONGEST = 64 * 1024

--- One header, of which all is there: an entry, or nothing when it was about the next one.
local function read_header(self, bytes)
  local kind, size = bytes:sub(157, 157), number(bytes:sub(125, 136))
  if kind == "L" or kind == "K" or kind == "x" or kind == "g" then
    self.special = { kind = kind, size = size }
    return
  end
  local long = self.long
  self.long = {}
  local name, prefix = text_of(bytes:sub(1, 100)), text_of(bytes:sub(346, 500))
  if bytes:sub(258, 263) == "ustar\0" and prefix ~= "" then
    name = prefix .. "/" .. name
  end
  size = tonumber(long.size) or size
  local entry = {
    type = TYPES[kind] or "other",
    path = long.path or name,
    target = long.linkpath or text_of(bytes:sub(158, 257)),
    mode = number(bytes:sub(101, 108)) % 4096,
    size = size,
    modified_at = tonumber(long.mtime) or number(bytes:sub(137, 148)),
  }
  if entry.type == "file" then
    self.left, self.pad = size, -size % BLOCK
  end
  return entry
end

--- "entry", entry · "data", bytes · "end" · nil: more has to come · false: this is no such stream.
function Reader:next()
  while true do
    local rest = self.rest
    if self.over then
      return "end"
    elseif self.left > 0 then
      if rest == "" then
        return nil
      end
      local data = rest:sub(1, self.left)
      self.rest, self.left = rest:sub(#data + 1), self.left - #data
      return "data", data
    elseif self.pad > 0 then
      if #rest < self.pad then
        return nil
      end
      self.rest, self.pad = rest:sub(self.pad + 1), 0
    elseif self.special then
      local size = self.special.size
      if size > LONGEST then
        return false
      elseif #rest < size + -size % BLOCK then
        return nil
      end
      local body = rest:sub(1, size)
      self.rest = rest:sub(size + -size % BLOCK + 1)
      if self.special.kind == "x" then
        read_pax(self, body)
      elseif self.special.kind ~= "g" then
        self.long[self.special.kind == "L" and "path" or "linkpath"] = text_of(body)
      end
      self.special = nil
    elseif #rest < BLOCK then
      return nil
    elseif rest:sub(1, BLOCK) == ZEROS then
      self.over = true
    elseif rest:sub(258, 262) ~= "ustar" then
      return false
    else
      self.rest = rest:sub(BLOCK + 1)
      local entry = read_header(self, rest:sub(1, BLOCK))
      if entry then
        return "entry", entry
      end
    end
  end
end

return M
