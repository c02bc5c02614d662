/* Lua's patterns (§6.4.1 of its manual) without Lua, for lines that nobody has looked at: what a
 * match may cost is bounded, as a pattern can take time that grows with a high power of the line's
 * length. */
#ifndef MS_PATTERN_H
#define MS_PATTERN_H

#include <stddef.h>
#include <sys/types.h>

/* Where in a text a pattern, NUL behind it, matches first: from 0 on; -1: nowhere; -EINVAL: it is
 * malformed; -E2BIG: it would take too long. Like `string.find`. */
ssize_t ms_pattern_find(const char *pattern, size_t pattern_length, const char *text,
                        size_t length);

#endif
