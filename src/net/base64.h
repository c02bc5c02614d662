/* Base64 (RFC 4648): how JSON carries bytes. */
#ifndef MS_BASE64_H
#define MS_BASE64_H

#include <stddef.h>

size_t ms_base64_size(size_t count);
/* Writes ms_base64_size(count) characters, padded, of the standard alphabet. */
void ms_base64_encode(const unsigned char *bytes, size_t count, char *text);
/* The bytes of a text, in place of `bytes` (room for count / 4 * 3 + 3), and how many; or -1 for
 * what is none. Both alphabets are read, with or without padding. */
long ms_base64_decode(const char *text, size_t count, unsigned char *bytes);

#endif
