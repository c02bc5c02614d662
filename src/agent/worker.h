/* The built-in programs and what they share: records (entry.h) to standard output. Each program is
 * told of in the comment of its function, with its arguments; each ends with an MS_RECORD_END or an
 * MS_RECORD_FAILED, so that a cut stream cannot be taken for a whole one. They run as any program
 * of the sandbox does, but in a fork of the agent. */
#ifndef MS_WORKER_H
#define MS_WORKER_H

#include "../entry.h"

#include <stdint.h>

/* A record of any kind: what is put between the two calls is its body. */
ms_writer *ms_out_begin(uint32_t kind);
void ms_out_close(void);
/* What was collected is written now. */
void ms_out_flush(void);
/* Collected, and written when there is enough, or at the end. */
void ms_out_entry(const ms_entry *e);
void ms_out_skipped(int error, const char *path);
void ms_out_total(uint64_t entries, uint64_t bytes);
/* The last record; each gives the exit status. `error` is a negative errno. */
int ms_out_failed(int error, const char *path);
int ms_out_end(uint64_t entries);
/* Bytes that are records already. */
void ms_out_raw(const char *data, size_t length);

int ms_work_list(int argc, char **argv);
int ms_work_search(int argc, char **argv);
int ms_work_remove(int argc, char **argv);
int ms_work_copy(int argc, char **argv);
int ms_work_cat(int argc, char **argv);
int ms_work_pack(int argc, char **argv);
int ms_work_unpack(int argc, char **argv);
int ms_work_ps(int argc, char **argv);
int ms_work_snapshot(int argc, char **argv);
int ms_work_restore(int argc, char **argv);
int ms_work_watch(int argc, char **argv);
int ms_work_grep(int argc, char **argv);

/* glob.c: whether a name matches one part of a pattern: `*`, `?`, `[a-z]`, `[!a]`, `\` before what
 * is meant as itself. A leading dot is matched by a dot only. */
bool ms_glob_match(const char *pattern, size_t length, const char *name);
/* Whether a part has any of these characters. */
bool ms_glob_is_wild(const char *pattern, size_t length);

#endif
