/* The streams of a connection: its lists of streams, opening them, and what their owners do. */
#include "quic/conn.h"

/* Maximum bytes of a sparse stream, see is_sparse(). */
#define SPARSE 4096

/* ---- queues ------------------------------------------------------------------------------------------------ */

/* Whether a stream has little to send and nothing in flight: a key press, a request. It goes ahead of large transfers
 * and cannot hold them up: it gets its next turn at the front only after everything from this one is acknowledged. */
static int is_sparse(const aq_stream *stream)
{
    return aq_pipe_released(&stream->tx) == aq_pipe_taken(&stream->tx) && aq_pipe_readable(&stream->tx) <= SPARSE;
}

void aq_conn_queue_stream(aq_conn *conn, aq_stream *stream)
{
    if (stream->in_send_queue || stream->blocked || stream->shut_sent || stream->fin_sent || stream->quic_id < 0)
        return;
    stream->in_send_queue = 1;
    stream->quantum = conn->stream_quantum;
    if (is_sparse(stream)) {
        *conn->host->interactive_at = conn->now;
        AQ_LIST_ADD_FIRST(&conn->sending, stream, queue_link);
    } else {
        AQ_LIST_ADD_LAST(&conn->sending, stream, queue_link);
    }
    conn->host->touch(conn->host->engine, conn);
}

void aq_conn_unqueue_stream(aq_conn *conn, aq_stream *stream)
{
    if (stream->in_send_queue)
        AQ_LIST_REMOVE(&conn->sending, stream, queue_link);
    stream->in_send_queue = 0;
}

void aq_conn_link_stream(aq_conn *conn, aq_stream *stream)
{
    stream->conn = conn;
    AQ_LIST_ADD_FIRST(&conn->streams, stream, conn_link);
    conn->streams_count++;
    stream->max_window = conn->options.receive_window;
    stream->window = stream->max_window < AQ_FIRST_WINDOW ? stream->max_window : AQ_FIRST_WINDOW;
    stream->returned_at = conn->now;
    atomic_store(&stream->report_at, stream->window / 4);
}

/* A stream of the peer begins to wait for its Connect command. All wait equally long, so the oldest is due first. */
void aq_conn_begin_header(aq_conn *conn, aq_stream *stream)
{
    stream->deadline = aq_conn_alive_time(conn, conn->now) + conn->options.command_timeout;
    AQ_LIST_ADD_LAST(&conn->headers, stream, header_link);
}

/* The header is complete, or never will be. */
void aq_conn_end_header(aq_conn *conn, aq_stream *stream)
{
    stream->header_done = 1;
    stream->deadline = UINT64_MAX;
    AQ_LIST_REMOVE(&conn->headers, stream, header_link);
}

/* Ends the peer's streams whose Connect was not complete in time. Other streams are not affected. */
void aq_conn_end_late_headers(aq_conn *conn, uint64_t now)
{
    while (conn->headers.first != NULL && conn->headers.first->deadline <= aq_conn_alive_time(conn, now)) {
        aq_stream *stream = conn->headers.first;
        aq_conn_end_header(conn, stream);
        stream->shut_sent = 1;
        aq_count(conn->host->counters, AQ_C_commands_late, 1);
        ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, AQ_STREAM_ABORTED);
    }
}

/* QUIC no longer needs the stream, or the connection has ended. */
void aq_conn_unlink_stream(aq_conn *conn, aq_stream *stream)
{
    aq_conn_unqueue_stream(conn, stream);
    if (stream->quic_id < 0 && !stream->peer_opened) {
        AQ_LIST_REMOVE(&conn->opening, stream, queue_link);
        atomic_fetch_sub(&conn->opening_count, 1);
    }
    AQ_LIST_REMOVE(&conn->streams, stream, conn_link);
    conn->streams_count--;
    if (stream->peer_opened && !stream->header_done)
        aq_conn_end_header(conn, stream);
    stream->conn = NULL;
    stream->quic_id = -1;
    aq_slab_get(stream->table, stream->id); /* from aq_stream_close() on, the owner may end it at any moment */
    conn->host->touch_stream(conn->host->engine, stream);
    if (stream->peer_opened && !stream->reported)
        aq_stream_disown(stream); /* it was never reported to Python */
    aq_stream_close(stream);
    aq_slab_put(stream->table, stream->id);
}

void aq_conn_cut_streams(aq_conn *conn, int dead, uint32_t max)
{
    for (; conn->streams.first != NULL && max > 0; max--) {
        atomic_store(&conn->streams.first->dead, dead);
        aq_conn_unlink_stream(conn, conn->streams.first);
    }
}

/* ---- opening ----------------------------------------------------------------------------------------------- */

void aq_conn_open_waiting(aq_conn *conn)
{
    while (conn->opening.first != NULL && ngtcp2_conn_get_streams_bidi_left(conn->quic) > 0) {
        aq_stream *stream = conn->opening.first;
        if (ngtcp2_conn_open_bidi_stream(conn->quic, &stream->quic_id, &stream->tag) != 0) {
            /* No memory: the owner gives the stream up. */
            aq_count(conn->host->counters, AQ_C_memory_failures, 1);
            stream->quic_id = -1;
            atomic_store(&stream->local_reset, 1);
            aq_conn_unlink_stream(conn, stream);
            continue;
        }
        AQ_LIST_REMOVE(&conn->opening, stream, queue_link);
        atomic_fetch_sub(&conn->opening_count, 1);
        aq_count(conn->host->counters, AQ_C_streams_opened, 1);
        atomic_store(&stream->opened, 1);
        if (atomic_load(&stream->reset))
            aq_stream_notify(stream); /* the owner has left already */
        aq_conn_queue_stream(conn, stream);
    }
}

