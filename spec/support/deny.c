/* deny CALL ERRNO PROGRAM …: runs a program whose system call CALL fails with ERRNO, as the seccomp
 * profile of a container or an old kernel would have it. `userns` is clone with CLONE_NEWUSER;
 * `own-userns` the same as our helper calls it and bwrap does not, as if AppArmor let only that. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
  const char *name;
  int number;
  unsigned flags; /* of the first argument, all of them */
} calls[] = {
    {"userns", SYS_clone, CLONE_NEWUSER},
    {"own-userns", SYS_clone, CLONE_NEWUSER | CLONE_PIDFD},
    {"open_tree", 428, 0},
    {"mount_setattr", 442, 0},
    {"pidfd_open", 434, 0},
    {"seccomp", SYS_seccomp, 0},
    {"getrandom", SYS_getrandom, 0},
    {"sethostname", SYS_sethostname, 0},
    {"pivot_root", SYS_pivot_root, 0},
    {"capset", SYS_capset, 0},
    {"ioctl", SYS_ioctl, 0},
};

int main(int argc, char **argv) {
  int number = -1;
  unsigned flags = 0;
  for (size_t i = 0; argc > 3 && i < sizeof calls / sizeof *calls; i++)
    if (strcmp(argv[1], calls[i].name) == 0) {
      number = calls[i].number;
      flags = calls[i].flags;
    }
  if (number < 0)
    return 2;
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, flags),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, flags, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((unsigned)atoi(argv[2]) & 0xffff)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) {
    perror("deny");
    return 2;
  }
  execvp(argv[3], argv + 3);
  perror(argv[3]);
  return 127;
}
