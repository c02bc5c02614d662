/* links: src/unpack.c src/place.c src/walk.c src/entry.c src/wire.c */
/* A download, with a sandbox that sends what it likes, into a directory with links that lead out of
 * it: nothing may appear, change or vanish outside of it. */
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition))                                                                              \
      abort();                                                                                     \
  } while (0)

static char base[64];
static int base_fd = -1;
static struct stat outside_before;

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
  (void)st;
  (void)kind;
  (void)at;
  return remove(path);
}

static void remove_base(void) {
  nftw(base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc;
  (void)argv;
  /* In memory, where there is that: it is ten times faster. */
  snprintf(base, sizeof base, "%s/unpack_fuzz.XXXXXX",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  MUST(mkdtemp(base));
  atexit(remove_base);
  base_fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(base_fd >= 0 && mkdirat(base_fd, "outside", 0755) == 0);
  MUST(fstatat(base_fd, "outside", &outside_before, 0) == 0);
  return 0;
}

static void prepare(void) {
  char root[80];
  snprintf(root, sizeof root, "%s/root", base);
  nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  MUST(mkdirat(base_fd, "root", 0755) == 0 && mkdirat(base_fd, "root/d", 0755) == 0);
  MUST(symlinkat("../outside", base_fd, "root/o") == 0);
  MUST(symlinkat("../../outside", base_fd, "root/d/o") == 0);
}

/* The input as a stream of records. */
static void feed(ms_unpack *u, const char *data, size_t size) {
  for (size_t at = 0; at < size;) {
    ms_record record;
    ssize_t taken = ms_record_next(data + at, size - at, &record);
    if (taken <= 0 || ms_unpack_record(u, &record) != MS_UNPACK_MORE)
      return;
    at += (size_t)taken;
  }
}

/* Two bytes an entry: its type, and which of a few names, so that they meet. */
static void play(ms_unpack *u, const uint8_t *bytes, size_t size) {
  static const char *const names[] = {"o",  "d",  "d/o",  "o/x", "d/o/x", "l",   "l/x",   "d/l",
                                      "..", "/x", "d/..", "n",   "n/n",   "d/d", "d/d/l", "l/l"};
  static const char *const targets[] = {"..",   "../outside",      "d", "o",
                                        "/tmp", "d/../../outside", ".", "../d"};
  for (size_t i = 0; i + 1 < size; i += 2) {
    ms_entry e = {.type = 1 + bytes[i] % 4, .mode = 0644, .path = names[bytes[i + 1] % 16]};
    e.target = e.type == MS_ENTRY_SYMLINK ? targets[bytes[i] / 4 % 8] : "";
    if (ms_unpack_entry(u, &e) < 0)
      ms_place_abort(&u->file);
    if (u->file.fd >= 0)
      MUST(ms_write_all(u->file.fd, "x", 1) == 0);
  }
  ms_unpack_finish(u);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  prepare();
  ms_unpack u;
  ms_unpack_start(&u, openat(base_fd, "root", O_PATH | O_DIRECTORY | O_CLOEXEC), true);
  u.max_entries = 64;
  u.max_bytes = 4096;
  if (size > 0 && bytes[0] & 1) {
    play(&u, bytes + 1, size - 1);
  } else if (size > 0) {
    char *data = malloc(size);
    MUST(data);
    memcpy(data, bytes + 1, size - 1);
    data[size - 1] = '\0';
    feed(&u, data, size - 1);
    free(data);
  }
  MUST(u.entries <= 64 && u.bytes <= 4096);
  ms_unpack_end(&u);

  struct stat now;
  MUST(fstatat(base_fd, "outside", &now, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(now.st_mode));
  MUST(now.st_nlink == outside_before.st_nlink && now.st_mode == outside_before.st_mode);
  MUST(now.st_mtim.tv_sec == outside_before.st_mtim.tv_sec &&
       now.st_mtim.tv_nsec == outside_before.st_mtim.tv_nsec);
  struct stat here;
  MUST(fstat(base_fd, &here) == 0 && here.st_nlink == 4); /* root and outside: nothing else */
  return 0;
}
