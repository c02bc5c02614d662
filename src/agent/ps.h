/* What runs in the sandbox, out of /proc. */
#ifndef MS_PS_H
#define MS_PS_H

#include "../proc.h"

/* MS_CALL_SAMPLE: one process, without its command line. -ESRCH when it is over, zombies too; and
 * when the pid is another's than of the one that began then (`ticks`; 0: whichever has it). */
int ms_ps_sample(uint64_t pid, uint64_t ticks, ms_writer *reply);
/* MS_CALL_SIGNAL: a signal to a process, or to it and all below it. Tells when that began. */
int ms_ps_signal(uint64_t pid, uint64_t ticks, uint32_t number, bool tree, ms_writer *reply);
/* MS_CALL_USAGE: u64 clock (ns), u64 CPU time (ns) of all, u64 memory, u64 memory of the machine,
 * u64 bytes on disk, u32 processes, u32 CPUs. */
int ms_ps_usage(ms_writer *reply);

#endif
