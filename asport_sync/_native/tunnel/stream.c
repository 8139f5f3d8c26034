/* The path of a TCP byte, the same at both ends:
 *
 *   1. aq_stream_transfer reads the socket into the free room of tx and notifies the engine; with a bandwidth limit, as
 *      many bytes as it gets tokens for
 *   2. conn_send.c packs bytes of tx into packets; they stay until acknowledged (aq_pipe_release)
 *   3. the peer's conn_streams.c copies them once, into rx, and the engine wakes the owner (aq_stream_signal)
 *   4. aq_stream_transfer writes them to the socket, limited likewise, and reports them as consumed (credit)
 */
#include "tunnel/stream.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define READ_MIN AQ_SEGMENT_SMALL
/* Bytes: 4 ms at 1 Gbit/s, during which the engine may be busy with others. With a quarter of that a single stream
 * through a socket paced at 2.4 Gbit/s lost 3 % and cost a third more processor time; with this much it lost nothing.
 */
#define UNSENT_MAX (512 * 1024)
#define READ_MAX (16U * AQ_SEGMENT_LARGE) /* about 256 KiB: larger reads no longer save anything measurable */
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
    if (atomic_fetch_sub_explicit(&credit->references, 1, memory_order_acq_rel) != 1)
        return;
    aq_buckets_release(&credit->buckets);
    free(credit);
}

void aq_credit_grow(aq_credit *credit, uint64_t bytes)
{
    atomic_fetch_add_explicit(&credit->grown, bytes, memory_order_relaxed);
    if (credit->account.budget != NULL)
        atomic_fetch_add_explicit(&credit->account.budget->grown, bytes, memory_order_relaxed);
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
    atomic_fetch_add_explicit(&credit->relays, 1, memory_order_relaxed);
    stream->quic_id = -1;
    stream->deadline = UINT64_MAX;
    stream->attached_fd = -1;
    stream->read_want = READ_MIN;
    stream->began = aq_now();
    stream->can_read = stream->can_write = 1;
    for (uint8_t direction = 0; direction < AQ_DIRECTIONS; direction++)
        stream->takers[direction].direction = direction;
    aq_keepalive_init(&stream->keepalive, setup->keepalive != NULL ? atomic_load(setup->keepalive) : 0);
    aq_pipe_init(&stream->tx, setup->pool, setup->send_window);
    stream->tx.left = AQ_RESERVE_LEFT_BY_READS;
    aq_pipe_init(&stream->rx, setup->pool, setup->receive_window);
    stream->rx.account = &credit->account;
    return stream;
}

void aq_stream_destroy(void *object)
{
    aq_stream *stream = object;
    /* Received bytes that were never taken still count against the connection's window. */
    aq_credit *credit = stream->credit;
    aq_count(stream->counters, AQ_C_stream_bytes_dropped,
             aq_pipe_readable(&stream->tx) + aq_pipe_readable(&stream->rx));
    atomic_fetch_add(&credit->owed, aq_pipe_written(&stream->rx) - stream->credited);
    aq_credit_grow(credit, 0 - stream->grown);
    /* A stream of the peer counts against the stream limit until now, not only until QUIC has closed it. This bounds
     * the memory that the peer can make us hold. */
    if (stream->peer_opened)
        atomic_fetch_add(&credit->streams, 1);
    if (stream->peer_opened || atomic_load(&credit->owed) >= credit->threshold) {
        aq_credit_ref(credit);
        if (!aq_ready_add(credit->ready, &credit->node))
            aq_credit_unref(credit);
    }
    aq_pipe_destroy(&stream->tx);
    aq_pipe_destroy(&stream->rx);
    atomic_fetch_sub_explicit(&credit->relays, 1, memory_order_relaxed);
    aq_credit_unref(credit); /* after the pipes, which count there */
    free(stream);
}

