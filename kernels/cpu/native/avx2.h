/* What AVX2 has, with FMA. Sixteen lanes are two registers; there are sixteen registers, so tiles are small. See avx512.h for
 * the meaning of the names, and of pairs in float32. */
#pragma once
#include <immintrin.h>

#include "floats.h"

typedef struct {
    __m256 low, high;
} Lanes;

INLINE Lanes no_lanes(void) { return (Lanes){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE Lanes same_lanes(float value) { return (Lanes){_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
INLINE Lanes load_lanes(const void *from) {
    return (Lanes){_mm256_loadu_ps(from), _mm256_loadu_ps((const float *)from + 8)};
}
INLINE Lanes load_half_lanes(const void *from) {
    const __m128i *halves = from;
    return (Lanes){_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
INLINE Lanes add_product(Lanes sum, Lanes a, Lanes b) {
    return (Lanes){_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}
INLINE void store_lanes(float *to, Lanes lanes) {
    _mm256_storeu_ps(to, lanes.low);
    _mm256_storeu_ps(to + 8, lanes.high);
}

static void read_halves(const uint16_t *from, long count, float *to) {
    long k = 0;
    for (; k + 8 <= count; k += 8) _mm256_storeu_ps(to + k, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + k))));
    for (; k < count; k++) to[k] = _cvtsh_ss(from[k]);
}
static void write_halves(const float *from, long count, uint16_t *to) {
    long k = 0;
    for (; k + 8 <= count; k += 8) {
        __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + k), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(to + k), halves);
    }
    for (; k < count; k++) to[k] = _cvtss_sh(from[k], _MM_FROUND_TO_NEAREST_INT);
}

INLINE float sum_of_lanes(Lanes lanes) {
    __m256 eight = _mm256_add_ps(lanes.low, lanes.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#include "float_pairs.h"

INLINE __m256 odd_of(__m256i words) {
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32((int)0xffff0000)));
}
INLINE __m256 even_of(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
INLINE Pairs pairs_of(__m256i low, __m256i high) {
    return (Pairs){{odd_of(low), odd_of(high)}, {even_of(low), even_of(high)}};
}
INLINE Pairs load_pairs(const char *from) {
    const __m256i *words = (const __m256i *)from;
    return pairs_of(_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1));
}

/* Sixteen bfloat16 as lanes. */
INLINE Lanes widen(const char *from) {
    const __m128i *halves = (const __m128i *)from;
    return (Lanes){even_of(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves))),
                   even_of(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1)))};
}

typedef struct {
    Pairs low, high;
} LevelPairs;
/* The levels of 32 indices as pairs: their lower and upper bytes are looked up, and put side by side. */
INLINE Pairs pairs_of_levels(__m256i index, __m256i lower, __m256i upper) {
    __m256i low = _mm256_shuffle_epi8(lower, index), high = _mm256_shuffle_epi8(upper, index);
    return pairs_of(_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high));
}
INLINE LevelPairs load_level_pairs(const char *from, const uint16_t *levels) {
    const __m256i half = _mm256_set1_epi8(15), bytes_mask = _mm256_set1_epi16(255);
    __m256i words = _mm256_loadu_si256((const __m256i *)levels);
    __m256i lower = _mm256_permute4x64_epi64(
        _mm256_packus_epi16(_mm256_and_si256(words, bytes_mask), _mm256_and_si256(words, bytes_mask)), 0x88);
    __m256i upper = _mm256_permute4x64_epi64(
        _mm256_packus_epi16(_mm256_srli_epi16(words, 8), _mm256_srli_epi16(words, 8)), 0x88);
    /* Unpacking works in halves of 16 bytes: its input has the quarters in the order 0, 2, 1, 3. */
    __m256i bytes = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i *)from), 0xd8);
    return (LevelPairs){
        pairs_of_levels(_mm256_and_si256(bytes, half), lower, upper),
        pairs_of_levels(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), half), lower, upper),
    };
}

INLINE __m256 eight_levels(const char *from, int shift, const float *levels) {
    __m256i index = _mm256_srli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from)), shift);
    __m256 lower = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels), index);
    __m256 upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels + 8), index);
    return _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))); /* bit 3 as sign */
}
INLINE Lanes load_levels(const char *from, int shift, const float *levels) {
    return (Lanes){eight_levels(from, shift, levels), eight_levels(from + 8, shift, levels)};
}

/* Integers of 16 bits, see small_tiles.h. Not the products of bytes: their sums of two are cut off at 16 bits. */
typedef struct {
    __m256i low, high;
} Integers;
typedef Integers IntegersOfX;
INLINE Integers load_integers(const char *from) {
    const __m128i *bytes = (const __m128i *)from;
    return (Integers){_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes)), _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + 1))};
}
INLINE IntegersOfX load_integers_of_x(const char *from) {
    const __m256i *words = (const __m256i *)from;
    return (IntegersOfX){_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
#ifdef __AVXVNNI__
/* One instruction multiplies and adds, but a sum waits for it five times as long as for an addition: two sums, by turns. */
typedef Integers Counts;
INLINE Counts no_counts(void) { return (Counts){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE __m256i add_words(__m256i sum, __m256i w, __m256i x) {
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x)); /* not the intrinsic, see avx512.h */
    return sum;
}
INLINE Counts add_integers(Counts sum, Integers w, IntegersOfX x) {
    return (Counts){add_words(sum.low, w.low, x.low), add_words(sum.high, w.high, x.high)};
}
INLINE __m256i whole_counts(Counts counts) { return _mm256_add_epi32(counts.low, counts.high); }
#else
typedef __m256i Counts;
INLINE Counts no_counts(void) { return _mm256_setzero_si256(); }
INLINE Counts add_integers(Counts sum, Integers w, IntegersOfX x) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w.low, x.low));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w.high, x.high));
}
INLINE __m256i whole_counts(Counts counts) { return counts; }
#endif
INLINE double sum_of_counts(Counts parts) {
    __m256i counts = whole_counts(parts);
    __m256d four = _mm256_add_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(counts)),
                                 _mm256_cvtepi32_pd(_mm256_extracti128_si256(counts, 1)));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

#include "small_tiles.h"
