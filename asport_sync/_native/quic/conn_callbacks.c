/* What ngtcp2 reports about streams: new ones, their data, acknowledgements and ends. Nothing is written or closed
 * here: callbacks only record. */
#include "quic/conn.h"

#include <string.h>

/* Returns 0, or -1 if there is no memory. */
static int keep(aq_conn *conn, aq_stream *stream, const uint8_t *data, size_t length)
{
    int result;
    do
        result = aq_pipe_write(&stream->rx, data, length);
    while (result != 0 && aq_conn_make_room(conn, stream));
    if (result != 0 && aq_pipe_readable(&stream->rx) == 0) {
        /* A reader that keeps up returns the memory at once. */
        stream->rx.left = AQ_RESERVE_LEFT_BY_QUICK_READERS;
        result = aq_pipe_write(&stream->rx, data, length);
        stream->rx.left = AQ_RESERVE_LEFT;
    }
    return result;
}

/* Resets a stream of the peer whose visitor is not served, before anything is dialled and Python is notified. */
static void refuse_visitor(aq_conn *conn, aq_stream *stream)
{
    atomic_store(&stream->reset, AQ_STREAM_REFUSED + 1);
    stream->shut_sent = 1;
    ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, AQ_STREAM_REFUSED);
}

static int receive_header(aq_conn *conn, aq_stream *stream, const uint8_t **data, size_t *length)
{
    const char *problem = "";
    size_t had = stream->header_length, step = sizeof(stream->header) - had;
    int whole;
    if (step > *length)
        step = *length;
    memcpy(stream->header + had, *data, step);
    whole = aq_command_length(stream->header, had + step, &problem);
    if (whole > 0 && stream->header[1] != AQ_COMMAND_CONNECT) {
        whole = -1;
        problem = "a bidirectional stream did not begin with Connect";
    }
    if (whole < 0) {
        aq_conn_violation(conn, problem);
        aq_conn_end_header(conn, stream);
        atomic_store(&stream->reset, AQ_STREAM_ABORTED + 1);
        stream->shut_sent = 1;
        ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, AQ_STREAM_ABORTED);
        step = *length; /* none of it will be consumed in any other way */
        *length = 0;
        return (int)step;
    }
    if (whole > 0 && (size_t)whole <= had + step) {
        aq_event event = {.type = AQ_EVENT_STREAM_OPENED, .stream = stream->id, .length = (uint32_t)whole};
        size_t used = (size_t)whole - had;
        stream->header_length = (uint8_t)whole;
        aq_conn_end_header(conn, stream);
        aq_connect_decode(stream->header, &stream->peer);
        if (!conn->is_server && !aq_conn_admits(conn, &stream->peer, atomic_load(&conn->credit->visitors))) {
            refuse_visitor(conn, stream);
            step = *length; /* none of it will be consumed in any other way */
            *length = 0;
            return (int)step;
        }
        if (!conn->is_server)
            aq_conn_admit(conn, stream);
        if (conn->dial_to.family != 0 && conn->now < conn->dial_until) {
            stream->dial_wanted = 1;
            conn->host->touch_stream(conn->host->engine, stream);
        } else {
            stream->reported = 1;
            memcpy(event.data, stream->header, (size_t)whole);
            aq_conn_post(conn, &event);
        }
        *data += used;
        *length -= used;
        return (int)used;
    }
    stream->header_length = (uint8_t)(had + step);
    *data += step;
    *length -= step;
    return (int)step;
}

static int receive_bidi(aq_conn *conn, aq_stream *stream, int fin, const uint8_t *data, size_t length)
{
    if (!stream->header_done) {
        int used = receive_header(conn, stream, &data, &length);
        ngtcp2_conn_extend_max_stream_offset(conn->quic, stream->quic_id, (uint64_t)used);
        aq_conn_consumed(conn, (uint64_t)used);
        if (!stream->header_done && fin) {
            aq_conn_violation(conn, "a stream ended inside its Connect command");
            aq_conn_end_header(conn, stream);
            stream->shut_sent = 1;
            ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, AQ_STREAM_ABORTED);
            return 0;
        }
    }
    if (stream->shut_sent) {
        aq_conn_consumed(conn, length);
        return 0;
    }
    if (length > 0 && keep(conn, stream, data, length) != 0) {
        /* The pipe holds a whole window, so the cause is lack of memory. */
        aq_count(conn->host->counters, AQ_C_memory_failures, 1);
        aq_conn_consumed(conn, length);
        atomic_store(&stream->local_reset, 1);
        stream->shut_sent = 1;
        ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, AQ_STREAM_ABORTED);
    } else if (fin) {
        atomic_store_explicit(&stream->rx_fin, 1, memory_order_release);
    }
    aq_count(conn->host->counters, AQ_C_stream_bytes_received, length);
    conn->host->touch_stream(conn->host->engine, stream);
    return 0;
}

