/* Programs: what was started, how it ends, and the end of all that it started.
 *
 * Every exec has a number, its *tag* (tags.c). It is over when its first process was reaped and
 * nothing with its tag is left (or, with MS_EXEC_LEAVE, at once). Only then is told who started it.
 * What runs in the background belongs to nobody: those who look at its log are told. */
#include "log.h"
#include "spawn.h"
#include "tags.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PASS_INTERVAL_NS UINT64_C(1000000)
/* Passes after which those who trace the tree are killed, too, each time. */
enum { TRACED_PASSES = 100 };
/* Children that are reaped before others have their turn. */
enum { REAP_MAX = 1024 };
/* What is known of programs that are over: how many, and how much their logs may hold together. */
enum { OVER_MAX = 100 };
#define OVER_BYTES (UINT64_C(64) * 1024 * 1024)

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
  uint32_t passes;
  ms_exit exit;
} exec;

static exec *execs;
static exec *over; /* programs, the last first */
static uint64_t last_tag;
static bool more_to_reap;

/* Starting ------------------------------------------------------------------------------------ */

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

/* Makes a process of it. */
static ms_failure begin(exec *x, const ms_exec *e, ms_client *c, int *stdio, char *const *argv,
                        char *const *envp) {
  const bool background = e->flags & MS_EXEC_BACKGROUND;
  if (!(e->flags & MS_EXEC_WORKER) && !keep_words(x, argv))
    return (ms_failure){ENOMEM, "memory"};
  ms_failure failure = {background ? put_log(x, e, c, x->id, stdio) : 0, "log"};
  if (!failure.error)
    failure = ms_spawn(e, stdio, x->tag, argv, envp, &x->pid);
  if (background)
    close_log_pipes(e, stdio);
  return failure;
}

void ms_exec_start(ms_client *c, ms_message *request) {
  const uint32_t id = request->header.id;
  ms_reader *body = &request->body;
  ms_exec e = {0};
  char **argv = NULL, **envp = NULL;
  int stdio[3];
  read_exec(body, &e);
  exec *x = calloc(1, sizeof *x);
  if (!x || !read_vectors(body, &e, &argv, &envp) || !ms_get_end(body) ||
      !deal_stdio(&e, request->fds, request->fd_count, stdio)) {
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
  ms_failure failure = begin(x, &e, c, stdio, argv, envp);
  free(argv);
  ms_close_fds(request); /* who is told that it runs finds closed what it has closed */
  if (failure.error) {
    refuse(c, id, failure.error, failure.what);
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

/* One pass of SIGKILL over the tree: how many were still there. Where ptrace is allowed, one who
 * traces a process keeps it as a zombie, of which we do not hear, and which cannot be killed. */
static size_t kill_pass(exec *x) {
  size_t left = ms_signal_tree(x->tag, SIGKILL);
  if (left > 0 && ++x->passes % TRACED_PASSES == 0)
    ms_kill_tracers(x->tag);
  return left;
}

static void kill_tree(exec *x, uint32_t reason) {
  if (!x->reason)
    x->reason = reason;
  x->killing = true;
  x->deadline_ns = UINT64_MAX;
  kill_pass(x);
}

void ms_exec_signal(const ms_client *c, uint32_t id, uint32_t number, uint32_t target,
                    uint32_t reason) {
  exec *x = find(c, id);
  if (!x || number == 0 || number > (uint32_t)SIGRTMAX)
    return;
  if (number == SIGKILL && target == MS_TARGET_TREE)
    kill_tree(x, reason);
  else if (target == MS_TARGET_TREE)
    ms_signal_tree(x->tag, (int)number);
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

/* Reaps what has ended, so many at a time: others may breed faster than we reap. False when no
 * child is left at all, so nothing in the sandbox is. */
static bool reap(void) {
  more_to_reap = false;
  for (int i = 0; i < REAP_MAX; i++) {
    siginfo_t info = {0};
    if (waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOHANG | WNOWAIT) < 0)
      return false;
    if (info.si_pid == 0)
      return true;
    if (info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED) {
      pass_stop(&info);
      continue;
    }
    uint64_t tag = ms_tag_of(info.si_pid); /* before the zombie is gone */
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
  more_to_reap = true;
  return true;
}

static void fire_timeout(exec *x) {
  if (x->reason == MS_REASON_TIMEOUT || x->grace_ns == 0) {
    kill_tree(x, MS_REASON_TIMEOUT);
    return;
  }
  x->reason = MS_REASON_TIMEOUT;
  x->deadline_ns += x->grace_ns;
  ms_signal_tree(x->tag, SIGTERM);
}

/* True when nothing is left of it. Kills what is. */
static bool is_over(exec *x, bool children_left) {
  if (!x->ended)
    return false;
  return (x->flags & MS_EXEC_LEAVE && !x->killing) || !children_left || kill_pass(x) == 0;
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
      kill_pass(x);
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
  if (more_to_reap)
    return 0;
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
