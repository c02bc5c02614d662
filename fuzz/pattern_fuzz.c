/* links: src/agent/pattern.c -llua5.4 */
/* Lua's patterns without Lua: the answer is that of string.find, for all that it does not raise
 * for, and that is not given up for its cost. The first byte is the pattern's length. */
#include "agent/pattern.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition))                                                                              \
      abort();                                                                                     \
  } while (0)

/* Where it is from 0 on, -1: nowhere; false: it is malformed. */
static bool ask_lua(lua_State *L, const char *pattern, const char *text, size_t length,
                    ssize_t *at) {
  lua_settop(L, 0);
  lua_getglobal(L, "string");
  lua_getfield(L, -1, "find");
  lua_pushlstring(L, text, length);
  lua_pushstring(L, pattern);
  bool fine = lua_pcall(L, 2, 1, 0) == LUA_OK;
  *at = fine && lua_isinteger(L, -1) ? (ssize_t)lua_tointeger(L, -1) - 1 : -1;
  return fine;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  static lua_State *L;
  if (!L) {
    L = luaL_newstate();
    luaL_openlibs(L);
  }
  size_t length = size > 0 ? bytes[0] % 24 : 0;
  if (size < length + 1 || size - length > 64)
    return 0;
  char pattern[32];
  memcpy(pattern, bytes + 1, length);
  pattern[length] = '\0';
  size_t rest = size - length - 1;
  char *text = malloc(rest + 1); /* exactly so long, for the sanitizer */
  MUST(text);
  memcpy(text, bytes + 1 + length, rest);
  if (strlen(pattern) == length && strpbrk(pattern, "^$*+?.([%-")) { /* others are no patterns */
    ssize_t at, found = ms_pattern_find(pattern, length, text, rest);
    bool fine = found == -E2BIG || ask_lua(L, pattern, text, rest, &at);
    if (found != -E2BIG)
      MUST(fine ? found == at : found == -EINVAL);
  }
  free(text);
  return 0;
}
