/* The root file system of a sandbox, built out of pieces of the host's.
 *
 * Sources are cloned before anything is mounted, so that the new mounts cannot hide them; the new
 * root is staged on /usr, which exists everywhere and whose clone was just taken. */
#include "root.h"

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STAGING "/usr"

/* A piece of the host's file system: cloned from `path`, mounted at the same place inside. */
typedef struct piece {
  const char *path;
  enum { DIRECTORY, FILE_ONLY, DEVICE } kind;
  int tree; /* owned: the detached clone; -1: the host has none */
} piece;

/* Of /etc only what programs fail without, and no directory that might hold a secret: the user's
 * groups come along into the sandbox, so "not readable for others" does not protect. */
static const piece host_pieces[] = {
    {"/usr", DIRECTORY, -1},
    {"/etc/alternatives", DIRECTORY, -1},
    {"/etc/fonts", DIRECTORY, -1},
    {"/etc/java-17-openjdk", DIRECTORY, -1},
    {"/etc/ld.so.cache", FILE_ONLY, -1},
    {"/etc/php", DIRECTORY, -1},
    {"/etc/ssl/certs", DIRECTORY, -1},
    {"/etc/ssl/openssl.cnf", FILE_ONLY, -1},
    {"/dev/null", DEVICE, -1},
    {"/dev/zero", DEVICE, -1},
    {"/dev/full", DEVICE, -1},
    {"/dev/random", DEVICE, -1},
    {"/dev/urandom", DEVICE, -1},
    {"/dev/tty", DEVICE, -1},
};
enum { PIECES = sizeof host_pieces / sizeof *host_pieces };

/* Links into /usr on a merged system, directories elsewhere. Of /etc only if they are links. */
static const char *const host_links[] = {"bin",   "sbin",   "lib",           "lib32",
                                         "lib64", "libx32", "etc/localtime", "etc/os-release"};

static const struct {
  const char *path;
  mode_t mode;
} directories[] = {
    {"usr", 0755}, {"etc", 0755},      {"etc/ssl", 0755},  {"proc", 0555},
    {"dev", 0755}, {"dev/pts", 0755},  {"dev/shm", 01777}, {"tmp", 01777},
    {"var", 0755}, {"var/tmp", 01777}, {"run", 0755},      {"workspace", 0755},
};

static const struct {
  const char *path, *text;
} files[] = {
    {"etc/passwd",
     "root:x:0:0:root:/root:/usr/sbin/nologin\n" MS_USER ":x:1000:1000::" MS_HOME ":/bin/sh\n"
     "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"},
    {"etc/group", "root:x:0:\n" MS_USER ":x:1000:\nnogroup:x:65534:\n"},
    {"etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"},
    {"etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"},
};

static const struct {
  const char *target, *path;
} links[] = {
    {"pts/ptmx", "dev/ptmx"},          {"/proc/self/fd", "dev/fd"},
    {"/proc/self/fd/0", "dev/stdin"},  {"/proc/self/fd/1", "dev/stdout"},
    {"/proc/self/fd/2", "dev/stderr"},
};

/* Parts of /proc that only privilege could write: shut all the same. */
static const char *const read_only_proc[] = {"/proc/sys", "/proc/irq", "/proc/bus",
                                             "/proc/sysrq-trigger"};

/* Parts of /proc that know no namespace: the names of the keys that the user has on the host. */
static const char *const hidden_proc[] = {"/proc/keys", "/proc/key-users"};

/* Mounts -------------------------------------------------------------------------------------- */

int ms_tree_clone(const char *path, uint64_t attributes, bool recursive) {
  unsigned deep = recursive ? AT_RECURSIVE : 0;
  int tree =
      (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | deep);
  if (tree < 0)
    return -1;
  struct mount_attr attr = {.attr_set = attributes, .propagation = MS_PRIVATE};
  if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | deep, &attr, sizeof attr) < 0) {
    int error = errno;
    close(tree);
    errno = error;
    return -1;
  }
  return tree;
}

/* Mounts a clone at a path below the working directory and closes it. */
int ms_tree_place(int tree, const char *path) {
  int placed = (int)syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH);
  int error = errno;
  close(tree);
  errno = error;
  return placed;
}

static int clone_pieces(piece *pieces) {
  memcpy(pieces, host_pieces, sizeof host_pieces);
  for (int i = 0; i < PIECES; i++) {
    piece *p = &pieces[i];
    uint64_t attributes = p->kind == DEVICE
                              ? MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
                              : MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    p->tree = ms_tree_clone(p->path, attributes, p->kind == DIRECTORY);
    if (p->tree < 0 && errno != ENOENT)
      return -1;
  }
  return 0;
}

