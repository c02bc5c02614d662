/* Programs: starting them, knowing which process belongs to which, learning how they end, and
 * ending all that they started.
 *
 * A process group does not hold what calls setsid. So each exec's first process gets a *tag* that
 * its descendants inherit and cannot change: RLIMIT_LOCKS, which the kernel has ignored since 2.4,
 * is set to the exec's own number, and the filter refuses to set it again. Trees are found by
 * reading that limit of every process in /proc. A process with a pending SIGKILL cannot fork, so
 * passes of "kill all that is tagged" come to an end even against a fork bomb.
 *
 * An exec is over when its first process was reaped and nothing with its tag is left (or, with
 * MS_EXEC_LEAVE, at once). Only then is told who started it. What runs in the background belongs to
 * nobody: those who look at its log are told. */
#include "log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)0)
#endif

#define PASS_INTERVAL_NS UINT64_C(1000000)
/* How long a child may take to become its program, while others run that may hinder it. */
/* What is known of programs that are over: how many, and how much their logs may hold together. */
enum { OVER_MAX = 100 };
#define OVER_BYTES (UINT64_C(64) * 1024 * 1024)
enum { START_ROUNDS = 100, START_ROUND_MS = 20 };
/* Of the stack on which a child runs before its exec. */
enum { CHILD_STACK = 16 * 1024 };
/* Where the numbered entries of a /proc directory stream begin. */
#define PROC_FIRST_PID 256
/* More than the zygote's own, which the agent keeps. */
#define EXPOSED_SCORE "600"

typedef struct exec {
  struct exec *next;
  ms_client *client; /* NULL: nobody's, or nobody wants to hear of it any more */
  uint32_t id;       /* the client's */
  ms_log *log;       /* owned; NULL: not in the background */
  char *words;       /* owned: its command, as of ms_program; NULL: it is a worker */
  size_t words_length;
  uint64_t started_us; /* since 1970 */
  pid_t pid;           /* of the first process */
  uint32_t flags;
  uint64_t tag; /* its number */
  uint64_t started_ns;
  uint64_t deadline_ns; /* the timeout, then the end of the grace; UINT64_MAX: none */
  uint64_t grace_ns;
  uint32_t reason;
  bool ended;   /* the first process was reaped: `exit` holds how */
  bool killing; /* SIGKILL for the whole tree, in passes until none is left */
  ms_exit exit;
} exec;

static exec *execs;
static exec *over; /* programs, the last first */
static uint64_t last_tag, secret;
static int proc_fd = -1;
static bool exposed; /* programs are more likely than we are to be killed for memory */

void ms_exec_init(uint64_t own_secret) {
  secret = own_secret;
  proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

void ms_exec_expose(void) {
  exposed = true;
}

/* Tags ---------------------------------------------------------------------------------------- */

/* prlimit with the register that lets it through the filter. */
static int agent_prlimit(pid_t pid, int resource, const struct rlimit *set, struct rlimit *get) {
  return (int)syscall(SYS_prlimit64, pid, resource, set, get, secret, 0);
}

/* The exec number that a process carries; 0 when it is gone. Works for zombies. */
static uint64_t tag_of(pid_t pid) {
  struct rlimit tag;
  return agent_prlimit(pid, RLIMIT_LOCKS, NULL, &tag) == 0 ? (uint64_t)tag.rlim_cur : 0;
}

/* Through a pidfd: should the number be given to another process meanwhile, that one is spared. */
static bool signal_tagged(pid_t pid, uint64_t tag, int number) {
  if (tag_of(pid) != tag)
    return false;
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (pidfd < 0)
    return errno != ESRCH;
  bool ours = tag_of(pid) == tag;
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

/* One pass over all processes: how many carry the tag. Each of them is sent the signal (0: none).
 */
static size_t signal_tree(uint64_t tag, int number) {
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
      if (pid > 1 && signal_tagged(pid, tag, number))
        found++;
    }
  }
}

/* Starting ------------------------------------------------------------------------------------ */

/* What went wrong in a child before its program ran: that of a program shares our memory, that of
 * a worker sends it through the pipe, which exec closes. */
