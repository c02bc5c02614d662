/* Two connections tied to each other: what comes from one goes to the other, both ways, without
 * passing through Lua. Each way, a *flow*, holds at most what one read gave: while the receiver has
 * no room the sender is not read. An end travels alone: the other way goes on.
 *
 * The first flow may be *framed*: one HTTP request's body and not a byte more, for whatever else
 * its sender says is not what was looked at. Then the end of the second flow is the end of all. */
#include "buffer.h"
#include "chunked.h"
#include "compat.h"
#include "moonsand.h"
#include "stream.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define RELAY_TYPE "moonsand.relay"
/* In one go, so that one loud pair does not starve the others. */
#define BURST ((size_t)1024 * 1024)

typedef enum framing { ENDLESS, COUNTED, CHUNKED } framing;

typedef struct flow {
  ms_buffer held; /* read, and not yet taken by the receiver */
  framing framing;
  uint64_t left; /* COUNTED */
  ms_chunked chunked;
  bool ended;  /* no more is read */
  bool closed; /* and all of it was passed on */
  uint64_t moved;
} flow;

typedef struct ms_relay {
  ms_waitable wait;
  ms_reactor *reactor;
  ms_source sources[2];
  flow flows[2]; /* flows[i]: from side i to the other */
  double active; /* when bytes were last seen */
  bool over;
  int error; /* errno; 0: both sides ended it */
} ms_relay;

static ms_relay *check_relay(lua_State *L) {
  return luaL_checkudata(L, 1, RELAY_TYPE);
}

static void relay_end(ms_relay *r, int error) {
  if (r->over)
    return;
  r->over = true;
  r->error = error;
  for (int side = 0; side < 2; side++) {
    ms_source_watch(r->reactor, &r->sources[side], 0);
    if (r->sources[side].fd >= 0)
      close(r->sources[side].fd);
    r->sources[side].fd = -1;
    ms_buffer_free(&r->flows[side].held);
  }
  ms_wake(r->reactor, &r->wait);
}

/* Flows --------------------------------------------------------------------------------------- */

/* How many of the bytes may go on; ends the flow behind the last. A negative errno if they cannot
 * be what was announced. */
static ssize_t frame(flow *f, const char *bytes, size_t count) {
  if (f->framing == ENDLESS)
    return (ssize_t)count;
  if (f->framing == CHUNKED) {
    ssize_t passed = ms_chunked_pass(&f->chunked, bytes, count);
    f->ended |= f->chunked.state == MS_CHUNK_DONE;
    return passed;
  }
  size_t passed = count < f->left ? count : (size_t)f->left;
  f->left -= passed;
  f->ended |= f->left == 0;
  return (ssize_t)passed;
}

/* The receiver is gone; perhaps it said something before. */
static void flow_broken(flow *f) {
  f->ended = f->closed = true;
  ms_buffer_free(&f->held);
}

/* Bytes sent, 0 when there is no room; the flow is closed when nobody receives. */
static size_t flow_send(flow *f, int to, const char *bytes, size_t count) {
  ssize_t sent;
  do
    sent = send(to, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent < 0 && errno != EAGAIN)
    flow_broken(f);
  f->moved += sent > 0 ? (uint64_t)sent : 0;
  return sent > 0 ? (size_t)sent : 0;
}

/* Passes on what is framed of the bytes, and holds what finds no room. 0 or a negative errno. */
static int flow_pass(flow *f, int to, const char *bytes, size_t count) {
  ssize_t passed = frame(f, bytes, count);
  if (passed < 0)
    return (int)passed;
  size_t sent = f->held.length > 0 ? 0 : flow_send(f, to, bytes, (size_t)passed);
  size_t rest = (size_t)passed - sent;
  if (rest == 0 || f->closed)
    return 0;
  char *run = ms_buffer_reserve(&f->held, rest);
  if (!run)
    return -ENOMEM;
  memcpy(run, bytes + sent, rest);
  ms_buffer_commit(&f->held, rest);
  return 0;
}

static void flow_flush(flow *f, int to) {
  while (f->held.length > 0) {
    size_t sent = flow_send(f, to, ms_buffer_front(&f->held), f->held.length);
    if (sent == 0)
      return;
    ms_buffer_consume(&f->held, sent);
  }
  ms_buffer_free(&f->held);
}

/* The sender has ended: the receiver is told, once it has everything. */
static void flow_close(flow *f, int to) {
  if (!f->ended || f->closed || f->held.length > 0)
    return;
  f->closed = true;
  if (f->framing == ENDLESS)
    shutdown(to, SHUT_WR);
}

/* One read. False when there is no more for now. */
static bool flow_read(ms_relay *r, flow *f, int from, int to, size_t *total) {
  char *scratch = ms_reactor_scratch(r->reactor);
  ssize_t count;
  do
    count = recv(from, scratch, MS_SCRATCH_SIZE, MSG_DONTWAIT);
  while (count < 0 && errno == EINTR);
  if (count < 0 && errno == EAGAIN)
    return false;
  int error = count < 0 ? -errno : 0;
  if (count > 0)
    error = flow_pass(f, to, scratch, (size_t)count);
  else if (count == 0 && f->framing != ENDLESS)
    error = -EBADMSG; /* less than announced */
  f->ended |= count == 0;
  if (error)
    relay_end(r, -error);
  r->active = ms_now();
  *total += count > 0 ? (size_t)count : 0;
  return !error;
}

