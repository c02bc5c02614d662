/* Processes: what /proc says of them, and signals to them.
 *
 * A pid may be another process's by the time it is used. So a process is its pid and the moment
 * when it began (a number comes back after more forks than fit into one tick), and it is signalled
 * through a pidfd that was opened before that was looked at. */
#include "ps.h"

#include "../place.h"
#include "agent.h"
#include "worker.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#define NS UINT64_C(1000000000)
#define TICK_NS (NS / 100) /* of /proc: the same on every Linux that programs see */

/* Reading ------------------------------------------------------------------------------------- */

/* What a file of a process holds, NUL behind it: how much, or -1. */
static ssize_t read_file(pid_t pid, const char *name, char *text, size_t size) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return -1;
  size_t length = 0;
  ssize_t count = 0;
  while (length + 1 < size && (count = read(fd, text + length, size - 1 - length)) > 0)
    length += (size_t)count;
  close(fd);
  text[length] = '\0';
  return count < 0 ? -1 : (ssize_t)length;
}

static uint64_t clock_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * NS + (uint64_t)now.tv_nsec;
}

/* The fields behind the name, by their numbers in proc(5). */
enum {
  STATE = 3,
  PPID = 4,
  UTIME = 14,
  STIME = 15,
  CUTIME = 16,
  CSTIME = 17,
  THREADS = 20,
  START = 22,
  RSS = 24,
  FIELDS
};

/* Both clocks at one moment: on a busy machine others may run between two readings, which would
 * move the start of a process from one listing to the next. */
static void read_clocks(uint64_t *boot, uint64_t *wall) {
  for (int tries = 0; tries < 5; tries++) {
    *boot = clock_ns(CLOCK_BOOTTIME);
    *wall = clock_ns(CLOCK_REALTIME);
    if (clock_ns(CLOCK_BOOTTIME) - *boot < NS / 1000)
      break;
  }
}

/* The name is in parentheses and may hold any of its own: it ends at the last one. `text` stays in
 * use. */
static bool parse_stat(ms_proc *p, char *text) {
  uint64_t field[FIELDS] = {0};
  char *open = strchr(text, '('), *close = strrchr(text, ')');
  if (!open || !close || close < open || close[1] != ' ')
    return false;
  p->name = open + 1;
  p->name_length = (size_t)(close - p->name);
  char *at = close + 2;
  p->state = (unsigned char)*at;
  at += *at ? 1 : 0;
  for (int i = PPID; i < FIELDS; i++)
    field[i] = strtoull(at, &at, 10);
  uint64_t began = field[START] * TICK_NS, now, wall;
  read_clocks(&now, &wall);
  p->ppid = (uint32_t)field[PPID];
  p->threads = (uint32_t)field[THREADS];
  p->cpu_ns = (field[UTIME] + field[STIME]) * TICK_NS;
  p->family_ns = p->cpu_ns + (field[CUTIME] + field[CSTIME]) * TICK_NS;
  p->memory = field[RSS] * (uint64_t)sysconf(_SC_PAGESIZE);
  p->age_ns = now > began ? now - began : 0;
  p->started_us = wall > p->age_ns ? (wall - p->age_ns) / 1000 : 0;
  p->ticks = field[START];
  return true;
}

enum { STAT_MAX = 1024 };

/* What it is and what it has used: false when there is none. The name is in `text`, of STAT_MAX.
 * Read again when others ran between the figures and the clocks: what is used per second comes of
 * both. */
static bool read_stat(ms_proc *p, pid_t pid, char *text) {
  for (int tries = 0; tries < 3; tries++) {
    uint64_t before = clock_ns(CLOCK_BOOTTIME);
    *p = (ms_proc){.pid = (uint32_t)pid, .name = "", .args = ""};
    if (pid <= 0 || read_file(pid, "stat", text, STAT_MAX) <= 0 || !parse_stat(p, text))
      return false;
    if (clock_ns(CLOCK_BOOTTIME) - before < NS / 1000)
      break;
  }
  return true;
}

