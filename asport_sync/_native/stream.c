/* The path of a TCP byte, both ends alike:
 *
 *   1. aq_stream_pump reads the socket into the free room of tx and tells the engine
 *   2. conn.c packs bytes of tx into packets; they stay until acknowledged (aq_pipe_release)
 *   3. the peer's conn.c copies them once, into rx, and wakes the owner (aq_stream_signal)
 *   4. aq_stream_pump writes them to the socket and reports them as consumed (credit)
 */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define READ_LEAST AQ_SEGMENT_SMALL
#define READ_MOST (16U * AQ_SEGMENT_LARGE) /* about 256 KiB: larger reads no longer save anything measurable */
#define VECTORS 16

aq_credit *aq_credit_new(uint64_t threshold, aq_id connection, aq_ready *ready)
{
    aq_credit *credit = calloc(1, sizeof(*credit));
    if (credit != NULL) {
        atomic_init(&credit->references, 1);
        credit->node.kind = AQ_READY_CREDIT;
        credit->threshold = threshold;
        credit->connection = connection;
        credit->ready = ready;
    }
    return credit;
}

void aq_credit_ref(aq_credit *credit)
{
    atomic_fetch_add_explicit(&credit->references, 1, memory_order_relaxed);
}

void aq_credit_unref(aq_credit *credit)
{
    if (atomic_fetch_sub_explicit(&credit->references, 1, memory_order_acq_rel) == 1)
        free(credit);
}

aq_stream *aq_stream_new(const aq_stream_setup *setup, aq_id connection, aq_credit *credit)
{
    aq_stream *stream = aligned_alloc(_Alignof(aq_stream), sizeof(aq_stream));
    if (stream == NULL)
        return NULL;
    memset(stream, 0, sizeof(*stream));
    stream->node.kind = AQ_READY_STREAM;
    stream->connection = connection;
    stream->table = setup->table;
    stream->ready = setup->ready;
    stream->counters = setup->counters;
    stream->credit = credit;
    aq_credit_ref(credit);
    stream->quic_id = -1;
    stream->deadline = UINT64_MAX;
    stream->attached_fd = -1;
    stream->read_want = READ_LEAST;
    stream->began = aq_now();
    stream->can_read = stream->can_write = 1;
    aq_pipe_init(&stream->tx, setup->pool, setup->send_window);
    stream->tx.left = AQ_RESERVE_LEFT_BY_READS;
    aq_pipe_init(&stream->rx, setup->pool, setup->receive_window);
    return stream;
}

void aq_stream_destroy(void *object)
{
    aq_stream *stream = object;
    /* Bytes that came and were never taken still count against the connection's window. */
    aq_credit *credit = stream->credit;
    atomic_fetch_add(&credit->owed, aq_pipe_written(&stream->rx) - stream->credited);
    atomic_fetch_sub(&credit->grown, stream->grown);
    /* A stream of the peer's counts against its limit until now, not only until QUIC has closed it: that bounds what it
     * makes us hold. */
    if (stream->peer_opened)
        atomic_fetch_add(&credit->streams, 1);
    if (stream->peer_opened || atomic_load(&credit->owed) >= credit->threshold) {
        aq_credit_ref(credit);
        if (!aq_ready_add(credit->ready, &credit->node))
            aq_credit_unref(credit);
    }
    if (stream->accepted)
        atomic_fetch_sub(&credit->accepted, 1);
    aq_credit_unref(credit);
    aq_pipe_destroy(&stream->tx);
    aq_pipe_destroy(&stream->rx);
    free(stream);
}

void aq_stream_notify(aq_stream *stream)
{
    /* Orders what the caller published before the look at the flag: the engine clears it first and looks then. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&stream->node.queued))
        return;
    /* The list's reference is taken first: once it is in the list, the engine may be done with it at any moment. */
    if (aq_slab_get(stream->table, stream->id) == NULL)
        return; /* the name is gone: nobody is left to look */
    if (!aq_ready_add(stream->ready, &stream->node))
        aq_slab_put(stream->table, stream->id);
}

void aq_stream_signal(aq_stream *stream, unsigned what)
{
    /* Pairs with aq_wake_prepare() in the relay: either this sees `wants`, or the worker sees what was published
     * before. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&stream->wants, memory_order_relaxed) & what) {
        aq_wake *wake = atomic_load(&stream->wake);
        if (wake != NULL)
            aq_wake_signal(wake);
    }
}

static void abort_with(aq_stream *stream, int fd, enum aq_stream_end end, int error)
{
    /* A stream that was cut must not look like one that ended: the TCP peer gets a reset, too, when its socket is
     * closed. */
    struct linger hard = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    stream->aborted = 1;
    stream->result.end = end;
    stream->result.error = error;
    if (end != AQ_END_CONNECTION && end != AQ_END_STOPPED) {
        uint64_t none = 0;
        atomic_compare_exchange_strong(&stream->reset, &none, AQ_STREAM_ABORTED + 1);
    }
}

