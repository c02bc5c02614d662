/* Wakes an nginx worker when the reactor has something to do. nginx has no call that watches a
 * foreign descriptor, but it watches its own sockets: so a thread waits for the reactor's epoll set
 * and writes a byte into a connection whose other end is a cosocket of the worker.
 *
 * The thread does nothing else. It never touches Lua, the reactor's memory or any file of the
 * worker's; all signals are blocked in it. The descriptor is watched one shot: after each byte it
 * is silent until `arm`, so no more than one byte ('x') is on its way for it. Besides there is a
 * beat
 * ('t'), since a read without an end would leave the worker no turn to look around, and one that
 * times out is an error in nginx's log; and `kick` ('k').
 *
 * Nobody else may come between: the listener is a unix socket in a directory of our own (0700),
 * takes one connection, and only from this very process (SO_PEERCRED); or, where no such file can
 * be made, a loopback port, whose peer must first say the 16 random bytes that only Lua here knows.
 *
 * Life: new -> listen -> (the worker connects) -> start -> stop. `stop`, `close`, the collector:
 * all the same, any time, again if you like; it joins the thread, which takes no longer than its
 * wake. */
#include "compat.h"
#include "moonsand.h"
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define TYPE_NAME "moonsand.wake"
#define STACK_SIZE ((size_t)64 * 1024)
#define NONCE_SIZE 16
#define STRANGERS_MAX 64 /* connections that are turned away before we give up */

typedef struct ms_waker {
  int watched;   /* borrowed: the reactor's descriptor */
  int set;       /* owned: what the thread waits for, -1 once stopped */
  int halt;      /* owned: an eventfd, readable when the thread is to end, -1 once stopped */
  int listener;  /* owned, -1 but from listen to start */
  int line;      /* owned: our end of the connection, -1 but from start to stop */
  int beat;      /* milliseconds */
  bool running;  /* the thread is to be joined */
  pid_t process; /* whose thread it is: a forked child has none */
  pthread_t thread;
  unsigned char nonce[NONCE_SIZE];
  char directory[64]; /* "" or ours to remove */
  struct sockaddr_un address;
} ms_waker;

/* ---- the thread ---- */

