/* links: src/agent/filter.c -lseccomp */
/* Checks src/agent/filter.c in three ways:
 *
 *   1. The policy is written down again here, as a plain C function and, as far as it can say it,
 *      for libseccomp. All three must agree on every system call and on very many arguments; the
 *      programs of BPF are run by a small interpreter.
 *   2. A child puts itself under the filter for real and tries.
 *   3. It must be quick to make.
 *
 * cc -std=c11 -D_GNU_SOURCE -Isrc spec/support/filter_check.c src/agent/filter.c -lseccomp
 * With the argument "model" only the first part runs (for emulators, which install no filters). */
#include "agent/filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#define OTHER_ARCH AUDIT_ARCH_I386
#else
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#define OTHER_ARCH AUDIT_ARCH_ARM
#endif

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define LAST_KNOWN 471
#define LAST_TRIED 600
#define SECRET 0x9f3c01d7e45a2b68u
#define BIT(n) ((uint64_t)1 << (n))

static unsigned passed, failed;

__attribute__((format(printf, 2, 3))) static void check(bool ok, const char *format, ...) {
  if (ok) {
    passed++;
    return;
  }
  failed++;
  va_list args;
  va_start(args, format);
  fputs("FAILED: ", stdout);
  vprintf(format, args);
  putchar('\n');
  va_end(args);
}

static _Noreturn void give_up(const char *what) {
  perror(what);
  exit(2);
}

/* ---- The policy, once more ---- */

#define E(error) (SECCOMP_RET_ERRNO | (error))

static const struct {
  uint32_t answer;
  const char *names;
} PLAIN[] = {
    {E(EPERM),
     "mount umount2 pivot_root chroot setns unshare keyctl add_key request_key bpf perf_event_open "
     "userfaultfd init_module finit_module delete_module kexec_load kexec_file_load reboot swapon "
     "swapoff syslog acct quotactl quotactl_fd ptrace process_vm_readv process_vm_writev kcmp "
     "name_to_handle_at open_by_handle_at vhangup iopl ioperm settimeofday clock_settime "
     "clock_adjtime adjtimex sethostname setdomainname mbind set_mempolicy set_mempolicy_home_node "
     "migrate_pages move_pages fanotify_init fanotify_mark pidfd_getfd lsm_set_self_attr"},
    {E(ENOSYS),
     "clone3 open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr "
     "io_setup io_uring_setup io_uring_enter io_uring_register process_madvise memfd_secret "
     "modify_ldt "
     "listns uselib ustat sysfs _sysctl nfsservctl lookup_dcookie"},
};

/* What each name of `allow` gives back. */
static const struct {
  const char *name, *calls;
} GRANTS[] = {
    {"ptrace", "ptrace"},
    {"process_vm_readv", "process_vm_readv"},
    {"process_vm_writev", "process_vm_writev"},
    {"pidfd_getfd", "pidfd_getfd"},
    {"kcmp", "kcmp"},
    {"personality", "personality"},
    {"debug", "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp personality"},
    {"perf_event_open", "perf_event_open"},
    {"userfaultfd", "userfaultfd"},
    {"process_madvise", "process_madvise"},
    {"memfd_secret", "memfd_secret"},
    {"modify_ldt", "modify_ldt"},
    {"io_setup", "io_setup"},
    {"name_to_handle_at", "name_to_handle_at"},
    {"fanotify_init", "fanotify_init"},
    {"fanotify_mark", "fanotify_mark"},
    {"fanotify", "fanotify_init fanotify_mark"},
    {"mbind", "mbind"},
    {"set_mempolicy", "set_mempolicy"},
    {"set_mempolicy_home_node", "set_mempolicy_home_node"},
    {"migrate_pages", "migrate_pages"},
    {"move_pages", "move_pages"},
    {"numa", "mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages"},
    {"adjtimex", "adjtimex"},
    {"clock_adjtime", "clock_adjtime"},
    {"clock", "adjtimex clock_adjtime"},
};

/* clang-format off */
static const char *const NEVER[] = {
    "", "*", "vsock", "read", "DEBUG", "debug ",
    "mount", "umount2", "open_tree", "open_by_handle_at", "setns", "unshare", "clone", "clone3",
    "keyctl", "add_key", "request_key", "bpf", "reboot", "kexec_load", "init_module",
    "io_uring_setup", "socket", "socketpair", "ioctl",
    "setrlimit", "prlimit64", "setpriority", "sched_setaffinity",
};
/* clang-format on */

/* Calls that libseccomp 2.5 has not heard of. */
static const struct {
  const char *name;
  int number;
} YOUNG[] = {{"set_mempolicy_home_node", 450},
             {"lsm_set_self_attr", 460},
             {"open_tree_attr", 467},
             {"listns", 470}};

/* The number, or below 0 if this architecture has no such call. */
static int number_of(const char *name) {
  for (size_t i = 0; i < LENGTH(YOUNG); i++)
    if (strcmp(YOUNG[i].name, name) == 0)
      return YOUNG[i].number;
  int number = seccomp_syscall_resolve_name(name);
  if (number == __NR_SCMP_ERROR)
    check(false, "libseccomp does not know %s", name);
  return number;
}

static void each_word(const char *words, void (*visit)(const char *word, void *data), void *data) {
  char copy[1024], *rest = copy;
  snprintf(copy, sizeof copy, "%s", words);
  for (char *word; (word = strsep(&rest, " "));)
    visit(word, data);
}

