/* softmax(q K^T) V of the many rows of one sequence in float32, see kernels/sequence_attention.py, which defines it.
 *
 * A chunk is a few rows of one head. A row's sums go over its positions in their order, so its result depends on its own
 * length alone: positions that only later rows of the chunk see are added with weights of zero. */
#pragma once
#include "attention.h"

enum {
    QUERY_ROWS = 24,           /* of a chunk: several whole tiles of any variant */
    SHARED_SCORES = 1 << 15    /* from so many on more than one thread is worth while */
};

typedef struct {
    const float *query;        /* [N, H, Dh], rows `query_stride` apart */
    const float *keys, *values; /* [G, M, Dh], groups `group_stride` apart */
    float *out;                /* [N, H, Dh] */
    long rows, positions, heads, groups, head_dim;
    long query_stride, group_stride; /* floats */
    int causal;                /* the rows are the last of the positions, and see up to their own */
} SequenceAttention;

INLINE long blocks_of(const SequenceAttention *a) { return (a->rows + QUERY_ROWS - 1) / QUERY_ROWS; }

/* scores [rows, stride], of which the first `length`: a product whose W are the keys. */
INLINE void score_rows(Rows query, const float *keys, long length, long head_dim, float *scores, long stride) {
    Matrix matrix = {keys, NULL, length, head_dim, W_FLOAT32, 0};
    ROOM(char, scratch, product_bytes(&matrix, query.rows));
    Multiplication m = packed(&matrix, query, scratch, 1);
    m.product.y = scores, m.product.y_stride = stride;
    m.per_chunk = CHUNK_ROWS;
    for (long chunk = 0; chunk * CHUNK_ROWS < length; chunk++) multiply_chunk(&m, chunk);
}

static void attend_rows(const void *job, long chunk) {
    const SequenceAttention *a = job;
    const long head = chunk / blocks_of(a), first = chunk % blocks_of(a) * QUERY_ROWS, width = a->head_dim;
    const long left = a->rows - first, rows = left < QUERY_ROWS ? left : QUERY_ROWS;
    const long length = a->causal ? a->positions - left + rows : a->positions; /* of the last row */
    const long group = head / (a->heads / a->groups) * a->group_stride;
    const long stride = up_to(length, 16);
    float sum[QUERY_ROWS], greatest;
    ROOM(float, scores, rows * stride);
    ROOM(float, mixed, rows * (width + 2));
    Rows query = {a->query + first * a->query_stride + head * width, rows, a->query_stride, FLOAT32};
    score_rows(query, a->keys + group, length, width, scores, stride);
    for (long row = 0; row < rows; row++) {
        const long own = a->causal ? length - rows + row + 1 : length;
        weigh(scores + row * stride, own, &greatest, sum + row);
        memset(scores + row * stride + own, 0, (length - own) * sizeof *scores);
    }
    f32_mix((const char *)(a->values + group), width, (const char *)scores, stride * sizeof *scores, rows, length, mixed);
    for (long row = 0; row < rows; row++) {
        float *out = a->out + ((first + row) * a->heads + head) * width;
        for (long d = 0; d < width; d++) out[d] = mixed[row * (width + 2) + d] / sum[row];
    }
}

static void attend_sequence(const SequenceAttention *a, int threads) {
    const long scores = a->heads * a->rows * a->positions;
    run_chunks(attend_rows, a, a->heads * blocks_of(a), scores < SHARED_SCORES ? 1 : threads);
}
