/* `require "moonsand.net"`: a curl multi handle in the core's reactor. Invariants:
 *
 *   - curl tells which of its sockets it wants to hear of, and when it wants to be called
 *     (`socket_changed`, `timer_changed`); the reactor tells curl. Nothing else drives it.
 *   - Between two requests curl wants to hear of a connection no more, and then again. Such a
 * socket rests in the reactor's set instead, until curl closes it through `socket_close`. That can
 * be only where curl opened it through `socket_open`: a resolver's socket goes without a word.
 *   - What is in `multi` has its transfer as CURLOPT_PRIVATE, until `ms_net_drop`.
 *   - In a forked child nothing is freed: ending a connection would say good-bye on the parent's.
 */
#include "net.h"

#include "../compat.h"
#include "request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 64L /* kept for the next request */

/* A socket of curl's. */
typedef struct ms_socket {
  ms_source source;
  ms_net *net;            /* borrowed */
  bool ours;              /* opened by `socket_open`: in the list, freed by `socket_close` */
  struct ms_socket *next; /* of `net->sockets` */
} ms_socket;

/* SIGPIPE ------------------------------------------------------------------------------------- */

ms_hush ms_hush_begin(const ms_net *net) {
  ms_hush hush = {.needed = net->noisy};
  if (!hush.needed)
    return hush;
  sigset_t pipe_signal, pending;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  sigpending(&pending);
  hush.was_pending = sigismember(&pending, SIGPIPE) == 1;
  pthread_sigmask(SIG_BLOCK, &pipe_signal, &hush.before);
  return hush;
}

void ms_hush_end(const ms_hush *hush) {
  sigset_t pipe_signal, pending;
  if (!hush->needed)
    return;
  sigpending(&pending);
  if (!hush->was_pending && sigismember(&pending, SIGPIPE) == 1) {
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    while (sigtimedwait(&pipe_signal, NULL, &(struct timespec){0, 0}) < 0 && errno == EINTR)
      continue;
  }
  pthread_sigmask(SIG_SETMASK, &hush->before, NULL);
}

/* Driving ------------------------------------------------------------------------------------- */

static void collect(ms_net *net) {
  CURLMsg *message;
  int left;
  while ((message = curl_multi_info_read(net->multi, &left))) {
    if (message->msg == CURLMSG_DONE)
      ms_transfer_over(message->easy_handle, message->data.result);
  }
}

static void drive(ms_net *net, curl_socket_t fd, int mask) {
  int running;
  ms_hush hush = ms_hush_begin(net);
  curl_multi_socket_action(net->multi, fd, mask, &running);
  collect(net);
  ms_hush_end(&hush);
}

static void socket_ready(ms_source *source, uint32_t events) {
  ms_socket *s = (ms_socket *)((char *)source - offsetof(ms_socket, source));
  if (source->resting) { /* the peer hung up: curl finds that out when it wants it again */
    s->net->core->watch(s->net->reactor, source, 0);
    return;
  }
  int mask = (events & EPOLLIN ? CURL_CSELECT_IN : 0) | (events & EPOLLOUT ? CURL_CSELECT_OUT : 0);
  if (events & (EPOLLERR | EPOLLHUP))
    mask |= CURL_CSELECT_ERR | CURL_CSELECT_IN;
  drive(s->net, source->fd, mask); /* frees s, perhaps */
}

static ms_socket *socket_new(ms_net *net, curl_socket_t fd) {
  ms_socket *s = calloc(1, sizeof *s);
  if (s) {
    s->source = (ms_source){.ready = socket_ready, .fd = fd};
    s->net = net;
  }
  return s;
}

/* Where one of ours is in the list; what is there is NULL when the descriptor is none of them. */
static ms_socket **socket_place(ms_net *net, curl_socket_t fd) {
  ms_socket **place = &net->sockets;
  while (*place && (*place)->source.fd != fd)
    place = &(*place)->next;
  return place;
}

static curl_socket_t socket_open(void *user, curlsocktype purpose, struct curl_sockaddr *address) {
  ms_net *net = user;
  curl_socket_t fd = ms_request_socket(NULL, purpose, address);
  ms_socket *s = fd < 0 ? NULL : socket_new(net, fd);
  if (s) {
    s->ours = true;
    s->next = net->sockets;
    net->sockets = s;
  }
  return fd;
}

