/* The streams of a connection: what ngtcp2 reports about them, what their owners do, and the credit returned to the
 * peer. */
#include "quic/conn.h"

#include <string.h>

/* Maximum bytes of a sparse stream, see is_sparse(). */
#define SPARSE 4096
/* Using up half of the connection's window within this time is fast, however short the path. */
#define GROWTH_TIME (50 * AQ_NSEC_PER_MSEC)

/* ---- queues ------------------------------------------------------------------------------------------------ */

/* Whether a stream has little to send and nothing in flight: a key press, a request. It goes ahead of large transfers
 * and cannot hold them up: it gets its next turn at the front only after everything from this one is acknowledged. */
static int is_sparse(const aq_stream *stream)
{
    return aq_pipe_released(&stream->tx) == aq_pipe_taken(&stream->tx) && aq_pipe_readable(&stream->tx) <= SPARSE;
}

static void put_first(aq_stream **first, aq_stream **last, aq_stream *stream)
{
    stream->queue_previous = NULL;
    stream->queue_next = *first;
    if (*first != NULL)
        (*first)->queue_previous = stream;
    else
        *last = stream;
    *first = stream;
}

static void put_last(aq_stream **first, aq_stream **last, aq_stream *stream)
{
    stream->queue_previous = *last;
    stream->queue_next = NULL;
    if (*last != NULL)
        (*last)->queue_next = stream;
    else
        *first = stream;
    *last = stream;
}

/* The stream is in this queue. */
static void remove_from(aq_stream **first, aq_stream **last, aq_stream *stream)
{
    if (stream->queue_previous != NULL)
        stream->queue_previous->queue_next = stream->queue_next;
    else
        *first = stream->queue_next;
    if (stream->queue_next != NULL)
        stream->queue_next->queue_previous = stream->queue_previous;
    else
        *last = stream->queue_previous;
    stream->queue_previous = stream->queue_next = NULL;
}

void aq_conn_queue_stream(aq_conn *conn, aq_stream *stream)
{
    if (stream->in_send_queue || stream->blocked || stream->shut_sent || stream->fin_sent || stream->quic_id < 0)
        return;
    stream->in_send_queue = 1;
    stream->quantum = conn->stream_quantum;
    if (is_sparse(stream)) {
        *conn->host->interactive_at = conn->now;
        put_first(&conn->send_first, &conn->send_last, stream);
    } else {
        put_last(&conn->send_first, &conn->send_last, stream);
    }
    conn->host->touch(conn->host->engine, conn);
}

void aq_conn_unqueue_stream(aq_conn *conn, aq_stream *stream)
{
    if (stream->in_send_queue)
        remove_from(&conn->send_first, &conn->send_last, stream);
    stream->in_send_queue = 0;
}

static void link_stream(aq_conn *conn, aq_stream *stream)
{
    stream->conn = conn;
    stream->previous = NULL;
    stream->next = conn->streams;
    if (conn->streams != NULL)
        conn->streams->previous = stream;
    conn->streams = stream;
    conn->streams_count++;
    stream->max_window = conn->options.receive_window;
    stream->window = stream->max_window < AQ_FIRST_WINDOW ? stream->max_window : AQ_FIRST_WINDOW;
    stream->returned_at = conn->now;
    atomic_store(&stream->report_at, stream->window / 4);
}

/* A stream of the peer begins to wait for its Connect command. All wait equally long, so the oldest is due first. */
static void begin_header(aq_conn *conn, aq_stream *stream)
{
    stream->deadline = aq_conn_alive_time(conn, conn->now) + conn->options.command_timeout;
    stream->header_previous = conn->header_last;
    stream->header_next = NULL;
    if (conn->header_last != NULL)
        conn->header_last->header_next = stream;
    else
        conn->header_first = stream;
    conn->header_last = stream;
}

