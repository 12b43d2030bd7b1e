/* The compiled code of a CPU: the decode step, the codec's decoder and the kernels of a prefill. One translation unit, compiled
 * once per instruction-set variant and loaded by build.py. The functions that are not static are those Python calls. */
#define _GNU_SOURCE
#if defined(__AVX512F__)
#include "avx512.h"
#elif defined(__AVX2__)
#include "avx2.h"
#elif defined(__aarch64__)
#include "neon.h"
#else
#error "no variant for this CPU"
#endif

#include "codec.h"
#include "float_mode.h"
#include "layer.h"
#include "next_row.h"
#include "read.h"
#include "rows.h"
#include "sequence.h"
#include "stream.h"

static void (*const STAGES[])(const Stage *) = {
    project_qkv,    attend_to_rows,         project_attn_out, project_cross_query,
    attend_to_text, project_cross_attn_out, project_hidden,   project_down,
};
enum { STAGES_OF_LAYER = sizeof STAGES / sizeof *STAGES };

/* Size of `State.scratch`. */
long scratch_bytes(const Model *m, long slots, long capacity, long text_capacity) {
    long rows = 2 * slots, products = y_bytes(m, rows) + most_product_bytes(m, rows);
    long self = partial_floats(rows, m->groups, m->heads / m->groups, m->head_dim, capacity);
    long cross = partial_floats(slots, m->cross_groups, m->cross_heads / m->cross_groups, m->cross_head_dim, text_capacity);
    long partial = (self > cross ? self : cross) * sizeof(float);
    return products > partial ? products : partial;
}

/* One stage of one layer. */
void run_stage(const Model *m, const State *s, long layer, int stage, int threads) {
    unsigned long mode = flush_subnormals();
    Stage g = stage_of(m, s, layer, threads);
    STAGES[stage](&g);
    set_float_mode(mode);
}

enum { HEAD_TIME = STAGES_OF_LAYER, NEXT_ROW_TIME, TIMES };

/* Run a stage and add its nanoseconds to `spent`. Inlined with a constant NULL, it has no clock in it. */
INLINE void run_timed(void (*run)(const Stage *), const Stage *g, int64_t *spent) {
    const long start = spent ? now_ns() : 0;
    run(g);
    if (spent) *spent += now_ns() - start;
}

INLINE void run_decoder(const Model *m, const State *s, int threads, int64_t *spent) {
    for (long layer = 0; layer < m->layer_count; layer++) {
        Stage g = stage_of(m, s, layer, threads);
        for (int stage = 0; stage < STAGES_OF_LAYER; stage++)
            run_timed(STAGES[stage], &g, spent ? spent + stage : NULL);
    }
    Stage g = stage_of(m, s, 0, threads);
    run_timed(project_logits, &g, spent ? spent + HEAD_TIME : NULL);
}

/* The residual through all layers -> logits. */
void decode(const Model *m, const State *s, int threads) {
    unsigned long mode = flush_subnormals();
    run_decoder(m, s, threads, NULL);
    set_float_mode(mode);
}

/* Logits -> the next row of every slot, and its residual. */
void next_row(const Model *m, const State *s, int threads) {
    unsigned long mode = flush_subnormals();
    Stage g = stage_of(m, s, 0, threads);
    draw_and_advance(&g);
    set_float_mode(mode);
}

void step(const Model *m, const State *s, int threads) {
    decode(m, s, threads);
    next_row(m, s, threads);
}

/* The same, with the nanoseconds of each stage (of all layers together), of the head and of the next row added to spent. */
void timed_step(const Model *m, const State *s, int threads, int64_t spent[TIMES]) {
    unsigned long mode = flush_subnormals();
    run_decoder(m, s, threads, spent);
    Stage g = stage_of(m, s, 0, threads);
    run_timed(draw_and_advance, &g, spent + NEXT_ROW_TIME);
    set_float_mode(mode);
}

long multiply_bytes(const Matrix *matrix, long rows) { return product_bytes(matrix, rows < MOST_ROWS ? rows : MOST_ROWS); }

/* y [rows, N] float32 = x W^T; scratch: `multiply_bytes`. */
void multiply_matrix(const Matrix *matrix, const void *x, int kind, long rows, float *y, char *scratch, int threads) {
    unsigned long mode = flush_subnormals();
    multiply(matrix, (Rows){x, rows, matrix->columns, kind}, y, scratch, threads);
    set_float_mode(mode);
}

/* to [N, K] = the matrix of an int8 or NF4 weight, whose subnormal numbers count as they do for the caller. */
void read_matrix(const Matrix *matrix, void *to, int kind, int threads) {
    Reading reading = {matrix, to, kind};
    run_chunks(read_row, &reading, matrix->outputs, matrix->outputs * matrix->columns < SHARED_NUMBERS ? 1 : threads);
}

/* See sequence.h. */
void sequence_attention(const SequenceAttention *attention, int threads) {
    unsigned long mode = flush_subnormals();
    attend_sequence(attention, threads);
    set_float_mode(mode);
}

/* See rows.h. */
void normalize_rows(const float *x, const float *weight, float eps, float *y, long rows, long width, int threads) {
    unsigned long mode = flush_subnormals();
    RowWork work = {x, weight, y, width, eps};
    for_each_row(normalize_row, &work, rows, threads);
    set_float_mode(mode);
}

void gate_rows(const float *gate_up, float *y, long rows, long width, int threads) {
    unsigned long mode = flush_subnormals();
    RowWork work = {gate_up, NULL, y, width, 0};
    for_each_row(gate_row, &work, rows, threads);
    set_float_mode(mode);
}

/* See codec.h. */
long section_bytes(const CodecLayer *layers, long count, long samples) {
    return floats_of_section(layers, count, samples) * sizeof(float);
}

void decode_section(const CodecLayer *layers, long count, const float *x, long samples, float *signal, float *last,
                    char *scratch, int threads) {
    unsigned long mode = flush_subnormals();
    run_section(layers, count, x, samples, signal, last, (float *)scratch, threads);
    set_float_mode(mode);
}

/* Read memory from end to end, as fast as it goes: what a step's speed is compared with. */
unsigned read_memory(const void *from, long bytes, int threads) { return checksum(from, bytes, threads); }
