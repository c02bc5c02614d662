#include "pack.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* No other record is longer: the numbers, and two paths with their lengths and ends. */
#define LONGEST_ENTRY (MS_RECORD_HEADER + 64 + 2 * (MS_PATH_MAX + 5))

int ms_pack_start(ms_pack *p, int root) {
  *p = (ms_pack){.file = -1};
  return ms_walk_start(&p->walk, root);
}

void ms_pack_end(ms_pack *p) {
  if (p->file >= 0)
    close(p->file);
  p->file = -1;
  ms_walk_end(&p->walk);
}

static void pack_skip(ms_pack *p, ms_writer *out, int error) {
  size_t start = ms_record_begin(out, MS_RECORD_SKIPPED);
  ms_put_u32(out, (uint32_t)-error);
  ms_put_str(out, p->walk.path);
  ms_record_end(out, start);
  if (p->on_skip)
    p->on_skip(p->context, -error, p->walk.path);
}

/* Opens a file that is one: nothing that blocks, or has effects when it is opened or read. */
static int open_plain(const ms_walk *w, ms_entry *e) {
  int fd =
      openat(ms_walk_here(w), w->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  struct stat st;
  if (fd < 0)
    return -errno;
  if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || ms_is_virtual(fd)) {
    close(fd);
    return -EOPNOTSUPP;
  }
  const char *path = e->path;
  ms_entry_from_stat(e, &st);
  e->path = path;
  return fd;
}

static void pack_entry(ms_pack *p, ms_writer *out) {
  char target[MS_PATH_MAX + 1];
  ms_entry e;
  int error = ms_walk_describe(&p->walk, &e, target);
  if (error == 0 && e.type == MS_ENTRY_OTHER)
    error = -EOPNOTSUPP;
  if (error == 0 && e.type == MS_ENTRY_FILE) {
    int fd = open_plain(&p->walk, &e);
    if (fd < 0)
      error = fd;
    else
      p->file = fd, p->left = e.size;
  }
  if (error < 0) {
    pack_skip(p, out, error);
    return;
  }
  size_t start = ms_record_begin(out, MS_RECORD_ENTRY);
  ms_put_entry(out, &e);
  ms_record_end(out, start);
  p->entries++;
  if (e.type == MS_ENTRY_DIRECTORY) {
    error = ms_walk_enter(&p->walk, 0);
    if (error < 0)
      pack_skip(p, out, error);
  }
}

/* The next bytes of the file under way. */
static void pack_data(ms_pack *p, ms_writer *out) {
  size_t room = out->capacity - out->length - MS_RECORD_HEADER;
  if (room > MS_RECORD_DATA_MAX)
    room = MS_RECORD_DATA_MAX;
  if (room > p->left)
    room = (size_t)p->left;
  char *at = out->data + out->length;
  ssize_t length = room > 0 ? read(p->file, at + MS_RECORD_HEADER, room) : 0;
  if (length < 0 && errno == EINTR)
    return;
  if (length <= 0) {
    int error = length < 0 ? -errno : 0;
    close(p->file);
    p->file = -1;
    if (error < 0)
      pack_skip(p, out, error);
    return;
  }
  ms_record_data_header(at, (size_t)length);
  out->length += MS_RECORD_HEADER + (size_t)length;
  p->left -= (uint64_t)length;
  p->bytes += (uint64_t)length;
}

size_t ms_pack_read(ms_pack *p, char *buffer, size_t size) {
  ms_writer out = {.data = buffer, .capacity = size};
  while (!p->ended && out.capacity - out.length >= 2 * LONGEST_ENTRY) {
    if (p->file >= 0) {
      pack_data(p, &out);
      continue;
    }
    int found = ms_walk_next(&p->walk);
    if (found > 0) {
      pack_entry(p, &out);
    } else if (found < 0) {
      pack_skip(p, &out, found);
    } else {
      size_t start = ms_record_begin(&out, MS_RECORD_END);
      ms_put_u64(&out, p->entries);
      ms_record_end(&out, start);
      p->ended = true;
    }
  }
  return out.length;
}

int ms_pack_measure(int root, uint64_t *entries, uint64_t *bytes) {
  ms_walk walk;
  int found = ms_walk_start(&walk, root);
  if (found < 0)
    return found;
  *entries = *bytes = 0;
  while ((found = ms_walk_next(&walk)) != 0) {
    char target[MS_PATH_MAX + 1];
    ms_entry e;
    if (found < 0 || ms_walk_describe(&walk, &e, target) < 0 || e.type == MS_ENTRY_OTHER)
      continue;
    ++*entries;
    if (e.type == MS_ENTRY_FILE)
      *bytes += e.size;
    else if (e.type == MS_ENTRY_DIRECTORY)
      ms_walk_enter(&walk, 0); /* what cannot be read is not counted */
  }
  ms_walk_end(&walk);
  return 0;
}
