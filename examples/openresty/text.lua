--- The bytes of a program as text that JSON can hold: what is no UTF-8 becomes U+FFFD.

local M = {}

local REPLACEMENT = "\239\191\189"

--- The well-formed sequences of more than one byte.
local SEQUENCES = {
  "^[\194-\223][\128-\191]",
  "^\224[\160-\191][\128-\191]",
  "^[\225-\236\238\239][\128-\191][\128-\191]",
  "^\237[\128-\159][\128-\191]", -- no surrogates
  "^\240[\144-\191][\128-\191][\128-\191]",
  "^[\241-\243][\128-\191][\128-\191][\128-\191]",
  "^\244[\128-\143][\128-\191][\128-\191]",
}

local function sequence(data, from)
  for _, pattern in ipairs(SEQUENCES) do
    local found = data:match(pattern, from)
    if found then
      return found
    end
  end
  return nil
end

local function clean(data)
  return (data:gsub("[\128-\255]+", function(run)
    local out, from = {}, 1
    while from <= #run do
      local found = sequence(run, from)
      out[#out + 1] = found or REPLACEMENT
      from = from + #(found or "?")
    end
    return table.concat(out)
  end))
end

--- Where a character begins whose last bytes are still to come; behind the end if there is none.
local function cut(data)
  local from = data:match "()[\194-\244][\128-\191]?[\128-\191]?$"
  local lead = from and data:byte(from)
  local length = lead and (lead >= 240 and 4 or lead >= 224 and 3 or 2) or 0
  return from and #data - from + 1 < length and from or #data + 1
end

--- For text that comes in pieces: a function to be given each piece, and nil at the end.
---@return fun(data: string?): string
function M.decoder()
  local rest = ""
  return function(data)
    if not data then
      return clean(rest)
    end
    data = rest .. data
    local from = cut(data)
    rest = data:sub(from)
    return clean(data:sub(1, from - 1))
  end
end

M.clean = clean

return M
