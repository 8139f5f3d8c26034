/* Token buckets under a clock that the test sets: rates are exact over any time, waiting streams share fairly,
 * datagrams are dropped beyond the rate, and nothing is lost or invented when rates change, grants go unused or streams
 * end.
 */
#include "core/bucket.h"

#include "check.h"

#include <pthread.h>
#include <stdlib.h>

#define SECOND AQ_NSEC_PER_SEC
#define TICK AQ_NSEC_PER_MSEC /* of the engine, which looks at buckets on whole milliseconds */
#define KIB 1024ULL
#define BULK (256 * KIB) /* bytes that a bulk stream asks for */
#define FLOWS 101
#define THREADS 4

static aq_counters counters;
static aq_wake wake;
static aq_ready ready;
static uint64_t now = 1234567891; /* the test's clock */

/* One direction of a stream that always has more to move. */
typedef struct {
    aq_taker taker; /* first member */
    uint64_t moved;
    uint64_t woken_at;
    int woken;
} flow;

static flow flows[FLOWS];

static void set_woken(void *context, aq_taker *taker)
{
    flow *each = (flow *)(void *)taker;
    CHECK(context == &counters);
    each->woken = 1;
    each->woken_at = now;
}

/* The engine takes the list of ready objects. Returns whether a bucket was in it. */
static int told(void)
{
    aq_ready_node *node = aq_ready_take(&ready), *next;
    int count = 0;
    for (; node != NULL; node = next) {
        next = node->next;
        CHECK_INT(node->kind, AQ_READY_BUCKET);
        CHECK_INT(atomic_exchange(&node->queued, 0), 1);
        aq_bucket_unref((aq_bucket *)(void *)node);
        count++;
    }
    return count > 0;
}

static aq_bucket *new_bucket(uint64_t rate)
{
    aq_bucket *bucket = aq_bucket_new(rate, &ready, &counters, now);
    CHECK(bucket != NULL);
    memset(flows, 0, sizeof(flows));
    return bucket;
}

static aq_buckets chain_of(aq_bucket *first, aq_bucket *second)
{
    aq_buckets chain = {0};
    CHECK_INT(aq_buckets_add(&chain, AQ_DIRECTION_SENT, first), AQ_OK);
    if (second != NULL)
        CHECK_INT(aq_buckets_add(&chain, AQ_DIRECTION_SENT, second), AQ_OK);
    return chain;
}

/* Ends what new_bucket() and chain_of() began: the leak checker speaks if a reference is left. */
static void end(aq_buckets *chain, aq_bucket *first, aq_bucket *second)
{
    aq_buckets_release(chain);
    told();
    atomic_store(&counters.value[AQ_C_bandwidth_waits], 0);
    atomic_store(&counters.value[AQ_C_udp_drop_bandwidth], 0);
    for (size_t i = 0; i < AQ_ARRAY_LENGTH(first->queues); i++)
        CHECK(first->queues[i].first == NULL && (second == NULL || second->queues[i].first == NULL));
    CHECK_INT(atomic_load(&first->references), 1);
    aq_bucket_unref(first);
    if (second != NULL)
        aq_bucket_unref(second);
}

static uint64_t burst_of(uint64_t rate)
{
    return rate / 100 > 16 * KIB ? rate / 100 : 16 * KIB;
}

static uint64_t debt_of(uint64_t rate)
{
    return rate / 25 > KIB ? rate / 25 : KIB;
}

static uint64_t quantum_of(uint64_t rate)
{
    uint64_t quantum = rate / 250 > KIB ? rate / 250 : KIB;
    return quantum < BULK ? quantum : BULK;
}

/* Moves as much as there are tokens for, at most `want` at a time, and then waits. */
static void serve(flow *each, aq_buckets *chain, uint64_t want)
{
    uint64_t taken;
    each->woken = 0;
    while ((taken = aq_buckets_take(chain, &each->taker, want, now)) > 0) {
        CHECK(taken <= want);
        each->moved += taken;
        aq_buckets_moved(chain, &each->taker, taken, taken, 1);
    }
}

static void stop_waiting(aq_buckets *chain)
{
    for (size_t i = 0; i < FLOWS; i++)
        aq_buckets_settle(chain, &flows[i].taker, 1);
}

/* Runs the buckets as the engine does, and serves the first `count` flows when they have tokens, until the clock shows
 * `until`. `late`: by how many nanoseconds the engine is late each time. */
