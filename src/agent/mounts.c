/* Mounts, in three steps: they are told; those that the host was not allowed to clone are cloned
 * here, as the caller, while the host's file system is still in sight; and when "/" is the
 * sandbox's own they are attached. Nothing of the sandbox runs yet, but the host's directories may
 * be changed by anybody in the meantime: everything is done on files held open, no link is
 * followed, and what is missing is made on the sandbox's own file systems only. */
#include "mounts.h"

#include "../place.h"
#include "../walk.h"
#include "agent.h"
#include "paths.h"
#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Where copies keep what was changed. Covered when all are made: the kernel does not like an
 * overlay's layers to change beneath it. */
#define COPIES "/.copies"

/* The file systems where something may be made. */
typedef struct own_places {
  dev_t devices[MS_MOUNTS_MAX + 2];
  unsigned count;
} own_places;

static int fail(ms_mounts *m, const char *what, uint32_t index, int error) {
  snprintf(m->stage, sizeof m->stage, "%s:%u", what, index + 1);
  return error;
}

/* Being told ---------------------------------------------------------------------------------- */

static int take(ms_mount *to, ms_message *message) {
  ms_reader *body = &message->body;
  to->flags = ms_get_u32(body);
  to->source = strdup(ms_get_str(body));
  to->target = strdup(ms_get_str(body));
  if (!ms_get_end(body) || message->header.type != MS_MOUNT || message->fd_count != 1)
    return -EPROTO;
  to->fd = message->fds[0];
  message->fd_count = 0;
  return to->source && to->target ? 0 : -ENOMEM;
}

int ms_mounts_receive(ms_mounts *m, uint32_t count, int socket, int host_pidfd) {
  if (count == 0)
    return 0;
  ms_message *message = count > MS_MOUNTS_MAX ? NULL : malloc(sizeof *message);
  int error = message ? 0 : -ENOMEM;
  while (error == 0 && m->count < count) {
    error = ms_setup_receive(socket, host_pidfd, message);
    if (error == 0)
      error = take(&m->all[m->count], message);
    if (error == 0)
      m->count++;
  }
  free(message);
  return error < 0 ? fail(m, "mounts", m->count, error) : 0;
}

/* Cloning ------------------------------------------------------------------------------------- */

static bool is_same(int a, int b) {
  struct stat one, other;
  return fstat(a, &one) == 0 && fstat(b, &other) == 0 && one.st_dev == other.st_dev &&
         one.st_ino == other.st_ino;
}

/* A clone of the mount tree at a path of the host: of that very file that the host holds. */
static int clone_source(const ms_mount *mount) {
  const unsigned deep = AT_RECURSIVE;
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
                            .propagation = MS_PRIVATE};
  if (mount->flags & (MS_MOUNT_READ_ONLY | MS_MOUNT_COPY))
    attr.attr_set |= MOUNT_ATTR_RDONLY;
  int tree = (int)syscall(SYS_open_tree, AT_FDCWD, mount->source,
                          OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW | deep);
  if (tree < 0)
    return -errno;
  int error = !is_same(tree, mount->fd) ? -ESTALE
              : syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | deep, &attr, sizeof attr) < 0
                  ? -errno
                  : 0;
  if (error == 0)
    return tree;
  close(tree);
  return error;
}

int ms_mounts_clone(ms_mounts *m) {
  for (uint32_t i = 0; i < m->count; i++) {
    ms_mount *mount = &m->all[i];
    if (mount->flags & MS_MOUNT_DETACHED)
      continue;
    int tree = clone_source(mount);
    if (tree < 0)
      return fail(m, "source", i, tree);
    close(mount->fd);
    mount->fd = tree;
  }
  return 0;
}

/* Targets ------------------------------------------------------------------------------------- */

static void add_own(own_places *own, int fd) {
  struct stat st;
  if (fstat(fd, &st) == 0)
    own->devices[own->count++] = st.st_dev;
}

static bool is_own(const own_places *own, int fd) {
  struct stat st;
  if (fstat(fd, &st) < 0)
    return false;
  for (unsigned i = 0; i < own->count; i++)
    if (own->devices[i] == st.st_dev)
      return true;
  return false;
}

/* Makes an empty file or directory, never on a file system of the host. */
static int make_entry(const own_places *own, int dir, const char *name, bool directory) {
  if (!is_own(own, dir))
    return -ENOENT;
  if (directory)
    return mkdirat(dir, name, 0755) < 0 ? -errno : 0;
  int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (fd < 0)
    return -errno;
  close(fd);
  return 0;
}

