/* The stages of a layer. Each is defined by a kernel's torch reference: qkv, norm_linear, residual_linear, gated_linear. */
#pragma once
#include "model.h"

/* What turns a product with z into a product with the normed x, see kernels/norm.py. */
INLINE float norm_scale(const Stage *g, long row) {
    const State *s = g->state;
    float mean = sum_of(s->squares + row * s->partials, s->partials) / (float)g->model->width;
    return 1 / sqrtf(mean + g->model->eps) / g->model->headroom;
}

/* A row's x on its way to a norm: z and the sum of squares. */
INLINE void write_residual(const Stage *g, long row, const float *norm) {
    const Model *m = g->model;
    const State *s = g->state;
    const float *x = s->x + row * m->width;
    ROOM(float, weighted, m->width);
    for (long k = 0; k < m->width; k++) weighted[k] = x[k] * (norm[k] * m->headroom);
    write_floats(weighted, m->kind, m->width, (char *)s->z + row * m->width * bytes_of(m->kind));
    memset(s->squares + row * s->partials, 0, s->partials * sizeof(float));
    s->squares[row * s->partials] = sum_of_squares(x, m->width);
}

INLINE void rotate(float *head, const float *cosines, const float *sines, long half) {
    for (long d = 0; d < half; d++) {
        float a = head[d], b = head[d + half];
        head[d] = a * cosines[d] - b * sines[d];
        head[d + half] = b * cosines[d] + a * sines[d];
    }
}

/* A row of the product: rotated, to the query and to the cache. */
static void place_qkv(const void *job, long row) {
    const Stage *g = job;
    const Model *m = g->model;
    const State *s = g->state;
    const long width = m->head_dim, size = bytes_of(m->kind), position = s->position[row / 2], half = width / 2;
    const long all = m->heads + 2 * m->groups;
    float scale = norm_scale(g, row);
    ROOM(float, head, width);
    for (long index = 0; index < all; index++) {
        const float *y = g->y + (row * all + index) * width;
        for (long d = 0; d < width; d++) head[d] = y[d] * scale;
        if (index < m->heads + m->groups) rotate(head, m->cosines + position * half, m->sines + position * half, half);
        char *to;
        if (index < m->heads) {
            to = (char *)s->query + (row * m->heads + index) * width * size;
        } else {
            long group = (index - m->heads) % m->groups;
            char *cache = index < m->heads + m->groups ? g->keys : g->values;
            to = cache + ((row * m->groups + group) * s->capacity + position) * width * size;
        }
        write_floats(head, m->kind, width, to);
    }
}

static void project_qkv(const Stage *g) {
    const Model *m = g->model;
    const long rows = 2 * g->state->slots;
    multiply(&g->layer->qkv, (Rows){g->state->z, rows, m->width, m->kind}, g->y, g->scratch, g->threads);
    for_rows(place_qkv, g, rows, g->layer->qkv.outputs);
}

static void attend_to_rows(const Stage *g) {
    const Model *m = g->model;
    const State *s = g->state;
    Attention a = {s->query, g->keys, g->values, s->position, s->attn_out, (float *)s->scratch, 2 * s->slots, 2,
                   m->groups, m->heads / m->groups, m->head_dim, s->capacity, 0, m->kind};
    attend(&a, g->threads);
}

static void add_row(const void *job, long row) {
    const Stage *g = job;
    const long width = g->model->width;
    float *x = g->state->x + row * width;
    for (long k = 0; k < width; k++) x[k] += g->y[row * width + k];
    write_residual(g, row, g->layer->cross_norm);
}

static void project_attn_out(const Stage *g) {
    const Model *m = g->model;
    const long rows = 2 * g->state->slots;
    Rows x = {g->state->attn_out, rows, m->heads * m->head_dim, m->kind};
    multiply(&g->layer->o, x, g->y, g->scratch, g->threads);
    for_rows(add_row, g, rows, m->width);
}

static void place_cross_query(const void *job, long slot) {
    const Stage *g = job;
    const Model *m = g->model;
    const long width = m->cross_heads * m->cross_head_dim;
    float scale = norm_scale(g, 2 * slot + 1), *y = g->y + slot * width;
    for (long d = 0; d < width; d++) y[d] *= scale;
    write_floats(y, m->kind, width, (char *)g->state->cross_query + slot * width * bytes_of(m->kind));
}

