/* Collectives between processes of one machine, through a shared segment.
 *
 * Every rank has two slots that only it writes, and a line that says how many times it has arrived. A collective is cut
 * into pieces that fit a slot: write the piece into the own slot, arrive, wait until the others have arrived, read
 * theirs. Pieces use the slots in turn. That is enough to keep a slot from being overwritten while it is read: whoever
 * writes a slot again has seen every rank arrive at the piece in between, which they do after they read the slot.
 *
 * Large sums of more than two ranks are divided: each rank adds a share and takes the others' shares from their slots,
 * so that it reads two pieces instead of one per peer. A sum is added in rank order by whoever adds it.
 *
 * A rank that waits spins, then sleeps until it is woken; it does not yield, which would give a busy core away for a
 * whole time slice. Every few milliseconds it looks whether all peers' processes are still there: a killed one is seen
 * through its pidfd, also as a zombie.
 */
#include <errno.h>

#include "eagle.h"
#include "simd.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define SLOT_BYTES (128 * 1024)       /* both slots of two ranks stay in a core's level 2 cache */
#define DIVIDED_FLOATS 4096           /* sums from this size on are divided between more than two ranks */
#define MIN_SPINS 16
#define MAX_SPINS 1024                /* pauses: 15 to 50 microseconds */
#define FULL_SPIN_INTERVAL 64         /* of so many waits one spins in full, to notice that cores are free again */
#define LOOK_INTERVAL_NS 2000000      /* how often a sleeper looks after its peers */

/* Of one rank, alone on its cache line. Written by that rank, but for `num_sleepers`. */
typedef struct {
  _Alignas(64) _Atomic uint32_t num_arrivals; /* sleepers wait for it to change */
  _Atomic uint32_t num_sleepers;
  _Atomic uint32_t has_left;
} rank_line;

struct eg_group {
  int32_t rank;
  int32_t world_size;
  int32_t missing;       /* the rank for want of which a call failed */
  uint32_t num_arrivals; /* this rank's own */
  uint32_t num_waits;
  int32_t num_spins;     /* how long to spin next time */
  uint32_t turn;         /* which of the two slots the piece under way uses */
  int64_t timeout_ns;
  rank_line *lines;      /* [world_size], the start of the segment */
  char *slots;           /* [world_size][2][SLOT_BYTES] */
  struct pollfd processes[EG_MAX_RANKS]; /* pidfds; the own one is -1, which poll skips */
};

static int64_t monotonic_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void spin_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* ---- the segment ---- */

static size_t slots_offset(int32_t world_size) {
  return ((size_t)world_size * sizeof(rank_line) + 4095) / 4096 * 4096;
}

size_t eg_group_bytes(int32_t world_size) { return slots_offset(world_size) + (size_t)world_size * 2 * SLOT_BYTES; }

static char *slot_of(const eg_group *group, int32_t rank) {
  return group->slots + ((size_t)rank * 2 + group->turn) * SLOT_BYTES;
}

/* Returns 0 or an errno. */
static int watch_peers(eg_group *group, const int32_t *pids) {
  for (int32_t peer = 0; peer < group->world_size; peer++) {
    group->processes[peer] = (struct pollfd){.fd = -1, .events = POLLIN};
    if (peer == group->rank) continue;
    group->processes[peer].fd = (int)syscall(SYS_pidfd_open, pids[peer], 0);
    if (group->processes[peer].fd < 0) return errno;
  }
  return 0;
}

