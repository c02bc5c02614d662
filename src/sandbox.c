/* One local sandbox: the socket to its agent, the pidfd that is its life and death, the programs
 * and calls under way in it. */
#include "compat.h"
#include "file.h"
#include "local.h"
#include "moonsand.h"
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Messages handled in one go, so that an agent that floods does not starve the host. */
enum { MESSAGES_PER_TURN = 256 };
/* What the host may have queued for an agent that does not read. */
enum { QUEUE_MAX = 4096, PENDING_MAX = 65536 };

static ms_sandbox *check_sandbox(lua_State *L) {
  return luaL_checkudata(L, 1, MS_SANDBOX_TYPE);
}

/* Ending -------------------------------------------------------------------------------------- */

static void sandbox_watch(ms_sandbox *s) {
  if (s->socket >= 0)
    ms_source_watch(s->reactor, &s->socket_source, s->outbox.first ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void close_socket(ms_sandbox *s) {
  if (s->socket < 0)
    return;
  ms_source_watch(s->reactor, &s->socket_source, 0);
  if (!ms_reactor_foreign(s->reactor))
    shutdown(s->socket, SHUT_RDWR); /* a fork of ours may hold it, and the agent must hear */
  close(s->socket);
  s->socket = s->socket_source.fd = -1;
  ms_outbox_clear(&s->outbox);
}

static void close_pidfd(ms_sandbox *s) {
  if (s->pidfd < 0)
    return;
  ms_source_watch(s->reactor, &s->pidfd_source, 0);
  close(s->pidfd);
  s->pidfd = s->pidfd_source.fd = -1;
}

static void close_file(int *fd) {
  if (*fd >= 0)
    close(*fd);
  *fd = -1;
}

/* Nothing runs in it any more. */
static void end_groups(ms_sandbox *s) {
  for (size_t i = 0; i < s->group_count; i++)
    ms_cgroup_end(s->groups[i]);
}

static void lose_everything(ms_sandbox *s) {
  while (s->processes)
    ms_process_lost(s->processes);
  for (ms_pending *p = s->pending; p; p = p->next)
    if (!p->answered) {
      p->answered = true;
      p->error = ECONNRESET;
    }
}

/* Until it is ready, one below bwrap is all of bwrap's group: see kill_child of agent/main.c. */
static void sandbox_kill(const ms_sandbox *s) {
  if (s->pidfd < 0 || s->dead || ms_reactor_foreign(s->reactor))
    return;
  if (s->complaints >= 0)
    kill(-s->child, SIGKILL);
  syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0);
}

/* Ends it for whatever reason: a SIGKILL for pid 1 is one for all. The pidfd stays watched, it is
 * the proof. Without one (its making was not confirmed yet) the closed socket ends the agent. One
 * that lives without us is let go of, unless it is broken. */
static void sandbox_end(ms_sandbox *s, ms_sandbox_state state) {
  if (s->state >= MS_SANDBOX_FAILED)
    return;
  s->state = state;
  if (s->zygote)
    ms_zygote_forget(s->zygote, s);
  if (!s->shared || state == MS_SANDBOX_BROKEN)
    sandbox_kill(s);
  close_socket(s);
  close_file(&s->root);
  close_file(&s->complaints);
  close_file(&s->self);
  lose_everything(s);
  ms_wake(s->reactor, &s->wait);
}

/* Beginning ----------------------------------------------------------------------------------- */

/* The process behind a pidfd, as this process knows it. 0: it is none. */
static int pid_behind(int pidfd) {
  char path[40], line[64];
  int pid = 0;
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
  FILE *file = fopen(path, "re");
  while (file && fgets(line, sizeof line, file) && sscanf(line, "Pid: %d", &pid) != 1)
    continue;
  if (file)
    fclose(file);
  return pid;
}

/* From now on its life is the agent's, not bwrap's. */
static void adopt_self(ms_sandbox *s) {
  if (s->self < 0)
    return;
  close_pidfd(s);
  s->pid = pid_behind(s->self);
  s->pidfd = s->pidfd_source.fd = s->self;
  s->self = -1;
  ms_source_watch(s->reactor, &s->pidfd_source, EPOLLIN);
}

static void check_ready(ms_sandbox *s) {
  if (s->state != MS_SANDBOX_STARTING || !s->created || !s->ready)
    return;
  adopt_self(s);
  close_file(&s->complaints);
  s->state = MS_SANDBOX_READY;
  ms_wake(s->reactor, &s->wait);
}

void ms_sandbox_created(ms_sandbox *s, int pid, int pidfd) {
  s->pid = s->child = pid;
  s->pidfd = s->pidfd_source.fd = pidfd;
  s->created = true;
  ms_source_watch(s->reactor, &s->pidfd_source, EPOLLIN);
  check_ready(s);
}

void ms_sandbox_failed(ms_sandbox *s, int error, const char *stage) {
  if (s->state != MS_SANDBOX_STARTING)
    return;
  s->error = error;
  ms_copy_word(s->stage, sizeof s->stage, stage);
  sandbox_end(s, MS_SANDBOX_FAILED);
}

/* It ended before it was ready, and nobody said why; but perhaps bwrap did. */
static void unexplained(ms_sandbox *s) {
  char text[sizeof s->stage] = "agent";
  ssize_t length = s->complaints < 0 ? 0 : read(s->complaints, text, sizeof text - 1);
  if (length > 0)
    text[strcspn(text, "\n")] = '\0';
  ms_sandbox_failed(s, ECONNRESET, text);
}

/* Messages ------------------------------------------------------------------------------------ */

static bool on_ready(ms_sandbox *s, ms_message *message) {
  struct stat st;
  if (!s->ready && message->fds_lost) {
    ms_sandbox_failed(s, EMFILE, "files");
    return true;
  }
  if (s->ready || message->fd_count != 1 || fstat(message->fds[0], &st) < 0 || !S_ISDIR(st.st_mode))
    return false;
  s->root = message->fds[0];
  message->fd_count = 0;
  s->ready = true;
  check_ready(s);
  return true;
}

static bool on_self(ms_sandbox *s, ms_message *message) {
  if (s->complaints < 0 || s->self >= 0 || s->ready || message->fd_count != 1 ||
      pid_behind(message->fds[0]) <= 0)
    return false;
  s->self = message->fds[0];
  message->fd_count = 0;
  return true;
}

static bool on_failed(ms_sandbox *s, ms_message *message) {
  int error = (int)ms_get_u32(&message->body);
  const char *stage = ms_get_str(&message->body);
  if (s->ready || !ms_get_end(&message->body))
    return false;
  ms_sandbox_failed(s, error, stage);
  return true;
}

static ms_pending **find_pending(ms_sandbox *s, uint32_t id) {
  ms_pending **at = &s->pending;
  while (*at && (*at)->id != id)
    at = &(*at)->next;
  return at;
}

static void free_pending(ms_sandbox *s, ms_pending **at) {
  ms_pending *p = *at;
  *at = p->next;
  if (p->fd >= 0)
    close(p->fd);
  free(p->body);
  free(p);
  s->pending_count--;
}

static bool on_return(ms_sandbox *s, ms_message *message) {
  ms_pending **at = find_pending(s, message->header.id), *p = *at;
  ms_reader *body = &message->body;
  uint32_t error = ms_get_u32(body);
  if (!p || p->answered || body->bad || error > 4095 || message->fd_count > 1)
    return false;
  p->answered = true;
  p->error = message->fds_lost ? EMFILE : (int)error;
  if (p->abandoned) {
    free_pending(s, at);
    ms_close_fds(message);
    return true;
  }
  p->length = body->length - body->offset;
  p->body = malloc(p->length + 1);
  if (!p->body)
    return false;
  memcpy(p->body, body->data + body->offset, p->length);
  if (message->fd_count == 1) {
    p->fd = message->fds[0];
    message->fd_count = 0;
  }
  ms_wake(s->reactor, &s->wait);
  return true;
}

/* False when an honest agent cannot have said that. */
static bool on_message(ms_sandbox *s, ms_message *message) {
  switch (message->header.type) {
  case MS_READY:
    return on_ready(s, message);
  case MS_SELF:
    return on_self(s, message);
  case MS_FAILED:
    return on_failed(s, message);
  case MS_RETURN:
    return on_return(s, message);
  case MS_STARTED:
  case MS_REFUSED:
  case MS_EXITED:
  case MS_GAP:
    return message->fd_count == 0 && ms_process_message(s, &message->header, &message->body);
  default:
    return false;
  }
}

static void socket_ready(ms_source *source, uint32_t events) {
  ms_sandbox *s = (ms_sandbox *)((char *)source - offsetof(ms_sandbox, socket_source));
  int unsent = events & EPOLLOUT ? ms_outbox_flush(&s->outbox, s->socket) : 0;
  if (unsent < 0) {
    ms_sandbox_failed(s, -unsent, "files"); /* what it needed to begin */
    sandbox_end(s, MS_SANDBOX_GONE);        /* or what it was asked since */
    return;
  }
  ms_message *message = ms_reactor_message(s->reactor);
  for (int i = 0; i < MESSAGES_PER_TURN && s->socket >= 0; i++) {
    int received = ms_receive(s->socket, message);
    if (received == -EAGAIN)
      break;
    if (received == 0 || received == -ECONNRESET) {
      if (!s->ready)
        unexplained(s);
      sandbox_end(s, MS_SANDBOX_GONE);
      return;
    }
    if (received < 0 || !on_message(s, message)) {
      if (received > 0)
        ms_close_fds(message);
      s->error = EPROTO;
      sandbox_end(s, MS_SANDBOX_BROKEN);
      return;
    }
  }
  sandbox_watch(s);
}

void ms_sandbox_hear(ms_sandbox *s) {
  if (s->socket >= 0 && !ms_reactor_foreign(s->reactor))
    socket_ready(&s->socket_source, EPOLLIN);
}

static void pidfd_ready(ms_source *source, uint32_t events) {
  ms_sandbox *s = (ms_sandbox *)((char *)source - offsetof(ms_sandbox, pidfd_source));
  (void)events;
  s->dead = true;
  close_pidfd(s);
  end_groups(s);
  if (s->socket >= 0)
    socket_ready(&s->socket_source, EPOLLIN); /* its last words, perhaps why it failed */
  if (!s->ready)
    unexplained(s);
  sandbox_end(s, MS_SANDBOX_GONE);
  ms_wake(s->reactor, &s->wait);
}

int ms_sandbox_send(ms_sandbox *s, ms_header header, const ms_writer *body, const int *fds,
                    size_t fd_count) {
  if (s->outbox.count >= QUEUE_MAX) {
    for (size_t i = 0; i < fd_count; i++)
      close(fds[i]);
    return -EBUSY;
  }
  int error =
      ms_outbox_send(&s->outbox, s->socket, &header, body->data, body->length, fds, fd_count);
  if (s->outbox.first)
    sandbox_watch(s);
  return ms_has_left(error) ? 0 : error; /* the socket's end will tell */
}

/* Lua ----------------------------------------------------------------------------------------- */

static const char *const state_names[] = {"starting", "ready",  "failed",
                                          "gone",     "broken", "closed"};

int ms_sandbox_push_unusable(lua_State *L, const ms_sandbox *s) {
  lua_pushnil(L);
  lua_pushinteger(L, s->state == MS_SANDBOX_BROKEN ? EPROTO : ECONNRESET);
  lua_pushstring(L, state_names[s->state]);
  return 3;
}

/* sandbox:state(): its name; for "failed" also an errno and the stage. The kernel is asked whether
 * a ready one lives: nobody may have stepped the reactor since it died. */
static int sandbox_state(lua_State *L) {
  ms_sandbox *s = check_sandbox(L);
  struct pollfd life = {.fd = s->pidfd, .events = POLLIN};
  if (s->state == MS_SANDBOX_READY && !ms_reactor_foreign(s->reactor) && poll(&life, 1, 0) > 0)
    pidfd_ready(&s->pidfd_source, EPOLLIN);
  lua_pushstring(L, state_names[s->state]);
  lua_pushinteger(L, s->error);
  lua_pushstring(L, s->stage);
  return 3;
}

/* sandbox:dead(): true once the kernel has confirmed that nothing of it runs. */
static int sandbox_dead(lua_State *L) {
  const ms_sandbox *s = check_sandbox(L);
  lua_pushboolean(L, s->dead || (s->state == MS_SANDBOX_FAILED && s->pidfd < 0));
  return 1;
}

/* sandbox:call(op, flags, mode, a, b, path, path2, file): an id for `take`; or nil, errno, state.
 */
static int sandbox_call(lua_State *L) {
  ms_sandbox *s = check_sandbox(L);
  if (s->state != MS_SANDBOX_READY)
    return ms_sandbox_push_unusable(L, s);
  char text[16 * 1024];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)luaL_checkinteger(L, 2));
  ms_put_u32(&body, (uint32_t)luaL_optinteger(L, 3, 0));
  ms_put_u32(&body, (uint32_t)luaL_optinteger(L, 4, 0));
  ms_put_u64(&body, (uint64_t)(int64_t)luaL_optnumber(L, 5, 0));
  ms_put_u64(&body, (uint64_t)(int64_t)luaL_optnumber(L, 6, 0));
  for (int i = 7; i <= 8; i++) {
    size_t length;
    const char *path = luaL_optlstring(L, i, "", &length);
    ms_put_bytes(&body, path, length);
  }
  ms_pending *p = calloc(1, sizeof *p);
  int error = !p || s->pending_count >= PENDING_MAX ? EBUSY : body.overflow ? ENAMETOOLONG : 0;
  int file = -1;
  if (!error && !lua_isnoneornil(L, 9)) {
    file = fcntl(ms_file_fd(L, 9), F_DUPFD_CLOEXEC, 3); /* sending takes it over */
    error = file < 0 ? errno : 0;
  }
  if (!error)
    error = -ms_sandbox_send(s, (ms_header){.type = MS_CALL, .id = ++s->last_id}, &body, &file,
                             file >= 0);
  if (error) {
    free(p);
    lua_pushnil(L);
    lua_pushinteger(L, error);
    return 2;
  }
  *p = (ms_pending){.next = s->pending, .id = s->last_id, .fd = -1};
  s->pending = p;
  s->pending_count++;
  lua_pushinteger(L, (lua_Integer)p->id);
  return 1;
}

