/* Streams with a thread on each side: the race of their two ends, and an echo through the pipes. */
#include "stream_side.h"

#include <pthread.h>

#define WATCHDOG_SECONDS 90
#define WINDOW (64U * 1024)
#ifdef __SANITIZE_THREAD__
#define RACES 2000 /* rounds of two threads that end the same stream */
#define ECHO_BYTES (4U << 20)
#else
#define RACES 20000
#define ECHO_BYTES (32U << 20)
#endif

static uint8_t bytes[WINDOW];

/* ---- the end ----------------------------------------------------------------------------------------------------- */

static struct {
    _Atomic(aq_stream *) stream;
    _Atomic uint32_t done;
} race;

static void *leave_rounds(void *unused)
{
    for (uint32_t round = 1; round <= RACES; round++) {
        aq_stream *stream;

        while ((stream = atomic_exchange(&race.stream, NULL)) == NULL)
            sched_yield();
        aq_stream_leave(stream);
        aq_slab_put(&table, stream->id); /* its last word on it */
        atomic_store(&race.done, round);
    }
    return unused;
}

/* The owner leaves while QUIC closes; each holds a reference for the time of its call. */
static void test_race(void)
{
    pthread_t owner;

    CHECK_INT(pthread_create(&owner, NULL, leave_rounds, NULL), 0);
    for (uint32_t round = 1; round <= RACES; round++) {
        aq_stream *stream = new_stream(WINDOW, WINDOW);
        aq_id id = stream->id;

        CHECK(aq_slab_get(&table, id) != NULL && aq_slab_get(&table, id) != NULL);
        atomic_store(&race.stream, stream);
        aq_stream_close(stream);
        aq_slab_put(&table, id);
        while (atomic_load(&race.done) < round)
            sched_yield();
        told();
        CHECK_INT(aq_slab_count(&table), 0);
        CHECK_INT(atomic_exchange(&destroyed, 0), 1);
    }
    CHECK_INT(pthread_join(owner, NULL), 0);
}

/* ---- a thread on each side
 * ---------------------------------------------------------------------------------------------- */

static struct {
    aq_stream *stream;
    aq_wake wake; /* the owner's */
    int ends[2];
} echo;

static int worth_a_check(aq_stream *stream, unsigned need, int fin)
{
    return ((need & AQ_NEED_DATA) && (aq_pipe_readable(&stream->rx) > 0 || fin != atomic_load(&stream->rx_fin))) ||
           ((need & AQ_NEED_SPACE) && aq_stream_may_read(stream));
}

/* As a worker does it: sleeps without a time-out, so a signal that gets lost hangs here. */
static void *own(void *unused)
{
    aq_stream *stream = echo.stream;

    atomic_store(&stream->wake, &echo.wake);
    for (;;) {
        struct pollfd items[2] = {{.fd = echo.ends[0]}, {.fd = echo.wake.fd, .events = POLLIN}};
        int fin = atomic_load(&stream->rx_fin);
        unsigned need = pump(stream, echo.ends[0], 100000);

        if (need == 0)
            break;
        if (need & AQ_NEED_TURN)
            continue;
        items[0].events = (short)((need & AQ_NEED_READ ? POLLIN : 0) | (need & AQ_NEED_WRITE ? POLLOUT : 0));
        atomic_store(&stream->wants, (need & (AQ_NEED_SPACE | AQ_NEED_DATA)) | AQ_NEED_END);
        aq_wake_prepare(&echo.wake);
        while (!worth_a_check(stream, need, fin) && poll(items, 2, -1) < 0)
            CHECK_INT(errno, EINTR);
        atomic_store(&stream->wants, 0);
        aq_wake_cancel(&echo.wake);
        stream->can_read |= (items[0].revents & POLLIN) != 0;
        stream->can_write |= (items[0].revents & POLLOUT) != 0;
    }
    atomic_store(&stream->wake, NULL);
    CHECK_INT(stream->result.end, AQ_END_FINISHED);
    CHECK_INT(stream->result.sent, ECHO_BYTES);
    CHECK_INT(stream->result.received, ECHO_BYTES);
    CHECK_INT(shutdown(echo.ends[0], SHUT_WR), 0); /* as closing does */
    aq_stream_leave(stream);
    aq_slab_put(&table, stream->id);
    return unused;
}

