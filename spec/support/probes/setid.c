/* Every way to a setuid or setgid bit, in the working directory. What must go on working: plain
 * modes, and opens that make nothing but have rubbish where a mode would be. */
#include "attempt.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

static long open_with(uint64_t mode, uint64_t flags) {
  struct open_how how = {.flags = flags, .mode = mode};
  return syscall(SYS_openat2, AT_FDCWD, "by-openat2", &how, sizeof how);
}

int main(void) {
  const uint64_t stray = UINT64_C(1) << 32;
  int fd = open("file", O_RDWR | O_CREAT, 0644);
  TRY("file", fd);
  TRY("chmod", chmod("file", 04755));
  TRY("chmod, group", chmod("file", 02755));
  TRY("chmod, high half", syscall(SYS_chmod, "file", stray | 04755));
  TRY("fchmod", fchmod(fd, 06755));
  TRY("fchmodat", fchmodat(AT_FDCWD, "file", 04755, 0));
  TRY("fchmodat2", syscall(SYS_fchmodat2, AT_FDCWD, "file", 04755, 0));
  TRY("open", syscall(SYS_open, "by-open", O_WRONLY | O_CREAT, 04755));
  TRY("openat", syscall(SYS_openat, AT_FDCWD, "by-openat", O_WRONLY | O_CREAT, 02755));
  TRY("creat", syscall(SYS_creat, "by-creat", 04755));
  TRY("nameless", syscall(SYS_openat, AT_FDCWD, ".", O_WRONLY | O_TMPFILE, 04755));
  TRY("mknod", syscall(SYS_mknod, "by-mknod", S_IFREG | 04755, 0));
  TRY("mknodat", syscall(SYS_mknodat, AT_FDCWD, "by-mknodat", S_IFREG | 04755, 0));
  TRY("openat2", open_with(04755, O_WRONLY | O_CREAT));
  TRY("openat2, plain", open_with(0, O_RDONLY));
  TRY("plain chmod", chmod("file", 0700));
  TRY("sticky", chmod("file", 01700));
  TRY("plain open", open("plain", O_WRONLY | O_CREAT | O_EXCL, 0755));
  TRY("stray mode", syscall(SYS_openat, AT_FDCWD, "file", O_RDONLY, 06755));
  TRY("stray mode of a directory",
      syscall(SYS_openat, AT_FDCWD, ".", O_RDONLY | O_DIRECTORY, 06755));
  TRY("mkdir", mkdir("directory", 0755));
  return 0;
}
