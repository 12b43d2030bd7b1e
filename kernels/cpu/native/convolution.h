/* Convolutions of signals [samples, channels] in float32.
 *
 * A tile is CONVOLVED_ROWS samples by 16 outputs, with AVX-512 by 32, whose sums stay in registers. A sum goes over the inputs in
 * an order that depends on the convolution alone, so a sample has the same bits in any part of a signal, on any number of
 * threads and in every variant. */
#pragma once
#include "floats.h"
#include "pool.h"
#include "room.h"

enum {
    BLOCK = 16,                   /* outputs whose weights are side by side */
    PART_COLUMNS = 2048,          /* inputs x taps that pass by all samples of a chunk: the L2 cache keeps a tile's weights */
    CHUNK_SAMPLES = 384,          /* for one chunk of the pool */
    SHARED_PRODUCTS = 1 << 20     /* multiplications, from which on more than one thread is worth while */
};

/* y[t, o] = bias[o] + the sum over k and i of weights[o, k, i] x[t + k dilation, i] */
typedef struct {
    const float *weights; /* [outputs / BLOCK, rounded up][taps][inputs][BLOCK], zero behind the last output */
    const float *bias;    /* [outputs] */
    long inputs, outputs, taps, dilation;
} Convolution;

typedef struct {
    const Convolution *convolution;
    const float *x; /* [samples + (taps - 1) dilation + CONVOLVED_ROWS - 1, inputs], where the last rows may hold anything */
    float *y;       /* [samples, outputs] */
    long samples;
    int adds; /* to what is in y */
} Convolving;

/* The inputs [from, to) of all taps added to y, of CONVOLVED_ROWS samples that are `stride` apart, for one block of outputs or
 * two. Samples are named by their group of four and their place in it: few registers hold all of their addresses. */
