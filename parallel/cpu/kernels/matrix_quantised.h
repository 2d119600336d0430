/* int8 and int4 weights; inputs as int8 with a scale per group of 32. Products inside a group are whole numbers and so
 * exact; groups are added up in float32, one after the other.
 *
 *   scales  int8 [I/32][16], int4 [I/32][2][16] (scales, then minimums) float16
 *   codes   as bytes [I/4][16][4] uint8: a line holds four inputs of a panel's 16 outputs. int8 codes are kept with 128
 *           added, which a group's -128 * (sum of inputs) takes off again.
 *           as nibbles [I/32][4][16][4] uint8: line l of a group holds inputs 4l .. 4l+3 in the low halves, and those
 *           16 further on in the high ones. int4 is kept so, and unpacked once where several blocks of tokens meet it.
 *   values  [T/8][I/4][8][4] int8, input_scales and input_sums [T/8][I/32][8]
 * (Blocks are of TILE_TOKENS tokens, 8 at best, the last of those that are left.)
 */
#ifndef EAGLE_MATRIX_QUANTISED_H
#define EAGLE_MATRIX_QUANTISED_H

#include "matrix_tile.h"

enum { LINES = EG_GROUP / 4 }; /* lines of bytes in a group */
enum coding { CODES_INT8, CODES_INT4_BYTES, CODES_INT4_NIBBLES };

/* dots + the products of four unsigned by four signed bytes in each lane. */
INLINE vi vi_dot_bytes(vi dots, vi unsigned_bytes, vi signed_bytes) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpbusd_epi32((__m512i)dots, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#elif defined(__AVX2__) && LANES == 8
  /* Not maddubs, which saturates: the even bytes as 16 bits, then the odd ones. */
  const __m256i even = _mm256_set1_epi16(0xff);
  __m256i u = (__m256i)unsigned_bytes, s = (__m256i)signed_bytes;
  __m256i evens = _mm256_madd_epi16(_mm256_and_si256(u, even), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  __m256i odds = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return dots + (vi)_mm256_add_epi32(evens, odds);
#else
  for (int byte = 0; byte < 4; byte++) {
    vi u = (vi)(((vu)unsigned_bytes >> (8 * byte)) & 0xff);
    vi s = (signed_bytes << (24 - 8 * byte)) >> 24;
    dots += u * s;
  }
  return dots;
#endif
}

INLINE vf vf_load_f16(const void *p) {
#if LANES == 16
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p));
#elif LANES == 8 && defined(__F16C__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128(p));
#else
  vh halves;
  memcpy(&halves, p, sizeof halves);
  vu bits = __builtin_convertvector(halves, vu);
  vu sign = (bits & 0x8000) << 16;
  /* The exponent is re-biased by a product, which also scales subnormals right. */
  vf magnitude = (vf)((bits & 0x7fff) << 13) * 0x1p112f;
  return (vf)((vu)magnitude | sign);
#endif
}

/* dots[t][v] += a line's products; `weights` belong to inputs `values` of each token. */
INLINE void add_line_dots(vi dots[TILE_TOKENS][TILE_VECTORS], const vi weights[TILE_VECTORS], const char *values,
                          const int tokens, const int vectors) {
  UNROLLED for (int t = 0; t < tokens; t++) {
    vi input = vi_splat(load_lane(values + 4 * t));
    UNROLLED for (int v = 0; v < vectors; v++) dots[t][v] = vi_dot_bytes(dots[t][v], weights[v], input);
  }
}

/* dots[t][v] += a group's products; `codes`, `values` and `ahead` are the group's. */
INLINE void add_group_dots(vi dots[TILE_TOKENS][TILE_VECTORS], const eg_tile *tile, const char *codes,
                           const char *values, const char *ahead, const int tokens, const int panels,
                           const enum coding coding) {
  const int vectors = panels * VECTORS_PER_PANEL, far = LINES / 2 * 4 * tokens;
  const vi low_halves = vi_splat(0x0f0f0f0f);
  for (int l = 0; l < (coding == CODES_INT4_NIBBLES ? LINES / 2 : LINES); l++) {
    vi line[TILE_VECTORS];
    UNROLLED for (int v = 0; v < vectors; v++) line[v] = vi_load(codes + vector_offset(v, tile->codes_stride, 4));
    UNROLLED for (int p = 0; p < panels; p++) {
      __builtin_prefetch(ahead, 0, 3);
      ahead += tile->ahead_step;
    }
    if (coding == CODES_INT4_NIBBLES) {
      vi low[TILE_VECTORS], high[TILE_VECTORS];
      UNROLLED for (int v = 0; v < vectors; v++) {
        low[v] = line[v] & low_halves;
        high[v] = (vi)((vu)line[v] >> 4) & low_halves;
      }
      add_line_dots(dots, low, values, tokens, vectors);
      add_line_dots(dots, high, values + far, tokens, vectors);
    } else {
      add_line_dots(dots, line, values, tokens, vectors);
    }
    codes += 4 * EG_PANEL;
    values += 4 * tokens;
  }
}

