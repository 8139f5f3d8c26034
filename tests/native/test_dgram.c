/* The ring of UDP packets: its bounds, its wrap marks, and that it hands everything over between two threads. */
#include "tunnel/dgram.h"
#include "tunnel/packet.h"

#include "check.h"

#include <pthread.h>
#include <sched.h>

#define WATCHDOG_SECONDS 90
#define LARGEST 65507U /* payload of the largest UDP packet over IPv4 */
#ifdef __SANITIZE_THREAD__
#define RECORDS 20000U /* through the two threads */
#else
#define RECORDS 200000U
#endif
#define RANDOM_STEPS 200000

#define PATTERN_PERIOD 251U /* prime, so that a shift by a power of two shows */

static uint8_t pattern[LARGEST + PATTERN_PERIOD];

static const uint8_t *pattern_of(uint64_t number)
{
    return pattern + number % PATTERN_PERIOD;
}

/* What a record takes from the ring: the fixed part, room for the longest header, payload, rounded up to 16. */
static uint64_t taken_by(size_t payload)
{
    return (sizeof(aq_dgram_record) + AQ_PACKET_HEADER_MAX + payload + 15) / 16 * 16;
}

/* Writes the record with this number in its header and payload. Returns 0 when the ring is full. */
static int put(aq_dgram *queue, uint64_t number, size_t payload)
{
    aq_dgram_record *record = aq_dgram_reserve(queue, payload);

    if (record == NULL)
        return 0;
    CHECK_INT((uintptr_t)record % 16, 0);
    record->header = number % 2 == 0 ? AQ_PACKET_HEADER_MAX : 17;
    record->ipv6 = number % 2 == 0;
    record->payload = (uint32_t)payload;
    memset(record->data, (int)(number & 0xff), record->header);
    memcpy(record->data + record->header, pattern_of(number), payload);
    aq_dgram_commit(queue, record);
    return 1;
}

/* Takes the oldest record and compares every byte of it. */
static void get(aq_dgram *queue, uint64_t number, size_t payload)
{
    uint8_t header[AQ_PACKET_HEADER_MAX];
    aq_dgram_record *record = aq_dgram_front(queue);

    CHECK(record != NULL);
    CHECK(aq_dgram_front(queue) == record); /* looking takes nothing */
    CHECK_INT(record->size, taken_by(payload));
    CHECK_INT(record->payload, payload);
    CHECK_INT(record->ipv6, number % 2 == 0);
    CHECK_INT(record->header, number % 2 == 0 ? AQ_PACKET_HEADER_MAX : 17);
    memset(header, (int)(number & 0xff), sizeof(header));
    CHECK_BYTES(record->data, header, record->header);
    CHECK_BYTES(record->data + record->header, pattern_of(number), payload);
    aq_dgram_pop(queue);
}

static void init(aq_dgram *queue, uint64_t limit)
{
    CHECK_INT(aq_dgram_init(queue, limit), AQ_OK);
    CHECK_INT(queue->limit, limit);
    CHECK_INT(aq_dgram_waiting(queue), 0);
    CHECK(aq_dgram_front(queue) == NULL);
}

/* ---- one thread ---------------------------------------------------------------------------------------------- */

/* The ring is a power of two, at least twice the limit, and never so small that only a few large records fit. */
static void test_capacity(void)
{
    static const struct {
        uint64_t limit, capacity;
    } CASES[] = {
        {0, 512 * 1024},
        {1, 512 * 1024},
        {256 * 1024, 512 * 1024},
        {256 * 1024 + 1, 1024 * 1024},
        {1024 * 1024, 2048 * 1024},
        {3 * 1024 * 1024, 8192 * 1024},
    };
    size_t i;

    for (i = 0; i < AQ_ARRAY_LENGTH(CASES); i++) {
        aq_dgram queue;

        init(&queue, CASES[i].limit);
        CHECK_INT(queue.capacity, CASES[i].capacity);
        CHECK(queue.capacity >= 7 * taken_by(LARGEST));
        aq_dgram_destroy(&queue);
        CHECK(queue.ring == NULL);
        aq_dgram_destroy(&queue); /* harmless */
    }
}

