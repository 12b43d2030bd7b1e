/* The formats of a matrix, each as tile.h wants it: what a step of the inner loop loads of a row of W and of a line of x, and
 * how it adds their products. A step takes FORMAT_COLUMNS columns, which are FORMAT_BYTES of W. */
#pragma once

typedef enum { W_FLOAT32, W_BFLOAT16, W_FLOAT16, W_INT8, W_NF4_BFLOAT16, W_NF4_FLOAT32 } Format; /* structures.py */

/* NF4's values (kernels/quantized.py); their upper halves, rounded, are the bfloat16 ones. */
static const float LEVELS[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};
static const uint16_t ROUNDED_LEVELS[16] = {
    0xbf80, 0xbf32, 0xbf06, 0xbeca, 0xbe92, 0xbe3d, 0xbdba, 0x0000,
    0x3da3, 0x3e25, 0x3e7c, 0x3ead, 0x3ee2, 0x3f10, 0x3f39, 0x3f80,
};

/* bfloat16: float32 sums of pairs, see the variants. */
enum { bf16_COLUMNS = 32, bf16_BYTES = 64, bf16_X_BYTES = PAIRS_OF_X_BYTES, bf16_LINES = TILE_LINES };
enum { bf16_SEGMENT = 2048, bf16_SCALES = 0 };
typedef Lanes bf16_Sum;
typedef Pairs bf16_Weights;
typedef PairsOfX bf16_Inputs;
typedef float bf16_Cell;
INLINE bf16_Sum bf16_no_sum(void) { return no_lanes(); }
INLINE bf16_Weights bf16_load(const char *from, const float *scale) { return (void)scale, load_pairs(from); }
INLINE bf16_Inputs bf16_load_x(const char *from) { return load_pairs_of_x(from); }
INLINE bf16_Sum bf16_add(bf16_Sum sum, bf16_Weights w, bf16_Inputs x) { return add_pairs(sum, w, x); }
#define bf16_keep keep_lanes

/* float32 and float16, which is widened: lane l adds column l of 16. */
enum { f32_COLUMNS = 16, f32_BYTES = 64, f32_X_BYTES = 64, f32_LINES = TILE_LINES, f32_SEGMENT = 1024, f32_SCALES = 0 };
typedef Lanes f32_Sum;
typedef Lanes f32_Weights;
typedef Lanes f32_Inputs;
typedef float f32_Cell;
INLINE f32_Sum f32_no_sum(void) { return no_lanes(); }
INLINE f32_Weights f32_load(const char *from, const float *scale) { return (void)scale, load_lanes(from); }
INLINE f32_Inputs f32_load_x(const char *from) { return load_lanes(from); }
INLINE f32_Sum f32_add(f32_Sum sum, f32_Weights w, f32_Inputs x) { return add_product(sum, w, x); }
#define f32_keep keep_lanes

enum { f16_COLUMNS = 16, f16_BYTES = 32, f16_X_BYTES = 64, f16_LINES = TILE_LINES, f16_SEGMENT = 1024, f16_SCALES = 0 };
typedef Lanes f16_Sum;
typedef Lanes f16_Weights;
typedef Lanes f16_Inputs;
typedef float f16_Cell;
INLINE f16_Sum f16_no_sum(void) { return no_lanes(); }
INLINE f16_Weights f16_load(const char *from, const float *scale) { return (void)scale, load_half_lanes(from); }
INLINE f16_Inputs f16_load_x(const char *from) { return load_lanes(from); }
INLINE f16_Sum f16_add(f16_Sum sum, f16_Weights w, f16_Inputs x) { return add_product(sum, w, x); }
#define f16_keep keep_lanes

/* int8: exact sums of integers, in whatever order. */
enum { int8_COLUMNS = INTEGERS, int8_BYTES = INTEGERS, int8_X_BYTES = INTEGERS_OF_X_BYTES, int8_LINES = TILE_LINES };
enum { int8_SEGMENT = 2048, int8_SCALES = 0 };
typedef Counts int8_Sum;
typedef Integers int8_Weights;
typedef IntegersOfX int8_Inputs;
typedef double int8_Cell;
INLINE int8_Sum int8_no_sum(void) { return no_counts(); }
INLINE int8_Weights int8_load(const char *from, const float *scale) { return (void)scale, load_integers(from); }
INLINE int8_Inputs int8_load_x(const char *from) { return load_integers_of_x(from); }
INLINE int8_Sum int8_add(int8_Sum sum, int8_Weights w, int8_Inputs x) { return add_integers(sum, w, x); }
#define int8_keep keep_counts

/* NF4: the sum of a block of 64 in float32, times its scale, added block by block. In a model of bfloat16 the levels are
 * rounded to that, as the kernels of a GPU have it. */
enum { nf4_COLUMNS = 64, nf4_BYTES = 32, nf4_X_BYTES = 2 * PAIRS_OF_X_BYTES, nf4_LINES = NF4_LINES };
enum { nf4_SEGMENT = 2048, nf4_SCALES = 1 };
typedef Lanes nf4_Sum;
typedef struct {
    LevelPairs levels;
    Lanes scale;
} nf4_Weights;
typedef struct {
    PairsOfX low, high;
} nf4_Inputs;
typedef float nf4_Cell;
INLINE nf4_Sum nf4_no_sum(void) { return no_lanes(); }
INLINE nf4_Weights nf4_load(const char *from, const float *scale) {
    return (nf4_Weights){load_level_pairs(from, ROUNDED_LEVELS), same_lanes(*scale)};
}
INLINE nf4_Inputs nf4_load_x(const char *from) {
    return (nf4_Inputs){load_pairs_of_x(from), load_pairs_of_x(from + PAIRS_OF_X_BYTES)};
}
INLINE nf4_Sum nf4_add(nf4_Sum sum, nf4_Weights w, nf4_Inputs x) {
    Lanes block = add_pairs(add_pairs(no_lanes(), w.levels.low, x.low), w.levels.high, x.high);
    return add_product(sum, block, w.scale);
}
#define nf4_keep keep_lanes

enum { wide_nf4_COLUMNS = 64, wide_nf4_BYTES = 32, wide_nf4_X_BYTES = 256, wide_nf4_LINES = 2 };
enum { wide_nf4_SEGMENT = 1024, wide_nf4_SCALES = 1 };
typedef Lanes wide_nf4_Sum;
typedef struct {
    Lanes levels[4], scale;
} wide_nf4_Weights;
typedef const char *wide_nf4_Inputs;
typedef float wide_nf4_Cell;
INLINE wide_nf4_Sum wide_nf4_no_sum(void) { return no_lanes(); }
INLINE wide_nf4_Weights wide_nf4_load(const char *from, const float *scale) {
    return (wide_nf4_Weights){{load_levels(from, 0, LEVELS), load_levels(from + 16, 0, LEVELS),
                               load_levels(from, 4, LEVELS), load_levels(from + 16, 4, LEVELS)},
                              same_lanes(*scale)};
}
INLINE wide_nf4_Inputs wide_nf4_load_x(const char *from) { return from; }
INLINE wide_nf4_Sum wide_nf4_add(wide_nf4_Sum sum, wide_nf4_Weights w, wide_nf4_Inputs x) {
    Lanes block = no_lanes();
    for (int part = 0; part < 4; part++) block = add_product(block, w.levels[part], load_lanes(x + 64 * part));
    return add_product(sum, block, w.scale);
}
#define wide_nf4_keep keep_lanes