typedef struct failure {
  int error;
  const char *what; /* a literal: the same address in a fork */
} failure;

static volatile failure child_failure;
static int report_fd; /* in the child */

static _Noreturn void child_fail(const char *what) {
  failure f = {.error = errno, .what = what};
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
  if (agent_prlimit(0, resource, &limit, NULL) < 0)
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

/* Waits until the child has become its program or is gone, which the end of the pipe tells: till
 * then, also after it said why it failed, it runs on a stack in our frame. What runs inside may
 * have stopped it, again and again: then it is told to go on, and given up in the end. */
static void await_report(int fd, pid_t pid) {
  struct pollfd report = {.fd = fd, .events = POLLIN};
  failure f;
  for (int round = 0; round < START_ROUNDS; round++) {
    if (poll(&report, 1, START_ROUND_MS) <= 0) {
      kill(pid, SIGCONT);
      continue;
    }
    if (read(fd, &f, sizeof f) != sizeof f)
      return;
    child_failure.error = f.error;
    child_failure.what = f.what;
  }
  kill(pid, SIGKILL);
  while (read(fd, &f, sizeof f) > 0)
    continue;
  if (!child_failure.error) {
    child_failure.error = EBUSY;
    child_failure.what = "start";
  }
}

/* The kernel is to choose a program, not us, when the sandbox's memory is used up. Done from here:
 * before its exec the child's memory is ours, and so would the value be. */
static void expose(pid_t pid) {
  char path[40];
  snprintf(path, sizeof path, "%d/oom_score_adj", (int)pid);
  int fd = openat(proc_fd, path, O_WRONLY | O_CLOEXEC);
  if (fd < 0)
    return;
  if (write(fd, EXPOSED_SCORE, strlen(EXPOSED_SCORE)) < 0) {
    /* Then the larger of us goes, which is hardly the agent. */
  }
  close(fd);
}

/* A process, or -1 and child_failure. A program's child shares our memory until its exec, for
 * speed, with a stack of its own in this frame; not by vfork, whose caller cannot be woken while
 * somebody inside keeps the child stopped. A worker goes on with a copy. */
static pid_t spawn(const ms_exec *e, const int *stdio, uint64_t tag, char *const *argv,
                   char *const *envp) {
  _Alignas(16) char stack[CHILD_STACK];
  child c = {.exec = e, .stdio = stdio, .tag = tag, .argv = argv, .envp = envp};
  int report[2];
  child_failure.error = 0;
  if (pipe2(report, O_CLOEXEC) < 0) {
    child_failure.error = errno, child_failure.what = "fork";
    return -1;
  }
  report_fd = report[1];
  pid_t pid = e->flags & MS_EXEC_WORKER
                  ? fork()
                  : clone(child_run, stack + sizeof stack, CLONE_VM | SIGCHLD, &c);
  if (pid == 0)
    child_run(&c);
  if (pid < 0)
    child_failure.error = errno, child_failure.what = "fork";
  close(report[1]);
  if (pid > 0)
    await_report(report[0], pid);
  if (exposed && pid > 0 && !child_failure.error)
    expose(pid);
  close(report[0]);
  ASAN_UNPOISON_MEMORY_REGION(stack, sizeof stack); /* the child's frames never return */
  return pid;                                       /* one that failed is reaped like any other */
}

/* `count` strings into a NULL-terminated vector. */
static bool read_vector(ms_reader *body, char **vector, uint32_t count) {
  for (uint32_t i = 0; i < count && !body->bad; i++)
    vector[i] = (char *)ms_get_str(body);
  vector[count] = NULL;
  return !body->bad;
}

/* Both vectors in one block, to be freed through *argv. */
static bool read_vectors(ms_reader *body, ms_exec *e, char ***argv, char ***envp) {
  e->argc = ms_get_u32(body);
  e->envc = ms_get_u32(body);
  const uint32_t most = (uint32_t)(body->length / 5); /* a string takes five bytes at least */
  if (body->bad || e->argc == 0 || e->argc > most || e->envc > most)
    return false;
  *argv = calloc((size_t)e->argc + e->envc + 2, sizeof **argv);
  if (!*argv)
    return false;
  *envp = *argv + e->argc + 1;
  return read_vector(body, *argv, e->argc) && read_vector(body, *envp, e->envc);
}

static void read_exec(ms_reader *body, ms_exec *e) {
  e->flags = ms_get_u32(body);
  e->umask = ms_get_u32(body);
  e->timeout_ns = ms_get_u64(body);
  e->grace_ns = ms_get_u64(body);
  e->limits.memory = ms_get_u64(body);
  e->limits.cpu_time = ms_get_u64(body);
  e->limits.open_files = ms_get_u64(body);
  e->limits.file_size = ms_get_u64(body);
  e->limits.processes = ms_get_u64(body);
  e->cwd = ms_get_str(body);
  e->log_size = ms_get_u64(body);
}

/* Deals the files that came along to 0, 1 and 2, as the flags say. */
static bool deal_stdio(const ms_exec *e, const int *fds, size_t count, int *stdio) {
  if (e->flags & MS_EXEC_PTY) {
    stdio[0] = stdio[1] = stdio[2] = count == 1 ? fds[0] : -1;
    return count == 1;
  }
  size_t next = 0;
  const uint32_t wanted[3] = {MS_EXEC_STDIN, MS_EXEC_STDOUT, MS_EXEC_STDERR};
  for (int fd = 0; fd < 3; fd++) {
    stdio[fd] = -1;
    if (!(e->flags & wanted[fd]))
      continue;
    if (next == count)
      return false;
    stdio[fd] = fds[next++];
  }
  if (e->flags & MS_EXEC_MERGE)
    stdio[2] = stdio[1];
  return next == count;
}

static void refuse(ms_client *c, uint32_t id, int error, const char *what) {
  char text[64];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)error);
  ms_put_str(&body, what);
  ms_client_send(c, MS_REFUSED, id, &body, -1);
}