static void test_one_record(void)
{
    static const size_t SIZES[] = {0, 1, 2, 3, 4, 15, 16, 17, 1200, 1472, 9000, LARGEST - 1, LARGEST, 65535};
    aq_dgram queue;
    aq_dgram_record *record;
    size_t i;

    init(&queue, 0);
    aq_dgram_pop(&queue); /* nothing there: harmless */
    for (i = 0; i + 1 < AQ_ARRAY_LENGTH(SIZES); i++) {
        CHECK(put(&queue, i, SIZES[i]));
        CHECK_INT(aq_dgram_waiting(&queue), taken_by(SIZES[i]));
        get(&queue, i, SIZES[i]);
        CHECK_INT(aq_dgram_waiting(&queue), 0);
    }

    /* the largest that the two bytes of a Packet's size can say */
    record = aq_dgram_reserve(&queue, SIZES[i]);
    CHECK(record != NULL);
    /* reserved and not committed: nothing is seen of it, and the next reservation gets the same place */
    CHECK(aq_dgram_front(&queue) == NULL);
    CHECK(aq_dgram_reserve(&queue, 10) == record);
    /* committed with less than was reserved */
    record->header = 11;
    record->payload = 5;
    aq_dgram_commit(&queue, record);
    CHECK_INT(aq_dgram_waiting(&queue), taken_by(5));
    CHECK(aq_dgram_front(&queue) == record);
    aq_dgram_pop(&queue);
    aq_dgram_destroy(&queue);
}

static void test_full(void)
{
    static const size_t SIZES[] = {0, 1, 1200, 1472, LARGEST};
    size_t i;

    for (i = 0; i < AQ_ARRAY_LENGTH(SIZES); i++) {
        uint64_t size = taken_by(SIZES[i]), max, number, oldest = 0;
        aq_dgram queue;

        init(&queue, 1);
        max = queue.capacity / size;
        for (number = 0; number < max; number++)
            CHECK(put(&queue, number, SIZES[i])); /* far beyond the limit: that one is the consumer's business */
        CHECK(aq_dgram_reserve(&queue, SIZES[i]) == NULL);
        CHECK(aq_dgram_reserve(&queue, SIZES[i]) == NULL);
        CHECK_INT(aq_dgram_waiting(&queue), max * size);

        /* With every record that goes there is room for another, except for what the unused end costs. */
        while (oldest < max * 3) {
            CHECK(number > oldest);
            get(&queue, oldest++, SIZES[i]);
            while (put(&queue, number, SIZES[i]))
                number++;
            CHECK(aq_dgram_waiting(&queue) <= queue.capacity);
            CHECK(aq_dgram_waiting(&queue) + 2 * size > queue.capacity);
        }
        while (oldest < number)
            get(&queue, oldest++, SIZES[i]);
        CHECK(aq_dgram_front(&queue) == NULL);
        CHECK_INT(aq_dgram_waiting(&queue), 0);
        aq_dgram_destroy(&queue);
    }
}

/* Leaves the cursors `before_end` bytes before the end of an empty ring. */
static void advance(aq_dgram *queue, uint64_t before_end)
{
    uint64_t min = taken_by(0), left = queue->capacity - before_end;

    CHECK_INT(before_end % 16, 0);
    while (left > 0) {
        uint64_t step = left < 2 * min ? left : min;

        CHECK(put(queue, 0, (size_t)(step - min)));
        get(queue, 0, (size_t)(step - min));
        left -= step;
    }
    CHECK_INT(aq_dgram_waiting(queue), 0);
}

