/* bfloat16 weights and inputs.
 *
 *   codes  [R/16][I/2][16][2]: a line holds a pair of inputs of 16 outputs
 *   values [T/8][I/2][8][2]: the same pair of a block's tokens (fewer in the last block) side by side
 */
#ifndef EAGLE_MATRIX_BF16_H
#define EAGLE_MATRIX_BF16_H

#include "matrix_tile.h"

INLINE void bf16_tile(const eg_tile *tile, float *results, const int tokens, const int panels) {
  f32x16 sums[TILE_TOKENS][TILE_PANELS];
  UNROLL for (int t = 0; t < tokens; t++)
    UNROLL for (int p = 0; p < panels; p++) sums[t][p] = splat_f32(0);
  const char *line = tile->codes, *value = tile->values, *ahead = tile->ahead;
  for (int64_t pair = 0; pair < tile->num_inputs / 2; pair++) {
    i32x16 weights[TILE_PANELS];
    UNROLL for (int p = 0; p < panels; p++) {
      weights[p] = load_i32(line + p * tile->codes_stride);
      __builtin_prefetch(ahead, 0, 3);
      ahead += tile->ahead_step;
    }
    UNROLL for (int t = 0; t < tokens; t++) {
      i32x16 input = splat_i32(load_lane(value + 4 * t));
      UNROLL for (int p = 0; p < panels; p++) sums[t][p] = dot_bf16(sums[t][p], weights[p], input);
    }
    line += 64;
    value += 4 * tokens;
  }
  UNROLL for (int t = 0; t < tokens; t++)
    UNROLL for (int p = 0; p < panels; p++) store_f32(results + t * TILE_STRIDE + p * EG_PANEL, sums[t][p]);
}

KERNELS(bf16_tile)

#endif
