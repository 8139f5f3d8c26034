/* Lack of memory: streams that hold received data for slow readers are cut off. */
#include "quic/conn.h"

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
static void cut_off_stream(aq_conn *conn, aq_stream *stream)
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
    cut_off_stream(conn, stream);
    drop_all(&stream->rx);
    /* ngtcp2 may still point to what it has sent, until it is acknowledged. */
    if (aq_pipe_released(&stream->tx) == aq_pipe_taken(&stream->tx)) {
        drop_all(&stream->tx);
        aq_pipe_trim(&stream->tx);
    }
}

int aq_conn_make_room(aq_conn *conn, const aq_stream *stream)
{
    for (aq_stream *newer = conn->streams.first; newer != NULL && newer != stream; newer = newer->conn_link.next) {
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

int aq_conn_shed(aq_conn *conn, uint64_t now, int *is_enough)
{
    const aq_account *account = &conn->credit->account;
    uint64_t held = atomic_load_explicit(&account->held, memory_order_relaxed), coming = 0;
    uint64_t goal = held - to_shed(conn, held);
    conn->now = now;
    for (aq_stream *stream = conn->streams.first; stream != NULL && held > goal + coming;
         stream = stream->conn_link.next) {
        uint64_t bytes = aq_pipe_written(&stream->rx) - aq_pipe_taken(&stream->rx);
        if (bytes == 0 || stream->quic_id < 0 || stream->shut_sent)
            continue;
        aq_count(conn->host->counters, AQ_C_streams_shed, 1);
        if (stream->attached_fd >= 0) {
            give_up(conn, stream);
        } else {
            cut_off_stream(conn, stream);
            coming += bytes;
        }
        held = atomic_load_explicit(&account->held, memory_order_relaxed);
    }
    *is_enough = held <= goal + coming;
    return coming > 0;
}
