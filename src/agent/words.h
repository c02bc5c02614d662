/* The words of a command line that is put together here: bwrap's. */
#ifndef MS_WORDS_H
#define MS_WORDS_H

#include <stdbool.h>
#include <stdint.h>

enum { MS_WORDS_MAX = 512 };

typedef struct ms_words {
  const char *all[MS_WORDS_MAX + 1]; /* followed by NULL */
  unsigned count;
  bool failed; /* too many, or no memory: there is no command line */
} ms_words;

/* Adds what is in a list that ends with NULL; the strings must live on. */
void ms_words_put(ms_words *w, const char *const *list);
#define MS_WORDS(w, ...) ms_words_put((w), (const char *const[]){__VA_ARGS__, (const char *)0})
/* Adds a number. */
void ms_words_number(ms_words *w, uint64_t number);
/* Adds a copy. */
void ms_words_copy(ms_words *w, const char *text);

#endif
