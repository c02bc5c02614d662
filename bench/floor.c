/* links: -shared -fPIC */
/* What a C program without any sandbox reaches on this machine: the floor that ratios are taken
 * against. A Lua module, so that both sides take turns in one process. One binary serves Lua 5.4
 * and LuaJIT: it uses only calls that are the same in both (so no luaL_newlib, luaL_Buffer,
 * registry or upvalues). */
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARGS_MAX 128
#define WIDTH_MAX 64
#define CHUNK (256 * 1024)
#define PIPE_LARGE (1024 * 1024)

static char *const child_env[] = {"PATH=/usr/local/bin:/usr/bin:/bin", NULL};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Starting and reaping ------------------------------------------------------------------------ */

typedef enum { BY_VFORK, BY_POSIX_SPAWN } method;

/* The child's part between vfork and exec: it borrows our memory, so it only makes system calls. */
static pid_t vfork_exec(char *const argv[], int out) {
  pid_t pid = vfork();
  if (pid == 0) {
    dup2(out, STDOUT_FILENO);
    execve(argv[0], argv, child_env);
    _exit(127);
  }
  return pid;
}

static pid_t posix_exec(char *const argv[], int out) {
  posix_spawn_file_actions_t actions;
  pid_t pid = -1;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  if (posix_spawn(&pid, argv[0], &actions, NULL, argv, child_env) != 0) {
    pid = -1;
  }
  posix_spawn_file_actions_destroy(&actions);
  return pid;
}

/* Starts a program whose stdout is a pipe; *in is our end of it. -1 and errno when it cannot. */
static pid_t launch(method how, char *const argv[], int *in) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return -1;
  }
  pid_t pid = how == BY_VFORK ? vfork_exec(argv, ends[1]) : posix_exec(argv, ends[1]);
  close(ends[1]);
  *in = ends[0];
  if (pid < 0) {
    close(ends[0]);
  }
  return pid;
}

static int reap(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Reads to the end, whether the pipe blocks or not. The number of bytes. */
static long long drain(int fd, char *buffer, size_t size) {
  long long total = 0;
  for (;;) {
    ssize_t got = read(fd, buffer, size);
    if (got > 0) {
      total += got;
    } else if (got < 0 && errno == EAGAIN) {
      poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, -1);
    } else if (got == 0 || errno != EINTR) {
      return total;
    }
  }
}

/* Lua's arguments from `first` on, as argv. */
static void check_argv(lua_State *L, int first, char *argv[ARGS_MAX]) {
  int count = lua_gettop(L) - first + 1;
  if (count < 1 || count >= ARGS_MAX) {
    luaL_error(L, "floor: from 1 to %d words", ARGS_MAX - 1);
  }
  for (int i = 0; i < count; i++) {
    argv[i] = (char *)luaL_checkstring(L, first + i);
  }
  argv[count] = NULL;
}

static int refuse(lua_State *L, const char *what) {
  return luaL_error(L, "floor: %s: %s", what, strerror(errno));
}

static pid_t must_launch(lua_State *L, method how, char *const argv[], int *in) {
  pid_t pid = launch(how, argv, in);
  if (pid < 0) {
    refuse(L, argv[0]);
  }
  return pid;
}

/* Latency ------------------------------------------------------------------------------------- */

/* Start, read to the end, wait: the output (up to 64 KiB of it). */
static int run(lua_State *L, method how) {
  char *argv[ARGS_MAX], buffer[64 * 1024];
  size_t length = 0;
  int in = -1;
  check_argv(L, 1, argv);
  pid_t pid = must_launch(L, how, argv, &in);
  for (;;) {
    ssize_t got = read(in, buffer + length, sizeof buffer - length);
    if (got > 0) {
      length += (size_t)got;
    } else if (got == 0 || errno != EINTR) {
      break;
    }
  }
  close(in);
  int code = reap(pid);
  if (code != 0) {
    return luaL_error(L, "floor: %s ended with %d", argv[0], code);
  }
  lua_pushlstring(L, buffer, length);
  return 1;
}

/* run(path, …): by vfork, the fastest way there is. */
static int floor_run(lua_State *L) {
  return run(L, BY_VFORK);
}

/* spawn(path, …): by posix_spawn, what a careful C program does. */
static int floor_spawn(lua_State *L) {
  return run(L, BY_POSIX_SPAWN);
}

