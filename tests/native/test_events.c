/* The queue of events: order through growth, blocking, closing, and many producers. malloc() can be told to fail. */
#include "core/events.h"

#include "check.h"

#include <poll.h>
#include <sched.h>
#include <stdlib.h>

#define WATCHDOG_SECONDS 90
#define LONG_MS 80000 /* a time-out that no run reaches */
#define PRODUCERS 4
#define FEW 3
#ifdef __SANITIZE_THREAD__
#define EACH 5000 /* events of one producer */
#else
#define EACH 50000
#endif

static _Atomic int fail_malloc;
void *__real_malloc(size_t size); /* NOLINT: the linker's names */
void *__wrap_malloc(size_t size); /* NOLINT */

void *__wrap_malloc(size_t size)
{
    return atomic_load(&fail_malloc) ? NULL : __real_malloc(size);
}

static aq_counters counters;

static void post(aq_events *events, uint64_t number)
{
    aq_event event = {.type = AQ_EVENT_COMMAND_RECEIVED, .value = number, .length = (uint32_t)(number % 256)};

    memset(event.data, (int)(number & 0xff), sizeof(event.data));
    aq_events_post(events, &event);
    memset(&event, 0xee, sizeof(event)); /* it was copied */
}

static void check_event(const aq_event *event, uint64_t number)
{
    uint8_t data[256];

    memset(data, (int)(number & 0xff), sizeof(data));
    CHECK_INT(event->type, AQ_EVENT_COMMAND_RECEIVED);
    CHECK_INT(event->value, number);
    CHECK_INT(event->length, number % 256);
    CHECK_BYTES(event->data, data, sizeof(data));
}

/* ---- one thread ------------------------------------------------------------------------------------------------ */

static void test_nothing_there(void)
{
    aq_events events;
    aq_event out;

    CHECK_INT(aq_events_init(&events, &counters), AQ_OK);
    CHECK_INT(aq_events_backlog(&events), 0);
    CHECK_INT(aq_events_take(&events, &out, 1, 0), 0);
    CHECK_INT(aq_events_take(&events, &out, 1, 1), 0);
    CHECK_INT(aq_events_take(&events, &out, 1, 20), 0);
    CHECK_INT(events.waiting, 0);

    /* what is there comes at once, whatever the time-out, and the time-out leaves nothing behind */
    post(&events, 1);
    CHECK_INT(aq_events_take(&events, &out, 1, -1), 1);
    check_event(&out, 1);
    post(&events, 2);
    CHECK_INT(aq_events_take(&events, &out, 1, LONG_MS), 1);
    check_event(&out, 2);
    post(&events, 3);
    CHECK_INT(aq_events_take(&events, &out, 1, INT32_MAX), 1);
    check_event(&out, 3);
    CHECK_INT(aq_events_take(&events, &out, 1, 0), 0);
    aq_events_destroy(&events);
}

/* Takes up to `max` and compares them with what was posted. */
static uint64_t take(aq_events *events, uint64_t from, uint32_t max, uint32_t expected)
{
    static aq_event out[5000];
    uint32_t backlog = aq_events_backlog(events), i;

    CHECK(max <= AQ_ARRAY_LENGTH(out));
    CHECK_INT(aq_events_take(events, out, max, 0), expected);
    for (i = 0; i < expected; i++)
        check_event(&out[i], from + i);
    CHECK_INT(aq_events_backlog(events), backlog - expected);
    return from + expected;
}

/* The queue grows at every place where its oldest event can lie, several times over, and keeps the order. */
static void test_growth(void)
{
    uint32_t first_capacity, first, i;
    aq_events events;

    CHECK_INT(aq_events_init(&events, &counters), AQ_OK);
    first_capacity = events.capacity;
    aq_events_destroy(&events);
    CHECK(first_capacity >= 2 && (first_capacity & (first_capacity - 1)) == 0);

    for (first = 0; first < first_capacity; first++) {
        uint64_t posted = 0, taken = 0;

        CHECK_INT(aq_events_init(&events, &counters), AQ_OK);
        for (i = 0; i < first; i++) {
            post(&events, posted++);
            taken = take(&events, taken, 1, 1);
        }
        for (i = 0; i < first_capacity; i++)
            post(&events, posted++);
        CHECK_INT(events.capacity, first_capacity); /* exactly full */
        post(&events, posted++);
        CHECK_INT(events.capacity, 2 * first_capacity);
        CHECK_INT(aq_events_backlog(&events), first_capacity + 1);
        taken = take(&events, taken, 3, 3);
        while (aq_events_backlog(&events) < 5 * first_capacity)
            post(&events, posted++);
        CHECK_INT(events.capacity, 8 * first_capacity);
        taken = take(&events, taken, 7, 7);
        taken = take(&events, taken, 5000, 5 * first_capacity - 7);
        CHECK_INT(taken, posted);
        CHECK_INT(take(&events, taken, 5000, 0), posted);
        aq_events_destroy(&events);
    }
    CHECK_INT(atomic_load(&counters.value[AQ_C_events_lost]), 0);
}

