/* `moonsand.net`, the second C module: HTTP by libcurl, WebSockets by wslay, and the codecs that
 * read what servers say. Its sockets and timers live in the core's reactor, whose calls it is given
 * as `core.api`. Like the core it never waits and never calls Lua; least of all from a callback of
 * curl's: those fill and drain buffers, and wake. */
#ifndef MS_NET_H
#define MS_NET_H

#include "../reactor.h"

#include <curl/curl.h>
#include <lua.h>
#include <signal.h>
#include <sys/types.h>

#define MS_NET_TYPE "moonsand.net"
#define MS_NET_SPARES 8

/* One curl multi handle in a reactor: connections, and who may use them again. */
typedef struct ms_net {
  size_t refs; /* the userdata, and each transfer */
  const ms_reactor_api *core;
  ms_reactor *reactor;        /* one reference */
  CURLM *multi;               /* owned; NULL until it is needed, and after `close_idle` */
  ms_alarm alarm;             /* when curl wants to be called */
  bool noisy;                 /* this curl may raise SIGPIPE */
  pid_t pid;                  /* whose connections these are: a forked child must not touch them */
  size_t running;             /* transfers in `multi` */
  CURL *spare[MS_NET_SPARES]; /* owned: easy handles to be used again */
  size_t spares;
  struct ms_socket *sockets; /* owned: those of `ms_net_own_sockets` */
  struct ms_last *last;      /* owned: requests to be sent when this is collected */
} ms_net;

ms_net *ms_net_check(lua_State *L, int index);
ms_net *ms_net_ref(ms_net *net);
void ms_net_unref(ms_net *net);
/* True in a process forked from the one that made it: what curl holds is the parent's. */
bool ms_net_forked(const ms_net *net);
/* An easy handle as new, or NULL. */
CURL *ms_net_easy(ms_net *net);
/* Has the handle's connections opened and closed by us, so that their sockets can stay in the
 * reactor's set between requests. Not for a handle whose socket somebody else is to watch. */
void ms_net_own_sockets(ms_net *net, CURL *easy);
/* Adds a handle and sends what can be sent at once. */
CURLMcode ms_net_add(ms_net *net, CURL *easy);
/* Takes a handle out, which ends what it still did, and keeps or frees it. */
void ms_net_drop(ms_net *net, CURL *easy);
/* Frees a handle that is in no multi. */
void ms_net_put(ms_net *net, CURL *easy);

/* Closes the connections that nobody uses; with transfers under way there is no such call. */
void ms_net_close_idle(ms_net *net);

/* Writing to a connection that is gone raises SIGPIPE, unless it is asked not to: before 7.88,
 * curl's TLS libraries do not ask. What curl does stands between these two. */
typedef struct ms_hush {
  bool needed, was_pending;
  sigset_t before;
} ms_hush;
ms_hush ms_hush_begin(const ms_net *net);
void ms_hush_end(const ms_hush *hush);

/* transfer.c: one that curl has ended; the method `net:start`. */
void ms_transfer_over(CURL *easy, CURLcode result);
int ms_transfer_start(lua_State *L);
/* The handle of a transfer that was made with `connect_only` and is connected; it is the caller's
 * now. NULL when it is not so. */
CURL *ms_transfer_take_easy(lua_State *L, int index);

/* wish.c: sends `net->last`, which takes two seconds at most; the method `net:wish`. */
void ms_wishes_send(ms_net *net);
int ms_wish_new(lua_State *L);

void ms_transfer_open(lua_State *L);  /* transfer.c: the type only */
void ms_wish_open(lua_State *L);      /* wish.c: the type only */
void ms_websocket_open(lua_State *L); /* websocket.c: the type only */
void ms_codec_open(lua_State *L);     /* codec.c: net.lines, net.sse, net.envelopes, net.utf8 */

#endif
