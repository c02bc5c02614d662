#include "sha256.h"

#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

#define BLOCK 64

static const uint32_t k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t word, int bits) {
  return word >> bits | word << (32 - bits);
}

static void digest_block(uint32_t h[8], const unsigned char *block) {
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
           (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
  for (int i = 16; i < 64; i++) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
           (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
  }
  memcpy(v, h, sizeof v);
  for (int i = 0; i < 64; i++) {
    uint32_t a = v[0], e = v[4];
    uint32_t t1 = v[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                  ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
    uint32_t t2 =
        (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
    v[7] = v[6], v[6] = v[5], v[5] = e, v[4] = v[3] + t1;
    v[3] = v[2], v[2] = v[1], v[1] = a, v[0] = t1 + t2;
  }
  for (int i = 0; i < 8; i++)
    h[i] += v[i];
}

static void digest_blocks(uint32_t h[8], const unsigned char *blocks, size_t count) {
  for (; count > 0; count--, blocks += BLOCK)
    digest_block(h, blocks);
}

/* The processor's own -------------------------------------------------------------------------- */

#ifdef __x86_64__

/* As Intel tells it to be used: two rounds an instruction, the eight words in two registers, in an
 * order of their own. Six times faster. */
__attribute__((target("sha,sse4.1"))) static void
digest_own(uint32_t h[8], const unsigned char *blocks, size_t count) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i m[4];
  __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const void *)h), 0xb1);
  __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(h + 4)), 0x1b);
  __m128i abef = _mm_alignr_epi8(low, high, 8), cdgh = _mm_blend_epi16(high, low, 0xf0);
  for (; count > 0; count--, blocks += BLOCK) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    for (int i = 0; i < 4; i++)
      m[i] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(blocks + 16 * i)), swap);
    for (int i = 0; i < 16; i++) {
      __m128i w = _mm_add_epi32(m[i % 4], _mm_loadu_si128((const void *)(k + 4 * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, w);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(w, 0x0e));
      __m128i last = m[(i + 3) % 4], seventh = _mm_alignr_epi8(last, m[(i + 2) % 4], 4);
      w = _mm_add_epi32(_mm_sha256msg1_epu32(m[i % 4], m[(i + 1) % 4]), seventh);
      m[i % 4] = _mm_sha256msg2_epu32(w, last);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  low = _mm_shuffle_epi32(abef, 0x1b), high = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128((void *)h, _mm_blend_epi16(low, high, 0xf0));
  _mm_storeu_si128((void *)(h + 4), _mm_alignr_epi8(high, low, 8));
}

static bool has_own(void) {
  unsigned a, b, c, d;
  bool sse = __get_cpuid(1, &a, &b, &c, &d) && c & bit_SSE4_1 && c & bit_SSSE3;
  return sse && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_SHA;
}

#else

#define digest_own digest_blocks

static bool has_own(void) {
  return false;
}

#endif

/* ---------------------------------------------------------------------------------------------- */

void ms_sha256_start(ms_sha256 *s, bool plain) {
  *s = (ms_sha256){.h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
                         0x1f83d9ab, 0x5be0cd19},
                   .digest = plain || !has_own() ? digest_blocks : digest_own};
}

void ms_sha256_add(ms_sha256 *s, const void *bytes, size_t count) {
  const unsigned char *at = bytes;
  size_t have = s->count % BLOCK;
  s->count += count;
  if (have > 0) {
    size_t room = BLOCK - have, some = count < room ? count : room;
    memcpy(s->block + have, at, some);
    at += some;
    count -= some;
    if (some < room)
      return;
    s->digest(s->h, s->block, 1);
  }
  s->digest(s->h, at, count / BLOCK);
  memcpy(s->block, at + count / BLOCK * BLOCK, count % BLOCK);
}

void ms_sha256_end(ms_sha256 *s, unsigned char digest[MS_SHA256_SIZE]) {
  static const unsigned char padding[BLOCK] = {0x80};
  uint64_t bits = s->count * 8;
  size_t have = s->count % BLOCK;
  unsigned char length[8];
  for (int i = 0; i < 8; i++)
    length[i] = (unsigned char)(bits >> (56 - 8 * i));
  ms_sha256_add(s, padding, (have < BLOCK - 8 ? BLOCK : 2 * BLOCK) - 8 - have);
  ms_sha256_add(s, length, sizeof length);
  for (int i = 0; i < MS_SHA256_SIZE; i++)
    digest[i] = (unsigned char)(s->h[i / 4] >> (24 - 8 * (i % 4)));
}
