#include "restore.h"

#include "../place.h"
#include "../walk.h"
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BELOW (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)

static bool is_own(const ms_restore *r, int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 && st.st_dev == r->own;
}

int ms_restore_start(ms_restore *r, int root, const char *own, char *const *kept, int kept_count) {
  struct stat st;
  *r = (ms_restore){.root = root, .file = -1, .kept = kept, .kept_count = kept_count};
  if (fstatat(root, own, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return -errno;
  r->own = st.st_dev;
  return 0;
}

void ms_restore_end(ms_restore *r) {
  if (r->file >= 0)
    close(r->file);
  if (r->root >= 0)
    close(r->root);
  free(r->levels);
  *r = (ms_restore){.root = -1, .file = -1};
}

static bool is_kept(const ms_restore *r, const char *path) {
  for (int i = 0; i < r->kept_count; i++)
    if (strcmp(r->kept[i], path) == 0)
      return true;
  return false;
}

/* Clearing ------------------------------------------------------------------------------------ */

/* Directories are removed when all else is, the last found first; those that something is mounted
 * on, or in, are not empty, and stay. */
typedef struct found {
  char **paths; /* owned, as they are */
  size_t count, capacity;
} found;

static int found_add(found *f, const char *path) {
  if (f->count == f->capacity) {
    size_t capacity = f->capacity ? 2 * f->capacity : 64;
    char **grown = realloc(f->paths, capacity * sizeof *grown);
    if (!grown)
      return -ENOMEM;
    f->paths = grown;
    f->capacity = capacity;
  }
  f->paths[f->count] = strdup(path);
  return f->paths[f->count] ? (f->count++, 0) : -ENOMEM;
}

/* Programs start there; it is not in the snapshot of a sandbox where it was mounted. */
static bool is_home(const char *path) {
  return strcmp(path, &MS_HOME[1]) == 0;
}

static int clear_entry(const ms_restore *r, ms_walk *w, found *directories) {
  struct stat st;
  if (fstatat(ms_walk_here(w), w->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return -errno;
  if (st.st_dev != r->own || is_kept(r, w->path))
    return 0;
  if (!S_ISDIR(st.st_mode))
    return unlinkat(ms_walk_here(w), w->name, 0) < 0 ? -errno : 0;
  int error = is_home(w->path) ? 0 : found_add(directories, w->path);
  return error < 0 ? error : ms_walk_enter(w, 0);
}

int ms_restore_clear(const ms_restore *r) {
  found directories = {0};
  ms_walk w;
  int at = openat(r->root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int error = at < 0 ? -errno : ms_walk_start(&w, at), next;
  if (error < 0)
    return error;
  while (error == 0 && (next = ms_walk_next(&w)) != 0)
    error = next < 0 ? next : clear_entry(r, &w, &directories);
  ms_walk_end(&w);
  while (directories.count > 0) {
    char *path = directories.paths[--directories.count];
    unlinkat(r->root, path, AT_REMOVEDIR);
    free(path);
  }
  free(directories.paths);
  return error;
}

/* Modes and times ----------------------------------------------------------------------------- */

static void times_of(const ms_entry *e, struct timespec times[2]) {
  times[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
  times[1] = (struct timespec){.tv_sec = e->mtime, .tv_nsec = e->mtime_ns};
}

/* A sandbox that writes to the host may set no setuid bits: then it goes without. */
static int set_mode(int fd, mode_t mode) {
  if (fchmod(fd, mode) == 0)
    return 0;
  return errno == EPERM && fchmod(fd, mode & 01777) == 0 ? 0 : -errno;
}

static int dress(int fd, const ms_entry *e) {
  struct timespec times[2];
  times_of(e, times);
  int error = set_mode(fd, e->mode);
  return error == 0 && futimens(fd, times) < 0 ? -errno : error;
}

/* Directories --------------------------------------------------------------------------------- */

static int level_push(ms_restore *r, const ms_entry *e) {
  if (r->depth == r->capacity) {
    size_t capacity = r->capacity ? 2 * r->capacity : 32;
    ms_restore_level *grown = realloc(r->levels, capacity * sizeof *grown);
    if (!grown)
      return -ENOMEM;
    r->levels = grown;
    r->capacity = capacity;
  }
  strcpy(r->path, e->path); /* ms_get_entry: it fits */
  r->levels[r->depth++] = (ms_restore_level){strlen(e->path), e->mode, e->mtime, e->mtime_ns};
  return 0;
}

/* All is there that is going to be in the deepest directory. */
static int level_pop(ms_restore *r) {
  const ms_restore_level *level = &r->levels[--r->depth];
  ms_entry e = {.mode = level->mode, .mtime = level->mtime, .mtime_ns = level->mtime_ns};
  r->path[level->length] = '\0';
  int fd = ms_openat2(r->root, level->length ? r->path : ".",
                      O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC, 0, BELOW);
  int error = fd < 0 ? -errno : is_own(r, fd) ? dress(fd, &e) : 0;
  if (fd >= 0)
    close(fd);
  return error;
}

/* Is a path that of a directory, or in it? */
static bool is_in(const char *path, const char *directory, size_t length) {
  return length == 0 ||
         (strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0'));
}

/* Leaves the directories that a path is not in. */
static int leave(ms_restore *r, const char *path) {
  int error = 0;
  while (error == 0 && r->depth > 0 && !is_in(path, r->path, r->levels[r->depth - 1].length))
    error = level_pop(r);
  return error;
}

static const char *name_in(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* The directory of a path; -EXDEV if it is not the sandbox's own. */
static int open_parent(const ms_restore *r, const char *path) {
  char directory[MS_PATH_MAX + 1];
  size_t length = (size_t)(name_in(path) - path);
  snprintf(directory, sizeof directory, "%.*s", (int)(length ? length - 1 : 1),
           length ? path : ".");
  int fd = ms_openat2(r->root, directory, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, BELOW);
  if (fd < 0)
    return -errno;
  if (is_own(r, fd))
    return fd;
  close(fd);
  return -EXDEV;
}

/* Entries ------------------------------------------------------------------------------------- */

static int finish_file(ms_restore *r) {
  if (r->file < 0)
    return 0;
  int error = ftruncate(r->file, (off_t)r->entry.size) < 0 ? -errno : dress(r->file, &r->entry);
  close(r->file);
  r->file = -1;
  return error;
}

/* What had the name before, in a tree that changed while it was taken, goes. */
static bool make_room(int parent, const char *name) {
  return errno == EEXIST && unlinkat(parent, name, 0) == 0;
}

static int make_file(ms_restore *r, int parent, const ms_entry *e) {
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  const char *name = name_in(e->path);
  r->file = openat(parent, name, flags, 0600);
  if (r->file < 0 && make_room(parent, name))
    r->file = openat(parent, name, flags, 0600);
  return r->file < 0 ? -errno : 0;
}

static int make_link(int parent, const ms_entry *e) {
  struct timespec times[2];
  times_of(e, times);
  int error = ms_link_at(parent, name_in(e->path), e->target);
  if (error == 0 && utimensat(parent, name_in(e->path), times, AT_SYMLINK_NOFOLLOW) < 0)
    error = -errno;
  return error;
}

static int make_fifo(int parent, const ms_entry *e) {
  struct timespec times[2];
  times_of(e, times);
  const char *name = name_in(e->path);
  mode_t mode = e->mode & 0777;
  if (mkfifoat(parent, name, mode) < 0 &&
      !(make_room(parent, name) && mkfifoat(parent, name, mode) == 0))
    return -errno;
  return utimensat(parent, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

/* What cannot be where it is to be: a mount is there, or two moments of a changing tree met. */
static bool is_passed_over(int error) {
  return error == -EXDEV || error == -EISDIR || error == -ENOTDIR || error == -EEXIST ||
         error == -ENOENT || error == -ELOOP;
}

/* One that is there already is taken as it is: what is mounted may need it. */
static int make_directory(ms_restore *r, const ms_entry *e) {
  int parent = e->path[0] ? open_parent(r, e->path) : -EEXIST;
  int error = parent < 0 ? parent : mkdirat(parent, name_in(e->path), 0700) < 0 ? -errno : 0;
  if (parent >= 0)
    close(parent);
  if (error < 0 && !is_passed_over(error))
    return error;
  int fd =
      ms_openat2(r->root, e->path[0] ? e->path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, BELOW);
  bool own = fd >= 0 && is_own(r, fd);
  error = fd < 0 ? -errno : own ? set_mode(fd, e->mode | 0700) : 0;
  if (fd >= 0)
    close(fd);
  if (own)
    return error < 0 ? error : level_push(r, e);
  if (e->path[0])
    strcpy(r->covered, e->path);
  return is_passed_over(error) ? 0 : error;
}

static bool is_covered(const ms_restore *r, const char *path) {
  return r->covered[0] && is_in(path, r->covered, strlen(r->covered));
}

static int make_other(ms_restore *r, const ms_entry *e) {
  int parent = open_parent(r, e->path);
  int error = parent < 0                    ? parent
              : e->type == MS_ENTRY_FILE    ? make_file(r, parent, e)
              : e->type == MS_ENTRY_SYMLINK ? make_link(parent, e)
                                            : make_fifo(parent, e);
  if (parent >= 0)
    close(parent);
  return is_passed_over(error) ? 0 : error;
}

/* Before anything else is made: what was under way is over. */
static int begin(ms_restore *r, const char *path) {
  strcpy(r->where, path); /* it was read as one that fits */
  int error = finish_file(r);
  r->due = false;
  if (error == 0)
    error = leave(r, path);
  if (!is_covered(r, path))
    r->covered[0] = '\0';
  return error;
}

static int restore_entry(ms_restore *r, const ms_entry *e) {
  int error = begin(r, e->path);
  r->entries++;
  if (error < 0)
    return error;
  r->due = e->type == MS_ENTRY_FILE;
  r->left = e->size;
  r->entry = *e;
  if (is_covered(r, e->path) || is_kept(r, e->path))
    return 0;
  return e->type == MS_ENTRY_DIRECTORY ? make_directory(r, e)
         : e->path[0]                  ? make_other(r, e)
                                       : -EPROTO;
}

/* Another name. If the first was passed over, its bytes are nowhere: that is told. */
static int restore_link(ms_restore *r, const char *path, const char *first) {
  if (!ms_entry_path_ok(path) || !ms_entry_path_ok(first))
    return -EPROTO;
  int error = begin(r, path);
  r->entries++;
  if (error < 0 || is_covered(r, path) || is_kept(r, path))
    return error;
  int from = open_parent(r, first), to = from < 0 ? from : open_parent(r, path);
  if (to < 0) {
    error = to;
  } else if (linkat(from, name_in(first), to, name_in(path), 0) < 0) {
    bool room = make_room(to, name_in(path));
    error = room && linkat(from, name_in(first), to, name_in(path), 0) == 0 ? 0 : -errno;
  }
  if (from >= 0)
    close(from);
  if (to >= 0)
    close(to);
  return error;
}

static int restore_data(ms_restore *r, const ms_reader *body) {
  if (!r->due || body->length > r->left)
    return -EPROTO;
  r->left -= body->length;
  return r->file < 0 ? 0 : ms_write_all(r->file, body->data, body->length);
}

static int restore_hole(ms_restore *r, uint64_t length) {
  if (!r->due || length > r->left)
    return -EPROTO;
  r->left -= length;
  return r->file >= 0 && lseek(r->file, (off_t)length, SEEK_CUR) < 0 ? -errno : 0;
}

static int restore_all(ms_restore *r) {
  int error = finish_file(r);
  while (error == 0 && r->depth > 0)
    error = level_pop(r);
  return error < 0 ? error : MS_RESTORE_END;
}

int ms_restore_record(ms_restore *r, ms_record *record) {
  ms_reader *body = &record->body;
  ms_entry e;
  const char *path, *first;
  uint64_t number;
  switch (record->kind) {
  case MS_RECORD_ENTRY:
    ms_get_entry(body, &e);
    return ms_get_end(body) ? restore_entry(r, &e) : -EPROTO;
  case MS_RECORD_DATA:
    return restore_data(r, body);
  case MS_RECORD_HOLE:
    number = ms_get_u64(body);
    return ms_get_end(body) ? restore_hole(r, number) : -EPROTO;
  case MS_RECORD_LINK:
    path = ms_get_str(body), first = ms_get_str(body);
    return ms_get_end(body) ? restore_link(r, path, first) : -EPROTO;
  case MS_RECORD_SKIPPED: /* told when it was taken */
    return MS_RESTORE_MORE;
  case MS_RECORD_END:
    ms_get_u64(body);
    return ms_get_end(body) ? restore_all(r) : -EPROTO;
  default:
    return -EPROTO;
  }
}
