/* deny CALL ERRNO PROGRAM …: runs a program whose system call CALL fails with ERRNO, as the seccomp
 * profile of a container or an old kernel would have it. `userns` is clone with CLONE_NEWUSER. */
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
} calls[] = {
    {"userns", SYS_clone},
    {"open_tree", 428},
    {"mount_setattr", 442},
    {"pidfd_open", 434},
    {"seccomp", SYS_seccomp},
    {"getrandom", SYS_getrandom},
    {"sethostname", SYS_sethostname},
    {"pivot_root", SYS_pivot_root},
    {"capset", SYS_capset},
    {"ioctl", SYS_ioctl},
};

int main(int argc, char **argv) {
  int number = -1;
  for (size_t i = 0; argc > 3 && i < sizeof calls / sizeof *calls; i++)
    if (strcmp(argv[1], calls[i].name) == 0)
      number = calls[i].number;
  if (number < 0)
    return 2;
  unsigned mask = strcmp(argv[1], "userns") == 0 ? CLONE_NEWUSER : 0;
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
      mask ? (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, mask, 0, 1)
           : (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JA, 0, 0, 0),
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
