/* SHA-256 as in FIPS 180-4, over bytes that come piece by piece. */
#ifndef MS_SHA256_H
#define MS_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MS_SHA256_SIZE 32

typedef struct ms_sha256 {
  uint32_t h[8];
  uint64_t count; /* bytes so far */
  unsigned char block[64];
  void (*digest)(uint32_t h[8], const unsigned char *blocks, size_t count);
} ms_sha256;

/* `plain`: without the processor's own instructions for it. */
void ms_sha256_start(ms_sha256 *s, bool plain);
void ms_sha256_add(ms_sha256 *s, const void *bytes, size_t count);
/* Over afterwards. */
void ms_sha256_end(ms_sha256 *s, unsigned char digest[MS_SHA256_SIZE]);

#endif
