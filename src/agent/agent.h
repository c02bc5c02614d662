/* The agent: one small static program. Started once per host process as the *zygote*; each fork of
 * it into new namespaces goes on as the *agent* of one sandbox, pid 1 inside.
 *
 *   main.c     the zygote: its socket, forking sandboxes, dying with the host
 *   setup.c    what a fresh fork does to become a sandbox: mounts, limits, privileges
 *   bwrap.c    the same where only bwrap may make namespaces: what is left to it, and looked at
 * after root.c     the root file system inside image.c    the same out of another root file system
 *   mounts.c   what is mounted there of the host's
 *   filter.c   the system call filter
 *   setid.c    another, for those that write into directories of the host
 *   loop.c     the agent's life: requests in, exits out, timers
 *   clients.c  who it serves: its host; after a detach, whoever of the same user connects
 *   life.c     until when
 *   keeper.c   another life of the program: removes the control groups that a host leaves behind
 *   exec.c     programs: what was started, how it ends, ending all of it
 *   spawn.c    starting one process
 *   tags.c     which process belongs to which exec
 *   log.c      what background programs write, for whoever looks
 *   files.c    the file calls, answered at once
 *   net.c      sockets on the sandbox's loopback, for the host
 *   paths.c    how both find files: absolute paths, no magic links, names in directories held open
 *   worker.c   the file calls that walk trees: a fork of the agent, output on a pipe; worker_*.c
 *              are the programs, glob.c matches names
 *   ps.c       what runs and what it uses, out of /proc; signals to it
 *
 * The agent has no secrets but one: the number that lets its own prlimit calls through the filter.
 * It trusts the host, and nothing else in the sandbox. */
#ifndef MS_AGENT_H
#define MS_AGENT_H

#include "../wire.h"

#include <stdint.h>
#include <sys/types.h>

/* The one user inside. Never 0, inside or outside. */
#define MS_UID 1000
#define MS_GID 1000
#define MS_USER "sandbox"
/* The first word of an agent that bwrap starts. */
#define MS_INSIDE "inside"
#define MS_HOME "/workspace"

/* The host drops to this uid and gid when it is root. */
#define MS_UNPRIVILEGED 65534

#define MS_ALLOW_MAX 16
/* MS_CREATE's body, in this order. Sizes are bytes. */
typedef struct ms_config {
  const char *version; /* MS_VERSION: host and agent must be of one build */
  uint64_t disk, inodes;
  const char *hostname;
  uint32_t allow_count; /* then as many strings: system calls to allow again */
  const char *allow[MS_ALLOW_MAX];
  uint32_t joins;    /* 1: an MS_JOIN follows on the agent's own socket */
  uint32_t mounts;   /* then so many MS_MOUNTs */
  const char *bwrap; /* with MS_CREATE_BWRAP: where it is */
} ms_config;

/* Limits of one exec, as rlimits of each of its processes. MS_UNLIMITED leaves one alone. */
#define MS_UNLIMITED UINT64_MAX
typedef struct ms_limits {
  uint64_t memory, cpu_time, open_files, file_size, processes;
} ms_limits;

#define MS_EXEC_WORKER 1u /* argv is for worker_main, not for execve */
#define MS_EXEC_LEAVE 2u  /* let what the first process leaves behind live */
#define MS_EXEC_STDIN 4u  /* a file follows for each of these; without it: /dev/null */
#define MS_EXEC_STDOUT 8u
#define MS_EXEC_STDERR 16u
#define MS_EXEC_MERGE 32u /* stderr goes where stdout goes */
#define MS_EXEC_QUIET 64u /* no MS_STARTED: the end is all that matters */
#define MS_EXEC_PTY 128u  /* the one file that follows is a terminal, for all three */
/* It belongs to the sandbox, not to who started it. What it writes goes to a log; the files that
 * follow for its output are a view of that (MS_ATTACH). */
#define MS_EXEC_BACKGROUND 256u
#define MS_EXEC_HEAD 512u /* the log keeps the first bytes, not the last */

/* MS_EXEC's body, in this order. */
typedef struct ms_exec {
  uint32_t flags;
  uint32_t umask;
  uint64_t timeout_ns, grace_ns; /* timeout 0: none */
  ms_limits limits;
  const char *cwd;
  uint64_t log_size; /* of each stream; with MS_EXEC_BACKGROUND */
  uint32_t argc;     /* then as many strings */
  uint32_t envc;     /* then as many strings, NAME=value */
} ms_exec;

/* setup.c: the life of a fork in new namespaces. Sets itself up, waits for the MS_CREATE that makes
 * it somebody's, and goes on as the agent. What `flags` says is wanted of it (as of MS_CREATE) is
 * made only when it is told: a spare is made with none. `message` is memory to receive into. */
_Noreturn void ms_sandbox_main(int zygote_socket, int host_pidfd, uid_t uid, gid_t gid,
                               uint16_t flags, ms_message *message);
