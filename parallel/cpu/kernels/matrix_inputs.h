/* Inputs rounded to what weights are multiplied with, in blocks of tokens. Layouts are the kernels': matrix_bf16.h,
 * matrix_amx.h and matrix_quantised.h. */
#ifndef EAGLE_MATRIX_INPUTS_H
#define EAGLE_MATRIX_INPUTS_H

#include "matrix.h"
#include "matrix_bf16.h"
#include "matrix_tile.h"

/* Tokens of a block; the last may have fewer. */
INLINE int64_t block_tokens_of(int32_t format) { return format == EG_BF16 ? BF16_TOKENS : TILE_TOKENS; }

INLINE int64_t round_up_to_line(int64_t bytes) { return (bytes + 63) / 64 * 64; }
INLINE int64_t values_bytes_of(int32_t format, int64_t num_tokens, int32_t num_inputs) {
  return round_up_to_line(num_tokens * num_inputs * (format == EG_BF16 ? 2 : 1));
}
INLINE int64_t input_scales_bytes_of(int64_t num_tokens, int32_t num_inputs) {
  return round_up_to_line(num_tokens * (num_inputs / EG_GROUP) * 4);
}

size_t eg_inputs_bytes(int32_t format, int64_t num_tokens, int32_t num_inputs) {
  int64_t bytes = values_bytes_of(format, num_tokens, num_inputs);
  if (format != EG_BF16) bytes += 2 * input_scales_bytes_of(num_tokens, num_inputs);
  return (size_t)bytes;
}

/* to[t], to[t + num_tokens], ... = the lanes of v. */
INLINE void scatter_lanes(char *to, int64_t stride, const void *lanes, int num_lanes) {
  for (int lane = 0; lane < num_lanes; lane++) memcpy(to + lane * stride, (const char *)lanes + 4 * lane, 4);
}

/* Sixteen inputs of one token, or the first `count` of them, in pairs. */
INLINE void round_16_to_bf16(const float *x, int count, int64_t pair_stride, char *values) {
  eg_bf16 rounded[16];
  for (int i = 0; i < 16; i += LANES) vf_store_bf16(rounded + i, vf_load(x + i));
  scatter_lanes(values, pair_stride, rounded, count / 2);
}

/* One token; `values` is where its first pair goes. */
INLINE void round_to_bf16(const float *x, int64_t num_inputs, int64_t pair_stride, char *values) {
  int64_t whole = num_inputs / 16 * 16;
  for (int64_t input = 0; input < whole; input += 16)
    round_16_to_bf16(x + input, 16, pair_stride, values + input / 2 * pair_stride);
  float rest[16] = {0};
  memcpy(rest, x + whole, (size_t)(num_inputs - whole) * sizeof(float));
  round_16_to_bf16(rest, (int)(num_inputs - whole), pair_stride, values + whole / 2 * pair_stride);
}

