/* Where a weight lies in a packed matrix: packing, and reading single rows back for embeddings. */
#ifndef EAGLE_MATRIX_PACK_H
#define EAGLE_MATRIX_PACK_H

#include "matrix.h"
#include "simd.h"

INLINE int64_t num_panels_of(int32_t num_outputs) { return (num_outputs + EG_PANEL - 1) / EG_PANEL; }
INLINE int64_t num_groups_of(int32_t num_inputs) { return num_inputs / EG_GROUP; }

/* A panel is its scales (quantised formats only), padded to a line, and then its codes. Bytes of each: */
INLINE int64_t scales_bytes_of(int32_t format, int32_t num_inputs) {
  int64_t scales_per_group = format == EG_BF16 ? 0 : format == EG_INT8 ? EG_PANEL : 2 * EG_PANEL;
  return (num_groups_of(num_inputs) * scales_per_group * 2 + 63) / 64 * 64;
}
INLINE int64_t codes_bytes_of(int32_t format, int32_t num_inputs) {
  int64_t half_bytes = format == EG_BF16 ? 4 : format == EG_INT8 ? 2 : 1;
  return (int64_t)num_inputs * EG_PANEL * half_bytes / 2;
}
INLINE int64_t panel_bytes_of(int32_t format, int32_t num_inputs) {
  return scales_bytes_of(format, num_inputs) + codes_bytes_of(format, num_inputs);
}

INLINE char *scales_of(const eg_matrix *matrix, int64_t panel) {
  return (char *)matrix->packed + panel * panel_bytes_of(matrix->format, matrix->num_inputs);
}
INLINE char *codes_of(const eg_matrix *matrix, int64_t panel) {
  return scales_of(matrix, panel) + scales_bytes_of(matrix->format, matrix->num_inputs);
}

size_t eg_packed_bytes(int32_t format, int32_t num_outputs, int32_t num_inputs) {
  return (size_t)(num_panels_of(num_outputs) * panel_bytes_of(format, num_inputs));
}

/* ---- packing: panel by panel, lanes past the last output are zeros ---- */

void eg_pack_bf16(const eg_matrix *matrix, int32_t first, int32_t count, const eg_bf16 *weights) {
  int64_t num_inputs = matrix->num_inputs;
  for (int64_t output = 0; output < count; output += EG_PANEL) {
    const eg_bf16 *rows = weights + output * num_inputs;
    eg_bf16 *line = (eg_bf16 *)codes_of(matrix, (first + output) / EG_PANEL);
    int64_t num_lanes = count - output < EG_PANEL ? count - output : EG_PANEL;
    for (int64_t input = 0; input < num_inputs; input += 2, line += 2 * EG_PANEL) {
      memset(line, 0, 4 * EG_PANEL);
      for (int64_t lane = 0; lane < num_lanes; lane++) memcpy(line + 2 * lane, rows + lane * num_inputs + input, 4);
    }
  }
}

/* scales[group][lane] = rows[lane][group], `to_stride` float16s between groups. */
static void pack_scales(uint16_t *to, int64_t to_stride, const uint16_t *rows, int64_t num_groups, int64_t num_lanes) {
  for (int64_t group = 0; group < num_groups; group++, to += to_stride)
    for (int64_t lane = 0; lane < EG_PANEL; lane++) to[lane] = lane < num_lanes ? rows[lane * num_groups + group] : 0;
}

void eg_pack_int8(const eg_matrix *matrix, int32_t first, int32_t count, const int8_t *codes, const uint16_t *scales) {
  int64_t num_inputs = matrix->num_inputs, num_groups = num_groups_of(matrix->num_inputs);
  for (int64_t output = 0; output < count; output += EG_PANEL) {
    const int8_t *rows = codes + output * num_inputs;
    int64_t panel = (first + output) / EG_PANEL;
    uint8_t *line = (uint8_t *)codes_of(matrix, panel);
    int64_t num_lanes = count - output < EG_PANEL ? count - output : EG_PANEL;
    for (int64_t input = 0; input < num_inputs; input += 4, line += 4 * EG_PANEL) {
      memset(line, 128, 4 * EG_PANEL);
      for (int64_t lane = 0; lane < num_lanes; lane++)
        for (int i = 0; i < 4; i++) line[4 * lane + i] = (uint8_t)(rows[lane * num_inputs + input + i] + 128);
    }
    pack_scales((uint16_t *)scales_of(matrix, panel), EG_PANEL, scales + output * num_groups, num_groups, num_lanes);
  }
}

