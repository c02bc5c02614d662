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

enum { HELPER_SOCKET = 3, HELPER_HOST = 4 };

struct ms_zygote {
  ms_waitable wait;
  ms_reactor *reactor;
  ms_source source;
  int socket; /* owned; -1 once it is gone */
  int pidfd;  /* owned; -1: none */
  uint32_t last_id;
  ms_outbox outbox;
  ms_sandbox *starting; /* asked for, not yet answered */
  int released;         /* the last child that it has let go of */
};

static ms_zygote *check_zygote(lua_State *L) {
  return luaL_checkudata(L, 1, MS_ZYGOTE_TYPE);
}

/* Starting ------------------------------------------------------------------------------------ */

static int helper_actions(posix_spawn_file_actions_t *actions, int socket, int host) {
  int error = 0;
  for (int fd = 0; fd < 3 && !error; fd++)
    error = posix_spawn_file_actions_addopen(actions, fd, "/dev/null", O_RDWR, 0);
  /* Both above 4 first, lest one overwrites the other. */
  if (!error)
    error = posix_spawn_file_actions_adddup2(actions, socket, HELPER_SOCKET);
  if (!error)
    error = posix_spawn_file_actions_adddup2(actions, host, HELPER_HOST);
  if (!error)
    error = posix_spawn_file_actions_addclosefrom_np(actions, HELPER_HOST + 1);
  return error;
}

/* Starts the program with nothing of ours: no environment, no files, no signal state, no terminal.
 * 0 or a positive errno. */
static int spawn_helper(const char *path, char *const *argv, int socket, int host, pid_t *pid) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t none, all;
  char *envp[] = {NULL};
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  int error = helper_actions(&actions, socket, host);
  if (!error)
    error = posix_spawn(pid, path, &actions, &attributes, argv, envp);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  return error;
}

static int above(int fd) {
  int moved = fcntl(fd, F_DUPFD_CLOEXEC, HELPER_HOST + 1);
  int error = errno;
  close(fd);
  errno = error;
  return moved;
}

int ms_helper_start(const char *path, char *const *argv, int theirs, pid_t *pid) {
  theirs = above(theirs);
  int host = theirs < 0 ? -1 : (int)syscall(SYS_pidfd_open, getpid(), 0);
  host = host < 0 ? -1 : above(host);
  int error = host < 0 ? errno : spawn_helper(path, argv, theirs, host, pid);
  if (theirs >= 0)
    close(theirs);
  if (host >= 0)
    close(host);
  return error;
}

int ms_helper_run(const char *path, char *const *argv, int theirs) {
  sigset_t child, before;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  pthread_sigmask(SIG_BLOCK, &child, &before);
  pid_t pid;
  int error = ms_helper_start(path, argv, theirs, &pid);
  siginfo_t info;
  while (!error && waitid(P_PID, (id_t)pid, &info, WEXITED) < 0 && errno == EINTR)
    continue;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return error;
}