/* False when nobody reads any more. A full socket is no loss: the worker will wake all the same. */
static bool say(const ms_waker *w, char word) {
  ssize_t sent = send(w->line, &word, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  return sent == 1 || errno == EAGAIN || errno == EINTR;
}

static void *watch(void *argument) {
  const ms_waker *w = argument;
  struct epoll_event event;
  for (bool heard = true; heard;) {
    int count = epoll_wait(w->set, &event, 1, w->beat);
    if (count < 0 && errno != EINTR) {
      break;
    } else if (count > 0 && event.data.fd == w->halt) {
      break;
    }
    heard = count < 0 || say(w, count > 0 ? 'x' : 't');
  }
  return NULL;
}

/* Starts it with all signals blocked from its first moment on. 0 or a negative errno. */
static int thread_start(ms_waker *w) {
  pthread_attr_t attributes;
  sigset_t all, before;
  int error = pthread_attr_init(&attributes);
  if (error) {
    return -error;
  }
  pthread_attr_setstacksize(&attributes, STACK_SIZE); /* refused: the usual size, then */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  error = pthread_create(&w->thread, &attributes, watch, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  w->running = error == 0;
  w->process = getpid();
  return -error;
}

/* The code of the thread stays mapped, whatever happens to the Lua state that loaded it. */
static void pin(void) {
  Dl_info info;
  if (dladdr((void *)(uintptr_t)watch, &info) && info.dli_fname) {
    dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  }
}

/* ---- the connection ---- */

static void close_fd(int *fd) {
  if (*fd >= 0) {
    close(*fd);
  }
  *fd = -1;
}

static void remove_files(ms_waker *w) {
  if (w->directory[0]) {
    unlink(w->address.sun_path);
    rmdir(w->directory);
    w->directory[0] = '\0';
  }
}

static int listen_on(ms_waker *w, const struct sockaddr *address, socklen_t length) {
  w->listener = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (w->listener < 0 || bind(w->listener, address, length) != 0 || listen(w->listener, 8) != 0) {
    return -errno;
  }
  return 0;
}

/* 0 or a negative errno. */
static int listen_unix(ms_waker *w) {
  const char *place = getenv("TMPDIR");
  char path[sizeof w->directory];
  int length = snprintf(path, sizeof path, "%s/moonsand-XXXXXX",
                        place && place[0] == '/' && strlen(place) < 40 ? place : "/tmp");
  if (length < 0 || (size_t)length >= sizeof path) {
    return -ENAMETOOLONG;
  } else if (!mkdtemp(path)) {
    return -errno;
  }
  memcpy(w->directory, path, sizeof path);
  w->address = (struct sockaddr_un){.sun_family = AF_UNIX};
  snprintf(w->address.sun_path, sizeof w->address.sun_path, "%s/wake", path);
  return listen_on(w, (struct sockaddr *)&w->address, sizeof w->address);
}

/* The port, or a negative errno. */
static int listen_tcp(ms_waker *w) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int error = listen_on(w, (struct sockaddr *)&address, sizeof address);
  if (!error && getsockname(w->listener, (struct sockaddr *)&address, &length) != 0) {
    error = -errno;
  }
  if (!error && getrandom(w->nonce, NONCE_SIZE, 0) != NONCE_SIZE) {
    error = -EIO;
  }
  return error ? error : ntohs(address.sin_port);
}

/* Is the other end this process? What it has to say was sent before we are asked. */
static bool is_ours(const ms_waker *w, int peer) {
  if (w->directory[0]) {
    struct ucred who;
    socklen_t length = sizeof who;
    return getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0 && who.pid == getpid() &&
           who.uid == geteuid();
  }
  unsigned char said[NONCE_SIZE], difference = 0;
  if (recv(peer, said, sizeof said, MSG_DONTWAIT) != NONCE_SIZE) {
    return false;
  }
  for (size_t i = 0; i < NONCE_SIZE; i++) {
    difference |= said[i] ^ w->nonce[i];
  }
  int at_once = 1;
  setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof at_once);
  return difference == 0;
}

/* Takes the one connection that is ours; then nobody can come any more. 0 or a negative errno. */
static int take_line(ms_waker *w) {
  int error = -ECONNREFUSED;
  for (int i = 0; i < STRANGERS_MAX && w->line < 0; i++) {
    int peer = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0) {
      error = -errno;
      break;
    } else if (is_ours(w, peer)) {
      w->line = peer;
    } else {
      close(peer);
    }
  }
  close_fd(&w->listener);
  remove_files(w);
  return w->line >= 0 ? 0 : error;
}

/* ---- life ---- */

static int watch_fd(const ms_waker *w, int operation, int fd, uint32_t events) {
  struct epoll_event event = {.events = events, .data.fd = fd};
  return epoll_ctl(w->set, operation, fd, &event) == 0 ? 0 : -errno;
}

/* 0 or a negative errno. */
static int waker_open(ms_waker *w) {
  w->set = epoll_create1(EPOLL_CLOEXEC);
  if (w->set < 0) {
    return -errno;
  }
  w->halt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (w->halt < 0) {
    return -errno;
  }
  int error = watch_fd(w, EPOLL_CTL_ADD, w->halt, EPOLLIN);
  return error ? error : watch_fd(w, EPOLL_CTL_ADD, w->watched, EPOLLIN | EPOLLONESHOT);
}

static void waker_stop(ms_waker *w) {
  if (w->running) {
    w->running = false;
    uint64_t one = 1;
    if (w->process == getpid() && write(w->halt, &one, sizeof one) == sizeof one) {
      pthread_join(w->thread, NULL);
    }
  }
  if (w->process == 0 || w->process == getpid()) {
    remove_files(w);
  }
  close_fd(&w->listener);
  close_fd(&w->line);
  close_fd(&w->set);
  close_fd(&w->halt);
}

/* ---- Lua ---- */

static ms_waker *check(lua_State *L) {
  return luaL_checkudata(L, 1, TYPE_NAME);
}

