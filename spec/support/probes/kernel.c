/* System calls that the filter refuses, by their own name and by the back doors: x32 numbers, the
 * 32-bit entry, stray bits above an int. */
#include "attempt.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>

#define CALL(name, ...) TRY(#name, syscall(SYS_##name, __VA_ARGS__))

static void plain(void) {
  char page[4096] = {0};
  struct timespec now = {0};
  CALL(mount, "none", "/tmp", "tmpfs", 0, NULL);
  CALL(umount2, "/proc", MNT_DETACH);
  CALL(pivot_root, "/tmp", "/tmp");
  CALL(chroot, "/tmp");
  TRY("open_tree", syscall(428, AT_FDCWD, "/", 1));
  TRY("move_mount", syscall(429, AT_FDCWD, "/usr", AT_FDCWD, "/tmp", 0));
  TRY("fsopen", syscall(430, "tmpfs", 0));
  TRY("fsconfig", syscall(431, -1, 0, NULL, NULL, 0));
  TRY("fsmount", syscall(432, -1, 0, 0));
  TRY("fspick", syscall(433, AT_FDCWD, "/", 0));
  TRY("mount_setattr", syscall(442, AT_FDCWD, "/usr", 0, page, 32));
  TRY("open_tree_attr", syscall(467, AT_FDCWD, "/", 1, page, 32));
  CALL(unshare, CLONE_NEWUSER);
  CALL(setns, open("/proc/self/ns/user", O_RDONLY), 0);
  TRY("clone3", syscall(435, page, 64));
  TRY("listns", syscall(470, page, page, 1, 0));
  CALL(keyctl, 0, -3, 0, 0, 0);
  CALL(add_key, "user", "x", "x", 1, -3);
  CALL(request_key, "user", "x", NULL, -3);
  CALL(bpf, 0, page, 32);
  CALL(init_module, page, 16, "");
  CALL(finit_module, 0, "", 0);
  CALL(delete_module, "x", 0);
  CALL(kexec_load, 0, 0, NULL, 0);
  CALL(reboot, 0xfee1dead, 672274793, 0x89abcdef, NULL); /* Ctrl-Alt-Del: off */
  CALL(swapon, "/dev/null", 0);
  CALL(swapoff, "/dev/null");
  CALL(syslog, 3, page, sizeof page);
  CALL(acct, "/tmp/acct");
  CALL(quotactl, 0, "/dev/null", 0, page);
  CALL(sethostname, "x", 1);
  CALL(setdomainname, "x", 1);
  TRY("vhangup", syscall(SYS_vhangup));
  CALL(open_by_handle_at, 0, page, 0);
  CALL(name_to_handle_at, AT_FDCWD, "/", page, page, 0);
  CALL(settimeofday, &now, NULL);
  CALL(clock_settime, 0, &now);
  CALL(adjtimex, page);
  CALL(clock_adjtime, 0, page);
  TRY("io_uring_setup", syscall(425, 8, page));
  TRY("io_uring_enter", syscall(426, -1, 0, 0, 0, NULL, 0));
  TRY("io_uring_register", syscall(427, -1, 0, NULL, 0));
  CALL(ptrace, 0, 0, 0, 0);
  CALL(perf_event_open, page, 0, -1, -1, 0);
  CALL(userfaultfd, 1);
  CALL(fanotify_init, 0, 0);
  CALL(fanotify_mark, 0, 0, 0, 0, NULL);
  CALL(mbind, page, 4096, 0, NULL, 0, 0);
  CALL(set_mempolicy, 0, NULL, 0);
  CALL(migrate_pages, 0, 0, NULL, NULL);
  CALL(move_pages, 0, 0, NULL, NULL, NULL, 0);
  CALL(io_setup, 1, page);
  TRY("memfd_secret", syscall(447, 0));
  TRY("process_madvise", syscall(440, -1, NULL, 0, 0, 0));
  TRY("quotactl_fd", syscall(443, 0, 0, 0, NULL));
  TRY("set_mempolicy_home_node", syscall(450, 0, 0, 0, 0));
  TRY("lsm_set_self_attr", syscall(460, 0, page, 32, 0));
  TRY("personality no randomize", personality(ADDR_NO_RANDOMIZE));
  TRY("personality read implies exec", personality(READ_IMPLIES_EXEC));
  TRY("personality ask", personality(0xffffffff));
  TRY("PR_SET_MM", prctl(PR_SET_MM, PR_SET_MM_BRK, 0, 0, 0));
  TRY("PR_SET_DUMPABLE suid", prctl(PR_SET_DUMPABLE, 2, 0, 0, 0));
  TRY("PR_SET_SECUREBITS", prctl(PR_SET_SECUREBITS, 1, 0, 0, 0));
  TRY("PR_CAP_AMBIENT", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0));
  TRY("a call of the future", syscall(472));
  TRY("a call of the far future", syscall(1000));
  TRY("setuid 0", setuid(0));
  TRY("setgid 0", setgid(0));
  gid_t group = 0;
  TRY("setgroups", syscall(SYS_setgroups, 1, &group));
  TRY("mknod", mknod("/tmp/kmsg", S_IFCHR | 0666, 1 << 8 | 11));
  TRY("chown root", chown("/tmp", 0, 0));
}

