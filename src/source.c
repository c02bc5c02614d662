/* Sources of mounts, and whose files they show.
 *
 * A source is opened with the caller's own rights and nothing more (O_PATH). An ordinary user may
 * mount nothing, so the sandbox opens it again, as that user, in a copy of the host's mounts, and
 * compares. A host that may mount (root) makes a detached copy of the mount at once, *idmapped*:
 * inside, the files of the source's owner belong to the sandbox's one user, and what that user
 * makes belongs to the owner outside. */
#include "source.h"
#include "compat.h"
#include "moonsand.h"
#include "walk.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MOUNT_ATTR_IDMAP
#define MOUNT_ATTR_IDMAP 0x00100000
#endif

typedef struct ms_mount_source {
  int fd; /* owned: O_PATH, or a detached tree; -1 once closed */
} ms_mount_source;

/* The user namespace that says how ids are shown: on its way from the zygote, or there. */
typedef struct ms_idmap {
  ms_waitable wait;
  ms_reactor *reactor;
  ms_source source;
  int socket; /* owned; -1 once the answer came */
  int fd;     /* owned; -1: none */
  int error;  /* errno; 0: none yet */
} ms_idmap;

/* Sources ------------------------------------------------------------------------------------- */

static ms_mount_source *check_source(lua_State *L, int index) {
  return luaL_checkudata(L, index, MS_SOURCE_TYPE);
}

static int push_error(lua_State *L, int error) {
  lua_pushnil(L);
  lua_pushinteger(L, error);
  return 2;
}

int ms_source_duplicate(lua_State *L, int index) {
  return fcntl(check_source(L, index)->fd, F_DUPFD_CLOEXEC, 3);
}

/* core.source(path): what is there now, held; nil, errno. */
static int source_new(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  ms_mount_source *s = lua_newuserdata(L, sizeof *s);
  s->fd = -1;
  luaL_setmetatable(L, MS_SOURCE_TYPE);
  s->fd = open(path, O_PATH | O_CLOEXEC);
  return s->fd < 0 ? push_error(L, errno) : 1;
}

/* source:describe(): { path, kind, uid, gid, virtual }, the path without links; nil, errno. */
static int source_describe(lua_State *L) {
  const ms_mount_source *s = check_source(L, 1);
  char name[40], path[PATH_MAX];
  struct stat st;
  snprintf(name, sizeof name, "/proc/self/fd/%d", s->fd);
  ssize_t length = readlink(name, path, sizeof path - 1);
  if (length < 0 || fstat(s->fd, &st) < 0)
    return push_error(L, errno);
  lua_createtable(L, 0, 5);
  lua_pushlstring(L, path, (size_t)length);
  lua_setfield(L, -2, "path"); /* result.path = path */
  lua_pushstring(L, S_ISDIR(st.st_mode) ? "directory" : S_ISREG(st.st_mode) ? "file" : "other");
  lua_setfield(L, -2, "kind"); /* result.kind = … */
  lua_pushnumber(L, st.st_uid);
  lua_setfield(L, -2, "uid"); /* result.uid = owner */
  lua_pushnumber(L, st.st_gid);
  lua_setfield(L, -2, "gid"); /* result.gid = group */
  lua_pushboolean(L, ms_is_virtual(s->fd));
  lua_setfield(L, -2, "virtual"); /* result.virtual = … */
  return 1;
}

/* source:readable(): true, or nil, errno. */
static int source_readable(lua_State *L) {
  const ms_mount_source *s = check_source(L, 1);
  struct stat st;
  if (fstat(s->fd, &st) < 0)
    return push_error(L, errno);
  int wanted = S_ISDIR(st.st_mode) ? R_OK | X_OK : R_OK;
  if (syscall(SYS_faccessat2, s->fd, "", wanted, AT_EMPTY_PATH | AT_EACCESS) < 0)
    return push_error(L, errno);
  lua_pushboolean(L, true);
  return 1;
}

static int source_close(lua_State *L) {
  ms_mount_source *s = check_source(L, 1);
  if (s->fd >= 0)
    close(s->fd);
  s->fd = -1;
  return 0;
}

/* Ids ----------------------------------------------------------------------------------------- */

static ms_idmap *check_idmap(lua_State *L, int index) {
  return luaL_checkudata(L, index, MS_IDMAP_TYPE);
}

/* source:detach(read_only, idmap): from now on it is a copy of the mount, with those below it, that
 * only a sandbox can attach; true, or nil, errno: EPERM for who may not mount. */
