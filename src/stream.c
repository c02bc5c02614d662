/* Bytes over a pipe or socket. A stream owns its descriptor, never blocks and never raises SIGPIPE.
 * Three things bound what it holds: the excerpt's limit while nobody reads, the high-water mark
 * while somebody does, and the limit again for a reader that asks for everything. */
#include "stream.h"

#include "compat.h"
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HIGH_WATER ((size_t)256 * 1024)
#define CHUNK_MAX ((size_t)256 * 1024)
#define CHUNK_MIN ((size_t)4096)
/* What a reader is given at once: larger strings miss the caches and cost half the throughput. */
#define CHUNK_TAKEN ((size_t)128 * 1024)
#define PIPE_DEFAULT (64 * 1024)
#define PIPE_LARGE (1024 * 1024)
/* Read at most so much in one go, so that one loud program does not starve the others. */
#define READ_BURST ((size_t)1024 * 1024)

static ms_stream *check_stream(lua_State *L) {
  return luaL_checkudata(L, 1, MS_STREAM_TYPE);
}

/* Interest ------------------------------------------------------------------------------------ */

static bool wants_read(const ms_stream *s) {
  if (!s->reading || s->eof || s->error)
    return false;
  return s->mode == MS_COLLECT || s->in.length < s->want;
}

static void update_interest(ms_stream *s) {
  if (s->fd < 0 || s->idle)
    return;
  uint32_t events = wants_read(s) ? EPOLLIN : 0;
  if (s->wants_write || s->out.length > 0)
    events |= EPOLLOUT;
  ms_source_watch(s->reactor, &s->source, events);
}

void ms_stream_serve(ms_stream *s) {
  s->idle = false;
  update_interest(s);
}

void ms_stream_close(ms_stream *s) {
  if (s->fd < 0)
    return;
  ms_source_watch(s->reactor, &s->source, 0);
  close(s->fd);
  s->fd = s->source.fd = -1;
  ms_buffer_free(&s->out);
}

int ms_stream_detach(ms_stream *s) {
  int fd = s->fd;
  if (fd >= 0)
    ms_source_watch(s->reactor, &s->source, 0);
  s->fd = s->source.fd = -1;
  return fd;
}

/* Reading ------------------------------------------------------------------------------------- */

/* A program that keeps a pipe full deserves a larger one. The kernel refuses when the user has too
 * many of those already; then it stays small. */
static void adapt_pipe(ms_stream *s, ssize_t count) {
  s->full_reads = count >= PIPE_DEFAULT ? s->full_reads + 1 : 0;
  if (s->full_reads == 2)
    fcntl(s->fd, F_SETPIPE_SZ, PIPE_LARGE);
}

static void read_ended(ms_stream *s, int error) {
  s->eof = error == 0;
  s->error = error;
  if (s->duplex && error == 0 && !s->shut)
    return; /* the other direction goes on */
  if (s->out.length == 0 && !s->wants_write && !s->hangs_up)
    ms_stream_close(s);
}

/* One read into `run`; the count, 0 when there is nothing (more) now. Whether a socket blocks is
 * its maker's to change at any time, who may be in a sandbox: hence MSG_DONTWAIT. */
