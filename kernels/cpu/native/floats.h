/* float32 from and to the dtypes of a model, and exp. All of it in single operations of IEEE 754, so that every variant
 * gives the same bits. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef enum { FLOAT32, BFLOAT16, FLOAT16 } Kind; /* `KINDS` in structures.py */

INLINE long bytes_of(Kind kind) { return kind == FLOAT32 ? 4 : 2; }

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To the nearest, and among two to the even one. What is not a number stays so. */
INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits = bits_of(value), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded;
}

static void read_halves(const uint16_t *from, long count, float *to); /* of each variant */
static void write_halves(const float *from, long count, uint16_t *to);

INLINE void read_floats(const void *from, Kind kind, long count, float *restrict to) {
    if (kind == FLOAT32) memcpy(to, from, count * sizeof *to);
    else if (kind == FLOAT16) read_halves(from, count, to);
    else
        for (long k = 0; k < count; k++) to[k] = float_of((uint32_t)((const uint16_t *)from)[k] << 16);
}

INLINE void write_floats(const float *restrict from, Kind kind, long count, void *restrict to) {
    if (kind == FLOAT32) memcpy(to, from, count * sizeof *from);
    else if (kind == FLOAT16) write_halves(from, count, to);
    else
        for (long k = 0; k < count; k++) ((uint16_t *)to)[k] = to_bfloat16(from[k]);
}

/* 2^n times a polynomial, below 2 ulp off; e^-87 below -87, e^88 above 88. */
INLINE float exp_of(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    const float to_integer = 12582912; /* 1.5 * 2^23: what is added has no fraction left */
    float n = x * 1.44269504f + to_integer - to_integer;
    float r = __builtin_fmaf(n, -0.693359375f, x);
    r = __builtin_fmaf(n, 2.12194440e-4f, r);
    float p = __builtin_fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = __builtin_fmaf(p, r, 8.3334519073e-3f);
    p = __builtin_fmaf(p, r, 4.1665795894e-2f);
    p = __builtin_fmaf(p, r, 1.6666665459e-1f);
    p = __builtin_fmaf(p, r, 5.0000001201e-1f);
    p = __builtin_fmaf(r * r, p, r + 1);
    return p * float_of((uint32_t)((int32_t)n + 127) << 23);
}

/* Off by less than 2e-7. */
INLINE float tanh_of(float x) {
    float size = 1 - 2 / (exp_of(2 * fabsf(x)) + 1);
    return copysignf(size, x);
}

/* Sums and maxima over 16 running lanes, which are folded by halves. */
typedef float Sixteen __attribute__((vector_size(64)));

INLINE float fold(Sixteen lanes) {
    float part[16];
    memcpy(part, &lanes, sizeof part);
    for (int half = 8; half; half /= 2)
        for (int lane = 0; lane < half; lane++) part[lane] += part[lane + half];
    return part[0];
}

INLINE Sixteen sixteen_of(const float *from, long count) {
    Sixteen lanes = {0};
    memcpy(&lanes, from, count * sizeof *from);
    return lanes;
}

INLINE float sum_of(const float *from, long count) {
    const long rest = count % 16, whole = count - rest;
    Sixteen sum = {0};
    for (long k = 0; k < whole; k += 16) sum += sixteen_of(from + k, 16);
    return fold(sum + sixteen_of(from + whole, rest));
}

INLINE float sum_of_squares(const float *from, long count) {
    const long rest = count % 16, whole = count - rest;
    Sixteen sum = {0}, last = sixteen_of(from + whole, rest);
    for (long k = 0; k < whole; k += 16) {
        Sixteen lanes = sixteen_of(from + k, 16);
        sum += lanes * lanes;
    }
    return fold(sum + last * last);
}