static void *write_all(void *unused)
{
    for (size_t sent = 0; sent < ECHO_BYTES;) {
        size_t at = sent % sizeof(bytes), max = sizeof(bytes) - at;
        ssize_t put = write(echo.ends[1], bytes + at, max < ECHO_BYTES - sent ? max : ECHO_BYTES - sent);

        CHECK(put > 0);
        sent += (size_t)put;
    }
    CHECK_INT(shutdown(echo.ends[1], SHUT_WR), 0);
    return unused;
}

static void *read_all(void *unused)
{
    uint8_t byte;

    for (size_t have = 0; have < ECHO_BYTES; have += sizeof(bytes))
        peer_gets(echo.ends[1], bytes, sizeof(bytes));
    CHECK_INT(read(echo.ends[1], &byte, 1), 0);
    return unused;
}

/* The engine of this test sends back what it gets, as fast as the owner takes it. */
static void echo_until_fin(aq_stream *stream)
{
    struct iovec vector;

    while (!atomic_load(&stream->rx_fin)) {
        int fin;

        told();
        fin = atomic_load(&stream->tx_fin); /* before the bytes: once it is seen, every byte before it is */
        while (aq_pipe_peek(&stream->tx, &vector, 1, (size_t)aq_pipe_room(&stream->rx)) == 1) {
            CHECK_INT(aq_pipe_write(&stream->rx, vector.iov_base, vector.iov_len), 0);
            aq_pipe_take(&stream->tx, vector.iov_len);
            aq_pipe_release(&stream->tx, aq_pipe_taken(&stream->tx));
        }
        if (fin && aq_pipe_readable(&stream->tx) == 0)
            atomic_store(&stream->rx_fin, 1);
        aq_stream_signal(stream, AQ_NEED_DATA | AQ_NEED_SPACE);
        atomic_store(&stream->report_at, aq_pipe_taken(&stream->rx) + 1);
        aq_wake_prepare(&wake);
        if (!atomic_load(&ready.filled) && !atomic_load(&stream->rx_fin) &&
            (aq_pipe_readable(&stream->tx) == 0 || aq_pipe_room(&stream->rx) == 0)) {
            struct pollfd item = {.fd = wake.fd, .events = POLLIN};

            while (poll(&item, 1, -1) < 0)
                CHECK_INT(errno, EINTR);
        }
        aq_wake_cancel(&wake);
    }
}

static void test_echo(int tcp)
{
    pthread_t threads[3];
    aq_stream *stream = new_stream(WINDOW, WINDOW / 2);
    aq_id id = stream->id;
    int i;

    echo.stream = stream;
    CHECK(aq_slab_get(&table, id) == stream && aq_slab_get(&table, id) == stream); /* the owner's and the engine's */
    CHECK_INT(aq_wake_init(&echo.wake), 0);
    open_pair(tcp, echo.ends);
    CHECK_INT(pthread_create(&threads[0], NULL, own, NULL), 0);
    CHECK_INT(pthread_create(&threads[1], NULL, write_all, NULL), 0);
    CHECK_INT(pthread_create(&threads[2], NULL, read_all, NULL), 0);
    echo_until_fin(stream);
    aq_stream_signal(stream, AQ_NEED_DATA);
    aq_stream_close(stream);
    aq_slab_put(&table, id);
    for (i = 0; i < 3; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    told();
    CHECK(aq_slab_get(&table, id) == NULL);
    CHECK_INT(atomic_exchange(&destroyed, 0), 1);
    told();
    CHECK_INT(atomic_exchange(&credit->owed, 0), ECHO_BYTES); /* all of it, and once */
    close_pair(echo.ends);
    aq_wake_destroy(&echo.wake);
}

int main(void)
{
    uint64_t state = 8;
    size_t i;

    check_watchdog(WATCHDOG_SECONDS);
    for (i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)check_random(&state);
    surroundings_init();
    test_race();
    test_echo(0);
    test_echo(1);
    surroundings_destroy();
    return check_done();
}
