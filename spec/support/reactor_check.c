/* links: src/reactor.c -llua5.4 */
/* What cannot be tried from Lua: sources, and forks. Each test has a Lua state and a reactor of its
 * own. Run it in the tree's root, for lua/. */
#include "reactor.h"

#include <errno.h>
#include <fcntl.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned passed, failed;

#define CHECK(condition) check((condition), #condition, __func__, __LINE__)

static void check(bool ok, const char *text, const char *test, int line) {
  if (ok) {
    passed++;
  } else {
    failed++;
    printf("FAILED: %s, line %d: %s\n", test, line, text);
  }
}

/* A pipe whose reading end is a source. What `ready` does is the test's choice. */
typedef struct tube {
  ms_source source;
  ms_waitable wait;
  ms_reactor *reactor;
  int in;              /* owned: where the test writes; -1 once closed */
  int calls;           /* of `ready` */
  bool drain;          /* read what is there */
  bool wake;           /* wake `wait` */
  struct tube *victim; /* removed, closed and freed by `ready`, if not NULL */
} tube;

static void tube_free(tube *t) {
  ms_source_watch(t->reactor, &t->source, 0);
  close(t->source.fd);
  if (t->in >= 0) {
    close(t->in);
  }
  memset(t, 0xAA, sizeof *t); /* who still calls `ready` crashes */
  free(t);
}

static void tube_ready(ms_source *source, uint32_t events) {
  tube *t = (tube *)source;
  (void)events;
  t->calls++;
  if (t->drain) {
    char buffer[4096];
    while (read(source->fd, buffer, sizeof buffer) > 0) {
    }
  }
  if (t->victim) {
    tube_free(t->victim);
    t->victim = NULL;
  }
  if (t->wake) {
    ms_wake(t->reactor, &t->wait);
  }
}

static tube *tube_new(ms_reactor *r) {
  int fds[2];
  tube *t = calloc(1, sizeof *t);
  if (!t || pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) {
    perror("pipe2");
    exit(2);
  }
  t->source = (ms_source){.ready = tube_ready, .fd = fds[0]};
  t->in = fds[1];
  t->reactor = r;
  t->drain = t->wake = true;
  ms_waitable_init(r, &t->wait);
  return t;
}

static void put(tube *t) {
  if (write(t->in, "x", 1) != 1) {
    perror("write");
    exit(2);
  }
}

/* A state with `core` (the reactor's part) and `R`, a reactor. */
static lua_State *open_state(ms_reactor **r) {
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  lua_newtable(L);
  ms_reactor_open(L);
  lua_setglobal(L, "core");
  if (luaL_dostring(L, "R = assert(core.reactor())") != LUA_OK) {
    printf("%s\n", lua_tostring(L, -1));
    exit(2);
  }
  lua_getglobal(L, "R");
  *r = ms_reactor_check(L, -1);
  lua_pop(L, 1);
  return L;
}

/* An expression's value as a number; true is 1, false and nil are 0, an error is -1000. */
static double eval(lua_State *L, const char *expression) {
  lua_pushfstring(L, "return %s", expression);
  double value = -1000;
  if (luaL_dostring(L, lua_tostring(L, -1)) == LUA_OK) {
    value = lua_isnumber(L, -1) ? lua_tonumber(L, -1) : lua_toboolean(L, -1);
  }
  lua_settop(L, 0);
  return value;
}

static void an_armed_waitable_is_woken_once(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *t = tube_new(r);
  CHECK(ms_source_watch(r, &t->source, EPOLLIN) == 0);
  put(t);
  CHECK(eval(L, "R:step(0)") == 0); /* it is not armed */
  CHECK(t->calls == 1);
  t->wait.armed = true;
  put(t);
  CHECK(eval(L, "R:step(-1)") == 1);
  CHECK(!t->wait.armed);
  ms_wake(r, &t->wait);
  CHECK(eval(L, "R:next()") == (double)t->wait.id);
  CHECK(eval(L, "R:next()") == 0);
  tube_free(t);
  lua_close(L);
}

