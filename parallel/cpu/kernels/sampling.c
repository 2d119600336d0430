/* Choosing tokens: the meaning is that of parallel/sampling, which says why; here is how to do it without sorting the
 * vocabulary. Weights are exp((logit - best) / temperature) in float32, added up in float64. */
#include "simd.h"
#include "threads.h"

#define SUM_BLOCK 256 /* columns whose weights are added up together */
#define MAX_BLOCK 64  /* columns that share a maximum */

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* 16 logits; past the end of the row there are none: -inf. */
INLINE f32x16 load_logits(const float *row, int64_t column, int64_t num_columns) {
  if (column + 16 <= num_columns) return load_f32(row + column);
  f32x16 v = splat_f32(-INFINITY);
  memcpy(&v, row + column, (size_t)(num_columns - column) * sizeof(float));
  return v;
}

/* ---- the most likely token ---- */

static float block_maximum(const float *row, int64_t first, int64_t last, int64_t num_columns, i32x16 *is_nan) {
  f32x16 maximum = splat_f32(-INFINITY);
  for (int64_t column = first; column < last; column += 16) {
    f32x16 v = load_logits(row, column, num_columns);
    *is_nan |= v != v;
    maximum = max_f32(v, maximum);
  }
  return maximum_f32(maximum);
}

/* The row's maximum, where it first is, and NaN instead of it if there is a NaN. */
static float row_best(const float *row, int64_t num_columns, int64_t *index) {
  float best = -INFINITY;
  int64_t best_block = 0;
  i32x16 is_nan = splat_i32(0);
  for (int64_t first = 0; first < num_columns; first += SUM_BLOCK) {
    float maximum = block_maximum(row, first, smaller(first + SUM_BLOCK, num_columns), num_columns, &is_nan);
    if (maximum > best) best = maximum, best_block = first;
  }
  *index = best_block;
  while (*index < num_columns - 1 && row[*index] != best) ++*index;
  return any_i32(is_nan) ? NAN : best;
}

typedef struct best_job {
  const float *logits;
  int64_t num_columns;
  float *best;
  int64_t *index;
  uint8_t *is_sound;
} best_job;

static void best_rows(void *context, int64_t first, int64_t last) {
  const best_job *job = context;
  for (int64_t row = first; row < last; row++) {
    job->best[row] = row_best(job->logits + row * job->num_columns, job->num_columns, &job->index[row]);
    job->is_sound[row] = isfinite(job->best[row]);
  }
}

void eg_best(eg_threads *threads, const float *logits, int64_t num_rows, int64_t num_columns, float *best,
             int64_t *index, uint8_t *is_sound) {
  best_job job = {logits, num_columns, best, index, is_sound};
  eg_parallel(threads, num_rows, 1, best_rows, &job);
}

/* ---- the most likely tokens, in order ---- */

typedef struct entry {
  uint32_t key; /* ascends where logits descend */
  uint32_t column;
} entry;

static uint32_t key_of(float logit) {
  uint32_t bits;
  logit += 0.0f; /* -0 is 0 */
  memcpy(&bits, &logit, 4);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}
static float logit_of(uint32_t key) {
  uint32_t bits = key & 0x80000000u ? key : ~key & 0x7fffffffu;
  float logit;
  memcpy(&logit, &bits, 4);
  return logit;
}

/* Sort by key, equal keys as they came (radix sort, byte by byte); `spare` has room for as many. */
static void sort_entries(entry *entries, entry *spare, int64_t count) {
  int64_t place[4][256] = {{0}};
  for (int64_t i = 0; i < count; i++)
    for (int byte = 0; byte < 4; byte++) place[byte][entries[i].key >> (8 * byte) & 255]++;
  for (int byte = 0; byte < 4; byte++) {
    int64_t before = 0;
    for (int digit = 0; digit < 256; digit++) {
      int64_t times = place[byte][digit];
      place[byte][digit] = before;
      before += times;
    }
    for (int64_t i = 0; i < count; i++) spare[place[byte][entries[i].key >> (8 * byte) & 255]++] = entries[i];
    entry *sorted = spare;
    spare = entries;
    entries = sorted;
  }
}

/* What a thread needs to put a row's best tokens in order. */
typedef struct selection {
  const float *row;
  int64_t num_columns;
  int64_t num_blocks;
  float *maxima;  /* [num_blocks], of MAX_BLOCK columns each */
  entry *entries; /* [V] */
  entry *spare;   /* [V] */
  float *weights; /* [V] of the entries, rounded up to 16 */
} selection;

static selection selection_of(const float *row, int64_t num_columns) {
  int64_t num_blocks = (num_columns + MAX_BLOCK - 1) / MAX_BLOCK, room = num_blocks * MAX_BLOCK;
  char *memory = eg_scratch(room * (2 * sizeof(entry) + sizeof(float)) + num_blocks * sizeof(float));
  selection s = {.row = row, .num_columns = num_columns, .num_blocks = num_blocks};
  s.entries = (entry *)memory;
  s.spare = s.entries + room;
  s.weights = (float *)(s.spare + room);
  s.maxima = s.weights + room;
  i32x16 is_nan = splat_i32(0);
  for (int64_t block = 0; block < num_blocks; block++)
    s.maxima[block] = block_maximum(row, block * MAX_BLOCK, smaller((block + 1) * MAX_BLOCK, num_columns), num_columns,
                                    &is_nan);
  return s;
}

