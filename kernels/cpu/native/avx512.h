/* What AVX-512 has, with VNNI, and with or without BF16. See tile.h for the names.
 *
 * Without BF16 a product of pairs is two FMAs of halves shifted to float32: the product of two bfloat16 is exact in
 * float32, so both give the same bits. */
#pragma once
#include <immintrin.h>

#include "floats.h"

#define ROWS_OF_TILE(F) F(0) F(1) F(2) F(3)
#define LINES_OF_TILE(F, r) F(r, 0) F(r, 1) F(r, 2) F(r, 3) F(r, 4) F(r, 5)
#define FOUR_ROWS_OF_W
#define SCORED(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define CONVOLVED(F)                                                                                                    \
    F(0, 0, 0) F(1, 0, inputs) F(2, 0, two) F(3, 0, three) F(4, 1, 0) F(5, 1, inputs) F(6, 1, two) F(7, 1, three)       \
    F(8, 2, 0) F(9, 2, inputs) F(10, 2, two) F(11, 2, three)
enum { CONVOLVED_ROWS = 12, CONVOLVED_BLOCKS = 2 };
enum { TILE_ROWS = 4, TILE_LINES = 6, MIXED_BLOCKS = 4, SCORED_POSITIONS = 16 };

typedef __m512 Lanes;

INLINE Lanes no_lanes(void) { return _mm512_setzero_ps(); }
INLINE Lanes same_lanes(float value) { return _mm512_set1_ps(value); }
INLINE Lanes load_lanes(const void *from) { return _mm512_loadu_ps(from); }
INLINE Lanes load_half_lanes(const void *from) { return _mm512_cvtph_ps(_mm256_loadu_si256(from)); }
INLINE Lanes add_product(Lanes sum, Lanes a, Lanes b) { return _mm512_fmadd_ps(a, b, sum); }
INLINE void store_lanes(float *to, Lanes lanes) { _mm512_storeu_ps(to, lanes); }

static void read_halves(const uint16_t *from, long count, float *to) {
    for (long k = 0; k < count; k += 16) {
        __mmask16 valid = count - k < 16 ? (1 << (count - k)) - 1 : -1;
        __m256i halves = _mm512_castsi512_si256(_mm512_maskz_loadu_epi16(valid, from + k));
        _mm512_mask_storeu_ps(to + k, valid, _mm512_cvtph_ps(halves));
    }
}
static void write_halves(const float *from, long count, uint16_t *to) {
    for (long k = 0; k < count; k += 16) {
        __mmask16 valid = count - k < 16 ? (1 << (count - k)) - 1 : -1;
        __m256i halves = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(valid, from + k), _MM_FROUND_TO_NEAREST_INT);
        _mm512_mask_storeu_epi16(to + k, valid, _mm512_castsi256_si512(halves));
    }
}

/* What is left of two vectors when lane l + 8 is added to l, of such two when l + 4 is, then l + 2, l + 1. */
INLINE Lanes fold_halves(Lanes a, Lanes b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
INLINE Lanes fold_quarters(Lanes a, Lanes b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
INLINE Lanes fold_pairs(Lanes a, Lanes b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
INLINE Lanes fold_neighbors(Lanes a, Lanes b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
INLINE Lanes fold_four(Lanes a, Lanes b, Lanes c, Lanes d) { return fold_quarters(fold_halves(a, b), fold_halves(c, d)); }

/* Add the sum of each to four neighboring cells: lane l + 8 to l, then l + 4, l + 2, l + 1. */
INLINE void keep_lanes(float *cells, Lanes a, Lanes b, Lanes c, Lanes d) {
    Lanes all = fold_four(a, b, c, d);
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    __m128 sums = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, all));
    _mm_storeu_ps(cells, _mm_add_ps(_mm_loadu_ps(cells), sums));
}

/* The sums of 16 vectors, folded in that order all together. */
INLINE void store_sums(float *to, Lanes a, Lanes b, Lanes c, Lanes d, Lanes e, Lanes f, Lanes g, Lanes h, Lanes i, Lanes j,
                       Lanes k, Lanes l, Lanes m, Lanes n, Lanes o, Lanes p) {
    Lanes first = fold_pairs(fold_four(a, e, i, m), fold_four(b, f, j, n));
    Lanes second = fold_pairs(fold_four(c, g, k, o), fold_four(d, h, l, p));
    store_lanes(to, fold_neighbors(first, second));
}

/* Pairs of bfloat16: lane l has the columns 2l and 2l + 1; the product of the latter is added first. */
#ifdef __AVX512BF16__
typedef __m512bh Pairs;
typedef __m512bh PairsOfX;
enum { PAIRS_OF_X_BYTES = 64, NF4_LINES = 4 };
INLINE Pairs pairs_of(__m512i words) { return (Pairs)words; }
INLINE PairsOfX load_pairs_of_x(const char *from) { return (PairsOfX)_mm512_loadu_si512(from); }
INLINE void pack_pairs(const float *from, char *to) {
    write_floats(from, BFLOAT16, 32, to); /* exact: they are bfloat16 */
}
INLINE Lanes add_pairs(Lanes sum, Pairs w, PairsOfX x) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "vm"(x)); /* not the intrinsic, see add_integers */
    return sum;
}
INLINE PairsOfX same_pairs(uint32_t pair) { return (PairsOfX)_mm512_set1_epi32((int)pair); }
#else
#include "float_pairs.h"
enum { NF4_LINES = TILE_LINES };
INLINE Pairs pairs_of(__m512i words) {
    return (Pairs){(Lanes)_mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000)),
                   (Lanes)_mm512_slli_epi32(words, 16)};
}
#endif

