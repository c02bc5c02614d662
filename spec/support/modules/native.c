/* What the specs need of the system and Lua does not have: processes, limits, terminals, keys,
 * other Lua states. A Lua module, compiled by spec/support/init.lua for the Lua that runs. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utmp.h>

static int answer(lua_State *L, long value) {
  if (value >= 0) {
    lua_pushinteger(L, (lua_Integer)value);
    return 1;
  }
  lua_pushnil(L);
  lua_pushinteger(L, errno);
  return 2;
}

/* Time ---------------------------------------------------------------------------------------- */

static lua_State *alarmed;

static void overdue(lua_State *L, lua_Debug *d) {
  (void)d;
  lua_sethook(L, NULL, 0, 0);
  luaL_error(L, "the deadline of this test is over");
}

static void on_alarm(int number) {
  (void)number;
  lua_sethook(alarmed, overdue, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* alarm(seconds): after that time, an error wherever the main thread is; 0: none. System calls are
 * interrupted, and again every 0.1 s. */
static int native_alarm(lua_State *L) {
  double seconds = luaL_checknumber(L, 1);
  struct sigaction action = {.sa_handler = on_alarm};
  struct itimerval timer = {.it_interval.tv_usec = seconds > 0 ? 100000 : 0};
  timer.it_value.tv_sec = (time_t)seconds;
  timer.it_value.tv_usec = (suseconds_t)((seconds - (double)timer.it_value.tv_sec) * 1e6);
  alarmed = L;
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &timer, NULL);
  if (seconds <= 0)
    lua_sethook(L, NULL, 0, 0);
  return 0;
}

/* Processes ----------------------------------------------------------------------------------- */

static int native_getpid(lua_State *L) {
  return answer(L, getpid());
}

static int native_getuid(lua_State *L) {
  return answer(L, geteuid());
}

static int native_fork(lua_State *L) {
  return answer(L, fork());
}

static int native_exit(lua_State *L) {
  _exit((int)luaL_optinteger(L, 1, 0));
}

static int native_kill(lua_State *L) {
  return answer(L, kill((pid_t)luaL_checkinteger(L, 1), (int)luaL_checkinteger(L, 2)));
}

/* wait(pid) -> status as from waitpid */
static int native_wait(lua_State *L) {
  int status = 0;
  pid_t pid = (pid_t)luaL_checkinteger(L, 1), got;
  while ((got = waitpid(pid, &status, 0)) < 0 && errno == EINTR)
    continue;
  return answer(L, got < 0 ? -1 : status);
}

/* subreaper(on): orphans of ours become our children. */
static int native_subreaper(lua_State *L) {
  return answer(L, prctl(PR_SET_CHILD_SUBREAPER, lua_toboolean(L, 1), 0, 0, 0));
}

static int native_pause(lua_State *L) {
  usleep((useconds_t)(luaL_checknumber(L, 1) * 1e6));
  return 0;
}

/* readable(fd, seconds) -> 1, or 0 when the time is over. */
static int native_readable(lua_State *L) {
  struct pollfd p = {.fd = (int)luaL_checkinteger(L, 1), .events = POLLIN};
  double seconds = luaL_checknumber(L, 2);
  struct timespec t = {0, 0};
  if (seconds > 0) {
    t.tv_sec = (time_t)seconds;
    t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
  }
  return answer(L, ppoll(&p, 1, &t, NULL));
}

/* Files --------------------------------------------------------------------------------------- */

/* nofile(soft) -> what it was. Number of open files that this process may have. */
static int native_nofile(lua_State *L) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  rlim_t was = limit.rlim_cur;
  if (!lua_isnoneornil(L, 1)) {
    limit.rlim_cur = (rlim_t)luaL_checkinteger(L, 1);
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
      return answer(L, -1);
  }
  return answer(L, (long)was);
}

/* fsize(soft) -> what it was. */
static int native_fsize(lua_State *L) {
  struct rlimit limit;
  getrlimit(RLIMIT_FSIZE, &limit);
  limit.rlim_cur = lua_isnoneornil(L, 1) ? limit.rlim_max : (rlim_t)luaL_checkinteger(L, 1);
  return answer(L, setrlimit(RLIMIT_FSIZE, &limit));
}

