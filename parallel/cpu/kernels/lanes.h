/* Vectors of as many lanes as one register has: 16, 8 or 4. For kernels whose sums must stay in registers on every
 * level; a vector of 16 lanes (simd.h) lives in memory where registers are narrower. */
#ifndef EAGLE_LANES_H
#define EAGLE_LANES_H

#include "simd.h"

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

/* Loops over an array of sums must unroll entirely for the sums to be registers. */
#define UNROLLED _Pragma("GCC unroll 16")

INLINE vf vf_load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vi vi_load(const void *p) { vi v; memcpy(&v, p, sizeof v); return v; }
INLINE void vi_store(void *p, vi v) { memcpy(p, &v, sizeof v); }

INLINE vi vi_splat(int32_t x) {
#if LANES == 16
  return (vi){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif LANES == 8
  return (vi){x, x, x, x, x, x, x, x};
#else
  return (vi){x, x, x, x};
#endif
}
INLINE vf vf_splat(float x) {
#if LANES == 16
  return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif LANES == 8
  return (vf){x, x, x, x, x, x, x, x};
#else
  return (vf){x, x, x, x};
#endif
}

/* 0, 1, 2, ... */
INLINE vi vi_count(void) {
#if LANES == 16
  return (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
  return (vi){0, 1, 2, 3, 4, 5, 6, 7};
#else
  return (vi){0, 1, 2, 3};
#endif
}

INLINE vf vf_select(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* The larger of two; b where either is NaN. */
INLINE vf vf_max(vf a, vf b) {
#if LANES == 16
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return vf_select(a > b, a, b);
#endif
}

/* a * b + c, rounded once where the processor can. */
INLINE vf vf_fma(vf a, vf b, vf c) {
#if LANES == 16
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

/* Whether any lane of a is more than b's. */
INLINE int vf_any_greater(vf a, vf b) {
#if LANES == 16
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
#elif LANES == 8
  return _mm256_movemask_ps((__m256)(a > b)) != 0;
#else
  vi is_greater = a > b;
  return (is_greater[0] | is_greater[1] | is_greater[2] | is_greater[3]) != 0;
#endif
}

INLINE float vf_maximum(vf v) {
#if LANES == 16
  return _mm512_reduce_max_ps((__m512)v);
#else
  float a[LANES];
  vf_store(a, v);
  for (int i = 1; i < LANES; i++) a[0] = a[i] > a[0] ? a[i] : a[0];
  return a[0];
#endif
}

/* Halves are folded onto each other. */
INLINE float vf_sum(vf v) {
#if LANES == 16
  return _mm512_reduce_add_ps((__m512)v);
#else
  float a[LANES];
  vf_store(a, v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) a[i] += a[i + width];
  return a[0];
#endif
}

/* Round to bfloat16, ties to even, and store LANES of them. NaN stays NaN. */
INLINE void vf_store_bf16(eg_bf16 *p, vf v) {
#if defined(__AVX512BF16__)
  __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &rounded, sizeof rounded);
#else
  vu bits = (vu)v;
  vu rounded = bits + 0x7fff + ((bits >> 16) & 1);
  vu is_nan = (vu)(v != v);
  rounded = (rounded & ~is_nan) | ((bits | 0x400000) & is_nan);
  vh halves = __builtin_convertvector(rounded >> 16, vh);
  memcpy(p, &halves, sizeof halves);
#endif
}

/* LANES signed bytes. */
INLINE vf vf_load_i8(const int8_t *p) {
#if LANES == 16
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
#elif LANES == 8
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
#else
  return (vf){p[0], p[1], p[2], p[3]};
#endif
}

/* Store 32 signed bytes as bfloat16, which has them all. */
INLINE void widen_i8x32(const int8_t *p, eg_bf16 *wide) {
#if defined(__AVX512BF16__)
  __m512bh both = _mm512_cvtne2ps_pbh((__m512)vf_load_i8(p + 16), (__m512)vf_load_i8(p));
  memcpy(wide, &both, sizeof both);
#else
  for (int i = 0; i < 32; i += LANES) {
    vh halves = __builtin_convertvector((vu)vf_load_i8(p + i) >> 16, vh);
    memcpy(wide + i, &halves, sizeof halves);
  }
#endif
}

/* sums + a.low * b.low + a.high * b.high, a and b pairs of bfloat16. */
INLINE vf vf_dot_bf16(vf sums, vi a, vi b) {
#if defined(__AVX512BF16__)
  return (vf)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
  const vi high = vi_splat((int32_t)0xffff0000);
  sums = vf_fma((vf)(a << 16), (vf)(b << 16), sums);
  return vf_fma((vf)(a & high), (vf)(b & high), sums);
#endif
}

/* 2^x with a relative error of 1e-4, a twentieth of what rounding it to bfloat16 adds; 2^0 is 1, and below 2^-126 it
 * may be 0. NaN stays NaN. For x up to 127. */
INLINE vf vf_exp2(vf x) {
#if LANES == 16
  vf whole = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vf lowest = vf_splat(-127.0f), magic = vf_splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
  x = vf_max(lowest, x);
  vf shifted = x + magic, whole = shifted - magic;
#endif
  vf f = x - whole;
  vf p = vf_splat(0.0550089292f);
  p = vf_fma(p, f, vf_splat(0.242210954f));
  p = vf_fma(p, f, vf_splat(0.693282902f));
  p = vf_fma(p, f, vf_splat(1.0f));
#if LANES == 16
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  return p * (vf)(((vi)shifted - (vi)magic + 127) << 23);
#endif
}

#endif
