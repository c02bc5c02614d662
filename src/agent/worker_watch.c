/* `watch`: what happens in a directory, as it happens, by inotify.
 *
 * Whoever runs in the sandbox may change the tree at any speed. All that grows is bounded: so many
 * directories are watched, and while nobody reads what is told, the worker waits and the kernel's
 * own queue is full at last. What is lost that way is told as an MS_EVENT_OVERFLOW.
 *
 * No descriptor of the directory is kept: it would keep the kernel from telling that it is gone. */
#include "../walk.h"
#include "paths.h"
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NONBLOCK)
#define MASK                                                                                       \
  (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF |  \
   IN_MOVE_SELF | IN_ONLYDIR | IN_EXCL_UNLINK)

enum {
  WATCHES_MAX = 8192,   /* directories */
  SEEN_MAX = 256,       /* found by looking, and perhaps still to be told by the kernel */
  LOOK_INTERVAL = 1000, /* ms: whether the directory still has its name */
};
#define PATHS_MAX ((size_t)8 * 1024 * 1024) /* bytes of the paths of all directories */

typedef struct watched {
  int wd;
  char *path; /* owned: relative to the root; "": the root */
} watched;

typedef struct watch {
  const char *path; /* of the root */
  dev_t dev;        /* the root's identity */
  ino_t ino;
  bool recursive, over;
  int inotify; /* owned by the process, as all of it */
  watched all[WATCHES_MAX];
  size_t count, bytes;
  char *seen[SEEN_MAX]; /* owned */
  size_t seen_count;
  uint32_t replacing;             /* the cookie of one of our own renames */
  char modified[MS_PATH_MAX + 1]; /* told as that last; "": nothing was */
} watch;

static void tell(watch *w, ms_event event, const char *path) {
  if (event == MS_EVENT_MODIFIED && strcmp(path, w->modified) == 0)
    return;
  snprintf(w->modified, sizeof w->modified, "%s", event == MS_EVENT_MODIFIED ? path : "");
  ms_writer *out = ms_out_begin(MS_RECORD_EVENT);
  ms_put_u32(out, event);
  ms_put_str(out, path);
  ms_out_close();
}

/* Watched directories ------------------------------------------------------------------------- */

static watched *find(watch *w, int wd) {
  for (size_t i = 0; i < w->count; i++)
    if (w->all[i].wd == wd)
      return &w->all[i];
  return NULL;
}

static void drop(watch *w, watched *each) {
  w->bytes -= strlen(each->path) + 1;
  free(each->path);
  *each = w->all[--w->count];
}

static bool is_in(const char *path, const char *directory) {
  size_t length = strlen(directory);
  return strncmp(path, directory, length) == 0 &&
         (length == 0 || path[length] == '/' || path[length] == '\0');
}

/* A directory that is gone, or is somewhere else, and those in it. */
static void forget(watch *w, const char *path) {
  for (size_t i = w->count; i-- > 0;)
    if (is_in(w->all[i].path, path)) {
      inotify_rm_watch(w->inotify, w->all[i].wd);
      drop(w, &w->all[i]);
    }
}

static int add(watch *w, int fd, const char *path) {
  char link[40];
  size_t size = strlen(path) + 1;
  if (w->count == WATCHES_MAX || w->bytes + size > PATHS_MAX)
    return -EFBIG;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  int wd = inotify_add_watch(w->inotify, link, MASK);
  if (wd < 0)
    return errno == ENOSPC ? -EFBIG : -errno;
  watched *there = find(w, wd); /* under the name that it had */
  if (there)
    drop(w, there);
  char *copy = strdup(path);
  if (!copy)
    return -ENOMEM;
  w->all[w->count++] = (watched){.wd = wd, .path = copy};
  w->bytes += size;
  return 0;
}

/* Looking ------------------------------------------------------------------------------------- */

static void seen_clear(watch *w) {
  while (w->seen_count > 0)
    free(w->seen[--w->seen_count]);
}

static void seen_add(watch *w, const char *path) {
  if (w->seen_count < SEEN_MAX && (w->seen[w->seen_count] = strdup(path)))
    w->seen_count++;
}

