/* y = x W^T for the few rows x of a step. W [N, K] lies row by row, as checkpoints have it, and is read once; x is packed into a
 * panel, so that a step of the inner loop reads neighboring bytes.
 *
 * The order in which a number is summed depends on K and the format alone: segments of columns one after the other, within
 * a segment by lanes. So a row of x gives the same bits in any batch, on any number of threads and in every variant. */
#pragma once
#include <float.h>

#include "formats.h"
#include "pool.h"
#include "room.h"

enum {
    AHEAD = 1536,           /* bytes by which rows of W are fetched ahead */
    LEAST_CHUNK = 1 << 16,  /* bytes of W for one chunk of the pool */
    MOST_CHUNK = 1 << 19,
    CHUNKS_PER_THREAD = 8,  /* so many or more: threads do not wait long for the last */
    CHUNK_ROWS = 64,        /* of W at most with many lines, whose cells are to stay in the cache */
    FEW_ROWS = 2,           /* of x, which take larger chunks */
    MOST_CHUNK_ROWS = 2048, /* of W with few: their cells lie on the stack */
    MOST_ROWS = 512,        /* of x at a time: their cells lie on the stack, of which a thread may have 2 MB */
    SHARED_BYTES = 1 << 18, /* of W, from which on more than one thread is worth while */
    PACK_SHARED = 1 << 16,  /* columns times rows of x, from which on they are packed by more than one thread */
    LARGE_L1 = 48 << 10     /* bytes: see `fetches_into_l1` */
};

#define PER_ABSMAX 7.874015718698502e-3f /* 1 / 127, as kernels/quantized.py has it */

typedef struct {
    const void *values;
    const float *scales; /* int8 [N], NF4 [N, K / 64], else NULL */
    long outputs, columns;
    int format; /* Format */
    int digits; /* int8: of each number of x, see kernels/cpu/limbs.py */
} Matrix;

/* A few rows of inputs, `stride` elements apart. */
typedef struct {
    const void *values;
    long rows, stride;
    int kind; /* Kind */
} Rows;

typedef struct {
    const char *weights;
    const float *scales;
    long columns, row_bytes;
    long rows;          /* of x */
    int lines_per_row;  /* of the panel; int8 may have one per digit */
    int into_l1;        /* rows of W are fetched into the L1 cache */
    int by_amx;         /* see amx.h, which has a panel of its own */
    const char *panel;  /* [group of lines][step][line][bytes] */
    const float *units; /* int8: what an integer of a row is worth */
    const float *added; /* int8 [line]: what ADDED_TO_INTEGERS has added to a sum */
    float *y;           /* [rows, y_stride], from row `base` of W on */
    long y_stride, base;
} Product;

/* Whether the L1 cache has room for what is fetched ahead. Rows of W, whose width is a power of two, meet in the same sets: a
 * cache of 32 KB and 8 ways (Zen 4) reads faster with them in L2, one of 48 KB and 12 ways (Zen 5) with them in L1. */
static int fetches_into_l1(void) {
#ifdef _SC_LEVEL1_DCACHE_SIZE
    static atomic_int known; /* 1 no, 2 yes */
    if (!atomic_load_explicit(&known, memory_order_relaxed))
        atomic_store_explicit(&known, sysconf(_SC_LEVEL1_DCACHE_SIZE) >= LARGE_L1 ? 2 : 1, memory_order_relaxed);
    return atomic_load_explicit(&known, memory_order_relaxed) == 2;
#else
    return 0;
#endif
}

/* Lines are cut into groups of whole rows of x, as equal as can be. */
INLINE int groups_of(const Product *p, int most_lines) {
    int most = most_lines / p->lines_per_row;
    return (int)((p->rows + most - 1) / most);
}
INLINE int line_of_group(const Product *p, int group, int groups) {
    return (int)(p->rows * group / groups) * p->lines_per_row;
}

INLINE void keep_floats(const Product *p, long first, long end, const float *cells, long stride) {
    for (long row = 0; row < p->rows; row++)
        memcpy(p->y + row * p->y_stride + first - p->base, cells + row * stride, (end - first) * sizeof *cells);
}

#define bf16_finish keep_floats
#define f32_finish keep_floats
#define f16_finish keep_floats
#define nf4_finish keep_floats
#define wide_nf4_finish keep_floats

/* The sums are below 2^53, so exact in double, and rounded once. */
INLINE void int8_finish(const Product *p, long first, long end, const double *cells, long stride) {
    const int lines = p->lines_per_row;
    double total[end - first];
    for (long row = 0; row < p->rows; row++) {
        float unit = p->units[row], *y = p->y + row * p->y_stride + first - p->base;
        memset(total, 0, sizeof total);
        for (int line = 0; line < lines; line++) {
            const double *sums = cells + (row * lines + line) * stride, added = p->added[row * lines + line];
            for (long n = 0; n < end - first; n++) total[n] = total[n] * 256 + (sums[n] - added);
        }
        for (long n = 0; n < end - first; n++) y[n] = (float)total[n] * unit * (p->scales[first + n] * PER_ABSMAX);
    }
}

