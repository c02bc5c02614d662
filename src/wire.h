/* The messages between the host, the zygote and the agents. One message is one datagram on a
 * SOCK_SEQPACKET pair, in the machine's own byte order: both ends run the same build on the same
 * machine. A message is a fixed header and a body of integers and strings, written and read in the
 * order that the comments below give. The reader never trusts a length: the host reads what an
 * agent says with it, and an agent may be lying.
 *
 * This file and wire.c are shared by the Lua module and the agent; they know neither. */
#ifndef MS_WIRE_H
#define MS_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A datagram of more does not fit a default socket buffer with room to spare; longer bodies
 * travel in a memfd (MS_IN_FILE). */
#define MS_WIRE_MAX ((size_t)64 * 1024)
#define MS_WIRE_MAX_FDS 4

typedef enum ms_type {
  /* host -> zygote. Body: see ms_config in agent/agent.h. Files: the agent's end of its socket;
   * with MS_CREATE_BWRAP, where bwrap is to say what is wrong. */
  MS_CREATE = 1,
  /* zygote -> host. i32 errno, i32 pid, str stage. File: a pidfd. */
  MS_CREATED,

  /* agent -> host, first message. File: "/" (O_PATH). */
  MS_READY,
  /* agent -> host, last message: the sandbox cannot be made. i32 errno, str stage. */
  MS_FAILED,

  /* host -> agent. Body: see ms_exec in agent/agent.h. Files: the child's pipe ends, in order. */
  MS_EXEC,
  /* agent -> host. i32 pid; of what runs in the background also u64 number, for MS_ATTACH. */
  MS_STARTED,
  /* agent -> host: it never ran. i32 errno, str what ("program", "cwd", …). */
  MS_REFUSED,
  /* agent -> host: over, and its tree is gone. Body: ms_exit. */
  MS_EXITED,
  /* host -> agent: u32 signal, u32 ms_target, u32 ms_reason. The id is the exec's. */
  MS_SIGNAL,

  /* host -> agent: u32 ms_call, u32 flags, u32 mode, u64 a, u64 b, str path, str path2. Perhaps a
   * file. */
  MS_CALL,
  /* agent -> host: i32 errno, then what the call gives. Perhaps a file. */
  MS_RETURN,

  /* host -> zygote: u32 uid, u32 gid. File: a socket, which is answered with a user namespace that
   * shows these as the sandboxes' one user, or with an i32 errno. */
  MS_IDMAP,
  /* host -> zygote: i32 pid, which is not to end with the host. zygote -> host: the same, done. */
  MS_RELEASE,
  /* host -> agent, before MS_READY, as many as MS_CREATE said: u32 flags, str source, str target.
   * File: the source (O_PATH), or a detached tree. */
  MS_MOUNT,
  /* host -> agent, before those, if MS_CREATE said so: u32 flags. Files: the cgroup.procs of the
   * control groups that it goes into. */
  MS_JOIN,

  /* host -> agent: to see what a background program writes. u64 number, u64 since[2] (offsets in
   * its stdout and stderr), u32 once (only what is there now, and no MS_EXITED). Files: two pipes,
   * for the two streams. Answered like an exec, by MS_STARTED or MS_REFUSED, and MS_EXITED in the
   * end; then its streams may still be on their way, to the end of their pipes. MS_SIGNAL works. */
  MS_ATTACH,
  /* host -> agent: the end of that, or of a background exec's being looked at. No body. */
  MS_LEAVE,
  /* agent -> host: u32 stream, u64 at, u64 length: so many bytes were lost at this offset; those
   * that come through the pipe after this was sent are from behind it. */
  MS_GAP,
  /* agent -> host, before MS_READY, from below bwrap: who it is. File: a pidfd of its own. */
  MS_SELF,
} ms_type;

#define MS_CREATE_MOUNTS 2u       /* header flag of MS_CREATE: needs sight of the host's mounts */
#define MS_CREATE_HOST_NETWORK 4u /* and: no network namespace of its own */
#define MS_CREATE_BWRAP 8u        /* and: its namespaces are made by bwrap */

#define MS_JOIN_MEMORY 1u /* a group bounds memory: the agent should be the last to be killed */

#define MS_MOUNT_READ_ONLY 1u
#define MS_MOUNT_COPY 2u     /* what is written goes to a copy */
#define MS_MOUNT_DETACHED 4u /* cloned by the host already */
#define MS_MOUNT_DIRECTORY 8u
#define MS_MOUNT_ROOT 16u /* it is to be "/"; with MS_MOUNT_COPY it can be written */

