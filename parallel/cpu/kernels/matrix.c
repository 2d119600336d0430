/* Products with packed matrices. Strips of a few panels are shared out between threads; a strip meets the tokens block
 * by block while it lies in the cache, and the next strip is fetched meanwhile. */
#include "matrix.h"

#include <stdlib.h>

#include "matrix_bf16.h"
#include "matrix_inputs.h"
#include "matrix_pack.h"
#include "matrix_quantised.h"
#include "matrix_tile.h"

#define MAX_BLOCK_TOKENS 16

typedef struct product {
  const eg_matrix *matrix;
  const eg_inputs *inputs;
  float *y;
  int64_t y_stride;
  enum eg_output output;
  int is_gated;            /* y = silu(gate) * up; panel i of y is made of panels i and num_panels + i */
  int64_t num_panels;      /* of y */
  int64_t num_strips;      /* TILE_PANELS panels each */
  int64_t block_tokens;
  int64_t num_blocks;      /* of tokens */
  int64_t blocks_per_part; /* an item is a strip and a part of the blocks */
} product;

static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t divide_up_i64(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- what becomes of sums ---- */

/* Sixteen outputs of a token: bias and y's former contents are added as the product says. */
static void write_outputs(const product *p, int64_t token, int64_t panel, f32x16 sums) {
  int64_t output = panel * EG_PANEL, width = p->matrix->num_outputs - output;
  const float *bias = p->matrix->bias ? p->matrix->bias + output : NULL;
  float *y = p->y + token * p->y_stride + output;
  if (width >= EG_PANEL) {
    if (bias) sums += load_f32(bias);
    store_f32(y, p->output == EG_ADD ? load_f32(y) + sums : sums);
    return;
  }
  for (int64_t i = 0; i < width; i++) {
    float sum = bias ? sums[i] + bias[i] : sums[i];
    y[i] = p->output == EG_ADD ? y[i] + sum : sum;
  }
}

static void write_gated(const product *p, int64_t token, int64_t panel, f32x16 gate, f32x16 up) {
  const float *bias = p->matrix->bias;
  if (bias) {
    gate += load_f32(bias + panel * EG_PANEL);
    up += load_f32(bias + (p->num_panels + panel) * EG_PANEL);
  }
  store_f32(p->y + token * p->y_stride + panel * EG_PANEL, silu_f32(gate) * up);
}

/* ---- strips ---- */

/* Neighbouring panels and the kernels that multiply them. */
typedef struct strip {
  eg_tile tile; /* all but the inputs */
  eg_tile_kernel (*kernel_for)(int64_t tokens, int panels);
  int64_t fetches_per_tile;
} strip;

/* A strip of `panels` panels from `panel` on, of which the `panels_ahead` that follow are wanted next. */
static strip make_strip(const eg_matrix *matrix, int64_t panel, int panels, int64_t panels_ahead, int64_t num_blocks) {
  int64_t stride = panel_bytes_of(matrix->format, matrix->num_inputs);
  strip s = {.kernel_for = matrix->format == EG_BF16   ? bf16_kernel
                           : matrix->format == EG_INT8 ? int8_kernel
                                                       : int4_nibbles_kernel,
             .tile = {.codes = codes_of(matrix, panel),
                      .scales = scales_of(matrix, panel),
                      .codes_stride = stride,
                      .scales_stride = stride,
                      .num_inputs = matrix->num_inputs,
                      .ahead = scales_of(matrix, panel + panels)}};
  s.fetches_per_tile = (stride + 63) / 64 * panels;
  /* Nothing ahead: a step of 0 fetches a single line again and again, which costs nothing. */
  if (s.fetches_per_tile)
    s.tile.ahead_step = divide_up_i64(panels_ahead * stride, s.fetches_per_tile * num_blocks);
  return s;
}

/* Make a strip of nibbles one of bytes, in `memory`; worth it where several blocks of tokens meet it. */
static void unpack_strip(strip *s, int panels, char *memory) {
  int64_t bytes_stride = s->tile.num_inputs * EG_PANEL;
  for (int p = 0; p < panels; p++)
    unpack_nibbles(s->tile.codes + p * s->tile.codes_stride, s->tile.num_inputs / EG_GROUP, memory + p * bytes_stride);
  s->tile.codes = memory;
  s->tile.codes_stride = bytes_stride;
  s->kernel_for = int4_bytes_kernel;
  s->fetches_per_tile *= 2;
  s->tile.ahead_step /= 2;
}

static void multiply_block(const strip *s, const eg_inputs *inputs, int64_t block, int64_t fetched, int panels,
                           float *results) {
  int64_t block_tokens = block_tokens_of(inputs->format), token = block * block_tokens;
  int64_t value_bytes = inputs->format == EG_BF16 ? 2 : 1, num_groups = inputs->num_inputs / EG_GROUP;
  eg_tile tile = s->tile;
  tile.num_tokens = min_i64(inputs->num_tokens - token, block_tokens);
  tile.values = (const char *)inputs->values + token * inputs->num_inputs * value_bytes;
  tile.input_scales = inputs->scales + token * num_groups;
  tile.input_sums = (const char *)inputs->sums + token * num_groups * 4;
  tile.ahead += fetched * s->fetches_per_tile * tile.ahead_step;
  s->kernel_for(tile.num_tokens, panels)(&tile, results);
}

static void write_block(const product *p, int64_t block, int64_t panel, int panels,
                        float results[2][MAX_BLOCK_TOKENS][TILE_STRIDE]) {
  int64_t first = block * p->block_tokens, last = min_i64(first + p->block_tokens, p->inputs->num_tokens);
  for (int64_t token = first; token < last; token++)
    for (int i = 0; i < panels; i++) {
      f32x16 sums = load_f32(results[0][token - first] + i * EG_PANEL);
      if (p->is_gated)
        write_gated(p, token, panel + i, sums, load_f32(results[1][token - first] + i * EG_PANEL));
      else
        write_outputs(p, token, panel + i, sums);
    }
}

/* Fetch the lines of y that a block's results go to, so that they are there when its sums are. */
static void fetch_outputs(const product *p, int64_t block, int64_t panel, int panels) {
  int64_t first = block * p->block_tokens, last = min_i64(first + p->block_tokens, p->inputs->num_tokens);
  for (int64_t token = first; token < last; token++)
    for (int i = 0; i < panels; i++) __builtin_prefetch(p->y + token * p->y_stride + (panel + i) * EG_PANEL, 1, 3);
}

/* The outputs of `panels` panels for the blocks first .. last - 1. */
static void multiply_strip(const product *p, int64_t panel, int panels, int64_t panels_ahead, int64_t first,
                           int64_t last) {
  const eg_matrix *matrix = p->matrix;
  int num_strips = p->is_gated ? 2 : 1;
  strip strips[2];
  for (int i = 0; i < num_strips; i++) {
    int is_followed = panel + panels < p->num_panels || i == num_strips - 1;
    strips[i] = make_strip(matrix, panel + i * p->num_panels, panels, is_followed ? panels_ahead : 0, last - first);
  }
  if (matrix->format == EG_INT4 && last - first > 1) {
    int64_t bytes = (int64_t)panels * matrix->num_inputs * EG_PANEL;
    char *memory = eg_scratch((size_t)(num_strips * bytes));
    for (int i = 0; i < num_strips; i++) unpack_strip(&strips[i], panels, memory + i * bytes);
  }
  _Alignas(64) float results[2][MAX_BLOCK_TOKENS][TILE_STRIDE];
  for (int64_t block = first; block < last; block++) {
    fetch_outputs(p, block, panel, panels);
    for (int i = 0; i < num_strips; i++)
      multiply_block(&strips[i], p->inputs, block, block - first, panels, results[i][0]);
    write_block(p, block, panel, panels, results);
  }
}

static void multiply_items(void *context, int64_t first, int64_t last) {
  const product *p = context;
  for (int64_t item = first; item < last; item++) {
    int64_t first_block = item / p->num_strips * p->blocks_per_part;
    int64_t last_block = min_i64(first_block + p->blocks_per_part, p->num_blocks);
    int64_t panel = item % p->num_strips * TILE_PANELS, last_panel = min_i64(panel + TILE_PANELS, p->num_panels);
    int64_t panels_ahead = item + 1 < last ? min_i64(p->num_panels - last_panel, TILE_PANELS) : 0;
    /* Behind a matrix lies, as a rule, the one that is multiplied next. */
    if (last_panel == p->num_panels) panels_ahead = TILE_PANELS;
    if (last_panel - panel == TILE_PANELS)
      multiply_strip(p, panel, TILE_PANELS, panels_ahead, first_block, last_block);
    else
      for (; panel < last_panel; panel++) multiply_strip(p, panel, 1, 0, first_block, last_block);
  }
}

/* ---- products ---- */

/* Strips alone are shared out, unless they are too few for the threads and there are many tokens. */
static int64_t num_parts_of(const product *p, int64_t wanted_items) {
  const int64_t min_blocks = 4;
  return min_i64(divide_up_i64(wanted_items, p->num_strips), max_i64(p->num_blocks / min_blocks, 1));
}

/* So many that taking a chunk costs little beside it. */
static int64_t items_per_chunk_of(const product *p) {
  const int64_t chunk_ns = 8000, bytes_per_ns = 30, products_per_ns = 150;
  int64_t num_outputs = TILE_PANELS * EG_PANEL * (p->is_gated ? 2 : 1);
  int64_t num_bytes = panel_bytes_of(p->matrix->format, p->matrix->num_inputs) * num_outputs / EG_PANEL;
  int64_t num_products = p->blocks_per_part * p->block_tokens * p->matrix->num_inputs * num_outputs;
  return divide_up_i64(chunk_ns, max_i64(num_bytes / bytes_per_ns, num_products / products_per_ns) + 1);
}

static void run_product(eg_threads *threads, product *p) {
  const int64_t items_per_thread = 4;
  if (p->inputs->num_tokens == 0 || p->num_panels == 0) return;
  int64_t wanted_items = eg_num_threads(threads) * items_per_thread;
  p->block_tokens = block_tokens_of(p->matrix->format);
  p->num_blocks = divide_up_i64(p->inputs->num_tokens, p->block_tokens);
  p->num_strips = divide_up_i64(p->num_panels, TILE_PANELS);
  p->blocks_per_part = divide_up_i64(p->num_blocks, num_parts_of(p, wanted_items));
  int64_t num_items = p->num_strips * divide_up_i64(p->num_blocks, p->blocks_per_part);
  int64_t items_per_chunk = min_i64(num_items / wanted_items, items_per_chunk_of(p));
  eg_parallel(threads, num_items, max_i64(items_per_chunk, 1), multiply_items, p);
}

void eg_product(eg_threads *threads, const eg_matrix *matrix, const eg_inputs *inputs, float *y, int64_t y_stride,
                enum eg_output output) {
  product p = {.matrix = matrix, .inputs = inputs, .y = y, .y_stride = y_stride, .output = output};
  p.num_panels = num_panels_of(matrix->num_outputs);
  run_product(threads, &p);
}

void eg_product_silu_mul(eg_threads *threads, const eg_matrix *gate_up, const eg_inputs *inputs, float *y,
                         int64_t y_stride) {
  int64_t num_columns = gate_up->num_outputs / 2;
  if (num_columns % EG_PANEL == 0) {
    product p = {.matrix = gate_up, .inputs = inputs, .y = y, .y_stride = y_stride, .is_gated = 1};
    p.num_panels = num_columns / EG_PANEL;
    run_product(threads, &p);
    return;
  }
  /* Gate and up share a panel. No known model is sharded so, and it need only be right. */
  float *both = malloc((size_t)(inputs->num_tokens * 2 * num_columns) * sizeof(float) + 1);
  if (!both) abort();
  eg_product(threads, gate_up, inputs, both, 2 * num_columns, EG_STORE);
  for (int64_t token = 0; token < inputs->num_tokens; token++)
    eg_silu_mul(NULL, both + token * 2 * num_columns, 1, num_columns, y + token * y_stride);
  free(both);
}

void eg_matmul(eg_threads *threads, const eg_matrix *matrix, const float *x, int64_t num_tokens, float *y) {
  size_t bytes = eg_inputs_bytes(matrix->format, num_tokens, matrix->num_inputs);
  void *buffer = aligned_alloc(64, bytes + 64);
  if (!buffer) abort();
  eg_inputs inputs;
  eg_prepare(threads, matrix->format, x, matrix->num_inputs, num_tokens, matrix->num_inputs, buffer, &inputs);
  eg_product(threads, matrix, &inputs, y, matrix->num_outputs, EG_STORE);
  free(buffer);
}
