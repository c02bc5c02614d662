/* One source for Lua 5.4 and LuaJIT: what the two name differently, and nothing else.
 * LuaJIT 2.1 (5.1's API) has luaL_setfuncs, luaL_newlib, luaL_testudata, luaL_traceback and
 * lua_isyieldable of its own. Its numbers are doubles: `lua_pushinteger` is exact to 2^53. */
#ifndef MS_COMPAT_H
#define MS_COMPAT_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>

#if LUA_VERSION_NUM < 502

#define lua_rawlen(L, index) lua_objlen((L), (index))
#define lua_getuservalue(L, index) lua_getfenv((L), (index))
#define lua_setuservalue(L, index) lua_setfenv((L), (index))

static inline int ms_absindex(lua_State *L, int index) {
  return index > 0 || index <= LUA_REGISTRYINDEX ? index : lua_gettop(L) + index + 1;
}
#define lua_absindex(L, index) ms_absindex((L), (index))

#endif

#if LUA_VERSION_NUM < 503

/* True for a number without a fraction. */
static inline bool ms_isinteger(lua_State *L, int index) {
  lua_Number number = lua_type(L, index) == LUA_TNUMBER ? lua_tonumber(L, index) : 0.5;
  return number >= -9007199254740992.0 && number <= 9007199254740992.0 &&
         number == (lua_Number)(lua_Integer)number;
}
#define lua_isinteger(L, index) ms_isinteger((L), (index))

#endif

/* A new metatable called `name` with `methods` as its own and as __index; `meta` may be NULL.
 * Leaves nothing on the stack. */
static inline void ms_newtype(lua_State *L, const char *name, const luaL_Reg *methods,
                              const luaL_Reg *meta) {
  luaL_newmetatable(L, name);
  lua_pushstring(L, name);
  lua_setfield(L, -2, "__name"); /* meta.__name = name; LuaJIT's luaL_newmetatable does not */
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_setfield(L, -2, "__index"); /* meta.__index = methods */
  if (meta) {
    luaL_setfuncs(L, meta, 0);
  }
  lua_pushstring(L, name);
  lua_setfield(L, -2, "__metatable"); /* getmetatable(object) == name */
  lua_pop(L, 1);
}

#endif
