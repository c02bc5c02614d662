/* A log is a ring of the last bytes, and in front of it, where the first are to be kept, a plain
 * piece of memory; the ring is small then, and only there for those who follow. All positions are
 * offsets in the stream of the program, from its first byte on.
 *
 * A view is somebody's place in a log. It is given bytes through a pipe of its own, as fast as that
 * takes them, and never holds up the program, the agent or other views: who falls behind so far
 * that the log has lost what comes next is told how much is missing (MS_GAP), before the bytes
 * behind it. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STREAMS = 2 };
enum { WINDOW = 64 * 1024 };        /* of a log that keeps the first bytes, for who follows */
enum { READ_MOST = 128 * 1024 };    /* at once, but never more than half a ring */
enum { READ_BURST = 1024 * 1024 };  /* of one stream, before others have their turn */
enum { WRITE_BURST = 1024 * 1024 }; /* to one pipe, the same */
enum { PIPE_MOST = 2 * 1024 * 1024 };

typedef struct log_stream {
  int fd;         /* owned: our end of the program's pipe; -1: nothing more comes */
  uint64_t total; /* bytes that came */
  size_t slot;    /* in the loop's list; 0: not there */
} log_stream;

struct ms_log {
  ms_log *next;
  log_stream streams[STREAMS];
  size_t head, ring; /* their sizes, of each stream */
  char *memory;      /* owned: heads and rings, mapped, so that only what is used costs */
};

typedef struct view {
  struct view *next;
  ms_log *log;
  ms_client *client;
  uint32_t id;
  int fds[STREAMS];        /* owned; -1: given to its end, or nobody reads it */
  uint64_t at[STREAMS];    /* what was given so far */
  uint64_t until[STREAMS]; /* UINT64_MAX: all that ever comes */
  size_t slots[STREAMS];   /* as above */
  bool pending[STREAMS];   /* its pipe is full */
  bool once;               /* what the log holds now: not the window behind the first bytes */
  bool told;               /* how it ended, or that is not wanted: nothing is left but bytes */
} view;

static ms_log *logs;
static view *views;

/* Memory -------------------------------------------------------------------------------------- */

static size_t log_size(const ms_log *log) {
  return STREAMS * (log->head + log->ring);
}

static char *head_of(const ms_log *log, int stream) {
  return log->memory + (size_t)stream * (log->head + log->ring);
}

static char *ring_of(const ms_log *log, int stream) {
  return head_of(log, stream) + log->head;
}

ms_log *ms_log_new(uint64_t size, bool head) {
  if (size == 0 || size > MS_LOG_MAX)
    return NULL;
  ms_log *log = calloc(1, sizeof *log);
  if (!log)
    return NULL;
  log->head = head ? (size_t)size : 0;
  log->ring = head ? WINDOW : (size_t)size;
  log->memory = mmap(NULL, log_size(log), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (log->memory == MAP_FAILED) {
    free(log);
    return NULL;
  }
  for (int i = 0; i < STREAMS; i++)
    log->streams[i].fd = -1;
  log->next = logs;
  logs = log;
  return log;
}

static void close_stream(log_stream *s) {
  if (s->fd >= 0)
    close(s->fd);
  s->fd = -1;
}

static void free_view(view **at) {
  view *v = *at;
  *at = v->next;
  for (int i = 0; i < STREAMS; i++)
    if (v->fds[i] >= 0)
      close(v->fds[i]);
  free(v);
}

void ms_log_free(ms_log *log) {
  for (view **at = &views; *at;)
    if ((*at)->log == log)
      free_view(at);
    else
      at = &(*at)->next;
  for (ms_log **at = &logs; *at; at = &(*at)->next)
    if (*at == log) {
      *at = log->next;
      break;
    }
  for (int i = 0; i < STREAMS; i++)
    close_stream(&log->streams[i]);
  munmap(log->memory, log_size(log));
  free(log);
}

uint64_t ms_log_memory(const ms_log *log) {
  uint64_t sum = 0, most = log->head + log->ring;
  for (int i = 0; i < STREAMS; i++)
    sum += log->streams[i].total < most ? log->streams[i].total : most;
  return sum;
}

uint64_t ms_log_total(const ms_log *log, int stream) {
  return log->streams[stream].total;
}

/* The bytes that are there from `at` on, in one piece: how many. When those at `at` are lost, it is
 * moved to the next that are there. */
static size_t log_run(const ms_log *log, int stream, uint64_t *at, const char **run) {
  const uint64_t total = log->streams[stream].total;
  uint64_t kept = log->head < total ? log->head : total;
  if (*at < kept) {
    *run = head_of(log, stream) + *at;
    return (size_t)(kept - *at);
  }
  uint64_t first = total > log->ring && total - log->ring > kept ? total - log->ring : kept;
  if (*at < first)
    *at = first;
  size_t offset = (size_t)(*at % log->ring), left = (size_t)(total - *at);
  *run = ring_of(log, stream) + offset;
  return left < log->ring - offset ? left : log->ring - offset;
}

/* Where the next bytes go, in one piece. Never all of the ring: who keeps up loses nothing. */
static size_t log_room(const ms_log *log, int stream, char **run) {
  const uint64_t total = log->streams[stream].total;
  if (total < log->head) {
    *run = head_of(log, stream) + total;
    return log->head - (size_t)total;
  }
  size_t offset = (size_t)(total % log->ring), most = (log->ring + 1) / 2;
  if (most > READ_MOST)
    most = READ_MOST;
  *run = ring_of(log, stream) + offset;
  return log->ring - offset < most ? log->ring - offset : most;
}

/* Out ----------------------------------------------------------------------------------------- */

static void tell_gap(const view *v, int stream, uint64_t from, uint64_t to) {
  char text[32];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)stream);
  ms_put_u64(&body, from);
  ms_put_u64(&body, to - from);
  ms_client_send(v->client, MS_GAP, v->id, &body, -1);
}

