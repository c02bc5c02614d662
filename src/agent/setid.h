/* The second filter, of sandboxes that write into directories of the host. */
#ifndef MS_SETID_H
#define MS_SETID_H

#include <stdint.h>

/* No file gets a setuid or setgid bit from now on, neither by chmod nor when it is made: for
 * another user of the host it would be a way to become the one who mounted the directory. `secret`
 * is that of the first filter. 0, or -1 and errno. */
int ms_setid_install(uint64_t secret);

#endif
