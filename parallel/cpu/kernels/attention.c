/* Paged attention: each item of the plan walks its keys tile by tile, for all its queries at once. */
#include "attention.h"

#include "attention_plan.c"
#include "attention_tile.c"
#include "attention_walk.c"
#include "threads.h"

#define LOG2_E 1.44269504f
/* Queries fetched while others are read: tokens lie too far apart for the processor to foresee. */
#define QUERIES_AHEAD 8

typedef struct attention_job {
  const eg_heads *heads;
  const eg_attention_plan *plan;
  const eg_kv *kv;
  const float *qkv;
  float *out;
} attention_job;

/* A group's queries of some kv heads, in the thread's scratch memory. [num_heads][num_queries] each. */
typedef struct workbench {
  const query_group *group;
  int32_t first_head, num_heads;
  int32_t *queries;  /* pairs of features [E/2] each */
  int32_t *ends;     /* keys that each sees; alike for all heads */
  int64_t *inputs;   /* where each starts in qkv */
  int64_t *outputs;  /* where its result starts in out */
  float *total;      /* states of the segments so far */
  float *later;      /* states of the segment after them */
  eg_bf16 *widened;  /* a tile's keys, then its values, where the cache is int8 */
} workbench;

/* ---- a group's queries ---- */

static void *taken(char **memory, size_t bytes) {
  char *p = *memory;
  *memory += (bytes + 63) / 64 * 64;
  return p;
}

static int32_t num_states(const workbench *bench) { return bench->num_heads * bench->group->num_queries; }

static void list_queries(const eg_heads *heads, const query_member *members, workbench *bench) {
  int32_t per_token = queries_per_token(heads), num_queries = bench->group->num_queries;
  int64_t input_heads = heads->num_query_heads + 2 * heads->num_kv_heads;
  for (int32_t m = bench->group->first_member; m < bench->group->last_member; m++) {
    const query_member *member = &members[m];
    int32_t query = member->first_query;
    for (int32_t position = member->first_position; position < member->end; position++)
      for (int32_t i = 0; i < per_token; i++, query++) {
        int64_t token = member->first_token + position - member->first_position;
        bench->ends[query] = position + 1;
        for (int32_t h = 0; h < bench->num_heads; h++) {
          int64_t head = (bench->first_head + h) * per_token + i;
          bench->inputs[h * num_queries + query] = (token * input_heads + head) * heads->head_dim;
          bench->outputs[h * num_queries + query] = (token * heads->num_query_heads + head) * heads->head_dim;
        }
      }
  }
}

static workbench set_up(const attention_job *job, const query_group *group, int32_t first_head, int32_t num_heads) {
  const eg_heads *heads = job->heads;
  workbench bench = {.group = group, .first_head = first_head, .num_heads = num_heads};
  size_t count = (size_t)num_states(&bench), head_dim = (size_t)heads->head_dim;
  size_t query_bytes = count * head_dim * sizeof(eg_bf16), place_bytes = count * sizeof(int64_t);
  size_t end_bytes = (size_t)group->num_queries * sizeof(int32_t);
  size_t state_bytes = count * (size_t)state_floats(heads->head_dim) * sizeof(float);
  size_t widened_bytes = heads->kv_format == EG_KV_INT8 ? 2 * KV_TILE_KEYS * head_dim * sizeof(eg_bf16) : 0;
  char *memory = eg_scratch(query_bytes + end_bytes + 2 * place_bytes + 2 * state_bytes + widened_bytes + 7 * 64);
  bench.queries = taken(&memory, query_bytes);
  bench.ends = taken(&memory, end_bytes);
  bench.inputs = taken(&memory, place_bytes);
  bench.outputs = taken(&memory, place_bytes);
  bench.total = taken(&memory, state_bytes);
  bench.later = taken(&memory, state_bytes);
  bench.widened = taken(&memory, widened_bytes);
  list_queries(heads, job->plan->members, &bench);
  return bench;
}

static void round_queries(const attention_job *job, const workbench *bench) {
  int32_t head_dim = job->heads->head_dim, count = num_states(bench);
  for (int32_t query = 0; query < count; query++) {
    const float *q = job->qkv + bench->inputs[query];
    const float *ahead = job->qkv + bench->inputs[query + QUERIES_AHEAD < count ? query + QUERIES_AHEAD : query];
    eg_bf16 *rounded = (eg_bf16 *)(bench->queries + query * (head_dim / 2));
    for (int32_t i = 0; i < head_dim; i += LANES) {
      __builtin_prefetch(ahead + i);
      vf_store_bf16(rounded + i, vf_load(q + i));
    }
  }
}

/* ---- int8 caches ---- */

/* Meanwhile `ahead`, as many codes, are fetched. */
static const void *widen(const int8_t *codes, int64_t count, const int8_t *ahead, eg_bf16 *wide) {
  for (int64_t i = 0; i < count; i += 32) {
    __builtin_prefetch(ahead + i);
    widen_i8x32(codes + i, wide + i);
  }
  return wide;
}

/* The same tile in bfloat16. Meanwhile the next one is fetched. */
static kv_tile widen_tile(const kv_tile *tile, const kv_tile *next, int32_t head_dim, eg_bf16 *widened) {
  kv_tile wide = *tile;
  int64_t size = PART_KEYS * head_dim;
  for (int part = 0; part < KV_TILE_PARTS; part++, widened += 2 * size) {
    wide.keys[part] = widen(tile->keys[part], size, next->keys[part], widened);
    wide.values[part] = widen(tile->values[part], size, next->values[part], widened + size);
  }
  return wide;
}

