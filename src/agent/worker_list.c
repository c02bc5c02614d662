/* Looking at trees: `list` and `search`. */
#include "../walk.h"
#include "agent.h"
#include "paths.h"
#include "worker.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NONBLOCK)

/* The entry that the walk is at, if it is still there. */
static bool emit(const ms_walk *w, ms_entry *e, uint64_t *count) {
  static char target[MS_PATH_MAX + 1];
  int error = ms_walk_describe(w, e, target);
  if (error < 0) {
    if (error != -ENOENT)
      ms_out_skipped(error, w->path);
    return false;
  }
  ms_out_entry(e);
  ++*count;
  return true;
}

/* list PATH DEPTH: what is in a directory, and in those below, DEPTH levels (0: all of them). The
 * path may be a link. Paths are relative to it. */
int ms_work_list(int argc, char **argv) {
  (void)argc;
  uint64_t depth = strtoull(argv[2], NULL, 10), count = 0;
  int root = ms_open_path(argv[1], DIRECTORY);
  ms_walk w;
  int found = root < 0 ? root : ms_walk_start(&w, root);
  if (found < 0)
    return ms_out_failed(found, "");
  while ((found = ms_walk_next(&w)) != 0) {
    ms_entry e;
    if (found < 0) {
      ms_out_skipped(found, w.path);
      continue;
    }
    if (!emit(&w, &e, &count) || e.type != MS_ENTRY_DIRECTORY || (depth && w.mark + 1 >= depth))
      continue;
    int error = ms_walk_enter(&w, w.mark + 1);
    if (error < 0 && error != -ENOENT)
      ms_out_skipped(error, w.path);
  }
  ms_walk_end(&w);
  return ms_out_end(count);
}

/* Patterns ------------------------------------------------------------------------------------ */

enum { MAX_PARTS = 63 };

/* The wild part of a pattern, as the names that it asks for one below the other. */
typedef struct pattern {
  const char *part[MAX_PARTS];
  size_t length[MAX_PARTS];
  int count;
  bool directories; /* it ended with a slash */
} pattern;

static bool is_any_depth(const pattern *p, int i) {
  return p->length[i] == 2 && memcmp(p->part[i], "**", 2) == 0;
}

/* Splits off what has no wildcards: the directory that the search begins in, with its slash. */
static int pattern_split(pattern *p, const char *text, char root[MS_PATH_MAX + 1]) {
  if (text[0] != '/' || strlen(text) > MS_PATH_MAX)
    return -EINVAL;
  *p = (pattern){.count = 0};
  size_t plain = 1;
  const char *at = text + 1;
  while (*at) {
    size_t length = strcspn(at, "/");
    const char *next = at + length + (at[length] == '/');
    bool last = *next == '\0';
    if (length == 0 || (length == 1 && *at == '.')) {
      at = next;
      continue;
    }
    p->directories = last && at[length] == '/';
    if (p->count == 0 && !last && !ms_glob_is_wild(at, length)) {
      plain = (size_t)(next - text);
    } else if (p->count == 0 || !is_any_depth(p, p->count - 1) || length != 2 ||
               memcmp(at, "**", 2) != 0) { /* two "**" in a row are one */
      if (p->count == MAX_PARTS)
        return -EINVAL;
      p->part[p->count] = at;
      p->length[p->count++] = length;
    }
    at = next;
  }
  memcpy(root, text, plain);
  root[plain] = '\0';
  return 0;
}

/* A set of places in a pattern, a bit each: which part the names in a directory are to match. "**"
 * stands for no directory, too. */
static uint64_t widen(const pattern *p, uint64_t set) {
  for (int i = 0; i < p->count; i++)
    if (set >> i & 1 && is_any_depth(p, i))
      set |= UINT64_C(1) << (i + 1);
  return set;
}

/* What a name leads on to; `hit` when it matches the pattern's end. */
static uint64_t advance(const pattern *p, uint64_t set, const char *name, bool *hit) {
  uint64_t next = 0;
  *hit = false;
  for (int i = 0; i < p->count; i++) {
    if (!(set >> i & 1))
      continue;
    bool any = is_any_depth(p, i);
    if (any ? name[0] == '.' : !ms_glob_match(p->part[i], p->length[i], name))
      continue;
    if (i == p->count - 1)
      *hit = true;
    next |= UINT64_C(1) << (any ? i : i + 1);
  }
  return widen(p, next) & ~(UINT64_C(1) << p->count);
}

/* Says what was found with its whole path. */
static void search_in(ms_walk *w, const pattern *p, const char *root, uint64_t *count) {
  char path[2 * MS_PATH_MAX + 2], target[MS_PATH_MAX + 1];
  size_t length = strlen(root) - 1;
  memcpy(path, root + 1, length); /* without the leading slash, as paths of entries are */
  int found;
  while ((found = ms_walk_next(w)) != 0) {
    if (found < 0)
      continue;
    bool hit;
    uint64_t next = advance(p, w->depth == 0 ? widen(p, 1) : w->mark, w->name, &hit);
    if (!hit && !next)
      continue;
    ms_entry e;
    if (ms_walk_describe(w, &e, target) < 0)
      continue;
    strcpy(path + length, w->path);
    e.path = path;
    if (hit && (!p->directories || e.type == MS_ENTRY_DIRECTORY)) {
      if (strlen(path) > MS_PATH_MAX) {
        ms_out_skipped(-ENAMETOOLONG, w->path);
      } else {
        ms_out_entry(&e);
        ++*count;
      }
    }
    if (next && e.type == MS_ENTRY_DIRECTORY)
      ms_walk_enter(w, next); /* what cannot be read has nothing that could be told */
  }
}

/* search PATTERN…: all that matches one of them; what matches two comes twice. Links to directories
 * are followed in the part before the first wildcard only, and /proc is not entered from above. */
int ms_work_search(int argc, char **argv) {
  uint64_t count = 0;
  for (int i = 1; i < argc; i++) {
    char root[MS_PATH_MAX + 1];
    pattern p;
    ms_walk w;
    int error = pattern_split(&p, argv[i], root);
    if (error < 0)
      return ms_out_failed(error, "");
    int fd = p.count > 0 ? ms_open_path(root, DIRECTORY) : -ENOENT;
    if (fd == -ENOENT || fd == -ENOTDIR)
      continue;
    error = fd < 0 ? fd : ms_walk_start(&w, fd);
    if (error < 0)
      return ms_out_failed(error, root + 1);
    search_in(&w, &p, root, &count);
    ms_walk_end(&w);
  }
  return ms_out_end(count);
}
