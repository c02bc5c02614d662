/* The reactor (see reactor.h): one epoll set with a timerfd in it, a heap of timers, a ring of ids
 * that are ready. Invariants:
 *
 *   - Lua is never called, so nothing here is entered twice.
 *   - Every registered source is counted in `watched`. `fetched` holds events only within `step`;
 *     removing a source takes its events out of it. A source set aside is not in `watched`, but the
 *     alarm for all of them is a timer as long as there is one.
 *   - The timerfd is in use from the first `fd()` on: `step` itself waits until the nearest timer
 *     without it, for a fifth of the price. `armed` is when it goes off (0: not set), and is never
 *     later than the nearest timer. It may be earlier: cancelling the nearest timer leaves it,
 * since a program that puts a timeout on each of its calls would otherwise pay two system calls for
 *     every one. The fd then wakes once in vain and is set anew.
 *   - `fresh` is a byte that the kernel wipes in a forked child; a wiped reactor is foreign.
 *
 * Memory: the userdata and every `ms_reactor_ref` hold one reference each. `close` gives back the
 * descriptors at once; the struct goes with the last reference, so that at lua_close the objects
 * and the reactor may be collected in any order. */
#include "reactor.h"
#include "compat.h"
#include "moonsand.h"
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define TYPE_NAME "moonsand.reactor"
#define FETCH_MAX 64
#define FOR_EVER 1e9 /* seconds: beyond, a timeout is none */
#define ASIDE_PERIOD 0.01

typedef struct ms_timer {
  double at;
  ms_id id;
  ms_alarm *alarm; /* borrowed: who is called; NULL: the id is for Lua */
} ms_timer;

/* Where a timer is in the heap. Ids are consecutive, so `id & mask` hardly ever collides. */
typedef struct ms_place {
  ms_id id; /* 0: free */
  size_t index;
} ms_place;

struct ms_reactor {
  size_t refs;
  int epoll_fd;         /* owned, -1 once closed */
  int timer_fd;         /* owned, -1 once closed */
  unsigned char *fresh; /* owned: a page, its first byte 1 where we were made; NULL: ask getpid */
  pid_t pid;
  bool closed;
  bool exposed;   /* a host watches the fd */
  bool coarse;    /* the kernel has no epoll_pwait2: timeouts in whole milliseconds */
  bool exhausted; /* memory ran out in a place that could not say so */
  ms_id last_id;

  size_t watched, resting; /* of those watched */
  struct epoll_event fetched[FETCH_MAX];
  int fetched_count;

  ms_source *aside;       /* a list of those that the epoll set had no room for */
  ms_source *aside_after; /* the next one to look at, while they are looked at */
  ms_alarm aside_alarm;

  ms_id *ready; /* owned: a ring */
  size_t ready_capacity, ready_head, ready_count;

  ms_timer *heap;   /* owned: the nearest first */
  ms_place *places; /* owned: by id, open addressing, twice the heap's capacity or more */
  size_t timer_capacity, timer_count; /* capacity: a power of two, or 0 */
  double armed;

  char scratch[MS_SCRATCH_SIZE];
};

double ms_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double smaller(double a, double b) {
  return a < b ? a : b;
}

static double larger(double a, double b) {
  return a > b ? a : b;
}

/* For positive numbers that fit; the library asks for no libm. */
static long round_up(double number) {
  long whole = (long)number;
  return whole + ((double)whole < number);
}

/* Rounds up: a timer must not go off before its time. */
static struct timespec to_timespec(double seconds) {
  struct timespec t = {.tv_sec = (time_t)seconds};
  t.tv_nsec = round_up((seconds - (double)t.tv_sec) * 1e9);
  if (t.tv_nsec >= 1000000000L) {
    t.tv_nsec -= 1000000000L;
    t.tv_sec++;
  }
  return t;
}

static void aside_due(ms_alarm *alarm);

/* ---- life ---- */

/* A page that reads 1 here and 0 in a forked child, or NULL when the kernel cannot do that. */
static unsigned char *fresh_page(void) {
  size_t size = (size_t)sysconf(_SC_PAGESIZE);
  void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) {
    return NULL;
  }
  if (madvise(page, size, MADV_WIPEONFORK) != 0) {
    munmap(page, size);
    return NULL;
  }
  *(unsigned char *)page = 1;
  return page;
}

