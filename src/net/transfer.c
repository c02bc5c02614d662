/* One request and its answer. curl's callbacks move bytes between the connection and two buffers:
 * `out`, which Lua fills with the body of the request, and `in`, from which it takes the answer's.
 * When `in` holds as much as is wanted, or `out` nothing, curl is paused, and so is the peer.
 *
 * Life: start -> headers (`head`) -> body (`take`) -> over. Once over, curl's handle is given back
 * and `failure` says how it ended; what is in `in` can still be taken. `close` ends it any time.
 *
 * A request is sent once. curl would send it again when a connection that it used before turns out
 * to be dead: it cannot know whether the peer had read it. So the callback that comes before each
 * sending (`about_to_send`) refuses the second, unless Lua said that sending it twice is safe. */
#include "../buffer.h"
#include "../compat.h"
#include "net.h"
#include "request.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define TYPE_NAME "moonsand.transfer"
#define HIGH_WATER ((size_t)256 * 1024)
#define LOW_WATER (HIGH_WATER / 2)
#define CHUNK_TAKEN ((size_t)32 * 1024) /* larger strings miss the caches */
#define HEADERS_MAX ((size_t)256 * 1024)
#define BUFFER_SIZE (128L * 1024L)
/* What one read of packed bytes becomes has to fit: a thousandfold, at most. */
#define BUFFER_SIZE_PACKED (16L * 1024L)

typedef struct ms_transfer {
  ms_waitable wait;
  ms_net *net;                /* one reference; NULL before it is made, and once collected */
  CURL *easy;                 /* owned; NULL once over */
  bool added;                 /* curl works on it */
  struct curl_slist *headers; /* owned */
  bool connect_only;          /* for a WebSocket: the handle stays */
  bool safe;                  /* may be sent twice */
  bool compressed;
  double deadline; /* monotonic seconds; 0: none */

  int sends;            /* how often the request began to leave */
  bool feeds;           /* the body comes from `out` */
  bool fed;             /* nothing more comes into it */
  bool feed_paused;     /* curl waits for more of it */
  ms_buffer out;        /* of the body: given, not yet sent */
  curl_off_t body_size; /* of a body in pieces; -1: not known */
  curl_off_t body_given;

  ms_buffer head; /* status line and headers as they came */
  size_t head_total;
  bool head_done;
  long status;
  long version;

  ms_buffer in;   /* of the answer's body: arrived, not yet taken */
  size_t want;    /* curl is paused past so much */
  size_t needed;  /* less is no news to who waits */
  size_t scanned; /* of `in`: bytes known to hold no newline */
  bool paused;
  uint64_t received;

  bool over;
  CURLcode result;
  const char *problem; /* what a callback of ours found: a kind, as `failure` gives it */
  char error[CURL_ERROR_SIZE];
} ms_transfer;

static ms_transfer *check_transfer(lua_State *L) {
  return luaL_checkudata(L, 1, TYPE_NAME);
}

static void wake(ms_transfer *t) {
  t->net->core->wake(t->net->reactor, &t->wait);
}

/* What curl calls ----------------------------------------------------------------------------- */

static int about_to_send(void *user, char *remote, char *local, int remote_port, int local_port) {
  ms_transfer *t = user;
  (void)remote, (void)local, (void)remote_port, (void)local_port;
  if (t->sends > 0 && !t->safe) {
    t->problem = "lost";
    return CURL_PREREQFUNC_ABORT;
  }
  t->sends++;
  return CURL_PREREQFUNC_OK;
}

static bool is_blank(const char *line, size_t length) {
  return (length == 2 && line[0] == '\r' && line[1] == '\n') || (length == 1 && line[0] == '\n');
}

/* A length that no number holds: curl would read on to the end of the connection. */
static bool is_absurd_length(const char *line, size_t length) {
  static const char name[] = "content-length:";
  size_t at = sizeof name - 1, digits = 0;
  if (length < at || strncasecmp(line, name, at) != 0)
    return false;
  while (at < length && (line[at] == ' ' || line[at] == '\t' || line[at] == '0'))
    at++;
  while (at + digits < length && line[at + digits] >= '0' && line[at + digits] <= '9')
    digits++;
  return digits > 19 || (digits == 19 && memcmp(line + at, "9223372036854775807", 19) > 0);
}

