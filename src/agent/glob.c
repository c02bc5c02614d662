/* Matching one name with one part of a glob pattern. The name is of the sandbox's making, so the
 * time is bounded: the last star is the only one that is ever tried again (an earlier one that
 * could have taken more is never needed), which makes it name times pattern at most. */
#include "worker.h"

#include <string.h>

bool ms_glob_is_wild(const char *pattern, size_t length) {
  for (size_t i = 0; i < length; i++)
    if (strchr("*?[\\", pattern[i]))
      return true;
  return false;
}

/* A set, from behind its "[" on: its length with the "]", or 0 when it is none; `in` says whether
 * it has the character. */
static size_t match_set(const char *p, const char *end, unsigned char c, bool *in) {
  const char *start = p;
  bool negated = p < end && (*p == '!' || *p == '^'), found = false;
  if (negated)
    p++;
  for (const char *first = p; p < end && (*p != ']' || p == first); p++) {
    if (*p == '\\' && p + 1 < end)
      p++;
    unsigned char low = (unsigned char)*p, high = low;
    if (p + 2 < end && p[1] == '-' && p[2] != ']') {
      p += 2;
      if (*p == '\\' && p + 1 < end)
        p++;
      high = (unsigned char)*p;
    }
    if (c >= low && c <= high)
      found = true;
  }
  *in = found != negated;
  return p < end ? (size_t)(p + 1 - start) : 0;
}

/* One character with what is at the pattern: the length of that, or 0. */
static size_t match_one(const char *p, const char *end, unsigned char c) {
  bool in;
  size_t length;
  switch (*p) {
  case '?':
    return 1;
  case '[':
    length = match_set(p + 1, end, c, &in);
    if (length > 0)
      return in ? length + 1 : 0;
    return c == '[';
  case '\\':
    if (p + 1 < end)
      return (unsigned char)p[1] == c ? 2 : 0;
    return c == '\\';
  default:
    return (unsigned char)*p == c;
  }
}

bool ms_glob_match(const char *pattern, size_t length, const char *name) {
  const char *p = pattern, *end = pattern + length, *star = NULL, *retry = NULL;
  if (name[0] == '.' && !(length > 0 && *p == '.') && !(length > 1 && p[0] == '\\' && p[1] == '.'))
    return false;
  while (*name) {
    size_t matched = p < end && *p != '*' ? match_one(p, end, (unsigned char)*name) : 0;
    if (matched > 0) {
      p += matched;
      name++;
    } else if (p < end && *p == '*') {
      star = ++p;
      retry = name;
    } else if (star) {
      p = star;
      name = ++retry;
    } else {
      return false;
    }
  }
  while (p < end && *p == '*')
    p++;
  return p == end;
}
