/* Token buckets: limits on the payload of connections. bucket.c describes the design.
 *
 * A bucket has a rate and is shared by any number of connections, streams and associations. A connection refers to up
 * to AQ_BUCKETS_MAX buckets per direction (aq_buckets), and its payload needs tokens of all of them, one per byte:
 *
 *   stream bytes: aq_buckets_take() before, aq_buckets_moved() after; without tokens the stream waits in a queue of the
 *                 bucket until the engine thread grants it some (aq_bucket_run)
 *   datagrams:    aq_buckets_pass(); without tokens they are dropped
 *
 * Any thread. Locks: a bucket's mutex is taken after that of a table of associations, and before that of a slab; never
 * two buckets' at a time.
 */
#ifndef AQ_BUCKET_H
#define AQ_BUCKET_H

#include "aq.h"
#include "core/counters.h"
#include "core/list.h"
#include "core/ready.h"

#include <pthread.h>
#include <stdatomic.h>

/* Maximum rate, bytes per second: 100 Gbit/s. Levels of ten times as much would still fit in 64 bits. */
#define AQ_BUCKET_RATE_MAX 12500000000ULL
/* Buckets of a connection in one direction: those of its user and of the user's entry of `proxies` on a server, that of
 * its tunnel on a client. */
#define AQ_BUCKETS_MAX 2
#define AQ_DIRECTIONS 2 /* enum aq_direction */

/* One direction of a stream, as a consumer of buckets. Its owner is the owner of the stream's socket. */
typedef struct aq_taker {
    AQ_LINK(struct aq_taker) link; /* in a queue of the bucket that it waits for; guarded by that bucket's mutex */
    /* Bytes granted by that bucket at the end of the wait; 0: it still waits. Set with the bucket's mutex held, cleared
     * by the owner with the mutex held. */
    _Atomic uint64_t granted;
    uint64_t wanted;    /* bytes asked for; set by the owner before it waits, then guarded by that mutex */
    uint64_t held;      /* owner only: bytes taken from each bucket in front of that one */
    uint8_t direction;  /* immutable */
    uint8_t place;      /* owner only: index of that bucket in the chain */
    uint8_t is_waiting; /* owner only: in the queue, or `granted` is not taken yet */
    uint8_t is_bulk;    /* owner only, constant while it waits: more was left after its last bytes */
} aq_taker;

typedef struct aq_bucket {
    aq_ready_node node; /* first member; queued: the engine looks at the bucket */
    _Atomic uint32_t references;
    aq_ready *ready; /* immutable, as is the next line */
    aq_counters *counters;

    /* engine only */
    AQ_LINK(struct aq_bucket) engine_link; /* in the engine's list of buckets with waiting streams */
    uint64_t due;                          /* time at which to call aq_bucket_run() */
    int is_listed;

    pthread_mutex_t mutex;
    uint64_t rate;               /* bytes per second; 0: no limit; guarded by mutex, as is all below */
    uint64_t quantum;            /* maximum bytes of a grant */
    int64_t capacity;            /* maximum level, in tokens as below */
    int64_t late;                /* tokens beyond it that may accrue while streams wait */
    int64_t debt;                /* tokens that datagrams may owe */
    uint64_t at;                 /* time of the last refill */
    int64_t level;               /* tokens, in billionths of a byte; negative: debt */
    int64_t share;               /* likewise: what datagrams may have while streams compete with them */
    uint64_t contended;          /* streams compete until this time, even if none waits */
    AQ_LIST(aq_taker) queues[2]; /* waiting streams by is_bulk, longest wait first */
    int bulk_is_next;            /* which queue is served next */
    uint64_t waits;              /* how often a stream has waited */
    uint64_t dropped;            /* datagrams dropped */
} aq_bucket;

/* [any] Creates a full bucket with one reference; NULL: no memory. rate: bytes per second, at most AQ_BUCKET_RATE_MAX;
 * 0: no limit. */
aq_bucket *aq_bucket_new(uint64_t rate, aq_ready *ready, aq_counters *counters, uint64_t now);
void aq_bucket_ref(aq_bucket *bucket);
void aq_bucket_unref(aq_bucket *bucket);
/* [any] Changes the rate, at once also for streams that wait. */
void aq_bucket_set_rate(aq_bucket *bucket, uint64_t rate, uint64_t now);
void aq_bucket_get_info(aq_bucket *bucket, aq_bucket_info *info); /* [any] */

/* [engine] Grants tokens to waiting streams, and calls wake() for each of these, with the mutex held. Returns when to
 * call it again; UINT64_MAX: nothing waits, and the list of ready objects will name the bucket once something does. */
uint64_t aq_bucket_run(aq_bucket *bucket, uint64_t now, void (*wake)(void *context, aq_taker *taker), void *context);

/* The buckets of a connection, by direction, filled from index 0 on. All zeros: none. A bucket stays until the end,
 * so that any thread may use it without a lock; to lift its limit, set its rate to 0. */
typedef struct aq_buckets {
    _Atomic(aq_bucket *) chain[AQ_DIRECTIONS][AQ_BUCKETS_MAX]; /* each with a reference */
} aq_buckets;

/* [any] Adds a bucket, with a reference of its own. Returns AQ_OK, also if the bucket is there already, or
 * AQ_ERR_LIMIT.
 */
int aq_buckets_add(aq_buckets *buckets, int direction, aq_bucket *bucket);
void aq_buckets_release(aq_buckets *buckets); /* nothing uses it any more */

/* [any] Returns whether there is a bucket: the one branch that payload without a limit costs. */
static inline int aq_buckets_apply(const aq_buckets *buckets, int direction)
{
    return atomic_load_explicit(&buckets->chain[direction][0], memory_order_acquire) != NULL;
}

/* [owner] Takes tokens for at most `want` (> 0) bytes. Returns for how many; 0: the taker waits, and wake() will be
 * called for it. To be followed by aq_buckets_moved() if it is not 0. */
uint64_t aq_buckets_take(aq_buckets *buckets, aq_taker *taker, uint64_t want, uint64_t now);
/* [owner] Gives back the tokens of `taken` bytes of which only `moved` have moved. more: whether further bytes are
 * known to be there. */
void aq_buckets_moved(aq_buckets *buckets, aq_taker *taker, uint64_t taken, uint64_t moved, int more);
/* [owner] Call before the owner turns to other work: gives back a grant that could not be used. is_over: also stops
 * waiting, because nothing moves any more. */
void aq_buckets_settle(aq_buckets *buckets, aq_taker *taker, int is_over);

int aq_buckets_pass_all(aq_buckets *buckets, int direction, size_t length, uint64_t now);
/* [any] Takes tokens for a datagram. Returns 0 if it has to be dropped, which is counted. */
static inline int aq_buckets_pass(aq_buckets *buckets, int direction, size_t length, uint64_t now)
{
    return !aq_buckets_apply(buckets, direction) || aq_buckets_pass_all(buckets, direction, length, now);
}

#endif