enum aq_fitness aq_conn_fitness(const aq_conn *conn)
{
    uint32_t opening = (uint32_t)atomic_load(&conn->opening_count);
    if (conn->quic == NULL || conn->linger_until != UINT64_MAX)
        return AQ_FITNESS_GONE;
    if (opening >= conn->options.max_pending_streams)
        return AQ_FITNESS_FULL;
    return ngtcp2_conn_get_streams_bidi_left(conn->quic) > opening ? AQ_FITNESS_FIT : AQ_FITNESS_SLOW;
}

aq_stream *aq_conn_new_stream(aq_conn *conn, const uint8_t *header, size_t length, int64_t *error)
{
    aq_stream_setup setup = conn->host->streams;
    aq_stream *stream;

    /* options and credit never change while the connection's memory exists. */
    if (atomic_fetch_add(&conn->opening_count, 1) >= conn->options.max_pending_streams) {
        atomic_fetch_sub(&conn->opening_count, 1);
        *error = AQ_ERR_LIMIT;
        return NULL;
    }
    setup.send_window = conn->options.send_window;
    setup.receive_window = conn->options.receive_window;
    stream = aq_stream_new(&setup, conn->id, conn->credit);
    *error = stream != NULL && aq_pipe_write(&stream->tx, header, length) == 0 ? AQ_OK : AQ_ERR_MEMORY;
    if (*error == AQ_OK)
        *error = aq_slab_add(setup.table, stream);
    if (*error < 0) {
        if (*error == AQ_ERR_MEMORY)
            aq_count(conn->host->counters, AQ_C_memory_failures, 1);
        if (stream != NULL)
            aq_stream_destroy(stream);
        atomic_fetch_sub(&conn->opening_count, 1);
        return NULL;
    }
    stream->id = *error;
    aq_slab_get(setup.table, stream->id);
    return stream;
}

void aq_conn_adopt_stream(aq_conn *conn, aq_stream *stream)
{
    aq_conn_link_stream(conn, stream);
    stream->header_done = 1;
    AQ_LIST_ADD_LAST(&conn->opening, stream, queue_link);
    aq_conn_open_waiting(conn);
}

/* ---- updates from owners -------------------------------------------------------------------------------------- */

void aq_conn_update_stream(aq_stream *stream, uint64_t now)
{
    aq_conn *conn = stream->conn;
    uint64_t reset = atomic_load(&stream->reset);
    int fin;

    if (conn == NULL || conn->quic == NULL)
        return;
    conn->now = now;
    if (reset != 0 && atomic_load(&stream->tx_fin) && !atomic_load(&stream->local_reset)) {
        /* What was read from the socket ended in order and is delivered so: only the other direction is given up. */
        if (stream->quic_id >= 0 && !stream->stop_sent) {
            stream->stop_sent = 1;
            aq_count(conn->host->counters, AQ_C_streams_reset, 1);
            ngtcp2_conn_shutdown_stream_read(conn->quic, 0, stream->quic_id, reset - 1);
        }
    } else if (reset != 0 && !stream->shut_sent) {
        aq_conn_unqueue_stream(conn, stream);
        stream->shut_sent = 1;
        if (stream->quic_id < 0) {
            aq_conn_unlink_stream(conn, stream);
            return;
        }
        aq_count(conn->host->counters, AQ_C_streams_reset, 1);
        ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, reset - 1);
    }
    aq_conn_return_credit(conn);
    if (stream->quic_id >= 0 && !atomic_load(&stream->rx_fin))
        aq_conn_return_stream_credit(conn, stream, now);
    /* fin before readable: the owner publishes them in the opposite order. */
    fin = atomic_load(&stream->tx_fin);
    if (aq_pipe_readable(&stream->tx) > 0 || (fin && !stream->fin_sent))
        aq_conn_queue_stream(conn, stream);
    conn->host->touch(conn->host->engine, conn);
}

void aq_conn_stream_stopped(aq_conn *conn, aq_stream *stream)
{
    if (!atomic_exchange(&stream->tx_stopped, 1))
        aq_count(conn->host->counters, AQ_C_streams_stopped_by_peer, 1);
    aq_conn_unqueue_stream(conn, stream);
    stream->fin_sent = 1; /* nothing will be sent any more */
    conn->host->touch_stream(conn->host->engine, stream);
}

#if !AQ_HAVE_RECV_STOP_SENDING
/* STOP_SENDING shows only when something is to be sent, and streams without window send nothing: so they are tried
 * again at most once a second. */
void aq_conn_retry_blocked(aq_conn *conn, uint64_t now)
{
    if (now - conn->retried_at < AQ_NSEC_PER_SEC)
        return;
    conn->retried_at = now;
    for (aq_stream *stream = conn->streams.first; stream != NULL; stream = stream->conn_link.next) {
        if (stream->blocked) {
            stream->blocked = 0;
            aq_conn_queue_stream(conn, stream);
        }
    }
}
#endif
