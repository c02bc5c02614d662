/* The sandboxes of one user that live without a host, as directories in a directory: each holds the
 * socket that its agent listens on, and what is known of it. Only their owner can look into it,
 * which is checked, and nothing in it is followed out of it.
 *
 *   DIRECTORY/ID/socket   DIRECTORY/ID/about
 *
 * Whether one still lives the kernel says: its first process has a pid, and a time at which it
 * began
 * (`birth`). What changes several things at once holds the lock, which nobody waits for in here. */
#include "compat.h"
#include "file.h"
#include "local.h"
#include "moonsand.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define MS_REGISTRY_TYPE "moonsand.registry"
#define ABOUT_MAX ((size_t)64 * 1024)
enum { ENTRIES_MAX = 65536, ID_MAX = 64 };

typedef struct registry {
  int fd; /* owned: the directory */
  bool locked;
} registry;

static registry *check_registry(lua_State *L) {
  return luaL_checkudata(L, 1, MS_REGISTRY_TYPE);
}

static int push_error(lua_State *L, int error) {
  lua_pushnil(L);
  lua_pushinteger(L, error);
  return 2;
}

static int push_done(lua_State *L, int result) {
  if (result < 0)
    return push_error(L, errno);
  lua_pushboolean(L, true);
  return 1;
}

/* An id is a file name of ours: nothing else leads anywhere. */
static bool is_id(const char *id) {
  size_t length = strlen(id);
  return length > 0 && length <= ID_MAX && id[0] != '.' && !strchr(id, '/');
}

static const char *check_id(lua_State *L, int index) {
  const char *id = luaL_checkstring(L, index);
  luaL_argcheck(L, is_id(id), index, "no id");
  return id;
}

/* "ID/name", in memory of the caller's. */
static const char *entry_path(char path[ID_MAX + 16], const char *id, const char *name) {
  snprintf(path, ID_MAX + 16, "%s/%s", id, name);
  return path;
}

/* The directory ------------------------------------------------------------------------------- */

/* core.registry(path): made where it is missing; nil, errno: EPERM where others have a say in it.
 */
static int core_registry(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  struct stat st;
  registry *r = lua_newuserdata(L, sizeof *r);
  *r = (registry){.fd = -1};
  luaL_setmetatable(L, MS_REGISTRY_TYPE);
  if (mkdir(path, 0700) < 0 && errno != EEXIST)
    return push_error(L, errno);
  r->fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (r->fd < 0 || fstat(r->fd, &st) < 0)
    return push_error(L, errno);
  if (st.st_uid != geteuid() || st.st_mode & 077)
    return push_error(L, EPERM);
  return 1;
}

/* registry:lock(): true; false while somebody else has it. */
static int registry_lock(lua_State *L) {
  registry *r = check_registry(L);
  if (!r->locked)
    r->locked = flock(r->fd, LOCK_EX | LOCK_NB) == 0;
  lua_pushboolean(L, r->locked);
  return 1;
}

static int registry_unlock(lua_State *L) {
  registry *r = check_registry(L);
  if (r->locked)
    flock(r->fd, LOCK_UN);
  r->locked = false;
  return 0;
}

/* registry:ids(): a list. */
static int registry_ids(lua_State *L) {
  const registry *r = check_registry(L);
  int fd = openat(r->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *directory = fd < 0 ? NULL : fdopendir(fd);
  lua_newtable(L);
  if (!directory) {
    if (fd >= 0)
      close(fd);
    return 1;
  }
  int count = 0;
  for (struct dirent *e; count < ENTRIES_MAX && (e = readdir(directory));)
    if (is_id(e->d_name)) {
      lua_pushstring(L, e->d_name);
      lua_rawseti(L, -2, ++count);
    }
  closedir(directory);
  return 1;
}

/* registry:read(id): what is known of it; nil, errno. */
static int registry_read(lua_State *L) {
  const registry *r = check_registry(L);
  char path[ID_MAX + 16];
  int fd = openat(r->fd, entry_path(path, check_id(L, 2), "about"),
                  O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0)
    return push_error(L, errno);
  char *text = lua_newuserdata(L, ABOUT_MAX);
  ssize_t length = read(fd, text, ABOUT_MAX);
  int error = errno;
  close(fd);
  if (length < 0)
    return push_error(L, error);
  lua_pushlstring(L, text, (size_t)length);
  return 1;
}

static int write_about(int fd, const char *text, size_t length) {
  ssize_t written = write(fd, text, length);
  int error = written == (ssize_t)length ? 0 : written < 0 ? errno : ENOSPC;
  close(fd);
  errno = error;
  return error ? -1 : 0;
}

/* registry:write(id, text): in the place of what was known, whole or not at all. */
static int registry_write(lua_State *L) {
  const registry *r = check_registry(L);
  const char *id = check_id(L, 2);
  size_t length;
  const char *text = luaL_checklstring(L, 3, &length);
  char path[ID_MAX + 16], new_path[ID_MAX + 16];
  if (length > ABOUT_MAX)
    return push_error(L, E2BIG);
  entry_path(path, id, "about");
  entry_path(new_path, id, "about.new");
  int fd = openat(r->fd, new_path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0 || write_about(fd, text, length) < 0)
    return push_error(L, errno);
  return push_done(L, renameat(r->fd, new_path, r->fd, path));
}

/* registry:remove(id): what is not ours stays. */
static int registry_remove(lua_State *L) {
  static const char *const names[] = {"socket", "about", "about.new"};
  const registry *r = check_registry(L);
  const char *id = check_id(L, 2);
  char path[ID_MAX + 16];
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    unlinkat(r->fd, entry_path(path, id, names[i]), 0);
  return push_done(L, unlinkat(r->fd, id, AT_REMOVEDIR));
}

/* Sockets ------------------------------------------------------------------------------------- */

/* A path to a socket is short, however long that of the directory is. */
static struct sockaddr_un address_of(const registry *r, const char *id) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s/socket", r->fd, id);
  return address;
}