static void run(aq_bucket *first, aq_bucket *second, aq_buckets *chain, size_t count, uint64_t until, uint64_t late)
{
    while (now < until) {
        uint64_t due = aq_bucket_run(first, now, set_woken, &counters), other = UINT64_MAX;
        int any = 0;
        if (second != NULL)
            other = aq_bucket_run(second, now, set_woken, &counters);
        told();
        for (size_t i = 0; i < count; i++) {
            if (flows[i].woken) {
                serve(&flows[i], chain, BULK);
                any = 1;
            }
        }
        if (any)
            continue;
        due = due < other ? due : other;
        CHECK(due != UINT64_MAX && due > now);
        now = (due / TICK + 1) * TICK + late;
    }
}

/* ---- rates ----------------------------------------------------------------------------------------------------- */

/* One stream gets the rate, to the byte, however late the engine is (within 100 ms), and the burst once. */
static void test_rate(uint64_t rate, uint64_t seconds, uint64_t late)
{
    aq_bucket *bucket = new_bucket(rate);
    aq_buckets chain = chain_of(bucket, NULL);
    uint64_t began = now, due;
    serve(&flows[0], &chain, BULK);
    CHECK(flows[0].moved <= burst_of(rate));
    CHECK(flows[0].moved + quantum_of(rate) > burst_of(rate)); /* less than a quantum is left for the next grant */
    CHECK(told());
    run(bucket, NULL, &chain, 1, began + seconds * SECOND, late);
    due = burst_of(rate) + (uint64_t)((double)(now - began) / 1e9 * (double)rate);
    CHECK(flows[0].moved <= due + 1);
    /* What it waits for, and what it has not been granted yet. */
    CHECK(flows[0].moved + 2 * quantum_of(rate) + (late + TICK) / 1000 * rate / 1000000 >= due);
    stop_waiting(&chain);
    end(&chain, bucket, NULL);
}

/* Thousands of refills between two bytes do not change how much passes: nothing is rounded. */
static void test_nothing_is_rounded(uint64_t rate)
{
    aq_bucket *bucket = new_bucket(rate);
    aq_buckets chain = chain_of(bucket, NULL);
    uint64_t began = now;
    CHECK_INT(aq_buckets_take(&chain, &flows[0].taker, burst_of(rate), now), (int64_t)burst_of(rate));
    CHECK_INT(bucket->level, 0);
    for (int i = 0; i < 1000000; i++) {
        now += 7; /* less than a byte's time, for most rates */
        CHECK_INT(aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 0, now), 1);
        if (bucket->level > (int64_t)KIB * 1000000000) { /* before it is full */
            CHECK_INT(aq_buckets_take(&chain, &flows[0].taker, KIB, now), (int64_t)KIB);
            flows[0].moved += KIB;
        }
    }
    CHECK_INT(bucket->level + (int64_t)flows[0].moved * 1000000000, (int64_t)((now - began) * rate));
    end(&chain, bucket, NULL);
}

/* An idle bucket is full, and no more than that. */
static void test_idle(uint64_t rate, uint64_t idle)
{
    aq_bucket *bucket = new_bucket(rate);
    aq_buckets chain = chain_of(bucket, NULL);
    while (aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 1000, now))
        ;
    now += idle;
    CHECK_INT(aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 0, now), 1);
    CHECK_INT(bucket->level, (int64_t)burst_of(rate) * 1000000000);
    end(&chain, bucket, NULL);
}

