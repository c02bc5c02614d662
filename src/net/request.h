/* What every request is, whoever sends it: an easy handle set up from a table of Lua's, at index 2
 * of the stack: { url, method, headers, proxy, ca_file, version, connect_timeout, fresh }. */
#ifndef MS_REQUEST_H
#define MS_REQUEST_H

#include <curl/curl.h>
#include <lua.h>
#include <stdbool.h>
#include <stddef.h>

/* The string at options[name], which the options anchor; NULL when there is none. */
const char *ms_request_option(lua_State *L, const char *name, size_t *length);
bool ms_request_flag(lua_State *L, const char *name);
double ms_request_number(lua_State *L, const char *name, double otherwise);
/* Milliseconds for curl, to whom 0 means none. */
long ms_request_milliseconds(double seconds);

/* Opens a socket for curl, whose own would be open in every program that the host starts. */
curl_socket_t ms_request_socket(void *user, curlsocktype purpose, struct curl_sockaddr *address);

/* Sets up all but the body, and what takes the answer. `headers` is the caller's to free, after the
 * handle, also when this raises. */
void ms_request_set(lua_State *L, CURL *easy, struct curl_slist **headers);

#endif
