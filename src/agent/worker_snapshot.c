/* The sandbox's own files, out and in: `snapshot` writes them as records (entry.h), whole: with
 * modes, times, holes and hard links; `restore` reads them in another sandbox (restore.h).
 *
 * Own is what lies on the one tmpfs. What is mounted is not entered: it is the host's. Whoever runs
 * in the sandbox may change the tree meanwhile; each file is what it was while it was read, and
 * where that shows, it is told. */
#include "../place.h"
#include "../walk.h"
#include "paths.h"
#include "restore.h"
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>

#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NONBLOCK)

/* What is on the tmpfs: "/" itself, or else, with another root file system, what is put over it. */
static const char *own_place(int root) {
  struct statfs is;
  return fstatfs(root, &is) == 0 && is.f_type == TMPFS_MAGIC ? "." : "dev";
}

/* What the names of files with more than one may take. */
#define NAMES_MAX ((size_t)64 * 1024 * 1024)

/* A file that has other names, by the first of them. */
typedef struct named {
  ino_t inode;
  char path[];
} named;

typedef struct taking {
  ms_walk walk;
  dev_t own;
  void *names; /* tsearch's tree of `named`; the worker's end frees them */
  size_t names_size;
  uint64_t count;
} taking;

static int compare(const void *a, const void *b) {
  ino_t left = ((const named *)a)->inode, right = ((const named *)b)->inode;
  return (left > right) - (left < right);
}

/* Another name of a file that was told of already: 1. Of one that has more names to come: 0. */
static int take_name(taking *t, const struct stat *st) {
  const char *path = t->walk.path;
  size_t size = sizeof(named) + strlen(path) + 1;
  if (st->st_nlink < 2)
    return 0;
  if (t->names_size + size > NAMES_MAX)
    return -EFBIG;
  named *new = malloc(size), **there = NULL;
  if (new) {
    new->inode = st->st_ino;
    strcpy(new->path, path);
    there = tsearch(new, &t->names, compare);
  }
  if (!there)
    return -ENOMEM;
  if (*there == new) {
    t->names_size += size;
    return 0;
  }
  free(new);
  ms_writer *out = ms_out_begin(MS_RECORD_LINK);
  ms_put_str(out, path);
  ms_put_str(out, (*there)->path);
  ms_out_close();
  return 1;
}

/* Files --------------------------------------------------------------------------------------- */

static void put_hole(uint64_t length) {
  ms_put_u64(ms_out_begin(MS_RECORD_HOLE), length);
  ms_out_close();
}

/* The bytes from one place to another; -EBUSY if they are not there any more. */
static int put_extent(int fd, off_t at, off_t end) {
  static char piece[MS_RECORD_MAX];
  while (at < end) {
    size_t most = end - at < (off_t)MS_RECORD_DATA_MAX ? (size_t)(end - at) : MS_RECORD_DATA_MAX;
    ssize_t length = pread(fd, piece + MS_RECORD_HEADER, most, at);
    if (length < 0 && errno == EINTR)
      continue;
    if (length <= 0)
      return length < 0 ? -errno : -EBUSY;
    ms_record_data_header(piece, (size_t)length);
    ms_out_raw(piece, MS_RECORD_HEADER + (size_t)length);
    at += length;
  }
  return 0;
}

static int put_content(int fd, off_t size) {
  int error = 0;
  for (off_t at = 0; at < size && error == 0;) {
    off_t data = lseek(fd, at, SEEK_DATA);
    if (data < 0 || data >= size)
      return data < 0 && errno != ENXIO ? -errno : 0; /* a hole up to the end */
    off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole < data || hole > size)
      hole = size;
    if (data > at)
      put_hole((uint64_t)(data - at));
    error = put_extent(fd, data, hole);
    at = hole;
  }
  return error;
}

static bool has_changed(int fd, const struct stat *before) {
  struct stat now;
  return fstat(fd, &now) < 0 || now.st_size != before->st_size ||
         now.st_mtim.tv_sec != before->st_mtim.tv_sec ||
         now.st_mtim.tv_nsec != before->st_mtim.tv_nsec;
}

