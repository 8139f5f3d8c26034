/* How a relayed stream ends: what the owner is told, what the TCP peer sees, and that the name goes exactly once. */
#include "stream_side.h"

#define WATCHDOG_SECONDS 60
#define WINDOW (64U * 1024)

static uint8_t bytes[WINDOW];

static uint64_t later;        /* nanoseconds that the clock of the pump is ahead */
uint64_t __real_aq_now(void); /* NOLINT: the linker's names */
uint64_t __wrap_aq_now(void); /* NOLINT */

uint64_t __wrap_aq_now(void)
{
    return __real_aq_now() + later;
}

/* ---- outcomes ------------------------------------------------------------------------------------------------------
 */

/* Until the peer's kernel has what the socket took. */
static void pump_to_the_end(aq_stream *stream, int fd)
{
    unsigned need;

    while ((need = pump(stream, fd, BUDGET)) == AQ_NEED_PAUSE)
        sched_yield();
    CHECK_INT(need, 0);
}

/* What is left of a pair whose owner was told that it is over; the TCP peer must see a reset. */
static void check_cut(aq_stream *stream, int ends[2], enum aq_stream_end end, int64_t reset)
{
    struct pollfd item = {.fd = ends[1]};
    uint8_t byte;

    pump_to_the_end(stream, ends[0]);
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
    aq_stream_begin(stream, ends[0]);
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
    pump_to_the_end(stream, ends[0]);
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
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_WRITE | AQ_NEED_PAUSE);
    CHECK_INT(stream->result.sent, 0);
    for (i = 0; stream->result.end == AQ_END_FINISHED;) {
        peer_gets(ends[1], bytes + i, (size_t)stream->result.received - (size_t)i);
        i = (int)stream->result.received;
        wait_for(stream, ends[0], POLLOUT);
        need = pump(stream, ends[0], BUDGET);
        CHECK_INT(need, stream->aborted ? 0 : AQ_NEED_WRITE | AQ_NEED_PAUSE);
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
        CHECK_INT(stream->rx_lost, tx_over); /* else reading tells */
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

/* A unix socket hangs up as soon as its peer has closed it. Without anything unread that is an end of the peer's
 * direction only, as in TCP: the stream stays open until the other direction has ended, or finds that it can't. */
static void test_unix_hang_up(void)
{
    enum { FINISHES, WRITES, UNREAD, CASES };
    for (int how = 0; how < CASES; how++) {
        for (int first = 0; first <= 1; first++) { /* the peer has ended its direction before */
            aq_stream *stream = new_stream(WINDOW, WINDOW);
            int ends[2];

            open_pair(0, ends);
            aq_stream_begin(stream, ends[0]);
            atomic_store(&stream->opened, 1);
            CHECK_INT(write(ends[1], bytes, 3000), 3000);
            if (how == UNREAD)
                CHECK_INT(write(ends[0], bytes, 1), 1);
            if (first) {
                CHECK_INT(shutdown(ends[1], SHUT_WR), 0);
                while (pump(stream, ends[0], BUDGET) != AQ_NEED_DATA)
                    ;
            }
            CHECK_INT(close(ends[1]), 0);
            wait_for(stream, ends[0], 0); /* a hang-up is told unasked */
            aq_stream_socket_failed(stream, ends[0], 0);
            if (how == UNREAD) {
                while (pump(stream, ends[0], BUDGET) != 0)
                    leaves(stream, bytes, 3000);
                CHECK_INT(stream->result.error, ECONNRESET);
                CHECK_INT(atomic_load(&stream->tx_fin), first);
            } else {
                CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_DATA);
                CHECK_INT(atomic_load(&stream->tx_fin), 1);
                CHECK_INT(atomic_load(&stream->reset), 0);
                if (how == WRITES)
                    arrives(stream, bytes, 10, 0);
                else
                    atomic_store(&stream->rx_fin, 1);
                CHECK_INT(pump(stream, ends[0], BUDGET), 0);
                CHECK_INT(stream->result.error, how == WRITES ? EPIPE : 0);
                leaves(stream, bytes, 3000);
            }
            CHECK_INT(stream->result.end, how == FINISHES ? AQ_END_FINISHED : AQ_END_SOCKET_ERROR);
            CHECK_INT(stream->result.sent, 3000);
            CHECK_INT(atomic_load(&stream->reset), how == FINISHES ? 0 : AQ_STREAM_ABORTED + 1);
            CHECK_INT(close(ends[0]), 0);
            told();
            end_stream(stream);
        }
    }
}

/* ---- what came before the end ------------------------------------------------------------------------------------ */

static uint64_t cut_short(void)
{
    return atomic_load(&counters.value[AQ_C_relays_cut_short]);
}

static uint64_t dropped(void)
{
    return atomic_load(&counters.value[AQ_C_stream_bytes_dropped]);
}

