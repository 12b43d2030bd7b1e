/* One tile of a product, for one FORMAT: TILE_ROWS rows of W with a few lines of x over some steps of columns, added to cells
 * [line][row of W].
 *
 * The sums have names: gcc 12 keeps arrays of vectors in memory, which makes many lines three times as slow. Rows of W are
 * fetched ahead, and at their end those of the next tile. */

#define NAME_OF(format, name) format##_##name
#define NAME_IN(format, name) NAME_OF(format, name)
#define IN(name) NAME_IN(FORMAT, name)

INLINE void IN(tile)(const Product *p, long row, long end, long from, long to, int line, const int lines, int fetches,
                     IN(Cell) * cells, long stride) {
    const long width = p->row_bytes, steps = (p->columns + IN(COLUMNS) - 1) / IN(COLUMNS);
    const long rest = width - (steps - 1) * IN(BYTES); /* bytes of the last step */
    const char *x = p->panel + (line * steps + from * lines) * IN(X_BYTES);
    _Alignas(64) char last[TILE_ROWS][IN(BYTES)]; /* the last step, if it is not a whole one */
#define ROW_OF_W(r)                                                                                                     \
    const char *w##r = p->weights + (row + r < end ? row + r : end - 1) * width;                                        \
    const float *s##r = IN(SCALES) ? p->scales + (row + r < end ? row + r : end - 1) * steps : NULL;                    \
    (void)s##r;
#define SUM(r, i) IN(Sum) sum##r##i = IN(no_sum)();
#define SUMS(r) LINES_OF_TILE(SUM, r)
    ROWS_OF_TILE(ROW_OF_W)
    const int cut_off = to == steps && rest < IN(BYTES);
#define COPY(r) memset(last[r], 0, sizeof last[r]), memcpy(last[r], w##r + (steps - 1) * IN(BYTES), rest);
    if (cut_off) { /* now: a call among the sums would put them into memory */
        ROWS_OF_TILE(COPY)
    }
    ROWS_OF_TILE(SUMS)
    for (long step = from; step < to; step++, x += lines * IN(X_BYTES)) {
        long place = step * IN(BYTES);
        if (cut_off && step == steps - 1) {
#define TURN_TO_COPY(r) w##r = last[r];
            ROWS_OF_TILE(TURN_TO_COPY)
            place = 0;
        }
        long ahead = place + (place + AHEAD < width ? AHEAD : AHEAD + (TILE_ROWS - 1) * width);
#define LOAD_X(r, i) IN(Inputs) x##i = IN(load_x)(x + (i < lines ? i : 0) * IN(X_BYTES));
#define ADD(r, i)                                                                                                       \
    if (i < lines) sum##r##i = IN(add)(sum##r##i, w, x##i);
#define TURN(r)                                                                                                         \
    {                                                                                                                   \
        if (fetches && p->into_l1) __builtin_prefetch(w##r + ahead, 0, 3);                                              \
        else if (fetches) __builtin_prefetch(w##r + ahead, 0, 2);                                                       \
        IN(Weights) w = IN(load)(w##r + place, s##r + step);                                                            \
        LINES_OF_TILE(ADD, r)                                                                                           \
    }
        LINES_OF_TILE(LOAD_X, )
        ROWS_OF_TILE(TURN)
    }
#ifdef FOUR_ROWS_OF_W
#define KEEP(r, i)                                                                                                      \
    if (i < lines) IN(keep)(cells + i * stride, sum0##i, sum1##i, sum2##i, sum3##i);
#else
#define KEEP(r, i)                                                                                                      \
    if (i < lines) IN(keep)(cells + i * stride, sum0##i, sum1##i);
#endif
    LINES_OF_TILE(KEEP, )
#undef ROW_OF_W
#undef SUM
#undef SUMS
#undef COPY
#undef TURN_TO_COPY
#undef LOAD_X
#undef ADD
#undef TURN
#undef KEEP
}

/* The same for any number of lines, compiled for each. */
static void IN(any_tile)(const Product *p, long row, long end, long from, long to, int line, int lines, int fetches,
                         IN(Cell) * cells, long stride) {
#define TILE_OF(count)                                                                                                  \
    case count:                                                                                                         \
        if (count <= IN(LINES)) {                                                                                       \
            if (fetches) IN(tile)(p, row, end, from, to, line, count, 1, cells, stride);                                \
            else IN(tile)(p, row, end, from, to, line, count, 0, cells, stride);                                        \
        }                                                                                                               \
        break;
    switch (lines) {
        TILE_OF(1)
        TILE_OF(2)
        TILE_OF(3)
        TILE_OF(4)
        TILE_OF(5)
        TILE_OF(6)
    }
#undef TILE_OF
}

/* Rows first to end of W with all lines of x: y[row of x][first - base ...] for floats, and with int8 from their digits.
 *
 * Few lines go with a tile's rows from end to end, as memory likes it. With more, a segment of the panel is to stay in L1
 * while all rows pass by. Either adds the same sums, those of segments, in their order. */
static void IN(rows)(const Product *p, long first, long end) {
    const long stride = (end - first + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    const long steps = (p->columns + IN(COLUMNS) - 1) / IN(COLUMNS), segment = IN(SEGMENT) / IN(COLUMNS);
    const int lines = p->rows * p->lines_per_row, groups = groups_of(p, IN(LINES));
    IN(Cell) cells[lines * stride];
    memset(cells, 0, sizeof cells);
    if (groups == 1) {
        for (long row = first; row < end; row += TILE_ROWS)
            for (long from = 0; from < steps; from += segment)
                IN(any_tile)(p, row, end, from, from + segment < steps ? from + segment : steps, 0, lines, 1,
                             cells + row - first, stride);
    } else {
        for (long from = 0; from < steps; from += segment)
            for (int group = 0; group < groups; group++) {
                int line = line_of_group(p, group, groups), next = line_of_group(p, group + 1, groups);
                for (long row = first; row < end; row += TILE_ROWS)
                    IN(any_tile)(p, row, end, from, from + segment < steps ? from + segment : steps, line, next - line,
                                 group == 0, cells + line * stride + row - first, stride);
            }
    }
    IN(finish)(p, first, end, cells, stride);
}

#undef IN
#undef NAME_IN
#undef NAME_OF
#undef FORMAT
