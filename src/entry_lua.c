/* Entries and records, from bytes that came out of a sandbox to Lua values: `core.entry`,
 * `core.opened`, `core.records`, `core.process`, `core.began`, `core.usage`; and the numbers of the
 * calls. */
#include "compat.h"
#include "entry.h"
#include "file.h"
#include "moonsand.h"
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define RECORDS_TYPE "moonsand.records"

void ms_entry_push(lua_State *L, const ms_entry *e) {
  static const char *const types[] = {NULL, "file", "directory", "symlink", "other"};
  lua_createtable(L, 0, 12);
  lua_pushstring(L, types[e->type]);
  lua_setfield(L, -2, "type"); /* entry.type */
  lua_pushinteger(L, e->mode);
  lua_setfield(L, -2, "mode"); /* entry.mode */
  lua_pushinteger(L, (lua_Integer)e->size);
  lua_setfield(L, -2, "size"); /* entry.size */
  lua_pushnumber(L, (lua_Number)e->mtime + e->mtime_ns / 1e9);
  lua_setfield(L, -2, "modified_at"); /* entry.modified_at */
  lua_pushinteger(L, e->uid);
  lua_setfield(L, -2, "uid"); /* entry.uid */
  lua_pushinteger(L, e->gid);
  lua_setfield(L, -2, "gid"); /* entry.gid */
  lua_pushstring(L, e->path);
  lua_setfield(L, -2, "path"); /* entry.path */
  if (e->type == MS_ENTRY_SYMLINK) {
    lua_pushstring(L, e->target);
    lua_setfield(L, -2, "target"); /* entry.target */
  }
}

/* A reader of the string at a stack index. Lua's strings end with a NUL, as readers want it. */
static ms_reader reader_of(lua_State *L, int index) {
  ms_reader r = {0};
  r.data = luaL_checklstring(L, index, &r.length);
  return r;
}

/* core.entry(body): the answer to a stat; nil if it is none. */
static int core_entry(lua_State *L) {
  ms_reader r = reader_of(L, 1);
  ms_entry e;
  ms_get_entry(&r, &e);
  if (ms_get_end(&r))
    ms_entry_push(L, &e);
  else
    lua_pushnil(L);
  return 1;
}

/* core.opened(body): the answer to an open or a create: what was found, and the two paths that a
 * create gives; nil if it is none. */
static int core_opened(lua_State *L) {
  static const char *const kinds[] = {"file", "virtual", "fifo", "socket", "device"};
  ms_reader r = reader_of(L, 1);
  uint32_t kind = ms_get_u32(&r);
  if (r.bad || kind > MS_OPENED_DEVICE) {
    lua_pushnil(L);
    return 1;
  }
  lua_pushstring(L, kinds[kind]);
  if (ms_get_end(&r))
    return 1;
  const char *temporary = ms_get_str(&r), *final = ms_get_str(&r);
  if (!ms_get_end(&r)) {
    lua_pushnil(L);
    return 1;
  }
  lua_pushstring(L, temporary);
  lua_pushstring(L, final);
  return 3;
}

/* Processes ----------------------------------------------------------------------------------- */

static void set_integer(lua_State *L, const char *name, uint64_t value) {
  lua_pushinteger(L, (lua_Integer)value);
  lua_setfield(L, -2, name); /* table[name] = value */
}

static void set_seconds(lua_State *L, const char *name, uint64_t ns) {
  lua_pushnumber(L, (lua_Number)ns / 1e9);
  lua_setfield(L, -2, name); /* table[name] = seconds */
}

/* Of a command line: each is a Lua value, however short. */
enum { WORDS_MAX = 1024 };

/* A list of the words of a command line, as many as are told. The last one may lack its NUL: a
 * process may write over its own. */
static void push_words(lua_State *L, const char *args, size_t length) {
  lua_newtable(L);
  int count = 0;
  for (size_t at = 0; at < length && count < WORDS_MAX;) {
    size_t word = strnlen(args + at, length - at);
    lua_pushlstring(L, args + at, word);
    lua_rawseti(L, -2, ++count); /* list[count] = word */
    at += word + 1;
  }
}

/* core.process(body): what the agent says of one, as a table; nil if it says nothing that makes
 * sense. */
