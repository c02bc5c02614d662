/* Moving bytes: `copy`, `cat`, and the two ends of an upload and a download, `unpack` and `pack`.
 */
#include "../pack.h"
#include "../place.h"
#include "../unpack.h"
#include "agent.h"
#include "paths.h"
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NONBLOCK)
#define READABLE (O_RDONLY | O_NONBLOCK | O_NOCTTY)

/* Whether a file is one that /proc has of this very process or of the agent, whose memory it has
 * copies of. */
static bool is_own(int fd) {
  struct statfs fs;
  if (fstatfs(fd, &fs) == 0 && fs.f_type != PROC_SUPER_MAGIC)
    return false;
  char name[40], path[64];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(name, path, sizeof path - 1);
  if (length < 0)
    return true;
  path[length] = '\0';
  int pid = 0;
  return sscanf(path, "/proc/%d/", &pid) == 1 && (pid == 1 || pid == getpid());
}

/* Opens a file for its bytes, and no other thing: -EISDIR for a directory, -EOPNOTSUPP for what is
 * neither. */
static int open_readable(const char *path, struct stat *st) {
  int fd = ms_open_path(path, READABLE);
  if (fd < 0)
    return fd;
  int error = fstat(fd, st) < 0       ? -errno
              : S_ISDIR(st->st_mode)  ? -EISDIR
              : !S_ISREG(st->st_mode) ? -EOPNOTSUPP
              : is_own(fd)            ? -EACCES
              : fcntl(fd, F_SETFL, 0) ? -errno
                                      : 0;
  if (error < 0)
    close(fd);
  return error < 0 ? error : fd;
}

/* Copying ------------------------------------------------------------------------------------- */

/* All that is between a position and the next hole. */
static int copy_extent(int from, int to, off_t start, off_t end) {
  if (lseek(from, start, SEEK_SET) < 0 || lseek(to, start, SEEK_SET) < 0)
    return -errno;
  while (start < end) {
    ssize_t copied = ms_copy_bytes(from, to, (uint64_t)(end - start));
    if (copied <= 0)
      return (int)copied;
    start += copied;
  }
  return 0;
}

/* The bytes of a file as it is now; holes stay holes. */
static int copy_content(int from, int to, off_t size) {
  for (off_t at = 0; at < size;) {
    off_t data = lseek(from, at, SEEK_DATA), hole = size;
    if (data < 0 && errno == ENXIO)
      break; /* a hole up to the end */
    if (data < 0)
      data = at; /* a file system that does not know */
    else
      hole = lseek(from, data, SEEK_HOLE);
    if (hole < 0 || hole > size)
      hole = size;
    int error = copy_extent(from, to, data, hole);
    if (error < 0)
      return error;
    at = hole;
  }
  return ftruncate(to, size) < 0 ? -errno : 0;
}

/* A file whose size nobody tells, as in /proc. */
static int copy_stream(int from, int to) {
  ssize_t copied;
  while ((copied = ms_copy_bytes(from, to, UINT64_MAX)) > 0)
    continue;
  return (int)copied;
}

static int copy_file(int from, const struct stat *st, const char *to) {
  ms_where where;
  ms_place new = MS_PLACE_NONE;
  struct stat old;
  int error = ms_where_target(&where, to, false);
  if (error == 0 && fstatat(where.dir, where.name, &old, AT_SYMLINK_NOFOLLOW) == 0)
    error = S_ISDIR(old.st_mode)                                   ? -EISDIR
            : old.st_dev == st->st_dev && old.st_ino == st->st_ino ? -EINVAL
            : !S_ISREG(old.st_mode)                                ? -EOPNOTSUPP
            : faccessat(where.dir, where.name, W_OK, 0) < 0        ? -errno
                                                                   : 0;
  if (error == 0)
    error = ms_place_open(&new, where.dir, st->st_mode & 0777);
  if (error == 0)
    error =
        ms_is_virtual(from) ? copy_stream(from, new.fd) : copy_content(from, new.fd, st->st_size);
  if (error == 0)
    error = ms_place_commit(&new, where.name);
  ms_place_abort(&new);
  ms_where_close(&where);
  return error;
}

