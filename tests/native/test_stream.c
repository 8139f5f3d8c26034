/* aq_stream_transfer() over socket pairs, with the engine's side played by hand. */
#include "stream_side.h"

#include <stdlib.h>

static int fail_malloc;
void *__real_malloc(size_t size); /* NOLINT: the linker's names */
void *__wrap_malloc(size_t size); /* NOLINT */

void *__wrap_malloc(size_t size)
{
    return fail_malloc ? NULL : __real_malloc(size);
}

#define WATCHDOG_SECONDS 60
#define WINDOW (256U * 1024)

static uint8_t bytes[4 * WINDOW];

/* ---- both directions --------------------------------------------------------------------------------------------- */

static void socket_ends_first(aq_stream *stream, const int ends[2], size_t sent)
{
    unsigned need = AQ_NEED_READ;

    CHECK_INT(shutdown(ends[1], SHUT_WR), 0);
    while (need & AQ_NEED_READ) {
        wait_for(stream, ends[0], POLLIN);
        need = pump(stream, ends[0], BUDGET);
    }
    CHECK_INT(need, stream->rx_done ? 0 : AQ_NEED_DATA);
    CHECK(told());
    leaves(stream, bytes, sent);
    CHECK_INT(aq_pipe_readable(&stream->tx), 0);
    CHECK_INT(atomic_load(&stream->tx_fin), 1);
}

static void quic_ends(aq_stream *stream, const int ends[2])
{
    uint8_t byte;

    arrives(stream, bytes + 100, 5000, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), stream->tx_done ? 0 : AQ_NEED_READ);
    peer_gets(ends[1], bytes + 100, 5000);
    if (stream->tx_done)
        CHECK_INT(recv(ends[1], &byte, 1, MSG_DONTWAIT), -1); /* its owner closes the socket now, which says the same */
    else
        CHECK_INT(read(ends[1], &byte, 1), 0);
}

static void test_half_close(int tcp, int quic_first)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    int ends[2];

    open_pair(tcp, ends);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_DATA);
    CHECK_INT(told(), 0);
    arrives(stream, bytes, 1000, 0);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_DATA);
    peer_gets(ends[1], bytes, 1000);
    if (quic_first)
        quic_ends(stream, ends);
    CHECK_INT(atomic_load(&stream->tx_fin), 0);
    CHECK_INT(write(ends[1], bytes, 3000), 3000);
    socket_ends_first(stream, ends, 3000);
    if (!quic_first) {
        CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_DATA); /* QUIC may go on for ever */
        quic_ends(stream, ends);
    }
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(stream->result.end, AQ_END_FINISHED);
    CHECK_INT(stream->result.error, 0);
    CHECK_INT(stream->result.sent, 3000);
    CHECK_INT(stream->result.received, 6000);
    CHECK_INT(atomic_load(&stream->reset), 0);
    close_pair(ends);
    end_stream(stream);
}

/* Nothing but a FIN, both ways. */
static void test_empty(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    int ends[2];

    open_pair(1, ends);
    atomic_store(&stream->rx_fin, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ);
    socket_ends_first(stream, ends, 0);
    CHECK_INT(stream->result.end, AQ_END_FINISHED);
    CHECK_INT(stream->result.sent + stream->result.received, 0);
    close_pair(ends);
    end_stream(stream);
}

/* ---- what it needs ------------------------------------------------------------------------------------------------
 */