static int socket_close(void *user, curl_socket_t fd) {
  ms_net *net = user;
  ms_socket **place = socket_place(net, fd), *s = *place;
  if (s) {
    net->core->watch(net->reactor, &s->source, 0);
    *place = s->next;
    free(s);
  }
  return close(fd);
}

void ms_net_own_sockets(ms_net *net, CURL *easy) {
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, socket_open);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, net);
  curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, socket_close);
  curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, net);
}

static void socket_unwanted(ms_net *net, ms_socket *s) {
  if (s->ours && s->source.events == EPOLLIN) {
    net->core->rest(net->reactor, &s->source, true);
    return;
  }
  net->core->watch(net->reactor, &s->source, 0);
  if (!s->ours) {
    curl_multi_assign(net->multi, s->source.fd, NULL);
    free(s);
  }
}

static int socket_changed(CURL *easy, curl_socket_t fd, int what, void *user, void *known) {
  ms_net *net = user;
  ms_socket *s = known ? known : *socket_place(net, fd);
  (void)easy;
  if (what == CURL_POLL_REMOVE) {
    if (s)
      socket_unwanted(net, s);
    return 0;
  }
  if (!s)
    s = socket_new(net, fd);
  if (!s)
    return -1;
  if (!known)
    curl_multi_assign(net->multi, fd, s);
  net->core->rest(net->reactor, &s->source, false);
  uint32_t events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
  return net->core->watch(net->reactor, &s->source, events) == 0 ? 0 : -1;
}

static void alarm_due(ms_alarm *alarm) {
  ms_net *net = (ms_net *)((char *)alarm - offsetof(ms_net, alarm));
  if (net->multi)
    drive(net, CURL_SOCKET_TIMEOUT, 0);
}

static int timer_changed(CURLM *multi, long milliseconds, void *user) {
  ms_net *net = user;
  (void)multi;
  double at = milliseconds < 0 ? 0 : net->core->now() + (double)milliseconds * 1e-3;
  net->core->alarm(net->reactor, &net->alarm, at);
  return 0;
}

/* Handles ------------------------------------------------------------------------------------- */

bool ms_net_forked(const ms_net *net) {
  return net->core->foreign(net->reactor) && net->pid != getpid();
}

static bool multi_begin(ms_net *net) {
  if (net->multi)
    return true;
  net->multi = curl_multi_init();
  if (!net->multi)
    return false;
  curl_multi_setopt(net->multi, CURLMOPT_SOCKETFUNCTION, socket_changed);
  curl_multi_setopt(net->multi, CURLMOPT_SOCKETDATA, net);
  curl_multi_setopt(net->multi, CURLMOPT_TIMERFUNCTION, timer_changed);
  curl_multi_setopt(net->multi, CURLMOPT_TIMERDATA, net);
  curl_multi_setopt(net->multi, CURLMOPT_MAXCONNECTS, CONNECTIONS_MAX);
  return true;
}

void ms_net_close_idle(ms_net *net) {
  if (!net->multi || net->running > 0 || ms_net_forked(net))
    return;
  ms_hush hush = ms_hush_begin(net);
  curl_multi_cleanup(net->multi);
  while (net->spares > 0)
    curl_easy_cleanup(net->spare[--net->spares]);
  ms_hush_end(&hush);
  net->multi = NULL;
  net->core->alarm(net->reactor, &net->alarm, 0);
}

CURL *ms_net_easy(ms_net *net) {
  return net->spares > 0 ? net->spare[--net->spares] : curl_easy_init();
}

void ms_net_put(ms_net *net, CURL *easy) {
  if (ms_net_forked(net))
    return;
  if (net->spares < MS_NET_SPARES) {
    curl_easy_reset(easy);
    net->spare[net->spares++] = easy;
  } else {
    curl_easy_cleanup(easy);
  }
}