static uint64_t unsent(const aq_stream *stream)
{
    /* taken first: it never passes written. */
    uint64_t taken = aq_pipe_taken(&stream->tx);
    return aq_pipe_written(&stream->tx) - taken;
}

static int is_scarce(const aq_stream *stream)
{
    return atomic_load_explicit(&stream->tx.pool->live, memory_order_relaxed) >= AQ_PIPES_MUCH;
}

int aq_stream_may_read(const aq_stream *stream)
{
    uint64_t most = is_scarce(stream) ? AQ_READ_AHEAD_SCARCE : AQ_READ_AHEAD;
    return aq_pipe_room(&stream->tx) > 0 && unsent(stream) + AQ_SEGMENT_LARGE <= most;
}

/* TCP -> tx. Returns 1 while there may be more at once. */
static int read_socket(aq_stream *stream, int fd, uint64_t *budget)
{
    struct iovec vectors[VECTORS];
    size_t want = stream->read_want;
    ssize_t got;
    int count;
    if (!aq_stream_may_read(stream))
        return 0;
    if (want > AQ_READ_AHEAD_SCARCE && is_scarce(stream))
        want = AQ_READ_AHEAD_SCARCE;
    count = aq_pipe_space(&stream->tx, vectors, VECTORS, want);
    if (count < 0) {
        /* The bytes wait in the socket, whose other end is held up. */
        aq_count(stream->counters, AQ_C_memory_failures, 1);
        stream->starved = 1;
        return 0;
    }
    if (count == 0)
        return 0;
    got = readv(fd, vectors, count);
    if (got > 0) {
        size_t length = (size_t)got;
        size_t offered = 0;
        for (int i = 0; i < count; i++)
            offered += vectors[i].iov_len;
        aq_pipe_commit(&stream->tx, length);
        stream->result.sent += length;
        *budget = *budget > length ? *budget - length : 0;
        if (length >= stream->read_want && stream->read_want < READ_MOST)
            stream->read_want = stream->read_want * 8 < READ_MOST ? stream->read_want * 8 : READ_MOST;
        else if (length < stream->read_want / 8)
            stream->read_want = stream->read_want / 8 > READ_LEAST ? stream->read_want / 8 : READ_LEAST;
        /* Less than there was room for: the socket is empty, and whatever comes, an end too, is announced anew. Not so
         * once a hang-up was announced, for that comes once. */
        stream->can_read = length == offered || stream->read_ended;
        return 1;
    }
    if (got == 0) {
        stream->tx_done = 1;
        atomic_store_explicit(&stream->tx_fin, 1, memory_order_release);
        return 1;
    }
    if (errno == EAGAIN)
        stream->can_read = 0;
    else if (errno != EINTR)
        abort_with(stream, fd, AQ_END_SOCKET_ERROR, errno);
    return 0;
}

/* rx -> TCP. Returns 1 while there may be more at once. */
static int write_socket(aq_stream *stream, int fd, uint64_t *budget)
{
    struct iovec vectors[VECTORS];
    /* fin before readable: once fin is seen, every byte before it is. */
    int fin = atomic_load_explicit(&stream->rx_fin, memory_order_acquire);
    int count = aq_pipe_peek(&stream->rx, vectors, VECTORS, READ_MOST);
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)count};
    ssize_t put;
    if (count == 0) {
        if (fin) {
            stream->rx_done = 1;
            /* With both directions over, closing says the same. It fails only where the peer has gone already, which
             * reading will tell. */
            if (!stream->tx_done)
                shutdown(fd, SHUT_WR);
        }
        return 0;
    }
    put = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (put > 0) {
        size_t length = (size_t)put;
        aq_pipe_take(&stream->rx, length);
        aq_pipe_release(&stream->rx, aq_pipe_taken(&stream->rx));
        stream->result.received += length;
        *budget = *budget > length ? *budget - length : 0;
        return 1;
    }
    if (put < 0 && errno == EAGAIN)
        stream->can_write = 0;
    else if (put < 0 && errno != EINTR)
        abort_with(stream, fd, AQ_END_SOCKET_ERROR, errno);
    return 0;
}

