/* Starting one process. */
#ifndef MS_AGENT_SPAWN_H
#define MS_AGENT_SPAWN_H

#include "agent.h"

/* Why there is no program, `error` being 0 when there is one. `what` is a literal: its address is
 * the same in a child. */
typedef struct ms_failure {
  int error;
  const char *what;
} ms_failure;

/* From now on programs are told to go before the agent when memory runs out. */
void ms_spawn_expose(void);
/* Makes a process with this tag of an MS_EXEC; `stdio` are its 0, 1 and 2 (-1: /dev/null). A `pid`
 * that there was for a moment is reaped like any other. */
ms_failure ms_spawn(const ms_exec *e, const int *stdio, uint64_t tag, char *const *argv,
                    char *const *envp, pid_t *pid);

#endif