/* no_watches(): from here on no epoll set takes anything more, as when its user has used all up. */
static int native_no_watches(lua_State *L) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_epoll_ctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, EPOLL_CTL_ADD, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSPC),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
    return answer(L, -1);
  return answer(L, prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

/* A thread that forks as long as it is wanted. Each child looks at what it has: descriptors that an
 * exec would keep are counted, but for those that were so in the beginning. */
enum { LOOKED_AT = 256 };
static struct {
  pthread_t thread;
  volatile bool wanted;
  bool known[LOOKED_AT];
  long forks, kept;
} forker;

static bool is_kept(int fd) {
  int flags = fcntl(fd, F_GETFD);
  return flags >= 0 && !(flags & FD_CLOEXEC);
}

static void *fork_on(void *unused) {
  while (forker.wanted) {
    pid_t pid = fork();
    if (pid == 0) {
      for (int fd = 3; fd < LOOKED_AT; fd++)
        if (is_kept(fd) && !forker.known[fd])
          _exit(1);
      _exit(0);
    }
    int status = 0;
    if (pid > 0 && waitpid(pid, &status, 0) == pid) {
      forker.forks++;
      forker.kept += status != 0;
    }
  }
  return unused;
}

static int native_forker(lua_State *L) {
  for (int fd = 3; fd < LOOKED_AT; fd++)
    forker.known[fd] = is_kept(fd);
  forker.wanted = true;
  forker.forks = forker.kept = 0;
  errno = pthread_create(&forker.thread, NULL, fork_on, NULL);
  return answer(L, errno ? -1 : 0);
}

/* -> how many forks there were, and in how many something was kept */
static int native_forked(lua_State *L) {
  forker.wanted = false;
  pthread_join(forker.thread, NULL);
  lua_pushinteger(L, (lua_Integer)forker.forks);
  lua_pushinteger(L, (lua_Integer)forker.kept);
  return 2;
}

/* leak(path) -> a descriptor without close-on-exec */
static int native_leak(lua_State *L) {
  return answer(L, open(luaL_checkstring(L, 1), O_RDWR | O_CREAT, 0600));
}

/* list(directory) -> its names, without the descriptor that reads it; nil when it is not there */
static int native_list(lua_State *L) {
  DIR *dir = opendir(luaL_checkstring(L, 1));
  if (!dir)
    return answer(L, -1);
  char own[16], here[32];
  snprintf(own, sizeof own, "%d", dirfd(dir));
  snprintf(here, sizeof here, "/proc/%d/fd", (int)getpid());
  bool skip = strcmp(luaL_checkstring(L, 1), here) == 0;
  lua_newtable(L);
  int count = 0;
  for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
    if (entry->d_name[0] != '.' && !(skip && strcmp(entry->d_name, own) == 0)) {
      lua_pushstring(L, entry->d_name);
      lua_rawseti(L, -2, ++count);
    }
  closedir(dir);
  return 1;
}

/* The parent of a process as its stat file tells it; 0: it is gone. */
static pid_t parent_of(pid_t pid) {
  char path[32], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0)
    close(fd);
  text[length > 0 ? length : 0] = '\0';
  const char *end = strrchr(text, ')');
  return end && strlen(end) > 4 ? (pid_t)strtol(end + 4, NULL, 10) : 0;
}

/* below(pid) -> the pids of its descendants */
static int native_below(lua_State *L) {
  enum { MOST = 32768 };
  static struct {
    pid_t pid, parent;
    bool below;
  } all[MOST];
  const pid_t root = (pid_t)luaL_checkinteger(L, 1);
  int count = 0;
  DIR *dir = opendir("/proc");
  if (!dir)
    return answer(L, -1);
  for (struct dirent *entry; count < MOST && (entry = readdir(dir)) != NULL;) {
    pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
    pid_t parent = pid > 0 ? parent_of(pid) : 0;
    if (parent > 0) {
      all[count].pid = pid;
      all[count].parent = parent;
      all[count++].below = parent == root;
    }
  }
  closedir(dir);
  for (bool more = true; more;) {
    more = false;
    for (int i = 0; i < count; i++)
      for (int j = 0; !all[i].below && j < count; j++)
        if (all[j].below && all[j].pid == all[i].parent)
          more = all[i].below = true;
  }
  lua_newtable(L);
  for (int i = 0, n = 0; i < count; i++)
    if (all[i].below) {
      lua_pushinteger(L, all[i].pid);
      lua_rawseti(L, -2, ++n);
    }
  return 1;
}

