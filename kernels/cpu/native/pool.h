/* A thread pool that runs the chunks of one job at a time.
 *
 * Threads take chunks from an atomic counter. The caller takes chunks too, and at the end waits only for chunks that a
 * worker has started, never for a worker to wake up: if other processes keep the cores busy, a job does not wait until each
 * worker is scheduled. A waiting thread spins for SPIN_NS, which bridges the gaps between the jobs of a step, and then sleeps
 * on a futex. Workers beyond the number of threads that the caller asks for sleep at once and are not woken.
 *
 * If a job is running already, a second caller runs its chunks alone. A forked child has no workers and starts its own.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "float_mode.h"

typedef void (*Task)(const void *job, long chunk);

enum { SPIN_NS = 30000, MOST_WORKERS = 255, WAKE_BITS = 32 };

static struct {
    _Alignas(64) atomic_ullong ticket; /* number of the job << 32 | chunks that nobody has taken */
    _Alignas(64) atomic_int done;      /* chunks of the job that are finished; the caller's futex */
    atomic_int caller_sleeps;
    _Alignas(64) atomic_uint wake_count;      /* incremented by every job; the workers' futex */
    atomic_int sleeping[WAKE_BITS]; /* workers that sleep on it, by `wake_bit_of` */
    _Alignas(64) _Atomic(Task) task;
    _Atomic(const void *) job;
    atomic_ulong mode; /* of the caller, which every thread computes in */
    atomic_int chunks;
    atomic_int wanted; /* workers that may take chunks of this job: those with a lower number */
    atomic_int awake;  /* workers that the caller has threads for, which may be wanted by its next job */
    atomic_flag busy;  /* a caller runs a job */
    int workers;
} pool = {.busy = ATOMIC_FLAG_INIT};

static __thread int pool_is_mine; /* this thread runs a chunk: a job within it is not shared */

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static inline long now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

#ifdef __linux__
static inline void sleep_on(void *word, int value, unsigned bit) {
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value, NULL, NULL, 1u << bit);
}

static inline void wake(void *word, unsigned bits) {
    syscall(SYS_futex, word, FUTEX_WAKE_BITSET_PRIVATE, MOST_WORKERS, NULL, NULL, bits);
}

/* Bit of the futex bitset that wakes a worker: the first WAKE_BITS - 1 workers have their own, the others share the last. */
static inline unsigned wake_bit_of(int number) { return number < WAKE_BITS - 1 ? number : WAKE_BITS - 1; }

/* Wake those of the first `count` workers that sleep. */
static inline void wake_workers(int count) {
    unsigned asleep = 0;
    for (unsigned bit = 0; bit <= wake_bit_of(count - 1); bit++)
        if (atomic_load(&pool.sleeping[bit])) asleep |= 1u << bit;
    if (asleep) wake(&pool.wake_count, asleep);
}

/* Whether SPIN_NS have passed since the first call; *end is 0 at that call. */
static inline int spun_out(unsigned *turns, long *end) {
    relax();
    if (++*turns & 31) return 0;
    long time = now_ns();
    if (!*end) *end = time + SPIN_NS;
    return time >= *end;
}

/* Run chunks until none is left. A taken chunk names its job by the ticket, and the caller waits for all that are taken, so
 * the job cannot change between the taking and the running. */
