/* `require "moonsand.core"`: the module table, small things that plain Lua lacks, and the types
 * that the other files bring. Private: what users call is written in Lua, on top of this. */
#include "compat.h"
#include "moonsand.h"
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#define MS_ERRNOS(X)                                                                               \
  X(E2BIG)                                                                                         \
  X(EACCES)                                                                                        \
  X(EADDRINUSE)                                                                                    \
  X(EADDRNOTAVAIL)                                                                                 \
  X(EAFNOSUPPORT)                                                                                  \
  X(EAGAIN)                                                                                        \
  X(EALREADY)                                                                                      \
  X(EBADF)                                                                                         \
  X(EBADMSG)                                                                                       \
  X(EBUSY)                                                                                         \
  X(ECANCELED)                                                                                     \
  X(ECHILD)                                                                                        \
  X(ECONNABORTED)                                                                                  \
  X(ECONNREFUSED)                                                                                  \
  X(ECONNRESET)                                                                                    \
  X(EDEADLK)                                                                                       \
  X(EDESTADDRREQ)                                                                                  \
  X(EDOM)                                                                                          \
  X(EDQUOT)                                                                                        \
  X(EEXIST)                                                                                        \
  X(EFAULT)                                                                                        \
  X(EFBIG)                                                                                         \
  X(EHOSTUNREACH)                                                                                  \
  X(EILSEQ)                                                                                        \
  X(EINPROGRESS)                                                                                   \
  X(EINTR)                                                                                         \
  X(EINVAL)                                                                                        \
  X(EIO)                                                                                           \
  X(EISCONN)                                                                                       \
  X(EISDIR)                                                                                        \
  X(ELOOP)                                                                                         \
  X(EMFILE)                                                                                        \
  X(EMLINK)                                                                                        \
  X(EMSGSIZE)                                                                                      \
  X(ENAMETOOLONG)                                                                                  \
  X(ENETDOWN)                                                                                      \
  X(ENETUNREACH)                                                                                   \
  X(ENFILE)                                                                                        \
  X(ENOBUFS)                                                                                       \
  X(ENODEV)                                                                                        \
  X(ENOENT)                                                                                        \
  X(ENOEXEC)                                                                                       \
  X(ENOLCK)                                                                                        \
  X(ENOMEM)                                                                                        \
  X(ENOPROTOOPT)                                                                                   \
  X(ENOSPC)                                                                                        \
  X(ENOSYS)                                                                                        \
  X(ENOTBLK)                                                                                       \
  X(ENOTCONN)                                                                                      \
  X(ENOTDIR)                                                                                       \
  X(ENOTEMPTY)                                                                                     \
  X(ENOTSOCK)                                                                                      \
  X(ENOTSUP)                                                                                       \
  X(ENOTTY)                                                                                        \
  X(ENXIO)                                                                                         \
  X(EOPNOTSUPP)                                                                                    \
  X(EOVERFLOW)                                                                                     \
  X(EOWNERDEAD)                                                                                    \
  X(EPERM)                                                                                         \
  X(EPIPE)                                                                                         \
  X(EPROTO)                                                                                        \
  X(EPROTONOSUPPORT)                                                                               \
  X(ERANGE)                                                                                        \
  X(EROFS)                                                                                         \
  X(ESPIPE)                                                                                        \
  X(ESRCH)                                                                                         \
  X(ESTALE)                                                                                        \
  X(ETIME)                                                                                         \
  X(ETIMEDOUT)                                                                                     \
  X(ETOOMANYREFS)                                                                                  \
  X(ETXTBSY)                                                                                       \
  X(EUSERS)                                                                                        \
  X(EWOULDBLOCK)                                                                                   \
  X(EXDEV)

#define MS_RANDOM_MAX 4096

/* core.errno: { ENOENT = 2, … } */
static void push_errnos(lua_State *L) {
  static const struct {
    const char *name;
    int number;
  } rows[] = {
#define X(name) {#name, name},
      MS_ERRNOS(X)
#undef X
  };
  lua_createtable(L, 0, (int)(sizeof rows / sizeof *rows));
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    lua_pushinteger(L, rows[i].number);
    lua_setfield(L, -2, rows[i].name); /* errno[name] = number */
  }
}

static int core_strerror(lua_State *L) {
  lua_pushstring(L, strerror((int)luaL_checkinteger(L, 1)));
  return 1;
}

/* max_descriptors(): how many this process may have open, as it is set now. */
static int core_max_descriptors(lua_State *L) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
    return luaL_error(L, "getrlimit: %s", strerror(errno));
  lua_pushnumber(L, (lua_Number)limit.rlim_cur);
  return 1;
}

static int core_getpid(lua_State *L) {
  lua_pushinteger(L, getpid());
  return 1;
}

/* random(n): n unpredictable bytes. */
static int core_random(lua_State *L) {
  char bytes[MS_RANDOM_MAX];
  lua_Integer wanted = luaL_checkinteger(L, 1);
  luaL_argcheck(L, wanted >= 0 && wanted <= MS_RANDOM_MAX, 1, "from 0 to 4096 bytes");
  size_t length = (size_t)wanted;
  for (size_t have = 0; have < length;) {
    ssize_t got = getrandom(bytes + have, length - have, 0);
    if (got < 0 && errno != EINTR) {
      return luaL_error(L, "getrandom: %s", strerror(errno));
    }
    have += got > 0 ? (size_t)got : 0;
  }
  lua_pushlstring(L, bytes, length);
  return 1;
}

/* module_path(): the file that this code was loaded from; the agent lies beside it. */
static int core_module_path(lua_State *L) {
  lua_pushvalue(L, lua_upvalueindex(1));
  return 1;
}

__attribute__((visibility("default"))) int luaopen_moonsand_core(lua_State *L);

/* Found when the module is loaded: a relative package.cpath means something else after a chdir. */
static void push_module_path(lua_State *L) {
  Dl_info info;
  char path[PATH_MAX];
  if (!dladdr((void *)(uintptr_t)luaopen_moonsand_core, &info) || !info.dli_fname) {
    lua_pushnil(L);
  } else if (realpath(info.dli_fname, path)) {
    lua_pushstring(L, path);
  } else {
    lua_pushstring(L, info.dli_fname);
  }
}

int luaopen_moonsand_core(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"strerror", core_strerror},
      {"getpid", core_getpid},
      {"max_descriptors", core_max_descriptors},
      {"random", core_random},
      {NULL, NULL},
  };
  luaL_newlib(L, functions);
  lua_pushliteral(L, MS_VERSION);
  lua_setfield(L, -2, "version"); /* core.version */
  push_errnos(L);
  lua_setfield(L, -2, "errno"); /* core.errno */
  push_module_path(L);
  lua_pushcclosure(L, core_module_path, 1);
  lua_setfield(L, -2, "module_path"); /* core.module_path, the path its upvalue */
  ms_reactor_open(L);
  ms_wake_open(L);
  ms_stream_open(L);
  ms_socket_open(L);
  ms_relay_open(L);
  ms_lookup_open(L);
  ms_process_open(L);
  ms_sandbox_open(L);
  ms_zygote_open(L);
  ms_cgroup_open(L);
  ms_registry_open(L);
  ms_terminal_open(L);
  ms_file_open(L);
  ms_source_open(L);
  ms_entry_open(L);
  ms_tree_open(L);
  ms_store_open(L);
  return 1;
}
