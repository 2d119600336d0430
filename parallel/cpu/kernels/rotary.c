/* What attention needs of a token before it can look: its queries and keys normed and rotated (arXiv 2104.09864,
 * half-split layout), its keys and values in the cache. */
#include "attention.h"
#include "threads.h"

#define MAX_HEAD_DIM 256
#define TOKENS_PER_CHUNK 8 /* some microseconds of work */

/* ---- angles ---- */

typedef struct rotation_job {
  const eg_batch *batch;
  const float *frequencies;
  int32_t head_dim;
  float *rotation;
} rotation_job;

static void rotation_of_tokens(void *context, int64_t first, int64_t last) {
  const rotation_job *job = context;
  int32_t half = job->head_dim / 2;
  for (int64_t token = first; token < last; token++) {
    float position = (float)job->batch->positions[token];
    float *cosines = job->rotation + token * job->head_dim, *sines = cosines + half;
    for (int32_t i = 0; i < half; i++) {
      float angle = position * job->frequencies[i];
      cosines[i] = cosf(angle);
      sines[i] = sinf(angle);
    }
  }
}

void eg_rotation(eg_threads *threads, const eg_batch *batch, const float *frequencies, int32_t head_dim,
                 float *rotation) {
  rotation_job job = {batch, frequencies, head_dim, rotation};
  eg_parallel(threads, batch->num_tokens, TOKENS_PER_CHUNK, rotation_of_tokens, &job);
}

/* ---- norm and rotation of a head ---- */

static void norm_head(const float *weight, float eps, int32_t head_dim, float *x) {
  vf squares = vf_splat(0.0f);
  for (int32_t i = 0; i < head_dim; i += LANES) squares = vf_fma(vf_load(x + i), vf_load(x + i), squares);
  vf inverse = vf_splat(1.0f / sqrtf(vf_sum(squares) / (float)head_dim + eps));
  for (int32_t i = 0; i < head_dim; i += LANES) vf_store(x + i, vf_load(x + i) * inverse * vf_load(weight + i));
}

static void rotate_head(const float *rotation, int32_t head_dim, float *x) {
  int32_t half = head_dim / 2;
  for (int32_t i = 0; i < half; i += LANES) {
    vf cosine = vf_load(rotation + i), sine = vf_load(rotation + half + i);
    vf a = vf_load(x + i), b = vf_load(x + half + i);
    vf_store(x + i, vf_fma(a, cosine, -(b * sine)));
    vf_store(x + half + i, vf_fma(b, cosine, a * sine));
  }
}

/* ---- codes of the cache ---- */

/* One token's key or value of one head, as the cache keeps it. */
typedef struct head_codes {
  _Alignas(64) uint16_t bf16[MAX_HEAD_DIM];
  uint8_t int8[MAX_HEAD_DIM];
  float scale; /* of int8 */
} head_codes;

INLINE vf finite_or_zero(vf x) {
  vi magnitude = (vi)x & 0x7fffffff;
  return (vf)((vi)x & (magnitude < 0x7f800000));
}

static void encode_bf16(const float *x, int32_t head_dim, head_codes *codes) {
  for (int32_t i = 0; i < head_dim; i += LANES) vf_store_bf16(codes->bf16 + i, vf_load(x + i));
  /* Looked at after rounding, which makes infinity of the largest float32. */
  for (int32_t i = 0; i < head_dim; i++)
    if ((codes->bf16[i] & 0x7f80) == 0x7f80) codes->bf16[i] = 0;
}

static void encode_int8(const float *x, int32_t head_dim, head_codes *codes) {
  vf largest = vf_splat(0.0f);
  for (int32_t i = 0; i < head_dim; i += LANES) {
    vf finite = finite_or_zero(vf_load(x + i));
    largest = vf_max(largest, (vf)((vi)finite & 0x7fffffff));
  }
  codes->scale = vf_maximum(largest) / 127.0f;
  float divisor = codes->scale > 0x1p-126f ? codes->scale : 0x1p-126f;
  for (int32_t i = 0; i < head_dim; i += LANES) {
    float rounded[LANES];
    /* Adding 1.5 * 2^23 rounds to an integer, ties to even. */
    vf_store(rounded, finite_or_zero(vf_load(x + i)) / divisor + 12582912.0f - 12582912.0f);
    for (int lane = 0; lane < LANES; lane++) codes->int8[i + lane] = (uint8_t)(int8_t)rounded[lane];
  }
}

