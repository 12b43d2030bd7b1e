/* softmax(q K^T) V of one position of each row against its cache, without a scale (Dia is trained without it).
 *
 * A chunk is a span of SPAN positions of one row and key head: the query heads that share the key head go through it
 * together. The spans are put together in their order, so a row's result depends on its own length alone. */
#pragma once
#include "product.h"
#include "values.h"

enum {
    SPAN = 256,                  /* positions */
    SHARED_CACHE = 1 << 16,      /* bytes of keys, from which on more than one thread is worth while */
    SHARED_JOINS = 1 << 15       /* results times spans, likewise */
};

typedef struct {
    const void *query;           /* [R, G * heads, Dh] */
    const void *keys, *values;   /* [R, G, T, Dh] */
    const int64_t *last;         /* [slots], the last valid position of each */
    void *out;                   /* [R, G * heads, Dh] */
    float *partial;              /* [R, G, spans, heads, Dh + 2]: sums of values, greatest score, sum of weights */
    long rows, rows_per_slot, groups, heads, head_dim, capacity, spans;
    int kind;                    /* Kind, of all four tensors */
} Attention;

INLINE long spans_of(long length) { return (length + SPAN - 1) / SPAN; }

INLINE long length_of(const Attention *a, long row) { return a->last[row / a->rows_per_slot] + 1; }

/* Floats of `partial`, for rows of at most `length` positions. */
INLINE long partial_floats(long rows, long groups, long heads, long head_dim, long length) {
    return rows * groups * heads * spans_of(length) * (head_dim + 2);
}

#define FORMAT bf16
#include "scores.h"
#define FORMAT f32
#include "scores.h"
#define FORMAT f16
#include "scores.h"

/* Scores to weights in float32; the greatest score and the sum of the weights. There is room for whole blocks of 16, where
 * zeros stand behind the weights. */
INLINE void weigh(float *scores, long count, float *greatest, float *sum) {
    const long whole = up_to(count, 16);
    for (long t = count; t < whole; t++) scores[t] = -INFINITY;
    float most[16];
    memcpy(most, scores, sizeof most);
    for (long t = 16; t < whole; t += 16)
        for (int lane = 0; lane < 16; lane++) most[lane] = scores[t + lane] > most[lane] ? scores[t + lane] : most[lane];
    float top = most[0];
    for (int lane = 1; lane < 16; lane++) top = most[lane] > top ? most[lane] : top;
    for (long t = 0; t < whole; t++) scores[t] = exp_of(scores[t] - top);
    memset(scores + count, 0, (whole - count) * sizeof *scores);
    *greatest = top, *sum = sum_of(scores, whole);
}

static void attend_span(const void *job, long chunk) {
    const Attention *a = job;
    const long line = chunk / a->spans, row = line / a->groups, first = chunk % a->spans * SPAN;
    const long left = length_of(a, row) - first, count = left < SPAN ? left : SPAN, size = bytes_of(a->kind);
    if (count <= 0) return;
    const long place = (line * a->capacity + first) * a->head_dim * size, stride = up_to(count, 16);
    const char *query = (const char *)a->query + line * a->heads * a->head_dim * size;
    const char *keys = (const char *)a->keys + place, *values = (const char *)a->values + place;
    float *partial = a->partial + chunk * a->heads * (a->head_dim + 2);
    ROOM(float, scores, a->heads * stride);
    if (a->kind == BFLOAT16) bf16_score(keys, values, count, query, a->heads, a->head_dim, a->kind, scores, stride);
    else if (a->kind == FLOAT16) f16_score(keys, values, count, query, a->heads, a->head_dim, a->kind, scores, stride);
    else f32_score(keys, values, count, query, a->heads, a->head_dim, a->kind, scores, stride);
    for (long head = 0; head < a->heads; head++) {
        float *to = partial + head * (a->head_dim + 2) + a->head_dim;
        weigh(scores + head * stride, count, to, to + 1);
    }
    const char *weights = (const char *)scores;
    if (a->kind == BFLOAT16) {
        ROOM(uint16_t, rounded, a->heads * stride);
        write_floats(scores, BFLOAT16, a->heads * stride, rounded);
        bf16_mix(values, a->head_dim, (const char *)rounded, 2 * stride, a->heads, count, partial);
    } else if (a->kind == FLOAT16) f16_mix(values, a->head_dim, weights, 4 * stride, a->heads, count, partial);
    else f32_mix(values, a->head_dim, weights, 4 * stride, a->heads, count, partial);
}

/* Put the spans of one row and key head together. */
static void join_spans(const void *job, long line) {
    const Attention *a = job;
    const long width = a->head_dim + 2, spans = spans_of(length_of(a, line / a->groups));
    for (long head = 0; head < a->heads; head++) {
        const float *partial = a->partial + (line * a->spans * a->heads + head) * width;
        float top = -INFINITY, total = 0;
        ROOM(float, mixed, a->head_dim);
        memset(mixed, 0, mixed_bytes);
        for (long span = 0; span < spans; span++) {
            float greatest = partial[span * a->heads * width + a->head_dim];
            top = greatest > top ? greatest : top;
        }
        for (long span = 0; span < spans; span++) {
            const float *part = partial + span * a->heads * width;
            float weight = exp_of(part[a->head_dim] - top);
            total += part[a->head_dim + 1] * weight;
            for (long d = 0; d < a->head_dim; d++) mixed[d] += part[d] * weight;
        }
        for (long d = 0; d < a->head_dim; d++) mixed[d] /= total;
        long place = (line * a->heads + head) * a->head_dim;
        write_floats(mixed, a->kind, a->head_dim, (char *)a->out + place * bytes_of(a->kind));
    }
}

static void attend(Attention *a, int threads) {
    long longest = 0, positions = 0;
    for (long row = 0; row < a->rows; row++) {
        long length = length_of(a, row);
        longest = length > longest ? length : longest;
        positions += length;
    }
    a->spans = spans_of(longest);
    long bytes = positions * a->groups * a->head_dim * bytes_of(a->kind), lines = a->rows * a->groups;
    run_chunks(attend_span, a, lines * a->spans, bytes < SHARED_CACHE ? 1 : threads);
    long joins = lines * a->heads * a->head_dim * a->spans;
    run_chunks(join_spans, a, lines, joins < SHARED_JOINS ? 1 : threads);
}
