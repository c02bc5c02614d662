/* A last wish: a request that is sent when the Lua state is closed, if it was not revoked before.
 * No Lua runs then: whatever it would need to wait is gone by that time.
 *
 *   - Until it is revoked, the registry holds a wish, and the wish its net. So the collection of
 *     one tells that the state is being closed; and its net, being older, comes after it.
 *   - It leaves its request in `net->last` then. When the net is collected they are sent, side by
 *     side, over connections of their own. Nobody looks at the answers, or waits long for them.
 *   - Nothing is sent in a forked child: what it would end is the parent's. */
#include "../compat.h"
#include "net.h"
#include "request.h"

#include <stdlib.h>

#define TYPE_NAME "moonsand.wish"
#define SECONDS_MAX 2.0     /* for all of them */
#define CONNECTIONS_MAX 32L /* at once */

/* A request that was not begun. */
struct ms_last {
  struct ms_last *next;
  CURL *easy;                 /* owned */
  struct curl_slist *headers; /* owned */
};

typedef struct ms_wish {
  ms_net *net;          /* one reference; NULL once it is over */
  struct ms_last *last; /* owned */
  int anchor;           /* in the registry; LUA_NOREF until it is wished */
} ms_wish;

static void last_free(struct ms_last *last) {
  curl_easy_cleanup(last->easy);
  curl_slist_free_all(last->headers);
  free(last);
}

/* At the end ---------------------------------------------------------------------------------- */

static size_t ignore(char *bytes, size_t size, size_t count, void *user) {
  (void)bytes, (void)user;
  return size * count;
}

static void drive(const ms_net *net, CURLM *multi) {
  double end = net->core->now() + SECONDS_MAX, left = SECONDS_MAX;
  int running;
  while (left > 0 && curl_multi_perform(multi, &running) == CURLM_OK && running > 0) {
    if (curl_multi_poll(multi, NULL, 0, (int)(left * 1e3) + 1, NULL) != CURLM_OK)
      break;
    left = end - net->core->now();
  }
}

void ms_wishes_send(ms_net *net) {
  CURLM *multi = net->last ? curl_multi_init() : NULL;
  ms_hush hush = ms_hush_begin(net);
  if (multi) {
    curl_multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, CONNECTIONS_MAX);
    for (struct ms_last *last = net->last; last; last = last->next)
      curl_multi_add_handle(multi, last->easy);
    drive(net, multi);
  }
  while (net->last) {
    struct ms_last *last = net->last;
    net->last = last->next;
    if (multi)
      curl_multi_remove_handle(multi, last->easy);
    last_free(last);
  }
  if (multi)
    curl_multi_cleanup(multi);
  ms_hush_end(&hush);
}

/* Lua ----------------------------------------------------------------------------------------- */

static ms_wish *check_wish(lua_State *L) {
  return luaL_checkudata(L, 1, TYPE_NAME);
}

/* net:wish { url, method, headers, … } -> wish. */
int ms_wish_new(lua_State *L) {
  ms_net *net = ms_net_check(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  if (ms_net_forked(net))
    return luaL_error(L, "moonsand.net: made in another process");
  ms_wish *w = lua_newuserdata(L, sizeof *w);
  *w = (ms_wish){.anchor = LUA_NOREF};
  luaL_setmetatable(L, TYPE_NAME);
  lua_createtable(L, 1, 0);
  lua_pushvalue(L, 1);
  lua_rawseti(L, -2, 1);
  lua_setuservalue(L, -2); /* the net lives as long as the wish */

  w->last = calloc(1, sizeof *w->last);
  CURL *easy = w->last ? curl_easy_init() : NULL;
  if (!easy)
    return luaL_error(L, "not enough memory");
  w->last->easy = easy;
  ms_request_set(L, easy, &w->last->headers);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, ignore);
  lua_pushvalue(L, -1);
  w->anchor = luaL_ref(L, LUA_REGISTRYINDEX);
  w->net = ms_net_ref(net);
  return 1;
}

/* wish:revoke(): idempotent. */
static int wish_revoke(lua_State *L) {
  ms_wish *w = check_wish(L);
  if (w->last)
    last_free(w->last);
  w->last = NULL;
  luaL_unref(L, LUA_REGISTRYINDEX, w->anchor);
  w->anchor = LUA_NOREF;
  if (w->net)
    ms_net_unref(w->net);
  w->net = NULL;
  return 0;
}

static int wish_gc(lua_State *L) {
  ms_wish *w = check_wish(L);
  if (w->anchor != LUA_NOREF && !ms_net_forked(w->net)) {
    w->last->next = w->net->last;
    w->net->last = w->last;
    w->last = NULL;
  }
  return wish_revoke(L);
}

static int wish_tostring(lua_State *L) {
  lua_pushfstring(L, TYPE_NAME " (%s)", check_wish(L)->net ? "wished" : "over");
  return 1;
}

void ms_wish_open(lua_State *L) {
  static const luaL_Reg methods[] = {{"revoke", wish_revoke}, {NULL, NULL}};
  static const luaL_Reg meta[] = {
      {"__gc", wish_gc},
      {"__tostring", wish_tostring},
      {NULL, NULL},
  };
  ms_newtype(L, TYPE_NAME, methods, meta);
}
