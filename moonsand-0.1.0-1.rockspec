rockspec_format = "3.0"
package = "moonsand"
version = "0.1.0-1"

-- `luarocks make` builds the directory it is called in; a source is needed only to publish.
source = {
  url = "moonsand-0.1.0.tar.gz",
}

description = {
  summary = "Run code you do not trust in sandboxes, from Lua",
  detailed = [[
    Isolated programs, live output and files, on this Linux machine, with one API and without
    stopping the program that calls. A C core; Lua 5.4 and LuaJIT.
  ]],
  license = "MIT",
}

-- JSON comes from lua-cjson. It is not listed, because Debian has it as a package (lua-cjson),
-- which LuaRocks does not see: it would want to fetch it.
dependencies = {
  "lua >= 5.1, < 5.5",
}

supported_platforms = { "linux" }

build = {
  type = "make",
  build_target = "all",
  install_target = "install-modules",
  -- One variant, "rock", against the headers of the Lua that LuaRocks runs for.
  variables = {
    VARIANTS = "rock",
    B = "build/rock",
    LUA_INCDIR = "$(LUA_INCDIR)",
    LIBFLAG = "$(LIBFLAG)",
    CFLAGS = "$(CFLAGS)",
    LUADIR = "$(LUADIR)",
    LIBDIR = "$(LIBDIR)",
  },
}
