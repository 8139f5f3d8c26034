/* Flow control of received data: the credit that the peer gets for what has been consumed, and the growth of the
 * windows of a connection and of its streams. */
#include "quic/conn.h"

/* Using up half of the connection's window within this time is fast, however short the path. */
#define GROWTH_TIME (50 * AQ_NSEC_PER_MSEC)

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

void aq_conn_return_stream_credit(aq_conn *conn, aq_stream *stream, uint64_t now)
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
