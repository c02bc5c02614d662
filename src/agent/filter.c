/* Makes the filter as classic BPF. First comes a binary search by system call number: a filter of
 * comparisons in a row takes the kernel three times longer to take in, as it runs each filter once
 * for every number there is, to learn which calls it need not ask about. Behind the search lie the
 * rules that look at arguments, and behind them the answers.
 *
 * All jumps of BPF go forwards, so the program is written backwards: whatever a jump leads to has
 * its place already. A `filter_label` is such a place, as the distance from the end. */
#include "filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "no system call filter for this architecture"
#endif

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "arguments are read low half first");

/* Calls that may be younger than the headers. Newer numbers are the same on every architecture. */
#ifndef __NR_quotactl_fd
#define __NR_quotactl_fd 443
#endif
#ifndef __NR_memfd_secret
#define __NR_memfd_secret 447
#endif
#ifndef __NR_set_mempolicy_home_node
#define __NR_set_mempolicy_home_node 450
#endif
#ifndef __NR_lsm_set_self_attr
#define __NR_lsm_set_self_attr 460
#endif
#ifndef __NR_open_tree_attr
#define __NR_open_tree_attr 467
#endif
#ifndef __NR_listns
#define __NR_listns 470
#endif

/* Calls that one of the two architectures never had. */
#define NO_NUMBER (-1)
#ifndef __NR__sysctl
#define __NR__sysctl NO_NUMBER
#endif
#ifndef __NR_ioperm
#define __NR_ioperm NO_NUMBER
#endif
#ifndef __NR_iopl
#define __NR_iopl NO_NUMBER
#endif
#ifndef __NR_modify_ldt
#define __NR_modify_ldt NO_NUMBER
#endif
#ifndef __NR_sysfs
#define __NR_sysfs NO_NUMBER
#endif
#ifndef __NR_uselib
#define __NR_uselib NO_NUMBER
#endif
#ifndef __NR_ustat
#define __NR_ustat NO_NUMBER
#endif

/* The last call that somebody has looked at and thought harmless or listed below:
 * rseq_slice_yield. Higher numbers are "not implemented", as on the kernel of that time: a call
 * that does not exist yet may be the next way to mount. Every program must live with that answer.
 * The calls of x32 are high numbers too (bit 30), so they go with the rest. */
#define LAST_NUMBER 471

typedef enum filter_verdict {
  ALLOW,
  REFUSE, /* EPERM: as for anybody without the right */
  ABSENT, /* ENOSYS: as in an older kernel, so that programs go another way */
  NO_FAMILY,
  PRETEND, /* 0, and nothing is done */
  CHECK_CLONE,
  CHECK_IOCTL,
  CHECK_SOCKET,
  CHECK_SETRLIMIT,
  CHECK_PRLIMIT,
  CHECK_PERSONALITY,
  CHECK_SETPRIORITY,
  CHECK_IOPRIO,
  CHECK_PID,
  VERDICTS,
} filter_verdict;

/* What gives a call back: nothing (FOR_GOOD), its name (BY_NAME), or its name and its group's. */
#define FOR_GOOD NULL
#define BY_NAME ""

/* clang-format off */
#define RULE(name, verdict, grant) {#name, __NR_##name, verdict, grant}
/* clang-format on */

/* Not here, on purpose: landlock_* and seccomp, with which browsers and others make narrower
 * sandboxes of their own. A listener (SECCOMP_FILTER_FLAG_NEW_LISTENER) is asked about the caller
 * and its children only, never the agent, and our refusals win over its answers. */
