/* The C ABI of the CPU tier: what Python may call, and the structs it fills in. No torch, no C++.
 *
 * T tokens in step, B rows in step, S rows that sample, D model dim, H query heads on this rank, K kv heads on this
 * rank, E head dim, R outputs and I inputs of a matrix, V vocabulary rows on this rank, N KV blocks, P tokens a block.
 *
 * Activations between operations are float32. A matrix product rounds its inputs to what its weights are multiplied
 * with (bfloat16, or int8 with a scale per 32 inputs) and adds in float32.
 *
 * Every result of a token depends on that token's own data alone and is added up in an order fixed by positions and
 * features: not by the other rows of the step, nor by the number of threads. So a request's tokens are the same alone,
 * in a batch, and after a resume.
 *
 * One library is compiled per instruction-set level from the same sources; Python loads the best one the CPU has.
 */
#ifndef EAGLE_H
#define EAGLE_H

#include <stddef.h>
#include <stdint.h>

#define EG_ABI_VERSION 1
#define EG_PANEL 16 /* outputs that are packed side by side: the lanes of one vector of float32 */
#define EG_GROUP 32 /* inputs that share a scale in quantised formats */

typedef uint16_t eg_bf16;

enum eg_format { EG_BF16 = 0, EG_INT8 = 1, EG_INT4 = 2 };
enum eg_kv_format { EG_KV_BF16 = 0, EG_KV_INT8 = 1 };

/* Results of calls that can fail. */
enum eg_status { EG_OK = 0, EG_PEER_DIED = 1, EG_TIMED_OUT = 2 };

int eg_abi_version(void);
const char *eg_level(void); /* "amx", "avx512_bf16", "avx512", "avx2" or "portable" */
/* Ask the system for what the level's instructions need, for the whole process. 0, or an errno: they must not be used. */
int eg_enable(void);

/* ---- threads: the caller works too; helpers that are asleep or descheduled are not waited for ---- */

typedef struct eg_threads eg_threads;
eg_threads *eg_threads_start(int num_threads);
void eg_threads_stop(eg_threads *threads);

/* ---- matrices: y = x W^T + bias, W packed in panels of 16 outputs ---- */

typedef struct eg_matrix {
  int32_t format;
  int32_t num_outputs; /* R; the last panel is padded with zeros */
  int32_t num_inputs;  /* I; a multiple of 2, of 32 in quantised formats */
  int32_t unused;
  const void *packed;  /* codes and scales, 64-byte aligned; layout: matrix_pack.h */
  const float *bias;   /* [R] or null */
} eg_matrix;

/* Bytes of `packed`. */
size_t eg_packed_bytes(int32_t format, int32_t num_outputs, int32_t num_inputs);

/* Pack outputs first .. first + count of a matrix whose buffer is in place; `first` is a multiple of 16, and so is
 * `count` unless it ends the matrix.
 *   bf16: weights [count][I].
 *   int8: codes [count][I] int8, scales [count][I/32] float16.   w = scale * code
 *   int4: codes [count][I] uint8 0..15, scales and minimums [count][I/32] float16.   w = scale * code + minimum */
void eg_pack_bf16(const eg_matrix *matrix, int32_t first, int32_t count, const eg_bf16 *weights);
void eg_pack_int8(const eg_matrix *matrix, int32_t first, int32_t count, const int8_t *codes, const uint16_t *scales);
void eg_pack_int4(const eg_matrix *matrix, int32_t first, int32_t count, const uint8_t *codes, const uint16_t *scales,
                  const uint16_t *minimums);

/* y[T][R] = x[T][I] W^T + bias. */
void eg_matmul(eg_threads *threads, const eg_matrix *matrix, const float *x, int64_t num_tokens, float *y);

/* x[T][I]: the rows `outputs` of W as float32; outputs outside 0 .. R-1 give zeros (another rank holds them). */
void eg_embed(eg_threads *threads, const eg_matrix *matrix, const int64_t *outputs, int64_t num_tokens, float *x);

/* ---- element-wise ---- */

/* y[T][D] = x / sqrt(mean(x^2) + eps) * weight[D]. x and y may be the same. */
void eg_rms_norm(eg_threads *threads, const float *x, const float *weight, float eps, int64_t num_tokens, int64_t size,
                 float *y);
/* residual += x, then y = rms_norm(residual). */
void eg_add_rms_norm(eg_threads *threads, const float *x, float *residual, const float *weight, float eps,
                     int64_t num_tokens, int64_t size, float *y);