static int nothing(void *unused) {
  (void)unused;
  return 0;
}

static void namespaces(void) {
  static const struct {
    const char *name;
    int flag;
  } flags[] = {{"mnt", CLONE_NEWNS},     {"cgroup", CLONE_NEWCGROUP},
               {"uts", CLONE_NEWUTS},    {"ipc", CLONE_NEWIPC},
               {"user", CLONE_NEWUSER},  {"pid", CLONE_NEWPID},
               {"net", CLONE_NEWNET},    {"time", 0x80},
               {"user+mnt", 0x10020000}, {"user+net", 0x50000000}};
  static char stack[16384];
  char name[64];
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    snprintf(name, sizeof name, "unshare %s", flags[i].name);
    TRY_APART(name, unshare(flags[i].flag));
    if (flags[i].flag == 0x80)
      continue;
    snprintf(name, sizeof name, "clone %s", flags[i].name);
    TRY(name, clone(nothing, stack + sizeof stack, flags[i].flag | SIGCHLD, NULL));
  }
  /* The kernel looks at all 64 bits of the flags of clone, at the low half of an int. */
  TRY("unshare with high bits", syscall(SYS_unshare, UINT64_C(0xffffffff00000000) | CLONE_NEWUSER));
}

#ifdef __x86_64__
static void x32(void) {
  char page[64] = {0};
  const long bit = 0x40000000;
  TRY("x32 getpid", syscall(bit | SYS_getpid));
  TRY("x32 mount", syscall(bit | SYS_mount, "none", "/tmp", "tmpfs", 0, NULL));
  TRY("x32 ptrace", syscall(bit | 521, 0, 0, 0, 0));
  TRY("x32 keyctl", syscall(bit | SYS_keyctl, 0, -3, 0));
  TRY("x32 ioctl", syscall(bit | 514, 0, 0x5412, page));
  TRY("x32 setrlimit", syscall(bit | SYS_setrlimit, 10, page));
}

/* 32-bit numbers mean other calls there; the addresses fit, this program is not relocated. */
static long int80(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "a"(number), "b"(a), "c"(b), "d"(c)
                   : "memory", "r8", "r9", "r10", "r11");
  if (result < 0 && result > -4096) {
    errno = (int)-result;
    return -1;
  }
  return result;
}

static void i386(void) {
  static char none[] = "none", tmp[] = "/tmp", passwd[] = "/etc/passwd";
  static uint32_t socket_args[3] = {40 /* AF_VSOCK */, SOCK_STREAM, 0};
  static uint32_t limit[2] = {7, 7};
  TRY_APART("i386 getpid", int80(20, 0, 0, 0));
  TRY_APART("i386 open", int80(5, (long)passwd, 0, 0));
  TRY_APART("i386 mount", int80(21, (long)none, (long)tmp, (long)none));
  TRY_APART("i386 ptrace", int80(26, 0, 0, 0));
  TRY_APART("i386 socketcall", int80(102, 1, (long)socket_args, 0));
  TRY_APART("i386 setrlimit", int80(75, 10, (long)limit, 0));
  TRY_APART("i386 unshare", int80(310, CLONE_NEWUSER, 0, 0));
  TRY_APART("i386 fork", int80(2, 0, 0, 0));
}
#endif

int main(void) {
  plain();
  namespaces();
#ifdef __x86_64__
  x32();
  i386();
#endif
  return 0;
}