static void announce(ms_client *c, uint32_t id, const exec *x) {
  char text[16];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)x->pid);
  if (x->log)
    ms_put_u64(&body, x->tag);
  ms_client_send(c, MS_STARTED, id, &body, -1);
}

static void free_exec(exec *x) {
  if (x->log)
    ms_log_free(x->log);
  free(x->words);
  free(x);
}

/* The words of a command, as many as are told. */
static bool keep_words(exec *x, char *const *argv) {
  size_t length = 0, most = MS_PROGRAM_WORDS_MAX;
  for (char *const *word = argv; *word && length < most; word++)
    length += strnlen(*word, most - length) + 1;
  x->words_length = length < most ? length : most;
  x->words = malloc(x->words_length);
  if (!x->words)
    return false;
  for (size_t at = 0; at < x->words_length; at += strlen(x->words + at) + 1) {
    size_t room = x->words_length - at - 1, wanted = strlen(*argv);
    memcpy(x->words + at, *argv, wanted < room ? wanted : room);
    x->words[at + (wanted < room ? wanted : room)] = '\0';
    argv++;
  }
  return true;
}

/* Puts a log behind the program's output, and its starter in front of it: what came along for 1 and
 * 2 is the starter's view. Files in `stdio` from then on are ours to close. 0 or a positive errno.
 */
static int put_log(exec *x, const ms_exec *e, ms_client *c, uint32_t id, int *stdio) {
  int view[2] = {-1, -1}, error = 0;
  const uint64_t since[2] = {0, 0};
  x->log = ms_log_new(e->log_size, e->flags & MS_EXEC_HEAD);
  for (int i = 0; i < 2; i++) {
    if (!(e->flags & (i == 0 ? MS_EXEC_STDOUT : MS_EXEC_STDERR)))
      continue;
    view[i] = x->log && !error ? fcntl(stdio[i + 1], F_DUPFD_CLOEXEC, 3) : -1;
    stdio[i + 1] = x->log && !error ? ms_log_pipe(x->log, i) : -1;
    if (stdio[i + 1] < 0 && !error)
      error = x->log ? -stdio[i + 1] : ENOMEM;
  }
  if (e->flags & MS_EXEC_MERGE)
    stdio[2] = stdio[1];
  if (!x->log)
    return ENOMEM;
  int viewed = ms_log_view(x->log, c, id, view, since, false);
  return error ? error : -viewed;
}

