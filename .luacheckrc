std = "lua54+luajit"
max_line_length = 100
exclude_files = { "build/", ".luarocks/", "lua_modules/" }
-- A method of a common shape need not use all that it is given.
unused_args = false
-- `not (x >= 0)` is how a number that is NaN is refused.
ignore = { "581" }
files["spec/"] = { std = "+busted" }
