/* links: src/wire.c */
/* The messages' readers: the first bytes choose which are called in what order, the rest is the
 * body; then the whole as a datagram through a socket. */
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define MUST(condition)                                                                            \
  do {                                                                                             \
    if (!(condition))                                                                              \
      abort();                                                                                     \
  } while (0)

static void read_one(ms_reader *r, unsigned which) {
  size_t length;
  const char *text;
  ms_exit e;
  ms_program p;
  switch (which & 7) {
  case 0:
    if (ms_get_u32(r) != 0)
      MUST(!r->bad);
    break;
  case 1:
    if (ms_get_u64(r) != 0)
      MUST(!r->bad);
    break;
  case 2:
    text = ms_get_bytes(r, &length);
    MUST(text[length] == '\0' && (!r->bad || length == 0));
    break;
  case 3:
    text = ms_get_str(r);
    MUST(!r->bad || text[0] == '\0');
    break;
  case 4:
    ms_get_exit(r, &e);
    break;
  case 5:
    ms_get_program(r, &p);
    MUST(r->bad || (p.words_length > 0 && p.words_length <= MS_PROGRAM_WORDS_MAX &&
                    p.words[p.words_length - 1] == '\0'));
    break;
  default:
    (void)ms_get_end(r);
  }
  MUST(r->offset <= r->length);
}

static void read_body(const char *body, size_t length, uint64_t plan) {
  ms_reader r = {.data = body, .length = length};
  for (int i = 0; i < 16; i++, plan >>= 3)
    read_one(&r, (unsigned)plan);
  if (ms_get_end(&r))
    MUST(!r.bad && r.offset == r.length);
}

/* As a datagram, with a file along if the first byte is odd. */
static void send_through(const uint8_t *bytes, size_t size) {
  int ends[2];
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
  struct iovec part = {.iov_base = (void *)bytes, .iov_len = size};
  union {
    struct cmsghdr align;
    char room[CMSG_SPACE(sizeof(int) * 6)];
  } control = {0};
  struct msghdr raw = {.msg_iov = &part, .msg_iovlen = 1};
  size_t files = size > 0 ? bytes[0] % 7 : 0;
  if (files > 0) {
    raw.msg_control = &control;
    raw.msg_controllen = CMSG_SPACE(files * sizeof(int));
    struct cmsghdr *rights = CMSG_FIRSTHDR(&raw);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(files * sizeof(int));
    for (size_t i = 0; i < files; i++)
      memcpy(CMSG_DATA(rights) + i * sizeof(int), &ends[0], sizeof(int));
  }
  if (sendmsg(ends[0], &raw, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
    static ms_message message;
    int received = ms_receive(ends[1], &message);
    MUST(received == 1 || received == 0 || received == -EPROTO || received == -EAGAIN);
    if (received == 1) {
      MUST(size >= sizeof message.header && files <= MS_WIRE_MAX_FDS);
      MUST(message.body.length == size - sizeof message.header && message.fd_count == files);
      read_body(message.body.data, message.body.length, message.header.id);
    }
    if (received != 1)
      MUST(message.fd_count == 0);
    ms_close_fds(&message);
  }
  close(ends[0]);
  close(ends[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  uint64_t plan = 0;
  if (size >= sizeof plan) {
    memcpy(&plan, bytes, sizeof plan);
    char *body = malloc(size - sizeof plan + 1);
    MUST(body);
    memcpy(body, bytes + sizeof plan, size - sizeof plan);
    body[size - sizeof plan] = '\0';
    read_body(body, size - sizeof plan, plan);
    free(body);
  }
  if (size <= MS_WIRE_MAX)
    send_through(bytes, size);
  return 0;
}