static void receive_uni(aq_conn *conn, aq_incoming *incoming, int fin, const uint8_t *data, size_t length)
{
    const uint8_t *command;
    size_t command_length, used;
    const char *problem = "";
    int outcome;
    if (conn->joined)
        ngtcp2_conn_extend_max_stream_offset(conn->quic, incoming->quic_id, length);
    aq_conn_consumed(conn, length);
    if (incoming->done) {
        aq_count(conn->host->counters, AQ_C_command_bytes_ignored, length);
        return;
    }
    outcome = aq_incoming_feed(incoming, data, length, &command, &command_length, &used, &problem);
    if (outcome == 0) {
        if (fin) {
            aq_conn_violation(conn, "a stream ended inside its command");
            outcome = -1;
        } else {
            return;
        }
    } else if (outcome == 1) {
        /* After its ClientHello a client may send a byte that says how its mode byte is meant. It does so in one STREAM
         * frame; if the data arrives in pieces, the byte is ignored. */
        const uint8_t *behind = command[1] == AQ_COMMAND_CLIENT_HELLO && length > used ? data + used : NULL;
        aq_count(conn->host->counters, AQ_C_command_bytes_ignored, length - used - (behind != NULL ? 1U : 0U));
        if (command[1] == AQ_COMMAND_PACKET)
            aq_conn_receive_packet(conn, command, command_length, AQ_CARRIER_STREAM);
        else
            aq_conn_receive_command(conn, command, command_length, AQ_CARRIER_STREAM, behind);
    } else if (outcome == -1) {
        aq_conn_violation(conn, problem);
    } else {
        aq_count(conn->host->counters, AQ_C_memory_failures, 1);
    }
    aq_conn_drop_incoming(conn, incoming);
}

static int on_stream_data(ngtcp2_conn *quic, uint32_t flags, int64_t id, uint64_t offset, const uint8_t *data,
                          size_t length, void *user, void *stream_user)
{
    aq_conn *conn = user;
    enum aq_stream_tag *tag = stream_user;
    int fin = (flags & NGTCP2_STREAM_DATA_FLAG_FIN) != 0;
    static const uint8_t nothing;
    AQ_UNUSED(quic);
    AQ_UNUSED(id);
    AQ_UNUSED(offset);
    if (data == NULL) /* an empty frame; arithmetic with a null pointer is undefined */
        data = &nothing;
    aq_conn_delivered(conn, length);
    if (tag == NULL) {
        aq_conn_consumed(conn, length);
        return 0;
    }
    if (*tag == AQ_TAG_BIDI)
        return receive_bidi(conn, AQ_TAGGED(tag, aq_stream), fin, data, length);
    if (*tag == AQ_TAG_INCOMING)
        receive_uni(conn, AQ_TAGGED(tag, aq_incoming), fin, data, length);
    return 0;
}

/* No memory for a stream of the peer, or no place in the table. Only this stream is reset; others are not affected.
 * Data that arrives on it is ignored, as on every stream without user data. */
static int refuse_stream(aq_conn *conn, int64_t id)
{
    aq_count(conn->host->counters, AQ_C_memory_failures, 1);
    return ngtcp2_conn_shutdown_stream(conn->quic, 0, id, AQ_STREAM_ABORTED) == 0 ? 0 : NGTCP2_ERR_CALLBACK_FAILURE;
}

