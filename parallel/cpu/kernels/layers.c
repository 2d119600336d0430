/* Norms and the activation: one row after the other, each row's result from its own numbers alone. */
#include "layers.h"

#include "simd.h"
#include "threads.h"

/* The first `count` of 16 lanes; the others are 0 and are not touched. */
INLINE f32x16 load_part(const float *p, int64_t count) {
  f32x16 v = splat_f32(0.0f);
  memcpy(&v, p, (size_t)count * sizeof(float));
  return v;
}
INLINE void store_part(float *p, f32x16 v, int64_t count) { memcpy(p, &v, (size_t)count * sizeof(float)); }

/* ---- x / sqrt(mean(x^2) + eps) * weight ---- */

static void rms_norm_row(const float *x, const float *weight, float eps, int64_t size, float *y) {
  int64_t whole = size / 16 * 16, rest = size - whole;
  f32x16 squares = splat_f32(0.0f);
  for (int64_t i = 0; i < whole; i += 16) squares = fma_f32(load_f32(x + i), load_f32(x + i), squares);
  f32x16 last = load_part(x + whole, rest);
  squares = fma_f32(last, last, squares);
  f32x16 inverse = splat_f32(1.0f / sqrtf(sum_f32(squares) / (float)size + eps));
  for (int64_t i = 0; i < whole; i += 16) store_f32(y + i, load_f32(x + i) * inverse * load_f32(weight + i));
  store_part(y + whole, last * inverse * load_part(weight + whole, rest), rest);
}

typedef struct norm_job {
  const float *x;
  float *residual; /* null: x is normed itself */
  const float *weight;
  float eps;
  int64_t size;
  float *y;
} norm_job;

static void norm_rows(void *context, int64_t first, int64_t last) {
  const norm_job *job = context;
  for (int64_t row = first; row < last; row++) {
    const float *x = job->x + row * job->size;
    if (job->residual) {
      float *sum = job->residual + row * job->size;
      for (int64_t i = 0; i < job->size; i++) sum[i] += x[i];
      x = sum;
    }
    rms_norm_row(x, job->weight, job->eps, job->size, job->y + row * job->size);
  }
}

void eg_rms_norm(eg_threads *threads, const float *x, const float *weight, float eps, int64_t num_tokens, int64_t size,
                 float *y) {
  norm_job job = {x, NULL, weight, eps, size, y};
  eg_parallel(threads, num_tokens, rows_per_chunk(size), norm_rows, &job);
}

void eg_add_rms_norm(eg_threads *threads, const float *x, float *residual, const float *weight, float eps,
                     int64_t num_tokens, int64_t size, float *y) {
  norm_job job = {x, residual, weight, eps, size, y};
  eg_parallel(threads, num_tokens, rows_per_chunk(size), norm_rows, &job);
}

/* ---- silu(gate) * up ---- */

typedef struct silu_job {
  const float *gate_up;
  int64_t size;
  float *y;
} silu_job;

static void silu_mul_rows(void *context, int64_t first, int64_t last) {
  const silu_job *job = context;
  int64_t size = job->size, whole = size / 16 * 16, rest = size - whole;
  for (int64_t row = first; row < last; row++) {
    const float *gate = job->gate_up + row * 2 * size, *up = gate + size;
    float *y = job->y + row * size;
    for (int64_t i = 0; i < whole; i += 16) store_f32(y + i, silu_f32(load_f32(gate + i)) * load_f32(up + i));
    store_part(y + whole, silu_f32(load_part(gate + whole, rest)) * load_part(up + whole, rest), rest);
  }
}

void eg_silu_mul(eg_threads *threads, const float *gate_up, int64_t num_tokens, int64_t size, float *y) {
  silu_job job = {gate_up, size, y};
  eg_parallel(threads, num_tokens, rows_per_chunk(size), silu_mul_rows, &job);
}