/* The socket takes no more: AQ_NEED_WRITE; the engine takes no more: AQ_NEED_SPACE. Each goes away with its cause. */
static void test_needs(void)
{
    aq_stream *stream = new_stream(5000, sizeof(bytes));
    int ends[2], small = 4096;
    size_t put = 0;

    open_pair(0, ends);
    CHECK_INT(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    arrives(stream, bytes, sizeof(bytes), 0);
    CHECK_INT(pump(stream, ends[0], UINT64_MAX), AQ_NEED_READ | AQ_NEED_WRITE);
    put = (size_t)stream->result.received;
    CHECK(put > 0 && put < sizeof(bytes));
    CHECK_INT(aq_pipe_readable(&stream->rx), sizeof(bytes) - put);
    CHECK_INT(pump(stream, ends[0], UINT64_MAX), AQ_NEED_READ | AQ_NEED_WRITE); /* until somebody says so */
    CHECK_INT(stream->result.received, put);

    CHECK_INT(write(ends[1], bytes, 8000), 8000);
    stream->can_read = 1;
    CHECK_INT(pump(stream, ends[0], UINT64_MAX), AQ_NEED_SPACE | AQ_NEED_WRITE);
    CHECK_INT(stream->result.sent, 5000);
    CHECK_INT(aq_pipe_room(&stream->tx), 0);
    leaves(stream, bytes, 1000);
    CHECK_INT(pump(stream, ends[0], UINT64_MAX), AQ_NEED_SPACE | AQ_NEED_WRITE);
    CHECK_INT(stream->result.sent, 6000);
    leaves(stream, bytes + 1000, 5000);
    CHECK_INT(pump(stream, ends[0], UINT64_MAX), AQ_NEED_READ | AQ_NEED_WRITE);
    CHECK_INT(stream->result.sent, 8000);

    peer_gets(ends[1], bytes, put);
    while (stream->result.received < sizeof(bytes)) {
        unsigned need;

        wait_for(stream, ends[0], POLLOUT);
        need = pump(stream, ends[0], UINT64_MAX);
        CHECK((need & ~AQ_NEED_WRITE & ~AQ_NEED_DATA) == AQ_NEED_READ);
        CHECK_INT((need & AQ_NEED_DATA) != 0, stream->result.received == sizeof(bytes));
        peer_gets(ends[1], bytes + put, (size_t)stream->result.received - put);
        put = (size_t)stream->result.received;
    }
    leaves(stream, bytes + 6000, 2000);
    close_pair(ends);
    end_stream(stream);
}

/* With more to do than the budget it stops after the system call that used it up, and asks for another turn. */
static void test_budget(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    uint64_t turns = 0;
    int ends[2];
    unsigned need;

    open_pair(0, ends);
    arrives(stream, bytes, 3000, 0);
    CHECK_INT(write(ends[1], bytes, 50000), 50000);
    do {
        uint64_t before = stream->result.sent;

        need = pump(stream, ends[0], 1);
        if (turns++ == 0) {
            CHECK_INT(need & AQ_NEED_TURN, AQ_NEED_TURN);
            CHECK_INT(stream->result.received, 3000);
            CHECK(stream->result.sent < 50000);
        }
        CHECK_INT((need & AQ_NEED_TURN) != 0, stream->result.sent > before);
    } while (need & AQ_NEED_TURN);
    CHECK(turns > 2);
    CHECK_INT(need, AQ_NEED_READ | AQ_NEED_DATA);
    leaves(stream, bytes, 50000);
    peer_gets(ends[1], bytes, 3000);

    /* a budget that is not used up changes nothing */
    arrives(stream, bytes, 3000, 0);
    CHECK_INT(pump(stream, ends[0], 3001), AQ_NEED_READ | AQ_NEED_DATA);
    /* spent to the last byte: nobody knows whether there is more */
    arrives(stream, bytes, 3000, 0);
    CHECK_INT(pump(stream, ends[0], 3000), AQ_NEED_TURN | AQ_NEED_READ | AQ_NEED_DATA);
    close_pair(ends);
    end_stream(stream);
}

/* Room that was reserved for reading goes back to the pool before a long wait. */
static void test_idle_keeps_nothing(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    int ends[2];

    open_pair(0, ends);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_DATA);
    CHECK_INT(atomic_load(&pool.live), 0);
    close_pair(ends);
    end_stream(stream);
}

/* Without memory the bytes stay in the socket, and are read as soon as there is some. */
static void test_no_memory(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    uint64_t failures = atomic_load(&counters.value[AQ_C_memory_failures]);
    int ends[2];

    open_pair(0, ends);
    CHECK_INT(write(ends[1], bytes, 5000), 5000);
    fail_malloc = 1;
    for (uint64_t tries = 1; tries <= 3; tries++) {
        CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_MEMORY | AQ_NEED_DATA);
        CHECK_INT(atomic_load(&counters.value[AQ_C_memory_failures]) - failures, tries);
    }
    CHECK(!stream->aborted);
    CHECK_INT(stream->result.sent, 0);
    fail_malloc = 0;
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_DATA);
    leaves(stream, bytes, 5000);
    close_pair(ends);
    end_stream(stream);
}

static void drop(aq_stream *stream)
{
    aq_pipe_take(&stream->tx, (size_t)aq_pipe_readable(&stream->tx));
    aq_pipe_release(&stream->tx, aq_pipe_taken(&stream->tx));
}

