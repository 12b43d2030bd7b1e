/* Many lines at once with AMX, a unit of some x86 CPUs that multiplies tiles of 16 rows of 64 bytes: 16 rows of W, and
 * the lines in groups of 16. With so many lines W no longer comes too slowly, but is multiplied too slowly otherwise.
 *
 * A tile of lines holds 64 columns of a group, four neighbours of each line together:
 * tiles[group][block][k / 4][line][k % 4], zero beyond the lines and the columns.
 */
#pragma once
#include "digits.h"

enum { TILE = 16, DEEP = 64, GROUPS = 4, FEWEST_FOR_TILES = 9 /* lines */ };

INLINE long groups_of(Digits digits) { return (digits.count * digits.rows + TILE - 1) / TILE; }

INLINE long blocks_of(Digits digits) { return (digits.columns + DEEP - 1) / DEEP; }

INLINE long bytes_of_tiles(Digits digits) { return groups_of(digits) * blocks_of(digits) * TILE * DEEP; }

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

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
            int8_t edge[TILE][DEEP] = {0};
            for (long row = 0; row < rows; row++) memcpy(edge[row], values + row * columns + start, width);
            _tile_loadd(4, edge, DEEP);
        }
#define ADD(group) /* the numbers of tiles are parts of instructions */         \
    if (group < groups) {                                                       \
        _tile_loadd(5, lines + (group * blocks + block) * TILE * DEEP, DEEP);   \
        _tile_dpbssd(group, 4, 5);                                              \
    }
        ADD(0) ADD(1) ADD(2) ADD(3)
    }
#define STORE(group) \
    if (group < groups) _tile_stored(group, sums + group * TILE, stride * sizeof *sums);
    STORE(0) STORE(1) STORE(2) STORE(3)
}

/* Inside a parallel region, whose threads share the work. */
static void multiply_tiles(const int8_t *values, const float *absmax, Digits digits, float *y, long outputs) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int tile = 0; tile < 6; tile++) shapes.bytes[tile] = DEEP, shapes.rows[tile] = TILE;
    _tile_loadconfig(&shapes);
    write_tiles(digits);
    long groups = groups_of(digits), lines = groups * TILE;
    int32_t sums[TILE][lines];
#pragma omp for
    for (long output = 0; output < outputs; output += TILE) {
        long rows = outputs - output < TILE ? outputs - output : TILE;
        const int8_t *weights = values + output * digits.columns;
        for (long first = 0; first < groups; first += GROUPS) {
            long some = groups - first < GROUPS ? groups - first : GROUPS;
            multiply_groups(weights, rows, digits, first, some, &sums[0][first * TILE], lines);
        }
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
