/* Somebody at a terminal: typist SECONDS STEP… -- PROGRAM ARG…
 *
 * Runs the program with a controlling terminal of its own, and does what the steps say:
 *   wait:TEXT    until that was shown, from where the last such step stopped
 *   type:TEXT    types it
 *   size:COLSxROWS   changes the size of the window
 *   kill:NUMBER  sends a signal to the program
 *   hangup:      closes the window
 * Writes everything that was shown, and then a line
 *   [status=N restored=yes|no left=HEX]
 * whether the terminal is as it was before, and what lies in its input that nobody has read. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <utmp.h>

static char shown[1024 * 1024];
static size_t length, waited;
static int master, slave, status;
static pid_t program;
static struct timespec last;

static int late(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec > last.tv_nsec);
}

/* What there is, waiting a little. */
static void look(void) {
  struct pollfd news = {.fd = master, .events = POLLIN};
  if (master < 0 || length == sizeof shown || poll(&news, 1, 10) <= 0)
    return;
  ssize_t count = read(master, shown + length, sizeof shown - length);
  length += count > 0 ? (size_t)count : 0;
}

static _Noreturn void give_up(const char *step) {
  kill(program, SIGKILL);
  printf("%.*s\n[gave up at %s]\n", (int)length, shown, step);
  exit(1);
}

static int wait_for(const char *text) {
  const char *found;
  while (!(found = memmem(shown + waited, length - waited, text, strlen(text)))) {
    siginfo_t ended = {0};
    waitid(P_PID, (id_t)program, &ended, WEXITED | WNOHANG | WNOWAIT);
    size_t had = length;
    look();
    if (late() || (ended.si_pid != 0 && length == had))
      return 0;
  }
  waited = (size_t)(found - shown) + strlen(text);
  return 1;
}

static int type(const char *text) {
  for (size_t left = strlen(text); left > 0;) {
    ssize_t count = write(master, text, left);
    if (count > 0)
      text += count, left -= (size_t)count;
    else if (late())
      return 0;
    look();
  }
  return 1;
}

static int act(const char *step) {
  struct winsize size = {0};
  if (strncmp(step, "wait:", 5) == 0)
    return wait_for(step + 5);
  if (strncmp(step, "type:", 5) == 0)
    return type(step + 5);
  if (strncmp(step, "kill:", 5) == 0)
    return kill(program, atoi(step + 5)) == 0;
  if (sscanf(step, "size:%hux%hu", &size.ws_col, &size.ws_row) == 2)
    return ioctl(master, TIOCSWINSZ, &size) == 0;
  if (strcmp(step, "hangup:") == 0) {
    close(master);
    close(slave);
    master = slave = -1;
    return 1;
  }
  return 0;
}

/* Before and after the program, as text. */
static void describe(char *text, size_t size) {
  struct termios mode;
  memset(&mode, 0, sizeof mode);
  text[0] = '\0';
  if (slave < 0 || tcgetattr(slave, &mode) < 0)
    return;
  int at =
      snprintf(text, size, "%x %x %x %x", mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag);
  for (int i = 0; i < NCCS; i++)
    at += snprintf(text + at, size - (size_t)at, " %x", mode.c_cc[i]);
}

static void print_left(void) {
  struct termios mode;
  char left[4096];
  if (slave < 0 || tcgetattr(slave, &mode) < 0)
    return;
  mode.c_lflag &= ~(tcflag_t)ICANON;
  mode.c_cc[VMIN] = mode.c_cc[VTIME] = 0;
  tcsetattr(slave, TCSANOW, &mode);
  ssize_t count = read(slave, left, sizeof left);
  for (ssize_t i = 0; i < count; i++)
    printf("%02x", (unsigned char)left[i]);
}

int main(int argc, char **argv) {
  int end = 2;
  while (end < argc && strcmp(argv[end], "--") != 0)
    end++;
  if (argc < 3 || end + 1 >= argc)
    return 2;
  clock_gettime(CLOCK_MONOTONIC, &last);
  last.tv_sec += atoi(argv[1]);
  struct winsize size = {.ws_col = 90, .ws_row = 25};
  if (openpty(&master, &slave, NULL, NULL, &size) < 0)
    return 2;
  char before[512], after[512];
  describe(before, sizeof before);
  program = fork();
  if (program == 0) {
    close(master);
    login_tty(slave);
    execvp(argv[end + 1], argv + end + 1);
    _exit(127);
  }
  fcntl(master, F_SETFL, O_NONBLOCK);
  for (int i = 2; i < end; i++)
    if (!act(argv[i]))
      give_up(argv[i]);
  while (waitpid(program, &status, WNOHANG) == 0) {
    if (late())
      give_up("the end");
    look();
    if (master < 0)
      usleep(1000);
  }
  for (size_t had = length + 1; had != length;) {
    had = length;
    look();
  }
  describe(after, sizeof after);
  printf("%.*s\n[status=%d restored=%s left=", (int)length, shown, status,
         strcmp(before, after) == 0 ? "yes" : "no");
  print_left();
  puts("]");
  return 0;
}