static const struct filter_rule {
  const char *name;
  int number;
  filter_verdict verdict;
  const char *grant;
} RULES[] = {
    /* Mounts. With the newer calls absent, libmount and the like fall back on mount(), whose EPERM
     * says what is the matter. */
    RULE(mount, REFUSE, FOR_GOOD),
    RULE(umount2, REFUSE, FOR_GOOD),
    RULE(pivot_root, REFUSE, FOR_GOOD),
    RULE(chroot, REFUSE, FOR_GOOD),
    RULE(open_tree, ABSENT, FOR_GOOD),
    RULE(open_tree_attr, ABSENT, FOR_GOOD),
    RULE(move_mount, ABSENT, FOR_GOOD),
    RULE(fsopen, ABSENT, FOR_GOOD),
    RULE(fsconfig, ABSENT, FOR_GOOD),
    RULE(fsmount, ABSENT, FOR_GOOD),
    RULE(fspick, ABSENT, FOR_GOOD),
    RULE(mount_setattr, ABSENT, FOR_GOOD),

    /* Namespaces. The flags of clone3 are in memory, where no filter can look; libc then uses
     * clone. statmount and listmount stay: they tell no more than /proc/self/mountinfo. */
    RULE(clone, CHECK_CLONE, FOR_GOOD),
    RULE(clone3, ABSENT, FOR_GOOD),
    RULE(unshare, REFUSE, FOR_GOOD),
    RULE(setns, REFUSE, FOR_GOOD),
    RULE(listns, ABSENT, FOR_GOOD),

    /* The keyrings of whoever started the host are no namespace's. */
    RULE(keyctl, REFUSE, FOR_GOOD),
    RULE(add_key, REFUSE, FOR_GOOD),
    RULE(request_key, REFUSE, FOR_GOOD),

    /* The machine. */
    RULE(bpf, REFUSE, FOR_GOOD),
    RULE(init_module, REFUSE, FOR_GOOD),
    RULE(finit_module, REFUSE, FOR_GOOD),
    RULE(delete_module, REFUSE, FOR_GOOD),
    RULE(kexec_load, REFUSE, FOR_GOOD),
    RULE(kexec_file_load, REFUSE, FOR_GOOD),
    RULE(reboot, REFUSE, FOR_GOOD),
    RULE(swapon, REFUSE, FOR_GOOD),
    RULE(swapoff, REFUSE, FOR_GOOD),
    RULE(syslog, REFUSE, FOR_GOOD),
    RULE(acct, REFUSE, FOR_GOOD),
    RULE(quotactl, REFUSE, FOR_GOOD),
    RULE(quotactl_fd, REFUSE, FOR_GOOD),
    RULE(iopl, REFUSE, FOR_GOOD),
    RULE(ioperm, REFUSE, FOR_GOOD),
    RULE(vhangup, REFUSE, FOR_GOOD),
    RULE(sethostname, REFUSE, FOR_GOOD),
    RULE(setdomainname, REFUSE, FOR_GOOD),
    RULE(open_by_handle_at, REFUSE, FOR_GOOD),
    RULE(lsm_set_self_attr, REFUSE, FOR_GOOD),
    RULE(settimeofday, REFUSE, FOR_GOOD),
    RULE(clock_settime, REFUSE, FOR_GOOD),
    /* These two read the clock's discipline as well; setting it needs CAP_SYS_TIME anyhow. */
    RULE(adjtimex, REFUSE, "clock"),
    RULE(clock_adjtime, REFUSE, "clock"),

    /* A ring makes sockets of any family past this filter (IORING_OP_SOCKET), vsock too, so that
     * there is no giving it back. Absent, not refused: libuv and others then use epoll. */
    RULE(io_uring_setup, ABSENT, FOR_GOOD),
    RULE(io_uring_enter, ABSENT, FOR_GOOD),
    RULE(io_uring_register, ABSENT, FOR_GOOD),
    RULE(socket, CHECK_SOCKET, FOR_GOOD),
    RULE(socketpair, CHECK_SOCKET, FOR_GOOD),
    RULE(ioctl, CHECK_IOCTL, FOR_GOOD),

    /* Looking into other processes; the agent is not dumpable, and safe from these even so. */
    RULE(ptrace, REFUSE, "debug"),
    RULE(process_vm_readv, REFUSE, "debug"),
    RULE(process_vm_writev, REFUSE, "debug"),
    RULE(pidfd_getfd, REFUSE, "debug"),
    RULE(kcmp, REFUSE, "debug"),
    RULE(personality, CHECK_PERSONALITY, "debug"),

    /* Much kernel for few programs. process_madvise and memfd_secret are young, and the latter off
     * in many kernels: their users ask for ENOSYS. */
    RULE(perf_event_open, REFUSE, BY_NAME),
    RULE(userfaultfd, REFUSE, BY_NAME),
    RULE(process_madvise, ABSENT, BY_NAME),
    RULE(memfd_secret, ABSENT, BY_NAME),
    RULE(modify_ldt, ABSENT, BY_NAME),
    RULE(name_to_handle_at, REFUSE, BY_NAME),
    /* Its rings are counted for the whole machine (fs.aio-max-nr). */
    RULE(io_setup, ABSENT, BY_NAME),
    RULE(fanotify_init, REFUSE, "fanotify"),
    RULE(fanotify_mark, REFUSE, "fanotify"),
    RULE(mbind, REFUSE, "numa"),
    RULE(set_mempolicy, REFUSE, "numa"),
    RULE(set_mempolicy_home_node, REFUSE, "numa"),
    RULE(migrate_pages, REFUSE, "numa"),
    RULE(move_pages, REFUSE, "numa"),

    /* Out of use; many kernels are built without. */
    RULE(uselib, ABSENT, FOR_GOOD),
    RULE(ustat, ABSENT, FOR_GOOD),
    RULE(sysfs, ABSENT, FOR_GOOD),
    RULE(_sysctl, ABSENT, FOR_GOOD),
    RULE(nfsservctl, ABSENT, FOR_GOOD),
    RULE(lookup_dcookie, ABSENT, FOR_GOOD),

    /* What holds the tag in RLIMIT_LOCKS and the limit on cores, and keeps hands off the agent:
     * it has the uid of everybody inside. */
    RULE(setrlimit, CHECK_SETRLIMIT, FOR_GOOD),
    RULE(prlimit64, CHECK_PRLIMIT, FOR_GOOD),
    RULE(setpriority, CHECK_SETPRIORITY, FOR_GOOD),
    RULE(ioprio_set, CHECK_IOPRIO, FOR_GOOD),
    RULE(sched_setaffinity, CHECK_PID, FOR_GOOD),
    RULE(sched_setattr, CHECK_PID, FOR_GOOD),
    RULE(sched_setparam, CHECK_PID, FOR_GOOD),
    RULE(sched_setscheduler, CHECK_PID, FOR_GOOD),
};

