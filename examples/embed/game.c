/* A game with a frame loop of its own, and Lua inside for what happens in it (arena.lua): sixty
 * times a second it calls Lua, which turns moonsand's loop once, waits for nothing, and gives a
 * picture to draw. At the end it says how long the frames took.
 *
 *     game DIRECTORY [--headless] [--seconds N]
 *
 * What moonsand asks of such a program is one line, in arena.lua: moonsand.loop.step(0). */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RATE 60
#define NANO 1000000000L
#define SECONDS_MAX 3600

static volatile sig_atomic_t interrupted;

static void interrupt(int signal) {
  (void)signal;
  interrupted = 1;
}

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * NANO + t.tv_nsec;
}

static void sleep_until(long at) {
  struct timespec t = {.tv_sec = at / NANO, .tv_nsec = at % NANO};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* Lua ----------------------------------------------------------------------------------------- */

static int traceback(lua_State *L) {
  luaL_traceback(L, L, lua_tostring(L, 1), 1);
  return 1;
}

/* Calls a function of the game, the table at 1. Leaves what it gave, one value, on the stack. */
static bool call(lua_State *L, const char *name) {
  lua_pushcfunction(L, traceback);
  lua_getfield(L, 1, name); /* game[name] */
  if (lua_pcall(L, 0, 1, -2) == 0) {
    lua_remove(L, -2); /* traceback */
    return true;
  }
  fprintf(stderr, "game: %s\n", lua_tostring(L, -1));
  return false;
}

/* Runs arena.lua of a directory: the table that it returns is at 1. */
static bool load(lua_State *L, const char *directory) {
  luaL_openlibs(L);
  lua_pushcfunction(L, traceback);
  lua_pushfstring(L, "%s/arena.lua", directory);
  if (luaL_loadfile(L, lua_tostring(L, -1)) == 0) {
    lua_pushstring(L, directory);
    if (lua_pcall(L, 1, 1, 1) == 0) {
      lua_replace(L, 1); /* the game */
      lua_settop(L, 1);
      return true;
    }
  }
  fprintf(stderr, "game: %s\n", lua_tostring(L, -1));
  return false;
}

/* The screen ---------------------------------------------------------------------------------- */

static void open_screen(void) {
  fputs("\033[?1049h\033[?25l\033[2J", stdout); /* another page, no cursor, empty */
}

static void close_screen(void) {
  fputs("\033[?25h\033[?1049l", stdout);
}

/* Draws what is on top of the stack, unless it is nil: nothing has changed. */
static void draw(lua_State *L) {
  const char *picture = lua_tostring(L, -1);
  if (picture != NULL) {
    fputs("\033[H", stdout);
    fputs(picture, stdout);
    fflush(stdout);
  }
}

/* Frames -------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
  long x = *(const long *)a, y = *(const long *)b;
  return (x > y) - (x < y);
}

/* How long a share of the frames took at most, in milliseconds. The times are sorted. */
static double quantile(const long *times, int count, double share) {
  int at = (int)(share * count + 0.999999) - 1;
  return (double)times[at < 0 ? 0 : at] / 1e6;
}

static void report(long *times, int count, int late) {
  qsort(times, (size_t)count, sizeof *times, by_size);
  printf("%d frames of %.1f ms: p50 %.3f ms, p99 %.3f ms, max %.3f ms, %d late\n", count,
         1000.0 / RATE, quantile(times, count, 0.5), quantile(times, count, 0.99),
         quantile(times, count, 1), late);
}

/* Plays until the time is over or someone types Ctrl-C. */
static bool play(lua_State *L, int frames, bool headless) {
  long *times = calloc((size_t)frames, sizeof *times);
  if (times == NULL) {
    return false;
  }
  bool ok = true;
  int count = 0, late = 0;
  long next = now();
  if (!headless) {
    open_screen();
  }
  while (ok && count < frames && !interrupted) {
    long start = now();
    next += NANO / RATE;
    ok = call(L, "frame");
    if (ok && !headless) {
      draw(L);
    }
    lua_settop(L, 1);
    long end = now();
    times[count++] = end - start;
    if (end > next) {
      late++;
      next = end; /* what is lost is not made up for */
    } else {
      sleep_until(next);
    }
  }
  if (!headless) {
    close_screen();
  }
  if (ok) {
    report(times, count, late);
    ok = call(L, "finish");
  }
  free(times);
  return ok;
}

int main(int argc, char **argv) {
  bool headless = false;
  int seconds = 20;
  const char *directory = NULL;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--headless") == 0) {
      headless = true;
    } else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
      seconds = atoi(argv[++i]);
    } else if (directory == NULL && argv[i][0] != '-') {
      directory = argv[i];
    } else {
      seconds = 0;
    }
  }
  if (directory == NULL || seconds < 1 || seconds > SECONDS_MAX) {
    fprintf(stderr, "usage: %s DIRECTORY [--headless] [--seconds 1..%d]\n", argv[0], SECONDS_MAX);
    return 2;
  }
  signal(SIGINT, interrupt);
  lua_State *L = luaL_newstate();
  bool ok = L != NULL && load(L, directory) && play(L, seconds * RATE, headless);
  if (L != NULL) {
    lua_close(L); /* ends the sandboxes */
  }
  return ok ? 0 : 1;
}
