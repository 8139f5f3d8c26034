/* The byte queue: cursors and memory by one thread, then 64 MiB at a time between two. */
#include "core/pipe.h"

#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define WATCHDOG_SECONDS 90
#define TURN AQ_NSEC_PER_MSEC /* longer than a yield takes, shorter than another process's turn */
#define PATTERN_LENGTH 65521  /* prime: no chunk or segment size falls into step with it */
#define MAX_VECTORS 16
#define TRANSFER (UINT64_C(64) << 20) /* bytes through every pipe of the threaded test */

static uint8_t pattern[PATTERN_LENGTH];

static void make_pattern(void)
{
    uint64_t state = 1;
    size_t i;

    for (i = 0; i < PATTERN_LENGTH; i++)
        pattern[i] = (uint8_t)check_random(&state);
}

/* The bytes that belong at this position of a stream. */
static void fill(uint8_t *out, size_t length, uint64_t position)
{
    while (length > 0) {
        size_t at = (size_t)(position % PATTERN_LENGTH);
        size_t step = PATTERN_LENGTH - at < length ? PATTERN_LENGTH - at : length;

        memcpy(out, pattern + at, step);
        out += step;
        position += step;
        length -= step;
    }
}

static void check_filled(const uint8_t *data, size_t length, uint64_t position)
{
    while (length > 0) {
        size_t at = (size_t)(position % PATTERN_LENGTH);
        size_t step = PATTERN_LENGTH - at < length ? PATTERN_LENGTH - at : length;

        CHECK_BYTES(data, pattern + at, step);
        data += step;
        position += step;
        length -= step;
    }
}

static size_t total(const struct iovec *vectors, int count)
{
    size_t length = 0;
    int i;

    for (i = 0; i < count; i++) {
        CHECK(vectors[i].iov_len > 0);
        length += vectors[i].iov_len;
    }
    return length;
}

/* Reserves, fills and commits up to `want` bytes. Returns how many. */
static size_t produce(aq_pipe *pipe, size_t want, size_t commit_at_most)
{
    struct iovec vectors[MAX_VECTORS];
    uint64_t position = aq_pipe_written(pipe);
    int count = aq_pipe_space(pipe, vectors, MAX_VECTORS, want);
    size_t left, length;
    int i;

    CHECK(count >= 0);
    length = total(vectors, count);
    CHECK(length <= want);
    if (length > commit_at_most)
        length = commit_at_most;
    for (i = 0, left = length; left > 0; i++) {
        size_t step = vectors[i].iov_len < left ? vectors[i].iov_len : left;

        fill(vectors[i].iov_base, step, position);
        position += step;
        left -= step;
    }
    aq_pipe_commit(pipe, length);
    return length;
}

/* Looks at up to `want` bytes and checks every one of them. Returns how many there were. */
static size_t inspect(aq_pipe *pipe, size_t want, int max_vectors)
{
    struct iovec vectors[MAX_VECTORS];
    uint64_t position = aq_pipe_taken(pipe);
    int count = aq_pipe_peek(pipe, vectors, max_vectors, want);
    size_t length;
    int i;

    CHECK(count >= 0 && count <= max_vectors);
    length = total(vectors, count);
    CHECK(length <= want);
    for (i = 0; i < count; i++) {
        check_filled(vectors[i].iov_base, vectors[i].iov_len, position);
        position += vectors[i].iov_len;
    }
    return length;
}

/* ---- one thread ---------------------------------------------------------------------------------------------- */

