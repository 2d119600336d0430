/* The pool, and each thread's scratch memory.
 *
 * A chunk is taken by compare-and-swap on the number of chunks that nobody has taken yet: never below zero, so a helper
 * that comes late takes a chunk of whichever job is current, or none. What the job is may be read once a chunk of it is
 * in hand, for until that chunk is done the caller does not publish the next job.
 */
#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define CACHE_LINE 64
/* How long a helper looks for the next job before it sleeps: the phases of a step follow each other closer than this. */
#define HELPER_SPIN_NS 50000
/* How long the caller looks for the last chunk before it sleeps. A helper that takes longer is probably waiting for a
 * core, and the sleeping caller leaves it one. */
#define CALLER_SPIN_NS 20000

/* ---- sleeping until something changes ---- */

typedef struct event {
  _Atomic uint32_t count;
  _Atomic uint32_t num_sleepers;
#if !defined(__linux__)
  pthread_mutex_t mutex;
  pthread_cond_t changed;
#endif
} event;

static void event_init(event *e) {
  atomic_init(&e->count, 0);
  atomic_init(&e->num_sleepers, 0);
#if !defined(__linux__)
  pthread_mutex_init(&e->mutex, NULL);
  pthread_cond_init(&e->changed, NULL);
#endif
}

/* Between these two, whoever changes what is waited for signals the event. So look once more before sleeping. */
static uint32_t event_announce_sleep(event *e) {
  uint32_t seen = atomic_load(&e->count);
  atomic_fetch_add(&e->num_sleepers, 1);
  return seen;
}
static void event_end_sleep(event *e) { atomic_fetch_sub(&e->num_sleepers, 1); }

