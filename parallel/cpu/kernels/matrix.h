/* Products with packed matrices, in the two halves a step needs: inputs rounded once, then any number of products whose
 * results go where the step wants them. eg_matmul is the two in a row.
 *
 * An output is added up in one order, input after input (quantised: group after group), whatever the number of tokens
 * or threads, so the same token gets the same bits in every batch. */
#ifndef EAGLE_MATRIX_H
#define EAGLE_MATRIX_H

#include "eagle.h"
#include "threads.h"

/* x[T][I] as one format multiplies it, in blocks of 8 tokens. Filled in by eg_prepare; memory belongs to the caller. */
typedef struct eg_inputs {
  int32_t format; /* of the matrices it may be multiplied with */
  int32_t num_inputs;
  int64_t num_tokens;
  const void *values;  /* bfloat16, or int8 with a scale and a sum per group */
  const float *scales; /* quantised formats only */
  const void *sums;    /* quantised formats only; what the codes' offset adds */
} eg_inputs;

/* Bytes of the buffer eg_prepare wants; 0 for no tokens. */
size_t eg_inputs_bytes(int32_t format, int64_t num_tokens, int32_t num_inputs);

/* Round x[T][I], `x_stride` floats from token to token, into `buffer` (64-byte aligned, eg_inputs_bytes of it). The
 * result stays good until the buffer is written again and fits every matrix of this format and width. */
void eg_prepare(eg_threads *threads, int32_t format, const float *x, int64_t x_stride, int64_t num_tokens,
                int32_t num_inputs, void *buffer, eg_inputs *inputs);

enum eg_output {
  EG_STORE = 0, /* y = x W^T + bias */
  EG_ADD = 1    /* y = y + (x W^T + bias): into the residual stream */
};

/* The product into y[T][R], `y_stride` floats from token to token. */
void eg_product(eg_threads *threads, const eg_matrix *matrix, const eg_inputs *inputs, float *y, int64_t y_stride,
                enum eg_output output);

/* y[T][F] = silu(gate) * up, where gate_up's 2F outputs are gate's, then up's. The same bits as a product into [T][2F]
 * followed by eg_silu_mul, without that round trip. */
void eg_product_silu_mul(eg_threads *threads, const eg_matrix *gate_up, const eg_inputs *inputs, float *y,
                         int64_t y_stride);

#endif
