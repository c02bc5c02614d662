--- What each host adds to a wake, and what nginx serves meanwhile. The hosts are processes of their
--- own, which take turns; bench/hosts/probe.lua runs in all of them.

local stats = require "stats"

local ROUNDS, WAKES = 7, 300
local SEQUENTIAL, CONCURRENT = 1000, 64
local PROGRAMS = 100
local CLIENTS, SECONDS = 8, 3 -- of wrk

local function quote(word)
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

local function output_of(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read "*a"
  pipe:close()
  return text
end

local function has(program)
  return output_of("command -v " .. program .. " || :") ~= ""
end

--- Adds the samples that a probe has printed.
local function gather(samples, text)
  local count = 0
  for line in text:gmatch "[^\n]+" do
    samples[#samples + 1] = assert(tonumber(line), line)
    count = count + 1
  end
  assert(count > 0, "a probe gave nothing")
end

-- ---------------------------------------------------------------- the hosts

--- A command that runs the probe in a host.
local function probe(bench, variant, program, words)
  local root = bench.here .. "/.."
  return ("env LUA_PATH=%s LUA_CPATH=%s MOONSAND_PROBE=%s timeout 120 %s </dev/null"):format(
    quote(("%s/lua/?.lua;%s/lua/?/init.lua;;"):format(root, root)),
    quote(("%s/../%s/?.so;;"):format(bench.build, variant)), quote(words), program)
end

local function hosts_of(bench)
  local file = quote(bench.here .. "/hosts/probe.lua")
  local hosts = {
    { name = "plain 5.4", variant = "5.4", program = "lua5.4 " .. file },
    { name = "luv", variant = "5.4", program = "lua5.4 " .. file .. " luv", base = "plain 5.4",
      needs = "lua5.4", budget = 20e-6 },
    { name = "plain LuaJIT", variant = "jit", program = "luajit " .. file, needs = "luajit" },
    { name = "Neovim", variant = "jit", base = "plain LuaJIT", needs = "nvim", budget = 80e-6,
      program = "nvim --headless -u NONE -i NONE -n -c " .. quote("luafile " .. file:sub(2, -2)) },
  }
  local present = {}
  for _, host in ipairs(hosts) do
    if not host.needs or has(host.needs) then
      present[#present + 1] = host
      function host.run(words)
        return output_of(probe(bench, host.variant, host.program, words))
      end
    else
      bench.skip(host.name, host.needs .. " is not installed")
    end
  end
  return present
end

-- ---------------------------------------------------------------- nginx

--- A server with one worker; nil when there is no nginx with the Lua module.
local function start_nginx(bench)
  local modules = has "nginx" and has "curl"
    and output_of "nginx -V 2>&1":match "%-%-modules%-path=(%S+)"
  if not modules or not io.open(modules .. "/ngx_http_lua_module.so") then
    bench.skip("nginx", "nginx with its Lua module, or curl, is not installed")
    return nil
  end
  local dir = output_of "mktemp -d":gsub("%s+$", "")
  local here = output_of("cd " .. quote(bench.here) .. " && pwd"):gsub("%s+$", "")
  local build = output_of("cd " .. quote(bench.build .. "/..") .. " && pwd"):gsub("%s+$", "")
  local is_root = output_of "id -u" == "0\n"
  -- A copy, which the worker's user can read wherever the tree lies.
  assert(os.execute(([[cd %s && mkdir so tmp && chmod 755 . && cp -R %s/../lua . &&
    mkdir lua/hosts && cp %s/hosts/probe.lua lua/hosts && cp -R %s/jit/moonsand so]]):format(dir,
    here, here, build)))
  if is_root then
    os.execute("chown -R www-data " .. dir)
  end
  local port = 20000 + tonumber(output_of "echo $$") % 10000
  local values = {
    USER = is_root and "user www-data;" or "",
    MODULES = modules,
    DIR = dir,
    PATH = dir .. "/lua/?.lua;" .. dir .. "/lua/?/init.lua;;",
    CPATH = dir .. "/so/?.so;;",
    PORT = tostring(port),
  }
  local conf = assert(io.open(bench.here .. "/hosts/nginx.conf")):read "*a"
  local file = assert(io.open(dir .. "/nginx.conf", "w"))
  file:write((conf:gsub("@(%u+)@", values)))
  file:close()
  assert(os.execute(("nginx -p %s -c %s/nginx.conf -e %s/error.log"):format(dir, dir, dir)))
  local url = "http://127.0.0.1:" .. port
  output_of("curl -sS --retry 50 --retry-connrefused --retry-delay 1 " .. url .. "/hello")
  return {
    url = url,
    run = function(words)
      return output_of(("curl -sSf --max-time 120 %s"):format(quote(url .. "/probe?"
        .. words:gsub(" ", "%%20"))))
    end,
    stop = function()
      os.execute(([[kill -QUIT "$(cat %s/nginx.pid)"; while [ -e %s/nginx.pid ]; do sleep 0.05; done
        cat %s/error.log >&2; rm -rf %s]]):format(dir, dir, dir, dir))
    end,
  }
end

--- Requests a second to /hello.
local function requests(nginx)
  local text = output_of(("wrk -t1 -c%d -d%ds %s/hello"):format(CLIENTS, SECONDS, nginx.url))
  assert(not text:find "Socket errors" and not text:find "Non%-2xx", text)
  return tonumber(text:match "Requests/sec: +([%d.]+)")
end

--- Requests a second while programs run, which a request in the background holds.
local function requests_beside(nginx)
  local holder = assert(io.popen(("curl -sSN '%s/hold?%d' & echo $!; wait $! 2>/dev/null"):format(
    nginx.url, PROGRAMS)))
  local pid = holder:read "*l"
  for _ = 1, PROGRAMS do
    assert(holder:read "*l" == "started", "a program did not start")
  end
  local rate = requests(nginx)
  os.execute("kill " .. pid)
  holder:close()
  return rate
end

-- ---------------------------------------------------------------- the case

--- One kind of wake in all hosts, in turns, as what each adds to its plain Lua.
---@param kind string what probe.lua calls it
---@param name string what the table calls it
local function measure_wakes(bench, hosts, kind, name)
  local samples, all = {}, {}
  for _, host in ipairs(hosts) do
    samples[host] = {}
  end
  for _ = 1, bench.quick and 1 or ROUNDS do
    for _, host in ipairs(hosts) do
      gather(samples[host], host.run(kind .. " " .. WAKES))
    end
  end
  for _, host in ipairs(hosts) do
    all[host.name] = bench.sampled(name, host.name, stats.summarize(samples[host]))
  end
  for _, host in ipairs(hosts) do
    local base = all[host.base]
    for _, share in ipairs(base and { "p50", "p99" } or {}) do
      bench.value { name = ("%s: added to %s, %s"):format(host.name, name, share),
        value = all[host.name][share] - base[share],
        target = share == "p50" and host.budget or nil }
    end
  end
end

local function measure_execs(bench, nginx, plain)
  local own, theirs = {}, {}
  gather(own, nginx.run("sequential " .. bench.rounds(SEQUENTIAL)))
  gather(theirs, plain.run("sequential " .. bench.rounds(SEQUENTIAL)))
  own = bench.sampled("exec of true", "in nginx", stats.summarize(own))
  theirs = bench.sampled("exec of true", "in plain LuaJIT", stats.summarize(theirs))
  bench.ratio { name = own.n .. " execs, one after the other", ours = own.p50, theirs = theirs.p50,
    rival = "plain LuaJIT" }
  own, theirs = {}, {}
  gather(own, nginx.run("concurrent " .. CONCURRENT))
  gather(theirs, plain.run("concurrent " .. CONCURRENT))
  local group = CONCURRENT .. " execs at once"
  own = bench.sampled(group, "in nginx", stats.summarize(own))
  theirs = bench.sampled(group, "in plain LuaJIT", stats.summarize(theirs))
  bench.ratio { name = group, ours = own.p50, theirs = theirs.p50, rival = "plain LuaJIT" }
end

local function measure_requests(bench, nginx)
  if not has "wrk" then
    bench.skip("requests of nginx", "wrk is not installed")
    return
  end
  local alone, beside = {}, {}
  requests(nginx) -- warm
  for i = 1, bench.quick and 1 or 5 do
    alone[i] = requests(nginx)
    beside[i] = requests_beside(nginx)
  end
  alone = bench.sampled("requests a second", "alone", stats.summarize(alone), "/s")
  beside = bench.sampled("requests a second", PROGRAMS .. " programs run", stats.summarize(beside),
    "/s")
  bench.ratio { name = ("nginx serves while %d programs run"):format(PROGRAMS), unit = "/s",
    ours = beside.p50, rival = "without", theirs = alone.p50, target = 0.95, at_least = true }
end

return function(bench)
  bench.area = "hosts"
  local hosts = hosts_of(bench)
  local plain
  for _, host in ipairs(hosts) do
    plain = host.name == "plain LuaJIT" and host or plain
  end
  local nginx = plain and start_nginx(bench)
  if nginx then
    hosts[#hosts + 1] = { name = "nginx", base = "plain LuaJIT", budget = 80e-6, run = nginx.run }
  end
  local ok, why = xpcall(function()
    measure_wakes(bench, hosts, "lines", "a line's wake")
    measure_wakes(bench, hosts, "timers", "a timer's wake")
    if nginx then
      measure_execs(bench, nginx, plain)
      measure_requests(bench, nginx)
    end
  end, debug.traceback)
  if nginx then
    nginx.stop()
  end
  if not ok then
    error(why, 0)
  end
end
