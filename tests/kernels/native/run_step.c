/* Some steps of a small random model in the compiled code, and a number for all bits that they leave behind. Built for each
 * variant and with sanitizers by test_native_step.py.
 *
 * Arguments: dtype (0 float32, 1 bfloat16, 2 float16), quantized format (0 none, 1 int8, 2 NF4), slots, threads, steps,
 * callers (threads that each run a model of their own at the same time). */
#include "step.c"

#include <stdio.h>

enum { LAYERS = 2, GROUPS = 2, HEADS = 6, CHANNELS = 3, VOCAB = 71, EOS = 64, CAPACITY = 600, TEXT = 40, FILLED = 530 };

typedef struct {
    int kind, quant;
    long slots, steps;
    int threads;
    uint64_t random, result;
} Run;

static float uniform(Run *r) {
    r->random = r->random * 6364136223846793005ull + 1442695040888963407ull;
    return (float)(r->random >> 40) * 0x1p-23f - 1;
}

static void *floats(Run *r, long count, int kind, float scale) {
    float *values = malloc(count * sizeof *values);
    void *made = malloc(count * bytes_of(kind));
    for (long k = 0; k < count; k++) values[k] = uniform(r) * scale;
    write_floats(values, kind, count, made);
    free(values);
    return made;
}

static Matrix matrix(Run *r, long outputs, long columns, int quant) {
    float scale = 1.5f / sqrtf((float)columns);
    if (!quant) return (Matrix){floats(r, outputs * columns, r->kind, scale), NULL, outputs, columns, r->kind, 0};
    long bytes = quant == 1 ? outputs * columns : outputs * columns / 2;
    int8_t *values = malloc(bytes);
    for (long k = 0; k < bytes; k++) values[k] = (int8_t)(127 * uniform(r));
    float *scales = floats(r, quant == 1 ? outputs : outputs * columns / 64, FLOAT32, scale);
    int nf4 = r->kind == BFLOAT16 ? W_NF4_BFLOAT16 : W_NF4_FLOAT32;
    return (Matrix){values, scales, outputs, columns, quant == 1 ? W_INT8 : nf4, r->kind == FLOAT32 ? 3 : 2};
}

static void *filled(long count, long value) {
    int64_t *made = malloc(count * sizeof *made);
    for (long k = 0; k < count; k++) made[k] = value;
    return made;
}

static void note(Run *r, const void *values, long bytes) {
    const uint8_t *byte = values;
    for (long k = 0; k < bytes; k++) r->result = (r->result ^ byte[k]) * 1099511628211ull;
}

/* What a prompt's rows go through besides the step's code, in float32. */
static void note_sequence(Run *r, long groups, long head, long width) {
    enum { ROWS = 61, POSITIONS = 150 };
    const long heads = 3 * groups, stride = (heads + groups) * head;
    float *query = floats(r, ROWS * stride, FLOAT32, 1), *out = malloc(ROWS * heads * head * sizeof *out);
    float *keys = floats(r, groups * POSITIONS * head, FLOAT32, 1), *values = floats(r, groups * POSITIONS * head, FLOAT32, 1);
    for (int causal = 0; causal < 2; causal++) {
        SequenceAttention a = {query, keys, values, out, ROWS, POSITIONS, heads, groups, head, stride, POSITIONS * head, causal};
        sequence_attention(&a, r->threads);
        note(r, out, ROWS * heads * head * sizeof *out);
    }
    float *x = floats(r, ROWS * 2 * width, FLOAT32, 9), *weight = floats(r, width, FLOAT32, 1);
    float *y = malloc(ROWS * width * sizeof *y);
    normalize_rows(x, weight, 1e-5f, y, ROWS, width, r->threads);
    note(r, y, ROWS * width * sizeof *y);
    gate_rows(x, y, ROWS, width, r->threads);
    note(r, y, ROWS * width * sizeof *y);
}

