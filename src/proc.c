#include "proc.h"

/* What a double holds exactly. */
#define WHOLE_MAX (UINT64_C(1) << 53)

void ms_put_proc(ms_writer *w, const ms_proc *p) {
  ms_put_u32(w, p->pid);
  ms_put_u32(w, p->ppid);
  ms_put_u32(w, p->uid);
  ms_put_u32(w, p->threads);
  ms_put_u32(w, p->state);
  ms_put_u64(w, p->cpu_ns);
  ms_put_u64(w, p->family_ns);
  ms_put_u64(w, p->memory);
  ms_put_u64(w, p->read_bytes);
  ms_put_u64(w, p->write_bytes);
  ms_put_u64(w, p->age_ns);
  ms_put_u64(w, p->started_us);
  ms_put_u64(w, p->ticks);
  ms_put_bytes(w, p->name, p->name_length);
  ms_put_bytes(w, p->args, p->args_length);
}

static bool proc_ok(const ms_proc *p) {
  return p->pid > 0 && p->pid <= INT32_MAX && p->ppid <= INT32_MAX && p->threads <= INT32_MAX &&
         p->state > ' ' && p->state <= '~' && p->memory <= WHOLE_MAX &&
         p->read_bytes <= WHOLE_MAX && p->write_bytes <= WHOLE_MAX && p->started_us <= WHOLE_MAX &&
         p->ticks <= WHOLE_MAX && p->name_length <= MS_PROC_NAME_MAX &&
         p->args_length <= MS_PROC_ARGS_MAX;
}

void ms_get_proc(ms_reader *r, ms_proc *p) {
  p->pid = ms_get_u32(r);
  p->ppid = ms_get_u32(r);
  p->uid = ms_get_u32(r);
  p->threads = ms_get_u32(r);
  p->state = ms_get_u32(r);
  p->cpu_ns = ms_get_u64(r);
  p->family_ns = ms_get_u64(r);
  p->memory = ms_get_u64(r);
  p->read_bytes = ms_get_u64(r);
  p->write_bytes = ms_get_u64(r);
  p->age_ns = ms_get_u64(r);
  p->started_us = ms_get_u64(r);
  p->ticks = ms_get_u64(r);
  p->name = ms_get_bytes(r, &p->name_length);
  p->args = ms_get_bytes(r, &p->args_length);
  if (!proc_ok(p))
    r->bad = true;
}
