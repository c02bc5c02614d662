/* The root file system of a sandbox. Every function answers 0, or -1 and errno, or where it has
 * stages a negative errno and which. */
#ifndef MS_ROOT_H
#define MS_ROOT_H

#include <stdint.h>

/* One step of many: names it, and leaves the function when it fails. */
#define MS_STAGE(name, call)                                                                       \
  do {                                                                                             \
    *stage = name;                                                                                 \
    if ((call) < 0)                                                                                \
      return -errno;                                                                               \
  } while (0)

/* Builds it and makes it this process's, the host's gone from sight. */
int ms_root_build(const char **stage);
/* How many bytes and files all that is written may take. */
int ms_root_limit(uint64_t size, uint64_t inodes);
/* Makes read-only what only privilege could write: once nothing has to be written there any more.
 */
int ms_root_shut_proc(void);

/* Writes a whole file; `flags` as for open. */
int ms_write_text(const char *path, const char *text, int flags);

#endif
