/* Removing a tree that somebody may be changing meanwhile. One directory is open at a time,
 * whatever the depth: from the top again and again, what is not a directory is unlinked, and an
 * empty directory removed; into one that is not empty the loop descends, and comes back through
 * "..".
 *
 * "Back" is checked: a directory that was moved away while it was being emptied has another "..",
 * and what is in there is nobody's to remove. Then the loop begins again at the root. Of the way
 * down only device and inode are kept, 16 bytes a level. */
#include "../walk.h"
#include "agent.h"
#include "paths.h"
#include "worker.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DIRECTORY_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)

enum {
  MAX_RESTARTS = 1000, /* of the whole, because something was moved */
  MAX_PASSES = 1000,   /* over one directory that is filled while it is emptied */
  MAX_DEPTH = 4 * 1024 * 1024,
};
#define MAX_DESCENTS (UINT64_C(1) << 26) /* when somebody makes directories as fast as they go */

typedef struct identity {
  dev_t dev;
  ino_t ino;
} identity;

typedef struct removal {
  int root, here; /* owned; `here` may be `root` */
  identity *way;  /* owned: from the root to where the loop is */
  size_t depth, capacity;
  uint64_t removed, descents;
  int restarts;
  bool moved;                   /* the loop is in another directory than before */
  char failed[2 * MS_PATH_MAX]; /* what could not be removed */
} removal;

static void go_to(removal *r, int fd) {
  r->moved = true;
  if (r->here != r->root)
    close(r->here);
  r->here = fd;
}

static int push(removal *r, int fd) {
  struct stat st;
  if (fstat(fd, &st) < 0)
    return -errno;
  if (r->depth == r->capacity) {
    size_t capacity = r->capacity ? r->capacity * 2 : 64;
    identity *grown = capacity <= MAX_DEPTH ? realloc(r->way, capacity * sizeof *grown) : NULL;
    if (!grown)
      return -ENOMEM;
    r->way = grown;
    r->capacity = capacity;
  }
  r->way[r->depth++] = (identity){st.st_dev, st.st_ino};
  return 0;
}

/* Into a directory that is not empty. */
static int descend(removal *r, const char *name) {
  if (++r->descents > MAX_DESCENTS)
    return -EBUSY;
  int fd = openat(r->here, name, DIRECTORY_FLAGS);
  if (fd < 0)
    return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0
                                                                 : -errno; /* changed: look again */
  int error = push(r, fd);
  if (error < 0)
    close(fd);
  else
    go_to(r, fd);
  return error;
}

/* Out of a directory that is empty. */
static int ascend(removal *r) {
  r->depth--;
  if (r->depth == 1) {
    go_to(r, r->root);
    return 0;
  }
  struct stat st;
  const identity *parent = &r->way[r->depth - 1];
  int fd = openat(r->here, "..", DIRECTORY_FLAGS);
  if (fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == parent->dev && st.st_ino == parent->ino) {
    go_to(r, fd);
    return 0;
  }
  if (fd >= 0)
    close(fd);
  r->depth = 1;
  go_to(r, r->root);
  return ++r->restarts > MAX_RESTARTS ? -EBUSY : 0;
}

/* Notes where it was, for the message. */
static int fail(removal *r, const char *name, int error) {
  char link[40], directory[MS_PATH_MAX + 1];
  snprintf(link, sizeof link, "/proc/self/fd/%d", r->here);
  ssize_t length = readlink(link, directory, MS_PATH_MAX);
  directory[length > 0 ? length : 0] = '\0';
  snprintf(r->failed, sizeof r->failed, "%s%s%s", directory, length > 0 ? "/" : "", name);
  return error;
}

typedef struct raw_entry {
  uint64_t inode;
  int64_t position;
  unsigned short length;
  unsigned char kind;
  char name[];
} raw_entry;

/* Removes a name, or goes into the directory that it is. */
static int remove_name(removal *r, const raw_entry *entry) {
  int error = -EISDIR;
  if (entry->kind != DT_DIR)
    error = unlinkat(r->here, entry->name, 0) < 0 ? -errno : 0;
  if (error == -EISDIR || error == -EPERM) { /* EPERM: what POSIX says of directories */
    int again = unlinkat(r->here, entry->name, AT_REMOVEDIR) < 0 ? -errno : 0;
    if (again != -ENOTDIR)
      error = again;
    else if (error == -EISDIR)
      error = -ENOENT; /* it has changed */
  }
  if (error == -ENOTEMPTY || error == -EEXIST)
    error = descend(r, entry->name);
  else if (error == 0)
    r->removed++;
  return error < 0 && error != -ENOENT ? fail(r, entry->name, error) : 0;
}

/* One pass over the directory, or what of it there is until the loop goes into another one: how
 * many names it had; or a negative errno. */
static int remove_pass(removal *r) {
  char entries[4096] __attribute__((aligned(8)));
  int names = 0;
  r->moved = false;
  lseek(r->here, 0, SEEK_SET);
  for (;;) {
    long length = syscall(SYS_getdents64, r->here, entries, sizeof entries);
    if (length < 0 && errno != ENOENT) /* ENOENT: the directory itself is gone */
      return fail(r, "", -errno);
    if (length <= 0)
      return names;
    for (long at = 0; at < length; names++) {
      const raw_entry *entry = (const void *)(entries + at);
      at += entry->length;
      if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) {
        names--;
        continue;
      }
      int error = remove_name(r, entry);
      if (error < 0 || r->moved)
        return error;
    }
  }
}

/* Empties the root. */
static int remove_all(removal *r) {
  int error = push(r, r->root), passes = 0;
  while (error == 0) {
    int names = remove_pass(r);
    if (names < 0)
      return names;
    if (r->moved) {
      passes = 0;
    } else if (names > 0) {
      error = ++passes > MAX_PASSES ? -EBUSY : 0;
    } else if (r->depth == 1) {
      return 0;
    } else {
      passes = 0;
      error = ascend(r);
    }
  }
  return error;
}

/* remove PATH: a directory and all that is in it. */
int ms_work_remove(int argc, char **argv) {
  (void)argc;
  ms_where where;
  removal r = {.root = -1, .here = -1};
  int error = ms_where_find(&where, argv[1], false);
  if (error == 0 && ms_where_is_dots(&where))
    error = where.name[0] ? -EINVAL : -EBUSY;
  if (error == 0) {
    r.root = r.here = openat(where.dir, where.name, DIRECTORY_FLAGS);
    error = r.root < 0 ? -errno : remove_all(&r);
  }
  if (error == 0 && unlinkat(where.dir, where.name, AT_REMOVEDIR) < 0)
    error = -errno;
  ms_where_close(&where);
  free(r.way);
  return error < 0 ? ms_out_failed(error, r.failed) : ms_out_end(r.removed + 1);
}