/* registry:add(id): makes its directory: a file, the socket to listen on; nil, errno. */
static int registry_add(lua_State *L) {
  const registry *r = check_registry(L);
  const char *id = check_id(L, 2);
  if (mkdirat(r->fd, id, 0700) < 0)
    return push_error(L, errno);
  struct sockaddr_un address = address_of(r, id);
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0) {
    ms_file_push(L, fd);
    return 1;
  }
  int error = errno;
  if (fd >= 0)
    close(fd);
  unlinkat(r->fd, id, AT_REMOVEDIR);
  return push_error(L, error);
}

/* A connection to the agent with this pid: a socket, or a negative errno. */
static int connect_agent(const registry *r, const char *id, pid_t pid) {
  struct sockaddr_un address = address_of(r, id);
  struct ucred peer;
  socklen_t size = sizeof peer;
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return -errno;
  int error = 0;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
    error = -errno;
  else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.pid != pid)
    error = -EPERM;
  if (error)
    close(fd);
  return error ? error : fd;
}

/* registry:listens(id): whether anybody does on its socket, whatever its entry says. */
static int registry_listens(lua_State *L) {
  const registry *r = check_registry(L);
  struct sockaddr_un address = address_of(r, check_id(L, 2));
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  bool over = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) < 0 &&
              (errno == ECONNREFUSED || errno == ENOENT);
  if (fd >= 0)
    close(fd);
  lua_pushboolean(L, !over);
  return 1;
}

/* registry:join(reactor, id, pid): a sandbox, starting to be ours too; without an id, one that can
 * only be ended. nil, errno. */
static int registry_join(lua_State *L) {
  const registry *r = check_registry(L);
  ms_reactor *reactor = ms_reactor_check(L, 2);
  const char *id = lua_isnoneornil(L, 3) ? NULL : check_id(L, 3);
  pid_t pid = (pid_t)luaL_checkinteger(L, 4);
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (pidfd < 0)
    return push_error(L, errno);
  int socket = id ? connect_agent(r, id, pid) : -1;
  if (id && socket < 0) {
    close(pidfd);
    return push_error(L, -socket);
  }
  ms_sandbox *s = ms_sandbox_new(L, reactor, socket);
  s->shared = true;
  ms_sandbox_created(s, pid, pidfd);
  return 1;
}

/* Processes ----------------------------------------------------------------------------------- */

static bool read_line(const char *path, char *text, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
  if (fd >= 0)
    close(fd);
  text[length > 0 ? length : 0] = '\0';
  text[strcspn(text, "\n")] = '\0';
  return length > 0;
}

/* core.birth(pid): which process that is, and where pids mean what they mean here: two strings. The
 * first is nil when there is none, or it is a zombie; nothing when /proc cannot tell. */
static int core_birth(lua_State *L) {
  pid_t pid = (pid_t)luaL_checkinteger(L, 1);
  char path[64], boot[64], text[1024], state;
  unsigned long long started = 0;
  struct stat names;
  if (!read_line("/proc/sys/kernel/random/boot_id", boot, sizeof boot) ||
      stat("/proc/self/ns/pid", &names) < 0)
    return 0;
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  bool there = read_line(path, text, sizeof text);
  const char *rest = there ? strrchr(text, ')') : NULL; /* names may hold anything */
  int found = rest ? sscanf(rest + 1,
                            " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s"
                            " %*s %*s %llu",
                            &state, &started)
                   : 0;
  snprintf(text, sizeof text, "%llu", started);
  if (found == 2 && state != 'Z' && state != 'X')
    lua_pushstring(L, text);
  else
    lua_pushnil(L);
  snprintf(text, sizeof text, "%s/%llu", boot, (unsigned long long)names.st_ino);
  lua_pushstring(L, text);
  return 2;
}

static int registry_gc(lua_State *L) {
  registry *r = check_registry(L);
  if (r->fd >= 0)
    close(r->fd); /* and the lock with it */
  r->fd = -1;
  return 0;
}

static const luaL_Reg methods[] = {
    {"lock", registry_lock},
    {"unlock", registry_unlock},
    {"ids", registry_ids},
    {"read", registry_read},
    {"write", registry_write},
    {"remove", registry_remove},
    {"add", registry_add},
    {"listens", registry_listens},
    {"join", registry_join},
    {"close", registry_gc},
    {NULL, NULL},
};

static const luaL_Reg metamethods[] = {{"__gc", registry_gc}, {NULL, NULL}};

void ms_registry_open(lua_State *L) {
  ms_newtype(L, MS_REGISTRY_TYPE, methods, metamethods);
  lua_pushcfunction(L, core_registry);
  lua_setfield(L, -2, "registry"); /* core.registry */
  lua_pushcfunction(L, core_birth);
  lua_setfield(L, -2, "birth"); /* core.birth */
}