static void close_view(view *v, int stream) {
  close(v->fds[stream]);
  v->fds[stream] = -1;
  v->pending[stream] = false;
}

/* True when all was given that there will be. */
static bool is_given(const view *v, int stream) {
  const log_stream *s = &v->log->streams[stream];
  return v->at[stream] >= v->until[stream] || (s->fd < 0 && v->at[stream] >= s->total);
}

/* The next bytes of a view, in one piece, told of the gap before them; 0: none now. */
static size_t next_run(view *v, int stream, const char **run) {
  uint64_t before = v->at[stream], at = before;
  size_t length = log_run(v->log, stream, &at, run);
  if (v->once && v->log->head > 0 && at >= v->log->head)
    at = v->until[stream];
  if (at > v->until[stream])
    at = v->until[stream];
  if (at > before) {
    tell_gap(v, stream, before, at);
    v->at[stream] = at;
  }
  uint64_t left = v->until[stream] - at;
  return left < length ? (size_t)left : length;
}

/* Gives as much as its pipe takes. */
static void give(view *v, int stream) {
  size_t given = 0;
  v->pending[stream] = false;
  while (v->fds[stream] >= 0 && given < WRITE_BURST && !ms_client_busy(v->client)) {
    const char *run;
    size_t length = next_run(v, stream, &run);
    if (length == 0) {
      if (is_given(v, stream))
        close_view(v, stream);
      return;
    }
    ssize_t written = write(v->fds[stream], run, length); /* no SIGPIPE ends a pid 1 */
    if (written > 0) {
      v->at[stream] += (uint64_t)written;
      given += (size_t)written;
    } else if (written < 0 && errno != EAGAIN && errno != EINTR) {
      close_view(v, stream);
    } else if (written == 0 || errno == EAGAIN) {
      break;
    }
  }
  v->pending[stream] = v->fds[stream] >= 0;
}

static bool is_done(const view *v) {
  return v->fds[0] < 0 && v->fds[1] < 0 && v->told;
}

void ms_log_give(const ms_log *log) {
  for (view **at = &views; *at;) {
    view *v = *at;
    for (int i = 0; i < STREAMS && v->log == log; i++)
      if (v->fds[i] >= 0)
        give(v, i);
    if (is_done(v))
      free_view(at);
    else
      at = &v->next;
  }
}

/* In ------------------------------------------------------------------------------------------ */

int ms_log_pipe(ms_log *log, int stream) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) < 0)
    return -errno;
  if (fcntl(ends[0], F_SETFL, O_NONBLOCK) < 0) {
    int error = -errno;
    close(ends[0]);
    close(ends[1]);
    return error;
  }
  log->streams[stream].fd = ends[0];
  return ends[1];
}

/* Reads what there is, at most `burst` bytes. Those who look at it get each piece before the next
 * is read. */
