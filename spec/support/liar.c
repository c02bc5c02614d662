/* links: src/wire.c */
/* A helper program that lies, in the place of the real one. How is told by the name of its file:
 * liar-MODE. Modes that begin with "zygote-" lie as the zygote; in the others the zygote is honest
 * and makes a child, which lies as the agent of a sandbox. The child is killed with its pidfd, as a
 * real one, or ends when its socket does, unless the mode is "stubborn". */
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *mode;
static char path[4096]; /* our own */
static ms_message message;

static bool is(const char *name) {
  return strcmp(mode, name) == 0;
}

/* Saying things ------------------------------------------------------------------------------- */

static void say(int s, uint16_t type, uint32_t id, const ms_writer *body, const int *fds,
                size_t count) {
  ms_header header = {.type = type, .id = id};
  struct pollfd room = {.fd = s, .events = POLLOUT};
  int sent;
  while ((sent = ms_send(s, &header, body->data, body->length, fds, count)) == -EAGAIN)
    poll(&room, 1, -1);
  if (sent == -EPIPE)
    _exit(0); /* also out of a flood, whose zygote may have been ended before it told of us */
}

static void say_numbers(int s, uint16_t type, uint32_t id, const uint32_t *numbers, size_t count,
                        const char *text) {
  char bytes[4096];
  ms_writer body = {.data = bytes, .capacity = sizeof bytes};
  for (size_t i = 0; i < count; i++)
    ms_put_u32(&body, numbers[i]);
  if (text)
    ms_put_str(&body, text);
  say(s, type, id, &body, NULL, 0);
}

#define SAY(s, type, id, text, ...)                                                                \
  say_numbers(s, type, id, (const uint32_t[]){__VA_ARGS__},                                        \
              sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t), text)

static void say_exit(int s, uint32_t id, int32_t pid, int32_t status, uint32_t reason) {
  char bytes[128];
  ms_writer body = {.data = bytes, .capacity = sizeof bytes};
  ms_exit e = {.pid = pid, .status = status, .reason = reason, .max_rss_kib = UINT64_MAX};
  ms_put_exit(&body, &e);
  say(s, MS_EXITED, id, &body, NULL, 0);
}

static void say_raw(int s, const void *bytes, size_t length) {
  send(s, bytes, length, MSG_NOSIGNAL);
}

/* More files than a message of ours can have. */
static void say_many(int s, const void *bytes, size_t length, int fd, size_t count) {
  static char control[CMSG_SPACE(253 * sizeof(int))];
  int fds[253];
  for (size_t i = 0; i < count; i++)
    fds[i] = fd;
  struct iovec part = {(void *)bytes, length};
  struct msghdr raw = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = CMSG_SPACE(count * sizeof(int))};
  struct cmsghdr *rights = CMSG_FIRSTHDR(&raw);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(rights), fds, count * sizeof(int));
  if (sendmsg(s, &raw, MSG_NOSIGNAL) < 0 && errno == EPIPE)
    _exit(0);
}

