/* A root file system out of a directory: an image's contents are unpacked there, or debootstrap
 * made it. Below lies the directory, read-only; above it what is written, on the sandbox's own
 * tmpfs, as are /workspace, /tmp, /dev and the like.
 *
 * The directory is somebody else's: any name in it may be a link to anywhere. So nothing is looked
 * up in it before it is "/", where links lead back into it. */
#include "../walk.h"
#include "agent.h"
#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STAGING "/usr" /* as in root.c */

static const unsigned long PLAIN = MS_NOSUID | MS_NODEV;

static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
enum { DEVICES = sizeof devices / sizeof *devices };

/* What is the sandbox's own, made in the staging directory and put over the image's. */
static const struct {
  const char *staged, *path;
  mode_t mode;
  bool needed;
} own[] = {
    {"dev", "/dev", 0755, true},        {"tmp", "/tmp", 01777, true},
    {"run", "/run", 0755, true},        {"workspace", MS_HOME, 0755, true},
    {"copies", "/.copies", 0755, true}, {"var-tmp", "/var/tmp", 01777, false},
};
enum { OWN = sizeof own / sizeof *own };

static const struct {
  const char *target, *path;
} links[] = {
    {"pts/ptmx", "dev/ptmx"},          {"/proc/self/fd", "dev/fd"},
    {"/proc/self/fd/0", "dev/stdin"},  {"/proc/self/fd/1", "dev/stdout"},
    {"/proc/self/fd/2", "dev/stderr"},
};

/* The user, in the image's own lists; the line that is looked for, and what is added without it. */
static const struct {
  const char *path, *id, *line;
} lists[] = {
    {"/etc/passwd", ":1000:", MS_USER ":x:1000:1000::" MS_HOME ":/bin/sh\n"},
    {"/etc/group", ":1000:", MS_USER ":x:1000:\n"},
};

static int clone_devices(int *trees) {
  for (int i = 0; i < DEVICES; i++) {
    char path[32];
    snprintf(path, sizeof path, "/dev/%s", devices[i]);
    trees[i] = ms_tree_clone(path, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, false);
    if (trees[i] < 0 && errno != ENOENT)
      return -1;
  }
  return 0;
}

/* In the staging directory, which is empty and ours. */
static int make_own(const int *device_trees) {
  for (int i = 0; i < OWN; i++)
    if (mkdir(own[i].staged, own[i].mode) < 0)
      return -1;
  if (mkdir("dev/pts", 0755) < 0 || mkdir("dev/shm", 01777) < 0)
    return -1;
  for (size_t i = 0; i < sizeof links / sizeof *links; i++)
    if (symlink(links[i].target, links[i].path) < 0)
      return -1;
  for (int i = 0; i < DEVICES; i++) {
    char path[32];
    snprintf(path, sizeof path, "dev/%s", devices[i]);
    if (device_trees[i] >= 0 &&
        (ms_write_text(path, "", O_CREAT | O_EXCL) < 0 || ms_tree_place(device_trees[i], path) < 0))
      return -1;
  }
  return 0;
}

static int mount_overlay(int image) {
  if (mkdir("lower", 0755) < 0 || mkdir("upper", 0755) < 0 || mkdir("work", 0755) < 0 ||
      mkdir("root", 0755) < 0 || ms_tree_place(image, "lower") < 0)
    return -1;
  return mount("overlay", "root", "overlay", PLAIN,
               "lowerdir=lower,upperdir=upper,workdir=work,userxattr");
}

static int clone_own(int *trees) {
  for (int i = 0; i < OWN; i++) {
    trees[i] = ms_tree_clone(own[i].staged, 0, true);
    if (trees[i] < 0)
      return -1;
  }
  return 0;
}

/* From now on "/" is the image's, and the host's is still mounted, for proc: a new one may show no
 * more than one that is there. */
static int enter_image(void) {
  return chdir("root") < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ? -1 : 0;
}

/* A directory of the image to put something over; made if it is missing. */
static int make_directory(const char *path) {
  struct stat st;
  if (mkdir(path, 0755) < 0 && errno != EEXIST)
    return -1;
  if (lstat(path, &st) < 0)
    return -1;
  errno = S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
  return errno ? -1 : 0;
}

static int place_own(const int *trees) {
  for (int i = 0; i < OWN; i++) {
    if (make_directory(own[i].path) == 0) {
      if (ms_tree_place(trees[i], own[i].path) < 0)
        return -1;
    } else if (own[i].needed) {
      return -1;
    } else {
      close(trees[i]);
    }
  }
  return 0;
}

static int leave_host(void) {
  return umount2(".", MNT_DETACH) < 0 ? -1 : chdir("/");
}

/* An image's list with the sandbox's user in it. Where it may not be changed, or is a link, it goes
 * without: programs then show the number. */
static int name_user(size_t i) {
  static char text[64 * 1024];
  int fd = ms_openat2(AT_FDCWD, lists[i].path,
                      O_RDWR | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644,
                      RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);
  if (fd < 0)
    return 0;
  struct stat st;
  ssize_t length =
      fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? read(fd, text, sizeof text - 1) : -1;
  int written = 0;
  if (length >= 0) {
    text[length] = '\0';
    if (!strstr(text, lists[i].id))
      written = (int)write(fd, lists[i].line, strlen(lists[i].line));
  }
  close(fd);
  return written < 0 ? -1 : 0;
}

static int name_users(void) {
  mkdir("/etc", 0755); /* there already, or there are no lists either */
  for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
    if (name_user(i) < 0)
      return -1;
  return 0;
}

int ms_image_build(int image, const char **stage) {
  int device_trees[DEVICES], own_trees[OWN];
  MS_STAGE("propagation", mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  MS_STAGE("open_tree", clone_devices(device_trees));
  MS_STAGE("tmpfs", mount("tmpfs", STAGING, "tmpfs", PLAIN, "mode=0755"));
  MS_STAGE("tmpfs", chdir(STAGING));
  MS_STAGE("root", make_own(device_trees));
  MS_STAGE("overlay", mount_overlay(image));
  MS_STAGE("open_tree", clone_own(own_trees));
  MS_STAGE("pivot_root", enter_image());
  MS_STAGE("root", place_own(own_trees));
  MS_STAGE("root", make_directory("/proc"));
  MS_STAGE("proc", mount("proc", "/proc", "proc", PLAIN | MS_NOEXEC, NULL));
  MS_STAGE("devpts", mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
                           "newinstance,ptmxmode=0666,mode=0620,max=128"));
  MS_STAGE("pivot_root", leave_host());
  MS_STAGE("root", name_users());
  return 0;
}