static int core_process(lua_State *L) {
  ms_reader r = reader_of(L, 1);
  ms_proc p;
  ms_get_proc(&r, &p);
  if (!ms_get_end(&r)) {
    lua_pushnil(L);
    return 1;
  }
  char state = (char)p.state;
  lua_createtable(L, 0, 14);
  set_integer(L, "pid", p.pid);
  set_integer(L, "ppid", p.ppid);
  set_integer(L, "uid", p.uid);
  set_integer(L, "threads", p.threads);
  set_integer(L, "memory", p.memory);
  set_integer(L, "read_bytes", p.read_bytes);
  set_integer(L, "write_bytes", p.write_bytes);
  set_seconds(L, "cpu_time", p.cpu_ns);
  set_seconds(L, "age", p.age_ns);
  lua_pushnumber(L, (lua_Number)p.started_us / 1e6);
  lua_setfield(L, -2, "started_at"); /* process.started_at */
  set_integer(L, "began", p.ticks);
  lua_pushlstring(L, &state, 1);
  lua_setfield(L, -2, "state"); /* process.state */
  lua_pushlstring(L, p.name, p.name_length);
  lua_setfield(L, -2, "name"); /* process.name */
  push_words(L, p.args, p.args_length);
  lua_setfield(L, -2, "argv"); /* process.argv */
  return 1;
}

/* core.began(body): when one began that was signalled, which with the pid is which process it was;
 * nil if it is no such answer. */
static int core_began(lua_State *L) {
  ms_reader r = reader_of(L, 1);
  uint64_t ticks = ms_get_u64(&r);
  if (ms_get_end(&r) && ticks <= UINT64_C(1) << 53)
    lua_pushinteger(L, (lua_Integer)ticks);
  else
    lua_pushnil(L);
  return 1;
}

/* core.usage(body): what all of them use, as a table; nil if it is none. */
static int core_usage(lua_State *L) {
  ms_reader r = reader_of(L, 1);
  uint64_t at_ns = ms_get_u64(&r), cpu_ns = ms_get_u64(&r);
  lua_Number memory = (lua_Number)ms_get_u64(&r), total = (lua_Number)ms_get_u64(&r);
  lua_Number disk = (lua_Number)ms_get_u64(&r);
  uint32_t processes = ms_get_u32(&r), cpus = ms_get_u32(&r);
  if (!ms_get_end(&r) || total < 1 || total > 9e15 || memory > 9e15 || disk > 9e15 || cpus == 0) {
    lua_pushnil(L);
    return 1;
  }
  lua_createtable(L, 0, 7);
  set_seconds(L, "at", at_ns);
  set_seconds(L, "cpu_time", cpu_ns);
  set_integer(L, "processes", processes);
  set_integer(L, "cpus", cpus);
  lua_pushnumber(L, memory);
  lua_setfield(L, -2, "memory"); /* usage.memory */
  lua_pushnumber(L, total);
  lua_setfield(L, -2, "memory_total"); /* usage.memory_total */
  lua_pushnumber(L, disk);
  lua_setfield(L, -2, "disk_used"); /* usage.disk_used */
  return 1;
}

/* Records ------------------------------------------------------------------------------------- */

/* Takes a stream of records apart. Holds what has come and was not asked for yet, which is one
 * chunk and less than one record. */
typedef struct records {
  bool skim;  /* the bytes of files are not wanted */
  char *data; /* owned */
  size_t at, length, capacity;
} records;

static records *check_records(lua_State *L) {
  return luaL_checkudata(L, 1, RECORDS_TYPE);
}

/* core.records(skim): `skim`: "data" comes with its length, not its bytes. */
static int core_records(lua_State *L) {
  bool skim = lua_toboolean(L, 1);
  records *r = lua_newuserdata(L, sizeof *r);
  *r = (records){.skim = skim};
  luaL_setmetatable(L, RECORDS_TYPE);
  return 1;
}

/* records:feed(data): what has come. */
static int records_feed(lua_State *L) {
  records *r = check_records(L);
  size_t length;
  const char *data = luaL_checklstring(L, 2, &length);
  if (r->at > 0)
    memmove(r->data, r->data + r->at, r->length - r->at);
  r->length -= r->at;
  r->at = 0;
  if (length > r->capacity - r->length) {
    size_t capacity = r->length + length;
    char *grown = realloc(r->data, capacity);
    if (!grown)
      return luaL_error(L, "not enough memory");
    r->data = grown;
    r->capacity = capacity;
  }
  memcpy(r->data + r->length, data, length);
  r->length += length;
  return 0;
}