/* A directory that has something else where terminals are made. */
static int false_root(void) {
  char at[4200];
  snprintf(at, sizeof at, "%s-root/dev/pts/ptmx", path);
  for (char *slash = strchr(at + strlen(path), '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    mkdir(at, 0755);
    *slash = '/';
  }
  if (is("root-fifo"))
    mkfifo(at, 0666);
  else if (is("root-file"))
    close(open(at, O_CREAT | O_RDWR | O_CLOEXEC, 0666));
  else if (is("root-link") && symlink("/dev/null", at) < 0)
    return -1;
  at[strlen(path) + strlen("-root")] = '\0';
  return open(at, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

static int root(void) {
  return strncmp(mode, "root-", 5) == 0 ? false_root()
                                        : open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

static int fifo(void) {
  int ends[2];
  return pipe2(ends, O_CLOEXEC) < 0 ? -1 : ends[0];
}

static int unix_socket(void) {
  return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static void say_ready(int s, int fd) {
  say(s, MS_READY, 0, &(ms_writer){0}, &fd, fd >= 0);
}

static _Noreturn void wait_for_ever(void) {
  for (;;)
    pause();
}

/* The agent ----------------------------------------------------------------------------------- */

static void lie_at_ready(int s) {
  const ms_header ready = {.type = MS_READY};
  char big[MS_WIRE_MAX + 4096] = {MS_READY};
  if (is("silent") || is("stubborn"))
    wait_for_ever();
  else if (is("dies"))
    _exit(0);
  else if (is("ready-nothing"))
    say_ready(s, -1);
  else if (is("ready-file"))
    say_ready(s, open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  else if (is("ready-fifo"))
    say_ready(s, fifo());
  else if (is("ready-socket"))
    say_ready(s, unix_socket());
  else if (is("ready-device"))
    say_ready(s, open("/dev/zero", O_RDWR | O_CLOEXEC));
  else if (is("ready-two"))
    say(s, MS_READY, 0, &(ms_writer){0}, (int[]){root(), root()}, 2);
  else if (is("ready-many"))
    say_many(s, &ready, sizeof ready, root(), 5);
  else if (is("ready-253"))
    say_many(s, &ready, sizeof ready, fifo(), 253);
  else if (is("ready-itself"))
    say_ready(s, s);
  else if (is("self")) { /* only who is below bwrap may say who it is */
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    say(s, MS_SELF, 0, &(ms_writer){0}, &self, 1);
  } else if (is("half"))
    say_raw(s, "\3\0\0", 3);
  else if (is("empty"))
    say_raw(s, "", 0);
  else if (is("long"))
    say_raw(s, big, sizeof big);
  else if (is("unknown"))
    SAY(s, 999, 0, NULL, 1);
  else if (is("type-0"))
    SAY(s, 0, 0, NULL, 1);
  else if (is("echo"))
    SAY(s, MS_EXEC, 1, "sh", 1, 2, 3);
  else if (is("failed-garbage"))
    SAY(s, MS_FAILED, 0, NULL, 1);
  else if (is("failed-long"))
    SAY(s, MS_FAILED, 0, "a stage with a name that is far too long for the place where it is kept",
        1);
  else if (is("failed-huge"))
    SAY(s, MS_FAILED, 0, NULL, 1, UINT32_MAX, 'x');
  else if (is("failed-nul"))
    say_raw(s, "\4\0\0\0\0\0\0\0\1\0\0\0\2\0\0\0a\0\0", 19);
  else if (is("failed-strange"))
    SAY(s, MS_FAILED, 0, "%s%n\33[2J", 0xffffffffu);
  else if (is("early-started"))
    SAY(s, MS_STARTED, 1, NULL, 7);
  else if (is("early-return"))
    SAY(s, MS_RETURN, 1, NULL, 0);
  else if (is("flood"))
    for (;;)
      SAY(s, MS_STARTED, 0, NULL, 7);
}

static void say_gap(int s, uint32_t id, uint32_t stream, uint64_t at, uint64_t length) {
  char bytes[32];
  ms_writer body = {.data = bytes, .capacity = sizeof bytes};
  ms_put_u32(&body, stream);
  ms_put_u64(&body, at);
  ms_put_u64(&body, length);
  say(s, MS_GAP, id, &body, NULL, 0);
}

/* About a program in the background, which has a number: after its pid, two words. */
static void lie_about_log(int s, uint32_t id) {
  if (is("gap-early"))
    say_gap(s, id, 0, 0, 1);
  SAY(s, MS_STARTED, id, NULL, 7, 1, 0);
  if (is("gap-stream"))
    say_gap(s, id, 2, 0, 1);
  else if (is("gap-nothing"))
    say_gap(s, id, 0, 0, 0);
  else if (is("gap-wraps"))
    say_gap(s, id, 0, UINT64_MAX, 2);
  else if (is("gap-back"))
    say_gap(s, id, 0, 10, 10), say_gap(s, id, 0, 19, 1);
  else if (is("gap-late"))
    say_exit(s, id, 7, 0, 0), say_gap(s, id, 0, 0, 1), say_gap(s, id + 1, 0, 0, 1);
  else if (is("gap-short"))
    SAY(s, MS_GAP, id, NULL, 0, 1);
  else if (is("gap-flood"))
    for (uint64_t i = 0; i < 200000; i++)
      say_gap(s, id, 1, 2 * i, 1);
  say_exit(s, id, 7, 0, 0);
}

static void lie_at_exec(int s, uint32_t id) {
  if (is("silent-later"))
    return;
  if (is("dies-later"))
    _exit(0);
  if (is("ready-twice"))
    say_ready(s, root());
  else if (is("failed-late"))
    SAY(s, MS_FAILED, 0, "late", 1);
  else if (is("half-later"))
    say_raw(s, "\6", 1);
  else if (is("empty-later"))
    say_raw(s, "", 0);
  else if (is("exited-first"))
    say_exit(s, id, 7, 0, 0);
  else if (is("started-pid-0"))
    SAY(s, MS_STARTED, id, NULL, 0);
  else if (is("started-pid-1"))
    SAY(s, MS_STARTED, id, NULL, 1);
  else if (is("started-negative"))
    SAY(s, MS_STARTED, id, NULL, 0xffffffffu);
  else if (is("started-long"))
    SAY(s, MS_STARTED, id, NULL, 7, 8);
  else if (is("started-short"))
    say(s, MS_STARTED, id, &(ms_writer){0}, NULL, 0);
  else if (is("started-future"))
    SAY(s, MS_STARTED, id + 1000, NULL, 7);
  else if (is("started-id-0"))
    SAY(s, MS_STARTED, 0, NULL, 7);
  else if (is("started-twice"))
    SAY(s, MS_STARTED, id, NULL, 7), SAY(s, MS_STARTED, id, NULL, 7);
  else if (is("started-file"))
    say(s, MS_STARTED, id, &(ms_writer){.data = "\7\0\0\0", .length = 4}, (int[]){root()}, 1);
  else if (is("refused-0"))
    SAY(s, MS_REFUSED, id, "program", 0);
  else if (is("refused-5000"))
    SAY(s, MS_REFUSED, id, "program", 5000);
  else if (is("refused-huge"))
    SAY(s, MS_REFUSED, id, NULL, 2, 0xfffffff0u);
  else if (is("refused-late"))
    SAY(s, MS_STARTED, id, NULL, 7), SAY(s, MS_REFUSED, id, "program", 2);
  else if (is("refused-long"))
    SAY(s, MS_REFUSED, id, "a word that is far too long for the place where it is to be kept", 2);
  else if (is("exit-stopped"))
    SAY(s, MS_STARTED, id, NULL, 7), say_exit(s, id, 7, 0x137f, 0);
  else if (is("exit-reason"))
    SAY(s, MS_STARTED, id, NULL, 7), say_exit(s, id, 7, 0, 99);
  else if (is("exit-short"))
    SAY(s, MS_STARTED, id, NULL, 7), SAY(s, MS_EXITED, id, NULL, 7, 0);
  else if (is("exit-twice"))
    SAY(s, MS_STARTED, id, NULL, 7), say_exit(s, id, 7, 0, 0), say_exit(s, id, 7, 0, 0);
  else if (is("exit-other"))
    SAY(s, MS_STARTED, id, NULL, 7), say_exit(s, id, 999999, 0, 0);
  else if (is("gap-foreground"))
    SAY(s, MS_STARTED, id, NULL, 7), say_gap(s, id, 0, 0, 1);
  else if (strncmp(mode, "gap-", 4) == 0)
    lie_about_log(s, id);
  else if (is("return-uncalled"))
    SAY(s, MS_RETURN, id, NULL, 0);
  else if (is("flood-started")) {
    for (;;)
      SAY(s, MS_STARTED, id, NULL, 7);
  } else if (is("flood-later")) {
    SAY(s, MS_STARTED, id, NULL, 7), say_exit(s, id, 7, 0, 0);
    while (id > 1) /* of what may be true, about a program that is over */
      SAY(s, MS_STARTED, 1, NULL, 7);
  } else if (is("files-later"))
    for (;;)
      say_many(s, "\6\0\0\0\1\0\0\0", 8, fifo(), 100);
  else
    SAY(s, MS_STARTED, id, NULL, 7), say_exit(s, id, 7, 0, 0); /* as it should be */
}

static void lie_at_call(int s, uint32_t id) {
  char bytes[64] = {0};
  ms_writer body = {.data = bytes, .length = 4, .capacity = sizeof bytes};
  ms_put_u32(&body, 0);
  if (is("return-never"))
    return;
  else if (is("return-twice"))
    SAY(s, MS_RETURN, id, NULL, 2), SAY(s, MS_RETURN, id, NULL, 2);
  else if (is("return-other"))
    SAY(s, MS_RETURN, id + 7, NULL, 2);
  else if (is("return-5000"))
    SAY(s, MS_RETURN, id, NULL, 5000);
  else if (is("return-short"))
    say(s, MS_RETURN, id, &(ms_writer){.data = "\0", .length = 2}, NULL, 0);
  else if (is("return-two-files"))
    say(s, MS_RETURN, id, &body, (int[]){root(), root()}, 2);
  else if (is("return-fifo"))
    say(s, MS_RETURN, id, &body, (int[]){fifo()}, 1);
  else if (is("return-directory"))
    say(s, MS_RETURN, id, &body, (int[]){open("/", O_RDONLY | O_CLOEXEC)}, 1);
  else if (is("return-path"))
    say(s, MS_RETURN, id, &body, (int[]){root()}, 1);
  else if (is("return-socket"))
    say(s, MS_RETURN, id, &body, (int[]){unix_socket()}, 1);
  else if (is("return-device"))
    say(s, MS_RETURN, id, &body, (int[]){open("/dev/zero", O_RDWR | O_CLOEXEC)}, 1);
  else if (is("return-nothing"))
    say(s, MS_RETURN, id, &body, NULL, 0);
  else if (is("return-dies"))
    _exit(0);
  else
    SAY(s, MS_RETURN, id, NULL, 2); /* ENOENT */
}

static _Noreturn void agent(int s) {
  struct pollfd request = {.fd = s, .events = POLLIN};
  lie_at_ready(s);
  say_ready(s, root());
  for (;;) {
    if (poll(&request, 1, -1) < 0)
      continue;
    int received = ms_receive(s, &message);
    if (received == -EAGAIN)
      continue;
    if (received <= 0)
      _exit(0);
    if (message.header.type == MS_EXEC || message.header.type == MS_ATTACH)
      lie_at_exec(s, message.header.id);
    else if (message.header.type == MS_CALL)
      lie_at_call(s, message.header.id);
    ms_close_fds(&message);
  }
}

/* The zygote ---------------------------------------------------------------------------------- */

static void created(int s, uint32_t id, uint32_t error, uint32_t pid, const char *stage, int fd,
                    size_t count) {
  char bytes[256];
  ms_writer body = {.data = bytes, .capacity = sizeof bytes};
  ms_put_u32(&body, error);
  ms_put_u32(&body, pid);
  ms_put_str(&body, stage);
  int fds[4] = {fd, fd, fd, fd};
  say(s, MS_CREATED, id, &body, fds, count);
}

static void lie_at_create(int s, uint32_t id, int socket) {
  if (is("zygote-silent"))
    return;
  if (is("zygote-dies"))
    _exit(0);
  if (is("zygote-closes")) {
    close(s);
    wait_for_ever();
  }
  if (is("zygote-half")) {
    say_raw(s, "\2", 1);
    wait_for_ever();
  }
  if (is("zygote-empty")) {
    say_raw(s, "", 0);
    wait_for_ever();
  }
  if (is("zygote-other"))
    created(s, id + 100, 0, 7, "", root(), 1);
  else if (is("zygote-nothing"))
    created(s, id, 0, 7, "", -1, 0);
  else if (is("zygote-two"))
    created(s, id, 0, 7, "", root(), 2);
  else if (is("zygote-file"))
    created(s, id, 0, 7, "", open("/proc/self/exe", O_RDONLY | O_CLOEXEC), 1), (void)socket;
  else if (is("zygote-error"))
    created(s, id, 28, 0, "clone", -1, 0);
  else if (is("zygote-flood"))
    for (;;)
      created(s, id + 100, 0, 7, "", root(), 1);
}

static void create(int s, uint32_t id, int socket) {
  if (strncmp(mode, "zygote-", 7) == 0) {
    lie_at_create(s, id, socket);
    return;
  }
  int pidfd = -1;
  pid_t pid = (pid_t)syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &pidfd, NULL, NULL);
  if (pid == 0) {
    close(s);
    agent(socket);
  }
  created(s, id, 0, (uint32_t)pid, "", pidfd, 1);
  close(pidfd);
}

int main(void) {
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  char *name = length > 0 ? strstr(path, "liar-") : NULL;
  if (!name)
    return 2;
  mode = name + strlen("liar-");
  signal(SIGCHLD, SIG_IGN);
  if (is("exit"))
    return 1;
  if (is("zygote-mute")) /* reads nothing, says nothing */
    wait_for_ever();
  struct pollfd events[] = {{.fd = 3, .events = POLLIN}, {.fd = 4, .events = POLLIN}};
  for (;;) {
    if (poll(events, 2, -1) < 0)
      continue;
    if (events[1].revents)
      return 0;
    int received = ms_receive(3, &message);
    if (received == -EAGAIN)
      continue;
    if (received <= 0)
      return 0;
    int socket = message.fd_count == 1 ? message.fds[0] : -1;
    if (message.header.type == MS_CREATE)
      create(3, message.header.id, socket);
    ms_close_fds(&message);
  }
}