void aq_stream_notify(aq_stream *stream)
{
    /* Orders what the caller has published before the check of the flag: the engine clears the flag first, then looks
     * at the stream. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&stream->node.queued))
        return;
    /* Take the list's reference first: once the stream is in the list, the engine may be done with it at any moment. */
    if (aq_slab_get(stream->table, stream->id) == NULL)
        return; /* the id is gone: both sides are done with the stream */
    if (!aq_ready_add(stream->ready, &stream->node))
        aq_slab_put(stream->table, stream->id);
}

void aq_stream_signal(aq_stream *stream, unsigned what)
{
    /* Pairs with aq_wake_prepare() in relay.c: either this sees `wants`, or the worker sees what was published before.
     */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&stream->wants, memory_order_relaxed) & what) {
        aq_wake *wake = atomic_load(&stream->wake);
        if (wake != NULL)
            aq_wake_signal(wake);
    }
}

/* How a relay ends
 *
 * In TCP a reset follows every byte sent before it, and so it does in a relay:
 * - A socket that can no longer be written may still have data to read. It is read to its end. A FIN in front of the
 *   reset becomes a FIN of the stream, too, and the peer is sent STOP_SENDING.
 * - If the socket did not end in order, RESET_STREAM is sent once everything that was read is acknowledged.
 * - RESET_STREAM from the peer, or the end of the connection, takes effect once all received data has been written.
 *   Closing the socket resets its connection and discards unsent bytes, so it is closed only once the TCP peer's kernel
 *   has all of them.
 * Each of these waits is cut short, and counted, when nothing has moved for AQ_ENDING_GRACE_PERIOD.
 */

/* Makes close() reset the TCP connection. */
static void reset_on_close(int fd)
{
    struct linger hard = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
}

/* Keeps urgent bytes in their place in the byte stream; otherwise the kernel takes them out. */
static void keep_urgent(int fd)
{
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one));
}

/* Disables Nagle's algorithm: holding small pieces back would add to their delay. */
static void hold_nothing_back(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* Limits data that the kernel holds but may not send yet to UNSENT_MAX; the socket is writable again below half of
 * that. Otherwise the kernel takes up to net.ipv4.tcp_wmem, 4 MiB, for each receiver that does not read, from memory
 * that all TCP connections of the machine share (net.ipv4.tcp_mem). Data that waits here instead is bounded by flow
 * control and receive budget. Bytes in flight do not count, so distant receivers stay as fast. */
static void keep_unsent_here(int fd)
{
    int max = UNSENT_MAX;
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &max, sizeof(max));
}

static void set_options(int fd, const aq_keepalive *keepalive)
{
    hold_nothing_back(fd);
    reset_on_close(fd);
    keep_urgent(fd);
    keep_unsent_here(fd);
    aq_keepalive_begin(keepalive, fd);
}

void aq_stream_prepare(int fd, uint32_t keepalive)
{
    aq_keepalive of_all;
    aq_keepalive_init(&of_all, keepalive);
    set_options(fd, &of_all);
}

void aq_stream_begin(aq_stream *stream, int fd)
{
    set_options(fd, &stream->keepalive);
    stream->waits_since = 0;
    stream->pause = 0;
}

static void abort_with(aq_stream *stream, enum aq_stream_end end)
{
    stream->aborted = 1;
    stream->result.end = end;
    if (end == AQ_END_SOCKET_ERROR)
        stream->result.error = stream->socket_error;
    else if (end == AQ_END_PEER_RESET)
        stream->result.error = atomic_load_explicit(&stream->rx_code, memory_order_relaxed);
}

/* The socket can no longer be written. */
static void lose_socket(aq_stream *stream, int error)
{
    if (stream->socket_error == 0)
        stream->socket_error = error;
    stream->rx_lost = 1;
    stream->can_read = 1; /* epoll does not report again what is left to read */
}

/* Returns whether to go on waiting during the end of a relay: there is progress, or the grace period is not over.
 * Progress means that `moved` differs from its value in the last call. */
