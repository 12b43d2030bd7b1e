/* What a codec's decoder does at one rate: a convolution that sets it, residual units, and at the end maybe one to a single
 * channel. See engine/codec/layers.py, which defines it. Signals are [samples, channels] in float32. */
#pragma once
#include "convolution.h"
#include "snake.h"

typedef enum { PLAIN, OPENS_UNIT, CLOSES_UNIT, SOUND } Role; /* of a layer, see `Role` in kernels/cpu/convolution.py */

/* A convolution of signals with zeros before and behind them, and the activation before it. A transposed one of `rate` R, whose
 * kernel is 2 R long, has the outputs of R samples side by side, and two taps; `cut` is what it takes off at each end. */
typedef struct {
    const float *alpha, *inverse_alpha; /* [inputs], or NULL: no activation */
    Convolution convolution;
    long padding, rate, cut; /* samples of the input; 1 and 0 if it is not transposed */
    int role;                /* Role */
} CodecLayer;

/* Rows of outputs for so many samples, `rate` samples each, before the cut. */
INLINE long rows_of_output(const CodecLayer *layer, long samples) {
    return samples + 2 * layer->padding - (layer->convolution.taps - 1) * layer->convolution.dilation;
}
INLINE long padded_floats(const CodecLayer *layer, long samples) {
    const long rows = CONVOLVED_ROWS, positions = SCORED_POSITIONS, slack = rows > positions ? rows : positions;
    return (samples + 2 * layer->padding + slack) * layer->convolution.inputs;
}

/* y = a layer of x; `padded` has room for `padded_floats`. */
static void run_layer(const CodecLayer *layer, const float *x, long samples, float *y, float *padded, int threads) {
    const Convolution *c = &layer->convolution;
    const long before = layer->padding * c->inputs, count = samples * c->inputs, all = padded_floats(layer, samples);
    memset(padded, 0, before * sizeof *padded);
    memset(padded + before + count, 0, (all - before - count) * sizeof *padded);
    if (layer->alpha) activate(x, layer->alpha, layer->inverse_alpha, padded + before, samples, c->inputs, threads);
    else memcpy(padded + before, x, count * sizeof *padded);
    Convolving job = {c, padded, y, rows_of_output(layer, samples), layer->role == CLOSES_UNIT};
    convolve(&job, threads);
    for (long n = 0; layer->role == SOUND && n < job.samples * c->outputs; n++) y[n] = tanh_of(y[n]);
}

/* Samples behind the first layer. */
INLINE long section_samples(const CodecLayer *first, long samples) {
    return rows_of_output(first, samples) * first->rate - 2 * first->cut;
}

/* Of scratch memory: what lies within a unit, and padded inputs. */
static long floats_of_section(const CodecLayer *layers, long count, long samples) {
    const long inside = section_samples(layers, samples);
    long within = 0, padded = padded_floats(layers, samples);
    for (long n = 1; n < count; n++) {
        const long needed = padded_floats(layers + n, inside);
        padded = needed > padded ? needed : padded;
        if (layers[n].role == OPENS_UNIT) within = inside * layers[n].convolution.outputs;
    }
    return within + padded;
}

/* x [samples, inputs] -> what the first layer makes of it, before the cut, with what residual units add; of a last layer that
 * makes sound what that makes, in `last`. Layers behind the first keep the number of samples. */
static void run_section(const CodecLayer *layers, long count, const float *x, long samples, float *signal, float *last,
                        float *scratch, int threads) {
    run_layer(layers, x, samples, signal, scratch, threads);
    const long inside = section_samples(layers, samples);
    signal += layers->cut * layers->convolution.outputs / layers->rate;
    float *within = scratch, *padded = scratch;
    for (long n = 1; n < count; n++)
        if (layers[n].role == OPENS_UNIT) padded = scratch + inside * layers[n].convolution.outputs;
    for (const CodecLayer *layer = layers + 1; layer < layers + count; layer++) {
        if (layer->role == OPENS_UNIT) run_layer(layer, signal, inside, within, padded, threads);
        else if (layer->role == CLOSES_UNIT) run_layer(layer, within, inside, signal, padded, threads);
        else run_layer(layer, signal, inside, last, padded, threads);
    }
}
