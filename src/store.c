/* What the host keeps between sandboxes: `core.private_directory` and `core.names`, a directory
 * that nobody else can get at and what is in it; `core.sha256`, which tells whether a file in there
 * is what was once put there. */
#include "compat.h"
#include "file.h"
#include "moonsand.h"
#include "sha256.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHA256_TYPE "moonsand.sha256"

/* Makes a directory and those above it, for us alone. 0 or an errno. */
static int make_directories(const char *path) {
  char at[MS_PATH_MAX + 1];
  size_t length = strlen(path);
  if (length > MS_PATH_MAX)
    return ENAMETOOLONG;
  memcpy(at, path, length + 1);
  for (size_t i = 1; i <= length; i++) {
    if (at[i] != '/' && at[i] != '\0')
      continue;
    char was = at[i];
    at[i] = '\0';
    if (mkdir(at, 0700) < 0 && errno != EEXIST)
      return errno;
    at[i] = was;
  }
  return 0;
}

/* core.private_directory(path): true, made if it is missing; or nil, errno: EPERM when it is
 * somebody else's, or open to others. */
static int core_private_directory(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  struct stat st;
  int error = make_directories(path);
  if (error == 0 && stat(path, &st) < 0)
    error = errno;
  if (error == 0 && !S_ISDIR(st.st_mode))
    error = ENOTDIR;
  if (error == 0 && (st.st_uid != geteuid() || st.st_mode & 077))
    error = EPERM;
  if (error)
    return ms_push_errno(L, error);
  lua_pushboolean(L, true);
  return 1;
}

/* core.names(path): what is in a directory of the host's, in no order; or nil, errno. */
static int core_names(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  lua_newtable(L);
  DIR *dir = opendir(path);
  if (!dir)
    return ms_push_errno(L, errno);
  const struct dirent *entry;
  int count = 0;
  while ((entry = readdir(dir))) {
    lua_pushstring(L, entry->d_name);
    lua_rawseti(L, -2, ++count); /* names[count] = name */
  }
  closedir(dir);
  return 1;
}

/* core.remove(path): true; or nil, errno. */
static int core_remove(lua_State *L) {
  if (unlink(luaL_checkstring(L, 1)) < 0)
    return ms_push_errno(L, errno);
  lua_pushboolean(L, true);
  return 1;
}

/* core.sha256(plain): one to add to; `plain`: without the processor's own instructions. */
static int core_sha256(lua_State *L) {
  bool plain = lua_toboolean(L, 1);
  ms_sha256_start(lua_newuserdata(L, sizeof(ms_sha256)), plain);
  luaL_setmetatable(L, SHA256_TYPE);
  return 1;
}

/* sha256:add(bytes): itself. */
static int sha256_add(lua_State *L) {
  ms_sha256 *s = luaL_checkudata(L, 1, SHA256_TYPE);
  size_t length;
  const char *bytes = luaL_checklstring(L, 2, &length);
  ms_sha256_add(s, bytes, length);
  lua_settop(L, 1);
  return 1;
}

/* sha256:hex(): the digest of what was added so far. */
static int sha256_hex(lua_State *L) {
  static const char digits[] = "0123456789abcdef";
  ms_sha256 copy = *(ms_sha256 *)luaL_checkudata(L, 1, SHA256_TYPE);
  unsigned char digest[MS_SHA256_SIZE];
  char text[2 * MS_SHA256_SIZE];
  ms_sha256_end(&copy, digest);
  for (int i = 0; i < MS_SHA256_SIZE; i++) {
    text[2 * i] = digits[digest[i] >> 4];
    text[2 * i + 1] = digits[digest[i] & 15];
  }
  lua_pushlstring(L, text, sizeof text);
  return 1;
}

void ms_store_open(lua_State *L) {
  static const luaL_Reg methods[] = {{"add", sha256_add}, {"hex", sha256_hex}, {NULL, NULL}};
  static const luaL_Reg metamethods[] = {{NULL, NULL}};
  static const luaL_Reg functions[] = {{"private_directory", core_private_directory},
                                       {"names", core_names},
                                       {"remove", core_remove},
                                       {"sha256", core_sha256},
                                       {NULL, NULL}};
  ms_newtype(L, SHA256_TYPE, methods, metamethods);
  luaL_setfuncs(L, functions, 0);
}