static size_t read_some(ms_stream *s, char *run, size_t room) {
  ssize_t count;
  do
    count = s->socket ? recv(s->fd, run, room, MSG_DONTWAIT) : read(s->fd, run, room);
  while (count < 0 && errno == EINTR);
  if (count > 0) {
    s->received += (uint64_t)count;
    if (!s->duplex)
      adapt_pipe(s, count);
    return (size_t)count;
  }
  if (count == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
    read_ended(s, count == 0 || errno == EIO ? 0 : errno); /* EIO: a pty nobody has open */
  return 0;
}

/* Reads as much again as there is: most programs say little, and memory for a lot of it is dear. */
static size_t fill_excerpt(ms_stream *s) {
  char *run;
  uint64_t wish = s->excerpt.total < CHUNK_MIN ? CHUNK_MIN : s->excerpt.total;
  size_t room = ms_excerpt_reserve(&s->excerpt, wish < CHUNK_MAX ? wish : CHUNK_MAX, &run);
  if (room == 0) { /* nothing is kept: read it all the same */
    size_t count = read_some(s, ms_reactor_scratch(s->reactor), MS_SCRATCH_SIZE);
    s->excerpt.total += count;
    return count;
  }
  size_t count = read_some(s, run, room);
  ms_excerpt_commit(&s->excerpt, count);
  return count;
}

static size_t fill_buffer(ms_stream *s) {
  if (s->in.length >= s->want)
    return 0;
  size_t room = s->want - s->in.length;
  if (room > CHUNK_MAX)
    room = CHUNK_MAX;
  char *run = ms_buffer_reserve(&s->in, room);
  if (!run) {
    read_ended(s, ENOMEM);
    return 0;
  }
  size_t count = read_some(s, run, room);
  ms_buffer_commit(&s->in, count);
  return count;
}

static bool fill(ms_stream *s, size_t burst) {
  size_t total = 0;
  while (total < burst && wants_read(s)) {
    size_t count = s->mode == MS_COLLECT ? fill_excerpt(s) : fill_buffer(s);
    if (count == 0)
      break;
    total += count;
  }
  return total > 0 || s->eof || s->error;
}

void ms_stream_drain(ms_stream *s) {
  if (s->fd >= 0)
    fill(s, PIPE_LARGE + READ_BURST);
  update_interest(s);
}

/* Writing ------------------------------------------------------------------------------------- */

/* write() without the signal. Pipes have no MSG_NOSIGNAL, and the host's handlers are not ours: a
 * SIGPIPE that this call causes is taken back before anybody sees it. */
static ssize_t write_quietly(int fd, const char *bytes, size_t count) {
  sigset_t pipe_signal, pending, before;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  sigpending(&pending);
  bool was_pending = sigismember(&pending, SIGPIPE) == 1;
  if (!was_pending)
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
  ssize_t written;
  do
    written = write(fd, bytes, count);
  while (written < 0 && errno == EINTR);
  int error = errno;
  if (!was_pending) {
    if (written < 0 && error == EPIPE)
      while (sigtimedwait(&pipe_signal, NULL, &(struct timespec){0, 0}) < 0 && errno == EINTR)
        continue;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  errno = error;
  return written;
}

/* Bytes written, 0 when there is no room, or a negative errno. */
static ssize_t stream_write(ms_stream *s, const char *bytes, size_t count) {
  if (s->broken || s->fd < 0)
    return -EPIPE;
  ssize_t written = s->duplex ? send(s->fd, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL)
                              : write_quietly(s->fd, bytes, count);
  if (written > 0 && s->terminal)
    s->midline = !memchr("\n\r\4", bytes[written - 1], 3);
  if (written >= 0)
    return written;
  if (errno == EAGAIN || errno == EWOULDBLOCK)
    return 0;
  int error = errno == EIO ? EPIPE : errno; /* EIO: a pty nobody has open */
  s->broken = true;
  return -error;
}

static void flush_out(ms_stream *s);

/* The last that is typed; when that is out the descriptor is closed. False when it cannot be. */
static bool type_end(ms_stream *s) {
  char typed[2];
  int count = s->terminal && !s->broken && s->fd >= 0 ? ms_pty_end(s->fd, s->midline, typed) : 0;
  s->terminal = false;
  char *run = count > 0 ? ms_buffer_reserve(&s->out, (size_t)count) : NULL;
  if (!run)
    return false;
  memcpy(run, typed, (size_t)count);
  ms_buffer_commit(&s->out, (size_t)count);
  s->feeding = true;
  flush_out(s);
  update_interest(s);
  return true;
}

static void write_ended(ms_stream *s) {
  if (type_end(s))
    return;
  s->feeding = false;
  ms_buffer_free(&s->out);
  s->shut = true;
  if (!s->reading || s->eof)
    ms_stream_close(s);
  else if (s->fd >= 0)
    shutdown(s->fd, SHUT_WR);
}

static void flush_out(ms_stream *s) {
  while (s->out.length > 0) {
    ssize_t written = stream_write(s, ms_buffer_front(&s->out), s->out.length);
    if (written == 0)
      return;
    if (written < 0)
      break;
    ms_buffer_consume(&s->out, (size_t)written);
  }
  if (s->feeding)
    write_ended(s);
}

/* Events -------------------------------------------------------------------------------------- */

/* While nobody reads, the one news is that the excerpt begins to lose bytes. */
static bool overflowed_now(ms_stream *s) {
  bool over = s->excerpt.total > s->excerpt.limit && !s->overflowed;
  s->overflowed |= over;
  return over;
}

static void stream_ready(ms_source *source, uint32_t events) {
  ms_stream *s = (ms_stream *)((char *)source - offsetof(ms_stream, source));
  bool news = false;
  if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
    news = s->wants_write;
    s->wants_write = false;
    if (events & EPOLLERR && !s->reading)
      s->broken = true;
    if (s->out.length > 0)
      flush_out(s);
  }
  if (s->fd >= 0 && wants_read(s) && fill(s, READ_BURST))
    news |= s->mode != MS_COLLECT || s->peeked || overflowed_now(s) || (s->tells_end && s->fd < 0);
  update_interest(s);
  if (news)
    ms_wake(s->reactor, &s->wait);
}

/* Taking -------------------------------------------------------------------------------------- */

/* The excerpt becomes what a reader reads first. */
static void start_reading(ms_stream *s) {
  if (s->mode != MS_COLLECT)
    return;
  ms_runs runs = ms_excerpt_runs(&s->excerpt);
  for (int i = 0; i < 3; i++) {
    char *run = runs.length[i] ? ms_buffer_reserve(&s->in, runs.length[i]) : NULL;
    if (run) {
      memcpy(run, runs.data[i], runs.length[i]);
      ms_buffer_commit(&s->in, runs.length[i]);
    }
  }
  if (runs.dropped > 0 && s->dropped == 0)
    s->dropped_at = s->taken + runs.dropped_at;
  s->dropped += runs.dropped;
  ms_excerpt_free(&s->excerpt);
  s->mode = MS_READ;
}

static int push_front(lua_State *L, ms_stream *s, size_t count, size_t skip) {
  const char *front = ms_buffer_front(&s->in);
  lua_pushlstring(L, front, count);
  if (s->mode == MS_TEE)
    ms_excerpt_append(&s->excerpt, front, count + skip);
  ms_buffer_consume(&s->in, count + skip);
  s->taken += count + skip;
  s->scanned = 0;
  s->want = HIGH_WATER;
  update_interest(s);
  return 1;
}

/* nil and why: "again", "eof", "too_large", or an errno. */
static int push_nothing(lua_State *L, ms_stream *s) {
  lua_pushnil(L);
  if (s->error)
    lua_pushinteger(L, s->error);
  else if (s->eof)
    lua_pushliteral(L, "eof");
  else if (s->fd < 0)
    lua_pushinteger(L, EBADF);
  else
    lua_pushliteral(L, "again");
  return 2;
}

static bool read_over(const ms_stream *s) {
  return s->eof || s->error || s->fd < 0;
}

/* Grows the read-ahead to what a reader needs and reads once, at once. */
static void read_towards(ms_stream *s, size_t want) {
  if (s->want < want)
    s->want = want;
  if (s->in.length < want && s->fd >= 0)
    fill(s, READ_BURST);
  update_interest(s);
}

static int push_too_large(lua_State *L) {
  lua_pushnil(L);
  lua_pushliteral(L, "too_large");
  return 2;
}

static int take_line(lua_State *L, ms_stream *s, bool keep_newline, size_t max) {
  for (;;) {
    const char *front = ms_buffer_front(&s->in);
    const char *newline = NULL;
    if (s->in.length > s->scanned)
      newline = memchr(front + s->scanned, '\n', s->in.length - s->scanned);
    if (newline) {
      size_t length = (size_t)(newline - front);
      if (length > max)
        return push_too_large(L);
      return keep_newline ? push_front(L, s, length + 1, 0) : push_front(L, s, length, 1);
    }
    s->scanned = s->in.length;
    if (s->in.length > max)
      return push_too_large(L);
    if (read_over(s))
      break;
    size_t before = s->in.length;
    read_towards(s, s->in.length + 1 > HIGH_WATER ? max + 1 : HIGH_WATER);
    if (s->in.length == before && !read_over(s))
      return push_nothing(L, s);
  }
  return s->in.length > 0 ? push_front(L, s, s->in.length, 0) : push_nothing(L, s);
}

/* As in `io`, no bytes at all tell whether there are more. */
static int take_count(lua_State *L, ms_stream *s, size_t count) {
  const size_t needed = count > 0 ? count : 1;
  if (s->in.length < needed && !read_over(s))
    read_towards(s, needed);
  if (s->in.length >= needed)
    return push_front(L, s, count, 0);
  if (read_over(s) && s->in.length > 0)
    return push_front(L, s, s->in.length, 0);
  return push_nothing(L, s);
}

static int take_chunk(lua_State *L, ms_stream *s) {
  if (s->in.length == 0 && !read_over(s))
    read_towards(s, HIGH_WATER);
  if (s->in.length == 0)
    return push_nothing(L, s);
  return push_front(L, s, s->in.length < CHUNK_TAKEN ? s->in.length : CHUNK_TAKEN, 0);
}

static int take_all(lua_State *L, ms_stream *s, size_t max) {
  if (!read_over(s))
    read_towards(s, max + 1);
  if (s->in.length > max)
    return push_too_large(L);
  if (!read_over(s))
    return push_nothing(L, s);
  if (s->error)
    return push_nothing(L, s);
  return push_front(L, s, s->in.length, 0);
}

/* stream:take(what, n): "l" and "L" with n the longest line, "a" with n the most, "chunk", or
 * "n" with n bytes. The data; or nil and "again", "eof", "too_large" or an errno. */
static int stream_take(lua_State *L) {
  ms_stream *s = check_stream(L);
  const char *what = luaL_checkstring(L, 2);
  lua_Number number = luaL_optnumber(L, 3, 0);
  size_t n = number > 0 ? (size_t)number : 0;
  start_reading(s);
  if (strcmp(what, "chunk") == 0)
    return take_chunk(L, s);
  if (strcmp(what, "n") == 0)
    return take_count(L, s, n);
  if (strcmp(what, "a") == 0)
    return take_all(L, s, n);
  return take_line(L, s, what[0] == 'L', n);
}

/* stream:write(data, from): how many bytes were accepted; or nil and "again" or an errno. */
static int stream_write_lua(lua_State *L) {
  ms_stream *s = check_stream(L);
  size_t length;
  const char *data = luaL_checklstring(L, 2, &length);
  size_t from = (size_t)luaL_optnumber(L, 3, 1) - 1;
  if (from > length)
    from = length;
  ssize_t written = s->feeding          ? -EPIPE
                    : s->out.length > 0 ? 0
                                        : stream_write(s, data + from, length - from);
  if (written > 0 || (written == 0 && from == length)) {
    lua_pushinteger(L, (lua_Integer)written);
    return 1;
  }
  lua_pushnil(L);
  if (written == 0) {
    s->wants_write = true;
    update_interest(s);
    lua_pushliteral(L, "again");
  } else {
    lua_pushinteger(L, (lua_Integer)-written);
  }
  return 2;
}

/* stream:connected(): true once the connection stands; until then nil, and "again" or an errno. */
static int stream_connected(lua_State *L) {
  ms_stream *s = check_stream(L);
  struct pollfd room = {.fd = s->fd, .events = POLLOUT};
  int error = s->error;
  if (!error && s->fd < 0)
    error = EBADF;
  if (!error && poll(&room, 1, 0) > 0) {
    socklen_t size = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (!error) {
      lua_pushboolean(L, 1);
      return 1;
    }
  }
  lua_pushnil(L);
  if (error) {
    lua_pushinteger(L, error);
  } else {
    s->wants_write = true;
    update_interest(s);
    lua_pushliteral(L, "again");
  }
  return 2;
}

/* stream:feed(data): writes all of it in its own time, then ends the stream. Errors are no news: a
 * program need not read what it is given. */
static int stream_feed(lua_State *L) {
  ms_stream *s = check_stream(L);
  size_t length;
  const char *data = luaL_checklstring(L, 2, &length);
  s->feeding = true;
  ssize_t written = length > 0 ? stream_write(s, data, length) : 0;
  if (written < 0 || (size_t)written == length) {
    write_ended(s);
    return 0;
  }
  size_t rest = length - (size_t)written;
  char *run = ms_buffer_reserve(&s->out, rest);
  if (!run)
    return luaL_error(L, "not enough memory");
  memcpy(run, data + written, rest);
  ms_buffer_commit(&s->out, rest);
  update_interest(s);
  return 0;
}

/* No more is written. What `feed` still holds goes out first. */
static int stream_shutdown(lua_State *L) {
  ms_stream *s = check_stream(L);
  if (s->out.length > 0)
    s->feeding = true;
  else
    write_ended(s);
  return 0;
}

/* stream:tee(): what the reader takes is kept for the result too. */
static int stream_tee(lua_State *L) {
  ms_stream *s = check_stream(L);
  start_reading(s);
  s->mode = MS_TEE;
  s->want = HIGH_WATER;
  update_interest(s);
  return 0;
}

/* stream:collect(): there is no reader any more. What it left, and what comes, is kept. */
static int stream_collect(lua_State *L) {
  ms_stream *s = check_stream(L);
  if (s->mode != MS_COLLECT) {
    ms_excerpt_append(&s->excerpt, ms_buffer_front(&s->in), s->in.length);
    ms_buffer_free(&s->in);
    s->scanned = 0;
    s->mode = MS_COLLECT;
    update_interest(s);
  }
  return 0;
}

/* stream:excerpt(): the collected text, where bytes are missing, how many (0: none). */
static int stream_excerpt(lua_State *L) {
  ms_stream *s = check_stream(L);
  ms_runs runs = ms_excerpt_runs(&s->excerpt);
  if (runs.dropped == 0) {
    lua_pushlstring(L, runs.data[0] ? runs.data[0] : "", runs.length[0]);
  } else {
    luaL_Buffer text;
    luaL_buffinit(L, &text);
    for (int i = 0; i < 3; i++)
      luaL_addlstring(&text, runs.data[i] ? runs.data[i] : "", runs.length[i]);
    luaL_pushresult(&text);
  }
  size_t at = runs.dropped_at;
  if (s->missing > 0 && (runs.dropped == 0 || s->missing_at < at))
    at = s->missing_at;
  lua_pushinteger(L, (lua_Integer)at);
  lua_pushinteger(L, (lua_Integer)(runs.dropped + s->dropped + s->missing));
  return 3;
}

/* The bytes at hand from the stream's own offset on, without taking them: `front` is what a reader
 * has not yet taken, or what was collected (its first half, once that overflowed). */
static size_t peek_front(const ms_stream *s, const char **front) {
  if (s->mode == MS_COLLECT) {
    ms_runs runs = ms_excerpt_runs(&s->excerpt);
    *front = runs.data[0] ? runs.data[0] : "";
    return runs.length[0];
  }
  *front = ms_buffer_front(&s->in);
  return s->in.length;
}

/* stream:peek(from): the line that begins so many bytes from the front, and where the next begins;
 * or nil and "again" or "eof". Takes nothing. */
static int stream_peek(lua_State *L) {
  ms_stream *s = check_stream(L);
  size_t from = (size_t)luaL_checknumber(L, 2);
  const char *front;
  size_t length = peek_front(s, &front);
  s->peeked = true;
  const char *newline = from < length ? memchr(front + from, '\n', length - from) : NULL;
  if (newline) {
    size_t end = (size_t)(newline - front);
    lua_pushlstring(L, front + from, end - from);
    lua_pushinteger(L, (lua_Integer)end + 1);
    return 2;
  }
  if (read_over(s) && from < length) {
    lua_pushlstring(L, front + from, length - from);
    lua_pushinteger(L, (lua_Integer)length);
    return 2;
  }
  bool full = s->mode == MS_COLLECT ? s->excerpt.total > s->excerpt.limit : length >= s->want;
  lua_pushnil(L);
  lua_pushstring(L, read_over(s) ? "eof" : full ? "too_large" : "again");
  return 2;
}

/* stream:received(): how many bytes have come, or were lost on their way. */
static int stream_received(lua_State *L) {
  const ms_stream *s = check_stream(L);
  lua_pushinteger(L, (lua_Integer)(s->received + s->missing));
  return 1;
}

uint64_t ms_stream_taken(const ms_stream *s) {
  return s->taken + (s->dropped > 0 && s->taken >= s->dropped_at ? s->dropped : 0);
}

/* stream:collecting(): more may come for the result. */
static int stream_collecting(lua_State *L) {
  const ms_stream *s = check_stream(L);
  lua_pushboolean(L, s->mode == MS_COLLECT && !read_over(s));
  return 1;
}

/* stream:watch(): begins to serve a stream that was made idle. */
static int stream_watch(lua_State *L) {
  ms_stream_serve(check_stream(L));
  return 0;
}

/* stream:release(): what was collected has been taken; nothing more is wanted. Not while somebody
 * reads it: the rest is theirs. */
static int stream_release(lua_State *L) {
  ms_stream *s = check_stream(L);
  if (s->mode == MS_READ)
    return 0;
  ms_excerpt_free(&s->excerpt);
  ms_stream_close(s);
  s->eof = true;
  s->mode = MS_READ;
  return 0;
}

/* stream:resize(cols, rows): true, or nil and an errno. */
static int stream_resize(lua_State *L) {
  const ms_stream *s = check_stream(L);
  unsigned cols = (unsigned)luaL_checkinteger(L, 2), rows = (unsigned)luaL_checkinteger(L, 3);
  int error = s->fd < 0 ? -EBADF : ms_pty_resize(s->fd, cols, rows);
  if (error) {
    lua_pushnil(L);
    lua_pushinteger(L, -error);
    return 2;
  }
  lua_pushboolean(L, true);
  return 1;
}

static int stream_ended(lua_State *L) {
  lua_pushboolean(L, read_over(check_stream(L)));
  return 1;
}

static int stream_id(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)check_stream(L)->wait.id);
  return 1;
}

