/* Many lines at once with AMX, a unit of some x86 CPUs that multiplies tiles of 16 rows of 64 bytes: 16 rows of W, and
 * the lines in groups of 16. For few lines the time goes into reading W, for many into multiplying, which this makes fast.
 *
 * A tile of lines holds 64 columns of a group, four neighbours of each line together:
 * tiles[group][block][k / 4][line][k % 4], zero beyond the lines and the columns.
 */
#pragma once
#include "limbs.h"

enum {
    TILE = 16,                    /* rows of a tile */
    DEEP = 64,                    /* bytes of a row of a tile: columns of W */
    GROUPS = 4,                   /* of lines at once, whose sums fill tiles 0 to 3; tile 4 is for W and 5 for lines */
    FEWEST_FOR_TILES = LINES + 1, /* what `int8.c` multiplies at once waits for memory alone */
    MOST_FOR_TILES = 1024         /* lines, whose sums a thread has on its stack */
};

INLINE long groups_of(Digits digits) { return (digits.count * digits.rows + TILE - 1) / TILE; }

INLINE long blocks_of(Digits digits) { return (digits.columns + DEEP - 1) / DEEP; }

INLINE long bytes_of_tiles(Digits digits) { return groups_of(digits) * blocks_of(digits) * TILE * DEEP; }

#if (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

/* Between C and the tile instructions: gcc 12 does not know that they read memory, and drops what C wrote for them. */
#define WRITTEN() __asm__ volatile("" ::: "memory")

/* Linux gives AMX to processes that ask for it. */
static int has_tiles(void) {
    enum { ASK = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    static int answer = -1;
    if (answer < 0) answer = syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
    return answer;
}

INLINE void write_tiles(Digits digits) {
    long lines = digits.count * digits.rows, blocks = blocks_of(digits);
#pragma omp for
    for (long place = 0; place < groups_of(digits) * blocks; place++) {
        long group = place / blocks, start = place % blocks * DEEP;
        int8_t *tile = digits.tiles + place * TILE * DEEP;
        memset(tile, 0, TILE * DEEP);
        for (int next = 0; next < TILE && group * TILE + next < lines; next++) {
            const int8_t *line = digits.lines + (group * TILE + next) * digits.columns + start;
            for (int k = 0; k < DEEP && start + k < digits.columns; k++)
                tile[k / 4 * DEEP + next * 4 + k % 4] = line[k];
        }
    }
}

/* sums[row][line] of up to 16 rows of W and up to GROUPS groups of lines. */
INLINE void multiply_groups(const int8_t *values, long rows, Digits digits, long first, long groups, int32_t *sums,
                            long stride) {
    long blocks = blocks_of(digits), columns = digits.columns;
    const int8_t *lines = digits.tiles + first * blocks * TILE * DEEP;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long block = 0; block < blocks; block++) {
        long start = block * DEEP, width = columns - start < DEEP ? columns - start : DEEP;
        if (rows == TILE && width == DEEP) {
            _tile_loadd(4, values + start, columns);
        } else {
            int8_t edge[TILE][DEEP]; /* what lies beyond `width` meets zeros, beyond `rows` it is not looked at */
            for (long row = 0; row < rows; row++) memcpy(edge[row], values + row * columns + start, width);
            WRITTEN();
            _tile_loadd(4, edge, DEEP);
        }
#define ADD(tile) /* a tile's number must be a literal */                         \
    if (tile < groups) {                                                        \
        _tile_loadd(5, lines + (tile * blocks + block) * TILE * DEEP, DEEP);    \
        _tile_dpbssd(tile, 4, 5);                                               \
    }
        ADD(0) ADD(1) ADD(2) ADD(3)
#undef ADD
    }
#define STORE(tile) \
    if (tile < groups) _tile_stored(tile, sums + tile * TILE, stride * sizeof *sums);
    STORE(0) STORE(1) STORE(2) STORE(3)
#undef STORE
}

/* Inside a parallel region, whose threads share the work. */
static void multiply_tiles(const int8_t *values, const float *absmax, Digits digits, float *y, long outputs) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int tile = 0; tile < 6; tile++) shapes.bytes[tile] = DEEP, shapes.rows[tile] = TILE;
    WRITTEN();
    _tile_loadconfig(&shapes);
    write_tiles(digits);
    WRITTEN();
    long groups = groups_of(digits), lines = groups * TILE;
    int32_t sums[TILE][lines];
#pragma omp for
    for (long output = 0; output < outputs; output += TILE) {
        long rows = outputs - output < TILE ? outputs - output : TILE;
        const int8_t *weights = values + output * digits.columns;
        for (long first = 0; first < groups; first += GROUPS) {
            long count = groups - first < GROUPS ? groups - first : GROUPS;
            multiply_groups(weights, rows, digits, first, count, &sums[0][first * TILE], lines);
        }
        WRITTEN();
        for (long row = 0; row < rows; row++)
            write_outputs(sums[row], digits, absmax[output + row], y + output + row, outputs);
    }
    _tile_release();
}
#else
static int has_tiles(void) { return 0; }

static void multiply_tiles(const int8_t *values, const float *absmax, Digits digits, float *y, long outputs) {
    (void)values, (void)absmax, (void)digits, (void)y, (void)outputs; /* never called */
}
#endif
