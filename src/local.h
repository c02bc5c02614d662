/* The host's side of local sandboxes: the zygote (launch.c), the sandboxes that it made
 * (sandbox.c) and their programs (process.c).
 *
 * Each object is a userdata with a waitable; Lua keeps a process's sandbox and streams alive
 * through its user value. In C they find each other through lists that every finalizer leaves,
 * because finalizers run in any order.
 *
 * What an agent says is hostile: it may be cut, invented, repeated or endless. The first message
 * that cannot be right ends the sandbox. */
#ifndef MS_LOCAL_H
#define MS_LOCAL_H

#include "cgroup.h"
#include "reactor.h"
#include "stream.h"
#include "wire.h"

#define MS_ZYGOTE_TYPE "moonsand.zygote"
#define MS_SANDBOX_TYPE "moonsand.sandbox"
#define MS_PROCESS_TYPE "moonsand.process"

typedef struct ms_zygote ms_zygote;
typedef struct ms_sandbox ms_sandbox;
typedef struct ms_process ms_process;

typedef enum ms_sandbox_state {
  MS_SANDBOX_STARTING,
  MS_SANDBOX_READY,
  MS_SANDBOX_FAILED, /* never became one: `error` and `stage` say why */
  MS_SANDBOX_GONE,   /* ended by itself: killed from outside, out of memory, … */
  MS_SANDBOX_BROKEN, /* said what cannot be; we ended it */
  MS_SANDBOX_CLOSED, /* ended by us */
} ms_sandbox_state;

/* An MS_CALL under way, or answered and not yet fetched. */
typedef struct ms_pending {
  struct ms_pending *next;
  uint32_t id;
  bool answered;
  bool abandoned; /* nobody will fetch it */
  int error;      /* errno; 0: success */
  int fd;         /* owned; -1: none */
  size_t length;
  char *body; /* owned */
} ms_pending;

struct ms_sandbox {
  ms_waitable wait;
  ms_reactor *reactor;
  ms_sandbox *next;  /* in the zygote's list, while starting */
  ms_zygote *zygote; /* NULL once CREATED came */
  uint32_t create_id;
  ms_sandbox_state state;
  bool created, ready; /* the two halves of a start */
  bool shared;         /* it lives without us: our end is not its end */
  bool dead;           /* the kernel says so: nothing in it runs any more */
  int child;           /* of the zygote: the agent, or its bwrap */
  int pid, error;
  char stage[200];
  int socket, pidfd, root; /* owned; -1: none */
  /* Of one below bwrap, owned, -1: none. What bwrap complains of; and, once it is there, the pidfd
   * of the agent itself, where `pidfd` is bwrap's until it is ready. */
  int complaints, self;
  ms_source socket_source, pidfd_source;
  ms_outbox outbox;
  uint32_t last_id; /* of an exec or a call */
  ms_process *processes;
  ms_pending *pending;
  size_t pending_count;
  ms_cgroup *groups[MS_CGROUPS_MAX]; /* references */
  size_t group_count;
};

typedef enum ms_process_state {
  MS_PROCESS_STARTING,
  MS_PROCESS_RUNNING,
  MS_PROCESS_REFUSED, /* never ran: `error` and `what` say why */
  MS_PROCESS_EXITED,
  MS_PROCESS_LOST, /* its sandbox ended first */
} ms_process_state;

/* Bytes that a background program's log lost before they could be given to us. */
typedef struct ms_gap {
  uint64_t at, length; /* offsets in the stream of the program */
} ms_gap;
enum { MS_GAPS_MAX = 1024 };

/* One stream of a program that is looked at. */
typedef struct ms_view {
  uint64_t since;
  ms_gap *gaps; /* owned; in order */
  size_t count;
  bool blurred; /* there were more: offsets behind them are not known */
} ms_view;

struct ms_process {
  ms_waitable wait;
  ms_sandbox *sandbox; /* NULL once over, or the sandbox is finalized */
  ms_reactor *reactor;
  ms_process *next;
  uint32_t id;
  ms_process_state state;
  int pid, error;
  char what[32];
  ms_exit exit;
  bool awaited;    /* its start is news */
  bool quiet;      /* its start is not told at all */
  bool background; /* it belongs to its sandbox; we look at its log */
  uint64_t number; /* and this is what it is called there */
  ms_view views[2];
  bool pipes_held;      /* somebody still holds the other end of its output */
  ms_stream *out, *err; /* kept alive by the user value; NULL: none */
  ms_stream *terminal;  /* its input, if it has one; the same */
};

/* Messages are received into the reactor's scratch memory, too large for a stack. What is in one
 * must be taken out before a stream is touched, which may use the same memory. */
_Static_assert(sizeof(ms_message) <= MS_SCRATCH_SIZE, "a message fits the scratch memory");
static inline ms_message *ms_reactor_message(ms_reactor *r) {
  return (ms_message *)(void *)ms_reactor_scratch(r);
}

/* A word of an agent's, which may go to somebody's terminal. */
static inline void ms_copy_word(char *to, size_t size, const char *from) {
  size_t i = 0;
  for (; from[i] && i + 1 < size; i++)
    to[i] = from[i] >= ' ' && from[i] <= '~' ? from[i] : '?';
  to[i] = '\0';
}

/* sandbox.c */
/* Pushes a sandbox that the zygote is about to make; takes over our end of its socket. One below
 * bwrap is given `complaints` then. */
ms_sandbox *ms_sandbox_new(lua_State *L, ms_reactor *r, int socket);
/* What the zygote says of it: made (takes pidfd over), or failed. */
void ms_sandbox_created(ms_sandbox *s, int pid, int pidfd);
void ms_sandbox_failed(ms_sandbox *s, int error, const char *stage);
/* Sends to the agent; takes the files over. 0 or a negative errno. */
int ms_sandbox_send(ms_sandbox *s, ms_header header, const ms_writer *body, const int *fds,
                    size_t fd_count);
/* Takes in what the agent has said by now. */
void ms_sandbox_hear(ms_sandbox *s);
/* nil, errno, name-of-state for a sandbox that cannot be asked anything. Number of results. */
int ms_sandbox_push_unusable(lua_State *L, const ms_sandbox *s);

/* process.c: `sandbox:spawn(argv, options)`, `sandbox:attach(number, options)` */
int ms_process_spawn(lua_State *L);
int ms_process_attach(lua_State *L);
/* False when the message cannot be right. */
bool ms_process_message(ms_sandbox *s, const ms_header *header, ms_reader *body);
void ms_process_lost(ms_process *p);

/* launch.c */
/* Starts the helper program with nothing of ours but argv; `theirs` (taken over) is its file 3, a
 * pidfd of ours its file 4. 0 or a positive errno. */
int ms_helper_start(const char *path, char *const *argv, int theirs, pid_t *pid);
/* The same for one that leaves a child behind and ends at once: it is waited for. SIGCHLD waits
 * meanwhile, as when a zygote is ended. */
int ms_helper_run(const char *path, char *const *argv, int theirs);
void ms_zygote_forget(ms_zygote *z, ms_sandbox *s);

#endif
