/* The host's end of an upload and of a download. `core.pack` reads a directory of the host's as
 * records for a worker inside; `core.unpack` writes the records of a worker, which may be anything,
 * below a directory of the host's and nowhere else; `core.place` writes one file of the host's,
 * which appears whole or not at all. All of them move a bounded amount a call, and own their
 * descriptors. */
#include "compat.h"
#include "file.h"
#include "moonsand.h"
#include "pack.h"
#include "place.h"
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PACK_TYPE "moonsand.pack"
#define UNPACK_TYPE "moonsand.unpack"
#define PLACED_TYPE "moonsand.placed"
#define PIECE ((size_t)256 * 1024)

/* Notes what was passed over in the table at a stack index: { path = …, errno = … }. */
typedef struct skips {
  lua_State *L;
  int index;
} skips;

static void note_skip(void *context, int error, const char *path) {
  const skips *s = context;
  lua_State *L = s->L;
  lua_createtable(L, 0, 2);
  lua_pushstring(L, path);
  lua_setfield(L, -2, "path"); /* skip.path */
  lua_pushinteger(L, error);
  lua_setfield(L, -2, "errno");                               /* skip.errno */
  lua_rawseti(L, s->index, (int)lua_rawlen(L, s->index) + 1); /* skips[#skips + 1] = skip */
}

/* Packing ------------------------------------------------------------------------------------- */

typedef struct packer {
  ms_pack pack;
  bool open;
} packer;

static packer *check_packer(lua_State *L) {
  return luaL_checkudata(L, 1, PACK_TYPE);
}

