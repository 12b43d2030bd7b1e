/* What every 64-bit ARM CPU has. Sixteen lanes are four registers, of 32. See avx512.h for the meaning of the names, and of
 * pairs in float32. */
#pragma once
#include <arm_neon.h>

#include "floats.h"

typedef float32x4x4_t Lanes;

INLINE Lanes same_lanes(float value) {
    float32x4_t four = vdupq_n_f32(value);
    return (Lanes){{four, four, four, four}};
}
INLINE Lanes no_lanes(void) { return same_lanes(0); }
INLINE Lanes load_lanes(const void *from) {
    const float *f = from;
    return (Lanes){{vld1q_f32(f), vld1q_f32(f + 4), vld1q_f32(f + 8), vld1q_f32(f + 12)}};
}
INLINE float32x4_t four_halves(const void *from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
INLINE Lanes load_half_lanes(const void *from) {
    const uint16_t *h = from;
    return (Lanes){{four_halves(h), four_halves(h + 4), four_halves(h + 8), four_halves(h + 12)}};
}
INLINE Lanes add_product(Lanes sum, Lanes a, Lanes b) {
    return (Lanes){{vfmaq_f32(sum.val[0], a.val[0], b.val[0]), vfmaq_f32(sum.val[1], a.val[1], b.val[1]),
                    vfmaq_f32(sum.val[2], a.val[2], b.val[2]), vfmaq_f32(sum.val[3], a.val[3], b.val[3])}};
}
INLINE void store_lanes(float *to, Lanes lanes) {
    for (int part = 0; part < 4; part++) vst1q_f32(to + 4 * part, lanes.val[part]);
}

static void read_halves(const uint16_t *from, long count, float *to) {
    long k = 0;
    for (; k + 4 <= count; k += 4) vst1q_f32(to + k, four_halves(from + k));
    for (; k < count; k++) {
        uint16_t four[4] = {from[k]};
        to[k] = vgetq_lane_f32(four_halves(four), 0);
    }
}
static void write_halves(const float *from, long count, uint16_t *to) {
    long k = 0;
    for (; k + 4 <= count; k += 4) vst1_u16(to + k, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from + k))));
    for (; k < count; k++) to[k] = vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(from[k]))), 0);
}

INLINE float sum_of_lanes(Lanes lanes) {
    float32x4_t four = vaddq_f32(vaddq_f32(lanes.val[0], lanes.val[2]), vaddq_f32(lanes.val[1], lanes.val[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

#include "float_pairs.h"

INLINE Pairs pairs_of(uint32x4_t a, uint32x4_t b, uint32x4_t c, uint32x4_t d) {
    const uint32x4_t upper = vdupq_n_u32(0xffff0000);
#define ODD(words) vreinterpretq_f32_u32(vandq_u32(words, upper))
#define EVEN(words) vreinterpretq_f32_u32(vshlq_n_u32(words, 16))
    return (Pairs){{{ODD(a), ODD(b), ODD(c), ODD(d)}}, {{EVEN(a), EVEN(b), EVEN(c), EVEN(d)}}};
#undef ODD
#undef EVEN
}
INLINE uint32x4_t load_words(const void *from) { return vreinterpretq_u32_u8(vld1q_u8(from)); }
INLINE Pairs load_pairs(const char *from) {
    return pairs_of(load_words(from), load_words(from + 16), load_words(from + 32), load_words(from + 48));
}

/* Sixteen bfloat16 as lanes. */
INLINE float32x4_t widen_four(const void *from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)); }
INLINE Lanes widen(const char *from) {
    return (Lanes){{widen_four(from), widen_four(from + 8), widen_four(from + 16), widen_four(from + 24)}};
}

typedef struct {
    Pairs low, high;
} LevelPairs;
/* The levels of 32 indices as pairs: their lower and upper bytes are looked up, and put side by side. */
INLINE Pairs pairs_of_levels(uint8x16_t first, uint8x16_t second, uint8x16x2_t table) {
    uint8x16_t low = vqtbl1q_u8(table.val[0], first), high = vqtbl1q_u8(table.val[1], first);
    uint8x16_t next_low = vqtbl1q_u8(table.val[0], second), next_high = vqtbl1q_u8(table.val[1], second);
#define WORDS(bytes) vreinterpretq_u32_u8(bytes)
    return pairs_of(WORDS(vzip1q_u8(low, high)), WORDS(vzip2q_u8(low, high)), WORDS(vzip1q_u8(next_low, next_high)),
                    WORDS(vzip2q_u8(next_low, next_high)));
#undef WORDS
}
INLINE LevelPairs load_level_pairs(const char *from, const uint16_t *levels) {
    const uint8x16_t half = vdupq_n_u8(15);
    const uint8x16x2_t table = vld2q_u8((const uint8_t *)levels); /* lower bytes, upper bytes */
    uint8x16_t first = vld1q_u8((const uint8_t *)from), second = vld1q_u8((const uint8_t *)from + 16);
    return (LevelPairs){
        pairs_of_levels(vandq_u8(first, half), vandq_u8(second, half), table),
        pairs_of_levels(vshrq_n_u8(first, 4), vshrq_n_u8(second, 4), table),
    };
}
INLINE Lanes load_levels(const char *from, int shift, const float *levels) {
    float found[16];
    for (int lane = 0; lane < 16; lane++) found[lane] = levels[(uint8_t)from[lane] >> shift & 15];
    return load_lanes(found);
}

/* Integers of 16 bits, see small_tiles.h. */
typedef int32x4x2_t Counts;
typedef struct {
    int16x8_t part[4];
} Integers;
typedef Integers IntegersOfX;
INLINE Counts no_counts(void) { return (Counts){{vdupq_n_s32(0), vdupq_n_s32(0)}}; }
INLINE Integers load_integers(const char *from) {
    const int8_t *bytes = (const int8_t *)from;
    return (Integers){{vmovl_s8(vld1_s8(bytes)), vmovl_s8(vld1_s8(bytes + 8)), vmovl_s8(vld1_s8(bytes + 16)),
                       vmovl_s8(vld1_s8(bytes + 24))}};
}
INLINE IntegersOfX load_integers_of_x(const char *from) {
    const int16_t *words = (const int16_t *)from;
    return (IntegersOfX){{vld1q_s16(words), vld1q_s16(words + 8), vld1q_s16(words + 16), vld1q_s16(words + 24)}};
}
INLINE Counts add_integers(Counts sum, Integers w, IntegersOfX x) {
    for (int part = 0; part < 4; part++) {
        sum.val[0] = vmlal_s16(sum.val[0], vget_low_s16(w.part[part]), vget_low_s16(x.part[part]));
        sum.val[1] = vmlal_high_s16(sum.val[1], w.part[part], x.part[part]);
    }
    return sum;
}
INLINE double sum_of_counts(Counts counts) {
    return (double)(vaddlvq_s32(counts.val[0]) + vaddlvq_s32(counts.val[1]));
}

#include "small_tiles.h"
