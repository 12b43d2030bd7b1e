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

/* scores [rows, length]: a product whose W are the keys. */
INLINE void score_rows(Rows query, const float *keys, long length, long head_dim, float *scores) {
    Matrix matrix = {keys, NULL, length, head_dim, W_FLOAT32, 0};
    _Alignas(64) char scratch[product_bytes(&matrix, query.rows)];
    Multiplication m = packed(&matrix, query, scratch, 1);
    m.product.y = scores, m.product.y_stride = length;
    m.per_chunk = CHUNK_ROWS;
    for (long chunk = 0; chunk * CHUNK_ROWS < length; chunk++) multiply_chunk(&m, chunk);
}

/* Scores to weights, and their sum, which is at least 1: the weights of what fills the last vector, 1e-38, do not change it. */
INLINE void weigh_padded(float *scores, long count, float *sum) {
    const long whole = up_to(count, 16);
    float padded[whole], greatest;
    memcpy(padded, scores, count * sizeof *scores);
    for (long t = count; t < whole; t++) padded[t] = -INFINITY;
    weigh(padded, whole, &greatest, sum);
    memcpy(scores, padded, count * sizeof *scores);
}

static void attend_rows(const void *job, long chunk) {
    const SequenceAttention *a = job;
    const long head = chunk / blocks_of(a), first = chunk % blocks_of(a) * QUERY_ROWS, width = a->head_dim;
    const long left = a->rows - first, rows = left < QUERY_ROWS ? left : QUERY_ROWS;
    const long length = a->causal ? a->positions - left + rows : a->positions; /* of the last row */
    const long group = head / (a->heads / a->groups) * a->group_stride;
    float scores[rows * length], sums[rows], mixed[rows * (width + 2)];
    Rows query = {a->query + first * a->query_stride + head * width, rows, a->query_stride, FLOAT32};
    score_rows(query, a->keys + group, length, width, scores);
    for (long row = 0; row < rows; row++) {
        const long own = a->causal ? length - rows + row + 1 : length;
        weigh_padded(scores + row * length, own, sums + row);
        memset(scores + row * length + own, 0, (length - own) * sizeof *scores);
    }
    f32_mix((const char *)(a->values + group), width, scores, rows, length, mixed);
    for (long row = 0; row < rows; row++) {
        float *out = a->out + ((first + row) * a->heads + head) * width;
        for (long d = 0; d < width; d++) out[d] = mixed[row * (width + 2) + d] / sums[row];
    }
}

static void attend_sequence(const SequenceAttention *a, int threads) {
    const long scores = a->heads * a->rows * a->positions;
    run_chunks(attend_rows, a, a->heads * blocks_of(a), scores < SHARED_SCORES ? 1 : threads);
}