/* bwrap.c: the same for a fork in no namespaces: it waits, and becomes the bwrap that starts an
 * agent; which is the other one, told what namespaces the host is in. */
_Noreturn void ms_bwrap_main(int zygote_socket, int host_pidfd, uint16_t flags,
                             ms_message *message);
_Noreturn void ms_bwrapped_main(char **host_namespaces, ms_message *message);
/* setup.c: the life of a fork in a new user namespace: shows `shown` as who runs the sandboxes, and
 * sends the namespace. */
_Noreturn void ms_idmap_main(int socket, uid_t shown, gid_t shown_gid, uid_t uid, gid_t gid);

/* setup.c, for both. Waits for the MS_CREATE: the host's socket. */
int ms_await_create(int socket, int host_pidfd, ms_message *message);
/* 0, or a negative errno and what is wrong with it. */
int ms_config_read(ms_reader *body, ms_config *config, const char **stage);
/* Goes into the groups of an MS_JOIN, if the config says that one comes. `apart`: they are made the
 * root of all groups, which takes a capability. `flags`: what the message says. */
int ms_join_groups(const ms_config *config, int socket, int host_pidfd, bool apart, uint32_t *flags,
                   const char **stage);
struct ms_mounts;
/* The last steps, which need no privilege: makes itself unreachable, and installs the filters. */
int ms_shut(const ms_config *config, uint16_t flags, const struct ms_mounts *mounts,
            uint64_t *secret, const char **stage);
/* Tells the host that there is no sandbox, and why. */
_Noreturn void ms_give_up(int host, int error, const char *stage);

/* setup.c: the next message of the host, before the agent is ready. 0 or a negative errno. */
int ms_setup_receive(int socket, int host_pidfd, ms_message *message);

/* loop.c: serves until the host is gone, or the sandbox's time is over. */
_Noreturn void ms_agent_loop(int socket, int host_pidfd, uint64_t secret, ms_message *message);

/* clients.c */
typedef struct ms_client ms_client;
/* Sends, or queues when the socket is full. Takes ownership of fd (-1: none). 0, or -ETOOMANYREFS
 * when the kernel carries no more files now and nothing was sent. */
int ms_client_send(ms_client *c, uint16_t type, uint32_t id, const ms_writer *body, int fd);
/* Messages wait in its queue: nothing that has to come after them may be done now. */
bool ms_client_busy(const ms_client *c);

/* loop.c: does what one message says. */
void ms_agent_handle(ms_client *from, ms_message *request);

/* exec.c. An id is the client's own. */
/* Starts what an MS_EXEC says. Answers MS_STARTED, when the request's files are closed here, or
 * MS_REFUSED. */
void ms_exec_start(ms_client *c, ms_message *request);
/* Does what an MS_ATTACH says; `fds` stay the caller's. Answers the same. */
void ms_exec_attach(ms_client *c, uint32_t id, ms_reader *body, const int *fds, size_t fd_count);
void ms_exec_signal(const ms_client *c, uint32_t id, uint32_t signal, uint32_t target,
                    uint32_t reason);
/* MS_CALL_PROGRAMS. */
void ms_exec_list(uint64_t after, ms_writer *reply);
/* A client is no more: what it started ends, but for what runs in the background. */
void ms_exec_leave(ms_client *c);
/* The same, of all. */
void ms_exec_end_foreground(void);
/* Reaps, fires what is due, reports what is over. Call after SIGCHLD and when a timer is due. */
void ms_exec_step(void);
/* When ms_exec_step has to be called next at the latest (ms_clock_ns); UINT64_MAX: no need. */
uint64_t ms_exec_deadline(void);

/* files.c: answers MS_CALL. Returns 0 or a negative errno; `reply` has room for MS_WIRE_MAX / 2.
 * `file` (-1: none) holds what came along with the call, and afterwards what goes to the host: a
 * regular file. Both are the caller's to close. */
int ms_files_call(ms_reader *body, ms_writer *reply, int *file);

/* net.c: keeps a sandbox in the host's network from abstract unix sockets that are not its own. 0,
 * or -1 and errno where the kernel cannot. */
int ms_net_scope(void);
/* MS_CALL_CONNECT and MS_CALL_LISTEN. 0 or a negative errno; `file` then is a socket. */
int ms_net_call(uint32_t op, uint32_t flags, uint64_t port, ms_writer *reply, int *file);

/* keeper.c: argv is a prefix of names. Returns the exit status at once; what has
 * to be done is done by a child that nobody has to wait for. */
int ms_keeper_main(int argc, char **argv);

/* worker.c: the built-in programs, run in a fork of the agent with its own stdio; returns the exit
 * status. argv[0] is the name. */
int ms_worker_main(int argc, char **argv);

uint64_t ms_clock_ns(void);

#endif
