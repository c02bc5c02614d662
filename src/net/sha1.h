/* SHA-1, for the one thing that still wants it: Sec-WebSocket-Accept (RFC 6455), which proves that
 * a server understood the upgrade. No secret depends on it. */
#ifndef MS_SHA1_H
#define MS_SHA1_H

#include <stddef.h>

#define MS_SHA1_SIZE 20

void ms_sha1(const unsigned char *bytes, size_t count, unsigned char digest[MS_SHA1_SIZE]);

#endif
