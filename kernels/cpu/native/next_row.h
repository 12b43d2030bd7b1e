/* From logits to the residual of the next step: draw a token for each channel, close the row, embed it. As
 * kernels/sample_and_advance.py and kernels/advance.py define it. */
#pragma once
#include "layer.h"
#include "sample.h"

enum { RUNNING = -1 }; /* countdown of a slot whose end has not come */

/* Whether a slot's logits are numbers below infinity. */
INLINE int is_usable(const float *logits, long count) {
    uint32_t unusable = 0;
    for (long k = 0; k < count; k++) unusable |= !(logits[k] < INFINITY);
    return !unusable;
}

INLINE void draw_tokens(const Stage *g, long slot, int64_t *tokens) {
    const Model *m = g->model;
    const State *s = g->state;
    const float *logits = s->logits + 2 * slot * m->channels * m->vocab;
    const int64_t row = s->position[slot] + 1;
    for (long channel = 0; channel < m->channels; channel++) {
        const float *unconditional = logits + channel * m->vocab;
        Drawing d = {m->vocab, channel, m->eos, s->top_k[slot], s->cfg_scale[slot], s->temperature[slot],
                     s->top_p[slot], (uint64_t)s->seed[slot], (uint32_t)row, !channel && row >= s->first_eos_row[slot]};
        tokens[channel] = draw(&d, unconditional, unconditional + m->channels * m->vocab);
    }
}

/* `advance` of one slot, which runs. */
INLINE void close_row(const Stage *g, long slot, const int64_t *tokens) {
    const Model *m = g->model;
    const State *s = g->state;
    int64_t row = s->position[slot] + 1, *countdown = s->countdown + slot;
    if (*countdown == RUNNING && (tokens[0] == m->eos || row >= s->max_tokens[slot] - m->max_delay)) {
        s->end_row[slot] = row;
        *countdown = m->max_delay;
    }
    int counting = *countdown > 0;
    int64_t since_end = m->max_delay - *countdown, *cells = s->grid + (slot * s->grid_rows + row) * m->channels;
    for (long channel = 0; channel < m->channels; channel++) {
        int64_t token = tokens[channel];
        if (counting && since_end >= s->delay[channel]) token = since_end == s->delay[channel] ? m->eos : m->pad;
        if (cells[channel] < 0) cells[channel] = token;
    }
    *countdown -= counting;
    s->position[slot] += *countdown != 0; /* what a stopped slot would feed next may lie beyond its cache */
}

/* The row at a slot's position: the sum of its channels' embeddings, for both rows of the residual. */
INLINE void embed_row(const Stage *g, long slot) {
    const Model *m = g->model;
    const State *s = g->state;
    const int64_t *cells = s->grid + (slot * s->grid_rows + s->position[slot]) * m->channels;
    float *x = s->x + 2 * slot * m->width;
    ROOM(float, embedded, m->width);
    memset(x, 0, m->width * sizeof *x);
    for (long channel = 0; channel < m->channels; channel++) {
        int64_t token = cells[channel] < 0 ? 0 : cells[channel]; /* open, where a slot does not run */
        long place = (channel * m->vocab + token) * m->width;
        read_floats((const char *)m->embedding + place * bytes_of(m->kind), m->kind, m->width, embedded);
        for (long k = 0; k < m->width; k++) x[k] += embedded[k];
    }
    memcpy(x + m->width, x, m->width * sizeof *x);
    write_residual(g, 2 * slot, m->first_norm);
    write_residual(g, 2 * slot + 1, m->first_norm);
}

static void advance_slot(const void *job, long slot) {
    const Stage *g = job;
    const State *s = g->state;
    const long count = 2 * g->model->channels * g->model->vocab;
    if (s->countdown[slot] && !is_usable(s->logits + slot * count, count)) s->broken[slot] = 1, s->countdown[slot] = 0;
    if (s->countdown[slot]) {
        int64_t tokens[g->model->channels];
        draw_tokens(g, slot, tokens);
        close_row(g, slot, tokens);
    }
    embed_row(g, slot);
}

static void draw_and_advance(const Stage *g) { run_chunks(advance_slot, g, g->state->slots, g->threads); }
