/* Sweeps: every request to a device, every flag of unshare and clone, every option of prctl. Told
 * are those that have done what a sandbox must not; "done" in the end. */
#include "attempt.h"

#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* Each in a child, which must come to an end: the kernel's answers are its own, but what is typed
 * into a terminal, and what takes it, is not to work. */
static void requests(const char *name, int fd) {
  static char argument[4096];
  for (unsigned group = 0; group < 256; group++) {
    pid_t pid = fork();
    if (pid == 0) {
      for (unsigned number = 0; number < 256; number++) {
        unsigned base = group << 8 | number;
        /* as plain numbers, and as those with a direction and a size of 4, 8, 64 */
        const unsigned forms[] = {base, 0x80040000u | base, 0x40040000u | base, 0xc0080000u | base,
                                  0x40400000u | base};
        for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
          syscall(SYS_ioctl, fd, (unsigned long)forms[i], argument);
      }
      _exit(0);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (status != 0)
      printf("%s, group %u: status %d\n", name, group, status);
  }
}

/* A terminal of its own: what comes out of it was typed by one of them. */
static void terminal(void) {
  int master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
  if (master < 0 || unlockpt(master) < 0)
    return;
  int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
  requests("terminal", slave);
  char typed[16];
  fcntl(slave, F_SETFL, O_NONBLOCK);
  if (read(slave, typed, sizeof typed) > 0)
    puts("something was typed");
}

static int nothing(void *unused) {
  (void)unused;
  return 0;
}

static void namespaces(void) {
  static char stack[65536];
  /* every combination of the eight, the new ones of the 64-bit calls by their bits */
  const unsigned long kinds[] = {0x80,      0x20000,    0x2000000,  0x4000000,
                                 0x8000000, 0x10000000, 0x20000000, 0x40000000};
  for (unsigned set = 1; set < 256; set++) {
    unsigned long flags = 0;
    for (int i = 0; i < 8; i++)
      flags |= set >> i & 1 ? kinds[i] : 0;
    if (syscall(SYS_unshare, flags) == 0)
      printf("unshare %#lx\n", flags);
    if (syscall(SYS_unshare, flags | UINT64_C(1) << 33) == 0)
      printf("unshare %#lx with a high bit\n", flags);
    if (flags & 0x80) /* a part of the signal, for clone */
      continue;
    pid_t pid = clone(nothing, stack + sizeof stack, (int)flags | SIGCHLD, NULL);
    if (pid > 0)
      printf("clone %#lx\n", flags);
  }
}

/* Only that of the memory map, the one that is dangerous, and none may give a capability. */
static void options(void) {
  for (unsigned long field = 0; field < 32; field++)
    if (prctl(PR_SET_MM, field, 0x10000, 0, 0) == 0)
      printf("PR_SET_MM %lu\n", field);
  pid_t pid = fork();
  if (pid == 0) {
    for (int option = 1; option < 80; option++)
      if (option != PR_SET_SECCOMP && option != PR_SET_PDEATHSIG)
        for (unsigned long value = 0; value < 4; value++)
          prctl(option, value, value, 0, 0);
    char status[4096] = {0};
    int fd = open("/proc/self/status", O_RDONLY);
    if (read(fd, status, sizeof status - 1) < 0 || !strstr(status, "NoNewPrivs:\t1") ||
        !strstr(status, "CapEff:\t0000000000000000"))
      puts("prctl changed the rights");
    fflush(stdout);
    _exit(0);
  }
  waitpid(pid, NULL, 0);
}

int main(void) {
  const char *devices[] = {"/dev/null", "/dev/zero", "/dev/full",        "/dev/random",
                           "/usr",      "/proc",     "/proc/self/status"};
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    requests(devices[i], open(devices[i], O_RDONLY));
  requests("/dev/ptmx", posix_openpt(O_RDWR | O_NOCTTY));
  requests("a socket", (int)syscall(SYS_socket, 2, 2, 0));
  terminal();
  namespaces();
  options();
  puts("done");
  return 0;
}
