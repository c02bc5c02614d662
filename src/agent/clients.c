/* Who the agent serves. The first client is the host that made the sandbox, over the socket it was
 * born with; while that is the only one, its end is the sandbox's. Once the sandbox is detached
 * others come and go, over a socket in a directory of their user's (see src/registry.c).
 *
 * A client that does not read holds up nobody but itself: what its socket does not take waits in a
 * queue of its own, and beyond some length nothing more is taken from it.
 *
 * Whoever may connect is one user outside. What runs inside has no way to the socket, and would be
 * known by its pid: those of outsiders cannot be seen from here, and read 0. */
#include "clients.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Requests taken from one client before the others have their turn. */
enum { REQUESTS_PER_TURN = 32 };
enum { CLIENTS_MAX = 64, QUEUE_MAX = 1024, BACKLOG = 64 };

struct ms_client {
  ms_client *next;
  int socket; /* owned */
  ms_outbox outbox;
  size_t slot; /* in the loop's list; 0: not there */
  bool gone;   /* to be swept up at the end of the turn */
};

static ms_client *clients;
static size_t client_count;
static int listener = -1; /* owned; -1: not detached */
static size_t listener_slot;
static int reserve =
    -1;             /* owned: given up to turn somebody away when there are no descriptors left */
static uid_t owner; /* of all clients, as seen from here */

static ms_client *add_client(int socket) {
  ms_client *c = calloc(1, sizeof *c);
  if (!c) {
    close(socket);
    return NULL;
  }
  *c = (ms_client){.next = clients, .socket = socket};
  clients = c;
  client_count++;
  return c;
}

/* Beginning and end --------------------------------------------------------------------------- */

static void greet(ms_client *c) {
  int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (root < 0 || ms_client_send(c, MS_READY, 0, &(ms_writer){0}, root) < 0)
    c->gone = true;
}

static int peer_of(int socket, struct ucred *peer) {
  socklen_t size = sizeof *peer;
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, peer, &size);
}

int ms_clients_init(int host) {
  struct ucred peer;
  if (peer_of(host, &peer) < 0)
    return -1;
  owner = peer.uid;
  ms_client *c = add_client(host);
  if (!c)
    return -1;
  greet(c);
  return c->gone ? -1 : 0;
}

int ms_clients_listen(int socket) {
  if (listener >= 0)
    return -EALREADY;
  int fd = fcntl(socket, F_DUPFD_CLOEXEC, 3);
  if (fd < 0)
    return -errno;
  if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || listen(fd, BACKLOG) < 0) {
    int error = -errno;
    close(fd);
    return error;
  }
  listener = fd;
  reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return 0;
}

bool ms_clients_any(void) {
  return clients != NULL;
}

/* One that cannot be let in must not stay at the door: it would wake us again and again. */
static void turn_away(void) {
  close(reserve);
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd >= 0)
    close(fd);
  reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void accept_client(void) {
  struct ucred peer;
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) {
    if (errno == EMFILE || errno == ENFILE)
      turn_away();
    return;
  }
  if (client_count >= CLIENTS_MAX || peer_of(fd, &peer) < 0 || peer.uid != owner || peer.pid != 0) {
    close(fd);
    return;
  }
  ms_client *c = add_client(fd);
  if (c)
    greet(c);
}

static void sweep(void) {
  for (ms_client **at = &clients; *at;) {
    ms_client *c = *at;
    if (!c->gone) {
      at = &c->next;
      continue;
    }
    if (listener < 0)
      _exit(0); /* it was its host's */
    *at = c->next;
    client_count--;
    ms_exec_leave(c);
    close(c->socket);
    ms_outbox_clear(&c->outbox);
    free(c);
  }
}

/* Out and in ---------------------------------------------------------------------------------- */

int ms_client_send(ms_client *c, uint16_t type, uint32_t id, const ms_writer *body, int fd) {
  ms_header header = {.type = type, .id = id};
  int error =
      ms_outbox_send(&c->outbox, c->socket, &header, body->data, body->length, &fd, fd >= 0);
  if (error == -ETOOMANYREFS)
    return error;
  if (error < 0 && !ms_has_left(error))
    c->gone = true; /* better none than one that does not learn how its programs end */
  return 0;
}

bool ms_client_busy(const ms_client *c) {
  return c->outbox.first != NULL || c->gone;
}

/* Short of memory for its answers: not taken from before they are gone. */
static bool is_full(const ms_client *c) {
  return c->outbox.count >= QUEUE_MAX;
}

static void take_requests(ms_client *c, ms_message *request) {
  for (int i = 0; i < REQUESTS_PER_TURN && !c->gone && !is_full(c); i++) {
    int received = ms_receive(c->socket, request);
    if (received == -EAGAIN)
      return;
    if (received <= 0) {
      c->gone = true;
      return;
    }
    ms_agent_handle(c, request);
    ms_close_fds(request);
  }
}

/* The loop ------------------------------------------------------------------------------------ */

size_t ms_clients_files(void) {
  return client_count + 1;
}

void ms_clients_watch(struct pollfd *events, size_t from) {
  size_t slot = from;
  listener_slot = slot;
  events[slot++] = (struct pollfd){.fd = listener, .events = POLLIN};
  for (ms_client *c = clients; c; c = c->next, slot++) {
    short wanted = is_full(c) ? 0 : POLLIN;
    c->slot = slot;
    events[slot] = (struct pollfd){.fd = c->socket,
                                   .events = c->outbox.first ? (short)(wanted | POLLOUT) : wanted};
  }
}

void ms_clients_serve(const struct pollfd *events, ms_message *request) {
  for (ms_client *c = clients; c; c = c->next) {
    const short happened = c->slot ? events[c->slot].revents : 0;
    if (happened & POLLOUT && ms_outbox_flush(&c->outbox, c->socket) < 0)
      c->gone = true;
    if (happened & (POLLIN | POLLHUP | POLLERR))
      take_requests(c, request);
    if (happened & (POLLHUP | POLLERR) && !(happened & POLLIN))
      c->gone = true;
  }
  if (listener >= 0 && listener_slot && events[listener_slot].revents)
    accept_client();
  listener_slot = 0;
  sweep();
}
