/* Sockets of each family, and ways to what listens on the host. Arguments: an abstract name, a
 * port, a SysV key. */
#include "attempt.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

static long connect_abstract(const char *name, int type) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  size_t length = strlen(name);
  memcpy(address.sun_path + 1, name, length);
  int fd = socket(AF_UNIX, type, 0);
  return connect(fd, (struct sockaddr *)&address,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length));
}

static long connect_inet(const char *ip, int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  inet_pton(AF_INET, ip, &address.sin_addr);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  return connect(fd, (struct sockaddr *)&address, sizeof address);
}

static long send_inet6(const char *ip) {
  struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(53)};
  inet_pton(AF_INET6, ip, &address.sin6_addr);
  int fd = socket(AF_INET6, SOCK_DGRAM, 0);
  return sendto(fd, "x", 1, 0, (struct sockaddr *)&address, sizeof address);
}

static long send_inet(const char *ip, int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  inet_pton(AF_INET, ip, &address.sin_addr);
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  return sendto(fd, "x", 1, 0, (struct sockaddr *)&address, sizeof address);
}

static long own_loopback(const char *ip) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  socklen_t size = sizeof address;
  inet_pton(AF_INET, ip, &address.sin_addr);
  int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(server, (struct sockaddr *)&address, size) < 0 || listen(server, 1) < 0 ||
      getsockname(server, (struct sockaddr *)&address, &size) < 0)
    return -1;
  return connect(client, (struct sockaddr *)&address, size);
}

int main(int argc, char **argv) {
  char name[64];
  if (argc < 4)
    return 2;
  for (int family = 0; family <= 46; family++) {
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET};
    long opened = -1;
    for (size_t i = 0; i < sizeof types / sizeof *types && opened < 0; i++)
      opened = socket(family, types[i], 0);
    snprintf(name, sizeof name, "family %d", family);
    tell(name, opened);
    if (opened >= 0)
      close((int)opened);
  }
  TRY("raw", socket(AF_INET, SOCK_RAW, 1));
  TRY("packet by type", socket(AF_INET, SOCK_PACKET, 0));
  TRY("vsock with high bits", syscall(SYS_socket, 0x100000000L | 40, SOCK_STREAM, 0));
  TRY("vsock pair", socketpair(40, SOCK_STREAM, 0, (int[2]){0}));
  TRY("netlink route", socket(AF_NETLINK, SOCK_RAW, 0));
  TRY("netlink netfilter", socket(AF_NETLINK, SOCK_RAW, 12));
  TRY("netlink audit", socket(AF_NETLINK, SOCK_RAW, 9));
  TRY("netlink uevent", socket(AF_NETLINK, SOCK_RAW, 15));
  TRY("netlink diag", socket(AF_NETLINK, SOCK_RAW, 4));

  TRY("abstract stream", connect_abstract(argv[1], SOCK_STREAM));
  TRY("tcp 127.0.0.1", connect_inet("127.0.0.1", atoi(argv[2])));
  TRY("tcp 127.0.0.2", connect_inet("127.0.0.2", atoi(argv[2])));
  TRY("tcp 0.0.0.0", connect_inet("0.0.0.0", atoi(argv[2])));
  TRY("tcp metadata", connect_inet("169.254.169.254", 80));
  TRY("tcp private", connect_inet("10.0.0.1", 80));
  TRY("udp dns", send_inet("8.8.8.8", 53));
  TRY("udp broadcast", send_inet("255.255.255.255", 9));
  TRY("udp multicast", send_inet("224.0.0.1", 9));
  TRY("udp ipv6", send_inet6("2001:4860:4860::8888"));
  TRY("own loopback", own_loopback("127.0.0.1"));

  TRY("shm by key", shmget(atoi(argv[3]), 4096, 0));
  TRY("shm by id", (long)shmat(atoi(argv[3]) & 0xffff, NULL, SHM_RDONLY));
  long found = -1;
  for (int id = 0; id < 70000; id++) { /* ids are small numbers */
    struct shmid_ds info;
    if (shmctl(id, 13 /* SHM_STAT */, &info) >= 0 || shmctl(id, IPC_STAT, &info) >= 0)
      found = id;
  }
  errno = ENOENT;
  tell("shm by search", found);
  TRY("own shm", shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600));
  return 0;
}
