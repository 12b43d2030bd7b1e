/* What AVX2 and NEON share: tiles of two rows by two lines, for few registers, and integers in 16 bits. Included behind what
 * each of them has of its own. */
#pragma once

#define ROWS_OF_TILE(F) F(0) F(1)
#define LINES_OF_TILE(F, r) F(r, 0) F(r, 1)
#define SCORED(F) F(0) F(1) F(2) F(3)
#define CONVOLVED(F) F(0, 0, 0) F(1, 0, inputs) F(2, 0, two) F(3, 0, three) F(4, 1, 0) F(5, 1, inputs)
enum { CONVOLVED_ROWS = 6, CONVOLVED_BLOCKS = 1 };
enum { TILE_ROWS = 2, TILE_LINES = 2, NF4_LINES = 2, MIXED_BLOCKS = 1, SCORED_POSITIONS = 4 };

INLINE void keep_lanes(float *cells, Lanes a, Lanes b) {
    cells[0] += sum_of_lanes(a);
    cells[1] += sum_of_lanes(b);
}

INLINE void store_sums(float *to, Lanes a, Lanes b, Lanes c, Lanes d) {
    to[0] = sum_of_lanes(a);
    to[1] = sum_of_lanes(b);
    to[2] = sum_of_lanes(c);
    to[3] = sum_of_lanes(d);
}

typedef struct {
    Pairs first, second;
} ValuePairs;
INLINE ValuePairs load_value_pairs(const char *even, const char *odd) {
    return (ValuePairs){{widen(odd), widen(even)}, {widen(odd + 32), widen(even + 32)}};
}
INLINE void store_value_pairs(float *to, Lanes first, Lanes second) {
    store_lanes(to, first);
    store_lanes(to + 16, second);
}

/* Integers: 32 columns, of a line of 16-bit integers, which two digits are together. */
enum { INTEGERS = 32, INTEGERS_OF_X_BYTES = 64, DIGITS_PER_LINE = 2, ADDED_TO_INTEGERS = 0 };
INLINE void keep_counts(double *cells, Counts a, Counts b) {
    cells[0] += sum_of_counts(a);
    cells[1] += sum_of_counts(b);
}
/* The highest digits come first, two of them in one integer where their number is even. */
INLINE void pack_integers(const int32_t *from, int digits, char *to, long stride) {
    int16_t *high = (int16_t *)to, *low = (int16_t *)(to + stride);
    for (int k = 0; k < INTEGERS; k++) {
        if (digits == 2) {
            high[k] = (int16_t)from[k];
        } else {
            low[k] = (int8_t)from[k];
            high[k] = (int16_t)((from[k] + 128) >> 8);
        }
    }
}
