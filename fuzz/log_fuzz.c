/* links: src/agent/log.c src/wire.c */
/* The logs of background programs against a model: bytes are written, read by any number of views
 * from any offset, slowly or not at all, and each view must have got every byte of the program's
 * stream once, but for the gaps that it was told of. The first byte chooses the log, the others
 * what is done. */
#include "agent/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition))                                                                              \
      abort();                                                                                     \
  } while (0)

enum { VIEWS = 4, STREAMS = 2 };

/* What one view has got of one stream. */
typedef struct reader {
  int fd; /* -1: none */
  uint64_t at;
  uint64_t gap_at, gap_length; /* told, and not yet come to; length 0: none */
} reader;

struct ms_client {
  bool busy;
  reader readers[VIEWS][STREAMS];
  bool told[VIEWS];
};

static struct ms_client client;

/* The byte at an offset of a stream. */
static char byte_at(int stream, uint64_t at) {
  return (char)(at * 31 + (at >> 8) * 7 + (uint64_t)stream);
}

bool ms_client_busy(const ms_client *c) {
  return c->busy;
}

static void drain(reader *r, int stream) {
  char text[8192];
  ssize_t count;
  while (r->fd >= 0 && (count = read(r->fd, text, sizeof text)) != 0) {
    if (count < 0) {
      MUST(errno == EAGAIN);
      return;
    }
    for (ssize_t i = 0; i < count; i++) {
      if (r->gap_length > 0 && r->at == r->gap_at) {
        r->at += r->gap_length;
        r->gap_length = 0;
      }
      MUST(text[i] == byte_at(stream, r->at));
      r->at++;
    }
  }
  if (r->fd >= 0)
    close(r->fd);
  r->fd = -1;
}

/* Gaps are told before what is behind them is written, so what is in the pipe now is in front. */
void ms_client_send(ms_client *c, uint16_t type, uint32_t id, const ms_writer *body, int fd) {
  ms_reader text = {.data = body->data, .length = body->length};
  MUST(fd < 0 && id < VIEWS && !c->busy);
  if (type == MS_EXITED) {
    MUST(!c->told[id]);
    c->told[id] = true;
    return;
  }
  MUST(type == MS_GAP);
  uint32_t stream = ms_get_u32(&text);
  uint64_t at = ms_get_u64(&text), length = ms_get_u64(&text);
  MUST(ms_get_end(&text) && stream < STREAMS && length > 0);
  reader *r = &c->readers[id][stream];
  drain(r, (int)stream);
  if (r->gap_length > 0 && r->at == r->gap_at) {
    r->at += r->gap_length;
    r->gap_length = 0;
  }
  MUST(at == r->at);
  r->gap_at = at;
  r->gap_length = length;
}

static void view(ms_log *log, uint32_t id, uint64_t since, bool once) {
  int ours[STREAMS], files[STREAMS];
  uint64_t from[STREAMS];
  for (int i = 0; i < STREAMS; i++) {
    int ends[2];
    uint64_t total = ms_log_total(log, i);
    MUST(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
    ours[i] = ends[0];
    files[i] = ends[1];
    from[i] = total ? since % (total + 1) : 0;
    client.readers[id][i] = (reader){.fd = ours[i], .at = from[i]};
  }
  client.told[id] = once;
  MUST(ms_log_view(log, &client, id, files, from, once) == 0);
  ms_log_give(log);
}

static void serve(void) {
  struct pollfd events[1 + STREAMS * (VIEWS + 1)];
  events[0].revents = 0;
  size_t count = ms_log_files();
  MUST(count <= STREAMS * (VIEWS + 1));
  ms_log_watch(events, 1);
  events[0].fd = -1;
  MUST(poll(events, 1 + count, 0) >= 0);
  ms_log_serve(events);
}

static void leave(uint32_t id) {
  ms_log_leave(&client, id);
  for (int i = 0; i < STREAMS; i++)
    if (client.readers[id][i].fd >= 0)
      close(client.readers[id][i].fd);
  client.readers[id][0].fd = client.readers[id][1].fd = -1;
}

static void put(int fd, int stream, uint64_t *written, size_t count) {
  char text[4096];
  for (size_t i = 0; i < count; i++)
    text[i] = byte_at(stream, *written + i);
  ssize_t done = write(fd, text, count);
  *written += done > 0 ? (uint64_t)done : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  if (size < 2)
    return 0;
  uint64_t written[STREAMS] = {0};
  int program[STREAMS];
  client = (struct ms_client){0};
  for (uint32_t id = 0; id < VIEWS; id++)
    client.readers[id][0].fd = client.readers[id][1].fd = -1;
  ms_log *log = ms_log_new((uint64_t)(bytes[0] >> 1) * (bytes[1] + 1u) + 1, bytes[0] & 1);
  MUST(log);
  for (int i = 0; i < STREAMS; i++) {
    program[i] = ms_log_pipe(log, i);
    MUST(program[i] >= 0 && fcntl(program[i], F_SETFL, O_NONBLOCK) == 0);
  }
  for (size_t at = 2; at + 1 < size; at += 2) {
    uint8_t what = bytes[at], how = bytes[at + 1];
    uint32_t id = what >> 6;
    int stream = (what >> 5) & 1;
    switch (what & 7) {
    case 0:
    case 1:
      put(program[stream], stream, &written[stream], (size_t)how * 16 + 1);
      break;
    case 2:
      serve();
      break;
    case 3:
      leave(id);
      view(log, id, (uint64_t)how * 977, what & 8);
      break;
    case 4:
      drain(&client.readers[id][stream], stream);
      break;
    case 5:
      leave(id);
      break;
    case 6:
      client.busy = how & 1;
      break;
    default:
      for (int i = 0; i < 30; i++) {
        put(program[stream], stream, &written[stream], 4096);
        serve();
      }
    }
  }
  client.busy = false;
  ms_log_end(log);
  ms_log_tell_end(log, MS_EXITED, &(ms_writer){0});
  for (int i = 0; i < STREAMS; i++) {
    close(program[i]);
    MUST(ms_log_total(log, i) == written[i]);
  }
  int open = 1;
  for (int round = 0; round < 1000 && open > 0; round++) {
    serve();
    open = 0;
    for (uint32_t id = 0; id < VIEWS; id++)
      for (int i = 0; i < STREAMS; i++) {
        drain(&client.readers[id][i], i);
        open += client.readers[id][i].fd >= 0;
      }
  }
  MUST(open == 0); /* every pipe has come to its end */
  ms_log_free(log);
  MUST(ms_log_files() == 0);
  return 0;
}
