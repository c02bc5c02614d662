/* Sockets that are opened inside, in the sandbox's own network namespace, and passed out: a
 * connection to what listens there, and the listener behind which the host's proxy is. Both on the
 * loopback only, and neither makes the agent wait. */
#include "agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Younger than the headers; the same numbers on every architecture. */
#define SYS_LANDLOCK_CREATE_RULESET 444
#define SYS_LANDLOCK_RESTRICT_SELF 446
#define SCOPE_ABSTRACT_UNIX_SOCKET 1u /* Linux 6.12 */

enum { BACKLOG = 128 };

typedef union loopback {
  struct sockaddr any;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
} loopback;

static socklen_t loopback_at(loopback *address, int family, uint16_t port) {
  *address = (loopback){0};
  address->any.sa_family = (sa_family_t)family;
  if (family == AF_INET6) {
    address->v6.sin6_addr = in6addr_loopback;
    address->v6.sin6_port = htons(port);
    return sizeof address->v6;
  }
  address->v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address->v4.sin_port = htons(port);
  return sizeof address->v4;
}

static int failed(int fd) {
  int error = -errno;
  close(fd);
  return error;
}

static int connect_loopback(int family, uint16_t port, int *file) {
  loopback address;
  socklen_t size = loopback_at(&address, family, port);
  int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
  if (fd < 0)
    return -errno;
  if (connect(fd, &address.any, size) < 0 && errno != EINPROGRESS)
    return failed(fd);
  *file = fd;
  return 0;
}

/* Port 0 lets the kernel choose; the answer is the port. Connections of a listener that is gone are
 * no hindrance. */
static int listen_loopback(int family, uint16_t port, ms_writer *reply, int *file) {
  loopback address;
  socklen_t size = loopback_at(&address, family, port);
  int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
  const int yes = 1;
  if (fd < 0)
    return -errno;
  if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) < 0 ||
      bind(fd, &address.any, size) < 0 || listen(fd, BACKLOG) < 0 ||
      getsockname(fd, &address.any, &size) < 0)
    return failed(fd);
  ms_put_u32(reply, ntohs(family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port));
  *file = fd;
  return 0;
}

/* Abstract unix sockets have no files, and are the network namespace's: with the host's come the
 * session bus, X11, container runtimes. Landlock can tell those made inside from the others. */
int ms_net_scope(void) {
  const struct { uint64_t files, network, scoped; } rules = {.scoped = SCOPE_ABSTRACT_UNIX_SOCKET};
  int fd = (int)syscall(SYS_LANDLOCK_CREATE_RULESET, &rules, sizeof rules, 0);
  if (fd < 0)
    return -1;
  int result = (int)syscall(SYS_LANDLOCK_RESTRICT_SELF, fd, 0), error = errno;
  close(fd);
  errno = error;
  return result;
}

int ms_net_call(uint32_t op, uint32_t flags, uint64_t port, ms_writer *reply, int *file) {
  int family = flags & MS_NET_IPV6 ? AF_INET6 : AF_INET;
  if (port > UINT16_MAX || (port == 0 && op == MS_CALL_CONNECT))
    return -EINVAL;
  if (op == MS_CALL_CONNECT)
    return connect_loopback(family, (uint16_t)port, file);
  return listen_loopback(family, (uint16_t)port, reply, file);
}
