/* One program in a local sandbox, from the request to the proof that its tree is gone.
 *
 * The host makes the pipes and passes the program's ends along: output comes straight here. Nobody
 * waits for the end of the output, which a stray descendant could delay for ever: when the agent
 * says that the program is over, what is in the pipes is read, and that is all. */
#include "compat.h"
#include "local.h"
#include "moonsand.h"
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/agent.h"

static ms_process *check_process(lua_State *L) {
  return luaL_checkudata(L, 1, MS_PROCESS_TYPE);
}

/* Messages ------------------------------------------------------------------------------------ */

static void leave_sandbox(ms_process *p) {
  if (!p->sandbox)
    return;
  for (ms_process **at = &p->sandbox->processes; *at; at = &(*at)->next)
    if (*at == p) {
      *at = p->next;
      break;
    }
  p->sandbox = NULL;
}

/* After all that could be read was read. Behind a full read-ahead the end may lie in the pipe. */
static bool is_held(const ms_stream *s) {
  return s && s->fd >= 0 && !s->eof && (s->mode == MS_COLLECT || s->in.length < s->want);
}

static void drain(ms_process *p) {
  ms_stream *streams[2] = {p->out, p->err};
  for (int i = 0; i < 2; i++) {
    if (!streams[i])
      continue;
    ms_stream_drain(streams[i]);
    ms_wake(p->reactor, &streams[i]->wait);
  }
  p->pipes_held = is_held(p->out) || is_held(p->err);
}

static void serve_output(ms_process *p) {
  if (p->out)
    ms_stream_serve(p->out);
  if (p->err)
    ms_stream_serve(p->err);
}

/* A program may close its terminal some time before it ends, and would get a HUP if we did then.
 * Now nobody can type into it any more; and what never ran has shown nothing. */
static void close_terminal(ms_process *p) {
  if (!p->terminal)
    return;
  p->out->hangs_up = false;
  if (p->out->eof || p->state == MS_PROCESS_REFUSED)
    ms_stream_close(p->out);
  ms_stream_close(p->terminal);
  ms_wake(p->reactor, &p->terminal->wait);
}

/* What the log of a background program still holds is on its way, to the end of the pipes, and word
 * of what is missing there. */
static void process_over(ms_process *p, ms_process_state state) {
  p->state = state;
  if (!p->background || state != MS_PROCESS_EXITED) {
    leave_sandbox(p);
    drain(p);
  }
  if (state != MS_PROCESS_EXITED)
    serve_output(p); /* the agent may close its ends later: who reads already hears of that */
  close_terminal(p);
  ms_wake(p->reactor, &p->wait);
}

void ms_process_lost(ms_process *p) {
  if (p->state == MS_PROCESS_EXITED)
    leave_sandbox(p);
  else
    process_over(p, MS_PROCESS_LOST);
}

static bool on_started(ms_process *p, ms_reader *body) {
  p->pid = (int)ms_get_u32(body);
  if (p->background)
    p->number = ms_get_u64(body);
  if (p->state != MS_PROCESS_STARTING || !ms_get_end(body) || p->pid <= 1)
    return false;
  p->state = MS_PROCESS_RUNNING;
  serve_output(p);
  if (p->awaited)
    ms_wake(p->reactor, &p->wait);
  return true;
}

static bool on_refused(ms_process *p, ms_reader *body) {
  p->error = (int)ms_get_u32(body);
  const char *what = ms_get_str(body);
  if (p->state != MS_PROCESS_STARTING || !ms_get_end(body) || p->error <= 0 || p->error > 4095)
    return false;
  ms_copy_word(p->what, sizeof p->what, what);
  process_over(p, MS_PROCESS_REFUSED);
  return true;
}

static bool on_exited(ms_process *p, ms_reader *body) {
  ms_get_exit(body, &p->exit);
  bool ended = WIFEXITED(p->exit.status) || WIFSIGNALED(p->exit.status);
  bool started = p->state == MS_PROCESS_RUNNING || (p->quiet && p->state == MS_PROCESS_STARTING);
  if (!started || !ms_get_end(body) || !ended || p->exit.reason > MS_REASON_CLOSE ||
      p->exit.pid <= 1)
    return false;
  p->pid = p->exit.pid;
  process_over(p, MS_PROCESS_EXITED);
  return true;
}

