#include "buffer.h"

#include <stdlib.h>
#include <string.h>

enum { SMALLEST = 4096 };

/* Buffer -------------------------------------------------------------------------------------- */

char *ms_buffer_reserve(ms_buffer *b, size_t count) {
  if (b->start > 0 && b->capacity - b->start - b->length < count) {
    memmove(b->data, b->data + b->start, b->length);
    b->start = 0;
  }
  if (b->capacity - b->start - b->length < count) {
    size_t capacity = b->capacity ? b->capacity : SMALLEST;
    while (capacity - b->length < count)
      capacity *= 2;
    char *grown = realloc(b->data, capacity);
    if (!grown)
      return NULL;
    b->data = grown;
    b->capacity = capacity;
  }
  return b->data + b->start + b->length;
}

void ms_buffer_commit(ms_buffer *b, size_t count) {
  b->length += count;
}

bool ms_buffer_append(ms_buffer *b, const void *bytes, size_t count) {
  if (count == 0)
    return true;
  char *run = ms_buffer_reserve(b, count);
  if (!run)
    return false;
  memcpy(run, bytes, count);
  ms_buffer_commit(b, count);
  return true;
}

const char *ms_buffer_front(const ms_buffer *b) {
  return b->data ? b->data + b->start : "";
}

void ms_buffer_consume(ms_buffer *b, size_t count) {
  b->start += count;
  b->length -= count;
  if (b->length == 0)
    b->start = 0;
}

void ms_buffer_free(ms_buffer *b) {
  free(b->data);
  *b = (ms_buffer){0};
}

/* Excerpt ------------------------------------------------------------------------------------- */

/* The first half of the limit holds the head; the rest is a ring for the tail. Until the limit is
 * reached the ring has not gone round, so the bytes simply lie one after the other. */
static size_t excerpt_half(const ms_excerpt *e) {
  return e->limit / 2;
}

static size_t excerpt_position(const ms_excerpt *e, uint64_t offset) {
  size_t half = excerpt_half(e);
  if (offset < e->limit)
    return (size_t)offset;
  return half + (size_t)((offset - half) % (e->limit - half));
}

static bool excerpt_grow(ms_excerpt *e, size_t needed) {
  if (needed <= e->capacity)
    return true;
  size_t capacity = e->capacity ? e->capacity : SMALLEST;
  while (capacity < needed)
    capacity *= 2;
  if (capacity > e->limit)
    capacity = e->limit;
  char *grown = realloc(e->data, capacity);
  if (!grown)
    return false;
  e->data = grown;
  e->capacity = capacity;
  return true;
}

size_t ms_excerpt_reserve(ms_excerpt *e, size_t wish, char **run) {
  if (e->limit == 0 || wish == 0)
    return 0;
  size_t at = excerpt_position(e, e->total);
  size_t room = e->limit - at;
  if (room > wish)
    room = wish;
  if (!excerpt_grow(e, at + room))
    return 0;
  *run = e->data + at;
  return room;
}

void ms_excerpt_commit(ms_excerpt *e, size_t count) {
  e->total += count;
}

bool ms_excerpt_append(ms_excerpt *e, const char *bytes, size_t count) {
  if (e->limit == 0) {
    e->total += count;
    return true;
  }
  while (count > 0) {
    char *run;
    size_t room = ms_excerpt_reserve(e, count, &run);
    if (room == 0)
      return false;
    memcpy(run, bytes, room);
    ms_excerpt_commit(e, room);
    bytes += room;
    count -= room;
  }
  return true;
}

ms_runs ms_excerpt_runs(const ms_excerpt *e) {
  ms_runs runs = {{NULL, NULL, NULL}, {0, 0, 0}, 0, 0};
  runs.data[0] = e->data;
  if (e->total <= e->limit) {
    runs.length[0] = (size_t)e->total;
    return runs;
  }
  size_t half = excerpt_half(e);
  runs.length[0] = runs.dropped_at = half;
  runs.dropped = e->total - e->limit;
  if (e->limit > half) {
    size_t oldest = excerpt_position(e, e->total); /* the next to be overwritten */
    runs.data[1] = e->data + oldest;
    runs.length[1] = e->limit - oldest;
    runs.data[2] = e->data + half;
    runs.length[2] = oldest - half;
  }
  return runs;
}

void ms_excerpt_free(ms_excerpt *e) {
  free(e->data);
  e->data = NULL;
  e->capacity = 0;
  e->total = 0;
}
