/* Paged attention: each item of the plan walks its keys tile by tile, for all its queries at once. */
#include "attention.h"

#include "attention_plan.c"
#include "attention_tile.c"
#include "threads.h"

typedef struct attention_job {
  const eg_attention_plan *plan;
  const eg_kv *kv;
  const float *qkv;
  float *out;
} attention_job;

/* A group's queries of one kv head, in the thread's scratch memory. */
typedef struct workbench {
  const query_group *group;
  const query_member *members;
  int32_t kv_head;
  int32_t *queries;      /* [num_queries][E/2] */
  int32_t *ends;         /* [num_queries], keys that each sees */
  int64_t *places;       /* [num_queries], token * H + head */
  float *total;          /* states of the segments so far */
  float *later;          /* states of the segment after them */
  eg_bf16 *wide_keys;    /* [TILE_KEYS * E], where the cache is int8 */
  eg_bf16 *wide_values;  /* [TILE_KEYS * E] */
} workbench;

/* ---- a group's queries ---- */

static void *taken(char **memory, size_t bytes) {
  char *p = *memory;
  *memory += (bytes + 63) / 64 * 64;
  return p;
}

static void list_queries(const eg_heads *heads, workbench *bench) {
  int32_t query = 0, per_token = queries_per_token(heads);
  for (int32_t i = bench->group->first_member; i < bench->group->last_member; i++) {
    const query_member *member = &bench->members[i];
    for (int32_t position = member->first_position; position < member->end; position++) {
      int64_t token = member->first_token + position - member->first_position;
      for (int32_t head = 0; head < per_token; head++, query++) {
        bench->ends[query] = position + 1;
        bench->places[query] = token * heads->num_query_heads + bench->kv_head * per_token + head;
      }
    }
  }
}

static workbench set_up(const attention_job *job, const query_group *group, int32_t kv_head) {
  const eg_heads *heads = &job->plan->heads;
  size_t num_queries = (size_t)group->num_queries, head_dim = (size_t)heads->head_dim;
  size_t state_bytes = num_queries * (size_t)state_floats(heads->head_dim) * sizeof(float);
  size_t wide_bytes = heads->kv_format == EG_KV_INT8 ? TILE_KEYS * head_dim * sizeof(eg_bf16) : 0;
  size_t bytes = num_queries * (2 * head_dim + 12) + 2 * state_bytes + 2 * wide_bytes + 7 * 64;
  char *memory = eg_scratch(bytes);
  workbench bench = {.group = group, .members = job->plan->members, .kv_head = kv_head};
  bench.queries = taken(&memory, num_queries * head_dim * sizeof(eg_bf16));
  bench.ends = taken(&memory, num_queries * sizeof(int32_t));
  bench.places = taken(&memory, num_queries * sizeof(int64_t));
  bench.total = taken(&memory, state_bytes);
  bench.later = taken(&memory, state_bytes);
  bench.wide_keys = taken(&memory, wide_bytes);
  bench.wide_values = taken(&memory, wide_bytes);
  list_queries(heads, &bench);
  return bench;
}

static void round_queries(const attention_job *job, const workbench *bench) {
  const eg_heads *heads = &job->plan->heads;
  int32_t head_dim = heads->head_dim;
  int64_t token_floats = (int64_t)(heads->num_query_heads + 2 * heads->num_kv_heads) * head_dim;
  for (int32_t query = 0; query < bench->group->num_queries; query++) {
    int64_t token = bench->places[query] / heads->num_query_heads, head = bench->places[query] % heads->num_query_heads;
    const float *q = job->qkv + token * token_floats + head * head_dim;
    eg_bf16 *rounded = (eg_bf16 *)(bench->queries + query * (head_dim / 2));
    for (int32_t i = 0; i < head_dim; i += LANES) vf_store_bf16(rounded + i, vf_load(q + i));
  }
}

/* ---- which members read a tile together ---- */

/* Adjacent members whose blocks at a tile are the same. */
typedef struct tile_run {
  int32_t tile;
  int32_t first_query, last_query; /* in the group; each sees at least one key of the tile */
  const query_member *longest;     /* whose blocks are read */
} tile_run;

typedef struct tile_walk {
  const eg_heads *heads;
  const query_member *members;
  int32_t first_member, last_member;
  int32_t tile, last_tile; /* where the walk is, and where it ends */
  int32_t member;
} tile_walk;

static int reads_same_blocks(const tile_walk *walk, const query_member *a, const query_member *b) {
  if (a->blocks == b->blocks) return 1;
  int32_t first_key = walk->tile * TILE_KEYS, block_size = walk->heads->block_size;
  int32_t end = a->end < b->end ? a->end : b->end;
  if (end > first_key + TILE_KEYS) end = first_key + TILE_KEYS;
  for (int32_t block = first_key / block_size; block * block_size < end; block++)
    if (a->blocks[block] != b->blocks[block]) return 0;
  return 1;
}