static void sources_are_level_triggered(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *t = tube_new(r);
  t->drain = false;
  ms_source_watch(r, &t->source, EPOLLIN);
  put(t);
  eval(L, "R:step(0)");
  eval(L, "R:step(0)");
  CHECK(t->calls == 2);
  CHECK(ms_source_watch(r, &t->source, EPOLLIN | EPOLLRDHUP) == 0); /* changed in place */
  eval(L, "R:step(0)");
  CHECK(t->calls == 3);
  CHECK(ms_source_watch(r, &t->source, 0) == 0);
  CHECK(t->source.events == 0);
  eval(L, "R:step(0)");
  CHECK(t->calls == 3);
  CHECK(ms_source_watch(r, &t->source, 0) == 0); /* twice is no error */
  CHECK(ms_source_watch(r, &t->source, EPOLLIN) == 0);
  eval(L, "R:step(0)");
  CHECK(t->calls == 4);
  tube_free(t);
  lua_close(L);
}

/* A source that frees another one whose event was fetched already. */
static void events_of_removed_sources_are_dropped(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *a = tube_new(r), *b = tube_new(r);
  put(a);
  put(b);
  a->victim = b;
  b->victim = a; /* whoever is first */
  ms_source_watch(r, &a->source, EPOLLIN);
  ms_source_watch(r, &b->source, EPOLLIN);
  CHECK(eval(L, "R:step(0)") == 0);
  CHECK(eval(L, "R:active()") == 1);
  CHECK(a->calls == 1); /* epoll reports in the order of readiness */
  tube_free(a);
  lua_close(L);
}

static void a_source_may_remove_itself(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *t = tube_new(r);
  t->victim = NULL;
  put(t);
  ms_source_watch(r, &t->source, EPOLLIN);
  t->wake = false;
  t->drain = false;
  eval(L, "R:step(0)");
  tube_free(t);
  CHECK(eval(L, "R:active()") == 0);
  CHECK(eval(L, "R:step(0)") == 0);
  lua_close(L);
}

/* A kept connection must not keep a loop alive, and yet be seen when the peer hangs up. */
static void a_resting_source_is_served_and_not_counted(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *t = tube_new(r);
  ms_source_rest(r, &t->source, true);
  CHECK(!t->source.resting); /* it is not registered */
  CHECK(ms_source_watch(r, &t->source, EPOLLIN) == 0);
  CHECK(eval(L, "R:active()") == 1);
  ms_source_rest(r, &t->source, true);
  ms_source_rest(r, &t->source, true);
  CHECK(eval(L, "R:active()") == 0);
  put(t);
  CHECK(eval(L, "R:step(0)") == 0);
  CHECK(t->calls == 1);
  ms_source_rest(r, &t->source, false);
  CHECK(eval(L, "R:active()") == 1);
  ms_source_rest(r, &t->source, true);
  CHECK(ms_source_watch(r, &t->source, 0) == 0);
  CHECK(!t->source.resting && eval(L, "R:active()") == 0);
  tube_free(t);
  lua_close(L);
}

static void more_sources_than_one_fetch_holds(void) {
  enum { COUNT = 200 };
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *tubes[COUNT];
  for (int i = 0; i < COUNT; i++) {
    tubes[i] = tube_new(r);
    tubes[i]->wait.armed = true;
    put(tubes[i]);
    ms_source_watch(r, &tubes[i]->source, EPOLLIN);
  }
  int ready = 0;
  for (int i = 0; i < 10; i++) {
    ready += eval(L, "R:step(0) and (function() local n = 0 while R:next() do n = n + 1 end "
                     "return n end)()");
  }
  CHECK(ready == COUNT);
  for (int i = 0; i < COUNT; i++) {
    tube_free(tubes[i]);
  }
  CHECK(eval(L, "R:active()") == 0);
  lua_close(L);
}

/* Events that wake nobody do not end a step. */
static void a_step_goes_on_until_an_id_is_ready(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *t = tube_new(r);
  put(t);
  ms_source_watch(r, &t->source, EPOLLIN);
  double start = ms_now();
  CHECK(eval(L, "R:step(0.02)") == 0);
  CHECK(ms_now() - start >= 0.02);
  CHECK(t->calls == 1);
  put(t);
  start = ms_now();
  CHECK(eval(L, "R:timer(core.now() + 0.02) and R:step(-1)") == 1);
  CHECK(ms_now() - start >= 0.02);
  tube_free(t);
  lua_close(L);
}

