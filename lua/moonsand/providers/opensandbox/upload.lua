--- Sending files to execd: pairs of a metadata part and a file part. The metadata must look like a
--- file, or execd does not find it.

local json = require "moonsand.wire.json"
local options = require "moonsand.options"
local services = require "moonsand.providers.opensandbox.service"

local M = {}

---@class moonsand.opensandbox.File
---@field path string
---@field body string|file*|fun(): string?, string?
---@field size? integer
---@field mode? string octal digits; execd takes them as a decimal number
---@field owner? string
---@field group? string

local function parts_of(file)
  local metadata, message, code, detail = json.encode { path = file.path, owner = file.owner,
    group = file.group, mode = file.mode and options.integer(tonumber(file.mode)) or nil }
  if not metadata then
    return nil, message, code, detail
  end
  return { name = "metadata", filename = "metadata", type = "application/json", body = metadata },
    { name = "file", filename = "file", type = "application/octet-stream", body = file.body,
      size = file.size }
end

--- Sends files in one request.
---@param client moonsand.http.Client
---@param files moonsand.opensandbox.File[]
---@param limits? moonsand.Limits
---@return true|nil ok, string? message, string? code, table? detail
function M.send(client, files, limits)
  local parts = {}
  for _, file in ipairs(files) do
    local metadata, body, code, detail = parts_of(file)
    if not metadata then
      return nil, body, code, detail
    end
    parts[#parts + 1] = metadata
    parts[#parts + 1] = body
  end
  local answer, message, code, detail =
    client:call(services.within(limits, { path = "/files/upload", multipart = parts }))
  if answer == nil and code then
    return nil, message, code, detail
  end
  return true
end

--- Sends one file of bytes.
---@param mode string
function M.write(client, path, data, mode, limits)
  return M.send(client, { { path = path, body = data, mode = mode } }, limits)
end

return M