bool ms_reactor_foreign(const ms_reactor *r) {
  if (r->closed) {
    return true;
  }
  return r->fresh ? *(volatile unsigned char *)r->fresh == 0 : getpid() != r->pid;
}

ms_reactor *ms_reactor_ref(ms_reactor *r) {
  r->refs++;
  return r;
}

static void reactor_close(ms_reactor *r) {
  if (r->closed) {
    return;
  }
  r->closed = true;
  if (r->epoll_fd >= 0) {
    close(r->epoll_fd);
  }
  if (r->timer_fd >= 0) {
    close(r->timer_fd);
  }
  if (r->fresh) {
    munmap(r->fresh, (size_t)sysconf(_SC_PAGESIZE));
  }
  r->epoll_fd = r->timer_fd = -1;
  r->fresh = NULL;
  free(r->ready);
  free(r->heap);
  free(r->places);
  r->ready = NULL;
  r->heap = NULL;
  r->places = NULL;
  r->ready_capacity = r->ready_count = r->ready_head = 0;
  r->timer_capacity = r->timer_count = 0;
  r->fetched_count = 0;
  r->armed = 0;
}

void ms_reactor_unref(ms_reactor *r) {
  if (--r->refs == 0) {
    reactor_close(r);
    free(r);
  }
}

/* 0 or a negative errno. On failure the reactor is as good as closed. */
static int reactor_init(ms_reactor *r) {
  r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (r->epoll_fd < 0) {
    return -errno;
  }
  r->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (r->timer_fd < 0) {
    return -errno;
  }
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}; /* NULL: the timerfd */
  if (epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->timer_fd, &event) != 0) {
    return -errno;
  }
  r->aside_alarm.due = aside_due;
  r->pid = getpid();
  r->fresh = fresh_page();
  return 0;
}

/* ---- the ready list ---- */

/* Puts an id at the end of the ring, which grows by doubling and never shrinks. */
static void push_ready(ms_reactor *r, ms_id id) {
  if (r->ready_count == r->ready_capacity) {
    size_t capacity = r->ready_capacity ? 2 * r->ready_capacity : 64;
    ms_id *ring = malloc(capacity * sizeof *ring);
    if (!ring) {
      r->exhausted = true;
      return;
    }
    for (size_t i = 0; i < r->ready_count; i++) {
      ring[i] = r->ready[(r->ready_head + i) & (r->ready_capacity - 1)];
    }
    free(r->ready);
    r->ready = ring;
    r->ready_capacity = capacity;
    r->ready_head = 0;
  }
  r->ready[(r->ready_head + r->ready_count++) & (r->ready_capacity - 1)] = id;
}

static ms_id pop_ready(ms_reactor *r) {
  if (r->ready_count == 0) {
    return 0;
  }
  ms_id id = r->ready[r->ready_head];
  r->ready_head = (r->ready_head + 1) & (r->ready_capacity - 1);
  r->ready_count--;
  return id;
}

void ms_waitable_init(ms_reactor *r, ms_waitable *w) {
  w->id = ++r->last_id;
  w->armed = false;
}

void ms_wake(ms_reactor *r, ms_waitable *w) {
  if (w->armed && !r->closed) {
    w->armed = false;
    push_ready(r, w->id);
  }
}

/* ---- sources ---- */

static void drop_fetched(ms_reactor *r, const ms_source *source) {
  for (int i = 0; i < r->fetched_count; i++) {
    if (r->fetched[i].data.ptr == source) {
      r->fetched[i].data.ptr = NULL;
      r->fetched[i].events = 0;
    }
  }
}

/* What all epoll sets of a user may watch together is bounded, and code in a sandbox may be that
 * user and take all of it. Nobody shall wait for ever then: what does not fit is set aside, and
 * looked at a hundred times a second until it fits. */

static ms_source **aside_place(ms_reactor *r, const ms_source *source) {
  ms_source **at = &r->aside;
  while (*at && *at != source) {
    at = &(*at)->next;
  }
  return at;
}

static bool aside_remove(ms_reactor *r, ms_source *source) {
  ms_source **at = aside_place(r, source);
  if (!*at) {
    return false;
  }
  if (r->aside_after == source) {
    r->aside_after = source->next;
  }
  *at = source->next;
  return true;
}