/* Gaps come in order, and lie between what has come and what has not. */
static bool on_gap(ms_process *p, ms_reader *body) {
  uint32_t which = ms_get_u32(body);
  uint64_t at = ms_get_u64(body), length = ms_get_u64(body);
  bool seen = p->state == MS_PROCESS_RUNNING || p->state == MS_PROCESS_EXITED;
  if (!p->background || !seen || !ms_get_end(body) || which > 1 || length == 0 || at + length < at)
    return false;
  ms_view *v = &p->views[which];
  ms_stream *stream = which == 0 ? p->out : p->err;
  uint64_t before = v->count ? v->gaps[v->count - 1].at + v->gaps[v->count - 1].length : v->since;
  if (!stream || at < before)
    return false;
  if (stream->missing == 0)
    stream->missing_at = (size_t)(at - v->since);
  stream->missing += length;
  ms_gap *grown = v->count < MS_GAPS_MAX ? realloc(v->gaps, (v->count + 1) * sizeof *grown) : NULL;
  v->blurred |= !grown;
  if (grown) {
    v->gaps = grown;
    v->gaps[v->count++] = (ms_gap){.at = at, .length = length};
  }
  return true;
}

bool ms_process_message(ms_sandbox *s, const ms_header *header, ms_reader *body) {
  ms_process *p = s->processes;
  while (p && p->id != header->id)
    p = p->next;
  if (!p) /* let go of by us, or invented */
    return header->id != 0 && header->id <= s->last_id;
  switch (header->type) {
  case MS_STARTED:
    return on_started(p, body);
  case MS_REFUSED:
    return on_refused(p, body);
  case MS_GAP:
    return on_gap(p, body);
  default:
    return on_exited(p, body);
  }
}

/* Requests ------------------------------------------------------------------------------------ */

static lua_Number field_number(lua_State *L, int table, const char *name, lua_Number fallback) {
  lua_getfield(L, table, name);
  lua_Number value = luaL_optnumber(L, -1, fallback);
  lua_pop(L, 1);
  return value;
}

static bool field_boolean(lua_State *L, int table, const char *name) {
  lua_getfield(L, table, name);
  bool value = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return value;
}

static uint64_t field_ns(lua_State *L, int table, const char *name) {
  lua_Number seconds = field_number(L, table, name, 0);
  if (seconds <= 0)
    return 0;
  uint64_t ns = seconds > 1e9 ? UINT64_C(1000000000000000000) : (uint64_t)(seconds * 1e9);
  return ns > 0 ? ns : 1;
}

static uint64_t field_limit(lua_State *L, int table, const char *name) {
  lua_Number value = field_number(L, table, name, -1);
  return value < 0 ? MS_UNLIMITED : (uint64_t)value;
}

/* An array of strings at the top of the stack. */
static void put_strings(lua_State *L, ms_writer *body, size_t count) {
  for (size_t i = 1; i <= count; i++) {
    size_t length;
    lua_rawgeti(L, -1, (int)i);
    const char *text = luaL_checklstring(L, -1, &length);
    ms_put_bytes(body, text, length);
    lua_pop(L, 1);
  }
}

/* The body of MS_EXEC, from argv at stack index 2 and the options at 3. */
static void put_exec(lua_State *L, ms_writer *body, uint32_t flags) {
  ms_put_u32(body, flags);
  ms_put_u32(body, (uint32_t)field_number(L, 3, "umask", 022));
  ms_put_u64(body, field_ns(L, 3, "timeout"));
  ms_put_u64(body, field_ns(L, 3, "grace"));
  ms_put_u64(body, field_limit(L, 3, "memory"));
  ms_put_u64(body, field_limit(L, 3, "cpu_time"));
  ms_put_u64(body, field_limit(L, 3, "open_files"));
  ms_put_u64(body, field_limit(L, 3, "file_size"));
  ms_put_u64(body, field_limit(L, 3, "processes"));
  lua_getfield(L, 3, "cwd");
  ms_put_str(body, luaL_optstring(L, -1, "/"));
  lua_pop(L, 1);
  ms_put_u64(body, (uint64_t)field_number(L, 3, "log_size", 0));
  lua_getfield(L, 3, "env");
  size_t argc = lua_rawlen(L, 2), envc = lua_istable(L, -1) ? lua_rawlen(L, -1) : 0;
  ms_put_u32(body, (uint32_t)argc);
  ms_put_u32(body, (uint32_t)envc);
  lua_pushvalue(L, 2);
  put_strings(L, body, argc);
  lua_pop(L, 1);
  put_strings(L, body, envc);
  lua_pop(L, 1);
}

