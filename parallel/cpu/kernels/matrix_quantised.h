/* int8 and int4 weights; inputs as int8 with a scale per group of 32. Products inside a group are whole numbers and so
 * exact; groups are added up in float32, one after the other.
 *
 *   bytes   [R/16][I/4][16][4] uint8: a line holds four inputs of 16 outputs. int8 codes are kept with 128 added, which
 *           a group's -128 * (sum of inputs) takes off again.
 *   nibbles [R/16][I/32][4][16][4] uint8: line l of a group holds inputs 4l .. 4l+3 in the low halves and 16 inputs
 *           further in the high halves. From the second block of tokens on it is multiplied as bytes, unpacked once.
 *   scales  int8 [R/16][I/32][16], int4 [R/16][I/32][2][16] (scales, then minimums) float16
 *   values  [T/8][I/4][8][4] int8, input_scales and input_sums [T/8][I/32][8]; fewer than 8 in the last block
 */
#ifndef EAGLE_MATRIX_QUANTISED_H
#define EAGLE_MATRIX_QUANTISED_H

#include "matrix_tile.h"

enum { QUADS = EG_GROUP / 4 }; /* quadruples of inputs in a group */
enum coding { CODES_INT8, CODES_INT4_BYTES, CODES_INT4_NIBBLES };

/* dots[t][p] += the group's products; `codes` and `values` are the group's. */
INLINE void add_byte_dots(i32x16 dots[TILE_TOKENS][TILE_PANELS], const eg_tile *tile, const char *codes,
                          const char *values, const char *ahead, const int tokens, const int panels) {
  for (int quad = 0; quad < QUADS; quad++) {
    i32x16 weights[TILE_PANELS];
    UNROLL for (int p = 0; p < panels; p++) {
      weights[p] = load_i32(codes + p * tile->codes_stride + quad * 64);
      __builtin_prefetch(ahead + (quad * panels + p) * tile->ahead_step, 0, 3);
    }
    UNROLL for (int t = 0; t < tokens; t++) {
      i32x16 input = splat_i32(load_lane(values + (quad * tokens + t) * 4));
      UNROLL for (int p = 0; p < panels; p++) dots[t][p] = dot_u8_i8(dots[t][p], weights[p], input);
    }
  }
}

INLINE void add_nibble_dots(i32x16 dots[TILE_TOKENS][TILE_PANELS], const eg_tile *tile, const char *codes,
                            const char *values, const char *ahead, const int tokens, const int panels) {
  const i32x16 low_halves = splat_i32(0x0f0f0f0f);
  for (int quad = 0; quad < QUADS / 2; quad++) {
    i32x16 low[TILE_PANELS], high[TILE_PANELS];
    UNROLL for (int p = 0; p < panels; p++) {
      i32x16 line = load_i32(codes + p * tile->codes_stride + quad * 64);
      low[p] = line & low_halves;
      high[p] = (i32x16)((u32x16)line >> 4) & low_halves;
      __builtin_prefetch(ahead + (quad * panels + p) * tile->ahead_step, 0, 3);
    }
    UNROLL for (int t = 0; t < tokens; t++) {
      i32x16 near = splat_i32(load_lane(values + (quad * tokens + t) * 4));
      i32x16 far = splat_i32(load_lane(values + ((quad + QUADS / 2) * tokens + t) * 4));
      UNROLL for (int p = 0; p < panels; p++) dots[t][p] = dot_u8_i8(dots[t][p], low[p], near);
      UNROLL for (int p = 0; p < panels; p++) dots[t][p] = dot_u8_i8(dots[t][p], high[p], far);
    }
  }
}

