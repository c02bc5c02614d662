#include "spawn.h"
#include "tags.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)0)
#endif

/* How long a child may take to become its program, while others run that may hinder it. */
enum { START_ROUNDS = 100, START_ROUND_MS = 20 };
/* Of the stack on which a child runs before its exec. */
enum { CHILD_STACK = 16 * 1024 };
/* More than the zygote's own, which the agent keeps. */
#define EXPOSED_SCORE "600"

static bool exposed; /* programs are more likely than we are to be killed for memory */

void ms_spawn_expose(void) {
  exposed = true;
}

/* In the child -------------------------------------------------------------------------------- */

static int report_fd; /* what went wrong before the program ran goes there; exec closes it */

static _Noreturn void child_fail(const char *what) {
  ms_failure f = {.error = errno, .what = what}; /* of what only the address is sent */
  if (write(report_fd, &f, sizeof f) < 0) {
    /* The agent sees the end of the pipe, and then our exit status. */
  }
  _exit(127);
}

/* Keeps what is there when it cannot be raised so far: only what was asked for is refused. */
static void child_limit(int resource, uint64_t value) {
  if (value == MS_UNLIMITED)
    return;
  struct rlimit limit = {value, value};
  if (resource == RLIMIT_CPU)
    limit.rlim_max = value + 1; /* XCPU first, which names the reason, then KILL */
  if (ms_prlimit(0, resource, &limit, NULL) < 0)
    child_fail("limits");
}

/* Everything before the program: only async-signal-safe calls, no memory changed that the agent
 * reads meanwhile. */
static void child_prepare(const ms_exec *e, const int *stdio, uint64_t tag) {
  setsid();
  for (int fd = 0; fd < 3; fd++)
    if (stdio[fd] >= 0 && dup2(stdio[fd], fd) < 0)
      child_fail("stdio");
  if (e->flags & MS_EXEC_PTY && syscall(SYS_ioctl, 0, TIOCSCTTY, 0) < 0)
    child_fail("terminal");
  syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC);
  if (chdir(e->cwd) < 0)
    child_fail("cwd");
  umask((mode_t)e->umask);
  child_limit(RLIMIT_LOCKS, tag);
  child_limit(RLIMIT_DATA, e->limits.memory);
  child_limit(RLIMIT_CPU, e->limits.cpu_time);
  child_limit(RLIMIT_NOFILE, e->limits.open_files);
  child_limit(RLIMIT_FSIZE, e->limits.file_size);
  child_limit(RLIMIT_NPROC, e->limits.processes);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
}

/* A file that is there and "not found" names an interpreter that is not. */
static _Noreturn void child_exec_failed(const char *path) {
  int error = errno;
  struct stat st;
  bool there = stat(path, &st) == 0;
  errno = there && S_ISDIR(st.st_mode) ? EISDIR : error;
  child_fail(there && error == ENOENT ? "interpreter" : "program");
}

/* Like execvpe, by the PATH of the program's own environment, and without its fall-back to a
 * shell: a list never meets one. */
static _Noreturn void child_exec(char *const *argv, char *const *envp) {
  static char path[PATH_MAX];
  const char *name = argv[0], *search = "/usr/local/bin:/usr/bin:/bin";
  if (name[0] == '\0') {
    errno = ENOENT;
    child_fail("program");
  }
  if (strchr(name, '/')) {
    execve(name, argv, envp);
    child_exec_failed(name);
  }
  for (char *const *e = envp; *e; e++)
    if (strncmp(*e, "PATH=", 5) == 0)
      search = *e + 5;
  bool denied = false;
  for (bool last = false; !last;) {
    const char *end = strchrnul(search, ':');
    last = *end == '\0';
    int length = (int)(end - search);
    const char *slash = length ? "/" : ""; /* an empty entry is the working directory */
    int written = snprintf(path, sizeof path, "%.*s%s%s", length, search, slash, name);
    search = end + 1;
    if (written >= (int)sizeof path)
      continue;
    execve(path, argv, envp);
    if (errno == EACCES)
      denied = true;
    else if (errno != ENOENT && errno != ENOTDIR)
      child_exec_failed(path);
    else if (errno == ENOENT && access(path, F_OK) == 0)
      child_exec_failed(path);
  }
  errno = denied ? EACCES : ENOENT;
  child_fail("program");
}

typedef struct child {
  const ms_exec *exec;
  const int *stdio;
  uint64_t tag;
  char *const *argv, *const *envp;
} child;

static int child_run(void *argument) {
  const child *c = argument;
  child_prepare(c->exec, c->stdio, c->tag);
  if (!(c->exec->flags & MS_EXEC_WORKER))
    child_exec(c->argv, c->envp);
  syscall(SYS_close_range, 3, ~0u, 0); /* the report too: it runs */
  _exit(ms_worker_main((int)c->exec->argc, (char **)c->argv));
}

/* In the agent -------------------------------------------------------------------------------- */

/* Waits until the child has become its program or is gone, which the end of the pipe tells: till
 * then, also after it said why it failed, it runs on a stack in our caller's frame. What runs
 * inside may have stopped it, again and again: then it is told to go on, and given up in the end.
 */
static ms_failure await_report(int fd, pid_t pid) {
  struct pollfd report = {.fd = fd, .events = POLLIN};
  ms_failure failure = {0}, f;
  for (int round = 0; round < START_ROUNDS; round++) {
    if (poll(&report, 1, START_ROUND_MS) <= 0)
      kill(pid, SIGCONT);
    else if (read(fd, &f, sizeof f) == sizeof f)
      failure = f;
    else
      return failure;
  }
  kill(pid, SIGKILL);
  while (read(fd, &f, sizeof f) > 0)
    continue;
  return failure.error ? failure : (ms_failure){EBUSY, "start"};
}

/* The kernel is to choose a program, not us, when the sandbox's memory is used up. Done from here:
 * before its exec the child's memory is ours, and so would the value be. */
static void expose(pid_t pid) {
  char path[40];
  snprintf(path, sizeof path, "/proc/%d/oom_score_adj", (int)pid);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0)
    return;
  if (write(fd, EXPOSED_SCORE, strlen(EXPOSED_SCORE)) < 0) {
    /* Then the larger of us goes, which is hardly the agent. */
  }
  close(fd);
}

/* A program's child shares our memory until its exec, for speed, with a stack of its own in this
 * frame; not by vfork, whose caller cannot be woken while somebody inside keeps the child stopped.
 * A worker goes on with a copy. */
ms_failure ms_spawn(const ms_exec *e, const int *stdio, uint64_t tag, char *const *argv,
                    char *const *envp, pid_t *pid) {
  _Alignas(16) char stack[CHILD_STACK];
  child c = {.exec = e, .stdio = stdio, .tag = tag, .argv = argv, .envp = envp};
  ms_failure failure = {0};
  int report[2];
  if (pipe2(report, O_CLOEXEC) < 0)
    return (ms_failure){errno, "fork"};
  report_fd = report[1];
  *pid = e->flags & MS_EXEC_WORKER ? fork()
                                   : clone(child_run, stack + sizeof stack, CLONE_VM | SIGCHLD, &c);
  if (*pid == 0)
    child_run(&c);
  if (*pid < 0)
    failure = (ms_failure){errno, "fork"};
  close(report[1]);
  if (*pid > 0)
    failure = await_report(report[0], *pid);
  close(report[0]);
  ASAN_UNPOISON_MEMORY_REGION(stack, sizeof stack); /* the child's frames never return */
  if (exposed && !failure.error)
    expose(*pid);
  return failure;
}
