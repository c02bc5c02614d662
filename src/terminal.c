/* Terminals.
 *
 * A program's is made by the host, in the sandbox's own devpts, which is reached through the
 * sandbox's root directory. The agent could make it as well; but then our end would be an open file
 * that something inside has too, who could let it block again behind our back. So only the
 * program's end is passed along.
 *
 * The caller's is opened anew for the same reason: what is set on standard input, a shell that
 * waits for us would find set as well. */
#include "terminal.h"

#include "compat.h"
#include "moonsand.h"
#include "reactor.h"
#include "stream.h"
#include "walk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>
#include <unistd.h>

#include "agent/agent.h"

/* A sandbox's terminals ------------------------------------------------------------------------ */

/* The device that makes terminals, on every Linux. */
#define PTMX makedev(5, 2)

/* The path may hold anything by now: its directory is the user's inside. */
static int open_ptmx(int root) {
  struct stat st;
  int fd = ms_openat2(root, "dev/pts/ptmx", O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0,
                      RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS);
  if (fd < 0)
    return -errno;
  if (fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != PTMX) {
    close(fd);
    return -ENODEV;
  }
  return fd;
}

/* The other end, owned by the user inside, who may open it again by its name. */
static int open_peer(int ours) {
  int locked = 0;
  if (ioctl(ours, TIOCSPTLCK, &locked) < 0)
    return -errno;
  int theirs = ioctl(ours, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (theirs < 0)
    return -errno;
  struct termios mode;
  bool made = tcgetattr(theirs, &mode) == 0;
  mode.c_iflag |= IUTF8; /* a character is erased as a whole */
  made = made && tcsetattr(theirs, TCSANOW, &mode) == 0;
  if (made && geteuid() == 0)
    made = fchown(theirs, MS_UNPRIVILEGED, MS_UNPRIVILEGED) == 0 || errno == EINVAL;
  if (made)
    return theirs;
  int error = errno;
  close(theirs);
  return -error;
}

int ms_pty_make(int root, unsigned cols, unsigned rows, int *ours, int *theirs) {
  int fd = open_ptmx(root);
  if (fd < 0)
    return fd;
  int peer = open_peer(fd);
  int error = peer < 0 ? peer : ms_pty_resize(fd, cols, rows);
  if (error < 0) {
    if (peer >= 0)
      close(peer);
    close(fd);
    return error;
  }
  *ours = fd;
  *theirs = peer;
  return 0;
}

int ms_pty_resize(int fd, unsigned cols, unsigned rows) {
  struct winsize size = {.ws_col = (unsigned short)cols, .ws_row = (unsigned short)rows};
  return ioctl(fd, TIOCSWINSZ, &size) < 0 ? -errno : 0;
}

int ms_pty_end(int fd, bool midline, char typed[2]) {
  struct termios mode;
  if (tcgetattr(fd, &mode) < 0)
    return 0;
  bool lines = mode.c_lflag & ICANON;
  char end = lines && mode.c_cc[VEOF] != _POSIX_VDISABLE ? (char)mode.c_cc[VEOF] : '\4';
  typed[0] = typed[1] = end;
  return lines && midline ? 2 : 1; /* the first one only hands over what there is of the line */
}

/* The caller's own ----------------------------------------------------------------------------- */

typedef struct terminal {
  int fd;      /* owned; -1: closed */
  pid_t owner; /* a fork of ours has no business with it */
  bool raw;    /* `before` is to be set again */
  struct termios before;
} terminal;

static terminal *check_terminal(lua_State *L) {
  return luaL_checkudata(L, 1, MS_TERMINAL_TYPE);
}

static int push_error(lua_State *L, int error) {
  lua_pushnil(L);
  lua_pushinteger(L, error);
  return 2;
}

/* Also from the background, where the kernel would stop us for it. */
static int set_mode(int fd, const struct termios *mode) {
  sigset_t background, before;
  sigemptyset(&background);
  sigaddset(&background, SIGTTOU);
  pthread_sigmask(SIG_BLOCK, &background, &before);
  int set = tcsetattr(fd, TCSANOW, mode);
  int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return set < 0 ? -error : 0;
}

/* terminal:raw(): what is typed comes as it is, and nobody but us acts on it. True, or nil, errno.
 */
static int terminal_raw(lua_State *L) {
  terminal *t = check_terminal(L);
  if (t->fd < 0)
    return push_error(L, EBADF);
  if (t->raw)
    return lua_pushboolean(L, true), 1;
  if (tcgetpgrp(t->fd) != getpgrp())
    return push_error(L, EAGAIN); /* another program has it now */
  if (tcgetattr(t->fd, &t->before) < 0)
    return push_error(L, errno);
  struct termios mode = t->before;
  cfmakeraw(&mode);
  int error = set_mode(t->fd, &mode);
  if (error)
    return push_error(L, -error);
  t->raw = true;
  lua_pushboolean(L, true);
  return 1;
}

/* terminal:size(): columns, rows; nothing when it does not know. */
static int terminal_size(lua_State *L) {
  const terminal *t = check_terminal(L);
  struct winsize size;
  if (t->fd < 0 || ioctl(t->fd, TIOCGWINSZ, &size) < 0 || size.ws_col == 0 || size.ws_row == 0)
    return 0;
  lua_pushinteger(L, size.ws_col);
  lua_pushinteger(L, size.ws_row);
  return 2;
}

/* terminal:close(): as it was before. */
static int terminal_close(lua_State *L) {
  terminal *t = check_terminal(L);
  if (t->fd < 0)
    return 0;
  if (t->raw && t->owner == getpid())
    set_mode(t->fd, &t->before);
  close(t->fd);
  t->fd = -1;
  return 0;
}

/* core.terminal(reactor): the controlling terminal of this process, and a stream to read what is
 * typed and write what is shown; or nil, errno. */
static int core_terminal(lua_State *L) {
  ms_reactor *r = ms_reactor_check(L, 1);
  terminal *t = lua_newuserdata(L, sizeof *t);
  *t = (terminal){.fd = -1, .owner = getpid()};
  luaL_setmetatable(L, MS_TERMINAL_TYPE);
  t->fd = open("/dev/tty", O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  int fd = t->fd < 0 ? -1 : fcntl(t->fd, F_DUPFD_CLOEXEC, 3);
  if (fd < 0)
    return push_error(L, errno);
  ms_stream_new(L, r, fd, true, 0, true);
  return 2;
}

static const luaL_Reg methods[] = {
    {"raw", terminal_raw}, {"size", terminal_size}, {"close", terminal_close}, {NULL, NULL}};

static const luaL_Reg metamethods[] = {
    {"__gc", terminal_close}, {"__close", terminal_close}, {NULL, NULL}};

void ms_terminal_open(lua_State *L) {
  ms_newtype(L, MS_TERMINAL_TYPE, methods, metamethods);
  lua_pushcfunction(L, core_terminal);
  lua_setfield(L, -2, "terminal"); /* core.terminal */
}
