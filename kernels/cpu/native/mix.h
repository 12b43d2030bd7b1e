/* `mix` for one FORMAT, see values.h: one or more blocks of 32 columns at a time for up to 4 heads, whose sums have names (see
 * tile.h). */

#define NAME_OF(format, name) format##_##name
#define NAME_IN(format, name) NAME_OF(format, name)
#define IN(name) NAME_IN(FORMAT, name)
#define BLOCKS(F, h) F(h, 0) F(h, 1) F(h, 2) F(h, 3)
#define SUMS(F) BLOCKS(F, 0) BLOCKS(F, 1) BLOCKS(F, 2) BLOCKS(F, 3)

/* Some blocks of 32 columns from `column` on, or the last columns if they are fewer, of at most 4 heads. */
INLINE void IN(mix_columns)(const char *values, long head_dim, long column, const int blocks, const char *weights,
                            long weights_stride, const int heads, long count, float *out, long out_stride) {
    const long size = IN(BYTES) / IN(COLUMNS), width = head_dim * size;
    const long columns = head_dim - column < 32 ? head_dim - column : 32; /* of a block */
    _Alignas(64) char even[128] = {0}, odd[128] = {0};                    /* for less than 32 columns */
#define SUM(h, b) Lanes first##h##b = no_lanes(), second##h##b = no_lanes();
    SUMS(SUM)
    for (long t = 0; t < count; t += IN(POSITIONS)) {
        const char *a = values + t * width + column * size;
        const char *b = t + IN(POSITIONS) - 1 < count ? a + (IN(POSITIONS) - 1) * width : a; /* meets a weight of zero */
        if (columns < 32) a = memcpy(even, a, columns * size), b = memcpy(odd, b, columns * size);
#define LOAD(block)                                                                                                     \
    IN(Values) v##block;                                                                                                \
    if (block < blocks) v##block = IN(load_values)(a + block * 32 * size, b + block * 32 * size);
#define ADD(h, b)                                                                                                       \
    if (h < heads && b < blocks) {                                                                                      \
        first##h##b = IN(add_first)(first##h##b, v##b, w##h), second##h##b = IN(add_second)(second##h##b, v##b, w##h);  \
    }
#define HEAD(h)                                                                                                         \
    if (h < heads) {                                                                                                    \
        IN(Weight) w##h = IN(same)(weights + h * weights_stride + t * IN(WEIGHT_BYTES));                                \
        BLOCKS(ADD, h)                                                                                                  \
    }
        LOAD(0) LOAD(1) LOAD(2) LOAD(3)
        HEAD(0) HEAD(1) HEAD(2) HEAD(3)
    }
    float whole[32];
#define STORE(h, b)                                                                                                     \
    if (h < heads && b < blocks) {                                                                                      \
        IN(store_values)(whole, first##h##b, second##h##b);                                                             \
        memcpy(out + h * out_stride + column + 32 * b, whole, columns * sizeof *whole);                                 \
    }
    SUMS(STORE)
#undef SUM
#undef LOAD
#undef ADD
#undef HEAD
#undef STORE
}

/* weights [heads, count], rows `weights_stride` bytes apart -> out [heads, head_dim + 2], of which the last two are left as they
 * are. */
static void IN(mix)(const char *values, long head_dim, const char *weights, long weights_stride, long heads, long count,
                    float *out) {
    const long stride = head_dim + 2;
    const int wide = MIXED_BLOCKS, half = (MIXED_BLOCKS + 1) / 2;
    for (long head = 0; head < heads; head += 4) {
        const long some = heads - head < 4 ? heads - head : 4;
        const char *from = weights + head * weights_stride;
        float *to = out + head * stride;
#define MIX(blocks, heads)                                                                                              \
    IN(mix_columns)(values, head_dim, column, blocks, from, weights_stride, heads, count, to, stride),                 \
        column += 32 * blocks
        for (long column = 0, left = head_dim; left > 0; left = head_dim - column) {
            if (some == 1 && left >= 32 * wide) MIX(wide, 1);
            else if (some == 4 && left >= 32 * half) MIX(half, 4);
            else if (some == 1) MIX(1, 1);
            else MIX(1, (int)some);
        }
#undef MIX
    }
}

#undef SUMS
#undef BLOCKS
#undef IN
#undef NAME_IN
#undef NAME_OF
#undef FORMAT
