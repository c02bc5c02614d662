/* One process of a sandbox as it is told: read by the agent out of /proc, and by the host out of
 * what the agent says, which it does not trust. The names are the process's own: any bytes. */
#ifndef MS_PROC_H
#define MS_PROC_H

#include "wire.h"

#define MS_PROC_NAME_MAX ((size_t)256)
#define MS_PROC_ARGS_MAX ((size_t)4 * 1024) /* of a command line, what is told */

typedef struct ms_proc {
  uint32_t pid, ppid, uid, threads;
  uint32_t state; /* a letter, as in /proc */
  uint64_t cpu_ns;
  uint64_t family_ns; /* the same, with that of children that are over */
  uint64_t memory;    /* bytes */
  uint64_t read_bytes, write_bytes;
  uint64_t age_ns;
  uint64_t started_us;     /* since 1970 */
  uint64_t ticks;          /* when it began: with the pid, which process it is */
  const char *name, *args; /* args: words, each with a NUL behind it */
  size_t name_length, args_length;
} ms_proc;

void ms_put_proc(ms_writer *w, const ms_proc *p);
/* Sets `bad` when something in it cannot be. The strings point into the message. */
void ms_get_proc(ms_reader *r, ms_proc *p);

#endif