static int is_within_grace_period(aq_stream *stream, uint64_t moved)
{
    uint64_t now = aq_now();
    if (stream->waits_since == 0 || stream->waits_moved != moved) {
        stream->waits_since = now;
        stream->waits_moved = moved;
        stream->pause = 0;
        return 1;
    }
    if (stream->pause < AQ_PAUSES - 1)
        stream->pause++;
    return now - stream->waits_since < AQ_ENDING_GRACE_PERIOD;
}

/* Returns the bytes written to a TCP socket that its peer's kernel has not acknowledged; 0 also where they no longer
 * matter because the connection is closed, and for a unix socket, whose close() discards nothing. */
static uint64_t queued_in_socket(int fd)
{
    struct tcp_info info;
    socklen_t length = sizeof(info);
    int queued = 0;
    if (ioctl(fd, SIOCOUTQ, &queued) != 0 || queued <= 0)
        return 0;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0 || info.tcpi_state == TCP_CLOSE)
        return 0;
    return (uint64_t)queued;
}

/* Returns the bytes in tx whose acknowledgement the reset has to wait for. */
static uint64_t unacknowledged(const aq_stream *stream)
{
    uint64_t released = aq_pipe_released(&stream->tx);
    if (atomic_load(&stream->tx_fin) || atomic_load(&stream->tx_stopped) || atomic_load(&stream->dead))
        return 0;
    /* A stream without data that was never opened in QUIC is unknown to the peer: nothing to wait for. */
    if (stream->result.sent == 0 && !atomic_load(&stream->opened))
        return 0;
    return aq_pipe_written(&stream->tx) - released;
}

/* Finishes an aborted stream. Returns what it waits for as AQ_NEED bits; 0: it is over. */
static unsigned settle(aq_stream *stream, int fd)
{
    uint64_t queued = 0, unacked = 0, none = 0;
    if (atomic_load(&stream->dead) == 2 || atomic_load(&stream->local_reset))
        stream->cut = 1;
    if (!stream->cut) {
        queued = stream->rx_lost ? 0 : queued_in_socket(fd);
        unacked = unacknowledged(stream);
        if ((queued > 0 || unacked > 0) && !is_within_grace_period(stream, queued + unacked)) {
            aq_count(stream->counters, AQ_C_relays_cut_short, 1);
            stream->cut = 1;
            queued = unacked = 0;
        }
    }
    if (unacked == 0 && stream->result.end != AQ_END_CONNECTION && stream->result.end != AQ_END_STOPPED &&
        atomic_compare_exchange_strong(&stream->reset, &none, AQ_STREAM_ABORTED + 1))
        aq_stream_notify(stream);
    if (queued > 0 || unacked > 0) {
        aq_pipe_trim(&stream->tx); /* nothing more is read */
        return AQ_NEED_PAUSE;
    }
    stream->over = 1;
    aq_stream_notify(stream);
    return 0;
}

static uint64_t unsent(const aq_stream *stream)
{
    /* Load taken first: it never passes written. */
    uint64_t taken = aq_pipe_taken(&stream->tx);
    return aq_pipe_written(&stream->tx) - taken;
}

static int is_scarce(const aq_stream *stream)
{
    return atomic_load_explicit(&stream->tx.pool->live, memory_order_relaxed) >= AQ_PIPES_MUCH;
}

int aq_stream_may_read(const aq_stream *stream)
{
    uint64_t max = is_scarce(stream) ? AQ_READ_AHEAD_SCARCE : AQ_READ_AHEAD;
    return aq_pipe_room(&stream->tx) > 0 && unsent(stream) + AQ_SEGMENT_LARGE <= max;
}

/* Takes tokens for at most `want` bytes. Returns for how many; all of them if there is no limit. */
static size_t take_tokens(aq_stream *stream, enum aq_direction direction, size_t want)
{
    aq_buckets *buckets = &stream->credit->buckets;
    if (!aq_buckets_apply(buckets, direction))
        return want;
    return (size_t)aq_buckets_take(buckets, &stream->takers[direction], want, aq_now());
}