static void close_log_pipes(const ms_exec *e, const int *stdio) {
  if (e->flags & MS_EXEC_STDOUT && stdio[1] >= 0)
    close(stdio[1]);
  if (e->flags & MS_EXEC_STDERR && stdio[2] >= 0)
    close(stdio[2]);
}

static uint64_t microseconds_since_1970(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

/* Makes a process of it. 0, or a positive errno and what could not be had. */
static int begin(exec *x, const ms_exec *e, ms_client *c, int *stdio, char *const *argv,
                 char *const *envp, const char **what) {
  const bool background = e->flags & MS_EXEC_BACKGROUND;
  *what = "memory";
  if (!(e->flags & MS_EXEC_WORKER) && !keep_words(x, argv))
    return ENOMEM;
  *what = "log";
  int error = background ? put_log(x, e, c, x->id, stdio) : 0;
  if (!error) {
    x->pid = spawn(e, stdio, x->tag, argv, envp);
    error = child_failure.error;
    *what = child_failure.what;
  }
  if (background)
    close_log_pipes(e, stdio);
  return error;
}

void ms_exec_start(ms_client *c, uint32_t id, ms_reader *body, const int *fds, size_t fd_count) {
  ms_exec e = {0};
  char **argv = NULL, **envp = NULL;
  int stdio[3];
  const char *what;
  read_exec(body, &e);
  exec *x = calloc(1, sizeof *x);
  if (!x || !read_vectors(body, &e, &argv, &envp) || !ms_get_end(body) ||
      !deal_stdio(&e, fds, fd_count, stdio)) {
    refuse(c, id, EPROTO, "request");
    free(argv);
    free(x);
    return;
  }
  uint64_t now = ms_clock_ns();
  const bool background = e.flags & MS_EXEC_BACKGROUND;
  *x = (exec){.client = background ? NULL : c,
              .id = id,
              .flags = e.flags,
              .tag = ++last_tag,
              .started_us = microseconds_since_1970(),
              .started_ns = now,
              .deadline_ns = e.timeout_ns ? now + e.timeout_ns : UINT64_MAX,
              .grace_ns = e.grace_ns};
  int error = begin(x, &e, c, stdio, argv, envp, &what);
  free(argv);
  if (error) {
    refuse(c, id, error, what);
    free_exec(x);
    return;
  }
  x->next = execs;
  execs = x;
  if (!(e.flags & MS_EXEC_QUIET))
    announce(c, id, x);
}

/* Ending -------------------------------------------------------------------------------------- */

/* What a client means by an id: what it started, or looks at. */
static exec *find(const ms_client *c, uint32_t id) {
  for (exec *x = execs; x; x = x->next)
    if (x->log ? ms_log_viewed(x->log, c, id) : x->client == c && x->id == id)
      return x;
  return NULL;
}

static void kill_tree(exec *x, uint32_t reason) {
  if (!x->reason)
    x->reason = reason;
  x->killing = true;
  x->deadline_ns = UINT64_MAX;
  signal_tree(x->tag, SIGKILL);
}

void ms_exec_signal(const ms_client *c, uint32_t id, uint32_t number, uint32_t target,
                    uint32_t reason) {
  exec *x = find(c, id);
  if (!x || number == 0 || number > (uint32_t)SIGRTMAX)
    return;
  if (number == SIGKILL && target == MS_TARGET_TREE)
    kill_tree(x, reason);
  else if (target == MS_TARGET_TREE)
    signal_tree(x->tag, (int)number);
  else if (!x->ended)
    kill(x->pid, (int)number); /* not reaped yet, so still the same process */
}

static void add_usage(ms_exit *to, const struct rusage *usage) {
  to->user_us += (uint64_t)usage->ru_utime.tv_sec * 1000000u + (uint64_t)usage->ru_utime.tv_usec;
  to->system_us += (uint64_t)usage->ru_stime.tv_sec * 1000000u + (uint64_t)usage->ru_stime.tv_usec;
  if ((uint64_t)usage->ru_maxrss > to->max_rss_kib)
    to->max_rss_kib = (uint64_t)usage->ru_maxrss;
  to->read_blocks += (uint64_t)usage->ru_inblock;
  to->write_blocks += (uint64_t)usage->ru_oublock;
}

/* A stop is no end. A worker is not ours to be stopped by others: it is ended. Where ptrace is
 * allowed, a program can make us its tracer (PTRACE_TRACEME): it gets the signal that it would have
 * got without, and is not traced any more. */
static void pass_stop(const siginfo_t *stop) {
  siginfo_t seen;
  waitid(P_PID, (id_t)stop->si_pid, &seen, WSTOPPED | WNOHANG);
  if (stop->si_code == CLD_TRAPPED) {
    int number = stop->si_status & 0x7f;
    ptrace(PTRACE_DETACH, stop->si_pid, 0, number == SIGTRAP ? 0 : number);
    return;
  }
  for (const exec *x = execs; x; x = x->next)
    if (x->pid == stop->si_pid && x->flags & MS_EXEC_WORKER)
      kill(x->pid, SIGKILL);
}

/* Reaps what has ended. False when no child is left at all, so nothing in the sandbox is. */
static bool reap(void) {
  for (;;) {
    siginfo_t info = {0};
    if (waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT) < 0)
      return false;
    if (info.si_pid == 0)
      return true;
    if (info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED) {
      pass_stop(&info);
      continue;
    }
    uint64_t tag = tag_of(info.si_pid); /* before the zombie is gone */
    int status;
    struct rusage usage;
    if (wait4(info.si_pid, &status, 0, &usage) < 0)
      continue;
    for (exec *x = execs; x; x = x->next) {
      bool first = x->pid == info.si_pid && !x->ended; /* may have been killed before its tag */
      if (!first && x->tag != tag)
        continue;
      add_usage(&x->exit, &usage);
      if (first) {
        x->ended = true;
        x->exit.pid = x->pid;
        x->exit.status = status;
        x->exit.duration_ns = ms_clock_ns() - x->started_ns;
      }
    }
  }
}