static void take_chunks(int number) {
    unsigned long long ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
    while ((uint32_t)ticket && number < atomic_load_explicit(&pool.wanted, memory_order_relaxed)) {
        if (!atomic_compare_exchange_weak_explicit(&pool.ticket, &ticket, ticket - 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        set_float_mode(atomic_load_explicit(&pool.mode, memory_order_relaxed));
        int chunks = atomic_load_explicit(&pool.chunks, memory_order_relaxed);
        Task task = atomic_load_explicit(&pool.task, memory_order_relaxed);
        task(atomic_load_explicit(&pool.job, memory_order_relaxed), chunks - (long)(uint32_t)ticket);
        if (atomic_fetch_add(&pool.done, 1) + 1 == chunks && atomic_load(&pool.caller_sleeps)) wake(&pool.done, 1u);
        ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
    }
}

static void *work(void *argument) {
    int number = (int)(intptr_t)argument;
    pool_is_mine = 1;
    for (;;) {
        unsigned wake_count = atomic_load(&pool.wake_count);
        take_chunks(number);
        long end = 0;
        unsigned turns = 0;
        unsigned long long seen = atomic_load(&pool.ticket);
        while (atomic_load_explicit(&pool.ticket, memory_order_acquire) == seen || !(uint32_t)atomic_load(&pool.ticket)) {
            if (number < atomic_load_explicit(&pool.awake, memory_order_relaxed) && !spun_out(&turns, &end)) continue;
            atomic_fetch_add(&pool.sleeping[wake_bit_of(number)], 1);
            sleep_on(&pool.wake_count, (int)wake_count, wake_bit_of(number));
            atomic_fetch_sub(&pool.sleeping[wake_bit_of(number)], 1);
            break;
        }
    }
    return NULL;
}

static void forget_workers(void) {
    pool.workers = 0;
    atomic_store(&pool.ticket, 0);
    for (int bit = 0; bit < WAKE_BITS; bit++) atomic_store(&pool.sleeping[bit], 0);
    atomic_store(&pool.caller_sleeps, 0);
    atomic_flag_clear(&pool.busy);
}

static void register_fork(void) { pthread_atfork(NULL, NULL, forget_workers); }

/* Start workers until there are `count`, or as many as the system allows. Called with `busy` held. */
static void start_workers(int count) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork);
    pthread_attr_t attributes;
    if (pool.workers >= count || pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 4 << 20);
    for (pthread_t thread; pool.workers < count; pool.workers++)
        if (pthread_create(&thread, &attributes, work, (void *)(intptr_t)pool.workers)) break;
    pthread_attr_destroy(&attributes);
}

static void share(Task task, const void *job, int chunks, int workers, int awake) {
    start_workers(workers);
    atomic_store_explicit(&pool.task, task, memory_order_relaxed);
    atomic_store_explicit(&pool.job, job, memory_order_relaxed);
    atomic_store_explicit(&pool.mode, float_mode(), memory_order_relaxed);
    atomic_store_explicit(&pool.chunks, chunks, memory_order_relaxed);
    atomic_store_explicit(&pool.wanted, workers, memory_order_relaxed);
    atomic_store_explicit(&pool.awake, awake, memory_order_relaxed);
    atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
    unsigned long long last = atomic_load_explicit(&pool.ticket, memory_order_relaxed);
    atomic_store(&pool.ticket, ((last >> 32) + 1) << 32 | (unsigned)chunks);
    atomic_fetch_add(&pool.wake_count, 1);
    wake_workers(workers);
    pool_is_mine = 1;
    take_chunks(-1);
    pool_is_mine = 0;
    long end = 0;
    unsigned turns = 0;
    for (int done; (done = atomic_load_explicit(&pool.done, memory_order_acquire)) != chunks;) {
        if (!spun_out(&turns, &end)) continue;
        atomic_store(&pool.caller_sleeps, 1);
        done = atomic_load(&pool.done);
        if (done != chunks) sleep_on(&pool.done, done, 0);
        atomic_store(&pool.caller_sleeps, 0);
    }
}
#endif

/* Run task(job, 0), ..., task(job, chunks - 1), in any order, on at most `threads` threads of which this is one. */
static void run_chunks(Task task, const void *job, long chunks, int threads) {
#ifdef __linux__
    const int awake = threads - 1 < MOST_WORKERS ? threads - 1 : MOST_WORKERS;
    const int workers = awake < chunks ? awake : (int)chunks - 1;
    if (workers > 0 && !pool_is_mine && !atomic_flag_test_and_set(&pool.busy)) {
        share(task, job, (int)chunks, workers, awake);
        atomic_flag_clear(&pool.busy);
        return;
    }
#endif
    for (long chunk = 0; chunk < chunks; chunk++) task(job, chunk);
}