/* 0 or a positive errno. */
static int zygote_start(ms_zygote *z, const char *path) {
  int pair[2];
  char *argv[] = {"moonsand", NULL};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
    return errno;
  z->socket = pair[0];
  pid_t pid;
  int error = ms_helper_start(path, argv, pair[1], &pid);
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
  ms_wake(z->reactor, &z->wait);
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
  if (events & EPOLLOUT && ms_outbox_flush(&z->outbox, z->socket) < 0) {
    zygote_lost(z);
    return;
  }
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
    if (message->header.type == MS_RELEASE) {
      z->released = (int)ms_get_u32(&message->body);
      ms_wake(z->reactor, &z->wait);
    }
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

static uint32_t field_length(lua_State *L, int table, const char *name) {
  lua_getfield(L, table, name);
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
  return ms_sandbox_send(s, (ms_header){.type = MS_MOUNT}, &body, &file, 1);
}

static bool field_boolean(lua_State *L, int table, const char *name) {
  lua_getfield(L, table, name);
  bool value = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return value;
}

/* The control groups that it is to go into are the sandbox's from now on: its end is theirs. */
static void take_groups(lua_State *L, int table, ms_sandbox *s) {
  lua_getfield(L, table, "groups");
  size_t count = lua_istable(L, -1) ? lua_rawlen(L, -1) : 0;
  for (size_t i = 1; i <= count && s->group_count < MS_CGROUPS_MAX; i++) {
    lua_rawgeti(L, -1, (int)i);
    s->groups[s->group_count++] = ms_cgroup_ref(L, -1);
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
}

/* 0 or a positive errno, and all that was opened is closed. */
static int open_entrances(const ms_sandbox *s, int *entrances) {
  for (size_t i = 0; i < s->group_count; i++) {
    entrances[i] = ms_cgroup_entrance(s->groups[i]);
    if (entrances[i] >= 0)
      continue;
    int error = errno;
    while (i > 0)
      close(entrances[--i]);
    return error;
  }
  return 0;
}

static void send_join(ms_sandbox *s, bool bounds_memory) {
  if (s->group_count == 0)
    return;
  char text[8];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, bounds_memory ? MS_JOIN_MEMORY : 0);
  int entrances[MS_CGROUPS_MAX];
  int error = open_entrances(s, entrances);
  if (!error)
    error = -ms_sandbox_send(s, (ms_header){.type = MS_JOIN}, &body, entrances, s->group_count);
  if (error)
    ms_sandbox_failed(s, error, "cgroup");
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

/* zygote:create{ disk, inodes, hostname, allow, mounts, sight, host_network, groups, bounds_memory,
 * bwrap }: a sandbox, starting; or nil, errno. `sight`: one that has to see the host's mounts
 * first. `groups`: the control groups that it goes into, one of which may bound memory. `bwrap`:
 * where that is, if its namespaces are made by it. */
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
  uint32_t mounts = field_length(L, 2, "mounts");
  ms_put_u32(&body, field_length(L, 2, "groups") > 0);
  ms_put_u32(&body, mounts);
  lua_getfield(L, 2, "bwrap");
  const char *bwrap = lua_tostring(L, -1);
  ms_put_str(&body, bwrap ? bwrap : "");
  uint16_t flags = (uint16_t)((field_boolean(L, 2, "sight") ? MS_CREATE_MOUNTS : 0) |
                              (field_boolean(L, 2, "host_network") ? MS_CREATE_HOST_NETWORK : 0) |
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
  take_groups(L, 2, s);
  send_join(s, field_boolean(L, 2, "bounds_memory"));
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

/* zygote:release(pid): asks it to let go of a child. Done when `released` says so. */
static int zygote_release(lua_State *L) {
  ms_zygote *z = check_zygote(L);
  char text[8];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)luaL_checkinteger(L, 2));
  z->released = 0;
  if (z->socket < 0)
    return 0;
  ms_header header = {.type = MS_RELEASE};
  ms_outbox_send(&z->outbox, z->socket, &header, body.data, body.length, NULL, 0);
  zygote_watch(z);
  return 0;
}

/* zygote:released(pid): true when it does not hold it, or nobody any more: who is gone ends none.
 */
static int zygote_released(lua_State *L) {
  const ms_zygote *z = check_zygote(L);
  lua_pushboolean(L, z->socket < 0 || z->released == (int)luaL_checkinteger(L, 2));
  return 1;
}

static int zygote_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_zygote(L)->wait.id);
  return 1;
}

static int zygote_arm(lua_State *L) {
  check_zygote(L)->wait.armed = true;
  return 0;
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
  ms_waitable_init(r, &z->wait);
  int error = zygote_start(z, path);
  if (error == 0)
    return 1;
  zygote_gone(z);
  lua_pushnil(L);
  lua_pushinteger(L, error);
  return 2;
}

static const luaL_Reg methods[] = {
    {"create", zygote_create},     {"idmap", zygote_idmap}, {"release", zygote_release},
    {"released", zygote_released}, {"id", zygote_id},       {"arm", zygote_arm},
    {"alive", zygote_alive},       {"close", zygote_gc},    {NULL, NULL},
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
