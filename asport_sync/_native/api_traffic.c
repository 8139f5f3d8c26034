/* The functions of aq_api.h that TCP streams and UDP packets go through. */
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* ---- streams ----------------------------------------------------------------------------------------------------- */

static aq_id open_stream(aq_engine *engine, aq_conn *conn, const uint8_t *header, size_t header_length)
{
    aq_engine_command command = {.kind = AQ_DO_OPEN_STREAM, .id = conn->id};
    aq_stream_setup setup = engine->host.streams;
    aq_stream *stream;
    int64_t result;

    /* options and credit never change while the connection's memory lives, and the caller holds a reference to it. */
    if (atomic_fetch_add(&conn->opening_count, 1) >= conn->options.max_pending_streams) {
        atomic_fetch_sub(&conn->opening_count, 1);
        return AQ_ERR_LIMIT;
    }
    setup.send_window = conn->options.send_window;
    setup.receive_window = conn->options.receive_window;
    stream = aq_stream_new(&setup, conn->id, conn->credit);
    result = stream != NULL && aq_pipe_write(&stream->tx, header, header_length) == 0 ? AQ_OK : AQ_ERR_MEMORY;
    if (result == AQ_OK) {
        result = aq_slab_add(&engine->streams, stream);
    }
    if (result < 0) {
        if (stream != NULL)
            aq_stream_destroy(stream);
        atomic_fetch_sub(&conn->opening_count, 1);
        return result;
    }
    stream->id = result;
    aq_slab_get(&engine->streams, stream->id); /* travels with the command */
    command.object = stream;
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
    aq_engine_command command = {.kind = AQ_DO_ATTACH, .fd = fd};
    aq_stream *stream;
    int flags;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine)) {
        close(fd);
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
        command.object = stream; /* with the reference */
        result = aq_engine_tell(engine, &command);
        if (result != AQ_OK)
            aq_slab_put(&engine->streams, id);
    } else {
        if (stream != NULL)
            aq_slab_put(&engine->streams, id);
        close(fd);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_stream_reset(aq_engine *engine, aq_id id, uint64_t code)
{
    aq_stream *stream;
    uint64_t none = 0;
    if (code >= 1ULL << 62)
        return AQ_ERR_INVALID;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    stream = aq_slab_get(&engine->streams, id);
    if (stream != NULL) {
        atomic_compare_exchange_strong(&stream->reset, &none, code + 1);
        atomic_store(&stream->local_reset, 1);
        aq_stream_signal(stream, AQ_NEED_END);
        aq_stream_notify(stream);
        aq_stream_disown(stream);
        aq_slab_put(&engine->streams, id);
    }
    aq_api_leave(engine);
    return stream != NULL ? AQ_OK : AQ_ERR_GONE;
}

int64_t aq_stream_refuse(aq_engine *engine, aq_id id)
{
    aq_engine_command command = {.kind = AQ_DO_REFUSE};
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    command.object = aq_slab_get(&engine->streams, id);
    if (command.object != NULL) {
        result = aq_engine_ask(engine, &command);
        if (result == AQ_ERR_STOPPED)
            aq_slab_put(&engine->streams, id);
    }
    aq_api_leave(engine);
    return result;
}

/* ---- UDP --------------------------------------------------------------------------------------------------------- */

aq_id aq_udp_open(aq_engine *engine, aq_id connection, int32_t fd, int32_t is_public)
{
    aq_conn *conn;
    aq_udp *udp;
    int64_t result = AQ_ERR_GONE;
    int own;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        own = aq_api_duplicate(fd);
        if (own < 0) {
            result = AQ_ERR_SYSTEM - errno;
        } else {
            udp = aq_udp_new(conn->flows, own, is_public != 0, &result);
            if (udp != NULL) {
                result = aq_slab_add(&engine->udps, udp);
                udp->id = result;
                if (result < 0)
                    aq_udp_free(udp);
            }
            if (result < 0)
                close(own);
        }
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_udp_close(aq_engine *engine, aq_id id)
{
    aq_engine_command command = {.kind = AQ_DO_CLOSE_FD};
    aq_udp *udp;
    if (!aq_api_enter_until_closed(engine)) /* while stopping, the descriptor is still ours to close */
        return AQ_ERR_STOPPED;
    udp = aq_slab_get(&engine->udps, id);
    if (udp != NULL) {
        aq_udp_detach(udp);
        command.fd = udp->fd;
        udp->fd = -1;
        if (aq_slab_remove(&engine->udps, id) == AQ_OK)
            aq_engine_tell(engine, &command);
        aq_slab_put(&engine->udps, id);
    }
    aq_api_leave(engine);
    return udp != NULL ? AQ_OK : AQ_ERR_GONE;
}

int64_t aq_udp_receive(aq_engine *engine, aq_id id, aq_udp_batch *batch)
{
    aq_udp *udp;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    udp = aq_slab_get(&engine->udps, id);
    if (udp != NULL) {
        result = aq_udp_read(udp, engine->pump_receiver, batch);
        aq_slab_put(&engine->udps, id);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_flow_add(aq_engine *engine, aq_id id, uint16_t association, const aq_address *peer, const uint8_t *prefix,
                    size_t prefix_length)
{
    aq_engine_command command = {.kind = AQ_DO_FLOW_READY, .a = association, .b = 1};
    aq_udp *udp;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    udp = aq_slab_get(&engine->udps, id);
    if (udp != NULL) {
        result = aq_flow_new(udp, association, peer, prefix, prefix_length);
        if (result == AQ_OK) {
            aq_udp_replay(udp, association);
            command.id = udp->flows->connection;
            if (!udp->is_public)
                aq_engine_tell(engine, &command);
        }
        aq_slab_put(&engine->udps, id);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_flow_remove(aq_engine *engine, aq_id connection, uint16_t association)
{
    aq_engine_command command = {.kind = AQ_DO_FLOW_READY, .id = connection, .a = association, .b = 0};
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        result = AQ_OK;
        aq_flow_forget(conn->flows, association); /* gone already is as good */
        aq_engine_tell(engine, &command);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}

int64_t aq_flows_idle(aq_engine *engine, aq_id connection, uint64_t idle, uint16_t *associations, uint32_t most)
{
    aq_conn *conn;
    int64_t result = AQ_ERR_GONE;
    uint64_t now = aq_now();
    if (!aq_api_enter(engine))
        return AQ_ERR_STOPPED;
    conn = aq_slab_get(&engine->connections, connection);
    if (conn != NULL) {
        result = aq_flows_list_idle(conn->flows, now > idle ? now - idle : 0, associations, most);
        aq_slab_put(&engine->connections, connection);
    }
    aq_api_leave(engine);
    return result;
}