#define FORMAT bf16
#include "tile.h"
#define FORMAT f32
#include "tile.h"
#define FORMAT f16
#include "tile.h"
#define FORMAT int8
#include "tile.h"
#define FORMAT nf4
#include "tile.h"
#define FORMAT wide_nf4
#include "tile.h"
#include "amx.h"

/* What there is to know of a format. */
typedef struct {
    long columns, x_bytes; /* of a step, and of one line of x in it */
    int lines;             /* of a tile, at most */
    void (*rows)(const Product *p, long first, long end);
} FormatFacts;

#define FACTS(name) {name##_COLUMNS, name##_X_BYTES, name##_LINES, name##_rows}
static const FormatFacts FORMATS[] = {FACTS(f32), FACTS(bf16), FACTS(f16), FACTS(int8), FACTS(nf4), FACTS(wide_nf4)};

INLINE long row_bytes(int format, long columns) {
    switch (format) {
        case W_FLOAT32: return 4 * columns;
        case W_INT8: return columns;
        case W_NF4_BFLOAT16:
        case W_NF4_FLOAT32: return columns / 2;
        default: return 2 * columns;
    }
}

INLINE int lines_per_row(const Matrix *m) {
    return m->format == W_INT8 ? (m->digits + DIGITS_PER_LINE - 1) / DIGITS_PER_LINE : 1;
}

INLINE long up_to(long value, long multiple) { return (value + multiple - 1) / multiple * multiple; }

/* Bytes of scratch memory for a product, of which the first `rows` floats are the units, the next those of `added`. */
INLINE long head_bytes(const Matrix *m, long rows) { return up_to((1 + lines_per_row(m)) * rows * sizeof(float), 64); }
INLINE long product_bytes(const Matrix *m, long rows) {
    const FormatFacts *f = FORMATS + m->format;
    long steps = (m->columns + f->columns - 1) / f->columns;
    long lines = rows * lines_per_row(m);
    if (takes_amx(m, rows)) lines = up_to(lines, AMX_SIDE);
    return head_bytes(m, rows) + up_to(lines * steps * f->x_bytes, 64);
}

typedef struct {
    Product product;
    const Matrix *matrix;
    Rows x;
    char *panel;
    float *units, *added;
    long per_chunk;
} Multiplication;

