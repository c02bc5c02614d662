/* A regular file, most of the time one that an agent has opened inside its sandbox: the descriptor
 * is the sandbox's file itself, so bytes move at the kernel's speed. Reading and writing a regular
 * file neither blocks nor signals, but it may change under us at any time: sizes are hints, nothing
 * is mapped into memory, and what one call reads is bounded by its caller.
 *
 * Owns its descriptor and, during a call, the buffer that a raise would lose otherwise. */
#include "file.h"
#include "compat.h"
#include "moonsand.h"
#include "place.h"
#include "walk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct ms_file {
  int fd;       /* owned; -1 once closed */
  char *buffer; /* owned, mapped; NULL outside of a call */
  size_t size;  /* of the buffer */
} ms_file;

static ms_file *check_file(lua_State *L, int index) {
  return luaL_checkudata(L, index, MS_FILE_TYPE);
}

int ms_file_fd(lua_State *L, int index) {
  return check_file(L, index)->fd;
}

int ms_push_errno(lua_State *L, int error) {
  lua_pushnil(L);
  lua_pushinteger(L, error < 0 ? -error : error);
  return 2;
}

/* Guard --------------------------------------------------------------------------------------- */

void ms_guard_begin(ms_guard *guard) {
  struct rlimit limit;
  guard->active = false;
  if (getrlimit(RLIMIT_FSIZE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
    return;
  sigset_t too_large, pending;
  sigpending(&pending);
  if (sigismember(&pending, SIGXFSZ) == 1)
    return; /* blocked already, and somebody else's to take */
  sigemptyset(&too_large);
  sigaddset(&too_large, SIGXFSZ);
  guard->active = pthread_sigmask(SIG_BLOCK, &too_large, &guard->before) == 0;
}

void ms_guard_end(ms_guard *guard) {
  if (!guard->active)
    return;
  int error = errno;
  sigset_t too_large;
  sigemptyset(&too_large);
  sigaddset(&too_large, SIGXFSZ);
  while (sigtimedwait(&too_large, NULL, &(struct timespec){0, 0}) < 0 && errno == EINTR)
    continue;
  pthread_sigmask(SIG_SETMASK, &guard->before, NULL);
  errno = error;
}

/* Reading ------------------------------------------------------------------------------------- */

static int push_closed(lua_State *L) {
  return ms_push_errno(L, EBADF);
}

/* Reads until there are `count` bytes or the file ends, at an offset, or (-1) where the file is. */
static ssize_t read_up_to(int fd, char *to, size_t count, off_t offset) {
  size_t have = 0;
  while (have < count) {
    ssize_t got = offset < 0 ? read(fd, to + have, count - have)
                             : pread(fd, to + have, count - have, offset + (off_t)have);
    if (got < 0 && errno == EINTR)
      continue;
    if (got < 0)
      return have > 0 ? (ssize_t)have : -errno;
    if (got == 0)
      break;
    have += (size_t)got;
  }
  return (ssize_t)have;
}

/* Memory for a large read: in huge pages if the kernel likes, as faulting it in page by page takes
 * longer than reading. */
static char *take_buffer(ms_file *f, size_t size) {
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return NULL;
  madvise(memory, size, MADV_HUGEPAGE);
  f->buffer = memory;
  f->size = size;
  return f->buffer;
}

static void free_buffer(ms_file *f) {
  if (f->buffer)
    munmap(f->buffer, f->size);
  f->buffer = NULL;
}

/* Pushes what there is, `count` bytes at most: a string, perhaps empty, or nil and an errno. */
static int push_read(lua_State *L, ms_file *f, size_t count, off_t offset) {
  char small[64 * 1024];
  char *to = count <= sizeof small ? small : take_buffer(f, count);
  if (!to)
    return ms_push_errno(L, ENOMEM);
  ssize_t have = read_up_to(f->fd, to, count, offset);
  if (have < 0) {
    free_buffer(f);
    return ms_push_errno(L, (int)-have);
  }
  lua_pushlstring(L, to, (size_t)have);
  free_buffer(f);
  return 1;
}

/* What is left behind an offset, as far as the file says now. */
static uint64_t bytes_behind(int fd, off_t offset) {
  struct stat st;
  return fstat(fd, &st) == 0 && st.st_size > offset ? (uint64_t)(st.st_size - offset) : 0;
}

/* file:read(n): up to n bytes from where the file is, fewer only at its end; nil alone there. Or
 * nil, errno. */
static int file_read(lua_State *L) {
  ms_file *f = check_file(L, 1);
  lua_Integer wanted = luaL_checkinteger(L, 2);
  luaL_argcheck(L, wanted >= 0, 2, "must not be negative");
  if (f->fd < 0)
    return push_closed(L);
  size_t count = (size_t)wanted;
  if (count > 64 * 1024) { /* so much only if there is */
    uint64_t left = bytes_behind(f->fd, lseek(f->fd, 0, SEEK_CUR));
    if (count > left)
      count = left > 64 * 1024 ? (size_t)left : 64 * 1024;
  }
  int pushed = push_read(L, f, count, -1);
  if (pushed == 1 && count > 0 && lua_rawlen(L, -1) == 0) {
    lua_pushnil(L);
    return 1;
  }
  return pushed;
}

/* file:read_all(offset, length, max): all from an offset on, or `length` (nil: no bound) bytes of
 * it; nil, "too_large", size when that is more than max. Leaves alone where the file is. */
static int file_read_all(lua_State *L) {
  ms_file *f = check_file(L, 1);
  lua_Integer offset = luaL_optinteger(L, 2, 0);
  lua_Number length = luaL_optnumber(L, 3, -1);
  lua_Number max = luaL_checknumber(L, 4);
  luaL_argcheck(L, offset >= 0, 2, "must not be negative");
  if (f->fd < 0)
    return push_closed(L);
  uint64_t count = bytes_behind(f->fd, (off_t)offset);
  if (length >= 0 && (lua_Number)count > length)
    count = (uint64_t)length;
  if ((lua_Number)count > max) {
    lua_pushnil(L);
    lua_pushliteral(L, "too_large");
    lua_pushnumber(L, (lua_Number)count);
    return 3;
  }
  return push_read(L, f, (size_t)count, (off_t)offset);
}

/* Writing ------------------------------------------------------------------------------------- */

/* file:write(data, from, count): true when all of it was written, or (from: 1 is the first byte) so
 * many bytes; or nil, errno. */
static int file_write(lua_State *L) {
  const ms_file *f = check_file(L, 1);
  size_t length;
  const char *data = luaL_checklstring(L, 2, &length);
  lua_Number from = luaL_optnumber(L, 3, 1) - 1;
  luaL_argcheck(L, from >= 0 && from <= (lua_Number)length, 3, "not in the string");
  size_t left = length - (size_t)from;
  lua_Number count = luaL_optnumber(L, 4, (lua_Number)left);
  if (count >= 0 && count < (lua_Number)left)
    left = (size_t)count;
  if (f->fd < 0)
    return push_closed(L);
  ms_guard guard;
  ms_guard_begin(&guard);
  int error = ms_write_all(f->fd, data + (size_t)from, left);
  ms_guard_end(&guard);
  if (error < 0)
    return ms_push_errno(L, error);
  lua_pushboolean(L, true);
  return 1;
}

/* file:copy(from, most): copies up to `most` bytes of another file, from where that is to where
 * this is: how many, 0 at the end; or nil, errno. */
static int file_copy(lua_State *L) {
  const ms_file *f = check_file(L, 1);
  int from = ms_file_fd(L, 2);
  lua_Number most = luaL_checknumber(L, 3);
  if (f->fd < 0 || from < 0)
    return push_closed(L);
  ms_guard guard;
  ms_guard_begin(&guard);
  ssize_t copied = ms_copy_bytes(from, f->fd, most > 0 ? (uint64_t)most : 0);
  ms_guard_end(&guard);
  if (copied < 0)
    return ms_push_errno(L, (int)copied);
  lua_pushinteger(L, (lua_Integer)copied);
  return 1;
}

/* The rest ------------------------------------------------------------------------------------ */

/* file:seek(whence, offset): where it is then; or nil, errno. */
static int file_seek(lua_State *L) {
  static const char *const names[] = {"set", "cur", "end", NULL};
  static const int whences[] = {SEEK_SET, SEEK_CUR, SEEK_END};
  const ms_file *f = check_file(L, 1);
  int whence = whences[luaL_checkoption(L, 2, "cur", names)];
  off_t offset = (off_t)luaL_optinteger(L, 3, 0);
  off_t at = f->fd < 0 ? (errno = EBADF, -1) : lseek(f->fd, offset, whence);
  if (at < 0)
    return ms_push_errno(L, errno);
  lua_pushinteger(L, (lua_Integer)at);
  return 1;
}

/* file:truncate(size): true; or nil, errno. */
static int file_truncate(lua_State *L) {
  const ms_file *f = check_file(L, 1);
  lua_Integer size = luaL_checkinteger(L, 2);
  if (f->fd < 0)
    return push_closed(L);
  ms_guard guard;
  ms_guard_begin(&guard);
  int error = ftruncate(f->fd, (off_t)size) < 0 ? errno : 0;
  ms_guard_end(&guard);
  if (error)
    return ms_push_errno(L, error);
  lua_pushboolean(L, true);
  return 1;
}

/* file:stat(): as core.entry, with an empty path; or nil, errno. */
static int file_stat(lua_State *L) {
  const ms_file *f = check_file(L, 1);
  struct stat st;
  ms_entry e;
  if (f->fd < 0)
    return push_closed(L);
  if (fstat(f->fd, &st) < 0)
    return ms_push_errno(L, errno);
  ms_entry_from_stat(&e, &st);
  ms_entry_push(L, &e);
  return 1;
}

/* file:fd(): its descriptor, still the file's own; nil once closed. */
static int file_fd(lua_State *L) {
  const ms_file *f = check_file(L, 1);
  if (f->fd < 0)
    lua_pushnil(L);
  else
    lua_pushinteger(L, f->fd);
  return 1;
}

static int file_close(lua_State *L) {
  ms_file *f = check_file(L, 1);
  free_buffer(f);
  if (f->fd >= 0)
    close(f->fd);
  f->fd = -1;
  return 0;
}

static int file_tostring(lua_State *L) {
  lua_pushfstring(L, "%s (%s)", MS_FILE_TYPE, ms_file_fd(L, 1) < 0 ? "closed" : "open");
  return 1;
}

void ms_file_push(lua_State *L, int fd) {
  ms_file *f = lua_newuserdata(L, sizeof *f);
  *f = (ms_file){.fd = fd};
  luaL_setmetatable(L, MS_FILE_TYPE);
}

void ms_file_new(lua_State *L, int fd) {
  struct stat st;
  if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && !ms_is_virtual(fd)) {
    ms_file_push(L, fd);
    return;
  }
  close(fd);
  lua_pushnil(L);
}

int ms_file_open_below(int root, const char *path) {
  struct stat st;
  uid_t uid = geteuid();
  if (uid == 0 || fstat(root, &st) < 0 || st.st_uid != uid)
    return -EPERM;
  int fd = ms_openat2(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0,
                      RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
  return fd < 0 ? -errno : fd;
}

/* core.host_file(path): a file of the host, to be read; or nil, errno. Follows links; opens nothing
 * that could block. */
static int host_file(lua_State *L) {
  struct stat st;
  int fd = open(luaL_checkstring(L, 1), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  int error = fd < 0                 ? errno
              : fstat(fd, &st) < 0   ? errno
              : S_ISDIR(st.st_mode)  ? EISDIR
              : !S_ISREG(st.st_mode) ? EOPNOTSUPP
                                     : 0;
  if (error) {
    if (fd >= 0)
      close(fd);
    return ms_push_errno(L, error);
  }
  ms_file_push(L, fd);
  return 1;
}

static const luaL_Reg methods[] = {
    {"read", file_read},   {"read_all", file_read_all},
    {"write", file_write}, {"copy", file_copy},
    {"seek", file_seek},   {"truncate", file_truncate},
    {"stat", file_stat},   {"fd", file_fd},
    {"close", file_close}, {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", file_close},
    {"__close", file_close},
    {"__tostring", file_tostring},
    {NULL, NULL},
};

void ms_file_open(lua_State *L) {
  ms_newtype(L, MS_FILE_TYPE, methods, metamethods);
  lua_pushcfunction(L, host_file);
  lua_setfield(L, -2, "host_file"); /* core.host_file */
}
