/* Token buckets
 *
 * What is limited: payload, that is, bytes of TCP connections and of UDP datagrams; not headers, retransmissions or
 * anything else that QUIC adds. Each end of a tunnel can limit both directions alone:
 *
 *   read from a socket, sent to the peer    the socket is not read without tokens: the TCP peer is held back by its
 *                                           window
 *   received from the peer, written to a    the socket is not written without tokens: the QUIC window follows what has
 *   socket                                  been written, so the peer is held back by flow control
 *
 * Level. Tokens are counted in billionths of a byte, so that the rate (bytes per second) times the elapsed time
 * (nanoseconds) is a whole number of them: nothing is ever rounded, however often the bucket is refilled. The level has
 * a maximum, the burst: 10 ms at the rate, and at least 16 KiB. While a stream waits, 100 ms more may accrue: a timer
 * that is late does not lower the rate.
 *
 * Streams take tokens before they move bytes and give back what they did not use. If there are too few (less than a
 * quantum, if they have so much to move), they wait in a queue of the bucket; and while one waits, so do all that come
 * later. The engine's timer grants each of them up to a quantum in turn: 4 ms at the rate, within 1 KiB and 256 KiB, so
 * that a fast bucket causes about 250 wake-ups a second, and a slow one does not send tiny packets. A stream that had
 * moved all its data before it had to wait is sparse (an interactive one); others are bulk. Each kind has a queue, and
 * the two are served alternately: an interactive stream waits for about two quanta, however many bulk streams there
 * are, and these get at least half of the rate, however many sparse ones there are. A grant that is not used by the
 * end of the next transfer, for lack of room or of data, is given back.
 *
 * A stream with two buckets waits for one after the other, and keeps the tokens of the first meanwhile. That is no
 * deadlock, because tokens come with time.
 *
 * Datagrams never wait: nothing could bound their delay. They pass while the bucket owes less than 40 ms at its rate
 * (which is therefore how long a burst may be in addition to the bucket's own), and a datagram passes or is dropped as
 * a whole, so that one of 64 KiB passes at any rate. While streams compete with them (one waits, or has waited within
 * the last 100 ms), datagrams are sure of half of the rate and get no more than that: a flood of datagrams does not
 * starve the streams, which leave the level near 0 and would otherwise starve the datagrams.
 *
 * Threads. Workers, the pump and the engine take tokens, each holding the bucket's mutex for a few instructions. Only
 * the engine thread grants; it is told by the list of ready objects when a stream begins to wait in an empty bucket.
 */
#include "core/bucket.h"

#include <stdlib.h>

#define TOKENS 1000000000LL /* per byte: with time in nanoseconds, a rate in bytes per second needs no division */

/* Fractions of a second at the rate. */
#define BURST_PER_SECOND 100  /* 10 ms */
#define QUANTA_PER_SECOND 250 /* 4 ms */
#define DEBT_PER_SECOND 25    /* 40 ms: about the delay that real-time applications tolerate */
#define LATE_PER_SECOND 10    /* 100 ms: more than a busy machine delays a thread for */
/* Bytes. */
#define BURST_MIN (16ULL * 1024)    /* several packets of any path, and what a handshake of TLS takes */
#define QUANTUM_MIN 1024ULL         /* so much that headers do not outweigh it */
#define QUANTUM_MAX (256ULL * 1024) /* one read or write of a relay; larger ones save nothing */
/* Streams compete with datagrams for this long after one has waited: a bulk stream waits again much sooner. */
#define CONTENDED (100 * AQ_NSEC_PER_MSEC)

static int64_t tokens_of(uint64_t bytes)
{
    return (int64_t)bytes * TOKENS;
}

static uint64_t at_least(uint64_t bytes, uint64_t minimum)
{
    return bytes > minimum ? bytes : minimum;
}

static int has_waiters(const aq_bucket *bucket)
{
    return bucket->queues[0].first != NULL || bucket->queues[1].first != NULL;
}

/* Returns the stream to be served next; NULL: none waits. The mutex is held, as for all functions up to put_back(). */
static aq_taker *next_taker(const aq_bucket *bucket)
{
    aq_taker *first = bucket->queues[bucket->bulk_is_next].first;
    return first != NULL ? first : bucket->queues[!bucket->bulk_is_next].first;
}

