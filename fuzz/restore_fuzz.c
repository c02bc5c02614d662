/* links: src/agent/restore.c src/place.c src/walk.c src/entry.c src/wire.c */
/* A snapshot that is not what was once taken, put back into a directory with links that lead out of
 * it: nothing may appear, change or vanish outside of it, and all memory is given back. */
#include "agent/restore.h"

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
static struct stat outside_before, file_before;

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
  (void)st, (void)at;
  if (kind == FTW_D)
    chmod(path, 0700);
  return 0;
}

static int remove_two(const char *path, const struct stat *st, int kind, struct FTW *at) {
  (void)st, (void)kind, (void)at;
  return remove(path);
}

static void remove_tree(const char *path) {
  nftw(path, remove_one, 16, FTW_PHYS);
  nftw(path, remove_two, 16, FTW_DEPTH | FTW_PHYS);
}

static void remove_base(void) {
  remove_tree(base);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  snprintf(base, sizeof base, "%s/restore_fuzz.XXXXXX",
           access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
  MUST(mkdtemp(base));
  atexit(remove_base);
  base_fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(base_fd >= 0 && mkdirat(base_fd, "outside", 0755) == 0);
  close(openat(base_fd, "outside/f", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  MUST(fstatat(base_fd, "outside", &outside_before, 0) == 0);
  MUST(fstatat(base_fd, "outside/f", &file_before, 0) == 0);
  return 0;
}

static int prepare(void) {
  char root[80];
  snprintf(root, sizeof root, "%s/root", base);
  remove_tree(root);
  MUST(mkdirat(base_fd, "root", 0755) == 0 && mkdirat(base_fd, "root/d", 0755) == 0);
  MUST(symlinkat("../outside", base_fd, "root/o") == 0);
  MUST(symlinkat("../../outside", base_fd, "root/d/o") == 0);
  int fd = openat(base_fd, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(fd >= 0);
  return fd;
}

static int take(ms_restore *r, const char *data, size_t size) {
  int state = MS_RESTORE_MORE;
  for (size_t at = 0; at < size && state == MS_RESTORE_MORE;) {
    ms_record record;
    ssize_t taken = ms_record_next(data + at, size - at, &record);
    if (taken <= 0)
      return -1;
    state = ms_restore_record(r, &record);
    at += (size_t)taken;
  }
  return state;
}

/* Three bytes a record: its kind, and two of a few names, so that they meet. */
static void play(ms_restore *r, const uint8_t *bytes, size_t size) {
  static const char *const names[] = {"o",  "d",  "d/o",  "o/f", "d/o/f", "l",   "l/f",   "d/l",
                                      "..", "/x", "d/..", "n",   "n/n",   "d/d", "d/d/l", "l/l"};
  static const char *const targets[] = {"..",   "../outside",      "d", "o",
                                        "/tmp", "d/../../outside", ".", "../d"};
  static char text[16 * 1024];
  for (size_t i = 0; i + 2 < size; i += 3) {
    ms_writer w = {.data = text, .capacity = sizeof text};
    uint32_t kind = bytes[i] % 7;
    const char *name = names[bytes[i + 1] % 16];
    size_t start = ms_record_begin(&w, kind < 4    ? MS_RECORD_ENTRY
                                       : kind == 4 ? MS_RECORD_DATA
                                       : kind == 5 ? MS_RECORD_HOLE
                                                   : MS_RECORD_LINK);
    if (kind < 4) {
      ms_entry e = {.type = 1 + kind, .mode = bytes[i + 2] * 16u, .size = 9, .path = name};
      e.target = e.type == MS_ENTRY_SYMLINK ? targets[bytes[i + 2] % 8] : "";
      ms_put_entry(&w, &e);
    } else if (kind < 6) {
      ms_put_u64(&w, 7);
    } else {
      ms_put_str(&w, name);
      ms_put_str(&w, names[bytes[i + 2] % 16]);
    }
    ms_record_end(&w, start);
    take(r, text, w.length);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  ms_restore r;
  MUST(ms_restore_start(&r, prepare(), "d", NULL, 0) == 0);
  if (size > 0 && bytes[0] & 2)
    MUST(ms_restore_clear(&r) == 0);
  if (size > 0 && bytes[0] & 1) {
    play(&r, bytes + 1, size - 1);
  } else if (size > 0) {
    char *data = malloc(size);
    MUST(data);
    memcpy(data, bytes + 1, size - 1);
    data[size - 1] = '\0';
    take(&r, data, size - 1);
    free(data);
  }
  ms_restore_end(&r);

  struct stat now, file, here;
  MUST(fstatat(base_fd, "outside", &now, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(now.st_mode));
  MUST(fstatat(base_fd, "outside/f", &file, AT_SYMLINK_NOFOLLOW) == 0);
  MUST(now.st_nlink == outside_before.st_nlink && now.st_mode == outside_before.st_mode);
  MUST(now.st_mtim.tv_nsec == outside_before.st_mtim.tv_nsec);
  MUST(file.st_nlink == 1 && file.st_mode == file_before.st_mode && file.st_size == 0);
  MUST(file.st_mtim.tv_nsec == file_before.st_mtim.tv_nsec);
  MUST(fstat(base_fd, &here) == 0 && here.st_nlink == 4); /* root and outside: nothing else */
  return 0;
}
