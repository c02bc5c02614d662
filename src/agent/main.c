/* The zygote: the host's only child, one per host process. Forks the sandboxes, reaps the dead
 * ones, and takes the living ones along when the host dies: it watches a pidfd of the host, because
 * PDEATHSIG belongs to a thread and a socket may be held open by a fork.
 *
 * Nearly all the work of a new sandbox is the same for each. So one *spare* is always kept: forked
 * and set up but for what MS_CREATE says, which is forwarded to it when it comes. Then the next one
 * is made, while the host is busy with the first.
 *
 * It is started with an empty environment and these files: 0 to 2 /dev/null, 3 its socket to the
 * host, 4 the host's pidfd. With arguments the program is the keeper instead (keeper.c).
 *
 * The first thing that it does is to go on as a copy of itself in memory. In every program before
 * its exec, /proc/self/exe is what we run from: a link in the place of a program, or the first line
 * of a script, leads there, and who opens it through /proc has a file of the host's, perhaps its
 * user's own, to change (CVE-2019-5736 was that). The copy is sealed; and as it cannot be read,
 * what runs from it is not dumpable, so that nobody inside opens it at all. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/keyctl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HOST_SOCKET = 3, HOST_PIDFD = 4 };

/* What one user of the host may be made to spend by one sandbox: counted per user namespace, with
 * these as the ceiling. They count in the user's own as well, which usually may have 819200 bytes
 * of queues. */
enum { MAX_PENDING_SIGNALS = 4096, MAX_QUEUE_BYTES = 102400 };

typedef struct spare {
  pid_t pid;  /* 0: there is none */
  int pidfd;  /* owned */
  int socket; /* owned; takes one MS_CREATE */
} spare;

typedef struct zygote {
  uid_t uid;
  gid_t gid;
  int signals; /* signalfd of SIGCHLD */
  spare spare;
  pid_t *children;
  size_t count, capacity;
} zygote;

static ms_message request; /* too large for the stack; each fork has its own copy */

static void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0)
    return;
  if (write(fd, text, strlen(text)) < 0) {
    /* The caller finds out by what it tries next. */
  }
  close(fd);
}

/* Past the C library, which keeps two signals for itself, and posix_spawn leaves those ignored. */
static void reset_signals(void) {
  static const uint64_t standard[4]; /* the kernel's struct: handler SIG_DFL, no flags, no mask */
  for (int signal_number = 1; signal_number < NSIG; signal_number++)
    syscall(SYS_rt_sigaction, signal_number, standard, NULL, sizeof(uint64_t));
}

/* Uid 0 of the first user namespace must not be mapped into a sandbox: it would own the host's
 * files. Where 0 is somebody else outside (a rootless container), there is nobody to become. */
static int drop_root(void) {
  if (geteuid() != 0)
    return 0;
  if (setgroups(0, NULL) == 0 &&
      setresgid(MS_UNPRIVILEGED, MS_UNPRIVILEGED, MS_UNPRIVILEGED) == 0 &&
      setresuid(MS_UNPRIVILEGED, MS_UNPRIVILEGED, MS_UNPRIVILEGED) == 0)
    return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* a fork writes its own uid_map */
  unsigned inside = 0, outside = 0;
  FILE *map = fopen("/proc/self/uid_map", "re");
  bool contained =
      map && fscanf(map, "%u %u", &inside, &outside) == 2 && inside == 0 && outside != 0;
  if (map)
    fclose(map);
  return contained ? 0 : -1;
}

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

static const char copy_name[] = "moonsand-zygote"; /* argv[0] of the copy */

