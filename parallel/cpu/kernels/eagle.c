/* The CPU tier as one translation unit, so that the compiler sees through every call. */
#define _GNU_SOURCE

#include "eagle.h"

#if __has_include("threads.c")
#include "threads.c"
#endif
#if __has_include("matrix.c")
#include "matrix.c"
#endif
#if __has_include("attention.c")
#include "attention.c"
#endif
#if __has_include("rotary.c")
#include "rotary.c"
#endif
#if __has_include("layers.c")
#include "layers.c"
#endif
#if __has_include("all_reduce.c")
#include "all_reduce.c"
#endif
#if __has_include("step.c")
#include "step.c"
#endif
#if __has_include("sampling.c")
#include "sampling.c"
#endif

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
