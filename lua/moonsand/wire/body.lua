--- Bodies. Of a request: a *source*, which is a text, or gives pieces one after the other. Of an
--- answer: what `moonsand.stream` reads from.

local errors = require "moonsand.errors"
local loop = require "moonsand.loop"

local M = {}

local PIECE = 128 * 1024

---@class moonsand.http.Source
---@field text? string all of it
---@field size? integer
---@field next fun(): string?, string? a piece; nil at the end; nil and why it cannot go on
---@field rewind? fun(): boolean from the start again

local function text_source(text)
  local given = false
  return {
    text = text,
    size = #text,
    next = function()
      if not given then
        given = true
        return text
      end
    end,
    rewind = function()
      given = false
      return true
    end,
  }
end

--- A file, from where it stands; its size is known when it can seek.
local function file_source(file)
  local start = file:seek()
  local stop = start and file:seek "end"
  if stop then
    file:seek("set", start)
  end
  return {
    size = stop and stop - start,
    next = function()
      local piece, message = file:read(PIECE)
      return piece, message
    end,
    rewind = stop and function()
      return file:seek("set", start) ~= nil
    end,
  }
end

--- The source over what a caller gives as a body.
---@param body string|file*|fun(): string?, string?
---@param size? integer of what a function gives
---@return moonsand.http.Source
function M.source(body, size)
  if type(body) == "string" then
    return text_source(body)
  elseif io.type(body) then
    return file_source(body)
  end
  return { size = size, next = body }
end

--- Gives one piece to a transfer, waiting while it has no room: true, false when the transfer takes
--- no more, or a failure.
local function give(transfer, piece, limits)
  local from = 1
  while from <= #piece do
    local count, why = transfer:write(piece, from)
    if count then
      from = from + count
    elseif why == "over" then
      return false
    elseif why == "size" then
      return errors.fail("protocol", "the body is longer than its size")
    else
      local message, code, detail = loop.wait(limits, transfer)
      if message then
        return nil, message, code, detail
      end
    end
  end
  return true
end

--- Whether the peer has refused before it had all: it need not be given the rest.
local function refused(transfer)
  local status = transfer:head()
  return transfer:over() or (status and status >= 300)
end

--- Gives all of a source to a transfer: true, or a failure of the source or a wait. How the
--- transfer itself fares is another question.
---@param transfer userdata
---@param source moonsand.http.Source
---@param limits moonsand.Limits
---@return true? done, string? message, string? code, table? detail
function M.feed(transfer, source, limits)
  local given = 0
  while not refused(transfer) do
    local piece, why, code = source.next()
    if piece == nil and why ~= nil then
      return errors.fail(type(code) == "string" and code or "cancelled",
        "the body could not be read: " .. tostring(why), { cause = why })
    elseif piece == nil then
      if source.size and given < source.size then
        return errors.fail("protocol", "the body is shorter than its size")
      end
      transfer:finish()
      return true
    elseif type(piece) ~= "string" then
      errors.raise(2, "a body function must give strings, got %s", type(piece))
    end
    given = given + #piece
    local taken, message, wait_code, detail = give(transfer, piece, limits)
    if not taken then
      return taken == false or nil, message, wait_code, detail
    end
  end
  return true
end

---@class moonsand.http.Body the raw stream over an answer's body
---@field transfer userdata
---@field explain fun(transfer: userdata, shown: string, provider: string?): table its failure
---@field shown string what was asked, for messages
---@field provider? string
local Body = {}
Body.__index = Body

function Body:take(kind, n)
  local data, why = self.transfer:take(kind, n)
  if why == "failed" then
    return nil, self.explain(self.transfer, self.shown, self.provider)
  end
  return data, why
end

function Body:id()
  return self.transfer:id()
end

function Body:arm()
  self.transfer:arm()
end

function Body:close()
  self.transfer:close()
end

function Body:ended()
  return self.transfer:over()
end

function Body:received()
  return self.transfer:received()
end

function Body:write()
  return nil, { code = "unsupported", message = "an answer is read, not written" }
end

function Body:shutdown() end

---@param transfer userdata
---@param explain fun(transfer: userdata, shown: string, provider: string?): table
---@param shown string
---@param provider? string
---@return moonsand.http.Body
function M.raw(transfer, explain, shown, provider)
  return setmetatable({ transfer = transfer, explain = explain, shown = shown, provider = provider },
    Body)
end

return M