/* Gives back the tokens of `taken` bytes that were not needed, as only `moved` have moved. more: whether further bytes
 * are known to be there. */
static void return_tokens(aq_stream *stream, enum aq_direction direction, size_t taken, size_t moved, int more)
{
    aq_buckets *buckets = &stream->credit->buckets;
    int error = errno; /* of the system call that moved them */
    if (!aq_buckets_apply(buckets, direction))
        return;
    aq_buckets_moved(buckets, &stream->takers[direction], taken, moved, more);
    errno = error;
}

/* Before the owner waits: grants that were not used go back to the buckets. A direction that is over waits for none. */
static void settle_tokens(aq_stream *stream)
{
    int reads =
        !stream->tx_done && !stream->aborted && !atomic_load(&stream->dead) && !atomic_load(&stream->tx_stopped);
    aq_buckets_settle(&stream->credit->buckets, &stream->takers[AQ_DIRECTION_SENT], !reads);
    aq_buckets_settle(&stream->credit->buckets, &stream->takers[AQ_DIRECTION_RECEIVED],
                      stream->rx_done || stream->rx_lost || stream->aborted);
}

/* Finds room for data from the socket. Returns the number of vectors; 0: there is no room now. *taken: the bytes that
 * they hold at most, for which tokens were taken. */
static int find_room(aq_stream *stream, struct iovec *vectors, size_t *taken)
{
    size_t want = stream->read_want;
    int count;
    if (!aq_stream_may_read(stream))
        return 0;
    if (want > AQ_READ_AHEAD_SCARCE && is_scarce(stream))
        want = AQ_READ_AHEAD_SCARCE;
    want = *taken = take_tokens(stream, AQ_DIRECTION_SENT, want);
    if (want == 0)
        return 0;
    count = aq_pipe_space(&stream->tx, vectors, VECTORS, want);
    if (count >= 0)
        return count;
    /* The data waits in the socket, which slows down the TCP peer. */
    aq_count(stream->counters, AQ_C_memory_failures, 1);
    stream->starved = 1;
    return 0;
}

static void adapt_read_want(aq_stream *stream, size_t got)
{
    if (got >= stream->read_want && stream->read_want < READ_MAX)
        stream->read_want = stream->read_want * 8 < READ_MAX ? stream->read_want * 8 : READ_MAX;
    else if (got < stream->read_want / 8)
        stream->read_want = stream->read_want / 8 > READ_MIN ? stream->read_want / 8 : READ_MIN;
}

/* TCP -> tx. Returns 1 while there may be more at once. */
static int read_socket(aq_stream *stream, int fd, uint64_t *budget)
{
    struct iovec vectors[VECTORS];
    uint8_t unwanted[4096]; /* a page: this path need not be fast */
    /* After STOP_SENDING data is still read, and dropped, so that its sender does not block. */
    int is_unwanted = atomic_load_explicit(&stream->tx_stopped, memory_order_acquire);
    size_t taken = 0, offered = 0;
    ssize_t got = 0;
    int count = 1;
    if (is_unwanted)
        vectors[0] = (struct iovec){.iov_base = unwanted, .iov_len = sizeof(unwanted)};
    else
        count = find_room(stream, vectors, &taken);
    for (int i = 0; i < count; i++)
        offered += vectors[i].iov_len;
    if (count > 0)
        got = readv(fd, vectors, count);
    if (taken > 0)
        return_tokens(stream, AQ_DIRECTION_SENT, taken, got > 0 ? (size_t)got : 0, got > 0 && (size_t)got == offered);
    if (count == 0)
        return 0;
    if (got > 0) {
        size_t length = (size_t)got;
        if (is_unwanted) {
            aq_count(stream->counters, AQ_C_stream_bytes_dropped, length);
        } else {
            aq_pipe_commit(&stream->tx, length);
            stream->result.sent += length;
            adapt_read_want(stream, length);
        }
        *budget = *budget > length ? *budget - length : 0;
        /* A short read means that the socket is empty, and epoll reports whatever comes next, including an end. The
         * exceptions are a hang-up, which is reported only once, and urgent data, in front of which a read stops. */
        stream->can_read =
            length == offered || stream->read_ended || stream->hung_up || stream->urgent || stream->rx_lost;
        return 1;
    }
    if (got == 0) {
        stream->tx_done = 1;
        /* A reset that a write has reported is not reported again, and reading then seems to end in order. It does so
         * only with EPIPE, the kernel's error for a reset that came after a FIN. */
        if (stream->socket_error == 0 || stream->socket_error == EPIPE)
            atomic_store_explicit(&stream->tx_fin, 1, memory_order_release);
        if (stream->hung_up && !stream->rx_done)
            aq_stream_socket_failed(stream, fd, 0); /* it was reported together with the end, and only once */
        return 1;
    }
    if (errno == EAGAIN && stream->gone) {
        stream->tx_done = 1;
    } else if (errno == EAGAIN) {
        stream->can_read = 0;
    } else if (errno != EINTR) {
        lose_socket(stream, errno);
        stream->tx_done = 1;
    }
    return 0;
}

