/* How this thread rounds: as a CPU is told by its control register, which C knows nothing of. */
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>

enum { FLUSH = 0x8040 };
static inline unsigned long float_mode(void) { return _mm_getcsr(); }
static inline void set_float_mode(unsigned long mode) { _mm_setcsr((unsigned)mode); }
#else
enum { FLUSH = 1 << 24 };
static inline unsigned long float_mode(void) {
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static inline void set_float_mode(unsigned long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

/* Subnormal numbers count as zero, as they do for the instructions that multiply bfloat16. Returns the mode before. */
static inline unsigned long flush_subnormals(void) {
    unsigned long mode = float_mode();
    set_float_mode(mode | FLUSH);
    return mode;
}