/* An anonymous executable file; kernels before 6.3 do not know the flag that others insist on. */
static int memory_file(void) {
  int fd = memfd_create("moonsand", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
  return fd >= 0 ? fd : memfd_create("moonsand", MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

/* Returns only when it cannot be. */
static void become_copy(void) {
  const int seals = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
  char *const argv[] = {(char *)(uintptr_t)copy_name, NULL}, *const envp[] = {NULL};
  struct stat st;
  int own = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), copy = memory_file();
  if (own < 0 || copy < 0 || fstat(own, &st) < 0)
    return;
  for (off_t left = st.st_size; left > 0;) {
    ssize_t sent = sendfile(copy, own, NULL, (size_t)left);
    if (sent <= 0)
      return;
    left -= sent;
  }
  if (fchmod(copy, 0111) == 0 && fcntl(copy, F_ADD_SEALS, seals) == 0)
    syscall(SYS_execveat, copy, "", argv, envp, AT_EMPTY_PATH);
}

static int zygote_prepare(zygote *z) {
  prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* a fork writes its own uid_map */
  reset_signals();
  sigset_t chld;
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  sigprocmask(SIG_SETMASK, &chld, NULL);
  z->signals = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
  prctl(PR_SET_NAME, "moonsand");
  umask(0);
  if (chdir("/") < 0 || z->signals < 0)
    return -1;
  fcntl(HOST_SOCKET, F_SETFD, FD_CLOEXEC);
  fcntl(HOST_PIDFD, F_SETFD, FD_CLOEXEC);

  /* One anonymous keyring for all: a keyring each would exhaust the user's quota. What is inside
   * cannot reach it, keyctl is filtered. */
  syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL, 0, 0, 0);
  write_file("/proc/self/oom_score_adj", "500"); /* rather them than the host */
  setrlimit(RLIMIT_SIGPENDING, &(struct rlimit){MAX_PENDING_SIGNALS, MAX_PENDING_SIGNALS});
  setrlimit(RLIMIT_MSGQUEUE, &(struct rlimit){MAX_QUEUE_BYTES, MAX_QUEUE_BYTES});
  /* 1, not 0: the one value at which the kernel does not run a core_pattern handler either. */
  setrlimit(RLIMIT_CORE, &(struct rlimit){1, 1});
  if (drop_root() < 0)
    return -1;
  z->uid = geteuid();
  z->gid = getegid();
  return 0;
}

/* Children ------------------------------------------------------------------------------------ */

static void forget_child(zygote *z, pid_t pid) {
  for (size_t i = 0; i < z->count; i++)
    if (z->children[i] == pid) {
      z->children[i] = z->children[--z->count];
      return;
    }
}

static void drop_spare(spare *s) {
  close(s->pidfd);
  close(s->socket);
  s->pid = 0;
}

/* A bwrap leads a group. In it is what it started, until that is an agent, which has a session of
 * its own: a bwrap that dies too early leaves a child that waits for it for ever. */
static void kill_child(pid_t pid) {
  bool leads = kill(-pid, SIGKILL) == 0;
  kill(pid, SIGKILL);
  siginfo_t dead;
  if (leads && waitid(P_PID, (id_t)pid, &dead, WEXITED | WNOWAIT) == 0)
    kill(-pid, SIGKILL); /* now that it starts nothing any more */
}

static void zygote_reap(zygote *z) {
  struct signalfd_siginfo drained[16];
  while (read(z->signals, drained, sizeof drained) > 0)
    continue;
  siginfo_t dead = {0};
  while (waitid(P_ALL, 0, &dead, WEXITED | WNOHANG | WNOWAIT) == 0 && dead.si_pid > 0) {
    pid_t pid = dead.si_pid;
    kill_child(pid);
    waitpid(pid, NULL, 0);
    if (pid == z->spare.pid)
      drop_spare(&z->spare);
    forget_child(z, pid);
    dead.si_pid = 0;
  }
}

static _Noreturn void zygote_end(const zygote *z) {
  for (size_t i = 0; i < z->count; i++)
    kill_child(z->children[i]);
  _exit(0);
}

/* Sandboxes ----------------------------------------------------------------------------------- */

static bool make_room(zygote *z) {
  if (z->count < z->capacity)
    return true;
  size_t capacity = z->capacity ? z->capacity * 2 : 16;
  pid_t *grown = realloc(z->children, capacity * sizeof *grown);
  if (!grown)
    return false;
  z->children = grown;
  z->capacity = capacity;
  return true;
}

static pid_t clone_sandbox(int *pidfd, uint16_t wanted) {
  unsigned long flags = CLONE_PIDFD | SIGCHLD;
  if (!(wanted & MS_CREATE_BWRAP))
    flags |= CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS |
             CLONE_NEWCGROUP | (wanted & MS_CREATE_HOST_NETWORK ? 0 : CLONE_NEWNET);
  return (pid_t)syscall(SYS_clone, flags, NULL, pidfd, NULL, NULL);
}

/* `flags`: what is wanted of it, as of MS_CREATE. 0 or a positive errno. */
static int make_spare(zygote *z, spare *made, uint16_t flags) {
  int pair[2];
  if (!make_room(z))
    return ENOMEM;
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return errno;
  int pidfd = -1;
  pid_t pid = clone_sandbox(&pidfd, flags);
  if (pid == 0) {
    close(z->signals);
    close(HOST_SOCKET);
    close(pair[0]);
    if (flags & MS_CREATE_BWRAP)
      ms_bwrap_main(pair[1], HOST_PIDFD, flags, &request);
    ms_sandbox_main(pair[1], HOST_PIDFD, z->uid, z->gid, flags, &request);
  }
  int error = errno;
  close(pair[1]);
  if (pid < 0) {
    close(pair[0]);
    return error;
  }
  if (flags & MS_CREATE_BWRAP)
    setpgid(pid, pid); /* see kill_child: before it is told to become bwrap */
  z->children[z->count++] = pid;
  *made = (spare){.pid = pid, .pidfd = pidfd, .socket = pair[0]};
  return 0;
}

/* Forwards what the host wants to the spare, or to a fresh one when that has died. 0 or a positive
 * errno. */
static int hand_over(zygote *z, spare *to, uint16_t flags) {
  const ms_reader *body = &request.body;
  int sent = 0;
  for (int attempt = 0; attempt < 2; attempt++) {
    int error = to->pid ? 0 : make_spare(z, to, flags);
    if (error)
      return error;
    sent = ms_send(to->socket, &request.header, body->data, body->length, request.fds,
                   request.fd_count);
    if (sent == 0)
      return 0;
    drop_spare(to);
  }
  return -sent;
}

/* 0 or a negative errno. */
static int answer(int error, pid_t pid, int pidfd) {
  char text[64];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)error);
  ms_put_u32(&body, (uint32_t)pid);
  ms_put_str(&body, error ? "clone" : "");
  ms_header header = {.type = MS_CREATED, .id = request.header.id};
  struct pollfd room = {.fd = HOST_SOCKET, .events = POLLOUT};
  int sent;
  while ((sent = ms_send(HOST_SOCKET, &header, body.data, body.length, &pidfd, pidfd >= 0)) ==
         -EAGAIN)
    poll(&room, 1, -1);
  return sent;
}

