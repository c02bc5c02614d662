#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Writing ------------------------------------------------------------------------------------- */

static void writer_append(ms_writer *w, const void *bytes, size_t length) {
  if (w->overflow || length > w->capacity - w->length) {
    w->overflow = true;
    return;
  }
  if (length > 0)
    memcpy(w->data + w->length, bytes, length);
  w->length += length;
}

void ms_put_u32(ms_writer *w, uint32_t value) {
  writer_append(w, &value, sizeof value);
}

void ms_put_u64(ms_writer *w, uint64_t value) {
  writer_append(w, &value, sizeof value);
}

void ms_put_bytes(ms_writer *w, const void *bytes, size_t length) {
  if (length > UINT32_MAX) {
    w->overflow = true;
    return;
  }
  ms_put_u32(w, (uint32_t)length);
  writer_append(w, bytes, length);
  writer_append(w, "", 1);
}

void ms_put_str(ms_writer *w, const char *text) {
  ms_put_bytes(w, text, strlen(text));
}

void ms_put_exit(ms_writer *w, const ms_exit *e) {
  ms_put_u32(w, (uint32_t)e->pid);
  ms_put_u32(w, (uint32_t)e->status);
  ms_put_u32(w, e->reason);
  ms_put_u64(w, e->user_us);
  ms_put_u64(w, e->system_us);
  ms_put_u64(w, e->max_rss_kib);
  ms_put_u64(w, e->read_blocks);
  ms_put_u64(w, e->write_blocks);
  ms_put_u64(w, e->duration_ns);
}

void ms_put_program(ms_writer *w, const ms_program *p) {
  ms_put_u64(w, p->number);
  ms_put_u32(w, p->pid);
  ms_put_u32(w, p->running);
  ms_put_u32(w, p->background);
  ms_put_u32(w, (uint32_t)p->status);
  ms_put_u64(w, p->started_us);
  ms_put_bytes(w, p->words, p->words_length);
}

/* Reading ------------------------------------------------------------------------------------- */

/* The next `length` bytes, or NULL (and `bad`) when there are not so many. */
static const char *reader_take(ms_reader *r, size_t length) {
  if (r->bad || length > r->length - r->offset) {
    r->bad = true;
    return NULL;
  }
  const char *at = r->data + r->offset;
  r->offset += length;
  return at;
}

uint32_t ms_get_u32(ms_reader *r) {
  uint32_t value = 0;
  const char *at = reader_take(r, sizeof value);
  if (at)
    memcpy(&value, at, sizeof value);
  return value;
}

uint64_t ms_get_u64(ms_reader *r) {
  uint64_t value = 0;
  const char *at = reader_take(r, sizeof value);
  if (at)
    memcpy(&value, at, sizeof value);
  return value;
}

const char *ms_get_bytes(ms_reader *r, size_t *length) {
  size_t count = ms_get_u32(r);
  const char *at = reader_take(r, count);
  const char *nul = at ? reader_take(r, 1) : NULL;
  if (!nul || *nul != '\0') {
    r->bad = true;
    *length = 0;
    return "";
  }
  *length = count;
  return at;
}

const char *ms_get_str(ms_reader *r) {
  size_t length;
  const char *at = ms_get_bytes(r, &length);
  if (memchr(at, '\0', length)) {
    r->bad = true;
    return "";
  }
  return at;
}

void ms_get_exit(ms_reader *r, ms_exit *e) {
  e->pid = (int32_t)ms_get_u32(r);
  e->status = (int32_t)ms_get_u32(r);
  e->reason = ms_get_u32(r);
  e->user_us = ms_get_u64(r);
  e->system_us = ms_get_u64(r);
  e->max_rss_kib = ms_get_u64(r);
  e->read_blocks = ms_get_u64(r);
  e->write_blocks = ms_get_u64(r);
  e->duration_ns = ms_get_u64(r);
}

void ms_get_program(ms_reader *r, ms_program *p) {
  p->number = ms_get_u64(r);
  p->pid = ms_get_u32(r);
  p->running = ms_get_u32(r);
  p->background = ms_get_u32(r);
  p->status = (int32_t)ms_get_u32(r);
  p->started_us = ms_get_u64(r);
  p->words = ms_get_bytes(r, &p->words_length);
  bool ended = p->words_length > 0 && p->words[p->words_length - 1] == '\0';
  if (p->running > 1 || p->background > 1 || p->words_length > MS_PROGRAM_WORDS_MAX || !ended)
    r->bad = true;
}

bool ms_get_end(const ms_reader *r) {
  return !r->bad && r->offset == r->length;
}

/* Sockets ------------------------------------------------------------------------------------- */

/* Room for one control message with the files of one message, aligned as the kernel wants it. */
typedef union ms_control {
  struct cmsghdr align;
  char bytes[CMSG_SPACE(MS_WIRE_MAX_FDS * sizeof(int))];
} ms_control;

/* The kernel counts the files that are on their way in any socket of a user, and measures that by
 * the soft limit of who sends one more. Code in a sandbox may be that user, and fill sockets up to
 * a limit like ours: so, for this one call, ours is what it may be. */
static ssize_t send_above_others(int socket, const struct msghdr *message) {
  struct rlimit limit, raised;
  if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
    return -1;
  raised = (struct rlimit){limit.rlim_max, limit.rlim_max};
  if (setrlimit(RLIMIT_NOFILE, &raised) < 0)
    return -1;
  ssize_t sent = sendmsg(socket, message, MSG_NOSIGNAL | MSG_DONTWAIT);
  int error = errno;
  setrlimit(RLIMIT_NOFILE, &limit);
  errno = error;
  return sent;
}

