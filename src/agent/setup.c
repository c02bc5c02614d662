/* What a fresh fork of the zygote does to become a sandbox, in the order that matters: map the one
 * user, build a root of its own, shut what could be opened again; then, told what is special about
 * it, drop every privilege and filter system calls. */
#include "agent.h"
#include "filter.h"
#include "mounts.h"
#include "root.h"
#include "setid.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int ms_write_text(const char *path, const char *text, int flags) {
  int fd = open(path, O_WRONLY | O_CLOEXEC | flags, 0644);
  if (fd < 0)
    return -1;
  ssize_t written = write(fd, text, strlen(text));
  int error = errno;
  close(fd);
  errno = error;
  return written < 0 ? -1 : 0;
}

/* The one user and group of a namespace, and who they are outside. */
static int map_user(uid_t inside, gid_t inside_gid, uid_t uid, gid_t gid) {
  char map[64];
  if (ms_write_text("/proc/self/setgroups", "deny", 0) < 0)
    return -1;
  snprintf(map, sizeof map, "%u %u 1", (unsigned)inside, (unsigned)uid);
  if (ms_write_text("/proc/self/uid_map", map, 0) < 0)
    return -1;
  snprintf(map, sizeof map, "%u %u 1", (unsigned)inside_gid, (unsigned)gid);
  return ms_write_text("/proc/self/gid_map", map, 0);
}

static int raise_loopback(void) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return -1;
  struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
  int raised = ioctl(fd, SIOCSIFFLAGS, &request);
  int error = errno;
  close(fd);
  errno = error;
  return raised;
}

/* No further user namespaces, which are most of the kernel's attack surface; and little of what is
 * otherwise counted against the user outside. Cannot be undone from inside. */
static int limit_namespace(void) {
  if (ms_write_text("/proc/sys/user/max_inotify_instances", "64", 0) < 0 ||
      ms_write_text("/proc/sys/user/max_inotify_watches", "16384", 0) < 0)
    return -1;
  return ms_write_text("/proc/sys/user/max_user_namespaces", "0", 0);
}

static int drop_capabilities(void) {
  for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
    continue;
  if (errno != EINVAL) /* past the last capability */
    return -1;
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
    return -1;
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};
  return (int)syscall(SYS_capset, &header, none);
}

static int install_filter(const ms_config *config, uint64_t secret) {
  struct sock_filter program[MS_FILTER_MAX];
  size_t count =
      ms_filter_build(program, MS_FILTER_MAX, config->allow, config->allow_count, secret);
  int error = count > 0 ? ms_filter_install(program, count) : -E2BIG;
  errno = -error;
  return error < 0 ? -1 : 0;
}

/* Before it is known what for. 0, or a negative errno and the stage that failed. */
static int prepare(uid_t uid, gid_t gid, uint16_t flags, const ms_mount *root, const char **stage) {
  MS_STAGE("session", setsid());
  MS_STAGE("uid_map", map_user(MS_UID, MS_GID, uid, gid));
  int error = root ? ms_image_build(root->fd, stage) : ms_root_build(stage);
  if (error)
    return error;
  if (!(flags & MS_CREATE_HOST_NETWORK))
    MS_STAGE("loopback", raise_loopback());
  MS_STAGE("limits", limit_namespace());
  MS_STAGE("proc", ms_root_shut_proc());
  return 0;
}