static int native_readlink(lua_State *L) {
  char target[4096];
  ssize_t length = readlink(luaL_checkstring(L, 1), target, sizeof target);
  if (length < 0)
    return answer(L, -1);
  lua_pushlstring(L, target, (size_t)length);
  return 1;
}

static int native_close(lua_State *L) {
  return answer(L, close((int)luaL_checkinteger(L, 1)));
}

static int native_umask(lua_State *L) {
  return answer(L, umask((mode_t)luaL_checkinteger(L, 1)));
}

/* ignore(signal, on) */
static int native_ignore(lua_State *L) {
  signal((int)luaL_checkinteger(L, 1), lua_toboolean(L, 2) ? SIG_IGN : SIG_DFL);
  return 0;
}

/* block(signal, on) */
static int native_block(lua_State *L) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, (int)luaL_checkinteger(L, 1));
  return answer(L, sigprocmask(lua_toboolean(L, 2) ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL));
}

static int native_setenv(lua_State *L) {
  return answer(L, setenv(luaL_checkstring(L, 1), luaL_checkstring(L, 2), 1));
}

/* What the host has and the sandbox must not reach -------------------------------------------- */

/* keyring(name, secret): a new session keyring with a key in it. */
static int native_keyring(lua_State *L) {
  size_t length;
  const char *name = luaL_checkstring(L, 1), *secret = luaL_checklstring(L, 2, &length);
  if (syscall(SYS_keyctl, 1 /* JOIN_SESSION_KEYRING */, NULL, 0, 0, 0) < 0)
    return answer(L, -1);
  return answer(L, syscall(SYS_add_key, "user", name, secret, length, -3 /* session */));
}

/* listen_abstract(name) -> descriptor */
static int native_listen_abstract(lua_State *L) {
  size_t length;
  const char *name = luaL_checklstring(L, 1, &length);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  memcpy(address.sun_path + 1, name, length);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 8) < 0)
    return answer(L, -1);
  return answer(L, fd);
}

/* listen_tcp() -> descriptor, port on 127.0.0.1 */
static int native_listen_tcp(lua_State *L) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 8) < 0 ||
      getsockname(fd, (struct sockaddr *)&address, &size) < 0)
    return answer(L, -1);
  lua_pushinteger(L, fd);
  lua_pushinteger(L, ntohs(address.sin_port));
  return 2;
}

/* connected(fd): whether anybody has connected to a listening socket */
static int native_connected(lua_State *L) {
  int fd = accept((int)luaL_checkinteger(L, 1), NULL, NULL);
  lua_pushboolean(L, fd >= 0);
  if (fd >= 0)
    close(fd);
  return 1;
}

/* connect_abstract(name), connect_tcp(port): 0, or nil, errno. To see that the oracles work. */
static int native_connect_abstract(lua_State *L) {
  size_t length;
  const char *name = luaL_checklstring(L, 1, &length);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  memcpy(address.sun_path + 1, name, length);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
  int result = connect(fd, (struct sockaddr *)&address, size);
  close(fd);
  return answer(L, result);
}

static int native_connect_tcp(lua_State *L) {
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                .sin_port = htons((uint16_t)luaL_checkinteger(L, 1))};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int result = connect(fd, (struct sockaddr *)&address, sizeof address);
  close(fd);
  return answer(L, result);
}

/* shared(key, text) -> id of a segment that everybody may read */
static int native_shared(lua_State *L) {
  int id = shmget((key_t)luaL_checkinteger(L, 1), 4096, IPC_CREAT | IPC_EXCL | 0666);
  if (id < 0)
    return answer(L, -1);
  char *memory = shmat(id, NULL, 0);
  strncpy(memory, luaL_checkstring(L, 2), 4095);
  shmdt(memory);
  return answer(L, id);
}

static int native_unshared(lua_State *L) {
  return answer(L, shmctl((int)luaL_checkinteger(L, 1), IPC_RMID, NULL));
}

/* on_pty(seconds, program, …) -> all that it wrote to its controlling terminal, and what was left
 * in the terminal's input queue after it ended: bytes that nobody has typed. */
