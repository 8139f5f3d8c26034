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

/* Watches a UDP socket of the group if none is watched. */
void aq_engine_watch_group(aq_engine *engine, aq_group *group)
{
    aq_members *sockets = &group->sockets;
    aq_id id = 0;
    aq_udp *udp;
    pthread_mutex_lock(&group->mutex);
    if (sockets->watched == NULL && sockets->list.first != NULL) {
        sockets->watched = sockets->list.first;
        id = sockets->watched->id;
    }
    pthread_mutex_unlock(&group->mutex);
    udp = id != 0 ? aq_slab_get(&engine->udps, id) : NULL;
    if (udp == NULL)
        return; /* if it has left meanwhile, the command that closes its descriptor comes next, and leads here again */
    aq_udp_begin_losses(udp);
    if (aq_engine_watch_udp(engine, udp) != AQ_OK) {
        aq_count(&engine->counters, AQ_C_watch_failures, 1);
        aq_engine_back_off(engine, id, udp->fd, UDP_BACK_OFF);
    }
    aq_slab_put(&engine->udps, id);
}

void aq_engine_enter_group(aq_engine *engine, aq_udp *udp)
{
    pthread_mutex_lock(&udp->assocs->mutex);
    pthread_mutex_lock(&udp->group->mutex);
    if (!udp->closed)
        aq_members_enter(&udp->group->sockets, udp->member);
    pthread_mutex_unlock(&udp->group->mutex);
    pthread_mutex_unlock(&udp->assocs->mutex);
    aq_engine_watch_group(engine, udp->group);
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

/* ---- groups ---------------------------------------------------------------------------------------------------- */

static aq_candidate candidate_of(void *context, const aq_member *member)
{
    aq_engine *engine = context;
    aq_candidate candidate = {AQ_FITNESS_GONE, member->sources};
    const aq_conn *conn = aq_slab_get(&engine->connections, member->connection);
    if (conn == NULL)
        return candidate;
    if (aq_conn_fitness(conn) != AQ_FITNESS_GONE) {
        int is_stalled = aq_member_is_stalled(member, conn->last_received, engine->now);
        candidate.fitness = is_stalled ? AQ_FITNESS_SLOW : AQ_FITNESS_FIT;
    }
    aq_slab_put(&engine->connections, member->connection);
    return candidate;
}

/* Gives a message to a member that its source leads to. Returns whether the member took it. */
static int take(aq_engine *engine, aq_udp *udp, const aq_udp_message *message, int is_new, aq_udp_batch *batch,
                uint64_t now)
{
    aq_conn *conn = aq_slab_get(&engine->connections, udp->member->connection);
    int64_t result = AQ_ERR_GONE;
    if (conn == NULL)
        return 0;
    if (conn->quic != NULL)
        result = aq_udp_take(udp, message, batch, now);
    if (result == AQ_OK) {
        if (batch->asked > 0) {
            if (is_new)
                aq_group_given(udp->group, udp->member, conn->last_received, now);
            aq_engine_ask_about(engine, udp, batch);
        }
        if (batch->denied != 0)
            batch->denied = aq_refusals_add(&udp->group->refused[AQ_REFUSED_BY_UDP_RULES], batch->denied, now);
        if (batch->denied != 0)
            aq_engine_tell_denied(engine, udp, batch);
        if (batch->forwarded > 0)
            aq_engine_touch(engine, conn);
    }
    aq_slab_put(&engine->connections, udp->member->connection);
    return result == AQ_OK;
}

/* Passes on the datagrams of a message from a socket of a group. Returns their number. */
static uint32_t pass_on(aq_engine *engine, const aq_udp *reader, const aq_udp_message *message, uint64_t now)
{
    uint8_t key[AQ_MAP_KEY_MAX];
    size_t length = aq_udp_source_key(reader, message, key);
    aq_udp_batch batch;
    int is_new, is_other, is_taken = 0;
    aq_id id = aq_group_route(reader->group, key, length, candidate_of, engine, &is_new, &is_other);
    aq_udp *udp = id != 0 ? aq_slab_get(&engine->udps, id) : NULL;
    if (udp != NULL) {
        is_taken = take(engine, udp, message, is_new, &batch, now);
        aq_slab_put(&engine->udps, id);
    }
    if (!is_taken) {
        /* Its member leaves at this moment, or all are gone. */
        uint32_t datagrams = aq_udp_datagrams(message);
        aq_count(&engine->counters, AQ_C_udp_received, datagrams);
        aq_count(&engine->counters, AQ_C_packet_drop_connection_closed, datagrams);
        return datagrams;
    }
    if (is_other && batch.asked > 0)
        aq_count(&engine->counters, AQ_C_balance_passed_over, 1);
    return batch.received;
}

static void read_group(aq_engine *engine, aq_udp *udp)
{
    aq_udp_message messages[AQ_UDP_MESSAGES];
    uint64_t now = aq_now();
    uint32_t received = 0;
    for (int i = 0; i < UDP_BATCHES; i++) {
        int count = aq_udp_receive_batch(engine->receiver, udp->fd, messages, AQ_UDP_MESSAGES);
        if (count < 0) {
            aq_count(&engine->counters, AQ_C_udp_receive_errors, 1);
            if (!aq_udp_is_transient_error(count)) {
                aq_engine_back_off(engine, udp->id, udp->fd, UDP_BACK_OFF);
                return;
            }
            continue;
        }
        for (int j = 0; j < count; j++)
            received += pass_on(engine, udp, &messages[j], now);
        aq_udp_count_losses(udp, messages, count);
        if (count < AQ_UDP_MESSAGES)
            break;
    }
    if (received > 0 && received <= FEW_DATAGRAMS)
        engine->interactive_at = engine->now;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

void aq_engine_read_udp(aq_engine *engine, aq_id id)
{
    aq_udp *udp = aq_slab_get(&engine->udps, id);
    aq_conn *conn;
    aq_udp_batch batch;
    uint32_t received = 0;
    int64_t result = AQ_OK;
    if (udp == NULL)
        return;
    if (udp->group != NULL) {
        read_group(engine, udp);
        aq_slab_put(&engine->udps, id);
        return;
    }
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