static int open_host_directory(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

/* core.pack(path): a directory of the host's; or nil, errno. */
static int core_pack(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  packer *p = lua_newuserdata(L, sizeof *p);
  p->open = false;
  luaL_setmetatable(L, PACK_TYPE);
  int error = open_host_directory(path);
  if (error >= 0)
    error = ms_pack_start(&p->pack, error);
  if (error < 0)
    return ms_push_errno(L, error);
  p->open = true;
  return 1;
}

/* core.measure(path): the entries and bytes of a directory of the host's; or nil, errno. */
static int core_measure(lua_State *L) {
  uint64_t entries, bytes;
  int error = open_host_directory(luaL_checkstring(L, 1));
  if (error >= 0)
    error = ms_pack_measure(error, &entries, &bytes);
  if (error < 0)
    return ms_push_errno(L, error);
  lua_pushnumber(L, (lua_Number)entries);
  lua_pushnumber(L, (lua_Number)bytes);
  return 2;
}

/* pack:read(skipped): the next records; nil at the end. */
static int pack_read(lua_State *L) {
  packer *p = check_packer(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  if (!p->open)
    return 0;
  skips context = {L, 2};
  p->pack.on_skip = note_skip;
  p->pack.context = &context;
  char *piece = lua_newuserdata(L, PIECE);
  size_t length = ms_pack_read(&p->pack, piece, PIECE);
  p->pack.on_skip = NULL;
  if (length == 0)
    return 0;
  lua_pushlstring(L, piece, length);
  return 1;
}

static int push_counts(lua_State *L, uint64_t entries, uint64_t bytes) {
  lua_pushnumber(L, (lua_Number)entries);
  lua_pushnumber(L, (lua_Number)bytes);
  return 2;
}

/* pack:counts(): entries and bytes so far. */
static int pack_counts(lua_State *L) {
  const packer *p = check_packer(L);
  return push_counts(L, p->pack.entries, p->pack.bytes);
}

static int pack_close(lua_State *L) {
  packer *p = check_packer(L);
  if (p->open)
    ms_pack_end(&p->pack);
  p->open = false;
  return 0;
}

/* Unpacking ----------------------------------------------------------------------------------- */

typedef struct unpacker {
  ms_unpack unpack;
  bool open;
  char *data; /* owned: what has come of records that are not whole yet */
  size_t length, capacity;
} unpacker;

static unpacker *check_unpacker(lua_State *L) {
  return luaL_checkudata(L, 1, UNPACK_TYPE);
}

/* core.unpack(path, max_bytes, max_entries): a directory of the host's, made if it is missing (but
 * not those above it); or nil, errno. */
static int core_unpack(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  lua_Number max_bytes = luaL_checknumber(L, 2), max_entries = luaL_checknumber(L, 3);
  unpacker *u = lua_newuserdata(L, sizeof *u);
  u->open = false;
  u->data = NULL;
  u->length = u->capacity = 0;
  luaL_setmetatable(L, UNPACK_TYPE);
  if (mkdir(path, 0777) < 0 && errno != EEXIST)
    return ms_push_errno(L, errno);
  int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (root < 0)
    return ms_push_errno(L, errno);
  ms_unpack_start(&u->unpack, root, true);
  u->unpack.max_bytes = max_bytes < 9e18 ? (uint64_t)max_bytes : UINT64_MAX;
  u->unpack.max_entries = max_entries < 9e18 ? (uint64_t)max_entries : UINT64_MAX;
  u->open = true;
  return 1;
}

static bool keep(unpacker *u, const char *data, size_t length) {
  if (length > u->capacity - u->length) {
    char *grown = realloc(u->data, u->length + length);
    if (!grown)
      return false;
    u->data = grown;
    u->capacity = u->length + length;
  }
  memcpy(u->data + u->length, data, length);
  u->length += length;
  return true;
}

/* Makes what all whole records say: an ms_unpack state or a negative errno. */
static int unpack_all(unpacker *u) {
  size_t at = 0;
  int state = MS_UNPACK_MORE;
  while (state == MS_UNPACK_MORE) {
    ms_record record;
    ssize_t taken = ms_record_next(u->data + at, u->length - at, &record);
    if (taken <= 0) {
      state = (int)taken;
      break;
    }
    at += (size_t)taken;
    state = ms_unpack_record(&u->unpack, &record);
  }
  if (at > 0)
    memmove(u->data, u->data + at, u->length - at);
  u->length -= at;
  return state;
}

/* unpack:feed(data, skipped): "more"; "end" when all is there; "failed", errno, path when the
 * worker has failed; or nil, errno, path when we have. */
static int unpack_feed(lua_State *L) {
  unpacker *u = check_unpacker(L);
  size_t length;
  const char *data = luaL_checklstring(L, 2, &length);
  luaL_checktype(L, 3, LUA_TTABLE);
  if (!u->open)
    return ms_push_errno(L, EBADF);
  if (!keep(u, data, length))
    return ms_push_errno(L, ENOMEM);
  skips context = {L, 3};
  u->unpack.on_skip = note_skip;
  u->unpack.context = &context;
  ms_guard guard;
  ms_guard_begin(&guard);
  int state = unpack_all(u);
  ms_guard_end(&guard);
  u->unpack.on_skip = NULL;
  if (state == MS_UNPACK_MORE || state == MS_UNPACK_END) {
    lua_pushstring(L, state == MS_UNPACK_END ? "end" : "more");
    return 1;
  }
  if (state == MS_UNPACK_FAILED)
    lua_pushliteral(L, "failed");
  else
    lua_pushnil(L);
  lua_pushinteger(L, state == MS_UNPACK_FAILED ? u->unpack.reason : -state);
  lua_pushstring(L, u->unpack.path);
  return 3;
}

/* unpack:counts(): entries and bytes so far. */
static int unpack_counts(lua_State *L) {
  const unpacker *u = check_unpacker(L);
  return push_counts(L, u->unpack.entries, u->unpack.bytes);
}

/* unpack:total(): entries and bytes that were announced. */
static int unpack_total(lua_State *L) {
  const unpacker *u = check_unpacker(L);
  return push_counts(L, u->unpack.total_entries, u->unpack.total_bytes);
}

static int unpack_close(lua_State *L) {
  unpacker *u = check_unpacker(L);
  if (u->open)
    ms_unpack_end(&u->unpack);
  u->open = false;
  free(u->data);
  u->data = NULL;
  u->length = u->capacity = 0;
  return 0;
}

/* One file ------------------------------------------------------------------------------------ */

typedef struct placed {
  ms_place place;
  char name[MS_NAME_MAX + 1];
} placed;

static placed *check_placed(lua_State *L) {
  return luaL_checkudata(L, 1, PLACED_TYPE);
}

/* Splits a path of the host's and opens the directory: a descriptor, or a negative errno. */
static int open_directory_of(const char *path, char name[MS_NAME_MAX + 1]) {
  char directory[MS_PATH_MAX + 1];
  const char *slash = strrchr(path, '/'), *last = slash ? slash + 1 : path;
  size_t length = slash ? (size_t)(slash - path) : 0;
  struct stat st;
  if (strlen(last) > MS_NAME_MAX || length > MS_PATH_MAX)
    return -ENAMETOOLONG;
  if (!last[0] || strcmp(last, ".") == 0 || strcmp(last, "..") == 0)
    return -EISDIR;
  memcpy(directory, path, length);
  directory[length] = '\0';
  strcpy(name, last);
  const char *where = !slash ? "." : length == 0 ? "/" : directory;
  int fd = open(where, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode)) {
    close(fd);
    return -EISDIR;
  }
  return fd;
}

/* core.place(path, mode): a file of the host's to be; or nil, errno. What has the path, a link too,
 * is replaced in the end. */
static int core_place(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  mode_t mode = (mode_t)luaL_optinteger(L, 2, 0644) & 0777;
  placed *p = lua_newuserdata(L, sizeof *p);
  p->place = (ms_place)MS_PLACE_NONE;
  luaL_setmetatable(L, PLACED_TYPE);
  int dir = open_directory_of(path, p->name);
  if (dir < 0)
    return ms_push_errno(L, dir);
  int error = ms_place_open(&p->place, dir, mode | 0600);
  close(dir);
  if (error < 0)
    return ms_push_errno(L, error);
  return 1;
}

/* placed:copy(file, most): as file:copy. */
static int placed_copy(lua_State *L) {
  const placed *p = check_placed(L);
  int from = ms_file_fd(L, 2);
  lua_Number most = luaL_checknumber(L, 3);
  if (p->place.fd < 0 || from < 0)
    return ms_push_errno(L, EBADF);
  ms_guard guard;
  ms_guard_begin(&guard);
  ssize_t copied = ms_copy_bytes(from, p->place.fd, most > 0 ? (uint64_t)most : 0);
  ms_guard_end(&guard);
  if (copied < 0)
    return ms_push_errno(L, (int)copied);
  lua_pushinteger(L, (lua_Integer)copied);
  return 1;
}

/* placed:write(data): true; or nil, errno. */
static int placed_write(lua_State *L) {
  const placed *p = check_placed(L);
  size_t length;
  const char *data = luaL_checklstring(L, 2, &length);
  if (p->place.fd < 0)
    return ms_push_errno(L, EBADF);
  ms_guard guard;
  ms_guard_begin(&guard);
  int error = ms_write_all(p->place.fd, data, length);
  ms_guard_end(&guard);
  if (error < 0)
    return ms_push_errno(L, error);
  lua_pushboolean(L, true);
  return 1;
}

/* placed:commit(new): true; or nil, errno. `new`: only if nothing has the path. Over afterwards in
 * any case. */
static int placed_commit(lua_State *L) {
  placed *p = check_placed(L);
  int error = p->place.fd < 0       ? -EBADF
              : lua_toboolean(L, 2) ? ms_place_commit_new(&p->place, p->name)
                                    : ms_place_commit(&p->place, p->name);
  if (error < 0)
    return ms_push_errno(L, error);
  lua_pushboolean(L, true);
  return 1;
}

static int placed_close(lua_State *L) {
  ms_place_abort(&check_placed(L)->place);
  return 0;
}

/* ---------------------------------------------------------------------------------------------- */

void ms_tree_open(lua_State *L) {
  static const luaL_Reg pack_methods[] = {
      {"read", pack_read}, {"counts", pack_counts}, {"close", pack_close}, {NULL, NULL}};
  static const luaL_Reg unpack_methods[] = {{"feed", unpack_feed},
                                            {"counts", unpack_counts},
                                            {"total", unpack_total},
                                            {"close", unpack_close},
                                            {NULL, NULL}};
  static const luaL_Reg placed_methods[] = {{"copy", placed_copy},
                                            {"write", placed_write},
                                            {"commit", placed_commit},
                                            {"close", placed_close},
                                            {NULL, NULL}};
  static const luaL_Reg pack_meta[] = {{"__gc", pack_close}, {"__close", pack_close}, {NULL, NULL}};
  static const luaL_Reg unpack_meta[] = {
      {"__gc", unpack_close}, {"__close", unpack_close}, {NULL, NULL}};
  static const luaL_Reg placed_meta[] = {
      {"__gc", placed_close}, {"__close", placed_close}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"pack", core_pack},
                                       {"measure", core_measure},
                                       {"unpack", core_unpack},
                                       {"place", core_place},
                                       {NULL, NULL}};
  ms_newtype(L, PACK_TYPE, pack_methods, pack_meta);
  ms_newtype(L, UNPACK_TYPE, unpack_methods, unpack_meta);
  ms_newtype(L, PLACED_TYPE, placed_methods, placed_meta);
  luaL_setfuncs(L, functions, 0);
}
