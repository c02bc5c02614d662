--- How a local sandbox is made: the zygote of this process, what it is told, and what can go wrong.

local core = require "moonsand.core"
local doctor = require "moonsand.doctor"
local errors = require "moonsand.errors"
local limiting = require "moonsand.providers.local.limits"
local loop = require "moonsand.loop"
local mounts = require "moonsand.providers.local.mounts"
local programs = require "moonsand.providers.local.program"

local M = {}

--- Where the helper program is: beside the C module.
M.agent = (core.module_path() or ""):gsub("[^/]*$", "") .. "agent"

--- Where bubblewrap is, which may make namespaces where this helper may not.
M.bwrap = "/usr/bin/bwrap"

local zygotes = setmetatable({}, { __mode = "k" }) -- by reactor

--- The zygote of this process; another one when it died.
local function zygote()
  local reactor, message, code, detail = loop.reactor()
  if not reactor then
    return nil, message, code, detail
  end
  local there = zygotes[reactor]
  if there and there:alive() then
    return there
  end
  local errno
  there, errno = core.zygote(reactor, M.agent)
  if not there then
    return doctor.unavailable("helper", errno, M.agent)
  end
  zygotes[reactor] = there
  return there
end

--- Why the agent could not become a sandbox.
local function not_made(stage, errno, plan)
  local mount, message, code, detail = mounts.failure(plan, stage, errno)
  if mount then
    return errors.fail(code, message, detail)
  elseif stage == "files" then
    return errors.errno(errno, "cannot create a sandbox")
  end
  return doctor.unavailable(stage, errno, M.agent)
end

--- Waits until the new sandbox is ready.
local function await_ready(raw, plan, limits)
  while true do
    local state, errno, stage = raw:state()
    if state == "ready" then
      return true
    elseif state == "broken" then
      return programs.unusable(nil, state)
    elseif state ~= "starting" then
      return not_made(stage, errno, plan)
    end
    local message, code, detail = loop.wait(limits, raw)
    if message then
      raw:close()
      return errors.fail(code, "the sandbox was not ready: " .. message, detail)
    end
  end
end

--- One try. A failure whose stage is "zygote" is worth another, with another zygote.
local function try(spec, plan, limits)
  local from, message, code, detail = zygote()
  if not from then
    return nil, message, code, detail
  end
  if spec.bwrap then
    spec.sight, message, code, detail = mounts.suit_bwrap(plan)
  else
    spec.sight, message, code, detail = mounts.prepare(plan, from, limits)
  end
  if spec.sight == nil then
    if detail.stage == "zygote" then
      from:close()
    end
    return nil, message, code, detail
  end
  spec.mounts = mounts.rows(plan)
  local raw, errno = from:create(spec)
  if not raw and from:alive() then
    return errors.errno(errno, "cannot create a sandbox")
  elseif not raw then
    return doctor.unavailable("zygote", errno, M.agent)
  end
  local ok
  ok, message, code, detail = await_ready(raw, plan, limits)
  if not ok then
    return nil, message, code, detail
  end
  return raw, from
end

--- Makes one, ready to use: also the zygote whose child it is. One that died is noticed at the latest
--- now, and replaced once.
local function make(spec, plan, limits)
  local raw, from, code, detail = try(spec, plan, limits)
  if not raw and detail.stage == "zygote" then
    raw, from, code, detail = try(spec, plan, limits)
  end
  return raw, from, code, detail
end

--- Makes one with its limits, and what holds them; nothing of that is left if it fails.
---@return userdata? raw, any from_or_message, string? code, table? detail, moonsand.local.Limits? planned
local function bounded(opts, isolation, spec, plan, limits)
  local planned, message, code, detail = limiting.plan(opts, M.agent, isolation)
  if not planned then
    return nil, message, code, detail
  end
  local raw, from
  local groups = planned.groups
  spec.bwrap = isolation == "bwrap" and M.bwrap or nil
  spec.disk, spec.inodes = planned.values.disk, planned.values.inodes
  spec.groups, spec.bounds_memory = groups and groups.handles, groups and groups.held.memory ~= nil
  raw, from, code, detail = make(spec, plan, limits)
  if not raw and groups then
    groups:remove()
  end
  return raw, from, code, detail, planned
end

--- The same by bwrap, where the helper may make no namespaces itself: `first` is that failure.
local function below_bwrap(first, opts, ...)
  local raw, from, code, detail, planned = bounded(opts, "bwrap", ...)
  if raw or code ~= "unavailable" and code ~= "unsupported" then
    return raw, from, code, detail, planned
  end
  return doctor.neither(first, from, detail)
end

--- Makes one as `create` wants it, of `spec`; what was asked for alone, or by bwrap where only that may.
---@param opts table of `create`
---@param isolation? "native"|"bwrap"
---@param spec { hostname: string, allow: string[], host_network: boolean, bwrap: string? }
---@param plan table what is mounted
---@return userdata? raw, any zygote_or_message, string? code, table? detail, moonsand.local.Limits? planned
function M.make(opts, isolation, spec, plan, limits)
  local raw, from, code, detail, planned = bounded(opts, isolation, spec, plan, limits)
  if not raw and not isolation and doctor.is_policy(detail) then
    return below_bwrap(detail, opts, spec, plan, limits)
  end
  return raw, from, code, detail, planned
end

return M