/* Counts what was taken from rx into the connection's credit. Returns 1 when the engine should extend windows. */
static int report_consumed(aq_stream *stream)
{
    uint64_t taken = aq_pipe_taken(&stream->rx), more = taken - stream->credited, owed;
    if (more == 0)
        return 0;
    owed = atomic_fetch_add(&stream->credit->owed, more) + more;
    stream->credited = taken;
    return owed >= stream->credit->threshold || taken >= atomic_load(&stream->report_at);
}

unsigned aq_stream_pump(aq_stream *stream, int fd, uint64_t read_budget, uint64_t write_budget)
{
    uint64_t sent = stream->result.sent;
    int tell = 0;
    unsigned need = 0;

    stream->starved = 0;
    if (stream->aborted)
        return 0;
    if (!stream->rx_done) {
        while (stream->can_write && write_budget > 0 && !stream->aborted && write_socket(stream, fd, &write_budget))
            ;
        tell |= report_consumed(stream);
    }
    /* Whatever the socket does: these two may be all that will ever happen to the stream. */
    if (!stream->aborted && atomic_load_explicit(&stream->local_reset, memory_order_acquire))
        abort_with(stream, fd, AQ_END_LOCAL_RESET, 0);
    if (!stream->tx_done && atomic_load_explicit(&stream->tx_stopped, memory_order_acquire))
        stream->tx_done = 1;
    if (!stream->rx_done && !stream->aborted) {
        int dead = atomic_load_explicit(&stream->dead, memory_order_acquire);
        if (atomic_load_explicit(&stream->rx_reset, memory_order_acquire))
            abort_with(stream, fd, AQ_END_PEER_RESET, 0);
        else if (dead == 2)
            abort_with(stream, fd, AQ_END_STOPPED, 0);
        else if (dead != 0 && aq_pipe_readable(&stream->rx) == 0 &&
                 !atomic_load_explicit(&stream->rx_fin, memory_order_acquire))
            abort_with(stream, fd, AQ_END_CONNECTION, 0);
    }
    if (!stream->tx_done && !stream->aborted) {
        int dead = atomic_load_explicit(&stream->dead, memory_order_acquire);
        if (dead != 0 && stream->rx_done)
            abort_with(stream, fd, dead == 2 ? AQ_END_STOPPED : AQ_END_CONNECTION, 0);
        while (dead == 0 && stream->can_read && read_budget > 0 && !stream->aborted && !stream->tx_done &&
               read_socket(stream, fd, &read_budget))
            ;
    }
    if (tell || stream->aborted || stream->tx_done || stream->result.sent != sent)
        aq_stream_notify(stream);
    if (stream->aborted || (stream->tx_done && stream->rx_done))
        return 0;
    if (write_budget == 0 || read_budget == 0)
        need |= AQ_NEED_TURN;
    /* Once the connection is gone nothing is read any more; what came before is still written. */
    if (!stream->tx_done && !atomic_load_explicit(&stream->dead, memory_order_acquire)) {
        if (!stream->can_read) {
            need |= AQ_NEED_READ;
            aq_pipe_trim(&stream->tx); /* it may be long: an idle stream keeps no room that it does not use */
        } else {
            need |= stream->starved ? AQ_NEED_MEMORY : AQ_NEED_SPACE;
        }
    }
    if (!stream->rx_done)
        need |= stream->can_write ? AQ_NEED_DATA : AQ_NEED_WRITE;
    return need;
}

void aq_stream_socket_failed(aq_stream *stream, int fd, int error)
{
    socklen_t length = sizeof(error);
    stream->can_read = stream->can_write = 1;
    stream->hung_up = 1;
    if (stream->aborted || (error == 0 && !stream->tx_done))
        return; /* reading will tell */
    if (error == 0)
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    abort_with(stream, fd, AQ_END_SOCKET_ERROR, error != 0 ? error : ECONNRESET);
    aq_stream_notify(stream);
}

void aq_stream_leave(aq_stream *stream)
{
    atomic_store(&stream->relay_over, 1);
    if (atomic_load(&stream->quic_closed))
        aq_slab_remove(stream->table, stream->id);
    else
        aq_stream_notify(stream);
}

void aq_stream_close(aq_stream *stream)
{
    atomic_store(&stream->quic_closed, 1);
    /* Not relayed yet: what came waits for whoever relays later, even if the connection has ended meanwhile. */
    if (atomic_load(&stream->relay_over))
        aq_slab_remove(stream->table, stream->id);
}

int aq_stream_disown(aq_stream *stream)
{
    if (atomic_exchange(&stream->owned, 1))
        return 0;
    aq_stream_leave(stream);
    return 1;
}
