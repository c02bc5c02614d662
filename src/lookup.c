/* The addresses of a name, without blocking the host: getaddrinfo in a thread of its own, which
 * writes its answer into memory that both share and tells through an eventfd.
 *
 * A thread, not a process: the host may have no children but the zygote, and the zygote, a static
 * program, cannot load what getaddrinfo needs (nsswitch.conf's modules). The thread has every
 * signal blocked, touches nothing of Lua's, and the module is never unloaded under it. Nothing can
 * stop getaddrinfo: who gives up leaves the thread to end by itself, so their number is bounded. */
#include "compat.h"
#include "moonsand.h"
#include "reactor.h"

#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOKUP_TYPE "moonsand.lookup"
enum { MAX_THREADS = 16, MAX_ADDRESSES = 32, STACK_SIZE = 1024 * 1024 };

typedef struct answer {
  size_t length;
  char bytes[16];
} answer;

/* Shared by the thread and the userdata: whoever leaves last frees it. */
typedef struct job {
  atomic_int refs;
  int event; /* owned: readable once it is done */
  atomic_bool done;
  int error; /* of getaddrinfo */
  size_t count;
  answer answers[MAX_ADDRESSES];
  char name[256];
} job;

typedef struct lookup {
  ms_waitable wait;
  ms_source source;
  ms_reactor *reactor;
  job *job; /* NULL once closed and done */
  bool closed;
} lookup;

static atomic_int threads; /* of this process, whichever Lua state they are for */

static void job_leave(job *j) {
  if (atomic_fetch_sub(&j->refs, 1) > 1)
    return;
  close(j->event);
  free(j);
}

/* In the thread ------------------------------------------------------------------------------- */

static void keep(job *j, const struct addrinfo *info) {
  answer *a = &j->answers[j->count];
  if (info->ai_family == AF_INET) {
    a->length = 4;
    memcpy(a->bytes, &((const struct sockaddr_in *)(const void *)info->ai_addr)->sin_addr, 4);
  } else if (info->ai_family == AF_INET6) {
    a->length = 16;
    memcpy(a->bytes, &((const struct sockaddr_in6 *)(const void *)info->ai_addr)->sin6_addr, 16);
  }
  j->count += a->length > 0;
}

static void *job_run(void *argument) {
  job *j = argument;
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
  j->error = getaddrinfo(j->name, NULL, &hints, &list);
  for (const struct addrinfo *at = j->error ? NULL : list; at && j->count < MAX_ADDRESSES;
       at = at->ai_next)
    keep(j, at);
  if (!j->error)
    freeaddrinfo(list);
  atomic_store(&j->done, true);
  eventfd_write(j->event, 1);
  atomic_fetch_sub(&threads, 1);
  job_leave(j);
  return NULL;
}

/* In the host --------------------------------------------------------------------------------- */

static lookup *check_lookup(lua_State *L) {
  return luaL_checkudata(L, 1, LOOKUP_TYPE);
}

static void lookup_ready(ms_source *source, uint32_t events) {
  lookup *l = (lookup *)((char *)source - offsetof(lookup, source));
  (void)events;
  ms_source_watch(l->reactor, &l->source, 0);
  ms_wake(l->reactor, &l->wait);
}

static void lookup_end(lookup *l) {
  if (!l->job)
    return;
  ms_source_watch(l->reactor, &l->source, 0);
  job_leave(l->job);
  l->job = NULL;
}

/* A thread that comes back from getaddrinfo must find its code, also after lua_close. */
static void stay_loaded(void) {
  Dl_info info;
  if (dladdr((void *)(uintptr_t)stay_loaded, &info) && info.dli_fname)
    dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

/* 0 or a positive errno. */
static int start_thread(job *j) {
  pthread_attr_t attributes;
  sigset_t all, before;
  pthread_t thread;
  if (atomic_fetch_add(&threads, 1) >= MAX_THREADS) {
    atomic_fetch_sub(&threads, 1);
    return EAGAIN;
  }
  stay_loaded();
  sigfillset(&all);
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, STACK_SIZE);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  atomic_store(&j->refs, 2);
  int error = pthread_create(&thread, &attributes, job_run, j);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  if (error) {
    atomic_store(&j->refs, 1);
    atomic_fetch_sub(&threads, 1);
  }
  return error;
}

