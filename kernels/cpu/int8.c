/* int8 weights: integers times integers. The rows of x are written with digits, see `digits.py`. */
#include "common.h"

#include <math.h>

#define PER_ABSMAX 7.874015718698502e-3f /* 1 / 127, as `formats.py` has it */

enum { LINES = 4 }; /* that are multiplied at once */

typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* The rows of x as integers, each written with `count` digits of base 256 in [-128, 127]. */
typedef struct {
    int count;
    long rows, width; /* width of a line: the columns of x in whole blocks, the last one filled with zeros */
    int8_t *lines;    /* [count * rows in whole LINES, width], all rows' lowest digits first */
    int32_t *sums;    /* [count * rows], of each line */
    float *units;     /* [rows], what an integer is worth */
} Digits;

static float largest_of(const float *x, long columns) {
    int32_t largest = 0; /* as integers, the bits of absolute values have their order, with NaN on top */
    for (long k = 0; k < columns; k++) {
        int32_t bits;
        memcpy(&bits, x + k, sizeof bits);
        bits &= INT32_MAX;
        largest = bits > largest ? bits : largest;
    }
    float value;
    memcpy(&value, &largest, sizeof value);
    return value;
}

static void write_row(const float *x, long columns, long row, Digits to) {
    float unit = largest_of(x, columns) / 127;
    for (int digit = 1; digit < to.count; digit++) unit /= 256;
    unit += 1e-30f;
    to.units[row] = unit;
    for (int digit = 0; digit < to.count; digit++) {
        int8_t *line = to.lines + (digit * to.rows + row) * to.width;
        int32_t sum = 0;
        for (long k = 0; k < columns; k++) {
            int32_t value = (int32_t)rintf(x[k] / unit);
            for (int lower = 0; lower < digit; lower++) value = (value + 128) >> 8; /* what the digit below leaves */
            line[k] = (int8_t)value;
            sum += line[k];
        }
        to.sums[digit * to.rows + row] = sum;
    }
}

static int write_digits(const void *x, Kind kind, long rows, long columns, int count, Digits *digits) {
    long width = (columns + BLOCK - 1) / BLOCK * BLOCK, lines = (count * rows + LINES - 1) / LINES * LINES;
    float *row = malloc(columns * sizeof *row);
    *digits = (Digits){count, rows, width, calloc(lines, width), malloc(lines * sizeof(int32_t)),
                       malloc(rows * sizeof(float))};
    int enough = row && digits->lines && digits->sums && digits->units;
    for (long index = 0; enough && index < rows; index++) {
        read_row(x, kind, index, columns, row);
        write_row(row, columns, index, *digits);
    }
    free(row);
    return enough;
}

/* sum[i] + the products 4i .. 4i + 3 of (value + 128) and digit, the form in which CPUs multiply bytes. */
INLINE ints add_products(ints sum, const int8_t *values, const int8_t *digits) {
#ifdef __AVX512VNNI__
    __m512i unsigned_values = _mm512_xor_si512(_mm512_loadu_si512(values), _mm512_set1_epi8(-128));
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, unsigned_values, _mm512_loadu_si512(digits));
#else
    for (int k = 0; k < BLOCK; k++) sum[k / 4] += (values[k] + 128) * digits[k];
    return sum;
#endif
}

INLINE int32_t sum_ints(ints vector) {
    int32_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += vector[lane];
    return sum;
}

/* The sums of STREAMS rows of W with LINES lines: sums[stream][line]. */
INLINE void multiply_lines(const int8_t *const *rows, const int8_t *lines, long columns, long width,
                           int32_t sums[STREAMS][LINES]) {
    ints vectors[STREAMS][LINES] = {0};
    long whole = columns / BLOCK * BLOCK;
    for (long k = 0; k < whole; k += BLOCK)
        for (int stream = 0; stream < STREAMS; stream++) {
            __builtin_prefetch(rows[stream] + k + AHEAD);
            for (int line = 0; line < LINES; line++)
                vectors[stream][line] = add_products(vectors[stream][line], rows[stream] + k, lines + line * width + k);
        }
    for (int stream = 0; stream < STREAMS && whole < columns; stream++) {
        int8_t rest[BLOCK] = {0}; /* times the zeros of the lines */
        memcpy(rest, rows[stream] + whole, columns - whole);
        for (int line = 0; line < LINES; line++)
            vectors[stream][line] = add_products(vectors[stream][line], rest, lines + line * width + whole);
    }
    for (int stream = 0; stream < STREAMS; stream++)
        for (int line = 0; line < LINES; line++) sums[stream][line] = sum_ints(vectors[stream][line]);
}

/* One output of every row of x, from its sums with all lines. */
INLINE void write_outputs(const int32_t *sums, Digits digits, float absmax, float *y, long stride) {
    for (long row = 0; row < digits.rows; row++) {
        int64_t total = 0;
        for (int digit = digits.count - 1; digit >= 0; digit--) {
            long line = digit * digits.rows + row;
            total = total * 256 + sums[line] - 128 * (int64_t)digits.sums[line];
        }
        y[row * stride] = (float)total * digits.units[row] * (absmax * PER_ABSMAX);
    }
}

int multiply_int8(const void *x, int kind, long rows, long columns, int count, const int8_t *values,
                  const float *absmax, long outputs, float *y, int threads) {
    Digits digits;
    int enough = write_digits(x, kind, rows, columns, count, &digits);
#pragma omp parallel num_threads(threads) if (enough)
    if (enough) {
        Share share = own_share(outputs);
        for (long turn = 0; turn < share.turns; turn++) {
            const int8_t *weights[STREAMS];
            for (int stream = 0; stream < STREAMS; stream++)
                weights[stream] = values + row_at(share, stream, turn) * columns;
            int32_t sums[STREAMS][count * rows + LINES];
            for (long line = 0; line < count * rows; line += LINES) {
                int32_t found[STREAMS][LINES];
                multiply_lines(weights, digits.lines + line * digits.width, columns, digits.width, found);
                for (int stream = 0; stream < STREAMS; stream++)
                    memcpy(&sums[stream][line], found[stream], sizeof found[stream]);
            }
            for (int stream = 0; stream < STREAMS; stream++) {
                long output = row_at(share, stream, turn);
                write_outputs(sums[stream], digits, absmax[output], y + output, outputs);
            }
        }
    }
    free(digits.lines), free(digits.sums), free(digits.units);
    return enough;
}

INLINE void read_int8_as(Kind kind, const int8_t *values, const float *absmax, long rows, long columns, void *to) {
#pragma omp for
    for (long row = 0; row < rows; row++)
        for (long k = 0; k < columns; k++)
            write(values[row * columns + k] * absmax[row] * PER_ABSMAX, kind, to, row * columns + k);
}

void read_int8(const int8_t *values, const float *absmax, long rows, long columns, int kind, void *to, int threads) {
#pragma omp parallel num_threads(threads)
    if (kind == FLOAT32) read_int8_as(FLOAT32, values, absmax, rows, columns, to);
    else read_int8_as(BFLOAT16, values, absmax, rows, columns, to);
}
