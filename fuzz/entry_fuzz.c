/* links: src/entry.c src/wire.c */
/* Entries and records, as they come out of a sandbox: whatever is accepted keeps the promises of
 * entry.h, and comes out the same when it is written and read again. */
#include "entry.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition))                                                                              \
      abort();                                                                                     \
  } while (0)

/* A copy with the NUL behind it that readers may rely on. */
static char *copy_of(const uint8_t *bytes, size_t size) {
  char *copy = malloc(size + 1);
  MUST(copy);
  if (size > 0)
    memcpy(copy, bytes, size);
  copy[size] = '\0';
  return copy;
}

static void check_entry(const ms_entry *e) {
  MUST(e->type >= MS_ENTRY_FILE && e->type <= MS_ENTRY_OTHER && e->mode <= 07777);
  MUST(e->mtime_ns < 1000000000u && e->size <= INT64_MAX);
  MUST(e->path[0] == '\0' || ms_entry_path_ok(e->path));
  MUST(e->path[0] != '/' && !strstr(e->path, "//") && !strstr(e->path, "/../"));
  MUST(strcmp(e->path, "..") != 0 && strncmp(e->path, "../", 3) != 0);
  if (ms_entry_target_stays(e->path, e->target))
    MUST(e->target[0] != '/' && (strchr(e->path, '/') || strncmp(e->target, "..", 2) != 0 ||
                                 (e->target[2] != '/' && e->target[2] != '\0')));

  static char text[64 * 1024];
  ms_writer w = {.data = text, .capacity = sizeof text};
  ms_put_entry(&w, e);
  MUST(!w.overflow);
  ms_reader r = {.data = text, .length = w.length};
  ms_entry again;
  ms_get_entry(&r, &again);
  MUST(ms_get_end(&r) && again.type == e->type && again.mode == e->mode && again.size == e->size &&
       again.mtime == e->mtime && again.mtime_ns == e->mtime_ns && again.uid == e->uid &&
       again.gid == e->gid && strcmp(again.path, e->path) == 0 &&
       strcmp(again.target, e->target) == 0);
}

static void read_entry(ms_reader r) {
  ms_entry e;
  ms_get_entry(&r, &e);
  if (ms_get_end(&r))
    check_entry(&e);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  char *data = copy_of(bytes, size);
  read_entry((ms_reader){.data = data, .length = size});
  for (size_t at = 0; at < size;) {
    ms_record record;
    ssize_t taken = ms_record_next(data + at, size - at, &record);
    if (taken <= 0)
      break;
    MUST((size_t)taken <= size - at && record.body.length + MS_RECORD_HEADER == (size_t)taken);
    if (record.kind == MS_RECORD_ENTRY)
      read_entry(record.body);
    at += (size_t)taken;
  }
  free(data);
  return 0;
}
