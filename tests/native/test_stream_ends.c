/* How a relayed stream ends: what the owner is told, what the TCP peer sees, and that the name goes exactly once. */
#include "stream_side.h"

#define WATCHDOG_SECONDS 60
#define WINDOW (64U * 1024)

static uint8_t bytes[WINDOW];

/* ---- outcomes ------------------------------------------------------------------------------------------------------
 */

/* What is left of a pair whose owner was told that it is over; the TCP peer must see a reset. */
static void check_cut(aq_stream *stream, int ends[2], enum aq_stream_end end, int64_t reset)
{
    struct pollfd item = {.fd = ends[1]};
    uint8_t byte;

    CHECK_INT(pump(stream, ends[0], BUDGET), 0); /* for good */
    CHECK_INT(stream->result.end, end);
    CHECK_INT(stream->result.error, 0);
    CHECK_INT(atomic_load(&stream->reset), reset);
    CHECK_INT(told(), 1);
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(poll(&item, 1, -1), 1); /* an error is told unasked */
    if (stream->rx_done) {            /* the peer has read the end already; what it writes is refused */
        CHECK_INT(read(ends[1], &byte, 1), 0);
        CHECK(send(ends[1], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    } else {
        CHECK(read(ends[1], &byte, 1) < 0 && errno == ECONNRESET);
    }
    CHECK_INT(close(ends[1]), 0);
    end_stream(stream);
}

/* A stream over TCP of which one or both directions are still open. */
static aq_stream *begin(int ends[2], int rx_over, int tx_over)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);

    open_pair(1, ends);
    if (rx_over)
        atomic_store(&stream->rx_fin, 1);
    if (tx_over)
        CHECK_INT(shutdown(ends[1], SHUT_WR), 0);
    if (tx_over)
        wait_for(stream, ends[0], POLLIN);
    CHECK_INT(pump(stream, ends[0], BUDGET), (tx_over ? 0 : AQ_NEED_READ) | (rx_over ? 0 : AQ_NEED_DATA));
    CHECK_INT(stream->rx_done, rx_over);
    CHECK_INT(stream->tx_done, tx_over);
    told();
    return stream;
}

static void test_resets(void)
{
    aq_stream *stream;
    int ends[2], i;

    for (i = 0; i < 3; i++) { /* both open, the way from QUIC over, the way to QUIC over */
        stream = begin(ends, i == 1, i == 2);
        atomic_store(&stream->reset, 4321 + 1);
        atomic_store(&stream->local_reset, 1);
        check_cut(stream, ends, AQ_END_LOCAL_RESET, 4321 + 1); /* the caller's code stays */
    }
    for (i = 0; i < 3; i += 2) {
        stream = begin(ends, 0, i == 2);
        atomic_store(&stream->rx_reset, 1);
        check_cut(stream, ends, AQ_END_PEER_RESET, AQ_STREAM_ABORTED + 1);
    }

    /* Every byte is here already and written: a reset that comes after the end changes nothing. */
    stream = begin(ends, 1, 0);
    atomic_store(&stream->rx_reset, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ);
    CHECK_INT(atomic_load(&stream->reset), 0);
    close_pair(ends);
    end_stream(stream);
}

