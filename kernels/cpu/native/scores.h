/* `score` for one FORMAT, see attention.h: blocks of SCORED_POSITIONS positions, for one head after the other. The sums have
 * names (see tile.h). */

#define NAME_OF(format, name) format##_##name
#define NAME_IN(format, name) NAME_OF(format, name)
#define IN(name) NAME_IN(FORMAT, name)

/* The keys of a block, without gaps, times a query of so many steps, in each of which so many bytes are fetched from two places. */
INLINE void IN(score_block)(const char *keys, const long steps, const char *query, const char *next_keys, const char *values,
                            long fetched, float *to) {
#define SUM(p) IN(Sum) sum##p = IN(no_sum)();
#define ADD(p) sum##p = IN(add)(sum##p, IN(load)(keys + (p * steps + step) * IN(BYTES), NULL), x);
    SCORED(SUM)
    for (long step = 0; step < steps; step++) {
        for (long end = (step + 1) * fetched, place = end - fetched; place < end; place += 64) {
            __builtin_prefetch(next_keys + place, 0, 3);
            __builtin_prefetch(values + place, 0, 3);
        }
        IN(Inputs) x = IN(load_x)(query + step * IN(X_BYTES));
        SCORED(ADD)
    }
#define OTHER_SUMS(p) , sum##p
    store_sums(to SCORED(OTHER_SUMS));
#undef SUM
#undef ADD
#undef OTHER_SUMS
}

/* keys [count, head_dim], query [heads, head_dim] -> scores [heads, stride] for whole blocks of positions, of which those from
 * `count` on mean nothing. Meanwhile the next keys and the values of these positions are fetched, a few at a time: a CPU does not
 * heed many requests at once. */
static void IN(score)(const char *keys, const char *values, long count, const void *query, long heads, long head_dim, int kind,
                      float *scores, long stride) {
    const long width = head_dim * IN(BYTES) / IN(COLUMNS), steps = (head_dim + IN(COLUMNS) - 1) / IN(COLUMNS);
    const long block = SCORED_POSITIONS * width, fetched = block / heads / steps;
    const int whole = steps * IN(COLUMNS) == head_dim;
    ROOM(char, panel, heads * steps * IN(X_BYTES));
    ROOM(char, copy, SCORED_POSITIONS * steps * IN(BYTES));
    ROOM(float, line, steps * IN(COLUMNS));
    memset(line + head_dim, 0, line_bytes - head_dim * sizeof *line);
    for (long head = 0; head < heads; head++) {
        read_floats((const char *)query + head * head_dim * bytes_of(kind), kind, head_dim, line);
        pack_line(kind, line, steps, panel + head * steps * IN(X_BYTES), IN(X_BYTES)); /* Kind and Format agree for floats */
    }
    for (long first = 0; first < count; first += SCORED_POSITIONS, keys += block, values += block) {
        const char *from = keys;
        if (!whole || first + SCORED_POSITIONS > count) {
            from = memset(copy, 0, copy_bytes);
            for (long t = 0; t < SCORED_POSITIONS && first + t < count; t++)
                memcpy(copy + t * steps * IN(BYTES), keys + t * width, width);
        }
        for (long head = 0; head < heads; head++) {
            const long part = head * steps * fetched; /* of what is fetched */
#define SCORE(steps)                                                                                                    \
    IN(score_block)(from, steps, panel + head * steps * IN(X_BYTES), keys + block + part, values + part, fetched,       \
                    scores + head * stride + first)
            if (steps == 1) SCORE(1); /* the usual ones with offsets that the compiler knows */
            else if (steps == 2) SCORE(2);
            else if (steps == 4) SCORE(4);
            else if (steps == 8) SCORE(8);
            else SCORE(steps);
#undef SCORE
        }
    }
}

#undef IN
#undef NAME_IN
#undef NAME_OF
#undef FORMAT
