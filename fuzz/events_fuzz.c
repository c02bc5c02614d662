/* links: src/net/lines.c src/net/base64.c src/buffer.c */
/* What servers say in a stream: lines, server-sent events, envelopes. However the bytes are cut
 * into pieces, the items must be the same, within their bounds; and all memory is given back. The
 * first byte chooses the reader, the second how the bytes are cut. */
#include "../src/net/base64.h"
#include "../src/net/lines.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX 64 /* of an item: small, so that it is met */

/* What was read, as one number. */
typedef struct seen {
  uint64_t hash, items;
  int error;
} seen;

static void see(seen *s, ms_run run) {
  if (run.length > 1024 * 1024)
    abort();
  for (size_t i = 0; i < run.length; i++)
    s->hash = (s->hash ^ (unsigned char)run.data[i]) * 1099511628211u;
  s->hash = (s->hash ^ run.length) * 1099511628211u;
}

static void check(bool right) {
  if (!right)
    abort();
}

/* Cuts off the next piece. */
static size_t piece(uint32_t *state, size_t left) {
  *state = *state * 1664525u + 1013904223u;
  size_t size = 1 + (*state >> 24) % 7;
  return *state == 0 || size > left ? left : size;
}

typedef union reader {
  ms_lines lines;
  ms_sse sse;
  ms_envelopes envelopes;
} reader;

static bool feed(int kind, reader *r, const char *bytes, size_t count) {
  return kind == 0   ? ms_lines_feed(&r->lines, bytes, count)
         : kind == 1 ? ms_sse_feed(&r->sse, bytes, count)
                     : ms_envelopes_feed(&r->envelopes, bytes, count);
}

/* One item: what `next` answered. */
static int take(int kind, reader *r, seen *s) {
  int got;
  if (kind == 0) {
    ms_run line;
    got = ms_lines_next(&r->lines, &line);
    if (got > 0) {
      check(line.length <= MAX && !memchr(line.data, '\n', line.length));
      see(s, line);
    }
  } else if (kind == 1) {
    ms_event event;
    got = ms_sse_next(&r->sse, &event);
    if (got > 0) {
      check(event.data.length <= 3 * MAX && event.retry >= -1);
      see(s, event.data);
      see(s, event.type);
      see(s, event.id);
    }
  } else {
    ms_run message;
    unsigned flags;
    got = ms_envelopes_next(&r->envelopes, &flags, &message);
    if (got > 0) {
      check(message.length <= MAX && flags < 256);
      see(s, message);
    }
  }
  s->items += got > 0;
  return got;
}

static seen read_all(int kind, const char *bytes, size_t count, bool whole, uint32_t cut) {
  seen s = {.hash = 14695981039346656037u};
  reader r;
  memset(&r, 0, sizeof r);
  if (kind == 0)
    r.lines.max = MAX;
  else if (kind == 1)
    ms_sse_init(&r.sse, MAX);
  else
    r.envelopes.max = MAX;
  while (count > 0 && s.error == 0) {
    size_t size = whole ? count : piece(&cut, count);
    check(feed(kind, &r, bytes, size));
    bytes += size;
    count -= size;
    int got;
    while ((got = take(kind, &r, &s)) > 0)
      continue;
    s.error = got;
  }
  ms_run rest;
  if (kind == 0 && s.error == 0 && ms_lines_rest(&r.lines, &rest))
    see(&s, rest);
  if (kind == 2 && s.error == 0)
    s.hash ^= ms_envelopes_rest(&r.envelopes);
  if (kind == 0)
    ms_lines_free(&r.lines);
  else if (kind == 1)
    ms_sse_free(&r.sse);
  else
    ms_envelopes_free(&r.envelopes);
  return s;
}

static void try_base64(const char *bytes, size_t count) {
  unsigned char *decoded = malloc(count / 4 * 3 + 3);
  char *text = malloc(ms_base64_size(count) + 1);
  unsigned char *back = malloc(ms_base64_size(count) / 4 * 3 + 3);
  check(decoded && text && back);
  long size = ms_base64_decode(bytes, count, decoded);
  check(size >= -1 && size <= (long)(count / 4 * 3 + 3));
  ms_base64_encode((const unsigned char *)bytes, count, text);
  check(ms_base64_decode(text, ms_base64_size(count), back) == (long)count);
  check(count == 0 || memcmp(back, bytes, count) == 0);
  free(decoded);
  free(text);
  free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2)
    return 0;
  int kind = data[0] % 3;
  const char *bytes = (const char *)data + 2;
  seen whole = read_all(kind, bytes, size - 2, true, 0);
  seen cut = read_all(kind, bytes, size - 2, false, data[1]);
  /* Past an error the two need not agree: what is too large is found before its end is there. */
  if (whole.error == 0)
    check(cut.error == 0 && whole.hash == cut.hash && whole.items == cut.items);
  check(ms_utf8_check(bytes, size - 2) <= size - 2);
  try_base64(bytes, size - 2);
  return 0;
}
