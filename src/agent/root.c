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
#include <sys/mman.h>
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

/* For bwrap ----------------------------------------------------------------------------------- */

/* A file with this text, to be read by its number. */
static int text_file(const char *text) {
  int fd = memfd_create("moonsand", 0);
  ssize_t written = fd < 0 ? -1 : write(fd, text, strlen(text));
  return written < 0 || lseek(fd, 0, SEEK_SET) < 0 ? -1 : fd;
}

static void put_tables(ms_words *w) {
  for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
    if (strncmp(directories[i].path, "dev", 3) != 0 && strcmp(directories[i].path, "proc") != 0)
      MS_WORDS(w, "--perms", directories[i].mode & S_ISVTX ? "1777" : "0755", "--dir",
               directories[i].path);
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    int fd = text_file(files[i].text);
    MS_WORDS(w, "--perms", "0644", "--file");
    ms_words_number(w, (uint64_t)fd);
    MS_WORDS(w, files[i].path);
    w->failed |= fd < 0;
  }
  for (int i = 0; i < PIECES; i++)
    if (host_pieces[i].kind != DEVICE)
      MS_WORDS(w, "--ro-bind-try", host_pieces[i].path, host_pieces[i].path);
}

static void put_links(ms_words *w) {
  for (size_t i = 0; i < sizeof host_links / sizeof *host_links; i++) {
    char path[64], target[256];
    snprintf(path, sizeof path, "/%s", host_links[i]);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length > 0) {
      target[length] = '\0';
      MS_WORDS(w, "--symlink");
      ms_words_copy(w, target);
      MS_WORDS(w, host_links[i]);
    } else if (errno == EINVAL && !strchr(host_links[i], '/')) {
      MS_WORDS(w, "--ro-bind");
      ms_words_copy(w, path);
      MS_WORDS(w, host_links[i]);
    }
  }
}

/* Of /proc the parts that know no process are the host's own, bound read-only: bwrap would leave
 * those writable that the new user namespace owns, /proc/sys/net for one. The file systems that
 * bwrap makes for devices and shared memory are bounded too, the first by being read-only. */
void ms_root_words(ms_words *w, uint64_t disk) {
  uint64_t shared = disk / 8; /* both together are no more than was asked for */
  MS_WORDS(w, "--size");
  ms_words_number(w, disk - shared);
  MS_WORDS(w, "--tmpfs", "/");
  put_tables(w);
  put_links(w);
  MS_WORDS(w, "--proc", "/proc");
  for (size_t i = 0; i < sizeof read_only_proc / sizeof *read_only_proc; i++)
    MS_WORDS(w, "--ro-bind-try", read_only_proc[i], read_only_proc[i]);
  for (size_t i = 0; i < sizeof hidden_proc / sizeof *hidden_proc; i++)
    if (access(hidden_proc[i], F_OK) == 0)
      MS_WORDS(w, "--dev-bind", "/dev/null", hidden_proc[i]);
  MS_WORDS(w, "--dev", "/dev", "--perms", "1777", "--size");
  ms_words_number(w, shared);
  MS_WORDS(w, "--tmpfs", "/dev/shm", "--remount-ro", "/dev");
}

/* -------------------------------------------------------------------------------------------- */

int ms_root_limit(const char *at, uint64_t size, uint64_t inodes) {
  char text[96];
  snprintf(text, sizeof text, "size=%llu,nr_inodes=%llu", (unsigned long long)size,
           (unsigned long long)inodes);
  return mount(NULL, at, NULL, MS_REMOUNT | PLAIN, text);
}
