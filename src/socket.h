/* TCP sockets, those of sandboxes and the host's own. */
#ifndef MS_SOCKET_H
#define MS_SOCKET_H

#include "reactor.h"

#define MS_LISTENER_TYPE "moonsand.listener"

/* Takes over what an agent passed out, and pushes a stream or a listener; nil when it is neither:
 * an agent may send anything. */
void ms_socket_adopt(lua_State *L, ms_reactor *r, int fd, bool listening);

#endif
