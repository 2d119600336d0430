/* Which queries are computed together, and what each thread takes. None of it changes a result (attention.h). */
#include <stdlib.h>

#include "attention.h"
#include "threads.h"

/* Rough CPU cycles, per feature of a head: to fetch a tile from memory, and to compute one query on it. */
#define FETCH_COST 20
#define QUERY_COST 3
/* Less is not worth handing to another thread, nor, twice that, merging states afterwards. */
#define MIN_CHUNK_COST 8000
/* Pieces of work per thread, so that none waits long for another. */
#define PIECES 4
#define MIN_GROUP_QUERIES 24

eg_attention_plan *eg_attention_plan_new(void) { return calloc(1, sizeof(eg_attention_plan)); }

void eg_attention_plan_free(eg_attention_plan *plan) {
  if (!plan) return;
  free(plan->member_array.memory);
  free(plan->group_array.memory);
  free(plan->item_array.memory);
  free(plan->split_array.memory);
  free(plan->state_array.memory);
  free(plan);
}

static void *grown(grown_array *array, int64_t count, size_t size) {
  size_t bytes = (size_t)count * size;
  if (bytes > array->bytes) {
    free(array->memory);
    array->bytes = (bytes * 2 + 4095) / 4096 * 4096;
    array->memory = aligned_alloc(64, array->bytes);
    if (!array->memory) abort();
  }
  return array->memory;
}

/* ---- members, in the order of their blocks ---- */

/* Queries of a group at most. Few tokens on many threads make smaller groups, so that all threads have some. */
static int32_t group_limit(const eg_heads *heads, int64_t num_tokens, int num_threads) {
  int64_t num_queries = num_tokens * heads->num_query_heads;
  int32_t limit = MAX_GROUP_QUERIES;
  while (limit > MIN_GROUP_QUERIES && num_queries / limit < PIECES * num_threads) limit /= 2;
  int32_t per_token = queries_per_token(heads);
  return limit > per_token ? limit : per_token;
}

static void list_members(eg_attention_plan *plan, const eg_batch *batch, int32_t max_tokens) {
  int64_t count = 0;
  for (int64_t row = 0; row < batch->num_rows; row++) count += divided_up((int32_t)batch->query_lens[row], max_tokens);
  plan->members = grown(&plan->member_array, count, sizeof(query_member));
  plan->num_members = 0;
  int64_t first_token = 0;
  for (int64_t row = 0; row < batch->num_rows; row++) {
    int32_t context_len = (int32_t)batch->context_lens[row];
    int32_t position = context_len - (int32_t)batch->query_lens[row];
    while (position < context_len) {
      int32_t num_tokens = context_len - position < max_tokens ? context_len - position : max_tokens;
      plan->members[plan->num_members++] = (query_member){
          .blocks = batch->block_table + row * batch->table_stride,
          .first_token = first_token,
          .first_position = position,
          .end = position + num_tokens,
          .num_blocks = divided_up(position + num_tokens, plan->heads.block_size),
      };
      position += num_tokens;
      first_token += num_tokens;
    }
  }
}

/* Blocks at the start that two members have in common. */
static int32_t num_common_blocks(const query_member *a, const query_member *b) {
  int32_t most = a->num_blocks < b->num_blocks ? a->num_blocks : b->num_blocks, count = 0;
  if (a->blocks == b->blocks) return most;
  while (count < most && a->blocks[count] == b->blocks[count]) count++;
  return count;
}

static int compare(int64_t a, int64_t b) { return (a > b) - (a < b); }

static int compare_members(const void *first, const void *second) {
  const query_member *a = first, *b = second;
  int32_t common = num_common_blocks(a, b);
  if (common < a->num_blocks && common < b->num_blocks) return compare(a->blocks[common], b->blocks[common]);
  int order = compare(a->end, b->end);
  return order ? order : compare(a->first_token, b->first_token);
}

/* ---- groups ---- */

/* Whether a member may join those that end with `last`: most of its keys are read for them anyway. */
static int is_joined(const query_member *last, const query_member *member) {
  return last->blocks == member->blocks || 2 * num_common_blocks(last, member) >= member->num_blocks;
}

static int64_t cost_of(const eg_heads *heads, const query_member *member, int32_t num_queries, int32_t num_common) {
  int64_t num_tiles = divided_up(member->end, KV_TILE_KEYS), num_shared = num_common * heads->block_size / KV_TILE_KEYS;
  return heads->head_dim * (num_tiles * QUERY_COST * num_queries + (num_tiles - num_shared) * FETCH_COST);
}

