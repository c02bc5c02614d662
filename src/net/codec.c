/* The readers of lines.h as Lua objects: `net.lines(max)`, `net.sse(max)`, `net.envelopes(max)`.
 * Each has `feed(bytes)` and `next()`, which answers an item, or nil and "again" or "too_large". */
#include "../compat.h"
#include "base64.h"
#include "lines.h"
#include "net.h"
#include "sha1.h"

#include <errno.h>

#define LINES_TYPE "moonsand.net.lines"
#define SSE_TYPE "moonsand.net.sse"
#define ENVELOPES_TYPE "moonsand.net.envelopes"

static size_t check_max(lua_State *L) {
  lua_Number max = luaL_checknumber(L, 1);
  luaL_argcheck(L, max >= 1 && max <= 4294967295.0, 1, "not a size");
  return (size_t)max;
}

static int push_none(lua_State *L, int got) {
  if (got == -ENOMEM)
    return luaL_error(L, "not enough memory");
  lua_pushnil(L);
  lua_pushstring(L, got == 0 ? "again" : "too_large");
  return 2;
}

static int fed(lua_State *L, bool done) {
  return done ? 0 : luaL_error(L, "not enough memory");
}

static void push_run(lua_State *L, ms_run run) {
  lua_pushlstring(L, run.length > 0 ? run.data : "", run.length);
}

/* Lines --------------------------------------------------------------------------------------- */

static int lines_new(lua_State *L) {
  size_t max = check_max(L);
  ms_lines *l = lua_newuserdata(L, sizeof *l);
  *l = (ms_lines){.max = max};
  luaL_setmetatable(L, LINES_TYPE);
  return 1;
}

static int lines_feed(lua_State *L) {
  ms_lines *l = luaL_checkudata(L, 1, LINES_TYPE);
  size_t count;
  const char *bytes = luaL_checklstring(L, 2, &count);
  return fed(L, ms_lines_feed(l, bytes, count));
}

static int lines_next(lua_State *L) {
  ms_run line;
  int got = ms_lines_next(luaL_checkudata(L, 1, LINES_TYPE), &line);
  if (got <= 0)
    return push_none(L, got);
  push_run(L, line);
  return 1;
}

/* rest() -> the last line, which has no end; or nil */
static int lines_rest(lua_State *L) {
  ms_run line;
  if (ms_lines_rest(luaL_checkudata(L, 1, LINES_TYPE), &line) == 0)
    return 0;
  push_run(L, line);
  return 1;
}

static int lines_gc(lua_State *L) {
  ms_lines_free(luaL_checkudata(L, 1, LINES_TYPE));
  return 0;
}

/* Server-sent events -------------------------------------------------------------------------- */

static int sse_new(lua_State *L) {
  size_t max = check_max(L);
  ms_sse *s = lua_newuserdata(L, sizeof *s);
  ms_sse_init(s, max);
  luaL_setmetatable(L, SSE_TYPE);
  return 1;
}

static int sse_feed(lua_State *L) {
  ms_sse *s = luaL_checkudata(L, 1, SSE_TYPE);
  size_t count;
  const char *bytes = luaL_checklstring(L, 2, &count);
  return fed(L, ms_sse_feed(s, bytes, count));
}

/* next() -> { event, data, id, retry in seconds } */
static int sse_next(lua_State *L) {
  ms_event event;
  int got = ms_sse_next(luaL_checkudata(L, 1, SSE_TYPE), &event);
  if (got <= 0)
    return push_none(L, got);
  lua_createtable(L, 0, 4);
  if (event.type.length > 0)
    push_run(L, event.type);
  else
    lua_pushliteral(L, "message");
  lua_setfield(L, -2, "event"); /* event.event */
  push_run(L, event.data);
  lua_setfield(L, -2, "data"); /* event.data */
  push_run(L, event.id);
  lua_setfield(L, -2, "id"); /* event.id */
  if (event.retry >= 0) {
    lua_pushnumber(L, (lua_Number)event.retry / 1000);
    lua_setfield(L, -2, "retry"); /* event.retry */
  }
  return 1;
}

static int sse_gc(lua_State *L) {
  ms_sse_free(luaL_checkudata(L, 1, SSE_TYPE));
  return 0;
}

/* Envelopes ----------------------------------------------------------------------------------- */

