/* Buckets that streams wait for: who has waited long enough is granted tokens. Engine thread only. */
#include "engine/engine.h"

/* Buckets are looked at on whole milliseconds, so that any number of them cause at most a thousand timers a second.
 * What accrues in a bucket meanwhile is not lost, see bucket.c. Nanoseconds. */
#define TICK AQ_NSEC_PER_MSEC

void aq_engine_use_bucket(aq_engine *engine, aq_bucket *bucket)
{
    if (bucket->is_listed) {
        aq_bucket_unref(bucket); /* the list has one already */
    } else {
        bucket->is_listed = 1;
        AQ_LIST_ADD_LAST(&engine->buckets_in_use, bucket, engine_link);
    }
    bucket->due = 0;
    engine->buckets_at = 0;
}

static void stop_using(aq_engine *engine, aq_bucket *bucket)
{
    bucket->is_listed = 0;
    AQ_LIST_REMOVE(&engine->buckets_in_use, bucket, engine_link);
    aq_bucket_unref(bucket);
}

static void wake(void *engine, aq_taker *taker)
{
    aq_engine_touch_stream(engine, aq_stream_of_taker(taker));
}

static uint64_t next_tick(uint64_t time)
{
    return time < UINT64_MAX - TICK ? (time / TICK + 1) * TICK : UINT64_MAX;
}

void aq_engine_run_buckets(aq_engine *engine)
{
    aq_bucket *bucket, *next;
    engine->buckets_at = UINT64_MAX;
    for (bucket = engine->buckets_in_use.first; bucket != NULL; bucket = next) {
        next = bucket->engine_link.next;
        if (bucket->due <= engine->now)
            bucket->due = next_tick(aq_bucket_run(bucket, engine->now, wake, engine));
        if (bucket->due < engine->buckets_at)
            engine->buckets_at = bucket->due;
        if (bucket->due == UINT64_MAX)
            stop_using(engine, bucket);
    }
}

void aq_engine_release_buckets(aq_engine *engine)
{
    while (engine->buckets_in_use.first != NULL)
        stop_using(engine, engine->buckets_in_use.first);
}