static void errors_are_answered(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  ms_source s = {.ready = tube_ready, .fd = file};
  CHECK(ms_source_watch(r, &s, EPOLLIN) == -EPERM); /* always ready: not for epoll */
  CHECK(s.events == 0);
  s.fd = -1;
  CHECK(ms_source_watch(r, &s, EPOLLIN) == -EBADF);
  CHECK(s.events == 0);
  CHECK(eval(L, "R:active()") == 0);
  close(file);
  /* closed too early: it can still be removed */
  tube *t = tube_new(r);
  ms_source_watch(r, &t->source, EPOLLIN);
  close(t->source.fd);
  CHECK(ms_source_watch(r, &t->source, 0) == 0);
  CHECK(eval(L, "R:active()") == 0);
  t->source.fd = dup(1);
  tube_free(t);
  memset(ms_reactor_scratch(r), 1, MS_SCRATCH_SIZE);
  lua_close(L);
}

static void objects_may_outlive_the_state(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  ms_reactor_ref(r);
  tube *t = tube_new(r);
  ms_source_watch(r, &t->source, EPOLLIN);
  eval(L, "R:timer(core.now() + 100)");
  lua_close(L);
  CHECK(!ms_reactor_foreign(r)); /* an object in another userdata may still use it */
  tube_free(t);
  ms_reactor_unref(r);
}

static void a_closed_reactor_takes_nothing(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *t = tube_new(r);
  ms_source_watch(r, &t->source, EPOLLIN);
  t->wait.armed = true;
  eval(L, "R:close()");
  CHECK(ms_reactor_foreign(r));
  ms_wake(r, &t->wait);
  CHECK(eval(L, "R:next()") == 0);
  CHECK(ms_source_watch(r, &t->source, EPOLLIN | EPOLLOUT) == -ESTALE);
  CHECK(ms_source_watch(r, &t->source, 0) == 0);
  CHECK(eval(L, "R:step(0) == nil") == 1);
  tube_free(t);
  lua_close(L);
}

static void nothing(int number) {
  (void)number;
}

/* Lua's own handling of an interrupt needs Lua code to run. */
static void a_signal_ends_a_step(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  struct sigaction action = {.sa_handler = nothing}, before;
  sigaction(SIGALRM, &action, &before);
  struct itimerval soon = {.it_value.tv_usec = 10000}, off = {.it_value.tv_usec = 0};
  tube *t = tube_new(r);
  ms_source_watch(r, &t->source, EPOLLIN);
  setitimer(ITIMER_REAL, &soon, NULL);
  CHECK(eval(L, "R:step(-1)") == 0);
  setitimer(ITIMER_REAL, &soon, NULL);
  double start = ms_now();
  CHECK(eval(L, "R:step(60)") == 0);
  CHECK(ms_now() - start < 30);
  setitimer(ITIMER_REAL, &off, NULL);
  sigaction(SIGALRM, &before, NULL);
  tube_free(t);
  lua_close(L);
}

/* Ends a child and tells `value` to the parent. Killed: Valgrind would call all that a forked copy
 * still holds a leak. */
static _Noreturn void leave_child(int pipe_end, int value) {
  unsigned char byte = (unsigned char)value;
  fflush(stdout);
  if (write(pipe_end, &byte, 1) == 1) {
    raise(SIGKILL);
  }
  _exit(3);
}

/* Forks: 0 in the child, with the end of a pipe for `leave_child`; in the parent what the child
 * told once it is over, or 1000. */
static int fork_and_hear(bool *child, int *pipe_end) {
  int fds[2];
  fflush(stdout);
  if (pipe2(fds, O_CLOEXEC) != 0) {
    perror("pipe2");
    exit(2);
  }
  pid_t pid = fork();
  *child = pid == 0;
  *pipe_end = fds[1];
  if (*child) {
    close(fds[0]);
    return 0;
  }
  unsigned char byte;
  close(fds[1]);
  int value = read(fds[0], &byte, 1) == 1 ? byte : 1000;
  close(fds[0]);
  waitpid(pid, NULL, 0);
  return value;
}

