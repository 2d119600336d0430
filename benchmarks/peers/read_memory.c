/* Reads memory and nothing else: the ceiling for an engine that must read every weight once a step. */
#include <stddef.h>
#include <stdint.h>

/* XOR of `count` words, a multiple of 32. The compiler keeps each of the four lanes of eight words in one register. */
uint64_t read_words(const uint64_t *words, size_t count) {
  uint64_t lanes[32] = {0};
  for (size_t i = 0; i < count; i += 32)
    for (int lane = 0; lane < 32; lane++) lanes[lane] ^= words[i + lane];
  uint64_t all = 0;
  for (int lane = 0; lane < 32; lane++) all ^= lanes[lane];
  return all;
}
