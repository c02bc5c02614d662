/* The other end of pack.h: writes a tree from entries and bytes, below one directory. On the host
 * what arrives is hostile: `guarded` means that no link is ever passed through on the way to an
 * entry (so nothing is written outside of the root, whatever links the stream has made or found),
 * that links which lead out of the tree are left out, and that files are counted and limited.
 * Modes lose setuid, setgid and sticky; the owner can always read and write what was made. */
#ifndef MS_UNPACK_H
#define MS_UNPACK_H

#include "entry.h"
#include "place.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct ms_unpack {
  int root; /* owned: a directory, O_PATH is enough */
  bool guarded;
  uint64_t max_entries, max_bytes;
  uint64_t entries, bytes;
  uint64_t total_entries, total_bytes; /* what an MS_RECORD_TOTAL announced; 0: none did */
  int parent;                          /* owned: the directory of the last entry; -1: the root's */
  char path[MS_PATH_MAX + 1];          /* of the last entry */
  ms_place file;                       /* under way, until the next entry or the end */
  int reason;                          /* MS_UNPACK_FAILED: the other side's errno */
  /* Told of what is passed over, by either side; may be NULL. */
  void (*on_skip)(void *context, int error, const char *path);
  void *context;
} ms_unpack;

enum { MS_UNPACK_MORE = 0, MS_UNPACK_END = 1, MS_UNPACK_FAILED = 2 };

/* Takes over `root`. No limits until they are set. */
void ms_unpack_start(ms_unpack *u, int root, bool guarded);
void ms_unpack_end(ms_unpack *u);

/* One of the values above; or a negative errno, about `path`: -EFBIG past a limit, -EPROTO for a
 * stream that makes no sense. Call no more after anything but MS_UNPACK_MORE. */
int ms_unpack_record(ms_unpack *u, ms_record *record);

/* The same, for those who have the entry: makes it. A file is open for writing then (`file.fd`),
 * until the next entry or `ms_unpack_finish`. */
int ms_unpack_entry(ms_unpack *u, const ms_entry *e);
int ms_unpack_finish(ms_unpack *u);

#endif