static int stream_arm(lua_State *L) {
  check_stream(L)->wait.armed = true;
  return 0;
}

static int stream_close_lua(lua_State *L) {
  ms_stream *s = check_stream(L);
  bool was_open = s->fd >= 0;
  if (s->terminal && !s->feeding)
    write_ended(s);
  else
    ms_stream_close(s);
  if (was_open && s->reactor)
    ms_wake(s->reactor, &s->wait);
  return 0;
}

static int stream_gc(lua_State *L) {
  ms_stream *s = check_stream(L);
  if (!s->reactor)
    return 0;
  ms_stream_close(s);
  ms_buffer_free(&s->in);
  ms_excerpt_free(&s->excerpt);
  ms_reactor_unref(s->reactor);
  s->reactor = NULL;
  return 0;
}

static int stream_tostring(lua_State *L) {
  const ms_stream *s = check_stream(L);
  lua_pushfstring(L, "%s (%s)", MS_STREAM_TYPE, s->fd < 0 ? "closed" : "open");
  return 1;
}

static const luaL_Reg methods[] = {
    {"id", stream_id},
    {"arm", stream_arm},
    {"take", stream_take},
    {"write", stream_write_lua},
    {"feed", stream_feed},
    {"shutdown", stream_shutdown},
    {"tee", stream_tee},
    {"collect", stream_collect},
    {"excerpt", stream_excerpt},
    {"ended", stream_ended},
    {"close", stream_close_lua},
    {"received", stream_received},
    {"collecting", stream_collecting},
    {"watch", stream_watch},
    {"release", stream_release},
    {"peek", stream_peek},
    {"resize", stream_resize},
    {"connected", stream_connected},
    {NULL, NULL},
};