INLINE void quantised_tile(const eg_tile *tile, float *results, const int tokens, const int panels,
                           const enum coding coding) {
  f32x16 sums[TILE_TOKENS][TILE_PANELS];
  UNROLL for (int t = 0; t < tokens; t++)
    UNROLL for (int p = 0; p < panels; p++) sums[t][p] = splat_f32(0);
  const int num_lines = coding == CODES_INT4_NIBBLES ? QUADS / 2 : QUADS;
  const int scales_bytes = coding == CODES_INT8 ? 2 * EG_PANEL : 4 * EG_PANEL;
  const char *codes = tile->codes, *values = tile->values, *ahead = tile->ahead;
  const char *scales = tile->scales;
  const float *input_scales = tile->input_scales;
  const char *input_sums = tile->input_sums;
  for (int64_t group = 0; group < tile->num_inputs / EG_GROUP; group++) {
    i32x16 dots[TILE_TOKENS][TILE_PANELS];
    UNROLL for (int t = 0; t < tokens; t++) {
      i32x16 start = splat_i32(coding == CODES_INT8 ? load_lane(input_sums + 4 * t) : 0);
      UNROLL for (int p = 0; p < panels; p++) dots[t][p] = start;
    }
    if (coding == CODES_INT4_NIBBLES)
      add_nibble_dots(dots, tile, codes, values, ahead, tokens, panels);
    else
      add_byte_dots(dots, tile, codes, values, ahead, tokens, panels);
    UNROLL for (int p = 0; p < panels; p++) {
      const char *group_scales = scales + p * tile->scales_stride;
      f32x16 scale = f32_of_f16(load_u16(group_scales));
      __builtin_prefetch(ahead + (num_lines * panels + p) * tile->ahead_step, 0, 3);
      f32x16 minimum = coding == CODES_INT8 ? scale : f32_of_f16(load_u16(group_scales + 2 * EG_PANEL));
      UNROLL for (int t = 0; t < tokens; t++) {
        f32x16 dot = __builtin_convertvector(dots[t][p], f32x16) * scale;
        sums[t][p] = fma_f32(dot, splat_f32(input_scales[t]), sums[t][p]);
        if (coding != CODES_INT8)
          sums[t][p] = fma_f32(minimum, splat_f32(((const float *)input_sums)[t]), sums[t][p]);
      }
    }
    codes += num_lines * 64;
    values += tokens * EG_GROUP;
    ahead += (num_lines + 1) * panels * tile->ahead_step;
    scales += scales_bytes;
    input_scales += tokens;
    input_sums += tokens * 4;
  }
  UNROLL for (int t = 0; t < tokens; t++)
    UNROLL for (int p = 0; p < panels; p++) store_f32(results + t * TILE_STRIDE + p * EG_PANEL, sums[t][p]);
}

INLINE void int8_tile(const eg_tile *tile, float *results, const int tokens, const int panels) {
  quantised_tile(tile, results, tokens, panels, CODES_INT8);
}
INLINE void int4_bytes_tile(const eg_tile *tile, float *results, const int tokens, const int panels) {
  quantised_tile(tile, results, tokens, panels, CODES_INT4_BYTES);
}
INLINE void int4_nibbles_tile(const eg_tile *tile, float *results, const int tokens, const int panels) {
  quantised_tile(tile, results, tokens, panels, CODES_INT4_NIBBLES);
}

KERNELS(int8_tile)
KERNELS(int4_bytes_tile)
KERNELS(int4_nibbles_tile)

/* One panel's nibbles as bytes. */
static void unpack_nibbles(const char *nibbles, int64_t num_groups, char *bytes) {
  const i32x16 low_halves = splat_i32(0x0f0f0f0f);
  for (int64_t group = 0; group < num_groups; group++) {
    for (int quad = 0; quad < QUADS / 2; quad++) {
      i32x16 line = load_i32(nibbles + quad * 64);
      store_i32(bytes + quad * 64, line & low_halves);
      store_i32(bytes + (quad + QUADS / 2) * 64, (i32x16)((u32x16)line >> 4) & low_halves);
    }
    nibbles += QUADS / 2 * 64;
    bytes += QUADS * 64;
  }
}

#endif
