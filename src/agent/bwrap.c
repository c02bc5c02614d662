/* The second launcher, for machines that let only bwrap make user namespaces: bubblewrap makes the
 * namespaces and the root, and starts the agent as pid 1. AppArmor, which is what makes such
 * machines, leaves no capability to what bwrap starts. So all that needs one is bwrap's to do, told
 * out of the same tables as our own root; the agent does the rest, as always. And it looks: what
 * bwrap did not do is no sandbox.
 *
 * A fork of the zygote waits for its MS_CREATE, takes the mounts, and becomes bwrap. What it was
 * told waits for the agent in a socket. These files go through bwrap to the agent: */
#include "agent.h"
#include "mounts.h"
#include "root.h"
#include "words.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TOLD = 3, HOST_PIDFD = 4, PROGRAM = 5, FIRST_FREE = 6 };

/* As MS_STAGE, for what is no system call. */
#define EXPECT(name, condition)                                                                    \
  do {                                                                                             \
    *stage = name;                                                                                 \
    if (!(condition))                                                                              \
      return -EPERM;                                                                               \
  } while (0)

/* Each is a file in /proc/self/ns, whose number is told and compared. The last may be shared. */
static const char *const namespaces[] = {"user", "mnt", "pid", "ipc", "uts", "cgroup", "net"};
enum { NAMESPACES = sizeof namespaces / sizeof *namespaces };

/* 0: there is none of that kind. */
static uint64_t namespace_number(const char *kind) {
  char path[40];
  struct stat st;
  snprintf(path, sizeof path, "/proc/self/ns/%s", kind);
  return stat(path, &st) < 0 ? 0 : st.st_ino;
}

/* Becoming bwrap ------------------------------------------------------------------------------ */

static int tell_mount(int socket, const ms_mount *mount) {
  char text[3 * 4096];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, mount->flags);
  ms_put_str(&body, mount->source);
  ms_put_str(&body, mount->target);
  return ms_send(socket, &(ms_header){.type = MS_MOUNT}, body.data, body.length, &mount->fd, 1);
}

/* Tells the agent to be what this process was told. The other end of a socket, or a negative errno.
 */
static int tell(const ms_message *message, const ms_config *config, int host, uint32_t joined,
                const ms_mounts *mounts) {
  const ms_header join = {.type = MS_JOIN};
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    return -errno;
  const ms_reader *body = &message->body;
  int error = ms_send(pair[0], &message->header, body->data, body->length, &host, 1);
  if (error == 0 && config->joins) /* done already; but the agent has to know for what */
    error = ms_send(pair[0], &join, &joined, sizeof joined, NULL, 0);
  for (uint32_t i = 0; i < mounts->count && error == 0; i++)
    error = tell_mount(pair[0], &mounts->all[i]);
  close(pair[0]);
  if (error < 0)
    close(pair[1]);
  return error < 0 ? error : pair[1];
}

/* Not --die-with-parent: the agent watches the host, as always, and may outlive the zygote. */
static void put_words(ms_words *w, const ms_config *config, uint16_t flags,
                      const ms_mounts *mounts) {
  MS_WORDS(w, config->bwrap, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
           "--unshare-cgroup");
  if (!(flags & MS_CREATE_HOST_NETWORK))
    MS_WORDS(w, "--unshare-net");
  MS_WORDS(w, "--uid");
  ms_words_number(w, MS_UID);
  MS_WORDS(w, "--gid");
  ms_words_number(w, MS_GID);
  MS_WORDS(w, "--disable-userns", "--assert-userns-disabled", "--cap-drop", "ALL", "--new-session",
           "--as-pid-1", "--clearenv", "--chdir", "/", "--hostname", config->hostname);
  ms_root_words(w, config->disk);
  for (uint32_t i = 0; i < mounts->count; i++) {
    const ms_mount *mount = &mounts->all[i];
    if (!(mount->flags & MS_MOUNT_COPY))
      MS_WORDS(w, mount->flags & MS_MOUNT_READ_ONLY ? "--ro-bind" : "--bind", mount->source,
               mount->target);
  }
  MS_WORDS(w, "--", "/proc/self/fd/5", MS_INSIDE); /* PROGRAM, by a path that every sandbox has */
  for (int i = 0; i < NAMESPACES; i++)
    ms_words_number(w, namespace_number(namespaces[i]));
}

