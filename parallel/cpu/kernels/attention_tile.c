/* Queries against one tile of keys and values: scores, weights, weighted values, a few queries at a time in registers.
 *
 * Both products take pairs of bfloat16: of features for scores (lanes are keys), of tokens for values (lanes are
 * features). Each sum is one chain in ascending order, whichever queries and lanes are computed beside it. */
#include "attention.h"

/* Sums that fit the registers beside what is multiplied. */
#if LANES == 16
#define BLOCK_ROWS 6
#define BLOCK_COLUMNS 4
#else
#define BLOCK_ROWS 4
#define BLOCK_COLUMNS 2
#endif
#define PART_VECTORS (PART_KEYS / LANES)
#define KV_TILE_VECTORS (KV_TILE_KEYS / LANES)
#define PART_PAIRS (PART_KEYS / 2)

/* The peak is left alone until a score is this many powers of two above it: weights stay far from overflow, and states
 * are rarely rescaled. */
#define MAX_EXPONENT 8.0f

typedef vf block_sums[BLOCK_ROWS][BLOCK_COLUMNS];

/* Where a block's columns start, and the columns that are fetched meanwhile. */
typedef struct block_columns {
  const char *at[BLOCK_COLUMNS];
  const char *ahead[BLOCK_COLUMNS];
  int64_t stride; /* bytes from pair to pair */
} block_columns;

/* sums[row][column] += left[row][pair] * column[pair], in vectors of LANES columns. */
INLINE void add_products(block_sums sums, const int rows, const int columns, const int32_t *left, int64_t left_stride,
                         const block_columns *right, int num_pairs) {
  const int32_t *left_half = left + 3 * left_stride; /* keeps every row within one scaled index of two addresses */
  for (int64_t pair = 0; pair < num_pairs; pair++) {
    vi r[BLOCK_COLUMNS];
    UNROLLED for (int c = 0; c < columns; c++) {
      r[c] = vi_load(right->at[c] + pair * right->stride);
      if (LANES == 16 || c % 2 == 0) __builtin_prefetch(right->ahead[c] + pair * right->stride);
    }
    UNROLLED for (int row = 0; row < rows; row++) {
      vi l = vi_splat(row < 3 ? left[row * left_stride + pair] : left_half[(row - 3) * left_stride + pair]);
      UNROLLED for (int c = 0; c < columns; c++) sums[row][c] = vf_dot_bf16(sums[row][c], l, r[c]);
    }
  }
}

/* ---- the state of a query ---- */

#define NO_PEAK -1e38f /* less than any score, yet finite */

static void clear_state(float *state, int32_t head_dim) {
  for (int32_t i = 0; i < 16 + head_dim; i += LANES) vf_store(state + i, vf_splat(0.0f));
  state[16 + head_dim] = NO_PEAK;
}

/* Let the weights count from another peak. */
static void move_peak(float *state, int32_t head_dim, float peak) {
  float old = state[16 + head_dim];
  state[16 + head_dim] = peak;
  if (old == NO_PEAK) return;
  vf factor = vf_exp2(vf_splat(old - peak));
  for (int32_t i = 0; i < 16 + head_dim; i += LANES) vf_store(state + i, vf_load(state + i) * factor);
}

static void merge_state(float *state, const float *later, int32_t head_dim) {
  float peak = later[16 + head_dim];
  if (peak > state[16 + head_dim]) move_peak(state, head_dim, peak);
  vf factor = vf_exp2(vf_splat(peak - state[16 + head_dim]));
  for (int32_t i = 0; i < 16 + head_dim; i += LANES)
    vf_store(state + i, vf_fma(vf_load(later + i), factor, vf_load(state + i)));
}

static void finish_state(const float *state, int32_t head_dim, float *out) {
  vf sums = vf_load(state);
  for (int i = LANES; i < PART_KEYS; i += LANES) sums += vf_load(state + i);
  vf factor = vf_splat(1.0f / vf_sum(sums));
  for (int32_t i = 0; i < head_dim; i += LANES) vf_store(out + i, vf_load(state + 16 + i) * factor);
}

/* ---- scores ---- */

INLINE void score(const int rows, const tile_queries *q, const int32_t *queries, const kv_tile *tile,
                  vf scores[][KV_TILE_VECTORS]) {
  for (int first = 0; first < KV_TILE_VECTORS; first += BLOCK_COLUMNS) {
    block_columns keys = {.stride = PART_KEYS * 4};
    UNROLLED for (int c = 0; c < BLOCK_COLUMNS; c++) {
      int part = (first + c) / PART_VECTORS, lane = (first + c) % PART_VECTORS * LANES;
      keys.at[c] = (const char *)tile->keys[part] + lane * 4;
      keys.ahead[c] = (const char *)tile->values[part] + lane * 4;
    }
    block_sums sums;
    UNROLLED for (int row = 0; row < rows; row++)
      UNROLLED for (int c = 0; c < BLOCK_COLUMNS; c++) sums[row][c] = vf_splat(0.0f);
    add_products(sums, rows, BLOCK_COLUMNS, queries, q->head_dim / 2, &keys, q->head_dim / 2);
    UNROLLED for (int row = 0; row < rows; row++)
      UNROLLED for (int c = 0; c < BLOCK_COLUMNS; c++) scores[row][first + c] = sums[row][c];
  }
}

/* ---- weights ---- */