static int on_stream_open(ngtcp2_conn *quic, int64_t id, void *user)
{
    aq_conn *conn = user;
    const aq_conn_host *host = conn->host;
    if (!ngtcp2_is_bidi_stream(id)) {
        aq_incoming *incoming = aq_conn_allocate(conn, sizeof(*incoming));
        if (incoming == NULL)
            return refuse_stream(conn, id);
        aq_incoming_init(incoming);
        incoming->account = &conn->credit->account;
        incoming->quic_id = id;
        incoming->deadline = aq_conn_alive_time(conn, conn->now) + conn->options.command_timeout;
        AQ_LIST_ADD_LAST(&conn->incomplete, incoming, incomplete_link);
        AQ_LIST_ADD_FIRST(&conn->incoming, incoming, conn_link);
        ngtcp2_conn_set_stream_user_data(quic, id, &incoming->tag);
    } else {
        aq_stream_setup setup = host->streams;
        aq_stream *stream;
        aq_id name;
        setup.send_window = conn->options.send_window;
        setup.receive_window = conn->options.receive_window;
        stream = aq_stream_new(&setup, conn->id, conn->credit);
        if (stream == NULL)
            return refuse_stream(conn, id);
        name = aq_slab_add(setup.table, stream);
        if (name < 0) {
            aq_stream_destroy(stream);
            return refuse_stream(conn, id);
        }
        stream->id = name;
        stream->quic_id = id;
        stream->peer_opened = 1;
        atomic_store(&stream->opened, 1);
        aq_conn_link_stream(conn, stream);
        aq_conn_begin_header(conn, stream);
        aq_count(host->counters, AQ_C_streams_accepted, 1);
        ngtcp2_conn_set_stream_user_data(quic, id, &stream->tag);
    }
    return 0;
}

static int on_acked(ngtcp2_conn *quic, int64_t id, uint64_t offset, uint64_t length, void *user, void *stream_user)
{
    aq_conn *conn = user;
    enum aq_stream_tag *tag = stream_user;
    AQ_UNUSED(quic);
    AQ_UNUSED(id);
    if (tag != NULL && *tag == AQ_TAG_BIDI) {
        aq_stream *stream = AQ_TAGGED(tag, aq_stream);
        aq_pipe_release(&stream->tx, offset + length);
        conn->host->touch_stream(conn->host->engine, stream);
    } else if (tag != NULL && *tag == AQ_TAG_OUTGOING) {
        const aq_outgoing *outgoing = AQ_TAGGED(tag, aq_outgoing);
        if (offset + length >= outgoing->length)
            aq_conn_carrier_asked(conn, outgoing);
    }
    return 0;
}

static int on_stream_close(ngtcp2_conn *quic, uint32_t flags, int64_t id, uint64_t code, void *user, void *stream_user)
{
    aq_conn *conn = user;
    enum aq_stream_tag *tag = stream_user;
    AQ_UNUSED(flags);
    AQ_UNUSED(code);
    if (tag == NULL) { /* reset by refuse_stream() */
        if (!ngtcp2_is_bidi_stream(id))
            ngtcp2_conn_extend_max_streams_uni(quic, 1);
        else
            ngtcp2_conn_extend_max_streams_bidi(quic, 1);
        return 0;
    }
    if (*tag == AQ_TAG_OUTGOING) {
        /* If nothing else reports STOP_SENDING, this does: ngtcp2 has reset the stream, and the reset is
         * acknowledged. */
        aq_conn_carrier_refused(conn, AQ_TAGGED(tag, aq_outgoing));
        aq_conn_free_outgoing(conn, AQ_TAGGED(tag, aq_outgoing));
        conn->host->touch(conn->host->engine, conn);
    } else if (*tag == AQ_TAG_INCOMING) {
        aq_conn_free_incoming(conn, AQ_TAGGED(tag, aq_incoming));
        ngtcp2_conn_extend_max_streams_uni(quic, 1);
    } else {
        aq_stream *stream = AQ_TAGGED(tag, aq_stream);
        if (!atomic_load(&stream->rx_fin))
            atomic_store(&stream->rx_reset, 1);
        atomic_store(&stream->tx_stopped, 1);
        aq_conn_unlink_stream(conn, stream);
        AQ_UNUSED(id);
    }
    return 0;
}

