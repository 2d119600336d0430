/* Sixteen lanes, written once for every instruction set: GCC vectors where arithmetic is enough, intrinsics where an
 * instruction has no other name. Everything here is inline and pure. */
#ifndef EAGLE_SIMD_H
#define EAGLE_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "eagle.h"

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))

INLINE f32x16 load_f32(const float *p) { f32x16 v; memcpy(&v, p, 64); return v; }
INLINE void store_f32(float *p, f32x16 v) { memcpy(p, &v, 64); }
INLINE i32x16 load_i32(const void *p) { i32x16 v; memcpy(&v, p, 64); return v; }
INLINE void store_i32(void *p, i32x16 v) { memcpy(p, &v, 64); }
INLINE u16x16 load_u16(const void *p) { u16x16 v; memcpy(&v, p, 32); return v; }
INLINE void store_u16(void *p, u16x16 v) { memcpy(p, &v, 32); }

INLINE f32x16 splat_f32(float x) { return (f32x16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE i32x16 splat_i32(int32_t x) { return (i32x16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

/* a * b + c with one rounding, in every kernel alike. */
INLINE f32x16 fma_f32(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  f32x16 r;
  for (int i = 0; i < 16; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#endif
}

INLINE f32x16 select_f32(i32x16 mask, f32x16 yes, f32x16 no) {
  return (f32x16)(((i32x16)yes & mask) | ((i32x16)no & ~mask));
}
/* Whether a comparison holds in any lane. */
INLINE int any_i32(i32x16 mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  int64_t lanes[8], any = 0;
  memcpy(lanes, &mask, 64);
  for (int i = 0; i < 8; i++) any |= lanes[i];
  return any != 0;
#endif
}
/* The larger of two; b where either is NaN, as x86 has it. */
INLINE f32x16 max_f32(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return select_f32(a > b, a, b);
#endif
}

/* Halves are added to each other, so the order of additions never depends on where a vector came from. */
INLINE float sum_f32(f32x16 v) {
  float a[16];
  store_f32(a, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) a[i] += a[i + width];
  return a[0];
}
INLINE float maximum_f32(f32x16 v) {
  float a[16];
  store_f32(a, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) a[i] = a[i] > a[i + width] ? a[i] : a[i + width];
  return a[0];
}

/* ---- bfloat16 and float16 ---- */

INLINE f32x16 f32_of_bf16(u16x16 v) { return (f32x16)(__builtin_convertvector(v, u32x16) << 16); }

/* Round to nearest, ties to even; NaN stays NaN. */
INLINE u16x16 bf16_of_f32(f32x16 v) {
#if defined(__AVX512BF16__)
  return (u16x16)_mm512_cvtneps_pbh((__m512)v);
#else
  u32x16 bits = (u32x16)v;
  u32x16 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  u32x16 is_nan = (u32x16)(v != v);
  rounded = (rounded & ~is_nan) | ((bits | 0x400000) & is_nan);
  return __builtin_convertvector(rounded >> 16, u16x16);
#endif
}

INLINE f32x16 f32_of_f16(u16x16 v) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_cvtph_ps((__m256i)v);
#elif defined(__F16C__)
  f32x16 r;
  uint16_t half[16];
  memcpy(half, &v, 32);
  for (int i = 0; i < 16; i++) r[i] = _cvtsh_ss(half[i]);
  return r;
#else
  u32x16 bits = __builtin_convertvector(v, u32x16);
  u32x16 sign = (bits & 0x8000) << 16;
  /* The exponent is re-biased by a product, which also scales subnormals right. */
  f32x16 magnitude = (f32x16)((bits & 0x7fff) << 13) * 0x1p112f;
  return (f32x16)((u32x16)magnitude | sign);
#endif
}

/* ---- dot products over pairs and quadruples inside each 32-bit lane ---- */

/* acc + a.lo * b.lo + a.hi * b.hi, a and b pairs of bfloat16. */
INLINE f32x16 dot_bf16(f32x16 acc, i32x16 a, i32x16 b) {
#if defined(__AVX512BF16__)
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  const i32x16 high = splat_i32((int32_t)0xffff0000);
  acc = fma_f32((f32x16)(a << 16), (f32x16)(b << 16), acc);
  return fma_f32((f32x16)(a & high), (f32x16)(b & high), acc);
#endif
}

/* acc + the products of four unsigned by four signed bytes. */
INLINE i32x16 dot_u8_i8(i32x16 acc, i32x16 unsigned_bytes, i32x16 signed_bytes) {
#if defined(__AVX512VNNI__)
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#else
  for (int byte = 0; byte < 4; byte++) {
    i32x16 u = (i32x16)(((u32x16)unsigned_bytes >> (8 * byte)) & 0xff);
    i32x16 s = (signed_bytes << (24 - 8 * byte)) >> 24;
    acc += u * s;
  }
  return acc;
#endif
}

/* ---- functions ---- */

/* e^x to about 2 units in the last place; 0 below -87.3, +inf above 88.7 (Cody-Waite reduction, minimax polynomial). */
INLINE f32x16 exp_f32(f32x16 x) {
  const f32x16 low = splat_f32(-87.33654f);
#if defined(__AVX512F__)
  f32x16 clamped = (f32x16)_mm512_min_ps(_mm512_set1_ps(89.0f), (__m512)x); /* NaN stays */
#else
  const f32x16 high = splat_f32(88.72283f);
  i32x16 is_low = x < low, is_high = x > high;
  f32x16 clamped = select_f32(is_low, low, select_f32(is_high, high, x));
#endif
  const f32x16 magic = splat_f32(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
  f32x16 shifted = fma_f32(clamped, splat_f32(1.44269504f), magic);
  f32x16 n = shifted - magic;
  f32x16 r = fma_f32(n, splat_f32(-0.693359375f), clamped);
  r = fma_f32(n, splat_f32(2.12194440e-4f), r);
  f32x16 p = splat_f32(1.9875691500e-4f);
  p = fma_f32(p, r, splat_f32(1.3981999507e-3f));
  p = fma_f32(p, r, splat_f32(8.3334519073e-3f));
  p = fma_f32(p, r, splat_f32(4.1665795894e-2f));
  p = fma_f32(p, r, splat_f32(1.6666665459e-1f));
  p = fma_f32(p, r, splat_f32(5.0000001201e-1f));
  p = fma_f32(p, r * r, r) + 1.0f;
#if defined(__AVX512F__)
  __mmask16 is_large_enough = _mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_NLT_UQ);
  return (f32x16)_mm512_maskz_scalef_ps(is_large_enough, (__m512)p, (__m512)n);
#else
  /* 2^n in two factors, so that n = 128 does not overflow before the product does. */
  i32x16 exponent = (i32x16)shifted - (i32x16)magic;
  i32x16 half = exponent >> 1;
  f32x16 y = p * (f32x16)((half + 127) << 23) * (f32x16)((exponent - half + 127) << 23);
  y = select_f32(is_low, splat_f32(0.0f), y);
  return select_f32(is_high, splat_f32(INFINITY), y);
#endif
}

INLINE f32x16 silu_f32(f32x16 x) { return x / (1.0f + exp_f32(-x)); }

#endif
