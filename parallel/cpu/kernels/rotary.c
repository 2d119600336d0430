/* Rotary position embedding, and where rotated keys and values go. One token after the other, each from its own numbers
 * alone. E is a multiple of 32, so half a head is whole vectors of 16. */
#include "simd.h"
#include "threads.h"

#define MAX_HEAD_DIM 256

/* ---- angles ---- */

typedef struct rotation_job {
  const int64_t *positions;
  const float *frequencies;
  int32_t head_dim;
  float *rotation;
} rotation_job;

static void rotation_rows(void *context, int64_t first, int64_t last) {
  const rotation_job *job = context;
  int32_t half = job->head_dim / 2;
  for (int64_t t = first; t < last; t++) {
    float *cosines = job->rotation + t * job->head_dim, *sines = cosines + half;
    for (int32_t i = 0; i < half; i++) {
      float angle = (float)job->positions[t] * job->frequencies[i];
      cosines[i] = cosf(angle);
      sines[i] = sinf(angle);
    }
  }
}

void eg_rotation(eg_threads *threads, const eg_batch *batch, const float *frequencies, int32_t head_dim,
                 float *rotation) {
  rotation_job job = {batch->positions, frequencies, head_dim, rotation};
  eg_parallel(threads, batch->num_tokens, 16, rotation_rows, &job);
}

/* ---- heads ---- */

typedef struct rotary_job {
  const eg_heads *heads;
  const eg_kv *kv;
  const int64_t *slots;
  const float *rotation;
  const float *q_norm, *k_norm;
  float *qkv;
} rotary_job;

static void norm_head(float *head, const float *weight, float eps, int32_t head_dim) {
  f32x16 squares = splat_f32(0.0f);
  for (int32_t i = 0; i < head_dim; i += 16) squares = fma_f32(load_f32(head + i), load_f32(head + i), squares);
  f32x16 inverse = splat_f32(1.0f / sqrtf(sum_f32(squares) / (float)head_dim + eps));
  for (int32_t i = 0; i < head_dim; i += 16)
    store_f32(head + i, load_f32(head + i) * inverse * load_f32(weight + i));
}

/* Feature i turns together with feature i + E/2. */
static void rotate_head(float *head, const float *rotation, int32_t head_dim) {
  int32_t half = head_dim / 2;
  for (int32_t i = 0; i < half; i += 16) {
    f32x16 cosine = load_f32(rotation + i), sine = load_f32(rotation + half + i);
    f32x16 a = load_f32(head + i), b = load_f32(head + half + i);
    store_f32(head + i, fma_f32(a, cosine, -(b * sine)));
    store_f32(head + half + i, fma_f32(b, cosine, a * sine));
  }
}

/* What is not finite becomes zero: a block is padding, later content, of other requests. */
static void make_finite(float *head, int32_t head_dim) {
  const f32x16 zero = splat_f32(0.0f);
  for (int32_t i = 0; i < head_dim; i += 16) {
    f32x16 x = load_f32(head + i);
    store_f32(head + i, select_f32((x - x) == zero, x, zero));
  }
}

/* codes[E] = x / scale rounded, at most 127 either way; returns the scale. */
static float quantise_head(const float *x, int32_t head_dim, int8_t *codes) {
  f32x16 peak = splat_f32(0.0f);
  for (int32_t i = 0; i < head_dim; i += 16) peak = max_f32(max_f32(load_f32(x + i), -load_f32(x + i)), peak);
  float largest = maximum_f32(peak);
  float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  for (int32_t i = 0; i < head_dim; i++) codes[i] = (int8_t)lrintf(x[i] * inverse);
  return largest / 127.0f;
}

static void write_key(const rotary_job *job, int64_t slot, int32_t head, const float *key) {
  const eg_heads *heads = job->heads;
  int64_t block = slot / heads->block_size, offset = slot % heads->block_size;
  int64_t owner = block * heads->num_kv_heads + head;
  int32_t pairs = heads->head_dim / 2;
  int64_t part = owner * (heads->block_size / 16) + offset / 16, lane = offset % 16;
  int64_t at = part * pairs * 32 + lane * 2;
  if (heads->kv_format == EG_KV_BF16) {
    eg_bf16 rounded[MAX_HEAD_DIM];
    for (int32_t i = 0; i < heads->head_dim; i += 16) store_u16(rounded + i, bf16_of_f32(load_f32(key + i)));
    eg_bf16 *keys = (eg_bf16 *)job->kv->keys + at;
    for (int32_t i = 0; i < pairs; i++) memcpy(keys + i * 32, rounded + 2 * i, 4);
    return;
  }
  int8_t codes[MAX_HEAD_DIM];
  job->kv->key_scales[owner * heads->block_size + offset] = quantise_head(key, heads->head_dim, codes);
  int8_t *keys = (int8_t *)job->kv->keys + at;
  for (int32_t i = 0; i < pairs; i++) memcpy(keys + i * 32, codes + 2 * i, 2);
}

static void write_value(const rotary_job *job, int64_t slot, int32_t head, const float *value) {
  const eg_heads *heads = job->heads;
  int64_t block = slot / heads->block_size, offset = slot % heads->block_size;
  int64_t owner = block * heads->num_kv_heads + head;
  int64_t at = (owner * (heads->block_size / 2) + offset / 2) * heads->head_dim * 2 + offset % 2;
  if (heads->kv_format == EG_KV_BF16) {
    eg_bf16 rounded[MAX_HEAD_DIM];
    for (int32_t i = 0; i < heads->head_dim; i += 16) store_u16(rounded + i, bf16_of_f32(load_f32(value + i)));
    eg_bf16 *values = (eg_bf16 *)job->kv->values + at;
    for (int32_t i = 0; i < heads->head_dim; i++) values[2 * i] = rounded[i];
    return;
  }
  int8_t codes[MAX_HEAD_DIM];
  job->kv->value_scales[owner * heads->block_size + offset] = quantise_head(value, heads->head_dim, codes);
  int8_t *values = (int8_t *)job->kv->values + at;
  for (int32_t i = 0; i < heads->head_dim; i++) values[2 * i] = codes[i];
}

static void rotary_rows(void *context, int64_t first, int64_t last) {
  const rotary_job *job = context;
  const eg_heads *heads = job->heads;
  int32_t size = heads->head_dim, num_queries = heads->num_query_heads, num_kv = heads->num_kv_heads;
  for (int64_t t = first; t < last; t++) {
    float *row = job->qkv + t * (num_queries + 2 * num_kv) * size;
    const float *rotation = job->rotation + t * size;
    for (int32_t h = 0; h < num_queries + num_kv; h++) {
      const float *weight = h < num_queries ? job->q_norm : job->k_norm;
      if (weight) norm_head(row + h * size, weight, heads->eps, size);
      rotate_head(row + h * size, rotation, size);
    }
    float *keys = row + num_queries * size, *values = keys + num_kv * size;
    for (int32_t h = 0; h < num_kv; h++) {
      make_finite(keys + h * size, size);
      make_finite(values + h * size, size);
      write_key(job, job->slots[t], h, keys + h * size);
      write_value(job, job->slots[t], h, values + h * size);
    }
  }
}

void eg_rotate_and_write(eg_threads *threads, const eg_heads *heads, const eg_kv *kv, const eg_batch *batch,
                         const float *rotation, const float *q_norm, const float *k_norm, float *qkv) {
  rotary_job job = {heads, kv, batch->slots, rotation, q_norm, k_norm, qkv};
  eg_parallel(threads, batch->num_tokens, 8, rotary_rows, &job);
}
