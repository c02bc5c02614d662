/* The agent's day: one poll over its clients, SIGCHLD, the host's pidfd and the pipes of background
 * programs. It never blocks on any of them. */
#include "clients.h"
#include "life.h"
#include "log.h"
#include "tags.h"

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

uint64_t ms_clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
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

static void answer_call(ms_client *c, uint32_t id, ms_reader *body, int came) {
  static char text[MS_WIRE_MAX / 2];
  ms_writer reply = {.data = text, .capacity = sizeof text};
  int fd = came;
  ms_put_u32(&reply, 0);
  int error = ms_files_call(body, &reply, &fd);
  if (error == 0 && reply.overflow)
    error = -EOVERFLOW;
  if (error < 0 && fd >= 0)
    close(fd);
  else if (error == 0)
    error = ms_client_send(c, MS_RETURN, id, &reply, fd);
  if (error < 0) {
    reply = (ms_writer){.data = text, .capacity = sizeof text};
    ms_put_u32(&reply, (uint32_t)-error);
    ms_client_send(c, MS_RETURN, id, &reply, -1);
  }
}

void ms_agent_handle(ms_client *from, ms_message *request) {
  char *long_body = NULL;
  if (request->header.flags & MS_IN_FILE)
    long_body = read_long_body(request);
  ms_reader *body = &request->body;
  const uint32_t id = request->header.id;
  switch (request->header.type) {
  case MS_EXEC:
    ms_exec_start(from, request);
    break;
  case MS_ATTACH:
    ms_exec_attach(from, id, body, request->fds, request->fd_count);
    break;
  case MS_LEAVE:
    ms_log_leave(from, id);
    break;
  case MS_SIGNAL: {
    uint32_t number = ms_get_u32(body), target = ms_get_u32(body), reason = ms_get_u32(body);
    ms_exec_signal(from, id, number, target, reason);
    break;
  }
  case MS_CALL:
    answer_call(from, id, body, request->fd_count > 0 ? request->fds[0] : -1);
    break;
  }
  free(long_body);
}

/* Out of it ----------------------------------------------------------------------------------- */

static int poll_timeout(void) {
  uint64_t deadline = ms_exec_deadline(), life = ms_life_deadline();
  if (life < deadline)
    deadline = life;
  if (deadline == UINT64_MAX)
    return -1;
  uint64_t now = ms_clock_ns();
  if (deadline <= now)
    return 0;
  uint64_t ms = (deadline - now + 999999) / 1000000;
  return ms > 3600000 ? 3600000 : (int)ms;
}

static int shut_standard_files(void) {
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd < 3 && null >= 0; fd++)
    if (dup2(null, fd) < 0)
      return -1;
  return null < 0 ? -1 : close(null);
}

/* The list for poll: first what is always there. */
enum { SIGNALS, HOST, FIRST };
static struct pollfd *events; /* owned */
static size_t event_room;

static size_t watch(int signals) {
  size_t clients = ms_clients_files(), count = FIRST + clients + ms_log_files();
  if (count > event_room) {
    struct pollfd *grown = realloc(events, 2 * count * sizeof *grown);
    if (!grown)
      _exit(1);
    events = grown;
    event_room = 2 * count;
  }
  events[SIGNALS] = (struct pollfd){.fd = signals, .events = POLLIN};
  events[HOST] = (struct pollfd){.fd = ms_life_host(), .events = POLLIN};
  ms_clients_watch(events, FIRST);
  ms_log_watch(events, FIRST + clients);
  return count;
}

_Noreturn void ms_agent_loop(int socket, int host_pidfd, uint64_t secret, ms_message *request) {
  sigset_t chld;
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  int signals = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
  ms_tags_init(secret);
  ms_life_init(host_pidfd);
  if (signals < 0 || shut_standard_files() < 0 || ms_clients_init(socket) < 0)
    _exit(1);
  for (;;) {
    ms_life_check();
    size_t count = watch(signals);
    if (poll(events, count, poll_timeout()) < 0)
      continue;
    if (events[HOST].revents)
      _exit(0);
    ms_log_serve(events);
    ms_clients_serve(events, request);
    if (events[SIGNALS].revents) {
      struct signalfd_siginfo drained[16];
      while (read(signals, drained, sizeof drained) > 0)
        continue;
    }
    ms_exec_step();
  }
}