/* Put the run at the walk's place into `run` and step past it; false at the end. */
static int next_run(tile_walk *walk, tile_run *run) {
  for (; walk->tile < walk->last_tile; walk->tile++, walk->member = walk->first_member) {
    int32_t first_key = walk->tile * TILE_KEYS, per_token = queries_per_token(walk->heads);
    while (walk->member < walk->last_member && walk->members[walk->member].end <= first_key) walk->member++;
    if (walk->member == walk->last_member) continue;

    const query_member *member = &walk->members[walk->member++];
    int32_t num_before = first_key - member->first_position; /* tokens before the tile, which see nothing of it */
    run->tile = walk->tile;
    run->first_query = member->first_query + (num_before > 0 ? num_before * per_token : 0);
    run->longest = member;
    for (; walk->member < walk->last_member; walk->member++) {
      const query_member *other = &walk->members[walk->member];
      if (other->first_position < first_key || !reads_same_blocks(walk, run->longest, other)) break;
      if (other->end > run->longest->end) run->longest = other;
      member = other;
    }
    run->last_query = member->first_query + (member->end - member->first_position) * per_token;
    return 1;
  }
  return 0;
}

/* ---- a tile in the cache ---- */

/* Where the run's tile lies. Parts past the last key are the last part that has one, for they may be fetched. */
static kv_ahead locate(const attention_job *job, const tile_run *run, int32_t kv_head, kv_tile *tile) {
  const eg_heads *heads = &job->plan->heads;
  kv_ahead place = {.code_bytes = heads->kv_format == EG_KV_INT8 ? 1 : 2};
  int64_t slot = 0;
  for (int part = 0; part < TILE_PARTS; part++) {
    int32_t key = run->tile * TILE_KEYS + part * PART_KEYS;
    if (key < run->longest->end) {
      int64_t block = run->longest->blocks[key / heads->block_size];
      slot = (block * heads->num_kv_heads + kv_head) * heads->block_size + key % heads->block_size;
    }
    place.keys[part] = (const char *)job->kv->keys + slot * heads->head_dim * place.code_bytes;
    place.values[part] = (const char *)job->kv->values + slot * heads->head_dim * place.code_bytes;
    tile->key_scales[part] = place.code_bytes == 1 ? job->kv->key_scales + slot : NULL;
    tile->value_scales[part] = place.code_bytes == 1 ? job->kv->value_scales + slot : NULL;
  }
  return place;
}

/* Every int8 is a bfloat16. */
static void widen(const char *codes, int64_t count, eg_bf16 *wide) {
  typedef int8_t vb __attribute__((vector_size(LANES)));
  for (int64_t i = 0; i < count; i += LANES) {
    vb narrow;
    memcpy(&narrow, codes + i, sizeof narrow);
    vf_store_bf16(wide + i, __builtin_convertvector(narrow, vf));
  }
}

static void read_tile(const workbench *bench, int32_t head_dim, const kv_ahead *place, int num_parts, kv_tile *tile) {
  for (int part = 0; part < num_parts; part++) {
    if (place->code_bytes == 2) {
      tile->keys[part] = (const int32_t *)place->keys[part];
      tile->values[part] = (const int32_t *)place->values[part];
      continue;
    }
    int64_t size = PART_KEYS * head_dim, offset = part * size;
    widen(place->keys[part], size, bench->wide_keys + offset);
    widen(place->values[part], size, bench->wide_values + offset);
    tile->keys[part] = (const int32_t *)(bench->wide_keys + offset);
    tile->values[part] = (const int32_t *)(bench->wide_values + offset);
  }
}

/* ---- items ---- */

#define LOG2_E 1.44269504f

static void attend_run(const attention_job *job, const workbench *bench, const tile_run *run, kv_tile *tile,
                       const kv_ahead *place, const kv_ahead *ahead, float *states) {
  const eg_heads *heads = &job->plan->heads;
  int32_t keys_left = run->longest->end - run->tile * TILE_KEYS;
  int num_parts = keys_left < TILE_KEYS ? divided_up(keys_left, PART_KEYS) : TILE_PARTS;
  read_tile(bench, heads->head_dim, place, num_parts, tile);
  tile_queries queries = {
      .head_dim = heads->head_dim,
      .scale = heads->scale * LOG2_E,
      .num_queries = run->last_query - run->first_query,
      .queries = bench->queries + (int64_t)run->first_query * (heads->head_dim / 2),
      .ends = bench->ends + run->first_query,
      .first_key = run->tile * TILE_KEYS,
      .states = states + run->first_query * state_floats(heads->head_dim),
  };
  attend_tile(&queries, tile, ahead);
}