/* y[T][F] = silu(gate_up[T][:F]) * gate_up[T][F:]. */
void eg_silu_mul(eg_threads *threads, const float *gate_up, int64_t num_tokens, int64_t size, float *y);

/* ---- paged attention ---- */

/* One layer's KV on this rank. bfloat16, or int8 with a float32 scale per token and kv head.
 *   keys   [N][K][P/16][E/2][16][2]: pairs of features of 16 tokens side by side
 *   values [N][K][P/2][E][2]: pairs of tokens side by side, feature by feature */
typedef struct eg_kv {
  void *keys;
  void *values;
  float *key_scales;   /* [N][K][P], int8 only */
  float *value_scales; /* [N][K][P], int8 only */
} eg_kv;

typedef struct eg_heads {
  int32_t num_query_heads; /* H, on this rank; head h reads kv head h / (H / K) */
  int32_t num_kv_heads;    /* K */
  int32_t head_dim;        /* E; a multiple of 32, at most 256 */
  int32_t block_size;      /* P; a multiple of 16 */
  int32_t kv_format;
  float scale;             /* of q k^T */
  float eps;               /* of q_norm and k_norm */
  int32_t unused;
} eg_heads;

/* The ragged shape of one step, as the rank's row table gives it. Tokens of a row are adjacent. */
typedef struct eg_batch {
  int64_t num_tokens;           /* T */
  int64_t num_rows;             /* B */
  int64_t num_sampled;          /* S */
  int64_t table_stride;         /* elements between two rows of block_table */
  const int64_t *token_ids;     /* [T] */
  const int64_t *positions;     /* [T] */
  const int64_t *slots;         /* [T], where each token's KV goes: block * P + offset */
  const int64_t *query_lens;    /* [B], tokens computed now */
  const int64_t *context_lens;  /* [B], tokens in the cache once this step has written its own */
  const int64_t *block_table;   /* [B][table_stride], block ids */
  const int64_t *last_tokens;   /* [S], index into T of the tokens that sample */
} eg_batch;

/* rotation[T][E]: cosines of positions times frequencies[E/2] (radians per position), then their sines. Made once a step
 * for all layers. */
void eg_rotation(eg_threads *threads, const eg_batch *batch, const float *frequencies, int32_t head_dim,
                 float *rotation);

/* Norm (if weights are given), rotate, and write K and V of every token; q[T][H*E] is left rotated in place.
 *   qkv [T][(H + 2K) * E]: q, k, v side by side. q_norm, k_norm [E] or null.
 * Keys and values that are not finite are written as zeros, because a block outlives its request. */
void eg_rotate_and_write(eg_threads *threads, const eg_heads *heads, const eg_kv *kv, const eg_batch *batch,
                         const float *rotation, const float *q_norm, const float *k_norm, float *qkv);

/* Which queries of a step are computed together, and what each thread takes: attention_plan.c. Made once a step for all
 * layers, with the threads that will run it; grows to the largest step seen. Refers to the batch's block table. */
typedef struct eg_attention_plan eg_attention_plan;
eg_attention_plan *eg_attention_plan_new(void);
void eg_attention_plan_free(eg_attention_plan *plan);
void eg_plan_attention(eg_attention_plan *plan, const eg_threads *threads, const eg_heads *heads,
                       const eg_batch *batch);

/* out[T][H*E] = causal attention of the rotated queries in qkv over the cache. Rows that read the same blocks at the
 * same place read them once for all of them. */
void eg_attend(eg_threads *threads, const eg_heads *heads, const eg_kv *kv, eg_attention_plan *plan, const float *qkv,
               float *out);

/* ---- collectives between processes of one machine; every rank makes the same calls in the same order ---- */

#define EG_MAX_RANKS 64

typedef struct eg_group eg_group; /* a shared segment and the peers' processes; all_reduce.c */

/* Bytes of the segment that the ranks of a group share; a new one is all zeros. */
size_t eg_group_bytes(int32_t world_size);
/* Map the segment behind `fd`, which stays the caller's, and watch the processes pids[world_size]. Returns an errno. A
 * collective in which a peer does not arrive for `timeout_s` fails. */
int eg_group_open(int fd, int32_t rank, int32_t world_size, const int32_t *pids, double timeout_s, eg_group **group);
/* Leave: the others' collectives fail from now on. */
void eg_group_close(eg_group *group);
/* The rank that a failed call waited for. */
int32_t eg_group_missing(const eg_group *group);