int ms_send(int socket, const ms_header *header, const void *body, size_t length, const int *fds,
            size_t fd_count) {
  if (length > MS_WIRE_MAX - sizeof *header || fd_count > MS_WIRE_MAX_FDS)
    return -EMSGSIZE;
  struct iovec parts[2] = {{.iov_base = (void *)header, .iov_len = sizeof *header},
                           {.iov_base = (void *)body, .iov_len = length}};
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = length > 0 ? 2 : 1};
  ms_control control;
  if (fd_count > 0) {
    memset(&control, 0, sizeof control);
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
    memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
  }
  for (;;) {
    ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == ETOOMANYREFS)
      sent = send_above_others(socket, &message);
    if (sent >= 0)
      return 0;
    if (errno == EWOULDBLOCK || errno == EAGAIN || errno == ENOBUFS)
      return -EAGAIN;
    if (errno != EINTR)
      return -errno;
  }
}

bool ms_has_left(int error) {
  return error == -EPIPE || error == -ECONNRESET;
}

/* Outbox -------------------------------------------------------------------------------------- */

struct ms_parcel {
  ms_parcel *next;
  ms_header header;
  int fds[MS_WIRE_MAX_FDS]; /* owned */
  size_t fd_count, length;
  char body[];
};

static void close_all(const int *fds, size_t count) {
  for (size_t i = 0; i < count; i++)
    close(fds[i]);
}

int ms_outbox_send(ms_outbox *box, int socket, const ms_header *header, const void *body,
                   size_t length, const int *fds, size_t fd_count) {
  int sent = box->first ? -EAGAIN : ms_send(socket, header, body, length, fds, fd_count);
  if (sent != -EAGAIN) {
    close_all(fds, fd_count);
    return sent;
  }
  ms_parcel *parcel = fd_count <= MS_WIRE_MAX_FDS ? malloc(sizeof *parcel + length) : NULL;
  if (!parcel) {
    close_all(fds, fd_count);
    return -ENOMEM;
  }
  *parcel = (ms_parcel){.header = *header, .fd_count = fd_count, .length = length};
  if (fd_count > 0)
    memcpy(parcel->fds, fds, fd_count * sizeof *fds);
  if (length > 0)
    memcpy(parcel->body, body, length);
  if (box->last)
    box->last->next = parcel;
  else
    box->first = parcel;
  box->last = parcel;
  box->count++;
  return 0;
}

static void outbox_drop_first(ms_outbox *box) {
  ms_parcel *parcel = box->first;
  close_all(parcel->fds, parcel->fd_count);
  box->first = parcel->next;
  if (!box->first)
    box->last = NULL;
  box->count--;
  free(parcel);
}

int ms_outbox_flush(ms_outbox *box, int socket) {
  int failed = 0;
  while (box->first) {
    ms_parcel *p = box->first;
    int sent = ms_send(socket, &p->header, p->body, p->length, p->fds, p->fd_count);
    if (sent == -EAGAIN)
      break;
    if (sent < 0 && !ms_has_left(sent))
      failed = sent;
    outbox_drop_first(box);
  }
  return failed;
}

void ms_outbox_clear(ms_outbox *box) {
  while (box->first)
    outbox_drop_first(box);
}

/* Receiving ----------------------------------------------------------------------------------- */

/* Takes over every file of the control data, also of more than one message: none may leak. */
static bool receive_fds(struct msghdr *raw, ms_message *message) {
  bool fits = true;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(raw); c; c = CMSG_NXTHDR(raw, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
      continue;
    size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      if (message->fd_count < MS_WIRE_MAX_FDS) {
        message->fds[message->fd_count++] = fd;
      } else {
        close(fd);
        fits = false;
      }
    }
  }
  return fits;
}

void ms_close_fds(ms_message *message) {
  for (size_t i = 0; i < message->fd_count; i++)
    if (message->fds[i] >= 0)
      close(message->fds[i]);
  message->fd_count = 0;
}

int ms_receive(int socket, ms_message *message) {
  message->fd_count = 0;
  message->fds_lost = false;
  struct iovec part = {.iov_base = message->buffer, .iov_len = MS_WIRE_MAX};
  ms_control control;
  struct msghdr raw = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t length;
  int resets = 0; /* the peer closed before it had read all; once told, what it said is there */
  do
    length = recvmsg(socket, &raw, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (length < 0 && (errno == EINTR || (errno == ECONNRESET && resets++ == 0)));
  if (length < 0)
    return errno == EAGAIN || errno == EWOULDBLOCK ? -EAGAIN : errno == ECONNRESET ? 0 : -errno;
  bool fits = receive_fds(&raw, message);
  if (length == 0 && message->fd_count == 0)
    return 0;
  /* Cut although there was room in the control data: it is our own limit that was reached. */
  if (fits && raw.msg_flags & MSG_CTRUNC && message->fd_count < MS_WIRE_MAX_FDS) {
    ms_close_fds(message);
    message->fds_lost = true;
    raw.msg_flags &= ~MSG_CTRUNC;
  }
  if (!fits || (raw.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
      (size_t)length < sizeof message->header) {
    ms_close_fds(message);
    return -EPROTO;
  }
  memcpy(&message->header, message->buffer, sizeof message->header);
  message->buffer[length] = '\0';
  message->body = (ms_reader){.data = message->buffer + sizeof message->header,
                              .length = (size_t)length - sizeof message->header};
  return 1;
}
