/* What element-wise operations have in common. */
#ifndef EAGLE_LAYERS_H
#define EAGLE_LAYERS_H

#include <stdint.h>

/* Rows that are worth handing to a thread together: waking one costs about as much as 16384 numbers. */
static inline int64_t rows_per_chunk(int64_t size) { return size > 0 && size < 16384 ? 16384 / size : 1; }

#endif
