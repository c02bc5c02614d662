/* The system call filter of a sandbox: which calls the kernel answers to the code inside, the agent
 * included. What is not listed in filter.c is allowed, up to the last number known when it was
 * written; what is listed is refused, or allowed with some arguments only. The kernel's own
 * permission checks, the namespaces and the lack of capabilities come before it in importance: the
 * filter closes what they leave open (keyrings, vsock, kernel features rich in holes) and holds
 * each program's RLIMIT_LOCKS, which is how the agent knows whose it is.
 *
 * Filters are inherited by fork and exec and cannot be taken off; the code inside may add its own,
 * and wherever two disagree the stricter answer wins. */
#ifndef MS_FILTER_H
#define MS_FILTER_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MS_FILTER_MAX 255 /* instructions; no filter is longer, whatever it allows */

/* Writes the filter to `out`. `allow` names what is not to be refused after all: system calls
 * ("ptrace") and groups of them ("debug", "numa", "fanotify", "clock"); a name for which
 * ms_filter_knows() is false changes nothing. A prlimit64() whose fifth register, of which the
 * kernel makes no use, holds `secret` is always allowed; with 0 there is no such door. The register
 * goes on holding it after the call, until exec clears it: run nothing of others' before that.
 * Gives the number of instructions, or 0 if they are more than `capacity`: then what is in `out`
 * is no filter. Allocates nothing. */
size_t ms_filter_build(struct sock_filter *out, size_t capacity, const char *const *allow,
                       size_t allow_count, uint64_t secret);

/* Is this a name that `allow` may have? False also for calls that are refused for good. */
bool ms_filter_knows(const char *name);

/* Puts the calling thread under the filter, for ever. Needs no_new_privs or CAP_SYS_ADMIN.
 * 0 or a negative errno. */
int ms_filter_install(const struct sock_filter *filter, size_t count);

#endif
