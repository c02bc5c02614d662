/* Ways to change RLIMIT_LOCKS, the tag by which a program's processes are known, and the limit on
 * cores. Ends with a line that says what they are. With an argument: then leaves a daemon behind
 * which tries on for ever. */
#include "attempt.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static const struct rlimit wanted = {77, 77};

/* Guesses of the number that lets the agent's own calls through. */
static long guess(unsigned long tries) {
  uint64_t number = 0x9e3779b97f4a7c15u;
  uint64_t at_random[2];
  memcpy(at_random, (void *)getauxval(AT_RANDOM), sizeof at_random);
  uint64_t first[] = {0, 1, (uint64_t)-1, (uint64_t)getpid(), at_random[0], at_random[1]};
  for (size_t i = 0; i < sizeof first / sizeof *first; i++)
    if (syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, &wanted, NULL, first[i], 0) == 0)
      return 0;
  for (unsigned long i = 0; i < tries; i++) {
    number ^= number << 13, number ^= number >> 7, number ^= number << 17;
    if (syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, &wanted, NULL, number, 0) == 0)
      return 0;
  }
  errno = EPERM;
  return -1;
}

int main(int argc, char **argv) {
  (void)argv;
  struct rlimit limit;
  TRY("setrlimit", syscall(SYS_setrlimit, RLIMIT_LOCKS, &wanted));
  TRY("setrlimit with high bits", syscall(SYS_setrlimit, 0x100000000L | RLIMIT_LOCKS, &wanted));
  TRY("prlimit64 of 0", syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, &wanted, NULL));
  TRY("prlimit64 of itself", syscall(SYS_prlimit64, getpid(), RLIMIT_LOCKS, &wanted, NULL));
  TRY("prlimit64 of its parent", syscall(SYS_prlimit64, getppid(), RLIMIT_LOCKS, &wanted, NULL));
  TRY("prlimit64 with high bits",
      syscall(SYS_prlimit64, 0x100000000L, 0x100000000L | RLIMIT_LOCKS, &wanted, NULL));
  TRY("prlimit64 get", syscall(SYS_prlimit64, 0, RLIMIT_LOCKS, NULL, &limit));
  TRY("guesses", guess(300000));
  TRY("cores by setrlimit", setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}));
  getrlimit(RLIMIT_CORE, &limit);
  errno = ERANGE;
  tell("cores stay 1", limit.rlim_cur == 1 && limit.rlim_max == 1 ? 0 : -1);
  getrlimit(RLIMIT_LOCKS, &limit);
  tell("the tag is another", limit.rlim_cur == 77 ? 0 : -1);
  if (argc > 1 && fork() == 0) {
    setsid();
    for (int fd = 0; fd < 3; fd++)
      close(fd);
    if (fork() == 0)
      for (;;) {
        guess(1000);
        setsid();
        if (fork())
          _exit(0);
      }
    _exit(0);
  }
  return 0;
}