static uint64_t value_of(const char *text, const char *key) {
  const char *at = strstr(text, key);
  return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static void read_io(ms_proc *p) {
  char text[1024];
  if (read_file((pid_t)p->pid, "io", text, sizeof text) < 0)
    return; /* not dumpable */
  p->read_bytes = value_of(text, "\nread_bytes: ");
  p->write_bytes = value_of(text, "\nwrite_bytes: ");
}

static void read_owner(ms_proc *p) {
  char path[32];
  struct stat st;
  snprintf(path, sizeof path, "/proc/%u", p->pid);
  p->uid = stat(path, &st) == 0 ? st.st_uid : 0;
}

/* Calls `look` for every process until it says no. */
typedef bool look(const ms_proc *p, void *with);

static int each_process(look *fn, void *with) {
  DIR *dir = opendir("/proc");
  if (!dir)
    return -errno;
  struct dirent *entry;
  while ((entry = readdir(dir))) {
    char text[STAT_MAX];
    ms_proc p;
    if (isdigit((unsigned char)entry->d_name[0]) &&
        read_stat(&p, (pid_t)strtol(entry->d_name, NULL, 10), text) && !fn(&p, with))
      break;
  }
  closedir(dir);
  return 0;
}

/* Calls --------------------------------------------------------------------------------------- */

int ms_ps_sample(uint64_t pid, uint64_t ticks, ms_writer *reply) {
  char text[STAT_MAX];
  ms_proc p;
  if (pid > INT32_MAX || !read_stat(&p, (pid_t)pid, text) || (ticks && p.ticks != ticks) ||
      p.state == 'Z' || p.state == 'X')
    return -ESRCH;
  read_owner(&p);
  read_io(&p);
  ms_put_proc(reply, &p);
  return 0;
}

typedef struct usage {
  uint64_t cpu_ns, memory;
  uint32_t processes;
} usage;

/* A process that is over is in its parent's account, once that has heard of it. */
static bool add_usage(const ms_proc *p, void *with) {
  usage *u = with;
  u->cpu_ns += p->family_ns;
  u->memory += p->memory;
  u->processes++;
  return true;
}

int ms_ps_usage(ms_writer *reply) {
  usage u = {0};
  struct sysinfo machine = {0};
  struct statvfs disk = {0};
  cpu_set_t cpus;
  int error = each_process(add_usage, &u);
  if (error || sysinfo(&machine) < 0 || statvfs("/", &disk) < 0)
    return error ? error : -errno;
  bool known = sched_getaffinity(0, sizeof cpus, &cpus) == 0;
  ms_put_u64(reply, clock_ns(CLOCK_BOOTTIME));
  ms_put_u64(reply, u.cpu_ns);
  ms_put_u64(reply, u.memory);
  ms_put_u64(reply, (uint64_t)machine.totalram * machine.mem_unit);
  ms_put_u64(reply, (uint64_t)(disk.f_blocks - disk.f_bfree) * disk.f_frsize);
  ms_put_u32(reply, u.processes);
  ms_put_u32(reply, known ? (uint32_t)CPU_COUNT(&cpus) : 1);
  return 0;
}

/* Signals ------------------------------------------------------------------------------------- */

/* Over a tree that is to be killed: others wait meanwhile. */
enum { STOP_PASSES = 16, KILL_PASSES = 8 };

/* 0, or -ESRCH when it is not the process that began then. `ticks` of 0, whichever has the pid now,
 * become its own: when it can be signalled after that was read, the pid is still its. */
static int signal_process(pid_t pid, uint64_t *ticks, int number) {
  char text[STAT_MAX];
  ms_proc p;
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (pidfd < 0)
    return errno == EINVAL ? -ESRCH : -errno; /* a thread's number */
  int error = 0;
  if (!read_stat(&p, pid, text) || (*ticks && p.ticks != *ticks))
    error = -ESRCH;
  else if (syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0) < 0)
    error = -errno;
  close(pidfd);
  if (!error)
    *ticks = p.ticks;
  return error;
}

typedef struct kin {
  pid_t pid, ppid;
  uint64_t ticks;
  bool below; /* the root of the tree, or under it */
  bool told;  /* was sent the signal already */
} kin;

typedef struct family {
  kin *list; /* owned */
  size_t count, capacity;
  bool full;
} family;

static bool add_kin(const ms_proc *p, void *with) {
  family *f = with;
  if (f->count == f->capacity) {
    size_t capacity = f->capacity ? f->capacity * 2 : 256;
    kin *grown = realloc(f->list, capacity * sizeof *grown);
    f->full = !grown;
    if (!grown)
      return false;
    f->list = grown;
    f->capacity = capacity;
  }
  f->list[f->count++] = (kin){.pid = (pid_t)p->pid, .ppid = (pid_t)p->ppid, .ticks = p->ticks};
  return true;
}