/* host -> keeper (agent/keeper.c): one of these, and a path, are a message. */
#define MS_KEEPER_LOOK 'l'   /* a directory in which groups are made */
#define MS_KEEPER_REMOVE 'r' /* a group that nothing should run in any more */

#define MS_IN_FILE 1u /* header flag: the body is in the last file passed along, a memfd */
#define MS_LONG_MAX ((size_t)8 * 1024 * 1024) /* such a body's most */

typedef enum ms_target { MS_TARGET_FIRST, MS_TARGET_TREE } ms_target;

/* Why the host or the agent's own timer ended a program. */
typedef enum ms_reason {
  MS_REASON_NONE,
  MS_REASON_TIMEOUT,
  MS_REASON_CANCEL,
  MS_REASON_OUTPUT,
  MS_REASON_CLOSE,
} ms_reason;

/* What an agent does by itself, inside, at once. Anything that may take long (walking trees) is a
 * worker: an exec with MS_EXEC_WORKER, its output a pipe like any program's. Paths are absolute, of
 * 4095 bytes at most; none is followed through a magic link of /proc. */
typedef enum ms_call {
  MS_CALL_OPEN = 1, /* flags: O_*; mode of a new file; a: 1 makes directories on the way.
                     * -> u32 ms_opened; file */
  MS_CALL_STAT,     /* flags: AT_SYMLINK_NOFOLLOW. -> ms_entry, its path empty */
  MS_CALL_MKDIR,    /* mode; a: 1 with parents, and it may be there already */
  MS_CALL_REMOVE,   /* one file, link or empty directory */
  MS_CALL_MOVE,     /* path -> path2, as rename does: replaces a file or an empty directory */
  MS_CALL_CHMOD,    /* mode */
  MS_CALL_CHOWN,    /* a: uid, b: gid; (u64)-1 leaves one alone */
  MS_CALL_CREATE,   /* a file to be put in the place of another: mode of a new file; a: 1 makes
                     * directories on the way; b: 1 gives the mode also to a file that replaces
                     * one; flags: MS_CREATE_NAMELESS if the host can give the file back.
                     * -> u32 ms_opened, str temporary path ("": the file has no name), str final
                     * path; file to write. Then MS_CALL_COMMIT; or MS_CALL_REMOVE of the temporary
                     * path, if there is one. */
  MS_CALL_COMMIT,   /* path: temporary, path2: final, both from MS_CALL_CREATE; the file comes along
                     * if it has no name */
  MS_CALL_SIGNAL,   /* a: pid, b: when it began, flags: the signal, mode: 1 for all below it too;
                     * path "/". -> u64 when it began. Times in ticks, as of ms_proc; 0: whichever
                     * has the pid now */
  MS_CALL_SAMPLE,   /* a: pid, b: when it began; path "/". -> ms_proc */
  MS_CALL_USAGE,    /* path "/". -> as in agent/ps.h */
  MS_CALL_CONNECT, /* a: port on the sandbox's loopback; flags: MS_NET_IPV6. -> socket, connected or
                    * about to be */
  MS_CALL_LISTEN,  /* the same, 0: any port. -> u32 port; listening socket */
  MS_CALL_PROGRAMS, /* a: only those with greater numbers; path "/". -> u32 count, ms_program each;
                     * u32 1: there are more */
  MS_CALL_DETACH, /* lives on without its host. a: milliseconds to live, 0: as before; b: ms without
                   * anybody connected, 0: any time; path "/"; file: a bound socket to listen on */
  MS_CALL_LIFE,   /* flags: which of a, milliseconds to live from now on, and b, as above, to set;
                   * 0: any time; path "/" */
  MS_CALL_LAST,
} ms_call;

#define MS_CREATE_NAMELESS 1u
#define MS_NET_IPV6 1u
#define MS_LIFE_LAST 1u
#define MS_LIFE_IDLE 2u

/* What was found where a file was to be opened. Only with MS_OPENED_FILE a file comes along, and it
 * is a regular one: reading or writing it can neither block nor have effects. A directory is the
 * error EISDIR. */
