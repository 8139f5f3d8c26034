/* What the C unit tests share: checks that say where they failed and with which values, a watchdog, and a generator of
 * numbers that are the same in every run. A program ends with `return check_done();`, which fails when nothing was
 * checked.
 */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static _Atomic uint64_t check_count; /* checks made so far, by all threads */

/* Ends the whole program, from any thread and without running exit handlers under the feet of the others. */
_Noreturn static inline void check_exit(void)
{
    fflush(stdout);
    fflush(stderr);
    _exit(1);
}

static inline void check_true(int true_, const char *text, const char *file, int line)
{
    atomic_fetch_add_explicit(&check_count, 1, memory_order_relaxed);
    if (true_)
        return;
    fprintf(stderr, "%s:%d: not true: %s\n", file, line, text);
    check_exit();
}

static inline void check_int(int64_t actual, int64_t expected, const char *text, const char *file, int line)
{
    atomic_fetch_add_explicit(&check_count, 1, memory_order_relaxed);
    if (actual == expected)
        return;
    fprintf(stderr, "%s:%d: %s is %" PRId64 " (0x%" PRIx64 "), expected %" PRId64 " (0x%" PRIx64 ")\n", file, line,
            text, actual, (uint64_t)actual, expected, (uint64_t)expected);
    check_exit();
}

static inline void check_bytes(const void *actual, const void *expected, size_t length, const char *text,
                               const char *file, int line)
{
    const uint8_t *a = actual, *e = expected;
    size_t i = 0;

    atomic_fetch_add_explicit(&check_count, 1, memory_order_relaxed);
    if (length == 0 || memcmp(a, e, length) == 0)
        return;
    while (a[i] == e[i])
        i++;
    fprintf(stderr, "%s:%d: %s differs at byte %zu of %zu: 0x%02x, expected 0x%02x\n", file, line, text, i, length,
            a[i], e[i]);
    check_exit();
}

#define CHECK(condition) check_true((condition) ? 1 : 0, #condition, __FILE__, __LINE__)
#define CHECK_INT(actual, expected) check_int((int64_t)(actual), (int64_t)(expected), #actual, __FILE__, __LINE__)
#define CHECK_BYTES(actual, expected, length) check_bytes(actual, expected, length, #actual, __FILE__, __LINE__)

static inline void check_bite(int number)
{
    static const char text[] = "watchdog: the test hangs\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof(text) - 1);

    (void)number;
    (void)ignored;
    _exit(2);
}

/* Ends the program after so many seconds. A bound on a hang, not on speed: choose it generously. */
static inline void check_watchdog(unsigned seconds)
{
    signal(SIGALRM, check_bite);
    alarm(seconds);
}

static inline int check_done(void)
{
    uint64_t count = atomic_load(&check_count);

    printf("%" PRIu64 " checks\n", count);
    if (count == 0)
        fprintf(stderr, "nothing was checked\n");
    return count == 0;
}

/* SplitMix64: every state is good, and a run can be repeated from its seed. */
static inline uint64_t check_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* 0 .. below - 1 */
static inline uint32_t check_below(uint64_t *state, uint32_t below)
{
    return (uint32_t)((check_random(state) >> 32) * below >> 32);
}

#endif
