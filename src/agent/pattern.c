/* The algorithm is that of lstrlib.c (Lua 5.4, MIT licence), with a budget. */
#include "pattern.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

enum { CAPTURES_MAX = 32, DEPTH_MAX = 200, STEPS_MAX = 20 * 1000 * 1000 };
enum { UNFINISHED = -1, POSITION = -2 };

typedef struct match_state {
  const char *text, *end; /* of the line */
  const char *pattern_end;
  int error;  /* 0, or why all is over */
  int depth;  /* calls that may still be nested */
  long steps; /* that are left */
  int level;  /* captures, finished or not */
  struct {
    const char *start;
    ptrdiff_t length;
  } captures[CAPTURES_MAX];
} match_state;

static const char *match(match_state *m, const char *s, const char *p);

static const char *fail(match_state *m, int error) {
  if (m->error == 0)
    m->error = error;
  return NULL;
}

/* Whether there is budget for one more. */
static bool step(match_state *m) {
  if (m->error == 0 && --m->steps < 0)
    fail(m, -E2BIG);
  return m->error == 0;
}

/* Single characters --------------------------------------------------------------------------- */

/* Behind one item of the pattern; NULL: it is malformed. */
static const char *item_end(match_state *m, const char *p) {
  if (*p == '%') {
    if (p + 1 == m->pattern_end)
      return fail(m, -EINVAL);
    return p + 2;
  }
  if (*p++ != '[')
    return p;
  if (p < m->pattern_end && *p == '^')
    p++;
  do { /* the first one may be a "]" */
    if (p >= m->pattern_end)
      return fail(m, -EINVAL);
    if (*p++ == '%') {
      if (p >= m->pattern_end)
        return fail(m, -EINVAL);
      p++;
    }
  } while (p >= m->pattern_end || *p != ']');
  return p + 1;
}

static bool match_class(int c, int class) {
  bool in;
  switch (tolower(class)) {
  case 'a':
    in = isalpha(c);
    break;
  case 'c':
    in = iscntrl(c);
    break;
  case 'd':
    in = isdigit(c);
    break;
  case 'g':
    in = isgraph(c);
    break;
  case 'l':
    in = islower(c);
    break;
  case 'p':
    in = ispunct(c);
    break;
  case 's':
    in = isspace(c);
    break;
  case 'u':
    in = isupper(c);
    break;
  case 'w':
    in = isalnum(c);
    break;
  case 'x':
    in = isxdigit(c);
    break;
  case 'z':
    in = c == 0;
    break;
  default:
    return class == c;
  }
  return isupper(class) ? !in : in;
}

/* A set, from its "[" to its "]". */
static bool match_set(int c, const char *p, const char *last) {
  bool wanted = true;
  if (p[1] == '^') {
    wanted = false;
    p++;
  }
  while (++p < last) {
    if (*p == '%') {
      p++;
      if (match_class(c, (unsigned char)*p))
        return wanted;
    } else if (p[1] == '-' && p + 2 < last) {
      p += 2;
      if ((unsigned char)p[-2] <= c && c <= (unsigned char)*p)
        return wanted;
    } else if ((unsigned char)*p == c) {
      return wanted;
    }
  }
  return !wanted;
}

static bool match_single(match_state *m, const char *s, const char *p, const char *end) {
  if (s >= m->end || !step(m))
    return false;
  int c = (unsigned char)*s;
  switch (*p) {
  case '.':
    return true;
  case '%':
    return match_class(c, (unsigned char)p[1]);
  case '[':
    return match_set(c, p, end - 1);
  default:
    return (unsigned char)*p == c;
  }
}

/* Items --------------------------------------------------------------------------------------- */

static const char *match_balance(match_state *m, const char *s, const char *p) {
  if (p + 1 >= m->pattern_end)
    return fail(m, -EINVAL);
  if (s >= m->end || *s != *p)
    return NULL;
  int nested = 1;
  while (++s < m->end && step(m)) {
    if (*s == p[1]) {
      if (--nested == 0)
        return s + 1;
    } else if (*s == *p) {
      nested++;
    }
  }
  return NULL;
}

static const char *max_expand(match_state *m, const char *s, const char *p, const char *end) {
  ptrdiff_t count = 0;
  while (match_single(m, s + count, p, end))
    count++;
  for (; count >= 0 && m->error == 0; count--) {
    const char *found = match(m, s + count, end + 1);
    if (found)
      return found;
  }
  return NULL;
}

static const char *min_expand(match_state *m, const char *s, const char *p, const char *end) {
  for (;;) {
    const char *found = match(m, s, end + 1);
    if (found || m->error)
      return found;
    if (!match_single(m, s, p, end))
      return NULL;
    s++;
  }
}

/* Captures ------------------------------------------------------------------------------------ */

static const char *start_capture(match_state *m, const char *s, const char *p, ptrdiff_t what) {
  if (m->level >= CAPTURES_MAX)
    return fail(m, -EINVAL);
  m->captures[m->level].start = s;
  m->captures[m->level++].length = what;
  const char *found = match(m, s, p);
  if (!found)
    m->level--;
  return found;
}