/* One line of a header. Interim answers (1xx) come first, trailers last: neither is kept. */
static size_t header_arrived(char *line, size_t size, size_t count, void *user) {
  ms_transfer *t = user;
  size_t length = size * count;
  t->head_total += length;
  if (t->head_total > HEADERS_MAX) {
    t->problem = "headers";
    return 0;
  }
  if (t->head_done)
    return length;
  if (length > 5 && strncmp(line, "HTTP/", 5) == 0)
    ms_buffer_consume(&t->head, t->head.length);
  if (is_absurd_length(line, length)) {
    t->problem = "protocol";
    return 0;
  }
  if (!ms_buffer_append(&t->head, line, length))
    return 0;
  if (is_blank(line, length)) {
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &t->status);
    curl_easy_getinfo(t->easy, CURLINFO_HTTP_VERSION, &t->version);
    if (t->status >= 200) {
      t->head_done = true;
      wake(t);
    }
  }
  return length;
}

static size_t body_arrived(char *bytes, size_t size, size_t count, void *user) {
  ms_transfer *t = user;
  size_t length = size * count;
  if (t->in.length >= t->want) {
    t->paused = true;
    return CURL_WRITEFUNC_PAUSE;
  }
  if (!ms_buffer_append(&t->in, bytes, length))
    return 0;
  t->received += length;
  if (t->in.length >= t->needed)
    wake(t);
  return length;
}

static size_t body_wanted(char *run, size_t size, size_t count, void *user) {
  ms_transfer *t = user;
  size_t room = size * count;
  if (t->out.length == 0 && !t->fed) {
    t->feed_paused = true;
    return CURL_READFUNC_PAUSE;
  }
  if (t->out.length == 0 && t->body_size >= 0 && t->body_given < t->body_size) {
    t->problem = "body";
    return CURL_READFUNC_ABORT;
  }
  if (room > t->out.length)
    room = t->out.length;
  if (room > 0)
    memcpy(run, ms_buffer_front(&t->out), room);
  ms_buffer_consume(&t->out, room);
  if (t->out.length <= LOW_WATER)
    wake(t);
  return room;
}

/* The end ------------------------------------------------------------------------------------- */

static void release(ms_transfer *t) {
  if (t->easy)
    (t->added ? ms_net_drop : ms_net_put)(t->net, t->easy);
  t->easy = NULL;
  curl_slist_free_all(t->headers);
  t->headers = NULL;
  ms_buffer_free(&t->out);
}

void ms_transfer_over(CURL *easy, CURLcode result) {
  ms_transfer *t = NULL;
  curl_easy_getinfo(easy, CURLINFO_PRIVATE, &t);
  if (!t) /* a WebSocket's by now */
    return;
  t->over = true;
  t->result = result;
  if (result == CURLE_OK && !t->head_done && !t->connect_only)
    t->result = CURLE_GOT_NOTHING; /* headers that break off are none, whatever curl thinks */
  if (result != CURLE_OK || !t->connect_only)
    release(t);
  wake(t);
}

CURL *ms_transfer_take_easy(lua_State *L, int index) {
  ms_transfer *t = luaL_checkudata(L, index, TYPE_NAME);
  CURL *easy = t->over && t->connect_only ? t->easy : NULL;
  if (easy) {
    curl_easy_setopt(easy, CURLOPT_PRIVATE, NULL);
    t->easy = NULL;
  }
  return easy;
}

static void transfer_close(ms_transfer *t, const char *problem) {
  if (t->over && !t->easy)
    return;
  t->over = true;
  t->result = CURLE_ABORTED_BY_CALLBACK;
  t->problem = problem;
  release(t);
  wake(t);
}

/* Setting up ---------------------------------------------------------------------------------- */

