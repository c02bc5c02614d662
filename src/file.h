/* Regular files that Lua holds, and what else the file calls need of C. */
#ifndef MS_FILE_H
#define MS_FILE_H

#include "entry.h"

#include <lua.h>
#include <signal.h>
#include <stdbool.h>

#define MS_FILE_TYPE "moonsand.file"

/* Pushes a file received from an agent, which may lie: anything but a regular file of an ordinary
 * file system is closed, and nil pushed. Takes fd over. */
void ms_file_new(lua_State *L, int fd);
/* Opens a file to read below the root of a sandbox without asking its agent: for a host that is the
 * very user that the sandbox runs as, so that the kernel decides the same. A descriptor for
 * `ms_file_new`, or a negative errno: ask the agent. Never blocks. */
int ms_file_open_below(int root, const char *path);
/* Pushes a file of the host's, opened by us. Takes fd over. */
void ms_file_push(lua_State *L, int fd);
/* The descriptor of the file at a stack index; -1 once closed. Raises if it is something else. */
int ms_file_fd(lua_State *L, int index);

/* Around writes to files: past the host's own RLIMIT_FSIZE they answer EFBIG, and the signal that
 * would end the host is taken back before anybody sees it. */
typedef struct ms_guard {
  bool active;
  sigset_t before;
} ms_guard;
void ms_guard_begin(ms_guard *guard);
void ms_guard_end(ms_guard *guard);

/* entry_lua.c: pushes { type, mode, size, modified_at, uid, gid, path, target }. */
void ms_entry_push(lua_State *L, const ms_entry *e);
/* nil and an errno. */
int ms_push_errno(lua_State *L, int error);

#endif
