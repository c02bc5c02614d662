/* What is told about files, and how: the *entry* (one file, directory or link) and the *record*
 * (one item of the byte stream between a worker inside and the host). Shared by the agent and the
 * module. The host reads both from a sandbox, so the readers here take nothing on trust: every
 * number is in its range and every path is one that stays below the directory it is joined to.
 *
 * A record is u32 length of the rest, u32 kind, and a body in the form of wire.h; but the body of
 * MS_RECORD_DATA is the bytes themselves. Writers and readers run the same build on the same
 * machine. */
#ifndef MS_ENTRY_H
#define MS_ENTRY_H

#include "wire.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#define MS_PATH_MAX 4095 /* bytes of a path, without the NUL */
#define MS_NAME_MAX 255  /* bytes of one of its names */

typedef enum ms_entry_type {
  MS_ENTRY_FILE = 1,
  MS_ENTRY_DIRECTORY,
  MS_ENTRY_SYMLINK,
  MS_ENTRY_OTHER, /* a FIFO, a socket, a device */
} ms_entry_type;

typedef struct ms_entry {
  uint32_t type; /* ms_entry_type */
  uint32_t mode; /* permission bits, 07777 */
  uint32_t uid, gid;
  uint64_t size;
  int64_t mtime; /* seconds since the epoch */
  uint32_t mtime_ns;
  const char *path;   /* relative: "a/b", never "/a", "a//b", "./a", "a/.."; "": the root itself */
  const char *target; /* of a link; else "" */
} ms_entry;

void ms_entry_from_stat(ms_entry *e, const struct stat *st);
void ms_put_entry(ms_writer *w, const ms_entry *e);
/* Sets `bad` when something in it cannot be. The strings point into the message. */
void ms_get_entry(ms_reader *r, ms_entry *e);
/* Whether a path is one that an entry may have. */
bool ms_entry_path_ok(const char *path);
/* Whether a link stays below the root of its tree wherever it is followed: relative, and with ".."
 * only in front and no more of them than `path` has directories. (Where ".." follows a name, that
 * name may be a link itself, and what ".." means depends on it.) */
bool ms_entry_target_stays(const char *path, const char *target);

typedef enum ms_record_kind {
  MS_RECORD_ENTRY = 1, /* ms_entry */
  MS_RECORD_DATA,      /* the next bytes of the file that the last entry named */
  MS_RECORD_TOTAL,     /* u64 entries, u64 bytes: what is going to come */
  MS_RECORD_SKIPPED,   /* u32 errno, str path: passed over, the rest goes on */
  MS_RECORD_FAILED,    /* u32 errno, str path: the last record, it has failed */
  MS_RECORD_END,       /* u64 entries: the last record, all is there */
  MS_RECORD_HOLE,      /* u64 length: the next bytes of the file are zeros that take no room */
  MS_RECORD_LINK,      /* str path, str first: another name of a file that came already */
  MS_RECORD_EVENT,     /* u32 ms_event, str path: what happened while a directory was watched */
  MS_RECORD_MATCH,     /* u64 line, u64 column, str path, bytes: the line, or its beginning */
  MS_RECORD_LAST,
} ms_record_kind;

/* A path is relative to what is watched, "" for that. */
typedef enum ms_event {
  MS_EVENT_CREATED = 1,
  MS_EVENT_MODIFIED,
  MS_EVENT_REMOVED,
  MS_EVENT_OVERFLOW, /* more has happened at the path, or below it, than could be told */
} ms_event;

#define MS_RECORD_HEADER 8
#define MS_RECORD_DATA_MAX ((size_t)128 * 1024)
#define MS_RECORD_MAX (MS_RECORD_HEADER + MS_RECORD_DATA_MAX)

typedef struct ms_record {
  uint32_t kind;
  ms_reader body;
} ms_record;

/* Takes the first record of a buffer: how many bytes it had; 0: not all of it is there yet;
 * -EPROTO: it never will be one. */
ssize_t ms_record_next(const char *data, size_t length, ms_record *record);

/* Writing: everything between the two calls is the body. `start` is where the record begins. */
size_t ms_record_begin(ms_writer *w, uint32_t kind);
void ms_record_end(ms_writer *w, size_t start);
/* The header of an MS_RECORD_DATA of `length` bytes. */
void ms_record_data_header(char header[MS_RECORD_HEADER], size_t length);

#endif