static bool is_below(const family *f, const kin *k, const kin *root) {
  if (k->pid == root->pid)
    return k->ticks == root->ticks;
  for (size_t i = 0; i < f->count; i++)
    if (f->list[i].below && f->list[i].pid == k->ppid)
      return true;
  return false;
}

static void mark_below(family *f, const kin *root) {
  for (bool more = true; more;) {
    more = false;
    for (size_t i = 0; i < f->count; i++) {
      kin *k = &f->list[i];
      if (!k->below && k->pid > 1 && is_below(f, k, root))
        k->below = more = true;
    }
  }
}

static bool was_told(const family *before, const kin *k) {
  for (size_t i = 0; i < before->count; i++)
    if (before->list[i].told && before->list[i].pid == k->pid && before->list[i].ticks == k->ticks)
      return true;
  return false;
}

/* One pass over the tree: how many were sent the signal that were not before; or a negative errno.
 */
static int signal_pass(family *f, const kin *root, int number) {
  family now = {0};
  int error = each_process(add_kin, &now), told = 0;
  if (!error && now.full)
    error = -ENOMEM;
  if (!error)
    mark_below(&now, root);
  for (size_t i = 0; !error && i < now.count; i++) {
    kin *k = &now.list[i];
    if (!k->below)
      continue;
    k->told = was_told(f, k);
    if (!k->told && signal_process(k->pid, &k->ticks, number) == 0)
      k->told = true, told++;
  }
  free(f->list);
  *f = now;
  return error ? error : told;
}

/* What is stopped forks no more, so that with passes until nobody new is found the tree is whole
 * before the first of it dies and its children are another's. Helpers of the tree may let it go on
 * while we look. What is killed nobody lets go on: so after some passes that is done at once, and
 * we answer after some more in any case. */
static int kill_tree(const kin *root) {
  family f = {0};
  int told = 1;
  for (int pass = 0; told > 0 && pass < STOP_PASSES; pass++)
    told = signal_pass(&f, root, SIGSTOP);
  for (size_t i = 0; i < f.count; i++)
    if (f.list[i].told)
      signal_process(f.list[i].pid, &f.list[i].ticks, SIGKILL);
  for (int pass = 0; told > 0 && pass < KILL_PASSES; pass++)
    told = signal_pass(&f, root, SIGKILL);
  free(f.list);
  return told < 0 ? told : 0;
}

static int signal_tree(const kin *root, int number) {
  if (number == SIGKILL)
    return kill_tree(root);
  family f = {0};
  int told = signal_pass(&f, root, number);
  free(f.list);
  return told < 0 ? told : 0;
}

int ms_ps_signal(uint64_t pid, uint64_t ticks, uint32_t number, bool tree, ms_writer *reply) {
  if (pid == 0 || pid > INT32_MAX)
    return -ESRCH;
  if (number == 0 || number > (uint32_t)SIGRTMAX)
    return -EINVAL;
  if (pid == 1)
    return -EPERM; /* the sandbox itself: it is closed from outside */
  kin root = {.pid = (pid_t)pid, .ticks = ticks};
  int error = signal_process(root.pid, &root.ticks, tree ? 0 : (int)number);
  if (!error && tree)
    error = signal_tree(&root, (int)number);
  if (!error)
    ms_put_u64(reply, root.ticks);
  return error;
}

/* The worker ---------------------------------------------------------------------------------- */

static bool emit(const ms_proc *found, void *with) {
  static char args[MS_PROC_ARGS_MAX + 1], body[MS_RECORD_DATA_MAX];
  uint64_t *count = with;
  ms_proc p = *found;
  if ((pid_t)p.pid == getpid())
    return true;
  ssize_t length = read_file((pid_t)p.pid, "cmdline", args, sizeof args);
  p.args = args;
  p.args_length = length > 0 ? (size_t)length : 0;
  read_owner(&p);
  ms_writer w = {.data = body, .capacity = sizeof body};
  ms_put_proc(&w, &p);
  char header[MS_RECORD_HEADER];
  ms_record_data_header(header, w.length);
  ms_out_raw(header, sizeof header);
  ms_out_raw(w.data, w.length);
  ++*count;
  return true;
}

int ms_work_ps(int argc, char **argv) {
  (void)argc, (void)argv;
  uint64_t count = 0;
  int error = each_process(emit, &count);
  return error ? ms_out_failed(error, "/proc") : ms_out_end(count);
}
