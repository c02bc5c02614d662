/* One end of a pipe or socket, or a terminal. */
#ifndef MS_STREAM_H
#define MS_STREAM_H

#include "buffer.h"
#include "reactor.h"

#define MS_STREAM_TYPE "moonsand.stream"

/* What is done with bytes that arrive. */
typedef enum ms_stream_mode {
  MS_COLLECT, /* kept in the excerpt, read on for ever: nobody has touched the stream */
  MS_READ,    /* read ahead up to the high-water mark, for a reader */
  MS_TEE,     /* both: what the reader takes is kept in the excerpt too */
} ms_stream_mode;

typedef struct ms_stream {
  ms_waitable wait;
  ms_source source;
  ms_reactor *reactor;
  int fd; /* owned; -1 once closed, or at the end of what can be read */
  ms_stream_mode mode;

  ms_buffer in;       /* read, not yet taken */
  size_t want;        /* read ahead up to so much */
  size_t scanned;     /* of `in`: bytes known to hold no newline */
  ms_excerpt excerpt; /* the result so far */
  bool peeked;        /* somebody looks at it without reading: news all the same */
  bool overflowed;    /* the excerpt lost bytes, and that was told */
  bool tells_end;     /* its end is news also while nobody reads */
  uint64_t received;
  uint64_t taken;      /* by readers */
  uint64_t dropped;    /* bytes that the excerpt lost before a reader came */
  uint64_t dropped_at; /* of what readers take: where */
  uint64_t missing;    /* bytes that were lost before they came here */
  size_t missing_at;   /* of what came: where the first were */
  int full_reads;      /* in a row that found the pipe full */
  bool idle;           /* not served yet */
  bool reading;        /* this end can be read */
  bool socket;         /* others may read it too, in blocking mode */
  bool duplex;         /* and it is written: each direction has an end of its own */
  bool shut;           /* nothing more is written */
  bool eof;
  int error; /* errno of a failed read */

  ms_buffer out;    /* given to `feed`, not yet written */
  bool wants_write; /* Lua waits for room */
  bool feeding;     /* close once `out` is empty */
  bool broken;      /* nobody reads the other end */
  bool terminal;    /* input of one: it ends by a character typed, not by being closed */
  bool hangs_up;    /* output of one: closing it hangs up on who is still there */
  bool midline;     /* what was typed last did not end a line */
} ms_stream;

/* Takes fd over, also when it fails (with a Lua error). Pushes the userdata. An idle stream is left
 * alone until it is served. */
ms_stream *ms_stream_new(lua_State *L, ms_reactor *r, int fd, bool reading, size_t limit,
                         bool idle);
void ms_stream_serve(ms_stream *s);
/* Reads all there is now, without waiting; at most about a pipe's worth. Wakes nobody. */
void ms_stream_drain(ms_stream *s);
void ms_stream_close(ms_stream *s);
/* How far its readers have come, in bytes that came. */
uint64_t ms_stream_taken(const ms_stream *s);
/* A stream over a connected socket (or one about to be), to read and to write; takes fd over. */
ms_stream *ms_stream_new_socket(lua_State *L, ms_reactor *r, int fd);
/* Gives the descriptor away (-1: it had none); what was read ahead stays in `in`. */
int ms_stream_detach(ms_stream *s);
void ms_stream_open(lua_State *L);

#endif