static void test_change_of_rate(void)
{
    aq_bucket *bucket = new_bucket(1000000);
    aq_buckets chain = chain_of(bucket, NULL);
    aq_bucket_info info;
    uint64_t began, moved;

    serve(&flows[0], &chain, BULK);
    run(bucket, NULL, &chain, 1, now + SECOND, 0);
    aq_bucket_set_rate(bucket, 10000000, now);
    CHECK(told()); /* the engine has to wait less */
    began = now, moved = flows[0].moved;
    run(bucket, NULL, &chain, 1, now + 10 * SECOND, 0);
    CHECK((double)(flows[0].moved - moved) / ((double)(now - began) / 1e9) > 0.999 * 10000000);
    CHECK((double)(flows[0].moved - moved) / ((double)(now - began) / 1e9) < 1.001 * 10000000);
    /* Lifted: who waits goes on at once, and nothing is charged. */
    aq_bucket_set_rate(bucket, 0, now);
    CHECK(told());
    CHECK_INT(aq_bucket_run(bucket, now, set_woken, &counters), UINT64_MAX);
    CHECK_INT(flows[0].woken, 1);
    for (int i = 0; i < 1000; i++) {
        CHECK_INT(aq_buckets_take(&chain, &flows[0].taker, BULK, now), (int64_t)BULK);
        aq_buckets_moved(&chain, &flows[0].taker, BULK, BULK / 2, 0);
    }
    CHECK_INT(aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 60000, now), 1);
    aq_bucket_get_info(bucket, &info);
    CHECK_INT(info.rate, 0);
    CHECK_INT(info.dropped, 0);
    CHECK(info.waits > 100);
    /* A limit again: it begins with a full bucket. */
    aq_bucket_set_rate(bucket, 8000, now);
    CHECK_INT(bucket->level, 16 * (int64_t)KIB * 1000000000);
    /* Much debt at a high rate is not paid off for hours at a low one. */
    aq_bucket_set_rate(bucket, 125000000, now);
    while (aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 1000, now))
        ;
    aq_bucket_set_rate(bucket, 1000, now);
    now += 2 * SECOND;
    CHECK_INT(aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 100, now), 1);
    end(&chain, bucket, NULL);
}

/* ---- streams that share ---------------------------------------------------------------------------------------- */

/* Bulk streams get the same, and an interactive one between them waits for two quanta, not for all of them. */
static void test_fairness(void)
{
    const uint64_t rate = 1000000, until = now + 60 * SECOND;
    aq_bucket *bucket = new_bucket(rate);
    aq_buckets chain = chain_of(bucket, NULL);
    flow *interactive = &flows[FLOWS - 1];
    uint64_t least = UINT64_MAX, most = 0, asks = 0;

    for (size_t i = 0; i < FLOWS - 1; i++)
        serve(&flows[i], &chain, BULK);
    run(bucket, NULL, &chain, FLOWS - 1, now + SECOND, 0); /* new streams count as interactive until their first turn */
    for (size_t i = 0; i < FLOWS - 1; i++)
        flows[i].moved = 0;
    while (now < until) {
        uint64_t began = now, taken;
        run(bucket, NULL, &chain, FLOWS - 1, now + SECOND / 10, 0);
        /* 100 bytes every tenth of a second */
        began = now;
        taken = aq_buckets_take(&chain, &interactive->taker, 100, now);
        CHECK_INT(taken, 0); /* others wait, so it waits as well */
        while (!interactive->woken)
            run(bucket, NULL, &chain, FLOWS - 1, now + 1, 0);
        interactive->woken = 0;
        taken = aq_buckets_take(&chain, &interactive->taker, 100, now);
        CHECK_INT(taken, 100);
        aq_buckets_moved(&chain, &interactive->taker, 100, 100, 0);
        CHECK(interactive->woken_at - began <= 2 * SECOND * quantum_of(rate) / rate + 4 * TICK);
        asks++;
    }
    for (size_t i = 0; i < FLOWS - 1; i++) {
        least = flows[i].moved < least ? flows[i].moved : least;
        most = flows[i].moved > most ? flows[i].moved : most;
    }
    CHECK(asks > 300);
    CHECK(most - least <= quantum_of(rate));
    stop_waiting(&chain);
    end(&chain, bucket, NULL);
}

/* However many interactive streams there are, a bulk stream gets half. */
static void test_bulk_does_not_starve(void)
{
    const uint64_t rate = 1000000, began = now;
    aq_bucket *bucket = new_bucket(rate);
    aq_buckets chain = chain_of(bucket, NULL);
    flow *bulk = &flows[FLOWS - 1];

    serve(bulk, &chain, BULK);
    bulk->moved = 0;
    while (now < began + 10 * SECOND) {
        uint64_t due = aq_bucket_run(bucket, now, set_woken, &counters);
        told();
        if (bulk->woken)
            serve(bulk, &chain, BULK);
        for (size_t i = 0; i < FLOWS - 1; i++) { /* each asks again at once, but for all that it has */
            uint64_t taken = aq_buckets_take(&chain, &flows[i].taker, quantum_of(rate), now);
            flows[i].woken = 0;
            if (taken > 0)
                aq_buckets_moved(&chain, &flows[i].taker, taken, taken, 0);
        }
        if (due != UINT64_MAX)
            now = (due / TICK + 1) * TICK;
    }
    CHECK(bulk->moved > rate * 10 * 45 / 100);
    stop_waiting(&chain);
    end(&chain, bucket, NULL);
}

