/* Hands on pid 1, the agent: it must not be read, stopped, slowed, limited or ended. */
#include "attempt.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static long read_some(const char *path) {
  char text[64];
  int fd = open(path, O_RDONLY);
  long length = fd < 0 ? -1 : read(fd, text, sizeof text);
  if (fd >= 0)
    close(fd);
  return length;
}

static long list(const char *path) {
  DIR *dir = opendir(path);
  return dir ? closedir(dir) : -1;
}

static long follow(const char *path) {
  char target[256];
  return readlink(path, target, sizeof target);
}

int main(void) {
  char text[64];
  struct iovec here = {text, sizeof text}, there = {(void *)0x400000, sizeof text};
  struct rlimit limit = {1, 1};
  struct sched_param param = {0};
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(0, &cpus);

  TRY("ptrace attach", ptrace(PTRACE_ATTACH, 1, 0, 0));
  TRY("ptrace seize", ptrace(PTRACE_SEIZE, 1, 0, 0));
  TRY("process_vm_readv", process_vm_readv(1, &here, 1, &there, 1, 0));
  TRY("process_vm_writev", process_vm_writev(1, &here, 1, &there, 1, 0));
  int pidfd = (int)syscall(SYS_pidfd_open, 1, 0);
  TRY("pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, 3, 0));
  TRY("kcmp", syscall(SYS_kcmp, getpid(), 1, 0, 0, 0));
  TRY("/proc/1/mem", read_some("/proc/1/mem"));
  TRY("/proc/1/environ", read_some("/proc/1/environ"));
  TRY("/proc/1/maps", read_some("/proc/1/maps"));
  TRY("/proc/1/auxv", read_some("/proc/1/auxv"));
  TRY("/proc/1/syscall", read_some("/proc/1/syscall"));
  TRY("/proc/1/stack", read_some("/proc/1/stack"));
  TRY("/proc/1/fd", list("/proc/1/fd"));
  TRY("/proc/1/fdinfo", list("/proc/1/fdinfo"));
  TRY("/proc/1/map_files", list("/proc/1/map_files"));
  TRY("/proc/1/root", follow("/proc/1/root"));
  TRY("/proc/1/cwd", follow("/proc/1/cwd"));
  TRY("/proc/1/exe", follow("/proc/1/exe"));
  TRY("/proc/1/ns/mnt", follow("/proc/1/ns/mnt"));
  TRY("through /proc/1/root", open("/proc/1/root/etc", O_RDONLY));
  TRY("write oom_score_adj", open("/proc/1/oom_score_adj", O_WRONLY));
  TRY("write comm", open("/proc/1/comm", O_WRONLY));
  TRY("write uid_map", open("/proc/1/uid_map", O_WRONLY));
  TRY("write clear_refs", open("/proc/1/clear_refs", O_WRONLY));

  TRY("prlimit get", syscall(SYS_prlimit64, 1, RLIMIT_NOFILE, NULL, &limit));
  TRY("prlimit set", syscall(SYS_prlimit64, 1, RLIMIT_NOFILE, &limit, NULL));
  TRY("prlimit cpu", syscall(SYS_prlimit64, 1, RLIMIT_CPU, &limit, NULL));
  TRY("setpriority process", setpriority(PRIO_PROCESS, 1, 19));
  TRY("setpriority group", setpriority(PRIO_PGRP, 1, 19));
  TRY("setpriority user", setpriority(PRIO_USER, 0, 19));
  TRY("setpriority own user", setpriority(PRIO_USER, getuid(), 19));
  TRY("ioprio_set", syscall(SYS_ioprio_set, 1, 1, 3 << 13));
  TRY("ioprio_set user", syscall(SYS_ioprio_set, 3, getuid(), 3 << 13));
  TRY("sched_setscheduler", sched_setscheduler(1, SCHED_IDLE, &param));
  TRY("sched_setparam", sched_setparam(1, &param));
  TRY("sched_setaffinity", sched_setaffinity(1, sizeof cpus, &cpus));
  TRY("setpgid", setpgid(1, 1));

  /* The kernel takes these and does nothing with them: it is the init of its namespace. */
  for (int number = 1; number < 64; number++)
    if (kill(1, number) < 0 && errno != EINVAL)
      printf("kill %d: %s\n", number, strerrorname_np(errno));
  for (int number = 34; number < 64; number++)
    for (int times = 0; times < 100; times++)
      sigqueue(1, number, (union sigval){0});
  TRY("pidfd_send_signal KILL", syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0));
  TRY("pidfd_send_signal STOP", syscall(SYS_pidfd_send_signal, pidfd, SIGSTOP, NULL, 0));
  return 0;
}
