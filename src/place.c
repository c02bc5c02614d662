#include "place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define COPY_STEP ((size_t)4 * 1024 * 1024)
#define TEMP_TRIES 16

int ms_temp_name(char name[MS_TEMP_NAME]) {
  uint64_t number;
  if (getrandom(&number, sizeof number, GRND_NONBLOCK) != sizeof number)
    return errno ? -errno : -EIO;
  snprintf(name, MS_TEMP_NAME, ".moonsand-%013llx", (unsigned long long)(number >> 12));
  return 0;
}

static int place_named(ms_place *p, mode_t mode) {
  for (int i = 0; i < TEMP_TRIES; i++) {
    int error = ms_temp_name(p->temp);
    if (error < 0)
      return error;
    p->fd = openat(p->dir, p->temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (p->fd >= 0)
      return 0;
    if (errno != EEXIST)
      break;
  }
  p->temp[0] = '\0';
  return -errno;
}

int ms_place_open(ms_place *p, int dir, mode_t mode) {
  *p = (ms_place)MS_PLACE_NONE;
  p->dir = fcntl(dir, F_DUPFD_CLOEXEC, 0);
  if (p->dir < 0)
    return -errno;
  /* A file without a name gets one through /proc. */
  if (faccessat(AT_FDCWD, "/proc/self/fd", X_OK, 0) == 0)
    p->fd = openat(dir, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, mode);
  int error = p->fd >= 0 ? 0 : place_named(p, mode);
  if (error < 0)
    ms_place_abort(p);
  return error;
}

/* Links the nameless file under a name. */
static int place_link(const ms_place *p, const char *name) {
  char path[40];
  snprintf(path, sizeof path, "/proc/self/fd/%d", p->fd);
  return linkat(AT_FDCWD, path, p->dir, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

int ms_place_commit(ms_place *p, const char *name) {
  int error = 0;
  if (!p->temp[0]) {
    error = place_link(p, name);
    if (error == 0)
      goto out;
    if (error != -EEXIST)
      goto out;
    for (int i = 0; i < TEMP_TRIES && error == -EEXIST; i++) {
      error = ms_temp_name(p->temp);
      if (error == 0)
        error = place_link(p, p->temp);
    }
    if (error < 0) {
      p->temp[0] = '\0';
      goto out;
    }
  }
  if (renameat(p->dir, p->temp, p->dir, name) < 0)
    error = -errno;
  else
    p->temp[0] = '\0';
out:
  ms_place_abort(p);
  return error;
}

int ms_place_commit_new(ms_place *p, const char *name) {
  int error = 0;
  if (!p->temp[0])
    error = place_link(p, name);
  else if (linkat(p->dir, p->temp, p->dir, name, 0) < 0)
    error = -errno;
  ms_place_abort(p); /* takes its temporary name away, too */
  return error;
}

void ms_place_abort(ms_place *p) {
  if (p->temp[0])
    unlinkat(p->dir, p->temp, 0);
  if (p->fd >= 0)
    close(p->fd);
  if (p->dir >= 0)
    close(p->dir);
  *p = (ms_place)MS_PLACE_NONE;
}

int ms_link_at(int dir, const char *name, const char *target) {
  if (symlinkat(target, dir, name) == 0)
    return 0;
  char temp[MS_TEMP_NAME];
  int error = -errno;
  for (int i = 0; i < TEMP_TRIES && error == -EEXIST; i++) {
    error = ms_temp_name(temp);
    if (error == 0)
      error = symlinkat(target, dir, temp) < 0 ? -errno : 0;
  }
  if (error == 0 && renameat(dir, temp, dir, name) < 0) {
    error = -errno;
    unlinkat(dir, temp, 0);
  }
  return error;
}

ssize_t ms_copy_bytes(int from, int to, uint64_t most) {
  size_t step = most < COPY_STEP ? (size_t)most : COPY_STEP;
  if (step == 0)
    return 0;
  ssize_t moved = copy_file_range(from, NULL, to, NULL, step, 0);
  /* 0 may be the end, or a file whose size the file system does not tell. */
  if (moved > 0 || (moved < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO)))
    return moved < 0 ? -errno : moved;
  char buffer[64 * 1024];
  if (step > sizeof buffer)
    step = sizeof buffer;
  do
    moved = read(from, buffer, step);
  while (moved < 0 && errno == EINTR);
  if (moved <= 0)
    return moved < 0 ? -errno : 0;
  int error = ms_write_all(to, buffer, (size_t)moved);
  return error < 0 ? error : moved;
}

int ms_write_all(int fd, const char *data, size_t length) {
  while (length > 0) {
    ssize_t written = write(fd, data, length);
    if (written < 0 && errno == EINTR)
      continue;
    if (written < 0)
      return -errno;
    data += written;
    length -= (size_t)written;
  }
  return 0;
}