INLINE Pairs load_pairs(const char *from) { return pairs_of(_mm512_loadu_si512(from)); }

/* The same 32 columns of two positions as pairs, and where their sums go. */
typedef struct {
    Pairs first, second;
} ValuePairs;
INLINE ValuePairs load_value_pairs(const char *even, const char *odd) {
    __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
    return (ValuePairs){pairs_of(_mm512_unpacklo_epi16(a, b)), pairs_of(_mm512_unpackhi_epi16(a, b))};
}
INLINE void store_value_pairs(float *to, Lanes first, Lanes second) { /* unpack works in 128-bit lanes */
    __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    store_lanes(to, _mm512_permutex2var_ps(first, low, second));
    store_lanes(to + 16, _mm512_permutex2var_ps(first, high, second));
}

/* The NF4 levels of 32 bytes, low halves and high halves; `levels` are bfloat16. */
typedef struct {
    Pairs low, high;
} LevelPairs;
#ifdef __AVX512BF16__
INLINE LevelPairs load_level_pairs(const char *from, const uint16_t *levels) {
    __m256i half = _mm256_loadu_si256((const __m256i *)levels);
    __m512i table = _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1); /* twice: bit 4 of an index is ignored */
    __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
    return (LevelPairs){pairs_of(_mm512_permutexvar_epi16(bytes, table)),
                        pairs_of(_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table))};
}
#else
INLINE LevelPairs load_level_pairs(const char *from, const uint16_t *levels) {
    Lanes table = (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)levels)), 16);
    __asm__("" : "+v"(table)); /* else gcc 12 keeps a copy per use, and has no registers left */
    __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
#define LEVELS_AT(bit) _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, bit), table)
    return (LevelPairs){{LEVELS_AT(16), LEVELS_AT(0)}, {LEVELS_AT(20), LEVELS_AT(4)}};
#undef LEVELS_AT
}
#endif

/* The NF4 levels of 16 bytes' low halves (shift 0) or high halves (shift 4); `levels` are float32. */
INLINE Lanes load_levels(const char *from, int shift, const float *levels) {
    __m512i index = _mm512_srli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from)), shift);
    return _mm512_permutexvar_ps(index, _mm512_loadu_ps(levels));
}

/* Integers: 64 columns of weights, and of a line of 8-bit digits. VNNI multiplies unsigned by signed, so weights get 128
 * added, and 128 times the sum of the line's digits goes off again. */
typedef __m512i Counts;
typedef __m512i Integers;
typedef __m512i IntegersOfX;
enum { INTEGERS = 64, INTEGERS_OF_X_BYTES = 64, DIGITS_PER_LINE = 1, ADDED_TO_INTEGERS = 128 };
INLINE Counts no_counts(void) { return _mm512_setzero_si512(); }
INLINE Integers load_integers(const char *from) {
    return _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8((char)128));
}
INLINE IntegersOfX load_integers_of_x(const char *from) { return _mm512_loadu_si512(from); }
/* The instruction itself: gcc 12 puts sums of the intrinsic into memory, and takes twice as long. */
INLINE Counts add_integers(Counts sum, Integers w, IntegersOfX x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "vm"(x));
    return sum;
}
INLINE void keep_counts(double *cells, Counts a, Counts b, Counts c, Counts d) {
    Counts ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
    Counts cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xee));
    Counts all = _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
    all = _mm512_add_epi32(all, _mm512_shuffle_epi32(all, 0x4e));
    all = _mm512_add_epi32(all, _mm512_shuffle_epi32(all, 0xb1));
    __m128i sums = _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, all));
    _mm256_storeu_pd(cells, _mm256_add_pd(_mm256_loadu_pd(cells), _mm256_cvtepi32_pd(sums)));
}
/* The integers of 64 columns to each line of their digits, the highest first. */
INLINE void pack_integers(const int32_t *from, int digits, char *to, long stride) {
    int32_t left[INTEGERS];
    memcpy(left, from, sizeof left);
    for (int digit = digits - 1; digit >= 0; digit--) {
        int8_t *restrict line = (int8_t *)to + digit * stride;
        for (int k = 0; k < INTEGERS; k++) line[k] = (int8_t)left[k];
        for (int k = 0; k < INTEGERS; k++) left[k] = (left[k] + 128) >> 8;
    }
}