/* 0 or a negative errno: without an alarm nobody would look. */
static int aside_add(ms_reactor *r, ms_source *source) {
  if (r->aside_alarm.id == 0) {
    ms_alarm_set(r, &r->aside_alarm, ms_now() + ASIDE_PERIOD);
  }
  if (r->aside_alarm.id == 0) {
    return -ENOMEM;
  }
  source->next = r->aside;
  r->aside = source;
  return 0;
}

static void aside_look(ms_reactor *r, ms_source *source) {
  struct epoll_event event = {.events = source->events, .data.ptr = source};
  if (epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, source->fd, &event) == 0) {
    aside_remove(r, source);
    r->watched++;
    return;
  }
  struct pollfd state = {.fd = source->fd, .events = (short)source->events};
  if (poll(&state, 1, 0) > 0) {
    source->ready(source, (uint32_t)state.revents);
  }
}

static void aside_due(ms_alarm *alarm) {
  ms_reactor *r = (ms_reactor *)((char *)alarm - offsetof(ms_reactor, aside_alarm));
  for (ms_source *source = r->aside; source; source = r->aside_after) {
    r->aside_after = source->next;
    aside_look(r, source);
  }
  if (r->aside) {
    ms_alarm_set(r, alarm, ms_now() + ASIDE_PERIOD);
  }
}

void ms_source_rest(ms_reactor *r, ms_source *source, bool resting) {
  bool counted = source->events && !*aside_place(r, source);
  if (counted && source->resting != resting) {
    source->resting = resting;
    r->resting = resting ? r->resting + 1 : r->resting - 1;
  }
}

int ms_source_watch(ms_reactor *r, ms_source *source, uint32_t events) {
  if (events == source->events) {
    return 0;
  }
  if (!events) {
    ms_source_rest(r, source, false);
  }
  if (ms_reactor_foreign(r)) {
    /* The set is the parent's, or gone: forget the source, touch nothing. */
    source->events = events ? source->events : 0;
    return events ? -ESTALE : 0;
  }
  if (source->events && *aside_place(r, source)) {
    if (!events) {
      aside_remove(r, source);
    }
    source->events = events;
    return 0;
  }
  int operation = !source->events ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
  struct epoll_event event = {.events = events, .data.ptr = source};
  int error = epoll_ctl(r->epoll_fd, operation, source->fd, &event) == 0 ? 0 : -errno;
  if (operation == EPOLL_CTL_DEL) {
    error = 0; /* a descriptor that was closed too early is out of the set all the same */
    r->watched--;
    drop_fetched(r, source);
  } else if (error == 0 && operation == EPOLL_CTL_ADD) {
    r->watched++;
  } else if (error == -ENOSPC && operation == EPOLL_CTL_ADD) {
    error = aside_add(r, source);
  }
  if (error == 0) {
    source->events = events;
  }
  return error;
}

char *ms_reactor_scratch(ms_reactor *r) {
  return r->scratch;
}

/* ---- timers: a binary heap, and a table that knows where each id is in it ---- */

static size_t place_mask(const ms_reactor *r) {
  return 2 * r->timer_capacity - 1;
}

/* The place of an id, or the free one where it would go. */
static ms_place *place_of(ms_reactor *r, ms_id id) {
  size_t mask = place_mask(r);
  size_t i = (size_t)id & mask;
  while (r->places[i].id != 0 && r->places[i].id != id) {
    i = (i + 1) & mask;
  }
  return &r->places[i];
}

/* Empties a place and moves up those behind it that it kept from their own. */
static void place_free(ms_reactor *r, ms_place *place) {
  size_t mask = place_mask(r);
  size_t hole = (size_t)(place - r->places);
  for (size_t i = (hole + 1) & mask; r->places[i].id != 0; i = (i + 1) & mask) {
    size_t home = (size_t)r->places[i].id & mask;
    if (((i - home) & mask) >= ((i - hole) & mask)) {
      r->places[hole] = r->places[i];
      hole = i;
    }
  }
  r->places[hole].id = 0;
}

/* By time, then by age: timers of the same instant go off in the order they were made. */
static bool before(const ms_timer *a, const ms_timer *b) {
  return a->at < b->at || (a->at == b->at && a->id < b->id);
}

static void heap_put(ms_reactor *r, size_t index, ms_timer timer) {
  r->heap[index] = timer;
  place_of(r, timer.id)->index = index;
}

