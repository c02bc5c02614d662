/* Where the body of an HTTP request ends that comes in chunks (RFC 9112, 7.1). Strict: what two
 * readers could understand differently is refused. */
#ifndef MS_CHUNKED_H
#define MS_CHUNKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef enum ms_chunked_state {
  MS_CHUNK_SIZE, /* the first digit */
  MS_CHUNK_DIGITS,
  MS_CHUNK_SIZE_LF,
  MS_CHUNK_DATA,
  MS_CHUNK_DATA_CR,
  MS_CHUNK_DATA_LF,
  MS_CHUNK_END_CR,
  MS_CHUNK_END_LF,
  MS_CHUNK_DONE,
} ms_chunked_state;

/* All zero at the start. */
typedef struct ms_chunked {
  ms_chunked_state state;
  uint64_t left; /* of this chunk */
  int digits;
} ms_chunked;

/* How many of these bytes belong to the body, all of them unless it is done; or -EBADMSG. No chunk
 * extensions, no trailers, no bare newlines. */
ssize_t ms_chunked_pass(ms_chunked *c, const char *bytes, size_t count);

#endif
