/* What a mount of a sandbox is made of: a file or directory of the host, opened once and held, so
 * that a name that changes its meaning later changes nothing. */
#ifndef MS_SOURCE_H
#define MS_SOURCE_H

#include "reactor.h"

#include <lua.h>

#define MS_SOURCE_TYPE "moonsand.source"
#define MS_IDMAP_TYPE "moonsand.idmap"

/* A duplicate, the caller's own, of what stack index `index` holds: -1 and errno. */
int ms_source_duplicate(lua_State *L, int index);
/* Pushes what waits for the answer to MS_IDMAP; takes `socket` over. */
void ms_idmap_new(lua_State *L, ms_reactor *r, int socket);

#endif