static int native_on_pty(lua_State *L) {
  char *argv[32];
  int master, slave, argc = lua_gettop(L) - 1, status = 0;
  for (int i = 0; i < argc && i < 31; i++)
    argv[i] = (char *)luaL_checkstring(L, i + 2);
  argv[argc] = NULL;
  if (openpty(&master, &slave, NULL, NULL, NULL) < 0)
    return answer(L, -1);
  pid_t pid = fork();
  if (pid == 0) {
    close(master);
    login_tty(slave);
    execvp(argv[0], argv);
    _exit(127);
  }
  fcntl(master, F_SETFL, O_NONBLOCK);
  luaL_Buffer output;
  luaL_buffinit(L, &output);
  double tries = luaL_checknumber(L, 1) * 1000;
  for (;;) {
    char bytes[4096];
    ssize_t length = read(master, bytes, sizeof bytes);
    if (length > 0) {
      luaL_addlstring(&output, bytes, (size_t)length);
      continue;
    }
    pid_t ended = waitpid(pid, &status, WNOHANG);
    if (ended == pid || ended < 0)
      break;
    if (--tries < 0) {
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
      break;
    }
    usleep(1000);
  }
  char last[4096];
  ssize_t rest;
  while ((rest = read(master, last, sizeof last)) > 0)
    luaL_addlstring(&output, last, (size_t)rest);
  luaL_pushresult(&output);
  int flags = fcntl(slave, F_GETFL);
  fcntl(slave, F_SETFL, flags | O_NONBLOCK);
  ssize_t typed = read(slave, last, sizeof last);
  lua_pushlstring(L, last, typed > 0 ? (size_t)typed : 0);
  close(master);
  close(slave);
  return 2;
}

/* state(code): runs it in a Lua state of its own, with this one's package.path and package.cpath,
 * and closes that. What it returned as a string; or nil, message. */
static int native_state(lua_State *L) {
  const char *code = luaL_checkstring(L, 1);
  lua_State *other = luaL_newstate();
  luaL_openlibs(other);
  lua_getglobal(other, "package");
  lua_getglobal(L, "package");
  const char *names[] = {"path", "cpath"};
  for (int i = 0; i < 2; i++) {
    lua_getfield(L, -1, names[i]);
    lua_pushstring(other, lua_tostring(L, -1));
    lua_setfield(other, -2, names[i]);
    lua_pop(L, 1);
  }
  int error = luaL_loadstring(other, code) || lua_pcall(other, 0, 1, 0);
  const char *text = lua_tostring(other, -1);
  if (error)
    lua_pushnil(L);
  lua_pushstring(L, text ? text : "");
  lua_close(other);
  return error ? 2 : 1;
}

static const luaL_Reg functions[] = {
    {"alarm", native_alarm},
    {"getpid", native_getpid},
    {"getuid", native_getuid},
    {"fork", native_fork},
    {"exit", native_exit},
    {"kill", native_kill},
    {"wait", native_wait},
    {"subreaper", native_subreaper},
    {"pause", native_pause},
    {"readable", native_readable},
    {"nofile", native_nofile},
    {"fsize", native_fsize},
    {"no_watches", native_no_watches},
    {"forker", native_forker},
    {"forked", native_forked},
    {"leak", native_leak},
    {"list", native_list},
    {"below", native_below},
    {"readlink", native_readlink},
    {"close", native_close},
    {"umask", native_umask},
    {"ignore", native_ignore},
    {"block", native_block},
    {"setenv", native_setenv},
    {"keyring", native_keyring},
    {"listen_abstract", native_listen_abstract},
    {"listen_tcp", native_listen_tcp},
    {"connected", native_connected},
    {"connect_abstract", native_connect_abstract},
    {"connect_tcp", native_connect_tcp},
    {"shared", native_shared},
    {"unshared", native_unshared},
    {"on_pty", native_on_pty},
    {"state", native_state},
    {NULL, NULL},
};

int luaopen_native(lua_State *L);

int luaopen_native(lua_State *L) {
  lua_newtable(L);
  for (const luaL_Reg *f = functions; f->name; f++) {
    lua_pushcfunction(L, f->func);
    lua_setfield(L, -2, f->name);
  }
  return 1;
}