/* ---- states of a segment ---- */

static float *states_of(const attention_job *job, const workbench *bench, int32_t segment) {
  const query_group *group = bench->group;
  if (!group->is_split) return segment == 0 ? bench->total : bench->later;
  int64_t first = ((int64_t)segment * job->heads->num_kv_heads + bench->first_head) * group->num_queries;
  return job->plan->states + (group->first_state + first) * state_floats(job->heads->head_dim);
}

static void clear_states(const workbench *bench, int32_t head_dim, float *states) {
  for (int32_t i = 0; i < num_states(bench); i++) clear_state(states + i * state_floats(head_dim), head_dim);
}

/* Add the states of a segment, for the queries that see any of its keys. */
static void merge_states(const workbench *bench, int32_t segment, int32_t head_dim, const float *later, float *total) {
  for (int32_t i = 0; i < num_states(bench); i++)
    if (bench->ends[i % bench->group->num_queries] > segment * SEGMENT_KEYS)
      merge_state(total + i * state_floats(head_dim), later + i * state_floats(head_dim), head_dim);
}

static void write_out(const workbench *bench, int32_t head_dim, const float *states, float *out) {
  for (int32_t i = 0; i < num_states(bench); i++)
    finish_state(states + i * state_floats(head_dim), head_dim, out + bench->outputs[i]);
}

/* ---- items ---- */

/* `states` are those of the bench's first kv head; the run is attended for head number `head` of the bench. */
static void attend_run(const attention_job *job, const workbench *bench, const tile_run *run, int32_t head,
                       const kv_tile *tile, const kv_tile *next, float *states) {
  const eg_heads *heads = job->heads;
  int64_t first = (int64_t)head * bench->group->num_queries + run->first_query;
  tile_queries queries = {
      .head_dim = heads->head_dim,
      .scale = heads->scale * LOG2_E,
      .num_queries = run->last_query - run->first_query,
      .queries = bench->queries + first * (heads->head_dim / 2),
      .ends = bench->ends + run->first_query,
      .first_key = run->tile * KV_TILE_KEYS,
      .states = states + first * state_floats(heads->head_dim),
  };
  if (heads->kv_format == EG_KV_INT8) {
    kv_tile wide = widen_tile(tile, next, heads->head_dim, bench->widened);
    attend_tile(&queries, &wide, wide.keys);
  } else {
    attend_tile(&queries, tile, next->keys);
  }
}

static void attend_segments(const attention_job *job, const workbench *bench, const attention_item *item) {
  const eg_heads *heads = job->heads;
  tile_walk walk = start_walk(job->plan, bench->group, item);
  tile_run run;
  int is_more = take_next_run(&walk, &run);
  kv_tile tile = locate(heads, job->kv, &run, bench->first_head);
  for (int32_t segment = item->first_segment; segment < item->last_segment; segment++) {
    float *states = states_of(job, bench, segment);
    clear_states(bench, heads->head_dim, states);
    while (is_more && run.tile < (segment + 1) * SEGMENT_TILES) {
      tile_run next_run = run;
      is_more = take_next_run(&walk, &next_run);
      for (int32_t head = 0; head < bench->num_heads; head++) {
        int is_last = head + 1 == bench->num_heads;
        kv_tile next = is_last ? locate(heads, job->kv, &next_run, bench->first_head)
                               : locate(heads, job->kv, &run, bench->first_head + head + 1);
        attend_run(job, bench, &run, head, &tile, &next, states);
        tile = next;
      }
      run = next_run;
    }
    if (!bench->group->is_split && segment > 0) merge_states(bench, segment, heads->head_dim, states, bench->total);
  }
}

static void attend_items(void *context, int64_t first, int64_t last) {
  const attention_job *job = context;
  for (int64_t i = first; i < last; i++) {
    const attention_item *item = &job->plan->items[i];
    const query_group *group = &job->plan->groups[item->group];
    workbench bench = set_up(job, group, item->first_head, item->num_heads);
    round_queries(job, &bench);
    attend_segments(job, &bench, item);
    if (!group->is_split) write_out(&bench, job->heads->head_dim, bench.total, job->out);
  }
}

static void merge_groups(void *context, int64_t first, int64_t last) {
  const attention_job *job = context;
  int32_t head_dim = job->heads->head_dim;
  for (int64_t i = first; i < last; i++) {
    const query_group *group = &job->plan->groups[job->plan->split_groups[i]];
    workbench bench = set_up(job, group, 0, job->heads->num_kv_heads);
    float *total = states_of(job, &bench, 0);
    for (int32_t segment = 1; segment * SEGMENT_KEYS < group->end; segment++)
      merge_states(&bench, segment, head_dim, states_of(job, &bench, segment), total);
    write_out(&bench, head_dim, total, job->out);
  }
}

void eg_attend(eg_threads *threads, const eg_heads *heads, const eg_kv *kv, eg_attention_plan *plan, const float *qkv,
               float *out) {
  attention_job job = {heads, plan, kv, qkv, out};
  eg_parallel(threads, plan->num_items, plan->items_per_chunk, attend_items, &job);
  eg_parallel(threads, plan->num_split, 1, merge_groups, &job);
}