/* Places `timer` at the hole `index`, or further up or down where it belongs. */
static void heap_settle(ms_reactor *r, size_t index, ms_timer timer) {
  while (index > 0 && before(&timer, &r->heap[(index - 1) / 2])) {
    heap_put(r, index, r->heap[(index - 1) / 2]);
    index = (index - 1) / 2;
  }
  for (size_t child; (child = 2 * index + 1) < r->timer_count; index = child) {
    if (child + 1 < r->timer_count && before(&r->heap[child + 1], &r->heap[child])) {
      child++;
    }
    if (!before(&r->heap[child], &timer)) {
      break;
    }
    heap_put(r, index, r->heap[child]);
  }
  heap_put(r, index, timer);
}

static bool timers_grow(ms_reactor *r) {
  size_t capacity = r->timer_capacity ? 2 * r->timer_capacity : 16;
  ms_place *places = calloc(2 * capacity, sizeof *places);
  ms_timer *heap = places ? realloc(r->heap, capacity * sizeof *heap) : NULL;
  if (!heap) {
    free(places);
    return false;
  }
  free(r->places);
  r->heap = heap;
  r->places = places;
  r->timer_capacity = capacity;
  for (size_t i = 0; i < r->timer_count; i++) {
    *place_of(r, heap[i].id) = (ms_place){heap[i].id, i};
  }
  return true;
}

