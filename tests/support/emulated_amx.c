/* The CPU kernels of the amx level with its tile registers in plain memory, so that any machine can run them. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tile_shapes;

static _Thread_local tile_shapes shapes; /* palette 0: not configured, and every use is a fault */
static _Thread_local uint8_t tiles[8][16][64];

static void check(int is_right) {
  if (!is_right) __builtin_trap();
}

static void _tile_loadconfig(const void *config) {
  memcpy(&shapes, config, sizeof shapes);
  check(shapes.palette == 1 && shapes.start_row == 0);
  for (int i = 0; i < 14; i++) check(shapes.reserved[i] == 0);
  for (int i = 0; i < 16; i++) {
    check(shapes.rows[i] <= (i < 8 ? 16 : 0) && shapes.row_bytes[i] <= (i < 8 ? 64 : 0));
    check((shapes.rows[i] == 0) == (shapes.row_bytes[i] == 0));
  }
}

static void _tile_release(void) { memset(&shapes, 0, sizeof shapes); }

static void _tile_zero(int tile) {
  check(shapes.rows[tile] > 0);
  memset(tiles[tile], 0, sizeof tiles[tile]);
}

static void _tile_loadd(int tile, const void *base, long stride) {
  check(shapes.rows[tile] > 0);
  memset(tiles[tile], 0, sizeof tiles[tile]);
  for (int row = 0; row < shapes.rows[tile]; row++)
    memcpy(tiles[tile][row], (const char *)base + row * stride, shapes.row_bytes[tile]);
}

static void _tile_stored(int tile, void *base, long stride) {
  check(shapes.rows[tile] > 0);
  for (int row = 0; row < shapes.rows[tile]; row++)
    memcpy((char *)base + row * stride, tiles[tile][row], shapes.row_bytes[tile]);
}

static float bf16_at(const uint8_t *row, int index) {
  uint32_t bits = 0;
  memcpy((char *)&bits + 2, row + 2 * index, 2);
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static void _tile_dpbf16ps(int sums, int a, int b) {
  check(shapes.rows[sums] == shapes.rows[a] && shapes.row_bytes[sums] == shapes.row_bytes[b]);
  check(shapes.row_bytes[a] == 4 * shapes.rows[b]);
  for (int row = 0; row < shapes.rows[sums]; row++)
    for (int pair = 0; pair < shapes.rows[b]; pair++)
      for (int column = 0; column < shapes.row_bytes[sums] / 4; column++) {
        float sum;
        memcpy(&sum, tiles[sums][row] + 4 * column, 4);
        for (int i = 0; i < 2; i++)
          sum += bf16_at(tiles[a][row], 2 * pair + i) * bf16_at(tiles[b][pair], 2 * column + i);
        memcpy(tiles[sums][row] + 4 * column, &sum, 4);
      }
}

#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define eg_enable ask_for_real_tiles
#include "eagle.c"
#undef eg_enable
int eg_enable(void) { return 0; }
