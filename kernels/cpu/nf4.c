/* NF4 weights: floats times floats, the 16 levels looked up in a register. */
#include "common.h"

enum {
    ROWS = 2,        /* of x that are multiplied at once */
    AHEAD = 1024,    /* bytes, into L1: with 2 KB or into L2 Zen 5 reads as fast or 5 % slower */
    BLOCK = 64,      /* weights that share a scale */
    HALF = BLOCK / 2 /* of them lie in the low halves of a block's bytes, the others in the high halves */
};

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float unaligned_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* The levels of LANES bytes' low halves (shift 0) or high halves (shift 4). */
INLINE floats levels_of(const uint8_t *bytes, int shift, const float *levels) {
#if defined(__AVX512F__)
    __m512i index = _mm512_srli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes)), shift);
    return (floats)_mm512_permutexvar_ps(index, _mm512_loadu_ps(levels));
#elif defined(__AVX2__)
    __m256i index = _mm256_srli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes)), shift);
    __m256 lower = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels), index);
    __m256 upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels + 8), index);
    __m256i bit_3_as_sign = _mm256_slli_epi32(index, 28);
    return (floats)_mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(bit_3_as_sign));
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
            const uint8_t *bytes = packed[stream] + block * HALF;
            __builtin_prefetch(bytes + AHEAD);
            floats parts[ROWS] = {0};
            for (int k = 0; k < BLOCK; k += LANES) {
                floats level = levels_of(bytes + k % HALF, k / HALF * 4, levels);
                for (int row = 0; row < ROWS; row++)
                    parts[row] += level * *(const unaligned_floats *)(x + row * columns + block * BLOCK + k);
            }
            for (int row = 0; row < ROWS; row++) sums[stream][row] += parts[row] * absmax[stream][block];
        }
    for (int stream = 0; stream < STREAMS; stream++)
        for (int row = 0; row < ROWS; row++) y[stream][row] = sum_floats(sums[stream][row]);
}

/* 0 if there is no memory for the inputs. */
int multiply_nf4(const void *x, int kind, long rows, long columns, const uint8_t *packed, const float *absmax,
                 const float *levels, long outputs, float *y, int threads) {
    long padded = (rows + ROWS - 1) / ROWS * ROWS;
    float *inputs = calloc(padded * columns, sizeof *inputs);
    int enough = inputs != NULL;
#pragma omp parallel num_threads(threads) if (enough)
    if (enough) {
#pragma omp for
        for (long row = 0; row < rows; row++) read_row(x, kind, row, columns, inputs + row * columns);
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
    return enough;
}

INLINE void read_nf4_as(Kind kind, const uint8_t *packed, const float *absmax, const float *levels, long blocks,
                        void *to) {
#pragma omp for
    for (long block = 0; block < blocks; block++)
        for (int k = 0; k < BLOCK; k += LANES) {
            floats level = levels_of(packed + block * HALF + k % HALF, k / HALF * 4, levels);
            for (int lane = 0; lane < LANES; lane++)
                put(level[lane] * absmax[block], kind, to, block * BLOCK + k + lane);
        }
}

void read_nf4(const uint8_t *packed, const float *absmax, const float *levels, long blocks, int kind, void *to,
              int threads) {
#pragma omp parallel num_threads(threads)
    if (kind == FLOAT32) read_nf4_as(FLOAT32, packed, absmax, levels, blocks, to);
    else read_nf4_as(BFLOAT16, packed, absmax, levels, blocks, to);
}
