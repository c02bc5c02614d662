/* links: src/chunked.c */
/* A body in chunks, cut into pieces in two ways: both must agree on where it ends, or that it
 * cannot be one; and what passes must be a body when it is read again from its start. */
#include "chunked.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition))                                                                              \
      abort();                                                                                     \
  } while (0)

/* How many bytes passed, or -1. */
static ssize_t pass(const char *bytes, size_t size, size_t piece, bool *done) {
  ms_chunked c = {0};
  size_t total = 0;
  while (total < size && c.state != MS_CHUNK_DONE) {
    size_t count = size - total < piece ? size - total : piece;
    ssize_t passed = ms_chunked_pass(&c, bytes + total, count);
    if (passed < 0)
      return -1;
    MUST((size_t)passed == count || c.state == MS_CHUNK_DONE);
    total += (size_t)passed;
  }
  *done = c.state == MS_CHUNK_DONE;
  return (ssize_t)total;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  if (size < 1)
    return 0;
  const char *text = (const char *)bytes + 1;
  bool whole = false, pieces = false, again = false;
  ssize_t first = pass(text, size - 1, size, &whole);
  ssize_t second = pass(text, size - 1, (size_t)(bytes[0] % 7) + 1, &pieces);
  MUST(first == second && whole == pieces);
  if (first >= 0 && whole) {
    MUST(first >= 5 && memcmp(text + first - 4, "\r\n\r\n", 4) == 0);
    MUST(pass(text, (size_t)first, size, &again) == first && again);
  }
  return 0;
}