/* How many checks failed in the child. */
static int child_touches_nothing(lua_State *L, ms_reactor *r, tube *t) {
  failed = 0;
  CHECK(ms_reactor_foreign(r));
  CHECK(eval(L, "R:foreign()") == 1);
  CHECK(eval(L, "R:step(0) == nil") == 1);
  CHECK(eval(L, "R:fd()") == -1000);
  CHECK(eval(L, "R:timer(1)") == -1000);
  CHECK(ms_source_watch(r, &t->source, EPOLLIN | EPOLLOUT) == -ESTALE);
  CHECK(ms_source_watch(r, &t->source, 0) == 0); /* must not take it out of the parent's set */
  CHECK(eval(L, "R:close()") != -1000);
  lua_close(L);
  return (int)failed;
}

static void a_fork_is_noticed(void) {
  ms_reactor *r;
  lua_State *L = open_state(&r);
  tube *t = tube_new(r);
  ms_source_watch(r, &t->source, EPOLLIN);
  eval(L, "R:fd()"); /* with the timerfd in use */
  eval(L, "R:timer(core.now() + 0.01)");
  bool child;
  int pipe_end, told = fork_and_hear(&child, &pipe_end);
  if (child) {
    leave_child(pipe_end, child_touches_nothing(L, r, t));
  }
  CHECK(told == 0);
  CHECK(!ms_reactor_foreign(r));
  CHECK(eval(L, "R:step(-1)") == 1);
  CHECK(eval(L, "R:next()") != 0);
  t->wait.armed = true;
  put(t);
  CHECK(eval(L, "R:step(-1)") == 1);
  tube_free(t);
  lua_close(L);
}

/* fork() -> nil, pipe end in the child; in the parent what the child told. */
static int lua_fork(lua_State *L) {
  bool child;
  int pipe_end, told = fork_and_hear(&child, &pipe_end);
  if (child) {
    lua_pushnil(L);
    lua_pushinteger(L, pipe_end);
    return 2;
  }
  lua_pushinteger(L, told);
  return 1;
}

/* leave(pipe end, value) */
static int lua_leave(lua_State *L) {
  leave_child((int)luaL_checkinteger(L, 1), (int)luaL_checkinteger(L, 2));
}

/* The loop makes itself a new reactor in the child, and the parent's waits go on. */
static void the_loop_survives_a_fork(void) {
  static const char script[] = "core.errno, core.strerror = {}, tostring\n"
                               "package.loaded['moonsand.core'] = core\n"
                               "package.path = 'lua/?.lua'\n"
                               "local loop = require 'moonsand.loop'\n"
                               "local woken = 0\n"
                               "loop.spawn(function()\n"
                               "  loop.wait(loop.limits { timeout = 0.02 })\n"
                               "  woken = woken + 1\n"
                               "end)\n"
                               "loop.wait(loop.limits { timeout = 0 })\n"
                               "local r = loop.reactor()\n"
                               "local told, pipe_end = fork()\n"
                               "if not told then\n"
                               "  local ok = pcall(function()\n"
                               "    assert(r:foreign() and loop.idle())\n"
                               "    local _, code = loop.wait(loop.limits { timeout = 0.03 })\n"
                               "    assert(code == 'timeout')\n"
                               "    assert(loop.reactor() ~= r and woken == 0)\n"
                               "  end)\n"
                               "  leave(pipe_end, ok and 7 or 1)\n"
                               "end\n"
                               "assert(told == 7, told)\n"
                               "assert(loop.reactor() == r)\n"
                               "loop.wait(loop.limits { timeout = 0.03 })\n"
                               "assert(woken == 1)\n";
  ms_reactor *r;
  lua_State *L = open_state(&r);
  lua_register(L, "fork", lua_fork);
  lua_register(L, "leave", lua_leave);
  bool ok = luaL_dostring(L, script) == LUA_OK;
  if (!ok) {
    printf("%s\n", lua_tostring(L, -1));
  }
  CHECK(ok);
  lua_close(L);
}

int main(void) {
  an_armed_waitable_is_woken_once();
  sources_are_level_triggered();
  events_of_removed_sources_are_dropped();
  a_source_may_remove_itself();
  a_resting_source_is_served_and_not_counted();
  more_sources_than_one_fetch_holds();
  a_step_goes_on_until_an_id_is_ready();
  errors_are_answered();
  objects_may_outlive_the_state();
  a_closed_reactor_takes_nothing();
  a_signal_ends_a_step();
  a_fork_is_noticed();
  the_loop_survives_a_fork();
  printf("%u passed, %u failed\n", passed, failed);
  return failed != 0;
}