static void test_empty(void)
{
    struct iovec vector;
    aq_pool pool;
    aq_pipe pipe;

    CHECK_INT(aq_pool_init(&pool, 0), 0);
    aq_pipe_init(&pipe, &pool, 1000);
    CHECK_INT(aq_pipe_room(&pipe), 1000);
    CHECK_INT(aq_pipe_readable(&pipe), 0);
    CHECK_INT(aq_pipe_peek(&pipe, &vector, 1, 10), 0);
    aq_pipe_take(&pipe, 0);
    aq_pipe_release(&pipe, 0);
    aq_pipe_commit(&pipe, 0);
    aq_pipe_trim(&pipe);
    CHECK_INT(aq_pipe_write(&pipe, "", 0), 0);
    CHECK_INT(aq_pipe_space(&pipe, &vector, 1, 0), 0);
    CHECK_INT(aq_pipe_space(&pipe, &vector, 0, 10), 0);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

static void test_segment_choice(void)
{
    static const struct {
        size_t want;
        uint64_t live;
    } cases[] = {
        {1, AQ_SEGMENT_SMALL},
        {AQ_SEGMENT_SMALL, AQ_SEGMENT_SMALL},
        {AQ_SEGMENT_SMALL + 1, AQ_SEGMENT_LARGE},
        {AQ_SEGMENT_LARGE, AQ_SEGMENT_LARGE},
        {AQ_SEGMENT_LARGE + 1, 2 * AQ_SEGMENT_LARGE},
        {16 * AQ_SEGMENT_LARGE, 16 * AQ_SEGMENT_LARGE},
    };
    struct iovec vectors[MAX_VECTORS];
    aq_pool pool;
    size_t i;

    CHECK_INT(aq_pool_init(&pool, 0), 0);
    for (i = 0; i < AQ_ARRAY_LENGTH(cases); i++) {
        aq_pipe pipe;
        int count;

        aq_pipe_init(&pipe, &pool, 1 << 20);
        count = aq_pipe_space(&pipe, vectors, MAX_VECTORS, cases[i].want);
        CHECK_INT(total(vectors, count), cases[i].want);
        CHECK_INT(atomic_load(&pool.live), cases[i].live);
        aq_pipe_destroy(&pipe);
        CHECK_INT(atomic_load(&pool.live), 0);

        aq_pipe_init(&pipe, &pool, 1 << 20);
        CHECK_INT(aq_pipe_write(&pipe, pattern, cases[i].want < PATTERN_LENGTH ? cases[i].want : 1), 0);
        aq_pipe_destroy(&pipe);
        CHECK_INT(atomic_load(&pool.live), 0);
    }
    aq_pool_destroy(&pool);
}

static void test_limit(void)
{
    const uint64_t limit = 50000;
    struct iovec vectors[MAX_VECTORS];
    aq_pool pool;
    aq_pipe pipe;
    int count;

    CHECK_INT(aq_pool_init(&pool, 1 << 20), 0);
    aq_pipe_init(&pipe, &pool, limit);
    count = aq_pipe_space(&pipe, vectors, MAX_VECTORS, 1 << 20);
    CHECK_INT(total(vectors, count), limit);
    CHECK_INT(produce(&pipe, 1 << 20, SIZE_MAX), limit);
    CHECK_INT(aq_pipe_room(&pipe), 0);
    CHECK_INT(aq_pipe_space(&pipe, vectors, MAX_VECTORS, 1), 0);
    CHECK_INT(aq_pipe_write(&pipe, "x", 1), -1);
    CHECK_INT(aq_pipe_written(&pipe), limit);

    /* taking makes no room, releasing does */
    CHECK_INT(inspect(&pipe, 100, MAX_VECTORS), 100);
    aq_pipe_take(&pipe, 100);
    CHECK_INT(aq_pipe_room(&pipe), 0);
    aq_pipe_release(&pipe, 60);
    CHECK_INT(aq_pipe_room(&pipe), 60);
    count = aq_pipe_space(&pipe, vectors, MAX_VECTORS, 1000);
    CHECK_INT(total(vectors, count), 60);
    CHECK_INT(aq_pipe_write(&pipe, pattern, 61), -1);
    CHECK_INT(produce(&pipe, 1000, SIZE_MAX), 60);
    CHECK_INT(aq_pipe_room(&pipe), 0);
    CHECK_INT(aq_pipe_readable(&pipe), limit - 100 + 60);
    CHECK_INT(inspect(&pipe, SIZE_MAX, MAX_VECTORS), limit - 100 + 60);
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

static void test_vector_bounds(void)
{
    struct iovec vectors[MAX_VECTORS];
    aq_pool pool;
    aq_pipe pipe;
    int count;

    CHECK_INT(aq_pool_init(&pool, 0), 0);
    aq_pipe_init(&pipe, &pool, 1 << 20);
    CHECK_INT(produce(&pipe, 10, SIZE_MAX), 10); /* one small segment, all but full */
    count = aq_pipe_space(&pipe, vectors, 1, 1 << 20);
    CHECK_INT(count, 1);
    CHECK_INT(vectors[0].iov_len, AQ_SEGMENT_SMALL - 10);
    count = aq_pipe_space(&pipe, vectors, 3, 1 << 20);
    CHECK_INT(count, 3);
    CHECK_INT(total(vectors, count), AQ_SEGMENT_SMALL - 10 + 2 * AQ_SEGMENT_LARGE);
    CHECK_INT(atomic_load(&pool.live), AQ_SEGMENT_SMALL + 2 * AQ_SEGMENT_LARGE);
    count = aq_pipe_space(&pipe, vectors, 2, 1 << 20); /* fewer vectors than are reserved */
    CHECK_INT(count, 2);
    CHECK_INT(total(vectors, count), AQ_SEGMENT_SMALL - 10 + AQ_SEGMENT_LARGE);

    CHECK_INT(produce(&pipe, 1 << 20, 40000), 40000);
    CHECK_INT(inspect(&pipe, SIZE_MAX, 1), AQ_SEGMENT_SMALL);
    CHECK_INT(inspect(&pipe, SIZE_MAX, 2), AQ_SEGMENT_SMALL + AQ_SEGMENT_LARGE);
    CHECK_INT(inspect(&pipe, SIZE_MAX, MAX_VECTORS), 40010);
    CHECK_INT(inspect(&pipe, 5, MAX_VECTORS), 5);
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

static void test_reserved_room_stays(void)
{
    struct iovec before[MAX_VECTORS], after[MAX_VECTORS];
    aq_pool pool;
    aq_pipe pipe;
    uint64_t live;
    int count, i;

    CHECK_INT(aq_pool_init(&pool, 0), 0);
    aq_pipe_init(&pipe, &pool, 1 << 20);
    for (i = 0; i < 2; i++) { /* without and with a segment that holds data */
        int j;

        count = aq_pipe_space(&pipe, before, MAX_VECTORS, 60000);
        live = atomic_load(&pool.live);
        CHECK_INT(aq_pipe_space(&pipe, after, MAX_VECTORS, 60000), count);
        for (j = 0; j < count; j++) {
            CHECK(after[j].iov_base == before[j].iov_base);
            CHECK_INT(after[j].iov_len, before[j].iov_len);
        }
        CHECK_INT(atomic_load(&pool.live), live);

        /* less is answered from what is there; more adds to it */
        CHECK_INT(aq_pipe_space(&pipe, after, MAX_VECTORS, 1), 1);
        CHECK(after[0].iov_base == before[0].iov_base);
        CHECK_INT(atomic_load(&pool.live), live);
        CHECK(aq_pipe_space(&pipe, after, MAX_VECTORS, 120000) > count);
        CHECK(after[0].iov_base == before[0].iov_base);
        CHECK(atomic_load(&pool.live) > live);

        aq_pipe_trim(&pipe);
        CHECK_INT(atomic_load(&pool.live), i == 0 ? 0 : AQ_SEGMENT_SMALL);
        CHECK_INT(produce(&pipe, 10, SIZE_MAX), 10);
        CHECK_INT(inspect(&pipe, SIZE_MAX, MAX_VECTORS), 10 * (i + 1));
    }
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

/* A send pipe: bytes taken (sent) stay where they are until released (acknowledged). */
static void test_take_ahead_of_release(void)
{
    struct iovec vectors[MAX_VECTORS];
    aq_pool pool;
    aq_pipe pipe;
    uint64_t position = 0;
    int count, i;

    CHECK_INT(aq_pool_init(&pool, 0), 0); /* what is released is freed at once: the sanitizer sees a use too many */
    aq_pipe_init(&pipe, &pool, 1 << 20);
    CHECK_INT(produce(&pipe, 5 * AQ_SEGMENT_LARGE, SIZE_MAX), 5 * AQ_SEGMENT_LARGE);
    count = aq_pipe_peek(&pipe, vectors, MAX_VECTORS, SIZE_MAX);
    CHECK_INT(total(vectors, count), 5 * AQ_SEGMENT_LARGE);
    aq_pipe_take(&pipe, 5 * AQ_SEGMENT_LARGE);
    CHECK_INT(aq_pipe_readable(&pipe), 0);
    CHECK_INT(atomic_load(&pool.live), 5 * AQ_SEGMENT_LARGE);
    for (i = 0; i < count; i++) {
        check_filled(vectors[i].iov_base, vectors[i].iov_len, position);
        position += vectors[i].iov_len;
    }

    aq_pipe_release(&pipe, AQ_SEGMENT_LARGE - 1);
    CHECK_INT(atomic_load(&pool.live), 5 * AQ_SEGMENT_LARGE);
    aq_pipe_release(&pipe, AQ_SEGMENT_LARGE);
    CHECK_INT(atomic_load(&pool.live), 4 * AQ_SEGMENT_LARGE);
    aq_pipe_release(&pipe, 3 * AQ_SEGMENT_LARGE + 7);
    CHECK_INT(atomic_load(&pool.live), 2 * AQ_SEGMENT_LARGE);
    check_filled(vectors[3].iov_base, vectors[3].iov_len, 3 * AQ_SEGMENT_LARGE);
    check_filled(vectors[4].iov_base, vectors[4].iov_len, 4 * AQ_SEGMENT_LARGE);

    /* The last segment stays: the producer hangs the next one on it. It goes with the first release after that. */
    aq_pipe_release(&pipe, 5 * AQ_SEGMENT_LARGE);
    CHECK_INT(atomic_load(&pool.live), AQ_SEGMENT_LARGE);
    CHECK_INT(aq_pipe_room(&pipe), 1 << 20);
    CHECK_INT(produce(&pipe, 2, SIZE_MAX), 2);
    CHECK_INT(atomic_load(&pool.live), AQ_SEGMENT_LARGE + AQ_SEGMENT_SMALL);
    CHECK_INT(inspect(&pipe, SIZE_MAX, MAX_VECTORS), 2);
    aq_pipe_take(&pipe, 2);
    aq_pipe_release(&pipe, aq_pipe_taken(&pipe) - 1);
    CHECK_INT(atomic_load(&pool.live), AQ_SEGMENT_SMALL);
    aq_pipe_release(&pipe, aq_pipe_taken(&pipe));
    CHECK_INT(atomic_load(&pool.live), AQ_SEGMENT_SMALL);
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

/* The segment behind a full one is published before the full one is released: it goes in one step, also while nothing
 * of the next is taken. */
static void test_release_at_the_edge(void)
{
    aq_pool pool;
    aq_pipe pipe;

    CHECK_INT(aq_pool_init(&pool, 0), 0);
    aq_pipe_init(&pipe, &pool, 1 << 20);
    CHECK_INT(produce(&pipe, AQ_SEGMENT_SMALL, SIZE_MAX), AQ_SEGMENT_SMALL);
    CHECK_INT(produce(&pipe, 5, SIZE_MAX), 5);
    CHECK_INT(atomic_load(&pool.live), 2 * AQ_SEGMENT_SMALL);
    aq_pipe_take(&pipe, AQ_SEGMENT_SMALL);
    aq_pipe_release(&pipe, AQ_SEGMENT_SMALL);
    CHECK_INT(atomic_load(&pool.live), AQ_SEGMENT_SMALL);
    CHECK_INT(inspect(&pipe, SIZE_MAX, 1), 5);
    aq_pipe_take(&pipe, 5);
    CHECK_INT(produce(&pipe, 3, SIZE_MAX), 3);
    CHECK_INT(inspect(&pipe, SIZE_MAX, 1), 3);
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

static void test_destroy_in_every_state(void)
{
    struct iovec vectors[MAX_VECTORS];
    aq_pool pool;
    int state;

    CHECK_INT(aq_pool_init(&pool, 1 << 20), 0);
    for (state = 0; state < 6; state++) {
        aq_pipe pipe;

        aq_pipe_init(&pipe, &pool, 1 << 20);
        if (state >= 1)
            CHECK(aq_pipe_space(&pipe, vectors, MAX_VECTORS, 50000) > 0);
        if (state >= 2)
            CHECK_INT(produce(&pipe, 50000, 20000), 20000);
        if (state >= 3)
            CHECK_INT(inspect(&pipe, SIZE_MAX, MAX_VECTORS), 20000);
        if (state >= 4)
            aq_pipe_take(&pipe, 20000);
        if (state >= 5)
            aq_pipe_release(&pipe, 20000);
        aq_pipe_destroy(&pipe);
        CHECK_INT(atomic_load(&pool.live), 0);
    }
    aq_pool_destroy(&pool);
}

static void test_pool(void)
{
    struct iovec vectors[MAX_VECTORS];
    const uint64_t max_idle = 2 * AQ_SEGMENT_LARGE + AQ_SEGMENT_SMALL;
    aq_pool pool;
    aq_pipe pipe;
    void *warm;

    CHECK_INT(aq_pool_init(&pool, max_idle), 0);
    aq_pipe_init(&pipe, &pool, 1 << 20);
    CHECK_INT(aq_pipe_space(&pipe, vectors, MAX_VECTORS, 10 * AQ_SEGMENT_LARGE), 10);
    aq_pipe_trim(&pipe);
    CHECK_INT(pool.idle, 2 * AQ_SEGMENT_LARGE); /* the rest went back to the allocator */
    CHECK_INT(aq_pipe_space(&pipe, vectors, MAX_VECTORS, 1), 1);
    CHECK_INT(pool.idle, 2 * AQ_SEGMENT_LARGE); /* a large one never serves for a small one */
    aq_pipe_trim(&pipe);
    CHECK_INT(pool.idle, max_idle);

    /* last in, first out */
    CHECK_INT(aq_pipe_space(&pipe, vectors, MAX_VECTORS, AQ_SEGMENT_LARGE), 1);
    warm = vectors[0].iov_base;
    aq_pipe_trim(&pipe);
    CHECK_INT(aq_pipe_space(&pipe, vectors, MAX_VECTORS, AQ_SEGMENT_LARGE), 1);
    CHECK(vectors[0].iov_base == warm);

    /* as many as are idle, the others new */
    CHECK_INT(aq_pipe_space(&pipe, vectors, MAX_VECTORS, 5 * AQ_SEGMENT_LARGE), 5);
    CHECK_INT(pool.idle, AQ_SEGMENT_SMALL);
    CHECK_INT(atomic_load(&pool.live), 5 * AQ_SEGMENT_LARGE);
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    CHECK_INT(pool.idle, max_idle);
    aq_pool_destroy(&pool);
}

/* Random operations against three numbers: what the cursors must be and, through the pattern, every byte between them.
 */
static void test_model(uint64_t max_idle, uint64_t limit, uint64_t seed)
{
    uint64_t state = seed, written = 0, taken = 0, released = 0;
    aq_pool pool;
    aq_pipe pipe;
    int i;

    CHECK_INT(aq_pool_init(&pool, max_idle), 0);
    aq_pipe_init(&pipe, &pool, limit);
    for (i = 0; i < 20000; i++) {
        size_t size = check_below(&state, check_below(&state, 4) == 0 ? 70000 : 3000);

        switch (check_below(&state, 6)) {
        case 0:
        case 1:
            written += produce(&pipe, size, check_below(&state, 70000));
            break;
        case 2: {
            uint8_t bytes[70000];
            int fits = size <= limit - (written - released);

            fill(bytes, size, written);
            CHECK_INT(aq_pipe_write(&pipe, bytes, size), fits ? 0 : -1);
            written += fits ? size : 0;
            break;
        }
        case 3: {
            size_t there = inspect(&pipe, size, 1 + (int)check_below(&state, MAX_VECTORS));

            CHECK(there > 0 || size == 0 || written == taken);
            aq_pipe_take(&pipe, there);
            taken += there;
            break;
        }
        case 4:
            if (taken > released)
                released += check_random(&state) % (taken - released + 1);
            aq_pipe_release(&pipe, released);
            break;
        default:
            if (size % 8 == 0)
                aq_pipe_trim(&pipe);
            break;
        }
        CHECK_INT(aq_pipe_written(&pipe), written);
        CHECK_INT(aq_pipe_taken(&pipe), taken);
        CHECK_INT(aq_pipe_released(&pipe), released);
        CHECK_INT(aq_pipe_readable(&pipe), written - taken);
        CHECK_INT(aq_pipe_room(&pipe), limit - (written - released));
        CHECK(atomic_load(&pool.live) >= written - released);
    }
    CHECK(released > 10 * limit);
    aq_pipe_destroy(&pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

/* ---- two threads --------------------------------------------------------------------------------------------- */

struct transfer {
    const char *name;
    uint64_t limit;
    uint64_t max_idle;
    uint32_t largest_write; /* the producer wants 1 .. this */
    uint32_t largest_take;  /* the consumer takes 1 .. this */
    uint32_t largest_lag;   /* 0: a receive pipe, which releases what it takes; else it lags behind by up to this */
    int copies;             /* the producer uses aq_pipe_write */
};

static struct {
    const struct transfer *transfer;
    aq_pipe pipe;
} run;

/* The other thread has to go on first. A thread that yields is back at once, which makes the closest races; but where
 * other processes want the processor, each of them has a whole turn every time, and who sleeps is back sooner. */
static void wait_a_moment(void)
{
    static const struct timespec shortest = {.tv_nsec = 1};
    static _Thread_local int sleeps;
    uint64_t began;
    if (sleeps > 0) {
        sleeps--;
        nanosleep(&shortest, NULL);
        return;
    }
    began = aq_now();
    sched_yield();
    if (aq_now() - began > TURN)
        sleeps = 200;
}

static void *produce_all(void *unused)
{
    uint8_t *bytes = malloc(run.transfer->largest_write);
    uint64_t state = 7, written = 0;

    CHECK(bytes != NULL);
    while (written < TRANSFER) {
        size_t size = 1 + check_below(&state, run.transfer->largest_write);

        if (size > TRANSFER - written)
            size = (size_t)(TRANSFER - written);
        if (run.transfer->copies) {
            fill(bytes, size, written);
            size = aq_pipe_write(&run.pipe, bytes, size) == 0 ? size : 0;
        } else {
            size = produce(&run.pipe, size, 1 + check_below(&state, run.transfer->largest_write));
        }
        written += size;
        CHECK(aq_pipe_room(&run.pipe) <= run.transfer->limit);
        if (size == 0)
            wait_a_moment(); /* full; the consumer makes room */
        else if (check_below(&state, 64) == 0)
            aq_pipe_trim(&run.pipe);
    }
    free(bytes);
    return unused;
}

static void *consume_all(void *unused)
{
    const struct transfer *transfer = run.transfer;
    uint64_t state = 8, taken = 0;

    while (taken < TRANSFER) {
        size_t size = inspect(&run.pipe, 1 + check_below(&state, transfer->largest_take), MAX_VECTORS);

        aq_pipe_take(&run.pipe, size);
        taken += size;
        CHECK(aq_pipe_written(&run.pipe) - aq_pipe_released(&run.pipe) <= transfer->limit);
        if (transfer->largest_lag == 0) {
            aq_pipe_release(&run.pipe, taken);
        } else {
            uint64_t lag = check_below(&state, transfer->largest_lag);

            if (taken - aq_pipe_released(&run.pipe) > lag)
                aq_pipe_release(&run.pipe, taken - lag);
        }
        if (size == 0)
            wait_a_moment(); /* empty; the producer fills it */
    }
    aq_pipe_release(&run.pipe, taken);
    return unused;
}

static void test_transfer(const struct transfer *transfer)
{
    pthread_t producer, consumer;
    aq_pool pool;

    CHECK_INT(aq_pool_init(&pool, transfer->max_idle), 0);
    run.transfer = transfer;
    aq_pipe_init(&run.pipe, &pool, transfer->limit);
    CHECK_INT(pthread_create(&consumer, NULL, consume_all, NULL), 0);
    CHECK_INT(pthread_create(&producer, NULL, produce_all, NULL), 0);
    CHECK_INT(pthread_join(producer, NULL), 0);
    CHECK_INT(pthread_join(consumer, NULL), 0);
    CHECK_INT(aq_pipe_written(&run.pipe), TRANSFER);
    CHECK_INT(aq_pipe_released(&run.pipe), TRANSFER);
    aq_pipe_destroy(&run.pipe);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
    printf("%s: done\n", transfer->name);
}

/* The moment of the first byte, many times over: the consumer must find the first segment as soon as it sees that byte.
 */
static aq_pipe *_Atomic newborn;
static _Atomic int newborn_read;

static void *read_newborns(void *unused)
{
    int i;

    for (i = 0; i < 2000; i++) {
        aq_pipe *pipe;

        while ((pipe = atomic_exchange(&newborn, NULL)) == NULL)
            wait_a_moment();
        while (inspect(pipe, SIZE_MAX, MAX_VECTORS) == 0)
            wait_a_moment();
        atomic_store(&newborn_read, 1);
    }
    return unused;
}

static void test_first_byte(void)
{
    pthread_t consumer;
    aq_pool pool;
    int i;

    CHECK_INT(aq_pool_init(&pool, 1 << 16), 0);
    CHECK_INT(pthread_create(&consumer, NULL, read_newborns, NULL), 0);
    for (i = 0; i < 2000; i++) {
        aq_pipe pipe;

        aq_pipe_init(&pipe, &pool, 5000);
        atomic_store(&newborn_read, 0);
        atomic_store(&newborn, &pipe);
        CHECK_INT(produce(&pipe, i % 2 ? 10 : 5000, 1), 1);
        while (!atomic_load(&newborn_read))
            wait_a_moment();
        aq_pipe_destroy(&pipe);
    }
    CHECK_INT(pthread_join(consumer, NULL), 0);
    CHECK_INT(atomic_load(&pool.live), 0);
    aq_pool_destroy(&pool);
}

int main(void)
{
    static const struct transfer transfers[] = {
        {.name = "bulk, receive", .limit = 1 << 20, .max_idle = 1 << 20, .largest_write = 65536, .largest_take = 65536},
        {.name = "packets in, bulk out",
         .limit = 300000,
         .max_idle = 1 << 20,
         .largest_write = 1400,
         .largest_take = 262144,
         .copies = 1},
        {.name = "bulk, send, acknowledged late",
         .limit = 500000,
         .max_idle = 0,
         .largest_write = 262144,
         .largest_take = 1400,
         .largest_lag = 400000},
        {.name = "narrow",
         .limit = 3000,
         .max_idle = 10000,
         .largest_write = 5000,
         .largest_take = 5000,
         .largest_lag = 1000},
    };
    size_t i;

    check_watchdog(WATCHDOG_SECONDS);
    make_pattern();
    test_empty();
    test_segment_choice();
    test_limit();
    test_vector_bounds();
    test_reserved_room_stays();
    test_take_ahead_of_release();
    test_release_at_the_edge();
    test_destroy_in_every_state();
    test_pool();
    test_model(0, 1 << 17, 1);
    test_model(1 << 20, 1 << 17, 2);
    test_model(1 << 15, 2500, 3);
    test_first_byte();
    for (i = 0; i < AQ_ARRAY_LENGTH(transfers); i++)
        test_transfer(&transfers[i]);
    return check_done();
}