static void set_body(lua_State *L, ms_transfer *t) {
  size_t length = 0;
  const char *body = ms_request_option(L, "body", &length);
  const char *method = ms_request_option(L, "method", NULL);
  if (t->feeds) {
    curl_easy_setopt(t->easy, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(t->easy, CURLOPT_INFILESIZE_LARGE, t->body_size);
    curl_easy_setopt(t->easy, CURLOPT_READFUNCTION, body_wanted);
    curl_easy_setopt(t->easy, CURLOPT_READDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_UPLOAD_BUFFERSIZE, BUFFER_SIZE);
  } else if (body) {
    curl_easy_setopt(t->easy, CURLOPT_POST, 1L);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)length);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, body);
  } else if (method && strcmp(method, "HEAD") == 0) {
    curl_easy_setopt(t->easy, CURLOPT_NOBODY, 1L);
  }
}

static void set_answer(ms_transfer *t) {
  CURL *easy = t->easy;
  curl_easy_setopt(easy, CURLOPT_PRIVATE, t);
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, t->error);
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, t->compressed ? BUFFER_SIZE_PACKED : BUFFER_SIZE);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, body_arrived);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, t);
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, header_arrived);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, t);
  curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, about_to_send);
  curl_easy_setopt(easy, CURLOPT_PREREQDATA, t);
  if (t->connect_only) {
    curl_easy_setopt(easy, CURLOPT_CONNECT_ONLY, 1L);
    curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, 1L);
    curl_easy_setopt(easy, CURLOPT_HTTPPROXYTUNNEL, 1L);
  } else {
    ms_net_own_sockets(t->net, easy);
  }
  if (t->compressed)
    curl_easy_setopt(easy, CURLOPT_ACCEPT_ENCODING, "");
}

/* net:start { url, method, headers, body or feed and size, timeout, … } -> transfer.
 * The options must not change while it runs: curl reads the body where it is. */