/* weights[key] = 2^(score - peak) in bfloat16 for the `num_keys` that the query may see, 0 for the others. */
INLINE void weigh(vf *scores, int32_t num_keys, const kv_tile *tile, const tile_queries *q, float *state,
                  eg_bf16 *weights) {
  if (tile->key_scales[0])
    UNROLLED for (int v = 0; v < KV_TILE_VECTORS; v++)
      scores[v] *= vf_load(tile->key_scales[v / PART_VECTORS] + v % PART_VECTORS * LANES);
  if (num_keys < KV_TILE_KEYS) /* -1e30 and not infinity, so that nothing below is infinity less infinity */
    UNROLLED for (int v = 0; v < KV_TILE_VECTORS; v++)
      scores[v] = vf_select(vi_count() + v * LANES < num_keys, scores[v], vf_splat(-1e30f));
  vf top = scores[0];
  UNROLLED for (int v = 1; v < KV_TILE_VECTORS; v++) top = vf_max(scores[v], top);
  float *peak = state + 16 + q->head_dim;
  vf scale = vf_splat(q->scale);
  if (vf_any_greater(vf_fma(top, scale, vf_splat(-*peak)), vf_splat(MAX_EXPONENT)))
    move_peak(state, q->head_dim, q->scale * vf_maximum(top));
  vf sums[PART_VECTORS];
  UNROLLED for (int i = 0; i < PART_VECTORS; i++) sums[i] = vf_load(state + i * LANES);
  UNROLLED for (int v = 0; v < KV_TILE_VECTORS; v++) {
    vf weight = vf_exp2(vf_fma(scores[v], scale, vf_splat(-*peak)));
    sums[v % PART_VECTORS] += weight;
    if (tile->value_scales[0]) weight *= vf_load(tile->value_scales[v / PART_VECTORS] + v % PART_VECTORS * LANES);
    vf_store_bf16(weights + v * LANES, weight);
  }
  UNROLLED for (int i = 0; i < PART_VECTORS; i++) vf_store(state + i * LANES, sums[i]);
}

/* ---- weighted values ---- */

INLINE void add_value_columns(const int rows, const int columns, const tile_queries *q, float *states,
                              const int32_t *weights, const kv_tile *tile, const void *const *next_keys, int num_pairs,
                              int32_t feature) {
  int64_t state_stride = state_floats(q->head_dim);
  float *sums_of_row = states + 16 + feature;
  block_sums sums;
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int c = 0; c < columns; c++) sums[row][c] = vf_load(sums_of_row + row * state_stride + c * LANES);
  for (int part = 0; part * PART_PAIRS < num_pairs; part++) {
    block_columns values = {.stride = q->head_dim * 4};
    UNROLLED for (int c = 0; c < columns; c++) {
      values.at[c] = (const char *)tile->values[part] + (feature + c * LANES) * 4;
      values.ahead[c] = (const char *)next_keys[part] + (feature + c * LANES) * 4;
    }
    int pairs_left = num_pairs - part * PART_PAIRS;
    add_products(sums, rows, columns, weights + part * PART_PAIRS, KV_TILE_KEYS / 2, &values,
                 pairs_left < PART_PAIRS ? pairs_left : PART_PAIRS);
  }
  UNROLLED for (int row = 0; row < rows; row++)
    UNROLLED for (int c = 0; c < columns; c++) vf_store(sums_of_row + row * state_stride + c * LANES, sums[row][c]);
}

INLINE void add_values(const int rows, const tile_queries *q, float *states, const int32_t *weights,
                       const kv_tile *tile, const void *const *next_keys, int num_pairs) {
  int32_t feature = 0;
  for (; feature + BLOCK_COLUMNS * LANES <= q->head_dim; feature += BLOCK_COLUMNS * LANES)
    add_value_columns(rows, BLOCK_COLUMNS, q, states, weights, tile, next_keys, num_pairs, feature);
#if BLOCK_COLUMNS * LANES > 32 /* of which head dims are multiples */
  if (feature < q->head_dim) add_value_columns(rows, 2, q, states, weights, tile, next_keys, num_pairs, feature);
#endif
}

/* ---- a block of queries ---- */

INLINE void attend_block(const int rows, const tile_queries *q, int64_t first, const kv_tile *tile,
                         const void *const *next_keys) {
  vf scores[BLOCK_ROWS][KV_TILE_VECTORS];
  _Alignas(64) int32_t weights[BLOCK_ROWS][KV_TILE_KEYS / 2];
  int64_t stride = state_floats(q->head_dim);
  float *states = q->states + first * stride;
  int32_t most_keys = 0;
  score(rows, q, q->queries + first * (q->head_dim / 2), tile, scores);
  for (int row = 0; row < rows; row++) {
    int32_t num_keys = q->ends[first + row] - q->first_key;
    if (num_keys > KV_TILE_KEYS) num_keys = KV_TILE_KEYS;
    if (num_keys > most_keys) most_keys = num_keys;
    weigh(scores[row], num_keys, tile, q, states + row * stride, (eg_bf16 *)weights[row]);
  }
  add_values(rows, q, states, weights[0], tile, next_keys, (most_keys + 1) / 2);
}

static void attend_tile(const tile_queries *q, const kv_tile *tile, const void *const *next_keys) {
  int64_t num_blocks = (q->num_queries + BLOCK_ROWS - 1) / BLOCK_ROWS;
  for (int64_t block = 0; block < num_blocks; block++) {
    /* Blocks of nearly the same size, because a small one computes no faster. */
    int64_t first = q->num_queries * block / num_blocks, last = q->num_queries * (block + 1) / num_blocks;
    switch (last - first) {
      case 1: attend_block(1, q, first, tile, next_keys); break;
      case 2: attend_block(2, q, first, tile, next_keys); break;
      case 3: attend_block(3, q, first, tile, next_keys); break;
      case 4: attend_block(4, q, first, tile, next_keys); break;
#if BLOCK_ROWS == 6
      case 5: attend_block(5, q, first, tile, next_keys); break;
      case 6: attend_block(6, q, first, tile, next_keys); break;
#endif
    }
  }
}
