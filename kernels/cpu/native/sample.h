/* One token of one channel, as kernels/sample.py defines it. Nothing is sorted but what the nucleus has to choose from. */
#pragma once
#include "floats.h"
#include "room.h"

typedef struct {
    long vocab, channel, eos, top_k;
    float cfg_scale, temperature, top_p;
    uint64_t seed;
    uint32_t row; /* of the grid */
    int may_end;  /* whether EOS is allowed, which it is on channel 0 alone and from the first row for it on */
} Drawing;

typedef struct {
    float score;
    int id;
} Candidate;

/* Integers that compare as the floats do, -0 as 0; what is not a number, by logits of -infinity, as -infinity. */
INLINE uint32_t ordered_key(float value) {
    uint32_t bits = bits_of(value == 0 ? 0 : value == value ? value : -INFINITY);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* The first word of Philox 4x32-10, see kernels/philox.py. */
INLINE uint32_t philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2) {
    uint32_t c3 = 0, low_key = (uint32_t)seed, high_key = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ low_key, c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ high_key, c3 = (uint32_t)a;
        low_key += 0x9E3779B9, high_key += 0xBB67AE85;
    }
    return c0;
}

INLINE int by_score(const void *left, const void *right) {
    const Candidate *a = left, *b = right;
    return a->score != b->score ? (a->score < b->score ? 1 : -1) : a->id - b->id;
}

/* The greatest key with at least `count` keys at or above it. */
INLINE uint32_t edge_of(const uint32_t *keys, long vocab, long count) {
    uint32_t edge = 0;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t candidate = edge | 1u << bit, above = 0;
        for (long id = 0; id < vocab; id++) above += keys[id] >= candidate;
        if (above >= count) edge = candidate;
    }
    return edge;
}

/* The ids that guided logits choose and that are not forbidden, with their conditional logits; how many. */
INLINE long choose(const Drawing *d, const float *unconditional, const float *conditional, Candidate *chosen) {
    ROOM(uint32_t, keys, d->vocab);
    for (long id = 0; id < d->vocab; id++) {
        float difference = conditional[id] - unconditional[id];
        keys[id] = ordered_key(conditional[id] + d->cfg_scale * difference);
    }
    if (!d->channel && !d->may_end) keys[d->eos] = ordered_key(-INFINITY); /* too early: it does not count among top_k */
    uint32_t edge = edge_of(keys, d->vocab, d->top_k);
    long room = d->top_k, count = 0;
    for (long id = 0; id < d->vocab; id++) room -= keys[id] > edge;
    for (long id = 0; id <= d->eos && id < d->vocab; id++) {
        if (keys[id] < edge || (keys[id] == edge && room-- <= 0)) continue;
        if (id == d->eos && !d->may_end) continue;
        if (conditional[id] > -INFINITY) chosen[count++] = (Candidate){conditional[id], (int)id};
    }
    return count;
}

/* Keep an id if the mass of those before it, from the largest down, does not exceed top_p; how many are left. */
INLINE long keep_nucleus(Candidate *chosen, long count, float top_p) {
    qsort(chosen, count, sizeof *chosen, by_score);
    double before = 0;
    long kept = 0;
    for (; kept < count && (float)before <= top_p; kept++) before += chosen[kept].score;
    return kept;
}

/* Conditional logits to probabilities, in float32. */
INLINE void softmax(Candidate *chosen, long count, float temperature) {
    float top = -INFINITY;
    double total = 0;
    for (long i = 0; i < count; i++) {
        chosen[i].score /= temperature;
        top = chosen[i].score > top ? chosen[i].score : top;
    }
    for (long i = 0; i < count; i++) {
        chosen[i].score = (float)exp((double)(chosen[i].score - top));
        total += chosen[i].score;
    }
    for (long i = 0; i < count; i++) chosen[i].score /= (float)total;
}

/* An exponential race: argmax p / -log(u), with u from the seed, the id, the channel and the row. */
INLINE long race(const Drawing *d, const Candidate *chosen, long count) {
    long winner = 0;
    float best = -1;
    for (long i = 0; i < count; i++) {
        uint32_t word = philox(d->seed, (uint32_t)chosen[i].id, (uint32_t)d->channel, d->row);
        float noise = ((float)(word >> 9) + 0.5f) * 0x1p-23f;
        float result = chosen[i].score / -(float)log((double)noise);
        if (result > best || (result == best && chosen[i].id < winner)) best = result, winner = chosen[i].id;
    }
    return winner;
}

INLINE long draw(const Drawing *d, const float *unconditional, const float *conditional) {
    ROOM(Candidate, chosen, d->vocab);
    long count = choose(d, unconditional, conditional, chosen), best = 0;
    if (!count) return 0;
    for (long i = 1; i < count; i++)
        if (chosen[i].score > chosen[best].score) best = i;
    if (d->temperature == 0 || chosen[best].id == d->eos) return chosen[best].id;
    if (chosen[count - 1].id == d->eos) count--; /* not the largest: it goes */
    softmax(chosen, count, d->temperature);
    if (d->top_p < 1) count = keep_nucleus(chosen, count, d->top_p);
    return race(d, chosen, count);
}