INLINE int32_t vi_largest(vi v) {
#if LANES == 16
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t largest = v[0];
  for (int i = 1; i < LANES; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

INLINE int32_t vi_sum(vi v) {
#if LANES == 16
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
#endif
}

/* The largest magnitude of a group; NaN if there is one. Compared as integers, of which NaN is larger than all. */
INLINE float largest_magnitude(const float *x) {
  vi largest = vi_splat(0);
  UNROLLED for (int i = 0; i < EG_GROUP; i += LANES) {
    vi bits = vi_load(x + i) & vi_splat(0x7fffffff);
    vi is_larger = bits > largest;
    largest = (bits & is_larger) | (largest & ~is_larger);
  }
  int32_t bits = vi_largest(largest);
  float magnitude;
  memcpy(&magnitude, &bits, 4);
  return magnitude;
}

typedef int8_t bytes_of_vector __attribute__((vector_size(LANES)));

/* One group of one token: x = scale * code, codes -127 to 127. A group with NaN or infinity gets a scale that is not
 * finite, and so do its products. Returns the sum of the codes. */
INLINE int32_t quantise_group(const float *x, int64_t tokens, char *values, float *scale) {
  const float largest = largest_magnitude(x), tiny = 0x1p-100f; /* whose inverse would be infinite in the end */
  *scale = largest * (1.0f / 127.0f);
  const vf inverse = vf_splat(largest > tiny ? 127.0f / largest : 0.0f);
  const vf magic = vf_splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest even integer */
  vi sum = vi_splat(0);
  int8_t codes[EG_GROUP];
  UNROLLED for (int i = 0; i < EG_GROUP; i += LANES) {
    vi rounded = (vi)vf_fma(vf_load(x + i), inverse, magic) - (vi)magic;
    bytes_of_vector bytes = __builtin_convertvector(rounded, bytes_of_vector);
    memcpy(codes + i, &bytes, sizeof bytes);
    sum += rounded;
  }
  scatter_lanes(values, 4 * tokens, codes, EG_GROUP / 4);
  return vi_sum(sum);
}

typedef struct rounding {
  int32_t format;
  int64_t x_stride, num_tokens, num_inputs;
  const float *x;
  char *values;
  float *scales;
  char *sums;
} rounding;

/* One token of a block of `tokens`; scales and sums are where its first go. */
INLINE void quantise(const float *x, int32_t format, int64_t num_inputs, int64_t tokens, char *values, float *scales,
                     char *sums) {
  for (int64_t group = 0; group < num_inputs / EG_GROUP; group++) {
    float scale;
    int32_t sum = quantise_group(x + group * EG_GROUP, tokens, values + group * EG_GROUP * tokens, &scale);
    scales[group * tokens] = scale;
    float scaled_sum = scale * (float)sum;
    int32_t offset = (int32_t)(-128u * (uint32_t)sum); /* wraps where the scale is not finite */
    memcpy(sums + group * tokens * 4, format == EG_INT8 ? (const void *)&offset : (const void *)&scaled_sum, 4);
  }
}

static void round_token(const rounding *r, int64_t token) {
  int64_t num_groups = r->num_inputs / EG_GROUP, block_tokens = block_tokens_of(r->format);
  int64_t block = token / block_tokens * block_tokens, in_block = token - block;
  int64_t tokens = r->num_tokens - block < block_tokens ? r->num_tokens - block : block_tokens;
  const float *x = r->x + token * r->x_stride;
  if (r->format == EG_BF16)
    round_to_bf16(x, r->num_inputs, bf16_pair_stride(tokens),
                  r->values + block * r->num_inputs * 2 + in_block * bf16_token_stride(r->num_inputs));
  else
    quantise(x, r->format, r->num_inputs, tokens, r->values + block * r->num_inputs + 4 * in_block,
             r->scales + block * num_groups + in_block, r->sums + 4 * (block * num_groups + in_block));
}

static void round_blocks(void *context, int64_t first, int64_t last) {
  const rounding *r = context;
  int64_t block_tokens = block_tokens_of(r->format);
  for (int64_t token = first * block_tokens; token < last * block_tokens && token < r->num_tokens; token++)
    round_token(r, token);
}

void eg_prepare(eg_threads *threads, int32_t format, const float *x, int64_t x_stride, int64_t num_tokens,
                int32_t num_inputs, void *buffer, eg_inputs *inputs) {
  char *values = buffer;
  char *scales = values + values_bytes_of(format, num_tokens, num_inputs);
  char *sums = scales + (format == EG_BF16 ? 0 : input_scales_bytes_of(num_tokens, num_inputs));
  rounding r = {format, x_stride, num_tokens, num_inputs, x, values, (float *)scales, sums};
  const int64_t values_per_chunk = 1 << 13; /* about a microsecond */
  int64_t block_tokens = block_tokens_of(format);
  int64_t blocks_per_chunk = values_per_chunk / (num_inputs * block_tokens + 1) + 1;
  eg_parallel(threads, (num_tokens + block_tokens - 1) / block_tokens, blocks_per_chunk, round_blocks, &r);
  *inputs = (eg_inputs){format, num_inputs, num_tokens, values, (float *)scales, sums};
}

#endif
