#include "worker.h"
#include "../place.h"
#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FLUSH_AT ((size_t)64 * 1024)

/* Output -------------------------------------------------------------------------------------- */

static char buffer[FLUSH_AT + MS_PATH_MAX * 2 + 256];
static ms_writer out = {.data = buffer, .capacity = sizeof buffer};

void ms_out_flush(void) {
  if (ms_write_all(STDOUT_FILENO, out.data, out.length) < 0)
    _exit(EPIPE); /* nobody listens any more */
  out.length = 0;
}

static size_t record; /* where the one under way begins */

ms_writer *ms_out_begin(uint32_t kind) {
  record = ms_record_begin(&out, kind);
  return &out;
}

void ms_out_close(void) {
  ms_record_end(&out, record);
  if (out.length >= FLUSH_AT)
    ms_out_flush();
}

void ms_out_entry(const ms_entry *e) {
  ms_put_entry(ms_out_begin(MS_RECORD_ENTRY), e);
  ms_out_close();
}

static void out_trouble(uint32_t kind, int error, const char *path) {
  ms_put_u32(ms_out_begin(kind), (uint32_t)-error);
  ms_put_bytes(&out, path, strnlen(path, MS_PATH_MAX));
  ms_out_close();
}

void ms_out_skipped(int error, const char *path) {
  out_trouble(MS_RECORD_SKIPPED, error, path);
}

void ms_out_total(uint64_t entries, uint64_t bytes) {
  ms_put_u64(ms_out_begin(MS_RECORD_TOTAL), entries);
  ms_put_u64(&out, bytes);
  ms_out_close();
}

int ms_out_failed(int error, const char *path) {
  out_trouble(MS_RECORD_FAILED, error, path);
  ms_out_flush();
  return 1;
}

int ms_out_end(uint64_t entries) {
  ms_put_u64(ms_out_begin(MS_RECORD_END), entries);
  ms_out_close();
  ms_out_flush();
  return 0;
}

void ms_out_raw(const char *data, size_t length) {
  ms_out_flush();
  if (ms_write_all(STDOUT_FILENO, data, length) < 0)
    _exit(EPIPE);
}

/* ---------------------------------------------------------------------------------------------- */

static const struct {
  const char *name;
  int (*run)(int argc, char **argv);
  int arguments; /* at least so many, without the name */
} programs[] = {
    {"list", ms_work_list, 2},         {"search", ms_work_search, 1},
    {"remove", ms_work_remove, 1},     {"copy", ms_work_copy, 3},
    {"cat", ms_work_cat, 3},           {"pack", ms_work_pack, 2},
    {"unpack", ms_work_unpack, 1},     {"ps", ms_work_ps, 0},
    {"snapshot", ms_work_snapshot, 0}, {"restore", ms_work_restore, 0},
    {"watch", ms_work_watch, 2},       {"grep", ms_work_grep, 3},
};

int ms_worker_main(int argc, char **argv) {
  signal(SIGPIPE, SIG_DFL);
  signal(SIGXFSZ, SIG_IGN); /* EFBIG instead */
  umask(0);
  if (chdir("/") < 0)
    return errno;
  for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
    if (argc > programs[i].arguments && strcmp(argv[0], programs[i].name) == 0)
      return programs[i].run(argc, argv);
  return ENOSYS;
}
