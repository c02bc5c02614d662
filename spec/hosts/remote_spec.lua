-- Remote sandboxes, those of the fake OpenSandbox, in every host: luv, Neovim, nginx, plain Lua.

local inside = require "hosts.inside"
local nginx = require "support.nginx"
local opensandbox = require "support.opensandbox"
local remote = require "hosts.remote"
local support = require "support.init"

local quote = support.quote
local BUILD = os.getenv "MOONSAND_BUILD" or "build"

local RUN = [[
local options = { provider = "opensandbox", image = "debian:12", base_url = %q, api_key = %q }
local said = {}
local function all()
  require("hosts.remote").run(options, spawn, function(name, failure)
    said[#said + 1] = (failure and "not ok " or "ok ") .. name .. " "
      .. (failure or ""):gsub("\n", " / ")
  end)
  return table.concat(said, "\n") .. "\n"
end
]]

describe("remote sandboxes", function()
  local fake

  setup(function()
    fake = opensandbox.start()
  end)

  teardown(function()
    fake:stop()
  end)

  local function run_in(command, code)
    local script = inside.script(RUN:format(fake.url, fake.key) .. code)
    return (support.run(command:format(script)))
  end

  local function plain(code)
    return run_in(("env LUA_PATH=%s LUA_CPATH=%s timeout 60 %s %%s </dev/null"):format(
      quote(package.path), quote(package.cpath), support.interpreter), code)
  end

  --- Each check is told, and is ok; the service had nothing to complain of, and nothing is left.
  local function all_ok(output)
    local expected = {}
    for i, check in ipairs(remote.checks) do
      expected[i] = "ok " .. check[1] .. " "
    end
    expected[#expected + 1] = "ok the end \n"
    assert.equal(table.concat(expected, "\n"), output)
    assert.same({}, fake:violations())
    assert.same({}, fake:sandboxes())
  end

  it("in plain Lua, on the main chunk and in a task", function()
    all_ok(plain "spawn = moonsand.task io.stdout:write(all())")
    all_ok(plain "spawn = moonsand.task moonsand.run(function() io.stdout:write(all()) end)")
  end)

  it("in luv: in a coroutine, on the main chunk", function()
    local luv = 'local uv = require "luv" '
    all_ok(plain(luv .. "spawn(function() io.stdout:write(all()) end) uv.run()"))
    all_ok(plain(luv .. "io.stdout:write(all())"))
  end)

  it("in Neovim", function()
    all_ok(run_in(("env LUA_PATH='lua/?.lua;lua/?/init.lua;spec/?.lua;;' LUA_CPATH=%s timeout 60 "
      .. "nvim --headless -u NONE -i NONE -n -c 'luafile %%s' </dev/null"):format(
      quote(BUILD .. "/jit/?.so;;")),
      "spawn(function() io.stdout:write(all()) io.stdout:flush() "
        .. "vim.schedule(function() vim.cmd 'qa!' end) end)"))
  end)

  it("in nginx", function()
    local dir = nginx.must "mktemp -d":gsub("%s+$", "")
    local modules = nginx.must "nginx -V":match "%-%-modules%-path=(%S+)"
    nginx.must(([[cd %s && mkdir lua lua/hosts so && chmod 755 . &&
      cp -R "$OLDPWD"/lua/moonsand lua && cp "$OLDPWD"/spec/hosts/remote.lua lua/hosts &&
      cp -R "$OLDPWD"/%s/jit/moonsand so]]):format(dir, BUILD))
    local root = nginx.must "id -u" == "0\n"
    if root then
      nginx.must("chown -R www-data " .. dir)
    end
    local code = "local function spawn(fn) ngx.thread.spawn(fn) end "
      .. RUN:format(fake.url, fake.key) .. " ngx.print(all())"
    support.write(dir .. "/code.lua", code)
    support.write(dir .. "/nginx.conf", ([[
      %s worker_processes 1; pid @/nginx.pid; error_log @/error.log info;
      load_module %s/ndk_http_module.so; load_module %s/ngx_http_lua_module.so;
      events { worker_connections 256; }
      http { access_log off;
        lua_package_path "@/lua/?.lua;@/lua/?/init.lua;;"; lua_package_cpath "@/so/?.so;;";
        server { listen unix:@/http.sock; location / { content_by_lua_file @/code.lua; } } }
    ]]):format(root and "user www-data;" or "", modules, modules):gsub("@", dir))
    nginx.must(("nginx -p %s -c %s/nginx.conf -e %s/error.log"):format(dir, dir, dir))
    local output =
      support.run(("curl -sS -m 60 --unix-socket %s/http.sock http://localhost/"):format(dir))
    local log = support.read(dir .. "/error.log")
    nginx.must(("kill -QUIT $(cat %s/nginx.pid)"):format(dir))
    support.eventually(20, "nginx did not end", function()
      return not support.exists(dir .. "/nginx.pid")
    end)
    nginx.must("rm -rf " .. dir)
    all_ok(output)
    assert.is_nil(log:match "%[error%][^\n]*")
  end)
end)
