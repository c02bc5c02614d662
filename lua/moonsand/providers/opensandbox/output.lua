--- The bytes that a command wrote, out of the files that its streams are: all of them, as they
--- were, up to the size that each file has when it is looked at.

local errors = require "moonsand.errors"
local services = require "moonsand.providers.opensandbox.service"

local M = {}

--- How often files are looked at while something comes, and while nothing does.
local SOONEST, LATEST = 0.03, 0.5

---@class moonsand.opensandbox.Source one stream
---@field name "stdout"|"stderr"
---@field path? string a file; nil: execd's log of the command `id`
---@field at integer bytes that were handed on
---@field head? boolean the log's first line, which is not the program's, is still to come

--- Hands on a file from where we are: what there is of it now.
local function take_file(self, source, limits)
  local response, message, code, detail = self.client:open(services.within(limits, {
    path = "/files/download", query = { path = source.path },
    headers = { Range = source.at > 0 and ("bytes=%d-"):format(source.at) or nil },
  }))
  if not response then
    return nil, message, code, detail
  elseif source.at > 0 and response.status ~= 206 then
    response:close()
    return errors.fail("protocol", "a range was asked for and the whole file came")
  end
  while true do
    local data
    data, message, code, detail = response.body:chunk()
    if not data then
      response:close()
      if message then
        return nil, message, code, detail
      end
      return true
    end
    source.at = source.at + #data
    if not self.job:output(source.name, data) then
      response:close()
      return true
    end
  end
end

--- Hands on what a log has beyond the cursor. Its first line is the script's, not the program's.
local function take_log(self, source, limits)
  while true do
    local text, response, code, detail = self.client:call(services.within(limits, {
      path = ("/command/%s/logs"):format(self.id), query = { cursor = source.at },
      max = 64 * 1024 * 1024,
    }))
    if not text then
      return nil, response, code, detail
    elseif text == "" then
      return true
    end
    if source.head then
      local line, rest = text:match "^([^\n]*)\n(.*)$"
      if not line then
        return true
      end
      source.head = false
      source.at = source.at + #line + 1
      self.on_head(line)
      text = rest
    end
    source.at = source.at + #text
    if text ~= "" and not self.job:output(source.name, text) then
      return true
    end
  end
end

--- The sizes of the files; none of what is not there.
local function sizes(self, limits)
  local query = {}
  for _, source in ipairs(self.sources) do
    if source.path then
      query[#query + 1] = { "path", source.path }
    end
  end
  if not query[1] then
    return {}
  end
  local found, message, code, detail =
    self.client:call(services.within(limits, { path = "/files/info", query = query }))
  if type(found) ~= "table" then
    return nil, message, code or "protocol", detail or {}
  end
  local sizes_of = {}
  for path, entry in pairs(found) do
    sizes_of[path] = type(entry) == "table" and tonumber(entry.size) or 0
  end
  return sizes_of
end

---@class moonsand.opensandbox.Output
---@field client moonsand.http.Client
---@field job moonsand.Job
---@field id? string of the command
---@field sources moonsand.opensandbox.Source[]
---@field on_head fun(line: string)
local Output = {}
Output.__index = Output

--- Hands on what there is. Answers how many bytes that were, or a failure.
---@return integer? count, string? message, string? code, table? detail
function Output:take(limits)
  local found, message, code, detail = sizes(self, limits)
  if not found then
    return nil, message, code, detail
  end
  local before, after = 0, 0
  for _, source in ipairs(self.sources) do
    before = before + source.at
    local ok = true
    if not source.path then
      ok, message, code, detail = take_log(self, source, limits)
    elseif (found[source.path] or 0) > source.at then
      ok, message, code, detail = take_file(self, source, limits)
    end
    if not ok then
      return nil, message, code, detail
    end
    after = after + source.at
  end
  return after - before
end

--- Hands it on as it comes, until `over()`; the rest is for `take`. Answers nothing, or a failure.
---@param over fun(): boolean
---@param news moonsand.Signal woken when it may be over
---@return string? message, string? code, table? detail
function Output:follow(over, news, limits)
  local delay = SOONEST
  while not over() do
    local count, message, code, detail = self:take(limits)
    if not count and code ~= "not_found" then -- the files come with the first moment of the program
      return message, code, detail
    end
    delay = (count or 0) > 0 and SOONEST or math.min(delay * 1.5, LATEST)
    if not over() then
      message, code, detail = services.pause(delay, limits, news)
      if message then
        return message, code, detail
      end
    end
  end
end

--- The output of one command.
---@param fields table client, job, id, sources, on_head
---@return moonsand.opensandbox.Output
function M.new(fields)
  return setmetatable(fields, Output)
end

--- The sources that a program's spec wants.
---@param spec table
---@param directory string
---@param log? boolean stdout is execd's log
---@return moonsand.opensandbox.Source[]
function M.sources(spec, directory, log)
  local sources = {}
  if log then
    sources[1] = { name = "stdout", at = 0, head = true }
  elseif spec.stdout then
    sources[1] = { name = "stdout", path = directory .. "/1", at = 0 }
  end
  if spec.stderr and not spec.merge then
    sources[#sources + 1] = { name = "stderr", path = directory .. "/2", at = 0 }
  end
  return sources
end

return M