/* The pipes of a program until they have owners. */
typedef struct plumbing {
  int host[3];  /* our ends; -1: none */
  int child[3]; /* theirs, in the order they are sent */
  size_t child_count;
} plumbing;

static void close_plumbing(plumbing *p) {
  for (int i = 0; i < 3; i++)
    if (p->host[i] >= 0)
      close(p->host[i]);
  for (size_t i = 0; i < p->child_count; i++)
    close(p->child[i]);
}

/* A pipe whose ends a program inside may open again through /proc/self/fd: it must be its owner,
 * which root's pipes are not. */
static int lay_pipe(plumbing *p, int fd, bool child_reads) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) < 0)
    return -errno;
  int host = child_reads ? ends[1] : ends[0];
  p->host[fd] = host;
  p->child[p->child_count++] = child_reads ? ends[0] : ends[1];
  if (fcntl(host, F_SETFL, O_NONBLOCK) < 0)
    return -errno;
  if (geteuid() == 0 && fchown(host, MS_UNPRIVILEGED, MS_UNPRIVILEGED) < 0 && errno != EINVAL)
    return -errno;
  return 0;
}

/* One terminal, whose ends are both input and output. */
static int lay_terminal(plumbing *p, int root, unsigned cols, unsigned rows) {
  int theirs;
  int error = ms_pty_make(root, cols, rows, &p->host[1], &theirs);
  if (error)
    return error;
  p->child[p->child_count++] = theirs;
  p->host[0] = fcntl(p->host[1], F_DUPFD_CLOEXEC, 0);
  return p->host[0] < 0 ? -errno : 0;
}

static int lay_pipes(plumbing *p, uint32_t flags) {
  int error = 0;
  if (flags & MS_EXEC_STDIN)
    error = lay_pipe(p, 0, true);
  if (!error && flags & MS_EXEC_STDOUT)
    error = lay_pipe(p, 1, false);
  if (!error && flags & MS_EXEC_STDERR)
    error = lay_pipe(p, 2, false);
  return error;
}

/* A body too long for a datagram goes into a memfd, sent as the last file. */
static int send_long(ms_sandbox *s, uint32_t id, const ms_writer *body, plumbing *pipes) {
  int fds[MS_WIRE_MAX_FDS];
  memcpy(fds, pipes->child, pipes->child_count * sizeof *fds);
  int memory = memfd_create("moonsand", MFD_CLOEXEC);
  if (memory < 0)
    return -errno;
  if (write(memory, body->data, body->length) != (ssize_t)body->length) {
    close(memory);
    return -ENOMEM;
  }
  size_t count = pipes->child_count;
  fds[count] = memory;
  pipes->child_count = 0;
  return ms_sandbox_send(s, (ms_header){.type = MS_EXEC, .flags = MS_IN_FILE, .id = id},
                         &(ms_writer){0}, fds, count + 1);
}

static int send_exec(ms_sandbox *s, uint32_t id, const ms_writer *body, plumbing *pipes) {
  if (body->overflow)
    return -E2BIG;
  if (body->length > MS_WIRE_MAX - sizeof(ms_header))
    return send_long(s, id, body, pipes);
  size_t count = pipes->child_count;
  pipes->child_count = 0;
  return ms_sandbox_send(s, (ms_header){.type = MS_EXEC, .id = id}, body, pipes->child, count);
}

/* Encodes into the scratch memory, or, when that is too small, into memory of its own, left on the
 * Lua stack. */
static ms_writer encode(lua_State *L, ms_reactor *r, uint32_t flags) {
  ms_writer body = {.data = ms_reactor_scratch(r), .capacity = MS_SCRATCH_SIZE};
  put_exec(L, &body, flags);
  if (body.overflow) {
    body = (ms_writer){.data = lua_newuserdata(L, MS_LONG_MAX), .capacity = MS_LONG_MAX};
    put_exec(L, &body, flags);
  }
  return body;
}