/* Returns the bytes for which there must be tokens before a stream that wants so many may go on. */
static uint64_t enough_for(const aq_bucket *bucket, uint64_t want)
{
    return want < bucket->quantum ? want : bucket->quantum;
}

/* Returns a level after `elapsed` nanoseconds at `rate`. A level above the maximum stays. */
static int64_t refilled(int64_t level, int64_t max, uint64_t rate, uint64_t elapsed)
{
    if (level >= max)
        return level;
    if (elapsed > (uint64_t)(max - level) / rate)
        return max;
    return level + (int64_t)(elapsed * rate); /* at most max - level */
}

static int64_t max_level(const aq_bucket *bucket)
{
    return bucket->capacity + (has_waiters(bucket) ? bucket->late : 0);
}

static void refill(aq_bucket *bucket, uint64_t now)
{
    uint64_t elapsed = now > bucket->at ? now - bucket->at : 0;
    if (elapsed == 0)
        return;
    bucket->at = now;
    if (bucket->rate == 0)
        return;
    bucket->level = refilled(bucket->level, max_level(bucket), bucket->rate, elapsed);
    if (bucket->rate > 1)
        bucket->share = refilled(bucket->share, bucket->debt, bucket->rate / 2, elapsed);
}

/* Gives tokens back that were taken and not used. A bucket that has become full meanwhile does not overflow. */
static void put_back(aq_bucket *bucket, uint64_t bytes)
{
    int64_t max = max_level(bucket);
    if (bucket->rate == 0 || bucket->level >= max)
        return;
    bucket->level += tokens_of(bytes);
    if (bucket->level > max)
        bucket->level = max;
}

static void apply_rate(aq_bucket *bucket, uint64_t rate)
{
    uint64_t quantum = at_least(rate / QUANTA_PER_SECOND, QUANTUM_MIN);
    bucket->rate = rate;
    bucket->quantum = quantum < QUANTUM_MAX ? quantum : QUANTUM_MAX;
    bucket->capacity = tokens_of(at_least(rate / BURST_PER_SECOND, BURST_MIN));
    bucket->late = tokens_of(rate / LATE_PER_SECOND);
    bucket->debt = tokens_of(at_least(rate / DEBT_PER_SECOND, QUANTUM_MIN));
}

/* Has the engine look at the bucket. The mutex is not held. */
static void signal_engine(aq_bucket *bucket)
{
    aq_bucket_ref(bucket);
    if (!aq_ready_add(bucket->ready, &bucket->node))
        aq_bucket_unref(bucket);
}

/* Returns whether the next stream need not wait any longer. The mutex is held. */
static int is_due(const aq_bucket *bucket)
{
    const aq_taker *taker = next_taker(bucket);
    return taker != NULL && (bucket->rate == 0 || bucket->level >= tokens_of(enough_for(bucket, taker->wanted)));
}

/* ---- buckets --------------------------------------------------------------------------------------------------- */

aq_bucket *aq_bucket_new(uint64_t rate, aq_ready *ready, aq_counters *counters, uint64_t now)
{
    aq_bucket *bucket = calloc(1, sizeof(*bucket));
    if (bucket == NULL)
        return NULL;
    bucket->node.kind = AQ_READY_BUCKET;
    atomic_init(&bucket->references, 1);
    bucket->ready = ready;
    bucket->counters = counters;
    pthread_mutex_init(&bucket->mutex, NULL);
    apply_rate(bucket, rate);
    bucket->at = now;
    bucket->level = bucket->capacity;
    bucket->share = bucket->debt;
    return bucket;
}

void aq_bucket_ref(aq_bucket *bucket)
{
    atomic_fetch_add_explicit(&bucket->references, 1, memory_order_relaxed);
}

void aq_bucket_unref(aq_bucket *bucket)
{
    if (atomic_fetch_sub_explicit(&bucket->references, 1, memory_order_acq_rel) != 1)
        return;
    pthread_mutex_destroy(&bucket->mutex);
    free(bucket);
}

static int64_t within(int64_t value, int64_t low, int64_t high)
{
    if (value < low)
        return low;
    return value < high ? value : high;
}