/* Puts the files at their numbers: all above those first, lest one overwrites another. */
static int arrange(int told, int host_pidfd, int program, int complaints) {
  int files[] = {complaints, told, host_pidfd, program};
  const int numbers[] = {STDERR_FILENO, TOLD, HOST_PIDFD, PROGRAM};
  enum { FILES = sizeof files / sizeof *files };
  for (int i = 0; i < FILES; i++)
    if ((files[i] = fcntl(files[i], F_DUPFD_CLOEXEC, FIRST_FREE)) < 0)
      return -1;
  for (int i = 0; i < FILES; i++)
    if (dup2(files[i], numbers[i]) < 0)
      return -1;
  return 0;
}

/* One that is setuid works as root, with more holes than ours is worth. */
static int check_program(const char *path, const char **stage) {
  struct stat st;
  MS_STAGE("bwrap", stat(path, &st));
  *stage = "bwrap is setuid";
  return st.st_mode & (S_ISUID | S_ISGID) ? -EPERM : 0;
}

/* Returns only when that was not possible. */
static int become_bwrap(const ms_config *config, uint16_t flags, const ms_mounts *mounts, int told,
                        int host_pidfd, int complaints, const char **stage) {
  static ms_words words;
  char *none[] = {NULL};
  int error = check_program(config->bwrap, stage);
  if (error)
    return error;
  int program;
  MS_STAGE("files", program = open("/proc/self/exe", O_PATH | O_CLOEXEC));
  MS_STAGE("files", arrange(told, host_pidfd, program, complaints));
  put_words(&words, config, flags, mounts);
  *stage = "words";
  if (words.failed)
    return -E2BIG;
  sigset_t signals;
  sigemptyset(&signals);
  sigprocmask(SIG_SETMASK, &signals, NULL);
  MS_STAGE("bwrap", execve(config->bwrap, (char **)words.all, none));
  return 0;
}

_Noreturn void ms_bwrap_main(int zygote_socket, int host_pidfd, uint16_t flags,
                             ms_message *message) {
  static ms_mounts mounts;
  ms_config config;
  uint32_t joined = 0;
  const char *stage = "";
  int host = ms_await_create(zygote_socket, host_pidfd, message);
  int error = ms_config_read(&message->body, &config, &stage);
  if (!error && message->fd_count != 2) {
    stage = "files";
    error = -EPROTO;
  }
  if (!error)
    error = ms_join_groups(&config, host, host_pidfd, false, &joined, &stage);
  if (!error) {
    stage = mounts.stage;
    error = ms_mounts_receive(&mounts, config.mounts, host, host_pidfd);
  }
  int told = error;
  if (!error) {
    stage = "files";
    told = error = tell(message, &config, host, joined, &mounts);
  }
  if (told >= 0)
    error = become_bwrap(&config, flags, &mounts, told, host_pidfd, message->fds[1], &stage);
  ms_give_up(host, error, stage);
}

/* Being below it ------------------------------------------------------------------------------ */

