/* NF4 weights: floats times floats, the 16 levels looked up in a register. */
#include "common.h"

enum { ROWS = 2 }; /* of x that are multiplied at once */

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float unaligned_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* The levels of 16 bytes' low halves (shift 0) or high halves (shift 4). */
INLINE floats levels_of(const uint8_t *bytes, int shift, const float *levels) {
#ifdef __AVX512F__
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
    return (floats)_mm512_permutexvar_ps(_mm512_srli_epi32(wide, shift), _mm512_loadu_ps(levels));
#else
    floats found;
    for (int lane = 0; lane < LANES; lane++) found[lane] = levels[bytes[lane] >> shift & 15];
    return found;
#endif
}

INLINE float sum_floats(floats vector) {
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) vector[lane] += vector[lane + half];
    return vector[0];
}

/* STREAMS rows of W with ROWS rows of x [ROWS, columns]: y[stream][row]. */
INLINE void multiply_rows(const uint8_t *const *packed, const float *const *absmax, const float *x, long columns,
                          const float *levels, float y[STREAMS][ROWS]) {
    floats sums[STREAMS][ROWS] = {0};
    for (long block = 0; block < columns / BLOCK; block++)
        for (int stream = 0; stream < STREAMS; stream++) {
            const uint8_t *bytes = packed[stream] + block * BLOCK / 2;
            __builtin_prefetch(bytes + AHEAD);
            floats parts[ROWS] = {0};
            for (int quarter = 0; quarter < 4; quarter++) {
                floats level = levels_of(bytes + quarter % 2 * LANES, quarter / 2 * 4, levels);
                for (int row = 0; row < ROWS; row++)
                    parts[row] += level * *(const unaligned_floats *)(x + row * columns + block * BLOCK + quarter * LANES);
            }
            for (int row = 0; row < ROWS; row++) sums[stream][row] += parts[row] * absmax[stream][block];
        }
    for (int stream = 0; stream < STREAMS; stream++)
        for (int row = 0; row < ROWS; row++) y[stream][row] = sum_floats(sums[stream][row]);
}

int multiply_nf4(const void *x, int kind, long rows, long columns, const uint8_t *packed, const float *absmax,
                 const float *levels, long outputs, float *y, int threads) {
    long padded = (rows + ROWS - 1) / ROWS * ROWS;
    float *inputs = calloc(padded * columns, sizeof *inputs);
    for (long row = 0; inputs && row < rows; row++) read_row(x, kind, row, columns, inputs + row * columns);
#pragma omp parallel num_threads(threads) if (inputs)
    if (inputs) {
        Share share = own_share(outputs);
        for (long turn = 0; turn < share.turns; turn++) {
            const uint8_t *weights[STREAMS];
            const float *scales[STREAMS];
            for (int stream = 0; stream < STREAMS; stream++) {
                weights[stream] = packed + row_at(share, stream, turn) * columns / 2;
                scales[stream] = absmax + row_at(share, stream, turn) * columns / BLOCK;
            }
            for (long row = 0; row < rows; row += ROWS) {
                float found[STREAMS][ROWS];
                multiply_rows(weights, scales, inputs + row * columns, columns, levels, found);
                for (int stream = 0; stream < STREAMS; stream++)
                    for (int next = 0; next < ROWS && row + next < rows; next++)
                        y[(row + next) * outputs + row_at(share, stream, turn)] = found[stream][next];
            }
        }
    }
    free(inputs);
    return inputs != NULL;
}

INLINE void read_nf4_as(Kind kind, const uint8_t *packed, const float *absmax, const float *levels, long blocks,
                        void *to) {
#pragma omp for
    for (long block = 0; block < blocks; block++)
        for (int quarter = 0; quarter < 4; quarter++) {
            const uint8_t *bytes = packed + block * BLOCK / 2 + quarter % 2 * LANES;
            floats level = levels_of(bytes, quarter / 2 * 4, levels);
            for (int lane = 0; lane < LANES; lane++)
                write(level[lane] * absmax[block], kind, to, block * BLOCK + quarter * LANES + lane);
        }
}

void read_nf4(const uint8_t *packed, const float *absmax, const float *levels, long blocks, int kind, void *to,
              int threads) {
#pragma omp parallel num_threads(threads)
    if (kind == FLOAT32) read_nf4_as(FLOAT32, packed, absmax, levels, blocks, to);
    else read_nf4_as(BFLOAT16, packed, absmax, levels, blocks, to);
}