/* How much is read from a socket whose bytes can't be sent: less where all pipes hold much already. */
static void test_read_ahead(int scarce)
{
    aq_stream *stream = new_stream(4 * sizeof(bytes), WINDOW);
    uint64_t max = scarce ? 2 * AQ_READ_AHEAD_SCARCE : 2 * AQ_READ_AHEAD;
    int ends[2], large = 2 * sizeof(bytes);

    open_pair(0, ends);
    CHECK_INT(setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &large, sizeof(large)), 0);
    CHECK_INT(setsockopt(ends[0], SOL_SOCKET, SO_RCVBUF, &large, sizeof(large)), 0);
    if (scarce)
        atomic_fetch_add(&pool.live, AQ_PIPES_MUCH);
    for (int i = 0; i < 20; i++) {
        CHECK(send(ends[1], bytes, sizeof(bytes), MSG_DONTWAIT) > 0 || errno == EAGAIN);
        pump(stream, ends[0], UINT64_MAX);
    }
    CHECK(stream->result.sent > max / 4 && stream->result.sent <= max);
    CHECK_INT(pump(stream, ends[0], UINT64_MAX), AQ_NEED_SPACE | AQ_NEED_DATA);
    /* and goes on once they have left */
    {
        uint64_t had = stream->result.sent;
        drop(stream);
        pump(stream, ends[0], UINT64_MAX);
        CHECK(stream->result.sent > had);
        drop(stream);
    }
    if (scarce)
        atomic_fetch_sub(&pool.live, AQ_PIPES_MUCH);
    close_pair(ends);
    end_stream(stream);
}

/* The peer wants no more: what the socket still says is taken and dropped, so that whoever says it does not stand
 * still. */
static void test_tx_stopped(void)
{
    const uint64_t dropped = AQ_C_stream_bytes_dropped;
    aq_stream *stream = new_stream(1000, WINDOW);
    int ends[2];
    uint8_t byte;

    open_pair(1, ends);
    aq_stream_begin(stream, ends[0]);
    CHECK_INT(write(ends[1], bytes, 3000), 3000);
    wait_for(stream, ends[0], POLLIN);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_SPACE | AQ_NEED_DATA);
    CHECK_INT(stream->result.sent, 1000);
    atomic_store(&stream->tx_stopped, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_DATA | AQ_NEED_PAUSE);
    CHECK_INT(stream->result.sent, 1000);
    CHECK_INT(atomic_load(&counters.value[dropped]), 2000);
    /* The other direction goes on, up to its end, and with it the connection ends: nobody would read what it says. */
    arrives(stream, bytes + 100, 5000, 1);
    while (pump(stream, ends[0], BUDGET) == AQ_NEED_PAUSE)
        sched_yield(); /* until the peer's kernel has it all */
    CHECK_INT(stream->result.end, AQ_END_PEER_RESET);
    CHECK_INT(atomic_load(&stream->tx_fin), 0);
    CHECK_INT(close(ends[0]), 0);
    peer_gets(ends[1], bytes + 100, 5000);
    CHECK_INT(read(ends[1], &byte, 1), 0);
    CHECK(send(ends[1], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    CHECK_INT(close(ends[1]), 0);
    end_stream(stream);

    /* Its own end in order remains one. */
    stream = new_stream(1000, WINDOW);
    open_pair(0, ends);
    atomic_store(&stream->tx_stopped, 1);
    CHECK_INT(write(ends[1], bytes, 3000), 3000);
    CHECK_INT(shutdown(ends[1], SHUT_WR), 0);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_DATA | AQ_NEED_PAUSE);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_DATA);
    quic_ends(stream, ends);
    CHECK_INT(stream->result.end, AQ_END_FINISHED);
    CHECK_INT(stream->result.sent, 0);
    close_pair(ends);
    end_stream(stream);

    /* with the other direction over already: at once */
    stream = new_stream(WINDOW, WINDOW);
    open_pair(0, ends);
    atomic_store(&stream->rx_fin, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ);
    atomic_store(&stream->tx_stopped, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(stream->result.end, AQ_END_PEER_RESET);
    close_pair(ends);
    end_stream(stream);
}

/* ---- credit -------------------------------------------------------------------------------------------------------
 */

static void consume(aq_stream *stream, const int ends[2], size_t length)
{
    arrives(stream, bytes, length, 0);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_DATA);
    peer_gets(ends[1], bytes, length);
}

