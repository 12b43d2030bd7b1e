/* Sums of the values of some positions, weighted: out[head] = sum over t of weights[head][t] * values[t]. */
#pragma once

/* bfloat16: so are the weights, as torch and the kernels of a GPU have it, and of each two positions the later is added first:
 * behind the last weight of an odd number stands a zero. */
enum { bf16_POSITIONS = 2, bf16_WEIGHT_BYTES = 2 };
typedef ValuePairs bf16_Values;
typedef PairsOfX bf16_Weight;
INLINE bf16_Values bf16_load_values(const char *even, const char *odd) { return load_value_pairs(even, odd); }
INLINE bf16_Weight bf16_same(const char *weights) {
    uint32_t pair;
    memcpy(&pair, weights, sizeof pair);
    return same_pairs(pair);
}
INLINE Lanes bf16_add_first(Lanes sum, bf16_Values v, bf16_Weight w) { return add_pairs(sum, v.first, w); }
INLINE Lanes bf16_add_second(Lanes sum, bf16_Values v, bf16_Weight w) { return add_pairs(sum, v.second, w); }
#define bf16_store_values store_value_pairs

/* float32 and float16: one position after the other, weights in float32. */
typedef struct {
    Lanes first, second;
} LaneValues;
INLINE Lanes same_float(const char *weights) {
    float weight;
    memcpy(&weight, weights, sizeof weight);
    return same_lanes(weight);
}
INLINE Lanes add_first_lanes(Lanes sum, LaneValues v, Lanes w) { return add_product(sum, v.first, w); }
INLINE Lanes add_second_lanes(Lanes sum, LaneValues v, Lanes w) { return add_product(sum, v.second, w); }
INLINE void store_value_lanes(float *to, Lanes first, Lanes second) {
    store_lanes(to, first);
    store_lanes(to + 16, second);
}

enum { f32_POSITIONS = 1, f16_POSITIONS = 1, f32_WEIGHT_BYTES = 4, f16_WEIGHT_BYTES = 4 };
typedef LaneValues f32_Values, f16_Values;
typedef Lanes f32_Weight, f16_Weight;
INLINE f32_Values f32_load_values(const char *even, const char *odd) {
    return (void)odd, (f32_Values){load_lanes(even), load_lanes(even + 64)};
}
INLINE f16_Values f16_load_values(const char *even, const char *odd) {
    return (void)odd, (f16_Values){load_half_lanes(even), load_half_lanes(even + 32)};
}
#define f32_same same_float
#define f16_same same_float
#define f32_add_first add_first_lanes
#define f16_add_first add_first_lanes
#define f32_add_second add_second_lanes
#define f16_add_second add_second_lanes
#define f32_store_values store_value_lanes
#define f16_store_values store_value_lanes

#define FORMAT bf16
#include "mix.h"
#define FORMAT f32
#include "mix.h"
#define FORMAT f16
#include "mix.h"