static int push_event(lua_State *L, ms_reader *body) {
  static const char *const names[] = {NULL, "created", "modified", "removed", "overflow"};
  uint32_t event = ms_get_u32(body);
  const char *path = ms_get_str(body);
  if (!ms_get_end(body) || event < MS_EVENT_CREATED || event > MS_EVENT_OVERFLOW ||
      (path[0] && !ms_entry_path_ok(path)))
    return 0;
  lua_pushstring(L, names[event]);
  lua_pushstring(L, path);
  return 3;
}

/* { path, line, column, text } */
static int push_match(lua_State *L, ms_reader *body) {
  uint64_t line = ms_get_u64(body), column = ms_get_u64(body);
  const char *path = ms_get_str(body);
  size_t length;
  const char *text = ms_get_bytes(body, &length);
  if (!ms_get_end(body) || (path[0] && !ms_entry_path_ok(path)) || line == 0 || column == 0 ||
      (line | column) >> 52)
    return 0;
  lua_createtable(L, 0, 4);
  set_integer(L, "line", line);
  set_integer(L, "column", column);
  lua_pushstring(L, path);
  lua_setfield(L, -2, "path"); /* match.path */
  lua_pushlstring(L, text, length);
  lua_setfield(L, -2, "text"); /* match.text */
  return 2;
}

/* Pushes a record: its name and what it says. 0 if it says nothing that makes sense. */
static int push_record(lua_State *L, ms_record *record, bool skim) {
  static const char *const names[] = {NULL,  "entry", "data", "total", "skipped", "failed",
                                      "end", "hole",  "link", "event", "match"};
  ms_reader *body = &record->body;
  ms_entry e;
  lua_pushstring(L, names[record->kind]);
  switch (record->kind) {
  case MS_RECORD_ENTRY:
    ms_get_entry(body, &e);
    if (!ms_get_end(body))
      return 0;
    ms_entry_push(L, &e);
    return 2;
  case MS_RECORD_DATA:
    if (skim)
      lua_pushinteger(L, (lua_Integer)body->length);
    else
      lua_pushlstring(L, body->data, body->length);
    return 2;
  case MS_RECORD_SKIPPED:
  case MS_RECORD_FAILED:
    lua_pushinteger(L, (int32_t)ms_get_u32(body));
    lua_pushstring(L, ms_get_str(body));
    return ms_get_end(body) ? 3 : 0;
  case MS_RECORD_EVENT:
    return push_event(L, body);
  case MS_RECORD_MATCH:
    return push_match(L, body);
  case MS_RECORD_LINK:
    lua_pushstring(L, ms_get_str(body));
    lua_pushstring(L, ms_get_str(body));
    return ms_get_end(body) ? 3 : 0;
  case MS_RECORD_TOTAL:
    lua_pushnumber(L, (lua_Number)ms_get_u64(body));
    lua_pushnumber(L, (lua_Number)ms_get_u64(body));
    return ms_get_end(body) ? 3 : 0;
  default:
    lua_pushnumber(L, (lua_Number)ms_get_u64(body));
    return ms_get_end(body) ? 2 : 0;
  }
}

/* records:next(): "entry", entry · "data", bytes · "total", entries, bytes · "skipped", errno, path
 * · "failed", errno, path · "end", entries · "hole", bytes · "link", path, first · "event", which,
 * path · "match", { path, line, column, text }; nothing when more has to come; false when what came
 * is no such stream. */
static int records_next(lua_State *L) {
  records *r = check_records(L);
  ms_record record;
  if (r->at == r->length)
    return 0;
  ssize_t taken = ms_record_next(r->data + r->at, r->length - r->at, &record);
  if (taken == 0)
    return 0;
  if (taken > 0) {
    int pushed = push_record(L, &record, r->skim);
    r->at += (size_t)taken;
    if (pushed > 0)
      return pushed;
  }
  lua_pushboolean(L, false);
  return 1;
}

static int records_gc(lua_State *L) {
  records *r = check_records(L);
  free(r->data);
  *r = (records){0};
  return 0;
}

/* Programs ------------------------------------------------------------------------------------ */

