#include "paths.h"
#include "../walk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_LINKS 40 /* as the kernel's own */

int ms_open_path(const char *path, int flags) {
  int fd = ms_openat2(AT_FDCWD, path, (uint64_t)flags | O_CLOEXEC, 0, RESOLVE_NO_MAGICLINKS);
  return fd < 0 ? -errno : fd;
}

/* Directories --------------------------------------------------------------------------------- */

/* A directory in a directory, made if it is missing. */
static int open_child(int dir, const char *name) {
  for (int tries = 0;; tries++) {
    int fd = ms_openat2(dir, name, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, RESOLVE_NO_MAGICLINKS);
    if (fd >= 0 || errno != ENOENT || tries > 0)
      return fd < 0 ? -errno : fd;
    if (mkdirat(dir, name, 0755) < 0 && errno != EEXIST) /* EEXIST: a link that leads nowhere */
      return -errno;
  }
}

/* Opens a directory, and makes it and those above it where they are missing. */
static int open_parents(const char *path) {
  char name[MS_NAME_MAX + 1];
  int dir = ms_open_path("/", O_PATH | O_DIRECTORY);
  for (size_t length; dir >= 0 && *path; path += length + (path[length] == '/')) {
    length = strcspn(path, "/");
    if (length == 0)
      continue;
    int next = -ENAMETOOLONG;
    if (length <= MS_NAME_MAX) {
      memcpy(name, path, length);
      name[length] = '\0';
      next = open_child(dir, name);
    }
    close(dir);
    dir = next;
  }
  return dir;
}

int ms_open_directory(const char *path, bool parents) {
  int dir = ms_open_path(path, O_PATH | O_DIRECTORY);
  return dir == -ENOENT && parents ? open_parents(path) : dir;
}

int ms_where_find(ms_where *p, const char *path, bool parents) {
  p->dir = -1;
  size_t length = strlen(path);
  if (path[0] != '/' || length > MS_PATH_MAX)
    return path[0] == '/' ? -ENAMETOOLONG : -EINVAL;
  p->slash = length > 1 && path[length - 1] == '/';
  while (length > 0 && path[length - 1] == '/')
    length--;
  size_t start = length;
  while (start > 0 && path[start - 1] != '/')
    start--;
  if (length - start > MS_NAME_MAX)
    return -ENAMETOOLONG;
  memcpy(p->name, path + start, length - start);
  p->name[length - start] = '\0';
  if (start == 0)
    start = 1; /* "/" is in itself */
  memcpy(p->path, path, start);
  p->path[start] = '\0';
  p->dir = ms_open_directory(p->path, parents);
  return p->dir < 0 ? p->dir : 0;
}

void ms_where_close(ms_where *p) {
  if (p->dir >= 0)
    close(p->dir);
  p->dir = -1;
}

bool ms_where_is_dots(const ms_where *p) {
  return !p->name[0] || strcmp(p->name, ".") == 0 || strcmp(p->name, "..") == 0;
}

int ms_where_target(ms_where *p, const char *path, bool parents) {
  char next[2 * MS_PATH_MAX + 2];
  for (int links = 0; links < MAX_LINKS; links++) {
    int error = ms_where_find(p, path, parents);
    if (error < 0)
      return error;
    if (ms_where_is_dots(p) || p->slash)
      return -EISDIR;
    if (ms_is_virtual(p->dir))
      return 0;
    char link[MS_PATH_MAX + 1];
    ssize_t length = readlinkat(p->dir, p->name, link, MS_PATH_MAX);
    if (length < 0)
      return errno == EINVAL || errno == ENOENT ? 0 : -errno;
    link[length] = '\0';
    snprintf(next, sizeof next, "%s%s", link[0] == '/' ? "" : p->path, link);
    ms_where_close(p);
    path = next;
  }
  return -ELOOP;
}
