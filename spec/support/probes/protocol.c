/* Code inside that knows the messages between an agent and its host: protocol MODE.
 * frames: writes messages such as an agent's to whatever can be written to.
 * signals: every signal to pid 1, by every way there is.
 * program: stops every other process it sees, and looks for one that runs the agent's own program:
 * its file on the host could be changed through that. Tells what it got hold of, for ever. */
#include "attempt.h"

#include "wire.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>

/* All that an agent says of the end of a program, for the first ids. */
static size_t forge(char *bytes, size_t size) {
  size_t length = 0;
  for (uint64_t id = 0; id < 64; id++)
    for (uint32_t type = MS_CREATED; type <= MS_JOIN; type++) {
      ms_header header = {.type = type, .id = (uint32_t)id};
      if (length + sizeof header + 64 > size)
        return length;
      memcpy(bytes + length, &header, sizeof header);
      memset(bytes + length + sizeof header, 0, 64);
      length += sizeof header + 64;
    }
  return length;
}

/* Sends them, and a descriptor along, through a socket; writes them to anything else. */
static void push(int fd, const char *bytes, size_t length) {
  union {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control;
  struct iovec part = {(void *)(uintptr_t)bytes, 80};
  struct msghdr message = {.msg_iov = &part,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  *CMSG_FIRSTHDR(&message) = (struct cmsghdr){
      .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
  memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &(int){0}, sizeof(int));
  if (sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
    printf("a socket: %d\n", fd);
  if (fd > 2 && write(fd, bytes, length) >= 0)
    printf("a file: %d\n", fd);
}

static void push_all(const char *pid, const char *bytes, size_t length) {
  char path[300];
  snprintf(path, sizeof path, "/proc/%s/fd", pid);
  DIR *dir = opendir(path);
  for (struct dirent *entry; dir && (entry = readdir(dir));) {
    snprintf(path, sizeof path, "/proc/%s/fd/%s", pid, entry->d_name);
    int fd = strcmp(pid, "self") == 0 ? -1 : open(path, O_WRONLY | O_NONBLOCK);
    if (fd >= 0) {
      printf("opened %s\n", path);
      push(fd, bytes, length);
      close(fd);
    }
  }
  if (dir)
    closedir(dir);
}

static void frames(void) {
  static char bytes[128 * 1024];
  size_t length = forge(bytes, sizeof bytes);
  for (int fd = 0; fd < 1024; fd++)
    push(fd, bytes, length);
  push_all("1", bytes, length);
  fflush(stdout);
  for (int fd = 1; fd <= 2; fd++)
    if (write(fd, bytes, length) != (ssize_t)length)
      exit(1);
  exit(7);
}

static void by_file(int number) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
    return;
  fcntl(ends[0], F_SETOWN, 1);
  fcntl(ends[0], F_SETSIG, number);
  fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK);
  if (write(ends[1], "x", 1) < 0)
    return;
  close(ends[1]);
  close(ends[0]);
}

static void by_timer(int number) {
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = number};
  event._sigev_un._tid = 1;
  timer_t timer;
  struct itimerspec soon = {.it_value = {.tv_nsec = 1}};
  if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0)
    timer_settime(timer, 0, &soon, NULL);
}

static void by_terminal(void) {
  int master = posix_openpt(O_RDWR | O_NOCTTY);
  if (master < 0 || unlockpt(master) < 0 || fork() != 0)
    return;
  setsid();
  int slave = open(ptsname(master), O_RDWR);
  pid_t one = 1;
  ioctl(slave, TIOCSPGRP, &one);
  ioctl(master, TIOCSIG, SIGKILL);
  if (write(master, "\3\32\34", 3) < 0)
    _exit(1);
  close(master);
  _exit(0);
}

static void signals(void) {
  int pidfd = (int)syscall(SYS_pidfd_open, 1, 0);
  for (int number = 1; number <= 64; number++) {
    siginfo_t info = {.si_signo = number, .si_code = SI_QUEUE};
    kill(1, number);
    syscall(SYS_tkill, 1, number);
    syscall(SYS_tgkill, 1, 1, number);
    syscall(SYS_rt_sigqueueinfo, 1, number, &info);
    syscall(SYS_rt_tgsigqueueinfo, 1, 1, number, &info);
    syscall(SYS_pidfd_send_signal, pidfd, number, &info, 0);
    info.si_code = SI_KERNEL;
    syscall(SYS_rt_sigqueueinfo, 1, number, &info);
    syscall(SYS_pidfd_send_signal, pidfd, number, &info, 0);
    for (unsigned flag = 1; flag <= 4; flag *= 2) /* of a thread, a process, a group */
      syscall(SYS_pidfd_send_signal, pidfd, number, NULL, flag);
    by_file(number);
    by_timer(number);
  }
  by_terminal();
  puts("all sent");
}

static void spoil(const char *path, const char *target) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return;
  char again[64];
  snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
  printf("opened %s\n", target);
  TRY("chmod", fchmod(fd, 0));
  TRY("utimes", futimens(fd, (struct timespec[2]){{0}, {0}}));
  TRY("xattr", fsetxattr(fd, "user.spoilt", "x", 1, 0));
  TRY("write", open(again, O_WRONLY));
  TRY("truncate", truncate(again, 0));
  TRY("link", linkat(AT_FDCWD, again, AT_FDCWD, "/tmp/linked", AT_SYMLINK_FOLLOW));
  close(fd);
  fflush(stdout);
}

static void program(void) {
  puts("ready");
  fflush(stdout);
  for (int told = 0;;) {
    kill(-1, SIGSTOP);
    DIR *dir = opendir("/proc");
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
      char path[300], target[300] = {0};
      snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
      if (atoi(entry->d_name) > 1 && atoi(entry->d_name) != getpid() &&
          readlink(path, target, sizeof target - 1) > 0 && told < 100 &&
          (strstr(target, "agent") || strstr(target, "memfd"))) {
        spoil(path, target);
        told++;
      }
    }
    if (dir)
      closedir(dir);
  }
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "frames") == 0)
    frames();
  if (argc == 2 && strcmp(argv[1], "signals") == 0)
    signals();
  if (argc == 2 && strcmp(argv[1], "program") == 0)
    program();
  return argc != 2;
}
