/* links: src/proc.c src/wire.c */
/* Processes, as an agent tells of them: what is accepted is within its bounds, and comes out the
 * same when it is written and read again. */
#include "proc.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition))                                                                              \
      abort();                                                                                     \
  } while (0)

static void check(const ms_proc *p) {
  static char text[MS_PROC_ARGS_MAX + MS_PROC_NAME_MAX + 1024];
  MUST(p->pid > 0 && p->pid <= INT32_MAX && p->state > ' ' && p->state <= '~');
  MUST(p->name_length <= MS_PROC_NAME_MAX && p->args_length <= MS_PROC_ARGS_MAX);
  ms_writer w = {.data = text, .capacity = sizeof text};
  ms_put_proc(&w, p);
  MUST(!w.overflow);
  ms_reader r = {.data = text, .length = w.length};
  ms_proc again;
  ms_get_proc(&r, &again);
  MUST(ms_get_end(&r) && again.pid == p->pid && again.cpu_ns == p->cpu_ns &&
       again.memory == p->memory && again.ticks == p->ticks &&
       again.name_length == p->name_length && again.args_length == p->args_length &&
       memcmp(again.name, p->name, p->name_length) == 0 &&
       memcmp(again.args, p->args, p->args_length) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  char *data = malloc(size + 1); /* with the NUL behind it that readers may rely on */
  MUST(data);
  if (size > 0)
    memcpy(data, bytes, size);
  data[size] = '\0';
  ms_reader r = {.data = data, .length = size};
  ms_proc p;
  ms_get_proc(&r, &p);
  if (ms_get_end(&r))
    check(&p);
  free(data);
  return 0;
}
