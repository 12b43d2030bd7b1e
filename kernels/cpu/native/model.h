/* What a step reads of a model and of a decode state. kernels/cpu/structures.py has the same fields in the same order;
 * engine/model/cpu_step.py fills them. */
#pragma once
#include "attention.h"

typedef struct {
    Matrix qkv, o, cross_q, cross_o, gate_up, down;
    const float *cross_norm, *mlp_norm, *next_norm; /* [D], next: of the layer after this one, or of the head */
    const float *uncond_cross_out;                  /* [D], added to every unconditional row */
} Layer;

typedef struct {
    const Layer *layers;
    Matrix head;            /* [C V, D] */
    const void *embedding;  /* [C V, D] */
    const float *first_norm; /* [D], of the first layer */
    const float *cosines, *sines; /* [positions, Dh / 2] */
    long layer_count, width, inner;
    long heads, groups, head_dim;
    long cross_heads, cross_groups, cross_head_dim;
    long channels, vocab;
    long eos, pad, max_delay;
    float eps, headroom; /* kernels/norm.py */
    int kind;            /* Kind of embedding, caches and everything else that has the model's dtype */
} Model;

/* B slots, engine/model/state.py; R = 2B rows. */
typedef struct {
    float *x;                    /* [R, D] */
    void *z;                     /* [R, D] */
    float *squares;              /* [R, partials] */
    void *query, *attn_out;      /* [R, H Dh] */
    void *cross_query, *cross_attn_out; /* [B, cross H Dh] */
    void *hidden;                /* [R, F] */
    float *logits;               /* [R, C, V] */
    void *keys, *values;         /* of the first layer, [R, G, T, Dh] */
    void *cross_keys, *cross_values; /* of the first layer, [B, cross G, S, Dh] */
    long layer_bytes, cross_layer_bytes; /* from a layer to the next */
    long slots, capacity, text_capacity, partials, grid_rows;
    int64_t *grid;               /* [B, grid rows, C] */
    int64_t *position, *countdown, *end_row, *broken; /* [B] */
    const int64_t *max_tokens, *first_eos_row, *top_k, *seed, *last_text; /* [B] */
    const float *cfg_scale, *temperature, *top_p; /* [B] */
    const int64_t *delay;        /* [C] */
    char *scratch;               /* `scratch_bytes` */
} State;

enum { SHARED_NUMBERS = 1 << 15 }; /* of work row by row, from which on more than one thread is worth while */

/* What a stage works with. */
typedef struct {
    const Model *model;
    const Layer *layer;
    const State *state;
    int threads;
    float *y;      /* results of a product */
    char *scratch; /* of a product */
    char *keys, *values, *cross_keys, *cross_values; /* of the layer */
} Stage;

INLINE long longest_output(const Model *m) {
    long longest = m->channels * m->vocab, qkv = (m->heads + 2 * m->groups) * m->head_dim;
    longest = longest > 2 * m->inner ? longest : 2 * m->inner;
    longest = longest > qkv ? longest : qkv;
    long cross = m->cross_heads * m->cross_head_dim;
    longest = longest > cross ? longest : cross;
    return longest > m->width ? longest : m->width;
}

INLINE long y_bytes(const Model *m, long rows) { return up_to(rows * longest_output(m) * sizeof(float), 64); }

static long most_product_bytes(const Model *m, long rows) {
    long most = product_bytes(&m->head, rows);
    for (long index = 0; index < m->layer_count; index++) {
        const Layer *l = m->layers + index;
        const Matrix *matrices[] = {&l->qkv, &l->o, &l->cross_q, &l->cross_o, &l->gate_up, &l->down};
        for (int matrix = 0; matrix < 6; matrix++) {
            long bytes = product_bytes(matrices[matrix], rows);
            most = bytes > most ? bytes : most;
        }
    }
    return most;
}

static Stage stage_of(const Model *m, const State *s, long layer, int threads) {
    const long rows = 2 * s->slots;
    return (Stage){
        .model = m,
        .layer = m->layers + layer,
        .state = s,
        .threads = threads,
        .y = (float *)s->scratch,
        .scratch = s->scratch + y_bytes(m, rows),
        .keys = (char *)s->keys + layer * s->layer_bytes,
        .values = (char *)s->values + layer * s->layer_bytes,
        .cross_keys = (char *)s->cross_keys + layer * s->cross_layer_bytes,
        .cross_values = (char *)s->cross_values + layer * s->cross_layer_bytes,
    };
}

/* Run a task on each row; on more than one thread if a row has so many numbers that it is worth while. */
INLINE void for_rows(Task task, const Stage *stage, long rows, long numbers) {
    run_chunks(task, stage, rows, rows * numbers < SHARED_NUMBERS ? 1 : stage->threads);
}
