/* Memory that is short, and memory that is free again. Engine thread only. */
#include "engine.h"

#include <malloc.h>
#include <string.h>

/* Between two looks at how much is in use, and until other threads have freed what they were asked to. */
#define LOOK (10 * AQ_NSEC_PER_MSEC)
/* What goes back to the system takes the engine's time, about 0.1 ms a MiB. So it goes in pieces of this many bytes at
 * once, and what is less, down to the second, once it has stayed free for a while. */
#define GIVE_BACK_AT_ONCE (128ULL * 1024 * 1024)
#define GIVE_BACK_LEAST (8ULL * 1024 * 1024)
#define GIVE_BACK_AFTER AQ_NSEC_PER_SEC
/* What a connection and a stream take besides what is counted, TLS and tables above all; bytes, estimated. */
#define CONNECTION_COST (48ULL * 1024)
#define STREAM_COST (4ULL * 1024)
/* Between two lines of the log about too little memory: it may last. */
#define SAY_AGAIN (60 * AQ_NSEC_PER_SEC)

/* ---- too little ------------------------------------------------------------------------------------------------ */

static aq_conn *who_holds_most(aq_engine *engine)
{
    aq_conn *most = NULL;
    uint64_t held = 0;
    for (size_t i = 0; i < engine->endpoints_length; i++) {
        for (aq_conn *conn = engine->all_endpoints[i]->first; conn != NULL; conn = conn->next) {
            uint64_t its =
                conn->quic == NULL ? 0 : atomic_load_explicit(&conn->credit->account.held, memory_order_relaxed);
            if (its > held) {
                most = conn;
                held = its;
            }
        }
    }
    return held > AQ_ACCOUNT_FREE ? most : NULL;
}

static void say_used_up(aq_engine *engine)
{
    static const char text[] = "receive_memory is used up: connections whose readers are slow are reset for it";
    aq_event event = {.type = AQ_EVENT_LOG, .code = 30, .length = sizeof(text) - 1}; /* as Python's logging has it */
    if (engine->relieve_said != 0 && engine->now - engine->relieve_said < SAY_AGAIN)
        return;
    engine->relieve_said = engine->now;
    memcpy(event.data, text, sizeof(text) - 1);
    aq_events_post(&engine->events, &event);
}

void aq_engine_relieve(void *context)
{
    aq_engine *engine = context;
    /* Each step halves what the largest holds, or ends it; a moment passes where other threads free it. */
    while (engine->now >= engine->relieve_next && aq_budget_is_short(&engine->budget)) {
        aq_conn *conn = who_holds_most(engine);
        if (conn == NULL)
            return; /* what is held belongs to connections that are over, whose streams end in the next turns */
        say_used_up(engine);
        if (aq_conn_shed(conn, engine->now))
            engine->relieve_next = engine->now + LOOK;
    }
}

/* ---- free again ------------------------------------------------------------------------------------------------ */

/* Bytes in use, about: the allocator itself would take long to tell. */
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
    engine->memory_next = engine->now + LOOK;
    bytes = in_use(engine);
    if (bytes > engine->memory_peak)
        engine->memory_peak = bytes;
    fallen = engine->memory_peak - bytes;
    if (fallen >= GIVE_BACK_AT_ONCE) {
        give_back(engine, bytes);
    } else if (fallen < GIVE_BACK_LEAST || fallen < engine->memory_peak / 2) {
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
    return engine->memory_skipped && engine->memory_peak >= GIVE_BACK_LEAST ? engine->memory_next : UINT64_MAX;
}
