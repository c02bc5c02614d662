/* keeper STEP DELAY_US DEADLINE_MS -- PROGRAM …
 *
 * Runs a program, kills it with SIGKILL DELAY_US after it wrote its line number STEP (0: after its
 * start), and sees who of its descendants outlives it: they all become the keeper's children then,
 * wherever they went. Ends with 0 when the last of them is gone within the deadline. Else it names
 * them, kills them, and ends with 1. With STEP -1 the program is left to end by itself; what it
 * writes is passed on. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Reads lines until there were `step` of them, or the end. */
static int await_step(int fd, long step, long deadline) {
  long lines = 0;
  char byte;
  struct pollfd p = {.fd = fd, .events = POLLIN};
  while (step < 0 || lines < step) {
    if (poll(&p, 1, 100) < 0 || now_ms() > deadline)
      return -1;
    if (!p.revents)
      continue;
    if (read(fd, &byte, 1) <= 0)
      return 1;
    if (step < 0 && write(1, &byte, 1) != 1)
      return -1;
    lines += byte == '\n';
  }
  return 0;
}

static void name_and_kill(void) {
  char path[64], text[8192];
  snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  text[length > 0 ? length : 0] = '\0';
  printf("left: %s\n", text);
  for (char *at = text; *at;) {
    pid_t pid = (pid_t)strtol(at, &at, 10);
    if (pid > 1)
      kill(pid, SIGKILL);
    while (*at == ' ')
      at++;
  }
}

int main(int argc, char **argv) {
  int out[2], status;
  if (argc < 6 || pipe2(out, O_CLOEXEC) < 0)
    return 2;
  long step = strtol(argv[1], NULL, 10);
  useconds_t delay = (useconds_t)strtol(argv[2], NULL, 10);
  long patience = strtol(argv[3], NULL, 10);
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  pid_t pid = fork();
  if (pid == 0) {
    dup2(out[1], 1);
    execvp(argv[5], argv + 5);
    _exit(127);
  }
  close(out[1]);
  int reached = await_step(out[0], step, now_ms() + 30000);
  if (step >= 0 && reached == 0)
    usleep(delay);
  if (step >= 0 || reached < 0)
    kill(pid, SIGKILL);
  if (waitpid(pid, &status, 0) != pid)
    return 2;
  if (step >= 0 && reached != 0) {
    printf("the program ended before step %ld\n", step);
    return 3;
  }
  if (step < 0 && status != 0) {
    printf("the program ended with status %d\n", status);
    return 3;
  }
  long killed = now_ms();
  for (;;) {
    pid_t ended = waitpid(-1, NULL, WNOHANG);
    if (ended < 0 && errno == ECHILD)
      break;
    if (ended > 0)
      continue;
    if (now_ms() - killed > patience) {
      name_and_kill();
      return 1;
    }
    usleep(200);
  }
  fprintf(stderr, "all gone after %ld ms\n", now_ms() - killed);
  return 0;
}