static const char *end_capture(match_state *m, const char *s, const char *p) {
  int open = m->level - 1;
  while (open >= 0 && m->captures[open].length != UNFINISHED)
    open--;
  if (open < 0)
    return fail(m, -EINVAL);
  m->captures[open].length = s - m->captures[open].start;
  const char *found = match(m, s, p);
  if (!found)
    m->captures[open].length = UNFINISHED;
  return found;
}

static const char *match_capture(match_state *m, const char *s, int digit) {
  int which = digit - '1';
  if (which < 0 || which >= m->level || m->captures[which].length == UNFINISHED)
    return fail(m, -EINVAL);
  ptrdiff_t length = m->captures[which].length;
  if (length == POSITION) /* as lstrlib has it: no text is that long */
    return NULL;
  m->steps -= length;
  return m->end - s >= length && memcmp(m->captures[which].start, s, (size_t)length) == 0
             ? s + length
             : NULL;
}

/* %f[set]: where a character of the set begins. */
static const char *frontier(match_state *m, const char *s, const char **p) {
  const char *set = *p;
  if (set >= m->pattern_end || *set != '[')
    return fail(m, -EINVAL);
  const char *end = item_end(m, set);
  if (!end)
    return NULL;
  int before = s == m->text ? 0 : (unsigned char)s[-1];
  int now = s < m->end ? (unsigned char)*s : 0;
  *p = end;
  return !match_set(before, set, end - 1) && match_set(now, set, end - 1) ? s : NULL;
}

/* ---------------------------------------------------------------------------------------------- */

/* An item with what is behind it: "?", "*", "+", "-" or nothing. True: it goes on at `*s`, `*p`; if
 * not, `*s` is the answer. */
static bool match_item(match_state *m, const char **s, const char **p) {
  const char *end = item_end(m, *p);
  if (!end) {
    *s = NULL;
    return false;
  }
  char repeat = end < m->pattern_end ? *end : '\0';
  if (repeat == '*') {
    *s = max_expand(m, *s, *p, end);
    return false;
  }
  if (repeat == '-') {
    *s = min_expand(m, *s, *p, end);
    return false;
  }
  bool one = match_single(m, *s, *p, end);
  if (repeat == '+') {
    *s = one ? max_expand(m, *s + 1, *p, end) : NULL;
    return false;
  }
  if (repeat == '?') {
    const char *found = one ? match(m, *s + 1, end + 1) : NULL;
    if (found) {
      *s = found;
      return false;
    }
    *p = end + 1;
    return true;
  }
  *p = end;
  *s = one ? *s + 1 : NULL;
  return one;
}

/* What is special and no item: true if it was such; then as match_item. */
static bool match_special(match_state *m, const char **s, const char **p, bool *more) {
  const char *at = *p, *last = m->pattern_end;
  *more = false;
  if (*at == '(') {
    bool position = at + 1 < last && at[1] == ')';
    *s = start_capture(m, *s, at + 1 + position, position ? POSITION : UNFINISHED);
  } else if (*at == ')') {
    *s = end_capture(m, *s, at + 1);
  } else if (*at == '$' && at + 1 == last) {
    *s = *s == m->end ? *s : NULL;
  } else if (*at == '%' && at + 1 < last && at[1] == 'b') {
    *s = match_balance(m, *s, at + 2);
    *p = at + 4;
    *more = *s != NULL;
  } else if (*at == '%' && at + 1 < last && at[1] == 'f') {
    *p = at + 2;
    *s = frontier(m, *s, p);
    *more = *s != NULL;
  } else if (*at == '%' && at + 1 < last && isdigit((unsigned char)at[1])) {
    *s = match_capture(m, *s, at[1]);
    *p = at + 2;
    *more = *s != NULL;
  } else {
    return false;
  }
  return true;
}

/* The end of what matches from here on; NULL: nothing does. */
static const char *match(match_state *m, const char *s, const char *p) {
  if (m->depth-- == 0) {
    m->depth++;
    return fail(m, -E2BIG);
  }
  bool more = true;
  while (more && p < m->pattern_end && step(m))
    if (!match_special(m, &s, &p, &more))
      more = match_item(m, &s, &p);
  m->depth++;
  return m->error ? NULL : s;
}

static bool is_unfinished(const match_state *m) {
  for (int i = 0; i < m->level; i++)
    if (m->captures[i].length == UNFINISHED)
      return true;
  return false;
}

ssize_t ms_pattern_find(const char *pattern, size_t pattern_length, const char *text,
                        size_t length) {
  match_state m = {.text = text,
                   .end = text + length,
                   .pattern_end = pattern + pattern_length,
                   .depth = DEPTH_MAX,
                   .steps = STEPS_MAX};
  bool anchored = pattern_length > 0 && pattern[0] == '^';
  for (const char *s = text; s <= m.end; s++) {
    m.level = 0;
    if (match(&m, s, pattern + anchored))
      return is_unfinished(&m) ? -EINVAL : s - text;
    if (m.error || anchored)
      break;
  }
  return m.error ? m.error : -1;
}