int ms_shut(const ms_config *config, uint16_t flags, const ms_mounts *mounts, uint64_t *secret,
            const char **stage) {
  MS_STAGE("random", getrandom(secret, sizeof *secret, 0));
  MS_STAGE("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  if (flags & MS_CREATE_HOST_NETWORK)
    MS_STAGE("abstract sockets", ms_net_scope());
  MS_STAGE("dumpable", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
  if (ms_mounts_write_host(mounts))
    MS_STAGE("seccomp", ms_setid_install(*secret));
  MS_STAGE("seccomp", install_filter(config, *secret));
  return 0;
}

static int finish(const ms_config *config, uint16_t flags, ms_mounts *mounts, uint64_t *secret,
                  const char **stage) {
  const ms_mount *root = ms_mounts_root(mounts);
  MS_STAGE("disk", ms_root_limit(root ? MS_HOME : "/", config->disk, config->inodes));
  int error = ms_mounts_place(mounts);
  *stage = mounts->stage;
  if (error)
    return error;
  if (root && !(root->flags & MS_MOUNT_COPY))
    MS_STAGE("root",
             mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL));
  MS_STAGE("hostname", sethostname(config->hostname, strlen(config->hostname)));
  MS_STAGE("capabilities", drop_capabilities());
  return ms_shut(config, flags, mounts, secret, stage);
}

int ms_config_read(ms_reader *body, ms_config *config, const char **stage) {
  config->version = ms_get_str(body);
  config->disk = ms_get_u64(body);
  config->inodes = ms_get_u64(body);
  config->hostname = ms_get_str(body);
  config->allow_count = ms_get_u32(body);
  for (uint32_t i = 0; i < config->allow_count && i < MS_ALLOW_MAX; i++)
    config->allow[i] = ms_get_str(body);
  config->joins = ms_get_u32(body);
  config->mounts = ms_get_u32(body);
  config->bwrap = ms_get_str(body);
  *stage = "version";
  if (!ms_get_end(body) || strcmp(config->version, MS_VERSION) != 0)
    return -EPROTO;
  *stage = "seccomp.allow"; /* what may be allowed again is decided here, not by who asks */
  for (uint32_t i = 0; i < config->allow_count; i++)
    if (!ms_filter_knows(config->allow[i]))
      return -EINVAL;
  return 0;
}

/* Without that message there is nothing to live for. */
int ms_await_create(int socket, int host_pidfd, ms_message *message) {
  struct pollfd events[] = {{.fd = socket, .events = POLLIN}, {.fd = host_pidfd, .events = POLLIN}};
  for (;;) {
    if (poll(events, 2, -1) < 0)
      continue;
    int received = events[1].revents ? 0 : ms_receive(socket, message);
    if (received == -EAGAIN)
      continue;
    if (received <= 0 || message->fd_count < 1)
      _exit(1);
    return message->fds[0];
  }
}

int ms_setup_receive(int socket, int host_pidfd, ms_message *message) {
  struct pollfd events[] = {{.fd = socket, .events = POLLIN}, {.fd = host_pidfd, .events = POLLIN}};
  for (;;) {
    if (poll(events, 2, -1) < 0)
      continue;
    int received = events[1].revents ? 0 : ms_receive(socket, message);
    if (received == 0)
      _exit(0); /* nobody is waiting for this any more */
    if (received != -EAGAIN)
      return received < 0 ? received : 0;
  }
}

/* Into the groups that the host made, whose entrances it opened: the kernel asks for its rights,
 * not ours. From inside they are the root of all groups. */
static int enter_groups(ms_message *message, bool apart, uint32_t *flags) {
  *flags = ms_get_u32(&message->body);
  if (message->header.type != MS_JOIN || !ms_get_end(&message->body))
    return -EPROTO;
  for (size_t i = 0; i < message->fd_count; i++)
    if (write(message->fds[i], "0", 1) < 0)
      return -errno;
  if (apart && syscall(SYS_unshare, CLONE_NEWCGROUP) < 0)
    return -errno;
  if (*flags & MS_JOIN_MEMORY) {
    /* Where root set the value it cannot be lowered; then programs alone make the difference. */
    ms_write_text("/proc/self/oom_score_adj", "0", 0);
    ms_spawn_expose();
  }
  return 0;
}

int ms_join_groups(const ms_config *config, int socket, int host_pidfd, bool apart, uint32_t *flags,
                   const char **stage) {
  if (!config->joins)
    return 0;
  *stage = "cgroup";
  ms_message *message = malloc(sizeof *message);
  if (!message)
    return -ENOMEM;
  int error = ms_setup_receive(socket, host_pidfd, message);
  if (!error) {
    error = enter_groups(message, apart, flags);
    ms_close_fds(message);
  }
  free(message);
  return error;
}

/* What is mounted: told, and cloned where the host could not. */
static int take_mounts(ms_mounts *mounts, const ms_config *config, int host, int host_pidfd,
                       bool sighted, const char **stage) {
  *stage = mounts->stage;
  int error = ms_mounts_receive(mounts, config->mounts, host, host_pidfd);
  return error || !sighted ? error : ms_mounts_clone(mounts);
}

_Noreturn void ms_idmap_main(int socket, uid_t shown, gid_t shown_gid, uid_t uid, gid_t gid) {
  char text[16];
  ms_writer body = {.data = text, .capacity = sizeof text};
  int error = map_user(shown, shown_gid, uid, gid) < 0 ? errno : 0;
  int space = error ? -1 : open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
  ms_put_u32(&body, (uint32_t)(space < 0 && !error ? errno : error));
  ms_send(socket, &(ms_header){.type = MS_IDMAP}, body.data, body.length, &space, space >= 0);
  _exit(0); /* the end of the socket tells when that could not be sent */
}

_Noreturn void ms_sandbox_main(int zygote_socket, int host_pidfd, uid_t uid, gid_t gid,
                               uint16_t flags, ms_message *message) {
  static ms_mounts mounts;
  ms_config config;
  uint64_t secret = 0;
  uint32_t joined;
  const char *stage = "";
  bool sighted = flags & MS_CREATE_MOUNTS; /* it sees the host's until it has what it is to show */
  int error = sighted ? 0 : prepare(uid, gid, flags, NULL, &stage);
  const char *prepared = stage;
  int host = ms_await_create(zygote_socket, host_pidfd, message);
  close(zygote_socket);
  message->fd_count = 0; /* kept */
  int wrong = ms_config_read(&message->body, &config, &stage);
  if (wrong)
    error = wrong;
  else if (error)
    stage = prepared;
  else
    error = ms_join_groups(&config, host, host_pidfd, true, &joined, &stage);
  if (!error)
    error = take_mounts(&mounts, &config, host, host_pidfd, sighted, &stage);
  if (!error && sighted)
    error = prepare(uid, gid, flags, ms_mounts_root(&mounts), &stage);
  if (!error)
    error = finish(&config, flags, &mounts, &secret, &stage);
  if (!error)
    ms_agent_loop(host, host_pidfd, secret, message);
  ms_give_up(host, error, stage);
}

_Noreturn void ms_give_up(int host, int error, const char *stage) {
  char text[256];
  ms_writer body = {.data = text, .capacity = sizeof text};
  ms_put_u32(&body, (uint32_t)-error);
  ms_put_str(&body, stage);
  ms_send(host, &(ms_header){.type = MS_FAILED}, body.data, body.length, NULL, 0);
  _exit(1);
}
