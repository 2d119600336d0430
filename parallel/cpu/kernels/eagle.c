/* The CPU tier as one translation unit, so that the compiler sees through every call. */
#define _GNU_SOURCE

#include "eagle.h"

#include "threads.c"
#include "all_reduce.c"
#include "attention.c"
#include "layers.c"
#include "matrix.c"
#include "pulse.c"
#include "rotary.c"
#include "sampling.c"
#include "step.c"

int eg_abi_version(void) { return EG_ABI_VERSION; }

const char *eg_level(void) {
#if defined(__AMX_BF16__)
  return "amx";
#elif defined(__AVX512BF16__)
  return "avx512_bf16";
#elif defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "portable";
#endif
}

int eg_enable(void) {
#if defined(__AMX_BF16__)
  return amx_enable();
#else
  return 0;
#endif
}
