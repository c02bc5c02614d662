/* Which process belongs to which exec.
 *
 * A process group does not hold what calls setsid. So each exec's first process gets a *tag* that
 * its descendants inherit and cannot change: RLIMIT_LOCKS, which the kernel has ignored since 2.4,
 * is set to the exec's own number, and the filter refuses to set it again. Trees are found by
 * reading that limit of every process in /proc. A process with a pending SIGKILL cannot fork, so
 * passes of "kill all that is tagged" come to an end even against a fork bomb. */
#ifndef MS_AGENT_TAGS_H
#define MS_AGENT_TAGS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

/* `secret` lets calls of ours through the filter. */
void ms_tags_init(uint64_t secret);
/* prlimit with the register that lets it through the filter. */
int ms_prlimit(pid_t pid, int resource, const struct rlimit *set, struct rlimit *get);
/* The exec number that a process carries; 0 when it is gone. Works for zombies. */
uint64_t ms_tag_of(pid_t pid);
/* One pass over all processes: how many carry the tag. Each of them is sent the signal (0: none).
 */
size_t ms_signal_tree(uint64_t tag, int number);
/* Kills those who trace processes that carry the tag. */
void ms_kill_tracers(uint64_t tag);

#endif