/* core.lookup(reactor, name): a lookup under way; or nil, errno (EAGAIN: too many are). */
static int lookup_new(lua_State *L) {
  ms_reactor *r = ms_reactor_check(L, 1);
  size_t length;
  const char *name = luaL_checklstring(L, 2, &length);
  luaL_argcheck(L, length < sizeof((job *)NULL)->name && strlen(name) == length, 2, "no name");
  lookup *l = lua_newuserdata(L, sizeof *l);
  *l = (lookup){.source = {.ready = lookup_ready, .fd = -1}};
  luaL_setmetatable(L, LOOKUP_TYPE);
  l->reactor = ms_reactor_ref(r);
  ms_waitable_init(r, &l->wait);
  job *j = calloc(1, sizeof *j);
  int event = j ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
  int error = event < 0 ? (j ? errno : ENOMEM) : 0;
  if (error) {
    free(j);
  } else {
    j->event = event;
    atomic_store(&j->refs, 1);
    memcpy(j->name, name, length + 1);
    l->job = j;
    l->source.fd = event;
    error = -ms_source_watch(r, &l->source, EPOLLIN);
  }
  if (!error)
    error = start_thread(j);
  if (!error)
    return 1;
  lookup_end(l);
  lua_pushnil(L);
  lua_pushinteger(L, error);
  return 2;
}

static bool running(const lookup *l) {
  return l->job && !atomic_load(&l->job->done);
}

/* lookup:answer(): a list of addresses, as bytes; nil and "again", or nil, false and why not. */
static int lookup_answer(lua_State *L) {
  const lookup *l = check_lookup(L);
  if (!l->closed && running(l)) {
    lua_pushnil(L);
    lua_pushliteral(L, "again");
    return 2;
  }
  if (l->closed || l->job->error) {
    lua_pushnil(L);
    lua_pushboolean(L, 0);
    lua_pushstring(L, l->closed ? "closed" : gai_strerror(l->job->error));
    return 3;
  }
  lua_createtable(L, (int)l->job->count, 0);
  for (size_t i = 0; i < l->job->count; i++) {
    lua_pushlstring(L, l->job->answers[i].bytes, l->job->answers[i].length);
    lua_rawseti(L, -2, (int)i + 1);
  }
  return 1;
}

/* lookup:running(): whether there is a thread for it, also when it was closed. */
static int lookup_running(lua_State *L) {
  lua_pushboolean(L, running(check_lookup(L)));
  return 1;
}

static int lookup_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_lookup(L)->wait.id);
  return 1;
}

static int lookup_arm(lua_State *L) {
  lookup *l = check_lookup(L);
  l->wait.armed = true;
  if (l->closed || !running(l))
    ms_wake(l->reactor, &l->wait);
  return 0;
}

static int lookup_close(lua_State *L) {
  lookup *l = check_lookup(L);
  l->closed = true;
  if (running(l))
    ms_source_watch(l->reactor, &l->source, 0);
  else if (l->reactor)
    lookup_end(l);
  return 0;
}

static int lookup_gc(lua_State *L) {
  lookup *l = check_lookup(L);
  if (!l->reactor)
    return 0;
  lookup_end(l);
  ms_reactor_unref(l->reactor);
  l->reactor = NULL;
  return 0;
}

static const luaL_Reg methods[] = {
    {"answer", lookup_answer}, {"running", lookup_running}, {"id", lookup_id},
    {"arm", lookup_arm},       {"close", lookup_close},     {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", lookup_gc},
    {"__close", lookup_close},
    {NULL, NULL},
};

void ms_lookup_open(lua_State *L) {
  ms_newtype(L, LOOKUP_TYPE, methods, metamethods);
  lua_pushcfunction(L, lookup_new);
  lua_setfield(L, -2, "lookup"); /* core.lookup */
}
