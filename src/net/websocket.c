/* A WebSocket: frames by wslay, over a connection that curl made (proxy, TLS) and left alone.
 *
 * It begins with the request for the upgrade, whose answer Lua reads (`head`) and judges; `upgrade`
 * then lets frames flow, or `rest` gives the body of a refusal. From then on pings are answered and
 * closes echoed whenever the reactor runs. Received messages wait in a queue; while that holds more
 * than the high-water mark, nothing is read. Frames to be sent wait in wslay and in `out`.
 *
 * The transfer that made the connection must be the only one of its `ms_net`: curl throws out idle
 * connections on which something has arrived, and to curl this one is idle. */
#include "../buffer.h"
#include "../compat.h"
#include "net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <wslay/wslay.h>

#define TYPE_NAME "moonsand.websocket"
#define HIGH_WATER ((size_t)256 * 1024)
#define HEAD_MAX                                                                                   \
  ((size_t)128 * 1024) /* of the answer to the request, with the body of a refusal                 \
                        */
#define REASON_MAX 123
#define READ_MAX ((size_t)64 * 1024)

typedef struct ms_message {
  struct ms_message *next;
  bool text;
  size_t length;
  char data[];
} ms_message;

typedef struct ms_websocket {
  ms_waitable wait;
  ms_source source;
  ms_net *net;                    /* one reference; NULL before it is made, and once collected */
  CURL *easy;                     /* owned; NULL once over */
  wslay_event_context_ptr frames; /* owned */

  ms_buffer head; /* the answer to the request; then what came with it of the first frames */
  ms_buffer out;  /* to be sent */
  bool head_taken;
  bool upgraded;
  bool gone;        /* nothing more will come */
  bool mute;        /* nothing more can be sent: what came before may say why */
  bool absurd;      /* what came breaks the rules, though wslay lets it pass */
  bool wants_write; /* Lua waits for room */

  ms_message *first, *last; /* owned: received, not yet taken */
  size_t queued;
  uint64_t pongs;

  bool over;
  const char *problem; /* a kind, as `failure` gives it */
  int close_code;
  size_t reason_length;
  char reason[REASON_MAX];
} ms_websocket;

static ms_websocket *check_websocket(lua_State *L) {
  return luaL_checkudata(L, 1, TYPE_NAME);
}

static void wake(ms_websocket *ws) {
  ws->net->core->wake(ws->net->reactor, &ws->wait);
}

/* Ends it: the connection goes, what was received stays. */
static void end(ms_websocket *ws, const char *problem) {
  if (ws->over)
    return;
  ws->over = true;
  ws->problem = problem;
  ws->net->core->watch(ws->net->reactor, &ws->source, 0);
  ms_net_drop(ws->net, ws->easy);
  ms_net_close_idle(ws->net);
  ws->easy = NULL;
  ms_buffer_free(&ws->out);
  wake(ws);
}

/* The connection ------------------------------------------------------------------------------ */

/* Bytes read, 0 when there are none now, or -1 when no more will come. */
static ssize_t receive_some(ms_websocket *ws, char *run, size_t room) {
  size_t count = 0;
  CURLcode code = curl_easy_recv(ws->easy, run, room, &count);
  if (code == CURLE_AGAIN)
    return 0;
  return code == CURLE_OK && count > 0 ? (ssize_t)count : -1;
}

/* A peer that hung up may have sent its last words before: reading tells how it ends. */
static void flush(ms_websocket *ws) {
  while (ws->out.length > 0 && !ws->mute) {
    size_t count = 0;
    CURLcode code = curl_easy_send(ws->easy, ms_buffer_front(&ws->out), ws->out.length, &count);
    if (code == CURLE_AGAIN)
      return;
    ws->mute = code != CURLE_OK;
    ms_buffer_consume(&ws->out, count);
  }
  if (ws->mute)
    ms_buffer_free(&ws->out);
}