void aq_bucket_set_rate(aq_bucket *bucket, uint64_t rate, uint64_t now)
{
    uint64_t before;
    pthread_mutex_lock(&bucket->mutex);
    refill(bucket, now);
    before = bucket->rate;
    apply_rate(bucket, rate);
    /* What was owed or saved at a high rate is not paid off or spent for minutes at a low one. */
    bucket->level = before == 0 ? bucket->capacity : within(bucket->level, -bucket->debt, bucket->capacity);
    bucket->share = before == 0 ? bucket->debt : within(bucket->share, -bucket->debt, bucket->debt);
    pthread_mutex_unlock(&bucket->mutex);
    signal_engine(bucket); /* the time of the next grant is another one */
}

void aq_bucket_get_info(aq_bucket *bucket, aq_bucket_info *info)
{
    pthread_mutex_lock(&bucket->mutex);
    info->rate = bucket->rate;
    info->waits = bucket->waits;
    info->dropped = bucket->dropped;
    pthread_mutex_unlock(&bucket->mutex);
}

/* The mutex is held. */
static void dequeue(aq_bucket *bucket, aq_taker *taker)
{
    AQ_LIST_REMOVE(&bucket->queues[taker->is_bulk], taker, link);
}

uint64_t aq_bucket_run(aq_bucket *bucket, uint64_t now, void (*wake)(void *context, aq_taker *taker), void *context)
{
    const aq_taker *next;
    uint64_t due = UINT64_MAX;
    pthread_mutex_lock(&bucket->mutex);
    refill(bucket, now);
    while (is_due(bucket)) {
        aq_taker *taker = next_taker(bucket);
        uint64_t grant = enough_for(bucket, taker->wanted);
        dequeue(bucket, taker);
        bucket->bulk_is_next = !taker->is_bulk;
        bucket->contended = now + CONTENDED;
        bucket->level -= bucket->rate == 0 ? 0 : tokens_of(grant);
        /* The owner may go on as soon as this is set, but it cannot leave the bucket before the mutex is released. */
        atomic_store(&taker->granted, grant);
        wake(context, taker);
    }
    next = next_taker(bucket);
    if (next != NULL) {
        uint64_t missing = (uint64_t)(tokens_of(enough_for(bucket, next->wanted)) - bucket->level);
        due = now + missing / bucket->rate + 1;
    }
    pthread_mutex_unlock(&bucket->mutex);
    return due;
}

/* ---- chains of buckets ------------------------------------------------------------------------------------------ */

int aq_buckets_add(aq_buckets *buckets, int direction, aq_bucket *bucket)
{
    for (size_t i = 0; i < AQ_BUCKETS_MAX; i++) {
        aq_bucket *there = NULL;
        aq_bucket_ref(bucket);
        if (atomic_compare_exchange_strong(&buckets->chain[direction][i], &there, bucket))
            return AQ_OK;
        aq_bucket_unref(bucket);
        if (there == bucket)
            return AQ_OK;
    }
    return AQ_ERR_LIMIT;
}

void aq_buckets_release(aq_buckets *buckets)
{
    for (size_t direction = 0; direction < AQ_DIRECTIONS; direction++) {
        for (size_t i = 0; i < AQ_BUCKETS_MAX; i++) {
            aq_bucket *bucket = atomic_exchange(&buckets->chain[direction][i], NULL);
            if (bucket != NULL)
                aq_bucket_unref(bucket);
        }
    }
}

static aq_bucket *bucket_at(const aq_buckets *buckets, int direction, size_t place)
{
    return place < AQ_BUCKETS_MAX ? atomic_load_explicit(&buckets->chain[direction][place], memory_order_acquire)
                                  : NULL;
}

/* Gives tokens of unused bytes back to the first `count` buckets of a chain. */
static void give_back(const aq_buckets *buckets, int direction, size_t count, uint64_t bytes)
{
    for (size_t i = 0; i < count && bytes > 0; i++) {
        aq_bucket *bucket = bucket_at(buckets, direction, i);
        int due;
        if (bucket == NULL)
            return;
        pthread_mutex_lock(&bucket->mutex);
        put_back(bucket, bytes);
        due = is_due(bucket);
        pthread_mutex_unlock(&bucket->mutex);
        if (due)
            signal_engine(bucket);
    }
}