static const luaL_Reg metamethods[] = {
    {"__gc", stream_gc},
    {"__close", stream_close_lua},
    {"__tostring", stream_tostring},
    {NULL, NULL},
};

ms_stream *ms_stream_new(lua_State *L, ms_reactor *r, int fd, bool reading, size_t limit,
                         bool idle) {
  ms_stream *s = lua_newuserdata(L, sizeof *s);
  *s = (ms_stream){.source = {.ready = stream_ready, .fd = fd},
                   .fd = fd,
                   .reading = reading,
                   .idle = idle,
                   .want = HIGH_WATER,
                   .excerpt = {.limit = limit}};
  luaL_setmetatable(L, MS_STREAM_TYPE);
  s->reactor = ms_reactor_ref(r);
  ms_waitable_init(r, &s->wait);
  update_interest(s);
  return s;
}

ms_stream *ms_stream_new_socket(lua_State *L, ms_reactor *r, int fd) {
  ms_stream *s = ms_stream_new(L, r, fd, true, 0, true);
  s->socket = s->duplex = true;
  s->mode = MS_READ;
  ms_stream_serve(s);
  return s;
}

/* What a descriptor of the host's refers to, opened anew: O_NONBLOCK on the old one would be one
 * for everybody who has it. A socket cannot be, and is never set to anything. */