static uint32_t exec_flags(lua_State *L) {
  static const struct {
    const char *name;
    uint32_t flag;
  } rows[] = {
      {"worker", MS_EXEC_WORKER}, {"leave", MS_EXEC_LEAVE},   {"stdin", MS_EXEC_STDIN},
      {"stdout", MS_EXEC_STDOUT}, {"stderr", MS_EXEC_STDERR}, {"merge", MS_EXEC_MERGE},
      {"quiet", MS_EXEC_QUIET},   {"pty", MS_EXEC_PTY},       {"background", MS_EXEC_BACKGROUND},
      {"log_head", MS_EXEC_HEAD},
  };
  uint32_t flags = 0;
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (field_boolean(L, 3, rows[i].name))
      flags |= rows[i].flag;
  const uint32_t pipes = MS_EXEC_STDIN | MS_EXEC_STDOUT | MS_EXEC_STDERR | MS_EXEC_MERGE;
  return flags & MS_EXEC_PTY ? flags & ~pipes : flags;
}

static void read_size(lua_State *L, unsigned *cols, unsigned *rows) {
  lua_getfield(L, 3, "pty");
  luaL_checktype(L, -1, LUA_TTABLE);
  *cols = (unsigned)field_number(L, lua_gettop(L), "cols", 80);
  *rows = (unsigned)field_number(L, lua_gettop(L), "rows", 24);
  lua_pop(L, 1);
}

static int push_error(lua_State *L, int error) {
  lua_pushnil(L);
  lua_pushinteger(L, error);
  return 2;
}

/* Pushes our end as a stream, or nil. What comes out is left alone until it is known that the
 * program runs: whoever started it may read all of it, and nothing is collected before. Of a quiet
 * one that is never known: what is over soon is cheaper drained once at its end. */
static ms_stream *push_stream(lua_State *L, ms_reactor *r, plumbing *pipes, int fd, size_t limit) {
  if (pipes->host[fd] < 0) {
    lua_pushnil(L);
    return NULL;
  }
  int end = pipes->host[fd];
  pipes->host[fd] = -1;
  return ms_stream_new(L, r, end, fd != 0, limit, fd != 0);
}

/* Pushes one that nothing is known of yet. */
static ms_process *push_process(lua_State *L, ms_sandbox *s, bool background) {
  ms_process *p = lua_newuserdata(L, sizeof *p);
  *p = (ms_process){.state = MS_PROCESS_REFUSED, .background = background};
  luaL_setmetatable(L, MS_PROCESS_TYPE);
  p->reactor = ms_reactor_ref(s->reactor);
  ms_waitable_init(s->reactor, &p->wait);
  return p;
}

/* The request that was sent last is for this one. */
static void await_answer(ms_sandbox *s, ms_process *p) {
  p->id = s->last_id;
  p->state = MS_PROCESS_STARTING;
  p->sandbox = s;
  p->next = s->processes;
  s->processes = p;
}

/* sandbox:spawn(argv, options): process, stdin, stdout, stderr (nil where there is no pipe); or
 * nil, errno, state. Options: cwd, env (list of "K=V"), umask, timeout, grace, max_output, the
 * limits, worker, leave, merge, quiet; background, with log_size and log_head; stdin, stdout,
 * stderr: true for a pipe, else /dev/null; pty: { cols, rows } for a terminal in the place of all
 * three. */