static void test_close(void)
{
    aq_events events;
    aq_event out[4];
    uint64_t i;

    CHECK_INT(aq_events_init(&events, &counters), AQ_OK);
    for (i = 0; i < 5; i++)
        post(&events, i);
    aq_events_close(&events);
    aq_events_close(&events); /* twice is once */
    post(&events, 5);         /* too late: nobody will ask for it */
    CHECK_INT(aq_events_backlog(&events), 5);
    CHECK_INT(aq_events_take(&events, out, 4, -1), 4);
    for (i = 0; i < 4; i++)
        check_event(&out[i], i);
    CHECK_INT(aq_events_take(&events, out, 4, -1), 1);
    check_event(&out[0], 4);
    CHECK_INT(aq_events_take(&events, out, 4, -1), AQ_ERR_STOPPED);
    CHECK_INT(aq_events_take(&events, out, 4, 0), AQ_ERR_STOPPED);
    CHECK_INT(aq_events_take(&events, out, 4, LONG_MS), AQ_ERR_STOPPED);
    aq_events_destroy(&events);
}

static void test_no_memory(void)
{
    aq_events events;
    uint32_t i, room;

    atomic_store(&fail_malloc, 1);
    CHECK_INT(aq_events_init(&events, &counters), AQ_ERR_MEMORY);
    atomic_store(&fail_malloc, 0);
    CHECK_INT(aq_events_init(&events, &counters), AQ_OK);
    room = events.capacity;
    atomic_store(&fail_malloc, 1);
    for (i = 0; i < room + 3; i++)
        post(&events, i);
    atomic_store(&fail_malloc, 0);
    CHECK_INT(atomic_load(&counters.value[AQ_C_events_lost]), 3);
    CHECK_INT(aq_events_backlog(&events), room);
    post(&events, room); /* and on it goes */
    CHECK_INT(take(&events, 0, room + 1, room + 1), room + 1);
    aq_events_destroy(&events);
}

/* ---- a consumer that blocks ------------------------------------------------------------------------------------ */

typedef struct {
    aq_events events;
    int32_t timeout_ms;
    int64_t result;
    aq_event out[2];
} blocked;

static void *block(void *context)
{
    blocked *side = context;

    side->result = aq_events_take(&side->events, side->out, 2, side->timeout_ms);
    return NULL;
}

/* Until the consumer is inside its wait; it gives the mutex back only there. */
static void wait_until_blocked(aq_events *events)
{
    int waiting = 0;

    while (!waiting) {
        pthread_mutex_lock(&events->mutex);
        waiting = events->waiting;
        pthread_mutex_unlock(&events->mutex);
        sched_yield();
    }
}

static void test_blocking(void)
{
    static const int32_t TIMEOUTS[] = {-1, LONG_MS, INT32_MAX};
    size_t i;
    int closes;

    for (i = 0; i < AQ_ARRAY_LENGTH(TIMEOUTS); i++) {
        for (closes = 0; closes <= 1; closes++) {
            blocked side = {.timeout_ms = TIMEOUTS[i]};
            pthread_t consumer;

            CHECK_INT(aq_events_init(&side.events, &counters), AQ_OK);
            CHECK_INT(pthread_create(&consumer, NULL, block, &side), 0);
            wait_until_blocked(&side.events);
            if (closes)
                aq_events_close(&side.events);
            else
                post(&side.events, 77);
            CHECK_INT(pthread_join(consumer, NULL), 0);
            CHECK_INT(side.result, closes ? AQ_ERR_STOPPED : 1);
            if (!closes)
                check_event(&side.out[0], 77);
            CHECK_INT(side.events.waiting, 0);
            CHECK_INT(aq_events_backlog(&side.events), 0);
            aq_events_destroy(&side.events);
        }
    }
}

/* A wake-up ends the wait that is in progress, or else the next one, once. */
static void test_wake(void)
{
    blocked side = {.timeout_ms = -1};
    aq_event out;
    pthread_t thread;

    CHECK_INT(aq_events_init(&side.events, &counters), AQ_OK);
    CHECK_INT(pthread_create(&thread, NULL, block, &side), 0);
    wait_until_blocked(&side.events);
    aq_events_wake_consumer(&side.events);
    CHECK_INT(pthread_join(thread, NULL), 0);
    CHECK_INT(side.result, 0);

    aq_events_wake_consumer(&side.events);
    aq_events_wake_consumer(&side.events);
    CHECK_INT(aq_events_take(&side.events, &out, 1, -1), 0);
    CHECK_INT(aq_events_take(&side.events, &out, 1, 1), 0);

    /* an event that is there comes with it, and uses it up */
    post(&side.events, 7);
    aq_events_wake_consumer(&side.events);
    CHECK_INT(aq_events_take(&side.events, &out, 1, -1), 1);
    check_event(&out, 7);
    CHECK_INT(side.events.woken, 0);
    aq_events_destroy(&side.events);
}