/* sandbox:take(id, kind): nothing while it is under way; then, once, errno (0: success), body, and
 * what came along: a file, or the "connection" or "listener" that the caller asked for. */
static int sandbox_take(lua_State *L) {
  static const char *const kinds[] = {"file", "connection", "listener", NULL};
  ms_sandbox *s = check_sandbox(L);
  ms_pending **at = find_pending(s, (uint32_t)luaL_checkinteger(L, 2)), *p = *at;
  int kind = luaL_checkoption(L, 3, "file", kinds);
  if (!p)
    return luaL_error(L, "no such call");
  if (!p->answered)
    return 0;
  lua_pushinteger(L, p->error);
  lua_pushlstring(L, p->body ? p->body : "", p->body ? p->length : 0);
  if (p->fd >= 0) {
    int fd = p->fd;
    p->fd = -1;
    if (kind == 0)
      ms_file_new(L, fd);
    else
      ms_socket_adopt(L, s->reactor, fd, kind == 2);
  } else {
    lua_pushnil(L);
  }
  free_pending(s, at);
  return 3;
}

/* sandbox:abandon(id): its answer will not be fetched. */
static int sandbox_abandon(lua_State *L) {
  ms_sandbox *s = check_sandbox(L);
  ms_pending **at = find_pending(s, (uint32_t)luaL_checkinteger(L, 2));
  if (*at && (*at)->answered)
    free_pending(s, at);
  else if (*at)
    (*at)->abandoned = true;
  return 0;
}