/* Takes tokens of one bucket. Returns for how many bytes; 0: the taker waits. */
static uint64_t take(aq_bucket *bucket, aq_taker *taker, uint64_t want, uint64_t now)
{
    uint64_t amount = want, unused = 0;
    int is_first = 0, due;
    pthread_mutex_lock(&bucket->mutex);
    refill(bucket, now);
    if (taker->is_waiting) {
        uint64_t granted = atomic_exchange(&taker->granted, 0); /* not 0, as the caller has checked */
        taker->is_waiting = 0;
        if (bucket->rate != 0) {
            amount = granted < want ? granted : want;
            unused = granted - amount;
            put_back(bucket, unused);
        }
    } else if (bucket->rate != 0 && !has_waiters(bucket) && bucket->level >= tokens_of(enough_for(bucket, want))) {
        uint64_t left = (uint64_t)(bucket->level / TOKENS);
        amount = left < want ? left : want;
        bucket->level -= tokens_of(amount);
    } else if (bucket->rate != 0 || has_waiters(bucket)) {
        amount = 0;
        is_first = !has_waiters(bucket);
        taker->wanted = want;
        taker->is_waiting = 1;
        AQ_LIST_ADD_LAST(&bucket->queues[taker->is_bulk], taker, link);
        bucket->waits++;
        aq_count(bucket->counters, AQ_C_bandwidth_waits, 1);
    }
    due = is_first || (unused > 0 && is_due(bucket));
    pthread_mutex_unlock(&bucket->mutex);
    if (due)
        signal_engine(bucket);
    return amount;
}

uint64_t aq_buckets_take(aq_buckets *buckets, aq_taker *taker, uint64_t want, uint64_t now)
{
    size_t place = taker->is_waiting ? taker->place : 0;
    uint64_t paid = taker->held; /* to each bucket in front of `place` */
    uint64_t amount = place > 0 && paid < want ? paid : want;
    aq_bucket *bucket;
    if (taker->is_waiting && atomic_load(&taker->granted) == 0)
        return 0;
    for (; (bucket = bucket_at(buckets, taker->direction, place)) != NULL; place++) {
        uint64_t got = take(bucket, taker, amount, now);
        if (got == 0) {
            taker->place = (uint8_t)place;
            taker->held = paid;
            return 0;
        }
        give_back(buckets, taker->direction, place, place > 0 ? paid - got : 0);
        paid = amount = got;
    }
    taker->held = 0;
    return amount;
}

void aq_buckets_moved(aq_buckets *buckets, aq_taker *taker, uint64_t taken, uint64_t moved, int more)
{
    taker->is_bulk = more != 0;
    give_back(buckets, taker->direction, AQ_BUCKETS_MAX, taken - moved);
}

void aq_buckets_settle(aq_buckets *buckets, aq_taker *taker, int is_over)
{
    aq_bucket *bucket;
    uint64_t granted;
    int due;
    if (!taker->is_waiting || (!is_over && atomic_load(&taker->granted) == 0))
        return;
    bucket = bucket_at(buckets, taker->direction, taker->place);
    pthread_mutex_lock(&bucket->mutex);
    granted = atomic_exchange(&taker->granted, 0);
    if (granted == 0)
        dequeue(bucket, taker);
    else
        put_back(bucket, granted);
    due = is_due(bucket);
    pthread_mutex_unlock(&bucket->mutex);
    if (due)
        signal_engine(bucket);
    taker->is_waiting = 0;
    give_back(buckets, taker->direction, taker->place, taker->held);
    taker->held = 0;
}

/* ---- datagrams -------------------------------------------------------------------------------------------------- */

static int pass(aq_bucket *bucket, size_t length, uint64_t now)
{
    int may_pass = 1;
    pthread_mutex_lock(&bucket->mutex);
    refill(bucket, now);
    if (bucket->rate != 0) {
        int is_contended = has_waiters(bucket) || now < bucket->contended;
        may_pass = is_contended ? bucket->share > 0 : bucket->level > -bucket->debt;
        if (may_pass && is_contended)
            bucket->share -= tokens_of(length);
    }
    if (may_pass) {
        bucket->level -= bucket->rate == 0 ? 0 : tokens_of(length);
    } else {
        bucket->dropped++;
        aq_count(bucket->counters, AQ_C_udp_drop_bandwidth, 1);
    }
    pthread_mutex_unlock(&bucket->mutex);
    return may_pass;
}

int aq_buckets_pass_all(aq_buckets *buckets, int direction, size_t length, uint64_t now)
{
    aq_bucket *bucket;
    for (size_t i = 0; (bucket = bucket_at(buckets, direction, i)) != NULL; i++) {
        if (!pass(bucket, length, now)) {
            give_back(buckets, direction, i, length);
            return 0;
        }
    }
    return 1;
}