int ms_transfer_start(lua_State *L) {
  ms_net *net = ms_net_check(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  if (ms_net_forked(net))
    return luaL_error(L, "moonsand.net: made in another process");
  ms_transfer *t = lua_newuserdata(L, sizeof *t);
  *t = (ms_transfer){.want = HIGH_WATER, .needed = 1};
  luaL_setmetatable(L, TYPE_NAME);
  lua_pushvalue(L, 2);
  lua_setuservalue(L, -2); /* the options live as long as the transfer */

  t->safe = ms_request_flag(L, "safe");
  t->compressed = ms_request_flag(L, "compressed");
  t->connect_only = ms_request_flag(L, "connect_only");
  t->feeds = ms_request_flag(L, "feed");
  t->body_size = (curl_off_t)ms_request_number(L, "size", -1);
  t->net = ms_net_ref(net);
  net->core->init(net->reactor, &t->wait);
  t->easy = ms_net_easy(net);
  if (!t->easy)
    return luaL_error(L, "not enough memory");
  ms_request_set(L, t->easy, &t->headers);
  set_body(L, t);
  set_answer(t);
  double timeout = ms_request_number(L, "timeout", 0);
  if (timeout != 0) {
    t->deadline = net->core->now() + timeout;
    curl_easy_setopt(t->easy, CURLOPT_TIMEOUT_MS, ms_request_milliseconds(timeout));
  }
  t->added = true;
  CURLMcode code = ms_net_add(net, t->easy);
  if (code != CURLM_OK) {
    t->added = false;
    return luaL_error(L, "libcurl: %s", curl_multi_strerror(code));
  }
  return 1;
}

/* Taking -------------------------------------------------------------------------------------- */

static void resume(ms_transfer *t) {
  if (!t->paused || !t->easy || t->in.length >= t->want)
    return;
  t->paused = false;
  ms_hush hush = ms_hush_begin(t->net);
  curl_easy_pause(t->easy, t->feed_paused ? CURLPAUSE_SEND : CURLPAUSE_CONT);
  ms_hush_end(&hush);
}

static void want(ms_transfer *t, size_t bytes) {
  t->want = bytes > HIGH_WATER ? bytes : HIGH_WATER;
  resume(t);
}

static int push_nothing(lua_State *L, const char *why) {
  lua_pushnil(L);
  lua_pushstring(L, why);
  return 2;
}

static bool failed(const ms_transfer *t) {
  return t->over && t->result != CURLE_OK;
}

static int push_end(lua_State *L, const ms_transfer *t) {
  return push_nothing(L, !t->over ? "again" : failed(t) ? "failed" : "eof");
}

static int push_front(lua_State *L, ms_transfer *t, size_t count, size_t skip) {
  lua_pushlstring(L, ms_buffer_front(&t->in), count);
  ms_buffer_consume(&t->in, count + skip);
  t->scanned = 0;
  t->needed = 1;
  t->want = HIGH_WATER;
  if (t->in.length <= LOW_WATER)
    resume(t);
  return 1;
}

static int take_line(lua_State *L, ms_transfer *t, bool keep_newline, size_t max) {
  const char *front = ms_buffer_front(&t->in);
  const char *newline = NULL;
  if (t->in.length > t->scanned)
    newline = memchr(front + t->scanned, '\n', t->in.length - t->scanned);
  size_t length = newline ? (size_t)(newline - front) : t->in.length;
  if (length > max)
    return push_nothing(L, "too_large");
  if (newline)
    return push_front(L, t, keep_newline ? length + 1 : length, keep_newline ? 0 : 1);
  t->scanned = length;
  if (t->over && length > 0)
    return push_front(L, t, length, 0);
  want(t, t->in.length >= HIGH_WATER ? max + 1 : HIGH_WATER);
  return push_end(L, t);
}

/* As in `io`, no bytes at all tell whether there are more. */
static int take_count(lua_State *L, ms_transfer *t, size_t count) {
  t->needed = count > 0 ? count : 1;
  if (t->in.length >= t->needed)
    return push_front(L, t, count, 0);
  if (t->over && t->in.length > 0)
    return push_front(L, t, t->in.length, 0);
  want(t, t->needed);
  return push_end(L, t);
}

static int take_chunk(lua_State *L, ms_transfer *t) {
  if (t->in.length == 0)
    return push_end(L, t);
  return push_front(L, t, t->in.length < CHUNK_TAKEN ? t->in.length : CHUNK_TAKEN, 0);
}

static int take_all(lua_State *L, ms_transfer *t, size_t max) {
  if (t->in.length > max)
    return push_nothing(L, "too_large");
  if (t->over && !failed(t))
    return push_front(L, t, t->in.length, 0);
  t->needed = max + 1;
  want(t, max + 1);
  return push_end(L, t);
}

/* transfer:take(what, n): "l" and "L" with n the longest line, "a" with n the most, "chunk", or
 * "n" with n bytes. The data; or nil and "again", "eof", "too_large" or "failed". */
static int transfer_take(lua_State *L) {
  ms_transfer *t = check_transfer(L);
  const char *what = luaL_checkstring(L, 2);
  lua_Number count = luaL_optnumber(L, 3, 0);
  size_t n = count > 0 ? (size_t)count : 0;
  t->needed = 1;
  switch (what[0]) {
  case 'c':
    return take_chunk(L, t);
  case 'n':
    return take_count(L, t, n);
  case 'a':
    return take_all(L, t, n);
  default:
    return take_line(L, t, what[0] == 'L', n);
  }
}

/* The header of a line: headers[name in lower case] = value, after what is there. The table is on
 * top of the stack. */
static void push_header(lua_State *L, const char *line, size_t length) {
  const char *colon = memchr(line, ':', length);
  if (!colon)
    return;
  luaL_Buffer name;
  luaL_buffinit(L, &name);
  for (const char *c = line; c < colon; c++)
    luaL_addchar(&name, *c >= 'A' && *c <= 'Z' ? (char)(*c + 32) : *c);
  luaL_pushresult(&name);
  const char *value = colon + 1, *end = line + length;
  while (value < end && (*value == ' ' || *value == '\t'))
    value++;
  while (end > value && strchr(" \t\r\n", end[-1]))
    end--;
  lua_pushvalue(L, -1);
  lua_rawget(L, -3); /* what came under this name before */
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    lua_pushlstring(L, value, (size_t)(end - value));
  } else {
    lua_pushliteral(L, ", ");
    lua_pushlstring(L, value, (size_t)(end - value));
    lua_concat(L, 3);
  }
  lua_rawset(L, -3);
}

