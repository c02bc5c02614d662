/* The zygote, seen from the host: its only child. Started on first use, from the program beside the
 * module; asked for sandboxes over a socket; its end is seen as the end of that socket, never by
 * waiting for children, which belong to the host.
 *
 * posix_spawn, not fork: a fork of a large host takes milliseconds, and threads may be about. */
#include "compat.h"
#include "local.h"
#include "moonsand.h"
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum { ZYGOTE_SOCKET = 3, ZYGOTE_HOST = 4 };

struct ms_zygote {
  ms_reactor *reactor;
  ms_source source;
  int socket; /* owned; -1 once it is gone */
  int pidfd;  /* owned; -1: none */
  uint32_t last_id;
  ms_outbox outbox;
  ms_sandbox *starting; /* asked for, not yet answered */
};

static ms_zygote *check_zygote(lua_State *L) {
  return luaL_checkudata(L, 1, MS_ZYGOTE_TYPE);
}

/* Starting ------------------------------------------------------------------------------------ */

static int zygote_actions(posix_spawn_file_actions_t *actions, int socket, int host) {
  int error = 0;
  for (int fd = 0; fd < 3 && !error; fd++)
    error = posix_spawn_file_actions_addopen(actions, fd, "/dev/null", O_RDWR, 0);
  /* Both above 4 first, lest one overwrites the other. */
  if (!error)
    error = posix_spawn_file_actions_adddup2(actions, socket, ZYGOTE_SOCKET);
  if (!error)
    error = posix_spawn_file_actions_adddup2(actions, host, ZYGOTE_HOST);
  if (!error)
    error = posix_spawn_file_actions_addclosefrom_np(actions, ZYGOTE_HOST + 1);
  return error;
}

/* Starts the program with nothing of ours: no environment, no files, no signal state, no terminal.
 * 0 or a positive errno. */
static int spawn_zygote(const char *path, int socket, int host, pid_t *pid) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t none, all;
  char *argv[] = {"moonsand", NULL}, *envp[] = {NULL};
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  int error = zygote_actions(&actions, socket, host);
  if (!error)
    error = posix_spawn(pid, path, &actions, &attributes, argv, envp);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  return error;
}

static int above(int fd) {
  int moved = fcntl(fd, F_DUPFD_CLOEXEC, ZYGOTE_HOST + 1);
  int error = errno;
  close(fd);
  errno = error;
  return moved;
}

/* 0 or a positive errno. */
static int zygote_start(ms_zygote *z, const char *path) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
    return errno;
  z->socket = pair[0];
  int theirs = above(pair[1]);
  int host = theirs < 0 ? -1 : (int)syscall(SYS_pidfd_open, getpid(), 0);
  host = host < 0 ? -1 : above(host);
  pid_t pid;
  int error = host < 0 ? errno : spawn_zygote(path, theirs, host, &pid);
  if (theirs >= 0)
    close(theirs);
  if (host >= 0)
    close(host);
  if (error)
    return error;
  z->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  z->source.fd = z->socket;
  return -ms_source_watch(z->reactor, &z->source, EPOLLIN);
}

/* Ending -------------------------------------------------------------------------------------- */

void ms_zygote_forget(ms_zygote *z, ms_sandbox *s) {
  for (ms_sandbox **at = &z->starting; *at; at = &(*at)->next)
    if (*at == s) {
      *at = s->next;
      break;
    }
  s->zygote = NULL;
}

/* Ends it and takes its zombie away, which a host that reaps its children may have done already.
 * SIGCHLD waits meanwhile: the handler of a host such as nginx would be faster, and complain. */
static void zygote_kill(ms_zygote *z) {
  if (z->pidfd < 0)
    return;
  sigset_t child, before;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  pthread_sigmask(SIG_BLOCK, &child, &before);
  syscall(SYS_pidfd_send_signal, z->pidfd, SIGKILL, NULL, 0);
  siginfo_t info;
  while (waitid(P_PIDFD, (id_t)z->pidfd, &info, WEXITED) < 0 && errno == EINTR)
    continue;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  close(z->pidfd);
  z->pidfd = -1;
}

static void zygote_gone(ms_zygote *z) {
  if (z->socket < 0)
    return;
  ms_source_watch(z->reactor, &z->source, 0);
  close(z->socket);
  z->socket = z->source.fd = -1;
  ms_outbox_clear(&z->outbox);
  while (z->starting) {
    ms_sandbox *s = z->starting;
    ms_zygote_forget(z, s);
    ms_sandbox_failed(s, ECONNRESET, "zygote");
  }
}

/* Whatever it is up to, it is not waited for long. */
static void zygote_lost(ms_zygote *z) {
  zygote_gone(z);
  zygote_kill(z);
}

/* Requests ------------------------------------------------------------------------------------ */