void eg_pack_int4(const eg_matrix *matrix, int32_t first, int32_t count, const uint8_t *codes, const uint16_t *scales,
                  const uint16_t *minimums) {
  int64_t num_inputs = matrix->num_inputs, num_groups = num_groups_of(matrix->num_inputs);
  for (int64_t output = 0; output < count; output += EG_PANEL) {
    const uint8_t *rows = codes + output * num_inputs;
    int64_t panel = (first + output) / EG_PANEL;
    uint8_t *line = (uint8_t *)codes_of(matrix, panel);
    uint16_t *packed_scales = (uint16_t *)scales_of(matrix, panel);
    int64_t num_lanes = count - output < EG_PANEL ? count - output : EG_PANEL;
    for (int64_t group = 0; group < num_groups; group++) {
      for (int64_t near = group * EG_GROUP; near < group * EG_GROUP + 16; near += 4, line += 4 * EG_PANEL) {
        memset(line, 0, 4 * EG_PANEL);
        for (int64_t lane = 0; lane < num_lanes; lane++) {
          const uint8_t *row = rows + lane * num_inputs + near;
          for (int i = 0; i < 4; i++) line[4 * lane + i] = (uint8_t)(row[i] | row[i + 16] << 4);
        }
      }
    }
    pack_scales(packed_scales, 2 * EG_PANEL, scales + output * num_groups, num_groups, num_lanes);
    pack_scales(packed_scales + EG_PANEL, 2 * EG_PANEL, minimums + output * num_groups, num_groups, num_lanes);
  }
}

/* ---- embeddings: one lane of a panel ---- */

static float f32_of_one_f16(uint16_t half) {
  u16x16 lanes = {half};
  return f32_of_f16(lanes)[0];
}

static float f32_of_one_bf16(eg_bf16 half) {
  uint32_t bits = (uint32_t)half << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static void read_bf16_row(const eg_matrix *matrix, int64_t output, float *x) {
  const eg_bf16 *pair = (const eg_bf16 *)codes_of(matrix, output / EG_PANEL) + output % EG_PANEL * 2;
  for (int64_t input = 0; input < matrix->num_inputs; input += 2, pair += 2 * EG_PANEL) {
    x[input] = f32_of_one_bf16(pair[0]);
    x[input + 1] = f32_of_one_bf16(pair[1]);
  }
}

static void read_int8_row(const eg_matrix *matrix, int64_t output, float *x) {
  int64_t num_groups = num_groups_of(matrix->num_inputs);
  const uint8_t *quad = (const uint8_t *)codes_of(matrix, output / EG_PANEL) + output % EG_PANEL * 4;
  const uint16_t *scale = (const uint16_t *)scales_of(matrix, output / EG_PANEL) + output % EG_PANEL;
  for (int64_t group = 0; group < num_groups; group++, scale += EG_PANEL) {
    float s = f32_of_one_f16(*scale);
    for (int q = 0; q < EG_GROUP / 4; q++, quad += 4 * EG_PANEL)
      for (int i = 0; i < 4; i++) *x++ = s * (float)(quad[i] - 128);
  }
}

static void read_int4_row(const eg_matrix *matrix, int64_t output, float *x) {
  int64_t num_groups = num_groups_of(matrix->num_inputs);
  const uint8_t *quad = (const uint8_t *)codes_of(matrix, output / EG_PANEL) + output % EG_PANEL * 4;
  const uint16_t *scale = (const uint16_t *)scales_of(matrix, output / EG_PANEL) + output % EG_PANEL;
  for (int64_t group = 0; group < num_groups; group++, scale += 2 * EG_PANEL, x += EG_GROUP) {
    float s = f32_of_one_f16(scale[0]), minimum = f32_of_one_f16(scale[EG_PANEL]);
    for (int q = 0; q < EG_GROUP / 2; q += 4, quad += 4 * EG_PANEL)
      for (int i = 0; i < 4; i++) {
        x[q + i] = s * (float)(quad[i] & 15) + minimum;
        x[q + i + 16] = s * (float)(quad[i] >> 4) + minimum;
      }
  }
}

typedef struct lookup {
  const eg_matrix *matrix;
  const int64_t *outputs;
  float *x;
} lookup;

static void look_up(void *context, int64_t first, int64_t last) {
  const lookup *l = context;
  for (int64_t token = first; token < last; token++) {
    int64_t output = l->outputs[token];
    float *x = l->x + token * l->matrix->num_inputs;
    if (output < 0 || output >= l->matrix->num_outputs)
      memset(x, 0, (size_t)l->matrix->num_inputs * sizeof(float));
    else if (l->matrix->format == EG_BF16)
      read_bf16_row(l->matrix, output, x);
    else if (l->matrix->format == EG_INT8)
      read_int8_row(l->matrix, output, x);
    else
      read_int4_row(l->matrix, output, x);
  }
}

void eg_embed(eg_threads *threads, const eg_matrix *matrix, const int64_t *outputs, int64_t num_tokens, float *x) {
  lookup l = {matrix, outputs, x};
  eg_parallel(threads, num_tokens, 16, look_up, &l);
}

#endif
