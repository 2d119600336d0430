/* A whole step in one call: the decoder of parallel/models/decoder.py, from token ids to logits. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "layers.h"
#include "matrix.h"

/* ---- buffers ---- */

#define HUGE_PAGE ((size_t)2 << 20)

struct eg_workspace {
  void *memory;
  size_t bytes;
  eg_attention_plan *plan;
  double seconds[EG_NUM_PARTS];
};

void eg_step_times(const eg_workspace *workspace, double *seconds) {
  memcpy(seconds, workspace->seconds, sizeof workspace->seconds);
}

eg_workspace *eg_workspace_new(void) {
  eg_workspace *workspace = calloc(1, sizeof(eg_workspace));
  if (!workspace) abort();
  workspace->plan = eg_attention_plan_new();
  return workspace;
}

void eg_workspace_free(eg_workspace *workspace) {
  if (!workspace) return;
  eg_attention_plan_free(workspace->plan);
  free(workspace->memory);
  free(workspace);
}

static void *workspace_memory(eg_workspace *workspace, size_t bytes) {
  if (bytes <= workspace->bytes) return workspace->memory;
  free(workspace->memory);
  workspace->bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  workspace->memory = aligned_alloc(HUGE_PAGE, workspace->bytes);
  if (!workspace->memory) abort();
#if defined(MADV_HUGEPAGE)
  madvise(workspace->memory, workspace->bytes, MADV_HUGEPAGE);
#endif
  return workspace->memory;
}

typedef struct step {
  eg_threads *threads;
  const eg_model *model;
  const eg_batch *batch;
  eg_attention_plan *plan;
  double *seconds; /* the workspace's */
  double now;      /* when the latest part ended */
  int64_t num_tokens; /* T; S once only those that sample are left */
  float *hidden;      /* [T][D], the residual stream */
  float *normed;      /* [T][D] */
  float *partial;     /* [T][D], what this rank adds to a sum; null for one rank */
  float *qkv;         /* [T][(H + 2K) * E] */
  float *attended;    /* [T][H * E] */
  float *activated;   /* [T][F] */
  float *rotation;    /* [T][E] */
  int64_t *outputs;   /* [T], token ids as rows of this rank's embedding */
  void *inputs;       /* one of the above, rounded for the product it goes into */
} step;

/* Bytes of the widest inputs that a product of this model has. */
static size_t max_inputs_bytes(const eg_model *model, int64_t num_tokens) {
  size_t most = eg_inputs_bytes(model->head.format, num_tokens, model->head.num_inputs);
  for (int32_t i = 0; i < model->num_layers; i++) {
    const eg_layer *layer = &model->layers[i];
    const eg_matrix *matrices[] = {&layer->qkv, &layer->o, &layer->gate_up, &layer->down};
    for (int m = 0; m < 4; m++) {
      size_t bytes = eg_inputs_bytes(matrices[m]->format, num_tokens, matrices[m]->num_inputs);
      if (bytes > most) most = bytes;
    }
  }
  return most;
}

/* The next buffer, on cache lines of its own. */
static void *take(uintptr_t *next, size_t bytes) {
  void *buffer = (void *)*next;
  *next += (bytes + 63) / 64 * 64;
  return buffer;
}

/* Point the step's buffers into `memory` and return how many bytes of it they take. */
static size_t lay_out(step *s, uintptr_t memory) {
  const eg_model *model = s->model;
  const eg_heads *heads = &model->heads;
  size_t row_bytes = (size_t)s->num_tokens * sizeof(float);
  uintptr_t next = memory;
  s->hidden = take(&next, row_bytes * model->hidden_size);
  s->normed = take(&next, row_bytes * model->hidden_size);
  s->partial = model->group ? take(&next, row_bytes * model->hidden_size) : NULL;
  s->qkv = take(&next, row_bytes * (heads->num_query_heads + 2 * heads->num_kv_heads) * heads->head_dim);
  s->attended = take(&next, row_bytes * heads->num_query_heads * heads->head_dim);
  s->activated = take(&next, row_bytes * model->ffn_size);
  s->rotation = take(&next, row_bytes * heads->head_dim);
  s->outputs = take(&next, s->num_tokens * sizeof(int64_t));
  s->inputs = take(&next, max_inputs_bytes(model, s->num_tokens));
  return next - memory;
}

static double clock_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static step step_begin(eg_threads *threads, eg_workspace *workspace, const eg_model *model, const eg_batch *batch) {
  step s = {threads, model, batch, workspace->plan, workspace->seconds, clock_s(), .num_tokens = batch->num_tokens};
  size_t bytes = lay_out(&s, 0);
  lay_out(&s, (uintptr_t)workspace_memory(workspace, bytes));
  return s;
}

/* Count the time since the latest part as that of this one. */
static void did(step *s, enum eg_part part) {
  double now = clock_s();
  s->seconds[part] += now - s->now;
  s->now = now;
}

/* ---- what layers have in common ---- */

