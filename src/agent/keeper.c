/* The keeper: removes the control groups that a host leaves behind. A group stays until somebody
 * removes it, and only somebody with the host's rights may: the host itself while it lives, and
 * afterwards, however it ended, this process, which gave up none.
 *
 * Groups are named PREFIX-NUMBER, the prefix being that of one Lua state of one process. The keeper
 * lives until the last one with its prefix is gone, which may be long after its host: a detached
 * sandbox keeps its group.
 *
 * It is started with an empty environment and these files: 0 to 2 /dev/null, 3 a socket on which
 * the host names directories, one a message, 4 the host's pidfd. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HOST_SOCKET = 3, HOST_PIDFD = 4 };

/* Between looks, at most. */
enum { LAST_PAUSE_MS = 1000 };
/* Of /proc/PID/stat, counted from 1. */
enum { STARTED_FIELD = 22 };
enum { DIRECTORIES_MAX = 8 };
/* What looks like the group of a dead host may be that of one which we cannot see, in a pid
 * namespace of its own. After so long something runs in it, which keeps it. */
#define SETTLED_NS UINT64_C(10000000000)

/* When a process began, as /proc tells it; 0: there is none. */
static unsigned long long started(int pid) {
  char path[32], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0)
    close(fd);
  if (length <= 0)
    return 0;
  text[length] = '\0';
  const char *at = strrchr(text, ')'); /* the name before it may hold anything */
  for (int field = 2; at && field < STARTED_FIELD; field++)
    at = strchr(at + 1, ' ');
  return at ? strtoull(at + 1, NULL, 10) : 0;
}

/* Is it the group of a host that is dead? Its own keeper was killed, then. */
static bool is_orphan(const char *name) {
  int pid;
  unsigned long long ticks;
  return sscanf(name, "moonsand-%d-%llu-", &pid, &ticks) == 2 && started(pid) != ticks;
}

/* A group that is to go, as soon as nothing runs in it. */
typedef struct group {
  struct group *next;
  uint64_t due_ns; /* not before; only once, if there is a time */
  char path[];
} group;
static group *leaving;

/* Directories that the host has named. */
static char *directories[DIRECTORIES_MAX];
static size_t directory_count;

static void remember(const char *directory, const char *name, uint64_t due_ns) {
  size_t size = strlen(directory) + strlen(name) + 2;
  group *g = malloc(sizeof *g + size);
  if (!g)
    return; /* ours are found by their names in the end */
  snprintf(g->path, size, "%s%s%s", directory, *name ? "/" : "", name);
  g->due_ns = due_ns;
  g->next = leaving;
  leaving = g;
}

static void remove_leaving(void) {
  uint64_t now = ms_clock_ns();
  for (group **at = &leaving; *at;) {
    group *g = *at;
    if (g->due_ns > now || (rmdir(g->path) < 0 && errno == EBUSY && !g->due_ns)) {
      at = &g->next;
      continue;
    }
    *at = g->next;
    free(g);
  }
}

/* Calls for each name in a directory. */
static void each_name(const char *path, void (*call)(const char *path, const char *name)) {
  DIR *list = opendir(path);
  if (!list)
    return;
  for (struct dirent *entry; (entry = readdir(list));)
    call(path, entry->d_name);
  closedir(list);
}

static void suspect(const char *path, const char *name) {
  if (is_orphan(name))
    remember(path, name, ms_clock_ns() + SETTLED_NS);
}

static void look(const char *path) {
  if (directory_count == DIRECTORIES_MAX || !(directories[directory_count] = strdup(path)))
    return;
  directory_count++;
  each_name(path, suspect);
}

static int longer(int pause_ms) {
  return pause_ms < LAST_PAUSE_MS ? pause_ms * 2 : LAST_PAUSE_MS;
}

/* Listens to the host until it is gone, or has closed its end. */
static void attend_host(void) {
  struct pollfd events[] = {{.fd = HOST_SOCKET, .events = POLLIN},
                            {.fd = HOST_PIDFD, .events = POLLIN}};
  for (int pause_ms = 1;; pause_ms = longer(pause_ms)) {
    char text[PATH_MAX + 1];
    int ready = poll(events, 2, leaving ? pause_ms : -1);
    remove_leaving();
    if (ready <= 0)
      continue;
    ssize_t length = events[0].revents ? recv(HOST_SOCKET, text, sizeof text - 1, MSG_DONTWAIT) : 0;
    if (length < 0 && (errno == EAGAIN || errno == EINTR))
      continue;
    if (length <= 0)
      return;
    text[length] = '\0';
    pause_ms = 1;
    if (text[0] == MS_KEEPER_LOOK)
      look(text + 1);
    else
      remember(text + 1, "", 0);
  }
}

static const char *prefix;

static void take(const char *path, const char *name) {
  if (strncmp(name, prefix, strlen(prefix)) == 0)
    remember(path, name, 0);
}

int ms_keeper_main(int argc, char **argv) {
  (void)argc;
  if (fork() != 0)
    return 0;
  setsid();
  prctl(PR_SET_NAME, "moonsand-keeper");
  if (chdir("/") < 0)
    return 1;
  prefix = argv[0];
  attend_host();
  for (size_t i = 0; i < directory_count; i++)
    each_name(directories[i], take);
  remove_leaving();
  for (int pause_ms = 1; leaving; pause_ms = longer(pause_ms)) {
    poll(NULL, 0, pause_ms);
    remove_leaving();
  }
  return 0;
}