/* The header is complete, or never will be. */
static void end_header(aq_conn *conn, aq_stream *stream)
{
    stream->header_done = 1;
    stream->deadline = UINT64_MAX;
    if (stream->header_previous != NULL)
        stream->header_previous->header_next = stream->header_next;
    else
        conn->header_first = stream->header_next;
    if (stream->header_next != NULL)
        stream->header_next->header_previous = stream->header_previous;
    else
        conn->header_last = stream->header_previous;
    stream->header_previous = stream->header_next = NULL;
}

/* Ends the peer's streams whose Connect was not complete in time. Other streams are not affected. */
void aq_conn_end_late_headers(aq_conn *conn, uint64_t now)
{
    while (conn->header_first != NULL && conn->header_first->deadline <= aq_conn_alive_time(conn, now)) {
        aq_stream *stream = conn->header_first;
        end_header(conn, stream);
        stream->shut_sent = 1;
        aq_count(conn->host->counters, AQ_C_commands_late, 1);
        ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, AQ_STREAM_ABORTED);
    }
}

/* QUIC no longer needs the stream, or the connection has ended. */
static void unlink_stream(aq_conn *conn, aq_stream *stream)
{
    aq_conn_unqueue_stream(conn, stream);
    if (stream->quic_id < 0 && !stream->peer_opened) {
        remove_from(&conn->opening_first, &conn->opening_last, stream);
        atomic_fetch_sub(&conn->opening_count, 1);
    }
    if (stream->previous != NULL)
        stream->previous->next = stream->next;
    else
        conn->streams = stream->next;
    if (stream->next != NULL)
        stream->next->previous = stream->previous;
    conn->streams_count--;
    if (stream->peer_opened && !stream->header_done)
        end_header(conn, stream);
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
    for (; conn->streams != NULL && max > 0; max--) {
        atomic_store(&conn->streams->dead, dead);
        unlink_stream(conn, conn->streams);
    }
}

/* ---- opening ----------------------------------------------------------------------------------------------- */

void aq_conn_open_waiting(aq_conn *conn)
{
    while (conn->opening_first != NULL && ngtcp2_conn_get_streams_bidi_left(conn->quic) > 0) {
        aq_stream *stream = conn->opening_first;
        if (ngtcp2_conn_open_bidi_stream(conn->quic, &stream->quic_id, &stream->tag) != 0) {
            /* No memory: the owner gives the stream up. */
            aq_count(conn->host->counters, AQ_C_memory_failures, 1);
            stream->quic_id = -1;
            atomic_store(&stream->local_reset, 1);
            unlink_stream(conn, stream);
            continue;
        }
        remove_from(&conn->opening_first, &conn->opening_last, stream);
        atomic_fetch_sub(&conn->opening_count, 1);
        aq_count(conn->host->counters, AQ_C_streams_opened, 1);
        atomic_store(&stream->opened, 1);
        if (atomic_load(&stream->reset))
            aq_stream_notify(stream); /* the owner has left already */
        aq_conn_queue_stream(conn, stream);
    }
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
    link_stream(conn, stream);
    stream->header_done = 1;
    put_last(&conn->opening_first, &conn->opening_last, stream);
    aq_conn_open_waiting(conn);
}

/* ---- credit and updates from owners -------------------------------------------------------------------------- */

/* Returns the maximum unused credit that the peer may have on the connection now. */
static uint64_t connection_credit(aq_conn *conn)
{
    uint64_t share = aq_budget_left(conn->host->budget) / AQ_BUDGET_SHARE;
    uint64_t max = conn->window < share ? conn->window : share;
    return max > AQ_CONN_MIN_WINDOW ? max : AQ_CONN_MIN_WINDOW;
}

/* Doubles the window if half of it was used up within four round trips, or within the time for which a busy machine may
 * delay the engine: a smaller window would hold up a fast peer. */
static void grow_connection(aq_conn *conn)
{
    ngtcp2_conn_info info;
    uint64_t fast;
    if (conn->delivered - conn->window_from < conn->window / 2)
        return;
    ngtcp2_conn_get_conn_info(conn->quic, &info);
    fast = 4 * info.smoothed_rtt > GROWTH_TIME ? 4 * info.smoothed_rtt : GROWTH_TIME;
    if (conn->now - conn->window_from_at < fast && conn->window < conn->options.connection_window)
        conn->window *= 2;
    conn->window_from = conn->delivered;
    conn->window_from_at = conn->now;
}

