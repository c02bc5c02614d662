--- One text for another in a file, whatever reads and writes it.

--- As `files:replace`, of an absolute path: how often it was there.
---@param read fun(driver: table, path: string, offset: integer, length: integer?, max: number, limits: table)
---@param write fun(driver: table, path: string, data: string, o: table, limits: table)
---@return integer? count, string? message, string? code, table? detail
return function(read, write, driver, path, old, new, max, limits)
  local text, message, code, detail = read(driver, path, 0, nil, max, limits)
  if not text then
    return nil, message, code, detail
  end
  local pieces, from = {}, 1
  while true do
    local first, last = text:find(old, from, true)
    if not first then
      break
    end
    pieces[#pieces + 1] = text:sub(from, first - 1)
    from = last + 1
  end
  local count = #pieces
  if count == 0 then
    return 0
  end
  pieces[count + 1] = text:sub(from)
  local ok
  ok, message, code, detail = write(driver, path, table.concat(pieces, new), {}, limits)
  if not ok then
    return nil, message, code, detail
  end
  return count
end
