/* int8 weights: integers times integers, exact whoever adds. */
#include "amx.h"
#include "limbs.h"

enum {
    RUN = 512,   /* columns between two that are fetched ahead */
    AHEAD = 2048 /* bytes, into L2: 1 KB into L1 reads slower on Zen 4 and 5 */
};

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
            for (int next = 0; next < RUN; next += 64) __builtin_prefetch(rows[stream] + k + AHEAD + next, 0, 2);
            add_run(rows[stream] + k, lines + k, columns, RUN, sums[stream]);
        }
    for (int stream = 0; stream < STREAMS && k < columns; stream++)
        add_run(rows[stream] + k, lines + k, columns, columns - k, sums[stream]);
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
            for (int next = 0; next < LINES; next++)
                sums[stream][line + next] = found[stream][next] - 128 * digits.sums[line + next];
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
    long lines = count * rows;
    int by_tiles = lines >= FEWEST_FOR_TILES && lines <= MOST_FOR_TILES && has_tiles();
    if (by_tiles) digits.tiles = malloc(bytes_of_tiles(digits));
    int enough = digits.lines && digits.sums && digits.units && digits.scratch && (digits.tiles || !by_tiles);
#pragma omp parallel num_threads(threads) if (enough)
    if (enough) {
#pragma omp for
        for (long row = 0; row < rows; row++) write_digits(x, kind, row, digits);
        if (by_tiles) {
            multiply_tiles(values, absmax, digits, y, outputs);
        } else {
            Share share = own_share(outputs);
            for (long turn = 0; turn < share.turns; turn++)
                multiply_turn(share, turn, values, absmax, digits, y, outputs);
        }
    }
    free_digits(digits);
    return enough;
}

INLINE void read_int8_as(Kind kind, const int8_t *values, const float *absmax, long rows, long columns, void *to) {
#pragma omp for
    for (long row = 0; row < rows; row++)
        for (long k = 0; k < columns; k++)
            put(values[row * columns + k] * absmax[row] * PER_ABSMAX, kind, to, row * columns + k);
}

void read_int8(const int8_t *values, const float *absmax, long rows, long columns, int kind, void *to, int threads) {
#pragma omp parallel num_threads(threads)
    if (kind == FLOAT32) read_int8_as(FLOAT32, values, absmax, rows, columns, to);
    else read_int8_as(BFLOAT16, values, absmax, rows, columns, to);
}