static int envelopes_new(lua_State *L) {
  size_t max = check_max(L);
  ms_envelopes *e = lua_newuserdata(L, sizeof *e);
  *e = (ms_envelopes){.max = max};
  luaL_setmetatable(L, ENVELOPES_TYPE);
  return 1;
}

static int envelopes_feed(lua_State *L) {
  ms_envelopes *e = luaL_checkudata(L, 1, ENVELOPES_TYPE);
  size_t count;
  const char *bytes = luaL_checklstring(L, 2, &count);
  return fed(L, ms_envelopes_feed(e, bytes, count));
}

/* next() -> message, flags */
static int envelopes_next(lua_State *L) {
  ms_run message;
  unsigned flags;
  int got = ms_envelopes_next(luaL_checkudata(L, 1, ENVELOPES_TYPE), &flags, &message);
  if (got <= 0)
    return push_none(L, got);
  push_run(L, message);
  lua_pushinteger(L, (lua_Integer)flags);
  return 2;
}

/* rest() -> how many bytes of an unfinished envelope there are */
static int envelopes_rest(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)ms_envelopes_rest(luaL_checkudata(L, 1, ENVELOPES_TYPE)));
  return 1;
}

static int envelopes_gc(lua_State *L) {
  ms_envelopes_free(luaL_checkudata(L, 1, ENVELOPES_TYPE));
  return 0;
}

/* ---------------------------------------------------------------------------------------------- */

/* utf8(text) -> nil when it is UTF-8, else where the first byte is that is not */
static int codec_utf8(lua_State *L) {
  size_t count;
  const char *text = luaL_checklstring(L, 1, &count);
  size_t at = ms_utf8_check(text, count);
  if (at == count)
    return 0;
  lua_pushinteger(L, (lua_Integer)at + 1);
  return 1;
}

/* sha1(bytes) -> 20 bytes */
static int codec_sha1(lua_State *L) {
  size_t count;
  const char *bytes = luaL_checklstring(L, 1, &count);
  unsigned char digest[MS_SHA1_SIZE];
  ms_sha1((const unsigned char *)bytes, count, digest);
  lua_pushlstring(L, (const char *)digest, sizeof digest);
  return 1;
}

/* base64(bytes) -> text */
static int codec_base64(lua_State *L) {
  size_t count;
  const unsigned char *bytes = (const unsigned char *)luaL_checklstring(L, 1, &count);
  char *text =
      lua_newuserdata(L, ms_base64_size(count) + 1); /* the collector's, if a push raises */
  ms_base64_encode(bytes, count, text);
  lua_pushlstring(L, text, ms_base64_size(count));
  return 1;
}

/* unbase64(text) -> bytes; nil when it is no base64 */
static int codec_unbase64(lua_State *L) {
  size_t count;
  const char *text = luaL_checklstring(L, 1, &count);
  unsigned char *bytes = lua_newuserdata(L, count / 4 * 3 + 3);
  long written = ms_base64_decode(text, count, bytes);
  if (written < 0)
    return 0;
  lua_pushlstring(L, (const char *)bytes, (size_t)written);
  return 1;
}

static void new_reader(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction gc) {
  const luaL_Reg meta[] = {{"__gc", gc}, {NULL, NULL}};
  ms_newtype(L, name, methods, meta);
}

void ms_codec_open(lua_State *L) {
  static const luaL_Reg lines[] = {
      {"feed", lines_feed}, {"next", lines_next}, {"rest", lines_rest}, {NULL, NULL}};
  static const luaL_Reg sse[] = {{"feed", sse_feed}, {"next", sse_next}, {NULL, NULL}};
  static const luaL_Reg envelopes[] = {
      {"feed", envelopes_feed}, {"next", envelopes_next}, {"rest", envelopes_rest}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"lines", lines_new},         {"sse", sse_new},
                                       {"envelopes", envelopes_new}, {"utf8", codec_utf8},
                                       {"sha1", codec_sha1},         {"base64", codec_base64},
                                       {"unbase64", codec_unbase64}, {NULL, NULL}};
  new_reader(L, LINES_TYPE, lines, lines_gc);
  new_reader(L, SSE_TYPE, sse, sse_gc);
  new_reader(L, ENVELOPES_TYPE, envelopes, envelopes_gc);
  luaL_setfuncs(L, functions, 0);
}