/* A logit that at least `width` of the row reach: as many blocks have a maximum that does. */
static float least_of_best(selection *s, int64_t width) {
  if (width >= s->num_blocks) return -INFINITY;
  for (int64_t block = 0; block < s->num_blocks; block++) s->entries[block] = (entry){key_of(s->maxima[block]), 0};
  sort_entries(s->entries, s->spare, s->num_blocks);
  return logit_of(s->entries[width - 1].key);
}

/* Put all logits that are at least `least` in order, equal ones by column. Returns how many there are. */
static int64_t select_entries(selection *s, float least) {
  int64_t count = 0;
  for (int64_t block = 0; block < s->num_blocks; block++) {
    if (s->maxima[block] < least) continue;
    int64_t last = smaller((block + 1) * MAX_BLOCK, s->num_columns);
    for (int64_t first = block * MAX_BLOCK; first < last; first += 16) {
      if (!any_i32(load_logits(s->row, first, s->num_columns) >= least)) continue;
      for (int64_t column = first; column < smaller(first + 16, s->num_columns); column++) {
        s->entries[count] = (entry){key_of(s->row[column]), (uint32_t)column};
        count += s->row[column] >= least;
      }
    }
  }
  sort_entries(s->entries, s->spare, count);
  return count;
}

typedef struct top_job {
  const float *logits;
  int64_t num_columns;
  int64_t width;
  float *top;
  int64_t *index;
} top_job;

static void top_rows(void *context, int64_t first, int64_t last) {
  const top_job *job = context;
  for (int64_t row = first; row < last; row++) {
    selection s = selection_of(job->logits + row * job->num_columns, job->num_columns);
    int64_t count = select_entries(&s, least_of_best(&s, job->width));
    for (int64_t i = count; i < job->width; i++) s.entries[i] = (entry){key_of(-INFINITY), 0}; /* NaN is no logit */
    for (int64_t i = 0; i < job->width; i++) {
      job->top[row * job->width + i] = logit_of(s.entries[i].key);
      job->index[row * job->width + i] = s.entries[i].column;
    }
  }
}

void eg_top(eg_threads *threads, const float *logits, int64_t num_rows, int64_t num_columns, int64_t width, float *top,
            int64_t *index) {
  top_job job = {logits, num_columns, width, top, index};
  eg_parallel(threads, num_rows, 1, top_rows, &job);
}

/* ---- drawing ---- */

/* Sums in another order and rounded thresholds may miss a token at the end; so look a little further. */
#define MARGIN 1e-5

/* One row that draws. */
typedef struct draw {
  const float *row;
  int64_t num_columns;
  float best;
  float coldness; /* 1 / temperature */
  int64_t top_k;
  double top_p;
  double min_p;
  double uniform;
} draw;

INLINE f32x16 weights_of(const draw *d, f32x16 logits) { return exp_f32((logits - d->best) * d->coldness); }

static float block_mass(const draw *d, int64_t first) {
  int64_t last = smaller(first + SUM_BLOCK, d->num_columns);
  f32x16 sum = splat_f32(0.0f);
  for (int64_t column = first; column < last; column += 16)
    sum += weights_of(d, load_logits(d->row, column, d->num_columns));
  return sum_f32(sum);
}

/* The first place whose running sum exceeds the target, never one of weight 0; the last with a weight if none does. */
static int64_t first_over(const float *weights, int64_t count, double target) {
  double running = 0;
  int64_t place = 0;
  for (int64_t i = 0; i < count; i++) {
    if (weights[i] == 0) continue;
    place = i;
    running += weights[i];
    if (running > target) break;
  }
  return place;
}

/* By the whole distribution, in token order. */
static int64_t draw_any(const draw *d) {
  int64_t num_blocks = (d->num_columns + SUM_BLOCK - 1) / SUM_BLOCK;
  float *masses = eg_scratch(num_blocks * sizeof(float));
  double mass = 0, before = 0;
  for (int64_t block = 0; block < num_blocks; block++) mass += masses[block] = block_mass(d, block * SUM_BLOCK);
  int64_t block = first_over(masses, num_blocks, d->uniform * mass);
  for (int64_t b = 0; b < block; b++) before += masses[b];
  int64_t first = block * SUM_BLOCK, last = smaller(first + SUM_BLOCK, d->num_columns);
  float weights[SUM_BLOCK];
  for (int64_t column = first; column < last; column += 16)
    store_f32(weights + column - first, weights_of(d, load_logits(d->row, column, d->num_columns)));
  return first + first_over(weights, last - first, d->uniform * mass - before);
}