/* One policy: its answers to calls that need no look at arguments, and what it lifts of the rest */
typedef struct policy {
  uint32_t plain[LAST_KNOWN + 1];
  uint32_t fill;
  bool any_personality;
  uint64_t secret;
} policy;

static void policy_set(const char *name, void *data) {
  policy *p = data;
  int number = number_of(name);
  if (number >= 0)
    p->plain[number] = p->fill;
}

static void policy_lift(const char *name, void *data) {
  policy *p = data;
  if (strcmp(name, "personality") == 0)
    p->any_personality = true;
  p->fill = SECCOMP_RET_ALLOW;
  policy_set(name, data);
}

static policy policy_make(const char *const *allow, size_t count, uint64_t secret) {
  policy p = {.secret = secret};
  for (size_t number = 0; number <= LAST_KNOWN; number++)
    p.plain[number] = SECCOMP_RET_ALLOW;
  for (size_t i = 0; i < LENGTH(PLAIN); i++) {
    p.fill = PLAIN[i].answer;
    each_word(PLAIN[i].names, policy_set, &p);
  }
  for (size_t i = 0; i < count; i++)
    for (size_t k = 0; k < LENGTH(GRANTS); k++)
      if (strcmp(allow[i], GRANTS[k].name) == 0)
        each_word(GRANTS[k].calls, policy_lift, &p);
  return p;
}

static uint32_t model_socket(int family, int type, int protocol) {
  bool ok = family == AF_UNIX || family == AF_INET6 ||
            (family == AF_INET && (type & 0xf) != SOCK_PACKET) ||
            (family == AF_NETLINK && protocol == 0);
  return ok ? SECCOMP_RET_ALLOW : E(EAFNOSUPPORT);
}

static uint32_t model_prlimit(const policy *p, const __u64 *a) {
  if (p->secret != 0 && a[4] == p->secret)
    return SECCOMP_RET_ALLOW;
  if ((int)a[0] != 0)
    return E(EPERM);
  if (a[2] == 0)
    return SECCOMP_RET_ALLOW;
  if ((int)a[1] == RLIMIT_LOCKS)
    return E(EPERM);
  if ((int)a[1] == RLIMIT_CORE)
    return a[3] == 0 ? E(0) : E(EPERM);
  return SECCOMP_RET_ALLOW;
}

static uint32_t model_run(const policy *p, const struct seccomp_data *call) {
  const __u64 *a = call->args;
  bool deny = false;

  if (call->arch != NATIVE_ARCH || call->nr < 0 || call->nr > LAST_KNOWN)
    return E(ENOSYS);
  switch (call->nr) {
  case SYS_clone:
    deny = (a[0] & 0x7e020000) != 0;
    break;
  case SYS_ioctl:
    deny = (uint32_t)a[1] == 0x5412 || (uint32_t)a[1] == 0x541c || (uint32_t)a[1] == 0x541d ||
           (uint32_t)a[1] == 0x5423;
    break;
  case SYS_socket:
  case SYS_socketpair:
    return model_socket((int)a[0], (int)a[1], (int)a[2]);
  case SYS_setrlimit:
    if ((int)a[0] == RLIMIT_CORE)
      return E(0);
    deny = (int)a[0] == RLIMIT_LOCKS;
    break;
  case SYS_prlimit64:
    return model_prlimit(p, a);
  case SYS_personality:
    deny = !p->any_personality && (uint32_t)a[0] != 0xffffffff && (uint32_t)a[0] != 0 &&
           (uint32_t)a[0] != 8 && (uint32_t)a[0] != 0x20000 && (uint32_t)a[0] != 0x20008;
    break;
  case SYS_setpriority:
    deny = (int)a[0] == 2 || (int)a[1] == 1;
    break;
  case SYS_ioprio_set:
    deny = (int)a[0] == 3 || (int)a[1] == 1;
    break;
  case SYS_sched_setaffinity:
  case SYS_sched_setattr:
  case SYS_sched_setparam:
  case SYS_sched_setscheduler:
    deny = (int)a[0] == 1;
    break;
  default:
    return p->plain[call->nr];
  }
  return deny ? E(EPERM) : SECCOMP_RET_ALLOW;
}

/* ---- The policy for libseccomp ---- */

static void rule(scmp_filter_ctx context, uint32_t answer, int number, unsigned count,
                 const struct scmp_arg_cmp *comparisons) {
  int error = seccomp_rule_add_exact_array(context, answer, number, count, comparisons);
  if (error != 0)
    check(false, "libseccomp: rule for %d: %s", number, strerror(-error));
}

#define RULE(answer, number, ...)                                                                  \
  rule(context, answer, number,                                                                    \
       sizeof((struct scmp_arg_cmp[]){__VA_ARGS__}) / sizeof(struct scmp_arg_cmp),                 \
       (struct scmp_arg_cmp[]){__VA_ARGS__})
#define INT_IS(arg, value) SCMP_CMP(arg, SCMP_CMP_MASKED_EQ, 0xffffffffu, value)
#define HAS_BIT(arg, n) SCMP_CMP(arg, SCMP_CMP_MASKED_EQ, BIT(n), BIT(n))

