/* Two places for bytes. A *buffer* is a queue: filled at the end, taken from the front. An
 * *excerpt* keeps the first and the last half of more bytes than it has room for. */
#ifndef MS_BUFFER_H
#define MS_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ms_buffer {
  char *data; /* owned */
  size_t start, length, capacity;
} ms_buffer;

/* Room for `count` bytes at the end, NULL when there is no memory; then as many as were used. */
char *ms_buffer_reserve(ms_buffer *b, size_t count);
void ms_buffer_commit(ms_buffer *b, size_t count);
/* Both, for bytes that are somewhere. */
bool ms_buffer_append(ms_buffer *b, const void *bytes, size_t count);
const char *ms_buffer_front(const ms_buffer *b);
/* Drops `count` bytes from the front. */
void ms_buffer_consume(ms_buffer *b, size_t count);
void ms_buffer_free(ms_buffer *b);

typedef struct ms_excerpt {
  char *data; /* owned */
  size_t limit, capacity;
  uint64_t total; /* bytes offered so far */
} ms_excerpt;

/* Where the next bytes go: a run of at least one and at most `wish` bytes; 0 when there is no
 * memory or the limit is 0. */
size_t ms_excerpt_reserve(ms_excerpt *e, size_t wish, char **run);
void ms_excerpt_commit(ms_excerpt *e, size_t count);
bool ms_excerpt_append(ms_excerpt *e, const char *bytes, size_t count);
/* The kept bytes in up to three runs, in order. `dropped` bytes are missing after `dropped_at`. */
typedef struct ms_runs {
  const char *data[3];
  size_t length[3];
  uint64_t dropped;
  size_t dropped_at;
} ms_runs;
ms_runs ms_excerpt_runs(const ms_excerpt *e);
void ms_excerpt_free(ms_excerpt *e);

#endif