INLINE void quantised_tile(const eg_tile *tile, float *results, const int tokens, const int panels,
                           const enum coding coding) {
  const int vectors = panels * VECTORS_PER_PANEL;
  const int num_lines = coding == CODES_INT4_NIBBLES ? LINES / 2 : LINES;
  const int scales_bytes = (coding == CODES_INT8 ? 1 : 2) * EG_PANEL * 2;
  vf sums[TILE_TOKENS][TILE_VECTORS];
  UNROLLED for (int t = 0; t < tokens; t++)
    UNROLLED for (int v = 0; v < vectors; v++) sums[t][v] = vf_splat(0);
  const char *codes = tile->codes, *values = tile->values, *scales = tile->scales, *ahead = tile->ahead;
  const float *input_scales = tile->input_scales;
  const char *input_sums = tile->input_sums;
  for (int64_t group = 0; group < tile->num_inputs / EG_GROUP; group++) {
    vi dots[TILE_TOKENS][TILE_VECTORS];
    UNROLLED for (int t = 0; t < tokens; t++) {
      vi start = vi_splat(coding == CODES_INT8 ? load_lane(input_sums + 4 * t) : 0);
      UNROLLED for (int v = 0; v < vectors; v++) dots[t][v] = start;
    }
    add_group_dots(dots, tile, codes, values, ahead, tokens, panels, coding);
    UNROLLED for (int v = 0; v < vectors; v++) {
      const char *vector_scales = scales + vector_offset(v, tile->scales_stride, 2);
      vf scale = vf_load_f16(vector_scales);
      vf minimum = coding == CODES_INT8 ? scale : vf_load_f16(vector_scales + 2 * EG_PANEL);
      UNROLLED for (int t = 0; t < tokens; t++) {
        vf dot = __builtin_convertvector(dots[t][v], vf) * scale;
        sums[t][v] = vf_fma(dot, vf_splat(input_scales[t]), sums[t][v]);
        if (coding != CODES_INT8)
          sums[t][v] = vf_fma(minimum, vf_splat(((const float *)input_sums)[t]), sums[t][v]);
      }
    }
    UNROLLED for (int p = 0; p < panels; p++)
      __builtin_prefetch(ahead + (num_lines * panels + p) * tile->ahead_step, 0, 3);
    codes += num_lines * 4 * EG_PANEL;
    values += EG_GROUP * tokens;
    scales += scales_bytes;
    ahead += (num_lines + 1) * panels * tile->ahead_step;
    input_scales += tokens;
    input_sums += 4 * tokens;
  }
  store_results(results, sums, tokens, vectors);
}

INLINE void int8(const eg_tile *tile, float *results, const int tokens, const int panels) {
  quantised_tile(tile, results, tokens, panels, CODES_INT8);
}
INLINE void int4_bytes(const eg_tile *tile, float *results, const int tokens, const int panels) {
  quantised_tile(tile, results, tokens, panels, CODES_INT4_BYTES);
}
INLINE void int4_nibbles(const eg_tile *tile, float *results, const int tokens, const int panels) {
  quantised_tile(tile, results, tokens, panels, CODES_INT4_NIBBLES);
}

KERNELS(int8)
KERNELS(int4_bytes)
KERNELS(int4_nibbles)

/* One panel's nibbles as bytes. */
static void unpack_nibbles(const char *nibbles, int64_t num_groups, char *bytes) {
  const vi low_halves = vi_splat(0x0f0f0f0f);
  const int64_t half_bytes = LINES / 2 * 4 * EG_PANEL;
  for (int64_t group = 0; group < num_groups; group++) {
    for (int64_t i = 0; i < half_bytes; i += sizeof(vi)) {
      vi line = vi_load(nibbles + i);
      vi_store(bytes + i, line & low_halves);
      vi_store(bytes + half_bytes + i, (vi)((vu)line >> 4) & low_halves);
    }
    nibbles += half_bytes;
    bytes += 2 * half_bytes;
  }
}

#endif
