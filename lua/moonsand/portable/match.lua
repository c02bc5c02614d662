--- Glob patterns matched on the host, as src/agent/glob.c does it inside. Names are of the
--- sandbox's making, so time is bounded: the last star is the only one that is ever tried again.

local M = {}

--- As many parts a pattern may have, as for the agent.
local MOST = 63

--- A set, from behind its "[": a table of characters, whether it is negated, and what comes after;
--- nil when it is none.
local function read_set(part, at)
  local set, negated = {}, false
  if part:find("^[!^]", at) then
    negated, at = true, at + 1
  end
  local first = at
  while at <= #part and (part:sub(at, at) ~= "]" or at == first) do
    if part:sub(at, at) == "\\" and at < #part then
      at = at + 1
    end
    local low = part:byte(at)
    local high = low
    if part:find("^%-[^%]]", at + 1) then
      at = at + 2
      if part:sub(at, at) == "\\" and at < #part then
        at = at + 1
      end
      high = part:byte(at)
    end
    for c = low, high do
      set[string.char(c)] = true
    end
    at = at + 1
  end
  if at <= #part then
    return set, negated, at + 1
  end
end

--- What one part of a pattern is made of: "*", "?", a character, or a set.
local function tokenize(part)
  local tokens, at = {}, 1
  while at <= #part do
    local c = part:sub(at, at)
    local set, negated, after
    if c == "[" then
      set, negated, after = read_set(part, at + 1)
    end
    if set then
      tokens[#tokens + 1] = { set = set, negated = negated }
      at = after
    elseif c == "*" or c == "?" then
      tokens[#tokens + 1] = { wild = c }
      at = at + 1
    else
      if c == "\\" and at < #part then
        at = at + 1
        c = part:sub(at, at)
      end
      tokens[#tokens + 1] = { char = c }
      at = at + 1
    end
  end
  return tokens
end

local function matches_one(token, c)
  if token.set then
    return (token.set[c] or false) ~= token.negated
  end
  return token.wild == "?" or token.char == c
end

local function is_star(token)
  return token ~= nil and token.wild == "*"
end

--- Whether a name matches the tokens of a part.
local function matches(tokens, name)
  if name:sub(1, 1) == "." and not (tokens[1] and tokens[1].char == ".") then
    return false
  end
  local t, n, star, retry = 1, 1, nil, nil
  while n <= #name do
    local token = tokens[t]
    if is_star(token) then
      star, retry, t = t + 1, n, t + 1
    elseif token and matches_one(token, name:sub(n, n)) then
      t, n = t + 1, n + 1
    elseif star then
      retry = retry + 1
      t, n = star, retry
    else
      return false
    end
  end
  while is_star(tokens[t]) do
    t = t + 1
  end
  return tokens[t] == nil
end

--- The places in a pattern that may come next after a name: "**" stays where it is, and may also be
--- nothing.
local function step(parts, places, name)
  local after = {}
  for i in pairs(places) do
    local part = parts[i]
    if part == "**" then
      if name:sub(1, 1) ~= "." then
        after[i] = true
      end
    elseif part and matches(part, name) then
      after[i + 1] = true
    end
  end
  for i = 1, #parts do
    if after[i] and parts[i] == "**" then
      after[i + 1] = true
    end
  end
  return after
end

--- Whether the names of a path match the parts.
local function matches_path(parts, path)
  local places = { [1] = true }
  if parts[1] == "**" then
    places[2] = true
  end
  for name in path:gmatch "[^/]+" do
    places = step(parts, places, name)
    if next(places) == nil then
      return false
    end
  end
  return places[#parts + 1] == true or places[#parts] and parts[#parts] == "**" or false
end

--- A pattern, absolute and without braces: the directory before its first wildcard; how many levels
--- below it are looked at (0: it has no wildcard, and that is the path); whether a path below it
--- matches.
--- One that ends with "/" is for directories.
---@param pattern string
---@return string? base, integer depth, fun(entry: moonsand.Entry): boolean
function M.compile(pattern)
  local base, parts, depth = {}, {}, 0
  local directories = pattern:sub(-1) == "/"
  for part in pattern:gmatch "[^/]+" do
    if part == "**" then
      if parts[#parts] ~= "**" then
        parts[#parts + 1] = part
      end
      depth = math.huge
    elseif #parts > 0 or part:find "[*?[\\]" then
      parts[#parts + 1] = tokenize(part)
      depth = depth + 1
    elseif part ~= "." then
      base[#base + 1] = part
    end
  end
  if #parts > MOST then
    return nil
  end
  local directory = "/" .. table.concat(base, "/")
  local skip = #directory > 1 and #directory + 2 or 2
  return directory, depth, function(entry)
    return (not directories or entry.type == "directory")
      and matches_path(parts, entry.path:sub(skip))
  end
end

return M