static const char *version_name(long version) {
  switch (version) {
  case CURL_HTTP_VERSION_1_0:
    return "1.0";
  case CURL_HTTP_VERSION_1_1:
    return "1.1";
  default:
    return "2";
  }
}

/* transfer:answered() -> whether there is a head. */
static int transfer_answered(lua_State *L) {
  lua_pushboolean(L, check_transfer(L)->head_done);
  return 1;
}

/* transfer:head() -> status, headers, version; or nil and "again" or "failed". */
static int transfer_head(lua_State *L) {
  ms_transfer *t = check_transfer(L);
  if (!t->head_done)
    return push_end(L, t);
  lua_pushinteger(L, t->status);
  lua_newtable(L);
  const char *line = ms_buffer_front(&t->head), *end = line + t->head.length;
  while (line < end) {
    const char *newline = memchr(line, '\n', (size_t)(end - line));
    const char *next = newline ? newline + 1 : end;
    if (strncmp(line, "HTTP/", 5) != 0)
      push_header(L, line, (size_t)(next - line));
    line = next;
  }
  lua_pushstring(L, version_name(t->version));
  return 3;
}

/* Giving -------------------------------------------------------------------------------------- */

static void resume_feed(ms_transfer *t) {
  if (!t->feed_paused || !t->easy)
    return;
  t->feed_paused = false;
  ms_hush hush = ms_hush_begin(t->net);
  curl_easy_pause(t->easy, t->paused ? CURLPAUSE_RECV : CURLPAUSE_CONT);
  ms_hush_end(&hush);
}

/* transfer:write(data, from): how many bytes were accepted; or nil and "again", "over" or "size".
 */
static int transfer_write(lua_State *L) {
  ms_transfer *t = check_transfer(L);
  size_t length;
  const char *data = luaL_checklstring(L, 2, &length);
  size_t from = (size_t)luaL_optnumber(L, 3, 1) - 1;
  size_t count = from < length ? length - from : 0;
  if (t->over || t->fed || !t->feeds)
    return push_nothing(L, "over");
  if (t->body_size >= 0 && (curl_off_t)count > t->body_size - t->body_given)
    return push_nothing(L, "size");
  if (t->out.length >= HIGH_WATER)
    return push_nothing(L, "again");
  if (count > HIGH_WATER - t->out.length)
    count = HIGH_WATER - t->out.length;
  if (!ms_buffer_append(&t->out, data + from, count))
    return luaL_error(L, "not enough memory");
  t->body_given += (curl_off_t)count;
  resume_feed(t);
  lua_pushinteger(L, (lua_Integer)count);
  return 1;
}

/* transfer:finish(): the body is whole. */
static int transfer_finish(lua_State *L) {
  ms_transfer *t = check_transfer(L);
  t->fed = true;
  resume_feed(t);
  return 0;
}

/* How it ended -------------------------------------------------------------------------------- */

static bool past_deadline(const ms_transfer *t) {
  return t->deadline != 0 && t->net->core->now() >= t->deadline - 2e-3;
}

/* Before the request began to leave: which step failed. */
static const char *kind_unsent(const ms_transfer *t) {
  switch (t->result) {
  case CURLE_COULDNT_RESOLVE_HOST:
    return "dns";
  case CURLE_COULDNT_RESOLVE_PROXY:
  case CURLE_PROXY:
    return "proxy";
  case CURLE_OPERATION_TIMEDOUT:
    return past_deadline(t) ? "timeout" : "connect";
  case CURLE_URL_MALFORMAT:
    return "invalid";
  case CURLE_UNSUPPORTED_PROTOCOL:
    return "unsupported";
  case CURLE_OUT_OF_MEMORY:
    return "memory";
  case CURLE_SSL_CONNECT_ERROR:
  case CURLE_PEER_FAILED_VERIFICATION:
  case CURLE_SSL_CERTPROBLEM:
  case CURLE_SSL_CIPHER:
  case CURLE_SSL_CACERT_BADFILE:
  case CURLE_SSL_ISSUER_ERROR:
  case CURLE_SSL_INVALIDCERTSTATUS:
  case CURLE_SSL_ENGINE_INITFAILED:
    return "tls";
  case CURLE_RECV_ERROR: /* CONNECT was refused by the proxy: there is a text, and no code */
    return strstr(t->error, "CONNECT") ? "proxy" : "connect";
  default:
    return "connect";
  }
}

