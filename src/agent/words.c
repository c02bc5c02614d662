/* Words that are told by themselves and such as have to be made. None is ever freed: the process
 * becomes the program that they are for. */
#include "words.h"

#include <stdio.h>
#include <string.h>

static void put(ms_words *w, const char *word) {
  if (!word || w->count >= MS_WORDS_MAX)
    w->failed = true;
  else
    w->all[w->count++] = word;
}

void ms_words_put(ms_words *w, const char *const *list) {
  for (; *list; list++)
    put(w, *list);
}

void ms_words_copy(ms_words *w, const char *text) {
  put(w, strdup(text));
}

void ms_words_number(ms_words *w, uint64_t number) {
  char text[24];
  snprintf(text, sizeof text, "%llu", (unsigned long long)number);
  ms_words_copy(w, text);
}
