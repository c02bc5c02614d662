/* Control groups: one directory each. What is written into its files, and what is read out of them
 * to know which limit was reached, is decided in Lua (providers/local/cgroups.lua).
 *
 * A group can be removed only when nothing runs in it. The sandbox's end is that moment; whatever
 * is left because nobody saw it, the keeper removes (agent/keeper.c). */
#include "cgroup.h"
#include "compat.h"
#include "local.h"
#include "moonsand.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEEPER_TYPE "moonsand.keeper"

enum { WATCHED_MAX = 4, TEXT_MAX = 512 };

/* A file that counts. Its text outlives the group. */
typedef struct watched {
  char name[32];
  int fd; /* owned; -1 once the group is gone */
  char text[TEXT_MAX];
} watched;

/* The keeper, as its host sees it. */
typedef struct keeper {
  int references;
  int fd; /* owned: our end of its socket, which tells it that we live */
} keeper;

struct ms_cgroup {
  int references;
  keeper *keeper; /* a reference: who removes what we cannot yet; NULL: nobody */
  int fd;         /* owned: its directory; -1 once it is gone */
  watched files[WATCHED_MAX];
  size_t count;
  char path[PATH_MAX];
};

static ms_cgroup *check_cgroup(lua_State *L, int index) {
  return *(ms_cgroup **)luaL_checkudata(L, index, MS_CGROUP_TYPE);
}

/* True or, for a negative errno, nil and the number. */
static int push_outcome(lua_State *L, int error) {
  if (error < 0) {
    lua_pushnil(L);
    lua_pushinteger(L, -error);
    return 2;
  }
  lua_pushboolean(L, true);
  return 1;
}