static void extend_connection(aq_conn *conn)
{
    uint64_t unused = conn->granted - conn->delivered, held = conn->granted - conn->consumed, max, more;
    /* Before admission there is one small window for everything: what fills it, consumed or not, is all that may
     * arrive. */
    if (!conn->joined || !conn->handshake_done)
        return;
    grow_connection(conn);
    max = connection_credit(conn);
    if (unused + max / 4 > max || held >= conn->options.connection_window)
        return;
    more = max - unused;
    if (more > conn->options.connection_window - held)
        more = conn->options.connection_window - held;
    conn->granted += more;
    ngtcp2_conn_extend_max_offset(conn->quic, more);
}

void aq_conn_return_credit(aq_conn *conn)
{
    aq_credit *credit = conn->credit;
    if (conn->quic == NULL)
        return;
    if (atomic_load_explicit(&credit->owed, memory_order_relaxed) > 0)
        aq_conn_consumed(conn, atomic_exchange(&credit->owed, 0));
    extend_connection(conn);
    if (atomic_load_explicit(&credit->streams, memory_order_relaxed) > 0)
        ngtcp2_conn_extend_max_streams_bidi(conn->quic, (size_t)atomic_exchange(&credit->streams, 0));
}

/* Returns the growth of the window of a stream whose reader keeps up. */
static uint64_t window_growth(const aq_conn *conn, const aq_stream *stream)
{
    uint64_t grow = stream->window < AQ_SECOND_WINDOW ? AQ_SECOND_WINDOW - stream->window : stream->window;
    uint64_t max =
        conn->options.connection_window / 2 < AQ_WINDOW_GROWTH ? conn->options.connection_window / 2 : AQ_WINDOW_GROWTH;
    uint64_t grown = atomic_load_explicit(&conn->credit->grown, memory_order_relaxed);
    uint64_t part = aq_budget_growth(conn->host->budget, grown);
    uint64_t left = aq_budget_left(conn->host->budget) / AQ_WINDOW_SHARE, share;
    if (max > part)
        max = part;
    share = grown < max ? (max - grown) / AQ_WINDOW_SHARE : 0;
    if (grow > stream->max_window - stream->window)
        grow = stream->max_window - stream->window;
    if (share > left)
        share = left;
    return grow < share ? grow : share;
}

/* Returns by how much a stream's grown window shrinks while at most a quarter of the receive budget is left. */
static uint64_t window_shrinking(const aq_conn *conn, const aq_stream *stream, uint64_t delta)
{
    const aq_budget *budget = conn->host->budget;
    if (aq_budget_left(budget) > atomic_load_explicit(&budget->max, memory_order_relaxed) / 4)
        return 0;
    return stream->grown < delta ? stream->grown : delta;
}

static void return_stream_credit(aq_conn *conn, aq_stream *stream, uint64_t now)
{
    uint64_t taken = aq_pipe_taken(&stream->rx), delta = taken - stream->returned, grow = 0, shrink;
    if (delta < stream->window / 4)
        return;
    shrink = window_shrinking(conn, stream, delta);
    if (shrink == 0 && stream->window < stream->max_window) {
        ngtcp2_conn_info info;
        ngtcp2_conn_get_conn_info(conn->quic, &info);
        if (now - stream->returned_at < 4 * info.smoothed_rtt)
            grow = window_growth(conn, stream);
    }
    stream->window += grow - shrink;
    stream->grown += grow - shrink;
    aq_credit_grow(conn->credit, grow - shrink);
    stream->returned = taken;
    stream->returned_at = now;
    atomic_store(&stream->report_at, taken + stream->window / 4);
    ngtcp2_conn_extend_max_stream_offset(conn->quic, stream->quic_id, delta + grow - shrink);
}

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
            unlink_stream(conn, stream);
            return;
        }
        aq_count(conn->host->counters, AQ_C_streams_reset, 1);
        ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, reset - 1);
    }
    aq_conn_return_credit(conn);
    if (stream->quic_id >= 0 && !atomic_load(&stream->rx_fin))
        return_stream_credit(conn, stream, now);
    /* fin before readable: the owner publishes them in the opposite order. */
    fin = atomic_load(&stream->tx_fin);
    if (aq_pipe_readable(&stream->tx) > 0 || (fin && !stream->fin_sent))
        aq_conn_queue_stream(conn, stream);
    conn->host->touch(conn->host->engine, conn);
}

