/* The host's keys. Arguments: the number of one, its name. */
#include "attempt.h"

#include <stdlib.h>
#include <sys/syscall.h>

int main(int argc, char **argv) {
  char text[256];
  if (argc < 3)
    return 2;
  long serial = strtol(argv[1], NULL, 10);
  TRY("read", syscall(SYS_keyctl, 11, serial, text, sizeof text, 0));
  TRY("describe", syscall(SYS_keyctl, 6, serial, text, sizeof text, 0));
  TRY("session", syscall(SYS_keyctl, 0, -3, 0, 0, 0));
  TRY("user session", syscall(SYS_keyctl, 0, -5, 0, 0, 0));
  TRY("search", syscall(SYS_keyctl, 10, -3, "user", argv[2], 0));
  TRY("join", syscall(SYS_keyctl, 1, NULL, 0, 0, 0));
  TRY("request", syscall(SYS_request_key, "user", argv[2], NULL, 0));
  TRY("add", syscall(SYS_add_key, "user", "mine", "x", 1, -3));
  return 0;
}