/* What is not used goes to others, at once: of a grant, of a take, of a stream that ends while it waits. */
static void test_unused(void)
{
    const uint64_t rate = 1000000;
    aq_bucket *bucket = new_bucket(rate);
    aq_buckets chain = chain_of(bucket, NULL);
    int64_t level = bucket->level;

    CHECK_INT(aq_buckets_take(&chain, &flows[0].taker, 10000, now), 10000);
    aq_buckets_moved(&chain, &flows[0].taker, 10000, 300, 0);
    CHECK_INT(bucket->level, level - 300 * 1000000000LL);
    /* All wait. */
    CHECK(aq_buckets_take(&chain, &flows[0].taker, BULK, now) > 0);
    for (size_t i = 0; i < 3; i++)
        CHECK_INT(aq_buckets_take(&chain, &flows[i].taker, BULK, now), 0);
    CHECK_INT(bucket->waits, 3);
    CHECK_INT(atomic_exchange(&counters.value[AQ_C_bandwidth_waits], 0), 3);
    CHECK(told());
    /* One that still waits goes on waiting; one that ends leaves. */
    aq_buckets_settle(&chain, &flows[0].taker, 0);
    CHECK_INT(flows[0].taker.is_waiting, 1);
    aq_buckets_settle(&chain, &flows[0].taker, 1);
    CHECK_INT(flows[0].taker.is_waiting, 0);
    now += 10 * TICK;
    aq_bucket_run(bucket, now, set_woken, &counters);
    CHECK_INT(flows[0].woken, 0);
    CHECK_INT(flows[1].woken, 1);
    CHECK_INT(flows[2].woken, 1);
    /* The first does not use its grant, the second a part of it. */
    level = bucket->level;
    aq_buckets_settle(&chain, &flows[1].taker, 0);
    CHECK_INT(bucket->level, level + (int64_t)quantum_of(rate) * 1000000000);
    CHECK_INT(aq_buckets_take(&chain, &flows[2].taker, 50, now), 50);
    CHECK_INT(bucket->level, level + (int64_t)(2 * quantum_of(rate) - 50) * 1000000000);
    /* A stream that waits is served as soon as another gives back enough. */
    while (bucket->level >= (int64_t)quantum_of(rate) * 1000000000)
        CHECK(aq_buckets_take(&chain, &flows[2].taker, BULK, now) > 0);
    CHECK_INT(aq_buckets_take(&chain, &flows[1].taker, BULK, now), 0);
    CHECK(told());
    aq_buckets_moved(&chain, &flows[2].taker, BULK, 0, 0);
    CHECK(told());
    flows[1].woken = 0;
    aq_bucket_run(bucket, now, set_woken, &counters);
    CHECK_INT(flows[1].woken, 1);
    stop_waiting(&chain);
    end(&chain, bucket, NULL);
}

/* Two buckets: the slower one decides, and the faster one is charged only for what has moved. */
static void test_chain(int slower_first)
{
    const uint64_t slow = 100000, fast = 1000000, began = now;
    aq_bucket *first = new_bucket(slower_first ? slow : fast), *second = new_bucket(slower_first ? fast : slow);
    aq_bucket *fast_one = slower_first ? second : first;
    aq_buckets chain = chain_of(first, second), other = chain_of(fast_one, NULL);
    double rate;

    CHECK_INT(aq_buckets_add(&chain, AQ_DIRECTION_SENT, first), AQ_OK); /* is there */
    CHECK_INT(aq_buckets_add(&chain, AQ_DIRECTION_SENT, second), AQ_OK);
    for (size_t i = 0; i < 5; i++)
        serve(&flows[i], &chain, BULK);
    for (size_t i = 0; i < 5; i++)
        flows[i].moved = 0;
    run(first, second, &chain, 5, began + 20 * SECOND, 0);
    rate = (double)(flows[0].moved + flows[1].moved + flows[2].moved + flows[3].moved + flows[4].moved) /
           ((double)(now - began) / 1e9);
    CHECK(rate < 1.01 * (double)slow);
    CHECK(rate > 0.98 * (double)slow);
    for (size_t i = 1; i < 5; i++)
        CHECK(flows[i].moved > flows[0].moved * 9 / 10 && flows[i].moved < flows[0].moved * 11 / 10);
    stop_waiting(&chain);
    now += SECOND;
    CHECK_INT(aq_buckets_pass(&other, AQ_DIRECTION_SENT, 0, now), 1);
    CHECK_INT(fast_one->level, fast_one->capacity);
    aq_buckets_release(&other);
    end(&chain, first, second);
}