/* ---- lack of memory ----------------------------------------------------------------------------------------- */

/* Whether bytes of a stream wait for a slow reader, here or at the peer, and nothing else refers to them. */
static int holds_memory(const aq_stream *stream)
{
    return aq_pipe_readable(&stream->rx) > 0 || (stream->blocked && aq_pipe_readable(&stream->tx) > 0 &&
                                                 aq_pipe_released(&stream->tx) == aq_pipe_taken(&stream->tx));
}

static void drop_all(aq_pipe *pipe)
{
    aq_pipe_take(pipe, (size_t)aq_pipe_readable(pipe));
    aq_pipe_release(pipe, aq_pipe_taken(pipe));
}

/* Cuts off a stream. */
static void refuse_rest(aq_conn *conn, aq_stream *stream)
{
    aq_conn_unqueue_stream(conn, stream);
    /* An announced end is revoked: the reader must not take partial data for complete. */
    atomic_store(&stream->rx_fin, 0);
    atomic_store(&stream->local_reset, 1); /* immediately: the memory is needed */
    stream->shut_sent = 1;
    ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, AQ_STREAM_ABORTED);
    conn->host->touch_stream(conn->host->engine, stream);
}

/* Cuts off a stream that holds memory, and frees that memory. The engine owns its socket. */
static void give_up(aq_conn *conn, aq_stream *stream)
{
    refuse_rest(conn, stream);
    drop_all(&stream->rx);
    /* ngtcp2 may still point to what it has sent, until it is acknowledged. */
    if (aq_pipe_released(&stream->tx) == aq_pipe_taken(&stream->tx)) {
        drop_all(&stream->tx);
        aq_pipe_trim(&stream->tx);
    }
}

int aq_conn_make_room(aq_conn *conn, const aq_stream *stream)
{
    for (aq_stream *newer = conn->streams; newer != NULL && newer != stream; newer = newer->next) {
        if (newer->attached_fd < 0 || newer->quic_id < 0 || newer->shut_sent || !holds_memory(newer))
            continue;
        aq_count(conn->host->counters, AQ_C_memory_failures, 1);
        give_up(conn, newer);
        return 1;
    }
    return 0;
}

/* Returns how many of the `held` bytes a connection has to give up: enough to leave a quarter of the budget free, at
 * most half of them, and not so few that the next check finds the same. */
static uint64_t to_shed(const aq_conn *conn, uint64_t held)
{
    uint64_t left = aq_budget_left(conn->host->budget);
    uint64_t quarter = atomic_load_explicit(&conn->host->budget->max, memory_order_relaxed) / 4;
    uint64_t need = left < quarter ? quarter - left : 0;
    if (need < held / 16)
        need = held / 16;
    return need < held / 2 ? need : held / 2;
}

int aq_conn_shed(aq_conn *conn, uint64_t now)
{
    const aq_account *account = &conn->credit->account;
    uint64_t held = atomic_load_explicit(&account->held, memory_order_relaxed), coming = 0;
    uint64_t goal = held - to_shed(conn, held);
    conn->now = now;
    for (aq_stream *stream = conn->streams; stream != NULL && held > goal + coming; stream = stream->next) {
        uint64_t bytes = aq_pipe_written(&stream->rx) - aq_pipe_taken(&stream->rx);
        if (bytes == 0 || stream->quic_id < 0 || stream->shut_sent)
            continue;
        aq_count(conn->host->counters, AQ_C_streams_shed, 1);
        if (stream->attached_fd >= 0) {
            give_up(conn, stream);
        } else {
            refuse_rest(conn, stream);
            coming += bytes;
        }
        held = atomic_load_explicit(&account->held, memory_order_relaxed);
    }
    if (held > goal + coming) {
        aq_count(conn->host->counters, AQ_C_connections_shed, 1);
        aq_conn_close(conn, AQ_CLOSE_LOCAL, 0, "receive budget exhausted", now);
    }
    return coming > 0;
}

