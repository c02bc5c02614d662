/* What probes have in common: programs that run in a sandbox, try what must not work, and tell how
 * the kernel answered, a line each: "name: EPERM" or "name: OK". */
#ifndef ATTEMPT_H
#define ATTEMPT_H

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static inline void tell(const char *name, long result) {
  printf("%s: %s\n", name, result < 0 ? strerrorname_np(errno) : "OK");
  fflush(stdout);
}

/* In a child, for what may end or change the process that does it. */
#define TRY_APART(name, call)                                                                      \
  do {                                                                                             \
    int status_ = 0;                                                                               \
    pid_t pid_ = fork();                                                                           \
    if (pid_ == 0) {                                                                               \
      long result_ = (long)(call);                                                                 \
      _exit(result_ < 0 ? errno : 0);                                                              \
    }                                                                                              \
    waitpid(pid_, &status_, 0);                                                                    \
    errno = WEXITSTATUS(status_);                                                                  \
    if (WIFSIGNALED(status_))                                                                      \
      printf("%s: SIG%s\n", name, sigabbrev_np(WTERMSIG(status_)));                                \
    else                                                                                           \
      tell(name, errno ? -1 : 0);                                                                  \
  } while (0)

#define TRY(name, call) tell(name, (long)(call))

#endif