/* rx -> TCP. Returns 1 while there may be more at once. */
static int write_socket(aq_stream *stream, int fd, uint64_t *budget)
{
    struct iovec vectors[VECTORS];
    /* Load fin before readable: once fin is seen, so is every byte before it. */
    int fin = atomic_load_explicit(&stream->rx_fin, memory_order_acquire);
    uint64_t readable = aq_pipe_readable(&stream->rx);
    size_t want = readable < READ_MAX ? (size_t)readable : READ_MAX;
    struct msghdr message = {.msg_iov = vectors};
    ssize_t put;
    if (want > 0 && (want = take_tokens(stream, AQ_DIRECTION_RECEIVED, want)) == 0)
        return 0;
    message.msg_iovlen = (size_t)aq_pipe_peek(&stream->rx, vectors, VECTORS, want);
    if (want == 0) {
        if (fin) {
            stream->rx_done = 1;
            /* With both directions over, close() also sends the FIN. shutdown() fails only if the TCP peer is gone
             * already, which reading will report. */
            if (!stream->tx_done)
                shutdown(fd, SHUT_WR);
        }
        return 0;
    }
    put = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return_tokens(stream, AQ_DIRECTION_RECEIVED, want, put > 0 ? (size_t)put : 0, put > 0 && (uint64_t)put < readable);
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
        lose_socket(stream, errno);
    return 0;
}

static void drop_received(aq_stream *stream)
{
    uint64_t length = aq_pipe_readable(&stream->rx);
    aq_count(stream->counters, AQ_C_stream_bytes_dropped, length);
    aq_pipe_take(&stream->rx, (size_t)length);
    aq_pipe_release(&stream->rx, aq_pipe_taken(&stream->rx));
}

/* Adds what was taken from rx to the connection's credit. Returns 1 when the engine should extend windows. */
static int report_consumed(aq_stream *stream)
{
    uint64_t taken = aq_pipe_taken(&stream->rx), more = taken - stream->credited, owed;
    if (more == 0)
        return 0;
    owed = atomic_fetch_add(&stream->credit->owed, more) + more;
    stream->credited = taken;
    return owed >= stream->credit->threshold || taken >= atomic_load(&stream->report_at);
}

