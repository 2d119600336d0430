/* A pool of threads that share the items of a loop. The caller works too, and never waits for a helper that is asleep
 * or descheduled: only for the chunks a helper has in hand. */
#ifndef EAGLE_THREADS_H
#define EAGLE_THREADS_H

#include <stddef.h>
#include <stdint.h>

#include "eagle.h"

/* Do items first .. last - 1. Called on any thread of the pool, in any order; what it writes, the caller sees. */
typedef void (*eg_work)(void *context, int64_t first, int64_t last);

/* Do items 0 .. num_items - 1 in chunks of `items_per_chunk` (the last may be shorter); returns when all are done.
 * Runs inline where threads are null or one, where there is one chunk, and inside other work. Only one thread at a time
 * may call it on a pool. Results must not depend on which thread does which chunk. */
void eg_parallel(eg_threads *threads, int64_t num_items, int64_t items_per_chunk, eg_work work, void *context);

/* Threads that take part in the next jobs, the caller among them; 1 for null. */
int eg_num_threads(const eg_threads *threads);

/* Let at most `num_threads` of the pool take part from now on; more than it has means all. The rest sleep. */
void eg_threads_limit(eg_threads *threads, int num_threads);

/* At least `bytes` of this thread's own memory, 64-byte aligned, contents undefined. One per thread: whoever asks next
 * on this thread gets the same memory, so use it inside a work function and hold it no longer than that. */
void *eg_scratch(size_t bytes);

#endif