/* Whether a directory is another one or is somewhere in it. */
static bool is_inside(int dir, const struct stat *outer) {
  int at = fcntl(dir, F_DUPFD_CLOEXEC, 0);
  struct stat last = {0}, st;
  bool found = false;
  while (at >= 0 && fstat(at, &st) == 0 && !found &&
         !(st.st_dev == last.st_dev && st.st_ino == last.st_ino)) {
    found = st.st_dev == outer->st_dev && st.st_ino == outer->st_ino;
    last = st;
    int up = openat(at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    close(at);
    at = up;
  }
  if (at >= 0)
    close(at);
  return found;
}

/* The directory that a tree is copied to, made if it is missing. */
static int open_target(const char *path, mode_t mode, const struct stat *from) {
  ms_where where;
  int error = ms_where_find(&where, path, false), fd = -1;
  if (error == 0 && from && is_inside(where.dir, from))
    error = -EINVAL;
  if (error == 0 && !ms_where_is_dots(&where) && mkdirat(where.dir, where.name, mode | 0700) < 0 &&
      errno != EEXIST)
    error = -errno;
  ms_where_close(&where);
  if (error == 0)
    fd = error = ms_open_path(path, O_PATH | O_DIRECTORY);
  if (error >= 0 && from && is_inside(fd, from)) {
    close(fd);
    error = -EINVAL;
  }
  return error < 0 ? error : fd;
}

/* The entry that the walk is at: 0; or a negative errno if the whole cannot go on. */
static int copy_entry(ms_walk *w, ms_unpack *to) {
  char target[MS_PATH_MAX + 1];
  struct stat st;
  ms_entry e;
  int from = -1, error = ms_walk_describe(w, &e, target);
  if (error == 0 && e.type == MS_ENTRY_OTHER)
    error = -EOPNOTSUPP;
  if (error == 0 && e.type == MS_ENTRY_FILE) {
    from = openat(ms_walk_here(w), w->name, READABLE | O_NOFOLLOW | O_CLOEXEC);
    error = from < 0 ? -errno : fstat(from, &st) < 0 || !S_ISREG(st.st_mode) ? -EOPNOTSUPP : 0;
  }
  if (error < 0) {
    if (from >= 0)
      close(from);
    ms_out_skipped(error, w->path);
    return 0;
  }
  error = ms_unpack_entry(to, &e);
  if (error == 0 && from >= 0)
    error = copy_content(from, to->file.fd, st.st_size);
  if (error == 0 && from >= 0)
    error = ms_unpack_finish(to);
  if (from >= 0)
    close(from);
  if (error == 0 && e.type == MS_ENTRY_DIRECTORY) {
    error = ms_walk_enter(w, 0);
    if (error < 0)
      ms_out_skipped(error, w->path);
    error = 0;
  }
  return error;
}

static int copy_tree(int from, const char *to) {
  struct stat st;
  ms_walk w;
  ms_unpack u;
  int root = fstat(from, &st) < 0 ? -errno : open_target(to, st.st_mode & 0777, &st);
  if (root < 0) {
    close(from);
    return ms_out_failed(root, "");
  }
  ms_unpack_start(&u, root, false);
  int found, error = ms_walk_start(&w, from);
  while (error == 0 && (found = ms_walk_next(&w)) != 0) {
    if (found < 0)
      ms_out_skipped(found, w.path);
    else
      error = copy_entry(&w, &u);
  }
  ms_unpack_end(&u);
  int status = error < 0 ? ms_out_failed(error, w.path) : ms_out_end(u.entries);
  ms_walk_end(&w);
  return status;
}

/* A link as it is: 0, 1 when it is none, or a negative errno. */
static int copy_link(const char *from, const char *to) {
  char target[MS_PATH_MAX + 1];
  ms_where where;
  int error = ms_where_find(&where, from, false);
  ssize_t length = error == 0 ? readlinkat(where.dir, where.name, target, MS_PATH_MAX) : 0;
  if (length < 0)
    error = errno == EINVAL ? 1 : -errno;
  ms_where_close(&where);
  if (error != 0)
    return error;
  target[length] = '\0';
  error = ms_where_find(&where, to, false);
  if (error == 0)
    error = ms_link_at(where.dir, where.name, target);
  ms_where_close(&where);
  return error;
}

/* copy FROM TO FOLLOW: a file, or a directory with all that is in it, into the one that is there
 * already if there is one. A link that FROM itself is is followed (1) or copied (0); those below
 * are copied. */
int ms_work_copy(int argc, char **argv) {
  (void)argc;
  struct stat st;
  int error = argv[3][0] == '0' ? copy_link(argv[1], argv[2]) : 1;
  if (error > 0) {
    int from = ms_open_path(argv[1], DIRECTORY);
    if (from >= 0)
      return copy_tree(from, argv[2]);
    from = open_readable(argv[1], &st);
    error = from < 0 ? from : copy_file(from, &st, argv[2]);
  }
  return error < 0 ? ms_out_failed(error, "") : ms_out_end(1);
}

/* cat PATH OFFSET LENGTH: the bytes themselves; the exit status is the errno. For files that are
 * not passed to the host. */
int ms_work_cat(int argc, char **argv) {
  (void)argc;
  char buffer[32 * 1024];
  struct stat st;
  uint64_t skip = strtoull(argv[2], NULL, 10), left = strtoull(argv[3], NULL, 10);
  int fd = open_readable(argv[1], &st);
  if (fd < 0)
    return -fd;
  while (left > 0) {
    uint64_t most = skip > 0 ? skip : left;
    ssize_t length = read(fd, buffer, most < sizeof buffer ? (size_t)most : sizeof buffer);
    if (length < 0)
      return errno;
    if (length == 0)
      break;
    if (skip > 0) { /* read over: few of these files can seek */
      skip -= (uint64_t)length;
      continue;
    }
    if (ms_write_all(STDOUT_FILENO, buffer, (size_t)length) < 0)
      return EPIPE;
    left -= (uint64_t)length;
  }
  return 0;
}

/* Trees in and out ---------------------------------------------------------------------------- */

/* pack PATH MEASURE: a directory as records; 1: with an MS_RECORD_TOTAL in front. */
int ms_work_pack(int argc, char **argv) {
  (void)argc;
  static char buffer[2 * MS_RECORD_MAX];
  uint64_t entries, bytes;
  ms_pack p;
  int root = ms_open_path(argv[1], DIRECTORY);
  int error = root < 0 ? root : ms_is_virtual(root) ? -EOPNOTSUPP : 0;
  if (error == 0 && argv[2][0] == '1') {
    int again = ms_open_path(argv[1], DIRECTORY);
    error = again < 0 ? again : ms_pack_measure(again, &entries, &bytes);
    if (error == 0)
      ms_out_total(entries, bytes);
  }
  if (error == 0)
    error = ms_pack_start(&p, root);
  if (error < 0)
    return ms_out_failed(error, "");
  size_t length;
  while ((length = ms_pack_read(&p, buffer, sizeof buffer)) > 0)
    ms_out_raw(buffer, length);
  ms_pack_end(&p);
  return 0;
}

/* unpack PATH: a tree from the records on standard input, below a directory that is made (with
 * those above it) if it is missing. */
int ms_work_unpack(int argc, char **argv) {
  (void)argc;
  static char buffer[2 * MS_RECORD_MAX];
  size_t have = 0;
  ms_unpack u;
  int root = ms_open_directory(argv[1], true), state = MS_UNPACK_MORE;
  if (root < 0)
    return ms_out_failed(root, "");
  ms_unpack_start(&u, root, false);
  while (state == MS_UNPACK_MORE) {
    ssize_t length = read(STDIN_FILENO, buffer + have, sizeof buffer - have);
    if (length < 0 && errno == EINTR)
      continue;
    if (length <= 0)
      state = length < 0 ? -errno : -EPIPE; /* cut off */
    else
      have += (size_t)length;
    ms_record record;
    ssize_t taken = 0;
    size_t at = 0;
    while (state == MS_UNPACK_MORE &&
           (taken = ms_record_next(buffer + at, have - at, &record)) > 0) {
      state = ms_unpack_record(&u, &record);
      at += (size_t)taken;
    }
    if (taken < 0)
      state = (int)taken;
    memmove(buffer, buffer + at, have - at);
    have -= at;
  }
  if (state == MS_UNPACK_FAILED)
    state = -ECANCELED;
  int status = state == MS_UNPACK_END ? ms_out_end(u.entries) : ms_out_failed(state, u.path);
  ms_unpack_end(&u);
  return status;
}