int ms_process_spawn(lua_State *L) {
  ms_sandbox *s = luaL_checkudata(L, 1, MS_SANDBOX_TYPE);
  luaL_checktype(L, 2, LUA_TTABLE);
  luaL_checktype(L, 3, LUA_TTABLE);
  if (s->state != MS_SANDBOX_READY)
    return ms_sandbox_push_unusable(L, s);
  size_t limit = (size_t)field_number(L, 3, "max_output", 16 * 1024 * 1024);
  uint32_t flags = exec_flags(L);
  unsigned cols = 0, rows = 0;
  if (flags & MS_EXEC_PTY)
    read_size(L, &cols, &rows);
  ms_writer body = encode(L, s->reactor, flags);

  ms_process *p = push_process(L, s, flags & MS_EXEC_BACKGROUND);
  int process = lua_gettop(L);
  lua_createtable(L, 4, 0); /* what the process keeps alive */
  int kept = lua_gettop(L);

  plumbing pipes = {.host = {-1, -1, -1}};
  int error =
      flags & MS_EXEC_PTY ? lay_terminal(&pipes, s->root, cols, rows) : lay_pipes(&pipes, flags);
  if (!error)
    error = send_exec(s, ++s->last_id, &body, &pipes);
  if (error) {
    close_plumbing(&pipes);
    return push_error(L, -error);
  }
  p->quiet = flags & MS_EXEC_QUIET;
  await_answer(s, p);

  lua_pushvalue(L, 1);
  lua_rawseti(L, kept, 4); /* kept[4] = sandbox */
  ms_stream *ends[3];
  for (int fd = 0; fd < 3; fd++) {
    ends[fd] = push_stream(L, s->reactor, &pipes, fd, limit);
    lua_pushvalue(L, -1);
    lua_rawseti(L, kept, fd + 1); /* kept[fd + 1] = stream */
  }
  if (flags & MS_EXEC_PTY)
    p->terminal = ends[0], ends[0]->terminal = ends[1]->hangs_up = true;
  p->out = ends[1];
  p->err = ends[2];
  for (int fd = 1; fd < 3 && p->background; fd++)
    if (ends[fd])
      ends[fd]->tells_end = true;
  lua_pushvalue(L, kept);
  lua_setuservalue(L, process);
  lua_remove(L, kept);
  return 4;
}

/* sandbox:attach(number, options): process, stdout, stderr of a program that runs in the
 * background, or did; or nil, errno, state. Options: stdout, stderr: offsets to begin at; once:
 * only what the log holds now; max_output. */
int ms_process_attach(lua_State *L) {
  ms_sandbox *s = luaL_checkudata(L, 1, MS_SANDBOX_TYPE);
  lua_Number number = luaL_checknumber(L, 2);
  luaL_checktype(L, 3, LUA_TTABLE);
  if (s->state != MS_SANDBOX_READY)
    return ms_sandbox_push_unusable(L, s);
  size_t limit = (size_t)field_number(L, 3, "max_output", 16 * 1024 * 1024);
  char text[64];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_process *p = push_process(L, s, true);
  p->views[0].since = (uint64_t)field_number(L, 3, "stdout", 0);
  p->views[1].since = (uint64_t)field_number(L, 3, "stderr", 0);
  ms_put_u64(&body, number > 0 ? (uint64_t)number : 0);
  ms_put_u64(&body, p->views[0].since);
  ms_put_u64(&body, p->views[1].since);
  ms_put_u32(&body, field_boolean(L, 3, "once"));
  int process = lua_gettop(L);
  lua_createtable(L, 4, 0); /* what the process keeps alive */

  plumbing pipes = {.host = {-1, -1, -1}};
  int error = lay_pipes(&pipes, MS_EXEC_STDOUT | MS_EXEC_STDERR);
  if (!error) {
    size_t count = pipes.child_count;
    pipes.child_count = 0;
    error = ms_sandbox_send(s, (ms_header){.type = MS_ATTACH, .id = ++s->last_id}, &body,
                            pipes.child, count);
  }
  if (error) {
    close_plumbing(&pipes);
    return push_error(L, -error);
  }
  await_answer(s, p);
  lua_pushvalue(L, 1);
  lua_rawseti(L, -2, 4); /* kept[4] = sandbox */
  p->out = push_stream(L, s->reactor, &pipes, 1, limit);
  p->err = push_stream(L, s->reactor, &pipes, 2, limit);
  p->out->tells_end = p->err->tells_end = true;
  lua_pushvalue(L, -2);
  lua_rawseti(L, process + 1, 2); /* kept[2] = stdout */
  lua_pushvalue(L, -1);
  lua_rawseti(L, process + 1, 3); /* kept[3] = stderr */
  lua_pushvalue(L, process + 1);
  lua_setuservalue(L, process);
  lua_remove(L, process + 1);
  return 3;
}

/* Lua ----------------------------------------------------------------------------------------- */

static const char *const state_names[] = {"starting", "running", "refused", "exited", "lost"};

