/* The reactor: one epoll set with a timerfd inside it, so that a host has one file descriptor to
 * watch. It never calls Lua. Descriptors are served by C callbacks (`ms_source`); whatever Lua has
 * to hear of is an integer, an `ms_id`, put on the ready list and fetched with `next()`.
 *
 * A reactor belongs to one Lua state in one process. After a fork the child's copy is *foreign*:
 * the epoll set is shared with the parent, so nothing may be registered or removed through it. */
#ifndef MS_REACTOR_H
#define MS_REACTOR_H

#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What Lua waits for: unique for the life of a reactor, never 0, small enough for a double. */
typedef int64_t ms_id;

typedef struct ms_reactor ms_reactor;
typedef struct ms_source ms_source;

/* Something with a descriptor. Embedded in its owner; `ready` finds the owner with a cast. */
struct ms_source {
  void (*ready)(ms_source *source, uint32_t events); /* EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR */
  int fd;                                            /* borrowed from the owner; -1: none */
  uint32_t events;                                   /* registered interest; 0: not registered */
  ms_source *next;                                   /* the reactor's, of a source set aside */
  bool resting;                                      /* nobody waits for it: see ms_source_rest */
};

/* A thing that Lua can wait for. `ms_wake` puts its id on the ready list, once, if it is armed. */
typedef struct ms_waitable {
  ms_id id;
  bool armed; /* Lua waits: set by `arm()`, cleared by the wake */
} ms_waitable;

/* The reactor at a Lua stack index; raises when it is something else. */
ms_reactor *ms_reactor_check(lua_State *L, int index);
/* Counted references: objects may be collected in any order. */
ms_reactor *ms_reactor_ref(ms_reactor *r);
void ms_reactor_unref(ms_reactor *r);
/* True in a process forked from the one that made it, and once it was closed. */
bool ms_reactor_foreign(const ms_reactor *r);

/* Sets the interest of a source: registers, changes, or (0) removes. 0 or a negative errno.
 * A source must be removed before its descriptor is closed and its memory freed; events of this
 * very step that were fetched already are dropped then. */
int ms_source_watch(ms_reactor *r, ms_source *source, uint32_t events);
/* Says whether a registered source rests. It stays in the set and is served, but is nothing that
 * could end a wait: two system calls less than to remove it and to add it again soon. */
void ms_source_rest(ms_reactor *r, ms_source *source, bool resting);

void ms_waitable_init(ms_reactor *r, ms_waitable *w);
void ms_wake(ms_reactor *r, ms_waitable *w);

/* A timer for C: `due` is called within a step, once for each `ms_alarm_set`. */
typedef struct ms_alarm ms_alarm;
struct ms_alarm {
  void (*due)(ms_alarm *alarm);
  ms_id id; /* of the timer, 0 while there is none */
};

/* Sets the alarm anew; `at` is in monotonic seconds, 0 turns it off. */
void ms_alarm_set(ms_reactor *r, ms_alarm *alarm, double at);

/* Monotonic seconds. */
double ms_now(void);

/* 256 KiB that any source may use as scratch within one `ready` call. */
#define MS_SCRATCH_SIZE ((size_t)256 * 1024)
char *ms_reactor_scratch(ms_reactor *r);

/* The calls above for another C module, whose own sources are to live in the same epoll set: its
 * light userdata is `core.api`, since a module's symbols are hidden from the others. */
typedef struct ms_reactor_api {
  ms_reactor *(*check)(lua_State *L, int index);
  ms_reactor *(*ref)(ms_reactor *r);
  void (*unref)(ms_reactor *r);
  bool (*foreign)(const ms_reactor *r);
  int (*watch)(ms_reactor *r, ms_source *source, uint32_t events);
  void (*rest)(ms_reactor *r, ms_source *source, bool resting);
  void (*init)(ms_reactor *r, ms_waitable *w);
  void (*wake)(ms_reactor *r, ms_waitable *w);
  void (*alarm)(ms_reactor *r, ms_alarm *alarm, double at);
  double (*now)(void);
} ms_reactor_api;

/* Adds `api`, `reactor`, `now` and `isyieldable` to the table on top of the stack. */
void ms_reactor_open(lua_State *L);

#endif