/* ---- many producers -------------------------------------------------------------------------------------------- */

static aq_events shared;

static void *produce(void *context)
{
    uint64_t producer = (uint64_t)(uintptr_t)context, i;

    for (i = 0; i < EACH; i++) {
        post(&shared, producer * EACH + i);
        if (i % 512 == 0) {
            CHECK(aq_events_backlog(&shared) <= PRODUCERS * EACH);
            sched_yield(); /* lets the consumer fall asleep now and then */
        }
    }
    return NULL;
}

static void *close_at_the_end(void *context)
{
    pthread_t *producers = context;
    int i;

    for (i = 0; i < PRODUCERS; i++)
        CHECK_INT(pthread_join(producers[i], NULL), 0);
    aq_events_close(&shared);
    return NULL;
}

/* Nothing is lost, each producer's events come in its order, and the end comes last. */
static void test_many_producers(void)
{
    pthread_t producers[PRODUCERS], closer;
    aq_event out[16];
    uint64_t next[PRODUCERS], all = 0;
    int64_t count, i;
    uintptr_t producer;

    CHECK_INT(aq_events_init(&shared, &counters), AQ_OK);
    for (producer = 0; producer < PRODUCERS; producer++) {
        next[producer] = producer * EACH;
        CHECK_INT(pthread_create(&producers[producer], NULL, produce, (void *)producer), 0);
    }
    CHECK_INT(pthread_create(&closer, NULL, close_at_the_end, producers), 0);
    while ((count = aq_events_take(&shared, out, 1 + (uint32_t)(all % AQ_ARRAY_LENGTH(out)), all % 3 == 0 ? 50 : -1)) >=
           0) {
        for (i = 0; i < count; i++) {
            producer = (uintptr_t)(out[i].value / EACH);
            CHECK(producer < PRODUCERS);
            check_event(&out[i], next[producer]++);
        }
        all += (uint64_t)count;
    }
    CHECK_INT(count, AQ_ERR_STOPPED);
    CHECK_INT(all, PRODUCERS * EACH);
    CHECK_INT(aq_events_backlog(&shared), 0);
    CHECK_INT(pthread_join(closer, NULL), 0);
    aq_events_destroy(&shared);
}

/* ---- what an event hands over -------------------------------------------------------------------------------- */

static int hand_over(aq_events *events)
{
    int ends[2];
    aq_event event = {.type = AQ_EVENT_STREAM_LARGE_TRANSFER};

    CHECK_INT(pipe(ends), 0);
    event.value = (uint64_t)ends[1];
    aq_events_post(events, &event);
    return ends[0];
}

/* The other end of the pipe tells. */
static void check_closed(int end, int expected)
{
    struct pollfd item = {.fd = end, .events = POLLIN};

    CHECK_INT(poll(&item, 1, 0), expected);
    CHECK((item.revents & POLLHUP) == (expected ? POLLHUP : 0));
}

/* A socket belongs to whoever gets the event, and is closed where nobody will. */
static void test_hand_over(void)
{
    aq_events events;
    aq_event out, other = {.type = AQ_EVENT_COMMAND_RECEIVED};
    uint64_t lost = atomic_load(&counters.value[AQ_C_events_lost]);
    int taken, left[FEW], late, i;

    CHECK_INT(aq_events_init(&events, &counters), AQ_OK);
    taken = hand_over(&events);
    CHECK_INT(aq_events_take(&events, &out, 1, 0), 1);
    CHECK_INT(out.type, AQ_EVENT_STREAM_LARGE_TRANSFER);
    other.value = out.value;
    aq_events_post(&events, &other); /* a number, and no descriptor */
    for (i = 0; i < FEW; i++)
        left[i] = hand_over(&events);
    aq_events_close(&events);
    late = hand_over(&events);
    check_closed(late, 1);
    check_closed(left[0], 0); /* may be taken yet */
    aq_events_destroy(&events);
    for (i = 0; i < FEW; i++) {
        check_closed(left[i], 1);
        CHECK_INT(close(left[i]), 0);
    }
    check_closed(taken, 0);
    CHECK_INT(close((int)out.value), 0);
    CHECK_INT(close(taken) | close(late), 0);

    /* no memory for one more */
    CHECK_INT(aq_events_init(&events, &counters), AQ_OK);
    for (i = 0; i < (int)events.capacity; i++)
        aq_events_post(&events, &other);
    atomic_store(&fail_malloc, 1);
    late = hand_over(&events);
    atomic_store(&fail_malloc, 0);
    check_closed(late, 1);
    CHECK_INT(atomic_load(&counters.value[AQ_C_events_lost]), lost + 1);
    aq_events_destroy(&events);
    CHECK_INT(close(late), 0);
}

int main(void)
{
    check_watchdog(WATCHDOG_SECONDS);
    test_nothing_there();
    test_growth();
    test_close();
    test_no_memory();
    test_blocking();
    test_wake();
    test_many_producers();
    test_hand_over();
    return check_done();
}