/* Where the states of a segment are computed. */
static float *states_of(const eg_attention_plan *plan, const workbench *bench, int32_t segment) {
  if (!bench->group->is_split) return segment == 0 ? bench->total : bench->later;
  int64_t first = (int64_t)segment * plan->heads.num_kv_heads + bench->kv_head;
  return plan->states +
         (bench->group->first_state + first * bench->group->num_queries) * state_floats(plan->heads.head_dim);
}

static void clear_states(const eg_attention_plan *plan, const workbench *bench, float *states) {
  int64_t size = state_floats(plan->heads.head_dim);
  for (int32_t query = 0; query < bench->group->num_queries; query++)
    clear_state(states + query * size, plan->heads.head_dim);
}

/* Add a segment's states to the total of those before, for the queries that see any of its keys. */
static void merge_states(const eg_attention_plan *plan, const workbench *bench, int32_t segment, float *total) {
  int64_t size = state_floats(plan->heads.head_dim);
  const float *later = states_of(plan, bench, segment);
  for (int32_t query = 0; query < bench->group->num_queries; query++)
    if (bench->ends[query] > segment * SEGMENT_KEYS)
      merge_state(total + query * size, later + query * size, plan->heads.head_dim);
}

static void write_out(const attention_job *job, const workbench *bench, const float *states) {
  int32_t head_dim = job->plan->heads.head_dim;
  for (int32_t query = 0; query < bench->group->num_queries; query++)
    finish_state(states + query * state_floats(head_dim), head_dim, job->out + bench->places[query] * head_dim);
}

static void attend_segments(const attention_job *job, const workbench *bench, const attention_item *item) {
  const eg_attention_plan *plan = job->plan;
  int is_split = bench->group->is_split != 0;
  int32_t num_tiles = divided_up(bench->group->end, TILE_KEYS), last_tile = item->last_segment * SEGMENT_TILES;
  tile_walk walk = {&plan->heads, plan->members, bench->group->first_member, bench->group->last_member,
                    item->first_segment * SEGMENT_TILES, last_tile < num_tiles ? last_tile : num_tiles,
                    bench->group->first_member};
  tile_run run, next;
  kv_tile tile, next_tile;
  next_run(&walk, &run);
  kv_ahead place = locate(job, &run, bench->kv_head, &tile);
  for (int32_t segment = item->first_segment; segment < item->last_segment; segment++) {
    float *states = states_of(plan, bench, segment);
    clear_states(plan, bench, states);
    int is_more = 1;
    while (is_more && run.tile < (segment + 1) * SEGMENT_TILES) {
      kv_ahead ahead = place;
      is_more = next_run(&walk, &next);
      if (is_more) ahead = locate(job, &next, bench->kv_head, &next_tile);
      attend_run(job, bench, &run, &tile, &place, &ahead, states);
      run = next, tile = next_tile, place = ahead;
    }
    if (!is_split && segment > 0) merge_states(plan, bench, segment, bench->total);
  }
}

static void attend_items(void *context, int64_t first, int64_t last) {
  const attention_job *job = context;
  int32_t num_kv_heads = job->plan->heads.num_kv_heads;
  for (int64_t i = first; i < last; i++) {
    const attention_item *item = &job->plan->items[i / num_kv_heads];
    workbench bench = set_up(job, &job->plan->groups[item->group], (int32_t)(i % num_kv_heads));
    round_queries(job, &bench);
    attend_segments(job, &bench, item);
    if (!bench.group->is_split) write_out(job, &bench, bench.total);
  }
}

static void merge_groups(void *context, int64_t first, int64_t last) {
  const attention_job *job = context;
  const eg_attention_plan *plan = job->plan;
  for (int64_t i = first; i < last; i++) {
    const query_group *group = &plan->groups[plan->split_groups[i / plan->heads.num_kv_heads]];
    workbench bench = set_up(job, group, (int32_t)(i % plan->heads.num_kv_heads));
    float *total = states_of(plan, &bench, 0);
    for (int32_t segment = 1; segment * SEGMENT_KEYS < group->end; segment++)
      merge_states(plan, &bench, segment, total);
    write_out(job, &bench, total);
  }
}

void eg_attend(eg_threads *threads, const eg_heads *heads, const eg_kv *kv, eg_attention_plan *plan, const float *qkv,
               float *out) {
  attention_job job = {plan, kv, qkv, out};
  eg_parallel(threads, plan->num_items * heads->num_kv_heads, plan->items_per_chunk, attend_items, &job);
  eg_parallel(threads, plan->num_split * heads->num_kv_heads, plan->heads.num_kv_heads, merge_groups, &job);
}
