/* links: -shared -fPIC -lcurl */
/* The floor for `moonsand.net`: the same requests by curl's multi interface in C, and the server
 * that both ask. A Lua module like floor.c, with the same care for two Luas. */
#include <arpa/inet.h>
#include <curl/curl.h>
#include <lauxlib.h>
#include <lua.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BLOCK ((size_t)1024 * 1024)
#define WIDTH_MAX 256
#define TICK_NS 2000000

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The server: a thread a connection ----------------------------------------------------------- */

static bool send_all(int fd, const char *bytes, size_t count) {
  while (count > 0) {
    ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL);
    if (sent <= 0)
      return false;
    bytes += sent;
    count -= (size_t)sent;
  }
  return true;
}

static bool send_big(int fd, size_t size, const char *block) {
  char head[128];
  int length = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", size);
  bool sent = send_all(fd, head, (size_t)length);
  for (; sent && size > 0; size -= size < BLOCK ? size : BLOCK)
    sent = send_all(fd, block, size < BLOCK ? size : BLOCK);
  return sent;
}

/* Chunks that hold the time at which they were sent. */
static bool send_ticks(int fd, int count) {
  char text[64];
  bool sent = send_all(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 47);
  for (int i = 0; sent && i < count; i++) {
    nanosleep(&(struct timespec){0, TICK_NS}, NULL);
    int length = snprintf(text, sizeof text, "12\r\n%017.9f\n\r\n", now());
    sent = send_all(fd, text, (size_t)length);
  }
  return sent && send_all(fd, "0\r\n\r\n", 5);
}

static bool skip(int fd, size_t count, char *block) {
  while (count > 0) {
    ssize_t got = recv(fd, block, count < BLOCK ? count : BLOCK, 0);
    if (got <= 0)
      return false;
    count -= (size_t)got;
  }
  return true;
}

/* One request: "GET /small", "/big/N", "/tick/N", or a POST with a length. */
static bool serve_request(int fd, char *block) {
  char head[8192];
  size_t have = 0;
  char *end = NULL;
  while (!end) {
    ssize_t got = have + 1 < sizeof head ? recv(fd, head + have, sizeof head - have - 1, 0) : 0;
    if (got <= 0)
      return false;
    have += (size_t)got;
    head[have] = '\0';
    end = strstr(head, "\r\n\r\n");
  }
  const char *length = strcasestr(head, "\r\nContent-Length:");
  size_t body = length && length < end ? strtoull(length + 17, NULL, 10) : 0;
  size_t early = have - (size_t)(end + 4 - head);
  if (body > early && !skip(fd, body - early, block))
    return false;
  const char *path = strchr(head, '/');
  if (strncmp(path, "/big/", 5) == 0)
    return send_big(fd, strtoull(path + 5, NULL, 10), block);
  if (strncmp(path, "/tick/", 6) == 0)
    return send_ticks(fd, atoi(path + 6));
  return send_all(fd, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsmall", 43);
}

static void *serve_connection(void *argument) {
  int fd = (int)(intptr_t)argument, on = 1;
  char *block = calloc(1, BLOCK);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  while (block && serve_request(fd, block))
    continue;
  free(block);
  close(fd);
  return NULL;
}

static void serve(int listener) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) {
    pthread_t thread;
    int fd = accept(listener, NULL, NULL);
    if (fd >= 0 && pthread_create(&thread, NULL, serve_connection, (void *)(intptr_t)fd) == 0)
      pthread_detach(thread);
  }
}

/* serve() -> port, pid */
static int floor_serve(lua_State *L) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  socklen_t length = sizeof address;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) != 0 ||
      listen(listener, 256) != 0 ||
      getsockname(listener, (struct sockaddr *)&address, &length) != 0)
    return luaL_error(L, "no socket to serve at");
  pid_t pid = fork();
  if (pid == 0)
    serve(listener);
  close(listener);
  lua_pushinteger(L, ntohs(address.sin_port));
  lua_pushinteger(L, pid);
  return 2;
}

/* The client: curl's multi interface ----------------------------------------------------------- */

typedef struct client {
  CURLM *multi;
  CURL *easy[WIDTH_MAX];
  struct curl_slist *no_expect; /* or curl would wait a second for leave to send a body */
  size_t received, left;        /* bytes; of an upload */
  double *latencies;            /* of ticks; NULL: none are wanted */
  int ticks;
} client;