/* sandbox:open(path): a file to read, opened without asking the agent; nil where that is not
 * possible, or not certain to be the same. */
static int sandbox_open(lua_State *L) {
  ms_sandbox *s = check_sandbox(L);
  const char *path = luaL_checkstring(L, 2);
  int fd = s->state == MS_SANDBOX_READY ? ms_file_open_below(s->root, path) : -1;
  if (fd < 0)
    return 0;
  ms_file_new(L, fd);
  return 1;
}

static int sandbox_pid(lua_State *L) {
  lua_pushinteger(L, check_sandbox(L)->pid);
  return 1;
}

/* sandbox:child(): the process that the zygote knows it by. */
static int sandbox_child(lua_State *L) {
  lua_pushinteger(L, check_sandbox(L)->child);
  return 1;
}

static int sandbox_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_sandbox(L)->wait.id);
  return 1;
}

static int sandbox_arm(lua_State *L) {
  check_sandbox(L)->wait.armed = true;
  return 0;
}

static int sandbox_close(lua_State *L) {
  ms_sandbox *s = check_sandbox(L);
  if (s->reactor)
    sandbox_end(s, MS_SANDBOX_CLOSED);
  return 0;
}

/* sandbox:kill(): ends it, also when it lives without us. */
static int sandbox_kill_lua(lua_State *L) {
  ms_sandbox *s = check_sandbox(L);
  if (s->reactor)
    sandbox_kill(s);
  return sandbox_close(L);
}

