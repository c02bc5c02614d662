/* The file calls that the agent answers at once. Paths are resolved here, inside, by the same
 * kernel rules and with the same rights as those of any program in the sandbox, so there is nowhere
 * to escape to; what leaves is a descriptor of a regular file, which cannot make the host wait.
 *
 * The agent itself must not be made to wait, and must not be reached: magic links of /proc are
 * never followed, every open is O_NONBLOCK (a FIFO, a lease), and the content of /proc is left to a
 * worker. Nothing here keeps state between calls. */
#include "../entry.h"
#include "../place.h"
#include "../walk.h"
#include "agent.h"
#include "life.h"
#include "paths.h"
#include "ps.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TRIES 64 /* when somebody changes what is looked at */
#define OPEN_FLAGS                                                                                 \
  (O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_NOFOLLOW) /* what a host may ask for */

/* One MS_CALL's body. */
typedef struct call {
  uint32_t op, flags, mode;
  uint64_t a, b;
  const char *path, *path2;
} call;

/* Opening ------------------------------------------------------------------------------------- */

/* What there is where no file can be opened. -EISDIR for a directory. */
static int opened_kind(const struct stat *st) {
  switch (st->st_mode & S_IFMT) {
  case S_IFREG:
    return MS_OPENED_FILE;
  case S_IFDIR:
    return -EISDIR;
  case S_IFIFO:
    return MS_OPENED_FIFO;
  case S_IFSOCK:
    return MS_OPENED_SOCKET;
  default:
    return MS_OPENED_DEVICE;
  }
}

/* Open said ENXIO: a socket, or a FIFO that nobody reads. Which? */
static int refused_kind(const char *path) {
  struct stat st;
  int fd = ms_open_path(path, O_PATH);
  if (fd < 0)
    return fd;
  int kind = fstat(fd, &st) < 0 ? -errno : opened_kind(&st);
  close(fd);
  return kind == MS_OPENED_FILE ? -ENXIO : kind;
}

/* The content of what a descriptor is open for: an ms_opened, or a negative errno. */
static int checked_kind(int fd) {
  struct stat st;
  if (fstat(fd, &st) < 0)
    return -errno;
  int kind = opened_kind(&st);
  return kind == MS_OPENED_FILE && ms_is_virtual(fd) ? MS_OPENED_VIRTUAL : kind;
}

static int call_open(const call *c, ms_writer *reply, int *file) {
  int flags = (int)c->flags & OPEN_FLAGS;
  uint64_t mode = flags & O_CREAT ? c->mode & 07777 : 0;
  if (c->a == 1 && flags & O_CREAT) {
    ms_where p;
    int error = ms_where_find(&p, c->path, true);
    ms_where_close(&p);
    if (error < 0)
      return error;
  }
  int fd = ms_openat2(AT_FDCWD, c->path,
                      (uint64_t)flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | O_LARGEFILE, mode,
                      RESOLVE_NO_MAGICLINKS);
  int kind = fd >= 0 ? checked_kind(fd) : errno == ENXIO ? refused_kind(c->path) : -errno;
  if (kind == MS_OPENED_FILE && fcntl(fd, F_SETFL, flags & O_APPEND) < 0)
    kind = -errno;
  if (kind == MS_OPENED_FILE)
    *file = fd;
  else if (fd >= 0)
    close(fd);
  if (kind < 0)
    return kind;
  ms_put_u32(reply, (uint32_t)kind);
  return 0;
}

/* Replacing ----------------------------------------------------------------------------------- */

/* The mode that the new file gets; an ms_opened if what is there cannot be replaced. */
static int target_mode(const ms_where *p, const call *c, struct stat *old, mode_t *mode) {
  *mode = c->mode & 07777;
  if (ms_is_virtual(p->dir))
    return MS_OPENED_VIRTUAL;
  old->st_mode = 0;
  if (fstatat(p->dir, p->name, old, AT_SYMLINK_NOFOLLOW) < 0)
    return errno == ENOENT ? MS_OPENED_FILE : -errno;
  if (S_ISLNK(old->st_mode))
    return -EAGAIN; /* it was none a moment ago */
  int kind = opened_kind(old);
  if (kind == MS_OPENED_FILE && faccessat(p->dir, p->name, W_OK, 0) < 0)
    return errno == ENOENT ? -EAGAIN : -errno; /* what cannot be written is not replaced */
  if (c->b != 1)
    *mode = old->st_mode & 01777;
  return kind;
}