static void seccomp_sockets(scmp_filter_ctx context, int number) {
  for (unsigned family = 0; family <= 45; family++) {
    if (family == AF_UNIX || family == AF_INET || family == AF_INET6 || family == AF_NETLINK)
      continue;
    RULE(E(EAFNOSUPPORT), number, INT_IS(0, family));
  }
  for (int bit = 0; bit < 32; bit++)
    RULE(E(EAFNOSUPPORT), number, INT_IS(0, AF_NETLINK), HAS_BIT(2, bit));
  RULE(E(EAFNOSUPPORT), number, INT_IS(0, AF_INET),
       SCMP_CMP(1, SCMP_CMP_MASKED_EQ, 0xf, SOCK_PACKET));
}

static void seccomp_prlimit(scmp_filter_ctx context, uint64_t secret) {
  const struct scmp_arg_cmp closed = SCMP_CMP(4, SCMP_CMP_NE, secret, 0);
  const struct scmp_arg_cmp change = SCMP_CMP(2, SCMP_CMP_NE, 0, 0);
  for (int bit = 0; bit < 32; bit++)
    RULE(E(EPERM), SYS_prlimit64, closed, HAS_BIT(0, bit));
  RULE(E(EPERM), SYS_prlimit64, closed, INT_IS(0, 0), INT_IS(1, RLIMIT_LOCKS), change);
  RULE(E(EPERM), SYS_prlimit64, closed, INT_IS(0, 0), INT_IS(1, RLIMIT_CORE), change,
       SCMP_CMP(3, SCMP_CMP_NE, 0, 0));
  RULE(E(0), SYS_prlimit64, closed, INT_IS(0, 0), INT_IS(1, RLIMIT_CORE), change,
       SCMP_CMP(3, SCMP_CMP_EQ, 0, 0));
}

static void seccomp_rules(scmp_filter_ctx context, const policy *p) {
  for (int number = 0; number <= LAST_KNOWN; number++)
    if (p->plain[number] != SECCOMP_RET_ALLOW)
      rule(context, p->plain[number], number, 0, NULL);
  for (int number = LAST_KNOWN + 1; number <= LAST_TRIED; number++)
    rule(context, E(ENOSYS), number, 0, NULL);

  static const int namespaces[] = {17, 25, 26, 27, 28, 29, 30};
  for (size_t i = 0; i < LENGTH(namespaces); i++)
    RULE(E(EPERM), SYS_clone, HAS_BIT(0, namespaces[i]));
  static const unsigned requests[] = {TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD};
  for (size_t i = 0; i < LENGTH(requests); i++)
    RULE(E(EPERM), SYS_ioctl, INT_IS(1, requests[i]));
  seccomp_sockets(context, SYS_socket);
  seccomp_sockets(context, SYS_socketpair);
  RULE(E(EPERM), SYS_setrlimit, INT_IS(0, RLIMIT_LOCKS));
  RULE(E(0), SYS_setrlimit, INT_IS(0, RLIMIT_CORE));
  seccomp_prlimit(context, p->secret);
  RULE(E(EPERM), SYS_setpriority, INT_IS(0, 2));
  RULE(E(EPERM), SYS_setpriority, INT_IS(1, 1));
  RULE(E(EPERM), SYS_ioprio_set, INT_IS(0, 3));
  RULE(E(EPERM), SYS_ioprio_set, INT_IS(1, 1));
  static const int by_pid[] = {SYS_sched_setaffinity, SYS_sched_setattr, SYS_sched_setparam,
                               SYS_sched_setscheduler};
  for (size_t i = 0; i < LENGTH(by_pid); i++)
    RULE(E(EPERM), by_pid[i], INT_IS(0, 1));
}

/* libseccomp has no "all but these" for one argument: not for personality, nor for the families
 * that nobody has named yet. */
static bool seccomp_can_say(const struct seccomp_data *call) {
  if (call->arch != NATIVE_ARCH)
    return true;
  if (call->nr == SYS_socket || call->nr == SYS_socketpair)
    return (uint32_t)call->args[0] <= 45;
  return call->nr != SYS_personality && call->nr <= LAST_TRIED;
}

typedef struct program {
  struct sock_filter *code; /* owned */
  size_t count;
} program;

static program seccomp_build(const policy *p, int optimize) {
  scmp_filter_ctx context = seccomp_init(SCMP_ACT_ALLOW);
  if (!context || seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, E(ENOSYS)) != 0 ||
      seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, (uint32_t)optimize) != 0)
    give_up("libseccomp");
  seccomp_rules(context, p);

  int file = memfd_create("bpf", MFD_CLOEXEC);
  if (file < 0 || seccomp_export_bpf(context, file) != 0)
    give_up("seccomp_export_bpf");
  off_t size = lseek(file, 0, SEEK_END);
  program result = {malloc((size_t)size), (size_t)size / sizeof(struct sock_filter)};
  if (!result.code || pread(file, result.code, (size_t)size, 0) != size)
    give_up("pread");
  close(file);
  seccomp_release(context);
  return result;
}

/* ---- Classic BPF, as far as the two builders use it ---- */

#define BROKEN 0xdeadbeefu /* no answer of either */

static bool bpf_compare(uint16_t test, uint32_t a, uint32_t k) {
  switch (test) {
  case BPF_JEQ:
    return a == k;
  case BPF_JGT:
    return a > k;
  case BPF_JGE:
    return a >= k;
  default:
    return (a & k) != 0; /* BPF_JSET */
  }
}

