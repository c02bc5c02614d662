/* Hands on the file calls, from inside: files MODE ARGUMENT…. Modes that go on for ever say "ready"
 * first. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static void must(int ok, const char *what) {
  if (ok)
    return;
  perror(what);
  exit(1);
}

static void ready(void) {
  puts("ready");
  fflush(stdout);
}

/* Exchanges two names as fast as it can. */
static void swap(char **names) {
  ready();
  for (;;)
    syscall(SYS_renameat2, AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE);
}

/* Moves the first to the second name and back. */
static void shuttle(char **names) {
  ready();
  for (;;) {
    rename(names[0], names[1]);
    rename(names[1], names[0]);
  }
}

/* Makes files and directories in a directory for ever. */
static void refill(char **names) {
  must(chdir(names[0]) == 0, names[0]);
  ready();
  for (unsigned i = 0;; i++) {
    char name[32];
    snprintf(name, sizeof name, "%u", i % 1000);
    if (mkdir(name, 0755) < 0 && errno == EEXIST) {
      strcat(name, "f");
      close(open(name, O_CREAT | O_WRONLY, 0644));
    }
  }
}

/* A lease: opens by others have to wait until it is given up, which it is not. */
static void lease(char **names) {
  signal(SIGIO, SIG_IGN);
  int fd = open(names[0], O_RDWR);
  must(fd >= 0 && fcntl(fd, F_SETLEASE, F_WRLCK) == 0, "lease");
  ready();
  for (;;)
    pause();
}

/* A chain of directories, and a file at its end. */
static void deep(char **names) {
  long levels = atol(names[1]);
  must(mkdir(names[0], 0755) == 0 && chdir(names[0]) == 0, names[0]);
  for (long i = 0; i < levels; i++)
    must(mkdir("d", 0755) == 0 && chdir("d") == 0, "d");
  must(close(open("end", O_CREAT | O_WRONLY, 0644)) == 0, "end");
}

/* Many names of one file. */
static void many(char **names) {
  long count = atol(names[1]);
  must(mkdir(names[0], 0755) == 0 && chdir(names[0]) == 0, names[0]);
  must(close(open("0", O_CREAT | O_WRONLY, 0644)) == 0, "0");
  for (long i = 1; i < count; i++) {
    char name[32];
    snprintf(name, sizeof name, "%ld", i);
    must(link("0", name) == 0, name);
  }
}

static void make_socket(char **names) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", names[0]);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  must(fd >= 0 && bind(fd, (void *)&address, sizeof address) == 0, names[0]);
}

static void fifo(char **names) {
  must(mkfifo(names[0], 0644) == 0, names[0]);
}

static void sparse(char **names) {
  int fd = open(names[0], O_CREAT | O_WRONLY, 0644);
  must(fd >= 0 && ftruncate(fd, (off_t)atoll(names[1])) == 0, names[0]);
}

/* A signal for everything that may be reached, again and again. */
static void storm(char **names) {
  int number = atoi(names[0]);
  ready();
  for (;;)
    kill(-1, number);
}

/* Appends for ever. */
static void grow(char **names) {
  static char text[65536];
  int fd = open(names[0], O_CREAT | O_WRONLY | O_APPEND, 0644);
  must(fd >= 0, names[0]);
  ready();
  while (write(fd, text, sizeof text) > 0)
    if (lseek(fd, 0, SEEK_CUR) > 64 * 1024 * 1024)
      must(ftruncate(fd, 0) == 0, "truncate");
}

static const struct {
  const char *name;
  void (*run)(char **names);
  int arguments;
} modes[] = {
    {"swap", swap, 2},   {"shuttle", shuttle, 2},    {"refill", refill, 1},
    {"lease", lease, 1}, {"deep", deep, 2},          {"many", many, 2},
    {"fifo", fifo, 1},   {"socket", make_socket, 1}, {"sparse", sparse, 2},
    {"storm", storm, 1}, {"grow", grow, 1},
};

int main(int argc, char **argv) {
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
    if (argc == modes[i].arguments + 2 && strcmp(argv[1], modes[i].name) == 0) {
      modes[i].run(argv + 2);
      return 0;
    }
  fprintf(stderr, "files: no such mode\n");
  return 2;
}
