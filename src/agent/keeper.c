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
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HOST_SOCKET = 3, HOST_PIDFD = 4 };

/* Between looks, at most. */
enum { LAST_PAUSE_MS = 1000 };
/* Of /proc/PID/stat, counted from 1. */
enum { STARTED_FIELD = 22 };
enum { DIRECTORIES_MAX = 8 };
/* Groups that are younger belong to somebody who is about to use them. */
enum { SETTLED_S = 10 };

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

/* Is it the group of a host that is dead for good? Its own keeper was killed, then. */
static bool is_orphan(int directory, const char *name) {
  int pid;
  unsigned long long ticks;
  struct stat st;
  return sscanf(name, "moonsand-%d-%llu-", &pid, &ticks) == 2 && started(pid) != ticks &&
         fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
         time(NULL) - st.st_ctime > SETTLED_S;
}

static bool is_ours(const char *name, const char *prefix) {
  return strncmp(name, prefix, strlen(prefix)) == 0;
}

/* Removes what is empty, of ours or of the dead: how many of ours are left. */
static int clear(const char *path, const char *prefix, bool orphans) {
  DIR *list = opendir(path);
  int left = 0;
  if (!list)
    return 0;
  int directory = dirfd(list);
  for (struct dirent *entry; (entry = readdir(list));) {
    bool ours = is_ours(entry->d_name, prefix);
    if (orphans ? ours || !is_orphan(directory, entry->d_name) : !ours)
      continue;
    if (unlinkat(directory, entry->d_name, AT_REMOVEDIR) < 0 && ours)
      left++;
  }
  closedir(list);
  return left;
}

/* What the host has named: directories, and groups that are to go. */
static char *directories[DIRECTORIES_MAX];
static size_t directory_count;
typedef struct group {
  struct group *next;
  char path[];
} group;
static group *leaving;

static void look(const char *path, const char *prefix) {
  if (directory_count == DIRECTORIES_MAX || !(directories[directory_count] = strdup(path)))
    return;
  directory_count++;
  clear(path, prefix, true);
}

static void remember(const char *path) {
  group *g = malloc(sizeof *g + strlen(path) + 1);
  if (!g)
    return; /* it is found by its name in the end */
  strcpy(g->path, path);
  g->next = leaving;
  leaving = g;
}

static void remove_leaving(void) {
  for (group **at = &leaving; *at;) {
    group *g = *at;
    if (rmdir(g->path) < 0 && errno == EBUSY) {
      at = &g->next;
      continue;
    }
    *at = g->next;
    free(g);
  }
}

/* Listens to the host until it is gone, or has closed its end. */
static void attend_host(const char *prefix) {
  struct pollfd events[] = {{.fd = HOST_SOCKET, .events = POLLIN},
                            {.fd = HOST_PIDFD, .events = POLLIN}};
  int pause_ms = 1;
  for (;;) {
    char text[PATH_MAX + 1];
    int ready = poll(events, 2, leaving ? pause_ms : -1);
    remove_leaving();
    pause_ms = pause_ms < LAST_PAUSE_MS ? pause_ms * 2 : LAST_PAUSE_MS;
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
      look(text + 1, prefix);
    else
      remember(text + 1);
  }
}

static int clear_all(const char *prefix) {
  int left = 0;
  for (size_t i = 0; i < directory_count; i++)
    left += clear(directories[i], prefix, false);
  return left;
}

int ms_keeper_main(int argc, char **argv) {
  (void)argc;
  if (fork() != 0)
    return 0;
  setsid();
  prctl(PR_SET_NAME, "moonsand-keeper");
  if (chdir("/") < 0)
    return 1;
  const char *prefix = argv[0];
  attend_host(prefix);
  for (int pause_ms = 1; clear_all(prefix) > 0;) {
    poll(NULL, 0, pause_ms);
    pause_ms = pause_ms < LAST_PAUSE_MS ? pause_ms * 2 : LAST_PAUSE_MS;
  }
  return 0;
}
