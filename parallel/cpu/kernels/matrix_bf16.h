/* bfloat16 weights and inputs, in vectors; matrix_amx.h has them in tile registers.
 *
 *   codes  [I/2][16][2]: a line holds a pair of inputs of a panel's 16 outputs
 *   values [T/8][I/2][8][2]: the same pair of a block's tokens side by side
 * (Blocks are of TILE_TOKENS tokens, 8 at best, the last of those that are left.)
 */
#ifndef EAGLE_MATRIX_BF16_H
#define EAGLE_MATRIX_BF16_H

#if defined(__AMX_BF16__)
#include "matrix_amx.h"
#else

#include "matrix_tile.h"

#define BF16_TOKENS TILE_TOKENS /* of a block */

/* Bytes between a token's pairs of inputs. */
INLINE int64_t bf16_pair_stride(int64_t tokens) { return 4 * tokens; }
/* Bytes between the values of a block's tokens. */
INLINE int64_t bf16_token_stride(int64_t num_inputs) { return (void)num_inputs, 4; }

INLINE void bf16(const eg_tile *tile, float *results, const int tokens, const int panels) {
  const int vectors = panels * VECTORS_PER_PANEL;
  vf sums[TILE_TOKENS][TILE_VECTORS];
  UNROLLED for (int t = 0; t < tokens; t++)
    UNROLLED for (int v = 0; v < vectors; v++) sums[t][v] = vf_splat(0);
  const char *line = tile->codes, *value = tile->values, *ahead = tile->ahead;
  for (int64_t pair = 0; pair < tile->num_inputs / 2; pair++) {
    vi weights[TILE_VECTORS];
    UNROLLED for (int v = 0; v < vectors; v++) weights[v] = vi_load(line + vector_offset(v, tile->codes_stride, 4));
    UNROLLED for (int p = 0; p < panels; p++) {
      __builtin_prefetch(ahead, 0, 3);
      ahead += tile->ahead_step;
    }
    UNROLLED for (int t = 0; t < tokens; t++) {
      vi input = vi_splat(load_lane(value + 4 * t));
      UNROLLED for (int v = 0; v < vectors; v++) sums[t][v] = vf_dot_bf16(sums[t][v], weights[v], input);
    }
    line += 4 * EG_PANEL;
    value += 4 * tokens;
  }
  store_results(results, sums, tokens, vectors);
}

KERNELS(bf16)

#endif
#endif
