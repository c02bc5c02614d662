/* How long a sandbox lives. */
#ifndef MS_LIFE_H
#define MS_LIFE_H

#include <stdbool.h>
#include <stdint.h>

/* With the host that this descriptor (a pidfd) is about. */
void ms_life_init(int host_pidfd);
/* The descriptor, as long as it matters; -1 then. */
int ms_life_host(void);
/* MS_CALL_LIFE. */
void ms_life_set(uint32_t which, uint64_t lifetime_ms, uint64_t idle_ms);
/* MS_CALL_DETACH: without the host from now on. 0 or a negative errno. */
int ms_life_detach(uint64_t lifetime_ms, uint64_t idle_ms, int socket);
/* Ends everything when it is time. */
void ms_life_check(void);
/* When that has to be looked at next (ms_clock_ns); UINT64_MAX: no need. */
uint64_t ms_life_deadline(void);

#endif
