/* Products of int8 by AMX, which multiplies 16 rows of W by 16 lines of digits, 64 columns at a time. Its eight registers hold
 * 16 rows of 64 bytes each: of W as it lies in memory, of the panel, and of sums in int32. Integers know no order: the bits
 * are those of any other variant.
 *
 * A panel is [16 lines][step of 64 columns][4 columns][line][column] here. What is behind the last line is never read back.
 * Elsewhere the instructions are plain C, which is used by tests alone, built with AMX_EMULATED. */
#pragma once

#if defined(__AMX_INT8__) || defined(AMX_EMULATED)
enum { HAS_AMX = 1 };
#else
enum { HAS_AMX = 0 };
#endif

enum {
    AMX_SIDE = 16, /* rows of W, and lines */
    AMX_COLUMNS = 64,
    AMX_BYTES = AMX_SIDE * AMX_COLUMNS, /* of a register */
    LEAST_AMX_LINES = 5,                /* fewer are as fast as memory without it */
    AMX_SEGMENT = 16                    /* steps, whose part of the panel, of 32 lines, stays in L1 while rows pass by */
};

#ifdef __AMX_INT8__
/* Not the intrinsics: gcc 12's do not say that they read memory, and what was written before comes too late. */
INLINE void amx_begin(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes_per_row[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
}
INLINE void amx_end(void) { __asm__ volatile("tilerelease"); }
#define amx_load(to, from, stride)                                                                                      \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #to : : "r"(from), "r"((long)(stride)) : "memory")
#define amx_store(from, to, stride)                                                                                     \
    __asm__ volatile("tilestored %%tmm" #from ", (%0,%1,1)" : : "r"(to), "r"((long)(stride)) : "memory")
#define amx_add(sums, w, x) __asm__ volatile("tdpbssd %%tmm" #x ", %%tmm" #w ", %%tmm" #sums : :)
#else
static _Thread_local int8_t amx_registers[8][AMX_SIDE][AMX_COLUMNS];
INLINE void amx_begin(void) {}
INLINE void amx_end(void) {}
INLINE void amx_load(int to, const void *from, long stride) {
    for (int row = 0; row < AMX_SIDE; row++) memcpy(amx_registers[to][row], (const char *)from + row * stride, AMX_COLUMNS);
}
INLINE void amx_store(int from, void *to, long stride) {
    for (int row = 0; row < AMX_SIDE; row++) memcpy((char *)to + row * stride, amx_registers[from][row], AMX_COLUMNS);
}
INLINE void amx_add(int sums, int w, int x) {
    for (int row = 0; row < AMX_SIDE; row++)
        for (int line = 0; line < AMX_SIDE; line++) {
            int32_t *sum = (int32_t *)amx_registers[sums][row] + line;
            for (int k = 0; k < AMX_COLUMNS; k++)
                *sum += amx_registers[w][row][k] * amx_registers[x][k / 4][4 * line + k % 4];
        }
}
#endif

/* The sums of 16 rows of W by 16 lines each. */
typedef int32_t AmxSums[AMX_SIDE][AMX_SIDE];

/* Add the products of one or two blocks of 16 rows of W, from w0 and w1 on, by one or two groups of lines, over some steps.
 * The sums of a block are those of `groups` groups, one after the other. */
INLINE void amx_blocks(const Product *p, const char *w0, const char *w1, const char *x, long from, long to,
                       const int two_blocks, const int two_groups, int fetches, AmxSums *sums, int groups) {
    const long width = p->row_bytes, steps = (p->columns + AMX_COLUMNS - 1) / AMX_COLUMNS;
    const long rest = width - (steps - 1) * AMX_COLUMNS; /* bytes of the last step */
    char last[2][AMX_BYTES];                             /* the last step, if it is not a whole one */
    amx_load(0, sums, AMX_COLUMNS);
    if (two_groups) amx_load(1, sums + 1, AMX_COLUMNS);
    if (two_blocks) amx_load(2, sums + groups, AMX_COLUMNS);
    if (two_blocks && two_groups) amx_load(3, sums + groups + 1, AMX_COLUMNS);
    for (long step = from; step < to; step++) {
        const char *first = w0 + step * AMX_COLUMNS, *second = w1 + step * AMX_COLUMNS;
        const char *lines = x + step * AMX_BYTES;
        long stride = width;
        if (step == steps - 1 && rest < AMX_COLUMNS) {
            memset(last, 0, sizeof last);
            for (int row = 0; row < AMX_SIDE; row++) {
                memcpy(last[0] + row * AMX_COLUMNS, first + row * width, rest);
                memcpy(last[1] + row * AMX_COLUMNS, second + row * width, rest);
            }
            first = last[0], second = last[1], stride = AMX_COLUMNS;
        } else if (fetches) { /* what the next segment reads */
            for (int row = 0; row < AMX_SIDE; row++) {
                __builtin_prefetch(first + row * width + AMX_SEGMENT * AMX_COLUMNS, 0, 2);
                if (two_blocks) __builtin_prefetch(second + row * width + AMX_SEGMENT * AMX_COLUMNS, 0, 2);
            }
        }
        amx_load(4, first, stride);
        if (two_blocks) amx_load(5, second, stride);
        amx_load(6, lines, AMX_COLUMNS);
        if (two_groups) amx_load(7, lines + steps * AMX_BYTES, AMX_COLUMNS);
        amx_add(0, 4, 6);
        if (two_groups) amx_add(1, 4, 7);
        if (two_blocks) amx_add(2, 5, 6);
        if (two_blocks && two_groups) amx_add(3, 5, 7);
    }
    amx_store(0, sums, AMX_COLUMNS);
    if (two_groups) amx_store(1, sums + 1, AMX_COLUMNS);
    if (two_blocks) amx_store(2, sums + groups, AMX_COLUMNS);
    if (two_blocks && two_groups) amx_store(3, sums + groups + 1, AMX_COLUMNS);
}

/* y of the rows first to end of W, from their sums. */
INLINE void amx_finish(const Product *p, long first, long end, AmxSums *sums, int groups) {
    const int per_row = p->lines_per_row;
    for (long n = first; n < end; n++) {
        const long block = (n - first) / AMX_SIDE, start = first + block * AMX_SIDE;
        const long place = n - (start + AMX_SIDE < end ? start : end - AMX_SIDE);
        for (long row = 0; row < p->rows; row++) {
            int64_t total = 0;
            for (long line = row * per_row; line < (row + 1) * per_row; line++)
                total = total * 256 + sums[block * groups + line / AMX_SIDE][place][line % AMX_SIDE];
            p->y[row * p->y_stride + n - p->base] = (float)total * p->units[row] * (p->scales[n] * PER_ABSMAX);
        }
    }
}

/* As `int8_rows`. The last block of 16 rows begins early enough to be a whole one. */
static void amx_rows(const Product *p, long first, long end) {
    const long steps = (p->columns + AMX_COLUMNS - 1) / AMX_COLUMNS, blocks = (end - first + AMX_SIDE - 1) / AMX_SIDE;
    const int groups = (int)((p->rows * p->lines_per_row + AMX_SIDE - 1) / AMX_SIDE);
    AmxSums sums[blocks * groups];
    memset(sums, 0, sizeof sums);
    amx_begin();
    for (long from = 0; from < steps; from += AMX_SEGMENT) {
        const long to = from + AMX_SEGMENT < steps ? from + AMX_SEGMENT : steps;
        for (int group = 0; group < groups; group += 2)
            for (long block = 0; block < blocks; block += 2) {
                const long row = first + block * AMX_SIDE, last_row = end - AMX_SIDE;
                const char *w0 = p->weights + (row < last_row ? row : last_row) * p->row_bytes;
                const char *w1 = p->weights + (row + AMX_SIDE < last_row ? row + AMX_SIDE : last_row) * p->row_bytes;
                const char *x = p->panel + group * steps * AMX_BYTES;
                AmxSums *to_sums = sums + block * groups + group;
                const int two_blocks = block + 1 < blocks, two_groups = group + 1 < groups;
#define AMX_CASE(b, g)                                                                                                  \
    if (two_blocks == b && two_groups == g) amx_blocks(p, w0, w1, x, from, to, b, g, group == 0, to_sums, groups);
                AMX_CASE(0, 0)
                AMX_CASE(0, 1)
                AMX_CASE(1, 0)
                AMX_CASE(1, 1)
#undef AMX_CASE
            }
    }
    amx_end();
    amx_finish(p, first, end, sums, groups);
}

/* The digits of the integers of a row of x, the highest first, to the lines from `line` on. */
static void amx_pack(const int32_t *integers, long padded, int digits, char *panel, long line) {
    for (int digit = 0; digit < digits; digit++, line++) {
        char *to = panel + line / AMX_SIDE * AMX_SIDE * padded + line % AMX_SIDE * 4;
        for (long k = 0; k < padded; k++) {
            int32_t left = integers[k];
            for (int lower = digit + 1; lower < digits; lower++) left = (left + 128) >> 8;
            to[k / 4 * AMX_SIDE * 4 + k % 4] = (char)left;
        }
    }
}

/* Whether a product goes this way: W has 16 rows to begin with, and there are lines enough. */
INLINE int takes_amx(const Matrix *m, long rows) {
    return HAS_AMX && m->format == W_INT8 && m->outputs >= AMX_SIDE && rows * m->digits >= LEAST_AMX_LINES;
}
