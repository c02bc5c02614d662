/* What the kernel counts for a user and not for a sandbox: shared MODE takes all of it that it can
 * get, says "ready COUNT ERROR", and keeps it until its input ends. */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void ready(long count) {
  printf("ready %ld %s\n", count, errno ? strerrorname_np(errno) : "OK");
  fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0)
    ;
}

/* Descriptors on their way through sockets that nobody reads. */
static void flights(void) {
  enum { EACH = 253 };
  union {
    char bytes[CMSG_SPACE(EACH * sizeof(int))];
    struct cmsghdr align;
  } control;
  long count = 0;
  int ends[2];
  while (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0) {
    for (;;) {
      struct iovec byte = {"", 1};
      struct msghdr message = {.msg_iov = &byte,
                               .msg_iovlen = 1,
                               .msg_control = control.bytes,
                               .msg_controllen = sizeof control.bytes};
      struct cmsghdr *head = CMSG_FIRSTHDR(&message);
      *head = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                               .cmsg_type = SCM_RIGHTS,
                               .cmsg_len = CMSG_LEN(EACH * sizeof(int))};
      for (int i = 0; i < EACH; i++)
        ((int *)(void *)CMSG_DATA(head))[i] = 0;
      if (sendmsg(ends[0], &message, MSG_DONTWAIT) < 0)
        break;
      count += EACH;
    }
    if (errno != EAGAIN)
      break;
  }
  ready(count);
}

/* Epoll sets that all watch the same pipes: in each process as many as it has files for. */
static void watches(void) {
  long count = 0;
  int error = 0;
  while (!error) {
    int told[2];
    if (pipe(told) < 0)
      break;
    pid_t pid = fork();
    if (pid < 0) {
      error = errno;
      break;
    }
    if (pid == 0) {
      int files[500], made = 0, set;
      long result[2] = {0, 0};
      while (made < 500 && (files[made] = dup(told[0])) >= 0)
        made++;
      while (!result[1] && (set = epoll_create1(0)) >= 0)
        for (int i = 0; i < made; i++) {
          struct epoll_event event = {.events = EPOLLIN};
          if (epoll_ctl(set, EPOLL_CTL_ADD, files[i], &event) == 0)
            result[0]++;
          else {
            result[1] = errno;
            break;
          }
        }
      if (write(told[1], result, sizeof result) < 0)
        _exit(1);
      pause();
    }
    close(told[1]);
    long result[2];
    if (read(told[0], result, sizeof result) != sizeof result)
      break;
    close(told[0]);
    count += result[0];
    error = (int)result[1];
  }
  errno = error;
  ready(count);
}

/* Pages of pipes. */
static void pipes(void) {
  long count = 0;
  int ends[2];
  errno = 0;
  while (pipe(ends) == 0) {
    int size = fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
    if (size < 0)
      size = fcntl(ends[1], F_GETPIPE_SZ);
    count += size / 4096;
  }
  ready(count);
}

/* Bytes of POSIX message queues. */
static void queues(void) {
  long count = 0;
  char name[32];
  for (;; count++) {
    snprintf(name, sizeof name, "/q%ld", count);
    if (mq_open(name, O_CREAT | O_RDWR, 0600, NULL) < 0)
      break;
  }
  ready(count);
}

static void inotify(void) {
  long count = 0;
  while (inotify_init1(0) >= 0)
    count++;
  ready(count);
}

static const struct {
  const char *name;
  void (*run)(void);
} modes[] = {{"flights", flights},
             {"watches", watches},
             {"pipes", pipes},
             {"queues", queues},
             {"inotify", inotify}};

int main(int argc, char **argv) {
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    if (argc > 1 && strcmp(argv[1], modes[i].name) == 0) {
      modes[i].run();
      return 0;
    }
  return 2;
}