/* The next component of a target, made if it is missing. */
static int open_entry(const own_places *own, int dir, const char *name, bool directory) {
  for (int tries = 0;; tries++) {
    int fd = ms_openat2(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0,
                        RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH);
    if (fd >= 0 || errno != ENOENT || tries > 0)
      return fd < 0 ? -errno : fd;
    int error = make_entry(own, dir, name, directory);
    if (error < 0)
      return error;
  }
}

static int check_kind(int fd, bool directory) {
  struct stat st;
  if (fstat(fd, &st) < 0)
    return -errno;
  if (S_ISLNK(st.st_mode))
    return -ELOOP;
  if (S_ISDIR(st.st_mode) != directory)
    return directory ? -ENOTDIR : -EISDIR;
  return 0;
}

static int open_target(const own_places *own, const char *path, bool directory) {
  char name[MS_NAME_MAX + 1];
  int at = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), error = at < 0 ? -errno : 0;
  while (error == 0 && *path++ == '/') {
    size_t length = strcspn(path, "/");
    if (length == 0 || length > MS_NAME_MAX) {
      error = length ? -ENAMETOOLONG : -EINVAL;
      break;
    }
    memcpy(name, path, length);
    name[length] = '\0';
    path += length;
    int next = open_entry(own, at, name, *path || directory);
    close(at);
    at = next;
    error = at < 0 ? at : check_kind(at, *path || directory);
  }
  if (error < 0 && at >= 0)
    close(at);
  return error < 0 ? error : at;
}

/* Copies -------------------------------------------------------------------------------------- */

