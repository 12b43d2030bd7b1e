/* int8 weights: integers times integers. The rows of x are written with digits, see `digits.py`. */
#include "common.h"

#include <float.h>
#include <math.h>

#define PER_ABSMAX 7.874015718698502e-3f /* 1 / 127, as `formats.py` has it */

enum {
    LINES = 4, /* that are multiplied at once */
    RUN = 512  /* columns between two that are fetched ahead */
};

/* The rows of x as integers, each written with `count` digits of base 256 in [-128, 127]. */
typedef struct {
    int count;
    long rows, columns;
    int8_t *lines;  /* [count * rows rounded up to LINES, columns], all rows' lowest digits first */
    int32_t *sums;  /* [count * rows], of each line */
    float *units;   /* [rows], what an integer is worth */
    float *scratch; /* [rows, columns] */
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

static Digits room_for_digits(long rows, long columns, int count) {
    long lines = (count * rows + LINES - 1) / LINES * LINES;
    return (Digits){
        .count = count,
        .rows = rows,
        .columns = columns,
        .lines = calloc(lines, columns),
        .sums = malloc(lines * sizeof(int32_t)),
        .units = malloc(rows * sizeof(float)),
        .scratch = malloc(rows * columns * sizeof(float)),
    };
}

static void free_digits(Digits digits) {
    free(digits.lines), free(digits.sums), free(digits.units), free(digits.scratch);
}

static void write_digits(const void *x, Kind kind, long row, Digits to) {
    float *values = to.scratch + row * to.columns;
    read_row(x, kind, row, to.columns, values);
    float unit = largest_of(values, to.columns) / 127;
    for (int digit = 1; digit < to.count; digit++) unit /= 256;
    unit += 1e-30f;
    to.units[row] = unit;
    if (!(unit <= FLT_MAX)) { /* not a number, or infinite: the unit makes the result so, whatever the integers */
        memset(values, 0, to.columns * sizeof *values);
        unit = 1;
    }
    for (int digit = 0; digit < to.count; digit++) {
        int8_t *line = to.lines + (digit * to.rows + row) * to.columns;
        int32_t sum = 0;
        for (long k = 0; k < to.columns; k++) {
            int32_t value = (int32_t)rintf(values[k] / unit);
            for (int lower = 0; lower < digit; lower++) value = (value + 128) >> 8; /* what the digit below leaves */
            line[k] = (int8_t)value;
            sum += line[k];
        }
        to.sums[digit * to.rows + row] = sum;
    }
}

/* sums[line] += the products of (value + 128) and digit over a run of columns, in the form in which compilers find the
 * instruction that CPUs have for it: unsigned bytes times signed ones. */
INLINE void add_run(const int8_t *restrict values, const int8_t *restrict lines, long columns, long run, int32_t *sums) {
    int32_t first = 0, second = 0, third = 0, fourth = 0;
    for (long k = 0; k < run; k++) {
        uint8_t value = (uint8_t)values[k] ^ 128;
        first += value * lines[k];
        second += value * lines[columns + k];
        third += value * lines[2 * columns + k];
        fourth += value * lines[3 * columns + k];
    }
    sums[0] += first, sums[1] += second, sums[2] += third, sums[3] += fourth;
}

/* sums[stream][line] of STREAMS rows of W and LINES lines. */
INLINE void multiply_lines(const int8_t *const *rows, const int8_t *lines, long columns, int32_t sums[STREAMS][LINES]) {
    memset(sums, 0, sizeof(int32_t) * STREAMS * LINES);
    long k = 0;
    for (; k + RUN <= columns; k += RUN)
        for (int stream = 0; stream < STREAMS; stream++) {
            for (int next = 0; next < RUN; next += 64) __builtin_prefetch(rows[stream] + k + AHEAD + next);
            add_run(rows[stream] + k, lines + k, columns, RUN, sums[stream]);
        }
    for (int stream = 0; stream < STREAMS && k < columns; stream++)
        add_run(rows[stream] + k, lines + k, columns, columns - k, sums[stream]);
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

/* One row of W a stream: their outputs for every row of x. */
INLINE void multiply_turn(Share share, long turn, const int8_t *values, const float *absmax, Digits digits, float *y,
                          long outputs) {
    const int8_t *weights[STREAMS];
    for (int stream = 0; stream < STREAMS; stream++)
        weights[stream] = values + row_at(share, stream, turn) * digits.columns;
    long lines = digits.count * digits.rows;
    int32_t sums[STREAMS][lines + LINES];
    for (long line = 0; line < lines; line += LINES) {
        int32_t found[STREAMS][LINES];
        multiply_lines(weights, digits.lines + line * digits.columns, digits.columns, found);
        for (int stream = 0; stream < STREAMS; stream++)
            memcpy(&sums[stream][line], found[stream], sizeof found[stream]);
    }
    for (int stream = 0; stream < STREAMS; stream++) {
        long output = row_at(share, stream, turn);
        write_outputs(sums[stream], digits, absmax[output], y + output, outputs);
    }
}

/* 0 if there is no memory for the digits. */
int multiply_int8(const void *x, int kind, long rows, long columns, int count, const int8_t *values,
                  const float *absmax, long outputs, float *y, int threads) {
    Digits digits = room_for_digits(rows, columns, count);
    int enough = digits.lines && digits.sums && digits.units && digits.scratch;
#pragma omp parallel num_threads(threads) if (enough)
    if (enough) {
#pragma omp for
        for (long row = 0; row < rows; row++) write_digits(x, kind, row, digits);
        Share share = own_share(outputs);
        for (long turn = 0; turn < share.turns; turn++)
            multiply_turn(share, turn, values, absmax, digits, y, outputs);
    }
    free_digits(digits);
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