static int map_segment(eg_group *group, int fd) {
  void *segment = mmap(NULL, eg_group_bytes(group->world_size), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (segment == MAP_FAILED) return errno;
  group->lines = segment;
  group->slots = (char *)segment + slots_offset(group->world_size);
  return 0;
}

static void forget(eg_group *group) {
  if (group->lines != NULL) munmap(group->lines, eg_group_bytes(group->world_size));
  for (int32_t peer = 0; peer < group->world_size; peer++)
    if (group->processes[peer].fd >= 0) close(group->processes[peer].fd);
  free(group);
}

int eg_group_open(int fd, int32_t rank, int32_t world_size, const int32_t *pids, double timeout_s, eg_group **opened) {
  if (world_size < 1 || world_size > EG_MAX_RANKS || rank < 0 || rank >= world_size) return EINVAL;
  eg_group *group = calloc(1, sizeof *group);
  if (group == NULL) return ENOMEM;
  group->rank = group->missing = rank;
  group->world_size = world_size;
  group->num_spins = MAX_SPINS;
  group->timeout_ns = (int64_t)(timeout_s * 1e9);
  for (int32_t peer = 0; peer < world_size; peer++) group->processes[peer].fd = -1;
  int error = watch_peers(group, pids);
  if (error == 0) error = map_segment(group, fd);
  if (error != 0) {
    forget(group);
    return error;
  }
  *opened = group;
  return 0;
}

/* ---- waiting ---- */

static void wake_sleepers(rank_line *line) {
  if (atomic_load(&line->num_sleepers) != 0) syscall(SYS_futex, &line->num_arrivals, FUTEX_WAKE, INT32_MAX, NULL);
}

static void arrive(eg_group *group) {
  rank_line *line = &group->lines[group->rank];
  /* Sequentially consistent: either we see who is about to sleep, or it sees the new number. */
  atomic_store(&line->num_arrivals, ++group->num_arrivals);
  wake_sleepers(line);
}

static int has_arrived(const eg_group *group, int32_t peer) {
  uint32_t num_arrivals = atomic_load_explicit(&group->lines[peer].num_arrivals, memory_order_acquire);
  return (int32_t)(num_arrivals - group->num_arrivals) >= 0; /* the numbers wrap around */
}

/* Whether a peer has left or died; it is noted. Without it nothing more can be completed, whoever waits for whom. */
static int is_any_gone(eg_group *group) {
  poll(group->processes, (nfds_t)group->world_size, 0);
  for (int32_t peer = 0; peer < group->world_size; peer++) {
    if (group->processes[peer].revents == 0 && !atomic_load(&group->lines[peer].has_left)) continue;
    group->missing = peer;
    return 1;
  }
  return 0;
}

static int sleep_until_arrived(eg_group *group, int32_t peer) {
  const struct timespec interval = {.tv_nsec = LOOK_INTERVAL_NS};
  int64_t deadline_ns = monotonic_ns() + group->timeout_ns;
  rank_line *line = &group->lines[peer];
  int status = EG_OK;
  atomic_fetch_add(&line->num_sleepers, 1);
  while (status == EG_OK) {
    uint32_t seen = atomic_load(&line->num_arrivals);
    if (has_arrived(group, peer)) break;
    if (is_any_gone(group))
      status = EG_PEER_DIED;
    else if (monotonic_ns() > deadline_ns)
      status = EG_TIMED_OUT, group->missing = peer;
    else
      syscall(SYS_futex, &line->num_arrivals, FUTEX_WAIT, seen, &interval);
  }
  atomic_fetch_sub(&line->num_sleepers, 1);
  /* A peer's last arrival and its end may both have come since we looked. */
  return has_arrived(group, peer) ? EG_OK : status;
}

/* Returns whether the peer has arrived. Spinning is right where every rank has a core; where cores are short it keeps
 * the peer from running. Which of the two it is shows in whether the last spins were worth it. */
static int spin_for(eg_group *group, int32_t peer) {
  int32_t spin = 0, limit = ++group->num_waits % FULL_SPIN_INTERVAL ? group->num_spins : MAX_SPINS;
  while (!has_arrived(group, peer) && spin++ < limit) spin_pause();
  if (spin > limit)
    group->num_spins = group->num_spins / 2 > MIN_SPINS ? group->num_spins / 2 : MIN_SPINS;
  else if (spin > 0)
    group->num_spins = limit * 2 < MAX_SPINS ? limit * 2 : MAX_SPINS;
  return spin <= limit;
}

/* Arrive, and return once all others have. */
static int meet(eg_group *group) {
  arrive(group);
  for (int32_t peer = 0; peer < group->world_size; peer++) {
    if (peer == group->rank || spin_for(group, peer)) continue;
    int status = sleep_until_arrived(group, peer);
    if (status != EG_OK) return status;
  }
  return EG_OK;
}

void eg_group_close(eg_group *group) {
  rank_line *line = &group->lines[group->rank];
  atomic_store(&line->has_left, 1);
  wake_sleepers(line);
  forget(group);
}

int32_t eg_group_missing(const eg_group *group) { return group->missing; }

int eg_barrier(eg_group *group) { return meet(group); }

/* ---- sums ---- */

/* y = parts[0] + parts[1] + ..., added in that order; y may be one of the parts. */
static void add_in_order(const float *const *parts, int32_t num_parts, float *y, int64_t size) {
  int64_t i = 0;
  for (; i + 64 <= size; i += 64) {
    f32x16 sum[4];
    for (int v = 0; v < 4; v++) sum[v] = load_f32(parts[0] + i + 16 * v);
    for (int32_t part = 1; part < num_parts; part++)
      for (int v = 0; v < 4; v++) sum[v] += load_f32(parts[part] + i + 16 * v);
    for (int v = 0; v < 4; v++) store_f32(y + i + 16 * v, sum[v]);
  }
  for (; i < size; i++) {
    float sum = parts[0][i];
    for (int32_t part = 1; part < num_parts; part++) sum += parts[part][i];
    y[i] = sum;
  }
}

/* Add elements first .. first + size of all ranks' pieces into y; this rank's own piece is x. */
static void add_pieces(const eg_group *group, const float *x, int64_t first, int64_t size, float *y) {
  const float *parts[EG_MAX_RANKS];
  for (int32_t rank = 0; rank < group->world_size; rank++)
    parts[rank] = (rank == group->rank ? x : (const float *)slot_of(group, rank)) + first;
  add_in_order(parts, group->world_size, y, size);
}

static int add_whole(eg_group *group, float *x, int64_t size) {
  memcpy(slot_of(group, group->rank), x, (size_t)size * sizeof *x);
  int status = meet(group);
  if (status == EG_OK) add_pieces(group, x, 0, size, x);
  return status;
}

/* Whole cache lines, so that no line of a slot is written by one rank while another reads it. */
static int64_t share_start(const eg_group *group, int32_t rank, int64_t size) {
  int64_t start = (size * rank / group->world_size + 15) / 16 * 16;
  return start < size ? start : size;
}

static int add_divided(eg_group *group, float *x, int64_t size) {
  float *own = (float *)slot_of(group, group->rank);
  memcpy(own, x, (size_t)size * sizeof *x);
  int status = meet(group);
  if (status != EG_OK) return status;
  int64_t first = share_start(group, group->rank, size);
  /* Only this rank reads its own share of any slot, so the sum may take the place of what it was added from. */
  add_pieces(group, x, first, share_start(group, group->rank + 1, size) - first, own + first);
  status = meet(group);
  if (status != EG_OK) return status;
  for (int32_t rank = 0; rank < group->world_size; rank++) {
    int64_t start = share_start(group, rank, size), end = share_start(group, rank + 1, size);
    memcpy(x + start, (const float *)slot_of(group, rank) + start, (size_t)(end - start) * sizeof *x);
  }
  return EG_OK;
}

int eg_all_reduce(eg_group *group, float *x, int64_t size) {
  const int64_t slot_floats = SLOT_BYTES / sizeof(float);
  int is_divided = group->world_size > 2 && size >= DIVIDED_FLOATS;
  int status = EG_OK;
  for (int64_t done = 0; done < size && status == EG_OK; done += slot_floats) {
    int64_t piece = size - done < slot_floats ? size - done : slot_floats;
    status = is_divided ? add_divided(group, x + done, piece) : add_whole(group, x + done, piece);
    group->turn ^= 1;
  }
  return status;
}

/* ---- gathering ---- */

int eg_all_gather(eg_group *group, const void *x, int64_t num_bytes, void *gathered) {
  int status = EG_OK;
  for (int64_t done = 0; done < num_bytes && status == EG_OK; done += SLOT_BYTES) {
    size_t piece = (size_t)(num_bytes - done < SLOT_BYTES ? num_bytes - done : SLOT_BYTES);
    memcpy(slot_of(group, group->rank), (const char *)x + done, piece);
    status = meet(group);
    for (int32_t rank = 0; rank < group->world_size && status == EG_OK; rank++)
      memcpy((char *)gathered + rank * num_bytes + done, slot_of(group, rank), piece);
    group->turn ^= 1;
  }
  return status;
}

#else /* no pidfd, no futex: such a machine has no group, so the calls on one are never made */

size_t eg_group_bytes(int32_t world_size) { return (size_t)world_size; }
int eg_group_open(int fd, int32_t rank, int32_t world_size, const int32_t *pids, double timeout_s, eg_group **group) {
  return ENOSYS;
}
void eg_group_close(eg_group *group) {}
int32_t eg_group_missing(const eg_group *group) { return 0; }
int eg_all_reduce(eg_group *group, float *x, int64_t size) { return EG_TIMED_OUT; }
int eg_all_gather(eg_group *group, const void *x, int64_t num_bytes, void *gathered) { return EG_TIMED_OUT; }
int eg_barrier(eg_group *group) { return EG_TIMED_OUT; }

#endif