/* Of the rows with text. */
static void project_cross_query(const Stage *g) {
    const Model *m = g->model;
    const char *z = (const char *)g->state->z + m->width * bytes_of(m->kind);
    Rows x = {z, g->state->slots, 2 * m->width, m->kind};
    multiply(&g->layer->cross_q, x, g->y, g->scratch, g->threads);
    for_rows(place_cross_query, g, g->state->slots, g->layer->cross_q.outputs);
}

static void attend_to_text(const Stage *g) {
    const Model *m = g->model;
    const State *s = g->state;
    Attention a = {s->cross_query, g->cross_keys, g->cross_values, s->last_text, s->cross_attn_out, (float *)s->scratch,
                   s->slots, 1, m->cross_groups, m->cross_heads / m->cross_groups, m->cross_head_dim,
                   s->text_capacity, 0, m->kind};
    attend(&a, g->threads);
}

/* Conditional rows get the attention output, unconditional ones a constant. */
static void add_cross_row(const void *job, long row) {
    const Stage *g = job;
    const long width = g->model->width;
    const float *change = row % 2 ? g->y + row / 2 * width : g->layer->uncond_cross_out;
    float *x = g->state->x + row * width;
    for (long k = 0; k < width; k++) x[k] += change[k];
    write_residual(g, row, g->layer->mlp_norm);
}

static void project_cross_attn_out(const Stage *g) {
    const Model *m = g->model;
    const long slots = g->state->slots;
    Rows x = {g->state->cross_attn_out, slots, m->cross_heads * m->cross_head_dim, m->kind};
    multiply(&g->layer->cross_o, x, g->y, g->scratch, g->threads);
    for_rows(add_cross_row, g, 2 * slots, m->width);
}

/* A quarter of a row: silu(gate) * up. */
enum { PARTS_OF_HIDDEN = 4 };
static void place_hidden(const void *job, long part) {
    const Stage *g = job;
    const Model *m = g->model;
    const long row = part / PARTS_OF_HIDDEN, each = up_to(m->inner, 64 * PARTS_OF_HIDDEN) / PARTS_OF_HIDDEN;
    const long first = part % PARTS_OF_HIDDEN * each, left = m->inner - first, count = left < each ? left : each;
    if (count <= 0) return;
    float scale = norm_scale(g, row), *gate = g->y + row * 2 * m->inner + first, *up = gate + m->inner;
    for (long k = 0; k < count; k++) {
        float normed = gate[k] * scale;
        gate[k] = normed / (1 + exp_of(-normed)) * (up[k] * scale);
    }
    write_floats(gate, m->kind, count, (char *)g->state->hidden + (row * m->inner + first) * bytes_of(m->kind));
}

static void project_hidden(const Stage *g) {
    const Model *m = g->model;
    const long rows = 2 * g->state->slots;
    multiply(&g->layer->gate_up, (Rows){g->state->z, rows, m->width, m->kind}, g->y, g->scratch, g->threads);
    for_rows(place_hidden, g, PARTS_OF_HIDDEN * rows, 8 * m->inner / PARTS_OF_HIDDEN); /* exp counts for 8 numbers */
}

static void add_mlp_row(const void *job, long row) {
    const Stage *g = job;
    const long width = g->model->width;
    float *x = g->state->x + row * width;
    for (long k = 0; k < width; k++) x[k] += g->y[row * width + k];
    write_residual(g, row, g->layer->next_norm);
}

static void project_down(const Stage *g) {
    const Model *m = g->model;
    const long rows = 2 * g->state->slots;
    multiply(&g->layer->down, (Rows){g->state->hidden, rows, m->inner, m->kind}, g->y, g->scratch, g->threads);
    for_rows(add_mlp_row, g, rows, m->width);
}

static void scale_logits(const void *job, long row) {
    const Stage *g = job;
    const long count = g->model->channels * g->model->vocab;
    float scale = norm_scale(g, row), *logits = g->state->logits + row * count;
    for (long k = 0; k < count; k++) logits[k] *= scale;
}

static void project_logits(const Stage *g) {
    const Model *m = g->model;
    const long rows = 2 * g->state->slots;
    multiply(&m->head, (Rows){g->state->z, rows, m->width, m->kind}, g->state->logits, g->scratch, g->threads);
    for_rows(scale_logits, g, rows, m->head.outputs);
}