static uint32_t bpf_run(const struct sock_filter *code, size_t count,
                        const struct seccomp_data *call) {
  uint32_t a = 0, x = 0;
  for (size_t pc = 0; pc < count; pc++) {
    const struct sock_filter *i = &code[pc];
    switch (i->code) {
    case BPF_LD | BPF_W | BPF_ABS:
      if (i->k % 4 != 0 || i->k >= sizeof *call)
        return BROKEN;
      memcpy(&a, (const char *)call + i->k, sizeof a);
      break;
    case BPF_ALU | BPF_AND | BPF_K:
      a &= i->k;
      break;
    case BPF_ALU | BPF_XOR | BPF_K:
      a ^= i->k;
      break;
    case BPF_ALU | BPF_OR | BPF_X:
      a |= x;
      break;
    case BPF_MISC | BPF_TAX:
      x = a;
      break;
    case BPF_JMP | BPF_JA:
      pc += i->k;
      break;
    case BPF_JMP | BPF_JEQ | BPF_K:
    case BPF_JMP | BPF_JGT | BPF_K:
    case BPF_JMP | BPF_JGE | BPF_K:
    case BPF_JMP | BPF_JSET | BPF_K:
      pc += bpf_compare(BPF_OP(i->code), a, i->k) ? i->jt : i->jf;
      break;
    case BPF_RET | BPF_K:
      return i->k;
    default:
      return BROKEN;
    }
  }
  return BROKEN;
}

/* ---- Comparing ---- */

typedef struct comparison {
  const policy *policy;
  program ours, theirs; /* theirs.code NULL: without libseccomp */
  unsigned long calls, with_theirs, wrong;
} comparison;

static void compare(comparison *c, const struct seccomp_data *call) {
  uint32_t want = model_run(c->policy, call);
  uint32_t got = bpf_run(c->ours.code, c->ours.count, call);
  uint32_t other = want;
  c->calls++;
  if (c->theirs.code && seccomp_can_say(call)) {
    other = bpf_run(c->theirs.code, c->theirs.count, call);
    c->with_theirs++;
  }
  if (got == want && other == want)
    return;
  if (c->wrong++ < 20)
    printf("  arch %x nr %d (%llx, %llx, %llx, %llx, %llx): want %x, got %x, libseccomp %x\n",
           call->arch, call->nr, call->args[0], call->args[1], call->args[2], call->args[3],
           call->args[4], want, got, other);
}

static void compare_args(comparison *c, int number, uint64_t a0, uint64_t a1, uint64_t a2,
                         uint64_t a3, uint64_t a4) {
  compare(c, &(struct seccomp_data){
                 .nr = number, .arch = NATIVE_ARCH, .args = {a0, a1, a2, a3, a4, 0}});
}

#define STRAY BIT(40) /* where no int reaches */

static void sweep_numbers(comparison *c) {
  static const uint64_t fills[] = {0, 1, 2, 4, 16, 0x5412, BIT(28), BIT(32), ~(uint64_t)0};
  for (int number = 0; number <= LAST_TRIED; number++)
    for (size_t i = 0; i < LENGTH(fills); i++) {
      uint64_t f = fills[i];
      struct seccomp_data call = {.nr = number, .arch = NATIVE_ARCH, .args = {f, f, f, f, f, f}};
      compare(c, &call);
      call.arch = OTHER_ARCH;
      compare(c, &call);
      call.arch = 0;
      compare(c, &call);
#if defined(__x86_64__)
      call.arch = NATIVE_ARCH;
      call.nr |= 0x40000000;
      compare(c, &call);
#endif
    }
}

/* Numbers that no libseccomp rule can be about. */
static void sweep_far_numbers(comparison *c) {
  program theirs = c->theirs;
  c->theirs.code = NULL;
  for (int bit = 9; bit < 32; bit++)
    for (int offset = -1; offset <= 1; offset++)
      compare_args(c, (int)((uint32_t)BIT(bit) + (uint32_t)offset), 0, 0, 0, 0, 0);
  c->theirs = theirs;
}

static void sweep_clone(comparison *c) {
  for (int bit = 0; bit < 64; bit++)
    for (int other = 0; other < 64; other++)
      compare_args(c, SYS_clone, BIT(bit) | BIT(other) | SIGCHLD, 0, 0, 0, 0);
  compare_args(c, SYS_clone, SIGCHLD, 0, 0, 0, 0);
  compare_args(c, SYS_clone, 0x3d0f00, 0, 0, 0, 0); /* a thread */
  compare_args(c, SYS_clone, 0x4111, 0, 0, 0, 0);   /* vfork */
}

static void sweep_ioctl(comparison *c) {
  for (uint64_t request = 0x5400; request < 0x5480; request++) {
    compare_args(c, SYS_ioctl, 0, request, 0, 0, 0);
    for (int bit = 16; bit < 64; bit++)
      compare_args(c, SYS_ioctl, 0, request | BIT(bit), 0, 0, 0);
  }
}

static void sweep_socket(comparison *c, int number) {
  static const uint64_t types[] = {0,
                                   SOCK_STREAM,
                                   SOCK_DGRAM,
                                   SOCK_RAW,
                                   SOCK_PACKET,
                                   SOCK_STREAM | SOCK_CLOEXEC,
                                   SOCK_PACKET | SOCK_CLOEXEC | SOCK_NONBLOCK,
                                   SOCK_PACKET | STRAY,
                                   SOCK_PACKET | 0x10,
                                   SOCK_STREAM | STRAY};
  for (uint64_t family = 0; family <= 80; family++)
    for (size_t t = 0; t < LENGTH(types); t++)
      for (int protocol = 0; protocol < 32 + 64; protocol++) {
        uint64_t p = protocol < 32 ? (uint64_t)protocol : BIT(protocol - 32);
        compare_args(c, number, family, types[t], p, 0, 0);
        compare_args(c, number, family | STRAY, types[t], p | STRAY, 0, 0);
      }
  for (int bit = 0; bit < 64; bit++)
    for (uint64_t family = 0; family <= 16; family++)
      compare_args(c, number, family | BIT(bit), SOCK_STREAM, 0, 0, 0);
}