/* ---- Writing BPF, back to front ---- */

typedef size_t filter_label;

typedef struct filter_program {
  struct sock_filter *out;
  size_t capacity;
  size_t length; /* the instructions are the last `length` of `out` */
  bool failed;
} filter_program;

static filter_label program_put(filter_program *p, struct sock_filter instruction) {
  if (p->length == p->capacity) {
    p->failed = true;
    return p->length;
  }
  p->length++;
  p->out[p->capacity - p->length] = instruction;
  return p->length;
}

static filter_label program_return(filter_program *p, uint32_t answer) {
  return program_put(p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, answer));
}

/* An instruction that is no jump: goes on with whatever was put last. */
static filter_label program_step(filter_program *p, uint16_t code, uint32_t k) {
  return program_put(p, (struct sock_filter)BPF_STMT(code, k));
}

static filter_label program_load(filter_program *p, size_t offset) {
  return program_step(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset);
}

/* Compares the accumulator with `k` (BPF_JEQ, BPF_JGE, BPF_JSET). Jumps have a byte for the
 * distance, which MS_FILTER_MAX keeps short enough. */
static filter_label program_branch(filter_program *p, uint16_t test, uint32_t k, filter_label yes,
                                   filter_label no) {
  size_t to_yes = p->length - yes, to_no = p->length - no;
  if (to_yes > UINT8_MAX || to_no > UINT8_MAX)
    p->failed = true;
  return program_put(
      p, (struct sock_filter)BPF_JUMP(BPF_JMP | test | BPF_K, k, (uint8_t)to_yes, (uint8_t)to_no));
}

