/* See chunked.h. One byte is one step, but for the data, which is skipped. */
#include "chunked.h"

#include <errno.h>

enum { MAX_DIGITS = 15 }; /* fits 64 bits with room to spare */

static int hex(char byte) {
  if (byte >= '0' && byte <= '9')
    return byte - '0';
  if (byte >= 'a' && byte <= 'f')
    return byte - 'a' + 10;
  if (byte >= 'A' && byte <= 'F')
    return byte - 'A' + 10;
  return -1;
}

static bool take_digit(ms_chunked *c, char byte) {
  int digit = hex(byte);
  if (digit < 0 || c->digits == MAX_DIGITS)
    return false;
  c->left = c->left * 16 + (uint64_t)digit;
  c->digits++;
  c->state = MS_CHUNK_DIGITS;
  return true;
}

static bool expect(ms_chunked *c, char byte, char expected, ms_chunked_state next) {
  c->state = next;
  return byte == expected;
}

/* False when the byte cannot be right. */
static bool step(ms_chunked *c, char byte) {
  switch (c->state) {
  case MS_CHUNK_SIZE:
    c->left = 0;
    c->digits = 0;
    return take_digit(c, byte);
  case MS_CHUNK_DIGITS:
    return byte == '\r' ? expect(c, byte, '\r', MS_CHUNK_SIZE_LF) : take_digit(c, byte);
  case MS_CHUNK_SIZE_LF:
    return expect(c, byte, '\n', c->left > 0 ? MS_CHUNK_DATA : MS_CHUNK_END_CR);
  case MS_CHUNK_DATA_CR:
    return expect(c, byte, '\r', MS_CHUNK_DATA_LF);
  case MS_CHUNK_DATA_LF:
    return expect(c, byte, '\n', MS_CHUNK_SIZE);
  case MS_CHUNK_END_CR:
    return expect(c, byte, '\r', MS_CHUNK_END_LF);
  case MS_CHUNK_END_LF:
    return expect(c, byte, '\n', MS_CHUNK_DONE);
  default:
    return false;
  }
}

ssize_t ms_chunked_pass(ms_chunked *c, const char *bytes, size_t count) {
  size_t at = 0;
  while (at < count && c->state != MS_CHUNK_DONE) {
    if (c->state != MS_CHUNK_DATA) {
      if (!step(c, bytes[at++]))
        return -EBADMSG;
      continue;
    }
    size_t run = count - at < c->left ? count - at : (size_t)c->left;
    at += run;
    c->left -= run;
    if (c->left == 0)
      c->state = MS_CHUNK_DATA_CR;
  }
  return (ssize_t)at;
}
