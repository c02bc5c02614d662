/* A walk over a directory tree: each directory before what is in it, links not followed, without
 * recursion. Holds some 16 descriptors and 200 KiB at most, whatever the tree looks like: deeper
 * down, the directories above are closed, and found again through ".." (and by their path where
 * somebody has moved what was being read), checked by device and inode. Shared by the agent's
 * workers and the host. */
#ifndef MS_WALK_H
#define MS_WALK_H

#include "entry.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MS_WALK_OPEN 16 /* directories held open */

/* A directory on the way from the root to where the walk is. */
typedef struct ms_walk_frame {
  dev_t dev;
  ino_t ino;
  int64_t position;   /* behind the last entry that was taken, for lseek; -1: read no more */
  size_t path_length; /* of the directory's own path */
  uint64_t mark;      /* the caller's */
} ms_walk_frame;

typedef struct ms_walk_slot {
  int fd;       /* owned, but for the root's */
  size_t depth; /* of the directory that is in it; only if fd >= 0 */
  size_t at, length;
  char buffer[8 * 1024] __attribute__((aligned(8)));
} ms_walk_slot;

typedef struct ms_walk {
  int root; /* owned */
  size_t depth;
  ms_walk_frame *frames; /* owned; `depth` + 1 are in use */
  size_t capacity;
  ms_walk_slot *slots; /* owned: MS_WALK_OPEN of them; a directory's is that of its depth, modulo */

  /* What `next` has found. */
  const char *name;
  char path[MS_PATH_MAX + 1]; /* from the root; a failure's: the directory that cannot be read */
  unsigned char kind;         /* DT_DIR …, or DT_UNKNOWN */
  uint64_t mark;              /* of the directory that it is in */
} ms_walk;

/* Takes over `root`, a directory open for reading; closes it also when it fails (-ENOMEM). */
int ms_walk_start(ms_walk *w, int root);
void ms_walk_end(ms_walk *w);

/* 1: an entry; 0: the end; a negative errno: something in `path` was passed over, call again. */
int ms_walk_next(ms_walk *w);
/* The directory that the entry is in. */
int ms_walk_here(const ms_walk *w);
/* Makes the next call go into the entry, with `mark`; not into the kernel's own file systems from
 * outside of them. 0, or a negative errno: it is not a directory, or cannot be read. */
int ms_walk_enter(ms_walk *w, uint64_t mark);
/* The entry's type and the rest; for a link with its target, read into `target`. */
int ms_walk_describe(const ms_walk *w, ms_entry *e, char target[MS_PATH_MAX + 1]);

/* Whether a file belongs to procfs, sysfs and the like, where reading may have effects, take
 * forever, or tell of the reader. */
bool ms_is_virtual(int fd);

/* openat2 and getdents64, which the C library lacks or hides. */
int ms_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
/* What gets it past the filter of an agent (agent/setid.c), in a register that the kernel ignores.
 */
void ms_openat2_unlock(uint64_t key);

#endif
