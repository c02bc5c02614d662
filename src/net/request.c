/* Sets up what every request is: an address, a method, headers, and how the connection is made. */
#include "request.h"

#include "../compat.h"

#include <string.h>
#include <sys/socket.h>

const char *ms_request_option(lua_State *L, const char *name, size_t *length) {
  lua_getfield(L, 2, name);
  const char *text = lua_isnil(L, -1) ? NULL : luaL_checklstring(L, -1, length);
  lua_pop(L, 1);
  return text;
}

bool ms_request_flag(lua_State *L, const char *name) {
  lua_getfield(L, 2, name);
  bool on = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return on;
}

double ms_request_number(lua_State *L, const char *name, double otherwise) {
  lua_getfield(L, 2, name);
  double value = luaL_optnumber(L, -1, otherwise);
  lua_pop(L, 1);
  return value;
}

long ms_request_milliseconds(double seconds) {
  double value = seconds * 1e3 + 0.999;
  return value < 1 ? 1 : value > 2e9 ? 2000000000L : (long)value;
}

curl_socket_t ms_request_socket(void *user, curlsocktype purpose, struct curl_sockaddr *address) {
  (void)user, (void)purpose;
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static void set_headers(lua_State *L, CURL *easy, struct curl_slist **headers) {
  lua_getfield(L, 2, "headers");
  luaL_checktype(L, -1, LUA_TTABLE);
  size_t count = lua_rawlen(L, -1);
  for (size_t i = 1; i <= count; i++) {
    lua_rawgeti(L, -1, (int)i);
    struct curl_slist *longer = curl_slist_append(*headers, luaL_checkstring(L, -1));
    if (!longer)
      luaL_error(L, "not enough memory");
    *headers = longer;
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, *headers);
}

static long http_version(const char *version) {
  if (version && strcmp(version, "1.1") == 0)
    return CURL_HTTP_VERSION_1_1;
  return version ? CURL_HTTP_VERSION_2 : CURL_HTTP_VERSION_2TLS;
}

static void set_connection(lua_State *L, CURL *easy) {
  const char *proxy = ms_request_option(L, "proxy", NULL);
  const char *ca_file = ms_request_option(L, "ca_file", NULL);
  const char *version = ms_request_option(L, "version", NULL);
  double connect_timeout = ms_request_number(L, "connect_timeout", 30);
  if (proxy)
    curl_easy_setopt(easy, CURLOPT_PROXY, proxy);
  if (ca_file) {
    curl_easy_setopt(easy, CURLOPT_CAINFO, ca_file);
    curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
    curl_easy_setopt(easy, CURLOPT_PROXY_CAINFO, ca_file);
  }
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, http_version(version));
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, ms_request_milliseconds(connect_timeout));
  if (ms_request_flag(L, "fresh")) {
    curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, 1L);
    curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, 1L);
  }
}

static void set_always(CURL *easy) {
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, ms_request_socket);
#if CURL_AT_LEAST_VERSION(7, 85, 0)
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
#if CURL_AT_LEAST_VERSION(7, 87, 0)
  curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L); /* or a close waits for a name server's answer */
#endif
}

void ms_request_set(lua_State *L, CURL *easy, struct curl_slist **headers) {
  const char *url = ms_request_option(L, "url", NULL);
  const char *method = ms_request_option(L, "method", NULL);
  set_always(easy);
  set_connection(L, easy);
  set_headers(L, easy, headers);
  curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method ? method : "GET");
  curl_easy_setopt(easy, CURLOPT_URL, url);
}
