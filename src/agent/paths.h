/* How the agent and its workers find files: by absolute paths, never through a magic link of /proc
 * (which would lead to the agent's own files), and where something is to be made, replaced or
 * removed, as a name in a directory that is held open. */
#ifndef MS_PATHS_H
#define MS_PATHS_H

#include "../entry.h"

#include <stdbool.h>

/* Where a name is. */
typedef struct ms_where {
  int dir;                    /* owned, O_PATH; -1: none */
  char path[MS_PATH_MAX + 1]; /* of the directory; ends with a slash */
  char name[MS_NAME_MAX + 1]; /* "" for "/" */
  bool slash;                 /* the path ended with one: it can only be a directory */
} ms_where;

/* Opens what a path leads to: a descriptor, or a negative errno. */
int ms_open_path(const char *path, int flags);
/* Opens a directory (O_PATH); `parents` makes it, and those above it, where they are missing. */
int ms_open_directory(const char *path, bool parents);

/* Splits a path and opens the directory that its last name is in. The name may be a link. Close it
 * also when it fails. */
int ms_where_find(ms_where *p, const char *path, bool parents);
/* The same for a file that is to be written: links at its end are followed, as open would. */
int ms_where_target(ms_where *p, const char *path, bool parents);
void ms_where_close(ms_where *p);
/* "/", ".", "..": no names that can be made, replaced or removed. */
bool ms_where_is_dots(const ms_where *p);

#endif
