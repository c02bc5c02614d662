/* Who the agent serves: the host that made the sandbox, and after a detach whoever connects. */
#ifndef MS_CLIENTS_H
#define MS_CLIENTS_H

#include "agent.h"

#include <poll.h>

/* The first one; all others must be the same user. 0, or -1: nobody is served. */
int ms_clients_init(int host);
/* Serves who connects to this socket from now on, and lives without anybody. 0 or a negative errno;
 * the socket stays the caller's. */
int ms_clients_listen(int socket);
bool ms_clients_any(void);

/* The loop's: how many entries it needs, which, and what is to be done then. */
size_t ms_clients_files(void);
void ms_clients_watch(struct pollfd *events, size_t from);
void ms_clients_serve(const struct pollfd *events, ms_message *request);

#endif
