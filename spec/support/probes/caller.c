/* links: src/wire.c */
/* caller PATH MODE [COUNT]
 *
 * Somebody at the socket of a detached sandbox, whom it does not expect, outside or inside.
 *
 *   greet    tells whether it is let in
 *   hold     COUNT connections, held until the end of our input; tells how many were let in
 *   garbage  COUNT messages of all kinds that mean nothing
 *   flood    calls without end whose answers are not read, until no more goes through; then waits
 *            for the end of our input */
#include "attempt.h"

#include "wire.h"

#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

static ms_message message;

static int call(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  return fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -1 : fd;
}

/* 0 when it has said that it is ready for us. */
static int await_greeting(int fd) {
  struct pollfd news = {.fd = fd, .events = POLLIN};
  for (;;) {
    if (poll(&news, 1, 10000) <= 0) {
      errno = ETIMEDOUT;
      return -1;
    }
    int received = ms_receive(fd, &message);
    if (received == -EAGAIN)
      continue;
    ms_close_fds(&message);
    errno = ECONNRESET;
    return received == 1 && message.header.type == MS_READY ? 0 : -1;
  }
}

static void await_end_of_input(void) {
  char byte;
  while (read(0, &byte, 1) > 0)
    continue;
}

static int greet(const char *path) {
  int fd = call(path);
  tell("connect", fd);
  if (fd >= 0)
    tell("greeting", await_greeting(fd));
  return 0;
}

static int hold(const char *path, long count) {
  long greeted = 0;
  for (long i = 0; i < count; i++) {
    int fd = call(path); /* kept */
    greeted += fd >= 0 && await_greeting(fd) == 0;
  }
  printf("%ld\n", greeted);
  fflush(stdout);
  await_end_of_input();
  return 0;
}

/* Every type there is, with bodies of any length, files that nobody asked for, and lengths that are
 * none. It hangs up on us when it has had enough; then we call again. */
static int garbage(const char *path, long count) {
  static char bytes[MS_WIRE_MAX];
  srandom(1);
  int fd = call(path);
  for (long i = 0; i < count && fd >= 0; i++) {
    size_t length = (size_t)random() % (i % 16 == 0 ? sizeof bytes : 96);
    for (size_t k = 0; k < length; k++)
      bytes[k] = (char)(random() % 4 ? 0 : random());
    ms_header header = {.type = (uint16_t)(random() % 32),
                        .flags = (uint16_t)(random() % 4 == 0),
                        .id = (uint32_t)(random() % 5)};
    int files[4] = {0, 1, 2, fd};
    long sent = random() % 8 == 0 ? send(fd, bytes, length % 8, MSG_NOSIGNAL | MSG_DONTWAIT)
                                  : ms_send(fd, &header, bytes, length % (MS_WIRE_MAX - 8), files,
                                            (size_t)random() % 5);
    while (ms_receive(fd, &message) == 1)
      ms_close_fds(&message);
    if (sent < 0) {
      close(fd);
      fd = call(path);
    }
  }
  return fd < 0 ? 1 : 0;
}

static int flood(const char *path) {
  char text[64];
  ms_writer body = {.data = text, .capacity = sizeof text};
  int fd = call(path);
  struct pollfd room = {.fd = fd, .events = POLLOUT};
  ms_put_u32(&body, MS_CALL_PROGRAMS);
  ms_put_u32(&body, 0);
  ms_put_u32(&body, 0);
  ms_put_u64(&body, 0);
  ms_put_u64(&body, 0);
  ms_put_str(&body, "/");
  ms_put_str(&body, "");
  ms_header header = {.type = MS_CALL};
  long count = 0;
  while (poll(&room, 1, 500) > 0 && count < 1000000)
    if (ms_send(fd, &header, body.data, body.length, NULL, 0) == 0)
      count++;
  printf("%ld\n", count);
  fflush(stdout);
  await_end_of_input();
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 3)
    return 2;
  long count = argc > 3 ? strtol(argv[3], NULL, 10) : 1;
  if (strcmp(argv[2], "greet") == 0)
    return greet(argv[1]);
  if (strcmp(argv[2], "hold") == 0)
    return hold(argv[1], count);
  if (strcmp(argv[2], "garbage") == 0)
    return garbage(argv[1], count);
  return flood(argv[1]);
}