static void list_groups(eg_attention_plan *plan, int32_t max_queries) {
  plan->groups = grown(&plan->group_array, plan->num_members, sizeof(query_group));
  plan->num_groups = 0;
  query_group *group = NULL;
  for (int32_t i = 0; i < plan->num_members; i++) {
    query_member *member = &plan->members[i];
    int32_t num_queries = (member->end - member->first_position) * queries_per_token(&plan->heads);
    int is_member = group && group->num_queries + num_queries <= max_queries && is_joined(member - 1, member);
    if (!is_member) {
      group = &plan->groups[plan->num_groups++];
      *group = (query_group){.first_member = i};
    }
    int32_t num_common = is_member ? num_common_blocks(member - 1, member) : 0;
    member->first_query = group->num_queries;
    group->last_member = i + 1;
    group->num_queries += num_queries;
    group->cost += cost_of(&plan->heads, member, num_queries, num_common);
    if (member->end > group->end) group->end = member->end;
  }
}

/* ---- items ---- */

static int compare_items(const void *first, const void *second) {
  const attention_item *a = first, *b = second;
  int order = compare(b->cost, a->cost);
  if (!order) order = compare(a->group, b->group);
  if (!order) order = compare(a->first_head, b->first_head);
  return order ? order : compare(a->first_segment, b->first_segment);
}

typedef struct group_pieces {
  int32_t num_heads;    /* of one item */
  int32_t num_segments; /* of the group */
  int32_t count;        /* items that share the segments */
} group_pieces;

/* In memory a block's heads lie side by side, so few queries take all heads of a tile in turn, unless that leaves
 * threads without work. */
static group_pieces pieces_of(const eg_attention_plan *plan, const query_group *group, int64_t piece_cost,
                              int num_threads) {
  group_pieces pieces = {plan->heads.num_kv_heads, divided_up(group->end, SEGMENT_KEYS), 1};
  if (num_threads == 1 && pieces.num_heads * group->num_queries <= MAX_GROUP_QUERIES) return pieces;
  int64_t count = group->cost * pieces.num_heads / piece_cost;
  int64_t enough = count < 2 * num_threads ? count : 2 * num_threads;
  if (pieces.num_heads * group->num_queries > MAX_GROUP_QUERIES || pieces.num_segments < enough) {
    pieces.num_heads = 1;
    count = group->cost / piece_cost;
  }
  if (count > pieces.num_segments) count = pieces.num_segments;
  if (count > 1 && num_threads > 1) pieces.count = (int32_t)count;
  return pieces;
}

static void list_items_of(eg_attention_plan *plan, int32_t index, group_pieces pieces) {
  query_group *group = &plan->groups[index];
  for (int32_t head = 0; head < plan->heads.num_kv_heads; head += pieces.num_heads)
    for (int64_t piece = 0; piece < pieces.count; piece++)
      plan->items[plan->num_items++] = (attention_item){
          .group = index,
          .first_head = head,
          .num_heads = pieces.num_heads,
          .first_segment = (int32_t)(pieces.num_segments * piece / pieces.count),
          .last_segment = (int32_t)(pieces.num_segments * (piece + 1) / pieces.count),
          .cost = group->cost * pieces.num_heads / pieces.count,
      };
  if (pieces.count == 1) return;
  group->is_split = 1;
  group->first_state = plan->num_states;
  plan->num_states += (int64_t)pieces.num_segments * plan->heads.num_kv_heads * group->num_queries;
  plan->split_groups[plan->num_split++] = index;
}

static void list_items(eg_attention_plan *plan, int num_threads) {
  int64_t total_cost = 0, max_items = 0;
  for (int64_t i = 0; i < plan->num_groups; i++) total_cost += plan->groups[i].cost * plan->heads.num_kv_heads;
  int64_t piece_cost = total_cost / (PIECES * num_threads);
  if (piece_cost < 2 * MIN_CHUNK_COST) piece_cost = 2 * MIN_CHUNK_COST;
  for (int64_t i = 0; i < plan->num_groups; i++)
    max_items += plan->heads.num_kv_heads * (1 + plan->groups[i].cost / piece_cost);

  plan->items = grown(&plan->item_array, max_items, sizeof(attention_item));
  plan->split_groups = grown(&plan->split_array, plan->num_groups, sizeof(int32_t));
  plan->num_items = plan->num_split = plan->num_states = 0;
  for (int32_t i = 0; i < plan->num_groups; i++)
    list_items_of(plan, i, pieces_of(plan, &plan->groups[i], piece_cost, num_threads));
  qsort(plan->items, (size_t)plan->num_items, sizeof(attention_item), compare_items);

  size_t state_bytes = (size_t)state_floats(plan->heads.head_dim) * sizeof(float);
  plan->states = grown(&plan->state_array, plan->num_states, state_bytes);
  plan->items_per_chunk = 1 + MIN_CHUNK_COST * plan->num_items / (total_cost + 1);
}

void eg_plan_attention(eg_attention_plan *plan, const eg_threads *threads, const eg_heads *heads,
                       const eg_batch *batch) {
  int num_threads = eg_num_threads(threads);
  plan->heads = *heads;
  int32_t max_queries = group_limit(heads, batch->num_tokens, num_threads);
  list_members(plan, batch, max_queries / queries_per_token(heads));
  qsort(plan->members, (size_t)plan->num_members, sizeof(query_member), compare_members);
  list_groups(plan, max_queries);
  list_items(plan, num_threads);
}
