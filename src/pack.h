/* A directory tree as a stream of records (entry.h): an MS_RECORD_ENTRY for each directory, file
 * and link, a directory before what is in it, a file followed by its bytes; what is none of these,
 * or cannot be read, is an MS_RECORD_SKIPPED; MS_RECORD_END closes. Used by the worker that a
 * download reads from and by the host for an upload. */
#ifndef MS_PACK_H
#define MS_PACK_H

#include "entry.h"
#include "walk.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ms_pack {
  ms_walk walk;
  int file;      /* owned: whose bytes are next; -1: none */
  uint64_t left; /* how many of them: it is cut where it ended when it was opened */
  uint64_t entries, bytes;
  bool ended;
  /* Told of what is passed over; may be NULL. */
  void (*on_skip)(void *context, int error, const char *path);
  void *context;
} ms_pack;

/* Takes over `root`, a directory open for reading. */
int ms_pack_start(ms_pack *p, int root);
void ms_pack_end(ms_pack *p);
/* Fills a buffer of MS_RECORD_MAX bytes or more with whole records: its length; 0: the end. */
size_t ms_pack_read(ms_pack *p, char *buffer, size_t size);

/* How many entries and bytes a tree has now. Takes over `root`. */
int ms_pack_measure(int root, uint64_t *entries, uint64_t *bytes);

#endif
