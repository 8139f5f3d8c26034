/* Load shedding while memory is short, and returning free memory to the system. Engine thread only. */
#include "engine/engine.h"

#include <malloc.h>
#include <string.h>

/* Interval between checks of memory use, and the time that other threads have to free memory after load shedding. */
#define CHECK_PERIOD (10 * AQ_NSEC_PER_MSEC)
/* Returning memory to the system costs engine time, about 0.1 ms per MiB. So it is returned immediately in pieces of
 * the first size, and in smaller pieces, down to the second size, only after they have been free for a while. */
#define GIVE_BACK_AT_ONCE (128ULL * 1024 * 1024)
#define GIVE_BACK_MIN (8ULL * 1024 * 1024)
#define GIVE_BACK_AFTER AQ_NSEC_PER_SEC
/* Estimated bytes of a connection and a stream in addition to those that are counted, mostly TLS and tables. */
#define CONNECTION_COST (48ULL * 1024)
#define STREAM_COST (4ULL * 1024)
/* Minimum interval between log lines about a lack of memory, which may last. */
#define LOG_AGAIN (60 * AQ_NSEC_PER_SEC)

/* ---- load shedding ----------------------------------------------------------------------------------------------- */

static aq_conn *who_holds_most(aq_engine *engine)
{
    aq_conn *max = NULL;
    uint64_t held = 0;
    for (size_t i = 0; i < engine->endpoints_length; i++) {
        for (aq_conn *conn = engine->all_endpoints[i]->conns.first; conn != NULL; conn = conn->endpoint_link.next) {
            uint64_t its =
                conn->quic == NULL ? 0 : atomic_load_explicit(&conn->credit->account.held, memory_order_relaxed);
            if (its > held) {
                max = conn;
                held = its;
            }
        }
    }
    return held > AQ_ACCOUNT_FREE ? max : NULL;
}

static void log_used_up(aq_engine *engine)
{
    static const char text[] = "receive_memory is used up: resetting connections with slow readers";
    aq_event event = {.type = AQ_EVENT_LOG_RECORD, .code = 30, .length = sizeof(text) - 1}; /* logging.WARNING */
    if (engine->shed_logged != 0 && engine->now - engine->shed_logged < LOG_AGAIN)
        return;
    engine->shed_logged = engine->now;
    memcpy(event.data, text, sizeof(text) - 1);
    aq_events_post(&engine->events, &event);
}

void aq_engine_shed_load(void *context)
{
    aq_engine *engine = context;
    /* Each step takes at most half of what the largest holder has, or closes it. If other threads free the memory, the
     * next step waits for them. */
    while (engine->now >= engine->shed_next && aq_budget_is_short(&engine->budget)) {
        aq_conn *conn = who_holds_most(engine);
        int is_enough;
        if (conn == NULL)
            return; /* the rest belongs to ended connections, whose streams end in the next turns */
        log_used_up(engine);
        if (aq_conn_shed(conn, engine->now, &is_enough))
            engine->shed_next = engine->now + CHECK_PERIOD;
        if (!is_enough) {
            aq_count(&engine->counters, AQ_C_connections_shed, 1);
            aq_conn_close(conn, AQ_CLOSE_LOCAL, 0, "receive budget exhausted", engine->now);
        }
    }
}

/* ---- returning memory -------------------------------------------------------------------------------------------- */

/* Returns the approximate number of bytes in use; asking the allocator would take too long. */
static uint64_t in_use(aq_engine *engine)
{
    return atomic_load_explicit(&engine->pool.live, memory_order_relaxed) +
           atomic_load_explicit(&engine->budget.library, memory_order_relaxed) +
           aq_slab_count(&engine->connections) * CONNECTION_COST + aq_slab_count(&engine->streams) * STREAM_COST;
}

static void give_back(aq_engine *engine, uint64_t now_in_use)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
    engine->memory_peak = now_in_use;
    engine->memory_fell_at = 0;
}

void aq_engine_give_back_memory(aq_engine *engine)
{
    uint64_t bytes, fallen;
    engine->memory_skipped = engine->now < engine->memory_next;
    if (engine->memory_skipped)
        return;
    engine->memory_next = engine->now + CHECK_PERIOD;
    bytes = in_use(engine);
    if (bytes > engine->memory_peak)
        engine->memory_peak = bytes;
    fallen = engine->memory_peak - bytes;
    if (fallen >= GIVE_BACK_AT_ONCE) {
        give_back(engine, bytes);
    } else if (fallen < GIVE_BACK_MIN || fallen < engine->memory_peak / 2) {
        engine->memory_fell_at = 0;
    } else if (engine->memory_fell_at == 0) {
        engine->memory_fell_at = engine->now;
    } else if (engine->now - engine->memory_fell_at >= GIVE_BACK_AFTER) {
        aq_pool_shrink(&engine->pool);
        give_back(engine, bytes);
    }
}

uint64_t aq_engine_memory_timer(const aq_engine *engine)
{
    if (engine->memory_fell_at != 0)
        return engine->memory_fell_at + GIVE_BACK_AFTER;
    return engine->memory_skipped && engine->memory_peak >= GIVE_BACK_MIN ? engine->memory_next : UINT64_MAX;
}