/* Aborts the stream if something has ended that it cannot outlast. */
static void check_ends(aq_stream *stream)
{
    int dead = atomic_load_explicit(&stream->dead, memory_order_acquire);
    int reset = atomic_load_explicit(&stream->rx_reset, memory_order_acquire);
    int stopped = atomic_load_explicit(&stream->tx_stopped, memory_order_acquire);
    /* After the loads above: every byte that precedes what they report is visible. */
    int is_empty = aq_pipe_readable(&stream->rx) == 0 && !atomic_load_explicit(&stream->rx_fin, memory_order_acquire);
    if (stream->aborted)
        return;
    if (atomic_load_explicit(&stream->local_reset, memory_order_acquire))
        abort_with(stream, AQ_END_LOCAL_RESET);
    else if (dead == 2)
        abort_with(stream, AQ_END_STOPPED);
    else if (!stream->rx_done && !stream->rx_lost && is_empty && (reset || dead))
        abort_with(stream, reset ? AQ_END_PEER_RESET : AQ_END_CONNECTION);
    else if ((stream->rx_done || stream->rx_lost) && !stream->tx_done && (stopped || dead))
        abort_with(stream, dead ? AQ_END_CONNECTION : stream->rx_lost ? AQ_END_SOCKET_ERROR : AQ_END_PEER_RESET);
    else if (stream->rx_lost && stream->tx_done)
        abort_with(stream, AQ_END_SOCKET_ERROR);
}

/* Returns whether the relay only has to pass on the data it holds. */
static int is_ending(const aq_stream *stream)
{
    return stream->rx_lost || atomic_load(&stream->dead) || (!stream->rx_done && atomic_load(&stream->rx_reset)) ||
           (!stream->tx_done && atomic_load(&stream->tx_stopped));
}

static void cut_short(aq_stream *stream)
{
    aq_count(stream->counters, AQ_C_relays_cut_short, 1);
    stream->cut = 1;
    abort_with(stream, atomic_load(&stream->dead) ? AQ_END_CONNECTION
                       : stream->rx_lost          ? AQ_END_SOCKET_ERROR
                                                  : AQ_END_PEER_RESET);
}

/* Both directions have ended in order: after close() the kernel sends what is still in the socket, and then the FIN. */
static unsigned finish(aq_stream *stream, int fd)
{
    struct linger off = {0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off));
    stream->over = 1;
    return 0;
}

static unsigned what_it_needs(const aq_stream *stream)
{
    unsigned need = 0;
    /* Once the connection is gone, nothing more is read; received data is still written. */
    if (!stream->tx_done && !atomic_load_explicit(&stream->dead, memory_order_acquire)) {
        if (stream->takers[AQ_DIRECTION_SENT].is_waiting)
            need |= AQ_NEED_TOKENS;
        else if (!stream->can_read)
            need |= AQ_NEED_READ;
        else
            need |= stream->starved ? AQ_NEED_MEMORY : AQ_NEED_SPACE;
    }
    if (!stream->rx_done && !stream->rx_lost) {
        if (stream->takers[AQ_DIRECTION_RECEIVED].is_waiting)
            need |= AQ_NEED_TOKENS;
        else
            need |= stream->can_write ? AQ_NEED_DATA : AQ_NEED_WRITE;
    }
    return need;
}

static unsigned transfer(aq_stream *stream, int fd, uint64_t read_budget, uint64_t write_budget)
{
    uint64_t sent = stream->result.sent;
    int tell = 0, ended = stream->tx_done;
    unsigned need;

    if (stream->over)
        return 0;
    stream->starved = 0;
    if (stream->rx_lost)
        drop_received(stream);
    while (!stream->aborted && !stream->rx_done && !stream->rx_lost && stream->can_write && write_budget > 0 &&
           write_socket(stream, fd, &write_budget))
        ;
    tell |= report_consumed(stream);
    /* Regardless of the socket: an end may be the last event that this stream ever sees. */
    check_ends(stream);
    while (!stream->aborted && !stream->tx_done && stream->can_read && read_budget > 0 &&
           !atomic_load_explicit(&stream->dead, memory_order_acquire) && read_socket(stream, fd, &read_budget))
        ;
    check_ends(stream);
    if (tell || stream->tx_done != ended || stream->result.sent != sent)
        aq_stream_notify(stream);
    if (stream->takers[AQ_DIRECTION_SENT].is_waiting || stream->takers[AQ_DIRECTION_RECEIVED].is_waiting)
        settle_tokens(stream);
    if (stream->aborted)
        return settle(stream, fd);
    if (stream->tx_done && stream->rx_done)
        return finish(stream, fd);
    need = what_it_needs(stream);
    if (need & AQ_NEED_READ)
        aq_pipe_trim(&stream->tx); /* the wait may be long: an idle stream keeps no unused room */
    if (write_budget == 0 || read_budget == 0)
        need |= AQ_NEED_TURN;
    if (need & AQ_NEED_MEMORY)
        stream->pause = 0;
    if (need & AQ_NEED_TOKENS) {
        stream->waits_since = 0; /* a limit holds the data back, not the other end: the grace period begins later */
    } else if (is_ending(stream)) {
        if (!is_within_grace_period(stream,
                                    stream->result.sent + aq_pipe_taken(&stream->rx) + aq_pipe_released(&stream->tx))) {
            cut_short(stream);
            return settle(stream, fd);
        }
        need |= AQ_NEED_PAUSE;
    }
    return need;
}