static int take_file(taking *t) {
  const ms_walk *w = &t->walk;
  struct stat st;
  ms_entry e;
  int fd =
      openat(ms_walk_here(w), w->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  int error = fd < 0 || fstat(fd, &st) < 0                  ? -errno
              : !S_ISREG(st.st_mode) || st.st_dev != t->own ? -EBUSY
                                                            : take_name(t, &st);
  if (error == 0) {
    ms_entry_from_stat(&e, &st);
    e.path = w->path;
    ms_out_entry(&e);
    error = put_content(fd, st.st_size);
    if (error == 0 && has_changed(fd, &st))
      error = -EBUSY;
  }
  if (fd >= 0)
    close(fd);
  return error;
}

/* ---------------------------------------------------------------------------------------------- */

/* What is no file: a directory, a link, a FIFO; nothing else can be put back. */
static int take_other(taking *t, const struct stat *st) {
  char target[MS_PATH_MAX + 1] = "";
  ms_entry e;
  if (!S_ISDIR(st->st_mode) && !S_ISLNK(st->st_mode) && !S_ISFIFO(st->st_mode))
    return -EOPNOTSUPP;
  ms_entry_from_stat(&e, st);
  e.path = t->walk.path;
  e.target = target;
  if (S_ISLNK(st->st_mode)) {
    ssize_t length = readlinkat(ms_walk_here(&t->walk), t->walk.name, target, MS_PATH_MAX);
    if (length < 0)
      return -errno;
    target[length] = '\0';
  }
  ms_out_entry(&e);
  return S_ISDIR(st->st_mode) ? ms_walk_enter(&t->walk, 0) : 0;
}

static int take_entry(taking *t) {
  struct stat st;
  if (fstatat(ms_walk_here(&t->walk), t->walk.name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return errno == ENOENT ? 0 : -errno;
  if (st.st_dev != t->own)
    return 0;
  t->count++;
  return S_ISREG(st.st_mode) ? take_file(t) : take_other(t, &st);
}

static void take_root(taking *t, int root) {
  struct stat st;
  ms_entry e;
  if (fstat(root, &st) < 0 || st.st_dev != t->own)
    return;
  ms_entry_from_stat(&e, &st);
  ms_out_entry(&e);
  t->count++;
}

/* snapshot: the sandbox's own files, as records. */
int ms_work_snapshot(int argc, char **argv) {
  (void)argc, (void)argv;
  taking t = {0};
  struct stat st;
  int root = ms_open_path("/", DIRECTORY);
  int error = root < 0                                                       ? root
              : fstatat(root, own_place(root), &st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno
                                                                             : 0;
  if (error < 0)
    return ms_out_failed(error, "");
  t.own = st.st_dev;
  take_root(&t, root);
  error = ms_walk_start(&t.walk, root);
  if (error < 0)
    return ms_out_failed(error, "");
  for (int found; (found = ms_walk_next(&t.walk)) != 0;) {
    error = found < 0 ? found : take_entry(&t);
    if (error == -EFBIG || error == -ENOMEM)
      return ms_out_failed(error, t.walk.path);
    if (error < 0)
      ms_out_skipped(error, t.walk.path);
  }
  ms_walk_end(&t.walk);
  return ms_out_end(t.count);
}

/* Feeds what is on standard input. */
static int restore_stream(ms_restore *r) {
  static char buffer[2 * MS_RECORD_MAX];
  size_t have = 0;
  int state = MS_RESTORE_MORE;
  while (state == MS_RESTORE_MORE) {
    ssize_t length = read(STDIN_FILENO, buffer + have, sizeof buffer - have), taken = 0;
    if (length < 0 && errno == EINTR)
      continue;
    if (length <= 0)
      return length < 0 ? -errno : -EPIPE; /* cut off */
    have += (size_t)length;
    size_t at = 0;
    ms_record record;
    while (state == MS_RESTORE_MORE &&
           (taken = ms_record_next(buffer + at, have - at, &record)) > 0) {
      state = ms_restore_record(r, &record);
      at += (size_t)taken;
    }
    if (taken < 0)
      state = (int)taken;
    memmove(buffer, buffer + at, have - at);
    have -= at;
  }
  return state;
}

/* restore [KEPT]…: what a snapshot wrote, from standard input, in place of what there is of the
 * sandbox's own, but for the paths (relative to "/") that are to be kept. */
int ms_work_restore(int argc, char **argv) {
  ms_restore r;
  int root = ms_open_path("/", DIRECTORY);
  int error = root < 0 ? root : ms_restore_start(&r, root, own_place(root), argv + 1, argc - 1);
  if (error < 0)
    return ms_out_failed(error, "");
  error = ms_restore_clear(&r);
  if (error == 0)
    error = restore_stream(&r);
  int status = error < 0 ? ms_out_failed(error, r.where) : ms_out_end(r.entries);
  ms_restore_end(&r);
  return status;
}