static int check_privileges(const char **stage) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct has[_LINUX_CAPABILITY_U32S_3];
  MS_STAGE("capabilities", (int)syscall(SYS_capget, &header, has));
  for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
    EXPECT("bwrap: it left capabilities",
           !(has[i].effective | has[i].permitted | has[i].inheritable));
  int bound, capability = 0;
  while ((bound = prctl(PR_CAPBSET_READ, capability, 0, 0, 0)) == 0)
    capability++;
  EXPECT("bwrap: it left capabilities to be had",
         bound < 0 && capability > 0); /* past the last one */
  EXPECT("bwrap: it left no_new_privs unset", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
  EXPECT("bwrap: it made somebody else of the agent",
         getuid() == MS_UID && geteuid() == MS_UID && getgid() == MS_GID);
  EXPECT("bwrap: it made neither a first process nor a session of the agent",
         getpid() == 1 && getsid(0) == 1);
  return 0;
}

static int check_namespaces(char **host, uint16_t flags, const char **stage) {
  int own = flags & MS_CREATE_HOST_NETWORK ? NAMESPACES - 1 : NAMESPACES;
  for (int i = 0; i < own; i++) {
    uint64_t is = namespace_number(namespaces[i]);
    EXPECT("bwrap: it left a namespace of the host's",
           is && host[i] && strtoull(host[i], NULL, 10) != is);
  }
  return 0;
}

static int check_root(uint64_t disk, const char **stage) {
  static const char *const read_only[] = {"/usr", "/dev", "/proc/sys"};
  struct statfs root;
  MS_STAGE("tmpfs", statfs("/", &root));
  EXPECT("bwrap: it made no tmpfs of the right size",
         root.f_type == TMPFS_MAGIC && (uint64_t)root.f_blocks * (uint64_t)root.f_bsize <= disk);
  for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
    struct statvfs is;
    MS_STAGE("root", statvfs(read_only[i], &is));
    EXPECT("bwrap: it left writable what is the host's",
           is.f_flag & ST_RDONLY && is.f_flag & ST_NOSUID);
  }
  return 0;
}

static int become_agent(const ms_config *config, uint16_t flags, char **host_namespaces,
                        ms_mounts *mounts, uint64_t *secret, const char **stage) {
  int error = check_privileges(stage);
  if (!error)
    error = check_namespaces(host_namespaces, flags, stage);
  if (!error)
    error = check_root(config->disk, stage);
  if (error)
    return error;
  uint32_t joined;
  error = ms_join_groups(config, TOLD, HOST_PIDFD, false, &joined, stage);
  if (!error) {
    *stage = mounts->stage;
    error = ms_mounts_receive(mounts, config->mounts, TOLD, HOST_PIDFD);
  }
  if (!error)
    error = ms_mounts_verify(mounts);
  close(TOLD);
  return error ? error : ms_shut(config, flags, mounts, secret, stage);
}

/* bwrap goes on as the parent of this: what the host is to watch is not that. */
static int show_self(int host) {
  int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  int error = self < 0 ? -errno : ms_send(host, &(ms_header){.type = MS_SELF}, NULL, 0, &self, 1);
  if (self >= 0)
    close(self);
  errno = -error;
  return error < 0 ? -1 : 0;
}

_Noreturn void ms_bwrapped_main(char **host_namespaces, ms_message *message) {
  static ms_mounts mounts;
  ms_config config;
  uint64_t secret = 0;
  const char *stage = "";
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_SETMASK, &child, NULL);
  prctl(PR_SET_NAME, "moonsand");
  umask(0);
  close(PROGRAM);
  closefrom(FIRST_FREE);
  fcntl(TOLD, F_SETFD, FD_CLOEXEC);
  fcntl(HOST_PIDFD, F_SETFD, FD_CLOEXEC);

  int host = ms_await_create(TOLD, HOST_PIDFD, message);
  message->fd_count = 0; /* kept */
  int error = ms_config_read(&message->body, &config, &stage);
  if (!error)
    error = become_agent(&config, message->header.flags, host_namespaces, &mounts, &secret, &stage);
  if (!error) {
    stage = "self";
    error = show_self(host) < 0 ? -errno : 0;
  }
  if (!error)
    ms_agent_loop(host, HOST_PIDFD, secret, message);
  ms_give_up(host, error, stage);
}