static int on_stream_reset(ngtcp2_conn *quic, int64_t id, uint64_t final_size, uint64_t code, void *user,
                           void *stream_user)
{
    aq_conn *conn = user;
    enum aq_stream_tag *tag = stream_user;
    if (tag != NULL && *tag == AQ_TAG_BIDI) {
        aq_stream *stream = AQ_TAGGED(tag, aq_stream);
        uint64_t have = aq_pipe_written(&stream->rx) + (stream->peer_opened ? stream->header_length : 0U);
        /* Some peers reset with 0 after an orderly end: if every byte has arrived, it was the end. */
        if (code == 0 && have == final_size && stream->header_done)
            atomic_store_explicit(&stream->rx_fin, 1, memory_order_release);
        if (!atomic_load(&stream->rx_fin)) {
            aq_count(conn->host->counters, AQ_C_streams_reset_by_peer, 1);
            atomic_store(&stream->rx_code, code < INT32_MAX ? (int)code : INT32_MAX);
            atomic_store(&stream->rx_reset, 1);
        }
        if (!stream->header_done) { /* it will never be served */
            aq_conn_end_header(conn, stream);
            stream->shut_sent = 1;
            ngtcp2_conn_shutdown_stream_write(quic, 0, id, AQ_STREAM_ABORTED);
        }
        conn->host->touch_stream(conn->host->engine, stream);
    }
    return 0;
}

static int on_extend_stream(ngtcp2_conn *quic, int64_t id, uint64_t max, void *user, void *stream_user)
{
    aq_conn *conn = user;
    enum aq_stream_tag *tag = stream_user;
    AQ_UNUSED(quic);
    AQ_UNUSED(id);
    AQ_UNUSED(max);
    if (tag != NULL && *tag == AQ_TAG_BIDI) {
        aq_stream *stream = AQ_TAGGED(tag, aq_stream);
        stream->blocked = 0;
        aq_conn_queue_stream(conn, stream);
    } else if (tag != NULL && *tag == AQ_TAG_OUTGOING) {
        aq_outgoing *outgoing = AQ_TAGGED(tag, aq_outgoing);
        if (outgoing->blocked) {
            outgoing->blocked = 0;
            aq_conn_queue_outgoing(conn, outgoing);
        }
    }
    return 0;
}

static int on_extend_streams(ngtcp2_conn *quic, uint64_t max, void *user)
{
    aq_conn *conn = user;
    AQ_UNUSED(quic);
    AQ_UNUSED(max);
    conn->host->touch(conn->host->engine, conn); /* aq_conn_write() opens waiting streams */
    return 0;
}

#if AQ_HAVE_RECV_STOP_SENDING
static int on_stop_sending(ngtcp2_conn *quic, int64_t id, uint64_t code, void *user, void *stream_user)
{
    aq_conn *conn = user;
    enum aq_stream_tag *tag = stream_user;
    AQ_UNUSED(quic);
    AQ_UNUSED(id);
    AQ_UNUSED(code);
    /* Peers routinely stop the stream of a command once they have read what they need. It means nothing there, except
     * on the stream that asks for the carrier. */
    if (tag != NULL && *tag == AQ_TAG_BIDI) {
        aq_stream *stream = AQ_TAGGED(tag, aq_stream);
        aq_conn_stream_stopped(conn, stream);
    } else if (tag != NULL && *tag == AQ_TAG_OUTGOING) {
        aq_conn_carrier_refused(conn, AQ_TAGGED(tag, aq_outgoing));
    }
    return 0;
}
#endif

void aq_conn_stream_callbacks(ngtcp2_callbacks *callbacks)
{
    callbacks->recv_stream_data = on_stream_data;
    callbacks->stream_open = on_stream_open;
    callbacks->acked_stream_data_offset = on_acked;
    callbacks->stream_close = on_stream_close;
    callbacks->stream_reset = on_stream_reset;
    callbacks->extend_max_stream_data = on_extend_stream;
    callbacks->extend_max_local_streams_bidi = on_extend_streams;
    callbacks->extend_max_local_streams_uni = on_extend_streams;
#if AQ_HAVE_RECV_STOP_SENDING
    callbacks->recv_stop_sending = on_stop_sending;
#endif
}
