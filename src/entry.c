#include "entry.h"

#include <errno.h>
#include <string.h>

/* Times that a kernel could give, and that are whole numbers in a double. */
#define MTIME_LIMIT (INT64_C(1) << 52)

/* Entries ------------------------------------------------------------------------------------- */

static uint32_t type_of(mode_t mode) {
  return S_ISREG(mode)   ? MS_ENTRY_FILE
         : S_ISDIR(mode) ? MS_ENTRY_DIRECTORY
         : S_ISLNK(mode) ? MS_ENTRY_SYMLINK
                         : MS_ENTRY_OTHER;
}

void ms_entry_from_stat(ms_entry *e, const struct stat *st) {
  *e = (ms_entry){.type = type_of(st->st_mode),
                  .mode = st->st_mode & 07777,
                  .uid = st->st_uid,
                  .gid = st->st_gid,
                  .size = st->st_size > 0 ? (uint64_t)st->st_size : 0,
                  .mtime = st->st_mtim.tv_sec,
                  .mtime_ns = (uint32_t)st->st_mtim.tv_nsec,
                  .path = "",
                  .target = ""};
  if (e->mtime > MTIME_LIMIT || e->mtime < -MTIME_LIMIT)
    e->mtime = 0; /* a time that some file systems let anybody set */
}

void ms_put_entry(ms_writer *w, const ms_entry *e) {
  ms_put_u32(w, e->type);
  ms_put_u32(w, e->mode);
  ms_put_u32(w, e->uid);
  ms_put_u32(w, e->gid);
  ms_put_u64(w, e->size);
  ms_put_u64(w, (uint64_t)e->mtime);
  ms_put_u32(w, e->mtime_ns);
  ms_put_str(w, e->path);
  ms_put_str(w, e->target);
}

static bool entry_ok(const ms_entry *e) {
  return e->type >= MS_ENTRY_FILE && e->type <= MS_ENTRY_OTHER && (e->mode & ~07777u) == 0 &&
         e->size <= INT64_MAX && e->mtime <= MTIME_LIMIT && e->mtime >= -MTIME_LIMIT &&
         e->mtime_ns < 1000000000u && (e->path[0] == '\0' || ms_entry_path_ok(e->path)) &&
         strlen(e->target) <= MS_PATH_MAX && (e->type == MS_ENTRY_SYMLINK || !e->target[0]);
}

void ms_get_entry(ms_reader *r, ms_entry *e) {
  e->type = ms_get_u32(r);
  e->mode = ms_get_u32(r);
  e->uid = ms_get_u32(r);
  e->gid = ms_get_u32(r);
  e->size = ms_get_u64(r);
  e->mtime = (int64_t)ms_get_u64(r);
  e->mtime_ns = ms_get_u32(r);
  e->path = ms_get_str(r);
  e->target = ms_get_str(r);
  if (!entry_ok(e))
    r->bad = true;
}

bool ms_entry_path_ok(const char *path) {
  if (strlen(path) > MS_PATH_MAX)
    return false;
  for (;;) {
    size_t length = strcspn(path, "/");
    bool dots =
        (length == 1 && path[0] == '.') || (length == 2 && path[0] == '.' && path[1] == '.');
    if (length == 0 || length > MS_NAME_MAX || dots)
      return false;
    if (path[length] == '\0')
      return true;
    path += length + 1;
  }
}

bool ms_entry_target_stays(const char *path, const char *target) {
  size_t depth = 0;
  for (const char *slash = path; (slash = strchr(slash, '/')); slash++)
    depth++;
  if (target[0] == '/' || target[0] == '\0')
    return false;
  bool named = false;
  for (const char *at = target; *at; at += at[0] == '/') {
    size_t length = strcspn(at, "/");
    if (length == 2 && at[0] == '.' && at[1] == '.') {
      if (named || depth == 0)
        return false;
      depth--;
    } else if (length > 0 && !(length == 1 && at[0] == '.')) {
      named = true;
    }
    at += length;
  }
  return true;
}

/* Records ------------------------------------------------------------------------------------- */

ssize_t ms_record_next(const char *data, size_t length, ms_record *record) {
  if (length < sizeof(uint32_t))
    return 0;
  uint32_t rest;
  memcpy(&rest, data, sizeof rest);
  if (rest < sizeof record->kind || rest > MS_RECORD_MAX - sizeof rest)
    return -EPROTO;
  if (length - sizeof rest < rest)
    return 0;
  memcpy(&record->kind, data + sizeof rest, sizeof record->kind);
  if (record->kind < MS_RECORD_ENTRY || record->kind >= MS_RECORD_LAST)
    return -EPROTO;
  record->body = (ms_reader){.data = data + MS_RECORD_HEADER, .length = rest - sizeof record->kind};
  return (ssize_t)(sizeof rest + rest);
}

size_t ms_record_begin(ms_writer *w, uint32_t kind) {
  size_t start = w->length;
  ms_put_u32(w, 0);
  ms_put_u32(w, kind);
  return start;
}

void ms_record_end(ms_writer *w, size_t start) {
  if (w->overflow)
    return;
  uint32_t rest = (uint32_t)(w->length - start - sizeof rest);
  memcpy(w->data + start, &rest, sizeof rest);
}

void ms_record_data_header(char header[MS_RECORD_HEADER], size_t length) {
  uint32_t rest = (uint32_t)(length + sizeof(uint32_t)), kind = MS_RECORD_DATA;
  memcpy(header, &rest, sizeof rest);
  memcpy(header + sizeof rest, &kind, sizeof kind);
}
