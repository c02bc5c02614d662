/* The index of the C core: each file that adds something to `moonsand.core` names its `open` here,
 * and core.c calls it with the module table on top of the stack. */
#ifndef MS_MOONSAND_H
#define MS_MOONSAND_H

#include <lua.h>

#ifndef MS_VERSION
#define MS_VERSION "unknown" /* the Makefile says it */
#endif

void ms_reactor_open(lua_State *L);  /* reactor.c: core.reactor, core.now, core.isyieldable */
void ms_wake_open(lua_State *L);     /* wake.c: core.wake */
void ms_stream_open(lua_State *L);   /* stream.c: core.input */
void ms_socket_open(lua_State *L);   /* socket.c: core.listen, core.connect, core.address, … */
void ms_relay_open(lua_State *L);    /* relay.c: core.relay */
void ms_lookup_open(lua_State *L);   /* lookup.c: core.lookup */
void ms_process_open(lua_State *L);  /* process.c: the type only */
void ms_sandbox_open(lua_State *L);  /* sandbox.c: the type only */
void ms_zygote_open(lua_State *L);   /* launch.c: core.zygote */
void ms_cgroup_open(lua_State *L);   /* cgroup.c: core.cgroup, core.cgroup_write, … */
void ms_registry_open(lua_State *L); /* registry.c: core.registry, core.birth */
void ms_terminal_open(lua_State *L); /* terminal.c: core.terminal */
void ms_file_open(lua_State *L);     /* file.c: core.host_file */
void ms_source_open(lua_State *L);   /* source.c: core.source, core.euid */
void ms_entry_open(lua_State *L);    /* entry_lua.c: core.entry, core.records, core.process … */
void ms_tree_open(lua_State *L);     /* tree.c: core.pack, core.unpack, core.place */
void ms_store_open(lua_State *L);    /* store.c: core.private_directory, core.sha256 */

#endif
