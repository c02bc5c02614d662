/* Lines, server-sent events, envelopes, UTF-8 (see lines.h). */
#include "lines.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

static ms_run run_of(const ms_buffer *b) {
  return (ms_run){ms_buffer_front(b), b->length};
}

static void clear(ms_buffer *b) {
  ms_buffer_consume(b, b->length);
}

/* Lines --------------------------------------------------------------------------------------- */

bool ms_lines_feed(ms_lines *l, const char *bytes, size_t count) {
  return ms_buffer_append(&l->in, bytes, count);
}

/* Forgets the line that was given last, and the LF of its CRLF. */
static void lines_advance(ms_lines *l) {
  ms_buffer_consume(&l->in, l->taken);
  l->taken = 0;
  if (l->after_cr && l->in.length > 0) {
    if (*ms_buffer_front(&l->in) == '\n')
      ms_buffer_consume(&l->in, 1);
    l->after_cr = false;
  }
}

/* The first CR or LF of a run, or NULL. Nearly all streams have LF alone: so the CR is looked for
 * only before it. */
static const char *find_end(const char *from, size_t count) {
  const char *lf = memchr(from, '\n', count);
  const char *cr = memchr(from, '\r', lf ? (size_t)(lf - from) : count);
  return cr ? cr : lf;
}

int ms_lines_next(ms_lines *l, ms_run *line) {
  lines_advance(l);
  const char *front = ms_buffer_front(&l->in);
  size_t rest = l->in.length - l->scanned;
  const char *end = rest > 0 ? find_end(front + l->scanned, rest) : NULL;
  size_t length = end ? (size_t)(end - front) : l->in.length;
  if (length > l->max)
    return -EMSGSIZE;
  if (!end) {
    l->scanned = length;
    return 0;
  }
  l->scanned = 0;
  l->taken = length + 1;
  l->after_cr = *end == '\r';
  *line = (ms_run){front, length};
  return 1;
}

int ms_lines_rest(ms_lines *l, ms_run *line) {
  lines_advance(l);
  if (l->in.length == 0)
    return 0;
  *line = run_of(&l->in);
  l->taken = l->in.length;
  l->scanned = 0;
  return 1;
}

void ms_lines_free(ms_lines *l) {
  ms_buffer_free(&l->in);
}

/* Server-sent events -------------------------------------------------------------------------- */

void ms_sse_init(ms_sse *s, size_t max) {
  *s = (ms_sse){.lines = {.max = max}, .retry = -1};
}

bool ms_sse_feed(ms_sse *s, const char *bytes, size_t count) {
  return ms_lines_feed(&s->lines, bytes, count);
}

static bool is(ms_run run, const char *word) {
  return run.length == strlen(word) && memcmp(run.data, word, run.length) == 0;
}

static bool set(ms_buffer *b, ms_run value) {
  clear(b);
  return ms_buffer_append(b, value.data, value.length);
}

/* Digits alone count; what is past a day is a day. */
static void set_retry(ms_sse *s, ms_run value) {
  long number = 0;
  for (size_t i = 0; i < value.length; i++) {
    if (value.data[i] < '0' || value.data[i] > '9')
      return;
    number = number < 86400000 ? number * 10 + (value.data[i] - '0') : number;
  }
  if (value.length > 0)
    s->retry = number < 86400000 ? number : 86400000;
}

/* One line that is not empty: 0 or a negative errno. */
static int sse_field(ms_sse *s, ms_run line) {
  const char *colon = memchr(line.data, ':', line.length);
  ms_run name = line, value = {line.data, 0};
  if (colon) {
    name.length = (size_t)(colon - line.data);
    value = (ms_run){colon + 1, line.length - name.length - 1};
    if (value.length > 0 && *value.data == ' ')
      value = (ms_run){value.data + 1, value.length - 1};
  }
  bool done = true;
  if (is(name, "data")) {
    if (s->data.length + value.length > s->lines.max)
      return -EMSGSIZE;
    done =
        ms_buffer_append(&s->data, value.data, value.length) && ms_buffer_append(&s->data, "\n", 1);
  } else if (is(name, "event")) {
    done = set(&s->type, value);
  } else if (is(name, "id")) {
    if (value.length == 0 || !memchr(value.data, '\0', value.length))
      done = set(&s->id, value);
  } else if (is(name, "retry")) {
    set_retry(s, value);
  }
  return done ? 0 : -ENOMEM;
}