/* The kernel takes such a file's text in one write, or not at all. 0 or a negative errno. */
static int write_file(int directory, const char *name, const char *text, size_t length) {
  int fd = openat(directory, name, O_WRONLY | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  ssize_t written = write(fd, text, length);
  int error = written < 0 ? -errno : 0;
  close(fd);
  return error;
}

static void watched_read(watched *w) {
  if (w->fd < 0)
    return;
  ssize_t length = pread(w->fd, w->text, TEXT_MAX - 1, 0);
  if (length >= 0)
    w->text[length] = '\0';
}

static void let_go(ms_cgroup *g) {
  for (size_t i = 0; i < g->count; i++) {
    if (g->files[i].fd >= 0)
      close(g->files[i].fd);
    g->files[i].fd = -1;
  }
  if (g->fd >= 0)
    close(g->fd);
  g->fd = -1;
}

/* The first byte says what the path is: a directory of ours, or a group that is to go. 0, or a
 * negative errno when the keeper is gone. */
static int keeper_tell(const keeper *k, char what, const char *path) {
  char text[PATH_MAX + 1] = {what};
  size_t length = strlen(path);
  memcpy(text + 1, path, length);
  return send(k->fd, text, length + 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

static void keeper_unref(keeper *k) {
  if (--k->references > 0)
    return;
  if (k->fd >= 0)
    close(k->fd);
  free(k);
}

/* For sandboxes ------------------------------------------------------------------------------- */

ms_cgroup *ms_cgroup_ref(lua_State *L, int index) {
  ms_cgroup *g = check_cgroup(L, index);
  g->references++;
  return g;
}

void ms_cgroup_unref(ms_cgroup *g) {
  if (--g->references > 0)
    return;
  ms_cgroup_end(g);
  if (g->keeper)
    keeper_unref(g->keeper);
  free(g);
}

int ms_cgroup_entrance(const ms_cgroup *g) {
  return openat(g->fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
}

/* The kernel may take a moment longer than the last process lived. */
void ms_cgroup_end(ms_cgroup *g) {
  if (g->fd < 0)
    return;
  for (size_t i = 0; i < g->count; i++)
    watched_read(&g->files[i]);
  let_go(g);
  if (rmdir(g->path) < 0 && errno == EBUSY && g->keeper)
    keeper_tell(g->keeper, MS_KEEPER_REMOVE, g->path);
}

/* Lua ----------------------------------------------------------------------------------------- */

static keeper *check_keeper(lua_State *L, int index) {
  return *(keeper **)luaL_checkudata(L, index, KEEPER_TYPE);
}

/* core.cgroup(path, keeper): makes it; nil, errno. Without a keeper it stays while it is in use. */
static int cgroup_new(lua_State *L) {
  size_t length;
  const char *path = luaL_checklstring(L, 1, &length);
  keeper *k = lua_isnoneornil(L, 2) ? NULL : check_keeper(L, 2);
  if (length >= PATH_MAX)
    return push_outcome(L, -ENAMETOOLONG);
  ms_cgroup **box = lua_newuserdata(L, sizeof *box);
  *box = NULL;
  luaL_setmetatable(L, MS_CGROUP_TYPE);
  ms_cgroup *g = *box = calloc(1, sizeof *g);
  if (!g)
    return push_outcome(L, -ENOMEM);
  *g = (ms_cgroup){.references = 1, .keeper = k, .fd = -1};
  if (k)
    k->references++;
  memcpy(g->path, path, length + 1);
  if (mkdir(path, 0755) < 0)
    return push_outcome(L, -errno);
  g->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (g->fd >= 0)
    return 1;
  int error = -errno;
  rmdir(path);
  return push_outcome(L, error);
}

/* group:write(file, text): true; nil, errno. */
static int cgroup_write(lua_State *L) {
  const ms_cgroup *g = check_cgroup(L, 1);
  size_t length;
  const char *name = luaL_checkstring(L, 2), *text = luaL_checklstring(L, 3, &length);
  return push_outcome(L, g->fd < 0 ? -ENOENT : write_file(g->fd, name, text, length));
}

/* group:watch(file): it will be read; true, or nil, errno. */
static int cgroup_watch(lua_State *L) {
  ms_cgroup *g = check_cgroup(L, 1);
  const char *name = luaL_checkstring(L, 2);
  for (size_t i = 0; i < g->count; i++)
    if (strcmp(g->files[i].name, name) == 0)
      return push_outcome(L, 0);
  luaL_argcheck(L, g->count < WATCHED_MAX, 2, "too many files");
  luaL_argcheck(L, strlen(name) < sizeof g->files->name, 2, "too long");
  watched *w = &g->files[g->count];
  *w = (watched){.fd = g->fd < 0 ? -1 : openat(g->fd, name, O_RDONLY | O_CLOEXEC)};
  if (w->fd < 0)
    return push_outcome(L, g->fd < 0 ? -ENOENT : -errno);
  strcpy(w->name, name);
  g->count++;
  return push_outcome(L, 0);
}

/* group:read(file): what is in one that is watched; once the group is gone, what was. nil for one
 * that was never there. */
static int cgroup_read(lua_State *L) {
  ms_cgroup *g = check_cgroup(L, 1);
  const char *name = luaL_checkstring(L, 2);
  for (size_t i = 0; i < g->count; i++)
    if (strcmp(g->files[i].name, name) == 0) {
      watched_read(&g->files[i]);
      lua_pushstring(L, g->files[i].text);
      return 1;
    }
  return 0;
}

/* group:remove(): at once, or as soon as nothing runs in it. */
static int cgroup_remove(lua_State *L) {
  ms_cgroup_end(check_cgroup(L, 1));
  return 0;
}

static int cgroup_gc(lua_State *L) {
  ms_cgroup **box = luaL_checkudata(L, 1, MS_CGROUP_TYPE);
  if (*box)
    ms_cgroup_unref(*box);
  *box = NULL;
  return 0;
}

/* core.cgroup_write(directory, file, text): into a group that is not ours; true, or nil, errno. */
static int core_cgroup_write(lua_State *L) {
  size_t length;
  const char *path = luaL_checkstring(L, 1), *name = luaL_checkstring(L, 2);
  const char *text = luaL_checklstring(L, 3, &length);
  int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  int error = directory < 0 ? -errno : write_file(directory, name, text, length);
  if (directory >= 0)
    close(directory);
  return push_outcome(L, error);
}

/* Keeper ------------------------------------------------------------------------------------- */

/* core.keeper(agent, prefix): starts one for groups of that name; nil, errno. It does its work when
 * what this gives is collected, and at the latest when this process is gone. */
static int keeper_new(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  char *argv[] = {"moonsand-keeper", (char *)luaL_checkstring(L, 2), NULL};
  keeper **box = lua_newuserdata(L, sizeof *box);
  *box = NULL;
  luaL_setmetatable(L, KEEPER_TYPE);
  keeper *k = *box = malloc(sizeof *k);
  if (!k)
    return push_outcome(L, -ENOMEM);
  *k = (keeper){.references = 1, .fd = -1};
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return push_outcome(L, -errno);
  k->fd = pair[0];
  int error = ms_helper_run(path, argv, pair[1]);
  return error ? push_outcome(L, -error) : 1;
}

/* keeper:add(directory): where to look; true, or nil, errno. */
static int keeper_add(lua_State *L) {
  const keeper *k = check_keeper(L, 1);
  size_t length;
  const char *path = luaL_checklstring(L, 2, &length);
  return push_outcome(L, length < PATH_MAX ? keeper_tell(k, MS_KEEPER_LOOK, path) : -ENAMETOOLONG);
}

/* keeper:alive() */
static int keeper_alive(lua_State *L) {
  char byte;
  ssize_t got = recv(check_keeper(L, 1)->fd, &byte, 1, MSG_DONTWAIT);
  lua_pushboolean(L, got < 0 && errno == EAGAIN);
  return 1;
}

static int keeper_gc(lua_State *L) {
  keeper **box = luaL_checkudata(L, 1, KEEPER_TYPE);
  if (*box)
    keeper_unref(*box);
  *box = NULL;
  return 0;
}

/* ---------------------------------------------------------------------------------------------- */

static const luaL_Reg methods[] = {
    {"write", cgroup_write},
    {"watch", cgroup_watch},
    {"read", cgroup_read},
    {"remove", cgroup_remove},
    {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", cgroup_gc},
    {NULL, NULL},
};

static const luaL_Reg keeper_methods[] = {
    {"add", keeper_add},
    {"alive", keeper_alive},
    {NULL, NULL},
};

static const luaL_Reg keeper_metamethods[] = {
    {"__gc", keeper_gc},
    {NULL, NULL},
};

void ms_cgroup_open(lua_State *L) {
  ms_newtype(L, MS_CGROUP_TYPE, methods, metamethods);
  ms_newtype(L, KEEPER_TYPE, keeper_methods, keeper_metamethods);
  lua_pushcfunction(L, keeper_new);
  lua_setfield(L, -2, "keeper"); /* core.keeper */
  lua_pushcfunction(L, cgroup_new);
  lua_setfield(L, -2, "cgroup"); /* core.cgroup */
  lua_pushcfunction(L, core_cgroup_write);
  lua_setfield(L, -2, "cgroup_write"); /* core.cgroup_write */
}