static void test_places(void)
{
    aq_bucket *buckets[] = {new_bucket(1), new_bucket(1), new_bucket(1)};
    aq_buckets chain = {0};

    for (size_t i = 0; i < 3; i++)
        CHECK_INT(aq_buckets_add(&chain, AQ_DIRECTION_RECEIVED, buckets[i]), i < AQ_BUCKETS_MAX ? AQ_OK : AQ_ERR_LIMIT);
    CHECK(!aq_buckets_apply(&chain, AQ_DIRECTION_SENT));
    CHECK(aq_buckets_apply(&chain, AQ_DIRECTION_RECEIVED));
    CHECK_INT(atomic_load(&buckets[0]->references), 2);
    CHECK_INT(atomic_load(&buckets[2]->references), 1);
    aq_buckets_release(&chain);
    CHECK(!aq_buckets_apply(&chain, AQ_DIRECTION_RECEIVED));
    for (size_t i = 0; i < 3; i++)
        aq_bucket_unref(buckets[i]);
}

/* ---- datagrams -------------------------------------------------------------------------------------------------- */

/* More datagrams than the rate: as many pass as the rate allows, to the byte; the others are counted. */
static void test_datagrams(uint64_t rate, size_t length)
{
    aq_bucket *bucket = new_bucket(rate);
    aq_buckets chain = chain_of(bucket, NULL);
    uint64_t began = now, passed = 0, dropped = 0, due;
    const uint64_t step = SECOND * length / rate / 3 + 1; /* three times the rate */
    aq_bucket_info info;

    while (now < began + 20 * SECOND) {
        if (aq_buckets_pass(&chain, AQ_DIRECTION_SENT, length, now))
            passed += length;
        else
            dropped++;
        now += step;
    }
    due = burst_of(rate) + debt_of(rate) + 20 * rate;
    CHECK(passed <= due + length);
    CHECK(passed + 2 * length >= due);
    aq_bucket_get_info(bucket, &info);
    CHECK_INT(info.dropped, (int64_t)dropped);
    CHECK_INT(atomic_exchange(&counters.value[AQ_C_udp_drop_bandwidth], 0), (int64_t)dropped);
    end(&chain, bucket, NULL);
}

/* The largest datagrams pass at the lowest rate, if less often. */
static void test_jumbo(void)
{
    aq_bucket *bucket = new_bucket(1000);
    aq_buckets chain = chain_of(bucket, NULL);
    uint64_t began = now, passed = 0;

    for (; now < began + 1000 * SECOND; now += SECOND)
        passed += aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 65507, now) ? 1U : 0U;
    CHECK(passed >= 14 && passed <= 17); /* 15.3 a thousand seconds, and the burst */
    end(&chain, bucket, NULL);
}

/* A flood of datagrams and a bulk stream get half each; datagrams that need less than half lose none. */
static void test_contention(int flood)
{
    const uint64_t rate = 1250000, began = now;
    const uint64_t step = flood ? SECOND / 10000 : SECOND / 400; /* of 1,200 bytes: 12 MB/s, or 480 kB/s */
    aq_bucket *bucket = new_bucket(rate);
    aq_buckets chain = chain_of(bucket, NULL);
    uint64_t passed = 0, dropped = 0, next, due = 0;

    serve(&flows[0], &chain, BULK);
    flows[0].moved = 0;
    for (next = now; now < began + 20 * SECOND; now = next < due ? next : due) {
        if (next <= now) {
            next += step;
            if (aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 1200, now))
                passed += 1200;
            else
                dropped++;
        }
        if (due <= now) {
            due = aq_bucket_run(bucket, now, set_woken, &counters);
            due = due == UINT64_MAX ? now + TICK : (due / TICK + 1) * TICK;
            /* The engine serves the stream a little later: datagrams come first. */
            if (flood && flows[0].woken && aq_buckets_pass(&chain, AQ_DIRECTION_SENT, 1200, now))
                passed += 1200;
            if (flows[0].woken)
                serve(&flows[0], &chain, BULK);
            told();
        }
    }
    CHECK(passed + flows[0].moved < 20 * rate + 2 * burst_of(rate) + debt_of(rate));
    CHECK(passed + flows[0].moved > 20 * rate - 2 * burst_of(rate) - debt_of(rate));
    if (flood) {
        CHECK(flows[0].moved > 20 * rate * 45 / 100);
        CHECK(passed > 20 * rate * 45 / 100);
    } else {
        CHECK_INT(dropped, 0);
    }
    stop_waiting(&chain);
    end(&chain, bucket, NULL);
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static struct {
    aq_buckets chain;
    aq_bucket *bucket;
    _Atomic uint64_t passed;
    _Atomic int over;
} shared;