typedef enum ms_opened {
  MS_OPENED_FILE,
  MS_OPENED_VIRTUAL, /* of /proc and the like: to be read by a worker ("cat") */
  MS_OPENED_FIFO,
  MS_OPENED_SOCKET,
  MS_OPENED_DEVICE,
} ms_opened;

typedef struct ms_header {
  uint16_t type;
  uint16_t flags;
  uint32_t id;
} ms_header;

/* How a program ended. Written and read as a whole, field by field. */
typedef struct ms_exit {
  int32_t pid;
  int32_t status;  /* as from wait4 */
  uint32_t reason; /* ms_reason */
  uint64_t user_us, system_us;
  uint64_t max_rss_kib;
  uint64_t read_blocks, write_blocks; /* of 512 bytes */
  uint64_t duration_ns;
} ms_exit;

/* One program that was started, as MS_CALL_PROGRAMS tells it. */
#define MS_PROGRAM_WORDS_MAX ((size_t)2048) /* of a command line, what is told */
#define MS_LOG_MAX (UINT64_C(1) << 30)
typedef struct ms_program {
  uint64_t number; /* in the order in which they were started */
  uint32_t pid;
  uint32_t running, background; /* 0 or 1 */
  int32_t status;               /* as from wait4; of what does not run any more */
  uint64_t started_us;          /* since 1970 */
  const char *words;            /* each with a NUL behind it */
  size_t words_length;
} ms_program;

/* Writing: appends to a buffer of fixed size; once it overflows, `overflow` stays set. */
typedef struct ms_writer {
  char *data;
  size_t length, capacity;
  bool overflow;
} ms_writer;

void ms_put_u32(ms_writer *w, uint32_t value);
void ms_put_u64(ms_writer *w, uint64_t value);
void ms_put_bytes(ms_writer *w, const void *bytes, size_t length); /* u32 length, bytes */
void ms_put_str(ms_writer *w, const char *text);
void ms_put_exit(ms_writer *w, const ms_exit *e);
void ms_put_program(ms_writer *w, const ms_program *p);

/* Reading: past the end everything is 0 or "", and `bad` stays set. Strings point into the
 * message; they are followed by a NUL that the length does not count, and contain none. */
typedef struct ms_reader {
  const char *data;
  size_t length, offset;
  bool bad;
} ms_reader;

uint32_t ms_get_u32(ms_reader *r);
uint64_t ms_get_u64(ms_reader *r);
const char *ms_get_bytes(ms_reader *r, size_t *length); /* may contain NULs */
const char *ms_get_str(ms_reader *r);
void ms_get_exit(ms_reader *r, ms_exit *e);
void ms_get_program(ms_reader *r, ms_program *p);
/* True when everything was there and nothing is left. */
bool ms_get_end(const ms_reader *r);

/* A message with its files. Sends whole or not at all: 0, -EAGAIN when the socket is full,
 * or another negative errno. Never raises SIGPIPE. */
int ms_send(int socket, const ms_header *header, const void *body, size_t length, const int *fds,
            size_t fd_count);

/* Whether what ms_send says means that the other side has left. */
bool ms_has_left(int error);

/* Messages that wait for room in the socket, in order. */
typedef struct ms_parcel ms_parcel;
typedef struct ms_outbox {
  ms_parcel *first, *last;
  size_t count;
} ms_outbox;

/* Sends, or queues when the socket is full or others wait already. Takes the files over in any
 * case. 0, -ENOMEM, or what ms_send says when the message can never go. */
int ms_outbox_send(ms_outbox *box, int socket, const ms_header *header, const void *body,
                   size_t length, const int *fds, size_t fd_count);
/* Sends what waits, as far as there is room. 0, or why a message that somebody may wait for can
 * never go; that the other side has left is told where it is received from. */
int ms_outbox_flush(ms_outbox *box, int socket);
void ms_outbox_clear(ms_outbox *box);

typedef struct ms_message {
  ms_header header;
  ms_reader body;
  int fds[MS_WIRE_MAX_FDS]; /* owned by the caller, close-on-exec; -1: none */
  size_t fd_count;
  bool fds_lost; /* this process has no room for the files that came along: they are closed */
  char buffer[MS_WIRE_MAX + 1];
} ms_message;

/* 1: a message; 0: the peer is gone; -EAGAIN; -EPROTO: cut, too long, too many files (all closed).
 * Never more than one datagram; what it brought is the caller's to close. */
int ms_receive(int socket, ms_message *message);
void ms_close_fds(ms_message *message);

#endif