static int place_pieces(const piece *pieces) {
  for (int i = 0; i < PIECES; i++) {
    const piece *p = &pieces[i];
    const char *inside = p->path + 1;
    if (p->tree < 0)
      continue;
    if (p->kind == DIRECTORY) {
      if (mkdir(inside, 0755) < 0 && errno != EEXIST)
        return -1;
    } else if (ms_write_text(inside, "", O_CREAT | O_EXCL) < 0) {
      return -1;
    }
    if (ms_tree_place(p->tree, inside) < 0)
      return -1;
  }
  return 0;
}

/* The host's own top-level links, or read-only clones where it has directories. `targets` was read
 * before the staging: an empty one is not a link. */
static int place_links(char targets[][256], const int *trees) {
  for (size_t i = 0; i < sizeof host_links / sizeof *host_links; i++) {
    const char *path = host_links[i];
    if (targets[i][0]) {
      if (symlink(targets[i], path) < 0)
        return -1;
    } else if (trees[i] >= 0) {
      if (mkdir(path, 0755) < 0 || ms_tree_place(trees[i], path) < 0)
        return -1;
    }
  }
  return 0;
}

static int read_links(char targets[][256], int *trees) {
  for (size_t i = 0; i < sizeof host_links / sizeof *host_links; i++) {
    char path[64];
    snprintf(path, sizeof path, "/%s", host_links[i]);
    ssize_t length = readlink(path, targets[i], 255);
    targets[i][length > 0 ? length : 0] = '\0';
    trees[i] = -1;
    if (length < 0 && errno == EINVAL && !strchr(host_links[i], '/')) {
      trees[i] =
          ms_tree_clone(path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, true);
      if (trees[i] < 0)
        return -1;
    }
  }
  return 0;
}

static int fill_root(void) {
  for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
    if (mkdir(directories[i].path, directories[i].mode) < 0)
      return -1;
  for (size_t i = 0; i < sizeof files / sizeof *files; i++)
    if (ms_write_text(files[i].path, files[i].text, O_CREAT | O_EXCL) < 0)
      return -1;
  for (size_t i = 0; i < sizeof links / sizeof *links; i++)
    if (symlink(links[i].target, links[i].path) < 0)
      return -1;
  return 0;
}

int ms_root_shut_proc(void) {
  for (size_t i = 0; i < sizeof read_only_proc / sizeof *read_only_proc; i++) {
    int tree = ms_tree_clone(read_only_proc[i],
                             MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, false);
    if (tree < 0 && errno == ENOENT)
      continue;
    if (tree < 0 || ms_tree_place(tree, read_only_proc[i]) < 0)
      return -1;
  }
  for (size_t i = 0; i < sizeof hidden_proc / sizeof *hidden_proc; i++) {
    int tree = ms_tree_clone("/dev/null", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, false);
    if (tree < 0 || (ms_tree_place(tree, hidden_proc[i]) < 0 && errno != ENOENT))
      return -1;
  }
  return 0;
}

static int leave_host(void) {
  if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0)
    return -1;
  return chdir("/");
}

/* -------------------------------------------------------------------------------------------- */

static const unsigned long PLAIN = MS_NOSUID | MS_NODEV;

int ms_root_build(const char **stage) {
  piece pieces[PIECES];
  char targets[sizeof host_links / sizeof *host_links][256];
  int trees[sizeof host_links / sizeof *host_links];
  MS_STAGE("propagation", mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  MS_STAGE("open_tree", clone_pieces(pieces));
  MS_STAGE("open_tree", read_links(targets, trees));
  MS_STAGE("tmpfs", mount("tmpfs", STAGING, "tmpfs", PLAIN, "mode=0755"));
  MS_STAGE("tmpfs", chdir(STAGING));
  MS_STAGE("root", fill_root());
  MS_STAGE("bind", place_pieces(pieces));
  MS_STAGE("bind", place_links(targets, trees));
  MS_STAGE("proc", mount("proc", "proc", "proc", PLAIN | MS_NOEXEC, NULL));
  MS_STAGE("devpts", mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
                           "newinstance,ptmxmode=0666,mode=0620,max=128"));
  MS_STAGE("pivot_root", leave_host());
  return 0;
}

int ms_root_limit(const char *at, uint64_t size, uint64_t inodes) {
  char text[96];
  snprintf(text, sizeof text, "size=%llu,nr_inodes=%llu", (unsigned long long)size,
           (unsigned long long)inodes);
  return mount(NULL, at, NULL, MS_REMOUNT | PLAIN, text);
}