static struct linger linger_of(int fd)
{
    struct linger linger;
    socklen_t length = sizeof(linger);

    CHECK_INT(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &length), 0);
    return linger;
}

/* Whoever closes the socket resets it, until both directions have ended in order. */
static void test_linger(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    int ends[2];

    open_pair(1, ends);
    aq_stream_begin(stream, ends[0]);
    CHECK_INT(linger_of(ends[0]).l_onoff, 1);
    CHECK_INT(linger_of(ends[0]).l_linger, 0);
    atomic_store(&stream->rx_fin, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ);
    CHECK_INT(linger_of(ends[0]).l_onoff, 1);
    CHECK_INT(shutdown(ends[1], SHUT_WR), 0);
    wait_for(stream, ends[0], POLLIN);
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(stream->result.end, AQ_END_FINISHED);
    CHECK_INT(linger_of(ends[0]).l_onoff, 0);
    close_pair(ends);
    told();
    end_stream(stream);
}

/* The peer of the socket says something, and resets, by itself or by closing with something unread. It is found by
 * writing, or by reading. `first`: it has ended its direction before. */
static void reset_behind(int by_writing, int first)
{
    const struct linger hard = {.l_onoff = 1, .l_linger = 0};
    uint64_t had = dropped();
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    int ends[2];

    open_pair(1, ends);
    aq_stream_begin(stream, ends[0]);
    atomic_store(&stream->opened, 1);
    CHECK_INT(write(ends[1], bytes, 3000), 3000);
    if (first) /* what it gets from now on makes its kernel reset the connection */
        CHECK_INT(shutdown(ends[1], SHUT_WR), 0);
    else
        CHECK_INT(setsockopt(ends[1], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)), 0);
    CHECK_INT(close(ends[1]), 0);
    if (first)
        CHECK_INT(send(ends[0], "x", 1, MSG_NOSIGNAL), 1);
    while (poll(&(struct pollfd){.fd = ends[0]}, 1, 1000) < 1)
        ;
    if (by_writing)
        arrives(stream, bytes, 10, 0);
    stream->can_read = 0;
    aq_stream_socket_failed(stream, ends[0], 0);
    if (first) {
        /* Data, then the end of it: the peer learns both, and that nothing it says is read. */
        CHECK_INT(pump(stream, ends[0], BUDGET), 0);
        CHECK_INT(atomic_load(&stream->tx_fin), 1);
    } else {
        CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_PAUSE);
        CHECK_INT(atomic_load(&stream->tx_fin), 0);
        CHECK_INT(atomic_load(&stream->reset), 0); /* not before all of it has arrived */
    }
    CHECK_INT(stream->result.end, AQ_END_SOCKET_ERROR);
    CHECK_INT(stream->result.error, first ? EPIPE : ECONNRESET);
    CHECK_INT(stream->result.sent, 3000);
    leaves(stream, bytes, 3000);
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(atomic_load(&stream->reset), AQ_STREAM_ABORTED + 1);
    CHECK_INT(close(ends[0]), 0);
    told();
    end_stream(stream);
    CHECK_INT(dropped() - had, by_writing ? 10 : 0);
}

/* There is more to read than the pipe has room for when the socket is lost. */
static void test_read_dry(void)
{
    aq_stream *stream = new_stream(10000, WINDOW);
    int ends[2], size = 1 << 18;
    uint8_t unread = 0;

    open_pair(1, ends);
    aq_stream_begin(stream, ends[0]);
    CHECK_INT(setsockopt(ends[0], SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)), 0);
    CHECK_INT(write(ends[0], &unread, 1), 1);
    CHECK_INT(poll(&(struct pollfd){.fd = ends[1], .events = POLLIN}, 1, -1), 1);
    CHECK_INT(write(ends[1], bytes, WINDOW), WINDOW);
    CHECK_INT(close(ends[1]), 0); /* with a byte unread: a reset */
    while (poll(&(struct pollfd){.fd = ends[0]}, 1, 1000) < 1)
        ;
    arrives(stream, bytes, 10, 0);
    for (size_t i = 0; i < WINDOW; i += 1000) {
        size_t step = WINDOW - i < 1000 ? WINDOW - i : 1000;

        CHECK(pump(stream, ends[0], BUDGET) & AQ_NEED_PAUSE);
        CHECK_INT(atomic_load(&stream->reset), 0);
        leaves(stream, bytes + i, step);
    }
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(stream->result.sent, WINDOW);
    CHECK_INT(atomic_load(&stream->reset), AQ_STREAM_ABORTED + 1);
    CHECK_INT(stream->result.end, AQ_END_SOCKET_ERROR);
    CHECK_INT(close(ends[0]), 0);
    told();
    end_stream(stream);
}

