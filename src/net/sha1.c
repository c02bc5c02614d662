/* SHA-1 as in FIPS 180-4, over bytes that are all there. */
#include "sha1.h"

#include <stdint.h>
#include <string.h>

#define BLOCK 64

static uint32_t rotate(uint32_t word, int bits) {
  return word << bits | word >> (32 - bits);
}

static void digest_block(uint32_t h[5], const unsigned char *block) {
  uint32_t w[80];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
           (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
  for (int i = 16; i < 80; i++)
    w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
  uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
  for (int i = 0; i < 80; i++) {
    uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                 : i < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                 : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                          : (b ^ c ^ d) + 0xca62c1d6;
    uint32_t next = rotate(a, 5) + f + e + w[i];
    e = d, d = c, c = rotate(b, 30), b = a, a = next;
  }
  h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

void ms_sha1(const unsigned char *bytes, size_t count, unsigned char digest[MS_SHA1_SIZE]) {
  uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
  uint64_t bits = (uint64_t)count * 8;
  for (; count >= BLOCK; bytes += BLOCK, count -= BLOCK)
    digest_block(h, bytes);
  unsigned char last[2 * BLOCK] = {0}; /* what is left, a one bit, zeros, the length */
  size_t size = count < BLOCK - 8 ? BLOCK : 2 * BLOCK;
  memcpy(last, bytes, count);
  last[count] = 0x80;
  for (int i = 0; i < 8; i++)
    last[size - 1 - (size_t)i] = (unsigned char)(bits >> (8 * i));
  for (size_t at = 0; at < size; at += BLOCK)
    digest_block(h, last + at);
  for (int i = 0; i < MS_SHA1_SIZE; i++)
    digest[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}