/* What wslay calls ---------------------------------------------------------------------------- */

static ssize_t frames_wanted(wslay_event_context_ptr ctx, uint8_t *run, size_t room, int flags,
                             void *user) {
  ms_websocket *ws = user;
  (void)flags;
  if (ws->queued >= HIGH_WATER) {
    wslay_event_set_error(ctx, WSLAY_ERR_WOULDBLOCK);
    return -1;
  }
  if (ws->head.length > 0) {
    size_t count = room < ws->head.length ? room : ws->head.length;
    memcpy(run, ms_buffer_front(&ws->head), count);
    ms_buffer_consume(&ws->head, count);
    return (ssize_t)count;
  }
  ssize_t count = receive_some(ws, (char *)run, room);
  ws->gone = count < 0;
  if (count <= 0) {
    wslay_event_set_error(ctx, count == 0 ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
    return -1;
  }
  return count;
}

static ssize_t frames_made(wslay_event_context_ptr ctx, const uint8_t *bytes, size_t count,
                           int flags, void *user) {
  ms_websocket *ws = user;
  (void)flags;
  if (ws->out.length >= HIGH_WATER || !ms_buffer_append(&ws->out, bytes, count)) {
    wslay_event_set_error(ctx, ws->out.length >= HIGH_WATER ? WSLAY_ERR_WOULDBLOCK
                                                            : WSLAY_ERR_CALLBACK_FAILURE);
    return -1;
  }
  return (ssize_t)count;
}

static int mask_wanted(wslay_event_context_ptr ctx, uint8_t *run, size_t count, void *user) {
  (void)user;
  while (getrandom(run, count, 0) != (ssize_t)count) {
    if (errno != EINTR) {
      wslay_event_set_error(ctx, WSLAY_ERR_CALLBACK_FAILURE);
      return -1;
    }
  }
  return 0;
}

static void message_arrived(wslay_event_context_ptr ctx,
                            const struct wslay_event_on_msg_recv_arg *arg, void *user) {
  ms_websocket *ws = user;
  if (arg->opcode == WSLAY_PONG)
    ws->pongs++;
  if (arg->opcode == WSLAY_CONNECTION_CLOSE) {
    ws->absurd = arg->msg_length == 1;                             /* half a code */
    size_t length = arg->msg_length > 2 ? arg->msg_length - 2 : 0; /* after the code */
    ws->reason_length = length < REASON_MAX ? length : REASON_MAX;
    if (length > 0)
      memcpy(ws->reason, arg->msg + 2, ws->reason_length);
  }
  if (wslay_is_ctrl_frame(arg->opcode)) {
    wake(ws);
    return;
  }
  ms_message *m = malloc(sizeof *m + arg->msg_length);
  if (!m) {
    wslay_event_set_error(ctx, WSLAY_ERR_NOMEM);
    return;
  }
  *m = (ms_message){.text = arg->opcode == WSLAY_TEXT_FRAME, .length = arg->msg_length};
  if (m->length > 0)
    memcpy(m->data, arg->msg, m->length);
  if (ws->last)
    ws->last->next = m;
  else
    ws->first = m;
  ws->last = m;
  ws->queued += sizeof *m + m->length;
  wake(ws);
}

/* Pumping ------------------------------------------------------------------------------------- */

static bool head_complete(const ms_websocket *ws) {
  return memmem(ms_buffer_front(&ws->head), ws->head.length, "\r\n\r\n", 4) != NULL;
}

static void read_head(ms_websocket *ws) {
  while (!ws->gone && ws->head.length < HEAD_MAX) {
    char *run = ms_buffer_reserve(&ws->head, READ_MAX);
    ssize_t count = run ? receive_some(ws, run, READ_MAX) : -1;
    if (count == 0)
      break;
    ws->gone = count < 0;
    if (count > 0)
      ms_buffer_commit(&ws->head, (size_t)count);
  }
  if (ws->head_taken || head_complete(ws))
    wake(ws);
  else if (ws->gone || ws->head.length >= HEAD_MAX)
    end(ws, ws->gone ? "lost" : "headers");
}

/* Once the peer has said good-bye, or has to be told to: wslay has queued the Close. */
static void say_goodbye(ms_websocket *ws) {
  bool received = wslay_event_get_close_received(ws->frames);
  wslay_event_send(ws->frames);
  flush(ws);
  if (received && !ws->absurd) {
    ws->close_code = wslay_event_get_status_code_received(ws->frames);
    end(ws, "closed");
  } else {
    ws->close_code = wslay_event_get_status_code_sent(ws->frames);
    end(ws, ws->close_code == WSLAY_CODE_MESSAGE_TOO_BIG ? "too_large" : "protocol");
  }
}

static size_t unsent(const ms_websocket *ws) {
  return ws->out.length + wslay_event_get_queued_msg_length(ws->frames);
}

/* Until there is nothing to send, or the socket takes no more: then `out` is not empty, and the
 * reactor tells when to go on. False without memory. */
static bool send_frames(ms_websocket *ws) {
  while (!ws->mute) {
    bool more = ws->out.length < HIGH_WATER && wslay_event_want_write(ws->frames);
    if (more && wslay_event_send(ws->frames) != 0)
      return false;
    flush(ws);
    if (ws->out.length > 0 || !wslay_event_want_write(ws->frames))
      break;
  }
  return true;
}

static void exchange_frames(ms_websocket *ws) {
  wslay_event_recv(ws->frames);
  if (wslay_event_get_close_received(ws->frames))
    say_goodbye(ws);
  else if (ws->gone)
    end(ws, "lost");
  else if (!wslay_event_get_read_enabled(ws->frames))
    say_goodbye(ws);
  else if (!send_frames(ws))
    end(ws, "lost");
  else if (ws->wants_write && unsent(ws) < HIGH_WATER) {
    ws->wants_write = false;
    wake(ws);
  }
}

static void update_interest(ms_websocket *ws) {
  if (ws->over)
    return;
  bool full = ws->upgraded ? ws->queued >= HIGH_WATER : ws->gone || ws->head.length >= HEAD_MAX;
  uint32_t events = (full ? 0 : EPOLLIN) | (ws->out.length > 0 ? EPOLLOUT : 0);
  if (ws->net->core->watch(ws->net->reactor, &ws->source, events) != 0)
    end(ws, "lost");
}

static void pump(ms_websocket *ws) {
  if (ws->over || ms_net_forked(ws->net))
    return;
  ms_hush hush = ms_hush_begin(ws->net);
  if (ws->upgraded) {
    exchange_frames(ws);
  } else {
    flush(ws);
    read_head(ws);
  }
  update_interest(ws);
  ms_hush_end(&hush);
}

static void websocket_ready(ms_source *source, uint32_t events) {
  (void)events;
  pump((ms_websocket *)((char *)source - offsetof(ms_websocket, source)));
}

/* Lua ----------------------------------------------------------------------------------------- */

/* websocket(net, transfer, request, max) -> websocket; or nil when the transfer is not connected */
static int websocket_new(lua_State *L) {
  static const struct wslay_event_callbacks callbacks = {
      .recv_callback = frames_wanted,
      .send_callback = frames_made,
      .genmask_callback = mask_wanted,
      .on_msg_recv_callback = message_arrived,
  };
  ms_net *net = ms_net_check(L, 1);
  size_t length;
  const char *request = luaL_checklstring(L, 3, &length);
  lua_Number max = luaL_checknumber(L, 4);
  ms_websocket *ws = lua_newuserdata(L, sizeof *ws);
  *ws = (ms_websocket){.source = {.ready = websocket_ready, .fd = -1}, .over = true};
  luaL_setmetatable(L, TYPE_NAME);
  if (wslay_event_context_client_init(&ws->frames, &callbacks, ws) != 0 ||
      !ms_buffer_append(&ws->out, request, length))
    return luaL_error(L, "not enough memory");
  wslay_event_config_set_max_recv_msg_length(ws->frames, (uint64_t)max);
  CURL *easy = ms_transfer_take_easy(L, 2);
  if (!easy) {
    lua_pushnil(L);
    return 1;
  }
  ws->net = ms_net_ref(net);
  ws->easy = easy;
  ws->over = false;
  net->core->init(net->reactor, &ws->wait);
  curl_easy_getinfo(easy, CURLINFO_ACTIVESOCKET, &ws->source.fd);
  pump(ws);
  return 1;
}

static int push_nothing(lua_State *L, const ms_websocket *ws) {
  lua_pushnil(L);
  lua_pushstring(L, ws->over ? "over" : "again");
  return 2;
}

/* websocket:head() -> the answer's header; or nil and "again" or "over" */
static int websocket_head(lua_State *L) {
  ms_websocket *ws = check_websocket(L);
  const char *front = ms_buffer_front(&ws->head);
  const char *blank = memmem(front, ws->head.length, "\r\n\r\n", 4);
  if (!blank)
    return push_nothing(L, ws);
  size_t length = (size_t)(blank - front) + 4;
  ws->head_taken = true;
  lua_pushlstring(L, front, length);
  ms_buffer_consume(&ws->head, length);
  return 1;
}

/* websocket:rest() -> what came after the header so far, and whether that is all */
static int websocket_rest(lua_State *L) {
  ms_websocket *ws = check_websocket(L);
  lua_pushlstring(L, ms_buffer_front(&ws->head), ws->head.length);
  lua_pushboolean(L, ws->over || ws->gone || ws->head.length >= HEAD_MAX);
  return 2;
}

/* websocket:upgrade(): the answer was right, frames follow. */
static int websocket_upgrade(lua_State *L) {
  ms_websocket *ws = check_websocket(L);
  ws->upgraded = true;
  pump(ws);
  return 0;
}

/* websocket:receive() -> data, "text" or "binary"; or nil and "again" or "over" */
static int websocket_receive(lua_State *L) {
  ms_websocket *ws = check_websocket(L);
  ms_message *m = ws->first;
  if (!m)
    return push_nothing(L, ws);
  lua_pushlstring(L, m->data, m->length);
  lua_pushstring(L, m->text ? "text" : "binary");
  bool was_full = ws->queued >= HIGH_WATER;
  ws->queued -= sizeof *m + m->length;
  ws->first = m->next;
  if (!ws->first)
    ws->last = NULL;
  free(m);
  if (was_full && ws->queued < HIGH_WATER)
    pump(ws);
  return 2;
}

static uint8_t opcode(const char *kind) {
  return strcmp(kind, "text") == 0   ? WSLAY_TEXT_FRAME
         : strcmp(kind, "ping") == 0 ? WSLAY_PING
                                     : WSLAY_BINARY_FRAME;
}

/* websocket:send(data, kind) -> true; or nil and "again" or "over" */
static int websocket_send(lua_State *L) {
  ms_websocket *ws = check_websocket(L);
  size_t length;
  const char *data = luaL_checklstring(L, 2, &length);
  struct wslay_event_msg message = {opcode(luaL_checkstring(L, 3)), (const uint8_t *)data, length};
  if (ws->over || !wslay_event_get_write_enabled(ws->frames)) {
    lua_pushnil(L);
    lua_pushliteral(L, "over");
    return 2;
  }
  if (unsent(ws) >= HIGH_WATER) {
    ws->wants_write = true;
    return push_nothing(L, ws);
  }
  int error = wslay_event_queue_msg(ws->frames, &message);
  if (error == WSLAY_ERR_NOMEM)
    return luaL_error(L, "not enough memory");
  pump(ws);
  lua_pushboolean(L, error == 0);
  return 1;
}

/* websocket:shutdown(code, reason): a Close frame goes out after what is queued. */
static int websocket_shutdown(lua_State *L) {
  ms_websocket *ws = check_websocket(L);
  lua_Integer code = luaL_checkinteger(L, 2);
  size_t length;
  const char *reason = luaL_checklstring(L, 3, &length);
  if (!ws->over && ws->upgraded && wslay_event_get_write_enabled(ws->frames)) {
    wslay_event_queue_close(ws->frames, (uint16_t)code, (const uint8_t *)reason, length);
    pump(ws);
  }
  return 0;
}

/* websocket:failure() -> kind, close code, close reason; nil while it is open */
static int websocket_failure(lua_State *L) {
  const ms_websocket *ws = check_websocket(L);
  if (!ws->over)
    return 0;
  lua_pushstring(L, ws->problem ? ws->problem : "closed");
  lua_pushinteger(L, ws->close_code);
  lua_pushlstring(L, ws->reason, ws->reason_length);
  return 3;
}

static int websocket_pongs(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_websocket(L)->pongs);
  return 1;
}

