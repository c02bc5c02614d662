std = "lua54+luajit"
max_line_length = 120
exclude_files = { "build/", ".luarocks/", "lua_modules/" }
-- A method of a common shape need not use all that it is given.
unused_args = false
-- `not (x >= 0)` is how a number that is NaN is refused.
ignore = { "581" }
files["spec/"] = { std = "+busted" }
-- What their hosts give.
files["lua/moonsand/hosts/nvim.lua"] = { read_globals = { "vim" } }
files["lua/moonsand/hosts/ngx.lua"] = { read_globals = { "ngx" } }
files["spec/hosts/"] = { read_globals = { "vim" }, globals = { "ngx" } }
files["examples/openresty/"] = { globals = { "ngx" } }
files["plugin/"] = { globals = { "vim" } }
files["lua/moonsand/nvim/"] = { globals = { "vim" } }
files["lua/moonsand/health.lua"] = { read_globals = { "vim" } }
