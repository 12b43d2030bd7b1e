/* `mix` for one FORMAT, see values.h: 32 columns at a time for up to 4 heads, whose sums have names (see tile.h). */

#define NAME_OF(format, name) format##_##name
#define NAME_IN(format, name) NAME_OF(format, name)
#define IN(name) NAME_IN(FORMAT, name)
#define HEADS(F) F(0) F(1) F(2) F(3)

/* Columns `column` to column + 32 of at most 4 heads; words [turn][4]. */
INLINE void IN(mix_columns)(const char *values, long head_dim, long column, const uint32_t *words, const int heads,
                            long count, float *out, long out_stride) {
    const long size = IN(BYTES) / IN(COLUMNS), width = head_dim * size;
    const long columns = head_dim - column < 32 ? head_dim - column : 32;
    _Alignas(64) char even[128] = {0}, odd[128] = {0}; /* for less than 32 columns */
#define SUM(h) Lanes first##h = no_lanes(), second##h = no_lanes();
    HEADS(SUM)
    for (long t = 0; t < count; t += IN(POSITIONS), words += 4) {
        const char *a = values + t * width + column * size;
        const char *b = t + IN(POSITIONS) - 1 < count ? a + (IN(POSITIONS) - 1) * width : a; /* meets a weight of zero */
        if (columns < 32) a = memcpy(even, a, columns * size), b = memcpy(odd, b, columns * size);
        else if (column == 0)
            for (long line = 0; line < IN(POSITIONS) * width; line += 64) __builtin_prefetch(a + 2048 + line, 0, 2);
        IN(Values) v = IN(load_values)(a, b);
#define ADD(h)                                                                                                          \
    if (h < heads) {                                                                                                    \
        IN(Weight) w = IN(same)(words[h]);                                                                              \
        first##h = IN(add_first)(first##h, v, w), second##h = IN(add_second)(second##h, v, w);                          \
    }
        HEADS(ADD)
    }
    float whole[32];
#define STORE(h)                                                                                                        \
    if (h < heads) {                                                                                                    \
        IN(store_values)(whole, first##h, second##h);                                                                   \
        memcpy(out + h * out_stride + column, whole, columns * sizeof *whole);                                          \
    }
    HEADS(STORE)
#undef SUM
#undef ADD
#undef STORE
}

/* weights [heads, count] float32 -> out [heads, head_dim + 2], of which the last two are left as they are. */
static void IN(mix)(const char *values, long head_dim, const float *weights, long heads, long count, float *out) {
    const long turns = (count + IN(POSITIONS) - 1) / IN(POSITIONS);
    for (long head = 0; head < heads; head += 4) {
        const long some = heads - head < 4 ? heads - head : 4;
        uint32_t words[4 * turns];
        for (long h = 0; h < some; h++)
            for (long turn = 0; turn < turns; turn++) {
                long t = turn * IN(POSITIONS);
                words[4 * turn + h] = IN(word)(weights + (head + h) * count + t, t + 1 < count);
            }
        float *to = out + head * (head_dim + 2);
        for (long column = 0; column < head_dim; column += 32) {
            if (some == 1) IN(mix_columns)(values, head_dim, column, words, 1, count, to, head_dim + 2);
            else if (some == 4) IN(mix_columns)(values, head_dim, column, words, 4, count, to, head_dim + 2);
            else IN(mix_columns)(values, head_dim, column, words, (int)some, count, to, head_dim + 2);
        }
    }
}

#undef HEADS
#undef IN
#undef NAME_IN
#undef NAME_OF
#undef FORMAT
