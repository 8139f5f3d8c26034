/* Public and local UDP sockets: what they receive is queued for the peer, new sources and refusals are reported. */
#include "engine/engine.h"

#include <errno.h>
#include <sys/epoll.h>

#define FEW_DATAGRAMS 4 /* at a time: someone may wait for the answer to them */
#define UDP_BATCHES 4   /* recvmmsg calls per public or local UDP socket */
/* A socket with this many datagrams in this time is worth waking the pump for: 80,000 per second. */
#define UDP_BUSY_DATAGRAMS 20000
#define UDP_BUSY_TIME (250 * AQ_NSEC_PER_MSEC)
#define UDP_REFUSALS_APART AQ_NSEC_PER_SEC    /* minimum interval between events about one local socket */
#define UDP_BACK_OFF (100 * AQ_NSEC_PER_MSEC) /* back-off of a UDP socket that cannot be read now */

int64_t aq_engine_watch_udp(aq_engine *engine, aq_udp *udp)
{
    struct epoll_event interest = {.events = EPOLLIN, .data.u64 = (uint64_t)udp->id};
    udp->busy_datagrams = 0;
    udp->busy_since = aq_now(); /* not engine->now, which other threads must not read */
    if (epoll_ctl(engine->epoll, EPOLL_CTL_ADD, udp->fd, &interest) != 0 && errno != EEXIST)
        return AQ_ERR_SYSTEM - errno;
    return AQ_OK;
}

void aq_engine_ask_about(aq_engine *engine, aq_udp *udp, const aq_udp_batch *batch)
{
    aq_event event = {.type = AQ_EVENT_SOURCE_UNKNOWN, .socket = udp->id};
    aq_conn *conn = aq_slab_get(&engine->connections, udp->assocs->connection);
    for (uint32_t i = 0; i < batch->asked; i++) {
        event.peer = batch->sources[i].peer;
        event.local = batch->sources[i].local;
        if (conn == NULL || !aq_conn_post(conn, &event))
            aq_udp_drop_source(udp, &batch->sources[i]);
    }
    if (conn != NULL)
        aq_slab_put(&engine->connections, udp->assocs->connection);
}

/* Returns whether the pump should read the socket from now on. */
static int wants_pump(aq_engine *engine, aq_udp *udp, uint32_t received)
{
    int is_busy;
    udp->busy_datagrams += received;
    if (udp->busy_datagrams < UDP_BUSY_DATAGRAMS)
        return 0;
    is_busy = engine->now - udp->busy_since < UDP_BUSY_TIME;
    udp->busy_datagrams = 0;
    udp->busy_since = engine->now;
    return is_busy && atomic_load_explicit(&engine->pump_shares, memory_order_relaxed);
}

static void hand_to_pump(aq_engine *engine, const aq_udp *udp)
{
    aq_event event = {.type = AQ_EVENT_UDP_LARGE_TRANSFER, .connection = udp->assocs->connection, .socket = udp->id};
    epoll_ctl(engine->epoll, EPOLL_CTL_DEL, udp->fd, NULL);
    aq_count(&engine->counters, AQ_C_udp_shared, 1);
    aq_events_post(&engine->events, &event);
}

void aq_engine_tell_refused(aq_conn *conn, aq_udp *udp, const aq_udp_batch *batch, uint64_t now)
{
    aq_event event = {.type = AQ_EVENT_UDP_REFUSED, .socket = udp->id, .code = (uint64_t)batch->refused};
    event.value = (uint64_t)batch->was_answered;
    if (now >= udp->refusal_told_until && aq_conn_post(conn, &event))
        udp->refusal_told_until = now + UDP_REFUSALS_APART;
}

void aq_engine_tell_denied(aq_engine *engine, const aq_udp *udp, const aq_udp_batch *batch)
{
    aq_event event = {.type = AQ_EVENT_VISITORS_REFUSED, .code = AQ_REFUSED_BY_UDP_RULES};
    aq_conn *conn = aq_slab_get(&engine->connections, udp->assocs->connection);
    if (conn == NULL)
        return;
    event.value = batch->denied;
    event.peer = batch->denied_peer;
    aq_conn_post(conn, &event);
    aq_slab_put(&engine->connections, udp->assocs->connection);
}

void aq_engine_read_udp(aq_engine *engine, aq_id id)
{
    aq_udp *udp = aq_slab_get(&engine->udps, id);
    aq_conn *conn;
    aq_udp_batch batch;
    uint32_t received = 0;
    int64_t result = AQ_OK;
    if (udp == NULL)
        return;
    conn = aq_slab_get(&engine->connections, udp->assocs->connection);
    if (conn == NULL)
        result = AQ_ERR_GONE;
    for (int i = 0; i < UDP_BATCHES && result == AQ_OK; i++) {
        result = aq_udp_read(udp, engine->receiver, &batch);
        if (result != AQ_OK)
            break;
        if (batch.asked > 0)
            aq_engine_ask_about(engine, udp, &batch);
        received += batch.received;
        if (batch.refused != 0)
            aq_engine_tell_refused(conn, udp, &batch, engine->now);
        if (batch.denied != 0)
            aq_engine_tell_denied(engine, udp, &batch);
        if (batch.forwarded > 0)
            aq_engine_touch(engine, conn);
        if (!batch.more)
            break;
    }
    if (received > 0 && received <= FEW_DATAGRAMS)
        engine->interactive_at = engine->now;
    if (result == AQ_ERR_GONE) {
        epoll_ctl(engine->epoll, EPOLL_CTL_DEL, udp->fd, NULL); /* Python is about to close it */
    } else if (result != AQ_OK) {
        aq_count(&engine->counters, AQ_C_udp_receive_errors, 1);
        aq_engine_back_off(engine, id, udp->fd, UDP_BACK_OFF);
    } else if (wants_pump(engine, udp, received)) {
        hand_to_pump(engine, udp);
    }
    if (conn != NULL)
        aq_slab_put(&engine->connections, udp->assocs->connection);
    aq_slab_put(&engine->udps, id);
}