static void relay_pump(ms_relay *r, int side) {
  flow *f = &r->flows[side];
  int from = r->sources[side].fd, to = r->sources[1 - side].fd;
  uint64_t before = f->moved;
  size_t total = 0;
  flow_flush(f, to);
  while (!r->over && !f->ended && f->held.length == 0 && total < BURST)
    if (!flow_read(r, f, from, to, &total))
      break;
  if (r->over)
    return;
  flow_close(f, to);
  if (f->moved != before)
    r->active = ms_now();
}

/* ---------------------------------------------------------------------------------------------- */

static void relay_watch(ms_relay *r) {
  for (int side = 0; side < 2; side++) {
    const flow *out = &r->flows[side], *in = &r->flows[1 - side];
    uint32_t events = !out->ended && out->held.length == 0 ? EPOLLIN : 0;
    events |= in->held.length > 0 ? EPOLLOUT : 0;
    ms_source_watch(r->reactor, &r->sources[side], events);
  }
}

static void relay_turn(ms_relay *r) {
  for (int side = 0; side < 2 && !r->over; side++)
    relay_pump(r, side);
  bool framed = r->flows[0].framing != ENDLESS;
  if (!r->over && r->flows[1].closed && (framed || r->flows[0].closed))
    relay_end(r, 0);
  if (!r->over)
    relay_watch(r);
}

static void first_ready(ms_source *source, uint32_t events) {
  (void)events;
  relay_turn((ms_relay *)((char *)source - offsetof(ms_relay, sources[0])));
}

static void second_ready(ms_source *source, uint32_t events) {
  (void)events;
  relay_turn((ms_relay *)((char *)source - offsetof(ms_relay, sources[1])));
}

/* What the stream has read ahead goes first. */
static void relay_adopt(ms_relay *r, int side, ms_stream *s) {
  flow *f = &r->flows[side];
  int error = s->error ? -s->error : s->fd < 0 ? -EBADF : 0;
  r->sources[side].fd = ms_stream_detach(s);
  if (!error && s->in.length > 0 && !f->ended) {
    ssize_t passed = frame(f, ms_buffer_front(&s->in), s->in.length);
    error = passed < 0 ? (int)passed : 0;
    if (!error) {
      f->held = s->in; /* moved, but for what is not framed */
      f->held.length = (size_t)passed;
      s->in = (ms_buffer){0};
    }
  }
  if (!error && s->eof && !f->ended && f->framing != ENDLESS)
    error = -EBADMSG;
  f->ended |= s->eof;
  if (error)
    relay_end(r, -error);
}

/* relay:over(): nil while it runs; then true and an errno (0: both sides have ended). */
static int relay_over(lua_State *L) {
  const ms_relay *r = check_relay(L);
  if (!r->over)
    return 0;
  lua_pushboolean(L, 1);
  lua_pushinteger(L, r->error);
  return 2;
}

/* relay:counts(): bytes from the first to the second, bytes back, when bytes were last seen. */
static int relay_counts(lua_State *L) {
  const ms_relay *r = check_relay(L);
  lua_pushnumber(L, (lua_Number)r->flows[0].moved);
  lua_pushnumber(L, (lua_Number)r->flows[1].moved);
  lua_pushnumber(L, r->active);
  return 3;
}

static int relay_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_relay(L)->wait.id);
  return 1;
}

static int relay_arm(lua_State *L) {
  check_relay(L)->wait.armed = true;
  return 0;
}

static int relay_close(lua_State *L) {
  ms_relay *r = check_relay(L);
  if (r->reactor)
    relay_end(r, ECANCELED);
  return 0;
}

static int relay_gc(lua_State *L) {
  ms_relay *r = check_relay(L);
  if (!r->reactor)
    return 0;
  relay_end(r, ECANCELED);
  ms_reactor_unref(r->reactor);
  r->reactor = NULL;
  return 0;
}

/* core.relay(reactor, first, second, body): takes two streams over. `body` frames what the first
 * says: a count of bytes, or "chunked"; nil: all of it. */
static int relay_new(lua_State *L) {
  ms_reactor *reactor = ms_reactor_check(L, 1);
  ms_stream *sides[2] = {luaL_checkudata(L, 2, MS_STREAM_TYPE),
                         luaL_checkudata(L, 3, MS_STREAM_TYPE)};
  framing body = lua_isnoneornil(L, 4)           ? ENDLESS
                 : lua_type(L, 4) == LUA_TNUMBER ? COUNTED
                                                 : CHUNKED;
  ms_relay *r = lua_newuserdata(L, sizeof *r);
  *r = (ms_relay){.sources = {{.ready = first_ready, .fd = -1}, {.ready = second_ready, .fd = -1}},
                  .active = ms_now()};
  luaL_setmetatable(L, RELAY_TYPE);
  r->reactor = ms_reactor_ref(reactor);
  ms_waitable_init(reactor, &r->wait);
  flow *f = &r->flows[0];
  f->framing = body;
  f->left = body == COUNTED ? (uint64_t)lua_tonumber(L, 4) : 0;
  f->ended = body == COUNTED && f->left == 0;
  for (int side = 0; side < 2; side++)
    if (!r->over)
      relay_adopt(r, side, sides[side]);
  if (!r->over)
    relay_turn(r);
  return 1;
}

static const luaL_Reg methods[] = {
    {"over", relay_over}, {"counts", relay_counts}, {"id", relay_id},
    {"arm", relay_arm},   {"close", relay_close},   {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", relay_gc},
    {"__close", relay_close},
    {NULL, NULL},
};

void ms_relay_open(lua_State *L) {
  ms_newtype(L, RELAY_TYPE, methods, metamethods);
  lua_pushcfunction(L, relay_new);
  lua_setfield(L, -2, "relay"); /* core.relay */
}