/* first_byte(path, …): seconds until the program has written something; then waits for its end. */
static int floor_first_byte(lua_State *L) {
  char *argv[ARGS_MAX], buffer[4096];
  int in = -1;
  check_argv(L, 1, argv);
  double start = now();
  pid_t pid = must_launch(L, BY_VFORK, argv, &in);
  ssize_t got = read(in, buffer, 1);
  double seconds = now() - start;
  drain(in, buffer, sizeof buffer);
  close(in);
  int code = reap(pid);
  if (got != 1 || code != 0) {
    return luaL_error(L, "floor: %s ended with %d, said %d bytes", argv[0], code, (int)got);
  }
  lua_pushnumber(L, seconds);
  return 1;
}

/* batch(count, width, path, …): runs `count` of them, `width` at once; seconds for all. */
static int floor_batch(lua_State *L) {
  long count = (long)luaL_checkinteger(L, 1), width = (long)luaL_checkinteger(L, 2);
  char *argv[ARGS_MAX], buffer[4096];
  check_argv(L, 3, argv);
  luaL_argcheck(L, width > 0 && width <= WIDTH_MAX, 2, "from 1 to 64");
  struct pollfd ends[WIDTH_MAX];
  pid_t pids[WIDTH_MAX];
  for (int i = 0; i < WIDTH_MAX; i++) {
    ends[i] = (struct pollfd){.fd = -1, .events = POLLIN};
  }
  double start = now();
  for (long begun = 0, done = 0; done < count;) {
    for (long i = 0; i < width && begun < count; i++) {
      if (ends[i].fd < 0) {
        pids[i] = must_launch(L, BY_VFORK, argv, &ends[i].fd);
        begun++;
      }
    }
    poll(ends, (nfds_t)width, -1);
    for (long i = 0; i < width; i++) {
      if (ends[i].fd >= 0 && ends[i].revents && read(ends[i].fd, buffer, sizeof buffer) == 0) {
        close(ends[i].fd);
        ends[i].fd = -1;
        reap(pids[i]);
        done++;
      }
    }
  }
  lua_pushnumber(L, now() - start);
  return 1;
}

/* Throughput ---------------------------------------------------------------------------------- */

static long long drain_large(int fd) {
  static char buffer[CHUNK];
  fcntl(fd, F_SETPIPE_SZ, PIPE_LARGE);
  return drain(fd, buffer, sizeof buffer);
}

/* drain(path, …): runs a program and reads what it writes; how much that was. */
static int floor_drain(lua_State *L) {
  char *argv[ARGS_MAX];
  int in = -1;
  check_argv(L, 1, argv);
  pid_t pid = must_launch(L, BY_VFORK, argv, &in);
  long long total = drain_large(in);
  close(in);
  reap(pid);
  lua_pushnumber(L, (lua_Number)total);
  return 1;
}

/* collect(path, …): the same, kept in one growing buffer and given to Lua as a string. */
static int floor_collect(lua_State *L) {
  char *argv[ARGS_MAX], *all = NULL;
  size_t length = 0, size = 0;
  ssize_t got = 0;
  int in = -1;
  check_argv(L, 1, argv);
  pid_t pid = must_launch(L, BY_VFORK, argv, &in);
  fcntl(in, F_SETPIPE_SZ, PIPE_LARGE);
  do {
    length += (size_t)got;
    if (size - length < CHUNK) {
      size = size ? size * 2 : 2 * CHUNK;
      char *larger = realloc(all, size);
      if (!larger) {
        abort();
      }
      all = larger;
    }
    got = read(in, all + length, size - length);
  } while (got > 0);
  close(in);
  reap(pid);
  lua_pushlstring(L, all, length);
  free(all);
  return 1;
}

/* drain_fd(fd): reads a pipe that somebody else has made to its end. */
static int floor_drain_fd(lua_State *L) {
  lua_pushnumber(L, (lua_Number)drain_large((int)luaL_checkinteger(L, 1)));
  return 1;
}

/* pipes(): { [fd] = true } of all pipes that this process could read. */
static int floor_pipes(lua_State *L) {
  lua_createtable(L, 0, 8);
  for (int fd = 0; fd < 1024; fd++) {
    struct stat entry;
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY && fstat(fd, &entry) == 0 &&
        S_ISFIFO(entry.st_mode)) {
      lua_pushboolean(L, true);
      lua_rawseti(L, -2, fd); /* pipes[fd] = true */
    }
  }
  return 1;
}