/* process:state(): its name; for "refused" also an errno and what could not be had. */
static int process_state(lua_State *L) {
  const ms_process *p = check_process(L);
  lua_pushstring(L, state_names[p->state]);
  lua_pushinteger(L, p->error);
  lua_pushstring(L, p->what);
  return 3;
}

/* process:expect(): who waits now wants to hear of the start too, not only of the end. */
static int process_expect(lua_State *L) {
  check_process(L)->awaited = true;
  return 0;
}

static int process_pid(lua_State *L) {
  lua_pushinteger(L, check_process(L)->pid);
  return 1;
}

static void set_number(lua_State *L, const char *name, lua_Number value) {
  lua_pushnumber(L, value);
  lua_setfield(L, -2, name);
}

static void set_integer(lua_State *L, const char *name, lua_Integer value) {
  lua_pushinteger(L, value);
  lua_setfield(L, -2, name);
}

static const char *const reason_names[] = {NULL, "timeout", "cancel", "output", "close"};

/* Of the gaps before what was read from the pipes by now: they were told first. */
static void hear_of_gaps(const ms_process *p) {
  if (p->background && p->sandbox)
    ms_sandbox_hear(p->sandbox);
}

/* process:exit(): how it ended, as a table; nil before that. */
static int process_exit(lua_State *L) {
  const ms_process *p = check_process(L);
  if (p->state != MS_PROCESS_EXITED)
    return 0;
  hear_of_gaps(p);
  const ms_exit *e = &p->exit;
  lua_createtable(L, 0, 8);
  set_integer(L, "pid", p->pid);
  if (WIFEXITED(e->status))
    set_integer(L, "exit_code", WEXITSTATUS(e->status));
  else
    set_integer(L, "signal_number", WTERMSIG(e->status));
  lua_pushstring(L, reason_names[e->reason]);
  lua_setfield(L, -2, "reason"); /* exit.reason, nil: none */
  lua_pushboolean(L, p->pipes_held);
  lua_setfield(L, -2, "pipes_held"); /* exit.pipes_held */
  set_number(L, "duration", (lua_Number)e->duration_ns / 1e9);
  lua_createtable(L, 0, 6);
  set_number(L, "user_time", (lua_Number)e->user_us / 1e6);
  set_number(L, "system_time", (lua_Number)e->system_us / 1e6);
  set_number(L, "cpu_time", (lua_Number)(e->user_us + e->system_us) / 1e6);
  set_integer(L, "memory_peak", (lua_Integer)e->max_rss_kib * 1024);
  set_integer(L, "read_bytes", (lua_Integer)e->read_blocks * 512);
  set_integer(L, "write_bytes", (lua_Integer)e->write_blocks * 512);
  lua_setfield(L, -2, "usage"); /* exit.usage */
  return 1;
}

/* process:signal(number, tree, reason): true, or false when it is over. The reason is kept when the
 * signal is KILL for the tree. */
static int process_signal(lua_State *L) {
  static const char *const reasons[] = {"none", "timeout", "cancel", "output", "close", NULL};
  ms_process *p = check_process(L);
  lua_Integer number = luaL_checkinteger(L, 2);
  bool tree = lua_toboolean(L, 3);
  int reason = luaL_checkoption(L, 4, "none", reasons);
  char text[16];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)number);
  ms_put_u32(&body, tree ? MS_TARGET_TREE : MS_TARGET_FIRST);
  ms_put_u32(&body, (uint32_t)reason);
  bool sent =
      p->sandbox && p->sandbox->socket >= 0 && !ms_reactor_foreign(p->reactor) &&
      ms_sandbox_send(p->sandbox, (ms_header){.type = MS_SIGNAL, .id = p->id}, &body, NULL, 0) == 0;
  lua_pushboolean(L, sent);
  return 1;
}

static int process_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_process(L)->wait.id);
  return 1;
}

static int process_arm(lua_State *L) {
  check_process(L)->wait.armed = true;
  return 0;
}

/* process:number(): what it is called in its sandbox; 0: nothing, or not yet. */
static int process_number(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_process(L)->number);
  return 1;
}

/* Where in its stream the program's byte is that a reader takes next. */
static uint64_t offset_of(const ms_view *v, uint64_t taken) {
  uint64_t offset = v->since;
  for (size_t i = 0; i < v->count && taken > v->gaps[i].at - offset; i++) {
    taken -= v->gaps[i].at - offset;
    offset = v->gaps[i].at + v->gaps[i].length;
  }
  return offset + taken;
}