static void take(ms_log *log, int stream, size_t burst) {
  log_stream *s = &log->streams[stream];
  for (size_t taken = 0; s->fd >= 0 && taken < burst;) {
    char *run;
    size_t room = log_room(log, stream, &run);
    ssize_t count = read(s->fd, run, room);
    if (count > 0) {
      s->total += (uint64_t)count;
      taken += (size_t)count;
    } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
      close_stream(s);
    } else if (errno == EAGAIN) {
      return;
    }
    ms_log_give(log);
  }
}

void ms_log_end(ms_log *log) {
  for (int i = 0; i < STREAMS; i++) {
    take(log, i, PIPE_MOST);
    close_stream(&log->streams[i]);
  }
  ms_log_give(log);
}

/* Views --------------------------------------------------------------------------------------- */

int ms_log_view(ms_log *log, ms_client *client, uint32_t id, const int files[2],
                const uint64_t since[2], bool once) {
  view *v = calloc(1, sizeof *v);
  if (!v) {
    for (int i = 0; i < STREAMS; i++)
      if (files[i] >= 0)
        close(files[i]);
    return -ENOMEM;
  }
  *v = (view){.next = views, .log = log, .client = client, .id = id, .once = once, .told = once};
  views = v;
  for (int i = 0; i < STREAMS; i++) {
    v->fds[i] = files[i];
    v->at[i] = since[i];
    v->until[i] = once ? log->streams[i].total : UINT64_MAX;
    v->pending[i] = files[i] >= 0;
    struct stat st;
    if (files[i] < 0)
      continue;
    if (fstat(files[i], &st) < 0 || !S_ISFIFO(st.st_mode) ||
        fcntl(files[i], F_SETFL, O_NONBLOCK) < 0)
      close_view(v, i); /* nothing else is certain not to make us wait */
  }
  return 0;
}

bool ms_log_viewed(const ms_log *log, const ms_client *client, uint32_t id) {
  for (const view *v = views; v; v = v->next)
    if (v->log == log && v->client == client && v->id == id)
      return true;
  return false;
}

void ms_log_tell_end(ms_log *log, uint16_t type, const ms_writer *body) {
  for (view *v = views; v; v = v->next) {
    if (v->log != log || v->told)
      continue;
    ms_client_send(v->client, type, v->id, body, -1);
    v->told = true;
  }
  ms_log_give(log);
}

void ms_log_leave(const ms_client *client, uint32_t id) {
  for (view **at = &views; *at; at = &(*at)->next)
    if ((*at)->client == client && (*at)->id == id) {
      free_view(at);
      return;
    }
}

void ms_log_forget(const ms_client *client) {
  for (view **at = &views; *at;)
    if ((*at)->client == client)
      free_view(at);
    else
      at = &(*at)->next;
}

/* The loop ------------------------------------------------------------------------------------ */

size_t ms_log_files(void) {
  size_t count = 0;
  for (const ms_log *log = logs; log; log = log->next)
    count += STREAMS;
  for (const view *v = views; v; v = v->next)
    count += STREAMS;
  return count;
}

/* A view that has all there is now is watched for its reader's going away. */
void ms_log_watch(struct pollfd *events, size_t from) {
  size_t slot = from;
  for (ms_log *log = logs; log; log = log->next)
    for (int i = 0; i < STREAMS; i++, slot++) {
      log->streams[i].slot = slot;
      events[slot] = (struct pollfd){.fd = log->streams[i].fd, .events = POLLIN};
    }
  for (view *v = views; v; v = v->next)
    for (int i = 0; i < STREAMS; i++, slot++) {
      bool waits = v->pending[i] && !ms_client_busy(v->client);
      v->slots[i] = slot;
      events[slot] = (struct pollfd){.fd = v->fds[i], .events = waits ? POLLOUT : 0};
    }
}

void ms_log_serve(const struct pollfd *events) {
  for (view **at = &views; *at;) {
    view *v = *at;
    for (int i = 0; i < STREAMS; i++) {
      const short happened = v->slots[i] ? events[v->slots[i]].revents : 0;
      v->slots[i] = 0;
      if (v->fds[i] < 0 || !happened)
        continue;
      if (happened & (POLLERR | POLLNVAL))
        close_view(v, i);
      else
        give(v, i);
    }
    if (is_done(v))
      free_view(at);
    else
      at = &v->next;
  }
  for (ms_log *log = logs; log; log = log->next)
    for (int i = 0; i < STREAMS; i++) {
      log_stream *s = &log->streams[i];
      const bool there = s->slot && s->fd >= 0 && events[s->slot].revents;
      s->slot = 0;
      if (there)
        take(log, i, READ_BURST);
    }
}
