/* Programs that will not behave: bomb MODE. Each says "ready" once it is under way. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void ready(long count) {
  char text[64];
  int length = snprintf(text, sizeof text, "ready %ld\n", count);
  if (write(1, text, (size_t)length) < 0)
    return; /* nobody listens any more: it goes on all the same */
}

static void *sleeper(void *unused) {
  for (;;)
    pause();
  return unused;
}

static void deaf(void) {
  for (int number = 1; number < 65; number++)
    signal(number, SIG_IGN);
}

/* For ever, all of them, each in a session of its own. */
static void fork_bomb(void) {
  deaf();
  ready(0);
  for (;;) {
    pid_t pid = fork();
    if (pid == 0)
      setsid();
  }
}

/* A chain: each forks the next and dies. At any time there are one or two. */
static void runner(void) {
  deaf();
  ready(0);
  if (fork() > 0)
    pause(); /* the first stays, so that the program is not over */
  for (;;) {
    pid_t pid = fork();
    if (pid > 0)
      _exit(0);
    setsid();
  }
}

static void vfork_spin(void) {
  ready(0);
  for (;;) {
    pid_t pid = vfork();
    if (pid == 0)
      _exit(0);
    if (pid > 0)
      waitpid(pid, NULL, 0);
  }
}

/* As many as may be; says how many that is, and stays. */
static void fill(void) {
  long count = 0;
  for (; count < 100000; count++) {
    pid_t pid = fork();
    if (pid == 0) {
      setsid();
      pause();
      _exit(0);
    }
    if (pid < 0)
      break;
  }
  ready(count);
  pause();
}

/* Children that end at once and are never waited for. */
static void zombies(void) {
  long count = 0;
  for (; count < 100000; count++) {
    pid_t pid = fork();
    if (pid == 0)
      _exit(0);
    if (pid < 0)
      break;
  }
  ready(count);
  pause();
}

static void threads(void) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 16384);
  long count = 0;
  for (pthread_t t; count < 100000; count++)
    if (pthread_create(&t, &small, sleeper, NULL))
      break;
  ready(count);
  pause();
}

/* A daemon that has left the group, the session, its parent, and its output. */
static void daemonize(void) {
  pid_t pid = fork();
  if (pid == 0) {
    setsid();
    if (fork() > 0)
      _exit(0);
    setsid();
    deaf();
    ready(getpid());
    for (int fd = 0; fd < 3; fd++)
      close(fd);
    for (;;)
      pause();
  }
  waitpid(pid, NULL, 0);
}

static void term_deaf(void) {
  deaf();
  ready(0);
  for (;;)
    pause();
}

/* Runners that are their reaper's children again and again, and others beside it that let go on
 * whatever is stopped, or make it take long to look at all. Says which that reaper is. */
static void regrow(void) {
  for (int i = 0; i < 300; i++)
    if (fork() == 0)
      for (;;)
        pause();
  pid_t root = fork();
  if (root == 0) {
    signal(SIGCHLD, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (int i = 0; i < 60; i++)
      if (fork() == 0)
        for (;;) {
          usleep(15000);
          if (fork() > 0)
            _exit(0);
        }
    for (;;)
      pause();
  }
  for (int i = 0; i < 3; i++)
    if (fork() == 0)
      for (;;)
        kill(-1, SIGCONT);
  ready(root);
  for (;;)
    pause();
}

/* Children that are not its own, but the sandbox's first process's, which must bury them all. */
static void breed(void) {
  deaf();
  ready(0);
  for (int i = 0; i < 4; i++)
    if (syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) == 0)
      break;
  for (;;)
    if (syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) == 0)
      _exit(0);
}

/* Traces whatever comes, and never asks how it ended. */
static void trace(void) {
  ready(0);
  for (pid_t pid = 2;; pid = pid < 1000 ? pid + 1 : 2)
    if (pid != getpid())
      ptrace(PTRACE_SEIZE, pid, 0, 0);
}

static void kill_all(void) {
  kill(-1, SIGSTOP);
  kill(-1, SIGKILL);
  ready(0);
}

static void stop_all(void) {
  kill(-1, SIGSTOP);
  ready(0);
  for (;;)
    kill(-1, SIGSTOP);
}

static void signal_queue(void) {
  long count = 0;
  sigset_t set;
  sigfillset(&set);
  sigprocmask(SIG_BLOCK, &set, NULL);
  while (count < 1000000 && sigqueue(getpid(), SIGRTMIN, (union sigval){0}) == 0)
    count++;
  ready(count);
}

static void timers(void) {
  long count = 0;
  timer_t timer;
  struct sigevent event = {.sigev_notify = SIGEV_NONE};
  while (count < 1000000 && timer_create(CLOCK_MONOTONIC, &event, &timer) == 0)
    count++;
  ready(count);
}

static void inotify(void) {
  long instances = 0;
  while (instances < 100000 && inotify_init1(0) >= 0)
    instances++;
  ready(instances);
}

static void watches(void) {
  int fd = inotify_init1(0);
  long count = 0;
  char name[32];
  for (; count < 100000; count++) {
    snprintf(name, sizeof name, "/tmp/w%ld", count);
    FILE *file = fopen(name, "w");
    if (!file)
      break;
    fclose(file);
    if (inotify_add_watch(fd, name, IN_MODIFY) < 0)
      break;
  }
  ready(count);
}

static void memory(void) {
  long mib = 0;
  for (; mib < 100000; mib++) {
    char *block = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED)
      break;
    memset(block, 1, 1 << 20);
  }
  ready(mib);
}

static int recurse(volatile int depth) {
  volatile char frame[4096];
  frame[0] = (char)depth;
  return depth < 0 ? 0 : recurse(depth + 1) + frame[0];
}

static void crash(void) {
  exit(recurse(0));
}

static void files(void) {
  long count = 0;
  while (count < 1000000 && dup(0) >= 0)
    count++;
  ready(count);
}

static void locked(void) {
  long count = 0;
  for (; count < 4096; count++) {
    char *block = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mlock(block, 1 << 20) < 0)
      break;
  }
  ready(count);
}

static const struct {
  const char *name;
  void (*run)(void);
} modes[] = {{"fork", fork_bomb},   {"runner", runner},         {"vfork", vfork_spin},
             {"fill", fill},        {"zombies", zombies},       {"threads", threads},
             {"daemon", daemonize}, {"deaf", term_deaf},        {"kill", kill_all},
             {"stop", stop_all},    {"sigqueue", signal_queue}, {"timers", timers},
             {"inotify", inotify},  {"watches", watches},       {"memory", memory},
             {"crash", crash},      {"files", files},           {"mlock", locked},
             {"regrow", regrow},    {"breed", breed},           {"trace", trace}};

int main(int argc, char **argv) {
  for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
    if (strcmp(argv[1], modes[i].name) == 0) {
      modes[i].run();
      return 0;
    }
  return 2;
}
