/* The files of a snapshot put back, from its records (entry.h), into a sandbox in which nothing
 * runs yet. What is made is made below one root and on one file system, the sandbox's own: no link
 * is followed on the way, and what lies where something is mounted is passed over, as it would be
 * covered. */
#ifndef MS_RESTORE_H
#define MS_RESTORE_H

#include "../entry.h"

#include <stdbool.h>
#include <sys/types.h>

/* A directory that what comes is in; it gets its mode and time when no more comes. */
typedef struct ms_restore_level {
  size_t length; /* of its path, which is the beginning of `path` */
  uint32_t mode;
  int64_t mtime;
  uint32_t mtime_ns;
} ms_restore_level;

typedef struct ms_restore {
  int root; /* owned: a directory */
  dev_t own;
  char *const *kept; /* borrowed: paths that stay as they are */
  int kept_count;
  uint64_t entries;

  char path[MS_PATH_MAX + 1]; /* of the last directory that was made */
  ms_restore_level *levels;   /* owned: those above it, and it */
  size_t depth, capacity;
  char covered[MS_PATH_MAX + 1]; /* a directory that is passed over with all below; "": none */
  char where[MS_PATH_MAX + 1];   /* the entry under way, for messages */

  int file;       /* owned: whose bytes are next; -1: none, or one that is passed over */
  bool due;       /* such bytes may come */
  uint64_t left;  /* so many at most */
  ms_entry entry; /* of that file; its strings are not kept */
} ms_restore;

enum { MS_RESTORE_MORE = 0, MS_RESTORE_END = 1 };

/* Takes over `root`, and looks which file system is to be written: that of `own`, below it. */
int ms_restore_start(ms_restore *r, int root, const char *own, char *const *kept, int kept_count);
void ms_restore_end(ms_restore *r);

/* Takes away what a new sandbox has by itself, so that what is put back is all there is. */
int ms_restore_clear(const ms_restore *r);

/* One of the values above; or a negative errno, about `where`: -EPROTO for what is no snapshot. */
int ms_restore_record(ms_restore *r, ms_record *record);

#endif