/* The spare is as most are wanted; what is wanted otherwise is made for it. */
static void zygote_create(zygote *z) {
  uint16_t flags =
      request.header.flags & (MS_CREATE_MOUNTS | MS_CREATE_HOST_NETWORK | MS_CREATE_BWRAP);
  spare fresh = {0};
  spare *to = flags ? &fresh : &z->spare;
  int error = hand_over(z, to, flags);
  if (error) {
    answer(error, 0, -1);
    return;
  }
  int answered = answer(0, to->pid, to->pidfd);
  if (answered < 0) { /* nobody would watch it */
    kill_child(to->pid);
    answer(-answered, 0, -1);
  }
  drop_spare(to); /* it is a sandbox now */
  ms_close_fds(&request);
  if (!z->spare.pid)
    make_spare(z, &z->spare, 0); /* should that fail, the next request tells */
}

/* A user namespace for mounts of the host's: needs no right but to be who the sandboxes are. */
static void zygote_idmap(const zygote *z) {
  uid_t shown = ms_get_u32(&request.body);
  gid_t shown_gid = ms_get_u32(&request.body);
  if (!ms_get_end(&request.body) || request.fd_count != 1)
    return;
  pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
  if (pid == 0)
    ms_idmap_main(request.fds[0], shown, shown_gid, z->uid, z->gid);
  if (pid < 0) {
    uint32_t error = (uint32_t)errno;
    ms_send(request.fds[0], &(ms_header){.type = MS_IDMAP}, &error, sizeof error, NULL, 0);
  }
}

/* A sandbox that lives without the host. It stays our child, and is reaped like any. */
static void zygote_release(zygote *z) {
  uint32_t pid = ms_get_u32(&request.body);
  if (!ms_get_end(&request.body))
    return;
  forget_child(z, (pid_t)pid);
  struct pollfd room = {.fd = HOST_SOCKET, .events = POLLOUT};
  ms_header header = {.type = MS_RELEASE, .id = request.header.id};
  while (ms_send(HOST_SOCKET, &header, &pid, sizeof pid, NULL, 0) == -EAGAIN)
    poll(&room, 1, -1);
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], MS_INSIDE) == 0)
    ms_bwrapped_main(argv + 2, &request);
  if (argc > 1)
    return ms_keeper_main(argc - 1, argv + 1);
  if (argc < 1 || strcmp(argv[0], copy_name) != 0) {
    become_copy();
    return 1;
  }
  zygote z = {0};
  if (zygote_prepare(&z) < 0)
    return 1;
  make_spare(&z, &z.spare, 0);
  struct pollfd events[] = {{.fd = HOST_SOCKET, .events = POLLIN},
                            {.fd = z.signals, .events = POLLIN},
                            {.fd = HOST_PIDFD, .events = POLLIN}};
  for (;;) {
    if (poll(events, 3, -1) < 0)
      continue;
    if (events[2].revents)
      zygote_end(&z);
    if (events[1].revents)
      zygote_reap(&z);
    if (!events[0].revents)
      continue;
    int received = ms_receive(HOST_SOCKET, &request);
    if (received == -EAGAIN)
      continue;
    if (received <= 0)
      zygote_end(&z);
    if (request.header.type == MS_CREATE)
      zygote_create(&z);
    if (request.header.type == MS_RELEASE)
      zygote_release(&z);
    if (request.header.type == MS_IDMAP)
      zygote_idmap(&z);
    ms_close_fds(&request);
  }
}