static ms_waker *check_open(lua_State *L) {
  ms_waker *w = check(L);
  if (w->set < 0) {
    luaL_error(L, TYPE_NAME ": used after stop()");
  }
  return w;
}

static int answer(lua_State *L, int error) {
  if (error) {
    lua_pushnil(L);
    lua_pushinteger(L, -error);
    return 2;
  }
  lua_pushboolean(L, 1);
  return 1;
}

/* wake(fd) -> waker, or nil, errno */
static int waker_new(lua_State *L) {
  int fd = (int)luaL_checkinteger(L, 1);
  ms_waker *w = lua_newuserdata(L, sizeof *w);
  memset(w, 0, sizeof *w);
  w->watched = fd;
  w->set = w->halt = w->listener = w->line = -1;
  luaL_getmetatable(L, TYPE_NAME);
  lua_setmetatable(L, -2); /* from here on the collector frees what we made */
  int error = waker_open(w);
  if (error) {
    waker_stop(w);
    return answer(L, error);
  }
  return 1;
}

/* listen("unix") -> path; listen("tcp") -> port, nonce; or nil, errno */
static int waker_listen(lua_State *L) {
  static const char *const kinds[] = {"unix", "tcp", NULL};
  ms_waker *w = check_open(L);
  int kind = luaL_checkoption(L, 2, "unix", kinds);
  luaL_argcheck(L, w->listener < 0 && w->line < 0, 1, "listens or runs already");
  int port = kind == 0 ? listen_unix(w) : listen_tcp(w);
  if (port < 0) {
    close_fd(&w->listener);
    remove_files(w);
    return answer(L, port);
  } else if (kind == 0) {
    lua_pushstring(L, w->address.sun_path);
    return 1;
  }
  lua_pushinteger(L, port);
  lua_pushlstring(L, (const char *)w->nonce, NONCE_SIZE);
  return 2;
}

/* start(beat): takes the connection that was made, and starts the thread. true, or nil, errno */
static int waker_start(lua_State *L) {
  ms_waker *w = check_open(L);
  lua_Number beat = luaL_checknumber(L, 2);
  luaL_argcheck(L, beat >= 0.001 && beat <= 1e6, 2, "not a number of seconds");
  luaL_argcheck(L, w->listener >= 0, 1, "does not listen");
  w->beat = (int)(beat * 1000);
  int error = take_line(w);
  if (!error) {
    pin();
    error = thread_start(w);
  }
  if (error) {
    waker_stop(w);
  }
  return answer(L, error);
}

/* arm(): the next time that the reactor has something to do is told. */
static int waker_arm(lua_State *L) {
  ms_waker *w = check_open(L);
  return answer(L, watch_fd(w, EPOLL_CTL_MOD, w->watched, EPOLLIN | EPOLLONESHOT));
}

/* kick() -> whether there was somebody to wake: ends the read that is in progress. */
static int waker_kick(lua_State *L) {
  const ms_waker *w = check(L);
  lua_pushboolean(L, w->line >= 0 && say(w, 'k'));
  return 1;
}

static int waker_stop_method(lua_State *L) {
  waker_stop(check(L));
  return 0;
}

static int waker_tostring(lua_State *L) {
  const ms_waker *w = check(L);
  lua_pushfstring(L, TYPE_NAME " (%s)",
                  w->running   ? "running"
                  : w->set < 0 ? "stopped"
                               : "not started");
  return 1;
}

void ms_wake_open(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"listen", waker_listen},
      {"start", waker_start},
      {"arm", waker_arm},
      {"kick", waker_kick},
      {"stop", waker_stop_method},
      {"close", waker_stop_method},
      {NULL, NULL},
  };
  static const luaL_Reg meta[] = {
      {"__gc", waker_stop_method},
      {"__close", waker_stop_method},
      {"__tostring", waker_tostring},
      {NULL, NULL},
  };
  ms_newtype(L, TYPE_NAME, methods, meta);
  lua_pushcfunction(L, waker_new);
  lua_setfield(L, -2, "wake"); /* core.wake */
}