/* Takes, waits for grants as a worker does, gives back a part, and lets datagrams pass. */
static void *taker_thread(void *argument)
{
    flow *each = argument;
    uint64_t turns = 0;
    while (!atomic_load(&shared.over)) {
        uint64_t at = aq_now(), taken = aq_buckets_take(&shared.chain, &each->taker, 3000, at);
        if (taken > 0) {
            aq_buckets_moved(&shared.chain, &each->taker, taken, taken / 2, ++turns % 2 != 0);
            each->moved += taken / 2;
        } else if (turns++ % 7 == 0) {
            aq_buckets_settle(&shared.chain, &each->taker, 1);
        }
        if (turns % 64 == 0 && aq_buckets_pass(&shared.chain, AQ_DIRECTION_SENT, 100, at))
            atomic_fetch_add(&shared.passed, 100);
    }
    aq_buckets_settle(&shared.chain, &each->taker, 1);
    return NULL;
}

static void ignore(void *context, aq_taker *taker)
{
    CHECK(context == &counters && taker->is_waiting);
}

static void test_threads(void)
{
    const uint64_t rate = 50000000, began = aq_now();
    pthread_t threads[THREADS];
    uint64_t moved, took;

    now = began;
    shared.bucket = new_bucket(rate);
    shared.chain = chain_of(shared.bucket, NULL);
    for (size_t i = 0; i < THREADS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, taker_thread, &flows[i]), 0);
    while (aq_now() < began + SECOND) {
        told();
        aq_bucket_run(shared.bucket, aq_now(), ignore, &counters);
    }
    atomic_store(&shared.over, 1);
    for (size_t i = 0; i < THREADS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    took = aq_now() - began;
    moved = atomic_load(&shared.passed);
    for (size_t i = 0; i < THREADS; i++)
        moved += flows[i].moved;
    CHECK(moved > 0);
    CHECK((double)moved <= (double)rate * (double)took / 1e9 + (double)(burst_of(rate) + debt_of(rate) + rate / 10));
    end(&shared.chain, shared.bucket, NULL);
}

int main(void)
{
    check_watchdog(60);
    CHECK_INT(aq_wake_init(&wake), 0);
    aq_ready_init(&ready, &wake);
    test_rate(1000, 3600, 0); /* 8 kbit/s, the minimum */
    test_rate(8000, 3600, 0); /* 64 kbit/s */
    test_rate(8000, 3600, 17 * TICK + 3);
    test_rate(12345, 600, 1);
    test_rate(1250000, 100, 0);         /* 10 Mbit/s */
    test_rate(1250000, 100, 60 * TICK); /* a busy machine */
    test_rate(125000000, 20, 0);        /* 1 Gbit/s */
    test_rate(125000000, 20, 80 * TICK);
    test_rate(AQ_BUCKET_RATE_MAX, 2, TICK);
    test_nothing_is_rounded(1);
    test_nothing_is_rounded(8000);
    test_nothing_is_rounded(12345);
    test_nothing_is_rounded(125000000);
    test_idle(8000, 3600 * SECOND);
    test_idle(125000000, 3600 * SECOND);
    test_idle(AQ_BUCKET_RATE_MAX, SECOND * 86400 * 36500);
    test_idle(1, SECOND * 86400 * 36500);
    test_change_of_rate();
    test_fairness();
    test_bulk_does_not_starve();
    test_unused();
    test_chain(0);
    test_chain(1);
    test_places();
    test_datagrams(8000, 1200);
    test_datagrams(1250000, 1200);
    test_datagrams(125000000, 1200);
    test_datagrams(1250000, 65507);
    test_jumbo();
    test_contention(1);
    test_contention(0);
    test_threads();
    CHECK(!told());
    aq_ready_destroy(&ready);
    aq_wake_destroy(&wake);
    return check_done();
}