static int attach(int tree, int target) {
  return (int)syscall(SYS_move_mount, tree, "", target, "",
                      MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

/* The directory of one of a copy's layers. */
static int make_layer(uint32_t index, const char *which, mode_t mode) {
  char path[64];
  snprintf(path, sizeof path, COPIES "/%u/%s", index, which);
  return mkdir(path, mode) < 0 || chmod(path, mode) < 0 ? -errno : 0;
}

static int attach_lower(const ms_mount *mount, uint32_t index) {
  char path[64];
  snprintf(path, sizeof path, COPIES "/%u/lower", index);
  int target = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  int error = target < 0 || attach(mount->fd, target) < 0 ? -errno : 0;
  if (target >= 0)
    close(target);
  return error;
}

/* What is changed goes into a layer on the sandbox's own tmpfs, where it counts against the disk.
 * Overlay takes paths, not files: these are ours, and the target's is through /proc. */
static int mount_overlay(uint32_t index, int target) {
  char options[256], path[40];
  const char *format = "lowerdir=" COPIES "/%u/lower,upperdir=" COPIES "/%u/upper,"
                       "workdir=" COPIES "/%u/work,userxattr";
  snprintf(options, sizeof options, format, index, index, index);
  snprintf(path, sizeof path, "/proc/self/fd/%d", target);
  return mount("overlay", path, "overlay", MS_NOSUID | MS_NODEV, options) < 0 ? -errno : 0;
}

static int copy_directory(ms_mounts *m, uint32_t index, int target) {
  const ms_mount *mount = &m->all[index];
  char path[64];
  struct stat st;
  if (fstat(mount->fd, &st) < 0)
    return -errno;
  snprintf(path, sizeof path, COPIES "/%u", index);
  if ((mkdir(COPIES, 0755) < 0 && errno != EEXIST) || mkdir(path, 0755) < 0)
    return -errno;
  int error = make_layer(index, "lower", 0755);
  if (error == 0)
    error = make_layer(index, "upper", st.st_mode & 0777);
  if (error == 0)
    error = make_layer(index, "work", 0755);
  if (error == 0)
    error = attach_lower(mount, index);
  if (error == 0)
    error = mount_overlay(index, target);
  return error;
}

static int copy_file(ms_mounts *m, uint32_t index, int target) {
  char from_path[40], to_path[40];
  struct stat st;
  snprintf(from_path, sizeof from_path, "/proc/self/fd/%d", m->all[index].fd);
  snprintf(to_path, sizeof to_path, "/proc/self/fd/%d", target);
  int from = open(from_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  int to = from < 0 ? -1 : open(to_path, O_WRONLY | O_TRUNC | O_CLOEXEC);
  int error = from < 0 || to < 0 || fstat(from, &st) < 0 ? -errno : 0;
  ssize_t copied = 1;
  while (error == 0 && copied > 0) {
    copied = ms_copy_bytes(from, to, UINT64_MAX);
    error = copied < 0 ? (int)copied : 0;
  }
  if (error == 0 && fchmod(to, st.st_mode & 0777) < 0)
    error = -errno;
  if (from >= 0)
    close(from);
  if (to >= 0)
    close(to);
  return error;
}

/* So that nothing inside can get at the layers. */
static int cover_copies(void) {
  if (access(COPIES, F_OK) < 0)
    return errno == ENOENT ? 0 : -errno;
  return mount("tmpfs", COPIES, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
               "size=4k,nr_inodes=2,mode=0555") < 0
             ? -errno
             : 0;
}

/* Placing ------------------------------------------------------------------------------------- */

/* A directory that was to be written and cannot be is told now, not by the first program. */
static int check_writable(const ms_mount *mount) {
  if (mount->flags & (MS_MOUNT_READ_ONLY | MS_MOUNT_COPY))
    return 0;
  return syscall(SYS_faccessat2, mount->fd, "", W_OK, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

static int place(ms_mounts *m, uint32_t index, own_places *own) {
  const ms_mount *mount = &m->all[index];
  bool directory = mount->flags & MS_MOUNT_DIRECTORY, copy = mount->flags & MS_MOUNT_COPY;
  int target = open_target(own, mount->target, directory);
  if (target < 0)
    return fail(m, "target", index, target);
  int error;
  if (copy && !is_own(own, target) && !directory)
    error = -EROFS; /* in a directory of the host, where a copy would be written */
  else if (copy)
    error = directory ? copy_directory(m, index, target) : copy_file(m, index, target);
  else
    error = attach(mount->fd, target) < 0 ? -errno : 0;
  close(target);
  if (error < 0)
    return fail(m, copy ? "copy" : "attach", index, error);
  error = check_writable(mount);
  if (error < 0)
    return fail(m, "write", index, error);
  if (copy && directory) {
    int made = open(mount->target, O_PATH | O_DIRECTORY | O_CLOEXEC);
    add_own(own, made);
    close(made);
  }
  return 0;
}

int ms_mounts_place(ms_mounts *m) {
  if (m->count == 0)
    return 0;
  own_places own = {.count = 0};
  int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), error = root < 0 ? -errno : 0;
  add_own(&own, root);
  close(root);
  if (ms_mounts_root(m)) {
    root = open(MS_HOME, O_PATH | O_DIRECTORY | O_CLOEXEC);
    add_own(&own, root);
    close(root);
  }
  for (uint32_t i = 0; i < m->count && error == 0; i++)
    if (!(m->all[i].flags & MS_MOUNT_ROOT)) {
      error = place(m, i, &own);
      close(m->all[i].fd);
    }
  if (error < 0)
    return error;
  error = cover_copies();
  return error < 0 ? fail(m, "copy", m->count - 1, error) : 0;
}

/* What bwrap found by a path: is it what the host held, with the rights that were meant? */
static int verify(ms_mounts *m, uint32_t index) {
  ms_mount *mount = &m->all[index];
  unsigned long meant = ST_NOSUID | ST_NODEV;
  if (mount->flags & MS_MOUNT_READ_ONLY)
    meant |= ST_RDONLY;
  struct statvfs is;
  int target = ms_openat2(AT_FDCWD, mount->target, O_PATH | O_CLOEXEC, 0,
                          RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
  if (target < 0)
    return fail(m, "target", index, -errno);
  bool same = is_same(target, mount->fd);
  close(mount->fd);
  mount->fd = target;
  if (!same)
    return fail(m, "source", index, -ESTALE);
  if (fstatvfs(target, &is) < 0 || (is.f_flag & meant) != meant)
    return fail(m, "attach", index, -EPERM);
  int error = check_writable(mount);
  return error < 0 ? fail(m, "write", index, error) : 0;
}

int ms_mounts_verify(ms_mounts *m) {
  own_places own = {.count = 0};
  int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), error = root < 0 ? -errno : 0;
  add_own(&own, root);
  close(root);
  for (uint32_t i = 0; i < m->count && error == 0; i++) {
    error = m->all[i].flags & MS_MOUNT_COPY ? place(m, i, &own) : verify(m, i);
    close(m->all[i].fd);
  }
  return error;
}

const ms_mount *ms_mounts_root(const ms_mounts *m) {
  return m->count > 0 && m->all[0].flags & MS_MOUNT_ROOT ? &m->all[0] : NULL;
}

bool ms_mounts_write_host(const ms_mounts *m) {
  for (uint32_t i = 0; i < m->count; i++)
    if (!(m->all[i].flags & (MS_MOUNT_READ_ONLY | MS_MOUNT_COPY)))
      return true;
  return false;
}
