/* Snake, the activation of the codec: y = x + sin(alpha x)^2 / alpha. See kernels/snake.py, which defines it. */
#pragma once
#include "floats.h"
#include "pool.h"
#include "room.h"

enum {
    SNAKE_CHUNK = 1 << 14, /* numbers for one chunk of the pool, or one row */
    SNAKE_BLOCK = 512      /* numbers for one run of the inner loop, or one row: a row alone can be too short for it */
};

/* Up to here whole half turns leave the angle with an error below that of alpha x itself. */
#define LARGEST_ANGLE 1e5f

typedef struct {
    const float *x, *alpha, *inverse_alpha;
    float *y;
    long rows, channels;
    long chunk_rows, block_rows;
} Activation;

/* sin(angle)^2 has the period pi. The half turns are taken off in three parts of pi, what is left lies within pi / 2, where the
 * polynomial is off by 5e-9. */
INLINE float squared_sine(float angle) {
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it rounds */
    const float turns = __builtin_fmaf(angle, 0.318309886f, to_integer) - to_integer;
    float r = __builtin_fmaf(turns, -0x1.921fb6p+1f, angle);
    r = __builtin_fmaf(turns, 0x1.777a5cp-24f, r);
    r = __builtin_fmaf(turns, 0x1.ee59dap-49f, r);
    const float square = r * r;
    float p = __builtin_fmaf(square, 2.5999031549872598e-06f, -0.00019806546333711594f);
    p = __builtin_fmaf(square, p, 0.008333016186952591f);
    p = __builtin_fmaf(square, p, -0.16666656732559204f);
    const float sine = __builtin_fmaf(r * square, p, r);
    return sine * sine;
}

/* y = the activation of a block; alpha and its inverse are those of each number. */
INLINE void activate_block(const float *restrict x, const float *restrict alpha, const float *restrict inverse,
                           float *restrict y, long count) {
    uint32_t largest = 0; /* as integers, the bits of absolute values have their order, with NaN on top */
    for (long n = 0; n < count; n++) {
        const float angle = alpha[n] * x[n];
        const uint32_t bits = bits_of(angle) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
        y[n] = __builtin_fmaf(squared_sine(angle), inverse[n], x[n]);
    }
    if (largest <= bits_of(LARGEST_ANGLE)) return;
    for (long n = 0; n < count; n++) {
        const float angle = alpha[n] * x[n];
        if ((bits_of(angle) & 0x7fffffff) <= bits_of(LARGEST_ANGLE)) continue; /* the same bits beside any neighbors */
        const float sine = sinf(angle);
        y[n] = __builtin_fmaf(sine * sine, inverse[n], x[n]);
    }
}

static void activate_chunk(const void *job, long chunk) {
    const Activation *a = job;
    const long channels = a->channels, block = a->block_rows * channels;
    ROOM(float, alpha, block);
    ROOM(float, inverse, block);
    for (long row = 0; row < a->block_rows; row++) {
        memcpy(alpha + row * channels, a->alpha, channels * sizeof *alpha);
        memcpy(inverse + row * channels, a->inverse_alpha, channels * sizeof *inverse);
    }
    const long first = chunk * a->chunk_rows, last = first + a->chunk_rows;
    const long end = (last < a->rows ? last : a->rows) * channels;
    for (long place = first * channels; place < end; place += block)
        activate_block(a->x + place, alpha, inverse, a->y + place, end - place < block ? end - place : block);
}

/* y [rows, channels] = the activation of x. */
static void activate(const float *x, const float *alpha, const float *inverse_alpha, float *y, long rows, long channels,
                     int threads) {
    Activation a = {x, alpha, inverse_alpha, y, rows, channels, SNAKE_CHUNK / channels + 1, SNAKE_BLOCK / channels + 1};
    run_chunks(activate_chunk, &a, (rows + a.chunk_rows - 1) / a.chunk_rows, rows * channels < 2 * SNAKE_CHUNK ? 1 : threads);
}
