#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DIRECTORY_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)

/* What getdents64 fills the buffer with. */
typedef struct raw_entry {
  uint64_t inode;
  int64_t position;
  unsigned short length;
  unsigned char kind;
  char name[];
} raw_entry;

static uint64_t openat2_key; /* only ever set in an agent, before it serves anybody */

void ms_openat2_unlock(uint64_t key) {
  openat2_key = key;
}

int ms_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
  struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
  int fd;
  do
    fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof how, openat2_key);
  while (fd < 0 && errno == EINTR);
  return fd;
}

bool ms_is_virtual(int fd) {
  static const unsigned kinds[] = {PROC_SUPER_MAGIC,   SYSFS_MAGIC,         DEVPTS_SUPER_MAGIC,
                                   CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, SECURITYFS_MAGIC,
                                   DEBUGFS_MAGIC,      TRACEFS_MAGIC,       BPF_FS_MAGIC,
                                   SELINUX_MAGIC,      BINFMTFS_MAGIC,      PSTOREFS_MAGIC,
                                   EFIVARFS_MAGIC,     NSFS_MAGIC,          0x19800202 /*mqueue*/};
  struct statfs fs;
  if (fstatfs(fd, &fs) < 0)
    return true;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if ((unsigned)fs.f_type == kinds[i])
      return true;
  return false;
}

/* Frames and slots ---------------------------------------------------------------------------- */

static ms_walk_slot *slot_of(const ms_walk *w, size_t depth) {
  return &w->slots[depth % MS_WALK_OPEN];
}

static bool slot_holds(const ms_walk *w, size_t depth) {
  const ms_walk_slot *slot = slot_of(w, depth);
  return slot->fd >= 0 && slot->depth == depth;
}

static void slot_release(const ms_walk *w, ms_walk_slot *slot) {
  if (slot->fd >= 0 && slot->fd != w->root)
    close(slot->fd);
  slot->fd = -1;
}

/* Gives the directory at `depth` a slot; the one that had it can be found again. */
static void slot_take(const ms_walk *w, size_t depth, int fd) {
  ms_walk_slot *slot = slot_of(w, depth);
  slot_release(w, slot);
  slot->fd = fd;
  slot->depth = depth;
  slot->at = slot->length = 0;
}

static int frame_push(ms_walk *w, int fd, const struct stat *st, uint64_t mark) {
  size_t depth = w->frames ? w->depth + 1 : 0;
  if (depth == w->capacity) {
    size_t capacity = w->capacity ? w->capacity * 2 : 32;
    ms_walk_frame *grown = realloc(w->frames, capacity * sizeof *grown);
    if (!grown)
      return -ENOMEM;
    w->frames = grown;
    w->capacity = capacity;
  }
  w->frames[depth] = (ms_walk_frame){
      .dev = st->st_dev, .ino = st->st_ino, .path_length = strlen(w->path), .mark = mark};
  slot_take(w, depth, fd);
  w->depth = depth;
  return 0;
}

static bool is_frame(const ms_walk_frame *frame, int fd) {
  struct stat st;
  return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == frame->dev && st.st_ino == frame->ino;
}