/* Weigh the whole row; returns the sum. */
static double weigh_row(const draw *d, selection *s) {
  double mass = 0;
  for (int64_t first = 0; first < d->num_columns; first += SUM_BLOCK) {
    f32x16 sum = splat_f32(0.0f);
    for (int64_t column = first; column < smaller(first + SUM_BLOCK, d->num_columns); column += 16) {
      f32x16 weights = weights_of(d, load_logits(d->row, column, d->num_columns));
      store_f32(s->weights + column, weights);
      sum += weights;
    }
    mass += sum_f32(sum);
  }
  return mass;
}

/* The sum of the row's weights that are at least `least`. */
static double mass_from(const selection *s, float least) {
  double mass = 0;
  for (int64_t first = 0; first < s->num_columns; first += SUM_BLOCK) {
    f32x16 sum = splat_f32(0.0f);
    for (int64_t column = first; column < smaller(first + SUM_BLOCK, s->num_columns); column += 16) {
      f32x16 weights = load_f32(s->weights + column);
      sum += select_f32(weights >= least, weights, splat_f32(0.0f));
    }
    mass += sum_f32(sum);
  }
  return mass;
}

/* A logit such that those no less have a mass of at least `wanted`, and few that are not needed for it. */
static float least_of_nucleus(const draw *d, const selection *s, double wanted) {
  float far = 1, near = 0; /* in multiples of the temperature below the best */
  while (mass_from(s, expf(-far)) < wanted) {
    if (far > 64) return -INFINITY;
    near = far;
    far *= 2;
  }
  for (int i = 0; i < 4; i++) {
    float middle = (near + far) / 2;
    if (mass_from(s, expf(-middle)) < wanted) near = middle;
    else far = middle;
  }
  return d->best - (far + (float)MARGIN) / d->coldness;
}

static void weigh_entries(const draw *d, selection *s, int64_t count) {
  for (int64_t i = count; i < (count + 15) / 16 * 16; i++) s->entries[i] = (entry){key_of(-INFINITY), 0};
  for (int64_t i = 0; i < count; i += 16) {
    f32x16 logits;
    for (int lane = 0; lane < 16; lane++) logits[lane] = logit_of(s->entries[i + lane].key);
    store_f32(s->weights + i, weights_of(d, logits));
  }
}

static double sum_of(const float *weights, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += weights[i];
  return sum;
}

/* How many of the first `count` tokens pass top-p and min-p: those before the first that does not, at least one. */
static int64_t num_kept(const draw *d, const float *weights, int64_t count, double mass) {
  double before = weights[0];
  for (int64_t i = 1; i < count; i++) {
    if (d->top_p < 1 && before >= d->top_p * mass) return i;
    if (weights[i] < d->min_p) return i;
    before += weights[i];
  }
  return count;
}

/* By what the filters leave, most likely first. */
static int64_t draw_filtered(const draw *d) {
  selection s = selection_of(d->row, d->num_columns);
  int has_top_k = d->top_k < d->num_columns, has_top_p = d->top_p < 1;
  double mass = 0;
  float least = -INFINITY;
  if (has_top_k) {
    least = least_of_best(&s, d->top_k);
  } else if (has_top_p) {
    mass = weigh_row(d, &s);
    least = least_of_nucleus(d, &s, (d->top_p + MARGIN) * mass);
  }
  /* Top-p of what top-k left takes a share of all k. */
  if (d->min_p > 0 && !(has_top_k && has_top_p))
    least = fmaxf(least, d->best + (float)(log(d->min_p) - MARGIN) / d->coldness);
  int64_t count = select_entries(&s, least);
  if (has_top_k) count = smaller(count, d->top_k);
  weigh_entries(d, &s, count);
  if (has_top_k) mass = sum_of(s.weights, count);
  int64_t kept = num_kept(d, s.weights, count, mass);
  return s.entries[first_over(s.weights, kept, d->uniform * sum_of(s.weights, kept))].column;
}

typedef struct draw_job {
  const float *logits;
  int64_t num_columns;
  const float *best;
  const eg_draws *draws;
  int64_t *index;
} draw_job;

static void draw_rows(void *context, int64_t first, int64_t last) {
  const draw_job *job = context;
  const eg_draws *draws = job->draws;
  for (int64_t i = first; i < last; i++) {
    int64_t row = draws->rows[i];
    draw d = {job->logits + row * job->num_columns, job->num_columns,  job->best[row],    1.0f / draws->temperature[i],
              draws->top_k[i],                      draws->top_p[i], draws->min_p[i], draws->uniform[i]};
    int is_filtered = d.top_k < INT64_MAX || d.top_p < 1 || d.min_p > 0;
    job->index[i] = !isfinite(d.best) ? 0 : is_filtered ? draw_filtered(&d) : draw_any(&d);
  }
}

void eg_draw(eg_threads *threads, const float *logits, int64_t num_columns, const float *best, const eg_draws *draws,
             int64_t *index) {
  draw_job job = {logits, num_columns, best, draws, index};
  eg_parallel(threads, draws->num_draws, 1, draw_rows, &job);
}
