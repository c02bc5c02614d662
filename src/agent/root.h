/* The root file system of a sandbox. Every function answers 0, or -1 and errno, or where it has
 * stages a negative errno and which. */
#ifndef MS_ROOT_H
#define MS_ROOT_H

#include "words.h"

#include <stdbool.h>
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
/* The same out of another root file system (image.c): a detached tree, which it takes over. */
int ms_image_build(int image, const char **stage);
/* The same root as bwrap is told to build it (bwrap.c), before the mounts of the host's. */
void ms_root_words(ms_words *w, uint64_t disk);
/* How many bytes and files all that is written may take; `at` is a mount of where it goes. */
int ms_root_limit(const char *at, uint64_t size, uint64_t inodes);
/* Makes read-only what only privilege could write: once nothing has to be written there any more.
 */
int ms_root_shut_proc(void);

/* A detached clone of a mount of the host, private, with what mount_setattr is to add; and its
 * place, which closes it. */
int ms_tree_clone(const char *path, uint64_t attributes, bool recursive);
int ms_tree_place(int tree, const char *path);

/* Writes a whole file; `flags` as for open. */
int ms_write_text(const char *path, const char *text, int flags);

#endif
