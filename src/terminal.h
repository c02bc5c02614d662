/* Terminals: those that programs in a sandbox get, and the caller's own. */
#ifndef MS_TERMINAL_H
#define MS_TERMINAL_H

#include <stdbool.h>

#define MS_TERMINAL_TYPE "moonsand.terminal"

/* A new terminal of the sandbox whose root directory this is: our end, which does not block, and
 * the program's. 0 or a negative errno. */
int ms_pty_make(int root, unsigned cols, unsigned rows, int *ours, int *theirs);
/* How large it is from now on; who runs there gets a SIGWINCH. 0 or a negative errno. */
int ms_pty_resize(int fd, unsigned cols, unsigned rows);
/* What has to be typed for its reader to find the end of the file: how many characters (0 to 2).
 * `midline`: a line was begun. */
int ms_pty_end(int fd, bool midline, char typed[2]);

#endif