static void skip_mark(ms_sse *s, ms_run *line) {
  if (!s->begun && line->length >= 3 && memcmp(line->data, "\xef\xbb\xbf", 3) == 0)
    *line = (ms_run){line->data + 3, line->length - 3};
  s->begun = true;
}

int ms_sse_next(ms_sse *s, ms_event *event) {
  if (s->emitted) {
    clear(&s->data);
    clear(&s->type);
    s->emitted = false;
  }
  ms_run line;
  int got;
  while ((got = ms_lines_next(&s->lines, &line)) > 0) {
    skip_mark(s, &line);
    if (line.length > 0) {
      int error = sse_field(s, line);
      if (error)
        return error;
    } else if (s->data.length == 0) {
      clear(&s->type);
    } else {
      s->emitted = true;
      *event = (ms_event){run_of(&s->data), run_of(&s->type), run_of(&s->id), s->retry};
      event->data.length--; /* the newline after the last line of data */
      return 1;
    }
  }
  return got;
}

void ms_sse_free(ms_sse *s) {
  ms_lines_free(&s->lines);
  ms_buffer_free(&s->data);
  ms_buffer_free(&s->type);
  ms_buffer_free(&s->id);
}

/* Envelopes ----------------------------------------------------------------------------------- */

#define ENVELOPE_HEADER 5

bool ms_envelopes_feed(ms_envelopes *e, const char *bytes, size_t count) {
  return ms_buffer_append(&e->in, bytes, count);
}

static void envelopes_advance(ms_envelopes *e) {
  ms_buffer_consume(&e->in, e->taken);
  e->taken = 0;
}

int ms_envelopes_next(ms_envelopes *e, unsigned *flags, ms_run *message) {
  envelopes_advance(e);
  if (e->in.length < ENVELOPE_HEADER)
    return 0;
  const unsigned char *head = (const unsigned char *)ms_buffer_front(&e->in);
  size_t length = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
  if (length > e->max)
    return -EMSGSIZE;
  if (e->in.length - ENVELOPE_HEADER < length)
    return 0;
  *flags = head[0];
  *message = (ms_run){(const char *)head + ENVELOPE_HEADER, length};
  e->taken = ENVELOPE_HEADER + length;
  return 1;
}

size_t ms_envelopes_rest(ms_envelopes *e) {
  envelopes_advance(e);
  return e->in.length;
}

void ms_envelopes_free(ms_envelopes *e) {
  ms_buffer_free(&e->in);
}

/* UTF-8 --------------------------------------------------------------------------------------- */

/* The length of the character that begins here, or 0. Smallest and largest second byte are what
 * keeps out overlong forms, surrogates and what is past U+10FFFF. */
static size_t character(const unsigned char *s, size_t left) {
  unsigned char lead = s[0], low = 0x80, high = 0xbf;
  size_t length;
  if (lead < 0x80)
    return 1;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    low = lead == 0xe0 ? 0xa0 : low;
    high = lead == 0xed ? 0x9f : high;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    low = lead == 0xf0 ? 0x90 : low;
    high = lead == 0xf4 ? 0x8f : high;
  } else {
    return 0;
  }
  if (length > left || s[1] < low || s[1] > high)
    return 0;
  for (size_t i = 2; i < length; i++) {
    if ((s[i] & 0xc0) != 0x80)
      return 0;
  }
  return length;
}

size_t ms_utf8_check(const char *bytes, size_t count) {
  const unsigned char *s = (const unsigned char *)bytes;
  size_t at = 0;
  while (at < count) {
    uint64_t word;
    if (count - at >= sizeof word) { /* eight at once, while they are ASCII */
      memcpy(&word, s + at, sizeof word);
      if ((word & UINT64_C(0x8080808080808080)) == 0) {
        at += sizeof word;
        continue;
      }
    }
    size_t length = character(s + at, count - at);
    if (length == 0)
      return at;
    at += length;
  }
  return count;
}
