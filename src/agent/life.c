/* A sandbox lives as long as its host's process; after a detach, until nobody has been connected
 * for some time. Either may have a last moment besides. The agent keeps these times itself: whoever
 * set them may be gone. */
#include "life.h"

#include "clients.h"

#include <errno.h>
#include <unistd.h>

static int host_pidfd = -1; /* owned; -1: detached */
static uint64_t last_ns = UINT64_MAX;
static uint64_t idle_ns;                  /* how long nobody may be connected; 0: for ever */
static uint64_t alone_since = UINT64_MAX; /* UINT64_MAX: somebody is */

void ms_life_init(int pidfd) {
  host_pidfd = pidfd;
}

int ms_life_host(void) {
  return host_pidfd;
}

static uint64_t after(uint64_t from, uint64_t ms) {
  return ms < (UINT64_MAX - from) / 1000000 ? from + ms * 1000000 : UINT64_MAX;
}

void ms_life_set(uint32_t which, uint64_t lifetime_ms, uint64_t idle_ms) {
  if (which & MS_LIFE_LAST)
    last_ns = lifetime_ms ? after(ms_clock_ns(), lifetime_ms) : UINT64_MAX;
  if (which & MS_LIFE_IDLE)
    idle_ns = after(0, idle_ms);
}

int ms_life_detach(uint64_t lifetime_ms, uint64_t idle_ms, int socket) {
  int error = socket < 0 ? -EINVAL : ms_clients_listen(socket);
  if (error)
    return error;
  ms_exec_end_foreground();
  close(host_pidfd);
  host_pidfd = -1;
  ms_life_set(lifetime_ms ? MS_LIFE_LAST | MS_LIFE_IDLE : MS_LIFE_IDLE, lifetime_ms, idle_ms);
  return 0;
}

static uint64_t idle_deadline(void) {
  if (idle_ns == 0 || alone_since == UINT64_MAX || idle_ns > UINT64_MAX - alone_since)
    return UINT64_MAX;
  return alone_since + idle_ns;
}

uint64_t ms_life_deadline(void) {
  uint64_t idle = idle_deadline();
  return idle < last_ns ? idle : last_ns;
}

void ms_life_check(void) {
  if (ms_clients_any())
    alone_since = UINT64_MAX;
  else if (alone_since == UINT64_MAX)
    alone_since = ms_clock_ns();
  uint64_t deadline = ms_life_deadline();
  if (deadline != UINT64_MAX && deadline <= ms_clock_ns())
    _exit(0);
}
