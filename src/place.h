/* A file that appears whole or not at all: written without a name (or, where the file system cannot
 * do that, under a random one in the same directory) and then put in its place. Whoever is killed
 * in between leaves nothing behind where files without names exist. Shared by the agent's workers
 * and the host. */
#ifndef MS_PLACE_H
#define MS_PLACE_H

#include <stdint.h>
#include <sys/types.h>

#define MS_TEMP_NAME 24 /* room for a temporary name */

typedef struct ms_place {
  int dir;                 /* owned: where the file is going to be; -1 when there is none */
  int fd;                  /* owned: to be written to */
  char temp[MS_TEMP_NAME]; /* its name meanwhile; "": none */
} ms_place;

#define MS_PLACE_NONE                                                                              \
  { .dir = -1, .fd = -1 }

/* A new file in a directory (borrowed), with a mode that the umask is taken from. */
int ms_place_open(ms_place *p, int dir, mode_t mode);
/* Gives it its name, in place of what has it. Over afterwards, also when it fails. */
int ms_place_commit(ms_place *p, const char *name);
/* The same, but what has the name stays, and the answer is -EEXIST. */
int ms_place_commit_new(ms_place *p, const char *name);
/* Forgets it. Harmless when there is none. */
void ms_place_abort(ms_place *p);

/* A link, in place of what has its name, but not of a directory. */
int ms_link_at(int dir, const char *name, const char *target);

/* A name that nobody inside can guess in time. Begins with ".moonsand-". */
int ms_temp_name(char name[MS_TEMP_NAME]);

/* Copies up to `most` bytes from where one file is to where the other is: how many, 0 at the end,
 * or a negative errno. One call moves a bounded amount, so that it is over soon. */
ssize_t ms_copy_bytes(int from, int to, uint64_t most);
/* Writes all of it, or answers a negative errno. */
int ms_write_all(int fd, const char *data, size_t length);

#endif