static CodecLayer codec_layer(Run *r, long inputs, long outputs, long taps, long dilation, int role) {
    const long blocks = (outputs + BLOCK - 1) / BLOCK;
    float *alpha = floats(r, inputs, FLOAT32, 3), *inverse = floats(r, inputs, FLOAT32, 1);
    float *weights = floats(r, blocks * taps * inputs * BLOCK, FLOAT32, 0.1f);
    Convolution c = {weights, floats(r, outputs, FLOAT32, 1), inputs, outputs, taps, dilation};
    return (CodecLayer){alpha, inverse, c, (taps - 1) * dilation / 2, 1, 0, role};
}

/* The last section of a small codec: a transposed convolution of rate 3, a residual unit, one channel in the end. */
static void note_codec(Run *r, long inputs, long channels) {
    enum { SAMPLES = 401, RATE = 3 };
    CodecLayer layers[4] = {
        codec_layer(r, inputs, RATE * channels, 2, 1, PLAIN), codec_layer(r, channels, channels, 7, 3, OPENS_UNIT),
        codec_layer(r, channels, channels, 1, 1, CLOSES_UNIT), codec_layer(r, channels, 1, 7, 1, SOUND),
    };
    layers[0].padding = 1, layers[0].rate = RATE, layers[0].cut = 2;
    const long made = (SAMPLES + 1) * RATE, heard = made - 2 * layers[0].cut;
    float *signal = malloc(made * channels * sizeof *signal), *last = malloc(heard * sizeof *last);
    char *scratch = malloc(section_bytes(layers, 4, SAMPLES));
    decode_section(layers, 4, floats(r, SAMPLES * inputs, FLOAT32, 1), SAMPLES, signal, last, scratch, r->threads);
    note(r, signal, made * channels * sizeof *signal);
    note(r, last, heard * sizeof *last);
}