/* Sleep unless the event was signalled since `seen`. May return early. */
static void event_sleep(event *e, uint32_t seen) {
#if defined(__linux__)
  syscall(SYS_futex, &e->count, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
#else
  pthread_mutex_lock(&e->mutex);
  while (atomic_load(&e->count) == seen) pthread_cond_wait(&e->changed, &e->mutex);
  pthread_mutex_unlock(&e->mutex);
#endif
}

/* Call after the change. Costs one load where nobody sleeps. */
static void event_signal(event *e) {
  if (atomic_load(&e->num_sleepers) == 0) return;
#if defined(__linux__)
  atomic_fetch_add(&e->count, 1);
  syscall(SYS_futex, &e->count, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
#else
  pthread_mutex_lock(&e->mutex);
  atomic_fetch_add(&e->count, 1);
  pthread_cond_signal(&e->changed);
  pthread_mutex_unlock(&e->mutex);
#endif
}

/* ---- the pool ---- */

typedef struct helper {
  _Alignas(CACHE_LINE) event wake;
  eg_threads *threads;
  pthread_t thread;
  int index; /* the caller is 0 */
} helper;

struct eg_threads {
  _Alignas(CACHE_LINE) _Atomic int64_t num_untaken; /* chunks of this job */
  _Alignas(CACHE_LINE) _Atomic int64_t num_done;
  event all_done;
  _Alignas(CACHE_LINE) eg_work work; /* from here on: the job, stable while one of its chunks is in hand */
  void *context;
  int64_t num_items;
  int64_t items_per_chunk;
  int64_t num_chunks;
  _Alignas(CACHE_LINE) _Atomic int num_active;
  atomic_bool is_stopping;
  int num_threads;
  helper helpers[]; /* [num_threads - 1] */
};

static _Thread_local bool is_inside_work;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

static void pause_briefly(void) {
  for (int i = 0; i < 16; i++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
  }
}

/* Take one chunk of the current job and do it; false if all are taken. */
static bool do_chunk(eg_threads *threads) {
  int64_t untaken = atomic_load(&threads->num_untaken);
  do {
    if (untaken == 0) return false;
  } while (!atomic_compare_exchange_weak(&threads->num_untaken, &untaken, untaken - 1));
  int64_t num_chunks = threads->num_chunks;
  int64_t first = (num_chunks - untaken) * threads->items_per_chunk;
  int64_t last = first + threads->items_per_chunk;
  threads->work(threads->context, first, last < threads->num_items ? last : threads->num_items);
  /* Once this was the last chunk the job may be replaced, so it is not looked at again. */
  if (atomic_fetch_add(&threads->num_done, 1) + 1 == num_chunks) event_signal(&threads->all_done);
  return true;
}

static bool has_work(helper *h) {
  return h->index < atomic_load(&h->threads->num_active) && atomic_load(&h->threads->num_untaken) > 0;
}

static bool is_work_soon(helper *h) {
  int64_t deadline = now_ns() + HELPER_SPIN_NS;
  while (h->index < atomic_load(&h->threads->num_active) && !atomic_load(&h->threads->is_stopping)) {
    if (atomic_load(&h->threads->num_untaken) > 0) return true;
    if (now_ns() > deadline) return false;
    pause_briefly();
  }
  return false;
}

static void *help(void *argument) {
  helper *h = argument;
  is_inside_work = true;
  while (!atomic_load(&h->threads->is_stopping)) {
    if (is_work_soon(h)) {
      while (has_work(h) && do_chunk(h->threads)) {
      }
      continue;
    }
    uint32_t seen = event_announce_sleep(&h->wake);
    if (!has_work(h) && !atomic_load(&h->threads->is_stopping)) event_sleep(&h->wake, seen);
    event_end_sleep(&h->wake);
  }
  return NULL;
}

eg_threads *eg_threads_start(int num_threads) {
  if (num_threads < 1) num_threads = 1;
  size_t bytes = sizeof(eg_threads) + (size_t)(num_threads - 1) * sizeof(helper);
  eg_threads *threads = aligned_alloc(CACHE_LINE, (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
  if (!threads) abort();
  atomic_init(&threads->num_untaken, 0);
  atomic_init(&threads->num_done, 0);
  atomic_init(&threads->num_active, 1);
  atomic_init(&threads->is_stopping, false);
  event_init(&threads->all_done);
  threads->num_threads = 1;
  for (int i = 1; i < num_threads; i++) {
    helper *h = &threads->helpers[i - 1];
    event_init(&h->wake);
    h->threads = threads;
    h->index = i;
    /* A machine that gives no more threads is served by those there are. */
    if (pthread_create(&h->thread, NULL, help, h)) break;
    threads->num_threads++;
  }
  atomic_store(&threads->num_active, threads->num_threads);
  return threads;
}

void eg_threads_stop(eg_threads *threads) {
  if (!threads) return;
  atomic_store(&threads->is_stopping, true);
  for (int i = 1; i < threads->num_threads; i++) event_signal(&threads->helpers[i - 1].wake);
  for (int i = 1; i < threads->num_threads; i++) pthread_join(threads->helpers[i - 1].thread, NULL);
  free(threads);
}

int eg_num_threads(const eg_threads *threads) { return threads ? atomic_load(&threads->num_active) : 1; }

void eg_threads_limit(eg_threads *threads, int num_threads) {
  if (!threads) return;
  if (num_threads < 1) num_threads = 1;
  atomic_store(&threads->num_active, num_threads < threads->num_threads ? num_threads : threads->num_threads);
}

static void wait_for_last_chunks(eg_threads *threads) {
  int64_t num_chunks = threads->num_chunks;
  int64_t deadline = now_ns() + CALLER_SPIN_NS;
  while (atomic_load(&threads->num_done) < num_chunks) {
    pause_briefly();
    if (now_ns() < deadline) continue;
    uint32_t seen = event_announce_sleep(&threads->all_done);
    if (atomic_load(&threads->num_done) < num_chunks) event_sleep(&threads->all_done, seen);
    event_end_sleep(&threads->all_done);
  }
}

void eg_parallel(eg_threads *threads, int64_t num_items, int64_t items_per_chunk, eg_work work, void *context) {
  if (num_items <= 0) return;
  int num_active = eg_num_threads(threads);
  if (num_active == 1 || num_items <= items_per_chunk || is_inside_work) {
    work(context, 0, num_items);
    return;
  }
  int64_t num_chunks = (num_items + items_per_chunk - 1) / items_per_chunk;
  threads->work = work;
  threads->context = context;
  threads->num_items = num_items;
  threads->items_per_chunk = items_per_chunk;
  threads->num_chunks = num_chunks;
  atomic_store(&threads->num_done, 0);
  atomic_store(&threads->num_untaken, num_chunks);
  for (int i = 1; i < num_active && i < num_chunks; i++) event_signal(&threads->helpers[i - 1].wake);
  is_inside_work = true;
  while (do_chunk(threads)) {
  }
  is_inside_work = false;
  wait_for_last_chunks(threads);
}

/* ---- scratch ---- */

typedef struct scratch {
  void *memory;
  size_t bytes;
} scratch;

static _Thread_local scratch my_scratch;
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void make_scratch_key(void) { pthread_key_create(&scratch_key, free); }

void *eg_scratch(size_t bytes) {
  if (bytes <= my_scratch.bytes) return my_scratch.memory;
  pthread_once(&scratch_once, make_scratch_key);
  free(my_scratch.memory);
  my_scratch.bytes = (bytes + 4095) / 4096 * 4096;
  my_scratch.memory = aligned_alloc(4096, my_scratch.bytes);
  if (!my_scratch.memory) abort();
  /* Freed when the thread ends. */
  pthread_setspecific(scratch_key, my_scratch.memory);
  return my_scratch.memory;
}