/* process:offsets(): how far readers have come in stdout and stderr, as `attach` takes it; nil when
 * too much is missing to tell. */
static int process_offsets(lua_State *L) {
  ms_process *p = check_process(L);
  hear_of_gaps(p);
  for (int i = 0; i < 2; i++) {
    const ms_stream *stream = i == 0 ? p->out : p->err;
    if (p->views[i].blurred)
      return 0;
    lua_pushinteger(L, (lua_Integer)offset_of(&p->views[i], stream ? ms_stream_taken(stream) : 0));
  }
  return 2;
}

/* process:gaps(): what is missing: { { stream, at, dropped } … }. */
static int process_gaps(lua_State *L) {
  const ms_process *p = check_process(L);
  hear_of_gaps(p);
  lua_newtable(L);
  int row = 0;
  for (int i = 0; i < 2; i++)
    for (size_t k = 0; k < p->views[i].count; k++) {
      const ms_gap *gap = &p->views[i].gaps[k];
      lua_createtable(L, 0, 3);
      lua_pushstring(L, i == 0 ? "stdout" : "stderr");
      lua_setfield(L, -2, "stream"); /* gap.stream */
      set_integer(L, "at", (lua_Integer)gap->at);
      set_integer(L, "dropped", (lua_Integer)gap->length);
      lua_rawseti(L, -2, ++row);
    }
  return 1;
}

/* process:leave(): we do not look at its log any more. */
static int process_leave(lua_State *L) {
  ms_process *p = check_process(L);
  if (p->background && p->sandbox && p->sandbox->socket >= 0 && !ms_reactor_foreign(p->reactor))
    ms_sandbox_send(p->sandbox, (ms_header){.type = MS_LEAVE, .id = p->id}, &(ms_writer){0}, NULL,
                    0);
  leave_sandbox(p);
  return 0;
}

/* The program goes on: dropping a handle does nothing to it. */
static int process_gc(lua_State *L) {
  ms_process *p = check_process(L);
  if (!p->reactor)
    return 0;
  process_leave(L);
  for (int i = 0; i < 2; i++) {
    free(p->views[i].gaps);
    p->views[i] = (ms_view){0};
  }
  ms_reactor_unref(p->reactor);
  p->reactor = NULL;
  return 0;
}

static int process_tostring(lua_State *L) {
  const ms_process *p = check_process(L);
  lua_pushfstring(L, "%s (%s, pid %d)", MS_PROCESS_TYPE, state_names[p->state], p->pid);
  return 1;
}

static const luaL_Reg methods[] = {
    {"id", process_id},         {"arm", process_arm},       {"state", process_state},
    {"pid", process_pid},       {"exit", process_exit},     {"signal", process_signal},
    {"expect", process_expect}, {"number", process_number}, {"offsets", process_offsets},
    {"gaps", process_gaps},     {"leave", process_leave},   {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", process_gc},
    {"__tostring", process_tostring},
    {NULL, NULL},
};

/* core.hard_limit(name): the most of a limit that a program of ours can be given, whose own hard
 * one of CPU time lies a second above (agent/spawn.c). */
static int core_hard_limit(lua_State *L) {
  static const char *const names[] = {"memory",    "cpu_time",  "open_files",
                                      "file_size", "processes", NULL};
  static const int resources[] = {RLIMIT_DATA, RLIMIT_CPU, RLIMIT_NOFILE, RLIMIT_FSIZE,
                                  RLIMIT_NPROC};
  int resource = resources[luaL_checkoption(L, 1, NULL, names)];
  struct rlimit limit;
  if (getrlimit(resource, &limit) < 0 || limit.rlim_max == RLIM_INFINITY)
    lua_pushnumber(L, HUGE_VAL);
  else
    lua_pushnumber(L, (lua_Number)limit.rlim_max - (resource == RLIMIT_CPU));
  return 1;
}

void ms_process_open(lua_State *L) {
  ms_newtype(L, MS_PROCESS_TYPE, methods, metamethods);
  lua_pushcfunction(L, core_hard_limit);
  lua_setfield(L, -2, "hard_limit"); /* core.hard_limit */
}