/* ---- The rules that look at arguments ----
 *
 * An `int` argument is the low half of its register: the kernel does not look at the other, so
 * neither must we, or a stray bit up there would get a call past us. */

#define LOW(index) offsetof(struct seccomp_data, args[index])
#define HIGH(index) (LOW(index) + sizeof(uint32_t))

/* Is argument `index` as a whole, a pointer, other than 0? Takes both halves at once. */
static filter_label check_pointer(filter_program *p, int index, filter_label set,
                                  filter_label null) {
  program_branch(p, BPF_JEQ, 0, null, set);
  program_step(p, BPF_ALU | BPF_OR | BPF_X, 0);
  program_load(p, HIGH(index));
  program_step(p, BPF_MISC | BPF_TAX, 0);
  return program_load(p, LOW(index));
}

/* clone(flags, …). CLONE_NEWTIME shares its bit with the exit signal: clone cannot ask for it. */
static filter_label check_clone(filter_program *p, const filter_label *to) {
  const uint32_t namespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                              CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
  program_branch(p, BPF_JSET, namespaces, to[REFUSE], to[ALLOW]);
  return program_load(p, LOW(0));
}

/* ioctl(fd, request, …): those that type into a terminal, take the console's output, or load a
 * line discipline, which are drivers for modems and buses. */
static filter_label check_ioctl(filter_program *p, const filter_label *to) {
  filter_label next = program_branch(p, BPF_JEQ, TIOCSETD, to[REFUSE], to[ALLOW]);
  next = program_branch(p, BPF_JEQ, TIOCCONS, to[REFUSE], next);
  next = program_branch(p, BPF_JEQ, TIOCLINUX, to[REFUSE], next);
  program_branch(p, BPF_JEQ, TIOCSTI, to[REFUSE], next);
  return program_load(p, LOW(1));
}

/* socket(family, type, protocol) and socketpair, to whose other families the kernel says no.
 * Netlink only for routes, which getaddrinfo asks for. Linux still turns an AF_INET socket of type
 * SOCK_PACKET into one of AF_PACKET. */
static filter_label check_socket(filter_program *p, const filter_label *to) {
  const uint32_t type_mask = 0xf; /* above it: SOCK_CLOEXEC, SOCK_NONBLOCK */

  program_branch(p, BPF_JEQ, SOCK_PACKET, to[NO_FAMILY], to[ALLOW]);
  program_step(p, BPF_ALU | BPF_AND | BPF_K, type_mask);
  filter_label inet = program_load(p, LOW(1));

  program_branch(p, BPF_JEQ, 0 /* NETLINK_ROUTE */, to[ALLOW], to[NO_FAMILY]);
  filter_label netlink = program_load(p, LOW(2));

  filter_label next = program_branch(p, BPF_JEQ, AF_NETLINK, netlink, to[NO_FAMILY]);
  next = program_branch(p, BPF_JEQ, AF_INET6, to[ALLOW], next);
  next = program_branch(p, BPF_JEQ, AF_INET, inet, next);
  program_branch(p, BPF_JEQ, AF_UNIX, to[ALLOW], next);
  return program_load(p, LOW(0));
}

/* setrlimit(resource, new). The limit on cores is 1, the only value that keeps the kernel from
 * starting a core_pattern handler, outside of the sandbox; 0 would not. Programs that want no
 * cores are told that they have it. */
static filter_label check_setrlimit(filter_program *p, const filter_label *to) {
  filter_label next = program_branch(p, BPF_JEQ, RLIMIT_CORE, to[PRETEND], to[ALLOW]);
  program_branch(p, BPF_JEQ, RLIMIT_LOCKS, to[REFUSE], next);
  return program_load(p, LOW(0));
}

/* prlimit64(pid, resource, new, old): nobody else's limits, and else as setrlimit. A change of
 * RLIMIT_CORE that wants the old value is refused: there is no pretending to have written that. */
