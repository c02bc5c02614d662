/* `grep`: lines of many files. The files are of the sandbox's making, so a line is read up to a
 * bound, a file with a NUL is none of text, and a pattern has a budget for each line. */
#include "../walk.h"
#include "paths.h"
#include "pattern.h"
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NONBLOCK)
#define READABLE (O_RDONLY | O_NONBLOCK | O_NOCTTY)
#define LINE_MAX_BYTES ((size_t)1024 * 1024) /* what is behind that is not looked at */
#define TOLD_MAX ((size_t)4096)              /* of a line that is told */

typedef struct search {
  bool plain;
  const char *pattern;
  size_t length;
  uint64_t matches;
} search;

/* Where a line matches: from 0 on; -1: nowhere; or a negative errno. */
static ssize_t find(const search *s, const char *line, size_t length) {
  if (!s->plain)
    return ms_pattern_find(s->pattern, s->length, line, length);
  const char *at = memmem(line, length, s->pattern, s->length);
  return at ? at - line : -1;
}

static int look_at(search *s, const char *path, uint64_t number, const char *line, size_t length) {
  ssize_t at = find(s, line, length);
  if (at < 0)
    return at == -1 ? 0 : (int)at;
  ms_writer *out = ms_out_begin(MS_RECORD_MATCH);
  ms_put_u64(out, number);
  ms_put_u64(out, (uint64_t)at + 1);
  ms_put_str(out, path);
  ms_put_bytes(out, line, length < TOLD_MAX ? length : TOLD_MAX);
  ms_out_close();
  s->matches++;
  return 0;
}

/* 1: of text; 0: there is a NUL in it, as in every hole. */
static int is_text(int fd) {
  static char piece[64 * 1024];
  ssize_t length;
  while ((length = read(fd, piece, sizeof piece)) > 0)
    if (memchr(piece, '\0', (size_t)length))
      return 0;
  return length < 0 || lseek(fd, 0, SEEK_SET) < 0 ? -errno : 1;
}

/* All whole lines of a buffer, and at the end of the file the rest: how many bytes are done with;
 * or a negative errno. A line that fills the buffer is taken as far as it goes; `cut` is set until
 * its end has come. */
static ssize_t search_lines(search *s, const char *path, const char *data, size_t length, bool end,
                            bool *cut, uint64_t *number) {
  size_t at = 0;
  while (at < length) {
    const char *newline = memchr(data + at, '\n', length - at);
    bool full = at == 0 && length == LINE_MAX_BYTES;
    if (!newline && !end && !full)
      break;
    size_t line = newline ? (size_t)(newline - data) - at : length - at;
    if (!*cut) {
      int error = look_at(s, path, ++*number, data + at, line);
      if (error < 0)
        return error;
    }
    *cut = !newline && !end;
    at += line + (newline != NULL);
  }
  return (ssize_t)at;
}

static int search_text(search *s, int fd, const char *path) {
  static char buffer[LINE_MAX_BYTES];
  size_t have = 0;
  uint64_t number = 0;
  bool cut = false;
  for (;;) {
    ssize_t length = read(fd, buffer + have, sizeof buffer - have);
    if (length < 0)
      return -errno;
    have += (size_t)length;
    ssize_t done = search_lines(s, path, buffer, have, length == 0, &cut, &number);
    if (done < 0)
      return (int)done;
    if (length == 0)
      return 0;
    have -= (size_t)done;
    memmove(buffer, buffer + done, have);
  }
}

/* Takes the file over. */
static int search_file(search *s, int fd, const char *path) {
  struct stat st;
  int error = fd < 0 || fstat(fd, &st) < 0                ? -errno
              : !S_ISREG(st.st_mode) || ms_is_virtual(fd) ? -EOPNOTSUPP
                                                          : is_text(fd);
  if (error > 0)
    error = search_text(s, fd, path);
  if (fd >= 0)
    close(fd);
  return error;
}

static int search_entry(search *s, ms_walk *w) {
  struct stat st;
  if (fstatat(ms_walk_here(w), w->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return errno == ENOENT ? 0 : -errno;
  if (S_ISDIR(st.st_mode))
    return ms_walk_enter(w, 0);
  if (!S_ISREG(st.st_mode))
    return 0;
  return search_file(s, openat(ms_walk_here(w), w->name, READABLE | O_NOFOLLOW | O_CLOEXEC),
                     w->path);
}

/* Because of the pattern: not the file's fault, and no use to go on. */
static bool is_final(int error) {
  return error == -EINVAL || error == -E2BIG;
}

static int search_tree(search *s, int root) {
  ms_walk w;
  int found, error = ms_is_virtual(root) ? -EOPNOTSUPP : 0;
  if (error < 0)
    close(root);
  else
    error = ms_walk_start(&w, root);
  if (error < 0)
    return ms_out_failed(error, "");
  while ((found = ms_walk_next(&w)) != 0) {
    error = found < 0 ? found : search_entry(s, &w);
    if (is_final(error))
      return ms_out_failed(error, w.path);
    if (error < 0 && error != -ENOENT)
      ms_out_skipped(error, w.path);
  }
  ms_walk_end(&w);
  return ms_out_end(s->matches);
}

/* grep PATH PLAIN PATTERN: lines that match, in a file, or in those below a directory. The path may
 * be a link; those below are not followed. */
int ms_work_grep(int argc, char **argv) {
  (void)argc;
  search s = {.plain = argv[2][0] == '1', .pattern = argv[3], .length = strlen(argv[3])};
  int root = ms_open_path(argv[1], DIRECTORY);
  if (root >= 0)
    return search_tree(&s, root);
  if (root != -ENOTDIR)
    return ms_out_failed(root, "");
  int fd = ms_open_path(argv[1], READABLE);
  int error = fd < 0 ? fd : search_file(&s, fd, "");
  return error < 0 ? ms_out_failed(error, "") : ms_out_end(s.matches);
}
