/* What the parts of paged attention tell each other: tiles of keys, the state of a query, the plan of a step.
 *
 * A query is one token's vector of one query head. It looks at its keys tile by tile from position 0 up, and carries a
 * state from tile to tile: online softmax, arXiv 1805.02867. Every SEGMENT_TILES tiles it starts a new state, and the
 * states are merged in ascending order. Tiles and segments lie at fixed positions, and nothing but the query and its
 * keys enters a state. So any grouping of queries, any chunking of a prompt and any number of threads give the same
 * bits; grouping only decides how often a key is fetched.
 */
#ifndef EAGLE_ATTENTION_H
#define EAGLE_ATTENTION_H

#include "eagle.h"
#include "lanes.h"

#define PART_KEYS 16 /* a part: adjacent keys inside one block, whose pairs lie together in both layouts */
#define KV_TILE_PARTS 4
#define KV_TILE_KEYS (PART_KEYS * KV_TILE_PARTS)
#define SEGMENT_TILES 8
#define SEGMENT_KEYS (KV_TILE_KEYS * SEGMENT_TILES)
#define MAX_GROUP_QUERIES 96 /* their states and one tile of keys and values stay in the caches next to the core */

INLINE int32_t divided_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

/* ---- tiles: attention_tile.c ---- */

/* KV_TILE_KEYS positions of one kv head, in the cache in its format, or widened to bfloat16. Parts past the row's last
 * key may be read, but nothing depends on them. */
typedef struct kv_tile {
  const void *keys[KV_TILE_PARTS];          /* [E/2][16][2], pairs of features */
  const void *values[KV_TILE_PARTS];        /* [8][E][2], pairs of tokens */
  const float *key_scales[KV_TILE_PARTS];   /* [16]; null in bfloat16 caches */
  const float *value_scales[KV_TILE_PARTS]; /* [16]; null in bfloat16 caches */
} kv_tile;

/* Queries that look at one tile. */
typedef struct tile_queries {
  int32_t head_dim;
  float scale;            /* of q k^T, times log2(e) */
  int64_t num_queries;
  const int32_t *queries; /* [num_queries][E/2], pairs of features */
  const int32_t *ends;    /* [num_queries], keys of the row that each may see */
  int32_t first_key;      /* of the tile; less than each of `ends` */
  float *states;          /* [num_queries][state_floats(E)] */
} tile_queries;

/* The weights' sums by lane of a part [16], the weighted values [E], the peak the weights count from [1 of 16]. */
INLINE int64_t state_floats(int32_t head_dim) { return 16 + head_dim + 16; }

/* The state before the first key. Its peak is below that of any key, yet finite. */
static void clear_state(float *state, int32_t head_dim);
/* Add the state of later keys. */
static void merge_state(float *state, const float *later, int32_t head_dim);
/* out[E] = the weighted mean of the values. */
static void finish_state(const float *state, int32_t head_dim, float *out);

/* Update each query's state by the tile, which is bfloat16. What is read next is fetched meanwhile: the tile's values
 * along with its keys, the next tile's keys along with its values. Some 8 KiB ahead is the best that was measured. */
static void attend_tile(const tile_queries *queries, const kv_tile *tile, const void *const *next_keys);

/* ---- the plan: attention_plan.c ---- */

/* Adjacent tokens of one row. */
typedef struct query_member {
  const int64_t *blocks; /* of the row */
  int64_t first_token;   /* in the step */
  int32_t first_position;
  int32_t end; /* keys that the last token sees */
  int32_t num_blocks;
  int32_t first_query; /* in the group */
} query_member;

/* Members whose rows start with the same blocks. Their queries are numbered by member, then token, then head. */
typedef struct query_group {
  int32_t first_member, last_member;
  int32_t num_queries; /* per kv head */
  int32_t end;         /* keys that the longest member sees */
  int64_t cost;        /* for one kv head, about CPU cycles */
  int64_t first_state; /* in the plan's states, where is_split */
  int64_t is_split;    /* its segments are several items, merged afterwards */
} query_group;

/* What a thread takes at a time: some kv heads and segments of a group; all segments unless it is split. */
typedef struct attention_item {
  int32_t group;
  int32_t first_head, num_heads;
  int32_t first_segment, last_segment;
  int32_t unused;
  int64_t cost;
} attention_item;

/* An array that is kept from step to step and grows to the largest. */
typedef struct grown_array {
  void *memory;
  size_t bytes;
} grown_array;

struct eg_attention_plan {
  eg_heads heads;
  query_member *members; /* in the order of their blocks */
  query_group *groups;
  attention_item *items; /* the dearest first */
  int32_t *split_groups;
  float *states; /* of each split group: [segment][kv head][query] */
  int64_t num_members, num_groups, num_items, num_split, num_states;
  int64_t items_per_chunk;
  grown_array member_array, group_array, item_array, split_array, state_array;
};

/* Query heads that read one kv head. */
INLINE int32_t queries_per_token(const eg_heads *heads) { return heads->num_query_heads / heads->num_kv_heads; }



#endif
