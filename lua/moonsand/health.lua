--- `:checkhealth moonsand`.

local M = {}

-- Neovim 0.10 has shorter names.
local report = vim.health or require "health"
local start = report.start or report.report_start
local ok = report.ok or report.report_ok
local warn = report.warn or report.report_warn
local fail = report.error or report.report_error
local info = report.info or report.report_info

--- What the machine allows. Where a sandbox can be made, all else can be done without.
local function examine(moonsand)
  local findings = moonsand.doctor()
  for _, finding in ipairs(findings) do
    if finding.ok then
      ok(finding.name)
    else
      local advice = finding.fix ~= "" and { finding.fix } or {}
      local say = findings.ok and advice[1] and warn or fail
      say(("%s: %s"):format(finding.name, finding.cause), advice)
    end
  end
  return findings.ok
end

local function languages(moonsand)
  start "moonsand: languages"
  local list, message = moonsand.with({}, function(box)
    return box:languages { timeout = 20 }
  end)
  if not list then
    return fail(message)
  end
  for _, language in ipairs(list) do
    ok(("%s: %s %s"):format(language.name, language.interpreter, language.version or ""))
  end
  if #list == 0 then
    warn "no interpreter was found in /usr"
  end
end

function M.check()
  start "moonsand"
  local moonsand, message = require("moonsand.nvim").load()
  if not moonsand then
    return fail(message)
  end
  ok(("moonsand %s is loaded"):format(moonsand._VERSION))
  info("its core is " .. (package.searchpath("moonsand.core", package.cpath)))
  if examine(moonsand) then
    languages(moonsand)
  end
end

return M
