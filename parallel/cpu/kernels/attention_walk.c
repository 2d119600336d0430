/* Which members of a group read a tile together, and where it lies in the cache. */
#include "attention.h"

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

static tile_walk start_walk(const eg_attention_plan *plan, const query_group *group, const attention_item *item) {
  int32_t num_tiles = divided_up(group->end, KV_TILE_KEYS), last_tile = item->last_segment * SEGMENT_TILES;
  return (tile_walk){
      .heads = &plan->heads,
      .members = plan->members,
      .first_member = group->first_member,
      .last_member = group->last_member,
      .tile = item->first_segment * SEGMENT_TILES,
      .last_tile = last_tile < num_tiles ? last_tile : num_tiles,
      .member = group->first_member,
  };
}

static int reads_same_blocks(const tile_walk *walk, const query_member *a, const query_member *b) {
  if (a->blocks == b->blocks) return 1;
  int32_t first_key = walk->tile * KV_TILE_KEYS, block_size = walk->heads->block_size;
  int32_t end = a->end < b->end ? a->end : b->end;
  if (end > first_key + KV_TILE_KEYS) end = first_key + KV_TILE_KEYS;
  for (int32_t block = first_key / block_size; block * block_size < end; block++)
    if (a->blocks[block] != b->blocks[block]) return 0;
  return 1;
}

/* The run that starts with the member at the walk's place, which is past it afterwards. */
static tile_run take_run(tile_walk *walk) {
  int32_t first_key = walk->tile * KV_TILE_KEYS, per_token = queries_per_token(walk->heads);
  const query_member *member = &walk->members[walk->member++];
  int32_t num_blind = first_key - member->first_position; /* tokens before the tile, which see nothing of it */
  tile_run run = {.tile = walk->tile, .longest = member};
  run.first_query = member->first_query + (num_blind > 0 ? num_blind * per_token : 0);
  for (; walk->member < walk->last_member; walk->member++) {
    const query_member *other = &walk->members[walk->member];
    if (other->first_position < first_key || !reads_same_blocks(walk, run.longest, other)) break;
    if (other->end > run.longest->end) run.longest = other;
    member = other;
  }
  run.last_query = member->first_query + (member->end - member->first_position) * per_token;
  return run;
}

/* Put the next run into `run`; false, and `run` is as it was, if there is none. */
static int take_next_run(tile_walk *walk, tile_run *run) {
  for (; walk->tile < walk->last_tile; walk->tile++, walk->member = walk->first_member) {
    while (walk->member < walk->last_member && walk->members[walk->member].end <= walk->tile * KV_TILE_KEYS)
      walk->member++;
    if (walk->member == walk->last_member) continue;
    *run = take_run(walk);
    return 1;
  }
  return 0;
}

/* The run's tile in the cache. Parts past the last key are the last part that has one. */
static kv_tile locate(const eg_heads *heads, const eg_kv *kv, const tile_run *run, int32_t kv_head) {
  int is_int8 = heads->kv_format == EG_KV_INT8;
  kv_tile tile;
  int64_t slot = 0;
  for (int part = 0; part < KV_TILE_PARTS; part++) {
    int32_t key = run->tile * KV_TILE_KEYS + part * PART_KEYS;
    if (key < run->longest->end) {
      int64_t block = run->longest->blocks[key / heads->block_size];
      slot = (block * heads->num_kv_heads + kv_head) * heads->block_size + key % heads->block_size;
    }
    int64_t byte = slot * heads->head_dim * (is_int8 ? 1 : 2);
    tile.keys[part] = (const char *)kv->keys + byte;
    tile.values[part] = (const char *)kv->values + byte;
    tile.key_scales[part] = is_int8 ? kv->key_scales + slot : NULL;
    tile.value_scales[part] = is_int8 ? kv->value_scales + slot : NULL;
  }
  return tile;
}
