#include "unpack.h"
#include "walk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <unistd.h>

void ms_unpack_start(ms_unpack *u, int root, bool guarded) {
  *u = (ms_unpack){.root = root,
                   .guarded = guarded,
                   .max_entries = UINT64_MAX,
                   .max_bytes = UINT64_MAX,
                   .parent = -1,
                   .file = MS_PLACE_NONE};
}

void ms_unpack_end(ms_unpack *u) {
  ms_place_abort(&u->file);
  if (u->parent >= 0)
    close(u->parent);
  if (u->root >= 0)
    close(u->root);
  u->parent = u->root = -1;
}

static void unpack_skip(ms_unpack *u, int error, const char *path) {
  if (u->on_skip)
    u->on_skip(u->context, error, path);
}

static const char *name_in(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

static int count(ms_unpack *u, uint64_t entries, uint64_t bytes) {
  if (entries > u->max_entries - u->entries || bytes > u->max_bytes - u->bytes)
    return -EFBIG;
  u->entries += entries;
  u->bytes += bytes;
  return 0;
}

/* The directory that an entry goes into: kept open, as the next entry's is mostly the same. */
static int unpack_parent(ms_unpack *u, const char *path) {
  size_t length = (size_t)(name_in(path) - path), last = (size_t)(name_in(u->path) - u->path);
  if (length == 0)
    return u->root;
  if (u->parent >= 0 && length == last && memcmp(path, u->path, length) == 0)
    return u->parent;
  char directory[MS_PATH_MAX + 1];
  memcpy(directory, path, length - 1);
  directory[length - 1] = '\0';
  if (u->parent >= 0)
    close(u->parent);
  uint64_t resolve = RESOLVE_NO_MAGICLINKS;
  if (u->guarded)
    resolve |= RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  u->parent = ms_openat2(u->root, directory, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, resolve);
  return u->parent >= 0 ? u->parent : -errno;
}

static int make_directory(ms_unpack *u, int parent, const char *name, mode_t mode) {
  if (mkdirat(parent, name, mode) == 0)
    return 0;
  struct stat st;
  if (errno != EEXIST)
    return -errno;
  if (fstatat(parent, name, &st, u->guarded ? AT_SYMLINK_NOFOLLOW : 0) < 0)
    return -errno;
  return S_ISDIR(st.st_mode) ? 0 : S_ISLNK(st.st_mode) ? -ELOOP : -ENOTDIR;
}

int ms_unpack_finish(ms_unpack *u) {
  return u->file.fd < 0 ? 0 : ms_place_commit(&u->file, name_in(u->path));
}

int ms_unpack_entry(ms_unpack *u, const ms_entry *e) {
  int error = ms_unpack_finish(u);
  if (error < 0)
    return error;
  if (!ms_entry_path_ok(e->path))
    return -EPROTO;
  int parent = unpack_parent(u, e->path);
  strcpy(u->path, e->path); /* ms_entry_path_ok: it fits */
  error = count(u, 1, 0);
  if (parent < 0 || error < 0)
    return parent < 0 ? parent : error;
  const char *name = name_in(u->path);
  mode_t mode = e->mode & 0777;
  switch (e->type) {
  case MS_ENTRY_DIRECTORY:
    return make_directory(u, parent, name, mode | 0700);
  case MS_ENTRY_FILE:
    return ms_place_open(&u->file, parent, mode | 0600);
  case MS_ENTRY_SYMLINK:
    if (!u->guarded || ms_entry_target_stays(e->path, e->target))
      return ms_link_at(parent, name, e->target);
    unpack_skip(u, EXDEV, e->path);
    return 0;
  default:
    return -EPROTO;
  }
}

static int unpack_data(ms_unpack *u, const ms_reader *body) {
  if (u->file.fd < 0)
    return -EPROTO;
  int error = count(u, 0, body->length);
  return error < 0 ? error : ms_write_all(u->file.fd, body->data, body->length);
}

int ms_unpack_record(ms_unpack *u, ms_record *record) {
  ms_reader *body = &record->body;
  ms_entry e;
  int error;
  switch (record->kind) {
  case MS_RECORD_ENTRY:
    ms_get_entry(body, &e);
    return ms_get_end(body) ? ms_unpack_entry(u, &e) : -EPROTO;
  case MS_RECORD_DATA:
    return unpack_data(u, body);
  case MS_RECORD_TOTAL:
    u->total_entries = ms_get_u64(body);
    u->total_bytes = ms_get_u64(body);
    return ms_get_end(body) ? 0 : -EPROTO;
  case MS_RECORD_END:
    ms_get_u64(body);
    error = ms_get_end(body) ? ms_unpack_finish(u) : -EPROTO;
    return error < 0 ? error : MS_UNPACK_END;
  case MS_RECORD_HOLE:
  case MS_RECORD_LINK:
  case MS_RECORD_EVENT:
  case MS_RECORD_MATCH:
    return -EPROTO; /* of others */
  default: {        /* SKIPPED, FAILED */
    int reason = (int)ms_get_u32(body);
    const char *path = ms_get_str(body);
    if (!ms_get_end(body) || strlen(path) > MS_PATH_MAX || reason <= 0)
      return -EPROTO;
    if (record->kind == MS_RECORD_SKIPPED) {
      if (strcmp(path, u->path) == 0)
        ms_place_abort(&u->file); /* it could not be read to its end */
      error = count(u, 1, 0);
      unpack_skip(u, reason, path);
      return error;
    }
    strcpy(u->path, path);
    u->reason = reason;
    return MS_UNPACK_FAILED;
  }
  }
}
