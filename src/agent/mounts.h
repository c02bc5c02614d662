/* Files and directories of the host inside a sandbox. */
#ifndef MS_MOUNTS_H
#define MS_MOUNTS_H

#include <stdbool.h>
#include <stdint.h>

#define MS_MOUNTS_MAX 64

typedef struct ms_mount {
  uint32_t flags; /* MS_MOUNT_… */
  char *source;   /* owned: its path on the host, without links */
  char *target;   /* owned */
  int fd;         /* owned: what the host opened, then the tree to mount */
} ms_mount;

typedef struct ms_mounts {
  uint32_t count;
  ms_mount all[MS_MOUNTS_MAX];
  char stage[32]; /* what failed, if something did: "source:2" is the second one's */
} ms_mounts;

/* All answer 0 or a negative errno and fill in `stage`. */

/* Takes `count` MS_MOUNTs from the host. */
int ms_mounts_receive(ms_mounts *m, uint32_t count, int socket, int host_pidfd);
/* While the host's mounts are still in sight: clones those that the host could not. */
int ms_mounts_clone(ms_mounts *m);
/* Once "/" is the sandbox's: puts them in their places. */
int ms_mounts_place(ms_mounts *m);
/* The one that is to be "/", NULL: none. */
const ms_mount *ms_mounts_root(const ms_mounts *m);
/* What bwrap has put in their places: is it that, and no more? What remains is put there. */
int ms_mounts_verify(ms_mounts *m);
/* Is one of them a part of the host that can be written? */
bool ms_mounts_write_host(const ms_mounts *m);

#endif