static void test_credit(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    int ends[2];

    open_pair(0, ends);
    CHECK_INT(atomic_load(&credit->references), 2);
    consume(stream, ends, THRESHOLD - 1);
    CHECK_INT(atomic_load(&credit->owed), THRESHOLD - 1);
    CHECK_INT(told(), 0); /* not worth it yet */
    consume(stream, ends, 1);
    CHECK_INT(atomic_load(&credit->owed), THRESHOLD);
    CHECK_INT(told(), 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), AQ_NEED_READ | AQ_NEED_DATA);
    CHECK_INT(told(), 0); /* nothing new */

    /* the engine returned the connection's; another stream's consumption counts as well */
    atomic_store(&credit->owed, 0);
    consume(stream, ends, 10);
    CHECK_INT(told(), 0);
    atomic_fetch_add(&credit->owed, THRESHOLD - 20);
    consume(stream, ends, 10);
    CHECK_INT(told(), 1);

    /* the stream's own: from the byte on that the engine asked for */
    atomic_store(&credit->owed, 0);
    atomic_store(&stream->report_at, THRESHOLD + 20 + 50);
    consume(stream, ends, 49);
    CHECK_INT(told(), 0);
    consume(stream, ends, 1);
    CHECK_INT(told(), 1);
    atomic_store(&stream->report_at, UINT64_MAX);
    consume(stream, ends, 1);
    CHECK_INT(told(), 0);
    CHECK_INT(atomic_load(&credit->owed), 51);

    /* what nobody took comes back at the end, once */
    arrives(stream, bytes, 777, 0);
    aq_stream_close(stream);
    aq_stream_leave(stream);
    CHECK_INT(atomic_exchange(&destroyed, 0), 1);
    CHECK_INT(atomic_exchange(&credit->owed, 0), 51 + 777);
    CHECK_INT(atomic_load(&credit->streams), 0); /* the peer did not open it */
    CHECK_INT(told() + credit_told, 0);          /* below the threshold */
    CHECK_INT(atomic_load(&credit->references), 1);
    close_pair(ends);
}

/* Partly written, then cut: what the socket took and what it did not add up to what came. */
static void test_credit_of_a_cut_stream(void)
{
    aq_stream *stream = new_stream(WINDOW, sizeof(bytes));
    int ends[2], small = 4096;

    open_pair(0, ends);
    CHECK_INT(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    arrives(stream, bytes, sizeof(bytes), 0);
    pump(stream, ends[0], UINT64_MAX);
    CHECK(stream->result.received > 0 && stream->result.received < sizeof(bytes));
    CHECK_INT(atomic_load(&credit->owed), stream->result.received);
    atomic_store(&stream->local_reset, 1);
    CHECK_INT(pump(stream, ends[0], BUDGET), 0);
    CHECK_INT(stream->result.end, AQ_END_LOCAL_RESET);
    aq_stream_leave(stream);
    aq_stream_close(stream);
    CHECK_INT(atomic_load(&destroyed), 0); /* the list still holds a reference */
    CHECK_INT(told(), 1);
    CHECK_INT(atomic_exchange(&destroyed, 0), 1);
    CHECK_INT(told(), 0);
    CHECK_INT(credit_told, 1); /* that was worth telling */
    credit_told = 0;
    CHECK_INT(atomic_exchange(&credit->owed, 0), sizeof(bytes));
    close_pair(ends);
}

/* A stream that the peer opened counts against its limit until nobody holds it any more, whatever it owed. */
static void test_credit_for_streams(void)
{
    aq_stream *stream = new_stream(WINDOW, WINDOW);
    aq_id id = stream->id;

    stream->peer_opened = 1;
    aq_stream_close(stream);
    CHECK_INT(atomic_load(&credit->streams), 0);
    CHECK(aq_slab_get(&table, id) == stream);
    aq_stream_leave(stream);
    CHECK_INT(atomic_load(&credit->streams), 0); /* a reference is left */
    aq_slab_put(&table, id);
    CHECK_INT(atomic_exchange(&credit->streams, 0), 1);
    CHECK_INT(told(), 0);
    CHECK_INT(credit_told, 1);
    credit_told = 0;
    CHECK_INT(atomic_exchange(&destroyed, 0), 1);
}

int main(void)
{
    uint64_t state = 8;
    size_t i;
    int way;

    check_watchdog(WATCHDOG_SECONDS);
    for (i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)check_random(&state);
    surroundings_init();
    test_no_memory(); /* first: nothing has come back to the pool yet */
    for (way = 0; way < 4; way++)
        test_half_close(way & 1, way >> 1);
    test_empty();
    test_needs();
    test_budget();
    test_idle_keeps_nothing();
    test_read_ahead(0);
    test_read_ahead(1);
    test_tx_stopped();
    test_credit();
    test_credit_of_a_cut_stream();
    test_credit_for_streams();
    surroundings_destroy();
    return check_done();
}