INLINE void convolve_tile(const Convolution *c, const float *x, long from, long to, const float *weights, const int blocks,
                          float *y, const long stride) {
    const long inputs = c->inputs, two = 2 * inputs, three = 3 * inputs;
    const float *next = weights + (blocks > 1 ? c->taps * inputs * BLOCK : 0);
#define SUM(row, group, place)                                                                                          \
    Lanes a##row = load_lanes(y + row * stride), b##row = no_lanes();                                                   \
    if (blocks > 1) b##row = load_lanes(y + row * stride + BLOCK);
#define ADD(row, group, place)                                                                                          \
    {                                                                                                                   \
        Lanes value = same_lanes(x##group[place]);                                                                      \
        a##row = add_product(a##row, v, value);                                                                         \
        if (blocks > 1) b##row = add_product(b##row, w, value);                                                         \
    }
#define STORE(row, group, place)                                                                                        \
    store_lanes(y + row * stride, a##row);                                                                              \
    if (blocks > 1) store_lanes(y + row * stride + BLOCK, b##row);
    CONVOLVED(SUM)
    for (long tap = 0; tap < c->taps; tap++) {
        const float *x0 = x + tap * c->dilation * inputs + from, *x1 = x0 + 4 * inputs, *x2 = x1 + 4 * inputs;
        const long first = (tap * inputs + from) * BLOCK, end = (tap * inputs + to) * BLOCK;
        for (long place = first; place < end; place += BLOCK, x0++, x1++, x2++) {
            Lanes v = load_lanes(weights + place), w = load_lanes(next + place);
            CONVOLVED(ADD)
        }
    }
    CONVOLVED(STORE)
#undef SUM
#undef ADD
#undef STORE
}

/* The same for the samples [sample, end), and for outputs from `first` on; what exceeds them goes to a copy. */
INLINE void convolve_part(const Convolving *job, long sample, long end, long from, long to, long first, const int blocks) {
    const Convolution *c = job->convolution;
    const float *weights = c->weights + first * c->taps * c->inputs;
    const long width = blocks * BLOCK, left = c->outputs - first, outputs = left < width ? left : width;
    float copy[CONVOLVED_ROWS * 2 * BLOCK];
    for (; sample < end; sample += CONVOLVED_ROWS) {
        const long samples = end - sample < CONVOLVED_ROWS ? end - sample : CONVOLVED_ROWS;
        const float *x = job->x + sample * c->inputs;
        float *y = job->y + sample * c->outputs + first;
        if (outputs == width && samples == CONVOLVED_ROWS) {
            convolve_tile(c, x, from, to, weights, blocks, y, c->outputs);
            continue;
        }
        memset(copy, 0, sizeof copy);
        for (long t = 0; t < samples; t++) memcpy(copy + t * width, y + t * c->outputs, outputs * sizeof *y);
        convolve_tile(c, x, from, to, weights, blocks, copy, width);
        for (long t = 0; t < samples; t++) memcpy(y + t * c->outputs, copy + t * width, outputs * sizeof *y);
    }
}

INLINE void begin_with_bias(const Convolving *job, long sample, long end, long first, long outputs) {
    const float *bias = job->convolution->bias + first;
    for (float *y = job->y + sample * job->convolution->outputs + first; sample < end; sample++) {
        for (long o = 0; o < outputs; o++) y[o] = job->adds ? y[o] + bias[o] : bias[o];
        y += job->convolution->outputs;
    }
}

INLINE long chunks_of_samples(const Convolving *job) { return (job->samples + CHUNK_SAMPLES - 1) / CHUNK_SAMPLES; }

/* Some samples of the outputs of a tile. */
static void convolve_chunk(const void *argument, long chunk) {
    const Convolving *job = argument;
    const Convolution *c = job->convolution;
    const long most = CONVOLVED_BLOCKS * BLOCK, first = chunk / chunks_of_samples(job) * most;
    const long sample = chunk % chunks_of_samples(job) * CHUNK_SAMPLES, next = sample + CHUNK_SAMPLES;
    const long end = next < job->samples ? next : job->samples;
    const long left = c->outputs - first, outputs = left < most ? left : most;
    const long part = PART_COLUMNS / c->taps + 1;
    begin_with_bias(job, sample, end, first, outputs);
    for (long from = 0; from < c->inputs; from += part) {
        const long to = from + part < c->inputs ? from + part : c->inputs;
        if (outputs > BLOCK) convolve_part(job, sample, end, from, to, first, CONVOLVED_BLOCKS);
        else convolve_part(job, sample, end, from, to, first, 1);
    }
}

/* One output, without gaps between the taps: each sample is the sum over neighboring numbers, by lanes. */
static void convolve_to_one(const void *argument, long chunk) {
    const Convolving *job = argument;
    const Convolution *c = job->convolution;
    const long inputs = c->inputs, count = c->taps * inputs, first = chunk * CHUNK_SAMPLES;
    float sums[SCORED_POSITIONS];
    ROOM(float, weights, count);
    for (long k = 0; k < count; k++) weights[k] = c->weights[k * BLOCK];
    for (long sample = first; sample < first + CHUNK_SAMPLES && sample < job->samples; sample += SCORED_POSITIONS) {
        const float *x = job->x + sample * inputs;
#define SUM(t) Lanes sum##t = no_lanes();
#define ADD(t) sum##t = add_product(sum##t, load_lanes(x + t * inputs + k), w);
#define OTHER_SUMS(t) , sum##t
        SCORED(SUM)
        for (long k = 0; k < count; k += BLOCK) {
            Lanes w = load_lanes(weights + k);
            SCORED(ADD)
        }
        store_sums(sums SCORED(OTHER_SUMS));
#undef SUM
#undef ADD
#undef OTHER_SUMS
        for (long t = 0; t < SCORED_POSITIONS && sample + t < job->samples; t++) {
            float *y = job->y + sample + t;
            *y = sums[t] + (job->adds ? *y + *c->bias : *c->bias);
        }
    }
}

static void convolve(const Convolving *job, int threads) {
    const Convolution *c = job->convolution;
    const long blocks = (c->outputs + CONVOLVED_BLOCKS * BLOCK - 1) / (CONVOLVED_BLOCKS * BLOCK);
    if (job->samples * c->outputs * c->taps * c->inputs < SHARED_PRODUCTS) threads = 1;
    if (c->outputs == 1 && c->dilation == 1 && c->taps * c->inputs % BLOCK == 0)
        run_chunks(convolve_to_one, job, chunks_of_samples(job), threads);
    else run_chunks(convolve_chunk, job, chunks_of_samples(job) * blocks, threads);
}
