#include "tags.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Where the numbered entries of a /proc directory stream begin. */
#define PROC_FIRST_PID 256

static uint64_t secret;
static int proc_fd = -1;

void ms_tags_init(uint64_t own_secret) {
  secret = own_secret;
  proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

int ms_prlimit(pid_t pid, int resource, const struct rlimit *set, struct rlimit *get) {
  return (int)syscall(SYS_prlimit64, pid, resource, set, get, secret, 0);
}

uint64_t ms_tag_of(pid_t pid) {
  struct rlimit tag;
  return ms_prlimit(pid, RLIMIT_LOCKS, NULL, &tag) == 0 ? (uint64_t)tag.rlim_cur : 0;
}

/* Through a pidfd: should the number be given to another process meanwhile, that one is spared. */
static bool signal_tagged(pid_t pid, uint64_t tag, int number) {
  if (ms_tag_of(pid) != tag)
    return false;
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (pidfd < 0)
    return errno != ESRCH;
  bool ours = ms_tag_of(pid) == tag;
  if (ours && number > 0)
    syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0);
  close(pidfd);
  return ours;
}

struct dirent64_header {
  uint64_t inode, offset;
  unsigned short length;
  unsigned char type;
  char name[];
};

/* Calls `fn` for each process but the first: how often it said yes. */
typedef bool visit(pid_t pid, uint64_t tag, int number);

static size_t each_process(visit *fn, uint64_t tag, int number) {
  static char entries[16 * 1024] __attribute__((aligned(8)));
  size_t found = 0;
  lseek(proc_fd, PROC_FIRST_PID, SEEK_SET);
  for (;;) {
    long length = syscall(SYS_getdents64, proc_fd, entries, sizeof entries);
    if (length <= 0)
      return found;
    for (long at = 0; at < length;) {
      const struct dirent64_header *entry = (const void *)(entries + at);
      at += entry->length;
      pid_t pid = (pid_t)strtol(entry->name, NULL, 10); /* 0 for "self" and its like */
      if (pid > 1 && fn(pid, tag, number))
        found++;
    }
  }
}

size_t ms_signal_tree(uint64_t tag, int number) {
  return each_process(signal_tagged, tag, number);
}

/* Who traces a process, perhaps one thread of it; 0: nobody. The name above it in the file is
 * escaped. */
static pid_t tracer_of(pid_t pid) {
  char path[32], text[1024];
  snprintf(path, sizeof path, "%d/status", (int)pid);
  int fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return 0;
  ssize_t length = read(fd, text, sizeof text - 1);
  close(fd);
  text[length > 0 ? length : 0] = '\0';
  const char *at = strstr(text, "\nTracerPid:");
  return at ? (pid_t)strtol(at + strlen("\nTracerPid:"), NULL, 10) : 0;
}

/* By its number, as nobody else can be meant but something of this sandbox. */
static bool kill_tracer(pid_t pid, uint64_t tag, int number) {
  pid_t tracer = ms_tag_of(pid) == tag ? tracer_of(pid) : 0;
  return tracer > 1 && kill(tracer, number) == 0;
}

void ms_kill_tracers(uint64_t tag) {
  each_process(kill_tracer, tag, SIGKILL);
}