/* A row as integers of `digits` digits, see limbs.py. An infinite number, or none, makes the unit so, and thereby the result. */
INLINE float integers_of(const float *x, long columns, int digits, int32_t *to) {
    uint32_t largest = 0; /* as integers, the bits of absolute values have their order, with NaN on top */
    for (long k = 0; k < columns; k++) {
        uint32_t bits = bits_of(x[k]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float unit = float_of(largest) / 127;
    for (int digit = 1; digit < digits; digit++) unit /= 256;
    unit += 1e-30f;
    if (!(unit <= FLT_MAX)) {
        memset(to, 0, columns * sizeof *to);
        return unit;
    }
    for (long k = 0; k < columns; k++) to[k] = (int32_t)__builtin_rintf(x[k] / unit);
    return unit;
}

INLINE void pack_int8(Multiplication *m, long row, const float *x, long padded, char *to, long stride) {
    const Matrix *matrix = m->matrix;
    const int digits = matrix->digits, lines = m->product.lines_per_row;
    ROOM(int32_t, integers, padded);
    m->units[row] = integers_of(x, padded, digits, integers);
    if (m->product.by_amx) {
        amx_pack(integers, padded, digits, m->panel, row * lines);
        return;
    }
    for (long k = 0; k < padded; k += INTEGERS)
        pack_integers(integers + k, digits, to + k / INTEGERS * stride, INTEGERS_OF_X_BYTES);
    for (int line = lines - 1; ADDED_TO_INTEGERS && line >= 0; line--) {
        int32_t sum = 0;
        for (long k = 0; k < padded; k++) sum += (int8_t)integers[k];
        for (long k = 0; k < padded; k++) integers[k] = (integers[k] + 128) >> 8;
        m->added[row * lines + line] = (float)(ADDED_TO_INTEGERS * (double)sum);
    }
    if (!ADDED_TO_INTEGERS) memset(m->added + row * lines, 0, lines * sizeof *m->added);
}

/* A line of x, of whole steps, as floats or pairs of bfloat16; its steps are `stride` bytes apart. */
INLINE void pack_line(int format, const float *x, long steps, char *to, long stride) {
    const long columns = FORMATS[format].columns;
    for (long step = 0; step < steps; step++, x += columns, to += stride) {
        if (format == W_BFLOAT16 || format == W_NF4_BFLOAT16)
            for (long k = 0; k < columns; k += 32) pack_pairs(x + k, to + k / 32 * PAIRS_OF_X_BYTES);
        else memcpy(to, x, columns * sizeof *x);
    }
}

/* Put a row of x into the panel. */
static void pack_row(const void *job, long row) {
    Multiplication *m = (Multiplication *)job;
    const FormatFacts *f = FORMATS + m->matrix->format;
    const long columns = m->matrix->columns, steps = (columns + f->columns - 1) / f->columns, padded = steps * f->columns;
    const int groups = groups_of(&m->product, f->lines), lines = m->product.lines_per_row;
    int group = 0;
    while (line_of_group(&m->product, group + 1, groups) <= row * lines) group++;
    long line = line_of_group(&m->product, group, groups);
    long stride = (line_of_group(&m->product, group + 1, groups) - line) * f->x_bytes; /* from a step to the next */
    char *to = m->panel + line * steps * f->x_bytes + (row * lines - line) * f->x_bytes;
    ROOM(float, x, padded);
    read_floats((const char *)m->x.values + row * m->x.stride * bytes_of(m->x.kind), m->x.kind, columns, x);
    memset(x + columns, 0, (padded - columns) * sizeof *x);
    if (m->matrix->format == W_INT8) pack_int8(m, row, x, padded, to, stride);
    else pack_line(m->matrix->format, x, steps, to, stride);
}

static void multiply_chunk(const void *job, long chunk) {
    const Multiplication *m = job;
    long first = chunk * m->per_chunk, end = first + m->per_chunk;
    if (end > m->matrix->outputs) end = m->matrix->outputs;
    if (m->product.by_amx) amx_rows(&m->product, first, end);
    else FORMATS[m->matrix->format].rows(&m->product, first, end);
}

/* A product with its x packed into `scratch`, of `product_bytes`. */
static Multiplication packed(const Matrix *matrix, Rows x, char *scratch, int threads) {
    Multiplication m = {
        .matrix = matrix,
        .x = x,
        .units = (float *)scratch,
        .added = (float *)scratch + x.rows,
        .panel = scratch + head_bytes(matrix, x.rows),
    };
    m.product = (Product){
        .weights = matrix->values,
        .scales = matrix->scales,
        .columns = matrix->columns,
        .row_bytes = row_bytes(matrix->format, matrix->columns),
        .rows = x.rows,
        .lines_per_row = lines_per_row(matrix),
        .into_l1 = fetches_into_l1(),
        .by_amx = takes_amx(matrix, x.rows),
        .panel = m.panel,
        .units = m.units,
        .added = m.added,
    };
    run_chunks(pack_row, &m, x.rows, x.rows * matrix->columns < PACK_SHARED ? 1 : threads);
    return m;
}

/* y [x.rows, N] float32, of at most MOST_ROWS. */
static void multiply_some(const Matrix *matrix, Rows x, float *y, char *scratch, int threads) {
    Multiplication m = packed(matrix, x, scratch, threads);
    m.product.y = y, m.product.y_stride = matrix->outputs;
    const long bytes = m.product.row_bytes * matrix->outputs;
    long chunk = bytes / (CHUNKS_PER_THREAD * threads);
    chunk = chunk < LEAST_CHUNK ? LEAST_CHUNK : chunk > MOST_CHUNK ? MOST_CHUNK : chunk;
    long per_chunk = up_to(chunk / m.product.row_bytes + 1, m.product.by_amx ? 2 * AMX_SIDE : 2 * TILE_ROWS);
    const long most = x.rows > FEW_ROWS ? CHUNK_ROWS : MOST_CHUNK_ROWS;
    if (per_chunk > most) per_chunk = most;
    m.per_chunk = per_chunk;
    if (bytes < SHARED_BYTES) threads = 1;
    run_chunks(multiply_chunk, &m, (matrix->outputs + per_chunk - 1) / per_chunk, threads);
}

/* y [x.rows, N] float32; scratch: `product_bytes` of the rows, or of MOST_ROWS if that is fewer. */
static void multiply(const Matrix *matrix, Rows x, float *y, char *scratch, int threads) {
    const long rows = x.rows, row_bytes = x.stride * bytes_of(x.kind);
    const char *values = x.values;
    for (long first = 0; first < rows; first += MOST_ROWS) {
        x.values = values + first * row_bytes;
        x.rows = rows - first < MOST_ROWS ? rows - first : MOST_ROWS;
        multiply_some(matrix, x, y + first * matrix->outputs, scratch, threads);
    }
}