unsigned aq_stream_transfer(aq_stream *stream, int fd, uint64_t read_budget, uint64_t write_budget)
{
    uint64_t sent = stream->result.sent, received = stream->result.received;
    unsigned need = transfer(stream, fd, read_budget, write_budget);
    if (stream->result.sent != sent)
        atomic_fetch_add_explicit(&stream->credit->payload_sent, stream->result.sent - sent, memory_order_relaxed);
    if (stream->result.received != received)
        atomic_fetch_add_explicit(&stream->credit->payload_received, stream->result.received - received,
                                  memory_order_relaxed);
    return need;
}

/* A unix socket hangs up as soon as its peer has closed both directions, in order too: unlike in TCP, this is not known
 * from the first write afterwards only. */
static int hangs_up_in_order(int fd)
{
    int domain = AF_UNSPEC;
    socklen_t length = sizeof(domain);
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
}

void aq_stream_socket_failed(aq_stream *stream, int fd, int error)
{
    socklen_t length = sizeof(error);
    stream->can_read = stream->can_write = 1;
    stream->hung_up = 1;
    if (error == 0 && !stream->tx_done)
        return; /* reading reports it */
    if (error == 0)
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error == 0 && hangs_up_in_order(fd))
        return; /* writing reports it, if there is anything left to write */
    lose_socket(stream, error != 0 ? error : ECONNRESET);
}

int aq_stream_check_peer(aq_stream *stream, int fd, uint64_t now)
{
    if (aq_keepalive_check(&stream->keepalive, fd, stream->result.received, now) != AQ_PEER_GONE)
        return 0;
    lose_socket(stream, ETIMEDOUT); /* as the kernel would report it later */
    stream->gone = 1;
    return 1;
}

void aq_stream_leave(aq_stream *stream)
{
    for (size_t direction = 0; direction < AQ_DIRECTIONS; direction++)
        aq_buckets_settle(&stream->credit->buckets, &stream->takers[direction], 1);
    if (stream->accepted) {
        stream->accepted = 0;
        atomic_fetch_sub(&stream->credit->accepted, 1);
        atomic_fetch_sub(stream->credit->accepted_in_all, 1);
    }
    if (atomic_exchange(&stream->admitted, 0))
        atomic_fetch_sub(&stream->credit->visitors, 1);
    atomic_store(&stream->relay_over, 1);
    if (atomic_load(&stream->quic_closed))
        aq_slab_remove(stream->table, stream->id);
    else
        aq_stream_notify(stream);
}

void aq_stream_close(aq_stream *stream)
{
    atomic_store(&stream->quic_closed, 1);
    /* If it was not relayed yet, received data waits for a later relay, even if the connection has ended meanwhile. */
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

void aq_stream_cut(aq_stream *stream, uint64_t code)
{
    uint64_t none = 0;
    atomic_compare_exchange_strong(&stream->reset, &none, code + 1);
    atomic_store(&stream->local_reset, 1);
    aq_stream_signal(stream, AQ_NEED_END);
    aq_stream_notify(stream);
    aq_stream_disown(stream);
}