static filter_label check_prlimit(filter_program *p, const filter_label *to, uint64_t secret) {
  filter_label core = check_pointer(p, 3, to[REFUSE], to[PRETEND]);
  core = check_pointer(p, 2, core, to[ALLOW]);
  filter_label locks = check_pointer(p, 2, to[REFUSE], to[ALLOW]);

  filter_label next = program_branch(p, BPF_JEQ, RLIMIT_CORE, core, to[ALLOW]);
  program_branch(p, BPF_JEQ, RLIMIT_LOCKS, locks, next);
  next = program_load(p, LOW(1));
  program_branch(p, BPF_JEQ, 0, next, to[REFUSE]);
  next = program_load(p, LOW(0));
  if (secret == 0)
    return next;

  /* Both halves take part in one comparison. Half by half, the time it takes would tell when the
   * first half is right, and 2^32 tries twice are not many. */
  program_branch(p, BPF_JEQ, 0, to[ALLOW], next);
  program_step(p, BPF_ALU | BPF_OR | BPF_X, 0);
  program_step(p, BPF_ALU | BPF_XOR | BPF_K, (uint32_t)(secret >> 32));
  program_load(p, HIGH(4));
  program_step(p, BPF_MISC | BPF_TAX, 0);
  program_step(p, BPF_ALU | BPF_XOR | BPF_K, (uint32_t)secret);
  return program_load(p, LOW(4));
}

/* personality(persona): to ask (-1), and what changes only the answers of uname. The rest switches
 * protections of memory off: setarch -R and gdb want that, "personality" gives it to them. */
static filter_label check_personality(filter_program *p, const filter_label *to) {
  const uint32_t per_linux32 = 0x8, uname26 = 0x20000, ask = 0xffffffff;
  filter_label next = program_branch(p, BPF_JSET, ~(per_linux32 | uname26), to[REFUSE], to[ALLOW]);
  program_branch(p, BPF_JEQ, ask, to[ALLOW], next);
  return program_load(p, LOW(0));
}

/* setpriority and ioprio_set(which, who, …). A process or group 1 is the agent, and a user's
 * processes are all of them, also the agent. */
static filter_label check_priority(filter_program *p, const filter_label *to, uint32_t which_user) {
  program_branch(p, BPF_JEQ, 1, to[REFUSE], to[ALLOW]);
  filter_label who = program_load(p, LOW(1));
  program_branch(p, BPF_JEQ, which_user, to[REFUSE], who);
  return program_load(p, LOW(0));
}

/* sched_set…(pid, …): not the agent's. */
static filter_label check_pid(filter_program *p, const filter_label *to) {
  program_branch(p, BPF_JEQ, 1, to[REFUSE], to[ALLOW]);
  return program_load(p, LOW(0));
}

/* ---- The search ---- */

/* Numbers from `first` to where the next one begins have the same verdict. */
typedef struct filter_range {
  uint32_t first;
  filter_verdict verdict;
} filter_range;

static bool name_grants(const char *name, const struct filter_rule *rule) {
  if (!rule->grant || !*name)
    return false;
  return strcmp(name, rule->name) == 0 || strcmp(name, rule->grant) == 0;
}

static bool rule_is_lifted(const struct filter_rule *rule, const char *const *allow,
                           size_t allow_count) {
  for (size_t i = 0; i < allow_count; i++)
    if (name_grants(allow[i], rule))
      return true;
  return false;
}

/* Puts the rules that hold in the order of their numbers. Gives the count of ranges. */
static size_t make_ranges(filter_range *ranges, const char *const *allow, size_t allow_count) {
  uint8_t verdicts[LAST_NUMBER + 2] = {ALLOW};
  for (size_t i = 0; i < sizeof RULES / sizeof *RULES; i++)
    if (RULES[i].number != NO_NUMBER && !rule_is_lifted(&RULES[i], allow, allow_count))
      verdicts[RULES[i].number] = (uint8_t)RULES[i].verdict;
  verdicts[LAST_NUMBER + 1] = ABSENT;

  size_t count = 0;
  for (uint32_t number = 0; number < LAST_NUMBER + 2; number++)
    if (number == 0 || verdicts[number] != verdicts[number - 1])
      ranges[count++] = (filter_range){number, (filter_verdict)verdicts[number]};
  return count;
}

