/* A quantized matrix as a plain one, bit for bit what `dequantize` of kernels/quantized.py gives. */
#pragma once
#include "product.h"

typedef struct {
    const Matrix *matrix;
    void *to; /* [N, K] */
    int kind;
} Reading;

INLINE void read_int8_row(const Matrix *m, long row, float *to) {
    const int8_t *values = (const int8_t *)m->values + row * m->columns;
    const float absmax = m->scales[row];
    for (long k = 0; k < m->columns; k++) to[k] = values[k] * absmax * PER_ABSMAX;
}

/* Byte j of a block's 32 holds weight j in its low half and weight 32 + j in its high half. */
INLINE void read_nf4_row(const Matrix *m, long row, float *to) {
    const long blocks = m->columns / 64;
    const char *bytes = (const char *)m->values + row * m->columns / 2;
    for (long block = 0; block < blocks; block++, bytes += 32, to += 64) {
        const float absmax = m->scales[row * blocks + block];
        for (int part = 0; part < 4; part++)
            store_lanes(to + 16 * part, load_levels(bytes + part % 2 * 16, part / 2 * 4, LEVELS));
        for (int k = 0; k < 64; k++) to[k] *= absmax;
    }
}

static void read_row(const void *job, long row) {
    const Reading *r = job;
    const Matrix *m = r->matrix;
    ROOM(float, values, m->columns);
    if (m->format == W_INT8) read_int8_row(m, row, values);
    else read_nf4_row(m, row, values);
    write_floats(values, r->kind, m->columns, (char *)r->to + row * m->columns * bytes_of(r->kind));
}
