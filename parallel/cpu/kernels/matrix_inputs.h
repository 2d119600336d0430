/* Inputs rounded to what weights are multiplied with, in blocks of TILE_TOKENS tokens: the values of a block's tokens
 * that meet the same line of weights lie side by side. Layouts: matrix_bf16.h and matrix_quantised.h. */
#ifndef EAGLE_MATRIX_INPUTS_H
#define EAGLE_MATRIX_INPUTS_H

#include "matrix.h"
#include "matrix_tile.h"

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

/* One token of a block of `tokens`; `values` is where its first pair goes. */
INLINE void round_to_bf16(const float *x, int64_t num_inputs, int64_t tokens, char *values) {
  int64_t input = 0;
  for (; input + 16 <= num_inputs; input += 16) {
    u16x16 pairs = bf16_of_f32(load_f32(x + input));
    scatter_lanes(values + input * 2 * tokens, 4 * tokens, &pairs, 8);
  }
  float rest[16] = {0};
  for (int64_t i = input; i < num_inputs; i++) rest[i - input] = x[i];
  u16x16 pairs = bf16_of_f32(load_f32(rest));
  scatter_lanes(values + input * 2 * tokens, 4 * tokens, &pairs, (int)(num_inputs - input) / 2);
}

INLINE int32_t largest_i32(i32x16 v) {
  int32_t lanes[16];
  store_i32(lanes, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

INLINE int32_t sum_i32(i32x16 v) {
  int32_t sum = 0;
  for (int i = 0; i < 16; i++) sum += v[i];
  return sum;
}

/* round(x * inverse) to nearest even, for results within +-2^22. */
INLINE i32x16 round_product(f32x16 x, float inverse) {
  const f32x16 magic = splat_f32(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
  return (i32x16)fma_f32(x, splat_f32(inverse), magic) - (i32x16)magic;
}

/* One group of one token: x = scale * code, codes -127 to 127. A group with NaN or infinity gets a scale that is not
 * finite, and so do its products. Returns the sum of the codes. */
INLINE int32_t quantise_group(const float *x, int64_t tokens, char *values, float *scale) {
  f32x16 low = load_f32(x), high = load_f32(x + 16);
  const i32x16 magnitude = splat_i32(0x7fffffff);
  i32x16 low_bits = (i32x16)low & magnitude, high_bits = (i32x16)high & magnitude;
  /* As integers, so that NaN is larger than all. */
  i32x16 is_low = low_bits > high_bits;
  int32_t largest_bits = largest_i32((low_bits & is_low) | (high_bits & ~is_low));
  float largest;
  memcpy(&largest, &largest_bits, 4);
  *scale = largest / 127.0f;
  float inverse = *scale > 0 ? 1.0f / *scale : 0.0f;
  i32x16 low_codes = round_product(low, inverse), high_codes = round_product(high, inverse);
  i8x16 low_bytes = __builtin_convertvector(low_codes, i8x16), high_bytes = __builtin_convertvector(high_codes, i8x16);
  scatter_lanes(values, 4 * tokens, &low_bytes, 4);
  scatter_lanes(values + 16 * tokens, 4 * tokens, &high_bytes, 4);
  return sum_i32(low_codes + high_codes);
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
    int32_t offset = -128 * sum;
    memcpy(sums + group * tokens * 4, format == EG_INT8 ? (const void *)&offset : (const void *)&scaled_sum, 4);
  }
}

static void round_blocks(void *context, int64_t first, int64_t last) {
  const rounding *r = context;
  int64_t num_groups = r->num_inputs / EG_GROUP;
  for (int64_t token = first * TILE_TOKENS; token < last * TILE_TOKENS && token < r->num_tokens; token++) {
    int64_t block_first = token / TILE_TOKENS * TILE_TOKENS, in_block = token - block_first;
    int64_t tokens = r->num_tokens - block_first < TILE_TOKENS ? r->num_tokens - block_first : TILE_TOKENS;
    const float *x = r->x + token * r->x_stride;
    if (r->format == EG_BF16)
      round_to_bf16(x, r->num_inputs, tokens, r->values + block_first * r->num_inputs * 2 + 4 * in_block);
    else
      quantise(x, r->format, r->num_inputs, tokens, r->values + block_first * r->num_inputs + 4 * in_block,
               r->scales + block_first * num_groups + in_block, r->sums + 4 * (block_first * num_groups + in_block));
  }
}

void eg_prepare(eg_threads *threads, int32_t format, const float *x, int64_t x_stride, int64_t num_tokens,
                int32_t num_inputs, void *buffer, eg_inputs *inputs) {
  char *values = buffer;
  char *scales = values + values_bytes_of(format, num_tokens, num_inputs);
  char *sums = scales + (format == EG_BF16 ? 0 : input_scales_bytes_of(num_tokens, num_inputs));
  rounding r = {format, x_stride, num_tokens, num_inputs, x, values, (float *)scales, sums};
  const int64_t values_per_chunk = 1 << 15; /* some microseconds */
  int64_t blocks_per_chunk = values_per_chunk / ((int64_t)num_inputs * TILE_TOKENS + 1) + 1;
  eg_parallel(threads, (num_tokens + TILE_TOKENS - 1) / TILE_TOKENS, blocks_per_chunk, round_blocks, &r);
  *inputs = (eg_inputs){format, num_inputs, num_tokens, values, (float *)scales, sums};
}

#endif