/* The three return an eg_status; after a failure only eg_group_missing and eg_group_close may follow. A killed peer is
 * seen within some 10 ms, one that stopped after the timeout. */

/* x[size] = sum over ranks, added in rank order: the same bits on every rank. */
int eg_all_reduce(eg_group *group, float *x, int64_t size);
/* gathered[world_size][num_bytes] = x[num_bytes] of every rank. */
int eg_all_gather(eg_group *group, const void *x, int64_t num_bytes, void *gathered);
int eg_barrier(eg_group *group);

/* ---- signs of life; pulse.c ---- */

typedef struct eg_pulse eg_pulse; /* a thread that sends */

/* Send an empty frame on the socket `fd` now and every `interval_s`, until it breaks or eg_pulse_stop. Returns an errno. */
int eg_pulse_start(int fd, double interval_s, eg_pulse **pulse);
/* Send a frame between two beats; returns whether it was sent. */
int eg_pulse_say(eg_pulse *pulse, const void *data, uint32_t size);
/* End the thread. A send that blocks has to be broken first, by shutting the socket down. */
void eg_pulse_stop(eg_pulse *pulse);

/* ---- a whole step ---- */

typedef struct eg_layer {
  const float *input_norm; /* [D] */
  const float *post_norm;  /* [D] */
  const float *q_norm;     /* [E] or null */
  const float *k_norm;     /* [E] or null */
  eg_matrix qkv;
  eg_matrix o;
  eg_matrix gate_up;       /* gate's outputs, then up's */
  eg_matrix down;
  eg_kv kv;
} eg_layer;

typedef struct eg_model {
  int32_t hidden_size; /* D */
  int32_t ffn_size;    /* of this rank */
  int32_t num_layers;
  int32_t vocab_first; /* token id of the embedding's first row on this rank */
  float eps;
  int32_t unused;
  eg_heads heads;
  const float *frequencies; /* [E/2] */
  const float *final_norm;  /* [D] */
  eg_matrix embedding;      /* may share its buffers with head */
  eg_matrix head;           /* [V][D] */
  const eg_layer *layers;
  eg_group *group;          /* null for one rank */
} eg_model;

typedef struct eg_workspace eg_workspace; /* buffers that grow to the largest step seen; step.c */
eg_workspace *eg_workspace_new(void);
void eg_workspace_free(eg_workspace *workspace);

/* What a step spends its time on. Each product counts the rounding of its inputs; the down product's is of silu*mul. */
enum eg_part { EG_EMBED, EG_NORM, EG_QKV, EG_ROTATE, EG_ATTEND, EG_O, EG_GATE_UP, EG_DOWN, EG_HEAD, EG_NUM_PARTS };
/* seconds[EG_NUM_PARTS] of the calling thread's time in all steps so far; sums over ranks belong to the product. */
void eg_step_times(const eg_workspace *workspace, double *seconds);

/* Compute a step: writes its KV and, for the rows that sample, logits[S][V] of this rank's vocabulary.
 * Returns an eg_status. */
int eg_step(eg_threads *threads, eg_workspace *workspace, const eg_model *model, const eg_batch *batch, float *logits);

/* ---- sampling ---- */

/* Per row of logits[S][V]: the largest and its lowest index, and whether the row is sound (no NaN, no +inf, not all
 * -inf). The largest of a row with a NaN is NaN. */
void eg_best(eg_threads *threads, const float *logits, int64_t num_rows, int64_t num_columns, float *best,
             int64_t *index, uint8_t *is_sound);

/* Per row of logits[S][V]: its `width` largest, best first, equal ones by index. `width` is at most V. */
void eg_top(eg_threads *threads, const float *logits, int64_t num_rows, int64_t num_columns, int64_t width, float *top,
            int64_t *index);

/* The rows that draw, P of them. */
typedef struct eg_draws {
  int64_t num_draws;
  const int64_t *rows;      /* index into S */
  const double *uniform;    /* 0 or more, less than 1 */
  const float *temperature; /* more than 0 */
  const int64_t *top_k;     /* INT64_MAX for none */
  const double *top_p;      /* 1 for none */
  const double *min_p;      /* 0 for none */
} eg_draws;

/* index[P] = one token of each row that draws, by inverse CDF: temperature, top-k, top-p, min-p as in
 * parallel/sampling/filters.py. `best[S]` is eg_best's; a row that is not sound gets 0. */
void eg_draw(eg_threads *threads, const float *logits, int64_t num_columns, const float *best, const eg_draws *draws,
             int64_t *index);

#endif