static void zygote_watch(ms_zygote *z) {
  ms_source_watch(z->reactor, &z->source, z->outbox.first ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void zygote_created(ms_zygote *z, ms_message *message) {
  int error = (int)ms_get_u32(&message->body);
  int pid = (int)ms_get_u32(&message->body);
  const char *stage = ms_get_str(&message->body);
  for (ms_sandbox *s = z->starting; s; s = s->next) {
    if (s->create_id != message->header.id)
      continue;
    ms_zygote_forget(z, s);
    if (error == 0 && message->fd_count == 1) {
      int pidfd = message->fds[0];
      message->fd_count = 0;
      ms_sandbox_created(s, pid, pidfd);
    } else if (message->fds_lost) {
      ms_sandbox_failed(s, EMFILE, "files");
    } else {
      ms_sandbox_failed(s, error ? error : EPROTO, stage);
    }
    return;
  }
  /* Closed meanwhile: its agent has seen the end of its socket. */
}

static void zygote_ready(ms_source *source, uint32_t events) {
  ms_zygote *z = (ms_zygote *)((char *)source - offsetof(ms_zygote, source));
  if (events & EPOLLOUT)
    ms_outbox_flush(&z->outbox, z->socket);
  ms_message *message = ms_reactor_message(z->reactor);
  for (;;) {
    int received = ms_receive(z->socket, message);
    if (received == -EAGAIN)
      break;
    if (received <= 0) {
      zygote_lost(z);
      return;
    }
    if (message->header.type == MS_CREATED)
      zygote_created(z, message);
    ms_close_fds(message);
  }
  zygote_watch(z);
}

static uint64_t field_u64(lua_State *L, int table, const char *name) {
  lua_getfield(L, table, name);
  lua_Number value = luaL_checknumber(L, -1);
  lua_pop(L, 1);
  return value > 0 ? (uint64_t)value : 0;
}

static void put_allow(lua_State *L, int table, ms_writer *body) {
  lua_getfield(L, table, "allow");
  size_t count = lua_rawlen(L, -1);
  ms_put_u32(body, (uint32_t)count);
  for (size_t i = 1; i <= count; i++) {
    lua_rawgeti(L, -1, (int)i);
    ms_put_str(body, luaL_checkstring(L, -1));
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

static uint32_t mount_count(lua_State *L, int table) {
  lua_getfield(L, table, "mounts");
  size_t count = lua_istable(L, -1) ? lua_rawlen(L, -1) : 0;
  lua_pop(L, 1);
  return (uint32_t)count;
}

/* One of `mounts`, on top of the stack: { source, flags, path, target }. 0 or a negative errno. */
static int send_mount(lua_State *L, ms_sandbox *s) {
  char text[3 * 4096];
  ms_writer body = {.data = text, .capacity = sizeof text};
  lua_getfield(L, -1, "flags");
  ms_put_u32(&body, (uint32_t)luaL_checkinteger(L, -1));
  lua_getfield(L, -2, "path");
  ms_put_str(&body, luaL_checkstring(L, -1));
  lua_getfield(L, -3, "target");
  ms_put_str(&body, luaL_checkstring(L, -1));
  lua_getfield(L, -4, "source");
  int file = ms_source_duplicate(L, -1);
  lua_pop(L, 4);
  if (file < 0)
    return -errno;
  if (body.overflow) {
    close(file);
    return -ENAMETOOLONG;
  }
  return ms_sandbox_send(s, MS_MOUNT, 0, &body, &file, 1);
}

/* What the agent takes before it is ready. One that cannot be sent ends the sandbox. */
static void send_mounts(lua_State *L, int table, ms_sandbox *s, uint32_t count) {
  if (count == 0)
    return;
  lua_getfield(L, table, "mounts");
  int error = 0;
  for (uint32_t i = 1; i <= count && error == 0; i++) {
    lua_rawgeti(L, -1, (int)i);
    error = send_mount(L, s);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  if (error < 0)
    ms_sandbox_failed(s, -error, "files");
}

/* Where bwrap says what is wrong: the end to read, for `s`, and the end to send. */
static int complaints_new(int *to_read, int *to_send) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
    return -errno;
  *to_read = ends[0];
  *to_send = ends[1];
  return 0;
}

/* zygote:create{ disk, inodes, hostname, allow, mounts, sight, host_network, bwrap }: a sandbox,
 * starting; or nil, errno. `sight`: one that has to see the host's mounts first; `bwrap`: where
 * that is, if its namespaces are made by it. */
static int zygote_create(lua_State *L) {
  ms_zygote *z = check_zygote(L);
  char text[4096];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_str(&body, MS_VERSION);
  ms_put_u64(&body, field_u64(L, 2, "disk"));
  ms_put_u64(&body, field_u64(L, 2, "inodes"));
  lua_getfield(L, 2, "hostname");
  ms_put_str(&body, luaL_checkstring(L, -1));
  put_allow(L, 2, &body);
  uint32_t mounts = mount_count(L, 2);
  ms_put_u32(&body, mounts);
  lua_getfield(L, 2, "sight");
  lua_getfield(L, 2, "host_network");
  lua_getfield(L, 2, "bwrap");
  const char *bwrap = lua_tostring(L, -1);
  ms_put_str(&body, bwrap ? bwrap : "");
  uint16_t flags = (uint16_t)((lua_toboolean(L, -3) ? MS_CREATE_MOUNTS : 0) |
                              (lua_toboolean(L, -2) ? MS_CREATE_HOST_NETWORK : 0) |
                              (bwrap ? MS_CREATE_BWRAP : 0));

  int pair[2], complaints = -1, files[2];
  int error = body.overflow ? E2BIG : z->socket < 0 ? ECONNRESET : 0;
  if (!error && bwrap)
    error = -complaints_new(&complaints, &files[1]);
  if (!error && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
    error = errno;
    if (bwrap) {
      close(complaints);
      close(files[1]);
    }
  }
  if (error) {
    lua_pushnil(L);
    lua_pushinteger(L, error);
    return 2;
  }
  ms_header header = {.type = MS_CREATE, .flags = flags, .id = ++z->last_id};
  files[0] = pair[1];
  error =
      ms_outbox_send(&z->outbox, z->socket, &header, body.data, body.length, files, bwrap ? 2 : 1);
  if (error) {
    close(pair[0]);
    if (complaints >= 0)
      close(complaints);
    if (error == -EPIPE || error == -ECONNRESET)
      zygote_lost(z);
    lua_pushnil(L);
    lua_pushinteger(L, -error);
    return 2;
  }
  zygote_watch(z);
  ms_sandbox *s = ms_sandbox_new(L, z->reactor, pair[0]);
  s->create_id = header.id;
  s->complaints = complaints;
  s->zygote = z;
  s->next = z->starting;
  z->starting = s;
  send_mounts(L, 2, s, mounts);
  return 1;
}

/* zygote:idmap(uid, gid): what will be the user namespace in which these are the sandboxes' user;
 * or nil, errno. */
static int zygote_idmap(lua_State *L) {
  ms_zygote *z = check_zygote(L);
  char text[16];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)luaL_checknumber(L, 2));
  ms_put_u32(&body, (uint32_t)luaL_checknumber(L, 3));
  int pair[2], error = z->socket < 0 ? ECONNRESET : 0;
  if (!error && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
    error = errno;
  if (!error) {
    ms_header header = {.type = MS_IDMAP};
    error = -ms_outbox_send(&z->outbox, z->socket, &header, body.data, body.length, &pair[1], 1);
    if (error)
      close(pair[0]);
  }
  if (error) {
    lua_pushnil(L);
    lua_pushinteger(L, error);
    return 2;
  }
  zygote_watch(z);
  ms_idmap_new(L, z->reactor, pair[0]);
  return 1;
}

static int zygote_alive(lua_State *L) {
  lua_pushboolean(L, check_zygote(L)->socket >= 0);
  return 1;
}

static int zygote_gc(lua_State *L) {
  ms_zygote *z = check_zygote(L);
  if (!z->reactor)
    return 0;
  zygote_gone(z);
  if (!ms_reactor_foreign(z->reactor))
    zygote_kill(z);
  else if (z->pidfd >= 0)
    close(z->pidfd);
  z->pidfd = -1;
  ms_reactor_unref(z->reactor);
  z->reactor = NULL;
  return 0;
}

/* core.zygote(reactor, path): starts the program; nil, errno when that is not possible. */
static int zygote_new(lua_State *L) {
  ms_reactor *r = ms_reactor_check(L, 1);
  const char *path = luaL_checkstring(L, 2);
  ms_zygote *z = lua_newuserdata(L, sizeof *z);
  *z = (ms_zygote){.source = {.ready = zygote_ready, .fd = -1}, .socket = -1, .pidfd = -1};
  luaL_setmetatable(L, MS_ZYGOTE_TYPE);
  z->reactor = ms_reactor_ref(r);
  int error = zygote_start(z, path);
  if (error == 0)
    return 1;
  zygote_gone(z);
  lua_pushnil(L);
  lua_pushinteger(L, error);
  return 2;
}

static const luaL_Reg methods[] = {
    {"create", zygote_create},
    {"idmap", zygote_idmap},
    {"alive", zygote_alive},
    {"close", zygote_gc},
    {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", zygote_gc},
    {NULL, NULL},
};

void ms_zygote_open(lua_State *L) {
  ms_newtype(L, MS_ZYGOTE_TYPE, methods, metamethods);
  lua_pushcfunction(L, zygote_new);
  lua_setfield(L, -2, "zygote"); /* core.zygote */
}