/* Sets the timerfd, which also makes it unreadable; 0 turns it off. */
static void arm(ms_reactor *r, double at) {
  struct itimerspec spec = {.it_value = to_timespec(at)};
  timerfd_settime(r->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
  r->armed = at;
}

/* A new timer's id, or 0 when memory ran out. `at` is positive and finite. */
static ms_id timer_add(ms_reactor *r, double at, ms_alarm *alarm) {
  if (r->timer_count == r->timer_capacity && !timers_grow(r)) {
    return 0;
  }
  ms_timer timer = {.at = at, .id = ++r->last_id, .alarm = alarm};
  *place_of(r, timer.id) = (ms_place){timer.id, r->timer_count};
  heap_settle(r, r->timer_count++, timer);
  if (r->exposed && (r->armed == 0 || at < r->armed)) {
    arm(r, at);
  }
  return timer.id;
}

static bool timer_remove(ms_reactor *r, ms_id id) {
  ms_place *place = r->timer_count && id > 0 ? place_of(r, id) : NULL;
  if (!place || place->id == 0) {
    return false;
  }
  size_t index = place->index;
  place_free(r, place);
  ms_timer last = r->heap[--r->timer_count];
  if (index < r->timer_count) {
    heap_settle(r, index, last);
  }
  return true;
}

void ms_alarm_set(ms_reactor *r, ms_alarm *alarm, double at) {
  if (ms_reactor_foreign(r)) {
    return;
  }
  timer_remove(r, alarm->id);
  alarm->id = at > 0 ? timer_add(r, at, alarm) : 0;
  r->exhausted |= at > 0 && alarm->id == 0;
}

/* Moves what is due to the ready list, calls alarms, and sets the timerfd anew once it went off. */
static void timers_expire(ms_reactor *r) {
  double now = ms_now();
  while (r->timer_count && r->heap[0].at <= now) {
    ms_timer timer = r->heap[0];
    timer_remove(r, timer.id);
    if (timer.alarm) {
      timer.alarm->id = 0;
      timer.alarm->due(timer.alarm);
    } else {
      push_ready(r, timer.id);
    }
  }
  if (r->armed != 0 && r->armed <= now) {
    arm(r, r->timer_count ? r->heap[0].at : 0);
  }
}

/* ---- step ---- */

/* epoll_wait with a timeout in seconds; negative: for ever. */
static int fetch(ms_reactor *r, double timeout) {
  if (timeout == 0 || timeout < 0) {
    return epoll_wait(r->epoll_fd, r->fetched, FETCH_MAX, timeout < 0 ? -1 : 0);
  }
#ifdef SYS_epoll_pwait2
  if (!r->coarse) {
    struct timespec t = to_timespec(timeout);
    int n = (int)syscall(SYS_epoll_pwait2, r->epoll_fd, r->fetched, FETCH_MAX, &t, NULL, 0);
    if (n >= 0 || (errno != ENOSYS && errno != EPERM)) { /* EPERM: an old container's filter */
      return n;
    }
    r->coarse = true;
  }
#endif
  return epoll_wait(r->epoll_fd, r->fetched, FETCH_MAX, (int)round_up(smaller(timeout, 1e6) * 1e3));
}

static void serve(ms_reactor *r, int count) {
  r->fetched_count = count;
  for (int i = 0; i < count; i++) {
    ms_source *source = r->fetched[i].data.ptr;
    if (source) {
      source->ready(source, r->fetched[i].events);
    }
  }
  r->fetched_count = 0;
}

/* Serves what happens until an id is ready or the time is over. 0 or a negative errno; -EINTR is
 * for the caller to return to Lua, whose own signal handling runs in Lua code only. */
static int reactor_step(ms_reactor *r, double timeout) {
  double deadline = timeout < 0 ? INFINITY : timeout > 0 ? ms_now() + timeout : 0;
  for (;;) {
    double until = r->ready_count ? 0 : deadline;
    if (until > 0 && r->timer_count) {
      until = smaller(until, r->heap[0].at);
    }
    double left = until == INFINITY ? -1 : until > 0 ? larger(until - ms_now(), 0) : 0;
    if (r->watched || left != 0) {
      int count = fetch(r, left);
      if (count < 0) {
        return -errno;
      }
      serve(r, count);
    }
    if (r->timer_count || r->armed != 0) {
      timers_expire(r);
    }
    if (r->ready_count || deadline == 0 || (deadline != INFINITY && ms_now() >= deadline)) {
      return 0;
    }
  }
}

/* ---- Lua ---- */

typedef struct ms_reactor_box {
  ms_reactor *reactor; /* one reference; NULL once collected */
} ms_reactor_box;

ms_reactor *ms_reactor_check(lua_State *L, int index) {
  ms_reactor_box *box = luaL_checkudata(L, index, TYPE_NAME);
  if (!box->reactor) {
    luaL_error(L, "moonsand.reactor: used after it was collected");
  }
  return box->reactor;
}

/* The same, for calls that make no sense after a close or in a forked child. */
static ms_reactor *check_usable(lua_State *L) {
  ms_reactor *r = ms_reactor_check(L, 1);
  if (ms_reactor_foreign(r)) {
    luaL_error(L, r->closed ? "moonsand.reactor: used after close()"
                            : "moonsand.reactor: made by another process, before a fork");
  }
  return r;
}

/* reactor() -> reactor, or nil, errno */
static int reactor_new(lua_State *L) {
  ms_reactor_box *box = lua_newuserdata(L, sizeof *box);
  box->reactor = NULL;
  luaL_getmetatable(L, TYPE_NAME);
  lua_setmetatable(L, -2); /* from here on the collector frees what we made */
  ms_reactor *r = calloc(1, sizeof *r);
  if (!r) {
    return luaL_error(L, "not enough memory");
  }
  r->refs = 1;
  r->epoll_fd = r->timer_fd = -1;
  box->reactor = r;
  int error = reactor_init(r);
  if (error) {
    reactor_close(r);
    lua_pushnil(L);
    lua_pushinteger(L, -error);
    return 2;
  }
  return 1;
}

static int reactor_gc(lua_State *L) {
  ms_reactor_box *box = luaL_checkudata(L, 1, TYPE_NAME);
  if (box->reactor) {
    ms_reactor *r = box->reactor;
    box->reactor = NULL;
    ms_reactor_unref(r);
  }
  return 0;
}

static int reactor_close_method(lua_State *L) {
  ms_reactor_box *box = luaL_checkudata(L, 1, TYPE_NAME);
  if (box->reactor) {
    reactor_close(box->reactor);
  }
  return 0;
}

static int reactor_fd(lua_State *L) {
  ms_reactor *r = check_usable(L);
  if (!r->exposed) {
    r->exposed = true;
    if (r->timer_count) {
      arm(r, r->heap[0].at);
    }
  }
  lua_pushinteger(L, r->epoll_fd);
  return 1;
}

/* step(timeout) -> how many ids are ready; nothing after a close or in a forked child */
static int reactor_step_method(lua_State *L) {
  ms_reactor *r = ms_reactor_check(L, 1);
  if (ms_reactor_foreign(r)) {
    return 0;
  }
  lua_Number timeout = luaL_optnumber(L, 2, -1);
  luaL_argcheck(L, timeout == timeout, 2, "not a number of seconds");
  int error = reactor_step(r, timeout > FOR_EVER ? -1 : timeout);
  if (error && error != -EINTR) {
    return luaL_error(L, "epoll_wait: %s", strerror(-error));
  }
  if (r->exhausted) {
    r->exhausted = false;
    return luaL_error(L, "not enough memory");
  }
  lua_pushinteger(L, (lua_Integer)r->ready_count);
  return 1;
}

/* next() -> id, or nil */
static int reactor_next(lua_State *L) {
  ms_id id = pop_ready(ms_reactor_check(L, 1));
  if (id) {
    lua_pushinteger(L, (lua_Integer)id);
  } else {
    lua_pushnil(L);
  }
  return 1;
}

/* timer(at) -> id */
static int reactor_timer(lua_State *L) {
  ms_reactor *r = check_usable(L);
  lua_Number at = luaL_checknumber(L, 2);
  luaL_argcheck(L, at == at, 2, "not a time");
  /* 1 ns: what is in the past is due at once, but 0 would turn the timerfd off */
  ms_id id = timer_add(r, smaller(larger(at, 1e-9), FOR_EVER), NULL);
  if (!id) {
    return luaL_error(L, "not enough memory");
  }
  lua_pushinteger(L, (lua_Integer)id);
  return 1;
}

/* cancel(id) -> whether a timer of that id was still to come */
static int reactor_cancel(lua_State *L) {
  ms_reactor *r = ms_reactor_check(L, 1);
  lua_pushboolean(L, timer_remove(r, (ms_id)luaL_checkinteger(L, 2)));
  return 1;
}

static int reactor_foreign(lua_State *L) {
  ms_reactor_box *box = luaL_checkudata(L, 1, TYPE_NAME);
  lua_pushboolean(L, !box->reactor || ms_reactor_foreign(box->reactor));
  return 1;
}

/* active() -> how many sources and timers could still make something ready */
static int reactor_active(lua_State *L) {
  ms_reactor *r = ms_reactor_check(L, 1);
  lua_pushinteger(L, (lua_Integer)(r->watched - r->resting + r->timer_count + r->ready_count));
  return 1;
}

static int reactor_tostring(lua_State *L) {
  ms_reactor_box *box = luaL_checkudata(L, 1, TYPE_NAME);
  const ms_reactor *r = box->reactor;
  if (!r || ms_reactor_foreign(r)) {
    lua_pushfstring(L, TYPE_NAME " (%s)", r && !r->closed ? "another process's" : "closed");
  } else {
    lua_pushfstring(L, TYPE_NAME " (fd %d, %d sources, %d timers)", r->epoll_fd, (int)r->watched,
                    (int)r->timer_count);
  }
  return 1;
}

static int core_now(lua_State *L) {
  lua_pushnumber(L, ms_now());
  return 1;
}

/* core.wall(): seconds since 1970, with their fractions */
static int core_wall(lua_State *L) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  lua_pushnumber(L, (lua_Number)now.tv_sec + (lua_Number)now.tv_nsec / 1e9);
  return 1;
}

