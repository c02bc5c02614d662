/* Base64 (see base64.h). */
#include "base64.h"

#include <stdint.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t ms_base64_size(size_t count) {
  return (count + 2) / 3 * 4;
}

void ms_base64_encode(const unsigned char *bytes, size_t count, char *text) {
  for (size_t i = 0; i < count; i += 3, text += 4) {
    size_t left = count - i;
    uint32_t group = (uint32_t)bytes[i] << 16 | (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
                     (left > 2 ? bytes[i + 2] : 0);
    text[0] = alphabet[group >> 18];
    text[1] = alphabet[group >> 12 & 63];
    text[2] = left > 1 ? alphabet[group >> 6 & 63] : '=';
    text[3] = left > 2 ? alphabet[group & 63] : '=';
  }
}

static int value_of(char c) {
  if (c >= 'A' && c <= 'Z')
    return c - 'A';
  if (c >= 'a' && c <= 'z')
    return c - 'a' + 26;
  if (c >= '0' && c <= '9')
    return c - '0' + 52;
  return c == '+' || c == '-' ? 62 : c == '/' || c == '_' ? 63 : -1;
}

long ms_base64_decode(const char *text, size_t count, unsigned char *bytes) {
  size_t padding = 0, written = 0;
  while (padding < 2 && count > 0 && text[count - 1] == '=') {
    count--;
    padding++;
  }
  if (count % 4 == 1 || (padding > 0 && (count + padding) % 4 != 0))
    return -1;
  uint32_t group = 0;
  for (size_t i = 0; i < count; i++) {
    int value = value_of(text[i]);
    if (value < 0)
      return -1;
    group = group << 6 | (uint32_t)value;
    if (i % 4 != 0)
      bytes[written++] = (unsigned char)(group >> (6 - 2 * (i % 4)));
  }
  return (long)written;
}
