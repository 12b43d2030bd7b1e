/* Reading memory and nothing else, by the threads of a step. */
#pragma once
#include "pool.h"

enum { STREAM_CHUNK = 1 << 20, STREAM_LINE = 256 };

typedef struct {
    const char *from;
    long bytes;
    atomic_uint *sum;
} Streaming;

typedef uint32_t Words __attribute__((vector_size(64)));

static void stream_chunk(const void *job, long chunk) {
    const Streaming *s = job;
    const long first = chunk * STREAM_CHUNK, end = first + STREAM_CHUNK < s->bytes ? first + STREAM_CHUNK : s->bytes;
    Words sum[4] = {{0}};
    for (long place = first; place + STREAM_LINE <= end; place += STREAM_LINE) {
        Words words[4];
        memcpy(words, s->from + place, sizeof words);
        for (int part = 0; part < 4; part++) sum[part] += words[part];
    }
    Words all = sum[0] + sum[1] + sum[2] + sum[3];
    uint32_t total = 0;
    for (int lane = 0; lane < 16; lane++) total += all[lane];
    atomic_fetch_add(s->sum, total);
}

/* The sum of all whole lines of 256 bytes, as 32-bit integers: a result, so that every byte must be read. */
static unsigned checksum(const void *from, long bytes, int threads) {
    atomic_uint sum = 0;
    Streaming s = {from, bytes, &sum};
    run_chunks(stream_chunk, &s, (bytes + STREAM_CHUNK - 1) / STREAM_CHUNK, threads);
    return atomic_load(&sum);
}
