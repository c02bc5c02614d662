/* TCP sockets in the reactor: connections are streams (stream.c), listeners are a type of their
 * own. Some were opened inside a sandbox and passed out by its agent, the others are the host's.
 * Addresses are bytes in network order, 4 or 16 of them: what was checked is what is dialled. */
#include "socket.h"

#include "compat.h"
#include "moonsand.h"
#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 128 };

/* Registered in the reactor only while it is armed: a listener that is full for now costs nothing.
 */
typedef struct ms_listener {
  ms_waitable wait;
  ms_source source;
  ms_reactor *reactor;
  int fd; /* owned; -1 once closed */
} ms_listener;

typedef union address {
  struct sockaddr any;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
} address;

static ms_listener *check_listener(lua_State *L) {
  return luaL_checkudata(L, 1, MS_LISTENER_TYPE);
}

static int push_errno(lua_State *L, int error) {
  lua_pushnil(L);
  lua_pushinteger(L, error);
  return 2;
}

/* Addresses ----------------------------------------------------------------------------------- */

/* From the bytes and the port at these indices of the stack. */
static socklen_t check_address(lua_State *L, int index, address *a) {
  size_t length;
  const char *bytes = luaL_checklstring(L, index, &length);
  lua_Integer port = luaL_checkinteger(L, index + 1);
  luaL_argcheck(L, length == 4 || length == 16, index, "4 or 16 bytes");
  luaL_argcheck(L, port >= 0 && port <= UINT16_MAX, index + 1, "a port");
  *a = (address){0};
  a->any.sa_family = length == 4 ? AF_INET : AF_INET6;
  if (length == 4) {
    memcpy(&a->v4.sin_addr, bytes, length);
    a->v4.sin_port = htons((uint16_t)port);
    return sizeof a->v4;
  }
  memcpy(&a->v6.sin6_addr, bytes, length);
  a->v6.sin6_port = htons((uint16_t)port);
  return sizeof a->v6;
}

/* core.address(text): the bytes of "192.0.2.1" or "2001:db8::1"; nil for anything else. */
static int socket_address(lua_State *L) {
  size_t length;
  const char *text = luaL_checklstring(L, 1, &length);
  char bytes[16];
  if (strlen(text) == length && inet_pton(AF_INET, text, bytes) == 1)
    lua_pushlstring(L, bytes, 4);
  else if (strlen(text) == length && inet_pton(AF_INET6, text, bytes) == 1)
    lua_pushlstring(L, bytes, 16);
  else
    lua_pushnil(L);
  return 1;
}

/* core.address_text(bytes) */
static int socket_address_text(lua_State *L) {
  size_t length;
  const char *bytes = luaL_checklstring(L, 1, &length);
  char text[INET6_ADDRSTRLEN];
  luaL_argcheck(L, length == 4 || length == 16, 1, "4 or 16 bytes");
  lua_pushstring(L, inet_ntop(length == 4 ? AF_INET : AF_INET6, bytes, text, sizeof text));
  return 1;
}

/* core.own_addresses(): those of this machine's interfaces; nil, errno. */
static int socket_own_addresses(lua_State *L) {
  struct ifaddrs *list;
  lua_newtable(L);
  if (getifaddrs(&list) < 0)
    return push_errno(L, errno);
  int count = 0;
  for (const struct ifaddrs *at = list; at; at = at->ifa_next) {
    const address *a = (const address *)(const void *)at->ifa_addr;
    if (!a || (a->any.sa_family != AF_INET && a->any.sa_family != AF_INET6))
      continue;
    if (a->any.sa_family == AF_INET)
      lua_pushlstring(L, (const char *)&a->v4.sin_addr, 4);
    else
      lua_pushlstring(L, (const char *)&a->v6.sin6_addr, 16);
    lua_rawseti(L, -2, ++count);
  }
  freeifaddrs(list);
  return 1;
}

/* Connections --------------------------------------------------------------------------------- */

static void push_connection(lua_State *L, ms_reactor *r, int fd) {
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  ms_stream_new_socket(L, r, fd);
}

/* core.connect(reactor, address, port): a stream, perhaps not connected yet; or nil, errno. */
static int socket_connect(lua_State *L) {
  address a;
  ms_reactor *r = ms_reactor_check(L, 1);
  socklen_t size = check_address(L, 2, &a);
  int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
  if (fd < 0)
    return push_errno(L, errno);
  if (connect(fd, &a.any, size) < 0 && errno != EINPROGRESS) {
    int error = errno;
    close(fd);
    return push_errno(L, error);
  }
  push_connection(L, r, fd);
  return 1;
}

/* Listeners ----------------------------------------------------------------------------------- */