/* With a name or without. */
static int open_temporary(const ms_where *p, bool nameless, char temp[MS_TEMP_NAME]) {
  temp[0] = '\0';
  int fd = nameless ? openat(p->dir, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600) : -1;
  if (fd >= 0)
    return fd;
  int error = ms_temp_name(temp);
  if (error < 0)
    return error;
  fd = openat(p->dir, temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  return fd < 0 ? -errno : fd;
}

/* Mode and owner, before anything is in it. */
static int dress(int fd, mode_t mode, const struct stat *old) {
  struct stat st;
  if (fstat(fd, &st) < 0)
    return -errno;
  if (old->st_mode && (old->st_uid != st.st_uid || old->st_gid != st.st_gid) &&
      fchown(fd, old->st_uid, old->st_gid) < 0)
    return -errno;
  return fchmod(fd, mode) < 0 ? -errno : 0;
}

static int create_at(const call *c, const ms_where *p, ms_writer *reply, int *file) {
  struct stat old;
  mode_t mode;
  int kind = target_mode(p, c, &old, &mode);
  if (kind < 0)
    return kind;
  ms_put_u32(reply, (uint32_t)kind);
  if (kind != MS_OPENED_FILE)
    return 0;
  char temp[MS_TEMP_NAME], path[MS_PATH_MAX + 1];
  int fd = open_temporary(p, c->flags & MS_CREATE_NAMELESS, temp);
  if (fd < 0)
    return fd;
  int error = dress(fd, mode, &old);
  const char *names[] = {temp, p->name};
  for (int i = 0; i < 2 && error == 0; i++) {
    int length = snprintf(path, sizeof path, "%s%s", names[i][0] ? p->path : "", names[i]);
    if (length > MS_PATH_MAX)
      error = -ENAMETOOLONG;
    ms_put_bytes(reply, path, (size_t)length);
  }
  if (error < 0) {
    if (temp[0])
      unlinkat(p->dir, temp, 0);
    close(fd);
    return error;
  }
  *file = fd;
  return 0;
}

static int call_create(const call *c, ms_writer *reply, int *file) {
  int error = -EAGAIN;
  for (int tries = 0; tries < MAX_TRIES && error == -EAGAIN; tries++) {
    ms_where p;
    error = ms_where_target(&p, c->path, c->a == 1);
    if (error == 0)
      error = create_at(c, &p, reply, file);
    ms_where_close(&p);
  }
  return error;
}

static int commit_named(const char *temp, const ms_where *final) {
  ms_where p;
  int error = ms_where_find(&p, temp, false);
  if (error == 0 && renameat(p.dir, p.name, final->dir, final->name) < 0)
    error = -errno;
  ms_where_close(&p);
  return error;
}

static int commit_nameless(int file, const ms_where *final) {
  ms_place p = {.dir = fcntl(final->dir, F_DUPFD_CLOEXEC, 0),
                .fd = fcntl(file, F_DUPFD_CLOEXEC, 0)};
  if (p.dir < 0 || p.fd < 0) {
    int error = -errno;
    ms_place_abort(&p);
    return error;
  }
  return ms_place_commit(&p, final->name);
}

static int call_commit(const call *c, int file) {
  ms_where p;
  int error = ms_where_find(&p, c->path2, false);
  if (error == 0 && ms_where_is_dots(&p))
    error = -EISDIR;
  if (error == 0)
    error = c->path[0] ? commit_named(c->path, &p) : commit_nameless(file, &p);
  ms_where_close(&p);
  return error;
}

/* The rest ------------------------------------------------------------------------------------ */

static int call_stat(const call *c, ms_writer *reply) {
  char target[MS_PATH_MAX + 1];
  struct stat st;
  ms_entry e;
  int fd = ms_open_path(c->path, O_PATH | (c->flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0));
  if (fd < 0)
    return fd;
  int error = fstat(fd, &st) < 0 ? -errno : 0;
  if (error == 0) {
    ms_entry_from_stat(&e, &st);
    ssize_t length = S_ISLNK(st.st_mode) ? readlinkat(fd, "", target, MS_PATH_MAX) : 0;
    target[length > 0 ? length : 0] = '\0';
    e.target = target;
    ms_put_entry(reply, &e);
  }
  close(fd);
  return error;
}

/* mkdir makes the last name with its mode; those before it are 0755. */
static int call_mkdir(const call *c) {
  ms_where p;
  int error = ms_where_find(&p, c->path, c->a == 1);
  if (error == 0 && ms_where_is_dots(&p))
    error = c->a == 1 ? 1 : -EEXIST;
  if (error == 0 && mkdirat(p.dir, p.name, c->mode & 07777) < 0)
    error = -errno;
  if (error == -EEXIST && c->a == 1) { /* fine, if it is a directory, or leads to one */
    int dir = ms_open_path(c->path, O_PATH | O_DIRECTORY);
    error = dir == -ENOTDIR ? -EEXIST : dir < 0 ? dir : 0;
    if (dir >= 0)
      close(dir);
  }
  ms_where_close(&p);
  return error > 0 ? 0 : error;
}

static int call_remove(const call *c) {
  ms_where p;
  int error = ms_where_find(&p, c->path, false);
  if (error == 0 && ms_where_is_dots(&p))
    error = p.name[0] ? -EINVAL : -EBUSY;
  if (error == 0)
    error = p.slash ? -EISDIR : unlinkat(p.dir, p.name, 0) < 0 ? -errno : 0;
  if (error == -EISDIR)
    error = unlinkat(p.dir, p.name, AT_REMOVEDIR) < 0 ? -errno : 0;
  ms_where_close(&p);
  return error;
}

static int call_move(const call *c) {
  ms_where from, to = {.dir = -1};
  int error = ms_where_find(&from, c->path, false);
  if (error == 0)
    error = ms_where_find(&to, c->path2, false);
  if (error == 0 && (ms_where_is_dots(&from) || ms_where_is_dots(&to)))
    error = -EBUSY;
  struct stat st;
  if (error == 0 && (from.slash || to.slash) &&
      fstatat(from.dir, from.name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode))
    error = -ENOTDIR;
  if (error == 0 && renameat(from.dir, from.name, to.dir, to.name) < 0)
    error = -errno;
  ms_where_close(&from);
  ms_where_close(&to);
  return error;
}

/* chmod has no form for a descriptor that was opened with O_PATH, but for its name in /proc. */
static int call_chmod(const call *c) {
  char name[40];
  int fd = ms_open_path(c->path, O_PATH);
  if (fd < 0)
    return fd;
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  int error = ms_is_virtual(fd) ? -EPERM : chmod(name, c->mode & 07777) < 0 ? -errno : 0;
  close(fd);
  return error;
}

static int call_chown(const call *c) {
  int fd = ms_open_path(c->path, O_PATH);
  if (fd < 0)
    return fd;
  uid_t uid = (uid_t)c->a;
  gid_t gid = (gid_t)c->b;
  int error = ms_is_virtual(fd)                               ? -EPERM
              : fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0 ? -errno
                                                              : 0;
  close(fd);
  return error;
}

int ms_files_call(ms_reader *body, ms_writer *reply, int *file) {
  call c;
  c.op = ms_get_u32(body);
  c.flags = ms_get_u32(body);
  c.mode = ms_get_u32(body);
  c.a = ms_get_u64(body);
  c.b = ms_get_u64(body);
  c.path = ms_get_str(body);
  c.path2 = ms_get_str(body);
  int came = *file;
  *file = -1;
  if (!ms_get_end(body))
    return -EPROTO;
  if (c.op == MS_CALL_CONNECT || c.op == MS_CALL_LISTEN)
    return ms_net_call(c.op, c.flags, c.a, reply, file);
  if (c.path[0] != '/' && !(c.op == MS_CALL_COMMIT && c.path[0] == '\0'))
    return -EINVAL;
  switch (c.op) {
  case MS_CALL_OPEN:
    return call_open(&c, reply, file);
  case MS_CALL_STAT:
    return call_stat(&c, reply);
  case MS_CALL_MKDIR:
    return call_mkdir(&c);
  case MS_CALL_REMOVE:
    return call_remove(&c);
  case MS_CALL_MOVE:
    return call_move(&c);
  case MS_CALL_CHMOD:
    return call_chmod(&c);
  case MS_CALL_CHOWN:
    return call_chown(&c);
  case MS_CALL_CREATE:
    return call_create(&c, reply, file);
  case MS_CALL_COMMIT:
    return call_commit(&c, came);
  case MS_CALL_SIGNAL:
    return ms_ps_signal(c.a, c.b, c.flags, c.mode == 1, reply);
  case MS_CALL_SAMPLE:
    return ms_ps_sample(c.a, c.b, reply);
  case MS_CALL_USAGE:
    return ms_ps_usage(reply);
  case MS_CALL_PROGRAMS:
    ms_exec_list(c.a, reply);
    return 0;
  case MS_CALL_DETACH:
    return ms_life_detach(c.a, c.b, came);
  case MS_CALL_LIFE:
    ms_life_set(c.flags, c.a, c.b);
    return 0;
  default:
    return -ENOSYS;
  }
}
