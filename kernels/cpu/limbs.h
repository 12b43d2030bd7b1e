/* The rows of x as integers, see `limbs.py`, and what becomes of their sums. */
#pragma once
#include "common.h"

#include <float.h>
#include <math.h>

#define PER_ABSMAX 7.874015718698502e-3f /* 1 / 127, as `quantized.py` has it */

enum { LINES = 4 }; /* that `int8.c` multiplies at once */

/* Each integer is written with `count` digits of base 256 in [-128, 127]. */
typedef struct {
    int count;
    long rows, columns;
    int8_t *lines;  /* [count * rows rounded up to LINES, columns], all rows' lowest digits first (limbs.py: highest) */
    int32_t *sums;  /* [lines], of each */
    float *units;   /* [rows], what an integer is worth */
    float *scratch; /* [rows, columns] */
    int8_t *tiles;  /* the lines once more, see `amx.h`, or NULL */
} Digits;

INLINE float largest_of(const float *x, long columns) {
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

INLINE Digits room_for_digits(long rows, long columns, int count) {
    long lines = (count * rows + LINES - 1) / LINES * LINES;
    return (Digits){
        .count = count,
        .rows = rows,
        .columns = columns,
        .lines = calloc(lines, columns),
        .sums = calloc(lines, sizeof(int32_t)),
        .units = malloc(rows * sizeof(float)),
        .scratch = malloc(rows * columns * sizeof(float)),
    };
}

INLINE void free_digits(Digits digits) {
    free(digits.lines), free(digits.sums), free(digits.units), free(digits.scratch), free(digits.tiles);
}

INLINE void write_digits(const void *x, Kind kind, long row, Digits to) {
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

/* One output of every row of x, from the sums of its row of W with all lines. */
INLINE void write_outputs(const int32_t *sums, Digits digits, float absmax, float *y, long stride) {
    for (long row = 0; row < digits.rows; row++) {
        int64_t total = 0;
        for (int digit = digits.count - 1; digit >= 0; digit--)
            total = total * 256 + sums[digit * digits.rows + row];
        y[row * stride] = (float)total * digits.units[row] * (absmax * PER_ABSMAX);
    }
}
