/* What background programs write: kept in a log of a fixed size by the agent, which is the one that
 * reads their pipes, and given to whoever looks at it. */
#ifndef MS_LOG_H
#define MS_LOG_H

#include "agent.h"

#include <poll.h>

typedef struct ms_log ms_log;

/* Keeps `size` bytes of each stream: the last, or with `head` the first. NULL: no memory. */
ms_log *ms_log_new(uint64_t size, bool head);
/* Those who look at it get the end of what they read. */
void ms_log_free(ms_log *log);
/* A pipe for stream 0 or 1: the program's end, the caller's to close, or a negative errno. */
int ms_log_pipe(ms_log *log, int stream);
/* The program is over: what is in the pipes is read, and that is all. */
void ms_log_end(ms_log *log);
/* What it holds in memory, in bytes. */
uint64_t ms_log_memory(const ms_log *log);
/* How many bytes of a stream have come. */
uint64_t ms_log_total(const ms_log *log, int stream);

/* Somebody's place in it: files[i], taken over, is the pipe for stream i (-1: not wanted), which is
 * given from since[i] on; what comes later too, unless `once`. 0 or -ENOMEM. */
int ms_log_view(ms_log *log, ms_client *client, uint32_t id, const int files[2],
                const uint64_t since[2], bool once);
/* Is `id` of the client's such a view of it? */
bool ms_log_viewed(const ms_log *log, const ms_client *client, uint32_t id);
/* Gives all who look at it what there is for them. */
void ms_log_give(const ms_log *log);
/* Tells them how it ended: after that nothing but bytes comes. */
void ms_log_tell_end(ms_log *log, uint16_t type, const ms_writer *body);
/* Ends the view `id` of a client, or all of them. */
void ms_log_leave(const ms_client *client, uint32_t id);
void ms_log_forget(const ms_client *client);

/* The loop's: how many entries it needs, which, and what is to be done then. */
size_t ms_log_files(void);
void ms_log_watch(struct pollfd *events, size_t from);
void ms_log_serve(const struct pollfd *events);

#endif
