/* The functions of aq_api.h for TCP streams and UDP packets. */
#include "engine/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

/* ---- streams ----------------------------------------------------------------------------------------------------- */

static aq_id open_stream(aq_engine *engine, aq_conn *conn, const uint8_t *header, size_t header_length)
{
    aq_engine_command command = {.kind = AQ_DO_OPEN_STREAM, .id = conn->id};
    int64_t result;
    aq_stream *stream = aq_conn_new_stream(conn, header, header_length, &result);
    if (stream == NULL)
        return result;
    command.open_stream.stream = stream;
    if (aq_engine_tell(engine, &command) != AQ_OK) {
        atomic_fetch_sub(&conn->opening_count, 1);
        return AQ_ERR_STOPPED;
    }
    return result;
}

aq_id aq_stream_open(aq_engine *engine, aq_id connection, const uint8_t *header, size_t header_length)
{
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    if (header_length == 0 || header_length > AQ_STREAM_HEADER_MAX)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        result = open_stream(engine, conn, header, header_length);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_stream_attach(aq_engine *engine, aq_id id, int32_t fd)
{
    aq_engine_command command = {.kind = AQ_DO_ATTACH, .attach.fd = fd};
    aq_stream *stream;
    int flags;
    int64_t result = AQ_ERR_GONE;
    aq_fd_keep(fd);
    if (!aq_api_enter(engine)) {
        aq_fd_close(fd);
        return AQ_ERR_STOPPED;
    }
    stream = aq_slab_get(&engine->streams, id);
    if (stream != NULL) {
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
            result = AQ_ERR_SYSTEM - errno;
        else if (atomic_exchange(&stream->owned, 1))
            result = AQ_ERR_STATE;
        else
            result = AQ_OK;
    }
    if (result == AQ_OK) {
        command.attach.stream = stream;
        result = aq_engine_tell(engine, &command);
        if (result != AQ_OK)
            aq_slab_put(&engine->streams, id);
    } else {
        if (stream != NULL)
            aq_slab_put(&engine->streams, id);
        aq_fd_close(fd);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_stream_reset(aq_engine *engine, aq_id id, uint64_t code)
{
    aq_stream *stream;
    if (code >= 1ULL << 62)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    stream = aq_slab_get(&engine->streams, id);
    if (stream != NULL) {
        aq_stream_cut(stream, code);
        aq_slab_put(&engine->streams, id);
    }
    aq_api_leave(engine);
    return stream != NULL ? AQ_OK : AQ_ERR_GONE;
}

/* ---- listeners and dialling -------------------------------------------------------------------------------------- */

/* Creates a listener with an id. Returns NULL on failure, with *error set and fd closed. */
static aq_listener *new_listener(aq_engine *engine, aq_id connection, int fd, int for_workers, int64_t *error)
{
    aq_listener *listener = calloc(1, sizeof(*listener));
    uint32_t keepalive = atomic_load(&engine->keepalive);
    aq_stream_prepare(fd, keepalive);
    *error = AQ_ERR_MEMORY;
    if (listener != NULL) {
        listener->connection = connection;
        listener->fd = fd;
        listener->for_workers = for_workers;
        listener->keepalive = keepalive;
        *error = aq_slab_add(&engine->listeners, listener);
    }
    if (*error < 0) {
        free(listener);
        aq_fd_close(fd);
        return NULL;
    }
    listener->id = *error;
    return listener;
}

aq_id aq_listener_open(aq_engine *engine, aq_id connection, int32_t fd, int32_t for_workers)
{
    aq_engine_command command = {.kind = AQ_DO_LISTEN_TCP};
    int own = aq_api_duplicate(fd);
    int64_t result, watched;
    if (own < 0)
        return AQ_ERR_SYSTEM - errno;
    if (!aq_api_enter(engine)) {
        aq_fd_close(own);
        return AQ_ERR_STOPPED;
    }
    if (new_listener(engine, connection, own, for_workers != 0, &result) != NULL) {
        command.id = result;
        watched = aq_engine_ask(engine, &command);
        if (watched != AQ_OK) {
            aq_slab_remove(&engine->listeners, result);
            result = watched;
        }
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_listener_close(aq_engine *engine, aq_id id)
{
    aq_engine_command command = {.kind = AQ_DO_UNLISTEN_TCP, .id = id};
    int64_t result;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    result = aq_engine_ask(engine, &command);
    aq_slab_remove(&engine->listeners, id);
    aq_api_leave(engine);
    return result;
}

/* ---- groups ------------------------------------------------------------------------------------------------------ */

aq_id aq_group_open(aq_engine *engine, uint32_t balance)
{
    aq_group *group;
    int64_t result = AQ_ERR_MEMORY;
    if (balance > AQ_BALANCE_LEAST_CONNECTIONS)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    group = aq_group_new((enum aq_balance)balance);
    if (group != NULL) {
        result = aq_slab_add(&engine->groups, group);
        if (result < 0)
            aq_group_unref(group);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_group_balance(aq_engine *engine, aq_id id, uint32_t balance)
{
    aq_group *group;
    if (balance > AQ_BALANCE_LEAST_CONNECTIONS)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    group = aq_slab_get(&engine->groups, id);
    if (group != NULL) {
        atomic_store(&group->balance, balance);
        aq_slab_put(&engine->groups, id);
    }
    aq_api_leave(engine);
    return group != NULL ? AQ_OK : AQ_ERR_GONE;
}

int64_t aq_group_close(aq_engine *engine, aq_id id)
{
    int64_t result;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    result = aq_slab_remove(&engine->groups, id);
    aq_api_leave(engine);
    return result;
}

int64_t aq_connection_join(aq_engine *engine, aq_id connection, aq_id id)
{
    aq_group *group, *none = NULL;
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    group = aq_slab_get(&engine->groups, id);
    conn = aq_slab_get(&engine->connections, connection);
    if (group != NULL && conn != NULL) {
        aq_group_ref(group);
        result = atomic_compare_exchange_strong(&conn->group, &none, group) ? AQ_OK : AQ_ERR_STATE;
        if (result != AQ_OK)
            aq_group_unref(group);
    }
    if (conn != NULL)
        aq_slab_put(&engine->connections, connection);
    if (group != NULL)
        aq_slab_put(&engine->groups, id);
    aq_api_leave(engine);
    return result;
}

int64_t aq_connection_dial(aq_engine *engine, aq_id connection, const aq_address *to, uint64_t timeout, uint64_t valid)
{
    aq_engine_command command = {.kind = AQ_DO_DIAL, .id = connection, .dial = {.timeout = timeout, .valid = valid}};
    int64_t result;
    if (timeout >= UINT64_MAX / 4)
        return AQ_ERR_INVALID;
    if (to != NULL)
        command.dial.to = *to;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    result = aq_engine_ask(engine, &command);
    aq_api_leave(engine);
    return result;
}

int64_t aq_streams_report(aq_engine *engine, uint32_t max, int begins)
{
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    atomic_store(&engine->report_streams, max);
    atomic_store(&engine->report_begins, begins != 0);
    aq_api_leave(engine);
    return AQ_OK;
}

int64_t aq_associations_report(aq_engine *engine, int32_t on)
{
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    atomic_store(&engine->events.associations_wanted, on != 0);
    aq_api_leave(engine);
    return AQ_OK;
}

int64_t aq_receive_memory(aq_engine *engine, uint64_t bytes)
{
    if (bytes == 0)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    atomic_store(&engine->budget.max, bytes);
    aq_api_leave(engine);
    return AQ_OK;
}

int64_t aq_streams_keepalive(aq_engine *engine, uint64_t idle)
{
    uint64_t seconds = idle / AQ_NSEC_PER_SEC + (idle % AQ_NSEC_PER_SEC != 0);
    if (seconds > AQ_KEEPALIVE_MAX)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    atomic_store(&engine->keepalive, (uint32_t)seconds);
    aq_api_leave(engine);
    return AQ_OK;
}

int64_t aq_streams_share(aq_engine *engine, uint32_t workers)
{
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    atomic_fetch_add(&engine->workers_free, (int32_t)(workers < INT32_MAX ? workers : INT32_MAX));
    aq_api_leave(engine);
    return AQ_OK;
}

/* ---- bandwidth limits -------------------------------------------------------------------------------------------- */

aq_id aq_bucket_open(aq_engine *engine, uint64_t rate)
{
    aq_bucket *bucket;
    int64_t result = AQ_ERR_MEMORY;
    if (rate > AQ_BUCKET_RATE_MAX)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    bucket = aq_bucket_new(rate, &engine->ready, &engine->counters, aq_now());
    if (bucket != NULL) {
        result = aq_slab_add(&engine->buckets, bucket);
        if (result < 0)
            aq_bucket_unref(bucket);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_bucket_rate(aq_engine *engine, aq_id id, uint64_t rate)
{
    aq_bucket *bucket;
    if (rate > AQ_BUCKET_RATE_MAX)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    bucket = aq_slab_get(&engine->buckets, id);
    if (bucket != NULL) {
        aq_bucket_set_rate(bucket, rate, aq_now());
        aq_slab_put(&engine->buckets, id);
    }
    aq_api_leave(engine);
    return bucket != NULL ? AQ_OK : AQ_ERR_GONE;
}

int64_t aq_bucket_info_get(aq_engine *engine, aq_id id, aq_bucket_info *info)
{
    aq_bucket *bucket;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    bucket = aq_slab_get(&engine->buckets, id);
    if (bucket != NULL) {
        aq_bucket_get_info(bucket, info);
        aq_slab_put(&engine->buckets, id);
    }
    aq_api_leave(engine);
    return bucket != NULL ? AQ_OK : AQ_ERR_GONE;
}

int64_t aq_bucket_close(aq_engine *engine, aq_id id)
{
    int64_t result;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    result = aq_slab_remove(&engine->buckets, id);
    aq_api_leave(engine);
    return result;
}

int64_t aq_connection_bucket(aq_engine *engine, aq_id connection, aq_id id, uint32_t direction)
{
    aq_bucket *bucket;
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    if (direction >= AQ_DIRECTIONS)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    bucket = aq_slab_get(&engine->buckets, id);
    conn = aq_slab_get(&engine->connections, connection);
    if (bucket != NULL && conn != NULL) {
        result = aq_buckets_add(&conn->credit->buckets, (int)direction, bucket);
        if (result == AQ_OK)
            result = aq_buckets_add(&conn->assocs->buckets, (int)direction, bucket);
    }
    if (conn != NULL)
        aq_slab_put(&engine->connections, connection);
    if (bucket != NULL)
        aq_slab_put(&engine->buckets, id);
    aq_api_leave(engine);
    return result;
}

/* ---- UDP --------------------------------------------------------------------------------------------------------- */

/* Creates a UDP socket with an id, watched by the engine. Returns an error on failure, with fd closed. */
static aq_id new_udp(aq_engine *engine, aq_conn *conn, int fd, int is_public, int for_pump)
{
    aq_engine_command command = {.kind = AQ_DO_WATCH_UDP};
    int64_t result, watched;
    aq_group *group = is_public ? atomic_load(&conn->group) : NULL;
    aq_udp *udp = aq_udp_new(conn->assocs, fd, is_public, group, &result);
    if (udp != NULL) {
        result = aq_slab_add(&engine->udps, udp);
        udp->id = result;
        if (group != NULL)
            *udp->member = (aq_member){.id = result, .connection = conn->id, .fd = fd};
        if (result < 0)
            aq_udp_free(udp);
    }
    if (result < 0) {
        aq_fd_close(fd);
        return result;
    }
    command.id = result;
    udp->for_pump = for_pump && group == NULL;
    if (udp->for_pump) {
        watched = AQ_OK;
    } else if (is_public) {
        command.watch_udp.udp = aq_slab_get(&engine->udps, result);
        watched = aq_engine_ask(engine, &command);
    } else {
        /* Without waiting for the engine thread: too slow for thousands of new associations per second. */
        watched = aq_engine_watch_udp(engine, udp);
    }
    if (watched != AQ_OK) {
        aq_slab_remove(&engine->udps, result); /* also closes fd */
        result = watched;
    }
    return result;
}

aq_id aq_udp_open(aq_engine *engine, aq_id connection, int32_t fd, int32_t is_public, int32_t for_pump)
{
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    int own;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        own = aq_api_duplicate(fd);
        result = own < 0 ? AQ_ERR_SYSTEM - errno : new_udp(engine, conn, own, is_public != 0, for_pump != 0);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_udp_close(aq_engine *engine, aq_id id)
{
    aq_engine_command command = {.kind = AQ_DO_CLOSE_UDP};
    aq_udp *udp;
    if (!aq_api_enter_until_closed(engine)) /* while stopping, the descriptor must still be closed */
        return AQ_ERR_STOPPED;
    udp = aq_slab_get(&engine->udps, id);
    if (udp != NULL) {
        aq_udp_detach(udp);
        command.close_udp.fd = udp->fd;
        command.close_udp.group = udp->group;
        if (aq_slab_remove(&engine->udps, id) != AQ_OK) {
            /* Another thread closes it too. */
        } else if (udp->group != NULL) {
            aq_group_ref(udp->group);
            aq_engine_ask(engine, &command); /* needs no memory: another socket of the group must be read from now on */
        } else {
            aq_engine_tell(engine, &command);
        }
        aq_slab_put(&engine->udps, id);
    }
    aq_api_leave(engine);
    return udp != NULL ? AQ_OK : AQ_ERR_GONE;
}

int64_t aq_udp_move(aq_engine *engine, aq_id id, int32_t fd, const uint8_t *prefix, size_t prefix_length)
{
    int64_t result;
    aq_engine_command command = {
        .kind = AQ_DO_MOVE_UDP, .id = id, .move_udp = {prefix, prefix_length, aq_api_duplicate(fd)}};
    if (command.move_udp.fd < 0)
        return AQ_ERR_SYSTEM - errno;
    if (!aq_api_enter(engine)) {
        aq_fd_close(command.move_udp.fd);
        return AQ_ERR_STOPPED;
    }
    result = aq_engine_ask(engine, &command);
    aq_api_leave(engine);
    return result;
}

static void tell_refused(aq_engine *engine, aq_udp *udp, const aq_udp_batch *batch)
{
    aq_conn *conn = aq_slab_get(&engine->connections, udp->assocs->connection);
    if (conn == NULL)
        return;
    aq_engine_tell_refused(conn, udp, batch, aq_now());
    aq_slab_put(&engine->connections, udp->assocs->connection);
}

int64_t aq_udp_receive(aq_engine *engine, aq_id id)
{
    aq_udp_batch batch = {0};
    aq_udp *udp;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    if (engine->pump_receiver == NULL)
        engine->pump_receiver = aq_udp_receiver_new();
    udp = aq_slab_get(&engine->udps, id);
    if (udp != NULL) {
        result = engine->pump_receiver == NULL ? AQ_ERR_MEMORY : AQ_ERR_STATE;
        if (engine->pump_receiver != NULL && udp->group == NULL)
            result = aq_udp_read(udp, engine->pump_receiver, &batch);
        if (batch.asked > 0)
            aq_engine_ask_about(engine, udp, &batch);
        if (batch.refused != 0)
            tell_refused(engine, udp, &batch);
        if (batch.denied != 0)
            aq_engine_tell_denied(engine, udp, &batch);
        if (batch.forwarded > 0)
            aq_assocs_signal(udp->assocs);
        aq_slab_put(&engine->udps, id);
    }
    aq_api_leave(engine);
    return result == AQ_OK ? batch.received : result;
}

int64_t aq_udp_return(aq_engine *engine, aq_id id)
{
    aq_engine_command command = {.kind = AQ_DO_WATCH_UDP, .id = id};
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    command.watch_udp.udp = aq_slab_get(&engine->udps, id);
    if (command.watch_udp.udp != NULL)
        result = aq_engine_ask(engine, &command);
    aq_api_leave(engine);
    return result;
}

int64_t aq_udp_share(aq_engine *engine, int32_t on)
{
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    atomic_store(&engine->pump_shares, on != 0);
    aq_api_leave(engine);
    return AQ_OK;
}

static aq_udp_source source_of(const aq_address *peer, const aq_address *local)
{
    aq_udp_source source = {.peer = *peer};
    if (local != NULL)
        source.local = *local;
    return source;
}

int64_t aq_udp_refuse(aq_engine *engine, aq_id id, const aq_address *peer, const aq_address *local)
{
    const aq_udp_source source = source_of(peer, local);
    aq_udp *udp;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    udp = aq_slab_get(&engine->udps, id);
    if (udp != NULL) {
        aq_udp_drop_source(udp, &source);
        aq_slab_put(&engine->udps, id);
    }
    aq_api_leave(engine);
    return udp != NULL ? AQ_OK : AQ_ERR_GONE;
}

int64_t aq_association_add(aq_engine *engine, aq_id id, uint16_t association, const aq_address *peer,
                           const aq_address *local, const uint8_t *prefix, size_t prefix_length)
{
    const aq_udp_source source = source_of(peer, local);
    aq_engine_command command = {.kind = AQ_DO_ASSOCIATION_READY, .association_ready = {association, 1}};
    aq_udp *udp;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    udp = aq_slab_get(&engine->udps, id);
    if (udp != NULL) {
        result = aq_assoc_new(udp, association, &source, prefix, prefix_length);
        if (result >= 0) {
            command.id = udp->assocs->connection;
            if (result > 0)
                aq_assocs_signal(udp->assocs);
            result = AQ_OK;
            if (!udp->is_public)
                aq_engine_tell(engine, &command);
        }
        aq_slab_put(&engine->udps, id);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_association_remove(aq_engine *engine, aq_id connection, uint16_t association)
{
    aq_engine_command command = {
        .kind = AQ_DO_ASSOCIATION_READY, .id = connection, .association_ready = {association, 0}};
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        result = AQ_OK;
        aq_assoc_forget(conn->assocs, association); /* already gone is fine, too */
        aq_engine_tell(engine, &command);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_associations_refuse(aq_engine *engine, aq_id connection, const aq_address *from, uint64_t duration)
{
    aq_conn *conn;
    uint64_t now = aq_now();
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        aq_assocs_refuse(conn->assocs, from, duration < UINT64_MAX - now ? now + duration : UINT64_MAX);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return conn != NULL ? AQ_OK : AQ_ERR_GONE;
}

/* Returns the time `duration` ago; 0 if the clock does not reach that far back. */
static uint64_t moment_before(uint64_t duration)
{
    uint64_t now = aq_now();
    return now > duration ? now - duration : 0;
}

int64_t aq_associations_idle(aq_engine *engine, aq_id connection, const aq_address *host, uint64_t idle,
                             uint16_t *associations, uint32_t max)
{
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        result = aq_assocs_list_idle(conn->assocs, host, moment_before(idle), associations, max);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_associations_refused(aq_engine *engine, aq_id connection, uint16_t *associations, uint32_t max)
{
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        result = aq_assocs_list_refused(conn->assocs, associations, max);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_associations_unanswered(aq_engine *engine, aq_id connection, uint64_t silence, uint64_t recent,
                                   uint16_t *associations, uint32_t max)
{
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        result =
            aq_assocs_list_unanswered(conn->assocs, moment_before(silence), moment_before(recent), associations, max);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}