/* Whether it was told already; once. */
static bool seen_take(watch *w, const char *path) {
  for (size_t i = 0; i < w->seen_count; i++)
    if (strcmp(w->seen[i], path) == 0) {
      free(w->seen[i]);
      w->seen[i] = w->seen[--w->seen_count];
      return true;
    }
  return false;
}

/* The root, if it is still there under its name. */
static int open_root(const watch *w) {
  struct stat st;
  int fd = ms_open_path(w->path, DIRECTORY);
  if (fd < 0)
    return fd;
  if (fstat(fd, &st) == 0 && st.st_dev == w->dev && st.st_ino == w->ino)
    return fd;
  close(fd);
  return -ENOENT;
}

static bool join(char to[MS_PATH_MAX + 1], const char *directory, const char *name) {
  return snprintf(to, MS_PATH_MAX + 1, "%s%s%s", directory, directory[0] ? "/" : "", name) <=
         MS_PATH_MAX;
}

/* What the walk has found: told, and watched if it is a directory. */
static int scan_entry(watch *w, ms_walk *walk, const char *path, bool announce) {
  char full[MS_PATH_MAX + 1];
  struct stat st;
  if (!join(full, path, walk->path))
    return 0;
  if (announce) {
    tell(w, MS_EVENT_CREATED, full);
    seen_add(w, full);
  }
  size_t depth = walk->depth;
  if (fstatat(ms_walk_here(walk), walk->name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
      !S_ISDIR(st.st_mode) || ms_walk_enter(walk, 0) < 0 || walk->depth == depth)
    return 0;
  return add(w, ms_walk_here(walk), full);
}

/* Watches a directory, and those below it. What is in it is told, if it is new. */
static int scan(watch *w, const char *path, bool announce) {
  int root = open_root(w), fd = root, error;
  if (root >= 0 && path[0]) {
    fd = ms_openat2(root, path, DIRECTORY | O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    fd = fd < 0 ? -errno : fd;
    close(root);
  }
  error = fd < 0 ? fd : add(w, fd, path);
  if (error < 0 || !w->recursive) {
    if (fd >= 0)
      close(fd);
    return error;
  }
  ms_walk walk;
  int found;
  error = ms_walk_start(&walk, fd);
  if (error < 0)
    return error;
  while (error != -EFBIG && error != -ENOMEM && (found = ms_walk_next(&walk)) != 0)
    error = found < 0 ? 0 : scan_entry(w, &walk, path, announce);
  ms_walk_end(&walk);
  return error == -EFBIG || error == -ENOMEM ? error : 0;
}

/* Where no more can be watched, that is told. */
static void scan_new(watch *w, const char *path) {
  int error = w->recursive ? scan(w, path, true) : 0;
  if (error == -EFBIG || error == -ENOMEM)
    tell(w, MS_EVENT_OVERFLOW, path);
}

/* Events -------------------------------------------------------------------------------------- */

/* A name that a file has on its way to its place (place.h). */
static bool is_temporary(const char *name) {
  static const char prefix[] = ".moonsand-";
  const char *digits = name + sizeof prefix - 1;
  return strncmp(name, prefix, sizeof prefix - 1) == 0 && strlen(digits) == 13 &&
         strspn(digits, "0123456789abcdef") == 13;
}

/* A file without a name, which the kernel tells of by a number; a real one may be called that. */
static bool is_nameless(const watch *w, const char *name, const char *path) {
  if (name[0] != '#' || !name[1] || name[1 + strspn(name + 1, "0123456789")])
    return false;
  int root = open_root(w), fd = -1;
  if (root >= 0) {
    fd = ms_openat2(root, path, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0,
                    RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS);
    close(root);
  }
  if (fd >= 0)
    close(fd);
  return fd < 0;
}

static void handle_directory(watch *w, uint32_t mask, const char *path) {
  if (mask & (IN_DELETE | IN_MOVED_FROM)) {
    tell(w, MS_EVENT_REMOVED, path);
    forget(w, path);
  } else if (mask & (IN_CREATE | IN_MOVED_TO) && !seen_take(w, path)) {
    tell(w, MS_EVENT_CREATED, path);
    scan_new(w, path);
  }
}

static void handle_file(watch *w, const struct inotify_event *e, const char *path) {
  if (is_temporary(e->name)) {
    if (e->mask & IN_MOVED_FROM)
      w->replacing = e->cookie;
  } else if (e->mask & (IN_DELETE | IN_MOVED_FROM)) {
    tell(w, MS_EVENT_REMOVED, path);
  } else if (e->mask & (IN_MODIFY | IN_ATTRIB) && is_nameless(w, e->name, path)) {
    return;
  } else if (e->mask & (IN_MODIFY | IN_ATTRIB) || (e->cookie && e->cookie == w->replacing)) {
    tell(w, MS_EVENT_MODIFIED, path);
  } else if (!seen_take(w, path)) {
    tell(w, MS_EVENT_CREATED, path);
  }
}

static void handle(watch *w, const struct inotify_event *e) {
  char path[MS_PATH_MAX + 1];
  if (e->mask & IN_Q_OVERFLOW) {
    scan(w, "", false); /* first: who hears of it finds nothing new that is not watched */
    tell(w, MS_EVENT_OVERFLOW, "");
    return;
  }
  watched *in = find(w, e->wd);
  if (!in)
    return;
  if (e->mask & IN_IGNORED) {
    w->over = w->over || !in->path[0];
    drop(w, in);
  } else if (e->mask & (IN_DELETE_SELF | IN_MOVE_SELF)) {
    w->over = w->over || !in->path[0];
  } else if (e->len > 0 && !join(path, in->path, e->name)) {
    tell(w, MS_EVENT_OVERFLOW, in->path);
  } else if (e->len > 0) {
    if (e->mask & IN_ISDIR)
      handle_directory(w, e->mask, path);
    else
      handle_file(w, e, path);
  }
}

/* Takes what is there, in one go. */
static void take(watch *w) {
  static char events[64 * 1024] __attribute__((aligned(8)));
  ssize_t length = read(w->inotify, events, sizeof events);
  for (ssize_t at = 0; at < length && !w->over;) {
    const struct inotify_event *e = (const void *)(events + at);
    handle(w, e);
    at += (ssize_t)(sizeof *e + e->len);
  }
  w->modified[0] = '\0';
}

static bool is_there(const watch *w) {
  int fd = open_root(w);
  if (fd >= 0)
    close(fd);
  return fd >= 0 || (fd != -ENOENT && fd != -ENOTDIR && fd != -ELOOP);
}

static void serve(watch *w) {
  struct pollfd events[] = {{.fd = w->inotify, .events = POLLIN}, {.fd = STDOUT_FILENO}};
  while (!w->over) {
    ms_out_flush();
    int ready = poll(events, 2, LOOK_INTERVAL);
    if (ready > 0 && events[1].revents)
      _exit(0); /* nobody listens any more */
    if (ready > 0 && events[0].revents)
      take(w);
    else
      seen_clear(w);
    if (ready == 0 && !is_there(w))
      w->over = true;
  }
}

/* watch PATH RECURSIVE: an MS_RECORD_TOTAL when all is watched, and from then on an MS_RECORD_EVENT
 * for all that happens, until the directory is removed, or has another name. */
int ms_work_watch(int argc, char **argv) {
  (void)argc;
  static watch w;
  struct stat st;
  int root = ms_open_path(argv[1], DIRECTORY);
  int error = root < 0 ? root : fstat(root, &st) < 0 ? -errno : 0;
  if (root >= 0)
    close(root);
  w.path = argv[1];
  w.recursive = argv[2][0] == '1';
  if (error == 0) {
    w.dev = st.st_dev;
    w.ino = st.st_ino;
    w.inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    error = w.inotify < 0 ? -errno : scan(&w, "", false);
  }
  if (error < 0)
    return ms_out_failed(error, "");
  ms_out_total(w.count, 0);
  serve(&w);
  tell(&w, MS_EVENT_REMOVED, "");
  return ms_out_end(w.count);
}