static int open_input(int fd, bool *socket) {
  struct stat about;
  char path[32];
  if (fstat(fd, &about) < 0)
    return -errno;
  *socket = S_ISSOCK(about.st_mode);
  if (!*socket && !S_ISFIFO(about.st_mode) && !isatty(fd))
    return -EPERM; /* never not ready, which epoll does not take */
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int opened = *socket ? fcntl(fd, F_DUPFD_CLOEXEC, 3)
                       : open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  return opened < 0 ? -errno : opened;
}

/* core.input(reactor, fd): a stream of what comes from a pipe, a terminal or a socket of the
 * host's; or nil, errno, where there is nothing to wait for, as with a file. */
static int core_input(lua_State *L) {
  ms_reactor *r = ms_reactor_check(L, 1);
  bool socket = false;
  int fd = open_input((int)luaL_checkinteger(L, 2), &socket);
  if (fd < 0) {
    lua_pushnil(L);
    lua_pushinteger(L, -fd);
    return 2;
  }
  ms_stream *s = ms_stream_new(L, r, fd, true, 0, true);
  s->socket = socket;
  s->mode = MS_READ;
  return 1;
}

void ms_stream_open(lua_State *L) {
  lua_pushcfunction(L, core_input);
  lua_setfield(L, -2, "input"); /* core.input = core_input */
  ms_newtype(L, MS_STREAM_TYPE, methods, metamethods);
}
