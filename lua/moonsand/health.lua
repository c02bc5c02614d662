--- `:checkhealth moonsand`.

local M = {}

-- Neovim 0.10 has shorter names.
local report = vim.health or require "health"
local start = report.start or report.report_start
local ok = report.ok or report.report_ok
local warn = report.warn or report.report_warn
local fail = report.error or report.report_error
local info = report.info or report.report_info

local function examine(moonsand)
  for _, finding in ipairs(moonsand.doctor()) do
    if finding.ok then
      ok(finding.name)
    elseif finding.name:find("cjson", 1, true) then
      warn(finding.name .. ": " .. finding.cause, { finding.fix })
    else
      fail(finding.name .. ": " .. (finding.cause or "?"), { finding.fix })
    end
  end
end

local function languages(moonsand)
  start "moonsand: languages"
  local box, message = moonsand.create()
  if not box then
    return fail(message)
  end
  local list, why = box:languages { timeout = 20 }
  box:close()
  if not list then
    return fail(why)
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
  local place = require "moonsand.nvim.place"
  local moonsand, message = place.load()
  if not moonsand then
    return fail(message)
  end
  ok(("moonsand %s is loaded"):format(moonsand._VERSION))
  info("core: " .. (package.searchpath and package.searchpath("moonsand.core", package.cpath) or "?"))
  examine(moonsand)
  languages(moonsand)
end

return M