static void *run(void *argument) {
    Run *r = argument;
    const int even = r->quant == 2; /* NF4 wants rows of whole blocks */
    const long head = even ? 32 : 34, width = even ? 192 : 187, inner = even ? 320 : 301, cross_head = even ? 64 : 22;
    const long slots = r->slots, rows = 2 * slots, size = bytes_of(r->kind);
    Layer layers[LAYERS];
    for (int l = 0; l < LAYERS; l++)
        layers[l] = (Layer){
            .qkv = matrix(r, (HEADS + 2 * GROUPS) * head, width, r->quant),
            .o = matrix(r, width, HEADS * head, r->quant),
            .cross_q = matrix(r, HEADS * cross_head, width, r->quant),
            .cross_o = matrix(r, width, HEADS * cross_head, r->quant),
            .gate_up = matrix(r, 2 * inner, width, r->quant),
            .down = matrix(r, width, inner, r->quant),
            .cross_norm = floats(r, width, FLOAT32, 1),
            .mlp_norm = floats(r, width, FLOAT32, 1),
            .next_norm = floats(r, width, FLOAT32, 1),
            .uncond_cross_out = floats(r, width, FLOAT32, 1),
        };
    Model model = {
        .layers = layers,
        .head = matrix(r, CHANNELS * VOCAB, width, 0),
        .embedding = floats(r, CHANNELS * VOCAB * width, r->kind, 1),
        .first_norm = floats(r, width, FLOAT32, 1),
        .cosines = floats(r, CAPACITY * head / 2, FLOAT32, 1),
        .sines = floats(r, CAPACITY * head / 2, FLOAT32, 1),
        .layer_count = LAYERS, .width = width, .inner = inner,
        .heads = HEADS, .groups = GROUPS, .head_dim = head,
        .cross_heads = HEADS, .cross_groups = HEADS, .cross_head_dim = cross_head,
        .channels = CHANNELS, .vocab = VOCAB, .eos = EOS, .pad = EOS + 1, .max_delay = 2,
        .eps = 1e-5f, .headroom = r->kind == FLOAT16 ? 0x1p-6f : 1, .kind = r->kind,
    };
    const long own = rows * GROUPS * CAPACITY * head, cross = slots * HEADS * TEXT * cross_head;
    State state = {
        .x = floats(r, rows * width, FLOAT32, 1),
        .z = floats(r, rows * width, r->kind, 1),
        .squares = floats(r, rows * 3, FLOAT32, 0),
        .query = malloc(rows * HEADS * head * size), .attn_out = malloc(rows * HEADS * head * size),
        .cross_query = malloc(slots * HEADS * cross_head * size), .cross_attn_out = malloc(slots * HEADS * cross_head * size),
        .hidden = malloc(rows * inner * size), .logits = malloc(rows * CHANNELS * VOCAB * sizeof(float)),
        .keys = floats(r, LAYERS * own, r->kind, 1), .values = floats(r, LAYERS * own, r->kind, 1),
        .cross_keys = floats(r, LAYERS * cross, r->kind, 1), .cross_values = floats(r, LAYERS * cross, r->kind, 1),
        .layer_bytes = own * size, .cross_layer_bytes = cross * size,
        .slots = slots, .capacity = CAPACITY, .text_capacity = TEXT, .partials = 3, .grid_rows = CAPACITY + 1,
        .grid = filled(slots * (CAPACITY + 1) * CHANNELS, -1),
        .position = filled(slots, 0), .countdown = filled(slots, RUNNING), .end_row = filled(slots, 0),
        .broken = filled(slots, 0), .max_tokens = filled(slots, CAPACITY),
        .first_eos_row = filled(slots, 3), .top_k = filled(slots, 20),
        .seed = filled(slots, 7), .last_text = filled(slots, TEXT - 3),
        .cfg_scale = floats(r, slots, FLOAT32, 3), .temperature = floats(r, slots, FLOAT32, 0),
        .top_p = floats(r, slots, FLOAT32, 1), .delay = filled(CHANNELS, 2),
        .scratch = NULL,
    };
    for (long slot = 0; slot < slots; slot++) {
        state.position[slot] = slot * FILLED / (slots + 1);
        ((float *)state.temperature)[slot] = slot % 3 ? 1.1f : 0;
        ((float *)state.top_p)[slot] = slot % 2 ? 0.9f : 1;
        for (long channel = 0; channel < CHANNELS; channel++)
            state.grid[(slot * (CAPACITY + 1) + state.position[slot]) * CHANNELS + channel] = 5;
    }
    long bytes = up_to(scratch_bytes(&model, slots, CAPACITY, TEXT), 64);
    state.scratch = aligned_alloc(64, bytes);
    memset(state.scratch, 0xff, bytes);
    for (long index = 0; index < r->steps; index++) {
        step(&model, &state, r->threads);
        note(r, state.logits, rows * CHANNELS * VOCAB * sizeof(float));
        note(r, state.grid, slots * (CAPACITY + 1) * CHANNELS * sizeof(int64_t));
        note(r, state.x, rows * width * sizeof(float));
        note(r, state.z, rows * width * size);
    }
    if (r->kind == FLOAT32) {
        note_sequence(r, GROUPS, head, width);
        note_codec(r, 21, 48);
        note_codec(r, 40, 19);
    }
    note(r, state.keys, LAYERS * own * size);
    note(r, state.values, LAYERS * own * size);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 7) return 2;
    const int callers = atoi(arguments[6]);
    Run runs[callers];
    pthread_t threads[callers];
    for (int caller = 0; caller < callers; caller++) {
        runs[caller] = (Run){atoi(arguments[1]), atoi(arguments[2]), atol(arguments[3]), atol(arguments[5]),
                             atoi(arguments[4]), 1, 14695981039346656037ull};
        pthread_create(threads + caller, NULL, run, runs + caller);
    }
    for (int caller = 0; caller < callers; caller++) {
        pthread_join(threads[caller], NULL);
        printf("%016llx\n", (unsigned long long)runs[caller].result);
    }
    return 0;
}