static void push_program(lua_State *L, const ms_program *p) {
  lua_createtable(L, 0, 8);
  lua_pushnumber(L, (lua_Number)p->number);
  lua_setfield(L, -2, "number"); /* program.number */
  set_integer(L, "pid", (lua_Integer)p->pid);
  lua_pushnumber(L, (lua_Number)p->started_us / 1e6);
  lua_setfield(L, -2, "started_at"); /* program.started_at */
  lua_pushboolean(L, p->running != 0);
  lua_setfield(L, -2, "running"); /* program.running */
  lua_pushboolean(L, p->background != 0);
  lua_setfield(L, -2, "background"); /* program.background */
  if (!p->running && WIFEXITED(p->status))
    set_integer(L, "exit_code", WEXITSTATUS(p->status));
  else if (!p->running)
    set_integer(L, "signal_number", WTERMSIG(p->status));
  push_words(L, p->words, p->words_length);
  lua_setfield(L, -2, "words"); /* program.words */
}

/* core.programs(body): a list of what the agent says was started, and whether there are more; nil
 * if it says nothing that makes sense. */
static int core_programs(lua_State *L) {
  ms_reader r = reader_of(L, 1);
  uint32_t count = ms_get_u32(&r);
  lua_newtable(L);
  for (uint32_t i = 1; i <= count && !r.bad; i++) {
    ms_program p;
    ms_get_program(&r, &p);
    if (r.bad || p.number > UINT64_C(1) << 53)
      return 0;
    push_program(L, &p);
    lua_rawseti(L, -2, (int)i);
  }
  uint32_t more = ms_get_u32(&r);
  lua_pushboolean(L, more != 0);
  return ms_get_end(&r) && more <= 1 ? 2 : 0;
}

/* Numbers ------------------------------------------------------------------------------------- */

typedef struct number {
  const char *name;
  uint32_t value;
} number;

static void set_numbers(lua_State *L, const char *field, const number *rows, size_t count) {
  lua_createtable(L, 0, (int)count);
  for (size_t i = 0; i < count; i++) {
    lua_pushinteger(L, (lua_Integer)rows[i].value);
    lua_setfield(L, -2, rows[i].name); /* table[name] = value */
  }
  lua_setfield(L, -2, field); /* core[field] = table */
}

static const number calls[] = {
    {"open", MS_CALL_OPEN},       {"stat", MS_CALL_STAT},     {"mkdir", MS_CALL_MKDIR},
    {"remove", MS_CALL_REMOVE},   {"move", MS_CALL_MOVE},     {"chmod", MS_CALL_CHMOD},
    {"chown", MS_CALL_CHOWN},     {"create", MS_CALL_CREATE}, {"commit", MS_CALL_COMMIT},
    {"signal", MS_CALL_SIGNAL},   {"sample", MS_CALL_SAMPLE}, {"usage", MS_CALL_USAGE},
    {"connect", MS_CALL_CONNECT}, {"listen", MS_CALL_LISTEN}, {"programs", MS_CALL_PROGRAMS},
    {"detach", MS_CALL_DETACH},   {"life", MS_CALL_LIFE},
};

static const number flags[] = {
    {"RDONLY", O_RDONLY},
    {"WRONLY", O_WRONLY},
    {"RDWR", O_RDWR},
    {"CREAT", O_CREAT},
    {"EXCL", O_EXCL},
    {"TRUNC", O_TRUNC},
    {"APPEND", O_APPEND},
    {"NOFOLLOW", AT_SYMLINK_NOFOLLOW}, /* of stat */
    {"NAMELESS", MS_CREATE_NAMELESS},  /* of create */
};

void ms_entry_open(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"feed", records_feed},
      {"next", records_next},
      {NULL, NULL},
  };
  static const luaL_Reg metamethods[] = {{"__gc", records_gc}, {NULL, NULL}};
  static const luaL_Reg functions[] = {
      {"entry", core_entry},       {"opened", core_opened},
      {"records", core_records},   {"process", core_process},
      {"began", core_began},       {"usage", core_usage},
      {"programs", core_programs}, {NULL, NULL},
  };
  ms_newtype(L, RECORDS_TYPE, methods, metamethods);
  luaL_setfuncs(L, functions, 0);
  set_numbers(L, "file_calls", calls, sizeof calls / sizeof *calls);
  set_numbers(L, "file_flags", flags, sizeof flags / sizeof *flags);
}