/* sandbox:share(): it lives without us from now on. */
static int sandbox_share(lua_State *L) {
  check_sandbox(L)->shared = true;
  return 0;
}

static int sandbox_gc(lua_State *L) {
  ms_sandbox *s = check_sandbox(L);
  if (!s->reactor)
    return 0;
  sandbox_end(s, MS_SANDBOX_CLOSED);
  close_pidfd(s);
  while (s->pending)
    free_pending(s, &s->pending);
  while (s->group_count > 0)
    ms_cgroup_unref(s->groups[--s->group_count]);
  ms_reactor_unref(s->reactor);
  s->reactor = NULL;
  return 0;
}

static int sandbox_tostring(lua_State *L) {
  lua_pushfstring(L, "%s (%s)", MS_SANDBOX_TYPE, state_names[check_sandbox(L)->state]);
  return 1;
}

ms_sandbox *ms_sandbox_new(lua_State *L, ms_reactor *r, int socket) {
  ms_sandbox *s = lua_newuserdata(L, sizeof *s);
  *s = (ms_sandbox){.socket = socket,
                    .pidfd = -1,
                    .root = -1,
                    .complaints = -1,
                    .self = -1,
                    .socket_source = {.ready = socket_ready, .fd = socket},
                    .pidfd_source = {.ready = pidfd_ready, .fd = -1}};
  s->reactor = ms_reactor_ref(r);
  luaL_setmetatable(L, MS_SANDBOX_TYPE);
  ms_waitable_init(r, &s->wait);
  sandbox_watch(s);
  return s;
}

static const luaL_Reg methods[] = {
    {"id", sandbox_id},           {"arm", sandbox_arm},
    {"state", sandbox_state},     {"dead", sandbox_dead},
    {"call", sandbox_call},       {"take", sandbox_take},
    {"abandon", sandbox_abandon}, {"open", sandbox_open},
    {"pid", sandbox_pid},         {"child", sandbox_child},
    {"spawn", ms_process_spawn},  {"attach", ms_process_attach},
    {"close", sandbox_close},     {"kill", sandbox_kill_lua},
    {"share", sandbox_share},     {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", sandbox_gc},
    {"__close", sandbox_close},
    {"__tostring", sandbox_tostring},
    {NULL, NULL},
};

void ms_sandbox_open(lua_State *L) {
  ms_newtype(L, MS_SANDBOX_TYPE, methods, metamethods);
}