static void listener_close(ms_listener *l) {
  if (l->fd < 0)
    return;
  ms_source_watch(l->reactor, &l->source, 0);
  close(l->fd);
  l->fd = l->source.fd = -1;
  ms_wake(l->reactor, &l->wait);
}

static void listener_ready(ms_source *source, uint32_t events) {
  ms_listener *l = (ms_listener *)((char *)source - offsetof(ms_listener, source));
  (void)events;
  ms_source_watch(l->reactor, &l->source, 0);
  ms_wake(l->reactor, &l->wait);
}

/* Takes fd over. */
static void push_listener(lua_State *L, ms_reactor *r, int fd) {
  ms_listener *l = lua_newuserdata(L, sizeof *l);
  *l = (ms_listener){.source = {.ready = listener_ready, .fd = fd}, .fd = fd};
  luaL_setmetatable(L, MS_LISTENER_TYPE);
  l->reactor = ms_reactor_ref(r);
  ms_waitable_init(r, &l->wait);
}

/* core.listen(reactor, address, port): a listener of the host's; or nil, errno. */
static int socket_listen(lua_State *L) {
  address a;
  ms_reactor *r = ms_reactor_check(L, 1);
  socklen_t size = check_address(L, 2, &a);
  int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
  if (fd < 0)
    return push_errno(L, errno);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (bind(fd, &a.any, size) < 0 || listen(fd, BACKLOG) < 0) {
    int error = errno;
    close(fd);
    return push_errno(L, error);
  }
  push_listener(L, r, fd);
  return 1;
}

/* listener:accept(): a stream; or nil and "again" or an errno. The flag that keeps accept from
 * waiting belongs to the socket, which the agent has had: it is set each time. */
static int listener_accept(lua_State *L) {
  ms_listener *l = check_listener(L);
  if (l->fd < 0)
    return push_errno(L, EBADF);
  fcntl(l->fd, F_SETFL, O_NONBLOCK);
  int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd >= 0) {
    push_connection(L, l->reactor, fd);
    return 1;
  }
  if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
    return push_errno(L, errno);
  lua_pushnil(L);
  lua_pushliteral(L, "again");
  return 2;
}

/* listener:port() */
static int listener_port(lua_State *L) {
  ms_listener *l = check_listener(L);
  address a;
  socklen_t size = sizeof a;
  if (l->fd < 0 || getsockname(l->fd, &a.any, &size) < 0)
    return push_errno(L, l->fd < 0 ? EBADF : errno);
  lua_pushinteger(L, ntohs(a.any.sa_family == AF_INET6 ? a.v6.sin6_port : a.v4.sin_port));
  return 1;
}

static int listener_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_listener(L)->wait.id);
  return 1;
}

static int listener_arm(lua_State *L) {
  ms_listener *l = check_listener(L);
  l->wait.armed = true;
  if (l->fd < 0 || ms_source_watch(l->reactor, &l->source, EPOLLIN) < 0)
    ms_wake(l->reactor, &l->wait); /* accept tells why */
  return 0;
}

static int listener_close_lua(lua_State *L) {
  listener_close(check_listener(L));
  return 0;
}

static int listener_gc(lua_State *L) {
  ms_listener *l = check_listener(L);
  if (!l->reactor)
    return 0;
  listener_close(l);
  ms_reactor_unref(l->reactor);
  l->reactor = NULL;
  return 0;
}

/* From a sandbox ------------------------------------------------------------------------------ */

static int option(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

static bool is_tcp(int fd, bool listening) {
  int domain = option(fd, SO_DOMAIN);
  return (domain == AF_INET || domain == AF_INET6) && option(fd, SO_TYPE) == SOCK_STREAM &&
         option(fd, SO_PROTOCOL) == IPPROTO_TCP && option(fd, SO_ACCEPTCONN) == (int)listening;
}

void ms_socket_adopt(lua_State *L, ms_reactor *r, int fd, bool listening) {
  if (!is_tcp(fd, listening)) {
    close(fd);
    lua_pushnil(L);
  } else if (listening) {
    push_listener(L, r, fd);
  } else {
    push_connection(L, r, fd);
  }
}

static const luaL_Reg methods[] = {
    {"accept", listener_accept}, {"port", listener_port},       {"id", listener_id},
    {"arm", listener_arm},       {"close", listener_close_lua}, {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", listener_gc},
    {"__close", listener_close_lua},
    {NULL, NULL},
};

void ms_socket_open(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"listen", socket_listen},
      {"connect", socket_connect},
      {"address", socket_address},
      {"address_text", socket_address_text},
      {"own_addresses", socket_own_addresses},
      {NULL, NULL},
  };
  luaL_setfuncs(L, functions, 0);
  ms_newtype(L, MS_LISTENER_TYPE, methods, metamethods);
}