static void test_dead(void)
{
    aq_stream *stream;
    int ends[2], i, small = 4096;
    unsigned need;

    for (i = 0; i < 3; i++) {
        stream = begin(ends, i == 1, i == 2);
        atomic_store(&stream->dead, 1);
        check_cut(stream, ends, AQ_END_CONNECTION, 0); /* there is no QUIC left to reset it on */
        stream = begin(ends, i == 1, i == 2);
        atomic_store(&stream->dead, 2);
        check_cut(stream, ends, AQ_END_STOPPED, 0);
    }

    /* What came before the end of the connection is delivered: to the last byte, then it is cut or, when the peer had
     * said that this was all and the socket had ended too, finished. */
    stream = begin(ends, 0, 0);
    arrives(stream, bytes, 5000, 0);
    atomic_store(&stream->dead, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(stream->result.received, 5000);
    peer_gets(ends[1], bytes, 5000);
    check_cut(stream, ends, AQ_END_CONNECTION, 0);

    stream = begin(ends, 0, 1);
    arrives(stream, bytes, 5000, 1);
    atomic_store(&stream->dead, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(stream->result.end, AQ_END_FINISHED);
    peer_gets(ends[1], bytes, 5000);
    close_pair(ends); /* by which the socket's peer learns of the end */
    end_stream(stream);

    /* While the socket takes no more it waits for that alone: nothing is read any more, whatever room there is. */
    stream = new_stream(WINDOW, WINDOW);
    open_pair(0, ends);
    CHECK_INT(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    arrives(stream, bytes, WINDOW, 0);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_WRITE);
    atomic_store(&stream->dead, 1);
    CHECK_INT(write(ends[1], bytes, 100), 100);
    stream->can_read = 1;
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_WRITE);
    CHECK_INT(stream->result.sent, 0);
    for (i = 0; stream->result.end == AQ_END_FINISHED;) {
        peer_gets(ends[1], bytes + i, (size_t)stream->result.received - (size_t)i);
        i = (int)stream->result.received;
        wait_for(stream, ends[0], POLLOUT);
        need = pump(stream, ends[0], BUDGET);
        CHECK_INT(need, stream->aborted ? 0 : AQ_NEED_WRITE);
    }
    CHECK_INT(stream->result.end, AQ_END_CONNECTION);
    CHECK_INT(stream->result.received, WINDOW);
    peer_gets(ends[1], bytes + i, WINDOW - (size_t)i);
    close_pair(ends);
    told();
    end_stream(stream);
}

static void test_socket_errors(void)
{
    const struct linger hard = {.l_onoff = 1, .l_linger = 0};
    aq_stream *stream;
    int ends[2], tx_over;

    for (tx_over = 0; tx_over <= 1; tx_over++) {
        stream = begin(ends, 0, tx_over);
        CHECK_INT(setsockopt(ends[1], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)), 0);
        CHECK_INT(close(ends[1]), 0);
        wait_for(stream, ends[0], 0); /* an error is told unasked */
        aq_stream_socket_failed(stream, ends[0], 0);
        CHECK_INT(stream->aborted, tx_over); /* else reading tells */
        CHECK_INT(pump(stream, ends[0], BUDGET), 0);
        CHECK_INT(stream->result.end, AQ_END_SOCKET_ERROR);
        CHECK_INT(stream->result.error, tx_over ? EPIPE : ECONNRESET); /* as the kernel names it behind a FIN */
        CHECK_INT(atomic_load(&stream->reset), AQ_STREAM_ABORTED + 1);
        CHECK_INT(told(), 1);
        CHECK_INT(close(ends[0]), 0);
        end_stream(stream);
    }

    /* found by writing; no SIGPIPE */
    stream = new_stream(WINDOW, WINDOW);
    open_pair(0, ends);
    CHECK_INT(close(ends[1]), 0);
    arrives(stream, bytes, 10, 0);
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(stream->result.end, AQ_END_SOCKET_ERROR);
    CHECK_INT(stream->result.error, EPIPE);
    CHECK_INT(stream->result.received, 0);
    CHECK_INT(close(ends[0]), 0);
    told();
    end_stream(stream);
}

/* ---- the name
 * -------------------------------------------------------------------------------------------------------- */

/* In every order: the name is there until both sides are done, the object until the last reference. */
static void test_orders(void)
{
    int order, held;

    for (order = 0; order < 4; order++) {
        for (held = 0; held <= 1; held++) {
            aq_stream *stream = new_stream(WINDOW, WINDOW);
            aq_id id = stream->id;

            if (held)
                CHECK(aq_slab_get(&table, id) == stream);
            if (order % 2 == 0) {
                aq_stream_close(stream);
                CHECK_INT(told(), 0);
            } else if (order == 1) {
                aq_stream_leave(stream);
                CHECK_INT(told(), 1); /* QUIC is not done with it: the engine should look */
            } else {
                CHECK_INT(aq_stream_disown(stream), 1);
                CHECK_INT(aq_stream_disown(stream), 0);
                CHECK_INT(told(), 1);
            }
            CHECK_INT(aq_slab_count(&table), 1);
            if (order % 2 != 0)
                aq_stream_close(stream);
            else if (order == 0)
                aq_stream_leave(stream);
            else
                CHECK_INT(aq_stream_disown(stream), 1);
            CHECK_INT(aq_slab_count(&table), 0);
            CHECK_INT(aq_slab_remove(&table, id), AQ_ERR_GONE);
            CHECK_INT(atomic_load(&destroyed), !held);
            if (held) {
                aq_stream_notify(stream); /* nobody is left to look */
                CHECK_INT(atomic_load(&stream->node.queued), 0);
                CHECK_INT(told(), 0);
                aq_slab_put(&table, id);
            }
            CHECK_INT(atomic_exchange(&destroyed, 0), 1);
        }
    }
}

/* Somebody relays it: it cannot be disowned. */
static void test_disown_owned(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);

    CHECK_INT(atomic_exchange(&stream->owned, 1), 0);
    CHECK_INT(aq_stream_disown(stream), 0);
    CHECK_INT(atomic_load(&stream->relay_over), 0);
    CHECK_INT(told(), 0);
    aq_stream_notify(stream);
    aq_stream_notify(stream);
    CHECK_INT(told(), 1); /* twice is once */
    aq_stream_notify(stream);
    aq_stream_close(stream);
    aq_stream_leave(stream);
    CHECK_INT(atomic_load(&destroyed), 0); /* the list keeps it */
    CHECK_INT(told(), 1);
    CHECK_INT(atomic_exchange(&destroyed, 0), 1);
}

int main(void)
{
    uint64_t state = 8;
    size_t i;

    check_watchdog(WATCHDOG_SECONDS);
    for (i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)check_random(&state);
    surroundings_init();
    test_resets();
    test_dead();
    test_socket_errors();
    test_orders();
    test_disown_owned();
    surroundings_destroy();
    return check_done();
}