/* After that. A bad chunk has no code of its own, but a text; one header over curl's own limit is
 * told as a lack of memory. */
static const char *kind_sent(const ms_transfer *t) {
  switch (t->result) {
  case CURLE_OPERATION_TIMEDOUT:
    return "timeout";
  case CURLE_OUT_OF_MEMORY:
    return t->head_done ? "memory" : "headers";
  case CURLE_WEIRD_SERVER_REPLY:
  case CURLE_BAD_CONTENT_ENCODING:
  case CURLE_UNSUPPORTED_PROTOCOL:
  case CURLE_HTTP2:
  case CURLE_WRITE_ERROR:
  case CURLE_FILESIZE_EXCEEDED:
    return "protocol";
  case CURLE_RECV_ERROR:
    return strstr(t->error, "chunked-encoding") ? "protocol" : "lost";
  default:
    return "lost";
  }
}

/* transfer:failure() -> kind, curl's words, whether the request began to leave; nil when it did not
 * fail. */
static int transfer_failure(lua_State *L) {
  const ms_transfer *t = check_transfer(L);
  if (!failed(t)) {
    lua_pushnil(L);
    return 1;
  }
  const char *kind = t->problem ? t->problem : t->sends > 0 ? kind_sent(t) : kind_unsent(t);
  lua_pushstring(L, kind);
  lua_pushstring(L, t->error[0] ? t->error : curl_easy_strerror(t->result));
  lua_pushboolean(L, t->sends > 0);
  return 3;
}

static int transfer_over(lua_State *L) {
  lua_pushboolean(L, check_transfer(L)->over);
  return 1;
}

/* transfer:close(why): at once, whatever it is doing; `failure` gives why, or "closed". */
static int transfer_close_lua(lua_State *L) {
  ms_transfer *t = check_transfer(L);
  const char *why = lua_isstring(L, 2) ? lua_tostring(L, 2) : "";
  if (t->net)
    transfer_close(t, strcmp(why, "timeout") == 0     ? "timeout"
                      : strcmp(why, "cancelled") == 0 ? "cancelled"
                                                      : "closed");
  ms_buffer_free(&t->in);
  t->scanned = 0;
  return 0;
}

static int transfer_gc(lua_State *L) {
  ms_transfer *t = check_transfer(L);
  if (!t->net)
    return 0;
  release(t);
  ms_buffer_free(&t->in);
  ms_buffer_free(&t->head);
  ms_net_unref(t->net);
  t->net = NULL;
  return 0;
}

static int transfer_received(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_transfer(L)->received);
  return 1;
}

/* transfer:held() -> bytes of the answer in memory here, and whether the peer is paused. */
static int transfer_held(lua_State *L) {
  const ms_transfer *t = check_transfer(L);
  lua_pushinteger(L, (lua_Integer)t->in.length);
  lua_pushboolean(L, t->paused);
  return 2;
}

static int transfer_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_transfer(L)->wait.id);
  return 1;
}

static int transfer_arm(lua_State *L) {
  check_transfer(L)->wait.armed = true;
  return 0;
}

static int transfer_tostring(lua_State *L) {
  const ms_transfer *t = check_transfer(L);
  lua_pushfstring(L, TYPE_NAME " (%s)", t->over ? "over" : "running");
  return 1;
}

void ms_transfer_open(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"id", transfer_id},
      {"arm", transfer_arm},
      {"head", transfer_head},
      {"take", transfer_take},
      {"write", transfer_write},
      {"finish", transfer_finish},
      {"failure", transfer_failure},
      {"over", transfer_over},
      {"received", transfer_received},
      {"held", transfer_held},
      {"close", transfer_close_lua},
      {"answered", transfer_answered},
      {NULL, NULL},
  };
  static const luaL_Reg meta[] = {
      {"__gc", transfer_gc},
      {"__close", transfer_close_lua},
      {"__tostring", transfer_tostring},
      {NULL, NULL},
  };
  ms_newtype(L, TYPE_NAME, methods, meta);
}
