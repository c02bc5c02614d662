/* Typing into terminals: whatever terminal can be had, its own, the host's by any name. Fakes no
 * answers: what the host's terminal really got is looked up outside. */
#include "attempt.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <termios.h>

static void type(int fd) {
  for (const char *at = "echo pwned\n"; *at; at++)
    ioctl(fd, TIOCSTI, at);
}

int main(void) {
  for (int fd = 0; fd < 1024; fd++)
    type(fd);
  int tty = open("/dev/tty", O_RDWR);
  TRY("open /dev/tty", tty);
  TRY("open /dev/console", open("/dev/console", O_RDWR));
  TRY("open /dev/tty1", open("/dev/tty1", O_RDWR));
  int seen = 0;
  for (int i = 0; i < 256; i++) {
    char path[32];
    snprintf(path, sizeof path, "/dev/pts/%d", i);
    int fd = open(path, O_RDWR | O_NOCTTY);
    if (fd >= 0) {
      seen++;
      type(fd);
      ioctl(fd, TIOCSCTTY, 1);
    }
  }
  errno = ENOENT;
  tell("terminals of others", seen > 0 ? 0 : -1);

  /* One of its own, where all but the filter would let it. */
  int master = posix_openpt(O_RDWR | O_NOCTTY);
  TRY("own terminal", master < 0 ? -1 : grantpt(master) < 0 ? -1 : unlockpt(master));
  int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
  setsid();
  TRY("own controlling terminal", ioctl(slave, TIOCSCTTY, 0));
  TRY("TIOCSTI", ioctl(slave, TIOCSTI, "x"));
  TRY("TIOCSTI with high bits", syscall(SYS_ioctl, slave, 0x100000000L | TIOCSTI, "x"));
  char paste[2] = {2, 0};
  TRY("TIOCLINUX", ioctl(slave, TIOCLINUX, paste));
  TRY("TIOCCONS", ioctl(slave, TIOCCONS, 0));
  int discipline = 15;
  TRY("TIOCSETD", ioctl(slave, TIOCSETD, &discipline));
  return 0;
}
