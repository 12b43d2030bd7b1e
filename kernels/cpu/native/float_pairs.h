/* Pairs of bfloat16 in float32, where no instruction multiplies them: the odd columns and the even ones, each as lanes. See
 * avx512.h. */
#pragma once

typedef struct {
    Lanes odd, even;
} Pairs;
typedef Pairs PairsOfX;
enum { PAIRS_OF_X_BYTES = 128 };

INLINE PairsOfX load_pairs_of_x(const char *from) { return (PairsOfX){load_lanes(from), load_lanes(from + 64)}; }
INLINE void pack_pairs(const float *from, char *to) {
    for (int lane = 0; lane < 16; lane++) {
        memcpy(to + 4 * lane, from + 2 * lane + 1, 4);
        memcpy(to + 64 + 4 * lane, from + 2 * lane, 4);
    }
}
INLINE Lanes add_pairs(Lanes sum, Pairs w, PairsOfX x) {
    return add_product(add_product(sum, w.odd, x.odd), w.even, x.even);
}
INLINE PairsOfX same_pairs(uint32_t pair) {
    return (PairsOfX){same_lanes(float_of(pair & 0xffff0000)), same_lanes(float_of(pair << 16))};
}