static void sweep_setrlimit(comparison *c) {
  for (uint64_t resource = 0; resource < 32; resource++)
    for (int bit = 5; bit < 64; bit++) {
      compare_args(c, SYS_setrlimit, resource, 1, 0, 0, 0);
      compare_args(c, SYS_setrlimit, resource | BIT(bit), 1, 0, 0, 0);
    }
}

static void sweep_prlimit(comparison *c) {
  static const uint64_t pids[] = {0, 1, 2, STRAY, 1 | STRAY, BIT(31), 0xffffffff, ~(uint64_t)0};
  static const uint64_t pointers[] = {0, 1, BIT(31), BIT(32), BIT(63), 0x7ffc00001000};
  uint64_t doors[4 + 64 + 3] = {0, SECRET, SECRET & 0xffffffff, SECRET >> 32 << 32};
  size_t count = 4;
  for (int bit = 0; bit < 64; bit++)
    doors[count++] = SECRET ^ BIT(bit);
  doors[count++] = SECRET << 32 | SECRET >> 32;
  doors[count++] = ~(uint64_t)SECRET;
  doors[count++] = SECRET ^ (BIT(3) | BIT(35)); /* both halves wrong by the same */

  for (size_t p = 0; p < LENGTH(pids); p++)
    for (uint64_t resource = 0; resource < 36; resource++)
      for (size_t n = 0; n < LENGTH(pointers); n++)
        for (size_t o = 0; o < LENGTH(pointers); o++)
          for (size_t d = 0; d < count; d++)
            compare_args(c, SYS_prlimit64, pids[p],
                         resource < 18 ? resource : (resource - 18) | STRAY, pointers[n],
                         pointers[o], doors[d]);
}

static void sweep_personality(comparison *c) {
  static const uint64_t bases[] = {0, 8, 0x20000, 0x20008, 0xffffffff, 0x40000};
  for (size_t i = 0; i < LENGTH(bases); i++) {
    compare_args(c, SYS_personality, bases[i], 0, 0, 0, 0);
    for (int bit = 0; bit < 64; bit++)
      compare_args(c, SYS_personality, bases[i] ^ BIT(bit), 0, 0, 0, 0);
  }
}

static void sweep_agent(comparison *c) {
  static const int numbers[] = {SYS_setpriority,    SYS_ioprio_set,     SYS_sched_setaffinity,
                                SYS_sched_setattr,  SYS_sched_setparam, SYS_sched_setscheduler,
                                SYS_sched_getparam, SYS_kill,           SYS_getpriority};
  static const uint64_t values[] = {0,         1,           2,           3,     4,
                                    BIT(16),   1 | BIT(31), 0xffffffff,  STRAY, 1 | STRAY,
                                    2 | STRAY, 3 | STRAY,   ~(uint64_t)0};
  for (size_t i = 0; i < LENGTH(numbers); i++)
    for (size_t v = 0; v < LENGTH(values); v++)
      for (size_t w = 0; w < LENGTH(values); w++)
        compare_args(c, numbers[i], values[v], values[w], 5, 0, 0);
}

static void sweep_all(comparison *c) {
  sweep_numbers(c);
  sweep_far_numbers(c);
  sweep_clone(c);
  sweep_ioctl(c);
  sweep_socket(c, SYS_socket);
  sweep_socket(c, SYS_socketpair);
  sweep_setrlimit(c);
  sweep_prlimit(c);
  sweep_personality(c);
  sweep_agent(c);
}

static program ours_build(const char *const *allow, size_t count, uint64_t secret) {
  program p = {malloc(MS_FILTER_MAX * sizeof *p.code), 0};
  if (!p.code)
    give_up("malloc");
  p.count = ms_filter_build(p.code, MS_FILTER_MAX, allow, count, secret);
  return p;
}

static void check_policy(const char *title, const char *const *allow, size_t count,
                         uint64_t secret) {
  policy p = policy_make(allow, count, secret);
  comparison c = {.policy = &p, .ours = ours_build(allow, count, secret)};
  check(c.ours.count > 0, "%s: does not fit", title);
  if (secret != 0) /* the rules for libseccomp know no policy without a door */
    c.theirs = seccomp_build(&p, 2);
  sweep_all(&c);
  check(c.wrong == 0, "%s: %lu verdicts are wrong", title, c.wrong);
  printf("%-12s %zu instructions (libseccomp %zu), %lu calls compared, %lu with libseccomp's\n",
         title, c.ours.count, c.theirs.count, c.calls, c.with_theirs);
  free(c.ours.code);
  free(c.theirs.code);
}