/* What came before the peer's reset is written, arrives, and then the TCP connection is reset. */
static void test_reset_by_peer_behind_bytes(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    int ends[2], small = 4096, size;
    socklen_t length = sizeof(size);
    uint64_t taken = 0;
    uint8_t byte;

    open_pair(1, ends);
    aq_stream_begin(stream, ends[0]);
    CHECK_INT(setsockopt(ends[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
    CHECK_INT(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    CHECK_INT(getsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, &length), 0);
    arrives(stream, bytes, WINDOW, 0);
    atomic_store(&stream->rx_code, AQ_STREAM_REFUSED);
    atomic_store(&stream->rx_reset, 1);
    while (!stream->over) {
        unsigned need = pump(stream, ends[0], BUDGET);

        if (need == 0)
            break;
        CHECK(need & AQ_NEED_PAUSE);
        if (need & AQ_NEED_WRITE) {
            size_t step = (size_t)(stream->result.received - taken);

            peer_gets(ends[1], bytes + taken, step);
            taken += step;
            wait_for(stream, ends[0], POLLOUT);
        } else if (taken < WINDOW) { /* all is in the socket, and not yet at the other end of it */
            size_t step = WINDOW - taken < 1000 ? WINDOW - taken : 1000;

            peer_gets(ends[1], bytes + taken, step);
            taken += step;
        }
    }
    CHECK_INT(stream->result.received, WINDOW);
    CHECK_INT(stream->result.end, AQ_END_PEER_RESET);
    CHECK_INT(stream->result.error, AQ_STREAM_REFUSED);
    CHECK_INT(close(ends[0]), 0);
    peer_gets(ends[1], bytes + taken, WINDOW - taken);
    CHECK(read(ends[1], &byte, 1) < 0 && errno == ECONNRESET);
    CHECK_INT(close(ends[1]), 0);
    told();
    end_stream(stream);
}

/* Nobody takes what there still is: after a while it is given up, and counted. */
static void test_patience(void)
{
    static const char *const causes[] = {"tx", "rx", "dead", "stopped"};
    int ends[2], small = 4096;

    for (size_t i = 0; i < AQ_ARRAY_LENGTH(causes); i++) {
        aq_stream *stream = new_stream(WINDOW, WINDOW);
        uint64_t before = cut_short();
        unsigned need;

        open_pair(1, ends);
        aq_stream_begin(stream, ends[0]);
        atomic_store(&stream->opened, 1);
        CHECK_INT(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
        CHECK_INT(setsockopt(ends[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
        if (i == 0) {
            struct linger hard = {.l_onoff = 1, .l_linger = 0};
            CHECK_INT(write(ends[1], bytes, 100), 100);
            CHECK_INT(setsockopt(ends[1], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)), 0);
            CHECK_INT(close(ends[1]), 0);
            wait_for(stream, ends[0], 0);
            aq_stream_socket_failed(stream, ends[0], 0);
        } else if (i == 3) {
            atomic_store(&stream->tx_stopped, 1);
        } else {
            arrives(stream, bytes, WINDOW, 0);
            atomic_store(i == 1 ? &stream->rx_reset : &stream->dead, 1);
        }
        need = pump(stream, ends[0], BUDGET);
        CHECK(need & AQ_NEED_PAUSE);
        /* The peer's kernel takes some of it behind our back; from then on nothing moves. */
        do {
            later += AQ_ENDING_GRACE_PERIOD / 4;
            need = pump(stream, ends[0], BUDGET);
        } while (stream->pause == 0);
        for (int turn = 0; turn < 2; turn++) {
            CHECK(need & AQ_NEED_PAUSE);
            CHECK_INT(cut_short(), before);
            later += AQ_ENDING_GRACE_PERIOD / 4;
            need = pump(stream, ends[0], BUDGET);
        }
        CHECK(stream->pause > 1); /* so far it is looked at less and less often */
        later += AQ_ENDING_GRACE_PERIOD;
        CHECK_INT(pump(stream, ends[0], BUDGET), 0);
        CHECK_INT(cut_short(), before + 1);
        CHECK_INT(stream->result.end, i == 0 ? AQ_END_SOCKET_ERROR : i == 2 ? AQ_END_CONNECTION : AQ_END_PEER_RESET);
        CHECK_INT(atomic_load(&stream->reset), i == 2 ? 0 : AQ_STREAM_ABORTED + 1);
        CHECK_INT(close(ends[0]), 0);
        if (i != 0)
            CHECK_INT(close(ends[1]), 0);
        told();
        end_stream(stream);
    }
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
    test_unix_hang_up();
    test_linger();
    for (i = 0; i < 4; i++)
        reset_behind((int)i % 2, (int)i / 2);
    test_read_dry();
    test_reset_by_peer_behind_bytes();
    test_patience();
    test_orders();
    test_disown_owned();
    surroundings_destroy();
    return check_done();
}