/* ---- callbacks ---------------------------------------------------------------------------------------------- */

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
        end_header(conn, stream);
        atomic_store(&stream->reset, AQ_STREAM_ABORTED + 1);
        stream->shut_sent = 1;
        ngtcp2_conn_shutdown_stream(conn->quic, 0, stream->quic_id, AQ_STREAM_ABORTED);
        step = *length; /* none of it will be consumed in any other way */
        *length = 0;
        return (int)step;
    }
    if (whole > 0 && (size_t)whole <= had + step) {
        aq_event event = {.type = AQ_EVENT_STREAM, .stream = stream->id, .length = (uint32_t)whole};
        size_t used = (size_t)whole - had;
        stream->header_length = (uint8_t)whole;
        end_header(conn, stream);
        aq_connect_decode(stream->header, &stream->peer);
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
            end_header(conn, stream);
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

void aq_conn_drop_incoming(aq_conn *conn, aq_incoming *incoming)
{
    incoming->done = 1;
    aq_incoming_release(incoming);
    if (incoming->previous != NULL)
        incoming->previous->next = incoming->next;
    else
        conn->incoming_first = incoming->next;
    if (incoming->next != NULL)
        incoming->next->previous = incoming->previous;
    else
        conn->incoming_last = incoming->previous;
    incoming->previous = incoming->next = NULL;
}

void aq_conn_free_incoming(aq_conn *conn, aq_incoming *incoming)
{
    if (!incoming->done)
        aq_conn_drop_incoming(conn, incoming);
    if (incoming->all_previous != NULL)
        incoming->all_previous->all_next = incoming->all_next;
    else
        conn->incoming = incoming->all_next;
    if (incoming->all_next != NULL)
        incoming->all_next->all_previous = incoming->all_previous;
    aq_conn_give_back(conn, incoming);
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
static int turn_away(aq_conn *conn, int64_t id)
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
            return turn_away(conn, id);
        aq_incoming_init(incoming);
        incoming->account = &conn->credit->account;
        incoming->quic_id = id;
        incoming->deadline = aq_conn_alive_time(conn, conn->now) + conn->options.command_timeout;
        incoming->previous = conn->incoming_last;
        if (conn->incoming_last != NULL)
            conn->incoming_last->next = incoming;
        else
            conn->incoming_first = incoming;
        conn->incoming_last = incoming;
        incoming->all_next = conn->incoming;
        if (conn->incoming != NULL)
            conn->incoming->all_previous = incoming;
        conn->incoming = incoming;
        ngtcp2_conn_set_stream_user_data(quic, id, &incoming->tag);
    } else {
        aq_stream_setup setup = host->streams;
        aq_stream *stream;
        aq_id name;
        setup.send_window = conn->options.send_window;
        setup.receive_window = conn->options.receive_window;
        stream = aq_stream_new(&setup, conn->id, conn->credit);
        if (stream == NULL)
            return turn_away(conn, id);
        name = aq_slab_add(setup.table, stream);
        if (name < 0) {
            aq_stream_destroy(stream);
            return turn_away(conn, id);
        }
        stream->id = name;
        stream->quic_id = id;
        stream->peer_opened = 1;
        atomic_store(&stream->opened, 1);
        link_stream(conn, stream);
        begin_header(conn, stream);
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
    if (tag == NULL) { /* reset by turn_away() */
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
        unlink_stream(conn, stream);
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
            end_header(conn, stream);
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
    for (aq_stream *stream = conn->streams; stream != NULL; stream = stream->next) {
        if (stream->blocked) {
            stream->blocked = 0;
            aq_conn_queue_stream(conn, stream);
        }
    }
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
