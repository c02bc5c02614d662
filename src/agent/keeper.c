/* The keeper: removes the control groups that a host leaves behind. A group stays until somebody
 * removes it, and only somebody with the host's rights may: the host itself while it lives, and
 * afterwards, however it ended, this process, which gave up none.
 *
 * Groups are named PREFIX-NUMBER, the prefix being that of one Lua state of one process. The keeper
 * lives until the last one with its prefix is gone, which may be long after its host: a detached
 * sandbox keeps its group.
 *
 * It is started with an empty environment and these files: 0 to 2 /dev/null, 3 a pipe whose other
 * end the host holds, 4 the host's pidfd. */
#include "agent.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HOST_PIPE = 3, HOST_PIDFD = 4 };

/* How long is slept between looks, at first and at most. */
enum { FIRST_PAUSE_US = 1000, LAST_PAUSE_US = 1000000 };
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
  unsigned long long ticks = 0;
  if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
                            "%*d %*d %llu", &ticks) != 1)
    return 0;
  return ticks;
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

static int clear_all(char **directories, const char *prefix, bool orphans) {
  int left = 0;
  for (; *directories; directories++)
    left += clear(*directories, prefix, orphans);
  return left;
}

/* Until the host is gone, or has closed its end. */
static void await_host(void) {
  struct pollfd events[] = {{.fd = HOST_PIPE, .events = POLLIN},
                            {.fd = HOST_PIDFD, .events = POLLIN}};
  while (poll(events, 2, -1) < 0 || !(events[0].revents || events[1].revents))
    continue;
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
  char **directories = argv + 1;
  clear_all(directories, prefix, true);
  await_host();
  for (useconds_t pause = FIRST_PAUSE_US; clear_all(directories, prefix, false) > 0;) {
    usleep(pause);
    pause = pause * 2 < LAST_PAUSE_US ? pause * 2 : LAST_PAUSE_US;
  }
  return 0;
}
