/* What the tests of relayed streams share: an engine's surroundings, the engine's side of a stream played by hand, and
 * connected sockets.
 */
#ifndef STREAM_SIDE_H
#define STREAM_SIDE_H

#include "tunnel/stream.h"

#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#define CONNECTION 4711
#define THRESHOLD 10000 /* of the credit: bytes consumed from which on the engine hears of it */
#define BUDGET (1U << 20)

static aq_counters counters;
static aq_pool pool;
static aq_slab table;
static aq_wake wake;
static aq_ready ready;
static aq_credit *credit;
static int credit_told;            /* how often the list named the credit since the last look */
static _Atomic uint32_t destroyed; /* streams since the last look */

static inline void destroy_stream(void *stream)
{
    atomic_fetch_add(&destroyed, 1);
    aq_stream_destroy(stream);
}

static inline void surroundings_init(void)
{
    CHECK_INT(aq_pool_init(&pool, 1 << 20), 0);
    CHECK_INT(aq_slab_init(&table, AQ_KIND_STREAM, 1000, destroy_stream), 0);
    CHECK_INT(aq_wake_init(&wake), 0);
    aq_ready_init(&ready, &wake);
    credit = aq_credit_new(THRESHOLD, CONNECTION, &ready);
    CHECK(credit != NULL);
}

/* aq_stream_transfer() with what an owner does before: it asks the kernel whether there is something to read. */
static inline unsigned pump(aq_stream *stream, int fd, uint64_t budget)
{
    struct pollfd ready_to = {.fd = fd, .events = POLLIN};

    if (poll(&ready_to, 1, 0) == 1 && (ready_to.revents & POLLIN))
        stream->can_read = 1;
    return aq_stream_transfer(stream, fd, budget, budget);
}

static inline aq_stream *new_stream(uint64_t send_window, uint64_t receive_window)
{
    const aq_stream_setup setup = {&table, &ready, &counters, &pool, send_window, receive_window, NULL};
    aq_stream *stream = aq_stream_new(&setup, CONNECTION, credit);

    CHECK(stream != NULL);
    CHECK_INT((uintptr_t)stream % _Alignof(aq_stream), 0);
    stream->id = aq_slab_add(&table, stream);
    CHECK(stream->id > 0);
    atomic_store(&stream->report_at, UINT64_MAX); /* the engine asks for nothing yet */
    return stream;
}

/* Takes the whole list as the engine does, and gives its references back. Returns how many streams were in it. */
static inline int told(void)
{
    aq_ready_node *node = aq_ready_take(&ready), *next;
    int count = 0;

    for (; node != NULL; node = next) {
        next = node->next;
        CHECK_INT(atomic_exchange(&node->queued, 0), 1);
        if (node->kind == AQ_READY_CREDIT) {
            CHECK(node == &credit->node);
            aq_credit_unref(credit);
            credit_told++;
            continue;
        }
        CHECK_INT(node->kind, AQ_READY_STREAM);
        aq_slab_put(&table, ((aq_stream *)(void *)node)->id);
        count++;
    }
    return count;
}

/* Both sides are done with it: the name goes, and with it the stream. */
static inline void end_stream(aq_stream *stream)
{
    aq_id id = stream->id;

    aq_stream_close(stream);
    CHECK(aq_slab_get(&table, id) != NULL); /* the relay is not over */
    aq_slab_put(&table, id);
    aq_stream_leave(stream);
    CHECK(aq_slab_get(&table, id) == NULL);
    told();
    CHECK_INT(atomic_exchange(&destroyed, 0), 1);
    atomic_store(&credit->owed, 0);
    credit_told = 0;
}

static inline void surroundings_destroy(void)
{
    CHECK_INT(told(), 0);
    CHECK_INT(aq_slab_count(&table), 0);
    CHECK_INT(atomic_load(&pool.live), 0);
    CHECK_INT(atomic_load(&credit->references), 1);
    aq_credit_unref(credit);
    aq_ready_destroy(&ready);
    aq_wake_destroy(&wake);
    aq_slab_destroy(&table);
    aq_pool_destroy(&pool);
}

/* ---- the engine's side ----------------------------------------------------------------------------------------- */

static inline void arrives(aq_stream *stream, const void *data, size_t length, int fin)
{
    CHECK_INT(aq_pipe_write(&stream->rx, data, length), 0);
    if (fin)
        atomic_store(&stream->rx_fin, 1);
}

/* Takes and acknowledges `length` bytes that came from the socket, and compares them. */
static inline void leaves(aq_stream *stream, const void *expected, size_t length)
{
    const uint8_t *at = expected;
    struct iovec vector;

    CHECK(aq_pipe_readable(&stream->tx) >= length);
    while (length > 0) {
        CHECK_INT(aq_pipe_peek(&stream->tx, &vector, 1, length), 1);
        CHECK_BYTES(vector.iov_base, at, vector.iov_len);
        aq_pipe_take(&stream->tx, vector.iov_len);
        at += vector.iov_len;
        length -= vector.iov_len;
    }
    aq_pipe_release(&stream->tx, aq_pipe_taken(&stream->tx));
}

/* ---- sockets --------------------------------------------------------------------------------------------------- */

/* A connected pair; ends[0], the owner's, does not block. */
static inline void open_pair(int tcp, int ends[2])
{
    if (tcp) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof(at);
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        CHECK(listener >= 0);
        CHECK_INT(bind(listener, (struct sockaddr *)&at, sizeof(at)), 0);
        CHECK_INT(listen(listener, 1), 0);
        CHECK_INT(getsockname(listener, (struct sockaddr *)&at, &length), 0);
        ends[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(ends[1] >= 0);
        CHECK_INT(connect(ends[1], (struct sockaddr *)&at, sizeof(at)), 0);
        ends[0] = accept(listener, NULL, NULL);
        CHECK(ends[0] >= 0);
        CHECK_INT(close(listener), 0);
    } else {
        CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    }
    CHECK_INT(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
}

static inline void close_pair(const int ends[2])
{
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(close(ends[1]), 0);
}

/* Blocks until the socket is ready; says so to the stream as its driver does. */
static inline void wait_for(aq_stream *stream, int fd, short events)
{
    struct pollfd item = {.fd = fd, .events = events};

    while (poll(&item, 1, -1) < 0)
        CHECK_INT(errno, EINTR);
    if (item.revents & POLLIN)
        stream->can_read = 1;
    if (item.revents & POLLOUT)
        stream->can_write = 1;
}

/* The peer of the TCP connection reads exactly this. */
static inline void peer_gets(int fd, const void *expected, size_t length)
{
    static uint8_t buffer[1 << 20];
    size_t have = 0;

    CHECK(length <= sizeof(buffer));
    while (have < length) {
        ssize_t got = read(fd, buffer + have, length - have);

        CHECK(got > 0);
        have += (size_t)got;
    }
    CHECK_BYTES(buffer, expected, length);
}

#endif