static void norm(step *s, const float *weight) {
  const eg_model *model = s->model;
  eg_rms_norm(s->threads, s->hidden, weight, model->eps, s->num_tokens, model->hidden_size, s->normed);
  did(s, EG_NORM);
}

static eg_inputs prepare(step *s, const eg_matrix *matrix, const float *x) {
  eg_inputs inputs;
  eg_prepare(s->threads, matrix->format, x, matrix->num_inputs, s->num_tokens, matrix->num_inputs, s->inputs, &inputs);
  return inputs;
}

/* y = x W^T + bias, or y += that. */
static void multiply(step *s, const eg_matrix *matrix, const float *x, float *y, enum eg_output output) {
  eg_inputs inputs = prepare(s, matrix, x);
  eg_product(s->threads, matrix, &inputs, y, matrix->num_outputs, output);
}

typedef struct add_job {
  const float *x;
  int64_t size;
  float *sum;
} add_job;

static void add_rows(void *context, int64_t first, int64_t last) {
  const add_job *job = context;
  for (int64_t i = first * job->size; i < last * job->size; i++) job->sum[i] += job->x[i];
}

/* hidden += sum over ranks of (x W^T + bias); one rank has the bias. */
static int add_product(step *s, const eg_matrix *matrix, const float *x) {
  if (!s->model->group) {
    multiply(s, matrix, x, s->hidden, EG_ADD);
    return EG_OK;
  }
  int64_t size = s->model->hidden_size;
  multiply(s, matrix, x, s->partial, EG_STORE);
  int status = eg_all_reduce(s->model->group, s->partial, s->num_tokens * size);
  add_job job = {s->partial, size, s->hidden};
  if (status == EG_OK) eg_parallel(s->threads, s->num_tokens, rows_per_chunk(size), add_rows, &job);
  return status;
}

static void keep_rows(float *x, const int64_t *rows, int64_t num_rows, int64_t size) {
  for (int64_t row = 0; row < num_rows; row++) /* ascending, so none is overwritten before it is read */
    memmove(x + row * size, x + rows[row] * size, (size_t)size * sizeof(float));
}

/* Go on with the tokens that sample: once the last layer's KV is written, nobody asks for the others. */
static void keep_sampled(step *s) {
  const eg_matrix *o = &s->model->layers[s->model->num_layers - 1].o;
  keep_rows(s->hidden, s->batch->last_tokens, s->batch->num_sampled, s->model->hidden_size);
  keep_rows(s->attended, s->batch->last_tokens, s->batch->num_sampled, o->num_inputs);
  s->num_tokens = s->batch->num_sampled;
}

/* ---- the decoder ---- */

static int embed(step *s) {
  const eg_model *model = s->model;
  for (int64_t t = 0; t < s->num_tokens; t++) s->outputs[t] = s->batch->token_ids[t] - model->vocab_first;
  eg_embed(s->threads, &model->embedding, s->outputs, s->num_tokens, s->hidden);
  return model->group ? eg_all_reduce(model->group, s->hidden, s->num_tokens * model->hidden_size) : EG_OK;
}

static void attend(step *s, const eg_layer *layer) {
  const eg_heads *heads = &s->model->heads;
  norm(s, layer->input_norm);
  multiply(s, &layer->qkv, s->normed, s->qkv, EG_STORE);
  did(s, EG_QKV);
  eg_rotate_and_write(s->threads, heads, &layer->kv, s->batch, s->rotation, layer->q_norm, layer->k_norm, s->qkv);
  did(s, EG_ROTATE);
  eg_attend(s->threads, heads, &layer->kv, s->plan, s->qkv, s->attended);
  did(s, EG_ATTEND);
}

static int feed_forward(step *s, const eg_layer *layer) {
  norm(s, layer->post_norm);
  eg_inputs inputs = prepare(s, &layer->gate_up, s->normed);
  eg_product_silu_mul(s->threads, &layer->gate_up, &inputs, s->activated, s->model->ffn_size);
  did(s, EG_GATE_UP);
  int status = add_product(s, &layer->down, s->activated);
  did(s, EG_DOWN);
  return status;
}

int eg_step(eg_threads *threads, eg_workspace *workspace, const eg_model *model, const eg_batch *batch, float *logits) {
  step s = step_begin(threads, workspace, model, batch);
  eg_rotation(threads, batch, model->frequencies, model->heads.head_dim, s.rotation);
  eg_plan_attention(s.plan, threads, &model->heads, batch);
  int status = embed(&s);
  did(&s, EG_EMBED);
  for (int32_t i = 0; status == EG_OK && i < model->num_layers; i++) {
    const eg_layer *layer = &model->layers[i];
    attend(&s, layer);
    if (i == model->num_layers - 1) keep_sampled(&s);
    if (s.num_tokens == 0) return EG_OK;
    status = add_product(&s, &layer->o, s.attended);
    did(&s, EG_O);
    if (status == EG_OK) status = feed_forward(&s, layer);
  }
  if (status != EG_OK) return status;
  norm(&s, model->final_norm);
  multiply(&s, &model->head, s.normed, logits, EG_STORE);
  did(&s, EG_HEAD);
  return EG_OK;
}