static int core_isyieldable(lua_State *L) {
  lua_pushboolean(L, lua_isyieldable(L));
  return 1;
}

void ms_reactor_open(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"fd", reactor_fd},
      {"step", reactor_step_method},
      {"next", reactor_next},
      {"timer", reactor_timer},
      {"cancel", reactor_cancel},
      {"now", core_now},
      {"foreign", reactor_foreign},
      {"active", reactor_active},
      {"close", reactor_close_method},
      {NULL, NULL},
  };
  static const luaL_Reg meta[] = {
      {"__gc", reactor_gc},
      {"__close", reactor_close_method},
      {"__tostring", reactor_tostring},
      {NULL, NULL},
  };
  static const luaL_Reg functions[] = {
      {"reactor", reactor_new},          {"now", core_now}, {"wall", core_wall},
      {"isyieldable", core_isyieldable}, {NULL, NULL},
  };
  static const ms_reactor_api api = {
      .check = ms_reactor_check,
      .ref = ms_reactor_ref,
      .unref = ms_reactor_unref,
      .foreign = ms_reactor_foreign,
      .watch = ms_source_watch,
      .rest = ms_source_rest,
      .init = ms_waitable_init,
      .wake = ms_wake,
      .alarm = ms_alarm_set,
      .now = ms_now,
  };
  ms_newtype(L, TYPE_NAME, methods, meta);
  luaL_setfuncs(L, functions, 0);
  lua_pushlightuserdata(L, (void *)&api);
  lua_setfield(L, -2, "api"); /* core.api */
}