/* Finds the number in the accumulator in these ranges, and goes where its verdict says. */
static filter_label make_search(filter_program *p, const filter_range *ranges, size_t count,
                                const filter_label *to) {
  if (count == 1)
    return to[ranges[0].verdict];
  /* One number between two ranges alike. */
  if (count == 3 && ranges[0].verdict == ranges[2].verdict &&
      ranges[1].first + 1 == ranges[2].first)
    return program_branch(p, BPF_JEQ, ranges[1].first, to[ranges[1].verdict],
                          to[ranges[0].verdict]);
  size_t half = count / 2;
  filter_label above = make_search(p, ranges + half, count - half, to);
  filter_label below = make_search(p, ranges, half, to);
  return program_branch(p, BPF_JGE, ranges[half].first, above, below);
}

size_t ms_filter_build(struct sock_filter *out, size_t capacity, const char *const *allow,
                       size_t allow_count, uint64_t secret) {
  filter_range ranges[LAST_NUMBER + 2];
  size_t count = make_ranges(ranges, allow, allow_count);

  filter_program p = {.out = out, .capacity = capacity};
  filter_label to[VERDICTS];
  to[ALLOW] = program_return(&p, SECCOMP_RET_ALLOW);
  to[REFUSE] = program_return(&p, SECCOMP_RET_ERRNO | EPERM);
  to[ABSENT] = program_return(&p, SECCOMP_RET_ERRNO | ENOSYS);
  to[NO_FAMILY] = program_return(&p, SECCOMP_RET_ERRNO | EAFNOSUPPORT);
  to[PRETEND] = program_return(&p, SECCOMP_RET_ERRNO | 0);
  to[CHECK_CLONE] = check_clone(&p, to);
  to[CHECK_IOCTL] = check_ioctl(&p, to);
  to[CHECK_SOCKET] = check_socket(&p, to);
  to[CHECK_SETRLIMIT] = check_setrlimit(&p, to);
  to[CHECK_PRLIMIT] = check_prlimit(&p, to, secret);
  to[CHECK_PERSONALITY] = check_personality(&p, to);
  to[CHECK_SETPRIORITY] = check_priority(&p, to, PRIO_USER);
  to[CHECK_IOPRIO] = check_priority(&p, to, 3 /* IOPRIO_WHO_USER */);
  to[CHECK_PID] = check_pid(&p, to);

  /* Another architecture's calls (int $0x80) have other numbers; they are absent as a whole. */
  make_search(&p, ranges, count, to);
  filter_label search = program_load(&p, offsetof(struct seccomp_data, nr));
  program_branch(&p, BPF_JEQ, NATIVE_ARCH, search, to[ABSENT]);
  program_load(&p, offsetof(struct seccomp_data, arch));

  if (p.failed)
    return 0;
  memmove(out, out + capacity - p.length, p.length * sizeof *out);
  return p.length;
}

bool ms_filter_knows(const char *name) {
  for (size_t i = 0; i < sizeof RULES / sizeof *RULES; i++)
    if (name_grants(name, &RULES[i]))
      return true;
  return false;
}

int ms_filter_install(const struct sock_filter *filter, size_t count) {
  if (count == 0 || count > BPF_MAXINSNS)
    return -EINVAL;
  /* The kernel copies the filter and takes it as const; its struct does not say so. */
  struct sock_fprog program = {.len = (unsigned short)count,
                               .filter = (struct sock_filter *)filter};
  /* Without the flag, kernels before 5.16 slow every program down against Spectre v4. */
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program) == 0)
    return 0;
  if (errno == EINVAL &&
      syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0) /* before 4.17 */
    return 0;
  return -errno;
}
