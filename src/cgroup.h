/* A control group that holds a sandbox: a directory of the kernel's, made and removed by the host.
 * Shared by its userdata and the sandbox in it, which tells of its end. */
#ifndef MS_CGROUP_H
#define MS_CGROUP_H

#include <lua.h>

#define MS_CGROUP_TYPE "moonsand.cgroup"
#define MS_CGROUPS_MAX 3 /* of one sandbox: one for each controller, in version 1 */

typedef struct ms_cgroup ms_cgroup;

/* What stack index `index` holds; another reference, to be given back. */
ms_cgroup *ms_cgroup_ref(lua_State *L, int index);
void ms_cgroup_unref(ms_cgroup *g);
/* Its cgroup.procs, the caller's own: who writes "0" there goes in. -1 and errno. */
int ms_cgroup_entrance(const ms_cgroup *g);
/* Nothing runs in it any more: keeps its last counts, and removes it. */
void ms_cgroup_end(ms_cgroup *g);

#endif
