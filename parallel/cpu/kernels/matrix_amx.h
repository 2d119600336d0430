/* bfloat16 products in AMX tile registers: sixteen tokens by three panels, 32 inputs at a time.
 *
 *   codes  as in matrix_bf16.h: 16 lines of a panel are a tile of 32 inputs and 16 outputs
 *   values [T][I], rows as they are
 * A row of a tile is added up without regard to the other rows, so a token's bits do not depend on its block.
 */
#ifndef EAGLE_MATRIX_AMX_H
#define EAGLE_MATRIX_AMX_H

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "matrix_tile.h"

/* Ask Linux for the tile registers, for all threads of the process; 0 or an errno. */
static int amx_enable(void) {
  const long request_permission = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
  return syscall(SYS_arch_prctl, request_permission, tile_data) ? errno : 0;
}

#define BF16_TOKENS 16 /* of a block */
#define AMX_INPUTS 32  /* of a tile */

/* Registers 0 to 2 are sums of a panel each. The last inputs may be fewer and have registers of their own. */
#define AMX_VALUES 3
#define AMX_CODES 4
#define AMX_LAST_VALUES 5
#define AMX_LAST_CODES 6

/* Bytes between a token's pairs of inputs. */
INLINE int64_t bf16_pair_stride(int64_t tokens) { return (void)tokens, 4; }
/* Bytes between the values of a block's tokens. */
INLINE int64_t bf16_token_stride(int64_t num_inputs) { return 2 * num_inputs; }

typedef struct amx_shapes {
  _Alignas(64) uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} amx_shapes;

static void amx_configure(int64_t num_tokens, int64_t num_last_inputs) {
  amx_shapes shapes = {.palette = 1};
  for (int sums = 0; sums < TILE_PANELS; sums++) shapes.rows[sums] = (uint8_t)num_tokens, shapes.row_bytes[sums] = 64;
  shapes.rows[AMX_VALUES] = (uint8_t)num_tokens, shapes.row_bytes[AMX_VALUES] = 2 * AMX_INPUTS;
  shapes.rows[AMX_CODES] = AMX_INPUTS / 2, shapes.row_bytes[AMX_CODES] = 64;
  if (num_last_inputs) {
    shapes.rows[AMX_LAST_VALUES] = (uint8_t)num_tokens;
    shapes.row_bytes[AMX_LAST_VALUES] = (uint16_t)(2 * num_last_inputs);
    shapes.rows[AMX_LAST_CODES] = (uint8_t)(num_last_inputs / 2), shapes.row_bytes[AMX_LAST_CODES] = 64;
  }
  /* The compiler takes it that the first bytes of the shapes and no values are read; all must have been written. */
  __asm__ volatile("" : : "r"(&shapes) : "memory");
  _tile_loadconfig(&shapes);
}

/* Add a tile's products to the sums of each panel. */
#define AMX_MULTIPLY(values_register, codes_register) \
  do { \
    _tile_loadd(values_register, values, value_bytes); \
    _tile_loadd(codes_register, codes, 64); \
    _tile_dpbf16ps(0, values_register, codes_register); \
    if (panels > 1) { \
      _tile_loadd(codes_register, codes + tile->codes_stride, 64); \
      _tile_dpbf16ps(1, values_register, codes_register); \
      _tile_loadd(codes_register, codes + 2 * tile->codes_stride, 64); \
      _tile_dpbf16ps(2, values_register, codes_register); \
    } \
  } while (0)

INLINE void amx_tile(const eg_tile *tile, float *results, const int panels) {
  int64_t num_last_inputs = tile->num_inputs % AMX_INPUTS, value_bytes = bf16_token_stride(tile->num_inputs);
  const char *codes = tile->codes, *values = tile->values, *ahead = tile->ahead;
  amx_configure(tile->num_tokens, num_last_inputs);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  for (int64_t i = 0; i < tile->num_inputs / AMX_INPUTS; i++) {
    for (int line = 0; line < AMX_INPUTS / 2 * panels; line++, ahead += tile->ahead_step)
      __builtin_prefetch(ahead, 0, 3);
    AMX_MULTIPLY(AMX_VALUES, AMX_CODES);
    codes += AMX_INPUTS / 2 * 64;
    values += AMX_INPUTS * 2;
  }
  if (num_last_inputs) AMX_MULTIPLY(AMX_LAST_VALUES, AMX_LAST_CODES);
  _tile_stored(0, results, TILE_STRIDE * 4);
  if (panels > 1) {
    _tile_stored(1, results + EG_PANEL, TILE_STRIDE * 4);
    _tile_stored(2, results + 2 * EG_PANEL, TILE_STRIDE * 4);
  }
  /* Registers in use make every switch between threads dearer. */
  _tile_release();
}

static void amx_tile_1(const eg_tile *tile, float *results) { amx_tile(tile, results, 1); }
static void amx_tile_3(const eg_tile *tile, float *results) { amx_tile(tile, results, 3); }
static eg_tile_kernel bf16_kernel(int64_t tokens, int panels) {
  return (void)tokens, panels == 1 ? amx_tile_1 : amx_tile_3;
}

#endif
