/* disk bytes DIRECTORY …: fills each until the kernel says no, without giving anything back, and
 * says how many bytes went in, and why no more. disk inodes DIRECTORY …: the same with empty files.
 * disk memfd: a file without a file system. */
#include "attempt.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PIECE ((size_t)64 * 1024)
#define MOST ((long)1 << 30)

static void fill(const char *directory) {
  static char piece[PIECE];
  char path[256];
  long total = 0, done = 0;
  memset(piece, 1, sizeof piece);
  snprintf(path, sizeof path, "%s/fill", directory);
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
  int error = fd < 0 ? errno : 0;
  while (fd >= 0 && total < MOST && (done = write(fd, piece, PIECE)) > 0)
    total += done;
  if (done < 0)
    error = errno;
  printf("%s %ld %s\n", directory, total, error ? strerrorname_np(error) : "OK");
}

static void strew(const char *directory) {
  char path[256];
  long count = 0;
  int error = 0;
  for (; count < 1000000; count++) {
    snprintf(path, sizeof path, "%s/f%ld", directory, count);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0) {
      error = errno;
      break;
    }
    close(fd);
  }
  printf("%s %ld %s\n", directory, count, error ? strerrorname_np(error) : "OK");
}

int main(int argc, char **argv) {
  if (argc < 2)
    return 2;
  for (int i = 2; i < argc; i++)
    (strcmp(argv[1], "bytes") == 0 ? fill : strew)(argv[i]);
  return 0;
}
