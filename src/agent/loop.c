/* The agent's life: one poll over the host's socket, SIGCHLD and the host's pidfd. Never blocks on
 * the host: what the socket does not take waits in a queue, whose length the host's own requests
 * bound. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Requests handled before exits and timers have their turn. */
enum { REQUESTS_PER_TURN = 32 };

static int host = -1; /* the host's socket */
static ms_outbox outbox;

uint64_t ms_clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Out ----------------------------------------------------------------------------------------- */

void ms_agent_send(uint16_t type, uint32_t id, const ms_writer *body, int fd) {
  ms_header header = {.type = type, .id = id};
  if (ms_outbox_send(&outbox, host, &header, body->data, body->length, &fd, fd >= 0) == -ENOMEM)
    _exit(1); /* better no sandbox than one whose exits get lost */
}

/* In ------------------------------------------------------------------------------------------ */

/* A body too long for a datagram: read from the memfd that came along as the last file. */
static char *read_long_body(ms_message *request) {
  if (request->fd_count == 0)
    return NULL;
  int fd = request->fds[--request->fd_count];
  struct stat st;
  char *text = NULL;
  if (fstat(fd, &st) == 0 && st.st_size >= 0 && (size_t)st.st_size <= MS_LONG_MAX)
    text = malloc((size_t)st.st_size + 1);
  ssize_t length = text ? pread(fd, text, (size_t)st.st_size, 0) : -1;
  close(fd);
  if (length < 0) {
    free(text);
    return NULL;
  }
  text[length] = '\0';
  request->body = (ms_reader){.data = text, .length = (size_t)length};
  return text;
}

static void answer_call(uint32_t id, ms_reader *body, int came) {
  static char text[MS_WIRE_MAX / 2];
  ms_writer reply = {.data = text, .capacity = sizeof text};
  int fd = came;
  ms_put_u32(&reply, 0);
  int error = ms_files_call(body, &reply, &fd);
  if (error == 0 && reply.overflow)
    error = -EOVERFLOW;
  if (error < 0) {
    reply.length = 0;
    reply.overflow = false;
    ms_put_u32(&reply, (uint32_t)-error);
    if (fd >= 0)
      close(fd);
    fd = -1;
  }
  ms_agent_send(MS_RETURN, id, &reply, fd);
}

static void handle(ms_message *request) {
  char *long_body = NULL;
  if (request->header.flags & MS_IN_FILE)
    long_body = read_long_body(request);
  ms_reader *body = &request->body;
  switch (request->header.type) {
  case MS_EXEC:
    ms_exec_start(request->header.id, body, request->fds, request->fd_count);
    break;
  case MS_SIGNAL: {
    uint32_t number = ms_get_u32(body), target = ms_get_u32(body), reason = ms_get_u32(body);
    ms_exec_signal(request->header.id, number, target, reason);
    break;
  }
  case MS_CALL:
    answer_call(request->header.id, body, request->fd_count > 0 ? request->fds[0] : -1);
    break;
  }
  free(long_body);
}

/* ---------------------------------------------------------------------------------------------- */

static int poll_timeout(void) {
  uint64_t deadline = ms_exec_deadline();
  if (deadline == UINT64_MAX)
    return -1;
  uint64_t now = ms_clock_ns();
  if (deadline <= now)
    return 0;
  uint64_t ms = (deadline - now + 999999) / 1000000;
  return ms > 3600000 ? 3600000 : (int)ms;
}

static int become_ready(void) {
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3 && null >= 0; fd++)
    if (dup2(null, fd) < 0)
      return -1;
  int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (null < 0 || root < 0)
    return -1;
  close(null);
  ms_agent_send(MS_READY, 0, &(ms_writer){0}, root);
  return 0;
}

_Noreturn void ms_agent_loop(int socket, int host_pidfd, uint64_t secret, ms_message *request) {
  host = socket;
  sigset_t chld;
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  int signals = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
  ms_exec_init(secret);
  if (signals < 0 || become_ready() < 0)
    _exit(1);
  struct pollfd events[] = {{.fd = host, .events = POLLIN},
                            {.fd = signals, .events = POLLIN},
                            {.fd = host_pidfd, .events = POLLIN}};
  for (;;) {
    events[0].events = outbox.first ? POLLIN | POLLOUT : POLLIN;
    if (poll(events, 3, poll_timeout()) < 0)
      continue;
    if (events[2].revents)
      _exit(0);
    if (events[0].revents & POLLOUT)
      ms_outbox_flush(&outbox, host);
    for (int i = 0; i < REQUESTS_PER_TURN && (events[0].revents & (POLLIN | POLLHUP)); i++) {
      int received = ms_receive(host, request);
      if (received == -EAGAIN)
        break;
      if (received <= 0)
        _exit(0);
      handle(request);
      ms_close_fds(request);
    }
    if (events[1].revents) {
      struct signalfd_siginfo drained[16];
      while (read(signals, drained, sizeof drained) > 0)
        continue;
    }
    ms_exec_step();
  }
}
