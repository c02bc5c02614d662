--- What a user would pick instead, each as a function that runs one program to its end and answers
--- what it wrote. A rival that is not there is nil; `M.missing` says why.

local M = { missing = {} }

--- Loads the C floor; `dir` is where the Makefile put bench/*.c.
---@param dir string
function M.load(dir)
  M.nothing = dir .. "/nothing"
  M.floor = assert(package.loadlib(dir .. "/floor", "luaopen_floor"))()
end

local function which(name)
  local pipe = io.popen("command -v " .. name .. " 2>/dev/null")
  local path = pipe:read "l"
  pipe:close()
  return path and path:sub(1, 1) == "/" and path or nil
end

-- ---------------------------------------------------------------- io.popen

local function quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

function M.popen(...)
  local words = { ... }
  for i, word in ipairs(words) do
    words[i] = quote(word)
  end
  local pipe = assert(io.popen(table.concat(words, " ")))
  local text = pipe:read "*a"
  pipe:close()
  return text
end

-- ---------------------------------------------------------------- luv

local has_luv, uv = pcall(require, "luv")

if has_luv then
  --- As luv's manual does it: a pipe, callbacks for data and exit; the loop until both came.
  function M.luv(path, ...)
    local pipe, pieces, handle = uv.new_pipe(false), {}, nil
    local failure
    handle, failure = uv.spawn(path, { args = { ... }, stdio = { nil, pipe } }, function()
      handle:close()
    end)
    assert(handle, failure)
    pipe:read_start(function(err, data)
      assert(not err, err)
      if data then
        pieces[#pieces + 1] = data
      else
        pipe:close()
      end
    end)
    uv.run()
    return table.concat(pieces)
  end
else
  M.missing.luv = "luv is not installed for this Lua"
end

-- ---------------------------------------------------------------- bwrap

local bwrap = which "bwrap"

--- The isolation of a moonsand sandbox, as far as bwrap has it: all namespaces, no capabilities, no
--- nested user namespaces, /usr read-only, the rest private. (No seccomp filter, no sized tmpfs:
--- that is in bwrap's favour.)
local function bwrap_words()
  local words = {
    bwrap, "--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent",
    "--new-session", "--clearenv", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000",
    "--hostname", "sandbox", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev",
    "--tmpfs", "/tmp", "--tmpfs", "/workspace", "--chdir", "/workspace",
    "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache",
    "--ro-bind-try", "/etc/alternatives", "/etc/alternatives",
    "--ro-bind", M.nothing, "/nothing",
  }
  for _, name in ipairs { "bin", "lib", "lib64", "sbin" } do
    table.insert(words, "--symlink")
    table.insert(words, "usr/" .. name)
    table.insert(words, "/" .. name)
  end
  return words
end

--- Decides whether bwrap works here; after `load`.
function M.probe_bwrap()
  if not bwrap then
    M.missing.bwrap = "bwrap is not installed"
    return
  end
  local words = bwrap_words()
  local function with(call, ...)
    local all = { (table.unpack or unpack)(words) }
    for i = 1, select("#", ...) do
      all[#all + 1] = (select(i, ...))
    end
    return call((table.unpack or unpack)(all))
  end
  local ok, message = pcall(with, M.floor.run, "/nothing")
  if not ok then
    M.missing.bwrap = "bwrap cannot make a sandbox here: " .. message
    return
  end
  --- A sandbox for this one command.
  function M.bwrap(...)
    return with(M.floor.run, ...)
  end

  --- Seconds until a program runs in a new sandbox.
  function M.bwrap_ready()
    return with(M.floor.first_byte, "/nothing", "say")
  end
end

-- ---------------------------------------------------------------- docker

--- Decides whether there is an engine with an image to run: MOONSAND_BENCH_IMAGE, else the first.
function M.probe_docker()
  local docker = which "docker" or which "podman"
  if not docker then
    M.missing.docker = "neither docker nor podman is installed"
    return
  end
  local pipe = io.popen(quote(docker) .. " images -q 2>/dev/null")
  local image = pipe:read "l"
  pipe:close()
  image = os.getenv "MOONSAND_BENCH_IMAGE" or image
  if not image then
    M.missing.docker = docker .. ": no engine answers, or it has no image"
    return
  end
  local container =
    M.popen(docker, "run", "-d", "--rm", "--network", "none", image, "sleep", "3600"):match "^%x+"
  if not container then
    M.missing.docker = docker .. " could not start a container from " .. image
    return
  end
  --- A container for this one command.
  function M.docker_run(...)
    return M.floor.run(docker, "run", "--rm", "--network", "none", image, ...)
  end

  --- In a container that runs already.
  function M.docker_exec(...)
    return M.floor.run(docker, "exec", container, ...)
  end

  function M.stop_docker()
    M.popen(docker, "rm", "-f", container)
  end
end

return M