static client *check_client(lua_State *L) {
  return lua_touserdata(L, 1);
}

static size_t arrived(char *bytes, size_t size, size_t count, void *user) {
  client *c = user;
  c->received += size * count;
  if (c->latencies)
    c->latencies[c->ticks++] = now() - strtod(bytes, NULL);
  return size * count;
}

static size_t wanted(char *run, size_t size, size_t count, void *user) {
  client *c = user;
  size_t room = size * count < c->left ? size * count : c->left;
  memset(run, 0, room);
  c->left -= room;
  return room;
}

/* Runs `width` requests for a URL at once, to their end. */
static void perform(lua_State *L, client *c, const char *url, int width, curl_off_t upload) {
  c->received = 0;
  c->left = (size_t)upload;
  for (int i = 0; i < width; i++) {
    CURL *easy = c->easy[i] ? c->easy[i] : curl_easy_init();
    c->easy[i] = easy;
    curl_easy_reset(easy);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 131072L);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, arrived);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, c);
    if (upload > 0) {
      curl_easy_setopt(easy, CURLOPT_HTTPHEADER, c->no_expect);
      curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
      curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, "POST");
      curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, upload);
      curl_easy_setopt(easy, CURLOPT_READFUNCTION, wanted);
      curl_easy_setopt(easy, CURLOPT_READDATA, c);
      curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, 131072L);
    }
    curl_multi_add_handle(c->multi, easy);
  }
  int running = 1;
  while (curl_multi_perform(c->multi, &running) == CURLM_OK && running)
    curl_multi_poll(c->multi, NULL, 0, 1000, NULL);
  CURLMsg *message;
  bool failed = false;
  for (int left; (message = curl_multi_info_read(c->multi, &left));)
    failed |= message->data.result != CURLE_OK;
  for (int i = 0; i < width; i++)
    curl_multi_remove_handle(c->multi, c->easy[i]);
  if (failed)
    luaL_error(L, "a request of the floor failed");
}

/* client() -> what the other calls want; kept for ever, like its connections */
static int floor_client(lua_State *L) {
  client *c = calloc(1, sizeof *c);
  if (!c)
    return luaL_error(L, "not enough memory");
  c->multi = curl_multi_init();
  c->no_expect = curl_slist_append(NULL, "Expect:");
  lua_pushlightuserdata(L, c);
  return 1;
}

/* get(client, url, times, width) -> bytes of the last round */
static int floor_get(lua_State *L) {
  client *c = check_client(L);
  const char *url = luaL_checkstring(L, 2);
  int times = (int)luaL_checkinteger(L, 3), width = (int)luaL_checkinteger(L, 4);
  for (int i = 0; i < times; i++)
    perform(L, c, url, width, 0);
  lua_pushnumber(L, (lua_Number)c->received);
  return 1;
}

/* put(client, url, size) */
static int floor_put(lua_State *L) {
  perform(L, check_client(L), luaL_checkstring(L, 2), 1, (curl_off_t)luaL_checknumber(L, 3));
  return 0;
}

/* ticks(client, url, count) -> { seconds, … }: from the sending of each chunk to its callback */
static int floor_ticks(lua_State *L) {
  client *c = check_client(L);
  int count = (int)luaL_checkinteger(L, 3);
  c->latencies = calloc((size_t)count * 2 + 16, sizeof *c->latencies);
  c->ticks = 0;
  perform(L, c, luaL_checkstring(L, 2), 1, 0);
  lua_createtable(L, c->ticks, 0);
  for (int i = 0; i < c->ticks; i++) {
    lua_pushnumber(L, c->latencies[i]);
    lua_rawseti(L, -2, i + 1);
  }
  free(c->latencies);
  c->latencies = NULL;
  return 1;
}

int luaopen_net_floor(lua_State *L);

int luaopen_net_floor(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"serve", floor_serve}, {"client", floor_client}, {"get", floor_get},
      {"put", floor_put},     {"ticks", floor_ticks},
  };
  lua_createtable(L, 0, 5);
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    lua_pushcfunction(L, functions[i].func);
    lua_setfield(L, -2, functions[i].name); /* floor[name] = function */
  }
  return 1;
}