static void fire_timeout(exec *x) {
  if (x->reason == MS_REASON_TIMEOUT || x->grace_ns == 0) {
    kill_tree(x, MS_REASON_TIMEOUT);
    return;
  }
  x->reason = MS_REASON_TIMEOUT;
  x->deadline_ns += x->grace_ns;
  signal_tree(x->tag, SIGTERM);
}

/* True when nothing is left of it. Kills what is. */
static bool is_over(exec *x, bool children_left) {
  if (!x->ended)
    return false;
  return (x->flags & MS_EXEC_LEAVE && !x->killing) || !children_left ||
         signal_tree(x->tag, SIGKILL) == 0;
}

/* Lets go of what is known of programs that were over long ago, or have much to remember. */
static void forget_some(void) {
  uint64_t bytes = 0;
  size_t count = 0;
  for (exec **at = &over; *at;) {
    exec *x = *at;
    bytes += x->log ? ms_log_memory(x->log) : 0;
    if (++count <= OVER_MAX && (bytes <= OVER_BYTES || count == 1)) {
      at = &x->next;
      continue;
    }
    *at = x->next;
    free_exec(x);
  }
}

static void report(exec *x) {
  char text[128];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_exit e = x->exit;
  e.reason = x->reason;
  ms_put_exit(&body, &e);
  if (x->log)
    ms_log_tell_end(x->log, MS_EXITED, &body);
  else if (x->client)
    ms_client_send(x->client, MS_EXITED, x->id, &body, -1);
}

static void end(exec *x) {
  if (x->log)
    ms_log_end(x->log);
  report(x);
  x->client = NULL;
  if (!x->words) {
    free_exec(x);
    return;
  }
  x->next = over;
  over = x;
  forget_some();
}