static void encode(int32_t kv_format, const float *x, int32_t head_dim, head_codes *codes) {
  if (kv_format == EG_KV_INT8)
    encode_int8(x, head_dim, codes);
  else
    encode_bf16(x, head_dim, codes);
}

/* ---- tokens ---- */

typedef struct write_job {
  const eg_heads *heads;
  const eg_kv *kv;
  const eg_batch *batch;
  const float *rotation;
  const float *q_norm, *k_norm;
  float *qkv;
} write_job;

/* Tokens next to each other have their codes in turn (eagle.h), so each is stored alone: another thread may be writing
 * its neighbour. `row` counts heads of tokens in the cache. */

static void write_key(const write_job *job, int64_t row, const head_codes *codes) {
  int64_t lane = row % PART_KEYS;
  int32_t num_pairs = job->heads->head_dim / 2;
  int64_t first = (row - lane) * num_pairs + lane;
  if (job->heads->kv_format == EG_KV_INT8) {
    uint8_t *pairs = (uint8_t *)job->kv->keys + first * 2;
    for (int32_t i = 0; i < num_pairs; i++) memcpy(pairs + i * 2 * PART_KEYS, codes->int8 + 2 * i, 2);
    job->kv->key_scales[row] = codes->scale;
  } else {
    eg_bf16 *pairs = (eg_bf16 *)job->kv->keys + first * 2;
    for (int32_t i = 0; i < num_pairs; i++) memcpy(pairs + i * 2 * PART_KEYS, codes->bf16 + 2 * i, 4);
  }
}

static void write_value(const write_job *job, int64_t row, const head_codes *codes) {
  int64_t first = (row - row % 2) * job->heads->head_dim + row % 2;
  if (job->heads->kv_format == EG_KV_INT8) {
    uint8_t *cells = (uint8_t *)job->kv->values + first;
    for (int32_t i = 0; i < job->heads->head_dim; i++) cells[2 * i] = codes->int8[i];
    job->kv->value_scales[row] = codes->scale;
  } else {
    eg_bf16 *cells = (eg_bf16 *)job->kv->values + first;
    for (int32_t i = 0; i < job->heads->head_dim; i++) cells[2 * i] = codes->bf16[i];
  }
}

static void rotate_and_write_tokens(void *context, int64_t first, int64_t last) {
  const write_job *job = context;
  const eg_heads *heads = job->heads;
  int32_t head_dim = heads->head_dim, num_rotated = heads->num_query_heads + heads->num_kv_heads;
  head_codes codes;
  for (int64_t token = first; token < last; token++) {
    const float *rotation = job->rotation + token * head_dim;
    float *x = job->qkv + token * (num_rotated + heads->num_kv_heads) * head_dim;
    for (int32_t head = 0; head < num_rotated; head++) {
      const float *norm = head < heads->num_query_heads ? job->q_norm : job->k_norm;
      if (norm) norm_head(norm, heads->eps, head_dim, x + head * head_dim);
      rotate_head(rotation, head_dim, x + head * head_dim);
    }
    int64_t block = job->batch->slots[token] / heads->block_size, offset = job->batch->slots[token] % heads->block_size;
    for (int32_t head = 0; head < heads->num_kv_heads; head++) {
      int64_t row = (block * heads->num_kv_heads + head) * heads->block_size + offset;
      encode(heads->kv_format, x + (heads->num_query_heads + head) * head_dim, head_dim, &codes);
      write_key(job, row, &codes);
      encode(heads->kv_format, x + (num_rotated + head) * head_dim, head_dim, &codes);
      write_value(job, row, &codes);
    }
  }
}

void eg_rotate_and_write(eg_threads *threads, const eg_heads *heads, const eg_kv *kv, const eg_batch *batch,
                         const float *rotation, const float *q_norm, const float *k_norm, float *qkv) {
  write_job job = {heads, kv, batch, rotation, q_norm, k_norm, qkv};
  eg_parallel(threads, batch->num_tokens, TOKENS_PER_CHUNK, rotate_and_write_tokens, &job);
}