/* The directory of a frame that was closed, from the child that the walk is leaving. */
static int frame_reopen(ms_walk *w, size_t depth, int child) {
  const ms_walk_frame *frame = &w->frames[depth];
  if (depth == 0)
    return w->root;
  int fd = openat(child, "..", DIRECTORY_FLAGS);
  if (is_frame(frame, fd))
    return fd;
  if (fd >= 0)
    close(fd);
  w->path[frame->path_length] = '\0';
  fd = ms_openat2(w->root, w->path, DIRECTORY_FLAGS, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
  if (is_frame(frame, fd))
    return fd;
  if (fd >= 0)
    close(fd);
  return -ESTALE;
}

/* Leaves the directory, for the nearest one above it that is still where it was. A directory that
 * is not is passed over, with what had not been read of it yet. */
static int walk_leave(ms_walk *w) {
  int error = 0;
  ms_walk_slot *slot = slot_of(w, w->depth);
  int child = slot->fd;
  slot->fd = -1; /* it may be given away before the child is done with */
  while (w->depth > 0) {
    w->depth--;
    ms_walk_frame *frame = &w->frames[w->depth];
    if (slot_holds(w, w->depth))
      break;
    int fd = frame_reopen(w, w->depth, child);
    if (fd >= 0) {
      slot_take(w, w->depth, fd);
      lseek(fd, frame->position, SEEK_SET);
      break;
    }
    error = fd;
  }
  close(child);
  w->path[w->frames[w->depth].path_length] = '\0';
  return error;
}

/* ---------------------------------------------------------------------------------------------- */

int ms_walk_start(ms_walk *w, int root) {
  *w = (ms_walk){.root = root, .name = ""};
  w->slots = malloc(MS_WALK_OPEN * sizeof *w->slots);
  if (!w->slots) {
    ms_walk_end(w);
    return -ENOMEM;
  }
  for (size_t i = 0; i < MS_WALK_OPEN; i++)
    w->slots[i].fd = -1;
  struct stat st;
  int error = fstat(root, &st) < 0 ? -errno : frame_push(w, root, &st, 0);
  if (error < 0)
    ms_walk_end(w);
  return error;
}

void ms_walk_end(ms_walk *w) {
  for (size_t i = 0; w->slots && i < MS_WALK_OPEN; i++)
    slot_release(w, &w->slots[i]);
  if (w->root >= 0)
    close(w->root);
  free(w->slots);
  free(w->frames);
  *w = (ms_walk){.root = -1};
}

/* Appends a name to the directory's path. */
static bool walk_name(ms_walk *w, const char *name) {
  size_t length = w->frames[w->depth].path_length, extra = strlen(name);
  size_t slash = length > 0;
  if (length + slash + extra > MS_PATH_MAX)
    return false;
  if (slash)
    w->path[length] = '/';
  memcpy(w->path + length + slash, name, extra + 1);
  w->name = w->path + length + slash;
  return true;
}

int ms_walk_next(ms_walk *w) {
  for (;;) {
    ms_walk_frame *frame = &w->frames[w->depth];
    ms_walk_slot *slot = slot_of(w, w->depth);
    w->path[frame->path_length] = '\0';
    if (slot->at >= slot->length) {
      long length = 0;
      if (frame->position >= 0)
        length = syscall(SYS_getdents64, slot->fd, slot->buffer, sizeof slot->buffer);
      if (length < 0 && errno != ENOENT) { /* ENOENT: removed while it was being read */
        frame->position = -1;              /* tell once, then leave */
        return -errno;
      }
      if (length <= 0 && w->depth == 0)
        return 0;
      if (length <= 0) {
        int error = walk_leave(w);
        if (error < 0)
          return error;
        continue;
      }
      slot->at = 0;
      slot->length = (size_t)length;
    }
    const raw_entry *raw = (const void *)(slot->buffer + slot->at);
    slot->at += raw->length;
    frame->position = raw->position;
    if (strcmp(raw->name, ".") == 0 || strcmp(raw->name, "..") == 0)
      continue;
    if (!walk_name(w, raw->name))
      return -ENAMETOOLONG;
    w->kind = raw->kind;
    w->mark = frame->mark;
    return 1;
  }
}

int ms_walk_here(const ms_walk *w) {
  return slot_of(w, w->depth)->fd;
}

int ms_walk_enter(ms_walk *w, uint64_t mark) {
  int fd = openat(ms_walk_here(w), w->name, DIRECTORY_FLAGS);
  if (fd < 0)
    return -errno;
  struct stat st;
  int error = fstat(fd, &st) < 0 ? -errno : 0;
  if (error == 0 && st.st_dev != w->frames[w->depth].dev && ms_is_virtual(fd) &&
      !ms_is_virtual(ms_walk_here(w))) {
    close(fd);
    return 0;
  }
  if (error == 0)
    error = frame_push(w, fd, &st, mark);
  if (error < 0)
    close(fd);
  return error;
}

int ms_walk_describe(const ms_walk *w, ms_entry *e, char target[MS_PATH_MAX + 1]) {
  struct stat st;
  int here = ms_walk_here(w);
  if (fstatat(here, w->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return -errno;
  ms_entry_from_stat(e, &st);
  e->path = w->path;
  if (e->type == MS_ENTRY_SYMLINK) {
    ssize_t length = readlinkat(here, w->name, target, MS_PATH_MAX);
    if (length < 0)
      return -errno;
    target[length] = '\0';
    e->target = target;
  }
  return 0;
}
