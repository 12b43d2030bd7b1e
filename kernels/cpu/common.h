/* y = x W^T for a few rows x and a quantized W, at the speed at which W comes from memory. `build.py` compiles this for
 * the machine that it runs on; `matmul.py` calls it and has the rules for the arguments.
 *
 * Every sum has an order that depends on neither the number of rows nor that of threads, so a row of x gives the same
 * bits in any batch.
 *
 * A thread goes through its share of W as STREAMS runs of rows at once, a row of each in turn, and fetches ahead by
 * hand: a CPU's own fetching stops at the end of each page of 4 KB. Measured with two threads and two rows of x: 31 GB/s on
 * an Intel Xeon with AMX, where one run without fetching ahead reads 21; on an AMD EPYC (Zen 5) 22-31 in int8 and 25-28 in
 * NF4, without fetching ahead about two thirds and half of that.
 */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else /* one thread */
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum { STREAMS = 4 };

/* The rows of W that a thread multiplies. */
typedef struct {
    long start, end, turns;
} Share;

INLINE Share own_share(long rows) {
    long thread = omp_get_thread_num(), threads = omp_get_num_threads();
    Share share = {rows * thread / threads, rows * (thread + 1) / threads, 0};
    share.turns = (share.end - share.start + STREAMS - 1) / STREAMS;
    return share;
}

/* What a stream reads at a turn. Streams that have come to the end repeat the last row. */
INLINE long row_at(Share share, int stream, long turn) {
    long row = share.start + stream * share.turns + turn;
    return row < share.end ? row : share.end - 1;
}

typedef enum { FLOAT32, BFLOAT16 } Kind;

INLINE void read_row(const void *x, Kind kind, long row, long columns, float *to) {
    if (kind == FLOAT32) {
        memcpy(to, (const float *)x + row * columns, columns * sizeof *to);
        return;
    }
    const uint16_t *from = (const uint16_t *)x + row * columns;
    for (long k = 0; k < columns; k++) {
        uint32_t bits = (uint32_t)from[k] << 16;
        memcpy(to + k, &bits, sizeof bits);
    }
}

/* To the nearest, and among two to the even one. */
INLINE void put(float value, Kind kind, void *to, long place) {
    if (kind == FLOAT32) {
        ((float *)to)[place] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    ((uint16_t *)to)[place] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