/* websocket:held() -> bytes received and not taken, bytes not yet sent */
static int websocket_held(lua_State *L) {
  const ms_websocket *ws = check_websocket(L);
  lua_pushinteger(L, (lua_Integer)ws->queued);
  lua_pushinteger(L, (lua_Integer)unsent(ws));
  return 2;
}

static void drop_messages(ms_websocket *ws) {
  while (ws->first) {
    ms_message *m = ws->first;
    ws->first = m->next;
    free(m);
  }
  ws->last = NULL;
  ws->queued = 0;
}

/* websocket:close(): at once; a Close frame if there is room for one. */
static int websocket_close(lua_State *L) {
  ms_websocket *ws = check_websocket(L);
  if (!ws->net)
    return 0;
  if (!ws->over && ws->upgraded && !ms_net_forked(ws->net)) {
    ms_hush hush = ms_hush_begin(ws->net);
    wslay_event_queue_close(ws->frames, WSLAY_CODE_NORMAL_CLOSURE, NULL, 0);
    send_frames(ws);
    ms_hush_end(&hush);
  }
  end(ws, "closed");
  drop_messages(ws);
  return 0;
}

static int websocket_gc(lua_State *L) {
  ms_websocket *ws = check_websocket(L);
  if (ws->net) {
    websocket_close(L);
    ms_net_unref(ws->net);
    ws->net = NULL;
  }
  wslay_event_context_free(ws->frames);
  ws->frames = NULL;
  ms_buffer_free(&ws->head);
  ms_buffer_free(&ws->out);
  return 0;
}

static int websocket_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_websocket(L)->wait.id);
  return 1;
}

static int websocket_arm(lua_State *L) {
  check_websocket(L)->wait.armed = true;
  return 0;
}

static int websocket_tostring(lua_State *L) {
  lua_pushfstring(L, TYPE_NAME " (%s)", check_websocket(L)->over ? "closed" : "open");
  return 1;
}

void ms_websocket_open(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"id", websocket_id},
      {"arm", websocket_arm},
      {"head", websocket_head},
      {"rest", websocket_rest},
      {"upgrade", websocket_upgrade},
      {"receive", websocket_receive},
      {"send", websocket_send},
      {"shutdown", websocket_shutdown},
      {"failure", websocket_failure},
      {"pongs", websocket_pongs},
      {"held", websocket_held},
      {"close", websocket_close},
      {NULL, NULL},
  };
  static const luaL_Reg meta[] = {
      {"__gc", websocket_gc},
      {"__close", websocket_close},
      {"__tostring", websocket_tostring},
      {NULL, NULL},
  };
  ms_newtype(L, TYPE_NAME, methods, meta);
  lua_pushcfunction(L, websocket_new);
  lua_setfield(L, -2, "websocket"); /* net.websocket */
}