/* Each set of names by itself, and many at random: numbers only, the rest is the same code. */
static void check_grants(void) {
  uint32_t random = 12345;
  size_t longest = 0;
  unsigned long wrong = 0;
  for (unsigned round = 0; round < LENGTH(GRANTS) + 3000; round++) {
    const char *allow[LENGTH(GRANTS)];
    size_t count = 0;
    for (size_t i = 0; i < LENGTH(GRANTS); i++) {
      random = random * 1664525 + 1013904223;
      if (round < LENGTH(GRANTS) ? i == round : random >> 30 == 0)
        allow[count++] = GRANTS[i].name;
    }
    policy p = policy_make(allow, count, SECRET);
    comparison c = {.policy = &p, .ours = ours_build(allow, count, SECRET)};
    for (int number = 0; number <= LAST_TRIED; number++)
      compare_args(&c, number, 0x40000, 0, 0, 0, 0);
    longest = c.ours.count > longest ? c.ours.count : longest;
    wrong += c.wrong;
    free(c.ours.code);
  }
  check(wrong == 0, "%lu verdicts are wrong with names re-allowed", wrong);
  check(longest < MS_FILTER_MAX, "a filter of %zu instructions", longest);
  printf("%-12s at most %zu instructions\n", "any names", longest);
}

static void check_names(void) {
  for (size_t i = 0; i < LENGTH(GRANTS); i++)
    check(ms_filter_knows(GRANTS[i].name), "%s is not known", GRANTS[i].name);
  for (size_t i = 0; i < LENGTH(NEVER); i++)
    check(!ms_filter_knows(NEVER[i]), "%s is known", NEVER[i]);

  program without = ours_build(NULL, 0, SECRET), with = ours_build(NEVER, LENGTH(NEVER), SECRET);
  check(with.count == without.count &&
            memcmp(with.code, without.code, with.count * sizeof *with.code) == 0,
        "names that are not known change the filter");
  free(without.code);
  free(with.code);
}

static void check_capacity(void) {
  program whole = ours_build(NULL, 0, SECRET);
  for (size_t capacity = 0; capacity <= whole.count; capacity++) {
    struct sock_filter *out = malloc(capacity * sizeof *out + 1); /* exact: for ASan */
    size_t count = ms_filter_build(out, capacity, NULL, 0, SECRET);
    check(count == (capacity < whole.count ? 0 : whole.count), "capacity %zu gives %zu", capacity,
          count);
    free(out);
  }
  free(whole.code);
}

/* ---- For real ---- */

typedef struct probe {
  const char *name;
  int number;
  uint64_t args[6];
  int error; /* 0: succeeds */
} probe;

#define NONE ((uint64_t)-1) /* an argument that no call takes, should the filter fail */
#define NOTHING                                                                                    \
  { NONE, NONE, NONE, NONE, NONE, NONE }

static const probe PROBES[] = {
    {"mount", SYS_mount, NOTHING, EPERM},
    {"umount2", SYS_umount2, NOTHING, EPERM},
    {"fsopen", SYS_fsopen, NOTHING, ENOSYS},
    {"open_tree", SYS_open_tree, NOTHING, ENOSYS},
    {"clone3", SYS_clone3, NOTHING, ENOSYS},
    {"clone(NEWUSER)", SYS_clone, {0x10000000 | SIGCHLD}, EPERM},
    {"unshare(0)", SYS_unshare, {0}, EPERM},
    {"keyctl", SYS_keyctl, NOTHING, EPERM},
    {"bpf", SYS_bpf, NOTHING, EPERM},
    {"ptrace", SYS_ptrace, NOTHING, EPERM},
    {"userfaultfd", SYS_userfaultfd, NOTHING, EPERM},
    {"io_uring_setup", SYS_io_uring_setup, NOTHING, ENOSYS},
    {"perf_event_open", SYS_perf_event_open, NOTHING, EPERM},
    {"mbind", SYS_mbind, NOTHING, EPERM},
    {"number 472", 472, NOTHING, ENOSYS},
    {"getpid of x32", 0x40000000 + 39, {0}, ENOSYS},
    {"personality(ask)", SYS_personality, {0xffffffff}, 0},
    {"personality(no randomizing)", SYS_personality, {0x40000}, EPERM},
    {"ioctl(TIOCSTI)", SYS_ioctl, {0, TIOCSTI, NONE}, EPERM},
    {"ioctl(TIOCSTI + bit 32)", SYS_ioctl, {0, TIOCSTI | BIT(32), NONE}, EPERM},
    {"ioctl(TIOCLINUX)", SYS_ioctl, {0, TIOCLINUX, NONE}, EPERM},
    {"ioctl(TIOCGWINSZ), no terminal", SYS_ioctl, {NONE, TIOCGWINSZ, 0}, EBADF},
    {"socket(UNIX)", SYS_socket, {AF_UNIX, SOCK_STREAM, 0}, 0},
    {"socket(INET)", SYS_socket, {AF_INET, SOCK_STREAM, 0}, 0},
    {"socket(NETLINK, ROUTE)", SYS_socket, {AF_NETLINK, SOCK_RAW, 0}, 0},
    {"socket(NETLINK, UEVENT)", SYS_socket, {AF_NETLINK, SOCK_RAW, 15}, EAFNOSUPPORT},
    {"socket(VSOCK)", SYS_socket, {AF_VSOCK, SOCK_STREAM, 0}, EAFNOSUPPORT},
    {"socket(VSOCK + bit 32)", SYS_socket, {AF_VSOCK | BIT(32), SOCK_STREAM, 0}, EAFNOSUPPORT},
    {"socket(ALG)", SYS_socket, {AF_ALG, SOCK_SEQPACKET, 0}, EAFNOSUPPORT},
    {"socket(INET, PACKET)", SYS_socket, {AF_INET, SOCK_PACKET, 0}, EAFNOSUPPORT},
    {"socketpair(INET), the kernel's own", SYS_socketpair, {AF_INET, SOCK_STREAM, 0, 0}, EFAULT},
    {"setpriority of a user", SYS_setpriority, {PRIO_USER, 4000000000, 0}, EPERM},
    {"setpriority of pid 1", SYS_setpriority, {PRIO_PROCESS, 1, NONE}, EPERM},
    {"setpriority of itself", SYS_setpriority, {PRIO_PROCESS, 0, 5}, 0},
    {"ioprio_set of pid 1", SYS_ioprio_set, {1, 1, NONE}, EPERM},
    {"sched_setparam of pid 1", SYS_sched_setparam, {1, 0}, EPERM},
    {"sched_setparam of itself", SYS_sched_setparam, {0, 0}, EINVAL},
    {"setrlimit(LOCKS)", SYS_setrlimit, {RLIMIT_LOCKS, NONE}, EPERM},
    {"setrlimit(CORE), not looked at", SYS_setrlimit, {RLIMIT_CORE, NONE}, 0},
    {"prlimit64 of pid 1", SYS_prlimit64, {1, RLIMIT_NOFILE, 0, 0}, EPERM},
};

