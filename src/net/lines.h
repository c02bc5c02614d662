/* What servers say in a stream, cut into items. Bytes are fed as they come, in pieces of any size;
 * items are taken out. Nothing here knows Lua or a network; all of it is fuzzed.
 *
 * `next` answers 1 (an item), 0 (more bytes are needed), or a negative errno: -EMSGSIZE for an item
 * over `max`, -ENOMEM. What an item points to holds until the next call. */
#ifndef MS_LINES_H
#define MS_LINES_H

#include "../buffer.h"

/* A run of bytes in somebody's buffer. */
typedef struct ms_run {
  const char *data;
  size_t length;
} ms_run;

/* Lines, each ended by LF, CR or CRLF. The LF of a CRLF may come much later: a CR ends its line at
 * once, and an LF right after it is dropped. */
typedef struct ms_lines {
  ms_buffer in;   /* fed, not yet taken */
  size_t max;     /* of a line */
  size_t scanned; /* of `in`: bytes known to hold no end of line */
  size_t taken;   /* of `in`: the line that was given last, and its end */
  bool after_cr;
} ms_lines;

/* False when there is no memory. */
bool ms_lines_feed(ms_lines *l, const char *bytes, size_t count);
int ms_lines_next(ms_lines *l, ms_run *line);
/* The last line, without an end: 1, or 0 when there is none. For the end of the bytes. */
int ms_lines_rest(ms_lines *l, ms_run *line);
void ms_lines_free(ms_lines *l);

/* Server-sent events, as the WHATWG standard reads them. */
typedef struct ms_sse {
  ms_lines lines;
  ms_buffer data, type, id;
  long retry;   /* milliseconds, -1 when no event has said */
  bool begun;   /* past the first line, where a byte order mark may be */
  bool emitted; /* `data` and `type` are of an event that was given */
} ms_sse;

typedef struct ms_event {
  ms_run data, type, id; /* type: empty for "message" */
  long retry;
} ms_event;

void ms_sse_init(ms_sse *s, size_t max);
bool ms_sse_feed(ms_sse *s, const char *bytes, size_t count);
int ms_sse_next(ms_sse *s, ms_event *event);
void ms_sse_free(ms_sse *s);

/* Envelopes of the Connect and gRPC protocols: a byte of flags, four of length, the message. */
typedef struct ms_envelopes {
  ms_buffer in;
  size_t max;   /* of a message */
  size_t taken; /* of `in`: the envelope that was given last */
} ms_envelopes;

bool ms_envelopes_feed(ms_envelopes *e, const char *bytes, size_t count);
int ms_envelopes_next(ms_envelopes *e, unsigned *flags, ms_run *message);
/* How many bytes of an unfinished envelope are there. */
size_t ms_envelopes_rest(ms_envelopes *e);
void ms_envelopes_free(ms_envelopes *e);

/* Where the first byte is that is not UTF-8 (no surrogates, nothing overlong); `count`: nowhere. */
size_t ms_utf8_check(const char *bytes, size_t count);

#endif
