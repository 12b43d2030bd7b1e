/* What lies between the products of a sequence, row by row in float32: kernels/norm.py and kernels/gated.py define it. */
#pragma once
#include "floats.h"
#include "pool.h"

enum { SHARED_ROW_NUMBERS = 1 << 15 }; /* from which on more than one thread is worth while */

typedef struct {
    const float *x, *weight; /* weight: of a norm, [width] */
    float *y;                /* [rows, width] */
    long width;
    float eps;
} RowWork;

static void normalize_row(const void *job, long row) {
    const RowWork *r = job;
    const float *x = r->x + row * r->width;
    float *y = r->y + row * r->width, scale = 1 / sqrtf(sum_of_squares(x, r->width) / (float)r->width + r->eps);
    for (long k = 0; k < r->width; k++) y[k] = x[k] * scale * r->weight[k];
}

/* x [rows, 2 width]: silu(gate) * up. */
static void gate_row(const void *job, long row) {
    const RowWork *r = job;
    const float *gate = r->x + row * 2 * r->width, *up = gate + r->width;
    float *restrict y = r->y + row * r->width;
    for (long k = 0; k < r->width; k++) y[k] = gate[k] / (1 + exp_of(-gate[k])) * up[k];
}

static void for_each_row(Task task, const RowWork *work, long rows, int threads) {
    run_chunks(task, work, rows, rows * work->width < SHARED_ROW_NUMBERS ? 1 : threads);
}