/* What must go on working. */
enum { THREAD, SPAWN, VFORK, PIDFD, OPENAT2, TAG, CORE, FILES, USES };
static const char *const USE_NAMES[USES] = {
    [THREAD] = "pthread_create",
    [SPAWN] = "posix_spawn and wait4",
    [VFORK] = "vfork",
    [PIDFD] = "pidfd_open and pidfd_send_signal",
    [OPENAT2] = "openat2",
    [TAG] = "RLIMIT_LOCKS is set by the secret only",
    [CORE] = "RLIMIT_CORE stays 1",
    [FILES] = "RLIMIT_NOFILE is everybody's own",
};

/* Filled in by the child, read by the parent. */
typedef struct report {
  int installed;
  int errors[LENGTH(PROBES)];
  bool works[USES];
  int interrupt; /* int $0x80, negative errno */
  double install_us;
} report;

static report *shared;

static int try_call(const probe *p) {
  const uint64_t *a = p->args;
  return syscall(p->number, a[0], a[1], a[2], a[3], a[4], a[5]) < 0 ? errno : 0;
}

static void become_nobody(void) {
  if (geteuid() == 0 && (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0))
    _exit(3);
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static void *idle_thread(void *arg) {
  return arg;
}

/* What the agent itself and every program needs. */
static void try_programs(report *r) {
  pthread_t thread;
  void *value = NULL;
  if (pthread_create(&thread, NULL, idle_thread, r) == 0)
    pthread_join(thread, &value);
  r->works[THREAD] = value == r;

  pid_t pid;
  int status = -1;
  char *const argv[] = {"true", NULL}, *const envp[] = {NULL};
  if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, envp) == 0)
    wait4(pid, &status, 0, NULL);
  r->works[SPAWN] = status == 0;

  pid = vfork();
  if (pid == 0)
    _exit(7);
  waitpid(pid, &status, 0);
  r->works[VFORK] = WIFEXITED(status) && WEXITSTATUS(status) == 7;

  pid = fork();
  if (pid == 0)
    for (;;)
      pause();
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
  waitpid(pid, &status, 0);
  r->works[PIDFD] = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;

  struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};
  r->works[OPENAT2] = syscall(SYS_openat2, AT_FDCWD, "/", &how, sizeof how) >= 0;
}

/* As libc's prlimit, but with a fifth register. libc leaves it as it is, so that a caller's own
 * prlimit would go through the door after one call with the secret; exec clears it. */
static int limit_by(uint64_t door, int resource, const struct rlimit *set, struct rlimit *get) {
  return (int)syscall(SYS_prlimit64, 0, resource, set, get, door, 0);
}

static void try_limits(report *r) {
  const struct rlimit none = {0, 0}, tag = {77, 77}, one = {1, 1}, files = {32, 32};
  struct rlimit got = {0, 0};

  bool refused = limit_by(SECRET ^ 1, RLIMIT_LOCKS, &tag, NULL) < 0 && errno == EPERM;
  bool set = syscall(SYS_prlimit64, getpid(), RLIMIT_LOCKS, &tag, NULL, SECRET, 0) == 0;
  bool asked = limit_by(0, RLIMIT_LOCKS, NULL, &got) == 0 && got.rlim_cur == 77;
  bool kept = limit_by(0, RLIMIT_LOCKS, &none, NULL) < 0 && errno == EPERM;
  r->works[TAG] = refused && set && asked && kept;

  limit_by(SECRET, RLIMIT_CORE, &one, NULL);
  bool pretended = limit_by(0, RLIMIT_CORE, &none, NULL) == 0;
  bool honest = limit_by(0, RLIMIT_CORE, &none, &got) < 0 && errno == EPERM;
  limit_by(0, RLIMIT_CORE, NULL, &got);
  r->works[CORE] = pretended && honest && got.rlim_cur == 1;

  r->works[FILES] = limit_by(0, RLIMIT_NOFILE, &files, NULL) == 0;
}

#if defined(__x86_64__)
static void try_other_entries(report *r) {
  long result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
  r->interrupt = (int)result;
}
#else
static void try_other_entries(report *r) {
  r->interrupt = -ENOSYS;
}
#endif