static void test_wrap_marks(void)
{
    aq_dgram queue;
    aq_dgram_record *record;

    /* the smallest end that can be left over: the mark alone */
    init(&queue, 0);
    advance(&queue, 16);
    record = aq_dgram_reserve(&queue, 0);
    CHECK((uint8_t *)record == queue.ring);
    CHECK(aq_dgram_front(&queue) == NULL); /* passes the mark, finds nothing behind it */
    CHECK_INT(aq_dgram_waiting(&queue), 0);
    CHECK(put(&queue, 5, 100));
    get(&queue, 5, 100);
    aq_dgram_destroy(&queue);

    /* a large end; the mark waits with the record behind it and goes with it */
    init(&queue, 0);
    advance(&queue, taken_by(LARGEST) - 16);
    CHECK(put(&queue, 1, LARGEST));
    CHECK_INT(aq_dgram_waiting(&queue), 2 * taken_by(LARGEST) - 16);
    CHECK((uint8_t *)aq_dgram_front(&queue) == queue.ring);
    get(&queue, 1, LARGEST);
    CHECK_INT(aq_dgram_waiting(&queue), 0);
    aq_dgram_destroy(&queue);

    /* a record that ends where the ring does needs none */
    init(&queue, 0);
    advance(&queue, taken_by(LARGEST));
    CHECK(put(&queue, 2, LARGEST));
    CHECK_INT(aq_dgram_waiting(&queue), taken_by(LARGEST));
    CHECK(put(&queue, 3, 0));
    CHECK_INT(aq_dgram_waiting(&queue), taken_by(LARGEST) + taken_by(0));
    get(&queue, 2, LARGEST);
    CHECK((uint8_t *)aq_dgram_front(&queue) == queue.ring);
    get(&queue, 3, 0);
    aq_dgram_destroy(&queue);

    /* no mark when the record does not fit behind it either: a smaller one may still use the end */
    init(&queue, 0);
    advance(&queue, 7 * taken_by(LARGEST));
    {
        uint64_t waiting, number = 0, oldest = 0;

        while (number < 6)
            CHECK(put(&queue, number++, LARGEST));
        CHECK(put(&queue, number++, 60000));
        while (put(&queue, number, 1200))
            number++;
        CHECK(aq_dgram_reserve(&queue, LARGEST) == NULL);
        waiting = aq_dgram_waiting(&queue);
        CHECK(aq_dgram_reserve(&queue, LARGEST) == NULL);
        CHECK_INT(aq_dgram_waiting(&queue), waiting);
        while (oldest < number) {
            get(&queue, oldest, oldest < 6 ? LARGEST : oldest == 6 ? 60000 : 1200);
            oldest++;
        }
        CHECK(aq_dgram_front(&queue) == NULL);
    }
    aq_dgram_destroy(&queue);
}

/* An empty queue that has come some way goes back; one that holds something, or is near its beginning, does not. */
static void test_rewind(void)
{
    uint64_t number, furthest = 0;
    aq_dgram queue;

    init(&queue, 0);
    for (number = 0; number < 5000; number++) {
        uint64_t at;

        CHECK(put(&queue, number, 1200));
        aq_dgram_rewind(&queue); /* holds something: nothing happens */
        CHECK_INT(aq_dgram_waiting(&queue), taken_by(1200));
        get(&queue, number, 1200);
        at = atomic_load(&queue.written) % queue.capacity;
        furthest = at > furthest ? at : furthest;
        if (aq_dgram_may_rewind(&queue)) {
            aq_dgram_rewind(&queue);
            CHECK_INT(atomic_load(&queue.written) % queue.capacity, 0);
        }
        CHECK_INT(aq_dgram_waiting(&queue), 0);
        CHECK(!aq_dgram_may_rewind(&queue));
    }
    CHECK(furthest < 128 * 1024 + 2 * taken_by(1200));
    CHECK(put(&queue, 1, LARGEST));
    get(&queue, 1, LARGEST);
    aq_dgram_destroy(&queue);
}

/* What the consumer does with the limit: it drops the oldest until what waits is within it. The newest stay. */
static void test_limit(void)
{
    enum { LIMIT = 300 * 1024, PAYLOAD = 1200 };
    uint64_t number = 0, oldest = 0;
    aq_dgram queue;

    init(&queue, LIMIT);
    CHECK_INT(queue.capacity, 1024 * 1024);
    while (put(&queue, number, PAYLOAD))
        number++;
    CHECK(aq_dgram_waiting(&queue) > 2 * queue.limit);
    while (aq_dgram_waiting(&queue) > queue.limit) {
        aq_dgram_pop(&queue);
        oldest++;
    }
    CHECK(aq_dgram_waiting(&queue) + taken_by(PAYLOAD) > queue.limit);
    CHECK_INT(number - oldest, LIMIT / taken_by(PAYLOAD));
    while (oldest < number)
        get(&queue, oldest++, PAYLOAD);
    CHECK(aq_dgram_front(&queue) == NULL);
    aq_dgram_destroy(&queue);
}