static int source_detach(lua_State *L) {
  ms_mount_source *s = check_source(L, 1);
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
                            .propagation = MS_PRIVATE};
  if (lua_toboolean(L, 2))
    attr.attr_set |= MOUNT_ATTR_RDONLY;
  if (!lua_isnoneornil(L, 3)) {
    attr.attr_set |= MOUNT_ATTR_IDMAP;
    attr.userns_fd = (uint64_t)check_idmap(L, 3)->fd;
  }
  const unsigned how = AT_EMPTY_PATH | AT_RECURSIVE;
  int tree = (int)syscall(SYS_open_tree, s->fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | how);
  if (tree < 0)
    return push_error(L, errno);
  if (syscall(SYS_mount_setattr, tree, "", how, &attr, sizeof attr) < 0) {
    int error = errno;
    close(tree);
    return push_error(L, error);
  }
  close(s->fd);
  s->fd = tree;
  lua_pushboolean(L, true);
  return 1;
}

static void idmap_stop(ms_idmap *m) {
  if (m->socket < 0)
    return;
  ms_source_watch(m->reactor, &m->source, 0);
  close(m->socket);
  m->socket = m->source.fd = -1;
}

static void idmap_ready(ms_source *source, uint32_t events) {
  ms_idmap *m = (ms_idmap *)((char *)source - offsetof(ms_idmap, source));
  (void)events;
  ms_message *message = (ms_message *)(void *)ms_reactor_scratch(m->reactor);
  int received = ms_receive(m->socket, message);
  if (received == -EAGAIN)
    return;
  if (received > 0 && message->fd_count == 1) {
    m->fd = message->fds[0];
    message->fd_count = 0;
  } else {
    m->error = received > 0 ? (int)ms_get_u32(&message->body) : ECONNRESET;
  }
  if (received > 0)
    ms_close_fds(message);
  if (m->fd < 0 && m->error == 0)
    m->error = EPROTO;
  idmap_stop(m);
  ms_wake(m->reactor, &m->wait);
}

void ms_idmap_new(lua_State *L, ms_reactor *r, int socket) {
  ms_idmap *m = lua_newuserdata(L, sizeof *m);
  *m = (ms_idmap){.socket = socket, .fd = -1, .source = {.ready = idmap_ready, .fd = socket}};
  m->reactor = ms_reactor_ref(r);
  luaL_setmetatable(L, MS_IDMAP_TYPE);
  ms_waitable_init(r, &m->wait);
  ms_source_watch(r, &m->source, EPOLLIN);
}

/* idmap:state(): nothing while it is under way; then true, or false and an errno. */
static int idmap_state(lua_State *L) {
  const ms_idmap *m = check_idmap(L, 1);
  if (m->fd < 0 && m->error == 0)
    return 0;
  lua_pushboolean(L, m->fd >= 0);
  lua_pushinteger(L, m->error);
  return 2;
}

static int idmap_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_idmap(L, 1)->wait.id);
  return 1;
}

static int idmap_arm(lua_State *L) {
  check_idmap(L, 1)->wait.armed = true;
  return 0;
}

static int idmap_close(lua_State *L) {
  ms_idmap *m = check_idmap(L, 1);
  if (!m->reactor)
    return 0;
  idmap_stop(m);
  if (m->fd >= 0)
    close(m->fd);
  m->fd = -1;
  m->error = ECANCELED;
  ms_reactor_unref(m->reactor);
  m->reactor = NULL;
  return 0;
}

/* core.euid() */
static int core_euid(lua_State *L) {
  lua_pushnumber(L, geteuid());
  return 1;
}

static const luaL_Reg source_methods[] = {
    {"describe", source_describe},
    {"readable", source_readable},
    {"detach", source_detach},
    {"close", source_close},
    {NULL, NULL},
};

static const luaL_Reg source_metamethods[] = {{"__gc", source_close}, {NULL, NULL}};

static const luaL_Reg idmap_methods[] = {
    {"id", idmap_id},       {"arm", idmap_arm}, {"state", idmap_state},
    {"close", idmap_close}, {NULL, NULL},
};

static const luaL_Reg idmap_metamethods[] = {{"__gc", idmap_close}, {NULL, NULL}};

void ms_source_open(lua_State *L) {
  ms_newtype(L, MS_SOURCE_TYPE, source_methods, source_metamethods);
  ms_newtype(L, MS_IDMAP_TYPE, idmap_methods, idmap_metamethods);
  lua_pushcfunction(L, source_new);
  lua_setfield(L, -2, "source"); /* core.source */
  lua_pushcfunction(L, core_euid);
  lua_setfield(L, -2, "euid"); /* core.euid */
}
