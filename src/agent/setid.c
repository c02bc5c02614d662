/* A few comparisons in a row: unlike the first filter this one is short, and most sandboxes do
 * without. What openat2 is asked for is in memory, where no filter can look, so to programs it does
 * not exist, as on older kernels; the agent, which uses it for every path, has a key. */
#include "setid.h"

#include "../walk.h"
#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef __NR_fchmodat2
#define __NR_fchmodat2 452
#endif
/* Calls that ARM64 never had. */
#define NO_NUMBER UINT32_MAX
#ifndef __NR_open
#define __NR_open NO_NUMBER
#endif
#ifndef __NR_creat
#define __NR_creat NO_NUMBER
#endif
#ifndef __NR_chmod
#define __NR_chmod NO_NUMBER
#endif
#ifndef __NR_mknod
#define __NR_mknod NO_NUMBER
#endif

#define ARGUMENT(index) offsetof(struct seccomp_data, args[index])
#define LOAD(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (offset))
#define JUMP(test, k, yes, no) BPF_JUMP(BPF_JMP | (test) | BPF_K, (uint32_t)(k), yes, no)
#define ANSWER(action) BPF_STMT(BPF_RET | BPF_K, (action))
#define REFUSE ANSWER(SECCOMP_RET_ERRNO | EPERM)
#define ALLOW ANSWER(SECCOMP_RET_ALLOW)

/* Modes are 16 bits to the kernel: the low half of the register has them all. */
#define SETID (S_ISUID | S_ISGID)
#define MAKES (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))

/* Of a call that always has a mode; and of one whose mode means something only if it makes a file,
 * and is whatever was in the register if not. */
#define MODE_RULE(number, mode)                                                                    \
  JUMP(BPF_JEQ, number, 0, 4), LOAD(ARGUMENT(mode)), JUMP(BPF_JSET, SETID, 0, 1), REFUSE, ALLOW
#define OPEN_RULE(number, flags, mode)                                                             \
  JUMP(BPF_JEQ, number, 0, 6), LOAD(ARGUMENT(flags)), JUMP(BPF_JSET, MAKES, 0, 3),                 \
      LOAD(ARGUMENT(mode)), JUMP(BPF_JSET, SETID, 0, 1), REFUSE, ALLOW

int ms_setid_install(uint64_t secret) {
  const struct sock_filter program[] = {
      LOAD(offsetof(struct seccomp_data, nr)),
      MODE_RULE(__NR_chmod, 1),
      MODE_RULE(__NR_fchmod, 1),
      MODE_RULE(__NR_fchmodat, 2),
      MODE_RULE(__NR_fchmodat2, 2),
      MODE_RULE(__NR_creat, 1),
      MODE_RULE(__NR_mknod, 1),
      MODE_RULE(__NR_mknodat, 2),
      OPEN_RULE(__NR_open, 1, 2),
      OPEN_RULE(__NR_openat, 2, 3),
      JUMP(BPF_JEQ, __NR_openat2, 0, 9),
      /* Both halves take part in one comparison, as in filter.c. */
      LOAD(ARGUMENT(4)),
      BPF_STMT(BPF_ALU | BPF_XOR | BPF_K, (uint32_t)secret),
      BPF_STMT(BPF_MISC | BPF_TAX, 0),
      LOAD(ARGUMENT(4) + sizeof(uint32_t)),
      BPF_STMT(BPF_ALU | BPF_XOR | BPF_K, (uint32_t)(secret >> 32)),
      BPF_STMT(BPF_ALU | BPF_OR | BPF_X, 0),
      JUMP(BPF_JEQ, 0, 0, 1),
      ALLOW,
      ANSWER(SECCOMP_RET_ERRNO | ENOSYS),
      ALLOW,
  };
  ms_openat2_unlock(secret);
  int error = ms_filter_install(program, sizeof program / sizeof *program);
  errno = -error;
  return error < 0 ? -1 : 0;
}