/* Other processes ----------------------------------------------------------------------------- */

/* start(path, …): its pid and the fd of its stdout. */
static int floor_start(lua_State *L) {
  char *argv[ARGS_MAX];
  int in = -1;
  check_argv(L, 1, argv);
  lua_pushinteger(L, must_launch(L, BY_VFORK, argv, &in));
  lua_pushinteger(L, in);
  return 2;
}

/* read_line(fd): one line, without its end. */
static int floor_read_line(lua_State *L) {
  int fd = (int)luaL_checkinteger(L, 1);
  char line[4096];
  size_t length = 0;
  while (length < sizeof line && read(fd, line + length, 1) == 1 && line[length] != '\n') {
    length++;
  }
  lua_pushlstring(L, line, length);
  return 1;
}

static int floor_close(lua_State *L) {
  close((int)luaL_checkinteger(L, 1));
  return 0;
}

/* Dead, or a zombie that its parent has not looked at yet: it runs no more. */
static bool is_over(pid_t pid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return true;
  }
  ssize_t got = read(fd, text, sizeof text - 1);
  close(fd);
  text[got > 0 ? got : 0] = '\0';
  const char *state = strrchr(text, ')');
  return !state || state[1] == '\0' || state[2] == 'Z' || state[2] == 'X';
}

/* kill(timeout, pid, others …): SIGKILL for our child `pid`; seconds until it and the others, its
 * descendants, run no more, or nil when some do after `timeout` seconds. */
static int floor_kill(lua_State *L) {
  double timeout = luaL_checknumber(L, 1);
  pid_t child = (pid_t)luaL_checkinteger(L, 2);
  int top = lua_gettop(L);
  double start = now();
  kill(child, SIGKILL);
  bool over = false;
  while (!over && now() - start < timeout) {
    over = true;
    for (int i = 2; i <= top && over; i++) {
      over = is_over((pid_t)luaL_checkinteger(L, i));
    }
    if (!over) {
      nanosleep(&(struct timespec){.tv_nsec = 50 * 1000}, NULL);
    }
  }
  double seconds = now() - start;
  reap(child);
  if (!over) {
    return 0;
  }
  lua_pushnumber(L, seconds);
  return 1;
}

/* The rest ------------------------------------------------------------------------------------ */

static int floor_now(lua_State *L) {
  lua_pushnumber(L, now());
  return 1;
}

/* sleep(seconds) */
static int floor_sleep(lua_State *L) {
  double seconds = luaL_checknumber(L, 1);
  poll(NULL, 0, (int)(seconds * 1000));
  return 0;
}

/* epoll(count): asks an epoll set with nothing in it, `count` times; seconds for one. */
static int floor_epoll(lua_State *L) {
  long count = (long)luaL_checkinteger(L, 1);
  struct epoll_event event;
  int fd = epoll_create1(EPOLL_CLOEXEC);
  double start = now();
  for (long i = 0; i < count; i++) {
    epoll_wait(fd, &event, 1, 0);
  }
  lua_pushnumber(L, (now() - start) / (double)count);
  close(fd);
  return 1;
}

/* cores(): how many processors this process may use. */
static int floor_cores(lua_State *L) {
  lua_pushinteger(L, sysconf(_SC_NPROCESSORS_ONLN));
  return 1;
}

/* more_files(): as many open files as the hard limit allows. */
static int floor_more_files(lua_State *L) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  lua_pushinteger(L, (lua_Integer)limit.rlim_cur);
  return 1;
}

int luaopen_floor(lua_State *L);

int luaopen_floor(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"now", floor_now},
      {"sleep", floor_sleep},
      {"run", floor_run},
      {"spawn", floor_spawn},
      {"first_byte", floor_first_byte},
      {"batch", floor_batch},
      {"drain", floor_drain},
      {"collect", floor_collect},
      {"drain_fd", floor_drain_fd},
      {"pipes", floor_pipes},
      {"start", floor_start},
      {"read_line", floor_read_line},
      {"close", floor_close},
      {"kill", floor_kill},
      {"epoll", floor_epoll},
      {"cores", floor_cores},
      {"more_files", floor_more_files},
  };
  lua_createtable(L, 0, 20);
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    lua_pushcfunction(L, functions[i].func);
    lua_setfield(L, -2, functions[i].name); /* floor[name] = function */
  }
  return 1;
}