CURLMcode ms_net_add(ms_net *net, CURL *easy) {
  if (!multi_begin(net))
    return CURLM_OUT_OF_MEMORY;
  CURLMcode code = curl_multi_add_handle(net->multi, easy);
  if (code == CURLM_OK) {
    net->running++;
    drive(net, CURL_SOCKET_TIMEOUT, 0);
  }
  return code;
}

void ms_net_drop(ms_net *net, CURL *easy) {
  if (ms_net_forked(net))
    return;
  ms_hush hush = ms_hush_begin(net);
  curl_multi_remove_handle(net->multi, easy);
  net->running--;
  ms_net_put(net, easy);
  ms_hush_end(&hush);
}

ms_net *ms_net_ref(ms_net *net) {
  net->refs++;
  return net;
}

void ms_net_unref(ms_net *net) {
  if (--net->refs > 0)
    return;
  ms_net_close_idle(net);
  net->core->unref(net->reactor);
  free(net);
}

/* Lua ----------------------------------------------------------------------------------------- */

typedef struct ms_net_box {
  ms_net *net; /* one reference; NULL once collected */
} ms_net_box;

ms_net *ms_net_check(lua_State *L, int index) {
  ms_net_box *box = luaL_checkudata(L, index, MS_NET_TYPE);
  if (!box->net)
    luaL_error(L, "%s: collected", MS_NET_TYPE);
  return box->net;
}

/* open(reactor) -> net */
static int net_new(lua_State *L) {
  const ms_reactor_api *core = lua_touserdata(L, lua_upvalueindex(1));
  ms_reactor *reactor = core->check(L, 1);
  ms_net_box *box = lua_newuserdata(L, sizeof *box);
  box->net = NULL;
  luaL_setmetatable(L, MS_NET_TYPE);
  ms_net *net = calloc(1, sizeof *net);
  if (!net)
    return luaL_error(L, "not enough memory");
  net->refs = 1;
  net->core = core;
  net->reactor = core->ref(reactor);
  net->alarm.due = alarm_due;
  net->pid = getpid();
  net->noisy = curl_version_info(CURLVERSION_NOW)->version_num < 0x075800;
  box->net = net;
  return 1;
}

static int net_close_idle(lua_State *L) {
  ms_net_close_idle(ms_net_check(L, 1));
  return 0;
}

static int net_running(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)ms_net_check(L, 1)->running);
  return 1;
}

static int net_gc(lua_State *L) {
  ms_net_box *box = luaL_checkudata(L, 1, MS_NET_TYPE);
  if (box->net) {
    ms_wishes_send(box->net);
    ms_net_unref(box->net);
  }
  box->net = NULL;
  return 0;
}

/* version() -> what curl says of itself: number, has HTTP/2 */
static int net_version(lua_State *L) {
  const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);
  lua_pushstring(L, info->version);
  lua_pushboolean(L, (info->features & CURL_VERSION_HTTP2) != 0);
  return 2;
}

__attribute__((visibility("default"))) int luaopen_moonsand_net(lua_State *L);

int luaopen_moonsand_net(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"start", ms_transfer_start}, {"wish", ms_wish_new}, {"close_idle", net_close_idle},
      {"running", net_running},     {NULL, NULL},
  };
  static const luaL_Reg meta[] = {{"__gc", net_gc}, {NULL, NULL}};
  CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (code != CURLE_OK)
    return luaL_error(L, "libcurl: %s", curl_easy_strerror(code));
  ms_newtype(L, MS_NET_TYPE, methods, meta);
  lua_newtable(L);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "moonsand.core");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "version");
  if (strcmp(luaL_optstring(L, -1, ""), MS_VERSION) != 0)
    return luaL_error(L, "moonsand.net %s: moonsand.core is another version", MS_VERSION);
  lua_getfield(L, -2, "api");
  lua_pushcclosure(L, net_new, 1);
  lua_setfield(L, -4, "open"); /* net.open, core.api its upvalue */
  lua_pop(L, 2);
  lua_pushcfunction(L, net_version);
  lua_setfield(L, -2, "version"); /* net.version */
  ms_transfer_open(L);
  ms_wish_open(L);
  ms_websocket_open(L);
  ms_codec_open(L);
  return 1;
}
