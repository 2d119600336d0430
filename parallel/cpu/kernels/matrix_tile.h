/* A tile: the outputs of a few tokens and a few panels that are added up in registers, the unit every product is made
 * of. One kernel per format and shape computes it; which shapes depends on how many registers the level has. */
#ifndef EAGLE_MATRIX_TILE_H
#define EAGLE_MATRIX_TILE_H

#include "eagle.h"
#include "lanes.h"

/* Sums and weights of a tile fit the level's registers. */
#if LANES == 16
#define TILE_TOKENS 8
#define TILE_PANELS 3
#elif LANES == 8
#define TILE_TOKENS 4
#define TILE_PANELS 1
#else
#define TILE_TOKENS 2
#define TILE_PANELS 1
#endif
#define TILE_STRIDE (TILE_PANELS * EG_PANEL) /* floats between two tokens of a tile's results */
#define VECTORS_PER_PANEL (EG_PANEL / LANES)
#define TILE_VECTORS (TILE_PANELS * VECTORS_PER_PANEL)

typedef struct eg_tile {
  const char *codes;     /* of the first panel */
  const char *scales;    /* of the first panel; quantised formats only */
  int64_t codes_stride;  /* bytes between panels */
  int64_t scales_stride; /* bytes between panels */
  int64_t num_inputs;
  int64_t num_tokens;
  /* The block's inputs, as eg_prepare left them. */
  const void *values;
  const float *input_scales;
  const void *input_sums;
  /* Memory that is wanted next, fetched in steps while this tile is computed. */
  const char *ahead;
  int64_t ahead_step;
} eg_tile;

/* results[token][panel][lane], TILE_STRIDE floats between tokens. */
typedef void (*eg_tile_kernel)(const eg_tile *tile, float *results);

/* Where a vector's part of a line lies, `stride` bytes between panels and `lane_bytes` between lanes. */
INLINE int64_t vector_offset(int vector, int64_t stride, int lane_bytes) {
  return vector / VECTORS_PER_PANEL * stride + vector % VECTORS_PER_PANEL * LANES * lane_bytes;
}

INLINE int32_t load_lane(const void *p) {
  int32_t lane;
  memcpy(&lane, p, 4);
  return lane;
}

INLINE void store_results(float *results, vf sums[TILE_TOKENS][TILE_VECTORS], int tokens, int vectors) {
  UNROLLED for (int t = 0; t < tokens; t++)
    UNROLLED for (int v = 0; v < vectors; v++) vf_store(results + t * TILE_STRIDE + v * LANES, sums[t][v]);
}

/* Of an inline function name(tile, results, tokens, panels) KERNELS(name) makes name_kernel(tokens, panels), which
 * returns the kernel of that shape. Panels are one or TILE_PANELS. */
#define KERNEL(name, tokens, panels) \
  static void name##_##tokens##x##panels(const eg_tile *tile, float *results) { name(tile, results, tokens, panels); }
#define KERNEL_CHOICE(name, ...) \
  static eg_tile_kernel name##_kernel(int64_t tokens, int panels) { \
    static const eg_tile_kernel kernels[TILE_TOKENS][2] = {__VA_ARGS__}; \
    return kernels[tokens - 1][panels > 1]; \
  }
#if LANES == 16
#define KERNELS(name) \
  KERNEL(name, 1, 1) KERNEL(name, 2, 1) KERNEL(name, 3, 1) KERNEL(name, 4, 1) \
  KERNEL(name, 5, 1) KERNEL(name, 6, 1) KERNEL(name, 7, 1) KERNEL(name, 8, 1) \
  KERNEL(name, 1, 3) KERNEL(name, 2, 3) KERNEL(name, 3, 3) KERNEL(name, 4, 3) \
  KERNEL(name, 5, 3) KERNEL(name, 6, 3) KERNEL(name, 7, 3) KERNEL(name, 8, 3) \
  KERNEL_CHOICE(name, \
      {name##_1x1, name##_1x3}, {name##_2x1, name##_2x3}, {name##_3x1, name##_3x3}, {name##_4x1, name##_4x3}, \
      {name##_5x1, name##_5x3}, {name##_6x1, name##_6x3}, {name##_7x1, name##_7x3}, {name##_8x1, name##_8x3})
#elif LANES == 8
#define KERNELS(name) \
  KERNEL(name, 1, 1) KERNEL(name, 2, 1) KERNEL(name, 3, 1) KERNEL(name, 4, 1) \
  KERNEL_CHOICE(name, {name##_1x1}, {name##_2x1}, {name##_3x1}, {name##_4x1})
#else
#define KERNELS(name) KERNEL(name, 1, 1) KERNEL(name, 2, 1) KERNEL_CHOICE(name, {name##_1x1}, {name##_2x1})
#endif

#endif