/* A size for the record with this number: mostly small, now and then any up to the largest. */
static size_t size_of(uint64_t number)
{
    uint64_t state = number;
    uint32_t kind = check_below(&state, 16);

    if (kind == 0)
        return number % 2 == 0 ? 0 : LARGEST;
    return check_below(&state, kind == 1 ? LARGEST + 1 : 1500);
}

static void test_random_steps(void)
{
    uint64_t state = 7, number = 0, oldest = 0, held = 0;
    int step, refused = 0;
    aq_dgram queue;

    init(&queue, 0);
    for (step = 0; step < RANDOM_STEPS; step++) {
        int writes = check_below(&state, 1000) < (step / 5000 % 2 == 0 ? 600U : 400U); /* fills, then empties */

        if (writes && put(&queue, number, size_of(number))) {
            held += taken_by(size_of(number++));
        } else if (writes) {
            refused++;
            /* only where it really does not fit; an unused end is shorter than the record that needed it */
            CHECK(held + 2 * taken_by(LARGEST) > queue.capacity);
        } else if (oldest < number) {
            get(&queue, oldest, size_of(oldest));
            held -= taken_by(size_of(oldest++));
        } else {
            CHECK(aq_dgram_front(&queue) == NULL);
        }
        CHECK(aq_dgram_waiting(&queue) >= held);
        CHECK(aq_dgram_waiting(&queue) <= queue.capacity);
    }
    CHECK(refused > 0);
    while (oldest < number) {
        get(&queue, oldest, size_of(oldest));
        oldest++;
    }
    CHECK(aq_dgram_front(&queue) == NULL);
    aq_dgram_destroy(&queue);
}

/* ---- two threads --------------------------------------------------------------------------------------------- */

static void *produce(void *context)
{
    aq_dgram *queue = context;
    uint64_t number;

    for (number = 0; number < RECORDS; number++) {
        while (!put(queue, number, size_of(number)))
            sched_yield();
    }
    return NULL;
}

static _Atomic int watching;

/* aq_dgram_waiting() is for any thread: one that is neither. */
static void *watch(void *context)
{
    const aq_dgram *queue = context;

    while (atomic_load(&watching)) {
        /* It reads the cursors one after the other, so the producer may be a ring further by then. */
        CHECK((int64_t)aq_dgram_waiting(queue) >= 0);
        sched_yield();
    }
    return NULL;
}

static void test_two_threads(void)
{
    pthread_t producer, watcher;
    uint64_t number;
    aq_dgram queue;

    init(&queue, 0);
    atomic_store(&watching, 1);
    CHECK_INT(pthread_create(&watcher, NULL, watch, &queue), 0);
    CHECK_INT(pthread_create(&producer, NULL, produce, &queue), 0);
    for (number = 0; number < RECORDS; number++) {
        while (aq_dgram_front(&queue) == NULL)
            sched_yield();
        get(&queue, number, size_of(number));
    }
    CHECK_INT(pthread_join(producer, NULL), 0);
    atomic_store(&watching, 0);
    CHECK_INT(pthread_join(watcher, NULL), 0);
    CHECK(aq_dgram_front(&queue) == NULL);
    CHECK_INT(aq_dgram_waiting(&queue), 0);
    aq_dgram_destroy(&queue);
}

int main(void)
{
    size_t i;

    check_watchdog(WATCHDOG_SECONDS);
    for (i = 0; i < sizeof(pattern); i++)
        pattern[i] = (uint8_t)(i % PATTERN_PERIOD);
    test_capacity();
    test_one_record();
    test_full();
    test_wrap_marks();
    test_rewind();
    test_limit();
    test_random_steps();
    test_two_threads();
    return check_done();
}