void ms_exec_step(void) {
  if (!execs) {
    reap();
    return;
  }
  uint64_t now = ms_clock_ns();
  for (exec *x = execs; x; x = x->next) {
    if (x->deadline_ns <= now && !x->ended)
      fire_timeout(x);
    else if (x->killing && !x->ended)
      signal_tree(x->tag, SIGKILL);
  }
  bool children_left = reap();
  for (exec **at = &execs; *at;) {
    exec *x = *at;
    if (!is_over(x, children_left)) {
      at = &x->next;
      continue;
    }
    *at = x->next;
    end(x);
  }
}

void ms_exec_end_foreground(void) {
  for (exec *x = execs; x; x = x->next)
    if (!x->log)
      kill_tree(x, MS_REASON_CLOSE);
}

void ms_exec_leave(ms_client *c) {
  ms_log_forget(c);
  for (exec *x = execs; x; x = x->next) {
    if (x->log || x->client != c)
      continue;
    x->client = NULL;
    kill_tree(x, MS_REASON_CLOSE);
  }
}

uint64_t ms_exec_deadline(void) {
  uint64_t deadline = UINT64_MAX;
  for (const exec *x = execs; x; x = x->next) {
    if (x->killing || x->ended)
      return ms_clock_ns() + PASS_INTERVAL_NS;
    if (x->deadline_ns < deadline)
      deadline = x->deadline_ns;
  }
  return deadline;
}

/* Looking at them ------------------------------------------------------------------------------ */

static exec *find_number(uint64_t number) {
  for (exec *x = execs; x; x = x->next)
    if (x->tag == number)
      return x;
  for (exec *x = over; x; x = x->next)
    if (x->tag == number)
      return x;
  return NULL;
}

static bool is_over_now(const exec *x) {
  for (const exec *each = over; each; each = each->next)
    if (each == x)
      return true;
  return false;
}

void ms_exec_attach(ms_client *c, uint32_t id, ms_reader *body, const int *fds, size_t fd_count) {
  uint64_t number = ms_get_u64(body);
  uint64_t since[2] = {ms_get_u64(body), ms_get_u64(body)};
  uint32_t once = ms_get_u32(body);
  int view[2];
  if (!ms_get_end(body) || fd_count != 2) {
    refuse(c, id, EPROTO, "request");
    return;
  }
  exec *x = find_number(number);
  if (!x || !x->log) {
    refuse(c, id, ENOENT, "id");
    return;
  }
  if (since[0] > ms_log_total(x->log, 0) || since[1] > ms_log_total(x->log, 1)) {
    refuse(c, id, EINVAL, "since");
    return;
  }
  for (int i = 0; i < 2; i++)
    view[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
  if (ms_log_view(x->log, c, id, view, since, once) < 0) {
    refuse(c, id, ENOMEM, "memory");
    return;
  }
  announce(c, id, x);
  if (is_over_now(x))
    report(x);
  else
    ms_log_give(x->log);
}

static void put_row(const exec *x, bool running, ms_writer *reply) {
  ms_put_program(reply, &(ms_program){.number = x->tag,
                                      .pid = (uint32_t)x->pid,
                                      .running = running,
                                      .background = x->log != NULL,
                                      .status = running ? 0 : x->exit.status,
                                      .started_us = x->started_us,
                                      .words = x->words,
                                      .words_length = x->words_length});
}

/* The program with the smallest number beyond `after`; NULL: none. */
static const exec *next_program(uint64_t after, bool *running) {
  const exec *found = NULL;
  const exec *lists[2] = {execs, over};
  for (int i = 0; i < 2; i++)
    for (const exec *x = lists[i]; x; x = x->next)
      if (x->words && x->tag > after && (!found || x->tag < found->tag)) {
        found = x;
        *running = i == 0;
      }
  return found;
}

void ms_exec_list(uint64_t after, ms_writer *reply) {
  const size_t start = reply->length;
  uint32_t count = 0, more = 0;
  bool running = false;
  ms_put_u32(reply, 0);
  for (const exec *x; (x = next_program(after, &running)); after = x->tag, count++) {
    if (reply->capacity - reply->length < MS_PROGRAM_WORDS_MAX + 64) {
      more = 1;
      break;
    }
    put_row(x, running, reply);
  }
  ms_put_u32(reply, more);
  memcpy(reply->data + start, &count, sizeof count);
}