/* Runs `work` in a child under `filter` (NULL: under none). The wait status. */
static int in_child(const program *filter, void (*work)(report *r)) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid < 0)
    give_up("fork");
  if (pid == 0) {
    become_nobody();
    shared->installed = filter ? ms_filter_install(filter->code, filter->count) : 0;
    if (shared->installed == 0)
      work(shared);
    _exit(0);
  }
  int status;
  waitpid(pid, &status, 0);
  return status;
}

static void work_probes(report *r) {
  for (size_t i = 0; i < LENGTH(PROBES); i++)
    r->errors[i] = try_call(&PROBES[i]);
  try_programs(r);
  try_limits(r);
}

static void work_debug(report *r) {
  r->errors[0] = try_call(&(probe){"", SYS_ptrace, {0 /* PTRACE_TRACEME */}, 0});
  r->errors[1] = try_call(&(probe){"", SYS_personality, {0x40000}, 0});
  r->errors[2] = try_call(&(probe){"", SYS_mount, NOTHING, 0});
}

static void check_install(void) {
  program p = ours_build(NULL, 0, SECRET);
  int status = in_child(&p, work_probes);
  check(status == 0, "the child under the filter died: %#x", (unsigned)status);
  check(shared->installed == 0, "install: %s", strerror(-shared->installed));
  for (size_t i = 0; i < LENGTH(PROBES); i++)
    check(shared->errors[i] == PROBES[i].error, "%s: %s, not %s", PROBES[i].name,
          strerror(shared->errors[i]), strerror(PROBES[i].error));
  for (size_t i = 0; i < USES; i++)
    check(shared->works[i], "%s", USE_NAMES[i]);

  status = in_child(&p, try_other_entries);
  if (WIFSIGNALED(status))
    puts("int $0x80: this kernel has no such entry");
  else
    check(shared->interrupt == -ENOSYS, "int $0x80: %d", shared->interrupt);
  free(p.code);

  static const char *const debug[] = {"debug"};
  p = ours_build(debug, 1, SECRET);
  in_child(&p, work_debug);
  check(shared->errors[0] == 0, "debug: ptrace: %s", strerror(shared->errors[0]));
  check(shared->errors[1] == 0, "debug: personality: %s", strerror(shared->errors[1]));
  check(shared->errors[2] == EPERM, "debug: mount: %s", strerror(shared->errors[2]));
  free(p.code);

  check(ms_filter_install(NULL, 0) == -EINVAL, "an empty filter can be installed");
  check(ms_filter_install(NULL, 70000) == -EINVAL, "a filter too long can be installed");
}

/* ---- How long it takes ---- */

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

#define ROUNDS 300

static double median(double *times) {
  qsort(times, ROUNDS, sizeof *times, by_value);
  return times[ROUNDS / 2];
}

static void check_build_time(void) {
  static const char *const allow[] = {"ptrace", "personality", "perf_event_open", "numa"};
  double times[ROUNDS];
  struct sock_filter out[MS_FILTER_MAX];
  for (size_t count = 0; count <= LENGTH(allow); count += LENGTH(allow)) {
    for (int i = 0; i < ROUNDS; i++) {
      double start = now_us();
      ms_filter_build(out, MS_FILTER_MAX, allow, count, SECRET);
      times[i] = now_us() - start;
    }
    double us = median(times);
    printf("build        %.1f us, %zu names allowed\n", us, count);
    check(us < 200, "building takes %.1f us", us);
  }
}

static const program *timed;

static void work_install(report *r) {
  double start = now_us();
  r->installed = ms_filter_install(timed->code, timed->count);
  r->install_us = now_us() - start;
}

static void show_install_time(const char *title, const program *p) {
  double times[ROUNDS];
  timed = p;
  for (int i = 0; i < ROUNDS; i++) {
    in_child(NULL, work_install);
    times[i] = shared->install_us;
    if (shared->installed != 0)
      check(false, "%s: install: %s", title, strerror(-shared->installed));
  }
  double us = median(times);
  printf("install      %.1f us (least %.1f), %s, %zu instructions\n", us, times[0], title,
         p->count);
}

static void show_install_times(void) {
  struct sock_filter allow_all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  policy p = policy_make(NULL, 0, SECRET);
  program ours = ours_build(NULL, 0, SECRET);
  program tree = seccomp_build(&p, 2), list = seccomp_build(&p, 1);
  show_install_time("a filter that allows all", &(program){allow_all, 1});
  show_install_time("ours", &ours);
  show_install_time("libseccomp, tree", &tree);
  show_install_time("libseccomp, list", &list);
  free(ours.code);
  free(tree.code);
  free(list.code);
}

int main(int argc, char **argv) {
  static const char *const debug[] = {"debug", "perf_event_open"};
  static const char *const all[] = {"debug",           "numa",
                                    "fanotify",        "clock",
                                    "userfaultfd",     "modify_ldt",
                                    "perf_event_open", "memfd_secret",
                                    "process_madvise", "name_to_handle_at"};
  check_policy("default", NULL, 0, SECRET);
  check_policy("debug", debug, LENGTH(debug), SECRET);
  check_policy("all names", all, LENGTH(all), SECRET);
  check_policy("no secret", NULL, 0, 0);
  check_grants();
  check_names();
  check_capacity();

  if (argc < 2 || strcmp(argv[1], "model") != 0) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
      give_up("mmap");
    check_install();
    check_build_time();
    show_install_times();
  }
  printf("%u passed, %u failed\n", passed, failed);
  return failed > 0;
}
